//! What could not be looked at, and whose fault that is: the host's, which refuses an opening, or one disk's, which
//! leaves that disk out of it (ADR 0021).

use std::fmt;
use std::io;

use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::format::SUPERBLOCK_SLOT;
use crate::health::DiskState;
use crate::io::DiskIndex;
use crate::log::Log;
use crate::log::disk::Disk;

/// Descriptors that a disk needs beside its slots: directory, lock, superblock, files read or replaced as a whole.
const FILES_PER_DISK: u64 = 8;
/// Descriptors that the process itself needs: standard streams, the driver, libraries.
const OTHER_FILES: u64 = 64;

/// An error of the system's and what it was about, as one text.
#[derive(Debug)]
struct Explained {
    text: String,
    error: io::Error,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Explained {}

/// The system's number of an error, also of one that was explained.
pub(crate) fn errno(error: &io::Error) -> Option<i32> {
    let explained = || error.get_ref()?.downcast_ref::<Explained>()?.error.raw_os_error();
    error.raw_os_error().or_else(explained)
}

/// Whether the process or the host lacked something (descriptors, memory, threads, locks, bytes of
/// a file), so that the error says nothing about the disk.
pub(crate) fn is_host_lack(error: &io::Error) -> bool {
    let lacks = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::NOLCK, Errno::FBIG];
    match errno(error) {
        Some(code) => lacks.iter().any(|errno| errno.raw_os_error() == code),
        None => matches!(error.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::ResourceBusy),
    }
}

/// Whether the disk did not answer in time.
pub(crate) fn is_unanswered(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut
}

/// How a disk stands after an operation failed: it did not answer, or it refused.
pub(crate) fn state_after(error: &io::Error) -> DiskState {
    if is_unanswered(error) { DiskState::Stalled } else { DiskState::Failed }
}

impl Log {
    /// The refusal of an opening for which the host lacks something.
    pub(crate) fn host_lacks(&self, disk: DiskIndex, what: &str, error: &io::Error) -> Error {
        let (path, wanted) = (self.names(&[disk.0]), self.remedy(error));
        let message = format!("{path}: {what}: {error}. The disk is not at fault: {wanted}, then try again");
        Error::new(ErrorKind::System, message)
    }

    /// The same error with what it is about, and with the remedy where the host lacks something.
    pub(crate) fn explain(&self, what: &str, error: io::Error) -> io::Error {
        let remedy = if is_host_lack(&error) { format!(": {}", self.remedy(&error)) } else { String::new() };
        io::Error::new(error.kind(), Explained { text: format!("{what}: {error}{remedy}"), error })
    }

    /// Refuses a process that may not write a segment's file: found out later, it would look like
    /// disks that fail.
    pub(crate) fn check_file_size_limit(&self) -> Result<()> {
        let wanted = self.largest_file();
        match self.ops.environment().file_size_limit() {
            Some(limit) if limit < wanted => {
                let message =
                    format!("files of {wanted} bytes cannot be written: {}, then try again", self.file_remedy());
                Err(Error::new(ErrorKind::System, message))
            }
            _ => Ok(()),
        }
    }

    /// The bytes of the largest file that every region has.
    fn largest_file(&self) -> u64 {
        u64::from(self.options.segment_bytes).max(2 * SUPERBLOCK_SLOT as u64)
    }

    fn file_remedy(&self) -> String {
        let wanted = self.largest_file();
        match self.ops.environment().file_size_limit() {
            Some(limit) => format!(
                "raise this process's limit on file sizes (RLIMIT_FSIZE, `ulimit -f`), which is {limit} bytes, to at least {}",
                wanted.max(limit.saturating_add(1))
            ),
            None => format!("use a file system that takes files of {wanted} bytes"),
        }
    }

    /// What ends a lack of the host's.
    fn remedy(&self, error: &io::Error) -> String {
        match errno(error).map(Errno::from_raw_os_error) {
            Some(Errno::MFILE) => {
                let slots: u64 = self.disks.borrow().iter().map(|disk| u64::from(disk.slots)).sum();
                let disks = self.options.disks.len() as u64;
                let files = 2 * slots + FILES_PER_DISK * disks + OTHER_FILES;
                format!("raise this process's limit on open files (RLIMIT_NOFILE) to at least {files}")
            }
            Some(Errno::NFILE) => "raise the host's limit on open files".to_owned(),
            Some(Errno::NOLCK) => "raise the host's limit on file locks".to_owned(),
            Some(Errno::FBIG) => self.file_remedy(),
            Some(Errno::AGAIN) => "raise the limit on threads".to_owned(),
            _ if error.kind() == io::ErrorKind::ResourceBusy => "wait until the stuck threads have ended".to_owned(),
            _ => "give the process more memory".to_owned(),
        }
    }

    /// The refusal where fewer than two disks can be used: which ones take nothing, and why.
    pub(crate) fn too_few_disks(&self, kind: ErrorKind) -> Error {
        let message = "fewer than two usable disks in different domains: restore disks or add space";
        Error::new(kind, format!("{message} ({})", self.refusals()))
    }

    /// The disks that take no segment, and why, for messages.
    pub(crate) fn refusals(&self) -> String {
        self.disks.borrow().iter().filter_map(Disk::refusal).collect::<Vec<_>>().join(", ")
    }
}
