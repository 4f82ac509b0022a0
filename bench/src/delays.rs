//! The main job's state machine: how late the flights of each partition left, and a digest of everything applied.
//!
//! It is what a store would be to a real embedder, and it is an oracle: what it holds after a crash must be what
//! reading the log gives.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meridian::{Committed, Lsn, PartitionId, StateMachine};
use xxhash_rust::xxh3::Xxh3;

use crate::flights::departure_delay;

/// What is known of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Flights recorded.
    pub(crate) flights: u64,
    /// Flights that never left.
    pub(crate) cancelled: u64,
    /// Minutes late at departure, summed; early ones count against.
    pub(crate) minutes: i64,
    /// The partition's next sequence.
    pub(crate) next: u64,
    /// A digest of every record and its sequence, in order.
    pub(crate) digest: u64,
    /// Transactions handed over out of sequence. Always 0 if the engine is right.
    pub(crate) out_of_order: u64,
}

impl Totals {
    /// Takes the records of one transaction.
    pub(crate) fn add<'a>(&mut self, first_sequence: u64, records: impl Iterator<Item = &'a [u8]>) {
        if self.flights > 0 && first_sequence != self.next {
            self.out_of_order += 1;
        }
        self.next = first_sequence;
        for record in records {
            self.flights += 1;
            match departure_delay(record) {
                Some(Some(minutes)) => self.minutes += i64::from(minutes),
                Some(None) => self.cancelled += 1,
                // Not a flight: the digest will differ from the one expected.
                None => {}
            }
            let mut hash = Xxh3::with_seed(self.digest);
            hash.update(&self.next.to_le_bytes());
            hash.update(record);
            self.digest = hash.digest();
            self.next += 1;
        }
    }
}

/// Totals by partition, shared between the state machine and the harness.
#[derive(Clone, Default)]
pub(crate) struct Delays(Arc<Mutex<BTreeMap<PartitionId, Totals>>>);

impl Delays {
    /// The totals as they are now.
    pub(crate) fn snapshot(&self) -> BTreeMap<PartitionId, Totals> {
        self.lock().clone()
    }

    /// Forgets everything, as a process does that dies; the same totals then serve the next opening.
    pub(crate) fn renewed(&self) -> Delays {
        self.lock().clear();
        self.clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PartitionId, Totals>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateMachine for Delays {
    fn resume_from(&self) -> Lsn {
        // It lives in memory: everything is replayed when the region opens.
        Lsn::ZERO
    }

    fn apply(&mut self, transaction: &Committed<'_>) {
        if transaction.is_system() {
            return;
        }
        let mut totals = self.lock();
        let totals = totals.entry(transaction.partition()).or_default();
        totals.add(transaction.first_sequence(), transaction.records().map(|(_, record)| record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flights::Flights;

    #[test]
    fn the_digest_tells_order_and_content() {
        let flights = Flights::load().expect("built in");
        let (one, two) = (flights.records(0, 0), flights.records(0, 1));
        let digest = |all: &[&[bytes::Bytes]]| {
            let mut totals = Totals::default();
            for records in all {
                totals.add(totals.next, records.iter().map(|record| &record[..]));
            }
            (totals.digest, totals.out_of_order)
        };
        assert_eq!(digest(&[&one, &two]), digest(&[&one, &two]));
        assert_ne!(digest(&[&one, &two]), digest(&[&two, &one]));
        let mut gap = Totals::default();
        gap.add(0, one.iter().map(|record| &record[..]));
        gap.add(gap.next + 1, two.iter().map(|record| &record[..]));
        assert_eq!(gap.out_of_order, 1);
    }
}
