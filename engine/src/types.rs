//! The words of the engine as types: identities, positions, ack levels.

use std::fmt;

/// The bits of an [`Lsn`] that number a frame in its block.
pub(crate) const ORDINAL: u32 = 0xfff;

/// A position in a region's log: the segment in the upper 32 bits; below, the byte offset of a block in it, a multiple of 4096,
/// whose low 12 bits are the number of the frame in that block.
///
/// Positions are local to a region, ordered, and never reused. They name a transaction, or the place where the next one will be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before everything that a log ever held.
    pub const ZERO: Lsn = Lsn(0);
    /// After everything that a log can hold.
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// The position with the lower half `offset` in `segment`.
    #[must_use]
    pub const fn new(segment: SegmentId, offset: u32) -> Lsn {
        Lsn(((segment.0 as u64) << 32) | offset as u64)
    }

    /// The segment that holds this position.
    #[must_use]
    pub const fn segment(self) -> SegmentId {
        SegmentId((self.0 >> 32) as u32)
    }

    /// The lower half: the block's byte offset in the segment, and in its low 12 bits the frame's number in the block.
    #[must_use]
    pub const fn offset(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.segment().0, self.offset())
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lsn({self})")
    }
}

/// A segment's number in the log; dense, starting at 1, never reused (the file that holds it is).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SegmentId(pub u32);

impl SegmentId {
    /// No segment has a higher number, and this one takes no blocks: a region whose numbers are used up can still be opened and read.
    pub(crate) const LAST: SegmentId = SegmentId(u32::MAX - 1);
}

/// The identity of a region's log, drawn at creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(pub u128);

/// The identity of a disk, drawn when the disk joins a region; a replaced disk gets a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub u128);

/// One writer's term. It grows with each open and with each change of the replica set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

/// An account's number, the same in every region that holds it: the upper half is drawn with the log that it was made in. 0 is the
/// system's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(pub u64);

impl AccountId {
    /// The account that owns the system partition.
    pub const SYSTEM: AccountId = AccountId(0);
}

/// A partition of an account: the unit of order. The caller chooses the 128 bits; [`PartitionId::named`] hashes a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u128);

impl PartitionId {
    /// The partition for a name: its 128-bit XXH3 hash. Names that an adversary chooses can be made to collide:
    /// a frontend that serves such names keeps the name in its records and compares.
    ///
    /// ```
    /// # use meridian::PartitionId;
    /// assert_eq!(PartitionId::named("EWR/UA"), PartitionId::named("EWR/UA"));
    /// assert_ne!(PartitionId::named("EWR/UA"), PartitionId::named("LGA/UA"));
    /// ```
    #[must_use]
    pub fn named(name: &str) -> PartitionId {
        PartitionId(xxhash_rust::xxh3::xxh3_128(name.as_bytes()))
    }
}

/// A client of an account, for retries that are applied once (acceptance L6). The same number in
/// another account is another client: neither knows the other's sequences (H5, ADR 0023). 0 means
/// "no client": nothing is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClientId(pub u128);

impl ClientId {
    /// No client: the transaction carries no sequence and a retry is a second transaction.
    pub const NONE: ClientId = ClientId(0);
}

/// Where an account's writes come from, and what its copy here is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Role {
    /// From the callers of this region; another region may hold a copy.
    #[default]
    Primary,
    /// From the callers of this region; a copy elsewhere is to be dropped (acceptance G12).
    Local,
    /// From its primary, another region, over the geo link.
    Secondary,
    /// As a secondary, while the copy is made or made whole again: nobody reads it (FAULT-MODEL invariant 15).
    Bootstrap,
    /// A copy that was dropped: nobody reads it, nothing arrives for it.
    Dropped,
}

impl Role {
    /// Whether the callers of this region write.
    #[must_use]
    pub fn is_primary(self) -> bool {
        matches!(self, Role::Primary | Role::Local)
    }
}

/// When a commit is acknowledged (acceptance ruling 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Ack {
    /// Two of three copies are durable; the third completes behind.
    #[default]
    Quorum,
    /// All three copies are durable.
    All,
}
