//! The way in: items go from many clients to the log thread, bounded by number and by bytes until they are released.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::park;
use super::prims::{Arc, AtomicU64, AtomicUsize, CachePadded, Doorbell, Mutex, Ordering, Queue, fence};
use super::ticket::{Resolver, Ticket, ticket};

/// Why an item was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// No room now, or others wait for room.
    Full,
    /// The intake takes nothing any more.
    Closed,
    /// It is over the bound on its own.
    TooLarge,
}

/// An item that was not taken comes back.
#[derive(PartialEq, Eq)]
pub(crate) struct Refused<T> {
    pub(crate) reason: Reason,
    pub(crate) item: T,
}

impl<T> fmt::Debug for Refused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused").field("reason", &self.reason).finish_non_exhaustive()
    }
}

/// What is admitted and not yet released, in one word: bytes below, items above, two flags on top. One atomic step
/// thus admits an item, and tells a release that somebody waits.
const ITEM: u64 = 1 << 40;
const CLOSED: u64 = 1 << 62;
const WAITING: u64 = 1 << 63;
/// The most bytes that an intake can bound.
pub(crate) const MOST_BYTES: u64 = ITEM - 1;
/// The most items that an intake can bound.
pub(crate) const MOST_ITEMS: u64 = CLOSED / ITEM - 1 - AHEAD as u64;
/// So many items more than the bound a region lets in, of those that go ahead of others.
pub(crate) const AHEAD: usize = 64;

/// What the log thread does, as its producers need to know it: it is awake or gone, or sleeps until so many items are queued.
const AWAKE: usize = 0;
const GONE: usize = usize::MAX;

/// A bounded queue of `T`. Whatever is pushed counts against both bounds from its admission until the consumer calls
/// [`Intake::release`]: until the memory is really given back, not only until it left the queue.
///
/// Who finds no room waits in line, first come first served; a release moves the head of the line into the queue.
/// Nobody overtakes the line, so a large item is not starved by small ones.
pub(crate) struct Intake<T> {
    used: CachePadded<AtomicU64>,
    /// [`AWAKE`], [`GONE`], or how many queued items are worth waking for.
    consumer: CachePadded<AtomicUsize>,
    /// Holds what is admitted; the bound on items keeps it from ever being full.
    queue: Queue<T>,
    /// Those who wait for room. [`WAITING`] is set while it holds any, and changed only under this lock.
    line: Mutex<VecDeque<InLine<T>>>,
    max_items: u64,
    /// So many items more are let in of those that go ahead.
    ahead: u64,
    max_bytes: u64,
    bell: Arc<dyn Doorbell>,
}

struct InLine<T> {
    item: T,
    bytes: u64,
    /// Answers when the item was moved into the queue, or hands it back when the intake closes.
    admitted: Resolver<Result<(), T>>,
}

impl<T> Intake<T> {
    /// An empty intake, which takes `ahead` items more than its bound by [`Intake::push_ahead`].
    ///
    /// # Panics
    /// When a bound is 0 or above [`MOST_ITEMS`] or [`MOST_BYTES`].
    pub(crate) fn new(max_items: usize, ahead: usize, max_bytes: u64, bell: Arc<dyn Doorbell>) -> Intake<T> {
        assert!((1..=MOST_ITEMS).contains(&(max_items as u64)), "{max_items} items cannot be the bound");
        assert!((1..=MOST_BYTES).contains(&max_bytes), "{max_bytes} bytes cannot be the bound");
        Intake {
            used: CachePadded::new(AtomicU64::new(0)),
            consumer: CachePadded::new(AtomicUsize::new(AWAKE)),
            queue: Queue::new(max_items + ahead),
            line: Mutex::new(VecDeque::new()),
            max_items: max_items as u64,
            ahead: ahead as u64,
            max_bytes,
            bell,
        }
    }

    /// Hands over an item if there is room and nobody waits for room.
    ///
    /// # Errors
    /// The item comes back with the reason.
    pub(crate) fn try_push(&self, item: T, bytes: u64) -> Result<(), Refused<T>> {
        match self.reserve(bytes, 0) {
            Ok(()) => {
                self.enqueue(item);
                Ok(())
            }
            Err(reason) => Err(Refused { reason, item }),
        }
    }

    /// Hands over an item, waiting in line for room. The future does nothing before it is polled; dropped while it is
    /// in line, it takes the item with it; dropped later, the item is in.
    pub(crate) fn push(&self, item: T, bytes: u64) -> Push<'_, T> {
        Push { intake: self, bytes, stage: Stage::New(item) }
    }

    /// As [`Intake::push`], with a sleeping thread.
    ///
    /// # Errors
    /// `Closed` or `TooLarge`, with the item.
    pub(crate) fn push_blocking(&self, item: T, bytes: u64) -> Result<(), Refused<T>> {
        park::block_on(self.push(item, bytes))
    }

    /// Hands over an item that takes no bytes and must not wait for others: what makes room may depend on it. It goes in also where others wait
    /// for room, up to a few more than the bound.
    ///
    /// # Errors
    /// The item comes back with the reason.
    pub(crate) fn push_ahead(&self, item: T) -> Result<(), Refused<T>> {
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            let full = items_in(used) >= self.max_items + self.ahead;
            if full || used & CLOSED != 0 {
                let reason = if full { Reason::Full } else { Reason::Closed };
                return Err(Refused { reason, item });
            }
            // As in `reserve`.
            match self.used.compare_exchange_weak(used, used + ITEM, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    self.enqueue(item);
                    return Ok(());
                }
                Err(now) => used = now,
            }
        }
    }

    /// The next item. For the consumer only.
    pub(crate) fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    /// Gives back the room of `items` popped items with `bytes` in all, and lets in who waits for it.
    ///
    /// # Panics
    /// When more is given back than was taken.
    pub(crate) fn release(&self, items: u64, bytes: u64) {
        let before = self.used.fetch_sub(items * ITEM + bytes, Ordering::AcqRel);
        assert!(
            items_in(before) >= items && bytes_in(before) >= bytes,
            "released {items} items, {bytes} bytes of {}, {}",
            items_in(before),
            bytes_in(before)
        );
        if before & WAITING != 0 {
            self.admit_line();
        }
    }

    /// Called by the consumer before it sleeps: from now on the push that makes `wanted` items to pop rings the doorbell.
    /// False when there are so many already. Anything else that a [`Intake::nudge`] announces must be looked at after
    /// this call, too.
    ///
    /// # Panics
    /// When `wanted` is 0.
    #[must_use = "false means that there is work"]
    pub(crate) fn prepare_sleep(&self, wanted: usize) -> bool {
        assert!((1..GONE).contains(&wanted), "nobody sleeps until {wanted} items are there");
        self.consumer.store(wanted, Ordering::Relaxed);
        // Pairs with the fences of the producers: either the push is seen here, or the sleep is seen there.
        fence(Ordering::SeqCst);
        if self.queue.len() < wanted {
            return true;
        }
        self.awake();
        false
    }

    /// Called by the consumer when it is up again: pushes need not ring.
    pub(crate) fn awake(&self) {
        self.consumer.store(AWAKE, Ordering::Relaxed);
    }

    /// Wakes the consumer if it sleeps, however few items are queued: it finds something elsewhere.
    pub(crate) fn nudge(&self) {
        fence(Ordering::SeqCst);
        let wanted = self.consumer.load(Ordering::Relaxed);
        if wanted != AWAKE {
            self.wake(wanted);
        }
    }

    /// From now on nothing is taken, and who waits in line gets the item back. What is queued stays to be popped;
    /// a push that was admitted a moment before may still be on its way there, so the consumer is through only
    /// when [`Intake::is_drained`].
    pub(crate) fn close(&self) {
        let mut line = self.line.lock();
        self.used.fetch_or(CLOSED, Ordering::AcqRel);
        let refused = std::mem::take(&mut *line);
        self.used.fetch_and(!WAITING, Ordering::AcqRel);
        drop(line);
        for InLine { item, admitted, .. } in refused {
            admitted.resolve(Err(item));
        }
        self.nudge();
    }

    /// Whether it is closed, and everything ever admitted was popped and released.
    pub(crate) fn is_drained(&self) -> bool {
        self.used.load(Ordering::Acquire) == CLOSED
    }

    /// Closes it for a consumer that ends without draining: what is queued is dropped, and also what still arrives.
    pub(crate) fn abandon(&self) {
        self.close();
        self.consumer.store(GONE, Ordering::Relaxed);
        // Pairs with the fence in `enqueue`: either a late push is seen here, or its producer sees GONE.
        fence(Ordering::SeqCst);
        while self.queue.pop().is_some() {}
    }

    /// Items that wait to be popped.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Items and bytes admitted and not yet released.
    pub(crate) fn in_use(&self) -> (u64, u64) {
        let used = self.used.load(Ordering::Relaxed);
        (items_in(used), bytes_in(used))
    }

    /// Takes room for one item. If there is none, sets `mark` ([`WAITING`] or nothing) in the same step.
    fn reserve(&self, bytes: u64, mark: u64) -> Result<(), Reason> {
        if bytes > self.max_bytes {
            return Err(Reason::TooLarge);
        }
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            if used & CLOSED != 0 {
                return Err(Reason::Closed);
            }
            let room = used & WAITING == 0 && self.fits(used, bytes);
            let next = if room { used + ITEM + bytes } else { used | mark };
            if next == used {
                return Err(Reason::Full);
            }
            // Acquire: the place in the queue that a release gave back must be seen as free.
            match self.used.compare_exchange_weak(used, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if room => return Ok(()),
                Ok(_) => return Err(Reason::Full),
                Err(now) => used = now,
            }
        }
    }

    fn fits(&self, used: u64, bytes: u64) -> bool {
        items_in(used) < self.max_items && bytes_in(used) + bytes <= self.max_bytes
    }

    fn enqueue(&self, item: T) {
        assert!(self.queue.push(item).is_ok(), "what is admitted has a place in the queue");
        fence(Ordering::SeqCst);
        let wanted = self.consumer.load(Ordering::Relaxed);
        if wanted != AWAKE && (wanted == GONE || self.queue.len() >= wanted) {
            self.wake(wanted);
        }
    }

    /// Moves those at the head of the line into the queue for whom there is room.
    #[cold]
    fn admit_line(&self) {
        let mut wakers = Vec::new();
        let mut line = self.line.lock();
        while let Some(first) = line.front() {
            // Nobody else takes room while WAITING is set, and releases only make more of it.
            if !self.fits(self.used.load(Ordering::Acquire), first.bytes) {
                break;
            }
            self.used.fetch_add(ITEM + first.bytes, Ordering::AcqRel);
            let Some(InLine { item, admitted, .. }) = line.pop_front() else { break };
            self.enqueue(item);
            wakers.extend(admitted.resolve_quietly(Ok(())));
        }
        if line.is_empty() {
            self.used.fetch_and(!WAITING, Ordering::AcqRel);
        }
        drop(line);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Joins the line, unless there is room after all.
    fn join_line(&self, item: T, bytes: u64) -> Result<Option<Ticket<Result<(), T>>>, Refused<T>> {
        let mut line = self.line.lock();
        match self.reserve(bytes, WAITING) {
            Ok(()) => {
                drop(line);
                self.enqueue(item);
                Ok(None)
            }
            Err(Reason::Full) => {
                let (admitted, answer) = ticket();
                line.push_back(InLine { item, bytes, admitted });
                Ok(Some(answer))
            }
            Err(reason) => Err(Refused { reason, item }),
        }
    }

    /// Takes the item of a push that was given up out of the line.
    fn leave_line(&self, answer: &Ticket<Result<(), T>>) {
        let mut line = self.line.lock();
        let place = line.iter().position(|waiting| waiting.admitted.answers(answer));
        let gone = place.and_then(|place| line.remove(place));
        drop(line);
        if let Some(InLine { item, admitted, .. }) = gone {
            // The item goes with the ticket. Nobody waits for it: the waker is dropped uncalled.
            drop(admitted.resolve_quietly(Err(item)));
            // It may have been the one at the head that did not fit, with smaller ones behind it.
            self.admit_line();
        }
    }

    /// For a producer that found the consumer not awake.
    #[cold]
    fn wake(&self, wanted: usize) {
        let rouse = || self.consumer.compare_exchange(wanted, AWAKE, Ordering::Relaxed, Ordering::Relaxed);
        // Of many producers one rings. A consumer that has slept again meanwhile has seen what there is.
        match if wanted == GONE { Err(GONE) } else { rouse() } {
            Ok(_) => self.bell.ring(),
            Err(GONE) => while self.queue.pop().is_some() {},
            Err(_) => {}
        }
    }
}

fn items_in(used: u64) -> u64 {
    (used & !(CLOSED | WAITING)) / ITEM
}

fn bytes_in(used: u64) -> u64 {
    used % ITEM
}

/// A push under way; see [`Intake::push`].
#[must_use = "futures do nothing unless polled"]
pub(crate) struct Push<'a, T> {
    intake: &'a Intake<T>,
    bytes: u64,
    stage: Stage<T>,
}

enum Stage<T> {
    New(T),
    InLine(Ticket<Result<(), T>>),
    Done,
}

/// The item is moved, never pinned.
impl<T> Unpin for Push<'_, T> {}

impl<T> Future for Push<'_, T> {
    type Output = Result<(), Refused<T>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (intake, bytes) = (self.intake, self.bytes);
        let mut answer = match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::New(item) => match intake.try_push(item, bytes) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(Refused { reason: Reason::Full, item }) => match intake.join_line(item, bytes) {
                    Ok(None) => return Poll::Ready(Ok(())),
                    Ok(Some(answer)) => answer,
                    Err(refused) => return Poll::Ready(Err(refused)),
                },
                Err(refused) => return Poll::Ready(Err(refused)),
            },
            Stage::InLine(answer) => answer,
            Stage::Done => panic!("the push was finished before"),
        };
        match Pin::new(&mut answer).poll(context) {
            Poll::Pending => {
                self.stage = Stage::InLine(answer);
                Poll::Pending
            }
            Poll::Ready(Ok(Ok(()))) => Poll::Ready(Ok(())),
            Poll::Ready(Ok(Err(item))) => Poll::Ready(Err(Refused { reason: Reason::Closed, item })),
            Poll::Ready(Err(_)) => unreachable!("only this push takes its item out of the line"),
        }
    }
}

impl<T> Drop for Push<'_, T> {
    fn drop(&mut self) {
        if let Stage::InLine(answer) = &self.stage {
            self.intake.leave_line(answer);
        }
    }
}
