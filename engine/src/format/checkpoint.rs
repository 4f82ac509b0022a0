//! The checkpoint: the engine's own state after all segments below one. Derived: rebuilt from the log if lost.

use rkyv::{Archive, Deserialize, Serialize};

use super::archive::{Kind, open_file, seal_file, unarchive};
use super::index::{StoredClient, StoredSystem};
use super::{ClientCommit, Result, SystemState};
use crate::geo::Digest;
use crate::types::{AccountId, LogId, PartitionId, SegmentId};

/// The engine's state after all segments below `next_segment`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log.
    pub log: LogId,
    /// The first segment that it does not cover.
    pub next_segment: SegmentId,
    /// The checksum of the last block before it, 0 where there is none: which history of the log it
    /// belongs to.
    pub chain: u64,
    /// What the system records up to there came to.
    pub system: SystemState,
    /// The partitions that ever had a record.
    pub partitions: Vec<PartitionRecord>,
    /// The remembered commits of each client.
    pub clients: Vec<ClientCommit>,
}

/// A partition's place in its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionRecord {
    /// The account that owns it.
    pub account: AccountId,
    /// The partition.
    pub partition: PartitionId,
    /// The sequence that its next record gets.
    pub next_sequence: u64,
    /// Of all its records, the trimmed ones included.
    pub digest: Digest,
    /// The segment in which its copy began anew for the last time: what lies before is void. 0 when it never did.
    pub restarted: SegmentId,
}

impl Checkpoint {
    /// The whole file, a multiple of [`ALIGN`](super::ALIGN) long.
    ///
    /// # Panics
    /// In debug builds, if an account's name is too long.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        debug_assert_eq!(self.check(), Ok(()), "a checkpoint that no decoder accepts");
        seal_file(Kind::Checkpoint, self.log, self.next_segment, &Stored::from(self))
    }

    /// Reads the file at the start of `bytes`, which may be longer than it.
    ///
    /// # Errors
    /// When anything is wrong: too few bytes, magic, version, kind, checksum, non-zero padding, the archive, a
    /// field out of its limits.
    pub fn decode(bytes: &[u8]) -> Result<Checkpoint> {
        let file = open_file(bytes, Kind::Checkpoint)?;
        let stored: Stored = unarchive(file.payload, "checkpoint: archive")?;
        let checkpoint = Checkpoint {
            log: file.log,
            next_segment: file.segment,
            chain: stored.chain,
            system: stored.system.restore()?,
            partitions: stored.partitions.iter().map(PartitionRecord::from).collect(),
            clients: stored.clients.iter().map(ClientCommit::from).collect(),
        };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    fn check(&self) -> Result<()> {
        self.system.check()
    }
}

/// The payload as archived, version 3.
#[derive(Archive, Serialize, Deserialize)]
struct Stored {
    chain: u64,
    system: StoredSystem,
    partitions: Vec<StoredPartition>,
    clients: Vec<StoredClient>,
}

#[derive(Archive, Serialize, Deserialize)]
struct StoredPartition {
    partition: u128,
    account: u64,
    next_sequence: u64,
    sum: u128,
    records: u64,
    restarted: u32,
}

impl From<&Checkpoint> for Stored {
    fn from(checkpoint: &Checkpoint) -> Stored {
        Stored {
            chain: checkpoint.chain,
            system: StoredSystem::from(&checkpoint.system),
            partitions: checkpoint.partitions.iter().map(StoredPartition::from).collect(),
            clients: checkpoint.clients.iter().map(StoredClient::from).collect(),
        }
    }
}

impl From<&PartitionRecord> for StoredPartition {
    fn from(record: &PartitionRecord) -> StoredPartition {
        let PartitionRecord { account, partition, next_sequence, digest: Digest { sum, records }, restarted } = *record;
        let (partition, account, restarted) = (partition.0, account.0, restarted.0);
        StoredPartition { partition, account, next_sequence, sum, records, restarted }
    }
}

impl From<&StoredPartition> for PartitionRecord {
    fn from(stored: &StoredPartition) -> PartitionRecord {
        let StoredPartition { partition, account, next_sequence, sum, records, restarted } = *stored;
        let (account, partition) = (AccountId(account), PartitionId(partition));
        let (digest, restarted) = (Digest { sum, records }, SegmentId(restarted));
        PartitionRecord { account, partition, next_sequence, digest, restarted }
    }
}
