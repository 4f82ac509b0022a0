//! What the log knows of accounts, partitions and clients: derived from committed frames, checkpointed, never guessed.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rustc_hash::FxHashMap;

use crate::account::Account;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    Checkpoint, ClientCommit, CommitOutcome, IndexPartition, PartitionRecord, SegmentIndex, SystemState,
};
use crate::geo::{Cut, Digest, Holding, Lane, Progress};
use crate::options::Options;
use crate::types::{AccountId, ClientId, LogId, Lsn, PartitionId, SegmentId};

/// The tables at one position of the log. The pipeline keeps one at what it has appended; the checkpointer one at
/// what is sealed.
#[derive(Clone, Default)]
pub(crate) struct Tables {
    /// The checksum of the last block of the sealed segments that they cover.
    chain: u64,
    accounts: BTreeMap<AccountId, Account>,
    names: BTreeMap<String, AccountId>,
    partitions: FxHashMap<(AccountId, PartitionId), Partition>,
    /// Of each account all records, and the lane that brings them.
    digests: FxHashMap<AccountId, (Digest, Option<Lane>)>,
    /// Of each lane the sum of what its copies hold.
    lanes: FxHashMap<Lane, Digest>,
    /// The highest sequences of each client, ascending. A client is known in its account alone.
    clients: FxHashMap<(AccountId, ClientId), VecDeque<CommitOutcome>>,
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

/// Lanes that lead to a region, at most.
const MAX_LANES: usize = 1024;

fn full(exist: usize) -> Error {
    Error::new(ErrorKind::LimitReached, format!("max_partitions: {exist} exist"))
}

/// What makes two transactions the same one: a client's number is its own, and the client its account's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RetryKey {
    pub(crate) account: AccountId,
    pub(crate) client: ClientId,
    pub(crate) sequence: u64,
}

impl RetryKey {
    /// `None` without a client: the transaction is recognised by nothing.
    pub(crate) fn new(account: AccountId, client: ClientId, sequence: u64) -> Option<RetryKey> {
        (client != ClientId::NONE).then_some(RetryKey { account, client, sequence })
    }

    /// Where its window is found.
    fn window(self) -> (AccountId, ClientId) {
        if planted!(ClientsShareAccounts) { (AccountId::SYSTEM, self.client) } else { (self.account, self.client) }
    }
}

/// What is known of a client's sequence.
#[derive(Debug, PartialEq)]
pub(crate) enum Retry {
    /// It has not been applied.
    New,
    /// It has: this is what came of it.
    Applied(CommitOutcome),
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
        let (digest, lane) = self.digests.entry(record.id).or_default();
        if *lane != record.lane {
            let (digest, before) = (*digest, std::mem::replace(lane, record.lane));
            if let Some(before) = before {
                let rest = self.lanes.entry(before).or_default();
                rest.unmerge(digest);
                // One that brings nothing takes no room.
                if *rest == Digest::default() {
                    self.lanes.remove(&before);
                }
            }
            record.lane.into_iter().for_each(|lane| self.lanes.entry(lane).or_default().merge(digest));
        }
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
        let before = std::mem::replace(&mut known.digest, holding.digest);
        known.next_sequence = holding.next_sequence;
        self.change_digest(account, |whole| {
            whole.unmerge(before);
            whole.merge(holding.digest);
        });
    }

    fn change_digest(&mut self, account: AccountId, change: impl Fn(&mut Digest)) {
        let (digest, lane) = self.digests.entry(account).or_default();
        change(digest);
        if let Some(lane) = *lane {
            change(self.lanes.entry(lane).or_default());
        }
    }

    /// The sum of what a lane's copies hold.
    pub(crate) fn lane_digest(&self, lane: Lane) -> Digest {
        self.lanes.get(&lane).copied().unwrap_or_default()
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
        self.digests.get(&account).map(|(digest, _)| *digest).unwrap_or_default()
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
        self.change_digest(account, |whole| whole.add(checksum, count));
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

    /// A lane more than there may be takes the place of one that brings no account here.
    pub(crate) fn put_progress(&mut self, progress: Progress) {
        if !self.progress.contains_key(&progress.lane)
            && self.progress.len() >= MAX_LANES
            && let Some(idle) = self.idle_lane()
        {
            self.progress.remove(&idle);
            self.cuts.remove(&idle);
        }
        self.progress.insert(progress.lane, progress);
    }

    /// A lane that brings no account. Should it bring one again, the copy begins in bootstrap and needs no progress.
    fn idle_lane(&self) -> Option<Lane> {
        let busy: BTreeSet<Lane> = self.accounts.values().filter_map(|account| account.lane).collect();
        self.progress.keys().find(|lane| !busy.contains(lane)).copied().filter(|_| !planted!(IdleLanesStay))
    }

    /// Whether there is room for another lane, or none is needed.
    pub(crate) fn admits_lane(&self, lane: Lane) -> Result<()> {
        if self.progress.contains_key(&lane) || self.progress.len() < MAX_LANES || self.idle_lane().is_some() {
            return Ok(());
        }
        let message = format!("{MAX_LANES} lanes bring accounts here already, {MAX_LANES} accepted");
        Err(Error::new(ErrorKind::LimitReached, message))
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

    /// What became of a client's sequence (acceptance L6).
    pub(crate) fn retry(&self, key: RetryKey, options: &Options) -> Result<Retry> {
        let Some(window) = self.clients.get(&key.window()) else {
            return self.admits_client(key, options).map(|()| Retry::New);
        };
        let at = window.partition_point(|outcome| outcome.sequence < key.sequence);
        if let Some(outcome) = window.get(at).filter(|outcome| outcome.sequence == key.sequence) {
            return Ok(Retry::Applied(*outcome));
        }
        // A full window has forgotten what came before it.
        let too_old = at == 0 && window.len() >= options.client_window;
        Ok(if too_old { Retry::TooOld } else { Retry::New })
    }

    /// Whether there is room for another client, or none is needed.
    pub(crate) fn admits_client(&self, key: RetryKey, options: &Options) -> Result<()> {
        let (known, max) = (self.clients.len(), options.max_clients);
        if self.clients.contains_key(&key.window()) || known < max {
            return Ok(());
        }
        let message = format!(
            "max_clients is {max}, and {known} clients are known, those of all accounts together: raise it and open again"
        );
        Err(Error::new(ErrorKind::LimitReached, message))
    }

    /// Remembers what came of a client's commit; the window keeps the highest sequences.
    pub(crate) fn remember(&mut self, key: RetryKey, outcome: CommitOutcome, window: usize) {
        let outcomes = self.clients.entry(key.window()).or_default();
        let at = outcomes.partition_point(|other| other.sequence < outcome.sequence);
        match outcomes.get_mut(at).filter(|other| other.sequence == outcome.sequence) {
            Some(known) => *known = outcome,
            None => outcomes.insert(at, outcome),
        }
        while outcomes.len() > window {
            outcomes.pop_front();
        }
    }

    pub(crate) fn outcome(&self, key: RetryKey) -> Option<&CommitOutcome> {
        let window = self.clients.get(&key.window())?;
        let at = window.partition_point(|outcome| outcome.sequence < key.sequence);
        window.get(at).filter(|outcome| outcome.sequence == key.sequence)
    }

    /// The block of this client's commit now has a place.
    pub(crate) fn place(&mut self, key: RetryKey, lsn: Lsn) {
        let Some(window) = self.clients.get_mut(&key.window()) else { return };
        let at = window.partition_point(|outcome| outcome.sequence < key.sequence);
        if let Some(outcome) = window.get_mut(at).filter(|outcome| outcome.sequence == key.sequence) {
            outcome.lsn = lsn;
        }
    }

    fn remember_commit(&mut self, commit: &ClientCommit, window: usize) {
        let &ClientCommit { account, client, outcome } = commit;
        self.remember(RetryKey { account, client, sequence: outcome.sequence }, outcome, window);
    }

    /// Moves the tables over one more segment.
    pub(crate) fn advance(&mut self, index: &SegmentIndex, window: usize) {
        self.chain = index.end_chain;
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
            self.change_digest(account, |whole| whole.merge(digest));
        }
        for commit in &index.clients {
            self.remember_commit(commit, window);
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
        let commits = self.clients.iter().flat_map(|(&(account, client), window)| {
            window.iter().map(move |&outcome| ClientCommit { account, client, outcome })
        });
        let mut clients: Vec<ClientCommit> = commits.collect();
        clients.sort_unstable_by_key(|commit| (commit.account, commit.client, commit.outcome.sequence));
        let cut = |lane| self.cut(lane).map_or(Lsn::ZERO, |cut| cut.position);
        let system = SystemState {
            accounts: self.accounts.values().cloned().collect(),
            progress: self.progress.values().map(|progress| (*progress, cut(progress.lane))).collect(),
            restarts: Vec::new(),
            time: self.clock.saturating_sub(1),
        };
        Checkpoint { log, next_segment, chain: self.chain, system, partitions, clients }
    }

    pub(crate) fn from_checkpoint(checkpoint: Checkpoint, window: usize) -> Tables {
        let mut tables = Tables { chain: checkpoint.chain, ..Tables::default() };
        tables.put_system(&checkpoint.system);
        for PartitionRecord { account, partition, next_sequence, digest, restarted } in checkpoint.partitions {
            tables.partitions.insert((account, partition), Partition { next_sequence, digest, restarted });
            tables.change_digest(account, |whole| whole.merge(digest));
        }
        for commit in checkpoint.clients.iter().filter(|_| !planted!(CheckpointForgetsClients)) {
            tables.remember_commit(commit, window);
        }
        tables
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::types::{Ack, Role};

    fn key(account: u64, sequence: u64) -> RetryKey {
        RetryKey::new(AccountId(account), ClientId(9), sequence).expect("a client")
    }

    fn outcome(sequence: u64) -> CommitOutcome {
        CommitOutcome { sequence, partition: PartitionId(4), lsn: Lsn(sequence), first_sequence: 0, records: 1 }
    }

    #[test]
    fn a_sequence_is_new_applied_or_before_the_window() {
        let mut options = Options::new(vec![]);
        options.client_window = 3;
        let mut tables = Tables::default();
        for sequence in [5, 9, 7, 8] {
            tables.remember(key(1, sequence), outcome(sequence), options.client_window);
        }
        let retry = |account, sequence| tables.retry(key(account, sequence), &options).expect("room");
        assert_eq!(retry(1, 9), Retry::Applied(outcome(9)));
        assert_eq!(retry(1, 10), Retry::New);
        assert_eq!(retry(1, 5), Retry::TooOld);
        assert_eq!((retry(2, 9), retry(2, 5)), (Retry::New, Retry::New), "another account's client is another");
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
    fn h1_lanes_that_bring_no_account_make_room_for_others() {
        idle_lanes_make_room();
    }

    /// A planted bug is caught by this, too.
    pub(crate) fn idle_lanes_make_room() {
        let mut tables = Tables::default();
        let lane = |number: usize| Lane { log: LogId(5), number: number as u32 };
        let account = |number: usize| Account {
            id: AccountId(number as u64 + 1),
            name: number.to_string(),
            epoch: 1,
            ack: Ack::All,
            role: Role::Secondary,
            read_access: true,
            contract: None,
            lane: Some(lane(number)),
        };
        tables.put_account(account(0));
        // A primary that is made again and again comes by another lane each time.
        for number in 0..3 * MAX_LANES {
            tables.admits_lane(lane(number)).expect("room for a lane");
            tables.put_progress(Progress { position: Lsn(8), time: 3, ..Progress::none(lane(number)) });
        }
        assert_eq!(tables.progress.len(), MAX_LANES);
        assert!(tables.progress(lane(0)).is_some(), "it brings an account");
        let kept: Vec<usize> = tables.progress.keys().map(|lane| lane.number as usize).collect();
        kept.iter().for_each(|number| tables.put_account(account(*number)));
        let refused = tables.admits_lane(lane(9 * MAX_LANES)).expect_err("every lane brings an account");
        assert_eq!(refused.kind(), ErrorKind::LimitReached);
        assert!(refused.to_string().contains("1024 accepted"), "{refused}");
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
        tables.remember(key(1, 1), outcome(1), 4);
        tables.remember(key(2, 1), outcome(1), 4);
        let lane = Lane { log: LogId(5), number: 2 };
        let copy =
            Account { id: AccountId(2), name: "b".into(), lane: Some(lane), ..tables.accounts[&AccountId(1)].clone() };
        tables.put_account(copy);
        tables.append(AccountId(2), PartitionId(4), 3, &options, |_| 55).expect("room");
        let progress = Progress { position: Lsn(8), time: 3, held: tables.lane_digest(lane), ..Progress::none(lane) };
        tables.put_progress(progress);
        let marked = tables.stamp_mark(70);
        let mut back = Tables::from_checkpoint(tables.to_checkpoint(LogId(1), SegmentId(2)), 4);
        let partition = back.partition(AccountId(1), PartitionId(4));
        let digest = Digest { sum: 99, records: 7 };
        assert_eq!((partition.next_sequence, partition.digest, back.digest(AccountId(1))), (7, digest, digest));
        assert_eq!(back.progress(progress.lane), Some(progress));
        assert_eq!(back.lane_digest(lane), Digest { sum: 55, records: 3 });
        assert!(back.stamp(0) > marked, "nothing after a mark gets its time, whatever the clock says");
        assert_eq!(back.account_named("a").map(|account| account.epoch), Some(3));
        let known = [1, 2, 3].map(|account| back.outcome(key(account, 1)).copied());
        assert_eq!(known, [Some(outcome(1)), Some(outcome(1)), None]);
    }
}
