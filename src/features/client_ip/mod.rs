//! `client_ip`: which client addresses may use a route. A security policy: it never fails open.

mod xds;

use std::sync::Arc;

use serde::Serialize;

use super::{Feature, Form, RouteParts, Stage, StagedFilter};
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{BlockSchema, Reader, Type};

pub struct ClientIp;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClientIpPolicy {
    allow: Vec<Arc<str>>,
    deny: Vec<Arc<str>>,
}

impl Feature for ClientIp {
    type Policy = ClientIpPolicy;

    const NAME: &'static str = "client_ip";
    const SECURITY: bool = true;

    fn form(&self) -> Form {
        Form::Block(
            BlockSchema::new(
                "client_ip",
                &[],
                "Answers 403 to clients by address. The address is the one after the trusted proxies \
                 (`trusted_proxies` of the listener), never one that a client can claim.",
            )
            .attribute(
                "allow",
                Type::List(&Type::Cidr),
                None,
                "[\"10.0.0.0/8\"]",
                "Only these, when set. An empty list allows nobody.",
            )
            .attribute(
                "deny",
                Type::List(&Type::Cidr),
                Some("[]"),
                "[\"10.6.6.0/24\"]",
                "Never these, even if allowed above.",
            ),
        )
    }

    fn decode(&self, reader: &Reader<'_>, problems: &mut Vec<Diagnostic>) -> Option<ClientIpPolicy> {
        if !reader.has("allow") && !reader.has("deny") {
            problems.push(
                Diagnostic::error(Code::MissingKey, "client_ip needs allow, deny or both")
                    .at(reader.origin())
                    .because("a list of addresses that names none would decide nothing")
                    .fix(
                        "add `allow = [\"10.0.0.0/8\"]`, or `disabled = true` to switch an inherited one off",
                    ),
            );
            return None;
        }
        let allow = if reader.has("allow") {
            reader.strings("allow")
        } else {
            vec!["0.0.0.0/0".into(), "::/0".into()]
        };
        Some(ClientIpPolicy {
            allow,
            deny: reader.strings("deny"),
        })
    }

    fn apply(&self, policy: &ClientIpPolicy, route: &mut RouteParts) {
        route
            .filter_config
            .insert(xds::FILTER_NAME, xds::per_route(policy));
    }

    fn http_filter(&self) -> Option<StagedFilter> {
        Some(StagedFilter {
            stage: Stage::Access,
            filter: xds::filter(),
        })
    }
}
