//! Valid encodings of every structure, drawn from a seed.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use meridian::format::{
    ALIGN, BLOCK_HEADER, BlockHeader, Checkpoint, ClientCommit, CommitOutcome, DATA_START, EpochEntry, FrameHeader,
    FrameKind, IndexPartition, Member, PartitionRecord, Posting, Seal, SegmentHeader, SegmentIndex, Superblock,
    SystemState, encode_account, encode_frame, encode_mark, encode_progress, encode_restart, finish_block, frame_len,
    padded,
};
use meridian::geo::{Anchor, Digest, Holding, Lane, Progress, Restart};
use meridian::{
    Account, AccountId, Ack, ClientId, Contract, DiskId, Epoch, Gate, LogId, Lsn, PartitionId, Role, SegmentId,
};

use crate::mutate::Random;

/// A frame.
pub fn frame(random: &mut Random) -> Vec<u8> {
    let count = 1 + random.below(6);
    let records: Vec<Bytes> = (0..count)
        .map(|_| {
            let length = random.below(300);
            Bytes::from(random.bytes(length))
        })
        .collect();
    let header = FrameHeader {
        kind: if random.below(4) == 0 { FrameKind::System } else { FrameKind::Data },
        account: AccountId(random.any()),
        partition: PartitionId(random.wide()),
        epoch: random.any(),
        first_sequence: random.any(),
        time: random.any(),
        client: ClientId(random.wide()),
        client_sequence: random.any(),
    };
    let mut out = vec![0; frame_len(&records).expect("a few short records make a frame")];
    encode_frame(&header, &records, &mut out);
    out
}

/// A block of a few frames.
pub fn block(random: &mut Random) -> Vec<u8> {
    let count = random.below(6);
    let frames: Vec<u8> = (0..count).flat_map(|_| frame(random)).collect();
    let length = BLOCK_HEADER + frames.len();
    let header = BlockHeader {
        log: LogId(random.wide()),
        epoch: Epoch(random.any()),
        segment: SegmentId(random.any() as u32),
        offset: pages(random),
        sequence: random.any(),
        chain: random.any(),
        commit: random.any(),
        frames: count as u32,
        length: length as u32,
    };
    let mut block = vec![0; padded(length)];
    block[BLOCK_HEADER..length].copy_from_slice(&frames);
    finish_block(&header, &mut block);
    block
}

/// A segment header or a seal.
pub fn segment(random: &mut Random) -> Vec<u8> {
    if random.below(2) == 0 {
        let log = LogId(random.wide());
        return seal(random, log, 17).encode().to_vec();
    }
    let header = SegmentHeader {
        log: LogId(random.wide()),
        segment: SegmentId(random.any() as u32),
        epoch: Epoch(random.any()),
        size: pages(random),
        set: set(random),
    };
    header.encode().to_vec()
}

/// A superblock slot.
pub fn superblock(random: &mut Random) -> Vec<u8> {
    let log = LogId(random.wide());
    let member = |random: &mut Random| Member {
        disk: DiskId(random.wide()),
        fault_domain: label(random),
        upgrade_domain: label(random),
        zone: label(random),
    };
    let superblock = Superblock {
        log,
        disk: DiskId(random.wide()),
        generation: random.any(),
        promised: Epoch(random.any()),
        sound: Epoch(random.any()),
        members: (0..random.below(6)).map(|_| member(random)).collect(),
        epochs: (0..random.below(6)).map(|i| epoch(random, i as u32)).collect(),
        seals: (0..random.below(6)).map(|i| seal(random, log, i as u32)).collect(),
        trim: SegmentId(random.any() as u32),
        flushed: Lsn(random.any()),
        committed: random.any(),
        clean: random.below(2) == 0,
        segment_size: pages(random),
    };
    superblock.encode().expect("a few members, epochs and seals fit into a slot")
}

/// An index.
pub fn index(random: &mut Random) -> Vec<u8> {
    let mut partitions = Vec::new();
    let mut postings = Vec::new();
    for i in 0..random.below(8) {
        let count = random.below(8) as u32;
        let first_sequence = u64::from(random.any() as u32);
        partitions.push(IndexPartition {
            account: AccountId(1),
            partition: PartitionId(i as u128),
            first_sequence,
            next_sequence: first_sequence + u64::from(count),
            first_posting: postings.len() as u32,
            postings: count,
            digest: digest(random),
        });
        for j in 0..count {
            postings.push(Posting { offset: pages(random) + 8 * j, sequence: first_sequence + u64::from(j) });
        }
    }
    let index = SegmentIndex {
        log: LogId(random.wide()),
        segment: SegmentId(random.any() as u32),
        end_chain: random.any(),
        partitions,
        postings,
        clients: (0..random.below(6)).map(|_| client(random)).collect(),
        system: system(random),
    };
    index.encode()
}

fn digest(random: &mut Random) -> Digest {
    Digest { sum: random.wide(), records: random.any() }
}

/// An account with any settings.
pub(crate) fn account(random: &mut Random) -> Account {
    let gate = [Gate::Open, Gate::Wait, Gate::Throttle, Gate::Refuse][random.below(4)];
    let contract = Contract { most: Duration::from_nanos(random.any()), then: gate };
    Account {
        id: AccountId(random.any()),
        name: label(random),
        epoch: random.any(),
        ack: [Ack::Quorum, Ack::All][random.below(2)],
        role: [Role::Primary, Role::Local, Role::Secondary, Role::Bootstrap, Role::Dropped][random.below(5)],
        read_access: random.below(2) == 0,
        contract: (random.below(2) == 0).then_some(contract),
        lane: (random.below(2) == 0).then_some(Lane { log: LogId(random.wide() | 1), number: random.any() as u32 }),
    }
}

fn progress(random: &mut Random) -> Progress {
    let lane = Lane { log: LogId(random.wide()), number: random.any() as u32 };
    let anchor = Anchor { block: Lsn(random.any()), checksum: random.any() };
    let held = Digest { sum: random.wide(), records: random.any() };
    Progress { lane, position: Lsn(random.any()), anchor, time: random.any(), held }
}

pub(crate) fn holding(random: &mut Random) -> Holding {
    Holding { partition: PartitionId(random.wide()), next_sequence: random.any(), digest: digest(random) }
}

fn restart(random: &mut Random, account: u64) -> Restart {
    let partitions = (0..1 + random.below(4)).map(|_| holding(random)).collect();
    Restart { account: AccountId(account), partitions }
}

fn system(random: &mut Random) -> SystemState {
    SystemState {
        accounts: (0..random.below(6)).map(|_| account(random)).collect(),
        progress: (0..random.below(4)).map(|_| (progress(random), Lsn(random.any()))).collect(),
        restarts: (0..random.below(3) as u64).map(|account| restart(random, account)).collect(),
        time: random.any(),
    }
}

/// A system record of any kind, in its frame.
pub fn system_record(random: &mut Random) -> Vec<u8> {
    let record = match random.below(4) {
        0 => encode_account(&account(random)),
        1 => encode_progress(&progress(random)),
        2 => encode_restart(&restart(random, 9)),
        _ => {
            let marked: BTreeMap<u64, Digest> = (0..random.below(9)).map(|_| (random.any(), digest(random))).collect();
            encode_mark(&marked.into_iter().map(|(account, digest)| (AccountId(account), digest)).collect::<Vec<_>>())
        }
    };
    let header = FrameHeader {
        kind: FrameKind::System,
        account: AccountId::SYSTEM,
        partition: PartitionId(0),
        epoch: 0,
        first_sequence: random.any(),
        time: random.any(),
        client: ClientId::NONE,
        client_sequence: 0,
    };
    let records = [Bytes::from(record)];
    let mut out = vec![0; frame_len(&records).expect("a small record")];
    encode_frame(&header, &records, &mut out);
    out
}

/// A checkpoint.
pub fn checkpoint(random: &mut Random) -> Vec<u8> {
    let partition = |random: &mut Random| PartitionRecord {
        account: AccountId(random.any()),
        partition: PartitionId(random.wide()),
        next_sequence: random.any(),
        digest: digest(random),
        restarted: SegmentId(random.any() as u32),
    };
    let checkpoint = Checkpoint {
        log: LogId(random.wide()),
        next_segment: SegmentId(random.any() as u32),
        chain: random.any(),
        system: system(random),
        partitions: (0..random.below(20)).map(|_| partition(random)).collect(),
        clients: (0..random.below(6)).map(|_| client(random)).collect(),
    };
    checkpoint.encode()
}

fn seal(random: &mut Random, log: LogId, segment: u32) -> Seal {
    let base_sequence = random.any() >> 1;
    Seal {
        log,
        segment: SegmentId(segment),
        epoch: Epoch(random.any()),
        length: pages(random),
        base_sequence,
        base_chain: random.any(),
        next_sequence: base_sequence + random.below(1000) as u64,
        end_chain: random.any(),
        transactions: random.any(),
        records: random.any(),
        set: set(random),
    }
}

fn epoch(random: &mut Random, number: u32) -> EpochEntry {
    EpochEntry { epoch: Epoch(u64::from(number)), first_segment: SegmentId(number * 7), set: set(random) }
}

fn client(random: &mut Random) -> ClientCommit {
    let outcome = CommitOutcome {
        sequence: random.any(),
        partition: PartitionId(random.wide()),
        lsn: Lsn(random.any()),
        first_sequence: random.any(),
        records: random.any() as u32,
    };
    ClientCommit { account: AccountId(random.any()), client: ClientId(random.wide()), outcome }
}

/// 128 random bits each: two alike are not to be expected.
fn set(random: &mut Random) -> Vec<DiskId> {
    (0..1 + random.below(8)).map(|_| DiskId(random.wide())).collect()
}

/// An aligned byte count behind the two pages of a segment file.
fn pages(random: &mut Random) -> u32 {
    DATA_START + (random.below(1 << 16) * ALIGN) as u32
}

fn label(random: &mut Random) -> String {
    (0..random.below(40)).map(|_| char::from(b'a' + random.below(26) as u8)).collect()
}
