//! Discovery chains of every shape, over few targets.

use std::collections::BTreeMap;
use std::sync::Arc;

use portreeve::model::http::HeaderEdits;
use portreeve::model::mesh::{
    Chain, ChainMatch, ChainNode, ChainPath, ChainProtocol, ChainResolver, ChainRoute, ChainSplit,
    ChainTarget, MeshGatewayMode,
};
use proptest::prelude::*;
use proptest::sample::select;

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    kind: Kind,
    protocol: ChainProtocol,
    /// Of the first target, in percent.
    weight: u32,
    rewrite: bool,
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

pub fn shape() -> impl Strategy<Value = Shape> {
    use Kind::{Failover, Incomplete, Resolver, Router, Splitter};
    (
        select(&[Resolver, Failover, Splitter, Router, Router, Incomplete][..]),
        select(
            &[
                ChainProtocol::Http,
                ChainProtocol::Http,
                ChainProtocol::Grpc,
                ChainProtocol::Tcp,
            ][..],
        ),
        select(&[0u32, 1, 50, 100][..]),
        any::<bool>(),
    )
        .prop_map(|(kind, protocol, weight, rewrite)| Shape {
            kind,
            protocol,
            weight,
            rewrite,
        })
}

/// The chain of a service; its second target is the other mesh service.
pub fn chain(service: &str, shape: Shape) -> Chain {
    let other = if service == "s1" { "s2" } else { "s1" };
    let resolver = |target: &str, failover: &[&str]| {
        ChainNode::Resolver(ChainResolver {
            target: target.into(),
            connect_timeout: None,
            request_timeout: None,
            failover: failover.iter().map(|target| Arc::from(*target)).collect(),
            balancer: None,
        })
    };
    let split = |weight: u32, next: &str| ChainSplit {
        weight: weight * 100,
        next: next.into(),
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
    };
    let route = |path, next: &str, rewrite: bool| ChainRoute {
        matching: ChainMatch {
            path,
            case_insensitive: false,
            methods: Vec::new(),
            headers: Vec::new(),
            query: Vec::new(),
        },
        next: next.into(),
        prefix_rewrite: rewrite.then(|| "/new".into()),
        timeout: None,
        idle_timeout: None,
        retry: None,
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
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
