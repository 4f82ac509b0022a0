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
    /// The longest time without an acknowledgement after the pull: its begin and length.
    gap: (Option<Instant>, Duration),
    before: hdrhistogram::Histogram<u64>,
    during: hdrhistogram::Histogram<u64>,
    after: hdrhistogram::Histogram<u64>,
}

impl Watch {
    fn see(&mut self, moments: Moments, at: Instant, took: Duration) {
        if let (Some(pulled), Some(last)) = (moments.pulled, self.last)
            && at > pulled
            && at - pulled < Duration::from_secs(2)
            && at - last > self.gap.1
        {
            self.gap = (Some(at), at - last);
        }
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
        let mut watch = Watch {
            last: None,
            gap: (None, Duration::ZERO),
            before: latency::histogram(),
            during: latency::histogram(),
            after: latency::histogram(),
        };
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
        let gap = watch.gap.1.as_secs_f64() * 1e3;
        let change = region.stats().map_err(text)?.set_change.max() as f64 / 1e6;
        if let Some(pulled) = moments.pulled {
            self.meter.event_at(at(pulled), format!("disk {} pulled out", victim + 1), true);
        }
        if let Some(resumed) = watch.gap.0 {
            self.meter.event_at(at(resumed), format!("sealed, writes go on after {} ms", number(gap)), false);
        }
        if let Some(whole) = moments.whole {
            self.meter.event_at(at(whole), "three copies of everything again", false);
        }
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
