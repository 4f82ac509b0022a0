//! Little-endian fields and the checks that all structures share.

use xxhash_rust::xxh3::xxh3_64;

use super::{FormatError, Result};

/// Every structure starts with its checksum; it covers what follows.
pub(super) const CHECKSUM: usize = 8;

const BOUNDS: &str = "the caller checked the structure's length";

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*bytes[at..].first_chunk().expect(BOUNDS))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect(BOUNDS))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect(BOUNDS))
}

pub(super) fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(*bytes[at..].first_chunk().expect(BOUNDS))
}

/// Copies `field` to offset `at`.
pub(super) fn put(out: &mut [u8], at: usize, field: &[u8]) {
    out[at..at + field.len()].copy_from_slice(field);
}

/// Computes the checksum of `bytes` (all but its first 8 bytes), stores it there, and returns it.
pub(super) fn stamp(bytes: &mut [u8]) -> u64 {
    let checksum = xxh3_64(&bytes[CHECKSUM..]);
    put(bytes, 0, &checksum.to_le_bytes());
    checksum
}

/// Compares the stored checksum with the bytes; returns it.
pub(super) fn check_stamp(bytes: &[u8], what: &'static str) -> Result<u64> {
    let stored = u64_at(bytes, 0);
    let computed = xxh3_64(&bytes[CHECKSUM..]);
    expect(0, what, computed, stored)?;
    Ok(stored)
}

/// An error at `at` unless `expected == found`.
pub(super) fn expect(at: usize, what: &'static str, expected: u64, found: u64) -> Result<()> {
    if expected == found { Ok(()) } else { Err(FormatError { at, what, expected, found }) }
}

/// As [`expect`] for identities; the error shows their low 64 bits.
pub(super) fn expect_wide(at: usize, what: &'static str, expected: u128, found: u128) -> Result<()> {
    if expected == found {
        Ok(())
    } else {
        Err(FormatError { at, what, expected: expected as u64, found: found as u64 })
    }
}

/// An error at `at` unless `found >= least`.
pub(super) fn at_least(at: usize, what: &'static str, least: u64, found: u64) -> Result<()> {
    if found >= least { Ok(()) } else { Err(FormatError { at, what, expected: least, found }) }
}

/// An error at `at` unless `found <= most`.
pub(super) fn at_most(at: usize, what: &'static str, most: u64, found: u64) -> Result<()> {
    if found <= most { Ok(()) } else { Err(FormatError { at, what, expected: most, found }) }
}

/// An error unless all of `bytes[range]` is zero: reserved fields and padding have one encoding only.
pub(super) fn expect_zero(bytes: &[u8], range: std::ops::Range<usize>, what: &'static str) -> Result<()> {
    let at = range.start;
    let padding = &bytes[range];
    // The fold has no early exit, so it vectorises; the exact place is looked up only for the error.
    if padding.iter().fold(0, |all, byte| all | byte) == 0 {
        return Ok(());
    }
    let first = padding.iter().position(|byte| *byte != 0).unwrap_or_default();
    Err(FormatError { at: at + first, what, expected: 0, found: u64::from(padding[first]) })
}
