use std::sync::LazyLock;

use crate::features::{FEATURES, Form};
use crate::hcl::{BlockSchema, Occurs, Type};

/// The whole language. Everything that knows what may be written reads this.
pub fn document_schema() -> &'static BlockSchema {
    static SCHEMA: LazyLock<BlockSchema> = LazyLock::new(|| {
        BlockSchema::new("", &[], "A document: any number of blocks.")
            .block(super::gateway::schema(), Occurs::Many)
            .block(super::certificate::schema(), Occurs::Many)
            .block(super::route::schema(), Occurs::Many)
            .block(super::tcp_route::schema(), Occurs::Many)
            .block(super::upstream::schema(), Occurs::Many)
            .block(policy_schema(), Occurs::Many)
            .planned(PLANNED_KINDS)
    });
    &SCHEMA
}

/// Named by the design and not built yet: whoever writes one reads that, and not only that nobody knows the word.
const PLANNED_KINDS: &[(&str, &str)] = &[
    (
        "tls_route",
        "TLS connections passed on unopened, by the name that the client asks for",
    ),
    ("udp_route", "datagrams passed on, by port"),
    (
        "delegate",
        "a part of the tree that may touch only some hosts and paths",
    ),
    (
        "envoy_patch",
        "Envoy configuration of your own, laid over what is made",
    ),
];

/// Policies of later versions.
const PLANNED_POLICIES: &[(&str, &str)] = &[
    ("rate_limit", "bounds on requests in a time"),
    ("cors", "answers to browsers that ask on behalf of another site"),
    ("jwt", "requests let in by a signed token"),
    ("ext_authz", "requests let in by a service of yours"),
];

fn policy_schema() -> BlockSchema {
    policy_blocks(BlockSchema::new(
        "policy",
        &["name"],
        "A named bundle of policies, taken over with `policies = [\"name\"]` on a gateway, listener, route or rule.",
    ))
}

/// A scope: bundles by name, and every policy's own block.
pub(super) fn with_policies(schema: BlockSchema) -> BlockSchema {
    policy_blocks(schema.attribute(
        "policies",
        Type::List(&Type::Name),
        Some("[]"),
        "[\"standard\"]",
        "Bundles of policies, later ones over earlier ones; blocks that stand here themselves win over all of them.",
    ))
}

/// A backend among several: only what Envoy can do for one of them. The others are named, to say where they may stand.
pub(super) fn with_backend_policies(mut schema: BlockSchema) -> BlockSchema {
    for feature in FEATURES {
        match feature.form() {
            Form::Block(block) if feature.on_backend() => schema.blocks.push((block, Occurs::Optional)),
            _ => schema.elsewhere.push(feature.name()),
        }
    }
    schema.elsewhere.push("policies");
    schema
}

fn policy_blocks(schema: BlockSchema) -> BlockSchema {
    let mut schema = schema.planned(PLANNED_POLICIES);
    for feature in FEATURES {
        match feature.form() {
            Form::Block(block) => schema.blocks.push((block, Occurs::Optional)),
            Form::Attribute(attribute) => schema.attributes.push(attribute),
        }
    }
    schema
}
