//! Each planted bug is caught within a minute: the harness finds what it is there to find.

use std::time::Duration;

use meridian::sim::{Bug, Schedule};

use crate::processor_time;

/// Runs schedules of one kind with the bug planted, until one finds it; each says how often the bug's place was reached, and what
/// it found.
pub(crate) fn is_caught(bug: Bug, run: impl Fn(u64) -> (u64, Option<String>)) {
    let started = processor_time();
    let mut reached = 0;
    for seed in 0.. {
        let (times, violation) = run(seed);
        reached += times;
        if let Some(violation) = violation {
            println!("{bug:?}: seed {seed} after {:.2?}: {violation}", processor_time() - started);
            return;
        }
        // Of this thread's own: a busy machine makes no bug harder to find.
        let tried = processor_time() - started;
        assert!(
            tried < Duration::from_secs(60),
            "{bug:?} was not caught by {seed} schedules; its place was reached {reached} times"
        );
    }
}

/// A test for each bug of a list, and one that none is left out.
macro_rules! caught {
    ($schedule:ident, $all:expr, $($test:ident: $bug:ident,)*) => {
        $(#[test]
        fn $test() {
            $crate::planted::is_caught(Bug::$bug, |seed| {
                let outcome = $schedule { seed, bug: Some(Bug::$bug), ..$schedule::default() }.run();
                (outcome.reached, outcome.violation)
            });
        })*

        #[test]
        fn every_planted_bug_has_a_test() {
            assert_eq!($all.len(), [$(Bug::$bug),*].len());
        }
    };
}
pub(crate) use caught;

caught! {
    Schedule, Bug::ALL,
    commit_before_quorum: CommitBeforeQuorum,
    ack_before_durable: AckBeforeDurable,
    skip_write_back: SkipWriteBack,
    faulty_is_absent: FaultyIsAbsent,
    ignore_epoch: IgnoreEpoch,
    shortest_log: ShortestLog,
    longest_log: LongestLog,
    retry_flush: RetryFlush,
    seal_beyond_commit: SealBeyondCommit,
    stale_disk_votes: StaleDiskVotes,
    blank_disk_votes: BlankDiskVotes,
    reuse_before_trim: ReuseBeforeTrim,
    dedup_off: DedupOff,
    clients_share_accounts: ClientsShareAccounts,
    repeat_of_another_partition: RepeatOfAnotherPartition,
    half_transaction: HalfTransaction,
    skip_promise: SkipPromise,
    wrong_chain_check: WrongChainCheck,
    rebuild_unverified: RebuildUnverified,
    recycled_block: RecycledBlock,
    ack_out_of_order: AckOutOfOrder,
    seal_on_one_disk: SealOnOneDisk,
    trim_past_pin: TrimPastPin,
    late_copy_unread: LateCopyUnread,
    sequences_restart: SequencesRestart,
    checkpoint_forgets_clients: CheckpointForgetsClients,
    all_is_answered_like_quorum: AllIsQuorum,
    a_repetition_skips_the_third_copy: RepeatSkipsThird,
    a_late_closing_goes_on: LateCloseGoesOn,
    opening_writes_before_it_has_decided: WritesBeforeDecision,
    refused_file_gives_the_disk_up: RefusalLosesDisk,
    lack_of_threads_halts_the_region: LackHalts,
    remains_of_a_create_pass_for_a_region: RemainsAreARegion,
    hung_disk_is_waited_for_for_ever: WaitsForHung,
}
