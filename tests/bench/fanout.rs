//! One endpoint change to many Envoys: raw delta streams on a unix socket, each on its own connection, the server
//! (pipeline and ADS) in a process of its own. Floor: the same bytes to as many bare sockets, an answer read from each.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use portreeve::envoy::ResourceKind;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

use crate::Plan;
use crate::child::Child;
use crate::clock::{microseconds, milliseconds, monotonic, quantile, resident_mib};
use crate::report::Report;
use crate::servers::RAW_ACK;
use crate::support::scratch_directory;

/// Client to meter.
enum Heard {
    /// The first, whole state has arrived.
    Ready,
    Change {
        at: Duration,
        bytes: usize,
    },
}

pub struct Fanout {
    pub cpu_per_stream: f64,
    pub last: Vec<Duration>,
    bytes: usize,
    kib_per_stream: f64,
}

pub fn run(plan: &Plan, report: &mut Report) {
    let (clusters, changes) = if plan.quick { (100, 10) } else { (1_000, 30) };
    let memory = if plan.quick {
        "rss_per_stream_100_kib"
    } else {
        "rss_per_stream_1k_kib"
    };
    report.add("fanout_clusters", "clusters", clusters as f64);
    for _ in 0..plan.rounds {
        pair(report, 100, clusters, changes, "100");
        let (ours, floor) = pair(report, 1_000, clusters, changes, "1k");
        report.add(
            "fanout_over_floor",
            "ratio",
            ours.cpu_per_stream / floor.cpu_per_stream,
        );
        report.add("fanout_bytes_per_change", "bytes", ours.bytes as f64);
        report.add(memory, "KiB", ours.kib_per_stream);
    }
}

/// A hundred streams that hold ten thousand clusters each.
pub fn run_long(plan: &Plan, report: &mut Report) {
    for _ in 0..plan.rounds {
        let (ours, floor) = pair(report, 100, 10_000, 30, "10k");
        report.add(
            "fanout_over_floor_10k",
            "ratio",
            ours.cpu_per_stream / floor.cpu_per_stream,
        );
        report.add("rss_per_stream_10k_kib", "KiB", ours.kib_per_stream);
    }
}

/// Ours and the floor.
fn pair(
    report: &mut Report,
    streams: usize,
    clusters: usize,
    changes: usize,
    label: &str,
) -> (Fanout, Fanout) {
    let runtime = crate::runtime();
    let ours = runtime.block_on(ads(streams, clusters, changes));
    let floor = runtime.block_on(raw(streams, ours.bytes, changes));
    report.add_over(
        &format!("fanout_us_per_stream_{label}"),
        "us CPU",
        ours.cpu_per_stream,
        floor.cpu_per_stream,
    );
    report.add_over(
        &format!("fanout_last_ms_{label}"),
        "ms",
        quantile(&ours.last, 0.5),
        quantile(&floor.last, 0.5),
    );
    (ours, floor)
}

pub async fn ads(streams: usize, clusters: usize, changes: usize) -> Fanout {
    served_by(
        &Child::this_program(),
        "--serve-ads",
        [streams, clusters, changes],
    )
    .await
}

/// jemalloc gives freed pages back within ten seconds; a stream's first requests and answers need many.
const PAGES_GIVEN_BACK: Duration = Duration::from_secs(15);

/// A server of that many clusters; `kind` is its first argument.
pub async fn served_by(program: &Path, kind: &str, [streams, clusters, changes]: [usize; 3]) -> Fanout {
    let directory = scratch_directory("fanout");
    let socket = directory.path().join("ads.sock");
    let arguments = [kind, socket.to_str().expect("a path"), &clusters.to_string()];
    let child = Child::start_program(program, &arguments).await;
    let before = resident_mib(child.pid());
    let (heard, hearing) = mpsc::unbounded_channel();
    let opening = Arc::new(Semaphore::new(16));
    let mut clients = JoinSet::new();
    for _ in 0..streams {
        clients.spawn(ads_client(socket.clone(), heard.clone(), opening.clone()));
    }
    measure(child, hearing, streams, changes, before).await
}

async fn ads_client(
    socket: std::path::PathBuf,
    heard: mpsc::UnboundedSender<Heard>,
    opening: Arc<Semaphore>,
) {
    let permit = opening.acquire().await.expect("never closed");
    let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))
        .expect("an address")
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(4 << 20)
        .connect()
        .await
        .expect("a connection");
    let (requests, receiver) = mpsc::channel(16);
    let first = DeltaDiscoveryRequest {
        node: Some(Node {
            id: "bench".to_owned(),
            cluster: "edge".to_owned(),
            ..Node::default()
        }),
        type_url: ResourceKind::Cluster.type_url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(first).await.expect("a stream");
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    let stream = client.delta_aggregated_resources(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let mut responses = stream.await.expect("a stream").into_inner();
    let mut permit = Some(permit);
    while let Ok(Some(response)) = responses.message().await {
        let at = monotonic();
        let is_endpoints = response.type_url == ResourceKind::Endpoint.type_url();
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(ack).await.expect("a stream");
        if !is_endpoints {
            let names = response
                .resources
                .iter()
                .map(|resource| resource.name.clone())
                .collect();
            let ask = DeltaDiscoveryRequest {
                type_url: ResourceKind::Endpoint.type_url().to_owned(),
                resource_names_subscribe: names,
                ..DeltaDiscoveryRequest::default()
            };
            requests.send(ask).await.expect("a stream");
        } else if permit.take().is_some() {
            heard.send(Heard::Ready).expect("a meter");
        } else {
            // gRPC's prefix and HTTP/2's frame header are part of what is sent.
            let bytes = response.encoded_len() + 5 + 9;
            if heard.send(Heard::Change { at, bytes }).is_err() {
                return;
            }
        }
    }
}

async fn raw(streams: usize, bytes: usize, changes: usize) -> Fanout {
    let directory = scratch_directory("raw");
    let socket = directory.path().join("raw.sock");
    let child = Child::start(&[
        "--serve-raw",
        socket.to_str().expect("a path"),
        &bytes.to_string(),
    ])
    .await;
    let before = resident_mib(child.pid());
    let (heard, hearing) = mpsc::unbounded_channel();
    let mut clients = JoinSet::new();
    for _ in 0..streams {
        let stream = connect(&socket).await;
        clients.spawn(raw_client(stream, bytes, heard.clone()));
    }
    measure(child, hearing, streams, changes, before).await
}

async fn connect(socket: &Path) -> UnixStream {
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return stream,
            // The backlog is full for a moment.
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn raw_client(mut stream: UnixStream, bytes: usize, heard: mpsc::UnboundedSender<Heard>) {
    let mut hello = [0; 1];
    stream.read_exact(&mut hello).await.expect("a hello");
    heard.send(Heard::Ready).expect("a meter");
    let mut message = vec![0; bytes];
    while stream.read_exact(&mut message).await.is_ok() {
        let at = monotonic();
        if stream.write_all(&[7; RAW_ACK]).await.is_err() || heard.send(Heard::Change { at, bytes }).is_err()
        {
            return;
        }
    }
}

async fn measure(
    mut child: Child,
    mut hearing: mpsc::UnboundedReceiver<Heard>,
    streams: usize,
    changes: usize,
    before: f64,
) -> Fanout {
    let mut ready = 0;
    while ready < streams {
        match next(&mut hearing).await {
            Heard::Ready => ready += 1,
            Heard::Change { .. } => panic!("a change before the start"),
        }
    }
    tokio::time::sleep(PAGES_GIVEN_BACK).await;
    let kib_per_stream = (resident_mib(child.pid()) - before) * 1024.0 / streams as f64;
    let mut last = Vec::new();
    let mut size = 0;
    let mut started = Duration::ZERO;
    for change in 0..=changes {
        // The first change warms up.
        if change == 1 {
            started = child.ask("cpu").await;
            last.clear();
        }
        let sent = child.ask(&(change + 1).to_string()).await;
        let mut latest = Duration::ZERO;
        for _ in 0..streams {
            match next(&mut hearing).await {
                Heard::Change { at, bytes } => {
                    latest = latest.max(at);
                    size = bytes;
                }
                Heard::Ready => panic!("a stream too many"),
            }
        }
        last.push(latest.saturating_sub(sent));
        // Its ACKs are part of a change's work.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let cpu = child.ask("cpu").await - started;
    child.end().await;
    eprintln!(
        "bench:   {streams} streams: {:.1} ms CPU a change, last after {:.1} ms",
        milliseconds(cpu) / changes as f64,
        quantile(&last, 0.5)
    );
    Fanout {
        cpu_per_stream: microseconds(cpu) / (changes * streams) as f64,
        last,
        bytes: size,
        kib_per_stream,
    }
}

async fn next(hearing: &mut mpsc::UnboundedReceiver<Heard>) -> Heard {
    let heard = tokio::time::timeout(Duration::from_secs(120), hearing.recv()).await;
    heard.expect("every stream hears in time").expect("clients")
}
