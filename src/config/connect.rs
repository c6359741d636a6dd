//! The `connect` block of an upstream: a service of Consul's mesh.

use std::sync::Arc;

use super::document::Decoder;
use super::objects::{ConnectSource, UpstreamSource};
use super::upstream::options;
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{BlockSchema, Reader, Type};
use crate::model::mesh::ChainQuery;
use crate::model::{Lookup, Narrowing, ServiceQuery};

pub(super) fn schema() -> BlockSchema {
    BlockSchema::new(
        "connect",
        &[],
        "A service of Consul's mesh: the gateway shows its own certificate, checks the other side's, and follows the \
         service's discovery chain. Needs a `mesh` block in the agent's settings.",
    )
    .attribute(
        "service",
        Type::String,
        Some("the upstream's name"),
        "\"petstore\"",
        "The service's name, not that of its sidecar.",
    )
    .attribute(
        "datacenter",
        Type::Name,
        None,
        "\"dc2\"",
        "Another datacenter. Left out: the agent's own.",
    )
    .attribute(
        "mesh_gateway",
        Type::Name,
        Some("\"mesh-gateway\""),
        "\"mesh-gateway\"",
        "The name that mesh gateways are registered under; used for targets in another datacenter, where Consul's config entries say so.",
    )
    .attribute(
        "port",
        Type::Name,
        None,
        "\"admin\"",
        "A named port of the service (Consul Enterprise 2.0 and newer). Its sidecars are asked for it, and the discovery chain is \
         not followed: Consul does so for the default port alone. Left out: the default port.",
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
        "sidecar",
        Type::Bool,
        Some("false"),
        "true",
        "The gateway's own sidecar dials the service, in place of Envoy: it must be among the upstreams of the sidecar that \
         the agent's `mesh` block names, on this machine.",
    )
    .attribute(
        "peer",
        Type::Name,
        None,
        "\"west\"",
        "A service of another cluster, imported over this peering. Needs `sidecar = true`.",
    )
}

pub(super) fn decode(
    decoder: &mut Decoder<'_>,
    name: &Arc<str>,
    connect: &Reader<'_>,
    upstream: &Reader<'_>,
) -> UpstreamSource {
    let service = connect.string("service").unwrap_or_else(|| name.clone());
    if service.is_empty() || &*service == "*" {
        decoder.problems.push(
            Diagnostic::error(
                Code::InvalidValue,
                format!("{service:?} is not the name of a service"),
            )
            .at(connect.origin_of("service"))
            .because("the gateway follows the discovery chain of one service")
            .fix("name the service, or leave `service` out: then it is the upstream's name"),
        );
    }
    let through_sidecar = connect.boolean("sidecar").unwrap_or(false);
    if connect.has("peer") && !through_sidecar {
        decoder.problems.push(
            Diagnostic::error(
                Code::MissingKey,
                "a service behind a cluster peering is reached through the gateway's own sidecar",
            )
            .at(connect.origin_of("peer"))
            .because("Consul tells a peer's trust bundle to its own proxies only, so nobody else can check who answers")
            .fix("add `sidecar = true`, and the service to the sidecar's upstreams"),
        );
    }
    if connect.has("mesh_gateway") && through_sidecar {
        decoder.problems.push(
            Diagnostic::error(
                Code::Conflict,
                "`mesh_gateway` says whom Envoy dials, and with `sidecar = true` it dials the sidecar",
            )
            .at(connect.origin_of("mesh_gateway"))
            .because("Consul tells the sidecar which mesh gateways to use")
            .fix("take one of the two away"),
        );
    }
    for (other, why) in [
        (
            "sidecar",
            "the gateway's own sidecar is asked for default ports alone",
        ),
        ("datacenter", "Consul's mesh gateways know the default port alone"),
        (
            "mesh_gateway",
            "Consul's mesh gateways know the default port alone",
        ),
    ] {
        if connect.has("port") && connect.has(other) {
            decoder.problems.push(
                Diagnostic::error(Code::Conflict, format!("`port` and `{other}` exclude each other"))
                    .at(connect.origin_of("port"))
                    .because(why)
                    .fix(format!("take `port` or `{other}` away")),
            );
        }
    }
    if through_sidecar {
        return UpstreamSource::Sidecar {
            query: ServiceQuery::new(
                Lookup::Sidecar,
                service,
                Narrowing {
                    datacenter: connect.string("datacenter"),
                    namespace: connect.string("namespace"),
                    partition: connect.string("partition"),
                    peer: connect.string("peer"),
                    filter: None,
                },
            ),
        };
    }
    let said = options(upstream);
    UpstreamSource::Connect(ConnectSource {
        query: ChainQuery {
            service,
            datacenter: connect.string("datacenter"),
            namespace: connect.string("namespace"),
            partition: connect.string("partition"),
        },
        mesh_gateway: connect
            .string("mesh_gateway")
            .unwrap_or_else(|| "mesh-gateway".into()),
        port: connect.string("port"),
        protocol: upstream.has("protocol").then_some(said.protocol),
        load_balancer: upstream.has("load_balancer").then_some(said.load_balancer),
        connect_timeout: upstream.has("connect_timeout").then_some(said.connect_timeout),
    })
}
