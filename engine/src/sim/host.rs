//! What the host of a schedule does beside the one disk that misbehaves: it refuses what all disks need, lets all of them hang,
//! sets the clock wrong by years, and is put back to backups of itself.

use std::path::PathBuf;

use super::fault::Condition;
use super::medium::Image;
use super::oracle::Oracle;
use super::refusal::{Refusal, Refused};
use super::world::World;

/// Nanoseconds of a year.
const YEAR: i64 = 365 * 86_400_000_000_000;
/// One schedule in so many is of very many lives.
const MANY_LIVES: u64 = 5_000;

/// How a schedule goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// A few lives, each with much to do.
    Few,
    /// The same, with more at once.
    Dense,
    /// Hundreds of short ones that end by a loss of power, or, where the log is kept short, thousands with everything else in them.
    Many { fresh: bool },
}

/// What concerns all disks now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Refused(Refused),
    /// None answers.
    Hung,
}

/// Everything as it was at one moment: every disk, and what was known of the region.
pub(super) struct Moment {
    pub(super) images: Vec<Image>,
    pub(super) oracle: Oracle,
    pub(super) accounts: usize,
    pub(super) blank: bool,
}

/// The host of a schedule.
pub(super) struct Host {
    world: World,
    paths: Vec<PathBuf>,
    victim: usize,
    /// Whether this schedule has any of this at all.
    pub(super) on: bool,
    pub(super) course: Course,
    /// One turn in so many begins a trouble for all disks; 0 for never.
    trouble: u32,
    /// One turn in so many the clock jumps, by years or seconds; 0 for never.
    years: u32,
    /// Whether the disks are put back to older images.
    put_back: bool,
    /// What is wrong now, and for how many turns.
    present: Option<(Trouble, u32)>,
    /// What was wrong last, and how many turns ago it ended.
    past: Option<(Trouble, u32)>,
    /// Something was wrong in this life.
    pub(super) met: bool,
    /// It began in this life.
    pub(super) began: bool,
    pub(super) moments: Vec<Moment>,
}

impl Host {
    /// Draws what will go wrong, from the seed alone: a schedule without any of this is what it would be otherwise.
    pub(super) fn new(world: World, paths: Vec<PathBuf>, victim: usize, seed: u64) -> Host {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x0068_6f73_7400);
        let many = seed % MANY_LIVES == 37;
        let on = many || rng.u8(..5) < 2;
        let mut some = |often: u32, chance: u8| if on && rng.u8(..100) < chance { often } else { 0 };
        let (trouble, years, put_back) = (some(60, 60), some(100, 20), some(1, 25) == 1);
        let course = match many {
            true => Course::Many { fresh: !(seed / MANY_LIVES).is_multiple_of(2) },
            false if on && rng.bool() => Course::Dense,
            false => Course::Few,
        };
        Host {
            world,
            paths,
            victim,
            on,
            course,
            trouble: if many { 0 } else { trouble },
            years,
            put_back: put_back && !many,
            present: None,
            past: None,
            met: false,
            began: false,
            moments: Vec::new(),
        }
    }

    /// A life begins, perhaps with a trouble that is there already.
    pub(super) fn begin_life(&mut self, rng: &mut fastrand::Rng) {
        self.past = None;
        if self.on && self.present.is_none() && self.trouble > 0 && rng.u8(..4) == 0 {
            self.begin(rng);
        }
        (self.met, self.began) = (self.present.is_some(), false);
    }

    /// Before each turn of the log thread something may begin, or end.
    pub(super) fn turn(&mut self, rng: &mut fastrand::Rng) {
        if !self.on {
            return;
        }
        self.past = self.past.map(|(what, ago)| (what, ago + 1)).filter(|(_, ago)| *ago < 4);
        match &mut self.present {
            Some((_, 0)) => self.lift(),
            Some((_, left)) => *left -= 1,
            None if self.trouble > 0 && rng.u32(..self.trouble) == 0 => {
                self.begin(rng);
                self.began = true;
            }
            None => {}
        }
        if self.years > 0 && rng.u32(..self.years) == 0 {
            let by = if rng.bool() { rng.i64(1..40) * YEAR } else { rng.i64(1..10_000_000_000) };
            self.world.jump_wall(if rng.bool() { by } else { -by });
        }
    }

    /// Something concerns all disks from now on, for a while or for good.
    fn begin(&mut self, rng: &mut fastrand::Rng) {
        let what = match rng.u8(..8) {
            0 => Trouble::Refused(Refused::Opens),
            1 => Trouble::Refused(Refused::Lists),
            2 => Trouble::Refused(Refused::Reads),
            3 => Trouble::Refused(Refused::Creates),
            4 => {
                let open = self.world.open_files();
                let most = if open == 0 { rng.usize(4..40) } else { open + rng.usize(..3) };
                Trouble::Refused(Refused::Descriptors(most))
            }
            5 => Trouble::Refused(Refused::Memory),
            6 => Trouble::Refused(Refused::Threads),
            _ => Trouble::Hung,
        };
        match what {
            Trouble::Refused(refused) => {
                let some = refused == Refused::Opens && rng.bool();
                let files = if some { some_slots(&self.world, &self.paths, rng) } else { Vec::new() };
                self.world.refuse(Refusal { what: refused, disk: None, files });
            }
            Trouble::Hung => self.set_all(Condition::Healthy, Condition::Stalled),
        }
        let turns = if rng.u8(..8) == 0 { u32::MAX } else { rng.u32(1..40) };
        (self.present, self.met) = (Some((what, turns)), true);
    }

    /// All disks but the victim that are in one condition get into another.
    fn set_all(&self, from: Condition, to: Condition) {
        let others = self.paths.iter().enumerate().filter(|(at, _)| *at != self.victim);
        for (_, path) in others.filter(|(_, path)| self.world.condition(path) == from) {
            self.world.set_condition(path, to);
        }
    }

    /// Nothing is wrong any more.
    pub(super) fn lift(&mut self) {
        let Some((what, _)) = self.present.take() else { return };
        self.past = Some((what, 0));
        match what {
            Trouble::Refused(_) => self.world.allow(None),
            Trouble::Hung => self.set_all(Condition::Stalled, Condition::Healthy),
        }
    }

    /// Nothing will be wrong any more.
    pub(super) fn end(&mut self) {
        self.lift();
        (self.trouble, self.years) = (0, 0);
    }

    /// A life is over; a trouble that would have lasted may end with it.
    pub(super) fn end_life(&mut self, rng: &mut fastrand::Rng) {
        if self.present.is_some() && rng.bool() {
            self.lift();
        }
    }

    /// What the host refused just now, where that is no reason to give a disk up.
    pub(super) fn refuses(&self) -> Option<Refused> {
        match self.present.or(self.past) {
            // Whether a disk or the host fails every read cannot be told.
            Some((Trouble::Refused(what), _)) if what != Refused::Reads => Some(what),
            _ => None,
        }
    }

    /// Whether everything is to be remembered now, to be put back later.
    pub(super) fn remembers(&self, rng: &mut fastrand::Rng) -> bool {
        self.put_back && self.moments.len() < 3 && rng.u8(..3) == 0
    }

    /// Which moment each disk is put back to before the next life: `None` for the present.
    pub(super) fn draw_moments(&self, rng: &mut fastrand::Rng) -> Option<Vec<Option<usize>>> {
        if self.moments.is_empty() || rng.u8(..3) > 0 {
            return None;
        }
        let count = self.moments.len();
        let draws = if rng.u8(..3) > 0 {
            vec![Some(rng.usize(..count)); self.paths.len()]
        } else {
            self.paths.iter().map(|_| Some(rng.usize(..=count)).filter(|at| *at < count)).collect()
        };
        Some(draws)
    }
}

/// Some of the slots, by name: all from a number on, on every disk.
pub(super) fn some_slots(world: &World, paths: &[PathBuf], rng: &mut fastrand::Rng) -> Vec<String> {
    let mut names: Vec<String> = paths.iter().flat_map(|path| world.files(path)).map(|(name, _)| name).collect();
    names.retain(|name| name.starts_with("slot-"));
    names.sort_unstable();
    names.dedup();
    let from = if names.is_empty() { 0 } else { rng.usize(..names.len()) };
    let chosen = names.split_off(from);
    // With none to choose nothing would be refused, not everything.
    if chosen.is_empty() { vec!["slot-000000".to_owned()] } else { chosen }
}
