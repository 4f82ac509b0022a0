//! Which process this is: a forked child has the memory of its parent's regions, and none of their threads.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::MmapMut;

/// The process that something was made in. Forking is told from the page that the kernel gives to a child empty, which costs a
/// load; where there is no such page, from the process id, which costs a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process(u32);

impl Process {
    /// The calling process.
    pub(crate) fn current() -> Process {
        /// The number that the next process gets. A child goes on counting where its parent was.
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let Some(page) = Page::of_this_process() else { return Process(process_id()) };
        let fresh = || NEXT.fetch_add(1, Ordering::Relaxed);
        match page.number().load(Ordering::Relaxed) {
            // Two threads may be here at once: the first number counts.
            0 => match page.number().compare_exchange(0, fresh(), Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => Process(page.number().load(Ordering::Relaxed)),
                Err(number) => Process(number),
            },
            number => Process(number),
        }
    }

    /// Whether the calling process is this one, and not a child that was forked from it.
    pub(crate) fn is_current(self) -> bool {
        match Page::of_this_process() {
            Some(page) => page.number().load(Ordering::Relaxed) == self.0,
            None => process_id() == self.0,
        }
    }
}

fn process_id() -> u32 {
    std::process::id()
}

/// A page that holds the number of its process, and zeros in a forked child.
struct Page(MmapMut);

impl Page {
    fn of_this_process() -> Option<&'static Page> {
        static PAGE: OnceLock<Option<Page>> = OnceLock::new();
        PAGE.get_or_init(Page::new).as_ref()
    }

    #[cfg(target_os = "linux")]
    fn new() -> Option<Page> {
        let mut map = MmapMut::map_anon(size_of::<AtomicU32>()).ok()?;
        let page = map.as_mut_ptr().cast();
        // SAFETY: `page` is the mapping's own page, which nothing refers to yet. The advice changes what a child sees of it, and
        // nothing in this process.
        unsafe { rustix::mm::madvise(page, map.len(), rustix::mm::Advice::LinuxWipeOnFork) }.ok()?;
        Some(Page(map))
    }

    #[cfg(not(target_os = "linux"))]
    fn new() -> Option<Page> {
        None
    }

    fn number(&self) -> &AtomicU32 {
        // SAFETY: the mapping begins at a page, lives as long as `self`, is writable, and is reached in this way only.
        unsafe { &*self.0.as_ptr().cast::<AtomicU32>() }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test waits for a process on the real clock")]
pub(crate) mod tests {
    use std::future::Future;
    use std::mem::ManuallyDrop;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::AtomicI32;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

    use super::*;
    use crate::{Ack, DiskConfig, DriverChoice, ErrorKind, Lsn, Options, PartitionId, Region, Transaction};

    // Of the C library. A child uses what the library keeps whole over a fork, and ends without the parent's exit handlers.
    unsafe extern "C" {
        safe fn fork() -> i32;
        safe fn _exit(status: i32) -> !;
    }

    /// Runs `child` in a forked child and returns what it found wrong, as the number of the first claim that does not hold.
    pub(crate) fn in_child(child: impl FnOnce(&mut dyn FnMut(bool))) -> i32 {
        match fork() {
            0 => {
                let mut number = 0;
                child(&mut |holds| {
                    number += 1;
                    if !holds {
                        _exit(number);
                    }
                });
                _exit(0);
            }
            pid => {
                let pid = Pid::from_raw(pid).expect("the child was started");
                end_of(pid).exit_status().expect("no signal ended the child")
            }
        }
    }

    /// Waits for a child that is to end by itself.
    fn end_of(child: Pid) -> WaitStatus {
        for _ in 0..3_000 {
            if let Some((_, status)) = waitpid(Some(child), WaitOptions::NOHANG).expect("it is our child") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        rustix::process::kill_process(child, rustix::process::Signal::KILL).expect("it is there");
        panic!("the child waits for ever");
    }

    #[test]
    fn a_process_is_current_in_itself_and_not_in_its_child() {
        let process = Process::current();
        assert!(process.is_current() && Process::current() == process);
        let wrong = in_child(|claim| {
            claim(!process.is_current());
            let mine = Process::current();
            claim(mine.is_current() && mine != process);
            claim(!process.is_current());
        });
        assert_eq!(wrong, 0);
        assert!(process.is_current());
    }

    fn options(home: &std::path::Path, driver: DriverChoice) -> Options {
        let disks = ["a", "b", "c"].map(|name| DiskConfig::new(home.join(name), name, "zone-1"));
        Options { segment_bytes: 8 << 20, driver, ..Options::new(disks.to_vec()) }
    }

    /// What a child gets that uses everything of a region that its parent has open.
    fn use_everything(region: Region, tickets: [crate::Ticket; 3], claim: &mut dyn FnMut(bool)) {
        let [waited, mut timed, mut polled] = tickets;
        let refused = |error: Option<crate::Error>| error.is_some_and(|error| error.kind() == ErrorKind::Forked);
        let one = || Transaction::new(crate::AccountId(1), PartitionId(1)).record("one");
        // Answered before the fork, or refused now; never waited for.
        claim(waited.wait().err().is_none_or(|error| error.kind() == ErrorKind::Forked));
        let answer = timed.wait_timeout(Duration::from_secs(20));
        claim(answer.and_then(Result::err).is_none_or(|error| error.kind() == ErrorKind::Forked));
        let mut context = Context::from_waker(Waker::noop());
        claim(pin!(&mut polled).poll(&mut context).is_ready());
        claim(refused(region.commit(one()).err()));
        claim(refused(region.try_submit(one()).err()));
        claim(matches!(pin!(region.submit_async(one())).poll(&mut context), Poll::Ready(Err(_))));
        claim(refused(region.health().err()));
        claim(refused(region.trim(Lsn::MAX).err()));
        let mut tail = region.subscribe(region.committed());
        claim(refused(tail.next_blocking().err()));
        claim(refused(tail.next_timeout(Duration::from_secs(20)).err()));
        claim(pin!(tail.next()).poll(&mut context).is_ready());
        drop(region.pin(Lsn::ZERO));
        claim(refused(region.close().err()));
    }

    #[test]
    fn h4_forked_child_gets_errors_and_the_parent_goes_on() {
        for driver in [DriverChoice::Threads, DriverChoice::Auto] {
            let home = tempfile::tempdir().expect("there is room");
            let options = options(home.path(), driver);
            let region = Region::create(options.clone(), ()).expect("nothing is wrong");
            let account = region.create_account("flights", Ack::Quorum).expect("it is new");
            let one = || Transaction::new(account, PartitionId(1)).record("one");
            region.commit(one()).expect("three disks are there");
            // Their answers come after the fork, to the parent.
            let mut tickets = Some([(); 3].map(|()| region.submit(one()).expect("there is room")));
            let mut region = Some(region);
            let wrong = in_child(|claim| {
                let its = region.take().zip(tickets.take());
                its.into_iter().for_each(|(region, tickets)| use_everything(region, tickets, claim));
            });
            assert_eq!(wrong, 0, "{driver:?}");
            for ticket in tickets.into_iter().flatten() {
                ticket.wait().expect("the parent is answered");
            }
            let region = region.expect("only the child took it");
            region.commit(one()).expect("the child has left the disks alone");
            region.close().expect("all is durable");
            let region = Region::open(options, ()).expect("nothing is locked");
            assert_eq!(region.next_sequence(account, PartitionId(1)).expect("it answers"), 5, "{driver:?}");
        }
    }

    #[test]
    fn h4_region_is_opened_again_while_a_forked_child_lives() {
        for driver in [DriverChoice::Threads, DriverChoice::Auto] {
            let home = tempfile::tempdir().expect("there is room");
            let options = options(home.path(), driver);
            let region = Region::create(options.clone(), ()).expect("nothing is wrong");
            // It has every descriptor that the region had.
            let child = fork();
            if child == 0 {
                std::thread::sleep(Duration::from_secs(60));
                _exit(0);
            }
            region.close().expect("all is durable");
            let opened = Region::open(options, ());
            let child = Pid::from_raw(child).expect("the child was started");
            rustix::process::kill_process(child, rustix::process::Signal::KILL).expect("it is there");
            waitpid(Some(child), WaitOptions::empty()).expect("it is our child");
            opened.expect("what was closed is not locked by a child");
        }
    }

    /// Forks once while it applies, and lets the child come back.
    struct Forks(Arc<AtomicI32>);

    impl crate::StateMachine for Forks {
        fn resume_from(&self) -> Lsn {
            Lsn::MAX
        }

        fn apply(&mut self, _: &crate::Committed<'_>) {
            if self.0.load(Ordering::SeqCst) == 0 {
                self.0.store(fork(), Ordering::SeqCst);
            }
        }
    }

    #[test]
    fn h4_child_that_a_machine_forks_does_not_go_on_with_the_log() {
        let home = tempfile::tempdir().expect("there is room");
        let options = options(home.path(), DriverChoice::Auto);
        let child = Arc::default();
        let region = Region::create(options.clone(), Forks(Arc::clone(&child))).expect("nothing is wrong");
        // Dropping it might wait forever for a ring that a child goes on with.
        let region = ManuallyDrop::new(region);
        let account = region.create_account("flights", Ack::Quorum).expect("it is new");
        let commit = || region.commit(Transaction::new(account, PartitionId(1)).record("one"));
        commit().expect("three disks are there");
        let status = end_of(Pid::from_raw(child.load(Ordering::SeqCst)).expect("the child was started"));
        assert!(status.signaled(), "{status:?}");
        commit().expect("the child has left the disks alone");
        ManuallyDrop::into_inner(region).close().expect("all is durable");
        let region = Region::open(options, ()).expect("nothing is locked");
        assert_eq!(region.next_sequence(account, PartitionId(1)).expect("it answers"), 2);
    }
}
