//! The harness of Meridian: measures, breaks and verifies a region. Without arguments, the project's main job.
#![allow(clippy::disallowed_methods, reason = "the harness measures real time and makes real load: it is a seam")]

use std::process::ExitCode;

use clap::Parser;

// First, for its macro.
#[macro_use]
mod say;

mod audit;
mod child;
mod cli;
mod commit_load;
mod compare;
mod delays;
mod flight_load;
mod flights;
mod geo;
mod latency;
mod limit;
mod limit_job;
mod load;
mod log_job;
mod machine;
mod main_job;
mod meter;
mod offline;
#[cfg(feature = "peers")]
mod peers;
mod progress;
mod recovery_job;
mod report;
mod space;
mod unplug;
mod wan;

/// How a subcommand ends: whether everything that was verified holds, or what kept it from running.
type Outcome = Result<bool, String>;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let outcome = match &cli.command {
        Some(cli::Command::Limit(load)) => limit_job::run(&cli.place(), load),
        Some(cli::Command::Log(arguments)) => log_job::run(&cli.place(), arguments),
        #[cfg(feature = "peers")]
        Some(cli::Command::Peers(load)) if load.rate.is_some() => {
            Err("peers measures closed loops only: --rate would be ignored".to_string())
        }
        #[cfg(feature = "peers")]
        Some(cli::Command::Peers(load)) => peers::run(&cli.place(), load),
        Some(cli::Command::Recovery { segments }) => recovery_job::run(&cli.place(), *segments),
        Some(cli::Command::Inspect { disks, blocks, records, segment, json }) => {
            let depth = match (records, blocks) {
                (true, _) => offline::Depth::Records,
                (_, true) => offline::Depth::Blocks,
                _ => offline::Depth::Segments,
            };
            offline::inspect(disks, depth, *segment, *json)
        }
        Some(cli::Command::Verify { disks, json }) => offline::verify_command(disks, *json),
        Some(cli::Command::Region(arguments)) => geo::node::run(arguments),
        Some(cli::Command::Geo(arguments)) => geo::run(&cli.place(), arguments),
        Some(cli::Command::Child { first, rate, disks }) => child::run(disks, *first, *rate),
        None => main_job::run(&cli.place()),
    };
    let outcome = outcome.and_then(|holds| say::failure().map_or(Ok(holds), |why| Err(why.to_owned())));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            say::complain(format_args!("meridian-bench: {message}\n"));
            ExitCode::from(2)
        }
    }
}
