//! What a run found out, as one value; written as `report.json` and drawn as `report.html`.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use crate::latency::Summary;
use crate::machine::{CpuUse, Machine};

mod chart;
mod html;
mod text;
mod timeline;

/// Everything that a run found out.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// What ran.
    pub(crate) title: String,
    /// What it did, in a sentence or two.
    pub(crate) summary: String,
    /// The command line.
    pub(crate) command: String,
    /// Where it ran.
    pub(crate) machine: Machine,
    /// How the disks were written, by whom.
    pub(crate) drivers: Vec<(String, String)>,
    /// The figures to see first.
    pub(crate) headlines: Vec<Headline>,
    /// What was verified.
    pub(crate) checks: Vec<Check>,
    /// The run over time.
    pub(crate) timeline: Option<Timeline>,
    /// Groups of latency distributions, each a chart and a table.
    pub(crate) latencies: Vec<LatencyGroup>,
    /// What `ratios` compare with.
    pub(crate) beside: Beside,
    /// Figures against the limit, or against another library.
    pub(crate) ratios: Vec<Ratio>,
    /// Figures with an aim of their own.
    pub(crate) aims: Vec<Ratio>,
    /// Anything else in rows and columns.
    pub(crate) tables: Vec<Table>,
    /// Where the processor's time went.
    pub(crate) cpu: Vec<CpuRow>,
    /// What a reader must know to read the figures right.
    pub(crate) notes: Vec<String>,
}

/// A figure in large type.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Headline {
    /// The figure, rounded for reading.
    pub(crate) value: String,
    /// Its unit.
    pub(crate) unit: String,
    /// What it is.
    pub(crate) label: String,
}

/// Something that was verified.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    /// What must hold.
    pub(crate) claim: String,
    /// Whether it does.
    pub(crate) holds: bool,
    /// The counts that say so.
    pub(crate) detail: String,
}

/// Throughput and latency over time.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Timeline {
    /// Seconds that one point covers.
    pub(crate) interval: f64,
    /// One point per interval with at least one acknowledgement.
    pub(crate) points: Vec<Point>,
    /// What happened when.
    pub(crate) events: Vec<Event>,
}

/// One interval of the time line.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Point {
    /// Seconds since the start, of the interval's begin.
    pub(crate) at: f64,
    /// Records acknowledged a second.
    pub(crate) rate: f64,
    /// Microseconds.
    pub(crate) p50_us: f64,
    /// Microseconds.
    pub(crate) p99_us: f64,
    /// Microseconds.
    pub(crate) max_us: f64,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Event {
    /// Seconds since the start.
    pub(crate) at: f64,
    /// What, in a few words.
    pub(crate) what: String,
    /// Whether it is a fault (drawn as a warning) or a step of the healing.
    pub(crate) fault: bool,
}

/// Latency distributions that are looked at together.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LatencyGroup {
    /// What they have in common.
    pub(crate) title: String,
    /// How they were taken.
    pub(crate) note: String,
    /// The distributions.
    pub(crate) series: Vec<Series>,
}

/// One latency distribution.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Series {
    /// Its name.
    pub(crate) name: String,
    /// From what to what it was measured.
    pub(crate) meaning: String,
    /// The distribution.
    pub(crate) summary: Summary,
}

/// What a table of ratios compares with.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Beside {
    /// Its name, as a column head.
    pub(crate) name: String,
    /// The section's title.
    pub(crate) title: String,
    /// What it is.
    pub(crate) note: String,
}

impl Beside {
    fn limit() -> Beside {
        Beside {
            name: "limit".to_string(),
            title: "Against the limit".to_string(),
            note: "The limit is nothing but durable writes to the same directories, of the same sizes at the same depth, measured in \
                turns with Meridian in this run. What is outstanding it sends as one block or as several at once, as was fastest in its warm-up: \
                see the drivers."
                .to_string(),
        }
    }
}

/// One of our figures beside what it is measured against.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ratio {
    /// What is compared.
    pub(crate) figure: String,
    /// The unit of both.
    pub(crate) unit: String,
    /// Ours.
    pub(crate) ours: f64,
    /// The limit's or the other library's, taken in turns in the same run.
    pub(crate) limit: f64,
    /// Ours divided by the other.
    pub(crate) ratio: f64,
    /// What we aim at.
    pub(crate) target: Option<f64>,
    /// Whether the aim is for our figure itself and not for the ratio.
    pub(crate) absolute: bool,
    /// Whether more is better.
    pub(crate) more_is_better: bool,
}

impl Ratio {
    /// A figure that is to stay at or below `aim`, whatever the limit.
    pub(crate) fn value(figure: &str, unit: &str, ours: f64, aim: f64) -> Ratio {
        Ratio {
            figure: figure.to_string(),
            unit: unit.to_string(),
            ours,
            limit: 0.0,
            ratio: ours / aim,
            target: Some(aim),
            absolute: true,
            more_is_better: false,
        }
    }

    /// Whether the aim was reached; `None` without one.
    pub(crate) fn met(&self) -> Option<bool> {
        let figure = if self.absolute { self.ours } else { self.ratio };
        self.target.map(|target| if self.more_is_better { figure >= target } else { figure <= target })
    }
}

/// A table: the first column is text, the rest is set as figures.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Table {
    /// What it shows.
    pub(crate) title: String,
    /// How it was taken.
    pub(crate) note: String,
    /// Column heads.
    pub(crate) columns: Vec<String>,
    /// Cells, ready to print.
    pub(crate) rows: Vec<Vec<String>>,
    /// Whether it comes before the latencies.
    pub(crate) first: bool,
}

/// Processor time of one part of the run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CpuRow {
    /// The part.
    pub(crate) what: String,
    /// Records acknowledged in it.
    pub(crate) records: u64,
    /// Where the time went.
    pub(crate) cpu: CpuUse,
}

impl Report {
    /// An empty report of a run that starts now.
    pub(crate) fn new(title: &str, summary: &str, machine: Machine) -> Report {
        Report {
            title: title.to_string(),
            summary: summary.to_string(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
            machine,
            drivers: Vec::new(),
            headlines: Vec::new(),
            checks: Vec::new(),
            timeline: None,
            latencies: Vec::new(),
            beside: Beside::limit(),
            ratios: Vec::new(),
            aims: Vec::new(),
            tables: Vec::new(),
            cpu: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a figure in large type.
    pub(crate) fn headline(&mut self, value: impl Into<String>, unit: &str, label: &str) {
        self.headlines.push(Headline { value: value.into(), unit: unit.to_string(), label: label.to_string() });
    }

    /// Takes the error that ended a run before its end as something that does not hold.
    pub(crate) fn ended(&mut self, outcome: &Result<(), String>) {
        if let Err(why) = outcome {
            let claim = "The run went on to its end".to_string();
            self.checks.push(Check { claim, holds: false, detail: why.clone() });
        }
    }

    /// Whether everything that was verified holds.
    pub(crate) fn holds(&self) -> bool {
        self.checks.iter().all(|check| check.holds)
    }

    /// Writes `report.json` and `report.html` into `directory`.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn write(&self, directory: &Path) -> io::Result<()> {
        let json = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        fs::write(directory.join("report.json"), json)?;
        fs::write(directory.join("report.html"), html::page(self))
    }
}

/// A number with thousands separated, and as many decimals as leave three significant digits.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_string();
    }
    let decimals = match value.abs() {
        size if size >= 100.0 || size.fract() == 0.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let mut out = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    if value < 0.0 { format!("−{out}") } else { out }
}

/// A latency given in microseconds, in the unit that reads best.
pub(crate) fn latency(micros: f64) -> String {
    match micros {
        long if long >= 999_500.0 => format!("{} s", number(long / 1e6)),
        middle if middle >= 9_999.5 => format!("{} ms", number(middle / 1e3)),
        short => format!("{} µs", number(short)),
    }
}

/// Bytes in the binary unit that reads best.
pub(crate) fn bytes(count: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", number(value), units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_rounded_for_reading() {
        assert_eq!(number(1_234_567.8), "1,234,568");
        assert_eq!(number(12.345), "12.3");
        assert_eq!(number(1.0), "1");
        assert_eq!(number(0.4321), "0.43");
        assert_eq!(number(-1_500.0), "−1,500");
        assert_eq!(latency(258.0), "258 µs");
        assert_eq!(latency(18_432.0), "18.4 ms");
        assert_eq!(bytes(1536.0), "1.50 KiB");
    }

    #[test]
    fn a_run_that_ended_with_an_error_says_so_in_its_report() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut report = Report::new("a run", "of a test", crate::machine::describe(&[]));
        report.checks.push(Check { claim: "before".to_string(), holds: true, detail: String::new() });
        // It may have ended before the first acknowledgement.
        report.timeline = Some(Timeline { interval: 0.1, ..Timeline::default() });
        report.ended(&Ok(()));
        assert!(report.holds() && report.checks.len() == 1);
        report.ended(&Err("the <region> fell silent".to_string()));
        report.write(dir.path()).expect("written");
        let page = fs::read_to_string(dir.path().join("report.html")).expect("read");
        assert!(!report.holds() && page.contains("1 of 2 checks fail") && page.contains("the &lt;region&gt; fell"));
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }

    #[test]
    fn a_ratio_knows_which_way_is_better() {
        let ratio = |ratio, more_is_better| Ratio {
            figure: String::new(),
            unit: String::new(),
            ours: 0.0,
            limit: 0.0,
            ratio,
            target: Some(1.0),
            absolute: false,
            more_is_better,
        };
        assert_eq!(ratio(0.9, true).met(), Some(false));
        assert_eq!(ratio(0.9, false).met(), Some(true));
    }
}
