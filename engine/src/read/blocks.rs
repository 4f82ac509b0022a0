//! From a position to a verified block: from memory, from what was read ahead, or from the first copy that verifies.

use std::sync::PoisonError;

use crate::error::{Corruption, Error, ErrorKind, Result};
use crate::format::{ALIGN, Block, FormatError, peek_block_len};
use crate::io::{Buffer, BufferPool, DiskIndex, FileId, Slice};
use crate::log::prepare::is_short;
use crate::read::{BlockView, not_there, trimmed};
use crate::shared::{ReadCatalog, ReadSegment, Shared, lock};
use crate::types::{LogId, Lsn, SegmentId};

/// Read at once where it is not known that the reader goes on: most blocks fit.
const LEAST: usize = 64 << 10;
/// Read at once from a reader that goes on from block to block.
const MOST: usize = 1 << 20;
/// Unused read buffers that a region keeps.
const KEPT: usize = 4;

/// The buffers that readers read ahead into.
pub(crate) struct ReadAhead(BufferPool);

impl ReadAhead {
    /// Bytes that unused buffers hold, at most.
    pub(crate) const BOUND: usize = KEPT * MOST;

    pub(crate) fn new() -> ReadAhead {
        ReadAhead(BufferPool::new(KEPT, MOST))
    }
}

/// Whether a block is known to begin at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// It is: what does not verify there has rotted.
    Known,
    /// The caller says so.
    Claimed,
}

/// One reader's way to blocks.
pub(super) struct BlockReader {
    window: Option<Window>,
    /// How much is read at once next.
    ahead: usize,
}

/// What was read ahead; its first block was verified, the others are when they are asked for.
struct Window {
    segment: SegmentId,
    start: u32,
    data: Slice,
    /// The copy that it came from.
    disk: DiskIndex,
}

impl Window {
    fn end(&self) -> u32 {
        self.start + self.data.len() as u32
    }
}

/// A copy that did not give the block, and why.
type Failed = (DiskIndex, Error);

impl BlockReader {
    pub(super) fn new() -> BlockReader {
        BlockReader { window: None, ahead: LEAST }
    }

    /// A committed block.
    pub(super) fn get(&mut self, shared: &Shared, segment: SegmentId, offset: u32, start: Start) -> Result<BlockView> {
        if let Some(hot) = lock(&shared.hot).find(segment, offset) {
            return Ok(shared.view(segment, offset, hot.data));
        }
        let at = Lsn::new(segment, offset);
        let mut known = shared.segment(at)?;
        if let Some(data) = self.in_window(shared, &known, segment, offset) {
            return Ok(shared.view(segment, offset, data));
        }
        loop {
            match self.in_copies(shared, &known, segment, offset) {
                Ok((data, failed)) => {
                    shared.suspect(segment, &known, &failed);
                    return Ok(shared.view(segment, offset, data));
                }
                Err(failed) => {
                    // It may have been trimmed, or its copies moved, while it was read.
                    let now = shared.segment(at)?;
                    if now.copies == known.copies {
                        return Err(shared.unreadable(at, start, &known, failed));
                    }
                    known = now;
                }
            }
        }
    }

    fn in_window(&mut self, shared: &Shared, known: &ReadSegment, segment: SegmentId, offset: u32) -> Option<Slice> {
        let window = self.window.as_ref()?;
        let follows = if window.segment == segment {
            (window.start..=window.end()).contains(&offset)
        } else {
            window.segment.0 + 1 == segment.0
        };
        self.ahead = if follows { (self.ahead * 4).min(MOST) } else { LEAST };
        if window.segment != segment || !(window.start..window.end()).contains(&offset) {
            return None;
        }
        let skip = (offset - window.start) as usize;
        let block = Block::verify_at(&window.data[skip..], shared.log_id(), known.epoch, segment, offset).ok()?;
        Some(window.data.part(skip..skip + block.padded_len()))
    }

    /// The block from the first copy that has it, and the copies that had not.
    fn in_copies(
        &mut self,
        shared: &Shared,
        known: &ReadSegment,
        segment: SegmentId,
        offset: u32,
    ) -> std::result::Result<(Slice, Vec<Failed>), Vec<Failed>> {
        let mut failed = Vec::new();
        // The copy that the last read came from goes first: a late one would fail each time. A disk that hangs keeps whoever
        // reads from it waiting: its copy is the last resort.
        let last = self.window.take().filter(|window| window.segment == segment).map(|window| window.disk);
        let mut copies = known.copies.clone();
        copies.sort_by_key(|(disk, _)| (shared.hangs(*disk), Some(*disk) != last));
        for (disk, file) in copies {
            match self.read_copy(shared, known, Lsn::new(segment, offset), disk, file) {
                Ok((data, len)) => {
                    let block = data.part(0..len);
                    self.window = Some(Window { segment, start: offset, data, disk });
                    return Ok((block, failed));
                }
                Err(error) => failed.push((disk, error)),
            }
        }
        Err(failed)
    }

    /// Reads ahead from a copy. Returns what was read and the length of the verified block that it begins with.
    fn read_copy(
        &self,
        shared: &Shared,
        known: &ReadSegment,
        at: Lsn,
        disk: DiskIndex,
        file: FileId,
    ) -> Result<(Slice, usize)> {
        let (segment, offset) = (at.segment(), at.offset());
        let failed = |error: std::io::Error| {
            let message = format!("segment {} offset {offset} could not be read: {error}", segment.0);
            let kind = if is_short(&error) { ErrorKind::System } else { ErrorKind::RestoreDisk };
            Error::new(kind, message)
        };
        let left = shared.committed_end(known, segment).saturating_sub(offset) as usize;
        let mut bytes = shared.ahead.0.take().map_err(failed)?;
        bytes.set_len(self.ahead.min(left));
        fill(shared, disk, file, offset, &mut bytes).map_err(failed)?;
        if let Some(len) = peek_block_len(&bytes).filter(|len| *len > bytes.len() && *len <= left) {
            if len > bytes.capacity() {
                bytes = Buffer::zeroed(len).map_err(failed)?;
            }
            bytes.set_len(len);
            fill(shared, disk, file, offset, &mut bytes).map_err(failed)?;
        }
        let block = Block::verify_at(&bytes, shared.log_id(), known.epoch, segment, offset);
        let len = block.map(|block| block.padded_len()).map_err(|error| Error::corrupt(corruption(at, &error)))?;
        Ok((bytes.share(), len))
    }
}

/// Reads into the buffer; its length says how much there was.
fn fill(shared: &Shared, disk: DiskIndex, file: FileId, offset: u32, bytes: &mut Buffer) -> std::io::Result<()> {
    let read = shared.reader.read_at(disk, file, u64::from(offset), bytes)?;
    bytes.set_len(read);
    Ok(())
}

fn corruption(at: Lsn, error: &FormatError) -> Corruption {
    let FormatError { at: field, what, expected, found } = *error;
    Corruption { segment: at.segment(), offset: u64::from(at.offset()) + field as u64, what, expected, found }
}

impl Shared {
    pub(crate) fn readable(&self) -> std::sync::RwLockReadGuard<'_, ReadCatalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn log_id(&self) -> LogId {
        lock(&self.log).unwrap_or(LogId(0))
    }

    /// Where the committed part of a segment ends now, at most.
    pub(super) fn committed_end(&self, known: &ReadSegment, segment: SegmentId) -> u32 {
        let committed = Lsn(self.committed.get());
        let so_far = if committed.segment() == segment { committed.offset() } else { self.options.segment_bytes };
        known.end.unwrap_or(so_far).min(self.options.segment_bytes).next_multiple_of(ALIGN as u32)
    }

    /// Tells the log thread which copies of a sealed segment did not verify; it looks and repairs.
    fn suspect(&self, segment: SegmentId, known: &ReadSegment, failed: &[Failed]) {
        if failed.is_empty() || known.end.is_none() {
            return;
        }
        let mut suspects = lock(&self.suspects);
        for &(disk, _) in failed {
            if suspects.len() < 64 && !suspects.contains(&(segment, disk)) {
                suspects.push((segment, disk));
            }
        }
    }

    /// Why no copy gave the block: what is wrong with the bytes matters more than a disk that did not answer.
    fn unreadable(&self, at: Lsn, start: Start, known: &ReadSegment, failed: Vec<Failed>) -> Error {
        let segment = at.segment();
        if self.committed.is_closed() {
            return self.ended();
        }
        if start == Start::Claimed && self.starts_block(segment, at.offset()) == Some(false) {
            return not_there(at);
        }
        self.suspect(segment, known, &failed);
        let first = self.readable().first;
        if segment < first {
            return trimmed(at, first);
        }
        let mut errors: Vec<Error> = failed.into_iter().map(|(_, error)| error).collect();
        let corrupt = errors.iter().position(|error| error.kind() == ErrorKind::Corrupt).unwrap_or(0);
        if errors.is_empty() {
            return Error::new(ErrorKind::RestoreDisk, format!("no copy of segment {} can be read", segment.0));
        }
        errors.swap_remove(corrupt)
    }
}
