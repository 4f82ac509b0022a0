//! Committing flights from this process: every answer goes into the ledger and onto the time line.

use std::time::{Duration, Instant};

use meridian::Transaction;

use super::Job;
use crate::audit::Ledger;
use crate::flight_load::FlightLoad;
use crate::flights::Flights;
use crate::load::{Answer, Plan};
use crate::meter::Meter;
use crate::progress::Progress;
use crate::report::{latency, number};

/// How often the progress is told.
const TELL: Duration = Duration::from_millis(200);

/// Commits flights until `goes_on`, given the time and how many transactions were acknowledged, says no.
pub(super) struct FlightPlan<'p, G> {
    load: FlightLoad<'p>,
    flights: &'p Flights,
    ledger: &'p mut Ledger,
    meter: &'p mut Meter,
    progress: &'p mut Progress,
    goes_on: G,
    told: (Instant, u64),
    /// Called with each acknowledgement's moment and latency.
    seen: Box<dyn FnMut(Instant, Duration) + 'p>,
    acknowledged: u64,
    /// Records acknowledged.
    pub(super) records: u64,
    /// Transactions that failed.
    pub(super) failed: u64,
}

impl<'p, G: FnMut(Instant, u64) -> bool> FlightPlan<'p, G> {
    /// A plan over the job's ledger and meter.
    pub(super) fn new(job: &'p mut Job<'_>, goes_on: G) -> FlightPlan<'p, G> {
        FlightPlan {
            load: FlightLoad::new(job.flights, job.account),
            flights: job.flights,
            ledger: &mut job.ledger,
            meter: &mut job.meter,
            progress: &mut job.progress,
            goes_on,
            told: (Instant::now(), 0),
            seen: Box::new(|_, _| {}),
            acknowledged: 0,
            records: 0,
            failed: 0,
        }
    }

    /// Tells `seen` of each acknowledgement's moment and latency.
    pub(super) fn watched_by(mut self, seen: impl FnMut(Instant, Duration) + 'p) -> FlightPlan<'p, G> {
        self.seen = Box::new(seen);
        self
    }
}

impl<G: FnMut(Instant, u64) -> bool> Plan for FlightPlan<'_, G> {
    fn make(&mut self, number: u64) -> Transaction {
        self.load.transaction(number)
    }

    fn answered(&mut self, answer: Answer) {
        if answer.outcome.is_err() {
            self.failed += 1;
            return;
        }
        let records = self.load.records(answer.number);
        self.ledger.acknowledge(self.flights, answer.number);
        self.meter.acknowledged(answer.at, answer.latency, records);
        (self.seen)(answer.at, answer.latency);
        self.acknowledged += 1;
        self.records += records;
        let since = answer.at - self.told.0;
        if since >= TELL {
            let rate = (self.records - self.told.1) as f64 / since.as_secs_f64();
            let message =
                format!("{} flights/s, the last after {}", number(rate), latency(answer.latency.as_secs_f64() * 1e6));
            self.progress.at(self.records, &message);
            self.told = (answer.at, self.records);
        }
    }

    fn goes_on(&mut self, now: Instant) -> bool {
        (self.goes_on)(now, self.acknowledged)
    }
}
