//! The pipeline and a scripted Envoy: what is refused though no text is to blame, and events of refusals that are lost.

use std::collections::BTreeSet;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use portreeve::envoy::ResourceKind;
use portreeve::model::CertificateQuery;

use crate::agent::{Agent, GATEWAY, answer_until, route, settled_envoy, starting_envoy};
use crate::harness::{Client, PATIENCE, names};

use ResourceKind::{ScopedRoute, Secret};

/// Two certificates: which names each serves is in the listener.
fn gateway(timeout: &str) -> String {
    let certificate = |name: &str| {
        format!(
            "certificate \"{name}\" {{\n  file {{\n    certificate = \"/{name}.pem\"\n    private_key = \"/{name}.key\"\n  \
             }}\n}}\n"
        )
    };
    format!(
        "gateway \"edge\" {{\n  listener \"web\" {{\n    port = 443\n    protocol = \"https\"\n    \
         request_headers_timeout = \"{timeout}\"\n    tls {{\n      certificates = [\"www\", \"api\"]\n    }}\n  }}\n}}\n{}{}",
        certificate("www"),
        certificate("api")
    )
}

/// Everything but the listener is acknowledged.
async fn listener(client: &mut Client) -> DeltaDiscoveryResponse {
    answer_until(client, "web").await
}

async fn answer_all(client: &mut Client, wanted: &[&str]) {
    let mut left: BTreeSet<&str> = wanted.iter().copied().collect();
    while !left.is_empty() {
        let response = client.next().await.unwrap();
        let came = names(&response);
        left.retain(|name| !came.contains(name));
        client.answer(&response, None).await;
    }
}

fn query(agent: &Agent, certificate: &str) -> CertificateQuery {
    let view = agent.view.borrow();
    view.snapshot
        .config
        .certificate(certificate)
        .unwrap()
        .query
        .clone()
        .unwrap()
}

/// What a certificate brings makes Envoy refuse the listener. Meanwhile somebody edits the gateway.
#[tokio::test]
async fn a_text_is_not_blamed_for_a_fault_that_was_there_before() {
    let mut agent = Agent::start().await;
    agent.hear();
    agent
        .put(&[("gateway", &gateway("10s")), ("shop", &route("edge", 200))])
        .await;
    agent
        .document_where("gateway", |state| state.in_service.is_some())
        .await;
    let (www, api) = (query(&agent, "www"), query(&agent, "api"));
    agent.certify(&www, &["www.example.com"], Some("key")).await;
    agent.certify(&api, &["api.example.com"], Some("key")).await;
    let mut client = starting_envoy(&agent).await;
    let response = listener(&mut client).await;
    client.answer(&response, None).await;
    client.ask(Secret, &["certificate/www", "certificate/api"]).await;
    client.ask(ScopedRoute, &[]).await;
    answer_all(
        &mut client,
        &["certificate/www", "certificate/api", "web/a.example.com"],
    )
    .await;
    agent
        .document_where("gateway", |state| state.confirmed.is_some())
        .await;

    let is_withheld =
        |count: usize| move |view: &portreeve::pipeline::View| view.gateways[0].withheld.len() == count;
    agent.certify(&api, &["other.example.com"], Some("key")).await;
    let response = listener(&mut client).await;
    client.answer(&response, Some("no such name")).await;
    agent
        .view_where("what the certificate made is withheld", is_withheld(1))
        .await;

    let edited = gateway("20s");
    agent.put(&[("gateway", &edited)]).await;
    // Envoy is told to go on with what it has, and then offered the edited one.
    let response = listener(&mut client).await;
    client.answer(&response, Some("no such name, still")).await;
    let view = agent
        .view_where("the fault is told of, by what Envoy said last", |view| {
            view.gateways[0]
                .withheld
                .iter()
                .any(|it| it.message.contains("still"))
        })
        .await;
    let state = view
        .snapshot
        .config
        .document(&crate::agent::id("gateway"))
        .unwrap();
    assert!(state.problems.is_empty(), "{:?}", state.problems);
    assert_eq!(*state.in_service.as_ref().unwrap().document.text, *edited);
    assert_ne!(
        *state.confirmed.as_ref().unwrap().document.text,
        *edited,
        "no Envoy runs with it"
    );

    // Once mended, what the edit asks for is in place.
    agent.certify(&api, &["api.example.com"], Some("key")).await;
    let response = listener(&mut client).await;
    client.answer(&response, None).await;
    agent
        .document_where("gateway", |state| {
            state
                .confirmed
                .as_ref()
                .is_some_and(|parsed| *parsed.document.text == *edited)
        })
        .await;
    agent.view_where("nothing is withheld", is_withheld(0)).await;
    agent.served.end().await;
}

/// Whoever tells who is connected looks when the view changes.
#[tokio::test]
async fn that_an_envoy_left_is_seen_though_the_event_was_lost() {
    let mut agent = Agent::start().await;
    agent
        .put(&[("gateway", GATEWAY), ("shop", &route("edge", 200))])
        .await;
    let client = settled_envoy(&mut agent).await;
    drop(client);
    let streams = agent.served.server.streams().clone();
    let started = std::time::Instant::now();
    while !streams.snapshot().is_empty() {
        assert!(started.elapsed() < PATIENCE, "the stream never ended");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // What the confirmation changed is seen by now.
    tokio::time::sleep(Duration::from_millis(50)).await;
    agent.view.borrow_and_update();
    agent.lose_events().await;
    tokio::time::timeout(PATIENCE, agent.view.changed())
        .await
        .expect("the view does not change")
        .unwrap();
    agent.served.end().await;
}
