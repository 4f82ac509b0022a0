//! A disk as the log thread sees it: its identity, its standing, its superblock and its free slots.

use std::io;

use crate::health::DiskState;
use crate::io::{DiskIndex, DiskTraits, FileId};
use crate::options::DiskConfig;
use crate::types::{DiskId, Epoch, Lsn};

/// The superblock's file: two slots, written in turn.
pub(crate) const SUPERBLOCK: &str = "superblock";

/// A segment file: its number names it for its whole life, its header says which segment it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) number: u32,
    pub(crate) file: FileId,
    /// Of the disk, when the file was opened.
    pub(crate) life: u32,
}

impl Slot {
    pub(crate) fn name(number: u32) -> String {
        format!("slot-{number:06}")
    }

    pub(crate) fn parse(name: &str) -> Option<u32> {
        let number = name.strip_prefix("slot-").filter(|digits| digits.len() >= 6)?.parse().ok();
        // There is always a next one.
        number.filter(|number| *number < u32::MAX)
    }
}

/// Why a disk took no segment.
pub(crate) struct Shortage {
    /// For people, with its path.
    pub(crate) why: String,
    /// It is not asked again before something may have given it space.
    avoided: bool,
}

pub(crate) struct Disk {
    pub(crate) index: DiskIndex,
    pub(crate) config: DiskConfig,
    /// Known once a superblock of the region was read or written there.
    pub(crate) id: Option<DiskId>,
    pub(crate) state: DiskState,
    /// Why it is in that state, for people.
    pub(crate) reason: String,
    /// Its upgrade domain is being drained: it keeps its copies and takes no new ones.
    pub(crate) draining: bool,
    /// It is being taken back: what it holds is not known yet, so it takes nothing and does not count.
    pub(crate) joining: bool,
    /// How often it was forgotten: what began in an earlier life has nothing to say of this one.
    pub(crate) life: u32,
    /// It refused the last segment that it was asked for: what health shows, also while the log
    /// waits for room and asks again and again.
    pub(crate) short: Option<Shortage>,
    /// How often in a row it was full again though it had room: a quota, or too few inodes.
    pub(crate) refusals: u32,
    /// Before this time it is not believed again that it has room, in nanoseconds of the seam's clock.
    pub(crate) rests_until: u64,
    pub(crate) traits: Option<DiskTraits>,
    pub(crate) superblock: Option<FileId>,
    /// It holds everything below, as its superblock said last.
    pub(crate) flushed: Lsn,
    /// The last epoch that it promised while it was not behind, as its superblock said when it was read.
    pub(crate) sound: Epoch,
    /// Which superblock slot is written next.
    pub(crate) turn: u8,
    pub(crate) free: Vec<Slot>,
    pub(crate) slots: u32,
    pub(crate) next_slot: u32,
    /// Slots whose pages could not be read: what they hold is not known.
    pub(crate) unread: Vec<String>,
    /// Slots whose pages could not be read: used again once every segment has its copies elsewhere.
    pub(crate) set_aside: Vec<Slot>,
    /// Slot files whose making was cut short: they hold nothing, and are removed when the disk is written to.
    pub(crate) unfinished: Vec<String>,
    /// Bytes free and in all, when last asked.
    pub(crate) space: (u64, u64),
}

impl Disk {
    pub(crate) fn new(index: DiskIndex, config: DiskConfig) -> Disk {
        Disk {
            index,
            config,
            id: None,
            state: DiskState::Missing,
            reason: "not attached yet".into(),
            draining: false,
            joining: false,
            life: 0,
            short: None,
            refusals: 0,
            rests_until: 0,
            traits: None,
            superblock: None,
            flushed: Lsn::ZERO,
            sound: Epoch(0),
            turn: 0,
            free: Vec::new(),
            slots: 0,
            next_slot: 0,
            unread: Vec::new(),
            set_aside: Vec::new(),
            unfinished: Vec::new(),
            space: (0, 0),
        }
    }

    /// Whether it holds what the region thinks it holds, and answers.
    pub(crate) fn is_live(&self) -> bool {
        self.state == DiskState::Healthy
    }

    /// Whether a new segment may have a copy there.
    pub(crate) fn takes_segments(&self) -> bool {
        self.is_live() && !self.joining && !self.draining && !self.is_full()
    }

    /// Whether it may serve where too few others do: though its upgrade domain is drained, and though it is full, with the
    /// slot that is kept free for this.
    pub(crate) fn serves_in_need(&self) -> bool {
        self.is_live() && !self.joining && (!self.is_full() || !self.free.is_empty())
    }

    /// Whether it may serve where otherwise nothing could go on: though what it holds of older segments is still being reread.
    pub(crate) fn serves_at_worst(&self) -> bool {
        let answers = matches!(self.state, DiskState::Healthy | DiskState::Rebuilding);
        answers && !self.joining && (!self.is_full() || !self.free.is_empty())
    }

    /// Whether it is passed over for new segments, for lack of room.
    pub(crate) fn is_full(&self) -> bool {
        self.short.as_ref().is_some_and(|short| short.avoided)
    }

    /// It took no segment for lack of room.
    pub(crate) fn found_full(&mut self, error: &io::Error) {
        let why = format!("{}: {error}", self.config.path.display());
        self.short = Some(Shortage { why, avoided: true });
    }

    /// It may be asked for a segment again, though nothing is known to have given it space.
    pub(crate) fn ask_again(&mut self) {
        if let Some(short) = &mut self.short {
            short.avoided = false;
        }
    }

    /// Why it takes no segment, with its path; `None` where it does.
    pub(crate) fn refusal(&self) -> Option<String> {
        let short = || self.short.as_ref().map(|short| short.why.clone());
        let why = match self {
            _ if !self.is_live() => &self.reason,
            _ if self.joining => "it is being taken back",
            _ if self.draining => "its upgrade domain is being drained",
            _ => return short(),
        };
        Some(format!("{}: {why}", self.config.path.display()))
    }

    pub(crate) fn set(&mut self, state: DiskState, reason: impl Into<String>) {
        self.state = state;
        self.reason = reason.into();
    }

    /// Forgets what was known of its files; its copies must be found again.
    pub(crate) fn forget(&mut self) {
        self.life += 1;
        self.short = None;
        self.superblock = None;
        self.free.clear();
        self.set_aside.clear();
        self.unfinished.clear();
        self.slots = 0;
        self.next_slot = 0;
    }
}
