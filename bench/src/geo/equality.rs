//! Both regions opened after the job, and compared frame by frame.

use std::collections::BTreeSet;
use std::path::Path;

use meridian::{AccountId, BlockView, Lsn, PartitionId, Region, Role, Subscription};

use super::node::{disks, options, written};
use super::text;
use crate::flights::Flights;

/// What the comparison came to.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) frames: u64,
    pub(super) differ: u64,
    pub(super) partitions: u64,
    pub(super) partitions_differ: u64,
}

/// A frame: account, partition, first sequence, bytes.
type Frame = (AccountId, PartitionId, u64, Vec<u8>);

/// The frames of a region's log, one after the other.
struct Frames {
    log: Subscription,
    block: Option<BlockView>,
    next: usize,
}

impl Frames {
    fn new(region: &Region) -> Frames {
        Frames { log: region.subscribe(Lsn::ZERO), block: None, next: 0 }
    }

    /// The next data frame.
    fn next(&mut self) -> Result<Option<Frame>, String> {
        loop {
            if let Some(block) = &self.block {
                for transaction in block.transactions().skip(self.next) {
                    self.next += 1;
                    if !transaction.is_system() {
                        let (account, partition) = (transaction.account(), transaction.partition());
                        return Ok(Some((
                            account,
                            partition,
                            transaction.first_sequence(),
                            transaction.bytes().to_vec(),
                        )));
                    }
                }
            }
            match self.log.try_next().map_err(text)? {
                Some(block) => (self.block, self.next) = (Some(block), 0),
                None => return Ok(None),
            }
        }
    }
}

/// Opens both regions and compares what they hold. Loads wrote to so many partitions of each account but the flights'.
///
/// # Errors
/// A message when one cannot be opened or read.
pub(super) fn compare(west: &Path, east: &Path, partitions: u64) -> Result<Compared, String> {
    let open = |home: &Path| Region::open(options(&disks(home)), ()).map_err(text);
    let (west, east) = (open(west)?, open(east)?);
    let flights = Flights::load()?;
    // What was dropped cannot be read there.
    let copies = east.accounts().map_err(text)?.into_iter().filter(|account| account.role == Role::Secondary);
    // A partition whose records are all trimmed is in no frame: it is known from the load alone.
    let (mut accounts, mut known) = (BTreeSet::new(), BTreeSet::new());
    for copy in copies {
        accounts.insert(copy.id);
        known.extend(written(&copy.name, partitions, &flights).into_iter().map(|partition| (copy.id, partition)));
    }
    let mut compared = Compared::default();
    let (mut ours, mut theirs) = (Frames::new(&west), Frames::new(&east));
    let (mut one, mut other) = (ours.next()?, theirs.next()?);
    // Either side may have trimmed more: the common part begins where the later one does.
    let lacks = |region: &Region, frame: &Frame| {
        region.partition(frame.0, frame.1, frame.2).skip_trimmed().map_err(text).map(|first| first > frame.2)
    };
    while let (Some(left), Some(right)) = (&one, &other) {
        known.insert((left.0, left.1));
        if left == right {
            compared.frames += 1;
            (one, other) = (ours.next()?, theirs.next()?);
        } else if !accounts.contains(&left.0) || (compared.frames == 0 && lacks(&east, left)?) {
            one = ours.next()?;
        } else if compared.frames == 0 && lacks(&west, right)? {
            other = theirs.next()?;
        } else {
            compared.differ += 1;
            (one, other) = (ours.next()?, theirs.next()?);
        }
    }
    compared.differ += u64::from(one.is_some() || other.is_some());
    for (account, partition) in known.into_iter().filter(|(account, _)| accounts.contains(account)) {
        let [left, right] = [&west, &east].map(|region| region.partition_digest(account, partition).map_err(text));
        let (left, right) = (left?, right?);
        // A load draws its partitions: one that it drew on neither side was never written.
        compared.partitions += u64::from(left.1.records > 0 || right.1.records > 0);
        compared.partitions_differ += u64::from(left != right);
    }
    west.close().map_err(text)?;
    east.close().map_err(text)?;
    Ok(compared)
}
