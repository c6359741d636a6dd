//! Peers that lie, stall, flood or ask in a loop: what one of them gets is bounded, and another stream does not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use portreeve::envoy::{Resource, ResourceKind::Endpoint};
use tokio::sync::mpsc;

use crate::harness::{Client, Publisher, Served, ask, connect, names, node, publisher, set_of};

const NAMES: usize = 100;
const CHANGES: usize = 50;

fn all_names() -> Vec<String> {
    (0..NAMES).map(|number| format!("service-{number}")).collect()
}

/// A hundred services of 10 KB each, and "calm", which the other stream follows.
async fn serve(folder: &std::path::Path) -> (Served, Publisher) {
    let mut set = set_of(&[(Endpoint, "calm", "0")]);
    for name in all_names() {
        set.insert(Arc::new(Resource::new(
            Endpoint,
            name.as_str().into(),
            &[7; 10_000],
        )));
    }
    let (publish, receiver) = publisher(Some(set));
    (Served::start(folder, receiver).await, publish)
}

async fn subscribed(served: &Served, names: &[String]) -> Client {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let channel = connect(&served.socket).await;
    Client::open(channel, node("edge"), ask(Endpoint, &names))
        .await
        .unwrap()
}

/// Drops all names and asks for them again, in one request: the answer is all of them, each time.
fn again() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: Endpoint.type_url().to_owned(),
        resource_names_subscribe: all_names(),
        resource_names_unsubscribe: all_names(),
        ..Default::default()
    }
}

/// Follows a name through many changes: each comes, alone and at once.
async fn follow(client: &mut Client, publish: &Publisher) {
    for version in 1..=CHANGES {
        let mut set = (**publish.borrow().as_ref().unwrap()).clone();
        let text = version.to_string();
        set.insert(Arc::new(Resource::new(Endpoint, "calm".into(), text.as_bytes())));
        publish.send_replace(Some(Arc::new(set)));
        let response = client.next().await.unwrap();
        assert_eq!(names(&response), ["calm"]);
        client.answer(&response, None).await;
    }
}

async fn calm(served: &Served) -> Client {
    let mut client = subscribed(served, &["calm".to_owned()]).await;
    let response = client.next().await.unwrap();
    client.answer(&response, None).await;
    client
}

/// Asks for ever, until the server is no longer there or the caller has seen enough.
fn flood(
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    request: DeltaDiscoveryRequest,
) -> tokio::task::JoinHandle<usize> {
    tokio::spawn(async move {
        let mut sent = 0;
        while sent < 5_000 && requests.send(request.clone()).await.is_ok() {
            sent += 1;
        }
        sent
    })
}

/// It asks and asks and confirms nothing: one answer is under way to it, however often it asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_asks_in_a_loop_and_confirms_nothing_is_sent_one_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (served, publish) = serve(folder.path()).await;
    let mut client = calm(&served).await;
    let mut hostile = subscribed(&served, &all_names()).await;
    let asking = flood(hostile.requests.clone(), again());
    follow(&mut client, &publish).await;
    let asked = asking.await.unwrap();
    assert_eq!(asked, 5_000, "it was read to the end");
    assert_eq!(hostile.next().await.unwrap().resources.len(), NAMES);
    let more = tokio::time::timeout(std::time::Duration::from_millis(300), hostile.responses.message()).await;
    assert!(
        more.is_err(),
        "{:?}",
        more.map(|response| response.map(|response| response.map(|response| response.nonce)))
    );
    served.end().await;
}

/// It confirms, too, so that each loop is answered in full: others get their changes all the same, and it is served to the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_subscribes_in_a_loop_delays_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let (served, publish) = serve(folder.path()).await;
    let mut client = calm(&served).await;
    let mut hostile = subscribed(&served, &all_names()).await;
    // It must get on as well, and goes on for as long as the other one takes.
    let followed = Arc::new(AtomicBool::new(false));
    let until = followed.clone();
    let looping = tokio::spawn(async move {
        let mut turns = 0;
        while turns < CHANGES || !until.load(Ordering::Relaxed) {
            let response = hostile.next().await.unwrap();
            assert_eq!(response.resources.len(), NAMES);
            turns += 1;
            let request = DeltaDiscoveryRequest {
                response_nonce: response.nonce,
                ..again()
            };
            hostile.requests.send(request).await.unwrap();
        }
    });
    follow(&mut client, &publish).await;
    followed.store(true, Ordering::Relaxed);
    looping.await.unwrap();
    served.end().await;
}

/// Confirms what was never sent, and refuses it, with words of 100 KB: nothing comes of it but what it asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_to_what_was_never_sent_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let (mut served, publish) = serve(folder.path()).await;
    let mut client = calm(&served).await;
    let mut hostile = subscribed(&served, &all_names()).await;
    let sent = hostile.next().await.unwrap();
    assert_eq!(sent.resources.len(), NAMES);
    let lie = DeltaDiscoveryRequest {
        type_url: Endpoint.type_url().to_owned(),
        response_nonce: "never sent".to_owned(),
        error_detail: Some(envoy_types::pb::google::rpc::Status {
            message: "no ".repeat(33_000),
            ..Default::default()
        }),
        ..Default::default()
    };
    let lying = flood(hostile.requests.clone(), lie);
    follow(&mut client, &publish).await;
    assert_eq!(lying.await.unwrap(), 5_000);
    // Behind them: its answer shows that they were read. It confirms what was sent, too, so that there is one.
    hostile.answer(&sent, None).await;
    hostile.ask(Endpoint, &["calm"]).await;
    assert_eq!(names(&hostile.next().await.unwrap()), ["calm"]);
    assert_eq!(served.server.streams().len(), 2, "it is still served");
    drop(hostile);
    served
        .event_where(|event| match event {
            portreeve::xds::Event::Disconnected { .. } => Some(()),
            other => {
                assert!(
                    !format!("{other:?}").contains("no no"),
                    "a refusal of what was never sent: {other:?}"
                );
                None
            }
        })
        .await;
    served.end().await;
}
