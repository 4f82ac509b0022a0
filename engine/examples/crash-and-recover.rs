//! A process that is killed while it commits: everything that it had acknowledged is there afterwards.
//!
//! `cargo run -p meridian --example crash-and-recover`
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "an example talks to its reader")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use meridian::{Ack, ClientId, Committed, DiskConfig, Lsn, Options, PartitionId, Region, StateMachine, Transaction};

const CLIENT: ClientId = ClientId(42);

fn options(dir: &Path) -> Options {
    let disks = ["rack-1", "rack-2", "rack-3"].map(|rack| DiskConfig::new(dir.join(rack), rack, "zone-1"));
    Options { segment_bytes: 16 << 20, ..Options::new(disks.to_vec()) }
}

/// Collects the numbers that the log hands over.
#[derive(Clone, Default)]
struct Numbers(Arc<Mutex<Vec<u64>>>);

impl StateMachine for Numbers {
    fn resume_from(&self) -> Lsn {
        Lsn::ZERO
    }

    fn apply(&mut self, committed: &Committed<'_>) {
        let numbers =
            committed.records().map(|(_, record)| String::from_utf8_lossy(record).parse().unwrap_or(u64::MAX));
        self.0.lock().expect("nobody panics with the lock").extend(numbers);
    }
}

/// Commits 1, 2, 3, … for ever and says each number once it is acknowledged.
fn write(dir: &Path) -> meridian::Result<()> {
    let region = Region::create(options(dir), ())?;
    let account = region.create_account("numbers", Ack::Quorum)?;
    for number in 1u64.. {
        let transaction = Transaction::new(account, PartitionId(1)).record(number.to_string()).client(CLIENT, number);
        region.commit(transaction)?;
        println!("{number}");
    }
    Ok(())
}

fn crash_and_recover(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut writer = Command::new(std::env::current_exe()?).arg("write").arg(dir).stdout(Stdio::piped()).spawn()?;
    let mut heard = BufReader::new(writer.stdout.take().ok_or("the writer has no output")?).lines();
    let mut acknowledged: Vec<u64> = Vec::new();
    while acknowledged.len() < 200 {
        acknowledged.push(heard.next().ok_or("the writer ended by itself")??.parse()?);
    }
    // SIGKILL: no destructor runs, nothing is flushed.
    writer.kill()?;
    writer.wait()?;
    acknowledged.extend(heard.map_while(Result::ok).filter_map(|line| line.parse::<u64>().ok()));

    // The superblocks name a new epoch, the end of the log is found on two disks at least, then it serves.
    let numbers = Numbers::default();
    let region = Region::open(options(dir), numbers.clone())?;
    let found = numbers.0.lock().map_err(|_| "the machine panicked")?.clone();
    println!("{} acknowledged before the kill, {} found after it", acknowledged.len(), found.len());
    assert!(found.len() >= acknowledged.len(), "acknowledged numbers are gone");
    assert!(found.iter().copied().eq(1..=found.len() as u64), "each number once, in order, without a hole");

    // What was on its way is not known to the writer. It sends it again: the same client sequence is applied once.
    let account = region.accounts()?[0].id;
    let last = found.len() as u64;
    let retry =
        |number: u64| Transaction::new(account, PartitionId(1)).record(number.to_string()).client(CLIENT, number);
    assert!(region.commit(retry(last))?.repeated);
    assert!(!region.commit(retry(last + 1))?.repeated);
    region.close()?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [word, dir] if word == "write" => Ok(write(Path::new(dir))?),
        _ => crash_and_recover(tempfile::tempdir()?.path()),
    }
}
