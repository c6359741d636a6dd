//! Things die under load, and every failed request is accounted for.
//!
//! Allowed are only requests in flight on a process that was killed, or refused while no Envoy existed; their counts are
//! printed.

use std::time::Duration;

use crate::stack::{GATEWAY, Options, SOON, Stack, route, until};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::load::Load;
use crate::support::wait_for;

const RATE: u32 = 200;

async fn serving(options: Options) -> (Stack, Backend, Request) {
    let stack = Stack::start(options).await;
    let backend = Backend::start("one").await;
    stack.register("orders", &backend).await;
    stack.put("gateway", GATEWAY).await;
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    let request = Request::get("shop.example.com", "/");
    stack
        .until(&request, "the route", |reply| reply.status == 200)
        .await;
    // Settled and on disk.
    tokio::time::sleep(Duration::from_millis(500)).await;
    (stack, backend, request)
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_killed_and_back_loses_nothing() {
    let (mut stack, _backend, request) = serving(Options::default()).await;
    let envoy = stack.envoy_pid();
    let load = Load::start(RATE, stack.client(), request.clone());
    tokio::time::sleep(Duration::from_secs(1)).await;
    stack.agent.kill();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    stack
        .agent
        .process
        .wait_for_log_after(start, "Envoy connected", SOON)
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let report = load.finish().await;
    println!("agent kill -9: {report}");
    report.assert_none_lost();
    assert_eq!(stack.envoy_pid(), envoy, "adopted, not doubled");
    let two = Backend::start("two").await;
    stack.register("orders", &two).await;
    stack
        .until(&request, "changes to flow again", |reply| {
            reply.backend() == Some("two")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_killed_and_back_loses_nothing() {
    let (mut stack, _backend, request) = serving(Options::default()).await;
    let load = Load::start(RATE, stack.client(), request.clone());
    stack.consul.kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    stack.consul.restart().await;
    let two = Backend::start("two").await;
    stack.register("orders", &two).await;
    stack
        .until(&request, "changes to flow again", |reply| {
            reply.backend() == Some("two")
        })
        .await;
    let report = load.finish().await;
    println!("consul kill and restart: {report}");
    report.assert_none_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_restarted_while_consul_is_down_serves_what_it_knew() {
    let (mut stack, _backend, request) = serving(Options::default()).await;
    stack.consul.kill();
    stack.agent.kill();
    // Envoy too: the next one has nothing but what the agent remembers.
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(stack.envoy_pid()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    stack
        .agent
        .process
        .wait_for_log_after(start, "serving the last published state from disk", SOON)
        .await;
    stack
        .until(&request, "the last published state", |reply| {
            reply.backend() == Some("one")
        })
        .await;
    stack.consul.restart().await;
    let two = Backend::start("two").await;
    stack.register("orders", &two).await;
    stack
        .until(&request, "changes to flow again", |reply| {
            reply.backend() == Some("two")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_killed_is_replaced() {
    let (stack, _backend, request) = serving(Options::default()).await;
    let load = Load::start(RATE, stack.client(), request.clone());
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = stack.envoy_pid();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(before).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    wait_for("another Envoy", SOON, async || {
        anyhow::ensure!(stack.envoy_pid() != before);
        Ok(())
    })
    .await;
    stack
        .until(&request, "the next Envoy", |reply| reply.status == 200)
        .await;
    let report = load.finish().await;
    println!("envoy kill -9 (refused while there was none, in flight on the killed one): {report}");
    assert!(report.wrong_status.is_empty(), "no wrong answer: {report}");
    assert!(
        report
            .failed
            .keys()
            .all(|kind| ["refused", "reset", "stale"].contains(kind)),
        "{report}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_sealed_keeps_the_certificate() {
    let stack = Stack::start(Options {
        vault: true,
        ..Options::default()
    })
    .await;
    let document = r#"
gateway "edge" {
  listener "secure" {
    port     = $HTTPS
    protocol = "https"
    tls { certificates = ["www"] }
  }
}

certificate "www" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "www.example.com"
  }
}

http_route "www" {
  gateways  = ["edge"]
  hostnames = ["www.example.com"]

  rule "all" {
    direct_response {
      status = 200
    }
  }
}
"#;
    stack.put("www", document).await;
    let vault = stack.vault.as_ref().unwrap();
    let root = vault.read("pki_int/cert/ca").await["data"]["certificate"]
        .as_str()
        .unwrap()
        .to_owned();
    let client = Client::https(stack.https, &root);
    let request = Request::get("www.example.com", "/");
    until(&client, &request, "https", |reply| reply.status == 200).await;
    let load = Load::start(50, client.clone(), request.clone());
    vault.seal().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // A change that needs no secret goes through meanwhile.
    stack
        .put(
            "www",
            &document.replace("status = 200", "status = 200\n      body   = \"changed\""),
        )
        .await;
    until(&client, &request, "a change", |reply| reply.text() == "changed").await;
    vault.unseal().await;
    let report = load.finish().await;
    println!("vault sealed: {report}");
    report.assert_none_lost();
}

/// Envoy refuses what the agent could not know to be wrong: the document goes back, the others move on.
#[tokio::test(flavor = "multi_thread")]
async fn what_envoy_refuses_is_traced_put_back_and_remembered() {
    let (mut stack, _backend, request) = serving(Options::default()).await;
    // RE2 and our own check differ in what they take; this is Envoy's own bound on a header value.
    let bad = route("shop", "shop.example.com", "orders").replace(
        "  rule \"all\" {",
        "  response_headers {\n    set = { \"x-bad\" = \"%NO_SUCH_OPERATOR%\" }\n  }\n\n  rule \"all\" {",
    );
    stack.put("shop", &bad).await;
    let line = stack.agent.wait_for_log("error[envoy-rejected]").await;
    assert!(line.contains("portreeve/config/shop:2:1"), "{line}");
    // The agent's own measure, from the refusal to Envoy's last answer.
    let line = stack
        .agent
        .wait_for_log("everything but what was refused is in place")
        .await;
    println!("the rest after a refusal: {}", line.trim());
    stack
        .put("pets", &route("pets", "pets.example.com", "orders"))
        .await;
    stack
        .until(
            &Request::get("pets.example.com", "/"),
            "the others to move on",
            |reply| reply.status == 200,
        )
        .await;
    assert_eq!(
        stack.client().send(&request).await.unwrap().status,
        200,
        "what Envoy last accepted serves on"
    );

    // Remembered over a restart, and kept from an Envoy that connects later.
    stack.agent.kill();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(stack.envoy_pid()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    stack
        .agent
        .process
        .wait_for_log_after(start, "Envoy serves", SOON)
        .await;
    stack
        .until(&request, "the accepted version", |reply| reply.status == 200)
        .await;
    let log = stack.agent.process.log();
    assert!(
        !log[start..].contains("Envoy refused"),
        "the refused bytes were sent again"
    );

    stack
        .put("shop", &route("shop", "shop.example.com", "pets"))
        .await;
    stack
        .until(&request, "the next version", |reply| reply.status == 503)
        .await;
}
