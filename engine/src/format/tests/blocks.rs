//! Frames and blocks.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn any_records() -> impl Strategy<Value = Vec<Bytes>> {
    vec(vec(any::<u8>(), 0..200).prop_map(Bytes::from), 1..20)
}

prop_compose! {
    fn any_header()(
        system in any::<bool>(),
        account in any::<u64>(),
        partition in any::<u128>(),
        numbers in any::<[u64; 4]>(),
        client in any::<u128>(),
    ) -> FrameHeader {
        let [epoch, first_sequence, time, client_sequence] = numbers;
        FrameHeader {
            kind: if system { FrameKind::System } else { FrameKind::Data },
            account: AccountId(account),
            partition: PartitionId(partition),
            epoch,
            first_sequence,
            time,
            client: ClientId(client),
            client_sequence,
        }
    }
}

proptest! {
    #[test]
    fn a_frame_comes_back_as_it_went_in(header in any_header(), records in any_records()) {
        let bytes = encoded_frame(&header, &records);
        prop_assert_eq!(peek_frame_len(&bytes), Some(bytes.len()));
        let frame = Frame::parse(&bytes).expect("it was just encoded");
        prop_assert_eq!(frame.header(), header);
        prop_assert_eq!(frame.count(), records.len());
        prop_assert_eq!(frame.len(), bytes.len());
        prop_assert_eq!(frame.bytes(), &bytes[..]);
        prop_assert_eq!(frame.records().len(), records.len());
        prop_assert!(frame.records().eq(records.iter().map(|record| &record[..])));
        for (i, record) in records.iter().enumerate() {
            prop_assert_eq!(frame.record(i), Some(&record[..]));
        }
        prop_assert_eq!(frame.record(records.len()), None);
    }

    #[test]
    fn a_block_comes_back_as_it_went_in(
        transactions in vec((any_header(), any_records()), 0..12),
        numbers in any::<[u64; 4]>(),
        log in any::<u128>(),
        page in 2..1000u32,
    ) {
        let frames: Vec<Vec<u8>> = transactions.iter().map(|(header, records)| encoded_frame(header, records)).collect();
        let length = BLOCK_HEADER + frames.iter().map(Vec::len).sum::<usize>();
        let [epoch, sequence, chain, commit] = numbers;
        let header = BlockHeader {
            log: LogId(log),
            epoch: Epoch(epoch),
            segment: SegmentId(page),
            offset: page * ALIGN as u32,
            sequence,
            chain,
            commit,
            frames: frames.len() as u32,
            length: length as u32,
        };
        let mut bytes = vec![0xA5; padded(length)];
        bytes[BLOCK_HEADER..length].copy_from_slice(&frames.concat());
        let checksum = finish_block(&header, &mut bytes);
        prop_assert_eq!(peek_block_len(&bytes[..ALIGN]), Some(bytes.len()));

        let block = Block::verify_at(&bytes, header.log, header.epoch, header.segment, header.offset)
            .expect("it was just encoded");
        prop_assert_eq!(block.header(), header);
        prop_assert_eq!(block.checksum(), checksum);
        prop_assert_eq!(block.padded_len(), bytes.len());
        prop_assert_eq!(block.frames().count(), frames.len());
        for ((at, frame), encoded) in block.frames().zip(&frames) {
            prop_assert_eq!(frame.bytes(), &encoded[..]);
            prop_assert_eq!(&bytes[at as usize..at as usize + frame.len()], &encoded[..]);
            prop_assert_eq!(frame.header(), Frame::parse(encoded).expect("it was just encoded").header());
        }
    }

    /// A power loss keeps some sectors of the new block and leaves, in the others, what the recycled file held.
    #[test]
    fn a_torn_block_is_detected(sectors in vec(any::<bool>(), 24), old_is_a_block in any::<bool>()) {
        let new = encoded_block(&[encoded_frame(&frame_header(1), &records(&[3 * ALIGN - 400]))]);
        prop_assert_eq!(new.len(), 24 * 512);
        let mut torn = if old_is_a_block {
            encoded_block(&[encoded_frame(&frame_header(2), &records(&[1, 3 * ALIGN - 400]))])
        } else {
            vec![0; new.len()]
        };
        let old = torn.clone();
        for (i, _) in sectors.iter().enumerate().filter(|(_, kept)| **kept) {
            torn[i * 512..(i + 1) * 512].copy_from_slice(&new[i * 512..(i + 1) * 512]);
        }
        let whole = torn == new || (old_is_a_block && torn == old);
        prop_assert_eq!(Block::verify(&torn).is_ok(), whole);
    }
}

#[test]
fn a_frame_has_at_least_one_and_at_most_65535_records() {
    assert_eq!(frame_len(&[]), None);
    let most = vec![Bytes::new(); MAX_RECORDS];
    let bytes = encoded_frame(&frame_header(1), &most);
    assert_eq!(Frame::parse(&bytes).expect("it was just encoded").count(), MAX_RECORDS);
    assert_eq!(frame_len(&vec![Bytes::new(); MAX_RECORDS + 1]), None);
}

#[test]
fn a_frame_is_refused_beyond_its_largest_size_without_being_built() {
    // One megabyte, referred to many times: the sum of the lengths counts, not the memory.
    let megabyte = Bytes::from(vec![0; 1 << 20]);
    assert!(frame_len(&vec![megabyte.clone(); 2047]).is_some());
    assert_eq!(frame_len(&vec![megabyte; 2048]), None);
}

#[test]
fn an_encoded_frame_is_padded_to_eight_with_zeros() {
    for length in 0..17 {
        let bytes = encoded_frame(&frame_header(1), &records(&[length]));
        let used = FRAME_HEADER + 4 + length;
        assert_eq!(bytes.len(), used.next_multiple_of(8));
        assert!(bytes[used..].iter().all(|byte| *byte == 0));
    }
}

#[test]
#[should_panic(expected = "exactly frame_len")]
fn encoding_a_frame_into_a_longer_buffer_panics() {
    encode_frame(&frame_header(1), &records(&[4]), &mut [0; 104]);
}

#[test]
#[should_panic(expected = "mid > len")]
fn encoding_a_frame_into_a_shorter_buffer_panics() {
    encode_frame(&frame_header(1), &records(&[40]), &mut [0; 104]);
}

#[test]
fn frame_fields_are_checked_behind_a_right_checksum() {
    let frame = || encoded_frame(&frame_header(1), &records(&[5, 3, 3]));
    let parse = |change: fn(&mut [u8])| Frame::parse(&restamped(frame(), change)).map(drop);
    refused(parse(|b| b[15] = 2), "version");
    refused(parse(|b| b[14] = 2), "kind");
    refused(parse(|b| b[12] = 0), "frame: records");
    refused(parse(|b| b[12] = 200), "bytes of record lengths");
    refused(parse(|b| b[88] = 20), "sum of the record lengths");
    refused(parse(|b| b[91] = 0xFF), "sum of the record lengths");
    refused(parse(|b| b[111] = 1), "padding");
    refused(parse(|b| b[8] -= 1), "multiple of 8");
    refused(parse(|b| b[8] = 80), "frame: length");
    refused(parse(|b| b[11] = 0xFF), "length beyond");
    assert_eq!(frame().len(), 112, "the offsets above are those of this frame");
}

#[test]
fn a_block_in_the_wrong_place_does_not_verify() {
    let bytes = sample_block();
    let BlockHeader { log, epoch, segment, offset, .. } = block_header(0, 0);
    assert!(Block::verify_at(&bytes, log, epoch, segment, offset).is_ok());
    refused(Block::verify_at(&bytes, LogId(log.0 ^ (1 << 127)), epoch, segment, offset), "block: log");
    refused(Block::verify_at(&bytes, log, Epoch(epoch.0 + 1), segment, offset), "block: epoch");
    refused(Block::verify_at(&bytes, log, epoch, SegmentId(segment.0 + 1), offset), "block: segment");
    refused(Block::verify_at(&bytes, log, epoch, segment, offset + 4096), "block: offset");
}

#[test]
fn the_chain_covers_all_of_the_block_before() {
    let frames = [encoded_frame(&frame_header(1), &records(&[8]))];
    let mut other = block_header(1, BLOCK_HEADER + frames[0].len());
    let mut bytes = encoded_block(&frames);
    let checksum = Block::verify(&bytes).expect("it was just encoded").checksum();
    other.chain ^= 1;
    assert_ne!(finish_block(&other, &mut bytes), checksum, "a block's checksum depends on all history");
}

#[test]
fn a_block_without_frames_is_a_block() {
    let bytes = encoded_block(&[]);
    let block = Block::verify(&bytes).expect("it was just encoded");
    assert_eq!((block.frames().count(), block.padded_len()), (0, ALIGN));
}

#[test]
fn block_fields_are_checked_behind_a_right_checksum() {
    let verify = |change: fn(&mut [u8])| Block::verify(&restamped_block(sample_block(), change)).map(drop);
    refused(verify(|b| b[8] = b'm'), "magic");
    refused(verify(|b| b[12] = 9), "version");
    refused(verify(|b| b[14] = 1), "reserved");
    refused(verify(|b| b[100] = 1), "reserved");
    refused(verify(|b| *b.last_mut().expect("not empty") = 1), "padding");
    refused(verify(|b| b[72] = 1), "number of frames");
    refused(verify(|b| b[72] = 3), "number of frames");
    refused(verify(|b| b[44] = 1), "multiple of 4096");
    refused(verify(|b| b[44..48].fill(0)), "block: offset");
    refused(verify(|b| b[76..80].copy_from_slice(&127u32.to_le_bytes())), "block: length");
    refused(verify(|b| b[76..80].copy_from_slice(&4097u32.to_le_bytes())), "length beyond");
    refused(verify(|b| b[76..80].fill(0xFF)), "block: length");
    // The used length ends inside the last frame, or behind it.
    refused(verify(|b| b[76] -= 8), "frame: length beyond");
    refused(verify(|b| b[76] += 8), "frame: bytes for a header");
    // A payload is its frame's checksum's business.
    let error = Block::verify(&restamped_block(sample_block(), |b| b[BLOCK_HEADER + 100] ^= 1)).expect_err("flipped");
    assert_eq!((error.what, error.at), ("frame: checksum", BLOCK_HEADER));
    // A frame that verifies, but is not the one that was in this block.
    let other = |block: &mut [u8]| {
        let length = peek_frame_len(&block[BLOCK_HEADER..]).expect("a frame");
        let frame = &mut block[BLOCK_HEADER..BLOCK_HEADER + length];
        frame[80] ^= 1;
        codec::stamp(frame);
    };
    let mut block = sample_block();
    other(&mut block);
    refused(Block::verify(&block).map(drop), "block: checksum");
}

#[test]
fn a_page_that_is_no_block_start_claims_no_length() {
    let bytes = sample_block();
    assert_eq!(peek_block_len(&bytes), Some(ALIGN));
    assert_eq!(peek_block_len(&bytes[..BLOCK_HEADER - 1]), None);
    assert_eq!(peek_block_len(&[0; ALIGN]), None);
    assert_eq!(peek_block_len(&segment_header().encode()), None);
    for (length, claim) in [(127, None), (128, Some(ALIGN)), (MAX_BLOCK, Some(MAX_BLOCK)), (MAX_BLOCK + 1, None)] {
        let mut page = bytes.clone();
        page[76..80].copy_from_slice(&(length as u32).to_le_bytes());
        assert_eq!(peek_block_len(&page), claim, "length {length}");
    }
}

#[test]
fn a_frame_length_is_peeked_only_if_it_fits() {
    let bytes = encoded_frame(&frame_header(1), &records(&[4]));
    assert_eq!(peek_frame_len(&bytes), Some(96));
    assert_eq!(peek_frame_len(&bytes[..95]), None);
    assert_eq!(peek_frame_len(&bytes[..11]), None);
    assert_eq!(peek_frame_len(&[]), None);
    assert_eq!(peek_frame_len(&[0; 96]), None);
}

#[test]
#[should_panic(expected = "the buffer is the block")]
fn finishing_a_block_in_a_buffer_of_another_length_panics() {
    finish_block(&block_header(0, BLOCK_HEADER), &mut [0; 2 * ALIGN]);
}

#[test]
#[should_panic(expected = "blocks start at multiples")]
fn finishing_a_block_over_the_segment_header_panics() {
    let header = BlockHeader { offset: 4096, ..block_header(0, BLOCK_HEADER) };
    finish_block(&header, &mut [0; ALIGN]);
}
