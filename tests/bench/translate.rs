//! Snapshot to ResourceSet, on one core: resolve, translate, encode. Parsing HCL has rows of its own.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::google::protobuf::Any;
use portreeve::envoy::{Resource, ResourceKind, ResourceSet};
use portreeve::snapshot::Changes;
use portreeve::translate::Compiler;
use prost::Message as _;

use crate::Plan;
use crate::clock::{cpu_of, microseconds, milliseconds};
use crate::one_change::{self, Kind, World};
use crate::report::Report;
use crate::synthetic::{Size, answer, documents, empty, service_name, settings};

const CHANGES: usize = 200;

pub fn run(plan: &Plan, report: &mut Report) {
    let sizes: &[(usize, &str)] = if plan.quick {
        &[(1_000, "1k"), (10_000, "10k")]
    } else {
        &[(1_000, "1k"), (10_000, "10k"), (100_000, "100k")]
    };
    for _ in 0..plan.rounds {
        for (routes, label) in sizes {
            whole(report, *routes, label);
        }
        services(report, if plan.quick { 1_000 } else { 10_000 });
        for (objects, label) in [(1_000, "1k"), (10_000, "10k")] {
            pipeline(report, objects, label);
        }
    }
}

fn whole(report: &mut Report, routes: usize, label: &str) {
    let size = Size::of_routes(routes);
    let texts = size.documents();
    let bytes: usize = texts.iter().map(|document| document.text.len()).sum();
    let count = texts.len() as f64;
    let mut snapshot = empty();
    let (parse, _) = cpu_of(|| snapshot.apply(documents(texts)));
    for answer in size.answers() {
        snapshot.apply(answer);
    }
    if routes == 10_000 {
        report.add("parse_documents_per_s", "docs/s", count / parse.as_secs_f64());
        report.add(
            "parse_mib_per_s",
            "MiB/s",
            bytes as f64 / 1_048_576.0 / parse.as_secs_f64(),
        );
    }
    let (time, mut compiler) = cpu_of(|| Compiler::compile("edge", settings(), &snapshot));
    assert!(compiler.resources().len() > size.hosts, "nothing was compiled");
    let floor = least(compiler.resources());
    let name = format!("translate_{label}_ms");
    report.add_over(&name, "ms CPU", milliseconds(time), milliseconds(floor));
    if routes == 10_000 {
        report.add_over(
            "translate_routes_per_s_core",
            "routes/s",
            routes as f64 / time.as_secs_f64(),
            routes as f64 / floor.as_secs_f64(),
        );
    }
    let floor = microseconds(floor) / compiler.resources().len() as f64;
    let (mut route_time, mut endpoint_time, mut units) = (0.0, 0.0, [0, 0]);
    let step = (size.hosts / CHANGES).max(1);
    for change in 0..CHANGES {
        let host = change * step % size.hosts;
        let changes = snapshot.apply(documents(vec![size.route(host, change + 1)]));
        route_time += one(&mut compiler, &snapshot, &changes, &mut units[0]);
        let service = service_name(host % size.services);
        let changes = snapshot.apply(answer(&service, size.instances, change + 1));
        endpoint_time += one(&mut compiler, &snapshot, &changes, &mut units[1]);
    }
    let each = CHANGES as f64;
    let name = format!("translate_one_us_{label}");
    report.add_over(&name, "us CPU", route_time / each, floor);
    let name = format!("translate_one_endpoint_us_{label}");
    report.add_over(&name, "us CPU", endpoint_time / each, floor);
    report.add(
        &format!("translate_one_units_{label}"),
        "units",
        units[0] as f64 / each,
    );
    report.add(
        &format!("translate_one_endpoint_units_{label}"),
        "units",
        units[1] as f64 / each,
    );
    if label == "10k" {
        report.add_over("translate_one_us", "us CPU", route_time / each, floor);
    }
}

fn one(
    compiler: &mut Compiler,
    snapshot: &portreeve::snapshot::Snapshot,
    changes: &Changes,
    units: &mut usize,
) -> f64 {
    // What was published shares structure with the set that changes, as in the agent.
    let published = compiler.resources().clone();
    let (time, compiled) = cpu_of(|| compiler.update(snapshot, changes));
    assert!(compiled.changed, "a change changed nothing");
    drop(published);
    *units += compiled.units;
    microseconds(time)
}

fn services(report: &mut Report, services: usize) {
    let snapshot = Size::of_services(services, 10).snapshot();
    let (time, compiler) = cpu_of(|| Compiler::compile("edge", settings(), &snapshot));
    assert!(compiler.resources().len() > 3 * services, "nothing was compiled");
    let label = if services == 10_000 { "10k" } else { "1k" };
    let floor = milliseconds(least(compiler.resources()));
    report.add_over(
        &format!("translate_{label}_services_ms"),
        "ms CPU",
        milliseconds(time),
        floor,
    );
}

/// The least that publishing a set takes: the finished messages hashed, framed and put into an empty set.
fn least(set: &ResourceSet) -> Duration {
    let messages: Vec<(ResourceKind, Arc<str>, Vec<u8>)> = ResourceKind::ALL
        .into_iter()
        .flat_map(|kind| set.of_kind(kind).values())
        .map(|resource| {
            let any = resource.any_bytes().expect("its bytes are here").clone();
            let message = Any::decode(any).expect("an Any").value;
            (resource.kind, resource.name.clone(), message)
        })
        .collect();
    let (time, again) = cpu_of(|| {
        let mut again = ResourceSet::default();
        for (kind, name, message) in &messages {
            again.insert(Arc::new(Resource::new(*kind, name.clone(), message)));
        }
        again
    });
    assert_eq!(again.len(), set.len());
    time
}

/// The same through the pipeline: parse, apply, compile, renew the watches, publish.
fn pipeline(report: &mut Report, objects: usize, label: &str) {
    for kind in one_change::KINDS {
        let mut world = match kind {
            Kind::Certificate => World::of_certificates(objects),
            _ => World::of_services(objects),
        };
        let (time, ()) = cpu_of(|| one_change::measured_change(&mut world, kind, CHANGES));
        report.add(
            &format!("pipeline_{}_us_{label}", kind.as_str()),
            "us CPU",
            microseconds(time) / CHANGES as f64,
        );
    }
}
