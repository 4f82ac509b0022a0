//! What is committed arrives, in order and whole; how far it is is said truly.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meridian::{Ack, ErrorKind, Lsn, PartitionId, Region, Transaction};
use meridian_wire::{Breach, Cause, Compression, Contract, LinkOptions, LinkState};

use crate::common::{Pair, fill, link_options, listener_options, region_options, until, until_shipped};

fn wall() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64
}

#[test]
fn everything_committed_before_and_during_a_session_arrives_byte_for_byte() {
    let pair = Pair::new();
    fill(&pair.west, pair.account, 500, 700);
    let listener = pair.listen();
    let link = pair.link(pair.options(&listener));
    for _ in 0..5 {
        fill(&pair.west, pair.account, 300, 700);
    }
    until_shipped(&link, &pair.west);
    pair.assert_equal();
    let status = link.status();
    assert_eq!((status.state, status.differ.len()), (LinkState::Live, 0));
    assert!(status.remotely_durable.len() >= 3000 && status.shipped.0 > 2 << 20);
    let median = status.remotely_durable.value_at_quantile(0.5);
    assert!((10_000..60_000_000_000).contains(&median), "{median} ns from commit to remotely durable");
    let arrivals = listener.status();
    let arrival = &arrivals[&pair.west.log_id()];
    assert_eq!((arrival.from.as_str(), arrival.live, arrival.duplicates), ("west", true, 0));
    assert_eq!(arrival.records, pair.west.digest(pair.account).unwrap().records);
}

#[test]
fn last_sync_time_moves_while_idle_and_never_claims_what_is_not_there() {
    let pair = Pair::new();
    let listener = pair.listen();
    let link = pair.link(pair.options(&listener));
    until("the first mark", || link.status().last_sync_time > 0);
    let first = link.status().last_sync_time;
    until("a later mark without any write", || link.status().last_sync_time > first + 50_000_000);
    for number in 0..50u64 {
        let partition = PartitionId(u128::from(number % 3));
        let receipt = pair.west.commit(Transaction::new(pair.account, partition).record("x")).unwrap();
        let block = pair.west.read(receipt.lsn).unwrap();
        let time = block.transaction(receipt.lsn).unwrap().time();
        let arrived = || pair.east.next_sequence(pair.account, partition).unwrap() > receipt.first_sequence;
        until("a last sync time that covers it", || {
            let covered = link.status().last_sync_time >= time;
            assert!(!covered || arrived(), "claimed before it was there");
            covered
        });
    }
    assert!(link.status().last_sync_time <= wall());
}

#[test]
fn other_accounts_stay_behind_and_changes_of_the_account_arrive_in_order() {
    let pair = Pair::new();
    let other = pair.west.create_account("not shipped", Ack::Quorum).unwrap();
    let listener = pair.listen();
    let link = pair.link(pair.options(&listener));
    for epoch in 2..6 {
        fill(&pair.west, pair.account, 40, 100);
        fill(&pair.west, other, 40, 100);
        pair.west.fence_account("flights").unwrap();
        assert_eq!(pair.west.accounts().unwrap()[0].epoch, epoch);
    }
    pair.west.set_account_ack("flights", Ack::All).unwrap();
    fill(&pair.west, pair.account, 40, 100);
    until_shipped(&link, &pair.west);
    pair.assert_equal();
    let accounts = pair.east.accounts().unwrap();
    assert_eq!((accounts.len(), accounts[0].epoch, accounts[0].ack), (1, 5, Ack::All));
}

#[test]
fn without_a_secondary_the_link_says_so_and_what_each_partition_lacks() {
    let pair = Pair::new();
    let listener = pair.listen();
    let address = listener.local_addr();
    let link = pair.link(pair.options(&listener));
    fill(&pair.west, pair.account, 70, 100);
    until_shipped(&link, &pair.west);
    listener.stop();
    until("the loss", || link.status().state == LinkState::Unavailable);
    fill(&pair.west, pair.account, 70, 100);
    let status = link.status();
    assert_eq!(status.cause, Cause::Unavailable);
    assert!(status.unread > 0 && status.ended.is_some());
    let lags = link.lag_by_partition(100).unwrap();
    assert_eq!((lags.len(), lags.iter().map(|behind| behind.lag.records).sum::<u64>()), (7, 139));
    assert!(lags.windows(2).all(|pair| pair[0].lag.oldest <= pair[1].lag.oldest));
    assert_eq!(link.lag_by_partition(2).unwrap().len(), 2);
    let mut options = listener_options();
    options.address = address;
    let listener = meridian_wire::Listener::bind(Arc::clone(&pair.east), options).unwrap();
    until_shipped(&link, &pair.west);
    pair.assert_equal();
    drop(listener);
}

#[test]
fn what_is_not_shipped_is_not_trimmed_and_what_was_trimmed_is_a_gap() {
    let pair = Pair::new();
    let listener = pair.listen();
    fill(&pair.west, pair.account, 3000, 700);
    let pinned = pair.link(link_options("127.0.0.1:1".parse().unwrap(), pair.account));
    assert_eq!(pair.west.trim(Lsn::MAX).unwrap().segment().0, 1, "the link holds everything back");
    pinned.stop();
    let kept = pair.west.trim(Lsn::MAX).unwrap();
    assert!(kept.segment().0 > 1);
    let link = pair.link(pair.options(&listener));
    // From its first retained position on, a log without its beginning would look whole.
    until("the gap", || link.status().state == LinkState::Gap);
    assert_eq!(link.status().cause, Cause::Gap);
    assert_eq!(pair.east.accounts().unwrap(), []);
}

#[test]
fn both_sides_go_on_after_being_closed_and_opened() {
    let Pair { dir, west, east, account } = Pair::new();
    let mut regions = (west, east);
    for round in 0..6u64 {
        let (west, east) = &regions;
        let listener = meridian_wire::Listener::bind(Arc::clone(east), listener_options()).unwrap();
        let options = LinkOptions {
            compression: if round % 2 == 0 { Compression::Adaptive } else { Compression::Off },
            ..link_options(listener.local_addr(), account)
        };
        let link = meridian_wire::Link::start(Arc::clone(west), options).unwrap();
        fill(west, account, 200 + round * 50, 500);
        if round == 5 {
            until_shipped(&link, west);
        }
        // Stopped in the middle of what it does.
        if round % 2 == 0 {
            link.stop();
            listener.stop();
        } else {
            listener.stop();
            link.stop();
        }
        let (west, east) = regions;
        let reopen = |region: Arc<Region>, name: &str, close: bool| {
            if !close {
                return region;
            }
            let region = Arc::into_inner(region).expect("nobody else has it");
            region.close().unwrap();
            Arc::new(Region::open(region_options(&dir.path().join(name)), ()).unwrap())
        };
        regions = (reopen(west, "west", round % 3 != 0), reopen(east, "east", round % 3 != 1));
    }
    let (west, east) = regions;
    Pair { dir, west, east, account }.assert_equal();
}

#[test]
fn a_small_window_and_small_batches_lose_nothing() {
    let pair = Pair::new();
    let mut options = listener_options();
    options.window = 20_000;
    let listener = meridian_wire::Listener::bind(Arc::clone(&pair.east), options).unwrap();
    let options = LinkOptions { batch_bytes: 5_000, batch_time: Duration::ZERO, ..pair.options(&listener) };
    let link = pair.link(options);
    fill(&pair.west, pair.account, 2000, 300);
    until_shipped(&link, &pair.west);
    pair.assert_equal();
}

#[test]
fn a_contract_is_kept_by_refusing_throttling_or_alerting_while_the_secondary_is_too_far_behind() {
    for then in [Breach::Alert, Breach::Refuse, Breach::Throttle] {
        let pair = Pair::new();
        let listener = pair.listen();
        let address = listener.local_addr();
        let contract = Some(Contract { most: Duration::from_millis(1500), then });
        let link = pair.link(LinkOptions { contract, ..pair.options(&listener) });
        until("a young last sync time", || link.status().last_sync_time > 0 && !link.status().breached);
        fill(&pair.west, pair.account, 10, 100);
        listener.stop();
        until("the breach", || link.status().breached);
        let write = || pair.west.try_submit(Transaction::new(pair.account, PartitionId(1)).record("x"));
        match then {
            Breach::Alert => assert!(write().unwrap().wait().is_ok()),
            Breach::Refuse => assert_eq!(write().err().unwrap().kind(), ErrorKind::Behind),
            Breach::Throttle | Breach::Wait => assert_eq!(write().err().unwrap().kind(), ErrorKind::Busy),
        }
        let options = meridian_wire::ListenerOptions { address, ..listener_options() };
        let listener = meridian_wire::Listener::bind(Arc::clone(&pair.east), options).unwrap();
        until("its end", || !link.status().breached);
        fill(&pair.west, pair.account, 10, 100);
        until_shipped(&link, &pair.west);
        pair.assert_equal();
        drop(listener);
    }
}

#[test]
fn under_a_contract_of_nothing_every_commit_is_on_the_secondary_when_it_is_answered() {
    let pair = Pair::new();
    let listener = pair.listen();
    let contract = Some(Contract { most: Duration::ZERO, then: Breach::Wait });
    let link = pair.link(LinkOptions { contract, ..pair.options(&listener) });
    for number in 0..100u64 {
        let partition = PartitionId(u128::from(number % 3));
        let receipt = pair.west.commit(Transaction::new(pair.account, partition).record("x")).unwrap();
        let there = pair.east.next_sequence(pair.account, partition).unwrap();
        assert!(there > receipt.first_sequence, "answered before it was there");
    }
    listener.stop();
    let mut waits = pair.west.submit(Transaction::new(pair.account, PartitionId(1)).record("x")).unwrap();
    assert!(waits.wait_timeout(Duration::from_millis(200)).is_none());
    link.stop();
    assert_eq!(waits.wait().unwrap_err().kind(), ErrorKind::Degraded);
}

#[test]
fn beyond_the_retention_cap_the_log_is_trimmed_and_the_link_says_gap() {
    let pair = Pair::new();
    let listener = pair.listen();
    let address = listener.local_addr();
    let link = pair.link(LinkOptions { retention_bytes: Some(3 << 20), ..pair.options(&listener) });
    fill(&pair.west, pair.account, 10, 100);
    until_shipped(&link, &pair.west);
    listener.stop();
    let held = pair.west.trim(Lsn::MAX).unwrap();
    fill(&pair.west, pair.account, 800, 700);
    assert_eq!(pair.west.trim(Lsn::MAX).unwrap(), held, "below the cap all of it is kept");
    fill(&pair.west, pair.account, 4000, 700);
    until("the log's being let go", || pair.west.trim(Lsn::MAX).unwrap() > held);
    let options = meridian_wire::ListenerOptions { address, ..listener_options() };
    let _listener = meridian_wire::Listener::bind(Arc::clone(&pair.east), options).unwrap();
    until("the gap", || link.status().state == LinkState::Gap);
    assert_eq!(pair.east.digest(pair.account).unwrap().records, 19, "nothing was skipped over");
}
