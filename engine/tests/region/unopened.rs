//! Files and directories that an opening cannot look at: it refuses, names them, and has changed nothing (ADR 0021).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use meridian::format::DATA_START;
use meridian::io::{Completion, DiskIndex, Doorbell, Driver, DriverChoice, Environment, Op, OpId, ReadAt, driver};
use meridian::{Ack, DiskState, Error, ErrorKind, Lsn, Options, PartitionId, Region, Transaction};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use tempfile::TempDir;

use crate::common::{Memory, options as common_options};
use crate::disks::{until, whole};
use crate::input::copy_directory;

const RECORDS: usize = 600;
const NOBODY: u32 = 65_534;
/// Set for the process that the tests start: the directory, and a limit on open files or 0.
const VARIABLE: &str = "MERIDIAN_UNOPENED";

/// The real driver, with a host that refuses what `refuses` says.
struct Refusing {
    inner: Box<dyn Driver>,
    refuses: fn(&Op) -> Option<Errno>,
    refused: Vec<Completion>,
}

impl Driver for Refusing {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn submit(&mut self, id: OpId, op: Op) {
        match (self.refuses)(&op) {
            Some(errno) => self.refused.push(Completion { id, result: Err(errno.into()) }),
            None => self.inner.submit(id, op),
        }
    }

    fn poll(&mut self, wait: Option<Duration>, done: &mut Vec<Completion>) {
        self.inner.poll(wait.filter(|_| self.refused.is_empty()), done);
        done.append(&mut self.refused);
    }

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        self.inner.doorbell()
    }

    fn reader(&self) -> Arc<dyn ReadAt> {
        self.inner.reader()
    }

    fn environment(&self) -> Arc<dyn Environment> {
        self.inner.environment()
    }
}

fn options(dir: &TempDir) -> Options {
    let mut options = common_options(dir, 3);
    (options.segment_bytes, options.block_bytes, options.transaction_bytes) = (64 << 10, 16 << 10, 16 << 10);
    options
}

/// What a crash leaves of a region with so many acknowledged records.
fn crashed(trim: bool) -> (TempDir, Options) {
    let (running, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let region = Region::create(options(&running), ()).unwrap();
    let account = region.create_account("flights", Ack::All).unwrap();
    let commit = |number: usize| {
        let transaction = Transaction::new(account, PartitionId(1)).record(vec![number as u8; 1000]);
        region.commit(transaction).unwrap();
    };
    (0..RECORDS).for_each(commit);
    if trim {
        whole(&region);
        assert!(region.trim(Lsn::MAX).unwrap().segment().0 > 1);
        commit(0);
    }
    for disk in ["disk-0", "disk-1", "disk-2"] {
        copy_directory(&running.path().join(disk), &image.path().join(disk));
    }
    let options = options(&image);
    (image, options)
}

/// Every file with its bytes.
fn contents(dir: &TempDir) -> BTreeMap<PathBuf, Vec<u8>> {
    let disks = (0..3).flat_map(|at| fs::read_dir(dir.path().join(format!("disk-{at}"))).unwrap());
    disks.map(|entry| entry.unwrap().path()).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn slots(dir: &TempDir, disk: usize) -> Vec<PathBuf> {
    let all = fs::read_dir(dir.path().join(format!("disk-{disk}"))).unwrap().map(|entry| entry.unwrap().path());
    let mut slots: Vec<PathBuf> = all.filter(|path| name(path).starts_with("slot-")).collect();
    slots.sort();
    slots
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

fn open(options: &Options, refuses: fn(&Op) -> Option<Errno>) -> Result<(Region, usize), Error> {
    let memory = Memory::default();
    let make = move || -> io::Result<Box<dyn Driver>> {
        Ok(Box::new(Refusing { inner: driver(DriverChoice::Auto)?, refuses, refused: Vec::new() }))
    };
    let region = Region::open_with(options.clone(), memory.clone(), make)?;
    let records = memory.0.lock().unwrap().len();
    Ok((region, records))
}

/// Opening is refused so, changes nothing, and works once the host refuses nothing.
fn is_refused(dir: &TempDir, options: &Options, refuses: fn(&Op) -> Option<Errno>, kind: ErrorKind, names: &[&str]) {
    let before = contents(dir);
    for _ in 0..2 {
        let error = open(options, refuses).map(drop).expect_err("it is refused");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(names.iter().all(|name| error.to_string().contains(name)), "{error}");
        assert!(contents(dir) == before, "a refused opening changes nothing");
    }
    let (_region, records) = open(options, |_| None).unwrap();
    assert_eq!(records, RECORDS);
}

/// Opening goes without the second disk, which says why, and takes it back when asked to.
fn is_degraded(options: &Options, refuses: fn(&Op) -> Option<Errno>, reason: &str) {
    let (region, records) = open(options, refuses).unwrap();
    assert_eq!(records, RECORDS);
    let disk = region.health().unwrap().disks.swap_remove(1);
    assert_eq!(disk.state, DiskState::Failed);
    assert!(disk.reason.contains(reason), "{}", disk.reason);
    drop(region);
    let (region, records) = open(options, |_| None).unwrap();
    assert_eq!(records, RECORDS);
    until("whole", || {
        let health = region.health().unwrap();
        health.is_whole() && health.disks.iter().all(|disk| disk.state == DiskState::Healthy)
    });
}

/// Opens of the newer slots.
fn newer(op: &Op) -> bool {
    matches!(op, Op::Open { name, create: None, .. } if name.starts_with("slot-") && name.as_str() >= "slot-000006")
}

fn second(op: &Op) -> bool {
    op.disk() == Some(DiskIndex(1))
}

#[test]
fn h2_slots_that_cannot_be_opened_refuse_the_opening() {
    let (dir, options) = crashed(false);
    let refuses: fn(&Op) -> Option<Errno> = |op| newer(op).then_some(Errno::ACCESS);
    is_refused(&dir, &options, refuses, ErrorKind::RestoreDisk, &["disk-0", "disk-2", "slot-", "Permission denied"]);
}

#[test]
fn h2_a_disk_with_a_slot_that_cannot_be_opened_is_left_out() {
    let (_dir, options) = crashed(false);
    is_degraded(&options, |op| (newer(op) && second(op)).then_some(Errno::IO), "slot-0000");
}

#[test]
fn h2_two_disks_with_one_slot_each_that_cannot_be_opened_refuse() {
    let (dir, options) = crashed(false);
    let refuses: fn(&Op) -> Option<Errno> = |op| {
        let one = matches!(op, Op::Open { name, create: None, .. } if name == "slot-000007");
        (one && !second(op)).then_some(Errno::STALE)
    };
    is_refused(&dir, &options, refuses, ErrorKind::RestoreDisk, &["disk-0", "disk-2", "slot-000007"]);
}

#[test]
fn h2_a_lack_of_descriptors_memory_or_threads_refuses_and_blames_no_disk() {
    fn pages(op: &Op) -> bool {
        matches!(op, Op::Read { offset: 0, len, .. } if *len == DATA_START as usize)
    }
    fn index(op: &Op) -> bool {
        matches!(op, Op::ReadFile { name, .. } if name.starts_with("index-"))
    }
    let (dir, options) = crashed(false);
    let refuses: fn(&Op) -> Option<Errno> = |op| newer(op).then_some(Errno::MFILE);
    is_refused(
        &dir,
        &options,
        refuses,
        ErrorKind::System,
        &["disk-0", "slot-", "Too many open files", "RLIMIT_NOFILE"],
    );
    let (dir, options) = crashed(false);
    let refuses: fn(&Op) -> Option<Errno> = |op| (newer(op) && second(op)).then_some(Errno::NOMEM);
    is_refused(&dir, &options, refuses, ErrorKind::System, &["disk-1", "slot-", "memory"]);
    let (dir, options) = crashed(false);
    let refuses: fn(&Op) -> Option<Errno> = |op| (pages(op) && second(op)).then_some(Errno::NOMEM);
    is_refused(&dir, &options, refuses, ErrorKind::System, &["disk-1", "slot-", "memory"]);
    let (dir, options) = crashed(false);
    let refuses: fn(&Op) -> Option<Errno> = |op| index(op).then_some(Errno::MFILE);
    is_refused(&dir, &options, refuses, ErrorKind::System, &["index-", "Too many open files"]);
    let refuses: fn(&Op) -> Option<Errno> =
        |op| (matches!(op, Op::Attach { .. }) && second(op)).then_some(Errno::AGAIN);
    let (dir, options) = crashed(false);
    is_refused(&dir, &options, refuses, ErrorKind::System, &["disk-1", "threads"]);
}

#[test]
fn h2_a_directory_that_cannot_be_listed_is_left_out_and_all_refuse() {
    let (dir, options) = crashed(false);
    let refuses: fn(&Op) -> Option<Errno> = |op| matches!(op, Op::List { .. }).then_some(Errno::IO);
    is_refused(&dir, &options, refuses, ErrorKind::RestoreDisk, &["disk-0", "disk-1", "listed"]);
    let refuses: fn(&Op) -> Option<Errno> = |op| matches!(op, Op::List { .. }).then_some(Errno::NFILE);
    let (dir, options) = crashed(false);
    is_refused(&dir, &options, refuses, ErrorKind::System, &["open files"]);
    let (_dir, options) = crashed(false);
    is_degraded(&options, |op| (matches!(op, Op::List { .. }) && second(op)).then_some(Errno::ACCESS), "listed");
}

#[test]
fn h2_superblocks_that_cannot_be_opened_are_not_absent() {
    fn superblock(op: &Op) -> bool {
        matches!(op, Op::Open { name, .. } if name == "superblock")
    }
    let (_dir, options) = crashed(false);
    is_degraded(
        &options,
        |op| (superblock(op) && second(op)).then_some(Errno::ACCESS),
        "superblock could not be opened",
    );
    let (dir, options) = crashed(false);
    let refuses: fn(&Op) -> Option<Errno> = |op| (superblock(op) && !second(op)).then_some(Errno::ACCESS);
    is_refused(
        &dir,
        &options,
        refuses,
        ErrorKind::RestoreDisk,
        &["disk-0", "disk-2", "superblock could not be opened"],
    );
    let refuses: fn(&Op) -> Option<Errno> = |op| (superblock(op) && second(op)).then_some(Errno::MFILE);
    let (dir, options) = crashed(false);
    is_refused(&dir, &options, refuses, ErrorKind::System, &["disk-1", "RLIMIT_NOFILE"]);
}

#[test]
fn h2_checkpoints_that_cannot_be_read_refuse_by_name_and_one_copy_will_do() {
    fn checkpoint(op: &Op) -> bool {
        matches!(op, Op::ReadFile { name, .. } if name.starts_with("checkpoint-"))
    }
    let (dir, options) = crashed(true);
    let before = contents(&dir);
    for (errno, kind) in [(Errno::ACCESS, ErrorKind::RestoreDisk), (Errno::MFILE, ErrorKind::System)] {
        let refuses: fn(&Op) -> Option<Errno> = match errno {
            Errno::ACCESS => |op| checkpoint(op).then_some(Errno::ACCESS),
            _ => |op| checkpoint(op).then_some(Errno::MFILE),
        };
        let error = open(&options, refuses).map(drop).expect_err("the tables are not known");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains("checkpoint-"), "{error}");
        assert!(contents(&dir) == before, "a refused opening changes nothing");
    }
    let (region, _) = open(&options, |op| (checkpoint(op) && !second(op)).then_some(Errno::ACCESS)).unwrap();
    assert_eq!(region.accounts().unwrap().len(), 1);
}

/// Cuts the newest slots of a disk that hold a segment down to half.
fn shorten(dir: &TempDir, disk: usize) {
    for slot in slots(dir, disk).into_iter().skip(6) {
        let file = fs::OpenOptions::new().write(true).open(slot).unwrap();
        file.set_len(32 << 10).unwrap();
    }
}

#[test]
fn h2_slots_that_have_lost_their_end_refuse_and_stay() {
    let (dir, options) = crashed(false);
    let whole = contents(&dir);
    (0..3).for_each(|disk| shorten(&dir, disk));
    let before = contents(&dir);
    let error = open(&options, |_| None).map(drop).expect_err("no disk has the newest segments");
    assert_eq!(error.kind(), ErrorKind::RestoreDisk, "{error}");
    assert!(error.to_string().contains("has lost its end"), "{error}");
    assert!(contents(&dir) == before, "a refused opening changes nothing");
    whole.into_iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    assert_eq!(open(&options, |_| None).unwrap().1, RECORDS);
}

#[test]
fn h2_a_disk_with_slots_that_have_lost_their_end_is_rebuilt_when_returned() {
    let (dir, options) = crashed(false);
    shorten(&dir, 1);
    let (region, records) = open(&options, |_| None).unwrap();
    assert_eq!(records, RECORDS);
    assert_eq!(region.health().unwrap().disks[1].state, DiskState::Failed);
    until("return", || match region.return_disk(1) {
        Ok(()) => true,
        Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::RestoreDisk) => false,
        Err(error) => panic!("{error}"),
    });
    whole(&region);
    until("healthy", || region.health().unwrap().disks[1].state == DiskState::Healthy);
    region.close().unwrap();
    // What had lost its end is gone: it is not found again.
    let (region, _) = open(&options, |_| None).unwrap();
    assert_eq!(region.health().unwrap().disks[1].state, DiskState::Healthy);
}

#[test]
fn h2_slots_whose_making_was_cut_short_are_removed_once_the_region_is_open() {
    let (dir, options) = crashed(false);
    let short = |at: usize| dir.path().join(format!("disk-{at}")).join("slot-000099");
    (0..3).for_each(|at| fs::write(short(at), vec![0; 4096 * at]).unwrap());
    let refuses: fn(&Op) -> Option<Errno> = |op| newer(op).then_some(Errno::ACCESS);
    open(&options, refuses).map(drop).expect_err("it is refused");
    assert!((0..3).all(|at| short(at).exists()), "a refused opening removes nothing");
    assert_eq!(open(&options, |_| None).unwrap().1, RECORDS);
    assert!((0..3).all(|at| !short(at).exists()));
}

/// Opens the region in a process of its own, and returns what it says.
fn in_child(dir: &TempDir, user: Option<u32>, files: u64) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "unopened::process", "--ignored", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, format!("{files} {}", dir.path().display()));
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let out = command.output().unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    said.lines().find_map(|line| line.strip_prefix('@')).unwrap_or_else(|| panic!("{said}")).to_owned()
}

#[test]
#[ignore = "not a test: the process that tests of this file start"]
fn process() {
    let Ok(order) = std::env::var(VARIABLE) else { return };
    let (files, dir) = order.split_once(' ').unwrap();
    let files: u64 = files.parse().unwrap();
    if files > 0 {
        let limit = Rlimit { current: Some(files), maximum: Some(files) };
        rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
    }
    let disks = (0..3).map(|at| format!("disk-{at}"));
    let disks = disks.map(|name| meridian::DiskConfig::new(Path::new(dir).join(&name), &name, "zone-1"));
    let mut options = Options::new(disks.collect());
    (options.segment_bytes, options.block_bytes, options.transaction_bytes) = (64 << 10, 16 << 10, 16 << 10);
    let memory = Memory::default();
    match Region::open(options, memory.clone()) {
        Ok(_region) => println!("\n@{} records", memory.0.lock().unwrap().len()),
        Err(error) => println!("\n@{:?}: {error}", error.kind()),
    }
}

#[test]
fn h2_newest_slots_of_another_user_refuse_the_opening() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can give files to another user");
        return;
    }
    let (dir, options) = crashed(false);
    let permissions = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(dir.path(), permissions(0o755)).unwrap();
    for at in 0..3 {
        let disk = dir.path().join(format!("disk-{at}"));
        chown(&disk, Some(NOBODY), Some(NOBODY)).unwrap();
        for file in fs::read_dir(&disk).unwrap().map(|entry| entry.unwrap().path()) {
            let newest = name(&file) >= "slot-000006" && name(&file).starts_with("slot-");
            fs::set_permissions(&file, permissions(0o644)).unwrap();
            chown(file, Some(if newest { 0 } else { NOBODY }), None).unwrap();
        }
    }
    let before = contents(&dir);
    let said = in_child(&dir, Some(NOBODY), 0);
    assert!(said.starts_with("RestoreDisk") && said.contains("slot-") && said.contains("Permission denied"), "{said}");
    assert!(contents(&dir) == before, "a refused opening changes nothing");
    assert_eq!(open(&options, |_| None).unwrap().1, RECORDS);
}

/// At every limit the opening is refused or shows everything; it never blames a disk.
#[test]
fn h2_limits_on_open_files_refuse_the_opening_by_name() {
    let (dir, _options) = crashed(false);
    let all = slots(&dir, 0).len() as u64 * 3;
    let mut refused = 0;
    for files in [30, 45, all + 10, all + 14, all + 16, all + 18, all + 20, all + 40] {
        let before = contents(&dir);
        let said = in_child(&dir, None, files);
        if said == format!("{RECORDS} records") {
            continue;
        }
        assert!(said.starts_with("System") && said.contains("Too many open files"), "{files}: {said}");
        assert!(contents(&dir) == before, "a refused opening changes nothing: {said}");
        refused += 1;
    }
    assert!(refused >= 3, "{all} slots and {refused} refusals");
    assert_eq!(in_child(&dir, None, 0), format!("{RECORDS} records"));
}
