//! System records: what the engine itself writes into its log, each as the only record of a system frame.

use std::time::Duration;

use super::codec::{at_least, at_most, expect, expect_zero, put, u16_at, u32_at, u64_at, u128_at};
use super::{FormatError, Result};
use crate::account::{Account, Contract};
use crate::gate::Gate;
use crate::geo::{Anchor, Digest, Holding, Lane, Progress, Restart};
use crate::types::{AccountId, Ack, LogId, Lsn, PartitionId, Role};

/// The most bytes of an account's name.
pub const MAX_ACCOUNT_NAME: usize = 1024;

/// The most accounts of one mark: 2 MiB of them.
pub const MAX_MARKED: usize = 1 << 16;

/// The most partitions of one restart record.
pub const MAX_RESTARTED: usize = 4096;

const ACCOUNT_KIND: u16 = 1;
const MARK_KIND: u16 = 2;
const PROGRESS_KIND: u16 = 3;
const RESTART_KIND: u16 = 4;
/// Of each kind of record.
const VERSION: u16 = 1;
const AT_VERSION: usize = 2;

const ACCOUNT_HEADER: usize = 56;
const AT_FLAGS: usize = 4;
const ALL: u8 = 1;
const CLOSED: u8 = 2;
const AT_ROLE: usize = 5;
const AT_NAME: usize = 6;
const AT_ID: usize = 8;
const AT_EPOCH: usize = 16;
const AT_MOST: usize = 24;
const AT_THEN: usize = 32;
const AT_ACCOUNT_ZEROS: usize = 33;
const AT_ACCOUNT_LANE: usize = 36;
const AT_ACCOUNT_LOG: usize = 40;

/// What the other records have before what is theirs: kind, version, zeros; a progress record has its lane's number there.
const HEADER: usize = 8;
const AT_LANE: usize = 4;
const MARKED: usize = 32;
const PROGRESS: usize = HEADER + 72;
const RESTART_HEADER: usize = HEADER + 8;
const HOLDING: usize = 48;

/// A system record of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SystemRecord {
    /// An account was made or changed.
    Account(Account),
    /// The accounts of a mark.
    Mark(Vec<(AccountId, Digest)>),
    /// A secondary's progress.
    Progress(Progress),
    /// Copies of partitions begin anew.
    Restart(Restart),
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
            RESTART_KIND => decode_restart(record).map(SystemRecord::Restart),
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
pub fn encode_account(account: &Account) -> Vec<u8> {
    let name = account.name.as_bytes();
    assert!(name.len() <= MAX_ACCOUNT_NAME, "an account's name has at most {MAX_ACCOUNT_NAME} bytes");
    let mut record = begin(ACCOUNT_KIND, ACCOUNT_HEADER + name.len());
    record[AT_FLAGS] = if account.ack == Ack::All { ALL } else { 0 } | if account.read_access { 0 } else { CLOSED };
    record[AT_ROLE] = role_code(account.role);
    put(&mut record, AT_NAME, &(name.len() as u16).to_le_bytes());
    put(&mut record, AT_ID, &account.id.0.to_le_bytes());
    put(&mut record, AT_EPOCH, &account.epoch.to_le_bytes());
    if let Some(Contract { most, then }) = account.contract {
        put(&mut record, AT_MOST, &(most.as_nanos() as u64).to_le_bytes());
        record[AT_THEN] = gate_code(then);
    }
    if let Some(Lane { log, number }) = account.lane {
        put(&mut record, AT_ACCOUNT_LANE, &number.to_le_bytes());
        put(&mut record, AT_ACCOUNT_LOG, &log.0.to_le_bytes());
    }
    put(&mut record, ACCOUNT_HEADER, name);
    record
}

/// Reads an account from a system record.
///
/// # Errors
/// When it is not exactly one account: kind, version, length, settings, or a name that is not UTF-8.
pub fn decode_account(record: &[u8]) -> Result<Account> {
    at_least(0, "account: bytes", ACCOUNT_HEADER as u64, record.len() as u64)?;
    expect(0, "account: kind of system record", u64::from(ACCOUNT_KIND), u64::from(u16_at(record, 0)))?;
    expect(AT_VERSION, "account: version", u64::from(VERSION), u64::from(u16_at(record, AT_VERSION)))?;
    at_most(AT_FLAGS, "account: flags", u64::from(ALL | CLOSED), u64::from(record[AT_FLAGS]))?;
    let role = role(AT_ROLE, record[AT_ROLE])?;
    let length = usize::from(u16_at(record, AT_NAME));
    check_name(AT_NAME, length)?;
    expect(AT_NAME, "account: bytes of the name", (record.len() - ACCOUNT_HEADER) as u64, length as u64)?;
    let name = std::str::from_utf8(&record[ACCOUNT_HEADER..]).map_err(|error| FormatError {
        at: ACCOUNT_HEADER + error.valid_up_to(),
        what: "account: the name is UTF-8",
        expected: length as u64,
        found: error.valid_up_to() as u64,
    })?;
    let most = Duration::from_nanos(u64_at(record, AT_MOST));
    let contract = gate(record[AT_THEN])?.map(|then| Contract { most, then });
    let zeros = if contract.is_some() { AT_ACCOUNT_ZEROS } else { AT_MOST };
    expect_zero(record, zeros..AT_ACCOUNT_LANE, "account: reserved")?;
    let lane = Lane { log: LogId(u128_at(record, AT_ACCOUNT_LOG)), number: u32_at(record, AT_ACCOUNT_LANE) };
    if lane.log == LogId(0) {
        expect(AT_ACCOUNT_LANE, "account: a lane of no log", 0, u64::from(lane.number))?;
    }
    Ok(Account {
        id: AccountId(u64_at(record, AT_ID)),
        name: name.to_owned(),
        epoch: u64_at(record, AT_EPOCH),
        ack: if record[AT_FLAGS] & ALL != 0 { Ack::All } else { Ack::Quorum },
        role,
        read_access: record[AT_FLAGS] & CLOSED == 0,
        contract,
        lane: (lane.log != LogId(0)).then_some(lane),
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
    expect_zero(record, AT_LANE..HEADER, "mark: kind, version, zeros")?;
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
    put(&mut record, AT_LANE, &progress.lane.number.to_le_bytes());
    put(&mut record, HEADER, &progress.lane.log.0.to_le_bytes());
    put(&mut record, HEADER + 16, &progress.position.0.to_le_bytes());
    put(&mut record, HEADER + 24, &progress.time.to_le_bytes());
    put(&mut record, HEADER + 32, &progress.anchor.block.0.to_le_bytes());
    put(&mut record, HEADER + 40, &progress.anchor.checksum.to_le_bytes());
    put(&mut record, HEADER + 48, &progress.held.records.to_le_bytes());
    put(&mut record, HEADER + 56, &progress.held.sum.to_le_bytes());
    record
}

/// Reads a secondary's progress from a system record.
///
/// # Errors
/// When it is not exactly one: kind, version, length.
pub fn decode_progress(record: &[u8]) -> Result<Progress> {
    open(record, PROGRESS_KIND, "progress: kind, version")?;
    expect(0, "progress: bytes", PROGRESS as u64, record.len() as u64)?;
    Ok(Progress {
        lane: Lane { log: LogId(u128_at(record, HEADER)), number: u32_at(record, AT_LANE) },
        position: Lsn(u64_at(record, HEADER + 16)),
        time: u64_at(record, HEADER + 24),
        anchor: Anchor { block: Lsn(u64_at(record, HEADER + 32)), checksum: u64_at(record, HEADER + 40) },
        held: Digest { records: u64_at(record, HEADER + 48), sum: u128_at(record, HEADER + 56) },
    })
}

/// The partitions of an account whose copies begin anew, as a system record.
///
/// # Panics
/// If there are more than [`MAX_RESTARTED`].
#[must_use]
pub fn encode_restart(restart: &Restart) -> Vec<u8> {
    assert!(restart.partitions.len() <= MAX_RESTARTED, "a restart has at most {MAX_RESTARTED} partitions");
    let mut record = begin(RESTART_KIND, RESTART_HEADER + HOLDING * restart.partitions.len());
    put(&mut record, HEADER, &restart.account.0.to_le_bytes());
    for (entry, holding) in record[RESTART_HEADER..].chunks_exact_mut(HOLDING).zip(&restart.partitions) {
        put(entry, 0, &holding.partition.0.to_le_bytes());
        put(entry, 16, &holding.next_sequence.to_le_bytes());
        put(entry, 24, &holding.digest.records.to_le_bytes());
        put(entry, 32, &holding.digest.sum.to_le_bytes());
    }
    record
}

/// Reads a restart from a system record.
///
/// # Errors
/// When it is not exactly one: kind, version, zeros, length.
pub fn decode_restart(record: &[u8]) -> Result<Restart> {
    open(record, RESTART_KIND, "restart: kind, version, zeros")?;
    expect_zero(record, AT_LANE..HEADER, "restart: kind, version, zeros")?;
    at_least(0, "restart: bytes", RESTART_HEADER as u64, record.len() as u64)?;
    let rest = record.len() - RESTART_HEADER;
    at_most(RESTART_HEADER, "restart: bytes of partitions", (MAX_RESTARTED * HOLDING) as u64, rest as u64)?;
    expect(RESTART_HEADER, "restart: bytes of partitions", 0, (rest % HOLDING) as u64)?;
    let partitions = record[RESTART_HEADER..].chunks_exact(HOLDING).map(|entry| Holding {
        partition: PartitionId(u128_at(entry, 0)),
        next_sequence: u64_at(entry, 16),
        digest: Digest { records: u64_at(entry, 24), sum: u128_at(entry, 32) },
    });
    Ok(Restart { account: AccountId(u64_at(record, HEADER)), partitions: partitions.collect() })
}

pub(super) fn role_code(role: Role) -> u8 {
    match role {
        Role::Primary => 0,
        Role::Secondary => 1,
        Role::Bootstrap => 2,
        Role::Dropped => 3,
        Role::Local => 4,
    }
}

pub(super) fn role(at: usize, code: u8) -> Result<Role> {
    Ok(match code {
        0 => Role::Primary,
        1 => Role::Secondary,
        2 => Role::Bootstrap,
        3 => Role::Dropped,
        4 => Role::Local,
        found => return Err(FormatError { at, what: "account: role", expected: 4, found: u64::from(found) }),
    })
}

/// What a contract asks for, as stored; 0 is no contract.
fn gate_code(gate: Gate) -> u8 {
    match gate {
        Gate::Open => 1,
        Gate::Wait => 2,
        Gate::Throttle => 3,
        Gate::Refuse => 4,
    }
}

fn gate(code: u8) -> Result<Option<Gate>> {
    Ok(match code {
        0 => None,
        1 => Some(Gate::Open),
        2 => Some(Gate::Wait),
        3 => Some(Gate::Throttle),
        4 => Some(Gate::Refuse),
        found => {
            return Err(FormatError { at: AT_THEN, what: "account: contract", expected: 4, found: u64::from(found) });
        }
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
    expect(AT_VERSION, what, u64::from(VERSION), u64::from(u16_at(record, AT_VERSION)))
}
