//! The reference documentation, written from the schema: what is not in the schema cannot be in a document.

use std::fmt::Write as _;

use super::schema::document_schema;
use crate::diagnostics::Code;
use crate::features::{FEATURES, Form};
use crate::hcl::{AttributeSchema, BlockSchema, Limits, Occurs};

/// `docs/reference/documents.md`.
pub fn reference_markdown() -> String {
    let limits = Limits::default();
    let mut text = format!(
        "# Documents\n\n\
         Generated from the schema (`UPDATE_REFERENCE=1 cargo test --test golden reference`): do not edit.\n\n\
         A document is one HCL or JSON text: a file, or one KV key. It has at most {} KiB and 64 levels of nesting. It \
         holds any number of the blocks below, in any order; the names of one kind are unique over all documents.\n\n\
         - A block written on one line holds one attribute at most.\n\
         - In a string a backslash is written twice (`\"\\\\d+\"`); `${{` and `%{{` begin expressions, which are refused: \
         write `$${{` and `%%{{` for the characters themselves.\n\
         - {DURATIONS}\n\
         - Outside of strings, heredocs and comments there is no operator: more than 8, or more than 4096 keys in one object, are \
         refused before anything is read (`too-large`). A heredoc whose first line is its end is refused, too: write `\"\"`.\n\
         - What the routes of a document multiply to, gateways x hostnames x matches (once more for every eighth backend of a rule, \
         for each 2 KiB of what stands in it or around it beside its matches, and for each 8 KiB of what Envoy compiles a regular \
         expression to), is at most 100,000; rounded up to a power of two, times the listeners for http and https of a gateway, \
         and once more for each 2 KiB of the gateway's policies and the bundles in `policies`, at most 524,288: beyond that the document \
         is taken, and that gateway serves none of its route (404), also where a later edit of the gateway or a bundle is the cause. \
         A gateway has at most 64 such listeners, and 1,024 in all, each with at most 16,384 certificates; a rule or TCP route at most 256 backends, and `policies` at most \
         64 bundles.\n\
         - Of a document's problems the first 100 are told, and the others counted.\n\
         - A document whose first character is `{{` is read as JSON: a block is a member, its labels nest \
         (`{{\"upstream\": {{\"app\": {{...}}}}}}`), a list of objects repeats it.\n\
         - A document with an error is not taken in part: its last good version stays in service.\n\n",
        limits.document_bytes / 1024
    );
    for (block, _) in &document_schema().blocks {
        write_block(&mut text, block, &[]);
    }
    text.push_str(
        "## Policies\n\n\
         Each may stand on a gateway, listener, route or rule, and in a `policy` bundle; those that edit headers on a \
         backend too. For each of them apart the nearest one wins: the backend's over the rule's, over the route's, over the listener's, over the gateway's; and at one place a block over \
         the bundles that `policies` names there.\n\n",
    );
    for feature in FEATURES {
        match feature.form() {
            Form::Block(block) => write_block(&mut text, &block, &["policies"]),
            Form::Attribute(attribute) => {
                let _ = write!(text, "### `{}`\n\n", attribute.name);
                write_attribute(&mut text, &attribute);
                text.push('\n');
            }
        }
        let name = feature.name();
        let _ = write!(text, "More: [{name}](../policies/{name}.md)\n\n");
    }
    format!("{}\n", text.trim_end())
}

/// How a duration is written, in documents and settings.
pub const DURATIONS: &str = "A duration is a number with a unit, or several that are added: `\"250ms\"`, `\"10s\"`, `\"1m30s\"`, `\"1.5h\"`. \
     Units are `ms`, `s`, `m` (minutes), `h`, `d` (24 hours) and `w`; nothing is finer than a millisecond, and a number alone is none.";

/// `docs/reference/diagnostics.md`.
pub fn diagnostics_markdown() -> String {
    let mut text = String::from(
        "# Diagnostics\n\n\
         Generated from the source (`UPDATE_REFERENCE=1 cargo test --test golden reference`): do not edit.\n\n\
         Every problem has a code that scripts and alerts may rely on, the document and line, a reason and a fix. The \
         same is shown by the command line, the API, the log and the status keys. What each kind of bad input gets, \
         example by example: [bad input](../bad-input.md).\n\n\
         | Code | Meaning |\n|---|---|\n",
    );
    for code in Code::ALL {
        let _ = writeln!(text, "| `{}` | {} |", code.as_str(), code.explanation());
    }
    text
}

/// One block with everything in it. Also what the page of the agent's settings is made of.
pub fn write_block(text: &mut String, block: &BlockSchema, outer: &[&str]) {
    let labels: String = block
        .labels
        .iter()
        .map(|label| format!(" \"<{label}>\""))
        .collect();
    let heading = "#".repeat((outer.len() + 2).min(6));
    let path: String = outer
        .iter()
        .filter(|kind| **kind != "policies")
        .map(|kind| format!("{kind} > "))
        .collect();
    let _ = write!(
        text,
        "{heading} {path}`{}{labels}`\n\n{}\n\n",
        block.kind, block.doc
    );
    // Scopes alone take policies: the `timeout` of a health check is its own.
    let takes_bundles = || {
        block
            .attributes
            .iter()
            .any(|attribute| attribute.name == "policies")
    };
    let is_scope = block.kind == "policy" || !block.elsewhere.is_empty() || takes_bundles();
    let is_policy = |name: &str| {
        is_scope
            && FEATURES.iter().any(|feature| match feature.form() {
                Form::Block(form) => form.kind == name,
                Form::Attribute(form) => form.name == name,
            })
    };
    let mut takes_policies = false;
    for attribute in &block.attributes {
        if is_policy(attribute.name) {
            takes_policies = true;
        } else {
            write_attribute(text, attribute);
        }
    }
    let inner: Vec<_> = block
        .blocks
        .iter()
        .filter(|(inner, _)| !is_policy(inner.kind))
        .collect();
    for (inner, occurs) in &inner {
        let _ = writeln!(text, "- block `{}`: {}.", inner.kind, how_often(*occurs));
    }
    for (names, must) in &block.one_of {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let bound = if *must { "Exactly one" } else { "At most one" };
        let _ = writeln!(text, "- {bound} of {}.", names.join(", "));
    }
    takes_policies |= block.blocks.iter().any(|(inner, _)| is_policy(inner.kind));
    if takes_policies && !block.elsewhere.is_empty() {
        let here = block.blocks.iter().map(|(inner, _)| format!("`{}`", inner.kind));
        let here: Vec<String> = here.collect();
        let _ = writeln!(
            text,
            "- Of the [policies](#policies) only {} may stand here, and win over the rule's.",
            here.join(" and ")
        );
    } else if takes_policies {
        text.push_str("- [Policies](#policies) may stand here.\n");
    }
    text.push('\n');
    let outer: Vec<&str> = outer.iter().copied().chain([block.kind]).collect();
    for (inner, _) in inner {
        write_block(text, inner, &outer);
    }
}

pub fn write_attribute(text: &mut String, attribute: &AttributeSchema) {
    let need = match (attribute.required, attribute.default) {
        (true, _) => "; required".to_owned(),
        (false, Some(default)) => format!("; default `{default}`"),
        (false, None) => String::new(),
    };
    let _ = writeln!(
        text,
        "- `{} = {}`: {}{need}. {}",
        attribute.name,
        attribute.example,
        attribute.ty.describe(),
        attribute.doc
    );
}

fn how_often(occurs: Occurs) -> &'static str {
    match occurs {
        Occurs::Optional => "at most once",
        Occurs::Once => "exactly once",
        Occurs::Many => "any number",
        Occurs::AtLeastOnce => "at least once",
    }
}
