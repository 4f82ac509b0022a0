//! What both real drivers share: which disks and files are open, the lanes, and what has come back from them.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::claims::Claims;
use super::clock::Deadline;
use super::directory::{Directory, OpenFile};
use super::lanes::{Finished, Inbox, Lane, Outcome, Work};
use super::{Completion, DiskIndex, FileId, Op, OpId, Output, ReadAt};

/// Waits up to this are not slept: to go to sleep and be woken takes as long.
const BRIEF: Duration = Duration::from_micros(50);
/// Threads for computations.
const COMPUTERS: usize = 2;
/// How many operations one disk works on at a time, of those that its threads do.
const THREADS_PER_DISK: usize = 4;

/// Disks, files and lanes, owned by the log thread.
pub(super) struct Host {
    disks: BTreeMap<DiskIndex, Arc<Directory>>,
    claims: Arc<Claims>,
    files: FxHashMap<FileId, Arc<OpenFile>>,
    next_file: u32,
    readers: Arc<Readers>,
    lanes: BTreeMap<DiskIndex, Lane>,
    /// One thread for each disk that closes files: that of a disk that hangs may take for ever.
    closers: BTreeMap<DiskIndex, Lane>,
    /// How many threads each disk has.
    threads: BTreeMap<DiskIndex, Arc<AtomicUsize>>,
    compute: Lane,
    inbox: Arc<Inbox>,
    in_flight: usize,
}

impl Host {
    pub(super) fn new() -> Host {
        let inbox = Arc::new(Inbox::default());
        Host {
            disks: BTreeMap::new(),
            claims: Arc::default(),
            files: FxHashMap::default(),
            next_file: 0,
            readers: Arc::default(),
            lanes: BTreeMap::new(),
            closers: BTreeMap::new(),
            threads: BTreeMap::new(),
            compute: Lane::new("meridian-job".to_owned(), COMPUTERS, Arc::clone(&inbox), Arc::default()),
            inbox,
            in_flight: 0,
        }
    }

    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    pub(super) fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    /// Operations given to the lanes and not collected yet.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The open file, if it is one of that disk.
    pub(super) fn file(&self, disk: DiskIndex, file: FileId) -> io::Result<&Arc<OpenFile>> {
        self.files.get(&file).filter(|open| open.disk() == disk).ok_or_else(not_open)
    }

    /// Gives the operation to a lane. What is wrong with it at once is collected like any other result.
    pub(super) fn submit(&mut self, id: OpId, op: Op) {
        match self.dispatch(id, op) {
            Ok(()) => self.in_flight += 1,
            Err(error) => self.fail(id, error),
        }
    }

    /// Completes an operation that was never started.
    pub(super) fn fail(&mut self, id: OpId, error: io::Error) {
        self.in_flight += 1;
        self.inbox.finished.push(Finished { id: Some(id), result: Err(error) });
    }

    fn dispatch(&mut self, id: OpId, op: Op) -> io::Result<()> {
        match op {
            Op::Attach { disk, path, create } => {
                let claims = Arc::clone(&self.claims);
                self.lane(disk).push(id, Work::Attach { disk, path, create, claims });
            }
            Op::Detach { disk } => self.detach(id, disk)?,
            Op::List { disk } => self.on_directory(id, disk, |directory| directory.list().map(Output::Names))?,
            Op::Open { disk, name, create } => {
                let directory = self.directory(disk)?;
                let open = move || Ok(Outcome::Opened(Box::new(directory.open(disk, &name, create)?)));
                self.lane(disk).push(id, Work::Directory(Box::new(open)));
            }
            Op::WriteFile { disk, name, bytes } => {
                self.on_directory(id, disk, move |directory| directory.replace(&name, &bytes).map(|()| Output::Done))?
            }
            Op::ReadFile { disk, name, limit } => {
                self.on_directory(id, disk, move |directory| directory.read_file(&name, limit).map(Output::Bytes))?;
            }
            Op::Remove { disk, name } => {
                self.directory(disk)?;
                let files = self.forget(|file| file.disk() == disk && file.name() == name);
                self.on_directory(id, disk, move |directory| {
                    drop(files);
                    directory.remove(&name).map(|()| Output::Done)
                })?;
            }
            Op::Space { disk } => self.on_directory(id, disk, |directory| {
                directory.space().map(|(free, total)| Output::Space { free, total })
            })?,
            Op::Read { disk, file, offset, buffer, len } => {
                let file = Arc::clone(self.file(disk, file)?);
                self.lane(disk).push(id, Work::Read { file, offset, buffer, len });
            }
            Op::Write { disk, file, offset, data } => {
                let file = Arc::clone(self.file(disk, file)?);
                self.lane(disk).push(id, Work::Write { file, offset, data });
            }
            Op::Compute(job) => self.compute.push(id, Work::Compute(job)),
        }
        Ok(())
    }

    fn directory(&self, disk: DiskIndex) -> io::Result<Arc<Directory>> {
        self.disks.get(&disk).map(Arc::clone).ok_or_else(not_open)
    }

    fn on_directory(
        &mut self,
        id: OpId,
        disk: DiskIndex,
        work: impl FnOnce(&Directory) -> io::Result<Output> + Send + 'static,
    ) -> io::Result<()> {
        let directory = self.directory(disk)?;
        self.lane(disk).push(id, Work::Directory(Box::new(move || work(&directory).map(Outcome::Plain))));
        Ok(())
    }

    fn lane(&mut self, disk: DiskIndex) -> &mut Lane {
        let (inbox, threads) = (&self.inbox, self.threads.entry(disk).or_default());
        let name = || format!("meridian-{}", disk.0);
        self.lanes
            .entry(disk)
            .or_insert_with(|| Lane::new(name(), THREADS_PER_DISK, Arc::clone(inbox), Arc::clone(threads)))
    }

    fn closer(&mut self, disk: DiskIndex) -> &mut Lane {
        let (inbox, threads) = (&self.inbox, self.threads.entry(disk).or_default());
        let name = || format!("meridian-close-{}", disk.0);
        self.closers.entry(disk).or_insert_with(|| Lane::new(name(), 1, Arc::clone(inbox), Arc::clone(threads)))
    }

    /// Forgets the disk at once, whatever is still under way there, and closes it on a thread of its own: a disk that
    /// hangs may hold up that thread and its old lane, nobody else.
    fn detach(&mut self, id: OpId, disk: DiskIndex) -> io::Result<()> {
        let directory = self.disks.remove(&disk).ok_or_else(not_open)?;
        self.claims.release(disk);
        self.lanes.remove(&disk);
        self.readers.write().disks.remove(&disk);
        let files = self.forget(|file| file.disk() == disk);
        self.closer(disk).push(id, Work::Close { directory: Some(directory), files });
        // Its thread ends when it has closed them: the next one does not wait for it.
        self.closers.remove(&disk);
        Ok(())
    }

    /// What no thread of the disk has begun fails with `TimedOut`, and holds no memory any more.
    pub(super) fn give_up(&mut self, disk: DiskIndex) {
        let queued = self.lanes.get_mut(&disk).map(Lane::take_queued).unwrap_or_default();
        for (id, work) in queued {
            self.inbox.finished.push(Finished { id, result: Err(io::ErrorKind::TimedOut.into()) });
            match work {
                Work::Read { file, .. } | Work::Write { file, .. } => self.let_go(file),
                work => {
                    self.in_flight += 1;
                    self.closer(disk).push_silent(Work::Drop(Box::new(work)));
                }
            }
        }
    }

    /// Drops a file; if that may close it, on a thread of its disk.
    pub(super) fn let_go(&mut self, file: Arc<OpenFile>) {
        if file.is_forgotten() {
            self.in_flight += 1;
            self.closer(file.disk()).push_silent(Work::Close { directory: None, files: vec![file] });
        }
    }

    /// Takes open files out of the tables; the last who holds one closes it.
    fn forget(&mut self, which: impl Fn(&OpenFile) -> bool) -> Vec<Arc<OpenFile>> {
        let gone: Vec<FileId> = self.files.iter().filter(|(_, file)| which(file)).map(|(id, _)| *id).collect();
        let mut shared = self.readers.write();
        for file in &gone {
            shared.files.remove(file);
        }
        let gone: Vec<Arc<OpenFile>> = gone.iter().filter_map(|file| self.files.remove(file)).collect();
        gone.iter().for_each(|file| file.forget());
        gone
    }

    /// If the wait is brief, spends it awake, until the bell says something or it is over, and returns true. Whoever else wants the
    /// processor has it meanwhile.
    pub(super) fn linger(&self, wait: Duration) -> bool {
        if wait > BRIEF {
            return false;
        }
        let (bell, end) = (&self.inbox.bell, Deadline::after(wait));
        while bell.is_quiet() && end.is_some_and(|end| !end.left().is_zero()) {
            std::thread::yield_now();
        }
        bell.answer();
        true
    }

    /// Enters what has come back into the tables and appends it to `done`. Returns whether anything
    /// has come back, also what nobody asked for: it may be the last that a driver being dropped
    /// waits for.
    pub(super) fn collect(&mut self, done: &mut Vec<Completion>) -> bool {
        let mut any = false;
        while let Some(Finished { id, result }) = self.inbox.finished.pop() {
            any = true;
            self.in_flight -= 1;
            let Some(id) = id else { continue };
            let result = result.and_then(|outcome| self.enter(outcome));
            done.push(Completion { id, result });
        }
        any
    }

    fn enter(&mut self, outcome: Outcome) -> io::Result<Output> {
        match outcome {
            Outcome::Plain(output) => Ok(output),
            Outcome::Attached(disk, directory, traits) => {
                if self.disks.contains_key(&disk) {
                    self.in_flight += 1;
                    self.closer(disk).push_silent(Work::Close { directory: Some(directory), files: Vec::new() });
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the disk's number is in use"));
                }
                self.readers.write().disks.insert(disk, Arc::clone(&directory));
                self.disks.insert(disk, directory);
                Ok(Output::Attached(traits))
            }
            Outcome::Opened(file) => {
                // It may have been detached meanwhile.
                let current = self.disks.get(&file.disk());
                if !current.is_some_and(|directory| Arc::ptr_eq(directory, file.directory())) {
                    file.forget();
                    self.let_go(Arc::from(file));
                    return Err(not_open());
                }
                self.next_file =
                    self.next_file.checked_add(1).ok_or_else(|| io::Error::other("out of file numbers"))?;
                let (id, file) = (FileId(self.next_file), Arc::from(file));
                self.readers.write().files.insert(id, Arc::clone(&file));
                self.files.insert(id, file);
                Ok(Output::File(id))
            }
        }
    }

    /// Lets go of every disk, each on a thread of its own.
    pub(super) fn close(&mut self) {
        let disks: Vec<DiskIndex> = self.disks.keys().copied().collect();
        for disk in disks {
            self.submit(OpId(u64::MAX), Op::Detach { disk });
        }
        self.lanes.clear();
    }
}

/// The attached disks and open files, for other threads.
#[derive(Default)]
pub(super) struct Readers(RwLock<Attached>);

#[derive(Default)]
struct Attached {
    disks: BTreeMap<DiskIndex, Arc<Directory>>,
    files: FxHashMap<FileId, Arc<OpenFile>>,
}

impl Readers {
    fn write(&self) -> RwLockWriteGuard<'_, Attached> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadAt for Readers {
    fn read_at(&self, disk: DiskIndex, file: FileId, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let open = self.0.read().unwrap_or_else(PoisonError::into_inner).files.get(&file).cloned();
        open.filter(|open| open.disk() == disk).ok_or_else(not_open)?.read_cached(offset, buf)
    }

    fn read_named_at(&self, disk: DiskIndex, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let directory = self.0.read().unwrap_or_else(PoisonError::into_inner).disks.get(&disk).cloned();
        directory.ok_or_else(not_open)?.read_named_at(name, offset, buf)
    }
}

fn not_open() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the disk or file is not open")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const DISK: DiskIndex = DiskIndex(0);

    fn run(host: &mut Host, op: Op) -> Output {
        host.submit(OpId(7), op);
        let (mut done, end) = (Vec::new(), Deadline::after(Duration::from_secs(20)).expect("a time"));
        while done.is_empty() {
            assert!(!end.left().is_zero(), "nothing came back");
            std::thread::yield_now();
            host.collect(&mut done);
        }
        done.remove(0).result.expect("nothing is wrong")
    }

    /// Keeps the thread that closes the disk's files busy until the sender is dropped, as a disk
    /// that hangs does.
    fn hang(host: &mut Host) -> mpsc::Sender<()> {
        let (release, wait) = mpsc::channel::<()>();
        host.in_flight += 1;
        host.closer(DISK).push_silent(Work::Compute(Box::new(move || Box::new(wait.recv().is_err()))));
        release
    }

    #[test]
    fn h3_file_of_a_disk_that_hangs_is_closed_on_another_thread() {
        let (mut host, root) = (Host::new(), tempfile::tempdir().expect("a directory"));
        run(&mut host, Op::Attach { disk: DISK, path: root.path().to_owned(), create: true });
        run(&mut host, Op::Open { disk: DISK, name: "slot".to_owned(), create: Some(4096) });
        let _release = hang(&mut host);
        let file = host.forget(|_| true).remove(0);
        let open = Arc::downgrade(&file);
        host.let_go(file);
        assert!(open.upgrade().is_some(), "the thread that hangs would close it");
    }

    #[test]
    fn h3_disk_whose_last_life_hangs_as_it_closes_is_let_go_again() {
        let mut host = Host::new();
        let roots = [0, 1].map(|_| tempfile::tempdir().expect("a directory"));
        run(&mut host, Op::Attach { disk: DISK, path: roots[0].path().to_owned(), create: true });
        let _release = hang(&mut host);
        host.submit(OpId(1), Op::Detach { disk: DISK });
        run(&mut host, Op::Attach { disk: DISK, path: roots[1].path().to_owned(), create: true });
        run(&mut host, Op::Detach { disk: DISK });
    }
}
