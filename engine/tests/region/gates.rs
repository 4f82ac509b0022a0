//! Commits held back for a secondary: refused, throttled, or answered only when it has them.

use std::time::Duration;

use meridian::{Ack, ClientId, ErrorKind, Gate, Lsn, PartitionId, Region, Transaction};

use crate::common::options;

#[test]
fn a_gate_refuses_throttles_and_opens_for_its_accounts_only() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(options(&dir, 3), ()).unwrap();
    let [held, free] = ["held", "free"].map(|name| region.create_account(name, Ack::Quorum).unwrap());
    let transaction = |account| Transaction::new(account, PartitionId(1)).record("x");
    let gate = region.gate([held]);
    region.commit(transaction(held)).unwrap();
    gate.set(Gate::Refuse);
    assert_eq!(region.commit(transaction(held)).unwrap_err().kind(), ErrorKind::Behind);
    region.commit(transaction(free)).unwrap();
    gate.set(Gate::Throttle);
    assert_eq!(region.try_submit(transaction(held)).err().unwrap().kind(), ErrorKind::Busy);
    std::thread::scope(|scope| {
        let blocking = scope.spawn(|| region.commit(transaction(held)).unwrap().first_sequence);
        let task = scope.spawn(|| {
            let committed = async { region.submit_async(transaction(held)).await.unwrap().await.unwrap() };
            futures::executor::block_on(committed).first_sequence
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(!blocking.is_finished() && !task.is_finished(), "they wait");
        gate.set(Gate::Open);
        let sequences = [blocking.join().unwrap(), task.join().unwrap()];
        assert!(sequences == [1, 2] || sequences == [2, 1]);
    });
    let second = region.gate([held, free]);
    second.set(Gate::Refuse);
    assert_eq!(region.commit(transaction(held)).unwrap_err().kind(), ErrorKind::Behind, "the strictest holds");
    drop(second);
    region.commit(transaction(held)).unwrap();
}

#[test]
fn commits_that_wait_for_the_secondary_are_answered_when_it_has_them_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(options(&dir, 3), ()).unwrap();
    let account = region.create_account("synchronous", Ack::Quorum).unwrap();
    let transaction = |number| Transaction::new(account, PartitionId(1)).record("x").client(ClientId(1), number);
    let gate = region.gate([account]);
    gate.set(Gate::Wait);
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
    assert_eq!(lone.wait().unwrap_err().kind(), ErrorKind::Degraded, "nobody would ever say that it is there");
    region.close().unwrap();
}

#[test]
fn a_region_closes_with_commits_that_wait_for_a_secondary() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(options(&dir, 3), ()).unwrap();
    let account = region.create_account("synchronous", Ack::Quorum).unwrap();
    let gate = region.gate([account]);
    gate.set(Gate::Wait);
    let waits = region.submit(Transaction::new(account, PartitionId(1)).record("x")).unwrap();
    region.close().unwrap();
    assert_eq!(waits.wait().unwrap_err().kind(), ErrorKind::Indeterminate);
    drop(gate);
}
