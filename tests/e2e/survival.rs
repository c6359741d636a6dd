//! What a return brings and does not bring.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::stack::{Options, SOON, Stack, route, secure, until};
use crate::support::backend::Backend;
use crate::support::client::Request;
use crate::support::load::Load;
use crate::support::wait_for;

/// Everything Envoy counts when it takes up configuration, of whatever kind.
async fn updates(stack: &Stack) -> BTreeMap<String, u64> {
    let counters = stack
        .envoy()
        .stats(r"(update_success|update_rejected|config_reload|load_success|listener_(added|modified|in_place_updated)|cluster_(added|modified|updated)|ssl_context_update_by_sds)$")
        .await;
    // The static cluster that carries xDS is none of it.
    counters
        .into_iter()
        .filter(|(name, _)| !name.contains("portreeve_xds"))
        .collect()
}

async fn a_return_sends_nothing_again(options: Options) {
    let mut stack = Stack::start(Options {
        vault: true,
        ..options
    })
    .await;
    let backend = Backend::start("one").await;
    stack.register("orders", &backend).await;
    // One resource of each kind.
    let bounded = secure("backend \"consul\" \"orders\" {}").replace(
        "port = $HTTP\n",
        "port            = $HTTP\n    max_connections = 1000\n",
    );
    stack.put("www", &bounded).await;
    let client = stack.https_client().await;
    let request = Request::get("www.example.com", "/");
    until(&client, &request, "https", |reply| reply.status == 200).await;
    stack.until(&request, "http", |reply| reply.status == 200).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = updates(&stack).await;
    assert!(before.values().sum::<u64>() >= 6, "{before:#?}");

    for _ in 0..2 {
        stack.agent.kill();
        let start = stack.agent.process.log_length();
        stack.agent.process.start_again();
        stack
            .agent
            .process
            .wait_for_log_after(start, "Envoy connected", SOON)
            .await;
        // All that it has to say it has said by now: the watches have answered, and Envoy acknowledged.
        wait_for("the agent to be settled", SOON, async || {
            let status = stack
                .agent
                .api(hyper::Method::GET, "/v1/status", "")
                .await?
                .ok()?
                .json();
            let programmed = &status["gateways"][0]["programmed"];
            anyhow::ensure!(
                programmed["acknowledged"] == 1 && status["readiness"]["ready"] == true,
                "{status:#}"
            );
            Ok(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(
            updates(&stack).await,
            before,
            "something unchanged was sent again"
        );
    }

    // The counters do move.
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    let shop = Request::get("shop.example.com", "/");
    stack.until(&shop, "a change", |reply| reply.status == 200).await;
    assert_ne!(updates(&stack).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_returns_sends_nothing_again_delta() {
    a_return_sends_nothing_again(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_returns_sends_nothing_again_state_of_the_world() {
    a_return_sends_nothing_again(Options {
        state_of_the_world: true,
        ..Options::default()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_told_to_leave_its_envoy_leaves_it_and_the_next_takes_it_over() {
    let mut stack = Stack::start(Options {
        leave_envoy: true,
        ..Options::default()
    })
    .await;
    let (_backend, shop) = stack.shop().await;
    let envoy = stack.envoy_pid();
    let load = Load::start(100, stack.client(), shop.clone());
    stack.agent.terminate();
    let log = stack.agent.process.log();
    assert!(log.contains("leaving Envoy running"), "{log}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    stack
        .agent
        .process
        .wait_for_log_after(start, "Envoy connected", SOON)
        .await;
    let two = Backend::start("two").await;
    stack.register("orders", &two).await;
    stack
        .until(&shop, "changes to flow", |reply| reply.backend() == Some("two"))
        .await;
    assert_eq!(stack.envoy_pid(), envoy, "adopted, not doubled");
    let report = load.finish().await;
    println!("agent ended and back: {report}");
    report.assert_none_lost();
}
