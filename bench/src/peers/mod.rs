//! The `peers` subcommand: other libraries with the same records, directories and ack rule, in turns, in one table.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use crate::Outcome;
use crate::cli::Load;
use crate::commit_load::By;
use crate::compare::{Bench, Payloads, Work};
use crate::latency::summarize;
use crate::limit::Slice;
use crate::limit_job;
use crate::machine;
use crate::progress::Progress;
use crate::report::{Beside, CpuRow, LatencyGroup, Ratio, Report, Series, Table, latency, number};
use crate::space::{Place, Run};

mod drive;
mod stores;

use drive::{DEEPEST, Replicated, Single};
use stores::Peer;

/// One subject's turn.
const SLICE: Duration = Duration::from_secs(1);
/// Room that each disk must have.
const ROOM: u64 = 4 << 30;
/// Batches of a peer that are on their way at once; both are measured.
const DEPTHS: [usize; 2] = [1, DEEPEST];

/// Three copies under blocking threads are to be faster than one copy of the other library.
const THREADS_AIM: f64 = 1.0;
/// Async clients, set against the other's best batches of three copies: the rate, and the process CPU a record.
const ASYNC_AIM: f64 = 1.25;
const CPU_AIM: f64 = 0.4;

/// What is measured in turns.
struct Subject {
    name: String,
    copies: usize,
    clients: String,
    /// Whether it also builds an index that answers reads by key.
    indexes: bool,
    run: Box<dyn FnMut() -> Result<Slice, String>>,
    measured: Slice,
}

impl Subject {
    fn new(
        name: &str,
        copies: usize,
        clients: String,
        indexes: bool,
        run: impl FnMut() -> Result<Slice, String> + 'static,
    ) -> Subject {
        Subject { name: name.to_string(), copies, clients, indexes, run: Box::new(run), measured: Slice::empty() }
    }
}

/// Runs the subcommand.
pub(crate) fn run(place: &Place, load: &Load) -> Outcome {
    let run = Run::start(place, &load.disks, ROOM)?;
    let payloads = Payloads::new(load.payload as usize);
    let rounds = ((load.seconds / SLICE.as_secs_f64()).ceil() as usize).max(1);
    let mut report = Report::new(
        "Beside other libraries",
        &limit_job::describe(load, run.disks().len()),
        machine::describe(run.disks()),
    );
    report.tables.push(Table {
        title: "Durable records".to_string(),
        note: "Each library in turns with Meridian, on the same directories, with the same records. A batch of another library counts \
            when as many copies have it as Meridian waits for; its copies are written by a thread each. Batches are made beforehand and \
            shared by the copies."
            .to_string(),
        columns: ["library", "copies", "clients", "records/s", "MiB/s", "p50", "p99", "CPU µs a record", "indexed"]
            .map(String::from)
            .to_vec(),
        rows: Vec::new(),
        first: true,
    });
    report.beside = Beside {
        name: "other".to_string(),
        title: "Beside each library at its best".to_string(),
        note: "Measured in turns in this run. The other library's best batched figure has three copies; its blocking threads write \
            a single one, Meridian's write three."
            .to_string(),
    };
    if !cfg!(feature = "peers-rocksdb") {
        report.notes.push("RocksDB was left out: this build lacks the feature peers-rocksdb.".to_string());
    }
    let mut progress = Progress::new(false);
    // One kind of subject at a time, so that idle engines do not share the memory and the disks with the measured.
    for group in groups(load, run.disks(), &payloads) {
        let mut subjects = group()?;
        progress.step("in turns", (rounds * subjects.len()) as u64);
        for subject in &mut subjects {
            (subject.run)()?;
        }
        for round in 0..rounds {
            for (place, subject) in subjects.iter_mut().enumerate() {
                let slice = (subject.run)().map_err(|error| format!("{}: {error}", subject.name))?;
                progress.at((round * place) as u64, &format!("{}: {} records/s", subject.name, number(slice.rate())));
                subject.measured.add(&slice);
            }
        }
        report.latencies.push(LatencyGroup {
            title: format!("Latency beside {}", subjects.last().map_or("", |subject| &subject.name)),
            note: "From the call, or the issue of the batch, until the records were durable.".to_string(),
            series: Vec::new(),
        });
        compare(&mut report, &subjects);
        for subject in subjects {
            progress.done(&format!(
                "{}, {}: {} records/s",
                subject.name,
                subject.clients,
                number(subject.measured.rate())
            ));
            tell(&mut report, &subject, load.payload);
        }
    }
    run.finish(&report)?;
    Ok(true)
}

/// Opens the subjects of one group: Meridian's three kinds of clients beside one library.
type Group = Box<dyn FnOnce() -> Result<Vec<Subject>, String>>;

fn groups(load: &Load, disks: &[PathBuf], payloads: &Payloads) -> Vec<Group> {
    let group = |(place, peer): (usize, Peer)| -> Group {
        let (load, disks, payloads) = (load.clone(), disks.to_vec(), payloads.clone());
        Box::new(move || {
            let mut subjects = Vec::new();
            for by in [By::Pipeline, By::Async, By::Threads] {
                subjects.push(ours(&load, &fresh(&disks, &format!("ours-{place}-{by:?}"))?, by)?);
            }
            let three = fresh(&disks[..3], &format!("three-{place}"))?;
            subjects.extend(batched(&peer, &load, &three, &payloads)?);
            let one = fresh(&disks[..1], &format!("one-{place}"))?;
            subjects.push(blocking(&peer, &load, &one[0], &payloads)?);
            Ok(subjects)
        })
    };
    stores::all().into_iter().enumerate().map(group).collect()
}

/// Meridian with the given kind of clients.
fn ours(load: &Load, disks: &[PathBuf], by: By) -> Result<Subject, String> {
    let work = Work {
        payload: load.payload as usize,
        clients: load.clients as usize,
        rate: None,
        ack: load.ack.engine(),
        by,
        in_flight: load.in_flight as usize,
        threads: load.threads,
    };
    let bench = Bench::open(disks, work.in_flight, work.threads)?;
    let load = bench.load(&work);
    let clients = match by {
        By::Pipeline => format!("one, {} outstanding", load.clients),
        By::Async => format!("{} async", load.clients),
        By::Threads => format!("{} blocking threads", load.clients),
    };
    Ok(Subject::new("Meridian", 3, clients, false, move || bench.slice(&load, SLICE)))
}

/// Three copies of a peer that take whole batches, with one and with more batches on their way.
fn batched(peer: &Peer, load: &Load, directories: &[PathBuf], payloads: &Payloads) -> Result<Vec<Subject>, String> {
    let (batch, ack) = (u64::from(load.clients), load.ack.copies());
    let copies = Rc::new(RefCell::new(Replicated::open(peer, directories, batch, payloads)?));
    let subject = |depth: usize| {
        let copies = Rc::clone(&copies);
        let clients = format!("batches of {batch}, {depth} in flight");
        Subject::new(peer.name, 3, clients, peer.indexes, move || copies.borrow_mut().run(depth, batch, ack, SLICE))
    };
    Ok(DEPTHS.into_iter().map(subject).collect())
}

/// One copy of a peer under blocking threads.
fn blocking(peer: &Peer, load: &Load, directory: &Path, payloads: &Payloads) -> Result<Subject, String> {
    let threads = load.clients as usize;
    let single = Single::open(peer, directory, threads, payloads)?;
    let clients = format!("{threads} blocking threads");
    Ok(Subject::new(peer.name, 1, clients, peer.indexes, move || single.run(SLICE)))
}

/// An empty folder of this name on each disk.
fn fresh(disks: &[PathBuf], name: &str) -> Result<Vec<PathBuf>, String> {
    let make = |disk: &PathBuf| {
        let path = disk.join(name);
        fs::create_dir_all(&path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
        Ok(path)
    };
    disks.iter().map(make).collect()
}

/// The aims for one group: Meridian's three kinds of clients, the library's batches, the library's threads.
fn compare(report: &mut Report, subjects: &[Subject]) {
    let [_, by_async, by_threads, batches @ .., single] = subjects else { return };
    let Some(best) = batches.iter().max_by(|a, b| a.measured.rate().total_cmp(&b.measured.rate())) else { return };
    // The aims are for raft-engine, the other library that is a log and no more.
    let aim = |value: f64| (!single.indexes).then_some(value);
    let rate = |what: &str, ours: &Subject, other: &Subject, target: f64| Ratio {
        figure: format!("{what}, {}", other.name),
        unit: "records/s".to_string(),
        ours: ours.measured.rate(),
        limit: other.measured.rate(),
        ratio: ours.measured.rate() / other.measured.rate(),
        target: aim(target),
        absolute: false,
        more_is_better: true,
    };
    let cpu = |subject: &Subject| subject.measured.cpu_per_record();
    report.ratios.push(rate("blocking threads (three copies : one)", by_threads, single, THREADS_AIM));
    report.ratios.push(rate("async clients : best batches", by_async, best, ASYNC_AIM));
    report.ratios.push(Ratio {
        figure: format!("async clients : best batches, process CPU a record, {}", best.name),
        unit: "µs".to_string(),
        ours: cpu(by_async),
        limit: cpu(best),
        ratio: cpu(by_async) / cpu(best),
        target: aim(CPU_AIM),
        absolute: false,
        more_is_better: false,
    });
}

/// A subject's row, its processor time and its curve.
fn tell(report: &mut Report, subject: &Subject, payload: u32) {
    let slice = &subject.measured;
    let summary = summarize(&slice.latency);
    let row = vec![
        subject.name.clone(),
        subject.copies.to_string(),
        subject.clients.clone(),
        number(slice.rate()),
        number(slice.rate() * f64::from(payload) / 1_048_576.0),
        latency(summary.p50_us),
        latency(summary.p99_us),
        number(slice.cpu_per_record()),
        if subject.indexes { "yes" } else { "no" }.to_string(),
    ];
    report.tables[0].rows.push(row);
    let name = format!("{}, {} × {}", subject.name, subject.copies, subject.clients);
    report.cpu.push(CpuRow { what: name.clone(), records: slice.records, cpu: slice.cpu });
    if let Some(group) = report.latencies.last_mut() {
        group.series.push(Series { name, meaning: String::new(), summary });
    }
}
