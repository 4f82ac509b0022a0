//! A disk is pulled out under a steady load; the set changes, a spare takes its place, the copies are rebuilt.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use meridian::Region;

use super::{FlightPlan, Job, text};
use crate::latency::{self, summarize, write_hgrm};
use crate::load::{Pace, drive};
use crate::machine::CpuSample;
use crate::report::{CpuRow, LatencyGroup, Ratio, Series, number};

/// The steady load before the disk is lost, and after the copies are whole again.
const BEFORE: Duration = Duration::from_secs(3);
const AFTER: Duration = Duration::from_secs(2);
/// The longest wait for the copies to be whole.
const REBUILD: Duration = Duration::from_secs(20);
/// A gap that begins so long after the pull is not the pull's.
const ITS_GAP: Duration = Duration::from_secs(2);
/// How long writes may stand still (issue: writes resume in under 50 ms).
const GAP_AIM: f64 = 50.0;
/// How much higher the 99th percentile may be while copies are rebuilt.
const REBUILD_AIM: f64 = 2.0;

/// When things happened.
#[derive(Clone, Copy, Default)]
struct Moments {
    pulled: Option<Instant>,
    whole: Option<Instant>,
}

/// Says that the script is over when it is dropped: where the script panics, too, or the load would go on for ever.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Pulls a disk of the current set, waits for the copies to be whole, and lets the load run on a little.
fn script(region: &Region, pull: impl Fn(usize), moments: &Mutex<Moments>) -> Result<usize, String> {
    let note = |change: &dyn Fn(&mut Moments)| change(&mut moments.lock().unwrap_or_else(PoisonError::into_inner));
    std::thread::sleep(BEFORE);
    let victim = victim(region)?;
    pull(victim);
    let pulled = Instant::now();
    note(&|moments| moments.pulled = Some(pulled));
    while pulled.elapsed() < REBUILD {
        std::thread::sleep(Duration::from_millis(10));
        let health = region.health().map_err(text)?;
        if !health.disks[victim].in_set && health.is_whole() {
            note(&|moments| moments.whole = Some(Instant::now()));
            break;
        }
    }
    std::thread::sleep(AFTER);
    Ok(victim)
}

/// The last disk of the current set, once it is whole: on a machine that stalls, a change of its own may be under way.
fn victim(region: &Region) -> Result<usize, String> {
    let start = Instant::now();
    loop {
        let health = region.health().map_err(text)?;
        let last = (0..health.disks.len()).rev().find(|disk| health.disks[*disk].in_set);
        match last.filter(|_| health.is_whole()) {
            Some(disk) => return Ok(disk),
            None if start.elapsed() > REBUILD => {
                return Err(health.halted.unwrap_or_else(|| "the copies did not become whole under load".to_string()));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// What the acknowledgements looked like before, during and after.
struct Watch {
    last: Option<Instant>,
    /// The longest time without an acknowledgement after the pull: its end and length. `None` while none came after it.
    gap: Option<(Instant, Duration)>,
    before: hdrhistogram::Histogram<u64>,
    during: hdrhistogram::Histogram<u64>,
    after: hdrhistogram::Histogram<u64>,
}

impl Watch {
    fn new() -> Watch {
        let [before, during, after] = [(); 3].map(|()| latency::histogram());
        Watch { last: None, gap: None, before, during, after }
    }

    /// Takes the time up to `at` for a gap if it began before [`ITS_GAP`] was over, however late it ends.
    fn measure(&mut self, moments: Moments, at: Instant) {
        if let (Some(pulled), Some(last)) = (moments.pulled, self.last)
            && at > pulled
            && last.saturating_duration_since(pulled) < ITS_GAP
            && self.gap.is_none_or(|(_, longest)| at - last > longest)
        {
            self.gap = Some((at, at - last));
        }
    }

    /// The load is over: a gap that no acknowledgement ended lasts until now, and without any after the pull there is none.
    fn end(&mut self, moments: Moments, at: Instant) {
        if self.gap.is_some() {
            self.measure(moments, at);
        }
    }

    fn see(&mut self, moments: Moments, at: Instant, took: Duration) {
        self.measure(moments, at);
        self.last = Some(at);
        let phase = match (moments.pulled, moments.whole) {
            (None, _) => &mut self.before,
            (Some(_), None) => &mut self.during,
            _ => &mut self.after,
        };
        latency::record(phase, took, 1);
    }
}

impl Job<'_> {
    /// Runs the steady load through the loss of a disk.
    pub(super) fn lose_a_disk(&mut self) -> Result<(), String> {
        let region = self.region.take().ok_or("the region is closed")?;
        let rate = self.steady;
        self.progress.step(&format!("{} transactions a second; a disk is pulled out", number(rate)), 0);
        let (cpu, start, first) = (CpuSample::now(), Instant::now(), self.next);
        let (moments, over) = (Mutex::new(Moments::default()), AtomicBool::new(false));
        let mut watch = Watch::new();
        let plugs = self.plugs.clone();
        let begun = self.meter.seconds();
        let (victim, end, records, failed) = std::thread::scope(|scope| -> Result<_, String> {
            let scripted = scope.spawn(|| {
                let _over = Over(&over);
                script(&region, |disk| plugs.pull(disk), &moments)
            });
            let mut plan = FlightPlan::new(self, |_, _| !over.load(Ordering::SeqCst)).watched_by(|at, took| {
                let now = *moments.lock().unwrap_or_else(PoisonError::into_inner);
                watch.see(now, at, took);
            });
            let end = drive(&region, Pace::Open(rate), first, &mut plan).map_err(text)?;
            let (records, failed) = (plan.records, plan.failed);
            let victim = scripted.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok((victim, end, records, failed))
        })?;
        self.next = end;
        self.report.cpu.push(CpuRow {
            what: "steady load, a disk lost".into(),
            records,
            cpu: cpu.until(&CpuSample::now()),
        });
        let moments = *moments.lock().unwrap_or_else(PoisonError::into_inner);
        watch.end(moments, Instant::now());
        let at = |moment: Instant| begun + (moment - start).as_secs_f64();
        self.tell_of_the_loss(&region, victim, moments, &watch, &at)?;
        self.claim(
            "No commit failed while a disk was lost",
            failed == 0,
            format!("{failed} of {} failed", number((end - first) as f64)),
        );
        self.region = Some(region);
        Ok(())
    }

    /// Events, curves and aims of the loss.
    fn tell_of_the_loss(
        &mut self,
        region: &Region,
        victim: usize,
        moments: Moments,
        watch: &Watch,
        at: &dyn Fn(Instant) -> f64,
    ) -> Result<(), String> {
        // Without an end it is not zero: it misses its aim.
        let gap = watch.gap.map_or(f64::INFINITY, |(_, length)| length.as_secs_f64() * 1e3);
        let change = region.stats().map_err(text)?.set_change.max() as f64 / 1e6;
        if let Some(pulled) = moments.pulled {
            self.meter.event_at(at(pulled), format!("disk {} pulled out", victim + 1), true);
        }
        if let Some((resumed, _)) = watch.gap {
            self.meter.event_at(at(resumed), format!("sealed, writes go on after {} ms", number(gap)), false);
        }
        if let Some(whole) = moments.whole {
            self.meter.event_at(at(whole), "three copies of everything again", false);
        }
        self.claim(
            "Writes went on after the disk was lost",
            watch.gap.is_some(),
            watch.gap.map_or_else(
                || "no acknowledgement came after it was pulled out".to_string(),
                |_| format!("after {} ms without an acknowledgement", number(gap)),
            ),
        );
        let rebuilt = moments.pulled.zip(moments.whole).map(|(pulled, whole)| (whole - pulled).as_secs_f64());
        self.claim(
            "Every copy was rebuilt on a healthy disk",
            rebuilt.is_some(),
            rebuilt.map_or_else(
                || format!("not whole after {} s", REBUILD.as_secs()),
                |seconds| format!("whole {} ms after the loss", number(seconds * 1e3)),
            ),
        );
        let phases = [
            ("before", "three disks", &watch.before),
            ("a disk lost, rebuilding", "from the loss until all copies were whole", &watch.during),
            ("after", "on the spare", &watch.after),
        ];
        let series = phases.iter().map(|(name, meaning, histogram)| Series {
            name: (*name).to_string(),
            meaning: (*meaning).to_string(),
            summary: summarize(histogram),
        });
        self.report.latencies.push(LatencyGroup {
            title: "Latency while a disk is lost".to_string(),
            note: format!(
                "Open loop at {} transactions a second, each timed from when it was due.",
                number(self.steady)
            ),
            series: series.collect(),
        });
        for (name, histogram) in [("before", &watch.before), ("rebuilding", &watch.during), ("after", &watch.after)] {
            write_hgrm(&self.out.join(format!("disk-loss-{name}.hgrm")), histogram).map_err(text)?;
        }
        self.report.headline(number(gap), "ms", "without an acknowledgement when a disk was pulled out");
        let p99 = |histogram: &hdrhistogram::Histogram<u64>| histogram.value_at_quantile(0.99) as f64 / 1e3;
        self.report.aims.push(Ratio::value("writes stand still after a disk is lost", "ms", gap, GAP_AIM));
        self.report.aims.push(Ratio::value(
            "p99 during the rebuild ÷ before",
            "×",
            p99(&watch.during) / p99(&watch.before),
            REBUILD_AIM,
        ));
        self.progress.done(&format!(
            "disk {} pulled out: writes went on after {} ms (set changed in {} ms), whole again after {} s",
            victim + 1,
            number(gap),
            number(change),
            rebuilt.map_or("–".to_string(), number)
        ));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gap in milliseconds when the disk is pulled at 1,000, acknowledgements come at `acknowledged`, and the load ends at 9,000.
    fn gap(acknowledged: &[u64]) -> Option<u128> {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let (mut watch, moments) = (Watch::new(), Moments { pulled: Some(at(1_000)), whole: None });
        for millis in acknowledged {
            watch.see(moments, at(*millis), Duration::from_millis(1));
        }
        watch.end(moments, at(9_000));
        watch.gap.map(|(_, length)| length.as_millis())
    }

    #[test]
    fn a_gap_counts_by_when_it_begins_and_none_at_all_is_told_from_a_short_one() {
        let until_the_end: Vec<u64> = (30..=90).map(|tenth| tenth * 100).collect();
        let run = |first: &[u64]| gap(&[first, &until_the_end].concat());
        assert_eq!(run(&[990, 1_030, 2_900]), Some(1_870), "within the two seconds");
        assert_eq!(gap(&[999, 3_499, 5_600, 9_000]), Some(2_500), "ended late; what begins later is not its");
        assert_eq!(gap(&[990, 1_010, 4_000, 9_000]), Some(2_990), "began late, ended later");
        assert_eq!(gap(&[990, 1_010]), Some(7_990), "never ended");
        assert_eq!(gap(&[500, 990]), None, "nothing came after the pull");
        assert_eq!(gap(&[]), None, "nothing came");
    }
}
