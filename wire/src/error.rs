//! What can go wrong between two regions, and whether trying again helps.

use std::{fmt, io};

use meridian::{ErrorKind, Lsn};

/// The result of the wire's operations.
pub type Result<T> = std::result::Result<T, WireError>;

/// Why a session, a link or a listener could not go on.
#[derive(Debug)]
#[non_exhaustive]
pub enum WireError {
    /// An option can never work as it is.
    InvalidInput(String),
    /// The connection failed, ended, or a deadline passed: a new one is tried.
    Connection(io::Error),
    /// The other side sent what the protocol does not allow: what, and where it was seen.
    Protocol(&'static str),
    /// The other side refused, and said why. Some causes heal (no space, degraded), others need an operator.
    Refused {
        /// Its kind of error.
        kind: RefusalKind,
        /// In its own words.
        message: String,
    },
    /// What one side showed or said of itself is not accepted by the other: a certificate, a name, a cluster. An operator has to see
    /// to it; it is tried again.
    Untrusted(String),
    /// The other side holds this log up to a position, in another history than the log has here: one of them was put back to a
    /// backup, or the log went on elsewhere. The next session compares all copies.
    OtherHistory(Lsn),
    /// This side's region failed.
    Region(meridian::Error),
}

/// What the other side's refusal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusalKind {
    /// Records are missing between what is there and what was sent.
    Gap,
    /// The account's epoch is another one there.
    Fenced,
    /// The account's number or name is another account's there.
    Exists,
    /// A bound of the secondary's options is reached.
    LimitReached,
    /// There is no room there now.
    NoSpace,
    /// Another link ships on this lane of the log: a second one with its number, or another process that holds the same log.
    LaneInUse,
    /// The cluster, a region's name or the certificate is not one that the listener accepts.
    Untrusted,
    /// Something else; the message says what.
    Other,
}

impl RefusalKind {
    pub(crate) fn of(kind: ErrorKind) -> RefusalKind {
        match kind {
            ErrorKind::Gap => RefusalKind::Gap,
            ErrorKind::Fenced => RefusalKind::Fenced,
            ErrorKind::Exists => RefusalKind::Exists,
            ErrorKind::LimitReached => RefusalKind::LimitReached,
            ErrorKind::NoSpace => RefusalKind::NoSpace,
            _ => RefusalKind::Other,
        }
    }

    pub(crate) fn code(self) -> u16 {
        match self {
            RefusalKind::Other => 0,
            RefusalKind::Gap => 1,
            RefusalKind::Fenced => 2,
            RefusalKind::Exists => 3,
            RefusalKind::LimitReached => 4,
            RefusalKind::NoSpace => 5,
            RefusalKind::LaneInUse => 6,
            RefusalKind::Untrusted => 7,
        }
    }

    /// What a code means; codes of a later version are [`RefusalKind::Other`].
    pub(crate) fn from_code(code: u16) -> RefusalKind {
        use RefusalKind::{Exists, Fenced, Gap, LaneInUse, LimitReached, NoSpace, Other, Untrusted};
        [Gap, Fenced, Exists, LimitReached, NoSpace, LaneInUse, Untrusted]
            .into_iter()
            .find(|kind| kind.code() == code)
            .unwrap_or(Other)
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::InvalidInput(what) | WireError::Untrusted(what) => f.write_str(what),
            WireError::Connection(error) => write!(f, "the connection failed: {error}"),
            WireError::Protocol(what) => write!(f, "the other side broke the protocol: {what}"),
            WireError::Refused { message, .. } => write!(f, "the other side refused: {message}"),
            WireError::OtherHistory(position) => write!(
                f,
                "the secondary holds this log up to {position} in another history than it has here, as after a backup was put \
                 back: nothing is claimed of it, and all copies are compared"
            ),
            WireError::Region(error) => write!(f, "the region failed: {error}"),
        }
    }
}

impl std::error::Error for WireError {}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> WireError {
        WireError::Connection(error)
    }
}

impl From<meridian::Error> for WireError {
    fn from(error: meridian::Error) -> WireError {
        WireError::Region(error)
    }
}
