//! What is recognised as a retry, and what is not (acceptance H5, ADR 0023).

use std::collections::BTreeSet;

use meridian::{
    Ack, ClientId, Committed, DiskState, ErrorKind, Lsn, Options, PartitionId, Region, StateMachine, Transaction,
};

use crate::common::options;
use crate::geo::{Pair, pair, ship, stretches};

fn order(account: meridian::AccountId, partition: u128, sequence: u64) -> Transaction {
    Transaction::new(account, PartitionId(partition)).record(vec![sequence as u8; 700]).client(ClientId(1), sequence)
}

#[test]
fn h5_same_client_sequence_in_two_accounts_is_applied_once_in_each() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 3);
    let mut region = Region::create(options.clone(), ()).unwrap();
    let accounts = ["flights", "orders"].map(|name| region.create_account(name, Ack::Quorum).unwrap());
    let first = accounts.map(|account| region.commit(order(account, 9, 1)).unwrap());
    assert_eq!(first.map(|receipt| receipt.repeated), [false, false]);
    assert_ne!(first[0].lsn, first[1].lsn);
    for _ in 0..3 {
        let again = accounts.map(|account| region.commit(order(account, 9, 1)).unwrap());
        assert_eq!(again.map(|receipt| (receipt.lsn, receipt.repeated)), first.map(|receipt| (receipt.lsn, true)));
        region.close().unwrap();
        region = Region::open(options.clone(), ()).unwrap();
    }
    assert_eq!(accounts.map(|account| region.digest(account).unwrap().records), [1, 1]);
}

#[test]
fn h5_sequence_used_for_another_partition_is_refused_naming_it() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(options(&dir, 3), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let first = region.commit(order(account, 0x77, 5)).unwrap();
    let refused = region.commit(order(account, 0x78, 5)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::SequenceReused, "{refused}");
    for said in ["sequence 5", "client 1", "\"flights\"", "0x77", "0x78", &first.lsn.to_string()] {
        assert!(refused.to_string().contains(said), "{said}: {refused}");
    }
    assert_eq!(region.digest(account).unwrap().records, 1);
    assert_eq!(region.commit(order(account, 0x77, 5)).unwrap().lsn, first.lsn);
    assert!(!region.commit(order(account, 0x78, 6)).unwrap().repeated);
}

/// Holds the log thread up until the other end is dropped.
struct Held(std::sync::mpsc::Receiver<()>);

impl StateMachine for Held {
    fn resume_from(&self) -> Lsn {
        Lsn::MAX
    }

    fn apply(&mut self, _: &Committed<'_>) {
        while self.0.recv().is_ok() {}
    }
}

#[test]
fn h5_retry_in_its_originals_block_gets_the_place_of_its_own_account() {
    let dir = tempfile::tempdir().unwrap();
    let (go, waits) = std::sync::mpsc::channel();
    let region = Region::create(options(&dir, 3), Held(waits)).unwrap();
    let go = go;
    let accounts = ["flights", "orders"].map(|name| region.create_account(name, Ack::Quorum).unwrap());
    let _first = region.submit(Transaction::new(accounts[0], PartitionId(1)).record("first")).unwrap();
    // They wait for the log thread, which takes all of them into one block.
    let [flight, original, retry] = [0, 1, 1].map(|account| region.submit(order(accounts[account], 9, 1)).unwrap());
    drop(go);
    let [flight, original, retry] = [flight, original, retry].map(|ticket| ticket.wait().unwrap());
    assert_eq!(flight.lsn.segment(), original.lsn.segment());
    assert_eq!([flight.repeated, original.repeated, retry.repeated], [false, false, true]);
    assert_ne!(flight.lsn, original.lsn);
    assert_eq!(retry.lsn, original.lsn);
}

#[test]
fn max_clients_counts_the_clients_of_every_account() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(Options { max_clients: 2, ..options(&dir, 3) }, ()).unwrap();
    let accounts = ["a", "b", "c"].map(|name| region.create_account(name, Ack::Quorum).unwrap());
    region.commit(order(accounts[0], 1, 1)).unwrap();
    region.commit(order(accounts[1], 1, 1)).unwrap();
    let refused = region.commit(order(accounts[2], 1, 1)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LimitReached, "{refused}");
    assert!(refused.to_string().contains("max_clients"), "{refused}");
    assert!(region.commit(order(accounts[0], 1, 1)).unwrap().repeated);
    region.commit(Transaction::new(accounts[2], PartitionId(1)).record("no client")).unwrap();
}

#[test]
fn h5_clients_of_a_copy_count_and_are_refused_beyond_max_clients() {
    let Pair { primary, account, .. } = &pair();
    let dir = tempfile::tempdir().unwrap();
    let few = Options { max_clients: 1, ..options(&dir, 3) };
    let secondary = Region::create(few.clone(), ()).unwrap();
    primary.commit(order(*account, 1, 1)).unwrap();
    ship(primary, &secondary, &[*account]);
    // The client of the copy is one that the region knows.
    let orders = secondary.create_account("orders", Ack::Quorum).unwrap();
    assert_eq!(secondary.commit(order(orders, 1, 1)).unwrap_err().kind(), ErrorKind::LimitReached);
    primary.commit(order(*account, 1, 2).client(ClientId(2), 1)).unwrap();
    let frames = stretches(primary, &[*account], Lsn::ZERO);
    let refused = frames.into_iter().map(|arrived| secondary.import(arrived).unwrap().wait());
    assert_eq!(refused.last().unwrap().unwrap_err().kind(), ErrorKind::LimitReached);
    secondary.close().unwrap();
    Region::open(few, ()).expect("it holds no more than it may");
}

/// BUGS-2, E: the window overflows within one segment, in every way that the tables come back by.
#[test]
fn window_exceeded_within_one_segment_is_kept_over_each_way_of_opening() {
    const WINDOW: u64 = 4;
    // The tail is read; the index is read; the index is lost and made again from its segment; a checkpoint is read.
    for way in ["tail", "index", "scan", "checkpoint"] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { client_window: WINDOW as usize, ..options(&dir, 3) };
        let region = Region::create(options.clone(), ()).unwrap();
        let account = region.create_account("flights", Ack::Quorum).unwrap();
        // Out of order, so that the highest are not the last.
        let sequences = [2, 1, 3, 6, 5, 4, 20, 8, 30, 9];
        let lsns = sequences.map(|sequence| region.commit(order(account, 1, sequence)).unwrap().lsn);
        let segments: BTreeSet<_> = lsns.iter().map(|lsn| lsn.segment()).collect();
        assert_eq!(segments.len(), 1, "{way}");
        if way == "checkpoint" {
            // What a trim needs is a checkpoint of everything before it.
            let filler = |_| drop(region.commit(Transaction::new(account, PartitionId(2)).record(vec![1; 100_000])));
            (0..40).for_each(filler);
            assert!(region.trim(Lsn::MAX).unwrap() > lsns[9], "{way}");
        }
        if way == "tail" {
            drop(region)
        } else {
            region.close().unwrap()
        }
        if way == "scan" {
            for disk in &options.disks {
                for entry in std::fs::read_dir(&disk.path).unwrap().map(Result::unwrap) {
                    if entry.file_name().to_string_lossy().starts_with("index-") {
                        std::fs::remove_file(entry.path()).unwrap();
                    }
                }
            }
        }
        let region = Region::open(options, ()).unwrap();
        assert!(region.health().unwrap().disks.iter().all(|disk| disk.state == DiskState::Healthy), "{way}");
        for (sequence, lsn) in sequences.into_iter().zip(lsns) {
            let retried = region.commit(order(account, 1, sequence));
            if [30, 20, 9, 8].contains(&sequence) {
                let receipt = retried.unwrap();
                assert_eq!((receipt.lsn, receipt.repeated), (lsn, true), "{way}, {sequence}");
            } else {
                assert_eq!(retried.unwrap_err().kind(), ErrorKind::RetryTooOld, "{way}, {sequence}");
            }
        }
        let (next, digest) = region.partition_digest(account, PartitionId(1)).unwrap();
        assert_eq!((next, digest.records), (10, 10), "{way}: nothing was applied again");
    }
}
