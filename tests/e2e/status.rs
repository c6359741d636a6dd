//! What agents tell each other through Consul KV, and that nobody depends on it.

use std::time::Duration;

use serde_json::Value;

use crate::stack::{GATEWAY, Options, Stack, route, until};
use crate::support::agent::{Agent, AgentLaunch};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::consul::Consul;
use crate::support::ports::free_port;
use crate::support::{program, wait_for};

/// Node keys are written every 10 s or so, the summary after them.
const WRITTEN: Duration = Duration::from_secs(60);

/// An agent on a node of its own, of which nobody knows anything yet.
fn fresh_agent(consul: &Consul, node: &str, supervise: bool, more: &str) -> Agent {
    start(Agent::prepare().arg("agent"), consul, node, supervise, more)
}

fn start(launch: AgentLaunch, consul: &Consul, node: &str, supervise: bool, more: &str) -> Agent {
    let text = format!(
        r#"
gateways  = ["edge"]
node_name = "{node}"
bind_addr = "127.0.0.1"
data_dir  = "{data}"

consul {{
  address = "{consul}"
  {more}
}}

envoy {{
  supervise       = {supervise}
  binary          = "{envoy}"
  concurrency     = 1
  drain_time      = "1s"
  stop_with_agent = true

  # How many files a machine allows is not what these tests warn of.
  max_downstream_connections = 1000
}}

api {{
  socket = "{api}"
}}
"#,
        data = launch.directory().join("data").display(),
        consul = consul.address(),
        envoy = program("envoy").display(),
        api = launch.api().display(),
    );
    let settings = launch.file("portreeve.hcl", &text);
    launch.arg("-config").arg(settings).start()
}

async fn until_key(consul: &Consul, key: &str, what: &str, expected: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, WRITTEN, async || {
        let text = consul.get(key).await;
        let text = text.ok_or_else(|| anyhow::anyhow!("{key} is not there"))?;
        let value: Value = serde_json::from_str(&text)?;
        anyhow::ensure!(expected(&value), "{value:#}");
        Ok(value)
    })
    .await
}

async fn until_gone(consul: &Consul, key: &str) {
    wait_for("the key to go", WRITTEN, async || {
        anyhow::ensure!(consul.get(key).await.is_none(), "{key} is still there");
        Ok(())
    })
    .await;
}

async fn serving() -> (Stack, Backend, Request) {
    let stack = Stack::start(Options::default()).await;
    let (backend, request) = stack.shop().await;
    (stack, backend, request)
}

/// Its documents are reported like those of KV. What is kept of KV's documents is none of its business, though it leads.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_directory_reports_too_and_leaves_accepted_texts_alone() {
    let consul = Consul::start().await;
    consul.put("portreeve/accepted/kept", "policy \"p\" {}\n").await;
    let launch = Agent::prepare();
    let text = GATEWAY.replace("$HTTP", &free_port().to_string());
    let documents = launch.file("documents/edge.hcl", &text);
    let launch = launch
        .arg("agent")
        .arg("-config")
        .arg(documents.parent().unwrap());
    let _agent = start(launch, &consul, "node-d", true, "");
    let key = "portreeve/status/nodes/node-d";
    let report = until_key(&consul, key, "the node's key", |report| {
        report["objects"]["gateway/edge"]["acknowledged"] == 1
    });
    assert_eq!(report.await["node"], "node-d");
    let summary = until_key(&consul, "portreeve/status/summary", "the summary", |summary| {
        summary["objects"]["gateway/edge"]["acknowledged"] == 1
    });
    assert_eq!(summary.await["leader"], "node-d");
    // The step after the summary's is where a leader mends them.
    until_key(&consul, "portreeve/status/node_count", "a count", |count| {
        *count == 1
    })
    .await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert!(consul.get("portreeve/accepted/kept").await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_report_and_a_leader_adds_up() {
    let (mut stack, _backend, request) = serving().await;
    let consul = &stack.consul;
    let report = until_key(
        consul,
        "portreeve/status/nodes/node-1",
        "the node's key",
        |report| report["objects"]["http_route/shop"]["acknowledged"] == 1,
    )
    .await;
    assert_eq!(report["node"], "node-1");
    assert_eq!(report["gateways"]["edge"]["envoys"], 1);
    assert_eq!(report["objects"]["http_route/shop"]["accepted"], true);
    assert_eq!(report["diagnostics"], serde_json::json!([]));
    let summary = until_key(consul, "portreeve/status/summary", "the summary", |summary| {
        summary["objects"]["http_route/shop"]["acknowledged"] == 1
    })
    .await;
    assert_eq!(summary["leader"], "node-1");
    assert_eq!(summary["nodes"], 1);

    // Trouble is told with its place.
    stack.put("bad", "http_route {").await;
    until_key(
        consul,
        "portreeve/status/nodes/node-1",
        "the diagnostic",
        |report| report["diagnostics"][0]["code"] == "syntax-error",
    )
    .await;
    stack.delete("bad").await;

    let second = fresh_agent(consul, "node-2", false, "");
    until_key(consul, "portreeve/status/summary", "both nodes", |summary| {
        summary["nodes"] == 2 && summary["objects"]["http_route/shop"]["nodes"] == 2
    })
    .await;
    assert_eq!(stack.client().send(&request).await.unwrap().status, 200);
    stack.agent.terminate();
    until_gone(consul, "portreeve/status/nodes/node-1").await;
    until_key(consul, "portreeve/status/summary", "the next leader", |summary| {
        summary["leader"] == "node-2" && summary["nodes"] == 1
    })
    .await;
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_node_serves_the_accepted_text_while_the_document_is_bad() {
    let (mut stack, _backend, request) = serving().await;
    let good = stack.consul.get("portreeve/config/shop").await.unwrap();
    wait_for("the accepted text", WRITTEN, async || {
        let kept = stack.consul.get("portreeve/accepted/shop").await;
        anyhow::ensure!(kept.as_deref() == Some(good.as_str()), "{kept:?}");
        Ok(())
    })
    .await;
    stack.put("shop", "http_route \"shop\" {").await;
    stack.agent.wait_for_log("error[syntax-error]").await;
    stack.agent.terminate();
    assert_eq!(stack.consul.get("portreeve/accepted/shop").await.unwrap(), good);

    let mut fresh = fresh_agent(&stack.consul, "node-9", true, "");
    fresh
        .wait_for_log("the last one that was accepted goes in service")
        .await;
    stack
        .until(&request, "the accepted text to serve", |reply| {
            reply.backend() == Some("one")
        })
        .await;
    let log = fresh.process.log();
    let taken = log.find("accepted goes in service").unwrap();
    let published = log.find("first publication").unwrap();
    assert!(taken < published, "nothing is published without it");

    // The next good text takes over.
    let next = route("shop", "shop.example.com", "orders").replace(
        "    backend \"consul\" \"orders\" {}",
        "    direct_response {\n      status = 204\n    }",
    );
    stack.put("shop", &next).await;
    stack
        .until(&request, "the next good text", |reply| reply.status == 204)
        .await;
    fresh.terminate();
}

/// `rules` are the policy; a document directly answers, so that no service is needed.
async fn with_policy(rules: &str) -> (Consul, Agent, Client) {
    with_policy_beside(rules, &[]).await
}

/// The same, with other keys there before.
async fn with_policy_beside(rules: &str, keys: &[(&str, &str)]) -> (Consul, Agent, Client) {
    let consul = Consul::start_with_acl().await;
    for (key, text) in keys {
        consul.put(&format!("portreeve/{key}"), (*text).to_owned()).await;
    }
    let token = consul.create_token("agent", rules).await;
    let http = free_port();
    let document = GATEWAY.replace("$HTTP", &http.to_string())
        + "\nhttp_route \"a\" {\n  gateways  = [\"edge\"]\n  hostnames = [\"a.example.com\"]\n\n  rule \"all\" {\n    direct_response {\n      status = 200\n    }\n  }\n}\n";
    consul.put("portreeve/config/a", document).await;
    let agent = fresh_agent(&consul, "node-1", true, &format!("token = \"{}\"", token.secret));
    (consul, agent, Client::http(http))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_policy_is_enough() {
    let rules = include_str!("../../docs/deploy/consul-acl-policy.hcl");
    let (consul, agent, _client) = with_policy(rules).await;
    until_key(&consul, "portreeve/status/summary", "the summary", |summary| {
        summary["objects"]["http_route/a"]["acknowledged"] == 1
    })
    .await;
    wait_for("the accepted text", WRITTEN, async || {
        anyhow::ensure!(consul.get("portreeve/accepted/a").await.is_some());
        Ok(())
    })
    .await;
    let log = agent.process.log();
    assert!(!log.contains("[WARN]"), "{log}");
}

/// The list of documents leaves out what its token may not read. What somebody else keeps there stops nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_keeps_the_texts_of_documents_that_it_may_not_read() {
    let shipped = include_str!("../../docs/deploy/consul-acl-policy.hcl");
    let rules = format!("{shipped}\nkey \"portreeve/config/hidden\" {{\n  policy = \"deny\"\n}}\n");
    let text = "policy \"p\" {}\n";
    let (consul, agent, _client) = with_policy_beside(
        &rules,
        &[
            ("config/hidden", text),
            ("accepted/hidden", text),
            ("accepted/gone", text),
            ("accepted/odd!name", text),
        ],
    )
    .await;
    wait_for("the accepted texts", WRITTEN, async || {
        anyhow::ensure!(consul.get("portreeve/accepted/a").await.is_some());
        anyhow::ensure!(consul.get("portreeve/accepted/gone").await.is_none());
        Ok(())
    })
    .await;
    for name in ["hidden", "odd!name"] {
        let kept = consul.get(&format!("portreeve/accepted/{name}")).await;
        assert_eq!(kept.as_deref(), Some(text), "{name}");
    }
    let log = agent.process.log();
    assert!(!log.contains("[WARN]"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_rights_the_agent_says_so_once_and_serves() {
    let rules = "key_prefix \"portreeve/config/\" { policy = \"read\" }";
    let (consul, mut agent, client) = with_policy(rules).await;
    let line = agent.wait_for_log("session not created").await;
    assert!(line.contains("session_prefix"), "names the rule: {line}");
    let request = Request::get("a.example.com", "/");
    until(&client, &request, "the document", |reply| reply.status == 200).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(
        agent.process.log().matches("[WARN]").count(),
        1,
        "{}",
        agent.process.log()
    );
    assert_eq!(consul.keys("portreeve/status").await, Vec::<String>::new());
}

/// The shipped policy without one of its rights to write, each in turn.
#[tokio::test(flavor = "multi_thread")]
async fn each_right_to_write_that_is_missing_is_told_and_costs_only_what_it_is_for() {
    let shipped = include_str!("../../docs/deploy/consul-acl-policy.hcl");
    let lines: Vec<&str> = shipped.lines().filter(|line| !line.starts_with('#')).collect();
    let text = lines.join("\n");
    let rules: Vec<String> = text
        .split_inclusive("}\n")
        .chain(text.ends_with('}').then_some(""))
        .map(|rule| rule.trim().to_owned())
        .filter(|rule| !rule.is_empty())
        .collect();
    let writing: Vec<&String> = rules.iter().filter(|rule| rule.contains("\"write\"")).collect();
    assert_eq!(writing.len(), 4, "{rules:#?}");
    for missing in writing {
        let name = missing.lines().next().unwrap().trim_end_matches(" {");
        let rest: Vec<&str> = rules
            .iter()
            .filter(|rule| *rule != missing)
            .map(String::as_str)
            .collect();
        let (consul, mut agent, client) = with_policy(&rest.join("\n")).await;
        // As the policy's own words name it.
        let told = name
            .replace('"', "")
            .split_whitespace()
            .last()
            .unwrap_or_default()
            .to_owned();
        let told = if told.is_empty() || name.starts_with("session_prefix") {
            "session_prefix".to_owned()
        } else {
            told
        };
        let line = wait_for(&format!("the loss of {name}"), WRITTEN, async || {
            agent.process.check_running()?;
            let log = agent.process.log();
            let line = log
                .lines()
                .find(|line| line.contains("[WARN]") && line.contains(&told));
            line.map(str::to_owned)
                .ok_or_else(|| anyhow::anyhow!("nothing about {told} in {log}"))
        })
        .await;
        println!("without {name}: {}", line.trim());
        let request = Request::get("a.example.com", "/");
        until(&client, &request, "the document", |reply| reply.status == 200).await;
        // What needs only the other rights is still written.
        let node = "portreeve/status/nodes/node-1";
        if !told.contains("status") && told != "session_prefix" {
            until_key(&consul, node, "the node's key", |report| {
                report["node"] == "node-1"
            })
            .await;
        }
        if told.contains("accepted") {
            until_key(&consul, "portreeve/status/summary", "the summary", |summary| {
                summary["nodes"] == 1
            })
            .await;
        }
        tokio::time::sleep(Duration::from_secs(12)).await;
        let log = agent.process.log();
        let mut said: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("[WARN]"))
            .map(|line| line.split_once("[WARN]").map_or(line, |(_, said)| said))
            .collect();
        let count = said.len();
        said.sort_unstable();
        said.dedup();
        assert!(
            count == said.len() && count <= 2,
            "said again and again: {said:#?}"
        );
    }
}
