//! What a link tells of itself.

use hdrhistogram::Histogram;
use meridian::geo::Lag;
use meridian::{AccountId, Lsn, PartitionId};

/// Whether what is committed gets to the secondary (acceptance G10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LinkState {
    /// A session is up.
    Live,
    /// A session is up, and copies are made whole that nobody can read until they are.
    Bootstrap,
    /// There is none; another attempt is made soon.
    #[default]
    Unavailable,
}

/// What the secondary is behind for (acceptance T2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Cause {
    /// It is not behind, but for what is on its way.
    #[default]
    None,
    /// There is no session.
    Unavailable,
    /// The other side refuses what it is sent; [`LinkStatus::ended`] has its words.
    Refused,
    /// The window is full: the secondary's disks or processor.
    Secondary,
    /// The window is full, though the secondary answers as soon as it can: it is too small for so long a way
    /// ([`ListenerOptions::window`](crate::ListenerOptions::window)).
    Credits,
    /// A bootstrap is slowed down as it was asked to be.
    Throttle,
    /// Sending takes the time: the link.
    Link,
    /// The log here is read as fast as it goes: catching up.
    Reading,
    /// Copies are made whole.
    Bootstrap,
}

/// How a link stands.
#[derive(Clone, Debug)]
pub struct LinkStatus {
    /// Whether it ships.
    pub state: LinkState,
    /// Why the secondary is behind.
    pub cause: Cause,
    /// Everything before this position is durable on the secondary.
    pub position: Lsn,
    /// Every write of the shipped accounts up to this time is there (acceptance G9): nanoseconds since the Unix epoch, 0 before the first and
    /// during a bootstrap.
    pub last_sync_time: u64,
    /// How old last sync time is, in nanoseconds, also while there is no session: the time since then, or, where the clock was set back
    /// since, since it was first heard of. 0 where last sync time is.
    pub last_sync_age: u64,
    /// What was known, durably, before this link was started: the position and last sync time that the secondary had acknowledged
    /// when this log was last marked. Nothing is claimed from it: the first session compares.
    pub known_before: Option<(Lsn, u64)>,
    /// By how many nanoseconds the times in this log are ahead of this host's clock, where that is more than a second: a clock was
    /// wrong and was set right. Last sync time is ahead as much; ages and latencies leave it out.
    pub clock_ahead: u64,
    /// What was read from the log and is not acknowledged; without a session, what the last one had read.
    pub lag: Lag,
    /// Bytes of log after that, as [`Region::distance`](meridian::Region::distance) counts them.
    /// Before the first session, of what is known from before; where nothing is, of all that is retained.
    pub unread: u64,
    /// Accounts whose copy was found to differ, and were not seen equal since.
    pub differ: Vec<AccountId>,
    /// Partitions that were found to differ when copies were compared, and were sent again: the last 64.
    pub differed: Vec<Difference>,
    /// Bootstraps begun, and bytes of frames that were shipped during bootstraps.
    pub bootstraps: (u64, u64),
    /// Times that something was trimmed here that the secondary lacked.
    pub gaps: u64,
    /// Times that what the secondary holds was found to be of another history of this log: a backup was put back here, or the
    /// log went on elsewhere. Nothing is claimed of it, and all copies are compared.
    pub other_histories: u64,
    /// Times that the secondary had less than it had acknowledged to this link: a backup was put back there. What it lacks is
    /// sent again, and what was claimed of it is claimed no more.
    pub set_backs: u64,
    /// Accounts for which last sync time is older than their [`Contract`](meridian::Contract)s allow.
    pub breached: Vec<AccountId>,
    /// Bytes of frames shipped, and what went over the wire for them.
    pub shipped: (u64, u64),
    /// Sessions begun.
    pub sessions: u64,
    /// Why the last session or attempt ended.
    pub ended: Option<String>,
    /// Why the last attempt to mark the log failed, if it did: last sync time stands still.
    pub unmarked: Option<String>,
    /// From a ping to its pong, in nanoseconds; 0 before the first.
    pub round_trip: u64,
    /// From a transaction's time to its batch's being handed to the connection, in nanoseconds, one count a record (acceptance T1); what is sent
    /// again is counted again.
    pub sent: Histogram<u64>,
    /// From a transaction's time to its durability on the secondary, in nanoseconds, one count a record (acceptance T1).
    pub remotely_durable: Histogram<u64>,
}

/// A partition whose copy holds something else than its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its account.
    pub account: AccountId,
    /// The partition.
    pub partition: PartitionId,
    /// The sequence of the first record that differs; `None` where that was trimmed.
    pub sequence: Option<u64>,
}

/// What one partition lacks on the secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionLag {
    /// Its account.
    pub account: AccountId,
    /// The partition.
    pub partition: PartitionId,
    /// What is missing there.
    pub lag: Lag,
}
