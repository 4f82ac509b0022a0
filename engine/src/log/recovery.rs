//! Opening a region: superblocks, promise, end of the log, seals, tables, replay, in FAULT-MODEL's order.

use std::sync::{Arc, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{BlockHeader, Checkpoint, DATA_START, EpochEntry, Seal, SegmentIndex};
use crate::health::DiskState;
use crate::io::{Arena, DiskIndex};
use crate::log::Log;
use crate::log::attach::{Found as FoundDisks, Known};
use crate::log::catalog::Segment;
use crate::log::disk::{Disk, Slot};
use crate::log::index::IndexBuilder;
use crate::log::lack::is_host_lack;
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

/// The end of the log, as the survey found it.
struct Tail {
    /// The first segment that had no seal.
    first: SegmentId,
    segments: Vec<TailSegment>,
    /// After the last block.
    link: Link,
    end: Lsn,
}

impl Tail {
    /// The last segment that holds something.
    fn last(&self) -> SegmentId {
        self.segments.last().map_or(SegmentId(self.first.0 - 1), |segment| segment.seal.segment)
    }
}

/// A segment of the tail: its seal, and what the members of its set have of it.
struct TailSegment {
    seal: Seal,
    voters: Vec<Voter>,
}

impl Log {
    /// Opens a region that exists. First it looks, and changes nothing until it has seen all that it decides on; what fails
    /// after that leaves the disks such that the same call can be made again (invariant 17, ADR 0021).
    pub(crate) async fn recover(&self) -> Result<()> {
        let started = self.ops.now();
        self.check_file_size_limit()?;
        let mut found = self.attach_all(false).await?;
        if planted!(WritesBeforeDecision) {
            self.promise(&found).await?;
        }
        self.scan_disks(&mut found).await?;
        let mut rounds = self.options.disks.len();
        let tail = loop {
            let tail = self.survey(&mut found).await?;
            self.ops.allow_writes();
            self.promise(&found).await?;
            match self.write_back(&tail).await {
                Ok(()) => break tail,
                // A disk that alone had a part of the tail cannot be read any longer: without it the log may end elsewhere.
                Err(error) if rounds > 0 && error.kind() != ErrorKind::System => rounds -= 1,
                Err(error) => return Err(error),
            }
        };
        let (link, end) = (tail.link, tail.end);
        self.settle_recovered(self.unlisted_seals(tail)).await?;
        self.begin(link, end).await?;
        self.replay(end).await?;
        self.sweep().await;
        let mut stats = self.stats.borrow_mut();
        stats.recovery_bytes = self.recovery_bytes.get();
        stats.recovery_time = self.ops.now() - started;
        Ok(())
    }

    /// Decides what the region holds, by reading only: which segments there are, where the log ends, what is in it, and
    /// whether this process can serve it.
    async fn survey(&self, found: &mut FoundDisks) -> Result<Tail> {
        self.make_catalog(found)?;
        self.write_catalog(|catalog| catalog.builders.clear());
        let tail = self.recover_tail(found).await?;
        self.settle_tail(&tail);
        self.publish_all();
        self.load_tables(found).await?;
        self.check_resume(tail.end)?;
        self.check_room()?;
        Ok(tail)
    }

    /// Makes a region on directories that hold none. One that cannot be made leaves nothing behind.
    pub(crate) async fn create(&self) -> Result<()> {
        let made = self.make().await;
        if made.is_err() && self.ops.may_write() {
            let disks = self.disks.borrow().iter().map(|disk| (disk.index, disk.config.clone())).collect::<Vec<_>>();
            // The first error is the one to tell; what stays, the next call removes.
            drop(self.unmake(&disks).await);
        }
        made
    }

    async fn make(&self) -> Result<()> {
        self.check_file_size_limit()?;
        self.attach_all(true).await?;
        self.meta.borrow_mut().trim = SegmentId(1);
        self.begin(GENESIS, Lsn::new(SegmentId(1), 0)).await?;
        // Disks without room for two segments are no use, empty or not: the first commits need not wait to find out.
        self.with(|pipeline| pipeline.may_fill = true);
        let tables = Tables::default();
        *self.checkpointer.borrow_mut() = Some(Checkpointer::new(tables, SegmentId(1), SegmentId(1), 0));
        Ok(())
    }

    /// Step 3: no writer of an older epoch can go on once a majority has promised.
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

    /// Step 2: walks every segment without a seal, in order.
    async fn recover_tail(&self, found: &FoundDisks) -> Result<Tail> {
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
        let mut segments: Vec<TailSegment> = Vec::new();
        for &id in &unsealed {
            let mut segment = self.unsealed_known(id, found);
            for &later in unsealed.iter().filter(|other| **other > id) {
                for header in self.first_blocks(later, found).await? {
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
            let known = segment.seal.take();
            let seal = known.unwrap_or_else(|| seal(&segment, from, &walked, set, self.meta.borrow().log()));
            segments.push(TailSegment { seal, voters: segment.voters });
            self.write_catalog(|catalog| {
                catalog.builders.insert(id, Arc::new(builder));
            });
        }
        if link.sequence <= found.committed {
            let message = format!(
                "the log ends before block {}, {} are known to be committed{}",
                link.sequence,
                found.committed,
                self.left_out(found)
            );
            return Err(Error::new(ErrorKind::RestoreDisk, message));
        }
        self.check_next_segment(found, link, commit).await?;
        Ok(Tail { first, segments, link, end })
    }

    /// Whether enough members of the last set say that they hold nothing of the segment after the last known one. A slot
    /// that could not be read may be that segment.
    async fn check_next_segment(&self, found: &FoundDisks, link: Link, commit: u64) -> Result<()> {
        let last = self.catalog.borrow().iter().last().map(|(id, _)| id);
        let next = last.map_or(self.meta.borrow().trim, |id| SegmentId(id.0 + 1));
        let entry = self.meta.borrow().epochs.last().cloned();
        // Nothing was written before the first epoch began.
        let Some(EpochEntry { epoch, set, .. }) = entry else { return Ok(()) };
        if planted!(UnreadVotes) {
            return Ok(());
        }
        let segment = Segment { epoch, set, seal: None, copies: Vec::new(), settled: false };
        let mut unsealed = self.unsealed(next, &segment, found);
        let builder = Mutex::new(IndexBuilder::new(next));
        self.find_end(&mut unsealed, link, commit, &builder).await.map(drop)
    }

    /// The recovered seals go to the catalog; segments after them hold nothing.
    fn settle_tail(&self, tail: &Tail) {
        let mut catalog = self.catalog.borrow_mut();
        for TailSegment { seal, voters } in &tail.segments {
            let Some(segment) = catalog.get_mut(seal.segment) else { continue };
            for copy in &mut segment.copies {
                copy.held = voters.iter().any(|voter| voter.place.disk == copy.disk && voter.lacks.is_none());
            }
            segment.seal = Some(seal.clone());
        }
        let empty: Vec<SegmentId> = catalog.iter().map(|(id, _)| id).filter(|id| *id > tail.last()).collect();
        for id in empty.into_iter().rev() {
            for copy in catalog.remove(id).into_iter().flat_map(|segment| segment.copies) {
                self.free_slot(copy.disk, copy.slot);
            }
        }
    }

    /// Step 4: what one voter has goes to every other that lacks it.
    async fn write_back(&self, tail: &Tail) -> Result<()> {
        for TailSegment { seal, voters } in &tail.segments {
            for voter in voters {
                let Some(from) = voter.lacks.filter(|_| self.attached().contains(&voter.place.disk)) else { continue };
                if self.copy_blocks(&voter.place, seal, from, true, 0).await? {
                    self.catalog.borrow_mut().set_held(seal.segment, voter.place.disk);
                }
            }
        }
        Ok(())
    }

    /// The recovered seals that the superblocks do not list yet.
    fn unlisted_seals(&self, tail: Tail) -> Vec<Seal> {
        let last = tail.last();
        let mut meta = self.meta.borrow_mut();
        // Segments after the end begin again, with other epochs and other ends than a change that was cut short gave them.
        meta.seals.retain(|seal| seal.segment <= last);
        let seals = tail.segments.into_iter().map(|segment| segment.seal);
        seals.filter(|seal| !meta.seals.contains(seal)).collect()
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
    fn unsealed(&self, id: SegmentId, segment: &Segment, found: &FoundDisks) -> Unsealed {
        let log = self.meta.borrow().log();
        // Every live disk promises an epoch before any learns that it begins: one that promised it, and was not behind then, is not stale.
        let knows = |known: &&Known| known.sound >= segment.epoch || planted!(StaleDiskVotes);
        let fresh = Known { flushed: Lsn::ZERO, sound: Epoch(1) };
        let unwritten = |disk: &DiskIndex| found.unwritten.contains(disk).then_some(&fresh);
        let votes = |disk: DiskIndex| found.disks.get(&disk).or_else(|| unwritten(&disk)).filter(knows);
        let voters = segment.copies.iter().filter_map(|copy| {
            let known = votes(copy.disk)?;
            let place = Place { log, epoch: segment.epoch, segment: id, disk: copy.disk, file: copy.slot.file };
            Some(Voter::new(place, known.flushed))
        });
        let disks = self.disks.borrow();
        let members = segment.set.iter().filter_map(|id| disks.iter().find(|disk| disk.id == Some(*id)));
        let without = members.filter(|disk| segment.copy_on(disk.index).is_none() && disk.unread.is_empty());
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

    fn unsealed_known(&self, id: SegmentId, found: &FoundDisks) -> Unsealed {
        let catalog = self.catalog.borrow();
        let segment = catalog.get(id).expect("an unsealed segment was listed from the catalog");
        self.unsealed(id, segment, found)
    }

    /// The first block of a segment, as each disk has it. One that cannot be read is left to the walk of that segment.
    async fn first_blocks(&self, id: SegmentId, found: &FoundDisks) -> Result<Vec<BlockHeader>> {
        let places: Vec<Place> = self.unsealed_known(id, found).voters.iter().map(|voter| voter.place).collect();
        let mut headers = Vec::new();
        for place in places {
            let bytes = match self.read_block(&place, DATA_START, self.largest_block()).await {
                Ok(bytes) => bytes,
                Err(error) if is_host_lack(&error) => return Err(self.host_lacks(place.disk, "a segment", &error)),
                Err(_) => continue,
            };
            let block = crate::format::Block::verify_at(&bytes, place.log, place.epoch, id, DATA_START);
            headers.extend(block.ok().map(|block| block.header()));
        }
        Ok(headers)
    }

    /// The newest checkpoint, the indexes behind it, and the recovered tail make the tables.
    async fn load_tables(&self, found: &FoundDisks) -> Result<()> {
        let (mut tables, written, len) = self.load_checkpoint(found).await?;
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
                && let Some(index) = self.load_index(id).await?
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
            let end_chain = self.end_chain(id).unwrap_or_default();
            tables.advance(&lock(&builder).finish(self.meta.borrow().log(), end_chain, window), window);
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

    async fn load_checkpoint(&self, found: &FoundDisks) -> Result<(Tables, SegmentId, usize)> {
        let trim = self.meta.borrow().trim;
        let mut known: Vec<(u32, DiskIndex, u64)> = Vec::new();
        for disk in self.attached() {
            for (name, len) in found.files.get(&disk).into_iter().flatten() {
                let number = name.strip_prefix("checkpoint-").and_then(|number| number.parse().ok());
                known.extend(number.map(|number| (number, disk, *len)));
            }
        }
        known.sort_unstable_by(|a, b| b.cmp(a));
        let log = self.meta.borrow().log();
        let after = self.catalog.borrow().iter().last().map_or(trim.0, |(id, _)| id.0 + 1);
        let mut refused = Vec::new();
        for &(number, disk, _) in &known {
            let name = checkpoint_name(SegmentId(number));
            let bytes = match self.ops.read_file(disk, name.clone(), DERIVED_LIMIT).await {
                Ok(bytes) => bytes,
                Err(error) if is_host_lack(&error) => return Err(self.host_lacks(disk, &name, &error)),
                // An older one does as well, as far as the segments after it are there.
                Err(error) => {
                    refused.push(format!("{}: {name}: {error}", self.names(&[disk.0])));
                    continue;
                }
            };
            self.recovery_bytes.set(self.recovery_bytes.get() + bytes.len() as u64);
            match Checkpoint::decode(&bytes) {
                // One from a future or a history that was given up, or from another log, is not
                // this log's.
                Ok(checkpoint)
                    if checkpoint.log == log
                        && (trim.0..=after).contains(&checkpoint.next_segment.0)
                        && self.chain_before(checkpoint.next_segment) == Some(checkpoint.chain) =>
                {
                    let next = checkpoint.next_segment;
                    // Further copies are counted by their length, not read.
                    let same = |(other, _, len): &&(_, _, u64)| *other == number && *len == bytes.len() as u64;
                    *self.checkpoint_on.borrow_mut() = known.iter().filter(same).map(|(_, disk, _)| *disk).collect();
                    self.offer_checkpoint.set(true);
                    let tables = Tables::from_checkpoint(checkpoint, self.options.client_window);
                    return Ok((tables, next, bytes.len()));
                }
                _ => refused.push(format!("{}: {name} is not this log's, or does not verify", self.names(&[disk.0]))),
            }
        }
        if trim.0 > 1 {
            let seen = if refused.is_empty() { "none was found".to_owned() } else { refused.join(", ") };
            let message = format!(
                "no disk has a checkpoint that reaches segment {}, the first retained: {seen}{}; restore a disk",
                trim.0,
                self.left_out(found)
            );
            return Err(Error::new(ErrorKind::RestoreDisk, message));
        }
        Ok((Tables::default(), SegmentId(1), 0))
    }

    /// The checksum of the last block before a retained segment, or before the one after the last.
    fn chain_before(&self, id: SegmentId) -> Option<u64> {
        let catalog = self.catalog.borrow();
        let seal_of = |id: SegmentId| catalog.get(id).and_then(|segment| segment.seal.as_ref());
        let own = seal_of(id).map(|seal| seal.base_chain);
        let before = || seal_of(SegmentId(id.0.checked_sub(1)?)).map(|seal| seal.end_chain);
        // A trim keeps the last sealed segment: without one, there was never a block.
        let first = || (id == self.meta.borrow().trim).then_some(GENESIS.chain);
        own.or_else(before).or_else(first)
    }

    /// A sealed segment's index from any of its disks. One that cannot be read is made again from the segment.
    async fn load_index(&self, id: SegmentId) -> Result<Option<SegmentIndex>> {
        let (log, end_chain) = (self.meta.borrow().log(), self.end_chain(id));
        for disk in self.attached() {
            let bytes = match self.ops.read_file(disk, index_name(id), DERIVED_LIMIT).await {
                Ok(bytes) => bytes,
                Err(error) if is_host_lack(&error) => return Err(self.host_lacks(disk, &index_name(id), &error)),
                Err(_) => continue,
            };
            self.recovery_bytes.set(self.recovery_bytes.get() + bytes.len() as u64);
            let index = SegmentIndex::decode(&bytes).ok();
            // One of another history, which was given up, names what is not in this log.
            let of_this = |index: &SegmentIndex| Some(index.end_chain) == end_chain;
            if let Some(index) = index.filter(|index| index.log == log && index.segment == id && of_this(index)) {
                return Ok(Some(index));
            }
        }
        Ok(None)
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
            return Err(self.too_few_disks(self.without_disks()));
        }
        debug_assert!(set.len() <= COPIES, "a set has three disks at most");
        Ok(set)
    }

    /// What to do where too few disks can be written: give them space, if one is full, or bring one back.
    pub(crate) fn without_disks(&self) -> ErrorKind {
        let full = self.disks.borrow().iter().any(Disk::is_full);
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
            may_fill: id < SegmentId::LAST && set.iter().all(|disk| !self.disks.borrow()[disk.0].free.is_empty()),
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

    /// Whether the state machine can go on from where it is.
    fn check_resume(&self, end: Lsn) -> Result<()> {
        let from = self.resume_from()?;
        if from > end && from != Lsn::MAX {
            // What it has is not in the log: what comes next would be applied to a state of another history.
            return Err(Error::invalid(format!("the state machine resumes from {from}, the log ends at {end}")));
        }
        let first = self.meta.borrow().trim;
        if from < end && from != Lsn::ZERO && from < Lsn::new(first, DATA_START) {
            let message = format!("the state machine resumes from {from}, the log begins at segment {}", first.0);
            return Err(Error::new(ErrorKind::Trimmed, message));
        }
        Ok(())
    }

    /// Hands the state machine what it has not durably applied itself.
    async fn replay(&self, end: Lsn) -> Result<()> {
        let from = self.resume_from()?;
        if from >= end {
            return Ok(());
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
            self.remove_unfinished(disk).await;
            // What cannot be listed or removed takes space until the next opening.
            for (name, _) in self.ops.list(disk).await.unwrap_or_default() {
                let whole = name.strip_suffix(".tmp").unwrap_or(&name);
                let number = |prefix| whole.strip_prefix(prefix).and_then(|number| number.parse().ok()).map(SegmentId);
                let (checkpoint, index) = (number("checkpoint-"), number("index-"));
                let cut_short = whole != name && (checkpoint.is_some() || index.is_some());
                let old =
                    checkpoint.is_some_and(|next| safe && Some(next) != written) || index.is_some_and(|id| id < trim);
                if old || cut_short {
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
