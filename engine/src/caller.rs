//! Who calls: the log thread cannot wait for itself, and a forked child has no log thread to wait for.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::io::Process;

thread_local! {
    /// The region whose log thread this is; 0 on any other thread.
    static SERVED: Cell<u64> = const { Cell::new(0) };
}

/// Where a region is served: its process, and its log thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Home {
    region: u64,
    process: Process,
}

impl Home {
    /// Of a region that the calling process opens.
    pub(crate) fn new() -> Home {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Home { region: NEXT.fetch_add(1, Ordering::Relaxed), process: Process::current() }
    }

    /// Makes the calling thread the region's log thread.
    pub(crate) fn serve(self) {
        SERVED.set(self.region);
    }

    pub(crate) fn is_log_thread(self) -> bool {
        // A thread that is going away serves nothing.
        SERVED.try_with(Cell::get).is_ok_and(|served| served == self.region)
    }

    pub(crate) fn is_forked(self) -> bool {
        !self.process.is_current()
    }

    /// Whether the region can be used here at all.
    ///
    /// # Errors
    /// [`Forked`](ErrorKind::Forked).
    pub(crate) fn check_process(self) -> Result<()> {
        if !self.is_forked() {
            return Ok(());
        }
        let message = "this process was forked from the one that opened the region, and has no thread to serve it: \
                       use the region in the process that opened it, or open it here after it was closed there";
        Err(Error::new(ErrorKind::Forked, message))
    }

    /// Whether the caller can wait for the log thread.
    ///
    /// # Errors
    /// [`Forked`](ErrorKind::Forked), [`WouldDeadlock`](ErrorKind::WouldDeadlock).
    pub(crate) fn check_wait(self) -> Result<()> {
        self.check_process()?;
        if !self.is_log_thread() {
            return Ok(());
        }
        let message = "the region's log thread would wait for itself: in a state machine, and in a waker that is \
                       called on this thread, use try_submit, and hand what waits to a thread of your own";
        Err(Error::new(ErrorKind::WouldDeadlock, message))
    }
}
