//! Bad input: each gives a clear typed error before anything is acknowledged, or opens degraded, and nothing is lost.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use meridian::{
    AccountId, Ack, DiskConfig, DiskState, Error, ErrorKind, Options, PartitionId, Placement, Region, Transaction,
};
use tempfile::TempDir;

use crate::common::{Memory, options};
use crate::disks::until;

/// Bytes of one superblock slot.
const SLOT: u64 = 32 << 10;

/// Spoils the options in one place.
type Spoil = fn(&mut Options);

fn refused(result: meridian::Result<Region>) -> Error {
    match result {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

/// The error is of this kind and its message names the thing.
fn says(error: &Error, kind: ErrorKind, name: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(name), "{error:?} does not name {name:?}");
}

/// A closed region on three disks that owes twenty transactions.
fn closed_region() -> (TempDir, Options) {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 3);
    let region = Region::create(options.clone(), ()).unwrap();
    let account = region.create_account("flights", Ack::All).unwrap();
    for number in 0..20u32 {
        region.commit(Transaction::new(account, PartitionId(1)).record(format!("flight {number}"))).unwrap();
    }
    region.close().unwrap();
    (dir, options)
}

fn disk(dir: &TempDir, at: usize) -> PathBuf {
    dir.path().join(format!("disk-{at}"))
}

/// Opens it, expects all twenty, and returns the state of each disk.
fn opens_with_everything(options: &Options) -> Vec<DiskState> {
    let memory = Memory::default();
    let region = Region::open(options.clone(), memory.clone()).unwrap();
    let states = region.health().unwrap().disks.iter().map(|disk| disk.state).collect();
    region.close().unwrap();
    let seen = memory.0.lock().unwrap();
    assert_eq!(seen.len(), 20);
    for (number, (_, _, sequence, records)) in seen.iter().enumerate() {
        assert_eq!((*sequence, &records[0][..]), (number as u64, format!("flight {number}").as_bytes()));
    }
    states
}

#[test]
fn each_option_out_of_range_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&str, Spoil); 25] = [
        ("disks", |o| drop(o.disks.pop())),
        ("disks", |o| o.disks = (0..17).map(|at| DiskConfig::new(format!("/{at}"), &format!("d{at}"), "z")).collect()),
        ("given twice", |o| o.disks[2].path = o.disks[0].path.clone()),
        ("segment_bytes", |o| o.segment_bytes = 4096),
        ("segment_bytes", |o| o.segment_bytes = (2 << 30) + 4096),
        ("multiples of 4096", |o| o.segment_bytes += 1),
        ("block_bytes", |o| o.block_bytes = 4096),
        ("block_bytes", |o| o.block_bytes = 8 << 20),
        ("multiples of 4096", |o| o.block_bytes += 512),
        ("transaction_bytes", |o| o.transaction_bytes = 100),
        ("transaction_bytes", |o| o.transaction_bytes = 1 << 20),
        ("commit_depth", |o| o.commit_depth = 0),
        ("commit_depth", |o| o.commit_depth = 65),
        ("queue_transactions", |o| o.queue_transactions = 0),
        ("queue_bytes", |o| o.queue_bytes = 1000),
        ("lag_bytes", |o| o.lag_bytes = 1000),
        ("stall_timeout", |o| o.stall_timeout = Duration::from_micros(1)),
        ("max_accounts", |o| o.max_accounts = 0),
        ("max_partitions", |o| o.max_partitions = 0),
        ("max_clients", |o| o.max_clients = 1 << 24),
        ("client_window", |o| o.client_window = 0),
        ("client_window", |o| o.client_window = 1 << 20),
        ("hot_bytes", |o| o.hot_bytes = usize::MAX),
        ("index_cache_bytes", |o| o.index_cache_bytes = usize::MAX),
        ("max_segments", |o| o.max_segments = Some(2)),
    ];
    for (name, spoil) in cases {
        let mut options = options(&dir, 3);
        spoil(&mut options);
        says(&refused(Region::create(options.clone(), ())), ErrorKind::InvalidInput, name);
        says(&refused(Region::open(options, ())), ErrorKind::InvalidInput, name);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn bad_labels_and_sets_that_share_a_domain_are_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(65);
    for label in ["", "a b", "ümlaut", "a/b", "new\nline", &long] {
        let fields: [fn(&mut DiskConfig) -> &mut String; 3] =
            [|d| &mut d.fault_domain, |d| &mut d.upgrade_domain, |d| &mut d.zone];
        for field in fields {
            let mut options = options(&dir, 3);
            *field(&mut options.disks[1]) = label.to_owned();
            says(&refused(Region::create(options, ())), ErrorKind::InvalidInput, "label");
        }
    }
    let shared: [fn(&mut Options); 4] = [
        |o| o.disks[1].fault_domain = "disk-0".into(),
        |o| o.disks[1].upgrade_domain = "disk-0".into(),
        |o| o.disks[1].zone = "zone-2".into(),
        |o| o.placement = Placement::ThreeZones,
    ];
    for share in shared {
        let mut options = options(&dir, 3);
        share(&mut options);
        says(&refused(Region::create(options, ())), ErrorKind::InvalidInput, "no three of them");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn bad_account_names_and_transactions_are_refused_and_named() {
    let (_dir, options) = closed_region();
    let region = Region::open(options, ()).unwrap();
    for name in ["", "tab\tname", &"n".repeat(129)] {
        says(&region.create_account(name, Ack::All).unwrap_err(), ErrorKind::InvalidInput, "account name");
    }
    says(&region.fence_account("nobody").unwrap_err(), ErrorKind::NotFound, "nobody");
    says(&region.set_account_ack("nobody", Ack::All).unwrap_err(), ErrorKind::NotFound, "nobody");
    says(&region.create_account("flights", Ack::All).unwrap_err(), ErrorKind::Exists, "flights");
    let account = region.accounts().unwrap()[0].id;
    let crowd = (0..65_536u32).fold(Transaction::new(account, PartitionId(1)), |t, _| t.record(""));
    says(&region.commit(crowd).unwrap_err(), ErrorKind::InvalidInput, "65,535 records");
    let large = Transaction::new(account, PartitionId(1)).record(vec![0; 128 << 10]);
    says(&region.commit(large).unwrap_err(), ErrorKind::InvalidInput, "131072 accepted");
    for at in [3, 99] {
        assert_eq!(region.fail_disk(at).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(region.return_disk(at).unwrap_err().kind(), ErrorKind::NotFound);
    }
    says(&region.return_disk(0).unwrap_err(), ErrorKind::InvalidInput, "disk-0");
    says(&region.drain("rack-9").unwrap_err(), ErrorKind::NotFound, "rack-9");
    let empty = region.commit(Transaction::new(account, PartitionId(1)).record("")).unwrap();
    assert_eq!(empty.first_sequence, 20, "nothing that was refused took a sequence");
}

#[test]
fn creating_on_a_directory_with_something_in_it_leaves_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(disk(&dir, 1)).unwrap();
    fs::write(disk(&dir, 1).join("holiday.jpg"), "mine").unwrap();
    says(&refused(Region::create(options(&dir, 3), ())), ErrorKind::InvalidInput, "holiday.jpg");
    assert_eq!(fs::read(disk(&dir, 1).join("holiday.jpg")).unwrap(), b"mine");
    says(&refused(Region::open(options(&dir, 3), ())), ErrorKind::RestoreDisk, "disk-1");
}

#[test]
fn a_file_in_place_of_a_directory_and_a_directory_that_does_not_exist_are_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(disk(&dir, 2), "a file").unwrap();
    says(&refused(Region::create(options(&dir, 3), ())), ErrorKind::InvalidInput, "disk-2");
    let (dir, options) = closed_region();
    for at in 0..3 {
        fs::rename(disk(&dir, at), dir.path().join("away")).unwrap();
        let states = opens_with_everything(&options);
        assert_eq!(states[at], DiskState::Missing);
        assert!(!disk(&dir, at).exists(), "opening makes no directory");
        fs::rename(dir.path().join("away"), disk(&dir, at)).unwrap();
    }
    fs::rename(disk(&dir, 0), dir.path().join("away-0")).unwrap();
    fs::rename(disk(&dir, 1), dir.path().join("away-1")).unwrap();
    let error = refused(Region::open(options.clone(), ()));
    says(&error, ErrorKind::RestoreDisk, "disk-0");
    says(&error, ErrorKind::RestoreDisk, "disk-1");
    fs::rename(disk(&dir, 2), dir.path().join("away-2")).unwrap();
    assert!(matches!(refused(Region::open(options.clone(), ())).kind(), ErrorKind::NotFound | ErrorKind::RestoreDisk));
    for at in 0..3 {
        fs::rename(dir.path().join(format!("away-{at}")), disk(&dir, at)).unwrap();
    }
    opens_with_everything(&options);
}

#[test]
fn a_directory_without_permission_is_named() {
    if rustix::process::geteuid().is_root() {
        println!("skipped: root may do everything; run as another user");
        return;
    }
    let (dir, options) = closed_region();
    let permissions = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(disk(&dir, 1), permissions(0o000)).unwrap();
    assert_eq!(opens_with_everything(&options)[1], DiskState::Missing);
    fs::set_permissions(disk(&dir, 1), permissions(0o700)).unwrap();
    opens_with_everything(&options);
}

#[test]
fn a_directory_that_is_open_elsewhere_is_locked() {
    let (dir, options) = closed_region();
    let region = Region::open(options.clone(), ()).unwrap();
    says(&refused(Region::open(options.clone(), ())), ErrorKind::Locked, "disk-0");
    says(&refused(Region::create(options.clone(), ())), ErrorKind::Locked, "disk-0");
    drop(region);
    let lock = disk(&dir, 1).join("LOCK");
    let mut other = Command::new("flock").args(["--no-fork", "-x"]).arg(&lock).args(["sleep", "60"]).spawn().unwrap();
    until("lock of another process", || {
        !Command::new("flock").arg("-n").arg(&lock).arg("true").status().unwrap().success()
    });
    // Nobody has a region open without a majority of its disks.
    let impatient = Options { stall_timeout: Duration::from_millis(300), ..options.clone() };
    assert_eq!(opens_with_everything(&impatient)[1], DiskState::Stalled);
    let majority = disk(&dir, 0).join("LOCK");
    let mut second =
        Command::new("flock").args(["--no-fork", "-x"]).arg(&majority).args(["sleep", "60"]).spawn().unwrap();
    until("another lock", || !Command::new("flock").arg("-n").arg(&majority).arg("true").status().unwrap().success());
    let error = refused(Region::open(options.clone(), ()));
    for other in [&mut other, &mut second] {
        other.kill().unwrap();
        other.wait().unwrap();
    }
    says(&error, ErrorKind::Locked, "disk-0");
    opens_with_everything(&options);
}

/// Spoils one superblock slot of a disk.
fn spoil(dir: &TempDir, at: usize, slot: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(disk(dir, at).join("superblock")).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, slot * SLOT + 70).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], slot * SLOT + 70).unwrap();
}

#[test]
fn a_superblock_slot_that_does_not_verify_is_no_loss_on_any_disk() {
    for slot in 0..2 {
        let (dir, options) = closed_region();
        (0..3).for_each(|at| spoil(&dir, at, slot));
        opens_with_everything(&options);
    }
}

#[test]
fn superblocks_gone_on_one_disk_open_degraded_and_on_two_refuse() {
    let (dir, options) = closed_region();
    (0..2).for_each(|slot| spoil(&dir, 1, slot));
    assert_eq!(opens_with_everything(&options)[1], DiskState::Foreign);
    (0..2).for_each(|slot| spoil(&dir, 2, slot));
    let error = refused(Region::open(options.clone(), ()));
    says(&error, ErrorKind::RestoreDisk, "disk-1");
    says(&error, ErrorKind::RestoreDisk, "disk-2");
    (0..2).for_each(|slot| spoil(&dir, 0, slot));
    assert_eq!(refused(Region::open(options.clone(), ())).kind(), ErrorKind::RestoreDisk);
    assert_eq!(refused(Region::create(options.clone(), ())).kind(), ErrorKind::Exists, "it is not overwritten");
    // The same bits again: as it was.
    (0..3).for_each(|at| (0..2).for_each(|slot| spoil(&dir, at, slot)));
    opens_with_everything(&options);
}

#[test]
fn labels_that_contradict_what_is_stored_are_refused() {
    let (_dir, options) = closed_region();
    let changes: [fn(&mut DiskConfig); 2] =
        [|d| d.fault_domain = "rack-7".into(), |d| d.upgrade_domain = "ring-7".into()];
    for change in changes {
        let mut other = options.clone();
        change(&mut other.disks[1]);
        says(&refused(Region::open(other, ())), ErrorKind::InvalidInput, "disk-1");
    }
    let mut other = options.clone();
    other.disks.iter_mut().for_each(|disk| disk.zone = "zone-9".into());
    says(&refused(Region::open(other, ())), ErrorKind::InvalidInput, "zone-1");
    let mut other = options.clone();
    other.segment_bytes = 2 << 20;
    says(&refused(Region::open(other, ())), ErrorKind::InvalidInput, "segment_bytes");
    opens_with_everything(&options);
}

#[test]
fn two_directories_swapped_are_refused_and_lose_nothing() {
    let (dir, options) = closed_region();
    let swap = || {
        fs::rename(disk(&dir, 0), dir.path().join("aside")).unwrap();
        fs::rename(disk(&dir, 1), disk(&dir, 0)).unwrap();
        fs::rename(dir.path().join("aside"), disk(&dir, 1)).unwrap();
    };
    swap();
    says(&refused(Region::open(options.clone(), ())), ErrorKind::InvalidInput, "labelled fault domain");
    swap();
    opens_with_everything(&options);
}

/// Copies a disk's image, of a region that is open too: one that prepares its next segment meanwhile renames files, and is copied again.
pub(crate) fn copy_directory(from: &Path, to: &Path) {
    let copy = || -> io::Result<()> {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    };
    while let Err(error) = copy() {
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
        fs::remove_dir_all(to).unwrap();
    }
}

#[test]
fn a_disk_of_another_region_or_a_copy_of_one_does_not_count() {
    let (dir, options) = closed_region();
    let (other, _) = closed_region();
    fs::rename(disk(&dir, 1), dir.path().join("aside")).unwrap();
    for strange in [disk(&other, 1), disk(&dir, 0)] {
        copy_directory(&strange, &disk(&dir, 1));
        let open = Region::open(options.clone(), ());
        match open {
            // A copy of disk 0 carries its labels, which the options contradict.
            Err(error) => says(&error, ErrorKind::InvalidInput, "disk-1"),
            Ok(region) => {
                let health = region.health().unwrap();
                assert_eq!(health.disks[1].state, DiskState::Foreign);
                assert!(health.degraded && health.disks[1].reason.contains("another region"), "{health:?}");
                assert_eq!(region.return_disk(1).unwrap_err().kind(), ErrorKind::InvalidInput);
            }
        }
        fs::remove_dir_all(disk(&dir, 1)).unwrap();
    }
    fs::rename(dir.path().join("aside"), disk(&dir, 1)).unwrap();
    opens_with_everything(&options);
}

#[test]
fn a_blank_disk_in_place_of_one_opens_degraded_and_is_filled_when_it_is_told_to() {
    let (dir, options) = closed_region();
    fs::remove_dir_all(disk(&dir, 2)).unwrap();
    fs::create_dir(disk(&dir, 2)).unwrap();
    let region = Region::open(options.clone(), ()).unwrap();
    let health = region.health().unwrap();
    assert_eq!(health.disks[2].state, DiskState::Blank);
    assert!(health.degraded, "{health:?}");
    let account = region.accounts().unwrap()[0].id;
    let all = Transaction::new(account, PartitionId(9)).record("x");
    assert_eq!(region.commit(all).unwrap_err().kind(), ErrorKind::Degraded);
    assert_eq!(region.return_disk(2).unwrap_err().kind(), ErrorKind::RestoreDisk);
    fs::write(disk(&dir, 2).join("holiday.jpg"), "mine").unwrap();
    says(&region.replace_disk(2).unwrap_err(), ErrorKind::InvalidInput, "holiday.jpg");
    fs::remove_file(disk(&dir, 2).join("holiday.jpg")).unwrap();
    region.replace_disk(2).unwrap();
    until("whole", || region.health().unwrap().is_whole());
    region.close().unwrap();
    fs::remove_dir_all(disk(&dir, 0)).unwrap();
    opens_with_everything(&options);
}

#[test]
fn a_transaction_that_no_partition_is_left_for_leaves_the_log_free_for_a_larger_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&dir, 3);
    // The system's and one more.
    options.max_partitions = 2;
    let large = options.transaction_bytes - 1024;
    assert!(large > options.block_bytes, "larger than the block that was opened for the one before");
    let region = Region::create(options, ()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let transaction = |partition, len| Transaction::new(account, PartitionId(partition)).record(vec![7; len]);
    region.commit(transaction(1, 10)).unwrap();
    let error = region.commit(transaction(2, 10)).expect_err("there is no partition left");
    says(&error, ErrorKind::LimitReached, "max_partitions");
    let mut ticket = region.submit(transaction(1, large)).unwrap();
    ticket.wait_timeout(Duration::from_secs(30)).expect("the log goes on").unwrap();
    region.close().unwrap();
}

#[test]
fn h1_a_mark_of_more_accounts_than_one_holds_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::create(options(&dir, 3), ()).unwrap();
    let accounts: Vec<AccountId> = (0..=1 << 16).map(AccountId).collect();
    says(&region.mark(&accounts).unwrap_err(), ErrorKind::InvalidInput, "65536 accepted");
    region.close().unwrap();
}
