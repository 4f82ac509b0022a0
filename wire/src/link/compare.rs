//! The beginning of a session: which copies are not whole, what they lack, and where those that differ do.

use std::collections::BTreeSet;
use std::sync::Arc;

use crossbeam::channel::{self, RecvTimeoutError};
use meridian::geo::{Bootstrap, Copy, Fingerprint, Holding, Need, Parting, Shipper, ShipperOptions, need};
use meridian::{AccountId, Lsn, PartitionId, RetentionPin};

use super::{Difference, Shared};
use crate::codec::{Ask, MOST_FIELDS, MOST_FINGERPRINTS, MOST_HOLDINGS, Message, Trace, Welcome};
use crate::error::{Result, WireError};
use crate::session;
use crate::threads::start;
use crate::transport::Connection;

/// Partitions of an account that are narrowed to the record in one session, and those that are remembered.
const NARROWED: usize = 64;

impl Shared {
    /// As [`Shared::find_needs`], while the other side hears that somebody is here: comparing reads as much of the log as it has to.
    pub(super) fn prepare(
        self: &Arc<Shared>,
        connection: &Arc<Connection>,
        welcome: &Welcome,
    ) -> Result<(Shipper, Lsn, RetentionPin)> {
        let (ready, waiting) = channel::bounded::<()>(0);
        let (shared, theirs, beat) = (Arc::clone(self), Arc::clone(connection), session::beat(self.options.patience));
        let alive = start("meridian-alive", move || {
            while waiting.recv_timeout(beat) == Err(RecvTimeoutError::Timeout) {
                if session::write(&theirs, &Message::Ping(shared.clock.now())).is_err() {
                    return;
                }
            }
        })?;
        let suspects = std::mem::take(&mut self.lock().suspects);
        let prepared = self.find_needs(connection, welcome, &suspects);
        drop(ready);
        drop(alive.join());
        if prepared.is_err() {
            self.lock().suspects.extend(suspects);
        }
        prepared
    }

    /// Finds out which copies are not whole, and what they lack. Returns where the log is to be read from.
    fn find_needs(
        &self,
        connection: &Connection,
        welcome: &Welcome,
        suspects: &BTreeSet<AccountId>,
    ) -> Result<(Shipper, Lsn, RetentionPin)> {
        let batch_time = u64::try_from(self.options.batch_time.as_nanos()).unwrap_or(u64::MAX);
        let batch_bytes = self.options.batch_bytes;
        let options = ShipperOptions { batch_bytes, batch_time, window: welcome.window };
        // Nothing goes away until it is known what is needed, and that is pinned.
        let all = self.region.pin(Lsn::ZERO);
        let (first, known) = (self.region.first(), self.region.committed());
        let standing = &welcome.standing;
        let position = standing.position;
        let carried: BTreeSet<AccountId> = self.options.accounts.iter().copied().collect();
        let (mut copies, mut dropped) = (Vec::new(), Vec::new());
        for account in self.region.accounts()?.into_iter().filter(|known| carried.contains(&known.id)) {
            let id = account.id;
            match need(&account, standing, first, suspects.contains(&id)) {
                Need::Nothing => {}
                Need::Check => {
                    let compared = self.region.compare(id, &self.holdings(connection, id)?)?;
                    if !compared.restart.is_empty() {
                        self.narrow(connection, id, &compared.differ)?;
                        copies.push(Copy { account, compared: Some(compared) });
                    }
                }
                Need::Drop => dropped.push(id),
                Need::Account => copies.push(Copy { account, compared: None }),
                Need::Comparison => {
                    let compared = self.region.compare(id, &self.holdings(connection, id)?)?;
                    self.narrow(connection, id, &compared.differ)?;
                    copies.push(Copy { account, compared: Some(compared) });
                }
            }
        }
        let (mut shipper, from) = match copies.first().map(|copy| copy.account.id) {
            // What was trimmed before it was sent was of accounts that are switched off.
            None => (Shipper::new(options, carried, position.max(first)), position.max(first)),
            Some(one) => {
                // What was said of the accounts is committed once this is answered.
                self.region.digest(one)?;
                let until = self.region.committed();
                let begins = copies.iter().any(|copy| copy.compared.is_some());
                {
                    let mut state = self.lock();
                    state.status.gaps += u64::from(position > Lsn::ZERO && position < first);
                    state.status.bootstraps.0 += u64::from(begins);
                }
                let lacking = copies.iter().filter_map(|copy| copy.compared.as_ref()).map(|compared| compared.from);
                let from = lacking.min().map_or(Lsn::MAX, |from| from.max(first)).min(position.max(first));
                let bootstrap = Bootstrap { first: from, live: position, known, until, copies };
                (Shipper::bootstrap(options, carried, bootstrap), from)
            }
        };
        let anchor = if from <= position { standing.anchor } else { self.region.anchor(from)? };
        shipper.begin_at(standing.anchor, anchor);
        dropped.into_iter().for_each(|id| shipper.leave_out(id, Lsn::ZERO));
        Ok((shipper, from, all))
    }

    /// What the other side holds of an account.
    fn holdings(&self, connection: &Connection, account: AccountId) -> Result<Vec<Holding>> {
        let mut all: Vec<Holding> = Vec::new();
        loop {
            let after = all.last().map(|last| last.partition);
            let Message::Holdings(part) = self.ask(connection, &Message::Ask(Ask { account, after }))? else {
                return Err(WireError::Protocol("holdings come here"));
            };
            let (last, ascend) =
                (part.len() < MOST_HOLDINGS, part.first().is_none_or(|one| Some(one.partition) > after));
            if !ascend {
                return Err(WireError::Protocol("partitions ascend over answers"));
            }
            all.extend(part);
            // A copy holds what was sent from here; pages of anything else could go on for ever.
            if all.len() > self.region.max_partitions() {
                return Err(WireError::Protocol("more partitions than can exist here"));
            }
            if last {
                return Ok(all);
            }
        }
    }

    /// Finds the first record that differs in each partition, of the first [`NARROWED`], and reports it.
    fn narrow(&self, connection: &Connection, account: AccountId, partitions: &[PartitionId]) -> Result<()> {
        for &partition in partitions.iter().take(NARROWED) {
            let sequence = self.first_difference(connection, account, partition)?;
            let mut state = self.lock();
            let differed = &mut state.status.differed;
            differed.push(Difference { account, partition, sequence });
            let old = differed.len().saturating_sub(NARROWED);
            differed.drain(..old);
        }
        Ok(())
    }

    fn first_difference(
        &self,
        connection: &Connection,
        account: AccountId,
        partition: PartitionId,
    ) -> Result<Option<u64>> {
        let mut from = 0;
        loop {
            let question = Message::Trace(Trace { account, partition, from });
            let Message::Fingerprints(there) = self.ask(connection, &question)? else {
                return Err(WireError::Protocol("fingerprints come here"));
            };
            let here = self.region.fingerprints(account, partition, from, MOST_FINGERPRINTS)?;
            let all = |list: &[Fingerprint]| list.len() < MOST_FINGERPRINTS;
            match Parting::find(&here, all(&here), &there, all(&there)) {
                Parting::At(sequence) => return Ok(Some(sequence)),
                Parting::Later(next) if next > from => from = next,
                Parting::Nowhere | Parting::Later(_) => return Ok(None),
            }
        }
    }

    fn ask(&self, connection: &Connection, question: &Message) -> Result<Message> {
        session::write(connection, question)?;
        let asked = self.region.committed();
        loop {
            match session::read(connection, MOST_FIELDS, 0, self.options.patience)? {
                // Nothing is let go before the answer. One that is there and does not answer holds no more back than one that is away.
                Message::Pong(_) => {
                    let written = self.region.distance(asked, self.region.committed());
                    if self.options.retention_bytes.is_some_and(|most| written > most) {
                        return Err(WireError::Protocol("no answer for as long as the retention cap allows"));
                    }
                }
                Message::Refuse(kind, message) => return Err(WireError::Refused { kind, message }),
                answer => return Ok(answer),
            }
        }
    }
}
