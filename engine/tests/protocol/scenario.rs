//! A scenario: the rules, how large a run may be, and the one fault that may strike; and with it the model itself.
use stateright::{Model, Property};

use crate::check;
use crate::disk::{BLOCKS, Cell, DISKS, Disk, EPOCHS, Entry, Mask, Table, count, members};
use crate::rules::{Flaw, Rules};
use crate::state::{Ghost, Phase, Process, State};

/// The storage fault that a run may have. Torn writes and disks that stay away for a while come on top.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// None.
    None,
    /// A disk is gone for good.
    Lost,
    /// A disk comes back blank.
    Blank,
    /// A block stops verifying.
    Rot,
    /// A disk comes back as it was some time ago.
    Stale,
    /// A disk reports a write that it never does.
    LostWrite,
    /// A flush fails, and what it covered is gone.
    FailedFlush,
}

/// One step of the process, of a disk, or of fate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// A process starts and finds these disks.
    Open(Mask),
    /// A refused recovery is given up, to be tried again.
    GiveUp,
    /// A promise becomes durable on a disk.
    Promise(usize),
    /// Recovery decides where the log ends.
    Decide,
    /// The promise is durable: recovery begins to write.
    Fence,
    /// A block of the tail becomes durable on a disk.
    WriteBack(usize, u8),
    /// The seal and the new epoch's entry become durable on a disk.
    Seal(usize),
    /// Recovery is over: the log is served.
    Serve,
    /// A block is sent to the set.
    Append,
    /// A write becomes durable on a disk and is reported.
    Complete(usize, u8),
    /// A write is reported before it is durable.
    Report(usize, u8),
    /// A block is acknowledged.
    Acknowledge(u8),
    /// A running writer begins to move to another set, and perhaps to other members of the region.
    Change(Mask, Mask),
    /// The new set takes over.
    Adopt,
    /// Sealed segments are copied to a disk that lacks them.
    Rebuild(usize),
    /// A disk's flushed mark and the commit index are written into its superblock.
    Mark(usize),
    /// A write in flight leaves something that does not verify; the crash is near.
    Tear(usize, u8),
    /// The process dies, and with it all that is in flight.
    Crash,
    /// The process dies, but one write in flight stays with the disk.
    CrashLeaving(usize, u8),
    /// The write of the dead process becomes durable.
    Land,
    /// A disk stops answering.
    Fail(usize),
    /// A disk answers again.
    Return(usize),
    /// A disk is gone for good.
    Lose(usize),
    /// A disk comes back blank.
    Blank(usize),
    /// A block stops verifying.
    Rot(usize, u8, u8),
    /// Somebody keeps an image of a disk.
    Image(usize),
    /// The image takes the disk's place.
    Restore,
    /// A disk reports a write that it never does.
    LoseWrite(usize, u8),
    /// A flush fails, and what it covered is gone.
    FailFlush(usize, u8),
}

/// A scenario to explore.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// What it is called in the output.
    pub(crate) name: &'static str,
    /// The rules and the quorum.
    pub(crate) rules: Rules,
    /// Whether there is a fourth disk, blank and no member yet.
    pub(crate) spare: bool,
    /// Whether the fourth disk may take the place of a member that is away, in one step.
    pub(crate) swaps: bool,
    /// Blocks that clients send in all.
    pub(crate) values: u8,
    /// Blocks in flight at a time.
    pub(crate) in_flight: u8,
    /// Whether each disk does its writes in the order of the log. Disks need not.
    pub(crate) in_order: bool,
    /// Crashes.
    pub(crate) crashes: u8,
    /// Disks that stop answering a running process, and may answer again.
    pub(crate) fails: u8,
    /// Changes of the set while running.
    pub(crate) changes: u8,
    /// Whether writes tear.
    pub(crate) torn: bool,
    /// Whether flushed marks are written while running.
    pub(crate) marks: bool,
    /// Whether a process may start without some of the disks.
    pub(crate) missing: bool,
    /// Whether a disk may do a write of a dead process later.
    pub(crate) late: bool,
    /// The storage fault.
    pub(crate) fault: Fault,
    /// How often it may strike.
    pub(crate) faults: u8,
    /// Whether disks may be missing also after a fault that nothing shows. That is outside the fault model.
    pub(crate) beyond: bool,
    /// Where to start, if not from a new log.
    pub(crate) start: Option<State>,
}

impl Scenario {
    /// Three disks, a writer that dies once, and any disk missing at the start of a process.
    pub(crate) fn new(name: &'static str, quorum: u32) -> Scenario {
        let rules = Rules { quorum, strict: false, carry: false, flaw: Flaw::None };
        Scenario {
            name,
            rules,
            spare: false,
            swaps: false,
            values: 2,
            in_flight: 2,
            in_order: false,
            crashes: 2,
            fails: 0,
            changes: 0,
            torn: false,
            marks: false,
            missing: true,
            late: false,
            fault: Fault::None,
            faults: 1,
            beyond: false,
            start: None,
        }
    }

    /// All disks there are.
    pub(crate) fn region(&self) -> Mask {
        if self.spare { 0b1111 } else { 0b0111 }
    }

    /// Whether a process may be started, or the log be read, without some of the disks.
    pub(crate) fn may_miss(&self, state: &State) -> bool {
        let silent = match self.fault {
            Fault::Rot => !self.rules.strict,
            Fault::Stale | Fault::LostWrite => true,
            _ => false,
        };
        self.missing && (self.beyond || !silent || state.faults == 0)
    }

    /// The sets of disks that a process may find in this state.
    pub(crate) fn findable(&self, state: &State) -> impl Iterator<Item = Mask> + use<> {
        let all = self.region() & !state.lost;
        let some = self.may_miss(state);
        (1..=all).filter(move |found| found & !all == 0 && (some || *found == all))
    }

    /// A new log on the first three disks, its first process running.
    pub(crate) fn new_log(&self) -> State {
        let mut table = Table::EMPTY;
        table.put(1, Entry { base: 0, set: 0b0111, members: 0b0111 });
        let mut disks = [Disk::EMPTY; DISKS];
        for disk in members(0b0111) {
            disks[disk] = Disk { formatted: true, promised: 1, table, ..Disk::EMPTY };
        }
        let process = Process {
            phase: Phase::Running,
            up: self.region(),
            segment: 1,
            promised: 1,
            set: 0b111,
            table,
            ..Process::DOWN
        };
        let ghost = Ghost { exposed: [0; BLOCKS], acknowledged: 0, first: 1 << 1, sealed: [0; EPOCHS], broken: 0 };
        let (lost, image, late, value) = (0, None, None, 1);
        State { disks, lost, image, process, ghost, value, crashes: 0, fails: 0, changes: 0, faults: 0, late }
    }

    /// Whether the last block may rot also before the eyes of a recovery that is a disk short.
    fn may_rot(&self) -> bool {
        self.rules.strict || self.beyond
    }

    /// What can happen to the disks, whatever the process does.
    fn fate(&self, state: &State, actions: &mut Vec<Action>) {
        let down = matches!(state.process.phase, Phase::Down);
        let idle = matches!(state.process.phase, Phase::Down | Phase::Refused);
        if !idle && state.fails < self.fails {
            actions.extend(members(state.process.up).map(Action::Fail));
        }
        if state.late.is_some() {
            actions.push(Action::Land);
        }
        if state.faults == self.faults {
            return;
        }
        let there = self.region() & !state.lost;
        match self.fault {
            Fault::None | Fault::LostWrite | Fault::FailedFlush => {}
            Fault::Lost => actions.extend(members(there).map(Action::Lose)),
            Fault::Blank if down => actions.extend(members(there).map(Action::Blank)),
            // While a disk is away, a recovery that has not decided yet could not tell; `beyond` is for that.
            Fault::Rot if state.process.phase == Phase::Survey && state.process.up != there && !self.may_rot() => {}
            Fault::Rot => {
                let good = |disk: usize, (epoch, position)| state.disks[disk].cell(epoch, position).is_good();
                let places = || (1..EPOCHS as u8).flat_map(|epoch| (0..BLOCKS as u8).map(move |p| (epoch, p)));
                for disk in members(there) {
                    actions.extend(places().filter(|at| good(disk, *at)).map(|(e, p)| Action::Rot(disk, e, p)));
                }
            }
            Fault::Stale => match state.image {
                None => actions.extend(members(there).map(Action::Image)),
                Some((disk, image)) if down && state.disks[usize::from(disk)] != image => {
                    actions.push(Action::Restore);
                }
                Some(_) => {}
            },
            Fault::Blank => {}
        }
    }

    /// What a running writer, or one that changes its set, can do.
    fn running(&self, state: &State, actions: &mut Vec<Action>) {
        let process = &state.process;
        for disk in members(process.live()) {
            for position in process.base..process.len {
                let landed = state.disks[disk].cell(process.segment, position).is_good();
                if self.rules.flaw == Flaw::AckBeforeFlush && !process.is_reported(disk, position) {
                    actions.push(Action::Report(disk, position));
                }
                if landed || (process.is_reported(disk, position) && self.rules.flaw != Flaw::AckBeforeFlush) {
                    continue;
                }
                actions.push(Action::Complete(disk, position));
                if self.in_order {
                    break;
                }
                match self.fault {
                    Fault::LostWrite if state.faults < self.faults => actions.push(Action::LoseWrite(disk, position)),
                    Fault::FailedFlush if state.faults < self.faults => actions.push(Action::FailFlush(disk, position)),
                    _ => {}
                }
            }
        }
        let last =
            if self.rules.flaw == Flaw::AckOutOfOrder { process.len } else { process.len.min(process.commit + 1) };
        for position in process.commit..last {
            let copies = members(process.set).filter(|disk| process.is_reported(*disk, position)).count();
            let open = process.phase == Phase::Running || self.rules.flaw == Flaw::AckPastSeal;
            if open && copies >= self.rules.quorum as usize {
                actions.push(Action::Acknowledge(position));
            }
        }
        if state.changes < self.changes {
            self.changes(state, actions);
        }
        if process.phase == Phase::Running {
            self.serving(state, actions);
        }
    }

    /// The sets that a running writer may move to: what is left of its set, one disk less because it is slow, one more
    /// or another because it is back or spare. The region's members grow or shrink by one, or one that is blank takes another's place.
    fn changes(&self, state: &State, actions: &mut Vec<Action>) {
        let process = &state.process;
        let (live, now) = (process.live(), process.table.top().members);
        let mut push = |set: Mask, region: Mask| {
            let moves = set != process.set || process.failed != 0 || region != now;
            if count(set) >= 2 && count(set) <= 3 && set & !region == 0 && count(region) >= 3 && moves {
                actions.push(Action::Change(set, region));
            }
        };
        push(live, now);
        members(live).for_each(|slow| push(live & !(1 << slow), now));
        for other in members(process.up & !live) {
            let with = 1 << other;
            let formatted = state.disks[other].formatted;
            if now & with == 0 {
                if formatted || self.rules.flaw == Flaw::BlankMember {
                    push(live, now | with);
                }
                for gone in members(now & !process.up).filter(|_| self.swaps && !formatted) {
                    let region = now & !(1 << gone) | with;
                    push(live & region, region);
                    push(live & region | with, region);
                }
            } else {
                push(live | with, now);
                members(live).for_each(|slow| push(live & !(1 << slow) | with, now));
            }
        }
        if count(now) > 3 {
            members(now).for_each(|gone| push(live & !(1 << gone), now & !(1 << gone)));
        }
    }

    /// What a running writer does beside writing.
    fn serving(&self, state: &State, actions: &mut Vec<Action>) {
        let process = &state.process;
        let room = usize::from(process.len) < BLOCKS && process.len - process.commit < self.in_flight;
        let ready = members(process.set).all(|disk| state.disks[disk].table.last() >= process.segment);
        if state.value <= self.values && room && ready && count(process.live()) >= self.rules.quorum {
            actions.push(Action::Append);
        }
        for disk in members(process.up) {
            let sealed = |epoch: &u8| process.table.end(*epoch).is_some();
            let base = |epoch: u8| process.table.get(epoch).map_or(0, |entry| entry.base);
            let lacks = |epoch: u8| {
                let end = process.table.end(epoch).unwrap_or(0);
                !state.disks[disk].holds(epoch, base(epoch), end)
            };
            if self.changes > 0 && (!state.disks[disk].formatted || process.table.epochs().filter(sealed).any(lacks)) {
                actions.push(Action::Rebuild(disk));
            }
            if self.marks && process.live() >> disk & 1 == 1 && crate::process::marked(state, disk) != state.disks[disk]
            {
                actions.push(Action::Mark(disk));
            }
        }
        if self.fails > 0 || self.changes > 0 {
            actions.extend(members(self.region() & !state.lost & !process.up).map(Action::Return));
        }
    }

    /// What a recovery, or the change of a set, can do.
    fn establishing(&self, state: &State, actions: &mut Vec<Action>) {
        let process = &state.process;
        if matches!(process.phase, Phase::Promise | Phase::ChangePromise) && self.rules.flaw != Flaw::NoPromise {
            let may = |disk: &usize| {
                let own = &state.disks[*disk];
                own.promised < process.next && (own.formatted || self.rules.flaw == Flaw::BlankVotes)
            };
            actions.extend(members(process.up).filter(may).map(Action::Promise));
        }
        if process.phase == Phase::Survey {
            actions.push(Action::Decide);
        }
        if process.phase == Phase::Promise && crate::process::is_promised(self, state) {
            actions.push(Action::Fence);
        }
        if process.phase == Phase::WriteBack {
            for disk in members(process.up & process.next_set) {
                let lacking = |position: &u8| !state.disks[disk].cell(process.segment, *position).is_good();
                let positions = (process.base..process.len).filter(lacking);
                actions.extend(positions.map(|position| Action::WriteBack(disk, position)));
            }
        }
        actions
            .extend(members(process.up).filter(|disk| crate::process::may_seal(self, state, *disk)).map(Action::Seal));
        if crate::process::is_sealed(self, state) {
            actions.push(if process.phase == Phase::Seal { Action::Serve } else { Action::Adopt });
        }
    }

    /// What a crash can leave of the writes in flight: nothing, something torn, or one write that the disk does later.
    fn crashing(&self, state: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Crash);
        let process = &state.process;
        let taking = match process.phase {
            Phase::WriteBack => process.up & process.next_set,
            Phase::Running | Phase::ChangePromise | Phase::ChangeSeal => process.live(),
            _ => 0,
        };
        for disk in members(taking) {
            let blank = |position: &u8| state.disks[disk].cell(process.segment, *position) == Cell::BLANK;
            let in_flight = (process.base..process.len).filter(|position| !process.is_reported(disk, *position));
            for position in in_flight.filter(blank) {
                if self.torn {
                    actions.push(Action::Tear(disk, position));
                }
                if self.late {
                    actions.push(Action::CrashLeaving(disk, position));
                }
            }
        }
    }
}

impl Model for Scenario {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start.unwrap_or_else(|| self.new_log())]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // What follows a broken promise says nothing more.
        if state.ghost.broken != 0 {
            return;
        }
        let phase = state.process.phase;
        if phase > Phase::Refused && state.crashes < self.crashes {
            self.crashing(state, actions);
        }
        if state.process.doomed {
            return;
        }
        match phase {
            Phase::Down if state.crashes > self.crashes => {}
            Phase::Down => actions.extend(self.findable(state).map(Action::Open)),
            Phase::Refused => actions.push(Action::GiveUp),
            Phase::Running | Phase::ChangePromise | Phase::ChangeSeal => {
                self.running(state, actions);
                self.establishing(state, actions);
            }
            Phase::Survey | Phase::Promise | Phase::WriteBack | Phase::Seal => self.establishing(state, actions),
        }
        self.fate(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        crate::process::step(self, state, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        check::properties()
    }
}
