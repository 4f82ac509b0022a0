//! The case table of the fault model: a last block that is on one disk only.
use crate::check::{DROPPED, KEPT, REFUSED};
use crate::disk::{Cell, Mask};
use crate::explore::holds;
use crate::rules::{Plan, Refusal};
use crate::scenario::{Fault, Scenario};
use crate::state::{Process, State};

const FIRST: Cell = Cell(8);
const ALL: Mask = 0b111;
const AWAY_2: Mask = 0b011;
const AWAY_0: Mask = 0b110;

/// A region at rest: block 0 acknowledged and on all three disks, block 1 on the disks of `holders`.
fn at_rest(scenario: &Scenario, holders: &[usize], acknowledged: bool) -> State {
    let mut state = scenario.new_log();
    state.disks.iter_mut().take(3).for_each(|disk| disk.write(1, 0, FIRST));
    holders.iter().for_each(|disk| state.disks[*disk].write(1, 1, Cell::good(2, 0)));
    state.process = Process::DOWN;
    state.ghost.exposed = [1, if acknowledged { 2 } else { 0 }, 0, 0];
    state.ghost.acknowledged = if acknowledged { 0b110 } else { 0b10 };
    state.ghost.first |= 1 << 3;
    state.value = 3;
    state.crashes = 1;
    state
}

fn rest_of(scenario: &Scenario, state: State) -> Scenario {
    Scenario { start: Some(state), crashes: 3, values: 3, ..scenario.clone() }
}

fn end(plan: Result<Plan, Refusal>) -> Result<u8, Refusal> {
    plan.map(|plan| plan.end)
}

#[test]
fn all_readable_and_two_say_absent() {
    let scenario = Scenario::new("one holder", 2);
    let state = at_rest(&scenario, &[0], false);
    assert_eq!(end(scenario.rules.recover(&state.disks, ALL)), Ok(2), "kept: this engine keeps what it finds");
    assert_eq!(end(scenario.rules.recover(&state.disks, AWAY_0)), Ok(1), "dropped: two say absent");
    // Kept or dropped, but once: no later process decides otherwise.
    holds(rest_of(&scenario, state), &[KEPT, DROPPED]);
}

#[test]
fn two_readable_and_one_says_absent() {
    let scenario = Scenario::new("one holder that is found", 2);
    for acknowledged in [false, true] {
        let holders: &[usize] = if acknowledged { &[0, 2] } else { &[0] };
        let state = at_rest(&scenario, holders, acknowledged);
        let found = if acknowledged { [AWAY_2, AWAY_0, 0b101] } else { [AWAY_2, 0b101, ALL] };
        for found in found {
            assert_eq!(end(scenario.rules.recover(&state.disks, found)), Ok(2), "kept: it may be acknowledged");
        }
        holds(rest_of(&scenario, state), &[]);
    }
}

#[test]
fn the_holder_is_faulty_one_says_absent_one_is_missing() {
    let scenario = Scenario { fault: Fault::Rot, faults: 0, ..Scenario::new("a faulty holder", 2) };
    let mut state = at_rest(&scenario, &[0, 2], true);
    state.disks[0].write(1, 1, Cell::BAD);
    state.disks[0].flushed = 2;
    assert_eq!(end(scenario.rules.recover(&state.disks, AWAY_2)), Err(Refusal::Undecided), "refused until it is back");
    assert_eq!(end(scenario.rules.recover(&state.disks, ALL)), Ok(2), "it is back");
    holds(rest_of(&scenario, state), &[REFUSED]);
    // The same when a later block that anyone has says that it is committed.
    let mut state = at_rest(&scenario, &[0, 2], true);
    state.disks[0].write(1, 1, Cell::BAD);
    state.disks[1].committed = 2;
    assert_eq!(end(scenario.rules.recover(&state.disks, AWAY_2)), Err(Refusal::Undecided));
    holds(rest_of(&scenario, state), &[REFUSED]);
}

#[test]
fn a_holder_that_may_be_torn_or_rotten() {
    let mut scenario = Scenario { fault: Fault::Rot, faults: 0, ..Scenario::new("a torn or rotten holder", 2) };
    let mut state = at_rest(&scenario, &[0, 2], true);
    state.disks[0].write(1, 1, Cell::BAD);
    assert_eq!(end(scenario.rules.recover(&state.disks, AWAY_2)), Ok(1), "the default takes it for torn: the limit");
    scenario.rules.strict = true;
    assert_eq!(end(scenario.rules.recover(&state.disks, AWAY_2)), Err(Refusal::Undecided), "strict refuses");
    holds(rest_of(&scenario, state), &[REFUSED]);
    // Power cut in the middle of three writes: all disks there, all torn. One may be rotten, three are not.
    let mut state = at_rest(&scenario, &[], false);
    state.disks.iter_mut().take(3).for_each(|disk| disk.write(1, 1, Cell::BAD));
    assert_eq!(end(scenario.rules.recover(&state.disks, ALL)), Ok(1), "strict still opens after a power cut");
    holds(rest_of(&scenario, state), &[]);
}

#[test]
fn absent_answers_that_prove_the_end() {
    for (quorum, found, expected) in [
        (2, ALL, Ok(1)),
        (2, AWAY_0, Ok(1)),
        (3, ALL, Ok(1)),
        (3, AWAY_0, Ok(1)),
        (2, 0b100, Err(Refusal::Superblocks)),
        (3, 0b100, Err(Refusal::Superblocks)),
    ] {
        let scenario = Scenario::new("no holder", quorum);
        let state = at_rest(&scenario, &[], false);
        assert_eq!(end(scenario.rules.recover(&state.disks, found)), expected, "{quorum} of 3, found {found:b}");
    }
    // One of the two that answer is faulty: at three of three the other one's word is enough, at two of three not.
    for (quorum, expected) in [(2, Err(Refusal::Undecided)), (3, Ok(1))] {
        let scenario = Scenario::new("no holder", quorum);
        let mut state = at_rest(&scenario, &[], false);
        state.disks[1].flushed = 2;
        assert_eq!(end(scenario.rules.recover(&state.disks, AWAY_0)), expected, "{quorum} of 3");
    }
}
