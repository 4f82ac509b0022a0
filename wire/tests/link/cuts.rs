//! A network that cuts, in the middle of messages too: nothing is lost, nothing comes twice.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use meridian::geo::{Anchor, Digest, Holding, Standing};
use meridian::{Ack, Contract, Gate, Lsn, PartitionId, Region};
use meridian_wire::codec::{Carry, HEADER, Header, Hello, MOST_FIELDS, Message, Welcome};
use meridian_wire::{Cause, Compression, LinkOptions, LinkState, Listener, ListenerOptions};

use crate::common::{CLUSTER, Pair, fill, lane, link_options, listener_options, region_options, until, until_shipped};

/// Forwards connections, each until so many bytes have gone to the secondary: then both ends are cut.
pub(crate) fn cutting_proxy(
    to: SocketAddr,
    cuts: Arc<AtomicU64>,
    bytes: impl Fn(u64) -> u64 + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (number, from) in (0..).zip(listener.incoming()) {
            let (Ok(from), Ok(to)) = (from, TcpStream::connect(to)) else { return };
            let (mut back_from, mut back_to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
            let (cuts, limit) = (Arc::clone(&cuts), bytes(number));
            std::thread::spawn(move || forward(from, to, limit, &cuts));
        }
    });
    address
}

fn forward(mut from: TcpStream, mut to: TcpStream, limit: u64, cuts: &AtomicU64) {
    let (mut left, mut buffer) = (limit, [0; 8192]);
    while left > 0 {
        let most = buffer.len().min(left as usize);
        let Ok(read @ 1..) = from.read(&mut buffer[..most]) else { break };
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
        left -= read as u64;
    }
    if left == 0 {
        cuts.fetch_add(1, Ordering::Relaxed);
    }
    for socket in [from, to] {
        drop(socket.shutdown(Shutdown::Both));
    }
}

#[test]
fn cuts_at_any_byte_lose_nothing_and_repeat_nothing() {
    let pair = Pair::new();
    let listener = pair.listen();
    let cuts = Arc::new(AtomicU64::new(0));
    // Longer and longer, so that it ends; of odd sizes, so that every part of a message is met.
    let proxy =
        cutting_proxy(listener.local_addr(), Arc::clone(&cuts), |number| 200 + number * 7919 % 60_000 + number * 900);
    let link = pair.link(link_options(proxy, pair.account));
    for _ in 0..20 {
        fill(&pair.west, pair.account, 150, 400);
    }
    until_shipped(&link, &pair.west);
    pair.assert_equal();
    assert!(cuts.load(Ordering::Relaxed) > 20, "{cuts:?} cuts");
    let arrivals = listener.status();
    assert!(arrivals[&lane(&pair.west)].sessions > 20);
}

/// Forwards one connection after the other, so many bytes a second towards the secondary.
pub(crate) fn slow_proxy(to: SocketAddr, rate: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for from in listener.incoming() {
            let (Ok(mut from), Ok(mut to)) = (from, TcpStream::connect(to)) else { return };
            let (mut back_from, mut back_to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
            std::thread::spawn(move || {
                let mut buffer = vec![0; rate / 50];
                while let Ok(read @ 1..) = from.read(&mut buffer) {
                    std::thread::sleep(Duration::from_millis(20));
                    if to.write_all(&buffer[..read]).is_err() {
                        break;
                    }
                }
                for socket in [from, to] {
                    drop(socket.shutdown(Shutdown::Both));
                }
            });
        }
    });
    address
}

#[test]
fn a_window_that_is_too_small_for_a_long_way_is_said_to_be_the_cause() {
    let pair = Pair::new();
    let listener =
        Listener::bind(Arc::clone(&pair.east), ListenerOptions { window: 64 << 10, ..listener_options() }).unwrap();
    // Each message is 20 ms late, however much comes with it.
    let proxy = slow_proxy(listener.local_addr(), 500 << 20);
    let link = pair.link(LinkOptions { batch_bytes: 16 << 10, ..link_options(proxy, pair.account) });
    until("the cause", || {
        if link.status().unread < 1 << 20 {
            fill(&pair.west, pair.account, 100, 700);
        }
        link.status().cause == Cause::Credits
    });
}

#[test]
fn a_link_on_which_a_message_takes_longer_than_anybodys_patience_still_gets_everything_through() {
    let pair = Pair::new();
    let patience = Duration::from_millis(400);
    let options = ListenerOptions { patience, ..listener_options() };
    let listener = Listener::bind(Arc::clone(&pair.east), options).unwrap();
    let proxy = slow_proxy(listener.local_addr(), 300 << 10);
    fill(&pair.west, pair.account, 300, 700);
    let options = LinkOptions { patience, compression: Compression::Off, ..link_options(proxy, pair.account) };
    let link = pair.link(options);
    until_shipped(&link, &pair.west);
    pair.assert_equal();
    assert_eq!(link.status().sessions, 1, "slow is not dead");
}

#[test]
fn a_link_stops_at_once_though_the_other_side_says_nothing() {
    let pair = Pair::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let link = pair.link(link_options(silent.local_addr().unwrap(), pair.account));
    let _held = silent.accept().unwrap();
    let start = Instant::now();
    link.stop();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// Reads a message from a sender.
pub(crate) fn hear(socket: &mut TcpStream) -> std::io::Result<Message> {
    let mut header = [0; HEADER];
    socket.read_exact(&mut header)?;
    let header = Header::decode(&header, MOST_FIELDS, 0).unwrap();
    let mut fields = vec![0; header.fields];
    socket.read_exact(&mut fields)?;
    Ok(Message::decode(&header, &fields, Vec::new().into()).unwrap())
}

pub(crate) fn say(socket: &mut TcpStream, message: Message) {
    socket.write_all(&message.encode()).unwrap();
}

/// What a secondary says that has whole copies up to a position, or none at all.
pub(crate) fn greet(listener: &TcpListener, whole: Option<(Lsn, Anchor)>, time: u64) -> TcpStream {
    let (mut socket, _) = listener.accept().unwrap();
    say(&mut socket, Message::Challenge(1));
    let Ok(Message::Hello(hello)) = hear(&mut socket) else { panic!("a hello comes first") };
    let Ok(Message::Carry(Carry { accounts, .. })) = hear(&mut socket) else { panic!("what is carried comes next") };
    let standing = match whole {
        Some((position, anchor)) => Standing { position, anchor, ..Standing::default() },
        None => Standing { unknown: accounts.into_iter().collect(), ..Standing::default() },
    };
    say(&mut socket, Message::Welcome(Welcome { nonce: hello.nonce, time, window: 1 << 20, standing }));
    socket
}

/// Where a secondary stands that has what is retained before the first block's end.
fn whole(pair: &Pair) -> (Lsn, Anchor) {
    (pair.west.first(), pair.west.anchor(pair.west.first()).unwrap())
}

/// What a secondary without any copy says, up to where it is asked what it holds.
pub(crate) fn welcome(listener: &TcpListener) -> TcpStream {
    let mut socket = greet(listener, None, 0);
    let Ok(Message::Ask(_)) = hear(&mut socket) else { panic!("a new copy is compared") };
    socket
}

#[test]
fn a_secondary_that_claims_more_partitions_than_can_exist_is_not_listened_to() {
    let mut pair = Pair::new();
    let mut options = region_options(&pair.dir.path().join("narrow"));
    options.max_partitions = 3;
    pair.west = Arc::new(Region::create(options, ()).unwrap());
    pair.account = pair.west.create_account("flights", Ack::Quorum).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let link = pair.link(link_options(listener.local_addr().unwrap(), pair.account));
    let mut socket = welcome(&listener);
    let holding =
        |partition| Holding { partition: PartitionId(partition), next_sequence: 1, digest: Digest::default() };
    say(&mut socket, Message::Holdings((0..4).map(holding).collect()));
    until("its end", || link.status().ended.is_some());
    assert!(link.status().ended.unwrap().contains("more partitions"), "{:?}", link.status().ended);
    assert_eq!(link.status().sessions, 0);
}

#[test]
fn while_a_comparison_takes_long_either_side_hears_that_somebody_is_there() {
    let pair = Pair::new();
    fill(&pair.west, pair.account, 10, 100);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let patience = Duration::from_millis(400);
    let options = LinkOptions { patience, ..link_options(listener.local_addr().unwrap(), pair.account) };
    let link = pair.link(options);
    let mut socket = welcome(&listener);
    // An answer that takes four times anybody's patience.
    let (mut pings, start) = (0, Instant::now());
    socket.set_read_timeout(Some(patience / 4)).unwrap();
    while start.elapsed() < 4 * patience {
        say(&mut socket, Message::Pong(0));
        match hear(&mut socket) {
            Ok(Message::Ping(_)) => pings += 1,
            Ok(other) => panic!("{other:?}"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    assert!(pings >= 4, "{pings} pings");
    socket.set_read_timeout(None).unwrap();
    say(&mut socket, Message::Holdings(Vec::new()));
    until("the session", || link.status().sessions > 0);
    assert_eq!(link.status().ended, None);
}

#[test]
fn a_secondary_with_less_patience_than_the_link_hears_often_enough_that_somebody_is_there() {
    let pair = Pair::new();
    let options = ListenerOptions { patience: Duration::from_millis(1200), ..listener_options() };
    let listener = Listener::bind(Arc::clone(&pair.east), options).unwrap();
    fill(&pair.west, pair.account, 300, 700);
    // Two seconds for each batch.
    let bootstrap_bytes_per_second = Some(100_000);
    let options = LinkOptions { bootstrap_bytes_per_second, batch_bytes: 200_000, ..pair.options(&listener) };
    let link = pair.link(options);
    until_shipped(&link, &pair.west);
    assert_eq!(link.status().sessions, 1, "{:?}", link.status().ended);
    link.stop();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let _link = pair.link(link_options(socket.local_addr().unwrap(), pair.account));
    let mut socket = welcome(&socket);
    let start = Instant::now();
    for _ in 0..2 {
        assert!(matches!(hear(&mut socket), Ok(Message::Ping(_))));
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?} for two pings", start.elapsed());
}

#[test]
fn a_link_with_less_patience_than_the_listener_hears_often_enough_that_somebody_is_there() {
    let pair = Pair::new();
    let listener = pair.listen();
    let mut socket = TcpStream::connect(listener.local_addr()).unwrap();
    let Ok(Message::Challenge(challenge)) = hear(&mut socket) else { panic!("a challenge comes first") };
    let (cluster, from, to) = (CLUSTER.to_owned(), "west".to_owned(), "east".to_owned());
    say(&mut socket, Message::Hello(Hello { challenge, nonce: 7, cluster, from, to, lane: lane(&pair.west), link: 7 }));
    say(&mut socket, Message::Carry(Carry { accounts: vec![pair.account], void: None }));
    assert!(matches!(hear(&mut socket), Ok(Message::Welcome(_))));
    let start = Instant::now();
    for _ in 0..2 {
        assert!(matches!(hear(&mut socket), Ok(Message::Pong(0))));
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?} for two pongs", start.elapsed());
}

#[test]
fn while_a_secondary_owes_an_answer_no_more_is_held_back_than_the_retention_cap_allows() {
    let pair = Pair::new();
    fill(&pair.west, pair.account, 10, 100);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = link_options(listener.local_addr().unwrap(), pair.account);
    let _link = pair.link(LinkOptions { retention_bytes: Some(2 << 20), ..options });
    let mut socket = welcome(&listener);
    fill(&pair.west, pair.account, 6000, 700);
    let held = || pair.west.distance(pair.west.trim(Lsn::MAX).unwrap(), pair.west.committed());
    until("the log's being let go", || {
        // It is here, and does not answer.
        drop(socket.write_all(&Message::Pong(0).encode()));
        held() < 4 << 20
    });
}

#[test]
fn a_contract_is_kept_though_the_clock_of_the_log_is_ahead() {
    let pair = Pair::new();
    pair.contract(Contract { most: Duration::from_millis(500), then: Gate::Refuse });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let link = pair.link(link_options(listener.local_addr().unwrap(), pair.account));
    // As after a clock that was an hour ahead and was set right.
    let ahead = SystemTime::now() + Duration::from_secs(3600);
    let time = ahead.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let _socket = greet(&listener, Some(whole(&pair)), time);
    until("a young last sync time", || link.status().last_sync_time == time && link.status().breached.is_empty());
    let status = link.status();
    assert_eq!(status.state, LinkState::Live);
    // It is said, and the age is what it is by the clock of this process.
    assert!(status.clock_ahead > 3_000_000_000_000 && status.last_sync_age < 60_000_000_000, "{status:?}");
    // Nothing is ever acknowledged.
    until("the breach", || link.status().breached == [pair.account]);
    assert!(link.status().last_sync_age >= 500_000_000, "{:?}", link.status().last_sync_age);
}

#[test]
fn a_session_that_ends_again_and_again_without_getting_anywhere_is_begun_less_and_less_often() {
    let pair = Pair::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let longest_retry = Duration::from_secs(2);
    let link = pair.link(LinkOptions { longest_retry, ..link_options(listener.local_addr().unwrap(), pair.account) });
    let whole = whole(&pair);
    std::thread::spawn(move || {
        loop {
            drop(greet(&listener, Some(whole), 0));
        }
    });
    until("a session", || link.status().sessions >= 1);
    std::thread::sleep(Duration::from_millis(1500));
    let sessions = link.status().sessions;
    assert!(sessions < 12, "{sessions} sessions in 1.5 s: {:?}", link.status().ended);
}
