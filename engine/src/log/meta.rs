//! What the superblocks say, and writing it to a majority of them.

use std::collections::BTreeSet;
use std::io;

use futures::future::join_all;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{EpochEntry, MAX_EPOCHS, MAX_SEALS, Member, SUPERBLOCK_SLOT, Seal, Superblock};
use crate::health::DiskState;
use crate::io::{DiskIndex, FileId};
use crate::log::Log;
use crate::log::disk::SUPERBLOCK;
use crate::log::lack::{is_host_lack, state_after};
use crate::types::{DiskId, Epoch, LogId, SegmentId};

/// The part of the superblocks that is the same on all disks.
#[derive(Clone, Default)]
pub(crate) struct Meta {
    pub(crate) log: Option<LogId>,
    pub(crate) generation: u64,
    pub(crate) promised: Epoch,
    pub(crate) members: Vec<Member>,
    pub(crate) epochs: Vec<EpochEntry>,
    /// Seals whose pages are not yet on enough copies.
    pub(crate) seals: Vec<Seal>,
    pub(crate) trim: SegmentId,
    /// The highest block known to be committed when the region was opened.
    pub(crate) committed: u64,
    pub(crate) clean: bool,
}

impl Meta {
    pub(crate) fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    pub(crate) fn log(&self) -> LogId {
        self.log.expect("a region has its log's identity before anything is written")
    }

    /// Forgets seals and epochs of all but the `unsettled` segments. The present epoch stays, and one after each that stays:
    /// it says where that ends.
    pub(crate) fn prune(&mut self, unsettled: &BTreeSet<SegmentId>) {
        self.seals.retain(|seal| unsettled.contains(&seal.segment));
        let epochs = std::mem::take(&mut self.epochs);
        let starts: Vec<SegmentId> = epochs.iter().map(|entry| entry.first_segment).collect();
        let needed = |at: usize| match starts.get(at + 1) {
            Some(&end) => unsettled.range(starts[at]..end).next().is_some(),
            None => true,
        };
        let kept = |at: &usize| needed(*at) || (*at > 0 && needed(*at - 1));
        self.epochs = epochs.into_iter().enumerate().filter(|(at, _)| kept(at)).map(|(_, entry)| entry).collect();
    }

    /// Whether one more epoch, and the seal before it, can be listed.
    pub(crate) fn has_room(&self) -> bool {
        self.seals.len() < MAX_SEALS && self.epochs.len() < MAX_EPOCHS
    }

    /// Lists a seal, for which there is room.
    pub(crate) fn list_seal(&mut self, seal: Seal) {
        self.seals.retain(|known| known.segment != seal.segment);
        assert!(self.seals.len() < MAX_SEALS, "room was made for a seal in the superblocks");
        self.seals.push(seal);
        self.seals.sort_unstable_by_key(|seal| seal.segment);
    }

    /// Lists an epoch, for which there is room. An attempt that failed, or an epoch that wrote nothing, may have left an entry for the
    /// same segment: this one replaces it.
    pub(crate) fn begin_epoch(&mut self, entry: EpochEntry) {
        self.epochs.retain(|known| known.first_segment < entry.first_segment);
        assert!(self.epochs.len() < MAX_EPOCHS, "room was made for an epoch in the superblocks");
        self.epochs.push(entry);
    }
}

impl Log {
    /// Writes the superblocks of every disk that counts. A majority of the members and all `must` have to succeed.
    ///
    /// # Errors
    /// `LimitReached` when a superblock does not fit its slot, which says nothing of any disk; else `RestoreDisk`.
    pub(crate) async fn persist(&self, must: &[DiskIndex]) -> Result<()> {
        let _one_at_a_time = self.superblocks.lock().await;
        self.meta.borrow_mut().generation += 1;
        let mut targets = self.superblock_targets();
        if planted!(SealOnOneDisk) {
            targets.truncate(1);
        }
        let encoded = targets.iter().map(|&(disk, .., id)| self.encode_superblock(disk, id));
        let mut encoded: Vec<Result<Vec<u8>>> = encoded.collect();
        if !planted!(EncoderRefusalSwallowed)
            && let Some(at) = encoded.iter().position(Result::is_err)
        {
            return encoded.swap_remove(at).map(drop);
        }
        let writes = targets.iter().zip(encoded).map(|(&(disk, file, turn, _), bytes)| async move {
            let bytes = bytes?;
            let error = match self.write_superblock(disk, file, turn, &bytes).await {
                Ok(()) => {
                    self.disks.borrow_mut()[disk.0].turn = 1 - turn;
                    return Ok(disk);
                }
                Err(error) => error,
            };
            let reason = format!("the superblock's write failed: {error}");
            self.lose(disk, state_after(&error), reason.clone());
            if is_host_lack(&error) {
                return Err(self.host_lacks(disk, SUPERBLOCK, &error));
            }
            Err(Error::new(ErrorKind::RestoreDisk, reason))
        });
        let results = join_all(writes).await;
        let written: Vec<DiskIndex> = results.iter().filter_map(|result| result.as_ref().ok().copied()).collect();
        let majority = self.meta.borrow().majority();
        if planted!(SealOnOneDisk) && !written.is_empty() {
            return Ok(());
        }
        if written.len() < majority {
            let failed = results.into_iter().filter_map(Result::err);
            if let Some(lack) = failed.into_iter().find(|error| error.kind() == ErrorKind::System) {
                return Err(lack);
            }
            let missing: Vec<usize> =
                (0..self.options.disks.len()).filter(|at| !written.contains(&DiskIndex(*at))).collect();
            let message = format!(
                "superblocks written on {} disks, {majority} needed; restore and open again: {}",
                written.len(),
                self.describe(&missing)
            );
            return Err(Error::new(ErrorKind::RestoreDisk, message));
        }
        match must.iter().find(|disk| !written.contains(disk)) {
            None => Ok(()),
            Some(disk) => {
                let message = format!("the superblock of {} could not be written", self.names(&[disk.0]));
                Err(Error::new(ErrorKind::RestoreDisk, message))
            }
        }
    }

    fn encode_superblock(&self, disk: DiskIndex, id: DiskId) -> Result<Vec<u8>> {
        let superblock = self.superblock(disk, id);
        superblock.encode().map_err(|error| {
            let Superblock { members, epochs, seals, .. } = &superblock;
            let message = format!(
                "superblock: {} disks, {} epochs ({MAX_EPOCHS} accepted) and {} seals ({MAX_SEALS} accepted) do not fit \
                 its {SUPERBLOCK_SLOT} bytes: {error}",
                members.len(),
                epochs.len(),
                seals.len()
            );
            Error::new(ErrorKind::LimitReached, message)
        })
    }

    /// Writes one superblock slot.
    async fn write_superblock(&self, disk: DiskIndex, file: FileId, turn: u8, bytes: &[u8]) -> io::Result<()> {
        debug_assert_eq!(bytes.len(), SUPERBLOCK_SLOT, "a superblock fills its slot");
        let offset = u64::from(turn) * SUPERBLOCK_SLOT as u64;
        self.ops.write_page_in_time(disk, file, offset, bytes).await
    }

    fn superblock_targets(&self) -> Vec<(DiskIndex, FileId, u8, DiskId)> {
        let disks = self.disks.borrow();
        let counted = disks.iter().filter(|disk| matches!(disk.state, DiskState::Healthy | DiskState::Rebuilding));
        counted.filter_map(|disk| Some((disk.index, disk.superblock?, disk.turn, disk.id?))).collect()
    }

    pub(crate) fn superblock(&self, disk: DiskIndex, id: DiskId) -> Superblock {
        let meta = self.meta.borrow();
        let mut disks = self.disks.borrow_mut();
        let flushed = &mut disks[disk.0].flushed;
        let mut committed = meta.committed;
        if let Some(pipeline) = self.pipeline.borrow().as_ref() {
            let member = pipeline.members.iter().find(|member| member.disk == disk && member.live);
            // What is not committed may be cut off, and its positions given to other blocks.
            *flushed = member.map_or(*flushed, |member| member.flushed.min(pipeline.committed).max(*flushed));
            committed = committed.max(pipeline.commit);
        }
        let flushed = *flushed;
        // A disk that is behind promises, too, and learns of the epochs that it missed: it is behind all the same.
        let sound = if disks[disk.0].is_live() { meta.promised } else { disks[disk.0].sound };
        Superblock {
            log: meta.log(),
            disk: id,
            generation: meta.generation,
            promised: meta.promised,
            sound,
            members: meta.members.clone(),
            epochs: meta.epochs.clone(),
            seals: meta.seals.clone(),
            trim: if planted!(ReuseBeforeTrim) { SegmentId(1) } else { meta.trim },
            flushed,
            committed,
            clean: meta.clean,
            segment_size: self.options.segment_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h1_epoch_after_one_that_is_needed_stays_and_says_where_that_ends() {
        let entry = |epoch, first| EpochEntry { epoch: Epoch(epoch), first_segment: SegmentId(first), set: Vec::new() };
        let all = [entry(1, 1), entry(2, 3), entry(3, 5), entry(4, 7), entry(5, 9)];
        let mut meta = Meta { epochs: all.to_vec(), ..Meta::default() };
        meta.prune(&BTreeSet::from([SegmentId(2)]));
        let left: Vec<u64> = meta.epochs.iter().map(|entry| entry.epoch.0).collect();
        assert_eq!(left, [1, 2, 5], "2 says that segment 3 is not of epoch 1, and 5 is the present one");
    }
}
