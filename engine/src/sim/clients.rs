//! The clients of two regions and their operators: commits, contracts that hold them back, and whether who waits for the secondary is answered only
//! when it has what he wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::pair::{NAMES, Pair};
use crate::account::Contract;
use crate::error::Result;
use crate::gate::Gate;
use crate::shared::{AccountChange, Commit, Control, PutAccount, Request, lock};
use crate::sync::ticket::{Ticket, ticket};
use crate::transaction::{Receipt, Transaction};
use crate::types::{AccountId, Ack, ClientId, Lsn, PartitionId, Role};

/// How many there are in each account: of every account the same ones, with the same sequences.
const CLIENTS: u64 = 3;

/// Those who commit to the primary.
#[derive(Default)]
pub(super) struct Clients {
    /// The last sequence of each account.
    sequences: BTreeMap<AccountId, u64>,
    /// The secondary's own account, once it is known.
    pub(super) own: Option<AccountId>,
    /// Commits to it.
    own_waiting: Vec<(Transaction, Ticket<Result<Receipt>>)>,
    waiting: Vec<Waiting>,
    /// Changes of accounts that are under way: what an account is meanwhile is not known.
    changes: Vec<(AccountId, Ticket<Result<AccountId>>)>,
    /// Of clients who do not know what came of them.
    again: Vec<Transaction>,
    /// Accounts that have to take a commit and answer it, now that nothing breaks any more.
    owed: BTreeSet<AccountId>,
    /// Commits that waited for the secondary and were answered when it had them.
    pub(super) waited: u64,
    /// Commits that a broken contract kept out.
    pub(super) held_back: u64,
}

/// A commit whose answer is looked at.
struct Waiting {
    transaction: Transaction,
    ticket: Ticket<Result<Receipt>>,
    /// The contract says for certain that it waits for the secondary.
    sure: bool,
    owed: bool,
}

impl Clients {
    /// Nothing is owed or waited for.
    pub(super) fn is_idle(&self) -> bool {
        self.owed.is_empty() && self.waiting.is_empty() && self.changes.is_empty()
    }

    /// What is not answered yet, for a complaint.
    pub(super) fn open(&self) -> String {
        format!("{} commits wait, {:?} take none", self.waiting.len(), self.owed)
    }
}

impl Pair {
    pub(super) fn write(&mut self) {
        for _ in 0..self.rng.u32(..4) {
            let Some(account) = self.rng.choice(&self.accounts).copied() else { return };
            let transaction = self.transaction(account);
            self.commit_once_or_twice(transaction, false);
        }
        if !self.clients.again.is_empty() && self.rng.u8(..4) == 0 {
            let at = self.rng.usize(..self.clients.again.len());
            let transaction = self.clients.again.swap_remove(at);
            self.commit(transaction, false);
        }
        self.write_own();
        self.operate();
    }

    /// The secondary has an account of its own, whose clients have the numbers and the sequences of
    /// those that the link brings.
    fn write_own(&mut self) {
        let (now, Some(east)) = (self.world.now(), self.east.open()) else { return };
        self.clients.own = east.account_named("own");
        let Some(own) = self.clients.own else {
            let (name, change) = ("own".to_owned(), AccountChange::Create(Ack::Quorum));
            drop(east.ask(|done| Request::PutAccount(PutAccount { name, change, done, at: now })));
            return;
        };
        if self.rng.u8(..4) > 0 {
            return;
        }
        let transaction = self.transaction(own);
        let Some(east) = self.east.open() else { return };
        for _ in 0..2 {
            let (done, ticket) = ticket();
            let bytes = transaction.encoded_len().unwrap_or_default();
            let commit = Commit { transaction: transaction.clone(), done, at: now, bytes };
            if east.push(Request::Commit(commit), bytes as u64) {
                self.clients.own_waiting.push((transaction.clone(), ticket));
            }
            if transaction.client == ClientId::NONE {
                break;
            }
        }
    }

    /// What the secondary acknowledged in its own account is there, where it said.
    fn take_own_answers(&mut self) {
        let (done, waiting): (Vec<_>, _) =
            std::mem::take(&mut self.clients.own_waiting).into_iter().partition(|(_, ticket)| ticket.is_done());
        self.clients.own_waiting = waiting;
        for (transaction, ticket) in done {
            let Ok(Ok(receipt)) = ticket.wait() else { continue };
            let there = {
                let held = lock(&self.east.held);
                let at = held.frames.binary_search_by_key(&receipt.lsn, |seen| seen.lsn).ok();
                let seen = at.map(|at| (held.frames[at].account, held.frames[at].partition));
                seen == Some((transaction.account, transaction.partition))
            };
            if !there {
                let key = (transaction.account, transaction.partition);
                self.complain(format!("east acknowledged {receipt:?} of its own {key:?}, which is not there"));
            }
        }
    }

    /// Fences, switches, contracts and trims.
    fn operate(&mut self) {
        if self.chance(|habits| habits.fence)
            && let Some((at, account)) = self.any_shipped()
        {
            self.change(at, account, AccountChange::Fence);
        }
        if self.chance(|habits| habits.geo)
            && let Some((at, account)) = self.any_shipped()
        {
            let on = self.rng.bool();
            self.switch_geo(at, account, on);
        }
        if self.chance(|habits| habits.contract)
            && let Some((at, account)) = self.any_shipped()
        {
            let contract = self.draw_contract();
            self.change(at, account, AccountChange::SetContract(contract));
        }
        if self.chance(|habits| habits.trim) {
            for side in [&self.west, &self.east] {
                if let Some(process) = side.open() {
                    drop(process.ask(|done| Request::Control(Control::Trim { to: Lsn::MAX, done })));
                }
            }
        }
    }

    fn transaction(&mut self, account: AccountId) -> Transaction {
        let transaction = self.transaction_without_client(account);
        if self.rng.bool() {
            return transaction;
        }
        let sequence = self.clients.sequences.entry(account).or_default();
        *sequence += 1;
        transaction.client(ClientId(u128::from(*sequence % CLIENTS) + 1), *sequence)
    }

    fn transaction_without_client(&mut self, account: AccountId) -> Transaction {
        let partition = PartitionId(u128::from(self.rng.u8(..4)));
        let large = self.rng.u8(..6) == 0;
        let mut transaction = Transaction::new(account, partition);
        for _ in 0..self.rng.usize(1..4) {
            let len = if large { self.rng.usize(500..3_000) } else { self.rng.usize(1..150) };
            transaction = transaction.record(vec![self.rng.u8(..); len]);
        }
        transaction
    }

    pub(super) fn switch_geo(&mut self, at: usize, account: AccountId, on: bool) {
        self.change(at, account, AccountChange::SetGeo(on));
    }

    fn change(&mut self, at: usize, account: AccountId, change: AccountChange) {
        let (name, now) = (NAMES[at].to_owned(), self.world.now());
        let Some(west) = self.west.open() else { return };
        let ticket = west.ask(|done| Request::PutAccount(PutAccount { name, change, done, at: now }));
        self.clients.changes.extend(ticket.map(|ticket| (account, ticket)));
    }

    /// One that a lane without faults keeps.
    fn draw_contract(&mut self) -> Option<Contract> {
        let slowest = self.links.iter().map(|link| 2 * link.delay + link.mark_every).max().unwrap_or_default();
        let most = Duration::from_millis(10) + 2 * Duration::from_nanos(slowest);
        let then = match self.rng.u8(..8) {
            0 => return None,
            1..=5 => return Some(Contract { most: Duration::ZERO, then: Gate::Wait }),
            6 => [Gate::Throttle, Gate::Refuse][self.rng.usize(..2)],
            _ => [Gate::Wait, Gate::Open][self.rng.usize(..2)],
        };
        Some(Contract { most, then })
    }

    /// The contract that holds for an account, when that is known: it is committed, and nobody is changing it.
    pub(super) fn contract(&self, account: AccountId) -> Option<Contract> {
        let known = self.west.open()?.account(account).filter(|known| known.role == Role::Primary)?;
        let changing = self.clients.changes.iter().any(|(its, _)| *its == account);
        known.contract.filter(|_| !changing)
    }

    /// Commits as [`Region::try_submit`](crate::Region::try_submit) does. What may wait for the secondary is looked after.
    fn commit(&mut self, transaction: Transaction, owed: bool) {
        let account = transaction.account;
        let Some(west) = self.west.open() else { return };
        if !matches!(west.shared.gates.pass(account), Ok(None)) {
            self.clients.held_back += 1;
            return;
        }
        let waits = west.shared.gates.of(account) == Gate::Wait;
        let sure = self.contract(account).is_some_and(|contract| contract.most.is_zero());
        let bytes = transaction.encoded_len().unwrap_or_default();
        let (done, ticket) = ticket();
        let commit = Commit { transaction: transaction.clone(), done, at: self.world.now(), bytes };
        let taken = west.push(Request::Commit(commit), bytes as u64);
        if taken && (waits || owed) {
            self.clients.waiting.push(Waiting { transaction, ticket, sure, owed });
        }
        if sure && !waits {
            self.complain(format!("{account:?} has a contract to wait, and its commits do not"));
        }
    }

    /// A client that is in a hurry asks again before there can be an answer, and goes on with what comes next.
    fn commit_once_or_twice(&mut self, transaction: Transaction, owed: bool) {
        let Transaction { account, client, .. } = transaction;
        if client == ClientId::NONE || self.rng.u8(..8) > 0 {
            return self.commit(transaction, owed);
        }
        self.commit(transaction.clone(), owed);
        self.commit(transaction, owed);
        let sequence = self.clients.sequences.entry(account).or_default();
        *sequence += CLIENTS;
        let sequence = *sequence;
        let next = self.transaction_without_client(account).client(client, sequence);
        self.commit(next, false);
    }

    /// Takes in the answers that are there: who had to wait for the secondary finds there what he wrote.
    pub(super) fn take_answers(&mut self) {
        self.take_own_answers();
        self.clients.changes.retain(|(_, ticket)| !ticket.is_done());
        let (done, waiting) =
            std::mem::take(&mut self.clients.waiting).into_iter().partition(|waiting| waiting.ticket.is_done());
        self.clients.waiting = waiting;
        let done: Vec<Waiting> = done;
        for Waiting { transaction, ticket, sure, owed } in done {
            let Ok(Ok(receipt)) = ticket.wait() else {
                if transaction.client != ClientId::NONE && self.clients.again.len() < 8 {
                    self.clients.again.push(transaction);
                }
                continue;
            };
            if owed {
                self.clients.owed.remove(&transaction.account);
            }
            if sure {
                self.clients.waited += 1;
                self.check_waited(&transaction, receipt);
            }
            // Who was answered asks again, too: a backup may have been put back since.
            let asks_again = self.backs_up() && transaction.client != ClientId::NONE && self.rng.bool();
            if asks_again && self.clients.again.len() < 8 {
                self.clients.again.push(transaction);
            }
        }
    }

    fn check_waited(&mut self, transaction: &Transaction, receipt: Receipt) {
        let key = (transaction.account, transaction.partition);
        let place = {
            let held = lock(&self.west.held);
            let frames = self.expected.get(&key).map(Vec::as_slice).unwrap_or_default();
            frames.binary_search_by_key(&receipt.lsn, |at| held.frames[*at].lsn).ok()
        };
        let arrived = self.arrived.get(&key).copied().unwrap_or_default();
        let there = match place {
            // East was put back a moment ago, and nobody can know it.
            _ if self.links.iter().any(|link| link.unaware) => true,
            None => false,
            Some(place) if self.put_back => {
                let west = lock(&self.west.held);
                let seen = &west.frames[self.expected[&key][place]];
                lock(&self.east.held).holds(seen)
            }
            Some(place) => place < arrived,
        };
        if !there {
            self.complain(format!("who waited for the secondary was answered, which lacks {receipt:?} of {key:?}"));
        }
    }

    /// From now on every account has to take a commit, whatever its contract, and to answer it.
    pub(super) fn owe(&mut self) {
        self.clients.owed.extend(&self.accounts);
    }

    pub(super) fn write_owed(&mut self) {
        for account in self.clients.owed.clone() {
            let waits =
                self.clients.waiting.iter().any(|waiting| waiting.owed && waiting.transaction.account == account);
            if !waits {
                let transaction = self.transaction(account);
                self.commit_once_or_twice(transaction, true);
            }
        }
    }
}
