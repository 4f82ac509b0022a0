//! Latencies: how they are recorded, summed up and written out.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest latency that is told apart from longer ones: ten minutes, in nanoseconds.
const LONGEST: u64 = 600_000_000_000;

/// An empty histogram of nanoseconds, three significant digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are constants that hdrhistogram accepts")
}

/// Adds `count` operations that took `latency`.
pub(crate) fn record(histogram: &mut Histogram<u64>, latency: Duration, count: u64) {
    let nanos = u64::try_from(latency.as_nanos()).unwrap_or(LONGEST);
    histogram.saturating_record_n(nanos.max(1), count);
}

/// What a report says of one distribution. All latencies are microseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// How many operations were recorded.
    pub(crate) count: u64,
    /// The arithmetic mean.
    pub(crate) mean_us: f64,
    /// Half were at most this.
    pub(crate) p50_us: f64,
    /// Nine in ten were at most this.
    pub(crate) p90_us: f64,
    /// 99 in 100.
    pub(crate) p99_us: f64,
    /// 999 in 1,000.
    pub(crate) p999_us: f64,
    /// The slowest.
    pub(crate) max_us: f64,
    /// Points (quantile in 0..=1, microseconds) of the percentile curve.
    pub(crate) curve: Vec<(f64, f64)>,
}

/// Sums up a histogram of nanoseconds.
pub(crate) fn summarize(histogram: &Histogram<u64>) -> Summary {
    if histogram.is_empty() {
        return Summary::default();
    }
    let at = |quantile: f64| micros(histogram.value_at_quantile(quantile));
    // Ten steps per halving of the distance to 100 %, as far as there are observations to tell them apart.
    let mut curve = vec![(0.0, micros(histogram.min()))];
    let mut rest = 1.0_f64;
    while rest * histogram.len() as f64 > 1.0 {
        rest *= 0.933;
        curve.push((1.0 - rest, at(1.0 - rest)));
    }
    Summary {
        count: histogram.len(),
        mean_us: histogram.mean() / 1_000.0,
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: micros(histogram.max()),
        curve,
    }
}

/// Writes a histogram of nanoseconds in the text form that HdrHistogram's plotters read; values are microseconds.
///
/// # Errors
/// What the file system says.
pub(crate) fn write_hgrm(path: &Path, histogram: &Histogram<u64>) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    let mut seen = 0;
    for step in histogram.iter_quantiles(5) {
        seen += step.count_since_last_iteration();
        let quantile = step.quantile_iterated_to();
        write!(out, "{:>12.3} {:>14.12} {:>10}", micros(step.value_iterated_to()), quantile, seen)?;
        if quantile < 1.0 {
            write!(out, " {:>14.2}", 1.0 / (1.0 - quantile))?;
        }
        writeln!(out)?;
    }
    let (mean, deviation) = (histogram.mean() / 1_000.0, histogram.stdev() / 1_000.0);
    writeln!(out, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]")?;
    writeln!(out, "#[Max     = {:>12.3}, Total count    = {:>12}]", micros(histogram.max()), histogram.len())?;
    writeln!(out, "#[Buckets = {:>12}, SubBuckets     = {:>12}]", histogram.buckets(), 2048)?;
    out.flush()
}

/// Nanoseconds as microseconds.
fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_tells_the_tail_from_the_middle() {
        let mut all = histogram();
        record(&mut all, Duration::from_micros(100), 990);
        record(&mut all, Duration::from_millis(5), 10);
        let summary = summarize(&all);
        assert_eq!(summary.count, 1_000);
        assert!((summary.p50_us - 100.0).abs() < 1.0, "{summary:?}");
        assert!((summary.p999_us - 5_000.0).abs() < 10.0, "{summary:?}");
        assert!(summary.curve.windows(2).all(|pair| pair[0].1 <= pair[1].1), "the curve never falls");
    }

    #[test]
    fn an_hgrm_file_ends_at_the_slowest_and_counts_everything() {
        let mut all = histogram();
        record(&mut all, Duration::from_micros(100), 99);
        record(&mut all, Duration::from_millis(5), 1);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("all.hgrm");
        write_hgrm(&path, &all).expect("written");
        let text = std::fs::read_to_string(&path).expect("read back");
        let last = text.lines().rfind(|line| !line.starts_with('#')).expect("a data line");
        let fields: Vec<&str> = last.split_whitespace().collect();
        assert_eq!((fields[1], fields[2]), ("1.000000000000", "100"), "{text}");
        assert!(text.contains("Total count    =          100"), "{text}");
    }
}
