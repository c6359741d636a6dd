//! Starts without a past, or with a past of which little is left.

use std::time::Duration;

use hyper::Method;

use crate::stack::{GATEWAY, Options, SOON, Stack, kill, route};
use crate::support::backend::Backend;
use crate::support::client::Request;
use crate::support::load::Load;
use crate::support::wait_for;

#[tokio::test(flavor = "multi_thread")]
async fn consul_down_at_the_very_first_start_is_told_and_waited_for() {
    let mut stack = Stack::start(Options::default()).await;
    // The agent has nothing yet: as if it had never run.
    let (_backend, shop) = stack.shop().await;
    stack.agent.terminate();
    stack.consul.kill();
    std::fs::remove_dir_all(&stack.data).unwrap();
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();

    let ready = wait_for("an answer", SOON, async || {
        let ready = stack.agent.api(Method::GET, "/v1/ready", "").await?;
        anyhow::ensure!(
            ready.json()["missing"].to_string().contains("documents"),
            "{}",
            ready.text()
        );
        Ok(ready)
    })
    .await;
    println!("{}", ready.text());
    assert_eq!(ready.status, 503);
    assert_eq!(ready.json()["ready"], false);
    // Longer than the time after which a state from disk would be served.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let refused = stack.client().send(&shop).await;
    assert!(
        refused.is_err(),
        "no port opens with nothing behind it: {refused:?}"
    );
    let log = stack.agent.process.log()[start..].to_owned();
    assert!(!log.contains("first publication"), "{log}");
    let status = stack
        .agent
        .api(Method::GET, "/v1/status", "")
        .await
        .unwrap()
        .text();
    assert!(status.contains("Connection refused"), "{status}");

    stack.consul.restart().await;
    stack
        .until(&shop, "Consul's documents", |reply| reply.status == 200)
        .await;
    wait_for("readiness", SOON, async || {
        let ready = stack.agent.api(Method::GET, "/v1/ready", "").await?;
        anyhow::ensure!(ready.status == 200, "{}", ready.text());
        Ok(())
    })
    .await;
}

/// Everything ends at once, what lives in memory is gone, and the former Envoy's pid is somebody else's.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_restarts_serves_again() {
    let mut stack = Stack::start(Options::default()).await;
    let (_backend, shop) = stack.shop().await;
    tokio::time::sleep(Duration::from_millis(500)).await;

    let former = stack.envoy_pid();
    stack.agent.kill();
    stack.consul.kill();
    kill(former);
    let record = stack.data.join("envoy/edge/envoy-state.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let stranger = std::process::id();
    let text = text.replace(&format!("\"pid\": {former}"), &format!("\"pid\": {stranger}"));
    let text = text.replace(&format!("\"pid\":{former}"), &format!("\"pid\":{stranger}"));
    assert!(text.contains(&stranger.to_string()), "{text}");
    std::fs::write(&record, text).unwrap();

    // The agent is up before Consul is.
    stack.agent.process.start_again();
    stack
        .until(&shop, "what the disk held", |reply| {
            reply.backend() == Some("one")
        })
        .await;
    let next = stack.envoy_pid();
    assert!(next != former && next != stranger as i32, "{next}");
    stack.consul.restart().await;
    let two = Backend::start("two").await;
    stack.register("orders", &two).await;
    stack
        .until(&shop, "changes to flow", |reply| reply.backend() == Some("two"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_that_comes_back_wiped_empties_nothing() {
    let mut stack = Stack::start(Options::default()).await;
    stack.consul.grow_old().await;
    let (backend, shop) = stack.shop().await;
    let load = Load::start(100, stack.client(), shop.clone());
    stack.consul.kill();
    std::fs::remove_dir_all(stack.consul.directory.path().join("data")).unwrap();
    stack.consul.restart().await;
    let told = wait_for("the wipe to be told", Duration::from_secs(60), async || {
        let status = stack.agent.api(Method::GET, "/v1/status", "").await?.ok()?.json();
        let told = status["diagnostics"].to_string();
        anyhow::ensure!(told.contains("lost its state"), "{status:#}");
        Ok(told)
    })
    .await;
    println!("wiped: {told}");
    // Until the agent's own writes have long lifted the new index over the old one.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let report = load.finish().await;
    println!("consul wiped: {report}");
    report.assert_none_lost();

    // What is put in again is taken.
    stack.register("orders", &backend).await;
    stack.put("gateway", GATEWAY).await;
    let answers = route("shop", "shop.example.com", "orders").replace(
        "    backend \"consul\" \"orders\" {}",
        "    direct_response {\n      status = 204\n    }",
    );
    stack.put("shop", &answers).await;
    wait_for(
        "the documents put in again",
        Duration::from_secs(90),
        async || {
            let reply = stack
                .client()
                .send(&shop)
                .await
                .map_err(|failure| anyhow::anyhow!("{failure}"))?;
            anyhow::ensure!(reply.status == 204, "{}", reply.status);
            Ok(())
        },
    )
    .await;
}

/// What the disk holds is not emptied by a Consul that has nothing any more: its documents were younger than all of its past.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_restarts_at_a_wiped_consul_keeps_its_documents() {
    let mut stack = Stack::start(Options::default()).await;
    stack.consul.grow_old().await;
    let (_backend, _) = stack.shop().await;
    let answers = route("static", "static.example.com", "none").replace(
        "    backend \"consul\" \"none\" {}",
        "    direct_response {\n      status = 204\n    }",
    );
    stack.put("static", &answers).await;
    let fixed = Request::get("static.example.com", "/");
    stack
        .until(&fixed, "the answer", |reply| reply.status == 204)
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stack.agent.terminate();
    stack.consul.kill();
    std::fs::remove_dir_all(stack.consul.directory.path().join("data")).unwrap();
    stack.consul.restart().await;
    stack.agent.process.start_again();
    stack
        .until(&fixed, "what the disk held", |reply| reply.status == 204)
        .await;
    wait_for("the wipe to be told", Duration::from_secs(60), async || {
        let status = stack.agent.api(Method::GET, "/v1/status", "").await?.ok()?.json();
        let told = status["diagnostics"].to_string();
        anyhow::ensure!(told.contains("lost its state"), "{status:#}");
        Ok(())
    })
    .await;
    // Not even when the agent's own writes have made the new Consul older.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(stack.client().send(&fixed).await.unwrap().status, 204);
    // Instances are those of the catalog, and there are none.
    let shop = stack.client().get("shop.example.com", "/").await;
    println!("shop: {} {:?}", shop.status, shop.header("x-portreeve-reason"));

    // What is put in again is taken, and what was not is over.
    stack.put("gateway", GATEWAY).await;
    stack
        .put("static", &answers.replace("status = 204", "status = 205"))
        .await;
    wait_for(
        "the documents put in again",
        Duration::from_secs(90),
        async || {
            let reply = stack.client().send(&fixed).await;
            let reply = reply.map_err(|failure| anyhow::anyhow!("{failure}"))?;
            anyhow::ensure!(reply.status == 205, "{}", reply.status);
            Ok(())
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_document_is_in_error_is_told_from_one_that_nobody_declares() {
    let mut stack = Stack::start(Options::default()).await;
    let backend = Backend::start("one").await;
    stack.register("orders", &backend).await;
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    stack
        .agent
        .wait_for_log("serves the gateway \"edge\", which no document declares")
        .await;
    stack.put("gateway", &GATEWAY.replace("port", "prot")).await;
    let told = "the document that seems to declare it is in error: portreeve/config/gateway";
    stack.agent.wait_for_log(told).await;
    stack.put("gateway", GATEWAY).await;
    let shop = Request::get("shop.example.com", "/");
    stack
        .until(&shop, "the mended gateway", |reply| reply.status == 200)
        .await;
    drop(backend);
}
