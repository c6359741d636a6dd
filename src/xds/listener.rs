//! Sockets: binding them safely, accepting, and knowing who is there before a byte of HTTP/2 is read.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::server::Acceptor;

use super::access::{Access, GatewayAccess, Peer};
use super::connection::{Connection, ConnectionInfo};
use super::event::{Event, EventQueue, RefusedReason};
use super::tls::{self, TlsError, TlsSettings};

/// Connections that wait to be accepted. After a restart of the agent all Envoys come at once.
const BACKLOG: u32 = 4096;
/// TLS handshakes at the same time: each costs a signature, more of them only make all of them late.
const HANDSHAKES: usize = 256;
/// A handshake counts as one of them for so long at most. What it costs is spent by then; what is left is to wait for the
/// other side, which may never answer.
const HANDSHAKE_TURN: Duration = Duration::from_secs(1);
/// Connections that have not shown a certificate yet, or none that may have a gateway. While there are so many, new ones are
/// closed at once.
const UNKNOWN: usize = 4096;
/// The same from one address: whoever fills its own share takes little from the others. Envoys behind one address that all
/// come back at once are told apart from it within milliseconds, and come again.
const UNKNOWN_OF_ONE: usize = 512;
/// Between two lines about connections that came to nothing: anybody who reaches port or socket can make them.
const WARNING_PAUSE: Duration = Duration::from_secs(5);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (out of file descriptors), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The socket for Envoys of this machine.
#[derive(Clone, Debug)]
pub struct UnixSettings {
    pub path: PathBuf,
    /// Who may use it beside our own uid and root, and for what. Without any its mode is 0600. With them it is 0666, as the
    /// kernel knows no narrower way to let them in, and whoever is not among them is turned away unheard. They need a way
    /// to it as well: the directories above it are the operator's.
    pub uids: BTreeMap<u32, GatewayAccess>,
    pub gateways: GatewayAccess,
}

/// The port for remote Envoys.
#[derive(Clone, Debug)]
pub struct TcpSettings {
    pub address: SocketAddr,
    pub tls: watch::Receiver<Arc<TlsSettings>>,
}

#[derive(Debug, Error)]
pub enum ListenError {
    #[error("{path}: another process serves this socket; stop it, or choose another path")]
    InUse { path: PathBuf },
    #[error("{path}: exists and is no socket")]
    NotASocket { path: PathBuf },
    #[error("{path}: cannot open the socket")]
    Unix { path: PathBuf, source: io::Error },
    #[error("{address}: cannot open the port")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("TLS for {address} cannot be set up")]
    Tls { address: SocketAddr, source: TlsError },
}

/// An open socket, ready to be served.
pub struct Listener {
    socket: Socket,
    access: Arc<Access>,
}

enum Socket {
    Unix {
        listener: UnixListener,
        file: SocketFile,
    },
    Tcp {
        listener: TcpListener,
        tls: watch::Receiver<Arc<TlsSettings>>,
        config: Arc<rustls::ServerConfig>,
    },
}

impl UnixSettings {
    pub async fn bind(self) -> Result<Listener, ListenError> {
        let path = self.path;
        make_room(&path).await?;
        let failed = |source| ListenError::Unix {
            path: path.clone(),
            source,
        };
        let socket = UnixSocket::new_stream().map_err(failed)?;
        socket.bind(&path).map_err(failed)?;
        let own = rustix::process::geteuid().as_raw();
        let mode = match self.uids.keys().any(|uid| *uid != own && *uid != 0) {
            true => 0o666,
            false => 0o600,
        };
        // Before it listens: nobody can connect while the umask decides about the mode.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        let file = SocketFile::of(&path).map_err(failed)?;
        let listener = socket.listen(BACKLOG).map_err(failed)?;
        let access = Arc::new(Access::Unix {
            uids: self.uids,
            gateways: self.gateways,
        });
        Ok(Listener {
            socket: Socket::Unix { listener, file },
            access,
        })
    }
}

impl TcpSettings {
    pub async fn bind(self) -> Result<Listener, ListenError> {
        let address = self.address;
        let config =
            tls::server_config(&self.tls.borrow()).map_err(|source| ListenError::Tls { address, source })?;
        let failed = |source| ListenError::Tcp { address, source };
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }
        .map_err(failed)?;
        socket.set_reuseaddr(true).map_err(failed)?;
        socket.bind(address).map_err(failed)?;
        let listener = socket.listen(BACKLOG).map_err(failed)?;
        let access = Arc::new(Access::Tls(self.tls.clone()));
        Ok(Listener {
            socket: Socket::Tcp {
                listener,
                tls: self.tls,
                config,
            },
            access,
        })
    }
}

impl Listener {
    /// The port that was chosen, for TCP.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp { listener, .. } => listener.local_addr().ok(),
            Socket::Unix { .. } => None,
        }
    }

    /// Accepts until the receiver is gone.
    pub(super) async fn accept(self, connections: mpsc::Sender<Connection>, events: EventQueue) {
        match self.socket {
            Socket::Unix { listener, file } => {
                accept_unix(&listener, &self.access, &connections, &events).await;
                drop(file);
            }
            Socket::Tcp {
                listener,
                tls,
                config,
            } => {
                accept_tls(&listener, tls, config, &self.access, &connections, &events).await;
            }
        }
    }
}

async fn accept_unix(
    listener: &UnixListener,
    access: &Arc<Access>,
    connections: &mpsc::Sender<Connection>,
    events: &EventQueue,
) {
    let refusals = Refusals::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.closed() => return,
        };
        match accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream))) {
            Ok((credentials, stream)) => {
                let peer = Arc::new(Peer::Unix {
                    uid: credentials.uid(),
                    pid: credentials.pid(),
                });
                // Unheard: what is not read cannot be answered, and holds no file descriptor.
                if let Err(denied) = access.admit(&peer) {
                    refusals.note(events, peer, &denied.message);
                    continue;
                }
                let info = ConnectionInfo {
                    peer,
                    access: access.clone(),
                };
                _ = connections.send(Connection::new(stream, info)).await;
            }
            Err(error) => pause(&error).await,
        }
    }
}

async fn accept_tls(
    listener: &TcpListener,
    mut settings: watch::Receiver<Arc<TlsSettings>>,
    mut config: Arc<rustls::ServerConfig>,
    access: &Arc<Access>,
    connections: &mpsc::Sender<Connection>,
    events: &EventQueue,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let unknown = Arc::new(Unknown::default());
    let refusals = Arc::new(Refusals::default());
    let mut is_watching = true;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.closed() => return,
            changed = settings.changed(), if is_watching => {
                is_watching = changed.is_ok();
                match tls::server_config(&settings.borrow_and_update()) {
                    Ok(renewed) => config = renewed,
                    Err(error) => {
                        let cause = std::error::Error::source(&error).map(ToString::to_string);
                        tracing::error!(%error, cause, "new TLS settings are not usable: keeping the old ones");
                    }
                }
                continue;
            }
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                pause(&error).await;
                continue;
            }
        };
        let place = match unknown.place(address.ip()) {
            Ok(place) => place,
            Err(reason) => {
                refusals.note_handshake(events, address, &reason);
                continue;
            }
        };
        let config = config.clone();
        let (access, connections, events) = (access.clone(), connections.clone(), events.clone());
        let (handshakes, refusals) = (handshakes.clone(), refusals.clone());
        tokio::spawn(async move {
            match shake_hands(config, stream, address, access, &handshakes).await {
                Ok(Some(connection)) => _ = connections.send(connection.holding(place)).await,
                Ok(None) => {
                    tracing::debug!(%address, "a connection without a word: a look whether the port is open")
                }
                Err(message) => refusals.note_handshake(&events, address, &message),
            }
        });
    }
}

/// Connections that have shown no certificate of use yet, by where they come from.
#[derive(Default)]
struct Unknown {
    // A plain mutex: never held across an await.
    count: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

/// One of them, until dropped.
struct Place {
    unknown: Arc<Unknown>,
    from: IpAddr,
}

impl Unknown {
    fn place(self: &Arc<Self>, from: IpAddr) -> Result<Place, String> {
        let from = network(from);
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_address) = &mut *count;
        if *all >= UNKNOWN {
            return Err(format!(
                "{UNKNOWN} other connections have shown no certificate of use yet"
            ));
        }
        let of_one = by_address.entry(from).or_default();
        if *of_one >= UNKNOWN_OF_ONE {
            return Err(format!(
                "{UNKNOWN_OF_ONE} other connections from {from} have shown no certificate of use yet"
            ));
        }
        *of_one += 1;
        *all += 1;
        Ok(Place {
            unknown: self.clone(),
            from,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut count = self.unknown.count.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_address) = &mut *count;
        *all -= 1;
        if let Entry::Occupied(mut of_one) = by_address.entry(self.from) {
            *of_one.get_mut() -= 1;
            if *of_one.get() == 0 {
                of_one.remove();
            }
        }
    }
}

/// What shares its places: an IPv4 address, or an IPv6 /64, as whoever has one address there has all of them.
fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// Connections that came to nothing, told at most every [`WARNING_PAUSE`].
#[derive(Default)]
struct Refusals {
    // A plain mutex: never held across an await.
    told: Mutex<(Option<Instant>, u64)>,
}

impl Refusals {
    fn note(&self, events: &EventQueue, peer: Arc<Peer>, message: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, untold) = &mut *told;
        if last.is_some_and(|last| last.elapsed() < WARNING_PAUSE) {
            *untold += 1;
            events.refused().count_one(RefusedReason::Identity);
            return;
        }
        *last = Some(Instant::now());
        let message = match std::mem::take(untold) {
            0 => message.to_owned(),
            others => format!("{message}; and {others} others since the last line"),
        };
        events.send(Event::Refused {
            peer,
            node: None,
            reason: RefusedReason::Identity,
            message: message.into(),
        });
    }

    fn note_handshake(&self, events: &EventQueue, address: SocketAddr, message: &str) {
        let sans = Vec::new();
        let message = format!("TLS handshake with an Envoy failed: {message}");
        self.note(events, Arc::new(Peer::Tls { address, sans }), &message);
    }
}

async fn shake_hands(
    config: Arc<rustls::ServerConfig>,
    stream: TcpStream,
    address: SocketAddr,
    access: Arc<Access>,
    handshakes: &Semaphore,
) -> Result<Option<Connection>, String> {
    // Responses are small and each waits for its answer: Nagle would add 40 ms.
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let handshake = async {
        // Health checks, and `portreeve envoy run` that waits for us, connect and leave.
        match stream.peek(&mut [0]).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
        // Only when all of the first message is here is it anybody's turn, so that those who say nothing, or half of
        // something, hold up nobody.
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let mut shaken = pin!(hello.into_stream(config));
        // Without a permit it is merely unbounded.
        let turn = handshakes.acquire().await.ok();
        if let Ok(shaken) = tokio::time::timeout(HANDSHAKE_TURN, &mut shaken).await {
            return shaken.map(Some);
        }
        drop(turn);
        shaken.await.map(Some)
    };
    let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| format!("no TLS handshake within {} s", HANDSHAKE_TIMEOUT.as_secs()))?
        .map_err(|error: io::Error| error.to_string())?;
    let Some(stream) = shaken else {
        return Ok(None);
    };
    let leaf = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let sans = leaf.map(|leaf| tls::sans(leaf)).unwrap_or_default();
    let peer = Arc::new(Peer::Tls { address, sans });
    Ok(Some(Connection::new(stream, ConnectionInfo { peer, access })))
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Removes a socket file that nobody serves any more.
async fn make_room(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Unix {
        path: path.to_owned(),
        source,
    };
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket {
            path: path.to_owned(),
        });
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(_) => Err(ListenError::InUse {
            path: path.to_owned(),
        }),
    }
}

/// Removes the file when the socket closes, if it is still ours and not that of a successor.
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            inode: std::fs::symlink_metadata(path)?.ino(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_places_to_the_others() {
        let unknown = Arc::new(Unknown::default());
        let address =
            |last: usize| IpAddr::from([10, 0, u8::try_from(last / 256).unwrap(), (last % 256) as u8]);
        let mut places = Vec::new();
        for from in 0..UNKNOWN / UNKNOWN_OF_ONE {
            for _ in 0..UNKNOWN_OF_ONE {
                places.push(unknown.place(address(from)).unwrap());
            }
            let refused = unknown.place(address(from)).err().unwrap();
            assert!(refused.contains("connections"), "{refused}");
        }
        assert!(
            unknown.place(address(9999)).is_err(),
            "there are no more places at all"
        );
        places.pop();
        let another = unknown.place(address(9999));
        assert!(another.is_ok());
        drop((places, another));
        for (one, of_the_same, of_another) in [
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"),
            ("::ffff:10.0.0.1", "10.0.0.1", "10.0.0.2"),
        ] {
            let place = |from: &str| unknown.place(from.parse().unwrap());
            let places: Vec<_> = (0..UNKNOWN_OF_ONE).map(|_| place(one).unwrap()).collect();
            assert!(place(of_the_same).is_err(), "{of_the_same}");
            assert!(place(of_another).is_ok(), "{of_another}");
            drop(places);
        }
        let count = unknown.count.lock().unwrap();
        assert_eq!((count.0, count.1.len()), (0, 0));
    }
}
