use std::collections::HashSet;
use std::sync::Arc;

use super::connect;
use super::document::Decoder;
use super::health_check;
use super::objects::{Upstream, UpstreamSource};
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{Block, BlockSchema, Occurs, Reader, Type};
use crate::model::http::{
    CircuitBreaker, DnsName, LoadBalancer, LookupFamily, UpstreamOptions, UpstreamProtocol,
};
use crate::model::{Lookup, Narrowing, ServiceQuery};

pub(super) fn schema() -> BlockSchema {
    BlockSchema::new(
        "upstream",
        &["name"],
        "A named destination of requests, and how Envoy speaks to it.",
    )
    .block(
        BlockSchema::new(
            "consul",
            &[],
            "Instances of a service in the Consul catalog, watched.",
        )
        .attribute(
            "service",
            Type::String,
            Some("the upstream's name"),
            "\"orders\"",
            "The service's name.",
        )
        .attribute(
            "prepared_query",
            Type::String,
            None,
            "\"orders-nearest\"",
            "In place of a service: whatever this prepared query finds, executed every 5 s. It has its own failover and filters.",
        )
        .at_most_one_of(&["service", "prepared_query"])
        .at_most_one_of(&["failover", "prepared_query"])
        .at_most_one_of(&["filter", "prepared_query"])
        .attribute(
            "datacenter",
            Type::Name,
            None,
            "\"dc2\"",
            "Another datacenter. Left out: the agent's own.",
        )
        .attribute(
            "failover",
            Type::List(&Type::Name),
            Some("[]"),
            "[\"dc2\", \"dc3\"]",
            "Datacenters to use, in this order, while those before have no healthy instance.",
        )
        .attribute(
            "namespace",
            Type::Name,
            None,
            "\"shop\"",
            "Consul Enterprise only.",
        )
        .attribute(
            "partition",
            Type::Name,
            None,
            "\"edge\"",
            "Consul Enterprise only.",
        )
        .attribute(
            "filter",
            Type::String,
            None,
            "\"Service.Meta.version == v2\"",
            "A Consul filter expression over the health answer: instances it does not take are left out.",
        )
        .attribute(
            "port",
            Type::Name,
            None,
            "\"http\"",
            "A named port (Consul 1.22 and newer). Left out: the default port.",
        )
        .attribute(
            "only_passing",
            Type::Bool,
            Some("false"),
            "true",
            "Leaves out instances in warning. Otherwise they serve with their warning weight.",
        ),
        Occurs::Optional,
    )
    .block(
        BlockSchema::new(
            "nomad",
            &[],
            "Instances of a Nomad service (`provider = \"nomad\"`), watched. Nomad says nothing of their health, so Envoy checks them: see health_check.",
        )
        .attribute(
            "service",
            Type::String,
            Some("the upstream's name"),
            "\"orders\"",
            "The service's name.",
        )
        .attribute(
            "namespace",
            Type::String,
            Some("the agent's own"),
            "\"shop\"",
            "A Nomad namespace; \"*\": all that the agent's token may read.",
        )
        .attribute(
            "region",
            Type::Name,
            Some("the agent's own"),
            "\"eu\"",
            "A Nomad region.",
        )
        .attribute(
            "filter",
            Type::String,
            None,
            "\"\\\"v2\\\" in Tags\"",
            "A Nomad filter expression over the registrations: instances it does not take are left out.",
        ),
        Occurs::Optional,
    )
    .block(
        BlockSchema::new("static", &[], "Fixed addresses.").required(
            "addresses",
            Type::List(&Type::HostPort),
            "[\"10.0.0.7:8080\"]",
            "IP addresses with ports.",
        ),
        Occurs::Optional,
    )
    .block(
        BlockSchema::new(
            "dns",
            &[],
            "A host name that Envoy resolves, all its addresses of one family used.",
        )
        .required(
            "address",
            Type::HostPort,
            "\"legacy.example.com:8080\"",
            "Host name and port.",
        )
        .attribute(
            "lookup_family",
            Type::Word(&["v4_preferred", "v6_preferred", "v4_only", "v6_only", "all"]),
            Some("\"v4_preferred\""),
            "\"v6_only\"",
            "Which addresses are used where a name has some of IPv4 and some of IPv6: those of one family, and of the other only where there are none of it; or `all`, which needs routes to both.",
        ),
        Occurs::Optional,
    )
    .block(connect::schema(), Occurs::Optional)
    .exactly_one_of(&["consul", "connect", "nomad", "static", "dns"])
    .attribute(
        "protocol",
        Type::Word(&["http", "http2"]),
        Some("\"http\""),
        "\"http2\"",
        "What instances speak: HTTP/1.1, or HTTP/2 without TLS (gRPC). In the mesh, left out, Consul's discovery chain says it.",
    )
    .attribute(
        "load_balancer",
        Type::Word(&["least_request", "round_robin", "random"]),
        Some("\"least_request\""),
        "\"round_robin\"",
        "How an instance is chosen: the less busy of two, in turns, or at random. The first two go by the instances' weights; `random` only leaves out those of weight 0. In the mesh, left out, Consul's discovery chain says it.",
    )
    .attribute(
        "connect_timeout",
        Type::Duration(10, 60_000),
        Some("\"5s\""),
        "\"1s\"",
        "Longest time to a connection. In the mesh, left out, Consul's discovery chain says it.",
    )
    .attribute(
        "idle_timeout",
        Type::Duration(100, 86_400_000),
        Some("\"1h\""),
        "\"4s\"",
        "How long a connection to an instance is kept without a request. Less than the instance keeps it itself: a request on one that it is closing gets 503 (Node closes after 5 s, gunicorn after 2 s).",
    )
    .block(
        BlockSchema::new(
            "circuit_breaker",
            &[],
            "Bounds per Envoy; what is over them answers 503 at once.",
        )
        .attribute(
            "max_connections",
            Type::Integer(1, 1_000_000),
            Some("10000"),
            "1000",
            "Connections.",
        )
        .attribute(
            "max_pending_requests",
            Type::Integer(1, 1_000_000),
            Some("10000"),
            "500",
            "Requests waiting for a connection.",
        )
        .attribute(
            "max_requests",
            Type::Integer(1, 1_000_000),
            Some("10000"),
            "2000",
            "Requests under way.",
        )
        .attribute(
            "max_retries",
            Type::Integer(0, 1_000_000),
            Some("1000"),
            "50",
            "Retries under way.",
        ),
        Occurs::Optional,
    )
    .block(health_check::schema(), Occurs::Optional)
}

pub(super) fn decode(decoder: &mut Decoder<'_>, block: &Block, reader: &Reader<'_>) -> Upstream {
    let name: Arc<str> = block.label(0).into();
    let source = if let Some(consul) = reader.child("consul") {
        let prepared = consul.string("prepared_query");
        let lookup = match prepared {
            Some(_) => Lookup::PreparedQuery,
            None => Lookup::Service,
        };
        let service = prepared
            .or_else(|| consul.string("service"))
            .unwrap_or_else(|| name.clone());
        if service.is_empty() {
            let problem = match lookup {
                Lookup::PreparedQuery => Diagnostic::error(
                    Code::InvalidValue,
                    "the prepared query's name is empty",
                )
                .at(consul.origin_of("prepared_query"))
                .because("what finds the instances is a query that Consul keeps under a name or an ID")
                .fix("name the query, or leave `prepared_query` out: then instances are those of a service"),
                _ => Diagnostic::error(Code::InvalidValue, "the service's name is empty")
                    .at(consul.origin_of("service"))
                    .because("Consul has no service without a name")
                    .fix("name the service, or leave `service` out: then it is the upstream's name"),
            };
            decoder.problems.push(problem);
        }
        let narrowing = Narrowing {
            datacenter: consul.string("datacenter"),
            namespace: consul.string("namespace"),
            partition: consul.string("partition"),
            peer: None,
            filter: consul.string("filter"),
        };
        let query = ServiceQuery::new(lookup, service, narrowing.clone());
        let mut seen = HashSet::from([narrowing.datacenter.clone()]);
        let mut failover = Vec::new();
        for (name, origin) in consul.strings_with_origin("failover") {
            let datacenter = Some(name.clone());
            if !seen.insert(datacenter.clone()) {
                decoder.problems.push(
                    Diagnostic::error(Code::Conflict, format!("the datacenter {name:?} is named twice"))
                        .at(origin),
                );
                continue;
            }
            let narrowing = Narrowing {
                datacenter,
                ..narrowing.clone()
            };
            failover.push(ServiceQuery::new(lookup, query.name.clone(), narrowing));
        }
        UpstreamSource::Consul {
            query,
            failover,
            port: consul.string("port"),
            only_passing: consul.boolean("only_passing").unwrap_or(false),
        }
    } else if let Some(nomad) = reader.child("nomad") {
        let service = nomad.string("service").unwrap_or_else(|| name.clone());
        if service.is_empty() {
            decoder.problems.push(
                Diagnostic::error(Code::InvalidValue, "the service's name is empty")
                    .at(nomad.origin_of("service"))
                    .because("Nomad has no service without a name")
                    .fix("name the service, or leave `service` out: then it is the upstream's name"),
            );
        }
        UpstreamSource::Nomad {
            query: ServiceQuery::new(
                Lookup::Nomad,
                service,
                Narrowing {
                    datacenter: nomad.string("region"),
                    namespace: nomad.string("namespace"),
                    filter: nomad.string("filter"),
                    ..Narrowing::default()
                },
            ),
        }
    } else if let Some(connect) = reader.child("connect") {
        connect::decode(decoder, &name, &connect, reader)
    } else if let Some(fixed) = reader.child("static") {
        let addresses = fixed.strings_with_origin("addresses");
        for (address, origin) in &addresses {
            let host = address.rsplit_once(':').map_or(&**address, |(host, _)| host);
            if host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_err() {
                decoder.problems.push(
                    Diagnostic::error(Code::InvalidValue, format!("{address:?} is a host name"))
                        .at(origin.clone())
                        .because("fixed addresses are used as they stand; nobody resolves them")
                        .fix(format!(
                            "write `dns {{ address = {address:?} }}` in place of the static block"
                        )),
                );
            }
            decoder.require_address(address, origin);
        }
        if addresses.is_empty() {
            decoder.problems.push(
                Diagnostic::error(Code::MissingKey, "addresses is empty")
                    .at(fixed.origin_of("addresses"))
                    .because("an upstream without an address answers nothing but 503")
                    .fix("add `addresses = [\"10.0.0.7:8080\"]`"),
            );
        }
        UpstreamSource::Static(addresses.into_iter().map(|(address, _)| address).collect())
    } else {
        let dns = reader.child("dns").unwrap_or(*reader);
        let address = dns.string("address").unwrap_or_default();
        decoder.require_address(&address, &dns.origin_of("address"));
        UpstreamSource::Dns(DnsName {
            address,
            family: match dns.string("lookup_family").as_deref() {
                Some("v6_preferred") => LookupFamily::V6Preferred,
                Some("v4_only") => LookupFamily::V4Only,
                Some("v6_only") => LookupFamily::V6Only,
                Some("all") => LookupFamily::All,
                _ => LookupFamily::V4Preferred,
            },
        })
    };
    Upstream {
        name,
        origin: reader.origin(),
        options: UpstreamOptions {
            health_check: health_check::decode(decoder, reader, &source),
            ..options(reader)
        },
        source,
    }
}

pub(super) fn options(reader: &Reader<'_>) -> UpstreamOptions {
    let defaults = UpstreamOptions::default();
    let breaker = reader
        .child("circuit_breaker")
        .map_or(defaults.circuit_breaker, |block| {
            let default = CircuitBreaker::default();
            CircuitBreaker {
                max_connections: block
                    .unsigned("max_connections")
                    .unwrap_or(default.max_connections),
                max_pending_requests: block
                    .unsigned("max_pending_requests")
                    .unwrap_or(default.max_pending_requests),
                max_requests: block.unsigned("max_requests").unwrap_or(default.max_requests),
                max_retries: block.unsigned("max_retries").unwrap_or(default.max_retries),
            }
        });
    UpstreamOptions {
        protocol: match reader.string("protocol").as_deref() {
            Some("http2") => UpstreamProtocol::Http2,
            _ => UpstreamProtocol::Http1,
        },
        load_balancer: match reader.string("load_balancer").as_deref() {
            Some("round_robin") => LoadBalancer::RoundRobin,
            Some("random") => LoadBalancer::Random,
            _ => LoadBalancer::LeastRequest,
        },
        connect_timeout: reader
            .duration("connect_timeout")
            .unwrap_or(defaults.connect_timeout),
        idle_timeout: reader.duration("idle_timeout"),
        circuit_breaker: breaker,
        health_check: None,
    }
}

impl Decoder<'_> {
    fn require_address(&mut self, address: &str, origin: &crate::model::Origin) {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        let port = port.parse().unwrap_or(0);
        if let Some(refusal) = self
            .permissions
            .address_refusal(&self.source.document, host, port)
        {
            self.problems.push(
                Diagnostic::error(
                    Code::NotAllowed,
                    format!("a document from KV may not send requests to {address:?}"),
                )
                .at(origin.clone())
                .because(refusal.why)
                .fix(refusal.fix),
            );
        }
    }
}
