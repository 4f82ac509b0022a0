//! The `recovery` subcommand: how long a region with many sealed segments takes to open, and what it reads for that.
//!
//! Recovery reads headers, seals, a checkpoint and the unsealed tail, so its time follows the number of segments and not
//! their size: small segments stand for large ones, and 1,600 of them for 100 GiB at the default of 64 MiB.

use std::time::{Duration, Instant};

use meridian::{Ack, DiskConfig, Options, PartitionId, Region, Transaction};

use crate::Outcome;
use crate::compare::Payloads;
use crate::load::{Answer, Pace, Plan, drive};
use crate::machine;
use crate::progress::Progress;
use crate::report::{Ratio, Report, bytes, number};
use crate::space::{Place, Run};

/// Bytes of a segment file here; blocks and transactions small enough for it.
const SEGMENT: u32 = 256 << 10;
const BLOCK: usize = 64 << 10;
const TRANSACTION: usize = 16 << 10;
/// Bytes of a record, and transactions outstanding.
const RECORD: usize = 8 << 10;
const OUTSTANDING: usize = 64;
/// Segments of the engine's default size.
const DEFAULT_SEGMENT: f64 = (64 << 20) as f64;
/// How long recovery may take (issue), in milliseconds.
const AIM: f64 = 1_000.0;
/// How often the region is opened.
const ROUNDS: usize = 5;

/// Runs the subcommand.
pub(crate) fn run(place: &Place, segments: u32) -> Outcome {
    let run = Run::start(place, &[], u64::from(segments + 64) * u64::from(SEGMENT) * 5 / 4)?;
    // Before the run: it says when that started, and how much room there was.
    let machine = machine::describe(run.disks());
    let configs = run.disks().iter().enumerate();
    let configs =
        configs.map(|(at, disk)| DiskConfig::new(disk.join("recovery"), &format!("disk-{}", at + 1), "zone-1"));
    let mut options = Options::new(configs.collect());
    options.segment_bytes = SEGMENT;
    options.block_bytes = BLOCK;
    options.transaction_bytes = TRANSACTION;
    let mut progress = Progress::new(false);
    progress.step("filling segments", u64::from(segments));
    let region = Region::create(options.clone(), ()).map_err(text)?;
    let account = region.create_account("recovery", Ack::Quorum).map_err(text)?;
    let payloads = Payloads::new(RECORD);
    let mut plan = Fill {
        region: &region,
        progress: &mut progress,
        segments,
        looked: Instant::now(),
        full: false,
        failed: None,
        make: |number| Transaction::new(account, PartitionId(u128::from(number % 64))).record(payloads.of(number)),
    };
    drive(&region, Pace::Closed(OUTSTANDING), 0, &mut plan).map_err(text)?;
    if let Some(error) = plan.failed {
        return Err(format!("a commit failed: {error}"));
    }
    drop(plan);
    let health = region.health().map_err(text)?;
    let (sealed, driver) = (health.segments, health.driver);
    region.close().map_err(text)?;
    progress.done(&format!("{} segments", number(sealed as f64)));
    let mut times = Vec::new();
    let mut read = 0;
    for _ in 0..ROUNDS {
        let region = Region::open(options.clone(), ()).map_err(text)?;
        let stats = region.stats().map_err(text)?;
        times.push(stats.recovery_time as f64 / 1e6);
        read = stats.recovery_bytes;
        region.close().map_err(text)?;
    }
    times.sort_by(f64::total_cmp);
    let (median, slowest) = (times[ROUNDS / 2], times[ROUNDS - 1]);
    let stands_for = bytes(sealed as f64 * DEFAULT_SEGMENT);
    say!(
        "{} sealed segments (as many as {stands_for} at the default size) open in {} ms (median of {ROUNDS}, slowest {}), reading {}",
        number(sealed as f64),
        number(median),
        number(slowest),
        bytes(read as f64)
    );
    let about = format!(
        "A region of {} sealed segments, as many as {stands_for} has at the default size, opened {ROUNDS} times.",
        number(sealed as f64)
    );
    let mut report = Report::new("Recovery", &about, machine);
    report.drivers.push(("engine".to_string(), driver));
    report.headline(number(median), "ms", "to open, the median");
    report.headline(bytes(read as f64), "", "read for that");
    report.aims.push(Ratio::value("opening the region, median", "ms", median, AIM));
    run.finish(&report)?;
    Ok(true)
}

/// The text of any error.
fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Commits until the region has so many segments.
struct Fill<'a, M> {
    region: &'a Region,
    progress: &'a mut Progress,
    segments: u32,
    looked: Instant,
    full: bool,
    failed: Option<meridian::Error>,
    make: M,
}

impl<M: Fn(u64) -> Transaction> Plan for Fill<'_, M> {
    fn make(&mut self, number: u64) -> Transaction {
        (self.make)(number)
    }

    fn answered(&mut self, answer: Answer) {
        if let Err(error) = answer.outcome {
            self.failed = Some(error);
        }
    }

    fn goes_on(&mut self, now: Instant) -> bool {
        if now - self.looked > Duration::from_millis(20) {
            self.looked = now;
            let active = self.region.committed().segment().0;
            self.progress.at(u64::from(active), &format!("{active} of {}", self.segments));
            self.full = active > self.segments;
        }
        !self.full && self.failed.is_none()
    }
}
