//! Lives, set changes and lost disks in any number: no structure on disk is filled by them (acceptance H1).

use std::time::Duration;

use super::medium::Inode;
use super::scripts::{MS, Script, disk_path, options};
use super::{Bug, Condition, World, plant, reached};
use crate::error::{ErrorKind, Result};
use crate::format::{EpochEntry, MAX_EPOCHS, MAX_SEALS, SUPERBLOCK_SLOT, Seal, SegmentHeader, Superblock};
use crate::health::DiskState;
use crate::log::seal::checkpoint_name;
use crate::log::tables::Tables;
use crate::log::{Mode, Phase};
use crate::options::Options;
use crate::shared::{AccountChange, Control, PutAccount, Request};
use crate::sync::ticket::ticket;
use crate::types::{Ack, Epoch, Lsn, SegmentId};

/// More than any table of the superblock holds.
const LIVES: u64 = 400;

/// The smallest segments over `disks` disks.
fn small(disks: usize) -> Options {
    let mut options = options(disks);
    options.segment_bytes = 64 << 10;
    options.stall_timeout = Duration::from_millis(100);
    options
}

/// Crashes and opens again `lives` times; each life does what `live` says. Returns the script in its last life.
fn live(
    mut script: Script,
    lives: u64,
    mut live: impl FnMut(u64, &mut Script),
    mut meanwhile: impl FnMut(u64, &World),
) -> Result<Script> {
    for life in 0..lives {
        live(life, &mut script);
        script = script.reopen(|world| meanwhile(life, world))?;
    }
    Ok(script)
}

fn commit(_: u64, script: &mut Script) {
    let ticket = script.commit();
    script.answer(ticket).expect("two disks are there");
}

/// How many seals and epochs the superblocks of this life list.
fn listed(script: &Script) -> (usize, usize) {
    let meta = script.core.log().meta.borrow();
    (meta.seals.len(), meta.epochs.len())
}

fn opens_with_all(script: &mut Script, committed: u64) {
    assert_eq!(script.next_sequence(), committed);
    commit(0, script);
    let (seals, epochs) = listed(script);
    assert!(seals <= 4 && epochs <= 4, "{seals} seals and {epochs} epochs are listed");
}

#[test]
fn h1_lives_of_one_record_do_not_fill_the_superblock() {
    let mut script = live(Script::create(small(3)), LIVES, commit, |_, _| {}).expect("opened");
    opens_with_all(&mut script, LIVES);
}

#[test]
fn h1_lives_of_one_record_with_a_disk_away_do_not_fill_the_superblock() {
    let script = Script::create(small(3));
    script.set(&[2], Condition::Lost);
    let mut script = live(script, LIVES, commit, |_, _| {}).expect("opened");
    opens_with_all(&mut script, LIVES);
}

#[test]
fn h1_lives_that_end_at_any_step_do_not_fill_the_superblock() {
    let any_step = |life: u64, script: &mut Script| {
        let _ticket = script.commit();
        (0..life % 61).for_each(|_| drop(script.core.step(MS / 100)));
    };
    let mut script = live(Script::create(small(3)), LIVES, any_step, |_, _| {}).expect("opened");
    let committed = script.next_sequence();
    assert!(committed > LIVES / 2, "{committed}");
    opens_with_all(&mut script, committed);
}

#[test]
fn h1_openings_that_are_cut_short_do_not_fill_the_superblock() {
    let mut script = Script::create(small(3));
    let mut cuts = 0;
    for life in 0..LIVES {
        commit(life, &mut script);
        // The power goes again while it opens.
        let cut = |world: &World| {
            world.crash_after(Some(life * 7 % 120 + 1));
            cuts += u64::from(is_cut_while_opening(world));
            world.crash_after(None);
            world.crash();
        };
        script = script.reopen(cut).expect("opened");
    }
    assert!(cuts > LIVES / 2, "{cuts}");
    opens_with_all(&mut script, LIVES);
}

/// Opens the region of [`small`] until the power goes; false when it does not go before the region is open.
fn is_cut_while_opening(world: &World) -> bool {
    let mut core = Script::begin(world, small(3), Mode::Open).0;
    loop {
        match core.step(MS) {
            _ if !world.running() => return true,
            Phase::Opening => {}
            Phase::Running => return false,
            Phase::Failed(error) => panic!("{error}"),
            Phase::Closed => panic!("nobody closes it"),
        }
    }
}

#[test]
fn h1_lives_that_seal_several_segments_do_not_fill_the_superblock() {
    let several = |life: u64, script: &mut Script| (0..10).for_each(|_| commit(life, script));
    let mut script = live(Script::create(small(3)), 100, several, |_, _| {}).expect("opened");
    opens_with_all(&mut script, 1000);
}

#[test]
fn h1_thousands_of_lives_with_trims_do_not_fill_anything() {
    let trims = |life: u64, script: &mut Script| {
        commit(life, script);
        if life % 16 == 15 {
            script.step_for(MS * 20);
            script.control(|done| Control::Trim { to: Lsn::MAX, done });
        }
    };
    let mut script = live(Script::create(small(3)), 3000, trims, |_, _| {}).expect("opened");
    opens_with_all(&mut script, 3000);
    for disk in 0..3 {
        let files = script.world.files(&disk_path(disk));
        assert!(files.len() < 100, "{} files are left on one disk", files.len());
    }
}

/// Makes the seal pages of a disk's copies unreadable, as if they had never been written.
fn without_pages(world: &World, disk: usize) {
    for (name, _) in world.files(&disk_path(disk)).into_iter().filter(|(name, _)| name.starts_with("slot-")) {
        let bytes = world.bytes(&disk_path(disk), &name).expect("it is listed");
        if bytes.get(4096..).is_some_and(|page| Seal::decode(page).is_ok()) {
            world.flip(&disk_path(disk), &name, 4096 + 50, 3);
        }
    }
}

#[test]
fn h1_more_ends_than_a_superblock_lists_are_settled_in_turns() {
    let mut script = Script::create(small(3));
    let commits = 6 * MAX_SEALS as u64;
    (0..commits).for_each(|_| commit(0, &mut script));
    assert!(script.health().segments > MAX_SEALS + 20, "{}", script.health().segments);
    let mut script = script.reopen(|world| (0..3).for_each(|disk| without_pages(world, disk))).expect("opened");
    opens_with_all(&mut script, commits);
}

#[test]
fn h1_ends_that_one_page_each_shows_do_not_fill_the_superblock() {
    let lives = 2 * MAX_EPOCHS as u64;
    let fill = |life: u64, script: &mut Script| (0..5).for_each(|_| commit(life, script));
    let one_page = |_: u64, world: &World| (1..3).for_each(|disk| without_pages(world, disk));
    let mut script = live(Script::create(small(3)), lives, fill, one_page).expect("opened");
    let (_, epochs) = listed(&script);
    assert!((MAX_EPOCHS - 2..=MAX_EPOCHS).contains(&epochs), "{epochs}");
    assert_eq!(script.next_sequence(), 5 * lives);
    script.step_for(MS * 1000);
    let mut script = script.reopen(|_| {}).expect("opened");
    opens_with_all(&mut script, 5 * lives);
}

/// Makes the oldest segments, as many as the superblocks list, look as if one disk alone had them and their ends.
fn with_full_tables(script: &Script) {
    let log = script.core.log();
    let (mut catalog, mut meta) = (log.catalog.borrow_mut(), log.meta.borrow_mut());
    let present = meta.epochs.pop().expect("the present epoch");
    meta.epochs.clear();
    for (id, segment) in catalog.iter_mut().take(MAX_SEALS) {
        meta.epochs.push(EpochEntry { epoch: segment.epoch, first_segment: id, set: segment.set.clone() });
        meta.seals.push(segment.seal.clone().expect("it is sealed"));
        segment.copies.retain(|copy| copy.disk.0 == 0);
        segment.settled = false;
    }
    meta.epochs.push(present);
}

#[test]
fn h1_a_set_change_makes_room_in_full_tables() {
    let lives = MAX_SEALS as u64 + 10;
    let mut options = small(3);
    options.rebuild_bytes_per_second = 1;
    let mut script = live(Script::create(options), lives, commit, |_, _| {}).expect("opened");
    commit(0, &mut script);
    script.step_for(MS * 100);
    with_full_tables(&script);
    script.control(|done| Control::Fail { disk: 2, done });
    script.step_for(MS * 100);
    commit(0, &mut script);
    let health = script.health();
    assert!(health.halted.is_none() && !health.disks[2].in_set, "{health:?}");
    let mut script = script.reopen(|_| {}).expect("opened");
    opens_with_all(&mut script, lives + 2);
}

#[test]
fn h1_a_superblock_that_does_not_fit_is_named_and_no_disk_is_blamed() {
    let mut script = Script::create(small(3));
    for life in 0..20 {
        commit(life, &mut script);
    }
    script.step_for(MS * 100);
    {
        let mut meta = script.core.log().meta.borrow_mut();
        let entry = meta.epochs[0].clone();
        meta.epochs = (0..1000).map(|at| EpochEntry { epoch: Epoch(at), ..entry.clone() }).collect();
    }
    let (done, ticket) = ticket();
    script.ask(Request::Control(Control::Trim { to: Lsn::MAX, done }), 0);
    let error = script.answer(ticket).expect_err("it does not fit");
    assert_eq!(error.kind(), ErrorKind::LimitReached, "{error}");
    let message = error.to_string();
    assert!(message.contains("1000 epochs (128 accepted)") && message.contains("32768 bytes"), "{message}");
    assert_eq!(script.states(), [DiskState::Healthy; 3]);
}

#[test]
fn h1_names_of_writes_come_again_without_those_still_on_their_way() {
    let mut script = Script::create(small(4));
    let hangs = script.health().disks.iter().position(|disk| disk.in_set).expect("a set");
    script.set(&[hangs], Condition::Stalled);
    commit(0, &mut script);
    let token = |script: &Script, at: usize| {
        script.core.log().with(|pipeline| {
            pipeline.members.iter().find(|member| member.disk.0 == at).map(|member| member.token).expect("a member")
        })
    };
    // As after 32,767 members: the next one would get the name of the write that hangs.
    let hanging = token(&script, hangs);
    script.core.log().tokens.set(hanging);
    script.step_for(MS * 200);
    let members = script.core.log().with(|pipeline| pipeline.members.clone());
    assert!(members.len() == 3 && members.iter().all(|member| member.disk.0 != hangs), "the set has changed");
    assert!(members.iter().all(|member| member.token != hanging), "{hanging} is taken");
    script.set(&[hangs], Condition::Healthy);
    commit(0, &mut script);
}

#[test]
fn h1_block_sequences_go_on_where_their_names_begin_again() {
    let mut script = Script::create(small(3));
    commit(0, &mut script);
    script.step_for(MS * 50);
    script.core.log().with(|pipeline| {
        assert!(pipeline.flying.is_empty(), "nothing is on its way");
        let at = (1 << 48) - 3;
        (pipeline.next_sequence, pipeline.commit, pipeline.active.base_sequence) = (at + 1, at, at + 1);
        pipeline.members.iter_mut().for_each(|member| member.durable = at);
    });
    for life in 0..10 {
        commit(life, &mut script);
    }
    assert!(script.core.log().with(|pipeline| pipeline.commit) > (1 << 48) + 5);
}

/// Gives the first segment of a region that holds nothing another number, on all disks.
fn renumber(world: &World, first: SegmentId) {
    for disk in 0..3 {
        let mut image = world.snapshot(&disk_path(disk));
        let mut log = None;
        for (name, file) in &mut image.files {
            let mut bytes = file.bytes();
            if name == "superblock" {
                for at in [0, SUPERBLOCK_SLOT] {
                    let Ok(mut superblock) = Superblock::decode(&bytes[at..]) else { continue };
                    superblock.trim = first;
                    superblock.epochs.iter_mut().for_each(|entry| entry.first_segment = first);
                    log = Some(superblock.log);
                    bytes[at..at + SUPERBLOCK_SLOT].copy_from_slice(&superblock.encode().expect("it fits"));
                }
            } else if let Ok(mut header) = SegmentHeader::decode(&bytes) {
                header.segment = SegmentId(first.0 + header.segment.0 - 1);
                bytes[..4096].copy_from_slice(&header.encode());
            }
            file.write(0, &bytes);
        }
        let tables = Tables::default().to_checkpoint(log.expect("a superblock"), first).encode();
        image.files.push((checkpoint_name(first), Inode::with_bytes(&tables)));
        world.restore(&disk_path(disk), &image);
    }
}

#[test]
fn h1_a_region_out_of_segment_numbers_refuses_commits_and_opens() {
    let mut script = Script::create_empty(small(3));
    script = script.reopen(|world| renumber(world, SegmentId(SegmentId::LAST.0 - 3))).expect("opened");
    script.make_account();
    let mut committed = 0;
    let refused = loop {
        let ticket = script.commit();
        match script.answer(ticket) {
            Ok(_) => committed += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::LimitReached, "{refused}");
    assert!(refused.to_string().contains("segment numbers are used up"), "{refused}");
    assert!(committed > 6, "{committed}");
    for disk in 0..6 {
        script.control(|done| Control::Fail { disk: disk % 3, done });
        script.step_for(MS * 200);
        script.control(|done| Control::Return { disk: disk % 3, replace: false, done });
        script.step_for(MS * 2000);
        script = script.reopen(|_| {}).expect("opened");
        assert_eq!(script.next_sequence(), committed);
        let ticket = script.commit();
        assert_eq!(script.answer(ticket).expect_err("no number").kind(), ErrorKind::LimitReached);
    }
}

#[test]
fn h1_an_account_more_than_max_accounts_is_refused_by_name() {
    let mut script = Script::create(Options { max_accounts: 3, ..small(3) });
    let mut make = |name: &str| {
        let (done, ticket) = ticket();
        let (name, change) = (name.to_owned(), AccountChange::Create(Ack::Quorum));
        script.ask(Request::PutAccount(PutAccount { name, change, done, at: 0 }), 0);
        script.answer(ticket)
    };
    make("b").expect("room");
    make("c").expect("room");
    let refused = make("d").expect_err("three exist");
    assert_eq!(refused.kind(), ErrorKind::LimitReached);
    assert!(refused.to_string().contains("max_accounts is 3"), "{refused}");
    make("c").expect_err("it exists");
    commit(0, &mut script);
}

/// That a test fails with the bug planted.
pub(super) fn is_caught(bug: Bug, test: fn()) {
    plant(Some(bug));
    let caught = std::panic::catch_unwind(test).is_err();
    let times = reached();
    plant(None);
    assert!(caught, "{bug:?} was not caught; its place was reached {times} times");
}

#[test]
fn every_planted_bug_of_the_bounds_is_caught() {
    let caught: [(Bug, fn()); 6] = [
        (Bug::PagesForgetNothing, h1_lives_of_one_record_do_not_fill_the_superblock),
        (Bug::EndsListedAtOnce, h1_more_ends_than_a_superblock_lists_are_settled_in_turns),
        (Bug::RoomNotMade, h1_a_set_change_makes_room_in_full_tables),
        (Bug::EncoderRefusalSwallowed, h1_a_superblock_that_does_not_fit_is_named_and_no_disk_is_blamed),
        (Bug::TokenOfAnother, h1_names_of_writes_come_again_without_those_still_on_their_way),
        (Bug::IdleLanesStay, crate::log::tables::tests::idle_lanes_make_room),
    ];
    assert_eq!(caught.map(|(bug, _)| bug), Bug::OF_BOUNDS);
    caught.into_iter().for_each(|(bug, test)| is_caught(bug, test));
}
