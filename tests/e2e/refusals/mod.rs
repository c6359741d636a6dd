//! What a stock Envoy refuses, and what becomes of the documents behind it.
//!
//! An Envoy that lacks an extension (`--disable-extensions`) refuses what needs it, as an older version would; an
//! operator in a header that does not exist is refused by every Envoy; a port that is taken is refused by its node.

mod nodes;
mod restarts;

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use hyper::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::stack::{GATEWAY, Options, SOON, Stack, route, until};
use crate::support::agent::Agent;
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::ports::free_port;
use crate::support::{program, scratch_directory, wait_for};

/// A program that is Envoy without some of its extensions.
fn envoy_without(extensions: &str) -> (TempDir, PathBuf) {
    envoy_with(&format!("--disable-extensions {extensions}"))
}

/// A program that is Envoy with more arguments.
fn envoy_with(arguments: &str) -> (TempDir, PathBuf) {
    let directory = scratch_directory("envoy-with");
    let path = directory.path().join("envoy");
    let envoy = program("envoy");
    let script = format!("#!/bin/sh\nexec {} \"$@\" {arguments}\n", envoy.display());
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    (directory, path)
}

/// Envoy finds out that there is no such operator; we do not look into header values.
const BAD_HEADER: &str = "\n  response_headers {\n    set = { \"x-bad\" = \"%PROTOCOL(x)%\" }\n  }\n";

/// A route that answers by itself.
fn answers(name: &str, gateways: &str, host: &str, body: &str, more: &str) -> String {
    format!(
        r#"
http_route "{name}" {{
  gateways  = [{gateways}]
  hostnames = ["{host}"]
{more}
  rule "all" {{
    direct_response {{
      status = 200
      body   = "{body}"
    }}
  }}
}}
"#
    )
}

fn edge(name: &str, body: &str, more: &str) -> String {
    answers(name, "\"edge\"", &format!("{name}.example.com"), body, more)
}

fn get(name: &str) -> Request {
    Request::get(&format!("{name}.example.com"), "/")
}

async fn api(agent: &Agent, path: &str) -> Value {
    agent.api(Method::GET, path, "").await.unwrap().json()
}

/// Phase and first problem of a document, by the end of its name.
async fn document(agent: &Agent, name: &str) -> (String, Value) {
    let status = api(agent, "/v1/status").await;
    let documents = status["documents"].as_array().unwrap();
    let is_it = |document: &&Value| document["document"].as_str().unwrap().ends_with(name);
    let document = documents.iter().find(is_it).cloned().unwrap_or_default();
    let phase = document["phase"].as_str().unwrap_or("absent").to_owned();
    (phase, document["problems"][0].clone())
}

async fn wait_for_phase(agent: &Agent, name: &str, phase: &str) -> Value {
    wait_for(&format!("{name} to be {phase}"), SOON, async || {
        let (now, problem) = document(agent, name).await;
        anyhow::ensure!(now == phase, "{now}: {problem}");
        Ok(problem)
    })
    .await
}

/// The diagnostics about refusals, as the API has them now.
async fn rejections(agent: &Agent) -> Vec<Value> {
    let all = api(agent, "/v1/diagnostics").await;
    let is_one = |diagnostic: &&Value| diagnostic["code"] == "envoy-rejected";
    all.as_array().unwrap().iter().filter(is_one).cloned().collect()
}

async fn put_together(stack: &Stack, documents: &[(&str, String)]) {
    let operations: Vec<Value> = documents
        .iter()
        .map(|(name, text)| {
            let text = text
                .replace("$HTTPS", &stack.https.to_string())
                .replace("$HTTP", &stack.http.to_string());
            use base64::Engine as _;
            let value = base64::engine::general_purpose::STANDARD.encode(text);
            json!({ "KV": { "Verb": "set", "Key": format!("portreeve/config/{name}"), "Value": value } })
        })
        .collect();
    stack.consul.txn(json!(operations)).await;
}

fn line_of(text: &str, part: &str) -> usize {
    1 + text.lines().position(|line| line.contains(part)).unwrap()
}

fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

async fn a_refused_cluster(state_of_the_world: bool) {
    let (_files, envoy) = envoy_without("envoy.clusters/envoy.cluster.strict_dns");
    let stack = Stack::start(Options {
        envoy: Some(envoy),
        state_of_the_world,
        ..Options::default()
    })
    .await;
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let with = |source: String| {
        route("shop", "shop.example.com", "x").replace("\"consul\" \"x\"", "\"upstream\" \"shop\"")
            + &format!("\nupstream \"shop\" {{\n{source}\n}}\n")
    };
    let at = |backend: &Backend| {
        format!(
            "  static {{\n    addresses = [\"127.0.0.1:{}\"]\n  }}",
            backend.port
        )
    };
    stack.put("gateway", GATEWAY).await;
    stack.put("shop", &with(at(&one))).await;
    let is_from =
        |name: &'static str| move |reply: &crate::support::client::Reply| reply.backend() == Some(name);
    stack
        .until(&get("shop"), "the static upstream", is_from("one"))
        .await;
    let dns = with(format!(
        "  dns {{\n    address = \"localhost:{}\"\n  }}",
        two.port
    ));
    stack.put("shop", &dns).await;
    let problem = wait_for_phase(&stack.agent, "/shop", "last_good").await;
    println!("a refused cluster: {problem}");
    assert_eq!(problem["code"], "envoy-rejected");
    assert_eq!(problem["object"], json!({ "kind": "upstream", "name": "shop" }));
    assert_eq!(problem["origin"]["line"], line_of(&dns, "upstream \"shop\" {"));
    assert_eq!(
        stack.client().send(&get("shop")).await.unwrap().backend(),
        Some("one")
    );
    stack.put("pets", &edge("pets", "pets", "")).await;
    stack
        .until(&get("pets"), "the others", |reply| reply.text() == "pets")
        .await;
    stack.put("shop", &with(at(&two))).await;
    stack
        .until(&get("shop"), "the next version", is_from("two"))
        .await;
    assert_eq!(
        wait_for_phase(&stack.agent, "/shop", "in_service").await,
        Value::Null
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_cluster_is_put_back() {
    a_refused_cluster(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_cluster_is_put_back_state_of_the_world() {
    a_refused_cluster(true).await;
}

/// Envoy with a listener of the operator's own, which no document knows of, and its port: Envoy wants no second one there.
fn envoy_with_a_listener() -> (TempDir, PathBuf, u16) {
    let own = free_port();
    let listener = json!({
        "name": "own",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": own } },
        "filter_chains": [{ "filters": [{
            "name": "echo",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo" }
        }] }]
    });
    let bootstrap = json!({ "static_resources": { "listeners": [listener] } });
    let (files, envoy) = envoy_with(&format!("--config-yaml '{bootstrap}'"));
    (files, envoy, own)
}

async fn a_refused_listener(state_of_the_world: bool) {
    let (_files, envoy, own) = envoy_with_a_listener();
    let stack = Stack::start(Options {
        envoy: Some(envoy),
        state_of_the_world,
        ..Options::default()
    })
    .await;
    stack.put("gateway", GATEWAY).await;
    stack.put("shop", &edge("shop", "shop", "")).await;
    stack
        .until(&get("shop"), "the listener", |reply| reply.status == 200)
        .await;
    let with = |port: u16| {
        let more = "\n  listener \"more\" {\n    port = $HTTPS\n  }\n";
        let taken = format!("\n  listener \"taken\" {{\n    port = {port}\n  }}\n");
        GATEWAY.trim_end().trim_end_matches('}').to_owned() + more + &taken + "}\n"
    };
    let bad = with(own);
    stack.put("gateway", &bad).await;
    let problem = wait_for_phase(&stack.agent, "/gateway", "last_good").await;
    println!("a refused listener: {problem}");
    assert_eq!(problem["object"], json!({ "kind": "gateway", "name": "edge" }));
    assert_eq!(problem["origin"]["line"], line_of(&bad, "listener \"taken\""));
    assert_eq!(stack.client().send(&get("shop")).await.unwrap().status, 200);
    // The document goes back whole.
    let more = Client::http(stack.https);
    wait_for("the other listener to go", SOON, async || {
        let reply = more.send(&get("shop")).await;
        anyhow::ensure!(reply.is_err(), "{reply:?}");
        Ok(())
    })
    .await;
    stack.put("gateway", &with(free_port())).await;
    until(&more, &get("shop"), "the next version", |reply| {
        reply.status == 200
    })
    .await;
    assert!(rejections(&stack.agent).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_listener_is_put_back() {
    a_refused_listener(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_listener_is_put_back_state_of_the_world() {
    a_refused_listener(true).await;
}

/// Nothing was ever confirmed: the good documents are not mistaken for the bad one.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_document_that_envoy_never_took_harms_itself_only() {
    let stack = Stack::start(Options::default()).await;
    let bad = edge("bad", "bad", BAD_HEADER);
    let documents = [
        ("gateway", GATEWAY.to_owned()),
        ("bad", bad.clone()),
        ("good", edge("good", "good", "")),
    ];
    put_together(&stack, &documents).await;
    stack
        .until(&get("good"), "the good one", |reply| reply.text() == "good")
        .await;
    let problem = wait_for_phase(&stack.agent, "/bad", "out_of_service").await;
    println!("a new document: {problem}");
    assert_eq!(problem["origin"]["line"], line_of(&bad, "http_route \"bad\""));
    assert_eq!(stack.client().send(&get("bad")).await.unwrap().status, 404);
    for name in ["/gateway", "/good"] {
        assert_eq!(document(&stack.agent, name).await.0, "in_service", "{name}");
    }
    stack.put("bad", &edge("bad", "mended", "")).await;
    stack
        .until(&get("bad"), "its next version", |reply| reply.text() == "mended")
        .await;
}

/// One table is made of them all (a wildcard asks for it), so all are suspected.
#[tokio::test(flavor = "multi_thread")]
async fn several_suspects_are_tried_one_by_one() {
    let mut stack = Stack::start(Options::default()).await;
    let any = answers("any", "\"edge\"", "*.wild.example.com", "any", "");
    let documents = |a: &str, b: &str, more: &str, c: &str| {
        [
            ("a", edge("a", a, "")),
            ("b", edge("b", b, more)),
            ("c", edge("c", c, "")),
        ]
    };
    stack.put("gateway", GATEWAY).await;
    stack.put("any", &any).await;
    put_together(&stack, &documents("a1", "b1", "", "c1")).await;
    for name in ["a", "b", "c"] {
        stack
            .until(&get(name), "the first texts", |reply| {
                reply.text() == format!("{name}1")
            })
            .await;
    }
    wait_for("the texts to be confirmed", SOON, async || {
        let status = api(&stack.agent, "/v1/status").await;
        anyhow::ensure!(status["envoys"][0]["settled"] == true, "{status}");
        Ok(())
    })
    .await;
    put_together(&stack, &documents("a2", "b2", BAD_HEADER, "c2")).await;
    for name in ["a", "c"] {
        stack
            .until(&get(name), "the innocent", |reply| {
                reply.text() == format!("{name}2")
            })
            .await;
        wait_for_phase(&stack.agent, &format!("config/{name}"), "in_service").await;
    }
    let problem = wait_for_phase(&stack.agent, "config/b", "last_good").await;
    assert_eq!(problem["object"]["name"], "b", "{problem}");
    assert!(!problem.to_string().contains("several documents"), "{problem}");
    assert_eq!(stack.client().send(&get("b")).await.unwrap().text(), "b1");
    stack.agent.wait_for_log("trying the document again, alone").await;
}

/// One document with a part in two gateways, refused in one of them: it goes back in both, to what both had taken.
#[tokio::test(flavor = "multi_thread")]
async fn one_gateway_refuses_what_the_other_takes() {
    let stack = Stack::start(Options {
        arguments: vec!["-gateway=edge", "-gateway=inner"],
        ..Options::default()
    })
    .await;
    let inner = GATEWAY.replace("edge", "inner").replace("$HTTP", "$HTTPS");
    let both = |body: &str, more: &str| {
        answers("out", "\"edge\"", "shop.example.com", body, "")
            + &answers("in", "\"inner\"", "shop.example.com", body, more)
    };
    stack.put("gateways", &(GATEWAY.to_owned() + &inner)).await;
    stack.put("shop", &both("one", "")).await;
    let clients = [Client::http(stack.http), Client::http(stack.https)];
    for client in &clients {
        until(client, &get("shop"), "both gateways", |reply| {
            reply.text() == "one"
        })
        .await;
    }
    let bad = both("two", BAD_HEADER);
    stack.put("shop", &bad).await;
    let problem = wait_for_phase(&stack.agent, "/shop", "last_good").await;
    println!("refused by one gateway: {problem}");
    assert_eq!(problem["object"]["name"], "in");
    assert_eq!(problem["origin"]["line"], line_of(&bad, "http_route \"in\""));
    for client in &clients {
        until(client, &get("shop"), "what both had taken", |reply| {
            reply.text() == "one"
        })
        .await;
    }
    // Again, now that one gateway has taken and lost a text.
    stack.put("shop", &both("three", BAD_HEADER)).await;
    wait_for("the next refusal", SOON, async || {
        let text = api(&stack.agent, "/v1/documents?document=portreeve/config/shop").await;
        anyhow::ensure!(text.to_string().contains("three"), "{text}");
        Ok(())
    })
    .await;
    wait_for_phase(&stack.agent, "/shop", "last_good").await;
    for client in &clients {
        until(client, &get("shop"), "what both had taken", |reply| {
            reply.text() == "one"
        })
        .await;
    }
    stack.put("shop", &both("four", "")).await;
    for client in &clients {
        until(client, &get("shop"), "the next version", |reply| {
            reply.text() == "four"
        })
        .await;
    }
}

async fn document_of(agent: &Agent, name: &str) -> String {
    document(agent, name).await.0
}

/// The cluster of a bare service is made from no document: the service is named, and everything else goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_without_a_document_names_the_service() {
    let (_files, envoy) = envoy_without("envoy.clusters/envoy.cluster.eds");
    let mut stack = Stack::start(Options {
        envoy: Some(envoy),
        ..Options::default()
    })
    .await;
    let backend = Backend::start("one").await;
    stack.register("orders", &backend).await;
    stack.put("gateway", GATEWAY).await;
    stack
        .put("orders", &route("orders", "orders.example.com", "orders"))
        .await;
    stack.put("shop", &edge("shop", "one", "")).await;
    stack
        .until(&get("shop"), "the others", |reply| reply.text() == "one")
        .await;
    let found = wait_for("the refusal", SOON, async || {
        let found = rejections(&stack.agent).await;
        anyhow::ensure!(found.len() == 1, "{found:?}");
        Ok(found)
    })
    .await;
    println!("without a document: {}", found[0]);
    assert_eq!(found[0]["object"], json!({ "kind": "service", "name": "orders" }));
    stack
        .until(&get("orders"), "the service's route", |reply| reply.status == 503)
        .await;
    // Nothing of it is left open.
    wait_for("Envoy to have everything", SOON, async || {
        let status = api(&stack.agent, "/v1/status").await;
        anyhow::ensure!(status["envoys"][0]["settled"] == true, "{}", status["envoys"][0]);
        Ok(())
    })
    .await;
    // It keeps nothing from being confirmed.
    stack.put("shop", &edge("shop", "two", "")).await;
    stack
        .until(&get("shop"), "a change", |reply| reply.text() == "two")
        .await;
    stack.put("shop", &edge("shop", "three", BAD_HEADER)).await;
    wait_for_phase(&stack.agent, "/shop", "last_good").await;
    assert_eq!(stack.client().send(&get("shop")).await.unwrap().text(), "two");
    // An Envoy that comes later does not get it.
    let start = stack.agent.process.log_length();
    let before = stack.envoy_pid();
    kill(before, Signal::KILL);
    wait_for("another Envoy", SOON, async || {
        anyhow::ensure!(stack.envoy_pid() != before);
        Ok(())
    })
    .await;
    stack
        .until(&get("shop"), "another Envoy", |reply| reply.text() == "two")
        .await;
    // Nor does one after a restart of the agent.
    stack.agent.kill();
    kill(stack.envoy_pid(), Signal::KILL);
    stack.agent.restart().await;
    stack
        .until(&get("shop"), "both anew", |reply| reply.text() == "two")
        .await;
    assert_eq!(stack.client().send(&get("orders")).await.unwrap().status, 503);
    let found = rejections(&stack.agent).await;
    assert!(
        found.iter().any(|found| found["object"]["name"] == "orders"),
        "{found:?}"
    );
    let log = stack.agent.process.log();
    assert!(
        !log[start..].contains("Envoy refused"),
        "the refused bytes were sent again"
    );
}
