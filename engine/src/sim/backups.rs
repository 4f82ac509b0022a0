//! Backups of whole regions that are put back: what the oracle of two regions forgets with them.

use std::collections::BTreeSet;

use super::fault::Condition;
use super::medium::Image;
use super::pair::{Copies, Pair, Side, Whole};
use crate::shared::lock;

/// All disks of a region at one moment, and what it had handed to its state machine by then.
pub(super) struct Backup {
    images: Vec<Image>,
    frames: usize,
    copies: Copies,
    restarted: BTreeSet<Whole>,
}

impl Side {
    /// `None` while a disk is not what it should be: a backup of one that is lost would put it back whole.
    fn backup(&self) -> Option<Backup> {
        self.open()?;
        let paths = || self.options.disks.iter().map(|disk| &disk.path);
        if paths().any(|path| self.world.condition(path) != Condition::Healthy) {
            return None;
        }
        let held = lock(&self.held);
        Some(Backup {
            images: paths().map(|path| self.world.snapshot(path)).collect(),
            frames: held.frames.len(),
            copies: held.copies.clone(),
            restarted: held.restarted.clone(),
        })
    }

    fn put_back(&mut self, backup: &Backup) {
        self.kill();
        for (disk, image) in self.options.disks.iter().zip(&backup.images) {
            self.world.restore(&disk.path, image);
        }
        let mut held = lock(&self.held);
        held.frames.truncate(backup.frames);
        held.copies.clone_from(&backup.copies);
        held.restarted.clone_from(&backup.restarted);
    }
}

impl Pair {
    /// An operator makes a backup of a region, or puts it back, once. The other region may die with it.
    pub(super) fn back_up(&mut self) {
        let (west, both, what) = (self.rng.u8(..3) > 0, self.rng.bool(), self.rng.u8(..6));
        let made = self.accounts.len() == self.homes.len();
        let slot = &mut self.backups[usize::from(west)];
        let side = if west { &mut self.west } else { &mut self.east };
        match slot.take().filter(|_| what > 0) {
            None if made => *slot = side.backup(),
            None => {}
            // Most become old: the other side has what was written since.
            Some(backup) if what < 4 => *slot = Some(backup),
            Some(backup) => {
                self.world.note(|| format!("a backup of {} is put back", if west { "west" } else { "east" }));
                side.put_back(&backup);
                self.forget(west, &backup);
                if both {
                    // What it had taken in is there or not.
                    (if west { &mut self.east } else { &mut self.west }).kill();
                }
            }
        }
    }

    /// What was seen since the backup was made counts no more.
    fn forget(&mut self, west: bool, backup: &Backup) {
        (self.put_back, self.put_backs) = (true, self.put_backs + 1);
        if west {
            self.looked.0 = self.looked.0.min(backup.frames);
            self.expected.values_mut().for_each(|frames| frames.retain(|at| *at < backup.frames));
        } else {
            self.looked.1 = self.looked.1.min(backup.frames);
        }
        self.links.iter_mut().for_each(|link| link.forget(west));
    }
}
