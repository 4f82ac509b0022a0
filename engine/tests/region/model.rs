//! The log against a reference model: random commits, retries, trims, fences, reads, lost and returned disks, crashes and openings.
//!
//! The model is a list of what was acknowledged. After each step the region must show exactly that list from its first retained
//! position on, however it is asked. `PROPTEST_CASES` sets how many runs there are.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use meridian::{
    AccountId, Ack, ClientId, DiskState, DriverChoice, Error, ErrorKind, Lsn, Options, PartitionId, Receipt, Region,
    Transaction,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

use crate::common::{Memory, options};

const PARTITIONS: u128 = 4;
/// How many of a client's sequences the region remembers.
const WINDOW: usize = 6;

#[derive(Clone, Debug)]
enum Step {
    /// Transactions handed over together: partition, client (0 for none), records as lengths.
    Commit(Vec<(u128, u128, Vec<usize>)>),
    /// One of a client's latest transactions once more.
    Retry { client: u128, back: usize },
    /// Trim this part of what is retained, in percent.
    Trim(u64),
    /// A new account epoch; what names the old one is refused.
    Fence,
    /// Read a partition from this part of it, in percent.
    Read { partition: u128, from: u64 },
    /// Close and open.
    Reopen,
    /// The power goes while nothing is in flight: the disks as they are then are opened.
    Crash,
    /// A disk fails while the region is open, and comes back some steps later.
    Lose(usize),
    /// A disk is away at an opening, and back, stale, at a later one.
    Away(usize),
    /// A lost disk comes back, as it was or as an empty one.
    Return { replace: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let transaction = (0..PARTITIONS, 0..3u128, prop::collection::vec(1..3000usize, 1..5));
    prop_oneof![
        8 => prop::collection::vec(transaction, 1..30).prop_map(Step::Commit),
        2 => (1..3u128, 0..WINDOW).prop_map(|(client, back)| Step::Retry { client, back }),
        2 => (0..=100u64).prop_map(Step::Trim),
        1 => Just(Step::Fence),
        2 => (0..PARTITIONS, 0..=110u64).prop_map(|(partition, from)| Step::Read { partition, from }),
        2 => Just(Step::Reopen),
        1 => Just(Step::Crash),
        1 => (0..4usize).prop_map(Step::Lose),
        1 => (0..4usize).prop_map(Step::Away),
        3 => any::<bool>().prop_map(|replace| Step::Return { replace }),
    ]
}

/// One acknowledged transaction.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    lsn: Lsn,
    partition: u128,
    first_sequence: u64,
    records: Vec<Vec<u8>>,
}

impl Entry {
    fn end(&self) -> u64 {
        self.first_sequence + self.records.len() as u64
    }

    fn of(transaction: &meridian::Committed<'_>) -> Entry {
        Entry {
            lsn: transaction.lsn(),
            partition: transaction.partition().0,
            first_sequence: transaction.first_sequence(),
            records: transaction.records().map(|(_, record)| record.to_vec()).collect(),
        }
    }
}

/// Where a disk that does not count is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lost {
    /// Given up; its directory is still in place.
    Failed(usize),
    /// Its directory is elsewhere.
    Away(usize),
}

struct World {
    root: TempDir,
    options: Options,
    /// Which copy of the disks' directories is in use: each crash makes another.
    life: u32,
    region: Option<Region>,
    account: AccountId,
    epoch: u64,
    committed: Vec<Entry>,
    /// Each client's latest transactions with their receipts, and its next sequence.
    clients: BTreeMap<u128, (Vec<(Transaction, Receipt)>, u64)>,
    first: Lsn,
    lost: Option<Lost>,
    made: u64,
}

impl World {
    fn new(disks: usize, hot_bytes: usize, index_cache_bytes: usize) -> World {
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() };
        let mut options = options(&root, disks);
        options.driver = DriverChoice::Threads;
        options.segment_bytes = 64 << 10;
        options.block_bytes = 16 << 10;
        options.transaction_bytes = 16 << 10;
        options.client_window = WINDOW;
        options.hot_bytes = hot_bytes;
        options.index_cache_bytes = index_cache_bytes;
        let region = Region::create(options.clone(), ()).unwrap();
        let account = region.create_account("model", Ack::Quorum).unwrap();
        World {
            root,
            options,
            life: 0,
            region: Some(region),
            account,
            epoch: 1,
            committed: Vec::new(),
            clients: BTreeMap::new(),
            first: Lsn::ZERO,
            lost: None,
            made: 0,
        }
    }

    fn region(&self) -> &Region {
        self.region.as_ref().unwrap()
    }

    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(30), "{what}: {:?}", self.region().health());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Commit(transactions) => self.commit(transactions),
            Step::Retry { client, back } => self.retry(*client, *back),
            Step::Trim(percent) => self.trim(*percent),
            Step::Fence => {
                self.region().fence_account("model").unwrap();
                let old = Transaction::new(self.account, PartitionId(0)).record("x").account_epoch(self.epoch);
                assert_eq!(self.region().commit(old).unwrap_err().kind(), ErrorKind::Fenced);
                self.epoch += 1;
            }
            Step::Read { partition, from } => self.read(*partition, *from),
            Step::Reopen => self.reopen(),
            Step::Crash => self.crash(),
            Step::Lose(disk) => self.lose(*disk),
            Step::Away(disk) => self.away(*disk),
            Step::Return { replace } => self.bring_back(*replace),
        }
    }

    /// A transaction whose bytes are like no other's.
    fn make(&mut self, partition: u128, client: u128, lengths: &[usize]) -> (Transaction, Vec<Vec<u8>>) {
        let mut transaction = Transaction::new(self.account, PartitionId(partition)).account_epoch(self.epoch);
        let mut records = Vec::new();
        for &len in lengths {
            self.made += 1;
            let record: Vec<u8> = self.made.to_le_bytes().into_iter().cycle().take(len.max(8)).collect();
            transaction = transaction.record(record.clone());
            records.push(record);
        }
        if client > 0 {
            let next = &mut self.clients.entry(client).or_default().1;
            transaction = transaction.client(ClientId(client), *next);
            *next += 1;
        }
        (transaction, records)
    }

    fn commit(&mut self, transactions: &[(u128, u128, Vec<usize>)]) {
        let mut waiting = Vec::new();
        for (partition, client, lengths) in transactions {
            let (transaction, records) = self.make(*partition, *client, lengths);
            let ticket = self.region().submit(transaction.clone()).unwrap();
            waiting.push((ticket, transaction, *partition, *client, records));
        }
        for (ticket, transaction, partition, client, records) in waiting {
            let receipt = ticket.wait().unwrap();
            assert!(!receipt.repeated && receipt.records as usize == records.len());
            let first_sequence = receipt.first_sequence;
            self.committed.push(Entry { lsn: receipt.lsn, partition, first_sequence, records });
            if let Some((latest, _)) = self.clients.get_mut(&client) {
                latest.push((transaction, receipt));
                if latest.len() > WINDOW {
                    latest.remove(0);
                }
            }
        }
        assert!(self.committed.is_sorted_by(|one, next| one.lsn < next.lsn), "acknowledged in log order");
    }

    fn retry(&mut self, client: u128, back: usize) {
        let Some((latest, _)) = self.clients.get(&client) else { return };
        let Some((transaction, first)) = latest.iter().rev().nth(back) else { return };
        // Under its own account epoch it would be fenced by now.
        let again = self.region().commit(transaction.clone().account_epoch(self.epoch)).unwrap();
        assert_eq!(again, Receipt { repeated: true, ..*first });
    }

    fn trim(&mut self, percent: u64) {
        let at = self.committed.len() * percent as usize / 100;
        let to = self.committed.get(at).map_or(Lsn::MAX, |entry| entry.lsn);
        let first = self.region().trim(to).unwrap();
        let most = to.segment().max(self.first.segment());
        assert!(first >= self.first && first.segment() <= most, "{first} of {to}");
        self.first = first;
    }

    fn read(&self, partition: u128, percent: u64) {
        let all: Vec<&Entry> = self.committed.iter().filter(|entry| entry.partition == partition).collect();
        let next = all.last().map_or(0, |entry| entry.end());
        let from = next * percent / 100;
        let mut reader = self.region().partition(self.account, PartitionId(partition), from);
        let mut expected: Vec<&Entry> = all.into_iter().filter(|entry| entry.end() > from).collect();
        if expected.first().is_some_and(|entry| entry.lsn < self.first) {
            let error = reader.try_next().err().expect("it was trimmed");
            assert_eq!(error.kind(), ErrorKind::Trimmed, "{error}");
            expected.retain(|entry| entry.lsn >= self.first);
            let begins = expected.first().map_or(next, |entry| entry.first_sequence);
            assert_eq!(reader.skip_trimmed().unwrap(), begins);
        }
        let read: Vec<Entry> = reader.map(|view| Entry::of(&view.unwrap().transaction())).collect();
        assert!(read.iter().eq(expected), "partition {partition} from {from}");
    }

    /// Everything that can be asked.
    fn check(&self) {
        let retained = || self.committed.iter().filter(|entry| entry.lsn >= self.first);
        let mut subscription = self.region().subscribe(Lsn::ZERO);
        let mut read = Vec::new();
        while let Some(block) = subscription.try_next().unwrap() {
            read.extend(block.transactions().filter(|each| !each.is_system()).map(|each| Entry::of(&each)));
        }
        assert!(read.iter().eq(retained()), "{} transactions, {} expected", read.len(), retained().count());
        for partition in 0..PARTITIONS {
            self.read(partition, 0);
            let last = self.committed.iter().rfind(|entry| entry.partition == partition);
            let next = self.region().next_sequence(self.account, PartitionId(partition)).unwrap();
            assert_eq!(next, last.map_or(0, Entry::end));
        }
        for entry in retained().step_by(7) {
            let block = self.region().read(entry.lsn).unwrap();
            assert_eq!(&Entry::of(&block.transaction(entry.lsn).unwrap()), entry);
        }
        let accounts = self.region().accounts().unwrap();
        assert_eq!((accounts.len(), accounts[0].epoch), (1, self.epoch));
    }

    /// Opens, hands everything to a machine, checks what it was handed.
    fn open(&mut self) {
        let memory = Memory::default();
        self.region = Some(Region::open(self.options.clone(), memory.clone()).unwrap());
        let retained = self.committed.iter().filter(|entry| entry.lsn >= self.first);
        let seen = memory.0.lock().unwrap().clone();
        let seen = seen.into_iter().map(|(lsn, partition, first_sequence, records)| Entry {
            lsn,
            partition,
            first_sequence,
            records,
        });
        assert!(seen.eq(retained.cloned()), "the replay");
        if !matches!(self.lost, Some(Lost::Away(_))) {
            // One that had failed is reread at an opening.
            self.lost = None;
            self.until("all disks healthy", || self.all_healthy());
        }
    }

    fn all_healthy(&self) -> bool {
        let health = self.region().health().unwrap();
        health.is_whole() && health.disks.iter().all(|disk| disk.state == DiskState::Healthy)
    }

    fn reopen(&mut self) {
        self.region.take().unwrap().close().unwrap();
        self.open();
    }

    fn crash(&mut self) {
        if self.lost.is_some() {
            return;
        }
        // Writing of pages and indexes goes on behind a commit: a copy of the files is that of one moment only without it.
        self.until("all disks healthy", || self.all_healthy());
        std::thread::sleep(Duration::from_millis(5));
        self.life += 1;
        for (at, disk) in self.options.disks.iter_mut().enumerate() {
            let to = self.root.path().join(format!("life-{}-disk-{at}", self.life));
            std::fs::create_dir(&to).unwrap();
            for entry in std::fs::read_dir(&disk.path).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
            disk.path = to;
        }
        drop(self.region.take());
        self.open();
    }

    fn lose(&mut self, disk: usize) {
        if self.lost.is_some() || disk >= self.options.disks.len() {
            return;
        }
        self.until("all disks healthy", || self.all_healthy());
        self.region().fail_disk(disk).unwrap();
        self.lost = Some(Lost::Failed(disk));
    }

    fn away(&mut self, disk: usize) {
        if self.lost.is_some() || disk >= self.options.disks.len() {
            return;
        }
        self.until("all disks healthy", || self.all_healthy());
        self.region.take().unwrap().close().unwrap();
        let path = &self.options.disks[disk].path;
        std::fs::rename(path, path.with_extension("away")).unwrap();
        self.lost = Some(Lost::Away(disk));
        self.open();
    }

    fn bring_back(&mut self, replace: bool) {
        let Some(lost) = self.lost else { return };
        match lost {
            Lost::Away(disk) => {
                let path = self.options.disks[disk].path.clone();
                self.region.take().unwrap().close().unwrap();
                std::fs::rename(path.with_extension("away"), &path).unwrap();
                self.lost = None;
                self.open();
            }
            Lost::Failed(disk) => {
                if replace {
                    // The directory of a lost disk is taken away as a person would take the disk.
                    let path = &self.options.disks[disk].path;
                    std::fs::rename(path, path.with_extension(format!("gone-{}", self.made))).unwrap();
                    std::fs::create_dir(path).unwrap();
                }
                self.until("the disk is taken back", || {
                    let taken = match replace {
                        true => self.region().replace_disk(disk),
                        false => self.region().return_disk(disk),
                    };
                    taken.map_err(|error: Error| assert_eq!(error.kind(), ErrorKind::Busy, "{error}")).is_ok()
                });
                self.lost = None;
                self.until("all disks healthy", || self.all_healthy());
            }
        }
    }
}

#[test]
fn the_log_is_what_a_list_of_the_acknowledged_transactions_says() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(12);
    let config = Config { cases, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let memory = prop_oneof![Just((0, 0)), Just((64 << 10, 4 << 10)), Just((64 << 20, 64 << 20))];
    let runs = (3..5usize, memory, prop::collection::vec(step(), 10..40));
    let result = TestRunner::new(config).run(&runs, |(disks, (hot_bytes, index_cache_bytes), steps)| {
        let mut world = World::new(disks, hot_bytes, index_cache_bytes);
        for step in &steps {
            world.take(step);
            world.check();
        }
        world.bring_back(false);
        world.reopen();
        world.check();
        let report = world.region().scrub().unwrap();
        prop_assert_eq!((report.corrupt, report.lost.len()), (0, 0));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
