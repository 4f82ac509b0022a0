//! Creations that are cut short, refused or held up, written out by hand: what is left can be made
//! again or opened (ADR 0021).

use std::sync::Arc;

use super::scripts::{MS, Script, disk_path, options};
use super::*;
use crate::error::{ErrorKind, Result};
use crate::health::DiskState;
use crate::io::{Driver, OpId};
use crate::log::{Core, Mode, Phase};
use crate::options::Options;
use crate::shared::Shared;
use crate::sync::intake::{AHEAD, Intake};
use crate::types::{AccountId, Ack};

/// Starts to make or open the region; None when the power goes before it is there.
fn until_cut(world: &World, options: &Options, mode: Mode) -> Option<Result<Script>> {
    disturbed(world, options, mode, || {})
}

/// As [`until_cut`], with something that happens before each step.
fn disturbed(world: &World, options: &Options, mode: Mode, mut happens: impl FnMut()) -> Option<Result<Script>> {
    let driver = world.driver();
    let intake = Intake::new(options.queue_transactions, AHEAD, options.queue_bytes as u64, driver.doorbell());
    let shared = Arc::new(Shared::new(options.clone(), intake, driver.environment(), driver.reader()));
    let mut core = Core::start(mode, Box::<SimDriver>::new(driver), Box::new(()), Arc::clone(&shared));
    loop {
        happens();
        match core.step(MS) {
            _ if !world.running() => return None,
            Phase::Failed(error) => return Some(Err(error)),
            Phase::Opening => {}
            Phase::Running | Phase::Closed => break,
        }
    }
    Some(Ok(Script { world: world.clone(), core, shared, account: AccountId::SYSTEM }))
}

/// A region that was being made when the power went is made by the same call, or opens; every disk
/// takes part.
#[test]
fn h2_create_cut_short_at_any_operation_is_continued() {
    let (mut again, mut opened) = (0, 0);
    for (disks, seed) in [3, 4, 5].into_iter().flat_map(|disks| (1..9).map(move |seed| (disks, seed))) {
        // In every second round no slot can be made, so that it is also cut short while it removes
        // what it has made.
        let refused = (seed % 2 == 0).then(|| ["slot-000000", "slot-000001"].map(str::to_owned).to_vec());
        for cut in 1.. {
            let mut world = WorldOptions::new(seed << 32 | cut);
            world.latency.tail_every = 0;
            world.is_append = |OpId(id)| id >> 63 == 1;
            let world = World::new(world);
            if let Some(files) = refused.clone() {
                world.refuse(Refusal { what: Refused::Creates, disk: None, files });
            }
            world.crash_after(Some(cut));
            if until_cut(&world, &options(disks), Mode::Create).is_some() {
                break;
            }
            world.crash_after(None);
            world.allow(None);
            let made = until_cut(&world, &options(disks), Mode::Create).expect("no cut");
            let made = match made {
                Err(error) if error.kind() == ErrorKind::Exists => {
                    opened += 1;
                    world.crash();
                    until_cut(&world, &options(disks), Mode::Open).expect("no cut")
                }
                made => {
                    again += 1;
                    made
                }
            };
            let mut script = made.unwrap_or_else(|error| panic!("{disks} disks, cut at {cut}: {error}"));
            script.step_for(MS * 500);
            assert_eq!(script.states(), vec![DiskState::Healthy; disks], "{disks} disks, cut at {cut}");
        }
    }
    assert!(again > 20 && opened > 5, "{again} made again, {opened} opened");
}

/// Disks that hang while a region is made keep what had reached them: the same call makes it again,
/// or it opens.
#[test]
fn h2_create_on_disks_that_begin_to_hang_at_any_operation_is_continued() {
    let (mut again, mut opened) = (0, 0);
    for (disks, hung) in [(3, vec![0]), (3, vec![0, 1]), (4, vec![0, 1]), (4, vec![0, 1, 2]), (4, vec![1, 2, 3])] {
        for at in 1.. {
            let mut world = WorldOptions::new((disks as u64) << 32 | at);
            world.latency.tail_every = 0;
            let world = World::new(world);
            let set = |condition| hung.iter().for_each(|disk| world.set_condition(&disk_path(*disk), condition));
            let begin_to_hang = || {
                if world.operations() >= at {
                    set(Condition::Stalled);
                }
            };
            let made = disturbed(&world, &options(disks), Mode::Create, begin_to_hang).expect("no cut");
            let is_made = made.is_ok();
            drop(made);
            world.crash();
            if world.operations() < at {
                break;
            }
            set(Condition::Healthy);
            let made = until_cut(&world, &options(disks), Mode::Create).expect("no cut");
            let exists = matches!(&made, Err(error) if error.kind() == ErrorKind::Exists);
            let made = if exists { until_cut(&world, &options(disks), Mode::Open).expect("no cut") } else { made };
            assert!(exists || !is_made, "made anew over a region: {disks} disks, {hung:?} hang at {at}");
            *if exists { &mut opened } else { &mut again } += 1;
            let mut script = made.unwrap_or_else(|error| panic!("{disks} disks, {hung:?} hang at {at}: {error}"));
            script.step_for(MS * 500);
            // A region that was made after all goes on without the disks that its making did not
            // reach: they are to be replaced.
            for state in script.states() {
                let lost = exists && matches!(state, DiskState::Foreign | DiskState::Blank);
                assert!(lost || state == DiskState::Healthy, "hang at {at}: {:?}", script.health());
            }
        }
    }
    assert!(again > 20 && opened > 5, "{again} made again, {opened} opened");
}

/// A creation that fails leaves nothing that another would stumble over.
#[test]
fn h2_create_that_fails_leaves_nothing_behind() {
    let mut world = WorldOptions::new(1);
    world.latency.tail_every = 0;
    let world = World::new(world);
    (1..3).for_each(|disk| world.set_condition(&disk_path(disk), Condition::Full));
    let refused = until_cut(&world, &options(3), Mode::Create).expect("no cut").err().expect("two disks are full");
    assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
    for disk in 0..3 {
        let names: Vec<String> = world.files(&disk_path(disk)).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["LOCK"]);
    }
    world.crash();
    (1..3).for_each(|disk| world.set_condition(&disk_path(disk), Condition::Healthy));
    until_cut(&world, &options(3), Mode::Create).expect("no cut").map(drop).expect("made");
}

#[test]
fn h4_create_without_room_for_a_segment_names_the_files_and_why() {
    let mut world = WorldOptions::new(1);
    // Room for superblocks, and for no segment.
    world.capacity = 256 << 10;
    let mut options = options(3);
    options.segment_bytes = 4 << 20;
    let refused = until_cut(&World::new(world), &options, Mode::Create).expect("no cut").err().expect("no room");
    assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
    let said = refused.to_string();
    for disk in 0..3 {
        let path = disk_path(disk);
        assert!(said.contains(&format!("{}: slot-000000 cannot be made: No space left", path.display())), "{said}");
    }
}

/// A region that holds one acknowledged record is never made again, whatever its superblocks look
/// like.
#[test]
fn h2_create_over_disks_that_hold_blocks_is_refused() {
    let mut script = Script::create(options(3));
    let ticket = script.commit_to(Ack::All);
    script.answer(ticket).expect("acknowledged");
    let Script { world, core, .. } = script;
    world.crash();
    drop(core);
    for disk in 0..3 {
        // One bit of each slot: neither verifies.
        world.flip(&disk_path(disk), "superblock", 70, 1);
        world.flip(&disk_path(disk), "superblock", crate::format::SUPERBLOCK_SLOT as u64 + 70, 1);
    }
    let refused = until_cut(&world, &options(3), Mode::Create).expect("no cut").err().expect("it holds blocks");
    assert_eq!(refused.kind(), ErrorKind::Exists, "{refused}");
}
