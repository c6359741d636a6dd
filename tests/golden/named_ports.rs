//! A named port of a service of the mesh, as Envoy is told to dial it.

use std::sync::Arc;

use portreeve::envoy::{ResourceKind, ResourceSet, render_resource};
use portreeve::model::mesh::{Chain, ChainProtocol, ChainQuery};
use portreeve::model::{Health, Instance, Lookup, Narrowing, ServiceQuery};
use portreeve::translate::Compiler;
use serde_json::{Value, json};

use super::envoy::{static_bootstrap, validate};
use super::world;

const DOCUMENT: &str = r#"
gateway "edge" {
  listener "web" { port = 8080 }
}

upstream "pets-admin" {
  connect {
    service = "pets"
    port    = "admin"
  }
}

http_route "pets" {
  gateways  = ["edge"]
  hostnames = ["pets.example.com"]

  rule "all" {
    backend "upstream" "pets-admin" {}
  }
}
"#;

/// An instance with an `admin` port, and the sidecar before it.
fn pair(number: u16) -> (Instance, Instance) {
    let mut behind = world::instance("pets", number, &format!("10.0.0.{number}"), Health::Passing);
    behind.ports.to_mut().insert("admin".into(), 9000);
    let mut sidecar = world::instance("pets-proxy", number, &format!("10.0.0.{number}"), Health::Passing);
    sidecar.destination = Some(behind.id.clone());
    sidecar.tells_ports_apart = true;
    (behind, sidecar)
}

fn compile(
    document: &str,
    chain: Chain,
    change: impl FnOnce(&mut [(Instance, Instance)]),
) -> (ResourceSet, Vec<String>) {
    let query = ChainQuery {
        service: "pets".into(),
        datacenter: None,
        namespace: None,
        partition: None,
    };
    let mut pairs = [1, 2, 3].map(pair);
    change(&mut pairs);
    let (behind, sidecars) = pairs.into_iter().unzip();
    let mut snapshot = world::empty();
    world::put(&mut snapshot, [world::file("pets.hcl", document)]);
    world::answer_chain(&mut snapshot, &query, chain);
    world::answer_service(&mut snapshot, &ServiceQuery::named("pets"), behind);
    let dialed = ServiceQuery::new(Lookup::Connect, "pets".into(), Narrowing::default());
    world::answer_service(&mut snapshot, &dialed, sidecars);
    world::answer_all(&mut snapshot, "edge");
    let compiler = Compiler::compile("edge", world::settings(), &snapshot);
    let said = compiler
        .diagnostics()
        .flat_map(|(_, diagnostics)| diagnostics.iter().map(ToString::to_string))
        .collect();
    (compiler.resources().clone(), said)
}

fn only(set: &ResourceSet, kind: ResourceKind) -> Value {
    let all = set.of_kind(kind);
    assert_eq!(all.len(), 1, "{:?}", all.keys().collect::<Vec<_>>());
    render_resource(all.values().next().unwrap())
}

fn ports(set: &ResourceSet) -> Vec<u64> {
    let assignment = only(set, ResourceKind::Endpoint);
    let localities = assignment["endpoints"].as_array().cloned().unwrap_or_default();
    let endpoints = localities
        .iter()
        .flat_map(|locality| locality["lb_endpoints"].as_array().cloned().unwrap_or_default());
    endpoints
        .map(|one| {
            one["endpoint"]["address"]["socket_address"]["port_value"]
                .as_u64()
                .unwrap()
        })
        .collect()
}

fn plain(protocol: ChainProtocol) -> Chain {
    let query = ChainQuery {
        service: "pets".into(),
        datacenter: None,
        namespace: None,
        partition: None,
    };
    Chain {
        protocol,
        ..Chain::plain(&query)
    }
}

#[test]
fn a_named_port_is_asked_for_in_the_handshake_with_the_sidecar() {
    for (protocol, http2) in [(ChainProtocol::Http, false), (ChainProtocol::Grpc, true)] {
        let (set, said) = compile(DOCUMENT, plain(protocol), |_| {});
        assert!(said.is_empty(), "{said:#?}");
        assert_eq!(validate(&static_bootstrap(&set)), Ok(()));
        let cluster = only(&set, ResourceKind::Cluster);
        assert_eq!(cluster["name"], "upstream/pets-admin/admin.pets.default.dc1");
        let context = &cluster["transport_socket"]["typed_config"];
        let common = &context["common_tls_context"];
        // The port's name in place of the protocol's; the name and the id are the service's.
        assert_eq!(common["alpn_protocols"], json!(["consul~admin"]));
        assert_eq!(context["sni"], "pets.default.dc1.internal.example.consul");
        let peer = "spiffe://example.consul/ns/default/dc/dc1/svc/pets";
        assert!(
            common.to_string().contains(&format!("\"exact\":\"{peer}\"")),
            "{common:#}"
        );
        let options = &cluster["typed_extension_protocol_options"];
        let config =
            &options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]["explicit_http_config"];
        assert_eq!(config["http2_protocol_options"].is_object(), http2, "{config:#}");
        // The sidecars' own ports, not those of the instances.
        assert_eq!(ports(&set), [8001, 8002, 8003]);
    }
}

#[test]
fn only_sidecars_that_lead_to_the_port_are_dialed() {
    let (set, said) = compile(DOCUMENT, plain(ChainProtocol::Http), |pairs| {
        pairs[0].0.ports.to_mut().remove("admin");
        pairs[1].1.tells_ports_apart = false;
    });
    assert_eq!(ports(&set), [8003]);
    let said = said.join("\n");
    assert!(said.contains("no port named \"admin\", but \"grpc\""), "{said}");
    assert!(
        said.contains("pass requests for \"admin\" to the default port"),
        "{said}"
    );

    // Nor one that stands before nobody known, such as a terminating gateway.
    let (set, said) = compile(DOCUMENT, plain(ChainProtocol::Http), |pairs| {
        pairs[0].1.destination = None;
        pairs[1].1.destination = Some("another".into());
        pairs[2].1.destination = Some(Arc::from("yet another"));
    });
    assert_eq!(ports(&set), [0u64; 0]);
    let said = said.join("\n");
    assert_eq!(said.matches("nobody else tells ports apart").count(), 3, "{said}");
    assert!(
        said.contains("none of the 3 sidecars of \"pets\" can be used"),
        "{said}"
    );
}

/// Of a service that is plain TCP to Consul nothing is asked, but for the port.
#[test]
fn a_named_port_takes_connections_as_they_are() {
    let passed_on = DOCUMENT
        .replace("port = 8080", "\n    port = 8080\n    protocol = \"tcp\"\n  ")
        .replace("http_route", "tcp_route")
        .replace("hostnames = [\"pets.example.com\"]", "listeners = [\"web\"]")
        .replace("  rule \"all\" {\n", "")
        .replace("{}\n  }\n}\n", "{}\n}\n");
    let (set, said) = compile(&passed_on, plain(ChainProtocol::Tcp), |_| {});
    assert!(said.is_empty(), "{said:#?}");
    assert_eq!(validate(&static_bootstrap(&set)), Ok(()));
    let cluster = only(&set, ResourceKind::Cluster);
    let common = &cluster["transport_socket"]["typed_config"]["common_tls_context"];
    assert_eq!(common["alpn_protocols"], json!(["consul~admin"]));
    assert_eq!(ports(&set), [8001, 8002, 8003]);
}
