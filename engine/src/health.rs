//! What can be read at any time of a region's disks, copies and watermarks (acceptance L8).

use crate::types::{AccountId, Epoch, Lsn, SegmentId};

/// How a disk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DiskState {
    /// It answers, and holds what it should.
    Healthy,
    /// It is being reread and rebuilt; it has no vote and takes no segment yet.
    Rebuilding,
    /// An operation failed on it. It does not count again until it was returned and rebuilt.
    Failed,
    /// It did not complete a write in time, or its copy lagged too far. It stays out, also when it
    /// answers again, until [`Region::return_disk`](crate::Region::return_disk) or the next
    /// opening.
    Stalled,
    /// Its directory cannot be opened, or is no longer at its path, which is noticed within seconds.
    Missing,
    /// Its directory is empty where a disk of this region should be: replace it explicitly.
    Blank,
    /// It belongs to another region, or its superblocks do not verify.
    Foreign,
}

/// One disk of the region.
#[derive(Clone, Debug)]
pub struct DiskHealth {
    /// Its directory.
    pub path: std::path::PathBuf,
    /// Its fault domain, upgrade domain and zone.
    pub domains: [String; 3],
    /// How it stands.
    pub state: DiskState,
    /// Why, in words.
    pub reason: String,
    /// Whether its upgrade domain is being drained.
    pub draining: bool,
    /// Whether the last attempt to make room for a segment there failed for lack of space, or of what the process may have: descriptors, memory,
    /// threads, bytes of a file. While [`Health::no_space`] is true, at least one disk says so.
    pub full: bool,
    /// Whether O_DIRECT works there; where it does not, writes go through the page cache.
    pub direct: bool,
    /// Segment files it holds, and how many of them are free for new segments.
    pub segments: (u32, u32),
    /// Bytes free, and bytes in all, on its file system.
    pub space: (u64, u64),
    /// Bytes committed but not yet durable here; 0 for a disk outside the current set.
    pub lag_bytes: u64,
    /// Whether it is in the set that new blocks go to.
    pub in_set: bool,
}

/// One disk's copy of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyHealth {
    /// The disk, by its place in the options.
    pub disk: usize,
    /// Whether it holds everything up to the seal, and its seal page says so. A copy of the active segment is never complete.
    pub complete: bool,
}

/// A retained segment and where its copies lie (acceptance L8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHealth {
    /// The segment.
    pub segment: SegmentId,
    /// The epoch that wrote it.
    pub epoch: Epoch,
    /// Bytes of its file up to the seal; `None` while it takes blocks.
    pub sealed: Option<u32>,
    /// Its copies on disks that answer.
    pub copies: Vec<CopyHealth>,
}

/// The region's standing at one moment.
#[derive(Clone, Debug)]
pub struct Health {
    /// The I/O back end in use, and why when it was not the first choice.
    pub driver: String,
    /// The disks, in the order of the options.
    pub disks: Vec<DiskHealth>,
    /// The writer's epoch.
    pub epoch: Epoch,
    /// The segment that blocks go to now.
    pub active: SegmentId,
    /// The first position still retained.
    pub first: Lsn,
    /// The end of what is committed.
    pub committed: Lsn,
    /// Whether the current set has only two copies: `quorum` goes on, `all` is refused.
    pub degraded: bool,
    /// Sealed segments with fewer than three verified copies.
    pub unwhole: usize,
    /// Sealed segments of which a scrub of this life found bytes that no copy has
    /// ([`ScrubReport::lost`](crate::ScrubReport::lost) names them), until they are trimmed or a
    /// copy comes back.
    pub lost: usize,
    /// Retained segments, the active one included.
    pub segments: usize,
    /// Why nothing can be committed now, if so.
    pub halted: Option<String>,
    /// Whether commits are refused for lack of space.
    pub no_space: bool,
    /// Secondaries that an operator lets be read here though their primary's settings say no, and why
    /// ([`Region::override_read_access`](crate::Region::override_read_access)).
    pub read_overrides: Vec<(AccountId, String)>,
    /// Copies that the scrub or a read found corrupt since the region was opened, and how many were repaired.
    pub corrupt_copies: (u64, u64),
}

impl Health {
    /// Whether every retained segment has its three copies, none has lost anything that is known
    /// of, and the current set is whole.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.halted.is_none() && !self.degraded && self.unwhole == 0 && self.lost == 0
    }
}
