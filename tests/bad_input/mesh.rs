//! Services of the mesh that cannot be reached, or not as a document wants it.

use std::collections::BTreeMap;
use std::sync::Arc;

use portreeve::diagnostics::Code::{self, *};
use portreeve::model::mesh::{
    Chain, ChainNode, ChainPath, ChainProtocol, ChainQuery, Intention, IntentionQuery, IntentionRule,
    Interest,
};
use portreeve::model::{
    ChainUpdate, Health, IntentionUpdate, Lookup, MeshUpdate, Narrowing, Observation, Problem, ProblemKind,
    ServiceQuery,
};
use portreeve::snapshot::Snapshot;

use super::case::{Case, SHOP, Stays};
use super::cases::shop;
use super::world;

/// The shop, whose rule `api` goes to a service of the mesh.
fn meshed() -> String {
    shop("\"consul\" \"orders\"", "\"upstream\" \"orders\"") + "\nupstream \"orders\" {\n  connect {}\n}\n"
}

fn through_sidecar(how: &str) -> String {
    meshed().replacen("  connect {}\n", &format!("  connect {{\n    {how}\n  }}\n"), 1)
}

fn named_port(more: &str) -> String {
    through_sidecar(&format!("port = \"admin\"\n    {more}"))
}

/// An instance with a port of this name, and its sidecar.
fn a_sidecar_before(snapshot: &mut Snapshot, port: &str, tells_ports_apart: bool) {
    let mut behind = world::instance("orders", 1, "10.0.0.1", Health::Passing);
    behind.ports = BTreeMap::from([(Arc::from(port), 9000)]).into();
    let mut sidecar = world::instance("orders-proxy", 1, "10.0.0.1", Health::Passing);
    sidecar.destination = Some(behind.id.clone());
    sidecar.tells_ports_apart = tells_ports_apart;
    world::answer_service(snapshot, &ServiceQuery::named("orders"), vec![behind]);
    world::answer_service(snapshot, &dialed(), vec![sidecar]);
}

fn rewritten() -> String {
    meshed().replacen(
        "    match { path_prefix = \"/api\" }\n",
        "    match { path_prefix = \"/api\" }\n    rewrite { path_prefix = \"/v2\" }\n",
        1,
    )
}

pub fn all() -> Vec<Case> {
    let orders = |what, then: fn(&mut Snapshot), codes: &'static [Code], stays| {
        Case::new(what, meshed(), codes, stays).then(then)
    };
    vec![
        orders(
            "a mesh service that speaks tcp, on an HTTP route",
            |snapshot| {
                chain_is(
                    snapshot,
                    Chain {
                        protocol: ChainProtocol::Tcp,
                        ..Chain::plain(&query())
                    },
                );
            },
            &[ProtocolMismatch],
            Stays::ApiAnswers503("protocol-mismatch"),
        ),
        orders(
            "a mesh service that no intention lets the gateway into",
            |snapshot| intention_is(snapshot, IntentionRule::Deny, None),
            &[IntentionDenied],
            Stays::ApiWithoutAddress,
        ),
        orders(
            "a mesh service that an intention keeps the gateway out of",
            |snapshot| {
                let by = "edge-gw => orders (deny, precedence 9, id 55111c97)";
                intention_is(snapshot, IntentionRule::Deny, Some(by));
            },
            &[IntentionDenied],
            Stays::ApiWithoutAddress,
        ),
        orders(
            "an agent that is no member of the mesh",
            |snapshot| {
                identity_fails(
                    snapshot,
                    Problem::new(
                        ProblemKind::Refused,
                        "an upstream is a service of the mesh, and this agent is no member of it",
                    )
                    .with_fix("add `mesh { service = \"edge-gw\" }` to the agent's settings"),
                );
            },
            &[MeshProblem],
            Stays::ApiAnswers503("mesh-unavailable"),
        ),
        orders(
            "a mesh token without the right to be the gateway's service",
            |snapshot| {
                identity_fails(
                    snapshot,
                    Problem::new(
                        ProblemKind::MissingPermission,
                        "Consul refuses (403) /v1/agent/connect/ca/leaf/edge-gw: Permission denied",
                    )
                    .with_fix("give the token service \"edge-gw\" { policy = \"write\" }"),
                );
            },
            &[MissingPermission],
            Stays::ApiAnswers503("mesh-unavailable"),
        ),
        orders(
            "a mesh token that Consul does not know, or no longer",
            |snapshot| {
                identity_fails(
                    snapshot,
                    Problem::new(
                        ProblemKind::TokenNotAccepted,
                        "Consul refuses (403) /v1/agent/connect/ca/leaf/edge-gw: ACL not found",
                    )
                    .with_fix("Consul does not know this token (mistyped, deleted or expired): put a valid one into /etc/portreeve/mesh-token"),
                );
            },
            &[TokenNotAccepted],
            Stays::ApiAnswers503("mesh-unavailable"),
        ),
        orders(
            "a discovery chain that the agent's token may not read",
            |snapshot| {
                chain_fails(
                    snapshot,
                    Problem::new(
                        ProblemKind::MissingPermission,
                        "Consul refuses (403) /v1/discovery-chain/orders: Permission denied",
                    )
                    .with_fix("give the token service \"orders\" { policy = \"read\" }"),
                );
            },
            &[MissingPermission],
            Stays::ApiAnswers503("mesh-unavailable"),
        ),
        orders(
            "a discovery chain with a hostile name in it",
            |snapshot| {
                chain_fails(
                    snapshot,
                    Problem::new(
                        ProblemKind::Invalid,
                        "Consul's answer to /v1/discovery-chain/orders cannot be used: \"orders\\r\\nx: y\" is longer than 1024 bytes or has control characters",
                    ),
                );
            },
            &[MeshProblem],
            Stays::ApiAnswers503("mesh-unavailable"),
        ),
        Case::new(
            "a service router that Envoy cannot follow behind the rule's rewrite",
            rewritten(),
            &[NotExpressible],
            Stays::ApiAnswers503("not-expressible"),
        )
        .then(|snapshot| chain_is(snapshot, routed_by("/v[0-9]+/.*"))),
        orders(
            "a mesh service behind a cluster peering",
            |snapshot| {
                let mut chain = Chain::plain(&query());
                for target in chain.targets.values_mut() {
                    target.peer = Some("west".into());
                }
                chain_is(snapshot, chain);
            },
            &[NotExpressible],
            Stays::ApiAnswers503("not-expressible"),
        ),
        orders(
            "a mesh service that nobody registered",
            |snapshot| {
                world::answer_service(snapshot, &dialed(), vec![]);
                world::answer_service(snapshot, &super::case::service("orders"), vec![]);
            },
            &[UnknownService],
            Stays::ApiWithoutAddress,
        ),
        orders(
            "a service without a sidecar, as an upstream in the mesh",
            |snapshot| drop(world::answer_service(snapshot, &dialed(), vec![])),
            &[MeshProblem],
            Stays::ApiWithoutAddress,
        ),
        orders(
            "a mesh service all of whose sidecars are critical",
            |snapshot| {
                let sidecar = world::instance("orders", 1, "10.0.0.1", Health::Critical);
                world::answer_service(snapshot, &dialed(), vec![sidecar]);
            },
            &[NoHealthyInstance],
            Stays::ApiWithoutAddress,
        ),
        orders(
            "a mesh service all of whose instances are critical, behind sidecars that pass",
            |snapshot| {
                let sidecar = world::instance("orders", 1, "10.0.0.1", Health::Passing);
                world::answer_service(snapshot, &dialed(), vec![sidecar]);
                let instance = world::instance("orders", 1, "10.0.0.1", Health::Critical);
                world::answer_service(snapshot, &super::case::service("orders"), vec![instance]);
            },
            &[NoHealthyInstance],
            Stays::ApiWithoutAddress,
        ),
        orders(
            "a sidecar whose address is a host name",
            |snapshot| {
                let sidecar = world::instance("orders", 1, "node-1.internal", Health::Passing);
                world::answer_service(snapshot, &dialed(), vec![sidecar]);
            },
            &[UnusableInstance, UnusableInstance],
            Stays::ApiWithoutAddress,
        ),
        Case::new(
            "a mesh service that the gateway's own sidecar does not dial",
            through_sidecar("sidecar = true"),
            &[MeshProblem],
            Stays::ApiWithoutAddress,
        )
        .then(|snapshot| {
            let query = ServiceQuery::new(Lookup::Sidecar, "orders".into(), Narrowing::default());
            world::answer_service(snapshot, &query, vec![]);
        }),
        Case::new(
            "a cluster peering without the gateway's own sidecar",
            through_sidecar("peer = \"west\""),
            &[MissingKey],
            Stays::LastGood,
        ),
        Case::new(
            "a mesh gateway and the gateway's own sidecar at once",
            through_sidecar("sidecar = true\n    mesh_gateway = \"mesh-gateway\""),
            &[Conflict],
            Stays::LastGood,
        ),
        Case::new(
            "a named port of a mesh service that none of its instances has",
            named_port(""),
            &[UnusableInstance, UnusableInstance],
            Stays::ApiWithoutAddress,
        )
        .then(|snapshot| a_sidecar_before(snapshot, "http", true)),
        Case::new(
            "a named port of the mesh at a Consul that does not tell ports apart",
            named_port(""),
            &[UnusableInstance, UnusableInstance],
            Stays::ApiWithoutAddress,
        )
        .then(|snapshot| a_sidecar_before(snapshot, "admin", false)),
        Case::new(
            "a named port of a mesh service whose discovery chain leads to another",
            named_port(""),
            &[NotExpressible],
            Stays::ApiAnswers503("not-expressible"),
        )
        .then(|snapshot| {
            let mut chain = Chain::plain(&query());
            for target in chain.targets.values_mut() {
                target.service = "new-orders".into();
            }
            chain_is(snapshot, chain);
        }),
        Case::new(
            "a named port of a mesh service in another datacenter",
            named_port("datacenter = \"dc2\""),
            &[Conflict],
            Stays::LastGood,
        ),
        Case::new(
            "a named port of the mesh and the gateway's own sidecar at once",
            named_port("sidecar = true"),
            &[Conflict],
            Stays::LastGood,
        ),
        Case::new(
            "every service at once as an upstream in the mesh",
            format!("{SHOP}\nupstream \"orders\" {{\n  connect {{ service = \"*\" }}\n}}\n"),
            &[InvalidValue],
            Stays::LastGood,
        ),
    ]
}

fn query() -> ChainQuery {
    ChainQuery {
        service: "orders".into(),
        datacenter: None,
        namespace: None,
        partition: None,
    }
}

/// The sidecars of the service.
fn dialed() -> ServiceQuery {
    ServiceQuery::new(Lookup::Connect, "orders".into(), Narrowing::default())
}

fn chain_is(snapshot: &mut Snapshot, chain: Chain) {
    world::answer_chain(snapshot, &query(), chain);
}

fn chain_fails(snapshot: &mut Snapshot, problem: Problem) {
    snapshot.apply(Observation::Chain(ChainUpdate {
        query: query(),
        result: Err(problem),
    }));
}

fn identity_fails(snapshot: &mut Snapshot, problem: Problem) {
    world::answer_mesh(snapshot, &Interest::chain(query()));
    snapshot.apply(Observation::Mesh(MeshUpdate::Roots(Err(problem.clone()))));
    snapshot.apply(Observation::Mesh(MeshUpdate::Leaf(Err(problem))));
}

fn intention_is(snapshot: &mut Snapshot, rule: IntentionRule, by: Option<&str>) {
    let intention = Intention {
        source: "edge-gw".into(),
        destination: "orders".into(),
        rule,
        by: by.map(Arc::from),
    };
    snapshot.apply(Observation::Intention(IntentionUpdate {
        query: IntentionQuery {
            destination: "orders".into(),
            namespace: None,
            partition: None,
        },
        result: Ok(intention.into()),
    }));
}

/// A service router in front of the plain chain.
fn routed_by(regex: &str) -> Chain {
    let plain = Chain::plain(&query());
    let route = world::plain_route(ChainPath::Regex(regex.into()), &plain.start);
    let start: Arc<str> = "router:orders.default".into();
    let mut nodes: BTreeMap<Arc<str>, ChainNode> = plain.nodes.clone();
    nodes.insert(start.clone(), ChainNode::Router(vec![route]));
    Chain {
        start,
        nodes,
        ..plain
    }
}
