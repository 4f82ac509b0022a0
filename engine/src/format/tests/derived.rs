//! Superblocks, indexes, checkpoints and system records.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

prop_compose! {
    fn any_seal()(numbers in any::<[u64; 5]>(), base in any::<u32>(), pages in 2..1000u32, set in 1..=8u128) -> Seal {
        let [epoch, base_chain, end_chain, transactions, records] = numbers;
        Seal {
            log: LOG,
            segment: SegmentId(0),
            epoch: Epoch(epoch),
            length: pages * 4096,
            base_sequence: u64::from(base),
            base_chain,
            next_sequence: u64::from(base) + transactions % 1000,
            end_chain,
            transactions,
            records,
            set: disks(set),
        }
    }
}

prop_compose! {
    fn any_superblock()(
        log in any::<u128>(), disk in any::<u128>(), numbers in any::<[u64; 4]>(), clean in any::<bool>(),
        members in vec("[a-z0-9é-]{0,40}", 0..8), epochs in vec(1..=8u128, 0..12), seals in vec(any_seal(), 0..12),
        trim in any::<u32>(), segment_size in any::<u32>(),
    ) -> Superblock {
        let [generation, promised, flushed, committed] = numbers;
        let member = |(i, label): (usize, String)| Member {
            disk: DiskId(i as u128),
            fault_domain: label.clone(),
            upgrade_domain: label.to_uppercase(),
            zone: label,
        };
        let epoch = |(i, set): (usize, u128)| EpochEntry {
            epoch: Epoch(i as u64 + 1),
            first_segment: SegmentId(i as u32 * 3),
            set: disks(set),
        };
        let seal = |(i, seal): (usize, Seal)| Seal { log: LogId(log), segment: SegmentId(i as u32), ..seal };
        Superblock {
            log: LogId(log),
            disk: DiskId(disk),
            generation,
            promised: Epoch(promised),
            sound: Epoch(promised / 2),
            members: members.into_iter().enumerate().map(member).collect(),
            epochs: epochs.into_iter().enumerate().map(epoch).collect(),
            seals: seals.into_iter().enumerate().map(seal).collect(),
            trim: SegmentId(trim),
            flushed: Lsn(flushed),
            committed,
            clean,
            segment_size,
        }
    }
}

prop_compose! {
    fn any_client()(ids in any::<[u128; 2]>(), numbers in any::<[u64; 4]>(), records in any::<u32>()) -> ClientCommit {
        let ([client, partition], [account, sequence, lsn, first_sequence]) = (ids, numbers);
        let (partition, lsn) = (PartitionId(partition), Lsn(lsn));
        let outcome = CommitOutcome { sequence, partition, lsn, first_sequence, records };
        ClientCommit { account: AccountId(account), client: ClientId(client), outcome }
    }
}

type Settings = (Ack, Role, bool, Option<Contract>);

fn any_settings() -> impl Strategy<Value = Settings> {
    let gate = prop::sample::select(vec![Gate::Open, Gate::Wait, Gate::Throttle, Gate::Refuse]);
    let contract = (any::<u64>(), gate).prop_map(|(most, then)| Contract { most: Duration::from_nanos(most), then });
    let ack = prop::sample::select(vec![Ack::Quorum, Ack::All]);
    (ack, any_role(), any::<bool>(), prop::option::of(contract))
}

fn any_role() -> impl Strategy<Value = Role> {
    prop::sample::select(vec![Role::Primary, Role::Local, Role::Secondary, Role::Bootstrap, Role::Dropped])
}

prop_compose! {
    fn any_holding()(partition: u128, next_sequence: u64, sum: u128, records: u64) -> Holding {
        Holding { partition: PartitionId(partition), next_sequence, digest: Digest { sum, records } }
    }
}

prop_compose! {
    fn any_system()(
        accounts in vec((any::<u64>(), ".{0,40}", any_settings()), 0..9),
        restarts in btree_map(any::<u64>(), vec(any_holding(), 1..5), 0..5),
        progress in vec(any::<(u128, u64, u64, u64)>(), 0..5), time in any::<u64>(),
    ) -> SystemState {
        let account = |(id, name, (ack, role, read_access, contract)): (u64, String, Settings)| {
            Account { id: AccountId(id), name, epoch: id ^ 5, ack, role, read_access, contract, lane: some_lane(id) }
        };
        let restart = |(account, partitions)| Restart { account: AccountId(account), partitions };
        let progress = progress.into_iter().map(|(source, position, time, cut)| {
            let lane = Lane { log: LogId(source), number: position as u32 };
            let anchor = Anchor { block: Lsn(position / 2), checksum: time ^ cut };
            let held = Digest { sum: source / 3, records: cut / 5 };
            (Progress { lane, position: Lsn(position), anchor, time, held }, Lsn(cut))
        });
        SystemState {
            accounts: accounts.into_iter().map(account).collect(),
            progress: progress.collect(),
            restarts: restarts.into_iter().map(restart).collect(),
            time,
        }
    }
}

prop_compose! {
    fn any_index()(
        log in any::<u128>(), segment in any::<u32>(), counts in vec(0..20u32, 0..10), base in any::<u32>(),
        clients in vec(any_client(), 0..10), system in any_system(), offset in DATA_START..1 << 31,
    ) -> SegmentIndex {
        let mut partitions = Vec::new();
        let mut postings = Vec::new();
        for (i, count) in counts.into_iter().enumerate() {
            partitions.push(IndexPartition {
                account: AccountId(i as u64 / 3),
                partition: PartitionId(i as u128),
                first_sequence: u64::from(base),
                next_sequence: u64::from(base) + u64::from(count) * 2,
                first_posting: postings.len() as u32,
                postings: count,
                digest: Digest { sum: u128::from(base) << 70, records: u64::from(count) },
            });
            let posting = |j| Posting { offset: offset + j * 8, sequence: u64::from(base) + u64::from(j) * 2 };
            postings.extend((0..count).map(posting));
        }
        SegmentIndex { log: LogId(log), segment: SegmentId(segment), end_chain: log as u64, partitions, postings, clients, system }
    }
}

prop_compose! {
    fn any_checkpoint()(
        log in any::<u128>(), next_segment in any::<u32>(), system in any_system(),
        partitions in vec(any::<(u64, u128, u64)>(), 0..30), clients in vec(any_client(), 0..10),
    ) -> Checkpoint {
        let partition = |(account, partition, next_sequence)| PartitionRecord {
            account: AccountId(account),
            partition: PartitionId(partition),
            next_sequence,
            digest: Digest { sum: partition ^ 77, records: next_sequence },
            restarted: SegmentId(next_sequence as u32),
        };
        Checkpoint {
            log: LogId(log),
            next_segment: SegmentId(next_segment),
            chain: u64::from(next_segment) << 32,
            system,
            partitions: partitions.into_iter().map(partition).collect(),
            clients,
        }
    }
}

fn some_lane(any: u64) -> Option<Lane> {
    (any % 2 == 1).then_some(Lane { log: LogId(u128::from(any)), number: any as u32 })
}

proptest! {
    #[test]
    fn a_superblock_comes_back_as_it_went_in(superblock in any_superblock()) {
        let slot = superblock.encode().expect("it fits into a slot");
        prop_assert_eq!(slot.len(), SUPERBLOCK_SLOT);
        prop_assert_eq!(Superblock::decode(&slot), Ok(superblock));
    }

    #[test]
    fn an_index_comes_back_as_it_went_in(index in any_index()) {
        let file = index.encode();
        prop_assert!(file.len().is_multiple_of(ALIGN));
        prop_assert_eq!(SegmentIndex::decode(&file), Ok(index));
    }

    #[test]
    fn a_checkpoint_comes_back_as_it_went_in(checkpoint in any_checkpoint()) {
        let file = checkpoint.encode();
        prop_assert!(file.len().is_multiple_of(ALIGN));
        prop_assert_eq!(Checkpoint::decode(&file), Ok(checkpoint));
    }

    #[test]
    fn an_account_comes_back_as_it_went_in(id: u64, name in ".{0,200}", epoch: u64, settings in any_settings()) {
        let (ack, role, read_access, contract) = settings;
        let lane = some_lane(id);
        let account = Account { id: AccountId(id), name, epoch, ack, role, read_access, contract, lane };
        let record = encode_account(&account);
        prop_assert_eq!(decode_account(&record), Ok(account.clone()));
        prop_assert_eq!(SystemRecord::decode(&record), Ok(SystemRecord::Account(account)));
    }

    #[test]
    fn a_restart_comes_back_as_it_went_in(account: u64, partitions in vec(any_holding(), 0..20)) {
        let restart = Restart { account: AccountId(account), partitions };
        prop_assert_eq!(SystemRecord::decode(&encode_restart(&restart)), Ok(SystemRecord::Restart(restart)));
    }

    #[test]
    fn a_mark_and_a_progress_come_back_as_they_went_in(
        marked in btree_map(any::<u64>(), any::<(u128, u64)>(), 0..20), source: u128, position: u64, time: u64,
    ) {
        let digest = |(account, (sum, records))| (AccountId(account), Digest { sum, records });
        let marked: Vec<_> = marked.into_iter().map(digest).collect();
        prop_assert_eq!(SystemRecord::decode(&encode_mark(&marked)), Ok(SystemRecord::Mark(marked)));
        let lane = Lane { log: LogId(source), number: time as u32 };
        let anchor = Anchor { block: Lsn(position / 2), checksum: time ^ position };
        let held = Digest { sum: source / 3, records: time / 5 };
        let progress = Progress { lane, position: Lsn(position), anchor, time, held };
        prop_assert_eq!(SystemRecord::decode(&encode_progress(&progress)), Ok(SystemRecord::Progress(progress)));
    }
}

#[test]
fn archives_are_read_from_any_address() {
    let file = index().encode();
    for shift in 0..16 {
        let mut shifted = vec![0; shift];
        shifted.extend_from_slice(&file);
        assert_eq!(SegmentIndex::decode(&shifted[shift..]), Ok(index()), "shifted by {shift}");
    }
}

#[test]
fn a_superblock_that_outgrows_its_slot_is_refused_with_its_size() {
    let mut superblock = superblock();
    superblock.seals = (1..1000).map(seal).collect();
    refused(superblock.encode(), "too large");
    superblock.seals.truncate(150);
    assert!(superblock.encode().is_ok(), "150 seals of three disks fit");
}

#[test]
fn a_superblock_outside_its_limits_is_not_encoded() {
    let with = |change: fn(&mut Superblock)| {
        let mut superblock = superblock();
        change(&mut superblock);
        superblock.encode()
    };
    refused(with(|s| s.members[1] = s.members[3].clone()), "a member twice");
    refused(with(|s| s.epochs.swap(0, 1)), "epochs ascend");
    refused(with(|s| s.epochs[1].epoch = s.epochs[0].epoch), "epochs ascend");
    refused(with(|s| s.epochs[0].set.clear()), "replica set: disks");
    refused(with(|s| s.epochs[0].set = disks(9)), "replica set: disks");
    refused(with(|s| s.seals.swap(0, 1)), "seals ascend");
    refused(with(|s| s.seals[0].length = 0), "segment: length");
    refused(with(|s| s.seals[0].log = LogId(1)), "a seal's log");
}

#[test]
fn superblock_fields_are_checked_behind_a_right_checksum() {
    let slot = || superblock().encode().expect("it fits");
    let decode = |change: fn(&mut [u8])| Superblock::decode(&restamped(slot(), change));
    refused(decode(|b| b[8] = b'm'), "magic");
    refused(decode(|b| b[12] = 9), "version");
    refused(decode(|b| b[14] = 1), "reserved");
    refused(decode(|b| b[20] = 1), "reserved");
    refused(decode(|b| b[24] ^= 1), "superblock: log");
    refused(decode(|b| b[40] ^= 1), "superblock: disk");
    refused(decode(|b| b[56] ^= 1), "generation");
    refused(decode(|b| b[SUPERBLOCK_SLOT - 1] = 1), "padding");
    refused(decode(|b| b[16..20].fill(0xFF)), "payload");
    refused(decode(|b| b[16] -= 4), "padding");
    refused(decode(|b| b[16..20].copy_from_slice(&32_704u32.to_le_bytes())), "archive");
    refused(decode(|b| b[64..].fill(0xFF)), "padding");
}

#[test]
fn derived_fields_are_checked_behind_a_right_checksum() {
    // The directory has the envelope; the pages and the rest have their checksums in it.
    let decode = |change: fn(&mut [u8])| {
        let (mut bytes, len) = (index().encode(), 4096);
        let directory = restamped(bytes[..len].to_vec(), change);
        bytes[..len].copy_from_slice(&directory);
        SegmentIndex::decode(&bytes)
    };
    refused(decode(|b| b[8] = b'm'), "magic");
    refused(decode(|b| b[12] = 9), "version");
    refused(decode(|b| b[14] = 2), "kind");
    refused(decode(|b| b[36] = 1), "reserved");
    refused(decode(|b| b[48] = 1), "reserved");
    refused(decode(|b| *b.last_mut().expect("not empty") = 1), "padding");
    refused(decode(|b| b[40..48].fill(0xFF)), "length beyond");
    refused(decode(|b| b[40..48].copy_from_slice(&4032u64.to_le_bytes())), "index: directory");
    refused(decode(|b| b[40..48].fill(0)), "padding");
    refused(SegmentIndex::decode(&checkpoint().encode()), "kind");
    refused(Checkpoint::decode(&index().encode()), "kind");
}

fn unchecked_index(change: impl FnOnce(&mut SegmentIndex)) -> Result<()> {
    let mut index = index();
    change(&mut index);
    index.check()
}

#[test]
fn an_index_that_contradicts_itself_is_refused() {
    refused(unchecked_index(|i| i.partitions.swap(0, 1)), "partitions ascend");
    refused(unchecked_index(|i| i.partitions[1] = i.partitions[0]), "partitions ascend");
    refused(unchecked_index(|i| i.partitions[0].postings = 4), "postings are not there");
    refused(unchecked_index(|i| i.partitions[0].first_posting = u32::MAX), "postings are not there");
    refused(unchecked_index(|i| i.partitions[2].first_posting = 4), "postings are not there");
    refused(unchecked_index(|i| i.partitions[0].first_sequence = 201), "sequences ascend");
    refused(unchecked_index(|i| i.partitions[0].first_sequence = 101), "sequences ascend");
    refused(unchecked_index(|i| i.partitions[1].next_sequence = 199), "sequences ascend");
    refused(unchecked_index(|i| i.postings[1].sequence = 100), "sequences ascend");
    refused(unchecked_index(|i| i.postings[1].offset = 8191), "before the first block");
    refused(unchecked_index(|i| i.system.accounts[0].name = "x".repeat(MAX_ACCOUNT_NAME + 1)), "bytes of the name");
}

#[test]
fn an_account_record_is_exactly_one_account() {
    let record = || encode_account(&account("flights"));
    let decode = |change: fn(&mut Vec<u8>)| {
        let mut record = record();
        change(&mut record);
        decode_account(&record)
    };
    refused(decode(|r| r.truncate(55)), "account: bytes");
    refused(decode(|r| r[0] = 2), "kind");
    refused(decode(|r| r[2] = 2), "version");
    refused(decode(|r| r[4] = 4), "flags");
    refused(decode(|r| r[5] = 5), "role");
    refused(decode(|r| r[6] = 6), "bytes of the name");
    refused(decode(|r| r[7] = 0xFF), "bytes of the name");
    refused(decode(|r| r.push(0)), "bytes of the name");
    refused(decode(|r| r[32] = 5), "contract");
    refused(decode(|r| r[40..56].fill(0)), "a lane of no log");
    refused(decode(|r| r[32] = 0), "reserved");
    refused(decode(|r| r[33] = 1), "reserved");
    refused(decode(|r| r[58] = 0xFF), "UTF-8");
    assert_eq!(decode_account(&record()), Ok(account("flights")));
}

#[test]
fn a_mark_is_exactly_one_mark() {
    let decode = |change: fn(&mut Vec<u8>)| {
        let mut record = encode_mark(&marked());
        change(&mut record);
        SystemRecord::decode(&record)
    };
    refused(decode(|r| r.truncate(7)), "bytes");
    refused(decode(|r| r[0] = 9), "kind");
    refused(decode(|r| r[2] = 2), "version");
    refused(decode(|r| r[4] = 1), "zeros");
    refused(decode(|r| r.truncate(8 + 63)), "bytes of accounts");
    refused(decode(|r| r[8] = 9), "ascend");
    assert_eq!(decode(|_| {}), Ok(SystemRecord::Mark(marked())));
}

#[test]
fn a_progress_is_exactly_one_progress() {
    let decode = |change: fn(&mut Vec<u8>)| {
        let mut record = encode_progress(&progress());
        change(&mut record);
        SystemRecord::decode(&record)
    };
    refused(decode(|r| r[2] = 2), "version");
    refused(decode(|r| r.truncate(79)), "progress: bytes");
    refused(decode(|r| r.push(0)), "progress: bytes");
    assert_eq!(decode(|_| {}), Ok(SystemRecord::Progress(progress())));
}

#[test]
#[should_panic(expected = "at most 1024 bytes")]
fn an_account_with_too_long_a_name_is_not_encoded() {
    let _ = encode_account(&account(&"x".repeat(MAX_ACCOUNT_NAME + 1)));
}

#[test]
fn a_restart_is_exactly_one_restart() {
    let decode = |change: fn(&mut Vec<u8>)| {
        let mut record = encode_restart(&restart());
        change(&mut record);
        SystemRecord::decode(&record)
    };
    refused(decode(|r| r[2] = 2), "version");
    refused(decode(|r| r[4] = 1), "zeros");
    refused(decode(|r| r.truncate(15)), "restart: bytes");
    refused(decode(|r| r.push(0)), "bytes of partitions");
    refused(decode(|r| r.resize(16 + 48 * 4097, 0)), "bytes of partitions");
    assert_eq!(decode(|_| {}), Ok(SystemRecord::Restart(restart())));
}

#[test]
fn h1_the_fullest_superblock_of_sixteen_disks_fits_its_slot() {
    let set = disks(3);
    let label = "l".repeat(64);
    let member = |disk: u128| Member {
        disk: DiskId(disk),
        fault_domain: label.clone(),
        upgrade_domain: label.clone(),
        zone: label.clone(),
    };
    let epoch =
        |at: usize| EpochEntry { epoch: Epoch(at as u64), first_segment: SegmentId(at as u32), set: set.clone() };
    let seal = |at: usize| Seal { segment: SegmentId(at as u32), set: set.clone(), ..superblock().seals[0].clone() };
    let full = Superblock {
        members: (0..16).map(member).collect(),
        epochs: (0..MAX_EPOCHS).map(epoch).collect(),
        seals: (0..MAX_SEALS).map(seal).collect(),
        ..superblock()
    };
    let slot = full.encode().expect("it fits");
    assert_eq!(Superblock::decode(&slot), Ok(full.clone()));
    let twice = Superblock { epochs: (0..4 * MAX_EPOCHS).map(epoch).collect(), ..full };
    assert_eq!(twice.encode().expect_err("it does not fit").what, "superblock: too large");
}
