//! The page: one file, no request to anywhere, readable on paper and in the dark.

use std::fmt::Write;

use super::{Beside, Check, CpuRow, LatencyGroup, Ratio, Report, Table, bytes, chart, latency, number, timeline};

/// Fonts, colours (a palette that colour-blind readers tell apart) and layout.
const STYLE: &str = include_str!("style.css");
/// Reading values off the percentile curves with the pointer. The page is complete without it.
const SCRIPT: &str = include_str!("hover.js");

/// The whole report as HTML.
pub(super) fn page(report: &Report) -> String {
    let mut out = String::with_capacity(256 * 1024);
    let title = escape(&report.title);
    let _ = write!(
        out,
        r#"<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark"><title>{title} · Meridian</title><style>{STYLE}</style></head><body><main>"#
    );
    header(&mut out, report);
    checks(&mut out, &report.checks);
    if let Some(timeline) = &report.timeline {
        let _ = write!(
            out,
            "<section><h2>Over time</h2><p class=note>Each bar and point covers {} ms. Where nothing is drawn, nothing was acknowledged. <b class=warn>▼</b> a fault, <b class=good>●</b> a step of the healing.</p><figure>{}</figure></section>",
            number(timeline.interval * 1e3),
            timeline::draw(timeline)
        );
    }
    report.tables.iter().filter(|table| table.first).for_each(|table| generic(&mut out, table));
    ratios(&mut out, &report.beside, &report.ratios);
    aims(&mut out, &report.aims);
    for (index, group) in report.latencies.iter().enumerate() {
        latencies(&mut out, index, group);
    }
    report.tables.iter().filter(|table| !table.first).for_each(|table| generic(&mut out, table));
    processor(&mut out, &report.cpu);
    machine(&mut out, report);
    if !report.notes.is_empty() {
        out.push_str("<section><h2>Reading these figures</h2><ul>");
        for note in &report.notes {
            let _ = write!(out, "<li>{}</li>", escape(note));
        }
        out.push_str("</ul></section>");
    }
    let _ = write!(out, "<footer>meridian-bench · <code>{}</code></footer>", escape(&report.command));
    let _ = write!(out, "</main><script>{SCRIPT}</script></body></html>");
    out
}

/// Text as HTML text or attribute value.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn header(out: &mut String, report: &Report) {
    let machine = &report.machine;
    let verdict = match (report.checks.is_empty(), report.holds()) {
        (true, _) => String::new(),
        (_, true) => format!("<p class=\"verdict good\">✓ all {} checks hold</p>", report.checks.len()),
        (_, false) => {
            let failed = report.checks.iter().filter(|check| !check.holds).count();
            format!("<p class=\"verdict warn\">✗ {failed} of {} checks fail</p>", report.checks.len())
        }
    };
    let _ = write!(
        out,
        "<header><p class=eyebrow>Meridian · commit {} · {}{}</p><h1>{}</h1><p class=lead>{}</p>{verdict}</header>",
        escape(&machine.commit),
        utc(machine.started),
        if machine.optimised { "" } else { " · <b class=warn>debug build: figures mean nothing</b>" },
        escape(&report.title),
        escape(&report.summary)
    );
    if report.headlines.is_empty() {
        return;
    }
    out.push_str("<section class=headlines>");
    for headline in &report.headlines {
        let _ = write!(
            out,
            "<div><p class=big>{}<span>{}</span></p><p>{}</p></div>",
            escape(&headline.value),
            escape(&headline.unit),
            escape(&headline.label)
        );
    }
    out.push_str("</section>");
}

fn checks(out: &mut String, checks: &[Check]) {
    if checks.is_empty() {
        return;
    }
    out.push_str("<section><h2>Verified</h2><table class=checks>");
    for check in checks {
        let (class, sign) = if check.holds { ("good", "✓") } else { ("warn", "✗") };
        let _ = write!(
            out,
            "<tr><td class={class}>{sign}</td><td>{}</td><td class=note>{}</td></tr>",
            escape(&check.claim),
            escape(&check.detail)
        );
    }
    out.push_str("</table></section>");
}

/// Each figure as a bar on a common scale, with its aim as a line.
fn ratios(out: &mut String, beside: &Beside, ratios: &[Ratio]) {
    if ratios.is_empty() {
        return;
    }
    // Longer bars are cut: the figure beside them says how long they would be.
    let reach = |ratio: &Ratio| ratio.ratio.max(ratio.target.filter(|_| !ratio.absolute).unwrap_or(0.0)).min(1.75);
    let most = ratios.iter().map(reach).fold(1.0, f64::max) * 1.08;
    let (title, note, other) = (escape(&beside.title), escape(&beside.note), escape(&beside.name));
    let _ = write!(
        out,
        "<section><h2>{title}</h2><p class=note>{note} Bars show Meridian ÷ {other}; the thin line is 1.0, the thick mark the aim.</p><div class=scroll><table class=ratios><thead><tr><th>figure</th><th class=num>Meridian</th><th class=num>{other}</th><th class=num>ratio</th><th class=bars></th><th>aim</th></tr></thead><tbody>"
    );
    for ratio in ratios {
        let percent = |value: f64| (value / most * 100.0).clamp(0.0, 100.0);
        let aim = ratio.target.map_or(String::new(), |target| {
            let sign = if ratio.more_is_better { "≥" } else { "≤" };
            let met = if ratio.met() == Some(true) { "<b class=good>met</b>" } else { "<b class=warn>missed</b>" };
            let unit = if ratio.absolute { format!(" {}", escape(&ratio.unit)) } else { String::new() };
            format!("{sign} {target:.2}{unit} {met}")
        });
        // An aim for our figure itself has no place on the scale of the ratios.
        let mark = ratio
            .target
            .filter(|_| !ratio.absolute)
            .map_or(String::new(), |target| format!("<i class=aim style=\"left:{:.2}%\"></i>", percent(target)));
        let class = if ratio.met() == Some(false) { "bar missed" } else { "bar" };
        let _ = write!(
            out,
            "<tr><td>{}</td><td class=num>{} <small>{unit}</small></td><td class=num>{} <small>{unit}</small></td><td class=num><b>{:.2}</b></td><td class=bars><div class=track><i class=\"{class}\" style=\"width:{:.2}%\"></i><i class=one style=\"left:{:.2}%\"></i>{mark}</div></td><td class=aim>{aim}</td></tr>",
            escape(&ratio.figure),
            number(ratio.ours),
            number(ratio.limit),
            ratio.ratio,
            percent(ratio.ratio),
            percent(1.0),
            unit = escape(&ratio.unit),
        );
    }
    out.push_str("</tbody></table></div></section>");
}

/// Figures that have an aim of their own.
fn aims(out: &mut String, aims: &[Ratio]) {
    if aims.is_empty() {
        return;
    }
    out.push_str("<section><h2>By itself</h2><div class=scroll><table><thead><tr><th>figure</th><th class=num>measured</th><th class=num>aim</th><th></th></tr></thead><tbody>");
    for aim in aims {
        let met = if aim.met() == Some(true) { "<b class=good>met</b>" } else { "<b class=warn>missed</b>" };
        let (figure, unit) = (escape(&aim.figure), escape(&aim.unit));
        let sign = if aim.more_is_better { "≥" } else { "≤" };
        let target =
            aim.target.map_or(String::new(), |target| format!("{sign} {} <small>{unit}</small>", number(target)));
        let _ = write!(
            out,
            "<tr><td>{figure}</td><td class=num>{} <small>{unit}</small></td><td class=num>{target}</td><td>{met}</td></tr>",
            number(aim.ours)
        );
    }
    out.push_str("</tbody></table></div></section>");
}

fn latencies(out: &mut String, index: usize, group: &LatencyGroup) {
    let _ = write!(out, "<section><h2>{}</h2><p class=note>{}</p>", escape(&group.title), escape(&group.note));
    let _ =
        write!(out, "<figure>{}</figure>", chart::percentiles(&format!("curves{index}"), &group.title, &group.series));
    out.push_str("<div class=scroll><table><thead><tr><th></th><th class=num>p50</th><th class=num>p90</th><th class=num>p99</th><th class=num>p99.9</th><th class=num>max</th><th class=num>mean</th><th class=num>count</th><th></th></tr></thead><tbody>");
    for series in &group.series {
        let summary = &series.summary;
        let _ = write!(out, "<tr><td>{}</td>", escape(&series.name));
        let values = [summary.p50_us, summary.p90_us, summary.p99_us, summary.p999_us, summary.max_us, summary.mean_us];
        for value in values {
            let text = if summary.count == 0 { "–".to_string() } else { latency(value) };
            let _ = write!(out, "<td class=num>{text}</td>");
        }
        let _ = write!(
            out,
            "<td class=num>{}</td><td class=note>{}</td></tr>",
            number(summary.count as f64),
            escape(&series.meaning)
        );
    }
    out.push_str("</tbody></table></div></section>");
}

fn generic(out: &mut String, table: &Table) {
    let _ = write!(out, "<section><h2>{}</h2><p class=note>{}</p>", escape(&table.title), escape(&table.note));
    out.push_str("<div class=scroll><table><thead><tr>");
    let class = |column: usize| if column == 0 { "" } else { " class=num" };
    for (column, head) in table.columns.iter().enumerate() {
        let _ = write!(out, "<th{}>{}</th>", class(column), escape(head));
    }
    out.push_str("</tr></thead><tbody>");
    for row in &table.rows {
        out.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(out, "<td{}>{}</td>", class(column), escape(cell));
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div></section>");
}

fn processor(out: &mut String, rows: &[CpuRow]) {
    if rows.is_empty() {
        return;
    }
    out.push_str("<section><h2>Processor time</h2><p class=note>Of this process, of the whole machine (kernel work for our writes included, which no process is charged for), and of other programs: foreign work distorts the latencies of everything above.</p><div class=scroll><table><thead><tr><th></th><th class=num>records</th><th class=num>process, per record</th><th class=num>machine, per record</th><th class=num>process</th><th class=num>machine</th><th class=num>foreign</th><th class=num>stolen</th></tr></thead><tbody>");
    for row in rows {
        let each = |seconds: f64| {
            if row.records == 0 {
                "–".to_string()
            } else {
                format!("{} µs", number(seconds * 1e6 / row.records as f64))
            }
        };
        // As a share of one processor over the interval.
        let share = |seconds: f64| format!("{:.0} %", seconds / row.cpu.wall.max(1e-9) * 100.0);
        let cpu = &row.cpu;
        let _ = write!(
            out,
            "<tr><td>{}</td><td class=num>{}</td><td class=num>{}</td><td class=num>{}</td><td class=num>{}</td><td class=num>{}</td><td class=num>{}</td><td class=num>{}</td></tr>",
            escape(&row.what),
            number(row.records as f64),
            each(cpu.process),
            each(cpu.system),
            share(cpu.process),
            share(cpu.system),
            share(cpu.foreign),
            share(cpu.steal),
        );
    }
    out.push_str(
        "</tbody></table></div><p class=note>Shares are of one processor: 200 % is two of them busy.</p></section>",
    );
}

fn machine(out: &mut String, report: &Report) {
    let machine = &report.machine;
    out.push_str("<section><h2>Machine</h2><table class=facts>");
    let mut fact = |name: &str, value: &str| {
        let _ = write!(out, "<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(value));
    };
    fact("processor", &format!("{} × {}", machine.cpus, machine.cpu));
    fact("memory", &bytes(machine.memory as f64));
    fact("kernel", &machine.kernel);
    for (who, driver) in &report.drivers {
        fact(&format!("writes, {who}"), driver);
    }
    for directory in &machine.directories {
        let free = format!("{} free of {}", bytes(directory.free as f64), bytes(directory.total as f64));
        let place = format!("{} on {}, {free}", directory.filesystem, directory.device);
        fact(&directory.path.display().to_string(), &place);
    }
    out.push_str("</table></section>");
}

/// Seconds since the Unix epoch as a date and time.
fn utc(seconds: u64) -> String {
    // Days to a civil date, after Howard Hinnant's public-domain algorithm, for days since 1970.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (seconds / 3_600 % 24, seconds / 60 % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aim_for_the_figure_itself_is_not_drawn_on_the_scale_of_the_ratios() {
        let drawn = |absolute: bool| {
            let ratio = Ratio { absolute, limit: 1.0, ..Ratio::value("a figure", "ms", 2.0, 1.5) };
            let mut out = String::new();
            ratios(&mut out, &Beside::limit(), &[ratio]);
            out.contains("<i class=aim")
        };
        assert_eq!((drawn(false), drawn(true)), (true, false));
    }

    #[test]
    fn dates_are_civil() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_827_696), "2000-02-29 12:34 UTC");
    }
}
