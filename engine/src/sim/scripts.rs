//! Single scenarios of the real log on simulated disks, each written out by hand.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::error::{ErrorKind, Result};
use crate::health::{DiskState, Health};
use crate::io::{Driver, OpId};
use crate::log::{Core, Mode, Phase};
use crate::options::{DiskConfig, Options};
use crate::shared::{AccountChange, Commit, Control, PutAccount, Request, Shared, lock};
use crate::sync::intake::{AHEAD, Intake};
use crate::sync::ticket::{Resolver, Ticket, ticket};
use crate::transaction::{Receipt, Transaction};
use crate::types::{AccountId, Ack, Lsn, PartitionId, SegmentId};

pub(super) const MS: Duration = Duration::from_millis(1);

/// Small bounds over `disks` disks, and a second until a disk has stalled.
pub(super) fn options(disks: usize) -> Options {
    let disks = (0..disks).map(|at| DiskConfig::new(format!("disk-{at}"), &format!("domain-{at}"), "zone"));
    let mut options = Options::new(disks.collect());
    options.segment_bytes = 1 << 20;
    options.block_bytes = 8 << 10;
    options.transaction_bytes = 16 << 10;
    options.lag_bytes = 64 << 10;
    options.stall_timeout = Duration::from_secs(1);
    options
}

pub(super) fn disk_path(disk: usize) -> PathBuf {
    PathBuf::from(format!("disk-{disk}"))
}

/// A region, its clients, and the hand that steps it.
pub(super) struct Script {
    pub(super) world: World,
    pub(super) core: Core,
    pub(super) shared: Arc<Shared>,
    pub(super) account: AccountId,
}

impl Script {
    /// Makes a region with one account.
    pub(super) fn create(options: Options) -> Script {
        let mut script = Script::create_empty(options);
        script.make_account();
        script
    }

    pub(super) fn create_empty(options: Options) -> Script {
        options.validate().expect("options that a region accepts");
        let mut world = WorldOptions::new(1);
        world.latency.tail_every = 0;
        world.is_append = |OpId(id)| id >> 63 == 1;
        Script::start(World::new(world), options, Mode::Create).expect("a region")
    }

    pub(super) fn make_account(&mut self) {
        let (done, ticket) = ticket();
        let change = AccountChange::Create(Ack::Quorum);
        self.ask(Request::PutAccount(PutAccount { name: "flights".to_owned(), change, done, at: 0 }), 0);
        self.account = self.answer(ticket).expect("an account");
    }

    pub(super) fn begin(world: &World, options: Options, mode: Mode) -> (Core, Arc<Shared>) {
        let driver = world.driver();
        let intake = Intake::new(options.queue_transactions, AHEAD, options.queue_bytes as u64, driver.doorbell());
        let shared = Arc::new(Shared::new(options, intake, driver.environment(), driver.reader()));
        let core = Core::start(mode, Box::<SimDriver>::new(driver), Box::new(()), Arc::clone(&shared));
        (core, shared)
    }

    pub(super) fn start(world: World, options: Options, mode: Mode) -> Result<Script> {
        let (mut core, shared) = Script::begin(&world, options, mode);
        loop {
            match core.step(MS) {
                Phase::Failed(error) => return Err(error),
                Phase::Opening => assert!(world.now() < 600_000_000_000, "it does not open"),
                Phase::Running | Phase::Closed => break,
            }
        }
        Ok(Script { world, core, shared, account: AccountId::SYSTEM })
    }

    /// The power goes, `meanwhile` happens, and the region is opened again.
    pub(super) fn reopen(self, meanwhile: impl FnOnce(&World)) -> Result<Script> {
        let Script { world, core, shared, account } = self;
        world.crash();
        drop(core);
        meanwhile(&world);
        let options = shared.options.clone();
        Script::start(world, options, Mode::Open).map(|script| Script { account, ..script })
    }

    pub(super) fn ask(&self, request: Request, bytes: usize) {
        assert!(self.shared.intake.try_push(request, bytes as u64).is_ok(), "the queue has room");
    }

    pub(super) fn control<T>(&mut self, make: impl FnOnce(Resolver<Result<T>>) -> Control) -> T {
        let (done, ticket) = ticket();
        self.ask(Request::Control(make(done)), 0);
        self.answer(ticket).expect("an answer")
    }

    /// Hands over a transaction that fills a block of its own.
    pub(super) fn commit(&self) -> Ticket<Result<Receipt>> {
        self.commit_to(Ack::Quorum)
    }

    pub(super) fn commit_to(&self, ack: Ack) -> Ticket<Result<Receipt>> {
        let transaction = Transaction::new(self.account, PartitionId(1)).record(vec![7; 12 << 10]).ack(ack);
        let bytes = transaction.encoded_len().expect("a small transaction");
        let (done, ticket) = ticket();
        self.ask(Request::Commit(Commit { transaction, done, at: self.world.now(), bytes }), bytes);
        ticket
    }

    /// Steps until the answer is there.
    pub(super) fn answer<T>(&mut self, ticket: Ticket<Result<T>>) -> Result<T> {
        let patience = self.world.now() + 60_000_000_000;
        while !ticket.is_done() {
            self.core.step(MS);
            assert!(self.world.now() < patience, "no answer in a minute");
        }
        ticket.wait().unwrap_or_else(|_| panic!("the region is gone"))
    }

    /// Commits until there is no space.
    pub(super) fn fill(&mut self) {
        loop {
            let ticket = self.commit();
            if let Err(error) = self.answer(ticket) {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                return;
            }
        }
    }

    /// The sequence after the partition's last committed record.
    pub(super) fn next_sequence(&self) -> u64 {
        let segments = self.shared.readable().segments.keys().copied().collect::<Vec<_>>();
        let held = segments.into_iter().flat_map(|id| self.shared.partitions_of(id, self.account).expect("an index"));
        held.map(|held| held.next_sequence).max().unwrap_or(0)
    }

    pub(super) fn has_space_once_trimmed(&mut self) {
        self.step_for(MS * 1000);
        self.control(|done| Control::Trim { to: Lsn::MAX, done });
        self.step_for(MS * 1000);
        let ticket = self.commit();
        self.answer(ticket).expect("there is space again");
    }

    pub(super) fn step_for(&mut self, time: Duration) {
        let end = self.world.now() + time.as_nanos() as u64;
        while self.world.now() < end {
            self.core.step(MS);
        }
    }

    pub(super) fn set(&self, disks: &[usize], condition: Condition) {
        disks.iter().for_each(|disk| self.world.set_condition(&disk_path(*disk), condition));
    }

    /// Stops the process for `time`, with every write that is on its way on a disk that stands still as long.
    pub(super) fn suspend(&self, disks: &[usize], time: Duration) {
        self.set(disks, Condition::Stalled);
        self.world.advance(time);
        self.set(disks, Condition::Healthy);
    }

    /// As the log has it: a request would wait in line.
    pub(super) fn health(&self) -> Health {
        self.core.log().health()
    }

    pub(super) fn states(&self) -> Vec<DiskState> {
        self.health().disks.into_iter().map(|disk| disk.state).collect()
    }

    /// That everything handed over is acknowledged.
    pub(super) fn all_acknowledged(&mut self, tickets: Vec<Ticket<Result<Receipt>>>) {
        for ticket in tickets {
            self.answer(ticket).expect("acknowledged");
        }
    }
}

#[test]
fn two_slow_disks_are_not_given_up_for_blocks_that_nobody_has_committed() {
    let mut options = options(3);
    (options.lag_bytes, options.commit_depth) = (20 << 10, 8);
    let mut script = Script::create(options);
    script.set(&[1, 2], Condition::Stalled);
    let tickets: Vec<_> = (0..8).map(|_| script.commit()).collect();
    script.step_for(MS * 300);
    script.set(&[1, 2], Condition::Healthy);
    script.all_acknowledged(tickets);
    assert_eq!(script.states(), [DiskState::Healthy; 3]);
}

#[test]
fn a_disk_that_lacks_more_committed_bytes_than_allowed_is_given_up() {
    let mut script = Script::create(options(3));
    script.set(&[2], Condition::Stalled);
    for _ in 0..8 {
        let ticket = script.commit();
        script.answer(ticket).expect("two disks are enough");
    }
    script.step_for(MS * 60);
    let disk = script.health().disks.swap_remove(2);
    assert_eq!(disk.state, DiskState::Stalled);
    assert!(disk.reason.contains("bytes behind"), "not for the time that it took: {}", disk.reason);
}

#[test]
fn a_late_disk_that_the_quorum_needs_is_waited_for() {
    let mut script = Script::create(options(3));
    script.set(&[2], Condition::Stalled);
    let tickets: Vec<_> = (0..8).map(|_| script.commit()).collect();
    script.all_acknowledged(tickets);
    script.control(|done| Control::Fail { disk: 0, done });
    let ticket = script.commit();
    script.step_for(MS * 600);
    script.set(&[2], Condition::Healthy);
    script.answer(ticket).expect("the late disk has caught up");
    assert_eq!(script.states(), [DiskState::Failed, DiskState::Healthy, DiskState::Healthy]);
}

#[test]
fn one_that_a_majority_of_superblocks_needs_is_waited_for_and_holds_the_log_back() {
    let mut script = Script::create(options(4));
    script.control(|done| Control::Fail { disk: 3, done });
    script.step_for(MS * 100);
    script.set(&[2], Condition::Stalled);
    let tickets: Vec<_> = (0..100).map(|_| script.commit()).collect();
    script.step_for(MS * 300);
    let lag = script.health().disks[2].lag_bytes;
    assert!(lag > 64 << 10 && tickets.iter().any(|ticket| !ticket.is_done()), "{lag}");
    script.step_for(MS * 300);
    assert_eq!(script.health().disks[2].lag_bytes, lag);
    script.set(&[2], Condition::Healthy);
    script.all_acknowledged(tickets);
    assert_eq!(script.states()[2], DiskState::Healthy);
}

#[test]
fn a_disk_lost_at_any_step_of_the_change_that_takes_it_in_is_left_again() {
    for steps in 0..150 {
        let mut script = Script::create(options(4));
        let first = script.health().disks.iter().position(|disk| disk.in_set).expect("a set");
        let spare = script.health().disks.iter().position(|disk| !disk.in_set).expect("a spare");
        script.control(|done| Control::Fail { disk: first, done });
        (0..steps).for_each(|_| drop(script.core.step(MS / 100)));
        script.control(|done| Control::Fail { disk: spare, done });
        script.set(&[first, spare], Condition::Lost);
        let ticket = script.commit_to(Ack::All);
        let answer = script.answer(ticket);
        assert!(answer.is_err(), "after {steps} steps three copies on two disks");
    }
}

#[test]
fn a_disk_that_is_drained_and_still_there_serves_when_another_fails() {
    let mut script = Script::create(options(3));
    script.control(|done| Control::Drain { upgrade_domain: "domain-0".to_owned(), on: true, done });
    script.control(|done| Control::Fail { disk: 1, done });
    let ticket = script.commit();
    script.answer(ticket).expect("two disks are there");
    script.control(|done| Control::Return { disk: 1, replace: false, done });
    script.step_for(MS * 1000);
    let in_set = script.health().disks.into_iter().map(|disk| disk.in_set).collect::<Vec<_>>();
    assert_eq!(in_set, [false, true, true], "the drained disk leaves as soon as it can");
}

#[test]
fn a_full_region_that_loses_a_disk_is_still_there_and_goes_on_once_it_was_trimmed() {
    let mut options = options(3);
    options.max_segments = Some(3);
    let mut script = Script::create(options);
    let refused = loop {
        let ticket = script.commit();
        if let Err(error) = script.answer(ticket) {
            break error.kind();
        }
    };
    assert_eq!(refused, ErrorKind::NoSpace);
    script.control(|done| Control::Fail { disk: 0, done });
    script.step_for(MS * 1000);
    assert_eq!(script.health().halted, None);
    script.control(|done| Control::Trim { to: Lsn::MAX, done });
    script.step_for(MS * 1000);
    let ticket = script.commit();
    script.answer(ticket).expect("there is space again");
}

#[test]
fn the_slot_that_full_disks_keep_free_takes_the_copy_without_which_the_region_does_not_open() {
    let mut script = Script::create(options(4));
    let ticket = script.commit();
    script.answer(ticket).expect("on three disks");
    script.step_for(MS * 100);
    script.set(&[1, 2], Condition::Full);
    // Enough to fill the segments that are there, so that the full disks leave the set.
    while script.health().disks[1].in_set || script.health().disks[2].in_set {
        let ticket = script.commit();
        script.answer(ticket).expect("room on the others");
    }
    let mut script = script.reopen(|world| world.set_condition(&disk_path(0), Condition::Lost)).expect("opened");
    let ticket = script.commit();
    assert_eq!(script.answer(ticket).expect_err("every slot is taken").kind(), ErrorKind::NoSpace);
    script.set(&[1, 2], Condition::Healthy);
    script.step_for(MS * 2000);
    let ticket = script.commit();
    script.answer(ticket).expect("there is space again");
}

#[test]
fn disks_are_not_given_up_for_time_in_which_the_process_was_suspended() {
    let mut script = Script::create(options(3));
    let ticket = script.commit();
    script.core.step(MS / 100);
    script.suspend(&[0, 1, 2], Duration::from_secs(60));
    script.answer(ticket).expect("acknowledged");
    assert_eq!(script.states(), [DiskState::Healthy; 3]);
}

#[test]
fn a_process_suspended_at_any_step_of_a_set_change_goes_on() {
    for steps in 0..150 {
        let mut script = Script::create(options(3));
        let (done, _failed) = ticket();
        script.ask(Request::Control(Control::Fail { disk: 0, done }), 0);
        let ticket = script.commit();
        (0..steps).for_each(|_| drop(script.core.step(MS / 100)));
        script.suspend(&[0, 1, 2], Duration::from_secs(60));
        script.answer(ticket).unwrap_or_else(|error| panic!("after {steps} steps: {error}"));
        assert_eq!(script.states(), [DiskState::Failed, DiskState::Healthy, DiskState::Healthy], "{steps}");
    }
}

#[test]
fn a_disk_that_stalls_is_given_up_soon_after_the_process_was_suspended() {
    let mut script = Script::create(options(3));
    script.set(&[2], Condition::Stalled);
    let ticket = script.commit();
    script.answer(ticket).expect("two disks are enough");
    script.world.advance(Duration::from_secs(60));
    script.step_for(MS * 900);
    assert_eq!(script.states()[2], DiskState::Healthy, "it has not had its time yet");
    script.step_for(MS * 200);
    assert_eq!(script.states(), [DiskState::Healthy, DiskState::Healthy, DiskState::Stalled]);
}

/// A region with a few sealed segments and an empty active one.
pub(super) fn sealed() -> Script {
    sealed_with(options(3))
}

fn sealed_with(options: Options) -> Script {
    let mut script = Script::create(options);
    for _ in 0..200 {
        let ticket = script.commit_to(Ack::All);
        script.answer(ticket).expect("three disks");
    }
    let mut script = script.reopen(|_| {}).expect("opened");
    script.step_for(MS * 1000);
    assert!(script.health().is_whole() && script.states() == [DiskState::Healthy; 3]);
    script
}

#[test]
fn the_background_scrub_finds_and_repairs_what_rots_and_what_cannot_be_read() {
    for on in [true, false] {
        let mut options = options(3);
        options.scrub_bytes_per_second = if on { 8 << 20 } else { 0 };
        let mut script = sealed_with(options);
        // Two places of two copies of the first segment, far from each other.
        let (rotten, unread) = (100_000, 600_000..600_001);
        let name = |script: &Script, disk: usize| {
            let files = script.world.files(&disk_path(disk));
            files.into_iter().map(|(name, _)| name).find(|name| name.starts_with("slot-")).expect("a segment")
        };
        let files = [0, 1].map(|disk| name(&script, disk));
        let before = files.each_ref().map(|file| script.world.bytes(&disk_path(0), file).expect("the file"));
        assert!(script.world.flip(&disk_path(0), &files[0], rotten, 3));
        assert!(script.world.spoil(&disk_path(1), &files[1], unread));
        assert_ne!(script.world.bytes(&disk_path(0), &files[0]).as_ref(), Some(&before[0]));
        script.step_for(Duration::from_secs(90));
        assert_eq!(script.health().corrupt_copies, if on { (2, 2) } else { (0, 0) });
        assert_eq!(script.world.bytes(&disk_path(0), &files[0]).as_ref() == Some(&before[0]), on);
        assert!(script.health().is_whole() && script.states() == [DiskState::Healthy; 3]);
    }
}

#[test]
fn a_trim_does_not_rest_on_a_checkpoint_that_one_disk_has() {
    let mut script = sealed();
    script.set(&[1, 2], Condition::Full);
    assert_eq!(script.control(|done| Control::Trim { to: Lsn::MAX, done }).segment(), SegmentId(1));
    script.set(&[1, 2], Condition::Healthy);
    let mut script = script.reopen(|_| {}).expect("opened");
    assert!(script.control(|done| Control::Trim { to: Lsn::MAX, done }).segment() > SegmentId(1));
    let mut script = script.reopen(|world| world.set_condition(&disk_path(0), Condition::Lost)).expect("opened");
    let ticket = script.commit();
    script.answer(ticket).expect("acknowledged");
}

#[test]
fn every_disk_can_be_replaced_in_turn_and_the_trimmed_region_opens() {
    let mut script = sealed();
    assert!(script.control(|done| Control::Trim { to: Lsn::MAX, done }).segment() > SegmentId(1));
    for disk in 0..3 {
        script.control(|done| Control::Fail { disk, done });
        script.step_for(MS * 1000);
        script.world.blank(&disk_path(disk));
        script.control(|done| Control::Return { disk, replace: true, done });
        script.step_for(MS * 1000);
        assert!(script.health().is_whole() && script.states() == [DiskState::Healthy; 3], "{:?}", script.health());
    }
    let mut script = script.reopen(|_| {}).expect("opened");
    let ticket = script.commit();
    script.answer(ticket).expect("acknowledged");
}

/// A region of three disks that have no room for another segment, and refuses for that.
fn full() -> Script {
    let mut options = options(3);
    options.max_segments = Some(3);
    let mut script = Script::create(options);
    script.fill();
    script
}

#[test]
fn h4_refusal_at_max_segments_names_the_limit_and_the_pin() {
    let mut script = full();
    let refusal = |script: &mut Script| {
        let ticket = script.commit();
        script.answer(ticket).expect_err("it is full").to_string()
    };
    let said = refusal(&mut script);
    assert!(said.contains("max_segments 3 is reached") && !said.contains("pin"), "{said}");
    let pin = lock(&script.shared.pins).add(Lsn::new(SegmentId(2), 0));
    let said = refusal(&mut script);
    assert!(said.contains("a pin keeps everything from segment 2 on"), "{said}");
    lock(&script.shared.pins).remove(pin);
    script.has_space_once_trimmed();
}

#[test]
fn a_full_region_keeps_the_slots_of_its_next_opening_when_it_loses_a_disk() {
    let mut script = full();
    script.control(|done| Control::Fail { disk: 0, done });
    script.step_for(MS * 1000);
    script.fill();
    let mut script = script.reopen(|world| world.set_condition(&disk_path(0), Condition::Lost)).expect("opened");
    script.has_space_once_trimmed();
}

#[test]
fn a_full_region_loses_its_disks_one_after_the_other_and_takes_them_back() {
    let mut script = full();
    for disk in [0, 1, 2, 0] {
        script.control(|done| Control::Fail { disk, done });
        script.step_for(MS * 1000);
        script.control(|done| Control::Return { disk, replace: false, done });
        script.step_for(MS * 3000);
        assert!(script.health().is_whole() && script.health().halted.is_none(), "{:?}", script.health());
    }
    script.fill();
    let mut script = script.reopen(|world| world.set_condition(&disk_path(1), Condition::Lost)).expect("opened");
    script.has_space_once_trimmed();
}

#[test]
fn what_a_full_region_has_admitted_when_it_loses_a_disk_takes_no_slot_of_the_next_opening() {
    let mut options = options(3);
    options.max_segments = Some(3);
    let mut script = Script::create(options);
    while !script.health().no_space {
        let ticket = script.commit();
        script.answer(ticket).expect("room in the last segment");
    }
    script.set(&[0, 1], Condition::Stalled);
    // One more than may be on their way.
    let tickets: Vec<_> = (0..5).map(|_| script.commit()).collect();
    script.step_for(MS * 2);
    script.control(|done| Control::Fail { disk: 0, done });
    script.set(&[1], Condition::Healthy);
    script.all_acknowledged(tickets);
    let mut script = script.reopen(|world| world.set_condition(&disk_path(0), Condition::Lost)).expect("opened");
    script.has_space_once_trimmed();
}

/// Cuts `change` short after each number of steps of the log thread, and opens again, with all disks or without one of them: what was
/// acknowledged is there, and nothing is in the way of the next change and the next opening.
fn opens_after_each_step(steps: u32, make: impl Fn() -> Script, change: impl Fn(&Script)) {
    for (steps, lost) in (0..steps).zip([None, Some(0), Some(1), Some(2), Some(1)].into_iter().cycle()) {
        let mut script = make();
        let before = script.next_sequence();
        change(&script);
        (0..steps).for_each(|_| drop(script.core.step(MS / 100)));
        let ticket = script.commit();
        (0..20).for_each(|_| drop(script.core.step(MS / 100)));
        let acknowledged = ticket.is_done() && ticket.wait().is_ok_and(|answer| answer.is_ok());
        let lose = |world: &World| lost.into_iter().for_each(|at| world.set_condition(&disk_path(at), Condition::Lost));
        let script = script.reopen(lose).unwrap_or_else(|error| panic!("{steps} steps, without {lost:?}: {error}"));
        let after = script.next_sequence();
        assert!(after >= before + u64::from(acknowledged), "{steps} steps, without {lost:?}: {before} {after}");
        let all = |world: &World| (0..3).for_each(|at| world.set_condition(&disk_path(at), Condition::Healthy));
        let mut script =
            script.reopen(all).unwrap_or_else(|error| panic!("{steps} steps, with {lost:?} again: {error}"));
        script.step_for(MS * 3000);
        assert!(script.next_sequence() >= after, "{steps} steps, with {lost:?} again");
        assert!(script.health().is_whole() && script.states() == [DiskState::Healthy; 3], "{:?}", script.health());
    }
}

#[test]
fn a_change_that_begins_an_empty_segment_again_can_be_cut_short_at_any_step() {
    let make = || {
        let mut script = Script::create(options(3));
        let ticket = script.commit();
        script.answer(ticket).expect("acknowledged");
        script.reopen(|_| {}).expect("opened")
    };
    opens_after_each_step(60, make, |script| {
        script.ask(Request::Control(Control::Fail { disk: 0, done: ticket().0 }), 0)
    });
}

#[test]
fn a_change_of_a_full_region_can_be_cut_short_at_any_step() {
    let fail = |script: &Script| script.ask(Request::Control(Control::Fail { disk: 0, done: ticket().0 }), 0);
    opens_after_each_step(60, full, fail);
    let without_a_disk = || {
        let mut script = full();
        script.control(|done| Control::Fail { disk: 0, done });
        script.step_for(MS * 1000);
        script
    };
    let back = |script: &Script| {
        script.ask(Request::Control(Control::Return { disk: 0, replace: false, done: ticket().0 }), 0)
    };
    opens_after_each_step(100, without_a_disk, back);
}

#[test]
fn a_trim_does_not_wait_for_all_that_is_to_be_rebuilt() {
    let mut options = options(3);
    options.rebuild_bytes_per_second = 1 << 20;
    let mut script = Script::create(options);
    while script.health().segments < 12 {
        let ticket = script.commit_to(Ack::All);
        script.answer(ticket).expect("three disks");
    }
    script.step_for(MS * 1000);
    script.control(|done| Control::Fail { disk: 0, done });
    script.step_for(MS * 1000);
    script.world.blank(&disk_path(0));
    script.control(|done| Control::Return { disk: 0, replace: true, done });
    script.step_for(MS * 1500);
    let first = script.control(|done| Control::Trim { to: Lsn::new(SegmentId(5), 0), done });
    let health = script.health();
    assert_eq!(first.segment(), SegmentId(5));
    assert!(health.unwhole > 2, "one segment's time, not that of all: {} to go", health.unwhole);
}

/// A backup that is copied over a region's directories leaves the newer files there: a checkpoint
/// of the history that is given up says nothing of the one that takes its place.
#[test]
fn h2_checkpoint_of_a_history_that_was_given_up_is_not_believed() {
    let record = |script: &mut Script, bytes: usize| {
        let transaction = Transaction::new(script.account, PartitionId(1)).record(vec![7; bytes]);
        let bytes = transaction.encoded_len().expect("a small transaction");
        let (done, ticket) = ticket();
        script.ask(Request::Commit(Commit { transaction, done, at: 0, bytes }), bytes);
        script.answer(ticket).expect("acknowledged")
    };
    let is_checkpoint = |name: &str| name.starts_with("checkpoint-");
    let mut script = Script::create(options(3));
    record(&mut script, 100);
    let mut backups = Vec::new();
    let keep = |world: &World| backups = (0..3).map(|disk| world.snapshot(&disk_path(disk))).collect();
    let mut script = script.reopen(keep).expect("it opens");
    (0..500).for_each(|_| assert!(record(&mut script, 8 << 10).records == 1));
    script.control(|done| Control::Trim { to: Lsn::MAX, done });
    let mut newer = Vec::new();
    let mut script = script
        .reopen(|world| {
            for (disk, backup) in (0..3).zip(&backups) {
                let files = world.snapshot(&disk_path(disk)).files.into_iter();
                newer.push(files.filter(|(name, _)| is_checkpoint(name)).collect::<Vec<_>>());
                world.restore(&disk_path(disk), backup);
            }
        })
        .expect("it opens");
    let number = newer[0].first().expect("a trim needs one").0.trim_start_matches("checkpoint-").to_owned();
    let number: u32 = number.parse().expect("a segment");
    let mut records = 1;
    while record(&mut script, 15 << 10).lsn.segment().0 < number - 1 {
        records += 1;
    }
    let opened = script.reopen(|world| {
        for (disk, newer) in newer.into_iter().enumerate() {
            let mut image = world.snapshot(&disk_path(disk));
            image.files.retain(|(name, _)| !is_checkpoint(name));
            image.files.extend(newer);
            world.restore(&disk_path(disk), &image);
        }
    });
    let receipt = record(&mut opened.expect("what the checkpoint says is in the log, too"), 100);
    assert_eq!(receipt.first_sequence, records + 1, "after those of this history");
}

/// What is left of a slot that could not be made is gone before its number is another's.
#[test]
fn h3_slot_that_takes_the_number_of_one_that_could_not_be_made_stays() {
    let (mut taken, spare) = (0, disk_path(3));
    for at in 0..100 {
        let mut world = WorldOptions::new(at);
        world.latency.tail_every = 0;
        world.is_append = |OpId(id)| id >> 63 == 1;
        let world = World::new(world);
        let files = vec!["slot-000000".to_owned()];
        world.refuse(Refusal { what: Refused::Creates, disk: Some(spare.clone()), files });
        world.set_condition(&spare, Condition::Slow(60));
        let mut script = Script::start(world, options(4), Mode::Create).expect("a region");
        script.step_for(MS / 5 * at as u32);
        script.world.allow(Some(&spare));
        script.control(|done| Control::Fail { disk: 0, done });
        script.step_for(MS * 500);
        let health = script.health();
        taken += usize::from(health.disks[3].in_set);
        assert_eq!(health.disks[3].state, DiskState::Healthy, "{at}: {}", health.disks[3].reason);
    }
    assert!(taken > 0, "the spare took the place of the lost disk");
}

/// Opens a crashed region of several segments whose three newest slots on every disk meet `fault`, with a bug planted or none. Whether it then lacks
/// what was acknowledged.
fn open_without_the_newest(bug: Option<Bug>, fault: fn(&World, usize, &str)) -> Result<bool> {
    let mut script = Script::create(options(3));
    let mut last = Lsn::ZERO;
    for _ in 0..400 {
        let ticket = script.commit_to(Ack::All);
        last = script.answer(ticket).expect("acknowledged").lsn;
    }
    assert!(last.segment() > SegmentId(4), "{last}");
    plant(bug);
    let (world, before) = (script.world.clone(), std::cell::RefCell::new(Vec::new()));
    let contents = |world: &World| -> Vec<_> {
        let disks = (0..3).map(disk_path);
        let of = |path: PathBuf| {
            let files = world.files(&path).into_iter();
            files.map(move |(name, _)| (path.clone(), name.clone(), world.bytes(&path, &name))).collect::<Vec<_>>()
        };
        disks.flat_map(of).collect()
    };
    let opened = script.reopen(|world| {
        for disk in 0..3 {
            let files = world.files(&disk_path(disk));
            let slots: Vec<&String> =
                files.iter().map(|(name, _)| name).filter(|name| name.starts_with("slot-")).collect();
            slots.iter().rev().take(3).for_each(|name| fault(world, disk, name));
        }
        *before.borrow_mut() = contents(world);
    });
    plant(None);
    if opened.is_err() {
        assert!(contents(&world) == *before.borrow(), "a refused opening changes nothing");
    }
    opened.map(|script| script.shared.committed.get() < last.0)
}

#[test]
fn h2_newest_slots_refused_on_every_disk_refuse_the_opening() {
    let refuse: fn(&World, usize, &str) = |world, disk, name| {
        let (what, disk) = (Refused::Opens, Some(disk_path(disk)));
        world.refuse(Refusal { what, disk, files: vec![name.to_owned()] });
    };
    let refused = open_without_the_newest(None, refuse).expect_err("they may hold the newest segments");
    assert!(refused.kind() == ErrorKind::RestoreDisk && refused.to_string().contains("slot-"), "{refused}");
    let planted = open_without_the_newest(Some(Bug::UnopenedIsAbsent), refuse);
    assert!(planted.as_ref().is_ok_and(|lacks| *lacks), "the bug opens the region without its end: {planted:?}");
}

#[test]
fn h2_newest_slots_unreadable_on_every_disk_refuse_the_opening() {
    let spoil: fn(&World, usize, &str) = |world, disk, name| {
        assert!(world.spoil(&disk_path(disk), name, 0..4096), "there is such a slot");
    };
    let refused = open_without_the_newest(None, spoil).expect_err("they may hold the newest segments");
    assert_eq!(refused.kind(), ErrorKind::RestoreDisk, "{refused}");
    let planted = open_without_the_newest(Some(Bug::UnreadVotes), spoil);
    assert!(planted.as_ref().is_ok_and(|lacks| *lacks), "the bug opens the region without its end: {planted:?}");
}
