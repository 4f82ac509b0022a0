//! The program as its user runs it: the main job holds what it promises, the other commands leave what they say.
#![allow(clippy::disallowed_methods, reason = "a test of a program starts it and reads its files")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

/// The tests take turns: each loads the disks as hard as it can.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the program with its output in `out`.
fn bench(out: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meridian-bench"));
    command.arg("--out").arg(out).args(arguments).output().expect("started")
}

/// As [`bench`], and it must succeed; returns what it printed.
fn succeeds(out: &Path, arguments: &[&str]) -> String {
    let output = bench(out, arguments);
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {}\n{said}\n{complained}", output.status);
    said.into_owned()
}

fn report(out: &Path) -> Value {
    let text = fs::read_to_string(out.join("report.json")).expect("report.json");
    serde_json::from_str(&text).expect("valid JSON")
}

#[test]
fn the_main_job_loses_a_disk_is_killed_verifies_everything_and_leaves_its_report() {
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let out = dir.path().join("report");
    let said = succeeds(&out, &["--keep"]);
    let report = report(&out);
    let checks = report["checks"].as_array().expect("checks");
    assert!(checks.len() >= 10 && checks.iter().all(|check| check["holds"] == true), "{checks:?}");
    assert!(said.contains("killed 3 times"), "{said}");
    let events = report["timeline"]["events"].to_string();
    for moment in ["pulled out", "SIGKILL", "recovered", "verified"] {
        assert!(events.contains(moment), "{moment}: {events}");
    }
    let page = fs::read_to_string(out.join("report.html")).expect("report.html");
    assert!(page.contains("<svg") && !page.contains("src=\"") && !page.contains("NaN"), "one file, whole");
    assert!(out.join("full-speed-acknowledged.hgrm").is_file());
    // What it left behind can be read by the other commands.
    let disks: Vec<PathBuf> =
        (1..=4).map(|disk| out.join(format!("disks/disk-{disk}/meridian-bench/flights"))).collect();
    let mut arguments = vec!["verify", "--json"];
    arguments.extend(disks.iter().map(|disk| disk.to_str().expect("a plain path")));
    let findings: Value = serde_json::from_str(&succeeds(&out, &arguments)).expect("valid JSON");
    assert_eq!(findings["problems"].as_array().map(Vec::len), Some(0), "{findings}");
    let first = disks[0].to_str().expect("a plain path");
    let shown: Value =
        serde_json::from_str(&succeeds(&out, &["inspect", "--json", "--records", "--segment", "1", first]))
            .expect("valid JSON");
    let content = shown[0]["segments"][0]["content"].as_array().expect("what the first segment holds");
    assert!(content.iter().any(|item| item["records"][0].is_string()), "records are shown");
}

#[test]
fn log_and_limit_measure_with_every_kind_of_client_and_clean_up() {
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let loads: [&[&str]; 5] = [
        &["limit", "--seconds", "0.3", "--clients", "8"],
        &["log", "--seconds", "0.3", "--clients", "8", "--limit", "--ack", "all"],
        &["log", "--seconds", "0.3", "--clients", "8", "--by", "async"],
        &["log", "--seconds", "0.3", "--clients", "8", "--by", "threads", "--threads"],
        &["log", "--seconds", "0.3", "--rate", "500", "--payload", "16384"],
    ];
    for arguments in loads {
        succeeds(dir.path(), arguments);
        let report = report(dir.path());
        let count = report["latencies"][0]["series"][0]["summary"]["count"].as_u64();
        assert!(count.is_some_and(|count| count > 0), "{arguments:?}: {report}");
        assert!(!dir.path().join("disks").exists(), "{arguments:?}: the disks were taken away");
    }
}

/// Runs the program, and reads nothing of what it says.
fn unread(out: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meridian-bench"));
    command.arg("--out").arg(out).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("started");
    drop(child.stdout.take());
    child.wait_with_output().expect("ended")
}

#[test]
fn h4_closed_pipe_ends_no_command_and_is_not_complained_of() {
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let three = ["a", "b", "c"].map(|name| dir.path().join(name).display().to_string());
    let [a, b, c] = three.each_ref().map(String::as_str);
    let log = ["--keep", "log", "--seconds", "0.3", "--clients", "8", "--limit", "--disks", a, b, c];
    let kept = three.each_ref().map(|disk| format!("{disk}/meridian-bench/log"));
    let [first, second, third] = kept.each_ref().map(String::as_str);
    let commands: [&[&str]; 5] = [
        &log,
        &["verify", first, second, third],
        &["verify", "--json", first, second, third],
        &["inspect", "--records", first, second, third],
        &["--help"],
    ];
    for arguments in commands {
        let output = unread(dir.path(), arguments);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && complaint.is_empty(), "{arguments:?}: {}\n{complaint}", output.status);
    }
    // The run went on to its report, and left the region that was to be kept.
    assert!(report(dir.path())["latencies"][0].is_object());
}

#[test]
fn h4_output_that_cannot_be_written_is_an_error() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("there is one");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_meridian-bench"));
    let _turn = turn();
    let arguments = ["limit", "--seconds", "0.2", "--clients", "8"];
    let output = command.arg("--out").arg(dir.path()).args(arguments).stdout(full).output().expect("started");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), complaint.contains("cannot write the output")), (Some(2), true), "{complaint}");
}

#[test]
fn h4_region_with_an_unreadable_disk_is_shown_and_judged_by_the_others() {
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disks = ["a", "b", "c"].map(|name| dir.path().join(name).display().to_string());
    let [a, b, c] = disks.each_ref().map(String::as_str);
    succeeds(dir.path(), &["--keep", "log", "--seconds", "0.3", "--clients", "8", "--disks", a, b, c]);
    let kept = disks.map(|disk| format!("{disk}/meridian-bench/log"));
    let arguments =
        |command: &'static str| [vec![command, "--json"], kept.iter().map(String::as_str).collect()].concat();
    let verified = succeeds(dir.path(), &arguments("verify"));
    assert!(verified.contains("\"problems\": []"), "{verified}");
    let superblock = format!("{}/superblock", kept[1]);
    fs::remove_file(&superblock).expect("it was there");
    let output = bench(dir.path(), &arguments("verify"));
    let findings: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    assert_eq!((output.status.code(), &findings["disks"]), (Some(1), &Value::from(2)));
    let problems = findings["problems"].as_array().expect("a list");
    assert!(problems.len() == 1 && problems[0].to_string().contains(&superblock), "{findings}");
    assert!(findings["blocks"].as_u64() > Some(0), "the others were read: {findings}");
    let output = bench(dir.path(), &arguments("inspect"));
    let shown: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    assert_eq!((output.status.code(), shown.as_array().map(Vec::len)), (Some(1), Some(2)));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&superblock));
}

#[test]
fn bad_arguments_are_refused_in_words() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let refused = |arguments: &[&str], why: &str| {
        let output = bench(dir.path(), arguments);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && complaint.contains(why), "{arguments:?}: {complaint}");
    };
    refused(&["log", "--disks", "a,b"], "at least 3");
    let [one, again, other] = ["a", "./a", "b"].map(|name| dir.path().join(name).display().to_string());
    refused(&["log", "--disks", &[one, other, again].join(",")], "named twice");
    for by in ["threads", "async"] {
        refused(&["log", "--rate", "10", "--by", by], "leave out --by");
    }
    #[cfg(feature = "peers")]
    refused(&["peers", "--rate", "10"], "closed loops only");
    refused(&["limit", "--payload", "0"], "0 is not in");
    for value in ["0", "-1", "NaN", "inf", "-inf", "1e300", "1e-300", "much"] {
        for command in ["log", "limit"] {
            refused(&[command, &format!("--rate={value}")], "invalid value");
            refused(&[command, &format!("--seconds={value}")], "invalid value");
        }
        refused(&["geo", &format!("--seconds={value}")], "invalid value");
    }
    refused(&["verify", "/nowhere/at/all"], "cannot read /nowhere/at/all");
}
