//! A third disk that takes its time: what waits for it, and what must not go on without it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use meridian::format::{DATA_START, SUPERBLOCK_SLOT};
use meridian::io::{Completion, DiskIndex, Doorbell, Driver, DriverChoice, Environment, Op, OpId, ReadAt, driver};
use meridian::{
    AccountId, Ack, ClientId, Committed, DiskState, ErrorKind, Lsn, PartitionId, Region, StateMachine, Transaction,
};

use crate::common::{Memory, options};
use crate::disks::until;
use crate::input::copy_directory;

/// What is kept back.
const NOTHING: u8 = 0;
/// The next block on its way to the third disk.
const ONE: u8 = 1;
/// First blocks of segments on their way to the second disk.
const FIRST: u8 = 2;
/// All blocks and pages, for ever: what is left is what a crash would leave.
const ALL: u8 = 3;
/// What makes a slot on the fourth disk.
const SPARE: u8 = 4;
/// New files on the third disk, which are refused: its quota is used up.
const QUOTA: u8 = 5;
/// Everything on the third disk but blocks, as long as it does not become a member again.
const PREPARING: u8 = 6;

/// The real driver, but that some writes are kept back.
struct Slow {
    inner: Box<dyn Driver>,
    keeps: Arc<AtomicU8>,
    kept: Vec<(OpId, Op)>,
    refused: Vec<OpId>,
}

impl Slow {
    fn keeps(&self, op: &Op) -> bool {
        if self.keeps.load(Ordering::SeqCst) == PREPARING && op.disk() == Some(DiskIndex(2)) {
            let block = matches!(op, Op::Write { offset, data, .. } if *offset >= u64::from(DATA_START) && data.len() != SUPERBLOCK_SLOT && data.len() < 1 << 20);
            return !block && !matches!(op, Op::Attach { .. } | Op::Detach { .. });
        }
        let Op::Write { disk, offset, data, .. } = op else { return false };
        let first = u64::from(DATA_START);
        let block = *offset >= first && data.len() != SUPERBLOCK_SLOT;
        match self.keeps.load(Ordering::SeqCst) {
            ONE => block && *disk == DiskIndex(2) && self.kept.is_empty(),
            FIRST => *offset == first && *disk == DiskIndex(1),
            SPARE => *disk == DiskIndex(3) && data.len() > SUPERBLOCK_SLOT,
            ALL => block || *offset == first / 2,
            _ => false,
        }
    }
}

impl Driver for Slow {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn submit(&mut self, id: OpId, op: Op) {
        let creates = matches!(op, Op::Open { disk: DiskIndex(2), create: Some(_), .. });
        if creates && self.keeps.load(Ordering::SeqCst) == QUOTA {
            self.refused.push(id);
        } else if self.keeps(&op) {
            self.kept.push((id, op));
        } else {
            self.inner.submit(id, op);
        }
    }

    fn poll(&mut self, wait: Option<Duration>, done: &mut Vec<Completion>) {
        if self.keeps.load(Ordering::SeqCst) == NOTHING {
            for (id, op) in self.kept.drain(..) {
                self.inner.submit(id, op);
            }
        }
        let wait = wait.filter(|_| self.refused.is_empty());
        self.inner.poll(wait, done);
        let refused = |id| Completion { id, result: Err(io::ErrorKind::QuotaExceeded.into()) };
        done.extend(self.refused.drain(..).map(refused));
    }

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        self.inner.doorbell()
    }

    fn reader(&self) -> Arc<dyn ReadAt> {
        self.inner.reader()
    }

    fn environment(&self) -> Arc<dyn Environment> {
        self.inner.environment()
    }
}

/// A region, an account, and what is kept back of its writes.
fn region(dir: &tempfile::TempDir, machine: impl StateMachine + 'static) -> (Region, AccountId, Arc<AtomicU8>) {
    region_on(dir, 3, NOTHING, machine)
}

fn region_on(
    dir: &tempfile::TempDir,
    disks: usize,
    keeps: u8,
    machine: impl StateMachine + 'static,
) -> (Region, AccountId, Arc<AtomicU8>) {
    patient_region(dir, disks, keeps, Duration::from_secs(60), machine)
}

fn patient_region(
    dir: &tempfile::TempDir,
    disks: usize,
    keeps: u8,
    stall_timeout: Duration,
    machine: impl StateMachine + 'static,
) -> (Region, AccountId, Arc<AtomicU8>) {
    let keeps = Arc::new(AtomicU8::new(keeps));
    let theirs = Arc::clone(&keeps);
    let make = move || -> io::Result<Box<dyn Driver>> {
        Ok(Box::new(Slow { inner: driver(DriverChoice::Auto)?, keeps: theirs, kept: Vec::new(), refused: Vec::new() }))
    };
    let mut options = options(dir, disks);
    options.stall_timeout = stall_timeout;
    options.lag_bytes = 64 << 20;
    let region = Region::create_with(options, machine, make).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    (region, account, keeps)
}

#[test]
fn a_retry_of_a_commit_to_all_waits_for_the_third_copy_as_the_first_try_does() {
    let dir = tempfile::tempdir().unwrap();
    let (region, account, keeps) = region(&dir, ());
    keeps.store(ONE, Ordering::SeqCst);
    let transaction =
        || Transaction::new(account, PartitionId(1)).client(ClientId(7), 1).ack(Ack::All).record("UA 1545");
    let mut first = region.submit(transaction()).unwrap();
    assert!(first.wait_timeout(Duration::from_millis(100)).is_none(), "the third copy is not there");
    let mut again = region.submit(transaction()).unwrap();
    assert!(again.wait_timeout(Duration::from_millis(200)).is_none(), "nor is it for a retry");
    keeps.store(NOTHING, Ordering::SeqCst);
    let first = first.wait().unwrap();
    let again = again.wait().unwrap();
    assert!(again.repeated && again.lsn == first.lsn);
    let late = region.commit(transaction()).unwrap();
    assert!(late.repeated, "and later ones are answered at once");
}

#[test]
fn a_segment_that_a_member_still_writes_is_not_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let (region, account, keeps) = region(&dir, ());
    keeps.store(ONE, Ordering::SeqCst);
    let fill = || {
        for _ in 0..60 {
            region.commit(Transaction::new(account, PartitionId(1)).record(vec![7; 100_000])).unwrap();
        }
    };
    fill();
    let first = region.health().unwrap().first.segment();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(region.trim(Lsn::MAX).unwrap().segment(), first, "the third disk's writes are under way");
    keeps.store(NOTHING, Ordering::SeqCst);
    until("the trim", || region.trim(Lsn::MAX).unwrap().segment() > first);
    fill();
    region.close().unwrap();
}

/// Takes a while over its first transaction, and fails then.
struct Fails {
    seen: Arc<std::sync::Mutex<Vec<u64>>>,
}

impl StateMachine for Fails {
    fn resume_from(&self) -> Lsn {
        Lsn::ZERO
    }

    fn apply(&mut self, transaction: &Committed<'_>) {
        let first = {
            let mut seen = self.seen.lock().unwrap();
            seen.push(transaction.first_sequence());
            seen.len() == 1
        };
        std::thread::sleep(Duration::from_millis(100));
        assert!(!first, "the caller's machine fails on purpose");
    }
}

#[test]
fn behind_a_transaction_on_which_the_machine_failed_none_is_handed_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let seen = Arc::default();
    let (region, account, _keeps) = region(&dir, Fails { seen: Arc::clone(&seen) });
    let transaction = || Transaction::new(account, PartitionId(1)).record(vec![7; 100_000]);
    let tickets: Vec<_> = (0..6).map_while(|_| region.submit(transaction()).ok()).collect();
    for ticket in tickets {
        let error = ticket.wait().expect_err("the region stopped");
        assert!(matches!(error.kind(), ErrorKind::Indeterminate | ErrorKind::Halted), "{error}");
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(*seen.lock().unwrap(), [0]);
}

/// A set of two loses a disk just behind the end of a segment, and the process is killed as soon as that is in the superblocks: the segment that
/// the change had ended empty is begun again by the opening, with other contents.
#[test]
fn the_end_that_a_change_of_the_set_gave_a_segment_does_not_outlive_the_opening_that_begins_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let (region, account, keeps) = region(&dir, ());
    let upgrade_domain = options(&dir, 3).disks[2].upgrade_domain.clone();
    region.drain(&upgrade_domain).unwrap();
    let transaction = || Transaction::new(account, PartitionId(1)).record(vec![7; 50_000]);
    region.commit(transaction()).unwrap();
    keeps.store(FIRST, Ordering::SeqCst);
    let waits = |mut ticket: meridian::Ticket| ticket.wait_timeout(Duration::from_millis(500)).is_none();
    let acknowledged = 1 + (0..100).take_while(|_| !waits(region.submit(transaction()).unwrap())).count();
    assert!((10..100).contains(&acknowledged), "the first block of the next segment waits");
    keeps.store(ALL, Ordering::SeqCst);
    let epoch = region.health().unwrap().epoch;
    drop(region.fail_disk(1));
    until("the next set", || region.health().unwrap().epoch > epoch);
    let crashed = tempfile::tempdir().unwrap();
    for disk in ["disk-0", "disk-1", "disk-2"] {
        copy_directory(&dir.path().join(disk), &crashed.path().join(disk));
    }
    let options = options(&crashed, 3);
    let memory = Memory::default();
    let again = Region::open(options.clone(), memory.clone()).unwrap();
    let there = memory.0.lock().unwrap().len();
    assert!(there >= acknowledged, "{there} of {acknowledged}");
    again.commit(transaction()).unwrap();
    again.close().unwrap();
    let memory = Memory::default();
    drop(Region::open(options, memory.clone()).unwrap());
    assert_eq!(memory.0.lock().unwrap().len(), there + 1, "what was acknowledged after the crash is there");
    keeps.store(NOTHING, Ordering::SeqCst);
}

#[test]
fn a_closing_that_cannot_finish_in_time_leaves_a_log_without_gaps() {
    let dir = tempfile::tempdir().unwrap();
    let (region, account, keeps) = region(&dir, ());
    let transaction = || Transaction::new(account, PartitionId(1)).record(vec![7; 16 << 10]);
    for _ in 0..10 {
        region.commit(transaction()).unwrap();
    }
    keeps.store(ALL, Ordering::SeqCst);
    let tickets: Vec<_> = (0..6).map(|_| region.submit(transaction()).unwrap()).collect();
    let refused = region.close().expect_err("the disks answer no more");
    assert_eq!(refused.kind(), ErrorKind::Halted, "{refused}");
    for ticket in tickets {
        assert_eq!(ticket.wait().expect_err("no disk holds it").kind(), ErrorKind::Indeterminate);
    }
    let memory = Memory::default();
    let region = Region::open(options(&dir, 3), memory.clone()).unwrap();
    let sequences = || memory.0.lock().unwrap().iter().map(|(_, _, sequence, _)| *sequence).collect::<Vec<_>>();
    assert!(sequences().len() >= 10, "what was acknowledged is there");
    region.commit(transaction()).unwrap();
    assert!(sequences().into_iter().eq(0..sequences().len() as u64), "no sequence is missing");
}

#[test]
fn a_spare_that_hangs_holds_up_no_segment() {
    let dir = tempfile::tempdir().unwrap();
    let (region, account, keeps) = region_on(&dir, 4, SPARE, ());
    for _ in 0..40 {
        region.commit(Transaction::new(account, PartitionId(1)).record(vec![7; 100 << 10])).unwrap();
    }
    keeps.store(NOTHING, Ordering::SeqCst);
    region.close().unwrap();
}

/// What hangs is the making of the next segment. The disk is given up in time, though every block was written.
#[test]
fn h3_disk_that_hangs_in_a_preparation_is_given_up_after_stall_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let stall = Duration::from_secs(1);
    let (region, account, keeps) = patient_region(&dir, 3, NOTHING, stall, ());
    let commit = || region.commit(Transaction::new(account, PartitionId(1)).record(vec![7; 100 << 10])).unwrap();
    commit();
    keeps.store(PREPARING, Ordering::SeqCst);
    let longest = std::thread::scope(|scope| {
        let commits = scope.spawn(|| {
            let timed = (0..100).map(|_| {
                let start = std::time::Instant::now();
                commit();
                start.elapsed()
            });
            timed.max().unwrap()
        });
        while !commits.is_finished() {
            let start = std::time::Instant::now();
            assert_eq!(region.health().unwrap().halted, None);
            assert!(start.elapsed() < Duration::from_secs(1), "health took {:?}", start.elapsed());
            std::thread::sleep(Duration::from_millis(10));
        }
        commits.join().unwrap()
    });
    assert!(longest < 2 * stall, "no commit for {longest:?}");
    assert_eq!(region.health().unwrap().disks[2].state, DiskState::Stalled);
    keeps.store(NOTHING, Ordering::SeqCst);
    until("the third disk's return", || region.return_disk(2).is_ok());
    until("whole sets", || region.health().unwrap().is_whole());
    region.close().unwrap();
}

#[test]
fn a_disk_that_has_room_and_takes_no_segment_is_tried_less_and_less() {
    let dir = tempfile::tempdir().unwrap();
    let (region, account, keeps) = region(&dir, ());
    let commit = || region.commit(Transaction::new(account, PartitionId(1)).record(vec![7; 100 << 10])).unwrap();
    keeps.store(QUOTA, Ordering::SeqCst);
    let before = region.health().unwrap().epoch.0;
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_secs(6) {
        commit();
        std::thread::sleep(Duration::from_millis(10));
    }
    let changes = region.health().unwrap().epoch.0 - before;
    // It leaves at once, and after 0.5, 1, 2 and 4 s; tried every half second it would be two dozen.
    assert!((1..=12).contains(&changes), "{changes} changes of the set in six seconds");
    keeps.store(NOTHING, Ordering::SeqCst);
    until("whole again", || {
        commit();
        std::thread::sleep(Duration::from_millis(10));
        region.health().unwrap().is_whole()
    });
}
