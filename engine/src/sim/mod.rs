//! The simulated disks, clock and chance: the real engine runs on them, deterministically, thousands of schedules a second.
//!
//! A [`World`] is the hardware: it outlives every process. A [`SimDriver`] is one process's hold on it; dropping the
//! driver, or [`World::crash`], is that process's death: each operation then in flight lands, fails to land, or lands in
//! some of its sectors. One seed gives one run, bit for bit; [`World::digest`] is the proof.

mod backups;
#[cfg(test)]
mod bounds;
mod bugs;
mod clients;
mod driver;
mod effects;
#[cfg(test)]
mod endings;
mod fault;
mod faults;
#[cfg(test)]
mod hangs;
#[cfg(test)]
mod harmed;
mod harness;
mod host;
mod life;
mod link;
#[cfg(test)]
mod making;
mod medium;
mod oracle;
mod pair;
mod refusal;
#[cfg(test)]
mod scripts;
mod state;
#[cfg(test)]
mod tests;
mod whole;
mod world;

pub use bugs::{Bug, Stage, plant, reached};
#[allow(unused_imports, reason = "through the macros `planted!` and `stage!`")]
pub(crate) use bugs::{enter_stage, is_planted};
pub use driver::SimDriver;
pub use fault::{Arm, ArmedFault, Condition, FaultKind, Fired, OpKind};
pub use harness::{Cells, Outcome, Schedule};
pub use medium::Image;
pub use pair::{PairOutcome, PairSchedule};
pub use refusal::{Refusal, Refused};
pub use world::{Latency, World, WorldOptions};
