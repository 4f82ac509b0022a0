//! A third disk that takes its time: what waits for it, and what must not go on without it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meridian::format::DATA_START;
use meridian::io::{Completion, DiskIndex, Doorbell, Driver, DriverChoice, Environment, Op, OpId, ReadAt, driver};
use meridian::{AccountId, Ack, ClientId, Committed, ErrorKind, Lsn, PartitionId, Region, StateMachine, Transaction};

use crate::common::options;
use crate::disks::until;

/// The real driver, but that a block on its way to the third disk is kept back while that is held.
struct Slow {
    inner: Box<dyn Driver>,
    held: Arc<AtomicBool>,
    kept: Option<(OpId, Op)>,
}

impl Driver for Slow {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn submit(&mut self, id: OpId, op: Op) {
        let block =
            matches!(op, Op::Write { disk, offset, .. } if disk == DiskIndex(2) && offset >= u64::from(DATA_START));
        if block && self.kept.is_none() && self.held.load(Ordering::SeqCst) {
            self.kept = Some((id, op));
        } else {
            self.inner.submit(id, op);
        }
    }

    fn poll(&mut self, wait: Option<Duration>, done: &mut Vec<Completion>) {
        if !self.held.load(Ordering::SeqCst)
            && let Some((id, op)) = self.kept.take()
        {
            self.inner.submit(id, op);
        }
        self.inner.poll(wait, done);
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

/// A region, an account, and what holds the third disk.
fn region(dir: &tempfile::TempDir, machine: impl StateMachine + 'static) -> (Region, AccountId, Arc<AtomicBool>) {
    let held = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&held);
    let make = move || -> io::Result<Box<dyn Driver>> {
        Ok(Box::new(Slow { inner: driver(DriverChoice::Auto)?, held: theirs, kept: None }))
    };
    let mut options = options(dir, 3);
    options.stall_timeout = Duration::from_secs(60);
    options.lag_bytes = 64 << 20;
    let region = Region::create_with(options, machine, make).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    (region, account, held)
}

#[test]
fn a_retry_of_a_commit_to_all_waits_for_the_third_copy_as_the_first_try_does() {
    let dir = tempfile::tempdir().unwrap();
    let (region, account, held) = region(&dir, ());
    held.store(true, Ordering::SeqCst);
    let transaction =
        || Transaction::new(account, PartitionId(1)).client(ClientId(7), 1).ack(Ack::All).record("UA 1545");
    let mut first = region.submit(transaction()).unwrap();
    assert!(first.wait_timeout(Duration::from_millis(100)).is_none(), "the third copy is not there");
    let mut again = region.submit(transaction()).unwrap();
    assert!(again.wait_timeout(Duration::from_millis(200)).is_none(), "nor is it for a retry");
    held.store(false, Ordering::SeqCst);
    let first = first.wait().unwrap();
    let again = again.wait().unwrap();
    assert!(again.repeated && again.lsn == first.lsn);
    let late = region.commit(transaction()).unwrap();
    assert!(late.repeated, "and later ones are answered at once");
}

#[test]
fn a_segment_that_a_member_still_writes_is_not_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let (region, account, held) = region(&dir, ());
    held.store(true, Ordering::SeqCst);
    let fill = || {
        for _ in 0..60 {
            region.commit(Transaction::new(account, PartitionId(1)).record(vec![7; 100_000])).unwrap();
        }
    };
    fill();
    let first = region.health().unwrap().first.segment();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(region.trim(Lsn::MAX).unwrap().segment(), first, "the third disk's writes are under way");
    held.store(false, Ordering::SeqCst);
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
    let (region, account, _held) = region(&dir, Fails { seen: Arc::clone(&seen) });
    let transaction = || Transaction::new(account, PartitionId(1)).record(vec![7; 100_000]);
    let tickets: Vec<_> = (0..6).map_while(|_| region.submit(transaction()).ok()).collect();
    for ticket in tickets {
        let error = ticket.wait().expect_err("the region stopped");
        assert!(matches!(error.kind(), ErrorKind::Indeterminate | ErrorKind::Halted), "{error}");
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(*seen.lock().unwrap(), [0]);
}
