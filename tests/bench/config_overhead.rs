//! What a request costs the Envoy that the agent configures, beside an Envoy with the same routes written by hand: once as
//! short as it can be written, once with the same bounds and checks of what clients send.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Plan;
use crate::live::Live;
use crate::load::{Backend, Load, Requests, beside, requests};
use crate::path_rules::ROUNDS;
use crate::report::Report;
use crate::support::client::{Client, Request};
use crate::support::consul::service;
use crate::support::envoy::Envoy;
use crate::support::ports::free_port;
use crate::synthetic::route;

const HOSTS: usize = 10;
const RULES: usize = 10;

pub fn run(plan: &Plan, report: &mut Report) {
    let runtime = crate::runtime();
    runtime.block_on(measure(plan, report));
}

async fn measure(plan: &Plan, report: &mut Report) {
    let backend = Backend::start().await;
    let live = Live::start().await;
    live.consul.register(&service("app", "app", backend.port)).await;
    let documents = (0..HOSTS).map(|at| {
        let name = format!("r{at}");
        let text = route(&name, &host(at), RULES, "app", 0);
        (name, text)
    });
    live.put_all(documents).await;
    for at in 0..HOSTS {
        live.until_status(&host(at), 200).await;
    }
    live.until_quiet().await;
    let hosts: Vec<String> = (0..HOSTS).map(host).collect();
    let asked = hosts.iter().flat_map(|host| {
        let paths = (0..RULES).map(|rule| {
            if rule == 0 {
                "/".to_owned()
            } else {
                format!("/p{rule}")
            }
        });
        paths.map(|path| (host.as_str(), path))
    });
    let requests = requests(asked);
    let (_short, short) = by_hand(json!({}), backend.port, requests.clone()).await;
    let (_careful, careful) = by_hand(careful_settings(), backend.port, requests.clone()).await;
    let ours = Load::open(live.envoy_pid(), live.client.port(), requests).await;
    let mut sides = [ours, short, careful];
    let time = Duration::from_millis(if plan.quick { 500 } else { 4_000 });
    beside(&mut sides, time / 4, report).await;
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let [ours, short, careful] = beside(&mut sides, time, report).await;
        report.add_over("config_us", "us CPU", ours, short);
        report.add("config_overhead", "ratio", ours / short);
        report.add("config_overhead_careful", "ratio", ours / careful);
        ratios.push(ours / short);
    }
    let (low, high) = confidence(&ratios);
    report.add("config_overhead_low", "ratio", low);
    report.add("config_overhead_high", "ratio", high);
}

fn host(at: usize) -> String {
    format!("h{at}.example.com")
}

/// Between which the ratio lies, with 95 % confidence: Student's t of the rounds' logarithms.
fn confidence(ratios: &[f64]) -> (f64, f64) {
    const T: [f64; 9] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];
    let count = ratios.len() as f64;
    let mean = ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / count;
    let squares: f64 = ratios.iter().map(|ratio| (ratio.ln() - mean).powi(2)).sum();
    let error = (squares / (count - 1.0) / count).sqrt();
    let reach = T[ratios.len() - 2] * error;
    ((mean - reach).exp(), (mean + reach).exp())
}

/// An Envoy of its own, with more settings of its connection manager.
async fn by_hand(more: Value, backend: u16, requests: Requests) -> (Envoy, Load) {
    let port = free_port();
    let mut envoy = Envoy::start_with_workers(&bootstrap(port, backend, more), 1);
    envoy.wait_ready().await;
    let reply = Client::http(port).send(&Request::get(&host(0), "/p1")).await;
    assert_eq!(
        reply.expect("an answer").status,
        200,
        "the routes written by hand"
    );
    let load = Load::open(envoy.process.pid(), port, requests).await;
    (envoy, load)
}

fn bootstrap(port: u16, backend: u16, more: Value) -> Value {
    let hosts: Vec<Value> = (0..HOSTS)
        .map(|at| {
            // The more specific ones first.
            let mut routes: Vec<Value> = (1..RULES)
                .map(|rule| {
                    json!({
                        "match": { "path_separated_prefix": format!("/p{rule}") },
                        "route": { "cluster": "app" },
                    })
                })
                .collect();
            routes.push(json!({ "match": { "prefix": "/" }, "route": { "cluster": "app" } }));
            json!({ "name": format!("h{at}"), "domains": [host(at)], "routes": routes })
        })
        .collect();
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "web",
        "route_config": { "name": "web", "virtual_hosts": hosts },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    let more = more.as_object().expect("settings").clone();
    manager.as_object_mut().expect("settings").extend(more);
    json!({
        "node": { "id": "hand", "cluster": "edge" },
        "static_resources": {
            "listeners": [{
                "name": "web",
                "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
                "filter_chains": [{ "filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": manager,
                }] }],
            }],
            "clusters": [{
                "name": "app",
                "connect_timeout": "5s",
                "type": "STATIC",
                "load_assignment": { "cluster_name": "app", "endpoints": [{ "lb_endpoints": [
                    { "endpoint": { "address": { "socket_address": {
                        "address": "127.0.0.1", "port_value": backend,
                    } } } },
                ] }] },
            }],
        },
    })
}

/// What Envoy's own guide for edge proxies asks for, and hosts compared as our listeners compare them.
fn careful_settings() -> Value {
    json!({
        "use_remote_address": true,
        "normalize_path": true,
        "merge_slashes": true,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "strip_any_host_port": true,
        "strip_trailing_host_dot": true,
        "server_header_transformation": "PASS_THROUGH",
        "stream_idle_timeout": "300s",
        "request_headers_timeout": "10s",
        "common_http_protocol_options": {
            "idle_timeout": "3600s",
            "max_headers_count": 100,
            "headers_with_underscores_action": "REJECT_REQUEST",
        },
    })
}
