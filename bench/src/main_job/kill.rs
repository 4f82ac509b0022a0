//! The process is killed in mid-write, several times, and the region recovers.

use std::io::BufReader;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use meridian::Region;

use super::{Job, flight_options, text};
use crate::child::Message;
use crate::flight_load::FlightLoad;
use crate::latency::{self, summarize};
use crate::report::{LatencyGroup, Ratio, Series, bytes, number};

/// How often it is killed, and how long it serves before: a little longer each time, so as not to die at one spot.
const ROUNDS: u64 = 3;
const SERVES: Duration = Duration::from_millis(1_200);
const LONGER: Duration = Duration::from_millis(137);
/// How long a process may take to open the region.
const PATIENCE: Duration = Duration::from_secs(60);
/// Recovery reads the unsealed tail only (issue: under a second).
const RECOVERY_AIM: f64 = 1_000.0;

impl Job<'_> {
    /// Closes the region, lets processes of its own serve it, kills each, and opens it again.
    pub(super) fn kill_and_recover(&mut self) -> Result<(), String> {
        self.region.take().ok_or("the region is closed")?.close().map_err(text)?;
        self.plugs.put_back_all();
        self.progress.step("killing the process that serves", ROUNDS);
        let mut latencies = latency::histogram();
        let (mut acknowledged, mut failed, mut idle) = (0, 0, 0);
        for round in 0..ROUNDS {
            let serves = SERVES + LONGER * u32::try_from(round).unwrap_or(0);
            let (count, failures) = self.round(serves, &mut latencies)?;
            acknowledged += count;
            failed += failures;
            idle += u64::from(count == 0);
            self.progress.at(round + 1, &format!("killed {} times", round + 1));
        }
        self.report.latencies.push(LatencyGroup {
            title: "Latency of the processes that were killed".to_string(),
            note: "Open loop, from when a transaction was due until its acknowledgement was on its way to the parent; \
                what was due in the instants around opening is included."
                .to_string(),
            series: vec![Series {
                name: "acknowledged".into(),
                meaning: String::new(),
                summary: summarize(&latencies),
            }],
        });
        self.claim(
            "The process was killed while it committed, each time",
            idle + failed == 0,
            format!("{ROUNDS} × SIGKILL after {} acknowledgements, {failed} failed", number(acknowledged as f64)),
        );
        let recovered = Region::open(flight_options(self.disks), ()).map_err(text)?;
        let stats = recovered.stats().map_err(text)?;
        let recovery = stats.recovery_time as f64 / 1e6;
        self.meter.event(format!("recovered in {} ms", number(recovery)), false);
        recovered.close().map_err(text)?;
        self.report.headline(number(recovery), "ms", "to recover after SIGKILL");
        self.report.aims.push(Ratio::value("recovery after SIGKILL", "ms", recovery, RECOVERY_AIM));
        // Opened once more with the state machine, which lives in memory and asks for the whole log.
        let start = Instant::now();
        let machine = self.delays.renewed();
        let region = Region::open_with(flight_options(self.disks), machine, self.plugs.driver()).map_err(text)?;
        let replay = start.elapsed().as_secs_f64() * 1e3;
        self.progress.done(&format!(
            "killed {ROUNDS} times under load after {} acknowledgements; recovered in {} ms, reading {}; state rebuilt from the log in {} ms",
            number(acknowledged as f64),
            number(recovery),
            bytes(stats.recovery_bytes as f64),
            number(replay)
        ));
        self.region = Some(region);
        Ok(())
    }

    /// One process: serves for a while, is killed, and all that it had said is taken down.
    fn round(&mut self, serves: Duration, latencies: &mut hdrhistogram::Histogram<u64>) -> Result<(u64, u64), String> {
        let (mut child, messages) = self.spawn()?;
        let opened = match messages.recv_timeout(PATIENCE) {
            Ok((_, Message::Serving(took))) => took,
            _ => {
                // Its own message is on standard error.
                let _ = child.kill().and_then(|()| child.wait());
                return Err("the process that was to be killed did not open the region".to_string());
            }
        };
        self.meter.event(format!("open in {} ms", number(opened.as_secs_f64() * 1e3)), false);
        let end = Instant::now() + serves;
        let load = FlightLoad::new(self.flights, self.account);
        let (mut count, mut failed, mut next) = (0, 0, self.next);
        let mut alive = true;
        loop {
            let message = if alive {
                messages.recv_timeout(end.saturating_duration_since(Instant::now()))
            } else {
                messages.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            match message {
                Ok((at, Message::Acknowledged(number, took))) => {
                    self.ledger.acknowledge(self.flights, number);
                    self.meter.acknowledged(at, took, load.records(number));
                    latency::record(latencies, took, 1);
                    count += 1;
                    next = next.max(number + 1);
                }
                Ok((_, Message::Failed(_))) => failed += 1,
                Ok((_, Message::Serving(_))) => {}
                Err(RecvTimeoutError::Timeout) => {
                    child.kill().map_err(text)?;
                    self.meter.event("SIGKILL", true);
                    alive = false;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if alive && Instant::now() >= end {
                child.kill().map_err(text)?;
                self.meter.event("SIGKILL", true);
                alive = false;
            }
        }
        let status = child.wait().map_err(text)?;
        // What was sent and not acknowledged is sent again by the next process, with the same client sequences.
        self.next = next;
        if status.code().is_some() {
            return Err(format!("the process ended by itself before it was killed: {status}"));
        }
        Ok((count, failed))
    }

    /// Starts this program as the process to be killed; its messages arrive with the moment they were read.
    fn spawn(&self) -> Result<(Child, Receiver<(Instant, Message)>), String> {
        let program = std::env::current_exe().map_err(text)?;
        let mut command = Command::new(program);
        command.arg("child").arg("--first").arg(self.next.to_string()).arg("--rate").arg(self.steady.to_string());
        command.args(self.disks).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("cannot start the process to be killed: {error}"))?;
        let pipe = child.stdout.take().ok_or("the process has no pipe")?;
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let mut pipe = BufReader::with_capacity(64 << 10, pipe);
            while let Ok(Some(message)) = Message::read(&mut pipe) {
                if sender.send((Instant::now(), message)).is_err() {
                    return;
                }
            }
        });
        Ok((child, messages))
    }
}
