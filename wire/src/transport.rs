//! A connection: plain TCP where that is allowed, TLS 1.3 with certificates on both sides elsewhere. Every read and write has a deadline.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendFlags};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use crate::clock::{Clock, Deadline};
use crate::error::{Result, WireError};
use crate::threads::lock;

/// What one write to a TLS connection takes in.
const CHUNK: usize = 256 << 10;
/// Parts that one call of the system takes.
const MAX_PARTS: usize = 1024;
/// What is read from a peer that was refused, so that it hears why before the connection is gone.
const MAX_DRAINED: usize = 4 << 20;

/// How two regions trust each other.
#[derive(Clone, Debug)]
pub enum Security {
    /// Plain text, on loopback addresses only: for tests and for one machine.
    Loopback,
    /// Plain text anywhere, because the operator says that the network is theirs. Whoever reaches it can pose as a region.
    PlainText,
    /// TLS 1.3 with certificates on both sides.
    Tls(TlsIdentity),
}

/// Who this side is, and whose word it takes.
#[derive(Clone)]
pub struct TlsIdentity {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsIdentity")
    }
}

impl TlsIdentity {
    /// From PEM: this side's certificate chain and key, and the authorities that sign the other side's. The certificate carries the
    /// region's name as a DNS name, for server and client use.
    ///
    /// # Errors
    /// [`InvalidInput`](WireError::InvalidInput) when something does not parse or does not fit; it never says what was in it.
    pub fn from_pem(chain: &[u8], key: &[u8], authorities: &[u8]) -> Result<TlsIdentity> {
        let invalid = |what: &str| WireError::InvalidInput(format!("TLS: {what}"));
        let certificates = |pem| CertificateDer::pem_slice_iter(pem).collect::<std::result::Result<Vec<_>, _>>();
        let chain = certificates(chain).map_err(|_| invalid("the certificate chain is not PEM"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| invalid("the key is not PEM"))?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(authorities).map_err(|_| invalid("the authorities are not PEM"))? {
            roots.add(authority).map_err(|_| invalid("an authority's certificate is not one"))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = &[&rustls::version::TLS13];
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(|_| invalid("TLS 1.3 is not there"))?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|_| invalid("the key does not fit the certificate"))?;
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|_| invalid("there is no authority"))?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|_| invalid("TLS 1.3 is not there"))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|_| invalid("the key does not fit the certificate"))?;
        // Each session proves itself anew: no tickets, no early data.
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(TlsIdentity { client: Arc::new(client), server: Arc::new(server) })
    }
}

/// A connection that one thread reads and another writes.
pub(crate) struct Connection {
    socket: TcpStream,
    tls: Option<Tls>,
    /// Held while a message goes out, so that messages stay whole.
    writing: Mutex<()>,
    clock: Clock,
    /// When something was last read.
    heard: AtomicU64,
    /// It was shut.
    over: AtomicBool,
    /// How long the other side may be silent, where that alone says that it is gone: a write that makes no way is then only slow. `None`
    /// where a write has to make way by itself.
    silence: Option<Duration>,
}

struct Tls {
    session: Mutex<rustls::Connection>,
    /// What has arrived and the session has not taken: it takes nothing while much plaintext is unread.
    arrived: Mutex<VecDeque<u8>>,
}

impl Connection {
    /// Connects to `peer`, whose certificate has to carry its name: [`Connection::shake_hands`] comes next.
    pub(crate) fn connect(address: SocketAddr, peer: &str, security: &Security, time: Duration) -> Result<Connection> {
        check_address(security, address)?;
        let socket = TcpStream::connect_timeout(&address, time)?;
        let session = match security {
            Security::Loopback | Security::PlainText => None,
            Security::Tls(identity) => {
                let name = ServerName::try_from(peer.to_owned());
                let name = name.map_err(|_| WireError::InvalidInput(format!("{peer:?} is not a DNS name")))?;
                let session = ClientConnection::new(Arc::clone(&identity.client), name).map_err(broken)?;
                Some(rustls::Connection::Client(session))
            }
        };
        Connection::begin(socket, session, time, Some(time))
    }

    /// Takes in a connection.
    pub(crate) fn accept(socket: TcpStream, security: &Security, time: Duration) -> Result<Connection> {
        let session = match security {
            Security::Loopback | Security::PlainText => None,
            Security::Tls(identity) => {
                let session = ServerConnection::new(Arc::clone(&identity.server)).map_err(broken)?;
                Some(rustls::Connection::Server(session))
            }
        };
        let connection = Connection::begin(socket, session, time, None)?;
        connection.shake_hands(time)?;
        Ok(connection)
    }

    fn begin(
        socket: TcpStream,
        session: Option<rustls::Connection>,
        time: Duration,
        silence: Option<Duration>,
    ) -> Result<Connection> {
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(time))?;
        let tls = session.map(|session| Tls { session: Mutex::new(session), arrived: Mutex::default() });
        let (writing, heard, clock) = (Mutex::new(()), AtomicU64::new(0), Clock::start());
        let over = AtomicBool::new(false);
        Ok(Connection { socket, tls, writing, clock, heard, over, silence })
    }

    /// The handshake of TLS, where there is one; [`Connection::shut`] ends it, too.
    pub(crate) fn shake_hands(&self, time: Duration) -> Result<()> {
        let Some(tls) = &self.tls else { return Ok(()) };
        let deadline = Deadline::after(time);
        self.flush(tls)?;
        while lock(&tls.session).is_handshaking() {
            if let Err(refused) = self.receive(tls, deadline) {
                // The other side hears why: TLS has the words ready.
                drop(self.flush(tls));
                self.hang_up(deadline);
                return Err(refused);
            }
            self.flush(tls)?;
        }
        Ok(())
    }

    /// Whether the other side has proved who it is.
    pub(crate) fn is_certified(&self) -> bool {
        self.tls.is_some()
    }

    /// Ends it so that the other side hears what was said last: where bytes of it are unread, the system says only that it is reset.
    pub(crate) fn hang_up(&self, deadline: Deadline) {
        drop(self.socket.shutdown(Shutdown::Write));
        let (mut drained, mut bytes) = (0, [0; 16 << 10]);
        while let Ok(read @ 1..) = self.read_some(&mut bytes, deadline) {
            drained += read;
            if drained > MAX_DRAINED {
                break;
            }
        }
        self.shut();
    }

    /// For how long nothing was heard, while it was not shut.
    pub(crate) fn silence(&self) -> Option<Duration> {
        if self.over.load(Ordering::Relaxed) {
            return None;
        }
        Some(Duration::from_nanos(self.clock.now().saturating_sub(self.heard.load(Ordering::Relaxed))))
    }

    pub(crate) fn peer_address(&self) -> Option<SocketAddr> {
        self.socket.peer_addr().ok()
    }

    /// Whether the other side's certificate carries this name. Without TLS nobody has one, and nobody is asked.
    pub(crate) fn is_from(&self, name: &str) -> bool {
        let Some(tls) = &self.tls else { return true };
        let session = lock(&tls.session);
        let Some(certificate) = session.peer_certificates().and_then(|chain| chain.first()) else { return false };
        let (Ok(certificate), Ok(name)) = (ParsedCertificate::try_from(certificate), ServerName::try_from(name)) else {
            return false;
        };
        rustls::client::verify_server_name(&certificate, &name).is_ok()
    }

    /// Fills `out` before the deadline. For one thread.
    pub(crate) fn read_exact(&self, out: &mut [u8], deadline: Deadline) -> Result<()> {
        let mut filled = 0;
        while filled < out.len() {
            let rest = &mut out[filled..];
            filled += match &self.tls {
                None => self.read_some(rest, deadline)?,
                Some(tls) => match lock(&tls.session).reader().read(rest) {
                    Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
                    Ok(read) => read,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                    Err(error) => return Err(error.into()),
                },
            };
            if let Some(tls) = self.tls.as_ref().filter(|_| filled < out.len()) {
                self.receive(tls, deadline)?;
            }
        }
        Ok(())
    }

    fn read_some(&self, out: &mut [u8], deadline: Deadline) -> Result<usize> {
        loop {
            self.socket.set_read_timeout(Some(deadline.left()?))?;
            match (&self.socket).read(out) {
                Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(read) => {
                    self.heard.store(self.clock.now(), Ordering::Relaxed);
                    return Ok(read);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(io::Error::from(ErrorKind::TimedOut).into());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes in some of what arrives next; what comes of it has to be read before there is more.
    fn receive(&self, tls: &Tls, deadline: Deadline) -> Result<()> {
        let mut arrived = lock(&tls.arrived);
        if arrived.is_empty() {
            let mut records = [0; 16 << 10];
            let len = self.read_some(&mut records, deadline)?;
            arrived.extend(&records[..len]);
        }
        let mut session = lock(&tls.session);
        // Behind the other side's goodbye it takes nothing, however often it is asked.
        if session.read_tls(&mut *arrived)? == 0 {
            return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
        }
        session.process_new_packets().map_err(broken)?;
        // What TLS itself has to say goes out with the next write: who reads never waits for a slow link.
        Ok(())
    }

    /// For whoever holds `writing`, and for the handshake: records go out in order.
    fn flush(&self, tls: &Tls) -> Result<()> {
        let mut records = Vec::new();
        {
            let mut session = lock(&tls.session);
            while session.wants_write() {
                session.write_tls(&mut records)?;
            }
        }
        self.send(&mut [IoSlice::new(&records)])
    }

    /// Gives the bytes to the socket.
    fn send(&self, mut parts: &mut [IoSlice<'_>]) -> Result<()> {
        // Empty ones in front would look like a socket that takes nothing.
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match send_some(&self.socket, &parts[..parts.len().min(MAX_PARTS)]) {
                Ok(0) => return Err(io::Error::from(ErrorKind::WriteZero).into()),
                Ok(written) => IoSlice::advance_slices(&mut parts, written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A slow link frees its buffer in large pieces. Whether the other side is there, the reader says.
                Err(error) if error.kind() == ErrorKind::WouldBlock && self.is_there() => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(io::Error::from(ErrorKind::TimedOut).into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn is_there(&self) -> bool {
        // It may have been heard since this was asked.
        let silent = Duration::from_nanos(self.clock.now().saturating_sub(self.heard.load(Ordering::Relaxed)));
        self.silence.is_some_and(|most| silent < most)
    }

    /// Writes all of these, one after the other. Without TLS the system takes them from where they lie.
    pub(crate) fn write_all(&self, parts: &mut [IoSlice<'_>]) -> Result<()> {
        let _whole = lock(&self.writing);
        let Some(tls) = &self.tls else { return self.send(parts) };
        for part in parts {
            for mut chunk in part.chunks(CHUNK) {
                while !chunk.is_empty() {
                    let taken = lock(&tls.session).writer().write(chunk)?;
                    chunk = &chunk[taken..];
                    self.flush(tls)?;
                }
            }
        }
        Ok(())
    }

    /// Ends it for both threads and the other side.
    pub(crate) fn shut(&self) {
        self.over.store(true, Ordering::Relaxed);
        // It may be closed already, which is what is wanted.
        drop(self.socket.shutdown(Shutdown::Both));
    }
}

/// Plain text stays where it is allowed.
pub(crate) fn check_address(security: &Security, address: SocketAddr) -> Result<()> {
    if matches!(security, Security::Loopback) && !address.ip().is_loopback() {
        let message = format!("{address} is not a loopback address: use TLS, or say that plain text is meant");
        return Err(WireError::InvalidInput(message));
    }
    Ok(())
}

/// As `writev`, whose broken pipe would end a host process that leaves SIGPIPE as the system sets it.
fn send_some(socket: &TcpStream, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    Ok(rustix::net::sendmsg(socket, parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?)
}

fn broken(error: rustls::Error) -> WireError {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked, CertificateUnknown,
        DecryptError, UnknownCA, UnsupportedCertificate,
    };
    match error {
        rustls::Error::AlertReceived(
            why @ (AccessDenied
            | BadCertificate
            | CertificateExpired
            | CertificateRequired
            | CertificateRevoked
            | CertificateUnknown
            | DecryptError
            | UnknownCA
            | UnsupportedCertificate),
        ) => WireError::Untrusted(format!("the other side refuses this side's certificate: {why:?}")),
        rustls::Error::InvalidCertificate(why) => {
            WireError::Untrusted(format!("this side refuses the other side's certificate: {why}"))
        }
        rustls::Error::NoCertificatesPresented => {
            WireError::Untrusted("the other side shows no certificate, and one is required".into())
        }
        error => io::Error::new(ErrorKind::InvalidData, error).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::threads::start;

    #[test]
    fn h7_refused_peer_hears_why_whatever_it_sends_meanwhile() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let refusing = start("refusing", move || {
            let connection = Connection::accept(socket, &Security::Loopback, Duration::from_secs(9)).unwrap();
            connection.write_all(&mut [IoSlice::new(b"no")]).unwrap();
            connection.hang_up(Deadline::after(Duration::from_secs(9)));
        });
        for _ in 0..50 {
            peer.write_all(&[1; 16 << 10]).unwrap();
            std::thread::park_timeout(Duration::from_millis(2));
        }
        peer.shutdown(Shutdown::Write).unwrap();
        let mut said = String::new();
        peer.read_to_string(&mut said).unwrap();
        assert_eq!(said, "no");
        refusing.unwrap().join().unwrap();
    }
}
