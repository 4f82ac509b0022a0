//! A number that only grows, moved by the log thread, read by everybody, waited on by some.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::park;
use super::prims::{AtomicU64, CachePadded, Deadline, Mutex, Ordering, fence};

/// The watermark will not move any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed;

/// Announced while no one waits.
const NOBODY: u64 = u64::MAX;

/// A published position: [`Watermark::advance`] is for one thread, everything else for all.
///
/// A waiter announces the lowest number waited for, then looks at the value again; an advance sets the value, then
/// looks at the announcement. With a fence between the two steps on both sides, at least one sees the other.
pub(crate) struct Watermark {
    value: CachePadded<AtomicU64>,
    /// The lowest number that somebody waits for, or [`NOBODY`]. Written under the lock.
    wanted: CachePadded<AtomicU64>,
    waiting: Mutex<Waiting>,
}

struct Waiting {
    closed: bool,
    next: u64,
    /// By number waited for, then by arrival.
    wakers: BTreeMap<(u64, u64), Waker>,
}

impl Watermark {
    pub(crate) fn new(value: u64) -> Watermark {
        Watermark {
            value: CachePadded::new(AtomicU64::new(value)),
            wanted: CachePadded::new(AtomicU64::new(NOBODY)),
            waiting: Mutex::new(Waiting { closed: false, next: 0, wakers: BTreeMap::new() }),
        }
    }

    /// The number now. What the log thread did before it advanced to this number is visible to the caller.
    pub(crate) fn get(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    /// Moves on to `value` and wakes those whose number is reached. For one thread only.
    ///
    /// # Panics
    /// When `value` is below the present one.
    pub(crate) fn advance(&self, value: u64) {
        let before = self.value.load(Ordering::Relaxed);
        assert!(value >= before, "a watermark does not go back from {before} to {value}");
        self.value.store(value, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.wanted.load(Ordering::Relaxed) <= value {
            self.wake_reached(value);
        }
    }

    /// The future of `number` being reached.
    pub(crate) fn wait_for(&self, number: u64) -> WaitFor<'_> {
        WaitFor { mark: self, number, arrival: None }
    }

    /// Sleeps until `number` is reached.
    ///
    /// # Errors
    /// [`Closed`], when it never will be.
    pub(crate) fn wait_for_blocking(&self, number: u64) -> Result<(), Closed> {
        park::block_on(self.wait_for(number))
    }

    /// As [`Watermark::wait_for_blocking`], but not longer than `time`: `None` after that.
    pub(crate) fn wait_for_timeout(&self, number: u64, time: Duration) -> Option<Result<(), Closed>> {
        park::block_until(&mut self.wait_for(number), Deadline::after(time))
    }

    /// Ends every wait for a number that was not reached, those to come as well.
    pub(crate) fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        let all = std::mem::take(&mut waiting.wakers);
        self.wanted.store(NOBODY, Ordering::Relaxed);
        drop(waiting);
        all.into_values().for_each(Waker::wake);
    }

    /// Whether it was closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.waiting.lock().closed
    }

    #[cold]
    fn wake_reached(&self, value: u64) {
        let mut waiting = self.waiting.lock();
        let beyond = match value.checked_add(1) {
            Some(next) => waiting.wakers.split_off(&(next, 0)),
            None => BTreeMap::new(),
        };
        let reached = std::mem::replace(&mut waiting.wakers, beyond);
        self.announce(&waiting);
        drop(waiting);
        reached.into_values().for_each(Waker::wake);
    }

    fn announce(&self, waiting: &Waiting) {
        let lowest = waiting.wakers.keys().next().map_or(NOBODY, |(number, _)| *number);
        self.wanted.store(lowest, Ordering::Relaxed);
    }
}

/// Waits until the watermark has reached a number; [`Closed`] if it never will.
#[must_use = "futures do nothing unless polled"]
pub(crate) struct WaitFor<'a> {
    mark: &'a Watermark,
    number: u64,
    /// Its place among the waiters, if it ever was one.
    arrival: Option<u64>,
}

impl WaitFor<'_> {
    /// Leaves the waiters, if it is still one of them. The waker is for the caller to drop, without the lock.
    fn leave(&mut self, waiting: &mut Waiting) -> Option<Waker> {
        let waker = waiting.wakers.remove(&(self.number, self.arrival.take()?));
        if waker.is_some() {
            self.mark.announce(waiting);
        }
        waker
    }
}

impl Future for WaitFor<'_> {
    type Output = Result<(), Closed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (mark, number) = (self.mark, self.number);
        if self.arrival.is_none() && mark.get() >= number {
            return Poll::Ready(Ok(()));
        }
        let mut waiting = mark.waiting.lock();
        let arrival = *self.arrival.get_or_insert_with(|| {
            waiting.next += 1;
            waiting.next
        });
        let old = waiting.wakers.insert((number, arrival), context.waker().clone());
        mark.announce(&waiting);
        fence(Ordering::SeqCst);
        let end = match mark.get() >= number {
            true => Some(Ok(())),
            false => waiting.closed.then_some(Err(Closed)),
        };
        let own = if end.is_some() { self.leave(&mut waiting) } else { None };
        drop(waiting);
        drop((old, own));
        end.map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for WaitFor<'_> {
    fn drop(&mut self) {
        if self.arrival.is_some() {
            let mark = self.mark;
            let waker = self.leave(&mut mark.waiting.lock());
            drop(waker);
        }
    }
}
