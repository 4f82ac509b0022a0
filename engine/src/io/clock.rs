//! The machine's time and randomness, and what it lets this process do.
#![allow(clippy::disallowed_methods, reason = "this is where the engine learns the time")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Environment;
use super::directory::file_size_limit;

/// The real clocks. `now` counts from the creation of the driver.
pub(super) struct Machine {
    start: Instant,
}

impl Machine {
    pub(super) fn new() -> Machine {
        Machine { start: Instant::now() }
    }
}

impl Environment for Machine {
    fn now(&self) -> u64 {
        nanoseconds(self.start.elapsed())
    }

    fn wall(&self) -> u64 {
        // A clock set before 1970 counts as 1970: no rule of safety uses it.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, nanoseconds)
    }

    fn random(&self) -> u128 {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the system's random numbers are there once it has booted");
        u128::from_le_bytes(bytes)
    }

    fn file_size_limit(&self) -> Option<u64> {
        file_size_limit()
    }
}

/// 584 years fit.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A point in time up to which a poll sleeps.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub(super) struct Deadline(Instant);

impl Deadline {
    /// So far from now; `None` is beyond all time.
    pub(super) fn after(wait: Duration) -> Option<Deadline> {
        Instant::now().checked_add(wait).map(Deadline)
    }

    /// What is left of it; zero once it has passed.
    pub(super) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}
