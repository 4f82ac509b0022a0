//! Rereading every copy and repairing what rotted from the others (acceptance L5).

use std::rc::Rc;
use std::time::Duration;

use futures::future::select;

use crate::error::{Corruption, ErrorKind};
use crate::format::{DATA_START, Seal, SegmentHeader};
use crate::io::DiskIndex;
use crate::log::Log;
use crate::log::catalog::Copy;
use crate::log::lack::{is_host_lack, is_unanswered, state_after};
use crate::log::walk::{Broken, Link, Place, Run, start};
use crate::shared::lock;
use crate::types::SegmentId;

/// How long the background scrub rests after it has read everything once.
const REST: Duration = Duration::from_secs(60);

/// How long the directories are left alone: ten times shorter where readers stumbled.
const LOOK: Duration = Duration::from_secs(30);

/// What a scrub found.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    /// Copies of sealed segments read to their end.
    pub copies: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Places that did not verify, one for each run of blocks or page.
    pub corrupt: u64,
    /// Of these, how many were rewritten from another copy and verify now.
    pub repaired: u64,
    /// Places that no copy could repair.
    pub lost: Vec<Corruption>,
}

impl Log {
    pub(crate) async fn keep_scrubbing(self: Rc<Log>) {
        let rate = self.options.scrub_bytes_per_second;
        let mut seen = 0;
        let mut rested = self.ops.now() + REST.as_nanos() as u64;
        let mut looked = self.ops.now();
        loop {
            let mut report = ScrubReport::default();
            let rest = if lock(&self.shared.suspects).is_empty() { LOOK } else { LOOK / 10 };
            if self.ops.now() >= looked + rest.as_nanos() as u64 {
                self.check_files(&mut report).await;
                looked = self.ops.now();
            }
            self.scrub_suspects().await;
            if rate > 0 && self.ops.now() >= rested {
                self.scrub_all(rate, &mut report).await;
                rested = self.ops.now() + REST.as_nanos() as u64;
            }
            let change = std::pin::pin!(self.changed.wait(&mut seen));
            let pause = std::pin::pin!(self.ops.sleep(Duration::from_millis(500)));
            let _first = select(change, pause).await;
        }
    }

    /// The copies that readers found wrong, at full speed.
    async fn scrub_suspects(&self) {
        let suspects = std::mem::take(&mut *lock(&self.shared.suspects));
        for (segment, disk) in suspects {
            self.scrub_copy(segment, disk, 0, &mut ScrubReport::default()).await;
        }
    }

    /// Reads every copy of every sealed segment once.
    pub(crate) async fn scrub_all(&self, rate: u64, report: &mut ScrubReport) {
        self.check_files(report).await;
        let segments: Vec<SegmentId> = self.catalog.borrow().iter().map(|(id, _)| id).collect();
        for id in segments {
            let disks: Vec<DiskIndex> = {
                let catalog = self.catalog.borrow();
                catalog.get(id).into_iter().flat_map(|s| s.complete()).map(|copy| copy.disk).collect()
            };
            for disk in disks {
                if self.closing.borrow().is_some() || self.halted.borrow().is_some() {
                    return;
                }
                // A slow round does not hold up what readers stumbled over.
                self.scrub_suspects().await;
                self.scrub_copy(id, disk, rate, report).await;
            }
        }
    }

    async fn scrub_copy(&self, id: SegmentId, disk: DiskIndex, rate: u64, report: &mut ScrubReport) {
        let _stage = stage!(Scrub);
        let Some((copy, seal, header)) = self.scrubbable(id, disk) else { return };
        let place = Place { log: seal.log, epoch: seal.epoch, segment: id, disk, file: copy.slot.file };
        self.scrub_pages(&place, &header, &seal, report).await;
        let (mut at, mut link) = (DATA_START, start(&seal));
        while at < seal.length {
            if self.scrubbable(id, disk).is_none() {
                return;
            }
            let run = match self.read_run(&place, at, seal.length, link).await {
                Ok(run) => run,
                // Nothing was seen of the copy: it has not rotted, and is looked at again in the next round.
                Err(Broken::Disk(error)) if is_unanswered(&error) || is_host_lack(&error) => return,
                Err(broken) => match self.repair(&place, at, &seal, link, broken, report).await {
                    Some(run) => run,
                    None => return,
                },
            };
            (at, link) = (run.end(), run.link);
            report.bytes += run.bytes.len() as u64;
            self.throttle(run.bytes.len() as u64, rate).await;
        }
        report.copies += 1;
        self.lost.borrow_mut().remove(&id);
    }

    fn scrubbable(&self, id: SegmentId, disk: DiskIndex) -> Option<(Copy, Seal, SegmentHeader)> {
        let catalog = self.catalog.borrow();
        let segment = catalog.get(id)?;
        let seal = segment.seal.clone()?;
        let copy = segment.copy_on(disk).filter(|copy| copy.complete)?.clone();
        let (log, epoch, set) = (seal.log, segment.epoch, segment.set.clone());
        Some((copy, seal, SegmentHeader { log, segment: id, epoch, size: self.options.segment_bytes, set }))
    }

    /// The two pages are what the catalog knows: they are written again where they are not.
    async fn scrub_pages(&self, place: &Place, header: &SegmentHeader, seal: &Seal, report: &mut ScrubReport) {
        let read = self.ops.read(place.disk, place.file, 0, DATA_START as usize).await;
        let expected = [header.encode(), seal.encode()].concat();
        let mut same = read.as_ref().is_err_and(|error| is_unanswered(error) || is_host_lack(error));
        if let Ok(found) = &read {
            // A copy's header names the set that it was first written for: any that decodes to this segment will do.
            let decoded = SegmentHeader::decode(found)
                .is_ok_and(|h| (h.log, h.segment, h.epoch) == (seal.log, seal.segment, seal.epoch));
            same = decoded && found.get(4096..) == expected.get(4096..);
        }
        if same {
            return;
        }
        self.note_corrupt(report);
        let _slot_stays = self.rebuilding.lock().await;
        if self.is_trimmed(place.segment) {
            return;
        }
        let written = self.ops.write_page(place.disk, place.file, 0, &expected).await;
        self.note_repair(place.disk, written, report);
    }

    /// Rewrites what does not verify from another copy. `None` when no copy has it, or the disk refuses.
    async fn repair(
        &self,
        place: &Place,
        at: u32,
        seal: &Seal,
        link: Link,
        broken: Broken,
        report: &mut ScrubReport,
    ) -> Option<Run> {
        self.note_corrupt(report);
        let _slot_stays = self.rebuilding.lock().await;
        if self.is_trimmed(place.segment) {
            return None;
        }
        let run = match self.read_any(place.segment, at, seal.length, link).await {
            Ok(run) => run,
            Err(error) if error.kind() == ErrorKind::System => return None,
            Err(_) => {
                let (segment, offset) = (place.segment, u64::from(at));
                let unread = Corruption { segment, offset, what: "unreadable", expected: 0, found: 0 };
                self.lost.borrow_mut().insert(segment);
                report.lost.push(if let Broken::Bytes(corruption) = broken { corruption } else { unread });
                return None;
            }
        };
        let written = match self.ops.write_page(place.disk, place.file, u64::from(at), &run.bytes).await {
            Ok(()) => match self.read_run(place, at, run.end(), link).await {
                Ok(_) => Ok(()),
                Err(Broken::Disk(error)) if is_host_lack(&error) => return None,
                Err(_) => Err(std::io::Error::other("the rewritten bytes do not verify")),
            },
            failed => failed,
        };
        self.note_repair(place.disk, written, report).then_some(run)
    }

    pub(crate) fn note_corrupt(&self, report: &mut ScrubReport) {
        report.corrupt += 1;
        let (corrupt, repaired) = self.corrupt.get();
        self.corrupt.set((corrupt + 1, repaired));
    }

    pub(crate) fn note_repair(&self, disk: DiskIndex, written: std::io::Result<()>, report: &mut ScrubReport) -> bool {
        match written {
            Ok(()) => {
                report.repaired += 1;
                let (corrupt, repaired) = self.corrupt.get();
                self.corrupt.set((corrupt, repaired + 1));
                true
            }
            Err(error) => {
                self.lose(disk, state_after(&error), format!("a repair failed: {error}"));
                false
            }
        }
    }

    /// A scrub on demand: everything once, at full speed.
    pub(crate) async fn scrub_now(&self) -> ScrubReport {
        let mut report = ScrubReport::default();
        self.scrub_all(0, &mut report).await;
        report
    }
}
