//! Numbered, self-describing transactions, and the threads that commit them.

use std::collections::VecDeque;

use meridian::{AccountId, Ack, ClientId, ErrorKind, Lsn, PartitionId, Region, Ticket, Transaction};

/// Transactions that one writer has under way.
const WINDOW: usize = 8;

/// The records of a writer's `number`-th transaction: each says whose it is, and the rest follows from that.
pub(crate) fn records(seed: u64, writer: u64, number: u64) -> Vec<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(seed ^ (writer << 48) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let count = random.usize(1..5);
    let one = |at: usize| {
        let mut record = format!("writer {writer} number {number} record {at} of {count};").into_bytes();
        let len = if random.u8(..) < 8 { random.usize(..20_000) } else { random.usize(..1_500) };
        let head = record.len();
        record.resize(head + len, 0);
        random.fill(&mut record[head..]);
        record
    };
    (0..count).map(one).collect()
}

/// Its partition: a few of the writer's own, and one that all writers share.
pub(crate) fn partition(writer: u64, number: u64) -> PartitionId {
    if number.is_multiple_of(5) { PartitionId(0) } else { PartitionId(u128::from(1 + writer * 3 + number % 3)) }
}

/// Whether a transaction asks for all three copies at first. It can be refused, before it enters, for lack of a disk.
pub(crate) fn asks_for_all(number: u64) -> bool {
    number.is_multiple_of(3)
}

fn transaction(account: AccountId, seed: u64, writer: u64, number: u64, ack: Ack) -> Transaction {
    let transaction = Transaction::new(account, partition(writer, number)).ack(ack);
    let transaction = transaction.client(ClientId(u128::from(writer) + 1), number);
    records(seed, writer, number).into_iter().fold(transaction, Transaction::record)
}

/// One acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acked {
    pub(crate) writer: u64,
    pub(crate) number: u64,
    pub(crate) lsn: Lsn,
    pub(crate) first_sequence: u64,
}

/// Who commits what, and who is told.
pub(crate) struct Writer<'a> {
    pub(crate) region: &'a Region,
    pub(crate) account: AccountId,
    pub(crate) seed: u64,
    pub(crate) writer: u64,
    /// Told of each acknowledgement before the next is taken.
    pub(crate) acked: &'a (dyn Fn(Acked) + Sync),
    /// Told of each refusal; the transaction is sent again.
    pub(crate) refused: &'a (dyn Fn(&meridian::Error) + Sync),
    /// Whether to go on.
    pub(crate) more: &'a (dyn Fn(u64) -> bool + Sync),
}

impl Writer<'_> {
    /// Commits from `number` on, several at a time, until told to stop or the region is gone; returns why it is.
    /// A third of the transactions ask for all three copies; refused for lack of a disk, they ask for two.
    pub(crate) fn run(&self, mut number: u64) -> Option<meridian::Error> {
        let mut under_way: VecDeque<(u64, Ticket)> = VecDeque::new();
        let mut weaker = 0;
        loop {
            while under_way.len() < WINDOW && (self.more)(number) {
                let ack = if asks_for_all(number) && number > weaker { Ack::All } else { Ack::Quorum };
                match self.region.submit(transaction(self.account, self.seed, self.writer, number, ack)) {
                    Ok(ticket) => under_way.push_back((number, ticket)),
                    Err(error) => return Some(error),
                }
                number += 1;
            }
            let (sent, ticket) = under_way.pop_front()?;
            match ticket.wait() {
                Ok(receipt) => {
                    let (lsn, first_sequence) = (receipt.lsn, receipt.first_sequence);
                    (self.acked)(Acked { writer: self.writer, number: sent, lsn, first_sequence });
                }
                Err(error) => match error.kind() {
                    ErrorKind::Degraded | ErrorKind::NoSpace => {
                        (self.refused)(&error);
                        // What was sent behind it is sent again too: the client's sequence tells the two apart.
                        under_way.clear();
                        number = sent;
                        weaker = sent + 2 * WINDOW as u64;
                        std::thread::sleep(std::time::Duration::from_millis(2));
                    }
                    _ => return Some(error),
                },
            }
        }
    }
}
