//! What a request costs Envoy on a host with ten thousand path rules, beside a host with ten: the rule that stands last
//! asked for, and all of them in turn. Both hosts are on the same Envoy, and asked in turn.

use std::time::Duration;

use crate::Plan;
use crate::live::Live;
use crate::load::{Backend, Load, Requests, beside, requests};
use crate::report::Report;
use crate::support::consul::service;
use crate::synthetic::{numbered_path, path_rules};

const FEW: (&str, usize) = ("few.example.com", 10);
const MANY: &str = "many.example.com";
/// Rules of one document: Consul holds half a megabyte under one key.
const OF_A_DOCUMENT: usize = 500;
/// So many rounds, whatever the other rows have: two processes' CPU differs by a few percent from round to round.
pub const ROUNDS: usize = 5;

pub fn run(plan: &Plan, report: &mut Report) {
    let runtime = crate::runtime();
    runtime.block_on(measure(plan, report));
}

async fn measure(plan: &Plan, report: &mut Report) {
    let (many, label) = if plan.quick {
        (1_000, "1k")
    } else {
        (10_000, "10k")
    };
    let backend = Backend::start().await;
    let live = Live::start().await;
    live.consul.register(&service("app", "app", backend.port)).await;
    for (host, rules) in [FEW, (MANY, many)] {
        let documents = (0..rules).step_by(OF_A_DOCUMENT).map(|first| {
            let name = format!("{}-{first:05}", host.trim_end_matches(".example.com"));
            let end = rules.min(first + OF_A_DOCUMENT);
            let text = path_rules(&name, host, first..end, "app");
            (name, text)
        });
        for (name, text) in documents {
            live.put(&name, &text).await;
        }
        live.until_answer(host, &numbered_path(0), 200).await;
        live.until_answer(host, &numbered_path(rules - 1), 200).await;
    }
    live.until_quiet().await;
    report.add("match_rules", "rules", many as f64);
    // The last one is a prefix, and Envoy's table has those after exact paths, in the order of the documents.
    let last = |(host, rules): (&'static str, usize)| requests([(host, numbered_path(rules - 1))]);
    let spread = |(host, rules): (&'static str, usize)| {
        requests((0..rules).map(move |rule| (host, numbered_path(rule))))
    };
    let (envoy, port) = (live.envoy_pid(), live.client.port());
    let both = async |requests: &dyn Fn((&'static str, usize)) -> Requests| {
        [
            Load::open(envoy, port, requests(FEW)).await,
            Load::open(envoy, port, requests((MANY, many))).await,
        ]
    };
    let (mut last, mut spread) = (both(&last).await, both(&spread).await);
    let time = Duration::from_millis(if plan.quick { 500 } else { 3_000 });
    for sides in [&mut last, &mut spread] {
        beside(sides, time / 5, report).await;
    }
    for _ in 0..ROUNDS {
        let mut growth: f64 = 0.0;
        for (sides, name) in [(&mut last, "last"), (&mut spread, "spread")] {
            let [few, many] = beside(sides, time, report).await;
            report.add_over(&format!("match_{name}_us_{label}"), "us CPU", many, few);
            growth = growth.max(many / few);
        }
        report.add("match_growth", "ratio", growth);
    }
}
