//! Which driver to use, found by trying.

use std::io;

use super::Driver;
use super::threads::ThreadDriver;

/// Which driver an engine uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverChoice {
    /// io_uring where the system allows it, otherwise threads; [`Driver::name`] says why.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// Threads with blocking calls.
    Threads,
}

/// Makes a driver for the calling thread, which must be the one that uses it.
///
/// # Errors
/// Why io_uring cannot be used, when it was asked for; `Unsupported` in a build without it.
pub fn driver(choice: DriverChoice) -> io::Result<Box<dyn Driver>> {
    match choice {
        DriverChoice::Threads => Ok(Box::new(ThreadDriver::new(None))),
        DriverChoice::Uring => uring(),
        DriverChoice::Auto => Ok(uring()
            .unwrap_or_else(|error| Box::new(ThreadDriver::new(Some(format!("io_uring is not available: {error}")))))),
    }
}

#[cfg(all(feature = "uring", target_os = "linux"))]
fn uring() -> io::Result<Box<dyn Driver>> {
    Ok(Box::new(super::uring::UringDriver::new()?))
}

#[cfg(not(all(feature = "uring", target_os = "linux")))]
fn uring() -> io::Result<Box<dyn Driver>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "built without it"))
}
