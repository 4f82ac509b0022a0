//! One schedule: the real log on simulated disks, random clients, random faults, and the oracle that watches.
//!
//! A schedule is a few *lives* of the region. A life opens it (or makes it), works for a while, and ends: by a crash at
//! any operation, by a crash between two steps, or in order. One disk, the *victim*, may do anything that the fault
//! model names, at any time; the others only lose power. At the end the victim is repaired, the region must become
//! whole, and everything is compared.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::bugs::{Bug, InStage, Stage, enter_stage, plant, reached};
use super::fault::{Condition, FaultKind};
use super::faults::Mischief;
use super::host::{Course, Host, Moment};
use super::life::{End, Life};
use super::oracle::{Answer, Oracle};
use super::refusal::{Refusal, Refused};
use super::world::{World, WorldOptions};
use crate::io::OpId;
use crate::log::Mode;
use crate::options::{DiskConfig, Options};
use crate::types::{AccountId, ClientId, Lsn};

/// How often each kind of fault met each stage.
pub type Cells = BTreeMap<(FaultKind, Stage), u64>;

/// What one schedule came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// A digest of every operation, equal for equal runs.
    pub digest: u64,
    /// What should not have happened, if anything did.
    pub violation: Option<String>,
    /// Which faults met which stages.
    pub cells: Cells,
    /// Operations that the engine submitted.
    pub operations: u64,
    /// Transactions that the log held at the end, trimmed ones included.
    pub transactions: usize,
    /// How often the planted bug's place was reached.
    pub reached: u64,
    /// A line per event, when asked for.
    pub trace: Vec<String>,
}

/// What a schedule is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Schedule {
    /// Everything follows from it.
    pub seed: u64,
    /// The bug to plant, if any.
    pub bug: Option<Bug>,
    /// Whether to keep a trace.
    pub trace: bool,
}

impl Schedule {
    /// Runs it.
    #[must_use]
    pub fn run(self) -> Outcome {
        plant(self.bug);
        let mut run = Run::new(self);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run.lives())) {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            run.oracle().complain(format!("panic: {text}"));
        }
        let mut outcome = run.outcome();
        outcome.reached = reached();
        plant(None);
        outcome
    }
}

/// The state of a schedule that outlives each opening.
pub(super) struct Run {
    pub(super) world: World,
    pub(super) rng: fastrand::Rng,
    pub(super) options: Options,
    pub(super) oracle: Arc<Mutex<Oracle>>,
    pub(super) mischief: Mischief,
    pub(super) host: Host,
    /// What the clients want most in this schedule.
    pub(super) habits: Habits,
    /// Transactions with a client whose fate is open: to be sent again.
    pub(super) unsettled: Vec<usize>,
    /// The last sequence of each client: of every account the same clients with the same sequences.
    pub(super) clients: FxHashMap<(AccountId, ClientId), u64>,
    /// Accounts that are known to exist, and how many names were tried.
    pub(super) accounts: Vec<AccountId>,
    pub(super) names: u32,
    /// Whether a refusal to open says nothing: the region may never have been made.
    pub(super) tentative: bool,
    cells: Cells,
    /// Steps until the disk whose flush failed must have been found out; 0 for never.
    pub(super) flush_failed: u32,
    /// A second disk is away for this opening: it may be refused, but must not lose anything.
    pub(super) beyond: bool,
    /// Openings in a row that did not get through.
    broken_openings: u32,
    /// Nanoseconds that processes stood still for.
    pub(super) suspended: u64,
    /// How many lives there were.
    count_of_lives: u32,
    /// Nothing cuts the next opening short, and the host refuses nothing.
    pub(super) undisturbed: bool,
}

/// The temper of a schedule: one action in so many, 0 for never.
#[derive(Clone, Debug)]
pub(super) struct Habits {
    pub(super) steps: u32,
    pub(super) burst: u32,
    pub(super) large: u32,
    pub(super) all: u32,
    pub(super) retry: u32,
    pub(super) trim: u32,
    pub(super) drain: u32,
    pub(super) account: u32,
    pub(super) scrub: u32,
    pub(super) fault: u32,
    pub(super) clock: u32,
    pub(super) suspend: u32,
    /// Much goes on at once: the disk that misbehaves comes and goes, and the power fails between two operations.
    pub(super) dense: bool,
}

impl Habits {
    fn draw(rng: &mut fastrand::Rng) -> Habits {
        let mut some = |often: u32, chance: u8| if rng.u8(..100) < chance { often } else { 0 };
        Habits {
            trim: some(12, 40),
            drain: some(25, 15),
            account: some(20, 25),
            scrub: some(20, 25),
            fault: some(10, 60),
            clock: some(15, 20),
            all: some(4, 50),
            retry: some(5, 60),
            large: some(3, 50),
            burst: rng.u32(1..8),
            steps: rng.u32(5..60),
            suspend: if rng.u8(..100) < 15 { 60 } else { 0 },
            dense: false,
        }
    }

    /// What the course of the schedule makes of them.
    fn on(self, course: Course) -> Habits {
        match course {
            Course::Few => self,
            Course::Dense => {
                Habits { steps: 60, trim: 5, drain: 12, scrub: 3, fault: 3, all: 0, large: 3, dense: true, ..self }
            }
            // Nothing but power failures: what each leaves behind adds up. The log is not trimmed, so there cannot be very many.
            Course::Many { fresh: false } => {
                Habits { steps: 8, burst: 2, trim: 0, drain: 0, scrub: 0, fault: 0, suspend: 0, ..self }
            }
            Course::Many { fresh: true } => {
                Habits { steps: 8, burst: 2, trim: 2, drain: 10, scrub: 4, fault: 6, suspend: 0, dense: true, ..self }
            }
        }
    }
}

impl Run {
    fn new(schedule: Schedule) -> Run {
        let mut rng = fastrand::Rng::with_seed(schedule.seed ^ 0x6d65_7269_6469_616e);
        let mut world = WorldOptions::new(schedule.seed);
        world.trace = schedule.trace;
        // The log's block writes carry this bit in their names.
        world.is_append = |OpId(id)| id >> 63 == 1;
        if rng.u8(..4) == 0 {
            world.latency.tail_every = 6;
        }
        let disks = [3, 3, 4, 5][rng.usize(..4)];
        let mut options = options(&mut rng, disks);
        let world = World::new(world);
        let paths: Vec<PathBuf> = options.disks.iter().map(|disk| disk.path.clone()).collect();
        let mut mischief = Mischief::new(world.clone(), paths.clone(), &mut rng);
        let habits = Habits::draw(&mut rng);
        let host = Host::new(world.clone(), paths, mischief.victim(), schedule.seed);
        mischief.with_host(host.on);
        let habits = habits.on(host.course);
        if matches!(host.course, Course::Many { .. }) {
            // A full log ends nothing, and nothing new begins.
            options.max_segments = None;
        }
        Run {
            world,
            options,
            oracle: Arc::default(),
            mischief,
            host,
            habits,
            unsettled: Vec::new(),
            clients: FxHashMap::default(),
            accounts: Vec::new(),
            names: 0,
            tentative: false,
            cells: Cells::new(),
            flush_failed: 0,
            beyond: false,
            broken_openings: 0,
            suspended: 0,
            count_of_lives: 0,
            undisturbed: false,
            rng,
        }
    }

    pub(super) fn oracle(&self) -> std::sync::MutexGuard<'_, Oracle> {
        self.oracle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes which faults bit since the last look.
    pub(super) fn count(&mut self) {
        for fired in self.world.take_fired() {
            if fired.kind == FaultKind::FailedFlush && fired.append {
                self.flush_failed = 3;
            }
            let again = matches!(fired.kind, FaultKind::Crash | FaultKind::CrashInFlight) && self.count_of_lives >= 100;
            for stage in fired.stages() {
                *self.cells.entry((fired.kind, stage)).or_default() += 1;
                if again {
                    *self.cells.entry((FaultKind::ManyLives, stage)).or_default() += 1;
                }
            }
        }
    }

    pub(super) fn failed(&self) -> bool {
        self.oracle().violation().is_some()
    }

    fn lives(&mut self) {
        let mut made = self.make();
        let lives = match self.host.course {
            Course::Few | Course::Dense => self.rng.u32(0..4),
            Course::Many { fresh: false } => 220,
            Course::Many { fresh: true } => 1_500,
        };
        for _ in 0..lives {
            if self.failed() || !made {
                break;
            }
            if self.mischief.is_in_place() && self.host.remembers(&mut self.rng) {
                self.remember_all();
            }
            if !self.mischief.plans_beyond() {
                if self.put_back() {
                    self.life_of_mixed_moments();
                    return;
                }
                if self.host.course != (Course::Many { fresh: false }) {
                    self.mischief.between_lives(&mut self.rng);
                }
            }
            if self.mischief.beyond(&mut self.rng) {
                self.beyond = true;
                self.life(Mode::Open, false);
                self.beyond = false;
                self.mischief.end_beyond();
            } else {
                self.life(Mode::Open, false);
            }
        }
        if !self.failed() && made {
            self.mischief.repair();
            self.host.end();
            self.options.max_segments = None;
            made = self.life(Mode::Open, true) == End::Opened;
        }
        debug_assert!(made || self.failed() || self.accounts.is_empty(), "a region that was used can be opened");
    }

    /// Keeps everything as it is.
    pub(super) fn remember_all(&mut self) {
        let images = self.options.disks.iter().map(|disk| self.world.snapshot(&disk.path)).collect();
        let (oracle, accounts, blank) = (self.oracle().clone(), self.accounts.len(), self.mischief.blank);
        self.world.note(|| "everything is remembered".to_owned());
        self.host.moments.push(Moment { images, oracle, accounts, blank });
    }

    /// Perhaps puts all disks back to one moment, which must be found again, or each to one of its own: then true.
    fn put_back(&mut self) -> bool {
        if !self.mischief.is_in_place() {
            return false;
        }
        let Some(draws) = self.host.draw_moments(&mut self.rng) else { return false };
        let moments = std::mem::take(&mut self.host.moments);
        for (place, (disk, at)) in self.options.disks.iter().zip(&draws).enumerate() {
            if let Some(at) = at {
                self.world.put_back(&disk.path, &moments[*at].images[place]);
            }
        }
        self.world.disarm();
        let first = draws[0].filter(|first| draws.iter().all(|at| at.as_ref() == Some(first)));
        if let Some(at) = first {
            let Moment { oracle, accounts, blank, .. } = &moments[at];
            self.oracle().put_back(oracle);
            self.accounts.truncate(*accounts);
            self.mischief.forget_images(*blank);
            self.host.moments = moments.into_iter().take(at + 1).collect();
            return false;
        }
        let oldest = draws.iter().filter_map(|at| at.map(|at| moments[at].oracle.len())).min();
        if let Some(sure) = oldest {
            self.oracle().put_back_mixed(sure);
        }
        true
    }

    /// The region's disks were put back to different moments, which is more than the model allows:
    /// it may refuse to open, and must not lose what all of them had. Whether a later opening of
    /// what came of it is refused is not judged: the disks may hold ends of two histories.
    fn life_of_mixed_moments(&mut self) {
        // All disks are there: what one that was away for this opening still holds is in no model.
        self.host.lift();
        for disk in &self.options.disks {
            self.world.set_condition(&disk.path, Condition::Healthy);
        }
        (self.beyond, self.undisturbed) = (true, true);
        self.life(Mode::Open, false);
        (self.beyond, self.undisturbed) = (false, false);
    }

    /// Makes the region; where that is cut short, looks at what there is and starts over from nothing.
    fn make(&mut self) -> bool {
        for _ in 0..4 {
            if self.rng.u8(..6) == 0 {
                self.mischief.at_work(&mut self.rng);
            }
            self.tentative = true;
            let made = self.life(Mode::Create, false) == End::Opened;
            if !made && !self.failed() && self.rng.bool() {
                // It may have got far enough to be opened, if not with all its disks.
                self.life(Mode::Open, false);
            }
            self.tentative = false;
            let again = self.host.on && !self.mischief.touched;
            let made = made || (!self.failed() && again && self.make_again());
            if made || self.failed() {
                return made;
            }
            self.start_over();
        }
        false
    }

    /// What a making that was cut short or refused left behind can be made again, or opened. One that is opened may lack a disk, which no
    /// superblock had reached: it bears no other loss, so that it is made once more from nothing.
    fn make_again(&mut self) -> bool {
        self.host.lift();
        if self.rng.bool() {
            // What is left cannot be looked at for a while.
            let what = if self.rng.bool() { Refused::Reads } else { Refused::Opens };
            self.world.refuse(Refusal { what, disk: None, files: Vec::new() });
            (self.undisturbed, self.tentative) = (true, true);
            let made = self.life(Mode::Create, false) == End::Opened;
            (self.undisturbed, self.tentative) = (false, false);
            self.world.allow(None);
            if made || self.failed() {
                return made;
            }
        }
        (self.undisturbed, self.tentative) = (true, true);
        let made = self.life(Mode::Create, false) == End::Opened;
        let opened = made || self.life(Mode::Open, false) == End::Opened;
        (self.undisturbed, self.tentative) = (false, false);
        if !opened && !self.failed() {
            let complaint = "what was left of a region that was not made whole can neither be made nor opened";
            self.oracle().complain(complaint.to_owned());
        }
        made
    }

    /// A region whose making was cut short is made again from nothing.
    fn start_over(&mut self) {
        for disk in &self.options.disks {
            self.world.blank(&disk.path);
        }
        self.mischief.forget();
        self.host.moments.clear();
        self.oracle = Arc::default();
        self.unsettled.clear();
        self.accounts.clear();
        self.clients.clear();
    }

    /// Where a state machine that keeps its own state would resume: from the start, or behind something it was handed.
    pub(super) fn draw_resume(&mut self) -> Lsn {
        let retained = self.oracle().retained();
        if retained.is_empty() || self.rng.u8(..3) > 0 {
            return Lsn::ZERO;
        }
        let at = self.rng.usize(retained);
        let position = self.oracle().position(at);
        position.map_or(Lsn::ZERO, |lsn| Lsn(lsn.0 + 1))
    }

    /// A client remembers what it does not know the fate of, and now and then forgets that it knows.
    pub(super) fn note_fate(&mut self, sent: usize, answer: Answer) {
        if self.oracle().transaction(sent).client == ClientId::NONE {
            return;
        }
        let settled = matches!(answer, Answer::Acknowledged { .. }) && self.rng.u8(..4) > 0;
        self.unsettled.retain(|other| *other != sent);
        if !settled && self.unsettled.len() < 16 {
            self.unsettled.push(sent);
        }
    }

    /// One opening of the region, to its end.
    fn life(&mut self, mode: Mode, last: bool) -> End {
        let most = if self.rng.bool() { 60 } else { 400 };
        let whole = last || self.beyond || self.undisturbed || self.host.course == (Course::Many { fresh: false });
        let cut = (!whole && self.rng.u8(..3) == 0).then(|| self.rng.u64(1..most));
        self.world.crash_after(cut);
        self.flush_failed = 0;
        let stage = self.opening_stage(mode);
        let images = self.mischief.images();
        self.count_of_lives += 1;
        if !self.undisturbed {
            self.host.begin_life(&mut self.rng);
        }
        if !last && !self.beyond && self.host.course != (Course::Many { fresh: false }) {
            self.mischief.plan_beyond(&mut self.rng);
        }
        let end = Life::start(self, mode, last).run(stage);
        self.count();
        self.host.end_life(&mut self.rng);
        self.broken_openings = if end == End::Opened { 0 } else { self.broken_openings + 1 };
        if end == End::Opened {
            self.mischief.age_images(images);
        }
        end
    }

    fn opening_stage(&self, mode: Mode) -> InStage {
        enter_stage(match mode {
            Mode::Create => Stage::Create,
            Mode::Open if self.broken_openings > 0 => Stage::RecoveryAgain,
            Mode::Open => Stage::Recovery,
        })
    }

    fn outcome(mut self) -> Outcome {
        self.count();
        let oracle = self.oracle();
        Outcome {
            digest: self.world.digest(),
            violation: oracle.violation().map(str::to_owned),
            cells: self.cells.clone(),
            operations: self.world.operations(),
            transactions: oracle.len(),
            reached: 0,
            trace: self.world.trace(),
        }
    }
}

/// Small segments and small bounds, so that a few dozen transactions meet all of them.
pub(super) fn options(rng: &mut fastrand::Rng, disks: usize) -> Options {
    let disks = (0..disks).map(|at| DiskConfig::new(format!("disk-{at}"), &format!("domain-{at}"), "zone"));
    let mut options = Options::new(disks.collect());
    options.segment_bytes = 64 << 10;
    options.block_bytes = [8 << 10, 16 << 10][rng.usize(..2)];
    options.transaction_bytes = 12 << 10;
    options.commit_depth = rng.usize(1..5);
    options.queue_transactions = 64;
    options.queue_bytes = 256 << 10;
    options.hot_bytes = 32 << 10;
    options.index_cache_bytes = 64 << 10;
    options.stall_timeout = Duration::from_millis(rng.u64(15..60));
    options.lag_bytes = 64 << 10;
    options.max_accounts = 16;
    options.max_partitions = 64;
    options.max_clients = 64;
    options.client_window = 64;
    options.max_segments = [None, Some(6)][rng.usize(..2)];
    options.scrub_bytes_per_second = [0, 64 << 20][rng.usize(..2)];
    options.rebuild_bytes_per_second = 0;
    options
}
