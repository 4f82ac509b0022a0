//! What a region owes: every acknowledgement, and everything that it ever showed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use meridian::{Committed, Lsn, PartitionId, Region, StateMachine};

use crate::load::{Acked, asks_for_all, partition, records};

/// One transaction as the region showed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) lsn: Lsn,
    pub(crate) partition: PartitionId,
    pub(crate) first_sequence: u64,
    pub(crate) writer: u64,
    pub(crate) number: u64,
    pub(crate) records: Vec<Vec<u8>>,
}

impl Shown {
    fn new(transaction: &Committed<'_>) -> Shown {
        let (client, number) = transaction.client();
        Shown {
            lsn: transaction.lsn(),
            partition: transaction.partition(),
            first_sequence: transaction.first_sequence(),
            writer: (client.0 - 1) as u64,
            number,
            records: transaction.records().map(|(_, record)| record.to_vec()).collect(),
        }
    }
}

/// A machine that keeps everything it is handed.
#[derive(Clone, Default)]
pub(crate) struct Keeper(pub(crate) Arc<Mutex<Vec<Shown>>>);

impl StateMachine for Keeper {
    fn resume_from(&self) -> Lsn {
        Lsn::ZERO
    }

    fn apply(&mut self, transaction: &Committed<'_>) {
        self.0.lock().unwrap().push(Shown::new(transaction));
    }
}

/// The account of one region over all its lives.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) seed: u64,
    pub(crate) acked: BTreeMap<(u64, u64), (Lsn, u64)>,
    /// Everything shown so far by its position: who wrote it, and its partition sequence.
    shown: BTreeMap<Lsn, (u64, u64, u64)>,
    /// Everything below may have been trimmed.
    pub(crate) trimmed: Lsn,
    /// A writer was refused, so its numbers may have entered out of order.
    pub(crate) refused: bool,
}

impl Ledger {
    pub(crate) fn new(seed: u64) -> Ledger {
        Ledger { seed, ..Ledger::default() }
    }

    /// Notes an acknowledgement. A repeated one has to say the same as the first.
    pub(crate) fn ack(&mut self, acked: Acked) {
        let told = (acked.lsn, acked.first_sequence);
        let before = self.acked.insert((acked.writer, acked.number), told);
        assert!(before.is_none_or(|before| before == told), "{acked:?} was acknowledged as {before:?} before");
    }

    /// The number that each writer goes on with: everything below was acknowledged.
    pub(crate) fn next(&self, writers: u64) -> Vec<u64> {
        let highest = |writer| self.acked.range((writer, 0)..(writer + 1, 0)).next_back();
        (0..writers).map(|writer| highest(writer).map_or(1, |((_, number), _)| number + 1)).collect()
    }

    /// Reads the whole region, by its tail and by what its machine was handed, and checks it against everything owed.
    pub(crate) fn check(&mut self, region: &Region, keeper: &Keeper) {
        let handed = keeper.0.lock().unwrap().clone();
        let mut read = Vec::with_capacity(handed.len());
        let mut tail = region.subscribe(Lsn::ZERO);
        while let Some(block) = tail.try_next().unwrap() {
            read.extend(block.transactions().filter(|transaction| !transaction.is_system()).map(|t| Shown::new(&t)));
        }
        assert_eq!(read.len(), handed.len(), "the tail and the machine saw different numbers of transactions");
        assert!(read == handed, "the tail and the machine saw different transactions");
        self.check_each(&read);
        self.check_order(&read);
        self.check_owed(&read);
        self.shown = read.iter().map(|t| (t.lsn, (t.writer, t.number, t.first_sequence))).collect();
    }

    /// Every transaction is whole and is one that its writer sent.
    fn check_each(&self, read: &[Shown]) {
        for shown in read {
            let Shown { writer, number, .. } = *shown;
            let sent = records(self.seed, writer, number);
            let told = (writer, number, shown.lsn);
            assert_eq!(shown.records.len(), sent.len(), "half a transaction: writer, number, position {told:?}");
            assert!(shown.records == sent, "other bytes than were sent: writer, number, position {told:?}");
            assert_eq!(shown.partition, partition(writer, number), "another partition: {told:?}");
        }
    }

    /// Positions grow, partition sequences are dense, nothing is there twice, no writer's numbers have a hole.
    fn check_order(&self, read: &[Shown]) {
        assert!(read.windows(2).all(|pair| pair[0].lsn < pair[1].lsn), "positions do not grow");
        let mut next: BTreeMap<PartitionId, u64> = BTreeMap::new();
        let mut numbers: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for shown in read {
            let after = shown.first_sequence + shown.records.len() as u64;
            let before = next.insert(shown.partition, after);
            let fits =
                before.map_or(shown.first_sequence == 0 || self.trimmed > Lsn::ZERO, |b| b == shown.first_sequence);
            assert!(fits, "{:?} at {}: sequence {} after {before:?}", shown.partition, shown.lsn, shown.first_sequence);
            numbers.entry(shown.writer).or_default().push(shown.number);
        }
        for (writer, numbers) in numbers {
            let mut sorted = numbers.clone();
            sorted.sort_unstable();
            let twice = sorted.windows(2).find(|pair| pair[0] == pair[1]);
            assert!(twice.is_none(), "writer {writer}: {twice:?} is there twice");
            if self.refused {
                continue;
            }
            // A process may be killed between a refusal and its word. What can be refused is then missing, or entered late.
            let certain: Vec<u64> = numbers.into_iter().filter(|number| !asks_for_all(*number)).collect();
            for pair in certain.windows(2) {
                let follows = pair[0] < pair[1] && (pair[0] + 1..pair[1]).all(asks_for_all);
                assert!(follows, "writer {writer}: number {} is followed by {}", pair[0], pair[1]);
            }
        }
    }

    /// What was acknowledged or shown before is where it was.
    fn check_owed(&self, read: &[Shown]) {
        let there: BTreeMap<Lsn, (u64, u64, u64)> =
            read.iter().map(|t| (t.lsn, (t.writer, t.number, t.first_sequence))).collect();
        let kept = read.first().map_or(self.trimmed, |first| first.lsn.min(self.trimmed));
        for (&(writer, number), &(lsn, sequence)) in self.acked.iter().filter(|(_, (lsn, _))| *lsn >= self.trimmed) {
            let found = there.get(&lsn);
            assert_eq!(found, Some(&(writer, number, sequence)), "LOST: writer {writer} number {number} at {lsn}");
        }
        for (lsn, shown) in self.shown.range(self.trimmed..) {
            assert_eq!(there.get(lsn), Some(shown), "what was shown at {lsn} has changed");
        }
        for (lsn, shown) in self.shown.range(kept..self.trimmed) {
            let found = there.get(lsn);
            assert!(found.is_none_or(|found| found == shown), "what was shown at {lsn} has changed to {found:?}");
        }
    }
}
