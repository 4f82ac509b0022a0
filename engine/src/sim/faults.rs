//! What may happen to the one disk of a schedule that misbehaves, and its repair.

use std::path::{Path, PathBuf};

use super::fault::{Arm, ArmedFault, Condition};
use super::host::some_slots;
use super::medium::Image;
use super::refusal::{Refusal, Refused};
use super::world::World;

/// The victim of a schedule, and what was done to it.
pub(super) struct Mischief {
    world: World,
    paths: Vec<PathBuf>,
    victim: usize,
    /// Old states of the victim, those before `old` from before the last opening.
    images: Vec<Image>,
    old: usize,
    /// The second disk that is out of reach.
    away: Option<usize>,
    /// The disk that the victim changed places with.
    swapped: Option<usize>,
    /// It came back empty: its place is given to a new disk.
    pub(super) blank: bool,
    /// It was touched at all.
    pub(super) touched: bool,
    /// It may hold less than it said, and nothing shows it.
    silent: bool,
    /// No faults in this schedule but the loss of power.
    gentle: bool,
    /// The host takes part: it refuses what concerns the victim, and takes its files or parts of them.
    host: bool,
    /// It has too little memory or too few threads for the victim: that is no fault of a disk.
    lacking: bool,
}

impl Mischief {
    pub(super) fn new(world: World, paths: Vec<PathBuf>, rng: &mut fastrand::Rng) -> Mischief {
        let victim = rng.usize(..paths.len());
        let gentle = rng.u8(..5) == 0;
        Mischief {
            world,
            paths,
            victim,
            images: Vec::new(),
            old: 0,
            away: None,
            swapped: None,
            blank: false,
            touched: false,
            silent: false,
            gentle,
            host: false,
            lacking: false,
        }
    }

    /// From now on the host takes part.
    pub(super) fn with_host(&mut self, on: bool) {
        self.host = on;
    }

    pub(super) fn victim(&self) -> usize {
        self.victim
    }

    fn path(&self) -> &Path {
        &self.paths[self.victim]
    }

    /// Whether the two disks that changed places have to be put back before the region can be expected to open.
    pub(super) fn undo_swap(&mut self) -> bool {
        let Some(other) = self.swapped.take() else { return false };
        self.world.swap(&self.paths[self.victim], &self.paths[other]);
        true
    }

    /// Something happens while nobody has the disks open.
    pub(super) fn between_lives(&mut self, rng: &mut fastrand::Rng) {
        if self.undo_swap() || self.gentle || rng.bool() {
            return;
        }
        if self.host && self.away.is_none() && rng.u8(..6) == 0 {
            // It is met while the region opens.
            self.arm_next(rng);
        }
        match rng.u8(..12) {
            0 => {
                self.blank = true;
                self.world.blank(self.path());
            }
            1 | 2 if !self.images.is_empty() => {
                let image = &self.images[rng.usize(..self.images.len())];
                self.world.restore(self.path(), image);
            }
            3 if !self.touched => {
                let other = (self.victim + rng.usize(1..self.paths.len())) % self.paths.len();
                self.swapped = Some(other);
                self.world.swap(&self.paths[self.victim], &self.paths[other]);
                return;
            }
            4..=6 => self.spoil(rng),
            _ => self.set_condition(rng),
        }
        self.touched = true;
    }

    /// Keeps the victim's present state, to bring it back as an old one.
    pub(super) fn remember(&mut self) {
        if !self.gentle && self.swapped.is_none() {
            self.images.push(self.world.snapshot(self.path()));
        }
    }

    /// How many old states of the victim are kept.
    pub(super) fn images(&self) -> usize {
        self.images.len()
    }

    /// The first `old` states are from before the last opening: the region has begun another epoch since.
    pub(super) fn age_images(&mut self, old: usize) {
        self.old = old;
    }

    /// Decides whether the next opening is to be one with a second disk away.
    pub(super) fn plan_beyond(&mut self, rng: &mut fastrand::Rng) {
        let other = (self.victim + rng.usize(1..self.paths.len())) % self.paths.len();
        // The last block rotting on one disk while another is away cannot be told from a torn tail: FAULT-MODEL's limit.
        self.away = (!self.gentle && !self.silent && rng.u8(..4) == 0).then_some(other);
    }

    /// Whether the next opening is to be one with a second disk away.
    pub(super) fn plans_beyond(&self) -> bool {
        self.away.is_some() && self.swapped.is_none()
    }

    /// Makes every disk late but the two that will then be damaged and away: they alone hold the end of the log. Late disks
    /// are in order again when called with `false`; false when nothing is planned.
    pub(super) fn others_late(&self, late: bool) -> bool {
        let Some(away) = self.away.filter(|_| self.swapped.is_none()) else { return false };
        let condition = if late { Condition::Slow(30) } else { Condition::Healthy };
        let others = (0..self.paths.len()).filter(|at| *at != self.victim && *at != away);
        others.for_each(|at| self.world.set_condition(&self.paths[at], condition));
        true
    }

    /// Now and then more goes wrong than the model allows: the victim has lost what it had, in a way that shows, and another
    /// disk is away. The region may refuse to open, and must not lose anything.
    pub(super) fn beyond(&mut self, rng: &mut fastrand::Rng) -> bool {
        let Some(away) = self.away.filter(|_| self.swapped.is_none()) else { return false };
        self.touched = true;
        let path = self.path().to_owned();
        self.world.set_condition(&path, Condition::Healthy);
        self.world.allow(Some(&path));
        match rng.u8(..if self.host { 12 } else { 6 }) {
            0 => {
                self.blank = true;
                self.world.blank(&path);
            }
            6.. => self.hide(&path, rng),
            1..=3 if self.old > 0 => {
                let image = &self.images[rng.usize(..self.old)];
                self.world.restore(&path, image);
            }
            _ => {
                for (name, len) in self.world.files(&path).iter().filter(|(name, _)| name.starts_with("slot-")) {
                    // Behind the pages at the front, or all of it.
                    let from = if rng.u8(..4) == 0 { 0 } else { (*len).min(8192) };
                    self.world.spoil(&path, name, from..*len);
                }
            }
        }
        self.world.set_condition(&self.paths[away], Condition::Lost);
        true
    }

    /// What the victim has is out of reach or cut off, in a way that shows.
    fn hide(&mut self, path: &Path, rng: &mut fastrand::Rng) {
        let (whole, of_some) = (Vec::new, |rng: &mut fastrand::Rng| {
            some_slots(&self.world, std::slice::from_ref(&self.paths[self.victim]), rng)
        });
        let (what, files) = match rng.u8(..6) {
            0 => (Refused::Lists, whole()),
            1 => (Refused::Reads, of_some(rng)),
            2 => (Refused::Memory, whole()),
            3 => {
                for name in of_some(rng) {
                    // Without its header page it would be one whose making was cut short: FAULT-MODEL's limit.
                    let len = rng.u64(2..16) * 4096;
                    self.world.cut(path, &name, len);
                }
                return;
            }
            _ => (Refused::Opens, of_some(rng)),
        };
        self.world.refuse(Refusal { what, disk: Some(path.to_owned()), files });
    }

    /// The second disk is back.
    pub(super) fn end_beyond(&mut self) {
        self.world.allow(Some(self.path()));
        if let Some(away) = self.away.take() {
            self.world.set_condition(&self.paths[away], Condition::Healthy);
        }
    }

    /// Something happens while the region works.
    pub(super) fn at_work(&mut self, rng: &mut fastrand::Rng) {
        if self.gentle || self.swapped.is_some() {
            return;
        }
        match rng.u8(..10) {
            0..=2 => self.set_condition(rng),
            3..=6 if self.away.is_none() => self.arm(rng),
            7 => self.remember(),
            _ => self.spoil(rng),
        }
        self.touched = true;
    }

    /// The victim comes back as it is about to be taken back, and something else is wrong with it, if anything.
    pub(super) fn comes_back(&mut self, rng: &mut fastrand::Rng) {
        if self.gentle || self.swapped.is_some() {
            return;
        }
        self.touched = true;
        self.world.set_condition(self.path(), Condition::Healthy);
        self.world.allow(Some(self.path()));
        self.lacking = false;
        match rng.u8(..10) {
            0..=3 => self.refuse(rng),
            4 => self.spoil(rng),
            5 | 6 if self.away.is_none() => self.arm_next(rng),
            7 => self.set_condition(rng),
            8 if !self.images.is_empty() && !self.blank => {
                let image = &self.images[rng.usize(..self.images.len())];
                self.world.restore(self.path(), image);
            }
            _ => {}
        }
    }

    /// One of the victim's slots loses its end while it is open.
    pub(super) fn shortens(&mut self, rng: &mut fastrand::Rng) {
        if self.gentle || self.away.is_some() || self.swapped.is_some() {
            return;
        }
        let names = some_slots(&self.world, std::slice::from_ref(&self.paths[self.victim]), rng);
        (self.silent, self.touched) = (true, true);
        self.world.cut(self.path(), &names[0], rng.u64(0..16) * 4096);
    }

    /// It is gone, and the region will find out.
    pub(super) fn goes_away(&mut self) {
        if !self.gentle && self.swapped.is_none() {
            self.touched = true;
            self.world.set_condition(self.path(), Condition::Lost);
        }
    }

    /// The very next write fails or lies.
    fn arm_next(&mut self, rng: &mut fastrand::Rng) {
        self.silent = true;
        let faults = [ArmedFault::Torn, ArmedFault::Lost, ArmedFault::Misdirected, ArmedFault::FailedFlush];
        let arm = Arm { fault: faults[rng.usize(..4)], prefix: String::new(), skip: 0 };
        self.world.arm(self.path(), arm);
    }

    fn set_condition(&mut self, rng: &mut fastrand::Rng) {
        if self.host && rng.bool() {
            return self.refuse(rng);
        }
        let condition = match rng.u8(..10) {
            0 | 1 => Condition::Lost,
            2 => Condition::Full,
            3 => Condition::FullForAll,
            4 => Condition::ReadOnly,
            5 => Condition::Slow(rng.u32(10..1000)),
            6 => Condition::Stalled,
            _ => Condition::Healthy,
        };
        self.world.set_condition(self.path(), condition);
    }

    /// Whether an opening may be refused for what the host lacks.
    pub(super) fn is_lacking(&self) -> bool {
        self.lacking
    }

    /// The host refuses something that concerns the victim alone, or nothing any more.
    fn refuse(&mut self, rng: &mut fastrand::Rng) {
        let path = self.path().to_owned();
        self.world.allow(Some(&path));
        self.lacking = false;
        let what = match rng.u8(..11) {
            0..=2 => Refused::Opens,
            3..=5 => Refused::Lists,
            6 => Refused::Reads,
            7 => Refused::Creates,
            8 => Refused::Memory,
            9 => Refused::Threads,
            _ => return,
        };
        self.lacking = matches!(what, Refused::Memory | Refused::Threads);
        let some = what == Refused::Opens && rng.bool();
        let files = if some { some_slots(&self.world, std::slice::from_ref(&path), rng) } else { Vec::new() };
        self.world.refuse(Refusal { what, disk: Some(path), files });
    }

    /// A file is cut short, or loses its name.
    fn take_away(&mut self, name: &str, len: u64, rng: &mut fastrand::Rng) {
        self.silent = true;
        if rng.bool() {
            self.world.unlink(self.path(), name);
        } else {
            let pages = rng.u64(..len.div_ceil(4096));
            self.world.cut(self.path(), name, if rng.bool() { pages * 4096 } else { rng.u64(..len) });
        }
    }

    fn arm(&mut self, rng: &mut fastrand::Rng) {
        self.silent = true;
        let faults = [ArmedFault::Torn, ArmedFault::Lost, ArmedFault::Misdirected, ArmedFault::FailedFlush];
        let prefix = ["", "slot-", "slot-", "superblock", "index-", "checkpoint-"][rng.usize(..6)];
        let arm = Arm { fault: faults[rng.usize(..4)], prefix: prefix.to_owned(), skip: rng.u32(..4) };
        self.world.arm(self.path(), arm);
    }

    /// A bit rots, or a range cannot be read any more.
    fn spoil(&mut self, rng: &mut fastrand::Rng) {
        let files = self.world.files(self.path());
        let Some((name, len)) = rng.choice(&files).filter(|(_, len)| *len > 0) else { return };
        if self.host && self.away.is_none() && name != "LOCK" && rng.bool() {
            let (name, len) = (name.clone(), *len);
            return self.take_away(&name, len, rng);
        }
        // The pages at the front matter most; there is little behind the tail.
        let reach = if rng.bool() { (*len).min(12 << 10) } else { *len };
        let at = rng.u64(..reach);
        if rng.bool() && self.away.is_none() {
            self.silent = true;
            self.world.flip(self.path(), name, at, rng.u8(..8));
        } else {
            let at = at & !511;
            self.world.spoil(self.path(), name, at..(at + (512 << rng.u32(..5))).min(*len));
        }
    }

    /// Whether the disks stand at their own places.
    pub(super) fn is_in_place(&self) -> bool {
        self.swapped.is_none()
    }

    /// All disks were put back to one moment: the victim's old states may be from later ones.
    pub(super) fn forget_images(&mut self, blank: bool) {
        self.images.clear();
        self.old = 0;
        self.blank = blank;
    }

    /// Everything starts over on empty disks.
    pub(super) fn forget(&mut self) {
        self.world.disarm();
        self.images.clear();
        self.old = 0;
        (self.swapped, self.blank, self.touched, self.silent) = (None, false, false, false);
    }

    /// The victim works again, with whatever it holds.
    pub(super) fn repair(&mut self) {
        self.undo_swap();
        self.world.allow(Some(self.path()));
        self.lacking = false;
        self.world.disarm();
        self.world.set_condition(self.path(), Condition::Healthy);
    }
}
