//! The index of a segment in the making: which partition's transactions lie where, and whose retries they were.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::account::Account;
use crate::format::{
    ClientCommit, CommitOutcome, Frame, FrameHeader, FrameKind, IndexPartition, Posting, SegmentIndex, SystemRecord,
    SystemState,
};
use crate::geo::{Cut, Digest, Holding, Lane, Progress, Restart};
use crate::types::{AccountId, ClientId, LogId, Lsn, ORDINAL, PartitionId, SegmentId};

/// Postings that one chunk of a partition holds, at most.
const CHUNK: u32 = 1024;

/// Grows with each committed block of one segment, never with an uncommitted one.
///
/// A partition's postings lie in chunks of one array, each chunk twice as large as the one before: adding a posting allocates
/// nothing of its own, finding one looks at a chunk for every 1024 postings.
#[derive(Clone)]
pub(crate) struct IndexBuilder {
    segment: SegmentId,
    entries: FxHashMap<(AccountId, PartitionId), u32>,
    partitions: Vec<Entry>,
    postings: Vec<Posting>,
    /// The full chunks of all partitions.
    full: Vec<Chunk>,
    commits: Vec<Commit>,
    accounts: BTreeMap<AccountId, Account>,
    progress: BTreeMap<Lane, (Progress, Lsn)>,
    /// What the partitions that began anew here began with.
    restarts: BTreeMap<(AccountId, PartitionId), Holding>,
    /// The latest time of a system frame.
    time: u64,
}

/// A partition, and the chunk that its next posting goes to.
#[derive(Clone)]
struct Entry {
    partition: IndexPartition,
    last: Chunk,
}

/// Some postings of one partition, in a row.
#[derive(Clone, Copy)]
struct Chunk {
    start: u32,
    used: u32,
    room: u32,
    /// The partition's chunk before, by place among the full ones; [`FIRST`] when there is none.
    before: u32,
}

/// A client's frame. It finds its account and partition through its entry, which keeps it small:
/// every frame of a segment may be a client's.
#[derive(Clone, Copy)]
struct Commit {
    client: ClientId,
    sequence: u64,
    first_sequence: u64,
    /// The frame's place in the segment.
    offset: u32,
    records: u32,
    /// By place among the partitions.
    entry: u32,
}

/// No chunk comes before.
const FIRST: u32 = u32::MAX;

impl IndexBuilder {
    pub(crate) fn new(segment: SegmentId) -> IndexBuilder {
        IndexBuilder {
            segment,
            entries: FxHashMap::default(),
            partitions: Vec::new(),
            postings: Vec::new(),
            full: Vec::new(),
            commits: Vec::new(),
            accounts: BTreeMap::new(),
            progress: BTreeMap::new(),
            restarts: BTreeMap::new(),
            time: 0,
        }
    }

    /// Takes in one committed frame.
    pub(crate) fn add(&mut self, lsn: Lsn, frame: &Frame<'_>) {
        assert_eq!(lsn.segment(), self.segment, "an index is of one segment");
        let header = frame.header();
        let count = frame.count() as u64;
        let entry = self.post(&header, count, lsn.offset(), frame.checksum());
        if header.client != ClientId::NONE {
            self.commits.push(Commit {
                client: header.client,
                sequence: header.client_sequence,
                first_sequence: header.first_sequence,
                offset: lsn.offset(),
                records: count as u32,
                entry,
            });
        }
        if header.kind == FrameKind::System {
            self.time = self.time.max(header.time);
            self.add_system(lsn, frame.record(0).unwrap_or_default());
        }
    }

    fn add_system(&mut self, lsn: Lsn, record: &[u8]) {
        match SystemRecord::decode(record) {
            Ok(SystemRecord::Account(account)) => drop(self.accounts.insert(account.id, account)),
            Ok(SystemRecord::Progress(progress)) => {
                let known = self.progress.entry(progress.lane).or_insert((progress, lsn));
                let cut = if progress.time == known.0.time { known.1 } else { lsn };
                *known = (progress, cut);
            }
            Ok(SystemRecord::Restart(restart)) => self.restart(&restart),
            // What does not decode is of a later version, which this one cannot know.
            Ok(SystemRecord::Mark(_)) | Err(_) => {}
        }
    }

    /// What it held of these partitions is void.
    fn restart(&mut self, restart: &Restart) {
        for holding in &restart.partitions {
            let key = (restart.account, holding.partition);
            self.entries.remove(&key);
            self.restarts.insert(key, *holding);
        }
    }

    /// Adds the posting of a frame with `count` records to its partition, and returns the partition's place.
    fn post(&mut self, header: &FrameHeader, count: u64, offset: u32, checksum: u64) -> u32 {
        let (account, partition, sequence) = (header.account, header.partition, header.first_sequence);
        let posting = Posting { offset, sequence };
        let fresh = self.partitions.len() as u32;
        let entry = *self.entries.entry((account, partition)).or_insert(fresh);
        if entry == fresh {
            let last = Chunk { start: self.postings.len() as u32, used: 1, room: 1, before: FIRST };
            let (first_sequence, next_sequence) = (sequence, sequence + count);
            let mut digest = Digest::default();
            digest.add(checksum, count);
            let partition = IndexPartition {
                account,
                partition,
                first_sequence,
                next_sequence,
                first_posting: 0,
                postings: 1,
                digest,
            };
            self.partitions.push(Entry { partition, last });
            self.postings.push(posting);
            return entry;
        }
        let Entry { partition, last } = &mut self.partitions[entry as usize];
        assert_eq!(partition.next_sequence, sequence, "sequences are dense");
        partition.next_sequence += count;
        partition.postings += 1;
        partition.digest.add(checksum, count);
        if last.used == last.room {
            let room = (last.room * 2).min(CHUNK);
            let before = self.full.len() as u32;
            self.full.push(*last);
            *last = Chunk { start: self.postings.len() as u32, used: 0, room, before };
            self.postings.resize(self.postings.len() + room as usize, posting);
        }
        self.postings[(last.start + last.used) as usize] = posting;
        last.used += 1;
        entry
    }

    /// A partition's chunks, the last one first.
    fn chunks(&self, last: Chunk) -> impl Iterator<Item = &[Posting]> {
        let before = |chunk: &Chunk| self.full.get(chunk.before as usize).copied();
        std::iter::successors(Some(last), before)
            .map(|chunk| &self.postings[chunk.start as usize..(chunk.start + chunk.used) as usize])
    }

    /// Where the last sync time of a lane was entered first here, as far as this segment knows.
    pub(crate) fn cut(&self, lane: Lane) -> Option<Cut> {
        self.progress.get(&lane).map(|(progress, position)| Cut { time: progress.time, position: *position })
    }

    /// What it holds of a partition, without the places of its postings.
    pub(crate) fn partition(&self, account: AccountId, partition: PartitionId) -> Option<IndexPartition> {
        let entry = self.entries.get(&(account, partition))?;
        Some(self.partitions[*entry as usize].partition)
    }

    /// The sequence after a partition's last record, if anything here tells.
    pub(crate) fn next_sequence(&self, account: AccountId, partition: PartitionId) -> Option<u64> {
        let begun = || self.restarts.get(&(account, partition)).map(|holding| holding.next_sequence);
        self.partition(account, partition).map(|held| held.next_sequence).or_else(begun)
    }

    /// What it holds of an account's partitions.
    pub(crate) fn partitions_of(&self, account: AccountId) -> Vec<IndexPartition> {
        let its = self.entries.iter().filter(|((id, _), _)| *id == account);
        its.map(|(_, &at)| self.partitions[at as usize].partition).collect()
    }

    /// Up to `most` postings of a partition, from the transaction that holds sequence `from` on; none when `from` is behind the
    /// last one.
    pub(crate) fn postings(&self, account: AccountId, partition: PartitionId, from: u64, most: usize) -> Vec<Posting> {
        let Some(&entry) = self.entries.get(&(account, partition)) else { return Vec::new() };
        let Entry { partition, last } = &self.partitions[entry as usize];
        if from >= partition.next_sequence {
            return Vec::new();
        }
        let mut chunks: Vec<&[Posting]> = Vec::new();
        for chunk in self.chunks(*last) {
            chunks.push(chunk);
            if chunk[0].sequence <= from {
                break;
            }
        }
        let first = chunks.pop().unwrap_or(&[]);
        let skipped = first.partition_point(|posting| posting.sequence <= from).saturating_sub(1);
        first[skipped..].iter().chain(chunks.into_iter().rev().flatten()).take(most).copied().collect()
    }

    /// Whether a block with frames begins at `offset`. Looks at every posting.
    pub(crate) fn starts_block(&self, offset: u32) -> bool {
        let entries = self.partitions.iter();
        let mut chunks = entries.flat_map(|entry| self.chunks(entry.last));
        chunks.any(|chunk| chunk.iter().any(|posting| posting.offset & !ORDINAL == offset))
    }

    /// The finished index of the segment that ends with the block of that checksum: partitions sorted,
    /// each one's postings in a row.
    pub(crate) fn finish(&self, log: LogId, end_chain: u64, window: usize) -> SegmentIndex {
        let mut order: Vec<&Entry> = self.entries.values().map(|&at| &self.partitions[at as usize]).collect();
        order.sort_unstable_by_key(|entry| (entry.partition.account, entry.partition.partition));
        let count = order.iter().map(|entry| entry.partition.postings as usize).sum();
        let mut postings: Vec<Posting> = Vec::with_capacity(count);
        let mut partitions = Vec::with_capacity(order.len());
        let mut chunks: Vec<&[Posting]> = Vec::new();
        for entry in order {
            partitions.push(IndexPartition { first_posting: postings.len() as u32, ..entry.partition });
            chunks.extend(self.chunks(entry.last));
            while let Some(chunk) = chunks.pop() {
                postings.extend_from_slice(chunk);
            }
        }
        let clients = self.latest(window);
        let system = SystemState {
            accounts: self.accounts.values().cloned().collect(),
            progress: self.progress.values().copied().collect(),
            restarts: by_account(&self.restarts),
            time: self.time,
        };
        SegmentIndex { log, segment: self.segment, end_chain, partitions, postings, clients, system }
    }

    /// The highest `window` sequences of each client: the others are forgotten anyway.
    fn latest(&self, window: usize) -> Vec<ClientCommit> {
        let of = |commit: &Commit| (self.partitions[commit.entry as usize].partition.account, commit.client);
        let mut sorted = self.commits.clone();
        sorted.sort_unstable_by_key(|commit| (of(commit), std::cmp::Reverse(commit.sequence)));
        let mut kept = 0;
        let mut client = None;
        sorted.retain(|commit| {
            kept = if client == Some(of(commit)) { kept + 1 } else { 0 };
            client = Some(of(commit));
            kept < window
        });
        sorted.iter().map(|commit| self.client_commit(commit)).collect()
    }

    fn client_commit(&self, commit: &Commit) -> ClientCommit {
        let Commit { client, sequence, first_sequence, offset, records, entry } = *commit;
        let IndexPartition { account, partition, .. } = self.partitions[entry as usize].partition;
        let lsn = Lsn::new(self.segment, offset);
        let outcome = CommitOutcome { sequence, partition, lsn, first_sequence, records };
        ClientCommit { account, client, outcome }
    }
}

fn by_account(restarts: &BTreeMap<(AccountId, PartitionId), Holding>) -> Vec<Restart> {
    let mut accounts: BTreeMap<AccountId, Vec<Holding>> = BTreeMap::new();
    for ((account, _), holding) in restarts {
        accounts.entry(*account).or_default().push(*holding);
    }
    accounts.into_iter().map(|(account, partitions)| Restart { account, partitions }).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::format::{encode_frame, frame_len};

    fn header(partition: u128, first_sequence: u64) -> FrameHeader {
        FrameHeader {
            kind: FrameKind::Data,
            account: AccountId(1),
            partition: PartitionId(partition),
            epoch: 1,
            first_sequence,
            time: 0,
            client: ClientId::NONE,
            client_sequence: 0,
        }
    }

    /// Frames of two records, the partitions in turn as `7 i mod p`, and each partition's postings as a list of its own.
    fn filled(frames: u32, partitions: u32) -> (IndexBuilder, Vec<Vec<Posting>>) {
        let mut builder = IndexBuilder::new(SegmentId(3));
        let mut lists = vec![Vec::new(); partitions as usize];
        for frame in 0..frames {
            let list = &mut lists[(frame * 7 % partitions) as usize];
            let (partition, sequence) = (u128::from(frame * 7 % partitions), list.len() as u64 * 2);
            let posting = Posting { offset: 8192 + (frame / 5) * 4096 + frame % 5, sequence };
            list.push(posting);
            builder.post(&header(partition, sequence), 2, posting.offset, u64::from(frame));
        }
        (builder, lists)
    }

    #[test]
    fn postings_are_found_from_any_sequence_as_a_list_would_have_them() {
        for (frames, partitions) in [(1, 1), (5000, 1), (5000, 3), (700, 500)] {
            let (builder, lists) = filled(frames, partitions);
            for (number, list) in lists.iter().enumerate() {
                let end = list.len() as u64 * 2;
                for from in (0..end + 3).step_by(1 + end as usize / 97) {
                    for most in [1, 10, 2000] {
                        let expected: Vec<Posting> = list.iter().skip(from as usize / 2).take(most).copied().collect();
                        let found = builder.postings(AccountId(1), PartitionId(number as u128), from, most);
                        assert_eq!(found, expected, "{frames} frames, partition {number}, from {from}, {most}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_finished_index_holds_every_posting_and_is_accepted_by_its_decoder() {
        let (builder, lists) = filled(5000, 3);
        let index = builder.finish(LogId(1), 77, 8);
        assert_eq!(index.partitions.len(), 3);
        for (partition, list) in index.partitions.iter().zip(&lists) {
            let first = partition.first_posting as usize;
            assert_eq!(&index.postings[first..first + partition.postings as usize], list);
            assert_eq!((partition.first_sequence, partition.next_sequence), (0, list.len() as u64 * 2));
        }
        assert_eq!(SegmentIndex::decode(&index.encode()), Ok(index));
    }

    #[test]
    fn h5_index_keeps_the_highest_sequences_of_a_client_of_each_account() {
        let mut builder = IndexBuilder::new(SegmentId(3));
        let mut expected = Vec::new();
        // The same client in three accounts, in a partition of its own in each, in turns.
        for place in 0..12_u32 {
            let (account, sequence) = (u64::from(place % 3) + 1, u64::from(place / 3) + 1);
            let (client, partition, first_sequence) =
                (ClientId(9), PartitionId(70 + u128::from(account)), sequence - 1);
            let header = FrameHeader {
                account: AccountId(account),
                client,
                client_sequence: sequence,
                ..header(partition.0, first_sequence)
            };
            let records = [Bytes::from_static(b"one")];
            let mut frame = vec![0; frame_len(&records).expect("one record")];
            encode_frame(&header, &records, &mut frame);
            let lsn = Lsn::new(SegmentId(3), 8192 + place * 4096);
            builder.add(lsn, &Frame::trusted(&frame).expect("a frame"));
            let outcome = CommitOutcome { sequence, partition, lsn, first_sequence, records: 1 };
            if sequence > 2 {
                expected.push(ClientCommit { account: AccountId(account), client, outcome });
            }
        }
        let mut found = builder.finish(LogId(1), 77, 2).clients;
        let place = |commit: &ClientCommit| (commit.account, commit.outcome.sequence);
        found.sort_unstable_by_key(place);
        expected.sort_unstable_by_key(place);
        assert_eq!(found, expected);
    }

    #[test]
    fn blocks_start_where_postings_say() {
        let (builder, _) = filled(50, 3);
        assert!(builder.starts_block(8192) && builder.starts_block(8192 + 9 * 4096));
        assert!(!builder.starts_block(4096) && !builder.starts_block(8192 + 10 * 4096));
    }
}
