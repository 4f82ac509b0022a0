//! What a process may have no more of (bytes of a file, descriptors, memory, threads) is answered by an error: not by a signal, an abort or a halt.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use meridian::{Ack, DiskConfig, DiskState, DriverChoice, ErrorKind, Lsn, Options, PartitionId, Region, Transaction};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::order::has;

/// What a child is told: its directory, and a number.
const HOME: &str = "MERIDIAN_TEST_LIMITS_HOME";
const NUMBER: &str = "MERIDIAN_TEST_LIMITS_NUMBER";
const DRIVER: &str = "MERIDIAN_TEST_LIMITS_DRIVER";

/// Runs one of the processes below; it must end in order.
fn run(process: &str, number: u64) {
    for driver in [DriverChoice::Threads, DriverChoice::Uring].into_iter().filter(|driver| has(*driver)) {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", process, "--ignored", "--nocapture", "--test-threads=1"]).env(HOME, dir.path());
        command.env(NUMBER, number.to_string()).env(DRIVER, format!("{driver:?}"));
        let output = command.output().unwrap();
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let passed = output.status.success() && said.contains("1 passed");
        assert!(passed, "{process} with {number}, {driver:?}: {}\n{said}\n{complained}", output.status);
    }
}

/// What this process was told; `None` where it is not one of ours.
fn told() -> Option<(Options, u64)> {
    let home = std::env::var_os(HOME)?;
    let disks = ["a", "b", "c"].map(|name| DiskConfig::new(Path::new(&home).join(name), name, "zone-1"));
    let threads = std::env::var(DRIVER).unwrap() == format!("{:?}", DriverChoice::Threads);
    let driver = if threads { DriverChoice::Threads } else { DriverChoice::Uring };
    let options = Options { segment_bytes: 8 << 20, driver, ..Options::new(disks.to_vec()) };
    Some((options, std::env::var(NUMBER).unwrap().parse().unwrap()))
}

fn limit(resource: Resource, to: u64) {
    setrlimit(resource, Rlimit { current: Some(to), ..getrlimit(resource) }).unwrap();
}

fn megabyte(region: &Region) -> meridian::Result<meridian::Receipt> {
    let account = region.accounts()?[0].id;
    region.commit(Transaction::new(account, PartitionId(1)).record(vec![1; 1 << 20]))
}

#[test]
fn h4_file_size_limit_is_an_error_when_a_region_is_made() {
    // Nothing at all, the superblock and no segment, nearly a segment.
    for bytes in [0, 100, 300 << 10, (8 << 20) - 4096] {
        run("limits::process_made_under_a_file_size_limit", bytes);
    }
}

#[test]
#[ignore = "not a test: a process under a limit"]
fn process_made_under_a_file_size_limit() {
    let Some((options, bytes)) = told() else { return };
    // What the harness prints goes into a pipe, which has no such limit.
    limit(Resource::Fsize, bytes);
    let error = Region::create(options.clone(), ()).err().expect("no segment fits");
    names_the_file_size_limit(&error, bytes);
    assert!(options.disks.iter().all(|disk| !disk.path.exists()), "a refused creation leaves nothing");
}

fn names_the_file_size_limit(error: &meridian::Error, bytes: u64) {
    assert_eq!(error.kind(), ErrorKind::System, "{error}");
    let said = error.to_string();
    for part in ["RLIMIT_FSIZE", "ulimit -f", &format!("is {bytes} bytes"), "8388608"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// The region's files with their bytes.
fn contents(options: &Options) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let files = options.disks.iter().flat_map(|disk| std::fs::read_dir(&disk.path).unwrap());
    let mut paths: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn h4_file_size_limit_refuses_the_opening_and_blames_no_disk() {
    run("limits::process_that_opens_under_file_size_limits", 0);
}

#[test]
#[ignore = "not a test: a process under a limit"]
fn process_that_opens_under_file_size_limits() {
    let Some((options, _)) = told() else { return };
    let region = Region::create(options.clone(), ()).unwrap();
    region.create_account("flights", Ack::Quorum).unwrap();
    megabyte(&region).unwrap();
    region.close().unwrap();
    let before = contents(&options);
    for bytes in [0, 4096, 64 << 10, (8 << 20) - 4096] {
        limit(Resource::Fsize, bytes);
        let error = Region::open(options.clone(), ()).err().expect("no segment fits");
        names_the_file_size_limit(&error, bytes);
        assert!(contents(&options) == before, "a refused opening changes nothing");
    }
    limit(Resource::Fsize, 8 << 20);
    let region = Region::open(options, ()).unwrap();
    megabyte(&region).unwrap();
    region.close().unwrap();
}

#[test]
fn h4_file_size_limit_set_under_load_is_an_error_and_no_signal() {
    run("limits::process_limited_in_file_size_under_load", 3 << 20);
}

#[test]
#[ignore = "not a test: a process under a limit"]
fn process_limited_in_file_size_under_load() {
    let Some((options, bytes)) = told() else { return };
    let region = Region::create(options.clone(), ()).unwrap();
    region.create_account("flights", Ack::Quorum).unwrap();
    megabyte(&region).unwrap();
    limit(Resource::Fsize, bytes);
    // The files that are there end beyond it: no disk takes more.
    let mut acknowledged = 1;
    let error = loop {
        match megabyte(&region) {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(!error.to_string().is_empty() && region.health().is_ok(), "{error}");
    drop(region);
    limit(Resource::Fsize, 1 << 40);
    let region = Region::open(options, ()).unwrap();
    let account = region.accounts().unwrap()[0].id;
    assert!(region.next_sequence(account, PartitionId(1)).unwrap() >= acknowledged);
    region.close().unwrap();
}

#[test]
fn h4_descriptor_limit_under_load_loses_no_disk_and_passes() {
    run("limits::process_limited_in_descriptors", 0);
}

#[test]
#[ignore = "not a test: a process under a limit"]
fn process_limited_in_descriptors() {
    let Some((options, _)) = told() else { return };
    let region = Region::create(options, ()).unwrap();
    region.create_account("flights", Ack::Quorum).unwrap();
    megabyte(&region).unwrap();
    let before = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    limit(Resource::Nofile, open);
    let error = (0..200).find_map(|_| megabyte(&region).err()).expect("new segments need descriptors");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let health = region.health().unwrap();
    assert!(health.disks.iter().all(|disk| disk.state == DiskState::Healthy), "{health:?}");
    assert!(health.halted.is_none() && health.disks.iter().any(|disk| disk.full), "{health:?}");
    limit(Resource::Nofile, before);
    let back = (0..300).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        megabyte(&region).is_ok()
    });
    assert!(back, "descriptors are there again: {:?}", region.health());
    region.close().unwrap();
}

#[test]
fn h4_memory_limit_is_an_error_when_a_region_is_made_and_used() {
    for megabytes in [1, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 224] {
        run("limits::process_limited_in_memory", megabytes);
    }
}

#[test]
#[ignore = "not a test: a process under a limit"]
fn process_limited_in_memory() {
    let Some((options, megabytes)) = told() else { return };
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    limit(Resource::As, pages * rustix::param::page_size() as u64 + (megabytes << 20));
    let used = Region::create(options, ()).and_then(|region| {
        region.create_account("flights", Ack::Quorum)?;
        for _ in 0..20 {
            megabyte(&region)?;
        }
        region.trim(Lsn::MAX)?;
        region.close()
    });
    match used {
        Ok(()) => println!("enough"),
        Err(error) => {
            println!("{:?}: {error}", error.kind());
            assert!(!matches!(error.kind(), ErrorKind::Halted | ErrorKind::Locked | ErrorKind::Corrupt), "{error}");
        }
    }
}
