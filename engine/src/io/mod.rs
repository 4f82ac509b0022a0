//! The I/O seam: owned buffers go in, completions come out. Time, randomness, threads and files enter here only.
//!
//! A [`Driver`] belongs to the log thread. Its implementations are io_uring, a portable pool of threads, and the simulated
//! disk; one conformance suite runs on all of them. **Every write is durable when it completes**: there is no
//! flush to forget and none to order.

use std::any::Any;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

mod arena;
mod bell;
mod buffer;
mod claims;
mod clock;
#[cfg(any(test, feature = "sim"))]
pub mod conformance;
mod directory;
mod host;
mod lanes;
mod probe;
mod process;
#[cfg(test)]
mod tests;
mod threads;
#[cfg(all(feature = "uring", target_os = "linux"))]
mod uring;

pub use arena::Arena;
pub use buffer::{Buffer, BufferPool, Slice};
pub(crate) use claims::is_overlap;
#[cfg(feature = "sim")]
pub(crate) use directory::plain;
pub use probe::{DriverChoice, driver};
pub(crate) use process::Process;

/// How many reads and writes of one disk the kernel has at a time, at most: what a disk that hangs keeps until it answers.
pub(crate) const MAX_STUCK: usize = 16;
/// What the threads of one disk hold, at most: of each stack a few pages are used.
pub(crate) const MAX_STACKS: usize = lanes::MAX_THREADS * (64 << 10);

/// A disk of a region, by its place in the region's list of disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskIndex(pub usize);

/// An open file of one disk, named by the driver that opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// The caller's name for an operation in flight; comes back with its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// One I/O request. File names are plain names inside the disk's directory, never paths.
pub enum Op {
    /// Take the directory as disk `disk`: create it if `create`, lock it exclusively, probe what it can do.
    /// Fails with `WouldBlock` when the lock is held, by this process or another, when another disk
    /// of the driver has the directory, or when writes that a killed process left in flight are not
    /// over after ten seconds. Output: [`Output::Attached`].
    Attach {
        /// The number that later operations use.
        disk: DiskIndex,
        /// The directory.
        path: PathBuf,
        /// Create a missing directory.
        create: bool,
    },
    /// Close every file of the disk and give up its lock. Operations in flight still complete, and the lock is held until
    /// they have; this one does not wait for them, so that a disk that hangs can be let go. Output: [`Output::Done`].
    Detach {
        /// The disk to let go.
        disk: DiskIndex,
    },
    /// Every plain file of the disk with its length. Output: [`Output::Names`].
    List {
        /// The disk to list.
        disk: DiskIndex,
    },
    /// Open a file for reads and durable writes at aligned offsets. With `create`, make it (failing if it exists) with
    /// this length reserved, and flush the directory entry before completing. Output: [`Output::File`].
    Open {
        /// The disk.
        disk: DiskIndex,
        /// The file's name.
        name: String,
        /// The length to create it with; `None` opens an existing file.
        create: Option<u64>,
    },
    /// Read up to `len` bytes at `offset` from the medium (not from a cache, where the file system allows);
    /// both are multiples of 4096. Short at the end of the file. Output: [`Output::Read`].
    Read {
        /// The disk.
        disk: DiskIndex,
        /// The open file.
        file: FileId,
        /// Where to read.
        offset: u64,
        /// Receives the bytes; its capacity is at least `len`.
        buffer: Buffer,
        /// How many bytes to read.
        len: usize,
    },
    /// Write the whole slice at `offset`, durably: data and whatever metadata reading it back needs are on stable
    /// storage when this completes. Offset and length are multiples of 4096. A short write is an error. Output: [`Output::Done`].
    Write {
        /// The disk.
        disk: DiskIndex,
        /// The open file.
        file: FileId,
        /// Where to write.
        offset: u64,
        /// The bytes, shared with the writes of the same block to other disks.
        data: Slice,
    },
    /// Replace a small file as a whole, atomically and durably (temporary file, flush, rename, directory flush).
    /// Output: [`Output::Done`].
    WriteFile {
        /// The disk.
        disk: DiskIndex,
        /// The file's name.
        name: String,
        /// The new contents.
        bytes: Arc<Vec<u8>>,
    },
    /// Read a whole file; refuses (InvalidData) one longer than `limit` before allocating. Output: [`Output::Bytes`].
    ReadFile {
        /// The disk.
        disk: DiskIndex,
        /// The file's name.
        name: String,
        /// The largest length accepted.
        limit: u64,
    },
    /// Remove a file, after closing it where it is open; the directory is flushed. Output: [`Output::Done`].
    Remove {
        /// The disk.
        disk: DiskIndex,
        /// The file's name.
        name: String,
    },
    /// Bytes free and in all on the disk's file system; `NotFound` when the directory is no longer at its path or was emptied.
    /// Output: [`Output::Space`].
    Space {
        /// The disk.
        disk: DiskIndex,
    },
    /// Run a computation off the log thread. Output: [`Output::Computed`].
    Compute(Job),
}

impl Op {
    /// The disk that it is on; `None` for a computation.
    #[must_use]
    pub fn disk(&self) -> Option<DiskIndex> {
        match self {
            Op::Attach { disk, .. }
            | Op::Detach { disk }
            | Op::List { disk }
            | Op::Open { disk, .. }
            | Op::Read { disk, .. }
            | Op::Write { disk, .. }
            | Op::WriteFile { disk, .. }
            | Op::ReadFile { disk, .. }
            | Op::Remove { disk, .. }
            | Op::Space { disk } => Some(*disk),
            Op::Compute(_) => None,
        }
    }

    /// Whether it makes, changes or removes a file of the region. The lock's file is none: attaching a disk may make it.
    #[must_use]
    pub fn changes_files(&self) -> bool {
        match self {
            Op::Write { .. } | Op::WriteFile { .. } | Op::Remove { .. } => true,
            Op::Open { create, .. } => create.is_some(),
            Op::Attach { .. }
            | Op::Detach { .. }
            | Op::List { .. }
            | Op::Read { .. }
            | Op::ReadFile { .. }
            | Op::Space { .. }
            | Op::Compute(_) => false,
        }
    }
}

/// A computation for [`Op::Compute`].
pub type Job = Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>;

/// What an operation brought back.
pub enum Output {
    /// Nothing but success.
    Done,
    /// The disk is locked; what its directory can do.
    Attached(DiskTraits),
    /// Names and lengths.
    Names(Vec<(String, u64)>),
    /// The file is open.
    File(FileId),
    /// The buffer that went in, its length set to the bytes read.
    Read(Buffer),
    /// A whole file.
    Bytes(Vec<u8>),
    /// Bytes `free` and `total`.
    Space {
        /// Bytes that can still be written.
        free: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The value that the computation returned.
    Computed(Box<dyn Any + Send>),
}

/// What a disk's directory can do, found by trying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskTraits {
    /// Whether O_DIRECT works there.
    pub direct: bool,
}

/// A finished operation.
pub struct Completion {
    /// Which one.
    pub id: OpId,
    /// What came of it.
    pub result: io::Result<Output>,
}

/// An I/O back end, owned by the log thread.
pub trait Driver {
    /// What it is, for health and reports: `io_uring`, `threads`, `simulated`, with the reason where it was not the first choice.
    fn name(&self) -> String;

    /// Start an operation. Neither this nor [`Driver::poll`] ever waits for a disk: one that hangs holds up nothing but
    /// operations on itself, and only a bounded number of them is started. Operations on one file may complete in any order.
    fn submit(&mut self, id: OpId, op: Op);

    /// The disk is not expected to answer any more: what was not started there fails with `TimedOut`, and its memory is
    /// free. What was started completes when it does. A driver that starts everything at once has nothing to do.
    fn give_up(&mut self, disk: DiskIndex) {
        let _nothing_waits = disk;
    }

    /// Append what has finished. With `wait`, sleep until something finishes, the doorbell rings or the time is over;
    /// with `None`, only look. May wake spuriously, with nothing to append.
    fn poll(&mut self, wait: Option<Duration>, done: &mut Vec<Completion>);

    /// Wakes a `poll` that sleeps, from any thread.
    fn doorbell(&self) -> Arc<dyn Doorbell>;

    /// Positioned reads for other threads.
    fn reader(&self) -> Arc<dyn ReadAt>;

    /// Time and randomness.
    fn environment(&self) -> Arc<dyn Environment>;
}

/// Wakes the log thread.
pub trait Doorbell: Send + Sync {
    /// Make a sleeping [`Driver::poll`] return; if none sleeps, the next one returns at once.
    fn ring(&self);
}

/// Reads from any thread, through the page cache where there is one.
pub trait ReadAt: Send + Sync {
    /// Read at `offset` into `buf`; returns the bytes read, fewer only at the end of the file.
    ///
    /// # Errors
    /// What the operating system says; `NotFound` when the file is no longer open.
    fn read_at(&self, disk: DiskIndex, file: FileId, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Read a part of a file of an attached disk by its name; returns the bytes read, fewer only at
    /// the end of the file.
    ///
    /// # Errors
    /// What the operating system says; `NotFound` when the disk is not attached.
    fn read_named_at(&self, disk: DiskIndex, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
}

/// Time, randomness and limits of the process, real or simulated.
pub trait Environment: Send + Sync {
    /// Nanoseconds on a clock that never goes back.
    fn now(&self) -> u64;
    /// Nanoseconds since the Unix epoch. It may jump: no rule of safety uses it.
    fn wall(&self) -> u64;
    /// A random number for identities.
    fn random(&self) -> u128;
    /// The bytes that this process may write to one file (RLIMIT_FSIZE); `None` where nothing
    /// limits them.
    fn file_size_limit(&self) -> Option<u64> {
        None
    }
}
