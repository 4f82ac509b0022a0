//! Admission: a request is checked against the tables, given its sequences, and encoded into the open block.

use std::rc::Rc;

use bytes::Bytes;
use futures::executor::LocalSpawner;

use crate::account::Account;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{BLOCK_HEADER, CommitOutcome, FrameHeader, FrameKind, encode_account, encode_frame, frame_len};
use crate::gate::Gate;
use crate::log::Log;
use crate::log::pipeline::{Done, OpenBlock, Pending, Pipeline};
use crate::log::tables::{Retry, RetryKey, Tables};
use crate::options::{check_account_name, padded_transaction};
use crate::shared::{AccountChange, Commit, PutAccount, Request, lock};
use crate::transaction::{Receipt, Transaction};
use crate::types::{AccountId, Ack, ClientId, Lsn, PartitionId, Role, SegmentId};

/// Frames of one block, at most: a position's low 12 bits name the frame in its block.
pub(crate) const MAX_FRAMES: u32 = 4096;

/// A checked request: what its frame will say, and whose answer it is.
struct Admission<'a> {
    kind: FrameKind,
    account: AccountId,
    partition: PartitionId,
    epoch: u64,
    retry: Option<RetryKey>,
    records: &'a [Bytes],
    all: bool,
    mark: bool,
}

/// A frame to be given a place.
pub(super) struct Entry {
    pub(super) partition: PartitionId,
    pub(super) retry: Option<RetryKey>,
    pub(super) count: u64,
    pub(super) len: usize,
}

/// What a check came to.
enum Verdict<'a> {
    New(Admission<'a>),
    Repeated { key: RetryKey, outcome: CommitOutcome, all: bool },
}

impl Log {
    /// Takes a request in, or answers it with why not. One that must wait for room comes back.
    pub(crate) fn admit(self: &Rc<Log>, request: Request, spawner: &LocalSpawner) -> Option<Request> {
        match request {
            Request::Commit(commit) => self.admit_commit(commit).map(Request::Commit),
            Request::PutAccount(put) => self.admit_account(put).map(Request::PutAccount),
            Request::Geo(geo) => self.admit_geo(geo).map(Request::Geo),
            Request::Control(control) => {
                self.control(control, spawner);
                None
            }
        }
    }

    fn admit_commit(&self, commit: Commit) -> Option<Commit> {
        let Commit { transaction, done, at, bytes } = commit;
        let verdict = self.check(&transaction);
        let waits = self.shared.gates.of(transaction.account) == Gate::Wait;
        let remote = waits.then_some(transaction.account);
        let (error, done) = match verdict {
            Ok(Verdict::New(admission)) => match self.enter(&admission, at) {
                Ok(Some(receipt)) => {
                    let (done, retry, all) = (Done::Commit(done), admission.retry, admission.all);
                    self.attach(Pending { done, receipt, retry, all, remote, at, bytes });
                    return None;
                }
                Ok(None) => return Some(Commit { transaction, done, at, bytes }),
                Err(error) => (error, done),
            },
            Ok(Verdict::Repeated { key, outcome: CommitOutcome { lsn, first_sequence, records, .. }, all }) => {
                let receipt = Receipt { lsn, first_sequence, records, repeated: true };
                let (done, remote) = (Done::Commit(done), remote.filter(|_| !planted!(RepeatDoesNotWait)));
                self.repeat(Pending { done, receipt, retry: Some(key), all, remote, at, bytes });
                return None;
            }
            Err(error) => (error, done),
        };
        self.refuse(Done::Commit(done), error, bytes);
        None
    }

    fn admit_account(&self, put: PutAccount) -> Option<PutAccount> {
        let PutAccount { name, change, done, at } = put;
        let admitted = self.account_record(&name, change).and_then(|record| {
            let id = record.id;
            let receipt = self.enter_system(encode_account(&record), at, false)?;
            if receipt.is_some() {
                self.tables.borrow_mut().put_account(record);
            }
            Ok(receipt.map(|receipt| (receipt, id)))
        });
        match admitted {
            Ok(Some((receipt, id))) => {
                let done = Done::Account(id, done);
                self.attach(Pending { done, receipt, retry: None, all: false, remote: None, at, bytes: 0 });
                None
            }
            Ok(None) => Some(PutAccount { name, change, done, at }),
            Err(error) => {
                self.refuse(Done::Account(AccountId::SYSTEM, done), error, 0);
                None
            }
        }
    }

    /// Enters a record of the engine's own; nothing that comes after a mark gets its time.
    pub(super) fn enter_system(&self, record: Vec<u8>, at: u64, mark: bool) -> Result<Option<Receipt>> {
        let records = [Bytes::from(record)];
        let admission = Admission {
            kind: FrameKind::System,
            account: AccountId::SYSTEM,
            partition: PartitionId(0),
            epoch: 0,
            retry: None,
            records: &records,
            all: false,
            mark,
        };
        self.enter(&admission, at)
    }

    /// The account's record after the change.
    fn account_record(&self, name: &str, change: AccountChange) -> Result<Account> {
        check_account_name(name)?;
        let tables = self.tables.borrow();
        let known = tables.account_named(name).cloned();
        match (change, known) {
            (AccountChange::Create(_), Some(_)) => {
                Err(Error::new(ErrorKind::Exists, format!("account {name:?} exists")))
            }
            (AccountChange::Create(ack), None) => {
                if tables.accounts().count() >= self.options.max_accounts {
                    return Err(too_many_accounts(self.options.max_accounts));
                }
                Ok(Account {
                    id: tables.next_account(self.meta.borrow().log()),
                    name: name.to_owned(),
                    epoch: 1,
                    ack,
                    role: Role::Primary,
                    read_access: true,
                    contract: None,
                    lane: None,
                })
            }
            (_, None) => Err(Error::new(ErrorKind::NotFound, format!("there is no account {name:?}"))),
            (_, Some(known)) if !known.role.is_primary() => Err(secondary(&known)),
            (AccountChange::SetAck(ack), Some(known)) => Ok(Account { ack, ..known }),
            (AccountChange::Fence, Some(known)) => Ok(Account { epoch: known.epoch + 1, ..known }),
            (AccountChange::SetGeo(on), Some(known)) => {
                Ok(Account { role: if on { Role::Primary } else { Role::Local }, ..known })
            }
            (AccountChange::SetReadAccess(on), Some(known)) => Ok(Account { read_access: on, ..known }),
            (AccountChange::SetContract(contract), Some(known)) => Ok(Account { contract, ..known }),
        }
    }

    fn check<'a>(&self, transaction: &'a Transaction) -> Result<Verdict<'a>> {
        if let Some(error) = self.halted_error() {
            return Err(error);
        }
        let tables = self.tables.borrow();
        let id = transaction.account;
        let account = tables.account(id);
        let account =
            account.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no account {}", id.0)))?;
        if !account.role.is_primary() {
            return Err(secondary(account));
        }
        if transaction.account_epoch.is_some_and(|epoch| epoch != account.epoch) {
            let message = format!("account {:?} is in epoch {}", account.name, account.epoch);
            return Err(Error::new(ErrorKind::Fenced, message));
        }
        let all = transaction.ack.unwrap_or(account.ack) == Ack::All;
        let retry = RetryKey::new(id, transaction.client, transaction.client_sequence);
        if let Some(key) = retry {
            match tables.retry(key, &self.options)? {
                _ if planted!(DedupOff) => {}
                Retry::New => {}
                Retry::Applied(outcome)
                    if outcome.partition == transaction.partition || planted!(RepeatOfAnotherPartition) =>
                {
                    return Ok(Verdict::Repeated { key, outcome, all });
                }
                Retry::Applied(outcome) => return Err(reused(account, key, &outcome, transaction.partition)),
                Retry::TooOld => return Err(too_old(account, key)),
            }
        }
        if all && self.with(|pipeline| pipeline.is_degraded()) {
            return Err(degraded());
        }
        Ok(Verdict::New(Admission {
            kind: FrameKind::Data,
            account: id,
            partition: transaction.partition,
            epoch: account.epoch,
            retry,
            records: &transaction.records,
            all,
            mark: false,
        }))
    }

    /// Encodes a frame into the open block; `None` when there is no room now.
    fn enter(&self, admission: &Admission<'_>, at: u64) -> Result<Option<Receipt>> {
        let records = admission.records;
        let records = if planted!(HalfTransaction) { &records[..records.len().div_ceil(2)] } else { records };
        let len = frame_len(records).ok_or_else(|| Error::invalid("a transaction has 1 to 65,535 records"))?;
        let (wall, count) = (self.batch_clock.get().1, records.len() as u64);
        let (account, partition) = (admission.account, admission.partition);
        let retry = admission.retry;
        let (client, client_sequence) = retry.map_or((ClientId::NONE, 0), |key| (key.client, key.sequence));
        let entry = Entry { partition, retry, count, len };
        let receipt = self.place(&entry, |tables, out| {
            let time = if admission.mark { tables.stamp_mark(wall) } else { tables.stamp(wall) };
            tables.append(account, partition, count, &self.options, |first_sequence| {
                let header = FrameHeader {
                    kind: admission.kind,
                    account,
                    partition,
                    epoch: admission.epoch,
                    first_sequence,
                    time,
                    client,
                    client_sequence,
                };
                encode_frame(&header, records, out)
            })
        })?;
        if receipt.is_some() {
            let now = self.batch_clock.get().0;
            self.stats.borrow_mut().queue.saturating_record(now.saturating_sub(at));
        }
        Ok(receipt)
    }

    /// Gives a frame its place in the open block, where `write` writes it and returns its first sequence; `None` when there is no room
    /// now.
    pub(super) fn place(
        &self,
        entry: &Entry,
        write: impl FnOnce(&mut Tables, &mut [u8]) -> Result<u64>,
    ) -> Result<Option<Receipt>> {
        let &Entry { partition, retry, count, len } = entry;
        if len > self.options.transaction_bytes {
            let most = self.options.transaction_bytes;
            return Err(Error::invalid(format!("the transaction has {len} bytes with its headers, {most} accepted")));
        }
        let now = self.batch_clock.get().0;
        self.with(|pipeline| {
            if let Some(error) = self.halted_error() {
                return Err(error);
            }
            if !pipeline.has_room(len, self.options.segment_bytes) {
                return if pipeline.no_space { Err(self.no_space(pipeline.active.id)) } else { Ok(None) };
            }
            if !self.make_room(pipeline, len, now)? {
                return Ok(None);
            }
            let Some(open) = pipeline.open.as_mut() else { return Ok(None) };
            let mut tables = self.tables.borrow_mut();
            let first_sequence = match write(&mut tables, &mut open.buffer[open.len..open.len + len]) {
                Ok(first_sequence) => first_sequence,
                Err(refused) => {
                    // A block without a frame is never sent: nobody must come to wait for it.
                    if open.frames == 0 {
                        pipeline.open = None;
                    }
                    return Err(refused);
                }
            };
            // The frame's place in its block, until the block has its own place in the log.
            let lsn = Lsn(u64::from(open.frames));
            open.len += len;
            open.frames += 1;
            open.records += count;
            if let Some(key) = retry {
                let (sequence, records) = (key.sequence, count as u32);
                let outcome = CommitOutcome { sequence, partition, lsn: Lsn::MAX, first_sequence, records };
                tables.remember(key, outcome, self.options.client_window);
                open.clients.push((key, lsn.0 as u32));
            }
            Ok(Some(Receipt { lsn, first_sequence, records: count as u32, repeated: false }))
        })
    }

    /// Whether the open block takes `len` more bytes; opens one if there is none.
    fn make_room(&self, pipeline: &mut Pipeline, len: usize, now: u64) -> Result<bool> {
        if let Some(open) = &pipeline.open {
            return Ok(open.frames < MAX_FRAMES && open.len + len <= open.buffer.len());
        }
        let room = padded_transaction(len).max(self.options.block_bytes);
        let no_memory = |error| Error::new(ErrorKind::System, format!("no memory for a block: {error}"));
        let buffer = pipeline.memory.take(room).map_err(no_memory)?;
        let pending = Vec::with_capacity(pipeline.crowd as usize);
        let (frames, records, clients) = (0, 0, Vec::new());
        pipeline.open = Some(OpenBlock { buffer, len: BLOCK_HEADER, frames, records, clients, opened: now, pending });
        Ok(true)
    }

    pub(super) fn attach(&self, pending: Pending) {
        self.with(|pipeline| {
            let open = pipeline.open.as_mut().expect("the frame has just entered the open block");
            open.pending.push(pending);
        });
    }

    /// A retry of what was applied: it is answered when everything appended by now is committed, the original among it.
    fn repeat(&self, pending: Pending) {
        self.stats.borrow_mut().repeated += 1;
        let on_all = !pending.all || self.is_on_all(pending.receipt.lsn);
        self.with(|pipeline| {
            if !on_all {
                pipeline.resolve(pending, Err(degraded()));
                return;
            }
            match pipeline.answer_behind(pending) {
                // Committed, which is on two disks: the third may lack it still.
                Some(pending) if pending.all && !planted!(RepeatSkipsThird) => {
                    pipeline.all.push_back((pipeline.commit, pending))
                }
                Some(pending) => self.acknowledge(pipeline, pending, self.batch_clock.get().0),
                None => {}
            }
        });
    }

    /// Whether three copies of this position exist, or will once everything in flight is durable.
    fn is_on_all(&self, lsn: Lsn) -> bool {
        let in_set = |pipeline: &Pipeline| {
            let sealing = pipeline.closing.iter().any(|seal| seal.segment == lsn.segment());
            (lsn == Lsn::MAX || lsn.segment() == pipeline.active.id || sealing) && !pipeline.is_degraded()
        };
        if self.with(|pipeline| in_set(pipeline)) {
            return true;
        }
        let catalog = self.catalog.borrow();
        catalog.get(lsn.segment()).is_none_or(|segment| segment.complete().count() >= super::placement::COPIES)
    }

    /// Refuses a request and gives its room back.
    pub(super) fn refuse(&self, done: Done, error: Error, bytes: usize) {
        self.with(|pipeline| {
            pipeline.released.0 += 1;
            pipeline.released.1 += bytes as u64;
            pipeline.answer(done, Err(error));
        });
    }
}

pub(crate) fn degraded() -> Error {
    Error::new(ErrorKind::Degraded, "three copies are asked for and only two disks of different domains are healthy")
}

fn secondary(account: &Account) -> Error {
    let message = format!("account {:?} is a secondary here: write to its primary region", account.name);
    Error::new(ErrorKind::Secondary, message)
}

fn too_old(account: &Account, key: RetryKey) -> Error {
    let message = format!(
        "sequence {} of client {} in account {:?} lies before those that are remembered: whether it was applied is not known",
        key.sequence, key.client.0, account.name
    );
    Error::new(ErrorKind::RetryTooOld, message)
}

/// A repeated answer is of the same account, by its key, and of the same partition.
fn reused(account: &Account, key: RetryKey, found: &CommitOutcome, asked: PartitionId) -> Error {
    let place = if found.lsn == Lsn::MAX { "not placed yet".to_owned() } else { format!("at {}", found.lsn) };
    let message = format!(
        "sequence {} of client {} in account {:?} was used for partition {:#x} ({place}), not for {:#x}: give each transaction a sequence of its own",
        key.sequence, key.client.0, account.name, found.partition.0, asked.0
    );
    Error::new(ErrorKind::SequenceReused, message)
}

/// There is no room for another account.
pub(super) fn too_many_accounts(most: usize) -> Error {
    Error::new(ErrorKind::LimitReached, format!("max_accounts is {most}, and as many exist: raise it and open again"))
}

impl Log {
    fn no_space(&self, active: SegmentId) -> Error {
        if active.0 >= SegmentId::LAST.0 - 1 {
            let message =
                format!("segment numbers are used up: {} were given out; what is there can be read", active.0);
            return Error::new(ErrorKind::LimitReached, message);
        }
        let disks = self.disks.borrow();
        let each: Vec<&str> = disks.iter().filter_map(|disk| Some(disk.short.as_ref()?.why.as_str())).collect();
        let pin = lock(&self.shared.pins).lowest().map(Lsn::segment).filter(|segment| *segment < active);
        let pin = pin.map_or_else(String::new, |segment| {
            let first = segment.max(self.meta.borrow().trim).0;
            format!("; a pin keeps everything from segment {first} on: drop it, or let the link that holds it catch up")
        });
        let message =
            "no disk set has room for another segment: trim the log, add space, or raise the limit that is named";
        Error::new(ErrorKind::NoSpace, format!("{message} ({}){pin}", each.join(", ")))
    }
}
