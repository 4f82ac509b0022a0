//! Notices slots that something else removed or cut short while the region runs (acceptance H2,
//! L5).

use std::collections::BTreeMap;

use crate::health::DiskState;
use crate::io::DiskIndex;
use crate::log::Log;
use crate::log::disk::Slot;
use crate::log::scrub::ScrubReport;
use crate::shared::lock;
use crate::types::SegmentId;

/// What a slot holds.
#[derive(Clone, Copy)]
enum Holds {
    /// Nothing.
    Free,
    /// A sealed segment.
    Sealed(SegmentId),
    /// A segment that blocks still go to.
    Open,
}

impl Log {
    /// Compares every slot with its disk's directory. One that was cut short gets its length back,
    /// one that was removed is made again elsewhere; a disk on which that happened to the segment
    /// in use is given up.
    pub(crate) async fn check_files(&self, report: &mut ScrubReport) {
        for disk in self.attached() {
            let Some(harmed) = self.harmed(disk).await else { continue };
            if harmed.is_empty() {
                continue;
            }
            // A slot that was made since the directory was listed is not missing.
            let again: Vec<u32> = match self.harmed(disk).await {
                Some(again) => again.into_iter().map(|(slot, ..)| slot.number).collect(),
                None => continue,
            };
            for (slot, holds, is_there) in harmed.into_iter().filter(|(slot, ..)| again.contains(&slot.number)) {
                self.note_corrupt(report);
                self.mend_slot(disk, slot, holds, is_there, report).await;
            }
        }
    }

    /// The slots of a disk whose files are not as long as they have to be, and whether they are
    /// there at all.
    async fn harmed(&self, disk: DiskIndex) -> Option<Vec<(Slot, Holds, bool)>> {
        let lengths: BTreeMap<String, u64> = self.ops.list(disk).await.ok()?.into_iter().collect();
        let catalog = self.catalog.borrow();
        let held = catalog.iter().filter_map(|(id, segment)| {
            let holds = if segment.seal.is_some() { Holds::Sealed(id) } else { Holds::Open };
            Some((segment.copy_on(disk)?.slot, holds))
        });
        let disks = self.disks.borrow();
        let disk = &disks[disk.0];
        let all = held.chain(disk.free.iter().map(|slot| (*slot, Holds::Free)));
        let all = all.filter(|(slot, _)| slot.life == disk.life);
        let is_whole = |len: &u64| *len >= u64::from(self.options.segment_bytes);
        let judged = all.map(|(slot, holds)| (slot, holds, lengths.get(&Slot::name(slot.number))));
        Some(
            judged
                .filter(|(.., len)| !len.is_some_and(is_whole))
                .map(|(slot, holds, len)| (slot, holds, len.is_some()))
                .collect(),
        )
    }

    async fn mend_slot(&self, disk: DiskIndex, slot: Slot, holds: Holds, is_there: bool, report: &mut ScrubReport) {
        let name = Slot::name(slot.number);
        if let Holds::Open = holds {
            let what = if is_there { "was cut short" } else { "was removed" };
            self.lose(disk, DiskState::Failed, format!("{name} {what} while it was in use"));
            return;
        }
        let _slots_stay = (self.rebuilding.lock().await, self.paging.lock().await);
        if !self.take_harmed(disk, slot, holds, is_there) {
            return;
        }
        if is_there {
            let end = u64::from(self.options.segment_bytes) - 4096;
            // What lay there is found and repaired as any other bytes that have rotted.
            let written = self.ops.write_page(disk, slot.file, end, &[0; 4096]).await;
            match (self.note_repair(disk, written, report), holds) {
                (true, Holds::Sealed(id)) => lock(&self.shared.suspects).push((id, disk)),
                (true, _) => self.free_slot(disk, slot),
                (false, _) => {}
            }
        } else {
            let disk = &mut self.disks.borrow_mut()[disk.0];
            disk.slots = disk.slots.saturating_sub(1);
        }
        self.publish_all();
        self.changed.raise();
    }

    /// Whether the slot is still what it was. One that is gone is forgotten; a free one is nobody
    /// else's meanwhile.
    fn take_harmed(&self, disk: DiskIndex, slot: Slot, holds: Holds, is_there: bool) -> bool {
        let Holds::Sealed(id) = holds else {
            let free = &mut self.disks.borrow_mut()[disk.0].free;
            let at = free.iter().position(|other| *other == slot);
            return at.map(|at| free.swap_remove(at)).is_some();
        };
        let mut catalog = self.catalog.borrow_mut();
        let Some(segment) = catalog.get_mut(id).filter(|s| s.copy_on(disk).is_some_and(|copy| copy.slot == slot))
        else {
            return false;
        };
        // The last copy can still be read as long as it is open: it goes once there is another.
        if !is_there && segment.complete().any(|copy| copy.disk != disk) {
            segment.copies.retain(|copy| copy.disk != disk);
            return true;
        }
        is_there
    }
}
