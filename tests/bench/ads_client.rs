//! One delta stream that asks in Envoy's order, and keeps names and versions instead of resources.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use portreeve::envoy::ResourceKind;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// Versions by kind and name.
pub type Held = BTreeMap<ResourceKind, HashMap<String, String>>;

pub struct AdsClient {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    asked: BTreeSet<ResourceKind>,
    held: Held,
}

/// What a response said. Bytes are those of whole resources, as they are on the wire.
#[derive(Default)]
pub struct Told {
    /// Of each resource in a version that was not held: its kind and bytes.
    pub news: Vec<(ResourceKind, usize)>,
    /// Of what was held already, and of names that were removed.
    pub other_bytes: usize,
}

impl Told {
    pub fn bytes(&self) -> usize {
        self.other_bytes + self.news.iter().map(|(_, bytes)| bytes).sum::<usize>()
    }
}

impl AdsClient {
    /// As an Envoy that begins, or that comes back with what it holds: then it asks for every kind at once. Waits until
    /// somebody listens.
    pub async fn open(socket: &Path, held: Held) -> AdsClient {
        let channel = connect(socket).await;
        let (requests, receiver) = mpsc::channel(16);
        let mut first = match held.is_empty() {
            true => vec![
                ask(ResourceKind::Cluster, Vec::new()),
                ask(ResourceKind::Listener, Vec::new()),
            ],
            false => held
                .iter()
                .map(|(kind, versions)| resume(*kind, versions))
                .collect(),
        };
        first[0].node = Some(Node {
            id: "bench".to_owned(),
            cluster: "edge".to_owned(),
            ..Node::default()
        });
        let kinds = first
            .iter()
            .filter_map(|request| ResourceKind::from_type_url(&request.type_url));
        let asked = kinds.collect();
        for request in first {
            requests.send(request).await.expect("a stream");
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX);
        let stream = client.delta_aggregated_resources(ReceiverStream::new(receiver));
        AdsClient {
            requests,
            responses: stream.await.expect("a stream").into_inner(),
            asked,
            held,
        }
    }

    pub fn count(&self, kind: ResourceKind) -> usize {
        self.held.get(&kind).map_or(0, HashMap::len)
    }

    /// So many services, each with a host of its own, are all there: clusters, endpoints and the hosts' routes.
    pub fn holds(&self, services: usize) -> bool {
        let kinds = [
            ResourceKind::Cluster,
            ResourceKind::Endpoint,
            ResourceKind::ScopedRoute,
        ];
        kinds.into_iter().all(|kind| self.count(kind) >= services) && self.count(ResourceKind::Listener) > 0
    }

    /// Ends the stream.
    pub fn into_held(self) -> Held {
        self.held
    }

    /// Takes the next response, acknowledges it and asks for what it makes necessary.
    pub async fn next(&mut self) -> Told {
        let response = self.responses.message().await;
        let response = response.expect("a stream").expect("a stream that goes on");
        let kind = ResourceKind::from_type_url(&response.type_url).expect("a kind");
        let mut told = Told::default();
        let versions = self.held.entry(kind).or_default();
        let mut fresh = Vec::new();
        for resource in &response.resources {
            let bytes = resource.encoded_len();
            match versions.insert(resource.name.clone(), resource.version.clone()) {
                Some(held) if held == resource.version => {
                    told.other_bytes += bytes;
                    continue;
                }
                Some(_) => {}
                None => fresh.push(resource.name.clone()),
            }
            told.news.push((kind, bytes));
        }
        for name in &response.removed_resources {
            versions.remove(name);
            told.other_bytes += name.len();
        }
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        })
        .await;
        match kind {
            ResourceKind::Cluster if !fresh.is_empty() => {
                self.asked.insert(ResourceKind::Endpoint);
                self.send(ask(ResourceKind::Endpoint, fresh)).await;
            }
            ResourceKind::Listener if self.asked.insert(ResourceKind::ScopedRoute) => {
                self.send(ask(ResourceKind::ScopedRoute, Vec::new())).await;
            }
            _ => {}
        }
        told
    }

    async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.expect("a stream");
    }
}

async fn connect(socket: &Path) -> Channel {
    loop {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .expect("an address")
            .initial_stream_window_size(2 << 20)
            .initial_connection_window_size(4 << 20);
        match endpoint.connect().await {
            Ok(channel) => return channel,
            // Nobody listens yet, or the backlog is full for a moment.
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// No names: everything.
fn ask(kind: ResourceKind, names: Vec<String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: names,
        ..DeltaDiscoveryRequest::default()
    }
}

/// Endpoints are asked for by name, the other kinds as a whole.
fn resume(kind: ResourceKind, versions: &HashMap<String, String>) -> DeltaDiscoveryRequest {
    let names = match kind {
        ResourceKind::Endpoint => versions.keys().cloned().collect(),
        _ => Vec::new(),
    };
    DeltaDiscoveryRequest {
        initial_resource_versions: versions.clone(),
        ..ask(kind, names)
    }
}
