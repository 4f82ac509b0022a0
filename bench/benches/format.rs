//! What the format costs each record, apart from disks and threads: a frame is encoded, a block is finished, a block is verified.
#![allow(missing_docs, reason = "criterion's macros write public items")]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use meridian::format::{
    BLOCK_HEADER, Block, BlockHeader, DATA_START, FrameHeader, FrameKind, encode_frame, finish_block, frame_len, padded,
};
use meridian::{AccountId, ClientId, Epoch, LogId, PartitionId, SegmentId};

/// Records of the size that the README measures with, and so many as a block takes of them.
const RECORD: usize = 1024;
const FRAMES: u32 = 256;

fn frame_header(number: u64) -> FrameHeader {
    FrameHeader {
        kind: FrameKind::Data,
        account: AccountId(1),
        partition: PartitionId(u128::from(number % 16)),
        epoch: 1,
        first_sequence: number,
        time: 1,
        client: ClientId(7),
        client_sequence: number,
    }
}

fn block_header(length: usize) -> BlockHeader {
    BlockHeader {
        log: LogId(1),
        epoch: Epoch(1),
        segment: SegmentId(1),
        offset: DATA_START,
        sequence: 1,
        chain: 0,
        commit: 0,
        frames: FRAMES,
        length: length as u32,
    }
}

fn format(criterion: &mut Criterion) {
    let records = [Bytes::from(vec![0xA5; RECORD])];
    let len = frame_len(&records).expect("one record fits");
    let mut frame = vec![0; len];
    let mut group = criterion.benchmark_group("format");
    group.throughput(Throughput::Bytes(len as u64));
    group.bench_function("encode a frame", |bencher| {
        bencher.iter(|| encode_frame(black_box(&frame_header(1)), black_box(&records), &mut frame));
    });

    let length = BLOCK_HEADER + FRAMES as usize * len;
    let mut block = vec![0; padded(length)];
    for (number, out) in block[BLOCK_HEADER..length].chunks_exact_mut(len).enumerate() {
        encode_frame(&frame_header(number as u64), &records, out);
    }
    group.throughput(Throughput::Bytes(block.len() as u64));
    group.bench_function("finish a block", |bencher| {
        bencher.iter(|| finish_block(black_box(&block_header(length)), &mut block));
    });
    group.bench_function("verify a block", |bencher| {
        bencher.iter(|| Block::verify(black_box(&block)).expect("it was just finished").checksum());
    });
    group.finish();
}

criterion_group!(benches, format);
criterion_main!(benches);
