//! A server on a unix socket, what it publishes, and a scripted Envoy at the other end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use portreeve::envoy::{Resource, ResourceKind, ResourceSet};
use portreeve::xds::{Event, GatewayAccess, Gateways, Limits, Server, StreamView, UnixSettings};
use proptest::test_runner::Config as ProptestConfig;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::codec::Streaming;
use tonic::transport::{Channel, Endpoint};

/// Long enough for a busy machine; nothing waits for it when all is well.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub type Publisher = watch::Sender<Option<Arc<ResourceSet>>>;

pub struct Served {
    pub server: Server,
    pub events: mpsc::Receiver<Event>,
    pub socket: PathBuf,
    pub stop: CancellationToken,
    pub serving: JoinHandle<()>,
}

impl Served {
    /// Serves the gateways `edge` and `inner` on a socket where only `edge` may be asked for.
    pub async fn start(folder: &Path, edge: watch::Receiver<Option<Arc<ResourceSet>>>) -> Self {
        Self::start_with(folder, edge, Limits::default()).await
    }

    pub async fn start_with(
        folder: &Path,
        edge: watch::Receiver<Option<Arc<ResourceSet>>>,
        limits: Limits,
    ) -> Self {
        let (server, events) = Server::new(Gateways::default(), limits, 4096);
        Self::start_server(folder, server, events, edge).await
    }

    pub async fn start_server(
        folder: &Path,
        server: Server,
        events: mpsc::Receiver<Event>,
        edge: watch::Receiver<Option<Arc<ResourceSet>>>,
    ) -> Self {
        server.gateways().insert("edge", edge);
        let socket = folder.join("xds.sock");
        let gateways = GatewayAccess::Only(BTreeSet::from(["edge".into(), "absent".into()]));
        let settings = UnixSettings {
            path: socket.clone(),
            uids: BTreeMap::new(),
            gateways,
        };
        let listener = settings.bind().await.unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn({
            let (server, stop) = (server.clone(), stop.clone());
            async move { server.serve(listener, stop).await }
        });
        Self {
            server,
            events,
            socket,
            stop,
            serving,
        }
    }

    pub async fn event(&mut self) -> Event {
        tokio::time::timeout(PATIENCE, self.events.recv())
            .await
            .expect("no event came")
            .unwrap()
    }

    /// The next event that the function takes.
    pub async fn event_where<T>(&mut self, take: impl Fn(Event) -> Option<T>) -> T {
        loop {
            if let Some(taken) = take(self.event().await) {
                return taken;
            }
        }
    }

    /// Waits until the only stream's view is as wanted.
    pub async fn view_where(&self, what: &str, is_wanted: impl Fn(&StreamView) -> bool) -> StreamView {
        let started = std::time::Instant::now();
        loop {
            let views = self.server.streams().snapshot();
            if let [view] = &views[..]
                && is_wanted(view)
            {
                return view.clone();
            }
            assert!(started.elapsed() < PATIENCE, "{what}: {views:#?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.serving)
            .await
            .expect("does not stop")
            .unwrap();
    }
}

/// A model is cheap to run: more cases than proptest's own default, unless it is told how many.
pub fn many_cases() -> ProptestConfig {
    let told = ProptestConfig::default();
    let cases = match std::env::var_os("PROPTEST_CASES") {
        Some(_) => told.cases,
        None => 1000,
    };
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..told
    }
}

pub fn publisher(set: Option<ResourceSet>) -> (Publisher, watch::Receiver<Option<Arc<ResourceSet>>>) {
    watch::channel(set.map(Arc::new))
}

/// A set of opaque resources, for tests where nobody looks inside.
pub fn set_of(resources: &[(ResourceKind, &str, &str)]) -> ResourceSet {
    let mut set = ResourceSet::default();
    for (kind, name, body) in resources {
        set.insert(Arc::new(Resource::new(*kind, (*name).into(), body.as_bytes())));
    }
    set
}

pub async fn connect(socket: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", socket.display()))
        .unwrap()
        .connect()
        .await
        .unwrap()
}

/// The delta dialect, spoken by hand.
pub struct Client {
    pub requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub responses: Streaming<DeltaDiscoveryResponse>,
}

impl Client {
    pub async fn open(channel: Channel, node: Node, first: DeltaDiscoveryRequest) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(16);
        requests
            .send(DeltaDiscoveryRequest {
                node: Some(node),
                ..first
            })
            .await
            .unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX);
        let responses = client.delta_aggregated_resources(stream).await?.into_inner();
        Ok(Self { requests, responses })
    }

    pub async fn ask(&self, kind: ResourceKind, subscribe: &[&str]) {
        self.requests.send(ask(kind, subscribe)).await.unwrap();
    }

    pub async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let next = tokio::time::timeout(PATIENCE, self.responses.message())
            .await
            .expect("no response came");
        next.map(|message| message.expect("the stream ended"))
    }

    pub async fn answer(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let error_detail = error.map(|message| envoy_types::pb::google::rpc::Status {
            message: message.to_owned(),
            ..Default::default()
        });
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }
}

pub fn ask(kind: ResourceKind, subscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: subscribe.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

pub fn node(cluster: &str) -> Node {
    Node {
        id: "test-node".to_owned(),
        cluster: cluster.to_owned(),
        ..Default::default()
    }
}

pub fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect()
}
