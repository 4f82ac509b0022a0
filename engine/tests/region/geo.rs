//! What arrives from another region: byte for byte, in order, once, with progress that is never ahead, and marks that never claim too much.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use meridian::format::{Frame, FrameHeader, FrameKind, decode_mark, encode_frame, frame_len};
use meridian::geo::{
    Anchor, Arrived, Batch, Delivered, Digest, Holding, Imported, Lag, Lane, Progress, Receiver, Restart, Session,
    Shipper, ShipperOptions, Waiting,
};
use meridian::{
    AccountId, Ack, ClientId, Committed, ErrorKind, Lsn, Options, PartitionId, Region, Role, StateMachine, Transaction,
};
use tempfile::TempDir;

use crate::common::options;

/// What a shipper makes of the primary's log from a position on, as it arrives.
pub(crate) fn stretches(primary: &Region, accounts: &[AccountId], from: Lsn) -> Vec<Arrived> {
    let mut shipper = Shipper::new(ShipperOptions::default(), accounts.iter().copied(), from);
    let mut receiver = Receiver::new(lane(primary), from);
    let mut log = primary.subscribe(from);
    let mut stretches = Vec::new();
    loop {
        while let Some(batch) = shipper.poll(u64::MAX) {
            stretches.push(receiver.receive(delivered(batch)).unwrap());
        }
        let Some(block) = log.try_next().unwrap() else { return stretches };
        shipper.offer(&block, 0);
    }
}

/// The same from the beginning on, where batches go out only when they are complete.
fn large_stretches(primary: &Region, accounts: &[AccountId]) -> Vec<Arrived> {
    let mut shipper = Shipper::new(ShipperOptions::default(), accounts.iter().copied(), Lsn::ZERO);
    let mut receiver = Receiver::new(lane(primary), Lsn::ZERO);
    let mut log = primary.subscribe(Lsn::ZERO);
    let mut stretches = Vec::new();
    loop {
        let block = log.try_next().unwrap();
        while block.is_none() || !shipper.wants_block() {
            let Some(batch) = shipper.poll(u64::MAX) else { return stretches };
            stretches.push(receiver.receive(delivered(batch)).unwrap());
        }
        shipper.offer(&block.unwrap(), 0);
    }
}

pub(crate) fn lane(primary: &Region) -> Lane {
    Lane { log: primary.log_id(), number: 0 }
}

fn delivered(batch: Batch) -> Delivered {
    let Batch { number, account, restart, frames, mark, position, anchor, bytes, .. } = batch;
    let frames: Vec<u8> = frames.iter().flat_map(|slice| slice.iter().copied()).collect();
    assert_eq!(frames.len(), bytes);
    Delivered { number, account, restart, frames: frames.into(), mark, position, anchor }
}

/// Everything from where the secondary says that it stands.
pub(crate) fn ship(primary: &Region, secondary: &Region, accounts: &[AccountId]) -> Vec<Imported> {
    let from = secondary.progress(lane(primary)).unwrap().map_or(Lsn::ZERO, |progress| progress.position);
    let tickets: Vec<_> =
        stretches(primary, accounts, from).into_iter().map(|arrived| secondary.import(arrived).unwrap()).collect();
    tickets.into_iter().map(|ticket| ticket.wait().unwrap()).collect()
}

/// Each frame by itself.
fn split(items: &[Bytes]) -> Vec<Bytes> {
    let mut frames = Vec::new();
    for item in items {
        let mut at = 0;
        while at < item.len() {
            let len = Frame::parse(&item[at..]).unwrap().len();
            frames.push(item.slice(at..at + len));
            at += len;
        }
    }
    frames
}

/// The frames of an account in log order.
fn frames(region: &Region, account: AccountId) -> Vec<Vec<u8>> {
    let mut log = region.subscribe(Lsn::ZERO);
    let mut frames = Vec::new();
    while let Some(block) = log.try_next().unwrap() {
        let own = block.transactions().filter(|transaction| transaction.account() == account);
        frames.extend(own.map(|transaction| transaction.bytes().to_vec()));
    }
    frames
}

pub(crate) struct Pair {
    _dirs: [TempDir; 2],
    options: [Options; 2],
    pub(crate) primary: Region,
    pub(crate) secondary: Region,
    pub(crate) account: AccountId,
}

pub(crate) fn pair() -> Pair {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut options = [options(&dirs[0], 3), options(&dirs[1], 3)];
    options[1].queue_bytes = 256 << 10;
    let [primary, secondary] = options.clone().map(|options| Region::create(options, ()).unwrap());
    let account = primary.create_account("flights", Ack::Quorum).unwrap();
    Pair { _dirs: dirs, options, primary, secondary, account }
}

pub(crate) fn fill(region: &Region, account: AccountId, transactions: u32, len: usize) {
    let transaction = |number: u32| {
        let partition = PartitionId(u128::from(number % 7));
        let records = (0..=number % 3).map(|record| vec![(number + record) as u8; len + number as usize % 13]);
        let transaction =
            Transaction::new(account, partition).client(ClientId(u128::from(account.0)), u64::from(number));
        records.fold(transaction, |transaction, record| transaction.record(record))
    };
    let tickets: Vec<_> = (0..transactions).map(|number| region.submit(transaction(number)).unwrap()).collect();
    for ticket in tickets {
        ticket.wait().unwrap();
    }
}

#[test]
fn a_secondary_holds_every_frame_byte_for_byte_and_other_accounts_stay_behind() {
    let Pair { primary, secondary, account, .. } = &pair();
    let other = primary.create_account("not carried", Ack::Quorum).unwrap();
    fill(primary, *account, 900, 300);
    fill(primary, other, 50, 300);
    primary.mark(&[*account]).unwrap();
    let imported = ship(primary, secondary, &[*account]);
    assert_eq!(imported.iter().map(|imported| imported.records).sum::<u64>(), 1800);
    assert_eq!(frames(secondary, *account), frames(primary, *account));
    assert_eq!(secondary.digest(*account).unwrap(), primary.digest(*account).unwrap());
    assert_eq!(secondary.digest(other).unwrap(), Digest::default());
    let accounts = secondary.accounts().unwrap();
    assert_eq!(
        accounts.iter().map(|account| (&*account.name, account.role)).collect::<Vec<_>>(),
        [("flights", Role::Secondary)]
    );
    for partition in (0..7).map(PartitionId) {
        let here = secondary.partition_digest(*account, partition).unwrap();
        assert!(here == primary.partition_digest(*account, partition).unwrap() && here.0 == here.1.records);
    }
}

#[test]
fn h5_imported_client_sequences_are_remembered_in_their_account_alone() {
    let Pair { primary, secondary, account, options, _dirs } = pair();
    let order = |account, partition| Transaction::new(account, PartitionId(partition)).client(ClientId(1), 1);
    let flight = primary.commit(order(account, 1).record("a flight")).unwrap();
    ship(&primary, &secondary, &[account]);
    let orders = secondary.create_account("orders", Ack::Quorum).unwrap();
    let first = secondary.commit(order(orders, 9).record("an order")).unwrap();
    assert!(!first.repeated && secondary.digest(orders).unwrap().records == 1);
    // What is shipped again is known by its partition's sequence, and the primary's own retries stay what they were.
    ship(&primary, &secondary, &[account]);
    assert_eq!(secondary.digest(account).unwrap().records, 1);
    assert_eq!(primary.commit(order(account, 1).record("a flight")).unwrap().lsn, flight.lsn);
    secondary.close().unwrap();
    let secondary = Region::open(options[1].clone(), ()).unwrap();
    let again = secondary.commit(order(orders, 9).record("an order")).unwrap();
    assert_eq!((again.lsn, again.repeated), (first.lsn, true));
}

#[test]
fn mark_keeps_what_the_secondary_has_only_where_it_is_news() {
    let Pair { primary, account, .. } = &pair();
    fill(primary, *account, 1, 100);
    let known = Progress { position: primary.committed(), time: 5, ..Progress::none(lane(primary)) };
    primary.mark_with(&[*account], Some(known)).unwrap();
    assert_eq!(primary.progress(lane(primary)).unwrap(), Some(known));
    let before = primary.committed();
    for _ in 0..3 {
        primary.mark_with(&[*account], Some(known)).unwrap();
    }
    let mut log = primary.subscribe(before);
    let mut records = 0;
    while let Some(block) = log.try_next().unwrap() {
        records += block.transactions().filter(|transaction| transaction.lsn() >= before).count();
    }
    assert_eq!(records, 3, "the marks alone");
}

#[test]
fn what_arrives_again_is_skipped_and_a_gap_is_refused() {
    let Pair { primary, secondary, account, .. } = &pair();
    fill(primary, *account, 100, 100);
    ship(primary, secondary, &[*account]);
    let held = frames(secondary, *account);
    let again = stretches(primary, &[*account], Lsn::ZERO);
    let again: Vec<_> = again.into_iter().map(|arrived| secondary.import(arrived).unwrap().wait().unwrap()).collect();
    assert_eq!(
        again
            .iter()
            .map(|imported| (imported.records, imported.duplicates))
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        (0, 199)
    );
    let position = secondary.progress(lane(primary)).unwrap().unwrap().position;
    fill(primary, *account, 121, 100);
    let rest = stretches(primary, &[*account], position);
    let mut frames_left: Vec<Bytes> = rest.iter().flat_map(|arrived| split(&arrived.frames)).collect();
    frames_left.remove(0);
    let (lane, end) = (lane(primary), rest.last().unwrap().position);
    let arrived = Arrived {
        lane,
        session: Session::default(),
        account: None,
        restart: None,
        frames: frames_left,
        mark: None,
        position: end,
        anchor: Anchor::default(),
    };
    let error = secondary.import(arrived).unwrap().wait().expect_err("a gap is refused");
    assert_eq!(error.kind(), ErrorKind::Gap, "{error}");
    assert_eq!(secondary.progress(lane).unwrap().unwrap().position, position);
    assert!(frames(secondary, *account).starts_with(&held), "what was there stays");
    ship(primary, secondary, &[*account]);
    assert_eq!(secondary.digest(*account).unwrap(), primary.digest(*account).unwrap());
}

#[test]
fn behind_a_stretch_that_was_refused_nothing_of_its_session_is_taken() {
    let Pair { primary, account, _dirs, .. } = pair();
    let dir = tempfile::tempdir().unwrap();
    let mut few = options(&dir, 3);
    // The system's, two of `fill`, and one more.
    few.max_partitions = 4;
    let secondary = Region::create(few, ()).unwrap();
    fill(&primary, account, 2, 100);
    ship(&primary, &secondary, &[account]);
    let before = secondary.progress(lane(&primary)).unwrap().unwrap();
    let more = |partition| primary.commit(Transaction::new(account, PartitionId(partition)).record("more")).unwrap();
    more(70);
    primary.mark(&[account]).unwrap();
    more(71);
    primary.mark(&[account]).unwrap();
    more(0);
    primary.mark(&[account]).unwrap();
    let session = stretches(&primary, &[account], before.position);
    let refused: Vec<_> = session.into_iter().map(|arrived| secondary.import(arrived).unwrap()).collect();
    let kinds: Vec<_> = refused.into_iter().map(|ticket| ticket.wait().map_err(|error| error.kind())).collect();
    let first = kinds.iter().position(|outcome| outcome == &Err(ErrorKind::LimitReached)).expect("no room for 71");
    assert!(first + 1 < kinds.len() && kinds[first + 1..].iter().all(|outcome| outcome == &Err(ErrorKind::Gap)));
    let progress = secondary.progress(lane(&primary)).unwrap().unwrap();
    assert_eq!(secondary.digest(account).unwrap().records, 4, "1 + 2 records and the one of partition 70");
    assert!(progress.position < primary.committed());
    secondary.close().unwrap();
}

#[test]
fn a_secondary_refuses_local_writes_settings_and_marks() {
    let Pair { primary, secondary, account, .. } = &pair();
    fill(primary, *account, 3, 10);
    ship(primary, secondary, &[*account]);
    let write = secondary.commit(Transaction::new(*account, PartitionId(1)).record("no"));
    let refused = [
        write.map(drop),
        secondary.fence_account("flights").map(drop),
        secondary.set_account_ack("flights", Ack::All).map(drop),
        secondary.mark(&[*account]).map(drop),
    ];
    assert!(refused.iter().all(|result| result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Secondary)));
    let own = secondary.create_account("own", Ack::Quorum).unwrap();
    secondary.commit(Transaction::new(own, PartitionId(1)).record("yes")).unwrap();
    assert_ne!(own, *account);
}

#[test]
fn an_account_of_another_name_or_number_or_epoch_is_not_mixed_up() {
    let Pair { primary, secondary, account, .. } = &pair();
    secondary.create_account("flights", Ack::Quorum).unwrap();
    fill(primary, *account, 3, 10);
    primary.mark(&[*account]).unwrap();
    let refuse = |change: fn(&mut Arrived)| {
        let mut last = None;
        for mut arrived in stretches(primary, &[*account], Lsn::ZERO) {
            change(&mut arrived);
            last = last.or(secondary.import(arrived).unwrap().wait().err());
        }
        last.expect("refused").kind()
    };
    assert_eq!(refuse(|_| {}), ErrorKind::Exists);
    let first = |region: &Region| region.accounts().unwrap()[0].id;
    assert_ne!(first(primary), first(secondary), "no two regions give out one number");
    let rename = |arrived: &mut Arrived| arrived.account.iter_mut().for_each(|account| account.name = "f".into());
    assert_eq!(refuse(|arrived| arrived.account = None), ErrorKind::NotFound);
    let renamed = stretches(primary, &[*account], Lsn::ZERO).into_iter().map(|mut arrived| {
        rename(&mut arrived);
        secondary.import(arrived).unwrap().wait()
    });
    renamed.for_each(|imported| drop(imported.unwrap()));
    let older = |arrived: &mut Arrived| {
        arrived.account.iter_mut().for_each(|account| (account.name, account.epoch) = ("f".into(), 0))
    };
    let mut fenced = stretches(primary, &[*account], Lsn::ZERO);
    fenced.iter_mut().for_each(older);
    let fenced = fenced.into_iter().find_map(|arrived| secondary.import(arrived).unwrap().wait().err()).unwrap();
    assert_eq!(fenced.kind(), ErrorKind::Fenced);
}

#[test]
fn a_fenced_account_goes_on_in_its_next_epoch_on_both_sides() {
    let Pair { primary, secondary, account, .. } = &pair();
    fill(primary, *account, 10, 10);
    primary.fence_account("flights").unwrap();
    let mut late = stretches(primary, &[*account], Lsn::ZERO);
    fill(primary, *account, 20, 10);
    primary.mark(&[*account]).unwrap();
    ship(primary, secondary, &[*account]);
    assert_eq!(frames(secondary, *account), frames(primary, *account));
    assert_eq!(secondary.accounts().unwrap()[0].epoch, 2);
    late.retain(|arrived| arrived.account.is_none() && !arrived.frames.is_empty());
    let fenced = late.into_iter().find_map(|arrived| secondary.import(arrived).unwrap().wait().err());
    assert_eq!(fenced.map(|error| error.kind()), Some(ErrorKind::Fenced), "an older epoch has no say any more");
}

#[test]
fn progress_digests_and_retries_are_there_after_opening_again_and_after_a_trim() {
    let Pair { primary, secondary, account, options, _dirs } = pair();
    for round in 0..4 {
        let transaction = |number| Transaction::new(account, PartitionId(round)).record(vec![number; 90_000]);
        for number in 0..30u8 {
            primary.commit(transaction(number).client(ClientId(round + 1), u64::from(number))).unwrap();
        }
        primary.mark(&[account]).unwrap();
        ship(&primary, &secondary, &[account]);
    }
    let progress = secondary.progress(lane(&primary)).unwrap().unwrap();
    assert!(progress.time > 0);
    let digest = primary.digest(account).unwrap();
    assert!(secondary.trim(Lsn::MAX).unwrap() > Lsn::ZERO);
    secondary.close().unwrap();
    primary.trim(Lsn::MAX).unwrap();
    let lane = lane(&primary);
    primary.close().unwrap();
    let [primary, secondary] = options.map(|options| Region::open(options, ()).unwrap());
    assert_eq!(secondary.progress(lane).unwrap(), Some(progress));
    assert_eq!((primary.digest(account).unwrap(), secondary.digest(account).unwrap()), (digest, digest));
    let retried = Transaction::new(account, PartitionId(3)).record(vec![29; 90_000]).client(ClientId(4), 29);
    assert!(primary.commit(retried).unwrap().repeated);
    fill(&primary, account, 10, 10);
    primary.mark(&[account]).unwrap();
    let last = ship(&primary, &secondary, &[account]).pop().unwrap();
    assert!(last.differ.is_empty() && last.progress.time > progress.time);
    assert_eq!(secondary.digest(account).unwrap(), primary.digest(account).unwrap());
}

#[test]
fn a_stretch_larger_than_a_block_and_than_the_queue_is_taken_in_whole() {
    let Pair { primary, secondary, account, .. } = &pair();
    fill(primary, *account, 600, 1000);
    let mut all = stretches(primary, &[*account], Lsn::ZERO);
    let account_made = all.iter_mut().find_map(|arrived| arrived.account.take());
    let position = all.last().unwrap().position;
    // Many frames in one item, as they lie in a block of the primary's.
    let joined: Vec<u8> = all.iter().flat_map(|arrived| arrived.frames.iter().flatten().copied()).collect();
    let lane = lane(primary);
    let frames_joined = vec![Bytes::from(joined)];
    let arrived = Arrived {
        lane,
        session: Session::default(),
        account: account_made,
        restart: None,
        frames: frames_joined,
        mark: None,
        position,
        anchor: Anchor::default(),
    };
    let imported = secondary.import(arrived).unwrap().wait().unwrap();
    let Progress { position: reached, time, held, .. } = imported.progress;
    assert_eq!((imported.records, reached, time, held), (1200, position, 0, primary.digest(*account).unwrap()));
    primary.mark(&[*account]).unwrap();
    ship(primary, secondary, &[*account]);
    assert_eq!(frames(secondary, *account), frames(primary, *account));
}

#[test]
fn bytes_that_are_not_whole_data_frames_are_refused_before_anything_is_taken() {
    let Pair { primary, secondary, account, .. } = &pair();
    fill(primary, *account, 3, 100);
    let whole = stretches(primary, &[*account], Lsn::ZERO);
    let frame = &whole.iter().find_map(|arrived| split(&arrived.frames).first().cloned()).unwrap();
    let mut flipped = frame.to_vec();
    flipped[100] ^= 1;
    let cut = frame.slice(..frame.len() - 8);
    for bytes in [Bytes::from(flipped), cut, Bytes::from(vec![0; 4096]), Bytes::from_static(b"x")] {
        let frames = vec![frame.clone(), bytes];
        let (lane, position) = (lane(primary), Lsn::MAX);
        let refused = secondary.import(Arrived {
            lane,
            session: Session::default(),
            account: None,
            restart: None,
            frames,
            mark: None,
            position,
            anchor: Anchor::default(),
        });
        assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::InvalidInput));
    }
    assert_eq!(secondary.progress(lane(primary)).unwrap(), None);
}

#[test]
fn a_difference_is_said_and_holds_last_sync_time_back() {
    let Pair { primary, secondary, account, .. } = &pair();
    fill(primary, *account, 20, 10);
    primary.mark(&[*account]).unwrap();
    let mut all = stretches(primary, &[*account], Lsn::ZERO);
    // The last frame before the mark never arrives.
    let last = all.iter_mut().rev().find(|arrived| !arrived.frames.is_empty()).unwrap();
    last.frames = split(&last.frames);
    last.frames.pop();
    let imported = all.into_iter().map(|arrived| secondary.import(arrived).unwrap().wait().unwrap());
    let differ: Vec<AccountId> = imported.flat_map(|imported| imported.differ).collect();
    assert_eq!(differ, [*account]);
    assert_eq!(secondary.progress(lane(primary)).unwrap().unwrap().time, 0);
}

/// Keeps the times of what it is handed.
#[derive(Clone, Default)]
struct Times(Arc<std::sync::Mutex<Vec<(Lsn, u64)>>>);

impl StateMachine for Times {
    fn resume_from(&self) -> Lsn {
        Lsn::ZERO
    }

    fn apply(&mut self, transaction: &Committed<'_>) {
        self.0.lock().unwrap().push((transaction.lsn(), transaction.time()));
    }
}

#[test]
fn everything_with_a_time_up_to_a_marks_lies_before_it_whatever_is_written_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let times = Times::default();
    let region = Region::create(options(&dir, 3), times.clone()).unwrap();
    let account = region.create_account("flights", Ack::Quorum).unwrap();
    let stop = AtomicBool::new(false);
    let marks = std::thread::scope(|scope| {
        for thread in 0..4u128 {
            let (region, stop) = (&region, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    region.commit(Transaction::new(account, PartitionId(thread)).record("x")).unwrap();
                }
            });
        }
        let marks: Vec<Lsn> = (0..200).map(|_| region.mark(&[account]).unwrap()).collect();
        stop.store(true, Ordering::Relaxed);
        marks
    });
    let idle = region.mark(&[account]).unwrap();
    let time = |at: Lsn| region.read(at).unwrap().transaction(at).unwrap().time();
    let last = time(*marks.last().unwrap());
    assert!(time(idle) > last, "it moves while nothing is written");
    let seen = times.0.lock().unwrap().clone();
    for mark in marks {
        let claimed = time(mark);
        assert!(seen.iter().all(|&(lsn, time)| time > claimed || lsn < mark), "mark {mark} claims too much");
        let block = region.read(mark).unwrap();
        let record = block.transaction(mark).unwrap().records().next().unwrap().1;
        let before = seen.iter().filter(|(lsn, _)| *lsn < mark).count() as u64;
        assert_eq!(decode_mark(record).unwrap()[0].1.records, before, "its digest is of what lies before it");
    }
}

#[test]
fn batches_are_cut_by_bytes_and_time_and_marks_and_wait_for_the_window() {
    let Pair { primary, account, .. } = &pair();
    fill(primary, *account, 200, 1000);
    primary.mark(&[*account]).unwrap();
    fill(primary, *account, 440, 1000);
    let options = ShipperOptions { batch_bytes: 20_000, batch_time: 1_000, window: 50_000 };
    let mut shipper = Shipper::new(options, [*account], Lsn::ZERO);
    let mut log = primary.subscribe(Lsn::ZERO);
    let (mut marks, mut sent, mut flying, mut now, mut last) = (0, Vec::new(), Vec::new(), 0, 0);
    loop {
        now += 400;
        while let Some(batch) = shipper.poll(now) {
            assert!(batch.bytes < options.batch_bytes + 4_000, "a batch goes out as soon as it is full");
            assert!(!batch.frames.is_empty() || batch.account.is_some() || batch.mark.is_some());
            flying.push(batch.bytes);
            last = batch.number;
            assert!(flying.iter().sum::<usize>() as u64 <= options.window || flying.len() == 1);
            marks += usize::from(batch.mark.is_some());
            sent.extend(batch.frames.iter().flat_map(|slice| slice.iter().copied()));
        }
        match shipper.waiting(now) {
            Waiting::Window => {
                let acknowledged = shipper.acknowledge(last).unwrap();
                assert_eq!(acknowledged.len(), flying.iter().filter(|bytes| **bytes > 0).count());
                flying.clear();
            }
            Waiting::Batch | Waiting::Block if shipper.wants_block() => match log.try_next().unwrap() {
                Some(block) => shipper.offer(&block, now),
                None if shipper.waiting(now) == Waiting::Block => break,
                None => {}
            },
            _ => {}
        }
    }
    assert_eq!((marks, sent), (1, frames(primary, *account).concat()));
    shipper.acknowledge(last).unwrap();
    assert_eq!((shipper.lag(), shipper.position()), (Lag::default(), primary.committed()));
    assert!(shipper.acknowledge(u64::MAX).is_err() && shipper.acknowledge(0).is_err());
}

#[test]
fn a_secondary_that_ends_in_the_middle_of_a_batch_is_not_behind_a_mark_that_another_session_sends() {
    for large in [false, true] {
        let Pair { primary, secondary, account, .. } = &pair();
        let hotels = primary.create_account("hotels", Ack::Quorum).unwrap();
        fill(primary, *account, 20, 10);
        let mark = primary.mark(&[*account]).unwrap();
        fill(primary, *account, 40, 10);
        // Two accounts are carried, and the mark is of one of them: it is left out.
        let both = [*account, hotels];
        let mut all = if large { large_stretches(primary, &both) } else { stretches(primary, &both, Lsn::ZERO) };
        assert!(all.iter().all(|arrived| arrived.mark.is_none()));
        let cut = all.iter().position(|arrived| arrived.position > mark && !arrived.frames.is_empty()).unwrap();
        all.truncate(cut + 1);
        // Its frames became durable, and that it arrived did not.
        all[cut].position = Lsn::ZERO;
        all.into_iter().for_each(|arrived| drop(secondary.import(arrived).unwrap().wait().unwrap()));
        // From now on the account is carried alone.
        primary.mark(&[*account]).unwrap();
        let imported = ship(primary, secondary, &[*account]);
        assert!(imported.iter().all(|imported| imported.differ.is_empty()), "it holds what it should: {imported:?}");
        assert!(frames(secondary, *account) == frames(primary, *account));
    }
}

#[test]
fn a_cut_is_one_moment_of_the_primary_in_every_partition_also_after_opening_again() {
    let Pair { mut primary, mut secondary, account, options, _dirs } = pair();
    let lane = lane(&primary);
    assert_eq!(secondary.cut(lane).unwrap(), None);
    for round in 0..12u8 {
        for partition in 0..3 {
            let transaction = Transaction::new(account, PartitionId(partition)).record(vec![round; 30_000]);
            primary.commit(transaction).unwrap();
        }
        let mark = primary.mark(&[account]).unwrap();
        let time = primary.read(mark).unwrap().transaction(mark).unwrap().time();
        let held = frames(&primary, account).len();
        // A part of the next moment arrives, too, and says the old time again.
        primary.commit(Transaction::new(account, PartitionId(1)).record(vec![round; 30_000])).unwrap();
        ship(&primary, &secondary, &[account]);
        if round % 5 == 4 {
            secondary.close().unwrap();
            primary.close().unwrap();
            [primary, secondary] = options.clone().map(|options| Region::open(options, ()).unwrap());
        }
        let cut = secondary.cut(lane).unwrap().unwrap();
        assert_eq!(cut.time, time);
        let mut log = secondary.subscribe(Lsn::ZERO);
        let mut before = 0;
        while let Some(block) = log.try_next().unwrap() {
            let mut own = block.transactions().filter(|transaction| transaction.account() == account);
            before += own.by_ref().filter(|transaction| transaction.lsn() < cut.position).count();
        }
        assert_eq!(before, held, "round {round}: exactly what the primary held at the mark");
    }
}

/// A stretch of nothing, to put something into.
fn nothing(primary: &Region, secondary: &Region) -> Arrived {
    let position = secondary.progress(lane(primary)).unwrap().map_or(Lsn::ZERO, |progress| progress.position);
    Arrived {
        lane: lane(primary),
        session: Session::default(),
        account: None,
        restart: None,
        frames: Vec::new(),
        mark: None,
        position,
        anchor: Anchor::default(),
    }
}

fn begins_anew(account: AccountId, partitions: impl IntoIterator<Item = u128>, next_sequence: u64) -> Option<Restart> {
    let digest = Digest { sum: 1, records: next_sequence };
    let holding = |partition| Holding { partition: PartitionId(partition), next_sequence, digest };
    Some(Restart { account, partitions: partitions.into_iter().map(holding).collect() })
}

#[test]
fn copies_begin_anew_within_the_bound_on_partitions_so_that_the_region_can_be_opened_again() {
    let Pair { primary, account, _dirs, .. } = pair();
    let dir = tempfile::tempdir().unwrap();
    let mut few = options(&dir, 3);
    few.max_partitions = 10;
    let secondary = Region::create(few.clone(), ()).unwrap();
    fill(&primary, account, 7, 100);
    ship(&primary, &secondary, &[account]);
    let arrived = Arrived { restart: begins_anew(account, 100..103, 5), ..nothing(&primary, &secondary) };
    let refused = secondary.import(arrived).unwrap().wait().err();
    assert_eq!(refused.map(|error| error.kind()), Some(ErrorKind::LimitReached), "eight there were, with the system's");
    let arrived = Arrived { restart: begins_anew(account, 5..9, 5), ..nothing(&primary, &secondary) };
    secondary.import(arrived).unwrap().wait().expect("two of them are known, and there is room for two");
    secondary.close().unwrap();
    Region::open(few, ()).unwrap();
}

#[test]
fn a_mark_in_the_stretch_in_which_a_copy_begins_anew_makes_it_whole_only_where_it_agrees() {
    let Pair { primary, secondary, account, .. } = &pair();
    fill(primary, *account, 7, 100);
    ship(primary, secondary, &[*account]);
    primary.mark(&[*account]).unwrap();
    let marked = stretches(primary, &[*account], Lsn::ZERO).pop().unwrap().mark;
    assert!(marked.is_some());
    let restart = begins_anew(*account, [0], 5);
    let arrived = Arrived { restart, mark: marked, ..nothing(primary, secondary) };
    let imported = secondary.import(arrived).unwrap().wait().unwrap();
    assert_eq!((imported.differ, imported.progress.time), (vec![*account], 0));
    let known = secondary.accounts().unwrap().into_iter().find(|known| known.id == *account);
    assert_eq!(known.map(|known| known.role), Some(Role::Bootstrap));
}

#[test]
fn sequences_behind_the_last_there_is_are_refused() {
    let Pair { primary, secondary, account, options, _dirs } = pair();
    fill(&primary, account, 7, 100);
    ship(&primary, &secondary, &[account]);
    let last = u64::MAX - 1;
    let header = FrameHeader {
        kind: FrameKind::Data,
        account,
        partition: PartitionId(100),
        epoch: 1,
        first_sequence: last,
        time: 1,
        client: ClientId::NONE,
        client_sequence: 0,
    };
    let records = [Bytes::from("one"), Bytes::from("two")];
    let mut frame = vec![0; frame_len(&records).unwrap()];
    encode_frame(&header, &records, &mut frame);
    let restart = begins_anew(account, [100], last);
    let arrived = Arrived { restart, frames: vec![frame.into()], ..nothing(&primary, &secondary) };
    let refused = secondary.import(arrived).unwrap().wait().err();
    assert_eq!(refused.map(|error| error.kind()), Some(ErrorKind::InvalidInput));
    secondary.close().unwrap();
    Region::open(options[1].clone(), ()).unwrap();
}

#[test]
fn an_account_that_arrives_takes_none_of_the_numbers_that_this_log_gives_out() {
    let Pair { primary, secondary, account, .. } = &pair();
    let own = secondary.create_account("own", Ack::Quorum).unwrap();
    let mut foreign = primary.accounts().unwrap().into_iter().find(|known| known.id == *account).unwrap();
    foreign.id = AccountId(own.0 | u64::from(u32::MAX));
    let arrived = Arrived { account: Some(foreign), ..nothing(primary, secondary) };
    let refused = secondary.import(arrived).unwrap().wait().err();
    assert_eq!(refused.map(|error| error.kind()), Some(ErrorKind::Exists));
    let [one, two] = ["one", "two"].map(|name| secondary.create_account(name, Ack::Quorum).unwrap());
    assert_ne!(one, two);
}

#[test]
fn h4_operator_reads_a_secondary_whose_access_is_off_while_it_is_whole() {
    let Pair { _dirs, primary, secondary, account, options } = pair();
    fill(&primary, account, 20, 100);
    primary.set_account_read_access("flights", false).unwrap();
    primary.mark(&[account]).unwrap();
    ship(&primary, &secondary, &[account]);
    // The primary is lost.
    drop(primary);
    let read = |region: &Region| {
        let mut reader = region.partition(account, PartitionId(1), 0);
        let count = std::iter::from_fn(|| reader.try_next().transpose()).map(|view| view.map(drop));
        count.collect::<meridian::Result<Vec<()>>>().map(|all| all.len()).map_err(|error| error.kind())
    };
    assert_eq!(read(&secondary), Err(ErrorKind::Secondary));
    let refused = |account, reason| secondary.override_read_access(account, reason).unwrap_err().kind();
    let long = "w".repeat(257);
    for reason in ["", "west\nburned down", "west\u{1b}[0m", &long] {
        assert_eq!(refused(account, reason), ErrorKind::InvalidInput, "{reason:?}");
    }
    assert_eq!(refused(AccountId(account.0 + 1), "who is it"), ErrorKind::NotFound);
    secondary.override_read_access(account, "west burned down").unwrap();
    assert_eq!(read(&secondary), Ok(3));
    assert!(frames(&secondary, account).len() == 20, "the log shows it, too");
    assert_eq!(secondary.health().unwrap().read_overrides, [(account, "west burned down".to_owned())]);
    let stored = secondary.accounts().unwrap();
    assert!(!stored[0].read_access, "what is stored is the primary's");
    secondary.revoke_read_override(account).unwrap();
    assert_eq!(read(&secondary), Err(ErrorKind::Secondary));
    assert!(secondary.health().unwrap().read_overrides.is_empty());
    // It does not outlive the region's being open.
    secondary.override_read_access(account, "west burned down").unwrap();
    secondary.close().unwrap();
    let secondary = Region::open(options[1].clone(), ()).unwrap();
    assert_eq!(read(&secondary), Err(ErrorKind::Secondary));
    // A copy that is not whole is never shown.
    secondary.override_read_access(account, "west burned down").unwrap();
    let other = Lane { log: secondary.log_id(), number: 7 };
    secondary.carry(other, [account], None).unwrap();
    assert_eq!(secondary.accounts().unwrap()[0].role, Role::Bootstrap);
    assert_eq!(read(&secondary), Err(ErrorKind::Secondary));
    let error = secondary.override_read_access(account, "west burned down").unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("whole"), "{error}");
}
