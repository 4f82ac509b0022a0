//! Meridian: a log-structured replication storage engine, embedded beneath other frontends.
#[macro_use]
mod planted;

pub mod format;
pub mod io;
#[cfg(feature = "sim")]
pub mod sim;
mod types;

pub use types::{AccountId, Ack, ClientId, DiskId, Epoch, LogId, Lsn, PartitionId, SegmentId};
