//! The secondary's side of a session: batches in, stretches to import out, acknowledgements once those are durable.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::account::Account;
use crate::error::{Error, ErrorKind, Result};
use crate::geo::{Acknowledgement, Anchor, Arrived, Imported, Lane, Mark, Restart, Session};
use crate::types::Lsn;

/// A batch as it arrived.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// Its number in the session.
    pub number: u64,
    /// A carried account was made or changed.
    pub account: Option<Account>,
    /// Copies begin anew.
    pub restart: Option<Restart>,
    /// Whole frames back to back.
    pub frames: Bytes,
    /// A mark.
    pub mark: Option<Mark>,
    /// Everything before this position of the primary's log has arrived.
    pub position: Lsn,
    /// The history that the position is of.
    pub anchor: Anchor,
}

/// The receiver of one session. It holds no payload: what it hands out to be imported is counted until it is durable.
///
/// Batches of a session come once and in order, or the session ends: what was missed is sent again in the next one
/// (invariant 10). Nothing is acknowledged before it is durable here (invariant 12).
pub struct Receiver {
    lane: Lane,
    session: Session,
    next: u64,
    importing: VecDeque<u64>,
    position: Lsn,
}

impl Receiver {
    /// Receives from a lane, of which everything before `resume` is here.
    #[must_use]
    pub fn new(lane: Lane, resume: Lsn) -> Receiver {
        Receiver { lane, session: Session::default(), next: 1, importing: VecDeque::new(), position: resume }
    }

    /// Takes in a batch; returns what to import. The imports are started in this order.
    ///
    /// # Errors
    /// [`Gap`](ErrorKind::Gap) when it is not the next one, or goes back in the log: end the session.
    pub fn receive(&mut self, batch: Delivered) -> Result<Arrived> {
        let Delivered { number, account, restart, frames, mark, position, anchor } = batch;
        let back = position < self.position;
        if (number != self.next || back) && !planted!(ReceiverTakesHoles) {
            let message = format!(
                "batch {number} up to {position} arrived, {} from {} on comes next in this session",
                self.next, self.position
            );
            return Err(Error::new(ErrorKind::Gap, message));
        }
        self.next += 1;
        self.position = position;
        self.importing.push_back(number);
        let frames = if frames.is_empty() { Vec::new() } else { vec![frames] };
        let (lane, session) = (self.lane, self.session.clone());
        Ok(Arrived { lane, session, account, restart, frames, mark, position, anchor })
    }

    /// The oldest import under way is durable: this is what to acknowledge.
    ///
    /// # Panics
    /// When no import is under way.
    pub fn imported(&mut self, imported: Imported) -> Acknowledgement {
        let number = self.importing.pop_front().expect("an import is under way");
        let Imported { progress, differ, .. } = imported;
        Acknowledgement { number, position: progress.position, time: progress.time, differ }
    }

    /// Batches whose imports are under way.
    #[must_use]
    pub fn importing(&self) -> usize {
        self.importing.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geo::Progress;
    use crate::types::LogId;

    fn batch(number: u64, position: u64) -> Delivered {
        let (account, restart, mark) = (None, None, None);
        let (position, anchor) = (Lsn(position), Anchor::default());
        Delivered { number, account, restart, frames: Bytes::new(), mark, position, anchor }
    }

    #[test]
    fn batches_come_once_and_in_order_and_are_acknowledged_in_that_order_when_they_are_durable() {
        let lane = Lane { log: LogId(7), number: 0 };
        let mut receiver = Receiver::new(lane, Lsn(100));
        let positions = [receiver.receive(batch(1, 100)), receiver.receive(batch(2, 200))].map(|arrived| {
            let arrived = arrived.expect("in order");
            (arrived.lane, arrived.position, arrived.frames.len())
        });
        assert_eq!(positions, [(lane, Lsn(100), 0), (lane, Lsn(200), 0)]);
        for wrong in [batch(2, 300), batch(4, 300), batch(3, 199)] {
            assert_eq!(receiver.receive(wrong).expect_err("not the next one").kind(), ErrorKind::Gap);
        }
        let imported = |position, time| {
            let progress = Progress { position: Lsn(position), time, ..Progress::none(lane) };
            Imported { records: 0, duplicates: 0, progress, differ: Vec::new() }
        };
        let acknowledged = [(100, 0), (200, 5)].map(|(position, time)| receiver.imported(imported(position, time)));
        assert_eq!(acknowledged.map(|ack| (ack.number, ack.position, ack.time)), [(1, Lsn(100), 0), (2, Lsn(200), 5)]);
        assert_eq!(receiver.importing(), 0);
    }
}
