//! The harness of Meridian: measures, breaks and verifies a region. Without arguments, the project's main job.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its user")]
#![allow(clippy::disallowed_methods, reason = "the harness measures real time and makes real load: it is a seam")]

use std::process::ExitCode;

use clap::Parser;

mod cli;
mod flights;
mod latency;
mod limit;
mod limit_job;
mod machine;
mod progress;
mod report;
mod space;

/// How a subcommand ends: whether everything that was verified holds, or what kept it from running.
type Outcome = Result<bool, String>;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let outcome = match &cli.command {
        Some(cli::Command::Limit(load)) => limit_job::run(&cli.out, load),
        None => Err("the main job needs the engine".to_string()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("meridian-bench: {message}");
            ExitCode::from(2)
        }
    }
}
