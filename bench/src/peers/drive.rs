//! How the other libraries are driven: three copies by a quorum of writer threads, one copy by many blocking threads.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::stores::{Peer, Store};
use crate::latency;
use crate::limit::Slice;
use crate::machine::CpuSample;

/// How far the slowest copy may fall behind the acknowledged ones, in batches.
const LAG: usize = 16;

/// Three copies of a peer; a batch counts when `ack` of them have it, in order.
pub(super) struct Replicated {
    stores: Vec<Arc<dyn Store>>,
    jobs: Vec<SyncSender<u64>>,
    done: Receiver<Result<u64, String>>,
    writers: Vec<JoinHandle<()>>,
    next: u64,
}

impl Replicated {
    /// Opens a copy in each directory, each with a thread that appends batches of `batch` records.
    ///
    /// # Errors
    /// What the library says.
    pub(super) fn open(
        peer: &Peer,
        directories: &[PathBuf],
        batch: u64,
        payload: &Bytes,
    ) -> Result<Replicated, String> {
        let (report, done) = channel();
        let mut all = Replicated { stores: Vec::new(), jobs: Vec::new(), done, writers: Vec::new(), next: 0 };
        for directory in directories {
            let store: Arc<dyn Store> = Arc::from((peer.open)(directory, 1)?);
            let (sender, jobs) = sync_channel::<u64>(LAG + 2);
            let (writer, report, payload) = (Arc::clone(&store), report.clone(), payload.clone());
            all.writers.push(std::thread::spawn(move || serve(&*writer, &jobs, &report, batch, &payload)));
            all.jobs.push(sender);
            all.stores.push(store);
        }
        Ok(all)
    }

    /// Appends batch after batch, `depth` at a time, for `duration`.
    ///
    /// # Errors
    /// The first failed append.
    pub(super) fn run(&mut self, depth: usize, batch: u64, ack: usize, duration: Duration) -> Result<Slice, String> {
        let cpu = CpuSample::now();
        let start = Instant::now();
        let mut slice = Slice::empty();
        // Issue time and copies done of each batch that misses one; the first `acknowledged` of them count already.
        let mut batches: VecDeque<(Instant, usize)> = VecDeque::new();
        let mut acknowledged = 0;
        let mut now = start;
        loop {
            while now - start < duration && batches.len() - acknowledged < depth && batches.len() < depth + LAG {
                for jobs in &self.jobs {
                    jobs.send(self.next).map_err(|_| "a writer is gone".to_string())?;
                }
                self.next += 1;
                batches.push_back((now, 0));
            }
            if batches.is_empty() {
                break;
            }
            let number = self.done.recv().map_err(|_| "the writers are gone".to_string())??;
            let first = self.next - batches.len() as u64;
            batches[(number - first) as usize].1 += 1;
            now = Instant::now();
            while let Some((issued, copies)) = batches.get(acknowledged)
                && *copies >= ack
            {
                latency::record(&mut slice.latency, now - *issued, batch);
                slice.records += batch;
                slice.elapsed = now - start;
                acknowledged += 1;
            }
            while acknowledged > 0 && batches[0].1 == self.stores.len() {
                batches.pop_front();
                acknowledged -= 1;
            }
        }
        slice.cpu = cpu.until(&CpuSample::now());
        self.stores.iter().try_for_each(|store| store.tidy())?;
        Ok(slice)
    }
}

impl Drop for Replicated {
    fn drop(&mut self) {
        self.jobs.clear();
        for writer in self.writers.drain(..) {
            // A writer that panicked has said so on standard error, and its run has failed for want of an answer.
            let _ = writer.join();
        }
    }
}

fn serve(store: &dyn Store, jobs: &Receiver<u64>, report: &Sender<Result<u64, String>>, batch: u64, payload: &Bytes) {
    while let Ok(number) = jobs.recv() {
        let answer = store.append(0, batch, payload).map(|()| number);
        if report.send(answer).is_err() {
            return;
        }
    }
}

/// One copy of a peer, written by blocking threads, a record a call, a lane a thread.
pub(super) struct Single {
    store: Box<dyn Store>,
}

impl Single {
    /// Opens the copy.
    ///
    /// # Errors
    /// What the library says.
    pub(super) fn open(peer: &Peer, directory: &Path, threads: usize) -> Result<Single, String> {
        Ok(Single { store: (peer.open)(directory, threads)? })
    }

    /// Lets `threads` threads append for `duration`.
    ///
    /// # Errors
    /// The first failed append.
    pub(super) fn run(&self, threads: usize, payload: &Bytes, duration: Duration) -> Result<Slice, String> {
        let cpu = CpuSample::now();
        let (barrier, stop) = (Barrier::new(threads + 1), AtomicBool::new(false));
        let mut slice = Slice::empty();
        let client = |lane: usize| -> Result<Vec<Duration>, String> {
            barrier.wait();
            let mut taken = Vec::with_capacity(4096);
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                self.store.append(lane as u64, 1, payload)?;
                taken.push(start.elapsed());
            }
            Ok(taken)
        };
        let client = &client;
        std::thread::scope(|scope| -> Result<(), String> {
            let clients: Vec<_> = (0..threads).map(|lane| scope.spawn(move || client(lane))).collect();
            barrier.wait();
            let start = Instant::now();
            std::thread::sleep(duration);
            stop.store(true, Ordering::Relaxed);
            let ends: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
            slice.elapsed = start.elapsed();
            for end in ends {
                let taken = end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                slice.records += taken.len() as u64;
                taken.into_iter().for_each(|each| latency::record(&mut slice.latency, each, 1));
            }
            Ok(())
        })?;
        slice.cpu = cpu.until(&CpuSample::now());
        self.store.tidy()?;
        Ok(slice)
    }
}
