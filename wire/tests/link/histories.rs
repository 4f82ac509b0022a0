//! Backups that are put back: the same log, number and positions, with another history (acceptance H6).

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian::format::{FrameHeader, FrameKind, encode_frame, frame_len};
use meridian::geo::{Anchor, Arrived, Lag, Progress, Session};
use meridian::{AccountId, ClientId, Committed, Contract, ErrorKind, Gate, Lsn, PartitionId, Region, Transaction};
use meridian_wire::codec::Message;
use meridian_wire::{Link, LinkState, Listener, ListenerOptions};

use crate::common::{Pair, fill, lane, link_options, listener_options, region_options, retained, until, until_shipped};
use crate::cuts::{greet, say, welcome};

/// Every commit waits until it is durable on the secondary.
const SYNCHRONOUS: Contract = Contract { most: Duration::ZERO, then: Gate::Wait };
const PARTITION: PartitionId = PartitionId(7);

/// Replaces a closed region's disks by another's.
pub(crate) fn copy(from: &Path, to: &Path) {
    drop(std::fs::remove_dir_all(to));
    for disk in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let there = to.join(disk.file_name());
        std::fs::create_dir_all(&there).unwrap();
        for file in std::fs::read_dir(disk.path()).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), there.join(file.file_name())).unwrap();
        }
    }
}

fn open(dir: &Path) -> Arc<Region> {
    Arc::new(Region::open(region_options(dir), ()).unwrap())
}

/// Closes a region that nobody else holds, so that its files can be copied.
fn close(region: &mut Arc<Region>, placeholder: &Arc<Region>) {
    let region = std::mem::replace(region, Arc::clone(placeholder));
    Arc::into_inner(region).unwrap().close().unwrap();
}

impl Pair {
    /// Stops the primary, and makes or puts back a backup of it.
    fn backup_west(&mut self, put_back: bool) {
        let (dir, backup) = (self.dir.path().join("west"), self.dir.path().join("west-backup"));
        close(&mut self.west, &self.east);
        if put_back {
            copy(&backup, &dir)
        } else {
            copy(&dir, &backup)
        }
        self.west = open(&dir);
    }

    fn backup_east(&mut self, put_back: bool) {
        let (dir, backup) = (self.dir.path().join("east"), self.dir.path().join("east-backup"));
        close(&mut self.east, &self.west);
        if put_back {
            copy(&backup, &dir)
        } else {
            copy(&dir, &backup)
        }
        self.east = open(&dir);
    }

    fn started(&self) -> (Listener, Link) {
        let listener = self.listen();
        let link = self.link(self.options(&listener));
        (listener, link)
    }

    /// Commits as many records, each in a block of its own, all of which have to wait.
    fn write(&self, life: &str, count: u64) {
        for number in 0..count {
            let transaction = Transaction::new(self.account, PARTITION).record(format!("{life} {number}"));
            self.west.commit(transaction).unwrap();
        }
    }
}

/// What a committed transaction of the secondary says; `None` where nobody can read it.
fn held(region: &Region, account: AccountId, sequence: u64) -> Option<String> {
    let record = |transaction: &Committed<'_>| {
        let first = transaction.first_sequence();
        let (_, record) = transaction.records().nth((sequence - first) as usize).unwrap();
        String::from_utf8(record.to_vec()).unwrap()
    };
    let view = region.partition(account, PARTITION, sequence).next()?.ok()?;
    Some(record(&view.transaction()))
}

#[test]
fn h6_no_commit_is_answered_by_a_secondary_of_another_history() {
    let mut pair = Pair::new();
    pair.contract(SYNCHRONOUS);
    pair.backup_west(false);
    let (listener, link) = pair.started();
    until("a session", || link.status().last_sync_time > 0);
    pair.write("first life", 30);
    drop((link, listener));
    pair.backup_west(true);
    let mut open: Vec<_> = (0..60)
        .map(|number| {
            // Each in a block of its own, until the log is longer than the secondary says.
            std::thread::sleep(Duration::from_millis(2));
            let transaction = Transaction::new(pair.account, PARTITION).record(format!("second life {number}"));
            (number, pair.west.submit(transaction).unwrap())
        })
        .collect();
    let (_listener, link) = pair.started();
    while !open.is_empty() {
        let (done, rest) = open.into_iter().partition::<Vec<_>, _>(|(_, ticket)| ticket.is_done());
        open = rest;
        for (number, ticket) in done {
            let there = held(&pair.east, pair.account, ticket.wait().unwrap().first_sequence);
            let hidden = there.is_none();
            assert!(
                hidden || there == Some(format!("second life {number}")),
                "{number} is answered, {there:?} is there"
            );
        }
    }
    until_shipped(&link, &pair.west);
    assert_same(&pair);
    let status = link.status();
    assert_eq!((status.other_histories, status.set_backs), (1, 0));
}

#[test]
fn h6_secondary_ahead_of_a_primary_that_was_put_back_is_compared() {
    let mut pair = Pair::new();
    fill(&pair.west, pair.account, 100, 100);
    pair.backup_west(false);
    let (listener, link) = pair.started();
    fill(&pair.west, pair.account, 200, 1000);
    until_shipped(&link, &pair.west);
    drop((link, listener));
    pair.backup_west(true);
    let (listener, link) = pair.started();
    until("equal copies", || link.status().state == LinkState::Live && link.status().last_sync_time > 0);
    assert_eq!(link.status().other_histories, 1, "{:?}", link.status().ended);
    assert_eq!(listener.status()[&lane(&pair.west)].other_histories, 1);
    assert_same(&pair);
}

#[test]
fn h6_secondary_that_was_put_back_is_noticed_and_sent_what_it_lost() {
    let mut pair = Pair::new();
    let (listener, link) = pair.started();
    pair.contract(SYNCHRONOUS);
    until("a session", || link.status().last_sync_time > 0);
    let address = listener.local_addr();
    let again = |pair: &Pair| {
        Listener::bind(Arc::clone(&pair.east), ListenerOptions { address, ..listener_options() }).unwrap()
    };
    pair.write("before", 10);
    listener.stop();
    pair.backup_east(false);
    let listener = again(&pair);
    // What has to be sent again before what is asked for twice.
    fill(&pair.west, pair.account, 6_000, 2_000);
    let original = Transaction::new(pair.account, PARTITION).client(ClientId(7), 1).record("asked twice");
    let receipt = pair.west.commit(original.clone()).unwrap();
    pair.write("lost there", 10);
    let claimed = link.status();
    listener.stop();
    pair.backup_east(true);
    assert!(held(&pair.east, pair.account, receipt.first_sequence).is_none(), "the backup is older");
    let listener = again(&pair);
    until("its being noticed", || link.status().set_backs == 1);
    // Who asks again waits until it is there again.
    let repeated = pair.west.commit(original).unwrap();
    assert!(repeated.repeated);
    assert_eq!(held(&pair.east, pair.account, receipt.first_sequence).as_deref(), Some("asked twice"));
    until("last sync time", || link.status().last_sync_time > claimed.last_sync_time);
    assert_same(&pair);
    assert_eq!((link.status().other_histories, link.status().bootstraps.0), (0, claimed.bootstraps.0));
    drop(listener);
}

#[test]
fn h6_both_regions_that_were_put_back_end_equal() {
    let mut pair = Pair::new();
    let (listener, link) = pair.started();
    fill(&pair.west, pair.account, 100, 100);
    until_shipped(&link, &pair.west);
    drop((link, listener));
    pair.backup_west(false);
    let (listener, link) = pair.started();
    fill(&pair.west, pair.account, 100, 300);
    until_shipped(&link, &pair.west);
    drop((link, listener));
    pair.backup_east(false);
    let (listener, link) = pair.started();
    fill(&pair.west, pair.account, 100, 500);
    until_shipped(&link, &pair.west);
    drop((link, listener));
    pair.backup_west(true);
    pair.backup_east(true);
    fill(&pair.west, pair.account, 400, 700);
    let (_listener, link) = pair.started();
    until("equal copies", || link.status().position >= pair.west.committed() && link.status().last_sync_time > 0);
    assert_eq!(link.status().other_histories, 1);
    assert_same(&pair);
}

#[test]
fn h6_frames_that_no_position_covers_are_compared_before_anything_is_claimed() {
    let mut pair = Pair::new();
    pair.contract(SYNCHRONOUS);
    let (listener, link) = pair.started();
    until("a session", || link.status().last_sync_time > 0);
    pair.write("first", 1);
    drop((link, listener));
    // As a batch of a primary whose backup was put back since: a crash of the secondary cut it off in the middle.
    let (lane, session) = (lane(&pair.west), Session::default());
    let before = pair.east.progress(lane).unwrap().unwrap();
    let frames = vec![forged(pair.account, 1, "another life"), forged(pair.account, 7, "never arrives")];
    let (position, anchor) = (before.position, before.anchor);
    let (account, restart, mark) = (None, None, None);
    let arrived = Arrived { lane, session, account, restart, frames, mark, position, anchor };
    assert_eq!(pair.east.import(arrived).unwrap().wait().unwrap_err().kind(), ErrorKind::Gap);
    until("its frame", || held(&pair.east, pair.account, 1).as_deref() == Some("another life"));
    assert_eq!(pair.east.progress(lane).unwrap().unwrap(), before);
    pair.backup_west(false);
    let ticket = pair.west.submit(Transaction::new(pair.account, PARTITION).record("second")).unwrap();
    let (_listener, link) = pair.started();
    let sequence = ticket.wait().unwrap().first_sequence;
    let there = held(&pair.east, pair.account, sequence);
    assert!(there.is_none() || there.as_deref() == Some("second"), "{there:?} is there");
    until_shipped(&link, &pair.west);
    assert_eq!(held(&pair.east, pair.account, sequence).as_deref(), Some("second"));
    // What was made whole is known to be: another session compares nothing.
    drop(link);
    let link = pair.link(pair.options(&_listener));
    until("a session", || link.status().last_sync_time > 0);
    assert_eq!(link.status().bootstraps.0, 0);
}

#[test]
fn h6_secondary_of_another_history_takes_back_what_the_link_claimed() {
    let pair = Pair::new();
    fill(&pair.west, pair.account, 10, 100);
    let before = Progress { position: pair.west.committed(), time: 5, ..Progress::none(lane(&pair.west)) };
    pair.west.mark_with(&[pair.account], Some(before)).unwrap();
    pair.contract(SYNCHRONOUS);
    let original = Transaction::new(pair.account, PARTITION).client(ClientId(7), 1).record("asked twice");
    let at = pair.west.committed();
    let ticket = pair.west.submit(original.clone()).unwrap();
    until("its commit", || pair.west.committed() > at);
    let position = pair.west.committed();
    pair.west.mark(&[pair.account]).unwrap();
    let anchor = pair.west.anchor(position).unwrap();
    let secondary = TcpListener::bind("127.0.0.1:0").unwrap();
    let link = pair.link(link_options(secondary.local_addr().unwrap(), pair.account));
    let socket = greet(&secondary, Some((position, anchor)), 9);
    ticket.wait().unwrap();
    let claimed = link.status();
    assert_eq!(
        (claimed.position, claimed.last_sync_time, claimed.known_before),
        (position, 9, Some((before.position, 5)))
    );
    drop(socket);
    // The same position, and another block there.
    let socket = greet(&secondary, Some((position, Anchor { checksum: !anchor.checksum, ..anchor })), 9);
    until("its being noticed", || link.status().other_histories == 1);
    // Who asks again waits for a secondary that has it, and nobody greets the link for now.
    let repeated = pair.west.submit(original).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!repeated.is_done(), "nothing is known to be there");
    let status = link.status();
    assert_eq!((status.position, status.last_sync_time, status.known_before), (Lsn::ZERO, 0, None));
    assert_eq!(status.lag, Lag::default());
    assert_eq!(status.unread, pair.west.distance(pair.west.first(), pair.west.committed()));
    drop(socket);
    let mut socket = welcome(&secondary);
    say(&mut socket, Message::Holdings(Vec::new()));
    until("another session", || link.status().sessions == 2);
    assert_eq!(link.status().set_backs, 0, "what was of another history was not put back");
}

fn forged(account: AccountId, first_sequence: u64, text: &'static str) -> Bytes {
    let records = [Bytes::from_static(text.as_bytes())];
    let (client, client_sequence) = (ClientId::NONE, 0);
    let kind = FrameKind::Data;
    let header =
        FrameHeader { kind, account, partition: PARTITION, epoch: 1, first_sequence, time: 1, client, client_sequence };
    let mut frame = vec![0; frame_len(&records).unwrap()];
    encode_frame(&header, &records, &mut frame);
    frame.into()
}

/// Readers of either side see the same: what began anew there is left out.
fn assert_same(pair: &Pair) {
    assert_eq!(retained(&pair.west, pair.account), retained(&pair.east, pair.account));
    assert_eq!(pair.west.digest(pair.account).unwrap(), pair.east.digest(pair.account).unwrap());
}
