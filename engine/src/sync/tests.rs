//! What the pieces promise, on real threads; `loom-tests` explores their interleavings.
#![allow(clippy::disallowed_methods, reason = "tests start threads and take their time")]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use futures::future::join_all;

use super::intake::{Intake, MOST_BYTES, MOST_ITEMS, Reason, Refused};
use super::ticket::{Abandoned, ticket};
use super::watermark::{Closed, Watermark};
use crate::io::Doorbell;

/// Counts: the rings of a doorbell or the calls of a waker.
#[derive(Default)]
struct Count(AtomicUsize);

impl Count {
    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Doorbell for Count {
    fn ring(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn counting_waker() -> (Arc<Count>, Waker) {
    let count = Arc::new(Count::default());
    (Arc::clone(&count), Waker::from(count))
}

fn poll_once<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(waker))
}

fn intake<T>(items: usize, bytes: u64) -> (Intake<T>, Arc<Count>) {
    let bell = Arc::new(Count::default());
    (Intake::new(items, 0, bytes, bell.clone()), bell)
}

#[test]
fn a_ticket_answers_a_future_and_a_thread_alike() {
    let (resolver, waiting) = ticket();
    resolver.resolve(7);
    assert!(waiting.is_done());
    assert_eq!(block_on(waiting), Ok(7));

    let (resolver, waiting) = ticket();
    let client = thread::spawn(move || waiting.wait());
    thread::sleep(Duration::from_millis(10));
    resolver.resolve("late");
    assert_eq!(client.join().expect("no panic"), Ok("late"));
}

#[test]
fn a_dropped_resolver_abandons_the_ticket() {
    let (resolver, waiting) = ticket::<u8>();
    let client = thread::spawn(move || waiting.wait());
    drop(resolver);
    assert_eq!(client.join().expect("no panic"), Err(Abandoned));
}

#[test]
fn a_wait_that_ran_out_of_time_leaves_the_ticket_good() {
    let (resolver, mut waiting) = ticket();
    let start = Instant::now();
    assert_eq!(waiting.wait_timeout(Duration::from_millis(20)), None);
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert!(!waiting.is_done());
    resolver.resolve(1);
    assert_eq!(waiting.wait_timeout(Duration::ZERO), Some(Ok(1)));
    let (_resolver, mut waiting) = ticket::<u8>();
    assert_eq!(waiting.wait_timeout(Duration::ZERO), None);
}

#[test]
fn only_the_waker_of_the_last_poll_is_woken_and_only_by_the_caller_of_a_quiet_resolve() {
    let (resolver, mut waiting) = ticket();
    let ((first, first_waker), (last, last_waker)) = (counting_waker(), counting_waker());
    for waker in [&first_waker, &first_waker, &last_waker] {
        assert!(poll_once(&mut waiting, waker).is_pending());
    }
    let waker = resolver.resolve_quietly(3).expect("somebody waits");
    assert_eq!((first.get(), last.get()), (0, 0));
    waker.wake();
    assert_eq!((first.get(), last.get()), (0, 1));
    assert_eq!(poll_once(&mut waiting, &first_waker), Poll::Ready(Ok(3)));
}

#[test]
fn an_answer_to_a_dropped_ticket_is_dropped() {
    let (resolver, waiting) = ticket();
    let answer = Arc::new(());
    drop(waiting);
    resolver.resolve(Arc::clone(&answer));
    assert_eq!(Arc::strong_count(&answer), 1);
}

#[test]
fn items_and_bytes_count_until_they_are_released() {
    let (intake, _) = intake(2, 10);
    assert_eq!(intake.try_push('a', 6), Ok(()));
    assert_eq!(intake.try_push('b', 5), Err(Refused { reason: Reason::Full, item: 'b' }));
    assert_eq!(intake.try_push('b', 4), Ok(()));
    assert_eq!((intake.len(), intake.in_use()), (2, (2, 10)));
    assert_eq!(intake.pop(), Some('a'));
    assert_eq!(intake.try_push('c', 0).map_err(|refused| refused.reason), Err(Reason::Full));
    intake.release(1, 6);
    assert_eq!(intake.try_push('c', 6), Ok(()));
    assert_eq!((intake.pop(), intake.pop(), intake.pop()), (Some('b'), Some('c'), None));
    intake.release(2, 10);
    assert_eq!(intake.in_use(), (0, 0));
}

#[test]
fn the_largest_item_goes_in_and_a_larger_one_never() {
    let (intake, _) = intake(MOST_ITEMS.min(4) as usize, MOST_BYTES);
    assert_eq!(intake.try_push((), MOST_BYTES), Ok(()));
    assert_eq!(intake.try_push((), 1).map_err(|refused| refused.reason), Err(Reason::Full));
    intake.release(1, MOST_BYTES);
    assert_eq!(intake.push_blocking((), MOST_BYTES + 1).map_err(|refused| refused.reason), Err(Reason::TooLarge));
    assert_eq!(intake.push_blocking((), u64::MAX).map_err(|refused| refused.reason), Err(Reason::TooLarge));
}

#[test]
#[should_panic(expected = "released 1 items")]
fn more_cannot_be_released_than_was_taken() {
    let (intake, _) = intake::<()>(1, 1);
    intake.release(1, 0);
}

#[test]
fn those_in_line_come_in_by_arrival_and_nobody_overtakes_them() {
    let (intake, _) = intake(8, 10);
    intake.try_push(0, 10).expect("room");
    let (woken, waker) = counting_waker();
    let (mut large, mut small) = (intake.push(1, 9), intake.push(2, 1));
    assert!(poll_once(&mut large, &waker).is_pending());
    assert!(poll_once(&mut small, &waker).is_pending());
    assert_eq!(intake.pop(), Some(0));
    intake.release(0, 5);
    assert_eq!(intake.try_push(3, 1).map_err(|refused| refused.reason), Err(Reason::Full));
    assert_eq!((intake.pop(), woken.get()), (None, 0));
    intake.release(1, 5);
    assert_eq!((intake.pop(), intake.pop(), woken.get()), (Some(1), Some(2), 2));
    assert_eq!(poll_once(&mut small, &waker), Poll::Ready(Ok(())));
    assert_eq!(poll_once(&mut large, &waker), Poll::Ready(Ok(())));
    assert_eq!(intake.in_use(), (2, 10));
}

#[test]
fn a_push_that_is_given_up_leaves_the_line_to_those_behind() {
    let (intake, bell) = intake(8, 10);
    intake.try_push(0, 5).expect("room");
    let (woken, waker) = counting_waker();
    let (mut large, mut small) = (intake.push(1, 6), intake.push(2, 5));
    assert!(poll_once(&mut large, &waker).is_pending());
    assert!(poll_once(&mut small, &waker).is_pending());
    assert_eq!(intake.pop(), Some(0));
    assert!(intake.prepare_sleep(1));
    drop(large);
    assert_eq!((woken.get(), bell.get()), (1, 1));
    assert_eq!((intake.pop(), intake.pop()), (Some(2), None));
    assert_eq!(intake.try_push(3, 0), Ok(()));
}

#[test]
fn the_bell_rings_once_for_a_sleeper_and_never_for_one_awake() {
    let (intake, bell) = intake(8, 10);
    intake.try_push(0, 1).expect("room");
    assert!(!intake.prepare_sleep(1));
    assert_eq!(intake.pop(), Some(0));
    assert!(intake.prepare_sleep(1));
    intake.try_push(1, 1).expect("room");
    intake.try_push(2, 1).expect("room");
    intake.nudge();
    assert_eq!(bell.get(), 1);
    intake.awake();
    intake.try_push(3, 1).expect("room");
    assert_eq!(bell.get(), 1);
}

#[test]
fn a_consumer_that_wants_several_is_rung_for_by_the_last_of_them_or_by_a_nudge() {
    let (intake, bell) = intake(8, 10);
    intake.try_push(0, 1).expect("room");
    assert!(intake.prepare_sleep(3), "one is too few to stay up for");
    intake.try_push(1, 1).expect("room");
    assert_eq!(bell.get(), 0);
    intake.try_push(2, 1).expect("room");
    assert_eq!(bell.get(), 1);
    assert!(!intake.prepare_sleep(3));
    assert!(intake.prepare_sleep(4));
    intake.nudge();
    assert_eq!(bell.get(), 2);
}

#[test]
fn a_close_gives_back_what_is_in_line_and_leaves_what_is_queued() {
    let (intake, bell) = intake(1, 10);
    intake.try_push(0, 1).expect("room");
    let (woken, waker) = counting_waker();
    let mut push = intake.push(1, 1);
    assert!(poll_once(&mut push, &waker).is_pending());
    assert!(!intake.is_drained());
    intake.close();
    assert_eq!((woken.get(), bell.get()), (1, 0));
    assert_eq!(poll_once(&mut push, &waker), Poll::Ready(Err(Refused { reason: Reason::Closed, item: 1 })));
    assert_eq!(intake.push_blocking(2, 1), Err(Refused { reason: Reason::Closed, item: 2 }));
    assert_eq!(intake.pop(), Some(0));
    assert!(!intake.is_drained());
    intake.release(1, 1);
    assert!(intake.is_drained());
}

#[test]
fn an_abandoned_intake_drops_what_it_holds() {
    let (intake, _) = intake(4, 10);
    let (resolver, waiting) = ticket::<u8>();
    intake.try_push(resolver, 1).expect("room");
    intake.abandon();
    assert_eq!(waiting.wait(), Err(Abandoned));
    assert_eq!(intake.try_push(ticket::<u8>().0, 1).map_err(|refused| refused.reason), Err(Reason::Closed));
}

/// A consumer that sleeps like the log thread: parked, rung awake.
struct Unparks(thread::Thread);

impl Doorbell for Unparks {
    fn ring(&self) {
        self.0.unpark();
    }
}

#[test]
fn many_clients_with_little_room_get_everything_through_once_and_in_their_order() {
    const CLIENTS: usize = 8;
    const EACH: usize = 2_000;
    let intake = Arc::new(Intake::<(usize, usize)>::new(16, 0, 100, Arc::new(Unparks(thread::current()))));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let intake = Arc::clone(&intake);
            thread::spawn(move || {
                for i in 0..EACH {
                    let bytes = (i * 31 % 100) as u64;
                    let pushed = match client % 2 {
                        0 => intake.push_blocking((client, i), bytes),
                        _ => block_on(intake.push((client, i), bytes)),
                    };
                    pushed.expect("open, and within the bound");
                }
            })
        })
        .collect();
    let mut next = [0; CLIENTS];
    loop {
        while let Some((client, i)) = intake.pop() {
            assert_eq!(next[client], i);
            next[client] += 1;
            intake.release(1, (i * 31 % 100) as u64);
        }
        if next == [EACH; CLIENTS] {
            break;
        }
        if intake.prepare_sleep(1) {
            let slept = Instant::now();
            thread::park_timeout(Duration::from_secs(20));
            assert!(slept.elapsed() < Duration::from_secs(20), "nobody rang");
        }
        intake.awake();
    }
    for client in clients {
        client.join().expect("no panic");
    }
    intake.close();
    assert!(intake.is_drained());
}

#[test]
fn a_watermark_wakes_whom_it_reached_and_nobody_else() {
    let mark = Watermark::new(3);
    let ((five, five_waker), (nine, nine_waker)) = (counting_waker(), counting_waker());
    let (mut for_five, mut for_nine) = (mark.wait_for(5), mark.wait_for(9));
    assert!(poll_once(&mut for_five, &five_waker).is_pending());
    assert!(poll_once(&mut for_nine, &nine_waker).is_pending());
    assert_eq!(block_on(mark.wait_for(3)), Ok(()));
    mark.advance(4);
    assert_eq!((five.get(), nine.get()), (0, 0));
    mark.advance(8);
    assert_eq!((five.get(), nine.get()), (1, 0));
    assert_eq!(poll_once(&mut for_five, &five_waker), Poll::Ready(Ok(())));
    drop(for_nine);
    mark.advance(10);
    assert_eq!((nine.get(), mark.get()), (0, 10));
}

#[test]
#[should_panic(expected = "does not go back")]
fn a_watermark_does_not_go_back() {
    let mark = Watermark::new(3);
    mark.advance(2);
}

#[test]
fn a_closed_watermark_keeps_nobody_waiting() {
    let mark = Arc::new(Watermark::new(1));
    let waiting = {
        let mark = Arc::clone(&mark);
        thread::spawn(move || mark.wait_for_blocking(2))
    };
    thread::sleep(Duration::from_millis(5));
    mark.close();
    assert_eq!(waiting.join().expect("no panic"), Err(Closed));
    assert_eq!(block_on(mark.wait_for(2)), Err(Closed));
    assert_eq!(mark.wait_for_blocking(1), Ok(()));
}

#[test]
fn waiters_on_threads_and_in_futures_see_every_number_reached() {
    let mark = Arc::new(Watermark::new(0));
    let waiters: Vec<_> = (0..4)
        .map(|waiter| {
            let mark = Arc::clone(&mark);
            thread::spawn(move || {
                for number in (waiter..20_000).step_by(7) {
                    match waiter % 2 {
                        0 => mark.wait_for_blocking(number).expect("open"),
                        _ => {
                            let both = join_all([mark.wait_for(number), mark.wait_for(number + 1)]);
                            assert_eq!(block_on(both), [Ok(()), Ok(())]);
                        }
                    }
                    assert!(mark.get() >= number);
                }
            })
        })
        .collect();
    for number in 0..=20_000 {
        mark.advance(number);
    }
    for waiter in waiters {
        waiter.join().expect("no panic");
    }
}

#[test]
fn the_ends_go_to_any_thread() {
    fn sent<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    sent::<super::ticket::Resolver<u8>>();
    shared::<super::ticket::Ticket<u8>>();
    shared::<Intake<std::cell::Cell<u8>>>();
    shared::<Watermark>();
    shared::<super::intake::Push<'static, u8>>();
}

#[test]
fn what_goes_ahead_is_let_in_past_a_full_queue_and_a_line_up_to_its_own_bound() {
    let intake = Intake::new(1, 1, 100, Arc::new(Count::default()) as Arc<_>);
    intake.try_push("first", 0).expect("room");
    let (_, waker) = counting_waker();
    let mut waits = Box::pin(intake.push("in line", 0));
    assert!(poll_once(&mut waits, &waker).is_pending());
    intake.push_ahead("ahead").expect("it need not wait");
    assert_eq!(intake.push_ahead("too many").expect_err("its bound").reason, Reason::Full);
    assert_eq!((intake.pop(), intake.pop(), intake.pop()), (Some("first"), Some("ahead"), None));
    intake.release(2, 0);
    assert!(poll_once(&mut waits, &waker).is_ready(), "the line moves on");
    intake.close();
    assert_eq!(intake.push_ahead("late").expect_err("closed").reason, Reason::Closed);
}
