//! A disk that can be pulled out: the real driver, but for disks that are unplugged every request fails.
//!
//! Deleting a directory would not do: open files outlive it. Root could detach a device; the main job needs no root.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meridian::io::{
    Completion, DiskIndex, Doorbell, Driver, DriverChoice, Environment, FileId, Op, OpId, ReadAt, driver,
};

/// The plugs of all disks; clones share them.
#[derive(Clone, Default)]
pub(crate) struct Plugs(Arc<AtomicU64>);

impl Plugs {
    /// Pulls a disk out: from now on whatever is asked of it fails.
    pub(crate) fn pull(&self, disk: usize) {
        self.0.fetch_or(1 << disk, Ordering::SeqCst);
    }

    /// What makes the log thread's driver: the best one of this system, behind these plugs.
    pub(crate) fn driver(&self) -> impl FnOnce() -> io::Result<Box<dyn Driver>> + Send + 'static {
        let plugs = self.clone();
        move || {
            let inner = driver(DriverChoice::Auto)?;
            Ok(Box::new(Unplug { inner, plugs, refused: Vec::new() }) as Box<dyn Driver>)
        }
    }

    /// Puts every disk back, with what was on it.
    pub(crate) fn put_back_all(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    fn check(&self, disk: DiskIndex) -> io::Result<()> {
        if self.0.load(Ordering::SeqCst) >> disk.0 & 1 == 0 {
            return Ok(());
        }
        Err(io::Error::other("the disk is unplugged"))
    }
}

/// A driver whose disks can be pulled out.
pub(crate) struct Unplug {
    inner: Box<dyn Driver>,
    plugs: Plugs,
    refused: Vec<Completion>,
}

impl Driver for Unplug {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn submit(&mut self, id: OpId, op: Op) {
        let detach = matches!(op, Op::Detach { .. });
        match op.disk().map(|disk| self.plugs.check(disk)) {
            Some(Err(error)) if !detach => self.refused.push(Completion { id, result: Err(error) }),
            _ => self.inner.submit(id, op),
        }
    }

    fn poll(&mut self, wait: Option<Duration>, done: &mut Vec<Completion>) {
        let wait = if self.refused.is_empty() { wait } else { None };
        done.append(&mut self.refused);
        self.inner.poll(wait, done);
    }

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        self.inner.doorbell()
    }

    fn reader(&self) -> Arc<dyn ReadAt> {
        Arc::new(PluggedReader { inner: self.inner.reader(), plugs: self.plugs.clone() })
    }

    fn environment(&self) -> Arc<dyn Environment> {
        self.inner.environment()
    }
}

/// Reads through the plugs.
struct PluggedReader {
    inner: Arc<dyn ReadAt>,
    plugs: Plugs,
}

impl ReadAt for PluggedReader {
    fn read_at(&self, disk: DiskIndex, file: FileId, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.plugs.check(disk)?;
        self.inner.read_at(disk, file, offset, buf)
    }

    fn read_named_at(&self, disk: DiskIndex, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.plugs.check(disk)?;
        self.inner.read_named_at(disk, name, offset, buf)
    }
}
