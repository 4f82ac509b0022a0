//! One client that keeps many transactions on their way: closed loop with a fixed number outstanding, open loop at a rate.
//!
//! In an open loop a transaction is timed from when it was due, whether or not it could be sent then: a stall is paid
//! for by all that it delayed (no coordinated omission).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures::FutureExt;
use meridian::{Error, ErrorKind, Receipt, Region, Ticket, Transaction};

/// When the next transaction is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// As soon as fewer than so many are outstanding.
    Closed(usize),
    /// So many a second, evenly.
    Open(f64),
}

/// A transaction's end.
pub(crate) struct Answer {
    /// The number that `make` was asked for.
    pub(crate) number: u64,
    /// When the answer was seen.
    pub(crate) at: Instant,
    /// From its issue, or from when it was due.
    pub(crate) latency: Duration,
    /// What came of it.
    pub(crate) outcome: Result<Receipt, Error>,
}

/// What a load sends, and what it does with answers.
pub(crate) trait Plan {
    /// The transaction of this number; numbers are dense, from the first that [`drive`] was given.
    fn make(&mut self, number: u64) -> Transaction;
    /// Whether the transaction of this number is to be sent at all; the sending stops at the first that is not.
    fn wants(&self, _number: u64) -> bool {
        true
    }
    /// Takes an answer. Answers come in the order of their numbers.
    fn answered(&mut self, answer: Answer);
    /// Called often; `false` stops the sending. What is outstanding is still waited for.
    fn goes_on(&mut self, now: Instant) -> bool;
}

/// A transaction on its way.
struct Sent {
    number: u64,
    issued: Instant,
    ticket: Ticket,
}

/// Sends transactions numbered from `first` until the plan stops; returns the number after the last.
///
/// # Errors
/// The first transaction that was refused at once, but for a full queue, which is waited for.
pub(crate) fn drive(region: &Region, pace: Pace, first: u64, plan: &mut dyn Plan) -> Result<u64, Error> {
    let start = Instant::now();
    let mut outstanding: VecDeque<Sent> = VecDeque::new();
    let mut number = first;
    let mut refused = None;
    while refused.is_none() {
        let now = Instant::now();
        if !plan.goes_on(now) || !plan.wants(number) {
            break;
        }
        let due = due(pace, start, now, outstanding.len(), number - first);
        for _ in 0..due {
            if !plan.wants(number) {
                break;
            }
            let issued = match pace {
                Pace::Closed(_) => now,
                Pace::Open(rate) => start + Duration::from_secs_f64((number - first) as f64 / rate),
            };
            match region.try_submit(plan.make(number)) {
                Ok(ticket) => outstanding.push_back(Sent { number, issued, ticket }),
                Err(error) if error.kind() == ErrorKind::Busy => break,
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
            number += 1;
        }
        let wait = match pace {
            Pace::Closed(_) => Duration::from_millis(100),
            Pace::Open(rate) => {
                let next = start + Duration::from_secs_f64((number - first) as f64 / rate);
                next.saturating_duration_since(Instant::now())
            }
        };
        collect(&mut outstanding, wait, plan);
    }
    while !outstanding.is_empty() {
        collect(&mut outstanding, Duration::from_secs(1), plan);
    }
    refused.map_or(Ok(number), Err)
}

/// How many transactions are to be sent now.
fn due(pace: Pace, start: Instant, now: Instant, outstanding: usize, sent: u64) -> u64 {
    match pace {
        Pace::Closed(most) => most.saturating_sub(outstanding) as u64,
        Pace::Open(rate) => {
            let due = ((now - start).as_secs_f64() * rate) as u64 + 1;
            due.saturating_sub(sent)
        }
    }
}

/// Waits for the oldest answer, not longer than `wait`, and takes all that have come with it.
fn collect(outstanding: &mut VecDeque<Sent>, wait: Duration, plan: &mut dyn Plan) {
    let Some(oldest) = outstanding.front_mut() else {
        std::thread::sleep(wait);
        return;
    };
    let mut next = oldest.ticket.wait_timeout(wait);
    let at = Instant::now();
    while let Some(outcome) = next {
        if let Some(sent) = outstanding.pop_front() {
            let latency = at.saturating_duration_since(sent.issued);
            plan.answered(Answer { number: sent.number, at, latency, outcome });
        }
        next = match outstanding.front_mut() {
            Some(sent) => (&mut sent.ticket).now_or_never(),
            None => None,
        };
    }
}
