//! The process that is killed: it opens the region as it is ordered and commits until the end, telling each acknowledgement.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meridian::{Ack, Committed, ErrorKind, Lsn, Region, Result, SegmentId, StateMachine};

use crate::load::{Acked, Writer};
use crate::order::{Order, VARIABLE};

/// Segments that trimming leaves.
const KEPT: u32 = 8;
/// A child that nobody kills ends after so long.
const LIFE: Duration = Duration::from_secs(90);

/// What a child says, a line each: whole lines reach a pipe in one piece, and stay there when the writer dies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Opened,
    Acked(Acked),
    Refused,
    /// Everything below may be trimmed from now on.
    Trims(Lsn),
    Failed(String),
}

impl Word {
    fn say(&self) {
        let line = match self {
            Word::Opened => "opened".to_owned(),
            Word::Acked(a) => format!("acked {} {} {} {}", a.writer, a.number, a.lsn.0, a.first_sequence),
            Word::Refused => "refused".to_owned(),
            Word::Trims(lsn) => format!("trims {}", lsn.0),
            Word::Failed(error) => format!("failed {error}"),
        };
        // The harness may have left a line of its own unfinished.
        let line = format!("\n@{line}.\n");
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    }

    /// None for lines that are the harness's own, and for one that was cut off.
    pub(crate) fn hear(line: &str) -> Option<Word> {
        let line = line.strip_prefix('@')?.strip_suffix('.')?;
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let numbers: Vec<u64> = rest.split(' ').filter_map(|number| number.parse().ok()).collect();
        Some(match word {
            "opened" => Word::Opened,
            "acked" => Word::Acked(Acked {
                writer: numbers[0],
                number: numbers[1],
                lsn: Lsn(numbers[2]),
                first_sequence: numbers[3],
            }),
            "refused" => Word::Refused,
            "trims" => Word::Trims(Lsn(numbers[0])),
            "failed" => Word::Failed(rest.to_owned()),
            other => panic!("a child said {other:?}"),
        })
    }
}

/// Kills the process in the middle of a commit.
struct Killer {
    applied: AtomicU64,
    at: Option<u64>,
}

impl StateMachine for Killer {
    fn resume_from(&self) -> Lsn {
        if self.at.is_some() { Lsn::ZERO } else { Lsn::MAX }
    }

    fn apply(&mut self, _: &Committed<'_>) {
        if Some(self.applied.fetch_add(1, Ordering::Relaxed)) == self.at {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
    }
}

#[test]
#[ignore = "not a test: the process that the kill tests start"]
fn process() {
    let Ok(order) = std::env::var(VARIABLE) else { return };
    if let Err(error) = serve(&Order::decode(&order)) {
        Word::Failed(format!("{:?}: {error}", error.kind())).say();
    }
}

fn serve(order: &Order) -> Result<()> {
    let machine = Killer { applied: AtomicU64::new(0), at: order.kill_at };
    let region =
        if order.create { Region::create(order.options(), machine)? } else { Region::open(order.options(), machine)? };
    let known = region.accounts()?.first().map(|account| account.id);
    let account = known.map_or_else(|| region.create_account("load", Ack::Quorum), Ok)?;
    Word::Opened.say();
    let writer = |writer| Writer {
        region: &region,
        account,
        seed: order.seed,
        writer,
        acked: &|acked| Word::Acked(acked).say(),
        refused: &|_| Word::Refused.say(),
        more: &|_| true,
    };
    let ended = std::thread::scope(|scope| {
        let numbers = (0..).zip(&order.next);
        let threads: Vec<_> = numbers.map(|(at, &next)| scope.spawn(move || writer(at).run(next))).collect();
        scope.spawn(|| tend(&region, order));
        threads.into_iter().map(|thread| thread.join().expect("a writer does not panic")).collect::<Vec<_>>()
    });
    ended.into_iter().flatten().next().map_or(Ok(()), Err)
}

/// Trims and gives a disk up, as ordered.
fn tend(region: &Region, order: &Order) {
    let step = Duration::from_millis(10);
    for passed in 0..(LIFE.as_millis() / step.as_millis()) as u64 {
        std::thread::sleep(step);
        if let Some((disk, _)) = order.fail.filter(|(_, after)| after / 10 == passed) {
            region.fail_disk(disk).unwrap();
        }
        let keep = region.committed().segment().0.saturating_sub(KEPT);
        if order.trim && passed % 4 == 3 && keep > 0 {
            let to = Lsn::new(SegmentId(keep), 0);
            Word::Trims(to).say();
            match region.trim(to) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::Halted, "{error}"),
            }
        }
    }
    Word::Failed("nobody killed it".to_owned()).say();
    std::process::exit(1);
}
