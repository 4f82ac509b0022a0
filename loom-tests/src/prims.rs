//! Loom's stand-ins for what `engine/src/sync/prims.rs` offers, and a little for the models.

use std::sync::Mutex as Cell;
use std::task::{Wake, Waker};
use std::time::Duration;

use loom::sync::Condvar;

pub(crate) use loom::sync::MutexGuard;
pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
/// Not loom's: the reference counts are not what is explored here.
pub(crate) use std::sync::Arc;

/// As in the engine's I/O seam.
pub(crate) trait Doorbell: Send + Sync {
    /// Make a sleeping consumer return; if none sleeps, the next sleep returns at once.
    fn ring(&self);
}

/// As in the engine.
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T: Default> Default for Mutex<T> {
    fn default() -> Mutex<T> {
        Mutex::new(T::default())
    }
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("a panic ends the model")
    }
}

/// Layout is of no concern here.
pub(crate) struct CachePadded<T>(T);

impl<T> CachePadded<T> {
    pub(crate) fn new(value: T) -> CachePadded<T> {
        CachePadded(value)
    }
}

impl<T> std::ops::Deref for CachePadded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// The algorithm of crossbeam's `ArrayQueue` with weaker orderings than its own: only what is pushed is published to
/// who pops it, and nothing at all by asking whether it is empty. What holds with this one holds with that one.
pub(crate) struct Queue<T> {
    head: AtomicUsize,
    tail: AtomicUsize,
    slots: Vec<Slot<T>>,
}

struct Slot<T> {
    /// The position that may be pushed here next; one more once that is done.
    stamp: AtomicUsize,
    value: Cell<Option<T>>,
}

impl<T> Queue<T> {
    pub(crate) fn new(capacity: usize) -> Queue<T> {
        let slots = (0..capacity).map(|i| Slot { stamp: AtomicUsize::new(2 * i), value: Cell::new(None) }).collect();
        Queue { head: AtomicUsize::new(0), tail: AtomicUsize::new(0), slots }
    }

    pub(crate) fn push(&self, value: T) -> Result<(), T> {
        loop {
            let tail = self.tail.load(Ordering::Relaxed);
            let slot = &self.slots[tail % self.slots.len()];
            let stamp = slot.stamp.load(Ordering::Acquire);
            if stamp == 2 * tail {
                let moved = self.tail.compare_exchange(tail, tail + 1, Ordering::Relaxed, Ordering::Relaxed);
                if moved.is_ok() {
                    *slot.value.lock().expect("never contended") = Some(value);
                    slot.stamp.store(2 * tail + 1, Ordering::Release);
                    return Ok(());
                }
            } else if stamp < 2 * tail && self.head.load(Ordering::Relaxed) + self.slots.len() == tail {
                return Err(value);
            } else {
                loom::thread::yield_now();
            }
        }
    }

    pub(crate) fn pop(&self) -> Option<T> {
        loop {
            let head = self.head.load(Ordering::Relaxed);
            let slot = &self.slots[head % self.slots.len()];
            let stamp = slot.stamp.load(Ordering::Acquire);
            if stamp == 2 * head + 1 {
                let moved = self.head.compare_exchange(head, head + 1, Ordering::Relaxed, Ordering::Relaxed);
                if moved.is_ok() {
                    let value = slot.value.lock().expect("never contended").take();
                    slot.stamp.store(2 * (head + self.slots.len()), Ordering::Release);
                    return value;
                }
            } else if self.tail.load(Ordering::Relaxed) == head {
                return None;
            } else {
                loom::thread::yield_now();
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        // To a producer the head may have gone past the tail that it saw.
        self.tail.load(Ordering::Relaxed).saturating_sub(self.head.load(Ordering::Relaxed))
    }
}

/// A place for one waker. Registering and waking exclude each other, as far as anybody can see.
#[derive(Default)]
pub(crate) struct AtomicWaker(Mutex<Option<Waker>>);

impl AtomicWaker {
    pub(crate) fn register(&self, waker: &Waker) {
        *self.0.lock() = Some(waker.clone());
    }

    pub(crate) fn wake(&self) {
        let waker = self.0.lock().take();
        waker.into_iter().for_each(Waker::wake);
    }
}

/// A flag to sleep on that stays up until somebody has seen it: a thread's parking place, and the doorbell.
pub(crate) struct Signal {
    up: loom::sync::Mutex<bool>,
    raised: Condvar,
}

impl Signal {
    pub(crate) fn new() -> Arc<Signal> {
        Arc::new(Signal { up: loom::sync::Mutex::new(false), raised: Condvar::new() })
    }

    pub(crate) fn raise(&self) {
        *self.up.lock().expect("a panic ends the model") = true;
        self.raised.notify_one();
    }

    pub(crate) fn wait(&self) {
        let mut up = self.up.lock().expect("a panic ends the model");
        while !*up {
            up = self.raised.wait(up).expect("a panic ends the model");
        }
        *up = false;
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.raise();
    }
}

impl Doorbell for Signal {
    fn ring(&self) {
        self.raise();
    }
}

/// As in the engine.
pub(crate) struct Parker(Arc<Signal>, Waker);

impl Parker {
    pub(crate) fn new() -> Parker {
        let signal = Signal::new();
        Parker(Arc::clone(&signal), Waker::from(signal))
    }

    pub(crate) fn waker(&self) -> &Waker {
        &self.1
    }

    pub(crate) fn park(&self) {
        self.0.wait();
    }

    /// Time is always over here, for a wait that is not is explored by [`Parker::park`].
    pub(crate) fn park_until(&self, _: Deadline) -> bool {
        false
    }
}

/// As in the engine.
#[derive(Clone, Copy)]
pub(crate) struct Deadline;

impl Deadline {
    pub(crate) fn after(_: Duration) -> Deadline {
        Deadline
    }
}
