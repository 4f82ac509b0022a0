//! Meridian: a log-structured replication storage engine, embedded beneath other frontends.
#[macro_use]
mod planted;

pub mod format;
pub mod io;
#[cfg(feature = "sim")]
pub mod sim;
#[allow(dead_code, reason = "the log thread that uses all of it is being written")]
mod sync;
mod types;

pub use types::{AccountId, Ack, ClientId, DiskId, Epoch, LogId, Lsn, PartitionId, SegmentId};
