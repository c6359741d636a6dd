use super::parse::{convert_value, syntax_error};
use super::schema::BlockSchema;
use super::tree::{Attribute, Block, Body, Source, Value, ValueKind};
use crate::diagnostics::{Code, Diagnostic};
use crate::model::Span;

/// JSON by HCL's own convention: a block is a member whose value is an object, nested once per label; a list of
/// objects repeats it. A JSON text is a valid HCL object, so one parser gives the spans of both.
pub(super) fn parse_json(source: &Source, schema: &BlockSchema) -> Result<Body, Vec<Diagnostic>> {
    // serde_json first: its errors speak of JSON, and it refuses what only HCL would take (comments, `=`).
    if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(source.text()) {
        let start = offset_of(source.text(), error.line(), error.column());
        return Err(vec![
            Diagnostic::error(Code::SyntaxError, format!("not valid JSON: {error}"))
                .at(source.origin(Span { start, end: start }))
                .because("the first character is \"{\", so the document is read as JSON"),
        ]);
    }
    let expression: hcl_edit::expr::Expression = source
        .text()
        .trim()
        .parse()
        .map_err(|error: hcl_edit::parser::Error| vec![syntax_error(source, &error)])?;
    let mut problems = Vec::new();
    let shift = source.text().len() - source.text().trim_start().len();
    let Some(mut value) = convert_value(source, &expression, &mut problems) else {
        return Err(problems);
    };
    if !problems.is_empty() {
        return Err(problems);
    }
    shift_spans(&mut value, shift);
    let mut body = Body::default();
    to_body(source, value, schema, &mut body, &mut problems);
    if problems.is_empty() {
        Ok(body)
    } else {
        Err(problems)
    }
}

fn to_body(
    source: &Source,
    value: Value,
    schema: &BlockSchema,
    body: &mut Body,
    problems: &mut Vec<Diagnostic>,
) {
    let ValueKind::Object(entries) = value.kind else {
        problems.push(
            Diagnostic::error(
                Code::InvalidValue,
                format!(
                    "{} must be an object here, found {}",
                    schema.kind,
                    value.kind.type_name()
                ),
            )
            .at(source.origin(value.span)),
        );
        return;
    };
    for (name, span, value) in entries {
        match schema.block_schema(&name) {
            Some((block, _)) => to_blocks(source, value, block, span, Vec::new(), body, problems),
            None => body.attributes.push(Attribute {
                name,
                name_span: span,
                value,
            }),
        }
    }
}

fn to_blocks(
    source: &Source,
    value: Value,
    schema: &BlockSchema,
    key_span: Span,
    labels: Vec<(String, Span)>,
    body: &mut Body,
    problems: &mut Vec<Diagnostic>,
) {
    match value.kind {
        ValueKind::List(items) => {
            for item in items {
                to_blocks(source, item, schema, key_span, labels.clone(), body, problems);
            }
        }
        ValueKind::Object(entries) if labels.len() < schema.labels.len() => {
            for (label, span, value) in entries {
                let labels = labels.iter().cloned().chain([(label, span)]).collect();
                to_blocks(source, value, schema, key_span, labels, body, problems);
            }
        }
        _ => {
            let mut block_body = Body::default();
            to_body(source, value, schema, &mut block_body, problems);
            let span = labels.last().map_or(key_span, |(_, span)| *span);
            body.blocks.push(Block {
                kind: schema.kind.to_owned(),
                span,
                labels,
                body: block_body,
            });
        }
    }
}

fn shift_spans(value: &mut Value, by: usize) {
    if by == 0 {
        return;
    }
    value.span = Span {
        start: value.span.start + by,
        end: value.span.end + by,
    };
    match &mut value.kind {
        ValueKind::List(items) => items.iter_mut().for_each(|item| shift_spans(item, by)),
        ValueKind::Object(entries) => {
            for (_, span, value) in entries {
                *span = Span {
                    start: span.start + by,
                    end: span.end + by,
                };
                shift_spans(value, by);
            }
        }
        _ => {}
    }
}

fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let line_start: usize = text
        .split_inclusive('\n')
        .take(line.saturating_sub(1))
        .map(str::len)
        .sum();
    let offset = (line_start + column.saturating_sub(1)).min(text.len());
    (0..=offset)
        .rev()
        .find(|index| text.is_char_boundary(*index))
        .unwrap_or(0)
}
