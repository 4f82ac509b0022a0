//! The faults inside the model, as things that a test can do to a simulated disk, and the record of when each one bit.

use std::path::PathBuf;

use super::bugs::Stage;

/// Every kind of fault that the fault model names, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// The process died, or the power went, with nothing in flight.
    Crash,
    /// The same with operations in flight.
    CrashInFlight,
    /// A write in flight at a crash landed in some of its sectors only.
    TornByCrash,
    /// A later write survived a crash, an earlier one to the same disk did not.
    Reordered,
    /// Every operation fails.
    Lost,
    /// The disk came back empty.
    Blank,
    /// Two disks changed places.
    Swapped,
    /// The disk came back in an old state.
    Stale,
    /// No space.
    Full,
    /// Operations take many times longer.
    Slow,
    /// Operations do not complete.
    Stalled,
    /// Writes are refused.
    ReadOnly,
    /// A write reported success and landed in some of its sectors only.
    Torn,
    /// A write reported success and did not land.
    LostWrite,
    /// A write reported success and landed somewhere else.
    Misdirected,
    /// A bit on the medium flipped.
    BitRot,
    /// A range cannot be read.
    LatentRead,
    /// A durable write failed; the next one there "succeeds" and is dropped.
    FailedFlush,
    /// Wall time jumped.
    ClockJump,
    /// The process stood still for a while, and perhaps its disks.
    Suspended,
    /// The host did not let a file be opened.
    OpenRefused,
    /// The process had as many files open as it may have.
    Descriptors,
    /// The host did not let a directory be listed.
    ListRefused,
    /// The host did not let a file be read.
    ReadRefused,
    /// The host did not let a file be made.
    CreateRefused,
    /// The host had no memory for an operation.
    NoMemory,
    /// The host had no thread for an operation.
    NoThreads,
    /// A file was cut short.
    ShortFile,
    /// A file lost its name.
    GoneFile,
    /// Several disks, or all of them, were put back to older images.
    PutBack,
    /// Wall time was off by years.
    ClockYears,
    /// The process died for the hundredth time or later.
    ManyLives,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [FaultKind; 32] = [
        FaultKind::Crash,
        FaultKind::CrashInFlight,
        FaultKind::TornByCrash,
        FaultKind::Reordered,
        FaultKind::Lost,
        FaultKind::Blank,
        FaultKind::Swapped,
        FaultKind::Stale,
        FaultKind::Full,
        FaultKind::Slow,
        FaultKind::Stalled,
        FaultKind::ReadOnly,
        FaultKind::Torn,
        FaultKind::LostWrite,
        FaultKind::Misdirected,
        FaultKind::BitRot,
        FaultKind::LatentRead,
        FaultKind::FailedFlush,
        FaultKind::ClockJump,
        FaultKind::Suspended,
        FaultKind::OpenRefused,
        FaultKind::Descriptors,
        FaultKind::ListRefused,
        FaultKind::ReadRefused,
        FaultKind::CreateRefused,
        FaultKind::NoMemory,
        FaultKind::NoThreads,
        FaultKind::ShortFile,
        FaultKind::GoneFile,
        FaultKind::PutBack,
        FaultKind::ClockYears,
        FaultKind::ManyLives,
    ];
}

/// How a disk behaves until it is told otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// As it should.
    #[default]
    Healthy,
    /// Every operation fails with EIO; attaching fails.
    Lost,
    /// Nothing can be created or grown (ENOSPC); space already reserved can be overwritten.
    Full,
    /// Every write fails with ENOSPC, as on a thin-provisioned volume.
    FullForAll,
    /// Every write, creation and removal fails with EROFS.
    ReadOnly,
    /// Every operation takes this many times longer.
    Slow(u32),
    /// Operations do not complete until the condition changes.
    Stalled,
}

impl Condition {
    pub(super) fn kind(self) -> Option<FaultKind> {
        Some(match self {
            Condition::Healthy => return None,
            Condition::Lost => FaultKind::Lost,
            Condition::Full | Condition::FullForAll => FaultKind::Full,
            Condition::ReadOnly => FaultKind::ReadOnly,
            Condition::Slow(_) => FaultKind::Slow,
            Condition::Stalled => FaultKind::Stalled,
        })
    }
}

/// What happens to the write that an [`Arm`] meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArmedFault {
    /// Some sectors land; success is reported.
    Torn,
    /// Nothing lands; success is reported.
    Lost,
    /// It lands at another place of the same disk; success is reported.
    Misdirected,
    /// EIO is reported, some sectors land, and the next write to the same pages is dropped although it reports success.
    FailedFlush,
}

impl ArmedFault {
    pub(super) fn kind(self) -> FaultKind {
        match self {
            ArmedFault::Torn => FaultKind::Torn,
            ArmedFault::Lost => FaultKind::LostWrite,
            ArmedFault::Misdirected => FaultKind::Misdirected,
            ArmedFault::FailedFlush => FaultKind::FailedFlush,
        }
    }
}

/// A fault that waits for a write.
#[derive(Clone, Debug)]
pub struct Arm {
    /// What happens.
    pub fault: ArmedFault,
    /// Only writes to files whose name starts so.
    pub prefix: String,
    /// How many matching writes to let pass first.
    pub skip: u32,
}

/// The kinds of operation, as the record of faults and the trace name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpKind {
    /// [`Op::Attach`](crate::io::Op::Attach)
    Attach,
    /// [`Op::Detach`](crate::io::Op::Detach)
    Detach,
    /// [`Op::List`](crate::io::Op::List)
    List,
    /// [`Op::Open`](crate::io::Op::Open) of an existing file
    Open,
    /// [`Op::Open`](crate::io::Op::Open) that creates
    Create,
    /// [`Op::Read`](crate::io::Op::Read)
    Read,
    /// [`Op::Write`](crate::io::Op::Write)
    Write,
    /// [`Op::WriteFile`](crate::io::Op::WriteFile)
    WriteFile,
    /// [`Op::ReadFile`](crate::io::Op::ReadFile)
    ReadFile,
    /// [`Op::Remove`](crate::io::Op::Remove)
    Remove,
    /// [`Op::Space`](crate::io::Op::Space)
    Space,
    /// [`Op::Compute`](crate::io::Op::Compute)
    Compute,
}

/// A fault that bit: what, where, and the operation that met it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fired {
    /// The kind.
    pub kind: FaultKind,
    /// The directory of the disk; `None` when it concerns no single disk.
    pub disk: Option<PathBuf>,
    /// The operation that met it; `None` when it happened by itself.
    pub op: Option<OpKind>,
    /// The file that the operation concerned, if any.
    pub file: String,
    pub(super) stages: u16,
    /// Whether the operation is the write of a block.
    pub(super) append: bool,
}

impl Fired {
    /// What the engine was doing.
    pub fn stages(&self) -> impl Iterator<Item = Stage> + use<> {
        let bits = self.stages;
        Stage::ALL.into_iter().filter(move |stage| bits & 1 << *stage as u16 != 0)
    }
}
