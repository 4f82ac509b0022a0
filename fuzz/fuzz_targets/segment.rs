//! Fuzz target: a segment header page and a seal page.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    meridian_fuzz::segment(data);
});

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    meridian_fuzz::command::main(&meridian_fuzz::SEGMENT)
}
