//! The raw commit path under load: records of one size, from one pipelining client, async clients or blocking threads.

use std::cell::RefCell;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use futures::executor::LocalPool;
use futures::future::join_all;
use hdrhistogram::Histogram;
use meridian::{AccountId, Ack, Error, PartitionId, Region, Transaction};

use crate::compare::Payloads;
use crate::latency;
use crate::limit::Slice;
use crate::load::{Answer, Pace, Plan, drive};
use crate::machine::CpuSample;

/// Partitions that the records are spread over.
const PARTITIONS: u64 = 64;

/// Who the clients are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    /// One thread that keeps as many commits outstanding as there are clients, and takes them in order.
    Pipeline,
    /// A future per client, all on one thread.
    Async,
    /// A blocking thread per client.
    Threads,
}

/// What is committed, and how.
#[derive(Clone)]
pub(crate) struct CommitLoad {
    /// The account to commit to.
    pub(crate) account: AccountId,
    /// The records' payloads.
    pub(crate) payloads: Payloads,
    /// Commits outstanding in a closed loop.
    pub(crate) clients: usize,
    /// Commits a second in an open loop.
    pub(crate) rate: Option<f64>,
    /// When a commit counts.
    pub(crate) ack: Ack,
    /// Who commits.
    pub(crate) by: By,
}

impl CommitLoad {
    fn transaction(&self, number: u64) -> Transaction {
        let partition = PartitionId(u128::from(number % PARTITIONS) + 1);
        Transaction::new(self.account, partition).record(self.payloads.of(number)).ack(self.ack)
    }

    /// Commits for `duration`, waits for the last, and says what was measured.
    ///
    /// # Errors
    /// The first commit that failed.
    pub(crate) fn run(&self, region: &Region, duration: Duration) -> Result<Slice, String> {
        let cpu = CpuSample::now();
        let mut slice = match (self.by, self.rate) {
            (By::Pipeline, None) => self.pipeline(region, Pace::Closed(self.clients), duration),
            // An open loop has as many clients as are needed: one thread that never waits stands for them.
            (_, Some(rate)) => self.pipeline(region, Pace::Open(rate), duration),
            (By::Async, None) => self.futures(region, duration).map_err(text),
            (By::Threads, None) => self.threads(region, duration).map_err(text),
        }?;
        slice.cpu = cpu.until(&CpuSample::now());
        Ok(slice)
    }

    fn pipeline(&self, region: &Region, pace: Pace, duration: Duration) -> Result<Slice, String> {
        let start = Instant::now();
        let mut plan = Pipelined { load: self, slice: Slice::empty(), until: start + duration, failed: None };
        drive(region, pace, 0, &mut plan)?;
        plan.slice.elapsed = start.elapsed();
        plan.failed.map_or(Ok(plan.slice), |error| Err(text(error)))
    }

    fn futures(&self, region: &Region, duration: Duration) -> Result<Slice, Error> {
        let latencies = RefCell::new(latency::histogram());
        let start = Instant::now();
        let client = async |client: usize| -> Result<(), Error> {
            let mut now = start;
            while now - start < duration {
                region.submit_async(self.transaction(client as u64)).await?.await?;
                let done = Instant::now();
                latency::record(&mut latencies.borrow_mut(), done - now, 1);
                now = done;
            }
            Ok(())
        };
        let ends = LocalPool::new().run_until(join_all((0..self.clients).map(client)));
        let elapsed = start.elapsed();
        ends.into_iter().collect::<Result<(), Error>>()?;
        Ok(finished(elapsed, latencies.into_inner()))
    }

    fn threads(&self, region: &Region, duration: Duration) -> Result<Slice, Error> {
        let (barrier, stop) = (Barrier::new(self.clients + 1), AtomicBool::new(false));
        let mut latencies = latency::histogram();
        let mut elapsed = Duration::ZERO;
        std::thread::scope(|scope| {
            let client = |client: usize| {
                barrier.wait();
                let mut taken = Vec::with_capacity(4096);
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    region.commit(self.transaction(client as u64))?;
                    taken.push(start.elapsed());
                }
                Ok(taken)
            };
            let clients: Vec<_> = (0..self.clients).map(|number| scope.spawn(move || client(number))).collect();
            barrier.wait();
            let start = Instant::now();
            std::thread::sleep(duration);
            stop.store(true, Ordering::Relaxed);
            let ends: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
            elapsed = start.elapsed();
            for end in ends {
                let taken: Result<Vec<Duration>, Error> = end.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                taken?.into_iter().for_each(|each| latency::record(&mut latencies, each, 1));
            }
            Ok(())
        })?;
        Ok(finished(elapsed, latencies))
    }
}

/// The text of any error.
fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn finished(elapsed: Duration, latency: Histogram<u64>) -> Slice {
    Slice { records: latency.len(), elapsed, latency, ..Slice::empty() }
}

/// The plan of the one client that pipelines.
struct Pipelined<'a> {
    load: &'a CommitLoad,
    slice: Slice,
    until: Instant,
    failed: Option<Error>,
}

impl Plan for Pipelined<'_> {
    fn make(&mut self, number: u64) -> Transaction {
        self.load.transaction(number)
    }

    fn wants(&self, _: u64) -> bool {
        self.failed.is_none()
    }

    fn answered(&mut self, answer: Answer) {
        match answer.outcome {
            Ok(_) => {
                self.slice.records += 1;
                latency::record(&mut self.slice.latency, answer.latency, 1);
            }
            Err(error) => self.failed = Some(error),
        }
    }

    fn goes_on(&mut self, now: Instant) -> bool {
        now < self.until && self.failed.is_none()
    }
}
