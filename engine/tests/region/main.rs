//! A region on real directories, as an embedder uses it.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "it is all test code, on the real clock and real files"
)]

mod commit;
mod common;
mod disks;
mod flips;
mod gates;
mod geo;
mod histories;
mod host;
mod input;
mod model;
mod operator;
mod read;
mod remains;
mod retries;
mod slow;
mod strict;
mod unopened;
