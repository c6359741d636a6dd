//! What one node or one Envoy refuses is its own trouble.

use hyper::Method;
use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};

use super::{BAD_HEADER, api, document_of, edge, envoy_without, get, line_of, rejections, wait_for_phase};
use crate::central::{Central, EDGE};
use crate::stack::{GATEWAY, Options, SOON, Stack, route, until};
use crate::support::backend::Backend;
use crate::support::client::Client;
use crate::support::wait_for;

/// Two Envoys of one gateway, one of them like an older version: what the other takes stays, and the odd one is named.
#[tokio::test(flavor = "multi_thread")]
async fn one_envoy_refuses_what_another_takes() {
    let (_files, odd) = envoy_without("envoy.clusters/envoy.cluster.strict_dns");
    let central = Central::start().await;
    let pair = central.ca.issue(&[EDGE]);
    let (mut old, old_admin) = central.run_program(&odd, "old", "edge", &pair, "delta");
    let (_new, new_admin) = central.run("new", "edge", &pair, "delta");
    for admin in [&old_admin, &new_admin] {
        wait_for("both Envoys", SOON, async || admin.ready().await).await;
    }
    let stack = &central.stack;
    let backend = Backend::start("dns").await;
    let document = route("pets", "pets.example.com", "x")
        .replace("\"consul\" \"x\"", "\"upstream\" \"pets\"")
        + &format!(
            "\nupstream \"pets\" {{\n  dns {{\n    address = \"localhost:{}\"\n  }}\n}}\n",
            backend.port
        );
    // It answers last: what it refuses before any other has taken it would be the document's fault.
    old.stop();
    stack.put("pets", &document).await;
    let clusters =
        async |admin: &crate::support::envoy::EnvoyAdmin| admin.get("/clusters").await.unwrap().text();
    wait_for("the other to run with it", SOON, async || {
        let text = clusters(&new_admin).await;
        anyhow::ensure!(text.contains("upstream/pets"), "{text}");
        Ok(())
    })
    .await;
    one_of_two(stack).await;
    old.cont();
    let found = wait_for("the odd one to be named", SOON, async || {
        let found = rejections(&stack.agent).await;
        anyhow::ensure!(found.len() == 1, "{found:?}");
        Ok(found)
    })
    .await;
    println!("one of two: {}", found[0]);
    assert!(
        found[0]["message"]
            .as_str()
            .unwrap()
            .contains("Envoy \"old/edge\""),
        "{found:?}"
    );
    assert_eq!(
        found[0]["origin"]["line"],
        line_of(&document, "upstream \"pets\" {")
    );
    assert_eq!(document_of(&stack.agent, "/pets").await, "in_service");
    assert!(clusters(&new_admin).await.contains("upstream/pets"));
    assert!(!clusters(&old_admin).await.contains("upstream/pets"));
    // It is no reason to hold up anything else.
    stack.put("more", &edge("more", "more", "")).await;
    for _ in 0..8 {
        // The kernel deals connections out among the two.
        stack
            .until(&get("more"), "the others", |reply| reply.text() == "more")
            .await;
    }
    println!("one of two: {}", one_of_two(stack).await);
    drop(old);
    wait_for("the odd one's end", SOON, async || {
        let found = rejections(&stack.agent).await;
        anyhow::ensure!(found.is_empty(), "{found:?}");
        Ok(())
    })
    .await;
}

async fn one_of_two(stack: &Stack) -> Value {
    wait_for("the document's count", SOON, async || {
        let status = api(&stack.agent, "/v1/status").await;
        let documents = status["documents"].as_array().unwrap().clone();
        let is_it = |document: &&Value| document["document"] == "portreeve/config/pets";
        let programmed = documents.iter().find(is_it).unwrap()["programmed"].clone();
        anyhow::ensure!(
            programmed == json!({ "acknowledged": 1, "of": 2 }),
            "{programmed}"
        );
        Ok(programmed)
    })
    .await
}

const IN_USE: &str = "Address already in use";

/// Lines of the agent's log above debug that name this.
fn told(stack: &Stack, what: &str) -> Vec<String> {
    let log = stack.agent.process.log();
    let lines = log
        .lines()
        .filter(|line| line.contains(what) && !line.contains("[DEBUG]"));
    lines.map(str::to_owned).collect()
}

async fn an_occupied_port(state_of_the_world: bool) {
    let mut stack = Stack::start(Options {
        state_of_the_world,
        ..Options::default()
    })
    .await;
    // A child that another test is just starting holds a port that was open here, until it is another program.
    let taken = wait_for("a port to occupy", Duration::from_secs(5), async || {
        Ok(TcpListener::bind(("127.0.0.1", stack.https))?)
    })
    .await;
    let gateway = GATEWAY.trim_end().trim_end_matches('}').to_owned()
        + "\n  listener \"taken\" {\n    port = $HTTPS\n  }\n}\n";
    stack.put("gateway", &gateway).await;
    stack.put("shop", &edge("shop", "one", "")).await;
    stack
        .until(&get("shop"), "the free listener", |reply| reply.text() == "one")
        .await;
    let found = wait_for("the refusal", SOON, async || {
        let found = rejections(&stack.agent).await;
        anyhow::ensure!(found.len() == 1, "{found:?}");
        Ok(found)
    })
    .await;
    println!("an occupied port: {}", found[0]);
    let message = found[0]["message"].as_str().unwrap();
    assert!(
        message.contains("cannot open the listener \"taken\""),
        "{message}"
    );
    assert!(message.contains("Envoy \"node-1"), "{message}");
    assert_eq!(
        found[0]["origin"]["line"],
        line_of(&gateway, "listener \"taken\"")
    );
    assert_eq!(document_of(&stack.agent, "/gateway").await, "in_service");
    // However often it is tried, it is told once, and tries leave no line.
    let line = stack.agent.wait_for_log("in use; the port or address").await;
    println!("told: {}", line.trim());
    stack.agent.wait_for_log("Envoy serves").await;
    let start = stack.agent.process.log_length();
    wait_for("some tries", Duration::from_secs(60), async || {
        let metrics = stack.agent.api(Method::GET, "/metrics", "").await?.text();
        let name = "portreeve_xds_nacks_total{gateway=\"edge\",kind=\"listener\"} ";
        let tries = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok());
        anyhow::ensure!(tries >= Some(6), "{metrics}");
        Ok(())
    })
    .await;
    assert_eq!(stack.agent.process.log()[start..].trim(), "");
    assert_eq!(told(&stack, IN_USE).len(), 1, "{:#?}", told(&stack, IN_USE));
    // Changes go on, and bad ones still find their last good version.
    stack.put("shop", &edge("shop", "two", "")).await;
    stack
        .until(&get("shop"), "a change", |reply| reply.text() == "two")
        .await;
    stack.put("shop", &edge("shop", "three", BAD_HEADER)).await;
    wait_for_phase(&stack.agent, "/shop", "last_good").await;
    assert_eq!(stack.client().send(&get("shop")).await.unwrap().text(), "two");
    drop(taken);
    let opened = Client::http(stack.https);
    until(&opened, &get("shop"), "the freed port", |reply| {
        reply.text() == "two"
    })
    .await;
    wait_for("its end in the log", SOON, async || {
        let told = told(&stack, IN_USE);
        anyhow::ensure!(told.len() == 2 && told[1].contains("in order again"), "{told:#?}");
        Ok(())
    })
    .await;
    wait_for("the end of the refusal", SOON, async || {
        let found = rejections(&stack.agent).await;
        anyhow::ensure!(
            !found.iter().any(|it| it.to_string().contains("cannot open")),
            "{found:?}"
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_occupied_port_opens_when_it_is_freed() {
    an_occupied_port(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_occupied_port_opens_when_it_is_freed_state_of_the_world() {
    an_occupied_port(true).await;
}
