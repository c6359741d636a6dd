//! Two datacenters, joined over the WAN: the local one serves, the other while the local one cannot.

use std::time::Duration;

use serde_json::json;

use crate::stack::{GATEWAY, Options, SOON, Stack, id, route};
use crate::support::backend::Backend;
use crate::support::client::Request;
use crate::support::consul::{Consul, service};
use crate::support::load::Load;
use crate::support::ports::free_port;
use crate::support::wait_for;

/// A gateway in dc1, and dc2 beside it.
async fn two_datacenters() -> (Stack, Consul) {
    let wan = free_port();
    let stack = Stack::start(Options {
        consul_settings: Some(json!({ "ports": { "serf_wan": wan } })),
        ..Options::default()
    })
    .await;
    let other = start_dc2(&stack.consul, wan, false).await;
    (stack, other)
}

/// Beside dc1, which listens there for it.
pub async fn start_dc2(dc1: &Consul, wan: u16, acl: bool) -> Consul {
    let other = Consul::start_with(
        acl,
        json!({
            "datacenter": "dc2",
            "ports": { "serf_wan": free_port() },
            "retry_join_wan": [format!("127.0.0.1:{wan}")],
        }),
    )
    .await;
    wait_for("the datacenters to know each other", SOON, async || {
        for consul in [dc1, &other] {
            let known = consul
                .call(hyper::Method::GET, "/v1/catalog/datacenters", "")
                .await?;
            anyhow::ensure!(
                known.text().contains("dc1") && known.text().contains("dc2"),
                "{}",
                known.text()
            );
        }
        Ok(())
    })
    .await;
    other
}

pub fn document(failover: &str, more: &str) -> String {
    let to_upstream =
        route("shop", "shop.example.com", "x").replace("\"consul\" \"x\"", "\"upstream\" \"orders\"");
    format!("{to_upstream}\nupstream \"orders\" {{\n  consul {{\n    failover = {failover}\n  }}\n{more}}}\n")
}

async fn all_from(stack: &Stack, name: &str) {
    all_from_within(stack, name, SOON).await;
}

async fn all_from_within(stack: &Stack, name: &str, limit: Duration) {
    wait_for(&format!("all answers to be from {name}"), limit, async || {
        for _ in 0..20 {
            let request = Request::get("shop.example.com", "/");
            let reply = stack
                .client()
                .send(&request)
                .await
                .map_err(|e| anyhow::anyhow!("{e:?}"))?;
            anyhow::ensure!(
                reply.backend() == Some(name),
                "{} {:?}",
                reply.status,
                reply.backend()
            );
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_datacenter_serves_and_the_other_while_it_cannot() {
    let (mut stack, mut other) = two_datacenters().await;
    let (here, there) = (Backend::start("here").await, Backend::start("there").await);
    stack.put("gateway", GATEWAY).await;
    stack.register("orders", &here).await;
    other
        .register(&service("orders", &id("orders", &there), there.port))
        .await;
    // A datacenter that does not exist takes nothing from those that do.
    stack.put("shop", &document("[\"dc2\", \"dc9\"]", "")).await;
    all_from(&stack, "here").await;
    let line = stack.agent.wait_for_log("dc=dc9").await;
    assert!(line.contains("No path to datacenter"), "{line}");

    let load = Load::start(200, stack.client(), Request::get("shop.example.com", "/"));
    let check = format!("service:{}", id("orders", &here));
    for _ in 0..3 {
        stack.consul.set_check(&check, "critical").await;
        all_from(&stack, "there").await;
        stack.consul.set_check(&check, "passing").await;
        all_from(&stack, "here").await;
    }
    stack.deregister("orders", &here).await;
    all_from(&stack, "there").await;

    // The other one serves on while nobody there can say that it does.
    other.kill();
    tokio::time::sleep(Duration::from_secs(3)).await;
    all_from(&stack, "there").await;
    stack.register("orders", &here).await;
    all_from(&stack, "here").await;
    other.restart().await;
    let report = load.finish().await;
    println!("failover between datacenters: {report}");
    report.assert_none_lost();
    assert!(report.backends.contains_key("here") && report.backends.contains_key("there"));
}

/// The query itself turns to the other datacenter. It is asked every 5 s, so an instance that fails is served until then.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_query_is_followed_to_where_it_leads() {
    let (mut stack, other) = two_datacenters().await;
    let (here, there) = (Backend::start("here").await, Backend::start("there").await);
    stack.put("gateway", GATEWAY).await;
    stack.register("orders", &here).await;
    other
        .register(&service("orders", &id("orders", &there), there.port))
        .await;
    let upstream = document("[]", "").replace("failover = []", "prepared_query = \"orders-anywhere\"");
    stack.put("shop", &upstream).await;
    let line = stack.agent.wait_for_log("has no prepared query").await;
    assert!(line.contains("orders-anywhere"), "{line}");

    let query = json!({
        "Name": "orders-anywhere",
        "Service": { "Service": "orders", "OnlyPassing": true, "Failover": { "Datacenters": ["dc2"] } },
    });
    let created = stack
        .consul
        .expect(hyper::Method::POST, "/v1/query", query.to_string())
        .await;
    all_from_within(&stack, "here", Duration::from_secs(90)).await;
    let load = Load::start(100, stack.client(), Request::get("shop.example.com", "/"));
    let check = format!("service:{}", id("orders", &here));
    stack.consul.set_check(&check, "critical").await;
    all_from_within(&stack, "there", Duration::from_secs(30)).await;
    stack.consul.set_check(&check, "passing").await;
    all_from_within(&stack, "here", Duration::from_secs(30)).await;

    // Without its query the upstream serves on as it did.
    let path = format!("/v1/query/{}", created["ID"].as_str().unwrap());
    stack.consul.expect(hyper::Method::DELETE, &path, "").await;
    let line = stack.agent.wait_for_log("what it found last is kept").await;
    assert!(line.contains("prepared_query"), "{line}");
    all_from(&stack, "here").await;
    load.finish().await.assert_none_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_health_check_envoy_fails_over_before_consul_knows() {
    let (stack, other) = two_datacenters().await;
    let (mut here, there) = (Backend::start("here").await, Backend::start("there").await);
    stack.put("gateway", GATEWAY).await;
    stack.register("orders", &here).await;
    other
        .register(&service("orders", &id("orders", &there), there.port))
        .await;
    let check = "  health_check {\n    interval = \"500ms\"\n  }\n";
    stack.put("shop", &document("[\"dc2\"]", check)).await;
    all_from(&stack, "here").await;

    // Its check in Consul goes on passing.
    here.stop().await;
    all_from(&stack, "there").await;
    let load = Load::start(100, stack.client(), Request::get("shop.example.com", "/"));
    here.restart().await;
    all_from(&stack, "here").await;
    load.finish().await.assert_none_lost();

    // Half of them is enough to serve alone.
    let mut beside = Backend::start("here").await;
    stack.register("orders", &beside).await;
    let before = beside.requests();
    wait_for("the second one to serve", SOON, async || {
        all_from(&stack, "here").await;
        // Its check is a connection alone.
        anyhow::ensure!(beside.requests() > before);
        Ok(())
    })
    .await;
    let before = there.requests();
    beside.stop().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for _ in 0..10 {
        all_from(&stack, "here").await;
    }
    assert_eq!(there.requests(), before, "it is not the other datacenter's turn");
}

/// A gateway without a past opens its ports all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_datacenter_that_hangs_keeps_no_start_back() {
    let (mut stack, mut other) = two_datacenters().await;
    let here = Backend::start("here").await;
    stack.put("gateway", GATEWAY).await;
    stack.register("orders", &here).await;
    stack.put("shop", &document("[\"dc2\"]", "")).await;
    all_from(&stack, "here").await;

    stack.agent.terminate();
    std::fs::remove_dir_all(&stack.data).unwrap();
    other.process.stop();
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    let process = &mut stack.agent.process;
    let line = process
        .wait_for_log_after(
            start,
            "not all that routes lead to has been heard of",
            Duration::from_secs(30),
        )
        .await;
    assert!(line.contains("orders") && line.contains("dc2"), "{line}");
    all_from(&stack, "here").await;
}
