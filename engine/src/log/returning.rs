//! A disk that comes back, and a fresh one in its place: reread and rebuilt before it counts (invariants 5 and 7).

use std::path::PathBuf;

use crate::error::{Error, ErrorKind, Result};
use crate::format::Member;
use crate::health::DiskState;
use crate::io::DiskIndex;
use crate::log::Log;
use crate::log::attach::{Scan, member};
use crate::log::lack::is_host_lack;
use crate::log::placement::QUORUM;
use crate::types::{DiskId, Epoch, Lsn};

impl Log {
    /// Takes a disk back that was lost, or with `replace` an empty directory in its place.
    pub(crate) async fn return_disk(&self, at: usize, replace: bool) -> Result<()> {
        let _stage = stage!(Return);
        let disk = DiskIndex(at);
        let (path, state, joining) = {
            let disks = self.disks.borrow();
            let disk =
                disks.get(at).ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no disk {at}")))?;
            (disk.config.path.clone(), disk.state, disk.joining)
        };
        if matches!(state, DiskState::Healthy | DiskState::Rebuilding) {
            return Err(Error::invalid(format!("{} is in use", path.display())));
        }
        if joining || self.ops.in_flight(disk) > 0 {
            let message = format!("operations on {} have not returned yet: try again", path.display());
            return Err(Error::new(ErrorKind::Busy, message));
        }
        if self.with(|pipeline| pipeline.members.iter().any(|member| member.disk == disk)) {
            return Err(Error::new(ErrorKind::Busy, "the set is being changed: try again"));
        }
        self.disks.borrow_mut()[at].joining = true;
        let result = self.join(disk, path, replace, state).await;
        self.disks.borrow_mut()[at].joining = false;
        self.changed.raise();
        result
    }

    async fn join(&self, disk: DiskIndex, path: PathBuf, replace: bool, state: DiskState) -> Result<()> {
        let at = disk.0;
        // What was on its way to its slots must have ended before they are found anew.
        let _no_rebuild = self.rebuilding.lock().await;
        let _no_pages = self.paging.lock().await;
        self.catalog.borrow_mut().forget_disk(disk);
        self.publish_all();
        self.disks.borrow_mut()[at].forget();
        self.checkpoint_on.borrow_mut().remove(&disk);
        // A disk that was never attached, or whose lock is gone, has nothing to let go.
        drop(self.ops.detach(disk).await);
        let attached = self.ops.attach(disk, path, replace).await;
        let is_attached = attached.is_ok();
        let result = match attached {
            Ok(traits) => {
                self.disks.borrow_mut()[at].traits = Some(traits);
                if replace { self.take_blank(disk).await } else { self.take_known(disk).await }
            }
            Err(error) => Err(self.cannot_join(disk, "it cannot be attached", &error)),
        };
        self.note_space(disk).await;
        if let Err(error) = &result {
            // Its directory is let go, so that it can be repaired or unmounted.
            self.catalog.borrow_mut().forget_disk(disk);
            self.publish_all();
            self.disks.borrow_mut()[at].forget();
            if is_attached {
                drop(self.ops.detach(disk).await);
            }
            let mut disks = self.disks.borrow_mut();
            if matches!(disks[at].state, DiskState::Healthy | DiskState::Rebuilding) || disks[at].state == state {
                disks[at].set(state, error.to_string());
            }
        }
        result
    }

    async fn take_known(&self, disk: DiskIndex) -> Result<()> {
        let Some(theirs) = self.read_superblock(disk).await? else { return Err(self.why_lost(disk)) };
        let ours = self.superblock(disk, theirs.disk);
        if !self.place_disk(disk, &theirs, &ours)? {
            return Err(Error::invalid("the directory belongs to another region, or was replaced in this one"));
        }
        self.disks.borrow_mut()[disk.0].set(DiskState::Rebuilding, "it came back and is being reread");
        let Some(files) = self.list_slots(disk).await? else { return Err(self.why_lost(disk)) };
        let Some(scan) = self.scan_disk(disk, &files).await? else { return Err(self.why_lost(disk)) };
        self.give_up_shortened(disk, &scan)?;
        for slot in scan.slots {
            self.adopt(slot);
        }
        self.remove_unfinished(disk).await;
        self.persist(&[disk]).await
    }

    fn cannot_join(&self, disk: DiskIndex, what: &str, error: &std::io::Error) -> Error {
        if is_host_lack(error) {
            return self.host_lacks(disk, what, error);
        }
        Error::new(ErrorKind::RestoreDisk, format!("{what}: {error}"))
    }

    fn why_lost(&self, disk: DiskIndex) -> Error {
        Error::new(ErrorKind::RestoreDisk, self.disks.borrow()[disk.0].reason.clone())
    }

    /// Slots that have lost their end are made again, if the others hold what they held.
    fn give_up_shortened(&self, disk: DiskIndex, scan: &Scan) -> Result<()> {
        for (name, header) in &scan.shortened {
            let catalog = self.catalog.borrow();
            let ours = catalog.get(header.segment).filter(|segment| segment.epoch == header.epoch);
            if ours.is_some_and(|segment| segment.complete().count() < QUORUM) {
                let id = header.segment.0;
                let message = format!("{name} has lost its end, and segment {id} has no two other copies yet");
                return Err(Error::new(ErrorKind::RestoreDisk, message));
            }
            self.disks.borrow_mut()[disk.0].unfinished.push(name.clone());
        }
        Ok(())
    }

    async fn take_blank(&self, disk: DiskIndex) -> Result<()> {
        let refuse = |error: std::io::Error| self.cannot_join(disk, "it cannot be used", &error);
        let names = self.ops.list(disk).await.map_err(refuse)?;
        if let Some((name, _)) = names.iter().find(|(name, _)| name != "LOCK") {
            return Err(Error::invalid(format!("a replacement has to be empty; it holds {name:?}")));
        }
        let replaced = {
            let disks = self.disks.borrow();
            let fresh = member(DiskId(0), &disks[disk.0].config);
            let known =
                disks[disk.0].id.filter(|id| self.meta.borrow().members.iter().any(|member| member.disk == *id));
            drop(disks);
            known.or_else(|| self.member_without_disk(&fresh))
        };
        // With one member more, a majority would be more than the disks that are left.
        let Some(replaced) = replaced else {
            return Err(Error::invalid(
                "no disk that is missing has these labels: it would be one more, not a replacement",
            ));
        };
        let file = self.make_superblock(disk).await.map_err(refuse)?;
        let id = DiskId(self.ops.environment().random());
        let fresh = {
            let mut disks = self.disks.borrow_mut();
            let disk = &mut disks[disk.0];
            disk.id = Some(id);
            disk.superblock = Some(file);
            disk.turn = 0;
            (disk.flushed, disk.sound) = (Lsn::ZERO, Epoch(0));
            member(id, &disk.config)
        };
        {
            let mut meta = self.meta.borrow_mut();
            meta.members.retain(|member| member.disk != replaced);
            meta.members.push(fresh);
        }
        // First the disks that stay, a majority by themselves: the fresh disk and the one that it replaces must never
        // both be in a majority (found by the protocol model).
        self.persist(&self.attached()).await?;
        self.disks.borrow_mut()[disk.0].set(DiskState::Rebuilding, "a replacement that is being filled");
        self.persist(&[disk]).await
    }

    /// The member with these labels that no disk is: its directory was found empty or foreign.
    pub(crate) fn member_without_disk(&self, fresh: &Member) -> Option<DiskId> {
        let disks = self.disks.borrow();
        let meta = self.meta.borrow();
        let unknown = |member: &&Member| disks.iter().all(|disk| disk.id != Some(member.disk));
        let labels =
            |member: &Member| (member.fault_domain.clone(), member.upgrade_domain.clone(), member.zone.clone());
        let same = meta.members.iter().filter(unknown).find(|member| labels(member) == labels(fresh));
        same.map(|member| member.disk)
    }
}
