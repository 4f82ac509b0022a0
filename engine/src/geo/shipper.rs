//! The primary's side of a session: committed blocks go in, batches come out, acknowledgements move the marks behind them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::account::Account;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Block, FrameHeader, FrameKind, MAX_RESTARTED, SystemRecord};
use crate::geo::{Anchor, Comparison, Digest, Mark, Restart};
use crate::io::Slice;
use crate::read::BlockView;
use crate::types::{AccountId, Lsn, ORDINAL, PartitionId, Role};

/// A stretch of log with nothing to carry is reported when it is so long.
const SILENT: u64 = 16 << 20;

/// So many batches on their way give the other side enough to do: one is being written, the next is behind it.
const BUSY: usize = 2;

/// How a [`Shipper`] cuts batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShipperOptions {
    /// A batch that holds so many bytes goes out. 1 to 4 MiB; default 1 MiB.
    pub batch_bytes: usize,
    /// A batch goes out so long after its first transaction, in nanoseconds, or at once where fewer than two others are on their way. Default 1 ms.
    pub batch_time: u64,
    /// Bytes that may be on their way without an acknowledgement, as the other side grants them. A larger batch goes alone.
    pub window: u64,
}

impl Default for ShipperOptions {
    fn default() -> ShipperOptions {
        ShipperOptions { batch_bytes: 1 << 20, batch_time: 1_000_000, window: 64 << 20 }
    }
}

/// The largest [`ShipperOptions::batch_bytes`]: with the largest transaction, it bounds what the other side has to take at once.
pub const MOST_BATCH_BYTES: usize = 4 << 20;

/// What goes to the other side at once. Its parts happened in the order of the fields.
pub struct Batch {
    /// Dense in a session, from 1.
    pub number: u64,
    /// A carried account was made or changed.
    pub account: Option<Account>,
    /// Copies begin anew, and the position may go back.
    pub restart: Option<Restart>,
    /// Whole frames of carried accounts, as they lie in the primary's blocks; neighbours are one slice. No payload is copied.
    pub frames: Vec<Slice>,
    /// A mark of every carried account.
    pub mark: Option<Mark>,
    /// Everything before this position of the log that is carried is here or in a batch before.
    pub position: Lsn,
    /// The history that the position is of.
    pub anchor: Anchor,
    /// The bytes of all frames.
    pub bytes: usize,
    /// How many records they hold.
    pub records: u64,
    /// The time of the oldest of their transactions, in the clock of the log; 0 without one.
    pub oldest: u64,
}

/// What a session sends before and beside what is new, for copies that are not whole.
///
/// They are whole, and can be read, with the first mark behind `until` (FAULT-MODEL invariant 15).
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// Where the log is read from: where the other side said that it is, or before, where something lies that a copy lacks. A retained position.
    pub first: Lsn,
    /// Where the other side said that it is: what is not bootstrapped is sent from here on, and no batch says less.
    pub live: Lsn,
    /// The end of the committed log before the accounts were looked up: what the log says of them before is older.
    pub known: Lsn,
    /// The end of the committed log once everything that the accounts and comparisons say was committed.
    pub until: Lsn,
    /// The copies that are not whole.
    pub copies: Vec<Copy>,
}

/// A copy that is not whole.
#[derive(Clone, Debug)]
pub struct Copy {
    /// The account as it is here, all of that committed.
    pub account: Account,
    /// What it lacks; `None` for one that is to be dropped.
    pub compared: Option<Comparison>,
}

/// How far the other side has what it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The batch, and all before it.
    pub number: u64,
    /// The position that is durable there.
    pub position: Lsn,
    /// The last sync time there.
    pub time: u64,
    /// Accounts whose copies were found to differ at a mark.
    pub differ: Vec<AccountId>,
}

/// What was acknowledged just now, for the histogram of commit to remotely durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The time of the oldest transaction in it, in the clock of the log.
    pub time: u64,
    /// How many records.
    pub records: u64,
}

/// What a [`Shipper`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The next committed block.
    Block,
    /// A fuller batch, or its time.
    Batch,
    /// The other side: the window is full.
    Window,
    /// Nothing: a batch is ready.
    Nothing,
}

/// What was offered and is not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Lag {
    /// Bytes of frames.
    pub bytes: u64,
    /// Records.
    pub records: u64,
    /// The time of the oldest transaction, in the clock of the log; 0 when there is none.
    pub oldest: u64,
}

/// The sender of one session: holds no block longer than until its batch is taken, and does no I/O.
///
/// `acknowledged <= shipped <= offered`, always. After a cut a new session makes a new shipper, from where the other side says that it is.
///
/// ```
/// use meridian::geo::{Shipper, ShipperOptions, Waiting};
/// # use meridian::{Ack, DiskConfig, Lsn, Options, PartitionId, Region, Transaction};
/// # let home = tempfile::tempdir()?;
/// # let disks = ["a", "b", "c"].map(|name| DiskConfig::new(home.path().join(name), name, "zone-1"));
/// # let mut options = Options::new(disks.to_vec());
/// # options.segment_bytes = 8 << 20;
/// # let region = Region::create(options, ())?;
/// let account = region.create_account("flights", Ack::Quorum)?;
/// region.commit(Transaction::new(account, PartitionId::named("EWR/UA")).record("UA 1545"))?;
/// let mut shipper = Shipper::new(ShipperOptions::default(), [account], Lsn::ZERO);
/// let mut log = region.subscribe(Lsn::ZERO);
/// while let Some(block) = log.try_next()? {
///     shipper.offer(&block, 0);
/// }
/// let made = shipper.poll(2_000_000).expect("the account's making is a batch of its own");
/// let batch = shipper.poll(2_000_000).expect("its time has come");
/// assert!(made.account.is_some() && batch.bytes > 0);
/// assert_eq!(shipper.waiting(2_000_000), Waiting::Block);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Shipper {
    options: ShipperOptions,
    accounts: BTreeSet<AccountId>,
    resume: Lsn,
    bootstrap: Bootstrapping,
    /// Accounts that were switched off: the batch that says so, and up to where they were sent.
    dropped: BTreeMap<AccountId, (u64, Lsn)>,
    /// Those of them that are on again: what a mark says is not of them, and has to be until another session makes them whole.
    back: BTreeSet<AccountId>,
    /// Whether [`Shipper::lacking`] is not what it was.
    news: bool,
    acknowledged_number: u64,
    open: Open,
    /// Behind the last mark that was not sent.
    left_out: Lsn,
    ready: VecDeque<Closed>,
    /// Sent and not acknowledged, in order.
    flying: VecDeque<Flying>,
    flying_bytes: u64,
    next_number: u64,
    offered: Lsn,
    /// Of the last block that was offered, which no position that is said lies behind.
    anchor: Anchor,
    shipped: Lsn,
    acknowledged: Lsn,
}

/// What is left of a [`Bootstrap`].
#[derive(Default)]
struct Bootstrapping {
    live: Lsn,
    /// Of `live`.
    anchor: Anchor,
    known: Lsn,
    until: Lsn,
    /// What need not be sent of the accounts that are compared.
    have: BTreeMap<AccountId, BTreeMap<PartitionId, u64>>,
    /// The copies, and the epochs that they were said to be in.
    accounts: BTreeMap<AccountId, u64>,
}

impl Bootstrapping {
    /// Whether the other side lacks a frame.
    fn lacks(&self, lsn: Lsn, header: &FrameHeader) -> bool {
        match self.have.get(&header.account) {
            Some(have) => {
                let has = have.get(&header.partition).copied().unwrap_or_default();
                header.first_sequence >= has + u64::from(planted!(SkipsOneMore))
            }
            None if planted!(OthersBeginLate) => lsn >= self.live.max(self.until),
            None => lsn >= self.live,
        }
    }

    /// Whether what the log says of an account at this position is news. The other side passes over older epochs: so must this one, or it
    /// would take a copy for dropped that is not.
    fn is_news(&self, lsn: Lsn, record: &Account) -> bool {
        match self.accounts.get(&record.id) {
            Some(epoch) => lsn >= self.known && record.epoch >= *epoch,
            None => lsn >= self.live,
        }
    }
}

/// The batch in the making.
#[derive(Default)]
struct Open {
    account: Option<Account>,
    restart: Option<Restart>,
    frames: Vec<Slice>,
    bytes: usize,
    records: u64,
    /// The time of its first transaction in the log's clock.
    time: u64,
    /// When its first part was offered.
    since: Option<u64>,
}

struct Closed {
    open: Open,
    mark: Option<Mark>,
    position: Lsn,
    anchor: Anchor,
}

impl Closed {
    fn at(position: Lsn, anchor: Anchor, open: Open) -> Closed {
        Closed { open, mark: None, position, anchor }
    }
}

struct Flying {
    number: u64,
    /// When it was taken.
    sent: u64,
    position: Lsn,
    bytes: u64,
    records: u64,
    time: u64,
}

impl Shipper {
    /// Ships these accounts from `resume` on: the position that the other side holds everything before.
    ///
    /// # Panics
    /// When [`ShipperOptions::batch_bytes`] is 0 or above [`MOST_BATCH_BYTES`].
    #[must_use]
    pub fn new(options: ShipperOptions, accounts: impl IntoIterator<Item = AccountId>, resume: Lsn) -> Shipper {
        assert!((1..=MOST_BATCH_BYTES).contains(&options.batch_bytes), "batch_bytes: 1 to {MOST_BATCH_BYTES}");
        Shipper {
            options,
            accounts: accounts.into_iter().collect(),
            resume,
            bootstrap: Bootstrapping { live: resume, ..Bootstrapping::default() },
            dropped: BTreeMap::new(),
            back: BTreeSet::new(),
            news: true,
            acknowledged_number: 0,
            open: Open::default(),
            left_out: Lsn::ZERO,
            ready: VecDeque::new(),
            flying: VecDeque::new(),
            flying_bytes: 0,
            next_number: 1,
            offered: resume,
            anchor: Anchor::default(),
            shipped: resume,
            acknowledged: resume,
        }
    }

    /// As [`Shipper::new`], and makes copies whole on the way.
    ///
    /// # Panics
    /// As [`Shipper::new`].
    #[must_use]
    pub fn bootstrap(
        options: ShipperOptions,
        accounts: impl IntoIterator<Item = AccountId>,
        bootstrap: Bootstrap,
    ) -> Shipper {
        let Bootstrap { first, live, known, until, copies } = bootstrap;
        let mut shipper = Shipper::new(options, accounts, first);
        let begins = copies.iter().any(|copy| copy.compared.is_some());
        // Where copies are only dropped, those that stay are whole all the time.
        let until = if begins { until } else { Lsn::ZERO };
        shipper.bootstrap = Bootstrapping { live, known, until, ..Bootstrapping::default() };
        shipper.bootstrap.accounts = copies.iter().map(|copy| (copy.account.id, copy.account.epoch)).collect();
        if begins {
            // Until everything has begun anew, nothing is known to be there.
            (shipper.shipped, shipper.acknowledged) = (Lsn::ZERO, Lsn::ZERO);
        }
        let at = shipper.shipped;
        for Copy { account, compared } in copies {
            let (id, dropped) = (account.id, account.role == Role::Local);
            // A restart that says nothing still hides a copy until it is whole.
            let restart = compared.is_some().then(|| Restart { account: id, partitions: Vec::new() });
            let open = Open { account: Some(account), restart, ..Open::default() };
            shipper.ready.push_back(Closed::at(at, Anchor::default(), open));
            if dropped {
                shipper.leave_out(id, Lsn::ZERO);
            }
            let Some(Comparison { restart, have, .. }) = compared else { continue };
            shipper.bootstrap.have.insert(id, have);
            for partitions in restart.chunks(MAX_RESTARTED).map(<[_]>::to_vec) {
                let restart = Some(Restart { account: id, partitions });
                shipper.ready.push_back(Closed::at(at, Anchor::default(), Open { restart, ..Open::default() }));
            }
        }
        // The other side may say that it is here only when everything that lacks what was before has begun anew.
        if let Some(last) = shipper.ready.back_mut() {
            last.position = first;
        }
        shipper
    }

    /// Takes note of which history the position is that the other side named, and the one that is read from: what is sent before
    /// a block was offered says these.
    pub fn begin_at(&mut self, named: Anchor, read_from: Anchor) {
        (self.bootstrap.anchor, self.anchor) = (named, read_from);
        self.ready.iter_mut().for_each(|closed| closed.anchor = read_from);
    }

    /// Whether the other side has dropped its copy of an account that was switched off: where it is on again, another session has to make it
    /// whole.
    #[must_use]
    pub fn has_dropped(&self, account: AccountId) -> bool {
        self.dropped.get(&account).is_some_and(|(number, _)| *number <= self.acknowledged_number)
    }

    /// Whether copies are being made whole.
    #[must_use]
    pub fn is_bootstrapping(&self) -> bool {
        self.acknowledged < self.bootstrap.until
    }

    /// Whether another block can be offered: what was offered before is in batches, and those are taken.
    #[must_use]
    pub fn wants_block(&self) -> bool {
        self.ready.is_empty() && self.open.bytes < self.options.batch_bytes
    }

    /// Takes in the next committed block of the log. `now` is any clock that [`Shipper::poll`] shares, in nanoseconds.
    ///
    /// # Panics
    /// When a block comes twice or out of order.
    pub fn offer(&mut self, block: &BlockView, now: u64) {
        assert!(block.end() > self.offered, "blocks are offered in order");
        let data = block.data();
        // Neighbouring frames make one slice.
        let mut run = 0..0;
        let trusted = Block::trusted(data);
        self.anchor = Anchor { block: block.lsn(), checksum: trusted.checksum() };
        let last = u64::from(trusted.header().frames).saturating_sub(1);
        for (ordinal, (at, frame)) in (0..).zip(trusted.frames()) {
            let lsn = Lsn(block.lsn().0 & !u64::from(ORDINAL) | ordinal);
            let behind = if ordinal == last { block.end() } else { Lsn(lsn.0 + 1) };
            if lsn < self.resume || (lsn == self.resume && planted!(ResumeTooLate)) {
                continue;
            }
            let (header, at) = (frame.header(), at as usize);
            if header.kind == FrameKind::System {
                self.close_run(data, &mut run);
                self.offered = behind;
                self.offer_system(lsn, &header, frame.record(0).unwrap_or_default(), now);
                continue;
            }
            if !self.accounts.contains(&header.account) || !self.bootstrap.lacks(lsn, &header) {
                continue;
            }
            if run.end != at {
                self.close_run(data, &mut run);
                run = at..at;
            }
            run.end += frame.len();
            self.go_on_behind_marks();
            let open = &mut self.open;
            if open.records == 0 {
                open.time = header.time;
            }
            open.since.get_or_insert(now);
            open.bytes += frame.len();
            open.records += frame.count() as u64;
            if open.bytes >= self.options.batch_bytes {
                self.close_run(data, &mut run);
                self.close(None, behind);
            }
        }
        self.close_run(data, &mut run);
        self.offered = block.end();
        if self.offered >= self.bootstrap.until {
            self.bootstrap.have.clear();
        }
    }

    fn close_run(&mut self, data: &Slice, run: &mut std::ops::Range<usize>) {
        if run.start < run.end {
            self.open.frames.push(data.part(run.clone()));
        }
        *run = 0..0;
    }

    fn offer_system(&mut self, lsn: Lsn, header: &FrameHeader, record: &[u8], now: u64) {
        match SystemRecord::decode(record) {
            Ok(SystemRecord::Account(known))
                if self.accounts.contains(&known.id) && self.bootstrap.is_news(lsn, &known) =>
            {
                self.offer_account(lsn, &known, now);
            }
            Ok(SystemRecord::Account(known)) if self.dropped.contains_key(&known.id) => {
                if known.role == Role::Primary {
                    self.back.insert(known.id);
                } else {
                    self.back.remove(&known.id);
                }
            }
            Ok(SystemRecord::Mark(marked)) => self.offer_mark(lsn, header.time, marked),
            _ => {}
        }
    }

    /// A mark that speaks of copies that are not whole, or not of all, is not sent. No batch goes over it all the same: the other side may end in
    /// the middle of a batch, and a later session, of other accounts, may send the mark. What is there by then has to be before it.
    fn offer_mark(&mut self, lsn: Lsn, time: u64, mut marked: Vec<(AccountId, Digest)>) {
        marked.retain(|(id, _)| self.accounts.contains(id));
        let whole = self.back.is_empty() && (lsn >= self.bootstrap.until || planted!(MarksTooEarly));
        if !whole || marked.len() != self.accounts.len() || marked.is_empty() {
            self.left_out = self.offered;
            return self.close(None, self.offered);
        }
        let mark = Mark { time, accounts: marked };
        if planted!(MarkOvertakes) {
            let open = std::mem::take(&mut self.open);
            self.close(Some(mark), self.shipped);
            self.open = open;
            return;
        }
        self.close(Some(mark), self.offered);
    }

    /// Before the first frame of a batch the other side is told that it is behind the mark that was left out, where no batch has said so.
    fn go_on_behind_marks(&mut self) {
        let last = self.ready.back().map_or(self.shipped, |closed| closed.position);
        if self.open.since.is_none() && self.left_out > last {
            self.ready.push_back(Closed::at(self.left_out, self.anchor, Open::default()));
        }
    }

    fn offer_account(&mut self, lsn: Lsn, known: &Account, now: u64) {
        if !planted!(AccountOvertakes) {
            self.close(None, lsn);
        }
        self.open.account = Some(known.clone());
        self.open.since.get_or_insert(now);
        self.close(None, self.offered);
        if known.role == Role::Local {
            self.leave_out(known.id, lsn);
        }
    }

    /// Sends nothing more for an account: its copy was dropped, or the last batch that is ready says so. Should there be one again, that is a
    /// bootstrap of another session. What lies before `sent` was sent.
    pub fn leave_out(&mut self, account: AccountId, sent: Lsn) {
        self.accounts.remove(&account);
        self.news = true;
        self.dropped.insert(account, (self.next_number + self.ready.len() as u64 - 1, sent));
    }

    /// The open batch is complete: everything before `position` is in it or in one before.
    fn close(&mut self, mark: Option<Mark>, position: Lsn) {
        if self.open.since.is_none() && mark.is_none() {
            return;
        }
        let open = std::mem::take(&mut self.open);
        self.ready.push_back(Closed { open, mark, position, anchor: self.anchor });
    }

    /// The next batch, if one is complete or its time has come, and the window has room for it.
    pub fn poll(&mut self, now: u64) -> Option<Batch> {
        if self.waiting(now) != Waiting::Nothing {
            return None;
        }
        let Closed { open, mark, position, anchor } = self.ready.pop_front().unwrap_or_else(|| {
            let open = std::mem::take(&mut self.open);
            Closed { open, mark: None, position: self.offered, anchor: self.anchor }
        });
        let Open { account, restart, frames, bytes, records, time, .. } = open;
        let number = self.next_number;
        self.next_number += 1;
        self.flying_bytes += bytes as u64;
        self.flying.push_back(Flying { number, sent: now, position, bytes: bytes as u64, records, time });
        assert!(self.shipped <= position && position <= self.offered, "shipped <= offered");
        self.shipped = position;
        let Bootstrapping { live, anchor: named, .. } = self.bootstrap;
        let (position, anchor) = if position > live { (position, anchor) } else { (live, named) };
        Some(Batch { number, account, restart, frames, mark, position, anchor, bytes, records, oldest: time })
    }

    /// What it waits for now.
    #[must_use]
    pub fn waiting(&self, now: u64) -> Waiting {
        let bytes = self.ready.front().map_or(self.open.bytes, |closed| closed.open.bytes) as u64;
        let due = !self.ready.is_empty() || self.deadline().is_some_and(|at| at <= now);
        let silent = self.offered.0 - self.shipped.0 >= SILENT && self.open.since.is_none();
        if !due && !silent {
            return if self.open.since.is_some() { Waiting::Batch } else { Waiting::Block };
        }
        if self.flying_bytes > 0 && self.flying_bytes + bytes > self.options.window {
            return Waiting::Window;
        }
        Waiting::Nothing
    }

    /// When the open batch goes out at the latest, in the clock of [`Shipper::offer`].
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        // While the other side has little to do, a fuller batch would be no gain.
        let wait = if self.flying.len() < BUSY { 0 } else { self.options.batch_time };
        self.open.since.map(|since| since.saturating_add(wait))
    }

    /// Takes in an acknowledgement: everything up to its batch is durable on the other side. Returns what was on its way.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a batch that was not sent, or is acknowledged already: end the session.
    pub fn acknowledge(&mut self, number: u64) -> Result<Vec<Acknowledged>> {
        let first = self.flying.front().map_or(self.next_number, |flying| flying.number);
        if !(first..self.next_number).contains(&number) {
            let message =
                format!("batch {number} was acknowledged, {first} to {} are on their way", self.next_number - 1);
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let count = if planted!(AcknowledgesAll) { self.flying.len() } else { (number - first + 1) as usize };
        self.acknowledged_number = first + count as u64 - 1;
        let bootstrapping = self.is_bootstrapping();
        let mut acknowledged = Vec::with_capacity(count);
        for Flying { position, bytes, records, time, .. } in self.flying.drain(..count) {
            self.flying_bytes -= bytes;
            assert!(self.acknowledged <= position && position <= self.shipped, "acknowledged <= shipped");
            self.acknowledged = position;
            acknowledged.push(Acknowledged { time, records });
        }
        self.news |= bootstrapping != self.is_bootstrapping();
        acknowledged.retain(|batch| batch.records > 0);
        Ok(acknowledged)
    }

    /// The other side holds everything before this position, of copies that are whole.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.acknowledged.max(self.bootstrap.live)
    }

    /// What lies before this position need not be read again, neither for whole copies nor for others: what they lacked of it is there.
    #[must_use]
    pub fn settled(&self) -> Lsn {
        self.acknowledged
    }

    /// The accounts of which [`Shipper::position`] says nothing behind another position, when they are not those of the last call: they are made
    /// whole, or are not sent.
    pub fn lacking(&mut self) -> Option<BTreeMap<AccountId, Lsn>> {
        if !std::mem::take(&mut self.news) {
            return None;
        }
        let copies = self.bootstrap.accounts.keys().filter(|_| self.is_bootstrapping()).map(|id| (*id, Lsn::ZERO));
        Some(copies.chain(self.dropped.iter().map(|(id, (_, sent))| (*id, *sent))).collect())
    }

    /// For how long the oldest batch has been on its way; 0 when none is.
    #[must_use]
    pub fn longest_flight(&self, now: u64) -> u64 {
        self.flying.front().map_or(0, |flying| now.saturating_sub(flying.sent))
    }

    /// Everything before this position was looked at.
    #[must_use]
    pub fn offered(&self) -> Lsn {
        self.offered
    }

    /// What was offered and is not acknowledged. What still lies in the log comes on top.
    #[must_use]
    pub fn lag(&self) -> Lag {
        let ready = self.ready.iter().map(|closed| &closed.open).chain([&self.open]);
        let ready = ready.map(|open| (open.bytes as u64, open.records, open.time));
        let flying = self.flying.iter().map(|flying| (flying.bytes, flying.records, flying.time));
        flying.chain(ready).filter(|(_, records, _)| *records > 0).fold(
            Lag::default(),
            |lag, (bytes, records, time)| Lag {
                bytes: lag.bytes + bytes,
                records: lag.records + records,
                oldest: if lag.records == 0 { time } else { lag.oldest },
            },
        )
    }
}
