//! The partition index of a sealed segment: where each partition's frames are. Derived: rebuilt from the segment if lost.

use rkyv::{Archive, Deserialize, Serialize};

use super::archive::{ENVELOPE, Kind, open_file, seal_file, unarchive};
use super::codec::expect;
use super::system::check_name;
use super::{DATA_START, FormatError, Result, decode_account, encode_account};
use crate::account::Account;
use crate::geo::{Anchor, Digest, Holding, Lane, Progress, Restart};
use crate::types::{AccountId, ClientId, LogId, Lsn, PartitionId, SegmentId};

/// Where everything in a sealed segment is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentIndex {
    /// The log.
    pub log: LogId,
    /// The segment.
    pub segment: SegmentId,
    /// The partitions with records in the segment, ascending by account, then partition.
    pub partitions: Vec<IndexPartition>,
    /// The frames of all partitions, those of one together and ascending by sequence.
    pub postings: Vec<Posting>,
    /// The highest sequences of each client in the segment, as many as its window remembers.
    pub clients: Vec<ClientCommit>,
    /// What its system records came to.
    pub system: SystemState,
}

/// One partition's part of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexPartition {
    /// The account that owns it.
    pub account: AccountId,
    /// The partition.
    pub partition: PartitionId,
    /// The sequence of its first record in the segment.
    pub first_sequence: u64,
    /// The sequence after its last record in the segment.
    pub next_sequence: u64,
    /// Its first posting, by place in [`SegmentIndex::postings`].
    pub first_posting: u32,
    /// How many postings it has.
    pub postings: u32,
    /// Of its records in the segment.
    pub digest: Digest,
}

/// What system records come to: of one segment's, or of all up to a place.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SystemState {
    /// The accounts as last set.
    pub accounts: Vec<Account>,
    /// For each source the last progress, and where its last sync time was entered first.
    pub progress: Vec<(Progress, Lsn)>,
    /// What restarted partitions began with: of a segment the last of each partition. A checkpoint's partitions tell for themselves.
    pub restarts: Vec<Restart>,
    /// The latest time of a system frame: no mark claims more.
    pub time: u64,
}

impl SystemState {
    pub(super) fn check(&self) -> Result<()> {
        self.accounts.iter().try_for_each(|account| check_name(ENVELOPE, account.name.len()))
    }
}

/// One frame of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posting {
    /// The lower half of the frame's [`Lsn`]: the block's byte offset in the segment, the frame's number in it in the low 12 bits.
    pub offset: u32,
    /// The sequence of its first record.
    pub sequence: u64,
}

/// A commit of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientCommit {
    /// The account in which alone the client is known.
    pub account: AccountId,
    /// The client.
    pub client: ClientId,
    /// What came of it.
    pub outcome: CommitOutcome,
}

/// What came of a client's transaction: what a retry of it is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitOutcome {
    /// The client's own number for the transaction.
    pub sequence: u64,
    /// The partition: with another one, the same sequence is not a retry.
    pub partition: PartitionId,
    /// Where its frame is.
    pub lsn: Lsn,
    /// The partition sequence that its first record got.
    pub first_sequence: u64,
    /// How many records it had.
    pub records: u32,
}

impl SegmentIndex {
    /// The whole file, a multiple of [`ALIGN`](super::ALIGN) long.
    ///
    /// # Panics
    /// In debug builds, if a field breaks the limit that it documents.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        debug_assert_eq!(self.check(), Ok(()), "an index that no decoder accepts");
        seal_file(Kind::Index, self.log, self.segment, &Stored::from(self))
    }

    /// Reads the file at the start of `bytes`, which may be longer than it.
    ///
    /// # Errors
    /// When anything is wrong: too few bytes, magic, version, kind, checksum, non-zero padding, the archive, a
    /// field out of its limits.
    pub fn decode(bytes: &[u8]) -> Result<SegmentIndex> {
        let file = open_file(bytes, Kind::Index)?;
        let stored: Stored = unarchive(file.payload, "index: archive")?;
        expect(
            ENVELOPE,
            "index: a sequence for each posting",
            stored.posting_offsets.len() as u64,
            stored.posting_sequences.len() as u64,
        )?;
        let postings = stored.posting_offsets.iter().zip(&stored.posting_sequences);
        let index = SegmentIndex {
            log: file.log,
            segment: file.segment,
            partitions: stored.partitions.iter().map(IndexPartition::from).collect(),
            postings: postings.map(|(&offset, &sequence)| Posting { offset, sequence }).collect(),
            clients: stored.clients.iter().map(ClientCommit::from).collect(),
            system: stored.system.restore()?,
        };
        index.check()?;
        Ok(index)
    }

    /// The limits that the fields document.
    pub(super) fn check(&self) -> Result<()> {
        let key = |partition: &IndexPartition| (partition.account, partition.partition);
        if !self.partitions.is_sorted_by(|one, next| key(one) < key(next)) {
            return Err(refuse("index: partitions ascend", self.partitions.len()));
        }
        for (place, partition) in self.partitions.iter().enumerate() {
            self.check_partition(partition).map_err(|what| refuse(what, place))?;
        }
        if let Some(place) = self.postings.iter().position(|posting| posting.offset < DATA_START) {
            return Err(refuse("index: a posting before the first block", place));
        }
        self.system.check()
    }

    fn check_partition(&self, partition: &IndexPartition) -> std::result::Result<(), &'static str> {
        let first = partition.first_posting as usize;
        let postings = first
            .checked_add(partition.postings as usize)
            .and_then(|end| self.postings.get(first..end))
            .ok_or("index: a partition's postings are not there")?;
        let ascending = postings.windows(2).all(|pair| pair[0].sequence < pair[1].sequence);
        let inside = postings.first().is_none_or(|posting| posting.sequence >= partition.first_sequence)
            && postings.last().is_none_or(|posting| posting.sequence < partition.next_sequence);
        if partition.first_sequence > partition.next_sequence || !ascending || !inside {
            return Err("index: a partition's sequences ascend");
        }
        Ok(())
    }
}

fn refuse(what: &'static str, place: usize) -> FormatError {
    FormatError { at: ENVELOPE, what, expected: 0, found: place as u64 }
}

/// The payload as archived, version 2. Postings are two columns: they are the bulk, and columns of integers are copied
/// and checked as a whole.
#[derive(Archive, Serialize, Deserialize)]
struct Stored {
    partitions: Vec<StoredPartition>,
    posting_offsets: Vec<u32>,
    posting_sequences: Vec<u64>,
    clients: Vec<StoredClient>,
    system: StoredSystem,
}

#[derive(Archive, Serialize, Deserialize)]
struct StoredPartition {
    partition: u128,
    account: u64,
    first_sequence: u64,
    next_sequence: u64,
    first_posting: u32,
    postings: u32,
    sum: u128,
    records: u64,
}

/// A [`SystemState`] as archived, version 1; checkpoints hold one too.
#[derive(Archive, Serialize, Deserialize)]
pub(super) struct StoredSystem {
    /// Each as its system record.
    accounts: Vec<Vec<u8>>,
    progress: Vec<StoredProgress>,
    restarts: Vec<StoredRestart>,
    time: u64,
}

#[derive(Archive, Serialize, Deserialize)]
struct StoredRestart {
    account: u64,
    partition: u128,
    next_sequence: u64,
    sum: u128,
    records: u64,
}

#[derive(Archive, Serialize, Deserialize)]
struct StoredProgress {
    log: u128,
    lane: u32,
    position: u64,
    block: u64,
    checksum: u64,
    time: u64,
    records: u64,
    sum: u128,
    cut: u64,
}

/// A [`ClientCommit`] as archived, version 2; checkpoints hold them too.
#[derive(Archive, Serialize, Deserialize)]
pub(super) struct StoredClient {
    client: u128,
    partition: u128,
    account: u64,
    sequence: u64,
    lsn: u64,
    first_sequence: u64,
    records: u32,
}

impl From<&SegmentIndex> for Stored {
    fn from(index: &SegmentIndex) -> Stored {
        Stored {
            partitions: index.partitions.iter().map(StoredPartition::from).collect(),
            posting_offsets: index.postings.iter().map(|posting| posting.offset).collect(),
            posting_sequences: index.postings.iter().map(|posting| posting.sequence).collect(),
            clients: index.clients.iter().map(StoredClient::from).collect(),
            system: StoredSystem::from(&index.system),
        }
    }
}

impl From<&IndexPartition> for StoredPartition {
    fn from(index: &IndexPartition) -> StoredPartition {
        let IndexPartition { account, partition, first_sequence, next_sequence, first_posting, postings, digest } =
            *index;
        StoredPartition {
            partition: partition.0,
            account: account.0,
            first_sequence,
            next_sequence,
            first_posting,
            postings,
            sum: digest.sum,
            records: digest.records,
        }
    }
}

impl From<&StoredPartition> for IndexPartition {
    fn from(stored: &StoredPartition) -> IndexPartition {
        let StoredPartition {
            partition,
            account,
            first_sequence,
            next_sequence,
            first_posting,
            postings,
            sum,
            records,
        } = *stored;
        IndexPartition {
            account: AccountId(account),
            partition: PartitionId(partition),
            first_sequence,
            next_sequence,
            first_posting,
            postings,
            digest: Digest { sum, records },
        }
    }
}

impl From<&SystemState> for StoredSystem {
    fn from(system: &SystemState) -> StoredSystem {
        let progress = |(progress, cut): &(Progress, Lsn)| StoredProgress {
            log: progress.lane.log.0,
            lane: progress.lane.number,
            position: progress.position.0,
            block: progress.anchor.block.0,
            checksum: progress.anchor.checksum,
            time: progress.time,
            records: progress.held.records,
            sum: progress.held.sum,
            cut: cut.0,
        };
        let restart = |restart: &Restart| {
            let account = restart.account.0;
            let stored = restart.partitions.iter().map(move |&Holding { partition, next_sequence, digest }| {
                let (sum, records) = (digest.sum, digest.records);
                StoredRestart { account, partition: partition.0, next_sequence, sum, records }
            });
            stored.collect::<Vec<StoredRestart>>()
        };
        StoredSystem {
            restarts: system.restarts.iter().flat_map(restart).collect(),
            accounts: system.accounts.iter().map(encode_account).collect(),
            progress: system.progress.iter().map(progress).collect(),
            time: system.time,
        }
    }
}

impl StoredSystem {
    pub(super) fn restore(self) -> Result<SystemState> {
        let progress = |StoredProgress { log, lane, position, block, checksum, time, records, sum, cut }| {
            let (lane, position) = (Lane { log: LogId(log), number: lane }, Lsn(position));
            let (anchor, held) = (Anchor { block: Lsn(block), checksum }, Digest { sum, records });
            (Progress { lane, position, anchor, time, held }, Lsn(cut))
        };
        let mut restarts: Vec<Restart> = Vec::new();
        for StoredRestart { account, partition, next_sequence, sum, records } in self.restarts {
            let (account, digest) = (AccountId(account), Digest { sum, records });
            if restarts.last().is_none_or(|restart| restart.account != account) {
                restarts.push(Restart { account, partitions: Vec::new() });
            }
            let holding = Holding { partition: PartitionId(partition), next_sequence, digest };
            restarts.last_mut().into_iter().for_each(|restart| restart.partitions.push(holding));
        }
        Ok(SystemState {
            accounts: self.accounts.iter().map(|record| decode_account(record)).collect::<Result<_>>()?,
            progress: self.progress.into_iter().map(progress).collect(),
            restarts,
            time: self.time,
        })
    }
}

impl From<&ClientCommit> for StoredClient {
    fn from(commit: &ClientCommit) -> StoredClient {
        let ClientCommit { account, client, outcome } = *commit;
        let CommitOutcome { sequence, partition, lsn, first_sequence, records } = outcome;
        let (account, client, partition, lsn) = (account.0, client.0, partition.0, lsn.0);
        StoredClient { client, partition, account, sequence, lsn, first_sequence, records }
    }
}

impl From<&StoredClient> for ClientCommit {
    fn from(stored: &StoredClient) -> ClientCommit {
        let StoredClient { client, partition, account, sequence, lsn, first_sequence, records } = *stored;
        let (account, client, partition, lsn) =
            (AccountId(account), ClientId(client), PartitionId(partition), Lsn(lsn));
        ClientCommit { account, client, outcome: CommitOutcome { sequence, partition, lsn, first_sequence, records } }
    }
}
