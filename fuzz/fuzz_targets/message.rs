//! Fuzz target: a message of the geo link.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    meridian_fuzz::wire::message(data);
});

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    meridian_fuzz::command::main(&meridian_fuzz::MESSAGE)
}
