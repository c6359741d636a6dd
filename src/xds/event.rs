//! What happens on streams, for whoever keeps status, quarantines documents and issues certificates.
//!
//! Streams never wait for the consumer: when the queue is full, events are dropped and counted, and the consumer gets
//! [`Event::Lagged`] as soon as there is room. Nothing is lost by that for good, because every stream's view holds what
//! it acknowledged, refuses and wants: on `Lagged`, read [`super::Streams`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::access::Peer;
use super::exchange::Variant;
use super::refused_clients::{RefusedClient, RefusedClients};
use crate::envoy::{Resource, ResourceKind};

/// Unique within this process, ascending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct StreamId(pub u64);

#[derive(Clone, Debug)]
pub enum Event {
    Connected {
        stream: StreamId,
        /// Envoy's `node.id`: a label, no identity.
        node: Arc<str>,
        gateway: Arc<str>,
        peer: Arc<Peer>,
        variant: Variant,
    },
    Disconnected {
        stream: StreamId,
        node: Arc<str>,
        gateway: Arc<str>,
    },
    Acked {
        stream: StreamId,
        gateway: Arc<str>,
        kind: ResourceKind,
        resources: Vec<Arc<Resource>>,
        removed: Vec<Arc<str>>,
    },
    Nacked {
        stream: StreamId,
        node: Arc<str>,
        gateway: Arc<str>,
        kind: ResourceKind,
        candidates: Vec<Arc<Resource>>,
        blamed: Vec<Arc<str>>,
        /// Exactly the blamed ones are bad. False: the stream is trying the candidates apart, the proof follows.
        proven: bool,
        message: Arc<str>,
    },
    /// An Envoy needs a resource whose bytes nobody holds any more: it must be made anew.
    Wanted {
        stream: StreamId,
        gateway: Arc<str>,
        kind: ResourceKind,
        name: Arc<str>,
    },
    Refused {
        peer: Arc<Peer>,
        node: Option<Arc<str>>,
        reason: RefusedReason,
        message: Arc<str>,
    },
    /// This many events were dropped because the queue was full.
    Lagged { lost: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedReason {
    /// No client certificate, one that does not verify, or one that no gateway lists; a uid that may not.
    Identity,
    /// The gateway asked for is not among those this peer may have.
    GatewayNotPermitted,
    UnknownGateway,
    Limit,
    /// No first request in time, or one that is no discovery request.
    Protocol,
}

impl RefusedReason {
    pub const ALL: [Self; 5] = [
        Self::Identity,
        Self::GatewayNotPermitted,
        Self::UnknownGateway,
        Self::Limit,
        Self::Protocol,
    ];

    /// As in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::GatewayNotPermitted => "gateway_not_permitted",
            Self::UnknownGateway => "unknown_gateway",
            Self::Limit => "limit",
            Self::Protocol => "protocol",
        }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The sending half, shared by all streams.
#[derive(Clone)]
pub struct EventQueue {
    sender: mpsc::Sender<Event>,
    lag: Arc<Lag>,
    refused: RefusedClients,
}

#[derive(Default)]
struct Lag {
    lost: AtomicU64,
    is_reporting: AtomicBool,
}

impl EventQueue {
    pub fn new(capacity: usize) -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (
            Self {
                sender,
                lag: Arc::default(),
                refused: RefusedClients::default(),
            },
            receiver,
        )
    }

    pub(super) fn refused(&self) -> &RefusedClients {
        &self.refused
    }

    /// Must be called within a tokio runtime.
    pub(super) fn send(&self, event: Event) {
        if let Event::Refused {
            peer,
            node,
            reason,
            message,
        } = &event
        {
            self.refused.note(RefusedClient {
                at: SystemTime::now(),
                peer: peer.clone(),
                node: node.clone(),
                reason: *reason,
                message: message.clone(),
            });
        }
        // Whoever reaches a port can be refused again and again: what Envoys acknowledge must not be lost to that.
        if matches!(event, Event::Refused { .. }) && self.sender.capacity() < self.sender.max_capacity() / 2 {
            return;
        }
        // A consumer that is gone means that the process is ending.
        if let Err(TrySendError::Full(_)) = self.sender.try_send(event) {
            self.lag.lost.fetch_add(1, Ordering::Relaxed);
            if !self.lag.is_reporting.swap(true, Ordering::AcqRel) {
                tokio::spawn(report_lag(self.sender.clone(), self.lag.clone()));
            }
        }
    }
}

/// Waits for room, so that a loss is told even when no further event comes.
async fn report_lag(sender: mpsc::Sender<Event>, lag: Arc<Lag>) {
    if let Ok(permit) = sender.reserve().await {
        lag.is_reporting.store(false, Ordering::Release);
        let lost = lag.lost.swap(0, Ordering::AcqRel);
        tracing::debug!(
            lost,
            "the queue of events is full: whoever reads it is told to look at all streams"
        );
        permit.send(Event::Lagged { lost });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tells_what_it_lost() {
        let (queue, mut events) = EventQueue::new(1);
        for name in ["a", "b", "c"] {
            queue.send(Event::Wanted {
                stream: StreamId(1),
                gateway: "edge".into(),
                kind: ResourceKind::Secret,
                name: name.into(),
            });
        }
        assert!(matches!(events.recv().await, Some(Event::Wanted { name, .. }) if &*name == "a"));
        assert!(matches!(events.recv().await, Some(Event::Lagged { lost: 2 })));
    }
}
