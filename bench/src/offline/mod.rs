//! Reading a closed region without the engine: what each disk's files say, and whether the copies agree. Read-only.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use meridian::format::{
    ALIGN, Block, Checkpoint, DATA_START, SUPERBLOCK_SLOT, Seal, SegmentHeader, SegmentIndex, Superblock,
    peek_block_len,
};
use meridian::{AccountId, LogId, PartitionId, SegmentId};
use rustix::fs::{FlockOperation, flock};

mod show;
#[cfg(test)]
mod tests;
mod verify;

pub(crate) use show::{Depth, inspect};
pub(crate) use verify::{verify, verify_command};

/// The largest derived file (index, checkpoint) that is read.
const DERIVED: u64 = 1 << 30;

/// One disk of a closed region. Nothing can open it while this lives.
pub(crate) struct OfflineDisk {
    /// Its directory.
    pub(crate) path: PathBuf,
    /// Both superblock slots, or why they are none.
    pub(crate) slots: Vec<Result<Superblock, String>>,
    /// Segment files by name.
    pub(crate) segments: Vec<SegmentFile>,
    /// Indexes and checkpoints: name, and what they hold or why they do not verify.
    pub(crate) derived: Vec<(String, Result<String, String>)>,
    _lock: Option<File>,
}

/// A segment file by its first two pages.
pub(crate) struct SegmentFile {
    /// Its name.
    pub(crate) name: String,
    file: File,
    /// Bytes.
    pub(crate) size: u64,
    /// Which segment it holds.
    pub(crate) header: Result<SegmentHeader, String>,
    /// How that ended; `None` when the page belongs to another segment or was never written.
    pub(crate) seal: Option<Seal>,
}

/// The disks that can be read, and why the others cannot.
pub(crate) struct Opened {
    /// The disks.
    pub(crate) disks: Vec<OfflineDisk>,
    /// A message for each of the others.
    pub(crate) problems: Vec<String>,
}

/// Reads every directory that can be read.
///
/// # Errors
/// A message when none can, or a process has one open.
pub(crate) fn open_all(paths: &[PathBuf]) -> Result<Opened, String> {
    let mut opened = Opened { disks: Vec::new(), problems: Vec::new() };
    for path in paths {
        match OfflineDisk::open(path) {
            Ok(disk) => opened.disks.push(disk),
            Err(Unread { why, in_use: false }) => opened.problems.push(why),
            Err(Unread { why, in_use: true }) => return Err(why),
        }
    }
    if opened.disks.is_empty() { Err(opened.problems.join("; ")) } else { Ok(opened) }
}

/// Why a disk could not be read.
#[derive(Debug)]
pub(crate) struct Unread {
    why: String,
    /// A process has it open: what its files say may change.
    in_use: bool,
}

impl From<String> for Unread {
    fn from(why: String) -> Unread {
        Unread { why, in_use: false }
    }
}

impl OfflineDisk {
    /// Reads a disk's directory.
    ///
    /// # Errors
    /// When it cannot be read, holds no region, or a process has it open.
    pub(crate) fn open(path: &Path) -> Result<OfflineDisk, Unread> {
        let cannot = |what: &Path, error: io::Error| format!("cannot read {}: {error}", what.display());
        let failed = |error: io::Error| cannot(path, error);
        fs::metadata(path).map_err(failed)?;
        let lock = match File::open(path.join("LOCK")) {
            Ok(lock) => {
                let taken = flock(&lock, FlockOperation::NonBlockingLockShared);
                taken.map_err(|_| Unread {
                    why: format!("{} is in use: close the region first", path.display()),
                    in_use: true,
                })?;
                Some(lock)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(cannot(&path.join("LOCK"), error).into()),
        };
        let superblock = path.join("superblock");
        let superblock = fs::read(&superblock).map_err(|error| cannot(&superblock, error))?;
        let slots =
            superblock.chunks(SUPERBLOCK_SLOT).take(2).map(|slot| Superblock::decode(slot).map_err(text)).collect();
        let mut disk =
            OfflineDisk { path: path.to_path_buf(), slots, segments: Vec::new(), derived: Vec::new(), _lock: lock };
        let mut names: Vec<String> = fs::read_dir(path)
            .map_err(failed)?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()
            .map_err(failed)?;
        names.sort();
        for name in names {
            if name.starts_with("slot-") {
                let file = path.join(&name);
                disk.segments.push(SegmentFile::open(path, name).map_err(|error| cannot(&file, error))?);
            } else if name.starts_with("index-") || name.starts_with("checkpoint-") {
                let content = derived(&path.join(&name));
                disk.derived.push((name, content));
            }
        }
        Ok(disk)
    }

    /// The superblock in force: the newer of those that verify.
    pub(crate) fn superblock(&self) -> Option<&Superblock> {
        self.slots.iter().flatten().max_by_key(|slot| slot.generation)
    }

    /// The copies of retained segments on this disk.
    pub(crate) fn retained(&self) -> impl Iterator<Item = (&SegmentFile, &SegmentHeader)> {
        let superblock = self.superblock();
        self.segments.iter().filter_map(move |file| {
            let (superblock, header) = (superblock?, file.header.as_ref().ok()?);
            (header.log == superblock.log && header.segment >= superblock.trim).then_some((file, header))
        })
    }
}

fn derived(path: &Path) -> Result<String, String> {
    if fs::metadata(path).map_err(text)?.len() > DERIVED {
        return Err("too large to be one".to_string());
    }
    let bytes = fs::read(path).map_err(text)?;
    if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"index-")) {
        let index = SegmentIndex::decode(&bytes).map_err(text)?;
        let (partitions, postings) = (index.partitions.len(), index.postings.len());
        return Ok(format!("segment {}: {partitions} partitions, {postings} transactions", index.segment.0));
    }
    let checkpoint = Checkpoint::decode(&bytes).map_err(text)?;
    let (accounts, partitions) = (checkpoint.system.accounts.len(), checkpoint.partitions.len());
    Ok(format!("before segment {}: {accounts} accounts, {partitions} partitions", checkpoint.next_segment.0))
}

/// The text of any error.
fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// What a walk over a copy's blocks found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Walk {
    /// Blocks that verify, one behind the other.
    pub(crate) blocks: u64,
    /// Transactions in them.
    pub(crate) transactions: u64,
    /// Records in them.
    pub(crate) records: u64,
    /// Where they end in the file.
    pub(crate) end: u32,
    /// The sequence behind the last one.
    pub(crate) next_sequence: Option<u64>,
    /// The first one's sequence, and the checksum of the block before it.
    pub(crate) base: Option<(u64, u64)>,
    /// The checksum of each block.
    pub(crate) chain: Vec<u64>,
    /// The highest commit index seen.
    pub(crate) commit: u64,
    /// Why it ended before the sealed length; in an unsealed segment, why it ended.
    pub(crate) stopped: Option<String>,
}

/// A transaction as a walk meets it.
pub(crate) struct Met<'a> {
    /// The block's offset in the segment.
    pub(crate) block: u32,
    /// The frame's offset in the segment.
    pub(crate) offset: u32,
    /// The transaction.
    pub(crate) frame: meridian::format::Frame<'a>,
}

impl Met<'_> {
    /// The account and partition that it belongs to.
    pub(crate) fn partition(&self) -> (AccountId, PartitionId) {
        (self.frame.header().account, self.frame.header().partition)
    }
}

impl SegmentFile {
    fn open(directory: &Path, name: String) -> io::Result<SegmentFile> {
        let file = File::open(directory.join(&name))?;
        let size = file.metadata()?.len();
        let mut pages = vec![0; 2 * ALIGN];
        let read = read_full(&file, 0, &mut pages)?;
        let header = if read < ALIGN {
            Err("cut short".to_string())
        } else {
            SegmentHeader::decode(&pages[..ALIGN]).map_err(text)
        };
        // Seal pages of an earlier life of the file name another segment.
        let seal = Seal::decode(&pages[ALIGN..]).ok().filter(|seal| {
            header.as_ref().is_ok_and(|header| (header.log, header.segment) == (seal.log, seal.segment))
        });
        Ok(SegmentFile { name, file, size, header, seal })
    }

    /// Walks the blocks from the first: to the end of `seal`, or without one as far as they verify.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn walk(&self, seal: Option<&Seal>, met: &mut dyn FnMut(&Met<'_>)) -> io::Result<Walk> {
        let mut walk = Walk { end: DATA_START, ..Walk::default() };
        let Ok(header) = &self.header else {
            walk.stopped = Some("the segment's header does not verify".to_string());
            return Ok(walk);
        };
        let (log, segment) = (header.log, header.segment);
        let mut link = seal.map(|seal| (seal.base_sequence, seal.base_chain));
        let mut buffer = vec![0; 1 << 20];
        loop {
            let end = seal.map_or(header.size, |seal| seal.length);
            if walk.end >= end {
                break;
            }
            let mut read = read_full(&self.file, u64::from(walk.end), &mut buffer)?;
            if let Some(length) =
                peek_block_len(&buffer[..read]).filter(|length| *length > read && *length <= end as usize)
            {
                buffer.resize(length, 0);
                read = read_full(&self.file, u64::from(walk.end), &mut buffer)?;
            }
            let before = walk.end;
            let why = self.take(&buffer[..read], (log, segment), &mut link, end, &mut walk, met);
            if walk.end == before {
                walk.stopped = why;
                break;
            }
        }
        walk.next_sequence = link.map(|(sequence, _)| sequence);
        Ok(walk)
    }

    /// Takes the blocks at the start of `bytes`; says why it stopped.
    fn take(
        &self,
        bytes: &[u8],
        (log, segment): (LogId, SegmentId),
        link: &mut Option<(u64, u64)>,
        end: u32,
        walk: &mut Walk,
        met: &mut dyn FnMut(&Met<'_>),
    ) -> Option<String> {
        let epoch = self.header.as_ref().ok()?.epoch;
        let mut at = 0;
        while at < bytes.len() && walk.end < end {
            let block = match Block::verify_at(&bytes[at..], log, epoch, segment, walk.end) {
                Ok(block) => block,
                Err(error) => return Some(format!("offset {}: {error}", walk.end)),
            };
            let header = block.header();
            if link.is_some_and(|link| link != (header.sequence, header.chain)) {
                return Some(format!("offset {}: the block does not follow the one before it", walk.end));
            }
            walk.base.get_or_insert((header.sequence, header.chain));
            for (place, frame) in block.frames() {
                walk.transactions += 1;
                walk.records += frame.count() as u64;
                met(&Met { block: walk.end, offset: walk.end + place, frame });
            }
            *link = Some((header.sequence + 1, block.checksum()));
            walk.chain.push(block.checksum());
            walk.commit = walk.commit.max(header.commit);
            walk.blocks += 1;
            walk.end += block.padded_len() as u32;
            at += block.padded_len();
        }
        None
    }
}

/// Reads as much as there is; returns how much.
fn read_full(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
