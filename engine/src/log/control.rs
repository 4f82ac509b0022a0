//! What an operator asks for: trim, drain, a disk back, scrub, health, close.

use std::rc::Rc;
use std::time::Duration;

use futures::executor::LocalSpawner;
use futures::future::join_all;

use crate::error::{Error, ErrorKind, Result};
use crate::format::DATA_START;
use crate::geo::{Cut, Lane};
use crate::health::{CopyHealth, DiskHealth, DiskState, Health, SegmentHealth};
use crate::io::DiskIndex;
use crate::log::disk::Disk;
use crate::log::placement::COPIES;
use crate::log::{Log, spawn};
use crate::read::IndexCounts;
use crate::shared::{Control, lock};
use crate::stats::Stats;
use crate::sync::ticket::Resolver;
use crate::types::{AccountId, Lsn, PartitionId, Role};

/// How long an orderly close waits for what was accepted; then the region halts.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

impl Log {
    fn stats(&self) -> Stats {
        let IndexCounts { hits, misses, bytes_read, remade } = lock(&self.shared.indexes).counts();
        let stats = self.stats.borrow().clone();
        Stats { index_hits: hits, index_misses: misses, index_bytes: bytes_read, indexes_remade: remade, ..stats }
    }

    /// Starts what was asked; it answers when it is done.
    pub(crate) fn control(self: &Rc<Log>, control: Control, spawner: &LocalSpawner) {
        self.with(|pipeline| pipeline.released.0 += 1);
        let log = Rc::clone(self);
        match control {
            Control::Health { done } => done.resolve(Ok(self.health())),
            Control::Copies { done } => done.resolve(Ok(self.copies())),
            Control::Accounts { done } => done.resolve(Ok(self.tables.borrow().accounts().cloned().collect())),
            Control::Stats { done } => done.resolve(Ok(self.stats())),
            Control::OverrideReads { account, reason, done } => done.resolve(self.override_reads(account, reason)),
            Control::Trim { to, done } => spawn(spawner, async move {
                let trimmed = match log.halted_error() {
                    Some(error) => Err(error),
                    None => log.trim(to).await,
                };
                done.resolve(trimmed);
            }),
            Control::Drain { upgrade_domain, on, done } => spawn(spawner, async move {
                done.resolve(log.drain(&upgrade_domain, on).await);
            }),
            Control::Fail { disk, done } => done.resolve(self.fail_disk(disk)),
            Control::Return { disk, replace, done } => spawn(spawner, async move {
                let returned = match log.halted_error() {
                    Some(error) => Err(error),
                    None => log.return_disk(disk, replace).await,
                };
                done.resolve(returned);
            }),
            Control::NextSequence { account, partition, done } => spawn(spawner, async move {
                done.resolve(log.committed_sequence(account, partition).await);
            }),
            Control::Cut { lane, done } => spawn(spawner, async move {
                done.resolve(log.committed_cut(lane).await);
            }),
            Control::Scrub { done } => spawn(spawner, async move {
                let report = log.scrub_now().await;
                // It ends early where the log does: what it found would pass for all there is.
                done.resolve(log.halted_error().map_or(Ok(report), Err));
            }),
            Control::Close { done } => self.start_closing(done, spawner),
        }
    }

    /// Takes nothing any more, and closes when what was accepted has finished. `done` is told.
    pub(crate) fn start_closing(self: &Rc<Log>, done: Resolver<Result<()>>, spawner: &LocalSpawner) {
        *self.closing.borrow_mut() = Some(done);
        self.shared.intake.close();
        self.shared.gates.close();
        let log = Rc::clone(self);
        spawn(spawner, async move { log.close().await });
    }

    /// The sequence after a partition's last committed record: from the indexes in the making, the newest first, and
    /// else from the tables of what is sealed.
    async fn committed_sequence(&self, account: AccountId, partition: PartitionId) -> Result<u64> {
        let mut seen = self.changed.seen();
        loop {
            let builders: Vec<_> = self.read_catalog().builders.values().rev().cloned().collect();
            let newest = builders.iter().find_map(|builder| lock(builder).next_sequence(account, partition));
            if let Some(newest) = newest {
                return Ok(newest);
            }
            // They are away while they are moved over a segment.
            if let Some(sealed) = self.checkpointer.borrow().as_ref() {
                return Ok(sealed.tables.partition(account, partition).next_sequence);
            }
            if let Some(error) = self.halted_error() {
                return Err(error);
            }
            self.changed.wait(&mut seen).await;
        }
    }

    /// The last moment of a lane that can be read here. Its time is entered again with what arrives later, so that of all
    /// places with the latest time the first is meant.
    async fn committed_cut(&self, lane: Lane) -> Result<Option<Cut>> {
        let mut seen = self.changed.seen();
        loop {
            let builders: Vec<_> = self.read_catalog().builders.values().cloned().collect();
            // They are away while they are moved over a segment.
            if let Some(sealed) = self.checkpointer.borrow().as_ref() {
                let young = builders.iter().filter_map(|builder| lock(builder).cut(lane));
                let cuts = sealed.tables.cut(lane).into_iter().chain(young);
                let latest = cuts.reduce(|known, cut| if cut.time == known.time { known } else { cut });
                return Ok(latest.filter(|cut| cut.time > 0));
            }
            if let Some(error) = self.halted_error() {
                return Err(error);
            }
            self.changed.wait(&mut seen).await;
        }
    }

    /// A copy in bootstrap holds a part of its account, and nobody can say which: it stays hidden.
    fn override_reads(&self, id: AccountId, reason: Option<String>) -> Result<()> {
        let tables = self.tables.borrow();
        let account = tables.accounts().find(|account| account.id == id);
        let account =
            account.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no account {}", id.0)))?;
        if reason.is_some() && account.role != Role::Secondary {
            let message = format!(
                "account {:?} is {:?} here: only the reads of a Secondary can be overridden, a copy that is whole",
                account.name, account.role
            );
            return Err(Error::invalid(message));
        }
        self.write_catalog(|catalog| {
            match reason {
                Some(reason) => catalog.read_overrides.insert(id, reason),
                None => catalog.read_overrides.remove(&id),
            };
            catalog.put_account(account);
        });
        Ok(())
    }

    fn fail_disk(&self, at: usize) -> Result<()> {
        let state = self.disks.borrow().get(at).map(|disk| disk.state);
        match state {
            None => Err(Error::new(ErrorKind::NotFound, format!("there is no disk {at}"))),
            Some(DiskState::Healthy | DiskState::Rebuilding) => {
                self.lose(DiskIndex(at), DiskState::Failed, "given up by the operator".into());
                Ok(())
            }
            Some(state) => Err(Error::invalid(format!("disk {at} is lost already: {state:?}"))),
        }
    }

    /// Takes an upgrade domain out of the sets, or lets it in again (acceptance L7).
    async fn drain(&self, upgrade_domain: &str, on: bool) -> Result<()> {
        let is_its = |disk: &Disk| disk.config.upgrade_domain == upgrade_domain;
        if !self.disks.borrow().iter().any(is_its) {
            return Err(Error::new(ErrorKind::NotFound, format!("no disk is in upgrade domain {upgrade_domain:?}")));
        }
        if on {
            let other = self.disks.borrow().iter().any(|disk| disk.draining && !is_its(disk));
            if other || !self.health().is_whole() {
                let message = "the sets are not whole, or another upgrade domain is drained: wait, then drain again";
                return Err(Error::new(ErrorKind::Degraded, message));
            }
        }
        for disk in self.disks.borrow_mut().iter_mut().filter(|disk| is_its(disk)) {
            disk.draining = on;
        }
        self.changed.raise();
        let mut seen = self.changed.seen();
        while on && self.set_has_draining() {
            if let Some(error) = self.halted_error() {
                return Err(error);
            }
            self.changed.wait(&mut seen).await;
        }
        Ok(())
    }

    fn set_has_draining(&self) -> bool {
        let disks = self.disks.borrow();
        self.with(|pipeline| pipeline.members.iter().any(|member| disks[member.disk.0].draining))
    }

    /// Lets everything accepted finish, writes the superblocks once more, gives up the locks.
    async fn close(&self) {
        let patience = self.ops.now() + CLOSE_PATIENCE.as_nanos() as u64;
        while self.halted.borrow().is_none() && !self.is_drained() {
            if self.ops.now() > patience {
                // Sequences were given out that nothing will hold: nothing may be entered behind them.
                let message = "the region was closed before all that was asked for was durable";
                if planted!(LateCloseGoesOn) {
                    self.with(|pipeline| pipeline.fail_all(message));
                    self.ops.sleep(Duration::from_millis(1)).await;
                    continue;
                }
                self.halt(Error::new(ErrorKind::Indeterminate, message));
                break;
            }
            self.ops.sleep(Duration::from_millis(1)).await;
        }
        let mut result = Ok(());
        if let Some(error) = self.halted_error() {
            result = Err(error);
        } else {
            self.with(|pipeline| pipeline.paused = true);
            self.meta.borrow_mut().clean = true;
            if let Err(error) = self.persist(&[]).await {
                result = Err(error);
            }
        }
        self.leaving.set(true);
        // All at once: one that hangs is waited for, but does not keep the others locked.
        drop(join_all(self.attached().into_iter().map(|disk| self.ops.detach(disk))).await);
        self.shared.committed.close();
        if let Some(done) = self.closing.borrow_mut().take() {
            done.resolve(result);
        }
        self.closed.set(true);
    }

    fn is_drained(&self) -> bool {
        let idle = self.with(|pipeline| {
            pipeline.open.is_none()
                && pipeline.uncommitted() == 0
                && pipeline.all.is_empty()
                && pipeline.remote.is_empty()
                && pipeline.released.0 == 0
        });
        idle && self.shared.intake.is_drained() && self.with(|pipeline| pipeline.is_quiet())
    }

    fn copies(&self) -> Vec<SegmentHealth> {
        let disks = self.disks.borrow();
        let catalog = self.catalog.borrow();
        let segments = catalog.iter().map(|(id, segment)| {
            let live = segment.copies.iter().filter(|copy| disks[copy.disk.0].is_live());
            let copies = live.map(|copy| CopyHealth { disk: copy.disk.0, complete: copy.complete });
            let sealed = segment.seal.as_ref().map(|seal| seal.length);
            SegmentHealth { segment: id, epoch: segment.epoch, sealed, copies: copies.collect() }
        });
        segments.collect()
    }

    pub(crate) fn health(&self) -> Health {
        let disks = self.disks.borrow();
        let catalog = self.catalog.borrow();
        let sealed = catalog.iter().filter(|(_, segment)| segment.seal.is_some());
        let live = |segment: &crate::log::catalog::Segment| {
            segment.complete().filter(|copy| disks[copy.disk.0].is_live()).count()
        };
        let unwhole = sealed.filter(|(_, segment)| live(segment) < COPIES).count();
        let (corrupt, repaired) = self.corrupt.get();
        self.with(|pipeline| Health {
            driver: self.ops.with_driver(|driver| driver.name()),
            disks: disks.iter().map(|disk| disk_health(disk, pipeline)).collect(),
            epoch: pipeline.epoch,
            active: pipeline.active.id,
            first: Lsn::new(self.meta.borrow().trim, DATA_START),
            committed: pipeline.committed,
            degraded: pipeline.is_degraded() || pipeline.members.iter().any(|member| !member.live),
            unwhole,
            lost: self.lost.borrow().iter().filter(|id| catalog.get(**id).is_some()).count(),
            segments: catalog.len(),
            halted: self.halted.borrow().as_ref().map(ToString::to_string),
            no_space: pipeline.no_space,
            read_overrides: self.read_catalog().read_overrides.clone().into_iter().collect(),
            corrupt_copies: (corrupt, repaired),
        })
    }
}

fn disk_health(disk: &Disk, pipeline: &crate::log::pipeline::Pipeline) -> DiskHealth {
    let member = pipeline.members.iter().position(|member| member.disk == disk.index && member.live);
    let config = &disk.config;
    let short = disk.short.as_ref().filter(|_| disk.is_live());
    DiskHealth {
        path: config.path.clone(),
        domains: [config.fault_domain.clone(), config.upgrade_domain.clone(), config.zone.clone()],
        state: disk.state,
        reason: short.map_or_else(|| disk.reason.clone(), |short| short.why.clone()),
        draining: disk.draining,
        full: short.is_some(),
        direct: disk.traits.as_ref().is_some_and(|traits| traits.direct),
        segments: (disk.slots, disk.free.len() as u32),
        space: disk.space,
        lag_bytes: member.map_or(0, |at| pipeline.lag(at) as u64),
        in_set: member.is_some(),
    }
}
