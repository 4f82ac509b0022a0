//! The limit: durable writes of blocks to the same directories, batched as group commit does, and nothing else.
//!
//! No frames, no checksums, no copies, no callers: a figure of the engine divided by the limit's, taken in turns in one
//! run, says what the engine costs on this machine at this hour. A block here is the bare payload of its
//! records padded to 4 KiB, from one buffer that never changes; it counts when `ack` directories have it, in log order.
//! What is outstanding in a closed loop goes out as one block, or as several at once: [`Limit::warm_up`] tries which is fastest.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::latency;
use crate::machine::{CpuSample, CpuUse};

#[cfg(target_os = "linux")]
mod ring;
mod threads;

/// Blocks are multiples of this, and lie at multiples of it.
const ALIGN: usize = 4096;
/// The largest block: the shared buffer's size, and the size of the writes that prepare a file.
const LARGEST_BLOCK: usize = 1 << 20;
/// How many acknowledged blocks may wait for their slowest copy.
const LAG: usize = 16;
/// How long each way to cut what is outstanding into blocks is tried at a time, and how often.
const TRY: Duration = Duration::from_millis(100);
const TRIES: usize = 2;
/// The name of the file that is written over and over.
const FILE: &str = "limit";

/// What to write.
#[derive(Clone, Debug)]
pub(crate) struct LimitConfig {
    /// One directory per copy; created if missing.
    pub(crate) directories: Vec<PathBuf>,
    /// Bytes of one record.
    pub(crate) record: usize,
    /// Records issued and not yet acknowledged (closed loop).
    pub(crate) outstanding: usize,
    /// Blocks being written at once.
    pub(crate) in_flight: usize,
    /// Copies that must be durable before a record counts.
    pub(crate) ack: usize,
    /// Bytes of each file; it is written through once before the first slice.
    pub(crate) file_size: u64,
    /// Records a second in an open loop; closed loop without.
    pub(crate) rate: Option<f64>,
    /// Do not try io_uring.
    pub(crate) threads: bool,
}

/// Starts durable writes of the shared buffer's first bytes, and says when they are done.
trait Writer {
    /// What it is, and why it was not the first choice if it was not.
    fn name(&self) -> String;
    /// Write `len` bytes at `offset` to every directory. One completion with `token` comes for each.
    fn submit(&mut self, token: u64, offset: u64, len: usize) -> io::Result<()>;
    /// Append the tokens of finished writes, waiting until there is one or `timeout` is over.
    fn wait(&mut self, timeout: Duration, done: &mut Vec<u64>) -> io::Result<()>;
}

/// Records that were issued at one moment.
#[derive(Clone, Copy)]
struct Group {
    issued: Instant,
    records: usize,
}

/// A block between its submission and its last copy.
struct Block {
    groups: Vec<Group>,
    records: usize,
    copies: usize,
}

/// What one slice of the run measured. Summable.
pub(crate) struct Slice {
    /// Records acknowledged.
    pub(crate) records: u64,
    /// From the first issue to the last acknowledgement.
    pub(crate) elapsed: Duration,
    /// Nanoseconds from issue (or intended issue) to acknowledgement, one entry a record.
    pub(crate) latency: Histogram<u64>,
    /// Where the processor's time went.
    pub(crate) cpu: CpuUse,
}

impl Slice {
    /// Nothing measured yet.
    pub(crate) fn empty() -> Slice {
        Slice { records: 0, elapsed: Duration::ZERO, latency: latency::histogram(), cpu: CpuUse::default() }
    }

    /// Adds another slice of the same kind.
    pub(crate) fn add(&mut self, other: &Slice) {
        self.records += other.records;
        self.elapsed += other.elapsed;
        self.latency += &other.latency;
        self.cpu += other.cpu;
    }

    /// Records a second.
    pub(crate) fn rate(&self) -> f64 {
        self.records as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Microseconds of this process's processor time a record.
    pub(crate) fn cpu_per_record(&self) -> f64 {
        self.cpu.process * 1e6 / (self.records as f64).max(1.0)
    }
}

/// The prepared files and the writer; [`Limit::run`] may be called any number of times.
pub(crate) struct Limit {
    config: LimitConfig,
    writer: Box<dyn Writer>,
    /// Into how many blocks what is outstanding in a closed loop is cut.
    blocks_at_once: usize,
    /// Where the next block goes.
    offset: u64,
    /// The sequence of the next block.
    next: u64,
    /// Blocks that miss a copy; the last is `next - 1`.
    blocks: VecDeque<Block>,
    /// How many of `blocks`, from the front, are acknowledged.
    acknowledged: usize,
    done: Vec<u64>,
}

impl Limit {
    /// Creates the files and writes them through, so that every later write finds its extents written.
    ///
    /// # Errors
    /// What the file system says; `InvalidInput` for numbers that make no sense.
    pub(crate) fn open(config: LimitConfig) -> io::Result<Limit> {
        let copies = config.directories.len();
        let numbers = [config.record, config.outstanding, config.in_flight, config.ack];
        if numbers.contains(&0) || config.ack > copies || config.record > LARGEST_BLOCK {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "sizes and counts start at 1; a record is at most 1 MiB",
            ));
        }
        if config.file_size < 4 * LARGEST_BLOCK as u64 || !config.file_size.is_multiple_of(LARGEST_BLOCK as u64) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file is a multiple of 1 MiB, at least 4"));
        }
        let paths: Vec<PathBuf> = config.directories.iter().map(|path| path.join(FILE)).collect();
        for path in &config.directories {
            fs::create_dir_all(path)?;
        }
        let writer = choose_writer(&paths, config.in_flight, config.threads)?;
        let (blocks, done) = (VecDeque::new(), Vec::new());
        let mut limit = Limit { config, writer, blocks_at_once: 1, offset: 0, next: 0, blocks, acknowledged: 0, done };
        limit.prepare()?;
        Ok(limit)
    }

    /// How the blocks are written.
    pub(crate) fn driver(&self) -> String {
        let name = self.writer.name();
        match self.blocks_at_once {
            _ if self.config.rate.is_some() => name,
            1 => format!("{name}; what is outstanding as one block"),
            blocks => format!("{name}; what is outstanding as {blocks} blocks at once"),
        }
    }

    /// Tries in turns whether what is outstanding is fastest as one block, as two, or as many as may be in flight, and keeps the fastest. Then
    /// runs for `duration`. An open loop has nothing to cut: it sends what is due.
    ///
    /// # Errors
    /// As [`Limit::run`].
    pub(crate) fn warm_up(&mut self, duration: Duration) -> io::Result<()> {
        if self.config.rate.is_none() {
            let ways = self.ways();
            let mut tried: Vec<_> = ways.into_iter().map(|blocks| (blocks, Slice::empty())).collect();
            for _ in 0..TRIES {
                for (blocks, slice) in &mut tried {
                    self.blocks_at_once = *blocks;
                    slice.add(&self.run(TRY)?);
                }
            }
            let best = tried.iter().max_by(|one, other| one.1.rate().total_cmp(&other.1.rate()));
            self.blocks_at_once = best.map_or(1, |(blocks, _)| *blocks);
        }
        self.run(duration).map(drop)
    }

    /// The numbers of blocks that are tried: no more than may be in flight, and than there are records.
    fn ways(&self) -> BTreeSet<usize> {
        let most = self.config.in_flight.min(self.config.outstanding);
        [1, 2, most].into_iter().filter(|blocks| *blocks <= most).collect()
    }

    /// Issues records for `duration`, waits for the last, and says what was measured.
    ///
    /// # Errors
    /// The first failed write.
    pub(crate) fn run(&mut self, duration: Duration) -> io::Result<Slice> {
        let mut slice = Slice::empty();
        let cpu = CpuSample::now();
        let start = Instant::now();
        let mut pending = VecDeque::new();
        if self.config.rate.is_none() {
            pending.push_back(Group { issued: start, records: self.config.outstanding });
        }
        let mut arrived = 0_u64;
        loop {
            let now = Instant::now();
            let over = now - start >= duration;
            if let Some(rate) = self.config.rate {
                // What was due while a write was waited for is owed, also where the time was over meanwhile.
                arrivals(rate, start, now.min(start + duration), &mut arrived, &mut pending);
            }
            if over && self.config.rate.is_none() {
                pending.clear();
            }
            while !pending.is_empty() && self.has_room() {
                self.commit(&mut pending)?;
            }
            if over && pending.is_empty() && self.blocks.len() == self.acknowledged {
                break;
            }
            let wait = self.config.rate.map_or(Duration::from_millis(100), |rate| {
                let next = start + Duration::from_secs_f64((arrived + 1) as f64 / rate);
                next.saturating_duration_since(Instant::now()).min(Duration::from_millis(100))
            });
            self.collect(wait, &mut slice, &mut pending)?;
        }
        slice.elapsed = start.elapsed();
        while !self.blocks.is_empty() {
            self.collect(Duration::from_millis(100), &mut slice, &mut pending)?;
        }
        slice.cpu = cpu.until(&CpuSample::now());
        Ok(slice)
    }

    /// Writes each file through once, in order.
    fn prepare(&mut self) -> io::Result<()> {
        let mut slice = Slice::empty();
        let mut none = VecDeque::new();
        for _ in 0..self.config.file_size / LARGEST_BLOCK as u64 {
            while !self.has_room() {
                self.collect(Duration::from_millis(100), &mut slice, &mut none)?;
            }
            self.submit(Block { groups: Vec::new(), records: 0, copies: 0 }, LARGEST_BLOCK)?;
        }
        while !self.blocks.is_empty() {
            self.collect(Duration::from_millis(100), &mut slice, &mut none)?;
        }
        Ok(())
    }

    /// Whether another block may start: a commit slot is free and the slowest copy is not too far behind.
    fn has_room(&self) -> bool {
        self.blocks.len() - self.acknowledged < self.config.in_flight && self.blocks.len() < self.config.in_flight + LAG
    }

    /// Gathers what is pending into one block and starts it.
    fn commit(&mut self, pending: &mut VecDeque<Group>) -> io::Result<()> {
        let mut most = LARGEST_BLOCK / self.config.record;
        if self.config.rate.is_none() {
            most = most.min(self.config.outstanding.div_ceil(self.blocks_at_once));
        }
        let mut block = Block { groups: Vec::new(), records: 0, copies: 0 };
        while let Some(group) = pending.front_mut() {
            let take = group.records.min(most - block.records);
            if take == 0 {
                break;
            }
            block.groups.push(Group { issued: group.issued, records: take });
            block.records += take;
            group.records -= take;
            if group.records == 0 {
                pending.pop_front();
            }
        }
        let len = (block.records * self.config.record).next_multiple_of(ALIGN);
        self.submit(block, len)
    }

    fn submit(&mut self, block: Block, len: usize) -> io::Result<()> {
        if self.offset + len as u64 > self.config.file_size {
            self.offset = 0;
        }
        self.writer.submit(self.next, self.offset, len)?;
        self.offset += len as u64;
        self.next += 1;
        self.blocks.push_back(block);
        Ok(())
    }

    /// Waits for completions; acknowledges in log order; in a closed loop each acknowledged record is issued again.
    fn collect(&mut self, wait: Duration, slice: &mut Slice, pending: &mut VecDeque<Group>) -> io::Result<()> {
        self.done.clear();
        self.writer.wait(wait, &mut self.done)?;
        let first = self.next - self.blocks.len() as u64;
        for token in &self.done {
            self.blocks[(token - first) as usize].copies += 1;
        }
        let now = Instant::now();
        let mut again = 0;
        while let Some(block) = self.blocks.get(self.acknowledged)
            && block.copies >= self.config.ack
        {
            for group in &block.groups {
                latency::record(&mut slice.latency, now - group.issued, group.records as u64);
            }
            slice.records += block.records as u64;
            again += block.records;
            self.acknowledged += 1;
        }
        if again > 0 && self.config.rate.is_none() {
            pending.push_back(Group { issued: now, records: again });
        }
        while self.acknowledged > 0 && self.blocks[0].copies == self.config.directories.len() {
            self.blocks.pop_front();
            self.acknowledged -= 1;
        }
        Ok(())
    }
}

/// Adds the records that an open loop has due by now, each with the moment it was meant to be issued.
fn arrivals(rate: f64, start: Instant, now: Instant, arrived: &mut u64, pending: &mut VecDeque<Group>) {
    let due = ((now - start).as_secs_f64() * rate) as u64;
    while *arrived < due {
        *arrived += 1;
        let issued = start + Duration::from_secs_f64(*arrived as f64 / rate);
        pending.push_back(Group { issued: issued.min(now), records: 1 });
    }
}

#[cfg(target_os = "linux")]
fn choose_writer(paths: &[PathBuf], in_flight: usize, force_threads: bool) -> io::Result<Box<dyn Writer>> {
    if force_threads {
        return Ok(Box::new(threads::Threads::open(paths, in_flight, "asked for")?));
    }
    match ring::Ring::open(paths, in_flight + LAG) {
        Ok(ring) => Ok(Box::new(ring)),
        Err(ring::Refused::Ring(why)) => {
            Ok(Box::new(threads::Threads::open(paths, in_flight, &format!("io_uring refused: {why}"))?))
        }
        Err(ring::Refused::File(why)) => Err(why),
    }
}

#[cfg(not(target_os = "linux"))]
fn choose_writer(paths: &[PathBuf], in_flight: usize, _: bool) -> io::Result<Box<dyn Writer>> {
    Ok(Box::new(threads::Threads::open(paths, in_flight, "not Linux")?))
}

/// A page-aligned buffer whose bytes no file system compresses away.
fn filled_buffer() -> io::Result<memmap2::MmapMut> {
    let mut buffer = memmap2::MmapMut::map_anon(LARGEST_BLOCK)?;
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for word in buffer.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    Ok(buffer)
}

/// Opens (or makes) a file for direct writes; where O_DIRECT is refused, for buffered ones. Says which.
fn open_file(path: &PathBuf) -> io::Result<(fs::File, bool)> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    #[cfg(target_os = "linux")]
    if let Ok(file) = open(path, flags | OFlags::DIRECT, mode) {
        return Ok((file.into(), true));
    }
    Ok((open(path, flags, mode)?.into(), false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &std::path::Path, threads: bool) -> LimitConfig {
        LimitConfig {
            directories: (1..=3).map(|disk| dir.join(disk.to_string())).collect(),
            record: 1_000,
            outstanding: 5,
            in_flight: 2,
            ack: 2,
            file_size: 4 << 20,
            rate: None,
            threads,
        }
    }

    #[test]
    fn every_issued_record_is_acknowledged_and_timed_on_both_writers() {
        for threads in [false, true] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let mut limit = Limit::open(config(dir.path(), threads)).expect("opened");
            for _ in 0..2 {
                let slice = limit.run(Duration::from_millis(30)).expect("run");
                assert!(slice.records >= 5, "{} with {}", slice.records, limit.driver());
                assert_eq!(slice.records, slice.latency.len());
            }
            let length = fs::metadata(dir.path().join("3/limit")).expect("written").len();
            assert_eq!(length, 4 << 20, "wrapped inside the prepared length");
        }
    }

    #[test]
    fn an_open_loop_issues_what_the_rate_says() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = LimitConfig { rate: Some(1_000.0), ..config(dir.path(), true) };
        let slice = Limit::open(config).expect("opened").run(Duration::from_millis(200)).expect("run");
        assert_eq!(slice.records, 200, "however late a write was");
    }

    #[test]
    fn what_is_outstanding_is_cut_into_as_many_blocks_as_is_fastest() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = LimitConfig { outstanding: 9, in_flight: 4, ..config(dir.path(), true) };
        let mut limit = Limit::open(config).expect("opened");
        assert_eq!(limit.ways(), BTreeSet::from([1, 2, 4]));
        for (blocks, records) in [(1, 9), (2, 5), (4, 3)] {
            limit.blocks_at_once = blocks;
            let mut pending = VecDeque::from([Group { issued: Instant::now(), records: 9 }]);
            limit.commit(&mut pending).expect("written");
            assert_eq!(limit.blocks.back().expect("on its way").records, records);
            while !limit.blocks.is_empty() {
                limit.collect(TRY, &mut Slice::empty(), &mut VecDeque::new()).expect("done");
            }
        }
        limit.warm_up(Duration::from_millis(10)).expect("tried");
        assert!(limit.ways().contains(&limit.blocks_at_once));
        assert!(limit.driver().contains("what is outstanding as"), "{}", limit.driver());
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let bad = LimitConfig { ack: 4, ..config(dir.path(), true) };
        assert_eq!(Limit::open(bad).err().map(|error| error.kind()), Some(io::ErrorKind::InvalidInput));
    }
}
