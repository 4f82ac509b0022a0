//! Which disks hold a segment: no two of a set share a fault domain or an upgrade domain (acceptance L1, L2).

use crate::error::{Error, Result};
use crate::options::{DiskConfig, Placement};

/// How many copies a whole set has.
pub(crate) const COPIES: usize = 3;
/// How many copies make a commit durable.
pub(crate) const QUORUM: usize = 2;

/// Whether these disks may hold copies of one segment together.
pub(crate) fn may_share_a_set(placement: Placement, disks: &[&DiskConfig]) -> bool {
    disks.iter().enumerate().all(|(at, disk)| {
        disks[..at].iter().all(|other| {
            let zones_fit = match placement {
                Placement::OneZone => disk.zone == other.zone,
                Placement::ThreeZones => disk.zone != other.zone,
            };
            zones_fit && disk.fault_domain != other.fault_domain && disk.upgrade_domain != other.upgrade_domain
        })
    })
}

/// The largest allowed set of up to three of the `eligible` disks that contains all of `kept`, preferring the order of
/// `eligible`. Sixteen disks make 560 sets of three at most: all are tried.
pub(crate) fn choose(placement: Placement, disks: &[DiskConfig], kept: &[usize], eligible: &[usize]) -> Vec<usize> {
    let fits = |set: &[usize]| may_share_a_set(placement, &set.iter().map(|&at| &disks[at]).collect::<Vec<_>>());
    let mut best = kept.to_vec();
    extend(&fits, &mut kept.to_vec(), eligible, &mut best);
    best
}

fn extend(fits: &impl Fn(&[usize]) -> bool, set: &mut Vec<usize>, eligible: &[usize], best: &mut Vec<usize>) {
    if set.len() > best.len() {
        best.clone_from(set);
    }
    if best.len() >= COPIES || set.len() >= COPIES {
        return;
    }
    for (at, &disk) in eligible.iter().enumerate() {
        if set.contains(&disk) {
            continue;
        }
        set.push(disk);
        if fits(set) {
            extend(fits, set, &eligible[at + 1..], best);
        }
        set.pop();
        if best.len() >= COPIES {
            return;
        }
    }
}

/// Refuses a list of disks from which no set of three can be chosen, naming what is missing.
pub(crate) fn check(placement: Placement, disks: &[DiskConfig]) -> Result<()> {
    let all: Vec<usize> = (0..disks.len()).collect();
    if choose(placement, disks, &[], &all).len() == COPIES {
        return Ok(());
    }
    let zones = match placement {
        Placement::OneZone => "in one zone",
        Placement::ThreeZones => "in three zones",
    };
    Err(Error::invalid(format!("disks: no three of them lie in different fault domains and upgrade domains {zones}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(fault: &str, upgrade: &str, zone: &str) -> DiskConfig {
        let path = format!("/{fault}{upgrade}{zone}").into();
        DiskConfig { path, fault_domain: fault.into(), upgrade_domain: upgrade.into(), zone: zone.into() }
    }

    #[test]
    fn a_set_that_shares_a_fault_domain_an_upgrade_domain_or_a_zone_is_refused() {
        let good = [disk("f1", "u1", "z"), disk("f2", "u2", "z"), disk("f3", "u3", "z")];
        assert!(check(Placement::OneZone, &good).is_ok());
        assert!(check(Placement::ThreeZones, &good).is_err());
        for bad in [disk("f1", "u3", "z"), disk("f3", "u1", "z"), disk("f3", "u3", "y")] {
            assert!(check(Placement::OneZone, &[good[0].clone(), good[1].clone(), bad]).is_err());
        }
    }

    #[test]
    fn a_set_grows_around_the_disks_that_stay() {
        let disks = [disk("f1", "u1", "z"), disk("f2", "u2", "z"), disk("f1", "u3", "z"), disk("f4", "u4", "z")];
        assert_eq!(choose(Placement::OneZone, &disks, &[0], &[1, 2, 3]), [0, 1, 3]);
        assert_eq!(choose(Placement::OneZone, &disks, &[], &[0, 2]), [0]);
    }

    #[test]
    fn zone_redundant_sets_take_three_zones() {
        let disks = [disk("a", "a", "z1"), disk("b", "b", "z1"), disk("c", "c", "z2"), disk("d", "d", "z3")];
        assert_eq!(choose(Placement::ThreeZones, &disks, &[], &[0, 1, 2, 3]), [0, 2, 3]);
    }
}
