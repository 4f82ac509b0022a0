//! Meridian: a log-structured replication storage engine, embedded beneath other frontends.
//!
//! A [`Region`] is one log on three or more disks (directories) of different fault and upgrade domains. It commits
//! [`Transaction`]s to three of them at once, acknowledges when two or all three copies are durable, hands what is
//! committed to a [`StateMachine`] in order and once, and survives what the project's `docs/FAULT-MODEL.md` names.
//!
//! ```
//! use meridian::{Ack, ClientId, DiskConfig, Lsn, Options, PartitionId, Region, Transaction};
//!
//! # let home = tempfile::tempdir()?;
//! # let home = home.path();
//! let disks = ["rack-1", "rack-2", "rack-3"].map(|rack| DiskConfig::new(home.join(rack), rack, "zone-1"));
//! let mut options = Options::new(disks.to_vec());
//! options.segment_bytes = 8 << 20;
//! let region = Region::create(options.clone(), ())?;
//! let flights = region.create_account("flights", Ack::Quorum)?;
//!
//! // A ticket is waited on by a thread or awaited by a task; no runtime is imposed.
//! let departures = PartitionId::named("EWR/UA");
//! let first = region.submit(Transaction::new(flights, departures).record("UA 1545").record("05:17"))?;
//! let second = region.submit(Transaction::new(flights, departures).record("UA 1714").client(ClientId(7), 1))?;
//! assert_eq!((first.wait()?.first_sequence, second.wait()?.first_sequence), (0, 2));
//! region.close()?;
//!
//! let region = Region::open(options, ())?;
//! let retried = region.commit(Transaction::new(flights, departures).record("UA 1714").client(ClientId(7), 1))?;
//! assert!(retried.repeated);
//! let mut log = region.subscribe(Lsn::ZERO);
//! let mut records = 0;
//! while let Some(block) = log.try_next()? {
//!     records += block.transactions().filter(|transaction| !transaction.is_system()).map(|t| t.len()).sum::<usize>();
//! }
//! assert_eq!(records, 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Bounds
//! Every queue, cache and table has its bound in [`Options`]; [`Options::memory_bound`] adds them up. When the queue is full,
//! [`Region::submit`] waits, [`Region::submit_async`] lets the task wait, [`Region::try_submit`] says
//! [`Busy`](ErrorKind::Busy). A transaction counts until it is answered.
//!
//! # Errors
//! One [`Error`]; its [`kind`](Error::kind) says what to do: fix the request, retry, restore a disk, reopen. A refusal means
//! that nothing was accepted, but for [`Degraded`](ErrorKind::Degraded): a commit that lost its third copy on the way may be there on two.
//! After [`Indeterminate`](ErrorKind::Indeterminate) a retry with the same client sequence is safe.
//!
//! ```
//! # use std::{thread::sleep, time::Duration};
//! use meridian::{ErrorKind, Receipt, Region, Transaction};
//!
//! /// Commits a transaction that names a client and a sequence, as long as that makes sense.
//! fn persist(region: &Region, transaction: &Transaction) -> meridian::Result<Receipt> {
//!     loop {
//!         match region.commit(transaction.clone()) {
//!             Err(error) if matches!(error.kind(), ErrorKind::Degraded | ErrorKind::NoSpace | ErrorKind::Behind) => {
//!                 eprintln!("retrying: {error}");
//!                 sleep(Duration::from_millis(100));
//!             }
//!             // Fix the request, or close the region and open it again.
//!             done => return done,
//!         }
//!     }
//! }
//! ```
//!
//! No panic of the engine, or of the state machine, crosses the API: the region halts and says so. Only a [`Ticket`] whose answer was
//! taken panics when it is asked again.
//!
//! # Threads
//! Handles are `Send + Sync`. A region has one log thread, which also runs the state machine, and a few threads for each disk
//! for what may block. Reads run on the caller's thread. There is no global state: any number of regions may be
//! open in a process, each on directories of its own, which are locked.
//!
//! Tasks use [`Region::submit_async`], await the [`Ticket`], and follow the log with [`Subscription::next`], on any runtime. What else a [`Region`] does
//! may block the thread that asks.
//!
//! The log thread cannot wait for itself: what a [`StateMachine`] asks of its own region is refused with
//! [`WouldDeadlock`](ErrorKind::WouldDeadlock). A region belongs to the process that opened it: a forked child gets
//! [`Forked`](ErrorKind::Forked), and can drop its handles without harm to the parent.
#[macro_use]
mod planted;

mod account;
mod caller;
mod error;
pub mod format;
mod gate;
pub mod geo;
mod giveway;
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
mod ticket;
mod transaction;
mod types;

pub use account::{Account, Contract};
pub use error::{Corruption, Error, ErrorKind, Result};
pub use gate::{AccountGate, Gate};
pub use health::{CopyHealth, DiskHealth, DiskState, Health, SegmentHealth};
pub use io::DriverChoice;
pub use log::scrub::ScrubReport;
pub use options::{DiskConfig, Options, Placement};
pub use read::{BlockView, PartitionReader, Subscription, TransactionView};
pub use region::{MakeDriver, Region, RetentionPin};
pub use stats::Stats;
pub use ticket::Ticket;
pub use transaction::{Committed, Receipt, StateMachine, Transaction};
pub use types::{AccountId, Ack, ClientId, DiskId, Epoch, LogId, Lsn, PartitionId, Role, SegmentId};

/// The quick start of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
