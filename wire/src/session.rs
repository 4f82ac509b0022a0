//! Messages over a connection, and the handshake that binds a session to both regions, the log and the place to begin.

use std::io::{self, ErrorKind, IoSlice};
use std::time::Duration;

use bytes::Bytes;
use meridian::AccountId;
use meridian::geo::Batch;

use crate::clock::{self, Deadline};
use crate::codec::{
    HEADER, Header, Hello, MOST_FIELDS, MOST_FIELDS_BEFORE_HELLO, Malformed, Message, Welcome, encode_batch,
};
use crate::compress::decompress;
use crate::error::{Result, WireError};
use crate::transport::Connection;

impl From<Malformed> for WireError {
    fn from(malformed: Malformed) -> WireError {
        WireError::Protocol(malformed.0)
    }
}

/// How often either side is heard, at least: the other one's patience is its own.
const BEAT: Duration = Duration::from_millis(500);

/// How long either side is silent at most, so that the other one knows that somebody is here.
pub(crate) fn beat(patience: Duration) -> Duration {
    BEAT.min(patience / 4)
}

/// Bytes a second that a message has to make at least, beside the patience that each has.
const LEAST_RATE: f64 = 16_384.0;

/// A region at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The DNS name in its certificate. Without TLS it is not looked at.
    pub name: String,
    /// What it calls itself, in the same cluster.
    pub region: String,
}

/// Reads a message; `most_body` is the largest batch that is accepted.
pub(crate) fn read(connection: &Connection, most_fields: usize, most_body: usize, time: Duration) -> Result<Message> {
    let deadline = Deadline::after(time);
    let mut header = [0; HEADER];
    connection.read_exact(&mut header, deadline)?;
    let header = Header::decode(&header, most_fields, most_body)?;
    // What was announced may take its time on a slow link.
    let deadline = deadline.later(Duration::from_secs_f64((header.fields + header.body) as f64 / LEAST_RATE));
    let mut fields = vec![0; header.fields];
    connection.read_exact(&mut fields, deadline)?;
    let mut body = vec![0; header.body];
    connection.read_exact(&mut body, deadline)?;
    if header.is_compressed() {
        body = decompress(&body, header.raw)?;
    }
    Ok(Message::decode(&header, &fields, Bytes::from(body))?)
}

pub(crate) fn write(connection: &Connection, message: &Message) -> Result<()> {
    connection.write_all(&mut [IoSlice::new(&message.encode())])
}

/// Sends a batch, its frames as they are or as `compressed`. Returns the bytes that went out.
pub(crate) fn write_batch(connection: &Connection, batch: &Batch, compressed: Option<&[u8]>) -> Result<usize> {
    let head = encode_batch(batch, compressed.map(<[u8]>::len));
    let mut parts = vec![IoSlice::new(&head)];
    match compressed {
        Some(frames) => parts.push(IoSlice::new(frames)),
        None => parts.extend(batch.frames.iter().map(|slice| IoSlice::new(slice))),
    }
    let bytes = parts.iter().map(|part| part.len()).sum();
    connection.write_all(&mut parts)?;
    Ok(bytes)
}

/// The sender's half: answers the challenge, says who it is and what it sends, and learns where to begin.
pub(crate) fn introduce(
    connection: &Connection,
    hello: &Hello,
    accounts: &[AccountId],
    time: Duration,
) -> Result<Welcome> {
    let Message::Challenge(challenge) = read(connection, MOST_FIELDS_BEFORE_HELLO, 0, time)? else {
        return Err(WireError::Protocol("a challenge comes first"));
    };
    let hello = Hello { challenge, nonce: clock::nonce()?, ..hello.clone() };
    write(connection, &Message::Hello(hello.clone()))?;
    let mut accounts = accounts.to_vec();
    accounts.sort_unstable();
    accounts.dedup();
    write(connection, &Message::Carry(accounts))?;
    match read(connection, MOST_FIELDS, 0, time)? {
        Message::Welcome(welcome) if welcome.nonce == hello.nonce => Ok(welcome),
        Message::Welcome(_) => Err(WireError::Protocol("the welcome is another session's")),
        Message::Refuse(kind, message) => Err(WireError::Refused { kind, message }),
        _ => Err(WireError::Protocol("a welcome comes next")),
    }
}

/// The receiver's half: challenges, and returns the hello of a peer that may send, and what it carries. Whoever else it is gets no answer and
/// learns nothing (PROTOCOL, "Transport and trust").
pub(crate) fn challenge(
    connection: &Connection,
    cluster: &str,
    region: &str,
    peers: &[Peer],
    time: Duration,
) -> Result<(Hello, Peer, Vec<AccountId>)> {
    let challenge = clock::nonce()?;
    write(connection, &Message::Challenge(challenge))?;
    let Message::Hello(hello) = read(connection, MOST_FIELDS_BEFORE_HELLO, 0, time)? else {
        return Err(WireError::Protocol("a hello comes first"));
    };
    let peer = peers.iter().find(|peer| peer.region == hello.from && connection.is_from(&peer.name));
    let meant = hello.challenge == challenge && hello.cluster == cluster && hello.to == region;
    let Some(peer) = peer.filter(|_| meant) else {
        let message = "a stranger, a wrong region, or a hello said before";
        return Err(io::Error::new(ErrorKind::PermissionDenied, message).into());
    };
    match read(connection, MOST_FIELDS, 0, time)? {
        Message::Carry(accounts) => Ok((hello, peer.clone(), accounts)),
        _ => Err(WireError::Protocol("what is carried comes second")),
    }
}
