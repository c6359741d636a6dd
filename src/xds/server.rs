//! The aggregated discovery server: what all listeners and streams share.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::event::{Event, EventQueue};
use super::gateways::Gateways;
use super::limits::Limits;
use super::listener::Listener;
use super::service::DiscoveryService;
use super::streams::Streams;

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

impl Server {
    pub fn new(gateways: Gateways, limits: Limits, event_capacity: usize) -> (Self, mpsc::Receiver<Event>) {
        let (events, receiver) = EventQueue::new(event_capacity);
        let open = AtomicUsize::new(0);
        (
            Self {
                shared: Arc::new(Shared {
                    gateways,
                    streams: Streams::with_refused(events.refused().clone()),
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
    pub async fn serve(&self, listener: Listener, stop: CancellationToken) {
        let (connections, mut incoming) = mpsc::channel::<Connection>(64);
        let service = DiscoveryService::new(self.shared.clone(), stop.clone());
        let mut accepting = JoinSet::new();
        accepting.spawn(listener.accept(connections, self.shared.events.clone()));
        let mut serving = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                connection = incoming.recv() => match connection {
                    Some(connection) => _ = serving.spawn(connection.serve(service.clone(), stop.clone())),
                    // Nobody accepts any more: whoever watches over this task is to hear of it.
                    None => break,
                },
                Some(_) = serving.join_next(), if !serving.is_empty() => {}
            }
        }
        // The socket file is removed by the accepting task.
        accepting.shutdown().await;
        let ended = async { while serving.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_PATIENCE, ended).await.is_err() {
            tracing::warn!("some Envoys did not end their streams in time: closing them");
        }
    }
}
