//! Consul's ingress gateway, by what Consul pushes to it: `consul connect envoy` needs an Envoy that still speaks xDS v2,
//! which today's does not. So its time ends at the push, while ours ends at the first answer through Envoy.

use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::core::v3::address::Address;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint};
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use prost::Message as _;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Status, Streaming};

use super::scene::{Endpoints, LIMIT, SERVICE, Scene, add_rows};
use crate::clock::quantile;
use crate::live::Live;
use crate::report::Report;
use crate::support::ports::free_port;
use crate::synthetic::service_name;

const PEER: &str = "consul";
const GATEWAY: &str = "ingress";
const CLUSTERS: &str = "type.googleapis.com/envoy.api.v2.Cluster";
const ENDPOINTS: &str = "type.googleapis.com/envoy.api.v2.ClusterLoadAssignment";

pub async fn measure(scene: &Scene, samples: usize, ours: Endpoints, label: &str, report: &mut Report) {
    scene.still(true);
    register(scene).await;
    let measured = pushes(scene, samples).await;
    // Consul would go on working for it.
    scene.live.consul.deregister(GATEWAY).await;
    scene.still(false);
    match measured {
        Some(theirs) => add_rows(report, PEER, label, theirs, ours),
        None => report.peer_failed(PEER, "endpoint rows", "a change was not pushed in time"),
    }
}

/// All services on one listener, each under a host of its own.
async fn register(scene: &Scene) {
    let consul = &scene.live.consul;
    consul
        .config_entry(&json!({
            "Kind": "proxy-defaults", "Name": "global", "Config": { "protocol": "http" },
        }))
        .await;
    let names = (0..scene.services).map(service_name);
    let names = std::iter::once(SERVICE.to_owned()).chain(names);
    let services: Vec<_> = names
        .map(|name| json!({ "Name": name, "Hosts": [format!("{name}.example.com")] }))
        .collect();
    consul
        .config_entry(&json!({
            "Kind": "ingress-gateway", "Name": GATEWAY,
            "Listeners": [{ "Port": free_port(), "Protocol": "http", "Services": services }],
        }))
        .await;
    consul
        .register(&json!({
            "Kind": "ingress-gateway", "Name": GATEWAY, "ID": GATEWAY, "Address": "127.0.0.1", "Port": free_port(),
        }))
        .await;
}

async fn pushes(scene: &Scene, samples: usize) -> Option<Endpoints> {
    let mut pushed = subscribe(&scene.live, scene.new_port()).await;
    until(&mut pushed, false).await?;
    let pid = scene.live.consul.process.pid();
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for sample in 0..samples {
        let started = scene.add().await;
        added.push(until(&mut pushed, true).await? - started);
        scene.rest(pid, 2 * sample).await;
        let started = scene.remove().await;
        removed.push(until(&mut pushed, false).await? - started);
        scene.rest(pid, 2 * sample + 1).await;
    }
    Some(Endpoints {
        add: quantile(&added, 0.5),
        remove: quantile(&removed, 0.5),
    })
}

/// When endpoints arrived, and whether the new instance was among them.
type Pushed = mpsc::UnboundedReceiver<(Instant, bool)>;

async fn until(pushed: &mut Pushed, wanted: bool) -> Option<Instant> {
    let wait = async {
        loop {
            let (at, is_there) = pushed.recv().await?;
            if is_there == wanted {
                return Some(at);
            }
        }
    };
    tokio::time::timeout(LIMIT, wait).await.ok().flatten()
}

/// State of the world, and v2 by its names alone: in what is used here, its messages are those of v3.
async fn subscribe(live: &Live, new: u16) -> Pushed {
    let root = Certificate::from_pem(live.authority());
    // Consul 1.8 names no protocol in its handshake.
    let trust = ClientTlsConfig::new().ca_certificate(root).assume_http2(true);
    let channel = Endpoint::from_shared(format!("https://127.0.0.1:{}", live.consul_grpc))
        .expect("an address")
        .tls_config(trust.domain_name("server.dc1.consul"))
        .expect("a root certificate")
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(4 << 20)
        .connect()
        .await
        .expect("Consul's gRPC port");
    let mut client = Grpc::new(channel).max_decoding_message_size(usize::MAX);
    let started = Instant::now();
    let (requests, mut responses) = loop {
        match open(&mut client).await {
            Ok(stream) => break stream,
            // Consul closes the stream where it has not put together yet what the gateway is made of.
            Err(status) => assert!(started.elapsed() < LIMIT, "a stream: {status}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let (sender, pushed) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut asked = false;
        while let Ok(Some(response)) = responses.message().await {
            let at = Instant::now();
            let ack = DiscoveryRequest {
                version_info: response.version_info,
                type_url: response.type_url.clone(),
                response_nonce: response.nonce,
                ..DiscoveryRequest::default()
            };
            if requests.send(ack).await.is_err() {
                return;
            }
            if response.type_url == CLUSTERS && !std::mem::replace(&mut asked, true) {
                let ask = DiscoveryRequest {
                    type_url: ENDPOINTS.to_owned(),
                    ..DiscoveryRequest::default()
                };
                requests.send(ask).await.expect("a stream");
            }
            if response.type_url == ENDPOINTS {
                let assignments = response.resources.iter();
                let is_there = assignments
                    .map(|resource| &resource.value[..])
                    .any(|resource| has(resource, new));
                if sender.send((at, is_there)).is_err() {
                    return;
                }
            }
        }
    });
    pushed
}

async fn open(
    client: &mut Grpc<Channel>,
) -> Result<(mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>), Status> {
    let (requests, receiver) = mpsc::channel(16);
    let first = DiscoveryRequest {
        node: Some(Node {
            id: GATEWAY.to_owned(),
            cluster: GATEWAY.to_owned(),
            ..Node::default()
        }),
        type_url: CLUSTERS.to_owned(),
        ..DiscoveryRequest::default()
    };
    requests.send(first).await.expect("a stream");
    client.ready().await.expect("a connection");
    let codec = tonic_prost::ProstCodec::<DiscoveryRequest, DiscoveryResponse>::default();
    let path = "/envoy.service.discovery.v2.AggregatedDiscoveryService/StreamAggregatedResources";
    let stream = client.streaming(
        tonic::Request::new(ReceiverStream::new(receiver)),
        path.parse().expect("a path"),
        codec,
    );
    Ok((requests, stream.await?.into_inner()))
}

fn has(assignment: &[u8], port: u16) -> bool {
    let assignment = ClusterLoadAssignment::decode(assignment).expect("endpoints");
    let localities = assignment.endpoints.into_iter();
    let mut endpoints = localities.flat_map(|locality| locality.lb_endpoints);
    endpoints.any(|endpoint| port_of(endpoint) == Some(u32::from(port)))
}

fn port_of(endpoint: LbEndpoint) -> Option<u32> {
    let HostIdentifier::Endpoint(endpoint) = endpoint.host_identifier? else {
        return None;
    };
    let Address::SocketAddress(address) = endpoint.address?.address? else {
        return None;
    };
    match address.port_specifier? {
        PortSpecifier::PortValue(port) => Some(port),
        PortSpecifier::NamedPort(_) => None,
    }
}
