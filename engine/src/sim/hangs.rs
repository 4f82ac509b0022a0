//! Disks that hang, written out by hand: how long commits, openings, returns and readers are held up (acceptance H3).

use std::time::Duration;

use super::bounds::is_caught;
use super::scripts::{MS, Script, disk_path, options};
use super::*;
use crate::error::{ErrorKind, Result};
use crate::health::DiskState;
use crate::log::Mode;
use crate::shared::{Control, Request, lock};
use crate::sync::ticket::ticket;

/// The `stall_timeout` of these scripts.
const STALL: Duration = Duration::from_secs(1);
/// What a hung disk may cost beside that.
const BESIDE: Duration = Duration::from_millis(50);

impl Script {
    /// How long `work` takes.
    fn time<T>(&mut self, work: impl FnOnce(&mut Script) -> T) -> (T, Duration) {
        let start = self.world.now();
        let result = work(self);
        (result, Duration::from_nanos(self.world.now() - start))
    }

    fn commit_one(&mut self) {
        let ticket = self.commit();
        self.answer(ticket).expect("commits go on");
    }

    /// Asks for a disk back, or to take an empty directory in its place.
    fn return_disk(&mut self, disk: usize, replace: bool) -> Result<()> {
        let (done, ticket) = ticket();
        self.ask(Request::Control(Control::Return { disk, replace, done }), 0);
        self.answer(ticket)
    }

    fn becomes_whole(&mut self) {
        self.step_for(MS * 3000);
        let health = self.health();
        let healthy = health.disks.iter().all(|disk| disk.state == DiskState::Healthy);
        assert!(health.is_whole() && healthy, "{health:?}");
    }
}

#[test]
fn h3_disk_that_hangs_in_blocks_and_preparation_costs_one_stall_timeout() {
    let mut options = options(3);
    options.lag_bytes = 64 << 20;
    let mut script = Script::create(options);
    script.commit_one();
    script.step_for(MS * 100);
    script.set(&[2], Condition::Stalled);
    let longest = (0..400).map(|_| script.time(Script::commit_one).1).max().expect("commits");
    assert!(longest <= STALL + BESIDE, "no commit for {longest:?}");
    assert_eq!(script.states()[2], DiskState::Stalled);
}

#[test]
fn h3_spare_that_answers_no_question_is_stalled_in_time() {
    let mut script = Script::create(options(4));
    let spare = script.health().disks.iter().position(|disk| !disk.in_set).expect("a spare");
    script.set(&[spare], Condition::Stalled);
    // It is looked at every two seconds.
    script.step_for(MS * 2000 + STALL + BESIDE);
    assert_eq!(script.states()[spare], DiskState::Stalled);
}

#[test]
fn h3_disk_that_hangs_is_given_up_by_a_log_thread_that_is_often_away() {
    let mut script = Script::create(options(3));
    script.set(&[2], Condition::Stalled);
    script.commit_one();
    for round in 0..20 {
        script.world.advance(MS * 400);
        script.step_for(MS * 100);
        let stalled = script.states()[2] == DiskState::Stalled;
        assert!(!stalled || round >= 5, "its time has not passed in round {round}");
    }
    assert_eq!(script.states()[2], DiskState::Stalled);
}

#[test]
fn h3_reader_leaves_the_copy_on_a_disk_that_hangs() {
    let mut options = options(3);
    options.hot_bytes = 0;
    let mut script = Script::create(options);
    let ticket = script.commit();
    let lsn = script.answer(ticket).expect("acknowledged").lsn;
    (0..200).for_each(|_| script.commit_one());
    script.step_for(STALL);
    assert!(lsn.segment() < script.health().active, "its segment is sealed");
    script.set(&[0], Condition::Stalled);
    script.commit_one();
    script.step_for(MS * 300);
    assert_eq!(script.states()[0], DiskState::Healthy, "it is not given up yet");
    script.shared.read_block(lsn).expect("the others have it");
    assert!(lock(&script.shared.suspects).is_empty(), "no copy was tried that gave nothing");
}

#[test]
fn h3_opening_waits_for_all_hung_disks_at_once_and_goes_on_without() {
    for (disks, hung) in [(3, vec![1]), (5, vec![0, 3])] {
        let mut script = Script::create(options(disks));
        (0..200).for_each(|_| script.commit_one());
        let mut start = 0;
        let opened = script.reopen(|world| {
            hung.iter().for_each(|disk| world.set_condition(&disk_path(*disk), Condition::Stalled));
            start = world.now();
        });
        let mut script = opened.expect("the others are a majority");
        let took = Duration::from_nanos(script.world.now() - start);
        assert!(took >= STALL && took <= STALL + 2 * BESIDE, "opened after {took:?}");
        for (disk, state) in script.states().into_iter().enumerate() {
            assert_eq!(state == DiskState::Stalled, hung.contains(&disk), "{:?}", script.health());
        }
        script.commit_one();
        let (busy, took) = script.time(|script| script.return_disk(hung[0], false));
        assert_eq!(busy.expect_err("its lock was not answered yet").kind(), ErrorKind::Busy);
        assert!(took <= BESIDE, "an answer after {took:?}");
        script.set(&hung, Condition::Healthy);
        script.step_for(MS * 100);
        hung.iter().for_each(|disk| script.return_disk(*disk, false).expect("it answers again"));
        script.becomes_whole();
    }
}

#[test]
fn h3_creation_on_a_disk_that_hangs_is_refused_in_time_and_names_it() {
    let world = World::new(WorldOptions::new(1));
    world.set_condition(&disk_path(1), Condition::Stalled);
    let error = Script::start(world.clone(), options(3), Mode::Create).err().expect("one does not answer");
    assert!(error.to_string().contains("disk-1"), "{error}");
    assert!(world.now() <= (STALL + BESIDE).as_nanos() as u64, "refused after {} ns", world.now());
}

#[test]
fn h3_return_of_a_disk_that_hangs_is_answered_in_time() {
    let mut script = Script::create(options(3));
    script.commit_one();
    script.control(|done| Control::Fail { disk: 1, done });
    script.step_for(MS * 500);
    script.set(&[1], Condition::Stalled);
    for replace in [false, true] {
        let (refused, took) = script.time(|script| script.return_disk(1, replace));
        let kind = refused.expect_err("it does not answer").kind();
        assert!(matches!(kind, ErrorKind::RestoreDisk | ErrorKind::Busy), "{kind:?}");
        assert!(took <= 2 * STALL + BESIDE, "an answer after {took:?}");
        script.commit_one();
    }
    script.set(&[1], Condition::Healthy);
    script.step_for(MS * 100);
    script.return_disk(1, false).expect("it answers again");
    script.becomes_whole();
}

#[test]
fn h3_disk_that_hangs_is_given_up_as_soon_as_its_time_is_over() {
    // Between two looks, which are 50 ms apart.
    for offset in 0..10 {
        let mut script = Script::create(options(3));
        script.step_for(MS * (100 + 5 * offset));
        script.set(&[2], Condition::Stalled);
        script.commit_one();
        let (_, took) = script.time(|script| {
            while script.states()[2] != DiskState::Stalled {
                script.core.step(MS);
            }
        });
        assert!(took <= STALL + MS * 5, "given up after {took:?}");
    }
}

#[test]
fn h3_command_is_answered_while_commits_wait_for_disks_that_hang() {
    let mut script = Script::create(options(3));
    script.set(&[0, 1, 2], Condition::Stalled);
    let tickets: Vec<_> = (0..100).map(|_| script.commit()).collect();
    script.step_for(MS * 10);
    let (_, took) = script.time(|script| script.control(|done| Control::Health { done }));
    assert!(took <= BESIDE, "an answer after {took:?}");
    script.set(&[0, 1, 2], Condition::Healthy);
    script.all_acknowledged(tickets);
}

#[test]
fn h3_closing_lets_go_of_all_disks_while_one_of_them_hangs() {
    let mut script = Script::create(options(3));
    script.commit_one();
    let (done, _closed) = ticket();
    script.ask(Request::Control(Control::Close { done }), 0);
    while !script.core.log().leaving.get() {
        script.core.step(MS / 100);
    }
    script.set(&[0], Condition::Stalled);
    (0..100).for_each(|_| drop(script.core.step(MS)));
    let locked = |at: usize| {
        let mut state = script.world.lock();
        let medium = state.medium_at(&disk_path(at));
        state.media[medium].locked_by.is_some()
    };
    assert_eq!([0, 1, 2].map(locked), [true, false, false]);
}

#[test]
fn every_planted_bug_of_hanging_disks_is_caught() {
    let caught: [(Bug, fn()); 4] = [
        (Bug::GiveUpLeavesWaiters, h3_disk_that_hangs_in_blocks_and_preparation_costs_one_stall_timeout),
        (Bug::OverdueUnnoticed, h3_spare_that_answers_no_question_is_stalled_in_time),
        (Bug::AwayForgivesAll, h3_disk_that_hangs_is_given_up_by_a_log_thread_that_is_often_away),
        (Bug::HangingReadFirst, h3_reader_leaves_the_copy_on_a_disk_that_hangs),
    ];
    assert_eq!(caught.map(|(bug, _)| bug), Bug::OF_HANGS);
    caught.into_iter().for_each(|(bug, test)| is_caught(bug, test));
}
