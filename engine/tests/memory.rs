//! What a region holds under load, with large transactions, a lost disk, readers and restarts: no more than its options say.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test: it starts threads, and reads what the system says of its process"
)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use meridian::{AccountId, Ack, ClientId, DiskConfig, DiskState, Lsn, Options, PartitionId, Region, Transaction};

/// Bytes of this process's own memory, files left out.
fn held() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("the kernel counts it");
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// The most that was held beyond what was there before, while `work` went on.
fn held_during(work: impl FnOnce()) -> u64 {
    let (before, most, done) = (held(), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(held(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        work.unwrap();
    });
    most.into_inner().saturating_sub(before)
}

/// Commits from a client that never waits until the queue says so; every eighth transaction is the largest.
fn load(region: &Region, account: AccountId, client: u64, first: u64, large: usize) {
    let mut tickets = Vec::new();
    for number in 0..400u64 {
        let bytes = if number % 8 == 0 { large } else { 20_000 };
        let partition = PartitionId(u128::from(client << 32 | number));
        let transaction = Transaction::new(account, partition).record(vec![number as u8; bytes]);
        let transaction = transaction.client(ClientId(u128::from(client) + 1), first + number);
        tickets.extend(region.submit(transaction));
    }
    assert_eq!(tickets.len(), 400);
    for ticket in tickets {
        ticket.wait().unwrap();
    }
}

#[test]
fn a_region_under_load_holds_no_more_than_its_options_say() {
    let dir = tempfile::tempdir().unwrap();
    let disks = ["disk-0", "disk-1", "disk-2", "disk-3"];
    let disks = disks.map(|name| DiskConfig::new(dir.path().join(name), name, "zone-1"));
    let options = Options {
        segment_bytes: 4 << 20,
        block_bytes: 256 << 10,
        transaction_bytes: 512 << 10,
        queue_transactions: 1024,
        queue_bytes: 4 << 20,
        hot_bytes: 4 << 20,
        index_cache_bytes: 1 << 20,
        lag_bytes: 4 << 20,
        stall_timeout: Duration::from_secs(60),
        max_accounts: 16,
        max_partitions: 8192,
        max_clients: 16,
        rebuild_bytes_per_second: 0,
        ..Options::new(disks.to_vec())
    };
    let (bound, large) = (options.memory_bound(), options.transaction_bytes - 1024);
    // Two readers of each kind, and what the test's own clients prepare and keep: a transaction and tickets.
    let readers = 4 * ((2 << 20) + options.segment_bytes as u64 / 2);
    let clients = 8 * (large as u64 + (64 << 10));
    let held = held_during(|| {
        for life in 0..3 {
            let region =
                if life == 0 { Region::create(options.clone(), ()) } else { Region::open(options.clone(), ()) };
            let region = region.unwrap();
            let account = match region.accounts().unwrap().first() {
                Some(known) => known.id,
                None => region.create_account("flights", Ack::Quorum).unwrap(),
            };
            // One is lost, and one that lags cannot be spared then: its copies are made elsewhere under the load.
            while region.health().unwrap().disks.iter().any(|disk| disk.state != DiskState::Healthy) {
                std::thread::sleep(Duration::from_millis(5));
            }
            region.fail_disk(life as usize).unwrap();
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        while !done.load(Ordering::Relaxed) {
                            let mut log = region.subscribe(Lsn::ZERO);
                            while log.try_next().is_ok_and(|block| block.is_some()) {}
                            region.partition(account, PartitionId(7), 0).map_while(Result::ok).for_each(drop);
                        }
                    });
                }
                let clients: Vec<_> = (0..8u64)
                    .map(|client| {
                        let region = &region;
                        scope.spawn(move || load(region, account, client, life * 400 + 1, large))
                    })
                    .collect();
                let joined: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
                let trimmed = region.trim(Lsn::MAX);
                done.store(true, Ordering::Relaxed);
                joined.into_iter().for_each(|client| client.unwrap());
                trimmed.unwrap();
            });
            region.scrub().unwrap();
            region.close().unwrap();
        }
    });
    println!("{} of {} MiB and {} for readers and clients", held >> 20, bound >> 20, (readers + clients) >> 20);
    assert!(held > 4 << 20, "the load does little: {held} bytes");
    assert!(
        held < bound + readers + clients,
        "{held} bytes held, {bound} accepted, {readers} for readers, {clients} for clients"
    );
}
