//! Slots that something else removes, cuts short or overwrites while the region runs, written out
//! by hand (acceptance H2, L5).

use std::time::Duration;

use super::scripts::{MS, Script, disk_path, sealed};
use crate::ScrubReport;
use crate::health::DiskState;
use crate::shared::Control;
use crate::types::SegmentId;

const SECOND: Duration = Duration::from_secs(1);

impl Script {
    fn scrub(&mut self) -> ScrubReport {
        self.control(|done| Control::Scrub { done })
    }

    /// The files of a disk's slots whose segments are sealed, or of that which takes blocks.
    fn slots(&self, disk: usize, is_sealed: bool) -> Vec<String> {
        let catalog = self.core.log().catalog.borrow();
        let wanted = catalog.iter().filter(|(_, segment)| segment.seal.is_some() == is_sealed);
        let slots = wanted.filter_map(|(_, segment)| segment.copies.iter().find(|copy| copy.disk.0 == disk));
        slots.map(|copy| format!("slot-{:06}", copy.slot.number)).collect()
    }

    /// Opens again: every slot is as it has to be.
    fn opens_whole(self) {
        let mut script = self.reopen(|_| {}).expect("it opens");
        script.step_for(SECOND);
        let health = script.health();
        assert!(health.is_whole() && script.states() == [DiskState::Healthy; 3], "{health:?}");
        assert_eq!(script.scrub().corrupt, 0);
    }
}

#[test]
fn h2_slots_cut_short_while_the_region_runs_get_all_of_them_back() {
    for (disks, len) in [(vec![0, 1], 0), (vec![2], 5000), (vec![1], 700_000), (vec![0], (1 << 20) - 1)] {
        let mut script = sealed();
        let mut cut = 0;
        for &disk in &disks {
            for file in script.slots(disk, true) {
                cut += u64::from(script.world.cut(&disk_path(disk), &file, len));
            }
        }
        let found = script.scrub();
        assert!(found.corrupt >= cut && cut > 0 && found.lost.is_empty(), "{found:?}");
        assert_eq!(found.corrupt, found.repaired, "{found:?}");
        assert_eq!(script.scrub().corrupt, 0);
        script.opens_whole();
    }
}

#[test]
fn h2_slots_removed_while_the_region_runs_are_made_again_within_a_minute() {
    for disks in [vec![1], vec![0, 2]] {
        let mut script = sealed();
        for &disk in &disks {
            let gone = script.slots(disk, true);
            assert!(!gone.is_empty() && gone.iter().all(|file| script.world.unlink(&disk_path(disk), file)));
        }
        let noticed = script.world.now() + 31_000_000_000;
        while script.health().corrupt_copies.0 == 0 {
            script.step_for(MS * 100);
            assert!(script.world.now() < noticed, "nobody looks at the directory");
        }
        script.step_for(40 * SECOND);
        script.opens_whole();
    }
}

#[test]
fn h2_free_slots_that_are_removed_are_forgotten_and_short_ones_mended() {
    let free = |script: &Script| -> Vec<String> {
        let disks = script.core.log().disks.borrow();
        disks[1].free.iter().map(|slot| format!("slot-{:06}", slot.number)).collect()
    };
    for removed in [true, false] {
        let mut script = sealed();
        let (before, path) = (free(&script), disk_path(1));
        assert_eq!(before.len(), 1);
        let harm =
            if removed { script.world.unlink(&path, &before[0]) } else { script.world.cut(&path, &before[0], 9) };
        assert!(harm && script.scrub().corrupt == 1);
        let files = script.world.files(&path);
        assert!(free(&script).into_iter().all(|slot| files.contains(&(slot, 1 << 20))), "{files:?}");
        assert_eq!(free(&script).contains(&before[0]), !removed);
        script.opens_whole();
    }
}

#[test]
fn h2_segment_in_use_that_is_removed_or_cut_short_gives_its_disk_up() {
    for removed in [true, false] {
        let mut script = sealed();
        let ticket = script.commit();
        script.answer(ticket).expect("acknowledged");
        let file = script.slots(1, false).pop().expect("it takes blocks");
        let path = disk_path(1);
        assert!(if removed { script.world.unlink(&path, &file) } else { script.world.cut(&path, &file, 4096) });
        script.step_for(32 * SECOND);
        let health = script.health();
        assert_eq!(health.disks[1].state, DiskState::Failed, "{health:?}");
        assert!(health.disks[1].reason.contains(&file), "{}", health.disks[1].reason);
    }
}

#[test]
fn h2_bytes_that_no_copy_has_are_shown_until_they_are_trimmed() {
    let mut script = sealed();
    let id = SegmentId(1);
    let slots: Vec<(usize, u32)> = {
        let catalog = script.core.log().catalog.borrow();
        catalog.get(id).expect("retained").copies.iter().map(|copy| (copy.disk.0, copy.slot.number)).collect()
    };
    for (disk, number) in slots {
        assert!(script.world.flip(&disk_path(disk), &format!("slot-{number:06}"), 100_000, 1));
    }
    assert!(script.health().is_whole(), "nobody has looked");
    let found = script.scrub();
    assert!(!found.lost.is_empty() && found.lost.iter().all(|place| place.segment == id), "{found:?}");
    let health = script.health();
    assert!(health.lost == 1 && !health.is_whole(), "{health:?}");
    script.control(|done| Control::Trim { to: crate::types::Lsn::new(SegmentId(2), 0), done });
    assert!(script.health().lost == 0 && script.health().is_whole());
}
