//! Every single-bit flip on one disk is detected or repaired, never returned as data.
//!
//! A small region is made once and kept as bytes. For each flip its files are put back, the bit is flipped, the region is opened,
//! and everything that it can be asked is compared with what was committed. A run of the suite takes an even sample of all
//! bits that matter; `MERIDIAN_FLIPS=all` takes every bit of every file, `MERIDIAN_FLIPS=<n>` about that many.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use meridian::{
    AccountId, Ack, ClientId, DriverChoice, ErrorKind, Lsn, Options, PartitionId, Receipt, Region, Transaction,
};
use tempfile::TempDir;

use crate::common::{Memory, Seen, options};
use crate::disks::until;

/// Flips in one run of the suite.
const SAMPLE: usize = 1_200;
/// A bit is worth a flip of its own when its byte lies so close to one that is not zero.
const NEAR: usize = 8;

/// Memory where there is such a file system: the flips are many.
fn fast_dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn tiny(dir: &TempDir) -> Options {
    let mut options = options(dir, 3);
    options.driver = DriverChoice::Threads;
    options.segment_bytes = 64 << 10;
    options.block_bytes = 16 << 10;
    options.transaction_bytes = 16 << 10;
    options.hot_bytes = 0;
    options.scrub_bytes_per_second = 0;
    options
}

/// The region that is flipped: its files by disk and name, and what it holds.
struct Reference {
    files: Vec<(usize, String, Vec<u8>)>,
    account: AccountId,
    committed: Seen,
    last: (Transaction, Receipt),
}

fn transaction(account: AccountId, number: u32) -> Transaction {
    let text = format!("record {number} ").repeat(20 + number as usize % 40);
    Transaction::new(account, PartitionId(u128::from(number % 3)))
        .record(text.clone())
        .record(text.into_bytes().into_iter().rev().collect::<Vec<u8>>())
        .client(ClientId(3), u64::from(number))
}

impl Reference {
    fn make() -> Reference {
        let dir = fast_dir();
        let options = tiny(&dir);
        let region = Region::create(options.clone(), ()).unwrap();
        let account = region.create_account("flights", Ack::All).unwrap();
        let mut last = None;
        for number in 0..24 {
            let receipt = region.commit(transaction(account, number)).unwrap();
            last = Some((transaction(account, number), receipt));
        }
        until("whole", || region.health().unwrap().is_whole());
        // Writes a checkpoint, trims nothing.
        until("a checkpoint", || {
            region.trim(Lsn::ZERO).unwrap();
            load(&options).iter().any(|(_, name, _)| name.starts_with("checkpoint-"))
        });
        // More of the tail is behind the checkpoint, some of it in a segment that is not sealed.
        for number in 24..40 {
            let receipt = region.commit(transaction(account, number)).unwrap();
            last = Some((transaction(account, number), receipt));
        }
        until("whole", || region.health().unwrap().is_whole());
        region.close().unwrap();
        let files = load(&options);
        let memory = Memory::default();
        drop(Region::open(options, memory.clone()).unwrap());
        let committed = memory.0.lock().unwrap().clone();
        assert_eq!(committed.len(), 40);
        Reference { files, account, committed, last: last.unwrap() }
    }

    /// Puts every file back as it was, and takes away what was not there.
    fn restore(&self, options: &Options) {
        for (at, disk) in options.disks.iter().enumerate() {
            std::fs::create_dir_all(&disk.path).unwrap();
            for entry in std::fs::read_dir(&disk.path).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                if !self.files.iter().any(|(disk, known, _)| (*disk, known) == (at, &name)) {
                    std::fs::remove_file(entry.path()).unwrap();
                }
            }
        }
        for (disk, name, bytes) in &self.files {
            std::fs::write(options.disks[*disk].path.join(name), bytes).unwrap();
        }
    }

    /// The bits of the first disk to flip: file and bit number.
    fn bits(&self) -> Vec<(usize, usize)> {
        let wanted = std::env::var("MERIDIAN_FLIPS").ok();
        let all = wanted.as_deref() == Some("all");
        let near = |bytes: &[u8], at: usize| {
            bytes[at.saturating_sub(NEAR)..(at + NEAR).min(bytes.len())].iter().any(|byte| *byte != 0)
        };
        let (mut matter, mut other) = (Vec::new(), Vec::new());
        for (file, (_, _, bytes)) in self.files.iter().enumerate().filter(|(_, (disk, _, _))| *disk == 0) {
            for bit in 0..bytes.len() * 8 {
                if all || near(bytes, bit / 8) { matter.push((file, bit)) } else { other.push((file, bit)) }
            }
        }
        let count = wanted.and_then(|count| count.parse().ok()).unwrap_or(SAMPLE);
        if all {
            return matter;
        }
        println!("{} bits matter, {} lie among zeros", matter.len(), other.len());
        let mut sample = spread(&matter, count * 9 / 10);
        sample.extend(spread(&other, count / 10));
        sample
    }

    /// Opens the region with one bit flipped and checks everything.
    fn check(&self, options: &Options, file: usize, bit: usize) -> Outcome {
        self.restore(options);
        let (disk, name, bytes) = &self.files[file];
        flip(&options.disks[*disk].path.join(name), bytes, bit);
        let memory = Memory::default();
        let region = Region::open(options.clone(), memory.clone()).expect("two disks are right");
        assert!(*memory.0.lock().unwrap() == self.committed, "replay");
        self.check_reads(&region);
        let first = region.scrub().unwrap();
        assert!(first.lost.is_empty(), "{:?}", first.lost);
        until("what was found is repaired", || {
            let health = region.health().unwrap();
            health.is_whole() && health.corrupt_copies.0 == health.corrupt_copies.1
        });
        let found = region.health().unwrap().corrupt_copies;
        let second = region.scrub().unwrap();
        assert!(second.corrupt == 0 && second.copies >= 3, "{second:?}");
        self.check_reads(&region);
        let (retry, receipt) = &self.last;
        let again = region.commit(retry.clone()).unwrap();
        assert_eq!((again.lsn, again.first_sequence, again.repeated), (receipt.lsn, receipt.first_sequence, true));
        region.close().unwrap();
        if found.0 > 0 { Outcome::Repaired } else { Outcome::ReadAround }
    }

    fn check_reads(&self, region: &Region) {
        let accounts = region.accounts().unwrap();
        assert_eq!((accounts.len(), accounts[0].name.as_str(), accounts[0].ack), (1, "flights", Ack::All));
        let mut subscription = region.subscribe(Lsn::ZERO);
        let mut seen: Seen = Vec::new();
        while let Some(block) = subscription.try_next().unwrap() {
            seen.extend(block.transactions().filter(|each| !each.is_system()).map(|each| entry(&each)));
        }
        assert!(seen == self.committed, "the log as a subscription reads it");
        for partition in 0..3 {
            let expected: Vec<_> = self.committed.iter().filter(|(_, of, _, _)| *of == partition).cloned().collect();
            let reader = region.partition(self.account, PartitionId(partition), 0);
            let seen: Seen = reader.map(|view| entry(&view.unwrap().transaction())).collect();
            assert!(seen == expected, "partition {partition}");
        }
    }
}

fn entry(transaction: &meridian::Committed<'_>) -> (Lsn, u128, u64, Vec<Vec<u8>>) {
    let records = transaction.records().map(|(_, record)| record.to_vec()).collect();
    (transaction.lsn(), transaction.partition().0, transaction.first_sequence(), records)
}

/// What became of a flip. Never: wrong data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// A copy was found corrupt, and is right again.
    Repaired,
    /// Another slot, file or disk was used, or the place held nothing.
    ReadAround,
}

/// About `count` of these, evenly.
fn spread<T: Copy>(all: &[T], count: usize) -> Vec<T> {
    // An odd step meets every bit of a byte in turn.
    let step = (all.len() / count.max(1)).max(1) | 1;
    all.iter().step_by(step).copied().collect()
}

fn load(options: &Options) -> Vec<(usize, String, Vec<u8>)> {
    let mut files = Vec::new();
    for (disk, config) in options.disks.iter().enumerate() {
        let entries = std::fs::read_dir(&config.path).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_none());
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            files.push((disk, name, std::fs::read(&path).unwrap()));
        }
    }
    files
}

fn flip(path: &Path, bytes: &[u8], bit: usize) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[bytes[bit / 8] ^ 1 << (bit % 8)], bit as u64 / 8).unwrap();
}

#[test]
fn no_single_flipped_bit_of_one_disk_is_ever_returned_as_data() {
    let reference = Reference::make();
    let bits = reference.bits();
    let next = AtomicUsize::new(0);
    let counts = std::thread::scope(|scope| {
        let work = || {
            let dir = fast_dir();
            let options = tiny(&dir);
            let mut counts: BTreeMap<(String, Outcome), u32> = BTreeMap::new();
            while let Some(&(file, bit)) = bits.get(next.fetch_add(1, Ordering::Relaxed)) {
                let name = &reference.files[file].1;
                let checked = std::panic::AssertUnwindSafe(|| reference.check(&options, file, bit));
                match std::panic::catch_unwind(checked) {
                    Ok(outcome) => *counts.entry((name.clone(), outcome)).or_default() += 1,
                    Err(_) => panic!("bit {} of byte {} of {name} on the first disk", bit % 8, bit / 8),
                }
            }
            counts
        };
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        let mut all: BTreeMap<(String, Outcome), u32> = BTreeMap::new();
        for worker in workers {
            for (key, count) in worker.join().unwrap() {
                *all.entry(key).or_default() += count;
            }
        }
        all
    });
    println!("{counts:#?}");
    let of = |prefix: &str, outcome: Outcome| {
        counts.iter().filter(|((name, is), _)| name.starts_with(prefix) && *is == outcome).map(|(_, n)| n).sum::<u32>()
    };
    assert!(of("slot-", Outcome::Repaired) > 100, "flips in the blocks of sealed copies are found");
    assert!(of("superblock", Outcome::ReadAround) > 10 && of("index-", Outcome::ReadAround) > 10);
    assert!(of("checkpoint-", Outcome::ReadAround) > 0);
}

#[test]
fn a_bit_flipped_in_every_copy_is_an_error_that_names_the_place() {
    let reference = Reference::make();
    let dir = fast_dir();
    let options = tiny(&dir);
    reference.restore(&options);
    // The same byte of a record, wherever the segment's slot has it.
    let marker = b"record 7 record 7 record 7";
    let mut flipped = 0;
    for (disk, name, bytes) in reference.files.iter().filter(|(_, name, _)| name.starts_with("slot-")) {
        if let Some(at) = bytes.windows(marker.len()).position(|window| window == marker) {
            flip(&options.disks[*disk].path.join(name), bytes, (at + 5) * 8);
            flipped += 1;
        }
    }
    assert_eq!(flipped, 3);
    let error = Region::open(options.clone(), Memory::default()).err().expect("a machine cannot be handed this");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    // Who does not need the machine's replay still gets all the rest.
    let region = Region::open(options, ()).unwrap();
    let (lsn, _, first, _) = reference.committed[7];
    let mut subscription = region.subscribe(Lsn::ZERO);
    let error = std::iter::from_fn(|| Some(subscription.try_next())).find_map(Result::err).unwrap();
    for error in [error, region.read(lsn).err().unwrap()] {
        let corruption = error.corruption().expect("a place");
        assert_eq!((error.kind(), corruption.segment), (ErrorKind::Corrupt, lsn.segment()));
        let block = u64::from(lsn.offset() & !0xfff);
        assert!((block..block + 8192).contains(&corruption.offset), "{corruption:?}");
    }
    let mut reader = region.partition(reference.account, PartitionId(7 % 3), 0);
    let seen: Seen = reader.by_ref().map_while(Result::ok).map(|view| entry(&view.transaction())).collect();
    assert!(seen.iter().all(|(_, _, sequence, _)| *sequence < first) && reader.position() == first);
}
