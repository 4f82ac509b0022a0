//! A region on real directories, as an embedder uses it.

mod commit;
mod common;
mod disks;
mod read;
