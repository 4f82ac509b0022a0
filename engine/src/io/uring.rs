//! The io_uring driver: reads and writes of open files go through the ring, everything else through the lanes.
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
use super::{Buffer, Completion, Doorbell, Driver, Environment, Op, OpId, Output, ReadAt, Slice};

/// Operations in the ring at a time; the others wait for their turn in the driver.
const ENTRIES: u32 = 256;
/// Threads of a disk for what the ring does not do.
const THREADS_PER_DISK: usize = 2;

/// Reads and writes open files through io_uring.
///
/// Dropping it waits up to two seconds for what is under way. If the ring is still not empty then, it is leaked with the
/// buffers, files and locks that its operations hold: a write to a disk that hangs cannot be taken back, and the kernel
/// may still use them.
pub(super) struct UringDriver {
    /// There until the driver is dropped.
    runtime: Option<tokio_uring::Runtime>,
    host: Host,
    ring: Ring,
    machine: Arc<Machine>,
}

impl UringDriver {
    /// Sets up a ring and sends one empty operation through it.
    pub(super) fn new() -> io::Result<UringDriver> {
        let runtime = runtime()?;
        let ring = runtime.block_on(async {
            tokio_uring::no_op().await?;
            Ring::new()
        })?;
        let (host, machine) = (Host::new(THREADS_PER_DISK), Arc::new(Machine::new()));
        Ok(UringDriver { runtime: Some(runtime), host, ring, machine })
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
        match op {
            Op::Read { .. } | Op::Write { .. } => match self.flight(id, op) {
                Ok(flight) => self.ring.queued.push_back(flight),
                Err(error) => self.host.fail(id, error),
            },
            op => self.host.submit(id, op),
        }
    }

    fn poll(&mut self, wait: Option<Duration>, done: &mut Vec<Completion>) {
        let wait = match wait.filter(|wait| !self.host.linger(*wait)) {
            None if self.ring.is_empty() => return self.host.collect(done),
            None => Wait::Look,
            Some(wait) => Deadline::after(wait).map_or(Wait::Forever, Wait::Until),
        };
        let (host, ring) = (&mut self.host, &mut self.ring);
        let turn = Turn { host, ring, wait, yielded: false, ready: false, done };
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
        self.ring.queued.clear();
        let end = Deadline::after(GRACE);
        while (self.host.in_flight() > 0 || !self.ring.is_empty())
            && let Some(left) = end.map(Deadline::left)
            && !left.is_zero()
        {
            self.poll(Some(left), &mut Vec::new());
        }
        self.host.close();
        if !self.ring.is_empty() {
            // To drop the runtime would be to wait for the ring, however long. The operations, dropped later, leave
            // their buffers and files in it.
            std::mem::forget(self.runtime.take());
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
        let looking = matches!(self.wait, Wait::Look);
        let bell = &self.host.inbox().bell;
        let heard = if looking { bell.look() } else { bell.answer() };
        let before = self.done.len();
        if self.ring.relay.landed.swap(false, Ordering::Acquire) {
            self.ring.land(self.done);
        } else if self.yielded {
            // Woken by a descriptor, thus from sleep.
            self.ring.unflushed = false;
        }
        self.host.collect(self.done);
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
    /// Not started yet.
    queued: VecDeque<Flight>,
    flying: Vec<InFlightOneshot<Flight, Landing>>,
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
            queued: VecDeque::new(),
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
        self.queued.is_empty() && self.flying.is_empty() && self.nudging.is_none()
    }

    /// Starts what is queued, as far as there is room.
    fn start(&mut self, done: &mut Vec<Completion>) {
        while self.flying.len() < ENTRIES as usize
            && let Some(mut flight) = self.queued.pop_front()
        {
            let entry = flight.entry();
            self.flying.push(UnsubmittedOneshot::new(flight, Landing, entry).submit());
            self.unflushed = true;
            // Leaves the waker with it.
            self.look_at(self.flying.len() - 1, done);
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
        let Poll::Ready((flight, result)) = Pin::new(&mut self.flying[at]).poll(&mut context) else { return false };
        self.flying.swap_remove(at);
        match flight.land(result) {
            Ok(completion) => done.push(completion),
            Err(rest) => self.queued.push_back(rest),
        }
        true
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

/// An operation of the ring, with everything that the kernel uses until it is finished.
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
    /// What the kernel is told: the addresses stay valid because the flight, and with it the buffer and the file, is
    /// kept by the ring until the kernel has finished, also when nobody waits for it any more.
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

    /// What came of it, or what is left to do.
    fn land(mut self, result: i32) -> Result<Completion, Flight> {
        let Ok(moved) = usize::try_from(result) else {
            let error = io::Error::from_raw_os_error(-result);
            if error.kind() == io::ErrorKind::Interrupted {
                return Err(self);
            }
            return Ok(Completion { id: self.id, result: Err(error) });
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
        Ok(Completion { id: self.id, result })
    }
}

/// Hands a flight back with the kernel's answer.
struct Landing;

impl OneshotOutputTransform for Landing {
    type Output = (Flight, i32);
    type StoredData = Flight;

    fn transform_oneshot_output(self, flight: Flight, entry: cqueue::Entry) -> (Flight, i32) {
        (flight, entry.result())
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

    #[test]
    fn an_operation_that_never_ends_holds_up_neither_a_poll_nor_the_end() {
        let Ok(mut driver) = UringDriver::new() else { return };
        let root = tempfile::tempdir().expect("a directory");
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let file = Arc::new(OpenFile::of_pipe(root.path(), OwnedFd::from(reader)).expect("open"));
        let mut read = |id| {
            let (file, body) = (Arc::clone(&file), Body::Read(Buffer::zeroed(ALIGN).expect("map")));
            driver.ring.queued.push_back(Flight { id: OpId(id), file, offset: 0, moved: 0, body });
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
        // The leaked ring keeps what the kernel may still use.
        assert!(Arc::strong_count(&file) > 1);
    }
}
