//! The block: one group commit, identical on every disk of the set, chained to the block before it.

use xxhash_rust::xxh3::Xxh3;

use super::codec::{
    CHECKSUM, at_least, at_most, expect, expect_wide, expect_zero, put, u16_at, u32_at, u64_at, u128_at,
};
use super::frame::{Frame, peek_frame_len};
use super::{ALIGN, BLOCK_HEADER, DATA_START, Result};
use crate::types::{Epoch, LogId, SegmentId};

/// The most bytes of one block, padding included.
pub const MAX_BLOCK: usize = 64 << 20;

const MAGIC: u32 = u32::from_le_bytes(*b"MRDB");
const VERSION: u16 = 1;

const AT_MAGIC: usize = CHECKSUM;
const AT_VERSION: usize = 12;
const AT_RESERVED: usize = 14;
const AT_LOG: usize = 16;
const AT_EPOCH: usize = 32;
const AT_SEGMENT: usize = 40;
const AT_OFFSET: usize = 44;
const AT_SEQUENCE: usize = 48;
const AT_CHAIN: usize = 56;
const AT_COMMIT: usize = 64;
const AT_FRAMES: usize = 72;
const AT_LENGTH: usize = 76;
const AT_TAIL: usize = 80;

/// The identity of a block, and what it says of the log before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// The log it belongs to.
    pub log: LogId,
    /// The epoch of its writer.
    pub epoch: Epoch,
    /// The segment it belongs to.
    pub segment: SegmentId,
    /// Its byte offset in the segment file; a multiple of [`ALIGN`], at least [`DATA_START`].
    pub offset: u32,
    /// Its number in the log: dense, over all segments.
    pub sequence: u64,
    /// The checksum of the block before it, also across segments.
    pub chain: u64,
    /// The highest block sequence known to be committed when it was written.
    pub commit: u64,
    /// How many frames it holds; may be none.
    pub frames: u32,
    /// The bytes in use, header included, before padding.
    pub length: u32,
}

/// `length` rounded up to [`ALIGN`].
///
/// # Panics
/// In debug builds, if the result exceeds `usize`.
#[must_use]
pub fn padded(length: usize) -> usize {
    length.next_multiple_of(ALIGN)
}

/// Completes a block whose frames are already in place from [`BLOCK_HEADER`] to `header.length`: writes the header,
/// zeroes the padding, and returns the checksum, which the next block carries as its chain.
///
/// # Panics
/// If `block` is not `padded(header.length)` bytes, or the header says something that no decoder would accept.
pub fn finish_block(header: &BlockHeader, block: &mut [u8]) -> u64 {
    let length = header.length as usize;
    assert!((BLOCK_HEADER..=MAX_BLOCK).contains(&length), "a block has {BLOCK_HEADER} to {MAX_BLOCK} bytes");
    assert_eq!(block.len(), padded(length), "the buffer is the block with its padding");
    assert!(
        header.offset >= DATA_START && (header.offset as usize).is_multiple_of(ALIGN),
        "blocks start at multiples of {ALIGN} behind the seal page"
    );
    put(block, AT_MAGIC, &MAGIC.to_le_bytes());
    put(block, AT_VERSION, &VERSION.to_le_bytes());
    put(block, AT_RESERVED, &[0; AT_LOG - AT_RESERVED]);
    put(block, AT_LOG, &header.log.0.to_le_bytes());
    put(block, AT_EPOCH, &header.epoch.0.to_le_bytes());
    put(block, AT_SEGMENT, &header.segment.0.to_le_bytes());
    put(block, AT_OFFSET, &header.offset.to_le_bytes());
    put(block, AT_SEQUENCE, &header.sequence.to_le_bytes());
    put(block, AT_CHAIN, &header.chain.to_le_bytes());
    put(block, AT_COMMIT, &header.commit.to_le_bytes());
    put(block, AT_FRAMES, &header.frames.to_le_bytes());
    put(block, AT_LENGTH, &header.length.to_le_bytes());
    put(block, AT_TAIL, &[0; BLOCK_HEADER - AT_TAIL]);
    block[length..].fill(0);
    let mut hash = Hash::of(block);
    let mut at = BLOCK_HEADER;
    for _ in 0..header.frames {
        hash.add(&block[at..]);
        at += peek_frame_len(&block[at..length]).expect("the header says how many frames there are");
    }
    assert_eq!(at, length, "the frames fill the block");
    let checksum = hash.0.digest();
    put(block, 0, &checksum.to_le_bytes());
    checksum
}

/// The checksum of a block in the making: its header, then the checksum of each frame, which covers the frame. So each byte of
/// a payload is hashed once, when its frame is made or verified, and not again with its block.
struct Hash(Xxh3);

impl Hash {
    fn of(block: &[u8]) -> Hash {
        let mut hash = Xxh3::new();
        hash.update(&block[CHECKSUM..BLOCK_HEADER]);
        Hash(hash)
    }

    fn add(&mut self, frame: &[u8]) {
        self.0.update(&frame[..CHECKSUM]);
    }
}

/// A verified view of a block.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// Exactly the block, padding included.
    bytes: &'a [u8],
    header: BlockHeader,
    checksum: u64,
}

impl<'a> Block<'a> {
    /// Verifies the block at the start of `bytes`, which may be longer than it, and every frame in it. Whether it is
    /// the block that belongs here is [`Block::verify_at`]'s question.
    ///
    /// # Errors
    /// When anything is wrong: magic, version, length out of bounds, checksum, reserved bytes and padding, the number of
    /// frames, or any frame.
    pub fn verify(bytes: &'a [u8]) -> Result<Block<'a>> {
        at_least(0, "block: bytes for a header", BLOCK_HEADER as u64, bytes.len() as u64)?;
        expect(AT_MAGIC, "block: magic", u64::from(MAGIC), u64::from(u32_at(bytes, AT_MAGIC)))?;
        expect(AT_VERSION, "block: version", u64::from(VERSION), u64::from(u16_at(bytes, AT_VERSION)))?;
        let length = u32_at(bytes, AT_LENGTH) as usize;
        at_least(AT_LENGTH, "block: length", BLOCK_HEADER as u64, length as u64)?;
        at_most(AT_LENGTH, "block: length", MAX_BLOCK as u64, length as u64)?;
        let all = padded(length);
        at_most(AT_LENGTH, "block: length beyond the bytes given", bytes.len() as u64, all as u64)?;
        let bytes = &bytes[..all];
        let checksum = check_frames(&bytes[..length])?;
        expect_zero(bytes, AT_RESERVED..AT_LOG, "block: reserved")?;
        expect_zero(bytes, AT_TAIL..BLOCK_HEADER, "block: reserved")?;
        expect_zero(bytes, length..all, "block: padding")?;
        let header = header_of(bytes);
        at_least(AT_OFFSET, "block: offset", u64::from(DATA_START), u64::from(header.offset))?;
        expect(AT_OFFSET, "block: offset is a multiple of 4096", 0, u64::from(header.offset) % ALIGN as u64)?;
        Ok(Block { bytes, header, checksum })
    }

    /// Verifies the block as [`Block::verify`] does, and that it is the one that belongs to this place.
    ///
    /// # Errors
    /// As [`Block::verify`], or when log, epoch, segment or offset differ.
    pub fn verify_at(bytes: &'a [u8], log: LogId, epoch: Epoch, segment: SegmentId, offset: u32) -> Result<Block<'a>> {
        let block = Block::verify(bytes)?;
        let header = &block.header;
        expect_wide(AT_LOG, "block: log", log.0, header.log.0)?;
        expect(AT_SEGMENT, "block: segment", u64::from(segment.0), u64::from(header.segment.0))?;
        expect(AT_OFFSET, "block: offset", u64::from(offset), u64::from(header.offset))?;
        expect(AT_EPOCH, "block: epoch", epoch.0, header.epoch.0)?;
        Ok(block)
    }

    /// A view of a block that this process itself encoded, or verified before: nothing is checked again.
    ///
    /// # Panics
    /// When `bytes` are too few for the block's header or the length in it.
    #[must_use]
    pub fn trusted(bytes: &'a [u8]) -> Block<'a> {
        let header = header_of(bytes);
        let bytes = &bytes[..padded(header.length as usize)];
        Block { bytes, header, checksum: u64_at(bytes, 0) }
    }

    /// Its identity.
    #[must_use]
    pub fn header(&self) -> BlockHeader {
        self.header
    }

    /// Its checksum: what the next block carries as its chain.
    #[must_use]
    pub fn checksum(&self) -> u64 {
        self.checksum
    }

    /// The bytes it takes in the segment.
    #[must_use]
    pub fn padded_len(&self) -> usize {
        self.bytes.len()
    }

    /// Its frames in order, each with its byte offset in the block.
    #[must_use]
    pub fn frames(&self) -> Frames<'a> {
        Frames { bytes: &self.bytes[..self.header.length as usize], at: BLOCK_HEADER }
    }
}

/// Every frame parses, they fill the block exactly, they are as many as the header says, and the block's checksum is that of
/// its header and of theirs; returns it.
fn check_frames(bytes: &[u8]) -> Result<u64> {
    let mut hash = Hash::of(bytes);
    let mut at = BLOCK_HEADER;
    let mut count = 0;
    while at < bytes.len() {
        let frame = Frame::parse(&bytes[at..]).map_err(|mut error| {
            error.at += at;
            error
        })?;
        hash.add(frame.bytes());
        at += frame.len();
        count += 1;
    }
    let checksum = u64_at(bytes, 0);
    expect(0, "block: checksum", hash.0.digest(), checksum)?;
    expect(AT_FRAMES, "block: number of frames", count, u64::from(u32_at(bytes, AT_FRAMES)))?;
    Ok(checksum)
}

/// The frames of a block in order, each with its byte offset in the block.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Frames<'a> {
    type Item = (u32, Frame<'a>);

    fn next(&mut self) -> Option<(u32, Frame<'a>)> {
        let frame = Frame::trusted(&self.bytes[self.at..])?;
        let at = self.at as u32;
        self.at += frame.len();
        Some((at, frame))
    }
}

/// The padded length that a page claims, if it looks like the start of a block (magic, version, a length of at most
/// [`MAX_BLOCK`]): how much to read before [`Block::verify`]. Verifies nothing itself.
#[must_use]
pub fn peek_block_len(first_page: &[u8]) -> Option<usize> {
    let header = first_page.get(..BLOCK_HEADER)?;
    let length = u32_at(header, AT_LENGTH) as usize;
    let sane = u32_at(header, AT_MAGIC) == MAGIC
        && u16_at(header, AT_VERSION) == VERSION
        && (BLOCK_HEADER..=MAX_BLOCK).contains(&length);
    sane.then(|| padded(length))
}

fn header_of(bytes: &[u8]) -> BlockHeader {
    BlockHeader {
        log: LogId(u128_at(bytes, AT_LOG)),
        epoch: Epoch(u64_at(bytes, AT_EPOCH)),
        segment: SegmentId(u32_at(bytes, AT_SEGMENT)),
        offset: u32_at(bytes, AT_OFFSET),
        sequence: u64_at(bytes, AT_SEQUENCE),
        chain: u64_at(bytes, AT_CHAIN),
        commit: u64_at(bytes, AT_COMMIT),
        frames: u32_at(bytes, AT_FRAMES),
        length: u32_at(bytes, AT_LENGTH),
    }
}
