//! Reading a partition in order, following the tail, and what readers meet on the way: trims, lost indexes, rot.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meridian::{
    AccountId, Ack, BlockView, ErrorKind, Lsn, Options, PartitionId, PartitionReader, Region, SegmentId, Transaction,
};
use tempfile::TempDir;

use crate::common::options;
use crate::disks::until;

/// A partition's records in order.
type Records = Vec<Vec<u8>>;

/// Options under which almost nothing is read from memory.
fn cold(dir: &TempDir) -> Options {
    let mut options = options(dir, 3);
    options.hot_bytes = 0;
    options
}

/// Commits `transactions` of one to three records of about `len` bytes each to three partitions, and a fourth that gets few.
fn fill(region: &Region, account: AccountId, transactions: u32, len: usize, model: &mut BTreeMap<u128, Records>) {
    let mut tickets = Vec::new();
    for number in 0..transactions {
        let partition = if number % 151 == 75 { 9 } else { u128::from(number % 3) };
        let mut transaction = Transaction::new(account, PartitionId(partition));
        let records = model.entry(partition).or_default();
        for _ in 0..number % 3 + 1 {
            let record = vec![records.len() as u8; len + records.len() % 7];
            transaction = transaction.record(record.clone());
            records.push(record);
        }
        tickets.push(region.submit(transaction).unwrap());
    }
    for ticket in tickets {
        ticket.wait().unwrap();
    }
}

/// Reads to the end of what is committed. Panics where sequences are not dense.
fn drain(reader: &mut PartitionReader) -> Records {
    let mut records = Vec::new();
    let mut next = None;
    for view in reader {
        let view = view.unwrap();
        let transaction = view.transaction();
        assert!(next.is_none_or(|next| next == transaction.first_sequence()), "dense");
        next = Some(transaction.first_sequence() + transaction.len() as u64);
        records.extend(transaction.records().map(|(_, record)| record.to_vec()));
    }
    records
}

#[track_caller]
fn check(region: &Region, account: AccountId, model: &BTreeMap<u128, Records>) {
    for (&partition, records) in model {
        let partition = PartitionId(partition);
        assert_eq!(region.next_sequence(account, partition).unwrap(), records.len() as u64);
        for from in (0..=records.len()).step_by(1 + records.len() / 5) {
            let mut reader = region.partition(account, partition, from as u64);
            let read = drain(&mut reader);
            let first = records.len() - read.len();
            assert!(read == records[first..] && (first..first + 3).contains(&from), "{partition:?} from {from}");
            assert_eq!(reader.position(), records.len() as u64);
        }
    }
}

/// The files of every disk whose name begins so, without those that are still being written.
fn files(options: &Options, prefix: &str) -> Vec<PathBuf> {
    let entries = options.disks.iter().flat_map(|disk| std::fs::read_dir(&disk.path).unwrap());
    let paths = entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_none());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix)).collect();
    paths.sort();
    paths
}

fn flip(path: &Path, offset: usize) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset as u64).unwrap();
}

#[test]
fn a_partition_is_read_in_order_from_any_record_across_segments_and_openings() {
    let dir = tempfile::tempdir().unwrap();
    for (hot_bytes, index_cache_bytes) in [(0, 0), (0, 64 << 20), (64 << 20, 20_000)] {
        let dir = tempfile::tempdir_in(dir.path()).unwrap();
        let options = Options { hot_bytes, index_cache_bytes, ..cold(&dir) };
        let region = Region::create(options.clone(), ()).unwrap();
        let account = region.create_account("flights", Ack::Quorum).unwrap();
        let mut model = BTreeMap::new();
        assert_eq!(drain(&mut region.partition(account, PartitionId(0), 0)), Records::new());
        assert_eq!(region.next_sequence(account, PartitionId(0)).unwrap(), 0);
        fill(&region, account, 1000, 2_000, &mut model);
        check(&region, account, &model);
        until("the seals", || region.health().unwrap().is_whole());
        check(&region, account, &model);
        region.close().unwrap();
        let region = Region::open(options.clone(), ()).unwrap();
        check(&region, account, &model);
        fill(&region, account, 300, 2_000, &mut model);
        check(&region, account, &model);
        assert!(region.health().unwrap().segments > 4);
    }
}

#[test]
fn a_reader_that_came_to_the_end_goes_on_when_more_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(cold(&dir), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let mut model = BTreeMap::new();
    let mut reader = region.partition(account, PartitionId(9), 0);
    let mut read = Records::new();
    for _ in 0..6 {
        read.extend(drain(&mut reader));
        assert!(reader.next().is_none());
        fill(&region, account, 400, 1_500, &mut model);
    }
    read.extend(drain(&mut reader));
    assert_eq!(read, model[&9]);
}

#[test]
fn a_lost_or_rotten_index_is_made_again_from_its_segment() {
    let dir = tempfile::tempdir().unwrap();
    let options = cold(&dir);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let mut model = BTreeMap::new();
    fill(&region, account, 1500, 2_000, &mut model);
    // A copy that completes behind the quorum may have come too late for its segment's index.
    until("an index of every sealed segment", || {
        let sealed = region.health().unwrap().segments - 1;
        let names: BTreeSet<_> =
            files(&options, "index-").iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        region.health().unwrap().is_whole() && names.len() >= sealed
    });
    for (number, path) in files(&options, "index-").into_iter().enumerate() {
        if number % 2 == 0 {
            std::fs::remove_file(path).unwrap();
        } else {
            flip(&path, 100 + number * 7);
        }
    }
    check(&region, account, &model);
    region.close().unwrap();
    let region = Region::open(options, ()).unwrap();
    check(&region, account, &model);
}

#[test]
fn a_reader_of_what_was_trimmed_is_told_so_and_can_skip_it() {
    let dir = tempfile::tempdir().unwrap();
    let options = cold(&dir);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let gone = PartitionId(77);
    region.commit(Transaction::new(account, gone).record("a").record("b")).unwrap();
    let mut model = BTreeMap::new();
    fill(&region, account, 1500, 2_000, &mut model);
    until("whole", || region.health().unwrap().is_whole());
    let mut behind = region.partition(account, PartitionId(0), 0);
    assert_eq!(behind.next().unwrap().unwrap().transaction().first_sequence(), 0);
    let mut tail = region.subscribe(Lsn::ZERO);
    tail.try_next().unwrap().unwrap();
    region.trim(Lsn::MAX).unwrap();
    assert_eq!(tail.try_next().err().unwrap().kind(), ErrorKind::Trimmed);
    // What it had found and had in memory may still come; then it is told.
    let error = behind.find_map(Result::err).unwrap();
    assert_eq!(error.kind(), ErrorKind::Trimmed, "{error}");
    for _ in 0..2 {
        let mut fresh = region.partition(account, PartitionId(0), 0);
        assert_eq!(fresh.try_next().err().unwrap().kind(), ErrorKind::Trimmed);
        let first = fresh.skip_trimmed().unwrap();
        assert!(first > 0 && first < model[&0].len() as u64);
        assert_eq!(drain(&mut fresh), model[&0][first as usize..]);
    }
    // Nothing of this one is left.
    let mut reader = region.partition(account, gone, 1);
    assert_eq!(reader.try_next().err().unwrap().kind(), ErrorKind::Trimmed);
    assert_eq!(reader.skip_trimmed().unwrap(), 2);
    assert!(reader.next().is_none());
    region.commit(Transaction::new(account, gone).record("c")).unwrap();
    assert_eq!(drain(&mut reader), [b"c".to_vec()]);
}

#[test]
fn readers_that_had_read_everything_that_was_trimmed_are_told_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = cold(&dir);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let mut model = BTreeMap::new();
    fill(&region, account, 100, 2_000, &mut model);
    // An opening begins a segment: both readers come to stand at the end of the one before.
    region.close().unwrap();
    let region = Region::open(options, ()).unwrap();
    let mut tail = region.subscribe(Lsn::ZERO);
    let mut read = 0;
    while let Some(block) = tail.try_next().unwrap() {
        read += collect([block]).len();
    }
    let mut partition = region.partition(account, PartitionId(0), 0);
    let first = drain(&mut partition).len();
    assert_eq!((read, tail.position()), (100, region.committed()));
    fill(&region, account, 1_000, 2_000, &mut model);
    let next = Lsn::new(SegmentId(tail.position().segment().0 + 1), 8192);
    until("the trim", || region.trim(next).unwrap() == next);
    assert_eq!(region.subscribe(Lsn::new(SegmentId(1), 8192)).try_next().err().unwrap().kind(), ErrorKind::Trimmed);
    while let Some(block) = tail.try_next().unwrap() {
        read += collect([block]).len();
    }
    assert_eq!(read, 1_100);
    assert_eq!(drain(&mut partition), model[&0][first..]);
}

#[test]
fn the_indexes_of_trimmed_segments_are_removed_also_those_from_before_the_opening() {
    let dir = tempfile::tempdir().unwrap();
    let options = cold(&dir);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    fill(&region, account, 1500, 2_000, &mut BTreeMap::new());
    // A copy that completes behind the quorum may have come too late for its segment's index.
    until("an index of every sealed segment", || {
        let sealed = region.health().unwrap().segments - 1;
        let names: BTreeSet<_> =
            files(&options, "index-").iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        region.health().unwrap().is_whole() && names.len() >= sealed
    });
    // The checkpoint covers them, so that the next opening does not read them.
    region.trim(Lsn::new(SegmentId(2), 0)).unwrap();
    region.close().unwrap();
    let region = Region::open(options.clone(), ()).unwrap();
    let first = region.trim(Lsn::MAX).unwrap().segment().0;
    let left: Vec<PathBuf> = files(&options, "index-");
    let number = |path: &PathBuf| path.to_str().unwrap().rsplit('-').next().unwrap().parse::<u32>().unwrap();
    assert!(first > 3 && left.iter().all(|path| number(path) >= first), "{first}: {left:?}");
}

#[test]
fn readers_and_trims_race_and_a_reader_sees_whole_data_or_that_it_was_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(cold(&dir), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let done = AtomicBool::new(false);
    let trimmed = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut trimmed, mut read) = (0u32, 0u32);
            while !done.load(Ordering::Relaxed) {
                let mut reader = region.partition(account, PartitionId(0), 0);
                drop(reader.skip_trimmed());
                let mut subscription = region.subscribe(Lsn::ZERO);
                for _ in 0..200 {
                    let results = [
                        reader.try_next().map(|view| view.map(|view| check_record(&view.transaction()))),
                        subscription
                            .try_next()
                            .map(|block| block.map(|block| block.transactions().for_each(|each| check_record(&each)))),
                    ];
                    for result in results {
                        match result {
                            Ok(_) => read += 1,
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::Trimmed, "{error}");
                                trimmed += 1;
                            }
                        }
                    }
                }
            }
            assert!(read > 1000, "{read}");
            trimmed
        });
        for round in 0..12 {
            let tickets: Vec<_> = (0..300u32)
                .map(|number| {
                    let transaction = Transaction::new(account, PartitionId(u128::from(number % 4)));
                    region.submit(transaction.record(vec![number as u8; 10_000])).unwrap()
                })
                .collect();
            for ticket in tickets {
                ticket.wait().unwrap();
            }
            if round > 3 {
                region.trim(Lsn::MAX).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    println!("{trimmed} reads were told of a trim");
}

/// Records of that test are all of one byte.
fn check_record(transaction: &meridian::Committed<'_>) {
    if !transaction.is_system() {
        for (_, record) in transaction.records() {
            assert!(record.len() == 10_000 && record.iter().all(|byte| *byte == record[0]), "another's bytes");
        }
    }
}

/// Every transaction's position and records, in the order of the blocks; checks that blocks follow each other.
fn collect(blocks: impl IntoIterator<Item = BlockView>) -> Vec<(Lsn, Records)> {
    let mut all = Vec::new();
    for block in blocks {
        for transaction in block.transactions().filter(|transaction| !transaction.is_system()) {
            let records = transaction.records().map(|(_, record)| record.to_vec()).collect();
            assert!(all.last().is_none_or(|(last, _)| *last < transaction.lsn()));
            all.push((transaction.lsn(), records));
        }
    }
    all
}

#[test]
fn the_tail_is_followed_while_commits_go_on_by_threads_and_by_tasks_hot_and_cold() {
    const TRANSACTIONS: usize = 3000;
    for hot_bytes in [0, 64 << 20] {
        let dir = tempfile::tempdir().unwrap();
        let region = Region::create(Options { hot_bytes, ..options(&dir, 3) }, ()).unwrap();
        let account = region.create_account("flights", Ack::Quorum).unwrap();
        let follow = |mut next: Box<dyn FnMut() -> BlockView>| {
            let (mut blocks, mut count) = (Vec::new(), 0);
            while count < TRANSACTIONS {
                let block = next();
                count += block.transactions().filter(|transaction| !transaction.is_system()).count();
                blocks.push(block);
            }
            collect(blocks)
        };
        let (committed, blocking, task) = std::thread::scope(|scope| {
            let blocking = scope.spawn(|| {
                let mut subscription = region.subscribe(Lsn::ZERO);
                follow(Box::new(move || subscription.next_blocking().unwrap()))
            });
            let task = scope.spawn(|| {
                let mut subscription = region.subscribe(Lsn::ZERO);
                follow(Box::new(move || futures::executor::block_on(subscription.next()).unwrap()))
            });
            let tickets: Vec<_> = (0..TRANSACTIONS)
                .map(|number| {
                    let record = vec![number as u8; 1_000 + number % 700];
                    let transaction = Transaction::new(account, PartitionId(number as u128 % 5));
                    (region.submit(transaction.record(record.clone())).unwrap(), record)
                })
                .collect();
            let committed: Vec<(Lsn, Records)> =
                tickets.into_iter().map(|(ticket, record)| (ticket.wait().unwrap().lsn, vec![record])).collect();
            (committed, blocking.join().unwrap(), task.join().unwrap())
        });
        assert!(blocking == committed && task == committed, "hot_bytes {hot_bytes}");
        // From the middle, and on from where a reader was.
        let (middle, _) = committed[TRANSACTIONS / 2];
        let mut subscription = region.subscribe(middle);
        let first = subscription.try_next().unwrap().unwrap();
        assert!(first.lsn() <= middle && first.transaction(middle).is_some());
        let resumed = region.subscribe(subscription.position()).try_next().unwrap().unwrap();
        assert_eq!(resumed.lsn(), subscription.try_next().unwrap().unwrap().lsn());
        let mut end = region.subscribe(region.committed());
        let waiting = std::thread::scope(|scope| {
            let waiting = scope.spawn(move || end.next_blocking());
            std::thread::sleep(Duration::from_millis(20));
            region.commit(Transaction::new(account, PartitionId(1)).record("woken")).unwrap();
            waiting.join().unwrap()
        });
        assert_eq!(collect([waiting.unwrap()])[0].1, [b"woken".to_vec()]);
    }
}

#[test]
fn who_waits_at_the_tail_or_reads_the_past_of_a_closed_region_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(cold(&dir), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    fill(&region, account, 50, 100, &mut BTreeMap::new());
    let mut past = region.subscribe(Lsn::ZERO);
    let mut partition = region.partition(account, PartitionId(0), 0);
    let mut tail = region.subscribe(region.committed());
    let waiting = std::thread::spawn(move || tail.next_blocking());
    std::thread::sleep(Duration::from_millis(20));
    region.close().unwrap();
    assert_eq!(waiting.join().unwrap().err().unwrap().kind(), ErrorKind::Closed);
    assert_eq!(past.next_blocking().err().unwrap().kind(), ErrorKind::Closed);
    assert_eq!(partition.try_next().err().unwrap().kind(), ErrorKind::Closed);
}

#[test]
fn positions_at_which_nothing_begins_are_not_found_and_no_copy_is_blamed() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(cold(&dir), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let large = |number: u8| Transaction::new(account, PartitionId(1)).record(vec![number; 60_000]);
    let receipts: Vec<_> = (0..60).map(|number| region.commit(large(number)).unwrap()).collect();
    until("whole", || region.health().unwrap().is_whole());
    let (sealed, last) = (receipts[3].lsn, receipts[59].lsn);
    assert!(region.read(sealed).is_ok() && region.read(last).is_ok());
    let inside = |lsn: Lsn| Lsn::new(lsn.segment(), lsn.offset() + 8192);
    let behind = Lsn::new(sealed.segment(), (1 << 20) - 4096);
    for lsn in [inside(sealed), inside(last), behind, Lsn::ZERO, Lsn::MAX, region.committed()] {
        assert_eq!(region.read(lsn).err().unwrap().kind(), ErrorKind::NotFound, "{lsn}");
    }
    assert_eq!(region.subscribe(inside(sealed)).try_next().err().unwrap().kind(), ErrorKind::NotFound);
    region.scrub().unwrap();
    assert_eq!(region.health().unwrap().corrupt_copies, (0, 0));
}

/// Offsets in slot files, and the files, at which the blocks of the first segments lie.
fn sealed_copies(options: &Options, marker: &[u8]) -> Vec<(PathBuf, usize)> {
    let mut found = Vec::new();
    for path in files(options, "slot-") {
        let bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(marker.len()).position(|window| window == marker) {
            found.push((path, at));
        }
    }
    found
}

#[test]
fn rot_in_one_copy_is_read_around_and_repaired_and_in_all_copies_is_a_typed_error() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { scrub_bytes_per_second: 0, ..cold(&dir) };
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::All).unwrap();
    let marker = b"the record whose copies rot";
    let rotten = region.commit(Transaction::new(account, PartitionId(5)).record(&marker[..])).unwrap();
    let mut model = BTreeMap::new();
    fill(&region, account, 1000, 2_000, &mut model);
    until("whole", || region.health().unwrap().is_whole());
    let copies = sealed_copies(&options, marker);
    assert_eq!(copies.len(), 3);
    let read = |region: &Region| region.read(rotten.lsn).map(|block| collect([block]));
    let right = read(&region).unwrap();
    for (path, at) in &copies {
        flip(path, at + 3);
        assert_eq!(read(&region).unwrap(), right, "another copy is right");
        assert_eq!(drain(&mut region.partition(account, PartitionId(5), 0)), [marker.to_vec()]);
        assert!(
            collect(std::iter::from_fn({
                let mut subscription = region.subscribe(Lsn::ZERO);
                move || subscription.try_next().unwrap()
            }))
            .contains(&right[0])
        );
        // Only the copy that is read first is found by reading; the others are found by the scrub.
        if path.starts_with(&options.disks[0].path) {
            until("the repair", || region.health().unwrap().corrupt_copies == (1, 1));
        } else {
            region.scrub().unwrap();
        }
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(&bytes[*at..*at + marker.len()], marker, "{path:?} was repaired");
    }
    assert_eq!(region.health().unwrap().corrupt_copies, (3, 3));
    for (path, at) in &copies {
        flip(path, at + 5);
    }
    let mut subscription = region.subscribe(Lsn::ZERO);
    for error in [
        read(&region).unwrap_err(),
        std::iter::from_fn(|| Some(subscription.try_next())).find_map(Result::err).unwrap(),
        region.partition(account, PartitionId(5), 0).try_next().err().unwrap(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        let corruption = error.corruption().unwrap();
        assert_eq!(corruption.segment, rotten.lsn.segment());
        let block = u64::from(rotten.lsn.offset() & !0xfff);
        assert!((block..block + (64 << 10)).contains(&corruption.offset) && corruption.expected != corruption.found);
    }
    let report = region.scrub().unwrap();
    assert_eq!((report.repaired, report.lost.len()), (0, 3));
    // What lies in other segments is still there.
    check_after(&region, account, rotten.lsn.segment(), &model);
}

/// Everything behind a segment can be read.
fn check_after(region: &Region, account: AccountId, segment: SegmentId, model: &BTreeMap<u128, Records>) {
    let mut subscription = region.subscribe(Lsn::new(SegmentId(segment.0 + 1), 8192));
    let read = collect(std::iter::from_fn(|| subscription.try_next().unwrap()));
    assert!(read.len() > 400);
    let records = &model[&0];
    let mut reader = region.partition(account, PartitionId(0), records.len() as u64 - 50);
    assert!(records.ends_with(&drain(&mut reader)));
}

/// The bytes of the blocks that a subscriber from `from` on reads before `to`.
fn blocks_between(region: &Region, from: Lsn, to: Lsn) -> u64 {
    let (mut tail, mut bytes) = (region.subscribe(from.min(region.committed())), 0);
    while let Some(block) = tail.try_next().unwrap().filter(|block| block.lsn() < to) {
        bytes += u64::from(block.end().offset() - block.lsn().offset());
    }
    bytes
}

#[test]
fn distance_is_the_bytes_that_a_reader_has_still_to_read() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 3);
    let region = Region::create(options.clone(), ()).unwrap();
    for from in [Lsn::ZERO, region.first(), region.committed(), Lsn::MAX] {
        assert_eq!(region.distance(from, region.committed()), 0, "a new region is empty, from {from}");
    }
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    assert_eq!(region.distance(Lsn::ZERO, region.committed()), 4096, "one block");
    let commit = |region: &Region, number: u8| {
        let transaction = Transaction::new(account, PartitionId(1)).record(vec![number; 90_000]);
        region.commit(transaction).unwrap().lsn
    };
    let mut lsns: Vec<Lsn> = (0..30).map(|number| commit(&region, number)).collect();
    let end = region.committed();
    region.close().unwrap();

    // The next life begins a segment: what the last one leaves unused there is not to be read.
    let region = Region::open(options, ()).unwrap();
    assert_eq!(region.distance(end, region.committed()), 0);
    lsns.push(commit(&region, 30));
    assert_eq!(region.distance(end, region.committed()), 94_208, "one block");
    lsns.extend((31..50).map(|number| commit(&region, number)));
    assert!(lsns[0].segment() < lsns[20].segment() && lsns[30].segment() < lsns[49].segment());
    let check = |region: &Region| {
        let places =
            lsns.iter().copied().step_by(7).chain([Lsn::ZERO, end, region.first(), region.committed(), Lsn::MAX]);
        let places: Vec<Lsn> = places.collect();
        let retained = places.iter().filter(|from| **from == Lsn::ZERO || **from >= region.first());
        for (&from, &to) in retained.flat_map(|from| places.iter().map(move |to| (from, to))) {
            assert_eq!(region.distance(from, to), blocks_between(region, from, to), "{from} to {to}");
        }
    };
    check(&region);
    let first = region.trim(lsns[25]).unwrap();
    assert!(first > lsns[0]);
    check(&region);
    assert_eq!(region.distance(lsns[0], first), 0, "what was trimmed is not to be read");
}

/// A partition a record, in sealed segments of a mebibyte, read with next to no cache.
fn many_partitions(dir: &TempDir) -> (Options, Region, AccountId) {
    let options = Options { index_cache_bytes: 200_000, ..cold(dir) };
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("keys", Ack::Quorum).unwrap();
    let submit = |number: u32| {
        let transaction = Transaction::new(account, PartitionId(u128::from(number)));
        region.submit(transaction.record(number.to_le_bytes().to_vec())).unwrap()
    };
    let tickets: Vec<_> = (0..30_000).map(submit).collect();
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    // What has no index on disk yet is answered from memory: the next opening finds one of each.
    // A copy that completes after the quorum may have come too late for its segment's index.
    until("an index of every sealed segment", || {
        let sealed = region.health().unwrap().segments - 1;
        let names: BTreeSet<_> =
            files(&options, "index-").iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        region.health().unwrap().is_whole() && names.len() >= sealed
    });
    region.close().unwrap();
    let region = Region::open(options.clone(), ()).unwrap();
    until("whole", || region.health().unwrap().is_whole());
    (options, region, account)
}

fn read_one(region: &Region, account: AccountId, number: u32) {
    let view = region.partition(account, PartitionId(u128::from(number)), 0).next().unwrap().unwrap();
    assert_eq!(view.transaction().records().collect::<Vec<_>>(), [(0, &number.to_le_bytes()[..])]);
}

#[test]
fn reading_one_of_many_partitions_reads_pages_of_indexes_not_all_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let (options, region, account) = many_partitions(&dir);
    let largest = files(&options, "index-").iter().map(|path| path.metadata().unwrap().len()).max().unwrap();
    assert!(largest > 400_000, "an index is {largest} bytes");
    for number in 0..200 {
        read_one(&region, account, number * 7919 % 30_000);
    }
    let stats = region.stats().unwrap();
    assert!(stats.index_misses > 100 && stats.index_hits > 100 && stats.indexes_remade == 0, "{stats:?}");
    // Two to four segments: each of a read's lookups takes a page, and directories stay in memory.
    assert!(stats.index_bytes < 200 * 4 * (32 << 10), "{} bytes of indexes", stats.index_bytes);
}

#[test]
fn rotten_page_of_an_index_is_read_from_another_disk_else_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (options, region, account) = many_partitions(&dir);
    let rot = |path: &PathBuf| {
        let pages = path.metadata().unwrap().len() / 4096;
        (1..pages).for_each(|page| flip(path, page as usize * 4096 + 9));
    };
    let mut copies: BTreeMap<_, Vec<PathBuf>> = BTreeMap::new();
    for path in files(&options, "index-") {
        copies.entry(path.file_name().unwrap().to_owned()).or_default().push(path);
    }
    let (last, others): (Vec<_>, Vec<_>) = copies.into_values().map(|mut its| (its.pop().unwrap(), its)).unzip();
    others.iter().flatten().for_each(rot);
    (0..30).for_each(|number| read_one(&region, account, number * 997));
    assert_eq!(region.stats().unwrap().indexes_remade, 0, "one disk has each");
    last.iter().for_each(rot);
    (0..30).for_each(|number| read_one(&region, account, number * 991 + 1));
    assert!(region.stats().unwrap().indexes_remade > 0);
}

/// A backup that is put back over newer files leaves those that it lacks: an index of a history that
/// is not the log's any more would answer retries that were never written here.
#[test]
fn h6_index_of_another_history_of_the_segment_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 3);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let commit = |region: &Region, number: u64| {
        let transaction = Transaction::new(account, PartitionId(1)).client(meridian::ClientId(1), number);
        region.commit(transaction.record(vec![number as u8; 500])).unwrap()
    };
    commit(&region, 1);
    let slots = |path: &Path| !path.file_name().unwrap().to_string_lossy().starts_with("index-");
    let backup: Vec<(PathBuf, Vec<u8>)> = files(&options, "")
        .into_iter()
        .filter(|path| slots(path) && path.metadata().unwrap().is_file())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    commit(&region, 2);
    region.close().unwrap();
    let region = Region::open(options.clone(), ()).unwrap();
    until("an index of the first segment", || files(&options, "index-").len() >= 2);
    drop(region);
    for (path, bytes) in backup {
        std::fs::write(path, bytes).unwrap();
    }
    let region = Region::open(options, ()).unwrap();
    assert_eq!(region.next_sequence(account, PartitionId(1)).unwrap(), 1, "the second was not put back");
    let second = commit(&region, 2);
    assert_eq!((second.first_sequence, second.repeated), (1, false));
    assert_eq!(region.partition(account, PartitionId(1), 0).count(), 2);
}
