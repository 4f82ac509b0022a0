//! The rules under test: who votes, what a position on one disk says, and where the log ends.
use crate::disk::{BLOCKS, Cell, Disk, Entry, Mask, Table, count, members};

/// One rule left out or turned round. Each is known to be wrong, and the checker must find out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flaw {
    /// All rules are kept.
    None,
    /// The log ends where any readable disk has nothing.
    ShortestLog,
    /// The disk with the longest log is copied, whatever its epoch.
    LongestLog,
    /// The recovered log is read before it is on a quorum.
    ExposeBeforeWriteBack,
    /// Sealed lengths are not kept: each recovery takes the shortest copy of each segment.
    ShortestWithoutSeal,
    /// What does not verify counts as absent, also below a commit index or a flushed mark.
    FaultyIsAbsent,
    /// Disks outside the replica set say "absent" too, and any two superblocks will do.
    StaleVotes,
    /// A disk without a superblock votes.
    BlankVotes,
    /// A write counts when it was issued.
    AckBeforeFlush,
    /// A flush that failed is asked again, and believed.
    FlushRetried,
    /// A block is acknowledged before the one in front of it.
    AckOutOfOrder,
    /// Two absent answers are not waited for.
    OneAbsentEnds,
    /// A block after a gap is kept.
    GapKept,
    /// A member of the set says "absent" only if its superblock has the epoch's entry.
    VoteNeedsEntry,
    /// The best superblock is the one with the highest promise, and of those the one written last.
    BestByPromise,
    /// One superblock is enough to recover from, and to promise on.
    OneSuperblock,
    /// The epoch is used without a durable promise.
    NoPromise,
    /// A running writer takes the next epoch for a new set without a promise round of its own.
    ChangeWithoutPromise,
    /// The seal counts when it is on one superblock.
    SealOnOne,
    /// A new member in another's place has its superblock before a majority of the old members knows of it.
    MembersSwapped,
    /// A disk becomes a member of the region before it has a superblock.
    BlankMember,
    /// Blocks of the old segment are still acknowledged after its sealed length was chosen.
    AckPastSeal,
}

/// Rules and quorum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Copies an acknowledgement asks for.
    pub(crate) quorum: u32,
    /// Whether a last block that does not verify may be a rotten one, so that recovery refuses where it cannot tell.
    pub(crate) strict: bool,
    /// Whether the write of a promise carries the best epoch table that was found, too.
    pub(crate) carry: bool,
    /// The rule that is broken.
    pub(crate) flaw: Flaw,
}

/// Why a recovery does not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// Too few superblocks that have a vote.
    Superblocks,
    /// A position that is part of the log is on no readable disk.
    Lost,
    /// Whether the log goes on cannot be told from these disks.
    Undecided,
}

/// The log that a recovery decides on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    /// The epoch table it goes by.
    pub(crate) table: Table,
    /// Where the last segment starts.
    pub(crate) base: u8,
    /// Where the log ends.
    pub(crate) end: u8,
    /// The log, as cells.
    pub(crate) log: [u8; BLOCKS],
}

impl Rules {
    /// Whether `who` holds a majority of the members by `table`.
    pub(crate) fn majority(&self, table: &Table, who: Mask) -> bool {
        let members = table.get(table.last()).map_or(0, |top| top.members);
        match self.flaw {
            Flaw::OneSuperblock => who != 0,
            Flaw::StaleVotes => count(who) >= 2,
            _ => count(who & members) * 2 > count(members),
        }
    }

    /// The disks of `found` that have a superblock.
    pub(crate) fn voters(&self, disks: &[Disk], found: Mask) -> Mask {
        let votes = |disk: &usize| disks[*disk].formatted || self.flaw == Flaw::BlankVotes;
        members(found).filter(votes).fold(0, |mask, disk| mask | 1 << disk)
    }

    /// The best epoch table on the found disks: the one with the highest epoch.
    pub(crate) fn table(&self, disks: &[Disk], found: Mask) -> Table {
        let best = members(found).map(|disk| &disks[disk]).max_by_key(|disk| match self.flaw {
            Flaw::BestByPromise => (disk.promised, disk.generation),
            _ => (disk.table.last(), 0),
        });
        best.map(|disk| disk.table).unwrap_or_default()
    }

    /// Whether the found disks hold enough votes to recover.
    pub(crate) fn may_recover(&self, disks: &[Disk], found: Mask) -> bool {
        let table = self.table(disks, found);
        table.last() != 0 && self.majority(&table, self.voters(disks, found))
    }

    /// Decides where the log ends, from the disks found.
    pub(crate) fn recover(&self, disks: &[Disk], found: Mask) -> Result<Plan, Refusal> {
        if !self.may_recover(disks, found) {
            return Err(Refusal::Superblocks);
        }
        self.decide(disks, found, self.table(disks, found))
    }

    /// Decides where the log ends by a table that was found before.
    pub(crate) fn decide(&self, disks: &[Disk], found: Mask, table: Table) -> Result<Plan, Refusal> {
        match self.flaw {
            Flaw::LongestLog => Ok(self.longest(disks, found)),
            Flaw::ShortestWithoutSeal => Ok(self.shortest_unsealed(disks, found)),
            _ => self.walk(disks, found, table),
        }
    }

    /// The sealed segments by the table, then the last one position by position.
    fn walk(&self, disks: &[Disk], found: Mask, table: Table) -> Result<Plan, Refusal> {
        let mut log = [0; BLOCKS];
        for epoch in table.epochs() {
            let base = table.get(epoch).expect("listed").base;
            for position in base..table.end(epoch).unwrap_or(base) {
                let copy = present(disks, found, epoch, position).ok_or(Refusal::Lost)?;
                log[usize::from(position)] = copy.0;
            }
        }
        let last = table.last();
        let Entry { base, set, .. } = table.top();
        let mut end = base;
        while usize::from(end) < BLOCKS && !self.ends(disks, found, last, set, end)? {
            match present(disks, found, last, end) {
                Some(copy) => log[usize::from(end)] = copy.0,
                None => assert_eq!(self.flaw, Flaw::GapKept, "a walk keeps only what is there"),
            }
            end += 1;
        }
        if self.flaw == Flaw::GapKept {
            (log, end) = close_gaps(log, base, end);
        }
        Ok(Plan { table, base, end, log })
    }

    /// Whether the last segment ends at this position.
    fn ends(&self, disks: &[Disk], found: Mask, epoch: u8, set: Mask, position: u8) -> Result<bool, Refusal> {
        let anywhere = present(disks, found, epoch, position).is_some();
        if self.flaw == Flaw::ShortestLog {
            return Ok(members(found & set).any(|disk| !disks[disk].cell(epoch, position).is_good()));
        }
        if self.flaw == Flaw::GapKept && !anywhere {
            return Ok((position..BLOCKS as u8).all(|later| present(disks, found, epoch, later).is_none()));
        }
        if anywhere {
            return Ok(false);
        }
        let committed = members(found).map(|disk| disks[disk].commit_seen()).max().unwrap_or(0);
        let asked = if self.flaw == Flaw::StaleVotes { found } else { found & set };
        // The first write of an epoch waits for its entry on all members. So one without it has nothing to tell of,
        // unless somebody has such a write: then it was put back.
        let begun = (0..BLOCKS as u8).any(|position| present(disks, found, epoch, position).is_some());
        let mut absent = 0;
        let mut bad = 0;
        for disk in members(asked) {
            let own = &disks[disk];
            let flushed = if own.table.last() == epoch { own.flushed } else { 0 };
            let entered = own.table.last() >= epoch || (!begun && self.flaw != Flaw::VoteNeedsEntry);
            let has_vote = (own.formatted && entered) || matches!(self.flaw, Flaw::BlankVotes | Flaw::StaleVotes);
            let may_be_absent = (position >= committed && position >= flushed) || self.flaw == Flaw::FaultyIsAbsent;
            if has_vote && may_be_absent {
                absent += 1;
                bad += u32::from(own.cell(epoch, position) == Cell::BAD);
            }
        }
        // Of the blocks that do not verify, at most one can be a flushed block that rotted.
        let sure = if self.strict && self.flaw != Flaw::FaultyIsAbsent { absent - bad.min(1) } else { absent };
        let needed = match self.flaw {
            Flaw::OneAbsentEnds => 1,
            _ => (count(set) + 1).saturating_sub(self.quorum).max(1),
        };
        if sure >= needed { Ok(true) } else { Err(Refusal::Undecided) }
    }

    /// Known to be wrong: the longest log of any disk.
    fn longest(&self, disks: &[Disk], found: Mask) -> Plan {
        let own_log = |disk: usize| {
            let table = disks[disk].table;
            let (mut log, mut end) = ([0; BLOCKS], 0);
            for epoch in table.epochs() {
                let limit = table.end(epoch).unwrap_or(BLOCKS as u8);
                while end < limit && disks[disk].cell(epoch, end).is_good() {
                    log[usize::from(end)] = disks[disk].cell(epoch, end).0;
                    end += 1;
                }
            }
            (end, log, table)
        };
        let (end, log, table) = members(found).map(own_log).max_by_key(|(end, ..)| *end).expect("a disk was found");
        Plan { table, base: table.get(table.last()).map_or(0, |entry| entry.base.min(end)), end, log }
    }

    /// Known to be wrong: the shortest copy of each segment, again at each recovery.
    fn shortest_unsealed(&self, disks: &[Disk], found: Mask) -> Plan {
        let table = self.table(disks, found);
        let (mut log, mut end, mut base) = ([0; BLOCKS], 0, 0);
        for epoch in table.epochs() {
            let Entry { base: start, set, .. } = table.get(epoch).expect("listed");
            base = end;
            for position in start..BLOCKS as u8 {
                let everywhere = members(found & set).all(|disk| disks[disk].cell(epoch, position).is_good());
                let Some(copy) = present(disks, found, epoch, position).filter(|_| everywhere) else { break };
                if usize::from(end) < BLOCKS {
                    log[usize::from(end)] = copy.0;
                    end += 1;
                }
            }
        }
        Plan { table, base, end, log }
    }

    /// The replica set of the epoch that a recovery starts: the members of the last set that it found, and other members
    /// of the region in the place of those it did not find.
    pub(crate) fn recovery_set(&self, disks: &[Disk], found: Mask, table: &Table) -> Mask {
        let Some(Entry { set, members: region, .. }) = table.get(table.last()) else { return 0 };
        let voters = self.voters(disks, found) & region;
        let others = members(voters & !set).take(3 - count(voters & set) as usize);
        others.fold(voters & set, |set, disk| set | 1 << disk)
    }

    /// Copies of the tail that a recovery makes before it goes on: a quorum, or all of a smaller set.
    pub(crate) fn copies(&self, set: Mask) -> u32 {
        self.quorum.min(count(set))
    }
}

/// The block at a position, from any disk where it verifies.
fn present(disks: &[Disk], found: Mask, epoch: u8, position: u8) -> Option<Cell> {
    members(found).map(|disk| disks[disk].cell(epoch, position)).find(|cell| cell.is_good())
}

/// Known to be wrong: moves what lies behind a gap up to it.
fn close_gaps(log: [u8; BLOCKS], base: u8, end: u8) -> ([u8; BLOCKS], u8) {
    let mut out = [0; BLOCKS];
    let mut len = 0;
    for (position, cell) in log.iter().enumerate().take(usize::from(end)) {
        if position < usize::from(base) || *cell != 0 {
            out[len] = *cell;
            len += 1;
        }
    }
    (out, len as u8)
}
