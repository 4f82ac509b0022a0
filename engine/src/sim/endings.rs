//! Openings written out by hand: without a disk, over what cannot be read, or cut short (H2).

use super::scripts::{MS, Script, disk_path, options};
use super::*;
use crate::error::{Error, ErrorKind};
use crate::format::{DATA_START, SUPERBLOCK_SLOT, Seal, SegmentHeader};
use crate::health::{DiskState, SegmentHealth};
use crate::io::DiskIndex;
use crate::log::{Mode, Phase};
use crate::options::Options;
use crate::shared::Control;
use crate::types::{Ack, Lsn, SegmentId};

/// The slots of a disk that hold a segment or did, by its number.
fn held(world: &World, disk: usize) -> Vec<(SegmentId, String)> {
    let files = world.files(&disk_path(disk)).into_iter().filter(|(name, _)| name.starts_with("slot-"));
    let header = |name: &str| SegmentHeader::decode(&world.part(&disk_path(disk), name, 0..4096)?).ok();
    files.filter_map(|(name, _)| Some((header(&name)?.segment, name))).collect()
}

fn slot_of(world: &World, disk: usize, segment: SegmentId) -> String {
    held(world, disk).into_iter().find(|(id, _)| *id == segment).expect("it holds the segment").1
}

/// Commits to three disks until segment `last` holds three blocks; returns the positions of all.
fn fill_to(script: &mut Script, last: SegmentId) -> Vec<Lsn> {
    let mut all: Vec<Lsn> = Vec::new();
    while all.iter().rev().take(3).filter(|lsn| lsn.segment() == last).count() < 3 {
        let ticket = script.commit_to(Ack::All);
        all.push(script.answer(ticket).expect("three disks").lsn);
    }
    all
}

/// Spoils the seal pages of every copy, as if the power had gone before they were written.
fn without_pages(world: &World, disks: usize) {
    for disk in 0..disks {
        for (_, name) in held(world, disk) {
            let page = world.part(&disk_path(disk), &name, 4096..8192).expect("it is listed");
            if Seal::decode(&page).is_ok() {
                world.flip(&disk_path(disk), &name, 4096 + 50, 3);
            }
        }
    }
}

/// Spoils one block of a disk's copy.
fn rot(world: &World, disk: usize, lsn: Lsn) {
    assert!(world.flip(&disk_path(disk), &slot_of(world, disk, lsn.segment()), u64::from(lsn.offset()) + 20, 1));
}

fn contents(world: &World, disks: usize) -> Vec<(usize, String, Option<Vec<u8>>)> {
    let of = |disk: usize| {
        let files = world.files(&disk_path(disk)).into_iter();
        files.map(move |(name, _)| (disk, name.clone(), world.bytes(&disk_path(disk), &name)))
    };
    (0..disks).flat_map(of).collect()
}

/// Opens until `is_cut`, when the power goes; whether the region was open by then.
fn opens_before(world: &World, is_cut: impl Fn() -> bool) -> bool {
    let mut core = Script::begin(world, options(3), Mode::Open).0;
    let mut opened = false;
    while !opened && !is_cut() {
        match core.step(MS / 100) {
            Phase::Opening => {}
            Phase::Running => opened = true,
            Phase::Failed(error) => panic!("{error}"),
            Phase::Closed => panic!("nobody closes it"),
        }
    }
    world.crash();
    drop(core);
    opened
}

#[test]
fn h2_tail_on_one_disk_is_on_a_second_before_a_superblock_lists_its_end() {
    let mut opened = false;
    for cut in (1..).map(|cut| MS / 10 * cut) {
        let mut script = Script::create(options(3));
        let all = fill_to(&mut script, SegmentId(3));
        let again = script.reopen(|world| {
            without_pages(world, 3);
            // The last block is on one disk alone, as if nobody had been answered yet.
            [1, 2].into_iter().for_each(|disk| rot(world, disk, all[all.len() - 1]));
            let end = world.now() + cut.as_nanos() as u64;
            opened = opens_before(world, || world.now() >= end);
            world.set_condition(&disk_path(0), Condition::Lost);
        });
        let script = again.unwrap_or_else(|error| panic!("cut after {cut:?}: {error}"));
        assert!(script.next_sequence() >= all.len() as u64 - 1, "cut after {cut:?}");
        if opened {
            break;
        }
    }
}

#[test]
fn h2_end_on_a_page_is_one_that_no_later_opening_finds_elsewhere() {
    let set = |world: &World, disk: usize, condition| world.set_condition(&disk_path(disk), condition);
    // Each length is another time at which the power goes.
    for (more, away) in (0..10).flat_map(|more| [(more, 1), (more, 2)]) {
        let (mut script, segment, other) = (Script::create(options(3)), SegmentId(2), 3 - away);
        let mut all = fill_to(&mut script, segment);
        all.extend((0..more).map(|_| {
            let ticket = script.commit_to(Ack::All);
            script.answer(ticket).expect("three disks").lsn
        }));
        let again = script.reopen(|world| {
            [1, 2].into_iter().for_each(|disk| rot(world, disk, all[all.len() - 1]));
            // Without the disk that alone has the last block, until a page says where the log ends.
            set(world, 0, Condition::Lost);
            set(world, other, Condition::Slow(50));
            let slot = slot_of(world, away, segment);
            let page = || world.part(&disk_path(away), &slot, 4096..8192).expect("it is there");
            opens_before(world, || Seal::decode(&page()).is_ok());
            // With that disk, and without the one that has the page.
            [0, other].into_iter().for_each(|disk| set(world, disk, Condition::Healthy));
            set(world, away, Condition::Lost);
        });
        let mut script = again.unwrap_or_else(|error| panic!("{more} more, without {away}: {error}"));
        let ticket = script.commit();
        script.answer(ticket).expect("two disks are there");
        let shown = script.next_sequence();
        let again = script.reopen(|world| set(world, away, Condition::Healthy));
        let script = again.unwrap_or_else(|error| panic!("{more} more, {away} is back: {error}"));
        assert_eq!(script.next_sequence(), shown, "{more} more, {away} is back");
    }
}

#[test]
fn h2_member_unreadable_after_a_gap_does_not_say_that_the_log_ends_there() {
    let mut options = options(3);
    options.segment_bytes = 4 << 20;
    let mut script = Script::create(options);
    let all: Vec<Lsn> = (0..200)
        .map(|_| {
            let ticket = script.commit_to(Ack::All);
            script.answer(ticket).expect("three disks").lsn
        })
        .collect();
    assert!(all.iter().all(|lsn| lsn.segment() == SegmentId(1)) && all[199].offset() > 2 << 20);
    let world = script.world.clone();
    let refused = script.reopen(|world| {
        world.set_condition(&disk_path(0), Condition::Lost);
        for disk in [1, 2] {
            rot(world, disk, all[10]);
            // Only who looks for later blocks reads as far as that.
            assert!(world.spoil(&disk_path(disk), &slot_of(world, disk, SegmentId(1)), 2 << 20..(2 << 20) + 4096));
        }
    });
    let refused = refused.err().expect("the blocks after the gap were acknowledged");
    assert_eq!(refused.kind(), ErrorKind::RestoreDisk, "{refused}");
    world.crash();
    world.set_condition(&disk_path(0), Condition::Healthy);
    let mut options = self::options(3);
    options.segment_bytes = 4 << 20;
    let script = Script::start(world, options, Mode::Open).expect("one disk has all of it");
    assert!(script.shared.committed.get() > all[199].0, "everything acknowledged is there");
}

/// Opens a region of five segments after `happens`; a refusal has changed nothing.
fn refusal(options: Options, happens: impl Fn(&World)) -> Error {
    let mut script = Script::create(self::options(3));
    fill_to(&mut script, SegmentId(5));
    script.step_for(MS * 500);
    let Script { world, core, .. } = script;
    world.crash();
    drop(core);
    happens(&world);
    let before = contents(&world, 3);
    let refused = Script::start(world.clone(), options, Mode::Open).err().expect("it is refused");
    assert!(contents(&world, 3) == before, "a refused opening changes nothing");
    refused
}

#[test]
fn h2_segments_missing_between_two_or_at_the_beginning_refuse_by_number() {
    for (missing, named) in
        [(vec![3], "segments 3 to 3 are on no disk"), (vec![1, 2], "segments 1 to 2 are on no disk")]
    {
        let refused = refusal(options(3), |world| {
            for (disk, id) in (0..3).flat_map(|disk| missing.iter().map(move |id| (disk, SegmentId(*id)))) {
                assert!(world.unlink(&disk_path(disk), &slot_of(world, disk, id)));
            }
            // The table of epochs knows that there was a first segment.
            (0..3).for_each(|disk| forget_epochs(world, disk));
        });
        assert_eq!(refused.kind(), ErrorKind::RestoreDisk, "{refused}");
        let said = refused.to_string();
        assert!([named, "disk-2", "restore a disk"].iter().all(|part| said.contains(part)), "{said}");
    }
}

/// As after lives that settled the oldest segments: what superblocks list begins later.
fn forget_epochs(world: &World, disk: usize) {
    let mut image = world.snapshot(&disk_path(disk));
    for (_, file) in image.files.iter_mut().filter(|(name, _)| name == "superblock") {
        let mut bytes = file.bytes();
        for at in [0, SUPERBLOCK_SLOT] {
            let Ok(mut superblock) = crate::format::Superblock::decode(&bytes[at..]) else { continue };
            superblock.epochs.last_mut().expect("an epoch").first_segment = SegmentId(4);
            bytes[at..at + SUPERBLOCK_SLOT].copy_from_slice(&superblock.encode().expect("it fits"));
        }
        file.write(0, &bytes);
    }
    world.restore(&disk_path(disk), &image);
}

#[test]
fn h2_opening_without_room_for_its_first_segment_promises_nothing() {
    let mut options = options(3);
    options.max_segments = Some(3);
    let refused = refusal(options, |world| {
        // Every slot that is free.
        for (disk, (name, len)) in
            (0..3).flat_map(|disk| world.files(&disk_path(disk)).into_iter().map(move |file| (disk, file)))
        {
            let slot = name.starts_with("slot-");
            let blocks = || world.part(&disk_path(disk), &name, u64::from(DATA_START)..len);
            if slot && blocks().is_none_or(|bytes| bytes.iter().all(|byte| *byte == 0)) {
                world.unlink(&disk_path(disk), &name);
            }
        }
    });
    assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
    assert!(refused.to_string().contains("max_segments 3 is reached on disk-0"), "{refused}");
}

#[test]
fn h2_superblock_that_has_lost_its_end_is_not_believed() {
    let mut script = Script::create(options(3));
    fill_to(&mut script, SegmentId(2));
    let opened = script.reopen(|world| assert!(world.cut(&disk_path(1), "superblock", SUPERBLOCK_SLOT as u64)));
    let disk = opened.expect("two disks are in order").health().disks.swap_remove(1);
    assert_eq!(disk.state, DiskState::Failed);
    assert!(disk.reason.contains("the superblock has 32768 of 65536 bytes"), "{}", disk.reason);
}

#[test]
fn h2_unread_slots_are_used_again_once_every_segment_has_two_copies() {
    let mut script = Script::create(options(3));
    fill_to(&mut script, SegmentId(6));
    script.step_for(MS * 500);
    let opened = script.reopen(|world| {
        for id in [1, 2, 3].map(SegmentId) {
            assert!(world.spoil(&disk_path(1), &slot_of(world, 1, id), 0..4096));
            // This copy does not count before it has been reread.
            assert!(world.flip(&disk_path(2), &slot_of(world, 2, id), 4096 + 50, 3));
        }
    });
    let mut script = opened.expect("what was not sealed is on two disks");
    let drain = |script: &Script, on| script.core.log().disks.borrow_mut()[1].draining = on;
    let unread = |script: &Script| script.core.log().disks.borrow()[1].set_aside.len();
    // No disk can take a copy.
    drain(&script, true);
    script.control(|done| Control::Fail { disk: 2, done });
    script.step_for(MS * 1000);
    assert_eq!((unread(&script), thin(&mut script).is_empty()), (3, false), "{:?}", script.health());
    drain(&script, false);
    script.core.log().changed.raise();
    script.step_for(MS * 3000);
    assert!(thin(&mut script).is_empty(), "{:?}", script.health());
    assert_eq!(unread(&script), 0, "{:?}", script.health());
}

/// The sealed segments with fewer than two complete copies.
fn thin(script: &mut Script) -> Vec<SegmentHealth> {
    let mut segments = script.control(|done| Control::Copies { done });
    segments
        .retain(|segment| segment.sealed.is_some() && segment.copies.iter().filter(|copy| copy.complete).count() < 2);
    segments
}

#[test]
fn h4_idle_region_notices_that_a_full_disk_has_space_again() {
    let mut script = Script::create(options(3));
    script.step_for(MS * 1000);
    script.core.log().could_not_rebuild(DiskIndex(1), &rustix::io::Errno::NOSPC.into());
    script.step_for(MS);
    assert!(script.health().disks[1].full);
    script.step_for(MS * 1500);
    assert!(!script.health().disks[1].full, "{:?}", script.health());
}

/// A disk that was full takes segments again soon after it has space, and health never says that it
/// is full without saying why.
#[test]
fn h4_disk_that_was_full_takes_segments_again_within_two_seconds() {
    let mut script = Script::create(options(3));
    fill_to(&mut script, SegmentId(6));
    script.step_for(MS * 500);
    let opened = script.reopen(|world| {
        for id in [1, 2, 3].map(SegmentId) {
            assert!(world.spoil(&disk_path(1), &slot_of(world, 1, id), 0..4096));
            assert!(world.flip(&disk_path(2), &slot_of(world, 2, id), 4096 + 50, 3));
        }
        world.set_condition(&disk_path(1), Condition::Full);
    });
    let mut script = opened.expect("what was not sealed is on two disks");
    script.control(|done| Control::Fail { disk: 2, done });
    let look = |script: &mut Script| {
        let disk = script.health().disks.swap_remove(1);
        assert!(!disk.full || disk.reason.contains("slot-"), "{disk:?}");
        disk.full
    };
    let mut was_full = false;
    for _ in 0..30 {
        script.step_for(MS * 100);
        was_full |= look(&mut script);
    }
    assert!(was_full);
    script.set(&[1], Condition::Healthy);
    script.step_for(MS * 2000);
    assert!(!look(&mut script) && thin(&mut script).is_empty(), "{:?}", script.health());
}
