//! The unit of work is one virtual host or one service: a change costs the same among a thousand and ten thousand.

use portreeve::envoy::{ResourceKind, render_resource};
use portreeve::model::{Health, ServiceQuery};
use portreeve::snapshot::Snapshot;
use portreeve::translate::{Compiled, Compiler};

use super::world;

/// One document for the gateway, one for each host with its own service.
fn big_world(hosts: usize) -> Snapshot {
    let mut snapshot = world::empty();
    let gateway = "gateway \"edge\" {\n  listener \"web\" {\n    port = 8080\n  }\n}\n";
    let routes = (0..hosts).map(|number| world::kv(&format!("routes/{number}"), 2, &route(number, "/")));
    world::put(
        &mut snapshot,
        std::iter::once(world::kv("gateway", 1, gateway)).chain(routes),
    );
    for number in 0..hosts {
        let query = ServiceQuery::named(&format!("service-{number}"));
        let one = world::instance("i", 1, "10.0.0.1", Health::Passing);
        world::answer_service(&mut snapshot, &query, vec![one]);
    }
    snapshot
}

fn route(number: usize, prefix: &str) -> String {
    format!(
        "http_route \"route-{number}\" {{\n  gateways = [\"edge\"]\n  hostnames = [\"host-{number}.test\"]\n  rule \"all\" {{\n    match {{ path_prefix = \"{prefix}\" }}\n    backend \"consul\" \"service-{number}\" {{}}\n  }}\n}}\n"
    )
}

/// Units of: a changed route, a route to a new service, a changed endpoint, an equal answer, an upstream nobody uses.
fn costs(hosts: usize) -> Vec<usize> {
    let mut snapshot = big_world(hosts);
    let mut compiler = Compiler::compile("edge", world::settings(), &snapshot);
    assert_eq!(compiler.services().len(), hosts);
    let mut costs = Vec::new();
    let mut count = |compiled: Compiled, changed: bool| {
        assert_eq!(compiled.changed, changed);
        costs.push(compiled.units);
    };
    let changes = world::put(&mut snapshot, [world::kv("routes/7", 2, &route(7, "/new"))]);
    count(compiler.update(&snapshot, &changes), true);
    let moved = route(8, "/").replace("service-8", "service-new");
    let changes = world::put(&mut snapshot, [world::kv("routes/8", 2, &moved)]);
    count(compiler.update(&snapshot, &changes), true);
    for (address, changed) in [("10.0.0.2", true), ("10.0.0.2", false)] {
        let query = ServiceQuery::named("service-9");
        let one = world::instance("i", 1, address, Health::Passing);
        let changes = world::answer_service(&mut snapshot, &query, vec![one]);
        count(compiler.update(&snapshot, &changes), changed);
    }
    let alone = "upstream \"alone\" {\n  static { addresses = [\"10.9.9.9:80\"] }\n}\n";
    let changes = world::put(&mut snapshot, [world::kv("alone", 9, alone)]);
    count(compiler.update(&snapshot, &changes), false);
    costs
}

#[test]
fn one_change_costs_its_own_units() {
    let (thousand, ten_thousand) = (costs(1_000), costs(10_000));
    println!("units of one change at 1,000 objects: {thousand:?}; at 10,000: {ten_thousand:?}");
    assert_eq!(thousand, ten_thousand);
    assert_eq!(thousand, [1, 3, 1, 0, 1]);
}

/// While the host waits for the new watch, the old cluster stands; the answer brings the new one, not its instances alone.
#[test]
fn an_upstream_that_moves_to_a_new_watch_gets_its_new_cluster() {
    let text = |source: &str| {
        format!(
            "gateway \"edge\" {{\n  listener \"web\" {{\n    port = 8080\n  }}\n}}\n\
             upstream \"shop\" {{\n  {source}\n}}\n\
             http_route \"shop\" {{\n  gateways  = [\"edge\"]\n  hostnames = [\"shop.test\"]\n\n  rule \"all\" {{\n    \
             backend \"upstream\" \"shop\" {{}}\n  }}\n}}\n"
        )
    };
    let mut snapshot = world::empty();
    let fixed = text("static { addresses = [\"10.0.0.1:80\"] }");
    world::put(&mut snapshot, [world::file("shop.hcl", &fixed)]);
    let mut compiler = Compiler::compile("edge", world::holding(), &snapshot);
    let watched = text("consul { service = \"shop\" }");
    let changes = world::put(&mut snapshot, [world::file("shop.hcl", &watched)]);
    compiler.update(&snapshot, &changes);
    assert!(compiler.is_waiting(), "the host waits for the watch");
    let one = world::instance("i", 1, "10.0.0.2", Health::Passing);
    let changes = world::answer_service(&mut snapshot, &ServiceQuery::named("shop"), vec![one]);
    compiler.update(&snapshot, &changes);
    let fresh = Compiler::compile("edge", world::holding(), &snapshot);
    let cluster = |compiler: &Compiler| {
        let set = compiler.resources();
        render_resource(set.get(ResourceKind::Cluster, "upstream/shop").unwrap())
    };
    assert_eq!(cluster(&compiler), cluster(&fresh));
    assert_eq!(cluster(&compiler)["type"], "EDS");
}

/// One line of a big document changes: its own host is remade, the others are not looked at.
#[test]
fn a_big_document_costs_what_changed_in_it() {
    let all = |prefix: &str| -> String {
        let routes = (0..500).map(|number| route(number, if number == 499 { prefix } else { "/" }));
        "gateway \"edge\" {\n  listener \"web\" {\n    port = 8080\n  }\n}\n".to_owned()
            + &routes.collect::<String>()
    };
    let mut snapshot = world::empty();
    world::put(&mut snapshot, [world::kv("all", 1, &all("/"))]);
    world::answer_all(&mut snapshot, "edge");
    let mut compiler = Compiler::compile("edge", world::settings(), &snapshot);
    let changes = world::put(&mut snapshot, [world::kv("all", 1, &all("/new"))]);
    assert_eq!(compiler.update(&snapshot, &changes).units, 1);
}

/// Gateway and routes of `opening`: each host has a service of its own, and its listener.
fn opening(listeners: &[(&str, u16)]) -> String {
    let blocks = listeners.iter();
    let blocks: String = blocks
        .map(|(name, port)| format!("  listener \"{name}\" {{\n    port = {port}\n  }}\n"))
        .collect();
    let routes = [("a", "web"), ("b", "more"), ("c", "more")].map(|(host, listener)| {
        format!(
            "http_route \"{host}\" {{\n  gateways  = [\"edge\"]\n  listeners = [\"{listener}\"]\n  hostnames = [\"{host}.test\"]\n\n  \
             rule \"all\" {{\n    backend \"consul\" \"{host}\" {{}}\n  }}\n}}\n"
        )
    });
    format!("gateway \"edge\" {{\n{blocks}}}\n{}", routes.concat())
}

fn answer(snapshot: &mut Snapshot, compiler: &mut Compiler, service: &str) {
    let one = world::instance("i", 1, "10.0.0.1", Health::Passing);
    let changes = world::answer_service(snapshot, &ServiceQuery::named(service), vec![one]);
    compiler.update(snapshot, &changes);
}

fn change(snapshot: &mut Snapshot, compiler: &mut Compiler, text: &str) {
    let changes = world::put(snapshot, [world::file("edge.hcl", text)]);
    compiler.update(snapshot, &changes);
}

fn listeners(compiler: &Compiler) -> Vec<&str> {
    let listeners = compiler.resources().of_kind(ResourceKind::Listener);
    listeners.keys().map(|name| &**name).collect()
}

/// With the listener `web`, which is open.
fn web_alone() -> (Snapshot, Compiler) {
    let mut snapshot = world::empty();
    world::put(
        &mut snapshot,
        [world::file("edge.hcl", &opening(&[("web", 8080)]))],
    );
    world::answer_all(&mut snapshot, "edge");
    let compiler = Compiler::compile("edge", world::holding(), &snapshot);
    (snapshot, compiler)
}

const BOTH: &[(&str, u16)] = &[("web", 8080), ("more", 8081)];

#[test]
fn a_new_listener_waits_for_its_hosts_that_are_held_back() {
    let (mut snapshot, mut compiler) = web_alone();
    change(&mut snapshot, &mut compiler, &opening(BOTH));
    assert_eq!(listeners(&compiler), ["web"]);
    answer(&mut snapshot, &mut compiler, "b");
    assert_eq!(listeners(&compiler), ["web"]);
    answer(&mut snapshot, &mut compiler, "c");
    assert!(!compiler.is_waiting());
    assert_eq!(listeners(&compiler), ["more", "web"]);
    // One that is open is not closed for the sake of a new host.
    let another = opening(BOTH).replace("\"consul\" \"b\"", "\"consul\" \"other\"")
        + &route(1, "/").replace("listener", "more");
    change(&mut snapshot, &mut compiler, &another);
    assert!(compiler.is_waiting());
    assert_eq!(listeners(&compiler), ["more", "web"]);
}

#[test]
fn a_new_listener_waits_no_longer_than_its_hosts() {
    let (mut snapshot, mut compiler) = web_alone();
    change(&mut snapshot, &mut compiler, &opening(BOTH));
    let began = compiler.held().clone();
    assert_eq!(began.len(), 2);
    // A host that comes later has its own patience, and the listener none for it.
    let later = opening(BOTH) + &route(1, "/");
    change(&mut snapshot, &mut compiler, &later);
    assert_eq!(listeners(&compiler), ["web"]);
    compiler.release(&snapshot, &began);
    assert!(compiler.is_waiting());
    assert_eq!(listeners(&compiler), ["more", "web"]);
}

#[test]
fn a_listener_that_goes_while_it_waits_begins_anew() {
    let (mut snapshot, mut compiler) = web_alone();
    for _ in 0..2 {
        change(&mut snapshot, &mut compiler, &opening(BOTH));
        assert_eq!(listeners(&compiler), ["web"]);
        change(&mut snapshot, &mut compiler, &opening(&[("web", 8080)]));
        assert!(!compiler.is_waiting());
        assert_eq!(listeners(&compiler), ["web"]);
    }
}

/// The port is open, and would be closed for all of its hosts.
#[test]
fn a_listener_that_takes_over_a_port_waits_for_no_host() {
    let (mut snapshot, mut compiler) = web_alone();
    change(&mut snapshot, &mut compiler, &opening(&[("more", 8080)]));
    assert!(compiler.is_waiting());
    assert_eq!(listeners(&compiler), ["more"]);
}
