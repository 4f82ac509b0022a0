//! Percentile curves as SVG: latency over a percentile axis that stretches the tail, one decade per nine.

use std::fmt::Write;

use super::{Series, latency};

/// The size of the drawing and its left, top and bottom margins, in SVG units.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 76.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 48.0;
/// Line patterns, so that curves are told apart without colour too.
const DASHES: [&str; 8] = ["", "7 4", "2 3", "10 3 2 3", "", "5 2", "1 3", "12 4"];

/// A logarithmic latency axis in microseconds, whole decades or their 1-2-5 parts.
pub(super) struct LatencyAxis {
    low: f64,
    high: f64,
    top: f64,
    bottom: f64,
}

impl LatencyAxis {
    /// An axis that shows `low..=high`, drawn from `bottom` up to `top`.
    pub(super) fn new(low: f64, high: f64, top: f64, bottom: f64) -> LatencyAxis {
        let low = step_below(low.max(0.1));
        let high = step_above(high.max(low * 2.0));
        LatencyAxis { low, high, top, bottom }
    }

    /// Where a latency lies.
    pub(super) fn y(&self, micros: f64) -> f64 {
        let part = (micros.clamp(self.low, self.high) / self.low).log10() / (self.high / self.low).log10();
        self.bottom - part * (self.bottom - self.top)
    }

    /// Grid lines and labels.
    pub(super) fn draw(&self, out: &mut String, left: f64, right: f64) {
        let decades = (self.high / self.low).log10();
        let mut tick = self.low;
        while tick <= self.high * 1.001 {
            let leading = tick / 10_f64.powf(tick.log10().floor());
            let whole = (leading - 1.0).abs() < 0.01;
            if whole || decades <= 3.2 {
                let y = self.y(tick);
                let class = if whole { "grid" } else { "grid faint" };
                let _ = write!(out, r#"<line class="{class}" x1="{left}" x2="{right}" y1="{y:.1}" y2="{y:.1}"/>"#);
                let (x, y) = (left - 8.0, y + 4.0);
                let _ = write!(out, r#"<text class="tick end" x="{x}" y="{y:.1}">{}</text>"#, latency_tick(tick));
            }
            tick = step_above(tick * 1.01);
        }
    }
}

/// A round latency, without decimals.
fn latency_tick(micros: f64) -> String {
    match micros {
        long if long >= 999_999.0 => format!("{:.0} s", long / 1e6),
        middle if middle >= 999.0 => format!("{:.0} ms", middle / 1e3),
        short if short >= 0.99 => format!("{short:.0} µs"),
        tiny => format!("{tiny:.1} µs"),
    }
}

/// The nearest 1, 2 or 5 times a power of ten that is not above `value`.
fn step_below(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let leading = value / decade * 1.000_001;
    decade
        * if leading >= 5.0 {
            5.0
        } else if leading >= 2.0 {
            2.0
        } else {
            1.0
        }
}

/// The nearest 1, 2 or 5 times a power of ten that is not below `value`.
pub(super) fn step_above(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let leading = value / decade * 0.999_999;
    decade
        * if leading <= 1.0 {
            1.0
        } else if leading <= 2.0 {
            2.0
        } else if leading <= 5.0 {
            5.0
        } else {
            10.0
        }
}

/// The chart of a group of distributions. `id` is unique in the page.
pub(super) fn percentiles(id: &str, title: &str, series: &[Series]) -> String {
    let drawn: Vec<&Series> = series.iter().filter(|one| one.summary.count > 0).collect();
    if drawn.is_empty() {
        return String::new();
    }
    let points = || drawn.iter().flat_map(|one| one.summary.curve.iter().copied());
    let most = points().map(|(quantile, _)| nines(quantile)).fold(2.0, f64::max);
    let low = points().map(|(_, micros)| micros).filter(|micros| *micros > 0.0).fold(f64::MAX, f64::min);
    let high = points().map(|(_, micros)| micros).fold(1.0, f64::max);
    // Room for the longest name and a latency, at about 7.4 units a letter.
    let longest = drawn.iter().map(|one| one.name.chars().count()).max().unwrap_or(0);
    let margin = (longest as f64 * 7.4 + 100.0).clamp(170.0, 380.0);
    let (right, bottom) = (WIDTH - margin, HEIGHT - BOTTOM);
    let axis = LatencyAxis::new(low, high, TOP, bottom);
    let x = |quantile: f64| LEFT + nines(quantile).min(most) / most * (right - LEFT);

    let mut out = String::new();
    let _ = write!(
        out,
        r#"<svg class="chart hover" data-left="{LEFT}" data-right="{right}" data-nines="{most}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{id}"><title id="{id}">{}</title>"#,
        super::html::escape(title)
    );
    axis.draw(&mut out, LEFT, right);
    percentile_axis(&mut out, most, (right, bottom), &x);
    let mut labels = Vec::new();
    for (place, one) in drawn.iter().enumerate() {
        let (mut path, mut last) = (String::new(), (LEFT, bottom));
        for (index, (quantile, micros)) in one.summary.curve.iter().enumerate() {
            last = (x(*quantile), axis.y(*micros));
            let _ = write!(path, "{}{:.1} {:.1}", if index == 0 { "M" } else { "L" }, last.0, last.1);
        }
        let (colour, dash) = (place % 8, DASHES[place % 8]);
        let values: Vec<String> = one.summary.curve.iter().map(|(q, us)| format!("{:.2}:{us:.1}", nines(*q))).collect();
        let (name, values) = (super::html::escape(&one.name), values.join(" "));
        let _ = write!(
            out,
            r#"<path class="curve c{colour}" d="{path}" stroke-dasharray="{dash}" data-name="{name}" data-values="{values}"/>"#
        );
        let _ = write!(out, r#"<circle class="dot f{colour}" cx="{:.1}" cy="{:.1}" r="2.5"/>"#, last.0, last.1);
        labels.push((last.1, last.0, colour, format!("{name} · {}", latency(one.summary.max_us))));
    }
    end_labels(&mut out, labels, right);
    out.push_str(r#"<g class="cursor"></g></svg>"#);
    out
}

/// How many nines a quantile has: 0.9 → 1, 0.99 → 2.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile.min(0.999_999_999)).log10()
}

fn percentile_axis(out: &mut String, most: f64, (right, bottom): (f64, f64), x: &dyn Fn(f64) -> f64) {
    let ticks = [(0.0, "0"), (0.5, "50"), (0.9, "90"), (0.99, "99"), (0.999, "99.9"), (0.9999, "99.99")];
    let further = [(0.99999, "99.999"), (0.999_999, "99.9999"), (0.999_999_9, "99.99999")];
    for (quantile, label) in ticks.into_iter().chain(further) {
        if nines(quantile) > most + 0.01 {
            continue;
        }
        let x = x(quantile);
        let _ = write!(out, r#"<line class="grid faint" x1="{x:.1}" x2="{x:.1}" y1="{TOP}" y2="{bottom}"/>"#);
        let _ = write!(out, r#"<text class="tick mid" x="{x:.1}" y="{}">{label}</text>"#, bottom + 18.0);
    }
    let middle = f64::midpoint(LEFT, right);
    let _ = write!(out, r#"<text class="axis mid" x="{middle}" y="{}">percentile</text>"#, bottom + 38.0);
}

/// Names at the ends of the curves, pushed apart so that none covers another.
fn end_labels(out: &mut String, mut labels: Vec<(f64, f64, usize, String)>, right: f64) {
    const APART: f64 = 15.0;
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut places: Vec<f64> = labels.iter().map(|label| label.0).collect();
    for index in 1..places.len() {
        places[index] = places[index].max(places[index - 1] + APART);
    }
    let over = places.last().map_or(0.0, |last| (last - (HEIGHT - BOTTOM)).max(0.0));
    for index in (0..places.len()).rev() {
        let ceiling = places.get(index + 1).map_or(HEIGHT, |next| next - APART);
        places[index] = (places[index] - over).max(TOP).min(ceiling.max(TOP));
    }
    for ((y, x, colour, text), place) in labels.into_iter().zip(places) {
        let start = right + 10.0;
        let _ = write!(out, r#"<path class="leader c{colour}" d="M{x:.1} {y:.1}L{start} {place:.1}"/>"#);
        let _ =
            write!(out, r#"<text class="label f{colour}" x="{}" y="{:.1}">{text}</text>"#, start + 4.0, place + 4.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency;

    #[test]
    fn steps_are_round() {
        assert!((step_above(3.2) - 5.0).abs() < 1e-9);
        assert!((step_above(500.0) - 500.0).abs() < 1e-6);
        assert!((step_below(430.0) - 200.0).abs() < 1e-6);
    }

    #[test]
    fn a_chart_has_a_curve_for_each_distribution_that_holds_anything() {
        let mut full = latency::histogram();
        for micros in 1..2_000 {
            latency::record(&mut full, std::time::Duration::from_micros(micros), 1);
        }
        let series = |name: &str, histogram| Series {
            name: name.to_string(),
            meaning: String::new(),
            summary: latency::summarize(histogram),
        };
        let all = [series("one <i>", &full), series("none", &latency::histogram())];
        let svg = percentiles("a", "b", &all);
        assert_eq!(svg.matches("class=\"curve").count(), 1);
        assert!(svg.contains("one &lt;i&gt;") && !svg.contains("NaN"), "{svg}");
    }
}
