//! What is committed arrives, in order and whole; how far it is is said truly.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meridian::format::{FrameHeader, FrameKind, encode_frame, frame_len};
use meridian::geo::{Anchor, Arrived, Lag, Session};
use meridian::{
    AccountId, Ack, ClientId, Committed, Contract, ErrorKind, Gate, Lsn, PartitionId, Region, Role, StateMachine,
    Transaction,
};
use meridian_wire::{
    Cause, Compression, Difference, Link, LinkOptions, LinkState, Listener, ListenerOptions, WireError,
};

use crate::common::{
    Pair, fill, frames, lane, link_options, listener_options, region_options, retained, role, shipped, until,
    until_shipped,
};
use crate::cuts::slow_proxy;

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
    until("the count of what was sent", || link.status().sent.len() == link.status().remotely_durable.len());
    let sent = link.status().sent.value_at_quantile(0.5);
    assert!((1_000..60_000_000_000).contains(&sent), "{sent} ns from commit to sent");
    let arrivals = listener.status();
    let arrival = &arrivals[&lane(&pair.west)];
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
    let claimed = link.status().last_sync_time;
    let there = pair.east.last_sync_time(pair.account).unwrap().expect("it is whole");
    assert!((claimed..=wall()).contains(&there), "the secondary knows it before its primary does");
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
    let listener = Listener::bind(Arc::clone(&pair.east), options).unwrap();
    until_shipped(&link, &pair.west);
    pair.assert_equal();
    drop(listener);
}

#[test]
fn what_an_account_lacks_is_what_its_partitions_lack() {
    let pair = Pair::new();
    let other = pair.west.create_account("other", Ack::Quorum).unwrap();
    let left_out = pair.west.create_account("not shipped", Ack::Quorum).unwrap();
    let options = link_options("127.0.0.1:1".parse().unwrap(), pair.account);
    let link = pair.link(LinkOptions { accounts: vec![pair.account, other], ..options });
    assert!(link.lag_by_account().unwrap().is_empty());
    for (account, transactions) in [(pair.account, 70), (other, 21), (left_out, 7)] {
        fill(&pair.west, account, transactions, 100);
    }
    let (accounts, partitions) = (link.lag_by_account().unwrap(), link.lag_by_partition(100).unwrap());
    assert_eq!(accounts.keys().copied().collect::<Vec<_>>(), [pair.account, other]);
    for (account, lag) in accounts {
        let held = frames(&pair.west, account);
        assert_eq!(lag.records, pair.west.digest(account).unwrap().records);
        assert_eq!(lag.bytes, held.iter().map(|frame| frame.len() as u64).sum::<u64>());
        let its = partitions.iter().filter(|behind| behind.account == account).map(|behind| behind.lag);
        let sum = |of: fn(Lag) -> u64| its.clone().map(of).sum::<u64>();
        assert_eq!((sum(|lag| lag.bytes), sum(|lag| lag.records)), (lag.bytes, lag.records));
        assert_eq!(its.map(|lag| lag.oldest).min(), Some(lag.oldest));
        assert!((1..=wall()).contains(&lag.oldest), "{}", lag.oldest);
    }
}

/// Takes its time with each transaction.
struct Slow;

impl StateMachine for Slow {
    fn resume_from(&self) -> Lsn {
        Lsn::MAX
    }

    fn apply(&mut self, _: &Committed<'_>) {
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_bootstrap_a_slow_link_and_a_slow_secondary_are_each_said_to_be_the_cause() {
    let pair = Pair::new();
    fill(&pair.west, pair.account, 1000, 700);
    let listener = pair.listen();
    let proxy = slow_proxy(listener.local_addr(), 4 << 20);
    let link = pair.link(LinkOptions { compression: Compression::Off, ..link_options(proxy, pair.account) });
    until("the bootstrap", || link.status().cause == Cause::Bootstrap);
    until_shipped(&link, &pair.west);
    until("the link", || {
        if link.status().unread < 8 << 20 {
            fill(&pair.west, pair.account, 1000, 700);
        }
        link.status().cause == Cause::Link
    });
    link.stop();

    let mut pair = Pair::new();
    pair.east = Arc::new(Region::create(region_options(&pair.dir.path().join("slow")), Slow).unwrap());
    let options = ListenerOptions { window: 64 << 10, ..listener_options() };
    let listener = Listener::bind(Arc::clone(&pair.east), options).unwrap();
    let link = pair.link(LinkOptions { batch_bytes: 16 << 10, ..pair.options(&listener) });
    until("the secondary", || {
        if link.status().unread < 1 << 20 {
            fill(&pair.west, pair.account, 100, 700);
        }
        link.status().cause == Cause::Secondary
    });
}

#[test]
fn what_is_not_shipped_is_not_trimmed_and_an_account_without_its_beginning_is_bootstrapped() {
    let pair = Pair::new();
    let listener = pair.listen();
    fill(&pair.west, pair.account, 3000, 700);
    let pinned = pair.link(link_options("127.0.0.1:1".parse().unwrap(), pair.account));
    assert_eq!(pair.west.trim(Lsn::MAX).unwrap().segment().0, 1, "the link holds everything back");
    pinned.stop();
    let kept = pair.west.trim(Lsn::MAX).unwrap();
    assert!(kept.segment().0 > 1);
    let link = pair.link(pair.options(&listener));
    until_shipped(&link, &pair.west);
    assert_eq!(pair.east.digest(pair.account).unwrap(), pair.west.digest(pair.account).unwrap());
    assert_eq!((link.status().bootstraps.0, link.status().gaps), (1, 0));
    assert_eq!(retained(&pair.east, pair.account), retained(&pair.west, pair.account));
    fill(&pair.west, pair.account, 100, 700);
    until_shipped(&link, &pair.west);
    assert_eq!(retained(&pair.east, pair.account), retained(&pair.west, pair.account));
}

#[test]
fn both_sides_go_on_after_being_closed_and_opened() {
    let Pair { dir, west, east, account } = Pair::new();
    let mut regions = (west, east);
    for round in 0..6u64 {
        let (west, east) = &regions;
        let listener = Listener::bind(Arc::clone(east), listener_options()).unwrap();
        let options = LinkOptions {
            compression: if round % 2 == 0 { Compression::Adaptive } else { Compression::Off },
            ..link_options(listener.local_addr(), account)
        };
        let link = Link::start(Arc::clone(west), options).unwrap();
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
    let listener = Listener::bind(Arc::clone(&pair.east), options).unwrap();
    let options = LinkOptions { batch_bytes: 5_000, batch_time: Duration::ZERO, ..pair.options(&listener) };
    let link = pair.link(options);
    fill(&pair.west, pair.account, 2000, 300);
    until_shipped(&link, &pair.west);
    pair.assert_equal();
}

#[test]
fn a_contract_is_kept_by_refusing_throttling_or_alerting_while_the_secondary_is_too_far_behind() {
    for then in [Gate::Open, Gate::Refuse, Gate::Throttle] {
        let pair = Pair::new();
        let listener = pair.listen();
        let address = listener.local_addr();
        pair.contract(Contract { most: Duration::from_millis(1500), then });
        let link = pair.link(pair.options(&listener));
        until("a young last sync time", || link.status().last_sync_time > 0 && link.status().breached.is_empty());
        fill(&pair.west, pair.account, 10, 100);
        listener.stop();
        until("the breach", || link.status().breached == [pair.account]);
        let write = || pair.west.try_submit(Transaction::new(pair.account, PartitionId(1)).record("x"));
        match then {
            Gate::Open => assert!(write().unwrap().wait().is_ok()),
            Gate::Refuse => assert_eq!(write().err().unwrap().kind(), ErrorKind::Behind),
            Gate::Throttle | Gate::Wait => assert_eq!(write().err().unwrap().kind(), ErrorKind::Busy),
        }
        let options = ListenerOptions { address, ..listener_options() };
        let listener = Listener::bind(Arc::clone(&pair.east), options).unwrap();
        until("its end", || link.status().breached.is_empty());
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
    let address = listener.local_addr();
    pair.contract(Contract { most: Duration::ZERO, then: Gate::Wait });
    let link = pair.link(pair.options(&listener));
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
    assert!(waits.wait_timeout(Duration::from_millis(200)).is_none(), "without a link, too");
    let options = ListenerOptions { address, ..listener_options() };
    let listener = Listener::bind(Arc::clone(&pair.east), options).unwrap();
    let _link = pair.link(pair.options(&listener));
    let receipt = waits.wait().unwrap();
    assert!(pair.east.next_sequence(pair.account, PartitionId(1)).unwrap() > receipt.first_sequence);
}

#[test]
fn a_short_contract_makes_marks_come_often_enough_for_it() {
    let pair = Pair::new();
    let listener = pair.listen();
    pair.contract(Contract { most: Duration::from_secs(1), then: Gate::Refuse });
    let link = pair.link(LinkOptions { mark_interval: Duration::from_secs(3600), ..pair.options(&listener) });
    until("a young last sync time", || link.status().last_sync_time > 0 && link.status().breached.is_empty());
    fill(&pair.west, pair.account, 10, 100);
}

#[test]
fn beyond_the_retention_cap_the_log_is_trimmed_and_a_bootstrap_follows_the_gap() {
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
    let options = ListenerOptions { address, ..listener_options() };
    let _listener = Listener::bind(Arc::clone(&pair.east), options).unwrap();
    until_shipped(&link, &pair.west);
    assert_eq!((link.status().bootstraps.0, link.status().gaps), (2, 1));
    assert_eq!(pair.east.digest(pair.account).unwrap(), pair.west.digest(pair.account).unwrap());
    assert_eq!(retained(&pair.east, pair.account), retained(&pair.west, pair.account));
}

#[test]
fn what_is_within_the_retention_cap_is_held_back_though_the_secondary_was_beyond_it() {
    let pair = Pair::new();
    let listener = pair.listen();
    let most = 2 << 20;
    let proxy = slow_proxy(listener.local_addr(), 3 << 20);
    let options =
        LinkOptions { retention_bytes: Some(most), compression: Compression::Off, ..link_options(proxy, pair.account) };
    let link = pair.link(options);
    fill(&pair.west, pair.account, 4000, 700);
    assert!(link.status().unread > most, "the secondary is behind by more than is held back");
    until_shipped(&link, &pair.west);
    listener.stop();
    until("the loss", || link.status().state == LinkState::Unavailable);
    assert_eq!(link.status().sessions, 1);
    let position = link.status().position;
    fill(&pair.west, pair.account, 1000, 700);
    assert!(pair.west.distance(position, pair.west.committed()) < most);
    assert!(pair.west.trim(Lsn::MAX).unwrap() <= position, "the secondary lacks it");
}

#[test]
fn on_a_log_older_than_the_retention_cap_as_much_as_the_cap_is_held_back() {
    let pair = Pair::new();
    fill(&pair.west, pair.account, 6000, 700);
    let most = 3 << 20;
    assert!(pair.west.distance(Lsn::ZERO, pair.west.committed()) > most);
    let trimmed = pair.west.trim(Lsn::MAX).unwrap();
    let nobody = "127.0.0.1:1".parse().unwrap();
    let _link = pair.link(LinkOptions { retention_bytes: Some(most), ..link_options(nobody, pair.account) });
    std::thread::sleep(Duration::from_millis(100));
    fill(&pair.west, pair.account, 900, 700);
    assert_eq!(pair.west.trim(Lsn::MAX).unwrap(), trimmed, "all of it is within the cap");
    fill(&pair.west, pair.account, 6000, 700);
    let committed = pair.west.committed();
    // What the cap is about is the disk space of whole segments, of 1 MiB.
    let space = |at: Lsn| (u64::from(at.segment().0) << 20) + u64::from(at.offset());
    let held = || space(committed) - space(pair.west.trim(Lsn::MAX).unwrap());
    until("the rest's being let go", || held() < most + (1 << 20));
    assert!(held() >= most - (8 << 10), "{} bytes are held back", held());
    let before = pair.west.before(committed, most);
    assert_eq!((space(committed) - space(before), pair.west.before(committed, u64::MAX)), (most, Lsn::ZERO));
    let bytes = pair.west.distance(before, committed);
    assert!(bytes < most && bytes > most - (256 << 10), "{bytes} bytes of log take {most} on disk");
}

#[test]
fn a_refusal_that_lasts_is_met_less_and_less_often() {
    let mut pair = Pair::new();
    let mut options = region_options(&pair.dir.path().join("narrow"));
    options.max_partitions = 3;
    pair.east = Arc::new(Region::create(options, ()).unwrap());
    let listener = pair.listen();
    let longest_retry = Duration::from_secs(2);
    let link = pair.link(LinkOptions { longest_retry, ..pair.options(&listener) });
    fill(&pair.west, pair.account, 100, 100);
    until("the refusal", || link.status().cause == Cause::Refused);
    let before = link.status().sessions;
    std::thread::sleep(Duration::from_millis(1500));
    let sessions = link.status().sessions - before;
    assert!(sessions < 12, "{sessions} sessions in 1.5 s: {:?}", link.status().ended);
}

#[test]
fn each_region_repairs_itself_and_the_link_carries_nothing_for_it() {
    let pair = Pair::new();
    let listener = pair.listen();
    let link = pair.link(pair.options(&listener));
    fill(&pair.west, pair.account, 3000, 700);
    until_shipped(&link, &pair.west);
    let (shipped, sessions) = (link.status().shipped.0, link.status().sessions);
    assert!(shipped > 4 << 20);
    for region in [&pair.east, &pair.west] {
        let blank = region.health().unwrap().disks[1].path.clone();
        region.fail_disk(1).unwrap();
        // What was on its way may make files still.
        until("the end of the directory", || std::fs::remove_dir_all(&blank).is_ok());
        std::fs::create_dir(&blank).unwrap();
        until("the replacement", || match region.replace_disk(1) {
            Err(error) if error.kind() == ErrorKind::Busy => false,
            replaced => replaced.map(|()| true).unwrap(),
        });
        until("three copies", || region.health().unwrap().is_whole());
        let copies = region.copies().unwrap();
        let sealed = copies.iter().filter(|segment| segment.sealed.is_some());
        assert!(sealed.clone().count() > 3);
        assert!(sealed.flat_map(|segment| &segment.copies).filter(|copy| copy.disk == 1 && copy.complete).count() > 3);
    }
    until_shipped(&link, &pair.west);
    assert_eq!((link.status().shipped.0, link.status().sessions), (shipped, sessions));
    fill(&pair.west, pair.account, 100, 700);
    until_shipped(&link, &pair.west);
    pair.assert_equal();
}

#[test]
fn an_account_that_is_not_here_or_is_a_copy_is_not_shipped_from_here() {
    let pair = Pair::new();
    let (listener, link, _) = shipped(&pair, 10, 100);
    link.stop();
    let options = pair.options(&listener);
    let unknown = AccountId(pair.account.0 + 1);
    for (region, accounts) in [(&pair.west, vec![pair.account, unknown]), (&pair.east, vec![pair.account])] {
        let named = accounts[accounts.len() - 1].0.to_string();
        let refused = Link::start(Arc::clone(region), LinkOptions { accounts, ..options.clone() }).err();
        assert!(matches!(&refused, Some(WireError::InvalidInput(what)) if what.contains(&named)), "{refused:?}");
    }
}

#[test]
fn a_mark_that_cannot_be_made_is_seen() {
    let mut pair = Pair::new();
    let mut options = region_options(&pair.dir.path().join("small"));
    options.max_segments = Some(4);
    pair.west = Arc::new(Region::create(options, ()).unwrap());
    pair.account = pair.west.create_account("flights", Ack::Quorum).unwrap();
    let listener = pair.listen();
    let link = pair.link(pair.options(&listener));
    until("a mark", || link.status().last_sync_time > 0);
    assert_eq!(link.status().unmarked, None);
    let write = || pair.west.commit(Transaction::new(pair.account, PartitionId(0)).record(vec![7; 60 << 10]));
    until("the end of the space", || write().is_err());
    until("what is wrong", || link.status().unmarked.is_some());
    assert_eq!(link.status().state, LinkState::Live);
}

#[test]
fn a_secondary_without_room_to_begin_a_session_says_so() {
    let mut pair = Pair::new();
    let mut options = region_options(&pair.dir.path().join("small"));
    options.max_segments = Some(4);
    pair.east = Arc::new(Region::create(options, ()).unwrap());
    let (listener, link, _) = shipped(&pair, 10, 100);
    link.stop();
    let own = pair.east.create_account("own", Ack::Quorum).unwrap();
    let write = |len: usize| pair.east.commit(Transaction::new(own, PartitionId(0)).record(vec![7; len]));
    until("the end of the space", || write(60 << 10).is_err());
    until("the end of the last of it", || write(1).is_err());
    // That the copy is another lane's from now on has to be written.
    let link = pair.link(LinkOptions { lane: 1, ..pair.options(&listener) });
    until("why", || link.status().cause == Cause::Refused);
    assert!(link.status().ended.is_some_and(|ended| ended.contains("refused")));
}

#[test]
fn a_bootstrap_that_may_send_nothing_is_refused() {
    let pair = Pair::new();
    let listener = pair.listen();
    let options = LinkOptions { bootstrap_bytes_per_second: Some(0), ..pair.options(&listener) };
    let refused = Link::start(Arc::clone(&pair.west), options).err();
    assert!(matches!(refused, Some(WireError::InvalidInput(_))), "{refused:?}");
}

#[test]
fn a_name_that_no_greeting_can_carry_is_refused() {
    let pair = Pair::new();
    let listener = pair.listen();
    let options = LinkOptions { region: "w".repeat(1025), ..pair.options(&listener) };
    let refused = Link::start(Arc::clone(&pair.west), options).err();
    assert!(matches!(&refused, Some(WireError::InvalidInput(what)) if what.contains("1025 bytes")), "{refused:?}");
}

#[test]
fn patience_without_end_is_patience() {
    let pair = Pair::new();
    let most = Duration::MAX;
    let options = ListenerOptions { patience: most, ..listener_options() };
    let listener = Listener::bind(Arc::clone(&pair.east), options).unwrap();
    let options = LinkOptions {
        patience: most,
        batch_time: most,
        longest_retry: most,
        batch_bytes: 1000,
        ..pair.options(&listener)
    };
    let link = pair.link(options);
    until("a last sync time", || link.status().last_sync_time > 0);
    fill(&pair.west, pair.account, 1000, 100);
    until_shipped(&link, &pair.west);
    pair.assert_equal();
}

#[test]
fn a_bootstrap_is_slowed_down_said_and_not_read_until_it_is_whole() {
    let pair = Pair::new();
    let listener = pair.listen();
    fill(&pair.west, pair.account, 1000, 700);
    let rate = Some(2 << 20);
    let link =
        pair.link(LinkOptions { bootstrap_bytes_per_second: rate, batch_bytes: 1 << 16, ..pair.options(&listener) });
    let began = std::time::Instant::now();
    until("the copy in the making", || {
        link.status().state == LinkState::Bootstrap && link.status().bootstraps.1 > 100_000
    });
    let status = link.status();
    assert_eq!((status.cause, status.last_sync_time), (Cause::Throttle, 0));
    assert_eq!(role(&pair.east, pair.account), Role::Bootstrap);
    let refused = pair.east.partition(pair.account, PartitionId(0), 0).try_next().err().map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::Secondary));
    until_shipped(&link, &pair.west);
    assert!(began.elapsed() > Duration::from_millis(400), "1.4 MiB at 2 MiB a second");
    assert_eq!(role(&pair.east, pair.account), Role::Secondary);
    assert!(link.status().bootstraps.1 > 1_000_000);
    pair.assert_equal();
}

#[test]
fn read_access_is_the_accounts_to_give() {
    let pair = Pair::new();
    let (_listener, link, name) = shipped(&pair, 20, 100);
    let read = || pair.east.partition(pair.account, PartitionId(0), 0).try_next();
    let seen = || {
        let mut log = pair.east.subscribe(Lsn::ZERO);
        let blocks = std::iter::from_fn(|| log.try_next().unwrap());
        blocks.map(|block| block.transactions().filter(|one| one.account() == pair.account).count()).sum::<usize>()
    };
    assert!(read().unwrap().is_some() && seen() > 0);
    pair.west.set_account_read_access(&name, false).unwrap();
    until_shipped(&link, &pair.west);
    assert_eq!((read().err().map(|error| error.kind()), seen()), (Some(ErrorKind::Secondary), 0));
    pair.west.set_account_read_access(&name, true).unwrap();
    until_shipped(&link, &pair.west);
    assert!(read().unwrap().is_some() && seen() > 0);
}

/// A record that the copy holds and nobody wrote, at this sequence of partition 0.
fn forge(pair: &Pair, first_sequence: u64) {
    let account = pair.west.accounts().unwrap().remove(0);
    let records = [bytes::Bytes::from_static(b"what nobody wrote")];
    let header = FrameHeader {
        kind: FrameKind::Data,
        account: pair.account,
        partition: PartitionId(0),
        epoch: 1,
        first_sequence,
        time: 1,
        client: ClientId::NONE,
        client_sequence: 0,
    };
    let mut forged = vec![0; frame_len(&records).unwrap()];
    encode_frame(&header, &records, &mut forged);
    let lane = lane(&pair.west);
    let position = pair.east.progress(lane).unwrap().map_or(Lsn::ZERO, |progress| progress.position);
    let (account, frames) = (Some(account), vec![forged.into()]);
    let (session, anchor) = (Session::default(), Anchor::default());
    let arrived = Arrived { lane, session, account, restart: None, frames, mark: None, position, anchor };
    pair.east.import(arrived).unwrap().wait().unwrap();
}

#[test]
fn a_copy_that_differs_is_found_and_made_whole_from_the_primary() {
    let pair = Pair::new();
    forge(&pair, 0);
    let listener = pair.listen();
    let link = pair.link(pair.options(&listener));
    fill(&pair.west, pair.account, 100, 100);
    until_shipped(&link, &pair.west);
    let (account, partition) = (pair.account, PartitionId(0));
    assert_eq!(link.status().differed, [Difference { account, partition, sequence: Some(0) }]);
    assert_eq!(pair.east.digest(pair.account).unwrap(), pair.west.digest(pair.account).unwrap());
    assert_eq!(retained(&pair.east, pair.account), retained(&pair.west, pair.account), "what was forged is void");
}

#[test]
fn a_difference_is_narrowed_to_the_record() {
    let pair = Pair::new();
    let (listener, link, _) = shipped(&pair, 1000, 100);
    link.stop();
    let (account, partition) = (pair.account, PartitionId(0));
    let at = pair.east.next_sequence(account, partition).unwrap();
    assert!(at > 0);
    forge(&pair, at);
    fill(&pair.west, account, 1000, 100);
    let link = pair.link(pair.options(&listener));
    until("the difference", || !link.status().differed.is_empty());
    assert_eq!(link.status().differed, [Difference { account, partition, sequence: Some(at) }]);
    until_shipped(&link, &pair.west);
    assert_eq!(pair.east.digest(account).unwrap(), pair.west.digest(account).unwrap());
    assert_eq!(retained(&pair.east, account), retained(&pair.west, account), "what was forged is void");
}

#[test]
fn a_commit_that_waits_for_the_secondary_is_not_answered_for_what_another_account_of_the_lane_has_there() {
    let pair = Pair::new();
    let later = pair.west.create_account("later", Ack::Quorum).unwrap();
    let contract = Contract { most: Duration::ZERO, then: Gate::Wait };
    pair.west.set_account_contract("later", Some(contract)).unwrap();
    let waits = Transaction::new(later, PartitionId(1)).record("there or not");
    let mut waits = pair.west.submit(waits).unwrap();
    let (listener, link, _) = shipped(&pair, 100, 100);
    link.stop();
    assert!(waits.wait_timeout(Duration::from_millis(50)).is_none(), "no link ships it");
    let options = pair.options(&listener);
    let _link = pair.link(LinkOptions { accounts: vec![pair.account, later], ..options });
    waits.wait_timeout(Duration::from_secs(60)).expect("it arrives").unwrap();
    assert_eq!(pair.east.digest(later).unwrap().records, 1, "answered, and not there");
}
