//! An account as the log knows it.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::geo::Lane;
use crate::types::{AccountId, Ack, Role};

/// An account's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// What transactions name.
    pub id: AccountId,
    /// Its name.
    pub name: String,
    /// Its epoch, 1 at first.
    pub epoch: u64,
    /// Its default ack level.
    pub ack: Ack,
    /// Where its writes come from.
    pub role: Role,
    /// Whether its secondary can be read while the primary is there (acceptance G11).
    pub read_access: bool,
    /// How far its secondary may be behind; `None` for as far as it is.
    pub contract: Option<Contract>,
    /// Of a copy: the lane that brings it; `None` where no lane does any more, and in its primary.
    pub lane: Option<Lane>,
}

/// How far an account's secondary may be behind, and what happens beyond that: the recovery point that a disaster leaves.
///
/// It holds as soon as it is set, and from the first moment of a region that is opened: where no link says how far the secondary is, it is too
/// far behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contract {
    /// The oldest that last sync time may be, 10 ms to a year. Nothing with [`Gate::Wait`]: then every commit waits for the secondary.
    pub most: Duration,
    /// What commits do beyond that, until last sync time is younger again. With [`Gate::Open`] the link only says so.
    pub then: Gate,
}

impl Contract {
    const LEAST: Duration = Duration::from_millis(10);
    const MOST: Duration = Duration::from_secs(366 * 24 * 3600);

    pub(crate) fn check(&self) -> Result<()> {
        let always = self.then == Gate::Wait && self.most.is_zero();
        if always || (Contract::LEAST..=Contract::MOST).contains(&self.most) {
            return Ok(());
        }
        Err(Error::invalid(format!("a contract of {:?}: 10 ms to a year accepted, nothing only to wait", self.most)))
    }

    /// Whether it is broken. `now` and the last sync time are nanoseconds since the Unix epoch. Where nothing is allowed, it always is, whatever
    /// the clocks say: they jump.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use meridian::{Contract, Gate};
    /// let second = Contract { most: Duration::from_secs(1), then: Gate::Refuse };
    /// assert!(!second.is_broken(1_000_000_010, 10) && second.is_broken(1_000_000_011, 10));
    /// assert!(!second.is_broken(5, 10), "last sync time lies before the clock: nothing is known to be old");
    /// let nothing = Contract { most: Duration::ZERO, then: Gate::Wait };
    /// assert!(nothing.is_broken(10, 10) && nothing.is_broken(5, 10));
    /// ```
    #[must_use]
    pub fn is_broken(&self, now: u64, last_sync_time: u64) -> bool {
        self.most.is_zero() || u128::from(now.saturating_sub(last_sync_time)) > self.most.as_nanos()
    }
}
