//! The write path: blocks filled, sent to the set, committed by quorum, applied, answered.
//!
//! Each block moves three watermarks in this order: appended (`next_sequence`), durable on each member, `commit`.

use std::collections::{BTreeMap, VecDeque};
use std::task::Waker;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{BLOCK_HEADER, BlockHeader, DATA_START, Seal, finish_block, padded};
use crate::io::{Arena, Buffer, DiskIndex, FileId, Slice};
use crate::log::admit::MAX_FRAMES;
use crate::log::disk::Slot;
use crate::log::geo::GeoDone;
use crate::log::ops::SEQUENCE;
use crate::log::placement::{COPIES, QUORUM};
use crate::log::tables::RetryKey;
use crate::sync::ticket::Resolver;
use crate::transaction::Receipt;
use crate::types::{AccountId, DiskId, Epoch, LogId, Lsn, SegmentId};

/// Clients that were just answered are given so long to come back before a block without them goes out.
const GATHER: Duration = Duration::from_micros(50);
/// For so many blocks nobody is waited for when somebody did not come in time.
const IMPATIENT: u8 = 16;
/// So many transactions outstanding are a crowd: blocks are sized by it, and a single request is not worth waking up for.
pub(crate) const CROWD: u64 = 32;

/// Whom to answer.
pub(crate) enum Done {
    Commit(Resolver<Result<Receipt>>),
    Account(AccountId, Resolver<Result<AccountId>>),
    Geo(GeoDone),
}

/// A transaction on its way.
pub(crate) struct Pending {
    pub(crate) done: Done,
    /// Its position is the frame's number in its block until the block has a place.
    pub(crate) receipt: Receipt,
    /// What a retry of it is recognised by.
    pub(crate) retry: Option<RetryKey>,
    pub(crate) all: bool,
    /// The account whose secondary has to have it, too, before it is answered.
    pub(crate) remote: Option<AccountId>,
    pub(crate) at: u64,
    /// What it gives back to the intake when answered.
    pub(crate) bytes: usize,
}

/// A block that is being filled.
pub(crate) struct OpenBlock {
    pub(crate) buffer: Buffer,
    pub(crate) len: usize,
    pub(crate) frames: u32,
    pub(crate) records: u64,
    /// The frames of clients: what their retries are recognised by, and the frame's number in the block.
    pub(crate) clients: Vec<(RetryKey, u32)>,
    pub(crate) opened: u64,
    pub(crate) pending: Vec<Pending>,
}

/// A block on its way.
pub(crate) struct Flying {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
    pub(crate) sequence: u64,
    pub(crate) data: Slice,
    pub(crate) frames: u32,
    pub(crate) records: u64,
    /// As the open block had them.
    pub(crate) clients: Vec<(RetryKey, u32)>,
    /// One bit for each member that has it durable.
    pub(crate) done: u16,
    /// When it was sent, later by the time in which the log thread was away.
    pub(crate) started: u64,
    pub(crate) pending: Vec<Pending>,
}

impl Flying {
    pub(crate) fn end(&self) -> Lsn {
        Lsn::new(self.segment, self.offset + self.data.len() as u32)
    }
}

/// One disk of the current set.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) disk: DiskIndex,
    /// Names this membership in completions: those of an earlier one are ignored.
    pub(crate) token: u16,
    /// It holds every block up to this sequence.
    pub(crate) durable: u64,
    /// The position after that block.
    pub(crate) flushed: Lsn,
    /// No operation failed on it in this set.
    pub(crate) live: bool,
}

/// The segment that blocks go to.
#[derive(Clone, Debug)]
pub(crate) struct Active {
    pub(crate) id: SegmentId,
    /// By member.
    pub(crate) files: Vec<FileId>,
    /// Where the next block goes.
    pub(crate) offset: u32,
    pub(crate) base_sequence: u64,
    pub(crate) base_chain: u64,
    pub(crate) transactions: u64,
    pub(crate) records: u64,
}

impl Active {
    pub(crate) fn new(id: SegmentId, files: Vec<FileId>, base_sequence: u64, base_chain: u64) -> Active {
        Active { id, files, offset: DATA_START, base_sequence, base_chain, transactions: 0, records: 0 }
    }
}

pub(crate) struct Pipeline {
    pub(crate) log: LogId,
    pub(crate) epoch: Epoch,
    pub(crate) members: Vec<Member>,
    pub(crate) active: Active,
    /// The next segment of this epoch, its headers written.
    pub(crate) next: Option<(SegmentId, Vec<Slot>)>,
    /// Segments of this epoch that are full, their end decided, not yet committed to it.
    pub(crate) closing: VecDeque<Seal>,
    pub(crate) open: Option<OpenBlock>,
    pub(crate) flying: VecDeque<Flying>,
    /// The sequence of the next block. Sequences start at 1.
    pub(crate) next_sequence: u64,
    /// The checksum of the block before it.
    pub(crate) chain: u64,
    /// The highest committed block.
    pub(crate) commit: u64,
    /// The end of that block.
    pub(crate) committed: Lsn,
    /// Those who wait for all copies, by block.
    pub(crate) all: VecDeque<(u64, Pending)>,
    /// Those who wait for a secondary, by account, in the order of the log.
    pub(crate) remote: BTreeMap<AccountId, VecDeque<Pending>>,
    /// A set change is under way: nothing is sent.
    pub(crate) paused: bool,
    /// Nothing is sent before a member that cannot be spared has caught up.
    pub(crate) held_back: bool,
    /// How many transactions were outstanding at once of late: the most of it, forgotten block by block.
    pub(crate) crowd: u64,
    /// When the last block was answered.
    pub(crate) answered_at: u64,
    /// So many further blocks do not wait for those who were just answered: of late they did not come back in time.
    pub(crate) impatient: u8,
    /// A block waits for the next segment.
    pub(crate) starved: bool,
    /// No disk has room for the next segment.
    pub(crate) no_space: bool,
    /// Without a next segment, the active one takes blocks: another opening would find a free slot. An active one that
    /// took the last free slot stays empty, so that the next opening can have it.
    pub(crate) may_fill: bool,
    /// Where blocks lie while they are filled, written and hot.
    pub(crate) memory: Arena,
    pub(crate) wakers: Vec<Waker>,
    /// Items and bytes to give back to the intake.
    pub(crate) released: (u64, u64),
}

/// What a durable write of a block led to.
pub(crate) enum Progress {
    /// Nothing to act on.
    None,
    /// The member's watermark moved.
    Durable,
    /// The member failed.
    Lost(DiskIndex),
}

impl Pipeline {
    pub(crate) fn uncommitted(&self) -> usize {
        (self.next_sequence - 1 - self.commit) as usize
    }

    /// Whether the present set has fewer than three disks. One that has just lost a disk is about to be changed.
    pub(crate) fn is_degraded(&self) -> bool {
        self.members.len() < COPIES
    }

    /// Takes note of how many transactions are outstanding.
    pub(crate) fn meet(&mut self, outstanding: u64) {
        self.crowd = self.crowd.max(outstanding);
    }

    /// How many more transactions the open block waits for: half of the crowd makes a block, so that one block is filled while
    /// the other is on its way. Without a crowd each transaction is enough.
    pub(crate) fn missing(&self, depth: usize) -> usize {
        let share = match self.crowd {
            ..CROWD => 1,
            crowd if depth == 1 => crowd - crowd / 8,
            crowd => crowd / 2,
        };
        let frames = self.open.as_ref().map_or(0, |open| open.frames);
        (share as usize).min(MAX_FRAMES as usize).saturating_sub(frames as usize)
    }

    /// Until when the open block waits for those who were just answered, in nanoseconds.
    pub(crate) fn gathers_until(&self) -> u64 {
        let waits = self.crowd >= CROWD && self.impatient == 0;
        if waits { self.answered_at + GATHER.as_nanos() as u64 } else { 0 }
    }

    /// Whether those who were waited for came in time.
    pub(crate) fn gathered(&mut self, in_time: bool) {
        if !in_time {
            self.impatient = IMPATIENT;
        }
    }

    /// Whether everything appended is committed, and nothing of it lies in the active segment.
    pub(crate) fn holds_nothing(&self) -> bool {
        self.active.offset == DATA_START && self.uncommitted() == 0
    }

    /// Bytes of blocks that are on their way and not committed.
    pub(crate) fn uncommitted_bytes(&self) -> usize {
        self.flying.iter().rev().take(self.uncommitted()).map(|flying| flying.data.len()).sum()
    }

    /// Whether the open block could take a frame of `len` bytes and still find a place in the log.
    pub(crate) fn has_room(&self, len: usize, segment_bytes: u32) -> bool {
        let used = self.open.as_ref().map_or(BLOCK_HEADER, |open| open.len);
        let fits = self.active.offset as usize + padded(used + len) <= segment_bytes as usize;
        self.next.is_some() || (self.may_fill && fits)
    }

    /// Whether the active segment can take the open block.
    pub(crate) fn fits_active(&self, segment_bytes: u32) -> bool {
        let len = self.open.as_ref().map_or(0, |open| padded(open.len));
        self.active.offset as usize + len <= segment_bytes as usize
    }

    /// Whether the open block, with all that is not committed, fits one segment: after a set change they are written again.
    pub(crate) fn fits_again(&self, segment_bytes: u32) -> bool {
        let len = self.open.as_ref().map_or(0, |open| padded(open.len));
        self.uncommitted_bytes() + len + DATA_START as usize <= segment_bytes as usize
    }

    /// The next segment becomes the active one; the full one waits for its last block to commit.
    pub(crate) fn roll(&mut self, set: &[DiskId]) -> Option<(SegmentId, Vec<Slot>)> {
        let (id, slots) = self.next.take()?;
        let seal = self.seal_active(set);
        self.closing.push_back(seal);
        let files = slots.iter().map(|slot| slot.file).collect();
        self.active = Active::new(id, files, self.next_sequence, self.chain);
        Some((id, slots))
    }

    /// The seal of the active segment at what has been appended to it.
    pub(crate) fn seal_active(&self, set: &[DiskId]) -> Seal {
        let active = &self.active;
        Seal {
            log: self.log,
            segment: active.id,
            epoch: self.epoch,
            length: active.offset,
            base_sequence: active.base_sequence,
            base_chain: active.base_chain,
            next_sequence: self.next_sequence,
            end_chain: self.chain,
            transactions: active.transactions,
            records: active.records,
            set: set.to_vec(),
        }
    }

    /// Gives the open block its place and header; what remains is to write it to every live member.
    pub(crate) fn launch(&mut self, now: u64) -> Option<&Flying> {
        let OpenBlock { mut buffer, len, frames, records, clients, pending, .. } = self.open.take()?;
        let block = padded(len);
        buffer.shrink(block);
        let header = BlockHeader {
            log: self.log,
            epoch: self.epoch,
            segment: self.active.id,
            offset: self.active.offset,
            sequence: self.next_sequence,
            chain: self.chain,
            commit: self.commit,
            frames,
            length: len as u32,
        };
        self.chain = finish_block(&header, &mut buffer);
        self.append(Flying {
            segment: header.segment,
            offset: header.offset,
            sequence: header.sequence,
            data: buffer.share(),
            frames,
            records,
            clients,
            done: 0,
            started: now,
            pending,
        });
        self.flying.back()
    }

    fn append(&mut self, flying: Flying) {
        assert!(self.commit < self.next_sequence, "commit <= appended");
        self.starved = false;
        self.crowd -= self.crowd / 16;
        self.impatient = self.impatient.saturating_sub(1);
        self.active.offset += flying.data.len() as u32;
        self.active.transactions += u64::from(flying.frames);
        self.active.records += flying.records;
        self.next_sequence += 1;
        self.flying.push_back(flying);
    }

    /// Takes in the completion of a block's write.
    pub(crate) fn complete(&mut self, token: u16, sequence: u64, ok: bool) -> Progress {
        let Some(at) = self.members.iter().position(|member| member.token == token) else { return Progress::None };
        let Some(first) = self.flying.front().map(|flying| flying.sequence) else { return Progress::None };
        let member = &mut self.members[at];
        if !ok {
            member.live = false;
            return Progress::Lost(member.disk);
        }
        // Invariant 5: what completes on a member after it failed once does not count.
        if !member.live {
            return Progress::None;
        }
        // One that came before the first is far behind the last.
        let since = sequence.wrapping_sub(first) & SEQUENCE;
        if let Some(flying) = self.flying.get_mut(since as usize) {
            flying.done |= 1 << at;
        }
        if planted!(AckOutOfOrder) {
            member.durable = member.durable.max(sequence);
        }
        let mut moved = false;
        while let Some(flying) = self.flying.get((member.durable + 1).wrapping_sub(first) as usize) {
            if flying.done & (1 << at) == 0 {
                break;
            }
            member.durable = flying.sequence;
            member.flushed = flying.end();
            moved = true;
        }
        if moved { Progress::Durable } else { Progress::None }
    }

    /// The highest block that a quorum of live members holds, with all before it (FAULT-MODEL, commit rule).
    pub(crate) fn quorum(&self) -> u64 {
        let mut durable: Vec<u64> =
            self.members.iter().filter(|member| member.live).map(|member| member.durable).collect();
        durable.sort_unstable_by(|a, b| b.cmp(a));
        let quorum = if planted!(CommitBeforeQuorum) { 1 } else { QUORUM };
        durable.get(quorum - 1).copied().unwrap_or(0).max(self.commit)
    }

    /// The highest block that all three copies hold.
    pub(crate) fn on_all(&self) -> u64 {
        if self.is_degraded() || self.members.iter().any(|member| !member.live) {
            return 0;
        }
        self.members.iter().map(|member| member.durable).min().unwrap_or(0)
    }

    /// Lets go of blocks that are committed and on every live member.
    pub(crate) fn release(&mut self) {
        let live = self.members.iter().enumerate().filter(|(_, member)| member.live);
        let wanted = live.fold(0u16, |bits, (at, _)| bits | 1 << at);
        while let Some(front) = self.flying.front() {
            if front.sequence > self.commit || front.done & wanted != wanted {
                break;
            }
            self.flying.pop_front();
        }
    }

    /// Memory of committed blocks that a member lacks, in bytes. Those that are not committed are bounded by the commit
    /// depth, whoever lacks them.
    pub(crate) fn lag(&self, at: usize) -> usize {
        let durable = self.members[at].durable;
        let late = self.flying.iter().filter(|flying| flying.sequence > durable && flying.sequence <= self.commit);
        late.map(|flying| flying.data.held()).sum()
    }

    /// When the oldest block was sent that a member has not written, if there is one.
    pub(crate) fn oldest(&self, at: usize) -> Option<u64> {
        self.flying.iter().find(|flying| flying.done & (1 << at) == 0).map(|flying| flying.started)
    }

    /// The log thread was away for so many nanoseconds, which do not count for what is on its way.
    pub(crate) fn forgive(&mut self, away: u64) {
        self.flying.iter_mut().for_each(|flying| flying.started += away);
    }

    /// Whether every live member has every block that was sent.
    pub(crate) fn is_quiet(&self) -> bool {
        self.members.iter().all(|member| !member.live || member.durable + 1 == self.next_sequence)
    }

    /// Answers a transaction; its caller is woken later.
    pub(crate) fn answer(&mut self, done: Done, result: Result<Receipt>) {
        self.wakers.extend(match done {
            Done::Commit(done) => done.resolve_quietly(result),
            Done::Account(id, done) => done.resolve_quietly(result.map(|_| id)),
            Done::Geo(done) => done.resolve(result),
        });
    }

    /// Answers a transaction and gives its room in the intake back.
    pub(crate) fn resolve(&mut self, pending: Pending, result: Result<()>) {
        let Pending { done, receipt, bytes, .. } = pending;
        self.released.0 += 1;
        self.released.1 += bytes as u64;
        self.answer(done, result.map(|()| receipt));
    }

    /// Answers when everything appended by now is committed; what is committed already comes back.
    #[must_use = "what comes back is to be answered now"]
    pub(crate) fn answer_behind(&mut self, pending: Pending) -> Option<Pending> {
        let open = self.open.as_mut().map(|open| &mut open.pending);
        let last = self.flying.back_mut().filter(|flying| flying.sequence > self.commit);
        match open.or(last.map(|flying| &mut flying.pending)) {
            Some(waiting) => {
                waiting.push(pending);
                None
            }
            None => Some(pending),
        }
    }

    /// Fails everything that is not answered, because the region stops.
    pub(crate) fn fail_all(&mut self, reason: &str) {
        let open = self.open.take().map(|open| open.pending).into_iter().flatten();
        let flying = self.flying.iter_mut().flat_map(|flying| std::mem::take(&mut flying.pending));
        let all = self.all.drain(..).map(|(_, pending)| pending);
        let remote = std::mem::take(&mut self.remote).into_values().flatten();
        let pending: Vec<Pending> = flying.chain(open).chain(all).chain(remote).collect();
        for pending in pending {
            let message = format!("not known to be committed: {reason}");
            self.resolve(pending, Err(Error::new(ErrorKind::Indeterminate, message)));
        }
    }
}
