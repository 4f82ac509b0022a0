//! A partition's transactions in order, found through the indexes of the segments.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Corruption, Error, ErrorKind, Result};
use crate::format::{BLOCK_HEADER, Block, Frame, IndexPartition, Posting};
use crate::read::blocks::{BlockReader, Start};
use crate::read::{BlockView, TransactionView};
use crate::region::Region;
use crate::shared::{Control, Shared};
use crate::types::{AccountId, Lsn, ORDINAL, PartitionId, SegmentId};

impl Region {
    /// Reads a partition's committed transactions in order, from the one that holds record `from` on. A partition that nothing was committed to is
    /// empty, whether its account exists or not.
    ///
    /// ```
    /// # use meridian::{Ack, DiskConfig, Options, PartitionId, Region, Transaction};
    /// # let home = tempfile::tempdir()?;
    /// # let disks = ["a", "b", "c"].map(|name| DiskConfig::new(home.path().join(name), name, "zone-1"));
    /// # let region = Region::create(Options { segment_bytes: 8 << 20, ..Options::new(disks.to_vec()) }, ())?;
    /// # let flights = region.create_account("flights", Ack::Quorum)?;
    /// let departures = PartitionId::named("EWR/UA");
    /// region.commit(Transaction::new(flights, departures).record("UA 1545").record("05:17"))?;
    /// region.commit(Transaction::new(flights, departures).record("UA 1714"))?;
    /// for view in region.partition(flights, departures, 2) {
    ///     let view = view?;
    ///     assert_eq!(view.transaction().records().collect::<Vec<_>>(), [(2, &b"UA 1714"[..])]);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn partition(&self, account: AccountId, partition: PartitionId, from: u64) -> PartitionReader {
        PartitionReader::new(&self.shared, account, partition, from)
    }

    /// The sequence that the partition's next record will get: that of its last committed record and one, or 0 where there is none, also where
    /// there is no such account.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed).
    pub fn next_sequence(&self, account: AccountId, partition: PartitionId) -> Result<u64> {
        self.shared.next_sequence(account, partition)
    }
}

/// Reads a partition in order. As an iterator it ends at what is committed, and goes on when it is asked again later. An error is not its end: it comes
/// again and again, so stop at the first.
///
/// It reads on the caller's thread, holds no lock and no pin, and keeps a chunk of the index and up to a mebibyte of the log in
/// memory. An index that is not kept in memory yet is read first; a lost one is made again by reading its segment once.
///
/// An error leaves it where it is: [`Trimmed`](ErrorKind::Trimmed) when the next record is gone (see
/// [`PartitionReader::skip_trimmed`]), [`Secondary`](ErrorKind::Secondary) while the account cannot be read here (acceptance G11), otherwise as
/// [`Region::read`].
pub struct PartitionReader {
    shared: Arc<Shared>,
    account: AccountId,
    partition: PartitionId,
    next: u64,
    /// Where the next record is looked for; none before the first look.
    segment: Option<SegmentId>,
    /// The next transactions in `segment`.
    found: VecDeque<Posting>,
    blocks: BlockReader,
    block: Option<Cursor>,
    /// The segment whose index was wrong and was made again.
    repaired: Option<SegmentId>,
    /// The state of [`ReadCatalog::restarted`](crate::shared::ReadCatalog::restarted) that `segment` and what comes from it hold for.
    restarted: u64,
    /// Whether it is the engine itself that reads, and sees what is hidden.
    own: bool,
}

impl PartitionReader {
    fn new(shared: &Arc<Shared>, account: AccountId, partition: PartitionId, from: u64) -> PartitionReader {
        PartitionReader {
            shared: Arc::clone(shared),
            account,
            partition,
            next: from,
            segment: None,
            found: VecDeque::new(),
            blocks: BlockReader::new(),
            block: None,
            repaired: None,
            restarted: 0,
            own: false,
        }
    }

    /// As [`Region::partition`], whoever may read the account.
    pub(crate) fn own(shared: &Arc<Shared>, account: AccountId, partition: PartitionId, from: u64) -> PartitionReader {
        PartitionReader { own: true, ..PartitionReader::new(shared, account, partition, from) }
    }

    /// The sequence of the record that it reads next.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// The next committed transaction, if there is one now. The first may begin before the record that was asked for.
    ///
    /// # Errors
    /// See [`PartitionReader`].
    pub fn try_next(&mut self) -> Result<Option<TransactionView>> {
        self.check_access()?;
        loop {
            match self.step() {
                // Where it was is gone; whether the next record is, too, shows when that is looked for.
                Err(error) if error.kind() == ErrorKind::Trimmed && self.segment.is_some() => self.forget(),
                result => return result,
            }
        }
    }

    /// Refuses where the account is not to be read here; forgets where the copy has begun anew.
    fn check_access(&mut self) -> Result<()> {
        let (hidden, restarted) = {
            let catalog = self.shared.readable();
            (!self.own && catalog.hidden.contains(&self.account), catalog.restarted)
        };
        if hidden {
            let message = format!("account {} cannot be read here: see its role and read access", self.account.0);
            return Err(Error::new(ErrorKind::Secondary, message));
        }
        if restarted != self.restarted {
            self.restarted = restarted;
            self.forget();
        }
        Ok(())
    }

    /// The first segment that counts for the partition.
    fn first(&self) -> SegmentId {
        self.shared.readable().first_of(self.account, self.partition)
    }

    fn step(&mut self) -> Result<Option<TransactionView>> {
        loop {
            // Read first: the index holds at least what was committed then.
            let committed = Lsn(self.shared.committed.get());
            let segment = match self.segment {
                Some(segment) => segment,
                None => self.locate(committed)?,
            };
            self.segment = Some(segment);
            if let Some(posting) = self.found.front().copied() {
                match self.transaction(segment, posting)? {
                    Some(view) => {
                        let transaction = view.transaction();
                        self.next = transaction.first_sequence() + transaction.len() as u64;
                        self.found.pop_front();
                        return Ok(Some(view));
                    }
                    None => self.remake_index(segment)?,
                }
                continue;
            }
            self.look(segment, committed)?;
            if self.found.is_empty() {
                if segment >= committed.segment() {
                    return Ok(None);
                }
                self.segment = Some(SegmentId(segment.0 + 1));
            }
        }
    }

    /// Goes on at the first retained record when the next one was trimmed; returns where that is.
    ///
    /// # Errors
    /// As [`PartitionReader::try_next`].
    pub fn skip_trimmed(&mut self) -> Result<u64> {
        self.check_access()?;
        let committed = Lsn(self.shared.committed.get());
        let behind = SegmentId(committed.segment().0 + 1);
        let retained = match self.untrimmed(|reader, first| reader.first_in(first, behind))? {
            Some((_, held)) => held.first_sequence,
            None => self.shared.next_sequence(self.account, self.partition)?,
        };
        self.forget();
        self.next = self.next.max(retained);
        Ok(self.next)
    }

    fn forget(&mut self) {
        self.segment = None;
        self.found.clear();
        self.block = None;
    }

    /// Fetches the next postings that `segment` holds below `committed`.
    fn look(&mut self, segment: SegmentId, committed: Lsn) -> Result<()> {
        let postings = self.shared.postings(segment, self.account, self.partition, self.next)?;
        let below = |posting: &Posting| Lsn::new(segment, posting.offset) < committed;
        self.found = postings.into_iter().take_while(below).collect();
        match self.found.front() {
            Some(first) if first.sequence > self.next => {
                let found = first.sequence;
                self.found.clear();
                Err(self.gap(segment, found)?)
            }
            _ => Ok(()),
        }
    }

    /// The log goes on behind the next record: it was trimmed, or an index is not whole.
    fn gap(&mut self, segment: SegmentId, found: u64) -> Result<Error> {
        let expected = self.next;
        self.forget();
        if self.first_in(self.first(), segment)?.is_none() {
            let message = format!("record {expected} was trimmed: the partition begins at {found}");
            return Ok(Error::new(ErrorKind::Trimmed, message));
        }
        let what = "partition: sequence of the next transaction";
        Ok(Error::corrupt(Corruption { segment, offset: 0, what, expected, found }))
    }

    /// The segment that holds the next record, or the last one when no segment does yet.
    fn locate(&self, committed: Lsn) -> Result<SegmentId> {
        if let Some(segment) = self.search(committed)? {
            return Ok(segment);
        }
        if self.first() > SegmentId(1) || self.next > 0 {
            let next = self.shared.next_sequence(self.account, self.partition)?;
            let committed = Lsn(self.shared.committed.get());
            // What was asked for may have been committed since.
            if let Some(segment) = self.search(committed)? {
                return Ok(segment);
            }
            if next > self.next {
                let message = format!("record {} was trimmed, with all before {next}", self.next);
                return Err(Error::new(ErrorKind::Trimmed, message));
            }
        }
        // The last committed block may have been trimmed, with the segment that it ended.
        Ok(committed.segment().max(self.first()))
    }

    /// Runs on the retained segments from the first on, again when that is trimmed meanwhile.
    fn untrimmed<T>(&self, run: impl Fn(&PartitionReader, SegmentId) -> Result<T>) -> Result<T> {
        loop {
            let first = self.first();
            match run(self, first) {
                Err(error) if error.kind() == ErrorKind::Trimmed && self.first() > first => {}
                result => return result,
            }
        }
    }

    /// The last segment in which the partition begins at or before the next record, or else the first that holds it.
    fn search(&self, committed: Lsn) -> Result<Option<SegmentId>> {
        self.untrimmed(|reader, first| reader.search_from(first, committed))
    }

    fn search_from(&self, first: SegmentId, committed: Lsn) -> Result<Option<SegmentId>> {
        let (mut low, mut high) = (first, SegmentId(committed.segment().0 + 1));
        let (mut begins, mut behind) = (None, None);
        while low < high {
            let middle = SegmentId(low.0 + (high.0 - low.0) / 2);
            match self.first_in(middle, high)? {
                Some((at, held)) if held.first_sequence <= self.next => {
                    begins = Some(at);
                    if self.next < held.next_sequence {
                        break;
                    }
                    low = SegmentId(at.0 + 1);
                }
                Some((at, _)) => (behind, high) = (Some(at), middle),
                None => high = middle,
            }
        }
        Ok(begins.or(behind))
    }

    /// The first segment from `low` on and before `high` that holds something of the partition.
    fn first_in(&self, low: SegmentId, high: SegmentId) -> Result<Option<(SegmentId, IndexPartition)>> {
        for id in low.0..high.0 {
            if let Some(held) = self.shared.partition_in(SegmentId(id), self.account, self.partition)? {
                return Ok(Some((SegmentId(id), held)));
            }
        }
        Ok(None)
    }

    /// The transaction that a posting names; `None` when another one is there.
    fn transaction(&mut self, segment: SegmentId, posting: Posting) -> Result<Option<TransactionView>> {
        let offset = posting.offset & !ORDINAL;
        if self.block.as_ref().is_none_or(|cursor| cursor.block.lsn() != Lsn::new(segment, offset)) {
            let block = self.blocks.get(&self.shared, segment, offset, Start::Known)?;
            self.block = Some(Cursor::new(block));
        }
        let Some(cursor) = self.block.as_mut() else { return Ok(None) };
        let view = cursor.transaction(posting.offset & ORDINAL);
        Ok(view.filter(|view| {
            let found = view.transaction();
            (found.account(), found.partition(), found.first_sequence())
                == (self.account, self.partition, posting.sequence)
        }))
    }

    /// An index named what is not there: it is made again from the segment, once.
    fn remake_index(&mut self, segment: SegmentId) -> Result<()> {
        self.found.clear();
        if self.repaired.replace(segment) == Some(segment) {
            let what = "partition: transaction that the index names";
            let (expected, found) = (self.next, 0);
            return Err(Error::corrupt(Corruption { segment, offset: 0, what, expected, found }));
        }
        self.shared.scan_index(segment).map(drop)
    }
}

impl Iterator for PartitionReader {
    type Item = Result<TransactionView>;

    fn next(&mut self) -> Option<Result<TransactionView>> {
        self.try_next().transpose()
    }
}

/// A way through the frames of one block, forwards.
struct Cursor {
    block: BlockView,
    /// The frame at `at` bytes into the block is this one.
    ordinal: u32,
    at: usize,
}

impl Cursor {
    fn new(block: BlockView) -> Cursor {
        Cursor { block, ordinal: 0, at: BLOCK_HEADER }
    }

    fn transaction(&mut self, ordinal: u32) -> Option<TransactionView> {
        let end = Block::trusted(&self.block.data).header().length as usize;
        if ordinal < self.ordinal {
            (self.ordinal, self.at) = (0, BLOCK_HEADER);
        }
        loop {
            let len = self.block.data.get(self.at..end).and_then(Frame::trusted)?.len();
            if self.ordinal == ordinal {
                let lsn = Lsn::new(self.block.segment, self.block.offset | ordinal);
                return Some(TransactionView { lsn, data: self.block.data.part(self.at..self.at + len) });
            }
            self.ordinal += 1;
            self.at += len;
        }
    }
}

impl Shared {
    fn next_sequence(&self, account: AccountId, partition: PartitionId) -> Result<u64> {
        self.ask(|done| crate::shared::Request::Control(Control::NextSequence { account, partition, done }))
    }
}
