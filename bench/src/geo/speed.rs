//! What shipping costs the primary, and how fast a secondary catches up.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::discard::{Discard, plain_stream};
use super::node::{Ask, Load, Loaded};
use super::remote::{LONG, PATIENCE};
use super::{GeoArguments, Job, at_least, text};
use meridian::Lsn;
use meridian::geo::Anchor;

use crate::latency::Summary;
use crate::report::{Ratio, Report, Series, Table, number};

pub(super) const MEBI: f64 = 1_048_576.0;
/// Records that are caught up on.
const CATCH_UP_RECORD: usize = 16 << 10;
/// Turns with and without a link.
const TURNS: usize = 5;
/// Turns of catching up.
const CATCH_UP_TURNS: usize = 4;
/// Bytes a second of the narrow network, and how often the data set goes over it.
const NARROW: u64 = 2 << 20;
const NARROW_REPLAYS: usize = 4;
/// One way of the long network.
const FAR: Duration = Duration::from_millis(50);

/// What a load took of the primary, over some turns.
#[derive(Default)]
struct Cost {
    records: u64,
    seconds: f64,
    /// Processor seconds of its process, until everything was shipped where it ships.
    cpu: f64,
    /// The worst turn's, in microseconds.
    p99: f64,
}

impl Cost {
    fn add(&mut self, loaded: &Loaded, cpu: f64) {
        self.records += loaded.acknowledged;
        self.seconds += loaded.seconds;
        self.cpu += cpu;
        self.p99 = self.p99.max(loaded.latency.p99_us);
    }

    fn rate(&self) -> f64 {
        self.records as f64 / self.seconds
    }

    /// Microseconds.
    fn cpu_per_record(&self) -> f64 {
        self.cpu * 1e6 / (self.records as f64).max(1.0)
    }
}

/// What went to a receiver that verifies and discards.
struct Discarded {
    /// MiB/s from the first batch on.
    rate: f64,
    /// MiB for a core-second of the sender.
    per_core: f64,
    /// The receiver's processor seconds.
    receiver: f64,
}

impl Job {
    pub(super) fn speed(&mut self, report: &mut Report) -> Result<(), String> {
        self.narrow()?;
        let most = self.cost(report)?;
        self.bootstrap(most, report)?;
        self.catch_up(report)?;
        self.sender_alone(report)?;
        self.link(true)?;
        self.west.until_shipped().map(drop)
    }

    /// The data set once more over a link that is narrower than the load: what compression is for.
    fn narrow(&mut self) -> Result<(), String> {
        let transactions = self.transactions;
        self.progress.step("the data set over a narrow link", transactions);
        self.west.ask(&Ask::Unlink)?;
        self.wan.bandwidth(NARROW);
        self.link(true)?;
        let (start, before) = (Instant::now(), self.wan.forwarded());
        for _ in 0..NARROW_REPLAYS {
            let load = self.next_flights(transactions, None);
            self.west.load(&load, |_| {})?;
        }
        self.west.until_shipped()?;
        let took = start.elapsed().as_secs_f64();
        self.wan.bandwidth(0);
        let (raw, passed) = (self.west.shipping()?.shipped.0, self.wan.forwarded() - before);
        let [raw, passed] = [raw, passed].map(|bytes| bytes as f64 / MEBI);
        self.progress.done(&format!(
            "{} MiB of frames went over a link of {} MiB/s in {} s as {} MiB",
            number(raw),
            number(NARROW as f64 / MEBI),
            number(took),
            number(passed)
        ));
        self.tables.push(Table {
            title: "The data set over a narrow link".into(),
            note: format!(
                "The network lets {} MiB/s through; what it let through is its own count.",
                number(NARROW as f64 / MEBI)
            ),
            columns: ["MiB of frames", "MiB on the wire", "ratio", "seconds", "MiB/s of frames"]
                .map(String::from)
                .to_vec(),
            rows: vec![vec![
                number(raw),
                number(passed),
                format!("{:.2}", passed / raw),
                number(took),
                number(raw / took),
            ]],
            first: false,
        });
        Ok(())
    }

    pub(super) fn records(&self, rate: Option<f64>, outstanding: usize, seconds: f64) -> Load {
        let GeoArguments { payload, partitions, skew, .. } = self.arguments;
        Load { flights: None, account: None, payload: payload as usize, partitions, skew, rate, outstanding, seconds }
    }

    pub(super) fn trim(&mut self) -> Result<(), String> {
        self.west.ask(&Ask::Trim)?;
        self.east.ask(&Ask::Trim).map(drop)
    }

    /// A share of the primary's greatest rate, with the link and without it in turns. Returns that greatest rate.
    fn cost(&mut self, report: &mut Report) -> Result<f64, String> {
        let seconds = self.arguments.seconds;
        self.progress.step("the primary with and without a secondary", 2 * TURNS as u64 + 1);
        self.west.ask(&Ask::Unlink)?;
        let most = self.west.load(&self.records(None, 256, seconds), |_| {})?;
        let most = most.acknowledged as f64 / most.seconds;
        let [mut alone, mut linked] = [Cost::default(), Cost::default()];
        // Of each turn: from commit to remotely durable, and what that is held against.
        let mut lags: Vec<(Summary, f64)> = Vec::new();
        for turn in 0..TURNS {
            let load = self.records(Some(self.offered(most)), 0, seconds);
            let cpu = self.west.status()?.cpu;
            let off = self.west.load(&load, |_| {})?;
            alone.add(&off, self.west.status()?.cpu - cpu);
            self.link(true)?;
            self.west.until_shipped()?;
            self.east.ask(&Ask::Reset)?;
            let cpu = self.west.ask(&Ask::Reset)?.cpu;
            let on = self.west.load(&load, |_| {})?;
            self.west.until_shipped()?;
            linked.add(&on, self.west.status()?.cpu - cpu);
            let shipping = self.west.shipping()?;
            let commits = self.east.status()?.commits;
            lags.push((shipping.remotely_durable, 3.0 * commits.p99_us / 1e3 + shipping.round_trip as f64 / 1e6));
            self.trim()?;
            self.west.ask(&Ask::Unlink)?;
            self.progress.at(turn as u64 + 1, "");
        }
        self.progress.done(&format!(
            "at {} % of {} records/s: {} µs of the primary's processor a record alone, {} with a secondary",
            self.arguments.rate,
            number(most),
            number(alone.cpu_per_record()),
            number(linked.cpu_per_record())
        ));
        self.tell_of_cost(report, most, [&alone, &linked], lags)?;
        Ok(most)
    }

    /// Of the turns alone and those with a secondary.
    fn tell_of_cost(
        &mut self,
        report: &mut Report,
        most: f64,
        [alone, linked]: [&Cost; 2],
        mut lags: Vec<(Summary, f64)>,
    ) -> Result<(), String> {
        let [off, on] = [alone, linked].map(Cost::cpu_per_record);
        report.headline(
            number(on),
            "µs",
            &format!("of the primary's processor a record with a secondary, {} µs without", number(off)),
        );
        let rate = self.arguments.rate;
        // An owner's aim. At half rate an open loop is kept up with, unless the secondary takes half of everything.
        report.ratios.push(at_least(
            &format!("records/s in an open loop at {rate} % of the greatest rate, with a secondary"),
            "records/s",
            linked.rate(),
            alone.rate(),
            0.95,
        ));
        let secondary = self.east.status()?;
        lags.sort_by(|one, other| (one.0.p99_us / one.1).total_cmp(&(other.0.p99_us / other.1)));
        let worst = lags.last().map_or(0.0, |(lag, _)| lag.p99_us / 1e3);
        let (lag, most_lag) = lags.swap_remove(lags.len() / 2);
        report.tables.push(Table {
            title: format!("Two regions on one machine, at {rate} % of the primary's greatest rate"),
            note: "Both regions share the processors and the disk: the secondary's work is part of what the primary feels. In an open loop \
                records/s stay what is offered for as long as the primary keeps up, so they do not say what a \
                secondary costs; processor a record does."
                .into(),
            columns: ["", "alone", "with a secondary"].map(String::from).to_vec(),
            rows: vec![
                vec!["µs of the primary's processor a record".into(), number(off), number(on)],
                vec!["records/s offered".into(), number(self.offered(most)), number(self.offered(most))],
                vec!["records/s achieved".into(), number(alone.rate()), number(linked.rate())],
                vec![
                    "p99 from when a commit was due until its answer, the worst turn, µs".into(),
                    number(alone.p99),
                    number(linked.p99),
                ],
                vec!["p99 from commit to remotely durable, the worst turn, ms".into(), String::new(), number(worst)],
                vec!["records arrived".into(), String::new(), number(secondary.arrived.0 as f64)],
            ],
            first: true,
        });
        report.aims.push(Ratio::value(
            &format!("p99 from commit to remotely durable at {rate} % of the greatest rate, the middle turn"),
            "ms",
            lag.p99_us / 1e3,
            most_lag,
        ));
        let series = Series {
            name: format!("{rate} % of the greatest rate"),
            meaning: "synthetic records".into(),
            summary: lag,
        };
        if let Some(group) = self.latencies.first_mut() {
            group.series.push(series);
        }
        Ok(())
    }

    /// What the primary is offered of what it can do.
    fn offered(&self, most: f64) -> f64 {
        most * f64::from(self.arguments.rate) / 100.0
    }

    /// Commits what a secondary then catches up on.
    fn backlog(&mut self) -> Result<f64, String> {
        self.west.ask(&Ask::Unlink)?;
        let bytes = f64::from(self.arguments.catch_up) * MEBI;
        let before = self.west.status()?.committed;
        let rate = 20_000.0;
        let seconds = bytes / CATCH_UP_RECORD as f64 / rate;
        let payload = CATCH_UP_RECORD;
        let load = Load { rate: Some(rate), payload, skew: 50, ..self.records(None, 0, seconds) };
        let loaded = self.west.load(&load, |_| {})?;
        if self.west.status()?.committed == before {
            return Err("nothing was committed to catch up on".into());
        }
        Ok(loaded.acknowledged as f64 * CATCH_UP_RECORD as f64)
    }

    /// MiB/s and processor seconds per GiB of a catch-up into three durable disks.
    fn once(&mut self, delay: Duration) -> Result<(f64, [f64; 2]), String> {
        let bytes = self.backlog()?;
        let cpu = |job: &mut Job| Ok::<_, String>([job.west.status()?.cpu, job.east.status()?.cpu]);
        let before = cpu(self)?;
        self.wan.delay(delay);
        self.link(false)?;
        // A session begins after some round trips, and the first answer is one more away; how fast it then goes is the question.
        let (mut first, mut left) = (None, 0.0);
        self.west.until("the first answer", |status| {
            let Some(link) = status.link.as_ref().filter(|link| link.live) else { return false };
            left = (link.lag_bytes + link.unread) as f64;
            link.position > *first.get_or_insert(link.position)
        })?;
        let start = Instant::now();
        self.west.until_shipped()?;
        let took = start.elapsed().as_secs_f64();
        self.wan.delay(Duration::ZERO);
        let after = cpu(self)?;
        self.trim()?;
        let gibi = bytes / MEBI / 1024.0;
        Ok((left / MEBI / took, [0, 1].map(|side| (after[side] - before[side]) / gibi)))
    }

    /// What the secondary's disks take by themselves, of transactions as large as a batch: MiB/s.
    fn log_alone(&mut self) -> Result<f64, String> {
        let payload = (1 << 20) - 4096;
        let large = Load { payload, skew: 50, ..self.records(None, 16, self.arguments.seconds) };
        self.west.ask(&Ask::Unlink)?;
        let loaded = self.west.load(&large, |_| {})?;
        self.link(false)?;
        self.west.until_shipped()?;
        self.trim()?;
        Ok(loaded.acknowledged as f64 * payload as f64 / MEBI / loaded.seconds)
    }

    fn catch_up(&mut self, report: &mut Report) -> Result<(), String> {
        self.progress.step("catching up", 3 * CATCH_UP_TURNS as u64);
        // Memory that nobody had touched is slow the first time, files and pages alike.
        self.once(Duration::ZERO)?;
        let (mut rates, mut cpu) = ([0.0; 3], [0.0; 2]);
        for turn in 0..CATCH_UP_TURNS {
            // Who comes first finds a disk that has rested.
            let far_first = if turn % 2 == 1 { Some(self.once(FAR)?) } else { None };
            let (near, spent) = self.once(Duration::ZERO)?;
            let (far, _) = far_first.map_or_else(|| self.once(FAR), Ok)?;
            let log = self.log_alone()?;
            let share = 1.0 / CATCH_UP_TURNS as f64;
            cpu = [0, 1].map(|side| cpu[side] + spent[side] * share);
            rates = [rates[0] + near * share, rates[1] + far * share, rates[2] + log * share];
            let shown = [near, far, log].map(number).join(", ");
            self.progress.at(3 * (turn as u64 + 1), &format!("near, far, a log alone: {shown} MiB/s"));
        }
        let [near, far, log] = rates;
        self.progress.done(&format!(
            "caught up at {} MiB/s, with 100 ms of round trip at {} MiB/s; a region by itself commits {} MiB/s",
            number(near),
            number(far),
            number(log)
        ));
        report.headline(number(near), "MiB/s", "caught up, into three durable copies");
        report.ratios.push(at_least("catch-up into three disks, against the log alone", "MiB/s", near, log, 0.85));
        report.ratios.push(at_least("catch-up over 100 ms, against none", "MiB/s", far, near, 0.9));
        let both = cpu[0] + cpu[1];
        report.aims.push(Ratio::value(
            "processor for 800 MiB/s of catch-up, both sides",
            "cores",
            both * 800.0 / 1024.0,
            1.0,
        ));
        report.tables.push(Table {
            title: "Processor seconds per GiB of catch-up".into(),
            note: "The network's own threads are not counted.".into(),
            columns: ["primary", "secondary", "both"].map(String::from).to_vec(),
            rows: vec![vec![number(cpu[0]), number(cpu[1]), number(both)]],
            first: false,
        });
        Ok(())
    }

    /// The sender and a receiver that verifies and discards; and a plain stream beside them.
    fn sender_alone(&mut self, report: &mut Report) -> Result<(), String> {
        self.progress.step("the sender alone", 0);
        // All of it stays in memory, as the latest of a log does; then it is read from the segments.
        self.west.ask(&Ask::Unlink)?;
        self.west.restart(self.arguments.catch_up + 64)?;
        let from = Lsn(self.west.status()?.committed);
        let bytes = self.backlog()?;
        // In turns: before and after each pass that it is held against.
        let plain = || plain_stream(bytes as u64).map(|rate| rate / MEBI).map_err(text);
        let before = plain()?;
        let hot = self.discarded(from, bytes)?;
        let beside_hot = f64::midpoint(before, plain()?);
        self.west.restart(64)?;
        let cold = self.discarded(from, bytes)?;
        let before = plain()?;
        let cached = self.discarded(from, bytes)?;
        let beside_cached = f64::midpoint(before, plain()?);
        let [from_hot, from_cold, from_cached] = [&hot, &cold, &cached].map(|pass| number(pass.rate));
        self.progress.done(&format!(
            "to a receiver that verifies and discards {from_hot} MiB/s from hot blocks, {from_cold} MiB/s from the disks, {from_cached} MiB/s from the system's cache; plain streams beside the first {} MiB/s, beside the last {}",
            number(beside_hot),
            number(beside_cached)
        ));
        let passes =
            [("from hot blocks", &hot, beside_hot), ("from segments in the system's cache", &cached, beside_cached)];
        for (name, pass, plain) in passes {
            let figure = format!("to a receiver that discards, {name}, against a plain stream");
            report.ratios.push(at_least(&figure, "MiB/s", pass.rate, plain, 0.8));
            let figure = format!("MiB a core-second of the sender, {name}");
            let aim = Ratio::value(&figure, "MiB", pass.per_core, 2_000.0);
            report.aims.push(Ratio { more_is_better: true, ..aim });
        }
        report.notes.push(format!(
            "Read from the disks, the log went to a receiver that discards at {from_cold} MiB/s. From hot blocks that receiver took {} s of processor.",
            number(hot.receiver)
        ));
        Ok(())
    }

    fn discarded(&mut self, from: Lsn, bytes: f64) -> Result<Discarded, String> {
        let (block, checksum) = self.west.ask(&Ask::Anchor { position: from.0 })?.anchor;
        let discard = Discard::start(from, Anchor { block: Lsn(block), checksum }).map_err(text)?;
        let before = self.west.status()?.cpu;
        let start = Instant::now();
        self.west.ask(&Ask::Link { to: discard.address, compress: false })?;
        while (discard.bytes.load(Ordering::Relaxed) as f64) < bytes {
            if start.elapsed() > PATIENCE {
                return Err("the receiver that discards did not get everything".into());
            }
            std::thread::sleep(LONG);
        }
        let cpu = self.west.status()?.cpu - before;
        self.west.ask(&Ask::Unlink)?;
        let shipped = discard.bytes.load(Ordering::Relaxed) as f64 / MEBI;
        let [rest, took] = [0, 1].map(|at| discard.rest[at].load(Ordering::Relaxed) as f64);
        Ok(Discarded {
            rate: rest / MEBI / (took / 1e9),
            per_core: shipped / cpu,
            receiver: discard.cpu.load(Ordering::Relaxed) as f64 / 1e9,
        })
    }
}
