//! What one simulated disk holds: files as sparse pages, and the flaws of the medium under them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::fault::{Condition, FaultKind};

/// The unit in which file contents are kept and shared with snapshots.
const PAGE: usize = 4096;

type Page = [u8; PAGE];

/// One file: its pages (a missing one reads as zeros), and what is wrong with the medium below.
#[derive(Clone, Default)]
pub(super) struct Inode {
    len: u64,
    pages: Vec<Option<Arc<Page>>>,
    /// Ranges that cannot be read until they are written again.
    latent: Vec<Range<u64>>,
    /// Bytes that rotted and were not written since.
    rotten: Vec<u64>,
    /// Pages whose next write reports success and is dropped, because a flush of them failed before.
    deaf: Vec<u64>,
    /// How long it was before it was cut short.
    whole: u64,
}

impl Inode {
    pub(super) fn with_len(len: u64) -> Inode {
        let mut inode = Inode::default();
        inode.set_len(len);
        inode
    }

    pub(super) fn with_bytes(bytes: &[u8]) -> Inode {
        let mut inode = Inode::with_len(bytes.len() as u64);
        inode.write(0, bytes);
        inode
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn set_len(&mut self, len: u64) {
        let whole = usize::try_from(len.div_ceil(PAGE as u64)).expect("a simulated file fits memory");
        self.pages.resize(whole, None);
        let tail = (len % PAGE as u64) as usize;
        if len < self.len && tail > 0 {
            // What was cut off must not come back when the file grows again.
            if let Some(Some(page)) = self.pages.last_mut() {
                Arc::make_mut(page)[tail..].fill(0);
            }
        }
        self.len = len;
    }

    /// Lands `data` at `offset`, growing the file if it must. Writing a range again cures its latent errors.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        if end > self.len {
            self.set_len(end);
        }
        if !self.latent.is_empty() {
            self.latent = self.latent.iter().flat_map(|range| without(range, &(offset..end))).collect();
        }
        if !self.rotten.is_empty() {
            self.rotten.retain(|at| !(offset..end).contains(at));
        }
        let mut at = offset as usize;
        let mut rest = data;
        while !rest.is_empty() {
            let within = at % PAGE;
            let take = rest.len().min(PAGE - within);
            let slot = &mut self.pages[at / PAGE];
            let untouched = slot.is_none() && is_zero(&rest[..take]);
            match slot.as_mut().and_then(Arc::get_mut) {
                _ if untouched => {}
                Some(page) => page[within..within + take].copy_from_slice(&rest[..take]),
                None => {
                    let mut page = slot.as_deref().copied().unwrap_or([0; PAGE]);
                    page[within..within + take].copy_from_slice(&rest[..take]);
                    *slot = Some(Arc::new(page));
                }
            }
            at += take;
            rest = &rest[take..];
        }
    }

    /// Copies what lies at `offset` into `out`; returns how much there was before the end of the file.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let length = self.len.saturating_sub(offset).min(out.len() as u64) as usize;
        let mut done = 0;
        while done < length {
            let at = offset as usize + done;
            let within = at % PAGE;
            let take = (length - done).min(PAGE - within);
            let target = &mut out[done..done + take];
            match &self.pages[at / PAGE] {
                Some(page) => target.copy_from_slice(&page[within..within + take]),
                None => target.fill(0),
            }
            done += take;
        }
        length
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.read(0, &mut bytes);
        bytes
    }

    pub(super) fn flip(&mut self, offset: u64, bit: u8) {
        let mut byte = [0];
        if self.read(offset, &mut byte) == 1 {
            // Rot does not cure a latent error, so it goes around `write`.
            let page = self.pages[offset as usize / PAGE].get_or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[offset as usize % PAGE] = byte[0] ^ (1 << (bit % 8));
            self.rotten.push(offset);
        }
    }

    /// Takes everything behind `len` away.
    pub(super) fn cut(&mut self, len: u64) {
        self.whole = self.whole.max(self.len);
        self.set_len(len.min(self.len));
    }

    /// Whether a part that was cut off is missing before `end`.
    pub(super) fn is_short(&self, end: u64) -> bool {
        self.len < end.min(self.whole)
    }

    pub(super) fn rotten(&self, range: &Range<u64>) -> bool {
        self.rotten.iter().any(|at| range.contains(at))
    }

    pub(super) fn spoil(&mut self, range: Range<u64>) {
        self.latent.push(range);
    }

    pub(super) fn unreadable(&self, range: &Range<u64>) -> bool {
        self.latent.iter().any(|bad| bad.start < range.end && range.start < bad.end)
    }

    /// After a failed flush of `range`: the system believes its pages clean, so that the next write there may be dropped.
    pub(super) fn deafen(&mut self, range: &Range<u64>) {
        self.deaf.extend(range.start / PAGE as u64..range.end.div_ceil(PAGE as u64));
    }

    /// Whether a write of `range` falls on deaf pages; they hear again afterwards.
    pub(super) fn drops_write(&mut self, range: &Range<u64>) -> bool {
        let pages = range.start / PAGE as u64..range.end.div_ceil(PAGE as u64);
        let before = self.deaf.len();
        self.deaf.retain(|page| !pages.contains(page));
        self.deaf.len() < before
    }

    pub(super) fn hear(&mut self) {
        self.deaf.clear();
    }
}

/// Zeros need no page.
fn is_zero(bytes: &[u8]) -> bool {
    *bytes == [0; PAGE][..bytes.len()]
}

/// What is left of `range` outside `hole`.
fn without(range: &Range<u64>, hole: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let before = range.start..range.end.min(hole.start);
    let after = range.start.max(hole.end)..range.end;
    [before, after].into_iter().filter(|part| part.start < part.end)
}

/// An old state of a disk, to bring back later ([`World::restore`](super::World::restore)).
#[derive(Clone)]
pub struct Image {
    pub(super) files: Vec<(String, Inode)>,
}

/// One simulated disk: named files and how the device behaves.
///
/// Files that lost their name live on until the last process ends, as on a real file system.
#[derive(Default)]
pub(super) struct Medium {
    pub(super) names: BTreeMap<String, u64>,
    pub(super) inodes: FxHashMap<u64, Inode>,
    next_inode: u64,
    pub(super) condition: Condition,
    /// The process that holds the lock.
    pub(super) locked_by: Option<u64>,
    /// What brought it to its path, to be recorded when a process attaches it.
    pub(super) arrived: Option<FaultKind>,
    /// Files that lost their names by themselves.
    pub(super) gone: BTreeSet<String>,
    /// Whether the directory is there at all.
    pub(super) exists: bool,
}

impl Medium {
    pub(super) fn from_image(image: &Image, arrived: FaultKind) -> Medium {
        let mut medium = Medium { exists: true, arrived: Some(arrived), ..Medium::default() };
        for (name, inode) in &image.files {
            medium.put(name, inode.clone());
        }
        medium
    }

    pub(super) fn image(&self) -> Image {
        let files = self.names.iter().map(|(name, inode)| (name.clone(), self.inodes[inode].clone())).collect();
        Image { files }
    }

    /// Gives `name` to a new file; one that had the name before loses it.
    pub(super) fn put(&mut self, name: &str, inode: Inode) -> u64 {
        self.next_inode += 1;
        self.inodes.insert(self.next_inode, inode);
        self.names.insert(name.to_owned(), self.next_inode);
        self.gone.remove(name);
        self.next_inode
    }

    pub(super) fn named(&self, name: &str) -> Option<&Inode> {
        self.names.get(name).and_then(|inode| self.inodes.get(inode))
    }

    pub(super) fn named_mut(&mut self, name: &str) -> Option<&mut Inode> {
        self.names.get(name).and_then(|inode| self.inodes.get_mut(inode))
    }

    /// Takes a file's name away; whoever has it open keeps it.
    pub(super) fn unlink(&mut self, name: &str) -> bool {
        let found = self.names.remove(name).is_some();
        if found {
            self.gone.insert(name.to_owned());
        }
        found
    }

    /// Whether this is a file that lost its name while it was open.
    pub(super) fn is_gone(&self, inode: u64) -> bool {
        !self.gone.is_empty() && !self.names.values().any(|named| *named == inode)
    }

    pub(super) fn used(&self) -> u64 {
        self.names.values().map(|inode| self.inodes[inode].len().next_multiple_of(PAGE as u64)).sum()
    }

    /// Frees what has no name, and forgets failed flushes, when the last process is gone.
    pub(super) fn settle(&mut self) {
        let named: Vec<u64> = self.names.values().copied().collect();
        self.inodes.retain(|inode, _| named.contains(inode));
        self.inodes.values_mut().for_each(Inode::hear);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_reads_as_it_was_written_and_zeros_elsewhere() {
        let mut inode = Inode::with_len(3 * 4096);
        inode.write(5000, &[7; 4000]);
        let mut out = vec![1; 4 * 4096];
        assert_eq!(inode.read(0, &mut out), 3 * 4096);
        assert!(out[..5000].iter().all(|byte| *byte == 0));
        assert!(out[5000..9000].iter().all(|byte| *byte == 7));
        assert!(out[9000..3 * 4096].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_snapshot_keeps_its_bytes_when_the_file_is_written_again() {
        let mut inode = Inode::with_bytes(&[1; 8192]);
        let old = inode.clone();
        inode.write(0, &[2; 4096]);
        assert_eq!((old.bytes()[0], inode.bytes()[0], inode.bytes()[4096]), (1, 2, 1));
    }

    #[test]
    fn what_was_cut_off_does_not_come_back() {
        let mut inode = Inode::with_bytes(&[9; 5000]);
        inode.set_len(100);
        inode.set_len(5000);
        assert!(inode.bytes()[100..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_latent_error_is_cured_where_it_is_written_only() {
        let mut inode = Inode::with_len(5 * 4096);
        inode.spoil(0..4 * 4096);
        inode.write(4096, &[1; 4096]);
        let page = |n: u64| n * 4096..(n + 1) * 4096;
        let bad: Vec<bool> = (0..5).map(|n| inode.unreadable(&page(n))).collect();
        assert_eq!(bad, [true, false, true, true, false]);
    }
}
