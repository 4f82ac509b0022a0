//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use meridian::Ack;

use crate::commit_load::By;
use crate::geo::GeoArguments;
use crate::geo::node::NodeArguments;
use crate::space::Place;

/// Measures, breaks and verifies a Meridian region.
///
/// Without a command: makes a region on four directories, commits a real data set, loses a disk, kills itself,
/// recovers, verifies everything it was promised, ships it to a second region, and leaves a report.
#[derive(Debug, Parser)]
#[command(version, about, long_about)]
pub(crate) struct Cli {
    /// Where the run keeps its disks and leaves its report.
    #[arg(long, global = true, default_value = "meridian-report")]
    pub(crate) out: PathBuf,
    /// Keep the disks' directories when the run is over, to inspect them.
    #[arg(long, global = true)]
    pub(crate) keep: bool,
    /// What to do instead of the main job.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

impl Cli {
    /// The run's folder.
    pub(crate) fn place(&self) -> Place {
        Place { out: self.out.clone(), keep: self.keep }
    }
}

/// What to do instead of the main job.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure the bare durable writes that the commit path is compared with.
    Limit(Load),
    /// Measure the commit path of a region.
    Log(LogArguments),
    /// Measure other libraries in turns with Meridian (needs a build with the feature `peers`).
    #[cfg(feature = "peers")]
    Peers(Load),
    /// Measure how long a region of many sealed segments takes to open.
    Recovery {
        /// Sealed segments; 1,600 are as many as 100 GiB has at the default size.
        #[arg(long, default_value_t = 1_600, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        segments: u32,
    },
    /// Show the superblocks, segments, blocks and records of a closed region.
    Inspect {
        /// The region's disks, or some of them.
        #[arg(required = true)]
        disks: Vec<PathBuf>,
        /// Show each block.
        #[arg(long)]
        blocks: bool,
        /// Show each transaction and the first bytes of its records.
        #[arg(long)]
        records: bool,
        /// One segment only.
        #[arg(long)]
        segment: Option<u32>,
        /// Machine-readable.
        #[arg(long)]
        json: bool,
    },
    /// Check that the copies of a closed region verify, agree and follow one another.
    Verify {
        /// All disks of the region.
        #[arg(required = true)]
        disks: Vec<PathBuf>,
        /// Machine-readable.
        #[arg(long)]
        json: bool,
    },
    /// Run a primary and a secondary region as processes, break the network between them and the processes, and prove that they hold the same.
    Geo(GeoArguments),
    /// Run one region as a process that is told what to do by lines of JSON: half of `geo`.
    Region(NodeArguments),
    /// Commit flights until killed: the main job's victim.
    #[command(hide = true)]
    Child {
        /// The first transaction's number.
        #[arg(long)]
        first: u64,
        /// Transactions a second.
        #[arg(long, value_parser = positive)]
        rate: f64,
        /// The disks' directories.
        disks: Vec<PathBuf>,
    },
}

/// What `log` measures, and beside what.
#[derive(Clone, Debug, Args)]
pub(crate) struct LogArguments {
    /// The load.
    #[command(flatten)]
    pub(crate) load: Load,
    /// Who the clients are, in a closed loop.
    #[arg(long, value_enum, default_value_t = By::Pipeline)]
    pub(crate) by: By,
    /// Measure the limit in turns, and report ratios.
    #[arg(long)]
    pub(crate) limit: bool,
}

/// When a record counts as committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AckLevel {
    /// Two of three copies are durable.
    Quorum,
    /// Every copy is durable.
    All,
}

impl AckLevel {
    /// How many of three copies that is.
    pub(crate) fn copies(self) -> usize {
        match self {
            AckLevel::Quorum => 2,
            AckLevel::All => 3,
        }
    }

    /// The engine's word for it.
    pub(crate) fn engine(self) -> Ack {
        match self {
            AckLevel::Quorum => Ack::Quorum,
            AckLevel::All => Ack::All,
        }
    }
}

/// What is written, how, for how long.
#[derive(Clone, Debug, Args)]
pub(crate) struct Load {
    /// Bytes of one record.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) payload: u32,
    /// Records outstanding in a closed loop.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) clients: u32,
    /// When a record counts.
    #[arg(long, value_enum, default_value_t = AckLevel::Quorum)]
    pub(crate) ack: AckLevel,
    /// Directories that stand for disks, three or more, with spaces or commas between them. Default: three below the output directory.
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    pub(crate) disks: Vec<PathBuf>,
    /// Seconds to measure.
    #[arg(long, default_value_t = 10.0, value_parser = positive)]
    pub(crate) seconds: f64,
    /// Records a second in an open loop, each timed from when it was due; without it, a closed loop.
    #[arg(long, value_parser = positive)]
    pub(crate) rate: Option<f64>,
    /// Commits in flight.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) in_flight: u32,
    /// Do not use io_uring.
    #[arg(long)]
    pub(crate) threads: bool,
}

/// The longest measurement and the greatest rate that make sense. What is beyond, or below its inverse, would not fit into
/// the clock's arithmetic.
const MOST: f64 = 1e9;

/// A number that is finite and more than 0: a time or a rate that something can be measured with.
///
/// # Errors
/// A message that says so.
pub(crate) fn positive(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    if (1.0 / MOST..=MOST).contains(&value) {
        Ok(value)
    } else {
        Err(format!("it has to be finite and more than 0, from {:e} to {MOST:e}", 1.0 / MOST))
    }
}
