//! The simulated hardware as a test holds it: disks by path, one clock, one seed, and everything that can go wrong.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::driver::SimDriver;
use super::fault::{Arm, Condition, FaultKind, Fired};
use super::medium::Image;
use super::refusal::Refusal;
use super::state::State;
use crate::io::OpId;

/// How long simulated operations take, in nanoseconds of virtual time. Each operation draws its own.
#[derive(Clone, Debug)]
pub struct Latency {
    /// Reads, listings and the like.
    pub read: Range<u64>,
    /// Durable writes, creations and removals.
    pub write: Range<u64>,
    /// One operation in this many takes `tail` instead; 0 for none.
    pub tail_every: u32,
    /// The slow ones.
    pub tail: Range<u64>,
}

/// What a [`World`] is made with.
#[derive(Clone, Debug)]
pub struct WorldOptions {
    /// Everything random follows from it.
    pub seed: u64,
    /// Bytes that each disk holds.
    pub capacity: u64,
    /// The bytes that a crash keeps or loses together: a power of two, at most 4096.
    pub sector: usize,
    /// How long operations take.
    pub latency: Latency,
    /// Keep a line of text per event, for [`World::trace`].
    pub trace: bool,
    /// Which operations write blocks, for [`Stage::Append`](super::Stage::Append).
    pub is_append: fn(OpId) -> bool,
}

impl WorldOptions {
    /// Disks of 1 GiB with 512-byte sectors, tens of microseconds an operation, and a slow operation in 64.
    #[must_use]
    pub fn new(seed: u64) -> WorldOptions {
        let latency =
            Latency { read: 5_000..100_000, write: 20_000..200_000, tail_every: 64, tail: 500_000..10_000_000 };
        WorldOptions { seed, capacity: 1 << 30, sector: 512, latency, trace: false, is_append: |_| false }
    }
}

/// The simulated hardware. Clones are handles on the same world.
#[derive(Clone)]
pub struct World {
    state: Arc<Mutex<State>>,
}

impl World {
    /// A world without any disks: they come with their first mention.
    ///
    /// # Panics
    /// When `options.sector` is no power of two up to 4096.
    #[must_use]
    pub fn new(options: WorldOptions) -> World {
        assert!(options.sector.is_power_of_two() && options.sector <= 4096, "{} is no sector size", options.sector);
        World { state: Arc::new(Mutex::new(State::new(options))) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of the code under test says nothing about the disks.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new process on this hardware.
    #[must_use]
    pub fn driver(&self) -> SimDriver {
        SimDriver::new(self.clone())
    }

    /// Cuts the power: every process dies; each operation in flight lands, does not, or lands in part.
    pub fn crash(&self) {
        self.lock().crash_all();
    }

    /// Cuts the power as soon as `operations` more have been submitted (at least one); `None` takes that back.
    pub fn crash_after(&self, operations: Option<u64>) {
        self.lock().crash_after(operations);
    }

    /// Whether any process lives: false after a crash, until the next [`World::driver`].
    #[must_use]
    pub fn running(&self) -> bool {
        self.lock().running()
    }

    /// How many operations were submitted so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Nanoseconds of virtual time since the world began.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.lock().now
    }

    /// Lets virtual time pass; what falls due happens.
    pub fn advance(&self, by: Duration) {
        self.lock().advance(by);
    }

    /// Every process stands still for so long, as under SIGSTOP; with `disks`, so does what is on its way to the disks, as
    /// in a virtual machine that is paused.
    pub fn suspend(&self, time: Duration, disks: bool) {
        self.lock().suspend(time, disks);
    }

    /// Makes a sleeping `poll` return at this time at the latest, so that a test can act then. Replaces an earlier one.
    pub fn set_alarm(&self, at: Option<u64>) {
        self.lock().alarm = at;
    }

    /// Sets how the disk at `path` behaves. Operations that a stall held back complete after it.
    pub fn set_condition(&self, path: &Path, condition: Condition) {
        self.lock().set_condition(path, condition);
    }

    /// How the disk at `path` behaves.
    #[must_use]
    pub fn condition(&self, path: &Path) -> Condition {
        let mut state = self.lock();
        let medium = state.medium_at(path);
        state.media[medium].condition
    }

    /// Prepares a fault for a write to the disk at `path` that is still to come.
    pub fn arm(&self, path: &Path, arm: Arm) {
        let mut state = self.lock();
        let medium = state.medium_at(path);
        state.arms.push((medium, arm));
    }

    /// Takes back every armed fault; returns how many had not met their write.
    pub fn disarm(&self) -> usize {
        std::mem::take(&mut self.lock().arms).len()
    }

    /// From now on the host refuses this.
    pub fn refuse(&self, refusal: Refusal) {
        let mut state = self.lock();
        let medium = refusal.disk.as_deref().map(|path| state.medium_at(path));
        state.note(|| format!("the host refuses: {refusal:?}"));
        state.refusals.push((medium, refusal));
    }

    /// The host refuses nothing any more that concerned this disk alone, or with `None` all disks.
    pub fn allow(&self, disk: Option<&Path>) {
        let mut state = self.lock();
        let before = state.refusals.len();
        state.refusals.retain(|(_, refusal)| refusal.disk.as_deref() != disk);
        if state.refusals.len() < before {
            state.note(|| format!("the host allows everything again: {disk:?}"));
        }
    }

    /// The most files that any process has open, with what its attached disks take.
    pub(super) fn open_files(&self) -> usize {
        let state = self.lock();
        let all = state.processes.values().map(|process| process.files.len() + 2 * process.disks.len());
        all.max().unwrap_or(0)
    }

    /// Whether a stage lasts and no operation is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        self.lock().is_quiet() && super::bugs::stages() != 0
    }

    /// How many changes processes have made to disks, how many of them failed, and what the last one was.
    pub(super) fn changes(&self) -> (u64, u64, String) {
        let state = self.lock();
        let changed = state.changed.as_ref().map(|(kind, file)| format!("{kind:?} of {file}"));
        (state.changes, state.failed_changes, changed.unwrap_or_default())
    }

    /// Puts an empty disk in the place of the one at `path`. A process that has the old one open keeps it.
    pub fn blank(&self, path: &Path) {
        self.lock().replace(path, &Image { files: Vec::new() }, FaultKind::Blank);
    }

    /// Exchanges two disks. A process that has one open keeps it.
    pub fn swap(&self, one: &Path, other: &Path) {
        self.lock().swap(one, other);
    }

    /// The disk at `path` as it is now.
    #[must_use]
    pub fn snapshot(&self, path: &Path) -> Image {
        let mut state = self.lock();
        let medium = state.medium_at(path);
        state.media[medium].image()
    }

    /// Puts an old state in the place of the disk at `path`. A process that has the disk open keeps what it has.
    pub fn restore(&self, path: &Path, image: &Image) {
        self.lock().replace(path, image, FaultKind::Stale);
    }

    /// Puts an old state in the place of the disk at `path`, as one of several.
    pub(super) fn put_back(&self, path: &Path, image: &Image) {
        self.lock().replace(path, image, FaultKind::PutBack);
    }

    /// Cuts a file short at `len`; returns whether it was longer.
    pub fn cut(&self, path: &Path, file: &str, len: u64) -> bool {
        self.lock().cut(path, file, len)
    }

    /// Takes a file's name away; a process that has it open keeps it. Returns whether there was one.
    pub fn unlink(&self, path: &Path, file: &str) -> bool {
        self.lock().unlink(path, file)
    }

    /// Flips one bit of a file at `path`; returns whether the file is that long.
    pub fn flip(&self, path: &Path, file: &str, offset: u64, bit: u8) -> bool {
        self.lock().flip(path, file, offset, bit)
    }

    /// Makes a range of a file unreadable until it is written again; returns whether there is such a file.
    pub fn spoil(&self, path: &Path, file: &str, range: Range<u64>) -> bool {
        self.lock().spoil(path, file, range)
    }

    /// Moves the wall clock by so many nanoseconds, either way.
    pub fn jump_wall(&self, by: i64) {
        self.lock().jump_wall(by);
    }

    /// The files of the disk at `path` with their lengths.
    #[must_use]
    pub fn files(&self, path: &Path) -> Vec<(String, u64)> {
        let mut state = self.lock();
        let medium = state.medium_at(path);
        let medium = &state.media[medium];
        medium.names.iter().map(|(name, inode)| (name.clone(), medium.inodes[inode].len())).collect()
    }

    /// The bytes that a file really has on the medium, whatever the disk's condition.
    #[must_use]
    pub fn bytes(&self, path: &Path, file: &str) -> Option<Vec<u8>> {
        let mut state = self.lock();
        let medium = state.medium_at(path);
        state.media[medium].named(file).map(super::medium::Inode::bytes)
    }

    /// A part of that, as far as the file reaches.
    pub(super) fn part(&self, path: &Path, file: &str, range: Range<u64>) -> Option<Vec<u8>> {
        let mut state = self.lock();
        let medium = state.medium_at(path);
        let inode = state.media[medium].named(file)?;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let len = inode.read(range.start, &mut bytes);
        bytes.truncate(len);
        Some(bytes)
    }

    /// How often each kind of fault bit.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<FaultKind, u64> {
        self.lock().counts.clone()
    }

    /// The faults that bit since the last call.
    #[must_use]
    pub fn take_fired(&self) -> Vec<Fired> {
        std::mem::take(&mut self.lock().fired)
    }

    /// A digest of every operation, its result and the time of both: equal for equal runs.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.lock().digest
    }

    /// The lines kept so far, where [`WorldOptions::trace`] asked for them.
    #[must_use]
    pub fn trace(&self) -> Vec<String> {
        self.lock().trace.clone().unwrap_or_default()
    }

    /// Adds a line to the trace, if one is kept.
    pub fn note(&self, line: impl FnOnce() -> String) {
        self.lock().note(line);
    }
}
