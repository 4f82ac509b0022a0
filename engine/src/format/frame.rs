//! The transaction frame: one partition's atomic group of records, independent of region and disk, never rewritten.

use bytes::Bytes;

use super::codec::{at_least, at_most, check_stamp, expect, expect_zero, put, stamp, u16_at, u32_at, u64_at, u128_at};
use super::{FormatError, Result};
use crate::types::{AccountId, ClientId, PartitionId};

/// The bytes of a frame before its record lengths.
pub const FRAME_HEADER: usize = 88;
/// The most records in one frame; the least is one.
pub const MAX_RECORDS: usize = 65_535;
/// The most bytes of one frame, padding included.
pub const MAX_FRAME: usize = u32::MAX as usize / 2;

const VERSION: u8 = 1;
/// Frames start and end at multiples of this.
const FRAME_ALIGN: usize = 8;
/// One length field a record, behind the header.
const LENGTH: usize = 4;

const AT_LENGTH: usize = 8;
const AT_COUNT: usize = 12;
const AT_KIND: usize = 14;
const AT_VERSION: usize = 15;
const AT_PARTITION: usize = 16;
const AT_CLIENT: usize = 32;
const AT_ACCOUNT: usize = 48;
const AT_EPOCH: usize = 56;
const AT_FIRST_SEQUENCE: usize = 64;
const AT_TIME: usize = 72;
const AT_CLIENT_SEQUENCE: usize = 80;

/// Whom a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Records of a caller's partition, for the state machine.
    Data = 0,
    /// A record of the system partition, for the engine itself.
    System = 1,
}

/// The identity of a transaction: everything but its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Whom it is for.
    pub kind: FrameKind,
    /// The account that owns the partition.
    pub account: AccountId,
    /// The partition.
    pub partition: PartitionId,
    /// The account's epoch when the transaction was admitted.
    pub epoch: u64,
    /// The partition sequence of the first record; record `i` has this plus `i`.
    pub first_sequence: u64,
    /// When it was admitted: nanoseconds since the Unix epoch, never below a mark of its log that comes before. What last sync time
    /// is measured in; no other rule depends on it.
    pub time: u64,
    /// The client that sent it, or [`ClientId::NONE`].
    pub client: ClientId,
    /// The client's own number for it; 0 without a client.
    pub client_sequence: u64,
}

/// The bytes that these records need as a frame, padding to 8 included; `None` if there are none, more than
/// [`MAX_RECORDS`], or the frame would exceed [`MAX_FRAME`].
#[must_use]
pub fn frame_len(records: &[Bytes]) -> Option<usize> {
    if records.is_empty() || records.len() > MAX_RECORDS {
        return None;
    }
    let mut length = FRAME_HEADER + LENGTH * records.len();
    for record in records {
        length = length.checked_add(record.len())?;
    }
    let length = length.checked_next_multiple_of(FRAME_ALIGN)?;
    (length <= MAX_FRAME).then_some(length)
}

/// Writes the frame: each payload is copied once, then all is hashed once. Returns its checksum.
///
/// # Panics
/// If `out` is not exactly [`frame_len`] bytes.
pub fn encode_frame(header: &FrameHeader, records: &[Bytes], out: &mut [u8]) -> u64 {
    let length = out.len();
    assert!(!records.is_empty() && records.len() <= MAX_RECORDS, "a frame holds 1 to {MAX_RECORDS} records");
    assert!(length <= MAX_FRAME, "a frame has at most {MAX_FRAME} bytes");
    let payloads = FRAME_HEADER + LENGTH * records.len();
    let (head, mut rest) = out.split_at_mut(payloads);
    put_header(header, length as u32, records.len() as u16, head);
    for (field, record) in head[FRAME_HEADER..].chunks_exact_mut(LENGTH).zip(records) {
        // A longer record does not fit into `out`: the split below panics.
        field.copy_from_slice(&(record.len() as u32).to_le_bytes());
        let (payload, after) = rest.split_at_mut(record.len());
        payload.copy_from_slice(record);
        rest = after;
    }
    assert!(rest.len() < FRAME_ALIGN && length.is_multiple_of(FRAME_ALIGN), "out is exactly frame_len bytes");
    rest.fill(0);
    stamp(out)
}

fn put_header(header: &FrameHeader, length: u32, count: u16, out: &mut [u8]) {
    put(out, AT_LENGTH, &length.to_le_bytes());
    put(out, AT_COUNT, &count.to_le_bytes());
    out[AT_KIND] = header.kind as u8;
    out[AT_VERSION] = VERSION;
    put(out, AT_PARTITION, &header.partition.0.to_le_bytes());
    put(out, AT_CLIENT, &header.client.0.to_le_bytes());
    put(out, AT_ACCOUNT, &header.account.0.to_le_bytes());
    put(out, AT_EPOCH, &header.epoch.to_le_bytes());
    put(out, AT_FIRST_SEQUENCE, &header.first_sequence.to_le_bytes());
    put(out, AT_TIME, &header.time.to_le_bytes());
    put(out, AT_CLIENT_SEQUENCE, &header.client_sequence.to_le_bytes());
}

/// A verified view of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Exactly the frame.
    bytes: &'a [u8],
    header: FrameHeader,
}

impl<'a> Frame<'a> {
    /// Verifies the frame at the start of `bytes`, which may be longer than it.
    ///
    /// # Errors
    /// When anything is wrong: version, kind, lengths out of bounds or not adding up, padding, checksum.
    pub fn parse(bytes: &'a [u8]) -> Result<Frame<'a>> {
        at_least(0, "frame: bytes for a header and one length", (FRAME_HEADER + LENGTH) as u64, bytes.len() as u64)?;
        expect(AT_VERSION, "frame: version", u64::from(VERSION), u64::from(bytes[AT_VERSION]))?;
        let length = u32_at(bytes, AT_LENGTH) as usize;
        let most = bytes.len().min(MAX_FRAME);
        at_most(AT_LENGTH, "frame: length beyond the bytes given", most as u64, length as u64)?;
        at_least(AT_LENGTH, "frame: length", (FRAME_HEADER + LENGTH) as u64, length as u64)?;
        expect(AT_LENGTH, "frame: length is a multiple of 8", 0, (length % FRAME_ALIGN) as u64)?;
        let bytes = &bytes[..length];
        check_stamp(bytes, "frame: checksum")?;
        check_records(bytes)?;
        Ok(Frame { bytes, header: header_of(bytes)? })
    }

    /// The view of a frame inside a block that was verified before: no second pass over the payload.
    pub(crate) fn trusted(bytes: &'a [u8]) -> Option<Frame<'a>> {
        let bytes = &bytes[..peek_frame_len(bytes)?];
        Some(Frame { bytes, header: header_of(bytes).ok()? })
    }

    /// Everything but the records.
    #[must_use]
    pub fn header(&self) -> FrameHeader {
        self.header
    }

    /// The stored checksum: over everything else in the frame.
    #[must_use]
    pub fn checksum(&self) -> u64 {
        u64_at(self.bytes, 0)
    }

    /// How many records; at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::from(u16_at(self.bytes, AT_COUNT))
    }

    /// The bytes of the whole frame, padding included.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a frame is never empty")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The frame as stored: what is shipped to another region, unchanged.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Record `index`, or `None` past the last. Walks the lengths before it: for all records use [`Frame::records`].
    #[must_use]
    pub fn record(&self, index: usize) -> Option<&'a [u8]> {
        self.records().nth(index)
    }

    /// The records in order.
    #[must_use]
    pub fn records(&self) -> Records<'a> {
        let (lengths, payloads) = self.bytes[FRAME_HEADER..].split_at(LENGTH * self.count());
        Records { lengths, payloads }
    }
}

/// The records of a frame, in order.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    lengths: &'a [u8],
    payloads: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, lengths) = self.lengths.split_first_chunk::<LENGTH>()?;
        let (record, payloads) = self.payloads.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        *self = Records { lengths, payloads };
        Some(record)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let count = self.lengths.len() / LENGTH;
        (count, Some(count))
    }
}

impl ExactSizeIterator for Records<'_> {}

/// The length that the frame at the start of `bytes` claims, if a frame of that length fits into `bytes`. For walking
/// a block that was verified; verifies nothing itself.
#[must_use]
pub fn peek_frame_len(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_le_bytes(*bytes.get(AT_LENGTH..)?.first_chunk()?) as usize;
    let sane = length > FRAME_HEADER && length.is_multiple_of(FRAME_ALIGN) && length <= bytes.len().min(MAX_FRAME);
    sane.then_some(length)
}

/// The record count is at least one, and the lengths add up to the frame's, but for padding of zeros.
fn check_records(bytes: &[u8]) -> Result<()> {
    let count = usize::from(u16_at(bytes, AT_COUNT));
    at_least(AT_COUNT, "frame: records", 1, count as u64)?;
    let payloads = FRAME_HEADER + LENGTH * count;
    at_most(AT_COUNT, "frame: bytes of record lengths", bytes.len() as u64, payloads as u64)?;
    // At most 65,535 lengths below 2^32: the sum fits 64 bits.
    let lengths = bytes[FRAME_HEADER..payloads].chunks_exact(LENGTH);
    let end = payloads as u64 + lengths.map(|length| u64::from(u32_at(length, 0))).sum::<u64>();
    let padded = end.next_multiple_of(FRAME_ALIGN as u64);
    expect(FRAME_HEADER, "frame: sum of the record lengths", bytes.len() as u64, padded)?;
    expect_zero(bytes, end as usize..bytes.len(), "frame: padding")
}

fn header_of(bytes: &[u8]) -> Result<FrameHeader> {
    let kind = match bytes[AT_KIND] {
        0 => FrameKind::Data,
        1 => FrameKind::System,
        other => return Err(FormatError { at: AT_KIND, what: "frame: kind", expected: 1, found: u64::from(other) }),
    };
    Ok(FrameHeader {
        kind,
        account: AccountId(u64_at(bytes, AT_ACCOUNT)),
        partition: PartitionId(u128_at(bytes, AT_PARTITION)),
        epoch: u64_at(bytes, AT_EPOCH),
        first_sequence: u64_at(bytes, AT_FIRST_SEQUENCE),
        time: u64_at(bytes, AT_TIME),
        client: ClientId(u128_at(bytes, AT_CLIENT)),
        client_sequence: u64_at(bytes, AT_CLIENT_SEQUENCE),
    })
}
