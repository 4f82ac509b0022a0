//! Reading: by position, a partition in order, and the tail; hot blocks first, then the segments.

use std::sync::{Arc, PoisonError};

use crate::error::{Corruption, Error, ErrorKind, Result};
use crate::format::{ALIGN, Block, DATA_START, peek_block_len};
use crate::io::{Buffer, Slice};
use crate::region::Region;
use crate::shared::{ReadSegment, Shared, lock};
use crate::transaction::Committed;
use crate::types::{Epoch, LogId, Lsn, SegmentId};

/// The low bits of a position name a frame in its block.
const ORDINAL: u32 = ALIGN as u32 - 1;
/// Read at once when the length of a block is not known: most blocks fit.
const GUESS: usize = 64 << 10;

/// A committed block: the unit in which the log is read and shipped.
#[derive(Clone)]
pub struct BlockView {
    segment: SegmentId,
    offset: u32,
    data: Slice,
}

impl BlockView {
    /// The position of its first transaction.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        Lsn::new(self.segment, self.offset)
    }

    /// The position behind it.
    #[must_use]
    pub fn end(&self) -> Lsn {
        Lsn::new(self.segment, self.offset + self.data.len() as u32)
    }

    /// Its transactions in log order, the engine's own included.
    pub fn transactions(&self) -> impl Iterator<Item = Committed<'_>> {
        let frames = Block::trusted(&self.data).frames().enumerate();
        frames.map(|(ordinal, (_, frame))| Committed::new(Lsn::new(self.segment, self.offset | ordinal as u32), frame))
    }

    /// The transaction at a position in this block.
    #[must_use]
    pub fn transaction(&self, lsn: Lsn) -> Option<Committed<'_>> {
        self.transactions().find(|transaction| transaction.lsn() == lsn)
    }
}

impl Region {
    /// The committed block that holds a position.
    ///
    /// # Errors
    /// [`Trimmed`](ErrorKind::Trimmed), [`NotFound`](ErrorKind::NotFound) when nothing is committed there,
    /// [`Corrupt`](ErrorKind::Corrupt) when no copy verifies.
    pub fn read(&self, lsn: Lsn) -> Result<BlockView> {
        let offset = lsn.offset() & !ORDINAL;
        if lsn >= self.committed() || offset < DATA_START {
            return Err(Error::new(ErrorKind::NotFound, format!("nothing is committed at {lsn}")));
        }
        self.shared.block_at(lsn.segment(), offset)
    }

    /// Follows the log from a position on ([`Lsn::ZERO`]: from the first retained), block by block, as it commits.
    #[must_use]
    pub fn subscribe(&self, from: Lsn) -> Subscription {
        Subscription { shared: Arc::clone(&self.shared), next: from }
    }
}

/// A reader that follows the committed log. It holds no lock and no pin: what it has not read may be trimmed, which it
/// is then told.
pub struct Subscription {
    shared: Arc<Shared>,
    next: Lsn,
}

impl Subscription {
    /// Where it reads next.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.next
    }

    /// The next committed block, if there is one now.
    ///
    /// # Errors
    /// [`Trimmed`](ErrorKind::Trimmed) when the position is gone, [`Corrupt`](ErrorKind::Corrupt).
    pub fn try_next(&mut self) -> Result<Option<BlockView>> {
        let committed = Lsn(self.shared.committed.get());
        while self.next < committed {
            let segment = self.next.segment();
            let offset = (self.next.offset() & !ORDINAL).max(DATA_START);
            match self.shared.place(segment, self.next)? {
                Place::Inside => {
                    let block = self.shared.block_at(segment, offset)?;
                    self.next = block.end();
                    return Ok(Some(block));
                }
                Place::Behind(next) => self.next = next,
            }
        }
        Ok(None)
    }

    /// The next committed block; sleeps until there is one.
    ///
    /// # Errors
    /// As [`Subscription::try_next`], and [`Closed`](ErrorKind::Closed).
    pub fn next_blocking(&mut self) -> Result<BlockView> {
        loop {
            if let Some(block) = self.try_next()? {
                return Ok(block);
            }
            self.shared.committed.wait_for_blocking(self.next.0 + 1).map_err(|_| self.ended())?;
        }
    }

    /// The next committed block; completes when there is one.
    ///
    /// # Errors
    /// As [`Subscription::next_blocking`].
    pub async fn next(&mut self) -> Result<BlockView> {
        loop {
            if let Some(block) = self.try_next()? {
                return Ok(block);
            }
            self.shared.committed.wait_for(self.next.0 + 1).await.map_err(|_| self.ended())?;
        }
    }

    fn ended(&self) -> Error {
        let halted = lock(&self.shared.halted);
        match halted.as_ref() {
            Some(error) => Error::new(ErrorKind::Halted, format!("the region halted: {error}")),
            None => Error::new(ErrorKind::Closed, "the region is closed"),
        }
    }
}

/// Where a position lies.
enum Place {
    Inside,
    /// Behind its segment's end: the log goes on here.
    Behind(Lsn),
}

impl Shared {
    /// Whether a position below the commit watermark lies in its segment or behind it.
    fn place(&self, segment: SegmentId, at: Lsn) -> Result<Place> {
        let catalog = self.catalog.read().unwrap_or_else(PoisonError::into_inner);
        if at == Lsn::ZERO {
            return Ok(Place::Behind(Lsn::new(catalog.first, DATA_START)));
        }
        let Some(known) = catalog.segments.get(&segment).filter(|_| segment >= catalog.first) else {
            return Err(trimmed(at, catalog.first));
        };
        let behind = known.end.is_some_and(|end| at.offset() >= end);
        Ok(if behind { Place::Behind(Lsn::new(SegmentId(segment.0 + 1), DATA_START)) } else { Place::Inside })
    }

    /// A committed block from memory, or from the first copy that verifies.
    fn block_at(&self, segment: SegmentId, offset: u32) -> Result<BlockView> {
        if let Some(hot) = lock(&self.hot).find(segment, offset) {
            return Ok(BlockView { segment, offset, data: hot.data });
        }
        let known = {
            let catalog = self.catalog.read().unwrap_or_else(PoisonError::into_inner);
            let known = catalog.segments.get(&segment).filter(|_| segment >= catalog.first).cloned();
            known.ok_or_else(|| trimmed(Lsn::new(segment, offset), catalog.first))?
        };
        let mut worst = None;
        for &(disk, file) in &known.copies {
            match self.read_copy(&known, segment, offset, disk, file) {
                Ok(data) => return Ok(BlockView { segment, offset, data }),
                Err(error) => {
                    if known.end.is_some() {
                        self.suspect(segment, disk);
                    }
                    worst.get_or_insert(error);
                }
            }
        }
        let first = self.catalog.read().unwrap_or_else(PoisonError::into_inner).first;
        if segment < first {
            return Err(trimmed(Lsn::new(segment, offset), first));
        }
        Err(worst.unwrap_or_else(|| {
            Error::new(ErrorKind::RestoreDisk, format!("no copy of segment {} can be read", segment.0))
        }))
    }

    fn read_copy(
        &self,
        known: &ReadSegment,
        segment: SegmentId,
        offset: u32,
        disk: crate::io::DiskIndex,
        file: crate::io::FileId,
    ) -> Result<Slice> {
        let log = lock(&self.log).unwrap_or(LogId(0));
        let failed = |error: std::io::Error| {
            Error::new(
                ErrorKind::RestoreDisk,
                format!("segment {} offset {offset} could not be read: {error}", segment.0),
            )
        };
        let mut bytes = Buffer::zeroed(GUESS).map_err(failed)?;
        let read = self.reader.read_at(disk, file, u64::from(offset), &mut bytes).map_err(failed)?;
        bytes.set_len(read);
        if let Some(len) =
            peek_block_len(&bytes).filter(|len| *len > read && *len < self.options.segment_bytes as usize)
        {
            bytes = Buffer::zeroed(len).map_err(failed)?;
            let read = self.reader.read_at(disk, file, u64::from(offset), &mut bytes).map_err(failed)?;
            bytes.set_len(read);
        }
        let epoch: Epoch = known.epoch;
        let len = Block::verify_at(&bytes, log, epoch, segment, offset).map(|block| block.padded_len());
        let len = len.map_err(|error| {
            Error::corrupt(Corruption {
                segment,
                offset: u64::from(offset) + error.at as u64,
                what: error.what,
                expected: error.expected,
                found: error.found,
            })
        })?;
        bytes.set_len(len);
        Ok(bytes.share())
    }

    /// Tells the log thread that a copy did not verify; it looks and repairs.
    fn suspect(&self, segment: SegmentId, disk: crate::io::DiskIndex) {
        let mut suspects = lock(&self.suspects);
        if suspects.len() < 64 && !suspects.contains(&(segment, disk)) {
            suspects.push((segment, disk));
        }
    }
}

fn trimmed(at: Lsn, first: SegmentId) -> Error {
    Error::new(ErrorKind::Trimmed, format!("position {at} was trimmed: the log begins at segment {}", first.0))
}
