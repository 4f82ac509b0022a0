//! Fuzz target: a system record.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    meridian_fuzz::system(data);
});

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    meridian_fuzz::command::main(&meridian_fuzz::SYSTEM)
}
