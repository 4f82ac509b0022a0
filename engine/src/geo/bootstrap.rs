//! Which copies a session has to make whole, from what the secondary says of itself.

use std::collections::BTreeSet;

use crate::account::Account;
use crate::geo::Anchor;
use crate::types::{AccountId, Lsn, Role};

/// What a secondary says of a lane when a session begins.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Standing {
    /// Everything before this position of the primary's log is there.
    pub position: Lsn,
    /// The history that the position is of.
    pub anchor: Anchor,
    /// Whether copies hold frames that the position does not cover.
    pub loose: bool,
    /// Accounts whose copies are being made whole.
    pub bootstrap: BTreeSet<AccountId>,
    /// Accounts whose copies were dropped.
    pub dropped: BTreeSet<AccountId>,
    /// Accounts that are not known there: the lane carries them for the first time.
    pub unknown: BTreeSet<AccountId>,
}

/// What a session has to do for a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To send what is new.
    Nothing,
    /// To say that it is to be dropped.
    Account,
    /// To compare what is there with what is here, and to send what it lacks.
    Comparison,
    /// To compare what is there with what is here. Where the copy holds the beginning of what is here, nothing more is needed.
    Check,
    /// To leave it alone: it was dropped as it was to be.
    Drop,
}

/// What a copy needs. `first` is the first retained position of the primary's log; `suspect` says that the copy was found to differ, or to
/// have a hole.
#[must_use]
pub fn need(account: &Account, standing: &Standing, first: Lsn, suspect: bool) -> Need {
    let dropped = standing.dropped.contains(&account.id);
    // What is not retained any more is lacking, or nothing was ever sent by this lane.
    let lacks = standing.position < first || standing.unknown.contains(&account.id);
    let unfinished = standing.bootstrap.contains(&account.id);
    match account.role {
        Role::Local if dropped => Need::Drop,
        Role::Local if lacks || unfinished => Need::Account,
        Role::Local => Need::Nothing,
        // A bootstrap that was cut off goes on with what the copy lacks, too.
        _ if lacks || dropped || suspect || unfinished => Need::Comparison,
        // Frames that arrived and are covered by no position may be of another history: what is sent again would be skipped.
        _ if standing.loose => Need::Check,
        _ => Need::Nothing,
    }
}
