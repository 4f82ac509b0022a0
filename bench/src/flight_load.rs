//! The flights as a load: transaction after transaction, replay after replay, each with its client sequence.

use meridian::{AccountId, ClientId, PartitionId, Region, Transaction};

use crate::flights::Flights;

/// The account that the flights belong to.
pub(crate) const ACCOUNT: &str = "flights";
/// Clients that the transactions are dealt out to in turn, so that the engine's window of remembered sequences
/// (per client) covers everything that can be on its way.
const CLIENTS: u64 = 16;
/// How many transactions may be on their way at once: no more than the window of all clients together.
pub(crate) const MOST_OUTSTANDING: usize = 4_096;

/// The flights' account in a region that has it.
///
/// # Errors
/// A message when it has not.
pub(crate) fn account(region: &Region) -> Result<AccountId, String> {
    let accounts = region.accounts().map_err(|error| error.to_string())?;
    let ours = accounts.iter().find(|account| account.name == ACCOUNT);
    ours.map(|account| account.id).ok_or_else(|| format!("the region has no account {ACCOUNT}"))
}

/// Makes the transactions.
pub(crate) struct FlightLoad<'a> {
    flights: &'a Flights,
    account: AccountId,
    partitions: Vec<PartitionId>,
}

impl<'a> FlightLoad<'a> {
    /// The flights as transactions of `account`.
    pub(crate) fn new(flights: &'a Flights, account: AccountId) -> FlightLoad<'a> {
        let partitions = flights.partitions.iter().map(|name| PartitionId::named(name)).collect();
        FlightLoad { flights, account, partitions }
    }

    /// The transaction of this number. The same number is the same transaction, whoever sends it, so a retry is applied once.
    pub(crate) fn transaction(&self, number: u64) -> Transaction {
        let count = self.flights.transactions.len() as u64;
        let (replay, place) = ((number / count) as u32, (number % count) as usize);
        let partition = self.partitions[self.flights.transactions[place].partition];
        let client = ClientId(u128::from(number % CLIENTS) + 1);
        let transaction = Transaction::new(self.account, partition).client(client, number / CLIENTS + 1);
        self.flights.records(replay, place).into_iter().fold(transaction, Transaction::record)
    }

    /// How many records it has.
    pub(crate) fn records(&self, number: u64) -> u64 {
        let count = self.flights.transactions.len() as u64;
        self.flights.transactions[(number % count) as usize].flights.len() as u64
    }
}
