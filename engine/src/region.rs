//! A region as its embedder holds it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use event_listener::Listener as _;

use crate::account::{Account, Contract};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Frame, FrameKind, MAX_MARKED, MAX_RESTARTED};
use crate::geo::{Anchor, Arrived, Carried, Cut, Digest, Imported, Lane, Progress};
use crate::giveway::{give_way, spend};
use crate::health::{Health, SegmentHealth};
use crate::io::{Arena, Driver, driver};
use crate::log::geo::{Carry, Geo, Import};
use crate::log::scrub::ScrubReport;
use crate::log::{Core, Mode, Phase, placement};
use crate::options::{Options, check_account_name};
use crate::shared::{AccountChange, Commit, Control, PutAccount, Request, Shared, lock};
use crate::stats::Stats;
use crate::sync::intake::{AHEAD, Intake, Reason, Refused};
use crate::sync::ticket::{Abandoned, Resolver, ticket};
use crate::ticket::Ticket;
use crate::transaction::{Receipt, StateMachine, Transaction};
use crate::types::{AccountId, Ack, LogId, Lsn, PartitionId, Role, SegmentId};

/// What makes a driver for the thread that it is called on, which is the one that uses it.
pub trait MakeDriver: FnOnce() -> io::Result<Box<dyn Driver>> + Send + 'static {}

impl<F: FnOnce() -> io::Result<Box<dyn Driver>> + Send + 'static> MakeDriver for F {}

/// How long the log thread sleeps when nothing happens.
const NAP: Duration = Duration::from_millis(100);

/// An open region: one log on three or more disks, with one thread of its own.
///
/// It is `Send + Sync`: share it by reference or in an `Arc`. Dropping it closes it; [`Region::close`] also says how that went.
///
/// Methods that return a [`Result`] may sleep, until the log thread has answered or a disk was read, and so does dropping it; but not
/// [`Region::try_submit`] and [`Region::submit_async`]. Call the others on a thread that may block, not in a task.
///
/// On the region's own log thread, where its [`StateMachine`] runs, whatever waits for that thread returns
/// [`WouldDeadlock`](ErrorKind::WouldDeadlock) instead, also where it is not listed; if the last handle is dropped there, the region closes after the machine returns.
/// In a process that was forked from the one that opened the region, everything but reading what is committed returns [`Forked`](ErrorKind::Forked), and
/// dropping handles does nothing. The opening process can open the region again while such a child lives.
pub struct Region {
    pub(crate) shared: Arc<Shared>,
    /// Says when the log thread has let go of everything; `None` once that was waited for.
    ended: Mutex<Option<Ended>>,
}

/// Receives nothing, until the log thread has let go of everything. The thread itself is not joined: what it left to a disk
/// that hangs keeps it in the kernel until the disk answers.
type Ended = mpsc::Receiver<std::convert::Infallible>;

impl Region {
    /// Makes a region on empty or missing directories and opens it.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for options, labels or placement (acceptance L1, L2), for directories that
    /// hold something else, and for one directory given twice or inside another, by whatever names (acceptance H4); [`Exists`](ErrorKind::Exists) where a region is; [`Locked`](ErrorKind::Locked);
    /// [`NoSpace`](ErrorKind::NoSpace).
    pub fn create(options: Options, machine: impl StateMachine + 'static) -> Result<Region> {
        Region::start(Mode::Create, options, Box::new(machine), None)
    }

    /// As [`Region::create`], on an I/O back end of the caller's making instead of [`Options::driver`]; `make` runs on the
    /// log thread. For harnesses that let disks fail.
    ///
    /// # Errors
    /// As [`Region::create`]; [`System`](ErrorKind::System) when `make` fails.
    pub fn create_with(
        options: Options,
        machine: impl StateMachine + 'static,
        make: impl MakeDriver,
    ) -> Result<Region> {
        Region::start(Mode::Create, options, Box::new(machine), Some(Box::new(make)))
    }

    /// Opens a region: recovers its log, hands the machine what it lacks, then serves.
    ///
    /// # Errors
    /// [`RestoreDisk`](ErrorKind::RestoreDisk) when fewer disks can be read than FAULT-MODEL's rules need, naming what is missing, also
    /// when no directory is there: disks that are not mounted look like that; [`NotFound`](ErrorKind::NotFound) when all directories are there and
    /// empty; [`Locked`](ErrorKind::Locked); [`InvalidInput`](ErrorKind::InvalidInput) when options or labels contradict what is stored, one disk's
    /// directory is another's or inside it (acceptance H4), or the machine resumes after the end of the log: its state is of another one;
    /// [`LimitReached`](ErrorKind::LimitReached) when it holds more accounts, partitions or clients than the options accept;
    /// [`Trimmed`](ErrorKind::Trimmed) when the machine resumes before the first retained position; [`Halted`](ErrorKind::Halted) when it panicked.
    pub fn open(options: Options, machine: impl StateMachine + 'static) -> Result<Region> {
        Region::start(Mode::Open, options, Box::new(machine), None)
    }

    /// As [`Region::open`], on an I/O back end of the caller's making, as in [`Region::create_with`].
    ///
    /// # Errors
    /// As [`Region::open`]; [`System`](ErrorKind::System) when `make` fails.
    pub fn open_with(options: Options, machine: impl StateMachine + 'static, make: impl MakeDriver) -> Result<Region> {
        Region::start(Mode::Open, options, Box::new(machine), Some(Box::new(make)))
    }

    fn start(
        mode: Mode,
        mut options: Options,
        machine: Box<dyn StateMachine>,
        make: Option<Box<dyn MakeDriver>>,
    ) -> Result<Region> {
        options.make_paths_absolute()?;
        options.validate()?;
        placement::check(options.placement, &options.disks)?;
        let (tell, told) = mpsc::sync_channel(1);
        let (ends, ended): (_, Ended) = mpsc::channel();
        let builder = std::thread::Builder::new().name("meridian-log".into());
        #[allow(
            clippy::disallowed_methods,
            reason = "the log thread is the region's own; a simulation steps the core instead"
        )]
        builder
            .spawn(move || {
                run(mode, options, machine, make, &tell);
                drop(ends);
            })
            .map_err(|error| Error::new(ErrorKind::System, format!("the log thread could not be started: {error}")))?;
        let opened = told.recv().unwrap_or_else(|_| Err(stopped()));
        match opened {
            Ok(shared) => Ok(Region { shared, ended: Mutex::new(Some(ended)) }),
            Err(error) => {
                let _over = ended.recv();
                Err(error)
            }
        }
    }

    /// Hands a transaction over, waiting for room in the queue, and returns the ticket for its answer.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput), [`Closed`](ErrorKind::Closed), [`Halted`](ErrorKind::Halted),
    /// [`WouldDeadlock`](ErrorKind::WouldDeadlock), [`Forked`](ErrorKind::Forked),
    /// [`Behind`](ErrorKind::Behind) where a [`Gate`](crate::Gate) refuses. Everything else comes through the ticket.
    pub fn submit(&self, transaction: Transaction) -> Result<Ticket> {
        self.shared.home.check_wait()?;
        while let Some(change) = self.shared.gates.pass(transaction.account)? {
            change.wait();
        }
        let (commit, ticket) = self.prepare(transaction)?;
        let bytes = commit.bytes as u64;
        self.shared
            .intake
            .push_blocking(Request::Commit(commit), bytes)
            .map_err(|refused| self.shared.refused(&refused))?;
        Ok(ticket)
    }

    /// As [`Region::submit`], but never waits.
    ///
    /// # Errors
    /// As [`Region::submit`] without [`WouldDeadlock`](ErrorKind::WouldDeadlock), and [`Busy`](ErrorKind::Busy) when the queue is full.
    pub fn try_submit(&self, transaction: Transaction) -> Result<Ticket> {
        if self.shared.gates.pass(transaction.account)?.is_some() {
            return Err(Error::new(ErrorKind::Busy, "the account's secondary has to catch up: wait and send again"));
        }
        let (commit, ticket) = self.prepare(transaction)?;
        let bytes = commit.bytes as u64;
        self.shared.intake.try_push(Request::Commit(commit), bytes).map_err(|refused| self.shared.refused(&refused))?;
        Ok(ticket)
    }

    /// As [`Region::submit`], but the task waits for room and not the thread. Any runtime will do: it gives way to the thread's other tasks now and
    /// then, also while there is always room.
    ///
    /// # Errors
    /// As [`Region::submit`].
    pub async fn submit_async(&self, transaction: Transaction) -> Result<Ticket> {
        give_way().await;
        while let Some(change) = self.shared.gates.pass(transaction.account)? {
            change.await;
        }
        let (commit, ticket) = self.prepare(transaction)?;
        let bytes = commit.bytes as u64;
        spend(commit.bytes);
        self.shared
            .intake
            .push(Request::Commit(commit), bytes)
            .await
            .map_err(|refused| self.shared.refused(&refused))?;
        Ok(ticket)
    }

    /// Commits a transaction and waits: [`Region::submit`], then [`Ticket::wait`].
    ///
    /// # Errors
    /// As both.
    pub fn commit(&self, transaction: Transaction) -> Result<Receipt> {
        self.submit(transaction)?.wait()
    }

    fn prepare(&self, transaction: Transaction) -> Result<(Commit, Ticket)> {
        self.shared.home.check_process()?;
        let len = transaction.encoded_len();
        let len = len.ok_or_else(|| {
            let count = transaction.len();
            Error::invalid(format!(
                "the transaction has {count} records: 1 to 65,535 records of up to 2 GiB together accepted"
            ))
        })?;
        let most = self.shared.options.transaction_bytes;
        if len > most {
            return Err(Error::invalid(format!("the transaction has {len} bytes with its headers, {most} accepted")));
        }
        if transaction.account == AccountId::SYSTEM {
            return Err(Error::invalid("account 0 is the system's own"));
        }
        let (done, answer) = ticket();
        let commit = Commit { transaction, done, at: self.shared.environment.now(), bytes: len };
        Ok((commit, Ticket::new(answer, self.shared.home)))
    }

    /// Makes an account with a default ack level; its id is what transactions name.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for the name (1 to 128 bytes, no control characters),
    /// [`Exists`](ErrorKind::Exists), [`LimitReached`](ErrorKind::LimitReached).
    pub fn create_account(&self, name: &str, ack: Ack) -> Result<AccountId> {
        self.put_account(name, AccountChange::Create(ack))
    }

    /// Changes an account's default ack level for later transactions.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    pub fn set_account_ack(&self, name: &str, ack: Ack) -> Result<AccountId> {
        self.put_account(name, AccountChange::SetAck(ack))
    }

    /// Begins the account's next epoch: transactions that name an older one are [`Fenced`](ErrorKind::Fenced).
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    pub fn fence_account(&self, name: &str) -> Result<AccountId> {
        self.put_account(name, AccountChange::Fence)
    }

    /// Says whether other regions are to hold a copy of the account; true for a new one (acceptance G12). Where it becomes false, the copy is
    /// dropped by the link that carries it: nobody reads it any more, and its space comes back as that region's log is trimmed. Where it becomes true again, the link
    /// sends what the copy lacks (acceptance G13).
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Secondary`](ErrorKind::Secondary).
    pub fn set_account_geo(&self, name: &str, on: bool) -> Result<AccountId> {
        self.put_account(name, AccountChange::SetGeo(on))
    }

    /// Says whether the account's secondary can be read; true for a new one (acceptance G11). The link carries it there.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Secondary`](ErrorKind::Secondary).
    pub fn set_account_read_access(&self, name: &str, on: bool) -> Result<AccountId> {
        self.put_account(name, AccountChange::SetReadAccess(on))
    }

    /// Lets an account's secondary be read here though its primary's settings say no (acceptance G11): for an operator whose primary region is
    /// lost. It holds in this region until it is revoked or the region is closed, changes nothing that is stored, and is shown with its reason in
    /// [`Health::read_overrides`]. What is read is what has arrived; [`Region::last_sync_time`] says up to when that is everything. A copy that goes into
    /// bootstrap is hidden again until it is whole.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`InvalidInput`](ErrorKind::InvalidInput) for an account that is no secondary here, or whose copy is in
    /// bootstrap and so not whole, and for a reason that is not 1 to 256 bytes without control characters.
    pub fn override_read_access(&self, account: AccountId, reason: &str) -> Result<()> {
        if !(1..=256).contains(&reason.len()) || reason.chars().any(char::is_control) {
            return Err(Error::invalid(format!(
                "reason {reason:?}: 1 to 256 bytes without control characters accepted"
            )));
        }
        let reason = Some(reason.to_owned());
        self.control(|done| Control::OverrideReads { account, reason, done })
    }

    /// Takes [`Region::override_read_access`] back; without effect where there was none.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    pub fn revoke_read_override(&self, account: AccountId) -> Result<()> {
        self.control(|done| Control::OverrideReads { account, reason: None, done })
    }

    /// Says how far the account's secondary may be behind, and what happens beyond that (acceptance G9); nothing does for a new one.
    /// It holds for commits from then on: who waits for the secondary already goes on waiting while a link keeps the account's gate.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Secondary`](ErrorKind::Secondary); [`InvalidInput`](ErrorKind::InvalidInput) for less than a
    /// contract can be.
    pub fn set_account_contract(&self, name: &str, contract: Option<Contract>) -> Result<AccountId> {
        contract.as_ref().map_or(Ok(()), Contract::check)?;
        self.put_account(name, AccountChange::SetContract(contract))
    }

    fn put_account(&self, name: &str, change: AccountChange) -> Result<AccountId> {
        check_account_name(name)?;
        let at = self.shared.environment.now();
        self.shared.ask(|done| Request::PutAccount(PutAccount { name: name.to_owned(), change, done, at }))
    }

    /// Takes in a stretch of another region's log, frame by frame as they are (acceptance G2, G3, G5): waits for room in the queue,
    /// verifies every frame on the caller's thread, and returns the ticket for what became of it.
    ///
    /// What had arrived before is skipped, so that sending again is safe. After an error the frames before the one that it names stay;
    /// the progress does not move. An account that arrives is made here as a secondary: local writes to it are refused.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for bytes that are not whole data frames; [`Closed`](ErrorKind::Closed),
    /// [`Halted`](ErrorKind::Halted). Through the ticket, as
    /// [`Ticket::wait`], and: [`Gap`](ErrorKind::Gap) when records before are missing, [`Fenced`](ErrorKind::Fenced) for another epoch than the
    /// account's (invariant 13), [`Exists`](ErrorKind::Exists) when an account that arrives has the number or name of another one here,
    /// [`NotFound`](ErrorKind::NotFound) for frames of an account that never arrived.
    pub fn import(&self, arrived: Arrived) -> Result<Ticket<Imported>> {
        self.shared.home.check_wait()?;
        // More than the queue holds goes in alone, as if it filled it.
        let bytes = check_arrived(&arrived)?.min(self.shared.options.queue_bytes);
        let (done, answer) = ticket();
        let import = Import::new(arrived, done, self.shared.environment.now(), bytes);
        let request = Request::Geo(Geo::Import(Box::new(import)));
        self.shared.intake.push_blocking(request, bytes as u64).map_err(|refused| self.shared.refused(&refused))?;
        Ok(Ticket::new(answer, self.shared.home))
    }

    /// Writes a [`Mark`](crate::geo::Mark) of these accounts into the log and returns its position once it is committed. What the geo link
    /// calls again and again, also while nothing is written, so that last sync time moves on (acceptance G9).
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Secondary`](ErrorKind::Secondary) for an account whose primary is elsewhere;
    /// [`InvalidInput`](ErrorKind::InvalidInput) for more than [`MAX_MARKED`] accounts; otherwise as [`Ticket::wait`].
    pub fn mark(&self, accounts: &[AccountId]) -> Result<Lsn> {
        self.mark_with(accounts, None)
    }

    /// As [`Region::mark`], and keeps, durably, what the secondary of a lane of this log has acknowledged: after a restart
    /// [`Region::progress`] of that lane says what was known.
    ///
    /// # Errors
    /// As [`Region::mark`].
    pub fn mark_with(&self, accounts: &[AccountId], acknowledged: Option<Progress>) -> Result<Lsn> {
        let mut accounts = accounts.to_vec();
        accounts.sort_unstable();
        accounts.dedup();
        if accounts.len() > MAX_MARKED {
            return Err(Error::invalid(format!("a mark of {} accounts, {MAX_MARKED} accepted", accounts.len())));
        }
        self.shared.ask(|done| Request::Geo(Geo::Mark { accounts, acknowledged, done }))
    }

    /// How far a lane of another region's log has arrived here, durably; `None` before anything did. Of a lane of this region's own log:
    /// what its secondary had acknowledged when the log was last marked.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed).
    pub fn progress(&self, lane: Lane) -> Result<Option<Progress>> {
        self.shared.ask(|done| Request::Geo(Geo::Progress { lane, done }))
    }

    /// Says at the beginning of a session which accounts a lane brings from now on, durably. A copy that it did not bring until now is in bootstrap
    /// from then on: it may lack what the lane had meanwhile. Returns how far the lane has brought what it has.
    ///
    /// `void` is a position and anchor that the primary found to be of another history of its log. Where the lane stands there, it
    /// begins again from nothing, and its copies are in bootstrap.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed), [`Halted`](ErrorKind::Halted), [`NoSpace`](ErrorKind::NoSpace).
    pub fn carry(
        &self,
        lane: Lane,
        accounts: impl IntoIterator<Item = AccountId>,
        void: Option<(Lsn, Anchor)>,
    ) -> Result<Carried> {
        let accounts = accounts.into_iter().collect();
        self.shared.ask(|done| Request::Geo(Geo::Carry(Carry { lane, accounts, void, done })))
    }

    /// Whether a position is of this log's history: everything before it is what a peer that names it was sent. One that
    /// was trimmed is taken for it: what lies before is compared all the same. A backup has the number of the log that it was made of, so
    /// that this has to be asked before anything is claimed or sent from a position.
    ///
    /// # Errors
    /// As [`Region::read`], but for a block that is not there.
    pub fn is_history(&self, position: Lsn, anchor: Anchor) -> Result<bool> {
        self.shared.is_history(position, anchor)
    }

    /// The history that a retained position is of: the first block that ends after it. None is named where nothing was committed after it.
    ///
    /// # Errors
    /// As [`Region::read`].
    pub fn anchor(&self, position: Lsn) -> Result<Anchor> {
        self.shared.anchor(position)
    }

    /// The last moment of a lane that can be read here; `None` before the first mark arrived, and while a copy begins anew. Read the log, or a
    /// partition, up to its position: what comes after belongs to a later moment that is not whole yet.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed).
    pub fn cut(&self, lane: Lane) -> Result<Option<Cut>> {
        self.control(|done| Control::Cut { lane, done })
    }

    /// Last sync time of an account's copy here, and of each of its partitions, in nanoseconds since the Unix epoch of the primary's clock: all that
    /// was committed up to then is there (acceptance G9). `None` while the copy is not whole, was switched off, or is no copy.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Closed`](ErrorKind::Closed).
    pub fn last_sync_time(&self, account: AccountId) -> Result<Option<u64>> {
        let known = self.accounts()?.into_iter().find(|known| known.id == account);
        let known =
            known.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no account {}", account.0)))?;
        match known.lane {
            Some(lane) if known.role == Role::Secondary => Ok(self.cut(lane)?.map(|cut| cut.time)),
            _ => Ok(None),
        }
    }

    /// What an account holds: every record ever committed, the trimmed ones included.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed).
    pub fn digest(&self, account: AccountId) -> Result<Digest> {
        let (_, digest) = self.shared.ask(|done| Request::Geo(Geo::Digest { account, partition: None, done }))?;
        Ok(digest)
    }

    /// The sequence after a partition's last committed record, and what the partition holds, the trimmed records included.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed).
    pub fn partition_digest(&self, account: AccountId, partition: PartitionId) -> Result<(u64, Digest)> {
        self.shared.ask(|done| Request::Geo(Geo::Digest { account, partition: Some(partition), done }))
    }

    /// The identity of the log, drawn when the region was made.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        self.shared.log_id()
    }

    /// Every account, by id: where an embedder finds the ids of its accounts after opening.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed).
    pub fn accounts(&self) -> Result<Vec<Account>> {
        self.control(|done| Control::Accounts { done })
    }

    /// Gives back the space of whole segments before `to`, as far as pins, the checkpoint and the unsealed tail allow.
    /// Returns the first position still retained. A state machine that has to replay from somewhere pins that position:
    /// the log does not know how far it is durable. Commits that were refused for lack of space are taken again a fraction of a second later.
    ///
    /// # Errors
    /// [`RestoreDisk`](ErrorKind::RestoreDisk) when the superblocks cannot be written on a majority of disks;
    /// [`Halted`](ErrorKind::Halted).
    pub fn trim(&self, to: Lsn) -> Result<Lsn> {
        self.control(|done| Control::Trim { to, done })
    }

    /// Holds back trimming from `at` on while the returned pin lives. Pins are not kept: after opening, pin again before anything is trimmed.
    /// What was trimmed already does not come back.
    ///
    /// ```
    /// # use meridian::{DiskConfig, Lsn, Options, Region};
    /// # let home = tempfile::tempdir()?;
    /// # let disks = ["a", "b", "c"].map(|name| DiskConfig::new(home.path().join(name), name, "zone-1"));
    /// # let region = Region::create(Options { segment_bytes: 8 << 20, ..Options::new(disks.to_vec()) }, ())?;
    /// let backup = region.pin(region.first());
    /// assert_eq!(region.trim(Lsn::MAX)?, region.first(), "nothing that the backup has to read is gone");
    /// drop(backup);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn pin(&self, at: Lsn) -> RetentionPin {
        let key = lock(&self.shared.pins).add(at);
        RetentionPin { shared: Arc::clone(&self.shared), key }
    }

    /// Takes the disks of an upgrade domain out of the sets, one domain at a time; returns when no new block goes there
    /// (acceptance L7). Where too few other disks are left, one that is drained and still there serves again.
    ///
    /// # Errors
    /// [`Degraded`](ErrorKind::Degraded) while the sets are not whole or another domain is drained;
    /// [`NotFound`](ErrorKind::NotFound).
    pub fn drain(&self, upgrade_domain: &str) -> Result<()> {
        let upgrade_domain = upgrade_domain.to_owned();
        self.control(|done| Control::Drain { upgrade_domain, on: true, done })
    }

    /// Lets the disks of a drained upgrade domain take segments again.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    pub fn undrain(&self, upgrade_domain: &str) -> Result<()> {
        let upgrade_domain = upgrade_domain.to_owned();
        self.control(|done| Control::Drain { upgrade_domain, on: false, done })
    }

    /// Gives a disk up, as if an operation on it had failed: writes go on without it, its copies are rebuilt elsewhere.
    /// For operators who know that a disk is going, and for drills.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`InvalidInput`](ErrorKind::InvalidInput) when it is lost already.
    pub fn fail_disk(&self, disk: usize) -> Result<()> {
        self.control(|done| Control::Fail { disk, done })
    }

    /// Takes back a disk that was lost, by its place in the options. It is reread and rebuilt before it counts again;
    /// [`Region::health`] shows when.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) when it is in use or not this region's;
    /// [`Busy`](ErrorKind::Busy) while its old operations have not returned; [`RestoreDisk`](ErrorKind::RestoreDisk).
    pub fn return_disk(&self, disk: usize) -> Result<()> {
        self.control(|done| Control::Return { disk, replace: false, done })
    }

    /// Puts an empty directory in the place of a lost disk, under a new identity, and fills it from the others.
    ///
    /// # Errors
    /// As [`Region::return_disk`], and when the directory is not empty.
    pub fn replace_disk(&self, disk: usize) -> Result<()> {
        self.control(|done| Control::Return { disk, replace: true, done })
    }

    /// Rereads every copy of every sealed segment now, at full speed, and repairs what it can (acceptance L5).
    ///
    /// # Errors
    /// [`Halted`](ErrorKind::Halted), also when the region halts before the end; [`Closed`](ErrorKind::Closed).
    pub fn scrub(&self) -> Result<ScrubReport> {
        self.control(|done| Control::Scrub { done })
    }

    /// How the region stands (acceptance L8).
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed).
    pub fn health(&self) -> Result<Health> {
        self.control(|done| Control::Health { done })
    }

    /// Every retained segment, the active one last, and where its copies lie (acceptance L8).
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed).
    pub fn copies(&self) -> Result<Vec<SegmentHealth>> {
        self.control(|done| Control::Copies { done })
    }

    /// The latencies of every stage since the region was opened (acceptance T1).
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed).
    pub fn stats(&self) -> Result<Stats> {
        self.control(|done| Control::Stats { done })
    }

    /// The end of the committed log.
    #[must_use]
    pub fn committed(&self) -> Lsn {
        Lsn(self.shared.committed.get())
    }

    /// The bytes of log between two positions: the blocks there, whole, that are committed and not trimmed. It is how far
    /// a reader is behind. What a segment leaves unused at its end, and its header, count nothing.
    #[must_use]
    pub fn distance(&self, from: Lsn, to: Lsn) -> u64 {
        let to = to.min(self.committed());
        self.shared.readable().bytes_between(from, to)
    }

    /// The position so many bytes of disk space before another, each segment counted as its whole file; [`Lsn::ZERO`] where there are fewer.
    /// What is retained from there on takes no more on a disk. No block need begin there: it is for pins and trims.
    #[must_use]
    pub fn before(&self, at: Lsn, bytes: u64) -> Lsn {
        let segment = u64::from(self.shared.options.segment_bytes);
        let space = u64::from(at.segment().0) * segment + u64::from(at.offset());
        let left = space.saturating_sub(bytes);
        Lsn::new(SegmentId((left / segment) as u32), (left % segment) as u32)
    }

    fn control<T>(&self, make: impl FnOnce(Resolver<Result<T>>) -> Control) -> Result<T> {
        self.shared.ask(|done| Request::Control(make(done)))
    }

    /// Whether the calling thread can wait for what the region answers, or join a thread that does: for those who build on it.
    ///
    /// # Errors
    /// [`WouldDeadlock`](ErrorKind::WouldDeadlock) on the region's log thread; [`Forked`](ErrorKind::Forked) in a process that was forked from the
    /// one that opened the region.
    pub fn check_caller(&self) -> Result<()> {
        self.shared.home.check_wait()
    }

    /// Lets everything accepted finish, for ten seconds after the last of it left the queue, then gives up the disks. Handles that still wait get their answers first: those of what
    /// did not finish are told that it is not known to be committed.
    ///
    /// # Errors
    /// [`Halted`](ErrorKind::Halted) when the region had stopped itself, or not all that was accepted could finish; [`RestoreDisk`](ErrorKind::RestoreDisk) when the last
    /// superblocks could not be written (what was acknowledged is safe all the same); [`WouldDeadlock`](ErrorKind::WouldDeadlock) on the log thread, where the
    /// region closes without being waited for; [`Forked`](ErrorKind::Forked), where nothing is closed.
    pub fn close(self) -> Result<()> {
        self.shut()
    }

    fn shut(&self) -> Result<()> {
        let Some(ended) = lock(&self.ended).take() else { return Ok(()) };
        if let Err(error) = self.shared.home.check_wait() {
            // A forked child has nothing to close.
            if !self.shared.home.is_forked() {
                self.shared.closes.store(true, Ordering::Relaxed);
            }
            return Err(error);
        }
        let result = self.control(|done| Control::Close { done });
        let _over = ended.recv();
        result
    }
}

impl Shared {
    fn refused<T>(&self, refused: &Refused<T>) -> Error {
        match refused.reason {
            Reason::Full => Error::new(ErrorKind::Busy, "the queue is full: wait and send again"),
            Reason::TooLarge => Error::invalid("the transaction is larger than queue_bytes"),
            Reason::Closed => lock(&self.halted)
                .clone()
                .map_or_else(closed, |error| Error::new(ErrorKind::Halted, format!("the region halted: {error}"))),
        }
    }

    /// Asks the log thread and waits for its answer.
    pub(crate) fn ask<T>(&self, make: impl FnOnce(Resolver<Result<T>>) -> Request) -> Result<T> {
        self.home.check_wait()?;
        let (done, answer) = ticket();
        // Commits may fill the queue and wait for a secondary that comes back only once this is answered.
        match self.intake.push_ahead(make(done)) {
            Err(Refused { reason: Reason::Full, item }) => self.intake.push_blocking(item, 0),
            pushed => pushed,
        }
        .map_err(|refused| self.refused(&refused))?;
        answer.wait().unwrap_or_else(|Abandoned| Err(stopped()))
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // Nobody is left to be told how it went; `close` tells.
        drop(self.shut());
    }
}

/// Holds back trimming while it lives.
pub struct RetentionPin {
    shared: Arc<Shared>,
    key: (Lsn, u64),
}

impl Drop for RetentionPin {
    fn drop(&mut self) {
        // A thread that a forked child does not have may hold the lock there.
        if !self.shared.home.is_forked() {
            lock(&self.shared.pins).remove(self.key);
        }
    }
}

/// The log thread: opens, serves, ends. No panic leaves it.
fn run(
    mode: Mode,
    options: Options,
    machine: Box<dyn StateMachine>,
    make: Option<Box<dyn MakeDriver>>,
    tell: &mpsc::SyncSender<Result<Arc<Shared>>>,
) {
    let made = match make {
        Some(make) => catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|_| Err(io::Error::other("it panicked"))),
        None => driver(options.driver),
    };
    let driver = match made {
        Ok(driver) => driver,
        Err(error) => {
            drop(tell.send(Err(Error::new(ErrorKind::System, format!("no I/O back end could be started: {error}")))));
            return;
        }
    };
    if let Err(error) = check_memory(&options) {
        drop(tell.send(Err(error)));
        return;
    }
    let intake = Intake::new(options.queue_transactions, AHEAD, options.queue_bytes as u64, driver.doorbell());
    let shared = Arc::new(Shared::new(options, intake, driver.environment(), driver.reader()));
    shared.home.serve();
    let mut told = false;
    let served = catch_unwind(AssertUnwindSafe(|| {
        let mut core = Core::start(mode, driver, machine, Arc::clone(&shared));
        loop {
            match core.step(NAP) {
                Phase::Opening => {}
                Phase::Running if !told => {
                    told = true;
                    drop(tell.send(Ok(Arc::clone(&shared))));
                }
                Phase::Running => {}
                Phase::Failed(error) => {
                    drop(tell.send(Err(error)));
                    return;
                }
                Phase::Closed => return,
            }
        }
    }));
    if served.is_err() {
        let error = Error::new(ErrorKind::Halted, "the log thread broke one of its invariants and stopped");
        if !told {
            drop(tell.try_send(Err(error.clone())));
        }
        *lock(&shared.halted) = Some(error);
    }
    shared.committed.close();
    shared.gates.close();
    shared.intake.abandon();
}

/// Whether there is memory to open a region in. Where a small piece cannot be had, the standard library ends the process.
fn check_memory(options: &Options) -> Result<()> {
    /// For threads, tables, and what recovery reads at once.
    const MORE: usize = 96 << 20;
    let wanted = options.block_memory() + MORE + options.queue_transactions * size_of::<Request>();
    Arena::new(wanted).map(drop).map_err(|error| {
        let message = format!(
            "{wanted} bytes of memory to open a region cannot be had ({error}): lower hot_bytes, block_bytes or commit_depth, or raise the limit"
        );
        Error::new(ErrorKind::System, message)
    })
}

/// Every byte belongs to a whole data frame that verifies. Returns the bytes of memory that the stretch holds.
pub(crate) fn check_arrived(arrived: &Arrived) -> Result<usize> {
    let mut bytes = 0;
    for item in &arrived.frames {
        let mut rest = item.as_ref();
        while !rest.is_empty() {
            let frame = if planted!(TrustsTheLink)
                && let Some(frame) = Frame::trusted(rest)
            {
                frame
            } else {
                Frame::parse(rest).map_err(|error| Error::invalid(format!("what arrived: {error}")))?
            };
            let header = frame.header();
            if header.kind != FrameKind::Data || header.account == AccountId::SYSTEM {
                return Err(Error::invalid("what arrived: a frame of the engine's own"));
            }
            rest = &rest[frame.len()..];
        }
        bytes += item.len() + size_of::<bytes::Bytes>();
    }
    bytes += arrived.mark.as_ref().map_or(0, |mark| size_of_val(mark.accounts.as_slice()));
    if let Some(account) = &arrived.account {
        check_account_name(&account.name)?;
        if account.id == AccountId::SYSTEM {
            return Err(Error::invalid("account 0 is the system's own"));
        }
        bytes += account.name.len();
    }
    if let Some(restart) = &arrived.restart {
        if restart.partitions.len() > MAX_RESTARTED {
            return Err(Error::invalid(format!("a restart of more than {MAX_RESTARTED} partitions")));
        }
        bytes += size_of_val(restart.partitions.as_slice());
    }
    Ok(bytes)
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the region is closed")
}

pub(crate) fn stopped() -> Error {
    Error::new(ErrorKind::Indeterminate, "the region stopped before it answered: open it and retry")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geo::Mark;

    #[test]
    fn a_stretch_counts_for_what_it_holds_though_it_has_no_frame() {
        let accounts = (1..=1000).map(|account| (AccountId(account), Digest::default())).collect();
        let mark = Some(Mark { time: 1, accounts });
        let arrived = Arrived {
            lane: Lane { log: LogId(1), number: 0 },
            session: crate::geo::Session::default(),
            account: None,
            restart: None,
            frames: Vec::new(),
            mark,
            position: Lsn::ZERO,
            anchor: Anchor::default(),
        };
        let held = check_arrived(&arrived).expect("nothing is wrong with it");
        assert!(held >= 32_000, "{held}");
    }
}
