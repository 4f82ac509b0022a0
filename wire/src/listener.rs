//! The secondary's side: takes in sessions of known regions, imports what they send, acknowledges what is durable.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{self, Receiver as Incoming, RecvTimeoutError};
use meridian::geo::{Carried, Fingerprint, Holding, Imported, Lane, MOST_BATCH_BYTES, Receiver, Standing};
use meridian::{AccountId, ErrorKind, Lsn, Region, Role, Ticket};

use crate::clock;
use crate::codec::{Ask, Carry, Hello, MOST_FIELDS, MOST_FINGERPRINTS, MOST_HOLDINGS, Message, Trace, Welcome};
use crate::error::{RefusalKind, Result, WireError};
use crate::session::{self, Peer};
use crate::threads::{lock, start, try_lock};
use crate::transport::{Connection, Security, check_address};

/// Connections that may be in the middle of their handshake; more are closed at once.
const HANDSHAKES: usize = 16;
/// How long an acceptance that failed is waited for.
const PAUSE: Duration = Duration::from_millis(20);
/// Lanes that may lead to one listener.
const LANES: usize = 64;
/// Imports of one session that may be under way: what the window does not bound.
const IMPORTS: usize = 1024;
/// Refusals that are remembered, and the bytes of each one's words.
const REFUSALS: usize = 32;
const MAX_WORDS: usize = 512;

/// How a secondary listens.
#[derive(Clone, Debug)]
pub struct ListenerOptions {
    /// Where. Port 0 takes any that is free.
    pub address: SocketAddr,
    /// The cluster that both regions belong to.
    pub cluster: String,
    /// What this region is called there.
    pub region: String,
    /// The regions that may send here.
    pub peers: Vec<Peer>,
    /// How they prove who they are.
    pub security: Security,
    /// Bytes of frames that a session may have under way, on the network above all. Default 256 MiB. What has arrived and is not durable is bounded by the region's
    /// [`queue_bytes`](meridian::Options::queue_bytes).
    pub window: u64,
    /// How long the other side may be silent or slow. Default 10 s.
    pub patience: Duration,
    /// The largest transaction of the primaries that send here. Default 4 MiB and 64 KiB, as the region's.
    pub transaction_bytes: usize,
}

impl ListenerOptions {
    /// The defaults, on any free port of the loopback address.
    #[must_use]
    pub fn new(cluster: &str, region: &str, peers: Vec<Peer>) -> ListenerOptions {
        ListenerOptions {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            cluster: cluster.to_owned(),
            region: region.to_owned(),
            peers,
            security: Security::Loopback,
            window: 256 << 20,
            patience: Duration::from_secs(10),
            transaction_bytes: (4 << 20) + (64 << 10),
        }
    }
}

/// How one primary's log arrives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// The region that sends it.
    pub from: String,
    /// Whether a session is up.
    pub live: bool,
    /// Everything before this position of that log is durable here.
    pub position: Lsn,
    /// The last sync time: every write of the carried accounts up to it is here (acceptance G9). Nanoseconds since the Unix epoch, 0
    /// before the first.
    pub last_sync_time: u64,
    /// Records imported since the listener was bound.
    pub records: u64,
    /// Records that had arrived before, and were skipped.
    pub duplicates: u64,
    /// Sessions since the listener was bound.
    pub sessions: u64,
    /// Times that the primary found what is here to be of another history of its log: a backup was put back there, and the
    /// copies are compared with it.
    pub other_histories: u64,
    /// Why the last session ended, if one did.
    pub ended: Option<String>,
}

/// A connection that got no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Nanoseconds since the Unix epoch, by this host's clock.
    pub time: u64,
    /// Where it came from.
    pub address: SocketAddr,
    /// What was refused, and why; what the other side said of itself is quoted, and believed by nobody.
    pub why: String,
}

/// The connections that got no session since the listener was bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// How many.
    pub count: u64,
    /// The last 32.
    pub last: VecDeque<Refusal>,
}

/// A secondary region's door for the primaries that send to it. Dropping it closes it.
pub struct Listener {
    shared: Arc<Shared>,
    address: SocketAddr,
    socket: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    region: Arc<Region>,
    options: ListenerOptions,
    stopping: AtomicBool,
    /// Connections in the middle of their handshake, and the threads that see to them.
    greeting: Mutex<Vec<(TcpStream, JoinHandle<()>)>>,
    arrivals: Mutex<BTreeMap<Lane, Arrival>>,
    refusals: Mutex<Refusals>,
    /// Never held while anything is waited for: whom one lane waits for stops no other.
    lanes: Mutex<BTreeMap<Lane, Slot>>,
}

/// Holds the session of one lane, if there is one; locked while another takes its place.
type Slot = Arc<Mutex<Option<Session>>>;

/// The session of one lane.
struct Session {
    /// The link that it belongs to.
    link: u128,
    connection: Arc<Connection>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens for primaries that send to `region`.
    ///
    /// # Errors
    /// [`InvalidInput`](WireError::InvalidInput) for options; [`Connection`](WireError::Connection) when the address cannot be had.
    pub fn bind(region: Arc<Region>, options: ListenerOptions) -> Result<Listener> {
        check_address(&options.security, options.address)?;
        if options.peers.is_empty() || options.window == 0 || options.patience.is_zero() {
            return Err(WireError::InvalidInput("peers, window and patience: at least one each".into()));
        }
        let socket = Arc::new(TcpListener::bind(options.address)?);
        let address = socket.local_addr()?;
        let shared = Arc::new(Shared {
            region,
            options,
            stopping: AtomicBool::new(false),
            greeting: Mutex::default(),
            arrivals: Mutex::default(),
            refusals: Mutex::default(),
            lanes: Mutex::default(),
        });
        let (theirs, door) = (Arc::clone(&shared), Arc::clone(&socket));
        let thread = start("meridian-listen", move || theirs.listen(&door))?;
        Ok(Listener { shared, address, socket, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// How each lane of a primary's log arrives.
    #[must_use]
    pub fn status(&self) -> BTreeMap<Lane, Arrival> {
        lock(&self.shared.arrivals).clone()
    }

    /// The connections that got no session, and why (acceptance H7).
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        lock(&self.shared.refusals).clone()
    }

    /// Ends all sessions and listens no more; nothing of it holds the region after that. What was imported stays. On the region's log thread
    /// it waits for nothing, and its threads end a little later; in a forked child it does nothing.
    pub fn stop(mut self) {
        self.shut();
    }

    fn shut(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let caller = self.shared.region.check_caller();
        if caller.as_ref().is_err_and(|error| error.kind() == ErrorKind::Forked) {
            // The connections and the threads are the parent's.
            std::mem::forget(thread);
            return;
        }
        // The threads may wait for the log thread, which then cannot wait for them.
        let waits = caller.is_ok();
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Nobody waits for the next connection any longer. That is no system call that another host
        // can hold up.
        let _ended = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Both);
        if waits {
            drop(thread.join());
        }
        for (connection, greeter) in std::mem::take(&mut *lock(&self.shared.greeting)) {
            drop(connection.shutdown(Shutdown::Both));
            if waits {
                drop(greeter.join());
            }
        }
        let lanes = std::mem::take(&mut *lock(&self.shared.lanes));
        for slot in lanes.into_values() {
            // A greeting that holds it may wait for the log thread: it ends the session itself.
            let slot = if waits { Some(lock(&slot)) } else { try_lock(&slot) };
            if let Some(session) = slot.and_then(|mut slot| slot.take()) {
                session.end(waits);
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shut();
    }
}

impl Session {
    /// Cuts it off; with `waits`, it is over afterwards.
    fn end(mut self, waits: bool) {
        self.connection.shut();
        if let Some(thread) = self.thread.take().filter(|_| waits) {
            drop(thread.join());
        }
    }
}

impl Shared {
    fn listen(self: &Arc<Shared>, socket: &TcpListener) {
        for stream in socket.incoming() {
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            let Ok(stream) = stream else {
                // Descriptors run out: that does not get better by asking at once.
                std::thread::park_timeout(PAUSE);
                continue;
            };
            let mut greeting = lock(&self.greeting);
            greeting.retain(|(_, thread)| !thread.is_finished());
            let (Ok(cut), Ok(end)) = (stream.try_clone(), stream.try_clone()) else { continue };
            let Ok(address) = stream.peer_addr() else { continue };
            if greeting.len() >= HANDSHAKES {
                self.note_refusal(address, &format!("{HANDSHAKES} connections are in the middle of their handshake"));
                continue;
            }
            let shared = Arc::clone(self);
            let greeter = start("meridian-greet", move || {
                if let Err(error) = shared.greet(stream) {
                    shared.note_refusal(address, &error.to_string());
                    drop(end.shutdown(Shutdown::Both));
                }
            });
            greeting.extend(greeter.map(|thread| (cut, thread)));
        }
    }

    /// Strangers can fill the list, and nothing else.
    fn note_refusal(&self, address: SocketAddr, why: &str) {
        let why = why.chars().take(MAX_WORDS).collect();
        let mut refusals = lock(&self.refusals);
        refusals.count += 1;
        refusals.last.push_back(Refusal { time: clock::wall(), address, why });
        let old = refusals.last.len().saturating_sub(REFUSALS);
        refusals.last.drain(..old);
    }

    /// A lane is not taken from a link that is heard: the sessions of two would end each other for ever.
    fn check_lane(&self, hello: &Hello, session: Option<&Session>, connection: &Connection) -> Result<()> {
        let Some(session) = session.filter(|session| session.link != hello.link) else { return Ok(()) };
        let silence = session.connection.silence().filter(|silent| *silent < 4 * session::beat(self.options.patience));
        let Some(silence) = silence else { return Ok(()) };
        let kind = RefusalKind::LaneInUse;
        let message = format!(
            "lane {} of log {:032x} is in use by another link, from {:?}, which was heard {silence:?} ago: each link of a log \
             needs a lane of its own",
            hello.lane.number,
            hello.lane.log.0,
            session.connection.peer_address()
        );
        drop(session::write(connection, &Message::Refuse(kind, message.clone())));
        Err(WireError::Refused { kind, message })
    }

    /// The handshake. A session that a known region begins takes the place of the one before, which has ended by then: what it had
    /// under way is in the log or is not.
    fn greet(self: &Arc<Shared>, stream: TcpStream) -> Result<()> {
        let options = &self.options;
        let connection = Arc::new(Connection::accept(stream, &options.security, options.patience)?);
        let (hello, peer, carry) =
            session::challenge(&connection, &options.cluster, &options.region, &options.peers, options.patience)?;
        let slot = self.slot(hello.lane);
        let busy = "another greeting of the lane is not over, or the listener has as many lanes as it takes";
        // The sender tries again.
        let Some(mut session) = slot.as_ref().and_then(|slot| try_lock(slot)) else {
            connection.shut();
            return Err(WireError::Protocol(busy));
        };
        let begun = self.begin(&mut session, &connection, &hello, peer, carry);
        // A listener that is dropped on the log thread does not wait for whoever holds the lane.
        if let Some(session) = session.take_if(|_| self.stopping.load(Ordering::SeqCst)) {
            session.end(true);
        }
        begun
    }

    /// Begins the session of a known region in the lane that is held.
    fn begin(
        self: &Arc<Shared>,
        session: &mut Option<Session>,
        connection: &Arc<Connection>,
        hello: &Hello,
        peer: Peer,
        carry: Carry,
    ) -> Result<()> {
        self.check_lane(hello, session.as_ref(), connection)?;
        if let Some(before) = session.take() {
            before.end(true);
        }
        let (lane, link, void) = (hello.lane, hello.link, carry.void.is_some());
        let standing = self.standing(lane, carry).inspect_err(|error| refuse(connection, error));
        let (standing, time) = standing?;
        let position = standing.position;
        let welcome = Welcome { nonce: hello.nonce, time, window: self.options.window, standing };
        session::write(connection, &Message::Welcome(welcome))?;
        self.note(lane, |arrival| {
            arrival.from = peer.region;
            arrival.sessions += 1;
            arrival.other_histories += u64::from(void);
            (arrival.live, arrival.position, arrival.last_sync_time) = (true, position, time);
        });
        let (shared, theirs) = (Arc::clone(self), Arc::clone(connection));
        let thread = start("meridian-arrive", move || {
            let ended = shared.serve(&theirs, lane, position).err();
            theirs.shut();
            shared.note(lane, |arrival| {
                arrival.live = false;
                arrival.ended = ended.map(|error| error.to_string());
            });
        })?;
        let connection = Arc::clone(connection);
        *session = Some(Session { link, connection, thread: Some(thread) });
        Ok(())
    }

    /// Takes note of what a lane carries; returns how that stands here, and the last sync time.
    fn standing(&self, lane: Lane, carry: Carry) -> meridian::Result<(Standing, u64)> {
        // The answer waits until what it says of the accounts is committed.
        let Carried { progress, loose } = self.region.carry(lane, carry.accounts.iter().copied(), carry.void)?;
        let accounts = self.region.accounts()?;
        let mut standing =
            Standing { position: progress.position, anchor: progress.anchor, loose, ..Standing::default() };
        let roles: BTreeMap<AccountId, Role> = accounts.iter().map(|known| (known.id, known.role)).collect();
        for account in carry.accounts {
            match roles.get(&account) {
                None => standing.unknown.insert(account),
                Some(Role::Bootstrap) => standing.bootstrap.insert(account),
                Some(Role::Dropped) => standing.dropped.insert(account),
                // Of its own it tells nothing: what is sent for them is refused.
                Some(Role::Secondary | Role::Primary | Role::Local) => false,
            };
        }
        Ok((standing, progress.time))
    }

    /// `None` when there are as many lanes as can be.
    fn slot(&self, lane: Lane) -> Option<Slot> {
        let mut lanes = lock(&self.lanes);
        let known = lanes.contains_key(&lane) || lanes.len() < LANES;
        known.then(|| Arc::clone(lanes.entry(lane).or_default()))
    }

    fn note(&self, lane: Lane, change: impl FnOnce(&mut Arrival)) {
        change(lock(&self.arrivals).entry(lane).or_default());
    }

    /// Reads batches and starts their imports, while a thread of its own acknowledges them in order.
    fn serve(self: &Arc<Shared>, connection: &Arc<Connection>, lane: Lane, resume: Lsn) -> Result<()> {
        let receiver = Arc::new(Mutex::new(Receiver::new(lane, resume)));
        let (importing, imports) = channel::bounded::<Ticket<Imported>>(IMPORTS);
        let (shared, theirs, their_receiver) = (Arc::clone(self), Arc::clone(connection), Arc::clone(&receiver));
        let answers = start("meridian-answer", move || {
            let answered = shared.answer(&theirs, lane, &imports, &their_receiver);
            if answered.is_err() {
                theirs.shut();
            }
            answered
        })?;
        let read = self.read(connection, &receiver, &importing);
        drop(importing);
        if read.is_err() {
            // What could not be answered is sent again in the next session.
            connection.shut();
        }
        // Who comes after this session counts on it having nothing under way.
        let answered = answers.join().unwrap_or(Err(WireError::Protocol("a thread of this session failed")));
        answered.and(read)
    }

    fn read(
        &self,
        connection: &Connection,
        receiver: &Mutex<Receiver>,
        importing: &channel::Sender<Ticket<Imported>>,
    ) -> Result<()> {
        let most = MOST_BATCH_BYTES.saturating_add(self.options.transaction_bytes);
        loop {
            match session::read(connection, MOST_FIELDS, most, self.options.patience)? {
                Message::Batch(batch) => {
                    let arrived = lock(receiver).receive(batch)?;
                    let started = self.region.import(arrived).inspect_err(|error| refuse(connection, error))?;
                    if importing.send(started).is_err() {
                        return Ok(());
                    }
                }
                Message::Ping(number) => session::write(connection, &Message::Pong(number))?,
                Message::Ask(ask) => session::write(connection, &Message::Holdings(self.holdings(ask)?))?,
                Message::Trace(trace) => session::write(connection, &Message::Fingerprints(self.fingerprints(trace)?))?,
                _ => return Err(WireError::Protocol("only batches, pings and questions come here")),
            }
        }
    }

    /// What is here of an account, if it is a copy: of others nothing is told.
    fn holdings(&self, ask: Ask) -> Result<Vec<Holding>> {
        if !self.is_copy(ask.account)? {
            return Ok(Vec::new());
        }
        Ok(self.region.holdings(ask.account, ask.after, MOST_HOLDINGS)?)
    }

    /// Which transactions are here of a partition, if it is a copy's.
    fn fingerprints(&self, trace: Trace) -> Result<Vec<Fingerprint>> {
        let Trace { account, partition, from } = trace;
        if !self.is_copy(account)? {
            return Ok(Vec::new());
        }
        Ok(self.region.fingerprints(account, partition, from, MOST_FINGERPRINTS)?)
    }

    fn is_copy(&self, account: AccountId) -> Result<bool> {
        let accounts = self.region.accounts()?;
        Ok(accounts.iter().any(|known| known.id == account && !known.role.is_primary()))
    }

    /// Acknowledges in order what has become durable (invariant 12).
    fn answer(
        &self,
        connection: &Connection,
        lane: Lane,
        imports: &Incoming<Ticket<Imported>>,
        receiver: &Mutex<Receiver>,
    ) -> Result<()> {
        // However long a batch takes to arrive, or the disks to take it: the sender hears that somebody is here.
        let beat = session::beat(self.options.patience);
        let alive = || session::write(connection, &Message::Pong(0));
        loop {
            let mut ticket = match imports.recv_timeout(beat) {
                Ok(ticket) => ticket,
                Err(RecvTimeoutError::Timeout) => {
                    alive()?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let imported = loop {
                match ticket.wait_timeout(beat) {
                    Some(imported) => break imported.inspect_err(|error| refuse(connection, error))?,
                    None => alive()?,
                }
            };
            self.note(lane, |arrival| {
                arrival.records += imported.records;
                arrival.duplicates += imported.duplicates;
                arrival.position = imported.progress.position;
                arrival.last_sync_time = imported.progress.time;
            });
            let acknowledgement = lock(receiver).imported(imported);
            session::write(connection, &Message::Acknowledgement(acknowledgement))?;
        }
    }
}

/// A known region is told why; that it hears it is not certain.
fn refuse(connection: &Connection, error: &meridian::Error) {
    let refusal = Message::Refuse(RefusalKind::of(error.kind()), error.to_string());
    drop(session::write(connection, &refusal));
}
