//! One process's hold on the simulated hardware: a [`Driver`] whose time is virtual.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::fault::OpKind;
use super::world::World;
use crate::io::{Completion, DiskIndex, Doorbell, Driver, Environment, FileId, Op, OpId, Output, ReadAt};

/// A process on a [`World`]. Dropping it is the death of the process.
pub struct SimDriver {
    world: World,
    process: u64,
    bell: Arc<Bell>,
}

impl SimDriver {
    pub(super) fn new(world: World) -> SimDriver {
        let process = world.lock().start_process();
        SimDriver { world, process, bell: Arc::default() }
    }

    /// Whether the process lives still.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.world.lock().alive(self.process)
    }
}

impl Drop for SimDriver {
    fn drop(&mut self) {
        self.world.lock().crash(self.process);
    }
}

impl Driver for SimDriver {
    fn name(&self) -> String {
        "simulated".to_owned()
    }

    fn submit(&mut self, id: OpId, op: Op) {
        match op {
            // A job runs here, outside the world's lock, which it may need for the time; its result takes its time to arrive.
            Op::Compute(job) => {
                let allowed = self.world.lock().refuse(self.process, None, OpKind::Compute, "");
                let result = allowed.map(|()| Output::Computed(job()));
                self.world.lock().submit_computed(self.process, id, result);
            }
            op => self.world.lock().submit(self.process, id, op),
        }
    }

    fn poll(&mut self, wait: Option<Duration>, done: &mut Vec<Completion>) {
        let bell = &self.bell.rung;
        self.world.lock().poll(self.process, wait, || bell.swap(false, Ordering::AcqRel), done);
    }

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        Arc::<Bell>::clone(&self.bell)
    }

    fn reader(&self) -> Arc<dyn ReadAt> {
        Arc::new(Process { world: self.world.clone(), process: self.process })
    }

    fn environment(&self) -> Arc<dyn Environment> {
        Arc::new(Process { world: self.world.clone(), process: self.process })
    }
}

#[derive(Default)]
struct Bell {
    rung: AtomicBool,
}

impl Doorbell for Bell {
    fn ring(&self) {
        self.rung.store(true, Ordering::Release);
    }
}

struct Process {
    world: World,
    process: u64,
}

impl ReadAt for Process {
    fn read_at(&self, disk: DiskIndex, file: FileId, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.world.lock().read_at(self.process, disk, file, offset, buf)
    }

    fn read_named_at(&self, disk: DiskIndex, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.world.lock().read_named_at(self.process, disk, name, offset, buf)
    }
}

impl Environment for Process {
    fn now(&self) -> u64 {
        self.world.lock().now
    }

    fn wall(&self) -> u64 {
        self.world.lock().wall()
    }

    fn random(&self) -> u128 {
        self.world.lock().rng.u128(..)
    }
}
