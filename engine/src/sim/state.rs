//! The simulated hardware from inside: the clock, the operations in flight, the processes, and the record of it all.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::bugs::{Stage, stages};
use super::fault::{Arm, Condition, FaultKind, Fired, OpKind};
use super::medium::{Image, Medium};
use super::refusal::Refusal;
use super::world::WorldOptions;
use crate::io::{Completion, DiskIndex, FileId, Op, OpId, Output};

/// The wall clock's first reading: some day in November 2023.
const WALL_START: u64 = 1_700_000_000_000_000_000;
/// What a look at the completions costs, so that a loop that only looks makes time pass too.
const POLL_COST: u64 = 200;
/// The longest sleep that a poll is given.
const LONGEST_WAIT: u64 = 3_600_000_000_000;

/// A clock that is wrong by this much, or jumps so far, is wrong by years.
const YEAR: u64 = 365 * 86_400_000_000_000;

/// A file that a process has open.
#[derive(Clone)]
pub(super) struct OpenFile {
    pub(super) disk: DiskIndex,
    pub(super) medium: usize,
    pub(super) inode: u64,
    pub(super) name: Arc<str>,
}

/// A process: what it has attached and open, and what is ready for its next poll.
#[derive(Default)]
pub(super) struct Process {
    pub(super) disks: BTreeMap<DiskIndex, usize>,
    pub(super) files: FxHashMap<u32, OpenFile>,
    finished: Vec<Completion>,
}

/// What an operation in flight will do.
pub(super) enum Work {
    Op(Op),
    /// Its outcome is known; only the time is not over.
    Ready(io::Result<Output>),
}

/// An operation in flight.
pub(super) struct Pending {
    pub(super) process: u64,
    pub(super) id: OpId,
    pub(super) kind: OpKind,
    pub(super) medium: Option<usize>,
    pub(super) inode: u64,
    pub(super) file: Arc<str>,
    pub(super) work: Work,
}

/// Everything behind a [`World`](super::World)'s lock.
pub(super) struct State {
    pub(super) options: WorldOptions,
    pub(super) rng: fastrand::Rng,
    pub(super) now: u64,
    wall_offset: i64,
    pub(super) alarm: Option<u64>,
    pub(super) media: Vec<Medium>,
    pub(super) paths: BTreeMap<PathBuf, usize>,
    pub(super) processes: BTreeMap<u64, Process>,
    next_process: u64,
    /// Keys are the time due and the order of submission.
    pending: BTreeMap<(u64, u64), Pending>,
    /// Due, but on a stalled disk; by order of submission.
    held: Vec<(u64, Pending)>,
    /// How many of those in flight write blocks.
    appending: usize,
    /// Whether the operation that is being done is one of these.
    at_append: bool,
    pub(super) operations: u64,
    crash_at: Option<u64>,
    pub(super) next_file: u32,
    pub(super) arms: Vec<(usize, Arm)>,
    /// What the host refuses, with the disk that it concerns.
    pub(super) refusals: Vec<(Option<usize>, Refusal)>,
    /// The last thing that a process changed on a disk, and how many such changes there were, and how many failed.
    pub(super) changed: Option<(OpKind, Arc<str>)>,
    pub(super) changes: u64,
    pub(super) failed_changes: u64,
    pub(super) counts: BTreeMap<FaultKind, u64>,
    pub(super) fired: Vec<Fired>,
    pub(super) digest: u64,
    pub(super) trace: Option<Vec<String>>,
}

impl State {
    pub(super) fn new(options: WorldOptions) -> State {
        State {
            rng: fastrand::Rng::with_seed(options.seed),
            trace: options.trace.then(Vec::new),
            digest: options.seed,
            options,
            now: 0,
            wall_offset: 0,
            alarm: None,
            media: Vec::new(),
            paths: BTreeMap::new(),
            processes: BTreeMap::new(),
            next_process: 0,
            pending: BTreeMap::new(),
            held: Vec::new(),
            appending: 0,
            at_append: false,
            operations: 0,
            crash_at: None,
            next_file: 0,
            arms: Vec::new(),
            refusals: Vec::new(),
            changed: None,
            changes: 0,
            failed_changes: 0,
            counts: BTreeMap::new(),
            fired: Vec::new(),
        }
    }

    pub(super) fn start_process(&mut self) -> u64 {
        self.next_process += 1;
        self.processes.insert(self.next_process, Process::default());
        self.digest_words(&[1, self.next_process]);
        self.next_process
    }

    pub(super) fn alive(&self, process: u64) -> bool {
        self.processes.contains_key(&process)
    }

    pub(super) fn running(&self) -> bool {
        !self.processes.is_empty()
    }

    pub(super) fn wall(&self) -> u64 {
        (WALL_START + self.now).saturating_add_signed(self.wall_offset)
    }

    /// The disk at a path; mentioning a path plugs in a disk whose directory is not made yet.
    pub(super) fn medium_at(&mut self, path: &Path) -> usize {
        if let Some(medium) = self.paths.get(path) {
            return *medium;
        }
        self.media.push(Medium::default());
        self.paths.insert(path.to_owned(), self.media.len() - 1);
        self.media.len() - 1
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>12} {}", self.now, line()));
        }
    }

    fn digest_words(&mut self, words: &[u64]) {
        let mut bytes = [0; 64];
        for (slot, word) in bytes.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        self.digest = xxh3_64_with_seed(&bytes[..words.len() * 8], self.digest);
    }

    /// Records that a fault bit.
    pub(super) fn fire(&mut self, kind: FaultKind, medium: Option<usize>, op: Option<OpKind>, file: &str) {
        let disk = self.paths.iter().find(|(_, at)| Some(**at) == medium).map(|(path, _)| path.clone());
        *self.counts.entry(kind).or_default() += 1;
        self.note(|| format!("fault {kind:?} on {disk:?} {op:?} {file}"));
        self.digest_words(&[2, kind as u64, medium.map_or(u64::MAX, |medium| medium as u64)]);
        let appending = self.appending > 0;
        let stages = stages() | u16::from(appending) << Stage::Append as u16;
        self.fired.push(Fired { kind, disk, op, file: file.to_owned(), stages, append: self.at_append });
    }
}

/// Operations in flight.
impl State {
    pub(super) fn submit(&mut self, process: u64, id: OpId, op: Op) {
        let Some(owner) = self.processes.get(&process) else { return };
        let ((kind, file), disk) = (describe(&op), op.disk());
        let open = file.and_then(|file| owner.files.get(&file.0)).filter(|open| Some(open.disk) == disk).cloned();
        let (medium, missing) = match &op {
            Op::Attach { path, .. } => (Some(self.medium_at(path)), false),
            _ if file.is_some() => (open.as_ref().map(|open| open.medium), open.is_none()),
            _ => {
                let medium = disk.and_then(|disk| owner.disks.get(&disk)).copied();
                (medium, medium.is_none())
            }
        };
        let name = match &op {
            Op::Open { name, .. }
            | Op::WriteFile { name, .. }
            | Op::ReadFile { name, .. }
            | Op::Remove { name, .. } => Arc::from(name.as_str()),
            _ => open.as_ref().map_or_else(|| Arc::from(""), |open| Arc::clone(&open.name)),
        };
        let (place, data) = extent(&op);
        self.digest_words(&[3, id.0, kind as u64, medium.unwrap_or(usize::MAX) as u64, place.start, place.end, data]);
        self.note(|| format!("submit {process}.{} {kind:?} disk {disk:?} {name} {place:?}", id.0));
        let work = if missing {
            Work::Ready(Err(io::Error::new(io::ErrorKind::NotFound, "the disk or file is not open")))
        } else {
            Work::Op(op)
        };
        if let (OpKind::Attach, Some(at)) = (kind, medium)
            && let Some(arrived) = self.media[at].arrived.take()
        {
            self.fire(arrived, medium, Some(kind), "");
        }
        let inode = open.map_or(0, |open| open.inode);
        self.launch(Pending { process, id, kind, medium, inode, file: name, work });
    }

    pub(super) fn submit_computed(&mut self, process: u64, id: OpId, result: io::Result<Output>) {
        if self.alive(process) {
            self.digest_words(&[4, id.0]);
            let (kind, work) = (OpKind::Compute, Work::Ready(result));
            self.launch(Pending { process, id, kind, medium: None, inode: 0, file: Arc::from(""), work });
        }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.pending.is_empty() && self.held.is_empty()
    }

    fn launch(&mut self, pending: Pending) {
        self.operations += 1;
        self.appending += usize::from((self.options.is_append)(pending.id));
        let condition = pending.medium.map_or(Condition::Healthy, |medium| self.media[medium].condition);
        let mut latency = self.latency(pending.kind);
        if let Condition::Slow(times) = condition {
            latency *= u64::from(times.max(1));
            self.fire(FaultKind::Slow, pending.medium, Some(pending.kind), &pending.file);
        }
        self.pending.insert((self.now + latency, self.operations), pending);
        if self.crash_at.is_some_and(|at| self.operations >= at) {
            self.crash_all();
        }
    }

    fn latency(&mut self, kind: OpKind) -> u64 {
        let latency = &self.options.latency;
        let range = match kind {
            _ if latency.tail_every > 0 && self.rng.u32(..latency.tail_every) == 0 => &latency.tail,
            OpKind::Read | OpKind::ReadFile | OpKind::List | OpKind::Space | OpKind::Open | OpKind::Compute => {
                &latency.read
            }
            _ => &latency.write,
        };
        self.rng.u64(range.clone())
    }

    /// What is due at or before `until` happens, until something is ready for `process`. Returns whether something is.
    fn run_until(&mut self, until: u64, process: Option<u64>) -> bool {
        loop {
            let ready = process.and_then(|process| self.processes.get(&process));
            if ready.is_some_and(|process| !process.finished.is_empty()) {
                // Whatever is due at the very same time still belongs to this look.
                if self.pending.first_key_value().is_none_or(|(key, _)| key.0 > self.now) {
                    return true;
                }
            }
            let Some(entry) = self.pending.first_entry().filter(|entry| entry.key().0 <= until) else { break };
            let ((due, order), pending) = entry.remove_entry();
            self.now = self.now.max(due);
            self.finish(order, pending);
        }
        process.and_then(|process| self.processes.get(&process)).is_some_and(|process| !process.finished.is_empty())
    }

    fn finish(&mut self, order: u64, pending: Pending) {
        if let Some(medium) = pending.medium
            && self.media[medium].condition == Condition::Stalled
        {
            self.fire(FaultKind::Stalled, Some(medium), Some(pending.kind), &pending.file);
            self.held.push((order, pending));
            return;
        }
        let (process, id) = (pending.process, pending.id);
        self.at_append = (self.options.is_append)(id);
        let changes = matches!(pending.kind, OpKind::Create | OpKind::Write | OpKind::WriteFile | OpKind::Remove);
        let change = (pending.kind, Arc::clone(&pending.file));
        let result = self.effect(pending);
        self.at_append = false;
        if changes {
            *if result.is_ok() { &mut self.changes } else { &mut self.failed_changes } += 1;
            self.changed = Some(change);
        }
        self.appending -= usize::from((self.options.is_append)(id));
        let code = match &result {
            Ok(Output::Read(buffer)) => buffer.len() as u64,
            Ok(_) => 1 << 32,
            Err(error) => (2 << 32) + error.raw_os_error().map_or(error.kind() as u64, |code| u64::from(code as u32)),
        };
        self.digest_words(&[5, self.now, process, id.0, code]);
        self.note(|| match &result {
            Ok(_) => format!("done   {process}.{}", id.0),
            Err(error) => format!("failed {process}.{}: {error}", id.0),
        });
        if let Some(process) = self.processes.get_mut(&process) {
            process.finished.push(Completion { id, result });
        }
    }

    pub(super) fn poll(
        &mut self,
        process: u64,
        wait: Option<Duration>,
        rung: impl FnOnce() -> bool,
        done: &mut Vec<Completion>,
    ) {
        if !self.alive(process) {
            return;
        }
        let until = self.now + POLL_COST;
        self.run_until(until, None);
        self.now = until;
        let ready = self.processes.get(&process).is_some_and(|process| !process.finished.is_empty());
        if let Some(wait) = wait.filter(|wait| !wait.is_zero())
            && !ready
            && !rung()
        {
            let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX).min(LONGEST_WAIT);
            let end = self.alarm.map_or(self.now + wait, |alarm| alarm.clamp(self.now, self.now + wait));
            if !self.run_until(end, Some(process)) {
                self.now = end;
            }
        }
        if let Some(process) = self.processes.get_mut(&process) {
            done.append(&mut process.finished);
        }
    }

    pub(super) fn advance(&mut self, by: Duration) {
        let until = self.now + u64::try_from(by.as_nanos()).unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
        self.run_until(until, None);
        self.now = until;
    }

    pub(super) fn suspend(&mut self, time: Duration, disks: bool) {
        self.fire(FaultKind::Suspended, None, None, "");
        if disks {
            let later = u64::try_from(time.as_nanos()).unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
            let pending = std::mem::take(&mut self.pending).into_iter();
            self.pending = pending.map(|((due, order), op)| ((due + later, order), op)).collect();
        }
        self.advance(time);
    }

    pub(super) fn read_at(
        &mut self,
        process: u64,
        disk: DiskIndex,
        file: FileId,
        offset: u64,
        buf: &mut [u8],
    ) -> io::Result<usize> {
        let open = self.processes.get(&process).and_then(|process| process.files.get(&file.0));
        let open = open.filter(|open| open.disk == disk).ok_or(io::ErrorKind::NotFound)?.clone();
        self.refuse_read(process, open.medium, OpKind::Read, &open.name)?;
        self.read_medium(open.medium, open.inode, &open.name, offset, buf)
    }

    pub(super) fn read_named_at(
        &mut self,
        process: u64,
        disk: DiskIndex,
        name: &str,
        offset: u64,
        buf: &mut [u8],
    ) -> io::Result<usize> {
        let medium = self.processes.get(&process).and_then(|process| process.disks.get(&disk)).copied();
        let medium = medium.ok_or(io::ErrorKind::NotFound)?;
        self.refuse_read(process, medium, OpKind::ReadFile, name)?;
        self.read_named(medium, name, offset, buf)
    }

    /// What another thread's read is told by a disk that does not answer.
    fn refuse_read(&mut self, process: u64, medium: usize, op: OpKind, name: &str) -> io::Result<()> {
        self.refuse(process, Some(medium), op, name)?;
        let condition = self.media[medium].condition;
        if let Condition::Lost | Condition::Stalled = condition {
            let kind = condition.kind().unwrap_or(FaultKind::Lost);
            self.fire(kind, Some(medium), Some(op), name);
            // A stalled read would block its thread; there is only one here, so it is told so instead.
            return Err(match condition {
                Condition::Stalled => io::ErrorKind::TimedOut.into(),
                _ => rustix::io::Errno::IO.into(),
            });
        }
        Ok(())
    }
}

/// Power loss, and other things that happen by themselves.
impl State {
    pub(super) fn crash_after(&mut self, operations: Option<u64>) {
        self.crash_at = operations.map(|operations| self.operations + operations.max(1));
    }

    pub(super) fn crash_all(&mut self) {
        self.crash_at = None;
        while let Some(process) = self.processes.keys().next().copied() {
            self.crash(process);
        }
    }

    /// The end of one process, orderly (nothing in flight) or not.
    pub(super) fn crash(&mut self, process: u64) {
        if self.processes.remove(&process).is_none() {
            return;
        }
        self.digest_words(&[6, self.now, process]);
        self.note(|| format!("crash  {process}"));
        let mut flying = Vec::new();
        let (pending, held) = (std::mem::take(&mut self.pending), std::mem::take(&mut self.held));
        for ((due, order), op) in pending {
            if op.process == process { flying.push((order, op)) } else { drop(self.pending.insert((due, order), op)) }
        }
        for (order, op) in held {
            if op.process == process { flying.push((order, op)) } else { self.held.push((order, op)) }
        }
        flying.sort_by_key(|(order, _)| *order);
        let kind = if flying.is_empty() { FaultKind::Crash } else { FaultKind::CrashInFlight };
        self.fire(kind, None, None, "");
        let flying: Vec<Pending> = flying.into_iter().map(|(_, op)| op).collect();
        let appends = flying.iter().filter(|op| (self.options.is_append)(op.id)).count();
        self.land_in_part(flying);
        self.appending -= appends;
        for medium in &mut self.media {
            if medium.locked_by == Some(process) {
                medium.locked_by = None;
            }
            if self.processes.is_empty() {
                medium.settle();
            }
        }
    }

    pub(super) fn set_condition(&mut self, path: &Path, condition: Condition) {
        let medium = self.medium_at(path);
        self.media[medium].condition = condition;
        self.note(|| format!("{} is {condition:?}", path.display()));
        let (stay, go) = std::mem::take(&mut self.held).into_iter().partition(|(_, op)| op.medium != Some(medium));
        self.held = stay;
        for (order, op) in go {
            let due = self.now + self.latency(op.kind);
            self.pending.insert((due, order), op);
        }
    }

    pub(super) fn replace(&mut self, path: &Path, image: &Image, kind: FaultKind) {
        self.medium_at(path);
        self.media.push(Medium::from_image(image, kind));
        self.paths.insert(path.to_owned(), self.media.len() - 1);
        self.note(|| format!("{} is now {kind:?}", path.display()));
    }

    pub(super) fn swap(&mut self, one: &Path, other: &Path) {
        let (first, second) = (self.medium_at(one), self.medium_at(other));
        self.paths.insert(one.to_owned(), second);
        self.paths.insert(other.to_owned(), first);
        // What is wrong with a place stays there.
        let (here, there) = (self.media[first].condition, self.media[second].condition);
        (self.media[first].condition, self.media[second].condition) = (there, here);
        for medium in [first, second] {
            self.media[medium].arrived = Some(FaultKind::Swapped);
        }
        self.note(|| format!("{} and {} changed places", one.display(), other.display()));
    }

    pub(super) fn flip(&mut self, path: &Path, file: &str, offset: u64, bit: u8) -> bool {
        let medium = self.medium_at(path);
        let Some(inode) = self.media[medium].named_mut(file).filter(|inode| offset < inode.len()) else { return false };
        inode.flip(offset, bit);
        self.note(|| format!("{}: bit {bit} of {file} at {offset} flipped", path.display()));
        true
    }

    pub(super) fn spoil(&mut self, path: &Path, file: &str, range: Range<u64>) -> bool {
        let medium = self.medium_at(path);
        let Some(inode) = self.media[medium].named_mut(file) else { return false };
        inode.spoil(range.clone());
        self.note(|| format!("{}: {file} cannot be read at {range:?}", path.display()));
        true
    }

    pub(super) fn cut(&mut self, path: &Path, file: &str, len: u64) -> bool {
        let medium = self.medium_at(path);
        let Some(inode) = self.media[medium].named_mut(file).filter(|inode| len < inode.len()) else { return false };
        inode.cut(len);
        self.note(|| format!("{}: {file} is cut short at {len}", path.display()));
        true
    }

    pub(super) fn unlink(&mut self, path: &Path, file: &str) -> bool {
        let medium = self.medium_at(path);
        self.note(|| format!("{}: {file} loses its name", path.display()));
        self.media[medium].unlink(file)
    }

    pub(super) fn jump_wall(&mut self, by: i64) {
        self.wall_offset = self.wall_offset.saturating_add(by);
        let years = self.wall_offset.unsigned_abs() >= YEAR || by.unsigned_abs() >= YEAR;
        self.fire(if years { FaultKind::ClockYears } else { FaultKind::ClockJump }, None, None, "");
    }
}

/// An operation's kind and open file.
fn describe(op: &Op) -> (OpKind, Option<FileId>) {
    match op {
        Op::Attach { .. } => (OpKind::Attach, None),
        Op::Detach { .. } => (OpKind::Detach, None),
        Op::List { .. } => (OpKind::List, None),
        Op::Open { create: None, .. } => (OpKind::Open, None),
        Op::Open { .. } => (OpKind::Create, None),
        Op::Read { file, .. } => (OpKind::Read, Some(*file)),
        Op::Write { file, .. } => (OpKind::Write, Some(*file)),
        Op::WriteFile { .. } => (OpKind::WriteFile, None),
        Op::ReadFile { .. } => (OpKind::ReadFile, None),
        Op::Remove { .. } => (OpKind::Remove, None),
        Op::Space { .. } => (OpKind::Space, None),
        Op::Compute(_) => (OpKind::Compute, None),
    }
}

/// The bytes of its file that an operation concerns, and a hash of what it brings. The engine's own checksums stand at the
/// front of what it writes, so that a hash of the front tells all of it apart.
fn extent(op: &Op) -> (Range<u64>, u64) {
    match op {
        Op::Read { offset, len, .. } => (*offset..offset.saturating_add(*len as u64), 0),
        Op::Write { offset, data, .. } => (*offset..offset.saturating_add(data.len() as u64), front(data)),
        Op::Open { create: Some(len), .. } => (0..*len, 0),
        Op::WriteFile { bytes, .. } => (0..bytes.len() as u64, front(bytes)),
        _ => (0..0, 0),
    }
}

fn front(bytes: &[u8]) -> u64 {
    xxh3_64(&bytes[..bytes.len().min(128)])
}
