//! What the archived structures share: rkyv behind a checksum, and the envelope of the files of derived state.
//!
//! The checksum says that the bytes are those that were written; rkyv's checked access says that they can be read without
//! leaving the payload. Neither replaces the other. Only private mirror types are archived, plain integers and strings,
//! so that a change of a public type cannot change the bytes on disk by accident.

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Error;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use super::codec::{
    CHECKSUM, at_least, at_most, check_stamp, expect, expect_zero, put, stamp, u16_at, u32_at, u64_at, u128_at,
};
use super::{FormatError, Result, padded};
use crate::types::{LogId, SegmentId};

/// The bytes before the payload. A multiple of rkyv's alignment, so that a payload in an aligned buffer is aligned.
pub(super) const ENVELOPE: usize = 64;
const PAYLOAD_ALIGN: usize = 16;

/// A value that rkyv can write behind an envelope.
pub(super) trait Store: for<'a> Serialize<HighSerializer<Vec<u8>, ArenaHandle<'a>, Error>> {}
impl<T> Store for T where T: for<'a> Serialize<HighSerializer<Vec<u8>, ArenaHandle<'a>, Error>> {}

/// `ENVELOPE` zero bytes, and the archived value.
pub(super) fn archive(value: &impl Store) -> Vec<u8> {
    rkyv::api::high::to_bytes_in::<_, Error>(value, vec![0; ENVELOPE])
        .expect("archiving plain data into memory fails only beyond 2 GiB, which no structure reaches")
}

/// Reads an archived value. `payload` starts at byte `ENVELOPE` of what was given to the decoder.
pub(super) fn unarchive<T>(payload: &[u8], what: &'static str) -> Result<T>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, Error>> + Deserialize<T, HighDeserializer<Error>>,
{
    let read = if payload.as_ptr().align_offset(PAYLOAD_ALIGN) == 0 {
        rkyv::from_bytes::<T, Error>(payload)
    } else {
        let mut aligned = AlignedVec::<PAYLOAD_ALIGN>::with_capacity(payload.len());
        aligned.extend_from_slice(payload);
        rkyv::from_bytes::<T, Error>(&aligned)
    };
    read.map_err(|_| FormatError { at: ENVELOPE, what, expected: 0, found: payload.len() as u64 })
}

const MAGIC: u32 = u32::from_le_bytes(*b"MRDX");
const VERSION: u16 = 4;

const AT_MAGIC: usize = CHECKSUM;
const AT_VERSION: usize = 12;
const AT_KIND: usize = 14;
const AT_LOG: usize = 16;
const AT_SEGMENT: usize = 32;
const AT_RESERVED: usize = 36;
const AT_LENGTH: usize = 40;
const AT_TAIL: usize = 48;

/// What a file of derived state holds.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Index = 1,
    Checkpoint = 2,
}

/// A whole file of derived state: envelope, archived value, zero padding to a multiple of 4096.
pub(super) fn seal_file(kind: Kind, log: LogId, segment: SegmentId, value: &impl Store) -> Vec<u8> {
    let mut file = archive(value);
    let length = (file.len() - ENVELOPE) as u64;
    file.resize(padded(file.len()), 0);
    put(&mut file, AT_MAGIC, &MAGIC.to_le_bytes());
    put(&mut file, AT_VERSION, &VERSION.to_le_bytes());
    put(&mut file, AT_KIND, &(kind as u16).to_le_bytes());
    put(&mut file, AT_LOG, &log.0.to_le_bytes());
    put(&mut file, AT_SEGMENT, &segment.0.to_le_bytes());
    put(&mut file, AT_LENGTH, &length.to_le_bytes());
    stamp(&mut file);
    file
}

/// The length of the file at the start of `bytes`, as its envelope claims; verifies nothing.
pub(super) fn peek_file_len(bytes: &[u8]) -> Option<usize> {
    let length = u64::from_le_bytes(*bytes.get(AT_LENGTH..)?.first_chunk()?);
    let end = usize::try_from(length).ok()?.checked_add(ENVELOPE)?;
    end.checked_next_multiple_of(super::ALIGN)
}

/// What [`open_file`] found.
pub(super) struct Opened<'a> {
    pub(super) log: LogId,
    pub(super) segment: SegmentId,
    pub(super) payload: &'a [u8],
}

/// Verifies the envelope, checksum and padding of a file of derived state. `bytes` may be longer than the file.
pub(super) fn open_file(bytes: &[u8], kind: Kind) -> Result<Opened<'_>> {
    at_least(0, "derived file: bytes for an envelope", ENVELOPE as u64, bytes.len() as u64)?;
    expect(AT_MAGIC, "derived file: magic", u64::from(MAGIC), u64::from(u32_at(bytes, AT_MAGIC)))?;
    expect(AT_VERSION, "derived file: version", u64::from(VERSION), u64::from(u16_at(bytes, AT_VERSION)))?;
    expect(AT_KIND, "derived file: kind", kind as u64, u64::from(u16_at(bytes, AT_KIND)))?;
    let most = (bytes.len() - ENVELOPE) as u64;
    let length = u64_at(bytes, AT_LENGTH);
    at_most(AT_LENGTH, "derived file: length beyond the bytes given", most, length)?;
    let end = ENVELOPE + length as usize;
    at_most(AT_LENGTH, "derived file: padding beyond the bytes given", bytes.len() as u64, padded(end) as u64)?;
    let file = &bytes[..padded(end)];
    check_stamp(file, "derived file: checksum")?;
    expect_zero(file, AT_RESERVED..AT_LENGTH, "derived file: reserved")?;
    expect_zero(file, AT_TAIL..ENVELOPE, "derived file: reserved")?;
    expect_zero(file, end..file.len(), "derived file: padding")?;
    Ok(Opened {
        log: LogId(u128_at(file, AT_LOG)),
        segment: SegmentId(u32_at(file, AT_SEGMENT)),
        payload: &file[ENVELOPE..end],
    })
}
