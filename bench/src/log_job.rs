//! The `log` subcommand: the raw commit path under load, in turns with the limit if asked.

use crate::Outcome;
use crate::cli::LogArguments;
use crate::commit_load::By;
use crate::compare::{Bench, Figure, Measured, SLICE, Work, ratio, stages};
use crate::latency::{summarize, write_hgrm};
use crate::limit::Slice;
use crate::limit_job;
use crate::machine;
use crate::progress::Progress;
use crate::report::{CpuRow, LatencyGroup, Report, Series, bytes, latency, number};
use crate::space::{Place, Run};

/// Room that each disk must have: the segments of a slice, those that are kept, and the limit's file.
const ROOM: u64 = 1 << 30;

/// Runs the subcommand.
pub(crate) fn run(place: &Place, arguments: &LogArguments) -> Outcome {
    let load = &arguments.load;
    if load.rate.is_some() && arguments.by != By::Pipeline {
        return Err("an open loop has one client that never waits: leave out --by with --rate".to_string());
    }
    let run = Run::start(place, &load.disks, ROOM)?;
    let work = Work {
        payload: load.payload as usize,
        clients: load.clients as usize,
        rate: load.rate,
        ack: load.ack.engine(),
        by: arguments.by,
        in_flight: load.in_flight as usize,
        threads: load.threads,
    };
    let mut report =
        Report::new("The commit path", &limit_job::describe(load, run.disks().len()), machine::describe(run.disks()));
    let bench = Bench::open(run.disks(), work.in_flight, work.threads)?;
    report.drivers.push(("engine".to_string(), bench.driver()?));
    let rounds = (load.seconds / SLICE.as_secs_f64()).ceil().max(1.0) as usize;
    let mut progress = Progress::new(false);
    progress.step("committing", rounds as u64);
    let mut done = 0;
    let measured = bench.run(&work, rounds, arguments.limit, &mut |slice: &Slice| {
        done += 1;
        progress.at(done, &format!("{} records/s", number(slice.rate())));
    })?;
    let summary = summarize(&measured.ours.latency);
    progress.done(&format!(
        "{} records/s, {}/s of payload, p50 {}, p99 {}, {} µs of process CPU a record",
        number(measured.ours.rate()),
        bytes(measured.ours.rate() * f64::from(load.payload)),
        latency(summary.p50_us),
        latency(summary.p99_us),
        number(measured.ours.cpu_per_record())
    ));
    report.drivers.extend(measured.limit_driver.clone().map(|driver| ("limit".to_string(), driver)));
    headlines(&mut report, &measured, load.payload);
    report.notes.extend(limit_job::offered(load, &measured.ours));
    let who = format!("{:?} clients", arguments.by).to_lowercase();
    let mut series = vec![Series { name: "Meridian".into(), meaning: who, summary }];
    report.cpu.push(CpuRow { what: "Meridian".into(), records: measured.ours.records, cpu: measured.ours.cpu });
    write_hgrm(&run.out().join("log.hgrm"), &measured.ours.latency).map_err(|error| error.to_string())?;
    if arguments.limit {
        write_hgrm(&run.out().join("limit.hgrm"), &measured.limit.latency).map_err(|error| error.to_string())?;
        series.push(beside_the_limit(&mut report, &work, &measured));
    }
    report.latencies.push(LatencyGroup {
        title: "Latency of a commit".to_string(),
        note: "From the call (open loop: from when it was due) until the caller had the answer.".to_string(),
        series,
    });
    let in_a_block = number(measured.stats.records as f64 / (measured.stats.blocks as f64).max(1.0));
    let note = format!("{in_a_block} records on average in a block.");
    report.latencies.push(stages("Stages of a commit", &note, &measured.stats));
    bench.close(place.keep)?;
    run.finish(&report)?;
    Ok(true)
}

fn headlines(report: &mut Report, measured: &Measured, payload: u32) {
    let ours = &measured.ours;
    let at = |quantile: f64| latency(ours.latency.value_at_quantile(quantile) as f64 / 1e3);
    report.headline(number(ours.rate()), "records/s", "acknowledged");
    report.headline(number(ours.rate() * f64::from(payload) / 1_048_576.0), "MiB/s", "of payload, in three copies");
    report.headline(at(0.5), "", "p50 from call to acknowledgement");
    report.headline(at(0.99), "", "p99");
    report.headline(number(ours.cpu_per_record()), "µs", "process CPU a record");
}

/// The ratios, the limit's processor time and its curve.
fn beside_the_limit(report: &mut Report, work: &Work, measured: &Measured) -> Series {
    for figure in [Figure::Rate, Figure::Throughput, Figure::P50, Figure::P99, Figure::Cpu] {
        let ratio = ratio(figure, work, measured, None);
        let (ours, limit) = (number(ratio.ours), number(ratio.limit));
        say!("          {}: {ours} {}, limit {limit}, ratio {:.2}", ratio.figure, ratio.unit, ratio.ratio);
        report.ratios.push(ratio);
    }
    report.cpu.push(CpuRow { what: "limit".into(), records: measured.limit.records, cpu: measured.limit.cpu });
    Series { name: "limit".into(), meaning: "bare durable writes".into(), summary: summarize(&measured.limit.latency) }
}
