//! The door to clocks and randomness: nothing else here asks for either.
#![allow(clippy::disallowed_methods, reason = "this is the seam; deadlines and nonces are all that comes of it")]

use std::io;
use std::time::{Duration, Instant, SystemTime};

/// The longest that anything is waited for: a year. A deadline further away could be more than the clock can say.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// A point in time up to which something may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(time: Duration) -> Deadline {
        Deadline(Instant::now() + time.min(LONGEST))
    }

    /// The same, so much later.
    pub(crate) fn later(self, time: Duration) -> Deadline {
        Deadline(self.0 + time)
    }

    /// What is left, never zero: an error once it has passed.
    pub(crate) fn left(self) -> io::Result<Duration> {
        let left = self.0.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// Monotonic nanoseconds from a start of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock(Instant::now())
    }

    pub(crate) fn now(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// Nanoseconds since the Unix epoch: what frames carry.
pub(crate) fn wall() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// A number that nobody can guess.
pub(crate) fn nonce() -> io::Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(u128::from_le_bytes(bytes))
}
