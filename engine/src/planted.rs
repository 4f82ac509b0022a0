//! Marks for the simulation in the real code: planted bugs and stages. Without the feature `sim` they are nothing.

/// Whether this run has the [`Bug`](crate::sim::Bug) of that name planted: always false outside the simulation.
///
/// It stands where the bug would be, so that the simulation proves that it would find it:
/// `if planted!(AckBeforeDurable) || is_durable { … }`.
#[cfg(feature = "sim")]
macro_rules! planted {
    ($bug:ident) => {
        $crate::sim::is_planted($crate::sim::Bug::$bug)
    };
}

#[cfg(not(feature = "sim"))]
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::never()
    };
}

/// What [`planted!`] is outside the simulation: gone once it is compiled.
#[cfg(not(feature = "sim"))]
pub(crate) const fn never() -> bool {
    false
}

/// Says that a [`Stage`](crate::sim::Stage) lasts until the value of this expression is dropped, so that the simulation
/// can count which faults met it: `let _stage = stage!(Seal);`.
#[cfg(feature = "sim")]
macro_rules! stage {
    ($stage:ident) => {
        $crate::sim::enter_stage($crate::sim::Stage::$stage)
    };
}

#[cfg(not(feature = "sim"))]
macro_rules! stage {
    ($stage:ident) => {
        ()
    };
}
