//! Clients of xDS that no Envoy is, beside one that is: they flood and lie and read nothing, in both dialects, and neither a request
//! nor a change is lost over it. What the agent holds for them is bounded, and given back when they leave.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;
use portreeve::envoy::ResourceKind::Endpoint;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

use crate::stack::{Options, Stack, route};
use crate::support::client::Request;
use crate::support::load::Load;
use crate::support::process::memory_kib;
use crate::support::wait_for;

/// As often as one asks, if it is let.
const TIMES: usize = 400;
/// In all of them together, 1.4 MiB a request: half a gigabyte of each that invents names.
const INVENTED: usize = 1_000;

/// At least so many requests of each of the others are read.
const LIES: usize = 100;
const PATIENCE: Duration = Duration::from_secs(20);

fn node(id: String) -> Option<Node> {
    Some(Node {
        id,
        cluster: "edge".to_owned(),
        ..Node::default()
    })
}

async fn channel(socket: PathBuf) -> Channel {
    let address = format!("unix://{}", socket.display());
    let endpoint = tonic::transport::Endpoint::from_shared(address).unwrap();
    endpoint.connect().await.unwrap()
}

/// Subscribes to ever more names, 1,400 bytes each, and gets nothing of it: the end of the stream is what it gets.
async fn invents_names(socket: PathBuf, id: String) -> Code {
    let (requests, receiver) = mpsc::channel(1);
    let first = DeltaDiscoveryRequest {
        node: node(id),
        type_url: Endpoint.type_url().to_owned(),
        ..Default::default()
    };
    requests.send(first).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut client = AggregatedDiscoveryServiceClient::new(channel(socket).await);
    let mut responses = client
        .delta_aggregated_resources(stream)
        .await
        .unwrap()
        .into_inner();
    for turn in 0..TIMES {
        let names = (0..INVENTED).map(|at| format!("{turn}-{at}-{}", "x".repeat(1_400)));
        let request = DeltaDiscoveryRequest {
            type_url: Endpoint.type_url().to_owned(),
            resource_names_subscribe: names.collect(),
            ..Default::default()
        };
        let sent = tokio::time::timeout(PATIENCE, requests.send(request)).await;
        if sent.expect("it is read").is_err() {
            break;
        }
    }
    loop {
        match responses.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Code::Ok,
            Err(status) => return status.code(),
        }
    }
}

/// Asks for everything again and again, refuses what it was never sent, with words of 100 KB, and reads nothing.
async fn lies_and_reads_nothing(socket: PathBuf, id: String, is_over: Arc<AtomicBool>) -> usize {
    let lie = Some(Status {
        message: "no ".repeat(33_000),
        ..Default::default()
    });
    let names: Vec<String> = (0..INVENTED).map(|at| format!("service-{at}")).collect();
    let (requests, receiver) = mpsc::channel(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut client = AggregatedDiscoveryServiceClient::new(channel(socket).await);
    let first = DeltaDiscoveryRequest {
        node: node(id),
        type_url: Endpoint.type_url().to_owned(),
        resource_names_subscribe: names.clone(),
        ..Default::default()
    };
    requests.send(first).await.unwrap();
    let _unread = client.delta_aggregated_resources(stream).await.unwrap();
    for turn in 0.. {
        let request = DeltaDiscoveryRequest {
            type_url: Endpoint.type_url().to_owned(),
            resource_names_subscribe: names.clone(),
            resource_names_unsubscribe: names.clone(),
            response_nonce: format!("never-{turn}"),
            error_detail: lie.clone(),
            ..Default::default()
        };
        if is_over.load(Ordering::Relaxed) {
            return turn;
        }
        let sent = tokio::time::timeout(PATIENCE, requests.send(request)).await;
        sent.expect("it is read").expect("it is served to the end");
    }
    unreachable!("there is always another turn")
}

/// The same by state of the world, where every request names all that is wanted.
async fn lies_by_state_of_the_world(socket: PathBuf, id: String, is_over: Arc<AtomicBool>) -> usize {
    let (requests, receiver) = mpsc::channel(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut client = AggregatedDiscoveryServiceClient::new(channel(socket).await);
    let asked = |turn: usize| DiscoveryRequest {
        type_url: Endpoint.type_url().to_owned(),
        resource_names: (0..INVENTED).map(|at| format!("{}-{at}", turn % 7)).collect(),
        ..Default::default()
    };
    let first = DiscoveryRequest {
        node: node(id),
        ..asked(0)
    };
    requests.send(first).await.unwrap();
    let _unread = client.stream_aggregated_resources(stream).await.unwrap();
    for turn in 0.. {
        let request = DiscoveryRequest {
            version_info: format!("{turn}"),
            response_nonce: if turn % 2 == 0 {
                String::new()
            } else {
                format!("never-{turn}")
            },
            error_detail: (turn % 3 == 0).then(|| Status {
                message: "no ".repeat(33_000),
                ..Default::default()
            }),
            ..asked(turn)
        };
        if is_over.load(Ordering::Relaxed) {
            return turn;
        }
        let sent = tokio::time::timeout(PATIENCE, requests.send(request)).await;
        sent.expect("it is read").expect("it is served to the end");
    }
    unreachable!("there is always another turn")
}

fn memory_mib(pid: u32) -> u64 {
    memory_kib(pid) / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn envoys_that_flood_and_lie_harm_neither_requests_nor_changes() {
    let mut stack = Stack::start(Options::default()).await;
    let (_backend, shop) = stack.shop().await;
    let load = Load::start(50, stack.client(), shop);
    let (pid, socket) = (stack.agent.process.pid(), stack.data.join("xds.sock"));
    let before = memory_mib(pid);
    let most = Arc::new(AtomicU64::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let (seen, until) = (most.clone(), is_over.clone());
    let watching = tokio::spawn(async move {
        while !until.load(Ordering::Relaxed) {
            seen.fetch_max(memory_mib(pid), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });

    let mut inventing = JoinSet::new();
    let mut lying = JoinSet::new();
    for number in 0..3 {
        inventing.spawn(invents_names(socket.clone(), format!("inventor-{number}")));
        lying.spawn(lies_and_reads_nothing(
            socket.clone(),
            format!("liar-{number}"),
            is_over.clone(),
        ));
        lying.spawn(lies_by_state_of_the_world(
            socket.clone(),
            format!("old-liar-{number}"),
            is_over.clone(),
        ));
    }
    for number in 0..5 {
        let host = format!("new-{number}.example.com");
        stack
            .put(
                &format!("new-{number}"),
                &route(&format!("new-{number}"), &host, "orders"),
            )
            .await;
        stack
            .until(&Request::get(&host, "/"), "a new route beside them", |reply| {
                reply.status == 200
            })
            .await;
    }
    while let Some(ended) = inventing.join_next().await {
        assert_eq!(ended.unwrap(), Code::ResourceExhausted);
    }
    stack
        .agent
        .wait_for_log("bytes of names that nothing is published of")
        .await;
    is_over.store(true, Ordering::Relaxed);
    while let Some(lies) = lying.join_next().await {
        assert!(lies.unwrap() >= LIES, "they were let");
    }
    watching.await.unwrap();
    load.finish().await.assert_none_lost();

    // Of names 32 MiB for each of three, what is on its way, and what an allocator keeps: not what they would have asked for.
    let most = most.load(Ordering::Relaxed);
    println!("{before} MiB before, {most} at the most");
    assert!(most < before + 256, "{before} MiB before, {most} at the most");
    wait_for(
        "what they held to be given back",
        Duration::from_secs(40),
        async || {
            let now = memory_mib(pid);
            anyhow::ensure!(now < before + 48, "{before} MiB before, {now} now");
            Ok(())
        },
    )
    .await;
}
