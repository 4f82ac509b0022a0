//! A pair of regions, a load, and what "equal" means.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian::geo::Lane;
use meridian::{AccountId, Ack, ClientId, Contract, DiskConfig, Lsn, Options, PartitionId, Region, Role, Transaction};
use meridian_wire::{Link, LinkOptions, LinkState, Listener, ListenerOptions, Peer};
use tempfile::TempDir;

pub(crate) const CLUSTER: &str = "test";

pub(crate) fn peer(region: &str) -> Peer {
    Peer { name: format!("{region}.meridian.test"), region: region.to_owned() }
}

pub(crate) fn region_options(dir: &Path) -> Options {
    let disks = ["disk-0", "disk-1", "disk-2"].map(|name| DiskConfig::new(dir.join(name), name, "zone-1"));
    let mut options = Options::new(disks.to_vec());
    options.segment_bytes = 1 << 20;
    options.block_bytes = 64 << 10;
    options.transaction_bytes = 128 << 10;
    options
}

/// A primary `west` with one account, and a secondary `east`.
pub(crate) struct Pair {
    pub(crate) dir: TempDir,
    pub(crate) west: Arc<Region>,
    pub(crate) east: Arc<Region>,
    pub(crate) account: AccountId,
}

impl Pair {
    pub(crate) fn new() -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let region = |name| Arc::new(Region::create(region_options(&dir.path().join(name)), ()).unwrap());
        let (west, east) = (region("west"), region("east"));
        let account = west.create_account("flights", Ack::Quorum).unwrap();
        Pair { dir, west, east, account }
    }

    pub(crate) fn listen(&self) -> Listener {
        Listener::bind(Arc::clone(&self.east), listener_options()).unwrap()
    }

    pub(crate) fn options(&self, listener: &Listener) -> LinkOptions {
        link_options(listener.local_addr(), self.account)
    }

    pub(crate) fn link(&self, options: LinkOptions) -> Link {
        Link::start(Arc::clone(&self.west), options).unwrap()
    }

    pub(crate) fn contract(&self, contract: Contract) {
        self.west.set_account_contract("flights", Some(contract)).unwrap();
    }

    /// Every frame of the account is on both sides, byte for byte and in one order.
    pub(crate) fn assert_equal(&self) {
        let (west, east) = (frames(&self.west, self.account), frames(&self.east, self.account));
        assert!(west == east, "{} frames here, {} there", west.len(), east.len());
        assert_eq!(self.west.digest(self.account).unwrap(), self.east.digest(self.account).unwrap());
    }
}

pub(crate) fn listener_options() -> ListenerOptions {
    ListenerOptions { transaction_bytes: 128 << 10, ..ListenerOptions::new(CLUSTER, "east", vec![peer("west")]) }
}

pub(crate) fn link_options(address: std::net::SocketAddr, account: AccountId) -> LinkOptions {
    LinkOptions {
        mark_interval: Duration::from_millis(10),
        longest_retry: Duration::from_millis(50),
        ..LinkOptions::new(address, CLUSTER, "west", peer("east"), vec![account])
    }
}

pub(crate) fn frames(region: &Region, account: AccountId) -> Vec<Vec<u8>> {
    let mut log = region.subscribe(Lsn::ZERO);
    let mut frames = Vec::new();
    while let Some(block) = log.try_next().unwrap() {
        let own = block.transactions().filter(|transaction| transaction.account() == account);
        frames.extend(own.map(|transaction| transaction.bytes().to_vec()));
    }
    frames
}

/// Commits transactions of one to three records to seven partitions.
pub(crate) fn fill(region: &Region, account: AccountId, transactions: u64, len: usize) {
    let tickets: Vec<_> = (0..transactions)
        .map(|number| {
            let transaction = Transaction::new(account, PartitionId(u128::from(number % 7))).client(ClientId::NONE, 0);
            let records = (0..=number % 3).map(|record| vec![(number + record) as u8; len + number as usize % 13]);
            region.submit(records.fold(transaction, |transaction, record| transaction.record(record))).unwrap()
        })
        .collect();
    for ticket in tickets {
        ticket.wait().unwrap();
    }
}

#[track_caller]
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} did not happen in 60 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn lane(primary: &Region) -> Lane {
    Lane { log: primary.log_id(), number: 0 }
}

/// Until everything that is committed now is there and can be read.
#[track_caller]
pub(crate) fn until_shipped(link: &Link, region: &Region) {
    let committed = region.committed();
    until("arrival of everything", || link.status().position >= committed && link.status().state == LinkState::Live);
}

/// What a region's readers see of ten partitions, from the first retained record of each on.
pub(crate) fn retained(region: &Region, account: AccountId) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for partition in 0..10 {
        let mut reader = region.partition(account, PartitionId(partition), 0);
        if reader.skip_trimmed().unwrap() < region.next_sequence(account, PartitionId(partition)).unwrap() {
            found.extend(reader.map(|view| view.unwrap().transaction().bytes().to_vec()));
        }
    }
    found
}

/// A link that has shipped so many transactions, and the account's name.
pub(crate) fn shipped(pair: &Pair, transactions: u64, len: usize) -> (Listener, Link, String) {
    let listener = pair.listen();
    let link = pair.link(pair.options(&listener));
    fill(&pair.west, pair.account, transactions, len);
    until_shipped(&link, &pair.west);
    (listener, link, pair.west.accounts().unwrap()[0].name.clone())
}

pub(crate) fn role(region: &Region, account: AccountId) -> Role {
    region.accounts().unwrap().into_iter().find(|known| known.id == account).unwrap().role
}
