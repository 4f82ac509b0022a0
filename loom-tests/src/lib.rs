//! Loom models of the lock-free pieces of the engine: the very files of `engine/src/sync`, on loom's primitives.
//!
//! `prims` is the door through which those files reach atomics, locks and thread parking; this crate has its own.
//! So they are explored without `--cfg loom`, which other libraries of the workspace would take to be meant for them.
//! `models` says what must hold in every interleaving. `build.rs` writes the tests: one that each model `holds`, and one for each
//! of the `mutants`, copies of the files with one fault, that its model finds it.

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
    include!(concat!(env!("OUT_DIR"), "/holds.rs"));
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
