//! The log of a region: one thread's state, its event loop, and the tasks beside it.
//!
//! Read in this order: [`admit`] (a request becomes a frame), [`pipeline`] (blocks and watermarks), [`commit`] (what a quorum sets
//! off), then [`recovery`] (how it starts) and [`reconfigure`] (how it loses and gains a disk).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use futures::executor::{LocalPool, LocalSpawner};
use futures::task::LocalSpawnExt;

use crate::error::{Error, ErrorKind, Result};
use crate::health::DiskState;
use crate::io::{DiskIndex, Driver};
use crate::options::Options;
use crate::shared::{Request, Shared, lock};
use crate::stats::Stats;
use crate::sync::ticket::{Resolver, ticket};
use crate::transaction::StateMachine;
use crate::types::SegmentId;

pub(crate) mod admit;
pub(crate) mod attach;
pub(crate) mod catalog;
pub(crate) mod commit;
pub(crate) mod control;
pub(crate) mod disk;
pub(crate) mod files;
pub(crate) mod geo;
pub(crate) mod index;
pub(crate) mod lack;
pub(crate) mod making;
pub(crate) mod meta;
pub(crate) mod ops;
pub(crate) mod pipeline;
pub(crate) mod placement;
pub(crate) mod prepare;
pub(crate) mod rebuild;
pub(crate) mod reconfigure;
pub(crate) mod recovery;
pub(crate) mod returning;
pub(crate) mod scrub;
pub(crate) mod seal;
pub(crate) mod settle;
pub(crate) mod tables;
pub(crate) mod tail;
pub(crate) mod trim;
pub(crate) mod walk;
pub(crate) mod watch;

use catalog::Catalog;
use commit::Rest;
use disk::Disk;
use meta::Meta;
use ops::{BlockDone, Ops};
use pipeline::{Pipeline, Progress};
use tables::Tables;

/// Whether a region is made or found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Create,
    Open,
}

/// Everything the log thread owns. Tasks share it; no borrow lives across an await.
pub(crate) struct Log {
    pub(crate) ops: Ops,
    pub(crate) options: Options,
    pub(crate) shared: Arc<Shared>,
    pub(crate) disks: RefCell<Vec<Disk>>,
    pub(crate) catalog: RefCell<Catalog>,
    pub(crate) meta: RefCell<Meta>,
    pub(crate) tables: RefCell<Tables>,
    /// None until the region is recovered.
    pub(crate) pipeline: RefCell<Option<Pipeline>>,
    pub(crate) machine: RefCell<Box<dyn StateMachine>>,
    pub(crate) stats: RefCell<Stats>,
    /// A change of the set waits for a rebuild: nothing is slowed down meanwhile.
    pub(crate) hurried: Cell<bool>,
    /// Held while superblocks are written.
    pub(crate) superblocks: futures::lock::Mutex<()>,
    /// Held while blocks are written to slots outside the write path: trimming waits for it before slots change hands.
    pub(crate) rebuilding: futures::lock::Mutex<()>,
    /// The same for seal pages, which must not wait for a rebuild.
    pub(crate) paging: futures::lock::Mutex<()>,
    pub(crate) changed: Signal,
    /// Why the set must change, if it must.
    pub(crate) reconfigure: RefCell<Option<String>>,
    pub(crate) halted: RefCell<Option<Error>>,
    pub(crate) closing: RefCell<Option<Resolver<Result<()>>>>,
    /// The disks are being given up: what fails from now on says nothing of them.
    pub(crate) leaving: Cell<bool>,
    pub(crate) closed: Cell<bool>,
    /// None while a computation has it.
    pub(crate) checkpointer: RefCell<Option<seal::Checkpointer>>,
    /// The disks that have the last checkpoint, as far as is known.
    pub(crate) checkpoint_on: RefCell<BTreeSet<DiskIndex>>,
    /// A disk may lack it.
    pub(crate) offer_checkpoint: Cell<bool>,
    pub(crate) corrupt: Cell<(u64, u64)>,
    /// Sealed segments of which a scrub found bytes that no copy has.
    pub(crate) lost: RefCell<BTreeSet<SegmentId>>,
    pub(crate) tokens: Cell<u16>,
    pub(crate) recovery_bytes: Cell<u64>,
    /// Monotonic and wall time of the batch of requests being admitted: asked once for all of them.
    pub(crate) batch_clock: Cell<(u64, u64)>,
    /// The version of the gates that those who wait for a secondary were last held against.
    pub(crate) arrivals: Cell<u64>,
}

/// Where the core is.
#[derive(Debug)]
pub(crate) enum Phase {
    Opening,
    Running,
    /// Opening failed.
    Failed(Error),
    /// Closed in order, or halted and then closed.
    Closed,
}

/// The log thread's loop, one step at a time, so that a simulator can be the one to step it.
pub(crate) struct Core {
    log: Rc<Log>,
    tasks: LocalPool,
    done: Vec<BlockDone>,
    /// Requests that wait for room in the log, in their order; what goes past them is not among them.
    held: VecDeque<Request>,
    /// For how long the log thread was found to have been away since completions were last taken in.
    away: u64,
    /// Whether completions were looked at since they were last seen to.
    looked: bool,
    opened: Rc<RefCell<Option<Result<()>>>>,
    running: bool,
}

impl Core {
    /// Starts opening the region; [`Core::step`] carries it on.
    pub(crate) fn start(
        mode: Mode,
        driver: Box<dyn Driver>,
        machine: Box<dyn StateMachine>,
        shared: Arc<Shared>,
    ) -> Core {
        let ops = Ops::new(driver, shared.options.stall_timeout);
        let log = Rc::new(Log::new(ops, machine, shared));
        let tasks = LocalPool::new();
        let opened = Rc::new(RefCell::new(None));
        let (task_log, task_opened) = (Rc::clone(&log), Rc::clone(&opened));
        spawn(&tasks.spawner(), async move {
            let result = match mode {
                Mode::Create => task_log.create().await,
                Mode::Open => task_log.recover().await,
            };
            *task_opened.borrow_mut() = Some(result);
        });
        Core { log, tasks, done: Vec::new(), held: VecDeque::new(), away: 0, looked: false, opened, running: false }
    }

    /// What it owns, for the simulation to look at.
    #[cfg(feature = "sim")]
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Does what can be done, then waits at the driver for at most `wait`.
    pub(crate) fn step(&mut self, wait: Duration) -> Phase {
        self.tasks.run_until_stalled();
        if !self.running {
            match self.opened.borrow_mut().take() {
                Some(Ok(())) => {
                    self.log.start_tasks(&self.tasks.spawner());
                    self.running = true;
                    // Who opened the region is told before anything is waited for.
                    return Phase::Running;
                }
                Some(Err(error)) => {
                    self.log.shared.intake.close();
                    return Phase::Failed(error);
                }
                None => {
                    // There are no blocks on their way that could be told.
                    let _away = self.log.ops.poll(Some(wait), &mut self.done);
                    return Phase::Opening;
                }
            }
        }
        self.take_requests();
        self.log.pump();
        self.log.wake();
        let Rest { requests, within, gathers } = self.log.rest();
        let wait = within.map_or(wait, |within| within.min(wait));
        let wait = match requests {
            // A request in hand waits for room: only a completion makes some.
            Some(wanted) if self.held.is_empty() => self.log.shared.intake.prepare_sleep(wanted).then_some(wait),
            _ => Some(wait),
        };
        let wait = wait.map(|wait| if self.log.has_arrivals() { Duration::ZERO } else { wait });
        // What was found when a block went out is seen to before anything is waited for.
        let looked = std::mem::take(&mut self.looked);
        let wait = wait.filter(|_| !looked);
        let away = self.log.ops.poll(wait, &mut self.done);
        self.log.shared.intake.awake();
        if let (Some(wanted), true) = (requests, gathers && !looked) {
            let in_time = self.log.shared.intake.len() >= wanted;
            self.log.with(|pipeline| pipeline.gathered(in_time));
        }
        for BlockDone { token, sequence, result } in std::mem::take(&mut self.done) {
            self.log.on_block(token, sequence, result);
        }
        // The disks first: a complete block goes out before those of the last one are answered.
        self.send_ripe();
        self.log.advance();
        let away = away + std::mem::take(&mut self.away);
        if away > 0 {
            self.log.with(|pipeline| pipeline.forgive(away));
        }
        if self.log.closed.get() { Phase::Closed } else { Phase::Running }
    }

    /// A complete block goes to the disks before anything else is done: a driver may keep what it was given until it is polled.
    fn send_ripe(&mut self) {
        if self.log.is_ripe() && self.log.pump() {
            self.away += self.log.ops.poll(None, &mut self.done);
            self.looked = true;
        }
    }

    /// Takes requests until the open block is full, the queue empty, or the log cannot take more. What asks and commands goes
    /// past commits that wait: it may be what ends their waiting.
    fn take_requests(&mut self) {
        self.log.batch_clock.set((self.log.ops.now(), self.log.ops.environment().wall()));
        let outstanding = self.log.shared.intake.in_use().0;
        self.log.with(|pipeline| pipeline.meet(outstanding));
        let spawner = self.tasks.spawner();
        if self.log.shared.closes.swap(false, Ordering::Relaxed) {
            let (done, _nobody) = ticket();
            self.log.start_closing(done, &spawner);
        }
        while let Some(request) = self.held.pop_front().or_else(|| self.log.shared.intake.pop()) {
            let Some(waiting) = self.log.admit(request, &spawner) else {
                self.send_ripe();
                continue;
            };
            self.log.pump();
            // Sent: there may be room now. Not sent: it waits for a completion.
            if let Some(waiting) = self.log.admit(waiting, &spawner) {
                self.held.push_front(waiting);
                break;
            }
        }
        while !self.held.is_empty()
            && let Some(request) = self.log.shared.intake.pop()
        {
            match request {
                Request::Control(control) => self.log.control(control, &spawner),
                request => self.held.push_back(request),
            }
        }
    }
}

impl Log {
    fn new(ops: Ops, machine: Box<dyn StateMachine>, shared: Arc<Shared>) -> Log {
        let options = shared.options.clone();
        let disks = options.disks.iter().enumerate();
        let disks = disks.map(|(at, config)| Disk::new(DiskIndex(at), config.clone())).collect();
        Log {
            ops,
            stats: RefCell::new(Stats::new(options.disks.len())),
            options,
            shared,
            disks: RefCell::new(disks),
            catalog: RefCell::default(),
            meta: RefCell::default(),
            tables: RefCell::default(),
            pipeline: RefCell::new(None),
            machine: RefCell::new(machine),
            hurried: Cell::new(false),
            superblocks: futures::lock::Mutex::new(()),
            rebuilding: futures::lock::Mutex::new(()),
            paging: futures::lock::Mutex::new(()),
            changed: Signal::default(),
            reconfigure: RefCell::new(None),
            halted: RefCell::new(None),
            closing: RefCell::new(None),
            leaving: Cell::new(false),
            closed: Cell::new(false),
            checkpointer: RefCell::new(None),
            checkpoint_on: RefCell::default(),
            offer_checkpoint: Cell::new(false),
            corrupt: Cell::new((0, 0)),
            lost: RefCell::default(),
            tokens: Cell::new(1),
            recovery_bytes: Cell::new(0),
            batch_clock: Cell::new((0, 0)),
            arrivals: Cell::new(0),
        }
    }

    fn start_tasks(self: &Rc<Log>, spawner: &LocalSpawner) {
        let log = || Rc::clone(self);
        let all: [(_, futures::future::LocalBoxFuture<'static, ()>); 7] = [
            ("reconfigure", Box::pin(log().keep_set())),
            ("prepare", Box::pin(log().keep_prepared())),
            ("spares", Box::pin(log().keep_spares_ready())),
            ("space", Box::pin(log().keep_looking_for_space())),
            ("seal", Box::pin(log().keep_sealing())),
            ("rebuild", Box::pin(log().keep_whole())),
            ("scrub", Box::pin(log().keep_scrubbing())),
        ];
        for (_, task) in all {
            spawn(spawner, task);
        }
        for disk in 0..self.options.disks.len() {
            spawn(spawner, log().keep_watching(DiskIndex(disk)));
        }
    }

    /// Runs on the pipeline, which exists once the region is open.
    pub(crate) fn with<T>(&self, run: impl FnOnce(&mut Pipeline) -> T) -> T {
        run(self.pipeline.borrow_mut().as_mut().expect("the pipeline exists once the region is open"))
    }

    fn on_block(&self, token: u16, sequence: u64, result: std::io::Result<()>) {
        #[cfg(feature = "sim")]
        if result.is_err() && planted!(RetryFlush) && self.retry_flush(token, sequence) {
            return;
        }
        let now = self.ops.now();
        let ok = result.is_ok();
        let progress = self.with(|pipeline| {
            let since = |front: &pipeline::Flying| sequence.wrapping_sub(front.sequence) & ops::SEQUENCE;
            let started = pipeline.flying.front().map(|front| since(front) as usize);
            let started = started.and_then(|at| pipeline.flying.get(at)).map(|flying| flying.started);
            let disk = pipeline.members.iter().find(|member| member.token == token).map(|member| member.disk);
            if let (Some(started), Some(disk), true) = (started, disk, ok) {
                self.stats.borrow_mut().disks[disk.0].saturating_record(now.saturating_sub(started));
            }
            pipeline.complete(token, sequence, ok)
        });
        if let (Progress::Lost(disk), Err(error)) = (progress, result) {
            self.lose(disk, DiskState::Failed, format!("a block's write failed: {error}"));
        }
    }

    /// The planted bug: the write that failed is sent again, and the disk goes on counting.
    #[cfg(feature = "sim")]
    fn retry_flush(&self, token: u16, sequence: u64) -> bool {
        self.with(|pipeline| {
            let Some(at) = pipeline.members.iter().position(|member| member.token == token) else { return false };
            let flying = pipeline.flying.iter().find(|flying| flying.sequence == sequence);
            let Some(flying) = flying.filter(|flying| flying.segment == pipeline.active.id) else { return false };
            let (disk, file) = (pipeline.members[at].disk, pipeline.active.files[at]);
            let (offset, data) = (u64::from(flying.offset), flying.data.clone());
            self.ops.write_block(token, sequence, disk, file, offset, data);
            true
        })
    }

    /// A disk no longer counts: the set is changed without it, its copies are rebuilt elsewhere.
    pub(crate) fn lose(&self, disk: DiskIndex, state: DiskState, reason: String) {
        {
            let mut disks = self.disks.borrow_mut();
            let disk = &mut disks[disk.0];
            if !matches!(disk.state, DiskState::Healthy | DiskState::Rebuilding) || self.leaving.get() {
                return;
            }
            disk.set(state, reason.clone());
        }
        self.ops.give_up(disk);
        for (_, segment) in self.catalog.borrow_mut().iter_mut() {
            for copy in segment.copies.iter_mut().filter(|copy| copy.disk == disk) {
                (copy.held, copy.complete) = (false, false);
            }
        }
        self.publish_all();
        if let Some(pipeline) = self.pipeline.borrow_mut().as_mut() {
            let member = pipeline.members.iter_mut().find(|member| member.disk == disk);
            if let Some(member) = member {
                member.live = false;
                self.reconfigure.borrow_mut().get_or_insert(reason);
                pipeline.paused = true;
            }
        }
        self.changed.raise();
    }

    /// Stops the region for good: nothing more is acknowledged.
    pub(crate) fn halt(&self, error: Error) {
        if self.halted.borrow().is_some() || self.leaving.get() {
            return;
        }
        *lock(&self.shared.halted) = Some(error.clone());
        *self.halted.borrow_mut() = Some(error.clone());
        if let Some(pipeline) = self.pipeline.borrow_mut().as_mut() {
            pipeline.paused = true;
            pipeline.fail_all(&error.to_string());
        }
        self.shared.committed.close();
        self.shared.gates.close();
        self.changed.raise();
    }

    pub(crate) fn halted_error(&self) -> Option<Error> {
        let halted = self.halted.borrow();
        halted.as_ref().map(|error| Error::new(ErrorKind::Halted, format!("the region halted: {error}")))
    }

    /// Wakes those who were answered, after the next block is on its way.
    fn wake(&self) {
        let (wakers, (items, bytes)) =
            self.with(|pipeline| (std::mem::take(&mut pipeline.wakers), std::mem::take(&mut pipeline.released)));
        if items > 0 {
            self.shared.intake.release(items, bytes);
        }
        wakers.into_iter().for_each(std::task::Waker::wake);
    }

    /// A name for a member's writes. Names come again after 32,767 of them: one under which a disk that hangs still has writes on
    /// their way is passed over, or their results would be taken for those of another member.
    pub(crate) fn token(&self) -> u16 {
        loop {
            let token = self.tokens.get();
            self.tokens.set(if token == 0x7fff { 1 } else { token + 1 });
            if !self.ops.has_token(token) || planted!(TokenOfAnother) {
                return token;
            }
        }
    }

    /// The paths of these disks, for messages.
    pub(crate) fn names(&self, disks: &[usize]) -> String {
        let all = self.disks.borrow();
        let names = disks.iter().map(|&at| all[at].config.path.display().to_string());
        names.collect::<Vec<_>>().join(", ")
    }
}

fn spawn(spawner: &LocalSpawner, task: impl Future<Output = ()> + 'static) {
    spawner.spawn_local(task).expect("the pool of tasks lives as long as the core");
}

/// Tells tasks that something changed; each looks for itself what.
#[derive(Default)]
pub(crate) struct Signal {
    changes: Cell<u64>,
    wakers: RefCell<Vec<std::task::Waker>>,
}

impl Signal {
    pub(crate) fn raise(&self) {
        self.changes.set(self.changes.get() + 1);
        self.wakers.take().into_iter().for_each(std::task::Waker::wake);
    }

    /// Completes at the first change after `seen`, which it moves on.
    pub(crate) fn wait<'a>(&'a self, seen: &'a mut u64) -> impl Future<Output = ()> + 'a {
        std::future::poll_fn(move |context| {
            if self.changes.get() != *seen {
                *seen = self.changes.get();
                return Poll::Ready(());
            }
            // A task that stopped waiting for another reason comes again: it is listed once, however long nothing changes.
            let mut wakers = self.wakers.borrow_mut();
            if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
    }

    pub(crate) fn seen(&self) -> u64 {
        self.changes.get()
    }
}
