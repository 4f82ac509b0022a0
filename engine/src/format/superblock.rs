//! The superblock: what a disk knows of itself, of its region, and of the log's history.
//!
//! A disk keeps two slots and writes them in turn, so that a torn write leaves the older one; the reader takes the valid
//! slot with the higher generation.

use rkyv::{Archive, Deserialize, Serialize};

use super::archive::{ENVELOPE, archive, unarchive};
use super::codec::{
    CHECKSUM, at_least, at_most, check_stamp, expect, expect_wide, expect_zero, put, stamp, u16_at, u32_at, u64_at,
    u128_at,
};
use super::segment::check_set;
use super::{FormatError, Result, SUPERBLOCK_SLOT, Seal};
use crate::types::{DiskId, Epoch, LogId, Lsn, SegmentId};

/// Seals that the engine lists in a superblock at most. What lists one more makes room first.
pub const MAX_SEALS: usize = 64;
/// Epochs that the engine lists in a superblock at most. Both fit beside sixteen members with the longest labels.
pub const MAX_EPOCHS: usize = 128;

const MAGIC: u32 = u32::from_le_bytes(*b"MRSB");
const VERSION: u16 = 1;

const AT_MAGIC: usize = CHECKSUM;
const AT_VERSION: usize = 12;
const AT_RESERVED: usize = 14;
const AT_LENGTH: usize = 16;
const AT_RESERVED_2: usize = 20;
const AT_LOG: usize = 24;
const AT_DISK: usize = 40;
const AT_GENERATION: usize = 56;

/// A disk of the region and its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The disk.
    pub disk: DiskId,
    /// Disks in one fault domain can fail together.
    pub fault_domain: String,
    /// Disks in one upgrade domain can be taken away together.
    pub upgrade_domain: String,
    /// The zone.
    pub zone: String,
}

/// The start of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochEntry {
    /// The epoch.
    pub epoch: Epoch,
    /// The first segment that may be written in it.
    pub first_segment: SegmentId,
    /// The disks that its segments are written to: 1 to [`MAX_SET`](super::MAX_SET), all different.
    pub set: Vec<DiskId>,
}

/// One slot of a disk's superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The log.
    pub log: LogId,
    /// The disk that it was written to.
    pub disk: DiskId,
    /// Grows by one with each write of this disk's superblock.
    pub generation: u64,
    /// No epoch below this one may write any more.
    pub promised: Epoch,
    /// The last epoch that the disk promised while it was not behind: only up to it, what it lacks says something.
    pub sound: Epoch,
    /// The region's disks, all different.
    pub members: Vec<Member>,
    /// The epochs of segments whose seal is not on the pages of two copies, and of those after them, ascending.
    pub epochs: Vec<EpochEntry>,
    /// Seals of retained segments that a change of the set or a recovery decided and that are not on the pages of two
    /// copies, ascending by segment.
    pub seals: Vec<Seal>,
    /// The first segment that is retained.
    pub trim: SegmentId,
    /// This disk holds everything below.
    pub flushed: Lsn,
    /// The highest block sequence known to be committed.
    pub committed: u64,
    /// The log was shut down in order after everything was flushed.
    pub clean: bool,
    /// The bytes of each segment file.
    pub segment_size: u32,
}

impl Superblock {
    /// One slot: [`SUPERBLOCK_SLOT`] bytes.
    ///
    /// # Errors
    /// When it does not fit into a slot, or a field breaks the limit that it documents.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check()?;
        let mut slot = archive(&Stored::from(self));
        let length = slot.len() - ENVELOPE;
        at_most(AT_LENGTH, "superblock: too large", (SUPERBLOCK_SLOT - ENVELOPE) as u64, length as u64)?;
        slot.resize(SUPERBLOCK_SLOT, 0);
        put(&mut slot, AT_MAGIC, &MAGIC.to_le_bytes());
        put(&mut slot, AT_VERSION, &VERSION.to_le_bytes());
        put(&mut slot, AT_LENGTH, &(length as u32).to_le_bytes());
        put(&mut slot, AT_LOG, &self.log.0.to_le_bytes());
        put(&mut slot, AT_DISK, &self.disk.0.to_le_bytes());
        put(&mut slot, AT_GENERATION, &self.generation.to_le_bytes());
        stamp(&mut slot);
        Ok(slot)
    }

    /// Reads the slot at the start of `slot`.
    ///
    /// # Errors
    /// When anything is wrong: too few bytes, magic, version, checksum, non-zero padding, the archive, a field out of
    /// its limits.
    pub fn decode(slot: &[u8]) -> Result<Superblock> {
        at_least(0, "superblock: bytes", SUPERBLOCK_SLOT as u64, slot.len() as u64)?;
        let slot = &slot[..SUPERBLOCK_SLOT];
        expect(AT_MAGIC, "superblock: magic", u64::from(MAGIC), u64::from(u32_at(slot, AT_MAGIC)))?;
        expect(AT_VERSION, "superblock: version", u64::from(VERSION), u64::from(u16_at(slot, AT_VERSION)))?;
        check_stamp(slot, "superblock: checksum")?;
        let length = u32_at(slot, AT_LENGTH) as usize;
        at_most(AT_LENGTH, "superblock: payload", (SUPERBLOCK_SLOT - ENVELOPE) as u64, length as u64)?;
        expect_zero(slot, AT_RESERVED..AT_LENGTH, "superblock: reserved")?;
        expect_zero(slot, AT_RESERVED_2..AT_LOG, "superblock: reserved")?;
        expect_zero(slot, ENVELOPE + length..SUPERBLOCK_SLOT, "superblock: padding")?;
        let stored: Stored = unarchive(&slot[ENVELOPE..ENVELOPE + length], "superblock: archive")?;
        let superblock = Superblock::from(stored);
        expect_wide(AT_LOG, "superblock: log", superblock.log.0, u128_at(slot, AT_LOG))?;
        expect_wide(AT_DISK, "superblock: disk", superblock.disk.0, u128_at(slot, AT_DISK))?;
        expect(AT_GENERATION, "superblock: generation", superblock.generation, u64_at(slot, AT_GENERATION))?;
        superblock.check()?;
        Ok(superblock)
    }

    /// The limits that the fields document.
    fn check(&self) -> Result<()> {
        if let Some(i) =
            (1..self.members.len()).find(|&i| self.members[..i].iter().any(|m| m.disk == self.members[i].disk))
        {
            return Err(refuse("superblock: a member twice", i));
        }
        if let Some(i) = self.epochs.windows(2).position(|pair| pair[0].epoch >= pair[1].epoch) {
            return Err(refuse("superblock: epochs ascend", i));
        }
        if let Some(i) = self.seals.windows(2).position(|pair| pair[0].segment >= pair[1].segment) {
            return Err(refuse("superblock: seals ascend", i));
        }
        for entry in &self.epochs {
            check_set(&entry.set)?;
        }
        for seal in &self.seals {
            seal.check()?;
            expect_wide(ENVELOPE, "superblock: a seal's log", self.log.0, seal.log.0)?;
        }
        Ok(())
    }
}

fn refuse(what: &'static str, place: usize) -> FormatError {
    FormatError { at: ENVELOPE, what, expected: 0, found: place as u64 }
}

/// The payload as archived, version 1.
#[derive(Archive, Serialize, Deserialize)]
struct Stored {
    log: u128,
    disk: u128,
    generation: u64,
    promised: u64,
    sound: u64,
    members: Vec<StoredMember>,
    epochs: Vec<StoredEpoch>,
    seals: Vec<StoredSeal>,
    trim: u32,
    flushed: u64,
    committed: u64,
    clean: bool,
    segment_size: u32,
}

#[derive(Archive, Serialize, Deserialize)]
struct StoredMember {
    disk: u128,
    fault_domain: String,
    upgrade_domain: String,
    zone: String,
}

#[derive(Archive, Serialize, Deserialize)]
struct StoredEpoch {
    epoch: u64,
    first_segment: u32,
    set: Vec<u128>,
}

#[derive(Archive, Serialize, Deserialize)]
struct StoredSeal {
    log: u128,
    segment: u32,
    length: u32,
    epoch: u64,
    base_sequence: u64,
    base_chain: u64,
    next_sequence: u64,
    end_chain: u64,
    transactions: u64,
    records: u64,
    set: Vec<u128>,
}

impl From<&Superblock> for Stored {
    fn from(superblock: &Superblock) -> Stored {
        Stored {
            log: superblock.log.0,
            disk: superblock.disk.0,
            generation: superblock.generation,
            promised: superblock.promised.0,
            sound: superblock.sound.0,
            members: superblock.members.iter().map(StoredMember::from).collect(),
            epochs: superblock.epochs.iter().map(StoredEpoch::from).collect(),
            seals: superblock.seals.iter().map(StoredSeal::from).collect(),
            trim: superblock.trim.0,
            flushed: superblock.flushed.0,
            committed: superblock.committed,
            clean: superblock.clean,
            segment_size: superblock.segment_size,
        }
    }
}

impl From<Stored> for Superblock {
    fn from(stored: Stored) -> Superblock {
        Superblock {
            log: LogId(stored.log),
            disk: DiskId(stored.disk),
            generation: stored.generation,
            promised: Epoch(stored.promised),
            sound: Epoch(stored.sound),
            members: stored.members.into_iter().map(Member::from).collect(),
            epochs: stored.epochs.into_iter().map(EpochEntry::from).collect(),
            seals: stored.seals.into_iter().map(Seal::from).collect(),
            trim: SegmentId(stored.trim),
            flushed: Lsn(stored.flushed),
            committed: stored.committed,
            clean: stored.clean,
            segment_size: stored.segment_size,
        }
    }
}

impl From<&Member> for StoredMember {
    fn from(member: &Member) -> StoredMember {
        StoredMember {
            disk: member.disk.0,
            fault_domain: member.fault_domain.clone(),
            upgrade_domain: member.upgrade_domain.clone(),
            zone: member.zone.clone(),
        }
    }
}

impl From<StoredMember> for Member {
    fn from(stored: StoredMember) -> Member {
        let StoredMember { disk, fault_domain, upgrade_domain, zone } = stored;
        Member { disk: DiskId(disk), fault_domain, upgrade_domain, zone }
    }
}

impl From<&EpochEntry> for StoredEpoch {
    fn from(entry: &EpochEntry) -> StoredEpoch {
        StoredEpoch {
            epoch: entry.epoch.0,
            first_segment: entry.first_segment.0,
            set: entry.set.iter().map(|disk| disk.0).collect(),
        }
    }
}

impl From<StoredEpoch> for EpochEntry {
    fn from(stored: StoredEpoch) -> EpochEntry {
        EpochEntry {
            epoch: Epoch(stored.epoch),
            first_segment: SegmentId(stored.first_segment),
            set: stored.set.into_iter().map(DiskId).collect(),
        }
    }
}

impl From<&Seal> for StoredSeal {
    fn from(seal: &Seal) -> StoredSeal {
        StoredSeal {
            log: seal.log.0,
            segment: seal.segment.0,
            length: seal.length,
            epoch: seal.epoch.0,
            base_sequence: seal.base_sequence,
            base_chain: seal.base_chain,
            next_sequence: seal.next_sequence,
            end_chain: seal.end_chain,
            transactions: seal.transactions,
            records: seal.records,
            set: seal.set.iter().map(|disk| disk.0).collect(),
        }
    }
}

impl From<StoredSeal> for Seal {
    fn from(stored: StoredSeal) -> Seal {
        Seal {
            log: LogId(stored.log),
            segment: SegmentId(stored.segment),
            epoch: Epoch(stored.epoch),
            length: stored.length,
            base_sequence: stored.base_sequence,
            base_chain: stored.base_chain,
            next_sequence: stored.next_sequence,
            end_chain: stored.end_chain,
            transactions: stored.transactions,
            records: stored.records,
            set: stored.set.into_iter().map(DiskId).collect(),
        }
    }
}
