//! Who gets how many requests: weights of backends and instances, and the ways to choose an instance.
//!
//! Bounds are five standard deviations wide: chance alone leaves them once in a million runs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use crate::connect::{Meshed, document, mesh_stack, protocol};
use crate::stack::{GATEWAY, Options, SOON, Stack, id};
use crate::support::backend::{Backend, Behaviour};
use crate::support::client::Request;
use crate::support::consul::service;
use crate::support::ports::free_port;
use crate::support::wait_for;

pub const REQUESTS: u64 = 400;

/// A busy machine may take its time.
const PATIENCE: Duration = Duration::from_secs(60);

const ROUTES: &str = r#"
http_route "split" {
  gateways  = ["edge"]
  hostnames = ["split.example.com"]

  rule "all" {
    backend "consul" "one" { weight = 75 }
    backend "consul" "two" { weight = 25 }
    backend "consul" "three" { weight = 0 }
  }
}

http_route "balanced" {
  gateways  = ["edge"]
  hostnames = ["balanced.example.com"]

  rule "least" {
    match { path_prefix = "/least_request" }
    backend "upstream" "least" {}
  }

  rule "round" {
    match { path_prefix = "/round_robin" }
    backend "upstream" "round" {}
  }

  rule "random" {
    match { path_prefix = "/random" }
    backend "upstream" "random" {}
  }
}

upstream "least" {
  consul { service = "app" }
}

upstream "round" {
  load_balancer = "round_robin"
  consul { service = "app" }
}

upstream "random" {
  load_balancer = "random"
  consul { service = "app" }
}
"#;

/// Backends `one`, `two`, `three`, not yet registered.
async fn serving() -> (Stack, [Backend; 3]) {
    let stack = Stack::start(Options::default()).await;
    let backends = [
        Backend::start("one").await,
        Backend::start("two").await,
        Backend::start("three").await,
    ];
    stack.put("gateway", GATEWAY).await;
    stack.put("routes", ROUTES).await;
    (stack, backends)
}

async fn register(stack: &Stack, name: &str, backend: &Backend, passing: u32, warning: u32, health: &str) {
    let mut definition = service(name, &id(name, backend), backend.port);
    definition["Weights"] = json!({ "Passing": passing, "Warning": warning });
    definition["Check"]["Status"] = health.into();
    stack.consul.register(&definition).await;
}

/// Until Envoy has this many instances of each.
async fn known(stack: &Stack, upstreams: &[&str], instances: usize) {
    wait_for("the instances", SOON, async || {
        let clusters = stack.envoy().get("/clusters?format=json").await?.json();
        for upstream in upstreams {
            let found = clusters["cluster_statuses"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|cluster| {
                    cluster["name"]
                        .as_str()
                        .is_some_and(|name| name.contains(upstream))
                });
            let hosts = found.and_then(|cluster| cluster["host_statuses"].as_array());
            anyhow::ensure!(hosts.map(Vec::len) == Some(instances), "{upstream}: {found:?}");
        }
        Ok(())
    })
    .await;
}

/// Who answered, one request after the other.
pub async fn answers(stack: &Stack, host: &str, path: &str, count: u64) -> Vec<String> {
    stack
        .until(&Request::get(host, path), "the route", |reply| {
            reply.status == 200
        })
        .await;
    let client = stack.client().keep_alive();
    let mut answers = Vec::new();
    for _ in 0..count {
        let reply = client.get(host, path).await;
        assert_eq!(reply.status, 200, "{host}{path}");
        answers.push(reply.backend().unwrap().to_owned());
    }
    answers
}

pub fn counted(answers: &[String]) -> BTreeMap<&str, u64> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer.as_str()).or_default() += 1;
    }
    counts
}

/// Polls without a pause between: hundreds of requests wait for each other.
async fn arrives(arrived: impl Fn() -> bool) {
    tokio::time::timeout(SOON, async {
        while !arrived() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("a request that arrives at a backend");
}

/// So many of so many requests are this share, give or take five standard deviations.
pub fn is_share(count: u64, of: u64, share: f64) -> bool {
    let (of, count) = (of as f64, count as f64);
    (count - of * share).abs() <= 5.0 * (of * share * (1.0 - share)).sqrt()
}

#[test]
fn a_share_has_bounds_that_tell_shares_apart() {
    assert!(is_share(100, REQUESTS, 0.25) && is_share(143, REQUESTS, 0.25));
    assert!(!is_share(144, REQUESTS, 0.25) && !is_share(56, REQUESTS, 0.25));
    assert!(!is_share(REQUESTS / 2, REQUESTS, 0.25) && !is_share(REQUESTS / 3, REQUESTS, 0.5));
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_share_requests_by_weight() {
    let (stack, backends) = serving().await;
    for backend in &backends {
        stack.register(&backend.name, backend).await;
    }
    known(&stack, &["one", "two"], 1).await;
    let answers = answers(&stack, "split.example.com", "/", REQUESTS).await;
    let counts = counted(&answers);
    println!("75 to 25 to 0: {counts:?}");
    assert!(
        is_share(counts["one"], REQUESTS, 0.75) && is_share(counts["two"], REQUESTS, 0.25),
        "{counts:?}"
    );
    assert_eq!(backends[2].requests(), 0, "weight 0 gets nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_share_requests_by_their_weights_in_the_catalog() {
    let (stack, backends) = serving().await;
    let [one, two, three] = &backends;
    register(&stack, "app", one, 3, 1, "passing").await;
    // In warning it counts with the other of its weights.
    register(&stack, "app", two, 50, 1, "warning").await;
    register(&stack, "app", three, 50, 0, "warning").await;
    known(&stack, &["least", "round", "random"], 2).await;
    // `random` knows no weights.
    for (path, share) in [("/least_request", 0.75), ("/round_robin", 0.75), ("/random", 0.5)] {
        let answers = answers(&stack, "balanced.example.com", path, REQUESTS).await;
        let counts = counted(&answers);
        println!("{path}, 3 to 1 to 0: {counts:?}");
        assert!(is_share(counts["one"], REQUESTS, share), "{path}: {counts:?}");
    }
    assert_eq!(three.requests(), 0, "weight 0 gets nothing");
}

/// Until Envoy has instances of these weights, and no others.
async fn known_weights(stack: &Stack, upstream: &str, expected: &[u64]) {
    wait_for("the instances' weights", PATIENCE, async || {
        let clusters = stack.envoy().get("/clusters?format=json").await?.json();
        let found = clusters["cluster_statuses"].as_array().into_iter().flatten();
        let hosts = found
            .filter(|cluster| {
                cluster["name"]
                    .as_str()
                    .is_some_and(|name| name.contains(upstream))
            })
            .flat_map(|cluster| cluster["host_statuses"].as_array().into_iter().flatten());
        let mut weights: Vec<u64> = hosts.filter_map(|host| host["weight"].as_u64()).collect();
        weights.sort_unstable();
        anyhow::ensure!(weights == expected, "{weights:?}");
        Ok(())
    })
    .await;
}

/// Sidecars are registered with weights of their own, all alike: those of the instances behind them count.
#[tokio::test(flavor = "multi_thread")]
async fn sidecars_share_requests_by_the_weights_of_their_instances() {
    let stack = mesh_stack(GATEWAY).await;
    protocol(&stack, "pets", "http").await;
    stack.consul.intention("edge-gw", "pets", "allow").await;
    let weights =
        |passing: u32, warning: u32| json!({ "Weights": { "Passing": passing, "Warning": warning } });
    let three = Meshed::start(&stack, "pets", "three", weights(3, 1)).await;
    let one = Meshed::start(&stack, "pets", "one", weights(50, 1)).await;
    let none = Meshed::start(&stack, "pets", "none", weights(50, 0)).await;
    for warned in [&one, &none] {
        stack
            .consul
            .set_check(&format!("service:{}", warned.id), "warning")
            .await;
    }
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    known_weights(&stack, "pets", &[1, 3]).await;
    let before = none.backend.requests();
    let shared = answers(&stack, "pets.example.com", "/", REQUESTS).await;
    let counts = counted(&shared);
    println!("in the mesh, 3 to 1 to 0: {counts:?}");
    assert!(is_share(counts["three"], REQUESTS, 0.75), "{counts:?}");
    assert_eq!(none.backend.requests(), before, "weight 0 gets nothing");

    // The weights change where they are: with the instance.
    for meshed in [&three, &one] {
        let mut definition = service("pets", &meshed.id, meshed.backend.port);
        definition["Weights"] = json!({ "Passing": 4, "Warning": 1 });
        stack.consul.register(&definition).await;
        stack
            .consul
            .set_check(&format!("service:{}", meshed.id), "passing")
            .await;
    }
    known_weights(&stack, "pets", &[4, 4]).await;
    let shared = answers(&stack, "pets.example.com", "/", REQUESTS).await;
    let counts = counted(&shared);
    println!("in the mesh, 4 to 4 to 0: {counts:?}");
    assert!(is_share(counts["three"], REQUESTS, 0.5), "{counts:?}");
}

/// A sidecar that Consul asks nothing about its instance passes whatever becomes of that: the instance itself is looked at.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_fails_gets_nothing_though_its_sidecar_passes() {
    let stack = mesh_stack(GATEWAY).await;
    protocol(&stack, "pets", "http").await;
    stack.consul.intention("edge-gw", "pets", "allow").await;
    let alone = |passing: u32| {
        let port = free_port();
        let listening = json!({ "Name": "listening", "TCP": format!("127.0.0.1:{port}"), "Interval": "1s" });
        json!({
            "Weights": { "Passing": passing, "Warning": 1 },
            "Connect": { "SidecarService": { "Port": port, "Checks": [listening] } },
        })
    };
    let _one = Meshed::start(&stack, "pets", "one", alone(2)).await;
    let two = Meshed::start(&stack, "pets", "two", alone(3)).await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    known_weights(&stack, "pets", &[2, 3]).await;

    let check = format!("service:{}", two.id);
    let only_one_serves = async || {
        known_weights(&stack, "pets", &[2]).await;
        stack.consul.sidecar_passes("pets", &two.id).await;
        let before = two.backend.requests();
        let shared = answers(&stack, "pets.example.com", "/", 40).await;
        assert_eq!(counted(&shared), BTreeMap::from([("one", 40)]));
        assert_eq!(two.backend.requests(), before);
    };
    stack.consul.set_check(&check, "critical").await;
    only_one_serves().await;
    stack.consul.set_check(&check, "passing").await;
    known_weights(&stack, "pets", &[2, 3]).await;
    stack.consul.maintenance(&two.id, true).await;
    only_one_serves().await;
    stack.consul.maintenance(&two.id, false).await;
    known_weights(&stack, "pets", &[2, 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_load_balancer_chooses_in_its_own_way() {
    let (stack, backends) = serving().await;
    let [one, two, _] = &backends;
    for backend in [one, two] {
        stack.register("app", backend).await;
    }
    known(&stack, &["least", "round", "random"], 2).await;

    // In turns, or not.
    let repeats = |answers: &[String]| answers.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64;
    let turns = answers(&stack, "balanced.example.com", "/round_robin", 40).await;
    assert_eq!(repeats(&turns), 0, "{turns:?}");
    let dice = answers(&stack, "balanced.example.com", "/random", REQUESTS).await;
    assert!(
        is_share(repeats(&dice), REQUESTS - 1, 0.5),
        "{} repeats in {REQUESTS}",
        repeats(&dice)
    );

    // An instance that is busy gets a quarter: two are drawn for each request, and only if both are the same one it gets that.
    one.behave(Behaviour {
        delay: Duration::from_secs(600),
        ..Behaviour::default()
    });
    for (path, share) in [("/least_request", 0.25), ("/round_robin", 0.5)] {
        let (before, before_two) = (one.requests(), two.requests());
        let mut waiting = JoinSet::new();
        for number in 1..=REQUESTS {
            let (client, request) = (stack.client(), Request::get("balanced.example.com", path));
            waiting.spawn(async move { client.send(&request).await });
            arrives(|| one.requests() + two.requests() - before - before_two >= number).await;
        }
        let busy = one.requests() - before;
        println!("{path}: {busy} of {REQUESTS} to the busy one");
        assert!(is_share(busy, REQUESTS, share), "{path}: {busy} of {REQUESTS}");
        waiting.abort_all();
    }
}
