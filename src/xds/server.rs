//! The aggregated discovery server: what all listeners and streams share.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::event::{Event, EventQueue};
use super::gateways::Gateways;
use super::limits::Limits;
use super::listener::Listener;
use super::service::DiscoveryService;
use super::streams::Streams;

/// A peer that is gone without a word (power, firewall) is noticed within these two.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests of a reconnecting Envoy can be megabytes; the default window of 64 KiB would take a round trip for each part.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Envoy opens one stream; two more while it reconnects. Anything else is no Envoy.
const STREAMS_PER_CONNECTION: u32 = 16;
/// For streams whose Envoy does not read any more.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// Serves any number of listeners. Clones are the same server.
#[derive(Clone)]
pub struct Server {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) gateways: Gateways,
    pub(super) streams: Streams,
    pub(super) events: EventQueue,
    pub(super) limits: Limits,
    /// Streams that are open, those refused by the limit not counted.
    pub(super) open: AtomicUsize,
}

#[derive(Debug, Error)]
pub enum ServerError {
    #[error("the discovery server ended")]
    Transport(#[from] tonic::transport::Error),
}

impl Server {
    pub fn new(gateways: Gateways, limits: Limits, event_capacity: usize) -> (Self, mpsc::Receiver<Event>) {
        let (events, receiver) = EventQueue::new(event_capacity);
        let open = AtomicUsize::new(0);
        (
            Self {
                shared: Arc::new(Shared {
                    gateways,
                    streams: Streams::default(),
                    events,
                    limits,
                    open,
                }),
            },
            receiver,
        )
    }

    pub fn gateways(&self) -> &Gateways {
        &self.shared.gateways
    }

    pub fn streams(&self) -> &Streams {
        &self.shared.streams
    }

    /// Serves one listener until stopped. Then no connection is taken any more, every peer gets a GOAWAY, streams end,
    /// and Envoys keep what they have.
    pub async fn serve(&self, listener: Listener, stop: CancellationToken) -> Result<(), ServerError> {
        let (connections, incoming) = mpsc::channel(64);
        let service = DiscoveryService::new(self.shared.clone(), stop.clone());
        let mut accepting = tokio::task::JoinSet::new();
        accepting.spawn(listener.accept(connections, self.shared.events.clone()));
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .add_service(service)
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.clone().cancelled_owned());
        let give_up = async {
            stop.cancelled().await;
            tokio::time::sleep(SHUTDOWN_PATIENCE).await;
        };
        let served = tokio::select! {
            served = serving => served.map_err(ServerError::from),
            () = give_up => {
                tracing::warn!("some Envoys did not end their streams in time: closing them");
                Ok(())
            }
        };
        // The socket file is removed by the accepting task.
        accepting.abort_all();
        while accepting.join_next().await.is_some() {}
        served
    }
}
