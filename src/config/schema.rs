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
            .block(super::upstream::schema(), Occurs::Many)
            .block(policy_schema(), Occurs::Many)
    });
    &SCHEMA
}

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

fn policy_blocks(mut schema: BlockSchema) -> BlockSchema {
    for feature in FEATURES {
        match feature.form() {
            Form::Block(block) => schema.blocks.push((block, Occurs::Optional)),
            Form::Attribute(attribute) => schema.attributes.push(attribute),
        }
    }
    schema
}
