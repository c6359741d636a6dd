//! An Envoy that is replaced on purpose loses no request.

use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use crate::stack::{Options, Stack};
use crate::support::agent;
use crate::support::backend::Backend;
use crate::support::client::Client;
use crate::support::load::Load;
use crate::support::wait_for;

const RATE: u32 = 200;

/// The stack's Envoys drain for 2 s.
const DRAINED: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_restart_loses_nothing() {
    let stack = Stack::start(Options::default()).await;
    let (_backend, request) = stack.shop().await;

    let load = Load::start(RATE, stack.client(), request.clone());
    let kept = Load::start(20, Client::http(stack.http).keep_alive(), request.clone());
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Through the API and through the command, twice: numbers of hand-over sockets repeat.
    let mut pids = vec![stack.envoy_pid()];
    for round in 0..2 {
        // Refused (409) while the one before last still drains.
        let answer: Value = wait_for("a restart by the API", DRAINED, async || {
            let answer = stack.agent.api(Method::POST, "/v1/envoy/restart", "").await?;
            Ok(answer.ok()?.json())
        })
        .await;
        println!("round {round}, api: {answer}");
        assert_eq!(answer["gateway"], "edge");
        pids.push(stack.envoy_pid());

        let text = wait_for("a restart by the command", DRAINED, async || {
            let socket = format!("-api-socket={}", stack.agent.api.display());
            let output = tokio::task::spawn_blocking(move || {
                agent::run(&std::env::temp_dir(), &["envoy", "restart", &socket])
            })
            .await?;
            anyhow::ensure!(output.status.success(), "{output:?}");
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })
        .await;
        println!("round {round}, command: {}", text.trim());
        assert!(text.contains("Envoy of gateway edge replaced"), "{text}");
        pids.push(stack.envoy_pid());
    }
    let unique: std::collections::BTreeSet<&i32> = pids.iter().collect();
    assert_eq!(
        unique.len(),
        pids.len(),
        "each restart makes a new Envoy: {pids:?}"
    );

    let (report, kept) = (load.finish().await, kept.finish().await);
    println!("planned restarts, new connections: {report}");
    println!("planned restarts, kept connections: {kept}");
    report.assert_none_lost();
    assert!(report.sent > 1000, "{report}");
    assert_eq!(kept.lost_but_stale(), 0, "{kept}");

    // Changes reach the last one.
    let two = Backend::start("two").await;
    stack.register("orders", &two).await;
    stack
        .until(&request, "changes to flow", |reply| {
            reply.backend() == Some("two")
        })
        .await;
}
