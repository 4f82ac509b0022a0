//! Contracts, while other things take their time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian::{
    Ack, ClientId, Committed, Contract, ErrorKind, Gate, Lsn, PartitionId, Region, StateMachine, Transaction,
};

use crate::common::{Pair, region_options, until};

/// Takes its time over one record.
struct Slow(std::sync::mpsc::Receiver<()>);

impl StateMachine for Slow {
    fn resume_from(&self) -> Lsn {
        Lsn::ZERO
    }

    fn apply(&mut self, transaction: &Committed<'_>) {
        if transaction.records().any(|record| record.1 == b"slow") {
            // Until the other end is dropped.
            self.0.recv().unwrap_err();
        }
    }
}

#[test]
fn a_contract_is_kept_while_the_log_takes_no_marks() {
    let mut pair = Pair::new();
    let (go, waits) = std::sync::mpsc::channel();
    pair.west = Arc::new(Region::create(region_options(&pair.dir.path().join("slow")), Slow(waits)).unwrap());
    pair.account = pair.west.create_account("flights", Ack::Quorum).unwrap();
    pair.contract(Contract { most: Duration::from_millis(500), then: Gate::Refuse });
    let listener = pair.listen();
    let link = pair.link(pair.options(&listener));
    // Whatever comes of this, the log goes on before the link has to end.
    let go = go;
    let submit = |record: &'static str| {
        pair.west.submit(Transaction::new(pair.account, PartitionId(0)).record(record).client(ClientId::NONE, 0))
    };
    until("the contract", || submit("x").is_ok());
    let slow = submit("slow").unwrap();
    let began = Instant::now();
    let refused = |error: meridian::Error| error.kind() == ErrorKind::Behind;
    while began.elapsed() < Duration::from_secs(10) && !submit("x").is_err_and(refused) {
        std::thread::sleep(Duration::from_millis(2));
    }
    let elapsed = began.elapsed();
    assert!(elapsed < Duration::from_secs(5), "nobody looked after the contract for {elapsed:?}");
    assert_eq!(link.status().breached, [pair.account]);
    drop(go);
    slow.wait().unwrap();
    until("the contract", || submit("x").is_ok());
}
