//! What thousands of services that expose themselves cost: connections, requests and CPU of Consul while nothing happens,
//! memory, and how soon a change is served. Over plain HTTP, where connections are bounded, and over TLS, where they are
//! shared.
//!
//! Two processes are looked at from outside: their sockets, CPU time and memory. Requests are the agent's own count.

use std::time::{Duration, Instant};

use hyper::Method;

use crate::Plan;
use crate::clock::{connections, quantile, resident_mib};
use crate::live::{Live, PATIENCE, Towards, register_exposed, ticks};
use crate::report::Report;
use crate::support::backend::Backend;
use crate::support::client::Request;
use crate::synthetic::service_name;

const CATALOG: &str = "catalog {\n  default_host = \"{service}.apps.example.com\"\n}\n";

/// Changes of each kind.
const SAMPLES: usize = 10;

pub fn run(plan: &Plan, report: &mut Report) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
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
    let mut add = |name: &str, unit: &'static str, value: f64| {
        report.add(&format!("catalog_{name}_{label}"), unit, value)
    };
    for number in (0..services).step_by(services / 50).chain([services - 1]) {
        served(&live, number, "one").await;
    }
    add("synced_s", "s", live.launched.elapsed().as_secs_f64());
    // What the start left to do is done.
    tokio::time::sleep(idle / 2).await;

    let consul_port = live.consul_port(towards);
    let (agent, consul) = (live.agent.process.pid(), live.consul.process.pid());
    let (began, requests) = (Instant::now(), requests_of(&live).await);
    let before = (ticks(agent), ticks(consul));
    let mut most = 0;
    while began.elapsed() < idle {
        most = most.max(connections(agent, consul_port));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    add("connections", "conns", most as f64);
    add(
        "requests_idle",
        "per s",
        (requests_of(&live).await - requests) / seconds,
    );
    // Hundredths of a second of CPU in a second are percent of a core.
    add(
        "cpu_consul_idle",
        "% core",
        (ticks(consul) - before.1) as f64 / seconds,
    );
    add(
        "cpu_agent_idle",
        "% core",
        (ticks(agent) - before.0) as f64 / seconds,
    );
    add("rss_agent_mib", "MiB", resident_mib(agent));
    add("rss_consul_mib", "MiB", resident_mib(consul));

    let (mut fresh, mut moved) = (Vec::new(), Vec::new());
    let requests = requests_of(&live).await;
    for sample in 0..SAMPLES {
        let number = services + sample;
        let started = Instant::now();
        register_exposed(&live.consul, number..number + 1, one.port).await;
        served(&live, number, "one").await;
        fresh.push(started.elapsed());
        live.rest(sample).await;
    }
    let made = requests_of(&live).await - requests;
    if towards == Towards::Tls {
        // Over plain HTTP those that take turns are asked meanwhile.
        add("requests_per_new_service", "requests", made / SAMPLES as f64);
    }
    for sample in 0..SAMPLES {
        // Spread over all of them: over plain HTTP most have to wait for their turn.
        let number = sample * services / SAMPLES + services / SAMPLES / 2;
        let started = Instant::now();
        register_exposed(&live.consul, number..number + 1, two.port).await;
        served(&live, number, "two").await;
        moved.push(started.elapsed());
    }
    add("new_service_p50_ms", "ms", quantile(&fresh, 0.5));
    add("new_service_worst_ms", "ms", quantile(&fresh, 1.0));
    add("moved_instance_p50_ms", "ms", quantile(&moved, 0.5));
    add("moved_instance_worst_ms", "ms", quantile(&moved, 1.0));
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

async fn requests_of(live: &Live) -> f64 {
    let answer = live
        .agent
        .api(Method::GET, "/metrics", "")
        .await
        .expect("metrics");
    let text = answer.text();
    let counts = text
        .lines()
        .filter(|line| line.starts_with("portreeve_source_requests_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    counts.sum()
}
