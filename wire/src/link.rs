//! The primary's side: ships what is committed to the secondary, again and again until it has it, and says how far that is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;
use meridian::format::DATA_START;
use meridian::geo::{Acknowledgement, Anchor, Batch, Lag, Lane, LaneClaim, Progress, Shipper, Waiting};
use meridian::{
    AccountGate, AccountId, ErrorKind, Lsn, PartitionId, Region, RetentionPin, Role, SegmentId, Subscription,
};

use crate::clock::{self, Clock};
use crate::codec::{Carry, Hello, MOST_FIELDS, Message, Welcome};
use crate::compress::Adaptive;
use crate::error::{RefusalKind, Result, WireError};
use crate::session;
use crate::threads::{lock, start};
use crate::transport::Connection;

mod compare;
mod options;
mod status;

pub use options::LinkOptions;
pub use status::{Cause, Difference, LinkState, LinkStatus, PartitionLag};

/// How long a thread sleeps, at most, before it looks whether the link is to stop.
const NAP: Duration = Duration::from_millis(50);
/// The longest time from commit to remotely durable that is told from longer ones: a day, in nanoseconds.
const LONGEST: u64 = 86_400_000_000_000;
/// How often contract and retention are looked after.
const TICK: Duration = Duration::from_millis(10);
/// A log whose times are further ahead of the clock than this, in nanoseconds, was written by a clock that was wrong.
const SKEW: u64 = 1_000_000_000;

/// Ships the committed log of a region to its secondary, in threads of its own, until it is stopped or dropped.
pub struct Link {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    region: Arc<Region>,
    options: LinkOptions,
    /// No other link of the region has the lane meanwhile.
    _lane: LaneClaim,
    /// Tells this link's sessions from those of others.
    link: u128,
    /// Holds commits back while contracts are broken.
    gate: AccountGate,
    clock: Clock,
    state: Mutex<State>,
    /// Something that a thread waits for has changed.
    changed: Condvar,
}

struct State {
    stopping: bool,
    status: LinkStatus,
    refused: bool,
    shipper: Option<Shipper>,
    /// Holds back trimming from what is not acknowledged on, or from where what is to be held back at most begins.
    pin: RetentionPin,
    /// Where it is.
    pinned: Lsn,
    /// Accounts whose copies were found to differ or to have a hole: the next session compares them.
    suspects: BTreeSet<AccountId>,
    /// The session has to end for another that compares.
    again: bool,
    /// Where the secondary said that it stands, in another history: the next session says so.
    void: Option<(Lsn, Anchor)>,
    /// Up to here the secondary has acknowledged this history to this link.
    acknowledged: Lsn,
    /// What the last session had read and was not acknowledged, and up to where.
    left: (Lag, Lsn),
    /// Something was sent since the log was marked.
    busy: bool,
    /// The latest time of a transaction or mark that was seen.
    latest: u64,
    /// Why the session's reader ended.
    reader: Option<WireError>,
    /// What the session runs over: cut when the link is to stop.
    connection: Option<Arc<Connection>>,
    /// The latest last sync time of all, and when it was heard of.
    synced: (u64, u64),
    /// The shortest way there and back of this session, in nanoseconds.
    shortest: u64,
    /// Nanoseconds spent of late, by [`SPENT`].
    spent: [u64; SPENT.len()],
}

/// What the shipping thread can spend its time on.
const SPENT: [Cause; 5] = [Cause::Link, Cause::Reading, Cause::Secondary, Cause::Credits, Cause::Throttle];

impl Link {
    /// Begins to ship. From now on nothing that the secondary lacks is trimmed.
    ///
    /// # Errors
    /// [`InvalidInput`](WireError::InvalidInput) for options, and for an account that is not there or whose primary is elsewhere;
    /// [`Region`](WireError::Region) when it is closed, and, as [`Exists`](ErrorKind::Exists), when another link of the region has the
    /// lane, or ships one of the accounts to the same peer; [`Connection`](WireError::Connection) when no thread can be started. A secondary that cannot be reached is no error: it is tried again.
    pub fn start(region: Arc<Region>, options: LinkOptions) -> Result<Link> {
        options.check()?;
        check_accounts(&region, &options.accounts)?;
        let lane = region.claim_lane(options.lane, &options.peer.region, options.accounts.iter().copied())?;
        let known_before = region.progress(Lane { log: region.log_id(), number: options.lane })?;
        let known_before = known_before.map(|known| (known.position, known.time));
        let histogram = Histogram::new_with_bounds(1, LONGEST, 3);
        let histogram = histogram.map_err(|error| WireError::InvalidInput(error.to_string()))?;
        let status = LinkStatus {
            state: LinkState::Unavailable,
            cause: Cause::Unavailable,
            position: Lsn::ZERO,
            last_sync_time: 0,
            last_sync_age: 0,
            known_before,
            clock_ahead: 0,
            lag: Lag::default(),
            unread: 0,
            differ: Vec::new(),
            differed: Vec::new(),
            bootstraps: (0, 0),
            gaps: 0,
            other_histories: 0,
            set_backs: 0,
            breached: Vec::new(),
            shipped: (0, 0),
            sessions: 0,
            ended: None,
            unmarked: None,
            round_trip: 0,
            sent: histogram.clone(),
            remotely_durable: histogram,
        };
        let pin = region.pin(Lsn::ZERO);
        let (stopping, refused, shortest, spent) = (false, false, u64::MAX, [0; SPENT.len()]);
        let (shipper, reader, connection, synced) = (None, None, None, (0, 0));
        let (pinned, suspects, again) = (Lsn::ZERO, BTreeSet::new(), false);
        let state = State {
            stopping,
            status,
            refused,
            shipper,
            pin,
            pinned,
            suspects,
            again,
            void: None,
            acknowledged: Lsn::ZERO,
            left: (Lag::default(), known_before.map_or(Lsn::ZERO, |(position, _)| position)),
            busy: true,
            latest: 0,
            reader,
            connection,
            synced,
            shortest,
            spent,
        };
        let gate = region.gate(options.accounts.iter().copied());
        let (clock, state, changed) = (Clock::start(), Mutex::new(state), Condvar::new());
        let link = clock::nonce()?;
        let shared = Arc::new(Shared { region, options, _lane: lane, link, gate, clock, state, changed });
        let [ships, marks, keeps] = [(); 3].map(|()| Arc::clone(&shared));
        // Dropped where one cannot be started, it stops those before.
        let mut link = Link { shared, threads: Vec::with_capacity(3) };
        link.threads.push(start("meridian-ship", move || ships.keep_shipping())?);
        link.threads.push(start("meridian-mark", move || marks.keep_marking())?);
        link.threads.push(start("meridian-keep", move || keeps.keep_watch())?);
        Ok(link)
    }

    /// How it stands now.
    #[must_use]
    pub fn status(&self) -> LinkStatus {
        let state = self.shared.lock();
        let mut status = state.status.clone();
        let region = &self.shared.region;
        let (lag, read) = state.shipper.as_ref().map_or(state.left, |shipper| (shipper.lag(), shipper.offered()));
        status.lag = lag;
        status.unread = region.distance(read.max(region.first()), region.committed());
        let wall = clock::wall();
        status.last_sync_age = match status.last_sync_time {
            0 => 0,
            time if time <= wall => wall - time,
            _ => self.shared.clock.now().saturating_sub(state.synced.1),
        };
        status.clock_ahead = Some(state.latest.saturating_sub(wall)).filter(|ahead| *ahead > SKEW).unwrap_or_default();
        status.cause = cause(&state, &status);
        status
    }

    /// What each partition lacks on the secondary, those that lack the oldest first, `most` at most (acceptance T2). It reads that part of the log.
    ///
    /// # Errors
    /// [`Region`](WireError::Region) when the log cannot be read.
    pub fn lag_by_partition(&self, most: usize) -> Result<Vec<PartitionLag>> {
        let lags = self.lags()?.into_iter();
        let mut lags: Vec<PartitionLag> =
            lags.map(|((account, partition), lag)| PartitionLag { account, partition, lag }).collect();
        lags.sort_by_key(|behind| behind.lag.oldest);
        lags.truncate(most);
        Ok(lags)
    }

    /// What each account lacks on the secondary; those that lack nothing are left out (acceptance T2). It reads that part of the log.
    ///
    /// # Errors
    /// As [`Link::lag_by_partition`].
    pub fn lag_by_account(&self) -> Result<BTreeMap<AccountId, Lag>> {
        let mut accounts: BTreeMap<AccountId, Lag> = BTreeMap::new();
        for ((account, _), lacks) in self.lags()? {
            let lag = accounts.entry(account).or_insert(Lag { oldest: lacks.oldest, ..Lag::default() });
            lag.bytes += lacks.bytes;
            lag.records += lacks.records;
            lag.oldest = lag.oldest.min(lacks.oldest);
        }
        Ok(accounts)
    }

    fn lags(&self) -> Result<BTreeMap<(AccountId, PartitionId), Lag>> {
        let from = {
            let state = self.shared.lock();
            state.shipper.as_ref().map_or(state.status.position, Shipper::settled)
        };
        let mut log = self.shared.region.subscribe(from);
        let mut lags: BTreeMap<(AccountId, PartitionId), Lag> = BTreeMap::new();
        while let Some(block) = log.try_next()? {
            for transaction in block.transactions().filter(|transaction| transaction.lsn() >= from) {
                let key = (transaction.account(), transaction.partition());
                if transaction.is_system() || !self.shared.options.accounts.contains(&key.0) {
                    continue;
                }
                let lag = lags.entry(key).or_insert(Lag { oldest: transaction.time(), ..Lag::default() });
                lag.bytes += transaction.bytes().len() as u64;
                lag.records += transaction.len() as u64;
            }
        }
        Ok(lags)
    }

    /// Stops shipping. What the secondary lacks can be trimmed from now on. On the region's log thread it waits for nothing, and its
    /// threads end a little later; in a forked child it does nothing.
    pub fn stop(mut self) {
        self.shut();
    }

    fn shut(&mut self) {
        let caller = self.shared.region.check_caller();
        if caller.as_ref().is_err_and(|error| error.kind() == ErrorKind::Forked) {
            // The connection and the threads are the parent's.
            self.threads.drain(..).for_each(std::mem::forget);
            return;
        }
        let connection = {
            let mut state = self.shared.lock();
            state.stopping = true;
            state.connection.take()
        };
        if let Some(connection) = connection {
            connection.shut();
        }
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // They may wait for the log thread, which then cannot wait for them.
            if caller.is_ok() {
                drop(thread.join());
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shut();
    }
}

/// A mark is made of all accounts or of none: one that cannot be marked would stop last sync time for all.
fn check_accounts(region: &Region, accounts: &[AccountId]) -> Result<()> {
    let ours = region.accounts()?.into_iter().filter(|known| known.role.is_primary());
    let ours: BTreeSet<AccountId> = ours.map(|known| known.id).collect();
    match accounts.iter().find(|id| !ours.contains(id)) {
        None => Ok(()),
        Some(id) => {
            let what = format!("accounts: {} is not here, or is a copy of another region's", id.0);
            Err(WireError::InvalidInput(what))
        }
    }
}

fn cause(state: &State, status: &LinkStatus) -> Cause {
    let longest = SPENT.iter().zip(state.spent).filter(|(_, spent)| *spent > 0).max_by_key(|(_, spent)| *spent);
    let longest = longest.map_or(Cause::None, |(cause, _)| *cause);
    match status.state {
        LinkState::Unavailable if state.refused => Cause::Refused,
        LinkState::Unavailable => Cause::Unavailable,
        LinkState::Bootstrap if longest == Cause::Throttle => longest,
        LinkState::Bootstrap => Cause::Bootstrap,
        LinkState::Live if status.lag.records == 0 && status.unread == 0 => Cause::None,
        LinkState::Live => longest,
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Sleeps; false when the link is to stop.
    fn pause(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), time, |state| !state.stopping);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stopping
    }

    /// Looks after contract and retention. It never waits for the log: while that takes no marks, a contract runs out all the same.
    fn keep_watch(&self) {
        while self.pause(TICK) {
            self.keep_contracts();
            self.keep_retention();
        }
    }

    /// Marks the log while a session is up, also while nothing is written.
    fn keep_marking(&self) {
        let (mut marked, mut written) = (self.clock.now(), self.clock.now());
        while self.pause(self.options.mark_interval.min(TICK)) {
            let contracts = self.gate.strictest().map_or(Duration::MAX, |most| most / 2);
            let now = self.clock.now();
            let (live, busy, acknowledged) = {
                let state = self.lock();
                // Last sync time has to move on once more after what was written.
                let whole = state.status.state == LinkState::Live && state.status.last_sync_time > 0;
                let open = state.shipper.as_ref().is_some_and(|shipper| shipper.lag().records > 0);
                (state.status.state != LinkState::Unavailable, state.busy || open || !whole, self.progress(&state))
            };
            written = if busy { now } else { written };
            let idle = Duration::from_nanos(now - written) / 16;
            let interval = idle.min(self.options.idle_mark_interval).max(self.options.mark_interval).min(contracts);
            if live && Duration::from_nanos(now - marked) >= interval {
                marked = now;
                self.lock().busy = false;
                let failed = self.region.mark_with(&self.options.accounts, acknowledged).err();
                // A region that has ended shows that itself.
                let ended = |error: &meridian::Error| matches!(error.kind(), ErrorKind::Closed | ErrorKind::Halted);
                self.lock().status.unmarked = failed.filter(|error| !ended(error)).map(|error| error.to_string());
                self.look_for_dropped();
            }
        }
    }

    /// What the secondary has acknowledged in this session, to be kept.
    fn progress(&self, state: &State) -> Option<Progress> {
        let lane = Lane { log: self.region.log_id(), number: self.options.lane };
        let LinkStatus { position, last_sync_time: time, .. } = state.status;
        state.shipper.as_ref().map(|_| Progress { position, time, ..Progress::none(lane) })
    }

    /// An account that is switched on again needs another session once its copy was dropped.
    fn look_for_dropped(&self) {
        let Ok(accounts) = self.region.accounts() else { return };
        let mut state = self.lock();
        let on =
            accounts.iter().filter(|known| known.role == Role::Primary && self.options.accounts.contains(&known.id));
        let again =
            on.filter(|known| state.shipper.as_ref().is_some_and(|shipper| shipper.has_dropped(known.id))).count();
        state.again |= again > 0;
    }

    fn keep_contracts(&self) {
        let (last_sync_time, (latest, heard)) = {
            let state = self.lock();
            (state.status.last_sync_time, state.synced)
        };
        // Last sync time may be ahead of a clock that was set back: it is as old as it has been known, at least.
        let known = latest.saturating_add(self.clock.now().saturating_sub(heard));
        self.lock().status.breached = self.gate.keep(clock::wall().max(known), last_sync_time);
    }

    /// Beyond the cap, what the secondary lacks may be trimmed. That it lacks it is seen where it is read.
    fn keep_retention(&self) {
        let Some(most) = self.options.retention_bytes else { return };
        let least = self.region.before(self.region.committed(), most);
        self.hold_from(&mut self.lock(), least);
    }

    fn hold_from(&self, state: &mut State, at: Lsn) {
        if at > state.pinned {
            (state.pin, state.pinned) = (self.region.pin(at), at);
        }
    }

    /// One session after the other.
    fn keep_shipping(self: &Arc<Shared>) {
        let mut wait = Duration::from_millis(25);
        loop {
            let before = self.lock().status.position;
            let ended = self.session();
            let closed = matches!(&ended, Err(WireError::Region(error))
                if matches!(error.kind(), ErrorKind::Closed | ErrorKind::Halted));
            let soon = {
                let mut state = self.lock();
                if let Some(shipper) = state.shipper.take() {
                    state.left = (shipper.lag(), shipper.offered());
                }
                state.connection = None;
                let refused = matches!(ended, Err(WireError::Refused { .. }));
                let gap = matches!(ended, Err(WireError::Refused { kind: RefusalKind::Gap, .. }));
                if gap {
                    state.suspects.extend(&self.options.accounts);
                }
                // What was refused is refused again, most likely; a gap is mended by the next session.
                let lasts = refused && (!gap || state.refused);
                state.refused = refused;
                state.status.state = LinkState::Unavailable;
                let stuck = ended.is_err() && !gap && state.status.position <= before;
                state.status.ended = ended.err().map(|error| error.to_string());
                !lasts && !stuck
            };
            if closed {
                return;
            }
            wait = if soon { Duration::from_millis(25) } else { (wait * 2).min(self.options.longest_retry) };
            // Links that lost their peer together do not come back together.
            let jitter = clock::nonce().map_or(0, |nonce| (nonce % 1000) as u32);
            if !self.pause(wait * (1000 + jitter) / 2000) {
                return;
            }
        }
    }

    /// Connects, and ships until something ends the session.
    fn session(self: &Arc<Shared>) -> Result<()> {
        let LinkOptions { address, peer, security, patience, .. } = &self.options;
        let connection = Arc::new(Connection::connect(*address, &peer.name, security, *patience)?);
        {
            let mut state = self.lock();
            if state.stopping {
                return Ok(());
            }
            state.connection = Some(Arc::clone(&connection));
        }
        connection.shake_hands(*patience)?;
        let hello = Hello {
            challenge: 0,
            nonce: 0,
            cluster: self.options.cluster.clone(),
            from: self.options.region.clone(),
            to: peer.region.clone(),
            lane: Lane { log: self.region.log_id(), number: self.options.lane },
            link: self.link,
        };
        let carry = Carry { accounts: self.options.accounts.clone(), void: self.lock().void };
        let welcome = session::introduce(&connection, &hello, carry, *patience)?;
        self.compare_histories(welcome.standing.position, welcome.standing.anchor)?;
        let (shipper, from, all) = self.prepare(&connection, &welcome)?;
        self.begin(&welcome, shipper, from);
        drop(all);
        let (shared, theirs) = (Arc::clone(self), Arc::clone(&connection));
        let reader = start("meridian-acked", move || {
            let ended = shared.take_answers(&theirs).err();
            // Who is in the middle of a write learns of it, too.
            theirs.shut();
            shared.lock().reader = ended;
            shared.changed.notify_all();
        })?;
        let shipped = self.ship(&connection, from);
        connection.shut();
        drop(reader.join());
        // What the other side said last tells more than a broken pipe.
        match self.lock().reader.take() {
            Some(refused @ WireError::Refused { .. }) => Err(refused),
            _ => shipped,
        }
    }

    /// The secondary may hold what this log, before a backup of it was put back, had at the same positions: then the next session
    /// says so, and nothing is claimed before.
    fn compare_histories(&self, position: Lsn, anchor: Anchor) -> Result<()> {
        let same = self.region.is_history(position, anchor)?;
        let mut state = self.lock();
        if same {
            state.void = None;
            return Ok(());
        }
        if state.void.replace((position, anchor)) != Some((position, anchor)) {
            state.status.other_histories += 1;
        }
        (state.status.position, state.status.last_sync_time, state.acknowledged) = (Lsn::ZERO, 0, Lsn::ZERO);
        (state.left, state.status.known_before) = ((Lag::default(), Lsn::ZERO), None);
        drop(state);
        self.gate.lacking(self.options.accounts.iter().map(|account| (*account, Lsn::ZERO)).collect());
        Err(WireError::OtherHistory(position))
    }

    fn begin(&self, welcome: &Welcome, mut shipper: Shipper, from: Lsn) {
        let (position, time) = (welcome.standing.position, welcome.time);
        let pin = self.region.pin(from);
        let mut state = self.lock();
        let (bootstrapping, lacking) = (shipper.is_bootstrapping(), shipper.lacking());
        state.shipper = Some(shipper);
        (state.pin, state.pinned, state.again) = (pin, from, false);
        state.reader = None;
        (state.shortest, state.spent) = (u64::MAX, [0; SPENT.len()]);
        state.status.state = if bootstrapping { LinkState::Bootstrap } else { LinkState::Live };
        state.status.sessions += 1;
        state.status.position = position;
        state.status.set_backs += u64::from(position < state.acknowledged);
        state.acknowledged = position;
        let time = if bootstrapping { 0 } else { time };
        state.status.last_sync_time = time;
        self.hear_of(&mut state, time);
        drop(state);
        lacking.into_iter().for_each(|lacking| self.gate.lacking(lacking));
        // What the last session's answers were lost for is there all the same, and what it said may be true no more.
        self.gate.resume(position);
    }

    fn hear_of(&self, state: &mut State, time: u64) {
        state.latest = state.latest.max(time);
        if time > state.synced.0 {
            state.synced = (time, self.clock.now());
        }
    }

    fn ship(&self, connection: &Connection, from: Lsn) -> Result<()> {
        // A secondary that has nothing lacks the log's beginning, too, if that was trimmed.
        let beginning = Lsn::new(SegmentId(1), DATA_START);
        let mut log = self.region.subscribe(from.max(beginning));
        let mut compression = Adaptive::new(self.options.compression)?;
        let mut last = self.clock.now();
        loop {
            let now = self.clock.now();
            let (batch, waiting) = {
                let mut state = self.lock();
                if state.stopping {
                    return Ok(());
                }
                if let Some(ended) = state.reader.take() {
                    return Err(ended);
                }
                if state.again {
                    return Ok(());
                }
                let Some(shipper) = state.shipper.as_mut() else { return Ok(()) };
                (shipper.poll(now), shipper.waiting(now))
            };
            if let Some(batch) = batch {
                self.send(connection, &batch, &mut compression)?;
                self.throttle(connection, batch.bytes)?;
            } else if waiting == Waiting::Window {
                let state = self.lock();
                drop(self.changed.wait_timeout(state, NAP).unwrap_or_else(PoisonError::into_inner));
                self.spend(self.window_cause(now), now);
            } else {
                self.feed(&mut log, now)?;
            }
            if Duration::from_nanos(now.saturating_sub(last)) > session::beat(self.options.patience) {
                // Not `now`: what was done since is no part of the way.
                last = self.clock.now();
                session::write(connection, &Message::Ping(last))?;
            }
        }
    }

    /// Offers the next block, when there is one before the open batch is due.
    fn feed(&self, log: &mut Subscription, now: u64) -> Result<()> {
        let due = self.lock().shipper.as_ref().and_then(Shipper::deadline);
        let wait = due.map_or(NAP, |due| Duration::from_nanos(due.saturating_sub(now)).min(NAP));
        let block = match log.try_next()? {
            Some(block) => {
                self.spend(Cause::Reading, now);
                Some(block)
            }
            None => log.next_timeout(wait)?,
        };
        if let (Some(block), Some(shipper)) = (block, self.lock().shipper.as_mut()) {
            shipper.offer(&block, now);
        }
        Ok(())
    }

    fn send(&self, connection: &Connection, batch: &Batch, compression: &mut Adaptive) -> Result<()> {
        let compressed = compression.compress(batch);
        let start = self.clock.now();
        let bytes = session::write_batch(connection, batch, compressed)?;
        compression.sent(bytes, self.clock.now() - start);
        let wall = clock::wall();
        self.spend(Cause::Link, start);
        let mut state = self.lock();
        state.busy |= batch.records > 0 || batch.account.is_some();
        state.latest = state.latest.max(batch.oldest);
        if batch.records > 0 && batch.oldest < wall.saturating_add(SKEW) {
            state.status.sent.saturating_record_n(wall.saturating_sub(batch.oldest).max(1), batch.records);
        }
        state.status.shipped.0 += batch.bytes as u64;
        state.status.shipped.1 += bytes as u64;
        Ok(())
    }

    /// A bootstrap leaves the link to others when it has had its share; the other side hears meanwhile that somebody is here.
    fn throttle(&self, connection: &Connection, bytes: usize) -> Result<()> {
        let bootstrapping = {
            let mut state = self.lock();
            let bootstrapping = state.status.state == LinkState::Bootstrap;
            state.status.bootstraps.1 += if bootstrapping { bytes as u64 } else { 0 };
            bootstrapping
        };
        let Some(most) = self.options.bootstrap_bytes_per_second.filter(|_| bootstrapping) else { return Ok(()) };
        let start = self.clock.now();
        let mut left = Duration::from_secs_f64(bytes as f64 / most as f64);
        while !left.is_zero() {
            let part = left.min(session::beat(self.options.patience));
            left -= part;
            if !self.pause(part) {
                return Ok(());
            }
            if !left.is_zero() {
                session::write(connection, &Message::Ping(self.clock.now()))?;
            }
        }
        self.spend(Cause::Throttle, start);
        Ok(())
    }

    /// Why the window is full: a secondary that is not slow answers after one way there and back, and some.
    fn window_cause(&self, now: u64) -> Cause {
        let state = self.lock();
        let flight = state.shipper.as_ref().map_or(0, |shipper| shipper.longest_flight(now));
        if flight / 2 < state.shortest && state.shortest < u64::MAX { Cause::Credits } else { Cause::Secondary }
    }

    /// Adds the time since `start` to what it was spent on; what is old counts less and less.
    fn spend(&self, what: Cause, start: u64) {
        let spent = self.clock.now().saturating_sub(start);
        let Some(what) = SPENT.iter().position(|cause| *cause == what) else { return };
        let mut state = self.lock();
        for time in &mut state.spent {
            *time -= *time / 64;
        }
        state.spent[what] += spent;
    }

    /// Takes in what the other side answers.
    fn take_answers(&self, connection: &Connection) -> Result<()> {
        loop {
            match session::read(connection, MOST_FIELDS, 0, self.options.patience)? {
                Message::Acknowledgement(acknowledgement) => self.acknowledged(acknowledgement)?,
                // The other side says that it is there.
                Message::Pong(0) => {}
                Message::Pong(sent) => {
                    let round_trip = self.clock.now().saturating_sub(sent);
                    let mut state = self.lock();
                    state.status.round_trip = round_trip;
                    state.shortest = state.shortest.min(round_trip);
                }
                Message::Refuse(kind, message) => return Err(WireError::Refused { kind, message }),
                _ => return Err(WireError::Protocol("only answers come here")),
            }
        }
    }

    fn acknowledged(&self, acknowledgement: Acknowledgement) -> Result<()> {
        let Acknowledgement { number, time, differ, .. } = acknowledgement;
        let wall = clock::wall();
        let mut state = self.lock();
        let Some(shipper) = state.shipper.as_mut() else { return Ok(()) };
        let acknowledged = shipper.acknowledge(number)?;
        let (position, settled, lacking) = (shipper.position(), shipper.settled(), shipper.lacking());
        // What is said before all copies have begun anew is of the ones before.
        let time = if shipper.is_bootstrapping() { 0 } else { time };
        self.hold_from(&mut state, settled);
        self.hear_of(&mut state, time);
        state.acknowledged = position;
        let status = &mut state.status;
        status.position = position;
        if time > status.last_sync_time {
            status.last_sync_time = time;
            status.differ.clear();
            status.state = LinkState::Live;
        }
        for batch in acknowledged.into_iter().filter(|batch| batch.time < wall.saturating_add(SKEW)) {
            status.remotely_durable.saturating_record_n(wall.saturating_sub(batch.time).max(1), batch.records);
        }
        if !differ.is_empty() {
            state.again = true;
            state.suspects.extend(&differ);
            state.status.differ = differ;
        }
        drop(state);
        lacking.into_iter().for_each(|lacking| self.gate.lacking(lacking));
        self.gate.arrived(position);
        self.changed.notify_all();
        Ok(())
    }
}
