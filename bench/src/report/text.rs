//! A report in words, for a terminal.

use super::{Report, latency, number};

impl Report {
    /// Its tables for a terminal.
    pub(crate) fn print(&self) {
        for group in &self.latencies {
            say!("\n{}", group.title);
            say!("  {:<26}{:>10}{:>10}{:>10}{:>10}{:>10}{:>12}", "", "p50", "p90", "p99", "p99.9", "max", "count");
            for series in group.series.iter().filter(|series| series.summary.count > 0) {
                let s = &series.summary;
                let [p50, p90, p99, p999, max] = [s.p50_us, s.p90_us, s.p99_us, s.p999_us, s.max_us].map(latency);
                say!(
                    "  {:<26}{p50:>10}{p90:>10}{p99:>10}{p999:>10}{max:>10}{:>12}",
                    series.name,
                    number(s.count as f64)
                );
            }
        }
        say!("\nAims");
        for ratio in self.ratios.iter().chain(&self.aims) {
            let met = match ratio.met() {
                Some(true) => "met",
                Some(false) => "missed",
                None => "",
            };
            let sign = if ratio.more_is_better { "≥" } else { "≤" };
            let (figure, limit) = if ratio.absolute {
                (ratio.ours, String::new())
            } else {
                (ratio.ratio, format!(" of {} {}", number(ratio.limit), ratio.unit))
            };
            let aim = ratio.target.map_or(String::new(), |target| format!("{sign} {target:.2}"));
            say!("  {:<52}{figure:>8.2}{limit:<24}{aim:>9} {met}", ratio.figure);
        }
        say!("\nVerified");
        for check in &self.checks {
            say!("  {} {}: {}", if check.holds { "✓" } else { "✗" }, check.claim, check.detail);
        }
        say!("");
    }
}
