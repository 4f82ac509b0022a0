//! Where a partition's transactions are: the index in the making of a young segment, the index file of an old one, kept in
//! memory within a bound, or the segment itself when its index is lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{DATA_START, IndexPartition, Posting, SegmentIndex};
use crate::io::DiskIndex;
use crate::log::index::IndexBuilder;
use crate::log::seal::index_name;
use crate::read::blocks::{BlockReader, Start};
use crate::read::trimmed;
use crate::shared::{Shared, lock};
use crate::types::{AccountId, Lsn, ORDINAL, PartitionId, SegmentId};

/// Postings handed to a reader at once.
const CHUNK: usize = 1024;
/// The same from an index that is too large to be kept: it is read again for the next ones.
const LARGE_CHUNK: usize = 64 << 10;

/// What readers need of a sealed segment's index.
pub(crate) struct PartitionIndex {
    partitions: Vec<IndexPartition>,
    postings: Vec<Posting>,
}

impl PartitionIndex {
    fn new(index: SegmentIndex) -> PartitionIndex {
        let SegmentIndex { mut partitions, mut postings, .. } = index;
        partitions.shrink_to_fit();
        postings.shrink_to_fit();
        PartitionIndex { partitions, postings }
    }

    /// Its size in memory.
    fn bytes(&self) -> usize {
        128 + size_of_val(self.partitions.as_slice()) + size_of_val(self.postings.as_slice())
    }

    fn partition(&self, account: AccountId, partition: PartitionId) -> Option<&IndexPartition> {
        let key = (account, partition);
        let at = self.partitions.binary_search_by_key(&key, |entry| (entry.account, entry.partition));
        at.ok().map(|at| &self.partitions[at])
    }

    fn postings(&self, account: AccountId, partition: PartitionId, from: u64, most: usize) -> Vec<Posting> {
        let found = self.partition(account, partition).filter(|found| from < found.next_sequence);
        let Some(found) = found else { return Vec::new() };
        let first = found.first_posting as usize;
        let postings = &self.postings[first..first + found.postings as usize];
        let skipped = postings.partition_point(|posting| posting.sequence <= from).saturating_sub(1);
        postings[skipped..].iter().take(most).copied().collect()
    }
}

/// The indexes used last, bounded in bytes.
pub(crate) struct IndexCache {
    most: usize,
    bytes: usize,
    uses: u64,
    /// With the number of its last use.
    indexes: BTreeMap<SegmentId, (u64, Arc<PartitionIndex>)>,
    /// By last use.
    order: BTreeMap<u64, SegmentId>,
}

impl IndexCache {
    pub(crate) fn new(most: usize) -> IndexCache {
        IndexCache { most, bytes: 0, uses: 0, indexes: BTreeMap::new(), order: BTreeMap::new() }
    }

    fn get(&mut self, segment: SegmentId) -> Option<Arc<PartitionIndex>> {
        let (used, index) = self.indexes.get_mut(&segment)?;
        self.order.remove(used);
        self.uses += 1;
        *used = self.uses;
        self.order.insert(self.uses, segment);
        Some(Arc::clone(index))
    }

    /// Keeps an index if it fits, in the place of those not used for the longest time.
    fn put(&mut self, segment: SegmentId, index: &Arc<PartitionIndex>) {
        self.remove(segment);
        if index.bytes() > self.most {
            return;
        }
        while self.bytes + index.bytes() > self.most {
            let Some((_, oldest)) = self.order.first_key_value() else { break };
            self.remove(*oldest);
        }
        self.uses += 1;
        self.bytes += index.bytes();
        self.order.insert(self.uses, segment);
        self.indexes.insert(segment, (self.uses, Arc::clone(index)));
    }

    fn remove(&mut self, segment: SegmentId) {
        if let Some((used, index)) = self.indexes.remove(&segment) {
            self.order.remove(&used);
            self.bytes -= index.bytes();
        }
    }
}

/// Where the postings of a segment are found.
enum Source {
    Building(Arc<Mutex<IndexBuilder>>),
    Finished(Arc<PartitionIndex>),
}

impl Shared {
    /// What a segment holds of a partition.
    pub(super) fn partition_in(
        &self,
        segment: SegmentId,
        account: AccountId,
        partition: PartitionId,
    ) -> Result<Option<IndexPartition>> {
        Ok(match self.source(segment)? {
            Source::Building(builder) => lock(&builder).partition(account, partition),
            Source::Finished(index) => index.partition(account, partition).copied(),
        })
    }

    /// What a segment holds of an account's partitions.
    pub(crate) fn partitions_of(&self, segment: SegmentId, account: AccountId) -> Result<Vec<IndexPartition>> {
        Ok(match self.source(segment)? {
            Source::Building(builder) => lock(&builder).partitions_of(account),
            Source::Finished(index) => {
                let its = index.partitions.partition_point(|held| held.account < account);
                index.partitions[its..].iter().take_while(|held| held.account == account).copied().collect()
            }
        })
    }

    /// Some postings of a partition in a segment, from the transaction that holds sequence `from` on; none when there are no more.
    pub(super) fn postings(
        &self,
        segment: SegmentId,
        account: AccountId,
        partition: PartitionId,
        from: u64,
    ) -> Result<Vec<Posting>> {
        Ok(match self.source(segment)? {
            Source::Building(builder) => lock(&builder).postings(account, partition, from, CHUNK),
            Source::Finished(index) => {
                let most = if index.bytes() > self.options.index_cache_bytes { LARGE_CHUNK } else { CHUNK };
                index.postings(account, partition, from, most)
            }
        })
    }

    fn source(&self, segment: SegmentId) -> Result<Source> {
        let disks: Vec<DiskIndex> = {
            let catalog = self.readable();
            if segment < catalog.first {
                return Err(trimmed(Lsn::new(segment, DATA_START), catalog.first));
            }
            if let Some(builder) = catalog.builders.get(&segment) {
                return Ok(Source::Building(Arc::clone(builder)));
            }
            let holders = catalog.segments.get(&segment).map(|known| known.copies.as_slice()).unwrap_or_default();
            holders.iter().map(|(disk, _)| *disk).collect()
        };
        if let Some(index) = lock(&self.indexes).get(segment) {
            return Ok(Source::Finished(index));
        }
        match self.load_index(segment, &disks) {
            Some(index) => Ok(Source::Finished(index)),
            None => Ok(Source::Finished(self.scan_index(segment)?)),
        }
    }

    /// The index file of a segment, from its holders first: another disk may have held a copy once. None is read from a
    /// disk that hangs: the segment says the same.
    fn load_index(&self, segment: SegmentId, holders: &[DiskIndex]) -> Option<Arc<PartitionIndex>> {
        let (log, name) = (self.log_id(), index_name(segment));
        // Every frame may be a new client's in a new partition.
        let limit = 2 * u64::from(self.options.segment_bytes) + (1 << 20);
        let others = (0..self.options.disks.len()).map(DiskIndex).filter(|disk| !holders.contains(disk));
        let mut answering = holders.iter().copied().chain(others).filter(|disk| !self.hangs(*disk));
        let index = answering.find_map(|disk| {
            let bytes = self.reader.read_file(disk, &name, limit).ok()?;
            SegmentIndex::decode(&bytes).ok().filter(|index| (index.log, index.segment) == (log, segment))
        })?;
        Some(self.keep_index(segment, index))
    }

    fn keep_index(&self, segment: SegmentId, index: SegmentIndex) -> Arc<PartitionIndex> {
        let index = Arc::new(PartitionIndex::new(index));
        lock(&self.indexes).put(segment, &index);
        index
    }

    /// Makes a sealed segment's index by reading the segment, and keeps it.
    pub(super) fn scan_index(&self, segment: SegmentId) -> Result<Arc<PartitionIndex>> {
        let known = self.segment(Lsn::new(segment, DATA_START))?;
        let end = known.end.ok_or_else(|| {
            Error::new(ErrorKind::RestoreDisk, format!("segment {} has no index and no known end", segment.0))
        })?;
        let mut builder = IndexBuilder::new(segment);
        let mut blocks = BlockReader::new();
        let mut at = DATA_START;
        while at < end {
            let block = blocks.get(self, segment, at, Start::Known)?;
            let frames = crate::format::Block::trusted(&block.data).frames().enumerate();
            for (ordinal, (_, frame)) in frames {
                builder.add(Lsn::new(segment, at | ordinal as u32), &frame);
            }
            at = block.end().offset();
        }
        Ok(self.keep_index(segment, builder.finish(self.log_id(), 0)))
    }

    /// Whether a block begins at `offset`, if that can be told without reading the segment.
    pub(super) fn starts_block(&self, segment: SegmentId, offset: u32) -> Option<bool> {
        let builder = self.readable().builders.get(&segment).cloned();
        if let Some(builder) = builder {
            return Some(lock(&builder).starts_block(offset));
        }
        let cached = lock(&self.indexes).get(segment);
        let index = cached.or_else(|| self.load_index(segment, &[]))?;
        Some(index.postings.iter().any(|posting| posting.offset & !ORDINAL == offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(postings: usize) -> Arc<PartitionIndex> {
        Arc::new(PartitionIndex {
            partitions: Vec::new(),
            postings: vec![Posting { offset: 0, sequence: 0 }; postings],
        })
    }

    #[test]
    fn the_cache_keeps_what_was_used_last_within_its_bytes_and_nothing_that_does_not_fit() {
        let one = index(100).bytes();
        let mut cache = IndexCache::new(3 * one);
        for segment in 1..=3 {
            cache.put(SegmentId(segment), &index(100));
        }
        assert!(cache.get(SegmentId(1)).is_some());
        cache.put(SegmentId(4), &index(100));
        let kept: Vec<u32> = (1..=4).filter(|segment| cache.get(SegmentId(*segment)).is_some()).collect();
        assert_eq!((kept, cache.bytes), (vec![1, 3, 4], 3 * one));
        cache.put(SegmentId(5), &index(400));
        assert!(cache.get(SegmentId(5)).is_none() && cache.bytes == 3 * one);
        cache.put(SegmentId(6), &index(200));
        assert_eq!((cache.bytes, cache.indexes.len(), cache.order.len()), (index(200).bytes() + one, 2, 2));
        cache.put(SegmentId(6), &index(100));
        assert_eq!((cache.bytes, cache.indexes.len(), cache.order.len()), (2 * one, 2, 2));
    }
}
