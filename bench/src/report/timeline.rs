//! The time line as SVG: throughput above, latency below, and what happened when across both.

use std::fmt::Write;

use super::chart::{LatencyAxis, step_above};
use super::{Event, Point, Timeline, number};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 20.0;
/// The event labels, the upper panel, the lower panel.
const EVENTS: f64 = 16.0;
const UPPER: (f64, f64) = (96.0, 226.0);
const LOWER: (f64, f64) = (262.0, 412.0);
const HEIGHT: f64 = 458.0;
/// Rows for event labels above the panels.
const ROWS: usize = 4;

/// The drawing, or nothing when there is nothing to draw.
pub(super) fn draw(timeline: &Timeline) -> String {
    let points = &timeline.points;
    let Some(last) = points.last() else { return String::new() };
    let events_end = timeline.events.iter().map(|event| event.at).fold(0.0, f64::max);
    let end = (last.at + timeline.interval).max(events_end).max(timeline.interval);
    let right = WIDTH - RIGHT;
    let x = |at: f64| LEFT + at / end * (right - LEFT);
    let mut out = String::new();
    let _ = write!(
        out,
        r#"<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="timeline"><title id="timeline">Throughput and latency over time</title>"#
    );
    time_axis(&mut out, end, &x);
    throughput(&mut out, timeline, &x);
    latencies(&mut out, timeline, &x);
    events(&mut out, &timeline.events, &x);
    out.push_str("</svg>");
    out
}

fn time_axis(out: &mut String, end: f64, x: &dyn Fn(f64) -> f64) {
    let step = step_above(end / 12.0);
    let mut at = 0.0;
    while at <= end {
        let place = x(at);
        for (top, bottom) in [UPPER, LOWER] {
            let _ =
                write!(out, r#"<line class="grid faint" x1="{place:.1}" x2="{place:.1}" y1="{top}" y2="{bottom}"/>"#);
        }
        let text = if step < 1.0 { format!("{at:.1}") } else { format!("{at:.0}") };
        let _ = write!(out, r#"<text class="tick mid" x="{place:.1}" y="{}">{text}</text>"#, LOWER.1 + 18.0);
        at += step;
    }
    let middle = f64::midpoint(LEFT, WIDTH - RIGHT);
    let _ = write!(out, r#"<text class="axis mid" x="{middle}" y="{}">seconds since the start</text>"#, LOWER.1 + 38.0);
}

fn throughput(out: &mut String, timeline: &Timeline, x: &dyn Fn(f64) -> f64) {
    let (top, bottom) = UPPER;
    let mut rates: Vec<f64> = timeline.points.iter().map(|point| point.rate).collect();
    rates.sort_by(f64::total_cmp);
    let highest = rates.last().copied().unwrap_or(1.0).max(1.0);
    // A short burst far above the rest would flatten it: its bars are cut, and say so.
    let usual = rates[rates.len() / 2].max(1.0) * 2.0;
    let most = if highest > 2.0 * usual { usual } else { highest };
    let step = step_above(most / 4.0);
    let high = (most / step).ceil() * step;
    let y = |rate: f64| bottom - rate.min(high) / high * (bottom - top);
    let _ = write!(out, r#"<text class="axis" x="{LEFT}" y="{}">records a second</text>"#, top - 8.0);
    let mut tick = 0.0;
    while tick <= high * 1.001 {
        let place = y(tick);
        let _ =
            write!(out, r#"<line class="grid" x1="{LEFT}" x2="{}" y1="{place:.1}" y2="{place:.1}"/>"#, WIDTH - RIGHT);
        let (left, base) = (LEFT - 8.0, place + 4.0);
        let _ = write!(out, r#"<text class="tick end" x="{left}" y="{base:.1}">{}</text>"#, number(tick));
        tick += step;
    }
    // One bar per interval: an interval without an acknowledgement shows as the gap it is.
    for point in &timeline.points {
        let (from, to) = (x(point.at), x(point.at + timeline.interval));
        let height = bottom - y(point.rate);
        let class = if point.rate > high { "bar cut" } else { "bar" };
        let _ = write!(
            out,
            r#"<rect class="{class}" x="{from:.2}" y="{:.1}" width="{:.2}" height="{height:.1}"/>"#,
            bottom - height,
            (to - from - 0.4).max(0.6)
        );
    }
    say_cut(out, timeline, high, x);
}

/// Says how far the bars go that were cut, below the first of them.
fn say_cut(out: &mut String, timeline: &Timeline, high: f64, x: &dyn Fn(f64) -> f64) {
    let cut = || timeline.points.iter().filter(|point| point.rate > high);
    if let (Some(first), Some(most)) = (cut().next(), cut().map(|point| point.rate).max_by(f64::total_cmp)) {
        let place = x(first.at) + 5.0;
        let text = format!("cut: up to {}", number(most));
        let _ = write!(out, r#"<text class="cutlabel" x="{place:.1}" y="{}">{text}</text>"#, UPPER.0 + 14.0);
    }
}

/// What is drawn of a point's latency: the name, how to get it, the class of its line.
type Line = (&'static str, fn(&Point) -> f64, &'static str);

fn latencies(out: &mut String, timeline: &Timeline, x: &dyn Fn(f64) -> f64) {
    let (top, bottom) = LOWER;
    let points = &timeline.points;
    let low = points.iter().map(|point| point.p50_us).filter(|us| *us > 0.0).fold(f64::MAX, f64::min);
    let high = points.iter().map(|point| point.max_us).fold(1.0, f64::max);
    let axis = LatencyAxis::new(low, high, top, bottom);
    axis.draw(out, LEFT, WIDTH - RIGHT);
    let _ = write!(out, r#"<text class="axis" x="{LEFT}" y="{}">latency until acknowledged</text>"#, top - 10.0);
    let lines: [Line; 3] = [
        ("max", |point| point.max_us, "c5 thin"),
        ("p99", |point| point.p99_us, "c1"),
        ("p50", |point| point.p50_us, "c0"),
    ];
    for (place, (name, value, class)) in lines.into_iter().enumerate() {
        let mut path = String::new();
        let mut before: Option<f64> = None;
        for point in points {
            // A gap longer than an interval breaks the line: nothing was acknowledged there.
            let joined = before.is_some_and(|before| point.at - before < timeline.interval * 1.5);
            let middle = x(point.at + timeline.interval / 2.0);
            let _ = write!(path, "{}{middle:.1} {:.1}", if joined { "L" } else { "M" }, axis.y(value(point)));
            before = Some(point.at);
        }
        let _ = write!(out, r#"<path class="curve {class}" d="{path}"/>"#);
        let at = WIDTH - RIGHT - 40.0 - 62.0 * place as f64;
        let base = top - 10.0;
        let _ = write!(out, r#"<path class="curve {class}" d="M{at} {}h16"/>"#, base - 4.0);
        let _ = write!(out, r#"<text class="tick" x="{}" y="{base}">{name}</text>"#, at + 20.0);
    }
}

/// Lines across both panels, labelled above in as many rows as keep the labels apart. Text goes over the lines.
fn events(out: &mut String, events: &[Event], x: &dyn Fn(f64) -> f64) {
    let mut rows_end = [f64::MIN; ROWS];
    let mut sorted: Vec<&Event> = events.iter().collect();
    sorted.sort_by(|a, b| a.at.total_cmp(&b.at));
    let mut labels = String::new();
    for event in sorted {
        let place = x(event.at);
        // About 7.3 units a letter at this size, in a wide font.
        let width = event.what.chars().count() as f64 * 7.3 + 24.0;
        let start = (place - 4.0).min(WIDTH - width);
        let row = (0..ROWS).find(|row| rows_end[*row] <= start).unwrap_or(ROWS - 1);
        rows_end[row] = start + width;
        let y = EVENTS + row as f64 * 17.0;
        let class = if event.fault { "fault" } else { "healed" };
        let sign = if event.fault { "▼" } else { "●" };
        let (top, bottom) = (y + 4.0, LOWER.1);
        let _ =
            write!(out, r#"<line class="event {class}" x1="{place:.1}" x2="{place:.1}" y1="{top}" y2="{bottom}"/>"#);
        let text = super::html::escape(&event.what);
        let _ = write!(labels, r#"<text class="mark {class}" x="{start:.1}" y="{y}">{sign} {text}</text>"#);
    }
    out.push_str(&labels);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_without_acknowledgements_stays_empty() {
        let point = |at| Point { at, rate: 10.0, p50_us: 1.0, p99_us: 2.0, max_us: 3.0 };
        let timeline = Timeline {
            interval: 0.1,
            points: vec![point(0.0), point(0.1), point(0.9)],
            events: vec![Event { at: 0.2, what: "killed".to_string(), fault: true }],
        };
        let svg = draw(&timeline);
        assert_eq!(svg.matches("class=\"bar\"").count(), 3);
        let median =
            svg.split("class=\"curve c0\" d=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("drawn");
        assert_eq!(median.matches('M').count(), 2, "the line breaks: {median}");
        assert!(svg.contains("▼ killed") && !svg.contains("cut:"));
        let mut burst = timeline.clone();
        burst.points[0].rate = 1_000.0;
        assert!(draw(&burst).contains("cut: up to 1,000"));
    }
}
