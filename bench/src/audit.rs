//! The audit: everything acknowledged is there once, byte for byte; no transaction is half there; nothing else is.

use std::collections::BTreeMap;

use bytes::Bytes;
use meridian::PartitionId;
use serde::Serialize;

use crate::delays::Totals;
use crate::flights::{Flights, identity};

/// What became of the transactions that were sent, by number: replay × transactions of the data set + its place.
#[derive(Default)]
pub(crate) struct Ledger {
    acknowledged: Vec<bool>,
    /// Transactions acknowledged.
    pub(crate) count: u64,
    /// Records in them.
    pub(crate) records: u64,
}

impl Ledger {
    /// Notes that the transaction of this number was acknowledged.
    pub(crate) fn acknowledge(&mut self, flights: &Flights, number: u64) {
        let place = number as usize;
        if self.acknowledged.len() <= place {
            self.acknowledged.resize(place + 1, false);
        }
        if !std::mem::replace(&mut self.acknowledged[place], true) {
            self.count += 1;
            self.records += flights.transactions[place % flights.transactions.len()].flights.len() as u64;
        }
    }

    /// Whether it was acknowledged.
    pub(crate) fn holds(&self, number: u64) -> bool {
        self.acknowledged.get(number as usize).copied().unwrap_or(false)
    }
}

/// What the audit counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Audit {
    /// Transactions acknowledged.
    pub(crate) acknowledged: u64,
    /// Whole transactions found, right in every byte.
    pub(crate) found: u64,
    /// Records in them.
    pub(crate) records: u64,
    /// Acknowledged and not found: loss.
    pub(crate) lost: u64,
    /// Found in part, or torn apart by another.
    pub(crate) partial: u64,
    /// Found more than once.
    pub(crate) doubled: u64,
    /// Records that nobody sent, or in the wrong partition, or changed.
    pub(crate) wrong: u64,
    /// Partition sequences that were skipped or repeated.
    pub(crate) gaps: u64,
    /// Found, whole, without ever having been acknowledged: sent when the process was killed. Allowed.
    pub(crate) unacknowledged: u64,
}

/// Takes a region's partitions record by record and compares them with what was sent.
pub(crate) struct Auditor<'a> {
    flights: &'a Flights,
    found: Vec<u8>,
    audit: Audit,
    totals: BTreeMap<PartitionId, Totals>,
}

impl<'a> Auditor<'a> {
    /// An auditor who has seen nothing yet.
    pub(crate) fn new(flights: &'a Flights) -> Auditor<'a> {
        Auditor { flights, found: Vec::new(), audit: Audit::default(), totals: BTreeMap::new() }
    }

    /// Takes the next committed transaction of a partition.
    pub(crate) fn take(&mut self, partition: PartitionId, first_sequence: u64, records: &[&[u8]]) {
        let totals = self.totals.entry(partition).or_default();
        if first_sequence != totals.next {
            self.audit.gaps += 1;
        }
        totals.add(first_sequence, records.iter().copied());
        let Some(id) = records.first().and_then(|record| identity(record)) else {
            self.audit.wrong += records.len() as u64;
            return;
        };
        let transactions = self.flights.transactions.len();
        let place = id.transaction as usize;
        let Some(sent) = self.flights.transactions.get(place) else {
            self.audit.wrong += records.len() as u64;
            return;
        };
        let home = PartitionId::named(&self.flights.partitions[sent.partition]);
        let expected: Vec<Bytes> = self.flights.records(id.replay, place);
        if records.len() != expected.len() {
            self.audit.partial += 1;
        } else if home != partition || records.iter().zip(&expected).any(|(got, sent)| *got != &sent[..]) {
            self.audit.wrong += records.len() as u64;
        } else {
            let number = id.replay as usize * transactions + place;
            if self.found.len() <= number {
                self.found.resize(number + 1, 0);
            }
            self.audit.found += 1;
            self.audit.records += records.len() as u64;
            self.audit.doubled += u64::from(self.found[number] > 0);
            self.found[number] = 1;
        }
    }

    /// Compares with what was acknowledged; also returns the state that the log's content amounts to.
    pub(crate) fn finish(mut self, ledger: &Ledger) -> (Audit, BTreeMap<PartitionId, Totals>) {
        let there = |number: usize| self.found.get(number).is_some_and(|count| *count > 0);
        let lost =
            (0..ledger.acknowledged.len()).filter(|number| ledger.holds(*number as u64) && !there(*number)).count();
        let extra = (0..self.found.len()).filter(|number| there(*number) && !ledger.holds(*number as u64)).count();
        self.audit.acknowledged = ledger.count;
        self.audit.lost = lost as u64;
        self.audit.unacknowledged = extra as u64;
        (self.audit, self.totals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes the first five transactions, changed by `change`, all of them acknowledged.
    fn audit(change: impl Fn(usize, Vec<Bytes>) -> Vec<Vec<Bytes>>) -> Audit {
        let flights = Flights::load().expect("built in");
        let mut ledger = Ledger::default();
        let mut auditor = Auditor::new(&flights);
        let mut next: BTreeMap<PartitionId, u64> = BTreeMap::new();
        for number in 0..5 {
            ledger.acknowledge(&flights, number as u64);
            let partition = PartitionId::named(&flights.partitions[flights.transactions[number].partition]);
            for records in change(number, flights.records(0, number)) {
                let next = next.entry(partition).or_default();
                let slices: Vec<&[u8]> = records.iter().map(|record| &record[..]).collect();
                auditor.take(partition, *next, &slices);
                *next += records.len() as u64;
            }
        }
        auditor.finish(&ledger).0
    }

    #[test]
    fn what_was_sent_passes() {
        let audit = audit(|_, records| vec![records]);
        let expected = Audit { acknowledged: 5, found: 5, records: audit.records, ..Audit::default() };
        assert!(audit == expected && audit.records >= 5, "{audit:?}");
    }

    #[test]
    fn loss_halves_doubles_and_changed_bytes_are_seen() {
        let lost = audit(|number, records| if number == 2 { vec![] } else { vec![records] });
        assert_eq!(lost.lost, 1, "{lost:?}");
        let torn = audit(|_, mut records| {
            if records.len() > 1 {
                records.pop();
            }
            vec![records]
        });
        assert!(torn.partial > 0 && torn.lost == torn.partial, "{torn:?}");
        let doubled = audit(|number, records| if number == 1 { vec![records.clone(), records] } else { vec![records] });
        assert_eq!(doubled.doubled, 1, "{doubled:?}");
        let changed = audit(|number, mut records| {
            if number == 3 {
                let mut bytes = records[0].to_vec();
                bytes[20] ^= 1;
                records[0] = Bytes::from(bytes);
            }
            vec![records]
        });
        assert!(changed.wrong > 0 && changed.lost == 1, "{changed:?}");
    }
}
