//! A wide-area network of the harness's own making: a proxy that delays, narrows, stops and cuts, in the middle of messages too.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use crossbeam::queue::ArrayQueue;

/// Bytes that are forwarded at once.
const CHUNK: usize = 64 << 10;
/// Chunks that may be on their way in one direction: what the delay holds back, and the bound of the memory.
const ON_THE_WAY: usize = 4_096;
/// What is due within so long is passed on together.
const TOGETHER: Duration = Duration::from_micros(500);
/// How often a paused connection looks whether it may go on.
const LOOK: Duration = Duration::from_millis(2);

/// The network between a primary and its secondary. Dropping it ends it.
pub(crate) struct Wan {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    /// Where connections go on to.
    to: Mutex<SocketAddr>,
    /// One way, in nanoseconds.
    delay: AtomicU64,
    /// Bytes a second in each direction; 0 is as many as there are.
    bandwidth: AtomicU64,
    paused: AtomicBool,
    /// Bytes towards the secondary after which everything is cut; `u64::MAX` is never.
    cut_after: AtomicU64,
    stopping: AtomicBool,
    sockets: Mutex<Vec<TcpStream>>,
    forwarded: AtomicU64,
    /// New memory costs more than what is done with it: buffers go round.
    unused: ArrayQueue<Vec<u8>>,
}

/// Bytes that are on their way.
struct Piece {
    due: Instant,
    /// Its first `len` bytes.
    buffer: Vec<u8>,
    len: usize,
    /// Everything is cut when they have arrived.
    cut: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wan {
    /// A network to `to` without delay or limit.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn new(to: SocketAddr) -> io::Result<Wan> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            to: Mutex::new(to),
            delay: AtomicU64::new(0),
            bandwidth: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            cut_after: AtomicU64::new(u64::MAX),
            stopping: AtomicBool::new(false),
            sockets: Mutex::default(),
            forwarded: AtomicU64::new(0),
            unused: ArrayQueue::new(ON_THE_WAY),
        });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name("wan".into()).spawn(move || theirs.listen(&listener))?;
        Ok(Wan { address, shared })
    }

    /// Where to connect to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on connections go on to another address.
    pub(crate) fn lead_to(&self, to: SocketAddr) {
        *lock(&self.shared.to) = to;
    }

    /// Delays each direction by so much.
    pub(crate) fn delay(&self, one_way: Duration) {
        self.shared.delay.store(one_way.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Lets so many bytes a second through in each direction; 0 for as many as there are.
    pub(crate) fn bandwidth(&self, bytes: u64) {
        self.shared.bandwidth.store(bytes, Ordering::Relaxed);
    }

    /// Forwards nothing while `on`.
    pub(crate) fn pause(&self, on: bool) {
        self.shared.paused.store(on, Ordering::Relaxed);
    }

    /// Cuts every connection now.
    pub(crate) fn cut(&self) {
        self.shared.cut();
    }

    /// Cuts every connection once so many more bytes went towards the secondary: in the middle of a message.
    pub(crate) fn cut_after(&self, bytes: u64) {
        self.shared.cut_after.store(bytes, Ordering::Relaxed);
    }

    /// Bytes that went towards the secondary.
    pub(crate) fn forwarded(&self) -> u64 {
        self.shared.forwarded.load(Ordering::Relaxed)
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.shared.cut();
        // Wakes the thread that waits for the next connection.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn listen(self: &Arc<Shared>, listener: &TcpListener) {
        for from in listener.incoming() {
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            let to = *lock(&self.to);
            // Who cannot be reached is cut off from, as on a real network.
            if let (Ok(from), Ok(to)) = (from, TcpStream::connect(to)) {
                drop(self.join(from, to));
            }
        }
    }

    fn join(self: &Arc<Shared>, from: TcpStream, to: TcpStream) -> io::Result<()> {
        from.set_nodelay(true)?;
        to.set_nodelay(true)?;
        {
            let mut sockets = lock(&self.sockets);
            sockets.retain(|socket| socket.peer_addr().is_ok());
            sockets.extend([from.try_clone()?, to.try_clone()?]);
        }
        self.forward(from.try_clone()?, to.try_clone()?, true)?;
        self.forward(to, from, false)
    }

    fn cut(&self) {
        for socket in lock(&self.sockets).drain(..) {
            drop(socket.shutdown(Shutdown::Both));
        }
    }

    /// One direction: a thread that reads and one that writes when it is time to.
    fn forward(self: &Arc<Shared>, mut from: TcpStream, to: TcpStream, counted: bool) -> io::Result<()> {
        let (sender, receiver) = bounded(ON_THE_WAY);
        let (reads, writes) = (Arc::clone(self), Arc::clone(self));
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        thread("wan-in").spawn(move || reads.read(&mut from, &sender, counted))?;
        thread("wan-out").spawn(move || writes.write(to, &receiver))?;
        Ok(())
    }

    fn read(&self, from: &mut TcpStream, sender: &Sender<Piece>, counted: bool) {
        let mut free = Instant::now();
        loop {
            let mut buffer = self.unused.pop().unwrap_or_else(|| vec![0; CHUNK]);
            let Ok(mut read @ 1..) = from.read(&mut buffer) else { return };
            while self.paused.load(Ordering::Relaxed) && !self.stopping.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK);
            }
            let mut cut = false;
            if counted {
                let left = self.cut_after.load(Ordering::Relaxed);
                if left < read as u64 {
                    (read, cut) = (left as usize, true);
                    self.cut_after.store(u64::MAX, Ordering::Relaxed);
                } else if left != u64::MAX {
                    self.cut_after.store(left - read as u64, Ordering::Relaxed);
                }
                self.forwarded.fetch_add(read as u64, Ordering::Relaxed);
            }
            // Who sends more than passes is held up, as by a network that keeps little.
            let bandwidth = self.bandwidth.load(Ordering::Relaxed);
            if bandwidth > 0 {
                free = free.max(Instant::now()) + Duration::from_secs_f64(read as f64 / bandwidth as f64);
                std::thread::sleep(free.saturating_duration_since(Instant::now()));
            }
            let due = Instant::now() + Duration::from_nanos(self.delay.load(Ordering::Relaxed));
            if sender.send(Piece { due, buffer, len: read, cut }).is_err() || cut {
                return;
            }
        }
    }

    fn write(&self, mut to: TcpStream, receiver: &Receiver<Piece>) {
        while let Ok(Piece { due, buffer, len, cut }) = receiver.recv() {
            let early = due.saturating_duration_since(Instant::now());
            if !early.is_zero() {
                // What comes right behind is then due, too: a sleep for each piece would be what limits a fast network.
                std::thread::sleep(early + TOGETHER);
            }
            if to.write_all(&buffer[..len]).is_err() {
                break;
            }
            drop(self.unused.push(buffer));
            // Only now: what was sent before arrives, and the message that it cuts is half there.
            if cut {
                self.cut();
            }
        }
        drop(to.shutdown(Shutdown::Both));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An echo server's address.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut back = socket.try_clone().expect("a clone");
                    drop(io::copy(&mut &socket, &mut back));
                });
            }
        });
        address
    }

    fn round_trip(socket: &mut TcpStream, bytes: usize) -> io::Result<Duration> {
        let start = Instant::now();
        let (out, mut back) = (vec![7; bytes], vec![0; bytes]);
        let mut writer = socket.try_clone()?;
        let sending = std::thread::spawn(move || writer.write_all(&out));
        socket.read_exact(&mut back)?;
        sending.join().expect("no panic")?;
        assert!(back.iter().all(|byte| *byte == 7));
        Ok(start.elapsed())
    }

    #[test]
    fn bytes_pass_unchanged_late_by_the_delay_and_no_faster_than_the_bandwidth() {
        let wan = Wan::new(echo()).expect("a proxy");
        let mut socket = TcpStream::connect(wan.address()).expect("connected");
        round_trip(&mut socket, 1 << 20).expect("a plain round trip");
        wan.delay(Duration::from_millis(30));
        let took = round_trip(&mut socket, 100).expect("a late one");
        assert!(took >= Duration::from_millis(60), "{took:?}");
        wan.delay(Duration::ZERO);
        wan.bandwidth(2 << 20);
        let took = round_trip(&mut socket, 1 << 20).expect("a slow one");
        assert!(took >= Duration::from_millis(400), "{took:?}");
    }

    #[test]
    fn a_cut_ends_a_connection_after_the_byte_it_was_told() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let wan = Wan::new(listener.local_addr().expect("an address")).expect("a proxy");
        let mut near = TcpStream::connect(wan.address()).expect("connected");
        let (mut far, _) = listener.accept().expect("connected on");
        wan.cut_after(1_500);
        near.write_all(&[7; 10_000]).expect("taken in by the network");
        let mut arrived = Vec::new();
        far.read_to_end(&mut arrived).expect("an orderly end");
        assert_eq!((arrived.len(), wan.forwarded()), (1_500, 1_500));
    }

    #[test]
    fn new_connections_are_taken_after_a_cut_and_pass_nothing_while_paused() {
        let wan = Wan::new(echo()).expect("a proxy");
        let mut socket = TcpStream::connect(wan.address()).expect("connected");
        round_trip(&mut socket, 1000).expect("before the cut");
        wan.pause(true);
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        assert!(round_trip(&mut socket, 10).is_err(), "nothing passes while it is paused");
        wan.pause(false);
        wan.cut();
        let mut socket = TcpStream::connect(wan.address()).expect("connected again");
        round_trip(&mut socket, 1000).expect("after the cut");
    }
}
