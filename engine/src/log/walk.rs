//! Reading a copy block by block: each verified, each chained to the one before.

use crate::error::Corruption;
use crate::format::{Block, FormatError, Seal, peek_block_len};
use crate::io::{Buffer, DiskIndex, FileId};
use crate::log::Log;
use crate::log::lack::is_host_lack;
use crate::types::{Epoch, LogId, SegmentId};

/// How much is read at once.
const READ: usize = 1 << 20;

/// One copy of one segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) log: LogId,
    pub(crate) epoch: Epoch,
    pub(crate) segment: SegmentId,
    pub(crate) disk: DiskIndex,
    pub(crate) file: FileId,
}

/// The block before the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// The sequence of the next block.
    pub(crate) sequence: u64,
    /// The checksum that it must carry.
    pub(crate) chain: u64,
}

/// Why a copy could not be read on.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The disk refused.
    Disk(std::io::Error),
    /// The bytes do not verify.
    Bytes(Corruption),
}

impl Broken {
    pub(crate) fn to_error(&self, place: &Place, at: u32) -> crate::Error {
        match self {
            Broken::Bytes(corruption) => crate::Error::corrupt(corruption.clone()),
            Broken::Disk(error) => crate::Error::new(
                if is_host_lack(error) { crate::ErrorKind::System } else { crate::ErrorKind::RestoreDisk },
                format!("segment {} offset {at} could not be read: {error}", place.segment.0),
            ),
        }
    }
}

/// Verified blocks in a row.
pub(crate) struct Run {
    /// Where they start in the segment.
    pub(crate) at: u32,
    /// Exactly the blocks.
    pub(crate) bytes: Buffer,
    /// The link behind them.
    pub(crate) link: Link,
}

impl Run {
    /// The blocks with their offsets in the segment.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (u32, Block<'_>)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let rest = self.bytes.get(at..).filter(|rest| !rest.is_empty())?;
            let block = Block::trusted(rest);
            let offset = self.at + at as u32;
            at += block.padded_len();
            Some((offset, block))
        })
    }

    pub(crate) fn end(&self) -> u32 {
        self.at + self.bytes.len() as u32
    }
}

/// Verifies the block at the start of `bytes` as the one that belongs at `at` behind `link`.
pub(crate) fn check<'a>(place: &Place, at: u32, link: Link, bytes: &'a [u8]) -> Result<Block<'a>, FormatError> {
    if planted!(RecycledBlock) {
        return Block::verify(bytes);
    }
    let epoch = if planted!(IgnoreEpoch) { Block::verify(bytes)?.header().epoch } else { place.epoch };
    let block = Block::verify_at(bytes, place.log, epoch, place.segment, at)?;
    if planted!(WrongChainCheck) {
        return Ok(block);
    }
    let header = block.header();
    let wrong = |what, expected, found| FormatError { at: 0, what, expected, found };
    if header.sequence != link.sequence {
        return Err(wrong("block: sequence", link.sequence, header.sequence));
    }
    if header.chain != link.chain {
        return Err(wrong("block: chain", link.chain, header.chain));
    }
    Ok(block)
}

pub(crate) fn corruption(segment: SegmentId, at: u32, error: &FormatError) -> Corruption {
    let FormatError { at: field, what, expected, found } = *error;
    Corruption { segment, offset: u64::from(at) + field as u64, what, expected, found }
}

impl Log {
    /// The verified blocks of a copy from `at` on: one at least, about a mebibyte at most, none behind `end`.
    pub(crate) async fn read_run(&self, place: &Place, at: u32, end: u32, link: Link) -> Result<Run, Broken> {
        let left = (end - at) as usize;
        let mut bytes =
            self.ops.read(place.disk, place.file, u64::from(at), left.min(READ)).await.map_err(Broken::Disk)?;
        if let Some(len) = peek_block_len(&bytes)
            && len > bytes.len()
            && len <= left
        {
            bytes = self.ops.read(place.disk, place.file, u64::from(at), len).await.map_err(Broken::Disk)?;
        }
        let (mut used, mut link) = (0usize, link);
        while used < bytes.len() {
            match check(place, at + used as u32, link, &bytes[used..]) {
                Ok(block) => {
                    link = Link { sequence: link.sequence + 1, chain: block.checksum() };
                    used += block.padded_len();
                }
                // A block cut off by the end of the read, or a broken one: the next read tells.
                Err(_) if used > 0 => break,
                Err(error) => return Err(Broken::Bytes(corruption(place.segment, at, &error))),
            }
        }
        if used == 0 {
            let error = FormatError { at: 0, what: "block: bytes in the file", expected: left as u64, found: 0 };
            return Err(Broken::Bytes(corruption(place.segment, at, &error)));
        }
        bytes.set_len(used);
        Ok(Run { at, bytes, link })
    }
}

pub(crate) fn start(seal: &Seal) -> Link {
    Link { sequence: seal.base_sequence, chain: seal.base_chain }
}
