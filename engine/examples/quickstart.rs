//! Make a region, commit a transaction, read it back, open the region again.
//!
//! `cargo run -p meridian --example quickstart [DIRECTORY]`
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "an example talks to its reader")]

use std::path::Path;

use meridian::{Ack, Committed, DiskConfig, Lsn, Options, PartitionId, Region, StateMachine, Transaction};

/// What the log is for: it hands every committed transaction to this, in order and once.
struct Departures(u64);

impl StateMachine for Departures {
    fn resume_from(&self) -> Lsn {
        Lsn::ZERO
    }

    fn apply(&mut self, committed: &Committed<'_>) {
        self.0 += committed.len() as u64;
        println!("applied {} records at {}", committed.len(), committed.lsn());
    }
}

fn quickstart(dir: &Path) -> meridian::Result<()> {
    // Three directories, each on a disk of its own: what fails together carries one name.
    let disks = ["rack-1", "rack-2", "rack-3"].map(|rack| DiskConfig::new(dir.join(rack), rack, "zone-1"));
    let options = Options::new(disks.to_vec());
    let region = Region::create(options.clone(), Departures(0))?;
    let flights = region.create_account("flights", Ack::Quorum)?;

    // Records of one partition commit together. Two durable copies answer; this one asks for all three.
    let departure = Transaction::new(flights, PartitionId::named("EWR/UA")).record("UA 1545").record("05:17");
    let receipt = region.commit(departure.ack(Ack::All))?;
    println!("committed at {}, partition sequence {}", receipt.lsn, receipt.first_sequence);

    // By position; a partition in order and the tail are read as blocks, too.
    let block = region.read(receipt.lsn)?;
    let transaction = block.transaction(receipt.lsn).expect("it has just been committed there");
    assert_eq!(transaction.records().collect::<Vec<_>>(), [(0, &b"UA 1545"[..]), (1, &b"05:17"[..])]);
    region.close()?;

    // Later: the log is recovered and handed to the machine again.
    let region = Region::open(options, Departures(0))?;
    assert!(region.committed() > receipt.lsn);
    region.close()
}

fn main() -> meridian::Result<()> {
    match std::env::args().nth(1) {
        Some(dir) => quickstart(Path::new(&dir)),
        None => quickstart(tempfile::tempdir().expect("a directory for the example").path()),
    }
}
