//! The state of a run: the disks, the one process, and what the world has seen of the log.
use crate::disk::{BLOCKS, Cell, DISKS, Disk, EPOCHS, Entry, Mask, Table, members};

/// What the process is doing. The order of the list is the order of a recovery.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Phase {
    /// No process.
    Down,
    /// Recovery would not go on with the disks it found.
    Refused,
    /// Recovery looks, and has changed nothing yet.
    Survey,
    /// Recovery has decided, and makes its promise durable.
    Promise,
    /// Recovery copies the tail to a quorum.
    WriteBack,
    /// Recovery makes the seal and the new epoch durable.
    Seal,
    /// The log is served and appended to.
    Running,
    /// A running writer makes the promise for its next epoch durable.
    ChangePromise,
    /// A running writer makes the seal and the new set durable.
    ChangeSeal,
}

/// The process: all of it is lost in a crash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Process {
    /// What it is doing.
    pub(crate) phase: Phase,
    /// Only torn writes and the crash can follow.
    pub(crate) doomed: bool,
    /// Disks that answer.
    pub(crate) up: Mask,
    /// Members of the set that failed since it was chosen: they get no more writes of this segment.
    pub(crate) failed: Mask,
    /// The epoch whose segment is the last one.
    pub(crate) segment: u8,
    /// The epoch being established, or 0.
    pub(crate) next: u8,
    /// The highest epoch this process has asked a promise for.
    pub(crate) promised: u8,
    /// The replica set of `segment`.
    pub(crate) set: Mask,
    /// The replica set of `next`.
    pub(crate) next_set: Mask,
    /// The members of the region from `next` on.
    pub(crate) next_members: Mask,
    /// Where the segment that is being sealed ends, and `next` starts: a recovery keeps all it found, a running
    /// writer all it acknowledged.
    pub(crate) sealing: u8,
    /// Where `segment` starts.
    pub(crate) base: u8,
    /// Positions acknowledged, or recovered and served.
    pub(crate) commit: u8,
    /// Positions in the log.
    pub(crate) len: u8,
    /// The log, as cells.
    pub(crate) log: [u8; BLOCKS],
    /// Per disk: the positions of `segment` whose write was reported to be durable.
    pub(crate) reported: [u8; DISKS],
    /// The round of superblock writes. Kept only where a rule asks for it.
    pub(crate) generation: u8,
    /// The table of `segment`; while a recovery has not decided, the best one that it found.
    pub(crate) table: Table,
}

impl Process {
    /// No process.
    pub(crate) const DOWN: Process = Process {
        phase: Phase::Down,
        doomed: false,
        up: 0,
        failed: 0,
        segment: 0,
        next: 0,
        promised: 0,
        set: 0,
        next_set: 0,
        next_members: 0,
        sealing: 0,
        base: 0,
        commit: 0,
        len: 0,
        log: [0; BLOCKS],
        reported: [0; DISKS],
        generation: 0,
        table: Table::EMPTY,
    };

    /// Members that take writes of the current segment.
    pub(crate) fn live(&self) -> Mask {
        self.set & self.up & !self.failed
    }

    /// A cell of the log.
    pub(crate) fn cell(&self, position: u8) -> Cell {
        Cell(self.log[usize::from(position)])
    }

    /// Whether a disk's write of a position was reported to be durable.
    pub(crate) fn is_reported(&self, disk: usize, position: u8) -> bool {
        self.reported[disk] >> position & 1 == 1
    }

    /// The table with the entry of the epoch being established.
    pub(crate) fn next_table(&self) -> Table {
        let mut table = self.table;
        let (base, set, members) = (self.sealing, self.next_set, self.next_members);
        table.put(self.next, Entry { base, set, members });
        table
    }
}

/// What was promised to the world, and what went wrong with it. No disk holds this.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Ghost {
    /// Per position: the value that was exposed (acknowledged, or served after a recovery), or 0.
    pub(crate) exposed: [u8; BLOCKS],
    /// Values that were acknowledged, one bit each.
    pub(crate) acknowledged: u16,
    /// Values that are the first of a process, one bit each.
    pub(crate) first: u16,
    /// Per epoch: one more than its segment's sealed length, or 0.
    pub(crate) sealed: [u8; EPOCHS],
    /// Promises broken so far, one bit each.
    pub(crate) broken: u8,
}

/// An exposed value changed or went away.
pub(crate) const CHANGED: u8 = 1;
/// The log has a hole.
pub(crate) const HOLE: u8 = 2;
/// A sealed length changed.
pub(crate) const RESEALED: u8 = 4;
/// The log ended below a commit index or a flushed mark that the recovery had read.
pub(crate) const SHORT: u8 = 8;

/// A whole state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct State {
    /// The disks.
    pub(crate) disks: [Disk; DISKS],
    /// Disks gone for good.
    pub(crate) lost: Mask,
    /// An old image of a disk, that may come back in its place.
    pub(crate) image: Option<(u8, Disk)>,
    /// The process.
    pub(crate) process: Process,
    /// What was promised to the world.
    pub(crate) ghost: Ghost,
    /// The value of the next new block.
    pub(crate) value: u8,
    /// Crashes so far.
    pub(crate) crashes: u8,
    /// Disks that stopped answering for a while so far.
    pub(crate) fails: u8,
    /// Changes of the set so far.
    pub(crate) changes: u8,
    /// Storage faults so far.
    pub(crate) faults: u8,
    /// A write of a dead process that the disk has still to do: disk, epoch, position, block.
    pub(crate) late: Option<(u8, u8, u8, Cell)>,
}

impl State {
    /// The same state with disk `i` renamed to `names[i]`. What is true of one is true of the other.
    fn renamed(&self, names: &[u8; DISKS]) -> State {
        let rename = |mask: Mask| members(mask).fold(0, |out: Mask, disk| out | 1 << names[disk]);
        let mut out = *self;
        for (disk, to) in names.iter().map(|name| usize::from(*name)).enumerate() {
            out.disks[to] = self.disks[disk];
            out.disks[to].table = self.disks[disk].table.map_sets(rename);
            out.process.reported[to] = self.process.reported[disk];
        }
        if let Some((disk, image)) = self.image {
            let table = image.table.map_sets(rename);
            out.image = Some((names[usize::from(disk)], Disk { table, ..image }));
        }
        out.late = self.late.map(|(disk, epoch, position, cell)| (names[usize::from(disk)], epoch, position, cell));
        out.lost = rename(self.lost);
        out.process.up = rename(self.process.up);
        out.process.failed = rename(self.process.failed);
        out.process.set = rename(self.process.set);
        out.process.next_set = rename(self.process.next_set);
        out.process.next_members = rename(self.process.next_members);
        out.process.table = self.process.table.map_sets(rename);
        out
    }

    /// One state for all that differ only in which of the first three disks is which: the rules treat them alike.
    pub(crate) fn representative(&self) -> State {
        const OTHERS: [[u8; DISKS]; 5] = [[0, 2, 1, 3], [1, 0, 2, 3], [1, 2, 0, 3], [2, 0, 1, 3], [2, 1, 0, 3]];
        OTHERS.iter().map(|names| self.renamed(names)).fold(*self, |least, other| least.min(other))
    }
}
