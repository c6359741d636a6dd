//! What thousands of services that expose themselves cost: connections, requests and CPU of Consul while nothing happens,
//! memory, and how soon a change is served. Over plain HTTP, where connections are bounded, and over TLS, where they are
//! shared.
//!
//! Two processes are looked at from outside: their sockets, CPU time and memory. Requests are the agent's own count. What
//! there may be of both on plain HTTP is bounded, and how near it comes to its bound is printed beside it.

use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::json;

use crate::Plan;
use crate::clock::{connections, quantile, resident_mib};
use crate::floor::{Canned, Watcher};
use crate::live::{Live, PATIENCE, Towards, register_exposed, ticks};
use crate::report::Report;
use crate::support::agent::Agent;
use crate::support::backend::Backend;
use crate::support::client::Request;
use crate::synthetic::service_name;

/// Services with the tag are exposed.
pub const CATALOG: &str = "catalog {\n  default_host = \"{service}.apps.example.com\"\n}\n";

/// Changes of each kind.
const SAMPLES: usize = 10;

/// What Consul grants one client of plain HTTP (`limits { http_max_conns_per_client }`) unless it is told otherwise.
const GRANTED_CONNECTIONS: f64 = 200.0;
/// What all watches without a connection of their own may ask, as the page on the catalog promises.
const LOOKS_PER_SECOND: f64 = 200.0;

pub fn run(plan: &Plan, report: &mut Report) {
    let runtime = crate::runtime();
    let services = if plan.quick { 300 } else { 5_000 };
    let idle = Duration::from_secs(if plan.quick { 10 } else { 60 });
    report.add("catalog_services", "services", services as f64);
    for _ in 0..plan.rounds {
        for (towards, label) in [(Towards::Plain, "http1"), (Towards::Tls, "https")] {
            runtime.block_on(measure(report, towards, label, services, idle));
        }
    }
}

async fn measure(report: &mut Report, towards: Towards, label: &str, services: usize, idle: Duration) {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let port = one.port;
    let live = Live::start_with(towards, CATALOG, async |consul| {
        register_exposed(consul, 0..services, port).await;
    });
    let live = live.await;
    let named = |name: &str| format!("catalog_{name}_{label}");
    for number in (0..services).step_by(services / 50).chain([services - 1]) {
        served(&live, number, "one").await;
    }
    report.add(&named("synced_s"), "s", live.launched.elapsed().as_secs_f64());
    // What the start left to do is done.
    tokio::time::sleep(idle / 2).await;

    let consul_port = live.consul_port(towards);
    let (agent, consul) = (live.agent.process.pid(), live.consul.process.pid());
    let (began, requests) = (Instant::now(), requests_of(&live.agent).await);
    let before = (ticks(agent), ticks(consul));
    let mut most = 0;
    while began.elapsed() < idle {
        most = most.max(connections(agent, consul_port));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    let asked = (requests_of(&live.agent).await - requests) / seconds;
    match towards {
        Towards::Plain => {
            report.add_under(&named("connections"), "conns", most as f64, GRANTED_CONNECTIONS);
            report.add_under(&named("requests_idle"), "per s", asked, LOOKS_PER_SECOND);
        }
        // Shared connections, and watches that wait: neither has a bound to come near to.
        Towards::Tls => {
            report.add(&named("connections"), "conns", most as f64);
            report.add(&named("requests_idle"), "per s", asked);
        }
    }
    // Hundredths of a second of CPU in a second are percent of a core.
    report.add(
        &named("cpu_consul_idle"),
        "% core",
        (ticks(consul) - before.1) as f64 / seconds,
    );
    report.add(
        &named("cpu_agent_idle"),
        "% core",
        (ticks(agent) - before.0) as f64 / seconds,
    );
    report.add(&named("rss_agent_mib"), "MiB", resident_mib(agent));
    report.add(&named("rss_consul_mib"), "MiB", resident_mib(consul));

    let (mut fresh, mut moved) = (Vec::new(), Vec::new());
    let requests = requests_of(&live.agent).await;
    for sample in 0..SAMPLES {
        let number = services + sample;
        let started = Instant::now();
        register_exposed(&live.consul, number..number + 1, one.port).await;
        served(&live, number, "one").await;
        fresh.push(started.elapsed());
        live.rest(sample).await;
    }
    let made = requests_of(&live.agent).await - requests;
    if towards == Towards::Tls {
        // Over plain HTTP those that take turns are asked meanwhile.
        report.add(
            &named("requests_per_new_service"),
            "requests",
            made / SAMPLES as f64,
        );
    }
    for sample in 0..SAMPLES {
        // Spread over all of them: over plain HTTP most have to wait for their turn.
        let number = sample * services / SAMPLES + services / SAMPLES / 2;
        let started = Instant::now();
        register_exposed(&live.consul, number..number + 1, two.port).await;
        served(&live, number, "two").await;
        moved.push(started.elapsed());
    }
    let wake = wake_of_a_bare_watcher(&live).await;
    let flips = Canned::route_flips(one.port, SAMPLES).await;
    let floor = wake + quantile(&flips, 0.5);
    let (median, worst) = (quantile(&fresh, 0.5), quantile(&fresh, 1.0));
    report.add_over(&named("new_service_p50_ms"), "ms", median, floor);
    report.add_over(&named("new_service_worst_ms"), "ms", worst, floor);
    let flips = Canned::endpoint_flips([("one", one.port), ("two", two.port)], SAMPLES).await;
    let floor = wake + quantile(&flips, 0.5);
    let (median, worst) = (quantile(&moved, 0.5), quantile(&moved, 1.0));
    report.add_over(&named("moved_instance_p50_ms"), "ms", median, floor);
    report.add_over(&named("moved_instance_worst_ms"), "ms", worst, floor);
}

/// The same Consul, with all its services and watches, and a change that the agent has no use for.
async fn wake_of_a_bare_watcher(live: &Live) -> f64 {
    let instance = |port: usize| {
        json!({
            "Node": "floor-node", "Address": "127.0.0.1",
            "Service": { "ID": "floor", "Service": "floor", "Address": "127.0.0.1", "Port": port },
        })
    };
    live.consul.catalog_register(&instance(1)).await;
    let watcher = Watcher::of_service(&live.consul, "floor");
    let mut wakes = Vec::new();
    for sample in 0..SAMPLES {
        live.rest(sample).await;
        let moved = instance(2 + sample);
        wakes.push(watcher.wake(live.consul.catalog_register(&moved)).await);
    }
    quantile(&wakes, 0.5)
}

async fn served(live: &Live, number: usize, backend: &str) {
    let request = Request::get(&format!("{}.apps.example.com", service_name(number)), "/");
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let reply = live.client.send(&request).await;
        if reply.is_ok_and(|reply| reply.backend() == Some(backend)) {
            return;
        }
    }
    panic!("{} is not served by {backend}", service_name(number));
}

/// Made of all sources since the agent began.
pub async fn requests_of(agent: &Agent) -> f64 {
    let answer = agent.api(Method::GET, "/metrics", "").await.expect("metrics");
    let text = answer.text();
    let counts = text
        .lines()
        .filter(|line| line.starts_with("portreeve_source_requests_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    counts.sum()
}
