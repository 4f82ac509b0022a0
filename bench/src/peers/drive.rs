//! How the other libraries are driven: three copies by a quorum of writer threads, one copy by many blocking threads.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::stores::{Batch, Peer, Store};
use crate::compare::Payloads;
use crate::latency;
use crate::limit::Slice;
use crate::machine::CpuSample;

/// The most batches that are on their way and do not count yet.
pub(super) const DEEPEST: usize = 2;
/// How far the slowest copy may fall behind the acknowledged ones, in batches.
const LAG: usize = 16;

/// Three copies of a peer; a batch counts when `ack` of them have it, in order.
pub(super) struct Replicated {
    stores: Vec<Arc<dyn Store>>,
    jobs: Vec<SyncSender<(u64, Arc<Batch>)>>,
    done: Receiver<Result<u64, String>>,
    writers: Vec<JoinHandle<()>>,
    next: u64,
    /// Batches that nobody writes.
    unused: Vec<Arc<Batch>>,
    /// The number of the next record.
    record: u64,
}

impl Replicated {
    /// Opens a copy in each directory, each with a thread that appends batches of `batch` records, which are made here.
    ///
    /// # Errors
    /// What the library says.
    pub(super) fn open(
        peer: &Peer,
        directories: &[PathBuf],
        batch: u64,
        payloads: &Payloads,
    ) -> Result<Replicated, String> {
        let (report, done) = channel();
        // As many as may miss a copy.
        let unused = (0..DEEPEST + LAG).map(|_| Arc::new(Batch::new(peer, batch, payloads))).collect();
        let (stores, jobs, writers) = (Vec::new(), Vec::new(), Vec::new());
        let mut all = Replicated { stores, jobs, done, writers, next: 0, unused, record: 0 };
        for directory in directories {
            let store: Arc<dyn Store> = Arc::from((peer.open)(directory, 1)?);
            let (sender, jobs) = sync_channel(LAG + DEEPEST);
            let (writer, report) = (Arc::clone(&store), report.clone());
            all.writers.push(std::thread::spawn(move || serve(&*writer, &jobs, &report)));
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
        // Issue time, copies done and records of each batch that misses one; the first `acknowledged` of them count already.
        let mut batches: VecDeque<(Instant, usize, Arc<Batch>)> = VecDeque::new();
        let mut acknowledged = 0;
        let mut now = start;
        loop {
            while now - start < duration && batches.len() - acknowledged < depth && batches.len() < depth + LAG {
                let records = self.numbered()?;
                for jobs in &self.jobs {
                    jobs.send((self.next, Arc::clone(&records))).map_err(|_| "a writer is gone".to_string())?;
                }
                self.next += 1;
                batches.push_back((now, 0, records));
            }
            if batches.is_empty() {
                break;
            }
            let number = self.done.recv().map_err(|_| "the writers are gone".to_string())??;
            let first = self.next - batches.len() as u64;
            batches[(number - first) as usize].1 += 1;
            now = Instant::now();
            while let Some((issued, copies, _)) = batches.get(acknowledged)
                && *copies >= ack
            {
                latency::record(&mut slice.latency, now - *issued, batch);
                slice.records += batch;
                slice.elapsed = now - start;
                acknowledged += 1;
            }
            while acknowledged > 0 && batches[0].1 == self.stores.len() {
                self.unused.extend(batches.pop_front().map(|(_, _, records)| records));
                acknowledged -= 1;
            }
        }
        slice.cpu = cpu.until(&CpuSample::now());
        self.stores.iter().try_for_each(|store| store.tidy())?;
        Ok(slice)
    }

    /// A batch under the next numbers.
    fn numbered(&mut self) -> Result<Arc<Batch>, String> {
        let mut records = self.unused.pop().ok_or("more batches on their way than were made")?;
        Arc::get_mut(&mut records).ok_or("a batch that counts as written is still being written")?.number(self.record);
        self.record = records.next();
        Ok(records)
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

fn serve(store: &dyn Store, jobs: &Receiver<(u64, Arc<Batch>)>, report: &Sender<Result<u64, String>>) {
    while let Ok((number, batch)) = jobs.recv() {
        let answer = store.append(0, &batch).map(|()| number);
        // Whoever has the last answer uses the batch again.
        drop(batch);
        if report.send(answer).is_err() {
            return;
        }
    }
}

/// One copy of a peer, written by blocking threads, a record a call, a lane a thread.
pub(super) struct Single {
    store: Box<dyn Store>,
    /// Each lane's record, as a batch of one.
    records: Vec<Mutex<Batch>>,
}

impl Single {
    /// Opens the copy.
    ///
    /// # Errors
    /// What the library says.
    pub(super) fn open(peer: &Peer, directory: &Path, threads: usize, payloads: &Payloads) -> Result<Single, String> {
        let records = (0..threads).map(|_| Mutex::new(Batch::new(peer, 1, payloads))).collect();
        Ok(Single { store: (peer.open)(directory, threads)?, records })
    }

    /// Lets a thread for each lane append for `duration`.
    ///
    /// # Errors
    /// The first failed append.
    pub(super) fn run(&self, duration: Duration) -> Result<Slice, String> {
        let threads = self.records.len();
        let cpu = CpuSample::now();
        let (barrier, stop) = (Barrier::new(threads + 1), AtomicBool::new(false));
        let mut slice = Slice::empty();
        let client = |lane: usize| -> Result<Vec<Duration>, String> {
            barrier.wait();
            let mut taken = Vec::with_capacity(4096);
            // Held by nobody else for as long as the lane is written.
            let mut record = self.records[lane].lock().unwrap_or_else(PoisonError::into_inner);
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                self.store.append(lane as u64, &record)?;
                taken.push(start.elapsed());
                let next = record.next();
                record.number(next);
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
