//! The limit that recovery has, and the setting that refuses instead (FAULT-MODEL, "The limit that remains").

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use meridian::{Ack, ErrorKind, PartitionId, Region, Transaction};

use crate::common::{Memory, options};

/// Overwrites one byte at `offset` of every slot that holds something there, or all of the page with zeros.
fn spoil(disk: &Path, offset: u64, erase: bool) {
    for entry in fs::read_dir(disk).unwrap().map(|entry| entry.unwrap().path()) {
        if !entry.file_name().unwrap().to_str().unwrap().starts_with("slot-") {
            continue;
        }
        let file = File::options().read(true).write(true).open(&entry).unwrap();
        let mut page = [0u8; 4096];
        file.read_exact_at(&mut page, offset).unwrap();
        if page.iter().any(|byte| *byte != 0) {
            page[200] ^= 1;
            file.write_all_at(if erase { &[0; 4096] } else { &page }, offset).unwrap();
        }
    }
}

/// A region that was killed after its last block reached two disks: one of them rots, the other goes away.
fn rotten_tail(dir: &tempfile::TempDir) -> meridian::Options {
    let options = options(dir, 3);
    let disks: Vec<PathBuf> = options.disks.iter().map(|disk| disk.path.clone()).collect();
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("a", Ack::All).unwrap();
    let commit = |text: &'static str| region.commit(Transaction::new(account, PartitionId(1)).record(text)).unwrap();
    commit("first");
    // What an orderly close writes is taken back: a kill leaves the superblocks as the opening wrote them.
    let saved: Vec<Vec<u8>> = disks.iter().map(|disk| fs::read(disk.join("superblock")).unwrap()).collect();
    let last = commit("last");
    region.close().unwrap();
    for (disk, saved) in disks.iter().zip(saved) {
        fs::write(disk.join("superblock"), saved).unwrap();
    }
    let offset = u64::from(last.lsn.offset() & !4095);
    spoil(&disks[0], offset, false);
    spoil(&disks[2], offset, true);
    fs::rename(&disks[1], dir.path().join("away")).unwrap();
    options
}

#[test]
fn a_rotten_last_block_with_a_disk_away_is_taken_for_torn_by_default() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Memory::default();
    let region = Region::open(rotten_tail(&dir), memory.clone()).unwrap();
    assert_eq!(memory.0.lock().unwrap().len(), 1, "this is the limit that the documentation states");
    drop(region);
}

#[test]
fn the_strict_setting_refuses_until_the_disk_is_back_and_then_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = rotten_tail(&dir);
    options.strict_tail = true;
    let refused = Region::open(options.clone(), ()).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::RestoreDisk, "{refused}");
    fs::rename(dir.path().join("away"), &options.disks[1].path).unwrap();
    let memory = Memory::default();
    drop(Region::open(options, memory.clone()).unwrap());
    assert_eq!(memory.0.lock().unwrap().len(), 2);
}
