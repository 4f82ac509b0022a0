//! The limit's portable writer: threads that write durably, for systems that refuse io_uring.

use std::fs::File;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use memmap2::MmapMut;

use super::{LARGEST_BLOCK, Writer, filled_buffer, open_file};

/// One write to one directory.
struct Job {
    token: u64,
    offset: u64,
    len: usize,
}

/// As many threads per directory as blocks may be in flight. They end when the writer is dropped.
pub(super) struct Threads {
    jobs: Vec<crossbeam::channel::Sender<Job>>,
    done: Receiver<(u64, io::Result<()>)>,
    direct: bool,
    reason: String,
}

impl Threads {
    /// Opens the files and starts the threads. `reason` says why it was not io_uring.
    pub(super) fn open(paths: &[PathBuf], per_file: usize, reason: &str) -> io::Result<Threads> {
        let buffer = Arc::new(filled_buffer()?);
        let (report, done) = mpsc::channel();
        let mut jobs = Vec::new();
        let mut direct = true;
        for path in paths {
            let (file, is_direct) = open_file(path)?;
            direct &= is_direct;
            let file = Arc::new(file);
            let (sender, receiver) = crossbeam::channel::unbounded::<Job>();
            for _ in 0..per_file {
                let (file, buffer) = (Arc::clone(&file), Arc::clone(&buffer));
                let (receiver, report) = (receiver.clone(), report.clone());
                std::thread::Builder::new()
                    .name("limit-writer".to_string())
                    .spawn(move || serve(&file, &buffer, &receiver, &report))?;
            }
            jobs.push(sender);
        }
        Ok(Threads { jobs, done, direct, reason: reason.to_string() })
    }
}

fn serve(
    file: &File,
    buffer: &MmapMut,
    jobs: &crossbeam::channel::Receiver<Job>,
    report: &Sender<(u64, io::Result<()>)>,
) {
    while let Ok(job) = jobs.recv() {
        let result = write_durably(file, &buffer[..job.len], job.offset);
        if report.send((job.token, result)).is_err() {
            return;
        }
    }
}

/// One durable write at an offset; a short one is an error.
fn write_durably(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    let written = rustix::io::pwritev2(file, &[IoSlice::new(bytes)], offset, rustix::io::ReadWriteFlags::DSYNC)?;
    #[cfg(not(target_os = "linux"))]
    let written = {
        let written = rustix::io::pwritev(file, &[IoSlice::new(bytes)], offset)?;
        file.sync_data()?;
        written
    };
    if written == bytes.len() { Ok(()) } else { Err(io::Error::other(format!("{written} of {} bytes", bytes.len()))) }
}

impl Writer for Threads {
    fn name(&self) -> String {
        let direct = if self.direct { "O_DIRECT" } else { "buffered, O_DIRECT refused" };
        format!("threads, pwritev2 with RWF_DSYNC, {direct} ({})", self.reason)
    }

    fn submit(&mut self, token: u64, offset: u64, len: usize) -> io::Result<()> {
        assert!(len <= LARGEST_BLOCK, "{len} bytes do not fit the buffer");
        for jobs in &self.jobs {
            jobs.send(Job { token, offset, len }).map_err(|_| io::Error::other("the writers are gone"))?;
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Duration, done: &mut Vec<u64>) -> io::Result<()> {
        let first = match self.done.recv_timeout(timeout) {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("the writers are gone")),
        };
        let mut next = Some(first);
        while let Some((token, result)) = next {
            result?;
            done.push(token);
            next = self.done.try_recv().ok();
        }
        Ok(())
    }
}
