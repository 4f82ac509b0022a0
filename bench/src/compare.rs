//! The engine and the limit in turns: A B A B in one run, so that whatever the machine does it does to both.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use meridian::io::DriverChoice;
use meridian::{AccountId, Ack, DiskConfig, Lsn, Options, Region, SegmentId, Stats};

use crate::commit_load::{By, CommitLoad};
use crate::latency::summarize;
use crate::limit::{Limit, LimitConfig, Slice};
use crate::limit_job::FILE_SIZE;
use crate::report::{LatencyGroup, Ratio, Series, bytes, number};

/// Segment files of a measured region.
const SEGMENT: u32 = 32 << 20;
/// How many segments are kept behind the newest; older ones are trimmed between two slices and written over.
const KEEP: u32 = 2;
/// After how long a write has stalled. A busy machine lets whole processes stand still for a second: that is no disk's
/// failure, and must not change the set in the middle of a measurement.
const PATIENCE: Duration = Duration::from_secs(10);
/// The segment up to which a fresh region is warmed up.
const WARM: u32 = 8;
/// Bytes that different payloads are cut from: four of the link's batches.
const POOL: usize = 4 << 20;
/// How long each side has its turn.
pub(crate) const SLICE: Duration = Duration::from_millis(400);

/// What both sides are asked to do.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// Bytes of one record.
    pub(crate) payload: usize,
    /// Records outstanding.
    pub(crate) clients: usize,
    /// Records a second, in an open loop.
    pub(crate) rate: Option<f64>,
    /// When a record counts.
    pub(crate) ack: Ack,
    /// Who commits to the engine.
    pub(crate) by: By,
    /// Blocks in flight, on both sides.
    pub(crate) in_flight: usize,
    /// No io_uring, on both sides.
    pub(crate) threads: bool,
}

/// A region to be measured, beside which the limit takes its turns.
pub(crate) struct Bench {
    disks: Vec<PathBuf>,
    region: Region,
    account: AccountId,
}

/// What both sides did.
pub(crate) struct Measured {
    /// The engine.
    pub(crate) ours: Slice,
    /// The limit; empty if it was not asked for.
    pub(crate) limit: Slice,
    /// How the limit wrote.
    pub(crate) limit_driver: Option<String>,
    /// The engine's own counters over the measured slices.
    pub(crate) stats: Stats,
}

impl Bench {
    /// Makes a fresh region in each of the disks' directories, and goes once around its segment files, so that what is
    /// measured is writing into recycled ones, as in the long run.
    ///
    /// # Errors
    /// A message with what the engine says.
    pub(crate) fn open(disks: &[PathBuf], in_flight: usize, threads: bool) -> Result<Bench, String> {
        let options = region_options(disks, "log", in_flight, threads);
        let region = Region::create(options, ()).map_err(text)?;
        let account = region.create_account("bench", Ack::Quorum).map_err(text)?;
        let bench = Bench { disks: disks.to_vec(), region, account };
        let work =
            Work { payload: 64 << 10, clients: 32, rate: None, ack: Ack::All, by: By::Pipeline, in_flight, threads };
        let load = bench.load(&work);
        while bench.active()?.0 < WARM {
            bench.slice(&load, Duration::from_millis(100))?;
        }
        Ok(bench)
    }

    /// Where the engine writes now.
    fn active(&self) -> Result<SegmentId, String> {
        Ok(self.region.health().map_err(text)?.active)
    }

    /// The engine's driver.
    ///
    /// # Errors
    /// A message with what the engine says.
    pub(crate) fn driver(&self) -> Result<String, String> {
        Ok(self.region.health().map_err(text)?.driver)
    }

    /// The engine's side of some work.
    pub(crate) fn load(&self, work: &Work) -> CommitLoad {
        CommitLoad {
            account: self.account,
            payloads: Payloads::new(work.payload),
            clients: work.clients,
            rate: work.rate,
            ack: work.ack,
            by: work.by,
        }
    }

    /// One slice of each side after a slice to warm up, `rounds` times; who comes first changes. `seen` is told of each engine slice.
    ///
    /// # Errors
    /// A message with the first commit or write that failed.
    pub(crate) fn run(
        &self,
        work: &Work,
        rounds: usize,
        with_limit: bool,
        seen: &mut dyn FnMut(&Slice),
    ) -> Result<Measured, String> {
        let mut bare = with_limit.then(|| Limit::open(limit_config(&self.disks, work))).transpose().map_err(text)?;
        let load = self.load(work);
        self.slice(&load, SLICE)?;
        if let Some(bare) = &mut bare {
            bare.warm_up(SLICE).map_err(text)?;
        }
        let before = self.region.stats().map_err(text)?;
        let (mut ours, mut limit) = (Slice::empty(), Slice::empty());
        for round in 0..rounds {
            // Who comes first finds a disk that has rested.
            for turn in [round % 2, (round + 1) % 2] {
                if turn == 0 {
                    let one = self.slice(&load, SLICE)?;
                    seen(&one);
                    ours.add(&one);
                } else if let Some(bare) = &mut bare {
                    limit.add(&bare.run(SLICE).map_err(text)?);
                }
            }
        }
        let stats = since(self.region.stats().map_err(text)?, &before);
        Ok(Measured { ours, limit, limit_driver: bare.map(|bare| bare.driver()), stats })
    }

    /// One slice of the engine, and room for the next.
    ///
    /// # Errors
    /// A message with the first commit that failed.
    pub(crate) fn slice(&self, load: &CommitLoad, duration: Duration) -> Result<Slice, String> {
        let done = load.run(&self.region, duration).map_err(|error| format!("a commit failed: {error}"))?;
        let keep = SegmentId(self.active()?.0.saturating_sub(KEEP).max(1));
        self.region.trim(Lsn::new(keep, 0)).map_err(|error| format!("cannot trim: {error}"))?;
        Ok(done)
    }

    /// Closes the region in order and, unless it is to be kept, frees the space.
    ///
    /// # Errors
    /// A message with what the engine or the file system says.
    pub(crate) fn close(self, keep: bool) -> Result<(), String> {
        self.region.close().map_err(text)?;
        if keep {
            return Ok(());
        }
        let folders = self.disks.iter().flat_map(|disk| ["log", "limit"].map(|name| disk.join(name)));
        folders.filter(|folder| folder.exists()).try_for_each(|folder| fs::remove_dir_all(folder).map_err(text))
    }
}

/// The text of any error.
fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The options of a region in the folder `name` of each disk.
pub(crate) fn region_options(disks: &[PathBuf], name: &str, in_flight: usize, threads: bool) -> Options {
    let configs = disks
        .iter()
        .enumerate()
        .map(|(place, disk)| DiskConfig::new(disk.join(name), &format!("disk-{}", place + 1), "zone-1"));
    let mut options = Options::new(configs.collect());
    options.segment_bytes = SEGMENT;
    options.stall_timeout = PATIENCE;
    options.commit_depth = in_flight;
    if threads {
        options.driver = DriverChoice::Threads;
    }
    options
}

fn limit_config(disks: &[PathBuf], work: &Work) -> LimitConfig {
    LimitConfig {
        directories: disks.iter().take(3).map(|disk| disk.join("limit")).collect(),
        record: work.payload,
        outstanding: work.clients,
        in_flight: work.in_flight,
        ack: if work.ack == Ack::All { 3 } else { 2 },
        file_size: FILE_SIZE,
        rate: work.rate,
        threads: work.threads,
    }
}

/// Payloads of one length: slices of one pool of bytes, side by side, so that neither one of them nor a batch of them can be compressed away
/// below. They repeat after [`POOL`] bytes.
#[derive(Clone, Debug)]
pub(crate) struct Payloads {
    pool: Bytes,
    len: usize,
}

impl Payloads {
    /// Payloads of `len` bytes.
    pub(crate) fn new(len: usize) -> Payloads {
        Payloads { pool: incompressible(POOL.max(len)), len }
    }

    /// The payload of the record of this number. It costs no copy.
    pub(crate) fn of(&self, number: u64) -> Bytes {
        let places = (self.pool.len() / self.len.max(1)) as u64;
        let at = (number % places.max(1)) as usize * self.len;
        self.pool.slice(at..at + self.len)
    }
}

/// Bytes that cannot be compressed by themselves; a repetition of them can.
fn incompressible(len: usize) -> Bytes {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut all: Vec<u8> = (0..len.div_ceil(8)).flat_map(next).collect();
    all.truncate(len);
    Bytes::from(all)
}

/// What was counted between two readings of the same region's counters.
fn since(mut after: Stats, before: &Stats) -> Stats {
    let pairs = [
        (&mut after.queue, &before.queue),
        (&mut after.group_commit, &before.group_commit),
        (&mut after.quorum, &before.quorum),
        (&mut after.apply, &before.apply),
        (&mut after.acknowledged, &before.acknowledged),
        (&mut after.set_change, &before.set_change),
    ];
    for (later, earlier) in pairs.into_iter().chain(after.disks.iter_mut().zip(&before.disks)) {
        // The later reading holds everything that the earlier one does, so there is nothing it could lack.
        later.subtract(earlier).unwrap_or_else(|error| unreachable!("counters only grow: {error:?}"));
    }
    after.blocks -= before.blocks;
    after.transactions -= before.transactions;
    after.records -= before.records;
    after.bytes -= before.bytes;
    after
}

/// The engine's stages as a group of curves.
pub(crate) fn stages(title: &str, note: &str, stats: &Stats) -> LatencyGroup {
    let series = |name: &str, meaning: &str, histogram| Series {
        name: name.to_string(),
        meaning: meaning.to_string(),
        summary: summarize(histogram),
    };
    let mut all = vec![
        series("queue", "accepted → in a block", &stats.queue),
        series("group commit", "first record in a block → block on its way", &stats.group_commit),
    ];
    for (disk, histogram) in stats.disks.iter().enumerate().filter(|(_, histogram)| !histogram.is_empty()) {
        all.push(series(&format!("disk {}", disk + 1), "block on its way → durable there", histogram));
    }
    all.push(series("quorum", "block on its way → durable on two", &stats.quorum));
    all.push(series("apply", "through the state machine", &stats.apply));
    all.push(series("acknowledged", "accepted → answered", &stats.acknowledged));
    LatencyGroup { title: title.to_string(), note: note.to_string(), series: all }
}

/// Which figure of both sides is set against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Records a second; more is better.
    Rate,
    /// MiB of payload a second; more is better.
    Throughput,
    /// The median latency.
    P50,
    /// The 99th percentile.
    P99,
    /// Process CPU a record.
    Cpu,
}

/// The figure of both sides, and the aim: a ratio, but for CPU, where it is microseconds.
pub(crate) fn ratio(figure: Figure, work: &Work, measured: &Measured, aim: Option<f64>) -> Ratio {
    let of = |slice: &Slice| {
        let quantile = |quantile| slice.latency.value_at_quantile(quantile) as f64 / 1_000.0;
        match figure {
            Figure::Rate => slice.rate(),
            Figure::Throughput => slice.rate() * work.payload as f64 / 1_048_576.0,
            Figure::P50 => quantile(0.5),
            Figure::P99 => quantile(0.99),
            Figure::Cpu => slice.cpu_per_record(),
        }
    };
    let (ours, limit) = (of(&measured.ours), of(&measured.limit));
    let (what, unit) = match figure {
        Figure::Rate => ("", "records/s"),
        Figure::Throughput => ("", "MiB/s"),
        Figure::P50 => (", p50", "µs"),
        Figure::P99 => (", p99", "µs"),
        Figure::Cpu => (", process CPU a record", "µs"),
    };
    let load = work.rate.map_or_else(
        || format!("{} outstanding", number(work.clients as f64)),
        |rate| format!("{} a second", number(rate)),
    );
    Ratio {
        figure: format!("{}, {load}{what}", bytes(work.payload as f64)),
        unit: unit.to_string(),
        ours,
        limit,
        ratio: ours / limit,
        target: aim,
        absolute: figure == Figure::Cpu,
        more_is_better: matches!(figure, Figure::Rate | Figure::Throughput),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_payloads_of_a_batch_are_alike() {
        for len in [100, 1 << 10, 64 << 10] {
            let payloads = Payloads::new(len);
            let batch = (1 << 20) / len as u64;
            let different: BTreeSet<Bytes> = (777..777 + batch).map(|number| payloads.of(number)).collect();
            assert_eq!(different.len() as u64, batch);
            assert!(different.iter().all(|payload| payload.len() == len));
        }
        assert_eq!(Payloads::new(0).of(5), Bytes::new());
        assert_eq!(Payloads::new(POOL + 1).of(5).len(), POOL + 1);
    }
}
