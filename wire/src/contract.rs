//! How far a secondary may be behind, and what happens beyond that.

use std::time::Duration;

/// An account's word about how far its secondary may be behind: the recovery point that a disaster leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contract {
    /// The oldest that last sync time may be. Twice [`LinkOptions::mark_interval`](crate::LinkOptions::mark_interval) at least, or nothing with
    /// [`Breach::Wait`]: then every commit waits for the secondary.
    pub most: Duration,
    /// What happens beyond that, until last sync time is younger again.
    pub then: Breach,
}

/// What happens while a secondary is further behind than its [`Contract`] allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    /// [`LinkStatus::breached`](crate::LinkStatus::breached) says so.
    Alert,
    /// Commits wait before they are taken.
    Throttle,
    /// Commits are refused as [`Behind`](meridian::ErrorKind::Behind).
    Refuse,
    /// Commits are answered only when they are durable on the secondary, too.
    Wait,
}

/// Where nothing is allowed, every commit waits, whatever the clocks say: they jump.
pub(crate) fn is_breached(most: Duration, wall: u64, last_sync_time: u64) -> bool {
    most.is_zero() || u128::from(wall.saturating_sub(last_sync_time)) > most.as_nanos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contract_of_nothing_is_not_lifted_by_a_clock_that_jumped_back() {
        let second = Duration::from_secs(1);
        assert!(is_breached(Duration::ZERO, 10, 10) && is_breached(Duration::ZERO, 5, 10));
        assert!(!is_breached(second, 1_000_000_010, 10) && is_breached(second, 1_000_000_011, 10));
        assert!(!is_breached(second, 5, 10), "last sync time lies before the clock: nothing is known to be old");
    }
}
