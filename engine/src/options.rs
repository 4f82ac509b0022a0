//! What a region is opened with, and the bounds that it keeps.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::format::{ALIGN, BLOCK_HEADER, DATA_START, MAX_BLOCK};
use crate::io::{DriverChoice, MAX_STACKS, MAX_STUCK};
use crate::read::ReadAhead;

/// One disk of a region: a directory, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The directory; the region owns everything in it. A relative path is taken from the working directory of the moment in which the
    /// region is created or opened: it names the same directory as long as the region is open, wherever the process goes.
    /// No disk's directory may be another disk's, or inside it, by whatever names (acceptance H4).
    pub path: PathBuf,
    /// What fails together: no two copies share one (acceptance L1). 1 to 64 letters, digits, `-`, `_` or `.`.
    pub fault_domain: String,
    /// What is taken down together for maintenance: no two copies share one (acceptance L1, L7).
    pub upgrade_domain: String,
    /// The zone (acceptance L2).
    pub zone: String,
}

/// Bytes of a checkpoint or an index: their archives have offsets of 32 bits.
const DERIVED_MOST: u64 = (2 << 30) - (1 << 20);

impl DiskConfig {
    /// A disk that is a fault domain and an upgrade domain of its own, named `name`, in the zone `zone`.
    #[must_use]
    pub fn new(path: impl AsRef<Path>, name: &str, zone: &str) -> DiskConfig {
        DiskConfig {
            path: path.as_ref().to_owned(),
            fault_domain: name.to_owned(),
            upgrade_domain: name.to_owned(),
            zone: zone.to_owned(),
        }
    }
}

/// Where the copies of a set may lie (acceptance L2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Placement {
    /// Locally redundant: three fault and upgrade domains of one zone.
    #[default]
    OneZone,
    /// Zone-redundant: three zones.
    ThreeZones,
}

/// How a region is opened. Every queue, cache and table of the engine has its bound here; [`Options::memory_bound`] adds them up.
///
/// ```
/// use meridian::{DiskConfig, Options};
/// let disks = ["a", "b", "c"].map(|name| DiskConfig::new(format!("/mnt/{name}"), name, "zone-1"));
/// let options = Options::new(disks.to_vec());
/// options.validate()?;
/// assert!(options.memory_bound() < 1 << 30);
/// # Ok::<(), meridian::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    /// The disks, three to sixteen. A region keeps the number that it was made with: one can be replaced
    /// ([`Region::replace_disk`](crate::Region::replace_disk)), none added. More than half of them have to be there: three and four disks bear the
    /// loss of one at a time, five and six of two, the second after what the first had was rebuilt.
    pub disks: Vec<DiskConfig>,
    /// Where the copies of a set may lie. Fixed at creation by the labels; checked at each open.
    pub placement: Placement,
    /// Which I/O back end to use. Default: io_uring where the system allows it, else threads.
    pub driver: DriverChoice,
    /// Bytes of a segment file, a multiple of 4096 between 64 KiB and 2 GiB. Fixed at creation. Default 64 MiB.
    pub segment_bytes: u32,
    /// Bytes of the largest block that gathers small transactions, 8 KiB to 4 MiB. Default 1 MiB.
    pub block_bytes: usize,
    /// Bytes of the largest transaction, with its header, 256 to 64 MiB less 4096. Default 4 MiB and 64 KiB: an entity group of 4 MiB fits.
    pub transaction_bytes: usize,
    /// Blocks that may be on their way to the disks before the oldest is committed, 1 to 64. Default 4.
    pub commit_depth: usize,
    /// Transactions accepted but not yet acknowledged, 1 to 1,048,576; up to 64 questions of the region's own methods come on top. Default 16,384.
    pub queue_transactions: usize,
    /// Bytes accepted but not yet acknowledged, at least `transaction_bytes` and less than 1 TiB. Default 64 MiB.
    pub queue_bytes: usize,
    /// Bytes of committed blocks kept in memory for tail subscribers, at most 1 TiB. Default 64 MiB.
    pub hot_bytes: usize,
    /// Bytes of segment indexes kept in memory for readers of partitions: directories, and pages of
    /// 32 KiB (ADR 0024). At most 1 TiB, default 64 MiB. What is not kept is read again, a page at a time.
    pub index_cache_bytes: usize,
    /// A copy that has not completed a write for so long has stalled and is replaced (acceptance L4). It begins anew when the
    /// process was suspended meanwhile. 1 ms to a day, default 5 s: a virtual disk may stand still for a second.
    pub stall_timeout: Duration,
    /// A copy that lacks so many bytes of what is committed has stalled and is replaced, or the log waits for it where it
    /// cannot be spared. From the largest block to 1 TiB, default 64 MiB.
    pub lag_bytes: usize,
    /// Accounts that can exist, 1 to 16,777,216. Default 65,536. What they, partitions and the clients' windows come to when all are full
    /// has to fit a checkpoint of 2 GiB: 208 bytes an account, 96 a partition, 96 a remembered sequence.
    pub max_accounts: usize,
    /// Partitions that can exist, 1 to 16,777,216; about 260 bytes of memory each. Default 1,048,576.
    pub max_partitions: usize,
    /// Clients with remembered sequences in all accounts together, copies included, at most
    /// 1,048,576; the same [`ClientId`](crate::ClientId) in two accounts counts twice. At the bound
    /// new ones are refused with [`LimitReached`](crate::ErrorKind::LimitReached). Default 4,096.
    pub max_clients: usize,
    /// What to believe when the last block's place does not verify while a disk of the set is away. By default it is taken
    /// for a torn write that was never acknowledged; were it the last flushed block, rotten, an acknowledged
    /// transaction would be lost. `true` refuses to open until the disk is back (FAULT-MODEL, "The limit that remains").
    pub strict_tail: bool,
    /// How many of its highest sequences are remembered for each client of each account (acceptance
    /// L6), 1 to 65,536. Default 256.
    pub client_window: usize,
    /// Segments kept on one disk, at least 3, beside the one that is kept free for the next opening; `None` leaves it to the
    /// space there is. With 3, each new one waits for a trim; give it more.
    pub max_segments: Option<u32>,
    /// Bytes a second that the background scrub reads on each disk; 0 switches it off. Default 8 MiB.
    pub scrub_bytes_per_second: u64,
    /// Bytes a second that a rebuild copies; 0 does not limit it. Default 128 MiB.
    pub rebuild_bytes_per_second: u64,
}

impl Options {
    /// The defaults over these disks.
    #[must_use]
    pub fn new(disks: Vec<DiskConfig>) -> Options {
        Options {
            disks,
            placement: Placement::OneZone,
            driver: DriverChoice::Auto,
            segment_bytes: 64 << 20,
            block_bytes: 1 << 20,
            transaction_bytes: (4 << 20) + (64 << 10),
            commit_depth: 4,
            queue_transactions: 16_384,
            queue_bytes: 64 << 20,
            hot_bytes: 64 << 20,
            index_cache_bytes: 64 << 20,
            stall_timeout: Duration::from_secs(5),
            lag_bytes: 64 << 20,
            max_accounts: 65_536,
            max_partitions: 1 << 20,
            max_clients: 4_096,
            client_window: 256,
            strict_tail: false,
            max_segments: None,
            scrub_bytes_per_second: 8 << 20,
            rebuild_bytes_per_second: 128 << 20,
        }
    }

    /// From now on the paths mean the same wherever the process goes.
    pub(crate) fn make_paths_absolute(&mut self) -> Result<()> {
        if self.disks.iter().all(|disk| disk.path.is_absolute()) {
            return Ok(());
        }
        // Asked once: the process may change it between two disks.
        let here = std::env::current_dir().map_err(|error| {
            Error::invalid(format!(
                "disks: a path is relative, and the working directory cannot be told ({error}): give absolute paths"
            ))
        })?;
        for disk in &mut self.disks {
            if disk.path.as_os_str().is_empty() {
                return Err(Error::invalid("disks: a path is empty: give the path of a directory"));
            }
            disk.path = here.join(&disk.path);
        }
        Ok(())
    }

    /// Checks every option.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), naming the option and what it accepts.
    pub fn validate(&self) -> Result<()> {
        if !(3..=16).contains(&self.disks.len()) {
            return Err(Error::invalid(format!("disks: {} given, 3 to 16 accepted", self.disks.len())));
        }
        for (at, disk) in self.disks.iter().enumerate() {
            for label in [&disk.fault_domain, &disk.upgrade_domain, &disk.zone] {
                check_label(label)?;
            }
            if self.disks[..at].iter().any(|other| other.path == disk.path) {
                return Err(Error::invalid(format!("disks: {} is given twice", disk.path.display())));
            }
        }
        let segment = self.segment_bytes as usize;
        let largest = padded_transaction(self.transaction_bytes).max(self.block_bytes);
        range("segment_bytes", segment, 64 << 10, 2 << 30)?;
        range("block_bytes", self.block_bytes, 2 * ALIGN, 4 << 20)?;
        range("transaction_bytes", self.transaction_bytes, 256, MAX_BLOCK - ALIGN)?;
        range("commit_depth", self.commit_depth, 1, 64)?;
        range("queue_transactions", self.queue_transactions, 1, 1 << 20)?;
        range("queue_bytes", self.queue_bytes, self.transaction_bytes, (1 << 40) - 1)?;
        range("lag_bytes", self.lag_bytes, largest, 1 << 40)?;
        range("max_accounts", self.max_accounts, 1, 1 << 24)?;
        range("max_partitions", self.max_partitions, 1, 1 << 24)?;
        range("max_clients", self.max_clients, 0, 1 << 20)?;
        range("client_window", self.client_window, 1, 1 << 16)?;
        range("hot_bytes", self.hot_bytes, 0, 1 << 40)?;
        range("index_cache_bytes", self.index_cache_bytes, 0, 1 << 40)?;
        // The active segment, the last sealed one, which is never trimmed, and the next.
        range("max_segments", self.max_segments.map_or(3, |most| most as usize), 3, u32::MAX as usize)?;
        if !segment.is_multiple_of(ALIGN) || !self.block_bytes.is_multiple_of(ALIGN) {
            return Err(Error::invalid("segment_bytes and block_bytes: multiples of 4096 accepted"));
        }
        if largest > segment - DATA_START as usize {
            return Err(Error::invalid(format!(
                "transaction_bytes: a block of {largest} does not fit segments of {segment}"
            )));
        }
        let (checkpoint, index) = self.derived_bounds();
        if checkpoint.max(index) > DERIVED_MOST {
            return Err(Error::invalid(format!(
                "max_partitions, max_accounts, max_clients x client_window, segment_bytes: a full checkpoint would take {checkpoint} \
                 bytes and a segment's index {index}, {DERIVED_MOST} accepted"
            )));
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(86_400)).contains(&self.stall_timeout) {
            return Err(Error::invalid("stall_timeout: 1 ms to a day accepted"));
        }
        Ok(())
    }

    /// The bytes of the ring that blocks lie in: the hot ones, those on their way, the open one, and what a block leaves unused at the ring's end.
    pub(crate) fn block_memory(&self) -> usize {
        self.hot_bytes + (self.commit_depth + 3) * self.block_bytes
    }

    /// The bytes of the fullest checkpoint, and of the fullest index of a segment: what each row takes as archived, or more.
    fn derived_bounds(&self) -> (u64, u64) {
        const PARTITION: u64 = 96;
        const POSTING: u64 = 12;
        const CLIENT: u64 = 96;
        const ACCOUNT: u64 = 208;
        /// Lanes and the envelope.
        const OTHERS: u64 = 1 << 20;
        let (partitions, accounts) = (self.max_partitions as u64, self.max_accounts as u64);
        let clients = self.max_clients as u64 * self.client_window as u64;
        let checkpoint = partitions * PARTITION + accounts * ACCOUNT + clients * CLIENT + OTHERS;
        // No frame is shorter than 96 bytes. Restarts hold a partition in 48.
        let (frames, restarts) = (u64::from(self.segment_bytes) / 96, u64::from(self.segment_bytes) / 48);
        let index = frames * POSTING
            + (frames.min(partitions) + restarts.min(partitions)) * PARTITION
            + frames.min(accounts) * ACCOUNT
            + frames.min(clients) * CLIENT
            + OTHERS;
        (checkpoint, index)
    }

    /// An upper bound of the engine's memory in bytes: queues, blocks in flight, hot blocks, indexes, tables, and what disks
    /// that hang keep until they answer (ADR 0020).
    ///
    /// Readers come on top: each [`Subscription`](crate::Subscription) and [`PartitionReader`](crate::PartitionReader) holds
    /// up to two mebibytes or its largest block, and a page of an index; the index of a whole segment where it is lost
    /// and made again.
    #[must_use]
    pub fn memory_bound(&self) -> u64 {
        let largest = padded_transaction(self.transaction_bytes).max(self.block_bytes);
        // What does not fit the ring (large transactions, late copies) has memory of its own.
        let blocks = self.block_memory() + (self.commit_depth + 2) * largest + self.lag_bytes;
        // A transaction waiting: its ticket, its slot in the queue, its place in the block.
        let queue = self.queue_bytes + self.queue_transactions * 512;
        // The live table and the checkpointer's; the index of a segment in the making holds 40 bytes a frame of 96.
        let tables =
            2 * (self.max_partitions * 130 + self.max_accounts * 400 + self.max_clients * self.client_window * 56);
        let indexes = self.index_cache_bytes + 3 * (self.segment_bytes as usize / 2);
        // Rebuild and scrub; the unused buffers of readers.
        let copies = 8 * (1 << 20) + ReadAhead::BOUND;
        // What disks that hang keep, of which a minority can be borne: blocks, or the mebibytes of a rebuild.
        let hanging = (self.disks.len().saturating_sub(1) / 2) * MAX_STUCK * largest.max(1 << 20);
        let threads = self.disks.len() * MAX_STACKS;
        (blocks + queue + tables + indexes + copies + hanging + threads) as u64
    }
}

/// The bytes of a block that holds one transaction of `bytes`.
pub(crate) fn padded_transaction(bytes: usize) -> usize {
    (bytes + BLOCK_HEADER).next_multiple_of(ALIGN)
}

fn range(name: &str, value: usize, least: usize, most: usize) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(format!("{name}: {value} given, {least} to {most} accepted")))
}

fn check_label(label: &str) -> Result<()> {
    let fits = (1..=64).contains(&label.len());
    if fits && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Ok(());
    }
    let label = beginning(label);
    Err(Error::invalid(format!("label {label:?}: 1 to 64 letters, digits, '-', '_' or '.' accepted")))
}

/// Account names are 1 to 128 characters without control characters.
pub(crate) fn check_account_name(name: &str) -> Result<()> {
    if (1..=128).contains(&name.len()) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    let (given, len) = (beginning(name), name.len());
    Err(Error::invalid(format!(
        "account name {given:?} of {len} bytes: 1 to 128 bytes without control characters accepted"
    )))
}

/// At most 64 bytes of what a caller gave, for messages.
fn beginning(text: &str) -> &str {
    let end = (0..=64.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Account;
    use crate::format::{
        Checkpoint, ClientCommit, CommitOutcome, IndexPartition, PartitionRecord, Posting, SegmentIndex, SystemState,
    };
    use crate::geo::Digest;
    use crate::types::{AccountId, Ack, ClientId, LogId, Lsn, PartitionId, Role, SegmentId};

    const ROWS: usize = 3000;

    fn system() -> SystemState {
        let account = |id: usize| Account {
            id: AccountId(id as u64),
            name: "n".repeat(128),
            epoch: 1,
            ack: Ack::All,
            role: Role::Primary,
            read_access: true,
            contract: None,
            lane: None,
        };
        SystemState { accounts: (0..ROWS).map(account).collect(), progress: Vec::new(), restarts: Vec::new(), time: 1 }
    }

    fn clients() -> Vec<ClientCommit> {
        let outcome = |sequence: usize| CommitOutcome {
            sequence: sequence as u64,
            partition: PartitionId(1),
            lsn: Lsn(0),
            first_sequence: 0,
            records: 1,
        };
        let commit = |sequence| ClientCommit { account: AccountId(1), client: ClientId(1), outcome: outcome(sequence) };
        (0..ROWS).map(commit).collect()
    }

    /// Options whose bounds are the rows of these tests.
    fn bounded() -> Options {
        let mut options = Options::new(Vec::new());
        (options.max_accounts, options.max_partitions) = (ROWS, ROWS);
        (options.max_clients, options.client_window) = (1, ROWS);
        options
    }

    #[test]
    fn h1_a_full_checkpoint_takes_no_more_than_its_bound() {
        let partition = |partition: usize| PartitionRecord {
            account: AccountId(1),
            partition: PartitionId(partition as u128),
            next_sequence: 1,
            digest: Digest::default(),
            restarted: SegmentId(0),
        };
        let partitions = (0..ROWS).map(partition).collect();
        let (log, next_segment) = (LogId(1), SegmentId(1));
        let full =
            Checkpoint { log, next_segment, chain: 0, system: system(), partitions, clients: clients() }.encode();
        let (bound, _) = bounded().derived_bounds();
        assert!((full.len() as u64) < bound - (1 << 20) + 4096, "{} bytes, {bound} computed", full.len());
    }

    #[test]
    fn h1_a_full_index_takes_no_more_than_its_bound() {
        let partition = |partition: usize| IndexPartition {
            account: AccountId(1),
            partition: PartitionId(partition as u128),
            first_sequence: 0,
            next_sequence: 1,
            first_posting: partition as u32,
            postings: 1,
            digest: Digest::default(),
        };
        let index = SegmentIndex {
            log: LogId(1),
            segment: SegmentId(1),
            end_chain: 0,
            partitions: (0..ROWS).map(partition).collect(),
            postings: (0..ROWS).map(|_| Posting { offset: 8192, sequence: 0 }).collect(),
            clients: clients(),
            system: system(),
        };
        let mut options = bounded();
        options.segment_bytes = 96 * ROWS as u32;
        let (full, (_, bound)) = (index.encode().len() as u64, options.derived_bounds());
        assert!(full < bound - (1 << 20) + 4096, "{full} bytes, {bound} computed");
    }

    #[test]
    fn h1_options_whose_checkpoint_or_index_would_not_fit_are_refused() {
        let disks = ["a", "b", "c"].map(|name| DiskConfig::new(format!("/{name}"), name, "zone"));
        let spoils: [fn(&mut Options); 4] = [
            |options| options.max_accounts = 1 << 24,
            |options| (options.max_clients, options.client_window) = (1 << 10, 1 << 16),
            |options| (options.max_partitions, options.max_accounts) = (1 << 24, 1 << 22),
            |options| (options.max_partitions, options.segment_bytes) = (1 << 24, 2 << 30),
        ];
        for spoil in spoils {
            let mut options = Options::new(disks.to_vec());
            options.validate().expect("the defaults fit");
            spoil(&mut options);
            let refused = options.validate().expect_err("too large together").to_string();
            assert!(refused.contains("max_partitions") && refused.contains("2146435072 accepted"), "{refused}");
        }
    }
}
