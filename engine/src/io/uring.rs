//! The io_uring driver: reads and writes of open files go through the ring, everything else through the lanes.
//!
//! Every operation is handed to the kernel's workers, so that no call of the log thread reaches a file: a submission that
//! starts the operation by itself sleeps where the device has no place for a request (ADR 0020).
//!
//! tokio-uring owns the ring and its runtime. [`Driver::poll`] is one `block_on`; inside it the operations in flight are
//! polled by hand, without a task or an allocation for each, and they share one waker.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::task::AtomicWaker;
use io_uring::{cqueue, opcode, squeue, types};
use rustix::event::EventfdFlags;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

use super::bell::Bell;
use super::clock::{Deadline, Machine};
use super::directory::{ALIGN, OpenFile};
use super::host::{Host, Readers};
use super::threads::GRACE;
use super::{Buffer, Completion, DiskIndex, Doorbell, Driver, Environment, Op, OpId, Output, ReadAt, Slice};

/// Places in the submission queue: what is beyond is handed over sooner.
const ENTRIES: u32 = 256;
/// Operations of one disk that the kernel has at a time, each with a worker if need be; the others wait in the disk's own queue.
const PLACES: usize = super::MAX_STUCK;
/// How long the first operation may take.
const TRIAL: Duration = Duration::from_secs(2);

/// Reads and writes open files through io_uring.
///
/// Dropping it waits up to two seconds for what is under way. If the ring is still not empty then, it is leaked with the
/// buffers of its operations: a write to a disk that hangs cannot be taken back, and the kernel may still use them. Their
/// files are closed; the kernel keeps each open, and with it the lock that says so to who comes next, until its operation has
/// finished.
pub(super) struct UringDriver {
    /// There until the driver is dropped.
    runtime: Option<tokio_uring::Runtime>,
    host: Host,
    ring: Ring,
    workers: Workers,
    machine: Arc<Machine>,
}

impl UringDriver {
    /// Sets up a ring and sends one empty operation through it.
    pub(super) fn new() -> io::Result<UringDriver> {
        let workers = Workers::new()?;
        let runtime = runtime()?;
        let tried = runtime.block_on(async {
            let (mut ring, mut first) = (Ring::new()?, Box::pin(tokio_uring::no_op()));
            let deadline = Deadline::after(TRIAL);
            std::future::poll_fn(|context| {
                if let Poll::Ready(result) = first.as_mut().poll(context) {
                    return Poll::Ready(result);
                }
                if deadline.is_none_or(|deadline| ring.timer.arm(deadline, deadline.left(), context)) {
                    return Poll::Pending;
                }
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "an empty operation never completed")))
            })
            .await?;
            Ok(ring)
        });
        match tried {
            Ok(ring) => {
                let (host, machine) = (Host::new(), Arc::new(Machine::new()));
                Ok(UringDriver { runtime: Some(runtime), host, ring, workers, machine })
            }
            Err(error) => {
                // To drop it would be to wait for the operation.
                std::mem::forget(runtime);
                Err(error)
            }
        }
    }

    /// The operation goes through the ring: it is one on an open file, the kernel keeps its disk apart from others, and has
    /// workers enough.
    fn rides(&self, op: &Op) -> bool {
        let (Op::Read { disk, file, .. } | Op::Write { disk, file, .. }) = op else { return false };
        self.ring.places > 0 && self.host.file(*disk, *file).is_ok_and(|file| file.is_apart())
    }

    /// Checks an operation on an open file, for the ring.
    fn flight(&self, id: OpId, op: Op) -> io::Result<Flight> {
        let (file, offset, body) = match op {
            Op::Write { disk, file, offset, data } => {
                let file = self.host.file(disk, file)?;
                file.check_write(offset, &data)?;
                (file, offset, Body::Write(data))
            }
            Op::Read { disk, file, offset, mut buffer, len } => {
                let file = self.host.file(disk, file)?;
                file.check_read(offset, len, &buffer)?;
                buffer.set_len(len);
                (file, offset, Body::Read(buffer))
            }
            _ => unreachable!("only reads and writes go through the ring"),
        };
        Ok(Flight { id, file: Arc::clone(file), offset, moved: 0, body })
    }
}

/// A ring whose completions need not interrupt the thread while it runs, and that expects no other thread, which costs
/// less; or a plain one where the kernel (before 6.0) does not know of these.
fn runtime() -> io::Result<tokio_uring::Runtime> {
    let mut ring = tokio_uring::uring_builder();
    ring.setup_coop_taskrun().setup_single_issuer();
    let mut builder = tokio_uring::builder();
    match tokio_uring::Runtime::new(builder.entries(ENTRIES).uring_builder(&ring)) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            tokio_uring::Runtime::new(tokio_uring::builder().entries(ENTRIES))
        }
        result => result,
    }
}

impl Driver for UringDriver {
    fn name(&self) -> String {
        "io_uring".to_owned()
    }

    fn submit(&mut self, id: OpId, op: Op) {
        if let Op::Attach { disk, .. } = op {
            self.ring.places = self.workers.places(self.ring.make_lanes(disk));
        }
        if !self.rides(&op) {
            return self.host.submit(id, op);
        }
        match self.flight(id, op) {
            Ok(flight) => self.ring.lane(flight.file.disk()).queued.push_back(flight),
            Err(error) => self.host.fail(id, error),
        }
    }

    fn give_up(&mut self, disk: DiskIndex) {
        self.host.give_up(disk);
        for flight in std::mem::take(&mut self.ring.lane(disk).queued) {
            self.host.fail(flight.id, io::ErrorKind::TimedOut.into());
            self.host.let_go(flight.file);
        }
    }

    fn poll(&mut self, wait: Option<Duration>, done: &mut Vec<Completion>) {
        let wait = match wait.filter(|wait| !self.host.linger(*wait)) {
            None if self.ring.is_empty() => {
                self.host.collect(done);
                return;
            }
            None => Wait::Look,
            Some(wait) => Deadline::after(wait).map_or(Wait::Forever, Wait::Until),
        };
        let turn = Turn { host: &mut self.host, ring: &mut self.ring, wait, yielded: false, ready: false, done };
        self.runtime.as_ref().expect("there until the driver is dropped").block_on(turn);
    }

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        Arc::<Bell>::clone(&self.host.inbox().bell)
    }

    fn reader(&self) -> Arc<dyn ReadAt> {
        Arc::<Readers>::clone(self.host.readers())
    }

    fn environment(&self) -> Arc<dyn Environment> {
        Arc::<Machine>::clone(&self.machine)
    }
}

impl Drop for UringDriver {
    fn drop(&mut self) {
        // What was never started is not started any more.
        for disk in 0..self.ring.lanes.len() {
            self.give_up(DiskIndex(disk));
        }
        self.host.close();
        let end = Deadline::after(GRACE);
        while (self.host.in_flight() > 0 || !self.ring.is_empty())
            && let Some(left) = end.map(Deadline::left)
            && !left.is_zero()
        {
            self.poll(Some(left), &mut Vec::new());
        }
        if !self.ring.is_empty() {
            // To drop the runtime would be to wait for the ring, however long. The operations leave their buffers in it.
            std::mem::forget(self.runtime.take());
            for Started { file, .. } in std::mem::take(&mut self.ring.flying) {
                self.host.let_go(file);
            }
        }
    }
}

enum Wait {
    Look,
    Until(Deadline),
    Forever,
}

/// One call of `poll`: starts what is queued, and ends when something has finished, rung, or the time is over.
///
/// The runtime hands what was started to the kernel only when it goes to sleep, and it does not when its future was woken
/// meanwhile. Every wake-up therefore comes from a descriptor that the sleeping runtime watches (the ring, the timer,
/// the bell), or from an operation that has landed. A turn that has a reason to end before the runtime slept lets it
/// sleep for the empty operation that [`Ring::nudge`] sends after the others.
struct Turn<'a> {
    host: &'a mut Host,
    ring: &'a mut Ring,
    wait: Wait,
    /// The runtime may have slept since this turn began.
    yielded: bool,
    /// There is a reason to return.
    ready: bool,
    done: &'a mut Vec<Completion>,
}

impl Turn<'_> {
    /// Takes in what there is.
    fn gather(&mut self) {
        let (looking, bell) = (matches!(self.wait, Wait::Look), &self.host.inbox().bell);
        let heard = if looking { bell.look() } else { bell.answer() };
        let before = self.done.len();
        if self.ring.relay.landed.swap(false, Ordering::Acquire) {
            self.ring.land(self.done);
        } else if self.yielded {
            // Woken by a descriptor, thus from sleep.
            self.ring.unflushed = false;
        }
        for file in self.ring.forgotten.drain(..) {
            self.host.let_go(file);
        }
        self.ready |= self.host.collect(self.done);
        self.ring.start(self.done);
        self.ready |= looking || heard.rung || self.done.len() > before;
    }

    /// Whether the kernel knows of everything that was started, and was asked for what is finished; starts to see to it
    /// if not.
    fn flushed(&mut self, context: &mut Context<'_>) -> bool {
        // A turn that never sleeps must look, or a bell that never rests would hide the ring for good.
        let blind = !self.yielded && !self.ring.flying.is_empty();
        if self.ring.nudging.is_none() && (self.ring.unflushed || blind) {
            self.ring.nudge();
        }
        let Some(nudging) = &mut self.ring.nudging else { return true };
        if Pin::new(nudging).poll(context).is_pending() {
            return false;
        }
        self.ring.nudging = None;
        self.ring.unflushed = false;
        // What has landed with it is taken in before the turn ends.
        self.gather();
        !self.ring.unflushed
    }

    /// Whether to sleep: nothing was heard, and the time is not over.
    fn sleep(&mut self, context: &mut Context<'_>) -> bool {
        self.ring.alarm.watch(context);
        if !self.host.inbox().bell.sleep(&self.ring.alarm.waker) {
            return false;
        }
        let in_time = match self.wait {
            Wait::Look => false,
            Wait::Forever => true,
            Wait::Until(deadline) => self.ring.timer.arm(deadline, deadline.left(), context),
        };
        self.ready |= !in_time;
        in_time
    }
}

impl Future for Turn<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let turn = self.get_mut();
        turn.ring.relay.main.register(context.waker());
        loop {
            turn.gather();
            if turn.ready {
                if turn.flushed(context) {
                    return Poll::Ready(());
                }
                break;
            }
            if turn.sleep(context) {
                break;
            }
        }
        turn.yielded = true;
        Poll::Pending
    }
}

/// What goes through the ring.
struct Ring {
    /// By disk.
    lanes: Vec<RingLane>,
    /// How many operations of each disk the kernel may have.
    places: usize,
    /// Files of operations that have finished, which may be closed with them.
    forgotten: Vec<Arc<OpenFile>>,
    flying: Vec<Started>,
    /// Something was started that the kernel may not have been told of.
    unflushed: bool,
    /// An empty operation that completes as soon as the kernel sees it, after all that was started before it.
    nudging: Option<InFlightOneshot<(), Nothing>>,
    relay: Arc<Relay>,
    waker: Waker,
    timer: Timer,
    alarm: Alarm,
}

impl Ring {
    /// Inside the runtime only, as everything that starts an operation.
    fn new() -> io::Result<Ring> {
        let relay = Arc::new(Relay::default());
        Ok(Ring {
            lanes: Vec::new(),
            places: PLACES,
            forgotten: Vec::new(),
            flying: Vec::new(),
            unflushed: false,
            nudging: None,
            waker: Waker::from(Arc::clone(&relay)),
            relay,
            timer: Timer::new()?,
            alarm: Alarm::new()?,
        })
    }

    fn is_empty(&self) -> bool {
        self.flying.is_empty() && self.nudging.is_none() && self.lanes.iter().all(|lane| lane.queued.is_empty())
    }

    /// Makes lanes up to this disk's; returns how many there are.
    fn make_lanes(&mut self, disk: DiskIndex) -> usize {
        if self.lanes.len() <= disk.0 {
            self.lanes.resize_with(disk.0 + 1, RingLane::default);
        }
        self.lanes.len()
    }

    fn lane(&mut self, disk: DiskIndex) -> &mut RingLane {
        self.make_lanes(disk);
        &mut self.lanes[disk.0]
    }

    /// Starts what is queued, as far as each disk has places.
    fn start(&mut self, done: &mut Vec<Completion>) {
        for disk in 0..self.lanes.len() {
            while self.lanes[disk].started < self.places
                && let Some(mut flight) = self.lanes[disk].queued.pop_front()
            {
                self.lanes[disk].started += 1;
                let (entry, file) = (flight.entry().flags(squeue::Flags::ASYNC), Arc::clone(&flight.file));
                let Flight { id, offset, moved, body, .. } = flight;
                let load = Load { id, offset, moved, body };
                self.flying.push(Started { operation: UnsubmittedOneshot::new(load, Landing, entry).submit(), file });
                self.unflushed = true;
                // Leaves the waker with it.
                self.look_at(self.flying.len() - 1, done);
            }
        }
    }

    fn nudge(&mut self) {
        self.nudging = Some(UnsubmittedOneshot::new((), Nothing, opcode::Nop::new().build()).submit());
    }

    /// Takes out what has finished.
    fn land(&mut self, done: &mut Vec<Completion>) {
        let mut at = 0;
        while at < self.flying.len() {
            if !self.look_at(at, done) {
                at += 1;
            }
        }
    }

    /// Takes out one operation if it has finished; another one is in its place then.
    fn look_at(&mut self, at: usize, done: &mut Vec<Completion>) -> bool {
        let mut context = Context::from_waker(&self.waker);
        let operation = Pin::new(&mut self.flying[at].operation);
        let Poll::Ready((load, result)) = operation.poll(&mut context) else { return false };
        let Load { id, offset, moved, body } = load;
        let flight = Flight { id, file: self.flying.swap_remove(at).file, offset, moved, body };
        let lane = self.lane(flight.file.disk());
        lane.started -= 1;
        match flight.land(result) {
            Ok((completion, file)) => {
                done.push(completion);
                self.forgotten.extend(file.is_forgotten().then_some(file));
            }
            Err(rest) => lane.queued.push_back(rest),
        }
        true
    }
}

/// What one disk has to do in the ring.
#[derive(Default)]
struct RingLane {
    /// Not started yet.
    queued: VecDeque<Flight>,
    /// What the kernel has, of all lives of the disk.
    started: usize,
}

/// The kernel's workers for the operations of this thread: as many as all places of all disks, so that disks that hang
/// leave the others theirs.
struct Workers {
    /// Any ring of this thread tells the kernel how many there may be.
    ring: io_uring::IoUring,
}

impl Workers {
    /// Tries a ring of its own with an empty operation, which says more clearly than the runtime what is refused.
    fn new() -> io::Result<Workers> {
        let refused = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what} refused: {error}"));
        let mut ring = io_uring::IoUring::new(1).map_err(|error| refused("io_uring_setup", error))?;
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe).map_err(|error| refused("io_uring_register", error))?;
        // Came with Linux 6.7, which is not asked for itself: systems carry names and parts of other versions.
        if !probe.is_supported(opcode::FutexWait::CODE) {
            let message = "before Linux 6.7 its workers let a disk that hangs hold up others";
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        let entry = opcode::Nop::new().build();
        // SAFETY: an empty operation refers to no memory.
        unsafe { ring.submission().push(&entry) }.map_err(|_| io::Error::other("an empty queue is full"))?;
        let time = types::Timespec::from(TRIAL);
        let within = types::SubmitArgs::new().timespec(&time);
        ring.submitter().submit_with_args(1, &within).map_err(|error| refused("io_uring_enter", error))?;
        if ring.completion().next().is_none() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "an empty operation never completed"));
        }
        Ok(Workers { ring })
    }

    /// Provides for so many disks; returns how many operations of each the kernel may have. 0 where it does not have a
    /// worker for each disk.
    fn places(&self, disks: usize) -> usize {
        let wanted = u32::try_from(disks.saturating_mul(PLACES)).unwrap_or(u32::MAX);
        let submitter = self.ring.submitter();
        // The second call tells what the first came to: a limit on processes counts for workers.
        let (mut set, mut told) = ([wanted, 0], [0, 0]);
        let asked =
            submitter.register_iowq_max_workers(&mut set).and_then(|()| submitter.register_iowq_max_workers(&mut told));
        asked.map_or(0, |()| (told[0] as usize / disks.max(1)).min(PLACES))
    }
}

/// The waker that all operations share: however many land together, the turn is woken once.
#[derive(Default)]
struct Relay {
    landed: AtomicBool,
    main: AtomicWaker,
}

impl Wake for Relay {
    fn wake(self: Arc<Relay>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Relay>) {
        if !self.landed.swap(true, Ordering::AcqRel) {
            self.main.wake();
        }
    }
}

/// An operation that the kernel has.
struct Started {
    operation: InFlightOneshot<Load, Landing>,
    /// Open until the kernel has been told; it keeps its own hold on it from then on.
    file: Arc<OpenFile>,
}

/// What the kernel uses of an operation until it is finished.
struct Load {
    id: OpId,
    offset: u64,
    moved: usize,
    body: Body,
}

/// An operation of the ring.
struct Flight {
    id: OpId,
    file: Arc<OpenFile>,
    offset: u64,
    /// Bytes that have been read or written.
    moved: usize,
    body: Body,
}

enum Body {
    Write(Slice),
    Read(Buffer),
}

impl Flight {
    /// What the kernel is told: the addresses stay valid because the buffer is kept by the ring until the kernel has finished,
    /// also when nobody waits for it any more, and the descriptor because the file is kept until the entry was handed over.
    fn entry(&mut self) -> squeue::Entry {
        let (fd, at) = (types::Fd(self.file.as_fd().as_raw_fd()), self.offset + self.moved as u64);
        let len = |len: usize| u32::try_from(len).expect("checked when it was submitted");
        match &mut self.body {
            Body::Write(data) => {
                let rest = &data[self.moved..];
                opcode::Write::new(fd, rest.as_ptr(), len(rest.len())).offset(at).build()
            }
            Body::Read(buffer) => {
                let rest = &mut buffer[self.moved..];
                opcode::Read::new(fd, rest.as_mut_ptr(), len(rest.len())).offset(at).build()
            }
        }
    }

    /// What came of it, with its file, or what is left to do.
    fn land(mut self, result: i32) -> Result<(Completion, Arc<OpenFile>), Flight> {
        let Ok(moved) = usize::try_from(result) else {
            let error = io::Error::from_raw_os_error(-result);
            if error.kind() == io::ErrorKind::Interrupted {
                return Err(self);
            }
            return Ok((Completion { id: self.id, result: Err(error) }, self.file));
        };
        self.moved += moved;
        let total = match &self.body {
            Body::Write(data) => data.len(),
            Body::Read(buffer) => buffer.len(),
        };
        if self.moved < total && moved > 0 && moved.is_multiple_of(ALIGN) {
            return Err(self);
        }
        let result = match self.body {
            Body::Write(_) if self.moved < total => Err(io::Error::new(io::ErrorKind::WriteZero, "a short write")),
            Body::Write(_) => Ok(Output::Done),
            Body::Read(mut buffer) => {
                buffer.set_len(self.moved);
                Ok(Output::Read(buffer))
            }
        };
        Ok((Completion { id: self.id, result }, self.file))
    }
}

/// Hands the load back with the kernel's answer.
struct Landing;

impl OneshotOutputTransform for Landing {
    type Output = (Load, i32);
    type StoredData = Load;

    fn transform_oneshot_output(self, load: Load, entry: cqueue::Entry) -> (Load, i32) {
        (load, entry.result())
    }
}

struct Nothing;

impl OneshotOutputTransform for Nothing {
    type Output = ();
    type StoredData = ();

    fn transform_oneshot_output(self, (): (), _: cqueue::Entry) {}
}

/// Wakes the runtime at a point in time, more exactly than its own timers do (they count milliseconds).
struct Timer {
    fd: AsyncFd<OwnedFd>,
    /// When it goes off.
    armed: Option<Deadline>,
}

impl Timer {
    fn new() -> io::Result<Timer> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let fd = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Timer { fd: register(fd)?, armed: None })
    }

    /// Sees to it that the context wakes at the deadline or earlier; false when it has passed.
    fn arm(&mut self, deadline: Deadline, left: Duration, context: &mut Context<'_>) -> bool {
        if left.is_zero() {
            return false;
        }
        // Most waits end before their time: the timer is left as it is, to go off too early for a later wait.
        if self.armed.is_some_and(|armed| armed <= deadline && !armed.left().is_zero()) {
            return true;
        }
        let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        let time = Timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec::default(), it_value: time };
        rustix::time::timerfd_settime(self.fd.get_ref(), TimerfdTimerFlags::empty(), &once)
            .expect("a timer of our own can be set");
        watch(&self.fd, context);
        self.armed = Some(deadline);
        true
    }
}

/// What other threads wake the runtime with.
struct Alarm {
    fd: AsyncFd<Arc<Ringer>>,
    waker: Waker,
}

impl Alarm {
    fn new() -> io::Result<Alarm> {
        let ringer = Arc::new(Ringer(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?));
        Ok(Alarm { waker: Waker::from(Arc::clone(&ringer)), fd: register(ringer)? })
    }

    /// From now on, until the context was woken once, a wake-up reaches it.
    fn watch(&self, context: &mut Context<'_>) {
        watch(&self.fd, context);
    }
}

struct Ringer(OwnedFd);

impl AsRawFd for Ringer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Wake for Ringer {
    fn wake(self: Arc<Ringer>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Ringer>) {
        #[allow(clippy::host_endian_bytes, reason = "the kernel reads a native number")]
        let one = 1_u64.to_ne_bytes();
        // The counter is never read: each addition is an event of its own. It is full after 2^64 of them.
        let _ = rustix::io::write(&self.0, &one);
    }
}

fn register<T: AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: both types passed here own their descriptor, do not change it, and do not close it before they are
    // dropped, which the `AsyncFd` puts off until it has let go of it.
    Ok(unsafe { AsyncFd::register_with_interest(owner, Interest::READABLE)? })
}

/// Forgets what has been signalled so far, and lets the context be woken by the next signal.
fn watch<T: AsRawFd>(fd: &AsyncFd<T>, context: &mut Context<'_>) {
    while let Poll::Ready(Ok(mut guard)) = fd.poll_read_ready(context) {
        guard.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More operations than all disks have places for wait on a disk that never answers: another disk's go on, the kernel has
    /// no more of the first's than it may, and the rest can be taken back.
    #[test]
    fn h3_operations_on_a_hung_disk_take_no_places_of_another_disk() {
        let Ok(mut driver) = UringDriver::new() else { return };
        let roots = [0, 1].map(|_| tempfile::tempdir().expect("a directory"));
        let (reader, writer) = io::pipe().expect("a pipe");
        let pipe = OpenFile::of_pipe(roots[1].path(), OwnedFd::from(reader)).expect("open").on_disk(DiskIndex(1));
        let stuck = Arc::new(pipe);
        assert_eq!(driver.workers.places(driver.ring.make_lanes(DiskIndex(1))), PLACES);
        for id in 0..600 {
            let (file, body) = (Arc::clone(&stuck), Body::Read(Buffer::zeroed(ALIGN).expect("map")));
            driver.ring.lane(DiskIndex(1)).queued.push_back(Flight { id: OpId(id), file, offset: 0, moved: 0, body });
        }
        let directory = Arc::new(super::super::directory::Directory::attach(roots[0].path()).expect("attach"));
        let file = Arc::new(directory.open(DiskIndex(0), "slot", Some(1 << 20)).expect("create"));
        for id in 1000..1100 {
            let data = Buffer::zeroed(ALIGN).expect("map").share();
            let (file, body) = (Arc::clone(&file), Body::Write(data));
            driver.ring.lane(DiskIndex(0)).queued.push_back(Flight { id: OpId(id), file, offset: 0, moved: 0, body });
        }
        let mut done = Vec::new();
        let end = Deadline::after(Duration::from_secs(20)).expect("a time");
        while done.len() < 100 {
            assert!(!end.left().is_zero(), "{} of 100 writes came back", done.len());
            driver.poll(Some(Duration::from_millis(100)), &mut done);
        }
        assert!(done.iter().all(|completion| completion.id.0 >= 1000 && completion.result.is_ok()));
        assert_eq!(driver.ring.lanes[1].started, PLACES);
        done.clear();
        driver.give_up(DiskIndex(1));
        driver.poll(None, &mut done);
        assert_eq!(done.len(), 600 - PLACES);
        assert!(done.iter().all(|done| done.result.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::TimedOut)));
        drop(writer);
        done.clear();
        while done.len() < PLACES {
            assert!(!end.left().is_zero(), "{} of those that were started came back", done.len());
            driver.poll(Some(Duration::from_millis(100)), &mut done);
        }
    }

    /// It counts for the kernel's workers, too: what there are is shared out evenly, and where a disk would have none,
    /// nothing goes through the ring.
    #[test]
    fn h3_limit_on_processes_leaves_each_disk_places_of_its_own() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        if Workers::new().is_err() {
            return;
        }
        let wrong = crate::io::process::tests::in_child(|claim| {
            for (limit, places) in [(30, 10), (2, 0)] {
                let limit = Rlimit { current: Some(limit), ..getrlimit(Resource::Nproc) };
                claim(setrlimit(Resource::Nproc, limit).is_ok());
                claim(Workers::new().is_ok_and(|workers| workers.places(3) == places));
            }
        });
        assert_eq!(wrong, 0);
    }

    #[test]
    fn h3_file_system_whose_writes_stand_in_line_stays_off_the_ring() {
        let Ok(mut driver) = UringDriver::new() else { return };
        // A tmpfs, where there is one.
        let Ok(root) = tempfile::tempdir_in("/dev/shm") else { return };
        let disk = DiskIndex(0);
        let mut run = |op| {
            let (mut done, end) = (Vec::new(), Deadline::after(Duration::from_secs(20)).expect("a time"));
            driver.submit(OpId(1), op);
            while done.is_empty() {
                assert!(!end.left().is_zero(), "nothing came back");
                driver.poll(Some(Duration::from_millis(100)), &mut done);
            }
            done.remove(0).result.expect("nothing is wrong")
        };
        run(Op::Attach { disk, path: root.path().to_owned(), create: true });
        let opened = run(Op::Open { disk, name: "slot".into(), create: Some(1 << 20) });
        let Output::File(file) = opened else { panic!("another output") };
        let data = Buffer::zeroed(ALIGN).expect("map").share();
        assert!(!driver.rides(&Op::Write { disk, file, offset: 0, data }));
    }

    #[test]
    fn what_was_never_started_is_not_started_by_the_end_of_the_driver() {
        let Ok(mut driver) = UringDriver::new() else { return };
        let root = tempfile::tempdir().expect("a directory");
        let directory = Arc::new(super::super::directory::Directory::attach(root.path()).expect("attach"));
        let file = Arc::new(directory.open(DiskIndex(0), "slot", Some(1 << 20)).expect("create"));
        let mut page = Buffer::zeroed(ALIGN).expect("map");
        page.fill(7);
        let (file, body) = (Arc::clone(&file), Body::Write(page.share()));
        let flight = Flight { id: OpId(1), file, offset: 0, moved: 0, body };
        driver.ring.lane(DiskIndex(0)).queued.push_back(flight);
        drop(driver);
        let bytes = directory.read_file("slot", 1 << 20).expect("read");
        assert!(bytes.iter().all(|byte| *byte == 0), "it was written");
    }

    #[test]
    fn an_operation_that_never_ends_holds_up_neither_a_poll_nor_the_end() {
        let Ok(mut driver) = UringDriver::new() else { return };
        let root = tempfile::tempdir().expect("a directory");
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let file = Arc::new(OpenFile::of_pipe(root.path(), OwnedFd::from(reader)).expect("open"));
        let mut read = |id| {
            let (file, body) = (Arc::clone(&file), Body::Read(Buffer::zeroed(ALIGN).expect("map")));
            driver.ring.lane(DiskIndex(0)).queued.push_back(Flight { id: OpId(id), file, offset: 0, moved: 0, body });
        };
        read(1);
        read(2);
        let mut done = Vec::new();
        driver.poll(Some(Duration::from_millis(50)), &mut done);
        assert!(done.is_empty(), "there is nothing to read yet");
        io::Write::write_all(&mut writer, &[7; 100]).expect("write");
        while done.is_empty() {
            driver.poll(Some(Duration::from_secs(60)), &mut done);
        }
        match &done.remove(0).result {
            Ok(Output::Read(buffer)) => assert_eq!(**buffer, [7; 100]),
            _ => panic!("another output"),
        }
        let end = Deadline::after(Duration::from_secs(6)).expect("a time");
        drop(driver);
        assert!(!end.left().is_zero(), "it waits for two seconds");
        // The leaked ring keeps the buffer, which the kernel may still use, but not the file, or its disk would stay locked.
        assert_eq!(Arc::strong_count(&file), 1);
    }
}
