//! The benchmark suite: what Portreeve does, beside the least that the same machine needs in the same run.
//!
//! `make bench` runs three rounds, `make bench-quick` one with small sizes. Nothing here asserts a time; statuses are
//! asserted. The program starts itself again as the measured server ([`child`]), so that clients' CPU is not counted.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../xds/envoy/resources.rs"]
#[expect(
    dead_code,
    reason = "written for the tests of xDS; the suite needs a part of it"
)]
mod canned;
#[path = "../support/mod.rs"]
mod support;

mod ads_client;
mod child;
mod clock;
mod cold_start;
mod config_overhead;
mod endpoint_change;
mod fanout;
mod floor;
mod large_catalog;
mod live;
mod load;
mod one_change;
mod path_rules;
mod plan;
mod reconnect;
mod report;
mod route_change;
mod servers;
mod synthetic;
mod translate;

use std::process::ExitCode;

/// As in the program.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

use plan::Plan;
use report::Report;

/// One group of rows.
type Group = fn(&Plan, &mut Report);

const GROUPS: [(&str, Group); 9] = [
    ("translate", translate::run),
    ("fanout", fanout::run),
    ("reconnect", reconnect::run),
    ("endpoint", endpoint_change::run),
    ("route", route_change::run),
    ("path-rules", path_rules::run),
    ("config-overhead", config_overhead::run),
    ("catalog", large_catalog::run),
    ("cold-start", cold_start::run),
];

fn main() -> ExitCode {
    support::http::install_tls_provider();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|one| one != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--serve-ads", socket, services] => {
            servers::ads(socket, services.parse().unwrap());
            return ExitCode::SUCCESS;
        }
        ["--serve-raw", socket, bytes] => {
            servers::raw(socket, bytes.parse().unwrap());
            return ExitCode::SUCCESS;
        }
        ["--one-change", objects, times] => {
            one_change::run(objects.parse().unwrap(), times.parse().unwrap());
            return ExitCode::SUCCESS;
        }
        ["--merge", name, value] => {
            report::merge(name, value.parse().unwrap());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let plan = match Plan::parse(&words, &GROUPS.map(|(name, _)| name)) {
        Ok(plan) => plan,
        Err(failure) => {
            eprintln!("bench: {failure}");
            return ExitCode::from(2);
        }
    };
    let mut report = Report::default();
    for (name, run) in GROUPS {
        if plan.wants(name) {
            let started = std::time::Instant::now();
            eprintln!("bench: {name} ...");
            run(&plan, &mut report);
            eprintln!("bench: {name} took {:.0} s", started.elapsed().as_secs_f32());
        }
    }
    report.print();
    report.write(plan.is_partial());
    if let Some(failure) = report.failure() {
        eprintln!("bench: FAILED: {failure}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
