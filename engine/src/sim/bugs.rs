//! The planted bugs and the stages: what the simulation must find, and where it must have been.

use std::cell::Cell;
use std::marker::PhantomData;

/// Known-bad variants of the engine, one at a time, for this thread. Each must be caught by the simulation within a
/// minute: a harness that misses one cannot be trusted with the bugs that nobody planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bug {
    /// A block counts as committed when one disk has it.
    CommitBeforeQuorum,
    /// A block counts as durable on a disk when its write has been submitted.
    AckBeforeDurable,
    /// Recovery exposes the tail without copying it to a quorum.
    SkipWriteBack,
    /// Recovery counts a faulty position as absent.
    FaultyIsAbsent,
    /// Recovery accepts blocks whatever their epoch.
    IgnoreEpoch,
    /// Recovery ends the log where the shortest copy ends.
    ShortestLog,
    /// Recovery takes the longest copy without regard to epochs.
    LongestLog,
    /// A failed block write is tried again on the same disk, which goes on counting.
    RetryFlush,
    /// A segment is sealed behind its last committed block.
    SealBeyondCommit,
    /// A disk that missed later epochs has a vote.
    StaleDiskVotes,
    /// A disk without superblocks has a vote.
    BlankDiskVotes,
    /// A trimmed segment's file is used again before the trim is durable.
    ReuseBeforeTrim,
    /// A retried client sequence is applied again.
    DedupOff,
    /// Clients of the same number in several accounts are one client.
    ClientsShareAccounts,
    /// A sequence that was used for another partition counts as a retry.
    RepeatOfAnotherPartition,
    /// The last record of a transaction is left out when the block is cut short.
    HalfTransaction,
    /// The writer starts before its promise is durable on a quorum.
    SkipPromise,
    /// Recovery does not check that a block follows the one before it.
    WrongChainCheck,
    /// A rebuild copies, and a replay reads, without verifying.
    RebuildUnverified,
    /// A block from the file's earlier life is accepted.
    RecycledBlock,
    /// Blocks are committed in the order in which they become durable, not in log order.
    AckOutOfOrder,
    /// A seal is persisted on one disk only.
    SealOnOneDisk,
    /// Trimming ignores retention pins.
    TrimPastPin,
    /// A disk's late copies count as complete without being reread.
    LateCopyUnread,
    /// Partition sequences start again after recovery.
    SequencesRestart,
    /// What clients had committed is not in the tables that a checkpoint brings back.
    CheckpointForgetsClients,
    /// Who asks for all copies is answered when two disks have his.
    AllIsQuorum,
    /// A repetition that asks for all copies does not wait for the third.
    RepeatSkipsThird,
    /// A closing that takes too long forgets what is under way and goes on.
    LateCloseGoesOn,
    /// What arrives again is entered again.
    ArrivesTwice,
    /// A change of an account goes out before the frames that came before it.
    AccountOvertakes,
    /// An import is answered when it is in a block, not when that is committed.
    ImportAnsweredEarly,
    /// The progress is entered before the frames that it speaks of.
    ProgressFirst,
    /// What comes after a mark may get its time.
    MarkKeepsTime,
    /// After recovery times begin again at the wall clock.
    ClockForgotten,
    /// A session begins one frame behind where the secondary is.
    ResumeTooLate,
    /// A mark goes out before the frames that came before it.
    MarkOvertakes,
    /// The receiver takes batches whatever their numbers.
    ReceiverTakesHoles,
    /// An acknowledgement counts for everything that was sent.
    AcknowledgesAll,
    /// What a segment adds to the digests is not in the tables after recovery.
    DigestsForgotten,
    /// A position is taken for one of this log's history, whatever its anchor says.
    HistoryNotCompared,
    /// Progress is not in the tables after recovery.
    ProgressForgotten,
    /// A frame for which there is no room is left out.
    NoRoomDrops,
    /// A bootstrap says that partitions begin with all that they ever held.
    BeginsWithAll,
    /// A bootstrap leaves out one record that the copy lacks.
    SkipsOneMore,
    /// A copy that begins anew is open to readers.
    RestartStaysOpen,
    /// Marks go out before a bootstrap is over.
    MarksTooEarly,
    /// After recovery a partition whose copy began anew goes on where it was before.
    RestartForgotten,
    /// What the link brings is not verified.
    TrustsTheLink,
    /// A lane goes on where another one is.
    LanesShareProgress,
    /// A copy that another lane brings from now on counts as whole.
    MovedCopyStaysOpen,
    /// What comes behind a refused stretch of a session is entered.
    RefusalForgotten,
    /// Who waits for the secondary is answered by the position of a lane that does not send his account.
    LackingForgotten,
    /// A disk on which the host lets no file be made is given up.
    RefusalLosesDisk,
    /// What a making that was cut short left behind passes for a region.
    RemainsAreARegion,
    /// A computation for which the host has no thread stops the region.
    LackHalts,
    /// A disk that does not answer is waited for for ever.
    WaitsForHung,
    /// An opening takes a slot that it could not open for one that is not there.
    UnopenedIsAbsent,
    /// A disk with a slot that could not be read says that it holds nothing of the next segment.
    UnreadVotes,
    /// An opening promises before it has looked.
    WritesBeforeDecision,
    /// A contract counts as kept however old last sync time is.
    OldIsKept,
    /// A repetition does not wait for the secondary.
    RepeatDoesNotWait,
    /// After recovery contracts hold nothing back.
    ContractsForgotten,
    /// While a copy is made whole, the others of its lane are sent nothing.
    OthersBeginLate,
    /// Trimming respects the highest pin only.
    OnePinHolds,
    /// Of the partitions that begin anew together, one at most counts against their number.
    RestartsUncounted,
    /// Where the original of a repetition lies is asked of its client's window only, which may have forgotten it.
    OriginalForgotten,
    /// What the copies' pages say stays in the superblocks' tables.
    PagesForgetNothing,
    /// An opening lists all ends that it found in the superblocks at once, however many there are.
    EndsListedAtOnce,
    /// A change of the set adds to the superblocks' tables without making room.
    RoomNotMade,
    /// A member's writes may get the name of writes that a disk which hangs still has on their way.
    TokenOfAnother,
    /// Lanes that bring no account count for ever.
    IdleLanesStay,
    /// A superblock that does not fit its slot is taken for a disk that cannot be written.
    EncoderRefusalSwallowed,
    /// Giving a disk up leaves those waiting who wait for an operation there.
    GiveUpLeavesWaiters,
    /// Only blocks have to complete in time: no other operation shows that a disk hangs.
    OverdueUnnoticed,
    /// A log thread that was away counts nothing from before against a disk.
    AwayForgivesAll,
    /// A reader tries the copies in the catalog's order, those on disks that hang included.
    HangingReadFirst,
}

impl Bug {
    /// Those that two regions and a link are needed for.
    pub const OF_THE_LINK: [Bug; 31] = [
        Bug::ArrivesTwice,
        Bug::AccountOvertakes,
        Bug::ImportAnsweredEarly,
        Bug::ProgressFirst,
        Bug::MarkKeepsTime,
        Bug::ClockForgotten,
        Bug::ResumeTooLate,
        Bug::MarkOvertakes,
        Bug::ReceiverTakesHoles,
        Bug::AcknowledgesAll,
        Bug::DigestsForgotten,
        Bug::ProgressForgotten,
        Bug::NoRoomDrops,
        Bug::BeginsWithAll,
        Bug::SkipsOneMore,
        Bug::RestartStaysOpen,
        Bug::MarksTooEarly,
        Bug::RestartForgotten,
        Bug::TrustsTheLink,
        Bug::LanesShareProgress,
        Bug::MovedCopyStaysOpen,
        Bug::RefusalForgotten,
        Bug::LackingForgotten,
        Bug::OldIsKept,
        Bug::RepeatDoesNotWait,
        Bug::ContractsForgotten,
        Bug::OthersBeginLate,
        Bug::OnePinHolds,
        Bug::RestartsUncounted,
        Bug::OriginalForgotten,
        Bug::HistoryNotCompared,
    ];

    /// Those that numbers show which no schedule reaches: scripts of thousands of lives catch them.
    #[cfg(test)]
    pub(super) const OF_BOUNDS: [Bug; 6] = [
        Bug::PagesForgetNothing,
        Bug::EndsListedAtOnce,
        Bug::RoomNotMade,
        Bug::EncoderRefusalSwallowed,
        Bug::TokenOfAnother,
        Bug::IdleLanesStay,
    ];

    /// Those that show in how long something takes on a disk that hangs: scripts catch them.
    #[cfg(test)]
    pub(super) const OF_HANGS: [Bug; 4] =
        [Bug::GiveUpLeavesWaiters, Bug::OverdueUnnoticed, Bug::AwayForgivesAll, Bug::HangingReadFirst];

    /// Those that one region shows.
    pub const ALL: [Bug; 34] = [
        Bug::CommitBeforeQuorum,
        Bug::AckBeforeDurable,
        Bug::SkipWriteBack,
        Bug::FaultyIsAbsent,
        Bug::IgnoreEpoch,
        Bug::ShortestLog,
        Bug::LongestLog,
        Bug::RetryFlush,
        Bug::SealBeyondCommit,
        Bug::StaleDiskVotes,
        Bug::BlankDiskVotes,
        Bug::ReuseBeforeTrim,
        Bug::DedupOff,
        Bug::ClientsShareAccounts,
        Bug::RepeatOfAnotherPartition,
        Bug::HalfTransaction,
        Bug::SkipPromise,
        Bug::WrongChainCheck,
        Bug::RebuildUnverified,
        Bug::RecycledBlock,
        Bug::AckOutOfOrder,
        Bug::SealOnOneDisk,
        Bug::TrimPastPin,
        Bug::LateCopyUnread,
        Bug::SequencesRestart,
        Bug::CheckpointForgetsClients,
        Bug::AllIsQuorum,
        Bug::RepeatSkipsThird,
        Bug::LateCloseGoesOn,
        Bug::WritesBeforeDecision,
        Bug::RefusalLosesDisk,
        Bug::LackHalts,
        Bug::RemainsAreARegion,
        Bug::WaitsForHung,
    ];
}

/// What the engine is doing when a fault meets it. Several can last at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// A region is being made.
    Create,
    /// Blocks are on their way to the set.
    Append,
    /// A segment's end is being made final.
    Seal,
    /// The next segment's files are made or recycled.
    Prepare,
    /// The set changes.
    Reconfigure,
    /// The log is recovered after a clean or unclean end.
    Recovery,
    /// The same after a recovery that did not finish.
    RecoveryAgain,
    /// A copy is rebuilt.
    Rebuild,
    /// Copies are read and compared.
    Scrub,
    /// Old segments are let go.
    Trim,
    /// A disk comes back.
    Return,
    /// The region closes in order.
    Close,
}

impl Stage {
    /// All of them.
    pub const ALL: [Stage; 12] = [
        Stage::Create,
        Stage::Append,
        Stage::Seal,
        Stage::Prepare,
        Stage::Reconfigure,
        Stage::Recovery,
        Stage::RecoveryAgain,
        Stage::Rebuild,
        Stage::Scrub,
        Stage::Trim,
        Stage::Return,
        Stage::Close,
    ];
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    static REACHED: Cell<u64> = const { Cell::new(0) };
    static STAGES: Cell<[u16; Stage::ALL.len()]> = const { Cell::new([0; Stage::ALL.len()]) };
}

/// Plants a bug for this thread, or none.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
    REACHED.set(0);
}

/// How often the planted bug's place was reached since [`plant`].
#[must_use]
pub fn reached() -> u64 {
    REACHED.get()
}

/// Whether this bug is planted.
pub(crate) fn is_planted(bug: Bug) -> bool {
    let planted = PLANTED.get() == Some(bug);
    if planted {
        REACHED.set(REACHED.get() + 1);
    }
    planted
}

/// A stage that lasts until this is dropped.
pub(crate) struct InStage(Stage, PhantomData<*const ()>);

impl Drop for InStage {
    fn drop(&mut self) {
        let mut stages = STAGES.get();
        stages[self.0 as usize] -= 1;
        STAGES.set(stages);
    }
}

/// Begins a stage on this thread.
pub(crate) fn enter_stage(stage: Stage) -> InStage {
    let mut stages = STAGES.get();
    stages[stage as usize] += 1;
    STAGES.set(stages);
    InStage(stage, PhantomData)
}

/// The stages that this thread is in, one bit each, by their place in [`Stage::ALL`].
pub(super) fn stages() -> u16 {
    let counts = STAGES.get();
    counts.iter().enumerate().fold(0, |bits, (at, count)| bits | u16::from(*count > 0) << at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_planted_bug_is_planted_and_its_place_is_counted() {
        plant(Some(Bug::DedupOff));
        assert!(planted!(DedupOff) && !planted!(IgnoreEpoch));
        assert_eq!(reached(), 1);
        plant(None);
        assert!(Bug::ALL.iter().all(|bug| !is_planted(*bug)));
    }

    #[test]
    fn stages_overlap_and_end_when_dropped() {
        let seal = stage!(Seal);
        {
            let (_trim, _again) = (stage!(Trim), stage!(Seal));
            assert_eq!(stages(), 1 << Stage::Seal as u16 | 1 << Stage::Trim as u16);
        }
        assert_eq!(stages(), 1 << Stage::Seal as u16);
        drop(seal);
        assert_eq!(stages(), 0);
    }
}
