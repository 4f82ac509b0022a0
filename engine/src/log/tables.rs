//! What the log knows of accounts, partitions and clients: derived from committed frames, checkpointed, never guessed.

use std::collections::{BTreeMap, VecDeque};

use rustc_hash::FxHashMap;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{AccountRecord, Checkpoint, ClientCommit, IndexPartition, PartitionRecord, SegmentIndex};
use crate::options::Options;
use crate::types::{AccountId, ClientId, LogId, Lsn, PartitionId, SegmentId};

/// The tables at one position of the log. The pipeline keeps one at what it has appended; the checkpointer one at
/// what is sealed.
#[derive(Clone, Default)]
pub(crate) struct Tables {
    accounts: BTreeMap<AccountId, AccountRecord>,
    names: BTreeMap<String, AccountId>,
    partitions: FxHashMap<(AccountId, PartitionId), u64>,
    clients: FxHashMap<ClientId, VecDeque<ClientCommit>>,
}

/// What is known of a client's sequence.
#[derive(Debug, PartialEq)]
pub(crate) enum Retry {
    /// It has not been applied.
    New,
    /// It has: this is what came of it.
    Applied(ClientCommit),
    /// It lies before the window.
    TooOld,
}

impl Tables {
    pub(crate) fn account(&self, id: AccountId) -> Option<&AccountRecord> {
        self.accounts.get(&id)
    }

    pub(crate) fn account_named(&self, name: &str) -> Option<&AccountRecord> {
        self.names.get(name).and_then(|id| self.accounts.get(id))
    }

    pub(crate) fn accounts(&self) -> impl Iterator<Item = &AccountRecord> {
        self.accounts.values()
    }

    /// The number for the next new account.
    pub(crate) fn next_account(&self) -> AccountId {
        AccountId(self.accounts.last_key_value().map_or(1, |(id, _)| id.0 + 1))
    }

    pub(crate) fn put_account(&mut self, record: AccountRecord) {
        self.names.insert(record.name.clone(), record.id);
        self.accounts.insert(record.id, record);
    }

    /// The sequence that the partition's next record gets.
    pub(crate) fn next_sequence(&self, account: AccountId, partition: PartitionId) -> u64 {
        self.partitions.get(&(account, partition)).copied().unwrap_or(0)
    }

    /// Gives out `count` sequences of a partition; the first is returned.
    pub(crate) fn take_sequences(
        &mut self,
        account: AccountId,
        partition: PartitionId,
        count: u64,
        options: &Options,
    ) -> Result<u64> {
        if let Some(next) = self.partitions.get_mut(&(account, partition)) {
            let first = *next;
            *next += count;
            return Ok(first);
        }
        if self.partitions.len() >= options.max_partitions {
            return Err(Error::new(
                ErrorKind::LimitReached,
                format!("max_partitions: {} exist", self.partitions.len()),
            ));
        }
        self.partitions.insert((account, partition), count);
        Ok(0)
    }

    pub(crate) fn check_limits(&self, options: &Options) -> Result<()> {
        let over = |name: &str, have: usize, most: usize| {
            let message = format!("{name}: the region holds {have}, {most} accepted");
            if have > most { Err(Error::new(ErrorKind::LimitReached, message)) } else { Ok(()) }
        };
        over("max_accounts", self.accounts.len(), options.max_accounts)?;
        over("max_partitions", self.partitions.len(), options.max_partitions)?;
        over("max_clients", self.clients.len(), options.max_clients)
    }

    /// What became of this client's sequence (acceptance L6).
    pub(crate) fn retry(&self, client: ClientId, sequence: u64, options: &Options) -> Result<Retry> {
        let Some(window) = self.clients.get(&client) else {
            if self.clients.len() >= options.max_clients {
                return Err(Error::new(ErrorKind::LimitReached, format!("max_clients: {} exist", self.clients.len())));
            }
            return Ok(Retry::New);
        };
        let at = window.partition_point(|commit| commit.sequence < sequence);
        if let Some(commit) = window.get(at).filter(|commit| commit.sequence == sequence) {
            return Ok(Retry::Applied(*commit));
        }
        // A full window has forgotten what came before it.
        let too_old = at == 0 && window.len() >= options.client_window;
        Ok(if too_old { Retry::TooOld } else { Retry::New })
    }

    /// Remembers a client's commit; the window keeps the highest sequences.
    pub(crate) fn remember(&mut self, commit: ClientCommit, window: usize) {
        let commits = self.clients.entry(commit.client).or_default();
        let at = commits.partition_point(|other| other.sequence < commit.sequence);
        match commits.get_mut(at).filter(|other| other.sequence == commit.sequence) {
            Some(known) => *known = commit,
            None => commits.insert(at, commit),
        }
        while commits.len() > window {
            commits.pop_front();
        }
    }

    pub(crate) fn client_commit(&self, client: ClientId, sequence: u64) -> Option<&ClientCommit> {
        let window = self.clients.get(&client)?;
        let at = window.partition_point(|commit| commit.sequence < sequence);
        window.get(at).filter(|commit| commit.sequence == sequence)
    }

    /// The block of this client's commit now has a place.
    pub(crate) fn place(&mut self, client: ClientId, sequence: u64, lsn: Lsn) {
        let Some(window) = self.clients.get_mut(&client) else { return };
        let at = window.partition_point(|commit| commit.sequence < sequence);
        if let Some(commit) = window.get_mut(at).filter(|commit| commit.sequence == sequence) {
            commit.lsn = lsn;
        }
    }

    /// Moves the tables over one more segment. `accounts` are the records of the frames in `index.system`.
    pub(crate) fn advance(&mut self, index: &SegmentIndex, accounts: &[AccountRecord], window: usize) {
        for &IndexPartition { account, partition, next_sequence, .. } in &index.partitions {
            let next_sequence = if planted!(SequencesRestart) { 0 } else { next_sequence };
            self.partitions.insert((account, partition), next_sequence);
        }
        for commit in &index.clients {
            self.remember(*commit, window);
        }
        for account in accounts {
            self.put_account(account.clone());
        }
    }

    pub(crate) fn to_checkpoint(&self, log: LogId, next_segment: SegmentId) -> Checkpoint {
        let partitions = self.partitions.iter().map(|(&(account, partition), &next_sequence)| PartitionRecord {
            account,
            partition,
            next_sequence,
        });
        let mut partitions: Vec<PartitionRecord> = partitions.collect();
        partitions.sort_unstable_by_key(|record| (record.account, record.partition));
        let mut clients: Vec<ClientCommit> = self.clients.values().flatten().copied().collect();
        clients.sort_unstable_by_key(|commit| (commit.client, commit.sequence));
        Checkpoint { log, next_segment, accounts: self.accounts.values().cloned().collect(), partitions, clients }
    }

    pub(crate) fn from_checkpoint(checkpoint: Checkpoint, window: usize) -> Tables {
        let mut tables = Tables::default();
        for account in checkpoint.accounts {
            tables.put_account(account);
        }
        for PartitionRecord { account, partition, next_sequence } in checkpoint.partitions {
            tables.partitions.insert((account, partition), next_sequence);
        }
        for commit in checkpoint.clients.into_iter().filter(|_| !planted!(CheckpointForgetsClients)) {
            tables.remember(commit, window);
        }
        tables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(sequence: u64) -> ClientCommit {
        ClientCommit { client: ClientId(9), sequence, lsn: Lsn(sequence), first_sequence: 0, records: 1 }
    }

    #[test]
    fn a_sequence_is_new_applied_or_before_the_window() {
        let mut options = Options::new(vec![]);
        options.client_window = 3;
        let mut tables = Tables::default();
        for sequence in [5, 9, 7, 8] {
            tables.remember(commit(sequence), options.client_window);
        }
        let retry = |sequence| tables.retry(ClientId(9), sequence, &options).expect("room");
        assert_eq!(retry(9), Retry::Applied(commit(9)));
        assert_eq!(retry(10), Retry::New);
        assert_eq!(retry(5), Retry::TooOld);
        assert_eq!(tables.retry(ClientId(1), 1, &options).expect("room"), Retry::New);
    }

    #[test]
    fn sequences_are_dense_and_the_number_of_partitions_is_bounded() {
        let mut options = Options::new(vec![]);
        options.max_partitions = 1;
        let mut tables = Tables::default();
        let mut take = |partition| tables.take_sequences(AccountId(1), PartitionId(partition), 2, &options);
        assert_eq!((take(1).expect("room"), take(1).expect("room")), (0, 2));
        assert_eq!(take(2).expect_err("full").kind(), ErrorKind::LimitReached);
    }

    #[test]
    fn a_checkpoint_brings_the_tables_back() {
        let options = Options::new(vec![]);
        let mut tables = Tables::default();
        tables.put_account(AccountRecord { id: AccountId(1), name: "a".into(), epoch: 3, all: true });
        tables.take_sequences(AccountId(1), PartitionId(4), 7, &options).expect("room");
        tables.remember(commit(1), 4);
        let back = Tables::from_checkpoint(tables.to_checkpoint(LogId(1), SegmentId(2)), 4);
        assert_eq!(back.next_sequence(AccountId(1), PartitionId(4)), 7);
        assert_eq!(back.account_named("a").map(|account| account.epoch), Some(3));
        assert_eq!(back.client_commit(ClientId(9), 1), Some(&commit(1)));
    }
}
