//! The main job: a region on real directories commits a real data set, loses a disk, is killed, recovers, is verified,
//! and is measured against the limit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use meridian::{AccountId, Ack, Lsn, Options, PartitionId, Region};

use crate::Outcome;
use crate::audit::{Auditor, Ledger};
use crate::compare::{self, region_options};
use crate::delays::{Delays, Totals};
use crate::flight_load::{ACCOUNT, FlightLoad, MOST_OUTSTANDING};
use crate::flights::Flights;
use crate::latency::write_hgrm;
use crate::load::{Pace, drive};
use crate::machine::{self, CpuSample};
use crate::meter::Meter;
use crate::offline;
use crate::progress::Progress;
use crate::report::{Check, CpuRow, Report, bytes, latency, number};
use crate::space::{Place, Run};
use crate::unplug::Plugs;

mod disk_loss;
mod kill;
mod plan;
mod summary;

use plan::FlightPlan;

/// Disks of the region: three copies and a spare.
const DISKS: usize = 4;
/// Room that each disk must have.
const ROOM: u64 = 1 << 30;
/// What one point of the time line covers.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long the data set is committed as fast as it goes.
const FULL_SPEED: Duration = Duration::from_secs(2);
/// Blocks on their way to the disks at once.
const IN_FLIGHT: usize = 4;
/// Transactions outstanding meanwhile.
const OUTSTANDING: usize = 256;
/// The steady load is this part of full speed, and no more than so many transactions a second.
const STEADY_PART: f64 = 0.3;
const STEADY_MOST: f64 = 10_000.0;
/// Partitions that are read by themselves.
const PARTITIONS_READ: usize = 3;
/// The longest wait for whole copies at the end.
const WHOLE: Duration = Duration::from_secs(20);
/// How many acknowledged transactions are sent again.
const RETRIES: u64 = 500;

/// Runs the main job.
pub(crate) fn run(place: &Place) -> Outcome {
    let flights = Flights::load()?;
    let run = Run::with_disks(place, &[], DISKS, ROOM)?;
    say!(
        "Meridian, the main job: {} flights in {} transactions of {} partitions, {DISKS} disks below {}",
        number(flights.record_count() as f64),
        number(flights.transactions.len() as f64),
        flights.partitions.len(),
        place.out.display()
    );
    let mut job = Job::start(&flights, &run)?;
    let mut outcome = job.parts();
    let mut report = job.into_report();
    outcome = outcome.and_then(|()| crate::geo::in_brief(&run.disks()[0], &mut report));
    outcome = outcome.and_then(|()| summary::against_the_limit(run.disks(), &mut report));
    // What was found out until then is worth a report all the same, and the report says that it is not whole.
    report.ended(&outcome);
    report.print();
    let holds = report.holds();
    run.finish(&report)?;
    outcome.map(|()| holds)
}

/// What the steps of the job share.
struct Job<'a> {
    flights: &'a Flights,
    disks: &'a [PathBuf],
    out: &'a Path,
    plugs: Plugs,
    delays: Delays,
    region: Option<Region>,
    account: AccountId,
    /// The next transaction's number.
    next: u64,
    /// The steady load, in transactions a second.
    steady: f64,
    ledger: Ledger,
    meter: Meter,
    report: Report,
    progress: Progress,
}

/// How the region of the flights is opened.
pub(crate) fn flight_options(disks: &[PathBuf]) -> Options {
    let mut options = region_options(disks, "flights", IN_FLIGHT, false);
    options.queue_transactions = MOST_OUTSTANDING;
    options
}

impl<'a> Job<'a> {
    /// Makes the region, with disks that can be pulled out.
    fn start(flights: &'a Flights, run: &'a Run) -> Result<Job<'a>, String> {
        let (plugs, delays) = (Plugs::default(), Delays::default());
        let region = Region::create_with(flight_options(run.disks()), delays.clone(), plugs.driver()).map_err(text)?;
        let account = region.create_account(ACCOUNT, Ack::Quorum).map_err(text)?;
        let title = "A log that loses nothing";
        let about = "Three copies of every flight that left New York in January and February 2013, committed to directories that \
            stand for disks. One disk was pulled out under load, the process was killed in mid-write, and what came back \
            was checked record by record. Then the flights were shipped to a secondary region over a network that was cut, \
            both processes were killed, and every frame was compared.";
        let mut report = Report::new(title, about, machine::describe(run.disks()));
        report.drivers.push(("engine".to_string(), region.health().map_err(text)?.driver));
        Ok(Job {
            flights,
            disks: run.disks(),
            out: run.out(),
            plugs,
            delays,
            region: Some(region),
            account,
            next: 0,
            steady: STEADY_MOST,
            ledger: Ledger::default(),
            meter: Meter::new(INTERVAL),
            report,
            progress: Progress::new(false),
        })
    }

    /// Everything that is done with the region of the flights.
    fn parts(&mut self) -> Result<(), String> {
        self.full_speed()?;
        self.lose_a_disk()?;
        self.kill_and_recover()?;
        self.verify()?;
        self.close_and_read()
    }

    /// The report, whatever it holds by now; an open region is closed.
    fn into_report(mut self) -> Report {
        self.report.timeline = Some(self.meter.timeline());
        self.report
    }

    /// The whole data set at least once, as fast as it goes.
    fn full_speed(&mut self) -> Result<(), String> {
        let region = self.region.take().ok_or("the region is closed")?;
        self.progress.step("committing at full speed", 0);
        let cpu = CpuSample::now();
        let start = Instant::now();
        let least = self.flights.transactions.len() as u64;
        let first = self.next;
        let mut plan =
            FlightPlan::new(self, move |now: Instant, acknowledged| now - start < FULL_SPEED || acknowledged < least);
        let end = drive(&region, Pace::Closed(OUTSTANDING), first, &mut plan).map_err(text)?;
        let (elapsed, records, failed) = (start.elapsed().as_secs_f64(), plan.records, plan.failed);
        drop(plan);
        let rate = (end - first - failed) as f64 / elapsed;
        self.next = end;
        self.steady = (rate * STEADY_PART).min(STEADY_MOST);
        let records_rate = records as f64 / elapsed;
        self.report.headline(number(records_rate), "flights/s", "at full speed, in transactions, on three disks");
        self.report.cpu.push(CpuRow { what: "full speed".into(), records, cpu: cpu.until(&CpuSample::now()) });
        self.meter.event("full speed ends", false);
        let stats = region.stats().map_err(text)?;
        let note = format!(
            "The data set at full speed: {OUTSTANDING} transactions outstanding, {} on average in a block.",
            number(stats.transactions as f64 / (stats.blocks as f64).max(1.0))
        );
        let group = compare::stages("Stages of a commit", &note, &stats);
        self.report.latencies.push(group);
        for (name, histogram) in
            [("full-speed-acknowledged", &stats.acknowledged), ("full-speed-quorum", &stats.quorum)]
        {
            write_hgrm(&self.out.join(format!("{name}.hgrm")), histogram).map_err(text)?;
        }
        self.progress.done(&format!(
            "{} flights in {} transactions committed, {} flights/s, p99 {}",
            number(records as f64),
            number((end - first) as f64),
            number(records_rate),
            latency(stats.acknowledged.value_at_quantile(0.99) as f64 / 1e3)
        ));
        self.claim(
            "Every commit at full speed succeeded",
            failed == 0,
            format!("{} of {}", number((end - first - failed) as f64), number((end - first) as f64)),
        );
        self.region = Some(region);
        Ok(())
    }

    /// Notes something that must hold.
    fn claim(&mut self, claim: &str, holds: bool, detail: String) {
        self.report.checks.push(Check { claim: claim.to_string(), holds, detail });
    }

    /// Sends again what was acknowledged, audits the log and the state machine.
    fn verify(&mut self) -> Result<(), String> {
        let region = self.region.take().ok_or("the region is closed")?;
        self.progress.step("verifying", 0);
        self.retry(&region)?;
        let flights = self.flights;
        let mut auditor = Auditor::new(flights);
        let mut log = region.subscribe(Lsn::ZERO);
        while let Some(block) = log.try_next().map_err(text)? {
            for transaction in block.transactions().filter(|transaction| !transaction.is_system()) {
                let records: Vec<&[u8]> = transaction.records().map(|(_, record)| record).collect();
                auditor.take(transaction.partition(), transaction.first_sequence(), &records);
            }
        }
        let (audit, totals) = auditor.finish(&self.ledger);
        self.meter.event("verified", false);
        let (acknowledged, records) = (number(audit.acknowledged as f64), number(audit.records as f64));
        self.claim(
            "Every acknowledged transaction is there, right in every byte",
            audit.lost + audit.wrong == 0,
            format!("{acknowledged} acknowledged, {} lost, {} records wrong", audit.lost, audit.wrong),
        );
        self.claim(
            "No transaction is half there",
            audit.partial == 0,
            format!("{} found with {records} flights, {} partial", number(audit.found as f64), audit.partial),
        );
        self.claim(
            "Nothing was applied twice and no sequence is missing",
            audit.doubled + audit.gaps == 0,
            format!(
                "{} doubled, {} gaps; {} sent but unacknowledged when killed were kept",
                audit.doubled, audit.gaps, audit.unacknowledged
            ),
        );
        let alike = self.partitions_alike(&region, &totals)?;
        self.claim(
            "A partition read by itself gives the same records",
            alike == PARTITIONS_READ,
            format!("{alike} of {PARTITIONS_READ} partitions read through the segments' indexes"),
        );
        let applied = self.delays.snapshot();
        let differ = totals.iter().filter(|(partition, totals)| applied.get(partition) != Some(totals)).count();
        let extra = applied.keys().filter(|partition| !totals.contains_key(partition)).count();
        self.claim(
            "The recovered state machine holds what the log says",
            differ + extra == 0,
            format!("{} partitions, {} differ", totals.len(), differ + extra),
        );
        self.report.headline(records, "flights", "read back and right, byte for byte");
        self.report.tables.push(summary::delays(flights, &totals));
        self.region = Some(region);
        self.progress.done(&format!(
            "{acknowledged} acknowledged transactions verified: {} lost, {} partial, {} doubled",
            audit.lost, audit.partial, audit.doubled
        ));
        Ok(())
    }

    /// Reads some partitions by themselves; how many hold exactly what reading the whole log gave.
    fn partitions_alike(&self, region: &Region, totals: &BTreeMap<PartitionId, Totals>) -> Result<usize, String> {
        let mut alike = 0;
        for name in self.flights.partitions.iter().take(PARTITIONS_READ) {
            let partition = PartitionId::named(name);
            let mut reader = region.partition(self.account, partition, 0);
            let mut alone = Totals::default();
            while let Some(view) = reader.try_next().map_err(text)? {
                let transaction = view.transaction();
                alone.add(transaction.first_sequence(), transaction.records().map(|(_, record)| record));
            }
            alike += usize::from(totals.get(&partition) == Some(&alone));
        }
        Ok(alike)
    }

    /// Sends the latest acknowledged transactions once more: each must be recognised.
    fn retry(&mut self, region: &Region) -> Result<(), String> {
        let load = FlightLoad::new(self.flights, self.account);
        let first = self.next.saturating_sub(RETRIES);
        let again = (first..self.next).filter(|number| self.ledger.holds(*number));
        let tickets: Vec<_> =
            again.map(|number| region.submit(load.transaction(number))).collect::<Result<_, _>>().map_err(text)?;
        let sent = tickets.len();
        let mut recognised = 0;
        for ticket in tickets {
            recognised += usize::from(ticket.wait().map_err(text)?.repeated);
        }
        self.claim("A retried commit is recognised", recognised == sent, format!("{recognised} of {sent} sent again"));
        Ok(())
    }

    /// Scrubs the copies, closes the region and reads its disks without the engine.
    fn close_and_read(&mut self) -> Result<(), String> {
        let region = self.region.take().ok_or("the region is closed")?;
        let whole = self.wait_until_whole(&region)?;
        self.scrub(&region)?;
        region.close().map_err(text)?;
        self.progress.step("reading the closed disks", 0);
        let folders: Vec<PathBuf> = self.disks.iter().map(|disk| disk.join("flights")).collect();
        let found = offline::verify(&folders)?;
        let problems = found
            .problems
            .first()
            .map_or(String::new(), |first| format!("; {} problems: {first}", found.problems.len()));
        self.claim(
            "The closed disks verify block by block, and their copies are identical",
            found.problems.is_empty(),
            format!(
                "{} blocks in {} copies of {} segments{problems}",
                number(found.blocks as f64),
                found.copies,
                found.segments
            ),
        );
        self.claim(
            "Every segment has its three copies again",
            whole && found.short == 0,
            format!(
                "the engine says {}; on the closed disks {} sealed segments have fewer",
                if whole { "yes" } else { "no" },
                found.short
            ),
        );
        self.progress.done(&format!(
            "{} blocks of {} copies verified offline",
            number(found.blocks as f64),
            found.copies
        ));
        let bound = flight_options(self.disks).memory_bound();
        self.report.notes.push(format!(
            "Memory: the region's options bound what the engine holds to {}; this whole process, harness included, peaked at {}.",
            bytes(bound as f64),
            bytes(machine::peak_memory() as f64)
        ));
        Ok(())
    }

    /// The engine rereads every sealed copy. It would also repair what it finds, so anything found at all is a failure: no
    /// fault of this job rots what was written.
    fn scrub(&mut self, region: &Region) -> Result<(), String> {
        self.progress.step("scrubbing", 0);
        let scrubbed = region.scrub().map_err(text)?;
        let read = format!("{} copies, {} reread", scrubbed.copies, bytes(scrubbed.bytes as f64));
        self.claim(
            "A scrub finds nothing to repair",
            scrubbed.copies > 0 && scrubbed.corrupt == 0 && scrubbed.lost.is_empty(),
            format!("{read}, {} places corrupt, {} lost", scrubbed.corrupt, scrubbed.lost.len()),
        );
        self.progress.done(&format!("scrubbed {read}"));
        Ok(())
    }

    /// Waits for the copies to be whole after the kills and the return of the lost disk.
    fn wait_until_whole(&mut self, region: &Region) -> Result<bool, String> {
        self.progress.step("waiting for every segment to have three copies", 0);
        let start = Instant::now();
        while start.elapsed() < WHOLE {
            if region.health().map_err(text)?.is_whole() {
                self.meter.event("three copies of everything", false);
                self.progress.done(&format!("whole after another {} ms", number(start.elapsed().as_secs_f64() * 1e3)));
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(false)
    }
}

/// The text of any error.
fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
