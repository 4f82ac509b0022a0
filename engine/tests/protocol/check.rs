//! The properties: what must hold in every state, and what must be possible in some.
use stateright::Property;

use crate::disk::{BLOCKS, Cell, EPOCHS, Mask, count, members};
use crate::process::has_hole;
use crate::scenario::{Fault, Scenario};
use crate::state::{CHANGED, HOLE, Phase, RESEALED, SHORT, State};

/// What was acknowledged is recovered, byte for byte, or recovery refuses.
pub(crate) const ACKNOWLEDGED: &str = "acknowledged is recoverable";
/// With every disk there, recovery does not refuse.
pub(crate) const AVAILABLE: &str = "recovery goes on when all disks are there";
/// What was read does not change.
pub(crate) const EXPOSED: &str = "exposed never changes";
/// The log is contiguous.
pub(crate) const WHOLE: &str = "the log has no hole";
/// A sealed length is final.
pub(crate) const SEALED: &str = "a sealed length is final";
/// One writer per epoch.
pub(crate) const WRITER: &str = "an epoch has one writer";
/// What is known to be part of the log never counts as absent.
pub(crate) const FAULTY: &str = "faulty is never counted as absent";

/// Every property that must always hold.
pub(crate) const ALWAYS: [&str; 7] = [ACKNOWLEDGED, AVAILABLE, EXPOSED, WHOLE, SEALED, WRITER, FAULTY];

/// A process serves although a disk was missing.
pub(crate) const WITHOUT_ONE: &str = "recovery ends with a disk missing";
/// A block that was never acknowledged is kept.
pub(crate) const KEPT: &str = "a block not acknowledged is kept";
/// A block that was never acknowledged is dropped.
pub(crate) const DROPPED: &str = "a block not acknowledged is dropped";
/// A recovery refuses.
pub(crate) const REFUSED: &str = "recovery refuses";

/// Every property that some state must have.
pub(crate) const SOMETIMES: [&str; 4] = [WITHOUT_ONE, KEPT, DROPPED, REFUSED];

/// All properties.
pub(crate) fn properties() -> Vec<Property<Scenario>> {
    vec![
        Property::always(ACKNOWLEDGED, acknowledged),
        Property::always(AVAILABLE, available),
        Property::always(EXPOSED, |_, state: &State| state.ghost.broken & CHANGED == 0),
        Property::always(WHOLE, |_, state: &State| state.ghost.broken & HOLE == 0),
        Property::always(SEALED, sealed),
        Property::always(WRITER, one_writer),
        Property::always(FAULTY, |_, state: &State| state.ghost.broken & SHORT == 0),
        Property::sometimes(WITHOUT_ONE, without_one),
        Property::sometimes(KEPT, |_, state: &State| served(state) && state.process.len > acknowledged_len(state)),
        Property::sometimes(DROPPED, dropped),
        Property::sometimes(REFUSED, |_, state: &State| state.process.phase == Phase::Refused),
    ]
}

/// Whatever disks a process would find now: it refuses, or decides on a log with all that was exposed and no hole. At
/// three of three every single disk holds what was acknowledged, so that two can be lost.
fn acknowledged(scenario: &Scenario, state: &State) -> bool {
    state.ghost.broken != 0
        || (scenario.findable(state).all(|found| recovers(scenario, state, found))
            && (scenario.fault != Fault::Lost || scenario.rules.quorum < 3 || on_each_disk(scenario, state)))
}

fn recovers(scenario: &Scenario, state: &State, found: Mask) -> bool {
    scenario.rules.recover(&state.disks, found).map_or(true, |plan| {
        let same = |(seen, cell): (&u8, &u8)| *seen == 0 || *seen == Cell(*cell).value();
        state.ghost.exposed.iter().zip(&plan.log).all(same) && !has_hole(&state.ghost, &plan.log, plan.end)
    })
}

fn on_each_disk(scenario: &Scenario, state: &State) -> bool {
    let holds = |disk: usize, value: u8| state.disks[disk].cells.iter().any(|cell| Cell(*cell).value() == value);
    let acknowledged = (1..16).filter(|value| state.ghost.acknowledged >> value & 1 == 1);
    acknowledged.into_iter().all(|value| members(scenario.region()).all(|disk| holds(disk, value)))
}

/// With all disks that are left, a recovery finds enough votes and every block. Of two lost disks it is right to
/// refuse: one superblock is not enough.
fn available(scenario: &Scenario, state: &State) -> bool {
    let left = scenario.region() & !state.lost;
    state.ghost.broken != 0 || count(state.lost) > 1 || scenario.rules.recover(&state.disks, left).is_ok()
}

/// Sealed lengths never changed, and up to them all copies are the same.
fn sealed(_: &Scenario, state: &State) -> bool {
    let same = |epoch: usize| {
        let len = state.ghost.sealed[epoch].saturating_sub(1);
        (0..len).all(|position| one_block(state, epoch as u8, position))
    };
    state.ghost.broken & RESEALED == 0 && (1..EPOCHS).all(same)
}

/// No two disks have different blocks at one place, or different entries of one epoch.
fn one_writer(_: &Scenario, state: &State) -> bool {
    let one_entry = |epoch: u8| {
        let mut entries = state.disks.iter().filter_map(|disk| disk.table.get(epoch));
        entries.next().is_none_or(|first| entries.all(|other| other == first))
    };
    (1..EPOCHS as u8).all(|epoch| one_entry(epoch) && (0..BLOCKS as u8).all(|at| one_block(state, epoch, at)))
}

fn one_block(state: &State, epoch: u8, position: u8) -> bool {
    let mut copies = state.disks.iter().map(|disk| disk.cell(epoch, position)).filter(|cell| cell.is_good());
    copies.next().is_none_or(|first| copies.all(|other| other == first))
}

/// A recovery just ended: nothing was appended since.
fn served(state: &State) -> bool {
    let process = &state.process;
    state.crashes > 0 && process.phase == Phase::Running && process.base == process.len
}

fn without_one(scenario: &Scenario, state: &State) -> bool {
    served(state) && count(state.process.up) < count(scenario.region())
}

fn acknowledged_len(state: &State) -> u8 {
    let was = |value: &u8| *value != 0 && state.ghost.acknowledged >> *value & 1 == 1;
    state.ghost.exposed.iter().rposition(was).map_or(0, |position| position as u8 + 1)
}

/// A disk has a block behind the sealed length.
fn dropped(scenario: &Scenario, state: &State) -> bool {
    let table = &state.process.table;
    let behind = |epoch: u8| {
        let end = table.end(epoch).unwrap_or(BLOCKS as u8);
        let holds = |disk: usize| (end..BLOCKS as u8).any(|at| state.disks[disk].cell(epoch, at).is_good());
        members(scenario.region()).any(holds)
    };
    served(state) && table.epochs().any(behind)
}
