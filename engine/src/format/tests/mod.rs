//! Tests of the format: samples of every structure, and the checks that all of them must pass.

mod blocks;
mod derived;
mod hostile;
mod index_pages;
mod pages;

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::account::{Account, Contract};
use crate::gate::Gate;
use crate::geo::{Anchor, Digest, Holding, Lane, Progress, Restart};
use crate::types::{AccountId, Ack, ClientId, DiskId, Epoch, LogId, Lsn, PartitionId, Role, SegmentId};

const LOG: LogId = LogId(0x1111_2222_3333_4444_5555_6666_7777_8888);

fn frame_header(first_sequence: u64) -> FrameHeader {
    FrameHeader {
        kind: FrameKind::Data,
        account: AccountId(7),
        partition: PartitionId::named("EWR/UA"),
        epoch: 3,
        first_sequence,
        time: 1_700_000_000_000_000,
        client: ClientId(99),
        client_sequence: 12,
    }
}

fn records(lengths: &[usize]) -> Vec<Bytes> {
    let fill = |(i, &length): (usize, &usize)| Bytes::from(vec![i as u8 + 1; length]);
    lengths.iter().enumerate().map(fill).collect()
}

fn encoded_frame(header: &FrameHeader, records: &[Bytes]) -> Vec<u8> {
    // The bytes before must not matter: buffers are reused.
    let mut out = vec![0xA5; frame_len(records).expect("a frame's worth of records")];
    encode_frame(header, records, &mut out);
    out
}

fn block_header(frames: u32, length: usize) -> BlockHeader {
    BlockHeader {
        log: LOG,
        epoch: Epoch(5),
        segment: SegmentId(17),
        offset: DATA_START,
        sequence: 1234,
        chain: 0xDEAD_BEEF_0BAD_F00D,
        commit: 1230,
        frames,
        length: length as u32,
    }
}

fn encoded_block(frames: &[Vec<u8>]) -> Vec<u8> {
    let length = BLOCK_HEADER + frames.iter().map(Vec::len).sum::<usize>();
    let mut block = vec![0xA5; padded(length)];
    let mut at = BLOCK_HEADER;
    for frame in frames {
        block[at..at + frame.len()].copy_from_slice(frame);
        at += frame.len();
    }
    finish_block(&block_header(frames.len() as u32, length), &mut block);
    block
}

fn sample_block() -> Vec<u8> {
    encoded_block(&[
        encoded_frame(&frame_header(100), &records(&[5, 0, 130])),
        encoded_frame(&frame_header(103), &records(&[64])),
    ])
}

fn segment_header() -> SegmentHeader {
    SegmentHeader { log: LOG, segment: SegmentId(17), epoch: Epoch(5), size: 1 << 20, set: disks(3) }
}

fn seal(segment: u32) -> Seal {
    Seal {
        log: LOG,
        segment: SegmentId(segment),
        epoch: Epoch(5),
        length: 64 * 1024,
        base_sequence: 1200,
        base_chain: 1,
        next_sequence: 1210,
        end_chain: 2,
        transactions: 40,
        records: 77,
        set: disks(3),
    }
}

fn disks(count: u128) -> Vec<DiskId> {
    (1..=count).map(DiskId).collect()
}

fn superblock() -> Superblock {
    let member = |disk| Member {
        disk,
        fault_domain: format!("rack-{}", disk.0),
        upgrade_domain: "a long name that does not fit inline".into(),
        zone: String::new(),
    };
    Superblock {
        log: LOG,
        disk: DiskId(2),
        generation: 41,
        promised: Epoch(6),
        sound: Epoch(5),
        members: disks(4).into_iter().map(member).collect(),
        epochs: vec![
            EpochEntry { epoch: Epoch(4), first_segment: SegmentId(1), set: disks(3) },
            EpochEntry { epoch: Epoch(6), first_segment: SegmentId(18), set: disks(2) },
        ],
        seals: vec![seal(16), seal(17)],
        trim: SegmentId(9),
        flushed: Lsn::new(SegmentId(17), 8192),
        committed: 1209,
        clean: true,
        segment_size: 1 << 20,
    }
}

fn client_commit(client: u128) -> ClientCommit {
    let lsn = Lsn::new(SegmentId(17), 8192 + 128);
    let outcome = CommitOutcome { sequence: 12, partition: PartitionId(2), lsn, first_sequence: 100, records: 3 };
    ClientCommit { account: AccountId(7), client: ClientId(client), outcome }
}

fn index() -> SegmentIndex {
    let partition = |account, partition, first_posting, postings| IndexPartition {
        account: AccountId(account),
        partition: PartitionId(partition),
        first_sequence: 100,
        next_sequence: 200,
        first_posting,
        postings,
        digest: Digest { sum: u128::MAX - 5, records: 100 },
    };
    let posting = |offset, sequence| Posting { offset, sequence };
    SegmentIndex {
        log: LOG,
        segment: SegmentId(17),
        end_chain: 1 << 60,
        partitions: vec![partition(1, 9, 0, 2), partition(7, 1, 2, 1), partition(7, 2, 3, 0)],
        postings: vec![posting(8320, 100), posting(9000, 103), posting(8500, 199)],
        clients: vec![client_commit(1), client_commit(2)],
        system: system_state(),
    }
}

fn checkpoint() -> Checkpoint {
    let partition = |partition| PartitionRecord {
        account: AccountId(7),
        partition: PartitionId(partition),
        next_sequence: 8,
        digest: Digest { sum: 1 << 100, records: 8 },
        restarted: SegmentId(3),
    };
    Checkpoint {
        log: LOG,
        next_segment: SegmentId(18),
        chain: 1 << 59,
        system: system_state(),
        partitions: vec![partition(1), partition(2)],
        clients: vec![client_commit(3)],
    }
}

fn account(name: &str) -> Account {
    let contract = Some(Contract { most: Duration::from_secs(60), then: Gate::Throttle });
    let (role, read_access) = (Role::Secondary, false);
    let lane = Some(Lane { log: LOG, number: 3 });
    Account { id: AccountId(7), name: name.into(), epoch: 2, ack: Ack::All, role, read_access, contract, lane }
}

fn progress() -> Progress {
    let lane = Lane { log: LogId(1 << 90), number: 3 };
    let (anchor, held) = (Anchor { block: Lsn(4096), checksum: 1 << 60 }, Digest { sum: 1 << 98, records: 6 });
    Progress { lane, position: Lsn(8192), anchor, time: 1_700_000_000_000_000_000, held }
}

fn restart() -> Restart {
    let digest = Digest { sum: 1 << 99, records: 4 };
    Restart { account: AccountId(7), partitions: vec![Holding { partition: PartitionId(1), next_sequence: 4, digest }] }
}

fn system_state() -> SystemState {
    SystemState {
        accounts: vec![account("flights"), account("an account whose name is long")],
        progress: vec![(progress(), Lsn(77))],
        restarts: vec![restart()],
        time: 1_700_000_000_000_000_001,
    }
}

fn marked() -> Vec<(AccountId, Digest)> {
    vec![(AccountId(3), Digest::default()), (AccountId(9), Digest { sum: 1 << 101, records: 5 })]
}

/// Every structure: its name, a valid encoding, and its decoder.
type Decode = fn(&[u8]) -> Result<()>;
fn structures() -> Vec<(&'static str, Vec<u8>, Decode)> {
    vec![
        ("frame", encoded_frame(&frame_header(100), &records(&[5, 0, 130])), |b| Frame::parse(b).map(drop)),
        ("block", sample_block(), |b| Block::verify(b).map(drop)),
        ("segment header", segment_header().encode().to_vec(), |b| SegmentHeader::decode(b).map(drop)),
        ("seal", seal(17).encode().to_vec(), |b| Seal::decode(b).map(drop)),
        ("superblock", superblock().encode().expect("it fits"), |b| Superblock::decode(b).map(drop)),
        ("index", index().encode(), |b| SegmentIndex::decode(b).map(drop)),
        ("checkpoint", checkpoint().encode(), |b| Checkpoint::decode(b).map(drop)),
    ]
}

/// Encodes a changed copy of a structure with a right checksum: what the checks behind the checksum are tested with.
fn restamped(mut bytes: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut bytes);
    codec::stamp(&mut bytes);
    bytes
}

/// As [`restamped`], for a block: its checksum is that of its header and of what stand in the places of its frames' checksums.
fn restamped_block(mut block: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let frames: Vec<usize> = Block::trusted(&block).frames().map(|(at, _)| at as usize).collect();
    change(&mut block);
    let covered: Vec<u8> = frames.into_iter().flat_map(|at| block[at..at + 8].to_vec()).collect();
    let checksum = xxh3_64(&[&block[8..BLOCK_HEADER], &covered].concat());
    block[..8].copy_from_slice(&checksum.to_le_bytes());
    block
}

#[track_caller]
fn refused<T: Debug>(result: Result<T>, what: &str) {
    let error = result.expect_err(what);
    assert!(error.what.contains(what), "refused for another reason: {error}");
}

#[test]
fn every_structure_verifies_as_encoded_and_with_anything_behind_it() {
    for (name, mut bytes, decode) in structures() {
        decode(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        bytes.extend_from_slice(&[0xFF; 4096]);
        decode(&bytes).unwrap_or_else(|error| panic!("{name} with bytes behind it: {error}"));
    }
}

#[test]
fn every_single_bit_flip_is_detected() {
    for (name, mut bytes, decode) in structures() {
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes).is_err(), "{name}: bit {bit} flipped unseen");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(decode(&bytes).is_ok(), "{name}: the flips were undone");
    }
}

#[test]
fn every_truncation_is_detected() {
    for (name, bytes, decode) in structures() {
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{name}: cut to {length} bytes unseen");
        }
    }
}

#[test]
fn no_structure_passes_for_another() {
    let all = structures();
    for (name, bytes, _) in &all {
        for (other, _, decode) in all.iter().filter(|(other, ..)| other != name) {
            assert!(decode(bytes).is_err(), "a {name} was read as a {other}");
        }
    }
}

#[test]
fn the_error_names_the_field_and_shows_both_values() {
    let error = FormatError { at: 8, what: "block: magic", expected: 0x10, found: 0 };
    assert_eq!(error.to_string(), "block: magic at byte 8: expected 0x10, found 0x0");
}

/// The encodings of the samples above, hashed. A change here is a change of the bytes on disk: it needs a new version
/// of the structure, a decoder that still reads the old one, and a line in docs/FORMAT.md.
#[test]
fn the_bytes_of_this_version_have_not_changed() {
    let found: Vec<(&str, u64)> = structures().iter().map(|(name, bytes, _)| (*name, xxh3_64(bytes))).collect();
    let golden = [
        ("frame", 0x85C5_D3CA_4C87_E624),
        ("block", 0x4AB3_C419_A95F_0647),
        ("segment header", 0xF50D_4C8C_9A8F_8F0D),
        ("seal", 0x0958_1FDA_4197_6DDE),
        ("superblock", 0x540F_4486_1700_904A),
        ("index", 0x0313_05C7_F39B_26EF),
        ("checkpoint", 0xBBDE_C1EE_CC32_4BE4),
    ];
    assert_eq!(found, golden);
}
