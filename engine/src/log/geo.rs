//! The log's side of the geo link: what arrives from another region is admitted, marks are entered, both sides are asked how they stand.

use std::collections::BTreeSet;
use std::task::Waker;

use crate::account::Account;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Frame, MAX_RESTARTED, encode_account, encode_mark, encode_progress, encode_restart};
use crate::geo::{Anchor, Arrived, Carried, Digest, Holding, Imported, Lane, Mark, Progress, Restart};
use crate::log::Log;
use crate::log::admit::{Entry, too_many_accounts};
use crate::log::pipeline::{Done, Pending};
use crate::log::tables::RetryKey;
use crate::sync::ticket::Resolver;
use crate::transaction::Receipt;
use crate::types::{AccountId, Lsn, PartitionId, Role};

/// What the geo link asks of the log thread.
pub(crate) enum Geo {
    Import(Box<Import>),
    /// `acknowledged` is what the secondary of a lane of this log has, kept beside the mark.
    Mark {
        accounts: Vec<AccountId>,
        acknowledged: Option<Progress>,
        done: Resolver<Result<Lsn>>,
    },
    Digest {
        account: AccountId,
        partition: Option<PartitionId>,
        done: Resolver<Result<(u64, Digest)>>,
    },
    Holdings {
        account: AccountId,
        after: Option<PartitionId>,
        most: usize,
        done: Resolver<Result<Vec<Holding>>>,
    },
    Progress {
        lane: Lane,
        done: Resolver<Result<Option<Progress>>>,
    },
    Carry(Carry),
}

/// What the beginning of a session says of its lane.
pub(crate) struct Carry {
    pub(crate) lane: Lane,
    /// What it brings.
    pub(crate) accounts: BTreeSet<AccountId>,
    /// Where the lane stands, as the primary found it to be of another history of its log.
    pub(crate) void: Option<(Lsn, Anchor)>,
    pub(crate) done: Resolver<Result<Carried>>,
}

impl Geo {
    /// Answers with why not, and says what it counted for in the intake.
    fn refuse(self, error: Error) -> (Option<Waker>, usize) {
        match self {
            Geo::Import(import) => (import.done.resolve_quietly(Err(error)), import.bytes),
            Geo::Mark { done, .. } => (done.resolve_quietly(Err(error)), 0),
            Geo::Digest { done, .. } => (done.resolve_quietly(Err(error)), 0),
            Geo::Holdings { done, .. } => (done.resolve_quietly(Err(error)), 0),
            Geo::Progress { done, .. } => (done.resolve_quietly(Err(error)), 0),
            Geo::Carry(Carry { done, .. }) => (done.resolve_quietly(Err(error)), 0),
        }
    }
}

/// A stretch of another log, its frames verified, and how far it is admitted.
pub(crate) struct Import {
    arrived: Arrived,
    done: Resolver<Result<Imported>>,
    /// When it was handed over.
    at: u64,
    /// What it counts for in the intake.
    bytes: usize,
    /// The next frame: an item of `arrived.frames`, and the offset in it.
    next: (usize, usize),
    /// How many partitions have begun anew.
    restarted: usize,
    records: u64,
    duplicates: u64,
}

impl Import {
    pub(crate) fn new(arrived: Arrived, done: Resolver<Result<Imported>>, at: u64, bytes: usize) -> Import {
        Import { arrived, done, at, bytes, next: (0, 0), restarted: 0, records: 0, duplicates: 0 }
    }
}

/// Whom of the geo link to answer once everything that the answer rests on is committed, and what.
pub(crate) enum GeoDone {
    Import(Box<Imported>, Resolver<Result<Imported>>),
    Mark(Resolver<Result<Lsn>>),
    Digest(u64, Digest, Resolver<Result<(u64, Digest)>>),
    Holdings(Vec<Holding>, Resolver<Result<Vec<Holding>>>),
    Progress(Option<Progress>, Resolver<Result<Option<Progress>>>),
    Carry(Carried, Resolver<Result<Carried>>),
}

impl GeoDone {
    pub(crate) fn resolve(self, result: Result<Receipt>) -> Option<Waker> {
        match self {
            GeoDone::Import(imported, done) => done.resolve_quietly(result.map(|_| *imported)),
            GeoDone::Mark(done) => done.resolve_quietly(result.map(|receipt| receipt.lsn)),
            GeoDone::Digest(next, digest, done) => done.resolve_quietly(result.map(|_| (next, digest))),
            GeoDone::Holdings(holdings, done) => done.resolve_quietly(result.map(|_| holdings)),
            GeoDone::Progress(progress, done) => done.resolve_quietly(result.map(|_| progress)),
            GeoDone::Carry(carried, done) => done.resolve_quietly(result.map(|_| carried)),
        }
    }
}

impl Log {
    /// Takes a request of the geo link in, or answers it. One that must wait for room comes back, and goes on where it was.
    pub(super) fn admit_geo(&self, request: Geo) -> Option<Geo> {
        if let Some(error) = self.halted_error() {
            self.refuse_geo(request, error);
            return None;
        }
        match request {
            Geo::Import(import) => return self.admit_import(import).map(Geo::Import),
            Geo::Mark { accounts, acknowledged, done } => match self.enter_mark(&accounts, acknowledged) {
                Ok(Some(receipt)) => self.attach(pending(GeoDone::Mark(done), receipt, 0, 0)),
                Ok(None) => return Some(Geo::Mark { accounts, acknowledged, done }),
                Err(error) => self.refuse_geo(Geo::Mark { accounts, acknowledged, done }, error),
            },
            Geo::Digest { account, partition, done } => {
                let known = partition.map(|partition| self.tables.borrow().partition(account, partition));
                let (next, digest) = match known {
                    Some(partition) => (partition.next_sequence, partition.digest),
                    None => (0, self.tables.borrow().digest(account)),
                };
                self.answer_behind(pending(GeoDone::Digest(next, digest, done), BEHIND, 0, 0));
            }
            Geo::Holdings { account, after, most, done } => {
                let holdings = self.tables.borrow().holdings(account, after, most);
                self.answer_behind(pending(GeoDone::Holdings(holdings, done), BEHIND, 0, 0));
            }
            Geo::Carry(carry) => match self.enter_carried(&carry) {
                Ok(Some(carried)) => self.answer_behind(pending(GeoDone::Carry(carried, carry.done), BEHIND, 0, 0)),
                Ok(None) => return Some(Geo::Carry(carry)),
                Err(error) => self.refuse_geo(Geo::Carry(carry), error),
            },
            Geo::Progress { lane, done } => {
                let progress = self.tables.borrow().progress(lane);
                self.answer_behind(pending(GeoDone::Progress(progress, done), BEHIND, 0, 0));
            }
        }
        None
    }

    fn refuse_geo(&self, request: Geo, error: Error) {
        self.with(|pipeline| {
            let (waker, bytes) = request.refuse(error);
            pipeline.released.0 += 1;
            pipeline.released.1 += bytes as u64;
            pipeline.wakers.extend(waker);
        });
    }

    /// What has been appended answers, once it is committed.
    fn answer_behind(&self, pending: Pending) {
        self.with(|pipeline| {
            if let Some(pending) = pipeline.answer_behind(pending) {
                pipeline.resolve(pending, Ok(()));
            }
        });
    }

    fn enter_mark(&self, accounts: &[AccountId], acknowledged: Option<Progress>) -> Result<Option<Receipt>> {
        let marked: Vec<(AccountId, Digest)> = {
            let tables = self.tables.borrow();
            for &id in accounts {
                let account = tables.account(id).ok_or_else(|| unknown(id))?;
                if !account.role.is_primary() {
                    let message = format!("account {:?} is a secondary here: its primary marks it", account.name);
                    return Err(Error::new(ErrorKind::Secondary, message));
                }
            }
            accounts.iter().map(|&id| (id, tables.digest(id))).collect()
        };
        let now = self.batch_clock.get().0;
        // In the block of the mark, most likely: it costs no write of its own.
        let news = acknowledged.filter(|acknowledged| {
            let tables = self.tables.borrow();
            tables.progress(acknowledged.lane) != Some(*acknowledged) && tables.admits_lane(acknowledged.lane).is_ok()
        });
        if let Some(news) = news
            && self.enter_progress(news, now)?.is_none()
        {
            return Ok(None);
        }
        self.enter_system(encode_mark(&marked), now, true)
    }

    fn admit_import(&self, mut import: Box<Import>) -> Option<Box<Import>> {
        let over = import.arrived.session.is_over() && !planted!(RefusalForgotten);
        let entered = if over { Err(session_over()) } else { self.enter_import(&mut import) };
        let entered = match entered {
            Ok(entered) => entered,
            Err(error) => {
                import.arrived.session.end();
                self.refuse_geo(Geo::Import(import), error);
                return None;
            }
        };
        let Some((receipt, imported)) = entered else { return Some(import) };
        let Import { done, at, bytes, .. } = *import;
        if planted!(ImportAnsweredEarly) {
            self.with(|pipeline| {
                pipeline.resolve(pending(GeoDone::Import(Box::new(imported), done), BEHIND, at, bytes), Ok(()))
            });
            return None;
        }
        let done = GeoDone::Import(Box::new(imported), done);
        match receipt {
            Some(receipt) => self.attach(pending(done, receipt, at, bytes)),
            None => self.answer_behind(pending(done, BEHIND, at, bytes)),
        }
        None
    }

    /// Enters what is left of a stretch. `None`: there is no room now. The progress comes last: it is never durable before the
    /// data; when it says nothing new, there is no receipt.
    fn enter_import(&self, import: &mut Import) -> Result<Option<(Option<Receipt>, Imported)>> {
        self.tables.borrow().admits_lane(import.arrived.lane)?;
        if let Some(account) = &import.arrived.account {
            if !self.enter_account(account, import.arrived.lane)? {
                return Ok(None);
            }
            import.arrived.account = None;
        }
        if let Some(restart) = &import.arrived.restart
            && !self.enter_restart(restart, import.arrived.lane, &mut import.restarted)?
        {
            return Ok(None);
        }
        if planted!(ProgressFirst) && import.next == (0, 0) && import.records == 0 {
            let (progress, _) = self.progress_after(&import.arrived);
            self.enter_progress(progress, import.at)?;
        }
        while let Some(item) = import.arrived.frames.get(import.next.0) {
            let Some(frame) = Frame::trusted(&item[import.next.1..]) else {
                import.next = (import.next.0 + 1, 0);
                continue;
            };
            match self.enter_arrived(&frame, import.arrived.lane)? {
                None if planted!(NoRoomDrops) => {}
                None => return Ok(None),
                Some(true) => import.records += frame.count() as u64,
                Some(false) => import.duplicates += frame.count() as u64,
            }
            import.next.1 += frame.len();
        }
        if let Some(mark) = &import.arrived.mark {
            self.check_mark(mark, import.arrived.lane)?;
        }
        let (progress, differ) = self.progress_after(&import.arrived);
        let mut receipt = None;
        if self.tables.borrow().progress(progress.lane) != Some(progress) {
            receipt = self.enter_progress(progress, import.at)?;
            if receipt.is_none() {
                return Ok(None);
            }
        }
        while let Some(whole) = self.bootstrapped(&import.arrived, &differ) {
            receipt = self.enter_record(Account { role: Role::Secondary, ..whole })?;
            if receipt.is_none() {
                return Ok(None);
            }
        }
        let imported = Imported { records: import.records, duplicates: import.duplicates, progress, differ };
        Ok(Some((receipt, imported)))
    }

    /// A mark is of copies that its lane brings: of one that another session took since, it would neither make it whole nor be true.
    fn check_mark(&self, mark: &Mark, lane: Lane) -> Result<()> {
        let tables = self.tables.borrow();
        let mut copies = mark.accounts.iter().filter_map(|(id, _)| tables.account(*id));
        match copies.find(|known| !known.role.is_primary() && known.lane != Some(lane)) {
            Some(known) => Err(not_its_lane(known)),
            None => Ok(()),
        }
    }

    /// An account of the mark that can be read from now on: what it holds is what the primary held.
    fn bootstrapped(&self, arrived: &Arrived, differ: &[AccountId]) -> Option<Account> {
        let tables = self.tables.borrow();
        let marked = arrived.mark.iter().flat_map(|mark| &mark.accounts);
        let marked = marked.filter_map(|(id, _)| tables.account(*id));
        let its = |known: &&Account| known.role == Role::Bootstrap && known.lane == Some(arrived.lane);
        let mut whole = marked.filter(its).filter(|known| !differ.contains(&known.id));
        whole.next().cloned()
    }

    fn enter_record(&self, record: Account) -> Result<Option<Receipt>> {
        let entered = self.enter_system(encode_account(&record), self.batch_clock.get().0, false)?;
        if entered.is_some() {
            self.tables.borrow_mut().put_account(record);
        }
        Ok(entered)
    }

    fn enter_progress(&self, progress: Progress, at: u64) -> Result<Option<Receipt>> {
        let entered = self.enter_system(encode_progress(&progress), at, false)?;
        if entered.is_some() {
            self.tables.borrow_mut().put_progress(progress);
        }
        Ok(entered)
    }

    /// From now on a lane brings these accounts, and no others. A copy that it did not bring before may lack what the lane had meanwhile: it is in
    /// bootstrap. Where the lane's progress is void, all of its copies are, and it begins from nothing. `None`: there is no room now.
    fn enter_carried(&self, carry: &Carry) -> Result<Option<Carried>> {
        let Carry { lane, accounts, .. } = carry;
        let lane = *lane;
        let known = self.tables.borrow().progress(lane);
        let progress = known.unwrap_or(Progress::none(lane));
        let loose = self.tables.borrow().lane_digest(lane) != progress.held;
        // Another progress than the one that was looked at is not what is void.
        let void = carry.void == Some((progress.position, progress.anchor));
        if !self.enter_lanes(lane, accounts, void)? {
            return Ok(None);
        }
        let held = self.tables.borrow().lane_digest(lane);
        let next = match known {
            Some(_) if void => Progress { held, ..Progress::none(lane) },
            Some(known) if !loose => Progress { held, ..known },
            _ => progress,
        };
        if next != progress && self.enter_progress(next, self.batch_clock.get().0)?.is_none() {
            return Ok(None);
        }
        Ok(Some(Carried { progress: next, loose }))
    }

    fn enter_lanes(&self, lane: Lane, accounts: &BTreeSet<AccountId>, void: bool) -> Result<bool> {
        let change = |known: &Account| {
            if void && known.lane == Some(lane) && accounts.contains(&known.id) && known.role == Role::Secondary {
                return Some(Account { role: Role::Bootstrap, ..known.clone() });
            }
            let (carried, its) = (accounts.contains(&known.id), known.lane == Some(lane));
            if known.role.is_primary() || carried == its {
                return None;
            }
            let lacks = carried && known.role == Role::Secondary && !planted!(MovedCopyStaysOpen);
            let role = if lacks { Role::Bootstrap } else { known.role };
            Some(Account { role, lane: carried.then_some(lane), ..known.clone() })
        };
        let changes: Vec<Account> = self.tables.borrow().accounts().filter_map(change).collect();
        for next in changes {
            if self.enter_record(next)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lets copies begin anew, from the `done`th on. Nobody reads the account until it is whole. False: there is no room now.
    fn enter_restart(&self, restart: &Restart, lane: Lane, done: &mut usize) -> Result<bool> {
        let known = self.tables.borrow().account(restart.account).cloned();
        let known = known.ok_or_else(|| unknown(restart.account))?;
        if known.lane != Some(lane) {
            return Err(not_its_lane(&known));
        }
        match known.role {
            Role::Bootstrap => {}
            Role::Secondary if planted!(RestartStaysOpen) => {}
            Role::Secondary => {
                if self.enter_record(Account { role: Role::Bootstrap, ..known })?.is_none() {
                    return Ok(false);
                }
            }
            Role::Primary | Role::Local | Role::Dropped => return Err(not_a_copy(&known)),
        }
        // Whatever the primary's transactions may hold, each record fits one here.
        let fits = (self.options.transaction_bytes / 64).clamp(1, MAX_RESTARTED);
        while *done < restart.partitions.len() {
            let rest = &restart.partitions[*done..];
            let part = &rest[..rest.len().min(fits)];
            let partitions = part.iter().map(|holding| holding.partition);
            self.tables.borrow().admits_partitions(restart.account, partitions, &self.options)?;
            let record = encode_restart(&Restart { account: restart.account, partitions: part.to_vec() });
            if self.enter_system(record, self.batch_clock.get().0, false)?.is_none() {
                return Ok(false);
            }
            let mut tables = self.tables.borrow_mut();
            part.iter().for_each(|holding| tables.restart(restart.account, holding));
            *done += part.len();
        }
        Ok(true)
    }

    /// Makes or changes a copy of an account. False: there is no room now.
    fn enter_account(&self, account: &Account, lane: Lane) -> Result<bool> {
        let Account { id, epoch, role, .. } = *account;
        let mut record = Account { role: Role::Bootstrap, lane: Some(lane), ..account.clone() };
        let own = u64::from(self.meta.borrow().log().0 as u32);
        {
            let tables = self.tables.borrow();
            match (tables.account(id), tables.account_named(&record.name)) {
                (None, None) if tables.accounts().count() >= self.options.max_accounts => {
                    return Err(too_many_accounts(self.options.max_accounts));
                }
                // The upper half of a number says which log gives it out: this one would give it to an account of its own.
                (None, None) if id.0 >> 32 == own => return Err(taken(account)),
                (None, None) => {}
                (Some(known), Some(named)) if known.id == named.id && !known.role.is_primary() => {
                    if known.lane.is_some_and(|its| its != lane) {
                        return Err(not_its_lane(known));
                    }
                    match known.role {
                        // What is read again from the primary's log may be older than what began the bootstrap.
                        Role::Bootstrap if known.epoch > epoch => return Ok(true),
                        _ if known.epoch > epoch => return Err(fenced(known, epoch)),
                        Role::Dropped => {}
                        role => record.role = role,
                    }
                }
                _ => return Err(taken(account)),
            }
            if role == Role::Local {
                record.role = Role::Dropped;
            }
            if tables.account(id) == Some(&record) {
                return Ok(true);
            }
        }
        Ok(self.enter_record(record)?.is_some())
    }

    /// Enters a verified frame of another log as it is (invariant 10): true when it is new, false when it had arrived before, `None` when
    /// there is no room now.
    fn enter_arrived(&self, frame: &Frame<'_>, lane: Lane) -> Result<Option<bool>> {
        let header = frame.header();
        let (account, partition, count) = (header.account, header.partition, frame.count() as u64);
        let retry = RetryKey::new(account, header.client, header.client_sequence);
        {
            let tables = self.tables.borrow();
            let known = tables.account(account).ok_or_else(|| unknown(account))?;
            match known.role {
                Role::Primary | Role::Local | Role::Dropped => return Err(not_a_copy(known)),
                _ if known.lane != Some(lane) => return Err(not_its_lane(known)),
                // What a bootstrap brings was written in the epochs up to the account's.
                Role::Bootstrap if header.epoch <= known.epoch => {}
                Role::Bootstrap | Role::Secondary if header.epoch == known.epoch => {}
                Role::Bootstrap | Role::Secondary => return Err(fenced(known, header.epoch)),
            }
            let next = tables.partition(account, partition).next_sequence;
            let end = header.first_sequence.checked_add(count);
            let end = end.ok_or_else(|| Error::invalid("what arrived: sequences behind the last there is"))?;
            if end <= next && !planted!(ArrivesTwice) {
                return Ok(Some(false));
            }
            if header.first_sequence != next {
                return Err(gap(known, partition, next, header.first_sequence));
            }
            if let Some(key) = retry {
                tables.admits_client(key, &self.options)?;
            }
        }
        let entry = Entry { partition, retry, count, len: frame.len() };
        let placed = self.place(&entry, |tables, out| {
            tables.append(account, partition, count, &self.options, |_| {
                out.copy_from_slice(frame.bytes());
                frame.checksum()
            })
        })?;
        Ok(placed.map(|_| true))
    }

    /// Where the lane stands here behind this stretch, and which accounts of its mark hold something else here. Last sync time
    /// does not move over a difference; where copies begin anew there is none.
    fn progress_after(&self, arrived: &Arrived) -> (Progress, Vec<AccountId>) {
        let tables = self.tables.borrow();
        let lane = arrived.lane;
        let known = tables.progress(lane).unwrap_or(Progress::none(lane));
        let (time, accounts) = arrived.mark.as_ref().map_or((0, &[][..]), |mark| (mark.time, &mark.accounts));
        let differ = accounts.iter().filter(|(account, digest)| tables.digest(*account) != *digest);
        let differ: Vec<AccountId> = differ.map(|(account, _)| *account).collect();
        let before = if arrived.restart.is_some() { 0 } else { known.time };
        let time = if differ.is_empty() { time.max(before) } else { before };
        let ahead = arrived.position >= known.position;
        let (position, anchor) =
            if ahead { (arrived.position, arrived.anchor) } else { (known.position, known.anchor) };
        (Progress { lane, position, anchor, time, held: tables.lane_digest(lane) }, differ)
    }
}

/// The receipt of what enters nothing itself: it has no place of its own in a block.
const BEHIND: Receipt = Receipt { lsn: Lsn::ZERO, first_sequence: 0, records: 0, repeated: true };

fn pending(done: GeoDone, receipt: Receipt, at: u64, bytes: usize) -> Pending {
    Pending { done: Done::Geo(done), receipt, retry: None, all: false, remote: None, at, bytes }
}

fn unknown(account: AccountId) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no account {}", account.0))
}

fn taken(account: &Account) -> Error {
    let message = format!("account {} or its name {:?} is another account's here", account.id.0, account.name);
    Error::new(ErrorKind::Exists, message)
}

fn not_a_copy(known: &Account) -> Error {
    let message = format!("account {:?} is {:?} here: nothing can arrive for it", known.name, known.role);
    Error::invalid(message)
}

/// What is left of a session of a lane that brought it before.
fn not_its_lane(known: &Account) -> Error {
    let message = format!("account {:?} is brought by another lane here, {:?}", known.name, known.lane);
    Error::new(ErrorKind::Fenced, message)
}

fn fenced(known: &Account, epoch: u64) -> Error {
    let message = format!("account {:?} is in epoch {} here, epoch {epoch} arrived", known.name, known.epoch);
    Error::new(ErrorKind::Fenced, message)
}

fn session_over() -> Error {
    Error::new(ErrorKind::Gap, "an earlier stretch of this session was refused: what comes behind it waits for another")
}

fn gap(known: &Account, partition: PartitionId, expected: u64, found: u64) -> Error {
    let message = format!(
        "account {:?}, partition {:#x}: sequence {expected} comes next here, {found} arrived",
        known.name, partition.0
    );
    Error::new(ErrorKind::Gap, message)
}
