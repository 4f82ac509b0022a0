//! What a known region can make a secondary hold, whatever it sends: no more than the listener's and the region's options say.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian::format::{FrameHeader, FrameKind, encode_frame, frame_len};
use meridian::geo::{Anchor, Batch, Digest, Lane, MOST_BATCH_BYTES, Mark};
use meridian::{Account, AccountId, Ack, ClientId, DiskConfig, LogId, Lsn, Options, PartitionId, Region, Role};
use meridian_wire::codec::{Carry, HEADER, Header, Hello, MOST_FIELDS, Message, encode_batch};
use meridian_wire::{Listener, ListenerOptions, Peer};
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const ACCOUNT: AccountId = AccountId(7 << 32);
const QUEUE: usize = 8 << 20;
const TRANSACTION: usize = 1 << 20;
/// What the queue holds and what one session reads at once: a batch, compressed and not, and its fields, decoded and not.
const BUDGET: usize = QUEUE + 2 * (MOST_BATCH_BYTES + TRANSACTION) + 3 * MOST_FIELDS;

struct Secondary {
    _dir: tempfile::TempDir,
    region: Arc<Region>,
    listener: Listener,
}

fn secondary() -> Secondary {
    let dir = tempfile::tempdir().unwrap();
    let disks = ["disk-0", "disk-1", "disk-2"].map(|name| DiskConfig::new(dir.path().join(name), name, "zone-1"));
    let mut options = Options::new(disks.to_vec());
    options.segment_bytes = 8 << 20;
    options.transaction_bytes = TRANSACTION;
    options.queue_bytes = QUEUE;
    let region = Arc::new(Region::create(options, ()).unwrap());
    let peers = vec![Peer { name: "west.test".into(), region: "west".into() }];
    let options = ListenerOptions { transaction_bytes: TRANSACTION, ..ListenerOptions::new("test", "east", peers) };
    let options = ListenerOptions { patience: Duration::from_secs(5), ..options };
    let listener = Listener::bind(Arc::clone(&region), options).unwrap();
    Secondary { _dir: dir, region, listener }
}

/// A known region's connection behind its welcome.
fn introduced(listener: &Listener, accounts: Vec<AccountId>) -> TcpStream {
    let mut socket = TcpStream::connect(listener.local_addr()).unwrap();
    socket.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let Message::Challenge(challenge) = read(&mut socket) else { panic!("a challenge comes first") };
    let lane = Lane { log: LogId(9), number: 0 };
    let [cluster, from, to] = ["test", "west", "east"].map(String::from);
    let hello = Hello { challenge, nonce: 1, cluster, from, to, lane, link: 1 };
    socket.write_all(&Message::Hello(hello).encode()).unwrap();
    socket.write_all(&Message::Carry(Carry { accounts, void: None }).encode()).unwrap();
    let Message::Welcome(_) = read(&mut socket) else { panic!("a welcome comes next") };
    socket
}

fn read(socket: &mut TcpStream) -> Message {
    let mut header = [0; HEADER];
    socket.read_exact(&mut header).unwrap();
    let header = Header::decode(&header, MOST_FIELDS, 0).unwrap();
    let mut fields = vec![0; header.fields];
    socket.read_exact(&mut fields).unwrap();
    Message::decode(&header, &fields, Bytes::new()).unwrap()
}

fn batch(number: u64, bytes: usize) -> Batch {
    let (account, restart, mark) = (None, None, None);
    let (frames, position, anchor) = (Vec::new(), Lsn(number << 12), Anchor::default());
    Batch { number, account, restart, frames, mark, position, anchor, bytes, records: 0, oldest: 0 }
}

/// Frames of partition 1 from a sequence on, about as many bytes as a batch may have.
fn frames(first_sequence: u64) -> (Vec<u8>, u64) {
    let records = [Bytes::from(vec![7; 64 << 10])];
    let len = frame_len(&records).unwrap();
    let count = MOST_BATCH_BYTES / len;
    let mut all = vec![0; len * count];
    for (at, frame) in all.chunks_exact_mut(len).enumerate() {
        let header = FrameHeader {
            kind: FrameKind::Data,
            account: ACCOUNT,
            partition: PartitionId(1),
            epoch: 1,
            first_sequence: first_sequence + at as u64,
            time: 1,
            client: ClientId::NONE,
            client_sequence: 0,
        };
        encode_frame(&header, &records, frame);
    }
    (all, count as u64)
}

/// Sends a message again and again until the listener hangs up or takes no more; answers are never read.
fn flood(socket: &mut TcpStream, times: usize, message: &[u8]) {
    let mut messages = (0..times).map(|_| socket.write_all(message));
    while messages.next().is_some_and(|sent| sent.is_ok()) {}
}

/// The most that was held beyond what was there before, while `attack` went on.
fn held_during(attack: impl FnOnce()) -> usize {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    attack();
    HEAP.peak_usage().saturating_sub(before)
}

#[test]
fn a_sender_that_reads_no_answer_and_sends_what_it_likes_is_held_within_the_budget() {
    let Secondary { region, listener, _dir } = secondary();
    let account = Account {
        id: ACCOUNT,
        name: "flights".into(),
        epoch: 1,
        ack: Ack::Quorum,
        role: Role::Primary,
        read_access: true,
        contract: None,
        lane: None,
    };
    let made = encode_batch(&Batch { account: Some(account), ..batch(1, 0) }, None);
    // Built beforehand: what the attacker holds is not what is measured.
    let stream: Vec<Vec<u8>> = {
        let mut first = 0;
        let batches = (2..40).map(|number| {
            let (frames, count) = frames(first);
            first += count;
            [encode_batch(&batch(number, frames.len()), None), frames].concat()
        });
        batches.collect()
    };
    let bytes: usize = stream.iter().map(Vec::len).sum();
    let mut socket = introduced(&listener, vec![ACCOUNT]);
    let held = held_during(|| {
        socket.write_all(&made).unwrap();
        let mut rest = stream.iter();
        while rest.next().is_some_and(|message| socket.write_all(message).is_ok()) {}
    });
    assert!(held < BUDGET, "{held} of {BUDGET} bytes were held for {bytes} of frames");
    let arrived = || region.next_sequence(ACCOUNT, PartitionId(1)).unwrap();
    assert!(arrived() > 0, "what is in order arrives");
    drop(socket);

    let marked: Vec<(AccountId, Digest)> = (1..=1 << 16).map(|at| (AccountId(at), Digest::default())).collect();
    let mark = Some(Mark { time: 1, accounts: marked });
    let message = encode_batch(&Batch { mark, ..batch(1, 0) }, None);
    let carried: Vec<AccountId> = (1..=1 << 16).map(AccountId).collect();
    let mut socket = introduced(&listener, carried);
    let held = held_during(|| flood(&mut socket, 40, &message));
    assert!(held < BUDGET, "{held} bytes were held for marks");

    // Questions whose answers nobody takes.
    let ping = Message::Ping(1).encode().repeat(1 << 12);
    let mut socket = introduced(&listener, vec![ACCOUNT]);
    let held = held_during(|| flood(&mut socket, 400, &ping));
    assert!(held < BUDGET, "{held} bytes were held for pings");

    // A body that claims to grow, and one that is longer than anybody takes.
    let zeros = [0; 64];
    let bomb = [encode_batch(&batch(1, MOST_BATCH_BYTES), Some(zeros.len())), zeros.to_vec()].concat();
    let huge = encode_batch(&batch(1, u32::MAX as usize), None);
    for message in [bomb, huge] {
        let mut socket = introduced(&listener, vec![ACCOUNT]);
        let held = held_during(|| {
            drop(socket.write_all(&message));
            drop(socket.read_to_end(&mut Vec::new()));
        });
        assert!(held < BUDGET, "{held} bytes were held for one message");
    }
    listener.stop();
    Arc::into_inner(region).unwrap().close().unwrap();
}
