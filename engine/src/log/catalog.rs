//! Which segments exist, how each ended, and which disks hold a copy.

use std::collections::BTreeMap;

use crate::format::Seal;
use crate::io::DiskIndex;
use crate::log::disk::Slot;
use crate::log::placement::QUORUM;
use crate::types::{DiskId, Epoch, SegmentId};

/// One disk's copy of a segment.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) disk: DiskIndex,
    pub(crate) slot: Slot,
    /// It holds everything up to the seal.
    pub(crate) held: bool,
    /// Its seal page is written too. Only such copies are copied from.
    pub(crate) complete: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) epoch: Epoch,
    pub(crate) set: Vec<DiskId>,
    /// Known once the segment's end is decided.
    pub(crate) seal: Option<Seal>,
    pub(crate) copies: Vec<Copy>,
    /// A quorum of copies had the seal's page once: the superblocks need not know the segment, whatever is lost later.
    pub(crate) settled: bool,
}

impl Segment {
    /// Notes whether the seal is on a quorum of copies, after a copy has become complete.
    pub(crate) fn settle(&mut self) {
        self.settled |= self.seal.is_some() && self.complete().count() >= QUORUM;
    }

    pub(crate) fn copy_on(&self, disk: DiskIndex) -> Option<&Copy> {
        self.copies.iter().find(|copy| copy.disk == disk)
    }

    pub(crate) fn complete(&self) -> impl Iterator<Item = &Copy> {
        self.copies.iter().filter(|copy| copy.complete)
    }
}

/// The retained segments, dense from the first to the active one.
#[derive(Default)]
pub(crate) struct Catalog {
    segments: BTreeMap<SegmentId, Segment>,
}

impl Catalog {
    pub(crate) fn get(&self, id: SegmentId) -> Option<&Segment> {
        self.segments.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: SegmentId) -> Option<&mut Segment> {
        self.segments.get_mut(&id)
    }

    pub(crate) fn insert(&mut self, id: SegmentId, segment: Segment) {
        let dense = self.segments.last_key_value().is_none_or(|(last, _)| last.0 + 1 == id.0);
        assert!(dense, "segment {} follows the last one", id.0);
        self.segments.insert(id, segment);
    }

    pub(crate) fn remove(&mut self, id: SegmentId) -> Option<Segment> {
        self.segments.remove(&id)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (SegmentId, &Segment)> {
        self.segments.iter().map(|(&id, segment)| (id, segment))
    }

    pub(crate) fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = (SegmentId, &mut Segment)> {
        self.segments.iter_mut().map(|(&id, segment)| (id, segment))
    }

    pub(crate) fn len(&self) -> usize {
        self.segments.len()
    }

    pub(crate) fn first(&self) -> Option<SegmentId> {
        self.segments.first_key_value().map(|(&id, _)| id)
    }

    /// Marks a copy as complete or as one to rebuild.
    pub(crate) fn set_complete(&mut self, id: SegmentId, disk: DiskIndex, complete: bool) {
        let Some(segment) = self.segments.get_mut(&id) else { return };
        if let Some(copy) = segment.copies.iter_mut().find(|copy| copy.disk == disk) {
            (copy.held, copy.complete) = (complete, complete);
        }
        segment.settle();
    }

    /// A disk's copy holds everything up to the seal.
    pub(crate) fn set_held(&mut self, id: SegmentId, disk: DiskIndex) {
        let copies = self.segments.get_mut(&id).map(|segment| &mut segment.copies);
        if let Some(copy) = copies.and_then(|copies| copies.iter_mut().find(|copy| copy.disk == disk)) {
            copy.held = true;
        }
    }

    /// Forgets every copy on a disk, which has gone.
    pub(crate) fn forget_disk(&mut self, disk: DiskIndex) {
        for segment in self.segments.values_mut() {
            segment.copies.retain(|copy| copy.disk != disk);
        }
    }
}
