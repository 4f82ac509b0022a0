//! A disk is lost while commits go on; a spare takes its place, the lost one comes back, and any one of them can go then.
//!
//! `cargo run -p meridian --example losing-a-disk`
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "an example talks to its reader")]

use std::path::Path;
use std::time::{Duration, Instant};

use meridian::{AccountId, Ack, DiskConfig, DiskState, Health, Lsn, Options, PartitionId, Region, Transaction};

/// Four disks: three hold each segment, one is to spare.
fn options(dir: &Path) -> Options {
    let disks = (1..=4).map(|at| format!("rack-{at}")).map(|rack| DiskConfig::new(dir.join(&rack), &rack, "zone-1"));
    Options { segment_bytes: 8 << 20, ..Options::new(disks.collect()) }
}

fn payload(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(1000)
}

fn commit(region: &Region, account: AccountId, numbers: std::ops::Range<u32>) -> meridian::Result<()> {
    // All are on their way before the first answer is waited for.
    let send = |number: u32| region.submit(Transaction::new(account, PartitionId(1)).record(payload(number)));
    let tickets = numbers.map(send).collect::<meridian::Result<Vec<_>>>()?;
    tickets.into_iter().try_for_each(|ticket| ticket.wait().map(drop))
}

/// Waits for the region to stand as it should, for half a minute at most.
fn wait_until(region: &Region, what: &str, done: impl Fn(&Health) -> bool) -> meridian::Result<()> {
    let started = Instant::now();
    while !done(&region.health()?) {
        assert!(started.elapsed() < Duration::from_secs(30), "{what}: {:#?}", region.health()?);
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("{what}: after {} ms", started.elapsed().as_millis());
    Ok(())
}

fn losing_a_disk(dir: &Path) -> meridian::Result<()> {
    let region = Region::create(options(dir), ())?;
    let account = region.create_account("numbers", Ack::Quorum)?;
    commit(&region, account, 0..2_000)?;

    // A drill. A write that fails, or does not complete in `Options::stall_timeout`, does the same.
    let lost = region.health()?.disks.iter().position(|disk| disk.in_set).unwrap_or(0);
    region.fail_disk(lost)?;
    commit(&region, account, 2_000..4_000)?;
    wait_until(&region, "three copies of everything, without the lost disk", Health::is_whole)?;
    assert!(!region.health()?.disks[lost].in_set);

    // It comes back with what it had, is reread and brought up to date, and counts again.
    region.return_disk(lost)?;
    wait_until(&region, "the disk is back", |health| health.disks[lost].state == DiskState::Healthy)?;
    commit(&region, account, 4_000..5_000)?;
    wait_until(&region, "whole", Health::is_whole)?;
    region.close()?;

    // Another one burns down while the region is closed.
    std::fs::remove_dir_all(dir.join("rack-2")).expect("the directory of a disk");
    let region = Region::open(options(dir), ())?;
    let mut numbers = 0..5_000u32;
    let mut tail = region.subscribe(Lsn::ZERO);
    while let Some(block) = tail.try_next()? {
        for transaction in block.transactions().filter(|transaction| !transaction.is_system()) {
            for (_, record) in transaction.records() {
                let number = numbers.next().map(payload);
                assert_eq!(Some(record), number.as_deref(), "another record than was committed");
            }
        }
    }
    assert!(numbers.is_empty(), "records are missing from {numbers:?} on");
    println!("all 5,000 records are there without rack-2");
    region.close()
}

fn main() -> meridian::Result<()> {
    losing_a_disk(tempfile::tempdir().expect("a directory for the example").path())
}
