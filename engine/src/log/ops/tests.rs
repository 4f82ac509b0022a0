//! Operations on a disk that does not answer, on a driver and a clock of the test's own.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;

use super::*;
use crate::io::{Doorbell, ReadAt};

const DISK: DiskIndex = DiskIndex(0);
const OTHER: DiskIndex = DiskIndex(1);
const STALL: Duration = Duration::from_secs(4);
const SECOND: u64 = 1_000_000_000;

/// Completes what the test tells it to, and sleeps as long as the test says.
#[derive(Default)]
struct Script {
    now: AtomicU64,
    started: Mutex<Vec<OpId>>,
    /// How long each call of `poll` takes.
    polls: Mutex<VecDeque<u64>>,
    given_up: Mutex<Vec<DiskIndex>>,
    /// What the next call of `poll` completes.
    finished: Mutex<Vec<Completion>>,
}

impl Environment for Script {
    fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    fn wall(&self) -> u64 {
        self.now()
    }

    fn random(&self) -> u128 {
        4
    }
}

impl Doorbell for Script {
    fn ring(&self) {}
}

impl ReadAt for Script {
    fn read_at(&self, _: DiskIndex, _: FileId, _: u64, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn read_named_at(&self, _: DiskIndex, _: &str, _: u64, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::NotFound.into())
    }
}

struct Scripted(Arc<Script>);

impl Driver for Scripted {
    fn name(&self) -> String {
        "scripted".to_owned()
    }

    fn submit(&mut self, id: OpId, _: Op) {
        self.0.started.lock().expect("no panic").push(id);
    }

    fn give_up(&mut self, disk: DiskIndex) {
        self.0.given_up.lock().expect("no panic").push(disk);
    }

    fn poll(&mut self, _: Option<Duration>, done: &mut Vec<Completion>) {
        done.append(&mut self.0.finished.lock().expect("no panic"));
        let slept = self.0.polls.lock().expect("no panic").pop_front().unwrap_or_default();
        self.0.now.fetch_add(slept, Ordering::SeqCst);
    }

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        Arc::<Script>::clone(&self.0)
    }

    fn reader(&self) -> Arc<dyn ReadAt> {
        Arc::<Script>::clone(&self.0)
    }

    fn environment(&self) -> Arc<dyn Environment> {
        Arc::<Script>::clone(&self.0)
    }
}

fn ops() -> (Ops, Arc<Script>) {
    let script = Arc::<Script>::default();
    let ops = Ops::new(Box::new(Scripted(Arc::clone(&script))), STALL);
    ops.allow_writes();
    (ops, script)
}

/// One turn of the log thread that is told to sleep for `wait` and wakes after `slept`; returns for how long it was away.
fn turn(ops: &Ops, script: &Script, wait: u64, slept: u64) -> u64 {
    script.polls.lock().expect("no panic").push_back(slept);
    ops.poll(Some(Duration::from_nanos(wait)), &mut Vec::new())
}

fn is_timed_out<T>(result: Option<io::Result<T>>) -> bool {
    result.and_then(Result::err).is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

#[test]
fn h2_page_for_which_the_host_lacks_memory_waits_and_is_written() {
    let (ops, script) = ops();
    let mut written = Box::pin(ops.write_page(DISK, FileId(1), 0, &[7; 4096]));
    let finish = |result| {
        let id = script.started.lock().expect("no panic").pop().expect("it was started");
        script.finished.lock().expect("no panic").push(Completion { id, result });
        turn(&ops, &script, 0, 0);
    };
    for _ in 0..3 {
        assert!((&mut written).now_or_never().is_none());
        finish(Err(io::ErrorKind::OutOfMemory.into()));
        assert!((&mut written).now_or_never().is_none(), "it is written when there is some");
        assert!(script.started.lock().expect("no panic").is_empty(), "not at once");
        turn(&ops, &script, SECOND, SECOND);
    }
    assert!((&mut written).now_or_never().is_none());
    finish(Ok(Output::Done));
    assert!(written.now_or_never().expect("it has ended").is_ok());
    assert!(script.given_up.lock().expect("no panic").is_empty(), "the disk is not at fault");
}

#[test]
fn h3_disk_that_is_given_up_fails_who_waits_and_starts_nothing() {
    let (ops, script) = ops();
    let (mut here, mut there) = (Box::pin(ops.space(DISK)), Box::pin(ops.space(OTHER)));
    let mut lock = Box::pin(ops.attach(DISK, "a".into(), false));
    assert!((&mut here).now_or_never().is_none() && (&mut lock).now_or_never().is_none());
    assert!((&mut there).now_or_never().is_none());
    let started = || script.started.lock().expect("no panic").len();
    assert_eq!(started(), 3);
    ops.give_up(DISK);
    assert_eq!(*script.given_up.lock().expect("no panic"), [DISK]);
    assert!(is_timed_out(here.now_or_never()), "nobody waits for the disk");
    assert!(lock.now_or_never().is_none(), "a lock may be waited for");
    assert!(there.now_or_never().is_none(), "another disk is another");
    let mut list = Box::pin(ops.list(DISK));
    assert!((&mut list).now_or_never().is_none(), "who asks again and again lets the others run");
    let _away = ops.poll(Some(Duration::ZERO), &mut Vec::new());
    assert!(is_timed_out(list.now_or_never()), "nothing is started there");
    assert_eq!(started(), 3);
    let mut again = Box::pin(ops.attach(DISK, "a".into(), false));
    assert!((&mut again).now_or_never().is_none());
    assert!(ops.list(DISK).now_or_never().is_none());
    assert_eq!(started(), 5, "the disk may come back");
}

#[test]
fn h3_oldest_operation_of_a_disk_is_any_but_a_wait_for_its_lock() {
    let (ops, script) = ops();
    drop(ops.attach(DISK, "a".into(), false).now_or_never());
    drop(ops.space(OTHER).now_or_never());
    assert_eq!(ops.oldest(DISK), None);
    turn(&ops, &script, SECOND, SECOND);
    drop(ops.space(DISK).now_or_never());
    turn(&ops, &script, SECOND, SECOND);
    drop(ops.list(DISK).now_or_never());
    assert_eq!((ops.oldest(DISK), ops.in_flight(DISK)), (Some(SECOND), 3));
}

#[test]
fn h3_time_in_which_nobody_looked_does_not_count_against_a_disk() {
    let (ops, script) = ops();
    let mut listed = Box::pin(ops.list(DISK));
    assert!((&mut listed).now_or_never().is_none());
    // Overslept within a poll, and held up between two.
    assert_eq!(turn(&ops, &script, SECOND, 30 * SECOND), 29 * SECOND);
    script.now.fetch_add(40 * SECOND, Ordering::SeqCst);
    assert_eq!(turn(&ops, &script, SECOND, 0), 40 * SECOND);
    assert_eq!((ops.oldest(DISK), ops.now()), (Some(69 * SECOND), 70 * SECOND));
    assert!((&mut listed).now_or_never().is_none(), "it has had one second");
    // Sixteen are what a task waits: four times as long as a block's write may take.
    for _ in 0..15 {
        assert!((&mut listed).now_or_never().is_none());
        assert_eq!(turn(&ops, &script, SECOND, SECOND), 0);
    }
    assert!(is_timed_out(listed.now_or_never()));
}

#[test]
fn h3_time_in_which_the_log_thread_was_there_counts_however_busy_it_was() {
    let (ops, script) = ops();
    drop(ops.list(DISK).now_or_never());
    for _ in 0..10 {
        // As late as a busy machine makes it each time, and no more than a quarter of the timeout.
        assert_eq!(turn(&ops, &script, SECOND, 2 * SECOND), 0);
    }
    assert_eq!((ops.oldest(DISK), ops.now()), (Some(0), 20 * SECOND));
}
