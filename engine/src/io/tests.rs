//! The real drivers: the conformance suite on each kind of directory, and what only real threads and files can show.
#![allow(clippy::disallowed_methods, reason = "tests of real files, threads and times use them")]

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Instant;

use rustix::fs::{FlockOperation, flock};

use super::directory::Directory;
use super::*;

const DISK: DiskIndex = DiskIndex(0);
const SECOND: Duration = Duration::from_secs(1);

/// The directories to test in: the usual one for temporary files, and memory where there is such a file system.
fn places() -> Vec<PathBuf> {
    let mut places = vec![std::env::temp_dir()];
    places.extend(Some(PathBuf::from("/dev/shm")).filter(|path| path.is_dir()));
    places
}

/// The drivers that work here.
fn choices() -> Vec<DriverChoice> {
    let mut choices = vec![DriverChoice::Threads];
    match driver(DriverChoice::Uring) {
        Ok(_) => choices.push(DriverChoice::Uring),
        Err(error) => eprintln!("io_uring is not tested, it is refused here: {error}"),
    }
    choices
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn make(choice: DriverChoice) -> Box<dyn Driver> {
    driver(choice).expect("it worked before")
}

fn attach_at(disk: DiskIndex, path: &Path) -> Op {
    Op::Attach { disk, path: path.to_owned(), create: true }
}

/// Waits for the next completion, which must be this one.
fn next(driver: &mut dyn Driver, id: u64) -> io::Result<Output> {
    let (end, mut done) = (Instant::now() + 60 * SECOND, Vec::new());
    while done.is_empty() {
        assert!(Instant::now() < end, "nothing came back");
        driver.poll(Some(SECOND), &mut done);
    }
    assert_eq!((done.len(), done[0].id), (1, OpId(id)));
    done.remove(0).result
}

fn run(driver: &mut dyn Driver, op: Op) -> io::Result<Output> {
    driver.submit(OpId(u64::MAX), op);
    next(driver, u64::MAX)
}

fn open(driver: &mut dyn Driver, name: &str, create: Option<u64>) -> FileId {
    match run(driver, Op::Open { disk: DISK, name: name.to_owned(), create }).expect("open") {
        Output::File(file) => file,
        _ => panic!("another output"),
    }
}

#[test]
fn the_drivers_conform() {
    for choice in choices() {
        for place in places() {
            let kept = std::cell::RefCell::new(Vec::new());
            conformance::run(|| {
                let root = tempfile::tempdir_in(&place).expect("a directory");
                let path = root.path().to_owned();
                kept.borrow_mut().push(root);
                (make(choice), path)
            });
        }
    }
}

#[test]
fn a_driver_says_what_it_is() {
    assert_eq!(make(DriverChoice::Threads).name(), "threads");
    let auto = make(DriverChoice::Auto).name();
    match driver(DriverChoice::Uring) {
        Ok(uring) => assert_eq!((uring.name().as_str(), auto.as_str()), ("io_uring", "io_uring")),
        Err(error) => assert_eq!(auto, format!("threads (io_uring is not available: {error})")),
    }
}

#[test]
fn a_dropped_driver_gives_up_its_locks() {
    let root = directory();
    for choice in choices() {
        let mut first = make(choice);
        run(&mut *first, attach_at(DISK, root.path())).expect("attach");
        let file = open(&mut *first, "slot", Some(1 << 20));
        let mut second = make(choice);
        let error = run(&mut *second, attach_at(DISK, root.path())).err().expect("locked");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        // Dropped with work under way.
        for page in 0..64 {
            let data = Buffer::zeroed(4096).expect("map").share();
            first.submit(OpId(page), Op::Write { disk: DISK, file, offset: page * 4096, data });
        }
        first.poll(None, &mut Vec::new());
        drop(first);
        run(&mut *second, attach_at(DISK, root.path())).expect("the lock is free");
        run(&mut *second, Op::Remove { disk: DISK, name: "slot".to_owned() }).expect("remove");
    }
}

/// A file that is opened while its disk is detached is closed by an operation that nobody asked
/// for, the last in flight.
#[test]
fn h3_driver_ends_as_soon_as_nothing_is_in_flight() {
    for choice in choices() {
        for _ in 0..5 {
            let (root, mut driver) = (directory(), make(choice));
            run(&mut *driver, attach_at(DISK, root.path())).expect("attach");
            driver.submit(OpId(1), Op::Open { disk: DISK, name: "slot".to_owned(), create: Some(1 << 20) });
            driver.submit(OpId(2), Op::Detach { disk: DISK });
            let mut done = Vec::new();
            while done.len() < 2 {
                driver.poll(Some(SECOND), &mut done);
            }
            let start = Instant::now();
            drop(driver);
            assert!(start.elapsed() < SECOND, "{choice:?}: it took {:?}", start.elapsed());
        }
    }
}

#[test]
fn an_attachment_waits_for_the_writes_that_a_killed_process_left() {
    let root = directory();
    std::fs::write(root.path().join("slot"), [1; 10]).expect("write");
    // As an io_uring write holds it after its process is gone.
    let held = File::open(root.path().join("slot")).expect("open");
    flock(&held, FlockOperation::NonBlockingLockShared).expect("lock");
    let path = root.path().to_owned();
    let attachment = std::thread::spawn(move || Directory::attach(&path).map(drop));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!attachment.is_finished(), "the write has not finished");
    drop(held);
    attachment.join().expect("no panic").expect("attach");
}

#[test]
fn a_disk_that_hangs_holds_up_nobody_else() {
    for choice in choices() {
        let (stuck, healthy) = (directory(), directory());
        std::fs::write(stuck.path().join("slot"), [1; 10]).expect("write");
        let held = File::open(stuck.path().join("slot")).expect("open");
        flock(&held, FlockOperation::NonBlockingLockShared).expect("lock");
        let mut driver = make(choice);
        // Hangs for as long as the lock is held, up to ten seconds.
        driver.submit(OpId(1), attach_at(DiskIndex(9), stuck.path()));
        run(&mut *driver, attach_at(DISK, healthy.path())).expect("attach");
        run(&mut *driver, Op::List { disk: DISK }).expect("list");
        run(&mut *driver, Op::Compute(Box::new(|| Box::new(())))).expect("compute");
        run(&mut *driver, Op::Detach { disk: DISK }).expect("detach");
        let start = Instant::now();
        drop(driver);
        assert!(start.elapsed() < 4 * SECOND, "it waits for two seconds: {:?}", start.elapsed());
    }
}

/// All threads of one disk hang, with work of every kind behind them: the other disk answers, and what was not begun can
/// be taken back.
#[test]
fn h3_disk_that_never_answers_holds_up_no_other_disk() {
    const STUCK: DiskIndex = DiskIndex(9);
    for choice in choices() {
        let (blocked, stuck, healthy) = (directory(), directory(), directory());
        std::fs::write(blocked.path().join("slot"), [1; 10]).expect("write");
        let held = File::open(blocked.path().join("slot")).expect("open");
        flock(&held, FlockOperation::NonBlockingLockShared).expect("lock");
        let mut driver = make(choice);
        run(&mut *driver, attach_at(DISK, healthy.path())).expect("attach");
        run(&mut *driver, attach_at(STUCK, stuck.path())).expect("attach");
        let file = open(&mut *driver, "slot", Some(1 << 20));
        for thread in 0..4 {
            driver.submit(OpId(thread), attach_at(STUCK, blocked.path()));
        }
        let name = || "small".to_owned();
        let behind = [
            Op::List { disk: STUCK },
            Op::Space { disk: STUCK },
            Op::Open { disk: STUCK, name: name(), create: Some(4096) },
            Op::WriteFile { disk: STUCK, name: name(), bytes: Arc::new(vec![1]) },
            Op::ReadFile { disk: STUCK, name: name(), limit: 10 },
            Op::Remove { disk: STUCK, name: name() },
        ];
        let behind = behind.map(|op| {
            let id = OpId(100 + op.disk().map_or(0, |disk| disk.0 as u64));
            driver.submit(id, op);
            id
        });
        let start = Instant::now();
        let data = Buffer::zeroed(4096).expect("map").share();
        run(&mut *driver, Op::Write { disk: DISK, file, offset: 0, data }).expect("write");
        run(&mut *driver, Op::List { disk: DISK }).expect("list");
        run(&mut *driver, Op::Space { disk: DISK }).expect("space");
        run(&mut *driver, Op::WriteFile { disk: DISK, name: name(), bytes: Arc::new(vec![1]) }).expect("write");
        run(&mut *driver, Op::ReadFile { disk: DISK, name: name(), limit: 10 }).expect("read");
        run(&mut *driver, Op::Remove { disk: DISK, name: name() }).expect("remove");
        run(&mut *driver, Op::Compute(Box::new(|| Box::new(())))).expect("compute");
        assert!(start.elapsed() < 5 * SECOND, "the other disk waited {:?}", start.elapsed());
        driver.give_up(STUCK);
        let mut done = Vec::new();
        driver.poll(Some(SECOND), &mut done);
        driver.poll(None, &mut done);
        assert_eq!(done.len(), behind.len(), "what was not begun is taken back");
        for completion in done {
            let error = completion.result.err().expect("it was never done");
            assert_eq!((completion.id, error.kind()), (OpId(109), ErrorKind::TimedOut));
        }
        driver.submit(OpId(7), Op::Detach { disk: STUCK });
        run_others(&mut *driver, file);
        drop(held);
    }
}

/// The disk that answers goes on while others are let go.
fn run_others(driver: &mut dyn Driver, file: FileId) {
    let mut done = Vec::new();
    let end = Instant::now() + 5 * SECOND;
    let data = Buffer::zeroed(4096).expect("map").share();
    driver.submit(OpId(1000), Op::Write { disk: DISK, file, offset: 0, data });
    while !done.iter().any(|completion: &Completion| completion.id == OpId(1000)) {
        assert!(Instant::now() < end, "the write waits");
        driver.poll(Some(SECOND), &mut done);
    }
}

/// A sandbox that refuses `io_uring_enter` alone: the ring can be made, and nothing comes through it.
#[cfg(all(target_os = "linux", target_arch = "x86_64", feature = "uring"))]
#[test]
fn h4_io_uring_enter_that_is_refused_falls_back_to_threads_and_is_said() {
    let named = std::thread::spawn(|| {
        sandbox::refuse(sandbox::IO_URING_ENTER);
        (driver(DriverChoice::Auto).expect("threads do").name(), driver(DriverChoice::Uring).err())
    });
    let (name, error) = named.join().expect("no panic");
    assert!(name.starts_with("threads (io_uring is not available: "), "{name}");
    if driver(DriverChoice::Uring).is_ok() {
        assert!(name.contains("io_uring_enter refused: Operation not permitted"), "{name}");
        assert_eq!(error.expect("refused").kind(), ErrorKind::PermissionDenied);
    }
}

/// A filter for system calls, for the calling thread and what it starts.
#[cfg(all(target_os = "linux", target_arch = "x86_64", feature = "uring"))]
#[allow(unsafe_code, reason = "the standard library has no call for it")]
mod sandbox {
    use std::ffi::{c_int, c_long, c_ulong};

    pub(super) const IO_URING_ENTER: u32 = 426;

    #[repr(C)]
    struct Line {
        code: u16,
        if_true: u8,
        if_false: u8,
        value: u32,
    }

    #[repr(C)]
    struct Program {
        len: u16,
        lines: *const Line,
    }

    unsafe extern "C" {
        fn prctl(option: c_int, ...) -> c_int;
    }

    /// From now on this thread's calls of that number fail with EPERM.
    pub(super) fn refuse(call: u32) {
        const NO_NEW_PRIVILEGES: c_int = 38;
        const SECCOMP: c_int = 22;
        const FILTER: c_long = 2;
        const EPERM: u32 = 1;
        let line = |code, if_false, value| Line { code, if_true: 0, if_false, value };
        // Load the call's number; if it is the one, answer EPERM; else let it through.
        let lines =
            [line(0x20, 0, 0), line(0x15, 1, call), line(0x06, 0, 0x5_0000 | EPERM), line(0x06, 0, 0x7fff_0000)];
        let program = Program { len: 4, lines: lines.as_ptr() };
        let zero: c_ulong = 0;
        // SAFETY: the calls take numbers, and a program that lives until they return; the kernel copies it.
        let done = unsafe {
            let one: c_ulong = 1;
            prctl(NO_NEW_PRIVILEGES, one, zero, zero, zero) == 0
                && prctl(SECCOMP, FILTER, &raw const program, zero, zero) == 0
        };
        assert!(done, "a filter can be set: {}", std::io::Error::last_os_error());
    }
}

#[test]
fn a_panic_in_a_computation_is_an_error_and_the_thread_lives_on() {
    for choice in choices() {
        let mut driver = make(choice);
        for _ in 0..8 {
            assert!(run(&mut *driver, Op::Compute(Box::new(|| panic!("on purpose")))).is_err());
        }
        run(&mut *driver, Op::Compute(Box::new(|| Box::new(1)))).expect("compute");
    }
}

#[test]
fn every_ring_from_another_thread_ends_a_sleep() {
    for choice in choices() {
        let mut driver = make(choice);
        let bell = driver.doorbell();
        let (rung, heard) = (mpsc::channel(), mpsc::channel::<()>());
        let ringer = std::thread::spawn(move || {
            for turn in 0..2000_u32 {
                // At ever other moments of the poll that is about to sleep.
                for _ in 0..turn % 200 * 10 {
                    std::hint::spin_loop();
                }
                rung.0.send(()).expect("heard");
                bell.ring();
                heard.1.recv().expect("heard");
            }
        });
        let mut done = Vec::new();
        for _ in 0..2000 {
            let start = Instant::now();
            while rung.1.try_recv().is_err() {
                driver.poll(Some(20 * SECOND), &mut done);
                assert!(start.elapsed() < 10 * SECOND, "a ring was lost");
            }
            heard.0.send(()).expect("still ringing");
        }
        ringer.join().expect("no panic");
        assert!(done.is_empty());
    }
}

#[test]
fn operations_reach_the_disk_while_the_bell_never_rests() {
    let root = directory();
    for choice in choices() {
        let mut driver = make(choice);
        run(&mut *driver, attach_at(DISK, root.path())).expect("attach");
        let file = open(&mut *driver, "slot", Some(1 << 20));
        let bell = driver.doorbell();
        let (mut done, end) = (Vec::new(), Instant::now() + 60 * SECOND);
        for page in 0..100 {
            let data = Buffer::zeroed(4096).expect("map").share();
            driver.submit(OpId(page), Op::Write { disk: DISK, file, offset: page * 4096, data });
            while done.len() as u64 <= page {
                assert!(Instant::now() < end, "{} came back", done.len());
                bell.ring();
                driver.poll(Some(SECOND), &mut done);
            }
        }
        assert!(done.into_iter().all(|completion| completion.result.is_ok()));
        run(&mut *driver, Op::Remove { disk: DISK, name: "slot".to_owned() }).expect("remove");
    }
}

#[test]
fn misplaced_slices_and_used_numbers_are_refused() {
    let (root, other) = (directory(), directory());
    for choice in choices() {
        let mut driver = make(choice);
        run(&mut *driver, attach_at(DISK, root.path())).expect("attach");
        let error = run(&mut *driver, attach_at(DISK, other.path())).err().expect("the number is taken");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        let file = open(&mut *driver, "slot", Some(8192));
        let data = Buffer::zeroed(8192).expect("map").share().part(512..4608);
        let error = run(&mut *driver, Op::Write { disk: DISK, file, offset: 0, data }).err().expect("misaligned");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        run(&mut *driver, Op::Remove { disk: DISK, name: "slot".to_owned() }).expect("remove");
    }
}

#[test]
fn only_plain_files_are_opened() {
    let (root, outside) = (directory(), directory());
    std::fs::write(outside.path().join("secret"), b"1").expect("write");
    std::os::unix::fs::symlink(outside.path().join("secret"), root.path().join("link")).expect("link");
    std::fs::create_dir(root.path().join("folder")).expect("folder");
    #[cfg(target_os = "linux")]
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.path().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("pipe");
    let directory = Arc::new(Directory::attach(root.path()).expect("attach"));
    let names: Vec<_> = directory.list().expect("list").into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["LOCK"]);
    for name in ["link", "folder", "pipe"] {
        assert!(directory.open(DISK, name, None).is_err(), "{name}");
        assert!(directory.read_file(name, 100).is_err(), "{name}");
    }
    let file = root.path().join("file");
    std::fs::write(&file, b"1").expect("write");
    let error = Directory::attach(&file).err().expect("not a directory");
    assert_eq!(error.kind(), ErrorKind::NotADirectory);
}

#[test]
fn a_file_whose_name_was_given_to_another_is_not_read_in_its_place() {
    let root = directory();
    let directory = Arc::new(Directory::attach(root.path()).expect("attach"));
    let first = directory.open(DISK, "slot", Some(4096)).expect("create");
    let second = directory.open(DISK, "other", Some(4096)).expect("create");
    assert_eq!(second.read_cached(0, &mut [1; 10]).expect("read"), 10);
    std::fs::rename(root.path().join("other"), root.path().join("slot")).expect("rename");
    assert_eq!(first.read_cached(0, &mut [1; 10]).expect_err("another file").kind(), ErrorKind::NotFound);
    // Once it is open, its name does not matter.
    assert_eq!(second.read_cached(0, &mut [1; 10]).expect("read"), 10);
}

#[test]
fn a_file_system_without_o_direct_is_used_with_the_cache() {
    let root = directory();
    let directory = Arc::new(Directory::attach_buffered(root.path()).expect("attach"));
    assert!(!directory.traits().direct);
    let file = directory.open(DISK, "slot", Some(8192)).expect("create");
    let mut buffer = Buffer::zeroed(4096).expect("map");
    buffer.fill(3);
    file.write(4096, &buffer.share()).expect("write");
    let read = file.read(0, 12288, Buffer::zeroed(12288).expect("map")).expect("read");
    assert_eq!(*read, [[0; 4096], [3; 4096]].concat());
}
