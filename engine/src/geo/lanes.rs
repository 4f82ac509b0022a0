//! Which lanes the links of this process have: a second link of one would end the first one's sessions, for ever.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::region::Region;
use crate::shared::{Shared, lock};
use crate::types::AccountId;

/// What a link has said of its lane.
pub(crate) struct ClaimedLane {
    peer: String,
    accounts: BTreeSet<AccountId>,
}

/// A lane of this region's log that no other link of this process has, while this lives.
#[must_use = "another link can have the lane once this is dropped"]
pub struct LaneClaim {
    shared: Arc<Shared>,
    number: u32,
}

impl Drop for LaneClaim {
    fn drop(&mut self) {
        lock(&self.shared.lanes).remove(&self.number);
    }
}

impl Region {
    /// Takes a lane for a link to `peer` that ships these accounts (acceptance H7).
    ///
    /// # Errors
    /// [`Exists`](ErrorKind::Exists) when another link has the lane, or ships one of the accounts to the same peer.
    pub fn claim_lane(
        &self,
        number: u32,
        peer: &str,
        accounts: impl IntoIterator<Item = AccountId>,
    ) -> Result<LaneClaim> {
        let accounts: BTreeSet<AccountId> = accounts.into_iter().collect();
        let exists = |message: String| Err(Error::new(ErrorKind::Exists, message));
        let mut lanes = lock(&self.shared.lanes);
        if let Some(known) = lanes.get(&number) {
            return exists(format!(
                "lane {number} is in use by another link of this region, to {:?}: each link needs a lane of its own",
                known.peer
            ));
        }
        for (other, known) in lanes.iter().filter(|(_, known)| known.peer == peer) {
            if let Some(account) = known.accounts.intersection(&accounts).next() {
                return exists(format!(
                    "account {} is shipped to {peer:?} by the link of lane {other} already: one lane ships an account",
                    account.0
                ));
            }
        }
        lanes.insert(number, ClaimedLane { peer: peer.to_owned(), accounts });
        drop(lanes);
        Ok(LaneClaim { shared: Arc::clone(&self.shared), number })
    }
}
