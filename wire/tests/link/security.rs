//! Who may send: a known region of the same cluster with a certificate of its own, and nobody else learns anything.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian::geo::Lane;
use meridian::{PartitionId, Transaction};
use meridian_wire::codec::{Carry, HEADER, Header, Hello, Message};
use meridian_wire::{Compression, Link, LinkOptions, Listener, ListenerOptions, Security, TlsIdentity, WireError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::common::{CLUSTER, Pair, fill, link_options, listener_options, peer, until, until_shipped};

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate and its key, as PEM.
    fn certify(&self, name: &str, year: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(year, 1, 1));
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub(crate) fn identity(&self, name: &str) -> Security {
        self.identity_until(name, 2999)
    }

    /// One whose certificate runs out when the year begins.
    pub(crate) fn identity_until(&self, name: &str, year: i32) -> Security {
        let (chain, key) = self.certify(name, year);
        let identity = TlsIdentity::from_pem(chain.as_bytes(), key.as_bytes(), self.0.pem().as_bytes());
        Security::Tls(identity.unwrap())
    }

    /// The sender's end of a TLS connection to `east`, to say with it what no link says.
    fn client(&self, name: &str) -> ClientConnection {
        let (chain, key) = self.certify(name, 2999);
        let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.0.pem())).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate(&chain)], PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap());
        ClientConnection::new(Arc::new(config.unwrap()), "east.meridian.test".try_into().unwrap()).unwrap()
    }
}

fn secure_listener(pair: &Pair, authority: &Authority) -> Listener {
    let security = authority.identity("east.meridian.test");
    let patience = Duration::from_secs(2);
    let options = ListenerOptions { security, patience, ..listener_options() };
    Listener::bind(Arc::clone(&pair.east), options).unwrap()
}

#[test]
fn regions_with_certificates_of_one_authority_ship_over_tls() {
    let pair = Pair::new();
    let authority = Authority::new();
    let listener = secure_listener(&pair, &authority);
    let security = authority.identity("west.meridian.test");
    let link = pair.link(LinkOptions { security, ..pair.options(&listener) });
    for _ in 0..5 {
        fill(&pair.west, pair.account, 300, 900);
    }
    until_shipped(&link, &pair.west);
    pair.assert_equal();
}

#[test]
fn messages_of_any_size_go_through_one_tls_session() {
    let pair = Pair::new();
    let authority = Authority::new();
    // Just over a few whole TLS records: a short one follows full ones, at once.
    let sizes = (0..400).map(|number| (16 << 10) * (1 + number % 5) + number * 97 % 2048);
    let commits: Vec<_> = sizes
        .map(|size| pair.west.submit(Transaction::new(pair.account, PartitionId(0)).record(vec![7; size])).unwrap())
        .collect();
    for commit in commits {
        commit.wait().unwrap();
    }
    let listener = secure_listener(&pair, &authority);
    let security = authority.identity("west.meridian.test");
    let compression = Compression::Off;
    let link = pair.link(LinkOptions { security, compression, batch_bytes: 1, ..pair.options(&listener) });
    until_shipped(&link, &pair.west);
    pair.assert_equal();
    let status = link.status();
    assert_eq!(status.sessions, 1, "{:?}", status.ended);
}

#[test]
fn a_link_stops_at_once_though_the_other_side_says_nothing_to_its_tls() {
    let pair = Pair::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let security = Authority::new().identity("west.meridian.test");
    let options = link_options(silent.local_addr().unwrap(), pair.account);
    let link = pair.link(LinkOptions { security, ..options });
    let (mut held, _) = silent.accept().unwrap();
    held.read_exact(&mut [0]).unwrap();
    let start = Instant::now();
    link.stop();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn bytes_behind_the_end_of_a_tls_session_end_the_connection() {
    let pair = Pair::new();
    let authority = Authority::new();
    let listener = secure_listener(&pair, &authority);
    let mut client = authority.client("west.meridian.test");
    let mut socket = TcpStream::connect(listener.local_addr()).unwrap();
    while client.is_handshaking() {
        client.complete_io(&mut socket).unwrap();
    }
    client.send_close_notify();
    let mut last = Vec::new();
    client.write_tls(&mut last).unwrap();
    last.extend([0; 10_000]);
    socket.write_all(&last).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let start = Instant::now();
    // What it said before, then its end.
    drop(socket.read_to_end(&mut Vec::new()));
    let kept = start.elapsed();
    let stopped = std::thread::spawn(move || listener.stop());
    until("the listener's end", || stopped.is_finished());
    assert!(kept < Duration::from_secs(4), "it keeps the connection");
}

#[test]
fn another_authority_another_name_and_no_certificate_get_nothing() {
    let pair = Pair::new();
    let (authority, other) = (Authority::new(), Authority::new());
    fill(&pair.west, pair.account, 10, 10);
    let listener = secure_listener(&pair, &authority);
    let strangers =
        [other.identity("west.meridian.test"), authority.identity("north.meridian.test"), Security::Loopback];
    for security in strangers {
        let link = pair.link(LinkOptions { security, ..pair.options(&listener) });
        until("an attempt", || link.status().ended.is_some());
        assert_eq!(link.status().sessions, 0);
        link.stop();
    }
    // And the other way round: the primary does not send to whoever answers.
    let impostor = Listener::bind(
        Arc::clone(&pair.east),
        ListenerOptions { security: authority.identity("north.meridian.test"), ..listener_options() },
    );
    let impostor = impostor.unwrap();
    let security = authority.identity("west.meridian.test");
    let link = pair.link(LinkOptions { security, ..pair.options(&impostor) });
    until("an attempt", || link.status().ended.is_some());
    assert_eq!(link.status().sessions, 0);
    assert!(listener.status().is_empty() && impostor.status().is_empty());
    assert_eq!(pair.east.accounts().unwrap(), []);
}

#[test]
fn plain_text_stays_on_loopback_unless_it_is_asked_for() {
    let pair = Pair::new();
    let somewhere = "192.0.2.1:9".parse().unwrap();
    let listener = pair.listen();
    let options = LinkOptions { address: somewhere, ..pair.options(&listener) };
    let refused = Link::start(Arc::clone(&pair.west), options.clone()).err();
    assert!(matches!(refused, Some(WireError::InvalidInput(_))), "{refused:?}");
    let anywhere = ListenerOptions { address: "0.0.0.0:0".parse().unwrap(), ..listener_options() };
    assert!(Listener::bind(Arc::clone(&pair.east), anywhere.clone()).is_err());
    Listener::bind(Arc::clone(&pair.east), ListenerOptions { security: Security::PlainText, ..anywhere })
        .unwrap()
        .stop();
}

fn connect(listener: &Listener) -> (TcpStream, u128) {
    let mut socket = TcpStream::connect(listener.local_addr()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut bytes = [0; HEADER + 16];
    socket.read_exact(&mut bytes).unwrap();
    let header = Header::decode(bytes[..HEADER].try_into().unwrap(), 16, 0).unwrap();
    let Ok(Message::Challenge(nonce)) = Message::decode(&header, &bytes[HEADER..], Vec::new().into()) else {
        panic!("a challenge comes first")
    };
    (socket, nonce)
}

/// What the listener says to these bytes before it hangs up, which it does soon.
fn answer(mut socket: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let start = Instant::now();
    // It may hang up in the middle.
    drop(socket.write_all(bytes));
    let mut said = Vec::new();
    drop(socket.read_to_end(&mut said));
    assert!(start.elapsed() < Duration::from_secs(4), "it keeps the connection");
    said
}

#[test]
fn a_stranger_a_wrong_region_and_a_replayed_hello_are_told_nothing() {
    let pair = Pair::new();
    let listener = pair.listen();
    let hello = |challenge| Hello {
        challenge,
        nonce: 5,
        cluster: CLUSTER.into(),
        from: "west".into(),
        to: "east".into(),
        lane: Lane { log: pair.west.log_id(), number: 0 },
        link: 1,
    };
    let wrong: [fn(&mut Hello); 4] = [
        |hello| hello.cluster = "other".into(),
        |hello| hello.from = "north".into(),
        |hello| hello.to = "south".into(),
        |hello| hello.challenge ^= 1,
    ];
    for change in wrong {
        let (socket, challenge) = connect(&listener);
        let mut hello = hello(challenge);
        change(&mut hello);
        assert_eq!(answer(socket, &Message::Hello(hello).encode()), []);
    }
    let (mut socket, challenge) = connect(&listener);
    let mut said = Message::Hello(hello(challenge)).encode();
    said.extend(Message::Carry(Carry { accounts: vec![pair.account], void: None }).encode());
    socket.write_all(&said).unwrap();
    let mut welcome = [0; HEADER];
    socket.read_exact(&mut welcome).unwrap();
    let (replayed, _) = connect(&listener);
    assert_eq!(answer(replayed, &said), [], "the same hello again is worth nothing");
    drop(peer("west"));
}

#[test]
fn hostile_bytes_end_their_connection_and_nothing_else() {
    let pair = Pair::new();
    let options = ListenerOptions { patience: Duration::from_millis(300), ..listener_options() };
    let listener = Listener::bind(Arc::clone(&pair.east), options).unwrap();
    let mut huge = Message::Ping(1).encode();
    huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut seed = 7u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 56) as u8
    })
    .take(10_000)
    .collect();
    for bytes in [&huge[..], &noise, &Message::Pong(1).encode(), b"GET / HTTP/1.1\r\n\r\n", b""] {
        let (socket, _) = connect(&listener);
        assert_eq!(answer(socket, bytes), []);
    }
    // Those who only hold a place are let go in time for others.
    let idle: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(listener.local_addr()).unwrap()).collect();
    let link = pair.link(pair.options(&listener));
    fill(&pair.west, pair.account, 50, 100);
    until_shipped(&link, &pair.west);
    pair.assert_equal();
    drop(idle);
}
