//! What the geo link carries from a primary region to a secondary one, and how far it got.
//!
//! The secondary holds the primary's frames byte for byte, in the primary's order, in its own log on its own three disks. Nothing here
//! does I/O or reads a clock: sessions and transport are the crate `meridian-wire`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

mod bootstrap;
mod compare;
mod lanes;
mod receiver;
mod shipper;

pub use bootstrap::{Need, Standing, need};
pub use compare::{Comparison, Fingerprint, Parting};
pub(crate) use lanes::ClaimedLane;
pub use lanes::LaneClaim;
pub use receiver::{Delivered, Receiver};
pub use shipper::{
    Acknowledged, Acknowledgement, Batch, Bootstrap, Copy, Lag, MOST_BATCH_BYTES, Shipper, ShipperOptions, Waiting,
};

use crate::account::Account;
use crate::types::{AccountId, LogId, Lsn, PartitionId};

/// What a region, an account or a partition holds, comparable across regions: equal content gives equal digests, whatever
/// order it came in, and other content gives other digests but for chance (acceptance G7).
///
/// Additive: the digest of two sets of transactions is the sum of theirs. It finds accidents, not enemies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Digest {
    /// The sum of the checksums of all transactions, each of which covers account, partition, sequence and records.
    pub sum: u128,
    /// How many records.
    pub records: u64,
}

impl Digest {
    /// Takes in a transaction: its checksum as stored, and its number of records.
    pub fn add(&mut self, checksum: u64, records: u64) {
        self.sum = self.sum.wrapping_add(u128::from(checksum));
        self.records = self.records.wrapping_add(records);
    }

    /// Takes out what another digest holds.
    pub fn unmerge(&mut self, other: Digest) {
        self.sum = self.sum.wrapping_sub(other.sum);
        self.records = self.records.wrapping_sub(other.records);
    }

    /// Takes in what another digest holds.
    pub fn merge(&mut self, other: Digest) {
        self.sum = self.sum.wrapping_add(other.sum);
        self.records = self.records.wrapping_add(other.records);
    }
}

/// A moment of a primary's log, written into that log: every transaction of these accounts with a time up to `time` lies before it, now and
/// for ever, and all that lies before it adds up to these digests.
///
/// When it has arrived, with everything before it, the last sync time is `time` (acceptance G9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// In the clock of the primary's log: nanoseconds since the Unix epoch, never going back in one log.
    pub time: u64,
    /// The accounts that it is about, ascending.
    pub accounts: Vec<(AccountId, Digest)>,
}

/// One way from a primary's log to a secondary region. Each lane has a session, progress and last sync time of its own, so that a
/// bootstrap on one does not age the others. An account goes by one lane at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// The primary's log.
    pub log: LogId,
    /// The lane, by whatever number the primary gave it.
    pub number: u32,
}

/// A block that names the history of a log up to its end: each block has the checksum of the one before it. Two logs with the
/// same [`LogId`], one of them put back to a backup and written on, have the same block there only if all before it is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Anchor {
    /// Where the block begins. [`Lsn::ZERO`]: no block is named.
    pub block: Lsn,
    /// Its checksum.
    pub checksum: u64,
}

/// What a region holds of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The partition.
    pub partition: PartitionId,
    /// The sequence that its next record gets.
    pub next_sequence: u64,
    /// Of all records before, the trimmed ones included.
    pub digest: Digest,
}

/// Partitions of an account whose copies begin anew: what the secondary had of them is void, and counts as what is said here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// The account.
    pub account: AccountId,
    /// Where each partition goes on: what lies before was trimmed at the primary. At most [`MAX_RESTARTED`](crate::format::MAX_RESTARTED).
    pub partitions: Vec<Holding>,
}

/// How far a secondary region holds what a lane has for it; durable there, never ahead of the data. It goes back only where copies begin
/// anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The lane.
    pub lane: Lane,
    /// Everything before this position of that log is here: a new session goes on from it.
    pub position: Lsn,
    /// The history that the position is of.
    pub anchor: Anchor,
    /// The last sync time: the time of the last [`Mark`] that is here with everything before it; 0 before the first.
    pub time: u64,
    /// The sum of what the lane's copies held when this was entered. Where they hold something else, frames arrived that no
    /// progress covers, and nobody knows of which history they are.
    pub held: Digest,
}

impl Progress {
    /// Of a lane that has brought nothing.
    #[must_use]
    pub fn none(lane: Lane) -> Progress {
        Progress { lane, position: Lsn::ZERO, anchor: Anchor::default(), time: 0, held: Digest::default() }
    }
}

/// What a lane has brought, as [`Region::carry`](crate::Region::carry) says it at the beginning of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// How far.
    pub progress: Progress,
    /// Whether copies hold frames that the progress does not cover: a crash or a refusal came between them and it.
    pub loose: bool,
}

/// A moment of a primary that can be read on its secondary: what the carried accounts hold before this position of the secondary's log is
/// exactly what they held at the primary at this time, in every partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The last sync time.
    pub time: u64,
    /// A position in the log of the region that was asked: read what lies before.
    pub position: Lsn,
}

/// What the imports of one session share: once one of them is refused, those behind it are, too, or what they say of the lane's position
/// would cover what is lacking (FAULT-MODEL invariant 10).
#[derive(Clone, Debug, Default)]
pub struct Session(Arc<AtomicBool>);

impl Session {
    pub(crate) fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn end(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A stretch of a primary's log for [`Region::import`](crate::Region::import). The parts happened in the order of the fields.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// The lane that it comes by.
    pub lane: Lane,
    /// The session that it comes in.
    pub session: Session,
    /// An account made or changed at the start of the stretch.
    pub account: Option<Account>,
    /// Copies that begin anew.
    pub restart: Option<Restart>,
    /// Whole frames back to back as the primary wrote them; each item holds one or more.
    pub frames: Vec<Bytes>,
    /// A mark at the end of the stretch.
    pub mark: Option<Mark>,
    /// The end of the stretch: everything before this position of the source is here once this is imported.
    pub position: Lsn,
    /// The history that the position is of.
    pub anchor: Anchor,
}

/// What became of an [`Arrived`], once it is durable on a quorum here and was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Records that were new.
    pub records: u64,
    /// Records that had arrived before.
    pub duplicates: u64,
    /// The progress that is now durable.
    pub progress: Progress,
    /// Accounts of the mark whose digest is another one here: their copies differ.
    pub differ: Vec<AccountId>,
}
