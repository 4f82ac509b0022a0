//! One answer on its way from the log thread to the client who waits for it: a future that can also be waited on.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::park;
use super::prims::{Arc, Deadline, Mutex};

/// Nobody will answer: the [`Resolver`] is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abandoned;

enum State<T> {
    /// No answer yet; the waker of whoever polled last.
    Open(Option<Waker>),
    Answered(T),
    Abandoned,
    /// The answer was handed out.
    Taken,
}

type Shared<T> = Arc<Mutex<State<T>>>;

/// A pair of ends. It is one allocation, and neither end ever waits for the other but in [`Ticket::wait`].
pub(crate) fn ticket<T>() -> (Resolver<T>, Ticket<T>) {
    let shared = Arc::new(Mutex::new(State::Open(None)));
    (Resolver(Some(Arc::clone(&shared))), Ticket(shared))
}

/// The end that gives the answer. Dropped without one, it leaves the ticket [`Abandoned`].
#[must_use = "dropping it abandons the ticket"]
pub(crate) struct Resolver<T>(Option<Shared<T>>);

impl<T> Resolver<T> {
    /// Gives the answer and wakes who waits for it.
    pub(crate) fn resolve(self, answer: T) {
        if let Some(waker) = self.resolve_quietly(answer) {
            waker.wake();
        }
    }

    /// Gives the answer and hands the wake-up to the caller, who resolves many tickets before waking anybody.
    #[must_use = "a waker that is not called leaves a client asleep"]
    pub(crate) fn resolve_quietly(mut self, answer: T) -> Option<Waker> {
        let shared = self.0.take()?;
        close(&shared, State::Answered(answer))
    }

    /// Whether this is the other end of `ticket`.
    pub(crate) fn answers(&self, ticket: &Ticket<T>) -> bool {
        self.0.as_ref().is_some_and(|shared| Arc::ptr_eq(shared, &ticket.0))
    }
}

impl<T> Drop for Resolver<T> {
    fn drop(&mut self) {
        if let Some(waker) = self.0.take().and_then(|shared| close(&shared, State::Abandoned)) {
            waker.wake();
        }
    }
}

/// Leaves the open state, once in a ticket's life.
fn close<T>(shared: &Shared<T>, end: State<T>) -> Option<Waker> {
    match mem::replace(&mut *shared.lock(), end) {
        State::Open(waker) => waker,
        State::Answered(_) | State::Abandoned | State::Taken => unreachable!("a resolver answers once"),
    }
}

/// The end that waits for the answer, as a future or with a thread. Dropping it is fine at any time: the answer is
/// dropped, too.
#[must_use = "the answer arrives here"]
pub(crate) struct Ticket<T>(Shared<T>);

impl<T> Ticket<T> {
    /// Sleeps until the answer is there.
    ///
    /// # Errors
    /// [`Abandoned`], when nobody will answer.
    ///
    /// # Panics
    /// As a future does that is polled after it was ready.
    pub(crate) fn wait(self) -> Result<T, Abandoned> {
        park::block_on(self)
    }

    /// As [`Ticket::wait`], but not longer than `time`: `None` after that, and the ticket is as good as before.
    pub(crate) fn wait_timeout(&mut self, time: Duration) -> Option<Result<T, Abandoned>> {
        park::block_until(self, Deadline::after(time))
    }

    /// Whether a poll or a wait would return at once.
    pub(crate) fn is_done(&self) -> bool {
        !matches!(*self.0.lock(), State::Open(_))
    }
}

impl<T> Future for Ticket<T> {
    type Output = Result<T, Abandoned>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.lock();
        match &mut *state {
            State::Open(Some(waker)) => {
                // The old waker is foreign code: it is dropped after the lock.
                let old = (!waker.will_wake(context.waker())).then(|| mem::replace(waker, context.waker().clone()));
                drop(state);
                drop(old);
                Poll::Pending
            }
            State::Open(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            State::Answered(_) => match mem::replace(&mut *state, State::Taken) {
                State::Answered(answer) => Poll::Ready(Ok(answer)),
                State::Open(_) | State::Abandoned | State::Taken => unreachable!("it was answered a moment ago"),
            },
            State::Abandoned => Poll::Ready(Err(Abandoned)),
            State::Taken => panic!("the ticket's answer was taken before"),
        }
    }
}
