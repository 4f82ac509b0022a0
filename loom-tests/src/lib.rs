//! Loom models of the lock-free pieces of the engine: the very files of `engine/src/sync`, on loom's primitives.
//!
//! `prims` is the door through which those files reach atomics, locks and thread parking; this crate has its own.
//! So they are explored without `--cfg loom`, which other libraries of the workspace would take to be meant for them.
//! `models` says what must hold in every interleaving, and `mutants`, written by `build.rs`, are copies of the files
//! with one fault each, every one of which some model must find.

#[cfg(test)]
mod prims;
#[cfg(test)]
mod sync;

/// Runs the model in every interleaving with at most three preemptions: forced switches of the running thread.
#[cfg(test)]
fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// The models, on the engine's files as they are.
#[cfg(test)]
mod holds {
    macro_rules! hold {
        ($($model:ident)*) => {
            $(#[test]
            fn $model() {
                crate::sync::models::$model();
            })*
        };
    }

    hold! {
        a_waiting_thread_gets_the_answer
        a_waiting_thread_learns_that_nobody_answers
        a_poll_with_another_waker_is_the_one_woken
        a_wait_out_of_time_can_be_repeated
        an_answer_to_a_leaving_client_is_dropped_once
        quiet_answers_arrive_before_they_are_announced
        a_sleeping_consumer_gets_every_push
        a_nudge_is_noticed_by_a_consumer_about_to_sleep
        little_room_lets_everybody_in
        a_late_push_finds_the_room_just_released
        a_push_given_up_does_not_hold_up_the_next
        a_push_given_up_while_it_is_let_in_is_in_or_gone
        a_close_answers_everybody_and_loses_nothing
        an_abandoned_intake_leaves_nobody_waiting
        waiters_see_the_number_they_wait_for
        what_was_done_before_an_advance_is_seen_after_it
        a_wait_given_up_does_not_hide_another
        a_close_ends_the_waits
    }
}

/// Faulty copies of the files; a model that accepts one proves nothing.
#[cfg(test)]
#[allow(warnings, reason = "generated copies, broken on purpose")]
mod mutants {
    include!(concat!(env!("OUT_DIR"), "/mutants.rs"));

    /// Fails unless the model does, and in the way it should. The model runs in a process of its own, which dies of it:
    /// once loom has found a deadlock, locks cannot be used any more, not even by destructors.
    fn must_fail(model: fn(), mutant: &str, sign: &str) {
        const ALONE: &str = "MERIDIAN_LOOM_MUTANT";
        if std::env::var_os(ALONE).is_some() {
            return model();
        }
        let test = format!("mutants::{mutant}::is_found");
        let mut command = std::process::Command::new(std::env::current_exe().expect("a test has an executable"));
        let output = command.args(["--exact", &test, "--nocapture"]).env(ALONE, "1").output().expect("it can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "the model did not find the fault");
        assert!(said.contains(sign), "the model found something else: {said}");
    }
}
