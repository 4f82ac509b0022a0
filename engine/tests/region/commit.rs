//! Committing, reading back, opening again.

use meridian::{Ack, ClientId, Committed, ErrorKind, Lsn, PartitionId, Region, StateMachine, Transaction};

use crate::common::{Memory, options};

/// A machine that has everything before a position.
struct From(Lsn, Memory);

impl StateMachine for From {
    fn resume_from(&self) -> Lsn {
        self.0
    }

    fn apply(&mut self, transaction: &Committed<'_>) {
        self.1.apply(transaction);
    }
}

#[test]
fn what_was_committed_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 3);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let partition = PartitionId::named("EWR/UA");
    let mut receipts = Vec::new();
    for number in 0..500u32 {
        let transaction = Transaction::new(account, partition)
            .record(format!("dep {number}"))
            .record(vec![number as u8; 2000])
            .ack(if number % 3 == 0 { Ack::All } else { Ack::Quorum });
        receipts.push(region.commit(transaction).unwrap());
    }
    assert!(receipts.windows(2).all(|pair| pair[0].lsn < pair[1].lsn));
    assert_eq!(receipts[499].first_sequence, 998);
    region.close().unwrap();

    let memory = Memory::default();
    let region = Region::open(options, memory.clone()).unwrap();
    let seen = memory.0.lock().unwrap().clone();
    assert_eq!(seen.len(), 500);
    for (number, (lsn, _, first, records)) in seen.iter().enumerate() {
        assert_eq!((*lsn, *first), (receipts[number].lsn, number as u64 * 2));
        assert_eq!(records[0], format!("dep {number}").as_bytes());
    }
    let block = region.read(receipts[77].lsn).unwrap();
    assert_eq!(block.transaction(receipts[77].lsn).unwrap().first_sequence(), 154);
    let mut subscription = region.subscribe(Lsn::ZERO);
    let mut read = 0;
    while let Some(block) = subscription.try_next().unwrap() {
        read += block.transactions().filter(|transaction| !transaction.is_system()).count();
    }
    assert_eq!(read, 500);
}

#[test]
fn a_retry_with_the_same_client_sequence_is_applied_once_also_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 3);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let transaction = || Transaction::new(account, PartitionId(7)).record("once").client(ClientId(5), 1);
    let first = region.commit(transaction()).unwrap();
    let again = region.commit(transaction()).unwrap();
    assert!(!first.repeated && again.repeated);
    assert_eq!((first.lsn, first.first_sequence), (again.lsn, again.first_sequence));
    region.close().unwrap();
    let region = Region::open(options, ()).unwrap();
    let later = region.commit(transaction()).unwrap();
    assert_eq!((later.lsn, later.repeated), (first.lsn, true));
}

#[test]
fn a_machine_is_handed_what_lies_behind_what_it_has_and_refused_when_it_has_more_than_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 3);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    // Several to a block, and more than one segment.
    let submit = |number: u32| {
        let transaction = Transaction::new(account, PartitionId(1)).record(number.to_le_bytes().repeat(1000));
        region.submit(transaction).unwrap()
    };
    let tickets: Vec<_> = (0..400).map(submit).collect();
    let receipts: Vec<_> = tickets.into_iter().map(|ticket| ticket.wait().unwrap()).collect();
    assert!(receipts[399].lsn.segment() > receipts[0].lsn.segment());
    let end = region.committed();
    region.close().unwrap();

    for at in [0, 1, 2, 199, 398, 399] {
        let memory = Memory::default();
        let behind = Lsn(receipts[at].lsn.0 + 1);
        Region::open(options.clone(), From(behind, memory.clone())).unwrap().close().unwrap();
        let seen: Vec<Lsn> = memory.0.lock().unwrap().iter().map(|(lsn, ..)| *lsn).collect();
        let rest: Vec<Lsn> = receipts[at + 1..].iter().map(|receipt| receipt.lsn).collect();
        assert_eq!(seen, rest, "from {behind}");
    }
    for nothing_old in [end, Lsn::MAX] {
        let memory = Memory::default();
        let region = Region::open(options.clone(), From(nothing_old, memory.clone())).unwrap();
        assert!(memory.0.lock().unwrap().is_empty());
        region.close().unwrap();
    }
    for ahead in [Lsn(end.0 + 1), Lsn::new(meridian::SegmentId(1 << 20), 8192)] {
        let refused = Region::open(options.clone(), From(ahead, Memory::default())).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
        assert!(refused.to_string().contains(&ahead.to_string()) && refused.to_string().contains(&end.to_string()));
    }
}

#[test]
fn bad_requests_are_refused_with_a_typed_error_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 3);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let kind = |result: meridian::Result<meridian::Receipt>| result.unwrap_err().kind();
    assert_eq!(kind(region.commit(Transaction::new(account, PartitionId(1)))), ErrorKind::InvalidInput);
    let large = Transaction::new(account, PartitionId(1)).record(vec![0; 200 << 10]);
    assert_eq!(kind(region.commit(large)), ErrorKind::InvalidInput);
    let stranger = Transaction::new(meridian::AccountId(99), PartitionId(1)).record("x");
    assert_eq!(kind(region.commit(stranger)), ErrorKind::NotFound);
    region.fence_account("flights").unwrap();
    let old = Transaction::new(account, PartitionId(1)).record("x").account_epoch(1);
    assert_eq!(kind(region.commit(old)), ErrorKind::Fenced);
    assert_eq!(region.create_account("flights", Ack::All).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(region.create_account("", Ack::All).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(Region::open(options.clone(), ()).err().unwrap().kind(), ErrorKind::Locked);
    let kept = Transaction::new(account, PartitionId(1)).record("kept").account_epoch(2);
    assert_eq!(region.commit(kept).unwrap().first_sequence, 0);
    drop(region);
    assert_eq!(Region::create(options, ()).err().unwrap().kind(), ErrorKind::Exists);
}
