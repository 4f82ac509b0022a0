//! What a bootstrap on a lane of its own does to the last sync time of another.

use super::node::{Ask, Load};
use super::speed::MEBI;
use super::{Job, at_most};
use crate::latency::Summary;
use crate::report::{Check, Report, Series, Table, number};

/// Turns with and without a bootstrap.
const TURNS: u32 = 5;
/// Bytes a second that a bootstrap may send.
const RATE: u64 = 64 << 20;
/// Bytes of its records.
const RECORD: usize = 16 << 10;

impl Job {
    /// A load at a quarter of the primary's greatest rate on one lane, in turns with and without a bootstrap on another.
    pub(super) fn bootstrap(&mut self, most: f64, report: &mut Report) -> Result<(), String> {
        let seconds = self.arguments.seconds;
        self.progress.step("a bootstrap beside the load", u64::from(TURNS));
        let load = Load { rate: Some(most / 4.0), ..self.records(None, 0, seconds) };
        let (mut without, mut with) = (Vec::new(), Vec::new());
        let (mut bytes, mut took) = (0, 0.0);
        for turn in 1..=TURNS {
            let account = format!("bulk-{turn}");
            self.bulk(&account, seconds)?;
            self.link(true)?;
            self.west.until_shipped()?;
            without.push(self.lag_under(&load)?);
            let to = self.wan.address();
            self.west.ask(&Ask::Beside { to, lane: turn, account: account.clone(), bytes_per_second: RATE })?;
            with.push(self.lag_under(&load)?);
            let status = self.west.status()?;
            let link = status.beside.ok_or("the second lane's link is gone")?;
            let still = if link.bootstrap { "still under way" } else { "over" };
            self.progress.at(u64::from(turn), &format!("the bootstrap is {still} at the end of the load"));
            (bytes, took) = (bytes + link.shipped.0, took + seconds);
            self.west.until("the bootstrap's end", |status| {
                status.beside.as_ref().is_some_and(|link| link.live && !link.bootstrap && link.last_sync_time > 0)
            })?;
            self.whole(&account)?;
            self.west.ask(&Ask::Geo { account, on: false })?;
            self.west.until_shipped()?;
            self.west.ask(&Ask::Alone)?;
            self.west.ask(&Ask::Unlink)?;
            self.trim()?;
        }
        let [alone, beside] = [without, with].map(median);
        let rate = bytes as f64 / MEBI / took;
        let [one, other] = [alone.p99_us / 1e3, beside.p99_us / 1e3];
        self.progress.done(&format!(
            "p99 of the lag {} ms, and {} ms beside a bootstrap of {} MiB/s",
            number(one),
            number(other),
            number(rate)
        ));
        report.ratios.push(at_most("p99 of the lag beside a bootstrap, against without", "ms", other, one, 2.0));
        report.tables.push(Table {
            title: "A bootstrap on one lane, a load on another".into(),
            note: format!(
                "A quarter of the primary's greatest rate. The bootstrap may send {} MiB/s; the median of {TURNS} turns each, by p99.",
                number(RATE as f64 / MEBI)
            ),
            columns: ["", "without", "beside a bootstrap"].map(String::from).to_vec(),
            rows: vec![
                vec!["p50 of the lag, ms".into(), number(alone.p50_us / 1e3), number(beside.p50_us / 1e3)],
                vec!["p99 of the lag, ms".into(), number(one), number(other)],
                vec!["MiB/s of the bootstrap".into(), String::new(), number(rate)],
            ],
            first: false,
        });
        let series = [("quarter rate", alone), ("quarter rate, beside a bootstrap", beside)];
        let series =
            series.map(|(name, summary)| Series { name: name.into(), meaning: "synthetic records".into(), summary });
        self.latencies.iter_mut().take(1).for_each(|group| group.series.extend(series.clone()));
        Ok(())
    }

    /// Commits what a bootstrap takes somewhat longer than a turn for.
    fn bulk(&mut self, account: &str, seconds: f64) -> Result<(), String> {
        let records = RATE as f64 * seconds * 1.5 / RECORD as f64;
        let rate = 16_000.0;
        let load = Load {
            account: Some(account.to_owned()),
            payload: RECORD,
            partitions: self.arguments.partitions,
            skew: 50,
            rate: Some(rate),
            outstanding: 0,
            flights: None,
            seconds: records / rate,
        };
        self.west.load(&load, |_| {}).map(drop)
    }

    /// From commit to remotely durable under a load.
    fn lag_under(&mut self, load: &Load) -> Result<Summary, String> {
        self.west.ask(&Ask::Reset)?;
        self.west.load(load, |_| {})?;
        Ok(self.west.shipping()?.remotely_durable)
    }

    /// Both sides say the same of an account.
    fn whole(&mut self, account: &str) -> Result<(), String> {
        let both = [self.west.status()?, self.east.status()?]
            .map(|status| status.accounts.into_iter().find(|(name, _, _)| name == account));
        let records = both[0].as_ref().map_or(0, |(_, records, _)| *records);
        self.checks.push(Check {
            claim: format!(
                "Account {account} was bootstrapped while another one was written, and is the same on both sides"
            ),
            holds: both[0] == both[1] && records > 0,
            detail: format!("{} records", number(records as f64)),
        });
        Ok(())
    }
}

/// The turn in the middle.
fn median(mut turns: Vec<Summary>) -> Summary {
    turns.sort_by(|one, other| one.p99_us.total_cmp(&other.p99_us));
    turns.swap_remove(turns.len() / 2)
}
