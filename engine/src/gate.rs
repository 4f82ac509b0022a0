//! Gates: what commits to an account do while its secondary is further behind than its contract allows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_listener::{Event, EventListener};

use crate::account::{Account, Contract};
use crate::error::{Error, ErrorKind, Result};
use crate::region::Region;
use crate::shared::{Shared, lock};
use crate::types::{AccountId, Lsn, Role};

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

/// Says, while it lives, how far a secondary is behind for some accounts, so that their [`Contract`]s are kept: the geo link does. Where
/// several say so of one account, it is as far behind as the worst of them; where nobody does, its contract is broken.
///
/// ```
/// # use std::time::Duration;
/// # use meridian::{Ack, Contract, DiskConfig, ErrorKind, Gate, Options, PartitionId, Region, Transaction};
/// # let home = tempfile::tempdir()?;
/// # let disks = ["a", "b", "c"].map(|name| DiskConfig::new(home.path().join(name), name, "zone-1"));
/// # let mut options = Options::new(disks.to_vec());
/// # options.segment_bytes = 8 << 20;
/// # let region = Region::create(options, ())?;
/// let flights = region.create_account("flights", Ack::Quorum)?;
/// region.set_account_contract("flights", Some(Contract { most: Duration::from_secs(1), then: Gate::Refuse }))?;
/// let departure = || Transaction::new(flights, PartitionId::named("EWR/UA")).record("UA 1545");
/// assert_eq!(region.commit(departure()).unwrap_err().kind(), ErrorKind::Behind);
/// let gate = region.gate([flights]);
/// assert!(gate.keep(1_500_000_000, 700_000_000).is_empty());
/// region.commit(departure())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct AccountGate {
    shared: Arc<Shared>,
    key: u64,
}

impl AccountGate {
    /// Of [`Region::gate`].
    pub(crate) fn new(shared: &Arc<Shared>, accounts: impl IntoIterator<Item = AccountId>) -> AccountGate {
        let accounts: BTreeSet<AccountId> = accounts.into_iter().collect();
        let mut key = 0;
        shared.gates.change(|state| {
            state.next += 1;
            key = state.next;
            let (broken, lacking) = (accounts.clone(), BTreeMap::new());
            state.gated.insert(key, Gated { broken, accounts, arrived: Lsn::ZERO, lacking });
            true
        });
        AccountGate { shared: Arc::clone(shared), key }
    }

    /// Holds its accounts' commits back, or lets them go, as their contracts ask for. `now` and the last sync time are nanoseconds since the
    /// Unix epoch. Returns the accounts whose contracts are broken, ascending.
    pub fn keep(&self, now: u64, last_sync_time: u64) -> Vec<AccountId> {
        self.shared.gates.keep(self.key, now, last_sync_time)
    }

    /// The oldest last sync time that the strictest of their contracts allows, if any allows more than nothing: marks have to come more often.
    #[must_use]
    pub fn strictest(&self) -> Option<Duration> {
        let state = lock(&self.shared.gates.state);
        let gated = state.gated.get(&self.key)?;
        let its = state.contracts.iter().filter(|(account, _)| gated.accounts.contains(account));
        its.map(|(_, contract)| contract.most).filter(|most| !most.is_zero()).min()
    }

    /// Of these of its accounts nothing behind the given positions is known to be there, whatever else is said: their contracts are broken, and
    /// nobody who waits for that is answered.
    pub fn lacking(&self, accounts: BTreeMap<AccountId, Lsn>) {
        self.shared.gates.change(|state| {
            let Some(gated) = state.gated.get_mut(&self.key) else { return false };
            let changed = gated.lacking != accounts;
            gated.broken.extend(accounts.keys().filter(|account| gated.accounts.contains(account)));
            gated.lacking = accounts;
            changed
        });
    }

    /// A session begins: everything before this position is durable on the secondary, but for accounts that are
    /// [`lacking`](AccountGate::lacking). What earlier sessions said is void: a secondary that was put back to a backup holds less.
    pub fn resume(&self, position: Lsn) {
        self.shared.gates.change(|state| {
            let Some(gated) = state.gated.get_mut(&self.key) else { return false };
            std::mem::replace(&mut gated.arrived, position) != position
        });
        self.shared.intake.nudge();
    }

    /// Everything before this position is durable on the secondary, but for accounts that are [`lacking`](AccountGate::lacking): those who wait
    /// for it are answered.
    pub fn arrived(&self, position: Lsn) {
        self.shared.gates.change(|state| {
            let Some(gated) = state.gated.get_mut(&self.key) else { return false };
            let before = gated.arrived;
            gated.arrived = before.max(position);
            gated.arrived > before
        });
        // Without a contract nobody waits: the log thread need not be woken for each acknowledgement.
        if self.shared.gates.any.load(Ordering::SeqCst) {
            self.shared.intake.nudge();
        }
    }
}

impl Drop for AccountGate {
    fn drop(&mut self) {
        if self.shared.home.is_forked() {
            return;
        }
        self.shared.gates.change(|state| state.gated.remove(&self.key).is_some());
        self.shared.intake.nudge();
    }
}

/// What holds commits back in a region.
#[derive(Default)]
pub(crate) struct Gates {
    any: AtomicBool,
    /// Counts the changes.
    version: AtomicU64,
    changed: Event,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    gated: BTreeMap<u64, Gated>,
    /// Of the accounts that other regions are to hold copies of, as committed.
    contracts: BTreeMap<AccountId, Contract>,
    /// Nobody is held by a region that takes nothing any more, but by a link that still answers.
    closed: bool,
}

struct Gated {
    accounts: BTreeSet<AccountId>,
    /// Those whose contracts are broken, or not known to be kept.
    broken: BTreeSet<AccountId>,
    arrived: Lsn,
    /// Of these nothing behind these positions has arrived.
    lacking: BTreeMap<AccountId, Lsn>,
}

impl Gated {
    fn arrived(&self, account: AccountId) -> Lsn {
        let lacking = self.lacking.get(&account).filter(|_| !planted!(LackingForgotten));
        lacking.map_or(self.arrived, |at| self.arrived.min(*at))
    }
}

impl State {
    fn of(&self, account: AccountId) -> Gate {
        let Some(contract) = self.contracts.get(&account).filter(|_| !self.closed) else { return Gate::Open };
        let mut its = self.gated.values().filter(|gated| gated.accounts.contains(&account)).peekable();
        let unknown = its.peek().is_none();
        if unknown || its.any(|gated| gated.broken.contains(&account)) { contract.then } else { Gate::Open }
    }
}

impl Gates {
    /// `change` says whether there is news for those who wait.
    fn change(&self, change: impl FnOnce(&mut State) -> bool) {
        {
            let mut state = lock(&self.state);
            if !change(&mut state) {
                return;
            }
            self.any.store(!state.contracts.is_empty(), Ordering::SeqCst);
        }
        self.version.fetch_add(1, Ordering::SeqCst);
        self.changed.notify(usize::MAX);
    }

    /// The region takes nothing any more.
    pub(crate) fn close(&self) {
        self.change(|state| !std::mem::replace(&mut state.closed, true));
    }

    /// Takes note of an account's settings.
    pub(crate) fn put_account(&self, account: &Account) {
        let contract = account.contract.filter(|_| account.role == Role::Primary);
        self.change(|state| {
            let before = match contract {
                Some(contract) => state.contracts.insert(account.id, contract),
                None => state.contracts.remove(&account.id),
            };
            if before == contract {
                return false;
            }
            // Until somebody says how far the secondary is.
            for gated in state.gated.values_mut().filter(|gated| gated.accounts.contains(&account.id)) {
                gated.broken.insert(account.id);
            }
            true
        });
    }

    fn keep(&self, key: u64, now: u64, last_sync_time: u64) -> Vec<AccountId> {
        let mut all = Vec::new();
        self.change(|state| {
            let Some(gated) = state.gated.get_mut(&key) else { return false };
            let broken = state.contracts.iter().filter(|(account, contract)| {
                let lacks = gated.lacking.contains_key(account);
                let broken = contract.is_broken(now, last_sync_time);
                let broken = broken && (contract.most.is_zero() || !planted!(OldIsKept));
                gated.accounts.contains(account) && (lacks || broken)
            });
            let broken: BTreeSet<AccountId> = broken.map(|(account, _)| *account).collect();
            all.extend(&broken);
            broken != std::mem::replace(&mut gated.broken, broken.clone())
        });
        all
    }

    /// What commits to an account do.
    pub(crate) fn of(&self, account: AccountId) -> Gate {
        if !self.any.load(Ordering::Relaxed) {
            return Gate::Open;
        }
        lock(&self.state).of(account)
    }

    /// How far an account has arrived at every secondary that somebody keeps a gate for, and whether more of it may: where nobody does, or it was
    /// switched off, only if its commits are to wait for that.
    pub(crate) fn arrived(&self, account: AccountId) -> (Lsn, bool) {
        let state = lock(&self.state);
        let waits = !state.closed && state.contracts.get(&account).is_some_and(|contract| contract.then == Gate::Wait);
        let its = || state.gated.values().filter(|gated| gated.accounts.contains(&account));
        let shipped = its().next().is_some() && its().all(|gated| !gated.lacking.contains_key(&account));
        (its().map(|gated| gated.arrived(account)).min().unwrap_or(Lsn::ZERO), waits || shipped)
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
    /// A gate for commits to these accounts, whose contracts are broken until it says that they are not.
    #[must_use = "nobody keeps their contracts once this is dropped"]
    pub fn gate(&self, accounts: impl IntoIterator<Item = AccountId>) -> AccountGate {
        AccountGate::new(&self.shared, accounts)
    }
}
