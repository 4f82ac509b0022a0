//! Which positions are of this history of a log, and what becomes of copies of another one
//! (acceptance H6).

use meridian::geo::{Anchor, Progress};
use meridian::{AccountId, PartitionId, Region, Role, Transaction};

use crate::geo::{Pair, fill, lane, pair, ship};

#[test]
fn h6_position_after_its_anchors_block_is_no_history_trimmed_or_not() {
    let Pair { primary, account, .. } = &pair();
    for number in 0..40 {
        let transaction = Transaction::new(*account, PartitionId(1)).record(vec![number; 90_000]);
        primary.commit(transaction).unwrap();
    }
    let anchor = primary.anchor(primary.first()).unwrap();
    let (end, committed) = (primary.read(anchor.block).unwrap().end(), primary.committed());
    let is_history = |position, anchor| primary.is_history(position, anchor).unwrap();
    assert!(is_history(end, anchor));
    assert!(!is_history(end, other(anchor)), "another block at the same place");
    assert!(!is_history(committed, anchor), "the anchor says nothing of what comes after its block");
    primary.trim(committed).unwrap();
    let first = primary.first();
    assert!(end < first && first < committed, "{first}");
    // What comes before the first retained position is compared in any case.
    assert!(is_history(end, anchor));
    assert!(!is_history(first, anchor) && !is_history(committed, anchor), "a trimmed block proves nothing after it");
}

#[test]
fn h6_lane_is_void_only_where_it_stands_and_its_copies_are_hidden() {
    let Pair { primary, secondary, account, .. } = &pair();
    fill(primary, *account, 20, 100);
    primary.mark(&[*account]).unwrap();
    ship(primary, secondary, &[*account]);
    let lane = lane(primary);
    let carry = |void| secondary.carry(lane, [*account], void).unwrap().progress;
    let known = carry(None);
    assert!(known.time > 0 && role(secondary, *account) == Role::Secondary);
    // The lane has moved on, or was said to be void before.
    assert_eq!(carry(Some((known.position, other(known.anchor)))), known);
    assert_eq!(carry(Some((primary.first(), known.anchor))), known);
    assert_eq!(role(secondary, *account), Role::Secondary);
    let held = known.held;
    assert_eq!(carry(Some((known.position, known.anchor))), Progress { held, ..Progress::none(lane) });
    assert_eq!(role(secondary, *account), Role::Bootstrap, "nobody reads what may be of another history");
}

fn other(anchor: Anchor) -> Anchor {
    Anchor { checksum: !anchor.checksum, ..anchor }
}

fn role(region: &Region, account: AccountId) -> Role {
    region.accounts().unwrap().into_iter().find(|known| known.id == account).unwrap().role
}
