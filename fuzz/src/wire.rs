//! Targets of the geo link: its messages, and what a receiver makes of a stream of them.

use bytes::Bytes;
use meridian::format::{Frame, peek_frame_len};
use meridian::geo::{
    Acknowledgement, Anchor, Batch, Digest, Fingerprint, Holding, Lane, Mark, Receiver, Restart, Standing,
};
use meridian::{AccountId, LogId, Lsn, PartitionId};
use meridian_wire::RefusalKind;
use meridian_wire::codec::{Ask, Carry, HEADER, Header, Hello, Message, Trace, Welcome, encode_batch};
use xxhash_rust::xxh3::xxh3_64;

use crate::mutate::Random;
use crate::{Verdict, both, samples, stamp};

/// What the reader is ready to hold: less than a hostile length asks for.
const FIELDS: usize = 64 << 10;
const BODY: usize = 64 << 10;
/// Where a message's checksum lies, behind what of the header it covers.
const AT_CHECKSUM: usize = 24;

/// Target: one message, nothing behind it.
pub fn message(data: &[u8]) -> Verdict {
    both(data, |bytes| restamp(bytes), |bytes| matches!(next(bytes), Some((_, []))))
}

/// Target: messages one after the other, the batches among them to a receiver; a pong ends it.
pub fn session(data: &[u8]) -> Verdict {
    both(
        data,
        |bytes| restamp(bytes),
        |mut bytes| {
            let mut receiver = Receiver::new(Lane { log: LogId(1), number: 0 }, Lsn::ZERO);
            let (mut position, mut batches) = (Lsn::ZERO, 0);
            loop {
                let Some((message, rest)) = next(bytes) else { return false };
                bytes = rest;
                let batch = match message {
                    Message::Batch(batch) => batch,
                    Message::Pong(_) => break,
                    _ => continue,
                };
                let (number, frames) = (batch.number, batch.frames.clone());
                let Ok(arrived) = receiver.receive(batch) else { return false };
                batches += 1;
                let forward = arrived.position >= position || arrived.restart.is_some();
                assert!(number == batches && forward, "batches are dense, and go back with a restart only");
                assert!(
                    arrived.frames.iter().map(Bytes::len).sum::<usize>() == frames.len(),
                    "what arrived is handed on"
                );
                position = arrived.position;
            }
            assert_eq!(receiver.importing() as u64, batches);
            bytes.is_empty()
        },
    )
}

/// The message at the start of some bytes, and what is behind it.
fn next(bytes: &[u8]) -> Option<(Message, &[u8])> {
    let (start, rest) = bytes.split_first_chunk::<HEADER>()?;
    let header = Header::decode(start, FIELDS, BODY).ok()?;
    let (fields, rest) = rest.split_at_checked(header.fields)?;
    let (body, rest) = rest.split_at_checked(header.body)?;
    // Compressed bodies are zstd's to decode. Frames are verified where they are imported, as here.
    let mut frames = if header.is_compressed() { return None } else { body };
    while !frames.is_empty() {
        frames = &frames[Frame::parse(frames).ok()?.len()..];
    }
    Some((Message::decode(&header, fields, Bytes::copy_from_slice(body)).ok()?, rest))
}

/// Makes the checksums of all messages right, as far as their lengths lead.
fn restamp(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(start) = bytes.get(at..at + HEADER) {
        let length = |place: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| start[place + byte])) as usize;
        let (fields, body) = (length(8), length(12));
        let Some(end) = (at + HEADER).checked_add(fields).filter(|end| *end <= bytes.len()) else { return };
        let covered = [&bytes[at..at + AT_CHECKSUM], &bytes[at + HEADER..end]].concat();
        bytes[at + AT_CHECKSUM..at + HEADER].copy_from_slice(&xxh3_64(&covered).to_le_bytes());
        at = end;
        let behind = end.saturating_add(body).min(bytes.len());
        while let Some(frame) = peek_frame_len(&bytes[at..behind]) {
            stamp(&mut bytes[at..at + frame]);
            at += frame;
        }
        at = behind;
    }
}

fn name(random: &mut Random) -> String {
    "west".repeat(random.below(5))
}

fn accounts(random: &mut Random) -> Vec<AccountId> {
    (0..random.below(4) as u64).map(|number| AccountId(number * 1000 + random.any() % 1000)).collect()
}

fn anchor(random: &mut Random) -> Anchor {
    Anchor { block: Lsn(random.any()), checksum: random.any() }
}

/// Ascending.
fn holdings(random: &mut Random) -> Vec<Holding> {
    let mut holdings: Vec<Holding> = (0..random.below(5)).map(|_| samples::holding(random)).collect();
    holdings.sort_unstable_by_key(|holding| holding.partition);
    holdings
}

fn fingerprints(random: &mut Random) -> Vec<Fingerprint> {
    let one = |_| Fingerprint { first_sequence: random.any(), records: random.any() as u32, checksum: random.any() };
    let mut fingerprints: Vec<Fingerprint> = (0..5).map(one).collect();
    fingerprints.sort_unstable_by_key(|fingerprint| fingerprint.first_sequence);
    fingerprints.dedup_by_key(|fingerprint| fingerprint.first_sequence);
    fingerprints
}

/// A batch's message.
fn batch(random: &mut Random, number: u64, position: u64) -> Vec<u8> {
    let account = (random.below(3) == 0).then(|| samples::account(random));
    let digest = |random: &mut Random| Digest { sum: random.wide(), records: random.any() };
    let mark = (random.below(2) == 0).then(|| Mark {
        time: random.any(),
        accounts: accounts(random).into_iter().map(|account| (account, digest(random))).collect(),
    });
    let frames: Vec<u8> = (0..random.below(3)).flat_map(|_| samples::frame(random)).collect();
    let restart =
        (random.below(4) == 0).then(|| Restart { account: AccountId(random.any()), partitions: holdings(random) });
    let (position, anchor, bytes) = (Lsn(position), anchor(random), frames.len());
    let (frame_list, records, oldest) = (Vec::new(), 0, 0);
    let batch = Batch { number, account, restart, frames: frame_list, mark, position, anchor, bytes, records, oldest };
    [encode_batch(&batch, None), frames].concat()
}

/// A message of any kind.
pub fn sample_message(random: &mut Random) -> Vec<u8> {
    let message = match random.below(13) {
        0 => Message::Challenge(random.wide()),
        1 => Message::Hello(Hello {
            challenge: random.wide(),
            nonce: random.wide(),
            cluster: name(random),
            from: name(random),
            to: name(random),
            lane: Lane { log: LogId(random.wide()), number: random.any() as u32 },
            link: random.wide(),
        }),
        2 => {
            let (position, time, window) = (Lsn(random.any()), random.any(), random.any());
            let mut set = || accounts(random).into_iter().collect();
            let (bootstrap, dropped, unknown) = (set(), set(), set());
            let (anchor, loose) = (anchor(random), random.below(2) == 0);
            let standing = Standing { position, anchor, loose, bootstrap, dropped, unknown };
            Message::Welcome(Welcome { nonce: random.wide(), time, window, standing })
        }
        3 => Message::Refuse(RefusalKind::NoSpace, name(random)),
        4 => Message::Acknowledgement(Acknowledgement {
            number: random.any(),
            position: Lsn(random.any()),
            time: random.any(),
            differ: accounts(random),
        }),
        5 => Message::Ping(random.any()),
        6 => Message::Pong(random.any()),
        7 => {
            let after = (random.below(2) == 0).then(|| PartitionId(random.wide()));
            Message::Ask(Ask { account: AccountId(random.any()), after })
        }
        8 => Message::Holdings(holdings(random)),
        9 => {
            let void = (random.below(2) == 0).then(|| (Lsn(random.any()), anchor(random)));
            Message::Carry(Carry { accounts: accounts(random), void })
        }
        10 => {
            let (account, partition) = (AccountId(random.any()), PartitionId(random.wide()));
            Message::Trace(Trace { account, partition, from: random.any() })
        }
        11 => Message::Fingerprints(fingerprints(random)),
        _ => {
            let (number, position) = (random.any(), random.any());
            return batch(random, number, position);
        }
    };
    message.encode()
}

/// Batches one after the other, and pings between them.
pub fn sample_session(random: &mut Random) -> Vec<u8> {
    let (mut stream, mut position) = (Vec::new(), 0);
    for number in 1..2 + random.below(5) as u64 {
        position += random.any() % 10_000;
        stream.extend(batch(random, number, position));
        if random.below(3) == 0 {
            stream.extend(Message::Ping(random.any()).encode());
        }
    }
    stream.extend(Message::Pong(0).encode());
    stream
}
