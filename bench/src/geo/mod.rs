//! The `geo` subcommand: a primary and a secondary as processes, a network between them that misbehaves, and proof that both hold the same.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use crate::Outcome;
use crate::flight_load::MOST_OUTSTANDING;
use crate::flights::Flights;
use crate::machine;
use crate::progress::Progress;
use crate::report::{Beside, Check, LatencyGroup, Ratio, Report, Series, Table, number};
use crate::space::{Place, Run};
use crate::wan::Wan;

mod bootstrap;
mod discard;
mod equality;
mod faults;
pub(crate) mod node;
mod remote;
mod speed;

use node::{Ask, Load, Status};
use remote::Remote;

/// Room that both regions' disks must have together, beside what is caught up on.
const ROOM: u64 = 4 << 30;

/// What the job is run with.
#[derive(Clone, Debug, Args)]
pub(crate) struct GeoArguments {
    /// How often the link is cut, and each side killed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rounds: u32,
    /// Bytes of a synthetic record.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) payload: u32,
    /// Partitions that the synthetic records of an account go to.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub(crate) partitions: u64,
    /// Half of the synthetic records go to so many percent of the partitions.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(crate) skew: u64,
    /// What the primary is offered while what a secondary costs it is measured, in percent of its greatest rate.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rate: u32,
    /// Seconds of each turn of a measurement.
    #[arg(long, default_value_t = 2.0, value_parser = crate::cli::positive)]
    pub(crate) seconds: f64,
    /// Mebibytes that a secondary catches up on.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) catch_up: u32,
    /// Break and verify only: no measurements.
    #[arg(long)]
    pub(crate) faults_only: bool,
}

/// Runs the job.
pub(crate) fn run(place: &Place, arguments: &GeoArguments) -> Outcome {
    // Three copies on either side, and the segments that are kept until they are trimmed.
    let backlog = if arguments.faults_only { 0 } else { u64::from(arguments.catch_up) << 20 };
    let run = Run::with_disks(place, &[], 3, (ROOM + 8 * backlog) / 3)?;
    let home = run.disks()[0].clone();
    let mut report = Report::new(
        "Two regions",
        "A primary ships what it commits to a secondary region in another process, over a network that delays and cuts; both processes are \
            killed; then every frame of one side is compared with the other's.",
        machine::describe(run.disks()),
    );
    report.beside = Beside {
        name: "beside".into(),
        title: "Beside something else".into(),
        note: "What each figure is set against is in its name; both were measured in this run, on the same two processors and one disk.".into(),
    };
    report.notes.push("The link is plain TCP, without TLS: no figure here has the cost of encryption in it.".into());
    let mut job = Job::start(&home, arguments.clone())?;
    job.break_it()?;
    if !arguments.faults_only {
        job.speed(&mut report)?;
    }
    job.finish(&mut report)?;
    report.print();
    let holds = report.holds();
    run.finish(&report)?;
    Ok(holds)
}

/// The part of the job that the main job includes: the data set shipped, the link cut and both sides killed once, all compared.
///
/// # Errors
/// A message with what kept it from running.
pub(crate) fn in_brief(home: &Path, report: &mut Report) -> Result<(), String> {
    let arguments = GeoArguments {
        rounds: 1,
        payload: 1024,
        partitions: 256,
        rate: 50,
        skew: 50,
        seconds: 1.0,
        catch_up: 1,
        faults_only: true,
    };
    let mut job = Job::start(home, arguments)?;
    job.break_it()?;
    job.finish(report)
}

/// Both regions and the network between them.
struct Job {
    arguments: GeoArguments,
    west: Remote,
    east: Remote,
    wan: Wan,
    progress: Progress,
    checks: Vec<Check>,
    tables: Vec<Table>,
    latencies: Vec<LatencyGroup>,
    /// The first flight that was not sent yet.
    next_flight: u64,
    transactions: u64,
}

impl Job {
    fn start(home: &Path, arguments: GeoArguments) -> Result<Job, String> {
        let progress = Progress::new(false);
        let east = Remote::start("east", "west", home.join("east"), true)?;
        let west = Remote::start("west", "east", home.join("west"), false)?;
        let wan = Wan::new(east.address()?).map_err(text)?;
        let transactions = Flights::load()?.transactions.len() as u64;
        let mut job = Job {
            arguments,
            west,
            east,
            wan,
            progress,
            checks: Vec::new(),
            tables: Vec::new(),
            latencies: Vec::new(),
            next_flight: 0,
            transactions,
        };
        job.link(true)?;
        Ok(job)
    }

    fn break_it(&mut self) -> Result<(), String> {
        self.flights()?;
        self.cuts()?;
        self.kills()
    }

    fn link(&mut self, compress: bool) -> Result<(), String> {
        let to = self.wan.address();
        self.west.ask(&Ask::Link { to, compress }).map(drop)
    }

    fn claim(&mut self, claim: &str, holds: bool, detail: String) {
        self.checks.push(Check { claim: claim.to_owned(), holds, detail });
    }

    /// The next flights, at a rate or as fast as they go.
    fn next_flights(&mut self, count: u64, rate: Option<f64>) -> Load {
        let first = self.next_flight;
        self.next_flight += count;
        let outstanding = MOST_OUTSTANDING / 4;
        let (flights, account, partitions) = (Some((first, count)), None, self.arguments.partitions);
        Load { flights, account, payload: 0, partitions, skew: 50, rate, outstanding, seconds: 600.0 }
    }

    /// Every flight of the data set, while both sides are shown.
    fn flights(&mut self) -> Result<(), String> {
        let load = self.next_flights(self.transactions, None);
        self.progress.step("committing flights, shipping them", self.transactions);
        let progress = &mut self.progress;
        let start = Instant::now();
        let loaded = self.west.load(&load, |status| show(progress, status))?;
        let behind = self.west.until_shipped()?;
        self.progress.done(&format!(
            "{} transactions of flights committed in {} ms; the secondary had the last {} ms later",
            number(loaded.acknowledged as f64),
            number(loaded.seconds * 1e3),
            number(behind.as_secs_f64() * 1e3)
        ));
        self.claim(
            "Every transaction of the data set was acknowledged",
            loaded.acknowledged == self.transactions,
            format!("{} of {}", number(loaded.acknowledged as f64), number(self.transactions as f64)),
        );
        let link = self.west.shipping()?;
        let (raw, wire) = link.shipped;
        let mebi = |bytes: u64| number(bytes as f64 / 1_048_576.0);
        self.tables.push(Table {
            title: "The data set over the link".into(),
            note:
                "Frames as they are, and what went over the wire for them, headers included; compressed where it pays."
                    .into(),
            columns: ["", "MiB", "seconds"].map(String::from).to_vec(),
            rows: vec![
                vec!["frames".into(), mebi(raw), number(start.elapsed().as_secs_f64())],
                vec!["on the wire".into(), mebi(wire), String::new()],
            ],
            first: false,
        });
        self.latencies.push(LatencyGroup {
            title: "From commit to remotely durable".into(),
            note: "From the time of the oldest transaction of a batch until it was handed to the connection, and until the primary knew it durable on the secondary's disks. Flights, as fast as they go.".into(),
            series: vec![
                Series {
                    name: "ship".into(),
                    meaning: "committed → handed to the connection".into(),
                    summary: link.sent,
                },
                Series {
                    name: "remote durable".into(),
                    meaning: "committed → known to be durable on the secondary's disks".into(),
                    summary: link.remotely_durable,
                },
            ],
        });
        Ok(())
    }

    fn finish(mut self, report: &mut Report) -> Result<(), String> {
        self.west.until_shipped()?;
        let marked = self.west.status()?.link.map_or(0, |link| link.last_sync_time);
        self.west
            .until("a later mark", |status| status.link.as_ref().is_some_and(|link| link.last_sync_time > marked))?;
        let differ = self.west.shipping()?.differ;
        let homes = [&self.west, &self.east].map(|remote| remote.home().to_owned());
        let [west, east] = [self.west.status()?, self.east.status()?];
        report.drivers.push(("two regions".into(), west.driver.clone()));
        let equal = east.accounts.iter().all(|account| west.accounts.contains(account)) && differ == 0;
        let records: u64 = east.accounts.iter().map(|(_, records, _)| records).sum();
        self.claim(
            "Both sides say the same of each account at the last mark",
            equal && west.accounts.len() == east.accounts.len(),
            format!("{} records in {} accounts", number(records as f64), east.accounts.len()),
        );
        let Job { west, east, mut progress, checks, tables, latencies, .. } = self;
        west.quit()?;
        east.quit()?;
        progress.step("comparing every frame", 0);
        let [west, east]: [PathBuf; 2] = homes;
        let compared = equality::compare(&west, &east, self.arguments.partitions)?;
        progress.done(&format!("{} frames compared", number(compared.frames as f64)));
        report.checks.extend(checks);
        report.checks.push(Check {
            claim: "Every frame that both still hold is the same, byte for byte and in one order".into(),
            holds: compared.differ == 0 && compared.frames > 0,
            detail: format!("{} frames, {} differ", number(compared.frames as f64), compared.differ),
        });
        report.checks.push(Check {
            claim: "Every partition of the copies that are kept has the same digest and the same next sequence, trimmed records included".into(),
            holds: compared.partitions_differ == 0 && compared.partitions > 0,
            detail: format!("{} partitions, {} differ", compared.partitions, compared.partitions_differ),
        });
        report.tables.extend(tables);
        report.latencies.extend(latencies);
        Ok(())
    }
}

/// One line about both sides.
fn show(progress: &mut Progress, status: &Status) {
    let load = status.load.as_ref().map_or(0, |load| load.acknowledged);
    let Some(link) = &status.link else { return };
    let behind = number((link.lag_bytes + link.unread) as f64 / 1024.0);
    let state = if link.live { "live" } else { "unavailable" };
    progress.at(
        load,
        &format!("{} committed; secondary {state}, {behind} KiB behind ({})", number(load as f64), link.cause),
    );
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A figure that is to be at most `aim` times another, taken in the same run.
fn at_most(figure: &str, unit: &str, ours: f64, limit: f64, aim: f64) -> Ratio {
    Ratio { more_is_better: false, ..at_least(figure, unit, ours, limit, aim) }
}

/// A figure that is to reach at least `aim` times another, taken in the same run.
fn at_least(figure: &str, unit: &str, ours: f64, limit: f64, aim: f64) -> Ratio {
    let (figure, unit) = (figure.to_owned(), unit.to_owned());
    let (target, ratio) = (Some(aim), ours / limit);
    Ratio { figure, unit, ours, limit, ratio, target, absolute: false, more_is_better: true }
}
