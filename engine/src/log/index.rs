//! The index of a segment in the making: which partition's transactions lie where, and whose retries they were.

use rustc_hash::FxHashMap;

use crate::format::{
    AccountRecord, ClientCommit, Frame, FrameKind, IndexPartition, Posting, SegmentIndex, decode_account,
};
use crate::types::{AccountId, ClientId, LogId, Lsn, PartitionId, SegmentId};

/// Grows with each committed block of one segment, never with an uncommitted one.
#[derive(Clone)]
pub(crate) struct IndexBuilder {
    segment: SegmentId,
    entries: FxHashMap<(AccountId, PartitionId), u32>,
    partitions: Vec<IndexPartition>,
    postings: Vec<(u32, Posting)>,
    clients: Vec<ClientCommit>,
    system: Vec<u32>,
    accounts: Vec<AccountRecord>,
}

impl IndexBuilder {
    pub(crate) fn new(segment: SegmentId) -> IndexBuilder {
        IndexBuilder {
            segment,
            entries: FxHashMap::default(),
            partitions: Vec::new(),
            postings: Vec::new(),
            clients: Vec::new(),
            system: Vec::new(),
            accounts: Vec::new(),
        }
    }

    pub(crate) fn segment(&self) -> SegmentId {
        self.segment
    }

    /// Takes in one committed frame.
    pub(crate) fn add(&mut self, lsn: Lsn, frame: &Frame<'_>) {
        assert_eq!(lsn.segment(), self.segment, "an index is of one segment");
        let header = frame.header();
        let count = frame.count() as u64;
        let next_sequence = header.first_sequence + count;
        let fresh = self.partitions.len() as u32;
        let entry = *self.entries.entry((header.account, header.partition)).or_insert(fresh);
        if entry == fresh {
            self.partitions.push(IndexPartition {
                account: header.account,
                partition: header.partition,
                first_sequence: header.first_sequence,
                next_sequence,
                first_posting: 0,
                postings: 0,
            });
        }
        let partition = &mut self.partitions[entry as usize];
        assert!(partition.postings == 0 || partition.next_sequence == header.first_sequence, "sequences are dense");
        partition.next_sequence = next_sequence;
        partition.postings += 1;
        self.postings.push((entry, Posting { offset: lsn.offset(), sequence: header.first_sequence }));
        if header.client != ClientId::NONE {
            self.clients.push(ClientCommit {
                client: header.client,
                sequence: header.client_sequence,
                lsn,
                first_sequence: header.first_sequence,
                records: count as u32,
            });
        }
        if header.kind == FrameKind::System {
            self.system.push(lsn.offset());
            self.accounts.extend(frame.record(0).and_then(|record| decode_account(record).ok()));
        }
    }

    /// The accounts that its system frames carry, in order.
    pub(crate) fn accounts(&self) -> &[AccountRecord] {
        &self.accounts
    }

    /// Up to `most` postings of a partition, from the transaction that holds sequence `from` on.
    pub(crate) fn postings(&self, account: AccountId, partition: PartitionId, from: u64, most: usize) -> Vec<Posting> {
        let Some(&entry) = self.entries.get(&(account, partition)) else { return Vec::new() };
        let mut found: Vec<Posting> = Vec::new();
        for (_, posting) in self.postings.iter().filter(|(of, _)| *of == entry) {
            if posting.sequence <= from {
                found.clear();
            } else if found.len() >= most {
                break;
            }
            found.push(*posting);
        }
        found
    }

    /// The finished index: partitions sorted, each one's postings in a row.
    pub(crate) fn finish(&self, log: LogId, window: usize) -> SegmentIndex {
        let mut order: Vec<u32> = (0..self.partitions.len() as u32).collect();
        order
            .sort_unstable_by_key(|&at| (self.partitions[at as usize].account, self.partitions[at as usize].partition));
        let mut next = vec![0u32; self.partitions.len()];
        let mut start = 0;
        let mut partitions = Vec::with_capacity(order.len());
        for &at in &order {
            let partition = IndexPartition { first_posting: start, ..self.partitions[at as usize] };
            next[at as usize] = start;
            start += partition.postings;
            partitions.push(partition);
        }
        let mut postings = vec![Posting { offset: 0, sequence: 0 }; self.postings.len()];
        for (entry, posting) in &self.postings {
            let place = &mut next[*entry as usize];
            postings[*place as usize] = *posting;
            *place += 1;
        }
        let clients = latest(&self.clients, window);
        SegmentIndex { log, segment: self.segment, partitions, postings, clients, system: self.system.clone() }
    }
}

/// The highest `window` sequences of each client: the others are forgotten anyway.
fn latest(commits: &[ClientCommit], window: usize) -> Vec<ClientCommit> {
    let mut sorted = commits.to_vec();
    sorted.sort_unstable_by_key(|commit| (commit.client, std::cmp::Reverse(commit.sequence)));
    let mut kept = 0;
    let mut client = None;
    sorted.retain(|commit| {
        kept = if client == Some(commit.client) { kept + 1 } else { 0 };
        client = Some(commit.client);
        kept < window
    });
    sorted
}
