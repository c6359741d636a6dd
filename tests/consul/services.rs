//! The service watch on a real Consul: health, weights, rights lost, places that run out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::OrdMap;
use portreeve::model::{Health, Instance, Lookup, Narrowing, ProblemKind, ServiceQuery};
use portreeve::sources::consul::{ConsulClient, ServiceWatcher, service_names};
use serde_json::json;

use crate::server::{Running, Server, quick};

const READ: &str = "service_prefix \"\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" }";

fn watch(client: ConsulClient, names: &[&str]) -> (Running, ServiceWatcher) {
    let (mut running, sender) = Running::new();
    let (watcher, task) = ServiceWatcher::new(client, sender);
    running
        .tasks
        .spawn(task.with_timing(quick()).run(running.cancel.clone()));
    watcher.set_interests(queries(names));
    (running, watcher)
}

fn queries(names: &[&str]) -> OrdMap<ServiceQuery, u64> {
    names
        .iter()
        .map(|name| (ServiceQuery::named(name), 0u64))
        .collect()
}

impl Running {
    async fn instances(&mut self) -> Arc<[Instance]> {
        let update = self.service().await;
        update
            .result
            .unwrap_or_else(|problem| panic!("{}: {problem:?}", update.query))
    }

    async fn problem(&mut self) -> portreeve::model::Problem {
        match self.service().await.result {
            Err(problem) => problem,
            Ok(instances) => panic!("{instances:?}"),
        }
    }
}

fn ids(instances: &[Instance]) -> Vec<&str> {
    instances.iter().map(|instance| &*instance.id).collect()
}

/// Tags and metadata say what a service asks for. Where nothing may ask, they are not kept, and wake nobody.
#[tokio::test]
async fn labels_are_kept_where_services_may_expose_themselves() {
    let server = Server::start().await;
    let register = async |tag: &str, port: u16| {
        server
            .put(
                "agent/service/register",
                json!({ "Name": "web", "Port": port, "Tags": [tag], "Meta": { "k": tag } }),
            )
            .await;
    };
    register("v1", 1).await;
    let (mut without, _watcher) = watch(server.client(None), &["web"]);
    let (mut with, sender) = Running::new();
    let (watcher, task) = ServiceWatcher::with_labels(server.client(None), sender);
    with.tasks
        .spawn(task.with_timing(quick()).run(with.cancel.clone()));
    let narrowed = Narrowing {
        filter: Some("Service.Port != 0".into()),
        ..Narrowing::default()
    };
    let narrowed = ServiceQuery::new(Lookup::Service, "web".into(), narrowed);
    watcher.set_interests(queries(&["web"]).update(narrowed.clone(), 0));
    let labels = |instances: &[Instance]| instances[0].tags.len() + instances[0].meta.len();
    assert_eq!(labels(&without.instances().await), 0);
    for _ in 0..2 {
        let update = with.service().await;
        let kept = labels(&update.result.unwrap());
        // A service exposes itself under its name alone.
        assert_eq!(kept, if update.query == narrowed { 0 } else { 2 });
    }
    register("v2", 1).await;
    let instances = with.instances().await;
    assert_eq!((&*instances[0].tags[0], &*instances[0].meta["k"]), ("v2", "v2"));
    // The next that the others hear is another port.
    register("v3", 2).await;
    assert_eq!(without.instances().await[0].port, 2);
}

#[tokio::test]
async fn instances_health_weights_and_maintenance() {
    let server = Server::start().await;
    server
        .put(
            "agent/service/register",
            json!({ "Name": "web", "ID": "web-1", "Address": "10.0.0.1", "Port": 80, "Tags": ["v1"], "Meta": { "k": "v" },
                "Weights": { "Passing": 10, "Warning": 2 }, "Check": { "CheckID": "c", "TTL": "1h", "Status": "passing" } }),
        )
        .await;
    server
        .put(
            "agent/service/register",
            json!({ "Name": "web", "ID": "web-2", "Port": 81 }),
        )
        .await;
    let (mut running, watcher) = watch(server.client(None), &["web"]);
    let instances = running.instances().await;
    assert_eq!(ids(&instances), ["web-1", "web-2"]);
    assert_eq!(
        (instances[0].weights.passing, instances[0].weights.warning),
        (10, 2)
    );
    assert_eq!(
        (&*instances[1].address, instances[1].port),
        ("127.0.0.1", 81),
        "the node's address"
    );

    // A pause of ours would slow each of them; a busy machine does not.
    let mut fastest = Duration::MAX;
    for (turned, health) in [
        ("warn", Health::Warning),
        ("pass", Health::Passing),
        ("warn", Health::Warning),
    ] {
        let started = Instant::now();
        server.put(&format!("agent/check/{turned}/c"), "").await;
        assert_eq!(running.instances().await[0].health, health);
        fastest = fastest.min(started.elapsed());
    }
    assert!(fastest < Duration::from_millis(500), "{fastest:?}");
    server.put("agent/check/fail/c", "").await;
    assert_eq!(running.instances().await[0].health, Health::Critical);
    server
        .put("agent/service/maintenance/web-2?enable=true", "")
        .await;
    assert_eq!(running.instances().await[1].health, Health::Maintenance);
    server
        .put("agent/service/maintenance/web-2?enable=false", "")
        .await;
    running.instances().await;

    // Another service's registration wakes nobody here; the last instance's end is an answer.
    server.register("other", "o", 1).await;
    running.quiet_for(300).await;
    server.put("agent/service/deregister/web-1", "").await;
    assert_eq!(running.instances().await.len(), 1);
    server.put("agent/service/deregister/web-2", "").await;
    assert!(running.instances().await.is_empty());
    let health = watcher.health();
    assert!(
        health.len() == 1 && health[0].1.ok && health[0].1.wakeups_total >= 5,
        "{health:?}"
    );
}

#[tokio::test]
async fn interests_start_and_stop_watches() {
    let server = Server::start().await;
    for name in ["a", "b"] {
        server.register(name, name, 1).await;
    }
    let (mut running, watcher) = watch(server.client(None), &["a", "absent"]);
    let mut first = BTreeSet::new();
    for _ in 0..2 {
        let update = running.service().await;
        first.insert((update.query.name.to_string(), update.result.unwrap().len()));
    }
    assert_eq!(
        first,
        BTreeSet::from([("a".to_owned(), 1), ("absent".to_owned(), 0)])
    );
    watcher.set_interests(queries(&["b"]));
    let update = running.service().await;
    assert_eq!((&*update.query.name, update.result.unwrap().len()), ("b", 1));
    server.register("a", "a2", 2).await;
    running.quiet_for(400).await;
    assert_eq!(watcher.health().len(), 1);
    watcher.set_interests(queries(&["a", "b"]));
    assert_eq!(ids(&running.instances().await), ["a", "a2"]);
}

#[tokio::test]
async fn lost_rights_keep_the_endpoints() {
    let server = Server::start_with_acls().await;
    server.register("web", "web-1", 80).await;
    server.policy("reader", READ).await;
    let (accessor, secret) = server.token("reader").await;
    let (mut running, _watcher) = watch(server.client(Some(&secret)), &["web"]);
    assert_eq!(ids(&running.instances().await), ["web-1"]);
    let mut port = 80;
    for rules in [
        "",
        "service_prefix \"\" { policy = \"read\" }",
        "node_prefix \"\" { policy = \"read\" }",
    ] {
        server.policy("reader", rules).await;
        // Something must wake the poll: rights alone do not.
        port += 1;
        server.register("web", "web-1", port).await;
        let problem = running.problem().await;
        assert_eq!(problem.kind, ProblemKind::MissingPermission, "{rules}: {problem}");
        assert!(
            problem.message.contains("kept") && problem.fix.is_some(),
            "{problem:?}"
        );
        running.quiet_for(700).await;
        server.policy("reader", READ).await;
        assert_eq!(running.instances().await[0].port, port, "{rules}");
    }
    // With all rights, an end is an end.
    server.put("agent/service/deregister/web-1", "").await;
    assert!(running.instances().await.is_empty());
    server.register("web", "web-1", 90).await;
    assert_eq!(running.instances().await.len(), 1);

    server.delete(&format!("acl/token/{accessor}")).await;
    server.register("web", "web-1", 91).await;
    let mut update = running.service().await;
    if update.result.is_ok() {
        server.register("web", "web-1", 92).await;
        update = running.service().await;
    }
    assert_eq!(update.result.unwrap_err().kind, ProblemKind::TokenNotAccepted);
}

#[tokio::test]
async fn without_coordinates_the_loss_of_all_nodes_is_still_seen() {
    let server = Server::start_with(true, "disable_coordinates = true").await;
    server.register("web", "web-1", 80).await;
    server.policy("reader", READ).await;
    let (_, secret) = server.token("reader").await;
    let (mut running, _watcher) = watch(server.client(Some(&secret)), &["web"]);
    running.instances().await;
    server
        .policy("reader", "service_prefix \"\" { policy = \"read\" }")
        .await;
    server.register("web", "web-1", 81).await;
    assert_eq!(running.problem().await.kind, ProblemKind::MissingPermission);
    server.policy("reader", READ).await;
    assert_eq!(running.instances().await[0].port, 81);
    server.put("agent/service/deregister/web-1", "").await;
    assert!(running.instances().await.is_empty());
}

#[tokio::test]
async fn rights_that_come_back_while_a_poll_runs_do_not_empty_the_endpoints() {
    let server = Server::start_with_acls().await;
    server.register("web", "web-1", 80).await;
    server.policy("reader", READ).await;
    let (_, secret) = server.token("reader").await;
    let (mut running, _watcher) = watch(server.client(Some(&secret)), &["web"]);
    running.instances().await;
    for round in 0..8 {
        server.policy("reader", "").await;
        server.register("web", "web-1", 81 + round).await;
        assert_eq!(running.problem().await.kind, ProblemKind::MissingPermission);
        // Somewhere within a poll that began without rights and will run out with what it saw then.
        tokio::time::sleep(Duration::from_millis(500 + 130 * u64::from(round))).await;
        server.policy("reader", READ).await;
        assert_eq!(running.instances().await[0].port, 81 + round);
    }
}

#[tokio::test]
async fn a_part_of_the_nodes_out_of_sight_is_kept_and_a_removed_node_is_not() {
    let server = Server::start_with_acls().await;
    server.register("web", "web-1", 80).await;
    for node in ["x1", "x2"] {
        server.register_on(node, "web", 80).await;
    }
    server.policy("reader", READ).await;
    let (_, secret) = server.token("reader").await;
    let (mut running, _watcher) = watch(server.client(Some(&secret)), &["web"]);
    assert_eq!(running.instances().await.len(), 3);
    server
        .policy(
            "reader",
            "service_prefix \"\" { policy = \"read\" } node \"n1\" { policy = \"read\" }",
        )
        .await;
    server.register("web", "web-1", 81).await;
    assert_eq!(running.problem().await.kind, ProblemKind::MissingPermission);
    server.policy("reader", READ).await;
    assert_eq!(running.instances().await.len(), 3);
    server.put("catalog/deregister", json!({ "Node": "x1" })).await;
    let left = running.instances().await;
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|instance| &*instance.node != "x1"));
}

#[tokio::test]
async fn no_rights_at_start_is_not_no_instances() {
    let server = Server::start_with_acls().await;
    server.register("web", "web-1", 80).await;
    for rules in [
        "",
        "service_prefix \"\" { policy = \"read\" }",
        "node_prefix \"\" { policy = \"read\" }",
    ] {
        server.policy("poor", rules).await;
        let (_, secret) = server.token("poor").await;
        let (mut running, _watcher) = watch(server.client(Some(&secret)), &["web"]);
        let problem = running.problem().await;
        assert_eq!(problem.kind, ProblemKind::MissingPermission, "{rules}");
        server.policy("poor", READ).await;
        assert_eq!(running.instances().await.len(), 1, "{rules}");
    }
    // A token that sees only its own nodes sees that a service has no instance.
    server
        .policy(
            "own",
            "service_prefix \"\" { policy = \"read\" } node \"n1\" { policy = \"read\" }",
        )
        .await;
    let (_, secret) = server.token("own").await;
    let (mut running, _watcher) = watch(server.client(Some(&secret)), &["absent"]);
    assert!(running.instances().await.is_empty());
}

#[tokio::test]
async fn a_bad_filter_and_an_unknown_datacenter_say_so() {
    let server = Server::start().await;
    let (mut running, watcher) = watch(server.client(None), &[]);
    let web = |narrowing| ServiceQuery::new(Lookup::Service, "web".into(), narrowing);
    let filtered = web(Narrowing {
        filter: Some("Nonsense == 1".into()),
        ..Narrowing::default()
    });
    watcher.set_interests(OrdMap::unit(filtered, 0));
    let problem = running.problem().await;
    assert_eq!(problem.kind, ProblemKind::Refused, "{problem}");
    let elsewhere = web(Narrowing {
        datacenter: Some("dc9".into()),
        ..Narrowing::default()
    });
    watcher.set_interests(OrdMap::unit(elsewhere, 0));
    let problem = running.problem().await;
    assert!(problem.message.contains("No path to datacenter"), "{problem}");

    server.register("web", "web-1", 80).await;
    let none = web(Narrowing {
        filter: Some("\"v2\" in Service.Tags".into()),
        ..Narrowing::default()
    });
    watcher.set_interests(OrdMap::unit(none, 0));
    assert!(running.instances().await.is_empty());
    server
        .put(
            "agent/service/register",
            json!({ "Name": "web", "ID": "web-2", "Port": 1, "Tags": ["v2"] }),
        )
        .await;
    assert_eq!(ids(&running.instances().await), ["web-2"]);
}

/// Consul asks for no right on the query itself, but shows of what it finds only what the token may see.
#[tokio::test]
async fn a_prepared_query_is_executed_and_what_vanishes_is_doubted() {
    let server = Server::start_with_acls().await;
    server.register("web", "web-1", 80).await;
    server.policy("reader", READ).await;
    let (_, secret) = server.token("reader").await;
    let (mut running, watcher) = watch(server.client(Some(&secret)), &[]);
    let query = ServiceQuery::new(Lookup::PreparedQuery, "nearest".into(), Narrowing::default());
    watcher.set_interests(OrdMap::unit(query, 0));
    let problem = running.problem().await;
    assert_eq!(problem.kind, ProblemKind::NotFound);
    assert!(
        problem.message.contains("no prepared query \"nearest\"") && problem.fix.is_some(),
        "{problem:?}"
    );

    let id = server
        .prepared_query(json!({ "Name": "nearest", "Service": { "Service": "web" } }))
        .await;
    assert_eq!(ids(&running.instances().await), ["web-1"]);
    // Nothing wakes it, and it is asked all the same.
    server.register("web", "web-2", 81).await;
    assert_eq!(ids(&running.instances().await), ["web-1", "web-2"]);

    for rules in [
        "",
        "service_prefix \"\" { policy = \"read\" }",
        "node_prefix \"\" { policy = \"read\" }",
    ] {
        server.policy("reader", rules).await;
        let problem = running.problem().await;
        assert_eq!(problem.kind, ProblemKind::MissingPermission, "{rules}: {problem}");
        assert!(problem.message.contains("kept"), "{problem}");
        // Not the query's name: rights are on services.
        let fix = problem.fix.as_deref().unwrap_or_default();
        assert!(!fix.contains("nearest"), "{problem:?}");
        server.policy("reader", READ).await;
        assert_eq!(running.instances().await.len(), 2, "{rules}");
    }
    server.delete(&format!("query/{id}")).await;
    let problem = running.problem().await;
    assert!(
        problem.kind == ProblemKind::NotFound && problem.message.contains("what it found last is kept"),
        "{problem}"
    );
    server
        .prepared_query(json!({ "Name": "nearest", "Service": { "Service": "absent" } }))
        .await;
    assert!(
        running.instances().await.is_empty(),
        "with all rights, nothing is nothing"
    );
}

#[tokio::test]
async fn over_http_1_places_are_bounded_and_the_rest_takes_turns() {
    let server = Server::start().await;
    let names: Vec<String> = (0..12).map(|n| format!("s{n:02}")).collect();
    for name in &names {
        server.register(name, name, 1).await;
    }
    let (mut running, sender) = Running::new();
    let (watcher, task) = ServiceWatcher::new(server.client(None), sender);
    let task = task
        .with_timing(quick())
        .with_connections(4, Duration::from_millis(500));
    running.tasks.spawn(task.run(running.cancel.clone()));
    let refs: Vec<&str> = names.iter().map(String::as_str).collect();
    watcher.set_interests(queries(&refs));
    let (mut seen, mut limited) = (BTreeSet::new(), BTreeSet::new());
    while seen.len() < 12 || limited.len() < 8 {
        let update = running.service().await;
        match update.result {
            Ok(instances) => {
                assert_eq!(instances.len(), 1);
                seen.insert(update.query);
            }
            Err(problem) => {
                assert_eq!(problem.kind, ProblemKind::Limit, "{problem}");
                limited.insert(update.query);
            }
        }
    }
    assert_eq!(limited.len(), 8);
    let turned = limited.first().unwrap();
    server.register(&turned.name, "more", 2).await;
    assert_eq!(running.instances().await.len(), 2, "within its turn");
    assert_eq!(
        running.problem().await.kind,
        ProblemKind::Limit,
        "said again beside it"
    );

    // A place that is given up goes to one that waits, whose problem ends.
    watcher.set_interests(limited.iter().cloned().map(|query| (query, 0u64)).collect());
    let mut freed = BTreeSet::new();
    while freed.len() < 4 {
        let update = running.service().await;
        if update.result.is_ok() {
            freed.insert(update.query);
        }
    }
}

#[tokio::test]
async fn names_for_suggestions_come_from_rs_consul() {
    let server = Server::start_with_acls().await;
    server.register("orders", "o", 1).await;
    server.policy("reader", READ).await;
    let (_, secret) = server.token("reader").await;
    let names = service_names(&server.client(Some(&secret))).await.unwrap();
    assert_eq!(names, ["consul".into(), "orders".into()]);
}
