//! kill -9 after the first commit of a life, again and again: the region opens every time (acceptance H1).

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use meridian::{Ack, DriverChoice, Lsn, Region};

use crate::child::Word;
use crate::order::{Order, STALL, VARIABLE, options};

/// More than a superblock ever listed.
const LIVES: u64 = 200;

#[test]
fn h1_a_region_killed_after_the_first_commit_of_200_lives_opens() {
    let dir = tempfile::tempdir().unwrap();
    let disks: Vec<PathBuf> = (0..3).map(|at| dir.path().join(format!("disk-{at}"))).collect();
    let region = Region::create(options(&disks, DriverChoice::Threads), ()).unwrap();
    let account = region.create_account("load", Ack::Quorum).unwrap();
    region.close().unwrap();
    let mut acknowledged = 0;
    for _ in 0..LIVES {
        acknowledged += one_life(&disks, acknowledged);
    }
    let region = Region::open(options(&disks, DriverChoice::Threads), ()).unwrap();
    let (mut log, mut held) = (region.subscribe(Lsn::ZERO), 0);
    while let Some(block) = log.try_next().unwrap() {
        held += block.transactions().filter(|transaction| transaction.account() == account).count() as u64;
    }
    assert!(acknowledged >= LIVES && held >= acknowledged, "{held} of {acknowledged}");
}

/// A process opens the region, commits, and is killed as soon as it says so. Returns how many commits were acknowledged.
fn one_life(disks: &[PathBuf], next: u64) -> u64 {
    let order = Order {
        create: false,
        driver: DriverChoice::Threads,
        seed: 1,
        next: vec![next],
        kill_at: None,
        fail: None,
        trim: false,
        stall: STALL,
        disks: disks.to_vec(),
    };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child::process", "--ignored", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, order.encode())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let mut acknowledged = 0;
    for line in out.split(b'\n').map_while(Result::ok) {
        match Word::hear(&String::from_utf8_lossy(&line)) {
            Some(Word::Failed(error)) => panic!("life {next}: {error}"),
            Some(Word::Acked(_)) => {
                acknowledged += 1;
                // What it says after it was killed was acknowledged, too.
                child.kill().unwrap();
            }
            _ => {}
        }
    }
    child.wait().unwrap();
    acknowledged
}
