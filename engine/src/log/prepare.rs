//! The next segment, made ready before it is needed: free slots on every disk, headers written on the set's.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use futures::future::join_all;
use rustix::io::Errno;

use crate::format::SegmentHeader;
use crate::io::{Buffer, DiskIndex};
use crate::log::Log;
use crate::log::disk::{Disk, Slot};
use crate::log::lack::{errno, is_host_lack, state_after};
use crate::types::{DiskId, Epoch, SegmentId};

/// How much of a new slot is written at once.
const FILL: usize = 1 << 20;
/// How often a full disk is asked for its space.
const LOOK: Duration = Duration::from_millis(500);
/// A full disk takes segments again once it has room for so many.
const ROOM: u64 = 4;
/// The rest of a disk that had room and took nothing doubles so often: each try may cost the others a segment.
const DOUBLINGS: u32 = 6;

/// What a slot is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// More of the log, or another copy: one free slot stays on the disk, so that a region whose disks are full can be
    /// opened, and its set be changed (invariant 19).
    Growth,
    /// The first segment of an epoch, or the second copy without which a region is not opened.
    Epoch,
}

impl Log {
    pub(crate) async fn keep_prepared(self: Rc<Log>) {
        let mut seen = 0;
        loop {
            if self.halted.borrow().is_none() && !self.with(|pipeline| pipeline.paused || pipeline.next.is_some()) {
                self.prepare_next().await;
            }
            if self.with(|pipeline| pipeline.no_space && !pipeline.paused) {
                self.ops.sleep(Duration::from_millis(200)).await;
            } else {
                self.changed.wait(&mut seen).await;
            }
        }
    }

    /// Prepares the segment after the active one on the current set.
    async fn prepare_next(&self) {
        let (epoch, id, disks, set) = self.with(|pipeline| {
            let disks: Vec<DiskIndex> = pipeline.members.iter().map(|member| member.disk).collect();
            (pipeline.epoch, SegmentId(pipeline.active.id.0 + 1), disks, self.set_ids(pipeline))
        });
        if id >= SegmentId::LAST {
            self.with(|pipeline| pipeline.no_space = true);
            return;
        }
        let prepared = self.prepare(epoch, id, &disks, &set, Need::Growth).await;
        let stale = self.with(|pipeline| pipeline.epoch != epoch || pipeline.paused || pipeline.next.is_some());
        match prepared {
            Ok(slots) if stale => disks.iter().zip(slots).for_each(|(&disk, slot)| self.free_slot(disk, slot)),
            Ok(slots) => self.with(|pipeline| {
                pipeline.next = Some((id, slots));
                (pipeline.no_space, pipeline.may_fill) = (false, true);
            }),
            Err(()) if stale => {}
            Err(()) => self.leave_full_disks(&disks),
        }
    }

    /// Each disk outside the set has one slot ready: writing a new one through takes longer than a set change may. It is a task of its own:
    /// a spare that hangs holds up no segment.
    pub(crate) async fn keep_spares_ready(self: Rc<Log>) {
        let mut seen = 0;
        loop {
            let members: Vec<DiskIndex> =
                self.with(|pipeline| pipeline.members.iter().map(|member| member.disk).collect());
            let lacks = |disk: &&Disk| disk.takes_segments() && disk.free.is_empty() && !members.contains(&disk.index);
            let spares: Vec<DiskIndex> = self.disks.borrow().iter().filter(lacks).map(|disk| disk.index).collect();
            for disk in spares {
                // Another was waited for meanwhile.
                if !self.disks.borrow()[disk.0].takes_segments() {
                    continue;
                }
                let life = self.lives(&[disk]);
                match self.new_slot(disk).await {
                    Ok(slot) => {
                        self.disks.borrow_mut()[disk.0].short = None;
                        self.free_slot(disk, slot);
                    }
                    // Given up, and perhaps counted again, meanwhile.
                    Err(_) if self.lives(&[disk]) != life => {}
                    Err(error) if is_short(&error) => self.found_full(disk, &error),
                    Err(error) => self.lose(disk, state_after(&error), format!("a slot could not be made: {error}")),
                }
            }
            self.changed.wait(&mut seen).await;
        }
    }

    /// Disks without room leave the set if enough others have some; else the log waits for room.
    fn leave_full_disks(&self, members: &[DiskIndex]) {
        let full: Vec<usize> =
            members.iter().map(|disk| disk.0).filter(|&at| self.disks.borrow()[at].is_full()).collect();
        if full.is_empty() {
            return;
        }
        if self.choose_set().len() >= super::placement::QUORUM {
            let reason = format!("no space for a segment on {}", self.names(&full));
            self.reconfigure.borrow_mut().get_or_insert(reason);
            self.with(|pipeline| pipeline.paused = true);
        } else {
            self.with(|pipeline| pipeline.no_space = true);
            for at in full {
                self.disks.borrow_mut()[at].ask_again();
            }
        }
        self.changed.raise();
    }

    /// A disk that was full takes segments again when something else has given it space.
    pub(crate) async fn keep_looking_for_space(self: Rc<Log>) {
        let mut seen = 0;
        loop {
            let full: Vec<DiskIndex> = self
                .disks
                .borrow()
                .iter()
                .filter(|disk| disk.is_full() && disk.is_live())
                .map(|disk| disk.index)
                .collect();
            if full.is_empty() {
                self.changed.wait(&mut seen).await;
                continue;
            }
            self.ops.sleep(LOOK).await;
            for disk in full {
                self.note_space(disk).await;
                let (now, room) = (self.ops.now(), self.has_space(disk));
                let disk = &mut self.disks.borrow_mut()[disk.0];
                if room && now >= disk.rests_until {
                    disk.short = None;
                    disk.refusals = (disk.refusals + 1).min(DOUBLINGS);
                    disk.rests_until = now + ((LOOK.as_nanos() as u64) << disk.refusals);
                    self.changed.raise();
                }
            }
        }
    }

    /// A disk took no segment for lack of room. Whoever looks for space has to know, also when
    /// nothing else changes.
    pub(crate) fn found_full(&self, disk: DiskIndex, error: &io::Error) {
        self.disks.borrow_mut()[disk.0].found_full(error);
        self.changed.raise();
    }

    fn has_space(&self, disk: DiskIndex) -> bool {
        let disk = &self.disks.borrow()[disk.0];
        let wanted = ROOM * u64::from(self.options.segment_bytes);
        disk.free.len() >= ROOM as usize || (disk.space.0 >= wanted && !self.has_all_slots(disk))
    }

    /// Whether an opening would find a slot on the disk, as far as is known: while the log waits for room, only one that is there.
    pub(crate) fn has_another_slot(&self, disk: DiskIndex, no_space: bool) -> bool {
        let disk = &self.disks.borrow()[disk.0];
        !disk.free.is_empty() || !(no_space || disk.is_full() || self.has_all_slots(disk))
    }

    /// Whether the disk has all the slots that it may have; the one that stays free is not counted.
    fn has_all_slots(&self, disk: &Disk) -> bool {
        self.options.max_segments.is_some_and(|most| disk.slots > most)
    }

    /// A slot on each disk with the segment's header in it. If one disk cannot, none keeps its slot, and the disks that
    /// could not are marked as full or lost.
    pub(crate) async fn prepare(
        &self,
        epoch: Epoch,
        id: SegmentId,
        disks: &[DiskIndex],
        set: &[DiskId],
        need: Need,
    ) -> Result<Vec<Slot>, ()> {
        let _stage = stage!(Prepare);
        // One that was lost since it was chosen, and perhaps is being taken back: what it holds is
        // being looked at.
        if disks.iter().any(|disk| !self.disks.borrow()[disk.0].is_live()) {
            return Err(());
        }
        let log = self.meta.borrow().log();
        let header = SegmentHeader { log, segment: id, epoch, size: self.options.segment_bytes, set: set.to_vec() };
        let bytes = header.encode();
        let lives = self.lives(disks);
        let made = join_all(disks.iter().map(|&disk| self.prepare_on(disk, &bytes, need))).await;
        if made.iter().all(Result::is_ok) {
            return Ok(made.into_iter().flatten().collect());
        }
        // A disk may have been given up and counted again while the others were written.
        let same = self.lives(disks).into_iter().zip(lives).map(|(now, then)| now == then);
        let made = disks.iter().zip(made).zip(same).filter(|(_, same)| *same);
        for ((&disk, made), _) in made {
            match made {
                Ok(slot) => self.clear_slot(disk, slot).await,
                Err(error) if is_short(&error) => self.found_full(disk, &error),
                Err(error) => self.lose(disk, state_after(&error), format!("a segment could not be made: {error}")),
            }
        }
        Err(())
    }

    fn lives(&self, disks: &[DiskIndex]) -> Vec<u32> {
        let all = self.disks.borrow();
        disks.iter().map(|disk| all[disk.0].life).collect()
    }

    async fn prepare_on(&self, disk: DiskIndex, header: &[u8], need: Need) -> io::Result<Slot> {
        let slot = self.take_slot(disk, need).await?;
        let written = self.ops.write_page(disk, slot.file, 0, header).await;
        match written {
            // The slot that is kept free for an epoch does not say that there is room.
            Ok(()) if need == Need::Epoch => {}
            Ok(()) => {
                let disk = &mut self.disks.borrow_mut()[disk.0];
                (disk.refusals, disk.short) = (0, None);
            }
            Err(_) => self.free_slot(disk, slot),
        }
        let what = || format!("{} cannot be written", Slot::name(slot.number));
        written.map(|()| slot).map_err(|error| self.explain(&what(), error))
    }

    /// Frees a slot whose header names a segment that another slot may come to hold.
    pub(crate) async fn clear_slot(&self, disk: DiskIndex, slot: Slot) {
        match self.clear_header(disk, slot).await {
            Ok(()) => self.free_slot(disk, slot),
            Err(_) if self.disks.borrow()[disk.0].life != slot.life => {}
            Err(error) => self.lose(disk, state_after(&error), format!("a slot could not be cleared: {error}")),
        }
    }

    pub(crate) async fn clear_header(&self, disk: DiskIndex, slot: Slot) -> io::Result<()> {
        self.ops.write_page(disk, slot.file, 0, &[0; 4096]).await
    }

    /// A free slot of a disk, or a new one.
    pub(crate) async fn take_slot(&self, disk: DiskIndex, need: Need) -> io::Result<Slot> {
        while need == Need::Growth && self.disks.borrow()[disk.0].free.len() < 2 {
            let slot = self.new_slot(disk).await?;
            self.free_slot(disk, slot);
        }
        let free = self.disks.borrow_mut()[disk.0].free.pop();
        match free {
            Some(slot) => Ok(slot),
            None => self.new_slot(disk).await,
        }
    }

    async fn new_slot(&self, disk: DiskIndex) -> io::Result<Slot> {
        let number = {
            let mut disks = self.disks.borrow_mut();
            let disk = &mut disks[disk.0];
            assert!(!disk.joining, "slots of a disk that is taken back are counted anew, nobody else makes any");
            if let Some(most) = self.options.max_segments.filter(|_| self.has_all_slots(disk)) {
                let message = format!("max_segments {most} is reached: trim, or open with more");
                return Err(io::Error::new(io::ErrorKind::StorageFull, message));
            }
            if disk.next_slot == u32::MAX {
                let message = "the numbers of its slots are used up: replace the disk";
                return Err(io::Error::new(io::ErrorKind::StorageFull, message));
            }
            disk.slots += 1;
            disk.next_slot += 1;
            disk.next_slot - 1
        };
        let life = self.lives(&[disk]);
        let made = self.make_slot(disk, number).await;
        if made.is_err() && self.lives(&[disk]) == life {
            // Its number is another's once its file is gone.
            drop(self.ops.remove(disk, Slot::name(number)).await);
            if self.lives(&[disk]) == life {
                let disk = &mut self.disks.borrow_mut()[disk.0];
                disk.slots -= 1;
                if disk.next_slot == number + 1 {
                    disk.next_slot = number;
                }
            }
        }
        made.map_err(|error| self.explain(&format!("{} cannot be made", Slot::name(number)), error))
    }

    /// Creates a slot and writes all of it once: a durable write into written blocks needs no metadata.
    async fn make_slot(&self, disk: DiskIndex, number: u32) -> io::Result<Slot> {
        let size = u64::from(self.options.segment_bytes);
        let life = self.disks.borrow()[disk.0].life;
        let file = self.ops.open(disk, Slot::name(number), Some(size)).await?;
        let zeros = Buffer::zeroed(FILL.min(size as usize))?.share();
        let mut at = 0;
        while at < size {
            let len = zeros.len().min((size - at) as usize);
            self.ops.write(disk, file, at, zeros.part(0..len)).await?;
            at += len as u64;
        }
        Ok(Slot { number, file, life })
    }

    /// Gives a slot back. One of an earlier life of its disk was found anew, or is gone.
    pub(crate) fn free_slot(&self, disk: DiskIndex, slot: Slot) {
        let disk = &mut self.disks.borrow_mut()[disk.0];
        if slot.life == disk.life {
            disk.free.push(slot);
        }
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a file could not be made for lack of space, or because the host lacks something or forbids it: no fault of the
/// disk, which keeps what it has and takes nothing new.
pub(crate) fn is_short(error: &io::Error) -> bool {
    if planted!(RefusalLosesDisk) {
        return is_full(error);
    }
    let forbids = [Errno::ACCESS, Errno::PERM].map(|forbids| Some(forbids.raw_os_error()));
    is_full(error) || is_host_lack(error) || forbids.contains(&errno(error))
}
