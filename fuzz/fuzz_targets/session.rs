//! Fuzz target: what a session's state machines do with hostile batches and acknowledgements.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    meridian_fuzz::wire::session(data);
});

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    meridian_fuzz::command::main(&meridian_fuzz::SESSION)
}
