//! What a copy of an account lacks, told from digests: where a bootstrap begins in each partition, and what it need not send.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::format::DATA_START;
use crate::geo::{Anchor, Digest, Holding};
use crate::log::geo::Geo;
use crate::read::{PartitionReader, Subscription};
use crate::region::Region;
use crate::shared::{Request, Shared};
use crate::types::{AccountId, Lsn, PartitionId, SegmentId};

/// What a copy of an account needs to become whole.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Comparison {
    /// Partitions to begin anew, each at the first record that is retained here.
    pub restart: Vec<Holding>,
    /// What the copy has of the others, and what is here, too: the sequence up to which nothing need be sent.
    pub have: BTreeMap<PartitionId, u64>,
    /// Those to begin anew because the copy holds something else, and not just less.
    pub differ: Vec<PartitionId>,
    /// All that is to be sent lies from this position on.
    pub from: Lsn,
}

/// A transaction of a partition, told from any other by its checksum, which covers account, partition, sequence, time and records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// The sequence of its first record.
    pub first_sequence: u64,
    /// How many records.
    pub records: u32,
    /// Its checksum as stored.
    pub checksum: u64,
}

/// Where two copies of a partition part, as far as their fingerprints tell. Both lists begin at the first that is retained, or where the last ones
/// ended; a list that is at its partition's end says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// At this sequence, first.
    At(u64),
    /// Not in what both hold: where they differ, that was trimmed.
    Nowhere,
    /// Not before this sequence: go on from there.
    Later(u64),
}

impl Parting {
    /// Compares what is held `here`, the whole of it if it is `all`, with what is held `there`.
    #[must_use]
    pub fn find(here: &[Fingerprint], all_here: bool, there: &[Fingerprint], all_there: bool) -> Parting {
        let first = |list: &[Fingerprint]| list.first().map(|one| one.first_sequence);
        // What one of them has trimmed cannot be compared.
        let from = first(here).max(first(there)).unwrap_or_default();
        let end = |one: &Fingerprint| one.first_sequence.saturating_add(u64::from(one.records));
        let behind = |list: &[Fingerprint]| list.partition_point(|one| end(one) <= from);
        let (here, there) = (&here[behind(here)..], &there[behind(there)..]);
        let same = here.iter().zip(there).take_while(|(one, other)| one == other).count();
        let (next_here, next_there) = (here.get(same), there.get(same));
        match (next_here, next_there) {
            (Some(one), Some(other)) => Parting::At(one.first_sequence.min(other.first_sequence)),
            // More than there is here: nobody wrote it.
            (None, Some(other)) if all_here => Parting::At(other.first_sequence),
            (_, None) if all_there => Parting::Nowhere,
            _ => match here[..same].last() {
                Some(last) => Parting::Later(end(last)),
                None => Parting::Later(from),
            },
        }
    }
}

impl Region {
    /// The retained transactions of a partition from a sequence on, `most` at most; fewer are all there are. An account that cannot be read is
    /// no exception.
    ///
    /// # Errors
    /// As [`Region::partition`]'s reader.
    pub fn fingerprints(
        &self,
        account: AccountId,
        partition: PartitionId,
        from: u64,
        most: usize,
    ) -> Result<Vec<Fingerprint>> {
        let mut reader = PartitionReader::own(&self.shared, account, partition, from);
        reader.skip_trimmed()?;
        let mut found = Vec::new();
        while found.len() < most {
            let Some(view) = reader.try_next()? else { break };
            let records = view.transaction().len() as u32;
            let first_sequence = view.transaction().first_sequence();
            found.push(Fingerprint { first_sequence, records, checksum: view.checksum() });
        }
        Ok(found)
    }

    /// The first retained position.
    #[must_use]
    pub fn first(&self) -> Lsn {
        self.shared.first_retained()
    }

    /// Partitions that can exist here, as the [`Options`](crate::Options) said.
    #[must_use]
    pub fn max_partitions(&self) -> usize {
        self.shared.options.max_partitions
    }

    /// What is held of an account's partitions, ascending, of those behind `after` the first `most`.
    ///
    /// # Errors
    /// [`Closed`](crate::ErrorKind::Closed), [`Halted`](crate::ErrorKind::Halted).
    pub fn holdings(&self, account: AccountId, after: Option<PartitionId>, most: usize) -> Result<Vec<Holding>> {
        self.shared.ask(|done| Request::Geo(Geo::Holdings { account, after, most, done }))
    }

    /// Compares what a copy is said to hold of an account with what is here. It reads the indexes of the retained log and, where the copy holds a
    /// part, some of the log. Pin the log meanwhile.
    ///
    /// # Errors
    /// As [`Region::holdings`], and as [`Region::read`] for what has to be read.
    pub fn compare(&self, account: AccountId, theirs: &[Holding]) -> Result<Comparison> {
        let ours = self.holdings(account, None, usize::MAX)?;
        self.shared.compare(account, &ours, theirs)
    }
}

/// The retained transactions of a partition up to a sequence.
struct Sum {
    /// The first retained sequence.
    first: u64,
    /// The sequence behind the last one that is in it.
    next: u64,
    digest: Digest,
}

impl Shared {
    /// As [`Region::is_history`].
    pub(crate) fn is_history(self: &Arc<Shared>, position: Lsn, anchor: Anchor) -> Result<bool> {
        if position == Lsn::ZERO || planted!(HistoryNotCompared) {
            return Ok(true);
        }
        if position > Lsn(self.committed.get()) {
            return Ok(false);
        }
        match self.read_block(anchor.block) {
            Ok(block) => Ok(block.anchor() == anchor && position <= block.end()),
            Err(error) if error.kind() == ErrorKind::Trimmed => Ok(position < self.first_retained()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// As [`Region::anchor`].
    pub(crate) fn anchor(self: &Arc<Shared>, position: Lsn) -> Result<Anchor> {
        let block = Subscription::new(self, position).try_next()?;
        Ok(block.map(|block| block.anchor()).unwrap_or_default())
    }

    pub(crate) fn first_retained(&self) -> Lsn {
        Lsn::new(self.readable().first, DATA_START)
    }

    /// The first retained position from which on the log may hold something of an account that a copy lacks, which has the first `have` of each
    /// partition that is named.
    fn first_lacking(&self, account: AccountId, have: &BTreeMap<PartitionId, u64>) -> Result<Lsn> {
        let (first, last) = (self.first_retained().segment(), Lsn(self.committed.get()).segment());
        for segment in (first.0..=last.0).map(SegmentId) {
            let held = self.partitions_of(segment, account)?;
            if held.iter().any(|held| held.next_sequence > have.get(&held.partition).copied().unwrap_or_default()) {
                return Ok(Lsn::new(segment, DATA_START));
            }
        }
        Ok(Lsn(self.committed.get()))
    }

    pub(crate) fn compare(
        self: &Arc<Shared>,
        account: AccountId,
        ours: &[Holding],
        theirs: &[Holding],
    ) -> Result<Comparison> {
        let ends = ours.iter().map(|ours| (ours.partition, ours.next_sequence)).collect();
        let retained = self.sums(account, &ends)?;
        let theirs: BTreeMap<PartitionId, &Holding> = theirs.iter().map(|held| (held.partition, held)).collect();
        let reach =
            |ours: &&Holding| theirs.get(&ours.partition).is_some_and(|held| held.next_sequence < ours.next_sequence);
        let part = ours.iter().filter(reach).map(|ours| (ours.partition, theirs[&ours.partition].next_sequence));
        let reached = self.sums(account, &part.collect())?;
        let mut comparison = Comparison::default();
        for held in ours {
            let Holding { partition, next_sequence, mut digest } = *held;
            let sum = retained.get(&partition);
            if !planted!(BeginsWithAll) {
                digest.unmerge(sum.map(|sum| sum.digest).unwrap_or_default());
            }
            let begin = Holding { partition, next_sequence: sum.map_or(next_sequence, |sum| sum.first), digest };
            let same = theirs.get(&partition).map(|theirs| {
                let ours = if theirs.next_sequence == next_sequence {
                    held.digest
                } else {
                    digest.merge(reached.get(&partition).map(|sum| sum.digest).unwrap_or_default());
                    digest
                };
                (theirs.next_sequence, ours == theirs.digest)
            });
            match same {
                None | Some((0, _)) if begin.next_sequence == 0 => {}
                None => comparison.restart.push(begin),
                Some((has, _)) if has < begin.next_sequence => comparison.restart.push(begin),
                Some((has, true)) => drop(comparison.have.insert(partition, has)),
                Some((_, false)) => {
                    comparison.restart.push(begin);
                    comparison.differ.push(partition);
                }
            }
        }
        let known = |partition| ours.binary_search_by_key(&partition, |ours| ours.partition).is_ok();
        for held in theirs.values().filter(|held| held.next_sequence > 0 && !known(held.partition)) {
            comparison.restart.push(Holding { next_sequence: 0, digest: Digest::default(), ..**held });
            comparison.differ.push(held.partition);
        }
        comparison.from = self.first_lacking(account, &comparison.have)?;
        Ok(comparison)
    }

    /// Sums up what is retained of partitions, each up to a sequence: whole segments by their indexes, the rest by reading it.
    fn sums(
        self: &Arc<Shared>,
        account: AccountId,
        ends: &BTreeMap<PartitionId, u64>,
    ) -> Result<BTreeMap<PartitionId, Sum>> {
        let mut sums: BTreeMap<PartitionId, Sum> = BTreeMap::new();
        if ends.is_empty() {
            return Ok(sums);
        }
        let (first, last) = (self.first_retained().segment(), Lsn(self.committed.get()).segment());
        for segment in (first.0..=last.0).map(SegmentId) {
            for held in self.partitions_of(segment, account)? {
                let Some(&end) = ends.get(&held.partition) else { continue };
                if segment < self.readable().first_of(account, held.partition) {
                    continue;
                }
                let (first, digest) = (held.first_sequence, Digest::default());
                let sum = sums.entry(held.partition).or_insert(Sum { first, next: first, digest });
                if held.next_sequence <= end {
                    sum.digest.merge(held.digest);
                    sum.next = held.next_sequence;
                }
            }
        }
        for (&partition, sum) in &mut sums {
            let end = ends[&partition];
            let mut reader = PartitionReader::own(self, account, partition, sum.next);
            while sum.next < end {
                let Some(view) = reader.try_next()? else { break };
                sum.digest.add(view.checksum(), view.transaction().len() as u64);
                sum.next = reader.position();
            }
        }
        Ok(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Transactions of two records each, from a sequence on; `forged` has another checksum.
    fn list(from: u64, count: u64, forged: Option<u64>) -> Vec<Fingerprint> {
        let one = |at: u64| {
            let first_sequence = from + 2 * at;
            Fingerprint {
                first_sequence,
                records: 2,
                checksum: first_sequence + u64::from(forged == Some(first_sequence)),
            }
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn the_first_record_that_differs_is_found_whatever_either_side_has_trimmed() {
        let find = |here: &[Fingerprint], there: &[Fingerprint]| Parting::find(here, true, there, true);
        let here = list(0, 10, None);
        assert_eq!(find(&here, &list(0, 10, Some(6))), Parting::At(6));
        assert_eq!(find(&here, &list(4, 8, Some(6))), Parting::At(6), "trimmed there");
        assert_eq!(find(&list(4, 8, None), &list(0, 10, Some(6))), Parting::At(6), "trimmed here");
        assert_eq!(find(&list(8, 6, None), &list(0, 10, Some(6))), Parting::Nowhere, "what differs was trimmed");
        assert_eq!(find(&here, &list(0, 12, None)), Parting::At(20), "more than anybody wrote");
        assert_eq!(find(&here, &list(0, 8, None)), Parting::Nowhere, "less is no difference");
        assert_eq!((find(&[], &list(0, 1, None)), find(&here, &[])), (Parting::At(0), Parting::Nowhere));
        let mut longer = here.clone();
        longer[3].records = 3;
        assert_eq!(find(&here, &longer), Parting::At(6), "another length");
    }

    #[test]
    fn the_comparison_goes_on_where_a_list_ends_before_its_partition() {
        let find = |here: &[Fingerprint], there: &[Fingerprint]| Parting::find(here, false, there, false);
        assert_eq!(find(&list(0, 10, None), &list(0, 8, None)), Parting::Later(16));
        assert_eq!(find(&list(0, 5, None), &list(4, 5, None)), Parting::Later(10));
        assert_eq!(find(&list(0, 5, None), &list(90, 5, None)), Parting::Later(90), "all of it was trimmed there");
        assert_eq!(find(&list(0, 5, None), &list(0, 5, Some(8))), Parting::At(8));
    }
}
