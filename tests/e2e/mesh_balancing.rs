//! What a discovery chain says beside where requests go: load balancers, hash policies, timeouts. Asserted on the
//! configuration that Envoy has, and on what it does with it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::answering::{Answer, AnsweringServer};
use crate::connect::{Meshed, document, from, mesh_options, mesh_stack, protocol};
use crate::stack::{GATEWAY, Options, Stack};
use crate::support::client::Request;
use crate::support::load::Load;
use crate::support::wait_for;

/// A busy machine may take its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// The first object anywhere in it that is looked for.
fn find<'a>(value: &'a Value, is_it: &impl Fn(&Value) -> bool) -> Option<&'a Value> {
    if value.is_object() && is_it(value) {
        return Some(value);
    }
    match value {
        Value::Object(fields) => fields.values().find_map(|value| find(value, is_it)),
        Value::Array(values) => values.iter().find_map(|value| find(value, is_it)),
        _ => None,
    }
}

/// The cluster of the service `pets`, and what the route of this name does, once Envoy has both and they are as expected.
async fn until_envoy_has(stack: &Stack, route: &str, expected: impl Fn(&Value, &Value) -> bool) {
    wait_for("Envoy to have it", PATIENCE, async || {
        let dump = stack.envoy().get("/config_dump").await?.json();
        let is_cluster = |found: &Value| {
            let name = found["name"].as_str().unwrap_or_default();
            name.starts_with("upstream/pets/") && found["lb_policy"].is_string()
        };
        let is_route = |found: &Value| found["name"] == route && found["route"].is_object();
        let cluster = find(&dump, &is_cluster).unwrap_or(&Value::Null);
        let route = &find(&dump, &is_route).unwrap_or(&Value::Null)["route"];
        anyhow::ensure!(expected(cluster, route), "{cluster:#}\n{route:#}");
        Ok(())
    })
    .await;
}

/// Held up for longer than the chain lets it take.
async fn times_out(stack: &Stack, request: Request) {
    let held_up = request.header("x-test-delay", "600000");
    let reply = stack.client().timeout(PATIENCE).send(&held_up).await.unwrap();
    assert_eq!(
        (reply.status, reply.header("x-portreeve-reason")),
        (504, Some("timeout"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn timeouts_of_the_chain_reach_envoy() {
    let stack = mesh_stack(GATEWAY).await;
    protocol(&stack, "pets", "http").await;
    stack.consul.intention("edge-gw", "pets", "allow").await;
    let pets = Meshed::start(&stack, "pets", "one", json!({})).await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    let request = Request::get("pets.example.com", "/");
    stack.until(&request, "the service", from("one")).await;
    until_envoy_has(&stack, "pets/all", |cluster, route| {
        cluster["connect_timeout"] == "5s" && route["timeout"] == "0s"
    })
    .await;

    let resolver = json!({ "Kind": "service-resolver", "Name": "pets", "ConnectTimeout": "3s" });
    stack.consul.config_entry(&resolver).await;
    let bounded = json!({ "RequestTimeout": "2s", "NumRetries": 4, "RetryOnStatusCodes": [502] });
    let router = json!({
        "Kind": "service-router", "Name": "pets",
        "Routes": [{ "Match": { "HTTP": { "PathPrefix": "/bounded" } }, "Destination": bounded }],
    });
    stack.consul.config_entry(&router).await;
    until_envoy_has(&stack, "pets/all~1", |cluster, route| {
        cluster["connect_timeout"] == "3s"
            && route["timeout"] == "2s"
            && route["retry_policy"]["num_retries"] == 4
            && route["retry_policy"]["retriable_status_codes"] == json!([502])
    })
    .await;
    until_envoy_has(&stack, "pets/all~2", |_, route| route["timeout"] == "0s").await;
    times_out(&stack, Request::get("pets.example.com", "/bounded")).await;

    // What the document says goes before it.
    let own = document("pets.example.com", "pets", "connect_timeout = \"1s\"")
        .replace("rule \"all\" {", "rule \"all\" {\n    timeout = \"20s\"");
    stack.put("pets", &own).await;
    until_envoy_has(&stack, "pets/all~1", |cluster, route| {
        cluster["connect_timeout"] == "1s" && route["timeout"] == "20s"
    })
    .await;
    drop(pets);
}

/// Who answers each of these, always the same or not at all.
async fn served_by(stack: &Stack, request: &Request) -> String {
    let mut names = BTreeSet::new();
    for _ in 0..4 {
        let reply = stack.client().timeout(PATIENCE).send(request).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        names.insert(reply.backend().unwrap().to_owned());
    }
    assert_eq!(names.len(), 1, "{request:?} goes to {names:?}");
    names.pop_first().unwrap()
}

fn user(name: usize) -> Request {
    Request::get("pets.example.com", "/").header("x-user", &format!("user-{name}"))
}

/// Consul 1.8.7 has no load balancers in its resolvers: the chain is a newer one's, everything else the real one's.
#[tokio::test(flavor = "multi_thread")]
async fn the_chain_s_load_balancer_keeps_clients_on_their_instance() {
    const CHAIN: &str = "/v1/discovery-chain/pets";
    let newer = AnsweringServer::start_before_another().await;
    newer.put(CHAIN, Answer::kept("chain-load-balancer"));
    let stack = Stack::start(Options {
        consul_block: Some(format!("address = {:?}", newer.address)),
        ..mesh_options()
    })
    .await;
    newer.stand_before(stack.consul.address());
    stack.consul.intention("edge-gw", "pets", "allow").await;
    stack.put("gateway", GATEWAY).await;
    protocol(&stack, "pets", "http").await;
    let one = Meshed::start(&stack, "pets", "one", json!({})).await;
    let two = Meshed::start(&stack, "pets", "two", json!({})).await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    let any = Request::get("pets.example.com", "/");
    stack
        .until(&any, "the service", |reply| reply.status == 200)
        .await;

    until_envoy_has(&stack, "pets/all", |cluster, route| {
        let ring = &cluster["ring_hash_lb_config"];
        cluster["lb_policy"] == "RING_HASH"
            && (&ring["minimum_ring_size"], &ring["maximum_ring_size"]) == (&json!("512"), &json!("4096"))
            && cluster["connect_timeout"] == "3s"
            && route["timeout"] == "15s"
            && route["hash_policy"]
                == json!([
                    { "header": { "header_name": "x-user" }, "terminal": true },
                    { "cookie": { "name": "session", "ttl": "3600s", "path": "/" }, "terminal": true },
                    { "connection_properties": { "source_ip": true } },
                ])
    })
    .await;
    // By the header. That all of so many are on one instance happens once in a billion runs.
    wait_for("both instances to have users", PATIENCE, async || {
        let mut names = BTreeSet::new();
        for name in 0..30 {
            let reply = stack.client().send(&user(name)).await;
            let reply = reply.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
            names.extend(reply.backend().map(str::to_owned));
        }
        anyhow::ensure!(names.len() == 2, "{names:?}");
        Ok(())
    })
    .await;
    for name in 0..10 {
        served_by(&stack, &user(name)).await;
    }
    // By the cookie, which Envoy gives to whoever has none.
    let first = stack.client().send(&any).await.unwrap();
    let cookie = first.header("set-cookie").expect("a cookie").to_owned();
    let session = cookie.split(';').next().unwrap();
    assert!(
        session.starts_with("session=") && cookie.contains("Max-Age=3600"),
        "{cookie}"
    );
    let returning = any.clone().header("cookie", session);
    assert_eq!(served_by(&stack, &returning).await, first.backend().unwrap());

    // Other ways to balance, under load.
    let load = Load::start(20, stack.client().timeout(PATIENCE).keep_alive(), any.clone());
    let least = Answer::kept("chain-load-balancer")
        .with(
            "\"Policy\":\"ring_hash\"",
            "\"Policy\":\"least_request\",\"LeastRequestConfig\":{\"ChoiceCount\":5}",
        )
        .at(52);
    newer.put(CHAIN, least);
    until_envoy_has(&stack, "pets/all", |cluster, _| {
        cluster["lb_policy"] == "LEAST_REQUEST"
            && cluster["least_request_lb_config"]["choice_count"] == 5
            && cluster["ring_hash_lb_config"].is_null()
    })
    .await;
    let maglev = Answer::kept("chain-load-balancer")
        .with("ring_hash", "maglev")
        .at(53);
    newer.put(CHAIN, maglev);
    until_envoy_has(&stack, "pets/all", |cluster, route| {
        cluster["lb_policy"] == "MAGLEV" && route["hash_policy"].as_array().map(Vec::len) == Some(3)
    })
    .await;
    served_by(&stack, &user(1)).await;
    // What the document says goes before it.
    let own = document("pets.example.com", "pets", "load_balancer = \"random\"");
    stack.put("pets", &own).await;
    until_envoy_has(&stack, "pets/all", |cluster, _| cluster["lb_policy"] == "RANDOM").await;
    let report = load.finish().await;
    println!("balancers changed: {report}");
    report.assert_none_lost();
    drop((one, two));
}
