//! A model of commit, recovery and seal under corruption, explored exhaustively for small sizes (docs/TESTING.md).
//!
//! `MERIDIAN_MODEL=large` explores bigger runs.
#[cfg(test)]
mod cases;
#[cfg(test)]
mod check;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod explore;
#[cfg(test)]
mod holds;
#[cfg(test)]
mod process;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod scenario;
#[cfg(test)]
mod state;
#[cfg(test)]
mod wrong;
