//! Central mode: an Envoy elsewhere, which gets its gateway by its certificate.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use crate::central::{Central, EDGE, INNER, request};
use crate::stack::{SOON, route};
use crate::support::backend::Backend;
use crate::support::client::{Reply, Request};
use crate::support::envoy::{Envoy, EnvoyAdmin};
use crate::support::load::Load;
use crate::support::pki::Ca;
use crate::support::wait_for;

async fn serves(variant: &str) {
    let central = Central::start().await;
    let pair = central.ca.issue(&[EDGE]);
    let (mut envoy, _) = central.run("remote-1", "edge", &pair, variant);
    let stack = &central.stack;
    stack
        .until(&request(), "the remote Envoy", |reply| {
            reply.backend() == Some("one")
        })
        .await;
    let envoys = central.envoys().await;
    assert!(
        envoys.contains(EDGE) && envoys.contains(&format!("{variant:?}")),
        "{envoys}"
    );
    let two = Backend::start("two").await;
    stack.register("orders", &two).await;
    stack
        .until(&request(), "an endpoint change", |reply| {
            reply.backend() == Some("two")
        })
        .await;
    stack
        .put("pets", &route("pets", "pets.example.com", "orders"))
        .await;
    let pets = Request::get("pets.example.com", "/");
    stack
        .until(&pets, "a route change", |reply| reply.status == 200)
        .await;
    assert!(envoy.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_envoy_serves_delta() {
    serves("delta").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_envoy_serves_state_of_the_world() {
    serves("sotw").await;
}

/// Envoy's counters of updates that it took.
async fn updates(envoy: &EnvoyAdmin) -> BTreeMap<String, u64> {
    let stats = envoy
        .get("/stats?filter=update_success&format=json")
        .await
        .unwrap();
    let stats = stats.ok().unwrap().json();
    let named = stats["stats"].as_array().unwrap().iter().filter_map(|stat| {
        let name = stat["name"].as_str()?;
        Some((name.to_owned(), stat["value"].as_u64()?))
    });
    named.collect()
}

async fn outlives(variant: &str) {
    let mut central = Central::start().await;
    let pair = central.ca.issue(&[EDGE]);
    let (_envoy, admin) = central.run("remote-1", "edge", &pair, variant);
    central.serves("the remote Envoy").await;
    let before = updates(&admin).await;
    assert!(before.values().sum::<u64>() >= 3, "{before:#?}");
    let load = Load::start(100, central.stack.client(), request());
    central.stack.agent.kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    central.stack.agent.process.start_again();
    wait_for("the Envoy to be back", SOON, async || {
        let envoys = central
            .stack
            .agent
            .api(Method::GET, "/v1/envoys", "")
            .await?
            .text();
        anyhow::ensure!(envoys.contains(EDGE), "{envoys}");
        let status = central
            .stack
            .agent
            .api(Method::GET, "/v1/status", "")
            .await?
            .json();
        let programmed = &status["gateways"][0]["programmed"];
        anyhow::ensure!(programmed["acknowledged"] == 1, "{status:#}");
        Ok(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        updates(&admin).await,
        before,
        "something unchanged was sent again"
    );
    let two = Backend::start("two").await;
    central.stack.register("orders", &two).await;
    let is_two = |reply: &Reply| reply.backend() == Some("two");
    central.stack.until(&request(), "changes to flow", is_two).await;
    let report = load.finish().await;
    println!("central agent killed ({variant}): {report}");
    report.assert_none_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_envoys_outlive_their_agent_delta() {
    outlives("delta").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_envoys_outlive_their_agent_state_of_the_world() {
    outlives("sotw").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_hold_up_no_envoy() {
    let mut central = Central::start().await;
    central.stack.agent.wait_for_log("first publication").await;
    // More than handshakes are made at a time, and anew as soon as they are given up, so that there is no moment without
    // them. Those that say something come from elsewhere: one address has so many places and no more.
    let port = central.port();
    let mut silent = tokio::task::JoinSet::new();
    for (host, said) in [(1, &b""[..]), (2, &b"\x16"[..])] {
        for _ in 0..400 {
            silent.spawn(async move {
                loop {
                    let socket = TcpSocket::new_v4().unwrap();
                    socket.bind(([127, 0, 0, host], 0).into()).unwrap();
                    let Ok(mut stream) = socket.connect(([127, 0, 0, 1], port).into()).await else {
                        continue;
                    };
                    _ = stream.write_all(said).await;
                    _ = stream.read(&mut [0]).await;
                }
            });
        }
    }
    let pair = central.ca.issue(&[EDGE]);
    let (_envoy, _) = central.run("remote-1", "edge", &pair, "delta");
    central.serves("the remote Envoy").await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_nodes_gateway_is_refused_and_told() {
    let mut central = Central::start().await;
    let pair = central.ca.issue(&[INNER]);
    let (envoy, admin) = central.run("inner-1", "edge", &pair, "delta");
    let line = central
        .stack
        .agent
        .wait_for_log("an xDS client was refused")
        .await;
    println!("another's gateway: {}", line.trim());
    assert!(
        line.contains(r#"gateway \"edge\""#) && line.contains(INNER),
        "{line}"
    );
    central.nobody_serves().await;
    assert!(admin.ready().await.is_err(), "it must wait for its configuration");
    assert_eq!(central.envoys().await, "[]", "it is not among the connected");
    // It comes again and again, and is counted. The log has it once.
    let agent = &central.stack.agent;
    wait_for("more tries", SOON, async || {
        let metrics = agent.api(Method::GET, "/metrics", "").await?.text();
        let name = "portreeve_xds_refused_clients_total{reason=\"gateway_not_permitted\"} ";
        let tries = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.parse::<f64>().ok());
        anyhow::ensure!(tries >= Some(4.0), "{metrics}");
        Ok(())
    })
    .await;
    let log = agent.process.log();
    assert_eq!(log.matches("an xDS client was refused").count(), 1, "{log}");
    let status: Value = agent.api(Method::GET, "/v1/status", "").await.unwrap().json();
    let last = &status["agent"]["refused_clients"]["last"];
    assert_eq!(last["reason"], "gateway_not_permitted", "{last}");
    assert_eq!(last["node"], "inner-1/edge", "{last}");
    assert!(last["peer"].as_str().unwrap().contains(INNER), "{last}");
    assert!(last["at"].is_string(), "{last}");
    drop(envoy);

    // The same certificate gets the gateway that it is for.
    let (_envoy, _) = central.run("inner-2", "inner", &pair, "delta");
    wait_for("its own gateway", SOON, async || {
        let envoys = central.envoys().await;
        anyhow::ensure!(envoys.contains(r#""gateway": "inner""#), "{envoys}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_known_certificate_nothing_is_given() {
    let mut central = Central::start().await;
    let pair = central.ca.issue(&[EDGE]);
    // It writes the files that the printed bootstrap refers to.
    let (known, _) = central.run("known", "edge", &pair, "delta");
    central.serves("a known certificate").await;
    drop(known);
    central.stopped().await;
    let mut bootstrap = central.bootstrap("known", &pair);
    for secret in ["BEGIN", "PRIVATE"] {
        assert!(!bootstrap.to_string().contains(secret), "{bootstrap}");
    }
    // Its admin socket goes where the harness puts it.
    bootstrap["admin"] = Value::Null;
    let envoy = Envoy::start(&bootstrap);
    central.serves("the printed bootstrap").await;
    drop(envoy);
    central.stopped().await;

    // The same without its certificate.
    let mut without = bootstrap.clone();
    let removed = strip(&mut without);
    assert!(removed > 0, "no certificate in {bootstrap:#}");
    let envoy = Envoy::start(&without);
    let line = central
        .stack
        .agent
        .wait_for_log("an xDS client was refused")
        .await;
    println!("without a certificate: {}", line.trim());
    assert!(line.contains("no client certificate"), "{line}");
    central.nobody_serves().await;
    assert!(envoy.admin.ready().await.is_err());
    drop(envoy);

    // Signed by somebody else, with the right name in it.
    let start = central.stack.agent.process.log_length();
    let forged = Ca::new("others").issue(&[EDGE]);
    let (envoy, _) = central.run("forged", "edge", &forged, "delta");
    let line = central
        .stack
        .agent
        .process
        .wait_for_log_after(start, "an xDS client was refused", SOON)
        .await;
    println!("by another authority: {}", line.trim());
    central.nobody_serves().await;
    assert_eq!(central.envoys().await, "[]");
    drop(envoy);

    // A name that is not in the table.
    let start = central.stack.agent.process.log_length();
    let stranger = central.ca.issue(&["stranger.example.com"]);
    let (envoy, _) = central.run("stranger", "edge", &stranger, "delta");
    let line = central
        .stack
        .agent
        .process
        .wait_for_log_after(start, "stranger.example.com", SOON)
        .await;
    assert!(line.contains("no gateway is open to"), "{line}");
    drop(envoy);
}

/// Takes every client certificate out of a bootstrap.
fn strip(value: &mut Value) -> usize {
    match value {
        Value::Object(map) => {
            let before = map.len();
            map.retain(|key, _| {
                !["tls_certificate_sds_secret_configs", "tls_certificates"].contains(&&**key)
            });
            before - map.len() + map.values_mut().map(strip).sum::<usize>()
        }
        Value::Array(list) => list.iter_mut().map(strip).sum(),
        _ => 0,
    }
}
