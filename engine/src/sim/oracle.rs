//! The reference model: what was sent, answered and exposed, and whether what is seen now can follow from it.
//!
//! It knows nothing of blocks or disks. Each check names the invariant of the fault model that it is about.

use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};
use xxhash_rust::xxh3::xxh3_64;

use crate::types::{AccountId, Ack, ClientId, Lsn, PartitionId};

/// A transaction that clients send, once or, with a client's name, again and again.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) account: AccountId,
    pub(super) partition: PartitionId,
    pub(super) client: ClientId,
    pub(super) client_sequence: u64,
    pub(super) ack: Option<Ack>,
    pub(super) records: Vec<Bytes>,
}

impl Sent {
    /// The bytes of a record: which transaction's it is, its place, how many there are, and noise to its length.
    pub(super) fn record(number: usize, at: usize, count: usize, len: usize) -> Bytes {
        let mut bytes = Vec::with_capacity(len.max(12));
        for word in [number, at, count] {
            bytes.extend_from_slice(&(word as u32).to_le_bytes());
        }
        let mut noise = number as u64 * 31 + at as u64;
        while bytes.len() < len {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.push((noise >> 33) as u8);
        }
        Bytes::from(bytes)
    }

    /// Which transaction a record says that it belongs to.
    fn number(record: &[u8]) -> Option<usize> {
        record.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes) as usize)
    }
}

/// A committed transaction as the engine shows it.
pub(super) struct Seen<'a> {
    pub(super) lsn: Lsn,
    pub(super) account: AccountId,
    pub(super) partition: PartitionId,
    pub(super) first_sequence: u64,
    pub(super) client: (ClientId, u64),
    pub(super) records: Vec<&'a [u8]>,
    pub(super) bytes: &'a [u8],
}

/// What became of one sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is durable, here.
    Acknowledged { lsn: Lsn, first_sequence: u64, records: u32, repeated: bool },
    /// Nothing was accepted: it must never be seen.
    Refused,
    /// It is in the log or not, and those behind it may be even if it is not.
    Undecided,
    /// It is in the log or not, and nothing behind it is if it is not.
    Unknown,
}

/// One sending of a transaction.
#[derive(Clone)]
struct Attempt {
    sent: usize,
    answer: Option<Answer>,
}

/// A transaction at its place in the log.
#[derive(Clone)]
struct Entry {
    lsn: Lsn,
    sent: usize,
    first_sequence: u64,
    hash: u64,
}

impl Entry {
    fn is(&self, seen: &Seen<'_>) -> bool {
        self.lsn == seen.lsn && self.hash == xxh3_64(seen.bytes)
    }
}

/// One opening of the region, from its recovery to its end.
#[derive(Clone, Default)]
struct Life {
    attempts: Vec<Attempt>,
    /// The first attempt that the log has not gone past.
    next: usize,
}

/// The reference model of one region.
#[derive(Clone, Default)]
pub(super) struct Oracle {
    sent: Vec<Sent>,
    /// Where each transaction is in `log`.
    placed: FxHashMap<usize, usize>,
    log: Vec<Entry>,
    sequences: FxHashMap<(AccountId, PartitionId), u64>,
    /// Which transaction took each sequence of each client: one at most, within its account.
    taken: FxHashMap<(AccountId, ClientId, u64), usize>,
    lives: Vec<Life>,
    /// The life that the end of the log was sent in.
    tail_life: usize,
    /// Whether the present life's recovery is over: what is new from then on was sent in this life.
    opened: bool,
    /// How far the present life has replayed the log; `None` before its first transaction.
    cursor: Option<usize>,
    resume: Lsn,
    /// Everything before this may have been trimmed.
    trim: Lsn,
    acknowledged: FxHashSet<usize>,
    /// The disks were put back to different moments: the log must have this many transactions, and may end anywhere behind them.
    sure: Option<usize>,
    /// After that nothing was handed over, and whether it was trimmed or never was cannot be told.
    unclear: bool,
    violation: Option<String>,
}

impl Oracle {
    /// The first thing that should not have happened.
    pub(super) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    pub(super) fn complain(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// How many transactions are known to be in the log.
    pub(super) fn len(&self) -> usize {
        self.log.len()
    }

    /// The places of the log that no trim can have reached.
    pub(super) fn retained(&self) -> std::ops::Range<usize> {
        self.log.partition_point(|entry| entry.lsn < self.trim)..self.log.len()
    }

    pub(super) fn position(&self, at: usize) -> Option<Lsn> {
        self.log.get(at).map(|entry| entry.lsn)
    }

    pub(super) fn transaction(&self, sent: usize) -> &Sent {
        &self.sent[sent]
    }

    /// The transaction, if no other has its client's sequence: with the same partition as another, it
    /// would pass for a retry of that one.
    pub(super) fn used_once(&self, number: usize) -> Option<&Sent> {
        let key = |sent: &Sent| (sent.account, sent.client, sent.client_sequence);
        let sent = &self.sent[number];
        let others = self.sent.iter().filter(|other| key(other) == key(sent)).count();
        (others == 1).then_some(sent)
    }

    pub(super) fn next_number(&self) -> usize {
        self.sent.len()
    }

    /// A new transaction, not sent yet.
    pub(super) fn add(&mut self, sent: Sent) -> usize {
        self.sent.push(sent);
        self.sent.len() - 1
    }

    /// All disks were put back to the moment that `then` is from. What was sent since keeps its numbers.
    pub(super) fn put_back(&mut self, then: &Oracle) {
        let sent = std::mem::take(&mut self.sent);
        *self = Oracle { sent, ..then.clone() };
    }

    /// The disks were put back to different moments, the oldest of which had `sure` transactions.
    pub(super) fn put_back_mixed(&mut self, sure: usize) {
        self.sure = Some(sure);
    }

    /// Whether nothing can be said of the log from now on.
    pub(super) fn is_unclear(&self) -> bool {
        self.unclear
    }

    /// The log ends before this one from now on.
    fn truncate(&mut self, at: usize) {
        for entry in self.log.drain(at..) {
            self.placed.remove(&entry.sent);
            self.acknowledged.remove(&entry.sent);
            // Its client's sequence is free again: the log that was put back never had it.
            self.taken.retain(|_, number| *number != entry.sent);
        }
        self.sequences.clear();
        for entry in &self.log {
            let sent = &self.sent[entry.sent];
            let next = entry.first_sequence + sent.records.len() as u64;
            self.sequences.insert((sent.account, sent.partition), next);
        }
    }

    /// The region is opened; its state machine has everything before `resume`.
    pub(super) fn begin_life(&mut self, resume: Lsn) {
        self.lives.push(Life::default());
        self.cursor = None;
        self.opened = false;
        self.resume = resume;
    }

    /// A transaction is sent (again); the attempt's number in this life is returned.
    pub(super) fn send(&mut self, sent: usize) -> usize {
        let life = self.lives.last_mut().expect("a life has begun");
        life.attempts.push(Attempt { sent, answer: None });
        life.attempts.len() - 1
    }

    /// Everything before this may go from now on.
    pub(super) fn may_trim(&mut self, to: Lsn) {
        self.trim = self.trim.max(to);
    }

    /// Where this life's replay has to begin at the latest.
    fn replay_start(&self) -> usize {
        let from = self.resume.max(self.trim);
        self.log.partition_point(|entry| entry.lsn < from)
    }

    /// Recovery is over: everything that was ever exposed must have been replayed (invariants 1 and 3).
    pub(super) fn opened(&mut self) {
        self.opened = true;
        // What earlier lives sent and recovery did not find will never be found.
        self.tail_life = self.lives.len() - 1;
        let replayed = self.cursor.map_or(self.replay_start(), |cursor| cursor + 1);
        if let Some(sure) = self.sure.take() {
            self.unclear = self.cursor.is_none() && !self.log.is_empty();
            if self.unclear {
                return;
            }
            if sure <= replayed {
                self.truncate(replayed.min(self.log.len()));
            }
        }
        if replayed < self.log.len() {
            let missing = &self.log[replayed];
            let acknowledged = self.acknowledged.contains(&missing.sent);
            self.complain(format!(
                "recovery lost {} of {} exposed transactions; the first is {} at {} (acknowledged: {acknowledged})",
                self.log.len() - replayed,
                self.log.len(),
                missing.sent,
                missing.lsn,
            ));
        }
    }

    /// The state machine was handed a transaction.
    pub(super) fn applied(&mut self, seen: &Seen<'_>) {
        let at = match self.cursor {
            Some(cursor) => cursor + 1,
            None => match self.first_replayed(seen.lsn) {
                Some(at) => at,
                None => return,
            },
        };
        self.cursor = Some(at);
        if self.sure.is_some_and(|sure| sure <= at) && self.log.get(at).is_some_and(|entry| !entry.is(seen)) {
            // It goes on as one of the older moments might have.
            self.truncate(at);
        }
        match self.log.get(at) {
            Some(_) => self.check_known(at, seen),
            None => self.check_new(seen),
        }
    }

    /// The place of the first transaction that this life hands over.
    fn first_replayed(&mut self, lsn: Lsn) -> Option<usize> {
        let latest = self.replay_start();
        let at = self.log.partition_point(|entry| entry.lsn < lsn);
        if lsn < self.resume {
            self.complain(format!("{lsn} was handed over although everything before {} was not wanted", self.resume));
            return None;
        }
        if at > latest {
            self.complain(format!("the log begins at {lsn}, but it was not trimmed past {}", self.log[latest].lsn));
            return None;
        }
        Some(at)
    }

    /// What was exposed before must be the same, byte for byte (invariants 1 and 3).
    fn check_known(&mut self, at: usize, seen: &Seen<'_>) {
        let entry = &self.log[at];
        if !entry.is(seen) {
            self.complain(format!(
                "transaction {} was exposed at {} and is now another: {} has {:?}",
                entry.sent,
                entry.lsn,
                seen.lsn,
                seen.records.first().and_then(|record| Sent::number(record)),
            ));
        }
    }

    /// What is exposed for the first time must be the next of what was sent, whole and in its place.
    fn check_new(&mut self, seen: &Seen<'_>) {
        if let Some(last) = self.log.last().filter(|last| last.lsn >= seen.lsn) {
            return self.complain(format!("{} was handed over after {}", seen.lsn, last.lsn));
        }
        let number = seen.records.first().and_then(|record| Sent::number(record));
        let Some(number) = number.filter(|number| *number < self.sent.len()) else {
            return self.complain(format!("{} holds a transaction that nobody sent", seen.lsn));
        };
        self.check_whole(number, seen);
        if self.sure.is_none() {
            self.check_order(number, seen.lsn);
        }
        if let Some(first) = self.placed.insert(number, self.log.len()) {
            let first = self.log[first].lsn;
            self.complain(format!("transaction {number} is at {first} and again at {}", seen.lsn));
        }
        let (client, client_sequence) = seen.client;
        if client != ClientId::NONE
            && let Some(first) = self.taken.insert((seen.account, client, client_sequence), number)
            && first != number
        {
            self.complain(format!(
                "transactions {first} and {number} were both applied with sequence {client_sequence} of {client:?}"
            ));
        }
        // Dense order in its partition.
        let next = self.sequences.entry((seen.account, seen.partition)).or_default();
        let expected = *next;
        *next = seen.first_sequence + seen.records.len() as u64;
        if seen.first_sequence != expected {
            self.complain(format!("{} has partition sequence {}, not {expected}", seen.lsn, seen.first_sequence));
        }
        self.log.push(Entry {
            lsn: seen.lsn,
            sent: number,
            first_sequence: seen.first_sequence,
            hash: xxh3_64(seen.bytes),
        });
    }

    /// A transaction is whole or absent (invariant 11), and says what was sent.
    fn check_whole(&mut self, number: usize, seen: &Seen<'_>) {
        let sent = &self.sent[number];
        let same = sent.account == seen.account
            && sent.partition == seen.partition
            && (sent.client, sent.client_sequence) == seen.client;
        if !same {
            return self.complain(format!("transaction {number} at {} is not the one that was sent", seen.lsn));
        }
        if !sent.records.iter().map(|record| &record[..]).eq(seen.records.iter().copied()) {
            let (have, want) = (seen.records.len(), sent.records.len());
            self.complain(format!("transaction {number} at {} is not whole: {have} records of {want}", seen.lsn));
        }
    }

    /// The log is a contiguous run of what was sent: nothing overtakes, nothing is left out (invariant 2).
    fn check_order(&mut self, number: usize, lsn: Lsn) {
        let present = self.lives.len() - 1;
        let candidates = if self.opened { present..present + 1 } else { self.tail_life..present };
        for at in candidates {
            let life = &self.lives[at];
            let matches = |attempt: &Attempt| attempt.sent == number && attempt.answer != Some(Answer::Refused);
            let Some(found) = life.attempts[life.next..].iter().position(matches).map(|found| life.next + found) else {
                continue;
            };
            let left_out = life.attempts[life.next..found].iter().find(|attempt| {
                !matches!(attempt.answer, Some(Answer::Refused | Answer::Undecided))
                    && !self.placed.contains_key(&attempt.sent)
                    && !self.is_reuse(attempt.sent)
            });
            let complaint = left_out.map(|attempt| {
                format!("transaction {number} is at {lsn}, but {} before it in line was left out", attempt.sent)
            });
            self.tail_life = at;
            self.lives[at].next = found + 1;
            if let Some(complaint) = complaint {
                self.complain(complaint);
            }
            return;
        }
        self.complain(format!(
            "transaction {number} is at {lsn}, but it was not sent, was refused, or its time had passed"
        ));
    }

    /// Whether its sequence is another transaction's, which the log holds: it is refused, though the
    /// process may die before it says so.
    fn is_reuse(&self, number: usize) -> bool {
        let Sent { account, client, client_sequence, .. } = self.sent[number];
        self.taken.get(&(account, client, client_sequence)).is_some_and(|first| *first != number)
    }

    /// A client got an answer.
    pub(super) fn answered(&mut self, attempt: usize, answer: Answer) {
        let life = self.lives.last_mut().expect("a life has begun");
        life.attempts[attempt].answer = Some(answer);
        let sent = life.attempts[attempt].sent;
        let Answer::Acknowledged { lsn, first_sequence, records, repeated } = answer else { return };
        self.acknowledged.insert(sent);
        let Some(entry) = self.placed.get(&sent).map(|at| &self.log[*at]) else {
            return self.complain(format!("transaction {sent} was acknowledged at {lsn} before it was applied"));
        };
        let whole = records as usize == self.sent[sent].records.len();
        if (entry.lsn, entry.first_sequence) != (lsn, first_sequence) || !whole {
            let complaint = format!(
                "transaction {sent} is at {} with sequence {}; its receipt says {lsn}, {first_sequence}, {records} records",
                entry.lsn, entry.first_sequence
            );
            return self.complain(complaint);
        }
        if repeated && self.sent[sent].client == ClientId::NONE {
            self.complain(format!("transaction {sent} has no client and was called a repetition"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oracle(transactions: usize) -> Oracle {
        let mut oracle = Oracle::default();
        oracle.begin_life(Lsn::ZERO);
        oracle.opened();
        for number in 0..transactions {
            let records = (0..2).map(|at| Sent::record(number, at, 2, 20)).collect();
            let (account, partition) = (AccountId(1), PartitionId(1));
            let client_sequence = number as u64;
            oracle.add(Sent { account, partition, client: ClientId(1), client_sequence, ack: None, records });
            oracle.send(number);
        }
        oracle
    }

    fn apply(oracle: &mut Oracle, number: usize, lsn: u64, first_sequence: u64, records: usize) {
        let sent = oracle.transaction(number).clone();
        let records: Vec<&[u8]> = sent.records.iter().map(|record| &record[..]).take(records).collect();
        let bytes = number.to_le_bytes();
        oracle.applied(&Seen {
            lsn: Lsn(lsn),
            account: sent.account,
            partition: sent.partition,
            first_sequence,
            client: (sent.client, sent.client_sequence),
            records,
            bytes: &bytes,
        });
    }

    #[test]
    fn what_was_sent_in_order_and_acknowledged_is_fine_also_after_a_recovery() {
        let mut oracle = oracle(3);
        apply(&mut oracle, 0, 10, 0, 2);
        apply(&mut oracle, 1, 20, 2, 2);
        oracle.answered(1, Answer::Acknowledged { lsn: Lsn(20), first_sequence: 2, records: 2, repeated: false });
        oracle.begin_life(Lsn::ZERO);
        for (number, lsn, sequence) in [(0, 10, 0), (1, 20, 2), (2, 30, 4)] {
            apply(&mut oracle, number, lsn, sequence, 2);
        }
        oracle.opened();
        assert_eq!(oracle.violation(), None);
    }

    #[test]
    fn a_hole_a_repetition_a_half_a_gap_and_a_loss_are_each_found() {
        type Step = fn(&mut Oracle);
        let cases: [(&str, Step); 6] = [
            ("left out", |oracle| apply(oracle, 1, 10, 0, 2)),
            ("again", |oracle| {
                oracle.answered(1, Answer::Refused);
                oracle.answered(2, Answer::Refused);
                oracle.send(0);
                apply(oracle, 0, 10, 0, 2);
                apply(oracle, 0, 20, 2, 2);
            }),
            ("not whole", |oracle| apply(oracle, 0, 10, 0, 1)),
            ("partition sequence", |oracle| apply(oracle, 0, 10, 1, 2)),
            ("lost 1 of 2", |oracle| {
                apply(oracle, 0, 10, 0, 2);
                apply(oracle, 1, 20, 2, 2);
                oracle.begin_life(Lsn::ZERO);
                apply(oracle, 0, 10, 0, 2);
                oracle.opened();
            }),
            ("is now another", |oracle| {
                apply(oracle, 0, 10, 0, 2);
                oracle.begin_life(Lsn::ZERO);
                apply(oracle, 1, 10, 0, 2);
            }),
        ];
        for (expected, step) in cases {
            let mut oracle = oracle(3);
            step(&mut oracle);
            assert!(oracle.violation().is_some_and(|found| found.contains(expected)), "{:?}", oracle.violation());
        }
    }

    #[test]
    fn disks_put_back_to_one_moment_must_show_that_moment() {
        for (shown, fine) in [(0, false), (1, true), (2, false)] {
            let mut oracle = oracle(3);
            apply(&mut oracle, 0, 10, 0, 2);
            oracle.answered(1, Answer::Refused);
            let then = oracle.clone();
            apply(&mut oracle, 2, 20, 2, 2);
            oracle.put_back(&then);
            oracle.begin_life(Lsn::ZERO);
            for (number, lsn, sequence) in [(0, 10, 0), (1, 20, 2)].into_iter().take(shown) {
                apply(&mut oracle, number, lsn, sequence, 2);
            }
            oracle.opened();
            assert_eq!(oracle.violation().is_none(), fine, "{shown}: {:?}", oracle.violation());
        }
    }

    #[test]
    fn disks_of_different_moments_may_end_behind_the_oldest_without_a_hole() {
        for (shown, fine) in [(&[0][..], false), (&[0, 1], true), (&[0, 1, 2], true), (&[0, 2], false)] {
            let mut oracle = oracle(3);
            for (number, lsn, sequence) in [(0, 10, 0), (1, 20, 2), (2, 30, 4)] {
                apply(&mut oracle, number, lsn, sequence, 2);
            }
            oracle.put_back_mixed(2);
            oracle.begin_life(Lsn::ZERO);
            for &number in shown {
                apply(&mut oracle, number, 10 * (number as u64 + 1), 2 * number as u64, 2);
            }
            oracle.opened();
            assert_eq!(oracle.violation().is_none(), fine, "{shown:?}: {:?}", oracle.violation());
            assert!(!fine || oracle.len() == shown.len());
        }
    }

    #[test]
    fn a_log_that_begins_late_is_fine_after_a_trim_only() {
        for (trim, fine) in [(0, false), (20, true)] {
            let mut oracle = oracle(2);
            apply(&mut oracle, 0, 10, 0, 2);
            apply(&mut oracle, 1, 20, 2, 2);
            oracle.may_trim(Lsn(trim));
            oracle.begin_life(Lsn::ZERO);
            apply(&mut oracle, 1, 20, 2, 2);
            oracle.opened();
            assert_eq!(oracle.violation().is_none(), fine);
        }
    }
}
