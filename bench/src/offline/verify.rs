//! The `verify` subcommand: do the copies of a closed region verify, agree, and follow one another?

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use meridian::SegmentId;
use meridian::format::{DATA_START, Seal, Superblock};
use serde::Serialize;

use super::{OfflineDisk, SegmentFile, Walk, open_all};
use crate::Outcome;
use crate::report::number;

/// Copies of a segment when all is well, and the fewest that a committed block can be on.
const COPIES: usize = 3;
const QUORUM: usize = 2;

/// What the verification of a region found.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Findings {
    /// Disks read.
    pub(crate) disks: usize,
    /// Retained segments.
    pub(crate) segments: usize,
    /// Copies of them read to the end.
    pub(crate) copies: usize,
    /// Blocks verified, over all copies.
    pub(crate) blocks: u64,
    /// Transactions in one copy of the log.
    pub(crate) transactions: u64,
    /// Records in them.
    pub(crate) records: u64,
    /// Sealed segments with fewer than three whole copies on different disks.
    pub(crate) short: usize,
    /// Damage, disagreement, gaps. Empty: the region is sound.
    pub(crate) problems: Vec<String>,
    /// What is allowed and worth knowing: a missing third copy, an unsealed tail, a stale disk.
    pub(crate) notes: Vec<String>,
}

/// A copy of one segment.
struct Copy<'a> {
    disk: &'a OfflineDisk,
    file: &'a SegmentFile,
    seal: Option<Seal>,
}

/// Verifies the region whose disks these directories are. One that cannot be read is a problem, and the others are judged without it.
///
/// # Errors
/// A message when none can be read, or one is in use.
pub(crate) fn verify(paths: &[PathBuf]) -> Result<Findings, String> {
    let opened = open_all(paths)?;
    let disks: Vec<OfflineDisk> = opened.disks;
    let mut findings = Findings { disks: disks.len(), problems: opened.problems, ..Findings::default() };
    let Some(newest) = newest(&disks, &mut findings) else { return Ok(findings) };
    let mut segments: BTreeMap<SegmentId, Vec<Copy<'_>>> = BTreeMap::new();
    for disk in &disks {
        for (file, header) in
            disk.retained().filter(|(_, header)| header.log == newest.log && header.segment >= newest.trim)
        {
            let decided = newest.seals.iter().find(|seal| seal.segment == header.segment);
            let seal = file.seal.clone().or_else(|| decided.cloned());
            segments.entry(header.segment).or_default().push(Copy { disk, file, seal });
        }
    }
    findings.segments = segments.len();
    let mut log = LogSoFar::default();
    for (segment, copies) in &segments {
        verify_segment(*segment, &disks, copies, &mut log, &mut findings)?;
    }
    check_end(newest, segments.len(), log.next, &mut findings);
    let first = segments.keys().next().copied();
    if first.is_some_and(|first| first > newest.trim) {
        findings
            .problems
            .push(format!("segments {} and on are retained but the first found is {first:?}", newest.trim.0));
    }
    Ok(findings)
}

/// Whether the log goes as far as the superblock says that it was committed. Nothing else tells of a last segment, or of a
/// last block, that is gone from every disk.
fn check_end(newest: &Superblock, segments: usize, next: u64, findings: &mut Findings) {
    let (committed, last) = (newest.committed, next.saturating_sub(1));
    if segments == 0 && committed > 0 {
        findings.problems.push(format!("no copy of any segment, but {committed} blocks were committed"));
    } else if last < committed {
        findings.problems.push(format!("the log ends with block {last}, but block {committed} was committed"));
    }
}

/// The superblock of the highest epoch and generation; says what is wrong with the others.
fn newest<'a>(disks: &'a [OfflineDisk], findings: &mut Findings) -> Option<&'a Superblock> {
    let newest =
        disks.iter().filter_map(OfflineDisk::superblock).max_by_key(|block| (block.promised, block.generation));
    let Some(newest) = newest else {
        findings.problems.push("no superblock verifies on any disk".to_string());
        return None;
    };
    for disk in disks {
        let name = disk.path.display();
        match disk.superblock() {
            None => findings.problems.push(format!("{name}: neither superblock slot verifies")),
            Some(block) if block.log != newest.log => {
                findings.problems.push(format!("{name}: belongs to another region"))
            }
            Some(block) if block.promised < newest.promised => {
                findings.notes.push(format!("{name}: stale, at epoch {} of {}", block.promised.0, newest.promised.0));
            }
            Some(_) => {}
        }
        let broken = disk.derived.iter().filter_map(|(name, content)| Some((name, content.as_ref().err()?)));
        findings.problems.extend(broken.map(|(file, why)| format!("{name}/{file}: {why}")));
    }
    let known = newest
        .members
        .iter()
        .filter(|member| disks.iter().filter_map(OfflineDisk::superblock).any(|block| block.disk == member.disk));
    let known = known.count();
    if known * 2 <= newest.members.len() {
        findings.problems.push(format!("{known} of {} disks are here: too few to judge", newest.members.len()));
    } else if known < newest.members.len() {
        findings.notes.push(format!("{known} of {} disks are here", newest.members.len()));
    }
    if !newest.clean {
        findings.notes.push("the region was not closed in order: its tail is decided when it is opened".to_string());
    }
    Some(newest)
}

/// What the segments before say of the next.
#[derive(Default)]
struct LogSoFar {
    /// The segment before: its number, and the next sequence and the chain at its sealed end.
    before: Option<(SegmentId, u64, u64)>,
    /// The sequence behind the last block; an empty segment does not change it.
    next: u64,
    /// The next sequence of each partition.
    partitions: BTreeMap<(u64, u128), u64>,
}

fn verify_segment(
    segment: SegmentId,
    disks: &[OfflineDisk],
    copies: &[Copy<'_>],
    log: &mut LogSoFar,
    findings: &mut Findings,
) -> Result<(), String> {
    let mut best: Option<(Walk, &Copy<'_>)> = None;
    let mut whole = BTreeSet::new();
    for copy in copies {
        let name = format!("{}/{} (segment {})", copy.disk.path.display(), copy.file.name, segment.0);
        let walk = copy.file.walk(copy.seal.as_ref(), &mut |_| {}).map_err(|error| format!("{name}: {error}"))?;
        findings.copies += 1;
        findings.blocks += walk.blocks;
        match (&copy.seal, &walk.stopped) {
            (Some(seal), None) => {
                check_seal(seal, &walk, &name, findings);
                // Two on one disk are lost together.
                whole.insert(&copy.disk.path);
            }
            // A copy without a seal page of its own may be one that was left behind when the set changed.
            (Some(_), Some(why)) if copy.file.seal.is_none() => {
                findings.notes.push(format!("{name}: an incomplete copy, {why}"))
            }
            (Some(_), Some(why)) => findings.problems.push(format!("{name}: {why}")),
            (None, _) => check_flushed(copy, &walk, &name, findings),
        }
        if let Some((other, at)) = &best {
            let common = walk.chain.len().min(other.chain.len());
            if walk.chain[..common] != other.chain[..common] {
                findings.problems.push(format!("{name}: differs from {}/{}", at.disk.path.display(), at.file.name));
            }
        }
        if best.as_ref().is_none_or(|(other, _)| walk.blocks > other.blocks) {
            best = Some((walk, copy));
        }
    }
    let Some((walk, copy)) = best else { return Ok(()) };
    let sealed = copies.iter().find_map(|copy| copy.seal.as_ref());
    let whole = whole.len();
    findings.short += usize::from(sealed.is_some() && whole < COPIES);
    match sealed {
        Some(_) if whole < QUORUM => findings.problems.push(format!("segment {}: {whole} whole copies", segment.0)),
        Some(_) if whole < COPIES => {
            findings.notes.push(format!("segment {}: {whole} of {COPIES} copies are whole", segment.0))
        }
        None => {
            missing_tails(segment, disks, copies, findings);
            findings.notes.push(format!("segment {}: unsealed, {} blocks in its longest copy", segment.0, walk.blocks))
        }
        Some(_) => {}
    }
    follow(segment, &walk, sealed, log, findings);
    read_partitions(segment, copy, log, findings)?;
    findings.transactions += walk.transactions;
    findings.records += walk.records;
    Ok(())
}

/// Whether an unsealed copy goes as far as its disk was flushed. A disk that is not in the segment's set says nothing of it.
fn check_flushed(copy: &Copy<'_>, walk: &Walk, name: &str, findings: &mut Findings) {
    let (Some(block), Ok(header)) = (copy.disk.superblock(), &copy.file.header) else { return };
    let flushed = block.flushed;
    if block.clean && header.set.contains(&block.disk) && flushed.segment() == header.segment {
        let (end, flushed) = (walk.end, flushed.offset());
        if end < flushed {
            let why = walk.stopped.as_deref().unwrap_or("the file ends");
            findings.problems.push(format!("{name}: ends at {end}, but was flushed up to {flushed}; {why}"));
        }
    }
}

/// Disks that flushed a part of this unsealed segment and have no copy of it.
fn missing_tails(segment: SegmentId, disks: &[OfflineDisk], copies: &[Copy<'_>], findings: &mut Findings) {
    let log = copies.iter().find_map(|copy| copy.disk.superblock()).map(|block| block.log);
    for disk in disks {
        let flushed = disk
            .superblock()
            .filter(|block| block.clean && Some(block.log) == log)
            .map(|block| block.flushed)
            .filter(|flushed| flushed.segment() == segment && flushed.offset() > DATA_START);
        if let Some(flushed) = flushed.filter(|_| copies.iter().all(|copy| copy.disk.path != disk.path)) {
            let (name, offset) = (disk.path.display(), flushed.offset());
            findings.problems.push(format!("{name}: flushed segment {} up to {offset}, has no copy of it", segment.0));
        }
    }
}

/// Whether what was read is what the seal says.
fn check_seal(seal: &Seal, walk: &Walk, name: &str, findings: &mut Findings) {
    let end_chain = walk.chain.last().copied().unwrap_or(seal.base_chain);
    let read = (walk.end, walk.next_sequence, end_chain, walk.transactions, walk.records);
    let said = (seal.length, Some(seal.next_sequence), seal.end_chain, seal.transactions, seal.records);
    if read != said {
        findings.problems.push(format!("{name}: the seal says {said:?}, the blocks {read:?}"));
    }
}

/// Whether a segment goes on where the one before ended.
fn follow(segment: SegmentId, walk: &Walk, seal: Option<&Seal>, log: &mut LogSoFar, findings: &mut Findings) {
    let base = seal.map(|seal| (seal.base_sequence, seal.base_chain)).or(walk.base);
    if let (Some((before, sequence, chain)), Some(base)) = (log.before, base) {
        if segment.0 != before.0 + 1 {
            findings.problems.push(format!("no copy of segments {} to {}", before.0 + 1, segment.0 - 1));
        }
        if base != (sequence, chain) {
            findings.problems.push(format!("segment {} does not go on where segment {} ends", segment.0, before.0));
        }
    }
    let end = seal.map(|seal| (seal.next_sequence, seal.end_chain));
    let end = end.or_else(|| walk.next_sequence.zip(walk.chain.last().copied()));
    log.next = end.map_or(log.next, |(sequence, _)| sequence.max(log.next));
    log.before = end.map(|(sequence, chain)| (segment, sequence, chain));
}

/// Whether each partition's sequences are dense.
fn read_partitions(
    segment: SegmentId,
    copy: &Copy<'_>,
    log: &mut LogSoFar,
    findings: &mut Findings,
) -> Result<(), String> {
    let walked = copy.file.walk(copy.seal.as_ref(), &mut |met| {
        let (account, partition) = met.partition();
        let first = met.frame.header().first_sequence;
        let next = log.partitions.entry((account.0, partition.0)).or_insert(first);
        if *next != first {
            let place = format!("segment {} offset {}", segment.0, met.offset);
            findings.problems.push(format!(
                "{place}: account {} partition {:x}: record {first}, expected {next}",
                account.0, partition.0
            ));
        }
        *next = first + met.frame.count() as u64;
    });
    walked.map(|_| ()).map_err(|error| error.to_string())
}

/// Runs the subcommand.
pub(crate) fn verify_command(paths: &[PathBuf], json: bool) -> Outcome {
    let findings = verify(paths)?;
    if json {
        say!("{}", serde_json::to_string_pretty(&findings).map_err(|error| error.to_string())?);
        return Ok(findings.problems.is_empty());
    }
    say!(
        "{} disks, {} segments in {} copies: {} blocks verified; the log holds {} transactions with {} records",
        findings.disks,
        findings.segments,
        findings.copies,
        number(findings.blocks as f64),
        number(findings.transactions as f64),
        number(findings.records as f64)
    );
    findings.notes.iter().for_each(|note| say!("  note: {note}"));
    findings.problems.iter().for_each(|problem| say!("  PROBLEM: {problem}"));
    say!("{}", if findings.problems.is_empty() { "sound" } else { "NOT SOUND" });
    Ok(findings.problems.is_empty())
}
