//! The bytes on disk: everything that Meridian reads back (docs/FORMAT.md draws them).
//!
//! All integers are little-endian. Every structure starts with an XXH3-64 checksum over everything else in it, its
//! identity and its zero padding included, so that a structure in the wrong place does not verify and no flipped bit goes
//! unseen. Decoders take bytes from anywhere: they never panic, and check a length before they trust it.

use std::fmt;

mod archive;
mod block;
mod checkpoint;
mod codec;
mod frame;
mod index;
mod index_pages;
mod segment;
mod superblock;
mod system;
#[cfg(test)]
mod tests;

pub use block::{Block, BlockHeader, Frames, MAX_BLOCK, finish_block, padded, peek_block_len};
pub use checkpoint::{Checkpoint, PartitionRecord};
pub use frame::{
    FRAME_HEADER, Frame, FrameHeader, FrameKind, MAX_FRAME, MAX_RECORDS, Records, encode_frame, frame_len,
    peek_frame_len,
};
pub use index::{ClientCommit, CommitOutcome, IndexPartition, Posting, SegmentIndex, SystemState};
pub use index_pages::{INDEX_PAGE, IndexDirectory, IndexFence, IndexPage, peek_directory_len};
pub use segment::{MAX_SET, Seal, SegmentHeader};
pub use superblock::{EpochEntry, MAX_EPOCHS, MAX_SEALS, Member, Superblock};
pub use system::{
    MAX_ACCOUNT_NAME, MAX_MARKED, MAX_RESTARTED, SystemRecord, decode_account, decode_mark, decode_progress,
    decode_restart, encode_account, encode_mark, encode_progress, encode_restart,
};

/// The unit of I/O in bytes: blocks, pages and files are multiples of it, and start at multiples of it.
pub const ALIGN: usize = 4096;
/// The bytes of a block before its first frame.
pub const BLOCK_HEADER: usize = 128;
/// The byte offset of the first block in a segment file, behind the segment header's and the seal's page.
pub const DATA_START: u32 = 8192;
/// The bytes of one superblock slot; a superblock file has two, at 0 and here.
pub const SUPERBLOCK_SLOT: usize = 32 * 1024;

/// Why bytes were refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatError {
    /// The byte offset, in what was given to the decoder, of the field that is wrong.
    pub at: usize,
    /// The field, and what it should have been.
    pub what: &'static str,
    /// The value, or the limit, that was expected (the low 64 bits of wider fields).
    pub expected: u64,
    /// The value that was found (the low 64 bits of wider fields).
    pub found: u64,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FormatError { at, what, expected, found } = self;
        write!(f, "{what} at byte {at}: expected {expected:#x}, found {found:#x}")
    }
}

impl std::error::Error for FormatError {}

/// What decoders return.
pub type Result<T> = std::result::Result<T, FormatError>;
