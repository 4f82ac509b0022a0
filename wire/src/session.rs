//! Messages over a connection, and the handshake that binds a session to both regions, the log and the place to begin.

use std::io::{ErrorKind, IoSlice};
use std::time::Duration;

use bytes::Bytes;
use meridian::geo::Batch;

use crate::clock::{self, Deadline};
use crate::codec::{
    Carry, HEADER, Header, Hello, MOST_FIELDS, MOST_FIELDS_BEFORE_HELLO, Malformed, Message, Welcome, encode_batch,
};
use crate::compress::decompress;
use crate::error::{RefusalKind, Result, WireError};
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

/// How long a peer that is refused may take to hear why.
const LAST_WORDS: Duration = Duration::from_secs(1);

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
pub(crate) fn introduce(connection: &Connection, hello: &Hello, mut carry: Carry, time: Duration) -> Result<Welcome> {
    let Message::Challenge(challenge) = read(connection, MOST_FIELDS_BEFORE_HELLO, 0, time)? else {
        return Err(WireError::Protocol("a challenge comes first"));
    };
    let hello = Hello { challenge, nonce: clock::nonce()?, ..hello.clone() };
    write(connection, &Message::Hello(hello.clone()))?;
    carry.accounts.sort_unstable();
    carry.accounts.dedup();
    write(connection, &Message::Carry(carry))?;
    let answer = read(connection, MOST_FIELDS, 0, time).map_err(|error| match error {
        WireError::Connection(end) if end.kind() == ErrorKind::UnexpectedEof => {
            let Hello { cluster, from, to, .. } = &hello;
            WireError::Untrusted(format!(
                "the listener hung up on the hello of region {from:?} to region {to:?} of cluster {cluster:?}: its \
                 Listener::refusals say why, if it is one"
            ))
        }
        error => error,
    })?;
    match answer {
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
) -> Result<(Hello, Peer, Carry)> {
    let challenge = clock::nonce()?;
    write(connection, &Message::Challenge(challenge))?;
    let Message::Hello(hello) = read(connection, MOST_FIELDS_BEFORE_HELLO, 0, time)? else {
        return Err(WireError::Protocol("a hello comes first"));
    };
    let its: Vec<&Peer> = peers.iter().filter(|peer| peer.region == hello.from).collect();
    let certified = its.iter().find(|peer| connection.is_from(&peer.name));
    let Hello { cluster: its_cluster, from, to, .. } = &hello;
    let why = if hello.challenge != challenge {
        "a hello that was said before".to_owned()
    } else if its_cluster != cluster {
        format!("region {from:?} names cluster {its_cluster:?}, which is not this one")
    } else if to != region {
        format!("region {from:?} means region {to:?}, which is not this one")
    } else if its.is_empty() {
        format!("region {from:?} is not on the list of peers")
    } else if certified.is_none() {
        format!("the certificate does not carry the name that region {from:?} has on the list of peers")
    } else {
        String::new()
    };
    let Some(peer) = certified.filter(|_| why.is_empty()) else {
        // Over plain text anybody could ask.
        if connection.is_certified() {
            drop(write(connection, &Message::Refuse(RefusalKind::Untrusted, why.clone())));
            connection.hang_up(Deadline::after(time.min(LAST_WORDS)));
        }
        return Err(WireError::Untrusted(why));
    };
    match read(connection, MOST_FIELDS, 0, time)? {
        Message::Carry(carry) => Ok((hello.clone(), Peer::clone(peer), carry)),
        _ => Err(WireError::Protocol("what is carried comes second")),
    }
}
