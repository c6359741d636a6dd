//! The gateway's certificate in the mesh over its life: renewed, kept while it cannot be, told before it ends.

use std::time::Duration;

use hyper::Method;
use serde_json::json;

use crate::connect::{Meshed, document, from, mesh_stack, protocol, until_said};
use crate::stack::{GATEWAY, Stack};
use crate::support::client::Request;
use crate::support::load::Load;
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

async fn until_quiet(stack: &Stack, text: &str) {
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
