//! Sockets and connections: bounded, and closed to everybody else.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures::future::join_all;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixSocket, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::recorder::Recorder;
use super::routes::router;
use crate::envoy_process::{Handle, Status};

/// A CLI, a scraper, a few checks. More of them wait.
const CONNECTIONS: usize = 64;
const BACKLOG: u32 = 128;
/// A client that does not finish its request line and headers is cut off.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// Request line and headers.
const HEAD_BYTES: usize = 64 * 1024;
/// For answers under way when the agent stops.
const STOP_GRACE: Duration = Duration::from_millis(500);
/// After a failed accept (out of file descriptors), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{path}: another agent serves this socket; stop it, or choose another path (-api-socket)")]
    InUse { path: PathBuf },
    #[error("{path}: exists and is no socket; choose another path (-api-socket)")]
    NotASocket { path: PathBuf },
    #[error("{path}: the API's socket cannot be opened")]
    Unix { path: PathBuf, source: io::Error },
    #[error("{address}: the API's port cannot be opened")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("{0} is not a loopback address: the API has neither TLS nor authentication")]
    NotLoopback(SocketAddr),
}

/// An open socket, ready to be served.
pub struct Listener {
    socket: Socket,
}

enum Socket {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener),
}

/// Serves everything on a unix socket until told to stop.
pub async fn serve_unix(path: &Path, api: Api, stop: CancellationToken) -> Result<(), ServeError> {
    Listener::unix(path).await?.serve(api, stop).await;
    Ok(())
}

/// Serves `/ready` and `/metrics` on a loopback port until told to stop.
pub async fn serve_tcp(address: SocketAddr, api: Api, stop: CancellationToken) -> Result<(), ServeError> {
    Listener::tcp(address).await?.serve(api, stop).await;
    Ok(())
}

impl Listener {
    pub async fn unix(path: &Path) -> Result<Self, ServeError> {
        make_room(path).await?;
        let failed = |source| ServeError::Unix {
            path: path.to_owned(),
            source,
        };
        let socket = UnixSocket::new_stream().map_err(failed)?;
        socket.bind(path).map_err(failed)?;
        // Before it listens: nobody can connect while the umask decides about the mode.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let file = SocketFile::of(path).map_err(failed)?;
        let listener = socket.listen(BACKLOG).map_err(failed)?;
        Ok(Self {
            socket: Socket::Unix(listener, file),
        })
    }

    pub async fn tcp(address: SocketAddr) -> Result<Self, ServeError> {
        if !address.ip().is_loopback() {
            return Err(ServeError::NotLoopback(address));
        }
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ServeError::Tcp { address, source })?;
        Ok(Self {
            socket: Socket::Tcp(listener),
        })
    }

    /// The port that was chosen, for TCP.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }

    /// Until told to stop. The socket counts the starts of supervised Envoys meanwhile.
    pub async fn serve(self, api: Api, stop: CancellationToken) {
        match self.socket {
            Socket::Unix(listener, file) => {
                let starts: Vec<_> = api
                    .envoys
                    .iter()
                    .map(|(gateway, envoy)| count_starts(gateway.clone(), envoy, api.recorder.clone()))
                    .collect();
                let connections = accept_unix(listener, router(api, false), stop.clone());
                tokio::select! {
                    () = connections => {}
                    // Ends when the last supervisor has; the API goes on.
                    () = async { join_all(starts).await; std::future::pending().await } => {}
                }
                drop(file);
            }
            Socket::Tcp(listener) => accept_tcp(listener, router(api, true), stop).await,
        }
    }
}

async fn accept_unix(listener: UnixListener, router: Router, stop: CancellationToken) {
    let own = rustix::process::geteuid().as_raw();
    let mut connections = Connections::new(router, stop);
    while connections.wait_for_room().await {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.stop.cancelled() => break,
        };
        match accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?.uid(), stream))) {
            // The file's mode says so already; a process that was handed the socket is refused too.
            Ok((uid, _)) if uid != own && uid != 0 => tracing::warn!(uid, "refused at the API's socket"),
            Ok((_, stream)) => connections.serve(stream),
            Err(error) => pause(&error).await,
        }
    }
    connections.finish().await;
}

async fn accept_tcp(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut connections = Connections::new(router, stop);
    while connections.wait_for_room().await {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => connections.serve(stream),
            Err(error) => pause(&error).await,
        }
    }
    connections.finish().await;
}

/// The connections of one listener.
struct Connections {
    router: Router,
    stop: CancellationToken,
    room: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl Connections {
    fn new(router: Router, stop: CancellationToken) -> Self {
        Self {
            router,
            stop,
            room: Arc::new(Semaphore::new(CONNECTIONS)),
            tasks: JoinSet::new(),
        }
    }

    /// False: told to stop.
    async fn wait_for_room(&mut self) -> bool {
        while self.tasks.try_join_next().is_some() {}
        tokio::select! {
            () = self.stop.cancelled() => false,
            // Given back at once: only this task takes places.
            permit = self.room.acquire() => permit.is_ok(),
        }
    }

    fn serve(&mut self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Ok(place) = self.room.clone().try_acquire_owned() else {
            return;
        };
        let service = TowerToHyperService::new(self.router.clone());
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _place = place;
            let mut connection = std::pin::pin!(
                http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADERS_TIMEOUT)
                    .max_buf_size(HEAD_BYTES)
                    .serve_connection(TokioIo::new(stream), service)
            );
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to the API broke off");
            }
        });
    }

    async fn finish(mut self) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        // What is left after the grace is dropped with the set.
        let _ = tokio::time::timeout(STOP_GRACE, all).await;
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "the API cannot accept a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Counts process ids that were not there before.
fn count_starts(gateway: Arc<str>, envoy: &Handle, recorder: Recorder) -> impl Future<Output = ()> + use<> {
    let mut status = envoy.status();
    async move {
        let mut last = None;
        loop {
            let pid = pid_of(&status);
            if pid.is_some() && pid != last {
                recorder.envoy_started(&gateway);
                last = pid;
            }
            if status.changed().await.is_err() {
                return;
            }
        }
    }
}

fn pid_of(status: &watch::Receiver<Status>) -> Option<u32> {
    match &*status.borrow() {
        Status::Starting { pid, .. } => Some(*pid),
        Status::Running(running) => Some(running.pid),
        Status::Replacing { next_pid, .. } => Some(*next_pid),
        Status::Waiting { .. }
        | Status::Backoff { .. }
        | Status::Stopping { .. }
        | Status::Stopped
        | Status::LeftRunning { .. } => None,
    }
}

/// Removes a socket file that nobody serves any more.
async fn make_room(path: &Path) -> Result<(), ServeError> {
    let failed = |source| ServeError::Unix {
        path: path.to_owned(),
        source,
    };
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ServeError::NotASocket {
            path: path.to_owned(),
        });
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(_) => Err(ServeError::InUse {
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
        let is_ours =
            std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode);
        if is_ours {
            // Left behind, it is recognised as unused by the next agent.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
