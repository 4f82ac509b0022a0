//! One opening of the region in a schedule: its recovery, its clients and operators, and its end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::bugs::{InStage, enter_stage};
use super::driver::SimDriver;
use super::fault::Condition;
use super::harness::Run;
use super::host::Course;
use super::oracle::{Answer, Oracle, Seen, Sent};
use super::{Stage, World};
use crate::error::{Error, ErrorKind, Result};

use crate::format::Seal;
use crate::health::DiskState;
use crate::io::Driver;
use crate::log::disk::{Disk, Slot};
use crate::log::{Core, Log, Mode, Phase};
use crate::shared::{AccountChange, Commit, Control, PutAccount, Request, Shared, lock};
use crate::sync::intake::{AHEAD, Intake};
use crate::sync::ticket::{Resolver, Ticket, ticket};
use crate::transaction::{Committed, Receipt, StateMachine, Transaction};
use crate::types::{AccountId, Ack, ClientId, Lsn, PartitionId, SegmentId};

/// A sealed segment, its seal, and the slots of its complete copies with their disks.
pub(super) type SealedCopies = (SegmentId, Seal, Vec<(usize, Slot)>);

/// Virtual time after which an opening, a close or an answer will never come.
const PATIENCE: u64 = 120_000_000_000;

/// How a life went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Opened,
    NotOpened,
}

/// Hands everything applied to the oracle.
struct Machine {
    oracle: Arc<std::sync::Mutex<Oracle>>,
    resume: Lsn,
}

impl StateMachine for Machine {
    fn resume_from(&self) -> Lsn {
        self.resume
    }

    fn apply(&mut self, transaction: &Committed<'_>) {
        lock(&self.oracle).applied(&Seen {
            lsn: transaction.lsn(),
            account: transaction.account(),
            partition: transaction.partition(),
            first_sequence: transaction.first_sequence(),
            client: transaction.client(),
            records: transaction.records().map(|(_, record)| record).collect(),
            bytes: transaction.bytes(),
        });
    }
}

/// A commit that is not answered yet.
struct Waiting {
    attempt: usize,
    sent: usize,
    /// It asked for all copies.
    all: bool,
    ticket: Ticket<Result<Receipt>>,
}

pub(super) struct Life<'a> {
    run: &'a mut Run,
    core: Core,
    shared: Arc<Shared>,
    world: World,
    last: bool,
    waiting: Vec<Waiting>,
    account: Option<Ticket<Result<AccountId>>>,
    others: Vec<Ticket<Result<()>>>,
    drained: Option<String>,
    /// How often it may still be stopped: a process that is stopped again and again gives no disk up.
    stops: u32,
    /// Whether all disks but the victim, and the region, served after the last step.
    in_order: bool,
    /// How much had been changed on disks, and failed to be, when it began.
    changes: (u64, u64),
    /// Which disks counted after the last step.
    counted: Vec<bool>,
    opened: bool,
}

/// Why a life stops working.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The power went, or the oracle complains.
    Cut,
    /// The region closed in order.
    Closed,
}

impl<'a> Life<'a> {
    pub(super) fn start(run: &'a mut Run, mode: Mode, last: bool) -> Life<'a> {
        let driver = run.world.driver();
        let resume = run.draw_resume();
        run.oracle().begin_life(resume);
        let options = run.options.clone();
        let intake = Intake::new(options.queue_transactions, AHEAD, options.queue_bytes as u64, driver.doorbell());
        let shared = Arc::new(Shared::new(options, intake, driver.environment(), driver.reader()));
        let machine = Machine { oracle: Arc::clone(&run.oracle), resume };
        let core = Core::start(mode, Box::<SimDriver>::new(driver), Box::new(machine), Arc::clone(&shared));
        let world = run.world.clone();
        world.note(|| format!("a life begins: {mode:?}, resuming from {resume}"));
        let (waiting, others, counted) = (Vec::new(), Vec::new(), Vec::new());
        let (changes, failed, _) = world.changes();
        Life {
            run,
            core,
            shared,
            world,
            last,
            waiting,
            account: None,
            others,
            drained: None,
            stops: 4,
            in_order: false,
            changes: (changes, failed),
            counted,
            opened: false,
        }
    }

    /// Runs it to its end; `stage` lasts while the region opens.
    pub(super) fn run(mut self, stage: InStage) -> End {
        let opened = self.open();
        self.opened = opened;
        if opened {
            drop(stage);
            self.work_and_end();
        }
        self.unsettle();
        let Life { core, .. } = self;
        drop(core);
        if opened { End::Opened } else { End::NotOpened }
    }

    pub(super) fn complain(&mut self, what: String) {
        self.world.note(|| format!("VIOLATION {what}"));
        self.run.oracle().complain(what);
    }

    pub(super) fn victim(&self) -> usize {
        self.run.mischief.victim()
    }

    pub(super) fn failed(&self) -> bool {
        self.run.failed()
    }

    pub(super) fn now(&self) -> u64 {
        self.world.now()
    }

    pub(super) fn world(&self) -> &World {
        &self.world
    }

    pub(super) fn log(&self) -> &Log {
        self.core.log()
    }

    pub(super) fn disk_path(&self, disk: usize) -> PathBuf {
        self.run.options.disks[disk].path.clone()
    }

    /// The sealed segments with their complete copies, as the log knows them.
    pub(super) fn sealed_copies(&self) -> Vec<SealedCopies> {
        let catalog = self.core.log().catalog.borrow();
        let sealed = catalog.iter().filter_map(|(id, segment)| {
            let copies = segment.complete().map(|copy| (copy.disk.0, copy.slot)).collect();
            Some((id, segment.seal.clone()?, copies))
        });
        sealed.collect()
    }

    fn chance(&mut self, one_in: u32) -> bool {
        one_in > 0 && self.run.rng.u32(..one_in) == 0
    }

    fn open(&mut self) -> bool {
        let patience = self.awake() + PATIENCE;
        loop {
            let phase = self.turn(Duration::from_millis(1));
            self.run.count();
            match phase {
                Phase::Opening if self.run.failed() || !self.world.running() => return false,
                Phase::Opening if self.awake() > patience => {
                    self.complain("the region opens for ever".to_owned());
                    return false;
                }
                Phase::Opening => {}
                Phase::Running | Phase::Closed => {
                    self.world.note(|| "opened".to_owned());
                    self.run.oracle().opened();
                    return !self.run.failed() && !self.run.oracle().is_unclear();
                }
                Phase::Failed(error) => {
                    self.refused_to_open(&error);
                    return false;
                }
            }
        }
    }

    /// One bad disk must not keep a region from opening; two in each other's places may.
    fn refused_to_open(&mut self, error: &Error) {
        self.world.note(|| format!("did not open: {:?}: {error}", error.kind()));
        let full = error.kind() == ErrorKind::NoSpace && self.run.options.max_segments.take().is_some();
        self.check_unchanged(error);
        let lacking = self.run.host.met || self.run.mischief.is_lacking();
        let excused = !self.world.running() || self.run.tentative || self.run.beyond || lacking || full;
        if !excused && !self.run.mischief.undo_swap() {
            self.complain(format!("the region does not open with one bad disk: {:?}: {error}", error.kind()));
        }
    }

    fn work_and_end(&mut self) {
        if self.run.beyond {
            return self.world.crash();
        }
        if self.last {
            (self.run.habits.fault, self.run.habits.suspend) = (0, 0);
            return self.make_whole();
        }
        if self.chance(2) {
            self.run.mischief.remember();
        }
        if self.work() == Some(Stop::Cut) || self.run.failed() {
            return;
        }
        let only_power = self.run.host.course == (Course::Many { fresh: false });
        match self.run.rng.u8(..4) {
            _ if only_power => self.commit_and_crash(),
            0 if self.chance(16) => self.close_late(),
            0 => self.close(),
            2 if self.run.habits.dense => self.close(),
            1 => {
                self.settle();
                self.compare_copies(true);
                self.world.crash();
            }
            _ => {
                self.last_words();
                self.world.crash();
            }
        }
        self.run.mischief.others_late(false);
    }

    /// Each life leaves something behind.
    fn commit_and_crash(&mut self) {
        self.step_until("an account", |life| {
            life.name_account();
            !life.run.accounts.is_empty()
        });
        self.send_new();
        self.settle();
        self.world.crash();
    }

    /// Commits a little more that two disks alone hold when the power goes.
    fn last_words(&mut self) {
        if !self.run.mischief.others_late(true) {
            return;
        }
        let (before, patience) = (self.run.oracle().len(), self.now() + 5_000_000);
        (0..4).for_each(|_| self.send_new());
        while self.run.oracle().len() == before && self.now() < patience {
            if self.step(Duration::from_micros(200)).is_some() {
                return;
            }
        }
    }

    /// Lets clients and operators loose on it.
    fn work(&mut self) -> Option<Stop> {
        for _ in 0..self.run.rng.u32(1..=self.run.habits.steps) {
            self.act();
            let wait = if self.chance(8) { 20_000 } else { self.run.rng.u64(..300) };
            if let Some(stop) = self.step(Duration::from_micros(wait)) {
                return Some(stop);
            }
        }
        None
    }

    /// The time, but for that in which the process stood still.
    fn awake(&self) -> u64 {
        self.world.now() - self.run.suspended
    }

    /// An opening that was refused has changed nothing, unless a change that failed is why, or what began after it had decided.
    fn check_unchanged(&mut self, error: &Error) {
        let (changes, failed, last) = self.world.changes();
        let touched = changes > self.changes.0 && failed == self.changes.1 && self.world.running();
        if touched && self.run.host.on && !self.run.host.began && !self.run.tentative {
            self.complain(format!("an opening that was refused changed a disk, at last by {last}: {error}"));
        }
    }

    /// What the host refuses to all is no fault of a disk.
    fn check_given_up(&mut self) {
        let before = std::mem::take(&mut self.counted);
        if !self.run.host.on || !self.world.running() {
            return;
        }
        let victim = self.victim();
        let (counted, lost) = {
            let disks = self.core.log().disks.borrow();
            let counts = |disk: &Disk| matches!(disk.state, DiskState::Healthy | DiskState::Rebuilding);
            let counted: Vec<bool> = disks.iter().map(counts).collect();
            let lost = (0..disks.len()).find(|&at| {
                let failed = before.get(at) == Some(&true) && disks[at].state == DiskState::Failed;
                at != victim && failed
            });
            (counted, lost.map(|at| (at, disks[at].reason.clone())))
        };
        self.counted = counted;
        // A disk that hung before is not given up for what is refused now.
        let lost = lost.filter(|(_, reason)| !reason.contains("timed out"));
        if let (Some((disk, reason)), Some(what)) = (lost, self.run.host.refuses()) {
            self.complain(format!("disk {disk} was given up for what the host refuses ({what:?}): {reason}"));
        }
    }

    /// One step of the log thread, which now and then stood still before.
    fn turn(&mut self, wait: Duration) -> Phase {
        if self.stops > 0 && self.chance(self.run.habits.suspend) {
            self.stops -= 1;
            let rng = &mut self.run.rng;
            let most = if rng.bool() { 100 } else { 20_000 };
            let time = Duration::from_millis(rng.u64(1..most));
            self.run.suspended += time.as_nanos() as u64;
            self.world.suspend(time, self.run.rng.bool());
        }
        let undisturbed = self.run.undisturbed && !self.opened;
        if !undisturbed {
            self.run.host.turn(&mut self.run.rng);
        }
        // Between two operations of what is going on.
        if self.run.habits.dense && !undisturbed && !self.last && self.world.is_quiet() {
            let often = if self.opened { 2 } else { 100 };
            if self.chance(often) {
                self.world.crash();
            }
        }
        self.core.step(wait)
    }

    fn step(&mut self, wait: Duration) -> Option<Stop> {
        let phase = self.turn(wait);
        self.run.count();
        self.collect();
        self.check_failed_flush();
        self.check_halted();
        self.check_given_up();
        match phase {
            _ if self.run.failed() || !self.world.running() => Some(Stop::Cut),
            Phase::Closed => Some(Stop::Closed),
            Phase::Failed(error) => {
                self.complain(format!("a running region failed: {error}"));
                Some(Stop::Cut)
            }
            Phase::Opening | Phase::Running => None,
        }
    }

    /// A disk that failed a flush does not count until it was returned and rebuilt (invariant 5).
    fn check_failed_flush(&mut self) {
        if self.run.flush_failed == 0 || !self.world.running() {
            return;
        }
        self.run.flush_failed -= 1;
        let victim = self.run.mischief.victim();
        let log = self.core.log();
        // Where the region has stopped itself nothing counts any more, and nobody looks at what completes.
        let healthy = log.disks.borrow()[victim].is_live() && log.halted_error().is_none();
        if self.run.flush_failed == 0 && healthy {
            self.complain(format!("disk {victim} failed a flush and still counts"));
        }
    }

    /// While all disks but the victim are in order, and the process perhaps stands still, the region must go on. One that
    /// closes gives up its disks while other tasks may still ask for them.
    fn check_halted(&mut self) {
        let log = self.core.log();
        let serves = log.closing.borrow().is_none() && !log.closed.get();
        let in_order = |disk: &Disk| disk.index.0 == self.victim() || disk.serves_in_need();
        let in_order = log.disks.borrow().iter().all(in_order);
        let expected = in_order && self.in_order && serves && self.world.running();
        let halted = log.halted_error();
        self.in_order = in_order && halted.is_none();
        if let Some(error) = halted.filter(|_| expected) {
            self.complain(format!("with one bad disk, {error}"));
        }
    }

    /// Steps until `done` says so; complains when that takes for ever.
    pub(super) fn step_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) -> Option<Stop> {
        let patience = self.awake() + PATIENCE;
        while !done(self) {
            if let Some(stop) = self.step(Duration::from_millis(5)) {
                return Some(stop);
            }
            if self.awake() > patience {
                self.complain(format!("{what} takes for ever"));
                return Some(Stop::Cut);
            }
        }
        None
    }
}

/// Clients and operators.
impl Life<'_> {
    fn act(&mut self) {
        let habits = self.run.habits.clone();
        self.name_account();
        for _ in 0..self.run.rng.u32(..=habits.burst) {
            if self.chance(habits.retry) { self.send_again() } else { self.send_new() }
        }
        if self.chance(habits.trim) {
            self.trim();
        }
        if self.chance(habits.drain) {
            self.drain();
        }
        if self.chance(habits.scrub) {
            self.control(|done| Control::Scrub { done });
        }
        if self.chance(habits.fault) {
            self.run.mischief.at_work(&mut self.run.rng);
        }
        if self.chance(habits.fault * 2) {
            self.give_back();
        }
        if habits.dense && self.chance(3) {
            self.come_or_go();
        }
        if self.run.mischief.is_in_place() && self.run.host.remembers(&mut self.run.rng) {
            self.run.remember_all();
        }
        if self.chance(habits.clock) {
            let by = self.run.rng.i64(-10_000_000_000..10_000_000_000);
            self.world.jump_wall(by);
        }
    }

    /// There is at least one account to write to; now and then another one.
    pub(super) fn name_account(&mut self) {
        if let Some(ticket) = self.account.take_if(|ticket| ticket.is_done())
            && let Ok(Ok(account)) = ticket.wait()
        {
            self.run.accounts.push(account);
        }
        let often = self.run.habits.account;
        if self.account.is_none() && (self.run.accounts.is_empty() || self.chance(often)) {
            let (done, ticket) = ticket();
            self.run.names += 1;
            let name = format!("account-{}", self.run.names);
            let change = AccountChange::Create(Ack::Quorum);
            let put = PutAccount { name, change, done, at: self.world.now() };
            if self.shared.intake.try_push(Request::PutAccount(put), 0).is_ok() {
                self.account = Some(ticket);
            }
        }
    }

    pub(super) fn send_new(&mut self) {
        let habits = self.run.habits.clone();
        let Some(mut account) = self.run.rng.choice(&self.run.accounts).copied() else { return };
        let mut partition = PartitionId(u128::from(self.run.rng.u8(..4)));
        let rng = &mut self.run.rng;
        let (mut client, mut client_sequence) = (ClientId(u128::from(rng.u8(..4))), 0);
        if client != ClientId::NONE {
            let last = self.run.clients.entry((account, client)).or_default();
            *last += 1;
            client_sequence = *last;
        }
        // A careless client uses a sequence again, for another partition.
        if let Some(other) = rng.choice(&self.run.unsettled).copied().filter(|_| rng.u8(..16) == 0)
            && let Some(other) = lock(&self.run.oracle).used_once(other)
        {
            (account, client, client_sequence) = (other.account, other.client, other.client_sequence);
            partition = PartitionId((other.partition.0 + 1) % 4);
        }
        let rng = &mut self.run.rng;
        let large = habits.large > 0 && rng.u32(..habits.large) == 0;
        let count = rng.usize(1..if large { 5 } else { 3 });
        let len = if large { rng.usize(500..2500) } else { rng.usize(12..200) };
        let ack = (habits.all > 0 && rng.u32(..habits.all) == 0).then_some(Ack::All);
        let number = self.run.oracle().next_number();
        let records = (0..count).map(|at| Sent::record(number, at, count, len)).collect();
        let sent = Sent { account, partition, client, client_sequence, ack, records };
        self.run.oracle().add(sent);
        self.send(number, false);
    }

    /// A client that does not know what came of a transaction, or forgot, sends it again; now and then it wants more copies than before.
    fn send_again(&mut self) {
        if let Some(sent) = self.run.rng.choice(&self.run.unsettled).copied() {
            let more = self.run.habits.all > 0 && self.run.rng.bool();
            self.send(sent, more);
        }
    }

    /// With `more` it asks for all copies, whatever it asked for at first.
    fn send(&mut self, sent: usize, more: bool) {
        let mut transaction = {
            let oracle = self.run.oracle();
            let Sent { account, partition, client, client_sequence, ack, records } = oracle.transaction(sent).clone();
            let transaction = Transaction::new(account, partition).client(client, client_sequence);
            let transaction = records.into_iter().fold(transaction, Transaction::record);
            let ack = if more { Some(Ack::All) } else { ack };
            if let Some(ack) = ack { transaction.ack(ack) } else { transaction }
        };
        transaction.records.shrink_to_fit();
        let (done, ticket) = ticket();
        let bytes = transaction.encoded_len().expect("a small transaction");
        let all = transaction.ack == Some(Ack::All);
        let commit = Commit { transaction, done, at: self.world.now(), bytes };
        if self.shared.intake.try_push(Request::Commit(commit), bytes as u64).is_ok() {
            let attempt = self.run.oracle().send(sent);
            self.waiting.push(Waiting { attempt, sent, all, ticket });
        }
    }

    /// Takes in the answers that are there.
    fn collect(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            if !waiting.ticket.is_done() {
                self.waiting.push(waiting);
                continue;
            }
            let Waiting { attempt, sent, all, ticket } = waiting;
            let answer = match ticket.wait() {
                Ok(Ok(Receipt { lsn, first_sequence, records, repeated })) => {
                    Answer::Acknowledged { lsn, first_sequence, records, repeated }
                }
                Ok(Err(error)) => meaning(error.kind()),
                Err(_) => Answer::Unknown,
            };
            self.world.note(|| format!("transaction {sent}: {answer:?}"));
            self.run.oracle().answered(attempt, answer);
            if let Answer::Acknowledged { lsn, .. } = answer
                && all
            {
                self.check_all_copies(sent, lsn);
            }
            self.run.note_fate(sent, answer);
        }
    }

    /// Clients whose answers will not come any more will ask again.
    fn unsettle(&mut self) {
        self.collect();
        for Waiting { sent, .. } in std::mem::take(&mut self.waiting) {
            self.run.note_fate(sent, Answer::Unknown);
        }
    }

    pub(super) fn control<T>(
        &mut self,
        make: impl FnOnce(Resolver<Result<T>>) -> Control,
    ) -> Option<Ticket<Result<T>>> {
        let (done, ticket) = ticket();
        self.shared.intake.try_push(Request::Control(make(done)), 0).ok().map(|()| ticket)
    }

    /// Lets go of a part of the log, perhaps with a pin in the way.
    fn trim(&mut self) {
        let known = self.run.oracle().len();
        if known == 0 {
            return;
        }
        let at = self.run.rng.usize(..known);
        let pin = self.chance(3).then(|| self.run.rng.usize(..=at));
        let (to, pin) = {
            let oracle = self.run.oracle();
            (oracle.position(at), pin.and_then(|pin| oracle.position(pin)))
        };
        let Some(to) = to else { return };
        if let Some(pin) = pin {
            lock(&self.shared.pins).add(pin);
        }
        let lowest = lock(&self.shared.pins).lowest();
        self.world.note(|| format!("trim to {to}, pinned at {lowest:?}"));
        self.run.oracle().may_trim(lowest.map_or(to, |pin| pin.min(to)));
        self.control(|done| Control::Trim { to, done });
    }

    /// Takes an upgrade domain out for maintenance, or back in.
    fn drain(&mut self) {
        let (upgrade_domain, on) = match self.drained.take() {
            Some(domain) => (domain, false),
            None => {
                let at = self.run.rng.usize(..self.run.options.disks.len());
                (self.run.options.disks[at].upgrade_domain.clone(), true)
            }
        };
        if on {
            self.drained = Some(upgrade_domain.clone());
        }
        self.world.note(|| format!("drain {upgrade_domain} {on}"));
        let ticket = self.control(|done| Control::Drain { upgrade_domain, on, done });
        self.others.extend(ticket);
    }

    /// The victim goes away, or comes back and is taken back while as much else goes on as can be.
    fn come_or_go(&mut self) {
        let victim = self.victim();
        let state = self.core.log().disks.borrow()[victim].state;
        match state {
            DiskState::Healthy => return self.run.mischief.goes_away(),
            // While its copies are made again.
            DiskState::Rebuilding => return self.run.mischief.shortens(&mut self.run.rng),
            _ => {}
        }
        self.run.mischief.comes_back(&mut self.run.rng);
        self.control(|done| Control::Scrub { done });
        // Segments fill, are sealed and prepared meanwhile.
        let large = std::mem::replace(&mut self.run.habits.large, 1);
        (0..self.run.rng.u32(0..6)).for_each(|_| self.send_new());
        self.run.habits.large = large;
        self.give_back();
        if self.chance(2) {
            self.trim();
        }
        if self.chance(2) {
            self.drain();
        }
    }

    /// The operator gives the victim back to the region.
    fn give_back(&mut self) {
        let (disk, replace) = (self.run.mischief.victim(), self.run.mischief.blank);
        self.world.note(|| format!("give back disk {disk}, as a new one: {replace}"));
        let ticket = self.control(|done| Control::Return { disk, replace, done });
        self.others.extend(ticket);
    }

    /// Waits until every client is answered.
    pub(super) fn settle(&mut self) -> Option<Stop> {
        self.step_until("an answer", |life| life.waiting.is_empty())
    }

    pub(super) fn close(&mut self) {
        if self.run.habits.dense && !self.last {
            self.come_or_go();
            let wait = self.run.rng.u64(..300);
            self.step(Duration::from_micros(wait));
        }
        let stage = enter_stage(Stage::Close);
        if self.control(|done| Control::Close { done }).is_none() {
            return;
        }
        self.step_until("closing", |_| false);
        drop(stage);
    }

    /// Closes while more is queued than can be done in time: the process stands still for longer than a closing waits, and perhaps the
    /// disks that the region needs answer no more until it is closed. What was not done is not acknowledged, and nothing is done behind it.
    fn close_late(&mut self) {
        // Large ones, also behind the request to close: more is queued than the open block takes.
        let large = std::mem::replace(&mut self.run.habits.large, 1);
        (0..self.run.rng.u32(1..8)).for_each(|_| self.send_new());
        let stage = enter_stage(Stage::Close);
        let closing = self.control(|done| Control::Close { done });
        (0..self.run.rng.u32(4..16)).for_each(|_| self.send_new());
        self.run.habits.large = large;
        if closing.is_none() {
            return;
        }
        let victim = self.victim();
        let others: Vec<PathBuf> = (0..3).filter(|at| *at != victim).map(|at| self.disk_path(at)).collect();
        // Of more than three disks those that still answer could go on, and a set change is no fault of the ones that hang.
        let hang = self.run.options.disks.len() == 3 && self.run.rng.bool();
        // Its ten seconds begin a step after the log thread comes to the request, which is behind what was queued before.
        let mut left = 200;
        while left > 0 && self.log().closing.borrow().is_none() {
            left -= 1;
            let wait = self.run.rng.u64(..50);
            if self.step(Duration::from_micros(wait)).is_some() {
                return;
            }
        }
        if self.step(Duration::ZERO).is_some() {
            return;
        }
        if hang {
            others.iter().for_each(|path| self.world.set_condition(path, Condition::Stalled));
        }
        // Also where disks hang: to look every millisecond whether they still do would cost more than all else.
        let time = Duration::from_secs(self.run.rng.u64(10..12));
        self.run.suspended += time.as_nanos() as u64;
        self.world.suspend(time, self.run.rng.bool());
        self.step_until("closing late", |_| false);
        if hang {
            others.iter().for_each(|path| self.world.set_condition(path, Condition::Healthy));
        }
        drop(stage);
    }
}

/// What an error says about whether the transaction may be in the log.
fn meaning(kind: ErrorKind) -> Answer {
    match kind {
        ErrorKind::Degraded => Answer::Undecided,
        ErrorKind::Indeterminate | ErrorKind::Closed => Answer::Unknown,
        _ => Answer::Refused,
    }
}
