//! The end of a schedule: the victim is repaired, the region must become whole, and its copies must be equal.

use super::life::{Life, SealedCopies, Stop};
use crate::format::{ALIGN, Block, DATA_START, Seal, SegmentHeader};
use crate::health::{DiskState, Health};
use crate::log::disk::Slot;
use crate::log::placement::COPIES;
use crate::shared::Control;
use crate::types::{Lsn, ORDINAL};

/// No block of a schedule is larger, see the harness's options.
const LARGEST_BLOCK: u64 = 20 << 10;

impl Life<'_> {
    /// Brings every disk back, lets everything be repaired, and looks at everything.
    pub(super) fn make_whole(&mut self) {
        self.compare_copies(true);
        let reread = !matches!(self.standing(self.victim()), Some(DiskState::Healthy));
        let done = self.return_disks();
        let done = done.or_else(|| self.commit_some());
        let done = done.or_else(|| self.scrub_clean(reread));
        if done.is_some() || self.failed() {
            return;
        }
        self.compare_copies(false);
        self.close();
    }

    fn standing(&mut self, disk: usize) -> Option<DiskState> {
        self.health().ok().map(|health| health.disks[disk].state)
    }

    fn health(&mut self) -> Result<Health, Stop> {
        let mut ticket = self.control(|done| Control::Health { done });
        let mut health = None;
        let stop = self.step_until("a look at the health", |_| {
            let ready = ticket.take_if(|ticket| ticket.is_done());
            health = health.take().or(ready.and_then(|ticket| ticket.wait().ok()).and_then(Result::ok));
            health.is_some() || ticket.is_none()
        });
        match (stop, health) {
            (Some(stop), _) => Err(stop),
            (None, Some(health)) => Ok(health),
            (None, None) => Err(Stop::Cut),
        }
    }

    /// Returns every disk that is out until the region says that it is whole.
    fn return_disks(&mut self) -> Option<Stop> {
        for round in 0..200 {
            let health = match self.health() {
                Ok(health) => health,
                Err(stop) => return Some(stop),
            };
            if health.halted.is_some() {
                self.complain(format!("the region halted with every disk in order: {health:?}"));
                return Some(Stop::Cut);
            }
            let healthy = health.disks.iter().all(|disk| disk.state == DiskState::Healthy);
            if health.is_whole() && healthy {
                return None;
            }
            for (disk, standing) in health.disks.iter().enumerate() {
                let replace = match standing.state {
                    DiskState::Healthy | DiskState::Rebuilding => continue,
                    DiskState::Blank => true,
                    // What cannot be read is thrown away: an empty directory takes its place.
                    _ if round > 5 => {
                        self.world().blank(&standing.path);
                        true
                    }
                    _ => false,
                };
                drop(self.control(|done| Control::Return { disk, replace, done }));
            }
            let pause = self.now() + 50_000_000;
            if let Some(stop) = self.step_until("a pause", |life| life.now() >= pause) {
                return Some(stop);
            }
        }
        let health = self.health();
        self.complain(format!("the region does not become whole: {health:?}"));
        Some(Stop::Cut)
    }

    /// With every disk in order, commits of every kind are acknowledged.
    fn commit_some(&mut self) -> Option<Stop> {
        for _ in 0..4 {
            self.name_account();
            self.send_new();
            if let Some(stop) = self.settle() {
                return Some(stop);
            }
        }
        None
    }

    /// After one scrub has repaired what rotted, the next one finds nothing.
    /// If the victim was just reread as a whole, the first finds nothing either (invariant 5).
    fn scrub_clean(&mut self, reread: bool) -> Option<Stop> {
        for round in 0..2 {
            let mut ticket = self.control(|done| Control::Scrub { done });
            let stop = self.step_until("a scrub", |_| ticket.as_ref().is_none_or(|ticket| ticket.is_done()));
            if stop.is_some() {
                return stop;
            }
            let report = ticket.take().and_then(|ticket| ticket.wait().ok()).and_then(Result::ok);
            let found = report.map_or(0, |report| report.corrupt);
            if found > 0 && (reread || round > 0) {
                self.complain(format!("scrub {round} found {found} corrupt places in copies that count as verified"));
                return Some(Stop::Cut);
            }
            if let Some(stop) = self.return_disks() {
                return Some(stop);
            }
        }
        None
    }

    /// Sealed copies are bitwise identical up to the seal (invariant 4), and hold nothing but verified blocks. Those on
    /// the victim may lie until it was repaired.
    pub(super) fn compare_copies(&mut self, but_victim: bool) {
        let victim = self.victim();
        let copies: Vec<SealedCopies> = self.sealed_copies();
        for (id, seal, slots) in copies {
            let mut first: Option<Vec<u8>> = None;
            for (disk, slot) in slots.into_iter().filter(|(disk, _)| !but_victim || *disk != victim) {
                let path = self.disk_path(disk);
                let Some(bytes) = self.world().bytes(&path, &Slot::name(slot.number)) else {
                    return self.complain(format!("segment {} has no file on disk {disk}", id.0));
                };
                if let Err(what) = check_copy(&bytes, &seal) {
                    return self.complain(format!("segment {} on disk {disk}: {what}", id.0));
                }
                let data = bytes[DATA_START as usize..seal.length as usize].to_vec();
                match &first {
                    None => first = Some(data),
                    Some(first) if *first == data => {}
                    Some(_) => return self.complain(format!("copies of sealed segment {} differ", id.0)),
                }
            }
        }
    }
}

impl Life<'_> {
    /// Who asked for all copies was answered when three disks hold his block. What the victim holds may be anything.
    pub(super) fn check_all_copies(&mut self, sent: usize, lsn: Lsn) {
        let victim = self.victim();
        let (epoch, id, copies) = {
            let (log, catalog) = (self.log().meta.borrow().log(), self.log().catalog.borrow());
            // It was trimmed meanwhile.
            let Some(segment) = catalog.get(lsn.segment()) else { return };
            let copies: Vec<_> = segment.copies.iter().map(|copy| (copy.disk.0, copy.slot.number)).collect();
            (segment.epoch, log, copies)
        };
        let at = lsn.offset() & !ORDINAL;
        let holds = |disk: usize, slot: u32| {
            let range = u64::from(at)..u64::from(at) + LARGEST_BLOCK;
            let bytes = self.world().part(&self.disk_path(disk), &Slot::name(slot), range);
            bytes.is_some_and(|bytes| Block::verify_at(&bytes, id, epoch, lsn.segment(), at).is_ok())
        };
        let held = copies.iter().filter(|(disk, slot)| *disk == victim || holds(*disk, *slot)).count();
        if held < COPIES {
            self.complain(format!("transaction {sent} at {lsn} was acknowledged as on all disks, and {held} hold it"));
        }
    }
}

/// Header page, seal page, and every block in its place behind the one before.
fn check_copy(bytes: &[u8], seal: &Seal) -> Result<(), String> {
    let header = SegmentHeader::decode(&bytes[..ALIGN]).map_err(|error| format!("header: {error}"))?;
    let page = Seal::decode(&bytes[ALIGN..2 * ALIGN]).map_err(|error| format!("seal: {error}"))?;
    if (header.log, header.segment, header.epoch) != (seal.log, seal.segment, seal.epoch) {
        return Err(format!("another segment's header: {header:?}"));
    }
    if page != *seal {
        return Err(format!("its seal is {page:?}, the region's {seal:?}"));
    }
    let (mut at, mut chain) = (DATA_START, seal.base_chain);
    while at < seal.length {
        let rest = &bytes[at as usize..seal.length as usize];
        let block = Block::verify_at(rest, seal.log, seal.epoch, seal.segment, at);
        let block = block.map_err(|error| format!("block at {at}: {error}"))?;
        if block.header().chain != chain {
            return Err(format!("the block at {at} does not follow the one before"));
        }
        chain = block.checksum();
        at += block.padded_len() as u32;
    }
    if chain == seal.end_chain { Ok(()) } else { Err("its last block is not the seal's".to_owned()) }
}
