//! The door to the standard library's and crossbeam's concurrency primitives; `loom-tests` has its own with loom's.
#![allow(
    clippy::disallowed_methods,
    reason = "a client that waits for a limited time looks at the clock; nothing the log does depends on it"
)]

use std::cell::Cell;
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

pub(crate) use crossbeam::queue::ArrayQueue as Queue;
pub(crate) use crossbeam::utils::CachePadded;
pub(crate) use futures::task::AtomicWaker;
pub(crate) use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
pub(crate) use std::sync::{Arc, MutexGuard};

pub(crate) use crate::io::Doorbell;

/// A mutex that is never poisoned. The only foreign code that its holders call is the cloning of a waker, before they
/// change anything: a panic there leaves nothing half done.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex(std::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

thread_local! {
    /// The thread's waker while nobody uses it, so that waiting allocates once in a thread's life.
    static SPARE: Cell<Option<Waker>> = const { Cell::new(None) };
}

/// Lets the thread that made it sleep until its waker is called. It may also return for no reason.
pub(crate) struct Parker(Option<Waker>);

impl Parker {
    pub(crate) fn new() -> Parker {
        // A thread that is going away has no spare any more; it makes a waker for this one wait.
        let spare = SPARE.try_with(Cell::take).ok().flatten();
        Parker(Some(spare.unwrap_or_else(|| Arc::new(Unpark(std::thread::current())).into())))
    }

    pub(crate) fn waker(&self) -> &Waker {
        self.0.as_ref().expect("it is there until the parker is dropped")
    }

    pub(crate) fn park(&self) {
        std::thread::park();
    }

    /// As [`Parker::park`], but not beyond the deadline. False once that has passed.
    pub(crate) fn park_until(&self, deadline: Deadline) -> bool {
        let Some(end) = deadline.0 else {
            std::thread::park();
            return true;
        };
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        std::thread::park_timeout(left);
        true
    }
}

impl Drop for Parker {
    fn drop(&mut self) {
        // Nothing to keep it in when the thread is going away.
        let _ = SPARE.try_with(|spare| spare.set(self.0.take()));
    }
}

/// A point in time up to which a client waits; `None` is never.
#[derive(Clone, Copy)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// So far from now.
    pub(crate) fn after(time: Duration) -> Deadline {
        Deadline(Instant::now().checked_add(time))
    }
}
