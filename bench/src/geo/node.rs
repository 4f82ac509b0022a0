//! The `region` subcommand: one region as a process, told what to do by lines of JSON on its input, answering each with one on its output.

use std::io::{self, BufRead};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use meridian::geo::Lane;
use meridian::{AccountId, Ack, LogId, Lsn, PartitionId, Region, Transaction};
use meridian_wire::{Compression, Link, LinkOptions, LinkState, Listener, ListenerOptions, Peer};
use serde::{Deserialize, Serialize};

use crate::compare::{Payloads, region_options};
use crate::flight_load::{ACCOUNT, FlightLoad, MOST_OUTSTANDING};
use crate::flights::Flights;
use crate::latency::{self, Summary, summarize};
use crate::load::{Answer, Pace, Plan, drive};
use crate::machine::CpuSample;
use crate::{Outcome, say};

/// The cluster of both regions.
pub(crate) const CLUSTER: &str = "meridian-bench";
/// What a region calls the account of the records that it commits beside the flights.
const RECORDS: &str = "records";

/// What a region process is started with.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeArguments {
    /// What it is called.
    #[arg(long)]
    pub(crate) name: String,
    /// The other region: the one that may send here, or that is sent to.
    #[arg(long)]
    pub(crate) peer: String,
    /// Listen here for what the other region sends.
    #[arg(long)]
    pub(crate) listen: Option<SocketAddr>,
    /// Mebibytes of the latest blocks that are kept in memory.
    #[arg(long, default_value_t = 64)]
    pub(crate) hot: usize,
    /// The disks' directories; a region is made there if there is none.
    #[arg(required = true)]
    pub(crate) disks: Vec<PathBuf>,
}

/// What a region process is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// How it stands.
    Status,
    /// Start to commit.
    Load(Load),
    /// Start to ship to the region at this address.
    Link { to: SocketAddr, compress: bool },
    /// Stop shipping.
    Unlink,
    /// Start to ship one account on a lane of its own, its bootstrap at a rate.
    Beside { to: SocketAddr, lane: u32, account: String, bytes_per_second: u64 },
    /// Stop that.
    Alone,
    /// Whether the other region is to hold a copy of an account.
    Geo { account: String, on: bool },
    /// How far the first lane of the log of this identity has arrived here, by the region's own durable record.
    Held { log: u128 },
    /// The history that a position of its log is of.
    Anchor { position: u64 },
    /// Measure from here on what shipping takes.
    Reset,
    /// Give back the space of what is shipped.
    Trim,
    /// Close the region and end.
    Quit,
}

/// What to commit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    /// Flights from this transaction on, as many; else records of `payload` bytes.
    pub(crate) flights: Option<(u64, u64)>,
    /// The account of those records, if it is not the usual one.
    pub(crate) account: Option<String>,
    /// Bytes of a record.
    pub(crate) payload: usize,
    /// Partitions that they go to.
    pub(crate) partitions: u64,
    /// Half of all records go to this part of the partitions, in percent; 50 is even.
    pub(crate) skew: u64,
    /// Transactions a second; else `outstanding` at once.
    pub(crate) rate: Option<f64>,
    /// Transactions outstanding without a rate.
    pub(crate) outstanding: usize,
    /// For how long, in seconds.
    pub(crate) seconds: f64,
}

/// How a load went so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Loaded {
    pub(crate) running: bool,
    pub(crate) acknowledged: u64,
    pub(crate) failed: u64,
    /// Why it ended early: what was refused at once, or could not be begun.
    pub(crate) error: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) latency: Summary,
}

/// How a link stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Shipping {
    pub(crate) live: bool,
    pub(crate) bootstrap: bool,
    pub(crate) cause: String,
    pub(crate) position: u64,
    pub(crate) last_sync_time: u64,
    pub(crate) lag_records: u64,
    pub(crate) lag_bytes: u64,
    pub(crate) unread: u64,
    pub(crate) differ: usize,
    pub(crate) shipped: (u64, u64),
    pub(crate) sessions: u64,
    pub(crate) ended: Option<String>,
    pub(crate) round_trip: u64,
    /// Since the link began.
    pub(crate) sent: Summary,
    pub(crate) remotely_durable: Summary,
}

/// How a region process stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) address: Option<SocketAddr>,
    /// The identity of its log.
    pub(crate) log: u128,
    /// Position and last sync time that [`Ask::Held`] asked for.
    pub(crate) held: Option<(u64, u64)>,
    /// Block and checksum that [`Ask::Anchor`] asked for.
    pub(crate) anchor: (u64, u64),
    pub(crate) driver: String,
    pub(crate) committed: u64,
    /// Of each account: name, records, sum.
    pub(crate) accounts: Vec<(String, u64, String)>,
    /// Processor seconds since the process began.
    pub(crate) cpu: f64,
    pub(crate) load: Option<Loaded>,
    pub(crate) link: Option<Shipping>,
    /// Of the account on a lane of its own.
    pub(crate) beside: Option<Shipping>,
    /// Records that arrived here, and those that had arrived before.
    pub(crate) arrived: (u64, u64),
    pub(crate) last_sync_time: u64,
    /// From acceptance to answer of what was committed or imported since the last reset.
    pub(crate) commits: Summary,
}

/// An answer: how it stands after what was asked, or why not.
pub(crate) type Reply = Result<Status, String>;

/// Runs a region until it is told to quit, its input ends, or it is killed.
pub(crate) fn run(arguments: &NodeArguments) -> Outcome {
    let mut node = Node::start(arguments)?;
    for line in io::stdin().lock().lines() {
        let ask = line.map_err(text).and_then(|line| serde_json::from_str::<Ask>(&line).map_err(text));
        let quit = matches!(ask, Ok(Ask::Quit));
        let reply: Reply = ask.and_then(|ask| node.answer(ask));
        let line = serde_json::to_string(&reply).map_err(text)?;
        say::tell(format!("{line}\n").as_bytes()).map_err(text)?;
        if quit {
            break;
        }
    }
    node.close()
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The options of a region on these disks.
pub(crate) fn options(disks: &[PathBuf]) -> meridian::Options {
    let mut options = region_options(disks, "region", 4, false);
    options.queue_transactions = 16 << 10;
    options
}

/// Opens the region on these disks, or makes it.
fn open(arguments: &NodeArguments) -> Result<Region, String> {
    let mut options = options(&arguments.disks);
    options.hot_bytes = arguments.hot << 20;
    let there = options.disks.iter().any(|disk| disk.path.exists());
    if there { Region::open(options, ()) } else { Region::create(options, ()) }.map_err(text)
}

struct Node {
    name: String,
    peer: String,
    region: Arc<Region>,
    listener: Option<Listener>,
    link: Option<Link>,
    beside: Option<Link>,
    /// What shipping had taken when it was last reset, and what commits had.
    shipped_before: Option<Histogram<u64>>,
    committed_before: Option<Histogram<u64>>,
    load: Arc<Mutex<Option<Loaded>>>,
    loading: Option<JoinHandle<()>>,
    started: CpuSample,
}

impl Node {
    fn start(arguments: &NodeArguments) -> Result<Node, String> {
        let region = Arc::new(open(arguments)?);
        let peer = |region: &str| Peer { name: format!("{region}.meridian"), region: region.to_owned() };
        let listener = arguments.listen.map(|address| {
            let options = ListenerOptions::new(CLUSTER, &arguments.name, vec![peer(&arguments.peer)]);
            Listener::bind(Arc::clone(&region), ListenerOptions { address, ..options }).map_err(text)
        });
        Ok(Node {
            name: arguments.name.clone(),
            peer: arguments.peer.clone(),
            region,
            listener: listener.transpose()?,
            link: None,
            beside: None,
            shipped_before: None,
            committed_before: None,
            load: Arc::default(),
            loading: None,
            started: CpuSample::now(),
        })
    }

    fn answer(&mut self, ask: Ask) -> Reply {
        match ask {
            Ask::Status | Ask::Quit => {}
            Ask::Load(load) => self.begin(load)?,
            Ask::Link { to, compress } => {
                let accounts = [ACCOUNT, RECORDS].map(|name| account(&self.region, name));
                let accounts = accounts.into_iter().collect::<Result<Vec<_>, _>>()?;
                let mut options = self.link_options(to, accounts);
                options.compression = if compress { Compression::Adaptive } else { Compression::Off };
                self.shipped_before = None;
                self.link = Some(Link::start(Arc::clone(&self.region), options).map_err(text)?);
            }
            Ask::Unlink => self.link = None,
            Ask::Beside { to, lane, account: name, bytes_per_second } => {
                let options = self.link_options(to, vec![account(&self.region, &name)?]);
                let bootstrap_bytes_per_second = Some(bytes_per_second);
                let options = LinkOptions { lane, bootstrap_bytes_per_second, ..options };
                self.beside = Some(Link::start(Arc::clone(&self.region), options).map_err(text)?);
            }
            Ask::Alone => self.beside = None,
            Ask::Geo { account, on } => drop(self.region.set_account_geo(&account, on).map_err(text)?),
            Ask::Held { log } => {
                let progress = self.region.progress(Lane { log: LogId(log), number: 0 }).map_err(text)?;
                let held = progress.map(|progress| (progress.position.0, progress.time));
                return Ok(Status { held, ..self.status()? });
            }
            Ask::Anchor { position } => {
                let anchor = self.region.anchor(Lsn(position)).map_err(text)?;
                return Ok(Status { anchor: (anchor.block.0, anchor.checksum), ..self.status()? });
            }
            Ask::Reset => {
                self.shipped_before = self.link.as_ref().map(|link| link.status().remotely_durable);
                self.committed_before = Some(self.region.stats().map_err(text)?.acknowledged);
            }
            Ask::Trim => drop(self.region.trim(Lsn::MAX).map_err(text)?),
        }
        self.status()
    }

    fn link_options(&self, to: SocketAddr, accounts: Vec<AccountId>) -> LinkOptions {
        let peer = Peer { name: format!("{}.meridian", self.peer), region: self.peer.clone() };
        let longest_retry = Duration::from_millis(100);
        LinkOptions { longest_retry, ..LinkOptions::new(to, CLUSTER, &self.name, peer, accounts) }
    }

    fn begin(&mut self, load: Load) -> Result<(), String> {
        if let Some(loading) = self.loading.take() {
            drop(loading.join());
        }
        let (region, state) = (Arc::clone(&self.region), Arc::clone(&self.load));
        set(&state, Loaded { running: true, ..Loaded::default() });
        let usual = if load.flights.is_some() { ACCOUNT } else { RECORDS };
        let account = account(&region, load.account.as_deref().unwrap_or(usual))?;
        let thread = std::thread::Builder::new().name("load".into());
        let loading = thread.spawn(move || {
            let done = commit(&region, account, &load, &state);
            if let Err(message) = done {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                let loaded = state.get_or_insert_default();
                (loaded.running, loaded.error) = (false, Some(message));
            }
        });
        self.loading = Some(loading.map_err(text)?);
        Ok(())
    }

    fn status(&self) -> Reply {
        let accounts = self.region.accounts().map_err(text)?;
        let accounts = accounts.into_iter().map(|account| {
            let digest = self.region.digest(account.id).map_err(text)?;
            Ok((account.name, digest.records, format!("{:032x}", digest.sum)))
        });
        let arrivals = self.listener.as_ref().map(Listener::status).unwrap_or_default();
        let arrived = arrivals.values().next().cloned().unwrap_or_default();
        Ok(Status {
            address: self.listener.as_ref().map(Listener::local_addr),
            log: self.region.log_id().0,
            held: None,
            anchor: (0, 0),
            driver: self.region.health().map_err(text)?.driver,
            committed: self.region.committed().0,
            accounts: accounts.collect::<Result<_, String>>()?,
            cpu: self.started.until(&CpuSample::now()).process,
            load: self.load.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            link: self.link.as_ref().map(|link| shipping(link, self.shipped_before.as_ref())),
            beside: self.beside.as_ref().map(|link| shipping(link, None)),
            arrived: (arrived.records, arrived.duplicates),
            last_sync_time: arrived.last_sync_time,
            commits: since(self.region.stats().map_err(text)?.acknowledged, self.committed_before.as_ref()),
        })
    }

    fn close(mut self) -> Outcome {
        if let Some(loading) = self.loading.take() {
            drop(loading.join());
        }
        drop((self.link.take(), self.beside.take(), self.listener.take()));
        let region = Arc::into_inner(self.region).ok_or("a thread still has the region")?;
        region.close().map_err(text)?;
        Ok(true)
    }
}

fn shipping(link: &Link, before: Option<&Histogram<u64>>) -> Shipping {
    let status = link.status();
    Shipping {
        live: status.state != LinkState::Unavailable,
        bootstrap: status.state == LinkState::Bootstrap,
        cause: format!("{:?}", status.cause),
        position: status.position.0,
        last_sync_time: status.last_sync_time,
        lag_records: status.lag.records,
        lag_bytes: status.lag.bytes,
        unread: status.unread,
        differ: status.differ.len(),
        shipped: status.shipped,
        sessions: status.sessions,
        ended: status.ended,
        round_trip: status.round_trip,
        sent: summarize(&status.sent),
        remotely_durable: since(status.remotely_durable, before),
    }
}

/// What was counted since an earlier reading of the same counters: the later one lacks nothing that it holds.
fn since(mut counted: Histogram<u64>, before: Option<&Histogram<u64>>) -> Summary {
    if let Some(before) = before {
        counted.subtract(before).unwrap_or_else(|error| unreachable!("counters only grow: {error:?}"));
    }
    summarize(&counted)
}

/// The account of this name, which is made if there is none.
fn account(region: &Region, name: &str) -> Result<AccountId, String> {
    let known = region.accounts().map_err(text)?.into_iter().find(|account| account.name == name);
    known.map_or_else(|| region.create_account(name, Ack::Quorum).map_err(text), |account| Ok(account.id))
}

fn set(state: &Mutex<Option<Loaded>>, loaded: Loaded) {
    *state.lock().unwrap_or_else(PoisonError::into_inner) = Some(loaded);
}

/// Commits a load to its end.
fn commit(region: &Region, account: AccountId, load: &Load, state: &Mutex<Option<Loaded>>) -> Result<(), String> {
    let flights = load.flights.map(|_| Flights::load()).transpose()?;
    let payloads = Payloads::new(load.payload);
    // What is made beforehand is no part of the load's time.
    let start = Instant::now();
    let mut plan = Committing {
        flights: flights.as_ref().map(|flights| FlightLoad::new(flights, account)),
        account,
        payloads,
        partitions: load.partitions,
        skew: load.skew,
        last: load.flights.map_or(u64::MAX, |(first, count)| first + count),
        start,
        until: start + Duration::from_secs_f64(load.seconds),
        loaded: Loaded { running: true, ..Loaded::default() },
        latency: latency::histogram(),
        shown: start,
        state,
    };
    let pace = match load.rate {
        Some(rate) => Pace::Open(rate),
        None => Pace::Closed(load.outstanding.min(MOST_OUTSTANDING)),
    };
    let driven = drive(region, pace, load.flights.map_or(0, |(first, _)| first), &mut plan);
    // One reading must not show it ended without its error.
    (plan.loaded.running, plan.loaded.error) = (false, driven.err());
    plan.show();
    Ok(())
}

struct Committing<'a> {
    flights: Option<FlightLoad<'a>>,
    account: AccountId,
    payloads: Payloads,
    partitions: u64,
    skew: u64,
    last: u64,
    start: Instant,
    until: Instant,
    loaded: Loaded,
    latency: Histogram<u64>,
    shown: Instant,
    state: &'a Mutex<Option<Loaded>>,
}

impl Committing<'_> {
    fn show(&mut self) {
        self.loaded.seconds = self.start.elapsed().as_secs_f64();
        self.loaded.latency = summarize(&self.latency);
        set(self.state, self.loaded.clone());
    }
}

impl Loaded {
    /// This, if nothing failed or was refused and every flight that was asked for was acknowledged.
    ///
    /// # Errors
    /// What it lacks.
    pub(crate) fn whole(self, load: &Load) -> Result<Loaded, String> {
        if let Some(error) = self.error {
            return Err(format!("the load ended early: {error}"));
        }
        if self.failed > 0 {
            return Err(format!("{} commits failed", self.failed));
        }
        match load.flights {
            Some((_, asked)) if asked != self.acknowledged => {
                Err(format!("{} of {asked} flight transactions were acknowledged", self.acknowledged))
            }
            _ => Ok(self),
        }
    }
}

impl Plan for Committing<'_> {
    /// No more than were asked for, or the next load's would be among them.
    fn wants(&self, number: u64) -> bool {
        number < self.last && self.loaded.failed == 0
    }

    fn make(&mut self, number: u64) -> Transaction {
        match &self.flights {
            Some(flights) => flights.transaction(number),
            None => {
                let partition = partition(number, self.partitions, self.skew);
                Transaction::new(self.account, partition).record(self.payloads.of(number))
            }
        }
    }

    fn answered(&mut self, answer: Answer) {
        match answer.outcome {
            Ok(_) => {
                self.loaded.acknowledged += 1;
                latency::record(&mut self.latency, answer.latency, 1);
            }
            Err(_) => self.loaded.failed += 1,
        }
    }

    fn goes_on(&mut self, now: Instant) -> bool {
        if now - self.shown > Duration::from_millis(100) {
            self.shown = now;
            self.show();
        }
        now < self.until && self.loaded.failed == 0
    }
}

/// The partitions that loads write to in the account of this name: those of the flights, or so many.
pub(crate) fn written(account: &str, partitions: u64, flights: &Flights) -> Vec<PartitionId> {
    if account == ACCOUNT {
        return flights.partitions.iter().map(|name| PartitionId::named(name)).collect();
    }
    (1..=partitions).map(|partition| PartitionId(u128::from(partition))).collect()
}

/// Of every two records one goes to the first `skew` percent of the partitions.
fn partition(number: u64, partitions: u64, skew: u64) -> PartitionId {
    let few = (partitions * skew / 100).max(1);
    // Any fixed mixing will do: neighbours do not go to neighbours.
    let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let at = if number.is_multiple_of(2) { mixed % few } else { mixed % partitions };
    PartitionId(u128::from(at) + 1)
}

/// A folder for each of a region's three disks below `home`.
pub(crate) fn disks(home: &Path) -> Vec<PathBuf> {
    ["disk-1", "disk-2", "disk-3"].map(|name| home.join(name)).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(payload: usize) -> Load {
        let (flights, account, rate) = (None, None, None);
        Load { flights, account, payload, partitions: 256, skew: 50, rate, outstanding: 4, seconds: 0.05 }
    }

    #[test]
    fn a_load_that_is_refused_is_no_success() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let region = Region::create(options(&disks(dir.path())), ()).expect("made");
        let id = account(&region, RECORDS).expect("an account");
        let run = |payload: usize| {
            let state = Mutex::default();
            commit(&region, id, &load(payload), &state).expect("begun");
            state.into_inner().expect("no panic").expect("shown")
        };
        let good = run(100);
        assert!(good.acknowledged > 0 && good.whole(&load(100)).is_ok());
        // Larger than any transaction may be.
        let refused = run(64 << 20);
        assert!(!refused.running && refused.failed == 0, "{refused:?}");
        assert!(refused.whole(&load(100)).is_err(), "no commit failed, but the load was refused");
        region.close().expect("closed");
    }

    #[test]
    fn as_many_flights_are_committed_as_were_asked_for() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let region = Region::create(options(&disks(dir.path())), ()).expect("made");
        let id = account(&region, ACCOUNT).expect("an account");
        for rate in [None, Some(1e6)] {
            // More may be outstanding than there are.
            let asked = Load { flights: Some((0, 7)), outstanding: 1_000, rate, seconds: 60.0, ..load(0) };
            let state = Mutex::default();
            commit(&region, id, &asked, &state).expect("begun");
            let loaded = state.into_inner().expect("no panic").expect("shown");
            assert_eq!(loaded.acknowledged, 7);
        }
        region.close().expect("closed");
    }

    #[test]
    fn every_partition_that_a_load_writes_to_is_compared() {
        let flights = Flights::load().expect("built in");
        for (partitions, skew) in [(256, 1), (256, 50), (256, 100), (1, 10), (1_000, 10)] {
            let known = written(RECORDS, partitions, &flights);
            assert!((0..10_000).all(|number| known.contains(&partition(number, partitions, skew))));
        }
        let known = written(ACCOUNT, 256, &flights);
        assert!(known.len() == flights.partitions.len() && known.contains(&PartitionId::named(&flights.partitions[7])));
    }

    #[test]
    fn flights_that_were_asked_for_and_not_acknowledged_are_missed() {
        let asked = Load { flights: Some((0, 3)), ..load(0) };
        let loaded = |acknowledged| Loaded { acknowledged, ..Loaded::default() };
        assert!(loaded(3).whole(&asked).is_ok());
        assert!(loaded(2).whole(&asked).is_err());
    }
}
