use super::parse::not_a_literal;
use super::schema::BlockSchema;
use super::tree::{Attribute, Block, Body, Source, Value, ValueKind};
use crate::diagnostics::{Code, Diagnostic, Problems};
use crate::model::Span;

/// Levels of `{` and `[`; the HCL parser has the same bound.
const NESTING: usize = 64;

/// JSON by HCL's own convention: a block is a member whose value is an object, nested once per label; a list of
/// objects repeats it.
pub(super) fn parse_json(source: &Source, schema: &BlockSchema) -> Result<Body, Vec<Diagnostic>> {
    let text = source.text();
    // serde_json first: its errors speak of JSON. What it lets through, the reader below can take for granted.
    if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
        let start = offset_of(text, error.line(), error.column());
        let message = error.to_string();
        let what = message
            .rsplit_once(" at line ")
            .map_or(&*message, |(what, _)| what);
        let code = match what {
            "recursion limit exceeded" => Code::TooLarge,
            _ => Code::SyntaxError,
        };
        return Err(vec![
            Diagnostic::error(code, format!("not valid JSON: {what}"))
                .at(source.origin(Span { start, end: start }))
                .because("the text cannot be read from this place on")
                .fix("a document whose first character is \"{\" is read as JSON: check quotes, commas and brackets before this place"),
        ]);
    }
    let mut reader = Reader {
        source,
        text,
        at: 0,
        problems: Problems::default(),
    };
    let value = reader.value(0);
    let mut problems = reader.problems;
    let mut body = Body::default();
    if let (Some(value), true) = (value, problems.is_empty()) {
        to_body(source, value, schema, &mut body, &mut problems);
    }
    if problems.is_empty() {
        Ok(body)
    } else {
        Err(problems.told())
    }
}

/// Reads text that is known to be JSON into a tree that knows where everything stands.
struct Reader<'a> {
    source: &'a Source,
    text: &'a str,
    at: usize,
    problems: Problems,
}

impl Reader<'_> {
    /// None: a problem is noted, and what follows is not worth reading.
    fn value(&mut self, depth: usize) -> Option<Value> {
        let start = self.skip_space();
        if depth > NESTING {
            let place = self.source.origin(Span {
                start,
                end: start + 1,
            });
            self.problems.push(
                Diagnostic::error(Code::TooLarge, format!("nested deeper than {NESTING} levels"))
                    .at(place)
                    .because("whoever sends a document must not decide how much memory reading it costs")
                    .fix("write it flatter: no block of a document needs so many levels"),
            );
            return None;
        }
        let kind = match self.peek() {
            b'{' => ValueKind::Object(self.members(depth)?),
            b'[' => ValueKind::List(self.items(depth)?),
            b'"' => {
                let (text, span) = self.string()?;
                ValueKind::String(self.without_templates(text, span)?)
            }
            _ => self.scalar(),
        };
        let span = Span { start, end: self.at };
        Some(Value { kind, span })
    }

    fn members(&mut self, depth: usize) -> Option<Vec<(String, Span, Value)>> {
        let mut members = Vec::new();
        self.at += 1;
        loop {
            self.skip_space();
            match self.peek() {
                b'"' => {
                    let (name, span) = self.string()?;
                    self.skip_space();
                    self.at += 1;
                    members.push((name, span, self.value(depth + 1)?));
                }
                b',' => self.at += 1,
                _ => break,
            }
        }
        self.at += 1;
        Some(members)
    }

    fn items(&mut self, depth: usize) -> Option<Vec<Value>> {
        let mut items = Vec::new();
        self.at += 1;
        loop {
            self.skip_space();
            match self.peek() {
                b']' | 0 => break,
                b',' => self.at += 1,
                _ => items.push(self.value(depth + 1)?),
            }
        }
        self.at += 1;
        Some(items)
    }

    fn string(&mut self) -> Option<(String, Span)> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        self.at += 1;
        while self.at < bytes.len() && bytes[self.at] != b'"' {
            self.at += if bytes[self.at] == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        let span = Span {
            start,
            end: self.at.min(bytes.len()),
        };
        let quoted = self.text.get(span.start..span.end).unwrap_or_default();
        match serde_json::from_str::<String>(quoted) {
            Ok(text) => Some((text, span)),
            // Half of a surrogate pair: valid JSON, and no text.
            Err(_) => {
                self.problems.push(
                    Diagnostic::error(Code::SyntaxError, "this string is not Unicode text")
                        .at(self.source.origin(span))
                        .because("half of a surrogate pair is no character")
                        .fix("write the character itself, or both halves of its \\uXXXX\\uXXXX pair"),
                );
                None
            }
        }
    }

    /// Strings mean the same in both forms: `${` would begin an expression, `$${` is a literal `${`.
    fn without_templates(&mut self, text: String, span: Span) -> Option<String> {
        for mark in ["${", "%{"] {
            let doubled = format!("{}{mark}", &mark[..1]);
            if text.replace(&doubled, "").contains(mark) {
                self.problems.push(not_a_literal(self.source, span));
                return None;
            }
        }
        Some(text.replace("$${", "${").replace("%%{", "%{"))
    }

    fn scalar(&mut self) -> ValueKind {
        let rest = &self.text[self.at..];
        let length = rest
            .find(|c: char| matches!(c, ',' | ']' | '}') || c.is_ascii_whitespace())
            .unwrap_or(rest.len());
        let word = &rest[..length];
        self.at += length.max(1);
        match word {
            "true" => ValueKind::Bool(true),
            "false" => ValueKind::Bool(false),
            "null" => ValueKind::Null,
            number => match number.parse() {
                Ok(integer) => ValueKind::Integer(integer),
                Err(_) => ValueKind::Float(number.parse().unwrap_or(f64::NAN)),
            },
        }
    }

    fn skip_space(&mut self) -> usize {
        while matches!(self.peek(), b' ' | b'\t' | b'\r' | b'\n') {
            self.at += 1;
        }
        self.at
    }

    fn peek(&self) -> u8 {
        self.text.as_bytes().get(self.at).copied().unwrap_or(0)
    }
}

fn to_body(source: &Source, value: Value, schema: &BlockSchema, body: &mut Body, problems: &mut Problems) {
    let ValueKind::Object(entries) = value.kind else {
        problems.push(
            Diagnostic::error(
                Code::InvalidValue,
                format!(
                    "{} is a block: expected an object, found {}",
                    schema.kind,
                    value.kind.type_name()
                ),
            )
            .at(source.origin(value.span))
            .because("the members of an object are the block's attributes and blocks")
            .fix(format!("write `\"{}\": {{ ... }}`", schema.kind)),
        );
        return;
    };
    for (name, span, value) in entries {
        match (schema.block_schema(&name), schema.attribute_schema(&name)) {
            (Some((block, _)), _) => to_blocks(source, value, block, span, Vec::new(), body, problems),
            // Nobody knows the name; its shape says that a block was meant.
            (None, None) if matches!(value.kind, ValueKind::Object(_)) => {
                body.blocks.push(unknown_block(name, span, value));
            }
            _ => body.attributes.push(Attribute {
                name,
                name_span: span,
                value,
            }),
        }
    }
}

fn unknown_block(name: String, span: Span, value: Value) -> Block {
    let mut body = Body::default();
    if let ValueKind::Object(entries) = value.kind {
        for (name, name_span, value) in entries {
            match &value.kind {
                ValueKind::Object(_) => body.blocks.push(unknown_block(name, name_span, value)),
                _ => body.attributes.push(Attribute {
                    name,
                    name_span,
                    value,
                }),
            }
        }
    }
    Block {
        kind: name,
        span,
        labels: Vec::new(),
        body,
    }
}

const LONGEST_LABEL: usize = 256;

fn to_blocks(
    source: &Source,
    value: Value,
    schema: &BlockSchema,
    key_span: Span,
    labels: Vec<(String, Span)>,
    body: &mut Body,
    problems: &mut Problems,
) {
    match value.kind {
        ValueKind::List(items) => {
            for item in items {
                to_blocks(source, item, schema, key_span, labels.clone(), body, problems);
            }
        }
        ValueKind::Object(entries) if labels.len() < schema.labels.len() => {
            for (label, span, value) in entries {
                // Each block of a list below gets a copy.
                if label.len() > LONGEST_LABEL {
                    problems.push(
                        Diagnostic::error(
                            Code::TooLarge,
                            format!("a label of {} has more than {LONGEST_LABEL} bytes", schema.kind),
                        )
                        .at(source.origin(span))
                        .because("other documents, Envoy's statistics and KV keys name it too")
                        .fix("give it a shorter name"),
                    );
                    continue;
                }
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
