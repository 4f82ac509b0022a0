//! Keeps the superblocks' tables small: a seal goes to the pages of two copies, and is forgotten in the tables (acceptance H1).
//!
//! A superblock lists a seal, and the epoch of its segment, until a quorum of copies says the same on its own page. What adds
//! to the tables makes room first, so that no number of lives, changes of the set or lost disks fills them.

use crate::error::{Error, ErrorKind, Result};
use crate::format::{MAX_EPOCHS, MAX_SEALS, Seal};
use crate::log::Log;
use crate::log::catalog::Copy;
use crate::log::disk::Disk;
use crate::log::placement::{QUORUM, choose};
use crate::log::prepare::Need;
use crate::types::SegmentId;

impl Log {
    /// Forgets in the superblocks' tables what the copies' pages say. The next write of the superblocks makes it durable.
    fn prune(&self) {
        if planted!(PagesForgetNothing) {
            return;
        }
        let catalog = self.catalog.borrow();
        let unsettled = catalog.iter().filter(|(_, segment)| !segment.settled).map(|(id, _)| id);
        self.meta.borrow_mut().prune(&unsettled.collect());
    }

    /// Whether the disks have the slots that an opening takes: one for each end that a single disk
    /// can show, and one on each disk of a new set. What the file systems have room for turns out
    /// when the files are made.
    pub(crate) fn check_room(&self) -> Result<()> {
        let disks = self.disks.borrow();
        let limit = self.options.max_segments.map_or(usize::MAX, |most| most as usize + 1);
        let left = |disk: &Disk| disk.free.len() + limit.saturating_sub(disk.slots as usize);
        let mut left: Vec<usize> =
            disks.iter().map(|disk| if disk.serves_at_worst() { left(disk) } else { 0 }).collect();
        let choose = |kept: &[usize], left: &[usize]| {
            let eligible: Vec<usize> = (0..left.len()).filter(|at| left[*at] > 0 && !kept.contains(at)).collect();
            choose(self.options.placement, &self.options.disks, kept, &eligible)
        };
        let is_short = |(disk, left): (&Disk, &usize)| disk.serves_at_worst() && *left == 0;
        let refuse = |left: &[usize], why: &str| {
            let short: Vec<usize> = disks.iter().zip(left).filter(|at| is_short(*at)).map(|(d, _)| d.index.0).collect();
            if short.is_empty() {
                return Error::new(self.without_disks(), format!("{why}: restore a disk ({})", self.refusals()));
            }
            let most = self.options.max_segments.unwrap_or_default();
            let message = format!("{why}: max_segments {most} is reached on {}: open with more", self.names(&short));
            Error::new(ErrorKind::NoSpace, message)
        };
        let catalog = self.catalog.borrow();
        for (id, segment) in catalog.iter().filter(|(id, segment)| !segment.settled && !self.is_trimmed(*id)) {
            let kept: Vec<usize> = segment.copies.iter().map(|copy| copy.disk.0).collect();
            if segment.seal.is_none() || kept.len() >= QUORUM {
                continue;
            }
            let Some(&target) = choose(&kept, &left).get(kept.len()) else {
                let message = format!("segment {} is on one disk only, and no other disk can take a copy", id.0);
                return Err(refuse(&left, &message));
            };
            left[target] -= 1;
        }
        if choose(&[], &left).len() < QUORUM {
            return Err(refuse(&left, "fewer than two usable disks in different domains"));
        }
        Ok(())
    }

    /// Steps 4 and 5 for the ends that this opening found, and for those that an earlier one or a change of the set left in the
    /// superblocks: each goes to a second copy where one disk alone could show it, and to the pages of both.
    ///
    /// A page tells its disk what the end is: a majority of superblocks knows it first, or another opening could find another
    /// end. There may be more of them than a superblock lists: they take turns.
    pub(crate) async fn settle_recovered(&self, recovered: Vec<Seal>) -> Result<()> {
        let mut recovered = recovered.into_iter().peekable();
        self.prune();
        loop {
            let listed: Vec<SegmentId> = {
                let mut meta = self.meta.borrow_mut();
                while (meta.seals.len() < MAX_SEALS || planted!(EndsListedAtOnce))
                    && let Some(seal) = recovered.next()
                {
                    meta.list_seal(seal);
                }
                meta.seals.iter().map(|seal| seal.segment).collect()
            };
            if listed.is_empty() {
                return Ok(());
            }
            self.persist(&[]).await?;
            for id in listed {
                self.settle(id).await?;
            }
            self.prune();
            if recovered.peek().is_none() {
                return Ok(());
            }
        }
    }

    /// Makes room in the superblocks' tables for one more epoch and the seal before it. Where what the pages say is not enough,
    /// the oldest segments get their second copies now.
    pub(crate) async fn make_table_room(&self) -> Result<()> {
        loop {
            self.prune();
            if self.meta.borrow().has_room() || planted!(RoomNotMade) {
                return Ok(());
            }
            if self.pipeline.borrow().is_some() {
                self.mark_held();
            }
            let oldest = {
                let catalog = self.catalog.borrow();
                let mut unsettled = catalog.iter().filter(|(_, segment)| segment.seal.is_some() && !segment.settled);
                unsettled.next().map(|(id, _)| id)
            };
            let Some(oldest) = oldest else {
                let message = format!("superblock: {MAX_EPOCHS} epochs and {MAX_SEALS} seals are accepted, no more");
                return Err(Error::new(ErrorKind::LimitReached, message));
            };
            self.hurried.set(true);
            self.changed.raise();
            let settled = self.settle(oldest).await;
            self.hurried.set(false);
            settled?;
        }
    }

    /// Brings a sealed segment's seal to the pages of two copies.
    async fn settle(&self, id: SegmentId) -> Result<()> {
        loop {
            if let Some(error) = self.halted_error() {
                return Err(error);
            }
            let (seal, copies): (Seal, Vec<Copy>) = {
                let catalog = self.catalog.borrow();
                let segment = catalog.get(id).filter(|segment| !segment.settled && !self.is_trimmed(id));
                let Some((segment, seal)) = segment.and_then(|segment| Some((segment, segment.seal.clone()?))) else {
                    return Ok(());
                };
                (seal, segment.copies.iter().filter(|copy| copy.held).cloned().collect())
            };
            if copies.len() >= QUORUM {
                // A disk that fails on the way is given up, and holds nothing then.
                let lacking: Vec<Copy> = copies.into_iter().filter(|copy| !copy.complete).collect();
                self.write_pages(id, &seal, &lacking).await;
                continue;
            }
            let made = self.rebuild_one(id, Need::Epoch).await?;
            // A disk that fails on the way makes room for another one.
            if !made && self.catalog.borrow().get(id).is_some_and(|segment| self.target(segment).is_none()) {
                let why = self.refusals();
                let message =
                    format!("segment {} is on one disk only, and no other disk can take a copy ({why})", id.0);
                return Err(Error::new(self.without_disks(), message));
            }
        }
    }
}
