//! Segments filled, sealed, trimmed; disks lost and back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use meridian::{AccountId, Ack, ErrorKind, Lsn, PartitionId, Placement, Region, Transaction};

use crate::common::{Memory, options};
use crate::input::copy_directory;

fn fill(region: &Region, account: AccountId, transactions: u32) {
    let tickets: Vec<_> = (0..transactions)
        .map(|number| {
            let transaction = Transaction::new(account, PartitionId(u128::from(number % 7)));
            region.submit(transaction.record(vec![number as u8; 10_000])).unwrap()
        })
        .collect();
    for ticket in tickets {
        ticket.wait().unwrap();
    }
}

pub(crate) fn whole(region: &Region) {
    let start = Instant::now();
    while !region.health().unwrap().is_whole() {
        assert!(start.elapsed() < Duration::from_secs(60), "not whole in 60 s: {:#?}", region.health());
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} did not happen in 60 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_disk_lost_and_returned_again_and_again_under_load_always_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(options(&dir, 3), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    fill(&region, account, 2000);
    for round in 0..12 {
        std::thread::scope(|scope| {
            scope.spawn(|| fill(&region, account, 300));
            let disk = round % 3;
            region.fail_disk(disk).unwrap();
            let give_back = || match region.return_disk(disk) {
                Err(error) if error.kind() == ErrorKind::Busy => false,
                returned => returned.map(|()| true).unwrap(),
            };
            until("return", give_back);
            whole(&region);
            assert_eq!(region.health().unwrap().disks[disk].state, meridian::DiskState::Healthy);
        });
    }
}

#[test]
fn full_segments_are_sealed_on_three_disks_trimmed_and_recycled() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 3);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    fill(&region, account, 1000);
    whole(&region);
    let before = region.health().unwrap();
    assert!(before.segments > 8, "{before:?}");
    let first = region.trim(Lsn::MAX).unwrap();
    let after = region.health().unwrap();
    assert!(first.segment() > before.first.segment() && after.segments <= 3, "{after:?}");
    let files = after.disks[0].segments.0;
    fill(&region, account, 600);
    assert_eq!(region.health().unwrap().disks[0].segments.0, files, "trimmed slots are used again");
    region.close().unwrap();
    let memory = Memory::default();
    drop(Region::open(options, memory.clone()).unwrap());
    assert!(memory.0.lock().unwrap().len() >= 600);
}

#[test]
fn a_lost_disk_is_replaced_by_a_spare_and_every_segment_is_whole_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 4);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::All).unwrap();
    fill(&region, account, 300);
    let lost = region.health().unwrap().disks.iter().position(|disk| disk.in_set).unwrap();
    region.fail_disk(lost).unwrap();
    fill(&region, account, 300);
    whole(&region);
    let health = region.health().unwrap();
    assert!(!health.disks[lost].in_set && health.disks.iter().filter(|disk| disk.in_set).count() == 3);
    region.return_disk(lost).unwrap();
    until("healthy", || region.health().unwrap().disks[lost].state == meridian::DiskState::Healthy);
    region.close().unwrap();
    std::fs::remove_dir_all(dir.path().join("disk-1")).unwrap();
    let memory = Memory::default();
    drop(Region::open(options, memory.clone()).unwrap());
    assert_eq!(memory.0.lock().unwrap().len(), 600);
}

/// What an opening reads grows with the sealed segments by two pages of each copy and the indexes behind the checkpoint.
#[test]
fn an_opening_reads_headers_and_the_unsealed_tail_and_no_sealed_segment() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 3);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::All).unwrap();
    fill(&region, account, 4000);
    whole(&region);
    let crashed = tempfile::tempdir().unwrap();
    for disk in ["disk-0", "disk-1", "disk-2"] {
        copy_directory(&dir.path().join(disk), &crashed.path().join(disk));
    }
    region.close().unwrap();
    // On each of three disks the open segment and the one made ready: walked, looked behind for a block or two, and once more.
    let tail = 3 * 2 * 3 * u64::from(options.segment_bytes);
    for dir in [&dir, &crashed] {
        let (mut pages, mut derived, mut log) = (0, 0, 0);
        for entry in (0..3).flat_map(|disk| std::fs::read_dir(dir.path().join(format!("disk-{disk}"))).unwrap()) {
            let entry = entry.unwrap();
            let (name, bytes) = (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len());
            match name.split('-').next().unwrap() {
                "slot" => (pages, log) = (pages + 2 * 4096, log + bytes),
                "superblock" => pages += bytes,
                "index" | "checkpoint" => derived += bytes,
                _ => {}
            }
        }
        let region = Region::open(crate::common::options(dir, 3), ()).unwrap();
        let read = region.stats().unwrap().recovery_bytes;
        assert!(read >= pages && read <= pages + derived + tail, "{read} bytes of {pages}, {derived} and {tail}");
        assert!(pages + derived + tail < log / 5, "{log} bytes of log");
        region.close().unwrap();
    }
}

/// What is lost at once has one copy of a segment at most: a rack is a fault domain, however many disks stand in it.
#[test]
fn a_rack_of_two_disks_is_lost_and_every_segment_is_whole_again_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&dir, 5);
    options.disks[1].fault_domain = options.disks[0].fault_domain.clone();
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::All).unwrap();
    fill(&region, account, 300);
    whole(&region);
    let rack = |copy: &meridian::CopyHealth| copy.disk < 2;
    let copies = region.copies().unwrap();
    assert!(copies.iter().all(|segment| segment.copies.iter().filter(|copy| rack(copy)).count() < 2), "{copies:?}");
    assert!(copies.iter().flat_map(|segment| &segment.copies).any(rack), "the rack has something to lose");
    for disk in 0..2 {
        region.fail_disk(disk).unwrap();
    }
    fill(&region, account, 300);
    whole(&region);
    let copies = region.copies().unwrap();
    assert!(copies.iter().all(|segment| segment.copies.len() == 3 && !segment.copies.iter().any(rack)), "{copies:?}");
    region.close().unwrap();
    for disk in 0..2 {
        std::fs::remove_dir_all(dir.path().join(format!("disk-{disk}"))).unwrap();
    }
    let memory = Memory::default();
    drop(Region::open(options, memory.clone()).unwrap());
    assert_eq!(memory.0.lock().unwrap().len(), 600);
}

#[test]
fn copies_lie_in_three_zones_or_in_one_before_and_after_a_loss() {
    for placement in [Placement::ThreeZones, Placement::OneZone] {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(&dir, 6);
        options.placement = placement;
        for (disk, zone) in options.disks.iter_mut().zip(["zone-1", "zone-1", "zone-2", "zone-3", "zone-1", "zone-1"]) {
            disk.zone = zone.into();
        }
        // These two are taken down together.
        options.disks[1].upgrade_domain = options.disks[0].upgrade_domain.clone();
        let expected = if placement == Placement::ThreeZones { 3 } else { 1 };
        let region = Region::create(options.clone(), ()).unwrap();
        let account = region.create_account("flights", Ack::All).unwrap();
        let check = || {
            whole(&region);
            for segment in region.copies().unwrap() {
                let zones: BTreeSet<&str> =
                    segment.copies.iter().map(|copy| options.disks[copy.disk].zone.as_str()).collect();
                assert_eq!((segment.copies.len(), zones.len()), (3, expected), "{segment:?}");
                let upgrade: BTreeSet<&str> =
                    segment.copies.iter().map(|copy| options.disks[copy.disk].upgrade_domain.as_str()).collect();
                assert_eq!(upgrade.len(), 3, "{segment:?}");
            }
        };
        fill(&region, account, 300);
        check();
        let in_first = |at: &usize| options.disks[*at].zone == "zone-1";
        let health = region.health().unwrap();
        let lost = (0..6).find(|at| in_first(at) && health.disks[*at].in_set).unwrap();
        region.fail_disk(lost).unwrap();
        fill(&region, account, 300);
        check();
        region.close().unwrap();
    }
}

/// A disk from before the last epoch promises in an opening that is refused, and learns of that epoch: it has missed it all the same.
#[test]
fn a_refused_opening_gives_a_stale_disk_no_vote_in_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 3);
    let at = |name: &str| dir.path().join(name);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::All).unwrap();
    fill(&region, account, 10);
    region.close().unwrap();
    copy_directory(&at("disk-2"), &at("stale"));
    let region = Region::open(options.clone(), ()).unwrap();
    fill(&region, account, 10);
    copy_directory(&at("disk-0"), &at("behind"));
    let last = region.commit(Transaction::new(account, PartitionId(1)).record("the last")).unwrap();
    region.close().unwrap();
    std::fs::rename(at("disk-1"), at("away")).unwrap();
    for (disk, image) in [("disk-0", "behind"), ("disk-2", "stale")] {
        std::fs::remove_dir_all(at(disk)).unwrap();
        std::fs::rename(at(image), at(disk)).unwrap();
    }
    for _ in 0..3 {
        let refused = Region::open(options.clone(), ()).map(drop).expect_err("nobody knows where the log ends");
        assert_eq!(refused.kind(), ErrorKind::RestoreDisk, "{refused}");
    }
    drop(std::fs::remove_dir_all(at("disk-1")));
    std::fs::rename(at("away"), at("disk-1")).unwrap();
    let region = Region::open(options, ()).unwrap();
    assert!(region.read(last.lsn).unwrap().transaction(last.lsn).is_some(), "what was acknowledged is there");
}

#[test]
fn where_a_disk_is_lost_while_another_is_reread_the_region_goes_on_with_that_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&dir, 3);
    options.rebuild_bytes_per_second = 10_000;
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    fill(&region, account, 300);
    region.fail_disk(2).unwrap();
    fill(&region, account, 300);
    until("return", || region.return_disk(2).is_ok());
    assert_eq!(region.health().unwrap().disks[2].state, meridian::DiskState::Rebuilding);
    region.fail_disk(1).unwrap();
    fill(&region, account, 300);
    let memory = Memory::default();
    region.close().unwrap();
    options.rebuild_bytes_per_second = 0;
    let region = Region::open(options, memory.clone()).unwrap();
    assert_eq!(memory.0.lock().unwrap().len(), 900);
    until("return", || match region.return_disk(1) {
        Err(error) => error.kind() != ErrorKind::Busy,
        Ok(()) => true,
    });
    whole(&region);
}

/// Nothing but the default options is known of the options of before: the block is larger than any of today's.
#[test]
fn a_transaction_larger_than_todays_options_take_is_there_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&dir, 3);
    (options.segment_bytes, options.transaction_bytes) = (32 << 20, 20 << 20);
    options.queue_bytes = options.queue_bytes.max(32 << 20);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::All).unwrap();
    let large = Transaction::new(account, PartitionId(1)).record(vec![7; 18 << 20]);
    region.commit(large).unwrap();
    let last = region.commit(Transaction::new(account, PartitionId(1)).record("behind it")).unwrap();
    let crashed = tempfile::tempdir().unwrap();
    for disk in ["disk-0", "disk-1", "disk-2"] {
        copy_directory(&dir.path().join(disk), &crashed.path().join(disk));
    }
    let mut today = crate::common::options(&crashed, 3);
    today.segment_bytes = options.segment_bytes;
    let region = Region::open(today, ()).unwrap();
    assert!(region.read(last.lsn).unwrap().transaction(last.lsn).is_some(), "what was acknowledged is there");
}

#[test]
fn a_directory_with_labels_that_no_missing_disk_has_is_no_replacement() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&dir, 3);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    fill(&region, account, 10);
    region.close().unwrap();
    std::fs::remove_dir_all(dir.path().join("disk-2")).unwrap();
    let labels = options.clone();
    options.disks[2] = meridian::DiskConfig::new(dir.path().join("disk-2"), "elsewhere", "zone-1");
    let region = Region::open(options, ()).unwrap();
    let refused = region.replace_disk(2).expect_err("it would be a fourth disk");
    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
    fill(&region, account, 10);
    region.close().unwrap();
    drop(std::fs::remove_dir_all(dir.path().join("disk-2")));
    let region = Region::open(labels, ()).unwrap();
    region.replace_disk(2).unwrap();
    whole(&region);
}
