//! Reading: by position, a partition in order, and the tail; hot blocks first, then the segments.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Block, DATA_START, Frame};
use crate::geo::Anchor;
use crate::giveway::{give_way, spend};
use crate::io::Slice;
use crate::region::Region;
use crate::shared::{ReadSegment, Shared, lock};
use crate::transaction::Committed;
use crate::types::{AccountId, Lsn, ORDINAL, SegmentId};

mod blocks;
mod indexes;
mod partition;

pub(crate) use blocks::ReadAhead;
use blocks::{BlockReader, Start};
pub(crate) use indexes::{IndexCache, IndexCounts};
pub use partition::PartitionReader;

/// A committed block: the unit in which the log is read and shipped.
///
/// Clones share the bytes. A block read from disk keeps the mebibyte in memory that it was read with, while it lives.
#[derive(Clone)]
pub struct BlockView {
    segment: SegmentId,
    offset: u32,
    data: Slice,
    /// Accounts whose transactions are not shown.
    hidden: Arc<BTreeSet<AccountId>>,
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

    /// What names the history of its log up to its end.
    pub(crate) fn anchor(&self) -> Anchor {
        Anchor { block: self.lsn(), checksum: Block::trusted(&self.data).checksum() }
    }

    /// The bytes as they lie in the log.
    pub(crate) fn data(&self) -> &Slice {
        &self.data
    }

    /// Its transactions in log order, the engine's own included; those of accounts that could not be read when the block was, left out
    /// (acceptance G11).
    pub fn transactions(&self) -> impl Iterator<Item = Committed<'_>> {
        self.frames().filter(|transaction| !self.hidden.contains(&transaction.account()))
    }

    /// All of them.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Committed<'_>> {
        let frames = Block::trusted(&self.data).frames().enumerate();
        frames.map(|(ordinal, (_, frame))| Committed::new(Lsn::new(self.segment, self.offset | ordinal as u32), frame))
    }

    /// The transaction at a position in this block.
    #[must_use]
    pub fn transaction(&self, lsn: Lsn) -> Option<Committed<'_>> {
        self.transactions().find(|transaction| transaction.lsn() == lsn)
    }
}

/// A committed transaction that owns its bytes, which it shares with its block.
#[derive(Clone)]
pub struct TransactionView {
    lsn: Lsn,
    /// Exactly its frame, of a verified block.
    data: Slice,
}

impl TransactionView {
    /// Its records and what is known of them.
    ///
    /// # Panics
    /// Never: its block was verified.
    #[must_use]
    pub fn transaction(&self) -> Committed<'_> {
        let frame = Frame::trusted(&self.data).expect("the frame of a verified block");
        Committed::new(self.lsn, frame)
    }

    pub(crate) fn checksum(&self) -> u64 {
        Frame::trusted(&self.data).expect("the frame of a verified block").checksum()
    }
}

impl Region {
    /// The committed block that holds a position.
    ///
    /// # Errors
    /// [`Trimmed`](ErrorKind::Trimmed), [`NotFound`](ErrorKind::NotFound) when nothing is committed there or no block begins
    /// where it says, [`Corrupt`](ErrorKind::Corrupt) when no copy verifies, [`RestoreDisk`](ErrorKind::RestoreDisk) when none can be
    /// read, [`Closed`](ErrorKind::Closed).
    pub fn read(&self, lsn: Lsn) -> Result<BlockView> {
        self.shared.read_block(lsn)
    }

    /// Follows the log from a position on ([`Lsn::ZERO`]: from the first retained), block by block, as it commits. The first block may begin
    /// before the position.
    ///
    /// ```
    /// # use meridian::{Ack, DiskConfig, Lsn, Options, PartitionId, Region, Transaction};
    /// # let home = tempfile::tempdir()?;
    /// # let disks = ["a", "b", "c"].map(|name| DiskConfig::new(home.path().join(name), name, "zone-1"));
    /// # let region = Region::create(Options { segment_bytes: 8 << 20, ..Options::new(disks.to_vec()) }, ())?;
    /// # let flights = region.create_account("flights", Ack::Quorum)?;
    /// let receipt = region.commit(Transaction::new(flights, PartitionId::named("EWR/UA")).record("UA 1545"))?;
    /// let mut tail = region.subscribe(receipt.lsn);
    /// let block = tail.try_next()?.expect("it is committed");
    /// assert!(block.transactions().any(|transaction| transaction.lsn() == receipt.lsn));
    /// assert_eq!(tail.position(), block.end());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn subscribe(&self, from: Lsn) -> Subscription {
        Subscription::new(&self.shared, from)
    }
}

/// A reader that follows the committed log. It holds no lock and no pin: what it has not read may be trimmed, which it
/// is then told.
///
/// What it reads from disk it reads ahead, up to a mebibyte, on the caller's thread.
pub struct Subscription {
    shared: Arc<Shared>,
    next: Lsn,
    blocks: BlockReader,
    /// Whether a block is known to begin at `next`.
    start: Start,
}

impl Subscription {
    pub(crate) fn new(shared: &Arc<Shared>, from: Lsn) -> Subscription {
        Subscription { shared: Arc::clone(shared), next: from, blocks: BlockReader::new(), start: Start::Claimed }
    }

    /// Where it reads next.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.next
    }

    /// The next committed block, if there is one now.
    ///
    /// # Errors
    /// [`Trimmed`](ErrorKind::Trimmed) when the position is gone, [`NotFound`](ErrorKind::NotFound) when no block begins where it
    /// was told to start; otherwise as [`Region::read`]. The position stays where it is: asking again is safe.
    pub fn try_next(&mut self) -> Result<Option<BlockView>> {
        loop {
            let (from_first, result) = (self.next == Lsn::ZERO, self.step());
            match result {
                // What was the first retained segment a moment ago has been trimmed.
                Err(error) if from_first && error.kind() == ErrorKind::Trimmed => self.next = Lsn::ZERO,
                result => return result,
            }
        }
    }

    fn step(&mut self) -> Result<Option<BlockView>> {
        let committed = Lsn(self.shared.committed.get());
        while self.next < committed {
            let segment = self.next.segment();
            let offset = (self.next.offset() & !ORDINAL).max(DATA_START);
            match self.shared.place(segment, self.next)? {
                Place::Inside => {
                    let start = if offset == DATA_START { Start::Known } else { self.start };
                    let block = self.blocks.get(&self.shared, segment, offset, start)?;
                    (self.next, self.start) = (block.end(), Start::Known);
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
    /// As [`Subscription::try_next`], and, once everything committed was read, [`Closed`](ErrorKind::Closed), [`Halted`](ErrorKind::Halted),
    /// [`WouldDeadlock`](ErrorKind::WouldDeadlock) or [`Forked`](ErrorKind::Forked).
    pub fn next_blocking(&mut self) -> Result<BlockView> {
        loop {
            if let Some(block) = self.try_next()? {
                return Ok(block);
            }
            self.shared.home.check_wait()?;
            self.shared.committed.wait_for_blocking(self.next.0.saturating_add(1)).map_err(|_| self.shared.ended())?;
        }
    }

    /// As [`Subscription::next_blocking`], but waits at most for `time`; `None` when there was none.
    ///
    /// # Errors
    /// As [`Subscription::next_blocking`].
    pub fn next_timeout(&mut self, time: Duration) -> Result<Option<BlockView>> {
        if let Some(block) = self.try_next()? {
            return Ok(Some(block));
        }
        self.shared.home.check_wait()?;
        match self.shared.committed.wait_for_timeout(self.next.0.saturating_add(1), time) {
            Some(reached) => reached.map_err(|_| self.shared.ended())?,
            None => return Ok(None),
        }
        self.try_next()
    }

    /// The next committed block; completes when there is one. Any runtime will do; what is not in memory is read on the
    /// thread that polls. It gives way to the thread's other tasks after each mebibyte, also while there is always a next block; dropped before it
    /// completes, it has taken nothing.
    ///
    /// # Errors
    /// As [`Subscription::next_blocking`].
    pub async fn next(&mut self) -> Result<BlockView> {
        give_way().await;
        loop {
            if let Some(block) = self.try_next()? {
                spend(block.data.len());
                return Ok(block);
            }
            let Subscription { shared, next, .. } = &*self;
            let mut more = shared.committed.wait_for(next.0.saturating_add(1));
            // Asked at each poll: a task may be taken into a forked child while it waits.
            let more = poll_fn(|context| match shared.home.check_process() {
                Ok(()) => Pin::new(&mut more).poll(context).map_err(|_| shared.ended()),
                Err(error) => Poll::Ready(Err(error)),
            });
            more.await?;
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
    /// As [`Region::read`].
    pub(crate) fn read_block(&self, lsn: Lsn) -> Result<BlockView> {
        let offset = lsn.offset() & !ORDINAL;
        if lsn >= Lsn(self.committed.get()) || offset < DATA_START {
            return Err(not_there(lsn));
        }
        let known = self.segment(lsn)?;
        if known.end.is_some_and(|end| offset >= end) {
            return Err(not_there(lsn));
        }
        BlockReader::new().get(self, lsn.segment(), offset, Start::Claimed)
    }

    fn view(&self, segment: SegmentId, offset: u32, data: Slice) -> BlockView {
        BlockView { segment, offset, data, hidden: Arc::clone(&self.readable().hidden) }
    }

    /// Whether a position below the commit watermark lies in its segment or behind it.
    fn place(&self, segment: SegmentId, at: Lsn) -> Result<Place> {
        if at == Lsn::ZERO {
            return Ok(Place::Behind(Lsn::new(self.readable().first, DATA_START)));
        }
        {
            // Who had read all of what was trimmed misses nothing.
            let catalog = self.readable();
            if at.segment() < catalog.first && catalog.trimmed.is_some_and(|end| at >= end) {
                return Ok(Place::Behind(Lsn::new(catalog.first, DATA_START)));
            }
        }
        let known = self.segment(at)?;
        let behind = known.end.is_some_and(|end| at.offset() >= end);
        Ok(if behind { Place::Behind(Lsn::new(SegmentId(segment.0 + 1), DATA_START)) } else { Place::Inside })
    }

    /// The retained segment that a position lies in.
    fn segment(&self, at: Lsn) -> Result<ReadSegment> {
        let catalog = self.readable();
        let known = catalog.segments.get(&at.segment()).filter(|_| at.segment() >= catalog.first);
        known.cloned().ok_or_else(|| trimmed(at, catalog.first))
    }

    /// Why there will be nothing more to read.
    fn ended(&self) -> Error {
        match lock(&self.halted).as_ref() {
            Some(error) => Error::new(ErrorKind::Halted, format!("the region halted: {error}")),
            None => Error::new(ErrorKind::Closed, "the region is closed"),
        }
    }
}

fn trimmed(at: Lsn, first: SegmentId) -> Error {
    Error::new(ErrorKind::Trimmed, format!("position {at} was trimmed: the log begins at segment {}", first.0))
}

fn not_there(at: Lsn) -> Error {
    Error::new(ErrorKind::NotFound, format!("nothing is committed at {at}"))
}
