//! The link is cut and both processes are killed, under load, and each time everything gets there.

use std::time::{Duration, Instant};

use super::{Ask, Job, Load, text};
use crate::report::{Table, number};

/// Transactions a second meanwhile.
const RATE: f64 = 4_000.0;
/// How long the load runs before each fault, and after it.
const BEFORE: Duration = Duration::from_millis(250);
const AFTER: Duration = Duration::from_millis(400);

/// How long a side needed after a fault.
struct Recovered {
    fault: &'static str,
    /// How often it was done.
    times: usize,
    /// Until a session was up again: one that began after the fault, but where the session may outlive it.
    live: Vec<f64>,
    /// From then until what had been committed was there.
    caught_up: Vec<f64>,
}

impl From<&'static str> for Recovered {
    fn from(fault: &'static str) -> Recovered {
        Recovered { fault, times: 0, live: Vec::new(), caught_up: Vec::new() }
    }
}

/// Position and last sync time of a secondary: what the primary knew of them, and what the secondary said after it was killed.
struct Kept {
    acknowledged: (u64, u64),
    held: Option<(u64, u64)>,
}

impl Kept {
    /// Whether nothing that was acknowledged is forgotten.
    fn holds(&self) -> bool {
        let (position, time) = self.held.unwrap_or_default();
        position >= self.acknowledged.0 && time >= self.acknowledged.1
    }
}

impl Job {
    /// Cuts the network: at once, in the middle of a message, and by letting nothing through for a while.
    pub(super) fn cuts(&mut self) -> Result<(), String> {
        let rounds = self.arguments.rounds;
        self.progress.step("cutting the link", u64::from(3 * rounds));
        let mut kinds =
            ["cut", "cut in the middle of a message", "nothing passed for half a second"].map(Recovered::from);
        for round in 0..3 * rounds {
            let kind = (round % 3) as usize;
            let load = self.under_load()?;
            let (start, before) = (Instant::now(), self.west.shipping()?.sessions);
            match kind {
                0 => self.wan.cut(),
                1 => self.wan.cut_after(u64::from(round) * 7_919 % 60_000 + 1),
                _ => {
                    self.wan.pause(true);
                    std::thread::sleep(Duration::from_millis(500));
                    self.wan.pause(false);
                }
            }
            // Where nothing passed for a while the session outlives it.
            let sessions = if kind == 2 { before } else { before + 1 };
            self.recover(&mut kinds[kind], start, sessions, Some(&load))?;
            self.progress.at(u64::from(round + 1), kinds[kind].fault);
        }
        self.progress.done(&format!("the link was cut {} times", 3 * rounds));
        self.recovered(&kinds);
        Ok(())
    }

    /// Kills the secondary's process, then the primary's.
    pub(super) fn kills(&mut self) -> Result<(), String> {
        let rounds = self.arguments.rounds;
        self.progress.step("killing both sides in turns", u64::from(2 * rounds));
        let mut kinds = ["secondary killed (SIGKILL)", "primary killed (SIGKILL)"].map(Recovered::from);
        let mut kept = Vec::new();
        for round in 0..2 * rounds {
            let kind = (round % 2) as usize;
            let load = self.under_load()?;
            let (start, before) = (Instant::now(), self.west.shipping()?.sessions);
            if kind == 0 {
                kept.push(self.kill_secondary()?);
            } else {
                self.west.kill();
                self.west.up()?;
                self.link(true)?;
                // What was not acknowledged may be there or not: the next flights are behind all of it.
                self.next_flight += 100_000;
            }
            // A primary that was started again counts anew.
            let sessions = if kind == 0 { before + 1 } else { 1 };
            // The load of a primary that was killed died with it.
            self.recover(&mut kinds[kind], start, sessions, (kind == 0).then_some(&load))?;
            self.progress.at(u64::from(round + 1), kinds[kind].fault);
        }
        self.progress.done(&format!("each side was killed {rounds} times"));
        self.recovered(&kinds);
        let forgot = kept.iter().filter(|kept| !kept.holds()).count();
        self.claim(
            "A killed secondary comes up with the position and the last sync time that it had acknowledged, by its own word",
            forgot == 0 && kept.iter().any(|kept| kept.acknowledged.0 > 0 && kept.acknowledged.1 > 0),
            kept.iter().find(|kept| !kept.holds()).map_or_else(
                || format!("asked {} times before anything was sent again", kept.len()),
                |kept| format!("{forgot} of {}: acknowledged {:?}, holds {:?}", rounds, kept.acknowledged, kept.held),
            ),
        );
        Ok(())
    }

    /// Kills the secondary, starts it again and asks what it holds, before the primary can send it again what it forgot.
    fn kill_secondary(&mut self) -> Result<Kept, String> {
        let before = self.west.status()?;
        let link = before.link.ok_or("the primary does not ship")?;
        self.east.kill();
        self.wan.pause(true);
        self.east.up()?;
        let held = self.east.ask(&Ask::Held { log: before.log })?.held;
        self.wan.lead_to(self.east.address()?);
        self.wan.pause(false);
        Ok(Kept { acknowledged: (link.position, link.last_sync_time), held })
    }

    /// Starts a load that outlasts what is done to it.
    fn under_load(&mut self) -> Result<Load, String> {
        let count = (RATE * (BEFORE + AFTER).as_secs_f64()) as u64;
        let load = self.next_flights(count, Some(RATE));
        self.west.ask(&Ask::Load(load.clone()))?;
        std::thread::sleep(BEFORE);
        Ok(load)
    }

    /// Waits for the session of this number, for the load's end, and for everything to arrive.
    fn recover(
        &mut self,
        recovered: &mut Recovered,
        start: Instant,
        sessions: u64,
        load: Option<&Load>,
    ) -> Result<(), String> {
        recovered.times += 1;
        // One that does not come is told of by the claim below, and by what then does not arrive.
        if self
            .west
            .comes_to(|status| status.link.as_ref().is_some_and(|link| link.live && link.sessions >= sessions))?
        {
            recovered.live.push(start.elapsed().as_secs_f64() * 1e3);
        }
        self.west.until("the load's end", |status| status.load.as_ref().is_none_or(|load| !load.running))?;
        if let Some(load) = load {
            let loaded = self.west.status()?.load.unwrap_or_default();
            loaded.whole(load).map_err(|message| format!("the primary, because of the secondary: {message}"))?;
        }
        recovered.caught_up.push(self.west.until_shipped()?.as_secs_f64() * 1e3);
        Ok(())
    }

    fn recovered(&mut self, kinds: &[Recovered]) {
        let worst = |all: &[f64]| number(all.iter().copied().fold(0.0, f64::max));
        let rows = kinds
            .iter()
            .filter(|kind| kind.times > 0)
            .map(|kind| vec![text(kind.fault), kind.times.to_string(), worst(&kind.live), worst(&kind.caught_up)]);
        let rows: Vec<_> = rows.collect();
        let faults: usize = kinds.iter().map(|kind| kind.times).sum();
        let back: usize = kinds.iter().map(|kind| kind.live.len()).sum();
        self.claim(
            &format!(
                "A session came back after each: {}",
                kinds.iter().map(|kind| kind.fault).collect::<Vec<_>>().join(", ")
            ),
            faults > 0 && back == faults,
            format!("{back} sessions after {faults} faults, and everything committed until then arrived"),
        );
        self.tables.push(Table {
            title: "After a fault".into(),
            note: format!("Under {} transactions a second; the slowest of each.", number(RATE)),
            columns: ["fault", "times", "ms until a session was up", "ms from the load's end until all was there"]
                .map(String::from)
                .to_vec(),
            rows,
            first: false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secondary_that_forgot_what_it_acknowledged_is_seen() {
        let kept = |held| Kept { acknowledged: (10, 7), held }.holds();
        assert!(kept(Some((10, 7))) && kept(Some((11, 9))));
        assert!(!kept(None), "it forgot everything");
        assert!(!kept(Some((9, 7))), "it forgot a batch");
        assert!(!kept(Some((10, 6))), "it forgot a mark");
    }
}
