//! The simulated link: sessions of the real shipper and receiver over a network that delays, loses, doubles, reorders and cuts.

use std::collections::{BTreeSet, VecDeque};

use super::pair::{Importing, OnTheWay, Pair, Process};
use crate::account::Account;
use crate::error::{ErrorKind, Result};
use crate::format::DATA_START;
use crate::gate::AccountGate;
use crate::geo::{
    Acknowledgement, Anchor, Arrived, Batch, Bootstrap, Carried, Copy, Delivered, Holding, Lane, Need, Progress,
    Receiver, Shipper, ShipperOptions, Standing, Waiting, need,
};
use crate::log::geo::{Carry, Geo};
use crate::read::Subscription;
use crate::region::check_arrived;
use crate::shared::{Request, lock};
use crate::sync::ticket::Ticket;
use crate::types::{AccountId, LogId, Lsn, Role, SegmentId};

/// How the link of one lane is, and the session that is up.
pub(super) struct Link {
    number: u32,
    /// The accounts that it carries; no other lane does.
    pub(super) accounts: BTreeSet<AccountId>,
    options: ShipperOptions,
    /// One way, in nanoseconds.
    pub(super) delay: u64,
    /// One message in so many is lost, doubled or late; 0 for none.
    lossy: u32,
    /// One batch in so many arrives with a flipped bit; 0 for none.
    lies: u32,
    /// Between two marks.
    pub(super) mark_every: u64,
    session: Option<Session>,
    /// The question where to begin.
    asked: Option<Ticket<Result<Carried>>>,
    /// A bootstrap in the making.
    comparing: Option<Comparing>,
    /// Imports of sessions that ended: the next one begins when they are through.
    left: VecDeque<Importing>,
    not_before: u64,
    /// Until then nothing gets through: this lane lags behind the others.
    held_until: u64,
    marked: u64,
    pub(super) sessions: u64,
    /// Holds commits back while contracts are broken; of west's process.
    gate: Option<AccountGate>,
    /// Last sync time, as contracts are held against it: nothing in a bootstrap.
    pub(super) synced: u64,
    /// The latest of all, and when it was heard of.
    heard: (u64, u64),
    /// Last sync time, as west knows it.
    pub(super) claimed: u64,
    pub(super) claims: u64,
    /// Where east said last that it stands.
    position: Lsn,
    pin: Option<(Lsn, u64)>,
    /// What the secondary lacks may have been trimmed.
    pub(super) gave_up: bool,
    /// Bootstraps begun.
    pub(super) bootstraps: u64,
    /// Copies have begun anew, and no last sync time was claimed since.
    restarting: bool,
    /// It carries other accounts than it did, and no last sync time was claimed since.
    pub(super) changed: bool,
    /// What east said last is of another history.
    void: Option<(Lsn, Anchor)>,
    pub(super) other_histories: u64,
    /// East was put back, and no session has begun since.
    pub(super) unaware: bool,
}

/// What both sides hold of the accounts whose copies are not whole, asked for.
struct Comparing {
    standing: Standing,
    time: u64,
    known: Lsn,
    /// None of them is known not to be whole.
    copies: Vec<(Account, Need, Holdings, Holdings)>,
    dropped: Vec<AccountId>,
}

type Holdings = Ticket<Result<Vec<Holding>>>;

struct Session {
    shipper: Shipper,
    receiver: Receiver,
    log: Subscription,
    to_east: OnTheWay<Delivered>,
    to_west: OnTheWay<Acknowledgement>,
    /// Taken in by the receiver, waiting for room in east's queue.
    waiting: VecDeque<Box<Arrived>>,
    importing: VecDeque<Importing>,
    /// The link has lied in this session: what was refused may be what it made of a batch.
    lied: bool,
}

impl Link {
    pub(super) fn new(number: u32, rng: &mut fastrand::Rng) -> Link {
        let batch_bytes = [1_000, 10_000, 100_000][rng.usize(..3)];
        let window = [2_000, 40_000, 1 << 30][rng.usize(..3)];
        let options = ShipperOptions { batch_bytes, batch_time: rng.u64(..2_000_000), window };
        Link {
            number,
            accounts: BTreeSet::new(),
            options,
            delay: rng.u64(1_000..20_000_000),
            lossy: [0, 0, 50][rng.usize(..3)],
            lies: [0, 0, 0, 60][rng.usize(..4)],
            mark_every: rng.u64(200_000..20_000_000),
            session: None,
            asked: None,
            comparing: None,
            left: VecDeque::new(),
            not_before: 0,
            held_until: 0,
            marked: 0,
            sessions: 0,
            gate: None,
            synced: 0,
            heard: (0, 0),
            claimed: 0,
            claims: 0,
            position: Lsn::ZERO,
            pin: None,
            gave_up: false,
            bootstraps: 0,
            restarting: false,
            changed: false,
            void: None,
            other_histories: 0,
            unaware: false,
        }
    }

    /// A backup of a region was put back: of west with what the link knew, of east without its knowing.
    pub(super) fn forget(&mut self, west: bool) {
        self.cut();
        (self.claimed, self.position) = (0, Lsn::ZERO);
        if west {
            (self.synced, self.heard, self.void, self.unaware) = (0, (0, 0), None, false);
        } else {
            self.unaware = true;
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.session.is_some()
    }

    pub(super) fn lane(&self, log: LogId) -> Lane {
        Lane { log, number: self.number }
    }

    /// It carries this account, too, or no more: another link with the lane's number, as an operator makes it.
    pub(super) fn change(&mut self, account: AccountId, carries: bool) {
        if carries {
            self.accounts.insert(account)
        } else {
            self.accounts.remove(&account)
        };
        self.cut();
        (self.gate, self.changed) = (None, true);
    }

    /// Nothing gets through for a while.
    pub(super) fn hold(&mut self, until: u64) {
        self.held_until = until;
    }

    /// Ends the session, whatever was on its way.
    pub(super) fn cut(&mut self) {
        (self.asked, self.comparing) = (None, None);
        if let Some(session) = self.session.take() {
            self.left.extend(session.importing);
        }
    }
}

impl Pair {
    /// Lets the links do what is due.
    pub(super) fn pump(&mut self) {
        for lane in 0..self.links.len() {
            self.pump_lane(lane);
        }
    }

    fn pump_lane(&mut self, lane: usize) {
        let link = &mut self.links[lane];
        if self.west.open().is_none() {
            link.cut();
            (link.pin, link.gate) = (None, None);
            return;
        }
        if link.accounts.is_empty() {
            return;
        }
        self.keep_contracts(lane);
        let link = &mut self.links[lane];
        if self.east.open().is_none() {
            return link.cut();
        }
        if self.calm {
            (link.lossy, link.lies, link.held_until) = (0, 0, 0);
        }
        self.mark(lane);
        if self.is_on_again(lane) {
            self.links[lane].cut();
        }
        let link = &mut self.links[lane];
        if link.held_until > self.world.now() {
            return;
        }
        if link.session.is_none() {
            self.begin(lane);
        }
        let Some(mut session) = self.links[lane].session.take() else { return };
        let goes_on = self.ship(lane, &mut session)
            && self.receive(&mut session)
            && self.answer(lane, &mut session)
            && self.acknowledge(lane, &mut session);
        self.links[lane].session = Some(session);
        if !goes_on {
            self.links[lane].cut();
            self.links[lane].not_before = self.world.now() + self.rng.u64(..5_000_000);
        }
    }

    /// As a link does every ten milliseconds, also while it has no session.
    fn keep_contracts(&mut self, lane: usize) {
        let Some(west) = self.west.open() else { return };
        let (clock, link) = (self.world.now(), &mut self.links[lane]);
        if link.gate.is_none() {
            (link.synced, link.heard) = (0, (0, 0));
        }
        if link.synced > link.heard.0 {
            link.heard = (link.synced, clock);
        }
        let gate = link.gate.get_or_insert_with(|| AccountGate::new(&west.shared, link.accounts.iter().copied()));
        // A clock may have been set back: last sync time is as old as it has been known, at least.
        let known = link.heard.0.saturating_add(clock - link.heard.1);
        let now = west.shared.environment.wall().max(known);
        let broken = gate.keep(now, link.synced);
        for &account in &self.links[lane].accounts {
            let Some(contract) = self.contract(account).filter(|_| !broken.contains(&account)) else { continue };
            let least = now.saturating_sub(contract.most.as_nanos() as u64);
            let missing = self.missing(&[account], |seen| seen.time <= least);
            if missing > 0 && !self.links[lane].unaware {
                let what =
                    format!("{contract:?} of {account:?} is said to be kept, and {missing} older frames are missing");
                return self.complain(what);
            }
        }
    }

    fn mark(&mut self, lane: usize) {
        let (now, link) = (self.world.now(), &mut self.links[lane]);
        let Some(west) = self.west.open().filter(|_| now >= link.marked + link.mark_every) else { return };
        link.marked = now;
        let accounts = link.accounts.iter().copied().collect();
        let lane = link.lane(west.log_id());
        let acknowledged = Some(Progress { position: link.position, time: link.claimed, ..Progress::none(lane) });
        drop(west.ask(|done| Request::Geo(Geo::Mark { accounts, acknowledged, done })));
    }

    /// Asks east where to begin, and begins.
    fn begin(&mut self, lane: usize) {
        let (now, link) = (self.world.now(), &mut self.links[lane]);
        link.left.retain(|importing| !importing.is_done());
        let (Some(west), Some(east)) = (self.west.open(), self.east.open()) else { return };
        if now < link.not_before || !link.left.is_empty() {
            return;
        }
        if link.asked.is_none() && link.comparing.is_none() {
            let (lane_there, accounts, void) = (link.lane(west.log_id()), link.accounts.clone(), link.void);
            link.asked = east.ask(|done| Request::Geo(Geo::Carry(Carry { lane: lane_there, accounts, void, done })));
            let pin = lock(&west.shared.pins).add(Lsn::ZERO);
            self.set_pin(lane, pin);
            self.links[lane].gave_up = false;
            return;
        }
        if let Some(comparing) = link.comparing.take() {
            let done = comparing.copies.iter().all(|(_, _, ours, theirs)| ours.is_done() && theirs.is_done());
            if done {
                self.bootstrap(lane, comparing);
            } else {
                link.comparing = Some(comparing);
            }
            return;
        }
        let Some(asked) = link.asked.take_if(|asked| asked.is_done()) else { return };
        let Ok(Ok(Carried { progress: Progress { position, anchor, time, .. }, loose })) = asked.wait() else { return };
        let Ok(same) = west.shared.is_history(position, anchor) else { return };
        if !same {
            return self.compare_anew(lane, position, anchor);
        }
        link.void = None;
        let back = position < link.position || (time < link.claimed && !link.restarting);
        if back {
            let at = link.position;
            return self.complain(format!("east was at {at} on lane {lane} and is at {position}, {time}"));
        }
        self.find_needs(lane, Standing { position, anchor, loose, ..Standing::default() }, time);
    }

    /// East is of another history: nothing is claimed of it, and the next session says so.
    fn compare_anew(&mut self, lane: usize, position: Lsn, anchor: Anchor) {
        self.world.note(|| format!("lane {lane}: {position} at the secondary is of another history"));
        if !self.put_back {
            self.complain(format!("{position} of lane {lane} is taken for one of another history"));
        }
        let link = &mut self.links[lane];
        (link.void, link.synced, link.restarting, link.unaware) = (Some((position, anchor)), 0, true, false);
        link.other_histories += 1;
        if let Some(gate) = &link.gate {
            gate.lacking(link.accounts.iter().map(|id| (*id, Lsn::ZERO)).collect());
        }
    }

    /// Begins a session, or asks what copies that are not whole hold.
    fn find_needs(&mut self, lane: usize, standing: Standing, time: u64) {
        let (Some(west), Some(east)) = (self.west.open(), self.east.open()) else { return };
        let standing = self.standing(lane, standing);
        let (known, first) = (Lsn(west.shared.committed.get()), west.shared.first_retained());
        let (mut copies, mut dropped) = (Vec::new(), Vec::new());
        for account in self.links[lane].accounts.iter().filter_map(|id| west.account(*id)) {
            let id = account.id;
            let holdings = |side: &Process| {
                side.ask(|done| Request::Geo(Geo::Holdings { account: id, after: None, most: usize::MAX, done }))
            };
            match need(&account, &standing, first, false) {
                Need::Nothing => {}
                Need::Drop => dropped.push(id),
                need @ (Need::Account | Need::Comparison | Need::Check) => {
                    let (Some(ours), Some(theirs)) = (holdings(west), holdings(east)) else { return };
                    copies.push((account, need, ours, theirs));
                }
            }
        }
        self.links[lane].comparing = Some(Comparing { standing, time, known, copies, dropped });
    }

    /// What east says of itself.
    fn standing(&self, lane: usize, mut standing: Standing) -> Standing {
        for &id in &self.links[lane].accounts {
            match self.east.open().and_then(|east| east.account(id)).map(|known| known.role) {
                Some(Role::Bootstrap) => standing.bootstrap.insert(id),
                Some(Role::Dropped) => standing.dropped.insert(id),
                Some(_) => false,
                None => standing.unknown.insert(id),
            };
        }
        standing
    }

    /// An account was switched off and on again while this session was up.
    fn is_on_again(&self, lane: usize) -> bool {
        let (Some(west), Some(session)) = (self.west.open(), &self.links[lane].session) else { return false };
        let primary = |id: &AccountId| west.account(*id).is_some_and(|known| known.role == Role::Primary);
        self.links[lane].accounts.iter().any(|id| session.shipper.has_dropped(*id) && primary(id))
    }

    fn bootstrap(&mut self, lane: usize, comparing: Comparing) {
        let Comparing { standing, time, known, copies, dropped } = comparing;
        let Some(west) = self.west.open() else { return };
        let (until, first, live) = (Lsn(west.shared.committed.get()), west.shared.first_retained(), standing.position);
        let (mut from, mut made, mut restarting) = (live.max(first), Vec::new(), false);
        for (account, need, ours, theirs) in copies {
            let (Ok(Ok(ours)), Ok(Ok(theirs))) = (ours.wait(), theirs.wait()) else { return };
            let mut compared = None;
            if need != Need::Account {
                let Ok(comparison) = west.shared.compare(account.id, &ours, &theirs) else { return };
                if need == Need::Check && comparison.restart.is_empty() {
                    continue;
                }
                if !comparison.differ.is_empty() && !self.put_back {
                    return self.complain(format!("the copies are found to differ: {comparison:?}"));
                }
                self.world.note(|| format!("a bootstrap of {:?} from {first} on: {comparison:?}", account.id));
                from = from.min(comparison.from.max(first));
                (compared, restarting) = (Some(comparison), true);
            }
            made.push(Copy { account, compared });
        }
        let named = standing.anchor;
        let Ok(read_from) = (if from <= live { Ok(named) } else { west.shared.anchor(from) }) else { return };
        let link = &mut self.links[lane];
        let accounts = link.accounts.iter().copied();
        let mut shipper = if made.is_empty() {
            // What was trimmed is not wanted there.
            Shipper::new(link.options, accounts, from)
        } else {
            link.restarting |= restarting;
            link.bootstraps += 1;
            Shipper::bootstrap(link.options, accounts, Bootstrap { first: from, live, known, until, copies: made })
        };
        shipper.begin_at(named, read_from);
        dropped.into_iter().for_each(|id| shipper.leave_out(id, Lsn::ZERO));
        self.begin_session(lane, shipper, from, live, time);
    }

    fn begin_session(&mut self, lane: usize, mut shipper: Shipper, from: Lsn, position: Lsn, time: u64) {
        let Some(west) = self.west.open() else { return };
        let log = Subscription::new(&west.shared, from.max(Lsn::new(SegmentId(1), DATA_START)));
        let pin = lock(&west.shared.pins).add(from);
        let receiver = Receiver::new(self.links[lane].lane(west.log_id()), position);
        self.set_pin(lane, pin);
        self.world.note(|| {
            format!("a session of lane {lane} begins at {from}, the secondary at {position}, last sync time {time}")
        });
        let link = &mut self.links[lane];
        let (whole, lacking) = (!shipper.is_bootstrapping(), shipper.lacking());
        link.synced = if whole { time } else { 0 };
        if let Some(gate) = &link.gate {
            lacking.into_iter().for_each(|lacking| gate.lacking(lacking));
            gate.resume(position);
        }
        link.unaware = false;
        link.session = Some(Session {
            shipper,
            receiver,
            log,
            to_east: VecDeque::new(),
            to_west: VecDeque::new(),
            waiting: VecDeque::new(),
            importing: VecDeque::new(),
            lied: false,
        });
        link.sessions += 1;
        link.position = position;
        self.claim(lane, time);
        let missing = self.missing(&self.carried(lane), |seen| seen.lsn < position);
        if whole && missing > 0 {
            self.complain(format!("east says that it is at {position}, and lacks {missing} frames before"));
        }
    }

    fn carried(&self, lane: usize) -> Vec<AccountId> {
        self.links[lane].accounts.iter().copied().collect()
    }

    /// What the secondary lacks can be trimmed from now on. What a session needs to begin is held back until it has begun.
    pub(super) fn give_up(&mut self, lane: usize) {
        let link = &mut self.links[lane];
        let pin = link.pin.take_if(|_| link.asked.is_none() && link.comparing.is_none());
        if let (Some(pin), Some(west)) = (pin, self.west.open()) {
            lock(&west.shared.pins).remove(pin);
            link.gave_up = true;
        }
    }

    /// Nothing behind this pin is trimmed any more for this lane; what is before may be.
    fn set_pin(&mut self, lane: usize, pin: (Lsn, u64)) {
        let link = &mut self.links[lane];
        let old = link.pin.replace(pin);
        let Some(west) = self.west.open() else { return };
        let mut pins = lock(&west.shared.pins);
        match old {
            Some(old) => pins.remove(old),
            // The first of this process: its start had pinned everything, once for each lane.
            None => pins.remove((Lsn::ZERO, lane as u64 + 1)),
        }
    }

    /// Last sync time: everything up to it is there (acceptance G9).
    fn claim(&mut self, lane: usize, time: u64) {
        let link = &mut self.links[lane];
        link.claims += u64::from(time > link.claimed);
        link.claimed = link.claimed.max(time);
        link.changed &= time == 0;
        let missing = self.missing(&self.carried(lane), |seen| seen.time <= time);
        if missing > 0 {
            self.complain(format!("last sync time {time} is claimed, and {missing} frames are missing"));
        }
    }

    fn ship(&mut self, lane: usize, session: &mut Session) -> bool {
        let now = self.world.now();
        while session.shipper.wants_block() && session.shipper.waiting(now) != Waiting::Window {
            match session.log.try_next() {
                Ok(Some(block)) => session.shipper.offer(&block, now),
                Ok(None) => break,
                Err(error) if error.kind() == ErrorKind::Trimmed && !self.links[lane].gave_up => {
                    self.complain(format!("what the link needs was trimmed: {error}"));
                    return false;
                }
                // A disk that was lost in the middle of it: another session reads again.
                Err(_) => return false,
            }
            while let Some(batch) = session.shipper.poll(now) {
                let mut batch = deliver(batch);
                self.lie(lane, session, &mut batch);
                let link = &self.links[lane];
                let fate = if link.lossy > 0 { self.rng.u32(..link.lossy) } else { 9 };
                let at = now + link.delay;
                match fate {
                    0 => {}
                    1 => session.to_east.extend([(at, batch.clone()), (at, batch)]),
                    2 => session.to_east.push_front((at, batch)),
                    _ => session.to_east.push_back((at, batch)),
                }
            }
        }
        while let Some(batch) = session.shipper.poll(now) {
            session.to_east.push_back((now + self.links[lane].delay, deliver(batch)));
        }
        true
    }

    /// The link lies: the checksum of a message leaves out its body.
    fn lie(&mut self, lane: usize, session: &mut Session, batch: &mut Delivered) {
        let lies = self.links[lane].lies;
        if lies == 0 || batch.frames.is_empty() || self.rng.u32(..lies) > 0 {
            return;
        }
        session.lied = true;
        let mut frames = batch.frames.to_vec();
        let bit = self.rng.usize(..frames.len() * 8);
        frames[bit / 8] ^= 1 << (bit % 8);
        batch.frames = frames.into();
    }

    fn receive(&mut self, session: &mut Session) -> bool {
        let now = self.world.now();
        while session.to_east.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, batch)) = session.to_east.pop_front() else { break };
            match session.receiver.receive(batch) {
                Ok(arrived) => session.waiting.push_back(Box::new(arrived)),
                Err(error) => {
                    self.world.note(|| format!("the session ends: {error}"));
                    return false;
                }
            }
        }
        while let Some(arrived) = session.waiting.pop_front() {
            if let Err(error) = check_arrived(&arrived) {
                if !session.lied {
                    self.complain(format!("what was shipped is not whole: {error}"));
                }
                return false;
            }
            match self.import(arrived) {
                Ok(importing) => session.importing.push_back(importing),
                Err(arrived) => {
                    session.waiting.push_front(arrived);
                    break;
                }
            }
        }
        true
    }

    fn answer(&mut self, lane: usize, session: &mut Session) -> bool {
        while session.importing.front().is_some_and(Ticket::is_done) {
            let Some(importing) = session.importing.pop_front() else { break };
            match importing.wait() {
                Ok(Ok(imported)) => {
                    if !imported.differ.is_empty() {
                        self.complain(format!("the copies are said to differ: {imported:?}"));
                    }
                    let acknowledgement = session.receiver.imported(imported);
                    session.to_west.push_back((self.world.now() + self.links[lane].delay, acknowledgement));
                }
                Ok(Err(error)) => {
                    let poisoned = matches!(
                        error.kind(),
                        ErrorKind::Gap
                            | ErrorKind::Fenced
                            | ErrorKind::Exists
                            | ErrorKind::NotFound
                            | ErrorKind::InvalidInput
                    );
                    if poisoned && !session.lied {
                        self.complain(format!("east refuses what west sends: {error}"));
                    }
                    self.refused += u64::from(error.kind() == ErrorKind::LimitReached);
                    return false;
                }
                Err(_) => return false,
            }
        }
        true
    }

    fn acknowledge(&mut self, lane: usize, session: &mut Session) -> bool {
        let now = self.world.now();
        while session.to_west.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, acknowledgement)) = session.to_west.pop_front() else { break };
            if session.shipper.acknowledge(acknowledgement.number).is_err() {
                return false;
            }
            let (position, settled) = (session.shipper.position(), session.shipper.settled());
            let link = &mut self.links[lane];
            link.position = acknowledgement.position;
            // A batch that only says that an account is to be dropped comes before others begin anew: its time is the old one.
            if !session.shipper.is_bootstrapping() {
                link.restarting &= acknowledgement.time == 0;
                link.synced = link.synced.max(acknowledgement.time);
            }
            if let Some(gate) = &link.gate {
                session.shipper.lacking().into_iter().for_each(|lacking| gate.lacking(lacking));
                gate.arrived(position);
            }
            let missing = self.missing(&self.carried(lane), |seen| seen.lsn < settled);
            if missing > 0 {
                self.complain(format!("{settled} is acknowledged, and {missing} frames before it are not there"));
            }
            if self.links[lane].pin.is_some_and(|(at, _)| at < settled)
                && let Some(pin) = self.west.open().map(|west| lock(&west.shared.pins).add(settled))
            {
                self.set_pin(lane, pin);
            }
            self.claim(lane, acknowledgement.time);
        }
        true
    }
}

fn deliver(batch: Batch) -> Delivered {
    let Batch { number, account, restart, frames, mark, position, anchor, .. } = batch;
    let frames: Vec<u8> = frames.iter().flat_map(|slice| slice.iter().copied()).collect();
    Delivered { number, account, restart, frames: frames.into(), mark, position, anchor }
}
