//! The async face of the driver, for the log thread's own tasks: an operation is awaited, a timer slept on.
//!
//! Writes of blocks do not pass through here one by one: they complete into [`Ops::poll`]'s list, named by their member and sequence.

use std::any::Any;
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::channel::oneshot;
use rustc_hash::FxHashMap;

use crate::io::{
    Buffer, BufferPool, Completion, DiskIndex, DiskTraits, Driver, Environment, FileId, Op, OpId, Output, Slice,
};
use crate::log::lack::is_host_lack;
use crate::shared::lock;

/// Names a block's write: this bit, the member's token (15 bits), the block's sequence (48 bits).
const BLOCK: u64 = 1 << 63;

/// The bits of a block's sequence that name its write: far more than can be on their way at once.
pub(crate) const SEQUENCE: u64 = (1 << 48) - 1;

/// A block's write that has finished.
pub(crate) struct BlockDone {
    pub(crate) token: u16,
    /// Its [`SEQUENCE`] bits.
    pub(crate) sequence: u64,
    pub(crate) result: io::Result<()>,
}

/// How long a computation waits until the host may have what it lacked.
const PAUSE: Duration = Duration::from_millis(100);

/// A shared handle on the driver. Clones are the same.
#[derive(Clone)]
pub(crate) struct Ops {
    inner: Rc<RefCell<Inner>>,
    environment: Arc<dyn Environment>,
    /// How long a disk may take to answer a question, an opening's first of all.
    patience: Duration,
    /// A log thread that did not poll for longer than this, in nanoseconds, was away.
    away: u64,
    /// For reads of up to a mebibyte, so that rebuild and scrub map no memory.
    reads: BufferPool,
}

struct Inner {
    driver: Box<dyn Driver>,
    next: u64,
    waiting: FxHashMap<u64, Waiting>,
    timers: BinaryHeap<Reverse<(u64, u64)>>,
    sleepers: FxHashMap<u64, oneshot::Sender<()>>,
    finished: Vec<Completion>,
    /// When the last poll returned.
    polled: u64,
    /// The disk of each member's token with writes on their way, and how many they are.
    tokens: FxHashMap<u16, (DiskIndex, u32)>,
    /// What is on its way, by disk.
    disks: Vec<OnDisk>,
    /// False while an opening may still be refused: until then nothing on a disk is changed (ADR 0021).
    may_write: bool,
}

/// What is on its way to one disk.
#[derive(Default)]
struct OnDisk {
    /// Operations that have not returned.
    in_flight: u32,
    /// It was given up: nothing is started there before it is attached again.
    given_up: bool,
}

impl Inner {
    fn disk(&mut self, disk: DiskIndex) -> &mut OnDisk {
        if self.disks.len() <= disk.0 {
            self.disks.resize_with(disk.0 + 1, OnDisk::default);
        }
        &mut self.disks[disk.0]
    }

    fn start(&mut self, id: u64, op: Op) {
        assert!(self.may_write || !op.changes_files(), "an opening that may still be refused changes nothing");
        self.driver.submit(OpId(id), op);
    }

    /// A block's write has returned.
    fn written(&mut self, token: u16) {
        let Some((disk, writes)) = self.tokens.get_mut(&token) else { return };
        *writes -= 1;
        let (disk, last) = (*disk, *writes == 0);
        if last {
            self.tokens.remove(&token);
        }
        self.disk(disk).in_flight -= 1;
    }

    /// Nothing is started on the disk before it is attached again, and what was not started is dropped. Returns those who
    /// wait for the rest.
    fn give_up(&mut self, disk: DiskIndex) -> Vec<oneshot::Sender<io::Result<Output>>> {
        self.disk(disk).given_up = true;
        let here = self.waiting.values_mut().filter(|waiting| waiting.disk == Some(disk) && !waiting.waits);
        let here = here.filter(|_| !planted!(GiveUpLeavesWaiters));
        let tasks = here.filter_map(|waiting| waiting.task.take()).collect();
        self.driver.give_up(disk);
        tasks
    }

    /// Time in which nobody looked does not count for the operations on their way.
    fn forgive(&mut self, away: u64) {
        let timers = std::mem::take(&mut self.timers).into_iter();
        let later = |at: u64, id| if self.waiting.contains_key(&id) { at.saturating_add(away) } else { at };
        self.timers = timers.map(|Reverse((at, id))| Reverse((later(at, id), id))).collect();
        self.waiting.values_mut().for_each(|waiting| waiting.started += away);
    }
}

/// An operation that a task waits for.
struct Waiting {
    /// None once the task has waited too long.
    task: Option<oneshot::Sender<io::Result<Output>>>,
    disk: Option<DiskIndex>,
    /// When it was started, later by the time in which nobody looked.
    started: u64,
    /// It says nothing of the disk how long it takes: it waits for a lock.
    waits: bool,
}

impl Ops {
    pub(crate) fn new(driver: Box<dyn Driver>, stall_timeout: Duration) -> Ops {
        let environment = driver.environment();
        let inner = Inner {
            driver,
            next: 0,
            waiting: FxHashMap::default(),
            timers: BinaryHeap::new(),
            sleepers: FxHashMap::default(),
            finished: Vec::new(),
            polled: environment.now(),
            tokens: FxHashMap::default(),
            disks: Vec::new(),
            may_write: false,
        };
        let patience = stall_timeout.max(Duration::from_millis(100));
        // A disk is given up when several looks found its write undone, and the log thread was there between them.
        let away = nanos(stall_timeout / 4);
        let reads = BufferPool::new(8, 1 << 20);
        Ops { inner: Rc::new(RefCell::new(inner)), environment, patience, away, reads }
    }

    pub(crate) fn environment(&self) -> &Arc<dyn Environment> {
        &self.environment
    }

    pub(crate) fn now(&self) -> u64 {
        self.environment.now()
    }

    /// When completions were last looked at: what was not done then may be done by now.
    pub(crate) fn polled(&self) -> u64 {
        self.inner.borrow().polled
    }

    /// How long a disk may take to answer.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    pub(crate) fn with_driver<T>(&self, ask: impl FnOnce(&dyn Driver) -> T) -> T {
        ask(self.inner.borrow().driver.as_ref())
    }

    /// The opening or making of the region is decided: from now on files may be changed.
    pub(crate) fn allow_writes(&self) {
        self.inner.borrow_mut().may_write = true;
    }

    pub(crate) fn may_write(&self) -> bool {
        self.inner.borrow().may_write
    }

    /// Starts the durable write of a block to one member.
    pub(crate) fn write_block(
        &self,
        token: u16,
        sequence: u64,
        disk: DiskIndex,
        file: FileId,
        offset: u64,
        data: Slice,
    ) {
        assert!(token < 1 << 15, "a block's write fits its name");
        let id = BLOCK | (u64::from(token) << 48) | (sequence & SEQUENCE);
        let mut inner = self.inner.borrow_mut();
        inner.tokens.entry(token).or_insert((disk, 0)).1 += 1;
        inner.disk(disk).in_flight += 1;
        inner.start(id, Op::Write { disk, file, offset, data });
    }

    /// Waits at the driver, wakes the tasks whose operations are done, and lists the blocks that are. Returns for how long the
    /// log thread was away before, in nanoseconds, because the process was suspended or something held it up: how long a
    /// disk took meanwhile says nothing. Time in which it was there counts however often it was away: a disk that hangs is
    /// noticed on a busy machine, too.
    #[must_use]
    pub(crate) fn poll(&self, wait: Option<Duration>, blocks: &mut Vec<BlockDone>) -> u64 {
        let mut inner = self.inner.borrow_mut();
        let before = self.environment.now();
        let until_timer = inner.timers.peek().map(|Reverse((at, _))| Duration::from_nanos(at.saturating_sub(before)));
        let wait = wait.map(|wait| until_timer.map_or(wait, |timer| timer.min(wait)));
        let mut finished = std::mem::take(&mut inner.finished);
        inner.driver.poll(wait, &mut finished);
        let now = self.environment.now();
        let overslept = now.saturating_sub(before).saturating_sub(wait.map_or(0, nanos));
        let away = before.saturating_sub(inner.polled) + overslept;
        let away = if away > self.away { away } else { 0 };
        let away = if away > 0 && planted!(AwayForgivesAll) { now } else { away };
        inner.polled = now;
        for Completion { id: OpId(id), result } in finished.drain(..) {
            if id & BLOCK != 0 {
                let (token, sequence) = ((id >> 48) as u16 & 0x7fff, id & SEQUENCE);
                inner.written(token);
                blocks.push(BlockDone { token, sequence, result: result.map(drop) });
            } else if let Some(Waiting { task, disk, .. }) = inner.waiting.remove(&id) {
                if let Some(disk) = disk {
                    inner.disk(disk).in_flight -= 1;
                }
                // A task that was dropped or has given up no longer wants to know.
                drop(task.map(|task| task.send(result)));
            }
        }
        inner.finished = finished;
        if away > 0 {
            inner.forgive(away);
        }
        while inner.timers.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((_, id))) = inner.timers.pop() else { break };
            inner.sleepers.remove(&id).map(|sleeper| sleeper.send(()));
            // A disk that has stalled must not hold up a task for ever, nor each of the next ones as long. The operation is
            // still in flight.
            let late = inner.waiting.get_mut(&id).and_then(|waiting| Some((waiting.task.take()?, waiting.disk?)));
            if let Some((task, disk)) = late {
                let others = inner.give_up(disk);
                std::iter::once(task).chain(others).for_each(|task| drop(task.send(Err(unanswered()))));
            }
        }
        // Deadlines of what has returned need not wake anybody.
        let Inner { timers, sleepers, waiting, .. } = &mut *inner;
        while timers.peek().is_some_and(|Reverse((_, id))| !sleepers.contains_key(id) && !waiting.contains_key(id)) {
            timers.pop();
        }
        away
    }

    fn submit(&self, op: Op) -> impl Future<Output = io::Result<Output>> + use<> {
        // A file is made, or replaced, and its directory flushed, with several writes. A disk that hangs while the region
        // runs is noticed sooner by who looks for that.
        let asks = !self.inner.borrow().may_write || matches!(op, Op::Attach { .. } | Op::Detach { .. });
        self.submit_within(if asks { self.patience } else { 4 * self.patience }, op)
    }

    fn submit_within(&self, patience: Duration, op: Op) -> impl Future<Output = io::Result<Output>> + use<> {
        let (done, wait) = oneshot::channel();
        let mut inner = self.inner.borrow_mut();
        let id = inner.next;
        inner.next += 1;
        let (disk, now) = (op.disk(), self.environment.now());
        let waits = matches!(op, Op::Attach { .. } | Op::Detach { .. });
        let mut refused = false;
        if let Some(disk) = disk {
            let on_disk = inner.disk(disk);
            on_disk.given_up &= !waits;
            refused = on_disk.given_up;
            if !refused {
                on_disk.in_flight += 1;
                inner.waiting.insert(id, Waiting { task: Some(done), disk: Some(disk), started: now, waits });
                if !planted!(WaitsForHung) {
                    inner.timers.push(Reverse((now.saturating_add(nanos(patience)), id)));
                }
                inner.start(id, op);
            }
        } else {
            inner.waiting.insert(id, Waiting { task: Some(done), disk: None, started: now, waits });
            inner.start(id, op);
        }
        drop(inner);
        // Not before the next look at the driver: a task that asks again and again must not keep
        // the others from it.
        let refusal = refused.then(|| self.sleep(Duration::ZERO));
        async move {
            if let Some(refusal) = refusal {
                refusal.await;
                return Err(unanswered());
            }
            wait.await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
        }
    }

    /// Whether writes of blocks under this token have not returned.
    pub(crate) fn has_token(&self, token: u16) -> bool {
        self.inner.borrow().tokens.contains_key(&token)
    }

    /// Operations on a disk that have not returned.
    pub(crate) fn in_flight(&self, disk: DiskIndex) -> u32 {
        self.inner.borrow_mut().disk(disk).in_flight
    }

    /// When the oldest operation on the disk was started that has not returned, blocks and waits for its lock aside.
    pub(crate) fn oldest(&self, disk: DiskIndex) -> Option<u64> {
        let inner = self.inner.borrow();
        let here = inner.waiting.values().filter(|waiting| waiting.disk == Some(disk) && !waiting.waits);
        here.map(|waiting| waiting.started).min()
    }

    /// Nobody waits for the disk any more: what is on its way there is `TimedOut` for those who do, what was not started is
    /// dropped, and nothing is started before the disk is attached again.
    pub(crate) fn give_up(&self, disk: DiskIndex) {
        let tasks = self.inner.borrow_mut().give_up(disk);
        for task in tasks {
            drop(task.send(Err(unanswered())));
        }
    }

    /// Completes `pause` from now.
    pub(crate) fn sleep(&self, pause: Duration) -> impl Future<Output = ()> + use<> {
        let (done, wait) = oneshot::channel();
        let at = self.now().saturating_add(nanos(pause));
        let mut inner = self.inner.borrow_mut();
        let id = inner.next;
        inner.next += 1;
        inner.timers.push(Reverse((at, id)));
        inner.sleepers.insert(id, done);
        async move {
            let _woken = wait.await;
        }
    }

    pub(crate) async fn attach(&self, disk: DiskIndex, path: PathBuf, create: bool) -> io::Result<DiskTraits> {
        match self.submit(Op::Attach { disk, path, create }).await? {
            Output::Attached(traits) => Ok(traits),
            _ => Err(mismatch()),
        }
    }

    pub(crate) async fn detach(&self, disk: DiskIndex) -> io::Result<()> {
        self.submit(Op::Detach { disk }).await.map(drop)
    }

    pub(crate) async fn list(&self, disk: DiskIndex) -> io::Result<Vec<(String, u64)>> {
        match self.submit(Op::List { disk }).await? {
            Output::Names(names) => Ok(names),
            _ => Err(mismatch()),
        }
    }

    pub(crate) async fn open(&self, disk: DiskIndex, name: String, create: Option<u64>) -> io::Result<FileId> {
        match self.submit(Op::Open { disk, name, create }).await? {
            Output::File(file) => Ok(file),
            _ => Err(mismatch()),
        }
    }

    /// Reads `len` bytes, fewer at the end of the file.
    pub(crate) async fn read(&self, disk: DiskIndex, file: FileId, offset: u64, len: usize) -> io::Result<Buffer> {
        let buffer = if len <= self.reads.capacity() { self.reads.take()? } else { Buffer::zeroed(len)? };
        match self.submit(Op::Read { disk, file, offset, buffer, len }).await? {
            Output::Read(buffer) => Ok(buffer),
            _ => Err(mismatch()),
        }
    }

    pub(crate) async fn write(&self, disk: DiskIndex, file: FileId, offset: u64, data: Slice) -> io::Result<()> {
        self.submit(Op::Write { disk, file, offset, data }).await.map(drop)
    }

    /// Writes a page made of `bytes`. Where the host has no memory for it, it is written when there
    /// is some: that says nothing of the disk.
    pub(crate) async fn write_page(&self, disk: DiskIndex, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_page_within(None, disk, file, offset, bytes).await
    }

    /// As [`Ops::write_page`], waited for no longer than an answer: then it is `TimedOut`, and may
    /// still land.
    pub(crate) async fn write_page_in_time(
        &self,
        disk: DiskIndex,
        file: FileId,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        self.write_page_within(Some(self.patience), disk, file, offset, bytes).await
    }

    async fn write_page_within(
        &self,
        patience: Option<Duration>,
        disk: DiskIndex,
        file: FileId,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        loop {
            let op = Op::Write { disk, file, offset, data: self.page(bytes).await };
            let written = match patience {
                Some(patience) => self.submit_within(patience, op).await,
                None => self.submit(op).await,
            };
            match written {
                Err(error) if is_host_lack(&error) && !planted!(LackHalts) => self.sleep(PAUSE).await,
                written => return written.map(drop),
            }
        }
    }

    async fn page(&self, bytes: &[u8]) -> Slice {
        loop {
            match page(bytes) {
                Ok(page) => return page,
                Err(_) => self.sleep(PAUSE).await,
            }
        }
    }

    pub(crate) async fn write_file(&self, disk: DiskIndex, name: String, bytes: Arc<Vec<u8>>) -> io::Result<()> {
        self.submit(Op::WriteFile { disk, name, bytes }).await.map(drop)
    }

    pub(crate) async fn read_file(&self, disk: DiskIndex, name: String, limit: u64) -> io::Result<Vec<u8>> {
        match self.submit(Op::ReadFile { disk, name, limit }).await? {
            Output::Bytes(bytes) => Ok(bytes),
            _ => Err(mismatch()),
        }
    }

    pub(crate) async fn remove(&self, disk: DiskIndex, name: String) -> io::Result<()> {
        self.submit(Op::Remove { disk, name }).await.map(drop)
    }

    /// Bytes free and in all.
    pub(crate) async fn space(&self, disk: DiskIndex) -> io::Result<(u64, u64)> {
        match self.submit(Op::Space { disk }).await? {
            Output::Space { free, total } => Ok((free, total)),
            _ => Err(mismatch()),
        }
    }

    /// Runs a job off the log thread. One for which the host has no thread or no memory runs when it has.
    pub(crate) async fn compute<T: Any + Send>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let job = Arc::new(Mutex::new(Some(job)));
        loop {
            let shared = Arc::clone(&job);
            let run = move || {
                let job = lock(&shared).take();
                Box::new(job.map(|job| job())) as Box<dyn Any + Send>
            };
            match self.submit(Op::Compute(Box::new(run))).await {
                Ok(Output::Computed(value)) => {
                    let value = value.downcast::<Option<T>>().ok().and_then(|value| *value);
                    return value.ok_or_else(mismatch);
                }
                Ok(_) => return Err(mismatch()),
                Err(error) if is_host_lack(&error) && !planted!(LackHalts) => self.sleep(PAUSE).await,
                Err(error) => return Err(error),
            }
        }
    }
}

pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn unanswered() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time")
}

fn mismatch() -> io::Error {
    io::Error::other("the driver answered another operation")
}

/// A page as a slice that can be written.
fn page(bytes: &[u8]) -> io::Result<Slice> {
    let mut buffer = Buffer::zeroed(bytes.len())?;
    buffer.copy_from_slice(bytes);
    Ok(buffer.share())
}

#[cfg(test)]
mod tests;
