//! What follows a segment's end: seal pages on its copies, its index on disk, the checkpoint moved on.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{join_all, select};

use crate::format::Seal;
use crate::io::{DiskIndex, FileId};
use crate::log::Log;
use crate::log::catalog::{Copy, Segment};
use crate::log::disk::Slot;
use crate::log::index::IndexBuilder;
use crate::log::lack::state_after;
use crate::log::pipeline::Pipeline;
use crate::log::placement::QUORUM;
use crate::log::prepare::is_full;
use crate::log::tables::Tables;
use crate::shared::{ReadCatalog, ReadSegment};
use crate::types::{DiskId, SegmentId};

/// The file that holds the index of a sealed segment.
pub(crate) fn index_name(segment: SegmentId) -> String {
    format!("index-{:010}", segment.0)
}

/// The file that holds the tables before a segment.
pub(crate) fn checkpoint_name(next: SegmentId) -> String {
    format!("checkpoint-{:010}", next.0)
}

/// A checkpoint is written after so many sealed segments, or sooner when their indexes outweigh the last one.
const CHECKPOINT_SEGMENTS: u32 = 16;
/// How often late copies of sealed segments are looked at.
const LATE_COPY: Duration = Duration::from_millis(20);
/// A checkpoint smaller than this is not worth waiting for more.
const CHECKPOINT_BYTES: usize = 1 << 20;

/// How far the sealed tables have come.
pub(crate) struct Checkpointer {
    pub(crate) tables: Tables,
    /// The first segment that the tables do not cover.
    pub(crate) next: SegmentId,
    /// The first segment that the checkpoint on disk does not cover.
    pub(crate) written: SegmentId,
    written_bytes: usize,
    pending_bytes: usize,
}

impl Checkpointer {
    pub(crate) fn new(tables: Tables, next: SegmentId, written: SegmentId, written_bytes: usize) -> Checkpointer {
        Checkpointer { tables, next, written, written_bytes, pending_bytes: 0 }
    }

    fn is_due(&self) -> bool {
        let segments = self.next.0 - self.written.0;
        segments >= CHECKPOINT_SEGMENTS || self.pending_bytes > self.written_bytes.max(CHECKPOINT_BYTES)
    }
}

impl Log {
    pub(crate) async fn keep_sealing(self: std::rc::Rc<Log>) {
        let mut seen = 0;
        loop {
            while self.seal_one().await {}
            let change = std::pin::pin!(self.changed.wait(&mut seen));
            // A copy that lags behind a seal reaches it without any other change.
            let pause = std::pin::pin!(self.ops.sleep(LATE_COPY));
            let _first = select(change, pause).await;
        }
    }

    /// One step of sealing, if there is one to take.
    async fn seal_one(&self) -> bool {
        // A disk that is being let go is given up by nobody: its pages would be tried again and
        // again.
        if self.halted.borrow().is_some() || self.leaving.get() {
            return false;
        }
        if let Some((segment, seal, copies)) = self.next_pages() {
            self.write_pages(segment, &seal, &copies).await;
            return true;
        }
        if let Some(segment) = self.next_to_index() {
            self.write_index(segment).await;
            return true;
        }
        let offered = self.offer_checkpoint.take();
        if offered {
            self.write_checkpoint().await;
        }
        offered
    }

    /// The first sealed segment with a copy that holds everything and lacks its page.
    fn next_pages(&self) -> Option<(SegmentId, Seal, Vec<Copy>)> {
        self.mark_held();
        let catalog = self.catalog.borrow();
        let disks = self.disks.borrow();
        // One that is being trimmed gets no page any more: it is not the next, or there would be no end to it.
        catalog.iter().filter(|(id, _)| !self.is_trimmed(*id)).find_map(|(id, segment)| {
            let seal = segment.seal.as_ref()?;
            let ready = |copy: &&Copy| copy.held && !copy.complete && disks[copy.disk.0].is_live();
            let copies: Vec<Copy> = segment.copies.iter().filter(ready).cloned().collect();
            (!copies.is_empty()).then(|| (id, seal.clone(), copies))
        })
    }

    /// Copies of sealed segments whose member has everything up to the seal.
    pub(crate) fn mark_held(&self) {
        let mut catalog = self.catalog.borrow_mut();
        self.with(|pipeline| {
            for (_, segment) in catalog.iter_mut().filter(|(_, segment)| segment.epoch == pipeline.epoch) {
                let Some(seal) = &segment.seal else { continue };
                let last = seal.next_sequence - 1;
                let holds = |copy: &Copy| {
                    pipeline
                        .members
                        .iter()
                        .any(|member| member.disk == copy.disk && member.live && member.durable >= last)
                };
                for copy in segment.copies.iter_mut().filter(|copy| !copy.held) {
                    copy.held = holds(copy);
                }
            }
        });
    }

    pub(crate) async fn write_pages(&self, segment: SegmentId, seal: &Seal, copies: &[Copy]) {
        let _stage = stage!(Seal);
        let _slots_stay = self.paging.lock().await;
        if self.is_trimmed(segment) {
            return;
        }
        let bytes = seal.encode();
        let writes = copies.iter().map(|copy| async {
            match self.ops.write_page(copy.disk, copy.slot.file, 4096, &bytes).await {
                // A disk that was lost meanwhile does not count, whatever it still completed (invariant 5).
                Ok(()) if self.attached().contains(&copy.disk) => {
                    self.catalog.borrow_mut().set_complete(segment, copy.disk, true);
                }
                Ok(()) => {}
                Err(error) => self.lose(copy.disk, state_after(&error), format!("a seal's write failed: {error}")),
            }
        });
        join_all(writes).await;
        self.publish(segment);
        self.changed.raise();
    }

    /// The first sealed segment whose index is not on disk: indexes are written in order.
    fn next_to_index(&self) -> Option<SegmentId> {
        let catalog = self.catalog.borrow();
        let next = self.checkpointer.borrow().as_ref()?.next;
        let segment = catalog.get(next)?;
        (segment.seal.is_some() && segment.complete().count() >= QUORUM.min(segment.copies.len()).max(1))
            .then_some(next)
    }

    /// Writes a sealed segment's index beside its copies and moves the tables over it. An index that cannot be written
    /// is no loss: it is made again from the segment when it is needed.
    async fn write_index(&self, segment: SegmentId) {
        let _stage = stage!(Seal);
        let builder = self.builder(segment);
        let Some(mut checkpointer) = self.checkpointer.borrow_mut().take() else { return };
        let (log, window) = (self.meta.borrow().log(), self.options.client_window);
        let end_chain = self.end_chain(segment).unwrap_or_default();
        let made = self.ops.compute(move || {
            let index = crate::shared::lock(&builder).finish(log, end_chain, window);
            checkpointer.tables.advance(&index, window);
            checkpointer.next = SegmentId(segment.0 + 1);
            let bytes = index.encode();
            checkpointer.pending_bytes += bytes.len();
            let due = checkpointer.is_due();
            (checkpointer, bytes, due)
        });
        let Ok((checkpointer, bytes, due)) = made.await else {
            self.halt(crate::Error::new(crate::ErrorKind::System, "the index of a segment could not be computed"));
            return;
        };
        *self.checkpointer.borrow_mut() = Some(checkpointer);
        let bytes = Arc::new(bytes);
        let disks: Vec<DiskIndex> = self.holders(segment);
        let writes = disks.iter().map(|&disk| self.ops.write_file(disk, index_name(segment), Arc::clone(&bytes)));
        drop(join_all(writes).await);
        self.drop_builder(segment);
        if due {
            self.write_checkpoint().await;
        }
        self.changed.raise();
    }

    /// The checksum of a sealed segment's last block.
    pub(crate) fn end_chain(&self, segment: SegmentId) -> Option<u64> {
        self.catalog.borrow().get(segment).and_then(|segment| segment.seal.as_ref()).map(|seal| seal.end_chain)
    }

    fn holders(&self, segment: SegmentId) -> Vec<DiskIndex> {
        let catalog = self.catalog.borrow();
        let disks = self.disks.borrow();
        let copies = catalog.get(segment).into_iter().flat_map(|segment| segment.complete());
        copies.map(|copy| copy.disk).filter(|disk| disks[disk.0].is_live()).collect()
    }

    /// Writes the tables before the first unsealed segment to every live disk that lacks them. Returns the segment that they
    /// reach, once a quorum of disks has them.
    pub(crate) async fn write_checkpoint(&self) -> Option<SegmentId> {
        let mut seen = self.changed.seen();
        let checkpointer = loop {
            if let Some(checkpointer) = self.checkpointer.borrow_mut().take() {
                break checkpointer;
            }
            // They are away while they are moved over a segment or encoded, which ends with a signal.
            if self.halted.borrow().is_some() {
                return None;
            }
            self.changed.wait(&mut seen).await;
        };
        let (next, old) = (checkpointer.next, checkpointer.written);
        let targets = self.without_checkpoint(next, old);
        if targets.is_empty() {
            *self.checkpointer.borrow_mut() = Some(checkpointer);
            return Some(next);
        }
        let log = self.meta.borrow().log();
        let made = self.ops.compute(move || {
            let bytes = checkpointer.tables.to_checkpoint(log, checkpointer.next).encode();
            (checkpointer, bytes)
        });
        let Ok((checkpointer, bytes)) = made.await else {
            self.halt(crate::Error::new(crate::ErrorKind::System, "the checkpoint could not be computed"));
            return None;
        };
        let len = bytes.len();
        *self.checkpointer.borrow_mut() = Some(checkpointer);
        self.changed.raise();
        let bytes = Arc::new(bytes);
        let writes = targets.iter().map(|&disk| self.write_checkpoint_on(disk, next, &bytes));
        let written = join_all(writes).await;
        let written = targets.into_iter().zip(written).filter_map(|(disk, ok)| ok.then_some(disk));
        if next == old {
            self.checkpoint_on.borrow_mut().extend(written);
            return self.safe_checkpoint();
        }
        let written: BTreeSet<DiskIndex> = written.collect();
        if written.len() < QUORUM {
            return None;
        }
        *self.checkpoint_on.borrow_mut() = written.clone();
        if let Some(checkpointer) = self.checkpointer.borrow_mut().as_mut() {
            checkpointer.written = next;
            checkpointer.written_bytes = len;
            checkpointer.pending_bytes = 0;
        }
        for disk in written {
            // What remains of an older checkpoint only takes space; the next opening removes it.
            drop(self.ops.remove(disk, checkpoint_name(old)).await);
        }
        Some(next)
    }

    /// The live disks that lack the checkpoint which reaches `next`, where that before reaches `old`.
    fn without_checkpoint(&self, next: SegmentId, old: SegmentId) -> Vec<DiskIndex> {
        let has = self.checkpoint_on.borrow();
        let lacks = |disk: &DiskIndex| next != old || (next > SegmentId(1) && !has.contains(disk));
        let disks = self.disks.borrow();
        disks.iter().filter(|disk| disk.is_live()).map(|disk| disk.index).filter(lacks).collect()
    }

    /// How far the last checkpoint reaches, if a quorum of the disks that count has it.
    pub(crate) fn safe_checkpoint(&self) -> Option<SegmentId> {
        let disks = self.disks.borrow();
        let has = self.checkpoint_on.borrow();
        let safe = has.iter().filter(|disk| disks[disk.0].is_live()).count() >= QUORUM;
        self.checkpointer.borrow().as_ref().map(|checkpointer| checkpointer.written).filter(|_| safe)
    }

    /// A disk without space for the checkpoint, without which nothing can be trimmed, gives up the indexes that it covers:
    /// they are made again from their segments when they are needed.
    async fn write_checkpoint_on(&self, disk: DiskIndex, next: SegmentId, bytes: &Arc<Vec<u8>>) -> bool {
        let write = || self.ops.write_file(disk, checkpoint_name(next), Arc::clone(bytes));
        match write().await {
            Ok(()) => return true,
            Err(error) if !is_full(&error) => return false,
            Err(_) => {}
        }
        let covered: Vec<SegmentId> = {
            let catalog = self.catalog.borrow();
            let indexed = catalog.iter().filter(|(id, segment)| *id < next && segment.copy_on(disk).is_some());
            indexed.map(|(id, _)| id).collect()
        };
        for id in covered {
            // One that is not there frees nothing.
            if self.ops.remove(disk, index_name(id)).await.is_ok() && write().await.is_ok() {
                return true;
            }
        }
        false
    }

    /// A new segment has become the active one.
    pub(crate) fn open_segment(&self, pipeline: &Pipeline, id: SegmentId, slots: &[Slot]) {
        let copies = pipeline.members.iter().zip(slots);
        let copies = copies.map(|(member, slot)| Copy { disk: member.disk, slot: *slot, held: false, complete: false });
        let (epoch, set, copies) = (pipeline.epoch, self.set_ids(pipeline), copies.collect());
        let segment = Segment { epoch, set, seal: None, copies, settled: false };
        self.catalog.borrow_mut().insert(id, segment);
        self.write_catalog(|catalog| {
            catalog.builders.insert(id, Arc::new(Mutex::new(IndexBuilder::new(id))));
        });
        self.publish(id);
    }

    /// The segment is committed to its end: readers may go on to the next, the sealer may start.
    pub(crate) fn close_for_readers(&self, id: SegmentId) {
        let seal = self.with(|pipeline| {
            let at = pipeline.closing.iter().position(|seal| seal.segment == id)?;
            pipeline.closing.remove(at)
        });
        if let Some(seal) = seal {
            if let Some(segment) = self.catalog.borrow_mut().get_mut(id) {
                segment.seal = Some(seal);
            }
            self.publish(id);
            self.changed.raise();
        }
    }

    pub(crate) fn set_ids(&self, pipeline: &Pipeline) -> Vec<DiskId> {
        let disks = self.disks.borrow();
        pipeline.members.iter().filter_map(|member| disks[member.disk.0].id).collect()
    }

    fn drop_builder(&self, segment: SegmentId) {
        self.write_catalog(|catalog| {
            catalog.builders.remove(&segment);
        });
    }

    /// Shows readers a segment as the catalog has it.
    pub(crate) fn publish(&self, id: SegmentId) {
        let segment = self.catalog.borrow().get(id).map(|segment| self.readable(segment));
        self.write_catalog(|catalog| match segment {
            Some(segment) => {
                catalog.segments.insert(id, segment);
            }
            None => {
                catalog.segments.remove(&id);
            }
        });
    }

    pub(crate) fn publish_all(&self) {
        let first = self.meta.borrow().trim;
        let segments = {
            let catalog = self.catalog.borrow();
            catalog.iter().map(|(id, segment)| (id, self.readable(segment))).collect()
        };
        self.write_catalog(|catalog| {
            catalog.first = first;
            catalog.segments = segments;
        });
    }

    /// Complete copies first, then those that take blocks or still wait for their page.
    fn readable(&self, segment: &Segment) -> ReadSegment {
        let disks = self.disks.borrow();
        let live = |copy: &&Copy| disks[copy.disk.0].is_live();
        let mut copies: Vec<(bool, DiskIndex, FileId)> =
            segment.copies.iter().filter(live).map(|copy| (!copy.complete, copy.disk, copy.slot.file)).collect();
        copies.sort_unstable();
        ReadSegment {
            epoch: segment.epoch,
            end: segment.seal.as_ref().map(|seal| seal.length),
            end_chain: segment.seal.as_ref().map(|seal| seal.end_chain),
            copies: copies.into_iter().map(|(_, disk, file)| (disk, file)).collect(),
        }
    }

    pub(crate) fn write_catalog(&self, change: impl FnOnce(&mut ReadCatalog)) {
        let catalog = &self.shared.catalog;
        change(&mut catalog.write().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    pub(crate) fn read_catalog(&self) -> std::sync::RwLockReadGuard<'_, ReadCatalog> {
        self.shared.catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
