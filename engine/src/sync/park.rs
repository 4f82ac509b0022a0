//! Waiting for a future with a thread instead of a runtime.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use super::prims::{Deadline, Parker};

/// Sleeps until the future is done.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let parker = Parker::new();
    let mut context = Context::from_waker(parker.waker());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        parker.park();
    }
}

/// Sleeps until the future is done or the deadline has passed; `None` in the latter case. The future keeps a waker of
/// this thread then, which does no harm: it wakes whatever the thread sleeps in next, and that looks again.
pub(crate) fn block_until<F: Future + Unpin>(future: &mut F, deadline: Deadline) -> Option<F::Output> {
    let parker = Parker::new();
    let mut context = Context::from_waker(parker.waker());
    let mut in_time = true;
    loop {
        if let Poll::Ready(output) = Pin::new(&mut *future).poll(&mut context) {
            return Some(output);
        }
        if !in_time {
            return None;
        }
        in_time = parker.park_until(deadline);
    }
}
