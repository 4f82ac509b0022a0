//! Segment headers and seals.

use proptest::prelude::*;

use super::*;

prop_compose! {
    fn any_set()(count in 1..=MAX_SET, first in any::<u128>()) -> Vec<DiskId> {
        (0..count as u128).map(|i| DiskId(first.wrapping_add(i))).collect()
    }
}

proptest! {
    #[test]
    fn a_segment_header_comes_back_as_it_went_in(
        log in any::<u128>(), segment in any::<u32>(), epoch in any::<u64>(), pages in 2..1u32 << 20, set in any_set(),
    ) {
        let header =
            SegmentHeader { log: LogId(log), segment: SegmentId(segment), epoch: Epoch(epoch), size: pages * 4096, set };
        prop_assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn a_seal_comes_back_as_it_went_in(
        log in any::<u128>(), segment in any::<u32>(), epoch in any::<u64>(), pages in 2..1u32 << 20, set in any_set(),
        numbers in any::<[u64; 6]>(),
    ) {
        let [one, another, base_chain, end_chain, transactions, records] = numbers;
        let seal = Seal {
            log: LogId(log),
            segment: SegmentId(segment),
            epoch: Epoch(epoch),
            length: pages * 4096,
            base_sequence: one.min(another),
            base_chain,
            next_sequence: one.max(another),
            end_chain,
            transactions,
            records,
            set,
        };
        prop_assert_eq!(Seal::decode(&seal.encode()), Ok(seal));
    }
}

#[test]
fn page_fields_are_checked_behind_a_right_checksum() {
    let header = |change: fn(&mut [u8])| SegmentHeader::decode(&restamped(segment_header().encode().to_vec(), change));
    refused(header(|b| b[8] = b'm'), "magic");
    refused(header(|b| b[12] = 9), "version");
    refused(header(|b| b[14] = 0), "replica set: disks");
    refused(header(|b| b[14] = 9), "replica set: disks");
    refused(header(|b| b[14] = 0xFF), "replica set: disks");
    refused(header(|b| b[14] = 2), "padding");
    refused(header(|b| b[15] = 1), "reserved");
    refused(header(|b| b[4095] = 1), "padding");
    refused(header(|b| b[44] = 1), "multiple of 4096");
    refused(header(|b| b[44..48].fill(0)), "segment: length");
    refused(header(|b| b.copy_within(48..64, 80)), "a disk twice");
    let sealed = |change: fn(&mut [u8])| Seal::decode(&restamped(seal(17).encode().to_vec(), change));
    refused(sealed(|b| b[64..72].fill(0)), "next sequence");
    refused(sealed(|b| b[44..48].fill(0)), "segment: length");
    refused(sealed(|b| b.copy_within(96..112, 128)), "a disk twice");
    refused(sealed(|b| b[144] = 1), "padding");
}

#[test]
#[should_panic(expected = "replica set: disks")]
fn a_header_without_disks_is_not_encoded() {
    let _ = SegmentHeader { set: vec![], ..segment_header() }.encode();
}

#[test]
#[should_panic(expected = "segment: length")]
fn a_seal_before_the_first_block_is_not_encoded() {
    let _ = Seal { length: 4096, ..seal(17) }.encode();
}
