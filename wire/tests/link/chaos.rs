//! Several accounts over several lanes, while everything that can be done to them is done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian::{AccountId, Ack, ClientId, Contract, Gate, Lsn, PartitionId, Region, Role, Ticket, Transaction};
use meridian_wire::{Link, LinkOptions, LinkState, Listener, ListenerOptions};
use tempfile::TempDir;

use crate::common::{link_options, listener_options, region_options, until};
use crate::cuts::{cutting_proxy, slow_proxy};

/// xorshift64: what is done follows from the seed; when it happens does not.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % most
    }
}

/// The first one's commits wait for the secondary.
const ACCOUNTS: usize = 5;

/// What was committed, to be held against last sync time.
struct Committed {
    account: usize,
    partition: PartitionId,
    sequence: u64,
    time: u64,
    /// How often the account had been switched.
    switched: u64,
}

/// A commit that waits for the secondary: its account and partition, how often the account had been switched, and its ticket.
type Waits = (usize, PartitionId, u64, Ticket);

struct Chaos {
    dir: TempDir,
    rng: Random,
    seed: u64,
    west: Option<Arc<Region>>,
    east: Option<Arc<Region>>,
    accounts: Vec<AccountId>,
    /// Which lane each goes by.
    lanes: Vec<usize>,
    on: Vec<bool>,
    switched: Vec<u64>,
    links: [Option<Link>; 2],
    carried: [Vec<usize>; 2],
    listener: Option<Listener>,
    address: std::net::SocketAddr,
    committed: Vec<Committed>,
    waiting: Vec<Waits>,
    log: Vec<String>,
    ending: bool,
}

impl Chaos {
    fn new(seed: u64) -> Chaos {
        let dir = tempfile::tempdir().unwrap();
        let region = |name: &str| Some(Arc::new(Region::create(Chaos::options(&dir, name), ()).unwrap()));
        let (west, east) = (region("west"), region("east"));
        let accounts: Vec<AccountId> = (0..ACCOUNTS)
            .map(|at| west.as_ref().unwrap().create_account(&format!("a{at}"), Ack::Quorum).unwrap())
            .collect();
        let contract = Contract { most: Duration::ZERO, then: Gate::Wait };
        west.as_ref().unwrap().set_account_contract("a0", Some(contract)).unwrap();
        let address = {
            let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            probe.local_addr().unwrap()
        };
        Chaos {
            dir,
            rng: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            seed,
            west,
            east,
            accounts,
            lanes: vec![0, 0, 1, 1, 0],
            on: vec![true; ACCOUNTS],
            switched: vec![0; ACCOUNTS],
            links: [None, None],
            carried: [Vec::new(), Vec::new()],
            listener: None,
            address,
            committed: Vec::new(),
            waiting: Vec::new(),
            log: Vec::new(),
            ending: false,
        }
    }

    fn options(dir: &TempDir, name: &str) -> meridian::Options {
        let mut options = region_options(&dir.path().join(name));
        options.segment_bytes = 256 << 10;
        options.transaction_bytes = 64 << 10;
        options.block_bytes = 16 << 10;
        options
    }

    fn note(&mut self, what: String) {
        self.log.push(what);
    }

    fn west(&self) -> &Arc<Region> {
        self.west.as_ref().unwrap()
    }

    fn east(&self) -> &Arc<Region> {
        self.east.as_ref().unwrap()
    }

    fn step(&mut self) {
        let what = self.rng.below(100);
        let account = self.rng.below(ACCOUNTS as u64) as usize;
        match what {
            0..40 => self.write(account),
            40..50 => {
                let on = self.rng.below(2) == 0;
                self.switch(account, on);
                if self.rng.below(2) == 0 {
                    self.write(account);
                    self.switch(account, !on);
                }
            }
            50..51 if account > 0 => {
                self.note(format!("read access of {account}"));
                let on = self.rng.below(2) == 0;
                self.west().set_account_read_access(&format!("a{account}"), on).unwrap();
            }
            51..52 if account > 0 => {
                let contract = Contract { most: Duration::from_millis(20), then: Gate::Throttle };
                let contract = Some(contract).filter(|_| self.links[self.lanes[account]].is_some());
                self.note(format!("contract of {account} {contract:?}"));
                self.west().set_account_contract(&format!("a{account}"), contract).unwrap();
                self.west().set_account_contract(&format!("a{account}"), None).unwrap();
            }
            50..55 => {
                self.note(format!("fence {account}"));
                self.west().fence_account(&format!("a{account}")).unwrap();
            }
            55..65 => {
                let lane = self.rng.below(2) as usize;
                self.stop(lane);
            }
            65..80 => {
                let lane = self.rng.below(2) as usize;
                self.start(lane);
            }
            80..83 => {
                self.stop(0);
                self.stop(1);
                let lane = self.rng.below(2) as usize;
                self.note(format!("account {account} goes by {lane}"));
                self.lanes[account] = lane;
            }
            83..86 => self.hang_up(),
            86..90 => self.listen(),
            90..93 => {
                let first = self.west().trim(Lsn::MAX).unwrap();
                self.note(format!("west begins at {first}"));
            }
            93..95 => {
                let first = self.east().trim(Lsn::MAX).unwrap();
                self.note(format!("east begins at {first}"));
            }
            95..96 => self.reopen_west(),
            96..97 => self.reopen_east(),
            _ => std::thread::sleep(Duration::from_millis(self.rng.below(30))),
        }
        self.look();
    }

    fn write(&mut self, account: usize) {
        let count = self.rng.below(30);
        self.note(format!("{count} writes to {account}"));
        let mut tickets = Vec::new();
        for _ in 0..count {
            let partition = PartitionId(u128::from(self.rng.below(4)));
            let mut transaction = Transaction::new(self.accounts[account], partition).client(ClientId::NONE, 0);
            for _ in 0..=self.rng.below(3) {
                transaction = transaction.record(vec![7; self.rng.below(3000) as usize]);
            }
            let ticket = self.west().submit(transaction).unwrap();
            tickets.push((account, partition, self.switched[account], ticket));
        }
        if account == 0 {
            self.waiting.extend(tickets);
            return;
        }
        for (account, partition, switched, ticket) in tickets {
            let receipt = ticket.wait().unwrap();
            if self.rng.below(5) > 0 {
                continue;
            }
            let time = self.west().read(receipt.lsn).ok().map(|block| block.transaction(receipt.lsn).unwrap().time());
            if let Some(time) = time {
                self.committed.push(Committed { account, partition, sequence: receipt.first_sequence, time, switched });
            }
        }
    }

    fn switch(&mut self, account: usize, on: bool) {
        self.note(format!("{account} {}", if on { "on" } else { "off" }));
        self.west().set_account_geo(&format!("a{account}"), on).unwrap();
        if self.on[account] != on {
            self.switched[account] += 1;
        }
        self.on[account] = on;
    }

    fn stop(&mut self, lane: usize) {
        if let Some(link) = self.links[lane].take() {
            self.note(format!("stop {lane}"));
            link.stop();
        }
    }

    fn start(&mut self, lane: usize) {
        let carried: Vec<usize> = (0..ACCOUNTS).filter(|at| self.lanes[*at] == lane).collect();
        if self.links[lane].is_some() || carried.is_empty() {
            return;
        }
        let retention_bytes = [None, Some(300 << 10)][self.rng.below(2) as usize];
        let bootstrap_bytes_per_second = [None, None, Some(500 << 10)][self.rng.below(3) as usize];
        self.note(format!("start {lane} with {carried:?}, {retention_bytes:?}, {bootstrap_bytes_per_second:?}"));
        let address = match self.rng.below(if self.ending { 1 } else { 4 }) {
            0 | 1 => self.address,
            2 => slow_proxy(self.address, 20 << 20),
            _ => {
                let base = self.rng.below(20_000);
                cutting_proxy(self.address, Arc::default(), move |number| 400 + (base + number * 7919) % 40_000)
            }
        };
        let options = LinkOptions {
            lane: lane as u32,
            accounts: carried.iter().map(|at| self.accounts[*at]).collect(),
            batch_bytes: [1000, 20_000, 1 << 20][self.rng.below(3) as usize],
            retention_bytes,
            bootstrap_bytes_per_second,
            ..link_options(address, self.accounts[0])
        };
        self.links[lane] = Some(Link::start(Arc::clone(self.west()), options).unwrap());
        self.carried[lane] = carried;
    }

    fn hang_up(&mut self) {
        if let Some(listener) = self.listener.take() {
            self.note("hang up".into());
            listener.stop();
        }
    }

    fn listen(&mut self) {
        if self.listener.is_none() {
            self.note("listen".into());
            let window = [3000, 60_000, 256 << 20][self.rng.below(3) as usize];
            let options = ListenerOptions { address: self.address, window, ..listener_options() };
            let mut listener = None;
            until("the address", || {
                listener = Listener::bind(Arc::clone(self.east.as_ref().unwrap()), options.clone()).ok();
                listener.is_some()
            });
            self.listener = listener;
        }
    }

    fn reopen_west(&mut self) {
        self.note("reopen west".into());
        self.stop(0);
        self.stop(1);
        // What waits is not answered any more.
        let west = Arc::into_inner(self.west.take().unwrap()).expect("nobody else has it");
        west.close().unwrap();
        for (.., ticket) in self.waiting.drain(..) {
            drop(ticket.wait());
        }
        self.west = Some(Arc::new(Region::open(Chaos::options(&self.dir, "west"), ()).unwrap()));
    }

    fn reopen_east(&mut self) {
        self.note("reopen east".into());
        self.hang_up();
        let east = Arc::into_inner(self.east.take().unwrap()).expect("nobody else has it");
        east.close().unwrap();
        self.east = Some(Arc::new(Region::open(Chaos::options(&self.dir, "east"), ()).unwrap()));
    }

    fn fail(&self, what: &str) -> ! {
        let from = self.log.len().saturating_sub(60);
        panic!("seed {}: {what}\n{}", self.seed, self.log[from..].join("\n"));
    }

    fn look(&mut self) {
        for lane in 0..2 {
            let Some(link) = &self.links[lane] else { continue };
            let status = link.status();
            // Where a greeting came late, the lane takes its accounts back.
            if let Some(ended) =
                status.ended.as_ref().filter(|ended| ended.contains("refused:") && !ended.contains("another lane"))
            {
                self.fail(&format!("lane {lane}: {ended}"));
            }
            if !status.differ.is_empty() || !status.differed.is_empty() {
                self.fail(&format!("lane {lane}: {:?} {:?}", status.differ, status.differed));
            }
            for committed in self.committed.iter().filter(|committed| committed.time <= status.last_sync_time) {
                let Committed { account, partition, sequence, switched, .. } = *committed;
                if !self.carried[lane].contains(&account) || switched != self.switched[account] || !self.on[account] {
                    continue;
                }
                let next = self.east().partition_digest(self.accounts[account], partition).unwrap().0;
                if next <= sequence {
                    self.fail(&format!("lane {lane} claims {sequence} of {account}/{partition:?}, which is at {next}"));
                }
            }
        }
        let mut left = Vec::new();
        for (account, partition, switched, mut ticket) in std::mem::take(&mut self.waiting) {
            let Some(answer) = ticket.wait_timeout(Duration::from_micros(1)) else {
                left.push((account, partition, switched, ticket));
                continue;
            };
            // One that was off when it was admitted waited for nothing.
            if let Ok(receipt) = answer
                && switched == self.switched[account]
                && self.on[account]
            {
                let next = self.east().partition_digest(self.accounts[account], partition).unwrap().0;
                if next <= receipt.first_sequence {
                    self.fail(&format!("answered at {}, and {partition:?} is at {next} there", receipt.first_sequence));
                }
            }
        }
        self.waiting = left;
    }

    fn end(mut self) {
        self.note("the end".into());
        self.ending = true;
        for account in 0..ACCOUNTS {
            self.west().set_account_read_access(&format!("a{account}"), true).unwrap();
            self.switch(account, true);
        }
        for lane in 0..2 {
            self.stop(lane);
        }
        self.listen();
        for lane in 0..2 {
            self.start(lane);
        }
        let start = std::time::Instant::now();
        loop {
            self.look();
            let whole = self.is_whole();
            if whole && self.waiting.is_empty() {
                break;
            }
            if start.elapsed() > Duration::from_secs(40) {
                let status: Vec<_> = self
                    .links
                    .iter()
                    .flatten()
                    .map(|link| {
                        let status = link.status();
                        format!(
                            "{:?} {:?} {:?} {} {:?}",
                            status.state, status.cause, status.ended, status.sessions, status.position
                        )
                    })
                    .collect();
                self.fail(&format!("never whole: {whole} {} {status:?}", self.waiting.len()));
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        for (at, account) in self.accounts.iter().enumerate() {
            for partition in (0..4).map(PartitionId) {
                let read = |region: &Region| {
                    let mut reader = region.partition(*account, partition, 0);
                    reader.skip_trimmed().unwrap();
                    let from = reader.position();
                    let all: Vec<Vec<u8>> = reader.map(|view| view.unwrap().transaction().bytes().to_vec()).collect();
                    (from, all)
                };
                let ((west_from, west), (east_from, east)) = (read(self.west()), read(self.east()));
                let common = west.len().min(east.len());
                if west[west.len() - common..] != east[east.len() - common..] {
                    self.fail(&format!(
                        "{at}/{partition:?} differs: {west_from} {} {east_from} {}",
                        west.len(),
                        east.len()
                    ));
                }
            }
        }
    }

    fn is_whole(&self) -> bool {
        let roles: BTreeMap<AccountId, Role> =
            self.east().accounts().unwrap().into_iter().map(|known| (known.id, known.role)).collect();
        self.links
            .iter()
            .flatten()
            .all(|link| link.status().state == LinkState::Live && link.status().last_sync_time > 0)
            && self.accounts.iter().all(|account| {
                roles.get(account) == Some(&Role::Secondary)
                    && self.west().digest(*account).unwrap() == self.east().digest(*account).unwrap()
            })
    }
}

#[test]
fn several_accounts_over_several_lanes_are_made_whole_whatever_is_done_to_them() {
    let number = |name, usual| std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(usual);
    let (from, count): (u64, u64) = (number("MERIDIAN_FIRST_SEED", 0), number("MERIDIAN_CHAOS", 3));
    for seed in from..from + count {
        let mut chaos = Chaos::new(seed);
        for _ in 0..150 {
            chaos.step();
        }
        chaos.end();
    }
}
