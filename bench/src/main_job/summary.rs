//! What the main job says at the end: the flights' delays, the ratios to the limit, and a table on the terminal.

use std::collections::BTreeMap;
use std::path::PathBuf;

use meridian::{Ack, PartitionId};

use crate::commit_load::By;
use crate::compare::{Bench, Figure, Measured, Work, ratio, stages};
use crate::delays::Totals;
use crate::flights::Flights;
use crate::latency::summarize;
use crate::limit::Slice;
use crate::progress::Progress;
use crate::report::{CpuRow, LatencyGroup, Report, Series, Table, number};

/// Blocks in flight, on both sides.
const IN_FLIGHT: usize = 4;
/// How often each side has its turn for one figure.
const ROUNDS: usize = 5;

/// The state machine's totals by carrier.
pub(super) fn delays(flights: &Flights, totals: &BTreeMap<PartitionId, Totals>) -> Table {
    let mut carriers: BTreeMap<&str, Totals> = BTreeMap::new();
    for name in &flights.partitions {
        let Some((_, carrier)) = name.split_once('/') else { continue };
        let Some(part) = totals.get(&PartitionId::named(name)) else { continue };
        let whole = carriers.entry(carrier).or_default();
        whole.flights += part.flights;
        whole.cancelled += part.cancelled;
        whole.minutes += part.minutes;
    }
    let mut rows: Vec<(f64, Vec<String>)> = carriers
        .into_iter()
        .map(|(carrier, totals)| {
            let mean = totals.minutes as f64 / (totals.flights - totals.cancelled).max(1) as f64;
            let name = flights.airlines.get(carrier).map_or(carrier, String::as_str);
            let cancelled = totals.cancelled as f64 / totals.flights.max(1) as f64 * 100.0;
            let row = vec![
                name.to_string(),
                number(totals.flights as f64),
                format!("{mean:.1}"),
                format!("{cancelled:.1} %"),
            ];
            (mean, row)
        })
        .collect();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    Table {
        title: "What the state machine holds".to_string(),
        note: "Rebuilt from the log after the last kill: departures from New York by carrier, the latest first. The data set was \
            committed several times over; means and shares are those of January and February 2013."
            .to_string(),
        columns: ["carrier", "flights applied", "mean delay, min", "cancelled"].map(String::from).to_vec(),
        rows: rows.into_iter().map(|(_, row)| row).collect(),
        first: false,
    }
}

/// Payload, records outstanding, figures with their aims.
type Case = (usize, usize, &'static [(Figure, Option<f64>)]);

/// The figures, each in turns with the limit.
pub(super) fn against_the_limit(disks: &[PathBuf], report: &mut Report) -> Result<(), String> {
    let mut progress = Progress::new(false);
    progress.step("going once around the segments", 0);
    let bench = Bench::open(disks, IN_FLIGHT, false)?;
    let cases: [Case; 4] = [
        (1 << 10, 256, &[(Figure::Rate, Some(0.90)), (Figure::Cpu, Some(1.0))]),
        (1 << 10, 1_024, &[(Figure::Rate, Some(0.90))]),
        (16 << 10, 256, &[(Figure::Throughput, Some(0.95))]),
        (1 << 10, 1, &[(Figure::P50, Some(1.10)), (Figure::P99, Some(1.5))]),
    ];
    for (payload, clients, figures) in cases {
        let work = Work {
            payload,
            clients,
            rate: None,
            ack: Ack::Quorum,
            by: By::Pipeline,
            in_flight: IN_FLIGHT,
            threads: false,
        };
        progress.step("in turns with the limit", 0);
        let measured = bench.run(&work, ROUNDS, true, &mut |_| {})?;
        for (figure, aim) in figures {
            let ratio = ratio(*figure, &work, &measured, *aim);
            progress.done(&format!(
                "{}: {} {} · limit {} · ratio {:.2}",
                ratio.figure,
                number(ratio.ours),
                ratio.unit,
                number(ratio.limit),
                ratio.ratio
            ));
            report.ratios.push(ratio);
        }
        tell_more(report, payload, clients, &measured);
    }
    bench.close(false)?;
    report.notes.extend([
        "Figures on virtual machines drift by up to 2× within minutes; only what was measured in turns in one run can be compared.".to_string(),
        "All disks of this run may share one device: then a lost disk frees bandwidth for the others, and rebuilding takes it from them.".to_string(),
        "The disk was lost by failing every request to it at the I/O seam, the kills are real (SIGKILL); neither is a loss of power.".to_string(),
    ]);
    Ok(())
}

/// Curves, processor time and a headline of the cases that say most.
fn tell_more(report: &mut Report, payload: usize, clients: usize, measured: &Measured) {
    let (ours, limit) = (&measured.ours, &measured.limit);
    if clients == 256 && payload == 1 << 10 {
        report.drivers.extend(measured.limit_driver.clone().map(|driver| ("limit".to_string(), driver)));
        let part = format!("{:.2}", ours.rate() / limit.rate());
        report.headline(part, "×", "of what bare durable writes do, 1 KiB at 256 outstanding");
        for (who, slice) in [("Meridian", ours), ("limit", limit)] {
            let what = format!("1 KiB × 256, {who}");
            report.cpu.push(CpuRow { what, records: slice.records, cpu: slice.cpu });
        }
        let note = "Measured in turns with the limit.";
        report.latencies.push(stages("Stages at 1 KiB, 256 outstanding", note, &measured.stats));
    }
    if clients == 1 {
        let series = |name: &str, slice: &Slice| Series {
            name: name.to_string(),
            meaning: String::new(),
            summary: summarize(&slice.latency),
        };
        report.latencies.push(LatencyGroup {
            title: "One at a time".to_string(),
            note: "1 KiB records, one outstanding: from the call to the acknowledgement, against a bare durable write to two of \
                three directories."
                .to_string(),
            series: vec![series("Meridian", ours), series("limit", limit)],
        });
    }
}
