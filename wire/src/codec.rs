//! Messages as bytes (docs/PROTOCOL.md draws them): a fixed header, the fields, and for a batch the frames behind them.
//!
//! Decoders take bytes from anywhere: they never panic, and no length is believed before it is checked.

use std::collections::BTreeSet;

use bytes::{Buf, BufMut, Bytes};
use meridian::format::{decode_account, encode_account};
use meridian::geo::{
    Acknowledgement, Anchor, Batch, Delivered, Digest, Fingerprint, Holding, Lane, Mark, Restart, Standing,
};
use meridian::{AccountId, LogId, Lsn, PartitionId};
use xxhash_rust::xxh3::Xxh3Default;

use crate::error::RefusalKind;

/// The bytes of a message before its fields.
pub const HEADER: usize = 32;
/// The most bytes of a message's fields: a mark of all the accounts that one can have, and room beside.
pub const MOST_FIELDS: usize = (2 << 20) + 4096;
/// The most bytes of fields from a peer that has not said who it is.
pub const MOST_FIELDS_BEFORE_HELLO: usize = 4096;
/// The most bytes of a name.
pub(crate) const MOST_NAME: usize = 1024;
const MAGIC: u32 = 0x4e44_524d; // "MRDN"
const VERSION: u8 = 1;
const COMPRESSED: u8 = 1;
const AT_CHECKSUM: usize = 24;

/// Why bytes were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

type Result<T> = std::result::Result<T, Malformed>;

/// Who wants to send, to whom, and which log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The nonce of the challenge that it answers.
    pub challenge: u128,
    /// The sender's own.
    pub nonce: u128,
    /// The cluster that both belong to.
    pub cluster: String,
    /// The sender's region.
    pub from: String,
    /// The receiver's region.
    pub to: String,
    /// The lane that is sent.
    pub lane: Lane,
    /// A number of the link's own: its sessions follow one another, those of two links do not.
    pub link: u128,
}

/// Where to begin, and how much may be on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The hello's nonce.
    pub nonce: u128,
    /// The last sync time here.
    pub time: u64,
    /// Bytes of frames that may be on their way.
    pub window: u64,
    /// How the lane and its accounts stand here.
    pub standing: Standing,
}

/// What a lane carries.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Carry {
    /// The accounts, ascending.
    pub accounts: Vec<AccountId>,
    /// The position of an earlier welcome that is of another history of the sender's log: the receiver forgets it.
    pub void: Option<(Lsn, Anchor)>,
}

/// A question for what the receiver holds of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The account.
    pub account: AccountId,
    /// Only of partitions behind this one.
    pub after: Option<PartitionId>,
}

/// A question for the transactions of a partition that the receiver retains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The account.
    pub account: AccountId,
    /// The partition.
    pub partition: PartitionId,
    /// Of its records those from this sequence on.
    pub from: u64,
}

/// A message of either side.
#[derive(Clone, Debug)]
pub enum Message {
    /// The listener's first word: a number that was never used before.
    Challenge(u128),
    /// The sender's first word.
    Hello(Hello),
    /// The accounts that the lane carries, after the hello.
    Carry(Carry),
    /// The session begins.
    Welcome(Welcome),
    /// The listener cannot go on, and says why.
    Refuse(RefusalKind, String),
    /// What the log has for the secondary.
    Batch(Delivered),
    /// How far the secondary has it, durably.
    Acknowledgement(Acknowledgement),
    /// Are you there? Any number.
    Ping(u64),
    /// Yes: the ping's number.
    Pong(u64),
    /// What is there of an account?
    Ask(Ask),
    /// That, ascending by partition; fewer than [`MOST_HOLDINGS`] are the last.
    Holdings(Vec<Holding>),
    /// Which transactions are there of a partition?
    Trace(Trace),
    /// Those, ascending; fewer than [`MOST_FINGERPRINTS`] are the last.
    Fingerprints(Vec<Fingerprint>),
}

/// What stands before a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    kind: u8,
    compressed: bool,
    /// Bytes of the fields.
    pub fields: usize,
    /// Bytes of the frames as sent.
    pub body: usize,
    /// Bytes of the frames as they are: a claim until they were decompressed.
    pub raw: usize,
    checksum: u64,
}

impl Header {
    /// Reads a header. `most_fields` and `most_body` are what the reader is ready to hold.
    ///
    /// # Errors
    /// When it is not one, or announces more.
    pub fn decode(bytes: &[u8; HEADER], most_fields: usize, most_body: usize) -> Result<Header> {
        let mut rest = &bytes[..];
        let (magic, version) = (rest.get_u32_le(), rest.get_u8());
        let (kind, flags, reserved) = (rest.get_u8(), rest.get_u8(), rest.get_u8());
        let [fields, body, raw] = [(); 3].map(|()| rest.get_u32_le() as usize);
        let (zero, checksum) = (rest.get_u32_le(), rest.get_u64_le());
        check(magic == MAGIC, "header: magic")?;
        check(version == VERSION, "header: version")?;
        check(reserved == 0 && zero == 0 && flags & !COMPRESSED == 0, "header: reserved")?;
        check(fields <= most_fields, "header: more fields than accepted")?;
        check(body <= most_body && raw <= most_body, "header: a larger body than accepted")?;
        let compressed = flags == COMPRESSED;
        check(kind == BATCH || (body == 0 && raw == 0), "header: a body behind a message without one")?;
        check(if compressed { body < raw } else { body == raw }, "header: lengths of the body")?;
        Ok(Header { kind, compressed, fields, body, raw, checksum })
    }

    /// Whether the body has to be decompressed.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        self.compressed
    }

    fn encode(&self, out: &mut [u8]) {
        let mut rest = &mut out[..HEADER];
        rest.put_u32_le(MAGIC);
        rest.put_slice(&[VERSION, self.kind, u8::from(self.compressed), 0]);
        for length in [self.fields, self.body, self.raw] {
            rest.put_u32_le(length as u32);
        }
        rest.put_u32_le(0);
        rest.put_u64_le(self.checksum);
    }
}

const CHALLENGE: u8 = 1;
const HELLO: u8 = 2;
const WELCOME: u8 = 3;
const REFUSE: u8 = 4;
const BATCH: u8 = 5;
const ACKNOWLEDGEMENT: u8 = 6;
const PING: u8 = 7;
const PONG: u8 = 8;
const ASK: u8 = 9;
const HOLDINGS: u8 = 10;
const CARRY: u8 = 11;
const TRACE: u8 = 12;
const FINGERPRINTS: u8 = 13;
const HOLDING: usize = 48;
const FINGERPRINT: usize = 20;
/// The most transactions that one answer tells of.
pub const MOST_FINGERPRINTS: usize = 16_384;
/// The most partitions that one answer tells of.
pub const MOST_HOLDINGS: usize = 16_384;

impl Message {
    /// The whole message.
    ///
    /// # Panics
    /// For a batch: see [`encode_batch`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        let kind = match self {
            Message::Challenge(nonce) => {
                out.put_u128_le(*nonce);
                CHALLENGE
            }
            Message::Hello(hello) => {
                put_hello(&mut out, hello);
                HELLO
            }
            Message::Welcome(welcome) => {
                out.put_u128_le(welcome.nonce);
                let Standing { position, anchor, loose, bootstrap, dropped, unknown } = &welcome.standing;
                out.put_u64_le(position.0);
                put_anchor(&mut out, *anchor);
                out.put_u8(u8::from(*loose));
                out.put_u64_le(welcome.time);
                out.put_u64_le(welcome.window);
                [bootstrap, dropped, unknown].into_iter().for_each(|set| put_accounts(&mut out, set));
                WELCOME
            }
            Message::Carry(carry) => {
                put_carry(&mut out, carry);
                CARRY
            }
            Message::Refuse(kind, message) => {
                out.put_u16_le(kind.code());
                put_text(&mut out, clip(message));
                REFUSE
            }
            Message::Acknowledgement(ack) => {
                out.put_u64_le(ack.number);
                out.put_u64_le(ack.position.0);
                out.put_u64_le(ack.time);
                put_accounts(&mut out, &ack.differ);
                ACKNOWLEDGEMENT
            }
            Message::Ping(number) => {
                out.put_u64_le(*number);
                PING
            }
            Message::Pong(number) => {
                out.put_u64_le(*number);
                PONG
            }
            Message::Ask(ask) => {
                out.put_u64_le(ask.account.0);
                out.put_u8(u8::from(ask.after.is_some()));
                out.put_u128_le(ask.after.map_or(0, |after| after.0));
                ASK
            }
            Message::Holdings(holdings) => {
                put_holdings(&mut out, holdings);
                HOLDINGS
            }
            Message::Trace(Trace { account, partition, from }) => {
                out.put_u64_le(account.0);
                out.put_u128_le(partition.0);
                out.put_u64_le(*from);
                TRACE
            }
            Message::Fingerprints(fingerprints) => {
                put_fingerprints(&mut out, fingerprints);
                FINGERPRINTS
            }
            Message::Batch(_) => unreachable!("batches are encoded without their frames"),
        };
        finish(out, kind, (0, 0), false)
    }

    /// Reads a message behind its header; `body` is decompressed.
    ///
    /// # Errors
    /// When it is not exactly one message: checksum, kind, lengths, names, order.
    pub fn decode(header: &Header, fields: &[u8], body: Bytes) -> Result<Message> {
        check(fields.len() == header.fields && body.len() == header.raw, "message: length")?;
        check(checksum(header, fields) == header.checksum, "message: checksum")?;
        let mut rest = fields;
        let message = match header.kind {
            CHALLENGE => Message::Challenge(wide(&mut rest)?),
            HELLO => Message::Hello(hello(&mut rest)?),
            WELCOME => {
                let (nonce, position) = (wide(&mut rest)?, Lsn(long(&mut rest)?));
                let (anchor, loose) = (anchor(&mut rest)?, flag(&mut rest)?);
                let (time, window) = (long(&mut rest)?, long(&mut rest)?);
                let mut set = || accounts(&mut rest).map(BTreeSet::from_iter);
                let (bootstrap, dropped, unknown) = (set()?, set()?, set()?);
                let standing = Standing { position, anchor, loose, bootstrap, dropped, unknown };
                Message::Welcome(Welcome { nonce, time, window, standing })
            }
            CARRY => {
                let (given, position, anchor) = (flag(&mut rest)?, Lsn(long(&mut rest)?), anchor(&mut rest)?);
                let void = Some((position, anchor)).filter(|_| given);
                Message::Carry(Carry { accounts: accounts(&mut rest)?, void })
            }
            REFUSE => {
                let code = rest.try_get_u16_le().map_err(|_| SHORT)?;
                Message::Refuse(RefusalKind::from_code(code), text(&mut rest)?)
            }
            BATCH => Message::Batch(delivered(&mut rest, body)?),
            ACKNOWLEDGEMENT => Message::Acknowledgement(Acknowledgement {
                number: long(&mut rest)?,
                position: Lsn(long(&mut rest)?),
                time: long(&mut rest)?,
                differ: accounts(&mut rest)?,
            }),
            PING => Message::Ping(long(&mut rest)?),
            PONG => Message::Pong(long(&mut rest)?),
            ASK => {
                let (account, behind) = (AccountId(long(&mut rest)?), flag(&mut rest)?);
                let after = Some(PartitionId(wide(&mut rest)?)).filter(|_| behind);
                Message::Ask(Ask { account, after })
            }
            HOLDINGS => {
                let held = holdings(&mut rest)?;
                check(held.is_sorted_by(|one, next| one.partition < next.partition), "message: partitions ascend")?;
                Message::Holdings(held)
            }
            TRACE => {
                let account = AccountId(long(&mut rest)?);
                let partition = PartitionId(wide(&mut rest)?);
                Message::Trace(Trace { account, partition, from: long(&mut rest)? })
            }
            FINGERPRINTS => Message::Fingerprints(fingerprints(&mut rest)?),
            _ => return Err(Malformed("header: kind")),
        };
        check(rest.is_empty(), "message: bytes behind its fields")?;
        Ok(message)
    }
}

/// Header and fields of a batch whose frames are sent as they are, or as `compressed` bytes.
///
/// # Panics
/// When `compressed` is not smaller than the frames.
#[must_use]
pub fn encode_batch(batch: &Batch, compressed: Option<usize>) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    out.put_u64_le(batch.number);
    out.put_u64_le(batch.position.0);
    put_anchor(&mut out, batch.anchor);
    match &batch.account {
        None => out.put_u8(0),
        Some(account) => {
            out.put_u8(1);
            let record = encode_account(account);
            out.put_u16_le(record.len() as u16);
            out.put_slice(&record);
        }
    }
    match &batch.restart {
        None => out.put_u8(0),
        Some(restart) => {
            out.put_u8(1);
            out.put_u64_le(restart.account.0);
            put_holdings(&mut out, &restart.partitions);
        }
    }
    match &batch.mark {
        None => out.put_u8(0),
        Some(mark) => {
            out.put_u8(1);
            out.put_u64_le(mark.time);
            out.put_u32_le(mark.accounts.len() as u32);
            for (account, digest) in &mark.accounts {
                out.put_u64_le(account.0);
                out.put_u64_le(digest.records);
                out.put_u128_le(digest.sum);
            }
        }
    }
    let body = compressed.unwrap_or(batch.bytes);
    assert!(compressed.is_none_or(|len| len < batch.bytes), "what does not get smaller is sent as it is");
    finish(out, BATCH, (body, batch.bytes), compressed.is_some())
}

fn finish(mut out: Vec<u8>, kind: u8, (body, raw): (usize, usize), compressed: bool) -> Vec<u8> {
    let fields = out.len() - HEADER;
    debug_assert!(fields <= MOST_FIELDS, "a message of ours fits");
    let mut header = Header { kind, compressed, fields, body, raw, checksum: 0 };
    header.checksum = checksum(&header, &out[HEADER..]);
    header.encode(&mut out);
    out
}

/// Of the header up to here, and the fields. Frames have checksums of their own, which whoever imports them checks.
fn checksum(header: &Header, fields: &[u8]) -> u64 {
    let mut start = [0; HEADER];
    header.encode(&mut start);
    let mut hash = Xxh3Default::new();
    hash.update(&start[..AT_CHECKSUM]);
    hash.update(fields);
    hash.digest()
}

fn check(right: bool, what: &'static str) -> Result<()> {
    if right { Ok(()) } else { Err(Malformed(what)) }
}

const SHORT: Malformed = Malformed("message: too few bytes");

fn wide(rest: &mut &[u8]) -> Result<u128> {
    rest.try_get_u128_le().map_err(|_| SHORT)
}

fn long(rest: &mut &[u8]) -> Result<u64> {
    rest.try_get_u64_le().map_err(|_| SHORT)
}

fn flag(rest: &mut &[u8]) -> Result<bool> {
    match rest.try_get_u8() {
        Ok(0) => Ok(false),
        Ok(1) => Ok(true),
        Ok(_) => Err(Malformed("message: a flag is 0 or 1")),
        Err(_) => Err(SHORT),
    }
}

/// As much of a message as may be sent, cut between characters.
fn clip(text: &str) -> &str {
    let mut end = text.len().min(MOST_NAME);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u16_le(text.len() as u16);
    out.put_slice(text.as_bytes());
}

fn text(rest: &mut &[u8]) -> Result<String> {
    let len = usize::from(rest.try_get_u16_le().map_err(|_| SHORT)?);
    check(len <= MOST_NAME, "message: a name's length")?;
    let (bytes, behind) = rest.split_at_checked(len).ok_or(SHORT)?;
    *rest = behind;
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed("message: a name is UTF-8"))
}

fn put_carry(out: &mut Vec<u8>, Carry { accounts, void }: &Carry) {
    out.put_u8(u8::from(void.is_some()));
    let (position, anchor) = void.unwrap_or_default();
    out.put_u64_le(position.0);
    put_anchor(out, anchor);
    put_accounts(out, accounts);
}

fn put_anchor(out: &mut Vec<u8>, anchor: Anchor) {
    out.put_u64_le(anchor.block.0);
    out.put_u64_le(anchor.checksum);
}

fn anchor(rest: &mut &[u8]) -> Result<Anchor> {
    Ok(Anchor { block: Lsn(long(rest)?), checksum: long(rest)? })
}

fn put_accounts<'a>(out: &mut Vec<u8>, accounts: impl IntoIterator<Item = &'a AccountId, IntoIter: ExactSizeIterator>) {
    let accounts = accounts.into_iter();
    out.put_u32_le(accounts.len() as u32);
    accounts.for_each(|account| out.put_u64_le(account.0));
}

/// As many entries of `size` bytes as announced, which have to be there.
fn entries<'a>(rest: &mut &'a [u8], size: usize) -> Result<std::slice::ChunksExact<'a, u8>> {
    let count = rest.try_get_u32_le().map_err(|_| SHORT)? as usize;
    let bytes = count.checked_mul(size).ok_or(SHORT)?;
    let (entries, behind) = rest.split_at_checked(bytes).ok_or(SHORT)?;
    *rest = behind;
    Ok(entries.chunks_exact(size))
}

fn accounts(rest: &mut &[u8]) -> Result<Vec<AccountId>> {
    let accounts: Vec<AccountId> = entries(rest, 8)?.map(|mut entry| AccountId(entry.get_u64_le())).collect();
    check(accounts.is_sorted_by(|one, next| one < next), "message: accounts ascend")?;
    Ok(accounts)
}

fn put_holdings(out: &mut Vec<u8>, holdings: &[Holding]) {
    out.put_u32_le(holdings.len() as u32);
    for Holding { partition, next_sequence, digest } in holdings {
        out.put_u128_le(partition.0);
        out.put_u64_le(*next_sequence);
        out.put_u64_le(digest.records);
        out.put_u128_le(digest.sum);
    }
}

fn holdings(rest: &mut &[u8]) -> Result<Vec<Holding>> {
    let entries = entries(rest, HOLDING)?.map(|mut entry| {
        let (partition, next_sequence) = (PartitionId(entry.get_u128_le()), entry.get_u64_le());
        let records = entry.get_u64_le();
        Holding { partition, next_sequence, digest: Digest { records, sum: entry.get_u128_le() } }
    });
    Ok(entries.collect())
}

fn put_fingerprints(out: &mut Vec<u8>, fingerprints: &[Fingerprint]) {
    out.put_u32_le(fingerprints.len() as u32);
    for Fingerprint { first_sequence, records, checksum } in fingerprints {
        out.put_u64_le(*first_sequence);
        out.put_u32_le(*records);
        out.put_u64_le(*checksum);
    }
}

fn fingerprints(rest: &mut &[u8]) -> Result<Vec<Fingerprint>> {
    let entries = entries(rest, FINGERPRINT)?.map(|mut entry| {
        let (first_sequence, records) = (entry.get_u64_le(), entry.get_u32_le());
        Fingerprint { first_sequence, records, checksum: entry.get_u64_le() }
    });
    let fingerprints: Vec<Fingerprint> = entries.collect();
    let ascend = fingerprints.is_sorted_by(|one, next| one.first_sequence < next.first_sequence);
    check(ascend, "message: sequences ascend")?;
    Ok(fingerprints)
}

fn put_hello(out: &mut Vec<u8>, hello: &Hello) {
    out.put_u128_le(hello.challenge);
    out.put_u128_le(hello.nonce);
    out.put_u128_le(hello.lane.log.0);
    out.put_u32_le(hello.lane.number);
    out.put_u128_le(hello.link);
    for name in [&hello.cluster, &hello.from, &hello.to] {
        put_text(out, name);
    }
}

fn hello(rest: &mut &[u8]) -> Result<Hello> {
    Ok(Hello {
        challenge: wide(rest)?,
        nonce: wide(rest)?,
        lane: Lane { log: LogId(wide(rest)?), number: rest.try_get_u32_le().map_err(|_| SHORT)? },
        link: wide(rest)?,
        cluster: text(rest)?,
        from: text(rest)?,
        to: text(rest)?,
    })
}

fn delivered(rest: &mut &[u8], frames: Bytes) -> Result<Delivered> {
    let (number, position, anchor) = (long(rest)?, Lsn(long(rest)?), anchor(rest)?);
    let account = if flag(rest)? {
        let len = usize::from(rest.try_get_u16_le().map_err(|_| SHORT)?);
        let (record, behind) = rest.split_at_checked(len).ok_or(SHORT)?;
        *rest = behind;
        Some(decode_account(record).map_err(|_| Malformed("message: an account"))?)
    } else {
        None
    };
    let restart = if flag(rest)? {
        let account = AccountId(long(rest)?);
        Some(Restart { account, partitions: holdings(rest)? })
    } else {
        None
    };
    let mark = if flag(rest)? {
        let time = long(rest)?;
        let accounts = entries(rest, 32)?.map(|mut entry| {
            let (account, records) = (AccountId(entry.get_u64_le()), entry.get_u64_le());
            (account, Digest { records, sum: entry.get_u128_le() })
        });
        let accounts: Vec<_> = accounts.collect();
        check(accounts.is_sorted_by(|(one, _), (next, _)| one < next), "message: accounts ascend")?;
        Some(Mark { time, accounts })
    } else {
        None
    };
    Ok(Delivered { number, account, restart, frames, mark, position, anchor })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use meridian::{Account, Ack, Contract, Gate, Role};

    use super::*;

    fn decode(bytes: &[u8]) -> Result<Message> {
        let header = Header::decode(bytes[..HEADER].try_into().expect("a header"), MOST_FIELDS, 1 << 20)?;
        Message::decode(&header, &bytes[HEADER..], Bytes::new())
    }

    fn holding(partition: u128) -> Holding {
        let digest = Digest { sum: 1 << 100, records: 7 };
        Holding { partition: PartitionId(partition), next_sequence: 9, digest }
    }

    const ANCHOR: Anchor = Anchor { block: Lsn(1 << 41), checksum: 1 << 63 };

    fn samples() -> Vec<Message> {
        let hello = Hello {
            challenge: 1,
            nonce: 2,
            cluster: "meridian".into(),
            from: "west".into(),
            to: "öst".into(),
            lane: Lane { log: LogId(3), number: 1 },
            link: 4,
        };
        let ack = Acknowledgement { number: 1, position: Lsn(2), time: 3, differ: vec![AccountId(4)] };
        vec![
            Message::Challenge(7),
            Message::Hello(hello),
            Message::Carry(Carry { accounts: vec![AccountId(1), AccountId(7)], void: None }),
            Message::Carry(Carry { accounts: vec![AccountId(1)], void: Some((Lsn(1 << 40), ANCHOR)) }),
            Message::Welcome(Welcome {
                nonce: 1,
                time: 3,
                window: 4,
                standing: Standing {
                    position: Lsn(2),
                    anchor: ANCHOR,
                    loose: true,
                    bootstrap: BTreeSet::from([AccountId(1), AccountId(2)]),
                    dropped: BTreeSet::from([AccountId(5)]),
                    unknown: BTreeSet::from([AccountId(7)]),
                },
            }),
            Message::Ask(Ask { account: AccountId(5), after: None }),
            Message::Ask(Ask { account: AccountId(5), after: Some(PartitionId(1 << 80)) }),
            Message::Holdings(vec![holding(1), holding(2)]),
            Message::Trace(Trace { account: AccountId(5), partition: PartitionId(1 << 80), from: 77 }),
            Message::Fingerprints(vec![fingerprint(3), fingerprint(5)]),
            Message::Refuse(RefusalKind::NoSpace, "there is no room".into()),
            Message::Acknowledgement(ack),
            Message::Ping(5),
            Message::Pong(6),
        ]
    }

    fn fingerprint(first_sequence: u64) -> Fingerprint {
        Fingerprint { first_sequence, records: 2, checksum: u64::MAX - first_sequence }
    }

    fn batch() -> Batch {
        let (id, name) = (AccountId(4), "flights".to_owned());
        let account = Some(Account {
            id,
            name,
            epoch: 2,
            ack: Ack::All,
            role: Role::Local,
            read_access: false,
            contract: Some(Contract { most: Duration::from_secs(5), then: Gate::Refuse }),
            lane: None,
        });
        let mark = Some(Mark { time: 8, accounts: vec![(id, Digest { sum: 1 << 99, records: 3 })] });
        let restart = Some(Restart { account: id, partitions: vec![holding(4)] });
        Batch {
            number: 3,
            account,
            restart,
            frames: Vec::new(),
            mark,
            position: Lsn(77),
            anchor: ANCHOR,
            bytes: 0,
            records: 0,
            oldest: 0,
        }
    }

    #[test]
    fn messages_come_back_as_they_went_out() {
        for message in samples() {
            let back = decode(&message.encode()).expect("ours");
            assert_eq!(format!("{back:?}"), format!("{message:?}"));
        }
        let Ok(Message::Batch(back)) = decode(&encode_batch(&batch(), None)) else { panic!("a batch") };
        let Batch { number, account, mark, position, anchor, .. } = batch();
        assert_eq!((back.number, back.account, back.mark), (number, account, mark));
        assert_eq!((back.position, back.anchor), (position, anchor));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let all = samples().iter().map(Message::encode).chain([encode_batch(&batch(), None)]).collect::<Vec<_>>();
        for mut bytes in all {
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(decode(&bytes).is_err(), "bit {bit} flipped unseen");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            for len in HEADER..bytes.len() {
                assert!(decode(&bytes[..len]).is_err(), "cut at {len} unseen");
            }
        }
    }

    #[test]
    fn more_than_the_reader_holds_is_refused_by_the_header_alone() {
        let bytes: [u8; HEADER] = samples()[1].encode()[..HEADER].try_into().expect("a header");
        assert_eq!(Header::decode(&bytes, 10, 0), Err(Malformed("header: more fields than accepted")));
        let mut batch = batch();
        batch.bytes = 4096;
        let bytes: [u8; HEADER] = encode_batch(&batch, Some(4095))[..HEADER].try_into().expect("a header");
        assert!(Header::decode(&bytes, 4096, 4096).is_ok_and(|header| header.is_compressed()));
        assert_eq!(Header::decode(&bytes, 4096, 4095), Err(Malformed("header: a larger body than accepted")));
    }
}
