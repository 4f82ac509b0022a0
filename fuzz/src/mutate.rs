//! Changes to valid encodings: what disks, cables and enemies do to bytes, drawn from a seed.

/// A small generator of random numbers (SplitMix64): the same seed gives the same numbers everywhere.
pub struct Random(u64);

impl Random {
    /// The generator for a seed.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, or 0 if `end` is 0. Slightly uneven, which does not matter here.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.any() % end as u64) as usize }
    }

    /// Any 128 bits.
    pub fn wide(&mut self) -> u128 {
        u128::from(self.any()) << 64 | u128::from(self.any())
    }

    /// `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.any() as u8).collect()
    }
}

/// Numbers that overflow, wrap, or point just outside.
const EDGES: [u64; 14] =
    [0, 1, 7, 8, 87, 127, 4095, 4096, 4097, 1 << 26, (1 << 31) - 1, 1 << 31, u32::MAX as u64, u64::MAX];

/// Applies one to four changes.
pub fn mutate(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..1 + random.below(4) {
        change(random, bytes, other);
    }
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = place(random, bytes.len());
    match random.below(9) {
        0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        2 if !bytes.is_empty() => bytes[at] = random.any() as u8,
        3 | 4 => {
            let edge = EDGES[random.below(EDGES.len())];
            let number = if random.below(3) == 0 { random.any() } else { edge.wrapping_add(random.below(3) as u64) };
            let width = [1, 2, 4, 8][random.below(4)];
            overwrite(bytes, at & !(width - 1), &number.to_le_bytes()[..width]);
        }
        5 => bytes.truncate(at),
        6 => {
            let more = random.below(5000);
            bytes.extend(random.bytes(more));
        }
        7 => {
            // A sector of another write, at the place where that one has it, or somewhere else.
            let from = (place(random, other.len()) / 512) * 512;
            let to = if random.below(2) == 0 { from } else { (at / 512) * 512 };
            let sector = &other[from..other.len().min(from + 512)];
            overwrite(bytes, to, sector);
        }
        _ => {
            let end = bytes.len().min(at + 1 + random.below(512));
            bytes[at..end].fill(0);
        }
    }
}

/// Half of all places are among the first bytes, where the headers are.
fn place(random: &mut Random, length: usize) -> usize {
    let first = if random.below(2) == 0 { length.min(200) } else { length };
    random.below(first)
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    if let Some(room) = bytes.get_mut(at..) {
        let length = room.len().min(with.len());
        room[..length].copy_from_slice(&with[..length]);
    }
}
