//! Committing, reading back, opening again.

use meridian::{Ack, ClientId, ErrorKind, Lsn, PartitionId, Region, Transaction};

use crate::common::{Memory, options};

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
