//! A service behind a cluster peering, through the gateway's own sidecar. The sidecar's registration is answered as by a Consul
//! that has peerings; all else is real: two Consuls with ACLs and an authority each, and Envoys configured by hand, the
//! gateway's sidecar on this side and the peer's mesh gateway and the service's sidecar on the other, with mTLS between them.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::answering::{Answer, AnsweringServer};
use crate::connect::{document, from, mesh_options, until_said};
use crate::mesh_gateways::{EXTENSIONS, address, cluster, connections, member, mesh_gateway};
use crate::mesh_identity::until_quiet;
use crate::named_ports::chain;
use crate::stack::{Options, Stack};
use crate::support::backend::Backend;
use crate::support::client::{Reply, Request};
use crate::support::consul::Consul;
use crate::support::envoy::Envoy;
use crate::support::load::Load;
use crate::support::ports::free_port;
use crate::support::wait_for;

const REGISTRATION: &str = "/v1/agent/service/edge-gw-sidecar-proxy";

/// The registration is looked at every 5 s, and a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one side of the peering knows of a service: its certificate, and whom it trusts.
struct Member {
    leaf: Value,
    roots: String,
    domain: String,
}

impl Member {
    async fn of(consul: &Consul, service: &str) -> Member {
        let leaf = format!("/v1/agent/connect/ca/leaf/{service}");
        let roots = consul.expect(Method::GET, "/v1/agent/connect/ca/roots", "").await;
        Member {
            leaf: consul.expect(Method::GET, &leaf, "").await,
            roots: roots["Roots"][0]["RootCert"].as_str().unwrap().to_owned(),
            domain: roots["TrustDomain"].as_str().unwrap().to_owned(),
        }
    }

    fn id(&self) -> &str {
        self.leaf["ServiceURI"].as_str().unwrap()
    }
}

/// Of the other's authority, and of this id alone.
fn trust(other: &Member) -> Value {
    json!({
        "trusted_ca": { "inline_string": other.roots },
        "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": other.id() } }],
    })
}

/// As the peer's Consul configures its own: a mesh gateway that passes connections on by their SNI, and the sidecar of the
/// service that it exports, which takes nobody but `client`.
fn peer(port: u16, sni: &str, service: &Member, client: &Member, backend: u16) -> Value {
    let public = free_port();
    let mut tls = member(&service.leaf, &client.roots);
    tls["common_tls_context"]["validation_context"] = trust(client);
    let mut all = mesh_gateway(port, sni, public);
    let listeners = all["static_resources"]["listeners"].as_array_mut().unwrap();
    listeners.push(json!({
        "name": "public_listener", "address": address(public),
        "filter_chains": [chain(json!({}), "local_app", &tls)],
    }));
    let clusters = all["static_resources"]["clusters"].as_array_mut().unwrap();
    clusters.push(cluster("local_app", backend));
    all
}

fn passed_on(name: &str, port: u16, to: &str) -> Value {
    let proxy = json!({
        "@type": format!("{EXTENSIONS}.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": name, "cluster": to,
    });
    json!({
        "name": name, "address": address(port),
        "filter_chains": [{ "filters": [{ "name": "tcp", "typed_config": proxy }] }],
    })
}

/// Where the gateway's sidecar listens.
struct Ports {
    public: u16,
    /// For `web` of this side.
    near: u16,
    /// For `web` of the peer.
    far: u16,
}

/// As Consul configures the gateway's sidecar: one listener for each upstream of its registration.
fn own_sidecar(ports: &Ports, gateway: &Member, sni: &str, service: &Member, peer: u16, near: u16) -> Value {
    let mut public = passed_on("public_listener", ports.public, "local_app");
    let tls = json!({ "name": "tls", "typed_config": member(&gateway.leaf, &gateway.roots) });
    public["filter_chains"][0]["transport_socket"] = tls;
    let mut far = cluster("far", peer);
    far["transport_socket"] = json!({ "name": "tls", "typed_config": {
        "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext"),
        "sni": sni,
        "common_tls_context": {
            "tls_certificates": [{
                "certificate_chain": { "inline_string": gateway.leaf["CertPEM"] },
                "private_key": { "inline_string": gateway.leaf["PrivateKeyPEM"] },
            }],
            "validation_context": trust(service),
        },
    } });
    json!({ "static_resources": {
        "listeners": [
            public, passed_on("near", ports.near, "near"), passed_on("far", ports.far, "far"),
        ],
        // The gateway's service is a name: nobody is behind it.
        "clusters": [cluster("local_app", free_port()), cluster("near", near), far],
    } })
}

async fn until(stack: &Stack, request: &Request, what: &str, expected: impl Fn(&Reply) -> bool) -> Reply {
    wait_for(what, PATIENCE, async || {
        let reply = stack.client().send(request).await;
        let reply = reply.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        anyhow::ensure!(
            expected(&reply),
            "{} {:?} {}",
            reply.status,
            reply.headers,
            reply.text()
        );
        Ok(reply)
    })
    .await
}

fn refused(reason: &str) -> impl Fn(&Reply) -> bool + '_ {
    move |reply| reply.status == 503 && reply.header("x-portreeve-reason") == Some(reason)
}

async fn put(stack: &Stack, name: &str, connect: &str, more: &str) -> Request {
    let host = format!("{name}.example.com");
    let text = document(&host, name, more);
    stack.put(name, &text.replace("connect {}", connect)).await;
    Request::get(&host, "/")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peered_service_answers_through_the_gateway_s_own_sidecar() {
    const PEERED: &str = "connect {\n    service = \"web\"\n    peer    = \"west\"\n    sidecar = true\n  }";
    const NEAR: &str = "connect {\n    service = \"web\"\n    sidecar = true\n  }";
    let ports = Ports {
        public: free_port(),
        near: free_port(),
        far: free_port(),
    };
    let registered = Answer::kept("own-sidecar")
        .with("9191", &ports.near.to_string())
        .with("9192", &ports.far.to_string());
    let newer = AnsweringServer::start_before_another().await;
    newer.put(REGISTRATION, registered.clone());
    let mut stack = Stack::start(Options {
        consul_block: Some(format!("address = {:?}", newer.address)),
        ..mesh_options()
    })
    .await;
    newer.stand_before(stack.consul.address());
    let west = Consul::start_with(true, json!({ "datacenter": "west" })).await;

    // The service in the peer, and one of the same name here.
    let (far, near) = (Backend::start("far").await, Backend::start("near").await);
    let gateway = Member::of(&stack.consul, "edge-gw").await;
    let service = Member::of(&west, "web").await;
    assert_ne!(gateway.domain, service.domain, "two meshes");
    let sni = format!("web.default.default.east.external.{}", service.domain);
    let entry = free_port();
    let mut peer = Envoy::start(&peer(entry, &sni, &service, &gateway, far.port));
    let sidecar = own_sidecar(&ports, &gateway, &sni, &service, entry, near.port);
    let mut sidecar = Envoy::start(&sidecar);
    peer.wait_ready().await;
    sidecar.wait_ready().await;
    let inbound = free_port();
    stack
        .consul
        .register_meshed("edge-gw", "edge-gw", inbound, ports.public, json!({}))
        .await;

    let (_shop, elsewhere) = stack.shop().await;
    let peered = put(&stack, "peered", PEERED, "").await;
    let checked = "health_check {\n    interval = \"500ms\"\n  }";
    let checked = put(&stack, "checked", PEERED, checked).await;
    let nearby = put(&stack, "nearby", NEAR, "").await;
    let reply = until(&stack, &peered, "the service in the peer", from("far")).await;
    assert!(
        reply.text().contains(gateway.id()),
        "who the gateway is over there: {}",
        reply.text()
    );
    until(&stack, &checked, "the same, with a check", from("far")).await;
    until(&stack, &nearby, "the service of the name here", from("near")).await;
    assert!(connections(&peer).await > 0, "past the peer's mesh gateway");
    let path = "/v1/explain?gateway=edge&url=http://peered.example.com/";
    let explained = stack.agent.api(Method::GET, path, "").await.unwrap().text();
    assert!(
        explained.contains(&format!("127.0.0.1:{}", ports.far)),
        "{explained}"
    );
    let load = Load::start(50, stack.client(), elsewhere);

    // The sidecar runs, and the peer is away.
    peer.kill();
    until(&stack, &peered, "the peer to be away", |reply| {
        refused("upstream-connection-closed")(reply) || refused("upstream-connection-failed")(reply)
    })
    .await;
    until(&stack, &nearby, "what needs no peer", from("near")).await;
    peer.restart().await;
    until(&stack, &peered, "the peer again", from("far")).await;

    // The sidecar stops. Consul's check of it says so, in time.
    const WHY: &str =
        "sidecar \"edge-gw-sidecar-proxy\" does not pass the check \"listening\" of Consul's agent";
    sidecar.kill();
    let failed = refused("upstream-connection-failed");
    until(&stack, &peered, "no sidecar", &failed).await;
    until(&stack, &nearby, "no sidecar here either", &failed).await;
    let unhealthy = refused("no-healthy-instance");
    until(&stack, &checked, "the check to leave it out", unhealthy).await;
    until_said(&stack, &WHY.replace('"', "\\\"")).await;
    let line = stack.agent.wait_for_log(WHY).await;
    println!("{}", line.trim());
    let parts = [
        "source-problem",
        "connection refused",
        "consul connect envoy -sidecar-for edge-gw",
    ];
    assert!(
        parts.iter().all(|part| line.contains(part)),
        "{line} without one of {parts:?}"
    );
    sidecar.restart().await;
    until(&stack, &peered, "the sidecar again", from("far")).await;
    until(&stack, &checked, "the check to pass again", from("far")).await;
    until(&stack, &nearby, "the sidecar again, here", from("near")).await;
    until_quiet(&stack, "does not pass the check").await;

    // The upstream is taken out of the registration: the peered service is not looked for elsewhere.
    let other = registered.with("\"DestinationPeer\":\"west\"", "\"DestinationPeer\":\"north\"");
    newer.put(REGISTRATION, other);
    let gone = refused("no-healthy-instance");
    until(&stack, &peered, "the upstream to be gone", gone).await;
    until_said(&stack, "no upstream for \\\"web\\\" of the peer \\\"west\\\"").await;
    until(&stack, &nearby, "what is still dialed", from("near")).await;
    let report = load.finish().await;
    println!("peer and sidecar stopped: {report}");
    report.assert_none_lost();
}
