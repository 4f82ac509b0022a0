//! A link with nothing to do, and a link without a session: what they cost, and what they say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian::{Contract, Gate, PartitionId, Region, Transaction};
use meridian_wire::{LinkOptions, LinkState};

use crate::common::{Pair, fill, lane, region_options, until, until_shipped};

/// Blocks of the smallest size that were committed since a position.
fn blocks(region: &Region, since: meridian::Lsn) -> u64 {
    region.distance(since, region.committed()) / 4096
}

#[test]
fn h8_idle_link_marks_less_and_less_often_and_at_once_after_a_commit() {
    let pair = Pair::new();
    let listener = pair.listen();
    let mark_interval = Duration::from_millis(1);
    let link = pair.link(LinkOptions { mark_interval, ..pair.options(&listener) });
    fill(&pair.west, pair.account, 10, 100);
    until_shipped(&link, &pair.west);
    let (here, there) = (pair.west.committed(), pair.east.committed());
    std::thread::sleep(Duration::from_secs(3));
    let marks = [blocks(&pair.west, here), blocks(&pair.east, there)];
    assert!(
        marks.iter().all(|marks| (5..250).contains(marks)),
        "{marks:?} blocks in 3 s of nothing, of 3,000 intervals"
    );
    let before = link.status();
    until("a later last sync time", || link.status().last_sync_time > before.last_sync_time);
    let receipt = pair.west.commit(Transaction::new(pair.account, PartitionId(0)).record("flight")).unwrap();
    let block = pair.west.read(receipt.lsn).unwrap();
    let time = block.transaction(receipt.lsn).unwrap().time();
    let start = Instant::now();
    until("its last sync time", || link.status().last_sync_time >= time);
    assert!(start.elapsed() < Duration::from_secs(2), "a commit ends the idle time: {:?}", start.elapsed());
}

#[test]
fn h8_contract_is_kept_by_an_idle_link() {
    let pair = Pair::new();
    pair.contract(Contract { most: Duration::from_secs(1), then: Gate::Refuse });
    let listener = pair.listen();
    let link = pair.link(LinkOptions { mark_interval: Duration::from_millis(100), ..pair.options(&listener) });
    until("a kept contract", || link.status().last_sync_time > 0 && link.status().breached.is_empty());
    let start = Instant::now();
    // An idle link without a contract marks less often than once a second by then.
    while start.elapsed() < Duration::from_secs(18) {
        let status = link.status();
        assert!(status.breached.is_empty() && status.last_sync_age < 1_000_000_000, "{status:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn t2_lag_is_shown_while_there_is_no_session_and_after_a_restart() {
    let mut pair = Pair::new();
    let listener = pair.listen();
    let link = pair.link(pair.options(&listener));
    fill(&pair.west, pair.account, 2_000, 1_000);
    until_shipped(&link, &pair.west);
    until("a mark that keeps the position", || {
        pair.west
            .progress(lane(&pair.west))
            .unwrap()
            .is_some_and(|known| known.time > 0 && pair.west.distance(known.position, pair.west.committed()) < 1 << 20)
    });
    listener.stop();
    until("its absence", || link.status().state == LinkState::Unavailable);
    let down = link.status();
    fill(&pair.west, pair.account, 100, 1_000);
    let status = link.status();
    assert!(status.unread > 100_000, "{status:?}");
    assert_eq!(status.last_sync_time, down.last_sync_time);
    assert!(status.last_sync_age > down.last_sync_age && down.last_sync_age > 0, "{status:?}");
    assert_eq!((status.known_before, status.clock_ahead), (None, 0));
    link.stop();
    let dir = pair.dir.path().join("west");
    let region = std::mem::replace(&mut pair.west, Arc::clone(&pair.east));
    Arc::into_inner(region).unwrap().close().unwrap();
    pair.west = Arc::new(Region::open(region_options(&dir), ()).unwrap());
    let nowhere = crate::common::link_options("127.0.0.1:1".parse().unwrap(), pair.account);
    let link = pair.link(nowhere);
    let status = link.status();
    let (position, time) = status.known_before.unwrap();
    assert!(time > 0 && time <= down.last_sync_time && position <= down.position, "{status:?}");
    assert_eq!(status.last_sync_time, 0, "nothing is claimed before a session");
    let lacks = pair.west.distance(position, pair.west.committed());
    assert!(status.unread == lacks && lacks < 2 << 20, "{} of {lacks}", status.unread);
}
