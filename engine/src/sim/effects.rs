//! What each operation does to the simulated medium: when it completes, when a fault meets it, when a crash catches it.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use rustix::io::Errno;

use super::fault::{Arm, ArmedFault, Condition, FaultKind, OpKind};
use super::medium::Inode;
use super::state::{OpenFile, Pending, State, Work};
use crate::io::{Buffer, DiskIndex, DiskTraits, FileId, Op, Output, plain};

/// O_DIRECT's alignment.
const ALIGN: u64 = 4096;
/// The file that holds the lock, as on a real disk.
const LOCK: &str = "LOCK";

type Outcome = io::Result<Output>;

/// How much of a write lands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Landing {
    Nothing,
    Part,
    Whole,
}

/// Completion.
impl State {
    /// Does what the operation asks, and says what came of it.
    pub(super) fn effect(&mut self, pending: Pending) -> Outcome {
        let Pending { process, kind, medium, inode, file, work, .. } = pending;
        let op = match work {
            Work::Ready(outcome) => return outcome,
            Work::Op(op) => op,
        };
        let medium = medium.ok_or(io::ErrorKind::NotFound)?;
        if matches!(op, Op::Open { .. } | Op::WriteFile { .. } | Op::ReadFile { .. } | Op::Remove { .. }) {
            plain(&file)?;
        }
        if kind != OpKind::Detach {
            self.refuse(process, Some(medium), kind, &file)?;
        }
        self.gate(medium, kind, &file)?;
        match op {
            Op::Attach { disk, path, create } => self.attach(process, medium, disk, &path, create),
            Op::Detach { disk } => self.detach(process, medium, disk),
            Op::List { .. } => {
                if !self.media[medium].gone.is_empty() {
                    self.fire(FaultKind::GoneFile, Some(medium), Some(OpKind::List), "");
                }
                let medium = &self.media[medium];
                let names = medium.names.iter().map(|(name, inode)| (name.clone(), medium.inodes[inode].len()));
                Ok(Output::Names(names.collect()))
            }
            Op::Open { disk, create, .. } => self.open(process, medium, disk, &file, create),
            Op::Read { offset, buffer, len, .. } => {
                aligned(offset, len as u64)?;
                self.read(medium, inode, &file, offset, buffer, len)
            }
            Op::Write { offset, data, .. } => {
                aligned(offset, data.len() as u64)?;
                self.write(medium, inode, &file, offset, &data)
            }
            Op::WriteFile { bytes, .. } => self.write_file(medium, &file, &bytes),
            Op::ReadFile { limit, .. } => self.read_file(medium, &file, limit),
            Op::Remove { disk, .. } => {
                if let Some(process) = self.processes.get_mut(&process) {
                    process.files.retain(|_, open| open.disk != disk || open.name != file);
                }
                self.media[medium].names.remove(&*file).ok_or(io::ErrorKind::NotFound)?;
                Ok(Output::Done)
            }
            Op::Space { .. } => {
                let total = self.options.capacity;
                let full = matches!(self.media[medium].condition, Condition::Full | Condition::FullForAll);
                let free = if full { 0 } else { total.saturating_sub(self.media[medium].used()) };
                Ok(Output::Space { free, total })
            }
            Op::Compute(job) => Ok(Output::Computed(job())),
        }
    }

    /// Refuses what the disk's condition does not allow.
    fn gate(&mut self, medium: usize, kind: OpKind, file: &str) -> io::Result<()> {
        use OpKind::{Attach, Create, Detach, Remove, Write, WriteFile};
        let condition = self.media[medium].condition;
        let error = match (condition, kind) {
            (_, Detach) => return Ok(()),
            (Condition::Lost, _) => Errno::IO,
            (Condition::ReadOnly, Attach | Create | Write | WriteFile | Remove) => Errno::ROFS,
            (Condition::Full | Condition::FullForAll, Create | WriteFile) => Errno::NOSPC,
            (Condition::FullForAll, Write) => Errno::NOSPC,
            _ => return Ok(()),
        };
        if let Some(fault) = condition.kind() {
            self.fire(fault, Some(medium), Some(kind), file);
        }
        Err(error.into())
    }

    fn attach(&mut self, process: u64, at: usize, disk: DiskIndex, path: &PathBuf, create: bool) -> Outcome {
        // The disk may have been exchanged since the call.
        debug_assert!(self.paths.contains_key(path), "submit plugged it in");
        let medium = &mut self.media[at];
        if !medium.exists && !create {
            return Err(io::ErrorKind::NotFound.into());
        }
        if medium.locked_by.is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        medium.exists = true;
        if medium.named(LOCK).is_none() {
            medium.put(LOCK, Inode::default());
        }
        medium.locked_by = Some(process);
        if let Some(process) = self.processes.get_mut(&process) {
            process.disks.insert(disk, at);
        }
        Ok(Output::Attached(DiskTraits { direct: true }))
    }

    fn detach(&mut self, process: u64, at: usize, disk: DiskIndex) -> Outcome {
        if self.media[at].locked_by == Some(process) {
            self.media[at].locked_by = None;
        }
        if let Some(process) = self.processes.get_mut(&process) {
            process.disks.remove(&disk);
            process.files.retain(|_, open| open.disk != disk);
        }
        Ok(Output::Done)
    }

    fn open(&mut self, process: u64, at: usize, disk: DiskIndex, file: &str, create: Option<u64>) -> Outcome {
        let capacity = self.options.capacity;
        if create.is_none() {
            self.meet_loss(at, OpKind::Open, file);
        }
        let medium = &mut self.media[at];
        let inode = match (create, medium.names.get(file)) {
            (Some(_), Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(len), None) if medium.used() + len > capacity => return Err(Errno::NOSPC.into()),
            (Some(len), None) => medium.put(file, Inode::with_len(len)),
            (None, Some(inode)) => *inode,
            (None, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        self.next_file += 1;
        let id = self.next_file;
        if let Some(process) = self.processes.get_mut(&process) {
            process.files.insert(id, OpenFile { disk, medium: at, inode, name: file.into() });
        }
        Ok(Output::File(FileId(id)))
    }

    /// Records that a file which is opened by name was cut short, or lost its name.
    fn meet_loss(&mut self, at: usize, op: OpKind, file: &str) {
        let medium = &self.media[at];
        if medium.gone.contains(file) {
            self.fire(FaultKind::GoneFile, Some(at), Some(op), file);
        } else if medium.named(file).is_some_and(|inode| inode.is_short(u64::MAX)) {
            self.fire(FaultKind::ShortFile, Some(at), Some(op), file);
        }
    }

    fn read(&mut self, at: usize, inode: u64, file: &str, offset: u64, mut buffer: Buffer, len: usize) -> Outcome {
        if len > buffer.capacity() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the buffer is smaller than the read"));
        }
        buffer.set_len(len);
        let done = self.read_medium(at, inode, file, offset, &mut buffer)?;
        buffer.set_len(done);
        Ok(Output::Read(buffer))
    }

    /// Reads a file; a latent error anywhere in the range fails it all.
    pub(super) fn read_medium(
        &mut self,
        at: usize,
        inode: u64,
        file: &str,
        offset: u64,
        out: &mut [u8],
    ) -> io::Result<usize> {
        if self.media[at].is_gone(inode) {
            self.fire(FaultKind::GoneFile, Some(at), Some(OpKind::Read), file);
        }
        let range = offset..offset + out.len() as u64;
        if self.media[at].inodes.get(&inode).is_some_and(|inode| inode.is_short(range.end)) {
            self.fire(FaultKind::ShortFile, Some(at), Some(OpKind::Read), file);
        }
        let Some(inode) = self.media[at].inodes.get(&inode) else { return Ok(0) };
        if inode.unreadable(&range) {
            self.fire(FaultKind::LatentRead, Some(at), Some(OpKind::Read), file);
            return Err(Errno::IO.into());
        }
        let (done, rotten) = (inode.read(offset, out), inode.rotten(&range));
        if rotten {
            self.fire(FaultKind::BitRot, Some(at), Some(OpKind::Read), file);
        }
        Ok(done)
    }

    pub(super) fn read_named(&mut self, at: usize, file: &str, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        self.meet_loss(at, OpKind::ReadFile, file);
        let inode = self.media[at].named(file).ok_or(io::ErrorKind::NotFound)?;
        let range = offset..offset + out.len() as u64;
        if inode.unreadable(&range) {
            self.fire(FaultKind::LatentRead, Some(at), Some(OpKind::ReadFile), file);
            return Err(Errno::IO.into());
        }
        let (done, rotten) = (inode.read(offset, out), inode.rotten(&range));
        if rotten {
            self.fire(FaultKind::BitRot, Some(at), Some(OpKind::ReadFile), file);
        }
        Ok(done)
    }

    pub(super) fn read_file(&mut self, at: usize, file: &str, limit: u64) -> Outcome {
        self.meet_loss(at, OpKind::ReadFile, file);
        let inode = self.media[at].named(file).ok_or(io::ErrorKind::NotFound)?;
        if inode.len() > limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is longer than the limit"));
        }
        if inode.unreadable(&(0..inode.len())) {
            self.fire(FaultKind::LatentRead, Some(at), Some(OpKind::ReadFile), file);
            return Err(Errno::IO.into());
        }
        let (bytes, rotten) = (inode.bytes(), inode.rotten(&(0..inode.len())));
        if rotten {
            self.fire(FaultKind::BitRot, Some(at), Some(OpKind::ReadFile), file);
        }
        Ok(Output::Bytes(bytes))
    }

    fn write(&mut self, at: usize, inode: u64, file: &str, offset: u64, data: &[u8]) -> Outcome {
        let range = offset..offset + data.len() as u64;
        if self.media[at].is_gone(inode) {
            self.fire(FaultKind::GoneFile, Some(at), Some(OpKind::Write), file);
        } else if self.media[at].inodes.get(&inode).is_some_and(|inode| inode.is_short(range.end)) {
            self.fire(FaultKind::ShortFile, Some(at), Some(OpKind::Write), file);
        }
        let Some(target) = self.media[at].inodes.get_mut(&inode) else { return Ok(Output::Done) };
        let (grows, dropped) = (range.end.saturating_sub(target.len()), target.drops_write(&range));
        if dropped {
            self.note(|| format!("a write to {file} after the failed flush is dropped"));
            return Ok(Output::Done);
        }
        let full = self.media[at].condition == Condition::Full;
        if grows > 0 && (full || self.media[at].used() + grows > self.options.capacity) {
            return Err(Errno::NOSPC.into());
        }
        let Some(fault) = self.armed(at, OpKind::Write, file) else {
            self.land(at, inode, offset, data, Landing::Whole);
            return Ok(Output::Done);
        };
        match fault {
            ArmedFault::Torn => self.land(at, inode, offset, data, Landing::Part),
            ArmedFault::Lost => {}
            ArmedFault::Misdirected => self.misdirect(at, inode, &range, data),
            ArmedFault::FailedFlush => {
                self.land(at, inode, offset, data, Landing::Part);
                if let Some(inode) = self.media[at].inodes.get_mut(&inode) {
                    inode.deafen(&range);
                }
                return Err(Errno::IO.into());
            }
        }
        Ok(Output::Done)
    }

    fn write_file(&mut self, at: usize, file: &str, bytes: &[u8]) -> Outcome {
        if self.media[at].used() + bytes.len() as u64 > self.options.capacity {
            return Err(Errno::NOSPC.into());
        }
        let fault = self.armed(at, OpKind::WriteFile, file);
        let outcome = if fault == Some(ArmedFault::FailedFlush) { Err(Errno::IO.into()) } else { Ok(Output::Done) };
        let landing = match fault {
            None => Landing::Whole,
            Some(ArmedFault::Torn) => Landing::Part,
            Some(ArmedFault::Lost | ArmedFault::Misdirected) => Landing::Nothing,
            // The rename may have made it or not.
            Some(ArmedFault::FailedFlush) if self.rng.bool() => Landing::Whole,
            Some(ArmedFault::FailedFlush) => Landing::Nothing,
        };
        if landing != Landing::Nothing {
            let inode = self.media[at].put(file, Inode::with_len(bytes.len() as u64));
            self.land(at, inode, 0, bytes, landing);
        }
        outcome
    }

    /// The armed fault that this write meets, if any.
    fn armed(&mut self, at: usize, kind: OpKind, file: &str) -> Option<ArmedFault> {
        let hits = |(medium, arm): &(usize, Arm)| *medium == at && file.starts_with(arm.prefix.as_str());
        let place = self.arms.iter().position(hits)?;
        let arm = &mut self.arms[place].1;
        if arm.skip > 0 {
            arm.skip -= 1;
            return None;
        }
        let (_, arm) = self.arms.remove(place);
        self.fire(arm.fault.kind(), Some(at), Some(kind), file);
        Some(arm.fault)
    }

    /// Lands the sectors of a write that this landing keeps.
    fn land(&mut self, at: usize, inode: u64, offset: u64, data: &[u8], landing: Landing) {
        let (rng, sector) = (&mut self.rng, self.options.sector);
        let Some(inode) = self.media[at].inodes.get_mut(&inode) else { return };
        match landing {
            Landing::Nothing => {}
            Landing::Whole => inode.write(offset, data),
            Landing::Part => {
                let count = data.len().div_ceil(sector);
                for (index, keep) in kept_sectors(rng, count).into_iter().enumerate() {
                    if keep {
                        let start = index * sector;
                        inode.write(offset + start as u64, &data[start..data.len().min(start + sector)]);
                    }
                }
            }
        }
    }

    /// Lands a write somewhere else on the same disk.
    fn misdirect(&mut self, at: usize, inode: u64, range: &Range<u64>, data: &[u8]) {
        let len = range.end - range.start;
        let mut files: Vec<(u64, u64)> =
            self.media[at].names.values().map(|id| (*id, self.media[at].inodes[id].len())).collect();
        files.retain(|(_, length)| *length >= len && length.is_multiple_of(ALIGN));
        for _ in 0..8 {
            let Some((file, length)) = self.rng.choice(&files).copied() else { return };
            let offset = self.rng.u64(0..=(length - len) / ALIGN) * ALIGN;
            if (file, offset) != (inode, range.start) {
                return self.land(at, file, offset, data, Landing::Whole);
            }
        }
    }
}

/// A crash with operations in flight.
impl State {
    /// Each operation lands, does not, or lands in part. `flying` is in the order of submission.
    pub(super) fn land_in_part(&mut self, flying: Vec<Pending>) {
        let mut lost_before = vec![false; self.media.len()];
        // Some crashes lose all that was in flight, some nothing; most are mixed.
        let whim = self.rng.u8(..8);
        for pending in flying {
            let landing = match whim {
                0 => Landing::Nothing,
                1 => Landing::Whole,
                _ => match self.rng.u8(..4) {
                    0 => Landing::Nothing,
                    1 => Landing::Whole,
                    _ => Landing::Part,
                },
            };
            let (Some(at), Work::Op(op)) = (pending.medium, pending.work) else { continue };
            if !matches!(self.media[at].condition, Condition::Healthy | Condition::Slow(_) | Condition::Stalled)
                || self.refusal(pending.process, Some(at), pending.kind, &pending.file).is_some()
            {
                continue;
            }
            let is_write = matches!(op, Op::Write { .. } | Op::WriteFile { .. });
            if is_write && landing == Landing::Part {
                self.fire(FaultKind::TornByCrash, Some(at), Some(pending.kind), &pending.file);
            } else if is_write && landing == Landing::Whole && lost_before[at] {
                self.fire(FaultKind::Reordered, Some(at), Some(pending.kind), &pending.file);
            }
            lost_before[at] |= is_write && landing != Landing::Whole;
            self.note_landing(pending.id.0, landing);
            self.land_op(at, pending.inode, &pending.file, op, landing);
        }
    }

    fn note_landing(&mut self, id: u64, landing: Landing) {
        self.note(|| match landing {
            Landing::Nothing => format!("{id} did not land"),
            Landing::Part => format!("{id} landed in part"),
            Landing::Whole => format!("{id} landed"),
        });
    }

    fn land_op(&mut self, at: usize, inode: u64, file: &str, op: Op, landing: Landing) {
        match (op, landing) {
            (_, Landing::Nothing) => {}
            (Op::Write { offset, data, .. }, _) => self.land(at, inode, offset, &data, landing),
            (Op::Attach { create: true, .. }, _) => self.media[at].exists = true,
            (Op::Open { create: Some(len), .. }, _) => {
                let len = if landing == Landing::Whole { len } else { self.rng.u64(0..=len / ALIGN) * ALIGN };
                let medium = &mut self.media[at];
                if medium.named(file).is_none() && medium.used() + len <= self.options.capacity {
                    medium.put(file, Inode::with_len(len));
                }
            }
            (Op::WriteFile { bytes, .. }, Landing::Whole) => {
                self.media[at].put(file, Inode::with_bytes(&bytes));
            }
            (Op::WriteFile { bytes, .. }, Landing::Part) => {
                // The temporary file stays behind, however much of it there was; the old one is whole.
                let inode = self.media[at].put(&format!("{file}.tmp"), Inode::with_len(bytes.len() as u64));
                self.land(at, inode, 0, &bytes, Landing::Part);
            }
            (Op::Remove { .. }, Landing::Whole) => drop(self.media[at].names.remove(file)),
            _ => {}
        }
    }
}

/// Which of a write's sectors land: a prefix, a suffix, or any of them; where there are two or more, never none and never all.
fn kept_sectors(rng: &mut fastrand::Rng, count: usize) -> Vec<bool> {
    if count < 2 {
        return vec![rng.bool(); count];
    }
    let cut = rng.usize(1..count);
    match rng.u8(..4) {
        0 => (0..count).map(|index| index < cut).collect(),
        1 => (0..count).map(|index| index >= cut).collect(),
        _ => {
            let odd = rng.usize(..count);
            let mut kept: Vec<bool> = (0..count).map(|_| rng.bool()).collect();
            if kept.iter().all(|keep| *keep == kept[0]) {
                kept[odd] = !kept[odd];
            }
            kept
        }
    }
}

fn aligned(offset: u64, len: u64) -> io::Result<()> {
    if len > 0 && offset.is_multiple_of(ALIGN) && len.is_multiple_of(ALIGN) && offset.checked_add(len).is_some() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "offset or length is not a multiple of 4096"))
}
