//! Taking the disks: locks, superblocks, which region and which disk each is, and which segments it holds.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use futures::future::join_all;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{DATA_START, Member, SUPERBLOCK_SLOT, Seal, SegmentHeader, Superblock};
use crate::health::DiskState;
use crate::io::{DiskIndex, FileId, is_overlap};
use crate::log::Log;
use crate::log::catalog::{Copy, Segment};
use crate::log::disk::{Disk, SUPERBLOCK, Slot};
use crate::log::lack::{is_host_lack, is_unanswered, state_after};
use crate::log::ops::nanos;
use crate::options::DiskConfig;
use crate::types::{DiskId, Epoch, LogId, Lsn, SegmentId};

/// Between two looks at a lock that is held.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A disk as the options give it.
pub(crate) type ConfiguredDisk = (DiskIndex, DiskConfig);

/// What the disks of an opening show.
pub(crate) struct Found {
    /// The highest promise seen.
    pub(crate) promised: Epoch,
    /// The highest commit index seen.
    pub(crate) committed: u64,
    /// The disks with a vote: all of their files that were asked for could be opened.
    pub(crate) disks: BTreeMap<DiskIndex, Known>,
    /// Disks of the first set that the making of the region did not reach: they know that they were
    /// sent nothing.
    pub(crate) unwritten: Vec<DiskIndex>,
    /// Each disk's files, as they were listed once.
    pub(crate) files: BTreeMap<DiskIndex, Files>,
    pub(crate) slots: Vec<SlotFound>,
}

/// Names and lengths.
pub(crate) type Files = Vec<(String, u64)>;

/// What one disk's own superblock says.
pub(crate) struct Known {
    pub(crate) flushed: Lsn,
    /// It has a vote on segments up to this epoch.
    pub(crate) sound: Epoch,
}

/// A segment's copy as its file says.
#[derive(Clone)]
pub(crate) struct SlotFound {
    pub(crate) disk: DiskIndex,
    pub(crate) slot: Slot,
    pub(crate) header: Option<SegmentHeader>,
    pub(crate) seal: Option<Seal>,
}

/// What the slots of one disk are.
#[derive(Default)]
pub(crate) struct Scan {
    pub(crate) slots: Vec<SlotFound>,
    /// Slots that were cut off after a segment's header was written there.
    pub(crate) shortened: Vec<(String, SegmentHeader)>,
    unfinished: Vec<String>,
    set_aside: Vec<Slot>,
    unread: Vec<String>,
    next_slot: u32,
}

impl Found {
    fn new(promised: Epoch) -> Found {
        Found {
            promised,
            committed: 0,
            disks: BTreeMap::new(),
            files: BTreeMap::new(),
            unwritten: Vec::new(),
            slots: Vec::new(),
        }
    }
}

impl Log {
    /// Attaches every disk and reads its superblock; or, to create, takes directories that hold no region and draws
    /// identities.
    pub(crate) async fn attach_all(&self, create: bool) -> Result<Found> {
        let disks: Vec<ConfiguredDisk> =
            self.disks.borrow().iter().map(|disk| (disk.index, disk.config.clone())).collect();
        let locked = self.attach_each(&disks, create).await?;
        let locked = self.outwait_locks(locked, create).await?;
        for (disk, _) in locked {
            let reason = "its lock is held: its last opening has operations there that have not returned, or another \
                          process uses it";
            self.disks.borrow_mut()[disk.0].set(DiskState::Stalled, reason);
        }
        if create {
            return self.initialise(&disks).await;
        }
        let read = join_all(disks.iter().map(|&(disk, _)| self.read_superblock(disk))).await;
        let mut superblocks = BTreeMap::new();
        for ((disk, _), superblock) in disks.into_iter().zip(read) {
            superblocks.extend(superblock?.map(|superblock| (disk, superblock)));
        }
        let mut found = self.agree(superblocks)?;
        self.take_unwritten(&mut found).await?;
        Ok(found)
    }

    /// Attaches disks, all at the same time: one that hangs keeps no other waiting. Returns those whose lock is held.
    async fn attach_each(&self, disks: &[ConfiguredDisk], create: bool) -> Result<Vec<ConfiguredDisk>> {
        let attached = join_all(disks.iter().map(|(disk, config)| async {
            let attached = self.ops.attach(*disk, config.path.clone(), create).await;
            if attached.is_ok() {
                self.note_space(*disk).await;
            }
            attached
        }));
        let mut locked = Vec::new();
        for ((disk, config), attached) in disks.iter().zip(attached.await) {
            match attached {
                Ok(traits) => self.disks.borrow_mut()[disk.0].traits = Some(traits),
                Err(error) if is_host_lack(&error) => return Err(self.host_lacks(*disk, "its directory", &error)),
                Err(error) if is_overlap(&error) => return Err(Error::invalid(format!("disks: {error}"))),
                // Without a number of the system's: it says the same of threads that cannot be started.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && error.raw_os_error().is_none() => {
                    locked.push((*disk, config.clone()));
                }
                Err(error) if create => return Err(cannot_create(config, &error)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let reason = "its directory does not exist: mount it, or create the region";
                    self.disks.borrow_mut()[disk.0].set(DiskState::Missing, reason);
                }
                Err(error) => {
                    let state = if is_unanswered(&error) { DiskState::Stalled } else { DiskState::Missing };
                    self.disks.borrow_mut()[disk.0].set(state, format!("it could not be attached: {error}"));
                }
            }
        }
        Ok(locked)
    }

    /// Whoever has a region open holds the locks of a majority of its disks. The lock of a minority may be held by operations
    /// that an earlier opening left on a disk that hangs, also one of this process: they are waited for as any answer is.
    ///
    /// # Errors
    /// `Locked` when the other disks are no majority, and for a region that is to be made.
    async fn outwait_locks(&self, mut locked: Vec<ConfiguredDisk>, create: bool) -> Result<Vec<ConfiguredDisk>> {
        let end = self.ops.now().saturating_add(nanos(self.ops.patience()));
        while let Some((_, config)) = locked.first() {
            let ours = self.disks.borrow().iter().filter(|disk| disk.traits.is_some()).count();
            if create || 2 * ours <= self.options.disks.len() {
                let path = config.path.display();
                let message = format!("{path} is in use by another process or handle: close it there, then try again");
                return Err(Error::new(ErrorKind::Locked, message));
            }
            if self.ops.now() >= end {
                break;
            }
            self.ops.sleep(LOCK_PAUSE).await;
            locked = self.attach_each(&locked, false).await?;
        }
        Ok(locked)
    }

    pub(crate) async fn note_space(&self, disk: DiskIndex) {
        if let Ok(space) = self.ops.space(disk).await {
            self.disks.borrow_mut()[disk.0].space = space;
        }
    }

    async fn initialise(&self, disks: &[ConfiguredDisk]) -> Result<Found> {
        self.check_makings(disks).await?;
        // From here on it can only fail, and what was made is removed again.
        self.ops.allow_writes();
        self.unmake(disks).await?;
        let environment = self.ops.environment();
        let mut members = Vec::new();
        for (disk, config) in disks {
            let file = self.make_superblock(*disk).await.map_err(|error| self.cannot_look(*disk, config, &error))?;
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
        Ok(Found::new(Epoch(1)))
    }

    pub(crate) async fn make_superblock(&self, disk: DiskIndex) -> io::Result<FileId> {
        self.ops.open(disk, SUPERBLOCK.into(), Some(2 * SUPERBLOCK_SLOT as u64)).await
    }

    /// The newer of the two slots that verifies. None where the disk has none, or cannot be read.
    pub(crate) async fn read_superblock(&self, disk: DiskIndex) -> Result<Option<Superblock>> {
        if self.disks.borrow()[disk.0].traits.is_none() {
            return Ok(None);
        }
        let file = match self.ops.open(disk, SUPERBLOCK.into(), None).await {
            Ok(file) => file,
            Err(error) if is_host_lack(&error) => return Err(self.host_lacks(disk, SUPERBLOCK, &error)),
            Err(error) => {
                let (state, reason) = self.without_superblock(disk, &error).await?;
                self.disks.borrow_mut()[disk.0].set(state, reason);
                return Ok(None);
            }
        };
        let slots = self.ops.read(disk, file, 0, 2 * SUPERBLOCK_SLOT).await;
        self.recovery_bytes.set(self.recovery_bytes.get() + 2 * SUPERBLOCK_SLOT as u64);
        let mut disks = self.disks.borrow_mut();
        let known = &mut disks[disk.0];
        known.superblock = Some(file);
        let bytes = match slots {
            Ok(bytes) => bytes,
            Err(error) if is_host_lack(&error) => {
                drop(disks);
                return Err(self.host_lacks(disk, SUPERBLOCK, &error));
            }
            Err(error) => {
                known.set(state_after(&error), format!("the superblock could not be read: {error}"));
                return Ok(None);
            }
        };
        let at = |turn: usize| bytes.get(turn * SUPERBLOCK_SLOT..).map(Superblock::decode);
        let decoded = [at(0), at(1)].map(|slot| slot.and_then(std::result::Result::ok));
        let turn = usize::from(generation(&decoded[1]) > generation(&decoded[0]));
        let [first, second] = decoded;
        let newer = if turn == 1 { second } else { first };
        known.turn = 1 - turn as u8;
        // The newer slot may have been in the end that is lost.
        if newer.is_some() && bytes.len() < 2 * SUPERBLOCK_SLOT {
            let reason = format!("the superblock has {} of {} bytes", bytes.len(), 2 * SUPERBLOCK_SLOT);
            known.set(DiskState::Failed, reason);
            return Ok(None);
        }
        if newer.is_none() {
            known.set(DiskState::Foreign, "neither superblock slot verifies");
        }
        Ok(newer)
    }

    /// How a disk stands whose superblock cannot be opened.
    async fn without_superblock(&self, disk: DiskIndex, error: &io::Error) -> Result<(DiskState, String)> {
        if error.kind() != io::ErrorKind::NotFound {
            return Ok((state_after(error), format!("the superblock could not be opened: {error}")));
        }
        Ok(match self.ops.list(disk).await {
            Ok(names) if names.iter().all(|(name, _)| name == "LOCK") => {
                (DiskState::Blank, "the directory is empty".to_owned())
            }
            Ok(_) => (DiskState::Foreign, "the directory holds files, and no superblock".to_owned()),
            Err(error) if is_host_lack(&error) => return Err(self.host_lacks(disk, "its directory", &error)),
            Err(error) => (state_after(&error), format!("the directory could not be listed: {error}")),
        })
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
        let mut found = Found::new(best.promised);
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
        drop(meta);
        self.check_majority(&found)?;
        Ok(found)
    }

    /// Refuses with fewer disks that count than a majority of the members.
    fn check_majority(&self, found: &Found) -> Result<()> {
        let blank = self.disks.borrow().iter().filter(|disk| disk.state == DiskState::Blank).count();
        let votes = found.disks.len() + if planted!(BlankDiskVotes) { blank } else { 0 };
        let meta = self.meta.borrow();
        if votes >= meta.majority() {
            return Ok(());
        }
        let absent: Vec<usize> =
            (0..self.options.disks.len()).filter(|at| !found.disks.contains_key(&DiskIndex(*at))).collect();
        let message = format!(
            "{} of {} disks can be read, {} needed; missing: {}",
            found.disks.len(),
            meta.members.len(),
            meta.majority(),
            self.describe(&absent)
        );
        Err(Error::new(ErrorKind::RestoreDisk, message))
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

    /// Lists every disk of the region, opens its slots and reads their pages. A disk that refuses any of it is left out.
    pub(crate) async fn scan_disks(&self, found: &mut Found) -> Result<()> {
        let disks = self.attached();
        let listed = join_all(disks.iter().map(|&disk| self.list_slots(disk))).await;
        for (disk, files) in disks.into_iter().zip(listed) {
            found.files.extend(files?.map(|files| (disk, files)));
        }
        let scans = join_all(found.files.iter().map(|(&disk, files)| self.scan_disk(disk, files))).await;
        for (disk, scan) in found.files.keys().copied().zip(scans) {
            let Some(scan) = scan? else { continue };
            match scan.shortened.first() {
                Some((name, _)) => self.lose(disk, DiskState::Failed, format!("{name} has lost its end")),
                None => found.slots.extend(scan.slots),
            }
        }
        Ok(())
    }

    /// A disk's files, its slots counted. None where it cannot be listed, and is given up.
    pub(crate) async fn list_slots(&self, disk: DiskIndex) -> Result<Option<Files>> {
        match self.ops.list(disk).await {
            Ok(files) => {
                let slots = files.iter().filter(|(name, _)| Slot::parse(name).is_some()).count();
                self.disks.borrow_mut()[disk.0].slots = slots as u32;
                Ok(Some(files))
            }
            Err(error) if is_host_lack(&error) => Err(self.host_lacks(disk, "its directory", &error)),
            Err(error) => {
                self.lose(disk, state_after(&error), format!("its directory could not be listed: {error}"));
                Ok(None)
            }
        }
    }

    /// The headers and seals of every disk that counts make the catalog.
    pub(crate) fn make_catalog(&self, found: &mut Found) -> Result<()> {
        let attached = self.attached();
        found.disks.retain(|disk, _| attached.contains(disk));
        self.check_majority(found)?;
        *self.catalog.borrow_mut() = Default::default();
        self.disks.borrow_mut().iter_mut().for_each(|disk| disk.free.clear());
        let slots: Vec<SlotFound> = found.slots.iter().filter(|slot| attached.contains(&slot.disk)).cloned().collect();
        let mut next = None;
        for (id, segment) in self.known_segments(&slots) {
            // Segments begin one after the other, each on every disk of its set: what is missing between two was there.
            let expected = next.replace(id.0 + 1).unwrap_or(id.0);
            if id.0 != expected {
                return Err(self.segments_missing(found, expected, id.0 - 1));
            }
            self.catalog.borrow_mut().insert(id, segment);
        }
        let first = self.catalog.borrow().first();
        let trim = self.meta.borrow().trim;
        if let Some(first) = first.filter(|first| *first != trim) {
            return Err(self.segments_missing(found, trim.0, first.0 - 1));
        }
        for found in slots {
            self.adopt(found);
        }
        Ok(())
    }

    fn segments_missing(&self, found: &Found, first: u32, last: u32) -> Error {
        let looked = self.names(&self.attached().iter().map(|disk| disk.0).collect::<Vec<_>>());
        let message = format!(
            "segments {first} to {last} are on no disk that can be read; looked for on {looked}{}; restore a disk that has \
             them, or its files",
            self.left_out(found)
        );
        Error::new(ErrorKind::RestoreDisk, message)
    }

    /// For messages: the disks that this opening does without, and those with slots that could not be read.
    pub(crate) fn left_out(&self, found: &Found) -> String {
        let out: Vec<usize> =
            (0..self.options.disks.len()).filter(|at| !found.disks.contains_key(&DiskIndex(*at))).collect();
        let disks = self.disks.borrow();
        let of = |disk: &Disk| Some(disk.config.path.join(disk.unread.first()?).display().to_string());
        let unread: Vec<String> = found.disks.keys().filter_map(|disk| of(&disks[disk.0])).collect();
        let mut text = String::new();
        if !out.is_empty() {
            text += &format!("; without {}", self.describe(&out));
        }
        if !unread.is_empty() {
            text += &format!("; slots could not be read, among them {}", unread.join(", "));
        }
        text
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

    /// Opens every slot of a disk and reads its two pages. None where the disk refused to open one, and is given up:
    /// what it holds is not known. It changes nothing.
    pub(crate) async fn scan_disk(&self, disk: DiskIndex, files: &Files) -> Result<Option<Scan>> {
        let mut scan = Scan::default();
        for (name, len) in files {
            let Some(number) = Slot::parse(name) else { continue };
            scan.next_slot = scan.next_slot.max(number + 1);
            match self.ops.open(disk, name.clone(), None).await {
                Ok(file) => self.scan_slot(disk, (name, *len), number, file, &mut scan).await?,
                Err(error) if is_host_lack(&error) => return Err(self.host_lacks(disk, name, &error)),
                Err(_) if planted!(UnopenedIsAbsent) => {}
                Err(error) => {
                    self.lose(disk, state_after(&error), format!("{name} could not be opened: {error}"));
                    return Ok(None);
                }
            }
        }
        let disk = &mut self.disks.borrow_mut()[disk.0];
        disk.next_slot = scan.next_slot;
        disk.unread.clone_from(&scan.unread);
        disk.slots = (scan.slots.len() + scan.set_aside.len()) as u32;
        disk.set_aside.clone_from(&scan.set_aside);
        disk.unfinished.clone_from(&scan.unfinished);
        Ok(Some(scan))
    }

    async fn scan_slot(
        &self,
        disk: DiskIndex,
        (name, len): (&str, u64),
        number: u32,
        file: FileId,
        scan: &mut Scan,
    ) -> Result<()> {
        let slot = Slot { number, file, life: self.disks.borrow()[disk.0].life };
        let is_whole = len >= u64::from(self.options.segment_bytes);
        self.recovery_bytes.set(self.recovery_bytes.get() + u64::from(DATA_START));
        let pages = match self.ops.read(disk, file, 0, DATA_START as usize).await {
            Ok(pages) => pages,
            Err(error) if is_host_lack(&error) => return Err(self.host_lacks(disk, name, &error)),
            Err(error) if is_unanswered(&error) => {
                self.lose(disk, DiskState::Stalled, format!("{name} could not be read: {error}"));
                return Ok(());
            }
            Err(_) => {
                scan.unread.push(name.to_owned());
                scan.set_aside.extend(is_whole.then_some(slot));
                return Ok(());
            }
        };
        let (log, trim) = (self.meta.borrow().log(), self.meta.borrow().trim);
        let header = SegmentHeader::decode(&pages).ok().filter(|header| header.log == log);
        if !is_whole {
            // A header is written when all of its slot is: with one, the file has lost its end since.
            match header.filter(|header| header.segment >= trim) {
                Some(header) => scan.shortened.push((name.to_owned(), header)),
                None => scan.unfinished.push(name.to_owned()),
            }
            return Ok(());
        }
        let seal = pages.get(4096..).and_then(|page| Seal::decode(page).ok());
        let same = |seal: &Seal| header.as_ref().is_some_and(|h| (h.segment, h.epoch) == (seal.segment, seal.epoch));
        let seal = seal.filter(|seal| seal.log == log && same(seal));
        scan.slots.push(SlotFound { disk, slot, header, seal });
        Ok(())
    }

    /// Removes what the making of slots that was cut short left behind.
    pub(crate) async fn remove_unfinished(&self, disk: DiskIndex) {
        let unfinished = std::mem::take(&mut self.disks.borrow_mut()[disk.0].unfinished);
        for name in unfinished {
            // Left again, it takes space until the next opening.
            drop(self.ops.remove(disk, name).await);
        }
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

pub(crate) fn cannot_create(config: &DiskConfig, error: &io::Error) -> Error {
    let kind = match error {
        full if super::prepare::is_full(full) => ErrorKind::NoSpace,
        lack if is_host_lack(lack) => ErrorKind::System,
        _ => ErrorKind::InvalidInput,
    };
    Error::new(kind, format!("{} cannot become a disk: {error}", config.path.display()))
}
