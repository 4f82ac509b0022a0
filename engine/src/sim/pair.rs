//! Two regions and the link between them: the real logs, shipper and receiver on simulated disks and a simulated network.
//!
//! The primary, `west`, commits; what it commits of most accounts goes to `east` over one or two lanes, each a link that delays, loses, doubles,
//! reorders and cuts, and lags behind the other. Accounts are switched off and on, change lanes and contracts; both sides die and come back at any
//! time. What must hold is checked as it happens, and at the end, when everything is mended, the secondary must catch up and hold the same.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::backups::Backup;
use super::bugs::{Bug, plant, reached};
use super::clients::Clients;
use super::fault::Condition;
use super::harness::options;
use super::link::Link;
use super::world::{World, WorldOptions};
use crate::account::Account;
use crate::error::Result;
use crate::geo::{Arrived, Digest, Imported};
use crate::io::Driver;
use crate::log::geo::{Geo, Import};
use crate::log::{Core, Mode, Phase};
use crate::options::Options;
use crate::region::check_arrived;
use crate::shared::{AccountChange, PutAccount, Request, Shared, lock};
use crate::sync::intake::{AHEAD, Intake};
use crate::sync::ticket::{Ticket, ticket};
use crate::transaction::{Committed, StateMachine};
use crate::types::{AccountId, Ack, LogId, Lsn, PartitionId, Role};

/// Virtual nanoseconds after which what has to happen will never.
const PATIENCE: u64 = 30_000_000_000;
/// The names of accounts, in the order in which they are made. The second one is never shipped.
pub(super) const NAMES: [&str; 5] = ["one", "not shipped", "two", "three", "four"];
const NOT_SHIPPED: usize = 1;
/// More than there are.
const MAX_CLIENTS: usize = 32;
const MAX_PARTITIONS: usize = 64;

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
    /// Commits that waited for the secondary and were answered when it had them.
    pub waited: u64,
    /// Commits that a broken contract kept out.
    pub held_back: u64,
    /// Batches that the secondary refused for its limits.
    pub refused: u64,
    /// Backups of whole regions that were put back.
    pub put_backs: u64,
    /// Sessions that found the secondary to be of another history.
    pub other_histories: u64,
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
            sessions: pair.links.iter().map(|link| link.sessions).sum(),
            claims: pair.links.iter().map(|link| link.claims).sum(),
            bootstraps: pair.links.iter().map(|link| link.bootstraps).sum(),
            waited: pair.clients.waited,
            held_back: pair.clients.held_back,
            refused: pair.refused,
            put_backs: pair.put_backs,
            other_histories: pair.links.iter().map(|link| link.other_histories).sum(),
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
    sequence: u64,
    bytes: Vec<u8>,
}

/// Of each partition what its copy holds, by first sequence, as places in [`Held::frames`].
pub(super) type Copies = BTreeMap<Whole, BTreeMap<u64, usize>>;

/// Everything that a region ever committed, whatever it has trimmed or forgotten since.
#[derive(Default)]
pub(super) struct Held {
    pub(super) frames: Vec<Seen>,
    /// What it holds now: of copies what arrived since they began anew.
    pub(super) copies: Copies,
    /// Partitions whose copies ever began anew.
    pub(super) restarted: BTreeSet<Whole>,
    wrong: Option<String>,
}

impl Held {
    /// Whether a frame of the primary is here, byte for byte, where it belongs.
    pub(super) fn holds(&self, seen: &Seen) -> bool {
        let copy = self.copies.get(&(seen.account, seen.partition));
        copy.and_then(|copy| copy.get(&seen.sequence)).is_some_and(|at| self.frames[*at].bytes == seen.bytes)
    }
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
            sequence: transaction.first_sequence(),
            bytes: transaction.bytes().to_vec(),
        };
        let mut held = lock(&self.0);
        let at = held.frames.binary_search_by_key(&seen.lsn, |known| known.lsn);
        let (Ok(place) | Err(place)) = at;
        held.copies.entry((seen.account, seen.partition)).or_default().insert(seen.sequence, place);
        match at {
            Ok(at) if held.frames[at] == seen => {}
            Err(at) if at == held.frames.len() => held.frames.push(seen),
            _ => held.wrong = Some(format!("what was committed at {} is something else now", seen.lsn)),
        }
    }

    fn restart(&mut self, account: AccountId, partition: PartitionId) {
        let mut held = lock(&self.0);
        held.restarted.insert((account, partition));
        held.copies.remove(&(account, partition));
    }
}

/// One region: its process, when there is one.
pub(super) struct Side {
    name: &'static str,
    pub(super) options: Options,
    /// How many lanes hold back trimming.
    lanes: usize,
    pub(super) world: World,
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
    fn new(name: &'static str, world: &World, lanes: usize, rng: &mut fastrand::Rng) -> Side {
        let mut options = options(rng, 3);
        for disk in &mut options.disks {
            disk.path = std::path::Path::new(name).join(&disk.path);
        }
        options.max_segments = None;
        options.max_clients = MAX_CLIENTS;
        let (held, world) = (Arc::default(), world.clone());
        Side { name, options, lanes, world, held, process: None, made: false }
    }

    fn start(&mut self) {
        let driver = self.world.driver();
        let options = self.options.clone();
        let intake = Intake::new(options.queue_transactions, AHEAD, options.queue_bytes as u64, driver.doorbell());
        let shared = Arc::new(Shared::new(options, intake, driver.environment(), driver.reader()));
        // Nothing is trimmed before each link says what the other side has.
        for _ in 0..self.lanes {
            lock(&shared.pins).add(Lsn::ZERO);
        }
        let mode = if self.made { Mode::Open } else { Mode::Create };
        let core = Core::start(mode, Box::new(driver), Box::new(Watch(Arc::clone(&self.held))), Arc::clone(&shared));
        self.process = Some(Process { core, shared, running: false });
    }

    pub(super) fn kill(&mut self) {
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

    pub(super) fn account_named(&self, name: &str) -> Option<AccountId> {
        self.core.log().tables.borrow().account_named(name).map(|account| account.id)
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
    pub(super) links: Vec<Link>,
    pub(super) clients: Clients,
    /// Those that are made, in the order of their names.
    pub(super) accounts: Vec<AccountId>,
    /// By which lane each account is shipped at first.
    pub(super) homes: Vec<Option<usize>>,
    made: Option<Ticket<Result<AccountId>>>,
    violation: Option<String>,
    habits: Habits,
    /// Of west's frames, those that are indexed; of east's, those that are checked.
    pub(super) looked: (usize, usize),
    /// West's frames of shipped accounts, by partition.
    pub(super) expected: BTreeMap<Whole, Vec<usize>>,
    pub(super) arrived: BTreeMap<Whole, usize>,
    /// Batches that the secondary refused for its limits.
    pub(super) refused: u64,
    /// Accounts that are left switched off at the end.
    off: BTreeSet<AccountId>,
    /// How far west was ever trimmed, also before a backup was put back: what a copy began after is not there.
    trimmed: Lsn,
    /// Of east and of west.
    pub(super) backups: [Option<Backup>; 2],
    /// A backup was put back: east may hold what west never had, until copies are compared.
    pub(super) put_back: bool,
    pub(super) put_backs: u64,
    /// Nothing breaks any more.
    pub(super) calm: bool,
}

/// What is in order: a partition of an account.
pub(super) type Whole = (AccountId, PartitionId);

/// The temper of a schedule: one action in so many, 0 for never.
pub(super) struct Habits {
    crash: u32,
    cut: u32,
    pub(super) fence: u32,
    pub(super) trim: u32,
    clock: u32,
    disk: u32,
    /// What the secondary lacks is given up.
    give_up: u32,
    /// Geo off or on.
    pub(super) geo: u32,
    /// A lane is held up.
    lag: u32,
    /// An account changes lanes.
    shift: u32,
    pub(super) contract: u32,
    /// A backup of a region is made, or put back.
    back_up: u32,
}

impl Habits {
    fn draw(rng: &mut fastrand::Rng) -> Habits {
        let mut some = |often: u32| if rng.bool() { often } else { 0 };
        Habits {
            crash: some(60),
            cut: some(40),
            fence: some(30),
            trim: some(20),
            clock: some(20),
            disk: some(60),
            give_up: some(50),
            geo: some(80),
            lag: some(50),
            shift: some(40),
            contract: some(15),
            back_up: 0,
        }
    }
}

impl Pair {
    fn new(schedule: PairSchedule) -> Pair {
        let mut rng = fastrand::Rng::with_seed(schedule.seed ^ 0x7477_6f72_6567_696f);
        let mut options = WorldOptions::new(schedule.seed);
        options.trace = schedule.trace;
        options.is_append = |crate::io::OpId(id)| id >> 63 == 1;
        let world = World::new(options);
        let lanes = rng.usize(1..3);
        let (mut west, mut east) =
            (Side::new("west", &world, lanes, &mut rng), Side::new("east", &world, lanes, &mut rng));
        // A client that has several commits under way may be one whose window forgets them.
        west.options.client_window = [1, 3, 64, 64][rng.usize(..4)];
        east.options.client_window = west.options.client_window;
        let mut habits = Habits::draw(&mut rng);
        // A secondary that was given too little refuses what it is sent until an operator gives it more.
        match rng.u8(..8) {
            0 => east.options.max_clients = 2,
            1 | 2 => {
                east.options.max_partitions = rng.usize(1..8);
                // Nobody holds back for ever what is refused: copies begin anew.
                (habits.give_up, habits.trim) = (50, 20);
            }
            _ => {}
        }
        if rng.u8(..4) == 0 {
            // An epoch that was begun after the backup fences the primary that was put back, until an operator begins a later one.
            (habits.back_up, habits.fence) = (10, 0);
        }
        let mut homes = vec![Some(0), None];
        homes.extend((1..lanes).map(Some));
        homes.extend((0..rng.usize(lanes - 1..3)).map(|_| Some(rng.usize(..lanes))));
        let mut links: Vec<Link> = (0..lanes as u32).map(|number| Link::new(number, &mut rng)).collect();
        if habits.back_up > 0 {
            // The secondary has most of what was written since a backup.
            links.iter_mut().for_each(|link| link.delay %= 400_000);
        }
        Pair {
            links,
            habits,
            clients: Clients::default(),
            world,
            rng,
            west,
            east,
            accounts: Vec::new(),
            homes,
            made: None,
            violation: None,
            looked: (0, 0),
            expected: BTreeMap::new(),
            arrived: BTreeMap::new(),
            refused: 0,
            off: BTreeSet::new(),
            trimmed: Lsn::ZERO,
            backups: [None, None],
            put_back: false,
            put_backs: 0,
            calm: false,
        }
    }

    pub(super) fn complain(&mut self, what: String) {
        self.world.note(|| format!("VIOLATION {what}"));
        self.violation.get_or_insert(what);
    }

    pub(super) fn chance(&mut self, habit: impl Fn(&Habits) -> u32) -> bool {
        let often = habit(&self.habits);
        often > 0 && self.rng.u32(..often) == 0
    }

    /// Backups are made in this schedule.
    pub(super) fn backs_up(&self) -> bool {
        self.habits.back_up > 0 && !self.calm
    }

    /// A shipped account, and its place among the names.
    pub(super) fn any_shipped(&mut self) -> Option<(usize, AccountId)> {
        let at = self.rng.usize(..NAMES.len());
        self.accounts.get(at).filter(|_| at != NOT_SHIPPED).map(|id| (at, *id))
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
            self.lift_limits_when_open();
            self.switch_on();
            self.write_owed();
            if self.turn() {
                return;
            }
            quiet = if self.is_quiet() { quiet + 1 } else { 0 };
            if self.world.now() > patience {
                let (west, east) = (lock(&self.west.held).frames.len(), lock(&self.east.held).frames.len());
                let open = self.clients.open();
                return self.complain(format!("the secondary never catches up: {east} frames of {west}; {open}"));
            }
        }
        self.compare();
    }

    /// Accounts that are not to stay switched off are switched on.
    fn switch_on(&mut self) {
        for (at, id) in self.accounts.clone().into_iter().enumerate().filter(|(at, _)| *at != NOT_SHIPPED) {
            let local = self.role(id) == Some(Role::Local);
            if local != self.off.contains(&id) {
                self.switch_geo(at, id, local);
            }
        }
    }

    /// How the primary knows an account.
    pub(super) fn role(&self, account: AccountId) -> Option<Role> {
        self.west.open().and_then(|west| west.account(account)).map(|known| known.role)
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
        self.take_answers();
        self.violation.is_some()
    }

    /// One after the other; those behind the first two come when they come, and join lanes that are at work.
    fn name_accounts(&mut self) {
        let (Some(west), at) = (self.west.open(), self.accounts.len()) else { return };
        if at == self.homes.len() {
            return;
        }
        if self.made.is_none() && (at < 2 || self.calm || self.rng.u8(..20) == 0) {
            let (name, change) = (NAMES[at].to_owned(), AccountChange::Create(Ack::Quorum));
            let at_time = self.world.now();
            self.made = west.ask(|done| Request::PutAccount(PutAccount { name, change, done, at: at_time }));
        }
        if let Some(made) = self.made.take_if(|made| made.is_done()) {
            // It may be there already: its maker died before it was told.
            let made = match made.wait() {
                Ok(Ok(account)) => Some(account),
                _ => self.west.open().and_then(|west| west.account_named(NAMES[at])),
            };
            if let (Some(account), Some(lane)) = (made, self.homes[at]) {
                self.links[lane].change(account, true);
            }
            self.accounts.extend(made);
        }
    }

    fn break_something(&mut self) {
        if self.chance(|habits| habits.crash) {
            match self.rng.u8(..3) {
                0 => self.west.kill(),
                1 => self.east.kill(),
                _ => self.world.crash(),
            }
            if !self.world.running() {
                self.west.kill();
                self.east.kill();
            }
            if self.rng.u8(..4) == 0 {
                self.lift_limits();
            }
        }
        let lane = self.rng.usize(..self.links.len());
        if self.chance(|habits| habits.cut) {
            self.links[lane].cut();
        }
        if self.chance(|habits| habits.lag) {
            let until = self.world.now() + self.rng.u64(..50_000_000);
            self.links[lane].hold(until);
        }
        if self.chance(|habits| habits.back_up) {
            self.back_up();
        }
        if self.chance(|habits| habits.give_up) {
            self.give_up(lane);
        }
        if self.chance(|habits| habits.shift) {
            self.shift(lane);
        }
        if self.chance(|habits| habits.clock) {
            let by = self.rng.i64(-10_000_000_000..10_000_000_000);
            self.world.jump_wall(by);
        }
        if self.chance(|habits| habits.disk) {
            let side = if self.rng.bool() { &self.west } else { &self.east };
            let condition = [Condition::Slow(20), Condition::Lost, Condition::Healthy][self.rng.usize(..3)];
            self.world.set_condition(&side.options.disks[1].path, condition);
        }
    }

    /// The next opening of the secondary has room for everything.
    fn lift_limits(&mut self) {
        (self.east.options.max_clients, self.east.options.max_partitions) = (MAX_CLIENTS, MAX_PARTITIONS);
    }

    /// With limits under which it took what it holds, the secondary opens again; only then is it given more.
    fn lift_limits_when_open(&mut self) {
        let options = &self.east.options;
        if (options.max_clients, options.max_partitions) != (MAX_CLIENTS, MAX_PARTITIONS) && self.east.open().is_some()
        {
            self.lift_limits();
            self.east.kill();
        }
    }

    /// An operator stops the links, and starts them again with one account on another lane. The last one of a lane stays.
    fn shift(&mut self, from: usize) {
        let (to, link) = ((from + 1) % self.links.len(), &self.links[from]);
        let Some(account) = link.accounts.iter().nth(1).copied().filter(|_| to != from) else { return };
        self.world.note(|| format!("{account:?} goes from lane {from} to lane {to}"));
        self.links[from].change(account, false);
        self.links[to].change(account, true);
    }

    fn mend(&mut self) {
        self.calm = true;
        for side in [&self.west, &self.east] {
            self.world.set_condition(&side.options.disks[1].path, Condition::Healthy);
        }
        for &id in &self.accounts {
            if self.rng.u8(..8) == 0 {
                self.off.insert(id);
            }
        }
        // What was lost is found at the next opening.
        self.west.kill();
        self.east.kill();
        self.links.iter_mut().for_each(Link::cut);
        self.owe();
    }

    /// Everything that west committed has arrived, and a mark after it, and everyone who waited was answered.
    fn is_quiet(&self) -> bool {
        let (Some(west), Some(east)) = (self.west.open(), self.east.open()) else { return false };
        let idle =
            |side: &Process| side.core.log().with(|pipeline| pipeline.open.is_none() && pipeline.uncommitted() == 0);
        self.accounts.len() == self.homes.len()
            && self.clients.is_idle()
            && idle(west)
            && idle(east)
            && self.links.iter().all(|link| self.has_all(link, west, east))
    }

    fn has_all(&self, link: &Link, west: &Process, east: &Process) -> bool {
        let progress = east.core.log().tables.borrow().progress(link.lane(west.log_id()));
        // Positions of another history say nothing.
        if !link.is_live() && link.accounts.iter().any(|id| !self.off.contains(id)) {
            return false;
        }
        let held = lock(&self.west.held);
        link.accounts.iter().all(|id| {
            let off = self.off.contains(id);
            let last = held.frames.iter().rev().find(|seen| seen.account == *id).map(|seen| seen.lsn);
            let there = |position| last.is_none_or(|last| position > last);
            let wanted = if off { Role::Dropped } else { Role::Secondary };
            // A lane whose accounts are all switched off has no marks.
            (off || progress.is_some_and(|progress| progress.time > 0 && there(progress.position)))
                && east.account(*id).is_some_and(|known| known.role == wanted)
        })
    }

    /// At rest both sides hold the same (acceptance G7).
    fn compare(&mut self) {
        let (Some(west), Some(east)) = (self.west.open(), self.east.open()) else { return };
        let mut wrong = None;
        for &id in self.links.iter().flat_map(|link| &link.accounts).filter(|id| !self.off.contains(id)) {
            let [ours, theirs] = [west.digest(id), east.digest(id)];
            let missing = self.missing(&[id], |_| true);
            if ours != theirs || missing > 0 {
                wrong = Some(format!("at rest, {id:?}: {missing} frames are missing, digests {ours:?} and {theirs:?}"));
            }
        }
        wrong.into_iter().for_each(|wrong| self.complain(wrong));
    }

    /// A copy that is not whole cannot be read, and no last sync time is claimed: where nothing is known to be there, one at least of the lane's
    /// copies is not whole.
    fn check_open(&mut self) {
        let (Some(west), Some(east)) = (self.west.open(), self.east.open()) else { return };
        let mut wrong = None;
        {
            let tables = east.core.log().tables.borrow();
            for link in self.links.iter().filter(|link| !link.accounts.is_empty()) {
                let lane = link.lane(west.log_id());
                if tables.progress(lane).is_none_or(|progress| progress.time > 0) {
                    continue;
                }
                let open = |id| tables.account(id).is_some_and(|known| known.role == Role::Secondary);
                if !link.changed && link.accounts.iter().all(|id| open(*id)) {
                    wrong = Some("a copy that is not whole can be read".to_owned());
                }
                if link.is_live() && link.synced > 0 {
                    wrong = Some(format!("last sync time {} is claimed of copies that begin anew", link.synced));
                }
            }
        }
        wrong.into_iter().for_each(|wrong| self.complain(wrong));
    }

    /// What arrived is, partition by partition, the beginning of what was committed, byte for byte (G3, G5).
    fn check(&mut self) {
        if let Some(west) = self.west.open() {
            self.trimmed = self.trimmed.max(west.shared.first_retained());
        }
        self.check_open();
        let claimed = self.links.iter().map(|link| link.claimed).max().unwrap_or_default();
        let mut wrong = None;
        {
            let (west, east) = (lock(&self.west.held), lock(&self.east.held));
            let not_shipped = self.accounts.get(NOT_SHIPPED);
            for (at, seen) in west.frames.iter().enumerate().skip(self.looked.0) {
                if Some(&seen.account) != not_shipped {
                    self.expected.entry((seen.account, seen.partition)).or_default().push(at);
                    // Whatever lane claimed it: a mark moves the clock of the whole log.
                    if seen.time <= claimed {
                        wrong = Some(format!("{} was committed with a time that was claimed before", seen.lsn));
                    }
                }
            }
            // What a primary that was put back never had is compared where something is claimed.
            let arrived = if self.put_back { &[] } else { &east.frames[self.looked.1..] };
            for seen in arrived {
                let key = (seen.account, seen.partition);
                if Some(seen.account) == self.clients.own {
                    continue;
                }
                let at = self.arrived.entry(key).or_default();
                let frames = self.expected.get(&key).map(Vec::as_slice).unwrap_or_default();
                let is_it = |expected: &usize| west.frames[*expected].bytes == seen.bytes;
                if east.restarted.contains(&key) {
                    // What was trimmed here never gets there.
                    let gone = |expected: &&usize| west.frames[**expected].lsn < self.trimmed && !is_it(expected);
                    *at += frames[*at..].iter().take_while(gone).count();
                }
                if !frames.get(*at).is_some_and(is_it) {
                    wrong = Some(format!("frame {at} of {key:?} arrived, and is not what was committed"));
                }
                *at += 1;
            }
            self.looked = (west.frames.len(), east.frames.len());
        }
        if let Some(wrong) = wrong {
            self.complain(wrong);
        }
    }

    /// The frames of these accounts that west committed and east has not, of those that `which` names. Of a copy that nobody can read, or that is
    /// not there yet, nothing is said.
    pub(super) fn missing(&self, accounts: &[AccountId], which: impl Fn(&Seen) -> bool) -> usize {
        let Some(there) = self.east.open() else { return 0 };
        let (west, east) = (lock(&self.west.held), lock(&self.east.held));
        let mut missing = 0;
        for &account in accounts {
            if there.account(account).is_none_or(|copy| copy.role != Role::Secondary) {
                continue;
            }
            let its = (account, PartitionId(0))..=(account, PartitionId(u128::MAX));
            for (key, frames) in self.expected.range(its) {
                let arrived = self.arrived.get(key).copied().unwrap_or_default();
                let gone = |seen: &Seen| east.restarted.contains(key) && seen.lsn < self.trimmed;
                let skipped = if self.put_back { 0 } else { arrived };
                let lacking = frames.iter().skip(skipped).map(|&at| &west.frames[at]);
                let lacking = lacking.filter(|seen| !self.put_back || !east.holds(seen));
                missing += lacking.filter(|seen| which(seen) && !gone(seen)).count();
            }
        }
        missing
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
