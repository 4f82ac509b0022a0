//! The other libraries, each behind the one thing that is compared: records that are durable when a call returns.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};

use crate::compare::Payloads;

/// Records of one lane to be appended at once: made outside of what is measured, shared by all copies, and used again under new numbers.
pub(super) struct Batch {
    first: u64,
    count: u64,
    payloads: Payloads,
    /// As raft-engine wants them, for it alone.
    entries: Vec<BytesValue>,
}

impl Batch {
    /// The first `count` records of a lane of a library.
    pub(super) fn new(peer: &Peer, count: u64, payloads: &Payloads) -> Batch {
        let entry = |number: u64| {
            let payload = payloads.of(number);
            // The index takes the place of the payload's first bytes: the same number of bytes for everyone.
            let value = [&[0; 8][..], payload.get(8..).unwrap_or_default()].concat();
            BytesValue { value, ..BytesValue::default() }
        };
        let entries = if peer.entries { (0..count).map(entry).collect() } else { Vec::new() };
        let mut batch = Batch { first: 0, count, payloads: payloads.clone(), entries };
        batch.number(0);
        batch
    }

    /// Makes them the records from the one of this number on.
    pub(super) fn number(&mut self, first: u64) {
        self.first = first;
        for (entry, number) in self.entries.iter_mut().zip(first..) {
            // raft-engine counts from one.
            entry.value[..8].copy_from_slice(&(number + 1).to_le_bytes());
        }
    }

    /// The number after the last.
    pub(super) fn next(&self) -> u64 {
        self.first + self.count
    }
}

/// One copy of a log or store. Its lanes are independent writers: a raft group, a part of the key space.
pub(super) trait Store: Send + Sync {
    /// Appends records of one lane, whose numbers are dense; they are durable when it returns.
    fn append(&self, lane: u64, batch: &Batch) -> Result<(), String>;
    /// Between two measurements: let go of what is no longer needed.
    fn tidy(&self) -> Result<(), String>;
}

/// Opens a copy in an empty directory, for so many lanes.
type Open = fn(&Path, usize) -> Result<Box<dyn Store>, String>;

/// A library that can be compared.
pub(super) struct Peer {
    /// Its name and version.
    pub(super) name: &'static str,
    /// Whether it also builds an index that answers reads by key.
    pub(super) indexes: bool,
    /// Whether it takes its records as entries.
    pub(super) entries: bool,
    /// Opens one copy in an empty directory, for so many lanes.
    pub(super) open: Open,
}

/// Every library that this build knows.
pub(super) fn all() -> Vec<Peer> {
    vec![
        Peer { name: "raft-engine 0.4", indexes: false, entries: true, open: RaftEngine::open },
        Peer { name: "fjall 3", indexes: true, entries: false, open: Fjall::open },
        #[cfg(feature = "peers-rocksdb")]
        Peer { name: "RocksDB", indexes: true, entries: false, open: Rocks::open },
    ]
}

/// The text of any error.
fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// raft-engine: entries of raft groups, log files recycled and written ahead of use, no compression.
struct RaftEngine {
    engine: Engine,
    next: Vec<AtomicU64>,
}

/// An entry as raft-engine wants it: a protobuf message that knows its index. The index is its first eight bytes.
#[derive(Clone)]
struct Entry;

impl MessageExt for Entry {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        entry.value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

impl RaftEngine {
    fn open(directory: &Path, lanes: usize) -> Result<Box<dyn Store>, String> {
        let config = Config {
            dir: directory.to_string_lossy().into_owned(),
            batch_compression_threshold: ReadableSize(0),
            target_file_size: ReadableSize::mb(64),
            purge_threshold: ReadableSize::mb(256),
            enable_log_recycle: true,
            prefill_for_recycle: true,
            ..Config::default()
        };
        let next = (0..lanes).map(|_| AtomicU64::new(1)).collect();
        Ok(Box::new(RaftEngine { engine: Engine::open(config).map_err(text)?, next }))
    }
}

impl Store for RaftEngine {
    fn append(&self, lane: u64, batch: &Batch) -> Result<(), String> {
        self.next[lane as usize].store(batch.next() + 1, Ordering::Relaxed);
        let mut write = LogBatch::with_capacity(1);
        write.add_entries::<Entry>(lane + 1, &batch.entries).map_err(text)?;
        self.engine.write(&mut write, true).map(|_| ()).map_err(text)
    }

    fn tidy(&self) -> Result<(), String> {
        for (lane, next) in self.next.iter().enumerate() {
            self.engine.compact_to(lane as u64 + 1, next.load(Ordering::Relaxed));
        }
        self.engine.purge_expired_files().map(|_| ()).map_err(text)
    }
}

/// The key of a record in an ordered store: its lane, then its number.
fn key(lane: u64, number: u64) -> [u8; 16] {
    let mut key = [0; 16];
    // Most significant byte first, so that byte order is number order.
    for (place, byte) in key.iter_mut().enumerate() {
        let word = if place < 8 { lane } else { number };
        *byte = (word >> (56 - 8 * (place % 8))) as u8;
    }
    key
}

/// fjall: a batch in the journal, `fdatasync`.
struct Fjall {
    database: Database,
    records: Keyspace,
}

impl Fjall {
    fn open(directory: &Path, _lanes: usize) -> Result<Box<dyn Store>, String> {
        let database = Database::builder(directory).open().map_err(text)?;
        let records = database.keyspace("records", KeyspaceCreateOptions::default).map_err(text)?;
        Ok(Box::new(Fjall { database, records }))
    }
}

impl Store for Fjall {
    fn append(&self, lane: u64, batch: &Batch) -> Result<(), String> {
        let mut write = self.database.batch().durability(Some(PersistMode::SyncData));
        for number in batch.first..batch.next() {
            write.insert(&self.records, &key(lane, number)[..], &batch.payloads.of(number)[..]);
        }
        write.commit().map_err(text)
    }

    fn tidy(&self) -> Result<(), String> {
        Ok(())
    }
}

/// RocksDB: a write batch, the write-ahead log synced, log files recycled.
#[cfg(feature = "peers-rocksdb")]
struct Rocks {
    database: rocksdb::DB,
}

#[cfg(feature = "peers-rocksdb")]
impl Rocks {
    fn open(directory: &Path, _lanes: usize) -> Result<Box<dyn Store>, String> {
        let mut options = rocksdb::Options::default();
        options.create_if_missing(true);
        options.set_recycle_log_file_num(4);
        let database = rocksdb::DB::open(&options, directory).map_err(text)?;
        Ok(Box::new(Rocks { database }))
    }
}

#[cfg(feature = "peers-rocksdb")]
impl Store for Rocks {
    fn append(&self, lane: u64, batch: &Batch) -> Result<(), String> {
        let mut write = rocksdb::WriteBatch::default();
        for number in batch.first..batch.next() {
            write.put(key(lane, number), batch.payloads.of(number));
        }
        let mut options = rocksdb::WriteOptions::default();
        options.set_sync(true);
        self.database.write_opt(write, &options).map_err(text)
    }

    fn tidy(&self) -> Result<(), String> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_takes_records_from_every_lane() {
        for peer in all() {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let store = (peer.open)(dir.path(), 2).expect("opened");
            for lane in 0..2 {
                let mut next = 0;
                for count in [1, 3] {
                    let mut batch = Batch::new(&peer, count, &Payloads::new(100));
                    // The second time it is the same batch under new numbers.
                    for _ in 0..2 {
                        batch.number(next);
                        store.append(lane, &batch).expect(peer.name);
                        next = batch.next();
                    }
                }
            }
            store.tidy().expect(peer.name);
        }
    }

    #[test]
    fn entries_know_their_index_and_are_as_long_as_the_payload() {
        let peer = all().into_iter().find(|peer| peer.entries).expect("raft-engine");
        let mut batch = Batch::new(&peer, 3, &Payloads::new(100));
        batch.number(41);
        assert_eq!(batch.entries.iter().map(Entry::index).collect::<Vec<_>>(), [42, 43, 44]);
        assert!(batch.entries.iter().all(|entry| entry.value.len() == 100) && batch.next() == 44);
        assert_ne!(batch.entries[0].value[8..], batch.entries[1].value[8..]);
    }

    #[test]
    fn keys_sort_as_lane_and_number_do() {
        assert!(key(1, 255) < key(1, 256) && key(1, u64::MAX) < key(2, 0));
    }
}
