//! The gRPC service by hand: responses are our own bytes.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use http_body_util::StreamBody;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};

use super::connection::ConnectionInfo;
use super::event::{Event, RefusedReason};
use super::exchange::{Asked, Request, Variant};
use super::requests::Requests;
use super::server::Shared;
use super::stream;
use crate::envoy::ResourceKind;

const NAME: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";

#[derive(Clone)]
pub(super) struct DiscoveryService {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl DiscoveryService {
    pub(super) fn new(shared: Arc<Shared>, stop: CancellationToken) -> Self {
        Self { shared, stop }
    }

    pub(super) fn answer(
        &self,
        connection: ConnectionInfo,
        request: http::Request<Incoming>,
    ) -> http::Response<Body> {
        let method = request
            .uri()
            .path()
            .strip_prefix('/')
            .and_then(|path| path.strip_prefix(NAME));
        match method {
            Some("/DeltaAggregatedResources") => self.open::<DeltaDiscoveryRequest>(connection, request),
            Some("/StreamAggregatedResources") => self.open::<DiscoveryRequest>(connection, request),
            _ => Status::unimplemented("only aggregated discovery is served: set ads_config").into_http(),
        }
    }

    fn open<M: DiscoveryMessage>(
        &self,
        connection: ConnectionInfo,
        request: http::Request<Incoming>,
    ) -> http::Response<Body> {
        let permitted = match connection.access.admit(&connection.peer) {
            Ok(permitted) => permitted,
            Err(denied) => {
                let event = Event::Refused {
                    peer: connection.peer,
                    node: None,
                    reason: denied.reason,
                    message: denied.message.as_str().into(),
                };
                self.shared.events.send(event);
                return Status::new(status_code(denied.reason), denied.message).into_http();
            }
        };
        let requests = Requests::<M>::new(request.into_body(), self.shared.limits.request_bytes);
        let frames = stream::serve(
            self.shared.clone(),
            connection,
            permitted,
            requests,
            self.stop.clone(),
        );
        http::Response::builder()
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .body(Body::new(StreamBody::new(frames)))
            .unwrap_or_else(|error| Status::internal(error.to_string()).into_http())
    }
}

/// What both dialects' requests have in common.
pub(super) trait DiscoveryMessage: prost::Message + Default + Send + 'static {
    const VARIANT: Variant;

    fn take_node(&mut self) -> Option<Node>;

    fn type_url(&self) -> &str;

    fn into_request(self, kind: ResourceKind) -> Request;
}

impl DiscoveryMessage for DeltaDiscoveryRequest {
    const VARIANT: Variant = Variant::Delta;

    fn take_node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn into_request(self, kind: ResourceKind) -> Request {
        Request {
            kind,
            nonce: nonce(&self.response_nonce),
            error: self.error_detail.map(|status| status.message),
            asked: Asked::Delta {
                subscribe: self.resource_names_subscribe,
                unsubscribe: self.resource_names_unsubscribe,
                initial: self.initial_resource_versions,
            },
        }
    }
}

impl DiscoveryMessage for DiscoveryRequest {
    const VARIANT: Variant = Variant::StateOfTheWorld;

    fn take_node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn into_request(self, kind: ResourceKind) -> Request {
        Request {
            kind,
            nonce: nonce(&self.response_nonce),
            error: self.error_detail.map(|status| status.message),
            asked: Asked::StateOfTheWorld {
                names: self.resource_names,
                version: self.version_info,
            },
        }
    }
}

pub(super) fn status_code(reason: RefusedReason) -> Code {
    match reason {
        RefusedReason::Identity => Code::Unauthenticated,
        RefusedReason::GatewayNotPermitted => Code::PermissionDenied,
        RefusedReason::UnknownGateway => Code::NotFound,
        RefusedReason::Limit => Code::ResourceExhausted,
        RefusedReason::Protocol => Code::InvalidArgument,
    }
}

/// Ours count from 1: anything that is no number answers none of our responses.
fn nonce(text: &str) -> Option<u64> {
    (!text.is_empty()).then(|| text.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::access::GatewayAccess;
    use crate::xds::{Gateways, Limits, Server};

    /// It is there once for each Envoy, and waits nearly always: what a request needs is not to be kept in it.
    #[tokio::test]
    async fn a_stream_that_waits_takes_four_kilobytes() {
        fn size_of_output<I, O>(_: impl Fn(I) -> O) -> usize {
            size_of::<O>()
        }
        let (server, _events) = Server::new(Gateways::default(), Limits::default(), 16);
        let serve = |(connection, requests): (ConnectionInfo, Requests<DeltaDiscoveryRequest>)| {
            let stop = CancellationToken::new();
            stream::serve(
                server.shared.clone(),
                connection,
                GatewayAccess::All,
                requests,
                stop,
            )
        };
        let bytes = size_of_output(serve);
        assert!(bytes <= 4096, "{bytes}");
    }
}
