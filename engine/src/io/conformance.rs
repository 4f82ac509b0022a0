//! What every driver must do, whatever it does it with: one suite for io_uring, the threads and the simulated disks.
#![allow(clippy::disallowed_methods, reason = "tests of what comes from other threads start them")]

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Buffer, Completion, DiskIndex, Driver, FileId, Op, OpId, Output};

const PAGE: usize = 4096;
const DISK: DiskIndex = DiskIndex(0);
const SECOND: Duration = Duration::from_secs(1);
/// How long an operation may take before the suite gives up, in the driver's own time.
const PATIENCE: u64 = 60_000_000_000;

/// Runs the whole suite. `make` gives a new driver each time, and a directory that exists, in which nothing else is; disks are
/// made below it.
///
/// # Panics
/// When the driver does not conform.
pub fn run(make: impl Fn() -> (Box<dyn Driver>, PathBuf)) {
    let checks: [fn(&mut Rig); 23] = [
        a_missing_directory_is_created_only_on_demand,
        a_directory_is_locked_until_it_is_detached,
        what_is_not_open_is_not_found,
        a_created_file_is_zero_and_listed,
        a_file_is_created_once_and_opened_when_it_exists,
        names_are_not_paths,
        what_is_written_is_read_back,
        a_read_is_short_at_the_end_of_the_file,
        a_write_past_the_end_makes_the_file_longer,
        misaligned_operations_are_refused,
        many_operations_in_flight_all_come_back_once,
        one_slice_goes_to_three_disks,
        operations_started_while_others_are_in_flight_complete,
        a_look_starts_and_finds_operations,
        a_poll_sleeps_no_longer_than_it_is_told,
        a_ring_is_kept_for_the_next_sleep,
        small_files_are_replaced_read_and_removed,
        a_file_that_is_removed_is_closed,
        computations_return_their_value,
        other_threads_read_open_files,
        other_threads_read_parts_of_named_files,
        a_detached_disk_is_gone_and_keeps_its_data,
        space_and_time_and_chance_are_there,
    ];
    for check in checks {
        let (driver, root) = make();
        check(&mut Rig { driver, root, next: 0 });
    }
}

/// A driver under test.
struct Rig {
    driver: Box<dyn Driver>,
    root: PathBuf,
    next: u64,
}

impl Rig {
    fn start(&mut self, op: Op) -> OpId {
        self.next += 1;
        self.driver.submit(OpId(self.next), op);
        OpId(self.next)
    }

    /// Waits until each of these has completed, and nothing else; returns the results in their order.
    fn finish(&mut self, ids: &[OpId]) -> Vec<io::Result<Output>> {
        let end = self.driver.environment().now() + PATIENCE;
        let mut done: Vec<Completion> = Vec::new();
        while done.len() < ids.len() {
            assert!(self.driver.environment().now() < end, "{} of {} came back", done.len(), ids.len());
            self.driver.poll(Some(SECOND), &mut done);
        }
        self.driver.poll(None, &mut done);
        assert_eq!(done.len(), ids.len(), "something came back twice, or that was not started");
        let mut results = Vec::new();
        for id in ids {
            let at = done.iter().position(|completion| completion.id == *id);
            results.push(done.swap_remove(at.expect("each comes back under its own number")).result);
        }
        results
    }

    fn run(&mut self, op: Op) -> io::Result<Output> {
        let id = self.start(op);
        self.finish(&[id]).remove(0)
    }

    #[track_caller]
    fn done(&mut self, op: Op) {
        assert!(matches!(self.run(op).expect("it succeeds"), Output::Done), "another output");
    }

    #[track_caller]
    fn refused(&mut self, op: Op, kind: ErrorKind) {
        match self.run(op) {
            Ok(_) => panic!("it should fail with {kind:?}"),
            Err(error) => assert_eq!(error.kind(), kind, "{error}"),
        }
    }

    fn path(&self, disk: DiskIndex) -> PathBuf {
        self.root.join(format!("disk-{}", disk.0))
    }

    fn attach(&mut self, disk: DiskIndex) {
        let op = Op::Attach { disk, path: self.path(disk), create: true };
        assert!(matches!(self.run(op).expect("attach"), Output::Attached(_)), "another output");
    }

    #[track_caller]
    fn open(&mut self, disk: DiskIndex, name: &str, create: Option<u64>) -> FileId {
        match self.run(Op::Open { disk, name: name.to_owned(), create }).expect("open") {
            Output::File(file) => file,
            _ => panic!("another output"),
        }
    }

    /// An attached disk and a new file of so many pages.
    fn with_file(&mut self, pages: usize) -> FileId {
        self.attach(DISK);
        self.open(DISK, "slot", Some((pages * PAGE) as u64))
    }

    #[track_caller]
    fn read(&mut self, file: FileId, page: usize, pages: usize) -> Vec<u8> {
        match self.run(read(file, page, pages)).expect("read") {
            Output::Read(buffer) => buffer.to_vec(),
            _ => panic!("another output"),
        }
    }

    fn list(&mut self, disk: DiskIndex) -> Vec<(String, u64)> {
        match self.run(Op::List { disk }).expect("list") {
            Output::Names(names) => names,
            _ => panic!("another output"),
        }
    }

    fn length(&mut self, name: &str) -> Option<u64> {
        self.list(DISK).into_iter().find(|(found, _)| found == name).map(|(_, length)| length)
    }
}

fn read(file: FileId, page: usize, pages: usize) -> Op {
    let (offset, len) = ((page * PAGE) as u64, pages * PAGE);
    Op::Read { disk: DISK, file, offset, buffer: Buffer::zeroed(len).expect("map"), len }
}

fn write(file: FileId, page: usize, pages: usize, byte: u8) -> Op {
    let mut buffer = Buffer::zeroed(pages * PAGE).expect("map");
    buffer.fill(byte);
    Op::Write { disk: DISK, file, offset: (page * PAGE) as u64, data: buffer.share() }
}

fn write_file(name: &str, bytes: &[u8]) -> Op {
    Op::WriteFile { disk: DISK, name: name.to_owned(), bytes: Arc::new(bytes.to_vec()) }
}

fn read_file(name: &str, limit: u64) -> Op {
    Op::ReadFile { disk: DISK, name: name.to_owned(), limit }
}

fn remove(name: &str) -> Op {
    Op::Remove { disk: DISK, name: name.to_owned() }
}

fn a_missing_directory_is_created_only_on_demand(rig: &mut Rig) {
    let path = rig.root.join("a").join("b");
    rig.refused(Op::Attach { disk: DISK, path: path.clone(), create: false }, ErrorKind::NotFound);
    let attached = rig.run(Op::Attach { disk: DISK, path: path.clone(), create: true });
    assert!(matches!(attached.expect("attach"), Output::Attached(_)), "another output");
    rig.done(Op::Detach { disk: DISK });
    let attached = rig.run(Op::Attach { disk: DISK, path, create: false });
    assert!(matches!(attached.expect("attach again"), Output::Attached(_)), "another output");
}

fn a_directory_is_locked_until_it_is_detached(rig: &mut Rig) {
    rig.attach(DISK);
    let again = |rig: &Rig| Op::Attach { disk: DiskIndex(7), path: rig.path(DISK), create: false };
    for _ in 0..3 {
        rig.refused(again(rig), ErrorKind::WouldBlock);
    }
    rig.done(Op::Detach { disk: DISK });
    let attached = rig.run(again(rig));
    assert!(matches!(attached.expect("the lock was given up"), Output::Attached(_)), "another output");
    rig.refused(Op::List { disk: DISK }, ErrorKind::NotFound);
    rig.list(DiskIndex(7));
}

fn what_is_not_open_is_not_found(rig: &mut Rig) {
    for op in on_disk(FileId(1)) {
        rig.refused(op, ErrorKind::NotFound);
    }
    rig.attach(DISK);
    rig.attach(DiskIndex(1));
    let file = rig.open(DISK, "slot", Some(4 * PAGE as u64));
    rig.refused(read(FileId(file.0 + 1), 0, 1), ErrorKind::NotFound);
    // An open file of another disk.
    let data = Buffer::zeroed(PAGE).expect("map").share();
    rig.refused(Op::Write { disk: DiskIndex(1), file, offset: 0, data }, ErrorKind::NotFound);
    rig.refused(remove("nothing"), ErrorKind::NotFound);
    rig.refused(read_file("nothing", 1), ErrorKind::NotFound);
}

/// One operation of each kind that needs an attached disk.
fn on_disk(file: FileId) -> Vec<Op> {
    vec![
        Op::Detach { disk: DISK },
        Op::List { disk: DISK },
        Op::Open { disk: DISK, name: "slot".to_owned(), create: None },
        Op::Open { disk: DISK, name: "other".to_owned(), create: Some(PAGE as u64) },
        read(file, 0, 1),
        write(file, 0, 1, 1),
        write_file("small", b"1"),
        read_file("small", 1),
        remove("small"),
        Op::Space { disk: DISK },
    ]
}

fn a_created_file_is_zero_and_listed(rig: &mut Rig) {
    let file = rig.with_file(16);
    assert_eq!(rig.length("slot"), Some(16 * PAGE as u64));
    assert_eq!(rig.read(file, 0, 16), vec![0; 16 * PAGE]);
    let empty = rig.open(DISK, "empty", Some(0));
    assert_eq!(rig.length("empty"), Some(0));
    assert_eq!(rig.read(empty, 0, 1), Vec::<u8>::new());
}

fn a_file_is_created_once_and_opened_when_it_exists(rig: &mut Rig) {
    rig.attach(DISK);
    rig.refused(Op::Open { disk: DISK, name: "slot".to_owned(), create: None }, ErrorKind::NotFound);
    let first = rig.open(DISK, "slot", Some(4 * PAGE as u64));
    rig.refused(Op::Open { disk: DISK, name: "slot".to_owned(), create: Some(PAGE as u64) }, ErrorKind::AlreadyExists);
    assert_eq!(rig.length("slot"), Some(4 * PAGE as u64), "a refused creation changes nothing");
    let second = rig.open(DISK, "slot", None);
    assert_ne!(first, second, "each opening has its own number");
    rig.done(write(first, 1, 1, 5));
    assert_eq!(rig.read(second, 1, 1), vec![5; PAGE]);
}

fn names_are_not_paths(rig: &mut Rig) {
    rig.attach(DISK);
    for name in ["", ".", "..", "a/b", "/a", "a\0b", "LOCK"] {
        let open = |create| Op::Open { disk: DISK, name: name.to_owned(), create };
        rig.refused(open(None), ErrorKind::InvalidInput);
        rig.refused(open(Some(PAGE as u64)), ErrorKind::InvalidInput);
        rig.refused(write_file(name, b"1"), ErrorKind::InvalidInput);
        rig.refused(read_file(name, 1), ErrorKind::InvalidInput);
        rig.refused(remove(name), ErrorKind::InvalidInput);
    }
}

fn what_is_written_is_read_back(rig: &mut Rig) {
    let file = rig.with_file(64);
    rig.done(write(file, 0, 64, 1));
    rig.done(write(file, 3, 2, 2));
    rig.done(write(file, 4, 1, 3));
    rig.done(write(file, 63, 1, 4));
    let mut expected = vec![1; 64 * PAGE];
    expected[3 * PAGE..5 * PAGE].fill(2);
    expected[4 * PAGE..5 * PAGE].fill(3);
    expected[63 * PAGE..].fill(4);
    assert_eq!(rig.read(file, 0, 64), expected);
    assert_eq!(rig.read(file, 4, 2), expected[4 * PAGE..6 * PAGE]);
    // A part of a larger slice, and a read into a larger buffer, whose length is what was read.
    let data = Buffer::zeroed(4 * PAGE).expect("map").share().part(PAGE..3 * PAGE);
    rig.done(Op::Write { disk: DISK, file, offset: 0, data });
    let buffer = Buffer::zeroed(8 * PAGE).expect("map");
    match rig.run(Op::Read { disk: DISK, file, offset: 0, buffer, len: 3 * PAGE }).expect("read") {
        Output::Read(buffer) => assert_eq!(*buffer, [&[0; 2 * PAGE][..], &[1; PAGE]].concat()),
        _ => panic!("another output"),
    }
}

fn a_read_is_short_at_the_end_of_the_file(rig: &mut Rig) {
    let file = rig.with_file(4);
    assert_eq!(rig.read(file, 2, 8).len(), 2 * PAGE);
    assert_eq!(rig.read(file, 4, 1).len(), 0);
    assert_eq!(rig.read(file, 1000, 1).len(), 0);
    // A file whose end is nowhere in particular.
    rig.done(write_file("odd", &[9; PAGE + 700]));
    let odd = rig.open(DISK, "odd", None);
    assert_eq!(rig.read(odd, 0, 4), [9; PAGE + 700]);
    assert_eq!(rig.read(odd, 1, 1), [9; 700]);
}

fn a_write_past_the_end_makes_the_file_longer(rig: &mut Rig) {
    let file = rig.with_file(2);
    rig.done(write(file, 5, 1, 8));
    assert_eq!(rig.length("slot"), Some(6 * PAGE as u64));
    let all = rig.read(file, 0, 6);
    assert_eq!((&all[..5 * PAGE], &all[5 * PAGE..]), (&[0; 5 * PAGE][..], &[8; PAGE][..]));
}

fn misaligned_operations_are_refused(rig: &mut Rig) {
    let file = rig.with_file(8);
    let whole = Buffer::zeroed(2 * PAGE).expect("map").share();
    let lengths =
        [(0, 0), (0, 100), (0, PAGE + 1), (100, PAGE), (512, PAGE), (PAGE as u64 + 1, PAGE), (u64::MAX - 4095, PAGE)];
    for (offset, len) in lengths {
        let data = whole.part(0..len);
        rig.refused(Op::Write { disk: DISK, file, offset, data }, ErrorKind::InvalidInput);
        let buffer = Buffer::zeroed(2 * PAGE).expect("map");
        rig.refused(Op::Read { disk: DISK, file, offset, buffer, len }, ErrorKind::InvalidInput);
    }
    let buffer = Buffer::zeroed(PAGE).expect("map");
    let len = buffer.capacity() + PAGE;
    rig.refused(Op::Read { disk: DISK, file, offset: 0, buffer, len }, ErrorKind::InvalidInput);
    assert_eq!(rig.read(file, 0, 8), vec![0; 8 * PAGE]);
}

fn many_operations_in_flight_all_come_back_once(rig: &mut Rig) {
    let file = rig.with_file(200);
    let writes: Vec<OpId> = (0..200).map(|page| rig.start(write(file, page, 1, page as u8 + 1))).collect();
    for result in rig.finish(&writes) {
        assert!(matches!(result.expect("write"), Output::Done), "another output");
    }
    // More than any queue is long.
    let reads: Vec<OpId> = (0..700).map(|turn| rig.start(read(file, turn * 7 % 200, 1))).collect();
    for (turn, result) in rig.finish(&reads).into_iter().enumerate() {
        match result.expect("read") {
            Output::Read(buffer) => assert_eq!(*buffer, [(turn * 7 % 200) as u8 + 1; PAGE]),
            _ => panic!("another output"),
        }
    }
}

fn one_slice_goes_to_three_disks(rig: &mut Rig) {
    let disks = [DiskIndex(0), DiskIndex(1), DiskIndex(5)];
    let mut files = Vec::new();
    for disk in disks {
        rig.attach(disk);
        files.push(rig.open(disk, "slot", Some(32 * PAGE as u64)));
    }
    let mut ids = Vec::new();
    for page in 0..32 {
        let mut buffer = Buffer::zeroed(PAGE).expect("map");
        buffer.fill(page as u8 + 1);
        let data = buffer.share();
        for (disk, file) in disks.into_iter().zip(&files) {
            let op = Op::Write { disk, file: *file, offset: page * PAGE as u64, data: data.clone() };
            ids.push(rig.start(op));
        }
    }
    for result in rig.finish(&ids) {
        result.expect("write");
    }
    let expected: Vec<u8> = (0..32 * PAGE).map(|at| (at / PAGE) as u8 + 1).collect();
    for (disk, file) in disks.into_iter().zip(files) {
        let (len, buffer) = (32 * PAGE, Buffer::zeroed(32 * PAGE).expect("map"));
        match rig.run(Op::Read { disk, file, offset: 0, buffer, len }).expect("read") {
            Output::Read(buffer) => assert!(*buffer == expected[..], "disk {disk:?} holds something else"),
            _ => panic!("another output"),
        }
    }
}

fn operations_started_while_others_are_in_flight_complete(rig: &mut Rig) {
    let file = rig.with_file(8);
    let (mut started, mut finished) = (0, 0);
    let mut done = Vec::new();
    let end = rig.driver.environment().now() + PATIENCE;
    while finished < 500 {
        assert!(rig.driver.environment().now() < end, "{finished} of 500 came back");
        while started < 500 && started - finished < 5 {
            rig.start(write(file, started % 8, 1, started as u8));
            started += 1;
        }
        rig.driver.poll(Some(SECOND), &mut done);
        for completion in done.drain(..) {
            completion.result.expect("write");
            finished += 1;
        }
    }
}

fn a_look_starts_and_finds_operations(rig: &mut Rig) {
    let file = rig.with_file(8);
    rig.start(write(file, 0, 1, 1));
    rig.start(Op::List { disk: DISK });
    let end = rig.driver.environment().now() + PATIENCE;
    let mut done = Vec::new();
    while done.len() < 2 {
        assert!(rig.driver.environment().now() < end, "{} of 2 came back", done.len());
        rig.driver.poll(None, &mut done);
    }
    // Sleeping for no time is the same.
    rig.start(write(file, 1, 1, 1));
    while done.len() < 3 {
        assert!(rig.driver.environment().now() < end, "{} of 3 came back", done.len());
        rig.driver.poll(Some(Duration::ZERO), &mut done);
    }
}

/// How long a poll took, in the driver's time.
fn timed(rig: &mut Rig, wait: Option<Duration>) -> Duration {
    let environment = rig.driver.environment();
    let (start, mut done) = (environment.now(), Vec::new());
    rig.driver.poll(wait, &mut done);
    assert!(done.is_empty(), "nothing was started");
    Duration::from_nanos(environment.now() - start)
}

fn a_poll_sleeps_no_longer_than_it_is_told(rig: &mut Rig) {
    rig.attach(DISK);
    for micros in [100, 1_000, 20_000, 500, 3_000] {
        let wait = Duration::from_micros(micros);
        let slept = timed(rig, Some(wait));
        assert!(slept >= wait, "{slept:?} of {wait:?}");
        assert!(slept < wait + SECOND, "{slept:?} of {wait:?}");
    }
    assert!(timed(rig, None) < SECOND);
    // A long wait ends with the first completion, and a shorter one that follows is as short as it says.
    let before = rig.driver.environment().now();
    rig.list(DISK);
    assert!(rig.driver.environment().now() - before < PATIENCE);
    assert!(timed(rig, Some(Duration::from_millis(5))) < SECOND);
}

fn a_ring_is_kept_for_the_next_sleep(rig: &mut Rig) {
    let bell = rig.driver.doorbell();
    let long = Some(10 * SECOND);
    bell.ring();
    assert!(timed(rig, long) < SECOND, "rung before");
    bell.ring();
    timed(rig, None);
    assert!(timed(rig, long) < SECOND, "a look takes no notice");
    bell.ring();
    bell.ring();
    assert!(timed(rig, long) < SECOND, "rung twice");
    let short = Duration::from_millis(20);
    assert!(timed(rig, Some(short)) >= short, "two rings are one");
    // From another thread, whenever that comes to it.
    let ringer = std::thread::spawn(move || bell.ring());
    timed(rig, long);
    ringer.join().expect("no panic");
}

fn small_files_are_replaced_read_and_removed(rig: &mut Rig) {
    rig.attach(DISK);
    let contents = |rig: &mut Rig, name, limit| match rig.run(read_file(name, limit)).expect("read") {
        Output::Bytes(bytes) => bytes,
        _ => panic!("another output"),
    };
    rig.done(write_file("small", b"one"));
    assert_eq!(contents(rig, "small", 3), b"one");
    rig.done(write_file("small", b"a longer text"));
    assert_eq!(contents(rig, "small", 1 << 20), b"a longer text");
    rig.refused(read_file("small", 12), ErrorKind::InvalidData);
    rig.done(write_file("small", b""));
    assert_eq!(contents(rig, "small", 0), b"");
    // Many at once, of one name and of several: one of the contents, whole.
    let ids: Vec<OpId> = (0..12_u8)
        .map(|turn| rig.start(write_file(if turn % 2 == 0 { "small" } else { "other" }, &[turn; 10_000])))
        .collect();
    for result in rig.finish(&ids) {
        result.expect("replace");
    }
    for (name, rest) in [("small", 0), ("other", 1)] {
        let bytes = contents(rig, name, 10_000);
        assert!(bytes.len() == 10_000 && bytes[0] % 2 == rest && bytes.iter().all(|byte| *byte == bytes[0]), "mixed");
    }
    let mut names: Vec<_> = rig.list(DISK).into_iter().filter(|(name, _)| name != "LOCK").collect();
    names.sort();
    assert_eq!(names, [("other".to_owned(), 10_000), ("small".to_owned(), 10_000)]);
    rig.done(remove("small"));
    assert_eq!(rig.length("small"), None);
    rig.refused(remove("small"), ErrorKind::NotFound);
}

fn a_file_that_is_removed_is_closed(rig: &mut Rig) {
    let gone = rig.with_file(4);
    let stays = rig.open(DISK, "stays", Some(4 * PAGE as u64));
    rig.done(remove("slot"));
    rig.refused(read(gone, 0, 1), ErrorKind::NotFound);
    assert_eq!(rig.read(stays, 0, 4), vec![0; 4 * PAGE]);
    let again = rig.open(DISK, "slot", Some(PAGE as u64));
    assert_ne!(again, gone, "an opening's number is not used again");
}

fn computations_return_their_value(rig: &mut Rig) {
    let ids: Vec<OpId> =
        (0..40_u64).map(|number| rig.start(Op::Compute(Box::new(move || Box::new(number * number))))).collect();
    for (number, result) in rig.finish(&ids).into_iter().enumerate() {
        match result.expect("compute") {
            Output::Computed(value) => {
                assert_eq!(*value.downcast::<u64>().expect("a number"), (number * number) as u64)
            }
            _ => panic!("another output"),
        }
    }
}

fn other_threads_read_open_files(rig: &mut Rig) {
    let file = rig.with_file(4);
    rig.done(write(file, 1, 1, 7));
    let reader = rig.driver.reader();
    let thread = std::thread::spawn(move || {
        let mut bytes = [1; 5000];
        let read = reader.read_at(DISK, file, 4000, &mut bytes).expect("read");
        assert_eq!(
            (read, &bytes[..96], &bytes[96..4192], &bytes[4192..]),
            (5000, &[0; 96][..], &[7; 4096][..], &[0; 808][..])
        );
        assert_eq!(reader.read_at(DISK, file, 4 * PAGE as u64 - 10, &mut bytes).expect("read"), 10);
        assert_eq!(reader.read_at(DISK, file, 9 * PAGE as u64, &mut bytes).expect("read"), 0);
        for (disk, file) in [(DISK, FileId(file.0 + 1)), (DiskIndex(1), file)] {
            let error = reader.read_at(disk, file, 0, &mut bytes).expect_err("not open");
            assert_eq!(error.kind(), ErrorKind::NotFound);
        }
        reader
    });
    let reader = thread.join().expect("no panic");
    // What is written later is seen by a file that was read before.
    rig.done(write(file, 1, 1, 8));
    let mut byte = [0];
    reader.read_at(DISK, file, PAGE as u64, &mut byte).expect("read");
    assert_eq!(byte, [8]);
    rig.done(Op::Detach { disk: DISK });
    let error = reader.read_at(DISK, file, 0, &mut byte).expect_err("detached");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

fn other_threads_read_parts_of_named_files(rig: &mut Rig) {
    rig.attach(DISK);
    rig.done(write_file("small", &[5; 10_000]));
    let reader = rig.driver.reader();
    let part = |reader: &dyn crate::io::ReadAt, disk, name: &str, offset, len| {
        let mut buf = vec![0; len];
        reader.read_named_at(disk, name, offset, &mut buf).map(|read| buf[..read].to_vec())
    };
    let thread = std::thread::spawn(move || {
        let parts =
            [(0, 10_000, 10_000), (0, 20_000, 10_000), (4_095, 3, 3), (9_999, 5, 1), (10_000, 5, 0), (1 << 40, 5, 0)];
        for (offset, len, read) in parts {
            let bytes = part(&*reader, DISK, "small", offset, len).expect("read");
            assert_eq!(bytes, vec![5; read], "{len} at {offset}");
        }
        for (disk, name) in [(DISK, "other"), (DiskIndex(1), "small")] {
            let error = part(&*reader, disk, name, 0, 10).expect_err("it should fail");
            assert_eq!(error.kind(), ErrorKind::NotFound, "{name}: {error}");
        }
        reader
    });
    let reader = thread.join().expect("no panic");
    // What is replaced later is seen; what is detached is gone.
    rig.done(write_file("small", &[6; 10]));
    assert_eq!(part(&*reader, DISK, "small", 0, 100).expect("read"), [6; 10]);
    rig.done(Op::Detach { disk: DISK });
    let error = part(&*reader, DISK, "small", 0, 10).expect_err("detached");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

fn a_detached_disk_is_gone_and_keeps_its_data(rig: &mut Rig) {
    let file = rig.with_file(8);
    rig.done(write(file, 0, 8, 6));
    // Operations in flight still come back, one way or the other; those that come later find nothing.
    let mut ids: Vec<OpId> = (0..4).map(|page| rig.start(write(file, page, 1, 6))).collect();
    ids.push(rig.start(Op::Open { disk: DISK, name: "slot".to_owned(), create: None }));
    ids.push(rig.start(Op::Detach { disk: DISK }));
    let results = rig.finish(&ids);
    results.into_iter().next_back().expect("there").expect("detach");
    for op in on_disk(file) {
        rig.refused(op, ErrorKind::NotFound);
    }
    rig.attach(DISK);
    rig.refused(read(file, 0, 1), ErrorKind::NotFound);
    let file = rig.open(DISK, "slot", None);
    assert_eq!(rig.read(file, 0, 9), vec![6; 8 * PAGE]);
}

fn space_and_time_and_chance_are_there(rig: &mut Rig) {
    rig.attach(DISK);
    match rig.run(Op::Space { disk: DISK }).expect("space") {
        Output::Space { free, total } => assert!(free <= total && total > 0, "{free} of {total}"),
        _ => panic!("another output"),
    }
    let environment = rig.driver.environment();
    let before = environment.now();
    assert!(timed(rig, Some(Duration::from_millis(2))) >= Duration::from_millis(2));
    assert!(environment.now() > before);
    assert!(environment.wall() > 1_600_000_000_000_000_000, "this was written later");
    assert_ne!(environment.random(), environment.random());
    assert!(!rig.driver.name().is_empty());
}
