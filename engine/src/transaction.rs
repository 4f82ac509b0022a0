//! A transaction as the caller makes it, and as the log hands it back.

use bytes::Bytes;

use crate::format::{Frame, FrameHeader, FrameKind, SystemRecord, frame_len};
use crate::types::{AccountId, Ack, ClientId, Lsn, PartitionId};

/// Records of one partition that commit together or not at all (acceptance G5, invariant 11).
///
/// ```
/// use meridian::{AccountId, Ack, PartitionId, Transaction};
/// let transaction = Transaction::new(AccountId(1), PartitionId::named("EWR/UA"))
///     .record("dep 05:17")
///     .record("dep 05:54")
///     .ack(Ack::All);
/// assert_eq!(transaction.len(), 2);
/// ```
#[derive(Clone, Debug)]
pub struct Transaction {
    pub(crate) account: AccountId,
    pub(crate) partition: PartitionId,
    pub(crate) records: Vec<Bytes>,
    pub(crate) ack: Option<Ack>,
    pub(crate) client: ClientId,
    pub(crate) client_sequence: u64,
    pub(crate) account_epoch: Option<u64>,
}

impl Transaction {
    /// An empty transaction on a partition; give it at least one record.
    #[must_use]
    pub fn new(account: AccountId, partition: PartitionId) -> Transaction {
        Transaction {
            account,
            partition,
            records: Vec::with_capacity(1),
            ack: None,
            client: ClientId::NONE,
            client_sequence: 0,
            account_epoch: None,
        }
    }

    /// Adds a record. Owned bytes are not copied until they enter the block; at most 65,535 records, which with
    /// their headers must fit [`Options::transaction_bytes`](crate::Options::transaction_bytes).
    #[must_use]
    pub fn record(mut self, payload: impl Into<Bytes>) -> Transaction {
        self.records.push(payload.into());
        self
    }

    /// Asks for an ack level instead of the account's default (acceptance ruling 1).
    #[must_use]
    pub fn ack(mut self, ack: Ack) -> Transaction {
        self.ack = Some(ack);
        self
    }

    /// Makes a retry safe (acceptance L6, H5): within an account, the same client and sequence is
    /// applied once. Each account has clients of its own. With another partition it is no retry,
    /// and refused with [`SequenceReused`](crate::ErrorKind::SequenceReused). A client's sequences
    /// may arrive in any order: [`Options::client_window`](crate::Options::client_window) says how
    /// many of its highest sequences are remembered. An older one is refused with
    /// [`RetryTooOld`](crate::ErrorKind::RetryTooOld).
    #[must_use]
    pub fn client(mut self, client: ClientId, sequence: u64) -> Transaction {
        self.client = client;
        self.client_sequence = sequence;
        self
    }

    /// Commits only if the account is still in this epoch, else [`Fenced`](crate::ErrorKind::Fenced).
    #[must_use]
    pub fn account_epoch(mut self, epoch: u64) -> Transaction {
        self.account_epoch = Some(epoch);
        self
    }

    /// How many records it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether it has no record yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The bytes it takes in the log before padding to a block; `None` when it has too many records or none.
    #[must_use]
    pub fn encoded_len(&self) -> Option<usize> {
        frame_len(&self.records)
    }
}

/// What a commit returns once it is durable as asked and applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Where the transaction lies in the log.
    pub lsn: Lsn,
    /// The partition sequence of its first record; the others follow without a gap.
    pub first_sequence: u64,
    /// How many records it has.
    pub records: u32,
    /// Whether an earlier commit with the same client sequence had done it already.
    pub repeated: bool,
}

/// A committed transaction, borrowed from a verified block.
#[derive(Clone, Copy)]
pub struct Committed<'a> {
    lsn: Lsn,
    header: FrameHeader,
    frame: Frame<'a>,
}

impl<'a> Committed<'a> {
    pub(crate) fn new(lsn: Lsn, frame: Frame<'a>) -> Committed<'a> {
        Committed { lsn, header: frame.header(), frame }
    }

    /// Where it lies in the log.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The account.
    #[must_use]
    pub fn account(&self) -> AccountId {
        self.header.account
    }

    /// The account's epoch when it was committed.
    #[must_use]
    pub fn account_epoch(&self) -> u64 {
        self.header.epoch
    }

    /// The partition.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.header.partition
    }

    /// The partition sequence of its first record.
    #[must_use]
    pub fn first_sequence(&self) -> u64 {
        self.header.first_sequence
    }

    /// The primary's wall clock when it entered a block, in nanoseconds since the Unix epoch. Clocks jump.
    #[must_use]
    pub fn time(&self) -> u64 {
        self.header.time
    }

    /// The client and its sequence, [`ClientId::NONE`] and 0 when it had none.
    #[must_use]
    pub fn client(&self) -> (ClientId, u64) {
        (self.header.client, self.header.client_sequence)
    }

    /// Whether it is the engine's own (an account's settings) and no caller's.
    #[must_use]
    pub fn is_system(&self) -> bool {
        self.header.kind == FrameKind::System
    }

    /// What it says, where it is the engine's own; none for what a later version wrote.
    pub(crate) fn system_record(&self) -> Option<SystemRecord> {
        let record = self.frame.record(0).filter(|_| self.is_system())?;
        SystemRecord::decode(record).ok()
    }

    /// How many records it has, at least one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frame.count()
    }

    /// Never: a transaction has at least one record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Its records in order, with their partition sequences.
    pub fn records(&self) -> impl Iterator<Item = (u64, &'a [u8])> + 'a {
        (self.header.first_sequence..).zip(self.frame.records())
    }

    /// The bytes as they were written, identity and checksum included; the same in every region that holds it.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.frame.bytes()
    }
}

/// What committed transactions are handed to: in log order, once each while the region is open (ADR 0005).
///
/// It runs on the log thread between two blocks: a slow `apply` slows every commit. Hand long work to a thread of your own.
/// It can read its own region, and call [`Region::try_submit`](crate::Region::try_submit); whatever waits for the log thread is refused there with
/// [`WouldDeadlock`](crate::ErrorKind::WouldDeadlock). A child process that is forked here must not return from `apply`: it is aborted. If the machine drops the region's last handle, the region closes after `apply` returns, and nobody waits
/// for it. `()` is the machine that ignores everything. The engine's own transactions (an account's settings) are not handed over.
///
/// A machine with a state of its own keeps the position behind what it applied together with that state, and pins it:
///
/// ```
/// # use std::collections::BTreeMap;
/// # use std::sync::{Arc, Mutex};
/// use meridian::{Ack, Committed, DiskConfig, Lsn, Options, PartitionId, Region, StateMachine, Transaction};
///
/// #[derive(Clone, Default)]
/// struct Gates {
///     of: BTreeMap<String, String>,
///     resume: Lsn,
/// }
///
/// struct Shared(Arc<Mutex<Gates>>);
///
/// impl StateMachine for Shared {
///     fn resume_from(&self) -> Lsn {
///         self.0.lock().unwrap().resume
///     }
///
///     fn apply(&mut self, committed: &Committed<'_>) {
///         let mut gates = self.0.lock().unwrap();
///         let mut words = committed.records().map(|(_, record)| String::from_utf8_lossy(record).into_owned());
///         if let (Some(flight), Some(gate)) = (words.next(), words.next()) {
///             gates.of.insert(flight, gate);
///         }
///         // The next transaction lies behind this one.
///         gates.resume = Lsn(committed.lsn().0 + 1);
///     }
/// }
///
/// # let home = tempfile::tempdir()?;
/// # let disks = ["a", "b", "c"].map(|name| DiskConfig::new(home.path().join(name), name, "zone-1"));
/// # let options = Options { segment_bytes: 8 << 20, ..Options::new(disks.to_vec()) };
/// let gates = Arc::new(Mutex::new(Gates::default()));
/// let region = Region::create(options.clone(), Shared(Arc::clone(&gates)))?;
/// let account = region.create_account("gates", Ack::Quorum)?;
/// let assign = |flight: &str, gate: &str| {
///     Transaction::new(account, PartitionId::named("EWR")).record(flight.to_owned()).record(gate.to_owned())
/// };
/// region.commit(assign("UA 1545", "C12"))?;
/// let snapshot = gates.lock().unwrap().clone(); // make it durable, then trim no further than it needs
/// let pin = region.pin(snapshot.resume);
/// region.commit(assign("UA 1714", "C14"))?;
/// region.close()?;
///
/// let gates = Arc::new(Mutex::new(snapshot));
/// let region = Region::open(options, Shared(Arc::clone(&gates)))?; // hands over UA 1714 alone
/// let pin = region.pin(gates.lock().unwrap().resume);
/// assert_eq!(gates.lock().unwrap().of["UA 1714"], "C14");
/// # drop(pin);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait StateMachine: Send {
    /// Everything before this position is durably applied already; transactions from here on are handed over
    /// when the region opens. [`Lsn::ZERO`] asks for everything retained, [`Lsn::MAX`] for nothing but what is new.
    ///
    /// # Panics
    /// A panic ends the opening with [`Halted`](crate::ErrorKind::Halted), and changes nothing of
    /// what is committed.
    fn resume_from(&self) -> Lsn;

    /// Takes one committed transaction. It was durable on a quorum before this call, and its commit is acknowledged
    /// after it.
    ///
    /// # Panics
    /// A panic halts the region: nothing more is acknowledged, and the region must be opened again.
    fn apply(&mut self, transaction: &Committed<'_>);

    /// In a secondary region: the copy of a partition begins anew. What was applied of it is void; what counts is what is applied from
    /// now on (FAULT-MODEL invariant 15). It comes in log order with the transactions, also when they are handed over again.
    ///
    /// # Panics
    /// As [`StateMachine::apply`].
    fn restart(&mut self, account: AccountId, partition: PartitionId) {
        let _ = (account, partition);
    }
}

impl StateMachine for () {
    fn resume_from(&self) -> Lsn {
        Lsn::MAX
    }

    fn apply(&mut self, _: &Committed<'_>) {}
}
