//! The real data set: flights from New York as transactions of compact records.
//!
//! One flight is one record; the flights of one origin and carrier in one scheduled hour are one transaction; origin and
//! carrier are the partition. `bench/data/PROVENANCE.md` says where the data comes from.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use flate2::read::GzDecoder;

/// The flights of January and February 2013.
const FLIGHTS: &[u8] = include_bytes!("../data/flights_2013_01-02.csv.gz");
/// Carrier codes and names.
const AIRLINES: &[u8] = include_bytes!("../data/airlines.csv");
/// How a number that was not available is stored.
const MISSING: i16 = i16::MIN;
/// Bytes of a record before its tail number.
const FIXED: usize = 40;

/// One flight. Times are local, as hour × 100 + minute; delays are minutes; `None` is the data's `NA`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flight {
    /// The month of 2013.
    pub(crate) month: u8,
    /// The day of the month.
    pub(crate) day: u8,
    /// When it was to leave.
    pub(crate) scheduled: i16,
    /// When it left; `None`: it never did.
    pub(crate) departed: Option<i16>,
    /// Minutes late at departure; negative is early.
    pub(crate) departure_delay: Option<i16>,
    /// When it was to arrive.
    pub(crate) scheduled_arrival: i16,
    /// When it arrived.
    pub(crate) arrived: Option<i16>,
    /// Minutes late at arrival.
    pub(crate) arrival_delay: Option<i16>,
    /// Minutes in the air.
    pub(crate) air_time: Option<i16>,
    /// Miles.
    pub(crate) distance: i16,
    /// The flight's number.
    pub(crate) number: i16,
    /// The carrier's code, two letters.
    pub(crate) carrier: [u8; 2],
    /// The airport it left, three letters.
    pub(crate) origin: [u8; 3],
    /// The airport it went to.
    pub(crate) destination: [u8; 3],
    /// The aircraft's registration; empty if unknown.
    pub(crate) tail: String,
}

/// Which record of which transaction of which replay a stored record is. Written in front of each flight, so that a
/// verifier can tell every record from every other and half a transaction from a whole one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RecordId {
    /// How often the data set had been committed before.
    pub(crate) replay: u32,
    /// The transaction's place in the data set.
    pub(crate) transaction: u32,
    /// The record's place in the transaction.
    pub(crate) index: u16,
    /// Records of the transaction.
    pub(crate) count: u16,
}

/// Flights that are committed together.
#[derive(Clone, Debug)]
pub(crate) struct FlightTransaction {
    /// The place of its partition in [`Flights::partitions`].
    pub(crate) partition: usize,
    /// Its flights.
    pub(crate) flights: Vec<Flight>,
}

/// The whole data set.
pub(crate) struct Flights {
    /// Names of the partitions: origin/carrier.
    pub(crate) partitions: Vec<String>,
    /// Every transaction, by scheduled hour.
    pub(crate) transactions: Vec<FlightTransaction>,
    /// Carrier names by code.
    pub(crate) airlines: BTreeMap<String, String>,
}

impl Flights {
    /// Reads the data set that is built into this program.
    ///
    /// # Errors
    /// A message when the data does not have the shape it should (a damaged checkout).
    pub(crate) fn load() -> Result<Flights, String> {
        let mut groups: BTreeMap<(String, String, String), Vec<Flight>> = BTreeMap::new();
        let mut reader = csv::Reader::from_reader(GzDecoder::new(FLIGHTS));
        let columns = Columns::find(reader.headers().map_err(text)?)?;
        for (row, line) in reader.records().enumerate() {
            let line = line.map_err(text)?;
            let flight =
                columns.flight(&line).ok_or_else(|| format!("row {} of the flights is not a flight", row + 2))?;
            let [hour, origin, carrier] = columns.group.map(|column| line[column].to_string());
            groups.entry((hour, origin, carrier)).or_default().push(flight);
        }
        let mut partitions: Vec<String> =
            groups.keys().map(|(_, origin, carrier)| format!("{origin}/{carrier}")).collect();
        partitions.sort();
        partitions.dedup();
        let transactions = groups.into_iter().map(|((_, origin, carrier), flights)| {
            let name = format!("{origin}/{carrier}");
            let partition = partitions.binary_search(&name).map_err(|_| format!("{name} is no partition"))?;
            Ok(FlightTransaction { partition, flights })
        });
        Ok(Flights { transactions: transactions.collect::<Result<_, String>>()?, airlines: airlines()?, partitions })
    }

    /// The transaction's records as they are committed in replay `replay`.
    pub(crate) fn records(&self, replay: u32, transaction: usize) -> Vec<Bytes> {
        let flights = &self.transactions[transaction].flights;
        let id = |index: usize| RecordId {
            replay,
            transaction: transaction as u32,
            index: index as u16,
            count: flights.len() as u16,
        };
        flights.iter().enumerate().map(|(index, flight)| encode(id(index), flight)).collect()
    }

    /// Records in one replay.
    pub(crate) fn record_count(&self) -> usize {
        self.transactions.iter().map(|transaction| transaction.flights.len()).sum()
    }
}

/// The text of any error.
fn text(error: impl fmt::Display) -> String {
    error.to_string()
}

fn airlines() -> Result<BTreeMap<String, String>, String> {
    let mut reader = csv::Reader::from_reader(AIRLINES);
    let rows = reader.records().map(|row| row.map(|row| (row[0].to_string(), row[1].to_string())).map_err(text));
    rows.collect()
}

/// Where the columns are.
struct Columns {
    numbers: [usize; 11],
    texts: [usize; 4],
    group: [usize; 3],
}

impl Columns {
    fn find(headers: &csv::StringRecord) -> Result<Columns, String> {
        let find = |name: &str| {
            headers.iter().position(|header| header == name).ok_or_else(|| format!("the flights lack a column {name}"))
        };
        Ok(Columns {
            numbers: [
                find("month")?,
                find("day")?,
                find("sched_dep_time")?,
                find("dep_time")?,
                find("dep_delay")?,
                find("sched_arr_time")?,
                find("arr_time")?,
                find("arr_delay")?,
                find("air_time")?,
                find("distance")?,
                find("flight")?,
            ],
            texts: [find("carrier")?, find("origin")?, find("dest")?, find("tailnum")?],
            group: [find("time_hour")?, find("origin")?, find("carrier")?],
        })
    }

    fn flight(&self, line: &csv::StringRecord) -> Option<Flight> {
        let mut numbers = [None; 11];
        for (number, column) in numbers.iter_mut().zip(self.numbers) {
            let field = line.get(column)?;
            *number = if field == "NA" { None } else { Some(field.parse::<i16>().ok()?) };
        }
        let [month, day, scheduled, departed, departure_delay, rest @ ..] = numbers;
        let [scheduled_arrival, arrived, arrival_delay, air_time, distance, number] = rest;
        let [carrier, origin, destination, tail] = self.texts.map(|column| line.get(column).unwrap_or_default());
        Some(Flight {
            month: u8::try_from(month?).ok()?,
            day: u8::try_from(day?).ok()?,
            scheduled: scheduled?,
            departed,
            departure_delay,
            scheduled_arrival: scheduled_arrival?,
            arrived,
            arrival_delay,
            air_time,
            distance: distance?,
            number: number?,
            carrier: carrier.as_bytes().try_into().ok()?,
            origin: origin.as_bytes().try_into().ok()?,
            destination: destination.as_bytes().try_into().ok()?,
            tail: if tail == "NA" { String::new() } else { tail.to_string() },
        })
    }
}

/// A flight as a stored record: its identity, 18 numbers and letters of fixed size, the tail number.
pub(crate) fn encode(id: RecordId, flight: &Flight) -> Bytes {
    let mut out = Vec::with_capacity(FIXED + flight.tail.len());
    out.extend_from_slice(&id.replay.to_le_bytes());
    out.extend_from_slice(&id.transaction.to_le_bytes());
    out.extend_from_slice(&id.index.to_le_bytes());
    out.extend_from_slice(&id.count.to_le_bytes());
    out.extend_from_slice(&[flight.month, flight.day]);
    let or_missing = |number: Option<i16>| number.unwrap_or(MISSING);
    let numbers = [
        flight.scheduled,
        or_missing(flight.departed),
        or_missing(flight.departure_delay),
        flight.scheduled_arrival,
        or_missing(flight.arrived),
        or_missing(flight.arrival_delay),
        or_missing(flight.air_time),
        flight.distance,
        flight.number,
    ];
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&flight.carrier);
    out.extend_from_slice(&flight.origin);
    out.extend_from_slice(&flight.destination);
    out.extend_from_slice(flight.tail.as_bytes());
    Bytes::from(out)
}

/// The record's identity alone; `None` when it is too short to be one of ours.
pub(crate) fn identity(record: &[u8]) -> Option<RecordId> {
    let four = |at: usize| record.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let two = |at: usize| record.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes);
    Some(RecordId { replay: four(0)?, transaction: four(4)?, index: two(8)?, count: two(10)? })
}

/// Minutes late at departure, straight from a stored record: `Some(None)` is a cancelled flight.
pub(crate) fn departure_delay(record: &[u8]) -> Option<Option<i16>> {
    let delay = i16::from_le_bytes(record.get(18..20)?.try_into().ok()?);
    Some((delay != MISSING).then_some(delay))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_set_is_whole() {
        let flights = Flights::load().expect("built in");
        assert_eq!(flights.record_count(), 51_955);
        assert_eq!(flights.transactions.len(), 18_241);
        assert_eq!(flights.partitions.len(), 33);
        assert_eq!(flights.airlines["UA"], "United Air Lines Inc.");
    }

    #[test]
    fn a_record_says_which_it_is_and_how_late() {
        let flights = Flights::load().expect("built in");
        let (place, transaction) = flights
            .transactions
            .iter()
            .enumerate()
            .find(|(_, transaction)| transaction.flights.len() > 3 && transaction.flights[2].departed.is_none())
            .expect("a cancelled flight");
        let records = flights.records(7, place);
        let id = RecordId { replay: 7, transaction: place as u32, index: 2, count: transaction.flights.len() as u16 };
        assert_eq!(identity(&records[2]), Some(id));
        for (flight, record) in transaction.flights.iter().zip(&records) {
            assert_eq!(departure_delay(record), Some(flight.departure_delay));
        }
        assert_eq!(identity(&records[2][..11]), None);
    }

    #[test]
    fn different_flights_are_different_records() {
        let flights = Flights::load().expect("built in");
        let flight = &flights.transactions[0].flights[0];
        let id = RecordId { replay: 0, transaction: 0, index: 0, count: 1 };
        let other = Flight { arrival_delay: flight.arrival_delay.map(|delay| delay + 1), ..flight.clone() };
        assert_ne!(encode(id, flight), encode(id, &other));
        assert!(encode(id, flight).len() <= FIXED + 6);
    }
}
