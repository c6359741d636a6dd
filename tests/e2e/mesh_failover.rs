//! A discovery chain that falls over to another datacenter, through its mesh gateway. Two datacenters of the real Consul,
//! without ACLs.

use hyper::Method;
use serde_json::json;

use crate::connect::{Meshed, document, from};
use crate::mesh_gateways::{connections, mesh_gateway, register_mesh_gateway};
use crate::stack::{GATEWAY, Options, Stack, until};
use crate::support::backend::Backend;
use crate::support::client::Request;
use crate::support::consul::Consul;
use crate::support::envoy::Envoy;
use crate::support::ports::free_port;

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_falls_over_to_another_datacenter_through_its_mesh_gateway() {
    let (wan, far_wan) = (free_port(), free_port());
    let stack = Stack::start(Options {
        consul_settings: Some(json!({
            "ports": { "serf_wan": wan }, "advertise_addr_wan": "127.0.0.1", "primary_datacenter": "dc1",
        })),
        more: "\nmesh {\n  service = \"edge-gw\"\n}\n".to_owned(),
        ..Options::default()
    })
    .await;
    let join = [format!("127.0.0.1:{wan}")];
    let far = Consul::start_with(
        false,
        json!({
            "ports": { "serf_wan": far_wan }, "advertise_addr_wan": "127.0.0.1", "datacenter": "dc2",
            "primary_datacenter": "dc1", "retry_join_wan": join, "retry_interval_wan": "1s",
        }),
    )
    .await;
    let backend = Backend::start("far").await;
    let sidecar_port = free_port();
    far.register_meshed("pets", "pets-far", backend.port, sidecar_port, json!({}))
        .await;
    let _sidecar = far.start_sidecar("pets-far");
    far.sidecar_passes("pets", "pets-far").await;
    let roots = stack
        .consul
        .expect(Method::GET, "/v1/agent/connect/ca/roots", "")
        .await;
    let domain = roots["TrustDomain"].as_str().unwrap();
    let port = free_port();
    let sni = format!("pets.default.dc2.internal.{domain}");
    let mut gateway = Envoy::start(&mesh_gateway(port, &sni, sidecar_port));
    gateway.wait_ready().await;
    register_mesh_gateway(&far, port).await;

    for entry in [
        json!({ "Kind": "proxy-defaults", "Name": "global", "MeshGateway": { "Mode": "remote" }, "Config": { "protocol": "http" } }),
        json!({ "Kind": "service-resolver", "Name": "pets", "Failover": { "*": { "Datacenters": ["dc2"] } } }),
    ] {
        stack.consul.config_entry(&entry).await;
    }
    let near = Meshed::start(&stack, "pets", "near", json!({})).await;
    stack.put("gateway", GATEWAY).await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    let request = Request::get("pets.example.com", "/");
    let client = stack.client();
    until(&client, &request, "its own datacenter", from("near")).await;
    assert_eq!(backend.requests(), 0, "who is near goes first");
    let check = format!("service:{}", near.id);
    stack.consul.set_check(&check, "critical").await;
    until(&client, &request, "the other datacenter", from("far")).await;
    assert!(
        connections(&gateway).await > 0,
        "it is reached through its mesh gateway"
    );
    stack.consul.set_check(&check, "passing").await;
    until(&client, &request, "its own datacenter again", from("near")).await;

    // Named by the document: its chain is compiled as if there, and the way is the same.
    let there = |host: &str| document(&format!("{host}.example.com"), host, "");
    let named = |host: &str, datacenter: &str| {
        let connect = format!("connect {{\n    service = \"pets\"\n    datacenter = \"{datacenter}\"\n  }}");
        there(host).replace("connect {}", &connect)
    };
    stack.put("far-pets", &named("far-pets", "dc2")).await;
    let before = connections(&gateway).await;
    let request = Request::get("far-pets.example.com", "/");
    until(&client, &request, "the datacenter that is named", from("far")).await;
    assert!(connections(&gateway).await > before, "through its mesh gateway");
    // Our own by its name is ours: its instances themselves.
    stack.put("near-pets", &named("near-pets", "dc1")).await;
    let request = Request::get("near-pets.example.com", "/");
    until(&client, &request, "our own datacenter by its name", from("near")).await;
}
