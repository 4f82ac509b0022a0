//! Two regions and the link between them, on real sockets and real directories.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "it is all test code, on the real clock and real files"
)]

mod chaos;
mod common;
mod contracts;
mod copies;
mod cuts;
mod histories;
mod host;
mod idle;
mod refusals;
mod security;
mod shipping;
mod signals;
