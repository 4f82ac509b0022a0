//! What could not be looked at, and whose fault that is: the host's, which refuses an opening, or one disk's, which
//! leaves that disk out of it (ADR 0021).

use std::io;

use rustix::io::Errno;

use crate::error::{Error, ErrorKind};
use crate::health::DiskState;
use crate::io::DiskIndex;
use crate::log::Log;

/// Descriptors that a disk needs beside its slots: directory, lock, superblock, files read or replaced as a whole.
const FILES_PER_DISK: u64 = 8;
/// Descriptors that the process itself needs: standard streams, the driver, libraries.
const OTHER_FILES: u64 = 64;

/// Whether the process or the host lacked something (descriptors, memory, threads, locks), so that the error says
/// nothing about the disk.
pub(crate) fn is_host_lack(error: &io::Error) -> bool {
    let lacks = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::NOLCK];
    match error.raw_os_error() {
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
        let path = self.names(&[disk.0]);
        let wanted = match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::MFILE) => {
                let slots: u64 = self.disks.borrow().iter().map(|disk| u64::from(disk.slots)).sum();
                let disks = self.options.disks.len() as u64;
                let files = 2 * slots + FILES_PER_DISK * disks + OTHER_FILES;
                format!("raise this process's limit on open files (RLIMIT_NOFILE) to at least {files}")
            }
            Some(Errno::NFILE) => "raise the host's limit on open files".to_owned(),
            Some(Errno::NOLCK) => "raise the host's limit on file locks".to_owned(),
            Some(Errno::AGAIN) => "raise the limit on threads".to_owned(),
            _ if error.kind() == io::ErrorKind::ResourceBusy => "wait until the stuck threads have ended".to_owned(),
            _ => "give the process more memory".to_owned(),
        };
        let message = format!("{path}: {what}: {error}. The disk is not at fault: {wanted}, then try again");
        Error::new(ErrorKind::System, message)
    }
}
