//! Making sealed segments whole again: late copies brought to the sealed length, lost ones made on healthy disks
//! (acceptance L3, L4).

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures::future::select;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{DATA_START, Seal, SegmentHeader};
use crate::health::DiskState;
use crate::io::DiskIndex;
use crate::log::Log;
use crate::log::catalog::{Copy, Segment};
use crate::log::disk::{Disk, Slot};
use crate::log::lack::state_after;
use crate::log::placement::{COPIES, QUORUM, choose};
use crate::log::prepare::Need;
use crate::log::walk::{Broken, Link, Place, Run, start};
use crate::types::SegmentId;

impl Log {
    pub(crate) async fn keep_whole(self: Rc<Log>) {
        let mut seen = 0;
        // What could not be rebuilt this time round: another segment's turn, and a pause before the next.
        let mut skipped: BTreeSet<SegmentId> = BTreeSet::new();
        loop {
            let next = if self.halted.borrow().is_some() { None } else { self.next_to_rebuild(&skipped) };
            match next {
                Some(id) => {
                    match self.rebuild_one(id, Need::Growth).await {
                        Ok(true) => self.changed.raise(),
                        Ok(false) | Err(_) => {
                            skipped.insert(id);
                        }
                    }
                    // Who waits to trim, to take a disk back or to repair has its turn: the lock goes to whoever asks first.
                    self.ops.sleep(Duration::ZERO).await;
                }
                None if skipped.is_empty() => {
                    self.welcome_back();
                    self.free_set_aside();
                    self.changed.wait(&mut seen).await;
                }
                None => {
                    skipped.clear();
                    self.ops.sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// Disks whose copies have all been reread count again (invariants 5 and 7).
    fn welcome_back(&self) {
        let mut changed = false;
        let reread = |disk: &&mut Disk| disk.state == DiskState::Rebuilding && !disk.joining;
        for disk in self.disks.borrow_mut().iter_mut().filter(reread) {
            disk.set(DiskState::Healthy, "");
            changed = true;
        }
        if changed {
            self.offer_checkpoint.set(true);
            self.publish_all();
            self.changed.raise();
        }
    }

    /// Slots whose pages could not be read may hold what no other disk has. Once every sealed segment has its copies, they
    /// do not.
    fn free_set_aside(&self) {
        let catalog = self.catalog.borrow();
        let settled = |segment: &Segment| segment.seal.is_none() || segment.complete().count() >= QUORUM;
        if !catalog.iter().all(|(_, segment)| settled(segment)) {
            return;
        }
        for disk in self.disks.borrow_mut().iter_mut().filter(|disk| disk.is_live()) {
            disk.free.append(&mut disk.set_aside);
        }
    }

    /// The first sealed segment for which a copy can be made or completed; before all others one that takes room in
    /// the superblocks until it has two.
    fn next_to_rebuild(&self, skipped: &BTreeSet<SegmentId>) -> Option<SegmentId> {
        let catalog = self.catalog.borrow();
        let thin = catalog.iter().filter(|(id, segment)| segment.seal.is_some() && !skipped.contains(id));
        let thin = thin.filter(|(_, segment)| self.target(segment).is_some());
        thin.map(|(id, segment)| (segment.settled, id)).min().map(|(_, id)| id)
    }

    /// Where the next copy of this segment goes, if it lacks one: a late copy on a disk that answers, or a fresh disk
    /// whose domains fit the others.
    pub(crate) fn target(&self, segment: &Segment) -> Option<(DiskIndex, Option<Slot>)> {
        let disks = self.disks.borrow();
        let answers = |disk: DiskIndex| matches!(disks[disk.0].state, DiskState::Healthy | DiskState::Rebuilding);
        // A member of the present set still completes what it was sent.
        let sent = |copy: &Copy| {
            let pipeline = self.pipeline.borrow();
            pipeline.as_ref().is_some_and(|pipeline| {
                segment.epoch == pipeline.epoch && pipeline.members.iter().any(|m| m.disk == copy.disk && m.live)
            })
        };
        let late = |copy: &&Copy| !copy.held && answers(copy.disk) && !sent(copy);
        if let Some(copy) = segment.copies.iter().find(late) {
            return Some((copy.disk, Some(copy.slot)));
        }
        let kept: Vec<usize> = segment
            .copies
            .iter()
            .filter(|copy| (copy.held && answers(copy.disk)) || sent(copy))
            .map(|copy| copy.disk.0)
            .collect();
        if kept.len() >= COPIES {
            return None;
        }
        // A second copy is worth a disk that does not count yet: what is copied to it is verified.
        let spare = |at: &usize| {
            let disk = &disks[*at];
            kept.len() < QUORUM
                && disk.state == DiskState::Rebuilding
                && !disk.joining
                && !disk.draining
                && !disk.is_full()
        };
        let others = |at: &usize| !kept.contains(at);
        let healthy = (0..disks.len()).filter(|at| disks[*at].takes_segments()).filter(others);
        let eligible: Vec<usize> = healthy.chain((0..disks.len()).filter(spare).filter(others)).collect();
        let set = choose(self.options.placement, &self.options.disks, &kept, &eligible);
        set.get(kept.len()).map(|&at| (DiskIndex(at), None))
    }

    /// Makes one more complete copy of a sealed segment. False when there is nowhere to, or it failed on the way.
    pub(crate) async fn rebuild_one(&self, id: SegmentId, need: Need) -> Result<bool> {
        let _slots_stay = self.rebuilding.lock().await;
        let _stage = stage!(Rebuild);
        let (target, seal, epoch, set) = {
            let catalog = self.catalog.borrow();
            let Some(segment) = catalog.get(id) else { return Ok(false) };
            let (Some(seal), Some(target)) = (segment.seal.clone(), self.target(segment)) else {
                return Ok(false);
            };
            (target, seal, segment.epoch, segment.set.clone())
        };
        let (disk, known) = target;
        let slot = match known {
            Some(slot) => slot,
            None => match self.fresh_slot(disk, need).await {
                Ok(slot) => slot,
                Err(error) => {
                    self.could_not_rebuild(disk, &error);
                    return Ok(false);
                }
            },
        };
        let header = SegmentHeader { log: seal.log, segment: id, epoch, size: self.options.segment_bytes, set };
        let place = Place { log: seal.log, epoch, segment: id, disk, file: slot.file };
        // What an opening or a change of the set waits for is not slowed down.
        let pace = if need == Need::Growth { self.options.rebuild_bytes_per_second } else { 0 };
        let done = self.fill(&place, &header, &seal, known.is_some(), pace).await;
        self.finish_rebuild(id, disk, slot, known.is_some(), done)
    }

    /// A slot whose old header is gone, so that a half-made copy is nobody's.
    async fn fresh_slot(&self, disk: DiskIndex, need: Need) -> std::io::Result<Slot> {
        let slot = self.take_slot(disk, need).await?;
        let cleared = self.clear_header(disk, slot).await;
        if cleared.is_err() {
            self.free_slot(disk, slot);
        }
        cleared.map(|()| slot)
    }

    fn finish_rebuild(
        &self,
        id: SegmentId,
        disk: DiskIndex,
        slot: Slot,
        known: bool,
        done: Result<bool>,
    ) -> Result<bool> {
        let answers = self.attached().contains(&disk);
        let kept = {
            let mut catalog = self.catalog.borrow_mut();
            let segment = catalog.get_mut(id);
            match (&done, segment) {
                (Ok(true), Some(segment)) if answers => {
                    segment.copies.retain(|copy| copy.disk != disk);
                    segment.copies.push(Copy { disk, slot, held: true, complete: true });
                    segment.settle();
                    true
                }
                // Trimmed meanwhile, or failed: what was there stays there, a fresh slot goes back.
                (_, segment) => known && segment.is_some(),
            }
        };
        if !kept && !known {
            self.free_slot(disk, slot);
        }
        self.publish(id);
        done
    }

    /// Brings a slot to exactly the sealed bytes. The pages come last: without them it is no copy.
    async fn fill(&self, place: &Place, header: &SegmentHeader, seal: &Seal, known: bool, pace: u64) -> Result<bool> {
        if !self.copy_blocks(place, seal, (DATA_START, start(seal)), known, pace).await? {
            return Ok(false);
        }
        for (offset, bytes) in [(0, header.encode()), (4096, seal.encode())] {
            if let Err(error) = self.ops.write_page(place.disk, place.file, offset, &bytes).await {
                self.could_not_rebuild(place.disk, &error);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Brings the blocks of a slot from a position on to what was sealed: what verifies there stays, the rest comes from
    /// the other copies. False when the disk refuses, or the segment is not wanted any longer.
    pub(crate) async fn copy_blocks(
        &self,
        place: &Place,
        seal: &Seal,
        (mut at, mut link): (u32, Link),
        known: bool,
        pace: u64,
    ) -> Result<bool> {
        while at < seal.length && !(known && planted!(LateCopyUnread)) {
            if self.is_trimmed(place.segment) || self.halted.borrow().is_some() {
                return Ok(false);
            }
            if known && let Ok(run) = self.read_run(place, at, seal.length, link).await {
                (at, link) = (run.end(), run.link);
                continue;
            }
            let run = self.read_any(place.segment, at, seal.length, link).await?;
            (at, link) = (run.end(), run.link);
            let Run { at: offset, bytes, .. } = run;
            let len = bytes.len() as u64;
            if let Err(error) = self.ops.write(place.disk, place.file, u64::from(offset), bytes.share()).await {
                self.could_not_rebuild(place.disk, &error);
                return Ok(false);
            }
            self.throttle(len, pace).await;
        }
        let unverified = planted!(RebuildUnverified) || planted!(LateCopyUnread);
        if !unverified && link != (Link { sequence: seal.next_sequence, chain: seal.end_chain }) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("segment {}: the copies end otherwise than sealed", place.segment.0),
            ));
        }
        Ok(true)
    }

    pub(crate) fn could_not_rebuild(&self, disk: DiskIndex, error: &std::io::Error) {
        if super::prepare::is_short(error) {
            self.found_full(disk, error);
        } else {
            self.lose(disk, state_after(error), format!("a copy could not be written: {error}"));
        }
    }

    /// Pauses until `bytes` are within `per_second`, or a change of the set cannot wait.
    pub(crate) async fn throttle(&self, bytes: u64, per_second: u64) {
        let Some(pause) = bytes.saturating_mul(1_000_000_000).checked_div(per_second) else { return };
        let end = self.ops.now().saturating_add(pause);
        let mut seen = self.changed.seen();
        while !self.hurried.get()
            && let left @ 1.. = end.saturating_sub(self.ops.now())
        {
            let change = std::pin::pin!(self.changed.wait(&mut seen));
            let pause = std::pin::pin!(self.ops.sleep(Duration::from_nanos(left)));
            let _first = select(change, pause).await;
        }
    }

    pub(crate) fn is_trimmed(&self, id: SegmentId) -> bool {
        id < self.meta.borrow().trim
    }

    /// The next verified blocks of a sealed segment from the first copy that has them.
    pub(crate) async fn read_any(&self, id: SegmentId, at: u32, end: u32, link: Link) -> Result<Run> {
        let places: Vec<Place> = {
            let catalog = self.catalog.borrow();
            let disks = self.disks.borrow();
            let Some(segment) = catalog.get(id) else {
                return Err(Error::new(ErrorKind::Trimmed, format!("segment {} was trimmed", id.0)));
            };
            let log = self.meta.borrow().log();
            let readable =
                |copy: &&Copy| matches!(disks[copy.disk.0].state, DiskState::Healthy | DiskState::Rebuilding);
            let mut copies: Vec<&Copy> = segment.copies.iter().filter(readable).collect();
            // What does not count yet may still hold what the others lost: it verifies or it does not.
            copies.sort_by_key(|copy| (!copy.complete, !copy.held));
            let place =
                |copy: &Copy| Place { log, epoch: segment.epoch, segment: id, disk: copy.disk, file: copy.slot.file };
            copies.into_iter().map(place).collect()
        };
        let mut worst = None;
        for place in &places {
            if planted!(RebuildUnverified)
                && let Ok(bytes) = self.ops.read(place.disk, place.file, u64::from(at), (end - at) as usize).await
            {
                return Ok(Run { at, bytes, link });
            }
            match self.read_run(place, at, end, link).await {
                Ok(run) => return Ok(run),
                Err(broken) => {
                    let bytes = matches!(broken, Broken::Bytes(_));
                    if worst.is_none() || bytes {
                        worst = Some(broken.to_error(place, at));
                    }
                }
            }
        }
        Err(worst
            .unwrap_or_else(|| Error::new(ErrorKind::RestoreDisk, format!("no copy of segment {} can be read", id.0))))
    }
}
