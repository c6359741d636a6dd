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

mod child;
mod clock;
mod endpoint_change;
mod fanout;
mod floor;
mod large_catalog;
mod live;
mod one_change;
mod report;
mod route_change;
mod servers;
mod synthetic;
mod translate;

use std::process::ExitCode;

use report::Report;

pub struct Plan {
    pub quick: bool,
    pub rounds: usize,
    only: Option<String>,
}

impl Plan {
    fn wants(&self, group: &str) -> bool {
        self.only
            .as_deref()
            .is_none_or(|only| only.split(',').any(|one| one == group))
    }
}

/// One group of rows.
type Group = fn(&Plan, &mut Report);

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
    let value_of = |flag: &str| {
        let at = words.iter().position(|word| *word == flag)?;
        words.get(at + 1).map(|value| (*value).to_owned())
    };
    let quick = words.contains(&"--quick");
    let plan = Plan {
        quick,
        rounds: value_of("--rounds").map_or(if quick { 1 } else { 3 }, |rounds| rounds.parse().unwrap()),
        only: value_of("--only"),
    };
    let mut report = Report::default();
    let groups: [(&str, Group); 5] = [
        ("translate", translate::run),
        ("fanout", fanout::run),
        ("endpoint", endpoint_change::run),
        ("route", route_change::run),
        ("catalog", large_catalog::run),
    ];
    for (name, run) in groups {
        if plan.wants(name) {
            let started = std::time::Instant::now();
            eprintln!("bench: {name} ...");
            run(&plan, &mut report);
            eprintln!("bench: {name} took {:.0} s", started.elapsed().as_secs_f32());
        }
    }
    report.print();
    report.write(plan.only.is_some());
    if let Some(failure) = report.failure() {
        eprintln!("bench: FAILED: {failure}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
