//! The whole gateway with exactly the policies that are shipped, and with each of Consul's rules taken away.

use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use crate::stack::{GATEWAY, Options, POLICY, Stack, route, until};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::load::Load;
use crate::support::pki::Ca;
use crate::support::wait_for;

/// An answer is doubted for 5 s at first, and up to a minute: restored rights wake nobody.
const DOUBT: Duration = Duration::from_secs(90);

/// Until Envoy no longer has what was deregistered, on a machine that a load keeps busy.
const GONE: Duration = Duration::from_secs(60);

const DOCUMENT: &str = r#"
gateway "edge" {
  listener "web" {
    port = $HTTP
  }

  listener "secure" {
    port     = $HTTPS
    protocol = "https"
    tls { certificates = ["www", "other"] }
  }
}

certificate "www" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "www.example.com"
    ttl         = "24h"
  }
}

certificate "other" {
  vault_kv {
    mount = "secret"
    path  = "portreeve/other"
  }
}

http_route "www" {
  gateways  = ["edge"]
  hostnames = ["www.example.com", "other.example.com"]

  rule "all" {
    backend "consul" "orders" {}
  }
}
"#;

fn shipped(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn consul_policy() -> String {
    shipped("docs/deploy/consul-acl-policy.hcl")
}

/// The rules of the shipped policy, one each.
fn rules() -> Vec<String> {
    let lines: Vec<String> = consul_policy()
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    let text = lines.join("\n");
    let rules = text.split("}\n").map(str::trim).filter(|rule| !rule.is_empty());
    rules
        .map(|rule| format!("{}\n}}\n", rule.trim_end_matches('}').trim_end()))
        .collect()
}

async fn status(stack: &Stack) -> Value {
    let answer = stack.agent.api(Method::GET, "/v1/status", "").await.unwrap();
    answer.ok().unwrap().json()
}

/// Of all hosts in Envoy's clusters.
async fn ports_in_envoy(stack: &Stack) -> anyhow::Result<Vec<u16>> {
    let clusters = stack.envoy().get("/clusters?format=json").await?.json();
    let clusters = clusters["cluster_statuses"].as_array().into_iter().flatten();
    let hosts = clusters.flat_map(|cluster| cluster["host_statuses"].as_array().into_iter().flatten());
    let ports = hosts.filter_map(|host| host["address"]["socket_address"]["port_value"].as_u64());
    ports.map(|port| Ok(u16::try_from(port)?)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_policies_are_enough() {
    let mut stack = Stack::start(Options {
        vault: true,
        consul_policy: Some(consul_policy()),
        vault_policies: vec![
            ("portreeve-kv", shipped("vault-policies/portreeve-kv.hcl")),
            ("portreeve-pki", shipped("vault-policies/portreeve-pki.hcl")),
        ],
        // No more than any machine lets Envoy have: that is a warning, too.
        envoy_settings: "max_downstream_connections = 500",
        ..Options::default()
    })
    .await;
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let vault = stack.vault.as_ref().unwrap();
    let ca = Ca::new("own");
    let secret = |pair: crate::support::pki::Pair| serde_json::json!({ "certificate": pair.certificate, "private_key": pair.key });
    vault
        .put_kv2(
            "secret",
            "portreeve/other",
            secret(ca.issue(&["other.example.com"])),
        )
        .await;
    stack.register("orders", &one).await;
    stack.put("www", DOCUMENT).await;
    let root = vault.read("pki_int/cert/ca").await["data"]["certificate"]
        .as_str()
        .unwrap()
        .to_owned();
    let issued = Client::https(stack.https, &root);
    let kept = Client::https(stack.https, &ca.certificate);
    let (www, other) = (
        Request::get("www.example.com", "/"),
        Request::get("other.example.com", "/"),
    );
    until(&stack.client(), &www, "http", |reply| {
        reply.backend() == Some("one")
    })
    .await;
    until(&issued, &www, "https from pki", |reply| reply.status == 200).await;
    let first = until(&kept, &other, "https from kv", |reply| reply.status == 200).await;

    // Every kind of change goes through with these rights.
    stack.register("orders", &two).await;
    stack.deregister("orders", &one).await;
    until(&kept, &other, "an endpoint change", |reply| {
        reply.backend() == Some("two")
    })
    .await;
    vault
        .put_kv2(
            "secret",
            "portreeve/other",
            secret(ca.issue(&["other.example.com"])),
        )
        .await;
    until(&kept, &other, "a rotation", |reply| {
        reply.certificate != first.certificate
    })
    .await;
    stack
        .put("pets", &route("pets", "pets.example.com", "orders"))
        .await;
    let pets = Request::get("pets.example.com", "/");
    until(&stack.client(), &pets, "a document", |reply| reply.status == 200).await;
    stack.delete("pets").await;
    until(&stack.client(), &pets, "a deletion", |reply| reply.status == 404).await;

    stack.agent.wait_ready().await;
    let status = status(&stack).await;
    assert_eq!(status["diagnostics"], serde_json::json!([]), "{status:#}");
    for source in status["sources"].as_array().unwrap() {
        assert_eq!(source["ok"], true, "{source}");
    }
    let log = stack.agent.process.log();
    // Not "403" alone: a time of day may end in it, and a serial may hold it.
    for refusal in ["with 403", "(403)", "ermission denied", " WARN", "[WARN]"] {
        assert!(!log.contains(refusal), "{refusal:?} in the log:\n{log}");
    }

    // The token of the login is given back.
    stack.agent.terminate();
    let accessors = stack.vault.as_ref().unwrap();
    let accessors = accessors.read("auth/token/accessors?list=true").await;
    assert_eq!(
        accessors["data"]["keys"].as_array().map(Vec::len),
        Some(1),
        "only the root token is left"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_rule_is_superfluous_and_its_loss_is_told_and_survived() {
    let rules = rules();
    assert!(rules.len() >= 3, "{rules:?}");
    let mut stack = Stack::start(Options {
        consul_policy: Some(rules.concat()),
        ..Options::default()
    })
    .await;
    let one = Backend::start("one").await;
    stack.register("orders", &one).await;
    stack.put("gateway", GATEWAY).await;
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    let request = Request::get("shop.example.com", "/");
    stack
        .until(&request, "the route", |reply| reply.status == 200)
        .await;
    let load = Load::start(100, stack.client(), request.clone());
    // The rights to write are about status alone: `status.rs` takes those away.
    let reading = rules.iter().filter(|rule| rule.contains("\"read\""));
    for (number, missing) in reading.enumerate() {
        let rest: Vec<&str> = rules
            .iter()
            .filter(|rule| *rule != missing)
            .map(String::as_str)
            .collect();
        let kind = missing.split_whitespace().next().unwrap();
        let told = match kind {
            "key_prefix" => r#"key_prefix \"portreeve/config/\""#,
            "service_prefix" => r#"service \"orders\""#,
            "node_prefix" => r#"node_prefix \"\""#,
            other => panic!("a rule without a test: {other}"),
        };
        let start = stack.agent.process.log_length();
        stack.consul.change_policy(POLICY, &rest.concat()).await;
        // The poll under way still has its rights; what moves ends it, and the next one's end shows the loss.
        let (mut backends, mut round) = (Vec::new(), 0);
        let line = loop {
            let name = format!("pets-{number}-{round}");
            stack
                .put(&name, &route(&name, &format!("{name}.example.com"), "orders"))
                .await;
            let backend = Backend::start(&name).await;
            stack.register("orders", &backend).await;
            backends.push(backend);
            tokio::time::sleep(Duration::from_millis(500)).await;
            let log = stack.agent.process.log();
            let line = log[start..]
                .lines()
                .find(|line| line.contains("WARN") && line.contains(told));
            if let Some(line) = line {
                break line.to_owned();
            }
            round += 1;
            assert!(round < 20, "nothing about {told} in:\n{}", &log[start..]);
        };
        println!("without {kind}: {}", line.trim());
        let diagnostics = stack
            .agent
            .api(Method::GET, "/v1/status", "")
            .await
            .unwrap()
            .text();
        assert!(
            diagnostics.contains("may no longer read") || diagnostics.contains("no node"),
            "{kind} is not in the status"
        );

        stack.consul.change_policy(POLICY, &rules.concat()).await;
        stack
            .agent
            .process
            .wait_for_log_after(start, "in order again", DOUBT)
            .await;
        let last = format!("pets-{number}-{round}");
        let request = Request::get(&format!("{last}.example.com"), "/");
        wait_for("what was hidden", DOUBT, async || {
            let reply = stack.client().send(&request).await;
            anyhow::ensure!(reply.is_ok_and(|reply| reply.status == 200));
            Ok(())
        })
        .await;
        for backend in &backends {
            stack.deregister("orders", backend).await;
        }
        // Not ended before nobody is sent to them: Envoy's workers know soon after what its main thread shows.
        wait_for("one alone", GONE, async || {
            let ports = ports_in_envoy(&stack).await?;
            let left = backends.iter().any(|backend| ports.contains(&backend.port));
            anyhow::ensure!(ports.contains(&one.port) && !left, "{ports:?}");
            Ok(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(backends);
    }
    let report = load.finish().await;
    println!("each rule lost in turn: {report}");
    report.assert_none_lost();
    stack.agent.process.check_running().unwrap();
}
