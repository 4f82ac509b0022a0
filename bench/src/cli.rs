//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Measures, breaks and verifies a Meridian region.
///
/// Without a command: makes a region on three directories, commits a real data set, loses a disk, kills itself,
/// recovers, verifies everything it was promised, and leaves a report.
#[derive(Debug, Parser)]
#[command(version, about, long_about)]
pub(crate) struct Cli {
    /// Where the run keeps its disks and leaves its report.
    #[arg(long, global = true, default_value = "meridian-report")]
    pub(crate) out: PathBuf,
    /// What to do instead of the main job.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What to do instead of the main job.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure the bare durable writes that the commit path is compared with.
    Limit(Load),
}

/// When a record counts as committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AckLevel {
    /// Two of three copies are durable.
    Quorum,
    /// Every copy is durable.
    All,
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
    /// Directories that stand for disks: three or more. Default: three below the output directory.
    #[arg(long, value_delimiter = ',')]
    pub(crate) disks: Vec<PathBuf>,
    /// Seconds to measure.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
    /// Records a second in an open loop, each timed from when it was due; without it, a closed loop.
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Commits in flight.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) in_flight: u32,
    /// Do not use io_uring.
    #[arg(long)]
    pub(crate) threads: bool,
}
