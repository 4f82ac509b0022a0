//! The run's folder: its disks, room for them, and cleaning up.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::machine::free_bytes;
use crate::report::{Report, bytes};
use crate::say;

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

/// A run with its directories. Reports stay; what it made on the disks is removed when it ends with all checks holding, and
/// kept as evidence otherwise.
pub(crate) struct Run {
    out: PathBuf,
    disks: Vec<PathBuf>,
    keep: bool,
    /// The run is over and all that it checked holds, or it wrote nothing to its disks yet.
    clean: bool,
    /// Directories that this run made and takes away again.
    made: Vec<PathBuf>,
    /// Hold the output directory and the named disks for this run alone, as long as it lives.
    _locks: Vec<File>,
}

/// The file that says that a folder is ours to clear, and what is in it.
const MARKER: &str = "MERIDIAN-BENCH";
const MARKS: &str = "meridian-bench made this folder, and clears it with all that is in it when it runs again.\n";

/// A process that is being started has what this one had open, locks among them, until it is itself: a run before may be over all the same.
const STARTING: Duration = Duration::from_millis(200);

/// Takes a directory for this run. The directory itself is locked: nothing is left in it.
fn take(dir: &Path, option: &str) -> Result<File, String> {
    let failed = |error: io::Error| format!("cannot lock {}: {error}", dir.display());
    let lock = File::open(dir).map_err(failed)?;
    let end = Instant::now() + STARTING;
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
            Err(Errno::WOULDBLOCK) => {
                return Err(format!("another run uses {}: name another place with {option}", dir.display()));
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Refuses a directory that is named twice, by whatever path: two copies in it would be one.
fn refuse_twins(named: &[PathBuf]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for disk in named {
        // It may be made first: a link to it, or a path with dots, can only be told then.
        let place = fs::create_dir_all(disk).and_then(|()| fs::canonicalize(disk));
        let place = place.map_err(|error| format!("cannot make {}: {error}", disk.display()))?;
        if !seen.insert(place) {
            return Err(format!("{} is named twice in --disks", disk.display()));
        }
    }
    Ok(())
}

/// Makes the folder `work` new and empty; takes one away that was made here before, and nothing else.
fn renew(work: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot clear {}: {error}", work.display());
    if fs::symlink_metadata(work).is_ok() {
        let mut inside = fs::read_dir(work).map_err(failed)?;
        if inside.next().is_some() && !work.join(MARKER).is_file() {
            let name = work.display();
            return Err(format!("{name} holds something and no file {MARKER}: nothing says that it may be cleared"));
        }
        fs::remove_dir_all(work).map_err(failed)?;
    }
    let made = fs::create_dir_all(work).and_then(|()| fs::write(work.join(MARKER), MARKS));
    made.map_err(|error| format!("cannot make {}: {error}", work.display()))
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
        refuse_twins(named)?;
        let out = &place.out;
        fs::create_dir_all(out).map_err(|error| format!("cannot make {}: {error}", out.display()))?;
        let mut locks = vec![take(out, "--out")?];
        for disk in named {
            locks.push(take(disk, "--disks")?);
        }
        forget_reports(out).map_err(|error| format!("cannot clear {}: {error}", out.display()))?;
        let mut run =
            Run { out: out.clone(), keep: place.keep, clean: true, disks: Vec::new(), made: Vec::new(), _locks: locks };
        for number in 1..=count.max(named.len()) {
            let disk = match named.get(number - 1) {
                Some(disk) => disk.clone(),
                None if named.is_empty() => out.join("disks").join(format!("disk-{number}")),
                None => break,
            };
            // Nothing outside a folder of our own name and with our own mark is ever removed.
            let work = disk.join("meridian-bench");
            renew(&work)?;
            run.made.push(work.clone());
            run.disks.push(work);
        }
        run.check_room(room)?;
        run.clean = false;
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

    /// Writes the report, says where it is, and takes the disks away if all checks hold.
    ///
    /// # Errors
    /// A message with what the file system says.
    pub(crate) fn finish(mut self, report: &Report) -> Result<(), String> {
        report.write(&self.out).map_err(|error| format!("cannot write the report: {error}"))?;
        say!("report: {}", self.out.join("report.html").display());
        self.clean = report.holds();
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

/// Takes away what an earlier run reported here: if this one comes to no report, no other is taken for its.
fn forget_reports(out: &Path) -> io::Result<()> {
    for entry in fs::read_dir(out)? {
        let path = entry?.path();
        let named = path.file_name().is_some_and(|name| name == "report.html" || name == "report.json");
        if named || path.extension().is_some_and(|extension| extension == "hgrm") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.clean {
            let names: Vec<String> = self.disks.iter().map(|disk| disk.display().to_string()).collect();
            say::complain(format_args!("the run did not end well: its disks are kept in {}\n", names.join(", ")));
        }
        if self.keep || !self.clean {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine;
    use crate::report::Check;

    fn place(out: &Path) -> Place {
        Place { out: out.to_path_buf(), keep: false }
    }

    fn report(holds: bool) -> Report {
        let mut report = Report::new("a run", "of a test", machine::describe(&[]));
        report.checks.push(Check { claim: "it holds".to_string(), holds, detail: String::new() });
        report
    }

    #[test]
    fn the_disks_go_when_all_holds_and_stay_as_evidence_when_a_check_fails_or_the_run_does_not_end() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = dir.path().join("disks/disk-1/meridian-bench");
        let run = || Run::start(&place(dir.path()), &[], 0).expect("started");
        run().finish(&report(true)).expect("finished");
        assert!(!dir.path().join("disks").exists() && dir.path().join("report.html").is_file());
        run().finish(&report(false)).expect("finished");
        assert!(disk.is_dir() && dir.path().join("report.html").is_file());
        run().finish(&report(true)).expect("finished");
        assert!(!disk.exists(), "the next run clears what was kept");
        drop(run());
        assert!(disk.is_dir(), "an error's evidence");
    }

    #[test]
    fn a_run_without_a_report_leaves_none_of_an_earlier_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Run::start(&place(dir.path()), &[], 0).expect("started").finish(&report(true)).expect("finished");
        let written = ["report.html", "report.json", "log.hgrm", "notes.txt"].map(|name| dir.path().join(name));
        written[2..].iter().for_each(|path| fs::write(path, "x").expect("written"));
        drop(Run::start(&place(dir.path()), &[], 0).expect("started"));
        assert_eq!(written.map(|path| path.exists()), [false, false, false, true], "only a run's own files go");
    }

    #[test]
    fn a_folder_that_no_run_made_is_not_cleared() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let named = ["a", "b", "c"].map(|name| dir.path().join(name));
        let precious = named[1].join("meridian-bench/precious");
        fs::create_dir_all(precious.parent().expect("a folder")).expect("made");
        let run = || Run::start(&place(&dir.path().join("out")), &named, 0);
        run().expect("an empty one is as good as none").finish(&report(true)).expect("finished");
        fs::create_dir_all(precious.parent().expect("a folder")).expect("made");
        fs::write(&precious, "x").expect("written");
        assert!(run().is_err_and(|why| why.contains(MARKER) && why.contains("b/meridian-bench")));
        assert!(precious.is_file());
        fs::remove_file(&precious).expect("removed");
        // Its own leftovers, as of a run that was killed.
        drop(run().expect("started"));
        fs::write(&precious, "x").expect("written");
        let out = Place { out: dir.path().join("other"), keep: false };
        drop(Run::start(&out, &named, 0).expect("cleared"));
        assert!(!precious.exists());
    }

    #[test]
    fn two_runs_do_not_share_an_output_directory() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = Run::start(&place(dir.path()), &[], 0).expect("started");
        let kept = dir.path().join("disks/disk-1/meridian-bench/kept");
        fs::write(&kept, "x").expect("written");
        assert!(Run::start(&place(dir.path()), &[], 0).is_err_and(|why| why.contains("another run uses")));
        assert!(kept.is_file(), "the refused one touched nothing");
        first.finish(&report(true)).expect("finished");
        drop(Run::start(&place(dir.path()), &[], 0).expect("it is free again"));
    }

    #[test]
    fn two_runs_do_not_share_a_disk() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let named = ["a", "b", "c"].map(|name| dir.path().join(name));
        let start = |out: &str| Run::start(&place(&dir.path().join(out)), &named, 0);
        let first = start("one").expect("started");
        assert!(start("two").is_err_and(|why| why.contains("another run uses") && why.contains("--disks")));
        first.finish(&report(true)).expect("finished");
        drop(start("two").expect("they are free again"));
    }

    #[test]
    fn a_run_that_finds_too_little_room_leaves_nothing_on_its_disks() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(Run::start(&place(dir.path()), &[], u64::MAX / 8).is_err_and(|why| why.contains("the run needs")));
        assert!(!dir.path().join("disks").exists());
    }
}
