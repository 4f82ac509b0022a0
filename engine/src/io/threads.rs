//! The portable driver: blocking calls on a few threads for each disk.
#![allow(clippy::disallowed_methods, reason = "the log thread sleeps here")]

use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::{Thread, ThreadId};
use std::time::Duration;

use super::clock::{Deadline, Machine};
use super::host::Host;
use super::{Completion, DiskIndex, Doorbell, Driver, Environment, Op, OpId, ReadAt};

/// How long a driver that is dropped waits for what is under way.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// Does every operation on a thread of its disk.
///
/// Dropping it waits up to two seconds for what is under way. What then still hangs keeps its thread, its memory and the
/// lock of its disk until it ends.
pub(super) struct ThreadDriver {
    host: Host,
    machine: Arc<Machine>,
    /// Why it is not io_uring, when that was wanted.
    reason: Option<String>,
    /// Of the thread that polled last.
    sleeper: Option<(ThreadId, Waker)>,
}

impl ThreadDriver {
    pub(super) fn new(reason: Option<String>) -> ThreadDriver {
        ThreadDriver { host: Host::new(), machine: Arc::new(Machine::new()), reason, sleeper: None }
    }

    fn waker(&mut self) -> Waker {
        let thread = std::thread::current();
        match &self.sleeper {
            Some((id, waker)) if *id == thread.id() => waker.clone(),
            _ => {
                let (id, waker) = (thread.id(), Waker::from(Arc::new(Unpark(thread))));
                self.sleeper.insert((id, waker)).1.clone()
            }
        }
    }
}

impl Driver for ThreadDriver {
    fn name(&self) -> String {
        match &self.reason {
            None => "threads".to_owned(),
            Some(reason) => format!("threads ({reason})"),
        }
    }

    fn submit(&mut self, id: OpId, op: Op) {
        self.host.submit(id, op);
    }

    fn give_up(&mut self, disk: DiskIndex) {
        self.host.give_up(disk);
    }

    fn poll(&mut self, wait: Option<Duration>, done: &mut Vec<Completion>) {
        let bell = Arc::clone(&self.host.inbox().bell);
        let Some(wait) = wait.filter(|wait| !self.host.linger(*wait)) else {
            bell.look();
            self.host.collect(done);
            return;
        };
        let deadline = Deadline::after(wait);
        let waker = self.waker();
        loop {
            let heard = bell.answer();
            if self.host.collect(done) || heard.rung {
                return;
            }
            if bell.sleep(&waker) {
                match deadline.map(Deadline::left) {
                    None => std::thread::park(),
                    Some(Duration::ZERO) => break,
                    Some(left) => std::thread::park_timeout(left),
                }
            }
        }
        // Time is over. A ring just now is kept for the next call.
        bell.look();
    }

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        Arc::<super::bell::Bell>::clone(&self.host.inbox().bell)
    }

    fn reader(&self) -> Arc<dyn ReadAt> {
        Arc::<super::host::Readers>::clone(self.host.readers())
    }

    fn environment(&self) -> Arc<dyn Environment> {
        Arc::<Machine>::clone(&self.machine)
    }
}

impl Drop for ThreadDriver {
    fn drop(&mut self) {
        self.host.close();
        let end = Deadline::after(GRACE);
        while self.host.in_flight() > 0
            && let Some(left) = end.map(Deadline::left)
            && !left.is_zero()
        {
            self.poll(Some(left), &mut Vec::new());
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Unpark>) {
        self.0.unpark();
    }
}
