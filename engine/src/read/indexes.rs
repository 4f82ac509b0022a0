//! Where a partition's transactions are: the index in the making of a young segment; of an old one the index file, of which a
//! lookup reads the directory and one page, kept in memory within a bound; or the segment itself when its index is lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{DATA_START, IndexDirectory, IndexPage, IndexPartition, Posting, peek_directory_len};
use crate::io::DiskIndex;
use crate::log::index::IndexBuilder;
use crate::log::seal::index_name;
use crate::read::blocks::{BlockReader, Start};
use crate::read::trimmed;
use crate::shared::{Shared, lock};
use crate::types::{AccountId, Lsn, ORDINAL, PartitionId, SegmentId};

/// Postings handed to a reader at once.
const CHUNK: usize = 1024;
/// Read of an index file at first: more than most directories have.
const DIRECTORY_READ: usize = 64 << 10;

/// The directory or a page of a segment's index.
#[derive(Clone)]
enum Part {
    Directory(Arc<IndexDirectory>),
    Page(Arc<IndexPage>),
}

impl Part {
    /// Its size in memory, with its place in the cache.
    fn bytes(&self) -> usize {
        let held = match self {
            Part::Directory(directory) => directory.bytes(),
            Part::Page(page) => page.bytes(),
        };
        256 + held
    }
}

/// What is kept of an index: `None` for its directory, else the page of that number.
type Key = (SegmentId, Option<usize>);

/// The parts of indexes used last, bounded in bytes.
pub(crate) struct IndexCache {
    max: usize,
    bytes: usize,
    uses: u64,
    /// With the number of its last use.
    parts: BTreeMap<Key, (u64, Part)>,
    /// By last use.
    order: BTreeMap<u64, Key>,
    counts: IndexCounts,
}

/// How lookups in indexes went since the region was opened.
#[derive(Clone, Copy, Default)]
pub(crate) struct IndexCounts {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) bytes_read: u64,
    pub(crate) remade: u64,
}

impl IndexCache {
    pub(crate) fn new(max: usize) -> IndexCache {
        let (parts, order) = (BTreeMap::new(), BTreeMap::new());
        IndexCache { max, bytes: 0, uses: 0, parts, order, counts: IndexCounts::default() }
    }

    pub(crate) fn counts(&self) -> IndexCounts {
        self.counts
    }

    fn get(&mut self, key: Key) -> Option<Part> {
        let Some((used, part)) = self.parts.get_mut(&key) else {
            self.counts.misses += 1;
            return None;
        };
        self.counts.hits += 1;
        self.order.remove(used);
        self.uses += 1;
        *used = self.uses;
        self.order.insert(self.uses, key);
        Some(part.clone())
    }

    /// Keeps a part if it fits, in the place of those not used for the longest time.
    fn put(&mut self, key: Key, part: Part) {
        self.remove(key);
        if part.bytes() > self.max {
            return;
        }
        while self.bytes + part.bytes() > self.max {
            let Some((_, oldest)) = self.order.first_key_value() else { break };
            self.remove(*oldest);
        }
        self.uses += 1;
        self.bytes += part.bytes();
        self.order.insert(self.uses, key);
        self.parts.insert(key, (self.uses, part));
    }

    fn remove(&mut self, key: Key) {
        if let Some((used, part)) = self.parts.remove(&key) {
            self.order.remove(&used);
            self.bytes -= part.bytes();
        }
    }
}

/// An index that was made again by reading its segment.
pub(super) struct Remade {
    directory: Arc<IndexDirectory>,
    pages: Vec<Arc<IndexPage>>,
}

/// Where a segment's index is.
enum Source {
    Building(Arc<Mutex<IndexBuilder>>),
    Files(IndexFiles),
}

/// Where the files of a segment's index may be.
struct IndexFiles {
    segment: SegmentId,
    /// Of which history it has to be.
    end_chain: Option<u64>,
    /// The holders of the segment first: another disk may have held a copy once.
    disks: Vec<DiskIndex>,
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
            Source::Files(files) => {
                let page = self.page_of(&files, (account, partition, u64::MAX))?;
                page.and_then(|page| page.partition(account, partition).copied())
            }
        })
    }

    /// What a segment holds of an account's partitions.
    pub(crate) fn partitions_of(&self, segment: SegmentId, account: AccountId) -> Result<Vec<IndexPartition>> {
        let files = match self.source(segment)? {
            Source::Building(builder) => return Ok(lock(&builder).partitions_of(account)),
            Source::Files(files) => files,
        };
        let mut its: Vec<IndexPartition> = Vec::new();
        self.each_page(
            &files,
            |directory| directory.pages_of(account),
            |page| {
                let first = page.partitions.partition_point(|held| held.account < account);
                for held in page.partitions[first..].iter().take_while(|held| held.account == account) {
                    // One that goes on from the page before.
                    if its.last().is_none_or(|last| last.partition != held.partition) {
                        its.push(*held);
                    }
                }
            },
        )?;
        Ok(its)
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
            Source::Files(files) => {
                let page = self.page_of(&files, (account, partition, from))?;
                page.map(|page| page.postings(account, partition, from, CHUNK).to_vec()).unwrap_or_default()
            }
        })
    }

    fn source(&self, segment: SegmentId) -> Result<Source> {
        let catalog = self.readable();
        if segment < catalog.first {
            return Err(trimmed(Lsn::new(segment, DATA_START), catalog.first));
        }
        if let Some(builder) = catalog.builders.get(&segment) {
            return Ok(Source::Building(Arc::clone(builder)));
        }
        let known = catalog.segments.get(&segment);
        let holders = known.map(|known| known.copies.as_slice()).unwrap_or_default();
        let mut disks: Vec<DiskIndex> = holders.iter().map(|(disk, _)| *disk).collect();
        let others = (0..self.options.disks.len()).map(DiskIndex).filter(|disk| !disks.contains(disk));
        let others: Vec<DiskIndex> = others.collect();
        disks.extend(others);
        Ok(Source::Files(IndexFiles { segment, end_chain: known.and_then(|known| known.end_chain), disks }))
    }

    /// The page in which a sequence of a partition lies, if the segment has anything of it.
    fn page_of(&self, files: &IndexFiles, key: (AccountId, PartitionId, u64)) -> Result<Option<Arc<IndexPage>>> {
        let find = |directory: &IndexDirectory| directory.page_of(key.0, key.1, key.2);
        if let Some(directory) = self.directory(files) {
            let Some(number) = find(&directory) else { return Ok(None) };
            if let Some(page) = self.page(&directory, files, number) {
                return Ok(Some(page));
            }
        }
        let remade = self.scan_index(files.segment)?;
        Ok(find(&remade.directory).map(|number| Arc::clone(&remade.pages[number])))
    }

    /// Hands over some pages of a segment's index in order.
    fn each_page(
        &self,
        files: &IndexFiles,
        which: impl Fn(&IndexDirectory) -> std::ops::Range<usize>,
        mut take: impl FnMut(&IndexPage),
    ) -> Result<()> {
        let mut numbers = 0..0;
        if let Some(directory) = self.directory(files) {
            numbers = which(&directory);
            while let Some(page) = numbers.clone().next().and_then(|number| self.page(&directory, files, number)) {
                take(&page);
                numbers.next();
            }
            if numbers.is_empty() {
                return Ok(());
            }
        }
        // A page that no disk has: of the same segment the same pages are made again.
        let remade = self.scan_index(files.segment)?;
        let first = numbers.start;
        which(&remade.directory).filter(|number| *number >= first).for_each(|number| take(&remade.pages[number]));
        Ok(())
    }

    /// The directory of a segment's index, of the first disk that has it.
    fn directory(&self, files: &IndexFiles) -> Option<Arc<IndexDirectory>> {
        let key = (files.segment, None);
        if let Some(Part::Directory(directory)) = lock(&self.indexes).get(key) {
            return Some(directory);
        }
        let directory = files.disks.iter().find_map(|disk| self.read_directory(files, *disk))?;
        let directory = Arc::new(directory);
        lock(&self.indexes).put(key, Part::Directory(Arc::clone(&directory)));
        Some(directory)
    }

    fn read_directory(&self, files: &IndexFiles, disk: DiskIndex) -> Option<IndexDirectory> {
        let segment = files.segment;
        // Every frame may be in a partition of its own, and that in a page of its own.
        let limit = self.options.segment_bytes as usize + (1 << 20);
        let mut bytes = self.read_index(segment, disk, 0, DIRECTORY_READ)?;
        let len = peek_directory_len(&bytes).filter(|len| *len <= limit)?;
        if len > bytes.len() {
            bytes = self.read_index(segment, disk, 0, len)?;
        }
        let directory = IndexDirectory::decode(&bytes).ok()?;
        let its = (directory.log, directory.segment, Some(directory.end_chain));
        (its == (self.log_id(), segment, files.end_chain)).then_some(directory)
    }

    /// A page of a segment's index, of the first disk on which it verifies.
    fn page(&self, directory: &IndexDirectory, files: &IndexFiles, number: usize) -> Option<Arc<IndexPage>> {
        let key = (directory.segment, Some(number));
        if let Some(Part::Page(page)) = lock(&self.indexes).get(key) {
            return Some(page);
        }
        let range = directory.range(number);
        let read = |disk: &DiskIndex| {
            let bytes = self.read_index(directory.segment, *disk, range.start as u64, range.len())?;
            directory.page(number, &bytes).ok()
        };
        let page = Arc::new(files.disks.iter().find_map(read)?);
        lock(&self.indexes).put(key, Part::Page(Arc::clone(&page)));
        Some(page)
    }

    /// Nothing is read from a disk that hangs: the segment says the same.
    fn read_index(&self, segment: SegmentId, disk: DiskIndex, offset: u64, len: usize) -> Option<Vec<u8>> {
        if self.hangs(disk) {
            return None;
        }
        let mut bytes = vec![0; len];
        let read = self.reader.read_named_at(disk, &index_name(segment), offset, &mut bytes).ok()?;
        bytes.truncate(read);
        lock(&self.indexes).counts.bytes_read += bytes.len() as u64;
        Some(bytes)
    }

    /// Makes a sealed segment's index by reading the segment, and keeps what fits of it.
    pub(super) fn scan_index(&self, segment: SegmentId) -> Result<Remade> {
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
        let (directory, pages) = builder.finish(self.log_id(), known.end_chain.unwrap_or_default(), 0).into_pages();
        let remade = Remade { directory: Arc::new(directory), pages: pages.into_iter().map(Arc::new).collect() };
        let mut cache = lock(&self.indexes);
        cache.counts.remade += 1;
        for (number, page) in remade.pages.iter().enumerate() {
            cache.put((segment, Some(number)), Part::Page(Arc::clone(page)));
        }
        cache.put((segment, None), Part::Directory(Arc::clone(&remade.directory)));
        drop(cache);
        Ok(remade)
    }

    /// Whether a block begins at `offset`, if that can be told without reading the segment.
    pub(super) fn starts_block(&self, segment: SegmentId, offset: u32) -> Option<bool> {
        let files = match self.source(segment).ok()? {
            Source::Building(builder) => return Some(lock(&builder).starts_block(offset)),
            Source::Files(files) => files,
        };
        let directory = self.directory(&files)?;
        for number in 0..directory.fences.len() {
            let page = self.page(&directory, &files, number)?;
            if page.postings.iter().any(|posting| posting.offset & !ORDINAL == offset) {
                return Some(true);
            }
        }
        Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(postings: usize) -> Part {
        let postings = vec![Posting { offset: 0, sequence: 0 }; postings];
        Part::Page(Arc::new(IndexPage { partitions: Vec::new(), postings }))
    }

    fn key(segment: u32) -> Key {
        (SegmentId(segment), Some(7))
    }

    #[test]
    fn the_cache_keeps_what_was_used_last_within_its_bytes_and_nothing_that_does_not_fit() {
        let one = page(100).bytes();
        let mut cache = IndexCache::new(3 * one);
        for segment in 1..=3 {
            cache.put(key(segment), page(100));
        }
        assert!(cache.get(key(1)).is_some());
        cache.put(key(4), page(100));
        let kept: Vec<u32> = (1..=4).filter(|segment| cache.get(key(*segment)).is_some()).collect();
        assert_eq!((kept, cache.bytes), (vec![1, 3, 4], 3 * one));
        assert_eq!((cache.counts.hits, cache.counts.misses), (4, 1));
        cache.put(key(5), page(400));
        assert!(cache.get(key(5)).is_none() && cache.bytes == 3 * one);
        cache.put(key(6), page(200));
        assert_eq!((cache.bytes, cache.parts.len(), cache.order.len()), (page(200).bytes() + one, 2, 2));
        cache.put(key(6), page(100));
        assert_eq!((cache.bytes, cache.parts.len(), cache.order.len()), (2 * one, 2, 2));
    }
}
