//! Into another datacenter through mesh gateways, and out of the mesh through a terminating gateway: Envoys configured by
//! hand and registered under their kinds, two datacenters of the real Consul.

use hyper::Method;
use serde_json::{Value, json};

use crate::connect::{from, mesh_options, mesh_stack, protocol};
use crate::stack::{GATEWAY, Options, Stack};
use crate::support::backend::Backend;
use crate::support::client::Request;
use crate::support::consul::{Consul, MASTER_TOKEN};
use crate::support::envoy::Envoy;
use crate::support::ports::free_port;
use crate::support::wait_for;

pub const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";

pub fn address(port: u16) -> Value {
    json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } })
}

pub fn cluster(name: &str, port: u16) -> Value {
    let endpoint = json!({ "endpoint": { "address": address(port) } });
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "1s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] },
    })
}

/// Passes each connection on by its SNI, and decrypts nothing.
pub fn mesh_gateway(port: u16, sni: &str, next: u16) -> Value {
    let typed = |name: &str| json!({ "@type": format!("{EXTENSIONS}.{name}") });
    let mut proxy = typed("filters.network.tcp_proxy.v3.TcpProxy");
    proxy["stat_prefix"] = json!("passed");
    proxy["cluster"] = json!("nowhere");
    let filters = json!([
        { "name": "sni", "typed_config": typed("filters.network.sni_cluster.v3.SniCluster") },
        { "name": "tcp", "typed_config": proxy },
    ]);
    let inspector =
        json!([{ "name": "tls", "typed_config": typed("filters.listener.tls_inspector.v3.TlsInspector") }]);
    json!({ "static_resources": {
        "listeners": [{
            "name": "gateway", "address": address(port), "listener_filters": inspector,
            "filter_chains": [{ "filters": filters }],
        }],
        "clusters": [cluster(sni, next)],
    } })
}

/// The TLS of a member of the mesh: it shows its certificate, and takes clients that are members too.
pub fn member(leaf: &Value, roots: &str) -> Value {
    json!({
        "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": true,
        "common_tls_context": {
            "tls_certificates": [{
                "certificate_chain": { "inline_string": leaf["CertPEM"] },
                "private_key": { "inline_string": leaf["PrivateKeyPEM"] },
            }],
            "validation_context": { "trusted_ca": { "inline_string": roots } },
        },
    })
}

/// Shows the certificate of an external service, takes clients of the mesh alone, and sends plain HTTP on.
fn terminating_gateway(port: u16, leaf: &Value, roots: &str, next: u16) -> Value {
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": "external" } });
    let router = json!({ "@type": format!("{EXTENSIONS}.filters.http.router.v3.Router") });
    let manager = json!({
        "@type": format!("{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "out",
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }] },
        "http_filters": [{ "name": "router", "typed_config": router }],
    });
    json!({ "static_resources": {
        "listeners": [{ "name": "gateway", "address": address(port), "filter_chains": [{
            "filters": [{ "name": "http", "typed_config": manager }],
            "transport_socket": { "name": "tls", "typed_config": member(leaf, roots) },
        }] }],
        "clusters": [cluster("external", next)],
    } })
}

pub async fn register_mesh_gateway(consul: &Consul, port: u16) {
    let place = json!({ "Address": "127.0.0.1", "Port": port });
    consul
        .register(&json!({
            "Kind": "mesh-gateway", "Name": "mesh-gateway", "ID": "mesh-gateway", "Address": "127.0.0.1", "Port": port,
            "TaggedAddresses": { "lan": place, "wan": place },
        }))
        .await;
}

pub async fn connections(gateway: &Envoy) -> u64 {
    gateway.admin.stat("tcp.passed.downstream_cx_total").await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_datacenter_is_reached_through_mesh_gateways() {
    let (wan, far_wan) = (free_port(), free_port());
    let stack = Stack::start(Options {
        consul_settings: Some(json!({
            "ports": { "serf_wan": wan }, "advertise_addr_wan": "127.0.0.1", "primary_datacenter": "dc1",
        })),
        ..mesh_options()
    })
    .await;
    // Tokens, policies and intentions are those of the first.
    let far = Consul::start_with(
        true,
        json!({
            "acl": {
                "enable_token_replication": true,
                "tokens": { "agent": MASTER_TOKEN, "replication": MASTER_TOKEN },
            },
            "ports": { "serf_wan": far_wan }, "advertise_addr_wan": "127.0.0.1", "datacenter": "dc2",
            "primary_datacenter": "dc1", "retry_join_wan": [format!("127.0.0.1:{wan}")], "retry_interval_wan": "1s",
        }),
    )
    .await;
    let backend = Backend::start("far").await;
    let sidecar_port = free_port();
    far.register_meshed("pets", "pets-far", backend.port, sidecar_port, json!({}))
        .await;
    let _sidecar = far.start_sidecar("pets-far");
    far.sidecar_passes("pets", "pets-far").await;
    protocol(&stack, "pets", "http").await;
    stack.consul.intention("edge-gw", "pets", "allow").await;
    let redirect = json!({ "Service": "pets", "Datacenter": "dc2" });
    stack
        .consul
        .config_entry(&json!({ "Kind": "service-resolver", "Name": "pets", "Redirect": redirect }))
        .await;

    let roots = stack
        .consul
        .expect(Method::GET, "/v1/agent/connect/ca/roots", "")
        .await;
    let sni = format!(
        "pets.default.dc2.internal.{}",
        roots["TrustDomain"].as_str().unwrap()
    );
    let (near_port, far_port) = (free_port(), free_port());
    let mut near_gateway = Envoy::start(&mesh_gateway(near_port, &sni, far_port));
    let mut far_gateway = Envoy::start(&mesh_gateway(far_port, &sni, sidecar_port));
    near_gateway.wait_ready().await;
    far_gateway.wait_ready().await;
    register_mesh_gateway(&stack.consul, near_port).await;
    register_mesh_gateway(&far, far_port).await;
    stack.put("gateway", GATEWAY).await;
    stack
        .put("pets", &crate::connect::document("pets.example.com", "pets", ""))
        .await;
    let request = Request::get("pets.example.com", "/");

    // No mode: the sidecar over there is dialed itself.
    stack.until(&request, "the other datacenter", from("far")).await;
    assert_eq!(connections(&far_gateway).await, 0);
    for (mode, near, far) in [("remote", false, true), ("local", true, true)] {
        let before = (connections(&near_gateway).await, connections(&far_gateway).await);
        let entry = json!({ "Kind": "proxy-defaults", "Name": "global", "MeshGateway": { "Mode": mode }, "Config": { "protocol": "http" } });
        stack.consul.config_entry(&entry).await;
        wait_for(
            &format!("requests to pass mesh gateways ({mode})"),
            crate::stack::SOON,
            async || {
                let reply = stack
                    .client()
                    .send(&request)
                    .await
                    .map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
                anyhow::ensure!(from("far")(&reply), "{} {}", reply.status, reply.text());
                let now = (connections(&near_gateway).await, connections(&far_gateway).await);
                anyhow::ensure!(
                    (now.0 > before.0) == near && (now.1 > before.1) == far,
                    "{before:?} {now:?}"
                );
                Ok(())
            },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_service_is_reached_through_a_terminating_gateway() {
    let stack = mesh_stack(GATEWAY).await;
    let external = Backend::start("external").await;
    protocol(&stack, "legacy", "http").await;
    stack.consul.intention("edge-gw", "legacy", "allow").await;
    stack
        .consul
        .catalog_register(&json!({
            "Node": "outside", "Address": "192.0.2.1",
            "Service": { "Service": "legacy", "ID": "legacy", "Address": "192.0.2.1", "Port": 80 },
        }))
        .await;
    stack
        .consul
        .config_entry(
            &json!({ "Kind": "terminating-gateway", "Name": "way-out", "Services": [{ "Name": "legacy" }] }),
        )
        .await;
    let leaf = stack
        .consul
        .expect(Method::GET, "/v1/agent/connect/ca/leaf/legacy", "")
        .await;
    let roots = stack
        .consul
        .expect(Method::GET, "/v1/agent/connect/ca/roots", "")
        .await;
    let port = free_port();
    let trusted = roots["Roots"][0]["RootCert"].as_str().unwrap();
    let mut gateway = Envoy::start(&terminating_gateway(port, &leaf, trusted, external.port));
    gateway.wait_ready().await;
    stack
        .consul
        .register(&json!({
            "Kind": "terminating-gateway", "Name": "way-out", "ID": "way-out", "Address": "127.0.0.1", "Port": port,
        }))
        .await;
    stack
        .put(
            "legacy",
            &crate::connect::document("legacy.example.com", "legacy", ""),
        )
        .await;
    let request = Request::get("legacy.example.com", "/");
    stack
        .until(&request, "what is outside of the mesh", from("external"))
        .await;
}
