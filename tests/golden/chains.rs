//! A discovery chain of which every part says something, in a world that answers the rest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use portreeve::envoy::{ResourceKind, ResourceSet, render, render_resource};
use portreeve::model::http::{HeaderEdits, TextMatch, ValueMatch};
use portreeve::model::mesh::{
    BalancerPolicy, Chain, ChainBalancer, ChainNode, ChainPath, ChainProtocol, ChainQuery, ChainResolver,
    ChainRetry, ChainRoute, ChainSplit, ChainTarget, HashOn, HashPolicy,
};
use portreeve::translate::Compiler;
use serde_json::{Value, json};

use super::envoy::{static_bootstrap, validate};
use super::world;

const DOCUMENT: &str = r#"
gateway "edge" {
  listener "web" { port = 8080 }
}

upstream "pets" {
  connect {}
}

http_route "pets" {
  gateways  = ["edge"]
  hostnames = ["pets.example.com"]

  rule "all" {
    backend "upstream" "pets" {}
  }
}
"#;

fn query() -> ChainQuery {
    ChainQuery {
        service: "pets".into(),
        datacenter: None,
        namespace: None,
        partition: None,
    }
}

fn compile(document: &str, chain: Chain) -> ResourceSet {
    let mut snapshot = world::empty();
    world::put(&mut snapshot, [world::file("pets.hcl", document)]);
    world::answer_chain(&mut snapshot, &query(), chain);
    world::answer_all(&mut snapshot, "edge");
    let compiler = Compiler::compile("edge", world::settings(), &snapshot);
    let said: Vec<String> = compiler
        .diagnostics()
        .flat_map(|(_, diagnostics)| diagnostics.iter().map(ToString::to_string))
        .collect();
    assert!(said.is_empty(), "{said:#?}");
    compiler.resources().clone()
}

fn seconds(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

fn balanced(policy: BalancerPolicy, hash: impl IntoIterator<Item = (HashOn, bool)>) -> Option<ChainBalancer> {
    let hash = hash.into_iter().map(|(on, terminal)| HashPolicy { on, terminal });
    Some(ChainBalancer {
        policy,
        hash: hash.collect(),
    })
}

fn edits(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderEdits {
    let pairs = |pairs: &[(&str, &str)]| {
        let owned = pairs
            .iter()
            .map(|(name, value)| (Arc::from(*name), Arc::from(*value)));
        owned.collect()
    };
    HeaderEdits {
        set: pairs(set),
        add: pairs(add),
        remove: remove.iter().map(|name| Arc::from(*name)).collect(),
    }
}

/// A router before a split before resolvers that each balance in another way.
fn elaborate() -> Chain {
    let plain = Chain::plain(&query());
    let whole = plain.targets.values().next().unwrap().clone();
    let subset = |version: &str| ChainTarget {
        sni: format!("{version}.{}", whole.sni).into(),
        filter: Some(format!("Service.Meta.version == {version}").into()),
        only_passing: version == "v2",
        ..whole.clone()
    };
    let other = ChainTarget {
        service: "backup".into(),
        sni: "backup.default.dc1.internal.example.consul".into(),
        ..whole.clone()
    };
    let resolver = |target: &str, balancer| ChainResolver {
        target: target.into(),
        connect_timeout: None,
        request_timeout: None,
        failover: Vec::new(),
        balancer,
    };
    let cookie = |ttl| HashOn::Cookie {
        name: "session".into(),
        ttl,
        path: "/".into(),
    };
    let ring = BalancerPolicy::RingHash {
        minimum: 128,
        maximum: 4096,
    };
    let by_user = balanced(
        ring,
        [
            (HashOn::Header("x-user".into()), true),
            (cookie(seconds(60)), false),
            (HashOn::SourceIp, false),
        ],
    );
    let first = ChainResolver {
        connect_timeout: seconds(3),
        request_timeout: seconds(20),
        ..resolver("v1", by_user)
    };
    let second = ChainResolver {
        request_timeout: seconds(30),
        ..resolver("v2", balanced(BalancerPolicy::LeastRequest { choices: 5 }, []))
    };
    let falling = ChainResolver {
        failover: vec!["backup".into()],
        ..resolver(
            "whole",
            balanced(
                BalancerPolicy::Maglev,
                [(HashOn::QueryParameter("user".into()), false)],
            ),
        )
    };
    let split = |weight, next: &str, request_headers| ChainSplit {
        weight,
        next: next.into(),
        request_headers,
        response_headers: HeaderEdits::default(),
    };
    let slow = ChainRoute {
        prefix_rewrite: Some("/v1/".into()),
        timeout: seconds(3),
        idle_timeout: seconds(30),
        retry: Some(ChainRetry {
            attempts: 2,
            on: vec!["retriable-status-codes".into(), "gateway-error".into()],
            status_codes: vec![503],
        }),
        request_headers: edits(&[("x-from", "100%%edge")], &[("x-via", "router")], &["x-secret"]),
        response_headers: edits(&[], &[], &["x-internal"]),
        ..world::plain_route(ChainPath::StartsWith("/reports/".into()), "falling")
    };
    let mut chosen = world::plain_route(ChainPath::Any, "second");
    chosen.matching.methods = vec!["GET".into()];
    chosen.matching.headers = vec![ValueMatch {
        name: "x-version".into(),
        text: TextMatch::Exact("2".into()),
        invert: false,
    }];
    let shares = vec![
        split(9_000, "first", HeaderEdits::default()),
        split(1_000, "second", edits(&[("x-canary", "1")], &[], &[])),
    ];
    let nodes = [
        (
            "router",
            ChainNode::Router(vec![slow, chosen, world::plain_route(ChainPath::Any, "shares")]),
        ),
        ("shares", ChainNode::Splitter(shares)),
        ("first", ChainNode::Resolver(first)),
        ("second", ChainNode::Resolver(second)),
        ("falling", ChainNode::Resolver(falling)),
        ("backup", ChainNode::Resolver(resolver("backup", None))),
    ];
    Chain {
        start: "router".into(),
        nodes: nodes.map(|(id, node)| (id.into(), node)).into(),
        targets: BTreeMap::from([
            ("v1".into(), subset("v1")),
            ("v2".into(), subset("v2")),
            ("backup".into(), other),
            ("whole".into(), whole),
        ]),
        ..plain
    }
}

#[test]
fn an_elaborate_chain_becomes_envoy_configuration() {
    let set = compile(DOCUMENT, elaborate());
    assert_eq!(validate(&static_bootstrap(&set)), Ok(()));
    insta::assert_snapshot!(serde_json::to_string_pretty(&render(&set)).unwrap());
}

/// The cluster of the only target of a chain.
fn cluster(document: &str, protocol: ChainProtocol) -> Value {
    let chain = Chain {
        protocol,
        ..Chain::plain(&query())
    };
    let set = compile(document, chain);
    let clusters = set.of_kind(ResourceKind::Cluster);
    assert_eq!(clusters.len(), 1);
    render_resource(clusters.values().next().unwrap())
}

fn offered(cluster: &Value) -> &Value {
    &cluster["transport_socket"]["typed_config"]["common_tls_context"]["alpn_protocols"]
}

fn speaks_http2(cluster: &Value) -> bool {
    let options = &cluster["typed_extension_protocol_options"];
    let config = &options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]["explicit_http_config"];
    assert!(config.is_object(), "{cluster:#}");
    config["http2_protocol_options"].is_object()
}

/// A sidecar of a service that is plain TCP to Consul may take any ALPN that it is offered, and break.
#[test]
fn alpn_is_offered_where_the_protocol_of_the_chain_says_so() {
    for (protocol, http2) in [
        (ChainProtocol::Http, false),
        (ChainProtocol::Http2, true),
        (ChainProtocol::Grpc, true),
    ] {
        let cluster = cluster(DOCUMENT, protocol);
        let expected = if http2 { json!(["h2"]) } else { Value::Null };
        assert_eq!(offered(&cluster), &expected, "{protocol:?}");
        assert_eq!(speaks_http2(&cluster), http2, "{protocol:?}");
    }

    // Said by the document, of a service that is TCP to Consul: its proxy passes bytes on, and is asked for nothing.
    for (said, http2) in [("http", false), ("http2", true)] {
        let by_document = format!("connect {{}}\n  protocol = {said:?}");
        let document = DOCUMENT.replace("connect {}", &by_document);
        let cluster = cluster(&document, ChainProtocol::Tcp);
        assert_eq!(offered(&cluster), &Value::Null, "{said}");
        assert_eq!(speaks_http2(&cluster), http2, "{said}");
    }

    // A connection that is passed on: whatever the service speaks to Consul, but for h2, is between it and the client.
    let passed_on = DOCUMENT
        .replace("port = 8080", "\n    port = 8080\n    protocol = \"tcp\"\n  ")
        .replace("http_route", "tcp_route")
        .replace(
            "  hostnames = [\"pets.example.com\"]\n",
            "  listeners = [\"web\"]\n",
        )
        .replace("  rule \"all\" {\n", "")
        .replace("{}\n  }\n}\n", "{}\n}\n");
    assert_eq!(offered(&cluster(&passed_on, ChainProtocol::Tcp)), &Value::Null);
}
