//! Directories, options and a machine that remembers, for the tests beside this file.

use std::sync::{Arc, Mutex};

use meridian::{Committed, DiskConfig, Lsn, Options, StateMachine};
use tempfile::TempDir;

/// Options over `disks` fresh directories, each a fault domain of its own, with segments of 1 MiB.
pub(crate) fn options(dir: &TempDir, disks: usize) -> Options {
    let names: Vec<String> = (0..disks).map(|at| format!("disk-{at}")).collect();
    let disks = names.iter().map(|name| DiskConfig::new(dir.path().join(name), name, "zone-1"));
    let mut options = Options::new(disks.collect());
    options.segment_bytes = 1 << 20;
    options.block_bytes = 64 << 10;
    options.transaction_bytes = 128 << 10;
    options.rebuild_bytes_per_second = 0;
    options
}

/// What a machine was handed: position, partition, first sequence, records.
pub(crate) type Seen = Vec<(Lsn, u128, u64, Vec<Vec<u8>>)>;

/// Remembers every transaction.
#[derive(Clone, Default)]
pub(crate) struct Memory(pub(crate) Arc<Mutex<Seen>>);

impl StateMachine for Memory {
    fn resume_from(&self) -> Lsn {
        Lsn::ZERO
    }

    fn apply(&mut self, transaction: &Committed<'_>) {
        let records = transaction.records().map(|(_, record)| record.to_vec()).collect();
        let entry = (transaction.lsn(), transaction.partition().0, transaction.first_sequence(), records);
        self.0.lock().unwrap().push(entry);
    }
}
