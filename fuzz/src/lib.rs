//! Fuzz targets for every decoder of the format: plain functions, run by libFuzzer (`cargo +nightly fuzz run block`), by
//! the binaries on stable (`cargo run -p meridian-fuzz --bin block`), and by the smoke test in CI.
//!
//! A target panics if a decoder breaks its promise: it reads the input as it is, where only what an encoder could have
//! written may be accepted, and again with its checksums made right, as a hostile writer would, so that the
//! checks behind the checksum are reached.

pub mod command;
pub mod mutate;
pub mod samples;
pub mod wire;

use bytes::Bytes;
use meridian::format::{
    ALIGN, BLOCK_HEADER, Block, Checkpoint, Frame, IndexPage, SUPERBLOCK_SLOT, Seal, SegmentHeader, SegmentIndex,
    Superblock, SystemRecord, encode_account, encode_frame, encode_mark, encode_progress, encode_restart, finish_block,
    frame_len, padded, peek_block_len, peek_frame_len,
};
use xxhash_rust::xxh3::xxh3_64;

use mutate::Random;

/// A fuzz target.
pub struct Target {
    /// The name of its binary.
    pub name: &'static str,
    /// Feeds it one input; panics if a decoder breaks its promise.
    pub run: fn(&[u8]) -> Verdict,
    /// A valid encoding, drawn from the generator.
    pub sample: fn(&mut Random) -> Vec<u8>,
}

/// What the decoders said of an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Accepted as it is.
    pub accepted: bool,
    /// Accepted with its checksums made right.
    pub accepted_restamped: bool,
}

/// Blocks, and the frames in them.
pub const BLOCK: Target = Target { name: "block", run: block, sample: samples::block };
/// Transaction frames.
pub const FRAME: Target = Target { name: "frame", run: frame, sample: samples::frame };
/// Superblock slots.
pub const SUPERBLOCK: Target = Target { name: "superblock", run: superblock, sample: samples::superblock };
/// Segment headers and seals.
pub const SEGMENT: Target = Target { name: "segment", run: segment, sample: samples::segment };
/// Indexes of sealed segments.
pub const INDEX: Target = Target { name: "index", run: index, sample: samples::index };
/// System records: accounts, marks, progress.
pub const SYSTEM: Target = Target { name: "system", run: system, sample: samples::system_record };
/// Messages of the geo link.
pub const MESSAGE: Target = Target { name: "message", run: wire::message, sample: wire::sample_message };
/// The state machines of a session, fed with whatever decodes.
pub const SESSION: Target = Target { name: "session", run: wire::session, sample: wire::sample_session };
/// Checkpoints.
pub const CHECKPOINT: Target = Target { name: "checkpoint", run: checkpoint, sample: samples::checkpoint };
/// All of them.
pub const TARGETS: [Target; 9] = [BLOCK, FRAME, SUPERBLOCK, SEGMENT, INDEX, SYSTEM, CHECKPOINT, MESSAGE, SESSION];

/// Runs a check on the input as it is, then with its checksums made right.
fn both(data: &[u8], restamp: fn(&mut Vec<u8>), check: fn(&[u8]) -> bool) -> Verdict {
    let accepted = check(data);
    let mut stamped = data.to_vec();
    restamp(&mut stamped);
    Verdict { accepted, accepted_restamped: check(&stamped) }
}

fn stamp(bytes: &mut [u8]) {
    if let Some((checksum, rest)) = bytes.split_first_chunk_mut::<8>() {
        *checksum = xxh3_64(rest).to_le_bytes();
    }
}

/// Target: a block and the frames in it.
pub fn block(data: &[u8]) -> Verdict {
    both(
        data,
        |bytes| restamp_block(bytes),
        |bytes| {
            let Ok(block) = Block::verify(bytes) else { return false };
            let header = block.header();
            assert_eq!(peek_block_len(bytes), Some(block.padded_len()));
            assert_eq!(block.frames().count(), header.frames as usize);
            let mut again = bytes[..block.padded_len()].to_vec();
            again[..BLOCK_HEADER].fill(0xA5);
            assert_eq!(finish_block(&header, &mut again), block.checksum());
            assert_eq!(again, bytes[..block.padded_len()], "a block has one encoding");
            for (at, inner) in block.frames() {
                assert_eq!(inner.bytes(), &bytes[at as usize..at as usize + inner.len()]);
                check_frame(&inner);
            }
            let elsewhere = Block::verify_at(bytes, header.log, header.epoch, header.segment, header.offset ^ 4096);
            assert!(elsewhere.is_err(), "a block verifies in its own place only");
            Block::verify_at(bytes, header.log, header.epoch, header.segment, header.offset).is_ok()
        },
    )
}

fn restamp_block(bytes: &mut [u8]) {
    let Some(length) = peek_block_len(bytes) else { return };
    if length > bytes.len() {
        return;
    }
    // A block's checksum is that of its header and of its frames' checksums.
    let mut covered = bytes[8..BLOCK_HEADER].to_vec();
    let mut at = BLOCK_HEADER;
    while let Some(frame) = bytes.get(at..length).and_then(peek_frame_len) {
        stamp(&mut bytes[at..at + frame]);
        covered.extend_from_slice(&bytes[at..at + 8]);
        at += frame;
    }
    bytes[..8].copy_from_slice(&xxh3_64(&covered).to_le_bytes());
}

/// Target: a transaction frame.
pub fn frame(data: &[u8]) -> Verdict {
    both(
        data,
        |bytes| restamp_frame(bytes),
        |bytes| match Frame::parse(bytes) {
            Ok(frame) => {
                check_frame(&frame);
                assert_eq!(frame.bytes(), &bytes[..frame.len()]);
                true
            }
            Err(_) => false,
        },
    )
}

fn check_frame(frame: &Frame<'_>) {
    let records: Vec<Bytes> = frame.records().map(Bytes::copy_from_slice).collect();
    assert_eq!(records.len(), frame.count());
    assert_eq!(frame.record(records.len()), None);
    assert_eq!(frame_len(&records), Some(frame.len()));
    let mut again = vec![0xA5; frame.len()];
    encode_frame(&frame.header(), &records, &mut again);
    assert_eq!(again, frame.bytes(), "a frame has one encoding");
}

/// Target: a superblock slot.
pub fn superblock(data: &[u8]) -> Verdict {
    let restamp = |bytes: &mut Vec<u8>| {
        bytes.resize(SUPERBLOCK_SLOT, 0);
        stamp(bytes);
    };
    both(data, restamp, |bytes| match Superblock::decode(bytes) {
        Ok(superblock) => {
            let again = superblock.encode().expect("what fitted into a slot fits again");
            assert_eq!(Superblock::decode(&again), Ok(superblock));
            true
        }
        Err(_) => false,
    })
}

/// Target: a segment header page and a seal page.
pub fn segment(data: &[u8]) -> Verdict {
    let restamp = |bytes: &mut Vec<u8>| {
        bytes.resize(ALIGN, 0);
        stamp(bytes);
    };
    both(data, restamp, |bytes| {
        let header = SegmentHeader::decode(bytes);
        let seal = Seal::decode(bytes);
        assert!(header.is_err() || seal.is_err(), "a page is one or the other");
        if let Ok(header) = &header {
            assert_eq!(header.encode(), bytes[..ALIGN], "a segment header has one encoding");
        }
        if let Ok(seal) = &seal {
            assert_eq!(seal.encode(), bytes[..ALIGN], "a seal has one encoding");
        }
        header.is_ok() || seal.is_ok()
    })
}

/// Target: the index of a sealed segment, and its pages without their checksums.
pub fn index(data: &[u8]) -> Verdict {
    for page in data.chunks(ALIGN).skip(1) {
        if let Ok(page) = IndexPage::decode(page) {
            for held in &page.partitions {
                let found = page.postings(held.account, held.partition, held.first_sequence, usize::MAX);
                assert!(found.len() <= held.postings as usize);
            }
        }
    }
    both(data, restamp_derived, |bytes| match SegmentIndex::decode(bytes) {
        Ok(index) => {
            assert_eq!(SegmentIndex::decode(&index.encode()), Ok(index));
            true
        }
        Err(_) => false,
    })
}

fn restamp_frame(bytes: &mut [u8]) {
    if let Some(length) = peek_frame_len(bytes) {
        stamp(&mut bytes[..length]);
    }
}

/// Target: a system record in its frame.
pub fn system(data: &[u8]) -> Verdict {
    both(
        data,
        |bytes| restamp_frame(bytes),
        |bytes| {
            let Ok(frame) = Frame::parse(bytes) else { return false };
            let record = frame.record(0).unwrap_or_default();
            let Ok(decoded) = SystemRecord::decode(record) else { return false };
            let again = match decoded {
                SystemRecord::Account(account) => encode_account(&account),
                SystemRecord::Mark(accounts) => encode_mark(&accounts),
                SystemRecord::Progress(progress) => encode_progress(&progress),
                SystemRecord::Restart(restart) => encode_restart(&restart),
            };
            assert_eq!(again, record, "a system record has one encoding");
            true
        },
    )
}

/// Target: a checkpoint.
pub fn checkpoint(data: &[u8]) -> Verdict {
    both(data, restamp_derived, |bytes| match Checkpoint::decode(bytes) {
        Ok(checkpoint) => {
            assert_eq!(Checkpoint::decode(&checkpoint.encode()), Ok(checkpoint));
            true
        }
        Err(_) => false,
    })
}

/// Files of derived state give their payload's length at byte 40, behind a 64-byte envelope (docs/FORMAT.md).
fn restamp_derived(bytes: &mut Vec<u8>) {
    let Some(length) = bytes.get(40..).and_then(|rest| rest.first_chunk::<8>()) else { return };
    let length = u64::from_le_bytes(*length);
    if length > bytes.len() as u64 {
        return;
    }
    let file = padded(64 + length as usize);
    bytes.resize(bytes.len().max(file), 0);
    stamp(&mut bytes[..file]);
}
