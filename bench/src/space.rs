//! The run's folder: its disks, room for them, and cleaning up.

use std::fs;
use std::path::{Path, PathBuf};

use crate::machine::free_bytes;
use crate::report::{Report, bytes};

/// Directories that stand for disks when none are named.
const DISKS: usize = 3;

/// Where a run keeps its things, and whether it leaves them there.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The output directory.
    pub(crate) out: PathBuf,
    /// Do not take the disks away.
    pub(crate) keep: bool,
}

/// A run with its directories; what it made in them is removed when it ends, reports stay.
pub(crate) struct Run {
    out: PathBuf,
    disks: Vec<PathBuf>,
    keep: bool,
    /// Directories that this run made and takes away again.
    made: Vec<PathBuf>,
}

impl Run {
    /// Makes the output directory and the disks: the `named` ones, or three below the output directory.
    ///
    /// # Errors
    /// A message when fewer than three are named, or less than `room` bytes a disk can be written.
    pub(crate) fn start(place: &Place, named: &[PathBuf], room: u64) -> Result<Run, String> {
        Run::with_disks(place, named, DISKS, room)
    }

    /// As [`Run::start`], with `count` disks when none are named.
    ///
    /// # Errors
    /// As [`Run::start`].
    pub(crate) fn with_disks(place: &Place, named: &[PathBuf], count: usize, room: u64) -> Result<Run, String> {
        if !named.is_empty() && named.len() < DISKS {
            return Err(format!("{} disks are named; a region needs at least {DISKS}", named.len()));
        }
        let make =
            |path: &Path| fs::create_dir_all(path).map_err(|error| format!("cannot make {}: {error}", path.display()));
        let out = &place.out;
        make(out)?;
        let mut run = Run { out: out.clone(), keep: place.keep, disks: Vec::new(), made: Vec::new() };
        for number in 1..=count.max(named.len()) {
            let disk = match named.get(number - 1) {
                Some(disk) => disk.clone(),
                None if named.is_empty() => out.join("disks").join(format!("disk-{number}")),
                None => break,
            };
            // Only below a folder of our own name is anything ever removed.
            let work = disk.join("meridian-bench");
            if work.exists() {
                fs::remove_dir_all(&work).map_err(|error| format!("cannot clear {}: {error}", work.display()))?;
            }
            make(&work)?;
            run.made.push(work.clone());
            run.disks.push(work);
        }
        run.check_room(room)?;
        Ok(run)
    }

    /// The disks' directories.
    pub(crate) fn disks(&self) -> &[PathBuf] {
        &self.disks
    }

    /// The output directory.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// Writes the report, says where it is, and takes the disks away.
    ///
    /// # Errors
    /// A message with what the file system says.
    pub(crate) fn finish(self, report: &Report) -> Result<(), String> {
        report.write(&self.out).map_err(|error| format!("cannot write the report: {error}"))?;
        println!("report: {}", self.out.join("report.html").display());
        Ok(())
    }

    /// Refuses to start where a file system could fill up: `room` bytes for each disk that it holds.
    fn check_room(&self, room: u64) -> Result<(), String> {
        let device = |path: &Path| rustix::fs::stat(path).map_or(0, |stat| stat.st_dev);
        for disk in &self.disks {
            let sharing = self.disks.iter().filter(|other| device(other) == device(disk)).count() as u64;
            let (free, needed) = (free_bytes(disk), room * sharing);
            if free < needed {
                return Err(format!(
                    "{} has {} free and the run needs {}; name a larger place with --out or --disks",
                    disk.display(),
                    bytes(free as f64),
                    bytes(needed as f64)
                ));
            }
        }
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        for path in &self.made {
            // What cannot be removed now is removed at the next start.
            let _ = fs::remove_dir_all(path);
        }
        for parent in self.made.iter().filter_map(|path| path.parent()) {
            // Only empty ones go: `remove_dir` refuses others.
            let ours = parent.starts_with(self.out.join("disks"));
            let _ = ours.then(|| fs::remove_dir(parent));
        }
        let _ = fs::remove_dir(self.out.join("disks"));
    }
}
