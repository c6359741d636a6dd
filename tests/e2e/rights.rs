//! Rights to the documents are lost while the gateway serves: nothing is taken for deleted. What is deleted, is.

use std::time::Duration;

use hyper::Method;

use crate::stack::{GATEWAY, Options, POLICY, SOON, Stack, route};
use crate::support::backend::Backend;
use crate::support::client::{Failure, Request};
use crate::support::load::Load;
use crate::support::wait_for;

const ALL: &str = r#"
key_prefix "portreeve/config/" { policy = "read" }
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
"#;

/// An answer is doubted for 5 s at first, and up to a minute: restored rights wake nobody.
const DOUBT: Duration = Duration::from_secs(90);

fn get(host: &str) -> Request {
    Request::get(&format!("{host}.example.com"), "/")
}

/// Three documents: `gateway`, `shop` and `team/pets`.
async fn serving() -> (Stack, Backend) {
    let stack = Stack::start(Options {
        consul_policy: Some(ALL.to_owned()),
        ..Options::default()
    })
    .await;
    let backend = Backend::start("one").await;
    stack.register("orders", &backend).await;
    stack.put("gateway", GATEWAY).await;
    for name in ["shop", "team/pets"] {
        let host = name.rsplit('/').next().unwrap();
        stack
            .put(name, &route(host, &format!("{host}.example.com"), "orders"))
            .await;
        stack.until(&get(host), host, |reply| reply.status == 200).await;
    }
    // On disk too.
    tokio::time::sleep(Duration::from_millis(500)).await;
    (stack, backend)
}

/// Ends polls until the log says what is wrong: a poll keeps the rights that it began with.
async fn told(stack: &Stack, start: usize, text: &str) -> String {
    for round in 0..40 {
        stack.put("team/noise", &format!("# {round}\n")).await;
        tokio::time::sleep(Duration::from_millis(250)).await;
        let log = stack.agent.process.log();
        let found = log[start..]
            .lines()
            .find(|line| line.contains("WARN") && line.contains(text));
        if let Some(line) = found {
            return line.to_owned();
        }
    }
    panic!("no {text:?} in:\n{}", &stack.agent.process.log()[start..]);
}

async fn still_serves(stack: &Stack) {
    for host in ["shop", "pets"] {
        assert_eq!(
            stack.client().send(&get(host)).await.unwrap().status,
            200,
            "{host}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_token_empties_nothing_and_a_new_one_in_its_file_mends_it() {
    let (mut stack, _backend) = serving().await;
    let load = Load::start(100, stack.client(), get("shop"));
    let start = stack.agent.process.log_length();
    let token = stack.consul_token.clone().unwrap();
    stack.consul.delete_token(&token).await;
    let line = told(&stack, start, "403").await;
    println!("token deleted: {}", line.trim());
    assert!(line.contains("token"), "no fix in {line}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    still_serves(&stack).await;

    // Not after a restart either: Envoy and the disk hold the last state.
    stack.agent.kill();
    let restart = stack.agent.process.log_length();
    stack.agent.process.start_again();
    stack
        .agent
        .process
        .wait_for_log_after(restart, "serving the last published state from disk", SOON)
        .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    still_serves(&stack).await;

    let next = stack.consul.create_token("next", ALL).await;
    let file = stack.data.parent().unwrap().join("consul-token");
    std::fs::write(file, &next.secret).unwrap();
    stack
        .put("late", &route("late", "late.example.com", "orders"))
        .await;
    wait_for("the new token", DOUBT, async || {
        let reply = stack.client().send(&get("late")).await;
        anyhow::ensure!(reply.is_ok_and(|reply| reply.status == 200));
        Ok(())
    })
    .await;
    let report = load.finish().await;
    println!("token deleted: {report}");
    report.assert_none_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_nobody_replaces_is_told_before_it_ends() {
    const METRIC: &str = "portreeve_credential_expiry_timestamp_seconds{credential=\"consul token\"}";
    let (mut stack, _backend) = serving().await;
    let file = stack.data.parent().unwrap().join("consul-token");
    let shown = async |agent: &crate::support::agent::Agent| -> anyhow::Result<String> {
        Ok(agent.api(Method::GET, "/metrics", "").await?.text())
    };
    assert!(!shown(&stack.agent).await.unwrap().contains(METRIC), "no end");

    let short = stack.consul.create_token_for("short", ALL, Some("60s")).await;
    std::fs::write(&file, &short.secret).unwrap();
    wait_for(
        "the token's end among the metrics",
        Duration::from_secs(30),
        async || {
            let metrics = shown(&stack.agent).await?;
            anyhow::ensure!(metrics.contains(METRIC), "{metrics}");
            Ok(())
        },
    )
    .await;
    let line = stack
        .agent
        .process
        .wait_for_log("a credential ends soon", Duration::from_secs(60))
        .await;
    println!("{}", line.trim());
    assert!(
        line.contains("the Consul token ends at") && line.contains("consul-token"),
        "{line}"
    );
    let status = stack
        .agent
        .api(Method::GET, "/v1/status", "")
        .await
        .unwrap()
        .text();
    assert!(status.contains("nobody has replaced it"), "{status}");
    still_serves(&stack).await;

    let next = stack.consul.create_token("next", ALL).await;
    std::fs::write(&file, &next.secret).unwrap();
    wait_for("the end of the warning", Duration::from_secs(30), async || {
        let status = stack.agent.api(Method::GET, "/v1/status", "").await?.text();
        anyhow::ensure!(!status.contains("nobody has replaced it"), "{status}");
        anyhow::ensure!(!shown(&stack.agent).await?.contains(METRIC));
        Ok(())
    })
    .await;
    still_serves(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_in_use_is_told_and_a_new_one_in_its_file_mends_it() {
    const CODE: &str = "token-not-accepted";
    let (stack, _backend) = serving().await;
    let file = stack.data.parent().unwrap().join("consul-token");
    let load = Load::start(50, stack.client(), get("shop"));
    let short = stack.consul.create_token_for("short", ALL, Some("60s")).await;
    std::fs::write(&file, &short.secret).unwrap();
    wait_for("the short token to be in use", DOUBT, async || {
        let metrics = stack.agent.api(Method::GET, "/metrics", "").await?.text();
        anyhow::ensure!(metrics.contains("{credential=\"consul token\"}"), "{metrics}");
        Ok(())
    })
    .await;
    let told = async || -> anyhow::Result<Vec<serde_json::Value>> {
        let status = stack.agent.api(Method::GET, "/v1/status", "").await?.ok()?.json();
        let said = status["diagnostics"].as_array().cloned().unwrap_or_default();
        Ok(said.into_iter().filter(|one| one["code"] == CODE).collect())
    };
    assert_eq!(told().await.unwrap(), [] as [serde_json::Value; 0], "it is good");

    let mut round = 0;
    let said = wait_for("the token's end to be told", 2 * DOUBT, async || {
        // Polls end: each keeps the rights that it began with.
        round += 1;
        stack.put("team/noise", &format!("# {round}\n")).await;
        let said = told().await?;
        said.into_iter()
            .find(|one| one["object"]["kind"] == "documents")
            .ok_or_else(|| anyhow::anyhow!("no {CODE}"))
    })
    .await;
    println!("{said}");
    assert!(
        said["message"].as_str().unwrap().contains("ACL not found"),
        "{said}"
    );
    assert!(said["fix"].as_str().unwrap().contains("consul-token"), "{said}");
    still_serves(&stack).await;

    let next = stack.consul.create_token("next", ALL).await;
    std::fs::write(&file, &next.secret).unwrap();
    stack
        .put("late", &route("late", "late.example.com", "orders"))
        .await;
    wait_for("the new token", 2 * DOUBT, async || {
        let reply = stack.client().send(&get("late")).await;
        anyhow::ensure!(reply.is_ok_and(|reply| reply.status == 200));
        let said = told().await?;
        anyhow::ensure!(said.is_empty(), "{said:?}");
        Ok(())
    })
    .await;
    still_serves(&stack).await;
    load.finish().await.assert_none_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_policy_empties_nothing() {
    let (stack, _backend) = serving().await;
    let load = Load::start(100, stack.client(), get("shop"));
    let start = stack.agent.process.log_length();
    stack
        .consul
        .change_policy(POLICY, r#"key_prefix "elsewhere/" { policy = "read" }"#)
        .await;
    let line = told(&stack, start, "may no longer read").await;
    println!("policy emptied: {}", line.trim());
    assert!(line.contains("key_prefix"), "no fix in {line}");
    still_serves(&stack).await;
    let status = stack
        .agent
        .api(Method::GET, "/v1/status", "")
        .await
        .unwrap()
        .text();
    assert!(status.contains("may no longer read"), "{status}");
    let report = load.finish().await;
    println!("policy emptied: {report}");
    report.assert_none_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrowed_policy_hides_a_part_and_the_rest_moves_on() {
    let (mut stack, _backend) = serving().await;
    let load = Load::start(100, stack.client(), get("shop"));
    let narrow = ALL.replace("portreeve/config/", "portreeve/config/team/");
    let start = stack.agent.process.log_length();
    stack.consul.change_policy(POLICY, &narrow).await;
    let line = told(&stack, start, "documents vanished").await;
    println!("policy narrowed: {}", line.trim());
    assert!(line.contains("key_prefix"), "no fix in {line}");
    // What can be seen is taken.
    stack
        .put("team/late", &route("late", "late.example.com", "orders"))
        .await;
    wait_for("a visible document", DOUBT, async || {
        let reply = stack.client().send(&get("late")).await;
        anyhow::ensure!(reply.is_ok_and(|reply| reply.status == 200));
        Ok(())
    })
    .await;
    still_serves(&stack).await;

    // A restart does not make the visible part the whole.
    stack.agent.kill();
    let restart = stack.agent.process.log_length();
    stack.agent.process.start_again();
    stack
        .agent
        .process
        .wait_for_log_after(restart, "Envoy connected", SOON)
        .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    still_serves(&stack).await;
    let report = load.finish().await;
    println!("policy narrowed: {report}");
    report.assert_none_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_is_applied_down_to_the_last_document() {
    let (stack, _backend) = serving().await;
    stack.delete("team/pets").await;
    stack
        .until(&get("pets"), "one deleted document", |reply| reply.status == 404)
        .await;
    assert_eq!(stack.client().send(&get("shop")).await.unwrap().status, 200);
    stack.delete("shop").await;
    stack
        .until(&get("shop"), "the last route deleted", |reply| {
            reply.status == 404
        })
        .await;
    stack.delete("gateway").await;
    // Its listener goes: nobody is there any more.
    wait_for("the last document deleted", SOON, async || {
        let outcome = stack.client().send(&get("shop")).await;
        anyhow::ensure!(matches!(outcome, Err(Failure::Refused)), "{outcome:?}");
        Ok(())
    })
    .await;
}
