//! What the simulated host refuses: opens, lists, reads, new files, descriptors, memory and threads, of one disk or of all.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use super::fault::{FaultKind, OpKind};
use super::state::State;

/// What the host forbids or lacks. The disk is in order; the same operation succeeds as soon as the refusal is lifted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Files that exist cannot be opened (EACCES): another user made them.
    Opens,
    /// Directories cannot be listed (EACCES).
    Lists,
    /// Reads fail (EPERM): a sandbox forbids them.
    Reads,
    /// No file can be made (EACCES, or EFBIG as under a limit on the size of files).
    Creates,
    /// The process has this many files open and may not open another (EMFILE).
    Descriptors(usize),
    /// No memory for what is read or opened (ENOMEM).
    Memory,
    /// No thread for an operation that needs one (EAGAIN).
    Threads,
}

impl Refused {
    pub(super) fn kind(self) -> FaultKind {
        match self {
            Refused::Opens => FaultKind::OpenRefused,
            Refused::Lists => FaultKind::ListRefused,
            Refused::Reads => FaultKind::ReadRefused,
            Refused::Creates => FaultKind::CreateRefused,
            Refused::Descriptors(_) => FaultKind::Descriptors,
            Refused::Memory => FaultKind::NoMemory,
            Refused::Threads => FaultKind::NoThreads,
        }
    }

    /// Whether this operation needs what is refused. What is written to open files, closed or let go always works.
    fn concerns(self, op: OpKind, open_files: usize) -> bool {
        use OpKind::{Attach, Compute, Create, List, Open, Read, ReadFile, Remove, Space, WriteFile};
        match self {
            Refused::Opens => matches!(op, Attach | Open | ReadFile),
            Refused::Lists => op == List,
            Refused::Reads => matches!(op, Read | ReadFile),
            Refused::Creates => matches!(op, Create | WriteFile),
            Refused::Descriptors(most) => {
                open_files >= most && matches!(op, Attach | List | Open | Create | ReadFile | WriteFile)
            }
            Refused::Memory => {
                matches!(op, Attach | List | Open | Create | Read | ReadFile | WriteFile | Compute)
            }
            Refused::Threads => {
                matches!(op, Attach | List | Open | Create | ReadFile | WriteFile | Remove | Space | Compute)
            }
        }
    }

    fn errno(self, rng: &mut fastrand::Rng) -> Errno {
        match self {
            Refused::Opens | Refused::Lists => Errno::ACCESS,
            Refused::Reads => Errno::PERM,
            Refused::Creates => [Errno::ACCESS, Errno::FBIG][rng.usize(..2)],
            Refused::Descriptors(_) => Errno::MFILE,
            Refused::Memory => Errno::NOMEM,
            Refused::Threads => Errno::AGAIN,
        }
    }
}

/// A refusal that lasts until it is lifted.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What is refused.
    pub what: Refused,
    /// The directory of the disk that it concerns; `None` for all, and for what is on no disk.
    pub disk: Option<PathBuf>,
    /// Only these files; none for everything.
    pub files: Vec<String>,
}

impl State {
    /// Fails an operation that the host refuses.
    pub(super) fn refuse(&mut self, process: u64, medium: Option<usize>, op: OpKind, file: &str) -> io::Result<()> {
        let Some(what) = self.refusal(process, medium, op, file) else { return Ok(()) };
        self.fire(what.kind(), medium, Some(op), file);
        Err(what.errno(&mut self.rng).into())
    }

    /// What stands in the way of an operation.
    pub(super) fn refusal(&self, process: u64, medium: Option<usize>, op: OpKind, file: &str) -> Option<Refused> {
        if self.refusals.is_empty() {
            return None;
        }
        // A disk's directory and its lock are open as long as it is attached.
        let open = self.processes.get(&process).map_or(0, |process| process.files.len() + 2 * process.disks.len());
        let meets = |(disk, refusal): &&(Option<usize>, Refusal)| {
            (disk.is_none() || *disk == medium)
                && (refusal.files.is_empty() || refusal.files.iter().any(|name| name == file))
                && refusal.what.concerns(op, open)
        };
        self.refusals.iter().find(meets).map(|(_, refusal)| refusal.what)
    }
}
