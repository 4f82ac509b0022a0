//! Taking the disks: locks, superblocks, which region and which disk each is, and which segments it holds.

use std::collections::BTreeMap;
use std::io;

use futures::future::join_all;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{DATA_START, Member, SUPERBLOCK_SLOT, Seal, SegmentHeader, Superblock};
use crate::health::DiskState;
use crate::io::{DiskIndex, FileId};
use crate::log::Log;
use crate::log::catalog::{Copy, Segment};
use crate::log::disk::{SUPERBLOCK, Slot};
use crate::options::DiskConfig;
use crate::types::{DiskId, Epoch, LogId, Lsn, SegmentId};

/// What the superblocks of the disks say together.
pub(crate) struct Found {
    /// The highest promise seen.
    pub(crate) promised: Epoch,
    /// The highest commit index seen.
    pub(crate) committed: u64,
    pub(crate) disks: BTreeMap<DiskIndex, Known>,
}

/// What one disk's own superblock says.
pub(crate) struct Known {
    pub(crate) flushed: Lsn,
    /// It has a vote on segments up to this epoch.
    pub(crate) sound: Epoch,
}

/// A segment's copy as its file says.
pub(crate) struct SlotFound {
    pub(crate) disk: DiskIndex,
    pub(crate) slot: Slot,
    pub(crate) header: Option<SegmentHeader>,
    pub(crate) seal: Option<Seal>,
}

impl Log {
    /// Attaches every disk and reads its superblock; or, to create, takes empty directories and draws identities.
    pub(crate) async fn attach_all(&self, create: bool) -> Result<Found> {
        let disks: Vec<(DiskIndex, DiskConfig)> =
            self.disks.borrow().iter().map(|disk| (disk.index, disk.config.clone())).collect();
        for (disk, config) in &disks {
            match self.ops.attach(*disk, config.path.clone(), create).await {
                Ok(traits) => self.disks.borrow_mut()[disk.0].traits = Some(traits),
                // Without a number of the system's: it says the same of threads that cannot be started.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && error.raw_os_error().is_none() => {
                    let path = config.path.display();
                    let message =
                        format!("{path} is in use by another process or handle, or is another of the disks given");
                    return Err(Error::new(ErrorKind::Locked, message));
                }
                Err(error) if create => return Err(cannot_create(config, &error)),
                Err(error) => self.disks.borrow_mut()[disk.0].set(DiskState::Missing, error.to_string()),
            }
            self.note_space(*disk).await;
        }
        if create {
            return self.initialise(&disks).await;
        }
        let mut superblocks = BTreeMap::new();
        for (disk, _) in &disks {
            if let Some(superblock) = self.read_superblock(*disk).await {
                superblocks.insert(*disk, superblock);
            }
        }
        self.agree(superblocks)
    }

    pub(crate) async fn note_space(&self, disk: DiskIndex) {
        if let Ok(space) = self.ops.space(disk).await {
            self.disks.borrow_mut()[disk.0].space = space;
        }
    }

    async fn initialise(&self, disks: &[(DiskIndex, DiskConfig)]) -> Result<Found> {
        for (disk, config) in disks {
            let names = self.ops.list(*disk).await.map_err(|error| cannot_create(config, &error))?;
            if names.iter().any(|(name, _)| name == SUPERBLOCK) {
                let message = format!("{} holds a region already: open it", config.path.display());
                return Err(Error::new(ErrorKind::Exists, message));
            }
            if let Some((name, _)) = names.iter().find(|(name, _)| name != "LOCK") {
                let message = format!("{} is not empty: it holds {name:?}", config.path.display());
                return Err(Error::invalid(message));
            }
        }
        let environment = self.ops.environment();
        let mut members = Vec::new();
        for (disk, config) in disks {
            let file = self.make_superblock(*disk).await.map_err(|error| cannot_create(config, &error))?;
            let id = DiskId(environment.random());
            members.push(member(id, config));
            let mut all = self.disks.borrow_mut();
            let disk = &mut all[disk.0];
            disk.id = Some(id);
            disk.superblock = Some(file);
            disk.set(DiskState::Healthy, "");
        }
        let mut meta = self.meta.borrow_mut();
        meta.log = Some(LogId(environment.random()));
        meta.members = members;
        meta.promised = Epoch(1);
        Ok(Found { promised: Epoch(1), committed: 0, disks: BTreeMap::new() })
    }

    pub(crate) async fn make_superblock(&self, disk: DiskIndex) -> io::Result<FileId> {
        self.ops.open(disk, SUPERBLOCK.into(), Some(2 * SUPERBLOCK_SLOT as u64)).await
    }

    /// The newer of the two slots that verifies.
    pub(crate) async fn read_superblock(&self, disk: DiskIndex) -> Option<Superblock> {
        self.disks.borrow()[disk.0].traits.as_ref()?;
        let file = match self.ops.open(disk, SUPERBLOCK.into(), None).await {
            Ok(file) => file,
            Err(error) => {
                let names = self.ops.list(disk).await.unwrap_or_default();
                let blank = error.kind() == io::ErrorKind::NotFound && names.iter().all(|(name, _)| name == "LOCK");
                let (state, reason) = if blank {
                    (DiskState::Blank, "the directory is empty".to_owned())
                } else {
                    (DiskState::Foreign, format!("no superblock can be opened: {error}"))
                };
                self.disks.borrow_mut()[disk.0].set(state, reason);
                return None;
            }
        };
        let slots = self.ops.read(disk, file, 0, 2 * SUPERBLOCK_SLOT).await;
        self.recovery_bytes.set(self.recovery_bytes.get() + 2 * SUPERBLOCK_SLOT as u64);
        let read = slots.map(|bytes| {
            let at = |turn: usize| bytes.get(turn * SUPERBLOCK_SLOT..).map(Superblock::decode);
            let decoded = [at(0), at(1)].map(|slot| slot.and_then(std::result::Result::ok));
            let turn = usize::from(generation(&decoded[1]) > generation(&decoded[0]));
            let [first, second] = decoded;
            (turn, if turn == 1 { second } else { first })
        });
        let mut disks = self.disks.borrow_mut();
        let disk = &mut disks[disk.0];
        disk.superblock = Some(file);
        match read {
            Ok((turn, Some(superblock))) => {
                disk.turn = 1 - turn as u8;
                Some(superblock)
            }
            Ok((_, None)) => {
                disk.set(DiskState::Foreign, "neither superblock slot verifies");
                None
            }
            Err(error) => {
                disk.set(DiskState::Failed, format!("the superblock could not be read: {error}"));
                None
            }
        }
    }

    /// Step 1: a majority of one region's superblocks, the newest of them, and which disks are behind it.
    fn agree(&self, superblocks: BTreeMap<DiskIndex, Superblock>) -> Result<Found> {
        let log = most_common(superblocks.values().map(|superblock| superblock.log));
        let ours = superblocks.iter().filter(|(_, superblock)| Some(superblock.log) == log);
        // The newest table is the one that knows the latest epoch: a promise that reached one disk before a crash carries
        // an older table under a higher number (found by the protocol model).
        let age = |s: &&Superblock| (s.epochs.last().map(|entry| entry.epoch), s.generation);
        let best = ours.map(|(_, superblock)| superblock).max_by_key(age).cloned();
        let Some(best) = best else { return Err(self.none_found()) };
        if best.segment_size != self.options.segment_bytes {
            let message = format!("segment_bytes: the region was created with {}", best.segment_size);
            return Err(Error::invalid(message));
        }
        self.check_number_of_disks(&best)?;
        let mut found = Found { promised: best.promised, committed: 0, disks: BTreeMap::new() };
        let generations = superblocks.values().filter(|s| s.log == best.log).map(|s| s.generation);
        // Above all that any disk has, or a disk's older slot would pass for its newer one.
        let generation = generations.max().unwrap_or(best.generation);
        for (disk, superblock) in superblocks {
            found.promised =
                found.promised.max(if superblock.log == best.log { superblock.promised } else { Epoch(0) });
            if self.place_disk(disk, &superblock, &best)? {
                found.committed = found.committed.max(superblock.committed);
                let Superblock { flushed, sound, .. } = superblock;
                found.disks.insert(disk, Known { flushed, sound });
            }
        }
        let mut meta = self.meta.borrow_mut();
        meta.log = Some(best.log);
        meta.generation = generation;
        meta.members = best.members;
        meta.epochs = best.epochs;
        meta.seals = best.seals;
        meta.trim = best.trim;
        meta.committed = found.committed;
        let blank = self.disks.borrow().iter().filter(|disk| disk.state == DiskState::Blank).count();
        let votes = found.disks.len() + if planted!(BlankDiskVotes) { blank } else { 0 };
        if votes < meta.majority() {
            let absent: Vec<usize> =
                (0..self.options.disks.len()).filter(|at| !found.disks.contains_key(&DiskIndex(*at))).collect();
            let message = format!(
                "{} of {} disks can be read, {} needed; missing: {}",
                found.disks.len(),
                meta.members.len(),
                meta.majority(),
                self.describe(&absent)
            );
            return Err(Error::new(ErrorKind::RestoreDisk, message));
        }
        Ok(found)
    }

    /// Each disk that is given stands for one member, and each member's place is given: one more would never be used, one fewer never be whole.
    fn check_number_of_disks(&self, best: &Superblock) -> Result<()> {
        let (given, members) = (self.options.disks.len(), best.members.len());
        if given == members {
            return Ok(());
        }
        let labels = best.members.iter().map(|member| member.fault_domain.as_str()).collect::<Vec<_>>();
        Err(Error::invalid(format!(
            "disks: {given} given, the region has {members}, in fault domains {}: give one directory for each, also for one that is lost; \
             disks are replaced, with Region::replace_disk, never added or left out",
            labels.join(", ")
        )))
    }

    fn none_found(&self) -> Error {
        let all: Vec<usize> = (0..self.options.disks.len()).collect();
        let blank = self.disks.borrow().iter().all(|disk| disk.state == DiskState::Blank);
        if blank {
            return Error::new(ErrorKind::NotFound, "the directories are empty: create the region first");
        }
        Error::new(ErrorKind::RestoreDisk, format!("no disk shows a region: {}", self.describe(&all)))
    }

    /// The paths of these disks and why each stands as it does, for messages.
    pub(crate) fn describe(&self, disks: &[usize]) -> String {
        let all = self.disks.borrow();
        let each = disks.iter().map(|&at| format!("{} ({})", all[at].config.path.display(), all[at].reason));
        each.collect::<Vec<_>>().join(", ")
    }

    /// Decides whose disk it is. True when it is one of this region's.
    pub(crate) fn place_disk(&self, index: DiskIndex, superblock: &Superblock, best: &Superblock) -> Result<bool> {
        let mut disks = self.disks.borrow_mut();
        let taken = disks.iter().any(|other| other.index != index && other.id == Some(superblock.disk));
        let disk = &mut disks[index.0];
        let member = best.members.iter().find(|member| member.disk == superblock.disk);
        let Some(member) = member.filter(|_| superblock.log == best.log && !taken) else {
            disk.set(DiskState::Foreign, "it belongs to another region, or was replaced in this one");
            return Ok(false);
        };
        let Member { fault_domain, upgrade_domain, zone, .. } = member;
        let config = &disk.config;
        if (fault_domain, upgrade_domain, zone) != (&config.fault_domain, &config.upgrade_domain, &config.zone) {
            let message = format!(
                "{} was labelled fault domain {fault_domain}, upgrade domain {upgrade_domain}, zone {zone}",
                config.path.display()
            );
            return Err(Error::invalid(message));
        }
        disk.id = Some(superblock.disk);
        (disk.flushed, disk.sound) = (superblock.flushed, superblock.sound);
        // It missed an epoch: what it holds is reread before it counts again.
        let newest = best.epochs.last();
        if superblock.epochs.last() == newest && newest.is_none_or(|entry| entry.epoch <= superblock.sound) {
            disk.set(DiskState::Healthy, "");
        } else {
            disk.set(DiskState::Rebuilding, "it was away while the region went on");
        }
        Ok(true)
    }

    /// The headers and seals of every disk make the catalog.
    pub(crate) async fn read_catalog_from_disks(&self, found: &Found) -> Result<()> {
        let scans = found.disks.keys().map(|&disk| self.scan_disk(disk));
        let slots: Vec<SlotFound> = join_all(scans).await.into_iter().flatten().collect();
        let mut next = None;
        for (id, segment) in self.known_segments(&slots) {
            // Segments begin one after the other, each on every disk of its set: what is missing between two was there.
            let expected = next.replace(id.0 + 1).unwrap_or(id.0);
            if id.0 != expected {
                let message = format!("segments {expected} to {} are on no disk that can be read", id.0 - 1);
                return Err(Error::new(ErrorKind::RestoreDisk, message));
            }
            self.catalog.borrow_mut().insert(id, segment);
        }
        let first = self.catalog.borrow().first();
        let trim = self.meta.borrow().trim;
        if let Some(first) = first.filter(|first| *first != trim) {
            let message = format!("segments {} to {} are on no disk that can be read", trim.0, first.0 - 1);
            return Err(Error::new(ErrorKind::RestoreDisk, message));
        }
        for found in slots {
            self.adopt(found);
        }
        Ok(())
    }

    /// Which segments the copies, the trim mark and the epoch table make: dense from the first retained.
    fn known_segments(&self, slots: &[SlotFound]) -> BTreeMap<SegmentId, Segment> {
        let meta = self.meta.borrow();
        let mut segments: BTreeMap<SegmentId, Segment> = BTreeMap::new();
        // A seal that is on the pages of two copies is not listed any more: it speaks for the copies without a page, too.
        let pages = slots.iter().filter_map(|found| found.seal.as_ref());
        let known: BTreeMap<SegmentId, &Seal> = pages.chain(&meta.seals).map(|seal| (seal.segment, seal)).collect();
        for found in slots {
            let Some(header) = &found.header else { continue };
            let known = known.get(&header.segment).copied().filter(|_| !planted!(LongestLog));
            let rightful = match known {
                Some(seal) => seal.epoch == header.epoch,
                None => self.epoch_of(&meta.epochs, header.segment) == Some(header.epoch),
            };
            let rightful = rightful || planted!(IgnoreEpoch);
            if header.segment < meta.trim || !rightful {
                continue;
            }
            let entry = segments.entry(header.segment).or_insert_with(|| Segment {
                epoch: header.epoch,
                set: header.set.clone(),
                seal: None,
                copies: Vec::new(),
                settled: false,
            });
            if let Some(seal) = known {
                entry.seal = Some(seal.clone());
            }
        }
        // What the superblocks know to exist exists, also where no disk at hand has a copy of it.
        let absent = |epoch: Epoch, set: &[DiskId], seal: Option<&Seal>| Segment {
            epoch,
            set: set.to_vec(),
            seal: seal.cloned(),
            copies: Vec::new(),
            settled: false,
        };
        for seal in meta.seals.iter().filter(|seal| seal.segment >= meta.trim) {
            segments.entry(seal.segment).or_insert_with(|| absent(seal.epoch, &seal.set, Some(seal)));
        }
        for entry in meta.epochs.iter().filter(|entry| entry.first_segment >= meta.trim) {
            segments.entry(entry.first_segment).or_insert_with(|| absent(entry.epoch, &entry.set, None));
        }
        // An epoch is forgotten once all its seals are on two copies, of which one may have been lost since.
        for (&id, segment) in &mut segments {
            let listed = meta.seals.iter().any(|seal| seal.segment == id);
            let forgotten = self.epoch_of(&meta.epochs, id) != Some(segment.epoch);
            segment.settled = segment.seal.is_some() && !listed && forgotten;
        }
        segments
    }

    fn epoch_of(&self, epochs: &[crate::format::EpochEntry], segment: SegmentId) -> Option<Epoch> {
        epochs.iter().rev().find(|entry| entry.first_segment <= segment).map(|entry| entry.epoch)
    }

    /// Opens every slot of a disk and reads its two pages.
    pub(crate) async fn scan_disk(&self, disk: DiskIndex) -> Vec<SlotFound> {
        let names = match self.ops.list(disk).await {
            Ok(names) => names,
            Err(error) => {
                self.lose(disk, DiskState::Failed, format!("its directory could not be listed: {error}"));
                return Vec::new();
            }
        };
        let life = self.disks.borrow()[disk.0].life;
        let mut found = Vec::new();
        let (mut next, mut unread) = (0, false);
        for (name, len) in names {
            let Some(number) = Slot::parse(&name) else { continue };
            next = next.max(number + 1);
            let Ok(file) = self.ops.open(disk, name.clone(), None).await else {
                unread = true;
                continue;
            };
            // A slot whose making was cut short is made again.
            if len < u64::from(self.options.segment_bytes) {
                drop(self.ops.remove(disk, name).await);
                continue;
            }
            let pages = self.ops.read(disk, file, 0, DATA_START as usize).await;
            self.recovery_bytes.set(self.recovery_bytes.get() + u64::from(DATA_START));
            unread |= pages.is_err();
            let log = self.meta.borrow().log();
            let header = pages.as_ref().ok().and_then(|pages| SegmentHeader::decode(pages).ok());
            let header = header.filter(|header| header.log == log);
            let seal = pages.as_ref().ok().and_then(|pages| Seal::decode(pages.get(4096..)?).ok());
            let same =
                |seal: &Seal| header.as_ref().is_some_and(|h| (h.segment, h.epoch) == (seal.segment, seal.epoch));
            let seal = seal.filter(|seal| seal.log == log && same(seal));
            found.push(SlotFound { disk, slot: Slot { number, file, life }, header, seal });
        }
        let mut disks = self.disks.borrow_mut();
        disks[disk.0].next_slot = next;
        disks[disk.0].unread = unread;
        disks[disk.0].slots = found.len() as u32;
        found
    }

    /// A slot becomes a copy of the segment that it says, or is free.
    pub(crate) fn adopt(&self, found: SlotFound) {
        let SlotFound { disk, slot, header, seal } = found;
        let mut catalog = self.catalog.borrow_mut();
        let stale = self.disks.borrow()[disk.0].state == DiskState::Rebuilding;
        let segment = header.as_ref().and_then(|header| {
            let segment = catalog.get_mut(header.segment)?;
            (segment.epoch == header.epoch && segment.copy_on(disk).is_none()).then_some(segment)
        });
        match segment {
            Some(segment) => {
                let sealed = seal.is_some() && seal == segment.seal && !stale;
                segment.copies.push(Copy { disk, slot, held: sealed, complete: sealed });
                segment.settle();
            }
            None => self.free_slot(disk, slot),
        }
    }
}

pub(crate) fn member(id: DiskId, config: &DiskConfig) -> Member {
    Member {
        disk: id,
        fault_domain: config.fault_domain.clone(),
        upgrade_domain: config.upgrade_domain.clone(),
        zone: config.zone.clone(),
    }
}

fn generation(superblock: &Option<Superblock>) -> u64 {
    superblock.as_ref().map_or(0, |superblock| superblock.generation)
}

fn most_common(logs: impl Iterator<Item = LogId>) -> Option<LogId> {
    let mut counts: BTreeMap<LogId, usize> = BTreeMap::new();
    for log in logs {
        *counts.entry(log).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(log, _)| log)
}

fn cannot_create(config: &DiskConfig, error: &io::Error) -> Error {
    let kind = match error {
        full if super::prepare::is_full(full) => ErrorKind::NoSpace,
        short if super::prepare::is_short(short) => ErrorKind::System,
        _ => ErrorKind::InvalidInput,
    };
    Error::new(kind, format!("{} cannot become a disk: {error}", config.path.display()))
}
