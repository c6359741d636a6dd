//! An agent that knows nothing starts at a Consul with thousands of services that expose themselves: until it has answered
//! an Envoy's stream with all of them, and how often it asked Consul.
//!
//! The stream is a bare client's: what a real Envoy takes to warm its clusters is Envoy's own, and would be measured along.

use std::time::{Duration, Instant};

use crate::Plan;
use crate::ads_client::{AdsClient, Held};
use crate::large_catalog::{CATALOG, requests_of};
use crate::live::{ConsulTls, PATIENCE, Towards, register_exposed, until_quiet};
use crate::report::Report;
use crate::support::agent::Agent;
use crate::synthetic;

pub fn run(plan: &Plan, report: &mut Report) {
    let runtime = crate::runtime();
    let (services, label) = if plan.quick {
        (1_000, "1k")
    } else {
        (10_000, "10k")
    };
    runtime.block_on(async {
        let consul = ConsulTls::start().await;
        consul
            .consul
            .put("portreeve/config/gateway", synthetic::gateway(8080))
            .await;
        register_exposed(&consul.consul, 0..services, 9).await;
        for _ in 0..plan.rounds {
            until_quiet(consul.consul.process.pid()).await;
            let (synced, requests) = start(&consul, services).await;
            report.add(&format!("cold_start_{label}_s"), "s", synced.as_secs_f64());
            report.add(
                "cold_start_requests_per_service",
                "requests",
                requests / services as f64,
            );
        }
    });
}

/// A fresh agent: until all is on the stream, and the requests that this took. Its count includes, once it makes no more,
/// the long poll of each service that Consul holds open: that one waits for the next change and is no part of the start.
async fn start(consul: &ConsulTls, services: usize) -> (Duration, f64) {
    let launch = Agent::prepare();
    let socket = launch.directory().join("xds.sock");
    let settings = format!(
        r#"
gateways  = ["edge"]
node_name = "node-1"
bind_addr = "127.0.0.1"
data_dir  = "{data}"

consul {{
  {consul}
}}

{CATALOG}

kv_documents {{
  allow_loopback = true
}}

xds {{
  socket = {socket:?}
}}

api {{
  socket = "{api}"
}}
"#,
        data = launch.directory().join("data").display(),
        consul = consul.settings(Towards::Tls),
        api = launch.api().display(),
    );
    let file = launch.file("portreeve.hcl", &settings);
    let launched = Instant::now();
    let mut agent = launch.arg("agent").arg("-config").arg(&file).start();
    let whole = async {
        let mut stream = AdsClient::open(&socket, Held::new()).await;
        while !stream.holds(services) {
            stream.next().await;
        }
        (launched.elapsed(), stream)
    };
    let whole = tokio::time::timeout(PATIENCE, whole).await;
    let (synced, _stream) = whole.expect("an agent that answers with all services");
    let mut requests = requests_of(&agent).await;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let later = requests_of(&agent).await;
        if later == requests {
            break;
        }
        requests = later;
    }
    agent.terminate();
    (synced, requests - services as f64)
}
