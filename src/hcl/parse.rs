use std::fmt;

use hcl_edit::Span as _;
use hcl_edit::expr::Expression;
use hcl_edit::structure::{BlockLabel, Body as EditBody, Structure};

use super::readable::{self, Unread, Why};
use super::schema::BlockSchema;
use super::syntax_hint::hint;
use super::tree::{Attribute, Block, Body, Source, Value, ValueKind};
use crate::diagnostics::{Code, Diagnostic, Problems};
use crate::model::Span;

/// Bounds on what is read, whoever wrote it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one document. Consul's own bound for a KV value.
    pub document_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            document_bytes: 512 * 1024,
        }
    }
}

/// Reads HCL, or JSON of the same schema when the text's first character is `{`.
pub fn parse(source: &Source, schema: &BlockSchema, limits: &Limits) -> Result<Body, Vec<Diagnostic>> {
    let text = source.text();
    if text.len() > limits.document_bytes {
        return Err(vec![
            Diagnostic::error(
                Code::TooLarge,
                format!(
                    "the document has {} bytes, the bound is {}",
                    text.len(),
                    limits.document_bytes
                ),
            )
            .at(source.origin(Span::default()))
            .because("Consul keeps no value larger than 512 KiB, and a bound holds for files too")
            .fix("split it: a configuration may be any number of documents"),
        ]);
    }
    if text.starts_with('\u{feff}') {
        return Err(vec![
            Diagnostic::error(Code::SyntaxError, "the document begins with a byte order mark")
                .at(source.origin(Span::default()))
                .because("HCL does not have one, and editors do not show it")
                .fix("save it as UTF-8 without a byte order mark (BOM)"),
        ]);
    }
    if text.trim_start().starts_with('{') {
        return super::json::parse_json(source, schema);
    }
    let body = parse_text(text).map_err(|error| not_hcl(source, &error))?;
    let mut problems = Problems::default();
    let body = convert_body(source, &body, &mut problems);
    if problems.is_empty() {
        Ok(body)
    } else {
        Err(problems.told())
    }
}

/// Why a text is not read as HCL.
#[derive(Debug)]
pub enum NotHcl {
    Syntax(hcl_edit::parser::Error),
    Unread(Unread),
}

impl NotHcl {
    pub fn offset(&self) -> usize {
        match self {
            Self::Syntax(error) => error.location().offset(),
            Self::Unread(unread) => unread.places.first().copied().unwrap_or_default(),
        }
    }
}

impl fmt::Display for NotHcl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(error) => f.write_str(error.message()),
            Self::Unread(unread) => unread.fmt(f),
        }
    }
}

/// The only way to the parser.
pub(super) fn parse_text(text: &str) -> Result<EditBody, NotHcl> {
    match readable::forbids(text) {
        Some(unread) => Err(NotHcl::Unread(unread)),
        None => hcl_edit::parser::parse_body(text).map_err(NotHcl::Syntax),
    }
}

fn not_hcl(source: &Source, error: &NotHcl) -> Vec<Diagnostic> {
    match error {
        NotHcl::Syntax(error) => vec![syntax_error(source, error)],
        NotHcl::Unread(unread) => unread
            .places
            .iter()
            .map(|place| was_not_read(source, unread, *place))
            .collect(),
    }
}

fn was_not_read(source: &Source, unread: &Unread, start: usize) -> Diagnostic {
    let length = source.text()[start..].chars().next().map_or(0, char::len_utf8);
    let span = Span {
        start,
        end: start + length,
    };
    let diagnostic = |code| Diagnostic::error(code, unread.to_string()).at(source.origin(span));
    match unread.why {
        Why::Expressions => not_a_literal(source, span),
        Why::ForgottenQuote => diagnostic(Code::SyntaxError)
            .because("where it ends, what was meant as text becomes code")
            .fix("put a quote at the end of this text, or write it as a heredoc"),
        Why::Operators => diagnostic(Code::TooLarge)
            .because("expressions are not evaluated here, and to read many of them may take for ever")
            .fix("write values as they are, and text that has such characters in quotes"),
        Why::Keys => diagnostic(Code::TooLarge)
            .because("it would take too long to read, as each is compared with the others"),
        Why::EmptyHeredoc => diagnostic(Code::SyntaxError)
            .because("the line may be text as well, if another one like it follows")
            .fix("write `\"\"` for an empty text"),
    }
}

fn syntax_error(source: &Source, error: &hcl_edit::parser::Error) -> Diagnostic {
    let text = source.text();
    let mut offset = error.location().offset().min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let message = format!("not valid HCL: {}", error.message());
    // The parser bounds its own recursion: 64 levels, 128 operators in a row.
    if error.message().contains("at most") {
        let span = Span {
            start: offset,
            end: offset,
        };
        return Diagnostic::error(Code::TooLarge, message)
            .at(source.origin(span))
            .because("the text cannot be read from this place on")
            .fix("write it flatter: no block of a document needs so many levels");
    }
    let hint = hint(text, offset, error.message());
    Diagnostic::error(Code::SyntaxError, message)
        .at(source.origin(hint.span))
        .because(hint.reason)
        .fix(hint.fix)
}

fn convert_body(source: &Source, body: &EditBody, problems: &mut Problems) -> Body {
    let mut converted = Body::default();
    for structure in body {
        match structure {
            Structure::Attribute(attribute) => {
                let name_span = span_of(attribute.key.span());
                if let Some(value) = convert_value(source, &attribute.value, problems) {
                    converted.attributes.push(Attribute {
                        name: attribute.key.to_string(),
                        name_span,
                        value,
                    });
                }
            }
            Structure::Block(block) => {
                let kind_span = span_of(block.ident.span());
                let labels: Vec<(String, Span)> = block
                    .labels
                    .iter()
                    .map(|label| match label {
                        BlockLabel::Ident(ident) => (ident.to_string(), span_of(ident.span())),
                        BlockLabel::String(text) => (text.to_string(), span_of(text.span())),
                    })
                    .collect();
                let end = labels.last().map_or(kind_span.end, |(_, span)| span.end);
                converted.blocks.push(Block {
                    kind: block.ident.to_string(),
                    span: Span {
                        start: kind_span.start,
                        end,
                    },
                    labels,
                    body: convert_body(source, &block.body, problems),
                });
            }
        }
    }
    converted
}

fn convert_value(source: &Source, expression: &Expression, problems: &mut Problems) -> Option<Value> {
    let span = span_of(expression.span());
    let kind = match expression {
        Expression::Null(_) => ValueKind::Null,
        Expression::Bool(value) => ValueKind::Bool(*value.value()),
        Expression::Number(number) => match number.value().as_i64() {
            Some(integer) => ValueKind::Integer(integer),
            None => ValueKind::Float(number.value().as_f64().unwrap_or(f64::NAN)),
        },
        Expression::String(text) => ValueKind::String(text.value().clone()),
        Expression::Array(items) => ValueKind::List(
            items
                .iter()
                .filter_map(|item| convert_value(source, item, problems))
                .collect(),
        ),
        Expression::Object(object) => {
            let mut entries = Vec::with_capacity(object.len());
            for (key, value) in object {
                let key_span = span_of(key.span());
                let name = match key {
                    hcl_edit::expr::ObjectKey::Ident(ident) => ident.to_string(),
                    hcl_edit::expr::ObjectKey::Expression(Expression::String(text)) => text.value().clone(),
                    hcl_edit::expr::ObjectKey::Expression(_) => {
                        problems.push(not_a_literal(source, key_span));
                        continue;
                    }
                };
                if let Some(value) = convert_value(source, value.expr(), problems) {
                    entries.push((name, key_span, value));
                }
            }
            ValueKind::Object(entries)
        }
        Expression::HeredocTemplate(heredoc) => match literal_template(&heredoc.template) {
            Some(text) => ValueKind::String(text),
            None => {
                problems.push(not_a_literal(source, span));
                return None;
            }
        },
        Expression::StringTemplate(template) => match literal_template(template) {
            Some(text) => ValueKind::String(text),
            None => {
                problems.push(not_a_literal(source, span));
                return None;
            }
        },
        Expression::Parenthesis(inner) => return convert_value(source, inner.inner(), problems),
        Expression::UnaryOp(operation) => {
            let negative = *operation.operator.value() == hcl_edit::expr::UnaryOperator::Neg;
            match convert_value(source, &operation.expr, problems)?.kind {
                ValueKind::Integer(value) if negative => value
                    .checked_neg()
                    .map_or(ValueKind::Float(-(value as f64)), ValueKind::Integer),
                ValueKind::Float(value) if negative => ValueKind::Float(-value),
                _ => {
                    problems.push(not_a_literal(source, span));
                    return None;
                }
            }
        }
        _ => {
            problems.push(not_a_literal(source, span));
            return None;
        }
    };
    Some(Value { kind, span })
}

/// A template without interpolation is a plain string (`$${` stands for `${`).
fn literal_template<'a>(
    template: impl IntoIterator<Item = &'a hcl_edit::template::Element>,
) -> Option<String> {
    let mut text = String::new();
    for element in template {
        match element {
            hcl_edit::template::Element::Literal(literal) => text.push_str(literal.value()),
            _ => return None,
        }
    }
    Some(text)
}

pub(super) fn not_a_literal(source: &Source, span: Span) -> Diagnostic {
    Diagnostic::error(Code::InvalidValue, "expressions are not evaluated here")
        .at(source.origin(span))
        .because("a document is data: variables, functions and \"${...}\" have no value in it")
        .fix("write the value itself, or render the document with a tool before it is put; \"$${\" is a literal \"${\"")
}

fn span_of(range: Option<std::ops::Range<usize>>) -> Span {
    range.map_or_else(Span::default, |range| Span {
        start: range.start,
        end: range.end,
    })
}
