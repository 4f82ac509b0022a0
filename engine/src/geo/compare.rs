//! What a copy of an account lacks, told from digests: where a bootstrap begins in each partition, and what it need not send.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::Result;
use crate::format::DATA_START;
use crate::geo::{Digest, Holding};
use crate::log::geo::Geo;
use crate::read::PartitionReader;
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
}

impl Region {
    /// The first retained position.
    #[must_use]
    pub fn first(&self) -> Lsn {
        self.shared.first_retained()
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
    pub(crate) fn first_retained(&self) -> Lsn {
        Lsn::new(self.readable().first, DATA_START)
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
