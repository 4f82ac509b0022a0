//! A host that leaves SIGPIPE as the system sets it is not killed by a peer that hangs up (acceptance H4).

use std::io::Write;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use meridian_wire::codec::Message;

use crate::common::{Pair, link_options, until};

/// Names the child that the test runs itself as.
const CHILD: &str = "MERIDIAN_CHILD";

#[test]
fn h4_peer_that_hangs_up_does_not_kill_a_host_with_default_sigpipe() {
    let program = std::env::current_exe().unwrap();
    let arguments = ["--exact", "signals::host_with_default_sigpipe", "--ignored", "--nocapture"];
    let ended = Command::new(program).args(arguments).env(CHILD, "1").output().unwrap();
    assert!(ended.status.success(), "{}: {}", ended.status, String::from_utf8_lossy(&ended.stderr));
}

#[test]
#[ignore = "the child of the test above"]
fn host_with_default_sigpipe() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    // SAFETY: it installs no handler, and nothing else in this process asks for the signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let pair = Pair::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let link = pair.link(link_options(socket.local_addr().unwrap(), pair.account));
    for _ in 0..100 {
        // Greets, as a listener does, and is gone.
        drop(socket.accept().unwrap().0.write_all(&Message::Challenge(1).encode()));
    }
    until("an end", || link.status().ended.is_some());
    std::thread::sleep(Duration::from_millis(20));
}
