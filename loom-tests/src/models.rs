//! What must hold in every interleaving of a few threads. A lost wake-up shows as a deadlock.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64 as Counter, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use loom::sync::atomic::AtomicU64;
use loom::thread::{self, JoinHandle};

use super::bell::Bell;
use super::intake::{Intake, Reason};
use super::park::block_on;
use super::prims::{Arc, Doorbell, Ordering, Parker, Signal};
use super::ticket::{Abandoned, ticket};
use super::watermark::{Closed, Watermark};
use crate::explore;

fn poll_once<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

fn done<T>(thread: JoinHandle<T>) -> T {
    thread.join().expect("a panic ends the model")
}

/// Something that a client leaves behind, counted when it is dropped.
struct Payload(Arc<Counter>);

impl Drop for Payload {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

pub(crate) fn a_waiting_thread_gets_the_answer() {
    explore(|| {
        let (resolver, waiting) = ticket();
        let log = thread::spawn(move || resolver.resolve(7));
        assert_eq!(waiting.wait(), Ok(7));
        done(log);
    });
}

pub(crate) fn a_waiting_thread_learns_that_nobody_answers() {
    explore(|| {
        let (resolver, waiting) = ticket::<u8>();
        let log = thread::spawn(move || drop(resolver));
        assert_eq!(waiting.wait(), Err(Abandoned));
        done(log);
    });
}

pub(crate) fn a_poll_with_another_waker_is_the_one_woken() {
    explore(|| {
        let (resolver, mut waiting) = ticket();
        let log = thread::spawn(move || resolver.resolve(7));
        // First in one task, then in another: only the latter sleeps.
        if let Poll::Ready(answer) = poll_once(&mut waiting, &Waker::from(Signal::new())) {
            assert_eq!(answer, Ok(7));
        } else {
            assert_eq!(block_on(waiting), Ok(7));
        }
        done(log);
    });
}

pub(crate) fn a_wait_out_of_time_can_be_repeated() {
    explore(|| {
        let (resolver, mut waiting) = ticket();
        let log = thread::spawn(move || resolver.resolve(7));
        match waiting.wait_timeout(Duration::ZERO) {
            Some(answer) => assert_eq!(answer, Ok(7)),
            None => {
                let was_done = waiting.is_done();
                assert_eq!(
                    waiting.wait_timeout(Duration::ZERO).or_else(|| (!was_done).then(|| waiting.wait())),
                    Some(Ok(7))
                );
            }
        }
        done(log);
    });
}

pub(crate) fn an_answer_to_a_leaving_client_is_dropped_once() {
    explore(|| {
        let dropped = Arc::new(Counter::new(0));
        let (resolver, mut waiting) = ticket();
        let payload = Payload(Arc::clone(&dropped));
        let log = thread::spawn(move || resolver.resolve(payload));
        let answer = poll_once(&mut waiting, Waker::noop());
        drop(waiting);
        done(log);
        assert_eq!(dropped.load(SeqCst), if answer.is_ready() { 0 } else { 1 });
    });
}

pub(crate) fn quiet_answers_arrive_before_they_are_announced() {
    explore(|| {
        let ((first, one), (second, two)) = (ticket(), ticket());
        let log = thread::spawn(move || {
            let wakers = [first.resolve_quietly(1), second.resolve_quietly(2)];
            wakers.into_iter().flatten().for_each(Waker::wake);
        });
        let client = thread::spawn(move || assert_eq!(two.wait(), Ok(2)));
        assert_eq!(one.wait(), Ok(1));
        done(client);
        done(log);
    });
}

/// An intake and the doorbell of its consumer.
fn intake<T>(items: usize, bytes: u64) -> (Arc<Intake<T>>, Arc<Signal>) {
    let bell = Signal::new();
    (Arc::new(Intake::new(items, 0, bytes, bell.clone())), bell)
}

/// Pops one item, sleeping for it like the log thread.
fn next<T>(intake: &Intake<T>, bell: &Signal) -> T {
    loop {
        if let Some(item) = intake.pop() {
            return item;
        }
        if intake.prepare_sleep(1) {
            bell.wait();
        }
        intake.awake();
    }
}

pub(crate) fn a_sleeping_consumer_gets_every_push() {
    explore(|| {
        let (intake, bell) = intake(2, 2);
        let producers: Vec<_> = [1, 2]
            .map(|item| {
                let intake = Arc::clone(&intake);
                thread::spawn(move || intake.try_push(item, 1).expect("room for both"))
            })
            .into();
        assert_eq!(next(&intake, &bell) + next(&intake, &bell), 3);
        producers.into_iter().for_each(done);
    });
}

pub(crate) fn a_consumer_that_wants_two_is_woken_for_both() {
    explore(|| {
        let (intake, bell) = intake(2, 2);
        let producers: Vec<_> = [1, 2]
            .map(|item| {
                let intake = Arc::clone(&intake);
                thread::spawn(move || intake.try_push(item, 1).expect("room for both"))
            })
            .into();
        if intake.prepare_sleep(2) {
            bell.wait();
        }
        intake.awake();
        assert_eq!(intake.pop().zip(intake.pop()).map(|(one, two)| one + two), Some(3));
        producers.into_iter().for_each(done);
    });
}

pub(crate) fn a_nudge_is_noticed_by_a_consumer_about_to_sleep() {
    explore(|| {
        let (intake, bell) = intake::<u8>(1, 1);
        let request = Arc::new(AtomicU64::new(0));
        let other = {
            let (intake, request) = (Arc::clone(&intake), Arc::clone(&request));
            thread::spawn(move || {
                request.store(1, Ordering::Relaxed);
                intake.nudge();
            })
        };
        loop {
            let ready = intake.prepare_sleep(1);
            if request.load(Ordering::Relaxed) == 1 {
                break;
            }
            assert!(ready, "nothing was pushed");
            bell.wait();
            intake.awake();
        }
        done(other);
    });
}

pub(crate) fn little_room_lets_everybody_in() {
    explore(|| {
        let (intake, bell) = intake(1, 1);
        intake.try_push(3, 1).expect("room for one");
        let producers: Vec<_> = [1, 2]
            .map(|item| {
                let intake = Arc::clone(&intake);
                thread::spawn(move || intake.push_blocking(item, 1).expect("it stays open"))
            })
            .into();
        let mut sum = 0;
        for _ in 0..3 {
            sum += next(&intake, &bell);
            intake.release(1, 1);
        }
        assert_eq!(sum, 6);
        producers.into_iter().for_each(done);
        assert_eq!(intake.in_use(), (0, 0));
        assert_eq!(intake.try_push(4, 1), Ok(()));
    });
}

pub(crate) fn what_goes_ahead_waits_for_nobody_and_nobody_is_forgotten_for_it() {
    explore(|| {
        let bell = Signal::new();
        let intake = Arc::new(Intake::new(1, 1, 1, bell.clone()));
        intake.try_push(1, 1).expect("room for one");
        let (line, ahead) = (Arc::clone(&intake), Arc::clone(&intake));
        let line = thread::spawn(move || line.push_blocking(2, 1).expect("it stays open"));
        let ahead = thread::spawn(move || ahead.push_ahead(4).expect("room beyond the bound"));
        let mut sum = 0;
        for _ in 0..3 {
            let item = next(&intake, &bell);
            sum += item;
            intake.release(1, u64::from(item != 4));
        }
        assert_eq!(sum, 7);
        done(line);
        done(ahead);
        assert_eq!(intake.in_use(), (0, 0));
    });
}

pub(crate) fn a_late_push_finds_the_room_just_released() {
    explore(|| {
        let (intake, _) = intake(1, 1);
        intake.try_push(1, 1).expect("room");
        let producer = {
            let intake = Arc::clone(&intake);
            thread::spawn(move || intake.try_push(2, 1).is_ok())
        };
        assert_eq!(intake.pop(), Some(1));
        intake.release(1, 1);
        let pushed = done(producer);
        assert_eq!(intake.pop(), pushed.then_some(2));
    });
}

pub(crate) fn a_push_given_up_does_not_hold_up_the_next() {
    explore(|| {
        let (intake, bell) = intake(3, 2);
        intake.try_push(1, 1).expect("room");
        assert_eq!(intake.pop(), Some(1));
        let impatient = {
            let intake = Arc::clone(&intake);
            thread::spawn(move || assert!(poll_once(&mut intake.push(2, 2), Waker::noop()).is_pending()))
        };
        let patient = {
            let intake = Arc::clone(&intake);
            thread::spawn(move || intake.push_blocking(3, 1).expect("it stays open"))
        };
        // Nothing is released: the small one comes in because the large one before it leaves.
        assert_eq!(next(&intake, &bell), 3);
        done(impatient);
        done(patient);
        assert_eq!(intake.in_use(), (2, 2));
    });
}

pub(crate) fn a_push_given_up_while_it_is_let_in_is_in_or_gone() {
    explore(|| {
        let (intake, _) = intake(1, 1);
        intake.try_push(1, 1).expect("room");
        assert_eq!(intake.pop(), Some(1));
        let impatient = {
            let intake = Arc::clone(&intake);
            thread::spawn(move || poll_once(&mut intake.push(2, 1), Waker::noop()).is_ready())
        };
        intake.release(1, 1);
        let pushed = done(impatient);
        match intake.pop() {
            Some(item) => {
                assert_eq!(item, 2);
                intake.release(1, 1);
            }
            None => assert!(!pushed),
        }
        assert_eq!(intake.try_push(3, 1), Ok(()));
    });
}

pub(crate) fn a_close_answers_everybody_and_loses_nothing() {
    explore(|| {
        let (intake, bell) = intake(1, 1);
        let producers = [1, 2].map(|item| {
            let intake = Arc::clone(&intake);
            thread::spawn(move || match intake.push_blocking(item, 1) {
                Ok(()) => item,
                Err(refused) => {
                    assert_eq!((refused.reason, refused.item), (Reason::Closed, item));
                    0
                }
            })
        });
        intake.close();
        let mut popped = 0;
        while !intake.is_drained() {
            popped += next(&intake, &bell);
            intake.release(1, 1);
        }
        assert_eq!(intake.pop(), None);
        assert_eq!(producers.into_iter().map(done).sum::<u64>(), popped);
    });
}

pub(crate) fn an_abandoned_intake_leaves_nobody_waiting() {
    explore(|| {
        let (intake, _) = intake(1, 1);
        let producers = [1, 2].map(|_| {
            let intake = Arc::clone(&intake);
            thread::spawn(move || {
                let (resolver, waiting) = ticket::<u8>();
                let pushed = intake.push_blocking(resolver, 1).map_err(|refused| refused.reason);
                assert!(matches!(pushed, Ok(()) | Err(Reason::Closed)));
                assert_eq!(waiting.wait(), Err(Abandoned));
            })
        });
        intake.abandon();
        producers.into_iter().for_each(done);
    });
}

/// Sleeps like a driver's poll, unless there is something already.
fn sleep_until_heard(bell: &Bell) {
    let parker = Parker::new();
    loop {
        let heard = bell.answer();
        if heard.rung || heard.news {
            return;
        }
        if bell.sleep(parker.waker()) {
            parker.park();
        }
    }
}

pub(crate) fn a_ring_is_answered() {
    explore(|| {
        let bell = Arc::new(Bell::default());
        let other = {
            let bell = Arc::clone(&bell);
            thread::spawn(move || bell.ring())
        };
        sleep_until_heard(&bell);
        done(other);
    });
}

pub(crate) fn a_look_keeps_the_ring_for_the_next_sleep() {
    explore(|| {
        let bell = Arc::new(Bell::default());
        let other = {
            let bell = Arc::clone(&bell);
            thread::spawn(move || bell.ring())
        };
        bell.look();
        sleep_until_heard(&bell);
        done(other);
    });
}

pub(crate) fn what_is_left_before_a_ring_is_found_after_it() {
    explore(|| {
        let (bell, left) = (Arc::new(Bell::default()), Arc::new([0, 0].map(AtomicU64::new)));
        let others = [0, 1].map(|place| {
            let (bell, left) = (Arc::clone(&bell), Arc::clone(&left));
            thread::spawn(move || {
                left[place].store(5, Ordering::Relaxed);
                if place == 0 { bell.ring() } else { bell.news() }
            })
        });
        while left.iter().any(|left| left.load(Ordering::Relaxed) != 5) {
            sleep_until_heard(&bell);
        }
        others.into_iter().for_each(done);
    });
}

pub(crate) fn waiters_see_the_number_they_wait_for() {
    explore(|| {
        let mark = Arc::new(Watermark::new(0));
        let waiters = [1, 2].map(|number| {
            let mark = Arc::clone(&mark);
            thread::spawn(move || {
                assert_eq!(mark.wait_for_blocking(number), Ok(()));
                assert!(mark.get() >= number);
            })
        });
        for (number, waiter) in (1..).zip(waiters) {
            mark.advance(number);
            done(waiter);
        }
    });
}

pub(crate) fn what_was_done_before_an_advance_is_seen_after_it() {
    explore(|| {
        let (mark, data) = (Arc::new(Watermark::new(0)), Arc::new(AtomicU64::new(0)));
        let waiter = {
            let (mark, data) = (Arc::clone(&mark), Arc::clone(&data));
            thread::spawn(move || {
                assert_eq!(mark.wait_for_blocking(1), Ok(()));
                assert_eq!(data.load(Ordering::Relaxed), 5);
            })
        };
        data.store(5, Ordering::Relaxed);
        mark.advance(1);
        done(waiter);
    });
}

pub(crate) fn a_wait_given_up_does_not_hide_another() {
    explore(|| {
        let mark = Arc::new(Watermark::new(0));
        let impatient = {
            let mark = Arc::clone(&mark);
            thread::spawn(move || {
                let _ = poll_once(&mut mark.wait_for(1), Waker::noop());
            })
        };
        let patient = {
            let mark = Arc::clone(&mark);
            thread::spawn(move || assert_eq!(mark.wait_for_blocking(2), Ok(())))
        };
        mark.advance(2);
        done(impatient);
        done(patient);
    });
}

pub(crate) fn a_close_ends_the_waits() {
    explore(|| {
        let mark = Arc::new(Watermark::new(0));
        let waiters = [1, 2].map(|number| {
            let mark = Arc::clone(&mark);
            thread::spawn(move || mark.wait_for_blocking(number))
        });
        mark.advance(1);
        mark.close();
        let [one, two] = waiters.map(done);
        assert_eq!((one, two), (Ok(()), Err(Closed)));
    });
}
