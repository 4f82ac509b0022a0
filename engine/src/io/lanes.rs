//! Threads for what may block: a few for each disk, so that a stuck disk holds up no other, and a few for computations.
#![allow(clippy::disallowed_methods, reason = "this is where the engine's threads are started")]

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::channel::{Receiver, Sender, unbounded};
use crossbeam::queue::SegQueue;

use super::bell::Bell;
use super::claims::Claims;
use super::directory::{Directory, OpenFile, make_directory};
use super::{Buffer, DiskIndex, DiskTraits, Job, OpId, Output, Slice};

/// How many threads one disk has at most, including those that are stuck on it though it was let go.
pub(super) const MAX_THREADS: usize = 32;

/// What a thread of a lane does: an operation with what it works on.
pub(super) enum Work {
    Attach {
        disk: DiskIndex,
        path: PathBuf,
        create: bool,
        claims: Arc<Claims>,
    },
    /// Anything that names a file.
    Directory(Box<dyn FnOnce() -> io::Result<Outcome> + Send>),
    Read {
        file: Arc<OpenFile>,
        offset: u64,
        buffer: Buffer,
        len: usize,
    },
    Write {
        file: Arc<OpenFile>,
        offset: u64,
        data: Slice,
    },
    /// Lets go of a disk, or of files: the last holder of each closes it.
    Close {
        directory: Option<Arc<Directory>>,
        files: Vec<Arc<OpenFile>>,
    },
    /// Drops work that was not done.
    Drop(Box<Work>),
    Compute(Job),
}

/// What came of it; the log thread enters it into its tables.
pub(super) enum Outcome {
    Plain(Output),
    Attached(DiskIndex, Arc<Directory>, DiskTraits),
    Opened(Box<OpenFile>),
}

impl Work {
    /// Does it. Nothing of the disk is held any more when it returns.
    fn run(self) -> io::Result<Outcome> {
        let output = match self {
            Work::Attach { disk, path, create, claims } => {
                if create {
                    make_directory(&path)?;
                }
                claims.claim(disk, &path)?;
                let directory = Directory::attach(&path).inspect_err(|_| claims.release(disk))?;
                let traits = directory.traits().clone();
                return Ok(Outcome::Attached(disk, Arc::new(directory), traits));
            }
            Work::Directory(work) => return work(),
            Work::Read { file, offset, buffer, len } => Output::Read(file.read(offset, len, buffer)?),
            Work::Write { file, offset, data } => {
                file.write(offset, &data)?;
                Output::Done
            }
            Work::Close { directory, files } => {
                drop(files);
                drop(directory);
                Output::Done
            }
            Work::Drop(work) => {
                drop(work);
                Output::Done
            }
            Work::Compute(job) => {
                let value = catch_unwind(AssertUnwindSafe(job));
                Output::Computed(value.map_err(|_| io::Error::other("the computation panicked"))?)
            }
        };
        Ok(Outcome::Plain(output))
    }
}

/// Work that has been done.
pub(super) struct Finished {
    /// `None` for what nobody asked for.
    pub(super) id: Option<OpId>,
    pub(super) result: io::Result<Outcome>,
}

/// Where finished work arrives.
#[derive(Default)]
pub(super) struct Inbox {
    pub(super) finished: SegQueue<Finished>,
    pub(super) bell: Arc<Bell>,
}

struct Task {
    id: Option<OpId>,
    work: Work,
}

/// A queue and its threads, which are started when they are needed and end when the lane is dropped and the queue empty.
pub(super) struct Lane {
    name: String,
    queue: Sender<Task>,
    tasks: Receiver<Task>,
    inbox: Arc<Inbox>,
    /// Tasks not finished yet.
    pending: Arc<AtomicUsize>,
    threads: usize,
    most: usize,
    /// The threads of the disk, those of its earlier lanes included.
    all: Arc<AtomicUsize>,
}

impl Lane {
    pub(super) fn new(name: String, most: usize, inbox: Arc<Inbox>, all: Arc<AtomicUsize>) -> Lane {
        // Without a bound of its own: as long as the list of operations in flight, which the engine bounds.
        let (queue, tasks) = unbounded();
        Lane { name, queue, tasks, inbox, pending: Arc::default(), threads: 0, most, all }
    }

    /// Queues work; its result arrives in the inbox.
    pub(super) fn push(&mut self, id: OpId, work: Work) {
        self.enqueue(Some(id), work);
    }

    /// Queues work that nobody asked for.
    pub(super) fn push_silent(&mut self, work: Work) {
        self.enqueue(None, work);
    }

    fn enqueue(&mut self, id: Option<OpId>, work: Work) {
        let pending = self.pending.fetch_add(1, Ordering::Relaxed) + 1;
        if pending > self.threads
            && self.threads < self.most
            && let Err(error) = self.start()
            && self.threads == 0
        {
            self.pending.fetch_sub(1, Ordering::Relaxed);
            if matches!(work, Work::Close { .. } | Work::Drop(_)) {
                // To close a file on this thread would be to wait for its disk: it stays open.
                std::mem::forget(work);
            }
            self.inbox.finished.push(Finished { id, result: Err(error) });
            return;
        }
        let sent = self.queue.send(Task { id, work });
        assert!(sent.is_ok(), "the lane holds a receiver itself");
    }

    /// Takes back what no thread has begun.
    pub(super) fn take_queued(&mut self) -> Vec<(Option<OpId>, Work)> {
        let queued: Vec<_> = self.tasks.try_iter().map(|Task { id, work }| (id, work)).collect();
        self.pending.fetch_sub(queued.len(), Ordering::Relaxed);
        queued
    }

    fn start(&mut self) -> io::Result<()> {
        if self.all.fetch_add(1, Ordering::Relaxed) >= MAX_THREADS {
            self.all.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "too many threads are stuck on disks"));
        }
        let counted = Counted(Arc::clone(&self.all));
        let (tasks, inbox, pending) = (self.tasks.clone(), Arc::clone(&self.inbox), Arc::clone(&self.pending));
        std::thread::Builder::new().name(format!("{}-{}", self.name, self.threads)).spawn(move || {
            let _counted = counted;
            for Task { id, work } in tasks {
                let result = work.run();
                pending.fetch_sub(1, Ordering::Relaxed);
                inbox.finished.push(Finished { id, result });
                inbox.bell.news();
            }
        })?;
        self.threads += 1;
        Ok(())
    }
}

/// A thread that counts until it ends.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn lane(inbox: &Arc<Inbox>, all: &Arc<AtomicUsize>, most: usize) -> Lane {
        Lane::new("test".to_owned(), most, Arc::clone(inbox), Arc::clone(all))
    }

    /// Work that ends when the sender is dropped.
    fn hang() -> (mpsc::Sender<()>, Work) {
        let (release, wait) = mpsc::channel::<()>();
        (release, Work::Compute(Box::new(move || Box::new(wait.recv().is_err()))))
    }

    fn finished(inbox: &Inbox) -> Finished {
        for _ in 0..10_000 {
            if let Some(finished) = inbox.finished.pop() {
                return finished;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("nothing came back");
    }

    #[test]
    fn a_lane_has_as_many_threads_as_it_has_work_and_no_more_than_it_may() {
        let (inbox, all) = (Arc::new(Inbox::default()), Arc::new(AtomicUsize::new(0)));
        let mut lane = lane(&inbox, &all, 2);
        let mut held = Vec::new();
        for (id, threads) in [(1, 1), (2, 2), (3, 2)] {
            let (release, work) = hang();
            lane.push(OpId(id), work);
            held.push(release);
            assert_eq!(all.load(Ordering::Relaxed), threads);
        }
        // The third waits for a thread, not for all before it.
        drop(held.remove(1));
        assert_eq!(finished(&inbox).id, Some(OpId(2)));
        held.clear();
        let both = [finished(&inbox).id, finished(&inbox).id];
        assert!(both.contains(&Some(OpId(1))) && both.contains(&Some(OpId(3))));
        drop(lane);
        for _ in 0..10_000 {
            if all.load(Ordering::Relaxed) == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("its threads live on");
    }

    #[test]
    fn threads_stuck_in_lanes_that_were_let_go_count_until_there_are_too_many() {
        let (inbox, all) = (Arc::new(Inbox::default()), Arc::new(AtomicUsize::new(0)));
        let mut held = Vec::new();
        for id in 0..MAX_THREADS as u64 {
            let (release, work) = hang();
            lane(&inbox, &all, 1).push(OpId(id), work);
            held.push(release);
        }
        lane(&inbox, &all, 1).push(OpId(999), Work::Compute(Box::new(|| Box::new(()))));
        let refused = finished(&inbox);
        assert_eq!(refused.id, Some(OpId(999)));
        assert_eq!(refused.result.err().expect("no thread").kind(), io::ErrorKind::ResourceBusy);
        drop(held.pop());
        assert_eq!(finished(&inbox).id, Some(OpId(MAX_THREADS as u64 - 1)));
    }
}
