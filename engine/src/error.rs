//! One opaque error whose kind tells the caller what to do.

use std::fmt;

use crate::types::SegmentId;

/// The result of the engine's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, and, through [`Error::kind`], what to do about it.
///
/// ```
/// # use meridian::{Error, ErrorKind, Options};
/// let refused: Error = Options::new(vec![]).validate().unwrap_err();
/// assert_eq!(refused.kind(), ErrorKind::InvalidInput);
/// ```
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    corruption: Option<Corruption>,
}

/// What the caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Fix the request or the options: they can never succeed as they are.
    InvalidInput,
    /// The name is taken: choose another, or use what is there.
    Exists,
    /// There is no such account, disk, file or position.
    NotFound,
    /// The queue is full. Nothing was accepted: wait and send again.
    Busy,
    /// Fewer healthy fault domains than the ack level or the step needs. Retry with the same client sequence once
    /// the sets are whole, or with a weaker ack level. A transaction that was on its way may be committed on two disks.
    Degraded,
    /// No space for another segment. Nothing was accepted: trim the log or add space, then retry; it is noticed within half a second.
    NoSpace,
    /// An option's bound (accounts, partitions, clients) is reached. Raise it and open again.
    LimitReached,
    /// A newer epoch exists: this writer, or this account epoch, has been superseded. Stop and reopen or reread.
    Fenced,
    /// The account is a secondary here: what it holds arrives from its primary region. Write there.
    Secondary,
    /// The account's secondary is further behind than its contract allows: commit again once it has caught up.
    Behind,
    /// What arrived does not follow what is here: records between are missing. Send from where the progress ends.
    Gap,
    /// Another process, or another handle of this one, has the disks open: a majority of them, or one that a new region was
    /// to have. Close it there first.
    Locked,
    /// Too few disks can be read to go on safely. Restore the disks that the message names, then open again.
    RestoreDisk,
    /// Bytes on a disk do not verify and no copy can replace them; see [`Error::corruption`].
    Corrupt,
    /// The position was trimmed: start at the first retained position.
    Trimmed,
    /// A retry of a sequence that lies before the client's window: whether it was applied is no longer known.
    RetryTooOld,
    /// The client used this sequence for a transaction of another partition of the account, which
    /// the message names. Nothing was accepted: give each transaction a sequence of its own.
    SequenceReused,
    /// Whether the transaction was committed is not known: the region stopped first. Reopen, then retry with the
    /// same client sequence.
    Indeterminate,
    /// The region stopped itself: a failure beyond its model, or a state machine that panicked. What is committed can be read still. Close it, do
    /// what the message says, open again.
    Halted,
    /// The region is closed.
    Closed,
    /// The region's own log thread called something that waits for the log thread: a state machine, or a waker that it
    /// called. Call it on another thread.
    WouldDeadlock,
    /// The process was forked from the one that opened the region: use the region there.
    Forked,
    /// The operating system refused something that is not a disk's failure (threads, memory).
    System,
}

/// Where bytes did not verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// The segment.
    pub segment: SegmentId,
    /// The byte offset in the segment's file.
    pub offset: u64,
    /// What was checked.
    pub what: &'static str,
    /// What it should have been.
    pub expected: u64,
    /// What it was.
    pub found: u64,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), corruption: None }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::InvalidInput, message)
    }

    pub(crate) fn corrupt(corruption: Corruption) -> Error {
        let Corruption { segment, offset, what, expected, found } = &corruption;
        let message =
            format!("segment {} offset {offset}: {what}: expected {expected:#x}, found {found:#x}", segment.0);
        Error { kind: ErrorKind::Corrupt, message, corruption: Some(corruption) }
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// For [`ErrorKind::Corrupt`]: the segment, the offset, what was expected and what was found.
    #[must_use]
    pub fn corruption(&self) -> Option<&Corruption> {
        self.corruption.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
