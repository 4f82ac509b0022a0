//! The limit's io_uring writer: one ring, one fixed buffer, one durable write per directory and block.
//!
//! The only unsafe code of the harness.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use memmap2::MmapMut;

use super::{LARGEST_BLOCK, Writer, filled_buffer, open_file};

/// Why there is no ring writer.
pub(super) enum Refused {
    /// The system refuses rings (old kernel, seccomp, sysctl): threads can do the work.
    Ring(io::Error),
    /// The files cannot be had: nothing can do the work.
    File(io::Error),
}

/// Writes through one io_uring.
pub(super) struct Ring {
    ring: IoUring,
    /// Registered with the ring by their place here; closed after it.
    files: Vec<File>,
    /// What every write sends. Never touched again once the ring exists.
    buffer: Arc<MmapMut>,
    /// Whether the buffer could be registered (ordinary users have a small locked-memory limit).
    fixed: bool,
    direct: bool,
    in_flight: usize,
    expected: Vec<u32>,
}

impl Ring {
    /// Opens the files and a ring that holds `blocks` blocks.
    pub(super) fn open(paths: &[PathBuf], blocks: usize) -> Result<Ring, Refused> {
        let entries = u32::try_from((blocks * paths.len()).next_power_of_two()).unwrap_or(4096).min(4096);
        let ring = IoUring::builder().setup_cqsize(entries * 2).build(entries).map_err(Refused::Ring)?;
        if !ring.params().is_feature_ext_arg() {
            return Err(Refused::Ring(io::Error::new(io::ErrorKind::Unsupported, "no timed wait (Linux 5.11)")));
        }
        let mut files = Vec::new();
        let mut direct = true;
        for path in paths {
            let (file, is_direct) = open_file(path).map_err(Refused::File)?;
            files.push(file);
            direct &= is_direct;
        }
        let descriptors: Vec<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
        ring.submitter().register_files(&descriptors).map_err(Refused::Ring)?;
        let buffer = Arc::new(filled_buffer().map_err(Refused::File)?);
        let vector = libc::iovec { iov_base: buffer.as_ptr().cast_mut().cast(), iov_len: buffer.len() };
        // SAFETY: the buffer is owned by the writer, is neither moved (a mapping stays where it is) nor changed, and is
        // unmapped only after `drop` has waited for every write and the ring has been closed.
        let fixed = unsafe { ring.submitter().register_buffers(&[vector]) }.is_ok();
        Ok(Ring { ring, files, buffer, fixed, direct, in_flight: 0, expected: Vec::new() })
    }

    fn entry(&self, file: usize, offset: u64, len: u32) -> squeue::Entry {
        let (target, source) = (Fixed(file as u32), self.buffer.as_ptr());
        if self.fixed {
            opcode::WriteFixed::new(target, source, len, 0).offset(offset).rw_flags(libc::RWF_DSYNC).build()
        } else {
            opcode::Write::new(target, source, len).offset(offset).rw_flags(libc::RWF_DSYNC).build()
        }
    }

    /// Takes what the completion queue holds.
    fn reap(&mut self, done: &mut Vec<u64>) -> io::Result<()> {
        let mut failure = None;
        for completion in self.ring.completion() {
            self.in_flight -= 1;
            let token = completion.user_data();
            let expected = self.expected[token as usize % self.expected.len()];
            match u32::try_from(completion.result()) {
                Ok(written) if written == expected => done.push(token),
                Ok(written) => failure = Some(io::Error::other(format!("{written} of {expected} bytes written"))),
                Err(_) => failure = Some(io::Error::from_raw_os_error(-completion.result())),
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

impl Writer for Ring {
    fn name(&self) -> String {
        let buffer = if self.fixed { "fixed buffer" } else { "plain buffer" };
        let direct = if self.direct { "O_DIRECT" } else { "buffered, O_DIRECT refused" };
        format!("io_uring, RWF_DSYNC, {direct}, {buffer}")
    }

    fn submit(&mut self, token: u64, offset: u64, len: usize) -> io::Result<()> {
        assert!(len <= LARGEST_BLOCK, "{len} bytes do not fit the buffer");
        let len = len as u32;
        if self.expected.is_empty() {
            self.expected.resize(1 << 12, 0);
        }
        let slot = token as usize % self.expected.len();
        self.expected[slot] = len;
        for file in 0..self.files.len() {
            let entry = self.entry(file, offset, len).user_data(token);
            // SAFETY: the buffer outlives the write (see `drop`), holds at least `len` bytes (asserted above) and is only
            // ever read; the descriptor is a registered file that the ring itself keeps open.
            unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
            self.in_flight += 1;
        }
        self.ring.submit().map(|_| ())
    }

    fn wait(&mut self, timeout: Duration, done: &mut Vec<u64>) -> io::Result<()> {
        self.reap(done)?;
        if !done.is_empty() || timeout.is_zero() {
            return Ok(());
        }
        let limit = Timespec::from(timeout);
        match self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit)) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
        self.reap(done)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_flight > 0 {
            if self.ring.submit_and_wait(1).is_err() && self.ring.completion().is_empty() {
                // The ring is broken and the kernel may still read the buffer: leak it rather than unmap it under a write.
                std::mem::forget(Arc::clone(&self.buffer));
                return;
            }
            // A failed write is over too; its error was for the run that ended.
            let _ = self.reap(&mut done);
        }
    }
}
