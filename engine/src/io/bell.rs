//! The handshake between a log thread about to sleep and whoever has news for it: only waking a sleeper costs a system call.

use std::task::Waker;

use crate::sync::prims::{AtomicU8, AtomicWaker, Doorbell, Ordering};

/// The log thread sleeps, or is about to.
const ASLEEP: u8 = 1;
/// The engine's doorbell was rung.
const RUNG: u8 = 2;
/// An operation has finished.
const NEWS: u8 = 4;

/// One word of flags, changed only by read-modify-write steps: a ring and the step to sleep have an order, and whichever
/// comes second sees the other.
#[derive(Default)]
pub(super) struct Bell {
    state: AtomicU8,
    sleeper: AtomicWaker,
}

/// What a log thread finds when it looks at its bell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Heard {
    /// The engine's doorbell was rung.
    pub(super) rung: bool,
    /// An operation has finished.
    pub(super) news: bool,
}

impl Bell {
    /// Says that the log thread sleeps from now on, unless it returns false: then there is something to answer. Called
    /// again before going back to sleep after a wake-up for no reason.
    pub(super) fn sleep(&self, waker: &Waker) -> bool {
        // First the waker: who finds the thread asleep finds it too.
        self.sleeper.register(waker);
        match self.state.compare_exchange(0, ASLEEP, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(ASLEEP) => true,
            Err(_) => false,
        }
    }

    /// Says that the log thread is awake, and what it heard since the last answer.
    pub(super) fn answer(&self) -> Heard {
        heard(self.state.swap(0, Ordering::AcqRel))
    }

    /// Whether there is nothing to answer.
    pub(super) fn is_quiet(&self) -> bool {
        self.state.load(Ordering::Relaxed) == 0
    }

    /// As [`Bell::answer`] by a thread that does not mean to sleep: the ring is kept for one that does.
    pub(super) fn look(&self) -> Heard {
        heard(self.state.fetch_and(RUNG, Ordering::AcqRel))
    }

    /// Says that an operation has finished.
    pub(super) fn news(&self) {
        self.raise(NEWS);
    }

    fn raise(&self, flag: u8) {
        if self.state.fetch_or(flag, Ordering::AcqRel) == ASLEEP {
            self.sleeper.wake();
        }
    }
}

fn heard(state: u8) -> Heard {
    Heard { rung: state & RUNG != 0, news: state & NEWS != 0 }
}

impl Doorbell for Bell {
    fn ring(&self) {
        self.raise(RUNG);
    }
}
