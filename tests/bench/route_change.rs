//! A document's KV put to its host's first 200, with so many hosts there already. Any status but 404 before is a failure.
//!
//! Floor: the wake of a bare watcher of another prefix of the same Consul, plus a canned push of a new host to an Envoy
//! of its own with two hosts.

use std::time::{Duration, Instant};

use crate::Plan;
use crate::clock::quantile;
use crate::floor::{Canned, Watcher};
use crate::kept::Row;
use crate::live::Live;
use crate::report::Report;
use crate::support::backend::Backend;
use crate::support::client::Request;
use crate::support::consul::service;
use crate::synthetic::route;

/// The agent takes so many from KV, and the gateway and the new hosts need a few.
const DOCUMENTS: usize = 100_000;

pub fn run(plan: &Plan, report: &mut Report) {
    let runtime = crate::runtime();
    let sizes: &[(usize, &str)] = if plan.quick {
        &[(100, "100"), (1_000, "1k")]
    } else {
        &[(100, "100"), (1_000, "1k"), (10_000, "10k")]
    };
    let mut others = 0;
    let mut medians: Vec<Vec<f64>> = Vec::new();
    for (hosts, label) in sizes {
        medians.push(runtime.block_on(additions(plan, report, *hosts, label, &mut others)));
    }
    for round in 0..plan.rounds {
        let growth = medians.last().expect("sizes")[round] / medians[0][round];
        report.add("route_add_growth", "ratio", growth);
    }
    report.add("route_add_other_statuses", "answers", others as f64);
    fail_on_others(report, others);
}

/// With a hundred thousand hosts: writing them takes longer than what is measured.
pub fn run_long(plan: &Plan, report: &mut Report) {
    let runtime = crate::runtime();
    let mut others = 0;
    let medians = runtime.block_on(additions(plan, report, 100_000, "100k", &mut others));
    // Where this machine has measured the small size too.
    if let Some(small) = report.kept().row("route_add_p50_ms_100").map(Row::median) {
        for median in medians {
            report.add("route_add_growth_100k", "ratio", median / small);
        }
    }
    report.add("route_add_other_statuses_100k", "answers", others as f64);
    fail_on_others(report, others);
}

fn fail_on_others(report: &mut Report, others: usize) {
    if others > 0 {
        report.fail(format!(
            "{others} answers other than 404 before a new route's first 200"
        ));
    }
}

async fn additions(
    plan: &Plan,
    report: &mut Report,
    hosts: usize,
    label: &str,
    others: &mut usize,
) -> Vec<f64> {
    let live = Live::start().await;
    let backend = Backend::start("app").await;
    live.consul.register(&service("app", "app", backend.port)).await;
    let of_a_document = if hosts < DOCUMENTS { 1 } else { 2 };
    let documents = (0..hosts).step_by(of_a_document).map(|first| {
        let texts = (first..first + of_a_document).map(|at| {
            let host = format!("h{at}.example.com");
            route(&format!("r{at}"), &host, 1, "app", 0)
        });
        (format!("r{first}"), texts.collect())
    });
    live.put_all(documents).await;
    live.until_status("h0.example.com", 200).await;
    live.until_status(&format!("h{}.example.com", hosts - 1), 200)
        .await;
    live.until_quiet().await;
    let samples = if plan.quick { 20 } else { 50 };
    let watcher = Watcher::of_key(&live.consul, "floor/");
    live.consul.put("floor/first", "0").await;
    let mut medians = Vec::new();
    for round in 0..plan.rounds {
        let (mut times, mut wakes) = (Vec::new(), Vec::new());
        for sample in 0..samples {
            let name = format!("new{round}-{sample}");
            times.push(add(&live, &name, report, others).await);
            live.rest(sample).await;
            wakes.push(watcher.wake(live.consul.put("floor/first", name.clone())).await);
        }
        let flips = Canned::route_flips(backend.port, samples).await;
        let floor = quantile(&wakes, 0.5) + quantile(&flips, 0.5);
        let median = quantile(&times, 0.5);
        report.add_over(&format!("route_add_p50_ms_{label}"), "ms", median, floor);
        report.add_over(
            &format!("route_add_p99_ms_{label}"),
            "ms",
            quantile(&times, 0.99),
            floor,
        );
        medians.push(median);
    }
    medians
}

async fn add(live: &Live, name: &str, report: &mut Report, others: &mut usize) -> Duration {
    let host = format!("{name}.example.com");
    let request = Request::get(&host, "/");
    let text = route(name, &host, 1, "app", 0);
    let started = Instant::now();
    live.put(name, &text).await;
    while started.elapsed() < Duration::from_secs(60) {
        match live.client.send(&request).await.expect("an answer").status {
            200 => return started.elapsed(),
            404 => {}
            _ => *others += 1,
        }
    }
    report.fail(format!("{host} was never served"));
    started.elapsed()
}
