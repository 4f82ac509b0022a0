//! The two pages at the start of a segment file: which segment it holds, and where that was sealed.

use super::codec::{
    CHECKSUM, at_least, at_most, check_stamp, expect, expect_zero, put, stamp, u16_at, u32_at, u64_at, u128_at,
};
use super::{ALIGN, DATA_START, FormatError, Result};
use crate::types::{DiskId, Epoch, LogId, SegmentId};

/// The most disks in one replica set.
pub const MAX_SET: usize = 8;

const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"MRDS");
const SEAL_MAGIC: u32 = u32::from_le_bytes(*b"MRDE");
const VERSION: u16 = 1;
const DISK: usize = 16;

const AT_MAGIC: usize = CHECKSUM;
const AT_VERSION: usize = 12;
const AT_COUNT: usize = 14;
const AT_RESERVED: usize = 15;
const AT_LOG: usize = 16;
const AT_EPOCH: usize = 32;
const AT_SEGMENT: usize = 40;
/// The file's size in a header, the sealed length in a seal.
const AT_BYTES: usize = 44;
const HEADER_SET: usize = 48;
const AT_BASE_SEQUENCE: usize = 48;
const AT_BASE_CHAIN: usize = 56;
const AT_NEXT_SEQUENCE: usize = 64;
const AT_END_CHAIN: usize = 72;
const AT_TRANSACTIONS: usize = 80;
const AT_RECORDS: usize = 88;
const SEAL_SET: usize = 96;

/// Which segment a file holds. Written, durably, before the segment's first block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The log.
    pub log: LogId,
    /// The segment.
    pub segment: SegmentId,
    /// The one epoch in which it is written.
    pub epoch: Epoch,
    /// The bytes of the file; a multiple of [`ALIGN`], at least [`DATA_START`].
    pub size: u32,
    /// The disks that it is written to: 1 to [`MAX_SET`], all different.
    pub set: Vec<DiskId>,
}

/// How a segment ended. Written to a copy's seal page once the segment is sealed and that copy is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The log.
    pub log: LogId,
    /// The segment.
    pub segment: SegmentId,
    /// The epoch in which it was written.
    pub epoch: Epoch,
    /// The bytes of the file up to the sealed end; a multiple of [`ALIGN`], at least [`DATA_START`] (an empty segment).
    pub length: u32,
    /// The sequence of its first block.
    pub base_sequence: u64,
    /// The checksum of the block before its first.
    pub base_chain: u64,
    /// The sequence after its last block.
    pub next_sequence: u64,
    /// The checksum of its last block, or `base_chain` if it has none.
    pub end_chain: u64,
    /// How many transactions (frames) it holds.
    pub transactions: u64,
    /// How many records they hold together.
    pub records: u64,
    /// The disks that committed it: 1 to [`MAX_SET`], all different.
    pub set: Vec<DiskId>,
}

impl SegmentHeader {
    /// The page at the start of the file.
    ///
    /// # Panics
    /// If a field breaks the limit that it documents.
    #[must_use]
    pub fn encode(&self) -> [u8; ALIGN] {
        assert_limits(check_set(&self.set).and_then(|()| check_bytes(self.size)));
        let mut page = [0; ALIGN];
        put_common(&mut page, HEADER_MAGIC, self.log, self.epoch, self.segment, self.size);
        put_set(&mut page, HEADER_SET, &self.set);
        stamp(&mut page);
        page
    }

    /// Reads the page at the start of `bytes`.
    ///
    /// # Errors
    /// When anything is wrong: too few bytes, magic, version, checksum, a field out of its limits, non-zero padding.
    pub fn decode(bytes: &[u8]) -> Result<SegmentHeader> {
        let page = check_page(bytes, HEADER_MAGIC)?;
        check_bytes(u32_at(page, AT_BYTES))?;
        Ok(SegmentHeader {
            log: LogId(u128_at(page, AT_LOG)),
            segment: SegmentId(u32_at(page, AT_SEGMENT)),
            epoch: Epoch(u64_at(page, AT_EPOCH)),
            size: u32_at(page, AT_BYTES),
            set: set_of(page, HEADER_SET)?,
        })
    }
}

impl Seal {
    /// The page behind the segment header's.
    ///
    /// # Panics
    /// If a field breaks the limit that it documents.
    #[must_use]
    pub fn encode(&self) -> [u8; ALIGN] {
        assert_limits(self.check());
        let mut page = [0; ALIGN];
        put_common(&mut page, SEAL_MAGIC, self.log, self.epoch, self.segment, self.length);
        put(&mut page, AT_BASE_SEQUENCE, &self.base_sequence.to_le_bytes());
        put(&mut page, AT_BASE_CHAIN, &self.base_chain.to_le_bytes());
        put(&mut page, AT_NEXT_SEQUENCE, &self.next_sequence.to_le_bytes());
        put(&mut page, AT_END_CHAIN, &self.end_chain.to_le_bytes());
        put(&mut page, AT_TRANSACTIONS, &self.transactions.to_le_bytes());
        put(&mut page, AT_RECORDS, &self.records.to_le_bytes());
        put_set(&mut page, SEAL_SET, &self.set);
        stamp(&mut page);
        page
    }

    /// Reads the page at the start of `bytes`.
    ///
    /// # Errors
    /// When anything is wrong: too few bytes, magic, version, checksum, a field out of its limits, non-zero padding.
    pub fn decode(bytes: &[u8]) -> Result<Seal> {
        let page = check_page(bytes, SEAL_MAGIC)?;
        let seal = Seal {
            log: LogId(u128_at(page, AT_LOG)),
            segment: SegmentId(u32_at(page, AT_SEGMENT)),
            epoch: Epoch(u64_at(page, AT_EPOCH)),
            length: u32_at(page, AT_BYTES),
            base_sequence: u64_at(page, AT_BASE_SEQUENCE),
            base_chain: u64_at(page, AT_BASE_CHAIN),
            next_sequence: u64_at(page, AT_NEXT_SEQUENCE),
            end_chain: u64_at(page, AT_END_CHAIN),
            transactions: u64_at(page, AT_TRANSACTIONS),
            records: u64_at(page, AT_RECORDS),
            set: set_of(page, SEAL_SET)?,
        };
        seal.check()?;
        Ok(seal)
    }

    /// The limits that the fields document. Seals also live in superblocks, so this is apart from the page.
    pub(super) fn check(&self) -> Result<()> {
        check_bytes(self.length)?;
        at_least(AT_NEXT_SEQUENCE, "seal: next sequence", self.base_sequence, self.next_sequence)?;
        check_set(&self.set)
    }
}

/// A replica set has 1 to [`MAX_SET`] disks, all different.
pub(super) fn check_set(set: &[DiskId]) -> Result<()> {
    at_least(AT_COUNT, "replica set: disks", 1, set.len() as u64)?;
    at_most(AT_COUNT, "replica set: disks", MAX_SET as u64, set.len() as u64)?;
    match (1..set.len()).find(|&i| set[..i].contains(&set[i])) {
        None => Ok(()),
        Some(i) => Err(FormatError { at: AT_COUNT, what: "replica set: a disk twice", expected: 1, found: i as u64 }),
    }
}

fn check_bytes(bytes: u32) -> Result<()> {
    at_least(AT_BYTES, "segment: length", u64::from(DATA_START), u64::from(bytes))?;
    expect(AT_BYTES, "segment: length is a multiple of 4096", 0, u64::from(bytes) % ALIGN as u64)
}

/// The engine itself made the value: a broken limit is a bug, not bad input.
fn assert_limits(checked: Result<()>) {
    if let Err(error) = checked {
        panic!("encoding a page: {error}");
    }
}

fn put_common(page: &mut [u8], magic: u32, log: LogId, epoch: Epoch, segment: SegmentId, bytes: u32) {
    put(page, AT_MAGIC, &magic.to_le_bytes());
    put(page, AT_VERSION, &VERSION.to_le_bytes());
    put(page, AT_LOG, &log.0.to_le_bytes());
    put(page, AT_EPOCH, &epoch.0.to_le_bytes());
    put(page, AT_SEGMENT, &segment.0.to_le_bytes());
    put(page, AT_BYTES, &bytes.to_le_bytes());
}

fn put_set(page: &mut [u8], at: usize, set: &[DiskId]) {
    page[AT_COUNT] = set.len() as u8;
    for (place, disk) in set.iter().enumerate() {
        put(page, at + DISK * place, &disk.0.to_le_bytes());
    }
}

fn check_page(bytes: &[u8], magic: u32) -> Result<&[u8]> {
    at_least(0, "segment page: bytes", ALIGN as u64, bytes.len() as u64)?;
    let page = &bytes[..ALIGN];
    expect(AT_MAGIC, "segment page: magic", u64::from(magic), u64::from(u32_at(page, AT_MAGIC)))?;
    expect(AT_VERSION, "segment page: version", u64::from(VERSION), u64::from(u16_at(page, AT_VERSION)))?;
    check_stamp(page, "segment page: checksum")?;
    expect_zero(page, AT_RESERVED..AT_LOG, "segment page: reserved")?;
    Ok(page)
}

/// The set at `at`, which is the page's last field: all behind it is zero.
fn set_of(page: &[u8], at: usize) -> Result<Vec<DiskId>> {
    let count = usize::from(page[AT_COUNT]);
    at_most(AT_COUNT, "replica set: disks", MAX_SET as u64, count as u64)?;
    let end = at + DISK * count;
    let set: Vec<DiskId> = page[at..end].chunks_exact(DISK).map(|disk| DiskId(u128_at(disk, 0))).collect();
    check_set(&set)?;
    expect_zero(page, end..ALIGN, "segment page: padding")?;
    Ok(set)
}
