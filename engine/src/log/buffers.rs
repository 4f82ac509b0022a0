//! Buffers for blocks, in sizes that follow the load: a small block must not hold a large buffer while it stays hot.

use std::io;

use crate::io::{Buffer, BufferPool};

/// The smallest buffer.
const LEAST: usize = 16 << 10;
/// Unused bytes kept in each size, so that the write path maps no memory when the load swings.
const KEPT: usize = 16 << 20;

/// One pool for each size: 16 KiB, 64 KiB and so on by four, up to the largest block.
pub(crate) struct BlockBuffers {
    pools: Vec<BufferPool>,
    /// How large the next block is likely to become.
    want: usize,
}

impl BlockBuffers {
    pub(crate) fn new(largest: usize) -> BlockBuffers {
        let mut sizes: Vec<usize> =
            std::iter::successors(Some(LEAST), |size| Some(size * 4)).take_while(|size| *size < largest).collect();
        sizes.push(largest);
        let pools = sizes.into_iter().map(|size| BufferPool::new((KEPT / size).max(4), size)).collect();
        BlockBuffers { pools, want: LEAST }
    }

    /// The memory that unused buffers hold at most, in bytes.
    pub(crate) fn bound(largest: usize) -> usize {
        BlockBuffers::new(largest).pools.iter().map(|pool| KEPT.max(4 * pool.capacity())).sum()
    }

    /// A buffer of at least `len` bytes, larger if blocks were larger of late. One beyond the largest block is its
    /// transaction's alone.
    pub(crate) fn take(&self, len: usize) -> io::Result<Buffer> {
        let want = self.want.max(len);
        let fits = |pool: &&BufferPool| pool.capacity() >= want;
        match self.pools.iter().find(fits).or(self.pools.last()).filter(|pool| pool.capacity() >= len) {
            Some(pool) => pool.take(),
            None => Buffer::zeroed(len),
        }
    }

    /// The next size up for a block that outgrows its buffer, or `None` when it is as large as blocks get.
    pub(crate) fn larger(&self, than: usize) -> Option<&BufferPool> {
        self.pools.iter().find(|pool| pool.capacity() > than)
    }

    /// A block of `len` bytes was sent: the next ones are likely to be alike.
    pub(crate) fn used(&mut self, len: usize) {
        self.want = (len + len / 4).max(self.want - self.want / 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_blocks_up_at_once_and_down_slowly() {
        let mut buffers = BlockBuffers::new(1 << 20);
        assert_eq!(buffers.take(100).expect("map").len(), 16 << 10);
        buffers.used(200 << 10);
        assert_eq!(buffers.take(100).expect("map").len(), 256 << 10);
        for _ in 0..40 {
            buffers.used(4096);
        }
        assert_eq!(buffers.take(100).expect("map").len(), 16 << 10);
        assert_eq!(buffers.take(3 << 20).expect("map").len(), 3 << 20);
    }
}
