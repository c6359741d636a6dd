//! One connection of an Envoy: its HTTP/2 and its streams, polled as one task.
//!
//! hyper hands each stream to an executor, which would make a task of it. A message would then wake two tasks and its
//! acknowledgement two more, often on another core. A connection of ours has one stream, so nothing is lost where both
//! share a task: what a stream has to say is written when it has said it, in the same turn (ADR 14).

use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::access::{Access, Peer};
use super::service::DiscoveryService;
use super::turn::{CONNECTION, STOP, STREAMS, Turn};

/// A peer that is gone without a word (power, firewall) is noticed within these two.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests of a reconnecting Envoy can be megabytes; the default window of 64 KiB would take a round trip for each part.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Envoy opens one stream; two more while it reconnects. Anything else is no Envoy.
const STREAMS_PER_CONNECTION: u32 = 16;

/// Whoever may have nothing is let go after this: long enough to open a stream and be told why.
const STRANGER: Duration = Duration::from_secs(10);

/// What a stream may have ready beyond what the socket takes: two frames. The room in which frames wait is as large as it ever
/// was for as long as the connection lives: with hyper's 400 KiB it is that of 32 frames, 10 KiB for each Envoy.
const SEND_BUFFER: usize = 32 << 10;

/// A message takes one, its acknowledgement two.
const ROUNDS: usize = 8;

/// One accepted connection and who is behind it.
pub(super) struct Connection {
    io: Pin<Box<dyn Io>>,
    info: ConnectionInfo,
    /// Given up when dropped.
    place: Option<Box<dyn Send>>,
}

#[derive(Clone)]
pub(super) struct ConnectionInfo {
    pub(super) peer: Arc<Peer>,
    pub(super) access: Arc<Access>,
}

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

impl Connection {
    pub(super) fn new(io: impl AsyncRead + AsyncWrite + Send + 'static, info: ConnectionInfo) -> Self {
        Self {
            io: Box::pin(io),
            info,
            place: None,
        }
    }

    /// Its place among those who are not known yet: kept for as long as it may have nothing.
    pub(super) fn holding(mut self, place: impl Send + 'static) -> Self {
        self.place = Some(Box::new(place));
        self
    }

    /// Until the peer or the connection ends. After `stop` no stream is begun any more, the peer gets a GOAWAY, and the
    /// connection ends with its last stream.
    pub(super) async fn serve(mut self, service: DiscoveryService, stop: CancellationToken) {
        let info = self.info.clone();
        let place = self
            .place
            .take()
            .filter(|_| info.access.admit(&info.peer).is_err());
        let service =
            service_fn(move |request| ready(Ok::<_, Infallible>(service.answer(info.clone(), request))));
        let begun = Begun::default();
        let mut connection = pin!(
            http2::Builder::new(Begin(Arc::downgrade(&begun)))
                .timer(TokioTimer::new())
                .keep_alive_interval(Some(KEEPALIVE))
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_concurrent_streams(STREAMS_PER_CONNECTION)
                .max_send_buf_size(SEND_BUFFER)
                .serve_connection(TokioIo::new(self), service)
        );
        let mut stopped = pin!(stop.cancelled_owned());
        let mut streams: Vec<Stream> = Vec::new();
        let turn = Arc::new(Turn::default());
        let wakers = [STREAMS, CONNECTION, STOP].map(|whose| turn.clone().waker(whose));
        let ended = poll_fn(|context| {
            turn.begin(context);
            let [mut of_streams, mut of_connection, mut of_stop] = wakers.each_ref().map(Context::from_waker);
            // Bounded: each of the two may go on asking for the other, and other tasks are to have their turn.
            for _ in 0..ROUNDS {
                if turn.takes(STOP) && stopped.as_mut().poll(&mut of_stop).is_ready() {
                    connection.as_mut().graceful_shutdown();
                    turn.ask(CONNECTION);
                }
                // Before the connection: what they give is written below.
                if turn.takes(STREAMS) {
                    streams.retain_mut(|stream| stream.as_mut().poll(&mut of_streams).is_pending());
                }
                if turn.takes(CONNECTION) {
                    if let Poll::Ready(ended) = connection.as_mut().poll(&mut of_connection) {
                        return Poll::Ready(ended);
                    }
                    let mut new = begun.lock().unwrap_or_else(PoisonError::into_inner);
                    if !new.is_empty() {
                        streams.append(&mut new);
                        turn.ask(STREAMS);
                    }
                }
                if turn.is_over() {
                    return Poll::Pending;
                }
            }
            turn.give_up(context);
            Poll::Pending
        });
        let ended = match place {
            // Told why, and let go: nothing else bounds how many there are, or for how long.
            Some(_place) => tokio::time::timeout(STRANGER, ended).await.unwrap_or(Ok(())),
            None => ended.await,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an Envoy's connection ended");
        }
    }
}

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Streams that the connection has begun since it was last polled. A plain mutex: held for a push, by the one task that
/// has it.
type Begun = Arc<Mutex<Vec<Stream>>>;

/// The executor that hyper hands streams to. Each stream keeps one: were it not weak, those that nobody took up before
/// the connection ended would keep themselves.
#[derive(Clone)]
struct Begin(Weak<Mutex<Vec<Stream>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Begin {
    fn execute(&self, stream: F) {
        if let Some(begun) = self.0.upgrade() {
            let mut begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
            begun.push(Box::pin(stream));
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::access::GatewayAccess;
    use crate::xds::{Gateways, Limits, Server};

    /// hyper takes up the first stream and ends the connection over the second, in one poll.
    #[tokio::test]
    async fn a_stream_that_nobody_took_up_ends_with_its_connection() {
        let (server, _events) = Server::new(Gateways::default(), Limits::default(), 16);
        let shared = server.shared.clone();
        let (near, far) = tokio::io::duplex(64 << 10);
        let info = ConnectionInfo {
            peer: Arc::new(Peer::Unix { uid: 0, pid: None }),
            access: Arc::new(Access::Unix {
                uids: Default::default(),
                gateways: GatewayAccess::All,
            }),
        };
        let stop = CancellationToken::new();
        let service = DiscoveryService::new(shared.clone(), stop.clone());
        let serving = tokio::spawn(Connection::new(far, info).serve(service, stop));
        let (mut client, connection) = h2::client::handshake(near).await.unwrap();
        let request = |method, uri: &str, length: &str| {
            let request = http::Request::builder().method(method).uri(uri);
            request.header("content-length", length).body(()).unwrap()
        };
        let path =
            "http://agent/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
        let discovery = request(http::Method::POST, path, "0");
        let tunnel = request(http::Method::CONNECT, "agent:1", "5");
        let _first = client.send_request(discovery, false).unwrap();
        let _second = client.send_request(tunnel, false).unwrap();
        let driven = tokio::spawn(connection);
        let ended = tokio::time::timeout(Duration::from_secs(20), serving).await;
        ended.expect("hyper ends the connection").unwrap();
        driven.abort();
        drop(server);
        assert_eq!(
            Arc::strong_count(&shared),
            1,
            "the stream is gone, with all that it held"
        );
    }
}
