//! Opening a region: superblocks, promise, end of the log, seals, tables, replay, in FAULT-MODEL's order.

use std::sync::{Arc, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{BlockHeader, Checkpoint, DATA_START, EpochEntry, Seal, SegmentIndex};
use crate::health::DiskState;
use crate::io::{Arena, DiskIndex};
use crate::log::Log;
use crate::log::attach::{Found as FoundDisks, Known};
use crate::log::disk::Slot;
use crate::log::index::IndexBuilder;
use crate::log::pipeline::{Active, Pipeline};
use crate::log::placement::{COPIES, QUORUM};
use crate::log::prepare::Need;
use crate::log::seal::{Checkpointer, checkpoint_name, index_name};
use crate::log::tables::Tables;
use crate::log::tail::{Unsealed, Voter, seal};
use crate::log::walk::{Link, Place, start};
use crate::shared::lock;
use crate::transaction::Committed;
use crate::types::{Epoch, Lsn, SegmentId};

/// The link before the first block of a log.
const GENESIS: Link = Link { sequence: 1, chain: 0 };
/// Indexes and checkpoints larger than this are not read.
const DERIVED_LIMIT: u64 = 16 << 30;

impl Log {
    /// Opens a region that exists. What fails leaves the disks such that the same call can be made again (invariant 17).
    pub(crate) async fn recover(&self) -> Result<()> {
        let started = self.ops.now();
        let found = self.attach_all(false).await?;
        self.promise(&found).await?;
        self.read_catalog_from_disks(&found).await?;
        let (link, end, seals) = self.recover_tail(&found).await?;
        self.publish_all();
        self.load_tables().await?;
        self.settle_recovered(seals).await?;
        self.begin(link, end).await?;
        self.replay(end).await?;
        self.sweep().await;
        let mut stats = self.stats.borrow_mut();
        stats.recovery_bytes = self.recovery_bytes.get();
        stats.recovery_time = self.ops.now() - started;
        Ok(())
    }

    /// Makes a region on empty directories.
    pub(crate) async fn create(&self) -> Result<()> {
        self.attach_all(true).await?;
        self.meta.borrow_mut().trim = SegmentId(1);
        self.begin(GENESIS, Lsn::new(SegmentId(1), 0)).await?;
        // Disks without room for two segments are no use, empty or not: the first commits need not wait to find out.
        self.with(|pipeline| pipeline.may_fill = true);
        let tables = Tables::default();
        *self.checkpointer.borrow_mut() = Some(Checkpointer::new(tables, SegmentId(1), SegmentId(1), 0));
        Ok(())
    }

    /// Step 2: no writer of an older epoch can go on once a majority has promised.
    async fn promise(&self, found: &FoundDisks) -> Result<()> {
        {
            let mut meta = self.meta.borrow_mut();
            meta.promised = Epoch(found.promised.0 + 1);
            meta.clean = false;
        }
        if planted!(SkipPromise) {
            return Ok(());
        }
        self.persist(&[]).await
    }

    /// Promises one more epoch, before any disk learns that it begins.
    pub(crate) async fn promise_next(&self) -> Result<Epoch> {
        let epoch = {
            let mut meta = self.meta.borrow_mut();
            meta.promised = Epoch(meta.promised.0 + 1);
            meta.promised
        };
        self.persist(&[]).await.map(|()| epoch)
    }

    /// Steps 3 and 4 for every segment without a seal, in order. Returns the link and the position behind the last block, and the
    /// seals that the superblocks do not know yet.
    async fn recover_tail(&self, found: &FoundDisks) -> Result<(Link, Lsn, Vec<Seal>)> {
        let (mut link, first) = self.last_sealed();
        let mut end = Lsn::new(first, DATA_START);
        if let Some((id, seal)) = self.sealed_before(first) {
            end = Lsn::new(id, seal.length);
        }
        let unsealed: Vec<SegmentId> = {
            let catalog = self.catalog.borrow();
            catalog.iter().map(|(id, _)| id).filter(|id| *id >= first).collect()
        };
        let mut commit = found.committed;
        let mut seals: Vec<(Seal, Vec<DiskIndex>)> = Vec::new();
        for &id in &unsealed {
            let mut segment = self.unsealed(id, found);
            for &later in unsealed.iter().filter(|other| **other > id) {
                for header in self.first_blocks(later, found).await {
                    commit = commit.max(header.commit);
                    segment.continued.push(Link { sequence: header.sequence, chain: header.chain });
                }
            }
            let builder = Mutex::new(IndexBuilder::new(id));
            let from = link;
            let walked = self.find_end(&mut segment, from, commit, &builder).await?;
            commit = commit.max(walked.commit);
            if walked.link == from {
                continue;
            }
            // A gap: the blocks of a later segment continue only where the one before ended.
            end = Lsn::new(id, walked.end);
            link = walked.link;
            if let Some(known) = segment.seal.as_ref().filter(|known| link != behind(known)) {
                let message = format!("segment {}: its blocks end otherwise than sealed at {}", id.0, known.length);
                return Err(Error::new(ErrorKind::RestoreDisk, message));
            }
            let set = self.catalog.borrow().get(id).map(|segment| segment.set.clone()).unwrap_or_default();
            let holders = segment.voters.iter().filter(|voter| !voter.lost).map(|voter| voter.place.disk).collect();
            let known = segment.seal.take();
            let seal = known.unwrap_or_else(|| seal(&segment, from, &walked, set, self.meta.borrow().log()));
            seals.push((seal, holders));
            self.write_catalog(|catalog| {
                catalog.builders.insert(id, Arc::new(builder));
            });
        }
        if link.sequence <= found.committed {
            let message =
                format!("the log ends before block {}, {} are known to be committed", link.sequence, found.committed);
            return Err(Error::new(ErrorKind::RestoreDisk, message));
        }
        let seals = self.settle_tail(first, seals);
        Ok((link, end, seals))
    }

    /// The recovered seals go to the catalog; segments behind them hold nothing. Returns those that are not listed.
    fn settle_tail(&self, first: SegmentId, seals: Vec<(Seal, Vec<DiskIndex>)>) -> Vec<Seal> {
        let last = seals.last().map_or(SegmentId(first.0 - 1), |(seal, _)| seal.segment);
        // One that failed since its superblock was read, when it was to promise or to take a block, holds nothing (invariant 5).
        let attached = self.attached();
        let mut catalog = self.catalog.borrow_mut();
        let mut meta = self.meta.borrow_mut();
        let mut unlisted = Vec::new();
        for (seal, holders) in seals {
            let Some(segment) = catalog.get_mut(seal.segment) else { continue };
            for copy in &mut segment.copies {
                copy.held = holders.contains(&copy.disk) && attached.contains(&copy.disk);
            }
            if !meta.seals.contains(&seal) {
                unlisted.push(seal.clone());
            }
            segment.seal = Some(seal);
        }
        // Segments behind the end begin anew, with other epochs and other ends than a change that was cut short gave them.
        meta.seals.retain(|seal| seal.segment <= last);
        let empty: Vec<SegmentId> = catalog.iter().map(|(id, _)| id).filter(|id| *id > last).collect();
        for id in empty.into_iter().rev() {
            for copy in catalog.remove(id).into_iter().flat_map(|segment| segment.copies) {
                self.free_slot(copy.disk, copy.slot);
            }
        }
        unlisted
    }

    /// The link behind the last sealed segment, and the first segment without a seal.
    fn last_sealed(&self) -> (Link, SegmentId) {
        let catalog = self.catalog.borrow();
        let sealed = catalog.iter().take_while(|(_, segment)| segment.seal.is_some()).last();
        let last = sealed.and_then(|(id, segment)| segment.seal.as_ref().map(|seal| (id, seal)));
        match last {
            Some((id, seal)) => (behind(seal), SegmentId(id.0 + 1)),
            None => (GENESIS, self.meta.borrow().trim),
        }
    }

    fn sealed_before(&self, first: SegmentId) -> Option<(SegmentId, Seal)> {
        let id = SegmentId(first.0.checked_sub(1)?);
        let catalog = self.catalog.borrow();
        catalog.get(id).and_then(|segment| segment.seal.clone()).map(|seal| (id, seal))
    }

    /// The disks with a vote on an unsealed segment: members of its set whose own superblock knows its epoch
    /// (invariant 7).
    fn unsealed(&self, id: SegmentId, found: &FoundDisks) -> Unsealed {
        let catalog = self.catalog.borrow();
        let segment = catalog.get(id).expect("an unsealed segment was listed from the catalog");
        let log = self.meta.borrow().log();
        // Every live disk promises an epoch before any learns that it begins: one that promised it, and was not behind then, is not stale.
        let knows = |known: &&Known| known.sound >= segment.epoch || planted!(StaleDiskVotes);
        let votes = |disk: DiskIndex| found.disks.get(&disk).filter(knows);
        let voters = segment.copies.iter().filter_map(|copy| {
            let known = votes(copy.disk)?;
            let place = Place { log, epoch: segment.epoch, segment: id, disk: copy.disk, file: copy.slot.file };
            Some(Voter::new(place, known.flushed))
        });
        let disks = self.disks.borrow();
        let members = segment.set.iter().filter_map(|id| disks.iter().find(|disk| disk.id == Some(*id)));
        let without = members.filter(|disk| segment.copy_on(disk.index).is_none() && !disk.unread);
        let bare = without.filter_map(|disk| votes(disk.index)).map(|known| known.flushed);
        let blank = disks.iter().filter(|disk| disk.state == DiskState::Blank && planted!(BlankDiskVotes));
        let bare = bare.chain(blank.map(|_| Lsn::ZERO));
        Unsealed {
            segment: id,
            epoch: segment.epoch,
            set: segment.set.len(),
            voters: voters.collect(),
            bare: bare.collect(),
            continued: Vec::new(),
            seal: segment.seal.clone(),
        }
    }

    /// The first block of a segment, as each disk has it.
    async fn first_blocks(&self, id: SegmentId, found: &FoundDisks) -> Vec<BlockHeader> {
        let places: Vec<Place> = self.unsealed(id, found).voters.iter().map(|voter| voter.place).collect();
        let mut headers = Vec::new();
        for place in places {
            let Ok(bytes) = self.read_block(&place, DATA_START, self.largest_block()).await else { continue };
            let block = crate::format::Block::verify_at(&bytes, place.log, place.epoch, id, DATA_START);
            headers.extend(block.ok().map(|block| block.header()));
        }
        headers
    }

    /// The newest checkpoint, the indexes behind it, and the recovered tail make the tables.
    async fn load_tables(&self) -> Result<()> {
        let (mut tables, written, len) = self.load_checkpoint().await?;
        let sealed: Vec<SegmentId> = {
            let catalog = self.catalog.borrow();
            catalog.iter().map(|(id, _)| id).filter(|id| *id >= written).collect()
        };
        if let Some(first) = sealed.first().filter(|first| **first != written) {
            let message = format!("the checkpoint reaches segment {}, the log begins at {}", written.0, first.0);
            return Err(Error::new(ErrorKind::RestoreDisk, message));
        }
        let window = self.options.client_window;
        let mut next = written;
        let mut checkpointed = None;
        for id in sealed {
            if checkpointed.is_none()
                && let Some(index) = self.load_index(id).await
            {
                tables.advance(&index, window);
                next = SegmentId(id.0 + 1);
                self.write_catalog(|catalog| {
                    catalog.builders.remove(&id);
                });
                continue;
            }
            checkpointed.get_or_insert_with(|| tables.clone());
            self.scan_into_builder(id).await?;
            let builder = self.builder(id);
            tables.advance(&lock(&builder).finish(self.meta.borrow().log(), window), window);
        }
        tables.check_limits(&self.options)?;
        self.write_catalog(|catalog| {
            tables.accounts().for_each(|account| {
                catalog.put_account(account);
                if !planted!(ContractsForgotten) {
                    self.shared.gates.put_account(account);
                }
            });
            catalog.restarts.extend(tables.restarted());
        });
        let sealed_tables = checkpointed.unwrap_or_else(|| tables.clone());
        *self.checkpointer.borrow_mut() = Some(Checkpointer::new(sealed_tables, next, written, len));
        *self.tables.borrow_mut() = tables;
        Ok(())
    }

    async fn load_checkpoint(&self) -> Result<(Tables, SegmentId, usize)> {
        let trim = self.meta.borrow().trim;
        let mut known: Vec<(u32, DiskIndex)> = Vec::new();
        for disk in self.attached() {
            for (name, _) in self.ops.list(disk).await.unwrap_or_default() {
                let number = name.strip_prefix("checkpoint-").and_then(|number| number.parse().ok());
                known.extend(number.map(|number| (number, disk)));
            }
        }
        known.sort_unstable_by(|a, b| b.cmp(a));
        let log = self.meta.borrow().log();
        let after = self.catalog.borrow().iter().last().map_or(trim.0, |(id, _)| id.0 + 1);
        for (at, &(number, disk)) in known.iter().enumerate() {
            let name = checkpoint_name(SegmentId(number));
            let Ok(bytes) = self.ops.read_file(disk, name, DERIVED_LIMIT).await else { continue };
            self.recovery_bytes.set(self.recovery_bytes.get() + bytes.len() as u64);
            match Checkpoint::decode(&bytes) {
                // One from a future that was lost, or from another log, is not this log's.
                Ok(found) if found.log == log && (trim.0..=after).contains(&found.next_segment.0) => {
                    let next = found.next_segment;
                    // Further copies are counted, not read.
                    let copies = known[at..].iter().filter(|(other, _)| *other == number).map(|(_, disk)| *disk);
                    *self.checkpoint_on.borrow_mut() = copies.collect();
                    self.offer_checkpoint.set(true);
                    return Ok((Tables::from_checkpoint(found, self.options.client_window), next, bytes.len()));
                }
                _ => {}
            }
        }
        if trim.0 > 1 {
            let message = "no disk has a checkpoint that reaches the first retained segment: restore a disk";
            return Err(Error::new(ErrorKind::RestoreDisk, message));
        }
        Ok((Tables::default(), SegmentId(1), 0))
    }

    /// A sealed segment's index from any of its disks.
    async fn load_index(&self, id: SegmentId) -> Option<SegmentIndex> {
        let log = self.meta.borrow().log();
        for disk in self.attached() {
            let Ok(bytes) = self.ops.read_file(disk, index_name(id), DERIVED_LIMIT).await else { continue };
            self.recovery_bytes.set(self.recovery_bytes.get() + bytes.len() as u64);
            let index = SegmentIndex::decode(&bytes).ok();
            if let Some(index) = index.filter(|index| index.log == log && index.segment == id) {
                return Some(index);
            }
        }
        None
    }

    /// Makes a sealed segment's index again by reading it, unless that was done when its end was found.
    async fn scan_into_builder(&self, id: SegmentId) -> Result<()> {
        if self.read_catalog().builders.contains_key(&id) {
            return Ok(());
        }
        let mut builder = IndexBuilder::new(id);
        self.for_each_block(id, |lsn, frame| builder.add(lsn, frame)).await?;
        self.write_catalog(|catalog| {
            catalog.builders.insert(id, Arc::new(Mutex::new(builder)));
        });
        Ok(())
    }

    /// Reads a sealed segment from whichever copy verifies, frame by frame.
    async fn for_each_block(&self, id: SegmentId, mut each: impl FnMut(Lsn, &crate::format::Frame<'_>)) -> Result<()> {
        let seal = self.catalog.borrow().get(id).and_then(|segment| segment.seal.clone());
        let Some(seal) = seal else { return Ok(()) };
        let (mut at, mut link) = (DATA_START, start(&seal));
        while at < seal.length {
            let run = self.read_any(id, at, seal.length, link).await?;
            self.recovery_bytes.set(self.recovery_bytes.get() + run.bytes.len() as u64);
            for (offset, block) in run.blocks() {
                for (ordinal, (_, frame)) in block.frames().enumerate() {
                    each(Lsn::new(id, offset | ordinal as u32), &frame);
                }
            }
            (at, link) = (run.end(), run.link);
        }
        Ok(())
    }

    /// The first epoch of this opening: a new segment on a new set, durable before anything is served.
    async fn begin(&self, link: Link, end: Lsn) -> Result<()> {
        let id = SegmentId(self.catalog.borrow().iter().last().map_or(self.meta.borrow().trim.0, |(id, _)| id.0 + 1));
        let counted: Vec<DiskIndex> = {
            let disks = self.disks.borrow();
            disks.iter().filter(|disk| disk.is_live()).map(|disk| disk.index).collect()
        };
        self.make_table_room().await?;
        let mut again = false;
        loop {
            let set: Vec<DiskIndex> = self.first_set()?;
            // Another epoch, so that no slot of an attempt that failed passes for one of this, and every disk of the set promises it
            // while it counts.
            if std::mem::replace(&mut again, true) || set.iter().any(|disk| !counted.contains(disk)) {
                self.promise_next().await?;
            }
            let ids = self.ids(&set);
            let epoch = self.meta.borrow().promised;
            let Ok(slots) = self.prepare(epoch, id, &set, &ids, Need::Epoch).await else { continue };
            self.meta.borrow_mut().begin_epoch(EpochEntry { epoch, first_segment: id, set: ids });
            match self.persist(&set).await {
                Ok(()) => {
                    return self.start_pipeline(epoch, id, &set, &slots, link, end);
                }
                Err(error) if set.iter().all(|disk| self.disks.borrow()[disk.0].is_live()) => return Err(error),
                Err(_) => set.iter().zip(slots).for_each(|(&disk, slot)| self.free_slot(disk, slot)),
            }
        }
    }

    fn first_set(&self) -> Result<Vec<DiskIndex>> {
        let set = self.set_in_need();
        if set.len() < QUORUM {
            let message = "fewer than two usable disks in different domains: restore disks or add space";
            return Err(Error::new(self.without_disks(), message));
        }
        debug_assert!(set.len() <= COPIES, "a set has three disks at most");
        Ok(set)
    }

    /// What to do where too few disks can be written: give them space, if one is full, or bring one back.
    pub(crate) fn without_disks(&self) -> ErrorKind {
        let full = self.disks.borrow().iter().any(|disk| disk.full);
        if full { ErrorKind::NoSpace } else { ErrorKind::RestoreDisk }
    }

    fn start_pipeline(
        &self,
        epoch: Epoch,
        id: SegmentId,
        set: &[DiskIndex],
        slots: &[Slot],
        link: Link,
        end: Lsn,
    ) -> Result<()> {
        let memory = Arena::new(self.options.block_memory())
            .map_err(|error| Error::new(ErrorKind::System, format!("no memory for blocks: {error}")))?;
        let commit = link.sequence - 1;
        let members = set.iter().map(|&disk| self.member(disk, commit, end)).collect();
        let files = slots.iter().map(|slot| slot.file).collect();
        let pipeline = Pipeline {
            log: self.meta.borrow().log(),
            epoch,
            members,
            active: Active::new(id, files, link.sequence, link.chain),
            next: None,
            closing: Default::default(),
            open: None,
            flying: Default::default(),
            next_sequence: link.sequence,
            chain: link.chain,
            commit,
            committed: end,
            all: Default::default(),
            remote: Default::default(),
            paused: false,
            held_back: false,
            crowd: 0,
            answered_at: 0,
            impatient: 0,
            starved: false,
            no_space: false,
            may_fill: set.iter().all(|disk| !self.disks.borrow()[disk.0].free.is_empty()),
            memory,
            wakers: Vec::new(),
            released: (0, 0),
        };
        self.open_segment(&pipeline, id, slots);
        *self.pipeline.borrow_mut() = Some(pipeline);
        *lock(&self.shared.log) = self.meta.borrow().log;
        if end > Lsn(self.shared.committed.get()) {
            self.shared.committed.advance(end.0);
        }
        self.publish_all();
        Ok(())
    }

    /// Hands the state machine what it has not durably applied itself.
    async fn replay(&self, end: Lsn) -> Result<()> {
        let from = self.machine.borrow().resume_from();
        if from > end && from != Lsn::MAX {
            // What it has is not in the log: what comes next would be applied to a state of another history.
            return Err(Error::invalid(format!("the state machine resumes from {from}, the log ends at {end}")));
        }
        if from >= end {
            return Ok(());
        }
        let first = self.meta.borrow().trim;
        if from != Lsn::ZERO && from < Lsn::new(first, DATA_START) {
            let message = format!("the state machine resumes from {from}, the log begins at segment {}", first.0);
            return Err(Error::new(ErrorKind::Trimmed, message));
        }
        let segments: Vec<SegmentId> = {
            let catalog = self.catalog.borrow();
            let sealed = catalog.iter().filter(|(id, segment)| *id >= from.segment() && segment.seal.is_some());
            sealed.map(|(id, _)| id).collect()
        };
        for id in segments {
            let mut panicked = None;
            self.for_each_block(id, |lsn, frame| {
                let committed = Committed::new(lsn, *frame);
                if lsn < from || panicked.is_some() {
                    return;
                }
                panicked = self.apply_one(&committed).err();
            })
            .await?;
            if let Some(error) = panicked {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Removes what a crash or a disk that was away left of derived files: nothing reads it again.
    async fn sweep(&self) {
        let written = self.checkpointer.borrow().as_ref().map(|checkpointer| checkpointer.written);
        let trim = self.meta.borrow().trim;
        // An older checkpoint may be the only one that another disk has.
        let safe = self.safe_checkpoint().is_some();
        for disk in self.attached() {
            for (name, _) in self.ops.list(disk).await.unwrap_or_default() {
                let number = |prefix| name.strip_prefix(prefix).and_then(|number| number.parse().ok()).map(SegmentId);
                let old = number("checkpoint-").is_some_and(|next| safe && Some(next) != written)
                    || number("index-").is_some_and(|id| id < trim);
                if old || name.ends_with(".tmp") {
                    // Left again, it takes space until the next opening.
                    drop(self.ops.remove(disk, name).await);
                }
            }
        }
    }

    /// The disks whose files can be read.
    pub(crate) fn attached(&self) -> Vec<DiskIndex> {
        let disks = self.disks.borrow();
        let readable = disks.iter().filter(|disk| matches!(disk.state, DiskState::Healthy | DiskState::Rebuilding));
        readable.map(|disk| disk.index).collect()
    }
}

/// The link behind a sealed segment.
fn behind(seal: &Seal) -> Link {
    Link { sequence: seal.next_sequence, chain: seal.end_chain }
}
