//! A real directory as a disk: locked, probed, its files opened and replaced. Every call here may block.
#![allow(clippy::disallowed_methods, reason = "this is where files are opened")]

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::{Buffer, DiskIndex, DiskTraits, Slice};

/// O_DIRECT's alignment, of offsets, lengths and addresses.
pub(super) const ALIGN: usize = 4096;
/// The file whose lock is the disk's.
const LOCK: &str = "LOCK";
/// How long an attachment pauses where it waits,
const PAUSE: Duration = Duration::from_millis(1);
/// how often at most for the last writes of a killed process,
const PREDECESSOR_PAUSES: u32 = 10_000;
/// and how often for a process that is being started.
const STARTING_PAUSES: u32 = 200;
/// The highest descriptor that whoever prints takes for a stream of the process.
const STANDARD_ERROR: RawFd = 2;
/// Appended to a file's name for the copy that will replace it.
const TEMPORARY: &str = ".tmp";

#[cfg(target_os = "linux")]
const DURABLE: OFlags = OFlags::DSYNC;
/// Elsewhere every write is followed by a flush.
#[cfg(not(target_os = "linux"))]
const DURABLE: OFlags = OFlags::empty();

#[cfg(target_os = "linux")]
const DIRECT: OFlags = OFlags::DIRECT;
#[cfg(not(target_os = "linux"))]
const DIRECT: OFlags = OFlags::empty();

/// A locked directory. The lock ends with the last of its open files and operations.
pub(super) struct Directory {
    /// Where it was found.
    path: PathBuf,
    dir: File,
    /// Holds the disk's lock.
    lock: Unlocking,
    traits: DiskTraits,
    /// The kernel keeps writes to different files of this file system apart: see [`writes_apart`].
    #[cfg_attr(not(all(feature = "uring", target_os = "linux")), expect(dead_code, reason = "only the ring asks"))]
    apart: bool,
    /// One replacement at a time, so that two never share a temporary file.
    replacing: Mutex<()>,
}

impl Directory {
    pub(super) fn attach(path: &Path) -> io::Result<Directory> {
        let dir = File::from(retry_on_intr(|| {
            rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        })?);
        let lock = open_lock(&dir)?;
        // A process that this one is starting has the lock of what was just closed here until it runs its own program.
        outwait(&lock, STARTING_PAUSES, "the directory is locked by another opener")?;
        let traits = DiskTraits { direct: probe_direct(&dir)? };
        let (apart, path) = (traits.direct && writes_apart(&dir), path.to_owned());
        let replacing = Mutex::new(());
        let directory = Directory { path, dir, lock: Unlocking(lock), traits, apart, replacing };
        directory.outwait_predecessor()?;
        Ok(directory)
    }

    /// As on a file system that refuses O_DIRECT.
    #[cfg(test)]
    pub(super) fn attach_buffered(path: &Path) -> io::Result<Directory> {
        let directory = Directory::attach(path)?;
        Ok(Directory { traits: DiskTraits { direct: false }, apart: false, ..directory })
    }

    /// Waits for writes that a killed process left in flight. io_uring finishes them after the process is gone and its
    /// lock with it; but each file with one under way is still open then, and keeps the shared lock that every open
    /// data file has.
    fn outwait_predecessor(&self) -> io::Result<()> {
        let mut pauses = PREDECESSOR_PAUSES;
        for (name, _) in self.list()? {
            // The lock's file is locked by us.
            if name == LOCK {
                continue;
            }
            let file = match self.openat(&name, OFlags::RDONLY) {
                Ok(file) => file,
                // Another user's file. If it is the region's, the region is refused it when it opens it, and leaves
                // this disk out; if it is not, no engine writes to it.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => continue,
                Err(error) => return Err(error),
            };
            pauses -= outwait(&file, pauses, "writes of the previous process are still under way")?;
        }
        Ok(())
    }

    pub(super) fn traits(&self) -> &DiskTraits {
        &self.traits
    }

    pub(super) fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.dir)? {
            let entry = entry?;
            // The region's own names are ASCII: one that is not readable is another's.
            let Ok(name) = entry.file_name().to_str() else { continue };
            match rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() => {
                    names.push((name.to_owned(), u64::try_from(stat.st_size).unwrap_or(0)));
                }
                // Removed between the two calls: it was looked for, and is not there.
                Ok(_) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(names)
    }

    /// Opens a file, or makes it with `create` bytes reserved.
    pub(super) fn open(
        self: &Arc<Directory>,
        disk: DiskIndex,
        name: &str,
        create: Option<u64>,
    ) -> io::Result<OpenFile> {
        plain(name)?;
        let direct = if self.traits.direct { DIRECT } else { OFlags::empty() };
        let flags = DURABLE | direct;
        let (file, writable) = match create {
            Some(len) => {
                let file = self.openat(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | flags)?;
                if let Err(error) = reserve(&file, len).and_then(|()| file.sync_all()).and_then(|()| self.sync()) {
                    // Not to leave half a file behind; the first error is the one to tell.
                    let _ = self.remove(name);
                    return Err(error);
                }
                (file, true)
            }
            None => match self.openat(name, OFlags::RDWR | flags) {
                // A file system that has become read-only can still be read.
                Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
                    (self.openat(name, OFlags::RDONLY | direct)?, false)
                }
                result => (result?, true),
            },
        };
        // For who comes after us: see `outwait_predecessor`.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)?;
        Ok(OpenFile {
            directory: Arc::clone(self),
            disk,
            name: name.to_owned(),
            file: Unlocking(file),
            writable,
            cached: OnceLock::new(),
            forgotten: AtomicBool::new(false),
        })
    }

    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        plain(name)?;
        check_file_limit(bytes.len() as u64)?;
        let _one = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let temporary = format!("{name}{TEMPORARY}");
        let mut file = self.openat(&temporary, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        if let Err(error) = written {
            let _ = rustix::fs::unlinkat(&self.dir, temporary.as_str(), AtFlags::empty());
            return Err(error);
        }
        rustix::fs::renameat(&self.dir, temporary.as_str(), &self.dir, name)?;
        self.sync()
    }

    pub(super) fn read_file(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        plain(name)?;
        let file = self.openat(name, OFlags::RDONLY)?;
        let too_long = || io::Error::new(ErrorKind::InvalidData, "the file is longer than the limit");
        let len = file.metadata()?.len();
        if len > limit {
            return Err(too_long());
        }
        let len = usize::try_from(len).map_err(|_| too_long())?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| ErrorKind::OutOfMemory)?;
        file.take(len as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a part of a file through the page cache, from any thread.
    pub(super) fn read_named_at(&self, name: &str, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        plain(name)?;
        read_full(&self.openat(name, OFlags::RDONLY)?, offset, out)
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        plain(name)?;
        rustix::fs::unlinkat(&self.dir, name, AtFlags::empty())?;
        self.sync()
    }

    /// Bytes that an ordinary user can still write, and bytes in all. `NotFound` when the directory is no longer at its path, or
    /// was emptied: what is written to it is lost when it is closed.
    pub(super) fn space(&self) -> io::Result<(u64, u64)> {
        self.check_place()?;
        let stat = rustix::fs::fstatvfs(&self.dir)?;
        Ok((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
    }

    fn check_place(&self) -> io::Result<()> {
        let gone = |what: &str| Err(io::Error::new(ErrorKind::NotFound, what));
        if self.lock.0.metadata()?.nlink() == 0 {
            return gone("its files were removed");
        }
        let held = self.dir.metadata()?;
        match std::fs::metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => Ok(()),
            Ok(_) => gone("another directory is in its place"),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                gone("it was removed or renamed")
            }
            Err(error) => Err(error),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.dir.sync_all()
    }

    fn openat(&self, name: &str, flags: OFlags) -> io::Result<File> {
        openat(&self.dir, name, flags)
    }
}

/// A file whose lock ends with it. To close it is not enough: a child that was forked meanwhile has the same open file.
struct Unlocking(File);

impl Drop for Unlocking {
    fn drop(&mut self) {
        // It is closed next, which unlocks it where no child has it.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// An open file of a locked directory.
pub(super) struct OpenFile {
    /// Keeps the lock for as long as something is under way here.
    directory: Arc<Directory>,
    disk: DiskIndex,
    name: String,
    file: Unlocking,
    writable: bool,
    /// A second descriptor for reads through the page cache, opened when the first of them comes.
    cached: OnceLock<File>,
    /// It is in no table any more: whoever holds it last closes it.
    forgotten: AtomicBool,
}

impl OpenFile {
    /// Something to read from that may never answer.
    #[cfg(test)]
    pub(super) fn of_pipe(path: &Path, pipe: OwnedFd) -> io::Result<OpenFile> {
        let directory = Arc::new(Directory::attach(path)?);
        let (file, cached) = (Unlocking(File::from(pipe)), OnceLock::new());
        let forgotten = AtomicBool::new(false);
        Ok(OpenFile { directory, disk: DiskIndex(0), name: "pipe".to_owned(), file, writable: true, cached, forgotten })
    }

    /// As [`OpenFile::of_pipe`], on another disk.
    #[cfg(test)]
    pub(super) fn on_disk(mut self, disk: DiskIndex) -> OpenFile {
        self.disk = disk;
        self
    }

    /// Whether reads and writes may go through the ring: see [`writes_apart`].
    #[cfg(all(feature = "uring", target_os = "linux"))]
    pub(super) fn is_apart(&self) -> bool {
        self.directory.apart
    }

    /// Notes that no table holds it any more.
    pub(super) fn forget(&self) {
        self.forgotten.store(true, Ordering::Relaxed);
    }

    /// Whether dropping it may close it, which a disk that hangs does not let happen: not on the log thread then.
    pub(super) fn is_forgotten(&self) -> bool {
        self.forgotten.load(Ordering::Relaxed)
    }

    pub(super) fn disk(&self) -> DiskIndex {
        self.disk
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Refuses a read that the medium or the buffer cannot serve.
    pub(super) fn check_read(&self, offset: u64, len: usize, buffer: &Buffer) -> io::Result<()> {
        aligned(offset, len)?;
        if len > buffer.capacity() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "the buffer is smaller than the read"));
        }
        Ok(())
    }

    /// Refuses a write that the medium cannot take.
    pub(super) fn check_write(&self, offset: u64, data: &Slice) -> io::Result<()> {
        aligned(offset, data.len())?;
        if !data.as_ptr().addr().is_multiple_of(ALIGN) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "the bytes do not begin at a multiple of 4096"));
        }
        if !self.writable {
            return Err(Errno::ROFS.into());
        }
        check_file_limit(offset + data.len() as u64)
    }

    /// Fills the buffer from `offset` up to `len` bytes or the end of the file; its length says how many.
    pub(super) fn read(&self, offset: u64, len: usize, mut buffer: Buffer) -> io::Result<Buffer> {
        self.check_read(offset, len, &buffer)?;
        buffer.set_len(len);
        let read = read_full(&self.file.0, offset, &mut buffer)?;
        buffer.set_len(read);
        Ok(buffer)
    }

    pub(super) fn write(&self, offset: u64, data: &Slice) -> io::Result<()> {
        self.check_write(offset, data)?;
        self.file.0.write_all_at(data, offset)?;
        if cfg!(not(target_os = "linux")) {
            self.file.0.sync_data()?;
        }
        Ok(())
    }

    /// Reads through the page cache, from any thread.
    pub(super) fn read_cached(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let file = match self.cached.get() {
            Some(file) => file,
            None => {
                let file = self.reopen()?;
                self.cached.get_or_init(|| file)
            }
        };
        read_full(file, offset, out)
    }

    fn reopen(&self) -> io::Result<File> {
        let file = self.directory.openat(&self.name, OFlags::RDONLY)?;
        let (opened, ours) = (file.metadata()?, self.file.0.metadata()?);
        if (opened.dev(), opened.ino()) != (ours.dev(), ours.ino()) {
            return Err(io::Error::new(ErrorKind::NotFound, "the name belongs to another file now"));
        }
        Ok(file)
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.0.as_fd()
    }
}

/// Reads until `out` is full or the file ends.
fn read_full(file: &File, offset: u64, out: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < out.len() {
        match file.read_at(&mut out[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        // Only the end of a file has no multiple of the alignment, and a direct read cannot begin there.
        if !done.is_multiple_of(ALIGN) && done < out.len() && is_direct(file) {
            break;
        }
    }
    Ok(done)
}

/// Whether the kernel's workers write to files of this file system side by side. They put writes to other file systems in
/// line, in a few lines that all disks share: one that hangs would hold up those behind it, of whatever disk (ADR 0020).
#[cfg(target_os = "linux")]
fn writes_apart(dir: &File) -> bool {
    const EXT4: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    rustix::fs::fstatfs(dir).is_ok_and(|stat| [EXT4, XFS].contains(&stat.f_type))
}

#[cfg(not(target_os = "linux"))]
fn writes_apart(_: &File) -> bool {
    false
}

fn is_direct(file: &File) -> bool {
    !DIRECT.is_empty() && rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(DIRECT))
}

/// Refuses what is not aligned, empty, or beyond any file.
fn aligned(offset: u64, len: usize) -> io::Result<()> {
    let end = offset.checked_add(len as u64).filter(|end| i64::try_from(*end).is_ok());
    if len == 0 || !len.is_multiple_of(ALIGN) || !offset.is_multiple_of(ALIGN as u64) || end.is_none() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "offset and length are not multiples of 4096"));
    }
    if u32::try_from(len).is_err() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "one operation moves less than 4 GiB"));
    }
    Ok(())
}

/// Refuses a name that would leave the directory, or is the lock's.
pub(crate) fn plain(name: &str) -> io::Result<()> {
    let odd = name.is_empty() || name.contains(['/', '\0']) || name == "." || name == "..";
    if odd || name == LOCK || name.len() + TEMPORARY.len() > 255 {
        return Err(io::Error::new(ErrorKind::InvalidInput, format!("{name:?} is not a plain file name")));
    }
    Ok(())
}

/// Moves a file to a descriptor above `number`, unless it has one. A host that closed its standard streams may go on
/// printing to their numbers: that must not land in a file of ours.
fn above(file: OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    if file.as_raw_fd() > number {
        return Ok(file);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(&file, number + 1)?)
}

/// Opens a plain file, and nothing else: not a link out of the directory, nor a pipe that would block.
fn openat(dir: &File, name: &str, flags: OFlags) -> io::Result<File> {
    let (mode, flags) = (Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH, flags | OFlags::CLOEXEC);
    let open = || rustix::fs::openat(dir, name, flags | OFlags::NOFOLLOW | OFlags::NONBLOCK, mode);
    let file = File::from(above(retry_on_intr(open)?, STANDARD_ERROR)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "not a plain file"));
    }
    // Only the opening was not to block.
    rustix::fs::fcntl_setfl(&file, rustix::fs::fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

/// Refuses a file that would end beyond what this process may write (RLIMIT_FSIZE). The system would send SIGXFSZ, which ends a process
/// that does nothing about it.
fn check_file_limit(end: u64) -> io::Result<()> {
    match file_size_limit() {
        Some(limit) if end > limit => Err(Errno::FBIG.into()),
        _ => Ok(()),
    }
}

/// The bytes that this process may write to one file; `None` without a limit.
pub(super) fn file_size_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Fsize).current
}

/// Makes a directory and what is missing above it, each entry flushed.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Ok(()) => {}
        // Whether it is a directory shows when it is opened.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let above = path.parent().filter(|above| !above.as_os_str().is_empty()).ok_or(error)?;
            make_directory(above)?;
            std::fs::create_dir(path)?;
        }
        // On a read-only file system an existing directory will do.
        Err(_) if path.is_dir() => return Ok(()),
        Err(error) => return Err(error),
    }
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(above)?.sync_all()
}

/// Takes the lock, after so many pauses at most; returns how many it took.
fn outwait(file: &File, pauses: u32, what: &'static str) -> io::Result<u32> {
    for paused in 0.. {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(paused),
            Err(Errno::WOULDBLOCK) if paused < pauses => std::thread::sleep(PAUSE),
            Err(Errno::WOULDBLOCK) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::Error::new(ErrorKind::WouldBlock, what))
}

fn open_lock(dir: &File) -> io::Result<File> {
    match openat(dir, LOCK, OFlags::RDWR | OFlags::CREATE) {
        // A disk that takes no writes can still be locked and read.
        Err(error) if matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::StorageFull) => {
            openat(dir, LOCK, OFlags::RDONLY)
        }
        result => result,
    }
}

/// Tries O_DIRECT on the lock's file, which is nobody else's now. It holds nothing of the region, so an opening that is
/// refused afterwards may have written its page.
fn probe_direct(dir: &File) -> io::Result<bool> {
    if DIRECT.is_empty() {
        return Ok(false);
    }
    let refused = |error: &io::Error| matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported);
    let file = match openat(dir, LOCK, OFlags::RDWR | DIRECT) {
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => openat(dir, LOCK, OFlags::RDONLY | DIRECT),
        result => result,
    };
    let file = match file {
        Err(error) if refused(&error) => return Ok(false),
        result => result?,
    };
    let mut page = Buffer::zeroed(ALIGN)?;
    check_file_limit(ALIGN as u64)?;
    if file.metadata()?.len() < ALIGN as u64 {
        match file.write_all_at(&page, 0) {
            Err(error) if refused(&error) => return Ok(false),
            // No room, or not writable: reading will tell as well.
            Ok(()) | Err(_) => {}
        }
    }
    match file.read_at(&mut page, 0) {
        Err(error) if refused(&error) => Ok(false),
        result => result.map(|_| true),
    }
}

/// Reserves `len` bytes; where the file system cannot, it only gets its length.
fn reserve(file: &File, len: u64) -> io::Result<()> {
    check_file_limit(len)?;
    #[cfg(target_os = "linux")]
    if len > 0 {
        let reserve = || rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len);
        // It takes long enough to be interrupted by the host's signals.
        match retry_on_intr(reserve) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            result => return Ok(result?),
        }
    }
    file.set_len(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h4_another_directory_in_its_place_is_noticed() {
        let root = tempfile::tempdir().expect("a directory");
        let (path, away) = (root.path().join("disk"), root.path().join("away"));
        make_directory(&path).expect("make");
        let directory = Directory::attach(&path).expect("attach");
        directory.space().expect("it is in its place");
        std::fs::rename(&path, &away).expect("rename");
        std::fs::create_dir(&path).expect("another");
        let error = directory.space().expect_err("another is there");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("another directory"), "{error}");
        std::fs::remove_dir(&path).expect("remove");
        std::fs::rename(&away, &path).expect("rename");
        directory.space().expect("it is back");
    }

    #[test]
    fn h4_descriptors_of_standard_streams_are_left_alone() {
        let file = tempfile::tempfile().expect("a file");
        rustix::io::pwrite(&file, b"mine", 0).expect("write");
        let number = file.as_raw_fd();
        let moved = above(file.into(), number + 20).expect("a descriptor");
        assert!(moved.as_raw_fd() > number + 20);
        let mut bytes = [0; 4];
        rustix::io::pread(&moved, &mut bytes, 0).expect("read");
        assert_eq!(&bytes, b"mine", "it is the same file");
        assert!(rustix::io::fcntl_getfd(&moved).expect("flags").contains(rustix::io::FdFlags::CLOEXEC));
        let stays = moved.as_raw_fd();
        assert_eq!(above(moved, STANDARD_ERROR).expect("the same").as_raw_fd(), stays);
    }
}
