//! Runs the checker on a scenario, prints what it saw, and judges it.
use stateright::{Checker, HasDiscoveries, Model, Path};

use crate::check::{ALWAYS, SOMETIMES};
use crate::rules::Flaw;
use crate::scenario::{Action, Scenario};
use crate::state::State;

/// Whether bigger runs were asked for.
pub(crate) fn large() -> bool {
    std::env::var("MERIDIAN_MODEL").is_ok_and(|size| size == "large")
}

/// Every reachable state keeps every promise, and each of `possible` is reached.
pub(crate) fn holds(scenario: Scenario, possible: &[&str]) {
    let name = scenario.name;
    let (checker, seconds) = timed(|| {
        let builder = scenario.checker().symmetry_fn(State::representative);
        // Without a counterexample the search ends only when there is nothing left.
        builder.finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join()
    });
    for property in ALWAYS {
        if let Some(path) = checker.discovery(property) {
            panic!("{name}: \"{property}\" is broken by\n{}", told(path));
        }
    }
    println!(
        "{name}: {} states up to renaming of disks, {} steps, {} deep, {seconds:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth()
    );
    assert!(checker.is_done() && checker.unique_state_count() > 100, "{name}: the search was cut short");
    for property in SOMETIMES.iter().filter(|property| possible.contains(property)) {
        assert!(checker.discovery(property).is_some(), "{name}: never reached: {property}");
    }
}

/// With the flaw the checker finds a run that breaks `promise`; the same scenario without the flaw keeps all.
pub(crate) fn caught(flaw: Flaw, promise: &'static str, mut scenario: Scenario) {
    holds(scenario.clone(), &[]);
    scenario.rules.flaw = flaw;
    broken(promise, scenario);
}

/// The checker finds a run that breaks `promise`.
pub(crate) fn broken(promise: &'static str, scenario: Scenario) {
    let (name, flaw) = (scenario.name, scenario.rules.flaw);
    let (checker, seconds) = timed(|| {
        let until = HasDiscoveries::AllOf([promise].into());
        scenario.checker().finish_when(until).spawn_bfs().join()
    });
    let states = checker.unique_state_count();
    let path =
        checker.discovery(promise).unwrap_or_else(|| panic!("{name} {flaw:?}: {states} states keep \"{promise}\""));
    let actions = path.into_actions();
    println!("{name} {flaw:?}: \"{promise}\" broken, found in {states} states, {seconds:.1} s: {actions:?}");
}

fn told(path: Path<State, Action>) -> String {
    let step = |(state, action): (State, Option<Action>)| match action {
        Some(action) => format!("{action:?}"),
        None => format!("which leaves {state:#?}"),
    };
    path.into_vec().into_iter().map(step).collect::<Vec<_>>().join("\n")
}

#[expect(clippy::disallowed_methods, reason = "how long the search took is printed, and decides nothing")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let begun = std::time::Instant::now();
    let done = work();
    (done, begun.elapsed().as_secs_f64())
}
