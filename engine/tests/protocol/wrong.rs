//! Rules known to be wrong: for each one the checker must find a run that breaks a promise.
use stateright::Model;

use crate::check::{ACKNOWLEDGED, AVAILABLE, WRITER};
use crate::explore::{broken, caught};
use crate::rules::Flaw;
use crate::scenario::{Action, Fault, Scenario};
use crate::state::State;

fn two_of_three() -> Scenario {
    Scenario::new("2 of 3", 2)
}

fn changing() -> Scenario {
    Scenario { changes: 1, values: 1, ..Scenario::new("2 of 3, the set changes", 2) }
}

fn with_spare() -> Scenario {
    Scenario { spare: true, crashes: 1, ..changing() }
}

fn rotting_strictly() -> Scenario {
    let mut scenario = Scenario { fault: Fault::Rot, crashes: 1, ..two_of_three() };
    scenario.rules.strict = true;
    scenario
}

#[test]
fn the_shortest_log_at_two_of_three() {
    caught(Flaw::ShortestLog, ACKNOWLEDGED, two_of_three());
}

#[test]
fn the_longest_log_without_epochs() {
    caught(Flaw::LongestLog, ACKNOWLEDGED, two_of_three());
}

/// Even where no disk has a gap: a stale disk overwrites what was acknowledged without it.
#[test]
fn the_longest_log_without_epochs_on_disks_that_write_in_order() {
    let scenario = Scenario { in_order: true, ..Scenario::new("2 of 3, in order", 2) };
    caught(Flaw::LongestLog, ACKNOWLEDGED, Scenario { start: Some(with_stale_tail(&scenario)), ..scenario });
}

/// Disk 2 has a block of the first epoch that a recovery without it dropped, and was away since.
fn with_stale_tail(scenario: &Scenario) -> State {
    [
        Action::Append,
        Action::Complete(2, 0),
        Action::Crash,
        Action::Open(0b011),
        Action::Decide,
        Action::Promise(0),
        Action::Promise(1),
        Action::Fence,
        Action::Seal(0),
        Action::Seal(1),
        Action::Serve,
    ]
    .into_iter()
    .fold(scenario.new_log(), |state, action| scenario.next_state(&state, action).expect("a run of this size"))
}

#[test]
fn exposing_before_write_back() {
    caught(Flaw::ExposeBeforeWriteBack, ACKNOWLEDGED, two_of_three());
}

#[test]
fn the_shortest_log_at_three_of_three_without_a_durable_seal() {
    caught(Flaw::ShortestWithoutSeal, ACKNOWLEDGED, Scenario::new("3 of 3", 3));
}

#[test]
fn a_faulty_position_counted_as_absent() {
    caught(Flaw::FaultyIsAbsent, ACKNOWLEDGED, rotting_strictly());
}

#[test]
fn one_absent_answer_at_two_of_three() {
    caught(Flaw::OneAbsentEnds, ACKNOWLEDGED, rotting_strictly());
}

#[test]
fn a_disk_outside_the_set_that_votes() {
    caught(Flaw::StaleVotes, ACKNOWLEDGED, with_spare());
}

#[test]
fn a_blank_disk_that_votes() {
    caught(Flaw::BlankVotes, ACKNOWLEDGED, Scenario { fault: Fault::Blank, ..two_of_three() });
}

#[test]
fn an_acknowledgement_before_the_flush() {
    caught(Flaw::AckBeforeFlush, ACKNOWLEDGED, two_of_three());
}

#[test]
fn a_flush_asked_again() {
    caught(Flaw::FlushRetried, ACKNOWLEDGED, Scenario { fault: Fault::FailedFlush, ..two_of_three() });
}

#[test]
fn an_acknowledgement_out_of_order() {
    caught(Flaw::AckOutOfOrder, ACKNOWLEDGED, two_of_three());
}

#[test]
fn a_block_kept_behind_a_gap() {
    caught(Flaw::GapKept, ACKNOWLEDGED, two_of_three());
}

#[test]
fn a_promise_on_one_disk() {
    caught(Flaw::OneSuperblock, ACKNOWLEDGED, two_of_three());
}

#[test]
fn an_epoch_without_a_promise() {
    caught(Flaw::NoPromise, WRITER, two_of_three());
    caught(Flaw::NoPromise, ACKNOWLEDGED, two_of_three());
}

#[test]
fn a_set_changed_without_a_promise() {
    caught(Flaw::ChangeWithoutPromise, WRITER, changing());
    caught(Flaw::ChangeWithoutPromise, ACKNOWLEDGED, changing());
}

#[test]
fn a_seal_on_one_disk() {
    caught(Flaw::SealOnOne, ACKNOWLEDGED, two_of_three());
}

#[test]
fn an_acknowledgement_past_the_seal() {
    caught(Flaw::AckPastSeal, ACKNOWLEDGED, changing());
}

#[test]
fn a_new_member_that_knows_before_the_old_ones() {
    caught(Flaw::MembersSwapped, ACKNOWLEDGED, Scenario { swaps: true, fails: 1, ..with_spare() });
}

#[test]
fn a_member_without_a_superblock() {
    caught(Flaw::BlankMember, AVAILABLE, Scenario { fault: Fault::Lost, ..with_spare() });
}

#[test]
fn a_member_without_the_entry_that_has_no_vote() {
    let scenario = Scenario { fault: Fault::Lost, crashes: 1, ..changing() };
    caught(Flaw::VoteNeedsEntry, AVAILABLE, scenario);
}

#[test]
fn the_superblock_with_the_highest_promise_taken_for_the_best() {
    let mut scenario = Scenario { crashes: 3, values: 1, ..two_of_three() };
    scenario.rules.carry = true;
    caught(Flaw::BestByPromise, ACKNOWLEDGED, scenario);
}

/// Not a flaw but a limit, which the documentation states: a last block that rots on one disk while another is away
/// looks like a torn one. The strict setting refuses instead (`holds`).
#[test]
fn the_limit_of_the_default_setting() {
    broken(ACKNOWLEDGED, Scenario { fault: Fault::Rot, beyond: true, ..two_of_three() });
}

/// Outside the fault model: a disk put back to an old image says "absent" of what it had, and with another disk away
/// nothing can tell. With all disks there the same disk does no harm (`holds`).
#[test]
fn a_stale_image_while_another_disk_is_away_is_out_of_reach() {
    broken(ACKNOWLEDGED, Scenario { fault: Fault::Stale, beyond: true, ..two_of_three() });
}
