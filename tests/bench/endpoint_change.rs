//! Consul's register call to the first answer of the new instance through the agent's Envoy, and deregister to its last;
//! and the agent's memory on the way.
//!
//! Floor of one round: median wake of a bare watcher of the same Consul, plus median of a canned endpoint push to an
//! Envoy of its own. Both clients poll without rest over one kept connection.

use std::time::{Duration, Instant};

use crate::Plan;
use crate::clock::quantile;
use crate::floor::{Canned, Watcher};
use crate::live::Live;
use crate::report::Report;
use crate::support::backend::Backend;
use crate::support::client::Request;
use crate::support::consul::service;
use crate::synthetic::{route, service_name};

const HOST: &str = "bench.example.com";
const LIMIT: Duration = Duration::from_secs(30);

pub fn run(plan: &Plan, report: &mut Report) {
    let runtime = crate::runtime();
    runtime.block_on(changes(plan, report));
    runtime.block_on(memory(report, 1_000, "1k"));
    if !plan.quick {
        runtime.block_on(memory(report, 10_000, "10k"));
    }
}

const INSTANCES: usize = 10;

async fn changes(plan: &Plan, report: &mut Report) {
    let live = Live::start().await;
    let (old, new) = (Backend::start("old").await, Backend::start("new").await);
    let mut fleet = Vec::new();
    for _ in 0..INSTANCES {
        fleet.push(Backend::start("fleet").await);
    }
    let services = if plan.quick { 100 } else { 1_000 };
    live.consul.register(&service("bench", "old", old.port)).await;
    live.put("bench", &route("bench", HOST, 1, "bench", 0)).await;
    live.consul.register(&service("floor", "floor-0", 9)).await;
    fill(&live, services, INSTANCES).await;
    live.until_status(HOST, 200).await;
    live.until_quiet().await;
    let samples = if plan.quick { 20 } else { 60 };
    report.add("endpoint_services", "services", services as f64);
    for _ in 0..plan.rounds {
        let (mut added, mut removed, mut wakes, mut wakes_gone) = (vec![], vec![], vec![], vec![]);
        let mut deployed = Vec::new();
        let watcher = Watcher::of_service(&live.consul, "floor");
        for sample in 0..samples {
            let definition = service("bench", "new", new.port);
            added.push(add(&live, &definition).await);
            live.rest(2 * sample).await;
            removed.push(remove(&live, report).await);
            live.rest(2 * sample + 1).await;
            // Every instance of a service is replaced, one after the other.
            if sample % 10 == 0 {
                deployed.push(deploy(&live, &fleet, &definition).await);
            }
            let definition = service("floor", "floor-1", 9);
            wakes.push(watcher.wake(live.consul.register(&definition)).await);
            wakes_gone.push(watcher.wake(live.consul.deregister("floor-1")).await);
        }
        let flips = Canned::endpoint_flips([("old", old.port), ("new", new.port)], samples).await;
        let flip = quantile(&flips, 0.5);
        let floor = quantile(&wakes, 0.5) + flip;
        let floor_gone = quantile(&wakes_gone, 0.5) + flip;
        report.add("floor_consul_wake_ms", "ms", quantile(&wakes, 0.5));
        report.add("floor_envoy_endpoint_ms", "ms", flip);
        report.add_over("endpoint_add_p50_ms", "ms", quantile(&added, 0.5), floor);
        report.add_over("endpoint_add_p99_ms", "ms", quantile(&added, 0.99), floor);
        report.add("endpoint_add_over_floor", "ratio", quantile(&added, 0.5) / floor);
        report.add_over("deploy_of_10_last_ms", "ms", quantile(&deployed, 0.5), floor);
        report.add_over(
            "endpoint_remove_p50_ms",
            "ms",
            quantile(&removed, 0.5),
            floor_gone,
        );
        report.add(
            "endpoint_remove_over_floor",
            "ratio",
            quantile(&removed, 0.5) / floor_gone,
        );
    }
}

async fn fill(live: &Live, services: usize, instances: usize) {
    live.register_all(services, instances).await;
    let documents = (0..services).map(|at| {
        let name = format!("r{at}");
        let text = route(&name, &format!("h{at}.example.com"), 1, &service_name(at), 0);
        (name, text)
    });
    live.put_all(documents).await;
}

async fn add(live: &Live, definition: &serde_json::Value) -> Duration {
    let request = Request::get(HOST, "/");
    let started = Instant::now();
    live.consul.register(definition).await;
    while started.elapsed() < LIMIT {
        let reply = live.client.send(&request).await.expect("an answer");
        if reply.header("x-backend") == Some("new") {
            return started.elapsed();
        }
    }
    panic!("the new instance is not served");
}

/// Ten instances come one right after the other, and then the new one: how late is that one?
async fn deploy(live: &Live, fleet: &[Backend], last: &serde_json::Value) -> Duration {
    for (at, backend) in fleet.iter().enumerate() {
        let definition = service("bench", &format!("fleet-{at}"), backend.port);
        live.consul.register(&definition).await;
    }
    let served = add(live, last).await;
    for at in 0..fleet.len() {
        live.consul.deregister(&format!("fleet-{at}")).await;
    }
    live.consul.deregister("new").await;
    // Until the old one alone answers.
    let mut run = 0;
    while run < 3 * INSTANCES {
        let reply = live
            .client
            .send(&Request::get(HOST, "/"))
            .await
            .expect("an answer");
        run = if reply.header("x-backend") == Some("old") {
            run + 1
        } else {
            0
        };
    }
    served
}

/// Two instances take turns: two answers of the old one in a row, and then more of them, show the end of the new one.
async fn remove(live: &Live, report: &mut Report) -> Duration {
    let request = Request::get(HOST, "/");
    let started = Instant::now();
    live.consul.deregister("new").await;
    let mut run = Vec::new();
    while started.elapsed() < LIMIT {
        let reply = live.client.send(&request).await.expect("an answer");
        if reply.status != 200 {
            report.fail(format!("status {} while an instance left", reply.status));
        }
        if reply.header("x-backend") == Some("old") {
            run.push(started.elapsed());
        } else {
            run.clear();
        }
        if run.len() == 8 {
            return run[1];
        }
    }
    panic!("the removed instance is still served");
}

async fn memory(report: &mut Report, services: usize, label: &str) {
    let live = Live::start().await;
    live.until_quiet().await;
    report.add("rss_idle_mib", "MiB", live.resident_mib());
    let backend = Backend::start("last").await;
    live.consul.register(&service("last", "last", backend.port)).await;
    let started = Instant::now();
    fill(&live, services, 10).await;
    live.put("last", &route("last", "last.example.com", 1, "last", 0))
        .await;
    live.until_status("last.example.com", 200).await;
    live.until_quiet().await;
    eprintln!(
        "bench:   {label} services written and taken up in {:.1} s",
        started.elapsed().as_secs_f32()
    );
    report.add(&format!("rss_{label}_mib"), "MiB", live.resident_mib());
}
