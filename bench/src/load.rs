//! One client that keeps many transactions on their way: closed loop with a fixed number outstanding, open loop at a rate.
//!
//! In an open loop a transaction is timed from when it was due, whether or not it could be sent then: a stall is paid
//! for by all that it delayed (no coordinated omission), those included that were due and not sent when the load ended.

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

/// How long there may be no answer at all, once nothing new is sent.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an answer is waited for where the queue is full.
const FULL: Duration = Duration::from_millis(1);

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
/// The first transaction that was refused at once, but for a full queue, which is waited for; that no answer came for [`PATIENCE`] after the
/// load had ended.
pub(crate) fn drive(region: &Region, pace: Pace, first: u64, plan: &mut dyn Plan) -> Result<u64, String> {
    let start = Instant::now();
    let mut silence = Silence::new(PATIENCE);
    let mut outstanding: VecDeque<Sent> = VecDeque::new();
    let mut number = first;
    let (mut refused, mut end) = (None, None);
    while refused.is_none() {
        let now = Instant::now();
        // In an open loop that has ended, only what was due by then is left to be sent.
        if end.is_none() && !plan.goes_on(now) {
            end = Some(now);
            silence.broken();
        }
        let due = due(pace, start, end.unwrap_or(now), outstanding.len(), number - first);
        let mut left = match (pace, end) {
            (Pace::Closed(_), Some(_)) => 0,
            _ => due,
        };
        while left > 0 && plan.wants(number) {
            let issued = match pace {
                Pace::Closed(_) => now,
                Pace::Open(rate) => start + Duration::from_secs_f64((number - first) as f64 / rate),
            };
            match region.try_submit(plan.make(number)) {
                Ok(ticket) => outstanding.push_back(Sent { number, issued, ticket }),
                Err(error) if error.kind() == ErrorKind::Busy => break,
                Err(error) => {
                    refused = Some(error.to_string());
                    break;
                }
            }
            (number, left) = (number + 1, left - 1);
        }
        if (end.is_some() && left == 0) || !plan.wants(number) {
            break;
        }
        let wait = match pace {
            Pace::Closed(_) => Duration::from_millis(100),
            Pace::Open(rate) => {
                let next = start + Duration::from_secs_f64((number - first) as f64 / rate);
                // Behind what was due there is no time to wait for, but the queue is full.
                next.saturating_duration_since(Instant::now()).max(if left > 0 { FULL } else { Duration::ZERO })
            }
        };
        silence.after(collect(&mut outstanding, wait, plan));
        // What is left may find the queue full for ever.
        if end.is_some() {
            silence.endured(outstanding.len())?;
        }
    }
    silence.broken();
    while !outstanding.is_empty() {
        silence.after(collect(&mut outstanding, Duration::from_secs(1), plan));
        silence.endured(outstanding.len())?;
    }
    refused.map_or(Ok(number), Err)
}

/// How long there has been no answer.
struct Silence {
    since: Instant,
    patience: Duration,
}

impl Silence {
    fn new(patience: Duration) -> Silence {
        Silence { since: Instant::now(), patience }
    }

    /// An answer came, or answers are waited for only from here on.
    fn broken(&mut self) {
        self.since = Instant::now();
    }

    /// So many answers came.
    fn after(&mut self, answers: usize) {
        if answers > 0 {
            self.broken();
        }
    }

    /// An error once it has lasted too long.
    fn endured(&self, outstanding: usize) -> Result<(), String> {
        if self.since.elapsed() <= self.patience {
            return Ok(());
        }
        Err(format!(
            "no answer in {} s, {outstanding} outstanding: one is lost, or the region hangs",
            self.patience.as_secs()
        ))
    }
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

/// Waits for the oldest answer, not longer than `wait`, and takes all that have come with it. Returns how many.
fn collect(outstanding: &mut VecDeque<Sent>, wait: Duration, plan: &mut dyn Plan) -> usize {
    let Some(oldest) = outstanding.front_mut() else {
        std::thread::sleep(wait);
        return 0;
    };
    let mut answers = 0;
    let mut next = oldest.ticket.wait_timeout(wait);
    let at = Instant::now();
    while let Some(outcome) = next {
        if let Some(sent) = outstanding.pop_front() {
            let latency = at.saturating_duration_since(sent.issued);
            plan.answered(Answer { number: sent.number, at, latency, outcome });
            answers += 1;
        }
        next = match outstanding.front_mut() {
            Some(sent) => (&mut sent.ticket).now_or_never(),
            None => None,
        };
    }
    answers
}

#[cfg(test)]
mod tests {
    use meridian::{AccountId, Ack, PartitionId};

    use super::*;
    use crate::compare::region_options;

    /// An open loop whose first transaction takes longer than the load lasts.
    struct Stalls {
        account: AccountId,
        until: Instant,
        latencies: Vec<Duration>,
    }

    const STALL: Duration = Duration::from_millis(200);

    impl Plan for Stalls {
        fn make(&mut self, number: u64) -> Transaction {
            if number == 0 {
                std::thread::sleep(STALL);
            }
            Transaction::new(self.account, PartitionId(1)).record(vec![7; 10])
        }

        fn answered(&mut self, answer: Answer) {
            answer.outcome.expect("committed");
            self.latencies.push(answer.latency);
        }

        fn goes_on(&mut self, now: Instant) -> bool {
            now < self.until
        }
    }

    #[test]
    fn a_silence_is_an_error_once_it_lasts_too_long() {
        let mut silence = Silence::new(Duration::from_millis(20));
        assert!(silence.endured(1).is_ok());
        std::thread::sleep(Duration::from_millis(30));
        silence.after(0);
        assert!(silence.endured(1).is_err(), "nothing was answered");
        silence.after(1);
        assert!(silence.endured(1).is_ok());
    }

    #[test]
    fn what_was_due_and_not_sent_when_an_open_loop_ends_counts_as_late() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disks: Vec<_> = (1..=3).map(|disk| dir.path().join(disk.to_string())).collect();
        let region = Region::create(region_options(&disks, "region", 4, false), ()).expect("made");
        let account = region.create_account("bench", Ack::Quorum).expect("an account");
        let mut plan = Stalls { account, until: Instant::now() + STALL / 2, latencies: Vec::new() };
        let next = drive(&region, Pace::Open(1_000.0), 0, &mut plan).expect("driven");
        region.close().expect("closed");
        // One was due each millisecond of the stall.
        assert!(next > 200 && plan.latencies.len() as u64 == next, "{next} sent, {} timed", plan.latencies.len());
        let late = plan.latencies.iter().filter(|latency| **latency > STALL / 2).count();
        assert!(late >= 90, "{late} were later than half of the stall");
    }
}
