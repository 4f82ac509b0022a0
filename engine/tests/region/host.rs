//! What the host process does around a region: it changes its directory, asks from the wrong thread, runs tasks on one thread.

use std::cell::Cell;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::executor::LocalPool;
use futures::task::LocalSpawnExt;
use meridian::{
    AccountId, Ack, Committed, DiskConfig, DiskState, Error, ErrorKind, Lsn, Options, PartitionId, Region,
    StateMachine, Transaction,
};

use crate::common::options;
use crate::disks::{until, whole};

/// Long enough for a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

fn one(account: AccountId) -> Transaction {
    Transaction::new(account, PartitionId(1)).record("one")
}

/// Runs one ignored test of this binary in a process of its own.
fn in_process(test: &str, variable: &str, value: &Path) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]).env(variable, value);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

const HOME: &str = "MERIDIAN_TEST_HOST_HOME";

#[test]
fn h4_relative_paths_mean_the_same_after_a_change_of_directory() {
    let dir = tempfile::tempdir().unwrap();
    in_process("host::process_with_relative_paths", HOME, dir.path());
}

#[test]
#[ignore = "not a test: the process that changes its directory"]
fn process_with_relative_paths() {
    let Some(root) = std::env::var_os(HOME) else { return };
    // As the system names it: what is asked for later is compared with it.
    let root = std::fs::canonicalize(root).unwrap();
    let (home, elsewhere) = (root.join("home"), root.join("elsewhere"));
    for path in [&home, &elsewhere] {
        std::fs::create_dir(path).unwrap();
    }
    std::env::set_current_dir(&home).unwrap();
    let disks = ["d0", "./d1", "d2"].map(|path| DiskConfig::new(path, path.trim_start_matches("./"), "zone-1"));
    let options = Options { segment_bytes: 8 << 20, ..Options::new(disks.to_vec()) };
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    region.commit(one(account)).unwrap();
    std::env::set_current_dir(&elsewhere).unwrap();
    let paths = region.health().unwrap().disks.into_iter().map(|disk| disk.path);
    assert_eq!(paths.collect::<Vec<_>>(), ["d0", "d1", "d2"].map(|name| home.join(name)));
    let again = |join: &dyn Fn() -> meridian::Result<()>| {
        region.fail_disk(2).unwrap();
        until("the disk is back", || {
            region.commit(one(account)).unwrap();
            match join() {
                Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error}"),
                Ok(()) => return true,
            }
            false
        });
        whole(&region);
    };
    again(&|| region.return_disk(2));
    std::fs::rename(home.join("d2"), home.join("broken")).unwrap();
    again(&|| region.replace_disk(2));
    region.close().unwrap();
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0, "nothing is made elsewhere");
    std::env::set_current_dir(&home).unwrap();
    let health = Region::open(options.clone(), ()).unwrap().health().unwrap();
    assert!(!health.degraded, "{health:?}");
    // Where nobody can say what a relative path means, it is refused.
    std::env::set_current_dir(&elsewhere).unwrap();
    std::fs::remove_dir(&elsewhere).unwrap();
    let error = Region::open(options, ()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("absolute"), "{error}");
}

#[test]
fn h4_empty_path_and_one_directory_by_two_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&dir, 3);
    let good = options.disks[1].path.clone();
    options.disks[1].path = "".into();
    assert_eq!(Region::create(options.clone(), ()).err().unwrap().kind(), ErrorKind::InvalidInput);
    std::fs::create_dir(&good).unwrap();
    options.disks[1].path.clone_from(&good);
    std::os::unix::fs::symlink(&good, &options.disks[2].path).unwrap();
    says_both(Region::create(options, ()), ["disk-1", "disk-2"]);
}

/// The refusal of two disks names both, and what to do.
fn says_both(result: Result<Region, Error>, disks: [&str; 2]) {
    let error = result.err().expect("two disks overlap");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let words = [disks[0], disks[1], "a directory of its own"];
    assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
}

#[test]
fn h4_opening_refuses_one_directory_by_two_names_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&dir, 3);
    options.stall_timeout = PATIENCE;
    Region::create(options.clone(), ()).unwrap().close().unwrap();
    let last = options.disks[2].path.clone();
    std::fs::rename(&last, dir.path().join("away")).unwrap();
    std::os::unix::fs::symlink(&options.disks[0].path, &last).unwrap();
    let start = Instant::now();
    says_both(Region::open(options.clone(), ()), ["disk-0", "disk-2"]);
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    // With the directory back nothing of the refused opening is left.
    std::fs::remove_file(&last).unwrap();
    std::fs::rename(dir.path().join("away"), &last).unwrap();
    assert!(!Region::open(options, ()).unwrap().health().unwrap().degraded);
}

#[test]
fn h4_disk_inside_another_disk_is_refused_by_creation_and_opening() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&dir, 3);
    let (apart, inside) = (options.disks[2].path.clone(), options.disks[0].path.join("below/disk-2"));
    options.disks[2].path.clone_from(&inside);
    says_both(Region::create(options.clone(), ()), ["disk-0", "below/disk-2"]);
    std::fs::remove_dir_all(&options.disks[0].path).unwrap();
    options.disks[2].path.clone_from(&apart);
    Region::create(options.clone(), ()).unwrap().close().unwrap();
    std::fs::create_dir(options.disks[0].path.join("below")).unwrap();
    std::fs::rename(&apart, &inside).unwrap();
    options.disks[2].path = inside;
    says_both(Region::open(options, ()), ["disk-0", "below/disk-2"]);
}

/// Panics in one of its calls.
struct Panics(&'static str);

impl StateMachine for Panics {
    fn resume_from(&self) -> Lsn {
        assert!(self.0 != "resume_from", "a machine that fails, for this test");
        Lsn::ZERO
    }

    fn apply(&mut self, _: &Committed<'_>) {
        assert!(self.0 != "apply", "a machine that fails, for this test");
    }
}

#[test]
fn h4_machine_that_panics_while_the_region_opens_halts_the_opening() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 3);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    region.commit(one(account)).unwrap();
    region.close().unwrap();
    for call in ["resume_from", "apply"] {
        let error = Region::open(options.clone(), Panics(call)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Halted, "{call}: {error}");
        assert!(error.to_string().contains(call), "{call}: {error}");
    }
    assert!(Region::open(options, Panics("nothing")).is_ok());
}

#[test]
fn h4_back_end_that_panics_while_it_is_made_is_named_by_the_opening() {
    let dir = tempfile::tempdir().unwrap();
    let made = Region::create_with(options(&dir, 3), (), || panic!("a back end that fails, for this test"));
    let error = made.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::System, "{error}");
    assert!(error.to_string().contains("panicked"), "{error}");
}

/// What a machine does with its region, for each transaction.
type Act = Box<dyn FnMut(&Arc<Region>, AccountId) + Send>;

/// Has a handle of its own region, and does something with it.
struct Curious {
    region: Arc<Mutex<Option<Arc<Region>>>>,
    act: Act,
}

impl StateMachine for Curious {
    fn resume_from(&self) -> Lsn {
        Lsn::MAX
    }

    fn apply(&mut self, committed: &Committed<'_>) {
        let region = self.region.lock().unwrap().take();
        if let Some(region) = region {
            (self.act)(&region, committed.account());
        }
    }
}

/// A region whose machine does this once, and where its handle goes.
fn curious(options: &Options, act: Act) -> (Region, AccountId, Arc<Mutex<Option<Arc<Region>>>>) {
    let handle = Arc::default();
    let region = Region::create(options.clone(), Curious { region: Arc::clone(&handle), act }).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    (region, account, handle)
}

/// Everything that waits for the log thread, asked once each.
fn ask_everything(region: &Region, account: AccountId) -> Vec<(&'static str, Option<Error>)> {
    let lane = meridian::geo::Lane { log: region.log_id(), number: 0 };
    let mut tail = region.subscribe(region.committed());
    let mut ticket = region.try_submit(one(account)).unwrap();
    vec![
        ("submit", region.submit(one(account)).err()),
        ("commit", region.commit(one(account)).err()),
        ("create_account", region.create_account("more", Ack::Quorum).err()),
        ("mark", region.mark(&[account]).err()),
        ("progress", region.progress(lane).err()),
        ("carry", region.carry(lane, [account], None).err()),
        ("cut", region.cut(lane).err()),
        ("digest", region.digest(account).err()),
        ("accounts", region.accounts().err()),
        ("trim", region.trim(Lsn::MAX).err()),
        ("drain", region.drain("disk-0").err()),
        ("fail_disk", region.fail_disk(0).err()),
        ("return_disk", region.return_disk(0).err()),
        ("scrub", region.scrub().err()),
        ("health", region.health().err()),
        ("copies", region.copies().err()),
        ("stats", region.stats().err()),
        ("next_sequence", region.next_sequence(account, PartitionId(1)).err()),
        ("next_blocking", tail.next_blocking().err()),
        ("next_timeout", tail.next_timeout(PATIENCE).err()),
        ("wait_timeout", ticket.wait_timeout(PATIENCE).and_then(Result::err)),
        ("wait", ticket.wait().err()),
        ("check_caller", region.check_caller().err()),
    ]
}

#[test]
fn h4_machine_that_asks_its_own_region_gets_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (tell, told) = mpsc::channel();
    let act = Box::new(move |region: &Arc<Region>, account| tell.send(ask_everything(region, account)).unwrap());
    let (region, account, handle) = curious(&options(&dir, 3), act);
    let region = Arc::new(region);
    *handle.lock().unwrap() = Some(Arc::clone(&region));
    let mut ticket = region.submit(one(account)).unwrap();
    let answers = told.recv_timeout(PATIENCE).expect("the machine waits for itself");
    for (what, error) in answers {
        let error = error.unwrap_or_else(|| panic!("{what} is no error"));
        assert_eq!(error.kind(), ErrorKind::WouldDeadlock, "{what}: {error}");
    }
    ticket.wait_timeout(PATIENCE).expect("the log thread goes on").unwrap();
    // What it could ask without waiting is there.
    until("both are applied", || region.next_sequence(account, PartitionId(1)).unwrap() == 2);
    Arc::into_inner(region).unwrap().close().unwrap();
}

/// The machine gets the last handle, does this with it, and the directories are free afterwards.
fn last_handle(act: Act) {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 3);
    let (region, account, handle) = curious(&options, act);
    let region = Arc::new(region);
    // Until the machine has it, and this one is gone.
    let mut held = handle.lock().unwrap();
    let mut ticket = region.submit(one(account)).unwrap();
    *held = Some(region);
    drop(held);
    let answer = ticket.wait_timeout(PATIENCE).expect("the log thread waits for itself");
    let opened = OnceLock::new();
    until("the directories are free", || match Region::open(options.clone(), ()) {
        Ok(region) => opened.set(region).is_ok(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
            false
        }
    });
    assert_eq!(opened.into_inner().unwrap().next_sequence(account, PartitionId(1)).unwrap(), 1, "{answer:?}");
}

#[test]
fn h4_last_handle_dropped_by_the_machine_closes_the_region() {
    last_handle(Box::new(|_, _| ()));
}

#[test]
fn h4_last_handle_dropped_by_a_panic_of_the_machine_closes_the_region() {
    last_handle(Box::new(|_, _| panic!("a machine that fails, for this test")));
}

/// Keeps a handle of its region until it is dropped itself.
struct Keeper(Arc<Mutex<Option<Region>>>);

impl StateMachine for Keeper {
    fn resume_from(&self) -> Lsn {
        Lsn::MAX
    }

    fn apply(&mut self, _: &Committed<'_>) {
        drop(self.0.lock().unwrap().take());
    }
}

#[test]
fn h4_region_that_its_machine_owns_is_closed_on_its_word() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 3);
    let handle = Arc::new(Mutex::new(None));
    let region = Region::create(options.clone(), Keeper(Arc::clone(&handle))).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let mut held = handle.lock().unwrap();
    let ticket = region.submit(one(account)).unwrap();
    *held = Some(region);
    drop(held);
    drop(handle);
    ticket.wait().unwrap();
    until("the directories are free", || Region::open(options.clone(), ()).is_ok());
}

/// Asks the region when it is woken, on whatever thread wakes it.
struct Asks(Arc<Region>, mpsc::Sender<Option<ErrorKind>>);

impl std::task::Wake for Asks {
    fn wake(self: Arc<Asks>) {
        self.1.send(self.0.health().err().map(|error| error.kind())).unwrap();
    }
}

#[test]
fn h4_waker_that_asks_the_region_on_its_log_thread_gets_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let region = Arc::new(Region::create(options(&dir, 3), ()).unwrap());
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let (tell, told) = mpsc::channel();
    let waker = std::task::Waker::from(Arc::new(Asks(Arc::clone(&region), tell)));
    let mut context = std::task::Context::from_waker(&waker);
    // A ticket may be answered before it is polled: then nobody is woken.
    loop {
        let mut ticket = region.submit(one(account)).unwrap();
        if std::pin::Pin::new(&mut ticket).poll(&mut context).is_pending() {
            break;
        }
    }
    assert_eq!(told.recv_timeout(PATIENCE).expect("the log thread waits"), Some(ErrorKind::WouldDeadlock));
    let mut tail = region.subscribe(region.committed());
    let mut next = Box::pin(tail.next());
    assert!(next.as_mut().poll(&mut context).is_pending());
    region.commit(one(account)).unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).expect("the log thread waits"), Some(ErrorKind::WouldDeadlock));
}

/// Runs a task beside one that only counts how far it has got between two of its own turns; returns the longest stretch.
fn longest_turn(task: impl Future<Output = ()> + 'static, done: &Rc<Cell<usize>>) -> usize {
    let mut pool = LocalPool::new();
    // What was done before the ticker's last turn, and the longest stretch.
    let seen = Rc::new(Cell::new((0, 0)));
    let look = |seen: &Cell<(usize, usize)>, done: usize| {
        let (before, worst) = seen.get();
        seen.set((done, worst.max(done - before)));
    };
    let (counts, its) = (Rc::clone(done), Rc::clone(&seen));
    let ticker = std::future::poll_fn::<(), _>(move |context| {
        look(&its, counts.get());
        context.waker().wake_by_ref();
        Poll::Pending
    });
    pool.spawner().spawn_local(ticker).unwrap();
    pool.run_until(task);
    look(&seen, done.get());
    seen.get().1
}

#[test]
fn h4_subscription_gives_way_to_other_tasks_during_a_backlog() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&dir, 3);
    // Most of it is read from the disks.
    options.hot_bytes = 1 << 20;
    let region = Region::create(options, ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let large = || Transaction::new(account, PartitionId(1)).record(vec![1; 60_000]);
    let tickets: Vec<_> = (0..200).map(|_| region.submit(large()).unwrap()).collect();
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    for _ in 0..500 {
        region.commit(one(account)).unwrap();
    }
    let (bytes, blocks) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let follow = |bytes: Rc<Cell<usize>>, blocks: Rc<Cell<usize>>| {
        let (mut tail, end) = (region.subscribe(Lsn::ZERO), region.committed());
        async move {
            while tail.position() < end {
                let block = tail.next().await.unwrap();
                bytes.set(bytes.get() + (block.end().offset() - (block.lsn().offset() & !4095)) as usize);
                blocks.set(blocks.get() + 1);
            }
        }
    };
    let worst = longest_turn(follow(Rc::clone(&bytes), Rc::default()), &bytes);
    assert!(worst <= 2 << 20, "{worst} of {} bytes in one turn", bytes.get());
    let worst = longest_turn(follow(Rc::default(), Rc::clone(&blocks)), &blocks);
    assert!(worst <= 64, "{worst} of {} blocks in one turn", blocks.get());
    assert!(bytes.get() > 12 << 20 && blocks.get() > 500, "there was a backlog");
}

#[test]
fn h4_submitting_task_gives_way_while_there_is_always_room() {
    let dir = tempfile::tempdir().unwrap();
    let region = Rc::new(Region::create(options(&dir, 3), ()).unwrap());
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let done = Rc::new(Cell::new(0));
    let (its, count) = (Rc::clone(&region), Rc::clone(&done));
    let submit = async move {
        // As many as the queue takes: it is never waited for.
        for _ in 0..2_000 {
            drop(its.submit_async(one(account)).await.unwrap());
            count.set(count.get() + 1);
        }
    };
    let worst = longest_turn(submit, &done);
    assert!(worst <= 64, "{worst} submissions in one turn");
}

#[test]
fn h4_ticket_and_room_are_awaited_beside_other_tasks() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&dir, 3);
    options.queue_transactions = 4;
    let region = Rc::new(Region::create(options, ()).unwrap());
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let done = Rc::new(Cell::new(0));
    let (its, count) = (Rc::clone(&region), Rc::clone(&done));
    let commit = async move {
        for _ in 0..100 {
            let mut tickets = Vec::new();
            // The last of them wait for room.
            for _ in 0..8 {
                tickets.push(its.submit_async(one(account)).await.unwrap());
            }
            for ticket in tickets {
                ticket.await.unwrap();
                count.set(count.get() + 1);
            }
        }
    };
    let worst = longest_turn(commit, &done);
    assert!(worst <= 8, "{worst} commits in one turn");
    assert_eq!(region.next_sequence(account, PartitionId(1)).unwrap(), 800);
}

#[test]
fn h4_directory_that_goes_away_is_noticed_within_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 4);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    region.commit(one(account)).unwrap();
    whole(&region);
    let is_missing = |at: usize| {
        let disk = &region.health().unwrap().disks[at];
        assert!(matches!(disk.state, DiskState::Healthy | DiskState::Missing), "{disk:?}");
        disk.state == DiskState::Missing
    };
    let path = |at: usize| &options.disks[at].path;
    // The set may be under change still.
    let joins = |join: &dyn Fn() -> meridian::Result<()>| {
        until("it is taken", || match join() {
            Err(error) if error.kind() == ErrorKind::Busy => false,
            other => {
                other.unwrap();
                true
            }
        });
        whole(&region);
    };
    let replace = |at: usize| joins(&|| region.replace_disk(at));
    // Nothing is written meanwhile. The last one is a spare.
    let (emptied, removed, renamed) = (0, 3, 1);
    std::fs::remove_dir_all(path(removed)).unwrap();
    until("the removed one is missing", || is_missing(removed));
    replace(removed);
    for entry in std::fs::read_dir(path(emptied)).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    until("the emptied one is missing", || is_missing(emptied));
    replace(emptied);
    let away = dir.path().join("away");
    std::fs::rename(path(renamed), &away).unwrap();
    until("the renamed one is missing", || is_missing(renamed));
    assert!(region.health().unwrap().disks[renamed].reason.contains("renamed"));
    std::fs::rename(&away, path(renamed)).unwrap();
    joins(&|| region.return_disk(renamed));
    until("each is healthy", || region.health().unwrap().disks.iter().all(|disk| disk.state == DiskState::Healthy));
    region.commit(one(account)).unwrap();
    region.close().unwrap();
}

#[test]
fn h4_one_disk_more_or_fewer_than_the_region_has_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let given = options(&dir, 5);
    let with = |count: usize| Options { disks: given.disks[..count].to_vec(), ..given.clone() };
    Region::create(with(4), ()).unwrap().close().unwrap();
    std::fs::create_dir(&given.disks[4].path).unwrap();
    for count in [3, 5] {
        let error = Region::open(with(count), ()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        let said = error.to_string();
        assert!(said.contains(&format!("{count} given, the region has 4")) && said.contains("replace_disk"), "{said}");
    }
    assert!(Region::open(with(4), ()).unwrap().health().unwrap().is_whole());
}

#[test]
fn h4_region_without_room_says_which_disks_are_full() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(Options { max_segments: Some(6), ..options(&dir, 3) }, ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let commit = || region.commit(Transaction::new(account, PartitionId(1)).record(vec![1; 100_000]));
    let error = (0..100).find_map(|_| commit().err()).expect("nothing is trimmed");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("disk-0: max_segments 6 is reached"), "{error}");
    for _ in 0..200 {
        let health = region.health().unwrap();
        let full = health.disks.iter().any(|disk| disk.full);
        assert!(!health.no_space || full, "no space, and no disk is full");
        std::thread::sleep(Duration::from_millis(5));
    }
    region.trim(region.committed()).unwrap();
    until("there is room", || commit().is_ok());
    until("health says so", || {
        let health = region.health().unwrap();
        !health.no_space && health.disks.iter().all(|disk| !disk.full)
    });
}
