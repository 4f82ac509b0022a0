//! Futures that are ready every time give way now and then, so that the other tasks of their thread run.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::Poll;

/// What a thread's tasks get from the engine before one of them gives way, in bytes: what is read from disk at once.
const ALLOWANCE: usize = 1 << 20;
/// What the smallest piece counts for.
const LEAST: usize = 16 << 10;

thread_local! {
    static SPENT: Cell<usize> = const { Cell::new(0) };
}

/// Counts a piece that a future completes with.
pub(crate) fn spend(bytes: usize) {
    // A thread that is going away runs no tasks.
    let _ = SPENT.try_with(|spent| spent.set(spent.get().saturating_add(bytes.max(LEAST))));
}

/// Pending once if the thread's tasks have used up their allowance. Nothing is lost where the caller is dropped meanwhile:
/// it is called before a piece is taken.
pub(crate) async fn give_way() {
    if SPENT.try_with(Cell::get).unwrap_or_default() < ALLOWANCE {
        return;
    }
    let _ = SPENT.try_with(|spent| spent.set(0));
    let mut given = false;
    poll_fn(|context| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
