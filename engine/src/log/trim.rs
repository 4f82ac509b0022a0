//! Giving space back: what was trimmed is forgotten durably before its slots are used again (invariant 16).

use crate::error::Result;
use crate::format::DATA_START;
use crate::log::Log;
use crate::log::catalog::Segment;
use crate::log::placement::QUORUM;
use crate::log::seal::index_name;
use crate::shared::lock;
use crate::types::{Lsn, SegmentId};

impl Log {
    /// Trims whole segments before `to`, never past a pin, the checkpoint or the last sealed segment. Returns the first
    /// position that is retained.
    pub(crate) async fn trim(&self, to: Lsn) -> Result<Lsn> {
        let _stage = stage!(Trim);
        let checkpoint = self.write_checkpoint().await;
        let old = self.meta.borrow().trim;
        // Without a new checkpoint, the last one still allows what it covers.
        let checkpoint = checkpoint.or_else(|| self.safe_checkpoint()).unwrap_or(old);
        let first = self.first_to_keep(to, checkpoint).max(old);
        if first > old {
            // The superblocks are written from it. If no majority takes it the region halts, and no slot is used again: the next
            // opening finds either mark, and both are right.
            self.meta.borrow_mut().trim = first;
            self.write_catalog(|catalog| {
                let last = SegmentId(first.0 - 1);
                let end = catalog.segments.get(&last).and_then(|segment| segment.end);
                catalog.trimmed = end.map(|end| Lsn::new(last, end));
                catalog.first = first;
            });
            if !planted!(ReuseBeforeTrim) {
                self.persist(&[]).await?;
            }
            self.free_trimmed(first).await;
        }
        Ok(Lsn::new(first, DATA_START))
    }

    fn first_to_keep(&self, to: Lsn, checkpoint: SegmentId) -> SegmentId {
        let pin = lock(&self.shared.pins).lowest().unwrap_or(Lsn::MAX);
        let pin = if planted!(TrimPastPin) { Lsn::MAX } else { pin };
        let catalog = self.catalog.borrow();
        // A write to a slot must have ended before the slot is another segment's, or it would land on top of that.
        let written = self.with(|pipeline| {
            let live = pipeline.members.iter().filter(|member| member.live);
            live.map(|member| member.durable).min().unwrap_or(0)
        });
        // The last sealed segment holds the link that the unsealed ones start from, once its seal is on its copies.
        let ended = |segment: &Segment| segment.seal.as_ref().is_some_and(|seal| seal.next_sequence - 1 <= written);
        let settled = |segment: &Segment| ended(segment) && segment.complete().count() >= QUORUM;
        let sealed = catalog.iter().take_while(|(_, segment)| settled(segment)).last();
        let last_sealed = sealed.map_or(SegmentId(0), |(id, _)| id);
        let first = to.segment().min(pin.segment()).min(checkpoint).min(last_sealed);
        assert!(first <= checkpoint, "reclaimed <= checkpoint");
        first
    }

    async fn free_trimmed(&self, first: SegmentId) {
        // A page or a copied block on its way to a slot must arrive before the slot is another segment's.
        let _no_rebuild = self.rebuilding.lock().await;
        let _no_pages = self.paging.lock().await;
        let gone: Vec<SegmentId> = {
            let catalog = self.catalog.borrow();
            catalog.iter().map(|(id, _)| id).take_while(|id| *id < first).collect()
        };
        for id in gone {
            let Some(segment) = self.catalog.borrow_mut().remove(id) else { continue };
            self.write_catalog(|catalog| {
                catalog.segments.remove(&id);
                catalog.builders.remove(&id);
            });
            for copy in segment.copies {
                self.free_slot(copy.disk, copy.slot);
                // A disk that was given up answers late or never.
                if segment.seal.is_some() && self.disks.borrow()[copy.disk.0].is_live() {
                    // An index left behind only takes space until the next opening.
                    drop(self.ops.remove(copy.disk, index_name(id)).await);
                }
            }
        }
        for disk in self.disks.borrow_mut().iter_mut() {
            disk.ask_again();
        }
        self.changed.raise();
    }
}
