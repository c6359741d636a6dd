//! Things die under load, and every failed request is accounted for.
//!
//! Allowed are only requests in flight on a process that was killed, or refused while no Envoy existed; their counts are
//! printed.

use std::time::{Duration, Instant};

use crate::stack::{Options, SOON, Stack, kill, kill_and_wait, route};
use crate::support::backend::Backend;
use crate::support::client::Request;
use crate::support::load::Load;
use crate::support::wait_for;

const RATE: u32 = 200;

/// Each fault in both dialects of xDS.
macro_rules! in_both_variants {
    ($($test:ident),* $(,)?) => {
        mod delta {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Options::default()).await;
            })*
        }

        mod state_of_the_world {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let options = super::Options { state_of_the_world: true, ..super::Options::default() };
                super::$test(options).await;
            })*
        }
    };
}

in_both_variants!(
    agent_killed_and_back_loses_nothing,
    consul_killed_and_back_loses_nothing,
    agent_restarted_while_consul_is_down_serves_what_it_knew,
    envoy_killed_is_replaced,
    what_envoy_refuses_is_traced_put_back_and_remembered,
);

async fn serving(options: Options) -> (Stack, Backend, Request) {
    let stack = Stack::start(options).await;
    let (backend, request) = stack.shop().await;
    // Settled and on disk.
    tokio::time::sleep(Duration::from_millis(500)).await;
    (stack, backend, request)
}

async fn agent_killed_and_back_loses_nothing(options: Options) {
    let (mut stack, _backend, request) = serving(options).await;
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

async fn consul_killed_and_back_loses_nothing(options: Options) {
    let (mut stack, _backend, request) = serving(options).await;
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

async fn agent_restarted_while_consul_is_down_serves_what_it_knew(options: Options) {
    let (mut stack, _backend, request) = serving(options).await;
    stack.consul.kill();
    stack.agent.kill();
    // Envoy too: the next one has nothing but what the agent remembers.
    kill(stack.envoy_pid());
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

async fn envoy_killed_is_replaced(options: Options) {
    let (stack, _backend, request) = serving(options).await;
    let begun = Instant::now();
    let load = Load::start(RATE, stack.client(), request.clone());
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = stack.envoy_pid();
    let killed = begun.elapsed();
    // Until its last thread has ended the kernel takes connections for it, and then resets them.
    kill_and_wait(before).await;
    let gone = begun.elapsed();
    // Open again: the first answer after the kill.
    let client = stack.client();
    let open = wait_for("the next Envoy", SOON, async || {
        let sent = begun.elapsed();
        let reply = client
            .send(&request)
            .await
            .map_err(|failure| anyhow::anyhow!("{failure}"))?;
        anyhow::ensure!(reply.status == 200 && sent > killed);
        Ok(begun.elapsed())
    })
    .await;
    assert_ne!(stack.envoy_pid(), before);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let report = load.finish().await;
    println!("envoy kill -9 at {killed:?}, gone at {gone:?}, ports open again at {open:?}: {report}");
    assert!(report.wrong_status.is_empty(), "no wrong answer: {report}");
    // A clock for the load and one here, each read on a busy machine.
    let slack = Duration::from_millis(100);
    for failed in &report.failures {
        let ended = failed.due + failed.after;
        let was_in_flight = failed.due <= gone + slack && ended + slack >= killed;
        let was_without_envoy = ended + slack >= killed && failed.due <= open + slack;
        let is_excused = match failed.kind {
            "reset" => was_in_flight,
            "refused" => was_without_envoy,
            _ => false,
        };
        assert!(
            is_excused,
            "{failed:?}, killed at {killed:?}, gone at {gone:?}, open at {open:?}: {report}"
        );
    }
    assert_eq!(report.failures.len() as u64, report.lost());
}

/// Envoy refuses what the agent could not know to be wrong: the document goes back, the others move on.
async fn what_envoy_refuses_is_traced_put_back_and_remembered(options: Options) {
    let (mut stack, _backend, request) = serving(options).await;
    // RE2 and our own check differ in what they take; this is Envoy's own bound on a header value.
    let bad = route("shop", "shop.example.com", "orders").replace(
        "  rule \"all\" {",
        "  response_headers {\n    set = { \"x-bad\" = \"%PROTOCOL(x)%\" }\n  }\n\n  rule \"all\" {",
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
    kill(stack.envoy_pid());
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
