//! System records: what the engine itself writes into its log, each as the only record of a system frame.

use super::codec::{at_least, at_most, expect, expect_zero, put, u16_at, u64_at, u128_at};
use super::{FormatError, Result};
use crate::geo::{Digest, Progress};
use crate::types::{AccountId, LogId, Lsn};

/// The most bytes of an account's name.
pub const MAX_ACCOUNT_NAME: usize = 1024;

/// The most accounts of one mark: 2 MiB of them.
pub const MAX_MARKED: usize = 1 << 16;

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
    /// Its primary is another region: what is here arrived from there.
    pub secondary: bool,
}

const ACCOUNT_KIND: u16 = 1;
const MARK_KIND: u16 = 2;
const PROGRESS_KIND: u16 = 3;
/// Of each kind of record.
const VERSION: u16 = 1;
const AT_VERSION: usize = 2;

const ACCOUNT_HEADER: usize = 24;
const AT_ALL: usize = 4;
const AT_SECONDARY: usize = 5;
const AT_NAME: usize = 6;
const AT_ID: usize = 8;
const AT_EPOCH: usize = 16;

/// What a mark and a progress record have before what is theirs: kind, version, zeros.
const HEADER: usize = 8;
const MARKED: usize = 32;
const PROGRESS: usize = HEADER + 32;

/// A system record of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SystemRecord {
    /// An account was made or changed.
    Account(AccountRecord),
    /// The accounts of a mark.
    Mark(Vec<(AccountId, Digest)>),
    /// A secondary's progress.
    Progress(Progress),
}

impl SystemRecord {
    /// Reads a system record.
    ///
    /// # Errors
    /// When it is of no known kind, or not exactly what its kind says.
    pub fn decode(record: &[u8]) -> Result<SystemRecord> {
        at_least(0, "system record: bytes", HEADER as u64, record.len() as u64)?;
        match u16_at(record, 0) {
            MARK_KIND => decode_mark(record).map(SystemRecord::Mark),
            PROGRESS_KIND => decode_progress(record).map(SystemRecord::Progress),
            _ => decode_account(record).map(SystemRecord::Account),
        }
    }
}

pub(super) fn check_name(at: usize, length: usize) -> Result<()> {
    at_most(at, "account: bytes of the name", MAX_ACCOUNT_NAME as u64, length as u64)
}

/// An account as a system record.
///
/// # Panics
/// If the name is longer than [`MAX_ACCOUNT_NAME`].
#[must_use]
pub fn encode_account(account: &AccountRecord) -> Vec<u8> {
    let name = account.name.as_bytes();
    assert!(name.len() <= MAX_ACCOUNT_NAME, "an account's name has at most {MAX_ACCOUNT_NAME} bytes");
    let mut record = begin(ACCOUNT_KIND, ACCOUNT_HEADER + name.len());
    record[AT_ALL] = u8::from(account.all);
    record[AT_SECONDARY] = u8::from(account.secondary);
    put(&mut record, AT_NAME, &(name.len() as u16).to_le_bytes());
    put(&mut record, AT_ID, &account.id.0.to_le_bytes());
    put(&mut record, AT_EPOCH, &account.epoch.to_le_bytes());
    put(&mut record, ACCOUNT_HEADER, name);
    record
}

/// Reads an account from a system record.
///
/// # Errors
/// When it is not exactly one account: kind, version, length, settings, or a name that is not UTF-8.
pub fn decode_account(record: &[u8]) -> Result<AccountRecord> {
    at_least(0, "account: bytes", ACCOUNT_HEADER as u64, record.len() as u64)?;
    expect(0, "account: kind of system record", u64::from(ACCOUNT_KIND), u64::from(u16_at(record, 0)))?;
    expect(AT_VERSION, "account: version", u64::from(VERSION), u64::from(u16_at(record, AT_VERSION)))?;
    at_most(AT_ALL, "account: ack level", 1, u64::from(record[AT_ALL]))?;
    at_most(AT_SECONDARY, "account: role", 1, u64::from(record[AT_SECONDARY]))?;
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
        secondary: record[AT_SECONDARY] == 1,
    })
}

/// The accounts of a [`Mark`](crate::geo::Mark) as a system record; its time is its frame's.
///
/// # Panics
/// If there are more than [`MAX_MARKED`], or they do not ascend.
#[must_use]
pub fn encode_mark(accounts: &[(AccountId, Digest)]) -> Vec<u8> {
    assert!(accounts.len() <= MAX_MARKED, "a mark has at most {MAX_MARKED} accounts");
    assert!(accounts.is_sorted_by(|(one, _), (next, _)| one < next), "a mark's accounts ascend");
    let mut record = begin(MARK_KIND, HEADER + MARKED * accounts.len());
    for (entry, (account, digest)) in record[HEADER..].chunks_exact_mut(MARKED).zip(accounts) {
        put(entry, 0, &account.0.to_le_bytes());
        put(entry, 8, &digest.records.to_le_bytes());
        put(entry, 16, &digest.sum.to_le_bytes());
    }
    record
}

/// Reads a mark's accounts from a system record.
///
/// # Errors
/// When it is not exactly one mark: kind, version, zeros, length, or accounts that do not ascend.
pub fn decode_mark(record: &[u8]) -> Result<Vec<(AccountId, Digest)>> {
    open(record, MARK_KIND, "mark: kind, version, zeros")?;
    let rest = record.len() - HEADER;
    at_most(HEADER, "mark: bytes of accounts", (MAX_MARKED * MARKED) as u64, rest as u64)?;
    expect(HEADER, "mark: bytes of accounts", 0, (rest % MARKED) as u64)?;
    let accounts = record[HEADER..].chunks_exact(MARKED).map(|entry| {
        let digest = Digest { records: u64_at(entry, 8), sum: u128_at(entry, 16) };
        (AccountId(u64_at(entry, 0)), digest)
    });
    let accounts: Vec<(AccountId, Digest)> = accounts.collect();
    let ascend = accounts.is_sorted_by(|(one, _), (next, _)| one < next);
    expect(HEADER, "mark: accounts ascend", 1, u64::from(ascend))?;
    Ok(accounts)
}

/// A secondary's progress as a system record.
#[must_use]
pub fn encode_progress(progress: &Progress) -> Vec<u8> {
    let mut record = begin(PROGRESS_KIND, PROGRESS);
    put(&mut record, HEADER, &progress.source.0.to_le_bytes());
    put(&mut record, HEADER + 16, &progress.position.0.to_le_bytes());
    put(&mut record, HEADER + 24, &progress.time.to_le_bytes());
    record
}

/// Reads a secondary's progress from a system record.
///
/// # Errors
/// When it is not exactly one: kind, version, zeros, length.
pub fn decode_progress(record: &[u8]) -> Result<Progress> {
    open(record, PROGRESS_KIND, "progress: kind, version, zeros")?;
    expect(0, "progress: bytes", PROGRESS as u64, record.len() as u64)?;
    Ok(Progress {
        source: LogId(u128_at(record, HEADER)),
        position: Lsn(u64_at(record, HEADER + 16)),
        time: u64_at(record, HEADER + 24),
    })
}

fn begin(kind: u16, bytes: usize) -> Vec<u8> {
    let mut record = vec![0; bytes];
    put(&mut record, 0, &kind.to_le_bytes());
    put(&mut record, AT_VERSION, &VERSION.to_le_bytes());
    record
}

fn open(record: &[u8], kind: u16, what: &'static str) -> Result<()> {
    at_least(0, what, HEADER as u64, record.len() as u64)?;
    expect(0, what, u64::from(kind), u64::from(u16_at(record, 0)))?;
    expect(AT_VERSION, what, u64::from(VERSION), u64::from(u16_at(record, AT_VERSION)))?;
    expect_zero(record, AT_VERSION + 2..HEADER, what)
}
