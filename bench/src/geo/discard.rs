//! A receiver that verifies every frame, acknowledges, and keeps nothing: what the sender can do by itself. And the plain stream beside it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian::Lsn;
use meridian::format::Frame;
use meridian::geo::{Acknowledgement, Anchor, Standing};
use meridian_wire::codec::{HEADER, Header, MOST_FIELDS, Message, Welcome};

/// The largest batch that it takes.
const MOST: usize = 16 << 20;
/// What may be on its way.
const WINDOW: u64 = 64 << 20;

/// A listening receiver that keeps nothing.
#[derive(Clone)]
pub(crate) struct Discard {
    pub(crate) address: SocketAddr,
    /// Bytes of frames that were verified.
    pub(crate) bytes: Arc<AtomicU64>,
    /// Bytes behind the first batch, and nanoseconds since that was there.
    pub(crate) rest: Arc<[AtomicU64; 2]>,
    /// Processor nanoseconds of its thread.
    pub(crate) cpu: Arc<AtomicU64>,
}

impl Discard {
    /// Listens for one session, which begins at `position`, in the history of `anchor`, of the sender's log.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn start(position: Lsn, anchor: Anchor) -> io::Result<Discard> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (bytes, rest, cpu) = (Arc::default(), Arc::default(), Arc::default());
        let discard = Discard { address, bytes, rest, cpu };
        let counted = discard.clone();
        std::thread::Builder::new().name("discard".into()).spawn(move || {
            if let Ok((socket, _)) = listener.accept() {
                // The sender hangs up when it has been measured.
                drop(counted.serve(socket, position, anchor));
            }
        })?;
        Ok(discard)
    }

    fn serve(&self, mut socket: TcpStream, position: Lsn, anchor: Anchor) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let mut first: Option<Instant> = None;
        socket.write_all(&Message::Challenge(1).encode())?;
        let mut buffer = Vec::new();
        loop {
            match read(&mut socket, &mut buffer)? {
                Message::Hello(hello) => {
                    let standing = Standing { position, anchor, ..Standing::default() };
                    let welcome = Welcome { nonce: hello.nonce, time: 0, window: WINDOW, standing };
                    socket.write_all(&Message::Welcome(welcome).encode())?;
                }
                Message::Batch(batch) => {
                    let mut rest = &batch.frames[..];
                    while !rest.is_empty() {
                        let frame =
                            Frame::parse(rest).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                        rest = &rest[frame.len()..];
                    }
                    if let Some(first) = first {
                        self.rest[0].fetch_add(batch.frames.len() as u64, Ordering::Relaxed);
                        self.rest[1].store(first.elapsed().as_nanos() as u64, Ordering::Relaxed);
                    }
                    first.get_or_insert_with(Instant::now);
                    self.bytes.fetch_add(batch.frames.len() as u64, Ordering::Relaxed);
                    let (number, position) = (batch.number, batch.position);
                    let done = Acknowledgement { number, position, time: 0, differ: Vec::new() };
                    socket.write_all(&Message::Acknowledgement(done).encode())?;
                    // Its memory is the next batch's.
                    buffer = batch.frames.try_into_mut().map(Vec::from).unwrap_or_default();
                    self.cpu.store(thread_cpu(), Ordering::Relaxed);
                }
                Message::Carry(_) => {}
                Message::Ask(_) => socket.write_all(&Message::Holdings(Vec::new()).encode())?,
                Message::Ping(number) => socket.write_all(&Message::Pong(number).encode())?,
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

fn thread_cpu() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

fn read(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Message> {
    let malformed = |what: meridian_wire::codec::Malformed| io::Error::new(io::ErrorKind::InvalidData, what.0);
    let mut header = [0; HEADER];
    socket.read_exact(&mut header)?;
    let header = Header::decode(&header, MOST_FIELDS, MOST).map_err(malformed)?;
    let mut fields = vec![0; header.fields];
    socket.read_exact(&mut fields)?;
    let mut body = std::mem::take(buffer);
    body.resize(header.body, 0);
    socket.read_exact(&mut body)?;
    Message::decode(&header, &fields, Bytes::from(body)).map_err(malformed)
}

/// Bytes a second of a plain stream over loopback: writes and reads of one mebibyte, nothing else. Timed as [`Discard`] is, from when the
/// first mebibyte was there.
///
/// # Errors
/// What the system says.
pub(crate) fn plain_stream(bytes: u64) -> io::Result<f64> {
    const CHUNK: usize = 1 << 20;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut sending = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiving, _) = listener.accept()?;
    let sender = std::thread::Builder::new().name("stream".into()).spawn(move || {
        let chunk = vec![7; CHUNK];
        (0..bytes / CHUNK as u64).try_for_each(|_| sending.write_all(&chunk))
    })?;
    let mut buffer = vec![0; CHUNK];
    receiving.read_exact(&mut buffer)?;
    let (start, mut rest) = (Instant::now(), 0);
    while let read @ 1.. = receiving.read(&mut buffer)? {
        rest += read;
    }
    let took = start.elapsed().max(Duration::from_nanos(1));
    sender.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
    Ok(rest as f64 / took.as_secs_f64())
}
