//! The rules as they are: every reachable state of each scenario keeps every promise.
use crate::check::{DROPPED, KEPT, REFUSED, SOMETIMES, WITHOUT_ONE};
use crate::explore::{holds, large};
use crate::rules::Flaw;
use crate::scenario::{Fault, Scenario};

/// A scenario, larger if that was asked for.
fn scenario(name: &'static str, quorum: u32) -> Scenario {
    let small = Scenario::new(name, quorum);
    let more = u8::from(large());
    Scenario { values: small.values + more, ..small }
}

#[test]
fn crashes_and_torn_writes_at_two_of_three() {
    holds(Scenario { torn: true, ..scenario("torn writes, 2 of 3", 2) }, &SOMETIMES);
}

#[test]
fn crashes_and_torn_writes_at_three_of_three() {
    holds(Scenario { torn: true, ..scenario("torn writes, 3 of 3", 3) }, &SOMETIMES);
}

#[test]
fn crashes_in_the_recovery_of_a_recovery() {
    for quorum in [2, 3] {
        holds(Scenario { crashes: 3, ..scenario("three crashes", quorum) }, &SOMETIMES);
    }
}

/// As the engine does it: the write of a promise carries the best epoch table found, whatever its worth.
#[test]
fn promises_that_carry_the_epoch_table() {
    for quorum in [2, 3] {
        let mut scenario = Scenario { crashes: 3, ..scenario("carried tables", quorum) };
        scenario.rules.carry = true;
        holds(scenario, &SOMETIMES);
    }
    let mut scenario = Scenario { changes: 1, values: 1, ..scenario("carried tables, a set changed", 2) };
    scenario.rules.carry = true;
    holds(scenario, &SOMETIMES);
}

#[test]
fn a_log_of_three_blocks() {
    for quorum in [2, 3] {
        holds(Scenario { values: 3, ..scenario("three blocks", quorum) }, &SOMETIMES);
    }
}

#[test]
fn a_write_of_a_dead_process_that_lands_late() {
    for quorum in [2, 3] {
        holds(Scenario { late: true, ..scenario("a late write", quorum) }, &SOMETIMES);
    }
}

#[test]
fn a_disk_lost_at_two_of_three() {
    holds(Scenario { fault: Fault::Lost, torn: true, ..scenario("a disk lost", 2) }, &SOMETIMES);
}

#[test]
fn two_disks_lost_at_three_of_three() {
    holds(Scenario { fault: Fault::Lost, faults: 2, torn: true, ..scenario("two disks lost", 3) }, &SOMETIMES);
}

#[test]
fn a_disk_that_comes_back_blank() {
    for quorum in [2, 3] {
        holds(Scenario { fault: Fault::Blank, ..scenario("a blank disk", quorum) }, &SOMETIMES);
    }
}

#[test]
fn a_disk_that_comes_back_as_it_was() {
    for quorum in [2, 3] {
        holds(Scenario { fault: Fault::Stale, ..scenario("a stale disk", quorum) }, &[KEPT, DROPPED]);
    }
}

#[test]
fn a_block_that_rots() {
    for quorum in [2, 3] {
        let possible = [WITHOUT_ONE, KEPT, DROPPED];
        holds(Scenario { fault: Fault::Rot, ..scenario("rot", quorum) }, &possible);
        holds(Scenario { fault: Fault::Rot, marks: true, values: 1, ..scenario("rot, with marks", quorum) }, &possible);
    }
}

#[test]
fn a_block_that_rots_while_a_disk_is_away_under_the_strict_setting() {
    for quorum in [2, 3] {
        let mut scenario = Scenario { fault: Fault::Rot, torn: true, ..scenario("strict rot", quorum) };
        scenario.rules.strict = true;
        holds(scenario, &SOMETIMES);
    }
}

#[test]
fn a_write_that_a_disk_never_does() {
    for quorum in [2, 3] {
        holds(Scenario { fault: Fault::LostWrite, ..scenario("a lost write", quorum) }, &[KEPT, DROPPED]);
    }
}

#[test]
fn a_flush_that_fails() {
    for quorum in [2, 3] {
        holds(Scenario { fault: Fault::FailedFlush, ..scenario("a failed flush", quorum) }, &SOMETIMES);
    }
}

#[test]
fn a_set_changed_while_running() {
    for quorum in [2, 3] {
        let crashes = if large() { 2 } else { 1 };
        holds(Scenario { changes: 1, fails: 1, crashes, ..scenario("a set changed", quorum) }, &SOMETIMES);
    }
}

#[test]
fn a_set_changed_between_two_crashes() {
    holds(Scenario { changes: 1, crashes: 2, values: 1, ..scenario("a set changed, two crashes", 2) }, &SOMETIMES);
}

#[test]
fn a_set_degraded_and_whole_again() {
    let crashes = if large() { 2 } else { 1 };
    holds(Scenario { changes: 2, fails: 1, crashes, values: 1, ..scenario("a set whole again", 2) }, &SOMETIMES);
}

#[test]
fn a_spare_that_takes_the_place_of_a_lost_disk() {
    let values = if large() { 2 } else { 1 };
    let fault = Fault::Lost;
    holds(
        Scenario { spare: true, changes: 1, fault, crashes: 1, values, ..scenario("a spare", 2) },
        &[WITHOUT_ONE, REFUSED],
    );
}

#[test]
fn a_blank_disk_in_the_place_of_a_member_that_is_away() {
    let small =
        Scenario { spare: true, swaps: true, changes: 1, fails: 1, crashes: 1, values: 1, ..scenario("a swap", 2) };
    holds(if large() { Scenario { crashes: 2, ..small } } else { small }, &[WITHOUT_ONE, REFUSED]);
}

/// With the sealed length durable, at three of three also the shortest copy is a right choice: what was acknowledged is
/// on every disk.
#[test]
fn the_shortest_log_at_three_of_three_with_a_durable_seal() {
    let mut scenario = scenario("shortest log, 3 of 3", 3);
    scenario.rules.flaw = Flaw::ShortestLog;
    holds(scenario, &[DROPPED]);
}
