//! The gateway's certificate in the mesh over its life: renewed, kept while it cannot be, told before it ends.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::answering::{Answer, AnsweringServer};
use crate::connect::{Meshed, document, from, mesh_options, mesh_stack, protocol, until_said};
use crate::mesh_tls::Native;
use crate::stack::{GATEWAY, Options, Stack};
use crate::support::client::Request;
use crate::support::load::Load;
use crate::support::pki::{Ca, parse_certificates};
use crate::support::wait_for;

/// When Envoy got each of the secrets of the mesh that it has.
pub async fn secrets(stack: &Stack) -> anyhow::Result<[String; 2]> {
    let dump = stack
        .envoy()
        .get("/config_dump?resource=dynamic_active_secrets")
        .await?
        .ok()?
        .json();
    let version = |name: &str| {
        let mut held = dump["configs"].as_array().into_iter().flatten();
        let secret = held.find(|secret| secret["name"] == name);
        secret
            .and_then(|secret| secret["version_info"].as_str())
            .map(str::to_owned)
            .ok_or_else(|| anyhow::anyhow!("Envoy has no {name}: {dump}"))
    };
    Ok([version("mesh/leaf")?, version("mesh/roots")?])
}

pub async fn until_quiet(stack: &Stack, text: &str) {
    wait_for(
        &format!("status to say {text:?} no more"),
        Duration::from_secs(120),
        async || {
            let said = stack.agent.api(Method::GET, "/v1/status", "").await?.ok()?.text();
            anyhow::ensure!(!said.contains(text), "{said}");
            Ok(())
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_token_that_loses_its_right_while_serving_loses_nothing_else() {
    const RULE: &str = "service \\\"edge-gw\\\" { policy = \\\"write\\\" }";
    let mut stack = mesh_stack(GATEWAY).await;
    protocol(&stack, "pets", "http").await;
    let one = Meshed::start(&stack, "pets", "one", json!({})).await;
    stack.consul.intention("edge-gw", "pets", "allow").await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    let request = Request::get("pets.example.com", "/");
    stack.until(&request, "the mesh", from("one")).await;
    let [leaf, roots] = secrets(&stack).await.unwrap();
    let load = Load::start(100, stack.client(), request.clone());

    stack
        .consul
        .change_policy("mesh", "service \"other\" { policy = \"write\" }")
        .await;
    // Consul looks at the right when it signs: at a renewal, or because its authority is another one.
    stack.consul.rotate_ca().await;
    until_said(&stack, RULE).await;
    let line = stack
        .agent
        .wait_for_log("/v1/agent/connect/ca/leaf/edge-gw with 403")
        .await;
    println!("right lost: {}", line.trim());
    assert!(
        line.contains("WARN") && line.contains("what was known of the mesh stays in service"),
        "{line}"
    );
    // What was there stays, and is good for new connections, too, to whoever shows a certificate of the new authority.
    let two = Meshed::start(&stack, "pets", "two", json!({})).await;
    stack
        .until(&request, "an instance that came meanwhile", from("two"))
        .await;
    let [kept, all_roots] = secrets(&stack).await.unwrap();
    assert_eq!(kept, leaf, "another certificate without the right to it");
    assert_ne!(all_roots, roots, "the new authority is not trusted");

    let policy = "docs/deploy/consul-mesh-policy.hcl";
    let policy = std::fs::read_to_string(format!("{}/{policy}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    stack.consul.change_policy("mesh", &policy).await;
    wait_for("a renewed certificate", Duration::from_secs(120), async || {
        let [now, _] = secrets(&stack).await?;
        anyhow::ensure!(now != leaf, "{now} is as it was");
        Ok(())
    })
    .await;
    until_quiet(&stack, RULE).await;
    let three = Meshed::start(&stack, "pets", "three", json!({})).await;
    stack.until(&request, "the newest instance", from("three")).await;
    let report = load.finish().await;
    println!("right lost and regained: {report}");
    report.assert_none_lost();
    drop((one, two, three));
}

/// What `status` says of the certificate, and its end by the metric.
async fn shown(stack: &Stack) -> anyhow::Result<(Value, Option<i64>)> {
    let status = stack.agent.api(Method::GET, "/v1/status", "").await?.ok()?.json();
    let mut sources = status["sources"].as_array().into_iter().flatten();
    let source = sources.find(|source| source["name"] == "mesh identity");
    let metrics = stack.agent.api(Method::GET, "/metrics", "").await?.ok()?.text();
    let name = "portreeve_credential_expiry_timestamp_seconds{credential=\"mesh certificate\"} ";
    let end = metrics.lines().find_map(|line| line.strip_prefix(name));
    let end = end.map(str::parse::<f64>).transpose()?.map(|end| end as i64);
    Ok((source.cloned().unwrap_or_default(), end))
}

/// Until both show this end, and the note says this, or nothing.
async fn until_shown(stack: &Stack, expected: i64, note: Option<&str>) {
    wait_for(
        &format!("{expected} to be shown as the end, with {note:?}"),
        Duration::from_secs(60),
        async || {
            let (source, end) = shown(stack).await?;
            anyhow::ensure!(end == Some(expected), "{end:?}");
            anyhow::ensure!(source["credentials"]["mesh certificate"] == expected, "{source}");
            let said = source["problem"].as_str();
            let fits = match note {
                Some(note) => said.is_some_and(|said| said.contains(note)),
                None => said.is_none(),
            };
            anyhow::ensure!(fits, "{source}");
            Ok(())
        },
    )
    .await;
}

/// What is public of the certificate lies on the disk, and with it its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_certificate_s_end_is_known_from_the_disk_while_consul_is_away() {
    let mut stack = mesh_stack(GATEWAY).await;
    protocol(&stack, "pets", "http").await;
    let one = Meshed::start(&stack, "pets", "one", json!({})).await;
    stack.consul.intention("edge-gw", "pets", "allow").await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    let request = Request::get("pets.example.com", "/");
    stack.until(&request, "the mesh", from("one")).await;
    let end = wait_for("its end", Duration::from_secs(60), async || {
        let (_, end) = shown(&stack).await?;
        end.ok_or_else(|| anyhow::anyhow!("no end"))
    })
    .await;

    stack.consul.kill();
    // In order, so that all that was to be saved is.
    stack.agent.terminate();
    stack.agent.process.start_again();
    let (source, shown_end) = wait_for("its end without Consul", Duration::from_secs(60), async || {
        let (source, end) = shown(&stack).await?;
        anyhow::ensure!(end.is_some() && source["errors_total"] != 0, "{source}");
        Ok((source, end))
    })
    .await;
    assert_eq!(shown_end, Some(end), "{source}");
    assert_eq!(source["credentials"]["mesh certificate"], end, "{source}");
    assert_eq!(source["ok"], false, "Consul is away: {source}");

    stack.consul.restart().await;
    wait_for("Consul's word", Duration::from_secs(60), async || {
        let (source, end) = shown(&stack).await?;
        anyhow::ensure!(end.is_some() && source["ok"] == true, "{source} {end:?}");
        Ok(())
    })
    .await;
    drop(one);
}

/// A real Consul, whose agent gives the gateway the leafs of the test: it would renew its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_certificate_that_is_not_renewed_is_told_before_it_ends() {
    const LEAF: &str = "/v1/agent/connect/ca/leaf/edge-gw";
    const NOTE: &str = "and Consul's agent has not renewed it";
    let consul = AnsweringServer::start_before_another().await;
    let authority = Ca::new("mesh");
    let give = |index: u64, hours_past: u32, hours_left: u32| {
        let hour = Duration::from_secs(3600);
        let pair = authority.issue_between(&["edge-gw"], hours_past * hour, hours_left * hour);
        // The form of the answer is kept; the pair is not, because its days are counted from today.
        let leaf = Answer::kept_with("leaf", &pair.certificate, &pair.key);
        consul.put(LEAF, leaf.at(index));
        (pair.not_after(), parse_certificates(&pair.certificate).remove(0))
    };
    let (end, first) = give(11, 40, 32);
    let mut stack = Stack::start(Options {
        consul_block: Some(format!("address = {:?}", consul.address)),
        ..mesh_options()
    })
    .await;
    consul.stand_before(stack.consul.address());
    stack.put("gateway", GATEWAY).await;
    protocol(&stack, "pets", "http").await;
    // It looks at nobody's certificate.
    let one = Native::start(&stack, "pets").await;
    stack.consul.intention("edge-gw", "pets", "allow").await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    let request = Request::get("pets.example.com", "/");
    stack
        .until(&request, "the mesh", |reply| reply.status == 200)
        .await;
    until_shown(&stack, end, None).await;
    let load = Load::start(50, stack.client(), request.clone());

    // It should have been renewed with seven hours left.
    let (end, _) = give(12, 70, 2);
    until_shown(&stack, end, Some(NOTE)).await;
    let line = stack.agent.wait_for_log(NOTE).await;
    println!("{}", line.trim());
    let parts = ["WARN", "mesh-problem", "\"edge-gw\"", "logs of Consul's servers"];
    assert!(
        parts.iter().all(|part| line.contains(part)),
        "{line} without one of {parts:?}"
    );

    // The leaf alone is another one: neither the authorities nor the service's instances changed.
    let [before, roots] = secrets(&stack).await.unwrap();
    let (end, last) = give(13, 1, 71);
    until_shown(&stack, end, None).await;
    until_quiet(&stack, NOTE).await;
    wait_for("Envoy to hold it", Duration::from_secs(60), async || {
        let [now, same] = secrets(&stack).await?;
        anyhow::ensure!(now != before && same == roots, "{now} {same}");
        Ok(())
    })
    .await;
    // Connections that are there go on with the one they began with; new ones show the new one.
    let two = Native::start_another(&stack, "pets", "two").await;
    stack.until(&request, "the new instance", from("two")).await;
    let report = load.finish().await;
    println!("renewed late: {report}");
    report.assert_none_lost();
    assert_eq!(one.clients().first(), Some(&first));
    let shown = two.clients();
    assert!(
        !shown.is_empty() && shown.iter().all(|one| *one == last),
        "a certificate of before on a new connection"
    );
}
