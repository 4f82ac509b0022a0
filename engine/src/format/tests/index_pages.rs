//! The directory and the pages of an index: whatever is looked for lies in the page that the directory names.

use super::*;

/// Partitions of two accounts, of which every hundredth has more postings than a page.
fn large_index() -> SegmentIndex {
    let (mut partitions, mut postings) = (Vec::new(), Vec::new());
    for number in 0..1_000u32 {
        let count = if number % 100 == 50 { 3_000 } else { number % 4 };
        let first_posting = postings.len() as u32;
        let sequence = |nth: u32| 100 + u64::from(nth) * 2;
        partitions.push(IndexPartition {
            account: AccountId(u64::from(number / 700)),
            partition: PartitionId(u128::from(number) * 3),
            first_sequence: 100,
            next_sequence: sequence(count),
            first_posting,
            postings: count,
            digest: Digest { sum: u128::from(number), records: u64::from(count) * 2 },
        });
        postings.extend((0..count).map(|nth| Posting { offset: DATA_START + nth, sequence: sequence(nth) }));
    }
    SegmentIndex { partitions, postings, ..index() }
}

fn pages(index: &SegmentIndex) -> (IndexDirectory, Vec<IndexPage>, Vec<u8>) {
    let bytes = index.encode();
    let len = peek_directory_len(&bytes).expect("a directory");
    let directory = IndexDirectory::decode(&bytes[..len]).expect("a directory");
    let pages = (0..directory.fences.len()).map(|at| directory.page(at, &bytes[directory.range(at)]).expect("a page"));
    (directory.clone(), pages.collect(), bytes)
}

#[test]
fn page_named_by_the_directory_has_what_a_lookup_asks_for() {
    let index = large_index();
    let (directory, pages, bytes) = pages(&index);
    assert!(pages.len() > 10 && SegmentIndex::decode(&bytes) == Ok(index.clone()));
    for held in &index.partitions {
        let (account, partition) = (held.account, held.partition);
        let its = &index.postings[held.first_posting as usize..][..held.postings as usize];
        let page = |sequence| &pages[directory.page_of(account, partition, sequence).expect("a page")];
        let found = page(u64::MAX).partition(account, partition).expect("the partition");
        let whole = |found: &IndexPartition| (found.first_sequence, found.next_sequence, found.digest);
        assert_eq!(whole(found), whole(held));
        // From any record on, the postings come page by page, none twice and none left out.
        for from in [0, 100, 101, 2_000, held.next_sequence.saturating_sub(1)] {
            let (mut next, mut found) = (from, Vec::new());
            while let Some(last) = {
                let more = page(next).postings(account, partition, next, 700);
                found.extend_from_slice(more);
                more.last()
            } {
                next = last.sequence + 2;
            }
            let skipped = its.partition_point(|posting| posting.sequence <= from).saturating_sub(1);
            let expected = if from < held.next_sequence { &its[skipped..] } else { &[] };
            assert_eq!(found, expected, "{partition:?} from {from}");
        }
        let beside = PartitionId(partition.0 + 1);
        let other = directory.page_of(account, beside, 0).and_then(|at| pages[at].partition(account, beside));
        assert_eq!(other, None);
    }
    assert_eq!(directory.page_of(AccountId(0), PartitionId(0), 0), Some(0));
    for account in 0..3 {
        let its = directory.pages_of(AccountId(account)).flat_map(|at| &pages[at].partitions);
        let mut its: Vec<u128> = its.filter(|held| held.account.0 == account).map(|held| held.partition.0).collect();
        its.dedup();
        let all = index.partitions.iter().filter(|held| held.account.0 == account).map(|held| held.partition.0);
        assert_eq!(its, all.collect::<Vec<_>>());
    }
}

#[test]
fn flipped_bit_of_a_page_and_a_page_in_the_wrong_place_are_refused() {
    let (directory, pages, bytes) = pages(&large_index());
    let range = directory.range(3);
    for bit in (0..range.len() * 8).step_by(101) {
        let mut page = bytes[range.clone()].to_vec();
        page[bit / 8] ^= 1 << (bit % 8);
        refused(directory.page(3, &page), "index page: checksum");
    }
    refused(directory.page(4, &bytes[range.clone()]), "index page: checksum");
    refused(directory.page(3, &bytes[range.start..range.end - 1]), "index page: length");
    let mut all = bytes.clone();
    all.copy_within(directory.range(3), directory.range(4).start);
    refused(SegmentIndex::decode(&all), "index page: checksum");
    let last = directory.range(pages.len() - 1).end;
    refused(SegmentIndex::decode(&bytes[..last - 1]), "bytes of all its parts");
    refused(SegmentIndex::decode(&bytes[..last + 1]), "bytes of all its parts");
}

#[test]
fn page_that_contradicts_itself_is_refused() {
    let (directory, _, bytes) = pages(&index());
    let decode = |change: &dyn Fn(&mut [u8])| {
        let mut page = bytes[directory.range(0)].to_vec();
        change(&mut page);
        IndexPage::decode(&page)
    };
    let (partitions, postings) = (3, 3);
    let row = |number: usize| 8 + number * 68;
    let (offsets, sequences) = (row(partitions), row(partitions) + postings * 4);
    assert_eq!(decode(&|_| {}).map(|page| (page.partitions.len(), page.postings.len())), Ok((partitions, postings)));
    refused(decode(&|page| page[0..4].fill(0xFF)), "counts beyond");
    refused(decode(&|page| page[4..8].fill(0xFF)), "counts beyond");
    refused(decode(&|page| page[0] = 2), "padding");
    refused(decode(&|page| page[4] = 2), "padding");
    refused(decode(&|page| page[row(0) + 64] = 3), "postings are not there");
    refused(decode(&|page| page[row(2) + 64] = 1), "postings are not there");
    refused(decode(&|page| page[row(1) + 64] = 0), "postings of all partitions");
    refused(decode(&|page| page[row(0) + 16] = 9), "partitions ascend");
    refused(decode(&|page| page[offsets..offsets + 4].fill(0)), "before the first block");
    refused(decode(&|page| page[sequences..sequences + 8].fill(0)), "sequences ascend");
    refused(IndexPage::decode(&[0; 7]), "bytes for a header");
}
