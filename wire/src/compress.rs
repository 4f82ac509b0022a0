//! Compression of a batch's frames, as hard as pays: by what a raw byte costs at each level, processor and link together.

use meridian::geo::Batch;
use zstd::bulk::{Compressor, Decompressor};

use crate::clock::Clock;

/// The levels that are tried; 0 sends the frames as they are.
const LEVELS: [i32; 5] = [0, -3, 1, 3, 6];
/// So often another level is tried, to learn what it costs now.
const PROBE_EVERY: u32 = 32;
/// A link on which a byte costs no more nanoseconds is faster than the fastest level compresses.
const FAST: f64 = 1.0;
/// What is smaller is not worth the call.
const LEAST: usize = 512;

/// Whether frames are compressed on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    /// Never.
    Off,
    /// At the level that gets the most through link and processor; not at all where that is the most.
    #[default]
    Adaptive,
}

/// Chooses the level of each batch by what the ones before have cost.
pub(crate) struct Adaptive {
    mode: Compression,
    compressor: Compressor<'static>,
    clock: Clock,
    /// What a byte on the wire costs, in nanoseconds.
    wire: f64,
    /// By level: nanoseconds of compression for a raw byte, and wire bytes for a raw byte.
    known: [Option<(f64, f64)>; LEVELS.len()],
    level: usize,
    batches: u32,
    raw: Vec<u8>,
    compressed: Vec<u8>,
}

impl Adaptive {
    pub(crate) fn new(mode: Compression) -> std::io::Result<Adaptive> {
        Ok(Adaptive {
            mode,
            compressor: Compressor::new(0)?,
            clock: Clock::start(),
            wire: 0.0,
            known: [Some((0.0, 1.0)), None, None, None, None],
            level: 0,
            batches: 0,
            raw: Vec::new(),
            compressed: Vec::new(),
        })
    }

    /// The compressed frames, where that is less and cheaper.
    pub(crate) fn compress(&mut self, batch: &Batch) -> Option<&[u8]> {
        if self.mode == Compression::Off || batch.bytes < LEAST {
            return None;
        }
        self.batches = self.batches.wrapping_add(1);
        let level = self.probe().unwrap_or(self.level);
        if level == 0 || !self.run(batch, level) {
            return None;
        }
        Some(&self.compressed)
    }

    /// A level to try: one that was never tried where the link is slow enough for any to pay, else now and then one that may.
    fn probe(&self) -> Option<usize> {
        if self.wire > FAST
            && let Some(unknown) = self.known.iter().position(Option::is_none)
        {
            return Some(unknown);
        }
        let turn = (self.batches / PROBE_EVERY) as usize % LEVELS.len();
        // Where compressing costs more than sending, no ratio makes up for it.
        let may_pay = self.known[turn].is_some_and(|(time, _)| time < self.wire);
        (self.batches.is_multiple_of(PROBE_EVERY) && may_pay).then_some(turn)
    }

    fn run(&mut self, batch: &Batch, level: usize) -> bool {
        let mut raw = std::mem::take(&mut self.raw);
        raw.clear();
        batch.frames.iter().for_each(|slice| raw.extend_from_slice(slice));
        let len = self.squeeze(&raw, level);
        self.raw = raw;
        len.is_some_and(|len| len < batch.bytes)
    }

    /// Compresses at a level, and learns what that costs. `None` when zstd cannot.
    fn squeeze(&mut self, raw: &[u8], level: usize) -> Option<usize> {
        let start = self.clock.now();
        self.compressed.resize(zstd::zstd_safe::compress_bound(raw.len()), 0);
        let done = self
            .compressor
            .set_compression_level(LEVELS[level])
            .and_then(|()| self.compressor.compress_to_buffer(raw, &mut self.compressed));
        let len = done.ok()?;
        self.compressed.truncate(len);
        let bytes = raw.len() as f64;
        let (time, ratio) = ((self.clock.now() - start) as f64 / bytes, len as f64 / bytes);
        self.known[level] = Some(match self.known[level] {
            Some(known) => (smooth(known.0, time), smooth(known.1, ratio)),
            None => (time, ratio),
        });
        Some(len)
    }

    /// So many bytes went out in so many nanoseconds, waiting for the link included.
    pub(crate) fn sent(&mut self, bytes: usize, nanos: u64) {
        if bytes < LEAST {
            return;
        }
        self.wire = smooth(self.wire, nanos as f64 / bytes as f64);
        let cost = |known: &Option<(f64, f64)>| known.map(|(time, ratio)| time + ratio * self.wire);
        let costs = self.known.iter().map(cost).enumerate();
        let best = costs.filter_map(|(level, cost)| cost.map(|cost| (level, cost))).min_by(|a, b| a.1.total_cmp(&b.1));
        self.level = best.map_or(0, |(level, _)| level);
    }
}

fn smooth(old: f64, new: f64) -> f64 {
    old + (new - old) / 8.0
}

/// Brings frames back. `raw` is what the header claims: it was checked against what the reader is ready to hold.
pub(crate) fn decompress(body: &[u8], raw: usize) -> std::io::Result<Vec<u8>> {
    let frames = Decompressor::new()?.decompress(body, raw)?;
    if frames.len() != raw {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "the frames are not as long as was claimed"));
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the level has become after so many batches of text over a link where a byte costs so much.
    fn level_after(wire: u64) -> i32 {
        let mut adaptive = Adaptive::new(Compression::Adaptive).expect("zstd is there");
        let text: Vec<u8> = (0..40_000u32).flat_map(|word| format!("flight {} ", word % 977).into_bytes()).collect();
        for _ in 0..100 {
            adaptive.batches = adaptive.batches.wrapping_add(1);
            let level = adaptive.probe().unwrap_or(adaptive.level);
            let sent = if level > 0 { adaptive.squeeze(&text, level).expect("it gets smaller") } else { text.len() };
            adaptive.sent(sent, sent as u64 * wire);
        }
        LEVELS[adaptive.level]
    }

    #[test]
    fn a_slow_link_is_compressed_for_and_a_fast_one_is_not() {
        assert_eq!(level_after(0), 0);
        assert!(level_after(500) != 0, "2 MB/s");
    }

    #[test]
    fn what_was_compressed_comes_back_and_a_false_claim_does_not() {
        let text = b"flight ".repeat(1000);
        let small = zstd::bulk::compress(&text, 1).expect("compressed");
        assert_eq!(decompress(&small, text.len()).expect("right"), text);
        assert!(decompress(&small, text.len() - 1).is_err() && decompress(&small, text.len() + 1).is_err());
        assert!(decompress(&small[..small.len() / 2], text.len()).is_err());
    }
}
