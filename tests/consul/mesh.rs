//! The mesh as newer Consul describes it, by answers that are kept with their source.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use portreeve::envoy::{ResourceKind, render_resource};
use portreeve::model::mesh::{
    BalancerPolicy, Chain, ChainNode, ChainPath, ChainProtocol, ChainQuery, HashOn, Intention,
    IntentionQuery, IntentionRule, Interest, PermissionPath,
};
use portreeve::model::{
    Lookup, MeshUpdate, Narrowing, Observation, Problem, ProblemKind, Redacted, ServiceQuery,
};
use portreeve::sources::agent_api::{ApiAddress, Product};
use portreeve::sources::consul::{ConsulClient, ConsulSettings, MeshWatcher, ServiceWatcher, WatchTiming};
use portreeve::translate::Compiler;
use serde_json::json;

use crate::answering::{Answer, AnsweringServer};
use crate::server::{Running, Server, quick};
use crate::world;

pub const CHAIN: &str = "/v1/discovery-chain/web";
pub const MATCH: &str = "/v1/connect/intentions/match";
pub const CHECK: &str = "/v1/connect/intentions/check";
pub const LEAF: &str = "/v1/agent/connect/ca/leaf/edge-gw";
pub const ROOTS: &str = "/v1/agent/connect/ca/roots";
pub const SIDECARS: &str = "/v1/health/connect/web";

pub fn client(server: &AnsweringServer) -> ConsulClient {
    let address = ApiAddress::parse(Product::Consul, &server.address, false).unwrap();
    ConsulClient::new(&ConsulSettings {
        address,
        token: Some(Redacted::new("played".to_owned())),
        ..ConsulSettings::default()
    })
    .unwrap()
}

/// A member of the mesh that watches these.
pub fn watching(
    server: &AnsweringServer,
    timing: WatchTiming,
    interests: impl IntoIterator<Item = Interest>,
) -> (Running, MeshWatcher) {
    let (mut running, sender) = Running::new();
    let (watcher, task) = MeshWatcher::new(client(server), client(server), "edge-gw".into(), sender);
    watcher.set_interests(wishes(interests));
    running
        .tasks
        .spawn(task.with_timing(timing).run(running.cancel.clone()));
    (running, watcher)
}

/// What is wanted, all of it from the beginning.
pub fn wishes<T: Ord + Clone>(all: impl IntoIterator<Item = T>) -> OrdMap<T, u64> {
    all.into_iter().map(|one| (one, 0u64)).collect()
}

fn chain_of(service: &str) -> ChainQuery {
    ChainQuery {
        service: service.into(),
        datacenter: None,
        namespace: None,
        partition: None,
    }
}

fn intentions() -> Interest {
    Interest::intention(IntentionQuery {
        destination: "web".into(),
        namespace: None,
        partition: None,
    })
}

fn chain(observation: Observation) -> Result<Arc<Chain>, Problem> {
    match observation {
        Observation::Chain(update) => update.result,
        other => panic!("{other:?}"),
    }
}

fn intention(observation: Observation) -> Result<Arc<Intention>, Problem> {
    match observation {
        Observation::Intention(update) => update.result,
        other => panic!("{other:?}"),
    }
}

fn sidecars() -> ServiceQuery {
    ServiceQuery::new(Lookup::Connect, "web".into(), Narrowing::default())
}

fn watching_services(server: &AnsweringServer, query: ServiceQuery) -> Running {
    let (mut running, sender) = Running::new();
    let (watcher, task) = ServiceWatcher::new(client(server), sender);
    watcher.set_interests(wishes([query]));
    let run = task.with_timing(quick()).run(running.cancel.clone());
    running.tasks.spawn(async move {
        run.await;
        drop(watcher);
    });
    running
}

#[tokio::test]
async fn a_chain_of_newer_consul_is_read() {
    let server = AnsweringServer::start().await;
    server.put(CHAIN, Answer::kept("chain"));
    let (mut running, _watcher) = watching(&server, quick(), [Interest::chain(chain_of("web"))]);
    let chain = chain(running.next().await).unwrap();
    let ChainNode::Router(routes) = &chain.nodes[&chain.start] else {
        panic!("{chain:?}");
    };
    assert_eq!(routes[0].matching.path, ChainPath::StartsWith("/Admin".into()));
    assert!(routes[0].matching.case_insensitive);
    assert_eq!(routes[0].idle_timeout, Some(Duration::from_secs(30)));
    assert_eq!(routes[0].timeout, None, "0s is none");
    let retry = routes[0].retry.as_ref().unwrap();
    assert_eq!(
        (retry.attempts, &retry.on[..]),
        (2, &["reset".into(), "gateway-error".into()][..])
    );
    assert_eq!(routes[0].request_headers.add, [("x-from".into(), "edge".into())]);
    assert_eq!(routes[0].response_headers.remove, ["x-internal".into()]);
    let ChainNode::Resolver(resolver) = &chain.nodes[&routes[0].next] else {
        panic!("{chain:?}");
    };
    assert_eq!(resolver.request_timeout, Some(Duration::from_secs(15)));
    let balancer = resolver.balancer.as_ref().unwrap();
    assert_eq!(balancer.policy, BalancerPolicy::Maglev);
    assert_eq!(
        balancer.hash[0].on,
        HashOn::Cookie {
            name: "session".into(),
            ttl: Some(Duration::ZERO),
            path: "/".into()
        }
    );
    // A peering is told apart from a datacenter.
    assert_eq!(chain.targets[&resolver.failover[0]].peer.as_deref(), Some("west"));
    // What only Enterprise takes is not sent.
    let asked = &server.asked(CHAIN)[0];
    assert!(!asked.contains("ns=") && !asked.contains("partition="), "{asked}");
}

#[tokio::test]
async fn names_are_escaped_and_hostile_ids_are_refused() {
    let server = AnsweringServer::start().await;
    let path = "/v1/discovery-chain/..%2Fweb%3Fdc=dc2";
    server.put(path, Answer::kept("chain"));
    let (mut running, watcher) = watching(&server, quick(), [Interest::chain(chain_of("../web?dc=dc2"))]);
    chain(running.next().await).unwrap();
    // One segment, and nothing of it in the query.
    let asked = server.asked(path).remove(0);
    assert!(!asked[path.len()..].contains("dc="), "{asked}");

    let hostile = Answer::kept("chain").with("web.default.default.dc1", "web\\r\\nx: y");
    server.put(CHAIN, hostile);
    watcher.set_interests(wishes([Interest::chain(chain_of("web"))]));
    let problem = chain(running.next().await).unwrap_err();
    assert!(problem.message.contains("control characters"), "{problem:?}");
}

#[tokio::test]
async fn enterprise_parameters_are_sent_where_they_are_set() {
    let server = AnsweringServer::start().await;
    server.put(CHAIN, Answer::kept("chain-enterprise"));
    server.put(MATCH, Answer::kept("intentions-none"));
    server.put(CHECK, Answer::kept("intentions-check-allowed"));
    server.put(ROOTS, Answer::kept("roots"));
    server.put(LEAF, Answer::kept("leaf"));
    server.put("/v1/health/service/web", Answer::kept("health-service-none"));
    server.put(SIDECARS, Answer::kept("health-connect-multi-port"));
    let document = r#"
gateway "edge" {
  listener "web" { port = 8080 }
}

upstream "web" {
  connect {
    namespace = "shop"
    partition = "edge"
  }
}

http_route "web" {
  gateways  = ["edge"]
  hostnames = ["www.example.com"]

  rule "all" {
    backend "upstream" "web" {}
  }
}
"#;
    let mut snapshot = world::empty();
    world::put(&mut snapshot, [world::file("web.hcl", document)]);

    // What the compiler asks for is asked for, until it asks for nothing new.
    let (mut running, watcher) = watching(&server, quick(), []);
    let (services, sender) = Running::new();
    let mut services = services;
    let (service_watcher, task) = ServiceWatcher::new(client(&server), sender);
    services
        .tasks
        .spawn(task.with_timing(quick()).run(services.cancel.clone()));
    let cluster = loop {
        let compiler = Compiler::compile("edge", world::settings(), &snapshot);
        let of_services = wishes(compiler.services());
        let of_mesh = compiler.interests().into_iter();
        watcher.set_interests(wishes(of_mesh.filter(|one| !matches!(one, Interest::Service(_)))));
        service_watcher.set_interests(of_services);
        let clusters = compiler.resources().of_kind(ResourceKind::Cluster);
        if let Some(cluster) = clusters.values().next() {
            break render_resource(cluster);
        }
        let observation = tokio::select! {
            one = running.next() => one,
            one = services.next() => one,
        };
        snapshot.apply(observation);
    };
    let tls = &cluster["transport_socket"]["typed_config"];
    assert_eq!(
        tls["sni"], "web.shop.edge.dc1.internal-v1.11111111-2222-3333-4444-555555555555.consul",
        "{tls:#}"
    );
    let peer = tls.to_string();
    assert!(
        peer.contains("spiffe://11111111-2222-3333-4444-555555555555.consul/ap/edge/ns/shop/dc/dc1/svc/web"),
        "{tls:#}"
    );
    // The cluster does not wait for what intentions say.
    while server.asked(CHECK).is_empty() {
        assert!(matches!(
            running.next().await,
            Observation::Intention(_) | Observation::Mesh(_)
        ));
    }
    for path in [CHAIN, SIDECARS, "/v1/health/service/web", MATCH, CHECK] {
        for asked in server.asked(path) {
            assert!(
                asked.contains("ns=shop") && asked.contains("partition=edge"),
                "{asked}"
            );
        }
    }
    // Our own name stands elsewhere, and is looked for where the destination is unless it says so.
    let asked = &server.asked(CHECK)[0];
    assert!(asked.contains("source=default%2Fdefault%2Fedge-gw"), "{asked}");
    // Who we are is asked for where we are.
    for path in [LEAF, ROOTS] {
        let asked = &server.asked(path)[0];
        assert!(!asked.contains("ns=") && !asked.contains("partition="), "{asked}");
    }
}

#[tokio::test]
async fn a_namespace_that_consul_does_not_have_is_told() {
    let server = AnsweringServer::start().await;
    server.put(CHAIN, Answer::kept("namespace-refused"));
    let query = ChainQuery {
        namespace: Some("shop".into()),
        ..chain_of("web")
    };
    let (mut running, _watcher) = watching(&server, quick(), [Interest::chain(query)]);
    let problem = chain(running.next().await).unwrap_err();
    assert!(
        problem.message.contains("Consul Enterprise feature"),
        "{problem:?}"
    );
}

#[tokio::test]
async fn permissions_are_read_and_a_peer_s_intentions_are_not_ours() {
    let server = AnsweringServer::start().await;
    server.put(MATCH, Answer::kept("intentions-with-permissions"));
    let (mut running, _watcher) = watching(&server, quick(), [intentions()]);
    let said = intention(running.next().await).unwrap();
    let IntentionRule::Permissions(permissions) = &said.rule else {
        panic!("{said:?}");
    };
    assert_eq!(permissions.len(), 2);
    assert_eq!(
        permissions[0].matching.path,
        PermissionPath::PathPrefix("/api".into())
    );
    assert!(permissions[0].allow && !permissions[0].needs_jwt);
    assert!(permissions[1].allow && permissions[1].needs_jwt);
    // An index: it is waited for, and not polled.
    running.quiet_for(700).await;
    assert_eq!(server.asked(MATCH).len(), 2, "{:?}", server.asked(MATCH));
    assert!(server.asked(MATCH)[1].contains("index=12"));
    assert_eq!(
        server.asked(CHECK),
        [""; 0],
        "a check knows nothing of permissions"
    );
}

#[tokio::test]
async fn a_denial_holds_only_where_consul_says_it_twice() {
    let server = AnsweringServer::start().await;
    let deny = Answer::kept("intentions-deny");
    server.put(MATCH, deny.clone());
    server.put(CHECK, Answer::kept("intentions-check-denied"));
    let (mut running, _watcher) = watching(&server, quick(), [intentions()]);
    let said = intention(running.next().await).unwrap();
    assert_eq!(said.rule, IntentionRule::Deny);
    assert_eq!(said.by.as_deref(), Some("* => web (deny, precedence 8)"));

    // It may not be asked: a denial is not assumed, and what was known stands.
    let refused = Answer::kept("intentions-check-forbidden");
    server.put(CHECK, refused);
    server.put(MATCH, deny.clone().at(22));
    let problem = intention(running.next().await).unwrap_err();
    assert_eq!(problem.kind, ProblemKind::MissingPermission);
    assert!(problem.message.contains("intentions/check"), "{problem:?}");

    // Consul lets us in by a rule that its list does not show.
    server.put(CHECK, Answer::kept("intentions-check-allowed"));
    let said = intention(running.next().await).unwrap();
    assert_eq!((&said.rule, &said.by), (&IntentionRule::Allow, &None));
}

#[tokio::test]
async fn where_no_intention_is_the_default_decides() {
    for (check, rule) in [
        ("intentions-check-allowed", IntentionRule::Allow),
        ("intentions-check-denied", IntentionRule::Deny),
    ] {
        let server = AnsweringServer::start().await;
        server.put(MATCH, Answer::kept("intentions-none"));
        server.put(CHECK, Answer::kept(check));
        let (mut running, _watcher) = watching(&server, quick(), [intentions()]);
        let said = intention(running.next().await).unwrap();
        assert_eq!((&said.rule, &said.by), (&rule, &None));
    }
}

#[tokio::test]
async fn a_refusal_in_place_of_an_empty_list_keeps_the_sidecars() {
    let server = AnsweringServer::start().await;
    server.put(SIDECARS, Answer::kept("health-connect-multi-port"));
    let mut running = watching_services(&server, sidecars());
    let instances = running.service().await.result.unwrap();
    // Several ports in place of one: the default one is the sidecar's public one.
    assert_eq!((&*instances[0].address, instances[0].port), ("10.0.0.1", 20000));
    assert_eq!(
        instances[0].ports,
        BTreeMap::from([("admin".into(), 20001), ("public".into(), 20000)]).into()
    );
    assert_eq!(instances[0].destination.as_deref(), Some("web-1"));

    server.put(SIDECARS, Answer::kept("health-connect-forbidden").at(6));
    let problem = running.service().await.result.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::MissingPermission);
    assert!(
        problem
            .fix
            .as_deref()
            .is_some_and(|fix| fix.contains("service \"web\" { policy = \"read\" }")),
        "{problem:?}"
    );
    running.quiet_for(700).await;
}

#[tokio::test]
async fn polls_that_are_cut_lose_nothing_and_tell_nobody() {
    let server = AnsweringServer::start().await;
    server.put(CHAIN, Answer::kept("chain"));
    server.put(MATCH, Answer::kept("intentions-with-permissions"));
    server.cut_polls_after(Duration::from_millis(600));
    let timing = WatchTiming {
        benign_cut: Duration::from_millis(100),
        habitual_cut: Duration::from_millis(300),
        ..quick()
    };
    let (mut running, _watcher) = watching(&server, timing, [Interest::chain(chain_of("web")), intentions()]);
    for _ in 0..2 {
        assert!(matches!(
            running.next().await,
            Observation::Chain(_) | Observation::Intention(_)
        ));
    }
    // After two cuts at one age less is asked for.
    let wait = |asked: &String| {
        // The first look does not wait.
        let wait = asked.split("wait=").nth(1).unwrap_or("300000ms");
        wait.split('&')
            .next()
            .unwrap()
            .trim_end_matches("ms")
            .parse::<u64>()
            .unwrap()
    };
    let begun = std::time::Instant::now();
    for path in [CHAIN, MATCH] {
        while wait(&server.asked(path).pop().unwrap()) >= 600 {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "{:?}",
                server.asked(path)
            );
            running.quiet_for(100).await;
        }
    }
    running.quiet_for(1000).await;
    let later = Answer::kept("chain").with("\"/Admin\"", "\"/admin\"").at(42);
    server.put(CHAIN, later);
    let chain = chain(running.next().await).unwrap();
    let ChainNode::Router(routes) = &chain.nodes[&chain.start] else {
        panic!("{chain:?}");
    };
    assert_eq!(routes[0].matching.path, ChainPath::StartsWith("/admin".into()));
}

#[tokio::test]
async fn a_leaf_that_must_wait_its_turn_comes_later() {
    let server = AnsweringServer::start().await;
    server.put(ROOTS, Answer::kept("roots"));
    server.put_first(LEAF, Answer::kept("leaf-rate-limited"));
    server.put_first(LEAF, Answer::kept("leaf-rate-limited"));
    server.put(LEAF, Answer::kept("leaf"));
    let (mut running, watcher) = watching(&server, quick(), [Interest::Mesh]);
    let mut roots = None;
    let leaf = loop {
        match running.next().await {
            Observation::Mesh(MeshUpdate::Leaf(Ok(leaf))) => break leaf,
            Observation::Mesh(MeshUpdate::Leaf(Err(problem))) => {
                assert!(problem.message.contains("rate limit reached"), "{problem:?}");
            }
            Observation::Mesh(MeshUpdate::Roots(Ok(told))) => roots = Some(told),
            other => panic!("{other:?}"),
        }
    };
    let roots = roots.expect("whom to trust is known before we show who we are");
    assert_eq!(
        (roots.count, &*roots.trust_domain),
        (2, "11111111-2222-3333-4444-555555555555.consul")
    );
    assert!(
        leaf.uri.ends_with("/ns/default/dc/dc1/svc/edge-gw"),
        "{}",
        leaf.uri
    );
    assert!(leaf.material.private_key.is_some());
    assert!(
        !format!("{leaf:?}").contains("PRIVATE KEY"),
        "the key is not shown"
    );
    let (_, reading) = watcher.health().remove(0);
    assert!(reading.errors_total >= 2, "{reading:?}");
}

#[tokio::test]
async fn a_renewed_leaf_follows_the_roots_and_the_same_one_is_not_told_again() {
    let server = AnsweringServer::start().await;
    server.put(ROOTS, Answer::kept("roots"));
    server.put(LEAF, Answer::kept("leaf"));
    let (mut running, watcher) = watching(&server, quick(), [Interest::Mesh]);
    let mut first = None;
    // The roots twice: by their own watch, and before the leaf.
    for _ in 0..3 {
        match running.next().await {
            Observation::Mesh(MeshUpdate::Leaf(Ok(leaf))) => first = Some(leaf),
            Observation::Mesh(MeshUpdate::Roots(Ok(_))) => {}
            other => panic!("{other:?}"),
        }
    }
    let first = first.expect("a leaf");
    let shown = watcher.leaf(first.material.not_before).expect("its life");
    assert_eq!((shown.ends, shown.warning), (first.material.not_after, None));

    // Consul woke for something else.
    server.put(LEAF, Answer::kept("leaf").at(300));
    running.quiet_for(700).await;

    // The form of the answer is kept; this pair is made here, because the test needs a certificate other than the one that
    // is kept, with an end of its own.
    let renewed = rcgen::generate_simple_self_signed(["edge-gw".to_owned()]).unwrap();
    let (certificate, key) = (renewed.cert.pem(), renewed.signing_key.serialize_pem());
    server.put(LEAF, Answer::kept_with("leaf", &certificate, &key).at(301));
    let Observation::Mesh(MeshUpdate::Roots(Ok(roots))) = running.next().await else {
        panic!("a leaf before whom to trust");
    };
    assert_eq!(roots.count, 2);
    let Observation::Mesh(MeshUpdate::Leaf(Ok(second))) = running.next().await else {
        panic!("no leaf after the roots");
    };
    assert!(second.material.private_key.is_some());
    assert_ne!(second.material, first.material);
    running.quiet_for(700).await;
    let shown = watcher.leaf(second.material.not_before).expect("its life");
    assert_eq!((shown.ends, shown.warning), (second.material.not_after, None));
    // Nobody renewed it again.
    let shown = watcher.leaf(second.material.not_after).expect("its life");
    let warning = shown.warning.expect("that it has ended");
    assert!(
        warning.message.contains("\"edge-gw\" has ended at"),
        "{warning:?}"
    );
}

#[tokio::test]
async fn a_consul_without_connect_says_so() {
    let server = AnsweringServer::start().await;
    server.put(ROOTS, Answer::kept("connect-disabled"));
    server.put(LEAF, Answer::kept("connect-disabled"));
    let (mut running, _watcher) = watching(&server, quick(), [Interest::Mesh]);
    for _ in 0..2 {
        let (Observation::Mesh(MeshUpdate::Roots(Err(problem)))
        | Observation::Mesh(MeshUpdate::Leaf(Err(problem)))) = running.next().await
        else {
            panic!("a value without Connect");
        };
        assert!(problem.message.contains("Connect must be enabled"), "{problem:?}");
    }
}

/// Its services register themselves again, and the chain that Consul then answers with speaks TCP.
#[tokio::test]
async fn a_consul_that_lost_its_entries_takes_no_chain_away() {
    let mut server = Server::start_with(false, "connect { enabled = true }").await;
    let entry = json!({ "Kind": "service-defaults", "Name": "web", "Protocol": "http" });
    let router = json!({ "Kind": "service-router", "Name": "web", "Routes": [
        { "Match": { "HTTP": { "PathPrefix": "/old" } }, "Destination": { "PrefixRewrite": "/new" } }
    ] });
    // So old that its index shows that it has begun anew.
    for round in 0..300 {
        server.put("kv/grows", round).await;
    }
    server.put("config", &entry).await;
    server.put("config", &router).await;
    server.register("web", "web-1", 80).await;
    let (mut running, sender) = Running::new();
    let client = || server.client(None);
    let (watcher, task) = MeshWatcher::new(client(), client(), "edge-gw".into(), sender);
    watcher.set_interests(wishes([Interest::chain(chain_of("web"))]));
    running
        .tasks
        .spawn(task.with_timing(quick()).run(running.cancel.clone()));
    let known = chain(running.next().await).unwrap();
    assert_eq!(known.protocol, ChainProtocol::Http);

    // An entry that is deleted is gone, and one that is written is there.
    server.delete("config/service-router/web").await;
    assert!(chain(running.next().await).unwrap().is_plain());
    server.put("config", &router).await;
    assert_eq!(chain(running.next().await).unwrap(), known);

    server.restart_wiped().await;
    server.register("web", "web-1", 80).await;
    let problem = loop {
        // While it was away, that is what was told.
        let problem = chain(running.next().await).expect_err("kept");
        if problem.kind == ProblemKind::Invalid {
            break problem;
        }
    };
    assert!(problem.message.contains("lost its state"), "{problem:?}");
    running.quiet_for(2000).await;
    // Its entries come back one by one.
    server.put("config", &entry).await;
    running.quiet_for(2000).await;
    server.put("config", &router).await;
    let again = chain(running.next().await).unwrap();
    // It is of another trust domain, as all is that this Consul says.
    assert_eq!(
        (again.protocol, again.nodes.clone()),
        (known.protocol, known.nodes.clone())
    );
}
