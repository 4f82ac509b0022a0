//! `verify` says sound of what is sound, and sees what was done to a copy behind the engine's back.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use meridian::format::DATA_START;
use meridian::{Ack, DiskConfig, Options, PartitionId, Region, Transaction};

use super::verify::Findings;
use super::{OfflineDisk, verify, verify_command};

/// Small segments, so that a few records fill several.
fn options(disks: &[PathBuf]) -> Options {
    let configs = disks.iter().enumerate().map(|(place, path)| DiskConfig::new(path, &format!("d{place}"), "z"));
    let mut options = Options::new(configs.collect());
    options.segment_bytes = 64 << 10;
    options.block_bytes = 8 << 10;
    options.transaction_bytes = 8 << 10;
    options
}

/// A closed region with a few hundred records in several sealed segments.
fn closed_region(dir: &Path) -> Vec<PathBuf> {
    let disks: Vec<PathBuf> = ["a", "b", "c"].iter().map(|name| dir.join(name)).collect();
    let region = Region::create(options(&disks), ()).expect("created");
    let account = region.create_account("a", Ack::All).expect("account");
    for number in 0..60_u32 {
        let transaction = Transaction::new(account, PartitionId(u128::from(number % 3)));
        let transaction = transaction.record(vec![number as u8; 2_000]).record(vec![1; 10]);
        region.commit(transaction).expect("committed");
    }
    region.close().expect("closed");
    disks
}

#[test]
fn a_closed_region_is_sound_and_every_record_is_counted() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disks = closed_region(dir.path());
    let findings = verify(&disks).expect("read");
    assert!(findings.problems.is_empty(), "{findings:?}");
    // One more of each: the account.
    assert_eq!((findings.transactions, findings.records), (61, 121), "{findings:?}");
    assert!(findings.segments > 1 && findings.copies >= 3 * (findings.segments - 1), "{findings:?}");
}

#[test]
fn a_flipped_bit_in_a_sealed_copy_is_seen() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disks = closed_region(dir.path());
    flip(&disks[1].join("slot-000000"), 9_000);
    let findings = verify(&disks).expect("read");
    assert!(findings.problems.iter().any(|problem| problem.contains("slot-000000")), "{findings:?}");
}

/// The segment files of a disk with the segments that they hold.
fn slots(disk: &Path) -> Vec<(u32, PathBuf)> {
    let open = OfflineDisk::open(disk).expect("opened");
    open.retained().map(|(file, header)| (header.segment.0, disk.join(&file.name))).collect()
}

/// The file of the last segment with blocks, and where they end. Behind it is the next one, made beforehand and empty.
fn tail(disk: &Path) -> (PathBuf, u32) {
    let open = OfflineDisk::open(disk).expect("opened");
    let ends = open.retained().map(|(file, header)| {
        let end = file.walk(file.seal.as_ref(), &mut |_| {}).expect("walked").end;
        (header.segment, end, file)
    });
    let (_, end, file) = ends.filter(|(_, end, _)| *end > DATA_START).max_by_key(|(id, ..)| *id).expect("blocks");
    assert!(file.seal.is_none(), "the last segment with blocks is not sealed");
    (disk.join(&file.name), end)
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("a segment's file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 4], offset).expect("written");
}

/// Flips a bit at the end of the last block on each of these disks.
fn rot_the_tail(disks: &[PathBuf]) {
    for disk in disks {
        let (path, end) = tail(disk);
        // Padding behind a block counts, too: it has to be zero.
        flip(&path, u64::from(end) - 1);
    }
}

fn has(findings: &Findings, what: &str) -> bool {
    findings.problems.iter().any(|problem| problem.contains(what))
}

#[test]
fn a_tail_that_is_gone_from_one_disk_or_from_all_is_a_problem() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disks = closed_region(dir.path());
    rot_the_tail(&disks[..1]);
    let one = verify(&disks).expect("read");
    assert!(has(&one, "was flushed up to") && !has(&one, "was committed"), "{one:?}");
    rot_the_tail(&disks[1..]);
    let all = verify(&disks).expect("read");
    assert!(has(&all, "was committed"), "{all:?}");
    assert_eq!(verify_command(&disks, true), Ok(false), "the exit code says it, too");
}

#[test]
fn a_last_segment_that_is_gone_from_one_disk_or_from_all_is_a_problem() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disks = closed_region(dir.path());
    std::fs::remove_file(tail(&disks[2]).0).expect("removed");
    let one = verify(&disks).expect("read");
    assert!(has(&one, "has no copy of it") && !has(&one, "was committed"), "{one:?}");
    for disk in &disks[..2] {
        std::fs::remove_file(tail(disk).0).expect("removed");
    }
    let all = verify(&disks).expect("read");
    assert!(has(&all, "was committed"), "{all:?}");
    assert_eq!(verify_command(&disks, false), Ok(false), "the exit code says it, too");
}

#[test]
fn sealed_segments_without_three_whole_copies_are_counted() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disks = closed_region(dir.path());
    let short = || verify(&disks).expect("read").short;
    assert_eq!(short(), 0);
    let first = slots(&disks[0]);
    let lost = |segment: u32| &first.iter().find(|(id, _)| *id == segment).expect("a copy").1;
    std::fs::remove_file(lost(1)).expect("removed");
    assert_eq!(short(), 1, "gone");
    flip(lost(2), 9_000);
    assert_eq!(short(), 2, "broken");
    // The third copy of segment 1 again, but on a disk that has one.
    let twin = slots(&disks[1]).into_iter().find(|(id, _)| *id == 1).expect("a copy").1;
    std::fs::copy(&twin, disks[1].join("slot-999999")).expect("copied");
    assert_eq!(short(), 2, "two on one disk");
}

#[test]
fn a_region_without_any_segment_is_a_problem() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disks = closed_region(dir.path());
    for (_, path) in disks.iter().flat_map(|disk| slots(disk)) {
        std::fs::remove_file(path).expect("removed");
    }
    let findings = verify(&disks).expect("read");
    assert!(findings.segments == 0 && has(&findings, "no copy of any segment"), "{findings:?}");
    assert_eq!(verify_command(&disks, false), Ok(false), "the exit code says it, too");
}

#[test]
fn a_region_that_was_made_and_closed_is_sound() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disks: Vec<PathBuf> = ["a", "b", "c"].iter().map(|name| dir.path().join(name)).collect();
    Region::create(options(&disks), ()).expect("created").close().expect("closed");
    let findings = verify(&disks).expect("read");
    assert!(findings.problems.is_empty(), "{findings:?}");
}

#[test]
fn a_lost_superblock_is_a_problem_and_a_missing_disk_a_note() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disks = closed_region(dir.path());
    let two = verify(&disks[..2]).expect("read");
    assert!(two.problems.is_empty() && two.notes.iter().any(|note| note.contains("2 of 3 disks")), "{two:?}");
    std::fs::write(disks[2].join("superblock"), vec![0; 65_536]).expect("overwritten");
    let broken = verify(&disks).expect("read");
    assert!(broken.problems.iter().any(|problem| problem.contains("neither superblock slot")), "{broken:?}");
}

#[test]
fn an_open_region_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disks = closed_region(dir.path());
    let region = Region::open(options(&disks), ()).expect("opened");
    assert!(verify(&disks).is_err_and(|why| why.contains("in use")));
    region.close().expect("closed");
}
