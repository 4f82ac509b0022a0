//! Both ends of a refused connection say what was refused, whose it was and why (acceptance H7).

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use meridian::{AccountId, Ack, ErrorKind, Region};
use meridian_wire::codec::{Carry, Hello, Message};
use meridian_wire::{Link, LinkOptions, Listener, ListenerOptions, Security, WireError};

use crate::common::{
    CLUSTER, Pair, fill, lane, link_options, listener_options, peer, region_options, until, until_shipped,
};
use crate::cuts::{hear, say};
use crate::security::Authority;

const WEST: &str = "west.meridian.test";
const EAST: &str = "east.meridian.test";

/// What the primary and the listener say of a link that gets no session.
fn refused(pair: &Pair, west: Security, east: ListenerOptions, change: impl FnOnce(&mut LinkOptions)) -> [String; 2] {
    let listener = Listener::bind(Arc::clone(&pair.east), east).unwrap();
    let mut options = LinkOptions { security: west, ..pair.options(&listener) };
    change(&mut options);
    let link = pair.link(options);
    until("its end", || link.status().ended.is_some() && listener.refusals().count > 1);
    assert_eq!(link.status().sessions, 0);
    let refusals = listener.refusals();
    assert!(refusals.last.iter().all(|refusal| refusal.address.ip().is_loopback() && refusal.time > 0));
    [link.status().ended.unwrap(), refusals.last[0].why.clone()]
}

fn assert_says(said: &[String; 2], there: [&str; 2]) {
    for (said, wanted) in said.iter().zip(there) {
        assert!(said.contains(wanted), "{wanted:?} is not said: {said:?}");
    }
}

#[test]
fn h7_expired_certificate_is_named_by_both_ends() {
    let (pair, authority) = (Pair::new(), Authority::new());
    let east = |year| ListenerOptions { security: authority.identity_until(EAST, year), ..listener_options() };
    let said = refused(&pair, authority.identity_until(WEST, 2002), east(2999), |_| {});
    assert_says(
        &said,
        ["refuses this side's certificate: CertificateExpired", "other side's certificate: certificate expired"],
    );
    let said = refused(&pair, authority.identity(WEST), east(2002), |_| {});
    assert_says(
        &said,
        ["other side's certificate: certificate expired", "refuses this side's certificate: CertificateExpired"],
    );
}

#[test]
fn h7_wrong_authority_and_missing_certificate_are_named_by_both_ends() {
    let (pair, authority, other) = (Pair::new(), Authority::new(), Authority::new());
    let east = || ListenerOptions { security: authority.identity(EAST), ..listener_options() };
    let said = refused(&pair, other.identity(WEST), east(), |_| {});
    assert_says(&said, ["other side's certificate", "refuses this side's certificate"]);
    let said = refused(&pair, authority.identity("north.meridian.test"), east(), |_| {});
    let name = "the certificate does not carry the name that region \"west\" has";
    assert_says(&said, [name, name]);
    let said = refused(&pair, authority.identity(WEST), east(), |options| options.peer.name = "else.test".into());
    assert_says(&said, ["certificate not valid for name", "refuses this side's certificate"]);
}

#[test]
fn h7_wrong_cluster_or_region_is_named_to_a_certified_peer_only() {
    let (pair, authority) = (Pair::new(), Authority::new());
    let east = || ListenerOptions { security: authority.identity(EAST), ..listener_options() };
    let said = refused(&pair, authority.identity(WEST), east(), |options| options.cluster = "other".into());
    assert_says(&said, ["cluster \"other\", which is not this one"; 2]);
    let said = refused(&pair, authority.identity(WEST), east(), |options| options.region = "north".into());
    assert_says(&said, ["region \"north\" is not on the list of peers"; 2]);
    let said = refused(&pair, Security::Loopback, listener_options(), |options| options.peer.region = "south".into());
    assert_says(&said, ["hung up on the hello of region \"west\" to region \"south\"", "means region \"south\""]);
}

#[test]
fn h7_second_link_of_a_lane_or_account_is_refused_by_name() {
    let pair = Pair::new();
    let listener = pair.listen();
    let other = pair.west.create_account("gates", Ack::Quorum).unwrap();
    let link = pair.link(pair.options(&listener));
    let start = |options| match Link::start(Arc::clone(&pair.west), options).err() {
        Some(WireError::Region(error)) if error.kind() == ErrorKind::Exists => error.to_string(),
        other => panic!("{other:?}"),
    };
    let lane = start(LinkOptions { accounts: vec![other], ..pair.options(&listener) });
    assert!(lane.contains("lane 0 is in use by another link of this region, to \"east\""), "{lane}");
    let account = start(LinkOptions { lane: 1, ..pair.options(&listener) });
    assert!(account.contains("is shipped to \"east\" by the link of lane 0"), "{account}");
    let second = pair.link(LinkOptions { lane: 1, accounts: vec![other], ..pair.options(&listener) });
    until_shipped(&second, &pair.west);
    link.stop();
    let again = pair.link(pair.options(&listener));
    until_shipped(&again, &pair.west);
}

#[test]
fn h7_lane_is_not_taken_from_a_link_of_another_process_that_is_heard() {
    let mut pair = Pair::new();
    let listener = pair.listen();
    // A backup that is opened beside the original: the same log in two processes.
    let (west, copy) = (pair.dir.path().join("west"), pair.dir.path().join("copy"));
    let region = std::mem::replace(&mut pair.west, Arc::clone(&pair.east));
    Arc::into_inner(region).unwrap().close().unwrap();
    crate::histories::copy(&west, &copy);
    pair.west = Arc::new(Region::open(region_options(&west), ()).unwrap());
    let link = pair.link(pair.options(&listener));
    fill(&pair.west, pair.account, 10, 100);
    until_shipped(&link, &pair.west);
    let other = Arc::new(Region::open(region_options(&copy), ()).unwrap());
    let options = || link_options(listener.local_addr(), pair.account);
    let second = Link::start(Arc::clone(&other), options()).unwrap();
    until("its refusal", || second.status().ended.is_some());
    let ended = second.status().ended.unwrap();
    assert!(ended.contains("lane 0") && ended.contains("in use by another link"), "{ended}");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((link.status().sessions, second.status().sessions), (1, 0));
    assert!(listener.refusals().last.iter().any(|refusal| refusal.why.contains("in use by another link")));
    // It has the lane when the first link is gone.
    link.stop();
    until("its session", || second.status().sessions > 0);
    assert_eq!(second.status().other_histories, 1);
    assert_eq!(peer("east").region, "east");
}

/// Says hello as another link of the primary does, and what it carries; does not wait for the
/// answer.
pub(crate) fn pose(listener: &Listener, primary: &Region, cluster: String, accounts: Vec<AccountId>) -> TcpStream {
    let mut socket = TcpStream::connect(listener.local_addr()).unwrap();
    let Ok(Message::Challenge(challenge)) = hear(&mut socket) else { panic!("a challenge comes first") };
    let (from, to) = ("west".to_owned(), "east".to_owned());
    say(&mut socket, Message::Hello(Hello { challenge, nonce: 7, cluster, from, to, lane: lane(primary), link: 7 }));
    say(&mut socket, Message::Carry(Carry { accounts, void: None }));
    socket
}

#[test]
fn h7_lane_of_a_link_that_is_not_heard_is_taken_before_it_is_given_up() {
    let pair = Pair::new();
    let patience = Duration::from_secs(600);
    let listener = Listener::bind(Arc::clone(&pair.east), ListenerOptions { patience, ..listener_options() }).unwrap();
    let mut silent = pose(&listener, &pair.west, CLUSTER.to_owned(), vec![pair.account]);
    assert!(matches!(hear(&mut silent), Ok(Message::Welcome(_))));
    let link = pair.link(pair.options(&listener));
    until("its refusal", || link.status().ended.is_some_and(|why| why.contains("in use by another link")));
    until_shipped(&link, &pair.west);
}

#[test]
fn h7_refusals_are_counted_and_the_last_ones_are_kept_in_few_words() {
    let pair = Pair::new();
    let listener = pair.listen();
    for _ in 0..50 {
        drop(TcpStream::connect(listener.local_addr()).unwrap());
    }
    until("their refusal", || listener.refusals().count == 50);
    assert_eq!(listener.refusals().last.len(), 32);
    let _socket = pose(&listener, &pair.west, "x".repeat(1000), Vec::new());
    until("its refusal", || listener.refusals().count == 51);
    let last = listener.refusals().last;
    assert_eq!((last.len(), last[31].why.chars().count()), (32, 512), "{last:?}");
}
