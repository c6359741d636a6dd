//! Services come, go, fail and are maintained; requests follow.

use std::sync::atomic::{AtomicUsize, Ordering};

use std::time::Duration;

use tokio::task::JoinSet;

use crate::stack::{GATEWAY, Options, Stack, id, route};
use crate::support::backend::Backend;
use crate::support::client::Request;
use crate::support::load::Load;
use crate::support::wait_for;

#[tokio::test(flavor = "multi_thread")]
async fn requests_follow_the_catalog_delta() {
    requests_follow_the_catalog(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_follow_the_catalog_state_of_the_world() {
    requests_follow_the_catalog(Options {
        state_of_the_world: true,
        ..Options::default()
    })
    .await;
}

async fn requests_follow_the_catalog(options: Options) {
    let stack = Stack::start(options).await;
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    stack.register("orders", &one).await;
    stack.put("gateway", GATEWAY).await;
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    let request = Request::get("shop.example.com", "/");
    stack
        .until(&request, "the first instance", |reply| {
            reply.backend() == Some("one")
        })
        .await;

    stack.register("orders", &two).await;
    stack
        .until(&request, "a second instance", |reply| {
            reply.backend() == Some("two")
        })
        .await;

    stack.deregister("orders", &one).await;
    // While both are there the answers alternate: one "two" says nothing.
    let in_a_row = AtomicUsize::new(0);
    stack
        .until(&request, "the first to be gone", |reply| {
            if reply.backend() != Some("two") {
                in_a_row.store(0, Ordering::Relaxed);
            }
            in_a_row.fetch_add(1, Ordering::Relaxed) >= 10
        })
        .await;
    for _ in 0..20 {
        let reply = stack.client().send(&request).await.unwrap();
        assert_eq!(reply.backend(), Some("two"));
    }

    stack.consul.maintenance(&id("orders", &two), true).await;
    let closed = stack
        .until(&request, "maintenance to close it", |reply| reply.status == 503)
        .await;
    assert_eq!(
        closed.header("x-portreeve-reason"),
        Some("no-healthy-instance"),
        "no panic routing, and it says why"
    );
    stack.consul.maintenance(&id("orders", &two), false).await;
    stack
        .until(&request, "maintenance to end", |reply| {
            reply.backend() == Some("two")
        })
        .await;

    stack
        .consul
        .set_check(&format!("service:{}", id("orders", &two)), "critical")
        .await;
    stack
        .until(&request, "a critical check to close it", |reply| {
            reply.status == 503
        })
        .await;
    stack
        .consul
        .set_check(&format!("service:{}", id("orders", &two)), "warning")
        .await;
    stack
        .until(&request, "a warning to serve", |reply| {
            reply.backend() == Some("two")
        })
        .await;
}

/// A load takes what a busy machine has left: a change may then take its time, and an answer too.
const PATIENCE: Duration = Duration::from_secs(60);

async fn more_of(load: &Load, count: u64) {
    let sent = load.so_far().sent;
    wait_for("new requests", PATIENCE, async || {
        anyhow::ensure!(load.so_far().sent >= sent + count);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_deregistered_finishes_what_runs_and_gets_nothing_new() {
    let stack = Stack::start(Options::default()).await;
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    for backend in [&one, &two] {
        stack.register("orders", backend).await;
    }
    stack.put("gateway", GATEWAY).await;
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    let client = stack.client().timeout(PATIENCE);
    let request = Request::get("shop.example.com", "/");
    for name in ["one", "two"] {
        stack
            .until(&request, name, |reply| reply.backend() == Some(name))
            .await;
    }

    // Under way on the very instance that goes, and perhaps on the other one too.
    let mut under_way = JoinSet::new();
    while one.held() == 0 {
        let (client, held) = (client.clone(), request.clone().header("x-test-held", "1"));
        let before = one.held() + two.held();
        under_way.spawn(async move { client.send(&held).await });
        wait_for("a request that is held", PATIENCE, async || {
            anyhow::ensure!(one.held() + two.held() > before);
            Ok(())
        })
        .await;
    }
    let load = Load::start(50, client.clone().keep_alive(), request.clone());
    stack.deregister("orders", &one).await;
    wait_for("Envoy to have one instance", PATIENCE, async || {
        let clusters = stack.envoy().get("/clusters?format=json").await?.text();
        anyhow::ensure!(
            !clusters.contains(&format!("\"port_value\": {}", one.port))
                && clusters.contains(&format!("\"port_value\": {}", two.port)),
            "{clusters}"
        );
        Ok(())
    })
    .await;
    // That was Envoy's main thread: what its worker had sent to the other one by then may still be on its way.
    more_of(&load, 10).await;
    let came = one.requests();
    more_of(&load, 50).await;
    assert_eq!(one.requests(), came, "what is deregistered gets nothing new");
    assert!(
        one.held() > 0 && under_way.try_join_next().is_none(),
        "what runs goes on"
    );

    one.release();
    two.release();
    let mut answered_by_one = 0;
    for outcome in under_way.join_all().await {
        let reply = outcome.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        answered_by_one += u32::from(reply.backend() == Some("one"));
    }
    assert!(answered_by_one > 0);
    load.finish().await.assert_none_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_route_goes_from_404_to_200_and_nothing_else() {
    let stack = Stack::start(Options::default()).await;
    let backend = Backend::start("one").await;
    stack.put("gateway", GATEWAY).await;
    stack
        .put("first", &route("first", "first.example.com", "first"))
        .await;
    stack.register("first", &backend).await;
    stack
        .until(
            &Request::get("first.example.com", "/"),
            "the first route",
            |reply| reply.status == 200,
        )
        .await;
    for round in 0..10 {
        let (service, host) = (format!("svc-{round}"), format!("h{round}.example.com"));
        stack.register(&service, &backend).await;
        let request = Request::get(&host, "/");
        assert_eq!(stack.client().send(&request).await.unwrap().status, 404);
        stack
            .put(
                &format!("r{round}"),
                &route(&format!("r{round}"), &host, &service),
            )
            .await;
        loop {
            match stack.client().send(&request).await.unwrap().status {
                404 => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
                200 => break,
                other => panic!("round {round}: a new route answered {other} before 200"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_document_breaks_only_itself() {
    let mut stack = Stack::start(Options::default()).await;
    let (_backend, shop) = stack.shop().await;

    stack
        .put(
            "shop",
            &route("shop", "shop.example.com", "orders").replace("hostnames", "hostname"),
        )
        .await;
    let line = stack.agent.wait_for_log("unknown attribute \"hostname\"").await;
    assert!(
        line.contains("portreeve/config/shop:4:3"),
        "the key, line and column are named: {line}"
    );
    assert!(
        line.contains("did you mean") && line.contains("hostnames"),
        "{line}"
    );
    stack
        .put("pets", &route("pets", "pets.example.com", "orders"))
        .await;
    stack
        .until(
            &Request::get("pets.example.com", "/"),
            "another document",
            |reply| reply.status == 200,
        )
        .await;
    assert_eq!(
        stack.client().send(&shop).await.unwrap().status,
        200,
        "the last good version stays"
    );

    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    stack.delete("pets").await;
    stack
        .until(
            &Request::get("pets.example.com", "/"),
            "a deleted document",
            |reply| reply.status == 404,
        )
        .await;
    assert_eq!(stack.client().send(&shop).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_resolved_answers_503_with_a_reason() {
    let stack = Stack::start(Options::default()).await;
    stack.put("gateway", GATEWAY).await;
    stack
        .put("unknown", &route("unknown", "unknown.example.com", "nobody"))
        .await;
    let upstream =
        route("missing", "missing.example.com", "x").replace("\"consul\" \"x\"", "\"upstream\" \"x\"");
    stack.put("missing", &upstream).await;
    let closed = route("closed", "closed.example.com", "nobody")
        .replace(
            "rule \"all\" {",
            "policies = [\"corp\"]\n  rule \"all\" {\n    direct_response {\n      status = 200\n    }",
        )
        .replace("    backend \"consul\" \"nobody\" {}\n", "");
    stack.put("closed", &closed).await;
    for (host, reason) in [
        ("unknown.example.com", "no-healthy-instance"),
        ("missing.example.com", "unknown-upstream"),
        ("closed.example.com", "policy-unresolved"),
    ] {
        let reply = stack
            .until(&Request::get(host, "/"), host, |reply| reply.status == 503)
            .await;
        assert_eq!(reply.header("x-portreeve-reason"), Some(reason), "{host}");
    }
}
