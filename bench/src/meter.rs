//! What one load measured as it went: a histogram of everything, and the time line.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::latency;
use crate::report::{Event, Point, Timeline};

/// Collects acknowledgements, which come roughly in the order of time.
pub(crate) struct Meter {
    start: Instant,
    interval: Duration,
    /// The interval that is being filled.
    current: u64,
    records: u64,
    window: Histogram<u64>,
    points: Vec<Point>,
    events: Vec<Event>,
}

impl Meter {
    /// A meter whose time line starts now.
    pub(crate) fn new(interval: Duration) -> Meter {
        Meter {
            start: Instant::now(),
            interval,
            current: 0,
            records: 0,
            window: latency::histogram(),
            points: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Seconds since the start.
    pub(crate) fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Counts a transaction of `records` records acknowledged at `at`.
    pub(crate) fn acknowledged(&mut self, at: Instant, latency: Duration, records: u64) {
        let interval = ((at - self.start).as_nanos() / self.interval.as_nanos()) as u64;
        if interval > self.current {
            self.close();
            self.current = interval;
        }
        self.records += records;
        latency::record(&mut self.window, latency, 1);
    }

    /// Marks something that happened now.
    pub(crate) fn event(&mut self, what: impl Into<String>, fault: bool) {
        let at = self.seconds();
        self.event_at(at, what, fault);
    }

    /// Marks something that happened `at` seconds after the start.
    pub(crate) fn event_at(&mut self, at: f64, what: impl Into<String>, fault: bool) {
        self.events.push(Event { at, what: what.into(), fault });
    }

    /// The moments and sizes of the gaps without an acknowledgement after `from` seconds: the longest, in seconds.
    pub(crate) fn timeline(mut self) -> Timeline {
        self.close();
        Timeline { interval: self.interval.as_secs_f64(), points: self.points, events: self.events }
    }

    /// Turns the current interval into a point.
    fn close(&mut self) {
        if self.window.is_empty() {
            return;
        }
        let micros = |nanos: u64| nanos as f64 / 1_000.0;
        self.points.push(Point {
            at: self.current as f64 * self.interval.as_secs_f64(),
            rate: self.records as f64 / self.interval.as_secs_f64(),
            p50_us: micros(self.window.value_at_quantile(0.5)),
            p99_us: micros(self.window.value_at_quantile(0.99)),
            max_us: micros(self.window.max()),
        });
        self.window.reset();
        self.records = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_interval_with_an_acknowledgement_becomes_a_point() {
        let mut meter = Meter::new(Duration::from_millis(100));
        let start = meter.start;
        for (at, records) in [(10, 3), (90, 2), (350, 5)] {
            meter.acknowledged(start + Duration::from_millis(at), Duration::from_micros(200), records);
        }
        let points = meter.timeline().points;
        let seen: Vec<(f64, f64)> = points.iter().map(|point| (point.at, point.rate)).collect();
        assert_eq!(seen.len(), 2);
        assert!((seen[0].1 - 50.0).abs() < 1e-6 && (seen[1].0 - 0.3).abs() < 1e-6, "{seen:?}");
    }
}
