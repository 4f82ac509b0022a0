//! What passes between the threads of clients and the one log thread: commits in, answers out, progress for all to see.
//!
//! Every piece takes its atomics, locks and thread parking from [`prims`] and from nowhere else, so that the same
//! files are compiled once more by `loom-tests`, against loom's. The drivers' `io/bell.rs` does the same.

pub(crate) mod intake;
pub(crate) mod park;
pub(crate) mod prims;
pub(crate) mod ticket;
pub(crate) mod watermark;

#[cfg(test)]
mod tests;
