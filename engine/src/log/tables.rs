//! What the log knows of accounts, partitions and clients: derived from committed frames, checkpointed, never guessed.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use rustc_hash::FxHashMap;

use crate::account::Account;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Checkpoint, ClientCommit, IndexPartition, PartitionRecord, SegmentIndex, SystemState};
use crate::geo::{Cut, Digest, Holding, Lane, Progress};
use crate::options::Options;
use crate::types::{AccountId, ClientId, LogId, Lsn, PartitionId, SegmentId};

/// The tables at one position of the log. The pipeline keeps one at what it has appended; the checkpointer one at
/// what is sealed.
#[derive(Clone, Default)]
pub(crate) struct Tables {
    accounts: BTreeMap<AccountId, Account>,
    names: BTreeMap<String, AccountId>,
    partitions: FxHashMap<(AccountId, PartitionId), Partition>,
    digests: FxHashMap<AccountId, Digest>,
    clients: FxHashMap<ClientId, VecDeque<ClientCommit>>,
    /// How far other logs have arrived here.
    progress: BTreeMap<Lane, Progress>,
    /// Where their last sync times were entered first, as far as is sealed.
    cuts: BTreeMap<Lane, Cut>,
    /// No frame gets a time below: a mark may have claimed what lies before it.
    clock: u64,
}

/// What is known of a partition.
#[derive(Clone, Copy, Default)]
pub(crate) struct Partition {
    /// The sequence that its next record gets.
    pub(crate) next_sequence: u64,
    /// Of all its records.
    pub(crate) digest: Digest,
    /// The sealed segment in which its copy began anew for the last time; 0 when none did.
    pub(crate) restarted: SegmentId,
}

/// Lanes that may ever lead to a region, at most.
const MAX_LANES: usize = 1024;

fn full(exist: usize) -> Error {
    Error::new(ErrorKind::LimitReached, format!("max_partitions: {exist} exist"))
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
    pub(crate) fn account(&self, id: AccountId) -> Option<&Account> {
        self.accounts.get(&id)
    }

    pub(crate) fn account_named(&self, name: &str) -> Option<&Account> {
        self.names.get(name).and_then(|id| self.accounts.get(id))
    }

    pub(crate) fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }

    /// The number for the next account made in this log: the log's own in the upper half, so that two regions that hold each other's
    /// accounts do not give out the same.
    pub(crate) fn next_account(&self, log: LogId) -> AccountId {
        let own = u64::from(log.0 as u32) << 32;
        let last = self.accounts.range(AccountId(own)..=AccountId(own | u64::from(u32::MAX))).next_back();
        AccountId(last.map_or(own | 1, |(id, _)| id.0 + 1))
    }

    pub(crate) fn put_account(&mut self, record: Account) {
        self.names.insert(record.name.clone(), record.id);
        self.accounts.insert(record.id, record);
    }

    pub(crate) fn partition(&self, account: AccountId, partition: PartitionId) -> Partition {
        self.partitions.get(&(account, partition)).copied().unwrap_or_default()
    }

    /// What is held of an account's partitions behind `after`, ascending, `most` at most. It looks at every partition there is.
    pub(crate) fn holdings(&self, account: AccountId, after: Option<PartitionId>, most: usize) -> Vec<Holding> {
        let its =
            self.partitions.iter().filter(|((id, at), _)| *id == account && after.is_none_or(|after| *at > after));
        let its = its.map(|(&(_, partition), known)| {
            let Partition { next_sequence, digest, .. } = *known;
            Holding { partition, next_sequence, digest }
        });
        let mut its: Vec<Holding> = its.collect();
        its.sort_unstable_by_key(|holding| holding.partition);
        its.truncate(most);
        its
    }

    /// The partitions whose copies ever began anew, and in which segment.
    pub(crate) fn restarted(&self) -> impl Iterator<Item = ((AccountId, PartitionId), SegmentId)> {
        self.partitions.iter().filter(|(_, known)| known.restarted.0 > 0).map(|(key, known)| (*key, known.restarted))
    }

    /// A partition's copy begins anew with what is said of it.
    pub(crate) fn restart(&mut self, account: AccountId, holding: &Holding) {
        let known = self.partitions.entry((account, holding.partition)).or_default();
        let whole = self.digests.entry(account).or_default();
        whole.unmerge(known.digest);
        whole.merge(holding.digest);
        (known.next_sequence, known.digest) = (holding.next_sequence, holding.digest);
    }

    /// Whether these partitions are known or there is room for those that are not.
    pub(crate) fn admits_partitions(
        &self,
        account: AccountId,
        partitions: impl Iterator<Item = PartitionId>,
        options: &Options,
    ) -> Result<()> {
        let new = partitions.filter(|partition| !self.partitions.contains_key(&(account, *partition))).count();
        let new = if planted!(RestartsUncounted) { new.min(1) } else { new };
        let exist = self.partitions.len();
        if new == 0 || exist + new <= options.max_partitions { Ok(()) } else { Err(full(exist)) }
    }

    /// Of all records of an account.
    pub(crate) fn digest(&self, account: AccountId) -> Digest {
        self.digests.get(&account).copied().unwrap_or_default()
    }

    /// Gives out `count` sequences of a partition, of which the first goes to `write`, which writes the frame and returns its checksum.
    pub(crate) fn append(
        &mut self,
        account: AccountId,
        partition: PartitionId,
        count: u64,
        options: &Options,
        write: impl FnOnce(u64) -> u64,
    ) -> Result<u64> {
        let exist = self.partitions.len();
        let known = match self.partitions.entry((account, partition)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if exist >= options.max_partitions => return Err(full(exist)),
            Entry::Vacant(new) => new.insert(Partition::default()),
        };
        let first = known.next_sequence;
        let checksum = write(first);
        known.next_sequence += count;
        known.digest.add(checksum, count);
        self.digests.entry(account).or_default().add(checksum, count);
        Ok(first)
    }

    /// The time for a frame admitted now.
    pub(crate) fn stamp(&mut self, wall: u64) -> u64 {
        self.clock = self.clock.max(wall);
        self.clock
    }

    /// The time for a mark: what comes after it gets a later one.
    pub(crate) fn stamp_mark(&mut self, wall: u64) -> u64 {
        let time = self.stamp(wall);
        self.clock = if planted!(MarkKeepsTime) { time } else { time + 1 };
        time
    }

    pub(crate) fn progress(&self, lane: Lane) -> Option<Progress> {
        if planted!(LanesShareProgress) {
            let all = self.progress.values().filter(|progress| progress.lane.log == lane.log);
            return all.max_by_key(|progress| progress.position).map(|progress| Progress { lane, ..*progress });
        }
        self.progress.get(&lane).copied()
    }

    /// Where a lane's last sync time was entered first, as far as is sealed.
    pub(crate) fn cut(&self, lane: Lane) -> Option<Cut> {
        self.cuts.get(&lane).copied()
    }

    pub(crate) fn put_progress(&mut self, progress: Progress) {
        self.progress.insert(progress.lane, progress);
    }

    /// Whether there is room for another lane, or none is needed.
    pub(crate) fn admits_lane(&self, lane: Lane) -> Result<()> {
        if self.progress.contains_key(&lane) || self.progress.len() < MAX_LANES {
            return Ok(());
        }
        Err(Error::new(ErrorKind::LimitReached, format!("{MAX_LANES} lanes lead here already")))
    }

    fn put_system(&mut self, system: &SystemState) {
        for account in &system.accounts {
            self.put_account(account.clone());
        }
        for &(progress, position) in system.progress.iter().filter(|_| !planted!(ProgressForgotten)) {
            self.put_progress(progress);
            let cut = Cut { time: progress.time, position };
            let known = self.cuts.entry(progress.lane).or_insert(cut);
            if cut.time != known.time {
                *known = cut;
            }
        }
        if !planted!(ClockForgotten) {
            self.clock = self.clock.max(system.time.saturating_add(1));
        }
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
            return self.admits_client(client, options).map(|()| Retry::New);
        };
        let at = window.partition_point(|commit| commit.sequence < sequence);
        if let Some(commit) = window.get(at).filter(|commit| commit.sequence == sequence) {
            return Ok(Retry::Applied(*commit));
        }
        // A full window has forgotten what came before it.
        let too_old = at == 0 && window.len() >= options.client_window;
        Ok(if too_old { Retry::TooOld } else { Retry::New })
    }

    /// Whether there is room for another client, or none is needed.
    pub(crate) fn admits_client(&self, client: ClientId, options: &Options) -> Result<()> {
        if self.clients.contains_key(&client) || self.clients.len() < options.max_clients {
            return Ok(());
        }
        Err(Error::new(ErrorKind::LimitReached, format!("max_clients: {} exist", self.clients.len())))
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

    /// Moves the tables over one more segment.
    pub(crate) fn advance(&mut self, index: &SegmentIndex, window: usize) {
        for restart in index.system.restarts.iter().filter(|_| !planted!(RestartForgotten)) {
            for holding in &restart.partitions {
                self.restart(restart.account, holding);
                let known = self.partitions.entry((restart.account, holding.partition)).or_default();
                known.restarted = index.segment;
            }
        }
        for &IndexPartition { account, partition, next_sequence, digest, .. } in &index.partitions {
            let known = self.partitions.entry((account, partition)).or_default();
            known.next_sequence = if planted!(SequencesRestart) { 0 } else { next_sequence };
            if planted!(DigestsForgotten) {
                continue;
            }
            known.digest.merge(digest);
            self.digests.entry(account).or_default().merge(digest);
        }
        for commit in &index.clients {
            self.remember(*commit, window);
        }
        self.put_system(&index.system);
    }

    pub(crate) fn to_checkpoint(&self, log: LogId, next_segment: SegmentId) -> Checkpoint {
        let partitions = self.partitions.iter().map(|(&(account, partition), known)| PartitionRecord {
            account,
            partition,
            next_sequence: known.next_sequence,
            digest: known.digest,
            restarted: known.restarted,
        });
        let mut partitions: Vec<PartitionRecord> = partitions.collect();
        partitions.sort_unstable_by_key(|record| (record.account, record.partition));
        let mut clients: Vec<ClientCommit> = self.clients.values().flatten().copied().collect();
        clients.sort_unstable_by_key(|commit| (commit.client, commit.sequence));
        let cut = |lane| self.cut(lane).map_or(Lsn::ZERO, |cut| cut.position);
        let system = SystemState {
            accounts: self.accounts.values().cloned().collect(),
            progress: self.progress.values().map(|progress| (*progress, cut(progress.lane))).collect(),
            restarts: Vec::new(),
            time: self.clock.saturating_sub(1),
        };
        Checkpoint { log, next_segment, system, partitions, clients }
    }

    pub(crate) fn from_checkpoint(checkpoint: Checkpoint, window: usize) -> Tables {
        let mut tables = Tables::default();
        tables.put_system(&checkpoint.system);
        for PartitionRecord { account, partition, next_sequence, digest, restarted } in checkpoint.partitions {
            tables.partitions.insert((account, partition), Partition { next_sequence, digest, restarted });
            tables.digests.entry(account).or_default().merge(digest);
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
    use crate::types::{Ack, Role};

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
        let mut take = |partition| tables.append(AccountId(1), PartitionId(partition), 2, &options, |_| 0);
        assert_eq!((take(1).expect("room"), take(1).expect("room")), (0, 2));
        assert_eq!(take(2).expect_err("full").kind(), ErrorKind::LimitReached);
    }

    #[test]
    fn a_checkpoint_brings_the_tables_back() {
        let options = Options::new(vec![]);
        let mut tables = Tables::default();
        tables.put_account(Account {
            id: AccountId(1),
            name: "a".into(),
            epoch: 3,
            ack: Ack::All,
            role: Role::Primary,
            read_access: true,
            contract: None,
            lane: None,
        });
        tables.append(AccountId(1), PartitionId(4), 7, &options, |_| 99).expect("room");
        tables.remember(commit(1), 4);
        let progress = Progress { lane: Lane { log: LogId(5), number: 2 }, position: Lsn(8), time: 3 };
        tables.put_progress(progress);
        let marked = tables.stamp_mark(70);
        let mut back = Tables::from_checkpoint(tables.to_checkpoint(LogId(1), SegmentId(2)), 4);
        let partition = back.partition(AccountId(1), PartitionId(4));
        let digest = Digest { sum: 99, records: 7 };
        assert_eq!((partition.next_sequence, partition.digest, back.digest(AccountId(1))), (7, digest, digest));
        assert_eq!(back.progress(progress.lane), Some(progress));
        assert!(back.stamp(0) > marked, "nothing after a mark gets its time, whatever the clock says");
        assert_eq!(back.account_named("a").map(|account| account.epoch), Some(3));
        assert_eq!(back.client_commit(ClientId(9), 1), Some(&commit(1)));
    }
}
