//! `health_check {}` of an upstream.

use super::document::Decoder;
use super::objects::UpstreamSource;
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{BlockSchema, Reader, Type};
use crate::model::http::{HealthCheck, HealthProbe};

pub(super) fn schema() -> BlockSchema {
    BlockSchema::new(
        "health_check",
        &[],
        "Envoy asks each instance whether it serves, beside what a catalog says. A nomad upstream has one unless it is disabled: a TCP connection every 5 s. A route to an upstream that is new moves there once each instance was checked; where all instances are replaced at once, those before serve until one of the new ones was.",
    )
    .attribute(
        "disabled",
        Type::Bool,
        Some("false"),
        "true",
        "Every registered instance serves.",
    )
    .attribute(
        "path",
        Type::NewPath,
        None,
        "\"/healthz\"",
        "Sends GET requests and expects 2xx. Without path and grpc_service a TCP connection is enough.",
    )
    .attribute(
        "host",
        Type::Host,
        None,
        "\"orders.internal\"",
        "The Host header of these requests. Left out: the name in `dns`, or else the upstream's. gRPC checks have that, too.",
    )
    .attribute(
        "grpc_service",
        Type::String,
        None,
        "\"shop.Orders\"",
        "Asks the standard gRPC health service about this name; \"\" for the server as a whole. Needs protocol = \"http2\".",
    )
    .at_most_one_of(&["path", "grpc_service"])
    .attribute(
        "interval",
        Type::Duration(500, 600_000),
        Some("\"5s\""),
        "\"2s\"",
        "Between two checks of one instance, from each Envoy. One that is out is checked every second at least.",
    )
    .attribute(
        "timeout",
        Type::Duration(100, 60_000),
        Some("\"2s\""),
        "\"1s\"",
        "A check without an answer for this long has failed.",
    )
    .attribute(
        "unhealthy_threshold",
        Type::Integer(1, 100),
        Some("2"),
        "3",
        "Failures in a row that take an instance out. A 503 to an HTTP check does so at once.",
    )
    .attribute(
        "healthy_threshold",
        Type::Integer(1, 100),
        Some("2"),
        "1",
        "Successes in a row that bring it back. A new instance serves after its first.",
    )
}

/// None: Envoy checks nothing.
pub(super) fn decode(
    decoder: &mut Decoder<'_>,
    reader: &Reader<'_>,
    source: &UpstreamSource,
) -> Option<HealthCheck> {
    let default = HealthCheck::default();
    let Some(block) = reader.child("health_check") else {
        return matches!(source, UpstreamSource::Nomad { .. }).then_some(default);
    };
    if block.boolean("disabled") == Some(true) {
        return None;
    }
    let probe = if let Some(path) = block.string("path") {
        HealthProbe::Http {
            path,
            host: block.string("host"),
        }
    } else if let Some(service) = block.string("grpc_service") {
        if reader.string("protocol").as_deref() != Some("http2") {
            decoder.problems.push(
                Diagnostic::error(
                    Code::Conflict,
                    "gRPC is spoken over HTTP/2, and this upstream is not",
                )
                .at(block.origin_of("grpc_service"))
                .fix("set `protocol = \"http2\"` on the upstream, or check a path"),
            );
        }
        HealthProbe::Grpc { service }
    } else {
        HealthProbe::Tcp
    };
    Some(HealthCheck {
        probe,
        interval: block.duration("interval").unwrap_or(default.interval),
        timeout: block.duration("timeout").unwrap_or(default.timeout),
        unhealthy_threshold: block
            .unsigned("unhealthy_threshold")
            .unwrap_or(default.unhealthy_threshold),
        healthy_threshold: block
            .unsigned("healthy_threshold")
            .unwrap_or(default.healthy_threshold),
    })
}
