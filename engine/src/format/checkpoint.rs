//! The checkpoint: the engine's own state after all segments below one. Derived: rebuilt from the log if lost.

use rkyv::{Archive, Deserialize, Serialize};

use super::archive::{ENVELOPE, Kind, open_file, seal_file, unarchive};
use super::codec::{at_least, at_most, expect, put, u16_at, u64_at};
use super::index::StoredClient;
use super::{ClientCommit, FormatError, Result};
use crate::types::{AccountId, LogId, PartitionId, SegmentId};

/// The most bytes of an account's name.
pub const MAX_ACCOUNT_NAME: usize = 1024;

/// The engine's state after all segments below `next_segment`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log.
    pub log: LogId,
    /// The first segment that it does not cover.
    pub next_segment: SegmentId,
    /// The accounts.
    pub accounts: Vec<AccountRecord>,
    /// The partitions that ever had a record.
    pub partitions: Vec<PartitionRecord>,
    /// The last commit of each client.
    pub clients: Vec<ClientCommit>,
}

/// An account's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountRecord {
    /// Its number.
    pub id: AccountId,
    /// Its name; at most [`MAX_ACCOUNT_NAME`] bytes.
    pub name: String,
    /// Its epoch.
    pub epoch: u64,
    /// Commits are acknowledged by all copies unless the caller says otherwise.
    pub all: bool,
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
            accounts: stored.accounts.into_iter().map(AccountRecord::from).collect(),
            partitions: stored.partitions.iter().map(PartitionRecord::from).collect(),
            clients: stored.clients.iter().map(ClientCommit::from).collect(),
        };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    fn check(&self) -> Result<()> {
        self.accounts.iter().try_for_each(|account| check_name(ENVELOPE, account.name.len()))
    }
}

fn check_name(at: usize, length: usize) -> Result<()> {
    at_most(at, "account: bytes of the name", MAX_ACCOUNT_NAME as u64, length as u64)
}

const ACCOUNT_KIND: u16 = 1;
const ACCOUNT_VERSION: u16 = 1;
const ACCOUNT_HEADER: usize = 24;
const AT_VERSION: usize = 2;
const AT_ALL: usize = 4;
const AT_RESERVED: usize = 5;
const AT_NAME: usize = 6;
const AT_ID: usize = 8;
const AT_EPOCH: usize = 16;

/// An account as the single record of a system frame, whose checksum covers it.
///
/// # Panics
/// If the name is longer than [`MAX_ACCOUNT_NAME`].
#[must_use]
pub fn encode_account(account: &AccountRecord) -> Vec<u8> {
    let name = account.name.as_bytes();
    assert!(name.len() <= MAX_ACCOUNT_NAME, "an account's name has at most {MAX_ACCOUNT_NAME} bytes");
    let mut record = vec![0; ACCOUNT_HEADER + name.len()];
    put(&mut record, 0, &ACCOUNT_KIND.to_le_bytes());
    put(&mut record, AT_VERSION, &ACCOUNT_VERSION.to_le_bytes());
    record[AT_ALL] = u8::from(account.all);
    put(&mut record, AT_NAME, &(name.len() as u16).to_le_bytes());
    put(&mut record, AT_ID, &account.id.0.to_le_bytes());
    put(&mut record, AT_EPOCH, &account.epoch.to_le_bytes());
    put(&mut record, ACCOUNT_HEADER, name);
    record
}

/// Reads an account from the single record of a system frame.
///
/// # Errors
/// When it is not exactly one account: kind, version, length, settings, or a name that is not UTF-8.
pub fn decode_account(record: &[u8]) -> Result<AccountRecord> {
    at_least(0, "account: bytes", ACCOUNT_HEADER as u64, record.len() as u64)?;
    expect(0, "account: kind of system record", u64::from(ACCOUNT_KIND), u64::from(u16_at(record, 0)))?;
    expect(AT_VERSION, "account: version", u64::from(ACCOUNT_VERSION), u64::from(u16_at(record, AT_VERSION)))?;
    at_most(AT_ALL, "account: ack level", 1, u64::from(record[AT_ALL]))?;
    expect(AT_RESERVED, "account: reserved", 0, u64::from(record[AT_RESERVED]))?;
    let length = usize::from(u16_at(record, AT_NAME));
    check_name(AT_NAME, length)?;
    expect(AT_NAME, "account: bytes of the name", (record.len() - ACCOUNT_HEADER) as u64, length as u64)?;
    let name = std::str::from_utf8(&record[ACCOUNT_HEADER..]).map_err(|error| FormatError {
        at: ACCOUNT_HEADER + error.valid_up_to(),
        what: "account: the name is UTF-8",
        expected: length as u64,
        found: error.valid_up_to() as u64,
    })?;
    Ok(AccountRecord {
        id: AccountId(u64_at(record, AT_ID)),
        name: name.to_owned(),
        epoch: u64_at(record, AT_EPOCH),
        all: record[AT_ALL] == 1,
    })
}

/// The payload as archived, version 1.
#[derive(Archive, Serialize, Deserialize)]
struct Stored {
    accounts: Vec<StoredAccount>,
    partitions: Vec<StoredPartition>,
    clients: Vec<StoredClient>,
}

#[derive(Archive, Serialize, Deserialize)]
struct StoredAccount {
    id: u64,
    name: String,
    epoch: u64,
    all: bool,
}

#[derive(Archive, Serialize, Deserialize)]
struct StoredPartition {
    partition: u128,
    account: u64,
    next_sequence: u64,
}

impl From<&Checkpoint> for Stored {
    fn from(checkpoint: &Checkpoint) -> Stored {
        Stored {
            accounts: checkpoint.accounts.iter().map(StoredAccount::from).collect(),
            partitions: checkpoint.partitions.iter().map(StoredPartition::from).collect(),
            clients: checkpoint.clients.iter().map(StoredClient::from).collect(),
        }
    }
}

impl From<&AccountRecord> for StoredAccount {
    fn from(account: &AccountRecord) -> StoredAccount {
        StoredAccount { id: account.id.0, name: account.name.clone(), epoch: account.epoch, all: account.all }
    }
}

impl From<StoredAccount> for AccountRecord {
    fn from(stored: StoredAccount) -> AccountRecord {
        let StoredAccount { id, name, epoch, all } = stored;
        AccountRecord { id: AccountId(id), name, epoch, all }
    }
}

impl From<&PartitionRecord> for StoredPartition {
    fn from(record: &PartitionRecord) -> StoredPartition {
        let PartitionRecord { account, partition, next_sequence } = *record;
        StoredPartition { partition: partition.0, account: account.0, next_sequence }
    }
}

impl From<&StoredPartition> for PartitionRecord {
    fn from(stored: &StoredPartition) -> PartitionRecord {
        let StoredPartition { partition, account, next_sequence } = *stored;
        PartitionRecord { account: AccountId(account), partition: PartitionId(partition), next_sequence }
    }
}
