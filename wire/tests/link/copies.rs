//! Copies that are switched off and on, taken by lanes, begun anew and made whole.

use std::time::Duration;

use meridian::geo::Lane;
use meridian::{Ack, Contract, ErrorKind, Gate, Lsn, PartitionId, Role, Transaction};
use meridian_wire::{LinkOptions, LinkState};

use crate::common::{Pair, fill, frames, lane, retained, role, shipped, until, until_shipped};
use crate::cuts::slow_proxy;

#[test]
fn a_copy_that_was_switched_off_is_not_read_and_switched_on_again_gets_only_what_it_lacks() {
    let pair = Pair::new();
    let (_listener, link, name) = shipped(&pair, 1000, 700);
    assert_eq!(role(&pair.west, pair.account), Role::Primary, "nobody had to switch it on");
    pair.west.set_account_geo(&name, false).unwrap();
    until("the drop", || role(&pair.east, pair.account) == Role::Dropped);
    let last_sync_time = || pair.east.last_sync_time(pair.account).unwrap();
    assert_eq!(last_sync_time(), None, "nothing is there any more");
    let read = || pair.east.partition(pair.account, PartitionId(0), 0).try_next();
    until("its end for readers", || read().is_err_and(|error| error.kind() == ErrorKind::Secondary));
    let before = link.status().shipped.0;
    fill(&pair.west, pair.account, 50, 700);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(link.status().shipped.0, before, "nothing is sent for a copy that is not wanted");
    pair.west.set_account_geo(&name, true).unwrap();
    until("the copy", || role(&pair.east, pair.account) == Role::Secondary);
    assert!(last_sync_time().is_some());
    until_shipped(&link, &pair.west);
    pair.assert_equal();
    let sent = link.status().shipped.0 - before;
    assert!((30_000..120_000).contains(&sent), "{sent} bytes were sent for 50 transactions");
}

#[test]
fn nothing_is_claimed_of_an_account_that_was_switched_off_and_on_until_its_copy_is_there_again() {
    let pair = Pair::new();
    let later = pair.west.create_account("later", Ack::Quorum).unwrap();
    let listener = pair.listen();
    // What is said of the one comes back late, behind marks of the other.
    let address = slow_proxy(listener.local_addr(), 500 << 20);
    let link = pair.link(LinkOptions { address, accounts: vec![pair.account, later], ..pair.options(&listener) });
    until("a last sync time", || link.status().last_sync_time > 0);
    for _ in 0..5 {
        for on in [false, true] {
            pair.west.set_account_geo("later", on).unwrap();
        }
        let receipt = pair.west.commit(Transaction::new(later, PartitionId(1)).record("x")).unwrap();
        let time = pair.west.read(receipt.lsn).unwrap().transaction(receipt.lsn).unwrap().time();
        until("a last sync time that covers it", || {
            let claimed = link.status().last_sync_time >= time;
            assert!(!claimed || pair.east.next_sequence(later, PartitionId(1)).unwrap() > receipt.first_sequence);
            assert!(!claimed || role(&pair.east, later) == Role::Secondary, "nobody can read it");
            claimed
        });
    }
}

#[test]
fn a_copy_that_was_switched_off_in_one_session_and_on_in_another_is_made_whole() {
    let pair = Pair::new();
    let (listener, link, name) = shipped(&pair, 100, 100);
    pair.west.set_account_geo(&name, false).unwrap();
    until("the drop", || role(&pair.east, pair.account) == Role::Dropped);
    link.stop();
    fill(&pair.west, pair.account, 6000, 700);
    let trimmed = pair.west.trim(Lsn::MAX).unwrap();
    let link = pair.link(pair.options(&listener));
    until("a session behind what was trimmed", || link.status().position >= trimmed);
    pair.west.set_account_geo(&name, true).unwrap();
    until("the copy", || role(&pair.east, pair.account) == Role::Secondary);
    until_shipped(&link, &pair.west);
    assert_eq!(pair.east.digest(pair.account).unwrap(), pair.west.digest(pair.account).unwrap());
    assert_eq!(retained(&pair.east, pair.account), retained(&pair.west, pair.account));
}

/// An account that was switched off before the lane ever carried it is said behind what begins anew, whichever has the lower number.
#[test]
fn a_copy_is_made_whole_beside_an_account_that_is_switched_off() {
    for first_is_off in [false, true] {
        let pair = Pair::new();
        let later = pair.west.create_account("later", Ack::Quorum).unwrap();
        let name = pair.west.accounts().unwrap()[0].name.clone();
        let (off, on) = if first_is_off { (pair.account, later) } else { (later, pair.account) };
        let listener = pair.listen();
        let options = pair.options(&listener);
        let link = pair.link(LinkOptions { accounts: vec![on], ..options.clone() });
        fill(&pair.west, on, 10, 100);
        until_shipped(&link, &pair.west);
        link.stop();
        pair.west.set_account_geo(if first_is_off { &name } else { "later" }, false).unwrap();
        fill(&pair.west, on, 6000, 700);
        assert!(pair.west.trim(Lsn::MAX).unwrap() > Lsn::ZERO, "what the copy lacks is gone");
        let link = pair.link(LinkOptions { accounts: vec![pair.account, later], ..options });
        until("the copy", || pair.east.digest(on).is_ok_and(|digest| digest == pair.west.digest(on).unwrap()));
        until_shipped(&link, &pair.west);
        until("the copy to be read", || role(&pair.east, on) == Role::Secondary);
        assert_eq!(role(&pair.east, off), Role::Dropped);
        assert_eq!(retained(&pair.east, on), retained(&pair.west, on));
    }
}

#[test]
fn while_a_copy_begins_anew_nothing_is_claimed_though_another_one_is_dropped_first() {
    let pair = Pair::new();
    let on = pair.west.create_account("later", Ack::Quorum).unwrap();
    let listener = pair.listen();
    let options = LinkOptions { accounts: vec![pair.account, on], ..pair.options(&listener) };
    let link = pair.link(options.clone());
    fill(&pair.west, on, 10, 100);
    until_shipped(&link, &pair.west);
    until("a last sync time", || link.status().last_sync_time > 0);
    link.stop();
    pair.west.set_account_geo("flights", false).unwrap();
    fill(&pair.west, on, 6000, 700);
    assert!(pair.west.trim(Lsn::MAX).unwrap() > Lsn::ZERO, "what the copy lacks is gone");
    let slow = LinkOptions { bootstrap_bytes_per_second: Some(1 << 20), batch_bytes: 10_000, ..options };
    let link = pair.link(slow);
    until("the copy", || {
        let status = link.status();
        let whole = role(&pair.east, on) == Role::Secondary && pair.east.digest(on).unwrap().records > 100;
        assert!(whole || status.last_sync_time == 0, "claimed of a copy that nobody can read");
        assert!(whole || status.state != LinkState::Live);
        whole
    });
    assert_eq!(role(&pair.east, pair.account), Role::Dropped);
    until("a last sync time", || link.status().last_sync_time > 0 && link.status().state == LinkState::Live);
}

#[test]
fn last_sync_time_does_not_go_back_where_a_copy_is_only_to_be_dropped() {
    let pair = Pair::new();
    let later = pair.west.create_account("later", Ack::Quorum).unwrap();
    let listener = pair.listen();
    let both = LinkOptions { accounts: vec![pair.account, later], ..pair.options(&listener) };
    let link = pair.link(both.clone());
    fill(&pair.west, pair.account, 10, 100);
    until_shipped(&link, &pair.west);
    link.stop();
    // A lane that leaves it out makes it one that is compared when it comes back; by then it is switched off.
    let link = pair.link(pair.options(&listener));
    until("a last sync time", || link.status().last_sync_time > 0);
    let before = link.status().last_sync_time;
    link.stop();
    pair.west.set_account_geo("later", false).unwrap();
    // The first answer takes its time.
    let link = pair.link(LinkOptions { address: slow_proxy(listener.local_addr(), 500 << 20), ..both });
    until("a session", || {
        let status = link.status();
        assert!(status.sessions == 0 || status.last_sync_time >= before, "it went back");
        status.last_sync_time > before
    });
    assert_eq!((link.status().bootstraps.0, role(&pair.east, later)), (0, Role::Dropped));
}

#[test]
fn an_account_that_a_lane_carries_only_later_is_bootstrapped() {
    let pair = Pair::new();
    let (listener, link, _) = shipped(&pair, 100, 100);
    let later = pair.west.create_account("later", Ack::Quorum).unwrap();
    fill(&pair.west, later, 100, 100);
    fill(&pair.west, pair.account, 10, 100);
    until_shipped(&link, &pair.west);
    link.stop();
    let options = pair.options(&listener);
    let link = pair.link(LinkOptions { accounts: vec![pair.account, later], ..options });
    fill(&pair.west, later, 10, 100);
    until_shipped(&link, &pair.west);
    assert_eq!(frames(&pair.east, later), frames(&pair.west, later));
    pair.assert_equal();
}

#[test]
fn a_copy_that_a_late_greeting_of_another_lane_took_is_brought_back_though_nothing_is_written() {
    let pair = Pair::new();
    let (_listener, link, _) = shipped(&pair, 100, 100);
    until("the copy", || role(&pair.east, pair.account) == Role::Secondary);
    // As a greeting does whose link was stopped meanwhile.
    pair.east.carry(Lane { number: 1, ..lane(&pair.west) }, [pair.account], None).unwrap();
    assert_eq!(role(&pair.east, pair.account), Role::Bootstrap);
    until("the copy", || role(&pair.east, pair.account) == Role::Secondary);
    until_shipped(&link, &pair.west);
    pair.assert_equal();
}

#[test]
fn a_bootstrap_that_was_cut_off_goes_on_beside_an_account_that_was_fenced_meanwhile() {
    let pair = Pair::new();
    let (listener, link, name) = shipped(&pair, 100, 100);
    let later = pair.west.create_account("later", Ack::Quorum).unwrap();
    fill(&pair.west, later, 2000, 700);
    fill(&pair.west, pair.account, 100, 100);
    pair.west.fence_account(&name).unwrap();
    fill(&pair.west, pair.account, 100, 100);
    until_shipped(&link, &pair.west);
    link.stop();
    let both = LinkOptions { accounts: vec![pair.account, later], ..pair.options(&listener) };
    let slow = LinkOptions { bootstrap_bytes_per_second: Some(1 << 20), batch_bytes: 10_000, ..both.clone() };
    let link = pair.link(slow);
    until("some of the copy", || pair.east.digest(later).is_ok_and(|digest| digest.records > 100));
    link.stop();
    assert_eq!(role(&pair.east, later), Role::Bootstrap);
    let position = pair.east.progress(lane(&pair.west)).unwrap().unwrap().position;
    let link = pair.link(both);
    until("the copy", || role(&pair.east, later) == Role::Secondary);
    until_shipped(&link, &pair.west);
    assert!(link.status().position >= position, "what a lane has does not become less");
    assert_eq!(link.status().sessions, 1, "{:?}", link.status().ended);
    assert_eq!(frames(&pair.east, later), frames(&pair.west, later));
    pair.assert_equal();
}

#[test]
fn a_copy_that_a_lane_left_out_for_a_while_counts_for_nothing_until_it_is_compared() {
    let pair = Pair::new();
    let later = pair.west.create_account("later", Ack::Quorum).unwrap();
    let listener = pair.listen();
    let both = LinkOptions { accounts: vec![pair.account, later], ..pair.options(&listener) };
    let link = pair.link(both.clone());
    fill(&pair.west, later, 10, 100);
    until_shipped(&link, &pair.west);
    until("both copies", || role(&pair.east, later) == Role::Secondary);
    link.stop();
    let link = pair.link(pair.options(&listener));
    let contract = Contract { most: Duration::ZERO, then: Gate::Wait };
    pair.west.set_account_contract("later", Some(contract)).unwrap();
    let waits = Transaction::new(later, PartitionId(1)).record("while it was left out");
    let mut waits = pair.west.submit(waits).unwrap();
    fill(&pair.west, pair.account, 100, 100);
    until_shipped(&link, &pair.west);
    link.stop();
    assert!(waits.wait_timeout(Duration::from_millis(50)).is_none(), "no link ships it");
    let link = pair.link(both);
    waits.wait_timeout(Duration::from_secs(60)).expect("it arrives").unwrap();
    assert_eq!(pair.east.digest(later).unwrap(), pair.west.digest(later).unwrap(), "answered, and not there");
    until_shipped(&link, &pair.west);
    assert_eq!((link.status().gaps, link.status().sessions), (0, 1));
    assert_eq!(frames(&pair.east, later), frames(&pair.west, later));
}
