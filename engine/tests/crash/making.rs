//! A process that makes a region is killed at random moments, or meets a limit: the same call goes on, or the region opens.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use meridian::{DiskConfig, DiskState, ErrorKind, Options, Region};
use rustix::process::{Resource, Rlimit};

/// Set for the process that is killed: a limit on a file's size or 0, and the directory.
const VARIABLE: &str = "MERIDIAN_MAKING";

fn options(dir: &Path) -> Options {
    let disks = (0..3).map(|at| format!("disk-{at}"));
    let disks = disks.map(|name| DiskConfig::new(dir.join(&name), &name, "zone-1"));
    let mut options = Options::new(disks.collect());
    (options.segment_bytes, options.block_bytes, options.transaction_bytes) = (1 << 20, 64 << 10, 128 << 10);
    options
}

#[test]
#[ignore = "not a test: the process that is killed"]
fn process() {
    let Ok(order) = std::env::var(VARIABLE) else { return };
    let (limit, dir) = order.split_once(' ').unwrap();
    let limit: u64 = limit.parse().unwrap();
    if limit > 0 {
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        rustix::process::setrlimit(Resource::Fsize, limit).unwrap();
    }
    drop(Region::create(options(Path::new(dir)), ()));
}

fn child(dir: &Path, limit: u64) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "making::process", "--ignored", "--test-threads=1"])
        .env(VARIABLE, format!("{limit} {}", dir.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Makes the region, or opens it where that says that it is there; every disk takes part. Whether it had to be made.
fn goes_on(dir: &Path) -> bool {
    let (region, made) = match Region::create(options(dir), ()) {
        Err(error) if error.kind() == ErrorKind::Exists => (Region::open(options(dir), ()).unwrap(), false),
        made => (made.unwrap(), true),
    };
    let start = Instant::now();
    while region.health().unwrap().disks.iter().any(|disk| disk.state != DiskState::Healthy) {
        assert!(start.elapsed() < Duration::from_secs(60), "{:#?}", region.health());
        std::thread::sleep(Duration::from_millis(2));
    }
    region.close().unwrap();
    made
}

#[test]
fn h2_create_killed_at_random_moments_is_continued() {
    let (mut made, mut opened) = (0, 0);
    for round in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let mut child = child(dir.path(), 0);
        let superblock: PathBuf = dir.path().join("disk-0").join("superblock");
        let start = Instant::now();
        // From the first file on, a little later each round.
        while !superblock.exists() && start.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_micros(50));
        }
        std::thread::sleep(Duration::from_micros(fastrand::u64(..=round * 1_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        if goes_on(dir.path()) { made += 1 } else { opened += 1 }
    }
    println!("{made} made again, {opened} opened");
    assert!(made > 0, "no kill came in time");
}

#[test]
fn h2_create_that_meets_a_limit_on_file_sizes_is_continued() {
    let dir = tempfile::tempdir().unwrap();
    // Superblocks are below it, segments are not: it is refused before it makes either.
    child(dir.path(), 512 << 10).wait().unwrap();
    assert!(!dir.path().join("disk-0").join("superblock").exists(), "it had begun");
    assert!(goes_on(dir.path()));
}
