//! Connections passed on as they are.

use super::document::Decoder;
use super::objects::TcpRoute;
use super::route::{decode_backends, names};
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{Block, BlockSchema, Occurs, Reader, Type};

pub(super) fn schema() -> BlockSchema {
    BlockSchema::new(
        "tcp_route",
        &["name"],
        "Where the connections of tcp listeners go: bytes are passed on as they are. A listener has one route: of several \
         that name it the older document's holds.",
    )
    .required("gateways", Type::List(&Type::Name), "[\"edge\"]", "The gateways that serve this route.")
    .required(
        "listeners",
        Type::List(&Type::Name),
        "[\"postgres\"]",
        "Listeners of these gateways, with `protocol = \"tcp\"`, whose connections it takes.",
    )
    .attribute(
        "connect_attempts",
        Type::Integer(1, 10),
        Some("3"),
        "5",
        "Instances tried for one connection, each for the upstream's `connect_timeout`, with up to 50 ms \
         in between. Nothing was sent to one that did not answer, so that trying another is safe.",
    )
    .block(
        BlockSchema::new(
            "backend",
            &["kind", "name"],
            "A destination: `consul` and a service's name, or `upstream` and an upstream's.",
        )
        .attribute("weight", Type::Integer(0, 1_000_000), Some("1"), "90", "Its share of new connections. 0: none."),
        Occurs::AtLeastOnce,
    )
}

pub(super) fn decode(decoder: &mut Decoder<'_>, block: &Block, reader: &Reader<'_>) -> TcpRoute {
    for list in ["gateways", "listeners"] {
        if reader.strings(list).is_empty() {
            decoder.problems.push(
                Diagnostic::error(
                    Code::MissingKey,
                    format!("{list} is empty: the route would take no connection"),
                )
                .at(reader.origin_of(list))
                .because("a tcp route belongs to the gateways and listeners that it names")
                .fix("name at least one"),
            );
        }
    }
    TcpRoute {
        name: block.label(0).into(),
        origin: reader.origin(),
        gateways: names(reader, "gateways"),
        listeners: names(reader, "listeners"),
        backends: decode_backends(decoder, reader),
        connect_attempts: reader.unsigned("connect_attempts").unwrap_or(3),
    }
}
