//! Latency histograms of every stage of a write (acceptance T1), and counts.

use hdrhistogram::Histogram;

/// Nanoseconds from 1 µs to 60 s at three digits; what lies outside is counted at the edge.
fn stage() -> Histogram<u64> {
    // A simulation opens a region a thousand times a second and reads no percentiles.
    let digits = if cfg!(feature = "sim") { 1 } else { 3 };
    Histogram::new_with_bounds(1_000, 60_000_000_000, digits).expect("the bounds are constants that the crate accepts")
}

/// What was measured since the region was opened. Latencies are in nanoseconds.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Accepted → in a block.
    pub queue: Histogram<u64>,
    /// First transaction in a block → block on its way.
    pub group_commit: Histogram<u64>,
    /// Block on its way → durable on one disk; one histogram per disk of the options.
    pub disks: Vec<Histogram<u64>>,
    /// Block on its way → durable on a quorum.
    pub quorum: Histogram<u64>,
    /// A committed block through the state machine.
    pub apply: Histogram<u64>,
    /// Accepted → answered: what a caller sees, less its own wake-up.
    pub acknowledged: Histogram<u64>,
    /// A replica set given up → writes going on in the next.
    pub set_change: Histogram<u64>,
    /// Blocks written, counted once for all copies.
    pub blocks: u64,
    /// Transactions in them.
    pub transactions: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes in them, headers and padding included, counted once for all copies.
    pub bytes: u64,
    /// Retries that had been applied before.
    pub repeated: u64,
    /// Times that a full segment had to wait for the next one.
    pub segment_waits: u64,
    /// Parts of segment indexes (a directory or a page) that readers of partitions found in memory.
    pub index_hits: u64,
    /// Those that they had to read; many of them say that
    /// [`Options::index_cache_bytes`](crate::Options::index_cache_bytes) is too small.
    pub index_misses: u64,
    /// Bytes of index files that they read.
    pub index_bytes: u64,
    /// Indexes that no disk had whole: made again by reading their segments.
    pub indexes_remade: u64,
    /// Bytes that the last opening read: superblocks, headers, the unsealed tail, the checkpoint and the indexes behind it (not the replay to the
    /// state machine).
    pub recovery_bytes: u64,
    /// Nanoseconds that the last opening took, until the region could serve.
    pub recovery_time: u64,
}

impl Stats {
    pub(crate) fn new(disks: usize) -> Stats {
        Stats {
            queue: stage(),
            group_commit: stage(),
            disks: (0..disks).map(|_| stage()).collect(),
            quorum: stage(),
            apply: stage(),
            acknowledged: stage(),
            set_change: stage(),
            blocks: 0,
            transactions: 0,
            records: 0,
            bytes: 0,
            repeated: 0,
            segment_waits: 0,
            index_hits: 0,
            index_misses: 0,
            index_bytes: 0,
            indexes_remade: 0,
            recovery_bytes: 0,
            recovery_time: 0,
        }
    }
}
