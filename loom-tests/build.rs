//! Writes the tests: that every model holds, and that each mutant, a copy of the engine's files with one
//! fault, is found by its model. Every model must have a mutant, and every mutant's fault a place in the file.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a build script writes files and talks to cargo")]

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

const FILES: [(&str, &str); 5] =
    [("bell", "io"), ("intake", "sync"), ("park", "sync"), ("ticket", "sync"), ("watermark", "sync")];

/// A lost wake-up: every thread sleeps.
const DEADLOCK: &str = "deadlock";
/// The difference that an `assert_eq!` of a model reports.
const WRONG: &str = "left == right";

struct Mutant {
    name: &'static str,
    file: &'static str,
    /// Text that the file has exactly once.
    from: &'static str,
    to: &'static str,
    /// The model that finds it, and what it then says.
    model: &'static str,
    sign: &'static str,
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "a_new_waker_does_not_replace_the_old",
        file: "ticket",
        from: "(!waker.will_wake(context.waker()))",
        to: "false",
        model: "a_poll_with_another_waker_is_the_one_woken",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_second_wait_keeps_the_waker_of_the_first",
        file: "ticket",
        from: "(!waker.will_wake(context.waker()))",
        to: "false",
        model: "a_wait_out_of_time_can_be_repeated",
        sign: DEADLOCK,
    },
    Mutant {
        name: "an_answer_leaks",
        file: "ticket",
        from: "close(&shared, State::Answered(answer))",
        to: "mem::forget(Arc::clone(&shared));\n        close(&shared, State::Answered(answer))",
        model: "an_answer_to_a_leaving_client_is_dropped_once",
        sign: WRONG,
    },
    Mutant {
        name: "a_quiet_answer_forgets_who_waits",
        file: "ticket",
        from: "close(&shared, State::Answered(answer))",
        to: "drop(close(&shared, State::Answered(answer)));\n        None",
        model: "quiet_answers_arrive_before_they_are_announced",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_dropped_resolver_wakes_nobody",
        file: "ticket",
        from: "State::Abandoned)) {\n            waker.wake();",
        to: "State::Abandoned)) {\n            drop(waker);",
        model: "a_waiting_thread_learns_that_nobody_answers",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_waker_is_stored_without_looking_again",
        file: "ticket",
        from: "State::Open(waker) => {\n                *waker",
        to: "State::Open(_) => {\n                drop(state);\n                let mut state = self.0.lock();\n                \
             if !matches!(*state, State::Open(_)) { return Poll::Pending; }\n                \
             let State::Open(waker) = &mut *state else { unreachable!() };\n                *waker",
        model: "a_waiting_thread_gets_the_answer",
        sign: DEADLOCK,
    },
    Mutant {
        name: "the_consumer_sleeps_without_looking_again",
        file: "intake",
        from: "if self.queue.len() < wanted {",
        to: "if true {",
        model: "a_sleeping_consumer_gets_every_push",
        sign: DEADLOCK,
    },
    Mutant {
        name: "the_consumer_looks_again_without_a_fence",
        file: "intake",
        from: "fence(Ordering::SeqCst);\n        if self.queue.len() < wanted {",
        to: "if self.queue.len() < wanted {",
        model: "a_sleeping_consumer_gets_every_push",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_push_looks_for_a_sleeper_without_a_fence",
        file: "intake",
        from: "has a place in the queue\");\n        fence(Ordering::SeqCst);",
        to: "has a place in the queue\");",
        model: "a_sleeping_consumer_gets_every_push",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_nudge_has_no_fence",
        file: "intake",
        from: "fn nudge(&self) {\n        fence(Ordering::SeqCst);",
        to: "fn nudge(&self) {",
        model: "a_nudge_is_noticed_by_a_consumer_about_to_sleep",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_push_does_not_ring",
        file: "intake",
        from: "(wanted == GONE || self.queue.len() >= wanted)",
        to: "wanted == GONE",
        model: "a_sleeping_consumer_gets_every_push",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_push_rings_for_one_more_than_was_asked_for",
        file: "intake",
        from: "self.queue.len() >= wanted)",
        to: "self.queue.len() > wanted)",
        model: "a_consumer_that_wants_two_is_woken_for_both",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_push_rings_before_there_are_enough",
        file: "intake",
        from: "self.queue.len() >= wanted)",
        to: "self.queue.len() >= 1)",
        model: "a_consumer_that_wants_two_is_woken_for_both",
        sign: WRONG,
    },
    Mutant {
        name: "the_line_is_marked_a_step_after_room_was_looked_for",
        file: "intake",
        from: "match self.reserve(bytes, WAITING) {",
        to: "let room = self.reserve(bytes, 0);\n        self.used.fetch_or(if room == Err(Reason::Full) { WAITING } else { 0 }, \
             Ordering::AcqRel);\n        match room {",
        model: "little_room_lets_everybody_in",
        sign: DEADLOCK,
    },
    Mutant {
        name: "the_mark_is_taken_off_with_others_in_line",
        file: "intake",
        from: "if line.is_empty() {",
        to: "if true {",
        model: "little_room_lets_everybody_in",
        sign: DEADLOCK,
    },
    Mutant {
        name: "room_is_taken_without_seeing_the_place_that_was_freed",
        file: "intake",
        from: "(used, next, Ordering::AcqRel, Ordering::Relaxed)",
        to: "(used, next, Ordering::Relaxed, Ordering::Relaxed)",
        model: "a_late_push_finds_the_room_just_released",
        sign: "what is admitted has a place",
    },
    Mutant {
        name: "who_leaves_the_line_lets_nobody_in",
        file: "intake",
        from: "with smaller ones behind it.\n            self.admit_line();",
        to: "with smaller ones behind it.",
        model: "a_push_given_up_does_not_hold_up_the_next",
        sign: DEADLOCK,
    },
    Mutant {
        name: "what_goes_ahead_forgets_the_line",
        file: "intake",
        from: "compare_exchange_weak(used, used + ITEM, ",
        to: "compare_exchange_weak(used, (used & !WAITING) + ITEM, ",
        model: "what_goes_ahead_waits_for_nobody_and_nobody_is_forgotten_for_it",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_push_given_up_returns_room_that_it_may_not_have",
        file: "intake",
        from: "self.intake.leave_line(answer);",
        to: "self.intake.leave_line(answer);\n            self.intake.release(1, self.bytes);",
        model: "a_push_given_up_while_it_is_let_in_is_in_or_gone",
        sign: "released 1 items",
    },
    Mutant {
        name: "who_is_let_in_is_not_woken",
        file: "intake",
        from: "wakers.into_iter().for_each(Waker::wake);",
        to: "",
        model: "little_room_lets_everybody_in",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_close_forgets_the_line",
        file: "intake",
        from: "std::mem::take(&mut *line)",
        to: "VecDeque::<InLine<T>>::new()",
        model: "a_close_answers_everybody_and_loses_nothing",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_drained_intake_is_one_with_an_empty_queue",
        file: "intake",
        from: "self.used.load(Ordering::Acquire) == CLOSED",
        to: "self.queue.len() == 0",
        model: "a_close_answers_everybody_and_loses_nothing",
        sign: WRONG,
    },
    Mutant {
        name: "a_late_push_to_an_abandoned_intake_stays_in_it",
        file: "intake",
        from: "Err(GONE) => while self.queue.pop().is_some() {},",
        to: "Err(GONE) => {}",
        model: "an_abandoned_intake_leaves_nobody_waiting",
        sign: DEADLOCK,
    },
    Mutant {
        name: "an_abandon_looks_for_late_pushes_without_a_fence",
        file: "intake",
        from: "fence(Ordering::SeqCst);\n        while self.queue.pop()",
        to: "while self.queue.pop()",
        model: "an_abandoned_intake_leaves_nobody_waiting",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_sleeper_says_so_before_it_can_be_found",
        file: "bell",
        from: "self.sleeper.register(waker);\n        match self.state.compare_exchange(0, ASLEEP, Ordering::AcqRel, Ordering::Acquire) {",
        to: "let before = self.state.compare_exchange(0, ASLEEP, Ordering::AcqRel, Ordering::Acquire);\n        \
             self.sleeper.register(waker);\n        match before {",
        model: "a_ring_is_answered",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_sleep_takes_no_notice_of_the_ring_before_it",
        file: "bell",
        from: "Err(_) => false,",
        to: "Err(_) => true,",
        model: "a_ring_is_answered",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_ring_publishes_nothing",
        file: "bell",
        from: "self.state.fetch_or(flag, Ordering::AcqRel)",
        to: "self.state.fetch_or(flag, Ordering::Relaxed)",
        model: "what_is_left_before_a_ring_is_found_after_it",
        sign: DEADLOCK,
    },
    Mutant {
        name: "an_answer_is_a_look_and_then_a_change",
        file: "bell",
        from: "heard(self.state.swap(0, Ordering::AcqRel))",
        to: "let state = self.state.load(Ordering::Acquire);\n        self.state.store(0, Ordering::Release);\n        heard(state)",
        model: "what_is_left_before_a_ring_is_found_after_it",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_look_takes_the_ring_along",
        file: "bell",
        from: "self.state.fetch_and(RUNG, Ordering::AcqRel)",
        to: "self.state.fetch_and(0, Ordering::AcqRel)",
        model: "a_look_keeps_the_ring_for_the_next_sleep",
        sign: DEADLOCK,
    },
    Mutant {
        name: "an_advance_looks_for_waiters_without_a_fence",
        file: "watermark",
        from: "fence(Ordering::SeqCst);\n        if self.wanted",
        to: "if self.wanted",
        model: "waiters_see_the_number_they_wait_for",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_waiter_looks_again_without_a_fence",
        file: "watermark",
        from: "fence(Ordering::SeqCst);\n        let end",
        to: "let end",
        model: "waiters_see_the_number_they_wait_for",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_waiter_does_not_look_again",
        file: "watermark",
        from: "match mark.get() >= number {",
        to: "match false {",
        model: "waiters_see_the_number_they_wait_for",
        sign: DEADLOCK,
    },
    Mutant {
        name: "an_advance_publishes_nothing_but_the_number",
        file: "watermark",
        from: "self.value.store(value, Ordering::Release)",
        to: "self.value.store(value, Ordering::Relaxed)",
        model: "what_was_done_before_an_advance_is_seen_after_it",
        sign: WRONG,
    },
    Mutant {
        name: "who_gives_up_takes_the_announcement_along",
        file: "watermark",
        from: "self.mark.announce(waiting);",
        to: "self.mark.wanted.store(NOBODY, Ordering::Relaxed);",
        model: "a_wait_given_up_does_not_hide_another",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_waiter_announces_its_own_number_though_another_is_lower",
        file: "watermark",
        from: "mark.announce(&waiting);\n        fence",
        to: "mark.wanted.store(number, Ordering::Relaxed);\n        fence",
        model: "waiters_see_the_number_they_wait_for",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_waiter_does_not_see_that_it_is_closed",
        file: "watermark",
        from: "false => waiting.closed.then_some(Err(Closed)),",
        to: "false => None,",
        model: "a_close_ends_the_waits",
        sign: DEADLOCK,
    },
    Mutant {
        name: "a_close_wakes_nobody",
        file: "watermark",
        from: "all.into_values().for_each(Waker::wake);",
        to: "drop(all);",
        model: "a_close_ends_the_waits",
        sign: DEADLOCK,
    },
];

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let out = env::var("OUT_DIR").expect("cargo sets it");
    let sources =
        FILES.map(|(file, folder)| (file, read(&Path::new(&root).join(format!("../engine/src/{folder}/{file}.rs")))));
    let models = read(&Path::new(&root).join("src/models.rs"));
    let names = models.lines().filter_map(|line| line.strip_prefix("pub(crate) fn ")?.strip_suffix("() {"));
    let mut text = String::new();
    for name in names {
        assert!(MUTANTS.iter().any(|mutant| mutant.model == name), "no mutant shows that {name} can fail");
        writeln!(text, "#[test]\nfn {name}() {{ crate::sync::models::{name}(); }}").expect("a string takes all");
    }
    fs::write(Path::new(&out).join("holds.rs"), &text).expect("cargo made the directory");
    text.clear();
    for mutant in MUTANTS {
        write_mutant(&mut text, mutant, &sources, &models).expect("a string takes all");
    }
    fs::write(Path::new(&out).join("mutants.rs"), text).expect("cargo made the directory");
}

/// The file without its inner documentation, which cannot stand inside a module's braces.
fn read(path: &Path) -> String {
    println!("cargo::rerun-if-changed={}", path.display());
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().filter(|line| !line.starts_with("//!")).fold(String::new(), |text, line| text + line + "\n")
}

fn write_mutant(
    text: &mut String,
    mutant: &Mutant,
    sources: &[(&str, String)],
    models: &str,
) -> Result<(), std::fmt::Error> {
    let Mutant { name, from, to, model, sign, .. } = mutant;
    writeln!(text, "mod {name} {{\nuse crate::prims;")?;
    for (file, source) in sources {
        let changed = if *file == mutant.file {
            assert_eq!(source.matches(from).count(), 1, "{name}: {file}.rs has to hold this once: {from}");
            source.replace(from, to)
        } else {
            source.clone()
        };
        writeln!(text, "mod {file} {{\n{changed}\n}}")?;
    }
    writeln!(text, "mod models {{\n{models}\n}}")?;
    writeln!(text, "#[test]\nfn is_found() {{ super::must_fail(models::{model}, {name:?}, {sign:?}); }}\n}}")
}
