//! The process that is killed: opens the region, commits flights, and tells what was acknowledged through a pipe.
//!
//! What is in the pipe when the process dies is still read by the parent: an acknowledgement that was written is never lost.

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use meridian::{Region, Transaction};

use crate::flight_load::{FlightLoad, account};
use crate::flights::Flights;
use crate::load::{Answer, Pace, Plan, drive};
use crate::main_job::flight_options;
use crate::{Outcome, say};

/// What the child says: a number and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// The region is open; it took so long.
    Serving(Duration),
    /// The transaction of this number was acknowledged, so long after it was due.
    Acknowledged(u64, Duration),
    /// The transaction of this number failed.
    Failed(u64),
}

/// Bytes of a message: divides the pipe's atomic size, so that none arrives in part.
const MESSAGE: usize = 16;
const SERVING: u64 = u64::MAX;
const FAILED: u64 = u64::MAX;

impl Message {
    fn encode(self) -> [u8; MESSAGE] {
        let nanos = |time: Duration| time.as_nanos() as u64;
        let (number, value) = match self {
            Message::Serving(took) => (SERVING, nanos(took)),
            Message::Acknowledged(number, latency) => (number, nanos(latency)),
            Message::Failed(number) => (number, FAILED),
        };
        let mut out = [0; MESSAGE];
        out[..8].copy_from_slice(&number.to_le_bytes());
        out[8..].copy_from_slice(&value.to_le_bytes());
        out
    }

    fn decode(bytes: [u8; MESSAGE]) -> Message {
        let [number, value] = [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte])));
        match (number, value) {
            (SERVING, took) => Message::Serving(Duration::from_nanos(took)),
            (number, FAILED) => Message::Failed(number),
            (number, latency) => Message::Acknowledged(number, Duration::from_nanos(latency)),
        }
    }

    /// The next message; `None` when the writer is gone.
    ///
    /// # Errors
    /// What the pipe says.
    pub(crate) fn read(pipe: &mut impl Read) -> io::Result<Option<Message>> {
        let mut bytes = [0; MESSAGE];
        match pipe.read_exact(&mut bytes) {
            Ok(()) => Ok(Some(Message::decode(bytes))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Commits flights from number `first` at `rate` transactions a second, until it is killed.
pub(crate) fn run(disks: &[PathBuf], first: u64, rate: f64) -> Outcome {
    let flights = Flights::load()?;
    let mut plan = Telling { load: None, unsaid: Vec::new() };
    let start = Instant::now();
    let region = Region::open(flight_options(disks), ()).map_err(|error| error.to_string())?;
    plan.say(Message::Serving(start.elapsed()));
    let account = account(&region)?;
    plan.load = Some(FlightLoad::new(&flights, account));
    drive(&region, Pace::Open(rate), first, &mut plan)?;
    Ok(true)
}

/// The plan of the child: tell everything at once.
struct Telling<'a> {
    load: Option<FlightLoad<'a>>,
    unsaid: Vec<u8>,
}

impl Telling<'_> {
    fn say(&mut self, message: Message) {
        self.unsaid.extend_from_slice(&message.encode());
    }
}

impl Plan for Telling<'_> {
    fn make(&mut self, number: u64) -> Transaction {
        let load = self.load.as_ref().expect("set before the first transaction is asked for");
        load.transaction(number)
    }

    fn answered(&mut self, answer: Answer) {
        self.say(match answer.outcome {
            Ok(_) => Message::Acknowledged(answer.number, answer.latency),
            Err(_) => Message::Failed(answer.number),
        });
    }

    /// Goes on until it is killed, or nobody listens any more.
    fn goes_on(&mut self, _: Instant) -> bool {
        if self.unsaid.is_empty() {
            return true;
        }
        let said = say::tell(&self.unsaid);
        self.unsaid.clear();
        said.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_pipe_and_a_cut_one_is_none() {
        let all = [
            Message::Serving(Duration::from_millis(12)),
            Message::Acknowledged(77, Duration::from_micros(250)),
            Message::Failed(78),
        ];
        let mut bytes: Vec<u8> = all.iter().flat_map(|message| message.encode()).collect();
        bytes.extend_from_slice(&[1, 2, 3]);
        let mut pipe = &bytes[..];
        for message in all {
            assert_eq!(Message::read(&mut pipe).expect("read"), Some(message));
        }
        assert_eq!(Message::read(&mut pipe).expect("read"), None);
    }
}
