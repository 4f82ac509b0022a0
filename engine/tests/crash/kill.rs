//! kill -9 under load, at random moments of opening, committing, sealing, changing the set, rebuilding and trimming.
//!
//! `MERIDIAN_KILL_ROUNDS` sets the rounds of each test, `MERIDIAN_KILL_SEED` the first seed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, SendError};
use std::time::{Duration, Instant};

use meridian::{DriverChoice, ErrorKind, Region};

use crate::child::Word;
use crate::ledger::{Keeper, Ledger};
use crate::order::{Order, STALL, VARIABLE, has, options};

const WRITERS: u64 = 3;
/// Rounds that one region lives through before the next one starts afresh.
const LIFE: u64 = 10;
const ROUNDS: u64 = 30;

#[test]
fn three_disks_and_threads() {
    kill("three_disks_and_threads", 3, DriverChoice::Threads);
}

#[test]
fn three_disks_and_io_uring() {
    kill("three_disks_and_io_uring", 3, DriverChoice::Uring);
}

#[test]
fn four_disks_and_threads() {
    kill("four_disks_and_threads", 4, DriverChoice::Threads);
}

#[test]
fn four_disks_and_io_uring() {
    kill("four_disks_and_io_uring", 4, DriverChoice::Uring);
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Says how to repeat a life that failed.
struct OnPanic(String);

impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("\nto repeat: {}", self.0);
        }
    }
}

fn kill(test: &str, disks: usize, driver: DriverChoice) {
    if !has(driver) {
        return;
    }
    let rounds = variable("MERIDIAN_KILL_ROUNDS").unwrap_or(ROUNDS);
    let first = variable("MERIDIAN_KILL_SEED").unwrap_or_else(|| fastrand::u64(..1 << 40));
    let mut counts = Counts::default();
    let started = Instant::now();
    for life in 0..rounds.div_ceil(LIFE) {
        let seed = first + life;
        let _told = OnPanic(format!(
            "MERIDIAN_KILL_SEED={seed} MERIDIAN_KILL_ROUNDS={LIFE} cargo test -p meridian --test crash -- --exact kill::{test}"
        ));
        let dir = tempfile::tempdir().unwrap();
        let mut life = Life::new(dir.path(), disks, driver, seed);
        for _ in 0..LIFE.min(rounds - counts.rounds) {
            life.round(&mut counts);
        }
    }
    println!("{test}: {counts:?} in {} ms, none lost", started.elapsed().as_millis());
    assert!(counts.acked > 0 && counts.rounds == rounds, "{counts:?}");
}

/// What a run came to.
#[derive(Debug, Default)]
struct Counts {
    rounds: u64,
    acked: u64,
    while_opening: u64,
    by_itself: u64,
    checks: u64,
    without_a_disk: u64,
    given_up: u64,
}

/// One region from its creation through its deaths.
struct Life {
    disks: Vec<PathBuf>,
    driver: DriverChoice,
    random: fastrand::Rng,
    ledger: Ledger,
    /// It was opened once.
    exists: bool,
    /// A disk gave way in this round or an earlier one, and its copies may not be whole again.
    hurt: bool,
}

impl Life {
    fn new(dir: &Path, disks: usize, driver: DriverChoice, seed: u64) -> Life {
        let disks = (0..disks).map(|at| dir.join(format!("disk-{at}"))).collect();
        let random = fastrand::Rng::with_seed(seed);
        Life { disks, driver, random, ledger: Ledger::new(seed), exists: false, hurt: false }
    }

    fn round(&mut self, counts: &mut Counts) {
        counts.rounds += 1;
        // One fault at a time is what the model allows: the next disk gives way when the sets are whole again.
        let away =
            (self.exists && !self.hurt && self.random.u8(..) < 64).then(|| self.random.usize(..self.disks.len()));
        if let Some(at) = away {
            counts.without_a_disk += 1;
            self.hurt = true;
            std::fs::rename(&self.disks[at], self.disks[at].with_extension("away")).unwrap();
        }
        let order = self.order(away.is_none(), counts);
        let words = self.run(&order, counts);
        self.take(&words, counts);
        if self.exists && self.random.u8(..) < 180 {
            self.check(counts, false);
        }
        if let Some(at) = away {
            // It comes back with what it held then.
            std::fs::rename(self.disks[at].with_extension("away"), &self.disks[at]).unwrap();
        }
        if self.exists && self.hurt && self.random.u8(..) < 160 {
            self.check(counts, true);
            self.hurt = false;
        }
    }

    fn order(&mut self, may_fail: bool, counts: &mut Counts) -> Order {
        let fail = (may_fail && !self.hurt && self.random.u8(..) < 40)
            .then(|| (self.random.usize(..self.disks.len()), self.random.u64(1..10) * 10));
        self.hurt |= fail.is_some();
        counts.given_up += u64::from(fail.is_some());
        Order {
            create: !self.exists,
            driver: self.driver,
            seed: self.ledger.seed,
            next: self.ledger.next(WRITERS),
            kill_at: (self.random.u8(..) < 80).then(|| self.random.u64(..1_500)),
            fail,
            trim: self.random.bool(),
            stall: STALL,
            disks: self.disks.clone(),
        }
    }

    /// Starts the child, kills it, and returns what it said.
    fn run(&mut self, order: &Order, counts: &mut Counts) -> Vec<Word> {
        let early = self.random.u8(..) < 64;
        let after = Duration::from_micros(self.random.u64(..if early { 60_000 } else { 200_000 }));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child::process", "--ignored", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, order.encode())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let (tell, opened) = mpsc::channel();
        let hears = std::thread::spawn(move || {
            let lines = BufReader::new(out).split(b'\n').map_while(Result::ok);
            let mut words = Vec::new();
            for word in lines.filter_map(|line| Word::hear(&String::from_utf8_lossy(&line))) {
                if word == Word::Opened {
                    // Nobody listens when the kill comes early.
                    let _: Result<(), SendError<()>> = tell.send(());
                }
                words.push(word);
            }
            words
        });
        if !early {
            // An error is the end of the child, which its words explain.
            let _: Result<(), RecvTimeoutError> = opened.recv_timeout(Duration::from_secs(60));
        }
        std::thread::sleep(after);
        counts.by_itself += u64::from(child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let words = hears.join().unwrap();
        let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
        assert!(killed, "the child ended otherwise than by being killed: {status:?}: {:?}", words.last());
        counts.while_opening += u64::from(!words.contains(&Word::Opened));
        words
    }

    fn take(&mut self, words: &[Word], counts: &mut Counts) {
        self.exists |= words.contains(&Word::Opened);
        for word in words {
            match word {
                Word::Opened => {}
                Word::Acked(acked) => {
                    counts.acked += 1;
                    self.ledger.ack(*acked);
                }
                Word::Refused => self.ledger.refused = true,
                Word::Trims(lsn) => self.ledger.trimmed = self.ledger.trimmed.max(*lsn),
                Word::Failed(error) => panic!("the child failed: {error}"),
            }
        }
        if !self.exists {
            self.begin_again();
        }
    }

    /// A creation that was cut short opens with every disk, or says that there is nothing: then the next one goes over what
    /// it left (acceptance H2).
    fn begin_again(&mut self) {
        match Region::open(options(&self.disks, self.driver), ()) {
            Ok(region) => {
                let start = Instant::now();
                let healthy = |region: &Region| {
                    let health = region.health().unwrap();
                    health.disks.iter().all(|disk| disk.state == meridian::DiskState::Healthy)
                };
                while !healthy(&region) {
                    assert!(start.elapsed() < Duration::from_secs(60), "{:#?}", region.health());
                    std::thread::sleep(Duration::from_millis(2));
                }
                self.exists = true;
                region.close().unwrap();
            }
            Err(error) => {
                let kind = error.kind();
                assert!(matches!(kind, ErrorKind::NotFound | ErrorKind::RestoreDisk), "{kind:?}: {error}");
            }
        }
    }

    /// Opens the region here and checks all of it; with `whole`, waits until every copy is back.
    fn check(&mut self, counts: &mut Counts, whole: bool) {
        counts.checks += 1;
        let keeper = Keeper::default();
        let region = Region::open(options(&self.disks, self.driver), keeper.clone()).unwrap();
        self.ledger.check(&region, &keeper);
        if whole {
            let start = Instant::now();
            loop {
                let health = region.health().unwrap();
                let healthy = health.disks.iter().all(|disk| disk.state == meridian::DiskState::Healthy);
                if health.is_whole() && healthy {
                    break;
                }
                assert!(start.elapsed() < Duration::from_secs(60), "not whole in 60 s: {health:#?}");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        if self.random.bool() {
            region.close().unwrap();
        }
    }
}
