//! Disks that stop answering under load: a frozen file system, a block device whose requests never complete (acceptance H3).
//!
//! Needs root. Each run takes seconds; `MERIDIAN_HUNG_SECONDS=600` makes it minutes.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use meridian::{Ack, DiskState, DriverChoice, ErrorKind, Options, PartitionId, Region, Transaction};

use crate::images::{Image, Kind};
use crate::order::{has, options};

/// After this long without an answer a disk is given up.
const STALL: Duration = Duration::from_secs(1);
/// What a hung disk may cost beside that.
const BESIDE: Duration = Duration::from_millis(50);
/// What `health()` may take.
const HEALTH: Duration = Duration::from_secs(1);

/// How a disk stops answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hang {
    /// Its file system is frozen: writes wait in the file system.
    Frozen,
    /// The file below its loop device lies on a frozen file system: no request to the device is answered.
    Dead,
}

/// A disk that can be made to hang.
struct Hangs {
    image: Image,
    /// The file system that is frozen instead, for a dead device.
    below: Option<Image>,
}

impl Hangs {
    fn new(hang: Hang, dir: &Path, name: &str) -> Result<Hangs, String> {
        let below = match hang {
            Hang::Frozen => None,
            Hang::Dead => Some(Image::of_size(Kind::Ext4, dir, &format!("{name}-below"), "320M")?),
        };
        let dir = below.as_ref().map_or(dir, |below| &below.mount);
        Ok(Hangs { image: Image::of_size(Kind::Ext4, dir, name, "256M")?, below })
    }

    fn hang(&self) -> Frozen {
        Frozen::new(&self.below.as_ref().unwrap_or(&self.image).mount)
    }
}

/// A frozen file system. It is thawed when this is dropped; and by the child process when this process ends, when either
/// gets a signal, and at the latest when `time()` has passed twice. A process that is killed may not end before that.
struct Frozen {
    child: Child,
}

impl Frozen {
    fn new(mount: &Path) -> Frozen {
        let script = r#"trap '' TERM INT HUP; fsfreeze -f "$0" && echo frozen; timeout "$1" head -c 1 > /dev/null; fsfreeze -u "$0""#;
        let most = (2 * time() + Duration::from_secs(60)).as_secs().to_string();
        let mut child = Command::new("sh")
            .args(["-c", script, mount.to_str().unwrap(), &most])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "frozen", "fsfreeze works on {}", mount.display());
        Frozen { child }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Some(mut input) = self.child.stdin.take() {
            drop(input.write_all(b"thaw\n"));
        }
        drop(self.child.wait());
    }
}

/// The disks of one run, its region, and what was measured.
struct Run {
    // Dropped first: its files keep the images busy.
    region: Option<Region>,
    disks: Vec<Hangs>,
    options: Options,
    record: usize,
    committed: AtomicU64,
    stop: AtomicBool,
    /// The longest time without an answer since the last look.
    gap: Mutex<Gap>,
    /// The longest that [`WRITES`] durable writes beside the disks took, in microseconds: what the machine itself adds.
    beat: AtomicU64,
    dir: tempfile::TempDir,
}

/// A change of the set is about this many durable writes, one after the other.
const WRITES: usize = 6;

struct Gap {
    last: Instant,
    longest: Duration,
}

impl Run {
    fn new(count: usize, hangs: &[(usize, Hang)], driver: DriverChoice, record: usize) -> Option<Run> {
        if !has(driver) {
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            println!("skipped: disks that hang need root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let hang = |at| hangs.iter().find(|(disk, _)| *disk == at).map_or(Hang::Frozen, |(_, hang)| *hang);
        let disks: Result<Vec<Hangs>, String> =
            (0..count).map(|at| Hangs::new(hang(at), dir.path(), &format!("disk-{at}"))).collect();
        let disks = match disks {
            Ok(disks) => disks,
            Err(error) => {
                println!("skipped: no file systems in files here: {error}");
                return None;
            }
        };
        let paths: Vec<PathBuf> = disks.iter().map(|disk| disk.image.disk()).collect();
        let mut options = options(&paths, driver);
        options.segment_bytes = 1 << 20;
        options.stall_timeout = STALL;
        options.lag_bytes = 256 << 20;
        let region = Region::create(options.clone(), ()).unwrap();
        region.create_account("load", Ack::Quorum).unwrap();
        let gap = Mutex::new(Gap { last: Instant::now(), longest: Duration::ZERO });
        let (committed, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let beat = AtomicU64::new(0);
        Some(Run { region: Some(region), disks, options, record, committed, stop, gap, beat, dir })
    }

    fn region(&self) -> &Region {
        self.region.as_ref().unwrap()
    }

    /// Commits one after the other until told to stop; trims, so that the disks never fill.
    fn write(&self) {
        let account = self.region().accounts().unwrap()[0].id;
        self.answered();
        while !self.stop.load(Ordering::Relaxed) {
            let transaction = Transaction::new(account, PartitionId(1)).record(vec![7; self.record]);
            self.region().commit(transaction).expect("commits go on");
            self.committed.fetch_add(1, Ordering::Relaxed);
            self.answered();
        }
    }

    fn answered(&self) {
        let mut gap = self.gap.lock().unwrap();
        gap.longest = gap.longest.max(gap.last.elapsed());
        gap.last = Instant::now();
    }

    /// The longest time without an answer since the last call, that which is under way included.
    fn gap(&self) -> Duration {
        let mut gap = self.gap.lock().unwrap();
        std::mem::take(&mut gap.longest).max(gap.last.elapsed())
    }

    /// Writes durably, again and again, beside the disks that hang, and notes how long the last writes took together.
    fn beat(&self) {
        let file = std::fs::File::create(self.dir.path().join("beat")).unwrap();
        let mut last = [Duration::ZERO; WRITES];
        for at in (0..WRITES).cycle() {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let start = Instant::now();
            file.write_all_at(&[1; 4096], 0).and_then(|()| file.sync_data()).unwrap();
            last[at] = start.elapsed();
            let all: Duration = last.iter().sum();
            self.beat.fetch_max(all.as_micros() as u64, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn trim(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let committed = self.region().committed();
            drop(self.region().trim(committed));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs `during` beside the load. A panic in it ends the load, too.
    fn load(&self, during: impl FnOnce()) {
        struct Stops<'a>(&'a AtomicBool);
        impl Drop for Stops<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        self.stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let _stops = Stops(&self.stop);
            scope.spawn(|| self.write());
            scope.spawn(|| self.trim());
            scope.spawn(|| self.beat());
            during();
        });
    }

    fn health(&self) -> meridian::Health {
        let asked = Instant::now();
        let health = self.region().health().unwrap();
        assert!(asked.elapsed() < HEALTH, "health() took {:?}: {health:#?}", asked.elapsed());
        health
    }

    /// For `time`, and on a busy machine until two segments are filled, looks on: commits go on, `health()` answers, nothing halts.
    fn look_on(&self, time: Duration, what: &str) {
        let (start, before) = (Instant::now(), self.committed.load(Ordering::Relaxed));
        let active = self.health().active;
        self.gap();
        self.beat.store(0, Ordering::Relaxed);
        let mut longest = Duration::ZERO;
        let mut filled = 0;
        while start.elapsed() < time || (filled < 2 && start.elapsed() < time + Duration::from_secs(45)) {
            longest = longest.max(self.gap());
            let health = self.health();
            filled = health.active.0 - active.0;
            assert_eq!(health.halted, None);
            let most = STALL + BESIDE + Duration::from_micros(self.beat.load(Ordering::Relaxed));
            assert!(longest <= most, "no commit for {longest:?}, more than {most:?}, with {what}: {health:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let health = self.health();
        let commits = self.committed.load(Ordering::Relaxed) - before;
        let segments = health.active.0 - active.0;
        let beat = Duration::from_micros(self.beat.load(Ordering::Relaxed));
        println!(
            "{what}: {commits} commits, {segments} segments; longest pause {longest:?}; accepted are {STALL:?}, {BESIDE:?}, and \
             {beat:?} for the longest {WRITES} durable writes beside the disks"
        );
        assert!(segments >= 2, "segments are filled while it hangs");
    }

    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(60), "no {what} in 60 s: {:#?}", self.region().health());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_whole(&self) -> bool {
        let health = self.health();
        health.is_whole() && health.disks.iter().all(|disk| disk.state == DiskState::Healthy)
    }

    /// Every disk counts again, and new segments have three copies. Older ones are whole when the load leaves time for it: there
    /// is always one that was sealed a moment ago.
    fn serves(&self) -> bool {
        let health = self.health();
        !health.degraded && health.disks.iter().all(|disk| disk.state == DiskState::Healthy)
    }

    /// Opens the region while a disk hangs, and commits without it.
    fn open_without(&mut self, disk: usize, what: &str) {
        let start = Instant::now();
        self.region = Some(Region::open(self.options.clone(), ()).unwrap());
        let took = start.elapsed();
        assert!(took < 3 * STALL, "{what}: opened after {took:?}");
        let state = self.health().disks[disk].clone();
        assert!(state.state == DiskState::Stalled && !state.in_set, "{what}: {state:?}");
        println!("{what}: opened after {took:?} without the disk: {}", state.reason);
        let before = self.region().health().unwrap().active.0;
        self.load(|| self.until("segments filled", || self.health().active.0 >= before + 2));
    }

    fn close(&mut self, what: &str) {
        let start = Instant::now();
        self.region.take().unwrap().close().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{what}: closed after {:?}", start.elapsed());
    }

    /// Takes the disk back as soon as its last operations have returned.
    fn take_back(&self, disk: usize) {
        self.until("return", || match self.region().return_disk(disk) {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
                false
            }
        });
    }

    /// Every copy verifies, and the region opens again with everything.
    fn check(mut self) {
        let report = self.region().scrub().unwrap();
        assert!(report.corrupt == 0 && report.lost.is_empty(), "{report:?}");
        let committed = self.region().committed();
        self.region.take().unwrap().close().unwrap();
        let region = Region::open(self.options.clone(), ()).unwrap();
        assert!(region.committed() >= committed, "{} of {committed}", region.committed());
        region.close().unwrap();
    }
}

/// How long a disk hangs.
fn time() -> Duration {
    let seconds = std::env::var("MERIDIAN_HUNG_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(5))
}

/// A second disk hangs when the first was given up: three are left.
fn two_hang(hangs: [Hang; 2], driver: DriverChoice, record: usize) {
    let Some(run) = Run::new(5, &[(0, hangs[0]), (3, hangs[1])], driver, record) else { return };
    run.load(|| {
        run.until("load", || run.health().active.0 >= 3);
        let first = run.disks[0].hang();
        run.look_on(time() / 2, &format!("{driver:?}, {:?}, records of {record}, the first", hangs[0]));
        assert_eq!(run.health().disks[0].state, DiskState::Stalled);
        run.until("a member that hangs", || run.health().disks[3].in_set);
        let second = run.disks[3].hang();
        run.look_on(time() / 2, &format!("{driver:?}, {:?}, records of {record}, the second", hangs[1]));
        assert_eq!(run.health().disks[3].state, DiskState::Stalled);
        drop((first, second));
        run.take_back(0);
        run.take_back(3);
        run.until("return into the set", || run.serves());
    });
    run.until("whole sets", || run.is_whole());
    run.check();
}

#[test]
fn h3_second_disk_that_hangs_later_holds_up_no_commit() {
    two_hang([Hang::Frozen, Hang::Dead], DriverChoice::Uring, 20_000);
    two_hang([Hang::Dead, Hang::Frozen], DriverChoice::Threads, 20_000);
}

/// The region is closed while a disk hangs: nobody waits for the disk. It opens again without it.
#[test]
fn h3_region_with_a_hung_disk_closes_and_opens_again() {
    for driver in [DriverChoice::Uring, DriverChoice::Threads] {
        for hang in [Hang::Frozen, Hang::Dead] {
            let Some(mut run) = Run::new(3, &[(1, hang)], driver, 1_000) else { return };
            let what = format!("{driver:?}, {hang:?} under load");
            run.load(|| run.until("load", || run.health().active.0 >= 3));
            let frozen = run.disks[1].hang();
            run.load(|| run.until("loss", || run.health().disks[1].state == DiskState::Stalled));
            let committed = run.region().committed();
            run.close(&what);
            run.open_without(1, &what);
            assert!(run.region().committed() >= committed);
            run.close(&what);
            drop(frozen);
            run.region = Some(Region::open(run.options.clone(), ()).unwrap());
            run.until("whole sets", || run.is_whole());
            run.check();
        }
    }
}

/// The disk hangs before the region is opened; later it is taken back.
#[test]
fn h3_region_opens_without_a_disk_that_hangs() {
    for driver in [DriverChoice::Uring, DriverChoice::Threads] {
        for hang in [Hang::Frozen, Hang::Dead] {
            let Some(mut run) = Run::new(3, &[(1, hang)], driver, 1_000) else { return };
            let what = format!("{driver:?}, {hang:?} at rest");
            run.load(|| run.until("load", || run.health().active.0 >= 3));
            run.close(&what);
            let frozen = run.disks[1].hang();
            run.open_without(1, &what);
            let start = Instant::now();
            assert_eq!(run.region().return_disk(1).unwrap_err().kind(), ErrorKind::Busy);
            assert!(start.elapsed() < Duration::from_secs(1), "{what}: an answer after {:?}", start.elapsed());
            drop(frozen);
            run.take_back(1);
            run.until("whole sets", || run.is_whole());
            run.check();
        }
    }
}

fn one_hangs(hang: Hang, driver: DriverChoice, record: usize) {
    let Some(run) = Run::new(3, &[(2, hang)], driver, record) else { return };
    let what = format!("{driver:?}, {hang:?}, records of {record}");
    run.load(|| {
        run.until("load", || run.health().active.0 >= 3);
        let frozen = run.disks[2].hang();
        run.look_on(time(), &what);
        let disk = run.health().disks[2].clone();
        assert!(disk.state == DiskState::Stalled && !disk.in_set, "{disk:?}");
        drop(frozen);
        run.take_back(2);
        run.until("return into the set", || run.serves());
    });
    run.until("whole sets", || run.is_whole());
    run.check();
}

#[test]
fn h3_frozen_disk_holds_up_no_commit_on_io_uring() {
    one_hangs(Hang::Frozen, DriverChoice::Uring, 100);
    one_hangs(Hang::Frozen, DriverChoice::Uring, 70_000);
}

#[test]
fn h3_frozen_disk_holds_up_no_commit_on_threads() {
    one_hangs(Hang::Frozen, DriverChoice::Threads, 100);
    one_hangs(Hang::Frozen, DriverChoice::Threads, 70_000);
}

#[test]
fn h3_dead_device_holds_up_no_commit_on_io_uring() {
    one_hangs(Hang::Dead, DriverChoice::Uring, 100);
    one_hangs(Hang::Dead, DriverChoice::Uring, 70_000);
}

#[test]
fn h3_dead_device_holds_up_no_commit_on_threads() {
    one_hangs(Hang::Dead, DriverChoice::Threads, 100);
    one_hangs(Hang::Dead, DriverChoice::Threads, 70_000);
}
