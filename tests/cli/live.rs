//! The commands against a running agent with an Envoy of its own.

use anyhow::ensure;
use serde_json::Value;

use crate::run::{Outcome, portreeve, write};
use crate::support::agent::Agent;
use crate::support::ports::free_port;
use crate::support::{START_LIMIT, program, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn commands_against_a_running_agent() {
    let launch = Agent::prepare();
    let directory = launch.directory().to_owned();
    let port = free_port();
    let document = format!(
        "gateway \"edge\" {{\n  listener \"web\" {{ port = {port} }}\n}}\n\nhttp_route \"hello\" {{\n  gateways  = [\"edge\"]\n  hostnames = [\"hello.example.com\"]\n\n  rule \"all\" {{\n    direct_response {{ status = 204 }}\n  }}\n}}\n"
    );
    let envoy = format!(
        "envoy {{\n  supervise = true\n  binary    = \"{}\"\n}}\n",
        program("envoy").display()
    );
    write(
        &directory,
        &[("conf/hello.hcl", &document), ("agent.hcl", &envoy)],
    );
    let conf = directory.join("conf");
    let data = directory.join("data");
    let mut agent = launch
        .args(["agent", "-dev", "-node=n1"])
        .arg(format!("-config={}", directory.join("agent.hcl").display()))
        .arg(format!("-config={}", conf.display()))
        .arg(format!("-data-dir={}", data.display()))
        .arg(format!("-api-socket={}", directory.join("api.sock").display()))
        .start_ready()
        .await;
    let cli = async |arguments: &[&str]| -> Outcome {
        let socket = format!("-api-socket={}", directory.join("api.sock").display());
        let all: Vec<String> = arguments
            .iter()
            .map(|one| (*one).to_owned())
            .chain([socket])
            .collect();
        let directory = directory.clone();
        let run = move || portreeve(&directory, &all.iter().map(String::as_str).collect::<Vec<_>>());
        tokio::task::spawn_blocking(run).await.unwrap()
    };
    wait_for("everything to be programmed", START_LIMIT, async || {
        let outcome = cli(&["status", "-json"]).await;
        let status: Value = serde_json::from_str(&outcome.out)?;
        ensure!(outcome.code == 0, "{}", outcome.out);
        ensure!(
            status["objects"][1]["programmed"]["acknowledged"] == 1,
            "{}",
            status["objects"]
        );
        Ok(())
    })
    .await;
    let status = cli(&["status"]).await;
    assert!(
        status.out.contains("1 of 1") && status.out.contains("running"),
        "{}",
        status.shown(&[])
    );

    let envoys = cli(&["proxy", "status"]).await;
    assert!(
        envoys.out.contains("n1/edge") && envoys.out.contains("settled"),
        "{}",
        envoys.shown(&[])
    );
    let ours = cli(&["proxy", "config", "-kind=listener"]).await;
    assert!(ours.out.contains(&port.to_string()), "{}", ours.shown(&[]));
    let theirs = cli(&["proxy", "config", "-dump"]).await;
    assert!(theirs.out.contains("hello.example.com"), "{}", theirs.shown(&[]));

    let explained = cli(&["explain", "GET", &format!("http://hello.example.com:{port}/x")]).await;
    assert!(
        explained.code == 0 && explained.out.contains("hello/all"),
        "{}",
        explained.shown(&[])
    );
    assert_eq!(cli(&["refresh"]).await.code, 0);

    // The directory is what the agent has; then it is not.
    assert_eq!(cli(&["plan", "conf", "-agent"]).await.code, 0);
    write(&directory, &[("next/hello.hcl", &document.replace("204", "205"))]);
    let plan = cli(&["plan", "next", "-agent"]).await;
    assert!(
        plan.code == 1 && plan.out.contains("~ http_route \"hello\""),
        "{}",
        plan.shown(&[])
    );

    // Files of a directory may reach everything, and nothing is said of what they reach.
    let local = "upstream \"local\" {\n  static { addresses = [\"127.0.0.1:80\"] }\n}\n";
    write(&directory, &[("next/local.hcl", local)]);
    let plan = cli(&["plan", "next", "-agent"]).await;
    assert!(
        !plan.out.contains("not-allowed") && plan.error.is_empty(),
        "{}",
        plan.shown(&[])
    );
    // Documents for KV are held to what this agent lets them reach.
    write(&directory, &[("kv/local.hcl", local)]);
    let bounds = agent
        .api(hyper::Method::GET, "/v1/permissions", "")
        .await
        .unwrap()
        .json();
    assert_eq!(bounds["addresses"]["allow_loopback"], false, "{bounds:#}");

    let before = agent
        .api(hyper::Method::GET, "/v1/status", "")
        .await
        .unwrap()
        .json();
    let restarted = cli(&["envoy", "restart"]).await;
    assert_eq!(restarted.code, 0, "{}", restarted.shown(&[]));
    let after = agent
        .api(hyper::Method::GET, "/v1/status", "")
        .await
        .unwrap()
        .json();
    let pid = |status: &Value| status["agent"]["envoys"][0]["pid"].clone();
    assert_ne!(pid(&before), pid(&after));
    let metrics = agent
        .api(hyper::Method::GET, "/metrics", "")
        .await
        .unwrap()
        .text();
    assert!(
        metrics.contains("portreeve_envoy_starts_total{gateway=\"edge\"} 2"),
        "{metrics}"
    );
    agent.terminate();
    let gone = cli(&["status"]).await;
    assert!(
        gone.code == 1 && gone.error.contains("no agent answers"),
        "{}",
        gone.shown(&[])
    );
}
