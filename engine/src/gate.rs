//! Gates: what commits to an account do while its secondary is further behind than they are to allow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use event_listener::{Event, EventListener};

use crate::error::{Error, ErrorKind, Result};
use crate::region::Region;
use crate::shared::{Shared, lock};
use crate::types::{AccountId, Lsn};

/// What commits to an account do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Gate {
    /// They are answered when they are durable here.
    #[default]
    Open,
    /// They are answered when they are durable on the secondary, too: synchronous replication.
    Wait,
    /// They wait before they are taken: [`Region::submit`] sleeps, [`Region::try_submit`] says [`Busy`](ErrorKind::Busy).
    Throttle,
    /// They are refused as [`Behind`](ErrorKind::Behind).
    Refuse,
}

/// Holds back commits to some accounts, while it lives, as its owner says: the geo link, to keep an account's contract about how far its
/// secondary may be behind. With several for one account the strictest holds.
///
/// ```
/// # use meridian::{Ack, DiskConfig, ErrorKind, Gate, Options, PartitionId, Region, Transaction};
/// # let home = tempfile::tempdir()?;
/// # let disks = ["a", "b", "c"].map(|name| DiskConfig::new(home.path().join(name), name, "zone-1"));
/// # let mut options = Options::new(disks.to_vec());
/// # options.segment_bytes = 8 << 20;
/// # let region = Region::create(options, ())?;
/// let flights = region.create_account("flights", Ack::Quorum)?;
/// let departure = || Transaction::new(flights, PartitionId::named("EWR/UA")).record("UA 1545");
/// let gate = region.gate([flights]);
/// gate.set(Gate::Refuse);
/// assert_eq!(region.commit(departure()).unwrap_err().kind(), ErrorKind::Behind);
/// drop(gate);
/// region.commit(departure())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct AccountGate {
    shared: Arc<Shared>,
    key: u64,
}

impl AccountGate {
    /// Says what commits do from now on.
    pub fn set(&self, gate: Gate) {
        self.change(|gated| gated.gate = gate);
    }

    /// Everything before this position is durable on the secondary: those who wait for it are answered.
    pub fn arrived(&self, position: Lsn) {
        self.change(|gated| gated.arrived = gated.arrived.max(position));
    }

    fn change(&self, change: impl FnOnce(&mut Gated)) {
        let gates = &self.shared.gates;
        if let Some(gated) = lock(&gates.gated).get_mut(&self.key) {
            change(gated);
        }
        self.changed();
    }

    fn changed(&self) {
        let gates = &self.shared.gates;
        gates.version.fetch_add(1, Ordering::SeqCst);
        gates.changed.notify(usize::MAX);
        self.shared.intake.nudge();
    }
}

impl Drop for AccountGate {
    fn drop(&mut self) {
        let gates = &self.shared.gates;
        {
            let mut gated = lock(&gates.gated);
            gated.remove(&self.key);
            gates.any.store(!gated.is_empty(), Ordering::SeqCst);
        }
        self.changed();
    }
}

/// All gates of a region.
#[derive(Default)]
pub(crate) struct Gates {
    any: AtomicBool,
    /// Counts the changes.
    version: AtomicU64,
    changed: Event,
    next: AtomicU64,
    gated: Mutex<BTreeMap<u64, Gated>>,
}

struct Gated {
    accounts: BTreeSet<AccountId>,
    gate: Gate,
    arrived: Lsn,
}

impl Gates {
    /// The strictest gate of an account.
    pub(crate) fn of(&self, account: AccountId) -> Gate {
        if !self.any.load(Ordering::Relaxed) {
            return Gate::Open;
        }
        let gated = lock(&self.gated);
        let its = gated.values().filter(|gated| gated.accounts.contains(&account));
        its.map(|gated| gated.gate).max().unwrap_or_default()
    }

    /// How far an account has arrived at every secondary that somebody keeps a gate for; `None` when nobody does.
    pub(crate) fn arrived(&self, account: AccountId) -> Option<Lsn> {
        let gated = lock(&self.gated);
        gated.values().filter(|gated| gated.accounts.contains(&account)).map(|gated| gated.arrived).min()
    }

    /// Counts the changes.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// Nothing while the account takes commits; else what to wait for before asking again.
    pub(crate) fn pass(&self, account: AccountId) -> Result<Option<EventListener>> {
        if !self.any.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let listener = self.changed.listen();
        match self.of(account) {
            Gate::Open | Gate::Wait => Ok(None),
            Gate::Throttle => Ok(Some(listener)),
            Gate::Refuse => {
                let message = format!("the secondary of account {} is further behind than is allowed", account.0);
                Err(Error::new(ErrorKind::Behind, message))
            }
        }
    }
}

impl Region {
    /// A gate for commits to these accounts, open at first.
    #[must_use = "it is open again once this is dropped"]
    pub fn gate(&self, accounts: impl IntoIterator<Item = AccountId>) -> AccountGate {
        let gates = &self.shared.gates;
        let key = gates.next.fetch_add(1, Ordering::Relaxed);
        let gated = Gated { accounts: accounts.into_iter().collect(), gate: Gate::Open, arrived: Lsn::ZERO };
        lock(&gates.gated).insert(key, gated);
        gates.any.store(true, Ordering::SeqCst);
        AccountGate { shared: Arc::clone(&self.shared), key }
    }
}
