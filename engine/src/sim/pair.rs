//! Two regions and the link between them: the real logs, shipper and receiver on simulated disks and a simulated network.
//!
//! The primary, `west`, commits; what it commits of one account goes to `east` over a link that delays, loses, doubles, reorders and cuts. Both
//! sides die and come back at any time. What must hold is checked as it happens, and at the end, when everything is mended, the secondary must
//! catch up and hold the same.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::bugs::{Bug, plant, reached};
use super::fault::Condition;
use super::harness::options;
use super::link::Link;
use super::world::{World, WorldOptions};
use crate::account::Account;
use crate::error::Result;
use crate::geo::{Arrived, Digest, Imported, Lane};
use crate::io::Driver;
use crate::log::geo::{Geo, Import};
use crate::log::{Core, Mode, Phase};
use crate::options::Options;
use crate::region::check_arrived;
use crate::shared::{AccountChange, Commit, Control, PutAccount, Request, Shared, lock};
use crate::sync::intake::{AHEAD, Intake};
use crate::sync::ticket::{Ticket, ticket};
use crate::transaction::{Committed, StateMachine, Transaction};
use crate::types::{AccountId, Ack, ClientId, LogId, Lsn, PartitionId, Role};

/// Virtual nanoseconds after which what has to happen will never.
const PATIENCE: u64 = 30_000_000_000;
/// The name of the account that is shipped, and of the one that is not.
const NAMES: [&str; 2] = ["shipped", "not shipped"];

/// What one schedule of two regions came to.
#[derive(Clone, Debug, Default)]
pub struct PairOutcome {
    /// A digest of every disk operation, equal for equal runs.
    pub digest: u64,
    /// What should not have happened, if anything did.
    pub violation: Option<String>,
    /// Transactions that the secondary held at the end.
    pub arrived: usize,
    /// Sessions of the link.
    pub sessions: u64,
    /// Marks that were claimed as last sync time.
    pub claims: u64,
    /// Bootstraps begun or gone on with.
    pub bootstraps: u64,
    /// How often the planted bug's place was reached.
    pub reached: u64,
    /// A line per event, when asked for.
    pub trace: Vec<String>,
}

/// What a schedule of two regions is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct PairSchedule {
    /// Everything follows from it.
    pub seed: u64,
    /// The bug to plant, if any.
    pub bug: Option<Bug>,
    /// Whether to keep a trace.
    pub trace: bool,
}

impl PairSchedule {
    /// Runs it.
    #[must_use]
    pub fn run(self) -> PairOutcome {
        plant(self.bug);
        let mut pair = Pair::new(self);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| pair.run())) {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            pair.complain(format!("panic: {text}"));
        }
        let outcome = PairOutcome {
            digest: pair.world.digest(),
            violation: pair.violation.take(),
            arrived: lock(&pair.east.held).frames.len(),
            sessions: pair.link.sessions,
            claims: pair.link.claims,
            bootstraps: pair.link.bootstraps,
            reached: reached(),
            trace: pair.world.trace(),
        };
        drop(pair);
        plant(None);
        outcome
    }
}

/// A committed frame, as a region's state machine was handed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) lsn: Lsn,
    pub(super) account: AccountId,
    pub(super) partition: PartitionId,
    pub(super) time: u64,
    bytes: Vec<u8>,
}

/// Everything that a region ever committed, whatever it has trimmed or forgotten since.
#[derive(Default)]
pub(super) struct Held {
    pub(super) frames: Vec<Seen>,
    /// Partitions whose copies ever began anew.
    restarted: BTreeSet<(AccountId, PartitionId)>,
    wrong: Option<String>,
}

struct Watch(Arc<Mutex<Held>>);

impl StateMachine for Watch {
    fn resume_from(&self) -> Lsn {
        Lsn::ZERO
    }

    fn apply(&mut self, transaction: &Committed<'_>) {
        let seen = Seen {
            lsn: transaction.lsn(),
            account: transaction.account(),
            partition: transaction.partition(),
            time: transaction.time(),
            bytes: transaction.bytes().to_vec(),
        };
        let mut held = lock(&self.0);
        match held.frames.binary_search_by_key(&seen.lsn, |known| known.lsn) {
            Ok(at) if held.frames[at] == seen => {}
            Err(at) if at == held.frames.len() => held.frames.push(seen),
            _ => held.wrong = Some(format!("what was committed at {} is something else now", seen.lsn)),
        }
    }

    fn restart(&mut self, account: AccountId, partition: PartitionId) {
        lock(&self.0).restarted.insert((account, partition));
    }
}

/// One region: its process, when there is one.
pub(super) struct Side {
    name: &'static str,
    options: Options,
    world: World,
    pub(super) held: Arc<Mutex<Held>>,
    process: Option<Process>,
    made: bool,
}

pub(super) struct Process {
    core: Core,
    pub(super) shared: Arc<Shared>,
    running: bool,
}

impl Side {
    fn new(name: &'static str, world: &World, rng: &mut fastrand::Rng) -> Side {
        let mut options = options(rng, 3);
        for disk in &mut options.disks {
            disk.path = std::path::Path::new(name).join(&disk.path);
        }
        options.max_segments = None;
        options.max_clients = 16;
        let (held, world) = (Arc::default(), world.clone());
        Side { name, options, world, held, process: None, made: false }
    }

    fn start(&mut self) {
        let driver = self.world.driver();
        let options = self.options.clone();
        let intake = Intake::new(options.queue_transactions, AHEAD, options.queue_bytes as u64, driver.doorbell());
        let shared = Arc::new(Shared::new(options, intake, driver.environment(), driver.reader()));
        // Nothing is trimmed before the link says what the other side has.
        lock(&shared.pins).add(Lsn::ZERO);
        let mode = if self.made { Mode::Open } else { Mode::Create };
        let core = Core::start(mode, Box::new(driver), Box::new(Watch(Arc::clone(&self.held))), Arc::clone(&shared));
        self.process = Some(Process { core, shared, running: false });
    }

    fn kill(&mut self) {
        self.process = None;
    }

    /// The region, once it is open.
    pub(super) fn open(&self) -> Option<&Process> {
        self.process.as_ref().filter(|process| process.running)
    }

    /// One step of its log thread; a process that is not there is started.
    fn step(&mut self, wait: Duration, calm: bool) -> std::result::Result<(), String> {
        let Some(process) = &mut self.process else {
            self.start();
            return Ok(());
        };
        match process.core.step(wait) {
            Phase::Opening => {}
            Phase::Running => (process.running, self.made) = (true, true),
            Phase::Failed(error) if self.made => return Err(format!("{} does not open: {error}", self.name)),
            // Its making was cut short: from the start again.
            Phase::Failed(_) => {
                self.options.disks.iter().for_each(|disk| self.world.blank(&disk.path));
                self.process = None;
            }
            Phase::Closed => return Err(format!("{} closed by itself", self.name)),
        }
        if let Some(error) = self.open().and_then(|process| process.core.log().halted_error()) {
            if calm {
                return Err(format!("{}: {error}", self.name));
            }
            // A disk was still being rebuilt when another failed: an operator opens it again.
            self.kill();
        }
        match lock(&self.held).wrong.take() {
            Some(wrong) => Err(format!("{}: {wrong}", self.name)),
            None => Ok(()),
        }
    }
}

impl Process {
    pub(super) fn log_id(&self) -> LogId {
        self.shared.log_id()
    }

    pub(super) fn push(&self, request: Request, bytes: u64) -> bool {
        self.shared.intake.try_push(request, bytes).is_ok()
    }

    /// Asks the log thread; `None` when the queue is full.
    pub(super) fn ask<T>(
        &self,
        make: impl FnOnce(crate::sync::ticket::Resolver<Result<T>>) -> Request,
    ) -> Option<Ticket<Result<T>>> {
        let (done, answer) = ticket();
        self.push(make(done), 0).then_some(answer)
    }

    pub(super) fn account(&self, account: AccountId) -> Option<Account> {
        self.core.log().tables.borrow().account(account).cloned()
    }

    pub(super) fn digest(&self, account: AccountId) -> Digest {
        self.core.log().tables.borrow().digest(account)
    }
}

pub(super) struct Pair {
    pub(super) world: World,
    pub(super) rng: fastrand::Rng,
    pub(super) west: Side,
    pub(super) east: Side,
    pub(super) link: Link,
    pub(super) accounts: Vec<AccountId>,
    made: [Option<Ticket<Result<AccountId>>>; 2],
    violation: Option<String>,
    /// One action in so many: crash, cut, fence, trim, clock, disk, giving up what the secondary lacks, geo off or on.
    habits: [u32; 8],
    clients: u64,
    /// Of west's frames, those that are indexed; of east's, those that are checked.
    looked: (usize, usize),
    /// West's frames of the shipped account, by partition.
    expected: BTreeMap<PartitionId, Vec<usize>>,
    arrived: BTreeMap<PartitionId, usize>,
    /// How far west was ever trimmed.
    trimmed: Lsn,
    /// Nothing breaks any more.
    pub(super) calm: bool,
}

impl Pair {
    fn new(schedule: PairSchedule) -> Pair {
        let mut rng = fastrand::Rng::with_seed(schedule.seed ^ 0x7477_6f72_6567_696f);
        let mut options = WorldOptions::new(schedule.seed);
        options.trace = schedule.trace;
        options.is_append = |crate::io::OpId(id)| id >> 63 == 1;
        let world = World::new(options);
        let (west, east) = (Side::new("west", &world, &mut rng), Side::new("east", &world, &mut rng));
        let mut some = |often: u32| if rng.bool() { often } else { 0 };
        let habits = [some(60), some(40), some(30), some(20), some(20), some(60), some(100), some(80)];
        Pair {
            link: Link::new(&mut rng),
            world,
            rng,
            west,
            east,
            accounts: Vec::new(),
            made: [None, None],
            violation: None,
            habits,
            clients: 0,
            looked: (0, 0),
            expected: BTreeMap::new(),
            arrived: BTreeMap::new(),
            trimmed: Lsn::ZERO,
            calm: false,
        }
    }

    pub(super) fn complain(&mut self, what: String) {
        self.world.note(|| format!("VIOLATION {what}"));
        self.violation.get_or_insert(what);
    }

    /// The account that is shipped, once it is there.
    pub(super) fn shipped(&self) -> Option<AccountId> {
        self.accounts.first().copied()
    }

    fn chance(&mut self, habit: usize) -> bool {
        self.habits[habit] > 0 && self.rng.u32(..self.habits[habit]) == 0
    }

    fn run(&mut self) {
        let steps = self.rng.u32(50..400);
        for _ in 0..steps {
            self.break_something();
            self.write();
            if self.turn() {
                return;
            }
        }
        self.mend();
        let (patience, mut quiet) = (self.world.now() + PATIENCE, 0);
        while quiet < 3 {
            let off = |west: &Process| {
                self.shipped().and_then(|id| west.account(id)).is_some_and(|it| it.role == Role::Local)
            };
            if self.west.open().is_some_and(off) {
                self.switch_geo(true);
            }
            if self.turn() {
                return;
            }
            quiet = if self.is_quiet() { quiet + 1 } else { 0 };
            if self.world.now() > patience {
                let (west, east) = (lock(&self.west.held).frames.len(), lock(&self.east.held).frames.len());
                return self.complain(format!("the secondary never catches up: {east} frames of {west}"));
            }
        }
        self.compare();
    }

    /// One step of everything. True when it is over.
    fn turn(&mut self) -> bool {
        let wait = if self.calm { 2_000 } else { self.rng.u64(..400) };
        for side in 0..2 {
            let side = if side == 0 { &mut self.west } else { &mut self.east };
            if let Err(wrong) = side.step(Duration::from_micros(wait), self.calm) {
                self.complain(wrong);
            }
        }
        self.name_accounts();
        self.pump();
        self.check();
        self.violation.is_some()
    }

    fn name_accounts(&mut self) {
        let (Some(west), at) = (self.west.open(), self.accounts.len()) else { return };
        if at == NAMES.len() {
            return;
        }
        if self.made[at].is_none() {
            let (name, change) = (NAMES[at].to_owned(), AccountChange::Create(Ack::Quorum));
            let at_time = self.world.now();
            let made = west.ask(|done| Request::PutAccount(PutAccount { name, change, done, at: at_time }));
            self.made[at] = made;
        }
        if let Some(made) = self.made[at].take_if(|made| made.is_done()) {
            // It may be there already: its maker died before it was told.
            match made.wait() {
                Ok(Ok(account)) => self.accounts.push(account),
                _ => self.find_account(at),
            }
        }
    }

    fn find_account(&mut self, at: usize) {
        let known = self.west.open().and_then(|west| {
            let tables = west.core.log().tables.borrow();
            tables.account_named(NAMES[at]).map(|account| account.id)
        });
        self.accounts.extend(known);
    }

    fn write(&mut self) {
        for _ in 0..self.rng.u32(..4) {
            let Some(account) = self.rng.choice(&self.accounts).copied() else { return };
            let partition = PartitionId(u128::from(self.rng.u8(..4)));
            let large = self.rng.u8(..6) == 0;
            let mut transaction = Transaction::new(account, partition);
            for _ in 0..self.rng.usize(1..4) {
                let len = if large { self.rng.usize(500..3_000) } else { self.rng.usize(1..150) };
                transaction = transaction.record(vec![self.rng.u8(..); len]);
            }
            if self.rng.bool() {
                self.clients += 1;
                transaction = transaction.client(ClientId(u128::from(self.clients % 3) + 1), self.clients);
            }
            let bytes = transaction.encoded_len().unwrap_or_default();
            let (done, _nobody) = ticket();
            let commit = Commit { transaction, done, at: self.world.now(), bytes };
            if let Some(west) = self.west.open() {
                west.push(Request::Commit(commit), bytes as u64);
            }
        }
        let at = self.world.now();
        if self.chance(2)
            && !self.accounts.is_empty()
            && let Some(west) = self.west.open()
        {
            let (name, change) = (NAMES[0].to_owned(), AccountChange::Fence);
            drop(west.ask(|done| Request::PutAccount(PutAccount { name, change, done, at })));
        }
        if self.chance(7) {
            let on = self.rng.bool();
            self.switch_geo(on);
        }
        if self.chance(3) {
            for side in [&self.west, &self.east] {
                if let Some(process) = side.open() {
                    drop(process.ask(|done| Request::Control(Control::Trim { to: Lsn::MAX, done })));
                }
            }
        }
    }

    fn switch_geo(&mut self, on: bool) {
        let at = self.world.now();
        if let Some(west) = self.west.open().filter(|_| !self.accounts.is_empty()) {
            let (name, change) = (NAMES[0].to_owned(), AccountChange::SetGeo(on));
            drop(west.ask(|done| Request::PutAccount(PutAccount { name, change, done, at })));
        }
    }

    fn break_something(&mut self) {
        if self.chance(0) {
            match self.rng.u8(..3) {
                0 => self.west.kill(),
                1 => self.east.kill(),
                _ => self.world.crash(),
            }
            if !self.world.running() {
                self.west.kill();
                self.east.kill();
            }
        }
        if self.chance(1) {
            self.link.cut();
        }
        if self.chance(6) {
            self.give_up();
        }
        if self.chance(4) {
            let by = self.rng.i64(-10_000_000_000..10_000_000_000);
            self.world.jump_wall(by);
        }
        if self.chance(5) {
            let side = if self.rng.bool() { &self.west } else { &self.east };
            let condition = [Condition::Slow(20), Condition::Lost, Condition::Healthy][self.rng.usize(..3)];
            self.world.set_condition(&side.options.disks[1].path, condition);
        }
    }

    fn mend(&mut self) {
        self.calm = true;
        for side in [&self.west, &self.east] {
            self.world.set_condition(&side.options.disks[1].path, Condition::Healthy);
        }
        // What was lost is found at the next opening.
        self.west.kill();
        self.east.kill();
        self.link.cut();
    }

    /// Everything that west committed has arrived, and a mark after it.
    fn is_quiet(&self) -> bool {
        let (Some(west), Some(east), Some(account)) = (self.west.open(), self.east.open(), self.shipped()) else {
            return self.shipped().is_none() && self.west.open().is_some() && self.made.iter().all(Option::is_none);
        };
        let last = lock(&self.west.held).frames.iter().rev().find(|seen| seen.account == account).map(|seen| seen.lsn);
        let lane = Lane { log: west.log_id(), number: 0 };
        let arrived = east.core.log().tables.borrow().progress(lane);
        let whole = east.account(account).is_some_and(|known| known.role == Role::Secondary);
        let idle =
            |side: &Process| side.core.log().with(|pipeline| pipeline.open.is_none() && pipeline.uncommitted() == 0);
        idle(west)
            && idle(east)
            && whole
            && arrived.is_some_and(|progress| progress.time > 0 && last.is_none_or(|last| progress.position > last))
    }

    /// At rest both sides hold the same (acceptance G7).
    fn compare(&mut self) {
        let (Some(west), Some(east), Some(account)) = (self.west.open(), self.east.open(), self.shipped()) else {
            return;
        };
        let [ours, theirs] = [west.digest(account), east.digest(account)];
        let missing = self.missing(|_| true);
        if ours != theirs || missing > 0 {
            self.complain(format!("at rest: {missing} frames are missing, digests {ours:?} and {theirs:?}"));
        }
    }

    /// What arrived is, partition by partition, the beginning of what was committed, byte for byte (G3, G5).
    fn check(&mut self) {
        if let Some(west) = self.west.open() {
            self.trimmed = self.trimmed.max(west.shared.first_retained());
        }
        let Some(account) = self.shipped() else { return };
        if let (Some(west), Some(east)) = (self.west.open(), self.east.open()) {
            let lane = Lane { log: west.log_id(), number: 0 };
            let progress = east.core.log().tables.borrow().progress(lane);
            let open = east.account(account).is_some_and(|known| known.role == Role::Secondary);
            if open && progress.is_some_and(|progress| progress.time == 0) {
                self.complain("a copy that is not whole can be read".into());
            }
        }
        let mut wrong = None;
        {
            let (west, east) = (lock(&self.west.held), lock(&self.east.held));
            for (at, seen) in west.frames.iter().enumerate().skip(self.looked.0) {
                if seen.account == account {
                    self.expected.entry(seen.partition).or_default().push(at);
                    if seen.time <= self.link.claimed {
                        wrong = Some(format!("{} was committed with a time that was claimed before", seen.lsn));
                    }
                }
            }
            for seen in &east.frames[self.looked.1..] {
                let at = self.arrived.entry(seen.partition).or_default();
                let frames = self.expected.get(&seen.partition).map(Vec::as_slice).unwrap_or_default();
                let is_it = |expected: &usize| west.frames[*expected].bytes == seen.bytes;
                if east.restarted.contains(&(account, seen.partition)) {
                    // What was trimmed here never gets there.
                    let gone = |expected: &&usize| west.frames[**expected].lsn < self.trimmed && !is_it(expected);
                    *at += frames[*at..].iter().take_while(gone).count();
                }
                if !frames.get(*at).is_some_and(is_it) {
                    wrong = Some(format!("frame {at} of {:?} arrived, and is not what was committed", seen.partition));
                }
                *at += 1;
            }
            self.looked = (west.frames.len(), east.frames.len());
        }
        if let Some(wrong) = wrong {
            self.complain(wrong);
        }
    }

    /// The frames of the shipped account that west committed and east has not, of those that `which` names. Of a copy that nobody can read
    /// nothing is said.
    pub(super) fn missing(&self, which: impl Fn(&Seen) -> bool) -> usize {
        let copy = self.shipped().zip(self.east.open()).and_then(|(account, east)| east.account(account));
        if copy.is_some_and(|copy| copy.role != Role::Secondary) {
            return 0;
        }
        let west = lock(&self.west.held);
        let east = lock(&self.east.held);
        let missing = self.expected.iter().map(|(partition, frames)| {
            let arrived = self.arrived.get(partition).copied().unwrap_or_default();
            let restarted = self.shipped().is_some_and(|account| east.restarted.contains(&(account, *partition)));
            let gone = |seen: &Seen| restarted && seen.lsn < self.trimmed;
            frames.iter().skip(arrived).map(|&at| &west.frames[at]).filter(|seen| which(seen) && !gone(seen)).count()
        });
        missing.sum()
    }

    /// A stretch goes to east's queue; it comes back when there is no room.
    pub(super) fn import(&mut self, arrived: Box<Arrived>) -> std::result::Result<Importing, Box<Arrived>> {
        let Some(east) = self.east.open() else { return Err(arrived) };
        let Ok(bytes) = check_arrived(&arrived) else { return Err(arrived) };
        let (done, answer) = ticket();
        let import = Import::new(Arrived::clone(&arrived), done, self.world.now(), bytes);
        if east.push(Request::Geo(Geo::Import(Box::new(import))), bytes as u64) { Ok(answer) } else { Err(arrived) }
    }
}

/// The ticket of an import.
pub(super) type Importing = Ticket<Result<Imported>>;

/// A queue of what is on its way, with when it arrives.
pub(super) type OnTheWay<T> = VecDeque<(u64, T)>;
