//! The harness of Meridian.
fn main() {}
