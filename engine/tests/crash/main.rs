//! The real thing: processes killed under load, and real file systems that fill, turn read-only and lose power.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "it is all test code, on the real clock and real files"
)]

mod child;
mod hung;
mod images;
mod kill;
mod ledger;
mod limits;
mod lives;
mod load;
mod making;
mod memory;
mod mounts;
mod order;
mod stop;
