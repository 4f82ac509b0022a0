//! The answer to what a caller handed over: waited for by a thread, or awaited by a task.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::caller::Home;
use crate::error::Result;
use crate::region::stopped;
use crate::sync::ticket::{self, Abandoned};
use crate::transaction::Receipt;

/// The answer to what was submitted: a future, or [`Ticket::wait`]. Dropping it does not take the transaction back.
///
/// # Panics
/// The answer is taken once. Polling again, or [`Ticket::wait_timeout`] after it returned an answer, panics.
#[must_use = "the transaction is not known to be committed before its ticket says so"]
pub struct Ticket<T = Receipt> {
    answer: ticket::Ticket<Result<T>>,
    home: Home,
}

impl<T> Ticket<T> {
    pub(crate) fn new(answer: ticket::Ticket<Result<T>>, home: Home) -> Ticket<T> {
        Ticket { answer, home }
    }

    /// Sleeps until the transaction is committed as it asked, and applied.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound), [`Fenced`](crate::ErrorKind::Fenced), [`Degraded`](crate::ErrorKind::Degraded), [`NoSpace`](crate::ErrorKind::NoSpace),
    /// [`LimitReached`](crate::ErrorKind::LimitReached), [`RetryTooOld`](crate::ErrorKind::RetryTooOld),
    /// [`SequenceReused`](crate::ErrorKind::SequenceReused), [`Secondary`](crate::ErrorKind::Secondary): it was not committed (with `Degraded`: not as asked; it may be committed on two disks, and applied).
    /// [`Indeterminate`](crate::ErrorKind::Indeterminate), [`Halted`](crate::ErrorKind::Halted): reopen and retry.
    /// [`WouldDeadlock`](crate::ErrorKind::WouldDeadlock), [`Forked`](crate::ErrorKind::Forked): it is not answered yet, and the caller cannot wait for that.
    ///
    /// # Panics
    /// When the answer was taken before.
    pub fn wait(self) -> Result<T> {
        self.check_wait()?;
        self.answer.wait().unwrap_or_else(|Abandoned| Err(stopped()))
    }

    /// As [`Ticket::wait`], for at most `time`; `None` means not yet: the ticket is as good as before. So it is after
    /// [`WouldDeadlock`](crate::ErrorKind::WouldDeadlock).
    ///
    /// # Panics
    /// When the answer was taken before.
    pub fn wait_timeout(&mut self, time: Duration) -> Option<Result<T>> {
        if let Err(error) = self.check_wait() {
            return Some(Err(error));
        }
        self.answer.wait_timeout(time).map(|answer| answer.unwrap_or_else(|Abandoned| Err(stopped())))
    }

    /// Whether the answer is there.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.answer.is_done()
    }

    fn check_wait(&self) -> Result<()> {
        if self.is_done() { Ok(()) } else { self.home.check_wait() }
    }
}

impl<T> Future for Ticket<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        match Pin::new(&mut self.answer).poll(context) {
            Poll::Ready(answer) => Poll::Ready(answer.unwrap_or_else(|Abandoned| Err(stopped()))),
            Poll::Pending => self.home.check_process().map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending),
        }
    }
}
