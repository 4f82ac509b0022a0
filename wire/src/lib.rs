//! The geo link between two regions: sessions, transport, and the threads that drive [`meridian::geo`]'s state machines.
//!
//! A [`Link`] ships what a primary region commits; a [`Listener`] at the secondary takes it in. docs/PROTOCOL.md has the bytes.
//!
//! ```
//! use std::sync::Arc;
//! use meridian::{Ack, DiskConfig, Options, PartitionId, Region, Transaction};
//! use meridian_wire::{Link, LinkOptions, Listener, ListenerOptions, Peer};
//!
//! # let home = tempfile::tempdir()?;
//! let region = |name: &str| {
//!     let disks = ["a", "b", "c"].map(|disk| DiskConfig::new(home.path().join(name).join(disk), disk, "zone-1"));
//!     let mut options = Options::new(disks.to_vec());
//!     options.segment_bytes = 8 << 20;
//!     Region::create(options, ()).map(Arc::new)
//! };
//! let (west, east) = (region("west")?, region("east")?);
//! let peer = |region: &str| Peer { name: format!("{region}.example"), region: region.into() };
//! let listener = Listener::bind(Arc::clone(&east), ListenerOptions::new("cluster", "east", vec![peer("west")]))?;
//!
//! let flights = west.create_account("flights", Ack::Quorum)?;
//! let options = LinkOptions::new(listener.local_addr(), "cluster", "west", peer("east"), vec![flights]);
//! let link = Link::start(Arc::clone(&west), options)?;
//! west.commit(Transaction::new(flights, PartitionId::named("EWR/UA")).record("UA 1545"))?;
//! while link.status().last_sync_time == 0 {
//!     std::thread::yield_now();
//! }
//! assert_eq!(east.digest(flights)?, west.digest(flights)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Bounds
//! A session holds at the sender one block and one batch, at the receiver what the region's intake takes (`queue_bytes`) and one batch;
//! before its hello a peer holds 4 KiB and one of 16 places. Every read and write has a deadline.
mod clock;
pub mod codec;
mod compress;
mod error;
mod link;
mod listener;
mod session;
mod threads;
mod transport;

pub use compress::Compression;
pub use error::{RefusalKind, Result, WireError};
pub use link::{Cause, Difference, Link, LinkOptions, LinkState, LinkStatus, PartitionLag};
pub use listener::{Arrival, Listener, ListenerOptions, Refusal, Refusals};
pub use session::Peer;
pub use transport::{Security, TlsIdentity};
