//! Changing the replica set while the region runs: seal at the commit length, a new epoch, a new segment on healthy disks.
//!
//! Invariants 4 and 8: the seal and the new epoch are durable on a majority of superblocks, and on every disk of the new
//! set, before the first block of the new epoch is written.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::select;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{BLOCK_HEADER, Block, DATA_START, EpochEntry, Seal};
use crate::health::DiskState;
use crate::io::{Buffer, DiskIndex};
use crate::log::Log;
use crate::log::admit::degraded;
use crate::log::disk::{Disk, Slot};
use crate::log::ops::nanos;
use crate::log::pipeline::{Active, Flying, Member, OpenBlock, Pipeline};
use crate::log::placement::{COPIES, QUORUM, choose};
use crate::log::prepare::Need;
use crate::types::{DiskId, Epoch, Lsn, SegmentId};

/// What is not a block's write may take as long, however short `stall_timeout` is: to make a file, flush its directory or
/// replace it takes several writes. In nanoseconds.
const SLOW_ANSWER: u64 = 100_000_000;

impl Log {
    /// Changes the set when a disk left it, stalls, or when a better one can be had.
    pub(crate) async fn keep_set(self: Rc<Log>) {
        let mut seen = 0;
        loop {
            if self.halted.borrow().is_none() {
                self.find_stalled();
                self.find_better_set();
                let wanted = self.reconfigure.borrow_mut().take();
                if wanted.is_some()
                    && let Err(error) = self.change_set().await
                {
                    self.halt(error);
                }
            }
            let change = std::pin::pin!(self.changed.wait(&mut seen));
            let pause = std::pin::pin!(self.ops.sleep(self.look().min(self.until_stalled())));
            let _first = select(change, pause).await;
        }
    }

    /// How long from now the next disk has stalled, unless it answers.
    fn until_stalled(&self) -> Duration {
        let timeout = nanos(self.options.stall_timeout);
        let members = self.live_members().into_iter().filter_map(|(_, at)| self.with(|pipeline| pipeline.oldest(at)));
        let blocks = members.map(|started| started + timeout);
        let answering = self.answering().into_iter().filter_map(|disk| self.ops.oldest(disk));
        let others = answering.map(|started| started + timeout.max(SLOW_ANSWER));
        let first = blocks.chain(others).min().unwrap_or(u64::MAX);
        // A moment later than that: a look in time finds it in time.
        Duration::from_nanos(first.saturating_sub(self.ops.now()).saturating_add(1_000_000))
    }

    /// The disks that are expected to answer.
    fn answering(&self) -> Vec<DiskIndex> {
        let disks = self.disks.borrow();
        let answers = disks.iter().filter(|disk| matches!(disk.state, DiskState::Healthy | DiskState::Rebuilding));
        answers.map(|disk| disk.index).collect()
    }

    /// A disk that leaves an operation undone for too long has stalled, whatever the operation and whether or not it is a
    /// member; so has a member that lags too many bytes (acceptance L4, H3).
    fn find_stalled(&self) {
        let (looked, timeout) = (self.ops.polled(), nanos(self.options.stall_timeout));
        self.lose_where(|_, at| {
            let late = looked.saturating_sub(self.with(|pipeline| pipeline.oldest(at))?);
            (late > timeout).then(|| format!("a write did not complete in {} ms", late / 1_000_000))
        });
        for disk in self.answering().into_iter().filter(|_| !planted!(OverdueUnnoticed)) {
            let late = self.ops.oldest(disk).map_or(0, |started| looked.saturating_sub(started));
            if late > timeout.max(SLOW_ANSWER) {
                let reason = format!("an operation did not complete in {} ms", late / 1_000_000);
                self.lose(disk, DiskState::Stalled, reason);
            }
        }
        let lagging = |at| self.with(|pipeline| Some(pipeline.lag(at)).filter(|lag| *lag > self.options.lag_bytes));
        self.lose_where(|disk, at| {
            let lag = lagging(at).filter(|_| self.can_spare(disk))?;
            Some(format!("its copy lags {lag} bytes behind"))
        });
        // The log waits for one that it needs.
        let waits = self.live_members().into_iter().any(|(_, at)| lagging(at).is_some());
        self.with(|pipeline| pipeline.held_back = waits);
        self.note_hanging(looked);
    }

    /// Tells readers which disks leave an operation undone for longer than one look, and which were given up for that.
    fn note_hanging(&self, looked: u64) {
        let late = |started: Option<u64>| started.is_some_and(|at| looked.saturating_sub(at) > nanos(self.look()));
        let stalled = |disk: &Disk| disk.state == DiskState::Stalled || late(self.ops.oldest(disk.index));
        let other =
            self.disks.borrow().iter().filter(|disk| stalled(disk)).map(|disk| disk.index.0).collect::<Vec<_>>();
        let members = self.live_members().into_iter();
        let members = members.filter(|(_, at)| late(self.with(|pipeline| pipeline.oldest(*at))));
        let hanging = other.into_iter().chain(members.map(|(disk, _)| disk.0)).fold(0, |bits, disk| bits | 1 << disk);
        self.shared.hanging.store(hanging, Ordering::Relaxed);
    }

    /// How often the disks are looked at.
    fn look(&self) -> Duration {
        (self.options.stall_timeout / 8).clamp(Duration::from_millis(1), Duration::from_millis(50))
    }

    /// Gives up the members that have a reason, one after the other.
    fn lose_where(&self, reason: impl Fn(DiskIndex, usize) -> Option<String>) {
        for (disk, at) in self.live_members() {
            if let Some(reason) = reason(disk, at) {
                self.lose(disk, DiskState::Stalled, reason);
            }
        }
    }

    fn live_members(&self) -> Vec<(DiskIndex, usize)> {
        self.with(|pipeline| {
            let members = pipeline.members.iter().enumerate();
            members.filter(|(_, member)| member.live).map(|(at, member)| (member.disk, at)).collect()
        })
    }

    /// Whether the log could go on without this member: what is committed stays on two that count, a set remains to be
    /// chosen, and a majority of superblocks.
    fn can_spare(&self, disk: DiskIndex) -> bool {
        let others = self.live_members().into_iter().filter(|(other, _)| *other != disk).count();
        let superblocks = self.attached().into_iter().filter(|other| *other != disk).count();
        let set = self.choose_set_from(|other| other.takes_segments() && other.index != disk);
        others >= QUORUM && set.len() >= QUORUM && superblocks >= self.meta.borrow().majority()
    }

    /// A set of two grows, and a set with a draining disk changes, as soon as it can, which is not before its members have slots for that. So
    /// does one that lost a disk while it was made.
    fn find_better_set(&self) {
        if self.reconfigure.borrow().is_some() {
            return;
        }
        if self.with(|pipeline| pipeline.members.iter().any(|member| !member.live)) {
            *self.reconfigure.borrow_mut() = Some("a disk was lost before its set began".into());
            return;
        }
        let members: Vec<usize> = self.with(|pipeline| pipeline.members.iter().map(|member| member.disk.0).collect());
        let out_of_slots = || members.iter().any(|&at| self.disks.borrow()[at].free.is_empty());
        if self.with(|pipeline| pipeline.no_space && !pipeline.holds_nothing()) && out_of_slots() {
            return;
        }
        let draining = members.iter().any(|&at| self.disks.borrow()[at].draining);
        let chosen = self.choose_set().len();
        if (members.len() < COPIES && chosen > members.len()) || (draining && chosen >= QUORUM) {
            *self.reconfigure.borrow_mut() = Some("a better set can be had".into());
        }
    }

    /// The disks that the next segment should lie on, as many as can be had up to three: members of the present set first.
    pub(crate) fn choose_set(&self) -> Vec<usize> {
        self.choose_set_from(Disk::takes_segments)
    }

    /// As [`Log::choose_set`]; where that would be fewer than two, drained and full disks serve, too, and at worst those that are still being
    /// reread: what they are sent from now on they have. Who takes one of those has to promise anew before the epoch begins, or the disk would not be sound in it.
    pub(crate) fn set_in_need(&self) -> Vec<DiskIndex> {
        let ways: [fn(&Disk) -> bool; 3] = [Disk::takes_segments, Disk::serves_in_need, Disk::serves_at_worst];
        let mut sets = ways.into_iter().map(|takes| self.choose_set_from(takes));
        let set = sets.find(|set| set.len() >= QUORUM).unwrap_or_default();
        let mut disks = self.disks.borrow_mut();
        for &at in set.iter().filter(|at| !disks[**at].is_live()).collect::<Vec<_>>() {
            disks[at].set(DiskState::Healthy, "stale, taken for new segments; its copies are being checked");
        }
        set.into_iter().map(DiskIndex).collect()
    }

    pub(crate) fn choose_set_from(&self, takes: impl Fn(&Disk) -> bool) -> Vec<usize> {
        let disks = self.disks.borrow();
        let members: Vec<usize> = match self.pipeline.borrow().as_ref() {
            Some(pipeline) => pipeline.members.iter().map(|member| member.disk.0).collect(),
            None => Vec::new(),
        };
        let takes = |at: &usize| takes(&disks[*at]);
        let others = (0..disks.len()).filter(|at| !members.contains(at));
        let eligible: Vec<usize> = members.iter().copied().chain(others).filter(takes).collect();
        choose(self.options.placement, &self.options.disks, &[], &eligible)
    }

    async fn change_set(&self) -> Result<()> {
        let _stage = stage!(Reconfigure);
        let started = self.ops.now();
        self.with(|pipeline| {
            pipeline.paused = true;
            self.send_while_there_is_room(pipeline);
        });
        self.quiesce().await;
        loop {
            // What is prepared was prepared for the old epoch: its slots are free for the new one.
            self.release_prepared();
            self.release_empty();
            let set = self.set_in_need();
            if set.len() < QUORUM {
                let message = format!(
                    "fewer than two healthy disks in different domains are left; restore and open again: {}",
                    self.refusals()
                );
                return Err(Error::new(ErrorKind::RestoreDisk, message));
            }
            if self.start_epoch(&set).await? {
                break;
            }
        }
        let took = self.ops.now() - started;
        self.stats.borrow_mut().set_change.saturating_record(took);
        self.changed.raise();
        Ok(())
    }

    /// On full disks the next epoch's first segment may get the last slots, and has to stay empty then, or no opening would find any: what
    /// was admitted goes to the present segment, while two members can take it, and nothing more is.
    fn send_while_there_is_room(&self, pipeline: &mut Pipeline) {
        if !pipeline.no_space {
            return;
        }
        pipeline.may_fill = false;
        let size = self.options.segment_bytes;
        let live = pipeline.members.iter().filter(|member| member.live).count();
        let filled = pipeline.open.as_ref().is_some_and(|open| open.frames > 0);
        if filled && live >= QUORUM && pipeline.fits_active(size) && pipeline.fits_again(size) {
            self.send(pipeline, self.ops.now());
        }
    }

    /// Waits until every live member has what was sent to it. Members that fail or stall meanwhile no longer count.
    async fn quiesce(&self) {
        let mut seen = self.changed.seen();
        while !self.with(|pipeline| pipeline.is_quiet()) {
            let change = std::pin::pin!(self.changed.wait(&mut seen));
            let pause = std::pin::pin!(self.ops.sleep(self.options.stall_timeout / 4));
            let _first = select(change, pause).await;
            self.find_stalled();
        }
    }

    fn release_prepared(&self) {
        let Some((disks, slots)) = self.with(|pipeline| {
            let disks: Vec<DiskIndex> = pipeline.members.iter().map(|member| member.disk).collect();
            pipeline.next.take().map(|(_, slots)| (disks, slots))
        }) else {
            return;
        };
        for (disk, slot) in disks.into_iter().zip(slots) {
            self.free_slot(disk, slot);
        }
    }

    /// An active segment that holds nothing begins again with the next epoch, as in an opening: a full disk has no other slot than its. It is
    /// the first of its epoch, since a later one gets a block at once, and nothing was ever sent to it: whoever finds the old header, the new
    /// one or neither finds it empty, and which of them counts the epoch table says.
    fn release_empty(&self) {
        let Some(id) = self.with(|pipeline| pipeline.holds_nothing().then_some(pipeline.active.id)) else { return };
        let copies = self.catalog.borrow_mut().get_mut(id).map(|segment| std::mem::take(&mut segment.copies));
        for copy in copies.into_iter().flatten() {
            self.free_slot(copy.disk, copy.slot);
        }
    }

    /// Seals what is committed and starts the next epoch on `set`. False when one of its disks failed on the way.
    async fn start_epoch(&self, set: &[DiskIndex]) -> Result<bool> {
        self.make_table_room().await?;
        // Each attempt is an epoch of its own, so that no slot of one that failed passes for one of the next.
        let epoch = self.promise_next().await?;
        let (seal, again) = self.with(|pipeline| (cut(pipeline, &self.set_ids(pipeline)), pipeline.holds_nothing()));
        let id = SegmentId(seal.segment.0 + u32::from(!again));
        let ids = self.ids(set);
        let Ok(slots) = self.prepare(epoch, id, set, &ids, Need::Epoch).await else { return Ok(false) };
        {
            let mut meta = self.meta.borrow_mut();
            meta.seals.retain(|known| known.segment < seal.segment);
            if !again {
                meta.list_seal(seal.clone());
            }
            meta.begin_epoch(EpochEntry { epoch, first_segment: id, set: ids });
        }
        if let Err(error) = self.persist(set).await {
            for (&disk, slot) in set.iter().zip(slots) {
                self.free_slot(disk, slot);
            }
            // A disk of the new set is lost: try without it. Without a majority there is no way on.
            let lost = set.iter().any(|disk| !self.disks.borrow()[disk.0].is_live());
            return if lost { Ok(false) } else { Err(error) };
        }
        self.switch(epoch, id, set, &slots, seal);
        Ok(true)
    }

    pub(crate) fn ids(&self, set: &[DiskIndex]) -> Vec<DiskId> {
        let disks = self.disks.borrow();
        set.iter().filter_map(|disk| disks[disk.0].id).collect()
    }

    /// The new epoch begins: everything before is sealed, what was not committed is written again.
    fn switch(&self, epoch: Epoch, id: SegmentId, set: &[DiskIndex], slots: &[Slot], seal: Seal) {
        self.settle_old(&seal, id);
        let again = self.with(|pipeline| {
            let first = pipeline.commit + 1;
            let again: Vec<Flying> = pipeline.flying.drain(..).filter(|flying| flying.sequence >= first).collect();
            pipeline.epoch = epoch;
            pipeline.members = set.iter().map(|&disk| self.member(disk, pipeline.commit, pipeline.committed)).collect();
            pipeline.next_sequence = first;
            pipeline.chain = seal.end_chain;
            let files = slots.iter().map(|slot| slot.file).collect();
            pipeline.active = Active::new(id, files, first, seal.end_chain);
            pipeline.may_fill =
                id < SegmentId::LAST && set.iter().all(|disk| self.has_another_slot(*disk, pipeline.no_space));
            self.open_segment(pipeline, id, slots);
            again
        });
        self.give_up_all();
        self.with(|pipeline| pipeline.paused = self.reconfigure.borrow().is_some());
        for flying in again {
            self.resend(flying);
            if self.halted.borrow().is_some() {
                // Behind one that could not be written again, none may be.
                return;
            }
        }
    }

    pub(crate) fn member(&self, disk: DiskIndex, durable: u64, flushed: Lsn) -> Member {
        let live = self.disks.borrow()[disk.0].is_live();
        Member { disk, token: self.token(), durable, flushed, live }
    }

    /// Segments of the old epoch before `next` get their seals; copies on members that kept up hold all of it.
    fn settle_old(&self, seal: &Seal, next: SegmentId) {
        let (closing, members) = self.with(|pipeline| {
            let mut closing: Vec<Seal> = pipeline.closing.drain(..).collect();
            closing.retain(|closed| closed.segment < seal.segment);
            (closing, pipeline.members.clone())
        });
        let last = seal.next_sequence - 1;
        {
            let mut catalog = self.catalog.borrow_mut();
            for seal in closing.iter().chain([seal]).filter(|seal| seal.segment < next) {
                let Some(segment) = catalog.get_mut(seal.segment) else { continue };
                segment.seal = Some(seal.clone());
                for copy in segment.copies.iter_mut().filter(|copy| !copy.held) {
                    copy.held = members.iter().any(|m| m.disk == copy.disk && m.live && m.durable >= last);
                }
            }
        }
        self.drop_after(SegmentId(next.0 - 1));
        self.publish_all();
    }

    /// Segments that were begun and hold nothing committed: their slots are free.
    fn drop_after(&self, last: SegmentId) {
        let mut catalog = self.catalog.borrow_mut();
        let begun: Vec<SegmentId> = catalog.iter().map(|(id, _)| id).filter(|id| *id > last).collect();
        for id in begun.into_iter().rev() {
            for copy in catalog.remove(id).into_iter().flat_map(|segment| segment.copies) {
                self.free_slot(copy.disk, copy.slot);
            }
            self.write_catalog(|catalog| {
                catalog.builders.remove(&id);
            });
        }
    }

    /// With two copies left, those who wait for three are told.
    fn give_up_all(&self) {
        self.with(|pipeline| {
            if !pipeline.is_degraded() {
                return;
            }
            for (_, pending) in std::mem::take(&mut pipeline.all) {
                pipeline.resolve(pending, Err(degraded()));
            }
        });
    }

    /// Writes a block that was not committed into the new segment: the same frames under a new header.
    fn resend(&self, flying: Flying) {
        let Flying { data, frames, records, clients, pending, started, .. } = flying;
        let len = Block::trusted(&data).header().length as usize;
        let Ok(mut buffer) = Buffer::zeroed(data.len()) else {
            self.halt(Error::new(ErrorKind::System, "no memory to write a block again"));
            return;
        };
        buffer[BLOCK_HEADER..len].copy_from_slice(&data[BLOCK_HEADER..len]);
        self.with(|pipeline| {
            let later = pipeline.open.take();
            let mut pending = pending;
            for pending in pending.iter_mut().filter(|pending| !pending.receipt.repeated) {
                pending.receipt.lsn = Lsn(pending.receipt.lsn.0 & 0xfff);
            }
            pipeline.open = Some(OpenBlock { buffer, len, frames, records, clients, opened: started, pending });
            self.send(pipeline, self.ops.now());
            pipeline.open = later;
        });
    }
}

/// Where the log ends when it is cut at the commit watermark: the seal of the segment that holds the last committed block,
/// or of the first that holds none.
fn cut(pipeline: &Pipeline, set: &[DiskId]) -> Seal {
    let uncommitted = pipeline.flying.iter().find(|flying| flying.sequence > pipeline.commit);
    let uncommitted = uncommitted.filter(|_| !planted!(SealBeyondCommit));
    let Some(first) = uncommitted else { return pipeline.seal_active(set) };
    let full = pipeline.closing.iter().find(|seal| seal.segment == first.segment).cloned();
    let whole = full.unwrap_or_else(|| pipeline.seal_active(set));
    let lost = pipeline.flying.iter().filter(|f| f.sequence > pipeline.commit && f.segment == first.segment);
    let (transactions, records) =
        lost.fold((0, 0), |(frames, records), f| (frames + u64::from(f.frames), records + f.records));
    let seal = Seal {
        length: first.offset,
        next_sequence: pipeline.commit + 1,
        end_chain: Block::trusted(&first.data).header().chain,
        transactions: whole.transactions - transactions,
        records: whole.records - records,
        ..whole
    };
    assert!(seal.length >= DATA_START, "a seal lies behind the pages");
    seal
}
