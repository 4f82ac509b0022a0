//! The directory and the pages of a segment's index: what one lookup reads (ADR 0024).

use rkyv::{Archive, Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::archive::{ENVELOPE, Kind, open_file, peek_file_len, seal_file, unarchive};
use super::codec::{at_least, at_most, expect, expect_zero, put, u32_at, u64_at, u128_at};
use super::{ALIGN, DATA_START, FormatError, IndexPartition, Posting, Result, SegmentIndex, padded};
use crate::geo::Digest;
use crate::types::{AccountId, LogId, PartitionId, SegmentId};

/// The most bytes of a page. All but the last page of an index are as long.
pub const INDEX_PAGE: usize = 32 << 10;

const AT_PARTS: usize = 0;
const AT_POSTINGS: usize = 4;
const PAGE_HEADER: usize = 8;
/// A partition, without its postings.
const PART: usize = 68;
/// A posting: the offset in one column, the sequence in the next.
const POSTING: usize = 12;

/// What a page begins with, and what its bytes hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexFence {
    /// The account of the page's first partition.
    pub account: AccountId,
    /// That partition.
    pub partition: PartitionId,
    /// 0 where the partition begins in this page; where it goes on, the first sequence that it has
    /// here. Whatever a lookup asks for lies in the last page whose fence is not above it.
    pub sequence: u64,
    /// XXH3-64 of the page.
    pub checksum: u64,
}

impl IndexFence {
    fn key(&self) -> (AccountId, PartitionId, u64) {
        (self.account, self.partition, self.sequence)
    }
}

/// The first part of an index file: what is where in the rest of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexDirectory {
    /// The log.
    pub log: LogId,
    /// The segment.
    pub segment: SegmentId,
    /// The checksum of the segment's last block.
    pub end_chain: u64,
    /// The pages, ascending by what they begin with.
    pub fences: Vec<IndexFence>,
    /// The bytes of the directory itself, and of all pages behind it.
    lens: (usize, usize),
    /// The bytes of the archive behind the pages, without its padding, and what they hash to.
    pub(super) rest: (usize, u64),
}

/// Some partitions of a segment with their postings, or a part of them. Of a partition that goes on in another page, each has
/// a part of the postings, and all else is the same in both.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct IndexPage {
    /// The partitions, ascending by account, then partition. Their postings are places in this page.
    pub partitions: Vec<IndexPartition>,
    /// Those of the first partition, those of the second, and so on.
    pub postings: Vec<Posting>,
}

impl IndexPage {
    /// What the segment holds of a partition; its postings are those in this page.
    #[must_use]
    pub fn partition(&self, account: AccountId, partition: PartitionId) -> Option<&IndexPartition> {
        let key = (account, partition);
        let at = self.partitions.binary_search_by_key(&key, |held| (held.account, held.partition));
        at.ok().map(|at| &self.partitions[at])
    }

    /// Up to `max` of a partition's postings, from the transaction that holds sequence `from` on.
    #[must_use]
    pub fn postings(&self, account: AccountId, partition: PartitionId, from: u64, max: usize) -> &[Posting] {
        let found = self.partition(account, partition).filter(|found| from < found.next_sequence);
        let Some(found) = found else { return &[] };
        let first = found.first_posting as usize;
        let postings = &self.postings[first..first + found.postings as usize];
        let skipped = postings.partition_point(|posting| posting.sequence <= from).saturating_sub(1);
        &postings[skipped..][..max.min(postings.len() - skipped)]
    }

    /// Its size in memory.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.partitions.as_slice()) + size_of_val(self.postings.as_slice())
    }

    fn len(&self) -> usize {
        PAGE_HEADER + self.partitions.len() * PART + self.postings.len() * POSTING
    }

    /// What it begins with; where that goes on from the page before it, `continues`.
    fn fence(&self, continues: bool, checksum: u64) -> Option<IndexFence> {
        let first = self.partitions.first()?;
        let sequence = self.postings.first().filter(|_| continues).map_or(0, |posting| posting.sequence);
        Some(IndexFence { account: first.account, partition: first.partition, sequence, checksum })
    }

    fn encode(&self, out: &mut [u8]) {
        put(out, AT_PARTS, &(self.partitions.len() as u32).to_le_bytes());
        put(out, AT_POSTINGS, &(self.postings.len() as u32).to_le_bytes());
        let mut at = PAGE_HEADER;
        for partition in &self.partitions {
            put_partition(partition, &mut out[at..at + PART]);
            at += PART;
        }
        for posting in &self.postings {
            put(out, at, &posting.offset.to_le_bytes());
            at += 4;
        }
        for posting in &self.postings {
            put(out, at, &posting.sequence.to_le_bytes());
            at += 8;
        }
    }

    /// Reads a whole page, whatever its checksum.
    ///
    /// # Errors
    /// When the counts, the padding, the order of partitions or of postings is wrong.
    pub fn decode(bytes: &[u8]) -> Result<IndexPage> {
        at_least(0, "index page: bytes for a header", PAGE_HEADER as u64, bytes.len() as u64)?;
        let (parts, count) = (u32_at(bytes, AT_PARTS) as usize, u32_at(bytes, AT_POSTINGS) as usize);
        // Two numbers of 32 bits times a hundred: no overflow in 64 bits.
        let end = PAGE_HEADER as u64 + parts as u64 * PART as u64 + count as u64 * POSTING as u64;
        at_most(AT_PARTS, "index page: counts beyond the page", bytes.len() as u64, end)?;
        expect_zero(bytes, end as usize..bytes.len(), "index page: padding")?;
        let (rows, columns) = bytes[PAGE_HEADER..end as usize].split_at(parts * PART);
        let (offsets, sequences) = columns.split_at(count * 4);
        let mut page = IndexPage {
            partitions: Vec::with_capacity(parts),
            postings: std::iter::zip(offsets.chunks_exact(4), sequences.chunks_exact(8))
                .map(|(offset, sequence)| Posting { offset: u32_at(offset, 0), sequence: u64_at(sequence, 0) })
                .collect(),
        };
        let mut first_posting = 0u32;
        for row in rows.chunks_exact(PART) {
            let partition = partition_at(row, first_posting);
            let next = first_posting.checked_add(partition.postings).filter(|next| *next as usize <= count);
            first_posting = next.ok_or_else(|| refuse("index page: a partition's postings are not there"))?;
            page.partitions.push(partition);
        }
        expect(AT_POSTINGS, "index page: postings of all partitions", count as u64, u64::from(first_posting))?;
        check_partitions(&page.partitions, &page.postings)?;
        Ok(page)
    }
}

fn put_partition(held: &IndexPartition, out: &mut [u8]) {
    put(out, 0, &held.partition.0.to_le_bytes());
    put(out, 16, &held.account.0.to_le_bytes());
    put(out, 24, &held.first_sequence.to_le_bytes());
    put(out, 32, &held.next_sequence.to_le_bytes());
    put(out, 40, &held.digest.sum.to_le_bytes());
    put(out, 56, &held.digest.records.to_le_bytes());
    put(out, 64, &held.postings.to_le_bytes());
}

fn partition_at(row: &[u8], first_posting: u32) -> IndexPartition {
    IndexPartition {
        partition: PartitionId(u128_at(row, 0)),
        account: AccountId(u64_at(row, 16)),
        first_sequence: u64_at(row, 24),
        next_sequence: u64_at(row, 32),
        first_posting,
        postings: u32_at(row, 64),
        digest: Digest { sum: u128_at(row, 40), records: u64_at(row, 56) },
    }
}

/// Partitions ascend, their postings follow each other and ascend within what the partition has.
pub(super) fn check_partitions(partitions: &[IndexPartition], postings: &[Posting]) -> Result<()> {
    let key = |held: &IndexPartition| (held.account, held.partition);
    if !partitions.is_sorted_by(|one, next| key(one) < key(next)) {
        return Err(refuse("index: partitions ascend"));
    }
    let mut rest = postings;
    for held in partitions {
        let first = postings.len() - rest.len();
        let split = rest.split_at_checked(held.postings as usize).filter(|_| held.first_posting as usize == first);
        let (its, after) = split.ok_or_else(|| refuse("index: a partition's postings are not there"))?;
        let inside = its.first().is_none_or(|posting| posting.sequence >= held.first_sequence)
            && its.last().is_none_or(|posting| posting.sequence < held.next_sequence);
        let ascending = its.is_sorted_by(|one, next| one.sequence < next.sequence);
        if held.first_sequence > held.next_sequence || !ascending || !inside {
            return Err(refuse("index: a partition's sequences ascend"));
        }
        rest = after;
    }
    if !rest.is_empty() {
        return Err(refuse("index: postings of no partition"));
    }
    if postings.iter().any(|posting| posting.offset < DATA_START) {
        return Err(refuse("index: a posting before the first block"));
    }
    Ok(())
}

pub(super) fn refuse(what: &'static str) -> FormatError {
    FormatError { at: ENVELOPE, what, expected: 0, found: 0 }
}

/// The pages of an index, and whether each begins with the partition that the page before ends with.
pub(super) fn pages(index: &SegmentIndex) -> Vec<(IndexPage, bool)> {
    let mut pages = Vec::new();
    let (mut page, mut continues) = (IndexPage::default(), false);
    for held in &index.partitions {
        let first = held.first_posting as usize;
        let mut rest = &index.postings[first..first + held.postings as usize];
        loop {
            let room = INDEX_PAGE.saturating_sub(page.len() + PART) / POSTING;
            if page.len() + PART > INDEX_PAGE || (room == 0 && !rest.is_empty()) {
                pages.push((std::mem::take(&mut page), continues));
                continues = rest.len() < held.postings as usize;
                continue;
            }
            let (here, after) = rest.split_at(room.min(rest.len()));
            let first_posting = page.postings.len() as u32;
            page.partitions.push(IndexPartition { first_posting, postings: here.len() as u32, ..*held });
            page.postings.extend_from_slice(here);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
    }
    if !page.partitions.is_empty() {
        pages.push((page, continues));
    }
    pages
}

impl IndexDirectory {
    /// The pages of `index` behind one another, and the directory in front of them and of `rest`.
    pub(super) fn encode(index: &SegmentIndex, rest: &[u8]) -> Vec<u8> {
        let (mut pages_bytes, mut fences) = (Vec::new(), Vec::new());
        for (page, continues) in pages(index) {
            let at = pages_bytes.len();
            pages_bytes.resize(at + padded(page.len()), 0);
            page.encode(&mut pages_bytes[at..]);
            fences.extend(page.fence(continues, xxh3_64(&pages_bytes[at..])).map(StoredFence::from));
        }
        let stored = Stored {
            end_chain: index.end_chain,
            fences,
            pages: pages_bytes.len() as u64,
            rest: rest.len() as u64,
            rest_checksum: xxh3_64(rest),
        };
        let mut file = seal_file(Kind::Index, index.log, index.segment, &stored);
        file.extend_from_slice(&pages_bytes);
        file.extend_from_slice(rest);
        file.resize(padded(file.len()), 0);
        file
    }

    /// Reads the directory at the start of `bytes`, which may be longer than it: see
    /// [`peek_directory_len`](super::peek_directory_len).
    ///
    /// # Errors
    /// When anything is wrong: too few bytes, magic, version, kind, checksum, padding, the archive,
    /// fences that do not ascend, lengths that do not fit each other.
    pub fn decode(bytes: &[u8]) -> Result<IndexDirectory> {
        let file = open_file(bytes, Kind::Index)?;
        let stored: Stored = unarchive(file.payload, "index: directory")?;
        let len = padded(ENVELOPE + file.payload.len());
        let directory = IndexDirectory {
            log: file.log,
            segment: file.segment,
            end_chain: stored.end_chain,
            fences: stored.fences.iter().map(IndexFence::from).collect(),
            lens: (len, stored.pages as usize),
            rest: (stored.rest as usize, stored.rest_checksum),
        };
        // Far below what a file can hold, so that no sum of them overflows.
        let max = 1 << 40;
        at_most(ENVELOPE, "index: bytes of pages", max, stored.pages)?;
        at_most(ENVELOPE, "index: bytes behind the pages", max, stored.rest)?;
        if !directory.fences.is_sorted_by(|one, next| one.key() < next.key()) {
            return Err(refuse("index: fences ascend"));
        }
        let count = directory.fences.len() as u64;
        let fits = stored.pages.div_ceil(INDEX_PAGE as u64) == count && stored.pages.is_multiple_of(ALIGN as u64);
        if fits { Ok(directory) } else { Err(refuse("index: pages as many as fences")) }
    }

    /// The page that a sequence of a partition lies in, if the segment has anything of it.
    #[must_use]
    pub fn page_of(&self, account: AccountId, partition: PartitionId, sequence: u64) -> Option<usize> {
        self.fences.partition_point(|fence| fence.key() <= (account, partition, sequence)).checked_sub(1)
    }

    /// The pages that may hold partitions of an account.
    pub(crate) fn pages_of(&self, account: AccountId) -> std::ops::Range<usize> {
        let end = self.fences.partition_point(|fence| fence.account <= account);
        self.page_of(account, PartitionId(0), 0).unwrap_or(0)..end
    }

    /// Where a page lies in the file.
    ///
    /// # Panics
    /// When there is no such page.
    #[must_use]
    pub fn range(&self, page: usize) -> std::ops::Range<usize> {
        assert!(page < self.fences.len(), "page {page} of {}", self.fences.len());
        let start = page * INDEX_PAGE;
        self.lens.0 + start..self.lens.0 + self.lens.1.min(start + INDEX_PAGE)
    }

    /// Reads a page, exactly its bytes.
    ///
    /// # Errors
    /// When anything is wrong: the length, the checksum, the counts, the order, what it begins with.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn page(&self, page: usize, bytes: &[u8]) -> Result<IndexPage> {
        let fence = &self.fences[page];
        expect(0, "index page: length", self.range(page).len() as u64, bytes.len() as u64)?;
        expect(0, "index page: checksum", fence.checksum, xxh3_64(bytes))?;
        let decoded = IndexPage::decode(bytes)?;
        let begins = decoded.fence(fence.sequence > 0, fence.checksum);
        if begins == Some(*fence) { Ok(decoded) } else { Err(refuse("index page: begins as its fence says")) }
    }

    /// Where what follows the pages lies in the file, with its padding.
    pub(super) fn rest_range(&self) -> std::ops::Range<usize> {
        let start = self.lens.0 + self.lens.1;
        start..start + padded(self.rest.0)
    }

    /// Its size in memory.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<IndexDirectory>() + size_of_val(self.fences.as_slice())
    }
}

/// The length of the directory at the start of `bytes`, as it claims; verifies nothing.
#[must_use]
pub fn peek_directory_len(bytes: &[u8]) -> Option<usize> {
    peek_file_len(bytes)
}

/// The directory as archived, version 3.
#[derive(Archive, Serialize, Deserialize)]
struct Stored {
    end_chain: u64,
    fences: Vec<StoredFence>,
    pages: u64,
    rest: u64,
    rest_checksum: u64,
}

#[derive(Archive, Serialize, Deserialize)]
struct StoredFence {
    partition: u128,
    account: u64,
    sequence: u64,
    checksum: u64,
}

impl From<IndexFence> for StoredFence {
    fn from(fence: IndexFence) -> StoredFence {
        let IndexFence { account, partition, sequence, checksum } = fence;
        StoredFence { partition: partition.0, account: account.0, sequence, checksum }
    }
}

impl From<&StoredFence> for IndexFence {
    fn from(stored: &StoredFence) -> IndexFence {
        let StoredFence { partition, account, sequence, checksum } = *stored;
        IndexFence { account: AccountId(account), partition: PartitionId(partition), sequence, checksum }
    }
}
