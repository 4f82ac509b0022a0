//! Small file systems in files, mounted through loop devices. Needs root.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Runs a command, or says what it said.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let out = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned());
    }
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&out.stderr).trim()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
        }
    }

    /// Makes the file system. xfs takes 300 MiB at least; the files are sparse.
    fn make(self, file: &str, size: &str) -> Result<String, String> {
        match self {
            Kind::Ext4 => run("truncate", &["-s", size, file]).and_then(|_| {
                run(
                    "mkfs.ext4",
                    &["-q", "-F", "-b", "4096", "-m", "0", "-J", "size=8", "-E", "packed_meta_blocks=1", file],
                )
            }),
            Kind::Xfs => run("truncate", &["-s", "320M", file]).and_then(|_| run("mkfs.xfs", &["-q", "-f", file])),
        }
    }
}

/// One file system, mounted; unmounted and gone when dropped, also by a panic.
pub(crate) struct Image {
    kind: Kind,
    pub(crate) file: PathBuf,
    pub(crate) mount: PathBuf,
    device: String,
}

impl Image {
    fn new(kind: Kind, dir: &Path, name: &str) -> Result<Image, String> {
        Image::of_size(kind, dir, name, "128M")
    }

    pub(crate) fn of_size(kind: Kind, dir: &Path, name: &str, size: &str) -> Result<Image, String> {
        let (file, mount) = (dir.join(format!("{name}.image")), dir.join(name));
        std::fs::create_dir(&mount).unwrap();
        kind.make(file.to_str().unwrap(), size)?;
        let device = run("losetup", &["--find", "--show", "--direct-io=on", file.to_str().unwrap()])?;
        let image = Image { kind, file, mount, device };
        image.mount()?;
        Ok(image)
    }

    /// The directory on it that becomes a disk.
    pub(crate) fn disk(&self) -> PathBuf {
        self.mount.join("disk")
    }

    pub(crate) fn mount(&self) -> Result<String, String> {
        run("mount", &["-t", self.kind.name(), &self.device, self.mount.to_str().unwrap()])
    }

    /// Unmounts; fails while a file is open there.
    pub(crate) fn unmount(&self) -> Result<String, String> {
        run("umount", &[self.mount.to_str().unwrap()])
    }

    /// FS_IOC_SHUTDOWN without flushing the journal: what was not flushed is lost, as in a power loss.
    pub(crate) fn shut_down(&self) {
        run("xfs_io", &["-x", "-c", "shutdown", self.mount.to_str().unwrap()]).unwrap();
    }

    /// Makes it read-only with files open for writing, as ext4 does by itself after an error.
    pub(crate) fn turn_read_only(&self) {
        run("mount", &["-o", "remount,abort", self.mount.to_str().unwrap()]).unwrap();
    }

    /// Takes all its space but for about `left` bytes.
    pub(crate) fn fill(&self, left: u64) {
        let stat = rustix::fs::statvfs(&self.mount).unwrap();
        let len = (stat.f_bavail * stat.f_frsize).saturating_sub(left);
        let ballast = self.mount.join("ballast");
        run("fallocate", &["-l", &len.to_string(), ballast.to_str().unwrap()]).unwrap();
    }

    /// Makes everything behind the third page of the slot that is the `nth` from the end unreadable, whatever lies
    /// there: the loop device answers reads behind the end of its file with EIO. Writes there succeed and can be read.
    pub(crate) fn lose_sectors(&self, nth: usize) {
        let mut starts: Vec<u64> = std::fs::read_dir(self.disk())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("slot-"))
            .map(|path| first_block(&path))
            .collect();
        starts.sort_unstable();
        let cut = (starts[starts.len() - nth] + 3) * 4096;
        self.unmount().unwrap();
        std::fs::OpenOptions::new().write(true).open(&self.file).unwrap().set_len(cut).unwrap();
        self.mount().unwrap();
    }

    pub(crate) fn empty(&self) {
        std::fs::remove_file(self.mount.join("ballast")).unwrap();
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Each may be done already.
        for (program, argument) in [("umount", "-l"), ("losetup", "-d")] {
            let target = if program == "umount" { self.mount.to_str().unwrap() } else { &self.device };
            if let (Err(error), false) = (run(program, &[argument, target]), std::thread::panicking()) {
                println!("left behind: {error}");
            }
        }
    }
}

/// Where a file begins on its file system, in blocks of 4096 bytes.
fn first_block(path: &Path) -> u64 {
    let extents = run("filefrag", &["-v", "-b4096", path.to_str().unwrap()]).unwrap();
    let first = extents.lines().find(|line| line.trim_start().starts_with("0:")).unwrap();
    let physical = first.split(':').nth(2).unwrap();
    physical.split("..").next().unwrap().trim().parse().unwrap()
}

/// Three of them. None, said aloud, where they cannot be had.
pub(crate) fn three(kind: Kind) -> Option<(Vec<Image>, TempDir)> {
    let dir = tempfile::tempdir().unwrap();
    if !rustix::process::geteuid().is_root() {
        println!("skipped: mounting {kind:?} images needs root");
        return None;
    }
    for tool in ["xfs_io", "filefrag", "fallocate"] {
        if let Err(error) = Command::new(tool).arg("-V").output() {
            println!("skipped: no {kind:?} images here: {tool}: {error}");
            return None;
        }
    }
    let images: Result<Vec<Image>, String> =
        ["a", "b", "c"].iter().map(|name| Image::new(kind, dir.path(), name)).collect();
    match images {
        Ok(images) => Some((images, dir)),
        Err(error) => {
            println!("skipped: no {kind:?} images here: {error}");
            None
        }
    }
}
