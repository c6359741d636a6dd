use std::collections::HashSet;

use super::schema::{BlockSchema, Occurs};
use super::tree::{Body, Source};
use super::value_types::mismatch;
use crate::diagnostics::{Code, Diagnostic, Problems, suggestion};
use crate::model::Span;

/// Holds a tree against its schema: every problem, not only the first (more than a hundred are counted). What passes can be
/// read without further checks.
pub fn check(source: &Source, body: &Body, schema: &BlockSchema) -> Vec<Diagnostic> {
    let mut problems = Problems::default();
    check_body(source, body, schema, Span::default(), &mut problems);
    problems.told()
}

fn check_body(source: &Source, body: &Body, schema: &BlockSchema, header: Span, problems: &mut Problems) {
    let place = schema.place();
    check_attributes(source, body, schema, place, problems);
    check_blocks(source, body, schema, place, problems);
    for attribute in schema.attributes.iter().filter(|attribute| attribute.required) {
        if body.attribute(attribute.name).is_none() {
            problems.push(
                Diagnostic::error(
                    Code::MissingKey,
                    format!("{place} needs the attribute {:?}", attribute.name),
                )
                .at(source.origin(header))
                .because(attribute.doc)
                .fix(format!("add `{} = {}`", attribute.name, attribute.example)),
            );
        }
    }
    for (block, occurs) in &schema.blocks {
        let count = body.blocks_of(block.kind).count();
        if count == 0 && matches!(occurs, Occurs::Once | Occurs::AtLeastOnce) {
            problems.push(
                Diagnostic::error(
                    Code::MissingKey,
                    format!("{place} needs a block {:?}", block.kind),
                )
                .at(source.origin(header))
                .because(block.doc)
                .fix(format!("add `{}`", shape_of(block))),
            );
        }
    }
    for (names, must) in &schema.one_of {
        let present: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| body.attribute(name).is_some() || body.block(name).is_some())
            .collect();
        if present.len() > 1 {
            problems.push(
                Diagnostic::error(
                    Code::Conflict,
                    format!("{place} cannot have both {:?} and {:?}", present[0], present[1]),
                )
                .at(source.origin(header))
                .because("only one of them can be in effect, and nothing says which")
                .fix(format!("keep one of {}", names.join(", "))),
            );
        } else if present.is_empty() && *must {
            problems.push(
                Diagnostic::error(
                    Code::MissingKey,
                    format!("{place} needs one of {}", names.join(", ")),
                )
                .at(source.origin(header))
                .because("without one of them it says nothing")
                .fix(match names.first().map(|name| example_of(schema, name)) {
                    Some(example) => format!("for example `{example}`"),
                    None => "see the reference".to_owned(),
                }),
            );
        }
    }
}

fn check_attributes(
    source: &Source,
    body: &Body,
    schema: &BlockSchema,
    place: &str,
    problems: &mut Problems,
) {
    let mut seen = HashSet::new();
    for attribute in &body.attributes {
        let Some(known) = schema.attribute_schema(&attribute.name) else {
            let block = schema.block_schema(&attribute.name).map(|_| {
                format!(
                    "{:?} is a block: write `{} {{ ... }}` without \"=\"",
                    attribute.name, attribute.name
                )
            });
            problems.push(unknown(
                source,
                "attribute",
                &attribute.name,
                attribute.name_span,
                schema,
                place,
                block,
            ));
            continue;
        };
        if !seen.insert(attribute.name.as_str()) {
            problems.push(
                Diagnostic::error(Code::Conflict, format!("{:?} is set twice", attribute.name))
                    .at(source.origin(attribute.name_span))
                    .because("only one of the two values can be in effect, and nothing says which")
                    .fix("keep one of them"),
            );
        }
        if let Some((span, why)) = mismatch(&known.ty, &attribute.value) {
            problems.push(
                Diagnostic::error(Code::InvalidValue, format!("{}: {why}", attribute.name))
                    .at(source.origin(span))
                    .because(known.doc)
                    .fix(format!("for example `{} = {}`", attribute.name, known.example)),
            );
        }
    }
}

fn check_blocks(source: &Source, body: &Body, schema: &BlockSchema, place: &str, problems: &mut Problems) {
    let mut seen = HashSet::new();
    for block in &body.blocks {
        let Some((known, occurs)) = schema.block_schema(&block.kind) else {
            let attribute = schema.attribute_schema(&block.kind).map(|attribute| {
                format!(
                    "{:?} is an attribute: write `{} = {}`",
                    block.kind, block.kind, attribute.example
                )
            });
            problems.push(unknown(
                source,
                "block",
                &block.kind,
                block.span,
                schema,
                place,
                attribute,
            ));
            continue;
        };
        if block.labels.len() != known.labels.len() {
            problems.push(
                Diagnostic::error(
                    Code::MissingKey,
                    format!(
                        "{} takes {} label(s), found {}",
                        known.kind,
                        known.labels.len(),
                        block.labels.len()
                    ),
                )
                .at(source.origin(block.span))
                .because(
                    "labels name a block, so that others can refer to it and messages can say which it is",
                )
                .fix(format!("write `{}`", shape_of(known))),
            );
        }
        for (label, span) in &block.labels {
            let value = super::tree::Value {
                kind: super::tree::ValueKind::String(label.clone()),
                span: *span,
            };
            if let Some((span, why)) = mismatch(&super::schema::Type::Name, &value) {
                problems.push(
                    Diagnostic::error(Code::InvalidValue, why)
                        .at(source.origin(span))
                        .because("other documents, Envoy's statistics and KV keys name it too")
                        .fix("keep to letters, digits, '.', '_' and '-'"),
                );
            }
        }
        let told_apart_by: Option<Vec<&str>> = match occurs {
            Occurs::Optional | Occurs::Once => Some(Vec::new()),
            _ if block.labels.is_empty() => None,
            _ => Some(block.labels.iter().map(|(label, _)| label.as_str()).collect()),
        };
        if told_apart_by.is_some_and(|labels| !seen.insert((block.kind.as_str(), labels))) {
            problems.push(
                Diagnostic::error(Code::Conflict, format!("this block stands twice in {place}"))
                    .at(source.origin(block.span))
                    .because("only one of the two can be in effect, and nothing says which")
                    .fix("keep one, or give the second another label where labels are allowed"),
            );
        }
        check_body(source, &block.body, known, block.span, problems);
    }
}

fn unknown(
    source: &Source,
    what: &str,
    name: &str,
    span: Span,
    schema: &BlockSchema,
    place: &str,
    other_form: Option<String>,
) -> Diagnostic {
    let names = schema
        .attributes
        .iter()
        .map(|attribute| attribute.name)
        .chain(schema.blocks.iter().map(|(block, _)| block.kind));
    let fix = other_form
        .or_else(|| suggestion(name, names.clone()).map(|near| format!("did you mean {near:?}?")))
        .unwrap_or_else(|| format!("known here: {}", names.collect::<Vec<_>>().join(", ")));
    let diagnostic = Diagnostic::error(Code::UnknownKey, format!("unknown {what} {name:?} in {place}"))
        .at(source.origin(span));
    match schema.planned_doc(name) {
        Some(doc) => diagnostic
            .because(format!("{name} is planned and not there yet: {doc}"))
            .fix("take it away until a version has it; the README's status section says what there is"),
        None if schema.elsewhere.contains(&name) => {
            let here: Vec<&str> = schema.blocks.iter().map(|(block, _)| block.kind).collect();
            diagnostic
                .because(format!(
                    "{name} holds for all requests of a rule: Envoy cannot do it for one {place} of several"
                ))
                .fix(format!(
                    "move it to the rule, route, listener or gateway; here may stand: {}",
                    here.join(", ")
                ))
        }
        None => diagnostic
            .because("what is not known is not ignored: a slip would be lost in silence")
            .fix(fix),
    }
}

/// How a block is written: `listener "<name>" { ... }`.
fn shape_of(schema: &BlockSchema) -> String {
    let labels: String = schema
        .labels
        .iter()
        .map(|label| format!(" \"<{label}>\""))
        .collect();
    format!("{}{labels} {{ ... }}", schema.kind)
}

fn example_of(schema: &BlockSchema, name: &str) -> String {
    match (schema.block_schema(name), schema.attribute_schema(name)) {
        (Some((block, _)), _) => shape_of(block),
        (None, Some(attribute)) => format!("{name} = {}", attribute.example),
        (None, None) => name.to_owned(),
    }
}
