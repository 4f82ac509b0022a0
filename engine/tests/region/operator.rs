//! What an operator does and sees: drains, copies and disks, latencies of each stage.

use meridian::{AccountId, Ack, DiskState, ErrorKind, Lsn, PartitionId, Region, Transaction};

use crate::common::options;
use crate::disks::until;

fn fill(region: &Region, account: AccountId, transactions: u32) {
    let send = |number: u32| {
        let transaction = Transaction::new(account, PartitionId(u128::from(number % 5))).record(vec![1; 10_000]);
        region.submit(transaction).unwrap()
    };
    let tickets: Vec<_> = (0..transactions).map(send).collect();
    for ticket in tickets {
        ticket.wait().unwrap();
    }
}

fn set(region: &Region) -> Vec<usize> {
    let health = region.health().unwrap();
    (0..health.disks.len()).filter(|&at| health.disks[at].in_set).collect()
}

#[test]
fn a_drain_takes_one_upgrade_domain_and_refuses_the_next_until_the_sets_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(options(&dir, 4), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    fill(&region, account, 200);
    until("whole", || region.health().unwrap().is_whole());
    let (first, second) = (set(&region)[0], set(&region)[1]);

    region.drain(&format!("disk-{first}")).unwrap();
    assert!(!set(&region).contains(&first) && set(&region).len() == 3, "the spare takes its place");
    let refused = |domain: usize| region.drain(&format!("disk-{domain}")).unwrap_err().kind();
    assert_eq!(refused(second), ErrorKind::Degraded, "another domain is drained");
    fill(&region, account, 200);
    let copies = region.copies().unwrap();
    let drained_from = region.health().unwrap().epoch;
    let on_drained = |copy: &meridian::CopyHealth| copy.disk == first;
    let after = copies.iter().filter(|segment| segment.epoch == drained_from);
    assert!(after.clone().count() > 1 && !after.flat_map(|segment| &segment.copies).any(on_drained));

    // Back, but a disk is lost: the sets are not whole, no domain goes.
    region.undrain(&format!("disk-{first}")).unwrap();
    until("whole", || region.health().unwrap().is_whole());
    region.fail_disk(second).unwrap();
    assert_eq!(refused(first), ErrorKind::Degraded, "a copy is missing");
    until("whole", || region.health().unwrap().is_whole());
    region.drain(&format!("disk-{first}")).unwrap();
    assert!(!set(&region).contains(&first));
    fill(&region, account, 50);
    region.close().unwrap();
}

#[test]
fn capacity_placement_and_health_of_every_copy_are_shown_before_during_and_after_a_loss() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 4);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    // How many segments that takes depends on how the blocks fall: three are sealed for certain.
    fill(&region, account, 600);
    until("whole", || region.health().unwrap().is_whole());

    let (health, copies) = (region.health().unwrap(), region.copies().unwrap());
    for (disk, config) in health.disks.iter().zip(&options.disks) {
        let labels = [&config.fault_domain, &config.upgrade_domain, &config.zone];
        assert_eq!((&disk.path, disk.domains.each_ref()), (&config.path, labels));
        assert_eq!((disk.state, disk.draining, disk.full), (DiskState::Healthy, false, false));
        assert!(disk.space.0 > 0 && disk.space.0 <= disk.space.1, "{disk:?}");
    }
    assert!(copies.windows(2).all(|pair| pair[1].segment.0 == pair[0].segment.0 + 1));
    assert_eq!((copies.len(), copies.last().unwrap().segment), (health.segments, health.active));
    let (active, sealed) = copies.split_last().unwrap();
    assert!(active.sealed.is_none() && active.copies.iter().all(|copy| !copy.complete));
    assert!(sealed.len() > 2 && sealed.iter().all(|segment| segment.sealed.is_some()));
    assert!(sealed.iter().all(|segment| segment.copies.iter().filter(|copy| copy.complete).count() == 3));
    // What a disk says that it holds is what lies there.
    for (at, disk) in health.disks.iter().enumerate() {
        let slots =
            std::fs::read_dir(&disk.path).unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        assert_eq!(slots.filter(|name| name.starts_with("slot-")).count() as u32, disk.segments.0, "disk {at}");
        let held = copies.iter().filter(|segment| segment.copies.iter().any(|copy| copy.disk == at)).count() as u32;
        assert!(held + disk.segments.1 <= disk.segments.0, "disk {at}: {held} copies, {:?}", disk.segments);
    }

    let lost = set(&region)[0];
    region.fail_disk(lost).unwrap();
    let during = region.health().unwrap();
    assert_eq!(during.disks[lost].state, DiskState::Failed);
    assert!(!during.is_whole() && !during.disks[lost].reason.is_empty());
    assert!(region.copies().unwrap().iter().all(|segment| segment.copies.iter().all(|copy| copy.disk != lost)));

    until("whole", || region.health().unwrap().is_whole());
    let after = region.copies().unwrap();
    let whole = |segment: &meridian::SegmentHealth| segment.copies.iter().filter(|copy| copy.complete).count() == 3;
    assert!(after.iter().filter(|segment| segment.sealed.is_some()).all(whole));
    region.close().unwrap();
}

#[test]
fn with_too_few_disks_the_region_halts_names_what_is_missing_and_can_be_read() {
    // Three disks need two, four need three.
    for (disks, lost) in [(3, [0, 1]), (4, [1, 2])] {
        let dir = tempfile::tempdir().unwrap();
        let options = options(&dir, disks);
        let region = Region::create(options.clone(), ()).unwrap();
        let account = region.create_account("flights", Ack::Quorum).unwrap();
        fill(&region, account, 300);
        for disk in lost {
            region.fail_disk(disk).unwrap();
        }
        until("halted", || region.health().unwrap().halted.is_some());
        let why = region.health().unwrap().halted.unwrap();
        for disk in 0..disks {
            let path = options.disks[disk].path.display().to_string();
            assert_eq!(why.contains(&path), lost.contains(&disk), "{why}");
        }
        let transaction = Transaction::new(account, PartitionId(1)).record("late");
        let halted = [
            region.commit(transaction).unwrap_err(),
            region.trim(Lsn::MAX).unwrap_err(),
            region.return_disk(lost[0]).unwrap_err(),
            region.scrub().unwrap_err(),
        ];
        assert!(halted.iter().all(|error| error.kind() == ErrorKind::Halted), "{halted:?}");
        let mut tail = region.subscribe(Lsn::ZERO);
        let mut read = 0;
        while let Some(block) = tail.try_next().unwrap() {
            read += block.transactions().filter(|transaction| !transaction.is_system()).count();
        }
        assert_eq!(read, 300);
        assert_eq!(region.close().unwrap_err().kind(), ErrorKind::Halted);
        let region = Region::open(options, ()).unwrap();
        until("whole", || region.health().unwrap().is_whole());
        region.close().unwrap();
    }
}

#[test]
fn each_stage_of_a_write_has_its_latencies() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(options(&dir, 3), ()).unwrap();
    let account = region.create_account("flights", Ack::All).unwrap();
    fill(&region, account, 100);
    let stats = region.stats().unwrap();
    // The account's own record is a transaction, too.
    assert_eq!((stats.transactions, stats.records), (101, 101));
    assert_eq!((stats.queue.len(), stats.acknowledged.len()), (101, 101));
    assert!(stats.blocks > 0 && stats.blocks <= 101 && stats.bytes >= 1_000_000);
    assert_eq!(
        (stats.group_commit.len(), stats.quorum.len(), stats.apply.len()),
        (stats.blocks, stats.blocks, stats.blocks)
    );
    assert!(stats.disks.len() == 3 && stats.disks.iter().all(|disk| disk.len() == stats.blocks));
    // A write is on its way before a quorum has it, and a quorum before the caller is told.
    assert!(stats.acknowledged.max() >= stats.quorum.min() && stats.quorum.min() > 1_000);

    region.fail_disk(0).unwrap();
    until("a set change", || region.stats().unwrap().set_change.len() == 1);
    assert_eq!(set(&region).len(), 2);
    assert!(region.subscribe(Lsn::ZERO).try_next().unwrap().is_some());
    region.close().unwrap();
}
