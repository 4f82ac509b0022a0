//! File systems in memory, where O_DIRECT may be refused: the engine works there, and health says so.

use std::path::Path;
use std::sync::Mutex;

use meridian::{Ack, DriverChoice, Region};

use crate::images::run;
use crate::ledger::{Keeper, Ledger};
use crate::load::Writer;
use crate::order::{has, options};

/// Whether a file can be opened with O_DIRECT there, found without the engine.
fn takes_direct(dir: &Path) -> bool {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::DIRECT;
    rustix::fs::open(dir.join("probe"), flags, Mode::RUSR | Mode::WUSR).is_ok()
}

/// Commits, opens again and checks, with each driver; returns whether health says that O_DIRECT works there.
fn commits_and_recovers(base: &Path, driver: DriverChoice) -> bool {
    let disks: Vec<_> = (0..3).map(|at| base.join(format!("disk-{at}"))).collect();
    let region = Region::create(options(&disks, driver), ()).unwrap();
    let account = region.create_account("load", Ack::All).unwrap();
    let ledger = Mutex::new(Ledger::new(3));
    let writer = Writer {
        region: &region,
        account,
        seed: 3,
        writer: 0,
        acked: &|acked| ledger.lock().unwrap().ack(acked),
        refused: &|error| panic!("{error}"),
        more: &|number| number <= 400,
    };
    assert!(writer.run(1).is_none());
    let direct: Vec<bool> = region.health().unwrap().disks.iter().map(|disk| disk.direct).collect();
    drop(region);
    let keeper = Keeper::default();
    let region = Region::open(options(&disks, driver), keeper.clone()).unwrap();
    ledger.lock().unwrap().check(&region, &keeper);
    assert_eq!(ledger.lock().unwrap().acked.len(), 400);
    region.close().unwrap();
    assert!(direct.iter().all(|one| *one == direct[0]), "{direct:?}");
    direct[0]
}

#[test]
fn a_region_in_shared_memory_commits_recovers_and_says_whether_writes_are_direct() {
    let shared = Path::new("/dev/shm");
    if !shared.is_dir() {
        println!("skipped: there is no /dev/shm here");
        return;
    }
    for driver in [DriverChoice::Threads, DriverChoice::Uring].into_iter().filter(|driver| has(*driver)) {
        let dir = tempfile::tempdir_in(shared).unwrap();
        assert_eq!(commits_and_recovers(dir.path(), driver), takes_direct(dir.path()));
    }
}

/// Unmounts when dropped.
struct Ramfs(tempfile::TempDir);

impl Drop for Ramfs {
    fn drop(&mut self) {
        if let (Err(error), false) = (run("umount", &["-l", self.0.path().to_str().unwrap()]), std::thread::panicking())
        {
            println!("left behind: {error}");
        }
    }
}

/// Recent kernels take O_DIRECT on tmpfs; ramfs never does.
#[test]
fn a_region_where_o_direct_is_refused_commits_recovers_and_says_so() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: mounting a ramfs needs root");
        return;
    }
    for driver in [DriverChoice::Threads, DriverChoice::Uring].into_iter().filter(|driver| has(*driver)) {
        let dir = tempfile::tempdir().unwrap();
        run("mount", &["-t", "ramfs", "ramfs", dir.path().to_str().unwrap()]).unwrap();
        let dir = Ramfs(dir);
        assert!(!takes_direct(dir.0.path()));
        assert!(!commits_and_recovers(dir.0.path(), driver), "health says that O_DIRECT works");
    }
}
