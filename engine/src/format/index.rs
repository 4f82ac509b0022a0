//! The partition index of a sealed segment: where each partition's frames are, as a whole. Derived: rebuilt from the segment
//! if lost.

use rkyv::{Archive, Deserialize, Serialize};

use xxhash_rust::xxh3::xxh3_64;

use super::archive::{ENVELOPE, archive, unarchive};
use super::codec::{at_least, expect, expect_zero};
use super::index_pages::{check_partitions, refuse};
use super::system::check_name;
use super::{IndexDirectory, IndexPage, Result, decode_account, encode_account};
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
    /// The checksum of the segment's last block: of which history the segment is.
    pub end_chain: u64,
    /// The partitions with records in the segment, ascending by account, then partition.
    pub partitions: Vec<IndexPartition>,
    /// The frames of all partitions: those of the first, ascending by sequence, those of the second, and so on.
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
    /// Its first posting, by place in [`SegmentIndex::postings`] or [`IndexPage::postings`].
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
        let clients = self.clients.iter().map(StoredClient::from).collect();
        let rest = archive(&StoredRest { clients, system: StoredSystem::from(&self.system) });
        IndexDirectory::encode(self, &rest[ENVELOPE..])
    }

    /// Reads the file at the start of `bytes`, which may be longer than it.
    ///
    /// # Errors
    /// When anything is wrong: the directory, a page, or what follows them.
    pub fn decode(bytes: &[u8]) -> Result<SegmentIndex> {
        let directory = IndexDirectory::decode(bytes)?;
        let (mut partitions, mut postings): (Vec<IndexPartition>, Vec<Posting>) = (Vec::new(), Vec::new());
        for number in 0..directory.fences.len() {
            let page = directory.page(number, part(bytes, directory.range(number))?)?;
            join(&mut partitions, postings.len() as u32, &page)?;
            postings.extend(page.postings);
        }
        let range = directory.rest_range();
        let (len, checksum) = directory.rest;
        let (rest, padding) = part(bytes, range)?.split_at(len);
        expect(0, "index: checksum behind the pages", checksum, xxh3_64(rest))?;
        expect_zero(padding, 0..padding.len(), "index: padding")?;
        let stored: StoredRest = unarchive(rest, "index: archive")?;
        let index = SegmentIndex {
            log: directory.log,
            segment: directory.segment,
            end_chain: directory.end_chain,
            partitions,
            postings,
            clients: stored.clients.iter().map(ClientCommit::from).collect(),
            system: stored.system.restore()?,
        };
        index.check()?;
        Ok(index)
    }

    /// As it is written: a directory and pages.
    pub(crate) fn into_pages(self) -> (IndexDirectory, Vec<IndexPage>) {
        let bytes = self.encode();
        drop(self);
        let directory = IndexDirectory::decode(&bytes).expect("a directory that was encoded just now");
        let page = |number| directory.page(number, &bytes[directory.range(number)]);
        let pages = (0..directory.fences.len()).map(page);
        let pages = pages.collect::<Result<_>>().expect("pages that were encoded just now");
        (directory, pages)
    }

    /// The limits that the fields document.
    pub(super) fn check(&self) -> Result<()> {
        check_partitions(&self.partitions, &self.postings)?;
        self.system.check()
    }
}

fn part(bytes: &[u8], range: std::ops::Range<usize>) -> Result<&[u8]> {
    at_least(0, "index: bytes of all its parts", range.end as u64, bytes.len() as u64)?;
    Ok(&bytes[range])
}

/// Adds a page's partitions; the first one may go on from the page before.
fn join(partitions: &mut Vec<IndexPartition>, before: u32, page: &IndexPage) -> Result<()> {
    let mut its = page.partitions.iter();
    if let (Some(last), Some(first)) = (partitions.last_mut(), page.partitions.first())
        && (last.account, last.partition) == (first.account, first.partition)
    {
        let (first_posting, postings) = (last.first_posting, last.postings);
        if *last != (IndexPartition { first_posting, postings, ..*first }) {
            return Err(refuse("index: a partition is the same on all its pages"));
        }
        last.postings += first.postings;
        its.next();
    }
    partitions.extend(its.map(|held| IndexPartition { first_posting: before + held.first_posting, ..*held }));
    Ok(())
}

/// What an index file holds behind its pages, as archived, version 3.
#[derive(Archive, Serialize, Deserialize)]
struct StoredRest {
    clients: Vec<StoredClient>,
    system: StoredSystem,
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
