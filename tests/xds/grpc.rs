//! Real gRPC over real sockets: who is let in, what is served, how it ends.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use portreeve::envoy::{Resource, ResourceKind};
use portreeve::xds::{Event, GatewayAccess, Limits, ListenError, RefusedReason, UnixSettings, Variant};
use tonic::Code;

use crate::harness::{Client, PATIENCE, Served, ask, connect, names, node, publisher, set_of};

use ResourceKind::{Cluster, Endpoint, Listener};

#[tokio::test]
async fn serves_deltas_and_tells_what_happens() {
    let folder = tempfile::tempdir().unwrap();
    let (publish, receiver) = publisher(None);
    let mut served = Served::start(folder.path(), receiver).await;
    let mut client = Client::open(connect(&served.socket).await, node("edge"), ask(Cluster, &[]))
        .await
        .unwrap();
    let connected = served.event().await;
    assert!(
        matches!(&connected, Event::Connected { node, gateway, variant: Variant::Delta, .. } if &**node == "test-node" && &**gateway == "edge"),
        "{connected:?}"
    );
    // Not complete: not a word.
    assert!(
        tokio::time::timeout(Duration::from_millis(100), client.responses.message())
            .await
            .is_err()
    );

    publish.send_replace(Some(Arc::new(set_of(&[
        (Cluster, "a", "1"),
        (Cluster, "b", "1"),
        (Endpoint, "a", "1"),
    ]))));
    let response = client.next().await.unwrap();
    assert_eq!((names(&response), response.nonce.as_str()), (vec!["a", "b"], "1"));
    assert_eq!(response.resources[0].resource.as_ref().unwrap().value, b"1");
    client.answer(&response, None).await;
    client.ask(Endpoint, &["a", "missing"]).await;
    let response = client.next().await.unwrap();
    assert_eq!(
        (names(&response), &response.removed_resources[..]),
        (vec!["a"], &["missing".to_owned()][..])
    );
    client.answer(&response, None).await;
    let view = served
        .view_where("settled", |view| view.acked.len() == 3 && view.is_settled())
        .await;
    assert!(view.kind(Cluster).subscribed && !view.kind(Listener).subscribed);

    publish.send_replace(Some(Arc::new(set_of(&[
        (Cluster, "a", "1"),
        (Cluster, "b", "bad"),
        (Endpoint, "a", "1"),
    ]))));
    let response = client.next().await.unwrap();
    assert_eq!(names(&response), ["b"]);
    client
        .answer(&response, Some("Error adding/updating cluster(s) b: no"))
        .await;
    let (candidates, blamed, message) = served
        .event_where(|event| match event {
            Event::Nacked {
                candidates,
                blamed,
                message,
                proven: true,
                ..
            } => Some((candidates, blamed, message)),
            _ => None,
        })
        .await;
    assert_eq!(
        (candidates.len(), &*blamed[0], &*message),
        (1, "b", "Error adding/updating cluster(s) b: no")
    );
    let view = served
        .view_where("refused", |view| !view.kind(Cluster).refused.is_empty())
        .await;
    assert_eq!(view.acked.len(), 3);

    drop(client);
    served
        .event_where(|event| matches!(event, Event::Disconnected { .. }).then_some(()))
        .await;
    assert!(served.server.streams().is_empty());
    served.end().await;
}

#[tokio::test]
async fn serves_state_of_the_world() {
    let folder = tempfile::tempdir().unwrap();
    let (_publish, receiver) = publisher(Some(set_of(&[(Cluster, "a", "1"), (Cluster, "b", "1")])));
    let served = Served::start(folder.path(), receiver).await;
    let open = async |version_info: String| {
        let type_url = Cluster.type_url().to_owned();
        let first = DiscoveryRequest {
            node: Some(node("edge")),
            type_url,
            version_info,
            ..Default::default()
        };
        let mut client = AggregatedDiscoveryServiceClient::new(connect(&served.socket).await);
        let requests = tokio_stream::StreamExt::chain(tokio_stream::once(first), tokio_stream::pending());
        client
            .stream_aggregated_resources(requests)
            .await
            .unwrap()
            .into_inner()
    };
    let response = open(String::new()).await.message().await.unwrap().unwrap();
    assert_eq!(response.resources.len(), 2);

    // Envoy comes back with what it has: nothing is sent.
    let mut again = open(response.version_info).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(200), again.message())
            .await
            .is_err()
    );
    served.end().await;
}

#[tokio::test]
async fn refuses_with_a_status_and_an_event() {
    let folder = tempfile::tempdir().unwrap();
    let (_publish, receiver) = publisher(None);
    let limits = Limits {
        streams: 1,
        names: 3,
        unpublished_bytes: 3000,
        node_bytes: 4096,
        ..Limits::default()
    };
    let mut served = Served::start_with(folder.path(), receiver, limits).await;
    let mut big = node("edge");
    let text = Value {
        kind: Some(value::Kind::StringValue("x".repeat(10_000))),
    };
    big.metadata = Some(Struct {
        fields: [("text".to_owned(), text)].into(),
    });
    for (node, first, code, reason) in [
        (
            node("inner"),
            ask(Cluster, &[]),
            Code::PermissionDenied,
            RefusedReason::GatewayNotPermitted,
        ),
        (
            node(""),
            ask(Cluster, &[]),
            Code::PermissionDenied,
            RefusedReason::GatewayNotPermitted,
        ),
        (
            node("absent"),
            ask(Cluster, &[]),
            Code::NotFound,
            RefusedReason::UnknownGateway,
        ),
        (
            big,
            ask(Cluster, &[]),
            Code::ResourceExhausted,
            RefusedReason::Limit,
        ),
        (
            node("edge"),
            ask(Endpoint, &["a", "b", "c", "d"]),
            Code::ResourceExhausted,
            RefusedReason::Limit,
        ),
        (
            node("edge"),
            ask(Endpoint, &[&"a".repeat(5000)]),
            Code::ResourceExhausted,
            RefusedReason::Limit,
        ),
        (
            node("edge"),
            ask(Endpoint, &[&"a".repeat(2000), &"b".repeat(2000)]),
            Code::ResourceExhausted,
            RefusedReason::Limit,
        ),
    ] {
        let mut client = Client::open(connect(&served.socket).await, node, first)
            .await
            .unwrap();
        let status = client.next().await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(!status.message().is_empty());
        let refused = served.event_where(|event| match event {
            Event::Refused { reason, message, .. } => Some((reason, message)),
            _ => None,
        });
        assert_eq!(refused.await, (reason, status.message().into()));
    }

    // One stream is allowed, the second is one too many, and the place of the first is free again afterwards.
    let first = Client::open(connect(&served.socket).await, node("edge"), ask(Cluster, &[]))
        .await
        .unwrap();
    served.view_where("connected", |_| true).await;
    let mut second = Client::open(connect(&served.socket).await, node("edge"), ask(Cluster, &[]))
        .await
        .unwrap();
    assert_eq!(second.next().await.unwrap_err().code(), Code::ResourceExhausted);
    drop(first);
    while !served.server.streams().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let _third = Client::open(connect(&served.socket).await, node("edge"), ask(Cluster, &[]))
        .await
        .unwrap();
    served.view_where("connected", |_| true).await;
    served.end().await;
}

/// An Envoy that is set up for more than is served here: it is told nothing about that, and all about the rest.
#[tokio::test]
async fn an_unknown_type_is_left_unanswered_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (_publish, receiver) = publisher(Some(set_of(&[(Cluster, "a", "1"), (Endpoint, "a", "1")])));
    let served = Served::start(folder.path(), receiver).await;
    for type_url in [
        "type.googleapis.com/envoy.service.runtime.v3.Runtime",
        "type.googleapis.com/envoy.config.cluster.v3.Clusters",
        "",
        "x\r\ny",
    ] {
        let unknown = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            ..ask(Cluster, &[])
        };
        let mut client = Client::open(connect(&served.socket).await, node("edge"), unknown.clone())
            .await
            .unwrap();
        client.requests.send(unknown).await.unwrap();
        client.ask(Cluster, &[]).await;
        let response = client.next().await.unwrap();
        assert_eq!(
            (response.type_url.as_str(), names(&response)),
            (Cluster.type_url(), vec!["a"]),
            "{type_url:?}"
        );
        client.answer(&response, None).await;
        client.ask(Endpoint, &["a"]).await;
        let response = client.next().await.unwrap();
        assert_eq!(names(&response), ["a"], "{type_url:?}");
    }
    served.end().await;
}

#[tokio::test]
async fn guards_its_socket_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("xds.sock");
    let settings = || UnixSettings {
        path: path.clone(),
        uids: [].into(),
        gateways: GatewayAccess::All,
    };

    // Left behind by a process that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let (_publish, receiver) = publisher(None);
    let served = Served::start(folder.path(), receiver).await;
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );

    // In use: not taken away.
    assert!(matches!(
        settings().bind().await.err().unwrap(),
        ListenError::InUse { .. }
    ));
    connect(&path).await;
    served.end().await;
    assert!(!path.exists(), "removed at the end");

    // Something else: not touched.
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(
        settings().bind().await.err().unwrap(),
        ListenError::NotASocket { .. }
    ));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

/// One connection gets no more of us than an Envoy has a use for.
#[tokio::test]
async fn streams_beyond_the_limit_wait() {
    let folder = tempfile::tempdir().unwrap();
    let (_publish, receiver) = publisher(Some(set_of(&[(Cluster, "a", "1")])));
    let served = Served::start(folder.path(), receiver).await;
    let channel = connect(&served.socket).await;
    let mut open = Vec::new();
    for _ in 0..16 {
        let mut client = Client::open(channel.clone(), node("edge"), ask(Cluster, &[]))
            .await
            .unwrap();
        client.next().await.unwrap();
        open.push(client);
    }
    let one_more = async {
        let mut client = Client::open(channel.clone(), node("edge"), ask(Cluster, &[])).await?;
        client.next().await
    };
    tokio::pin!(one_more);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut one_more).await;
    assert!(early.is_err(), "answered beyond the limit: {early:?}");
    // Another connection does not suffer.
    let mut other = Client::open(connect(&served.socket).await, node("edge"), ask(Cluster, &[]))
        .await
        .unwrap();
    assert_eq!(names(&other.next().await.unwrap()), ["a"]);
    open.pop();
    let late = tokio::time::timeout(PATIENCE, one_more).await.expect("its turn");
    assert_eq!(names(&late.unwrap()), ["a"]);
    served.end().await;
}

#[tokio::test]
async fn ends_streams_when_stopped_or_when_the_gateway_goes() {
    let folder = tempfile::tempdir().unwrap();
    let (_publish, receiver) = publisher(None);
    let served = Served::start(folder.path(), receiver.clone()).await;
    let mut client = Client::open(connect(&served.socket).await, node("edge"), ask(Cluster, &[]))
        .await
        .unwrap();
    served.view_where("connected", |_| true).await;
    assert!(served.server.gateways().remove("edge"));
    assert_eq!(client.next().await.unwrap_err().code(), Code::Unavailable);

    served.server.gateways().insert("edge", receiver);
    let mut client = Client::open(connect(&served.socket).await, node("edge"), ask(Cluster, &[]))
        .await
        .unwrap();
    served.view_where("connected", |_| true).await;
    let started = Instant::now();
    served.end().await;
    assert_eq!(client.next().await.unwrap_err().code(), Code::Unavailable);
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "a prompt end takes no patience"
    );
}

/// A stream whose Envoy does not read must not delay the others, and is closed at the end nevertheless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_does_not_read_harms_itself_only() {
    let folder = tempfile::tempdir().unwrap();
    let big = |text: &str| {
        let mut set = set_of(&[(Cluster, "a", text)]);
        for number in 0..64 {
            let body = vec![b'x'; 1 << 20];
            set.insert(Arc::new(Resource::new(
                Cluster,
                format!("big{number}").into(),
                &body,
            )));
        }
        set
    };
    let (publish, receiver) = publisher(Some(big("1")));
    let served = Served::start(folder.path(), receiver).await;
    let _deaf = Client::open(connect(&served.socket).await, node("edge"), ask(Cluster, &[]))
        .await
        .unwrap();
    let mut client = Client::open(connect(&served.socket).await, node("edge"), ask(Cluster, &[]))
        .await
        .unwrap();
    let response = client.next().await.unwrap();
    assert_eq!(response.resources.len(), 65);
    client.answer(&response, None).await;
    for version in 2..20 {
        let text = version.to_string();
        let mut set = (**publish.borrow().as_ref().unwrap()).clone();
        set.insert(Arc::new(Resource::new(Cluster, "a".into(), text.as_bytes())));
        publish.send_replace(Some(Arc::new(set)));
        let response = client.next().await.unwrap();
        assert_eq!(names(&response), ["a"]);
        client.answer(&response, None).await;
    }
    served.end().await;
}

/// Many streams get one change from the same bytes. Printed, not asserted: the machine is shared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_streams_share_one_set() {
    const STREAMS: usize = 100;
    const CLUSTERS: usize = 1000;
    let folder = tempfile::tempdir().unwrap();
    let mut set = set_of(&[]);
    let clusters: Vec<String> = (0..CLUSTERS).map(|number| format!("cluster-{number}")).collect();
    for name in &clusters {
        let body = [name.as_bytes(), &[7; 400]].concat();
        set.insert(Arc::new(Resource::new(Endpoint, name.as_str().into(), &body)));
    }
    let (publish, receiver) = publisher(Some(set.clone()));
    let served = Served::start(folder.path(), receiver).await;
    let all: Vec<&str> = clusters.iter().map(String::as_str).collect();
    let started = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..STREAMS {
        clients.push(
            Client::open(connect(&served.socket).await, node("edge"), ask(Endpoint, &all))
                .await
                .unwrap(),
        );
    }
    for client in &mut clients {
        let response = client.next().await.unwrap();
        assert_eq!(response.resources.len(), CLUSTERS);
        client.answer(&response, None).await;
    }
    let connected = started.elapsed();
    let changed = Arc::new(Resource::new(Endpoint, "cluster-7".into(), b"changed"));
    set.insert(changed.clone());
    let started = Instant::now();
    publish.send_replace(Some(Arc::new(set)));
    for client in &mut clients {
        let response = client.next().await.unwrap();
        assert_eq!(names(&response), ["cluster-7"]);
        client.answer(&response, None).await;
    }
    let updated = started.elapsed();
    let is_settled = || {
        let views = served.server.streams().snapshot();
        views.len() == STREAMS
            && views.iter().all(|view| {
                let held = view.acked.get(Endpoint, "cluster-7");
                // The very same resource, not a copy of it.
                held.is_some_and(|held| Arc::ptr_eq(held, &changed)) && view.is_settled()
            })
    };
    let deadline = Instant::now() + PATIENCE;
    while !is_settled() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    eprintln!(
        "{STREAMS} streams x {CLUSTERS} clusters: all connected in {connected:?}, one change in {updated:?}"
    );
    served.end().await;
}
