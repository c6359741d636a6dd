//! Discovery chains of every shape, over few targets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use portreeve::model::http::HeaderEdits;
use portreeve::model::mesh::{
    BalancerPolicy, Chain, ChainBalancer, ChainNode, ChainPath, ChainProtocol, ChainResolver, ChainRetry,
    ChainRoute, ChainSplit, ChainTarget, HashOn, HashPolicy, MeshGatewayMode,
};
use proptest::prelude::*;
use proptest::sample::select;

use super::world;

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    kind: Kind,
    protocol: ChainProtocol,
    /// Of the first target, in percent.
    weight: u32,
    rewrite: bool,
    /// What the resolvers say beside their targets.
    resolver: Extras,
    /// The same of the router's first route.
    route: Extras,
}

/// What stands beside where requests go.
#[derive(Clone, Copy, Debug)]
struct Extras {
    balancer: Option<BalancerPolicy>,
    /// By its place in [`hashes`], and whether it is terminal.
    hash: Option<(usize, bool)>,
    /// In milliseconds, as all of these.
    timeout: Option<u64>,
    second_timeout: Option<u64>,
    retries: Option<u32>,
    headers: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Resolver,
    Failover,
    Splitter,
    Router,
    /// A router with nothing for the rest: Consul never answers so.
    Incomplete,
}

fn hashes() -> [HashOn; 5] {
    let cookie = |ttl| HashOn::Cookie {
        name: "session".into(),
        ttl,
        path: "/".into(),
    };
    [
        HashOn::SourceIp,
        HashOn::Header("x-user".into()),
        HashOn::QueryParameter("user".into()),
        cookie(None),
        cookie(Some(Duration::from_secs(60))),
    ]
}

fn extras() -> impl Strategy<Value = Extras> {
    use BalancerPolicy::{LeastRequest, Maglev, Random, RingHash, RoundRobin};
    let balancers = [
        Random,
        RoundRobin,
        LeastRequest { choices: 5 },
        RingHash {
            minimum: 0,
            maximum: 0,
        },
        RingHash {
            minimum: 4096,
            maximum: 64,
        },
        Maglev,
    ];
    let timeout = || proptest::option::of(select(&[1u64, 250, 60_000][..]));
    (
        proptest::option::of(select(balancers.to_vec())),
        proptest::option::of((0..hashes().len(), any::<bool>())),
        timeout(),
        timeout(),
        proptest::option::of(select(&[1u32, 100][..])),
        any::<bool>(),
    )
        .prop_map(
            |(balancer, hash, timeout, second_timeout, retries, headers)| Extras {
                balancer,
                hash,
                timeout,
                second_timeout,
                retries,
                headers,
            },
        )
}

impl Extras {
    fn edits(self, name: &str) -> HeaderEdits {
        let mut edits = HeaderEdits::default();
        if self.headers {
            edits.set.push((name.into(), "set".into()));
            edits.add.push((name.into(), "100%".into()));
            edits.remove.push("x-gone".into());
        }
        edits
    }
}

pub fn shape() -> impl Strategy<Value = Shape> {
    use Kind::{Failover, Incomplete, Resolver, Router, Splitter};
    (
        select(&[Resolver, Failover, Splitter, Router, Router, Incomplete][..]),
        select(
            &[
                ChainProtocol::Http,
                ChainProtocol::Http,
                ChainProtocol::Http2,
                ChainProtocol::Grpc,
                ChainProtocol::Tcp,
            ][..],
        ),
        select(&[0u32, 1, 50, 100][..]),
        any::<bool>(),
        extras(),
        extras(),
    )
        .prop_map(|(kind, protocol, weight, rewrite, resolver, route)| Shape {
            kind,
            protocol,
            weight,
            rewrite,
            resolver,
            route,
        })
}

/// The chain of a service; its second target is the other mesh service.
pub fn chain(service: &str, shape: Shape) -> Chain {
    let other = if service == "s1" { "s2" } else { "s1" };
    let of_resolver = shape.resolver;
    let resolver = |target: &str, failover: &[&str]| {
        ChainNode::Resolver(ChainResolver {
            target: target.into(),
            connect_timeout: of_resolver.second_timeout.map(Duration::from_millis),
            request_timeout: of_resolver.timeout.map(Duration::from_millis),
            failover: failover.iter().map(|target| Arc::from(*target)).collect(),
            balancer: of_resolver.balancer.map(|policy| ChainBalancer {
                policy,
                hash: of_resolver
                    .hash
                    .map(|(index, terminal)| HashPolicy {
                        on: hashes()[index].clone(),
                        terminal,
                    })
                    .into_iter()
                    .collect(),
            }),
        })
    };
    let split = |weight: u32, next: &str| ChainSplit {
        weight: weight * 100,
        next: next.into(),
        request_headers: of_resolver.edits("x-split"),
        response_headers: of_resolver.edits("x-split-answer"),
    };
    let of_route = shape.route;
    let route = |path, next: &str, rewrite: bool| ChainRoute {
        prefix_rewrite: rewrite.then(|| "/new".into()),
        timeout: of_route.timeout.map(Duration::from_millis),
        idle_timeout: of_route.second_timeout.map(Duration::from_millis),
        retry: of_route.retries.map(|attempts| ChainRetry {
            attempts,
            on: vec!["reset".into(), "gateway-error".into()],
            status_codes: vec![503],
        }),
        request_headers: of_route.edits("x-route"),
        response_headers: of_route.edits("x-route-answer"),
        ..world::plain_route(path, next)
    };
    let splits = vec![split(shape.weight, "one"), split(100 - shape.weight, "two")];
    let routes = vec![
        route(ChainPath::StartsWith("/a".into()), "two", shape.rewrite),
        route(ChainPath::Any, "split", false),
    ];
    let mut nodes: BTreeMap<Arc<str>, ChainNode> = BTreeMap::new();
    let mut add = |id: &str, node| {
        nodes.insert(id.into(), node);
    };
    add("one", resolver(service, &[]));
    add("two", resolver(other, &[]));
    add("fall", resolver(service, &[other]));
    add("split", ChainNode::Splitter(splits));
    add("route", ChainNode::Router(routes.clone()));
    add("half", ChainNode::Router(routes[..1].to_vec()));
    let start = match shape.kind {
        Kind::Resolver => "one",
        Kind::Failover => "fall",
        Kind::Splitter => "split",
        Kind::Router => "route",
        Kind::Incomplete => "half",
    };
    Chain {
        service: service.into(),
        datacenter: "dc1".into(),
        protocol: shape.protocol,
        start: start.into(),
        nodes,
        targets: [service, other]
            .map(|name| (Arc::from(name), target(name)))
            .into(),
    }
}

fn target(service: &str) -> ChainTarget {
    ChainTarget {
        service: service.into(),
        namespace: "default".into(),
        partition: "".into(),
        datacenter: "dc1".into(),
        peer: None,
        sni: format!("{service}.default.dc1.internal.example.consul").into(),
        filter: None,
        only_passing: false,
        mesh_gateway: MeshGatewayMode::None,
        external: false,
    }
}
