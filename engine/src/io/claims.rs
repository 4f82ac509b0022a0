//! Which directory each disk of a driver has, so that no two have the same one or one inside the
//! other.
#![allow(clippy::disallowed_methods, reason = "this is where paths are resolved")]

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::DiskIndex;

/// The directories of the disks that are attached or being attached.
#[derive(Default)]
pub(super) struct Claims(Mutex<BTreeMap<DiskIndex, Claim>>);

struct Claim {
    /// As it was given.
    path: PathBuf,
    /// Without symbolic links.
    canonical: PathBuf,
    /// Device and inode: a bind mount has another path, but not another inode.
    inode: (u64, u64),
}

impl Claims {
    /// Claims the directory for the disk. Blocks as long as the file system does: call it on a
    /// thread of the disk.
    ///
    /// # Errors
    /// `WouldBlock` with an [`Overlap`] when another disk has it; what the operating system says.
    pub(super) fn claim(&self, disk: DiskIndex, path: &Path) -> io::Result<()> {
        let canonical = path.canonicalize()?;
        let stat = std::fs::metadata(&canonical)?;
        let claim = Claim { path: path.to_owned(), canonical, inode: (stat.dev(), stat.ino()) };
        let mut claims = self.lock();
        let mut others = claims.iter().filter(|(other, _)| **other != disk);
        if let Some(overlap) = others.find_map(|(_, other)| claim.overlap(other)) {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, overlap));
        }
        claims.insert(disk, claim);
        Ok(())
    }

    /// The disk was detached or could not be attached.
    pub(super) fn release(&self, disk: DiskIndex) {
        self.lock().remove(&disk);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DiskIndex, Claim>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    fn overlap(&self, other: &Claim) -> Option<Overlap> {
        let [ours, theirs] = [self, other].map(|claim| claim.path.display());
        let what = if self.inode == other.inode {
            format!("{theirs} and {ours} are the same directory")
        } else if self.canonical.starts_with(&other.canonical) {
            format!("{ours} is inside {theirs}")
        } else if other.canonical.starts_with(&self.canonical) {
            format!("{theirs} is inside {ours}")
        } else {
            return None;
        };
        Some(Overlap(what))
    }
}

/// Two disks of one driver whose directories are the same, or one inside the other.
#[derive(Debug)]
struct Overlap(String);

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: give each disk a directory of its own, outside the others", self.0)
    }
}

impl std::error::Error for Overlap {}

/// Whether an attachment failed because another disk of the same driver has the directory.
pub(crate) fn is_overlap(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Overlap>())
}
