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
use super::directory::{Directory, OpenFile};
use super::{Buffer, DiskIndex, DiskTraits, Job, Op, OpId, Output, Slice};

/// The most threads that one driver has, those included that are stuck on disks that were let go.
const MOST_THREADS: usize = 128;

/// What a thread of a lane does: an operation with what it works on.
pub(super) enum Work {
    Attach {
        disk: DiskIndex,
        path: PathBuf,
        create: bool,
    },
    Directory {
        directory: Arc<Directory>,
        op: Op,
    },
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
    Truncate {
        file: Arc<OpenFile>,
        len: u64,
    },
    /// Lets go of a disk: the last holder of each closes it.
    Close {
        directory: Arc<Directory>,
        files: Vec<Arc<OpenFile>>,
    },
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
            Work::Attach { disk, path, create } => {
                let directory = Directory::attach(&path, create)?;
                let traits = directory.traits().clone();
                return Ok(Outcome::Attached(disk, Arc::new(directory), traits));
            }
            Work::Directory { directory, op } => return on_directory(&directory, op),
            Work::Read { file, offset, buffer, len } => Output::Read(file.read(offset, len, buffer)?),
            Work::Write { file, offset, data } => {
                file.write(offset, &data)?;
                Output::Done
            }
            Work::Truncate { file, len } => {
                file.truncate(len)?;
                Output::Done
            }
            Work::Close { directory, files } => {
                drop(files);
                drop(directory);
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

fn on_directory(directory: &Arc<Directory>, op: Op) -> io::Result<Outcome> {
    let output = match op {
        Op::List { .. } => Output::Names(directory.list()?),
        Op::Open { disk, name, create } => {
            return Ok(Outcome::Opened(Box::new(directory.open(disk, &name, create)?)));
        }
        Op::WriteFile { name, bytes, .. } => {
            directory.replace(&name, &bytes)?;
            Output::Done
        }
        Op::ReadFile { name, limit, .. } => Output::Bytes(directory.read_file(&name, limit)?),
        Op::Remove { name, .. } => {
            directory.remove(&name)?;
            Output::Done
        }
        Op::Space { .. } => {
            let (free, total) = directory.space()?;
            Output::Space { free, total }
        }
        Op::Attach { .. }
        | Op::Detach { .. }
        | Op::Read { .. }
        | Op::Write { .. }
        | Op::Truncate { .. }
        | Op::Compute(_) => unreachable!("not an operation on a directory"),
    };
    Ok(Outcome::Plain(output))
}

/// Work that has been done.
pub(super) struct Finished {
    pub(super) id: OpId,
    pub(super) result: io::Result<Outcome>,
}

/// Where finished work arrives.
#[derive(Default)]
pub(super) struct Inbox {
    pub(super) finished: SegQueue<Finished>,
    pub(super) bell: Arc<Bell>,
}

struct Task {
    id: OpId,
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
    /// The threads of the whole driver.
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
        let pending = self.pending.fetch_add(1, Ordering::Relaxed) + 1;
        if pending > self.threads
            && self.threads < self.most
            && let Err(error) = self.start()
            && self.threads == 0
        {
            self.pending.fetch_sub(1, Ordering::Relaxed);
            drop(work);
            self.inbox.finished.push(Finished { id, result: Err(error) });
            return;
        }
        let sent = self.queue.send(Task { id, work });
        assert!(sent.is_ok(), "the lane holds a receiver itself");
    }

    fn start(&mut self) -> io::Result<()> {
        if self.all.fetch_add(1, Ordering::Relaxed) >= MOST_THREADS {
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
