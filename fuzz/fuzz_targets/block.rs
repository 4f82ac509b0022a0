//! Fuzz target: a block and the frames in it.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    meridian_fuzz::block(data);
});

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    meridian_fuzz::command::main(&meridian_fuzz::BLOCK)
}
