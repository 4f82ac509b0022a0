//! Finding the end of the log: Present, Absent, Faulty, position by position (FAULT-MODEL, "Finding the end of the log").

use std::sync::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{ALIGN, Block, DATA_START, Seal, peek_block_len};
use crate::io::Buffer;
use crate::log::Log;
use crate::log::index::IndexBuilder;
use crate::log::lack::is_host_lack;
use crate::log::placement::QUORUM;
use crate::log::walk::{Link, Place, check};
use crate::options::padded_transaction;
use crate::types::{Epoch, Lsn, SegmentId};

/// How much of a member is read at once.
const WINDOW: usize = 1 << 20;

/// A member of an unsealed segment's set that can be read and knows the segment's epoch: it has a vote.
pub(crate) struct Voter {
    pub(crate) place: Place,
    /// It holds everything below.
    pub(crate) flushed: Lsn,
    window: Option<(u32, Buffer)>,
    /// The first position that another member has and it lacks.
    pub(crate) lacks: Option<(u32, Link)>,
}

impl Voter {
    pub(crate) fn new(place: Place, flushed: Lsn) -> Voter {
        Voter { place, flushed, window: None, lacks: None }
    }
}

/// An unsealed segment as recovery finds it.
pub(crate) struct Unsealed {
    pub(crate) segment: SegmentId,
    pub(crate) epoch: Epoch,
    /// How many disks its set has.
    pub(crate) set: usize,
    pub(crate) voters: Vec<Voter>,
    /// How far members with a vote have flushed on which no slot has the segment's header: nothing was written to the
    /// segment there, or it does not verify.
    pub(crate) bare: Vec<Lsn>,
    /// What the first blocks of later segments follow: where one of them goes on, this segment was full.
    pub(crate) continued: Vec<Link>,
    /// Its seal, where the superblocks know it although a segment before it has none: its length is final.
    pub(crate) seal: Option<Seal>,
}

/// What a segment holds once its end is found.
pub(crate) struct Found {
    pub(crate) end: u32,
    pub(crate) link: Link,
    pub(crate) transactions: u64,
    pub(crate) records: u64,
    /// The highest commit index seen.
    pub(crate) commit: u64,
}

/// How a position stands on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Present(usize),
    /// Nothing was ever written there.
    Empty,
    /// What is there does not verify: an earlier life of the slot, a torn write, or rot.
    NotHere,
    /// It could not be read.
    Unreadable,
}

impl Log {
    /// Walks an unsealed segment from its start and notes what one member lacks that another has. It changes nothing.
    /// `known_commit` is the highest commit index that later segments show.
    pub(crate) async fn find_end(
        &self,
        unsealed: &mut Unsealed,
        from: Link,
        known_commit: u64,
        builder: &Mutex<IndexBuilder>,
    ) -> Result<Found> {
        let mut found = Found { end: DATA_START, link: from, transactions: 0, records: 0, commit: known_commit };
        loop {
            if unsealed.seal.as_ref().is_some_and(|seal| seal.length == found.end) {
                return Ok(found);
            }
            let mut standings = Vec::with_capacity(unsealed.voters.len());
            for voter in &mut unsealed.voters {
                standings.push(self.stand(voter, found.end, found.link).await?);
            }
            let present = standings.iter().position(|standing| matches!(standing, Standing::Present(_)));
            let present = present.filter(|_| {
                !planted!(ShortestLog) || standings.iter().all(|standing| matches!(standing, Standing::Present(_)))
            });
            let Some(holder) = present else {
                self.check_end(unsealed, &standings, &mut found).await?;
                return Ok(found);
            };
            keep(unsealed, holder, &standings, &mut found, builder);
        }
    }

    async fn stand(&self, voter: &mut Voter, at: u32, link: Link) -> Result<Standing> {
        if at >= self.options.segment_bytes {
            return Ok(Standing::Empty);
        }
        let place = voter.place;
        // A block that the window cuts off is read again with all its bytes.
        for again in [false, true] {
            let inside = |(start, bytes): &(u32, Buffer)| (*start..*start + bytes.len() as u32).contains(&at) && !again;
            let (start, bytes) = match voter.window.take().filter(inside) {
                Some(window) => window,
                None => match self.read_block(&place, at, WINDOW).await {
                    Ok(bytes) => (at, bytes),
                    Err(error) if is_host_lack(&error) => return Err(self.host_lacks(place.disk, "a segment", &error)),
                    Err(_) => return Ok(Standing::Unreadable),
                },
            };
            let here = bytes.get((at - start) as usize..).unwrap_or(&[]);
            let verdict = check(&place, at, link, here).map(|block| block.padded_len());
            let empty = here.iter().take(ALIGN).all(|byte| *byte == 0);
            let cut = peek_block_len(here).is_some_and(|claimed| claimed > here.len());
            voter.window = Some((start, bytes));
            match verdict {
                Ok(len) => return Ok(Standing::Present(len)),
                Err(_) if cut => {
                    voter.window = None;
                }
                Err(_) if empty => return Ok(Standing::Empty),
                Err(_) => return Ok(Standing::NotHere),
            }
        }
        Ok(Standing::NotHere)
    }

    pub(crate) fn largest_block(&self) -> usize {
        padded_transaction(self.options.transaction_bytes).max(self.options.block_bytes).max(8 << 20)
    }

    /// Reads from `at` on at least `len` bytes, and all of the block that begins there, as far as the segment goes: it may have been written
    /// under other options.
    pub(crate) async fn read_block(&self, place: &Place, at: u32, len: usize) -> std::io::Result<Buffer> {
        let left = (self.options.segment_bytes - at) as usize;
        let read = async |len: usize| {
            self.recovery_bytes.set(self.recovery_bytes.get() + len as u64);
            self.ops.read(place.disk, place.file, u64::from(at), len).await
        };
        let bytes = read(len.min(left)).await?;
        match peek_block_len(&bytes) {
            Some(claimed) if claimed > bytes.len() && bytes.len() < left => read((claimed + len).min(left)).await,
            _ => Ok(bytes),
        }
    }

    /// No voter has the position. It is the end if enough of them are Absent; a Faulty one is never counted.
    async fn check_end(&self, unsealed: &mut Unsealed, standings: &[Standing], found: &mut Found) -> Result<()> {
        let is_full = found.end >= self.options.segment_bytes || unsealed.continued.contains(&found.link);
        if is_full && unsealed.seal.is_none() {
            return Ok(());
        }
        // What lies after the end may say that the end is committed: a member that cannot be read there does not know.
        let mut looked = Vec::with_capacity(unsealed.voters.len());
        for voter in &unsealed.voters {
            let commit = self.later_commit(voter, found.end).await?;
            looked.push(commit.is_some() || planted!(FaultyIsAbsent));
            found.commit = found.commit.max(commit.unwrap_or(0));
        }
        let at = Lsn::new(unsealed.segment, found.end);
        let committed = found.link.sequence <= found.commit || unsealed.seal.is_some();
        let absent = |(voter, standing): (&Voter, &Standing)| {
            let not_here = matches!(standing, Standing::Empty | Standing::NotHere);
            (not_here && !committed && voter.flushed <= at) || planted!(FaultyIsAbsent)
        };
        let all = || unsealed.voters.iter().zip(standings).zip(&looked);
        let pairs = || all().filter(|(pair, looked)| **looked && absent(*pair)).map(|(pair, _)| pair);
        let bare = unsealed.bare.iter().filter(|flushed| !committed && **flushed <= at).count();
        // One of those that do not verify may be the last flushed block, rotten: the strict setting does not count it.
        let doubt = self.options.strict_tail && pairs().any(|(_, standing)| *standing == Standing::NotHere);
        let absent = pairs().count() + bare - usize::from(doubt);
        let needed = unsealed.set + 1 - QUORUM;
        if absent >= needed {
            return Ok(());
        }
        let message = format!(
            "position {at}: {absent} of {} disks say that nothing was acknowledged there, {needed} needed; {}; \
             restore the other disks of the set and open again",
            unsealed.set,
            if committed {
                "a later block says that it was committed"
            } else {
                "a disk is missing, unreadable or rotten"
            },
        );
        Err(Error::new(ErrorKind::RestoreDisk, message))
    }

    /// The highest commit index that blocks behind `at` show: the block after a broken one starts within the
    /// largest block's length.
    async fn later_commit(&self, voter: &Voter, at: u32) -> Result<Option<u64>> {
        let place = voter.place;
        if at >= self.options.segment_bytes {
            return Ok(Some(0));
        }
        let bytes = match self.read_block(&place, at, self.largest_block()).await {
            Ok(bytes) => bytes,
            Err(error) if is_host_lack(&error) => return Err(self.host_lacks(place.disk, "a segment", &error)),
            Err(_) => return Ok(None),
        };
        let offsets = (ALIGN..bytes.len()).step_by(ALIGN);
        let commits = offsets.filter_map(|offset| {
            let rest = &bytes[offset..];
            peek_block_len(rest)?;
            let block = Block::verify_at(rest, place.log, place.epoch, place.segment, at + offset as u32).ok()?;
            Some(block.header().commit)
        });
        Ok(Some(commits.max().unwrap_or(0)))
    }
}

/// Any Present keeps the block: it is written to every voter that lacks it before anything of it is shown.
fn keep(
    unsealed: &mut Unsealed,
    holder: usize,
    standings: &[Standing],
    found: &mut Found,
    builder: &Mutex<IndexBuilder>,
) {
    let Standing::Present(len) = standings[holder] else { return };
    let Some((start, window)) = &unsealed.voters[holder].window else { return };
    let from = (found.end - start) as usize;
    let block = Block::trusted(&window[from..from + len]);
    let header = block.header();
    let before = (found.end, found.link);
    found.link = Link { sequence: header.sequence + 1, chain: block.checksum() };
    found.commit = found.commit.max(header.commit);
    {
        let mut builder = crate::shared::lock(builder);
        for (ordinal, (_, frame)) in block.frames().enumerate() {
            found.transactions += 1;
            found.records += frame.count() as u64;
            builder.add(Lsn::new(unsealed.segment, found.end | ordinal as u32), &frame);
        }
    }
    for (voter, standing) in unsealed.voters.iter_mut().zip(standings) {
        if !matches!(standing, Standing::Present(_)) && !planted!(SkipWriteBack) {
            voter.lacks.get_or_insert(before);
        }
    }
    found.end += len as u32;
}

/// The seal of a segment whose end was found.
pub(crate) fn seal(
    unsealed: &Unsealed,
    from: Link,
    found: &Found,
    set: Vec<crate::types::DiskId>,
    log: crate::types::LogId,
) -> Seal {
    Seal {
        log,
        segment: unsealed.segment,
        epoch: unsealed.epoch,
        length: found.end,
        base_sequence: from.sequence,
        base_chain: from.chain,
        next_sequence: found.link.sequence,
        end_chain: found.link.chain,
        transactions: found.transactions,
        records: found.records,
        set,
    }
}
