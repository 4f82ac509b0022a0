//! How a primary ships: the options of a link, and what is accepted.

use std::net::SocketAddr;
use std::time::Duration;

use meridian::AccountId;
use meridian::format::MAX_MARKED;
use meridian::geo::MOST_BATCH_BYTES;

use crate::codec::MOST_NAME;
use crate::compress::Compression;
use crate::error::{Result, WireError};
use crate::session::Peer;
use crate::transport::{Security, check_address};

/// How a primary ships.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// Where the secondary listens.
    pub address: SocketAddr,
    /// The cluster that both regions belong to.
    pub cluster: String,
    /// What this region is called there.
    pub region: String,
    /// The secondary.
    pub peer: Peer,
    /// How both prove who they are.
    pub security: Security,
    /// The number of the lane. Links of one log need different ones; each keeps its own for ever, and a bootstrap on one does not age the
    /// others. Default 0.
    pub lane: u32,
    /// The accounts that are shipped. No other lane ships them.
    pub accounts: Vec<AccountId>,
    /// A batch that holds so many bytes goes out, 1 to 4 MiB. Default 1 MiB.
    pub batch_bytes: usize,
    /// A batch goes out so long after its first transaction, or at once where fewer than two others are on their way. Default 1 ms.
    pub batch_time: Duration,
    /// How often the log is marked, so that last sync time moves on; twice as often as the shortest contract needs it, if that is more often. Default
    /// 200 ms.
    pub mark_interval: Duration,
    /// The longest time between two marks while nothing is written: they come less and less often, a sixteenth of the idle time apart, or as
    /// often as the shortest contract needs. A mark takes a block, 4 KiB, on each disk of both regions. Default 60 s.
    pub idle_mark_interval: Duration,
    /// Whether frames are compressed. Default: where it pays.
    pub compression: Compression,
    /// How long the other side may be silent or slow. Default 10 s.
    pub patience: Duration,
    /// The longest wait before another attempt to connect. Default 2 s.
    pub longest_retry: Duration,
    /// Bytes of frames a second that a bootstrap sends, at most, and all else of the lane meanwhile: with less than is written it never ends.
    /// Default: as many as it can.
    pub bootstrap_bytes_per_second: Option<u64>,
    /// Bytes of log that are held back from trimming for the secondary, at most. What is trimmed beyond that, while the secondary lacks it,
    /// is a gap, and a bootstrap follows (FAULT-MODEL invariant 12). Default: no bound but the space there is.
    pub retention_bytes: Option<u64>,
}

impl LinkOptions {
    /// The defaults.
    #[must_use]
    pub fn new(address: SocketAddr, cluster: &str, region: &str, peer: Peer, accounts: Vec<AccountId>) -> LinkOptions {
        LinkOptions {
            address,
            cluster: cluster.to_owned(),
            region: region.to_owned(),
            peer,
            security: Security::Loopback,
            lane: 0,
            accounts,
            batch_bytes: 1 << 20,
            batch_time: Duration::from_millis(1),
            mark_interval: Duration::from_millis(200),
            idle_mark_interval: Duration::from_secs(60),
            compression: Compression::Adaptive,
            patience: Duration::from_secs(10),
            longest_retry: Duration::from_secs(2),
            bootstrap_bytes_per_second: None,
            retention_bytes: None,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        check_address(&self.security, self.address)?;
        let invalid = |what: String| Err(WireError::InvalidInput(what));
        if !(1..=MOST_BATCH_BYTES).contains(&self.batch_bytes) {
            return invalid(format!("batch_bytes: {} given, 1 to {MOST_BATCH_BYTES} accepted", self.batch_bytes));
        }
        if !(1..=MAX_MARKED).contains(&self.accounts.len()) {
            return invalid(format!("accounts: {} given, 1 to {MAX_MARKED} accepted", self.accounts.len()));
        }
        let names = [&self.cluster, &self.region, &self.peer.region];
        if let Some(name) = names.into_iter().find(|name| name.len() > MOST_NAME) {
            return invalid(format!("cluster and regions: a name of {} bytes, {MOST_NAME} accepted", name.len()));
        }
        if self.mark_interval.is_zero() || self.patience.is_zero() {
            return invalid("mark_interval and patience: more than nothing".into());
        }
        if self.bootstrap_bytes_per_second == Some(0) {
            return invalid("bootstrap_bytes_per_second: more than nothing".into());
        }
        Ok(())
    }
}
