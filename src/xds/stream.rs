//! One stream: the loop that joins requests, published sets, deadlines and the end, and yields response frames.
//!
//! It is one body, polled by the connection's task: while Envoy does not read, it is not polled, takes no new
//! set and holds nothing but one response's pointers. It shares no lock with other streams while it sends.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use futures::Stream;
use http::HeaderMap;
use hyper::body::Frame;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::access::{Denied, GatewayAccess};
use super::connection::ConnectionInfo;
use super::event::{Event, RefusedReason, StreamId};
use super::exchange::{Actions, Report};
use super::gateways::Entry;
use super::limits::Violation;
use super::refusal::{is_of_node, said_of};
use super::requests::Requests;
use super::server::Shared;
use super::service::{DiscoveryMessage, status_code};
use super::stream_state::StreamState;
use super::streams::{About, Enrolled};
use super::wire::Chunks;
use crate::envoy::ResourceKind;

pub(super) fn serve<M: DiscoveryMessage>(
    shared: Arc<Shared>,
    connection: ConnectionInfo,
    permitted: GatewayAccess,
    mut requests: Requests<M>,
    stop: CancellationToken,
) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send {
    async_stream::stream! {
        let status = 'serving: {
            // Boxed: its room, and that of the first request, would be kept for as long as the stream lives.
            let opening = Box::pin(Opening::wait(&shared, &connection, &permitted, &mut requests, &stop)).await;
            let (mut message, mut session, entry) = match opening {
                Ok(Opening { message, session, entry }) => (message, session, entry),
                Err(status) => break 'serving status,
            };
            let mut resources = entry.resources;
            resources.mark_changed();
            let mut settings = connection.access.settings();
            let started = Instant::now();
            let mut state = StreamState::new(M::VARIANT, &shared.limits);
            // Made once: all streams wait for these two, and each new wait takes a lock that they share.
            let mut stopped = std::pin::pin!(stop.cancelled());
            let mut gone = std::pin::pin!(entry.gone.cancelled());
            loop {
                let input = match message.take() {
                    Some(message) => Input::Message(message),
                    None => {
                        let now = started.elapsed();
                        tokio::select! {
                            () = &mut stopped => break 'serving Status::unavailable("the agent is stopping"),
                            () = &mut gone => {
                                break 'serving Status::unavailable("this gateway is not served here any more");
                            }
                            () = changed(&mut settings) => Input::Settings,
                            received = requests.next() => match received {
                                Ok(Some(message)) => Input::Message(Box::new(message)),
                                Ok(None) => break 'serving Status::ok(""),
                                Err(status) => break 'serving status,
                            },
                            changed = resources.changed() => match changed {
                                Ok(()) => Input::Resources,
                                Err(_) => break 'serving Status::unavailable("this gateway is not served here any more"),
                            },
                            () = sleep(state.deadline(now).map(|at| started + at)) => Input::Deadline,
                        }
                    }
                };
                let now = started.elapsed();
                let actions = match input {
                    Input::Message(message) => match session.on_message(&mut state, *message, now) {
                        Ok(actions) => actions,
                        Err(violation) => break 'serving session.on_violation(&violation),
                    },
                    Input::Resources => {
                        let newest = resources.borrow_and_update().clone();
                        // None: not complete yet, or no longer known. What was said before stands.
                        newest.map(|set| state.on_set(&set, now)).unwrap_or_default()
                    }
                    Input::Settings => match connection.access.still_admits(&connection.peer, &session.gateway) {
                        Ok(()) => continue,
                        Err(denied) => break 'serving session.on_denied(denied),
                    },
                    Input::Deadline => state.on_deadline(now),
                };
                // First the view: whoever hears of an acknowledgement finds it there.
                session.enrolled.update(&state);
                session.report(actions.reports);
                for response in actions.responses {
                    for chunk in Chunks::new(M::VARIANT, response) {
                        yield Ok(Frame::data(chunk));
                    }
                }
            }
        };
        yield Ok(Frame::trailers(trailers(status)));
    }
}

enum Input<M> {
    Message(Box<M>),
    Resources,
    Settings,
    Deadline,
}

/// A stream after its first request, which says who Envoy is and what it wants to be.
struct Opening<M> {
    message: Option<Box<M>>,
    session: Session,
    entry: Entry,
}

impl<M: DiscoveryMessage> Opening<M> {
    async fn wait(
        shared: &Arc<Shared>,
        connection: &ConnectionInfo,
        permitted: &GatewayAccess,
        requests: &mut Requests<M>,
        stop: &CancellationToken,
    ) -> Result<Self, Status> {
        let refuse = |node: Option<&Node>, reason, message: String| {
            let node: Option<Arc<str>> = node.map(|node| node.id.as_str().into());
            let peer = connection.peer.clone();
            shared.events.send(Event::Refused {
                peer,
                node,
                reason,
                message: message.as_str().into(),
            });
            Status::new(status_code(reason), message)
        };
        let place = match Place::take(shared) {
            Some(place) => place,
            None => {
                let limit = shared.limits.streams;
                let message = format!(
                    "{limit} Envoy streams are open, the most that one agent serves: connect this Envoy to another agent"
                );
                return Err(refuse(None, RefusedReason::Limit, message));
            }
        };
        let first = tokio::select! {
            first = tokio::time::timeout(shared.limits.first_request, requests.next()) => first,
            () = stop.cancelled() => return Err(Status::unavailable("the agent is stopping")),
        };
        let mut message = match first {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return Err(Status::ok("")),
            Ok(Err(status)) => {
                return Err(refuse(None, RefusedReason::Protocol, status.message().to_owned()));
            }
            Err(_) => {
                let seconds = shared.limits.first_request.as_secs();
                return Err(refuse(
                    None,
                    RefusedReason::Protocol,
                    format!("no request within {seconds} s"),
                ));
            }
        };
        let node = message.take_node().unwrap_or_default();
        if let Err(violation) = shared.limits.check_node(&node) {
            return Err(refuse(Some(&node), RefusedReason::Limit, violation.to_string()));
        }
        let gateway = match permitted.choose(&node.cluster) {
            Ok(gateway) => gateway,
            Err(Denied { reason, message }) => return Err(refuse(Some(&node), reason, message)),
        };
        let Some(entry) = shared.gateways.find(&gateway) else {
            let message = format!(
                "gateway {gateway:?} (node.cluster) is not served here: name it in the agent's settings"
            );
            return Err(refuse(Some(&node), RefusedReason::UnknownGateway, message));
        };
        let session = Session::begin::<M>(shared, connection, &node, gateway, place);
        Ok(Self {
            message: Some(Box::new(message)),
            session,
            entry,
        })
    }
}

/// One place of the limited number of streams.
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let before = shared.open.fetch_add(1, Ordering::AcqRel);
        let place = Self(shared.clone());
        (before < shared.limits.streams).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Who this stream is to others. Its end is told however the stream ends.
struct Session {
    id: StreamId,
    node: Arc<str>,
    gateway: Arc<str>,
    shared: Arc<Shared>,
    connection: ConnectionInfo,
    enrolled: Enrolled,
    has_met_other_type: bool,
    _place: Place,
}

impl Session {
    fn begin<M: DiscoveryMessage>(
        shared: &Arc<Shared>,
        connection: &ConnectionInfo,
        node: &Node,
        gateway: Arc<str>,
        place: Place,
    ) -> Self {
        let id = shared.streams.next_id();
        let name: Arc<str> = node.id.as_str().into();
        let peer = connection.peer.clone();
        let variant = M::VARIANT;
        tracing::info!(stream = %id, node = %name, %gateway, %peer, ?variant, "Envoy connected");
        let enrolled = shared.streams.add(About {
            id,
            node: name.clone(),
            envoy_version: envoy_version(node),
            gateway: gateway.clone(),
            peer: peer.clone(),
            variant,
        });
        let event = Event::Connected {
            stream: id,
            node: name.clone(),
            gateway: gateway.clone(),
            peer,
            variant,
        };
        shared.events.send(event);
        Self {
            id,
            node: name,
            gateway,
            shared: shared.clone(),
            connection: connection.clone(),
            enrolled,
            has_met_other_type: false,
            _place: place,
        }
    }

    fn on_message<M: DiscoveryMessage>(
        &mut self,
        state: &mut StreamState,
        message: M,
        now: Duration,
    ) -> Result<Actions, Violation> {
        let Some(kind) = ResourceKind::from_type_url(message.type_url()) else {
            // We publish nothing that makes Envoy ask for other types; a bootstrap with extras may.
            if !std::mem::replace(&mut self.has_met_other_type, true) {
                let type_url = message.type_url();
                tracing::warn!(stream = %self.id, node = %self.node, type_url, "Envoy asks for a type that is not served");
            }
            return Ok(Actions::default());
        };
        state.on_request(message.into_request(kind), now)
    }

    fn on_violation(&self, violation: &Violation) -> Status {
        let message = violation.to_string();
        tracing::warn!(stream = %self.id, node = %self.node, message, "Envoy's stream ended by a limit");
        self.shared.events.send(Event::Refused {
            peer: self.connection.peer.clone(),
            node: Some(self.node.clone()),
            reason: RefusedReason::Limit,
            message: message.as_str().into(),
        });
        Status::new(Code::ResourceExhausted, message)
    }

    /// The table changed, and this peer is no longer in it.
    fn on_denied(&self, denied: Denied) -> Status {
        let Denied { reason, message } = denied;
        tracing::warn!(stream = %self.id, node = %self.node, message, "Envoy's stream ended by new settings");
        let (peer, node) = (self.connection.peer.clone(), Some(self.node.clone()));
        self.shared.events.send(Event::Refused {
            peer,
            node,
            reason,
            message: message.as_str().into(),
        });
        Status::new(status_code(reason), message)
    }

    fn report(&self, reports: Vec<Report>) {
        for report in reports {
            let (stream, gateway, node) = (self.id, self.gateway.clone(), self.node.clone());
            let event = match report {
                Report::Acked {
                    kind,
                    resources,
                    removed,
                } => Event::Acked {
                    stream,
                    gateway,
                    kind,
                    resources,
                    removed,
                },
                Report::Nacked {
                    kind,
                    candidates,
                    blamed,
                    proven,
                    message,
                } => {
                    let is_trouble_of_node =
                        |name: &Arc<str>| is_of_node(kind, &said_of(kind, &message, name, &blamed));
                    // A port that is taken is tried again for as long as it is: whoever tells what is wrong tells it once.
                    if proven && blamed.iter().all(is_trouble_of_node) {
                        tracing::debug!(%stream, %node, %gateway, ?kind, ?blamed, %message, "Envoy cannot open what it was given");
                    } else {
                        tracing::warn!(%stream, %node, %gateway, ?kind, ?blamed, proven, %message, "Envoy refused resources");
                    }
                    Event::Nacked {
                        stream,
                        node,
                        gateway,
                        kind,
                        candidates,
                        blamed,
                        proven,
                        message,
                    }
                }
                Report::Wanted { kind, name, .. } => {
                    tracing::info!(%stream, %node, %gateway, ?kind, %name, "Envoy needs a resource that must be made anew");
                    Event::Wanted {
                        stream,
                        gateway,
                        kind,
                        name,
                    }
                }
            };
            self.shared.events.send(event);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        tracing::info!(stream = %self.id, node = %self.node, gateway = %self.gateway, "Envoy disconnected");
        let (stream, node, gateway) = (self.id, self.node.clone(), self.gateway.clone());
        self.shared.events.send(Event::Disconnected {
            stream,
            node,
            gateway,
        });
    }
}

fn envoy_version(node: &Node) -> Option<Arc<str>> {
    match node.user_agent_version_type.as_ref()? {
        UserAgentVersionType::UserAgentVersion(text) => Some(text.as_str().into()),
        UserAgentVersionType::UserAgentBuildVersion(build) => {
            let version = build.version.as_ref()?;
            Some(
                format!(
                    "{}.{}.{}",
                    version.major_number, version.minor_number, version.patch
                )
                .into(),
            )
        }
    }
}

/// Never, once nobody can change them any more.
async fn changed<T>(settings: &mut Option<watch::Receiver<T>>) {
    if let Some(receiver) = settings {
        if receiver.changed().await.is_ok() {
            return;
        }
        *settings = None;
    }
    std::future::pending().await
}

async fn sleep(until: Option<Instant>) {
    match until {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn trailers(status: Status) -> HeaderMap {
    let mut map = HeaderMap::new();
    if status.add_header(&mut map).is_err() {
        // A message that is no valid header: the code says enough.
        map.insert("grpc-status", http::HeaderValue::from_static("2"));
    }
    map
}
