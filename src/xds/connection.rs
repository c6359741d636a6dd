//! One connection of an Envoy: its HTTP/2 and its streams, polled as one task.
//!
//! hyper hands each stream to an executor, which would be a task of its own. A message would then wake two tasks and its
//! acknowledgement two more, often on another core: with a thousand Envoys that is a third of what a change costs. A
//! connection of ours has one stream, so nothing is lost where both share a task: what a stream has to say is written
//! when it has said it, in the same turn.

use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::access::{Access, Peer};
use super::service::DiscoveryService;
use super::turn::{CONNECTION, STREAMS, Turn};

/// A peer that is gone without a word (power, firewall) is noticed within these two.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests of a reconnecting Envoy can be megabytes; the default window of 64 KiB would take a round trip for each part.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Envoy opens one stream; two more while it reconnects. Anything else is no Envoy.
const STREAMS_PER_CONNECTION: u32 = 16;

/// A message takes one, its acknowledgement two.
const ROUNDS: usize = 8;

/// One accepted connection and who is behind it.
pub(super) struct Connection {
    io: Pin<Box<dyn Io>>,
    info: ConnectionInfo,
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
        }
    }

    /// Until the peer or the connection ends. After `stop` no stream is begun any more, the peer gets a GOAWAY, and the
    /// connection ends with its last stream.
    pub(super) async fn serve(self, service: DiscoveryService, stop: CancellationToken) {
        let info = self.info.clone();
        let service =
            service_fn(move |request| ready(Ok::<_, Infallible>(service.answer(info.clone(), request))));
        let begun = Begun::default();
        let mut connection = pin!(
            http2::Builder::new(begun.clone())
                .timer(TokioTimer::new())
                .keep_alive_interval(Some(KEEPALIVE))
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_concurrent_streams(STREAMS_PER_CONNECTION)
                .serve_connection(TokioIo::new(self), service)
        );
        let mut stopped = pin!(stop.cancelled_owned());
        let mut is_stopping = false;
        let mut streams = FuturesUnordered::new();
        let turn = Arc::new(Turn::default());
        let (for_streams, for_connection) = (turn.clone().waker(STREAMS), turn.clone().waker(CONNECTION));
        let ended = poll_fn(|context| {
            turn.begin(context);
            let mut of_streams = Context::from_waker(&for_streams);
            let mut of_connection = Context::from_waker(&for_connection);
            // Bounded: who has used up what the runtime grants a task asks to be polled again at once.
            for _ in 0..ROUNDS {
                // First the streams: what they give is written below.
                if turn.takes(STREAMS) {
                    while let Poll::Ready(Some(())) = streams.poll_next_unpin(&mut of_streams) {}
                    if !is_stopping && stopped.as_mut().poll(&mut of_streams).is_ready() {
                        is_stopping = true;
                        connection.as_mut().graceful_shutdown();
                        turn.ask(CONNECTION);
                    }
                }
                if turn.takes(CONNECTION) {
                    if let Poll::Ready(ended) = connection.as_mut().poll(&mut of_connection) {
                        return Poll::Ready(ended);
                    }
                    for stream in begun.take() {
                        streams.push(stream);
                        turn.ask(STREAMS);
                    }
                }
                if turn.is_over() {
                    return Poll::Pending;
                }
            }
            turn.give_up(context);
            Poll::Pending
        })
        .await;
        if let Err(error) = ended {
            tracing::debug!(%error, "an Envoy's connection ended");
        }
    }
}

type Begin = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Streams that the connection has begun since it was last asked.
#[derive(Clone, Default)]
struct Begun(
    // A plain mutex: held for a push, by the one task that has it.
    Arc<Mutex<Vec<Begin>>>,
);

impl Begun {
    fn take(&self) -> Vec<Begin> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Begun {
    fn execute(&self, stream: F) {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        begun.push(Box::pin(stream));
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
