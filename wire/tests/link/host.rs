//! A link and a listener that are dropped where nothing can be waited for.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use meridian::{Ack, Committed, Lsn, PartitionId, Region, StateMachine, Transaction};
use meridian_wire::{Link, Listener};

use crate::common::{CLUSTER, Pair, region_options, until};
use crate::refusals::pose;

/// Drops what it was given while it applies.
#[derive(Clone, Default)]
struct Dropper(Arc<Mutex<(Option<Link>, Option<Listener>)>>);

impl StateMachine for Dropper {
    fn resume_from(&self) -> Lsn {
        Lsn::MAX
    }

    fn apply(&mut self, _: &Committed<'_>) {
        let given = std::mem::take(&mut *self.0.lock().unwrap());
        drop(given);
    }
}

#[test]
fn h4_link_and_listener_dropped_by_a_machine_hold_up_no_commit() {
    let mut pair = Pair::new();
    let dropper = Dropper::default();
    let region = Region::create(region_options(&pair.dir.path().join("own")), dropper.clone()).unwrap();
    pair.west = Arc::new(region);
    pair.account = pair.west.create_account("flights", Ack::Quorum).unwrap();
    let there = pair.listen();
    let link = pair.link(pair.options(&there));
    until("a session", || link.status().sessions > 0);
    // Both belong to the region whose machine drops them.
    let here = Listener::bind(Arc::clone(&pair.west), crate::common::listener_options()).unwrap();
    let mut held = dropper.0.lock().unwrap();
    let submit = |pair: &Pair| pair.west.submit(Transaction::new(pair.account, PartitionId(1)).record("one")).unwrap();
    let mut first = submit(&pair);
    // Until the machine may go on, the log thread does not: the link waits for it to mark the log,
    // the listener to greet.
    let greeted = pose(&here, &pair.east, CLUSTER.to_owned(), Vec::new());
    std::thread::sleep(Duration::from_millis(500));
    *held = (Some(link), Some(here));
    drop(held);
    let Some(answer) = first.wait_timeout(Duration::from_secs(60)) else {
        // The region would wait for ever, too.
        std::mem::forget(pair);
        panic!("the log thread waits for itself");
    };
    answer.unwrap();
    submit(&pair).wait().unwrap();
    drop(greeted);
    // Its threads end by themselves: nothing holds the region then.
    until("the threads have ended", || Arc::strong_count(&pair.west) == 1);
    Arc::into_inner(pair.west).unwrap().close().unwrap();
}
