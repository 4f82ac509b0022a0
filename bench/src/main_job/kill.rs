//! The process is killed in mid-write, several times, and the region recovers.

use std::io::BufReader;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
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

/// A process that acknowledged nothing for so long before the kill was not committing.
const BUSY: Duration = Duration::from_millis(500);
/// SIGKILL's number.
const KILL: i32 = 9;

/// What one process did until it was killed.
struct Round {
    acknowledged: u64,
    failed: u64,
    /// It was committing when it was killed.
    busy: bool,
}

/// Whether a process whose last acknowledgement came at `last` was committing when it was killed.
fn busy(last: Option<Instant>, killed: Instant) -> bool {
    last.is_some_and(|last| killed.saturating_duration_since(last) <= BUSY)
}

/// Hands on what a process says until `end`, kills it, and hands on what it had said by then. Returns when it was killed.
///
/// # Errors
/// A message when it ended by itself: then what follows is no recovery from a kill.
fn listen(
    child: &mut Child,
    messages: &Receiver<(Instant, Message)>,
    end: Instant,
    take: &mut dyn FnMut(Instant, Message),
) -> Result<Instant, String> {
    let by_itself = |status: ExitStatus| format!("the process ended by itself before it was killed: {status}");
    loop {
        match messages.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok((at, message)) => take(at, message),
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => {
                // It closed its pipe, whether it is gone or not.
                let _ = child.kill();
                return Err(by_itself(child.wait().map_err(text)?));
            }
        }
        if Instant::now() >= end {
            break;
        }
    }
    if let Some(status) = child.try_wait().map_err(text)? {
        return Err(by_itself(status));
    }
    child.kill().map_err(text)?;
    let killed = Instant::now();
    messages.iter().for_each(|(at, message)| take(at, message));
    let status = child.wait().map_err(text)?;
    if status.signal() == Some(KILL) { Ok(killed) } else { Err(by_itself(status)) }
}

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
            let round_ended = self.round(serves, &mut latencies)?;
            acknowledged += round_ended.acknowledged;
            failed += round_ended.failed;
            idle += u64::from(!round_ended.busy);
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
            format!(
                "{ROUNDS} × SIGKILL after {} acknowledgements, {failed} failed; {idle} times it had committed nothing just before",
                number(acknowledged as f64)
            ),
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
    fn round(&mut self, serves: Duration, latencies: &mut hdrhistogram::Histogram<u64>) -> Result<Round, String> {
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
        let load = FlightLoad::new(self.flights, self.account);
        let (mut count, mut failed, mut next) = (0, 0, self.next);
        let mut last = None;
        let killed = listen(&mut child, &messages, Instant::now() + serves, &mut |at, message| match message {
            Message::Acknowledged(number, took) => {
                self.ledger.acknowledge(self.flights, number);
                self.meter.acknowledged(at, took, load.records(number));
                latency::record(latencies, took, 1);
                count += 1;
                next = next.max(number + 1);
                last = Some(at);
            }
            Message::Failed(_) => failed += 1,
            Message::Serving(_) => {}
        })?;
        let at = self.meter.seconds() - killed.elapsed().as_secs_f64();
        self.meter.event_at(at, "SIGKILL", true);
        // What was sent and not acknowledged is sent again by the next process, with the same client sequences.
        self.next = next;
        Ok(Round { acknowledged: count, failed, busy: busy(last, killed) })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell that runs `script`, and its messages: the pipe's other end is closed when `said` is over.
    fn listened(script: &str, said: Option<Message>) -> (Result<Instant, String>, usize) {
        let mut child = Command::new("sh").args(["-c", script]).spawn().expect("started");
        let (sender, messages) = channel();
        let mut taken = 0;
        let end = Instant::now() + Duration::from_millis(300);
        let speaker = std::thread::spawn(move || {
            let Some(message) = said else { return };
            sender.send((Instant::now(), message)).expect("heard");
            // Closed behind the kill, as a pipe is.
            std::thread::sleep(Duration::from_millis(600));
        });
        let outcome = listen(&mut child, &messages, end, &mut |_, _| taken += 1);
        speaker.join().expect("ended");
        assert!(child.try_wait().is_ok_and(|status| status.is_some()), "it is gone");
        (outcome, taken)
    }

    #[test]
    fn only_a_process_that_lived_until_it_was_killed_counts_as_killed() {
        let said = Some(Message::Failed(7));
        let (killed, taken) = listened("exec sleep 60", said);
        assert!(killed.is_ok() && taken == 1, "{killed:?}");
        for script in ["exit 0", "kill -SEGV $$", "kill -KILL $$"] {
            let (ended, _) = listened(script, said);
            assert!(ended.is_err_and(|why| why.contains("by itself")), "{script}, its pipe held open");
            let (ended, _) = listened(script, None);
            assert!(ended.is_err_and(|why| why.contains("by itself")), "{script}");
        }
    }

    #[test]
    fn a_process_that_fell_silent_before_the_kill_was_not_committing() {
        let killed = Instant::now() + Duration::from_secs(10);
        assert!(busy(Some(killed - Duration::from_millis(20)), killed));
        assert!(busy(Some(killed + Duration::from_millis(1)), killed), "read behind the kill");
        assert!(!busy(Some(killed - Duration::from_secs(1)), killed));
        assert!(!busy(None, killed));
    }
}
