//! `verify` says sound of what is sound, and sees what was done to a copy behind the engine's back.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use meridian::{Ack, DiskConfig, Options, PartitionId, Region, Transaction};

use super::verify;

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
fn closed_region(dir: &std::path::Path) -> Vec<PathBuf> {
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
    let path = disks[1].join("slot-000000");
    let file = OpenOptions::new().read(true).write(true).open(path).expect("the first segment's file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 9_000).expect("read");
    file.write_all_at(&[byte[0] ^ 4], 9_000).expect("written");
    let findings = verify(&disks).expect("read");
    assert!(findings.problems.iter().any(|problem| problem.contains("slot-000000")), "{findings:?}");
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
