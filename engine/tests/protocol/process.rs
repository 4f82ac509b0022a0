//! The steps: what each action does to the disks, to the process and to what the world has seen.
use crate::disk::{BLOCKS, Cell, Disk, EPOCHS, Entry, Mask, count, members};
use crate::rules::Flaw;
use crate::scenario::{Action, Scenario};
use crate::state::{CHANGED, Ghost, HOLE, Phase, Process, RESEALED, SHORT, State};

/// The state after an action, or `None` if a run of this size cannot hold it.
pub(crate) fn step(scenario: &Scenario, before: &State, action: Action) -> Option<State> {
    let mut state = *before;
    let segment = state.process.segment;
    match action {
        Action::Open(found) => open(scenario, &mut state, found)?,
        Action::GiveUp => state.process = Process::DOWN,
        Action::Promise(disk) => promise(scenario, &mut state, disk),
        Action::Decide => decide(scenario, &mut state),
        Action::Fence => state.process.phase = Phase::WriteBack,
        Action::WriteBack(disk, position) => {
            state.disks[disk].write(segment, position, state.process.cell(position));
        }
        Action::Seal(disk) => seal(&mut state, disk),
        Action::Serve => serve(&mut state),
        Action::Append => append(&mut state),
        Action::Complete(disk, position) => {
            state.disks[disk].write(segment, position, state.process.cell(position));
            state.process.reported[disk] |= 1 << position;
        }
        Action::Report(disk, position) => state.process.reported[disk] |= 1 << position,
        Action::Acknowledge(position) => acknowledge(&mut state, position),
        Action::Change(set, region) => change(scenario, &mut state, set, region)?,
        Action::Adopt => adopt(scenario, &mut state),
        Action::Rebuild(disk) => rebuild(&mut state, disk)?,
        Action::Mark(disk) => state.disks[disk] = marked(&state, disk),
        Action::Tear(disk, position) => {
            state.disks[disk].write(segment, position, Cell::BAD);
            state.process.doomed = true;
        }
        Action::Crash => crash(&mut state),
        Action::CrashLeaving(disk, position) => {
            state.late = Some((disk as u8, segment, position, state.process.cell(position)));
            crash(&mut state);
        }
        Action::Land => {
            let (disk, epoch, position, cell) = state.late.take().expect("there is a late write");
            state.disks[usize::from(disk)].write(epoch, position, cell);
        }
        Action::Return(disk) => state.process.up |= 1 << disk,
        _ => strike(scenario, &mut state, action),
    }
    Some(state)
}

/// The faults.
fn strike(scenario: &Scenario, state: &mut State, action: Action) {
    match action {
        Action::Fail(disk) => {
            fail(&mut state.process, disk);
            state.fails += 1;
            return;
        }
        Action::Image(disk) => {
            state.image = Some((disk as u8, state.disks[disk]));
            return;
        }
        Action::Lose(disk) => {
            fail(&mut state.process, disk);
            state.lost |= 1 << disk;
        }
        Action::Blank(disk) => state.disks[disk] = Disk::EMPTY,
        Action::Rot(disk, epoch, position) => state.disks[disk].write(epoch, position, Cell::BAD),
        Action::Restore => {
            let (disk, image) = state.image.take().expect("there is an image to restore");
            state.disks[usize::from(disk)] = image;
        }
        Action::LoseWrite(disk, position) => state.process.reported[disk] |= 1 << position,
        Action::FailFlush(disk, position) => match scenario.rules.flaw {
            Flaw::FlushRetried => state.process.reported[disk] |= 1 << position,
            _ => fail(&mut state.process, disk),
        },
        _ => unreachable!("every other action is a step of the process"),
    }
    state.faults += 1;
}

fn crash(state: &mut State) {
    state.process = Process::DOWN;
    state.ghost.first |= 1 << state.value;
    state.crashes += 1;
}

fn fail(process: &mut Process, disk: usize) {
    process.up &= !(1 << disk);
    process.failed |= process.set & (1 << disk);
}

fn open(scenario: &Scenario, state: &mut State, found: Mask) -> Option<()> {
    let rules = &scenario.rules;
    if !rules.may_recover(&state.disks, found) {
        state.process = Process { phase: Phase::Refused, ..Process::DOWN };
        return Some(());
    }
    let highest = match rules.flaw {
        Flaw::NoPromise => rules.table(&state.disks, found).last(),
        _ => members(found).map(|disk| state.disks[disk].promised).max().unwrap_or(0),
    };
    let next = highest + 1;
    let table = rules.table(&state.disks, found);
    let generation = members(found).map(|disk| state.disks[disk].generation).max().unwrap_or(0) + 1;
    let generation = if rules.flaw == Flaw::BestByPromise { generation } else { 0 };
    state.process =
        Process { phase: Phase::Survey, up: found, next, promised: next, table, generation, ..Process::DOWN };
    (usize::from(next) < EPOCHS).then_some(())
}

fn promise(scenario: &Scenario, state: &mut State, disk: usize) {
    let own = &mut state.disks[disk];
    own.promised = state.process.next;
    own.generation = state.process.generation;
    own.formatted = true;
    if scenario.rules.carry && own.table != state.process.table {
        own.table = state.process.table;
        own.flushed = 0;
    }
}

/// Whether the promise of the epoch being established is on enough disks.
pub(crate) fn is_promised(scenario: &Scenario, state: &State) -> bool {
    let (rules, process) = (&scenario.rules, &state.process);
    let granted = |disk: &usize| state.disks[*disk].promised >= process.next;
    let voters = rules.voters(&state.disks, process.up);
    let granted = members(voters).filter(granted).fold(0, |mask: Mask, disk| mask | 1 << disk);
    match rules.flaw {
        Flaw::NoPromise => true,
        _ => rules.majority(&process.table, granted),
    }
}

fn decide(scenario: &Scenario, state: &mut State) {
    let rules = &scenario.rules;
    let up = state.process.up;
    let table = state.process.table;
    let next_set = rules.recovery_set(&state.disks, up, &table);
    let plan = match rules.decide(&state.disks, up, table) {
        Ok(plan) if count(next_set) >= 2 => plan,
        _ => {
            // Nothing was written: the same can be tried again.
            state.process = Process { phase: Phase::Refused, ..Process::DOWN };
            return;
        }
    };
    let segment = plan.table.last();
    let Entry { set, members: region, .. } = plan.table.top();
    let process = &mut state.process;
    process.phase = Phase::Promise;
    process.table = plan.table;
    (process.segment, process.set, process.next_set) = (segment, set, next_set);
    process.next_members = region;
    (process.base, process.len, process.sealing) = (plan.base, plan.end, plan.end);
    process.log = plan.log;
    if ends_short(scenario, state, up, plan.end) {
        state.ghost.broken |= SHORT;
    }
    if rules.flaw == Flaw::ExposeBeforeWriteBack {
        expose(&mut state.ghost, &state.process);
    }
}

/// Whether a log that ends here passes over what is known to be part of it, or too few disks can say that it ends: those
/// of the set that have nothing here and never said that they had. Written apart from the rules, to check them.
fn ends_short(scenario: &Scenario, state: &State, up: Mask, end: u8) -> bool {
    let (rules, segment, set) = (&scenario.rules, state.process.segment, state.process.set);
    if usize::from(end) == BLOCKS || rules.flaw == Flaw::ShortestLog {
        return false;
    }
    let may_lack = |disk: &usize| {
        let own = &state.disks[*disk];
        own.formatted && !own.cell(segment, end).is_good() && (own.table.last() != segment || own.flushed <= end)
    };
    let lacking = members(up & set).filter(may_lack).count() as u32;
    let known = members(up).any(|disk| state.disks[disk].commit_seen() > end);
    known || lacking == 0 || lacking + rules.quorum <= count(set)
}

/// Whether this disk may be given the seal and the new epoch's entry now.
pub(crate) fn may_seal(scenario: &Scenario, state: &State, disk: usize) -> bool {
    let (rules, process) = (&scenario.rules, &state.process);
    let own = &state.disks[disk];
    let in_next = process.next_set >> disk & 1 == 1;
    let ready = match process.phase {
        Phase::WriteBack => {
            let holds = |disk: &usize| state.disks[*disk].holds(process.segment, process.base, process.len);
            members(process.next_set & process.up).filter(holds).count() >= rules.copies(process.next_set) as usize
        }
        Phase::ChangePromise => is_promised(scenario, state),
        Phase::Seal | Phase::ChangeSeal => true,
        // A recovery serves once its seal is on a majority; the rest of the set gets it before the first write.
        Phase::Running => {
            return own.table.last() < process.segment && (own.formatted || process.set >> disk & 1 == 1);
        }
        _ => false,
    };
    // A disk that becomes a member has the entry only when a majority of the old members has it.
    let joins = (process.next_members & !process.table.top().members) >> disk & 1 == 1;
    let entered = entered(state, process.next);
    let in_turn = !joins || rules.flaw == Flaw::MembersSwapped || rules.majority(&process.table, entered);
    ready && in_turn && (own.formatted || in_next || joins) && own.table.last() < process.next
}

/// Disks that answer and have an epoch's entry.
fn entered(state: &State, epoch: u8) -> Mask {
    let has = |disk: &usize| state.disks[*disk].table.last() >= epoch;
    members(state.process.up).filter(has).fold(0, |mask, disk| mask | 1 << disk)
}

/// Whether the seal is on enough disks: for a recovery a majority, for a running writer also all of the new set.
pub(crate) fn is_sealed(scenario: &Scenario, state: &State) -> bool {
    let (rules, process) = (&scenario.rules, &state.process);
    let entered = entered(state, process.next);
    let durable = match rules.flaw {
        Flaw::SealOnOne => entered != 0,
        _ => rules.majority(&process.table, entered),
    };
    match process.phase {
        Phase::Seal => durable,
        Phase::ChangeSeal => durable && process.next_set & !entered == 0,
        _ => false,
    }
}

fn seal(state: &mut State, disk: usize) {
    let process = &mut state.process;
    let before = process.phase;
    process.phase = match before {
        Phase::WriteBack | Phase::Seal => Phase::Seal,
        Phase::ChangePromise | Phase::ChangeSeal => Phase::ChangeSeal,
        phase => phase,
    };
    if process.generation > 0 && process.phase != before {
        process.generation += 1;
    }
    let own = &mut state.disks[disk];
    own.formatted = true;
    own.generation = process.generation;
    own.flushed = 0;
    own.table = if process.phase == Phase::Running { process.table } else { process.next_table() };
    own.promised = own.promised.max(own.table.last());
}

fn serve(state: &mut State) {
    expose(&mut state.ghost, &state.process);
    enter(state);
    state.process.commit = state.process.len;
}

/// The new epoch's segment becomes the one that is written.
fn enter(state: &mut State) {
    let process = &mut state.process;
    process.table = process.next_table();
    (process.segment, process.set, process.base) = (process.next, process.next_set, process.sealing);
    (process.next, process.next_set, process.next_members, process.sealing) = (0, 0, 0, 0);
    process.failed = process.set & !process.up;
    process.reported = [0; crate::disk::DISKS];
    process.phase = Phase::Running;
    for epoch in 1..EPOCHS as u8 {
        let known = &mut state.ghost.sealed[usize::from(epoch)];
        let sealed = process.table.end(epoch).filter(|_| process.table.get(epoch).is_some()).map_or(0, |end| end + 1);
        if *known != 0 && *known != sealed {
            state.ghost.broken |= RESEALED;
        }
        *known = sealed;
    }
}

fn append(state: &mut State) {
    let process = &mut state.process;
    process.log[usize::from(process.len)] = Cell::good(state.value, process.commit).0;
    process.len += 1;
    state.value += 1;
}

fn acknowledge(state: &mut State, position: u8) {
    let process = &mut state.process;
    let value = process.cell(position).value();
    state.ghost.exposed[usize::from(position)] = value;
    state.ghost.acknowledged |= 1 << value;
    process.commit += u8::from(position == process.commit);
}

fn change(scenario: &Scenario, state: &mut State, set: Mask, region: Mask) -> Option<()> {
    let process = &mut state.process;
    process.phase = match scenario.rules.flaw {
        Flaw::ChangeWithoutPromise => Phase::ChangeSeal,
        _ => Phase::ChangePromise,
    };
    process.promised += 1;
    process.next = process.promised;
    (process.next_set, process.next_members) = (set, region);
    process.sealing = process.commit;
    state.changes += 1;
    (usize::from(process.next) < EPOCHS).then_some(())
}

/// A running writer goes on in the new segment, with the blocks that were not acknowledged sent again.
fn adopt(scenario: &Scenario, state: &mut State) {
    enter(state);
    let process = &mut state.process;
    if count(process.set) < scenario.rules.quorum {
        process.len = process.base;
    }
    for position in 0..BLOCKS as u8 {
        let slot = &mut process.log[usize::from(position)];
        if position >= process.len {
            *slot = 0;
        } else if position >= process.base {
            *slot = Cell::good(Cell(*slot).value(), process.base).0;
        }
    }
}

fn rebuild(state: &mut State, disk: usize) -> Option<()> {
    let process = &state.process;
    let mut whole = state.disks[disk];
    if !whole.formatted {
        whole = Disk { formatted: true, promised: process.promised, table: process.table, ..whole };
    }
    for epoch in process.table.epochs() {
        let base = process.table.get(epoch).expect("listed").base;
        for position in base..process.table.end(epoch).unwrap_or(base) {
            let copies = members(process.up).map(|from| state.disks[from].cell(epoch, position));
            whole.write(epoch, position, copies.into_iter().find(|cell| cell.is_good())?);
        }
    }
    state.disks[disk] = whole;
    Some(())
}

/// The disk with its flushed mark and commit index as far as the process knows them.
pub(crate) fn marked(state: &State, disk: usize) -> Disk {
    let (process, mut own) = (&state.process, state.disks[disk]);
    if own.table.last() == process.segment {
        let unflushed = (process.base..process.len).find(|position| !process.is_reported(disk, *position));
        own.flushed = own.flushed.max(unflushed.unwrap_or(process.len));
        own.committed = own.committed.max(process.commit);
    }
    own
}

/// The world reads the whole log.
fn expose(ghost: &mut Ghost, process: &Process) {
    for position in 0..BLOCKS as u8 {
        let value = if position < process.len { process.cell(position).value() } else { 0 };
        let seen = &mut ghost.exposed[usize::from(position)];
        if *seen != 0 && *seen != value {
            ghost.broken |= CHANGED;
        }
        *seen = value;
    }
    if has_hole(ghost, &process.log, process.len) {
        ghost.broken |= HOLE;
    }
}

/// Whether a log skips a value: after each value comes the next, or the first of a later process.
pub(crate) fn has_hole(ghost: &Ghost, log: &[u8; BLOCKS], len: u8) -> bool {
    let mut last = 0;
    log.iter().take(usize::from(len)).any(|cell| {
        let value = Cell(*cell).value();
        let follows = value == last + 1 || (value > last && ghost.first >> value & 1 == 1);
        last = value;
        !follows
    })
}
