//! Connections for long polls alone: HTTP/2 over TLS, and for each poll that waits nothing but its stream.
//!
//! A request of reqwest keeps, while it waits, what it might have needed to connect and to follow a redirect: 10 KiB, and
//! ten thousand polls wait at all times. Here a poll that waits is a handle of some bytes and the connection's own record
//! of its stream. See `docs/adr/0011-streams-of-long-polls.md`.
//!
//! In: a request without a body, and the lane whose connection it goes over. Out: the head of the answer and its body as it
//! comes. Each lane has one connection, dialled by whoever first needs it, while others of the lane wait for the outcome.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason};
use http::Request;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use url::Url;

use super::connector::{CONNECT_TIMEOUT, KEEPALIVE};
use super::error::{TransportFailure, without_jargon};
use super::tls::HTTP_2;

/// Where a connection leads, and by which TLS.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) tls: Arc<ClientConfig>,
    /// To dial.
    pub(super) host: Arc<str>,
    pub(super) port: u16,
    /// To verify.
    pub(super) name: ServerName<'static>,
}

/// Shared by all who waited for the same connection.
#[derive(Clone, Debug, Error)]
#[error("{reason}")]
pub(super) struct StreamError {
    pub(super) failure: TransportFailure,
    pub(super) reason: Arc<str>,
    /// The server says that it has not looked at the request.
    unprocessed: bool,
}

/// The place of one connection.
#[derive(Debug, Default)]
pub(super) struct Lane(Mutex<Slot>);

#[derive(Debug, Default)]
struct Slot {
    open: Option<Arc<Connection>>,
    /// How the last dial ended that brought no connection. None in it: the server has no HTTP/2.
    in_vain: Option<(Instant, Option<StreamError>)>,
}

/// It closes when nobody holds it any more and its streams have ended.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Bytes>,
    /// It did not answer a ping.
    silent: AtomicBool,
}

/// An answer that is awaited, with the connection that it comes over.
pub(super) struct Awaited {
    response: ResponseFuture,
    connection: Arc<Connection>,
}

/// An answer, its body still to come.
#[derive(Debug)]
pub(super) struct Streamed {
    pub(super) response: http::Response<h2::RecvStream>,
    connection: Arc<Connection>,
}

impl Target {
    /// `base` is what requests are made from: its host is the one to verify. None: no URL of TLS.
    pub(super) fn new(tls: Arc<ClientConfig>, authority: &str, base: &Url) -> Option<Self> {
        let dialled = Url::parse(&format!("https://{authority}/")).ok()?;
        let name = bare(base)?.to_owned();
        Some(Self {
            tls,
            host: bare(&dialled)?.into(),
            port: base.port_or_known_default()?,
            name: ServerName::try_from(name).ok()?,
        })
    }

    /// None: the server has no HTTP/2.
    async fn dial(&self, lane: &Arc<Lane>) -> Result<Option<Arc<Connection>>, StreamError> {
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let connected = timeout(CONNECT_TIMEOUT, async {
            let tcp = self.connect().await?;
            tcp.set_nodelay(true)?;
            TlsConnector::from(self.tls.clone())
                .connect(self.name.clone(), tcp)
                .await
        });
        let stream = connected
            .await
            .unwrap_or_else(|_| Err(late()))
            .map_err(|error| StreamError::connecting(&error))?;
        if stream.get_ref().1.alpn_protocol() != Some(HTTP_2) {
            return Ok(None);
        }
        let shaken = timeout(CONNECT_TIMEOUT, builder().handshake(stream)).await;
        let (sender, mut h2) = match shaken {
            Ok(shaken) => shaken.map_err(|error| StreamError::of(&error, false))?,
            Err(_) => return Err(StreamError::connecting(&late())),
        };
        let pings = h2.ping_pong();
        let connection = Arc::new(Connection {
            sender,
            silent: AtomicBool::new(false),
        });
        let watched = (Arc::downgrade(lane), Arc::downgrade(&connection));
        tokio::spawn(async move {
            let Some(pings) = pings else { return };
            tokio::select! {
                ended = &mut h2 => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection of long polls ended");
                },
                () = look_after(pings, watched) => {}
            }
        });
        Ok(Some(connection))
    }

    /// To the first of its addresses that answers. The next one is tried, too, where one has failed or is slow (RFC 8305).
    async fn connect(&self) -> io::Result<TcpStream> {
        let mut addresses = tokio::net::lookup_host((&*self.host, self.port)).await?;
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
        let mut under_way: FuturesUnordered<_> =
            addresses.next().map(TcpStream::connect).into_iter().collect();
        while !under_way.is_empty() {
            match timeout(NEXT_ADDRESS, under_way.next()).await {
                Ok(Some(Ok(stream))) => return Ok(stream),
                Ok(Some(Err(error))) => failed = error,
                Ok(None) | Err(_) => {}
            }
            under_way.extend(addresses.next().map(TcpStream::connect));
        }
        Err(failed)
    }
}

impl Lane {
    /// The connection of this lane. None: the server has no HTTP/2.
    pub(super) async fn connection(
        self: &Arc<Self>,
        target: &Target,
    ) -> Result<Option<Arc<Connection>>, StreamError> {
        let asked = Instant::now();
        let mut slot = self.0.lock().await;
        if let Some(open) = slot.open.as_ref().filter(|open| open.is_usable()) {
            return Ok(Some(open.clone()));
        }
        // Who waited while another dialled in vain has waited for that, too: else each would try by itself, one after
        // the other.
        if let Some((at, why)) = slot.in_vain.as_ref().filter(|(at, _)| *at >= asked) {
            tracing::trace!(?at, "the connection that was waited for is none");
            return why.clone().map_or(Ok(None), Err);
        }
        slot.open = None;
        let dialled = target.dial(self).await;
        match &dialled {
            Ok(Some(connection)) => slot.open = Some(connection.clone()),
            Ok(None) => slot.in_vain = Some((Instant::now(), None)),
            Err(error) => slot.in_vain = Some((Instant::now(), Some(error.clone()))),
        }
        dialled
    }
}

impl Connection {
    /// Whether it takes another stream: it has not ended, and the server has not said that it will.
    fn is_usable(&self) -> bool {
        let mut sender = self.sender.clone();
        let ready = std::future::poll_fn(|context| sender.poll_ready(context));
        matches!(ready.now_or_never(), Some(Ok(())))
    }

    pub(super) fn send(self: Arc<Self>, request: Request<()>) -> Result<Awaited, StreamError> {
        match self.sender.clone().send_request(request, true) {
            Ok((response, _)) => Ok(Awaited {
                response,
                connection: self,
            }),
            Err(error) => Err(self.error(&error)),
        }
    }

    fn error(&self, error: &h2::Error) -> StreamError {
        StreamError::of(error, self.silent.load(Ordering::Relaxed))
    }
}

impl Awaited {
    /// No `async fn`: it would hold everything twice, and ten thousand wait in here.
    pub(super) fn head(self) -> impl Future<Output = Result<Streamed, StreamError>> + use<> {
        let Self { response, connection } = self;
        response.map(|replied| match replied {
            Ok(response) => Ok(Streamed { response, connection }),
            Err(error) => Err(connection.error(&error)),
        })
    }
}

impl Streamed {
    /// None: it was the last.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, StreamError> {
        let body = self.response.body_mut();
        let chunk = match body.data().await {
            None => return Ok(None),
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return Err(self.connection.error(&error)),
        };
        // Else the server stops sending when the window is full.
        match body.flow_control().release_capacity(chunk.len()) {
            Ok(()) => Ok(Some(chunk)),
            Err(error) => Err(self.connection.error(&error)),
        }
    }
}

impl StreamError {
    fn of(error: &h2::Error, silent: bool) -> Self {
        let reason = error.to_string();
        let failure = if silent {
            TransportFailure::TimedOut
        } else {
            TransportFailure::of_words(&reason).unwrap_or(TransportFailure::Cut)
        };
        let said = error.is_remote().then(|| error.reason()).flatten();
        Self {
            failure,
            unprocessed: match said {
                Some(Reason::REFUSED_STREAM) => error.is_reset(),
                Some(Reason::NO_ERROR) => error.is_go_away(),
                _ => false,
            },
            reason: reason.into(),
        }
    }

    fn connecting(error: &io::Error) -> Self {
        Self {
            failure: TransportFailure::of_connecting(error),
            reason: without_jargon(&error.to_string()).into(),
            unprocessed: false,
        }
    }

    pub(super) fn late() -> Self {
        Self {
            failure: TransportFailure::TimedOut,
            reason: "no answer in time".into(),
            unprocessed: false,
        }
    }

    /// The same request may be sent again, over another connection.
    pub(super) fn is_unprocessed(&self) -> bool {
        self.unprocessed
    }
}

/// Long polls are silent: without pings a dead peer is noticed only when the poll's time is over. Ends when the peer is dead;
/// gives the connection back when nobody used it for a while.
async fn look_after(mut pings: PingPong, (lane, connection): (Weak<Lane>, Weak<Connection>)) {
    let mut idle = 0;
    loop {
        tokio::time::sleep(KEEPALIVE).await;
        if let Some(lane) = lane.upgrade() {
            let mut slot = lane.0.lock().await;
            // The lane's own handle alone; nobody gets another while the lane is locked.
            let is_idle = connection.strong_count() <= 1;
            idle = if is_idle { idle + 1 } else { 0 };
            let is_ours = slot
                .open
                .as_ref()
                .is_some_and(|open| std::ptr::eq(Arc::as_ptr(open), connection.as_ptr()));
            if is_ours && idle >= IDLE_LOOKS {
                slot.open = None;
            }
        }
        // What is left of a connection that was given back ends by itself.
        if !matches!(timeout(KEEPALIVE, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            if let Some(connection) = connection.upgrade() {
                connection.silent.store(true, Ordering::Relaxed);
            }
            return;
        }
    }
}

/// As hyper has it, which is what these servers know.
fn builder() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(2 * 1024 * 1024)
        .initial_connection_window_size(5 * 1024 * 1024)
        .initial_max_send_streams(100)
        .max_header_list_size(16 * 1024);
    builder
}

fn bare(url: &Url) -> Option<&str> {
    Some(url.host_str()?.trim_start_matches('[').trim_end_matches(']'))
}

/// As the standard recommends, and what reqwest's connector takes.
const NEXT_ADDRESS: Duration = Duration::from_millis(300);

/// Looks at which nobody uses a connection, before it is given up: a minute and a half.
const IDLE_LOOKS: u32 = 4;
