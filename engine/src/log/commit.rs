//! Group commit and what a quorum sets off: apply, publish, answer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::format::{BLOCK_HEADER, Block, SystemRecord};
use crate::geo::Restart;
use crate::log::Log;
use crate::log::admit::degraded;
use crate::log::index::IndexBuilder;
use crate::log::pipeline::{CROWD, Flying, Pending, Pipeline};
use crate::log::placement::COPIES;
use crate::shared::{HotBlock, lock};
use crate::transaction::{Committed, StateMachine};
use crate::types::{Lsn, SegmentId};

/// With a commit on its way, a further block waits until it holds this much: larger blocks cost less each.
const WORTH_SENDING: usize = 64 << 10;

/// How long the log thread stays awake after it has answered.
const LINGER: Duration = Duration::from_micros(20);

/// How long an `all` commit waits for the rebuild of its third copy after a set change.
const THIRD_COPY: Duration = Duration::from_secs(10);

/// What the log thread sleeps for, beside completions and the doorbell's other uses.
pub(crate) struct Rest {
    /// So many requests; `None` for however many come, none wakes it.
    pub(crate) requests: Option<usize>,
    /// Not longer than this.
    pub(crate) within: Option<Duration>,
    /// Whether it waits for those who were answered to come again.
    pub(crate) gathers: bool,
}

impl Log {
    /// What there is to wait for. While a block is on its way a lone request could not be sent anyway: it waits in the
    /// queue without waking the log thread, which is what makes a busy log cheap. With a crowd the log thread wakes when
    /// the next block is complete.
    pub(crate) fn rest(&self) -> Rest {
        let now = self.ops.now();
        self.with(|pipeline| {
            let missing = pipeline.missing(self.options.commit_depth);
            // Who was just answered may come again at once: to sleep and be woken takes longer than to stay awake for that.
            let lingers = (pipeline.answered_at + LINGER.as_nanos() as u64).saturating_sub(now);
            let within = (lingers > 0).then_some(Duration::from_nanos(lingers));
            let any = Rest { requests: Some(1), within, gathers: false };
            if pipeline.paused {
                return any;
            }
            let left = pipeline.gathers_until().saturating_sub(now);
            match pipeline.uncommitted() {
                0 if missing > 0 && left > 0 => {
                    Rest { requests: Some(missing), within: Some(Duration::from_nanos(left)), gathers: true }
                }
                0 => any,
                _ if pipeline.crowd < CROWD || missing == 0 => Rest { requests: None, within: None, gathers: false },
                _ => {
                    let within = (left > 0).then_some(Duration::from_nanos(left));
                    Rest { requests: Some(missing), within, gathers: within.is_some() }
                }
            }
        })
    }

    /// Whether the open block is complete and worth a write beside those on their way: it goes now, and what comes after it makes a
    /// block of its own.
    pub(crate) fn is_ripe(&self) -> bool {
        self.with(|pipeline| {
            let worth = pipeline.open.as_ref().is_some_and(|open| open.len >= WORTH_SENDING);
            worth && pipeline.missing(self.options.commit_depth) == 0
        })
    }

    /// Sends the open block if it is time to, and says whether it did.
    pub(crate) fn pump(&self) -> bool {
        let now = self.ops.now();
        let mut rolled = false;
        let sent = self.with(|pipeline| {
            if !self.may_send(pipeline, now) {
                return false;
            }
            if !pipeline.fits_active(self.options.segment_bytes) {
                if pipeline.closing.len() >= 2 {
                    return false;
                }
                let set = self.set_ids(pipeline);
                match pipeline.roll(&set) {
                    Some((segment, slots)) => self.open_segment(pipeline, segment, &slots),
                    None => {
                        self.stats.borrow_mut().segment_waits += u64::from(!pipeline.starved);
                        pipeline.starved = true;
                        return false;
                    }
                }
                rolled = true;
            }
            self.send(pipeline, now);
            true
        });
        if rolled {
            self.changed.raise();
        }
        sent
    }

    /// One block on its way at once; a second and further ones when they are worth it, up to the commit depth.
    fn may_send(&self, pipeline: &Pipeline, now: u64) -> bool {
        let Some(open) = pipeline.open.as_ref().filter(|open| open.frames > 0) else { return false };
        if pipeline.paused || pipeline.held_back {
            return false;
        }
        let large = open.len >= self.options.block_bytes / 2;
        let complete = large || pipeline.missing(self.options.commit_depth) == 0;
        // What a quorum holds is as good as committed: the next block need not wait for the answers.
        let unanswered = (pipeline.next_sequence - 1 - pipeline.quorum()) as usize;
        if unanswered == 0 {
            return complete || now >= pipeline.gathers_until();
        }
        let worth = open.len >= WORTH_SENDING.min(self.options.block_bytes / 2);
        unanswered < self.options.commit_depth && worth && complete && pipeline.fits_again(self.options.segment_bytes)
    }

    pub(crate) fn send(&self, pipeline: &mut Pipeline, now: u64) {
        let mut stats = self.stats.borrow_mut();
        if let Some(open) = &pipeline.open {
            stats.group_commit.saturating_record(now.saturating_sub(open.opened));
        }
        let members = pipeline.members.clone();
        let files = pipeline.active.files.clone();
        let Some(flying) = pipeline.launch(now) else { return };
        stats.blocks += 1;
        stats.transactions += u64::from(flying.frames);
        stats.records += flying.records;
        stats.bytes += flying.data.len() as u64;
        debug_assert!(flying.data.len() > BLOCK_HEADER, "a block holds frames");
        let (sequence, offset) = (flying.sequence, u64::from(flying.offset));
        for (member, file) in members.iter().zip(&files).filter(|(member, _)| member.live) {
            self.ops.write_block(member.token, sequence, member.disk, *file, offset, flying.data.clone());
        }
        if planted!(AckBeforeDurable) {
            for member in &members {
                pipeline.complete(member.token, sequence, true);
            }
        }
        self.place_pending(pipeline);
    }

    /// The block's transactions now have positions.
    pub(crate) fn place_pending(&self, pipeline: &mut Pipeline) {
        let Some(flying) = pipeline.flying.back_mut() else { return };
        let (segment, offset) = (flying.segment, flying.offset);
        let mut tables = self.tables.borrow_mut();
        for pending in flying.pending.iter_mut().filter(|pending| !pending.receipt.repeated) {
            pending.receipt.lsn = Lsn::new(segment, offset | pending.receipt.lsn.0 as u32);
        }
        for &(key, ordinal) in &flying.clients {
            tables.place(key, Lsn::new(segment, offset | ordinal));
        }
    }

    /// Moves the commit watermark to what a quorum holds and does what follows from it.
    pub(crate) fn advance(&self) {
        if self.halted.borrow().is_some() {
            return;
        }
        let to = self.with(|pipeline| pipeline.quorum());
        while let Some(at) = self.with(|pipeline| next_committed(pipeline, to)) {
            self.commit_block(at);
            if self.halted.borrow().is_some() {
                return;
            }
        }
        self.with(|pipeline| {
            self.answer_all(pipeline);
            self.answer_remote(pipeline);
            pipeline.release();
            if pipeline.paused && pipeline.is_quiet() {
                self.changed.raise();
            }
        });
    }

    /// Commits the block at `at` of the blocks in flight: it is the one after the last committed.
    fn commit_block(&self, at: usize) {
        let (block, end, sequence, started) = self.with(|pipeline| {
            let Flying { segment, offset, data, sequence, started, .. } = &pipeline.flying[at];
            let block = HotBlock { segment: *segment, offset: *offset, data: data.clone() };
            (block, pipeline.flying[at].end(), *sequence, *started)
        });
        let now = self.ops.now();
        self.stats.borrow_mut().quorum.saturating_record(now.saturating_sub(started));
        let closed = self.with(|pipeline| {
            assert!(sequence == pipeline.commit + 1 && sequence < pipeline.next_sequence, "commit <= appended");
            assert!(end > pipeline.committed, "positions grow");
            let before = pipeline.committed.segment();
            pipeline.commit = sequence;
            pipeline.committed = end;
            (before != end.segment()).then_some(before)
        });
        if let Some(segment) = closed {
            self.close_for_readers(segment);
        }
        if let Err(error) = self.apply(&block) {
            self.halt(error);
            return;
        }
        let after = self.ops.now();
        self.stats.borrow_mut().apply.saturating_record(after.saturating_sub(now));
        lock(&self.shared.hot).push(block);
        self.shared.committed.advance(end.0);
        self.answer_block(at, after);
    }

    /// Answers a committed block's transactions, but for those that wait for all copies.
    fn answer_block(&self, at: usize, now: u64) {
        self.with(|pipeline| {
            pipeline.answered_at = now;
            let sequence = pipeline.flying[at].sequence;
            for mut pending in std::mem::take(&mut pipeline.flying[at].pending) {
                if pending.receipt.repeated {
                    self.find_original(&pipeline.flying[at], &mut pending);
                }
                pending.all &= !planted!(AllIsQuorum);
                if pending.all && pipeline.is_degraded() {
                    pipeline.resolve(pending, Err(degraded()));
                } else if pending.all {
                    pipeline.all.push_back((sequence, pending));
                } else {
                    self.acknowledge(pipeline, pending, now);
                }
            }
        });
    }

    /// Where the original of a retry lies. One that had no place yet lies in the block that answers the retry, though its client's window may
    /// have forgotten it meanwhile.
    fn find_original(&self, block: &Flying, pending: &mut Pending) {
        let Some(key) = pending.retry else { return };
        let here = block.clients.iter().find(|(its, _)| *its == key);
        let here = here.filter(|_| !planted!(OriginalForgotten));
        let here = here.map(|(_, ordinal)| Lsn::new(block.segment, block.offset | ordinal));
        let known = self.tables.borrow().outcome(key).map(|outcome| outcome.lsn);
        pending.receipt.lsn = here.or(known).unwrap_or(pending.receipt.lsn);
    }

    /// Answers those who wait for three copies: in this epoch by the members' watermarks, in an earlier one once the
    /// segment was rebuilt.
    fn answer_all(&self, pipeline: &mut Pipeline) {
        if pipeline.all.is_empty() {
            return;
        }
        let (now, on_all) = (self.ops.now(), pipeline.on_all());
        while let Some((sequence, pending)) = pipeline.all.front() {
            let catalog = self.catalog.borrow();
            let segment = catalog.get(pending.receipt.lsn.segment());
            let durable = segment.is_none_or(|segment| {
                let whole = segment.complete().count() >= COPIES;
                whole || (segment.epoch == pipeline.epoch && *sequence <= on_all)
            });
            // A third copy that has to be rebuilt first may find no room, or no disk: that is said, not waited for.
            let rebuilt = segment.is_some_and(|segment| segment.epoch != pipeline.epoch);
            let hopeless = rebuilt && (pipeline.no_space || now > pending.at + THIRD_COPY.as_nanos() as u64);
            drop(catalog);
            if !durable && !hopeless {
                return;
            }
            let Some((_, pending)) = pipeline.all.pop_front() else { return };
            if durable {
                self.acknowledge(pipeline, pending, now);
            } else {
                pipeline.resolve(pending, Err(degraded()));
            }
        }
    }

    /// Answers what is durable here as asked, unless its secondary has to have it, too.
    pub(super) fn acknowledge(&self, pipeline: &mut Pipeline, pending: Pending, now: u64) {
        if let Some(account) = pending.remote {
            pipeline.remote.entry(account).or_default().push_back(pending);
            // Looked at again now: it may be there already.
            self.arrivals.set(self.arrivals.get().wrapping_sub(1));
            return;
        }
        self.answer_now(pipeline, pending, now);
    }

    fn answer_now(&self, pipeline: &mut Pipeline, pending: Pending, now: u64) {
        self.stats.borrow_mut().acknowledged.saturating_record(now.saturating_sub(pending.at));
        pipeline.resolve(pending, Ok(()));
    }

    /// Whether anything arrived at a secondary, or somebody began to wait for that, since it was looked at.
    pub(crate) fn has_arrivals(&self) -> bool {
        self.arrivals.get() != self.shared.gates.version()
    }

    /// Answers those whose secondary has what they committed; those that nobody looks after any more are told so.
    fn answer_remote(&self, pipeline: &mut Pipeline) {
        if !self.has_arrivals() {
            return;
        }
        self.arrivals.set(self.shared.gates.version());
        let now = self.ops.now();
        for (account, mut waiting) in std::mem::take(&mut pipeline.remote) {
            let (arrived, more) = self.shared.gates.arrived(account);
            while let Some(pending) = waiting.pop_front_if(|pending| !more || pending.receipt.lsn < arrived) {
                if pending.receipt.lsn < arrived {
                    self.answer_now(pipeline, pending, now);
                } else {
                    pipeline.resolve(pending, Err(not_there()));
                }
            }
            if !waiting.is_empty() {
                pipeline.remote.insert(account, waiting);
            }
        }
    }

    /// Hands a committed block's transactions to the index and the state machine.
    fn apply(&self, block: &HotBlock) -> Result<(), Error> {
        let builder = self.builder(block.segment);
        let mut builder = lock(&builder);
        // The bytes are those that were encoded and sent: they need no second check.
        for (ordinal, (_, frame)) in Block::trusted(&block.data).frames().enumerate() {
            let lsn = Lsn::new(block.segment, block.offset | ordinal as u32);
            builder.add(lsn, &frame);
            self.hand_over(&Committed::new(lsn, frame))?;
        }
        Ok(())
    }

    /// What a committed transaction means for readers and the state machine.
    fn hand_over(&self, committed: &Committed<'_>) -> Result<(), Error> {
        match committed.system_record() {
            Some(SystemRecord::Account(account)) => {
                self.write_catalog(|catalog| catalog.put_account(&account));
                self.shared.gates.put_account(&account);
            }
            Some(SystemRecord::Restart(restart)) => self.write_catalog(|catalog| {
                let its = restart.partitions.iter().map(|holding| (restart.account, holding.partition));
                catalog.restarts.extend(its.map(|key| (key, committed.lsn().segment())));
                catalog.restarted += 1;
            }),
            _ => {}
        }
        self.apply_one(committed)
    }

    pub(crate) fn apply_one(&self, committed: &Committed<'_>) -> Result<(), Error> {
        let at = format_args!(" at position {}", committed.lsn());
        if !committed.is_system() {
            return self.call_machine("apply", at, |machine| machine.apply(committed));
        }
        let Some(SystemRecord::Restart(Restart { account, partitions })) = committed.system_record() else {
            return Ok(());
        };
        self.call_machine("restart", at, |machine| {
            partitions.iter().for_each(|holding| machine.restart(account, holding.partition));
        })
    }

    /// Where the machine wants to go on.
    pub(crate) fn resume_from(&self) -> Result<Lsn, Error> {
        self.call_machine("resume_from", format_args!(""), |machine| machine.resume_from())
    }

    /// Every call into the caller's machine: a panic there must not cross into the log.
    fn call_machine<T>(
        &self,
        name: &str,
        at: std::fmt::Arguments<'_>,
        call: impl FnOnce(&mut dyn StateMachine) -> T,
    ) -> Result<T, Error> {
        let mut machine = self.machine.borrow_mut();
        let called = catch_unwind(AssertUnwindSafe(|| call(&mut **machine)));
        if self.shared.home.is_forked() {
            // The machine forked, and the child came back. It must not go on with the parent's log, on the parent's disks.
            std::process::abort();
        }
        called.map_err(|_| {
            let message = format!("the state machine panicked in {name}{at}: mend it, then open the region again");
            Error::new(ErrorKind::Halted, message)
        })
    }

    /// The index in the making of a segment.
    pub(crate) fn builder(&self, segment: SegmentId) -> Arc<std::sync::Mutex<IndexBuilder>> {
        let catalog = self.read_catalog();
        let builder = catalog.builders.get(&segment).map(Arc::clone);
        builder.expect("a segment that takes blocks has an index in the making")
    }
}

fn not_there() -> Error {
    let message = "committed here; the link to the secondary was stopped before it was known to be there";
    Error::new(ErrorKind::Degraded, message)
}

/// Where the next block to commit is among those in flight.
fn next_committed(pipeline: &Pipeline, to: u64) -> Option<usize> {
    if pipeline.commit >= to {
        return None;
    }
    let first = pipeline.flying.front()?.sequence;
    Some((pipeline.commit + 1 - first) as usize)
}
