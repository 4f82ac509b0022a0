//! Bytes that nobody encoded: decoders answer, they do not panic.
//!
//! The checksum is made right after each change, because a hostile writer would: what is behind it must hold by itself.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Values that overflow, wrap, or point just outside.
fn hostile_number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(u64::from(u32::MAX)),
        Just(1 << 31),
        Just((1 << 31) - 1),
        Just(4095),
        Just(4097),
        any::<u64>(),
        (0..200u64),
    ]
}

/// Feeds the bytes to everything that reads, and uses what came out.
fn read_all(bytes: &[u8]) {
    let _ = (peek_frame_len(bytes), peek_block_len(bytes));
    let _ = (SegmentHeader::decode(bytes), Seal::decode(bytes), Superblock::decode(bytes));
    let _ = (SegmentIndex::decode(bytes), Checkpoint::decode(bytes), SystemRecord::decode(bytes));
    if let Ok(frame) = Frame::parse(bytes) {
        assert!(frame.len() <= bytes.len());
        assert_eq!(frame.records().count(), frame.count());
    }
    if let Ok(block) = Block::verify(bytes) {
        assert!(block.padded_len() <= bytes.len());
        assert_eq!(block.frames().count(), block.header().frames as usize);
    }
}

proptest! {
    #[test]
    fn noise_is_refused(bytes in vec(any::<u8>(), 0..6000)) {
        read_all(&bytes);
        for (name, _, decode) in structures() {
            prop_assert!(decode(&bytes).is_err(), "noise was read as a {}", name);
        }
    }

    /// Fields of every structure, most often in its header, are replaced under a right checksum.
    #[test]
    fn changed_fields_under_a_right_checksum_are_survived(
        structure in 0..7usize,
        changes in vec((prop_oneof![8..160usize, 8..4096usize], 1..=8usize, hostile_number()), 1..4),
    ) {
        let (name, bytes, _) = structures().swap_remove(structure);
        let change = |bytes: &mut [u8]| {
            for (at, width, value) in changes {
                let at = at % (bytes.len() - 8);
                bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
        };
        let changed = if name == "block" { restamped_block(bytes, change) } else { restamped(bytes, change) };
        read_all(&changed);
    }

    /// As above, inside the archives, whose relative pointers and lengths are the most to lie about.
    #[test]
    fn changed_archives_under_a_right_checksum_are_survived(
        structure in 4..7usize,
        changes in vec((any::<u16>(), hostile_number()), 1..4),
    ) {
        let (_, bytes, _) = structures().swap_remove(structure);
        let used = bytes.iter().rposition(|byte| *byte != 0).expect("not all zero");
        let changed = restamped(bytes, |bytes| {
            for (at, value) in changes {
                let at = 64 + usize::from(at) % (used - 64);
                bytes[at..at + 4].copy_from_slice(&value.to_le_bytes()[..4]);
            }
        });
        read_all(&changed);
    }
}
