//! What the simulated disks promise and what each fault does to them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::io::{Buffer, Completion, DiskIndex, Driver, FileId, Op, OpId, Output};

const DISK: DiskIndex = DiskIndex(0);

fn path() -> PathBuf {
    PathBuf::from("disk-0")
}

fn world(seed: u64) -> World {
    World::new(WorldOptions::new(seed))
}

/// Submits one operation and waits for it.
fn run(driver: &mut SimDriver, op: Op) -> io::Result<Output> {
    driver.submit(OpId(u64::MAX), op);
    let mut done = Vec::new();
    for _ in 0..1000 {
        driver.poll(Some(Duration::from_millis(100)), &mut done);
        if let Some(at) = done.iter().position(|completion| completion.id == OpId(u64::MAX)) {
            return done.swap_remove(at).result;
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn attach(driver: &mut SimDriver) -> io::Result<Output> {
    run(driver, Op::Attach { disk: DISK, path: path(), create: true })
}

fn open(driver: &mut SimDriver, create: Option<u64>) -> FileId {
    match run(driver, Op::Open { disk: DISK, name: "slot".to_owned(), create }) {
        Ok(Output::File(file)) => file,
        Ok(_) => panic!("another output"),
        Err(error) => panic!("{error}"),
    }
}

fn fill_at(file: FileId, offset: u64, byte: u8, pages: usize) -> Op {
    let mut buffer = Buffer::zeroed(pages * 4096).expect("map");
    buffer.fill(byte);
    Op::Write { disk: DISK, file, offset, data: buffer.share() }
}

fn read_at(file: FileId, offset: u64, len: usize) -> Op {
    Op::Read { disk: DISK, file, offset, buffer: Buffer::zeroed(len).expect("map"), len }
}

fn contents(driver: &mut SimDriver, file: FileId, pages: usize) -> io::Result<Vec<u8>> {
    match run(driver, read_at(file, 0, pages * 4096))? {
        Output::Read(buffer) => Ok(buffer.to_vec()),
        _ => panic!("another output"),
    }
}

/// A world with one attached disk and an open file of 16 pages.
fn with_file(seed: u64) -> (World, SimDriver, FileId) {
    let world = world(seed);
    let mut driver = world.driver();
    attach(&mut driver).expect("attach");
    let file = open(&mut driver, Some(16 * 4096));
    (world, driver, file)
}

fn arm(world: &World, fault: ArmedFault) {
    world.arm(&path(), Arm { fault, prefix: "sl".to_owned(), skip: 0 });
}

fn sectors(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(512).map(|sector| sector[0]).collect()
}

#[test]
fn a_completed_write_survives_a_crash() {
    for seed in 0..50 {
        let (world, mut driver, file) = with_file(seed);
        run(&mut driver, fill_at(file, 4096, 5, 2)).expect("write");
        world.crash();
        assert!(!driver.alive());
        let mut driver = world.driver();
        attach(&mut driver).expect("the lock is free again");
        let file = open(&mut driver, None);
        let bytes = contents(&mut driver, file, 4).expect("read");
        assert_eq!((bytes[0], bytes[4096], bytes[3 * 4096 - 1], bytes[3 * 4096]), (0, 5, 5, 0));
    }
}

#[test]
fn a_write_in_flight_at_a_crash_lands_whole_in_part_or_not() {
    let (mut whole, mut part, mut none) = (0, 0, 0);
    for seed in 0..200 {
        let (world, mut driver, file) = with_file(seed);
        driver.submit(OpId(1), fill_at(file, 0, 9, 2));
        drop(driver);
        let landed = sectors(&world.bytes(&path(), "slot").expect("it exists")[..8192]);
        match landed.iter().filter(|byte| **byte == 9).count() {
            0 => none += 1,
            16 => whole += 1,
            _ => part += 1,
        }
        assert!(world.counts()[&FaultKind::CrashInFlight] == 1);
    }
    assert!(whole > 20 && part > 20 && none > 20, "{whole} {part} {none}");
}

#[test]
fn later_writes_may_survive_a_crash_that_earlier_ones_do_not() {
    let reordered = (0..200).filter(|seed| {
        let (world, mut driver, file) = with_file(*seed);
        driver.submit(OpId(1), fill_at(file, 0, 1, 1));
        driver.submit(OpId(2), fill_at(file, 4096, 2, 1));
        world.crash();
        let bytes = sectors(&world.bytes(&path(), "slot").expect("it exists")[..8192]);
        let seen = bytes[8..].iter().all(|byte| *byte == 2) && bytes[..8].contains(&0);
        assert_eq!(seen, world.counts().contains_key(&FaultKind::Reordered));
        seen
    });
    assert!(reordered.count() > 10);
}

#[test]
fn a_creation_in_flight_at_a_crash_may_leave_a_short_file() {
    let lengths: Vec<Option<u64>> = (0..200)
        .map(|seed| {
            let world = world(seed);
            let mut driver = world.driver();
            attach(&mut driver).expect("attach");
            driver.submit(OpId(1), Op::Open { disk: DISK, name: "slot".to_owned(), create: Some(65536) });
            world.crash();
            world.files(&path()).iter().find(|(name, _)| name == "slot").map(|(_, len)| *len)
        })
        .collect();
    for expected in [None, Some(65536)] {
        assert!(lengths.contains(&expected));
    }
    assert!(lengths.iter().flatten().any(|len| *len < 65536));
}

#[test]
fn a_small_file_is_replaced_as_a_whole_or_not_at_all() {
    let replace = |byte| Op::WriteFile { disk: DISK, name: "index".to_owned(), bytes: Arc::new(vec![byte; 3000]) };
    let (mut old, mut new, mut leftovers) = (0, 0, 0);
    for seed in 0..100 {
        let (world, mut driver, _) = with_file(seed);
        run(&mut driver, replace(1)).expect("replace");
        driver.submit(OpId(1), replace(2));
        world.crash();
        let bytes = world.bytes(&path(), "index").expect("it exists");
        assert!(bytes.iter().all(|byte| *byte == bytes[0]) && bytes.len() == 3000);
        if bytes[0] == 1 {
            old += 1
        } else {
            new += 1
        }
        leftovers += usize::from(world.bytes(&path(), "index.tmp").is_some());
    }
    assert!(old > 10 && new > 10 && leftovers > 10, "{old} {new} {leftovers}");
}

#[test]
fn the_lock_is_exclusive_until_its_process_ends_or_lets_go() {
    let world = world(1);
    let (mut first, mut second) = (world.driver(), world.driver());
    attach(&mut first).expect("attach");
    assert_eq!(attach(&mut second).err().map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
    run(&mut first, Op::Detach { disk: DISK }).expect("detach");
    attach(&mut second).expect("attach");
    drop(second);
    attach(&mut first).expect("attach");
}

#[test]
fn a_missing_directory_is_not_attached_unless_it_may_be_made() {
    let mut driver = world(1).driver();
    let outcome = run(&mut driver, Op::Attach { disk: DISK, path: path(), create: false });
    assert_eq!(outcome.err().map(|error| error.kind()), Some(io::ErrorKind::NotFound));
}

#[test]
fn conditions_refuse_what_they_should() {
    use rustix::io::Errno;
    let cases = [
        (Condition::Lost, Err(Errno::IO), Err(Errno::IO), Err(Errno::IO)),
        (Condition::Full, Ok(()), Ok(()), Err(Errno::NOSPC)),
        (Condition::FullForAll, Ok(()), Err(Errno::NOSPC), Err(Errno::NOSPC)),
        (Condition::ReadOnly, Ok(()), Err(Errno::ROFS), Err(Errno::ROFS)),
        (Condition::Slow(50), Ok(()), Ok(()), Ok(())),
    ];
    for (condition, reads, writes, creations) in cases {
        let (world, mut driver, file) = with_file(3);
        world.set_condition(&path(), condition);
        let code = |outcome: io::Result<Output>| outcome.map(drop).map_err(|error| error.raw_os_error());
        let expect = |outcome: Result<(), Errno>| outcome.map_err(|errno| Some(errno.raw_os_error()));
        assert_eq!(code(run(&mut driver, read_at(file, 0, 4096))), expect(reads), "{condition:?}");
        assert_eq!(code(run(&mut driver, fill_at(file, 0, 1, 1))), expect(writes), "{condition:?}");
        let create = Op::Open { disk: DISK, name: "other".to_owned(), create: Some(4096) };
        assert_eq!(code(run(&mut driver, create)), expect(creations), "{condition:?}");
        assert!(world.counts().contains_key(&condition.kind().expect("a fault")));
    }
}

#[test]
fn a_stalled_disk_completes_after_its_release() {
    let (world, mut driver, file) = with_file(4);
    world.set_condition(&path(), Condition::Stalled);
    driver.submit(OpId(1), fill_at(file, 0, 1, 1));
    let mut done = Vec::new();
    driver.poll(Some(Duration::from_secs(60)), &mut done);
    assert!(done.is_empty());
    world.set_condition(&path(), Condition::Healthy);
    driver.poll(Some(Duration::from_secs(60)), &mut done);
    assert!(matches!(done.as_slice(), [Completion { id: OpId(1), result: Ok(Output::Done) }]));
}

#[test]
fn armed_faults_meet_the_next_write_and_say_what_they_should() {
    for seed in 0..20 {
        let (world, mut driver, file) = with_file(seed);
        run(&mut driver, fill_at(file, 0, 1, 16)).expect("write");
        arm(&world, ArmedFault::Lost);
        run(&mut driver, fill_at(file, 0, 2, 1)).expect("a lost write reports success");
        assert!(contents(&mut driver, file, 16).expect("read").iter().all(|byte| *byte == 1));
        arm(&world, ArmedFault::Torn);
        run(&mut driver, fill_at(file, 0, 3, 1)).expect("a torn write reports success");
        let seen = sectors(&contents(&mut driver, file, 1).expect("read"));
        assert!(seen.contains(&1) && seen.contains(&3), "{seen:?}");
        arm(&world, ArmedFault::Misdirected);
        run(&mut driver, fill_at(file, 0, 4, 1)).expect("a misdirected write reports success");
        let pages: Vec<u8> = contents(&mut driver, file, 16).expect("read").chunks(4096).map(|page| page[0]).collect();
        assert!(pages[0] != 4 && pages[1..].iter().filter(|byte| **byte == 4).count() == 1, "{pages:?}");
        assert_eq!(world.disarm(), 0);
        let counts = world.counts();
        let kinds = [FaultKind::LostWrite, FaultKind::Torn, FaultKind::Misdirected];
        assert!(kinds.iter().all(|kind| counts[kind] == 1), "{counts:?}");
    }
}

#[test]
fn after_a_failed_flush_the_retry_succeeds_and_does_not_land() {
    let (world, mut driver, file) = with_file(5);
    arm(&world, ArmedFault::FailedFlush);
    assert!(run(&mut driver, fill_at(file, 0, 1, 2)).is_err());
    run(&mut driver, fill_at(file, 0, 1, 2)).expect("the retry is believed");
    let seen = contents(&mut driver, file, 2).expect("read");
    assert!(seen.contains(&0), "the medium never got all of it");
    run(&mut driver, fill_at(file, 0, 2, 2)).expect("write");
    assert!(contents(&mut driver, file, 2).expect("read").iter().all(|byte| *byte == 2));
}

#[test]
fn rot_is_read_as_data_and_a_latent_error_is_not_read_at_all() {
    let (world, mut driver, file) = with_file(6);
    assert!(world.flip(&path(), "slot", 100, 3));
    assert_eq!(contents(&mut driver, file, 1).expect("read")[100], 8);
    assert!(world.spoil(&path(), "slot", 4096..4608));
    assert!(contents(&mut driver, file, 2).is_err());
    assert!(contents(&mut driver, file, 1).is_ok());
    let reader = driver.reader();
    assert!(reader.read_at(DISK, file, 4000, &mut [0; 200]).is_err());
    run(&mut driver, fill_at(file, 4096, 1, 1)).expect("write");
    assert!(contents(&mut driver, file, 2).is_ok());
}

#[test]
fn disks_are_blanked_swapped_and_brought_back_old() {
    let (world, mut driver, file) = with_file(7);
    let old = world.snapshot(&path());
    run(&mut driver, fill_at(file, 0, 1, 1)).expect("write");
    let first = |path: &Path| world.bytes(path, "slot").map(|bytes| bytes[0]);
    world.swap(&path(), Path::new("disk-1"));
    assert_eq!((first(&path()), first(Path::new("disk-1"))), (None, Some(1)));
    run(&mut driver, fill_at(file, 0, 2, 1)).expect("the process keeps the disk that it opened");
    assert_eq!(first(Path::new("disk-1")), Some(2));
    world.restore(&path(), &old);
    assert_eq!(first(&path()), Some(0));
    world.blank(&path());
    assert_eq!(world.files(&path()), []);
}

#[test]
fn the_power_fails_at_the_chosen_operation() {
    let (world, mut driver, file) = with_file(8);
    world.crash_after(Some(3));
    for id in 0..5 {
        driver.submit(OpId(id), fill_at(file, id * 4096, 1, 1));
        assert_eq!(driver.alive(), id < 2);
    }
    let mut done = Vec::new();
    driver.poll(Some(Duration::from_secs(1)), &mut done);
    assert!(done.is_empty() && !world.running());
    let bytes = world.bytes(&path(), "slot").expect("it exists");
    assert!(bytes[3 * 4096..].iter().all(|byte| *byte == 0), "what came after never reached the disk");
}

#[test]
fn a_sleeping_poll_ends_at_a_completion_the_alarm_the_bell_or_its_time() {
    let (world, mut driver, file) = with_file(9);
    let mut done = Vec::new();
    let start = world.now();
    driver.poll(Some(Duration::from_millis(3)), &mut done);
    assert!((3_000_000..3_100_000).contains(&(world.now() - start)));
    let start = world.now();
    world.set_alarm(Some(start + 1_000_000));
    driver.poll(Some(Duration::from_millis(3)), &mut done);
    assert_eq!(world.now(), start + 1_000_000);
    world.set_alarm(None);
    driver.doorbell().ring();
    let start = world.now();
    driver.poll(Some(Duration::from_millis(3)), &mut done);
    assert!(world.now() - start < 10_000);
    driver.submit(OpId(1), fill_at(file, 0, 1, 1));
    driver.poll(Some(Duration::from_secs(3)), &mut done);
    assert!(done.len() == 1 && world.now() - start < 100_000_000);
}

#[test]
fn wall_time_jumps_and_the_other_clock_does_not() {
    let (world, driver, _) = with_file(10);
    let environment = driver.environment();
    let (wall, now) = (environment.wall(), environment.now());
    world.jump_wall(-5_000_000_000);
    assert_eq!((environment.wall(), environment.now()), (wall - 5_000_000_000, now));
}

/// Some hundred operations on three disks with faults and crashes; ends with the digest and the media.
fn schedule(seed: u64) -> (u64, Vec<Option<Vec<u8>>>) {
    let world = world(seed);
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..3 {
        let mut driver = world.driver();
        attach(&mut driver).expect("attach");
        let known = world.files(&path()).iter().any(|(name, len)| name == "slot" && *len == 65536);
        let file = open(&mut driver, (!known).then_some(65536));
        if rng.bool() {
            arm(&world, *rng.choice(&[ArmedFault::Torn, ArmedFault::Misdirected]).expect("some"));
        }
        let mut done = Vec::new();
        for id in 0..rng.u64(10..40) {
            driver.submit(OpId(id), fill_at(file, rng.u64(..16) * 4096, rng.u8(..), 1));
            driver.poll(Some(Duration::from_micros(rng.u64(..50))), &mut done);
        }
    }
    (world.digest(), vec![world.bytes(&path(), "slot")])
}

#[test]
fn a_seed_replays_bit_for_bit_and_another_seed_does_not() {
    for seed in 0..50 {
        assert_eq!(schedule(seed), schedule(seed));
        assert_ne!(schedule(seed).0, schedule(seed + 1).0);
    }
}

#[test]
fn unaligned_or_unknown_operations_are_refused() {
    let (_world, mut driver, file) = with_file(11);
    let kind = |outcome: io::Result<Output>| outcome.err().map(|error| error.kind());
    assert_eq!(kind(run(&mut driver, fill_at(file, 512, 1, 1))), Some(io::ErrorKind::InvalidInput));
    assert_eq!(kind(run(&mut driver, fill_at(FileId(99), 0, 1, 1))), Some(io::ErrorKind::NotFound));
    assert_eq!(kind(run(&mut driver, Op::List { disk: DiskIndex(7) })), Some(io::ErrorKind::NotFound));
}

#[test]
fn the_simulated_disks_conform() {
    for seed in 0..20 {
        crate::io::conformance::run(|| (Box::new(world(seed).driver()), PathBuf::from("root")));
    }
}

fn code(result: io::Result<Output>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn refuse(world: &World, what: Refused, disk: Option<PathBuf>) {
    world.refuse(Refusal { what, disk, files: Vec::new() });
}

#[test]
fn each_refusal_names_its_errno_and_ends_when_it_is_lifted() {
    use rustix::io::Errno;
    type Make = fn(FileId) -> Op;
    let cases: [(Refused, Errno, Make); 7] = [
        (Refused::Opens, Errno::ACCESS, |_| Op::Open { disk: DISK, name: "slot".to_owned(), create: None }),
        (Refused::Lists, Errno::ACCESS, |_| Op::List { disk: DISK }),
        (Refused::Reads, Errno::PERM, |file| read_at(file, 0, 4096)),
        (Refused::Memory, Errno::NOMEM, |file| read_at(file, 0, 4096)),
        (Refused::Threads, Errno::AGAIN, |_| Op::Space { disk: DISK }),
        (Refused::Threads, Errno::AGAIN, |_| Op::Compute(Box::new(|| Box::new(1)))),
        (Refused::Descriptors(3), Errno::MFILE, |_| Op::List { disk: DISK }),
    ];
    for (what, errno, make) in cases {
        let (world, mut driver, file) = with_file(1);
        refuse(&world, what, None);
        assert_eq!(code(run(&mut driver, make(file))), Some(errno.raw_os_error()), "{what:?}");
        run(&mut driver, fill_at(file, 0, 1, 1)).expect("what is open can be written");
        assert_eq!(world.counts()[&what.kind()], 1);
        world.allow(None);
        run(&mut driver, make(file)).expect("lifted");
    }
}

#[test]
fn a_refusal_concerns_its_disk_and_its_files_only() {
    let (world, mut driver, file) = with_file(2);
    refuse(&world, Refused::Reads, Some(PathBuf::from("disk-1")));
    run(&mut driver, read_at(file, 0, 4096)).expect("another disk's");
    let files = vec!["slot".to_owned()];
    world.refuse(Refusal { what: Refused::Opens, disk: Some(path()), files });
    assert!(run(&mut driver, Op::Open { disk: DISK, name: "slot".to_owned(), create: None }).is_err());
    open_named(&mut driver, "other", Some(4096)).expect("another name");
    assert!(run(&mut driver, Op::Open { disk: DISK, name: "other".to_owned(), create: None }).is_ok());
    world.allow(Some(&path()));
    assert!(run(&mut driver, Op::Open { disk: DISK, name: "slot".to_owned(), create: None }).is_ok());
}

fn open_named(driver: &mut SimDriver, name: &str, create: Option<u64>) -> io::Result<Output> {
    run(driver, Op::Open { disk: DISK, name: name.to_owned(), create })
}

#[test]
fn a_limit_on_descriptors_counts_what_the_process_has_open() {
    let (world, mut driver, _file) = with_file(3);
    // Directory, lock and one file are open.
    refuse(&world, Refused::Descriptors(5), None);
    open_named(&mut driver, "second", Some(4096)).expect("the fourth");
    open_named(&mut driver, "third", Some(4096)).expect("the fifth");
    assert_eq!(code(open_named(&mut driver, "fourth", Some(4096))), Some(rustix::io::Errno::MFILE.raw_os_error()));
    run(&mut driver, Op::Remove { disk: DISK, name: "third".to_owned() }).expect("removed and closed");
    open_named(&mut driver, "fourth", Some(4096)).expect("there is one again");
}

#[test]
fn a_file_that_is_cut_short_or_loses_its_name_is_counted_when_it_is_met() {
    let (world, mut driver, file) = with_file(4);
    run(&mut driver, fill_at(file, 0, 7, 16)).expect("write");
    assert!(world.cut(&path(), "slot", 5000) && !world.cut(&path(), "slot", 5000));
    assert_eq!(contents(&mut driver, file, 16).expect("what is left").len(), 5000);
    run(&mut driver, read_at(file, 0, 4096)).expect("before the cut");
    assert_eq!(world.counts()[&FaultKind::ShortFile], 1);
    assert!(world.unlink(&path(), "slot") && !world.unlink(&path(), "slot"));
    run(&mut driver, fill_at(file, 0, 8, 1)).expect("who has it open keeps it");
    run(&mut driver, Op::List { disk: DISK }).expect("list");
    assert_eq!(open_named(&mut driver, "slot", None).err().map(|error| error.kind()), Some(io::ErrorKind::NotFound));
    assert_eq!(world.counts()[&FaultKind::GoneFile], 3);
    open_named(&mut driver, "slot", Some(4096)).expect("the name is free");
    run(&mut driver, Op::List { disk: DISK }).expect("list");
    assert_eq!(world.counts()[&FaultKind::GoneFile], 3);
}

#[test]
fn changes_that_processes_made_to_disks_are_counted() {
    let (world, mut driver, file) = with_file(5);
    let (before, failed, _) = world.changes();
    run(&mut driver, read_at(file, 0, 4096)).expect("read");
    assert_eq!(world.changes().0, before);
    run(&mut driver, fill_at(file, 0, 1, 1)).expect("write");
    assert_eq!((world.changes().0, world.changes().2.as_str()), (before + 1, "Write of slot"));
    refuse(&world, Refused::Creates, None);
    assert!(open_named(&mut driver, "another", Some(4096)).is_err());
    assert_eq!((world.changes().0, world.changes().1), (before + 1, failed + 1));
}
