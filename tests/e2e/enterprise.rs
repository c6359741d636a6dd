//! A gateway in a namespace and a partition of Consul Enterprise, said by the settings or by the environment, before a
//! server that plays that Consul by answers kept as data.

use std::time::Duration;

use crate::answering::{Answer, AnsweringServer};
use crate::connect::document;
use crate::stack::GATEWAY;
use crate::support::agent::{Agent, AgentLaunch};
use crate::support::ports::free_port;
use crate::support::{program, wait_for};

/// How an agent is told where it is.
type Says = fn(AgentLaunch, &str) -> AgentLaunch;

fn by_settings(launch: AgentLaunch, place: &str) -> AgentLaunch {
    let consul = format!("consul {{\n  {place}\n}}\n");
    let settings = launch.file("settings.hcl", &format!("{consul}{MESH}"));
    launch
        .arg("-config")
        .arg(settings)
        .env("CONSUL_NAMESPACE", "elsewhere")
        .env("CONSUL_PARTITION", "elsewhere")
}

fn by_environment(launch: AgentLaunch, _: &str) -> AgentLaunch {
    let settings = launch.file("settings.hcl", MESH);
    launch
        .arg("-config")
        .arg(settings)
        .env("CONSUL_NAMESPACE", "edge-team")
        .env("CONSUL_PARTITION", "gateways")
}

const MESH: &str = "mesh {\n  service = \"edge-gw\"\n}\n";
const PLACE: &str = "namespace = \"edge-team\"\n  partition = \"gateways\"";

const IDENTITY: [&str; 2] = ["/v1/agent/connect/ca/leaf/edge-gw", "/v1/agent/connect/ca/roots"];
const SERVICE: [&str; 4] = [
    "/v1/discovery-chain/web",
    "/v1/health/connect/web",
    "/v1/health/service/web",
    "/v1/connect/intentions/match",
];
const CHECK: &str = "/v1/connect/intentions/check";

#[tokio::test(flavor = "multi_thread")]
async fn namespace_and_partition_of_the_agent_are_those_of_the_gateway_in_the_mesh() {
    for says in [by_settings as Says, by_environment] {
        let consul = AnsweringServer::start().await;
        for (path, kept) in [
            (IDENTITY[0], "leaf"),
            (IDENTITY[1], "roots"),
            (SERVICE[0], "chain-enterprise"),
            (SERVICE[1], "health-connect-multi-port"),
            (SERVICE[2], "health-service-none"),
            (SERVICE[3], "intentions-none"),
            (CHECK, "intentions-check-allowed"),
        ] {
            consul.put(path, Answer::kept(kept));
        }
        let launch = Agent::prepare();
        let elsewhere = "connect {\n    namespace = \"shop\"\n    partition = \"edge\"\n  }";
        let documents = GATEWAY.replace("$HTTP", &free_port().to_string())
            + &document("web.example.com", "web", "").replace("connect {}", elsewhere);
        let file = launch.file("documents/all.hcl", &documents);
        let data = launch.directory().join("data");
        let tools = program("envoy").parent().unwrap().to_owned();
        let launch = launch
            .api_socket(data.join("api.sock"))
            .args(["agent", "-dev", "-dev-consul", "-config"])
            .arg(file.parent().unwrap())
            .arg(format!("-data-dir={}", data.display()))
            .env("CONSUL_HTTP_ADDR", &consul.address)
            .env("PATH", tools);
        let agent = says(launch, PLACE).start();
        wait_for("all of it to be asked", Duration::from_secs(60), async || {
            for path in IDENTITY.iter().chain(&SERVICE).chain([&CHECK]) {
                anyhow::ensure!(!consul.asked(path).is_empty(), "nobody asked {path}");
            }
            Ok(())
        })
        .await;
        drop(agent);
        let all_say = |path: &str, namespace: &str, partition: &str| {
            for asked in consul.asked(path) {
                let (ns, partition) = (format!("ns={namespace}"), format!("partition={partition}"));
                assert!(asked.contains(&ns) && asked.contains(&partition), "{asked}");
            }
        };
        // Who the gateway is, where it is; the service where that is.
        for path in IDENTITY {
            all_say(path, "edge-team", "gateways");
        }
        for path in SERVICE.into_iter().chain([CHECK]) {
            all_say(path, "shop", "edge");
        }
        for asked in consul.asked(CHECK) {
            assert!(asked.contains("source=gateways%2Fedge-team%2Fedge-gw"), "{asked}");
        }
    }
}
