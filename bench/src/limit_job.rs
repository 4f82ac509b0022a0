//! The `limit` subcommand: what durable writes alone can do here.

use std::path::PathBuf;
use std::time::Duration;

use crate::Outcome;
use crate::cli::{AckLevel, Load};
use crate::latency::{summarize, write_hgrm};
use crate::limit::{Limit, LimitConfig, Slice};
use crate::machine;
use crate::progress::Progress;
use crate::report::{CpuRow, LatencyGroup, Report, Series, bytes, latency, number};
use crate::space::{Place, Run};

/// Bytes of each directory's file: larger than any device cache that would flatter the figures is impractical; durable
/// writes are what keeps it honest.
pub(crate) const FILE_SIZE: u64 = 64 << 20;
/// How long the progress waits between two reports.
const SLICE: Duration = Duration::from_millis(500);

/// Runs the subcommand.
pub(crate) fn run(place: &Place, load: &Load) -> Outcome {
    let run = Run::start(place, &load.disks, FILE_SIZE)?;
    let config = config(load, run.disks());
    let mut limit = Limit::open(config).map_err(|error| format!("cannot prepare the files: {error}"))?;
    limit.warm_up(SLICE).map_err(|error| format!("a write failed: {error}"))?;
    let mut progress = Progress::new(false);
    progress.step("durable writes", (load.seconds * 1_000.0) as u64);
    let mut all = Slice::empty();
    while all.elapsed.as_secs_f64() < load.seconds {
        let rest = Duration::from_secs_f64(load.seconds) - all.elapsed;
        let slice = limit.run(rest.min(SLICE)).map_err(|error| format!("a write failed: {error}"))?;
        progress.at((all.elapsed.as_secs_f64() * 1_000.0) as u64, &format!("{} records/s", number(slice.rate())));
        all.add(&slice);
    }
    let summary = summarize(&all.latency);
    progress.done(&format!(
        "{} records/s, {}/s of payload, p50 {}, p99 {}, {} µs of process CPU a record ({})",
        number(all.rate()),
        bytes(all.rate() * f64::from(load.payload)),
        latency(summary.p50_us),
        latency(summary.p99_us),
        number(all.cpu_per_record()),
        limit.driver()
    ));
    let mut report = Report::new("The limit", &describe(load, run.disks().len()), machine::describe(run.disks()));
    report.drivers.push(("limit".to_string(), limit.driver()));
    report.headline(number(all.rate()), "records/s", "acknowledged");
    report.notes.extend(offered(load, &all));
    report.headline(number(all.rate() * f64::from(load.payload) / 1_048_576.0), "MiB/s", "of payload");
    report.headline(latency(summary.p50_us), "", "p50 until durable");
    report.headline(latency(summary.p99_us), "", "p99 until durable");
    report.headline(number(all.cpu_per_record()), "µs", "process CPU a record");
    report.latencies.push(LatencyGroup {
        title: "Latency of a durable record".to_string(),
        note: "From the issue of a record (open loop: from when it was due) until enough copies of its block were durable.".to_string(),
        series: vec![Series { name: "limit".to_string(), meaning: String::new(), summary }],
    });
    report.cpu.push(CpuRow { what: "limit".to_string(), records: all.records, cpu: all.cpu });
    write_hgrm(&run.out().join("limit.hgrm"), &all.latency).map_err(|error| error.to_string())?;
    run.finish(&report)?;
    Ok(true)
}

/// The limit's side of a load on the given directories.
pub(crate) fn config(load: &Load, disks: &[PathBuf]) -> LimitConfig {
    LimitConfig {
        directories: disks.iter().take(3).map(|disk| disk.join("limit")).collect(),
        record: load.payload as usize,
        outstanding: load.clients as usize,
        in_flight: load.in_flight as usize,
        ack: load.ack.copies(),
        file_size: FILE_SIZE,
        rate: load.rate,
        threads: load.threads,
    }
}

/// What an open loop offered, and what came of it.
pub(crate) fn offered(load: &Load, slice: &Slice) -> Option<String> {
    let rate = load.rate?;
    Some(format!(
        "Open loop: {} records/s offered, {} achieved. What was late is timed from when it was due.",
        number(rate),
        number(slice.rate())
    ))
}

/// What a load is, in a sentence.
pub(crate) fn describe(load: &Load, disks: usize) -> String {
    let ack = match load.ack {
        AckLevel::Quorum => "two of three copies durable",
        AckLevel::All => "all three copies durable",
    };
    let arrival = load.rate.map_or_else(
        || format!("{} outstanding in a closed loop", number(f64::from(load.clients))),
        |rate| format!("{} a second in an open loop", number(rate)),
    );
    format!("Records of {}, {arrival}, {ack}, {disks} directories.", bytes(f64::from(load.payload)))
}
