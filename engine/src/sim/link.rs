//! The simulated link: sessions of the real shipper and receiver over a network that delays, loses, doubles, reorders and cuts.

use std::collections::VecDeque;

use super::pair::{Importing, OnTheWay, Pair, Process};
use crate::account::Account;
use crate::error::{ErrorKind, Result};
use crate::format::DATA_START;
use crate::geo::{
    Acknowledgement, Arrived, Batch, Bootstrap, Copy, Delivered, Holding, Lane, Need, Progress, Receiver, Shipper,
    ShipperOptions, Standing, Waiting, need,
};
use crate::log::geo::Geo;
use crate::read::Subscription;
use crate::region::check_arrived;
use crate::shared::{Request, lock};
use crate::sync::ticket::Ticket;
use crate::types::{Lsn, Role, SegmentId};

/// How the link is, and the session that is up.
pub(super) struct Link {
    options: ShipperOptions,
    /// One way, in nanoseconds.
    delay: u64,
    /// One message in so many is lost, doubled or late; 0 for none.
    lossy: u32,
    /// One batch in so many arrives with a flipped bit; 0 for none.
    lies: u32,
    /// Between two marks.
    mark_every: u64,
    session: Option<Session>,
    /// The question where to begin.
    asked: Option<Ticket<Result<Option<Progress>>>>,
    /// A bootstrap in the making.
    comparing: Option<Comparing>,
    /// Imports of sessions that ended: the next one begins when they are through.
    left: VecDeque<Importing>,
    not_before: u64,
    marked: u64,
    pub(super) sessions: u64,
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
}

/// What both sides hold of the account, asked for.
struct Comparing {
    standing: Standing,
    time: u64,
    known: Lsn,
    account: Account,
    ours: Holdings,
    theirs: Holdings,
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
    pub(super) fn new(rng: &mut fastrand::Rng) -> Link {
        let batch_bytes = [1_000, 10_000, 100_000][rng.usize(..3)];
        let window = [2_000, 40_000, 1 << 30][rng.usize(..3)];
        let options = ShipperOptions { batch_bytes, batch_time: rng.u64(..2_000_000), window };
        Link {
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
            marked: 0,
            sessions: 0,
            claimed: 0,
            claims: 0,
            position: Lsn::ZERO,
            pin: None,
            gave_up: false,
            bootstraps: 0,
            restarting: false,
        }
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
    /// Lets the link do what is due.
    pub(super) fn pump(&mut self) {
        if self.west.open().is_none() || self.east.open().is_none() {
            self.link.cut();
            if self.west.open().is_none() {
                self.link.pin = None;
            }
            return;
        }
        if self.calm {
            (self.link.lossy, self.link.lies) = (0, 0);
        }
        self.mark();
        if self.is_on_again() {
            self.link.cut();
        }
        if self.link.session.is_none() {
            self.begin();
        }
        let Some(mut session) = self.link.session.take() else { return };
        let goes_on = self.ship(&mut session)
            && self.receive(&mut session)
            && self.answer(&mut session)
            && self.acknowledge(&mut session);
        self.link.session = Some(session);
        if !goes_on {
            self.link.cut();
            self.link.not_before = self.world.now() + self.rng.u64(..5_000_000);
        }
    }

    fn mark(&mut self) {
        let now = self.world.now();
        let (Some(west), Some(account)) = (self.west.open(), self.shipped()) else { return };
        if now >= self.link.marked + self.link.mark_every {
            self.link.marked = now;
            drop(west.ask(|done| Request::Geo(Geo::Mark { accounts: vec![account], done })));
        }
    }

    /// Asks east where to begin, and begins.
    fn begin(&mut self) {
        self.link.left.retain(|importing| !importing.is_done());
        let now = self.world.now();
        let (Some(west), Some(east), Some(account)) = (self.west.open(), self.east.open(), self.shipped()) else {
            return;
        };
        if now < self.link.not_before || !self.link.left.is_empty() {
            return;
        }
        let lane = Lane { log: west.log_id(), number: 0 };
        if self.link.asked.is_none() && self.link.comparing.is_none() {
            self.link.asked = east.ask(|done| Request::Geo(Geo::Progress { lane, done }));
            let pin = lock(&west.shared.pins).add(Lsn::ZERO);
            self.set_pin(pin);
            self.link.gave_up = false;
            return;
        }
        if let Some(comparing) = self.link.comparing.take() {
            if comparing.ours.is_done() && comparing.theirs.is_done() {
                self.bootstrap(comparing);
            } else {
                self.link.comparing = Some(comparing);
            }
            return;
        }
        let Some(asked) = self.link.asked.take_if(|asked| asked.is_done()) else { return };
        let Ok(Ok(progress)) = asked.wait() else { return };
        let (position, time) = progress.map_or((Lsn::ZERO, 0), |progress| (progress.position, progress.time));
        let standing = self.standing(position);
        let back = position < self.link.position || (time < self.link.claimed && !self.link.restarting);
        let (committed, first) = (Lsn(west.shared.committed.get()), west.shared.first_retained());
        let Some(known) = west.account(account) else { return };
        if back {
            return self.complain(format!("east was at {} and is at {position}, {time}", self.link.position));
        }
        let holdings = |side: &Process| {
            side.ask(|done| Request::Geo(Geo::Holdings { account, after: None, most: usize::MAX, done }))
        };
        match need(&known, &standing, first, false) {
            Need::Nothing => {
                let shipper = Shipper::new(self.link.options, [account], position);
                self.begin_session(shipper, position, position, time);
            }
            Need::Drop => {
                // What was trimmed is not wanted there.
                let from = position.max(first);
                let mut shipper = Shipper::new(self.link.options, [account], from);
                shipper.leave_out(account, Lsn::ZERO);
                self.begin_session(shipper, from, position, time);
            }
            Need::Account | Need::Comparison => {
                let (Some(ours), Some(theirs)) = (holdings(west), holdings(east)) else { return };
                let comparing = Comparing { standing, time, known: committed, account: known, ours, theirs };
                self.link.comparing = Some(comparing);
            }
        }
    }

    /// What east says of itself.
    fn standing(&self, position: Lsn) -> Standing {
        let mut standing = Standing { position, ..Standing::default() };
        let known = self.shipped().zip(self.east.open()).and_then(|(account, east)| east.account(account));
        match known.map(|known| (known.role, known.id)) {
            Some((Role::Bootstrap, id)) => drop(standing.bootstrap.insert(id)),
            Some((Role::Dropped, id)) => drop(standing.dropped.insert(id)),
            Some(_) => {}
            None => standing.unknown.extend(self.shipped()),
        }
        standing
    }

    /// The account was switched off and on again while this session was up.
    fn is_on_again(&self) -> bool {
        let (Some(west), Some(account), Some(session)) = (self.west.open(), self.shipped(), &self.link.session) else {
            return false;
        };
        let primary = west.account(account).is_some_and(|known| known.role == Role::Primary);
        primary && session.shipper.has_dropped(account)
    }

    fn bootstrap(&mut self, comparing: Comparing) {
        let Comparing { standing, time, known, account, ours, theirs } = comparing;
        let Some(west) = self.west.open() else { return };
        let (Ok(Ok(ours)), Ok(Ok(theirs))) = (ours.wait(), theirs.wait()) else { return };
        let until = Lsn(west.shared.committed.get());
        let (first, id, live) = (west.shared.first_retained(), account.id, standing.position);
        let mut compared = None;
        if need(&account, &standing, first, false) == Need::Comparison {
            let Ok(comparison) = west.shared.compare(id, &ours, &theirs) else { return };
            if !comparison.differ.is_empty() {
                return self.complain(format!("the copies are found to differ: {comparison:?}"));
            }
            self.world.note(|| format!("a bootstrap from {first} on: {comparison:?}"));
            compared = Some(comparison);
            self.link.restarting = true;
        }
        let from = compared.as_ref().map_or(Lsn::MAX, |compared| compared.from.max(first)).min(live.max(first));
        let copies = vec![Copy { account, compared }];
        let shipper =
            Shipper::bootstrap(self.link.options, [id], Bootstrap { first: from, live, known, until, copies });
        self.link.bootstraps += 1;
        self.begin_session(shipper, from, live, time);
    }

    fn begin_session(&mut self, shipper: Shipper, from: Lsn, position: Lsn, time: u64) {
        let Some(west) = self.west.open() else { return };
        let log = Subscription::new(&west.shared, from.max(Lsn::new(SegmentId(1), DATA_START)));
        let lane = Lane { log: west.log_id(), number: 0 };
        let pin = (!self.link.gave_up).then(|| lock(&west.shared.pins).add(from));
        pin.into_iter().for_each(|pin| self.set_pin(pin));
        self.link.session = Some(Session {
            shipper,
            receiver: Receiver::new(lane, position),
            log,
            to_east: VecDeque::new(),
            to_west: VecDeque::new(),
            waiting: VecDeque::new(),
            importing: VecDeque::new(),
            lied: false,
        });
        self.link.sessions += 1;
        self.world.note(|| format!("a session begins at {from}, the secondary at {position}, last sync time {time}"));
        self.link.position = position;
        self.claim(time);
        let whole = self.link.session.as_ref().is_some_and(|session| !session.shipper.is_bootstrapping());
        let missing = self.missing(|seen| seen.lsn < position);
        if whole && missing > 0 {
            self.complain(format!("east says that it is at {position}, and lacks {missing} frames before"));
        }
    }

    /// What the secondary lacks can be trimmed from now on.
    pub(super) fn give_up(&mut self) {
        let pin = self.link.pin.take();
        if let (Some(pin), Some(west)) = (pin, self.west.open()) {
            lock(&west.shared.pins).remove(pin);
            self.link.gave_up = true;
        }
    }

    /// Nothing behind this pin is trimmed any more; what is before may be.
    fn set_pin(&mut self, pin: (Lsn, u64)) {
        let old = self.link.pin.replace(pin);
        let Some(west) = self.west.open() else { return };
        let mut pins = lock(&west.shared.pins);
        match old {
            Some(old) => pins.remove(old),
            // The first of this process: its start had pinned everything.
            None => pins.remove((Lsn::ZERO, 1)),
        }
    }

    /// Last sync time: everything up to it is there (acceptance G9).
    fn claim(&mut self, time: u64) {
        self.link.claims += u64::from(time > self.link.claimed);
        self.link.claimed = self.link.claimed.max(time);
        let missing = self.missing(|seen| seen.time <= time);
        if missing > 0 {
            self.complain(format!("last sync time {time} is claimed, and {missing} frames are missing"));
        }
    }

    fn ship(&mut self, session: &mut Session) -> bool {
        let now = self.world.now();
        while session.shipper.wants_block() && session.shipper.waiting(now) != Waiting::Window {
            match session.log.try_next() {
                Ok(Some(block)) => session.shipper.offer(&block, now),
                Ok(None) => break,
                Err(error) if error.kind() == ErrorKind::Trimmed && !self.link.gave_up => {
                    self.complain(format!("what the link needs was trimmed: {error}"));
                    return false;
                }
                // A disk that was lost in the middle of it: another session reads again.
                Err(_) => return false,
            }
            while let Some(batch) = session.shipper.poll(now) {
                let mut batch = deliver(batch);
                self.lie(session, &mut batch);
                let fate = if self.link.lossy > 0 { self.rng.u32(..self.link.lossy) } else { 9 };
                let at = now + self.link.delay;
                match fate {
                    0 => {}
                    1 => session.to_east.extend([(at, batch.clone()), (at, batch)]),
                    2 => session.to_east.push_front((at, batch)),
                    _ => session.to_east.push_back((at, batch)),
                }
            }
        }
        while let Some(batch) = session.shipper.poll(now) {
            session.to_east.push_back((now + self.link.delay, deliver(batch)));
        }
        true
    }

    /// The link lies: the checksum of a message leaves out its body.
    fn lie(&mut self, session: &mut Session, batch: &mut Delivered) {
        if self.link.lies == 0 || batch.frames.is_empty() || self.rng.u32(..self.link.lies) > 0 {
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

    fn answer(&mut self, session: &mut Session) -> bool {
        while session.importing.front().is_some_and(Ticket::is_done) {
            let Some(importing) = session.importing.pop_front() else { break };
            match importing.wait() {
                Ok(Ok(imported)) => {
                    if !imported.differ.is_empty() {
                        self.complain(format!("the copies are said to differ: {imported:?}"));
                    }
                    let acknowledgement = session.receiver.imported(imported);
                    session.to_west.push_back((self.world.now() + self.link.delay, acknowledgement));
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
                    return false;
                }
                Err(_) => return false,
            }
        }
        true
    }

    fn acknowledge(&mut self, session: &mut Session) -> bool {
        let now = self.world.now();
        while session.to_west.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, acknowledgement)) = session.to_west.pop_front() else { break };
            if session.shipper.acknowledge(acknowledgement.number).is_err() {
                return false;
            }
            let position = session.shipper.settled();
            self.link.position = acknowledgement.position;
            self.link.restarting &= acknowledgement.time == 0;
            let missing = self.missing(|seen| seen.lsn < position);
            if missing > 0 {
                self.complain(format!("{position} is acknowledged, and {missing} frames before it are not there"));
            }
            if self.link.pin.is_some_and(|(at, _)| at < position)
                && let Some(pin) = self.west.open().map(|west| lock(&west.shared.pins).add(position))
            {
                self.set_pin(pin);
            }
            self.claim(acknowledgement.time);
        }
        true
    }
}

fn deliver(batch: Batch) -> Delivered {
    let Batch { number, account, restart, frames, mark, position, .. } = batch;
    let frames: Vec<u8> = frames.iter().flat_map(|slice| slice.iter().copied()).collect();
    Delivered { number, account, restart, frames: frames.into(), mark, position }
}
