//! What the program says: the only place that writes to its standard output and error.
//!
//! A reader that has seen enough closes its end of the pipe (`meridian-bench log | head -1`): from then on nothing is said, and the run goes
//! on to its report and its exit code. Any other failure of the output is told at the end: what was to be read is not there.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

/// Why something could not be said.
static FAILED: OnceLock<String> = OnceLock::new();

/// Writes text to the standard output.
pub(crate) fn out(text: Arguments<'_>) {
    note(io::stdout().lock().write_fmt(text));
}

/// Writes text to the standard error.
pub(crate) fn complain(text: Arguments<'_>) {
    note(io::stderr().lock().write_fmt(text));
}

/// Writes bytes for another process of this program to the standard output.
///
/// # Errors
/// What the system says: also that nobody reads any more.
pub(crate) fn tell(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Why not all that was to be said could be written, if so.
pub(crate) fn failure() -> Option<&'static str> {
    FAILED.get().map(String::as_str)
}

fn note(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        FAILED.get_or_init(|| format!("cannot write the output: {error}"));
    }
}

/// As `println!`, through [`out`].
macro_rules! say {
    ($($text:tt)*) => { $crate::say::out(format_args!("{}\n", format_args!($($text)*))) };
}
