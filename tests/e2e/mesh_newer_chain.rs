//! What only newer Consul has in its discovery chain: header edits of routers and splitters, the bounds of a resolver and of
//! a route that idles. The chain is an answer kept as data in front of the real Consul, everything else that one's own:
//! ACLs that deny by default, certificates, instances, intentions.

use std::time::Duration;

use serde_json::json;

use crate::answering::{Answer, AnsweringServer};
use crate::connect::{document, from, protocol, shipped};
use crate::mesh_tls::Native;
use crate::stack::{GATEWAY, Options, Stack};
use crate::support::backend::Behaviour;
use crate::support::client::{Reply, Request};

/// A busy machine may take its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// The service `pets` and another, behind the kept chain of `pets`.
async fn serving() -> (AnsweringServer, Stack, [Native; 2]) {
    let newer = AnsweringServer::start_before_another().await;
    newer.put("/v1/discovery-chain/pets", Answer::kept("chain-edits"));
    let stack = Stack::start(Options {
        consul_policy: Some(shipped("docs/deploy/consul-acl-policy.hcl")),
        mesh_policy: Some(shipped("docs/deploy/consul-mesh-policy.hcl")),
        consul_block: Some(format!("address = {:?}", newer.address)),
        ..Options::default()
    })
    .await;
    newer.stand_before(stack.consul.address());
    stack.put("gateway", GATEWAY).await;
    for service in ["pets", "slow"] {
        protocol(&stack, service, "http").await;
        stack.consul.intention("edge-gw", service, "allow").await;
    }
    let pets = Native::start(&stack, "pets").await;
    let slow = Native::start(&stack, "slow").await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    for (path, name) in [("/", "pets"), ("/edited", "pets"), ("/bounded", "slow")] {
        stack
            .until(&Request::get("pets.example.com", path), path, from(name))
            .await;
    }
    (newer, stack, [pets, slow])
}

#[tokio::test(flavor = "multi_thread")]
async fn routers_and_splitters_edit_headers() {
    let (_newer, stack, [pets, _slow]) = serving().await;
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    pets.backend.behave(Behaviour {
        headers: vec![
            header("x-internal", "secret"),
            header("x-answer-set", "by-backend"),
        ],
        ..Behaviour::default()
    });
    let sent = |path: &str| {
        Request::get("pets.example.com", path)
            .header("x-removed", "by-client")
            .header("x-set", "by-client")
            .header("x-added", "by-client")
    };
    let send = async |path: &str| {
        let reply = stack.client().timeout(PATIENCE).send(&sent(path)).await.unwrap();
        assert!(from("pets")(&reply), "{} {}", reply.status, reply.text());
        reply
    };
    let edited = send("/edited").await;
    let arrived = &edited.json()["headers"];
    assert_eq!(arrived["x-removed"], json!(null), "{arrived}");
    assert_eq!(arrived["x-set"], "by-router", "{arrived}");
    assert_eq!(arrived["x-split"], "whole", "{arrived}");
    let added = arrived["x-added"].to_string();
    assert!(
        added.contains("by-client") && added.contains("by-router"),
        "{arrived}"
    );
    for (name, value) in [
        ("x-internal", None),
        ("x-answer-set", Some("by-router")),
        ("x-answer-added", Some("by-router")),
        ("x-answer-split", Some("whole")),
    ] {
        assert_eq!(edited.header(name), value, "{:?}", edited.headers);
    }

    // Another route of the same router edits nothing.
    let plain = send("/").await;
    let arrived = &plain.json()["headers"];
    for name in ["x-removed", "x-set", "x-added"] {
        assert_eq!(arrived[name], "by-client", "{arrived}");
    }
    assert_eq!(arrived["x-split"], json!(null), "{arrived}");
    for (name, value) in [
        ("x-internal", Some("secret")),
        ("x-answer-set", Some("by-backend")),
        ("x-answer-added", None),
        ("x-answer-split", None),
    ] {
        assert_eq!(plain.header(name), value, "{:?}", plain.headers);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resolver_bounds_requests_and_a_route_bounds_silence() {
    let (_newer, stack, [pets, slow]) = serving().await;
    // Far longer than the chain lets it take, and than this test waits.
    let held_up = async |path: &str| -> Reply {
        let request = Request::get("pets.example.com", path).header("x-test-delay", "600000");
        stack.client().timeout(PATIENCE).send(&request).await.unwrap()
    };
    let reply = held_up("/bounded").await;
    assert_eq!(
        (reply.status, reply.header("x-portreeve-reason")),
        (504, Some("timeout"))
    );
    let reply = held_up("/idle").await;
    println!("idle: {} {:?}", reply.status, reply.headers);
    assert_eq!(reply.status, 504, "{:?}", reply.headers);

    // The route's own bound goes before the resolver's.
    let late = Request::get("pets.example.com", "/patient").header("x-test-delay", "3000");
    let reply = stack.client().timeout(PATIENCE).send(&late).await.unwrap();
    assert!(from("slow")(&reply), "{} {:?}", reply.status, reply.headers);
    drop((pets, slow));
}
