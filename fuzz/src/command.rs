//! The fuzz binaries on stable: replay files, write seeds for libFuzzer, or mutate valid inputs for a while.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::print_stderr)] // a command line tool: it reads the files that it is given and prints

use std::io;
use std::path::Path;
use std::process::ExitCode;

use crate::Target;
use crate::mutate::{Random, mutate};

const USAGE: &str = "arguments: none (10,000 mutations) | --rounds COUNT [SEED] | --seeds DIRECTORY | FILE...";

/// How a run of mutations went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Mutated inputs that were accepted as they are: the change undid itself, or lay behind the structure.
    pub accepted: u64,
    /// Mutated inputs that were accepted once their checksums were made right.
    pub accepted_restamped: u64,
    /// Mutated inputs that were refused either way.
    pub refused: u64,
}

/// Feeds the target `rounds` valid inputs and as many mutated ones.
///
/// # Panics
/// If a decoder breaks its promise, or refuses a valid input.
pub fn smoke(target: &Target, seed: u64, rounds: u64) -> Tally {
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    let mut other = (target.sample)(&mut random);
    for _ in 0..rounds {
        let valid = (target.sample)(&mut random);
        assert!((target.run)(&valid).accepted, "{}: a valid input was refused", target.name);
        let mut bytes = valid.clone();
        mutate(&mut random, &mut bytes, &other);
        let verdict = (target.run)(&bytes);
        tally.accepted += u64::from(verdict.accepted);
        tally.accepted_restamped += u64::from(verdict.accepted_restamped);
        tally.refused += u64::from(!verdict.accepted && !verdict.accepted_restamped);
        // Whole again by chance, perhaps with bytes behind it: small structures are a sector and zeros.
        let unharmed = bytes.starts_with(&valid) || bytes.starts_with(&other);
        assert!(!verdict.accepted || unharmed, "{}: a change was not seen", target.name);
        other = valid;
    }
    tally
}

/// The binary's `main`.
pub fn main(target: &Target) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        [] => rounds(target, "10000", "1"),
        ["--rounds", count] => rounds(target, count, "1"),
        ["--rounds", count, seed] => rounds(target, count, seed),
        ["--seeds", directory] => write_seeds(target, Path::new(directory)),
        [first, ..] if first.starts_with('-') => Err(io::Error::other(USAGE)),
        _ => words.iter().try_for_each(|file| replay(target, file)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", target.name);
            ExitCode::FAILURE
        }
    }
}

fn rounds(target: &Target, count: &str, seed: &str) -> io::Result<()> {
    let (Ok(count), Ok(seed)) = (count.parse(), seed.parse()) else { return Err(io::Error::other(USAGE)) };
    let Tally { accepted, accepted_restamped, refused } = smoke(target, seed, count);
    println!(
        "{}: {count} mutations of seed {seed}: {refused} refused, {accepted_restamped} accepted with their checksums made right, \
         {accepted} unharmed",
        target.name
    );
    Ok(())
}

fn write_seeds(target: &Target, directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut random = Random::new(1);
    (0..20).try_for_each(|i| std::fs::write(directory.join(format!("seed-{i:02}")), (target.sample)(&mut random)))
}

fn replay(target: &Target, file: &str) -> io::Result<()> {
    let bytes = std::fs::read(file).map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))?;
    println!("{}: {file}: {:?}", target.name, (target.run)(&bytes));
    Ok(())
}
