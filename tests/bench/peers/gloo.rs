//! Gloo without Kubernetes: configuration in Consul's KV, services from Consul's catalog, and the Envoy of our own rows.
//! That Envoy lacks Gloo's own filters, so those that nothing asks for must be left out.
//!
//! Gloo answers liveness probes on port 8765 of every address, which no setting changes.

use std::path::Path;

use serde_json::{Value, json};

use super::proxy::{Entries, Peer, Place, Target};
use crate::support::ports::free_port;
use crate::support::process::Launch;
use crate::support::program;

pub const PEER: Peer = Peer {
    name: "gloo",
    variable: "PEER_GLOO_BIN",
    launches,
    base,
    route,
    reads_services: false,
};

const NAMESPACE: &str = "gloo-system";
const PROXY: &str = "gateway-proxy";

fn launches(gloo: &Path, place: &Place) -> Vec<Launch> {
    let xds = free_port();
    write(place, &format!("{NAMESPACE}/default.yaml"), &settings(place, xds));
    // It takes every directory beside its own for a namespace, and wants it in each of these.
    for kind in ["artifacts", "secrets"] {
        for namespace in [NAMESPACE, "artifacts", "secrets"] {
            std::fs::create_dir_all(place.directory.join(kind).join(namespace)).expect("a directory");
        }
    }
    let bootstrap = write(place, "envoy.json", &bootstrap(place, xds));
    let gloo = Launch::new("gloo", gloo, place.directory).arg(format!("--dir={}", place.directory.display()));
    let envoy = Launch::new("envoy", program("envoy"), place.directory).args([
        "-c",
        &bootstrap,
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "--log-level",
        "error",
    ]);
    vec![gloo.env("CONSUL_HTTP_ADDR", &place.consul), envoy]
}

fn write(place: &Place, name: &str, content: &Value) -> String {
    let path = place.directory.join(name);
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    std::fs::write(&path, content.to_string()).expect("a file");
    path.display().to_string()
}

fn settings(place: &Place, xds: u16) -> Value {
    let loopback = || format!("127.0.0.1:{}", free_port());
    json!({
        "metadata": { "name": "default", "namespace": NAMESPACE },
        "discoveryNamespace": NAMESPACE,
        "consul": { "httpAddress": place.consul, "serviceDiscovery": {} },
        "consulKvSource": {},
        "directorySecretSource": { "directory": place.directory.join("secrets") },
        "directoryArtifactSource": { "directory": place.directory.join("artifacts") },
        "refreshRate": "15s",
        "gloo": {
            "xdsBindAddr": format!("127.0.0.1:{xds}"),
            "validationBindAddr": loopback(),
            "restXdsBindAddr": loopback(),
            "proxyDebugBindAddr": loopback(),
            "removeUnusedFilters": true,
            "disableKubernetesDestinations": true,
        },
        "gateway": { "persistProxySpec": false },
    })
}

fn bootstrap(place: &Place, xds: u16) -> Value {
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    json!({
        "node": { "id": "bench", "cluster": "gateway", "metadata": { "role": format!("{NAMESPACE}~{PROXY}") } },
        "admin": { "address": { "pipe": { "path": place.directory.join("admin.sock") } } },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "gloo" } }],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": { "clusters": [{
            "name": "gloo",
            "connect_timeout": "5s",
            "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            } },
            "load_assignment": { "cluster_name": "gloo", "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": xds } } } },
            ] }] },
        }] },
    })
}

fn base(place: &Place) -> Entries {
    let gateway = json!({
        "metadata": { "name": PROXY, "namespace": NAMESPACE },
        "bindAddress": "127.0.0.1",
        "bindPort": place.port,
        "proxyNames": [PROXY],
        "httpGateway": {},
    });
    vec![(key("Gateway", PROXY), gateway.to_string())]
}

fn route(target: &Target) -> Entries {
    let name = target.host.replace('.', "-");
    let service = json!({
        "metadata": { "name": name, "namespace": NAMESPACE },
        "virtualHost": {
            "domains": [target.host],
            "routes": [{
                "matchers": [{ "prefix": "/" }],
                "routeAction": { "single": { "consul": { "serviceName": target.service } } },
            }],
        },
    });
    vec![(key("VirtualService", &name), service.to_string())]
}

/// JSON is YAML, which is what stands there by custom.
fn key(kind: &str, name: &str) -> String {
    format!("gloo/gateway.solo.io/v1/{kind}/{NAMESPACE}/{name}")
}
