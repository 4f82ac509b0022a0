//! Commits held back for a secondary: refused, throttled, or answered only when it has them.

use std::time::Duration;

use meridian::{Ack, ClientId, Contract, ErrorKind, Gate, Lsn, Options, PartitionId, Region, Transaction};

use crate::common::options;

/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;

fn contract(region: &Region, name: &str, most: Duration, then: Gate) {
    region.set_account_contract(name, Some(Contract { most, then })).unwrap();
}

#[test]
fn a_broken_contract_refuses_or_throttles_its_account_only_until_the_secondary_is_near_again() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(options(&dir, 3), ()).unwrap();
    let [held, free] = ["held", "free"].map(|name| region.create_account(name, Ack::Quorum).unwrap());
    let transaction = |account| Transaction::new(account, PartitionId(1)).record("x");
    region.commit(transaction(held)).unwrap();
    contract(&region, "held", Duration::from_secs(1), Gate::Refuse);
    assert_eq!(region.commit(transaction(held)).unwrap_err().kind(), ErrorKind::Behind, "nobody says how far it is");
    let gate = region.gate([held, free]);
    assert_eq!(region.commit(transaction(held)).unwrap_err().kind(), ErrorKind::Behind, "nobody said so yet");
    assert_eq!(gate.keep(3 * SECOND, 2 * SECOND), []);
    let before = region.commit(transaction(held)).unwrap().first_sequence;
    assert_eq!(gate.keep(3 * SECOND, 2 * SECOND - 1), [held]);
    assert_eq!(region.commit(transaction(held)).unwrap_err().kind(), ErrorKind::Behind);
    region.commit(transaction(free)).unwrap();
    contract(&region, "held", Duration::from_secs(1), Gate::Throttle);
    assert_eq!(region.try_submit(transaction(held)).err().unwrap().kind(), ErrorKind::Busy);
    std::thread::scope(|scope| {
        let blocking = scope.spawn(|| region.commit(transaction(held)).unwrap().first_sequence);
        let task = scope.spawn(|| {
            let committed = async { region.submit_async(transaction(held)).await.unwrap().await.unwrap() };
            futures::executor::block_on(committed).first_sequence
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(!blocking.is_finished() && !task.is_finished(), "they wait");
        assert_eq!(gate.keep(3 * SECOND, 3 * SECOND), []);
        let mut sequences = [blocking.join().unwrap(), task.join().unwrap()];
        sequences.sort_unstable();
        assert_eq!(sequences, [before + 1, before + 2]);
    });
    let second = region.gate([held]);
    let busy = region.try_submit(transaction(held)).err().unwrap();
    assert_eq!(busy.kind(), ErrorKind::Busy, "it is as far behind as the worst");
    drop(second);
    region.commit(transaction(held)).unwrap();
}

#[test]
fn a_contract_holds_when_the_region_is_opened_again_and_while_another_region_is_to_hold_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(options(&dir, 3), ()).unwrap();
    let account = region.create_account("a", Ack::Quorum).unwrap();
    let transaction = || Transaction::new(account, PartitionId(1)).record("x");
    contract(&region, "a", Duration::from_secs(1), Gate::Refuse);
    region.close().unwrap();
    let region = Region::open(options(&dir, 3), ()).unwrap();
    let known = region.accounts().unwrap().into_iter().find(|known| known.id == account).unwrap();
    assert_eq!(known.contract, Some(Contract { most: Duration::from_secs(1), then: Gate::Refuse }));
    assert_eq!(region.commit(transaction()).unwrap_err().kind(), ErrorKind::Behind);
    region.set_account_geo("a", false).unwrap();
    region.commit(transaction()).unwrap();
    region.set_account_geo("a", true).unwrap();
    assert_eq!(region.commit(transaction()).unwrap_err().kind(), ErrorKind::Behind);
    region.set_account_contract("a", None).unwrap();
    region.commit(transaction()).unwrap();
    for (most, then) in
        [(Duration::from_millis(9), Gate::Wait), (Duration::ZERO, Gate::Refuse), (Duration::MAX, Gate::Open)]
    {
        let error = region.set_account_contract("a", Some(Contract { most, then })).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{most:?}");
    }
}

#[test]
fn a_throttled_commit_ends_when_the_region_halts() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(options(&dir, 3), ()).unwrap();
    let account = region.create_account("a", Ack::Quorum).unwrap();
    contract(&region, "a", Duration::from_secs(1), Gate::Throttle);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| region.commit(Transaction::new(account, PartitionId(1)).record("x")));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waits.is_finished());
        region.fail_disk(0).unwrap();
        region.fail_disk(1).unwrap();
        assert_eq!(waits.join().unwrap().unwrap_err().kind(), ErrorKind::Halted);
    });
}

#[test]
fn commits_that_wait_for_the_secondary_are_answered_when_it_has_them_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(options(&dir, 3), ()).unwrap();
    let account = region.create_account("synchronous", Ack::Quorum).unwrap();
    let transaction = |number| Transaction::new(account, PartitionId(1)).record("x").client(ClientId(1), number);
    contract(&region, "synchronous", Duration::ZERO, Gate::Wait);
    let gate = region.gate([account]);
    let mut tickets: Vec<_> = (0..20).map(|number| region.submit(transaction(number)).unwrap()).collect();
    let mut log = region.subscribe(Lsn::ZERO);
    let mut seen = Vec::new();
    while seen.len() < 20 {
        let block = log.next_blocking().unwrap();
        seen.extend(block.transactions().filter(|transaction| !transaction.is_system()).map(|each| each.lsn()));
    }
    assert!(tickets.iter_mut().all(|ticket| ticket.wait_timeout(Duration::from_millis(2)).is_none()));
    let mut rest = tickets.split_off(7);
    gate.arrived(seen[7]);
    for (ticket, lsn) in tickets.into_iter().zip(&seen) {
        assert_eq!(ticket.wait().unwrap().lsn, *lsn);
    }
    assert!(rest[0].wait_timeout(Duration::from_millis(20)).is_none(), "it lies at the position, not before it");
    let mut retried = region.submit(transaction(19)).unwrap();
    assert!(retried.wait_timeout(Duration::from_millis(20)).is_none(), "a retry waits as the first one did");
    gate.arrived(region.committed());
    rest.into_iter().for_each(|ticket| assert!(ticket.wait().is_ok()));
    assert!(retried.wait().unwrap().repeated);
    let mut lone = region.submit(transaction(20)).unwrap();
    assert!(lone.wait_timeout(Duration::from_millis(50)).is_none());
    drop(gate);
    assert!(lone.wait_timeout(Duration::from_millis(50)).is_none(), "another link may say that it is there");
    region.set_account_contract("synchronous", None).unwrap();
    assert_eq!(lone.wait().unwrap_err().kind(), ErrorKind::Degraded, "nobody would ever say that it is there");
    region.close().unwrap();
}

#[test]
fn a_retry_that_its_clients_window_has_forgotten_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(Options { client_window: 1, ..options(&dir, 3) }, ()).unwrap();
    let account = region.create_account("synchronous", Ack::Quorum).unwrap();
    contract(&region, "synchronous", Duration::ZERO, Gate::Wait);
    let gate = region.gate([account]);
    let write = |number| {
        let transaction = Transaction::new(account, PartitionId(1)).record(vec![7; 1000]);
        region.submit(transaction.client(ClientId(1), number)).unwrap()
    };
    for number in 1..200 {
        // The second may find the first in a block that has no place yet, and the third makes the client forget it.
        let tickets = [2 * number, 2 * number, 2 * number + 1].map(write);
        for mut ticket in tickets {
            let mut receipt = None;
            for _ in 0..100 {
                gate.arrived(region.committed());
                receipt = receipt.or_else(|| ticket.wait_timeout(Duration::from_millis(10)));
                if receipt.is_some() {
                    break;
                }
            }
            let receipt = receipt.expect("answered, as it is there").unwrap();
            assert!(receipt.lsn < region.committed(), "it lies at {}", receipt.lsn);
        }
    }
}

#[test]
fn a_region_closes_with_commits_that_wait_for_a_secondary() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(options(&dir, 3), ()).unwrap();
    let account = region.create_account("synchronous", Ack::Quorum).unwrap();
    contract(&region, "synchronous", Duration::ZERO, Gate::Wait);
    let waits = region.submit(Transaction::new(account, PartitionId(1)).record("x")).unwrap();
    let start = std::time::Instant::now();
    region.close().unwrap();
    assert_eq!(waits.wait().unwrap_err().kind(), ErrorKind::Degraded);
    assert!(start.elapsed() < Duration::from_secs(5), "nobody is there who would ever answer");
}
