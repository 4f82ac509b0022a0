//! SIGSTOP under load: a process that stood still for longer than `stall_timeout` goes on with all its disks.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use meridian::DriverChoice;
use rustix::process::{Pid, Signal, kill_process};

use crate::child::Word;
use crate::order::{Order, VARIABLE, has};

/// Long enough for the hiccups of a disk under test, short enough to outlast.
const STALL: Duration = Duration::from_millis(1500);

#[test]
fn a_stopped_process_goes_on_with_threads() {
    stop(DriverChoice::Threads);
}

#[test]
fn a_stopped_process_goes_on_with_io_uring() {
    stop(DriverChoice::Uring);
}

fn stop(driver: DriverChoice) {
    if !has(driver) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disks = (0..3).map(|at| dir.path().join(format!("disk-{at}"))).collect();
    let order = Order {
        create: true,
        driver,
        seed: 1,
        next: vec![0, 0],
        kill_at: None,
        fail: None,
        trim: true,
        stall: STALL,
        disks,
    };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child::process", "--ignored", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, order.encode())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let (tell, words) = mpsc::channel();
    let hears = std::thread::spawn(move || {
        let lines = out.split(b'\n').map_while(Result::ok);
        lines.filter_map(|line| Word::hear(&String::from_utf8_lossy(&line))).try_for_each(|word| tell.send(word))
    });
    let pid = Pid::from_child(&child);
    for _ in 0..3 {
        commits(&words);
        kill_process(pid, Signal::STOP).unwrap();
        std::thread::sleep(STALL * 2);
        kill_process(pid, Signal::CONT).unwrap();
    }
    commits(&words);
    child.kill().unwrap();
    child.wait().unwrap();
    drop(words);
    // It ends when nobody listens any more.
    let _ended = hears.join().unwrap();
}

/// Waits for acknowledgements that were not there before.
fn commits(words: &mpsc::Receiver<Word>) {
    words.try_iter().for_each(drop);
    for _ in 0..50 {
        match words.recv_timeout(Duration::from_secs(30)).expect("it goes on") {
            Word::Failed(error) => panic!("the child failed: {error}"),
            Word::Opened | Word::Acked(_) | Word::Refused | Word::Trims(_) => {}
        }
    }
}
