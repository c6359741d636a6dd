//! Named ports of the mesh: an Envoy configured by hand as the sidecar of Consul Enterprise 2.0, one port for all ports of its
//! service, told apart by what TLS asks for. The registrations are that Consul's too, everything else the real one's.

use hyper::Method;
use serde_json::{Value, json};

use crate::answering::{Answer, AnsweringServer};
use crate::connect::{document, from, mesh_options, protocol, until_said};
use crate::mesh_gateways::{EXTENSIONS, address, cluster, member};
use crate::stack::{GATEWAY, Options, Stack};
use crate::support::backend::Backend;
use crate::support::client::{Reply, Request};
use crate::support::envoy::Envoy;
use crate::support::load::Load;
use crate::support::ports::free_port;

const SIDECARS: &str = "/v1/health/connect/web";
const INSTANCES: &str = "/v1/health/service/web";

/// The filter chain of one port of the service. It tells the service who is there.
pub fn chain(matching: Value, cluster: &str, tls: &Value) -> Value {
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": cluster } });
    let router = json!({ "@type": format!("{EXTENSIONS}.filters.http.router.v3.Router") });
    let manager = json!({
        "@type": format!("{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": cluster,
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": { "uri": true },
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }] },
        "http_filters": [{ "name": "router", "typed_config": router }],
    });
    json!({
        "filter_chain_match": matching,
        "filters": [{ "name": "http", "typed_config": manager }],
        "transport_socket": { "name": "tls", "typed_config": tls },
    })
}

fn sidecar(port: u16, leaf: &Value, roots: &str, http: u16, admin: u16) -> Value {
    let mut tls = member(leaf, roots);
    tls["common_tls_context"]["alpn_protocols"] = json!(["http/1.1"]);
    let asked = |name: &str| json!({ "application_protocols": [format!("consul~{name}")] });
    let inspector =
        json!({ "@type": format!("{EXTENSIONS}.filters.listener.tls_inspector.v3.TlsInspector") });
    json!({ "static_resources": {
        "listeners": [{
            "name": "public_listener", "address": address(port),
            "listener_filters": [{ "name": "tls", "typed_config": inspector }],
            "filter_chains": [
                chain(asked("http"), "http", &tls),
                chain(asked("admin"), "admin", &tls),
                // Who asks for none, or for something else.
                chain(json!({}), "http", &tls),
            ],
        }],
        "clusters": [cluster("http", http), cluster("admin", admin)],
    } })
}

/// Of Consul Enterprise 2.0, with the places of this test.
struct Registered {
    server: AnsweringServer,
    sidecar_port: u16,
    index: u64,
}

impl Registered {
    fn put(&mut self, path: &str, name: &str, change: impl FnOnce(Answer) -> Answer) {
        self.index += 1;
        let here = Answer::kept(name).with("10.0.0.1", "127.0.0.1");
        self.server.put(path, change(here).at(self.index));
    }

    fn sidecars(&mut self, change: impl FnOnce(Answer) -> Answer) {
        let port = format!("\"Port\":{}", self.sidecar_port);
        self.put(SIDECARS, "health-connect-named-ports", |answer| {
            change(answer.with("\"Port\":20000", &port))
        });
    }

    fn instances(&mut self, change: impl FnOnce(Answer) -> Answer) {
        self.put(INSTANCES, "health-service-named-ports", change);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_port_of_the_mesh_is_where_requests_go() {
    let server = AnsweringServer::start_before_another().await;
    let mut registered = Registered {
        sidecar_port: free_port(),
        server,
        index: 10,
    };
    registered.sidecars(|answer| answer);
    registered.instances(|answer| answer);
    let stack = Stack::start(Options {
        consul_block: Some(format!("address = {:?}", registered.server.address)),
        ..mesh_options()
    })
    .await;
    registered.server.stand_before(stack.consul.address());
    let (http, admin) = (Backend::start("http").await, Backend::start("admin").await);
    let leaf = stack
        .consul
        .expect(Method::GET, "/v1/agent/connect/ca/leaf/web", "")
        .await;
    let roots = stack
        .consul
        .expect(Method::GET, "/v1/agent/connect/ca/roots", "")
        .await;
    let roots = roots["Roots"][0]["RootCert"].as_str().unwrap();
    let bootstrap = sidecar(registered.sidecar_port, &leaf, roots, http.port, admin.port);
    let mut envoy = Envoy::start(&bootstrap);
    envoy.wait_ready().await;
    stack.consul.intention("edge-gw", "web", "allow").await;
    stack.put("gateway", GATEWAY).await;
    protocol(&stack, "web", "http").await;
    stack.put("web", &document("web.example.com", "web", "")).await;
    for port in ["http", "admin", "absent"] {
        let (name, host) = (format!("web-{port}"), format!("{port}.example.com"));
        let named = format!("connect {{\n    service = \"web\"\n    port    = {port:?}\n  }}");
        let text = document(&host, &name, "").replace("connect {}", &named);
        stack.put(&name, &text).await;
    }

    let default = Request::get("web.example.com", "/");
    stack.until(&default, "the default port", from("http")).await;
    let by_name = Request::get("http.example.com", "/");
    stack
        .until(&by_name, "the default port by name", from("http"))
        .await;
    let asked = Request::get("admin.example.com", "/");
    let reply = stack.until(&asked, "the admin port", admin_alone).await;
    assert!(
        reply.text().contains("/svc/edge-gw"),
        "who the gateway is in the mesh: {}",
        reply.text()
    );
    let absent = Request::get("absent.example.com", "/");
    stack.until(&absent, "a port that nobody has", refused).await;
    until_said(
        &stack,
        "has no port named \\\"absent\\\", but \\\"admin\\\", \\\"http\\\"",
    )
    .await;

    // What the named port goes through does not touch the default one, and no request for it ends up there.
    let load = Load::start(50, stack.client(), default.clone());
    let enterprise = ",\"Namespace\":\"default\",\"Partition\":\"default\"";
    registered.instances(|answer| answer.with("\"admin\"", "\"metrics\""));
    stack.until(&asked, "the port to be gone", refused).await;
    registered.instances(|answer| answer);
    stack.until(&asked, "the port again", admin_alone).await;
    registered.sidecars(|answer| answer.with(enterprise, ""));
    stack.until(&asked, "Consul CE to be told", refused).await;
    until_said(
        &stack,
        "named ports in the mesh take Consul Enterprise 2.0 or newer",
    )
    .await;
    registered.sidecars(|answer| answer);
    stack.until(&asked, "the port of Enterprise", admin_alone).await;
    let report = load.finish().await;
    println!("{report}");
    report.assert_none_lost();
}

fn admin_alone(reply: &Reply) -> bool {
    assert_ne!(reply.backend(), Some("http"), "a request for another port");
    from("admin")(reply)
}

fn refused(reply: &Reply) -> bool {
    assert_ne!(reply.backend(), Some("http"), "a request for another port");
    reply.header("x-portreeve-reason") == Some("no-healthy-instance")
}
