//! Real file systems as the disks: filled, turned read-only, shut down under load, unreadable in one place, back stale.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use meridian::{Ack, DiskState, DriverChoice, Error, ErrorKind, Region};

use crate::images::{Image, Kind, run, three};
use crate::ledger::{Keeper, Ledger};
use crate::load::Writer;
use crate::order::{has, options};

const WRITERS: u64 = 3;
/// What one writer sends in all, at most: the images are small.
const NUMBERS: u64 = 6_000;

/// Three mounted disks, the region on them, and what it owes.
struct Mounted {
    // Dropped first: its files keep the images busy.
    region: Option<Region>,
    images: Vec<Image>,
    driver: DriverChoice,
    ledger: Mutex<Ledger>,
    /// Refusals for lack of space.
    no_space: AtomicUsize,
    _dir: tempfile::TempDir,
}

impl Mounted {
    fn new(kind: Kind, driver: DriverChoice) -> Option<Mounted> {
        if !has(driver) {
            return None;
        }
        let (images, dir) = three(kind)?;
        let disks: Vec<PathBuf> = images.iter().map(Image::disk).collect();
        let region = Region::create(options(&disks, driver), ()).unwrap();
        assert!(region.health().unwrap().disks.iter().all(|disk| disk.direct), "O_DIRECT works on {kind:?}");
        region.create_account("load", Ack::Quorum).unwrap();
        let ledger = Mutex::new(Ledger::new(7));
        Some(Mounted { region: Some(region), images, driver, ledger, no_space: AtomicUsize::new(0), _dir: dir })
    }

    fn region(&self) -> &Region {
        self.region.as_ref().unwrap()
    }

    fn acked(&self) -> usize {
        self.ledger.lock().unwrap().acked.len()
    }

    /// Commits from several threads while `during` runs, and returns the errors that ended them.
    fn load(&self, during: impl FnOnce()) -> Vec<Error> {
        let stop = AtomicBool::new(false);
        let (account, seed) = (self.region().accounts().unwrap()[0].id, self.ledger.lock().unwrap().seed);
        let next = self.ledger.lock().unwrap().next(WRITERS);
        let acked = |acked| self.ledger.lock().unwrap().ack(acked);
        let refused = |error: &Error| {
            self.ledger.lock().unwrap().refused = true;
            self.no_space.fetch_add(usize::from(error.kind() == ErrorKind::NoSpace), Ordering::Relaxed);
        };
        let more = |number| number < NUMBERS && !stop.load(Ordering::Relaxed);
        let region = self.region();
        let writer = |writer| Writer { region, account, seed, writer, acked: &acked, refused: &refused, more: &more };
        std::thread::scope(|scope| {
            let numbers = (0..).zip(&next);
            let threads: Vec<_> = numbers.map(|(at, &next)| (writer(at), next)).collect();
            let threads: Vec<_> =
                threads.into_iter().map(|(writer, next)| scope.spawn(move || writer.run(next))).collect();
            let stops = StopOnDrop(&stop);
            during();
            drop(stops);
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Waits for `more` acknowledgements from now.
    fn progress(&self, more: usize) {
        let goal = self.acked() + more;
        self.until("acknowledgements", || self.acked() >= goal);
    }

    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            let health = self.region().health();
            assert!(start.elapsed() < Duration::from_secs(60), "no {what} in 60 s: {health:#?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn until_whole(&self) {
        self.until("whole sets", || {
            let health = self.region().health().unwrap();
            health.is_whole() && health.disks.iter().all(|disk| disk.state == DiskState::Healthy)
        });
    }

    fn close(&mut self) {
        self.region.take().unwrap().close().unwrap();
    }

    /// Opens the region and checks everything that it owes.
    fn open_and_check(&mut self) {
        let disks: Vec<PathBuf> = self.images.iter().map(Image::disk).collect();
        let keeper = Keeper::default();
        let region = Region::open(options(&disks, self.driver), keeper.clone()).unwrap();
        self.ledger.lock().unwrap().check(&region, &keeper);
        self.region = Some(region);
    }

    /// Opens it with each disk missing in turn: two disks have everything.
    fn check_every_pair(&mut self) {
        self.close();
        for away in 0..3 {
            self.images[away].unmount().unwrap();
            self.open_and_check();
            self.close();
            self.images[away].mount().unwrap();
            self.open_and_check();
            self.until_whole();
            self.close();
        }
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A disk goes while commits are under way; they go on, it is mounted again, returned and made whole.
fn one_goes(kind: Kind, driver: DriverChoice, go: impl Fn(&Image)) {
    let Some(mut mounted) = Mounted::new(kind, driver) else { return };
    let errors = mounted.load(|| {
        mounted.progress(200);
        go(&mounted.images[1]);
        mounted.progress(300);
        mounted.until("degraded set", || mounted.region().health().unwrap().degraded);
        mounted.progress(300);
    });
    assert!(errors.is_empty(), "{errors:?}");
    let state = mounted.region().health().unwrap().disks[1].clone();
    assert!(state.state == DiskState::Failed && !state.in_set && !state.reason.is_empty(), "{state:?}");
    // As it is, it cannot be taken back; but its files are let go, and it can be unmounted.
    let error = mounted.region().return_disk(1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RestoreDisk, "{error}");
    mounted.images[1].unmount().unwrap();
    mounted.images[1].mount().unwrap();
    let errors = mounted.load(|| {
        mounted.region().return_disk(1).unwrap();
        mounted.until_whole();
        mounted.progress(200);
    });
    assert!(errors.is_empty(), "{errors:?}");
    mounted.check_every_pair();
}

#[test]
fn an_ext4_disk_that_is_shut_down_under_load_is_lost_and_comes_back_whole() {
    one_goes(Kind::Ext4, DriverChoice::Uring, Image::shut_down);
}

#[test]
fn an_xfs_disk_that_is_shut_down_under_load_is_lost_and_comes_back_whole() {
    one_goes(Kind::Xfs, DriverChoice::Threads, Image::shut_down);
}

/// xfs has no way to turn read-only while files are open for writing.
#[test]
fn an_ext4_disk_that_turns_read_only_under_load_is_lost_and_comes_back_whole() {
    for driver in [DriverChoice::Threads, DriverChoice::Uring] {
        one_goes(Kind::Ext4, driver, Image::turn_read_only);
    }
}

/// All disks lose power at once, again and again.
fn power_loss(kind: Kind, driver: DriverChoice) {
    let Some(mut mounted) = Mounted::new(kind, driver) else { return };
    for round in 0..6 {
        let errors = mounted.load(|| {
            mounted.progress(50 + round * 60);
            std::thread::scope(|scope| mounted.images.iter().for_each(|image| drop(scope.spawn(|| image.shut_down()))));
            mounted.until("halt", || mounted.region().health().is_ok_and(|health| health.halted.is_some()));
        });
        assert!(!errors.is_empty());
        for error in errors {
            assert!(matches!(error.kind(), ErrorKind::Halted | ErrorKind::Indeterminate), "{:?} {error}", error.kind());
        }
        drop(mounted.region.take());
        for image in &mounted.images {
            image.unmount().unwrap();
            image.mount().unwrap();
        }
        mounted.open_and_check();
    }
    println!("{kind:?}, {driver:?}: {} acknowledged over 6 power losses, none lost", mounted.acked());
}

#[test]
fn ext4_disks_that_all_lose_power_keep_what_was_acknowledged() {
    power_loss(Kind::Ext4, DriverChoice::Uring);
    power_loss(Kind::Ext4, DriverChoice::Threads);
}

#[test]
fn xfs_disks_that_all_lose_power_keep_what_was_acknowledged() {
    power_loss(Kind::Xfs, DriverChoice::Uring);
    power_loss(Kind::Xfs, DriverChoice::Threads);
}

/// One disk fills: the set goes on without it, and takes it back when there is space again.
fn one_fills(kind: Kind, driver: DriverChoice) {
    let Some(mut mounted) = Mounted::new(kind, driver) else { return };
    mounted.images[2].fill(2 << 20);
    let errors = mounted.load(|| {
        mounted.until("full disk", || mounted.region().health().unwrap().disks[2].full);
        mounted.progress(300);
        let health = mounted.region().health().unwrap();
        assert!(health.degraded && !health.disks[2].in_set && !health.no_space, "{health:#?}");
        mounted.images[2].empty();
        mounted.until_whole();
        mounted.progress(100);
    });
    assert!(errors.is_empty(), "{errors:?}");
    mounted.check_every_pair();
}

#[test]
fn a_full_ext4_disk_leaves_the_set_and_comes_back_when_it_has_space() {
    one_fills(Kind::Ext4, DriverChoice::Threads);
}

#[test]
fn a_full_xfs_disk_leaves_the_set_and_comes_back_when_it_has_space() {
    one_fills(Kind::Xfs, DriverChoice::Uring);
}

/// All disks fill, to the last byte: a typed error before anything is acknowledged, and trimming gives the space back.
fn all_fill(kind: Kind, driver: DriverChoice) {
    let Some(mut mounted) = Mounted::new(kind, driver) else { return };
    mounted.images.iter().for_each(|image| image.fill(6 << 20));
    let errors = mounted.load(|| {
        mounted.until("refusal for lack of space", || mounted.no_space.load(Ordering::Relaxed) > 10);
    });
    assert!(errors.is_empty(), "{errors:?}");
    let health = mounted.region().health().unwrap();
    assert!(health.no_space && health.halted.is_none(), "{health:#?}");
    for image in &mounted.images {
        let rest = image.disk().join("../rest");
        let written = std::fs::write(&rest, vec![1; 8 << 20]).unwrap_err();
        assert_eq!(written.kind(), std::io::ErrorKind::StorageFull);
    }
    drop(mounted.region.take());
    mounted.open_and_check();
    let to = mounted.region().committed();
    mounted.until("room after trimming", || {
        let first = mounted.region().trim(to).unwrap();
        mounted.ledger.lock().unwrap().trimmed = first;
        first.segment().0 > 4
    });
    let errors = mounted.load(|| mounted.progress(200));
    assert!(errors.is_empty(), "{errors:?}");
    drop(mounted.region.take());
    mounted.open_and_check();
}

#[test]
fn full_ext4_disks_refuse_with_no_space_and_go_on_after_a_trim() {
    all_fill(Kind::Ext4, DriverChoice::Uring);
}

#[test]
fn full_xfs_disks_refuse_with_no_space_and_go_on_after_a_trim() {
    all_fill(Kind::Xfs, DriverChoice::Threads);
}

/// A disk is away, and returns as it was; then an old image of it is put in its place.
fn stale(kind: Kind, driver: DriverChoice) {
    let Some(mut mounted) = Mounted::new(kind, driver) else { return };
    assert!(mounted.load(|| mounted.progress(300)).is_empty());
    mounted.close();
    mounted.images[0].unmount().unwrap();
    let file = mounted.images[0].file.to_str().unwrap().to_owned();
    let old = format!("{file}.old");
    run("cp", &["--sparse=always", &file, &old]).unwrap();
    mounted.open_and_check();
    assert!(mounted.load(|| mounted.progress(300)).is_empty());
    mounted.close();
    mounted.images[0].mount().unwrap();
    mounted.open_and_check();
    mounted.until_whole();
    assert!(mounted.load(|| mounted.progress(300)).is_empty());
    mounted.close();
    mounted.images[0].unmount().unwrap();
    run("cp", &["--sparse=always", &old, &file]).unwrap();
    mounted.images[0].mount().unwrap();
    mounted.open_and_check();
    mounted.until_whole();
    mounted.check_every_pair();
}

#[test]
fn an_ext4_disk_that_comes_back_stale_is_rebuilt() {
    stale(Kind::Ext4, DriverChoice::Threads);
}

#[test]
fn an_xfs_disk_that_comes_back_stale_is_rebuilt() {
    stale(Kind::Xfs, DriverChoice::Uring);
}

/// Part of a disk cannot be read: the other copies serve, the scrub repairs, and the repaired copies serve alone.
/// A device-mapper target would say which sectors fail; the loop device needs no kernel module for it.
fn latent_read_errors(driver: DriverChoice) {
    let Some(mut mounted) = Mounted::new(Kind::Ext4, driver) else { return };
    assert!(mounted.load(|| mounted.progress(1_500)).is_empty());
    mounted.until_whole();
    mounted.close();
    mounted.images[0].lose_sectors(6);
    mounted.open_and_check();
    let report = mounted.region().scrub().unwrap();
    let health = mounted.region().health().unwrap();
    println!("{driver:?}: {report:?}, {:?}", health.corrupt_copies);
    assert!(health.corrupt_copies.0 > 0, "the scrub reread what cannot be read");
    mounted.until("repaired copies", || mounted.region().health().unwrap().is_whole());
    assert!(mounted.load(|| mounted.progress(200)).is_empty());
    mounted.check_every_pair();
}

#[test]
fn sectors_that_cannot_be_read_are_found_and_repaired() {
    latent_read_errors(DriverChoice::Threads);
    latent_read_errors(DriverChoice::Uring);
}
