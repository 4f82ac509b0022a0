//! The `inspect` subcommand: a closed region's superblocks, segments, blocks and records, as text or JSON.

use std::fmt::Write as _;
use std::path::PathBuf;

use meridian::format::{FrameKind, Seal, Superblock};
use meridian::{DiskId, SegmentId};
use serde::Serialize;
use serde_json::{Value, json};

use super::{OfflineDisk, open_all};
use crate::{Outcome, say};

/// How much to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Depth {
    /// Superblocks and segments.
    Segments,
    /// Blocks, too.
    Blocks,
    /// Transactions and the first bytes of records, too.
    Records,
}

/// Bytes of a record that are shown.
const SHOWN: usize = 24;

/// Shows the disks in these directories that can be read, and says why the others cannot; with `only`, one segment of them.
pub(crate) fn inspect(paths: &[PathBuf], depth: Depth, only: Option<u32>, as_json: bool) -> Outcome {
    let opened = open_all(paths)?;
    let all: Vec<Value> =
        opened.disks.iter().map(|disk| describe(disk, depth, only.map(SegmentId))).collect::<Result<_, _>>()?;
    let mut shown = String::new();
    if as_json {
        shown = serde_json::to_string_pretty(&all).map_err(|error| error.to_string())?;
        shown.push('\n');
    } else {
        all.iter().for_each(|disk| outline(&mut shown, disk, 0));
    }
    say::out(format_args!("{shown}"));
    opened.problems.iter().for_each(|problem| say::complain(format_args!("meridian-bench: {problem}\n")));
    Ok(opened.problems.is_empty())
}

fn describe(disk: &OfflineDisk, depth: Depth, only: Option<SegmentId>) -> Result<Value, String> {
    let slots: Vec<Value> = disk.slots.iter().map(|slot| slot.as_ref().map_or_else(error, superblock)).collect();
    let mut segments = Vec::new();
    for file in &disk.segments {
        let header = match &file.header {
            Ok(header) if only.is_none_or(|only| only == header.segment) => header,
            Ok(_) => continue,
            Err(why) if only.is_none() => {
                segments.push(json!({ "file": file.name, "bytes": file.size, "free": why }));
                continue;
            }
            Err(_) => continue,
        };
        let retained = disk.retained().any(|(other, _)| other.name == file.name);
        let mut inner = Vec::new();
        let mut last_block = 0;
        let walk = file.walk(file.seal.as_ref(), &mut |met| {
            if depth >= Depth::Blocks && met.block != last_block {
                last_block = met.block;
                inner.push(json!({ "block at": met.block }));
            }
            if depth >= Depth::Records {
                inner.push(transaction(met));
            }
        });
        let walk = walk.map_err(|why| format!("{}: {why}", file.name))?;
        segments.push(json!({
            "file": file.name, "bytes": file.size, "segment": header.segment.0, "epoch": header.epoch.0,
            "retained": retained, "set": ids(&header.set), "seal": file.seal.as_ref().map(seal),
            "blocks": walk.blocks, "transactions": walk.transactions, "records": walk.records, "verifies up to": walk.end,
            "stopped": walk.stopped, "content": inner,
        }));
    }
    let derived: Vec<Value> = disk
        .derived
        .iter()
        .map(|(name, content)| json!({ "file": name, "holds": content.as_ref().map_or_else(|why| format!("BROKEN: {why}"), Clone::clone) }))
        .collect();
    Ok(json!({ "disk": disk.path, "superblocks": slots, "segments": segments, "derived": derived }))
}

fn error(why: impl Serialize) -> Value {
    json!({ "does not verify": why })
}

fn ids(set: &[DiskId]) -> Vec<String> {
    set.iter().map(|disk| format!("{:032x}", disk.0)).collect()
}

fn superblock(block: &Superblock) -> Value {
    let members: Vec<Value> = block
        .members
        .iter()
        .map(|member| {
            let (fault, upgrade) = (&member.fault_domain, &member.upgrade_domain);
            json!({ "disk": format!("{:032x}", member.disk.0), "fault domain": fault, "upgrade domain": upgrade, "zone": member.zone })
        })
        .collect();
    let epochs: Vec<Value> = block
        .epochs
        .iter()
        .map(|entry| json!({ "epoch": entry.epoch.0, "first segment": entry.first_segment.0, "set": ids(&entry.set) }))
        .collect();
    let seals: Vec<Value> = block.seals.iter().map(seal).collect();
    json!({
        "log": format!("{:032x}", block.log.0), "disk": format!("{:032x}", block.disk.0), "generation": block.generation,
        "promised epoch": block.promised.0, "sound epoch": block.sound.0, "first retained segment": block.trim.0, "flushed": block.flushed.to_string(),
        "committed block": block.committed, "closed in order": block.clean, "segment bytes": block.segment_size,
        "members": members, "epochs": epochs, "seals": seals,
    })
}

fn seal(seal: &Seal) -> Value {
    json!({
        "segment": seal.segment.0, "epoch": seal.epoch.0, "length": seal.length, "first block": seal.base_sequence,
        "next block": seal.next_sequence, "chain": format!("{:016x} → {:016x}", seal.base_chain, seal.end_chain),
        "transactions": seal.transactions, "records": seal.records, "set": ids(&seal.set),
    })
}

fn transaction(met: &super::Met<'_>) -> Value {
    let header = met.frame.header();
    let records: Vec<String> = met.frame.records().map(preview).collect();
    json!({
        "transaction at": met.offset, "system": header.kind == FrameKind::System, "account": header.account.0,
        "account epoch": header.epoch, "partition": format!("{:032x}", header.partition.0),
        "first sequence": header.first_sequence, "time": header.time, "client": format!("{:x}", header.client.0),
        "client sequence": header.client_sequence, "records": records,
    })
}

/// A record's length and first bytes.
fn preview(record: &[u8]) -> String {
    let shown: String = record.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect();
    let more = if record.len() > SHOWN { "…" } else { "" };
    format!("{} bytes: {shown}{more}", record.len())
}

/// A value as an outline: scalars on one line, everything else indented below.
fn outline(out: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let Value::Object(fields) = value else {
        let _ = writeln!(out, "{indent}{}", scalar(value));
        return;
    };
    let line: Vec<String> = fields
        .iter()
        .filter(|(_, field)| !field.is_array() && !field.is_object() && !field.is_null())
        .map(|(name, field)| format!("{name} {}", scalar(field)))
        .collect();
    let _ = writeln!(out, "{indent}{}", line.join(", "));
    for (name, field) in fields {
        match field {
            Value::Array(items) if items.iter().all(Value::is_string) && !items.is_empty() && depth < 4 => {
                let items: Vec<String> = items.iter().map(scalar).collect();
                let _ = writeln!(out, "{indent}  {name}: {}", items.join(", "));
            }
            Value::Array(items) if !items.is_empty() => {
                let _ = writeln!(out, "{indent}  {name}:");
                items.iter().for_each(|item| outline(out, item, depth + 2));
            }
            Value::Object(_) => {
                let _ = writeln!(out, "{indent}  {name}:");
                outline(out, field, depth + 2);
            }
            _ => {}
        }
    }
}

fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}
