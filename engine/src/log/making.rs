//! What a `create` that was cut short left behind: it may be made again where nothing can have been acknowledged, and a
//! disk that it did not reach is taken in by the next opening (ADR 0021).

use std::collections::BTreeSet;
use std::io;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{ALIGN, DATA_START, SUPERBLOCK_SLOT, SegmentHeader, Superblock};
use crate::health::DiskState;
use crate::io::{Buffer, DiskIndex, FileId};
use crate::log::Log;
use crate::log::attach::{ConfiguredDisk, Found, cannot_create, member};
use crate::log::disk::{SUPERBLOCK, Slot};
use crate::log::lack::is_host_lack;
use crate::options::DiskConfig;
use crate::types::{Epoch, LogId, Lsn, SegmentId};

/// How far the making of a disk got.
pub(crate) enum Making {
    /// It holds no block, and no superblock was completed: there may be an unwritten file for it, and empty slots of these logs.
    Unwritten { superblock: bool, logs: BTreeSet<LogId> },
    /// It holds no block, and its first superblock is written.
    Written(Box<Superblock>),
    /// It holds a region.
    Made,
    /// It holds a file that is no region's.
    Other(String),
}

impl Log {
    /// Refuses directories that hold something. Changes nothing.
    pub(crate) async fn check_makings(&self, disks: &[ConfiguredDisk]) -> Result<()> {
        let (mut unwritten, mut logs, mut written) = (0, BTreeSet::new(), Vec::new());
        let holds = |config: &DiskConfig| {
            let message = format!("{} holds a region already: open it", config.path.display());
            Error::new(ErrorKind::Exists, message)
        };
        for (disk, config) in disks {
            match self.look_at_making(*disk).await.map_err(|error| self.cannot_look(*disk, config, &error))? {
                Making::Unwritten { superblock, logs: found } => {
                    unwritten += usize::from(superblock);
                    logs.extend(found);
                }
                Making::Written(superblock) => written.push((config, superblock)),
                Making::Made => return Err(holds(config)),
                Making::Other(name) => {
                    let message = format!("{} is not empty: it holds {name:?}", config.path.display());
                    return Err(Error::invalid(message));
                }
            }
        }
        let Some((config, first)) = written.first() else { return Ok(()) };
        // A superblock counts when a majority has it. Before the first is written, every disk has a file for it, and every
        // disk of the set an empty slot of this log.
        let majority = disks.len() / 2 + 1;
        let same = written.iter().all(|(_, s)| s.log == first.log && s.members.len() == disks.len());
        let unfinished = unwritten > disks.len() - majority && logs.iter().all(|log| *log == first.log);
        if same && unfinished && !planted!(RemainsAreARegion) { Ok(()) } else { Err(holds(config)) }
    }

    pub(crate) fn cannot_look(&self, disk: DiskIndex, config: &DiskConfig, error: &io::Error) -> Error {
        if is_host_lack(error) { self.host_lacks(disk, "its files", error) } else { cannot_create(config, error) }
    }

    async fn look_at_making(&self, disk: DiskIndex) -> io::Result<Making> {
        let (mut other, mut logs, mut empty) = (None, BTreeSet::new(), true);
        let (mut superblock, mut newest) = (false, None);
        for (name, _) in self.ops.list(disk).await? {
            if name == SUPERBLOCK {
                let file = self.ops.open(disk, name, None).await?;
                let bytes = self.ops.read(disk, file, 0, 2 * SUPERBLOCK_SLOT).await?;
                newest = Superblock::decode(&bytes).ok();
                // Slots are written in turn: with the second, there was more than one write. Each
                // attempt to begin the first epoch is one.
                empty &= match &newest {
                    Some(newest) => newest.epochs.len() <= 1,
                    None => is_zero(bytes.get(SUPERBLOCK_SLOT..).unwrap_or(&[])),
                };
                superblock = true;
            } else if Slot::parse(&name).is_some() {
                let file = self.ops.open(disk, name, None).await?;
                empty &= self.look_at_slot(disk, file, &mut logs).await?;
            } else if name != "LOCK" {
                other = Some(name);
            }
        }
        Ok(match (other, newest) {
            (Some(name), _) if !superblock => Making::Other(name),
            (Some(_), _) => Making::Made,
            (None, _) if !empty => Making::Made,
            (None, Some(newest)) => Making::Written(Box::new(newest)),
            (None, None) => Making::Unwritten { superblock, logs },
        })
    }

    /// Whether a slot holds no more than the header of a first segment.
    async fn look_at_slot(&self, disk: DiskIndex, file: FileId, logs: &mut BTreeSet<LogId>) -> io::Result<bool> {
        let pages: Buffer = self.ops.read(disk, file, 0, DATA_START as usize + ALIGN).await?;
        let header = SegmentHeader::decode(&pages).ok();
        logs.extend(header.as_ref().map(|header| header.log));
        let first = header.is_none_or(|header| header.segment == SegmentId(1));
        Ok(first && is_zero(pages.get(ALIGN..).unwrap_or(&[])))
    }

    /// Removes what the making of a region left. Superblocks are made unwritten first, all of them,
    /// before a file is removed: the files of some show that the superblocks of the others are no
    /// majority. Where one disk cannot be looked at nothing is removed: it may hold a superblock.
    pub(crate) async fn unmake(&self, disks: &[ConfiguredDisk]) -> Result<()> {
        let mut written = Vec::new();
        for (disk, config) in disks {
            let making = self.look_at_making(*disk).await.map_err(|error| self.cannot_look(*disk, config, &error))?;
            written.extend((!matches!(making, Making::Unwritten { .. })).then_some((disk, config)));
        }
        for (disk, config) in written {
            self.unwrite(*disk).await.map_err(|error| self.cannot_look(*disk, config, &error))?;
        }
        for superblocks in [true, false] {
            for (disk, config) in disks {
                let removed = self.unmake_on(*disk, superblocks).await;
                removed.map_err(|error| self.cannot_look(*disk, config, &error))?;
            }
        }
        Ok(())
    }

    /// The second slot goes first: a superblock without it is one that was written once.
    async fn unwrite(&self, disk: DiskIndex) -> io::Result<()> {
        let file = self.ops.open(disk, SUPERBLOCK.into(), None).await?;
        let zeros = Buffer::zeroed(SUPERBLOCK_SLOT)?.share();
        for slot in [1, 0] {
            let offset = slot * SUPERBLOCK_SLOT as u64;
            self.ops.write(disk, file, offset, zeros.part(0..SUPERBLOCK_SLOT)).await?;
        }
        Ok(())
    }

    async fn unmake_on(&self, disk: DiskIndex, superblocks: bool) -> io::Result<()> {
        for (name, _) in self.ops.list(disk).await? {
            let is_superblock = name == SUPERBLOCK;
            if is_superblock == superblocks && (is_superblock || Slot::parse(&name).is_some()) {
                self.ops.remove(disk, name).await?;
            }
        }
        Ok(())
    }

    /// Takes in each disk that the making of the region did not reach: it has its file for the superblock, and nothing in it.
    /// Only while no opening has begun an epoch since, so that no other disk can have been this member meanwhile.
    pub(crate) async fn take_unwritten(&self, found: &mut Found) -> Result<()> {
        let epochs = self.meta.borrow().epochs.clone();
        if epochs.iter().any(|entry| entry.epoch > Epoch(1)) {
            return Ok(());
        }
        let in_first_set = |id| epochs.iter().any(|entry| entry.set.contains(&id));
        let log = self.meta.borrow().log();
        let foreign = |disk: &&crate::log::disk::Disk| disk.state == DiskState::Foreign && disk.superblock.is_some();
        let disks: Vec<_> = self.disks.borrow().iter().filter(foreign).map(|d| (d.index, d.config.clone())).collect();
        for (disk, config) in disks.into_iter().filter(|(disk, _)| !found.disks.contains_key(disk)) {
            let making = match self.look_at_making(disk).await {
                Err(error) if is_host_lack(&error) => return Err(self.host_lacks(disk, "its files", &error)),
                making => making,
            };
            let Ok(Making::Unwritten { superblock: true, logs }) = making else { continue };
            let Some(id) = self.member_without_disk(&member(crate::types::DiskId(0), &config)) else { continue };
            // A disk of the first set has an empty slot of this log.
            let ours = logs.iter().all(|other| *other == log) && (logs.len() == 1 || !in_first_set(id));
            if ours {
                found.unwritten.extend(in_first_set(id).then_some(disk));
                let taken = &mut self.disks.borrow_mut()[disk.0];
                (taken.id, taken.turn, taken.flushed, taken.sound) = (Some(id), 0, Lsn::ZERO, Epoch(0));
                taken.set(DiskState::Rebuilding, "its making was cut short");
            }
        }
        Ok(())
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
