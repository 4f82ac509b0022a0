//! Meridian: a log-structured replication storage engine, embedded beneath other frontends.
#[macro_use]
mod planted;

mod error;
pub mod format;
mod health;
pub mod io;
mod log;
mod options;
mod read;
mod region;
mod shared;
#[cfg(feature = "sim")]
pub mod sim;
mod stats;
mod sync;
mod transaction;
mod types;

pub use error::{Corruption, Error, ErrorKind, Result};
pub use health::{DiskHealth, DiskState, Health};
pub use io::DriverChoice;
pub use log::scrub::ScrubReport;
pub use options::{DiskConfig, Options, Placement};
pub use read::{BlockView, Subscription};
pub use region::{Account, MakeDriver, Region, RetentionPin, Ticket};
pub use stats::Stats;
pub use transaction::{Committed, Receipt, StateMachine, Transaction};
pub use types::{AccountId, Ack, ClientId, DiskId, Epoch, LogId, Lsn, PartitionId, SegmentId};
