//! Named ports in the mesh as Consul Enterprise 2.0 registers them, from its answers to what Envoy is told.

use portreeve::envoy::{ResourceKind, render_resource};
use portreeve::model::mesh::Interest;
use portreeve::snapshot::Snapshot;
use portreeve::sources::consul::{MeshWatcher, ServiceWatcher};
use portreeve::translate::Compiler;
use serde_json::{Value, json};

use crate::answering::{Answer, AnsweringServer};
use crate::mesh::{CHAIN, CHECK, LEAF, MATCH, ROOTS, SIDECARS, client, watching, wishes};
use crate::server::{Running, quick};
use crate::world;

const INSTANCES: &str = "/v1/health/service/web";

const DOCUMENT: &str = r#"
gateway "edge" {
  listener "web" { port = 8080 }
}

upstream "web-admin" {
  connect {
    service = "web"
    port    = "admin"
  }
}

http_route "web" {
  gateways  = ["edge"]
  hostnames = ["www.example.com"]

  rule "all" {
    backend "upstream" "web-admin" {}
  }
}
"#;

/// A gateway over the agent's own watchers.
struct Gateway {
    snapshot: Snapshot,
    mesh: (Running, MeshWatcher),
    services: (Running, ServiceWatcher),
}

impl Gateway {
    fn start(server: &AnsweringServer) -> Self {
        let mut snapshot = world::empty();
        world::put(&mut snapshot, [world::file("web.hcl", DOCUMENT)]);
        let (mut running, sender) = Running::new();
        let (watcher, task) = ServiceWatcher::new(client(server), sender);
        running
            .tasks
            .spawn(task.with_timing(quick()).run(running.cancel.clone()));
        Self {
            snapshot,
            mesh: watching(server, quick(), []),
            services: (running, watcher),
        }
    }

    /// Takes what the watchers say, until Envoy's configuration and what is said of it are as expected.
    async fn until(&mut self, expected: impl Fn(&Compiler, &str) -> bool) -> Compiler {
        loop {
            let compiler = Compiler::compile("edge", world::settings(), &self.snapshot);
            let said = compiler
                .diagnostics()
                .flat_map(|(_, diagnostics)| diagnostics.iter().map(ToString::to_string));
            let said: Vec<String> = said.collect();
            if expected(&compiler, &said.join("\n")) {
                return compiler;
            }
            let of_mesh = compiler.interests().into_iter();
            let of_mesh = of_mesh.filter(|one| !matches!(one, Interest::Service(_)));
            self.mesh.1.set_interests(wishes(of_mesh));
            self.services.1.set_interests(wishes(compiler.services()));
            let observation = tokio::select! {
                one = self.mesh.0.next() => one,
                one = self.services.0.next() => one,
            };
            self.snapshot.apply(observation);
        }
    }
}

fn only(compiler: &Compiler, kind: ResourceKind) -> Option<Value> {
    let all = compiler.resources().of_kind(kind);
    all.values().next().map(|resource| render_resource(resource))
}

fn endpoint(compiler: &Compiler) -> Option<Value> {
    let assignment = only(compiler, ResourceKind::Endpoint)?;
    let endpoint = &assignment["endpoints"][0]["lb_endpoints"][0]["endpoint"];
    Some(endpoint["address"]["socket_address"].clone())
}

fn is_nowhere(compiler: &Compiler) -> bool {
    endpoint(compiler).is_some_and(|address| address.is_null())
}

#[tokio::test]
async fn a_named_port_of_the_mesh_is_dialed_by_the_answers_of_enterprise_2_0() {
    let server = AnsweringServer::start().await;
    // Its router and its failover to a peer are for the default port.
    server.put(CHAIN, Answer::kept("chain"));
    server.put(MATCH, Answer::kept("intentions-none"));
    server.put(CHECK, Answer::kept("intentions-check-allowed"));
    server.put(ROOTS, Answer::kept("roots"));
    server.put(LEAF, Answer::kept("leaf"));
    server.put(INSTANCES, Answer::kept("health-service-named-ports"));
    server.put(SIDECARS, Answer::kept("health-connect-named-ports"));
    let mut gateway = Gateway::start(&server);
    let is_dialed = |compiler: &Compiler, said: &str| {
        said.is_empty() && endpoint(compiler) == Some(json!({ "address": "10.0.0.1", "port_value": 20000 }))
    };
    let compiler = gateway.until(is_dialed).await;
    let cluster = only(&compiler, ResourceKind::Cluster).unwrap();
    let context = &cluster["transport_socket"]["typed_config"];
    assert_eq!(
        context["common_tls_context"]["alpn_protocols"],
        json!(["consul~admin"])
    );
    assert_eq!(
        context["sni"],
        "web.default.dc1.internal.11111111-2222-3333-4444-555555555555.consul"
    );

    // It is registered no longer.
    let one_port = Answer::kept("health-service-named-ports").with("\"admin\"", "\"metrics\"");
    server.put(INSTANCES, one_port.at(8));
    gateway
        .until(|compiler, said| {
            is_nowhere(compiler)
                && said.contains("has no port named \"admin\", but \"http\", \"metrics\"")
                && said.contains("name a port that the service has: \"http\", \"metrics\"")
        })
        .await;
    server.put(INSTANCES, Answer::kept("health-service-named-ports").at(9));
    gateway.until(is_dialed).await;

    // The same registration at Consul CE, and at Enterprise before 2.0: both lead to the default port whatever is asked for.
    let enterprise = ",\"Namespace\":\"default\",\"Partition\":\"default\"";
    let community = Answer::kept("health-connect-named-ports").with(enterprise, "");
    let older = Answer::kept("health-connect-named-ports").with("2.0.4", "1.22.9");
    for (index, answer) in [(6, community), (8, older)] {
        server.put(SIDECARS, answer.at(index));
        gateway
            .until(|compiler, said| {
                is_nowhere(compiler)
                    && said.contains("named ports in the mesh take Consul Enterprise 2.0 or newer")
            })
            .await;
        server.put(SIDECARS, Answer::kept("health-connect-named-ports").at(index + 1));
        gateway.until(is_dialed).await;
    }
}
