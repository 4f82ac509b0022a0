//! The deterministic simulation of the real log: many schedules, a replay of one, and the planted bugs.
//!
//! - `MERIDIAN_SCHEDULES` says how many schedules to run (5,000 unless told otherwise), `MERIDIAN_FIRST_SEED` where they
//!   start (0 unless told otherwise);
//! - `MERIDIAN_SEED` names the schedule that `replay` runs; its trace goes to standard error when it fails.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it is all test code: it starts threads, looks at the time, and says what it met"
)]

mod pair;
mod planted;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use meridian::sim::{Cells, FaultKind, Outcome, Schedule, Stage};

/// What this thread has had of the processor.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn from_environment(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

fn replay_command(seed: u64) -> String {
    format!("MERIDIAN_SEED={seed} cargo test -p meridian --features sim --test simulation replay -- --nocapture")
}

/// Cells that no schedule can reach, by what the fault and the stage are, and why.
fn is_unreachable(kind: FaultKind, stage: Stage) -> bool {
    use Stage::{Append, Create, Rebuild, Recovery, RecoveryAgain, Return};
    match kind {
        // Another disk is met where disks are attached. While the region runs only a new disk for a lost one is blank.
        FaultKind::Blank => !matches!(stage, Create | Recovery | RecoveryAgain | Return),
        // These happen while nobody has the disks open, and the next opening attaches all of them.
        FaultKind::Swapped | FaultKind::PutBack => !matches!(stage, Recovery | RecoveryAgain),
        // There is no older image yet. A disk that is taken back keeps its copies from being rebuilt meanwhile, and the other way round.
        FaultKind::Stale => matches!(stage, Create | Rebuild),
        // Blocks on their way are in flight.
        FaultKind::Crash => stage == Append,
        // These write to a disk one thing at a time.
        FaultKind::Reordered => matches!(stage, Create | Recovery | RecoveryAgain),
        // Nothing was written yet that could rot or be taken away.
        FaultKind::BitRot | FaultKind::LatentRead | FaultKind::ShortFile | FaultKind::GoneFile => stage == Create,
        // It is made in its first life.
        FaultKind::ManyLives => stage == Create,
        _ => false,
    }
}

/// Cells that are met, but not a hundred times in CI's schedules for certain, and why.
fn is_rare(kind: FaultKind, stage: Stage) -> bool {
    // A rebuild opens no file, and a disk is not taken back beside it: others do, seldom.
    kind == FaultKind::OpenRefused && stage == Stage::Rebuild
}

/// From so many schedules on each cell has to be met.
const ENOUGH: u64 = 100_000;
/// One meeting of a cell is asked for per so many schedules: a hundred in CI's 200,000.
const RARE: u64 = 2_000;

/// What is wrong with the cells that so many schedules met.
fn check_cells(cells: &Cells, schedules: u64) -> Result<(), String> {
    let count = |kind, stage| cells.get(&(kind, stage)).copied().unwrap_or(0);
    let all = || FaultKind::ALL.into_iter().flat_map(|kind| Stage::ALL.map(|stage| (kind, stage, count(kind, stage))));
    let met: Vec<_> = all().filter(|(kind, stage, count)| is_unreachable(*kind, *stage) && *count > 0).collect();
    if !met.is_empty() {
        return Err(format!("met although they are said to be out of reach: {met:?}"));
    }
    let missed: Vec<_> =
        all().filter(|(kind, stage, count)| !is_unreachable(*kind, *stage) && *count < schedules / RARE).collect();
    let missed: Vec<_> = missed.into_iter().filter(|(kind, stage, _)| !is_rare(*kind, *stage)).collect();
    let often: Vec<_> =
        all().filter(|(kind, stage, count)| is_rare(*kind, *stage) && *count >= 3 * schedules / RARE).collect();
    if schedules >= ENOUGH && !often.is_empty() {
        return Err(format!("met often although they are said to be rare: {often:?}"));
    }
    if schedules >= ENOUGH && !missed.is_empty() {
        return Err(format!("met fewer than {} times: {missed:?}", schedules / RARE));
    }
    Ok(())
}

/// Every kind of fault and stage with its count, as a table.
fn table(cells: &Cells) -> String {
    let kinds: BTreeMap<FaultKind, ()> = cells.keys().map(|(kind, _)| (*kind, ())).collect();
    let mut lines =
        vec![format!("{:>14} {}", "", Stage::ALL.map(|stage| format!("{:>13}", format!("{stage:?}"))).concat())];
    for kind in kinds.keys() {
        let counts = Stage::ALL.map(|stage| format!("{:>13}", cells.get(&(*kind, stage)).copied().unwrap_or(0)));
        lines.push(format!("{:>14} {}", format!("{kind:?}"), counts.concat()));
    }
    lines.join("\n")
}

/// A schedule takes milliseconds; one that takes this long has no end.
const ENDLESS: Duration = Duration::from_secs(120);

/// Says so past the harness, which would keep it until the test returns, when a worker's schedule
/// has no end.
fn watch(workers: &[Mutex<Option<(u64, Instant)>>]) {
    while workers.iter().any(|worker| worker.lock().unwrap().is_some()) {
        for worker in workers {
            let at_work = *worker.lock().unwrap();
            if let Some((seed, _)) = at_work.filter(|(_, since)| since.elapsed() > ENDLESS) {
                let _told = writeln!(std::io::stderr(), "seed {seed} has no end\nreplay: {}", replay_command(seed));
                std::process::exit(1);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs schedules on every core until they are done or one fails; returns what they met together.
fn run_all(first: u64, count: u64) -> Result<(Cells, u64, u64), (u64, Outcome)> {
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let total = Mutex::new((Cells::new(), 0, 0));
    let failed = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let workers: Vec<_> = (0..threads).map(|_| Mutex::new(Some((first, Instant::now())))).collect();
    std::thread::scope(|scope| {
        for worker in &workers {
            let (next, stop, total, failed) = (&next, &stop, &total, &failed);
            scope.spawn(move || {
                let (mut cells, mut operations, mut transactions) = (Cells::new(), 0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    *worker.lock().unwrap() = Some((seed, Instant::now()));
                    let outcome = Schedule { seed, ..Schedule::default() }.run();
                    if outcome.violation.is_some() {
                        stop.store(true, Ordering::Relaxed);
                        failed.lock().unwrap().get_or_insert((seed, outcome));
                        break;
                    }
                    outcome.cells.iter().for_each(|(cell, count)| *cells.entry(*cell).or_default() += count);
                    operations += outcome.operations;
                    transactions += outcome.transactions as u64;
                }
                *worker.lock().unwrap() = None;
                let mut total = total.lock().unwrap();
                cells.into_iter().for_each(|(cell, count)| *total.0.entry(cell).or_default() += count);
                total.1 += operations;
                total.2 += transactions;
            });
        }
        watch(&workers);
    });
    match failed.into_inner().unwrap() {
        Some(failure) => Err(failure),
        None => Ok(total.into_inner().unwrap()),
    }
}

#[test]
fn schedules_keep_every_invariant_and_meet_every_fault_in_every_stage() {
    let (first, count) = (from_environment("MERIDIAN_FIRST_SEED", 0), from_environment("MERIDIAN_SCHEDULES", 5_000));
    let started = Instant::now();
    let (cells, operations, transactions) = match run_all(first, count) {
        Ok(all) => all,
        Err((seed, outcome)) => {
            panic!("{}\nreplay: {}", outcome.violation.unwrap_or_default(), replay_command(seed));
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    println!("{count} schedules, {transactions} transactions, {operations} operations in {seconds:.1} s:");
    println!("{:.0} schedules a second\n{}", count as f64 / seconds, table(&cells));
    if let Err(wrong) = check_cells(&cells, count) {
        panic!("{wrong}");
    }
}

#[test]
fn a_cell_met_too_rarely_or_against_its_exception_is_reported() {
    let enough = |but: Option<(FaultKind, Stage, u64)>| {
        let all = FaultKind::ALL.into_iter().flat_map(|kind| Stage::ALL.map(|stage| (kind, stage)));
        let mut cells: Cells = all
            .filter(|(kind, stage)| !is_unreachable(*kind, *stage) && !is_rare(*kind, *stage))
            .map(|cell| (cell, 100))
            .collect();
        if let Some((kind, stage, count)) = but {
            cells.insert((kind, stage), count);
        }
        cells
    };
    assert_eq!(check_cells(&enough(None), 200_000), Ok(()));
    let rare = enough(Some((FaultKind::Descriptors, Stage::Scrub, 99)));
    assert!(check_cells(&rare, 200_000).unwrap_err().contains("[(Descriptors, Scrub, 99)]"));
    assert_eq!(check_cells(&rare, 5_000), Ok(()));
    let often = enough(Some((FaultKind::OpenRefused, Stage::Rebuild, 300)));
    assert!(check_cells(&often, 200_000).unwrap_err().contains("[(OpenRefused, Rebuild, 300)]"));
    assert_eq!(check_cells(&often, 5_000), Ok(()));
    let wrong = enough(Some((FaultKind::Swapped, Stage::Return, 1)));
    assert!(check_cells(&wrong, 5_000).unwrap_err().contains("[(Swapped, Return, 1)]"));
}

#[test]
fn replay() {
    let seed = from_environment("MERIDIAN_SEED", 1);
    let outcome = Schedule { seed, trace: true, ..Schedule::default() }.run();
    let again = Schedule { seed, ..Schedule::default() }.run();
    assert_eq!(outcome.digest, again.digest, "seed {seed} did not replay bit for bit");
    if let Some(violation) = outcome.violation {
        eprintln!("{}", outcome.trace.join("\n"));
        panic!("seed {seed}: {violation}");
    }
}

#[test]
fn one_seed_gives_one_run_and_another_seed_another() {
    let digest = |seed| Schedule { seed, ..Schedule::default() }.run().digest;
    for seed in 1000..1200 {
        assert_eq!(digest(seed), digest(seed), "{}", replay_command(seed));
        assert_ne!(digest(seed), digest(seed + 1));
    }
}

/// For the one who hunts: every kind of violation among the schedules, with how often and the first seed.
#[test]
#[ignore = "a tool: lists violations instead of stopping at the first"]
fn survey() {
    let cells = std::cell::RefCell::new(Cells::new());
    survey_of(10_000, |seed| {
        let outcome = Schedule { seed, ..Schedule::default() }.run();
        outcome.cells.iter().for_each(|(cell, count)| *cells.borrow_mut().entry(*cell).or_default() += count);
        outcome.violation
    });
    println!("{}", table(&cells.borrow()));
}

pub(crate) fn survey_of(usual: u64, run: impl Fn(u64) -> Option<String>) {
    let (first, count) = (from_environment("MERIDIAN_FIRST_SEED", 0), from_environment("MERIDIAN_SCHEDULES", usual));
    let started = Instant::now();
    let mut kinds: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for seed in first..first + count {
        if let Some(violation) = run(seed) {
            let shape: String = violation.chars().filter(|c| !c.is_ascii_digit()).take(160).collect();
            kinds.entry(shape).or_insert((0, seed)).0 += 1;
        }
    }
    let mut kinds: Vec<(u64, u64, String)> = kinds.into_iter().map(|(kind, (n, seed))| (n, seed, kind)).collect();
    kinds.sort_unstable_by(|a, b| b.cmp(a));
    for (times, seed, kind) in kinds {
        println!("{times:>7} {seed:>7} {kind}");
    }
    println!("{count} schedules in {:.1} s", started.elapsed().as_secs_f64());
}
