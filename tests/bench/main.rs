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
mod kept;
mod large_catalog;
mod live;
mod load;
mod memory;
mod one_change;
mod path_rules;
mod peers;
mod plan;
mod plots;
mod reconnect;
mod report;
mod route_change;
mod servers;
mod synthetic;
mod translate;

use std::process::ExitCode;

use kept::Kept;
use plan::Plan;
use report::Report;

/// As in the program.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Rows that are measured together, under a name that `--only` takes.
struct Group {
    name: &'static str,
    run: fn(&Plan, &mut Report),
    /// Too long for every run: `--full`, or by its name.
    long: bool,
}

const fn each(name: &'static str, run: fn(&Plan, &mut Report)) -> Group {
    let long = false;
    Group { name, run, long }
}

const fn long(name: &'static str, run: fn(&Plan, &mut Report)) -> Group {
    let long = true;
    Group { name, run, long }
}

const GROUPS: [Group; 14] = [
    each("translate", translate::run),
    each("fanout", fanout::run),
    each("reconnect", reconnect::run),
    each("endpoint", endpoint_change::run),
    each("route", route_change::run),
    each("path-rules", path_rules::run),
    each("config-overhead", config_overhead::run),
    each("catalog", large_catalog::run),
    each("cold-start", cold_start::run),
    long("fanout-10k", fanout::run_long),
    long("memory-100k", memory::run),
    long("route-100k", route_change::run_long),
    each("peer-consul", peers::consul_alone),
    long("peers", peers::run),
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
        ["--translate-one", objects, times] => {
            one_change::run_translate(objects.parse().unwrap(), times.parse().unwrap());
            return ExitCode::SUCCESS;
        }
        ["--has", name] => {
            let has = kept::has_row(name, &kept::build());
            return if has { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        ["--merge", name, value] => {
            kept::merge(name, value.parse().unwrap(), &kept::build());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let plan = match Plan::parse(&words, &GROUPS.map(|group| group.name)) {
        Ok(plan) => plan,
        Err(failure) => {
            eprintln!("bench: {failure}");
            return ExitCode::from(2);
        }
    };
    let begun = std::time::Instant::now();
    let build = kept::build();
    let mut kept = Kept::read(plan.quick);
    if !plan.is_partial() {
        kept = kept.of_build(&build);
    }
    let mut report = Report::over(kept, build.clone());
    let groups: Vec<&Group> = GROUPS
        .iter()
        .filter(|group| plan.wants(group.name, group.long))
        .collect();
    for (at, group) in groups.iter().enumerate() {
        let place = format!("bench: {} ({} of {})", group.name, at + 1, groups.len());
        if plan.goes_on() && report.kept().has(group.name, &build) {
            eprintln!("{place}: measured by this build already, --again measures anew");
            continue;
        }
        let started = std::time::Instant::now();
        eprintln!("{place} ...");
        report.begin(group.name);
        (group.run)(&plan, &mut report);
        let took = started.elapsed();
        report.end(took);
        eprintln!("{place} took {:.0} s", took.as_secs_f32());
    }
    // A part says nothing of how long the whole takes.
    if !plan.is_partial() {
        let names: Vec<&str> = groups.iter().map(|group| group.name).collect();
        report.run_is_over(&names);
    }
    eprintln!("bench: all took {:.0} s", begun.elapsed().as_secs_f32());
    report.print();
    plots::draw(report.kept());
    if let Some(failure) = report.failure() {
        eprintln!("bench: FAILED: {failure}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// As the agent has on two cores.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}
