//! What client threads and the log thread share: the way in, the watermark out, and what readers need.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::account::{Account, Contract};
use crate::caller::Home;
use crate::error::{Error, Result};
use crate::format::DATA_START;
use crate::gate::Gates;
use crate::geo::{ClaimedLane, Cut, Lane};
use crate::health::{Health, SegmentHealth};
use crate::io::{DiskIndex, Environment, FileId, ReadAt, Slice};
use crate::log::geo::Geo;
use crate::log::index::IndexBuilder;
use crate::options::Options;
use crate::read::{IndexCache, ReadAhead};
use crate::stats::Stats;
use crate::sync::intake::Intake;
use crate::sync::ticket::Resolver;
use crate::sync::watermark::Watermark;
use crate::transaction::{Receipt, Transaction};
use crate::types::{AccountId, Ack, Epoch, LogId, Lsn, ORDINAL, PartitionId, Role, SegmentId};

/// What a client asks of the log thread.
pub(crate) enum Request {
    /// Commit a transaction.
    Commit(Commit),
    /// Make or change an account.
    PutAccount(PutAccount),
    /// What the geo link wants.
    Geo(Geo),
    /// Anything else.
    Control(Control),
}

pub(crate) struct Commit {
    pub(crate) transaction: Transaction,
    pub(crate) done: Resolver<Result<Receipt>>,
    /// When the client handed it over.
    pub(crate) at: u64,
    /// What it counts for in the intake.
    pub(crate) bytes: usize,
}

pub(crate) struct PutAccount {
    pub(crate) name: String,
    pub(crate) change: AccountChange,
    pub(crate) done: Resolver<Result<AccountId>>,
    pub(crate) at: u64,
}

/// A request of the operator, answered by the log thread.
pub(crate) enum Control {
    Trim {
        to: Lsn,
        done: Resolver<Result<Lsn>>,
    },
    Drain {
        upgrade_domain: String,
        on: bool,
        done: Resolver<Result<()>>,
    },
    Fail {
        disk: usize,
        done: Resolver<Result<()>>,
    },
    Return {
        disk: usize,
        replace: bool,
        done: Resolver<Result<()>>,
    },
    Scrub {
        done: Resolver<Result<crate::ScrubReport>>,
    },
    Accounts {
        done: Resolver<Result<Vec<Account>>>,
    },
    Cut {
        lane: Lane,
        done: Resolver<Result<Option<Cut>>>,
    },
    NextSequence {
        account: AccountId,
        partition: PartitionId,
        done: Resolver<Result<u64>>,
    },
    Health {
        done: Resolver<Result<Health>>,
    },
    /// Lets an account's secondary be read though its primary's settings say no; without a reason, no longer.
    OverrideReads {
        account: AccountId,
        reason: Option<String>,
        done: Resolver<Result<()>>,
    },
    Copies {
        done: Resolver<Result<Vec<SegmentHealth>>>,
    },
    Stats {
        done: Resolver<Result<Stats>>,
    },
    Close {
        done: Resolver<Result<()>>,
    },
}

/// What to do to an account.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AccountChange {
    Create(Ack),
    SetAck(Ack),
    /// A new account epoch: what asks for an older one is fenced.
    Fence,
    /// Whether another region is to hold a copy.
    SetGeo(bool),
    /// Whether that copy can be read.
    SetReadAccess(bool),
    /// How far it may be behind.
    SetContract(Option<Contract>),
}

/// A committed block still in memory.
#[derive(Clone)]
pub(crate) struct HotBlock {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
    pub(crate) data: Slice,
}

/// The latest committed blocks, bounded in bytes, for those who follow the tail.
pub(crate) struct Hot {
    blocks: VecDeque<HotBlock>,
    bytes: usize,
    most: usize,
}

impl Hot {
    pub(crate) fn push(&mut self, block: HotBlock) {
        self.bytes += block.data.held();
        self.blocks.push_back(block);
        while self.bytes > self.most {
            let Some(old) = self.blocks.pop_front() else { break };
            self.bytes -= old.data.held();
        }
    }

    pub(crate) fn find(&self, segment: SegmentId, offset: u32) -> Option<HotBlock> {
        let at = self.blocks.partition_point(|block| (block.segment, block.offset) < (segment, offset));
        self.blocks.get(at).filter(|block| (block.segment, block.offset) == (segment, offset)).cloned()
    }
}

/// A segment as readers see it.
#[derive(Clone)]
pub(crate) struct ReadSegment {
    pub(crate) epoch: Epoch,
    /// Where its committed bytes end, once that is final.
    pub(crate) end: Option<u32>,
    /// The checksum of its last block, once that is final.
    pub(crate) end_chain: Option<u64>,
    /// Copies that hold all of it, or all of its committed part.
    pub(crate) copies: Vec<(DiskIndex, FileId)>,
}

/// What readers know of the retained log.
#[derive(Default)]
pub(crate) struct ReadCatalog {
    pub(crate) first: SegmentId,
    /// The end of what was trimmed since the region was opened.
    pub(crate) trimmed: Option<Lsn>,
    pub(crate) segments: BTreeMap<SegmentId, ReadSegment>,
    /// Indexes of segments that are not on disk yet: the active one's and those being sealed.
    pub(crate) builders: BTreeMap<SegmentId, Arc<Mutex<IndexBuilder>>>,
    /// Secondaries that can be read whatever their primary's settings say, and why.
    pub(crate) read_overrides: BTreeMap<AccountId, String>,
    /// Accounts that nobody reads here, as committed.
    pub(crate) hidden: Arc<BTreeSet<AccountId>>,
    /// The segment in which a partition's copy began anew for the last time: what lies before is void.
    pub(crate) restarts: BTreeMap<(AccountId, PartitionId), SegmentId>,
    /// How often copies have begun anew.
    pub(crate) restarted: u64,
}

impl ReadCatalog {
    /// The bytes of the blocks from `from` to `to`, which is committed.
    pub(crate) fn bytes_between(&self, from: Lsn, to: Lsn) -> u64 {
        let from = from.max(Lsn::new(self.first, DATA_START));
        if to <= from {
            return 0;
        }
        let block = |at: Lsn| (at.offset() & !ORDINAL).max(DATA_START);
        let segments = self.segments.range(from.segment()..=to.segment());
        let bytes = segments.map(|(&id, known)| {
            let start = if id == from.segment() { block(from) } else { DATA_START };
            let end = if id == to.segment() { block(to) } else { known.end.unwrap_or(start) };
            u64::from(known.end.map_or(end, |last| end.min(last)).saturating_sub(start))
        });
        bytes.sum()
    }

    /// Takes note of an account's settings.
    pub(crate) fn put_account(&mut self, account: &Account) {
        let hidden = match account.role {
            Role::Primary | Role::Local => false,
            Role::Secondary => !account.read_access && !self.read_overrides.contains_key(&account.id),
            Role::Bootstrap | Role::Dropped => true,
        };
        if hidden == self.hidden.contains(&account.id) {
            return;
        }
        let its = Arc::make_mut(&mut self.hidden);
        if hidden {
            its.insert(account.id)
        } else {
            its.remove(&account.id)
        };
    }

    /// The first segment that counts for a partition.
    pub(crate) fn first_of(&self, account: AccountId, partition: PartitionId) -> SegmentId {
        let restarted = self.restarts.get(&(account, partition)).copied().unwrap_or_default();
        self.first.max(restarted)
    }
}

/// How far trimming may go.
#[derive(Default)]
pub(crate) struct Pins {
    next: u64,
    pins: BTreeSet<(Lsn, u64)>,
}

impl Pins {
    pub(crate) fn add(&mut self, at: Lsn) -> (Lsn, u64) {
        self.next += 1;
        self.pins.insert((at, self.next));
        (at, self.next)
    }

    pub(crate) fn remove(&mut self, key: (Lsn, u64)) {
        self.pins.remove(&key);
    }

    pub(crate) fn lowest(&self) -> Option<Lsn> {
        let lowest = if planted!(OnePinHolds) { self.pins.last() } else { self.pins.first() };
        lowest.map(|(lsn, _)| *lsn)
    }
}

pub(crate) struct Shared {
    pub(crate) home: Home,
    pub(crate) options: Options,
    pub(crate) intake: Intake<Request>,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) reader: Arc<dyn ReadAt>,
    /// The end of the committed log, as an [`Lsn`].
    pub(crate) committed: Watermark,
    pub(crate) hot: Mutex<Hot>,
    pub(crate) ahead: ReadAhead,
    pub(crate) indexes: Mutex<IndexCache>,
    pub(crate) catalog: RwLock<ReadCatalog>,
    pub(crate) pins: Mutex<Pins>,
    pub(crate) gates: Gates,
    /// The lanes that links of this process have.
    pub(crate) lanes: Mutex<BTreeMap<u32, ClaimedLane>>,
    /// The log's identity; set before the region is handed out.
    pub(crate) log: Mutex<Option<LogId>>,
    /// Copies that a reader found corrupt, for the log thread to repair.
    pub(crate) suspects: Mutex<Vec<(SegmentId, DiskIndex)>>,
    /// A bit for each disk that leaves an operation undone for longer than usual, or was given up for that.
    pub(crate) hanging: AtomicU16,
    /// Why the region stopped itself.
    pub(crate) halted: Mutex<Option<Error>>,
    /// The last handle was dropped on the log thread, which closes the region when it is done with what it does.
    pub(crate) closes: AtomicBool,
}

impl Shared {
    pub(crate) fn new(
        options: Options,
        intake: Intake<Request>,
        environment: Arc<dyn Environment>,
        reader: Arc<dyn ReadAt>,
    ) -> Shared {
        let hot = Hot { blocks: VecDeque::new(), bytes: 0, most: options.hot_bytes };
        Shared {
            home: Home::new(),
            closes: AtomicBool::new(false),
            ahead: ReadAhead::new(),
            indexes: Mutex::new(IndexCache::new(options.index_cache_bytes)),
            options,
            intake,
            environment,
            reader,
            committed: Watermark::new(0),
            hot: Mutex::new(hot),
            catalog: RwLock::new(ReadCatalog::default()),
            pins: Mutex::new(Pins::default()),
            gates: Gates::default(),
            lanes: Mutex::default(),
            log: Mutex::new(None),
            suspects: Mutex::new(Vec::new()),
            hanging: AtomicU16::new(0),
            halted: Mutex::new(None),
        }
    }

    /// Whether a read on the disk may keep its thread waiting.
    pub(crate) fn hangs(&self, disk: DiskIndex) -> bool {
        self.hanging.load(Ordering::Relaxed) >> disk.0 & 1 == 1 && !planted!(HangingReadFirst)
    }
}

/// Takes a lock whose data stays whole whatever its holder did: each critical section of the engine is panic-free.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
