//! Page-aligned buffers: owned while they are filled, shared while they are written to several disks, pooled after.
//!
//! They are anonymous memory mappings: aligned for O_DIRECT, zeroed, and given back to the system page by page.

use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use memmap2::MmapMut;

use super::arena::Piece;

/// A page-aligned run of bytes with one owner.
///
/// Its length is what is in use; its capacity is fixed. A buffer from a [`BufferPool`] returns there when dropped.
pub struct Buffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    /// A mapping of its own, which goes back to its pool if it has one. There until it is dropped.
    Own(Option<MmapMut>, Option<Arc<ArrayQueue<MmapMut>>>),
    /// A part of a ring.
    Ring(Piece),
}

impl Buffer {
    /// A zeroed buffer outside any pool; its length is its capacity.
    ///
    /// # Errors
    /// `OutOfMemory` and the like, from the system.
    ///
    /// # Panics
    /// When `capacity` is 0.
    pub fn zeroed(capacity: usize) -> io::Result<Buffer> {
        assert!(capacity > 0, "a buffer holds something");
        #[cfg(feature = "sim")]
        if let Some(mut map) = kept::take(capacity)? {
            map[..capacity].fill(0);
            return Ok(Buffer { memory: Memory::Own(Some(map), None), len: capacity });
        }
        let map = MmapMut::map_anon(capacity)?;
        Ok(Buffer { memory: Memory::Own(Some(map), None), len: capacity })
    }

    pub(super) fn of_ring(piece: Piece) -> Buffer {
        Buffer { len: piece.bytes().len(), memory: Memory::Ring(piece) }
    }

    /// How many bytes it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Own(map, _) => map.as_ref().map_or(0, |map| map.len()),
            Memory::Ring(piece) => piece.bytes().len(),
        }
    }

    /// Sets how many bytes are in use. What lies there is whatever was left there.
    ///
    /// # Panics
    /// When `len` is above the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes do not fit {}", self.capacity());
        self.len = len;
    }

    /// As [`Buffer::set_len`], and gives back the memory behind `len` where that is possible: to the [`Arena`](super::Arena) that this
    /// buffer was the last to be taken from.
    ///
    /// # Panics
    /// When `len` is above the capacity.
    pub fn shrink(&mut self, len: usize) {
        self.set_len(len);
        if let Memory::Ring(piece) = &mut self.memory {
            piece.shrink(len);
        }
    }

    /// The whole buffer as a slice that can be shared.
    #[must_use]
    pub fn share(self) -> Slice {
        let range = 0..self.len;
        Slice { buffer: Arc::new(self), range }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Own(map, _) => map.as_ref().map_or(&[], |map| &map[..self.len]),
            Memory::Ring(piece) => &piece.bytes()[..self.len],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        match &mut self.memory {
            Memory::Own(map, _) => map.as_mut().map_or(&mut [], |map| &mut map[..len]),
            Memory::Ring(piece) => &mut piece.bytes_mut()[..len],
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Memory::Own(map, home) = &mut self.memory else { return };
        let Some(map) = map.take() else { return };
        match home.take() {
            // A full pool means that this one was made beyond it: it goes back to the system.
            Some(home) => drop(home.push(map)),
            #[cfg(feature = "sim")]
            None => kept::keep(map),
            #[cfg(not(feature = "sim"))]
            None => drop(map),
        }
    }
}

/// Small mappings that a thread keeps for its next buffers. A simulation makes many short-lived ones, and most of its time
/// would go to mapping them.
#[cfg(feature = "sim")]
mod kept {
    use std::cell::RefCell;
    use std::io;

    use memmap2::MmapMut;

    /// The bytes of each, and how many are kept.
    const SIZE: usize = 64 << 10;
    const MOST: usize = 64;

    thread_local! {
        static MAPS: RefCell<Vec<MmapMut>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn take(capacity: usize) -> io::Result<Option<MmapMut>> {
        if capacity > SIZE {
            return Ok(None);
        }
        let kept = MAPS.with_borrow_mut(Vec::pop);
        kept.map_or_else(|| MmapMut::map_anon(SIZE), Ok).map(Some)
    }

    pub(super) fn keep(map: MmapMut) {
        if map.len() == SIZE {
            // A thread that ends keeps nothing any more.
            let _ended = MAPS.try_with(|maps| {
                let mut maps = maps.borrow_mut();
                if maps.len() < MOST {
                    maps.push(map);
                }
            });
        }
    }
}

/// Part of a shared, no longer changing [`Buffer`]. Cloning shares the bytes.
#[derive(Clone)]
pub struct Slice {
    buffer: Arc<Buffer>,
    range: Range<usize>,
}

impl Slice {
    /// The bytes of memory that this slice keeps: its whole buffer's.
    #[must_use]
    pub fn held(&self) -> usize {
        self.buffer.capacity()
    }

    /// The part `range` of this slice.
    ///
    /// # Panics
    /// When `range` does not lie in the slice.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {}", self.len());
        let start = self.range.start;
        Slice { buffer: Arc::clone(&self.buffer), range: start + range.start..start + range.end }
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// A bounded store of buffers of one capacity, so that the write path maps no memory.
#[derive(Clone)]
pub struct BufferPool {
    free: Arc<ArrayQueue<MmapMut>>,
    capacity: usize,
}

impl BufferPool {
    /// A pool that keeps at most `kept` unused buffers of `capacity` bytes each.
    ///
    /// # Panics
    /// When either is 0.
    #[must_use]
    pub fn new(kept: usize, capacity: usize) -> BufferPool {
        assert!(capacity > 0, "a buffer holds something");
        BufferPool { free: Arc::new(ArrayQueue::new(kept)), capacity }
    }

    /// A buffer with an old content and full length: an unused one, or a new one.
    ///
    /// # Errors
    /// As [`Buffer::zeroed`].
    pub fn take(&self) -> io::Result<Buffer> {
        let map = match self.free.pop() {
            Some(map) => map,
            None => MmapMut::map_anon(self.capacity)?,
        };
        Ok(Buffer { len: map.len(), memory: Memory::Own(Some(map), Some(Arc::clone(&self.free))) })
    }

    /// The capacity of its buffers, in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_taken_again_and_a_surplus_one_is_let_go() {
        let pool = BufferPool::new(1, 8192);
        let (mut first, second) = (pool.take().expect("map"), pool.take().expect("map"));
        first[0] = 7;
        drop(first);
        drop(second);
        assert_eq!(pool.free.len(), 1);
        assert_eq!(pool.take().expect("map")[0], 7);
    }

    #[test]
    fn parts_of_a_slice_are_relative_to_it() {
        let mut buffer = Buffer::zeroed(4096).expect("map");
        buffer[10] = 1;
        buffer[12] = 2;
        let part = buffer.share().part(10..20);
        assert_eq!((part[0], part.part(2..3)[0], part.len()), (1, 2, 10));
    }
}
