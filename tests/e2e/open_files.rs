//! What starts services lets them open 1,024 files at first, and more if they ask: Envoy asks for all.

use crate::stack::{SOON, pid_of_envoy};
use crate::support::agent::Agent;
use crate::support::{program, wait_for};

/// A process that has become Envoy may have so many open.
async fn until_it_may_open(files: &str, pid: impl Fn() -> Option<u32>) {
    wait_for("Envoy with all files that it may have", SOON, async || {
        let pid = pid().ok_or_else(|| anyhow::anyhow!("no pid"))?;
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        anyhow::ensure!(!command.contains("portreeve\0"), "{command:?}");
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"));
        let soft = line.unwrap_or_default().split_whitespace().next();
        anyhow::ensure!(soft == Some(files), "{soft:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_files_for_a_supervised_envoy_are_told() {
    let launch = Agent::prepare();
    let data = launch.directory().join("data");
    let settings = format!(
        "gateways = [\"edge\"]\ndata_dir = {data:?}\nenvoy {{\n  supervise = true\n  binary = {:?}\n  concurrency = 1\n  \
         max_downstream_connections = 3000\n}}\n",
        program("envoy")
    );
    let settings = launch.file("agent.hcl", &settings);
    let mut agent = launch
        .open_files(512, 4096)
        .args(["agent", "-config"])
        .arg(settings)
        .start();
    let line = agent.wait_for_log("at most 4096 files").await;
    for said in [
        "WARN",
        "max_downstream_connections = 3000",
        "takes 6000",
        "LimitNOFILE",
    ] {
        assert!(line.contains(said), "{said}: {line}");
    }
    let record = data.join("envoy/edge/envoy-state.json");
    until_it_may_open("4096", || record.exists().then(|| pid_of_envoy(&data) as u32)).await;
    agent.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_files_for_an_envoy_of_its_own_are_told() {
    let launch = Agent::prepare();
    let directory = launch.directory().to_owned();
    let mut envoy = launch
        .open_files(512, 4096)
        .args([
            "envoy",
            "run",
            "-gateway=edge",
            "-node=n",
            "-concurrency=1",
            "-wait=0s",
        ])
        .arg(format!("-xds-socket={}", directory.join("xds.sock").display()))
        .arg(format!("-runtime-dir={}", directory.join("envoy").display()))
        .arg(format!("-envoy={}", program("envoy").display()))
        .start();
    let line = envoy.wait_for_log("at most 4096 files").await;
    for said in ["warning: ", "max_downstream_connections = 50000", "LimitNOFILE"] {
        assert!(line.contains(said), "{said}: {line}");
    }
    let pid = envoy.process.pid();
    until_it_may_open("4096", || Some(pid)).await;
}
