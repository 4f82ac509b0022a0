//! Memory for blocks: a ring from which they are cut in log order, and to which they return in about the same order.
//!
//! One mapping on huge pages: a durable write then finds its pages in one piece, which costs the kernel and the device a fraction
//! of what scattered 4 KiB pages do (ADR 0015). A block takes no more of it than it needs, so a small block does not keep a large buffer while it stays hot.

use std::collections::VecDeque;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;

use super::Buffer;

/// What the system calls a huge page, and how such a mapping has to lie.
const HUGE: usize = 2 << 20;
/// So many pieces may stay behind while the ring goes on around them: those that a disk that hangs has in the kernel, and those
/// that readers keep.
const MAX_ASIDE: usize = 64;

/// A ring of memory of fixed capacity. Clones are the same ring.
#[derive(Clone)]
pub struct Arena {
    ring: Arc<Ring>,
}

struct Ring {
    /// Written through `start` only, piece by piece.
    _map: MmapMut,
    start: NonNull<u8>,
    capacity: usize,
    pieces: Mutex<Pieces>,
}

// SAFETY: `start` points into the mapping that the ring owns; what it points to is reached only through pieces, which do not
// overlap while they live, and each of which is one `Buffer`'s.
unsafe impl Send for Ring {}
// SAFETY: as above; the bookkeeping is behind a lock.
unsafe impl Sync for Ring {}

/// The pieces that were taken and could not be given back yet, oldest first.
#[derive(Default)]
struct Pieces {
    taken: VecDeque<Taken>,
    /// The number of the first of them.
    first: u64,
    /// Where the last one ends.
    tail: usize,
    /// Old pieces that are kept for long: the ring goes around them.
    aside: Vec<Aside>,
}

/// A piece that the ring goes around.
struct Aside {
    number: u64,
    start: usize,
    end: usize,
}

struct Taken {
    start: usize,
    len: usize,
    /// Its buffer is gone, an older one's is not.
    free: bool,
}

impl Arena {
    /// A ring of `capacity` bytes. Memory is used as the ring is gone around for the first time.
    ///
    /// # Errors
    /// `OutOfMemory` and the like, from the system.
    ///
    /// # Panics
    /// When `capacity` is 0.
    pub fn new(capacity: usize) -> io::Result<Arena> {
        assert!(capacity > 0, "a ring holds something");
        // Small rings are not worth a huge page; large ones begin at one.
        let huge = capacity >= HUGE;
        let mut map = MmapMut::map_anon(if huge { capacity + HUGE } else { capacity })?;
        let skip = if huge { map.as_ptr().align_offset(HUGE) } else { 0 };
        #[cfg(target_os = "linux")]
        if huge {
            // Refused where the system has no huge pages: plain ones do as well, at a price.
            let _plain = map.advise_range(memmap2::Advice::HugePage, skip, capacity);
        }
        // SAFETY: `skip` lies inside the mapping, whose pointer is not null; it may reach all of it.
        let start = unsafe { NonNull::new_unchecked(map.as_mut_ptr().add(skip)) };
        Ok(Arena { ring: Arc::new(Ring { _map: map, start, capacity, pieces: Mutex::default() }) })
    }

    /// A buffer of `len` bytes with an old content: the next piece of the ring, or memory of its own where the ring has no
    /// such piece free.
    ///
    /// # Errors
    /// As [`Buffer::zeroed`].
    ///
    /// # Panics
    /// When `len` is 0.
    pub fn take(&self, len: usize) -> io::Result<Buffer> {
        match self.ring.take(len) {
            Some(piece) => Ok(Buffer::of_ring(piece)),
            None => Buffer::zeroed(len),
        }
    }
}

impl Ring {
    fn pieces(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Ring>, len: usize) -> Option<Piece> {
        assert!(len > 0, "a buffer holds something");
        let mut pieces = self.pieces();
        let start = loop {
            match pieces.place(len, self.capacity) {
                Some(start) => break start,
                None if pieces.set_aside() => {}
                None => return None,
            }
        };
        let number = pieces.first + pieces.taken.len() as u64;
        pieces.taken.push_back(Taken { start, len, free: false });
        pieces.tail = start + len;
        // SAFETY: `place` returns a place with `len` bytes behind it inside the mapping.
        let at = unsafe { self.start.add(start) };
        Some(Piece { ring: Arc::clone(self), number, at, len })
    }
}

impl Pieces {
    /// Where a piece of `len` bytes begins after the last one, or in front of the oldest, and touches none that is aside.
    fn place(&self, len: usize, capacity: usize) -> Option<usize> {
        let Some(oldest) = self.taken.front().map(|taken| taken.start) else {
            return self.fit(0, capacity, len);
        };
        // Never up to the oldest's first byte: then the ring would look empty after the last one.
        if self.tail > oldest {
            return self.fit(self.tail, capacity, len).or_else(|| self.fit(0, oldest.saturating_sub(1), len));
        }
        self.fit(self.tail, oldest.saturating_sub(1), len)
    }

    /// The first place of `len` bytes from `start` to `end` between the pieces that are aside.
    fn fit(&self, start: usize, end: usize, len: usize) -> Option<usize> {
        let mut at = start;
        while at + len <= end {
            let in_the_way = self.aside.iter().filter(|aside| aside.start < at + len && at < aside.end);
            match in_the_way.map(|aside| aside.end).max() {
                Some(past) => at = past,
                None => return Some(at),
            }
        }
        None
    }

    /// Goes around the oldest piece from now on; false where that is not possible.
    fn set_aside(&mut self) -> bool {
        if self.aside.len() >= MAX_ASIDE {
            return false;
        }
        let Some(Taken { start, len, .. }) = self.taken.pop_front() else { return false };
        self.aside.push(Aside { number: self.first, start, end: start + len });
        self.first += 1;
        self.forget_free();
        true
    }

    fn forget_free(&mut self) {
        while self.taken.front().is_some_and(|taken| taken.free) {
            self.taken.pop_front();
            self.first += 1;
        }
    }

    fn give_back(&mut self, number: u64) {
        if number < self.first {
            self.aside.retain(|aside| aside.number != number);
            return;
        }
        self.taken[(number - self.first) as usize].free = true;
        self.forget_free();
    }
}

/// A part of a ring that is one buffer's until it is dropped.
pub(super) struct Piece {
    ring: Arc<Ring>,
    number: u64,
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is this piece's alone as long as it lives.
unsafe impl Send for Piece {}
// SAFETY: as above; a shared piece is only read.
unsafe impl Sync for Piece {}

impl Piece {
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes from `at` lie in the mapping, which lives as long as the ring, were mapped as zeroes, and are no other piece's.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and this piece is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }

    /// Gives back what lies behind `len` bytes, if no later piece was taken.
    pub(super) fn shrink(&mut self, len: usize) {
        assert!(len <= self.len, "{len} bytes of {}", self.len);
        let mut pieces = self.ring.pieces();
        if self.number >= pieces.first && self.number + 1 == pieces.first + pieces.taken.len() as u64 {
            pieces.tail -= self.len - len;
            if let Some(last) = pieces.taken.back_mut() {
                last.len = len;
            }
            self.len = len;
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.ring.pieces().give_back(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(buffer: &Buffer, arena: &Arena) -> usize {
        buffer.as_ptr() as usize - arena.ring.start.as_ptr() as usize
    }

    #[test]
    fn pieces_follow_one_another_and_the_ring_is_gone_around() {
        let arena = Arena::new(64 << 10).expect("map");
        let mut first = arena.take(16 << 10).expect("a piece");
        first.shrink(4 << 10);
        let second = arena.take(32 << 10).expect("a piece");
        assert_eq!((place(&first, &arena), place(&second, &arena)), (0, 4 << 10));
        drop(first);
        let third = arena.take(28 << 10).expect("a piece");
        assert_eq!(place(&third, &arena), 36 << 10, "to the ring's last byte");
        drop(second);
        let fourth = arena.take(32 << 10).expect("a piece");
        assert_eq!(place(&fourth, &arena), 0, "around");
        assert_eq!((fourth.capacity(), third.capacity()), (32 << 10, 28 << 10));
    }

    /// The oldest pieces are those of a disk that hangs: whatever is taken and given back after them, no byte is two pieces'.
    #[test]
    fn h3_the_ring_goes_around_pieces_that_stay() {
        let arena = Arena::new(64 << 10).expect("map");
        let stay: Vec<Buffer> = (0..4)
            .map(|mark| {
                let mut piece = arena.take(4 << 10).expect("a piece");
                piece.fill(mark);
                piece
            })
            .collect();
        let mut random = fastrand::Rng::with_seed(7);
        let mut young: VecDeque<(u8, Buffer)> = VecDeque::new();
        let (mut own, mut taken) = (0, 0);
        for round in 0..4000_u32 {
            let mark = (round % 200) as u8 + 4;
            let len = (1 + random.usize(..2)) << 12;
            let piece = arena.ring.take(len);
            own += usize::from(piece.is_none());
            taken += 1;
            if let Some(piece) = piece {
                let mut piece = Buffer::of_ring(piece);
                piece.fill(mark);
                young.push_back((mark, piece));
            }
            while young.len() > 2 {
                let at = if random.u8(..) < 200 { 0 } else { random.usize(..young.len()) };
                let (mark, piece) = young.remove(at).expect("it is there");
                assert!(piece.iter().all(|byte| *byte == mark), "somebody wrote into it");
            }
            let pieces = arena.ring.pieces();
            assert!(pieces.taken.len() + pieces.aside.len() <= 80, "the bookkeeping is bounded");
        }
        assert!(own * 10 < taken, "{own} of {taken} found no place in the ring");
        assert!((0..4).zip(&stay).all(|(mark, piece)| piece.iter().all(|byte| *byte == mark)));
        drop(stay);
        young.clear();
        assert_eq!(place(&arena.take(64 << 10).expect("a piece"), &arena), 0, "all of it again");
    }

    #[test]
    fn h3_a_piece_ends_before_one_that_stays_begins() {
        let arena = Arena::new(16 << 10).expect("map");
        let [first, mut stays, third] = [(); 3].map(|()| arena.take(4 << 10).expect("a piece"));
        stays.fill(7);
        drop(first);
        // There is room for it in front of the one that stays only where it reaches into that.
        assert!(arena.ring.take(8 << 10).is_none());
        let mut fits = arena.take(4 << 10).expect("a piece");
        fits.fill(8);
        assert!(stays.iter().all(|byte| *byte == 7), "somebody wrote into it");
        drop(third);
    }

    #[test]
    fn a_full_ring_gives_memory_of_its_own_and_takes_pieces_back_out_of_order() {
        let arena = Arena::new(12 << 10).expect("map");
        let mut pieces: Vec<Buffer> = (0..3).map(|_| arena.take(4 << 10).expect("a piece")).collect();
        let mut other = arena.take(4 << 10).expect("memory");
        other.fill(9);
        pieces.iter_mut().zip(1..).for_each(|(piece, mark)| piece.fill(mark));
        assert!(pieces.iter().zip(1_u8..).all(|(piece, mark)| piece.iter().all(|byte| *byte == mark)));
        drop(pieces.remove(1));
        assert_eq!(place(&arena.take(4 << 10).expect("a piece"), &arena), 4 << 10, "around the oldest");
        drop(pieces.remove(0));
        assert_eq!(place(&arena.take(4 << 10).expect("a piece"), &arena), 0);
        drop(pieces);
        assert_eq!(place(&arena.take(12 << 10).expect("a piece"), &arena), 0, "all of it again");
    }

    #[test]
    fn a_large_ring_lies_on_huge_pages_and_outlives_its_handle() {
        let arena = Arena::new(4 << 20).expect("map");
        assert!(arena.ring.start.as_ptr().align_offset(HUGE) == 0);
        let mut piece = arena.take(4 << 20).expect("a piece");
        drop(arena);
        piece.fill(3);
        assert_eq!(piece.last(), Some(&3));
    }
}
