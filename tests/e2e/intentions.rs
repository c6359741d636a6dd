//! Intentions that change while requests flow.

use std::time::Duration;

use hyper::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::answering::{Answer, AnsweringServer};
use crate::connect::{Meshed, document, from, mesh_options, mesh_stack, protocol, until_said};
use crate::stack::{GATEWAY, Options, SOON, Stack, route};
use crate::support::backend::Backend;
use crate::support::client::{Client, Reply, Request};
use crate::support::load::Load;
use crate::support::wait_for;

/// What a client sees of a denial: the gateway's own answer or, before the gateway has seen what the sidecar knows already,
/// the end of a connection that the sidecar refused.
fn is_denial(reply: &Reply) -> bool {
    let reason = reply.header("x-portreeve-reason");
    reply.status == 503
        && reply.backend().is_none()
        && matches!(
            reason,
            Some("no-healthy-instance" | "upstream-connection-closed" | "upstream-connection-failed")
        )
}

fn served_or_denied(reply: &Reply) -> bool {
    from("pets")(reply) || is_denial(reply)
}

/// Consul's proxy asks its agent about each new connection, which takes 200 from one address: so many requests may be due at
/// once when a busy machine stands still for a moment.
const FEW: &str = "circuit_breaker { max_connections = 20 }";

/// Requests of the load, during each denial.
const LOOKED_AT: u64 = 30;

/// So many requests of the load leave, and none of them comes in.
async fn denied_to(load: &Load, backend: &Backend) {
    let (mut came, mut sent) = (backend.requests(), load.so_far().sent);
    wait_for("a denial that nobody gets past", PATIENCE, async || {
        if backend.requests() != came {
            (came, sent) = (backend.requests(), load.so_far().sent);
        }
        let seen = load.so_far().sent - sent;
        anyhow::ensure!(seen >= LOOKED_AT, "{seen} requests since one came in");
        Ok(())
    })
    .await;
}

/// More at once than there are connections: some are made anew, while the sidecar knows of the denial and the gateway may not.
async fn rush(stack: &Stack, request: &Request) {
    let slow = request.clone().header("x-test-delay", "100");
    let mut under_way = JoinSet::new();
    for _ in 0..10 {
        let (client, request) = (patient(stack), slow.clone());
        under_way.spawn(async move { client.send(&request).await });
    }
    for outcome in under_way.join_all().await {
        let reply = outcome.unwrap();
        assert!(
            served_or_denied(&reply),
            "{} {:?} {}",
            reply.status,
            reply.headers,
            reply.text()
        );
    }
}

async fn until_allowed(stack: &Stack, request: &Request) {
    let client = patient(stack);
    wait_for("the mesh to let us in", PATIENCE, async || {
        let reply = client
            .send(request)
            .await
            .map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        anyhow::ensure!(from("pets")(&reply), "{} {}", reply.status, reply.text());
        Ok(())
    })
    .await;
}

/// A load takes what a busy machine has left: a change may then take its time, and an answer too.
const PATIENCE: Duration = Duration::from_secs(60);

fn patient(stack: &Stack) -> Client {
    stack.client().timeout(PATIENCE)
}

#[tokio::test(flavor = "multi_thread")]
async fn intentions_that_flip_under_load_touch_one_service_alone() {
    let stack = mesh_stack(GATEWAY).await;
    let mut meshed = Vec::new();
    for service in ["pets", "orders"] {
        protocol(&stack, service, "http").await;
        meshed.push(Meshed::start(&stack, service, service, json!({})).await);
        stack.consul.intention("edge-gw", service, "allow").await;
        let host = format!("{service}.example.com");
        stack.put(service, &document(&host, service, FEW)).await;
    }
    let plain = Backend::start("plain").await;
    stack.register("plain", &plain).await;
    stack
        .put("plain", &route("plain", "plain.example.com", "plain"))
        .await;
    let [pets, orders, outside] =
        ["pets", "orders", "plain"].map(|name| Request::get(&format!("{name}.example.com"), "/"));
    until_allowed(&stack, &pets).await;
    stack.until(&orders, "the other service", from("orders")).await;
    stack.until(&outside, "who is in no mesh", from("plain")).await;

    let flipped = Load::start_expecting(20, patient(&stack).keep_alive(), pets.clone(), served_or_denied);
    let allowed = Load::start(40, patient(&stack).keep_alive(), orders);
    let unmeshed = Load::start(20, patient(&stack).keep_alive(), outside);
    for _ in 0..4 {
        stack.consul.intention("edge-gw", "pets", "deny").await;
        rush(&stack, &pets).await;
        until_said(&stack, "denied by intention edge-gw => pets").await;
        denied_to(&flipped, &meshed[0].backend).await;
        stack.consul.intention("edge-gw", "pets", "allow").await;
        until_allowed(&stack, &pets).await;
    }
    for (what, load) in [
        ("flipped", flipped),
        ("allowed", allowed),
        ("outside the mesh", unmeshed),
    ] {
        let report = load.finish().await;
        println!("{what}: {report}");
        report.assert_none_lost();
        if what == "flipped" {
            let served = report.backends["pets"];
            assert!(served > 0 && report.sent - served >= 4 * LOOKED_AT, "{report}");
        }
    }
}

const MATCH: &str = "/v1/connect/intentions/match";

/// Of a newer Consul, whose service's proxy decides request by request: foretold for the path as it gets there.
#[tokio::test(flavor = "multi_thread")]
async fn permissions_of_an_intention_are_foretold_request_by_request() {
    let newer = AnsweringServer::start_before_another().await;
    newer.put(MATCH, Answer::kept("intentions-with-permissions"));
    let mut stack = Stack::start(Options {
        consul_block: Some(format!("address = {:?}", newer.address)),
        ..mesh_options()
    })
    .await;
    newer.stand_before(stack.consul.address());
    stack.put("gateway", GATEWAY).await;
    protocol(&stack, "web", "http").await;
    let _web = Meshed::start(&stack, "web", "one", json!({})).await;
    // What the service's proxy asks is the real Consul's.
    stack.consul.intention("edge-gw", "web", "allow").await;
    let cut = json!({
        "Kind": "service-router", "Name": "web",
        "Routes": [{ "Match": { "HTTP": { "PathPrefix": "/cut" } }, "Destination": { "PrefixRewrite": "/" } }],
    });
    stack.consul.config_entry(&cut).await;
    let moved = "  rule \"moved\" {\n    match { path_prefix = \"/shop\" }\n    rewrite { path_prefix = \"/api\" }\n    \
                 backend \"upstream\" \"web\" {}\n  }\n\n  rule \"all\"";
    let documents = document("web.example.com", "web", "").replace("  rule \"all\"", moved);
    stack.put("web", &documents).await;
    stack
        .until(&Request::get("web.example.com", "/"), "the service", from("one"))
        .await;
    for (method, path, verdict) in [
        (
            "GET",
            "/api/x",
            "allowed by intention edge-gw => web (2 permissions, precedence 9), permission 1",
        ),
        (
            "POST",
            "/api/x",
            "denied by intention edge-gw => web (2 permissions, precedence 9), none of whose permissions",
        ),
        (
            "GET",
            "/login",
            "allowed with a valid JWT by intention edge-gw => web (2 permissions, precedence 9), permission 2",
        ),
        (
            "GET",
            "/login/x",
            "denied by intention edge-gw => web (2 permissions, precedence 9), none of whose permissions",
        ),
        // As the service's router rewrites it.
        (
            "GET",
            "/cut/api/x",
            "allowed by intention edge-gw => web (2 permissions, precedence 9), permission 1",
        ),
        (
            "GET",
            "/cut../api/x",
            "allowed by intention edge-gw => web (2 permissions, precedence 9), permission 1",
        ),
        (
            "GET",
            "/cut/other",
            "denied by intention edge-gw => web (2 permissions, precedence 9), none of whose permissions",
        ),
        // As the rule rewrites it, and as the gateway normalises it.
        (
            "GET",
            "/shop/x",
            "allowed by intention edge-gw => web (2 permissions, precedence 9), permission 1",
        ),
        (
            "GET",
            "/other/../api/x",
            "allowed by intention edge-gw => web (2 permissions, precedence 9), permission 1",
        ),
        (
            "GET",
            "/api/../other",
            "denied by intention edge-gw => web (2 permissions, precedence 9), none of whose permissions",
        ),
    ] {
        wait_for(&format!("{method} {path} to be foretold"), SOON, async || {
            let url = format!("/v1/explain?gateway=edge&method={method}&url=http://web.example.com{path}");
            let said = stack.agent.api(Method::GET, &url, "").await?.text();
            anyhow::ensure!(said.contains(verdict), "{said}");
            Ok(())
        })
        .await;
    }
    // One that lets no request in is told without being asked, and the connections stay: the service's proxy answers.
    let any = Request::get("web.example.com", "/");
    let first = "\"Action\":\"allow\",\"HTTP\":{\"PathPrefix\":\"/api\",\"Methods\":[\"GET\"]}";
    let denial = "\"Action\":\"deny\",\"HTTP\":{\"PathPrefix\":\"/\"}";
    let kept = Answer::kept("intentions-with-permissions");
    newer.put(MATCH, kept.clone().with(first, denial).at(13));
    let denied = "takes no request of \"edge-gw\": all are denied by the permissions of intention edge-gw => web (2 \
                  permissions, precedence 9)";
    until_said(&stack, &denied.replace('"', "\\\"")).await;
    let line = stack.agent.wait_for_log(denied).await;
    assert!(line.contains("intention-denied"), "{line}");
    let reply = stack.client().timeout(PATIENCE).send(&any).await.unwrap();
    assert!(from("one")(&reply), "{} {}", reply.status, reply.text());
    newer.put(MATCH, kept.at(14));
    stack
        .agent
        .wait_for_log(&format!("in order again: \"web\" {denied}"))
        .await;
}
