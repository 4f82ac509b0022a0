//! Every target on stable: mutations of valid inputs, and what decoding them allocates.

use cap::Cap;
use meridian_fuzz::TARGETS;
use meridian_fuzz::command::smoke;

#[global_allocator]
static ALLOCATOR: Cap<std::alloc::System> = Cap::new(std::alloc::System, usize::MAX);

/// Inputs are at most some 60 KiB; a length that is believed before it is checked shows up as megabytes at least.
const MOST: usize = 4 << 20;

/// One test, so that what is counted is the decoders' alone.
#[test]
fn mutated_inputs_are_survived_refused_and_not_allocated_for() {
    for target in TARGETS {
        let tally = smoke(&target, 0x5EED, 20_000);
        assert!(tally.refused > 5_000, "{}: mutations do harm: {tally:?}", target.name);
        assert!(tally.accepted_restamped > 1_000, "{}: what is behind the checksum is reached: {tally:?}", target.name);
    }
    let most = ALLOCATOR.max_allocated();
    assert!(most < MOST, "decoding needed {most} bytes at one time");
}
