//! What a `create` that was cut short left behind: it is made again, and nothing else is ever overwritten (ADR 0021).

use std::fs;
use std::path::PathBuf;

use meridian::{Ack, ErrorKind, Options, PartitionId, Region, Transaction};
use tempfile::TempDir;

use crate::common::options as common_options;

fn fresh() -> (TempDir, Options) {
    let dir = TempDir::new().unwrap();
    let options = common_options(&dir, 3);
    (dir, options)
}

fn file(dir: &TempDir, disk: usize, name: &str) -> PathBuf {
    let path = dir.path().join(format!("disk-{disk}"));
    fs::create_dir_all(&path).unwrap();
    path.join(name)
}

/// A region that was made and never written to.
fn unwritten() -> (TempDir, Options) {
    let (dir, options) = fresh();
    drop(Region::create(options.clone(), ()).unwrap());
    (dir, options)
}

fn is_made_and_works(options: &Options) {
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("a", Ack::All).unwrap();
    region.commit(Transaction::new(account, PartitionId(1)).record("one")).unwrap();
    region.close().unwrap();
    assert!(Region::open(options.clone(), ()).unwrap().health().unwrap().is_whole());
}

#[test]
fn h1_create_that_was_cut_short_is_made_again() {
    let (slot, superblock) = (vec![0; 1 << 20], vec![0; 65_536]);
    // Superblocks without a word in them, and slots of any length.
    for (superblocks, slots) in [(1, 0), (3, 0), (3, 1), (3, 3)] {
        let (dir, options) = fresh();
        (0..superblocks).for_each(|disk| fs::write(file(&dir, disk, "superblock"), &superblock).unwrap());
        for disk in 0..slots {
            fs::write(file(&dir, disk, "slot-000000"), &slot[..if disk == 1 { 8_192 } else { slot.len() }]).unwrap();
        }
        is_made_and_works(&options);
    }
}

#[test]
fn create_refuses_what_can_be_opened_or_is_not_its_own() {
    let refused = |options: &Options| Region::create(options.clone(), ()).err().map(|error| error.kind());
    let (dir, options) = unwritten();
    fs::write(file(&dir, 0, "superblock"), vec![0; 65_536]).unwrap();
    assert_eq!(refused(&options), Some(ErrorKind::Exists));
    Region::open(options.clone(), ()).unwrap().close().unwrap();

    let (dir, options) = fresh();
    fs::write(file(&dir, 1, "superblock"), vec![0; 65_536]).unwrap();
    fs::write(file(&dir, 1, "letters"), "mine").unwrap();
    assert_eq!(refused(&options), Some(ErrorKind::Exists));
    assert_eq!(fs::read(file(&dir, 1, "letters")).unwrap(), b"mine");

    // A block says that something may have been acknowledged, whatever became of the superblocks.
    let (dir, options) = unwritten();
    Region::open(options.clone(), ()).unwrap().create_account("a", Ack::All).unwrap();
    (0..3).for_each(|disk| fs::write(file(&dir, disk, "superblock"), vec![0; 65_536]).unwrap());
    for disk in 0..3 {
        let names = fs::read_dir(file(&dir, disk, "")).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.to_string_lossy().contains("index-")).for_each(|path| fs::remove_file(path).unwrap());
    }
    assert_eq!(refused(&options), Some(ErrorKind::Exists));
}
