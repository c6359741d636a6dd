//! Ports come and go with documents; of two gateways that want one, the older has it.

use std::time::Instant;

use hyper::Method;
use serde_json::Value;

use crate::stack::{GATEWAY, Options, SOON, Stack, route, until};
use crate::support::client::{Client, Request};
use crate::support::load::Load;
use crate::support::wait_for;

fn answers(gateway: &str) -> String {
    format!(
        "{}\nhttp_route \"{gateway}\" {{\n  gateways  = [\"{gateway}\"]\n  hostnames = [\"{gateway}.example.com\"]\n\n  rule \"all\" {{\n    direct_response {{\n      status = 200\n      body   = \"{gateway}\"\n    }}\n  }}\n}}\n",
        GATEWAY.replace("\"edge\"", &format!("{gateway:?}"))
    )
}

/// What is said of the clash. An Envoy may serve before the agent's API does.
async fn clash(stack: &Stack) -> anyhow::Result<Vec<Value>> {
    let status = stack.agent.api(Method::GET, "/v1/status", "").await?;
    let status: Value = status.ok()?.json();
    let all = status["diagnostics"].as_array().into_iter().flatten();
    Ok(all.filter(|said| said["code"] == "port-clash").cloned().collect())
}

async fn loser(stack: &Stack, expected: &str) {
    wait_for("a clash", SOON, async || {
        let said = clash(stack).await?;
        let [said] = &said[..] else {
            anyhow::bail!("{said:?}")
        };
        anyhow::ensure!(said["object"]["name"] == expected, "{said}");
        Ok(())
    })
    .await;
}

/// Every connection goes to the one that holds the port: with two Envoys on it the kernel would deal them out.
async fn only(stack: &Stack, holder: &str, other: &str) {
    let (ours, theirs) = (
        Request::get(&format!("{holder}.example.com"), "/"),
        Request::get(&format!("{other}.example.com"), "/"),
    );
    stack.until(&ours, holder, |reply| reply.text() == holder).await;
    stack.until(&theirs, other, |reply| reply.status == 404).await;
    for _ in 0..50 {
        assert_eq!(stack.client().send(&ours).await.unwrap().text(), holder);
        assert_eq!(stack.client().send(&theirs).await.unwrap().status, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_of_two_gateways_holds_a_port_and_the_other_is_told() {
    let mut stack = Stack::start(Options {
        arguments: vec!["-gateway=edge", "-gateway=inner"],
        ..Options::default()
    })
    .await;
    stack.put("zz-edge", &answers("edge")).await;
    stack
        .until(&Request::get("edge.example.com", "/"), "edge alone", |reply| {
            reply.text() == "edge"
        })
        .await;
    stack.put("inner", &answers("inner")).await;
    loser(&stack, "inner").await;
    let line = stack.agent.wait_for_log("both want port").await;
    println!("{}", line.trim());
    only(&stack, "edge", "inner").await;

    // The port goes to the other as soon as it is free, and is not given back.
    stack.delete("zz-edge").await;
    only(&stack, "inner", "edge").await;
    assert!(clash(&stack).await.unwrap().is_empty());
    stack.put("zz-edge", &answers("edge")).await;
    loser(&stack, "edge").await;
    only(&stack, "inner", "edge").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_opens_and_closes_by_a_document_while_others_serve() {
    let stack = Stack::start(Options::default()).await;
    let (_backend, request) = stack.shop().await;
    let load = Load::start(100, stack.client(), request.clone());
    let more = GATEWAY.replace(
        "  }\n}\n",
        "  }\n\n  listener \"more\" {\n    port = $HTTPS\n  }\n}\n",
    );
    let opened = Client::http(stack.https);
    for _ in 0..2 {
        stack.put("gateway", &more).await;
        until(&opened, &request, "the new port", |reply| reply.status == 200).await;
        stack.put("gateway", GATEWAY).await;
        wait_for("the port to close", SOON, async || {
            let answer = opened.send(&request).await;
            anyhow::ensure!(
                answer.as_ref().is_err_and(|failure| failure.kind() == "refused"),
                "{answer:?}"
            );
            Ok(())
        })
        .await;
    }
    load.finish().await.assert_none_lost();
}

/// Whoever finds a new port open finds its hosts.
async fn opens_whole(state_of_the_world: bool) {
    let stack = Stack::start(Options {
        state_of_the_world,
        ..Options::default()
    })
    .await;
    let (_backend, request) = stack.shop().await;
    // Many of them: Envoy takes its time.
    let many: Vec<String> = (0..400)
        .map(|number| route(&format!("r{number}"), &format!("h{number}.example.com"), "orders"))
        .collect();
    stack.put("many", &many.concat()).await;
    let last = Request::get("h399.example.com", "/");
    stack
        .until(&last, "the last host", |reply| reply.status == 200)
        .await;
    let load = Load::start(100, stack.client(), request.clone());
    let more = GATEWAY.replace(
        "  }\n}\n",
        "  }\n\n  listener \"more\" {\n    port = $HTTPS\n  }\n}\n",
    );
    let opened = Client::http(stack.https);
    for _ in 0..5 {
        stack.put("gateway", &more).await;
        let started = Instant::now();
        let first = loop {
            match opened.send(&last).await {
                Ok(reply) => break reply,
                Err(failure) if failure.kind() == "refused" => {}
                Err(failure) => panic!("{failure:?}"),
            }
            assert!(started.elapsed() < SOON, "it never opened");
        };
        assert_eq!(first.status, 200, "{first:?}");
        stack.put("gateway", GATEWAY).await;
        wait_for("the port to close", SOON, async || {
            let answer = opened.send(&last).await;
            anyhow::ensure!(answer.is_err(), "{answer:?}");
            Ok(())
        })
        .await;
    }
    load.finish().await.assert_none_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_opens_with_all_its_hosts() {
    opens_whole(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_opens_with_all_its_hosts_in_the_state_of_the_world() {
    opens_whole(true).await;
}
