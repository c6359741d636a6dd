//! Whether a file of a `-config` path speaks of settings or of documents, told from the words at its top level.
//!
//! A settings file that is taken for a bad document is lost without a sound: the agent would run with defaults, and its
//! bounds on documents from KV would be gone. So what may be settings counts as settings.

use super::schema::settings_schema;
use crate::config::document_schema;
use crate::diagnostics::suggestion;
use crate::hcl::{Body, ValueKind};
use crate::model::Span;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Settings,
    Documents,
}

/// What a word says, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Weight {
    /// A word of neither: documents' blocks have labels, settings have none.
    Shape,
    /// A slip of the pen away from one.
    Near,
    Exact,
}

/// How a word at the top level is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Attribute,
    Labelled,
    Unlabelled,
}

#[derive(Clone, Debug)]
pub(super) struct Word {
    pub name: String,
    pub span: Span,
    pub side: Side,
    pub weight: Weight,
}

impl Word {
    fn new(name: &str, span: Span, used: Use) -> Self {
        let (side, weight) = judge(name, used);
        Self {
            name: name.to_owned(),
            span,
            side,
            weight,
        }
    }
}

fn judge(name: &str, used: Use) -> (Side, Weight) {
    let (settings, documents) = (settings_schema(), document_schema());
    if settings.attribute_schema(name).is_some() || settings.block_schema(name).is_some() {
        return (Side::Settings, Weight::Exact);
    }
    // Documents have no attributes at their top level.
    let of_documents: Vec<&str> = match used {
        Use::Attribute => Vec::new(),
        _ => documents.blocks.iter().map(|(block, _)| block.kind).collect(),
    };
    if of_documents.contains(&name) {
        return (Side::Documents, Weight::Exact);
    }
    let attributes = settings.attributes.iter().map(|attribute| attribute.name);
    let of_settings: Vec<&str> = match used {
        Use::Labelled => Vec::new(),
        _ => attributes
            .chain(settings.blocks.iter().map(|(block, _)| block.kind))
            .collect(),
    };
    let both = of_settings.iter().chain(&of_documents).copied();
    match suggestion(name, both) {
        Some(near) if of_documents.contains(&near) => (Side::Documents, Weight::Near),
        Some(_) => (Side::Settings, Weight::Near),
        None if used == Use::Labelled => (Side::Documents, Weight::Shape),
        None => (Side::Settings, Weight::Shape),
    }
}

/// Of a text that could be read.
pub(super) fn of_body(body: &Body, is_json: bool) -> Vec<Word> {
    let attributes = body.attributes.iter().map(|attribute| {
        let used = match &attribute.value.kind {
            ValueKind::Object(_) | ValueKind::List(_) if is_json && nests(&attribute.value.kind) => {
                Use::Labelled
            }
            ValueKind::Object(_) if is_json => Use::Unlabelled,
            _ => Use::Attribute,
        };
        Word::new(&attribute.name, attribute.name_span, used)
    });
    let blocks = body.blocks.iter().map(|block| {
        // JSON that the schema does not know: the labels of a document's block nest.
        let nested = is_json && block.body.attributes.is_empty() && !block.body.blocks.is_empty();
        let used = match block.labels.is_empty() && !nested {
            true => Use::Unlabelled,
            false => Use::Labelled,
        };
        Word::new(&block.kind, block.span, used)
    });
    let mut words: Vec<Word> = attributes.chain(blocks).collect();
    words.sort_by_key(|word| word.span.start);
    words
}

/// Objects within: labels and what they stand for.
fn nests(value: &ValueKind) -> bool {
    match value {
        ValueKind::Object(members) => members.iter().all(|(_, _, value)| is_object(&value.kind)),
        ValueKind::List(items) => !items.is_empty() && items.iter().all(|item| nests(&item.kind)),
        _ => false,
    }
}

fn is_object(value: &ValueKind) -> bool {
    match value {
        ValueKind::Object(_) => true,
        ValueKind::List(items) => items.iter().all(|item| matches!(item.kind, ValueKind::Object(_))),
        _ => false,
    }
}

/// Of a text that could not be read, as far as can be told without reading it.
pub(super) fn of_broken_text(text: &str) -> Vec<Word> {
    let text = text.trim_start_matches('\u{feff}');
    let is_json = text.trim_start().starts_with('{');
    let mut words = Vec::new();
    let mut depth = 0_usize;
    let mut heredoc: Option<&str> = None;
    let mut comment = false;
    for line in text.lines() {
        if let Some(end) = heredoc {
            if line.trim() == end {
                heredoc = None;
            }
            continue;
        }
        if depth == 0 && !comment && !is_json {
            words.extend(word_of_line(line));
        }
        // A string that does not end on its line is the mistake, most likely: the next line begins anew.
        let mut rest = line.char_indices();
        while let Some((at, character)) = rest.next() {
            let tail = &line[at..];
            if comment {
                if tail.starts_with("*/") {
                    comment = false;
                }
                continue;
            }
            match character {
                '#' => break,
                '/' if tail.starts_with("//") => break,
                '/' if tail.starts_with("/*") => comment = true,
                '"' => {
                    let length = string_length(&tail[1..]);
                    let name = &tail[1..=length];
                    let after = tail.get(length + 2..).unwrap_or("").trim_start();
                    if is_json && depth == 1 && after.starts_with(':') {
                        let used = match after[1..].trim_start().starts_with('{') {
                            true => Use::Unlabelled,
                            false => Use::Attribute,
                        };
                        words.push(Word::new(name, Span::default(), used));
                    }
                    let until = (at + length + 2).min(line.len());
                    while rest.offset() < until && rest.next().is_some() {}
                }
                '<' if tail.starts_with("<<") && !is_json => {
                    heredoc = Some(tail[2..].trim_start_matches('-').trim());
                    break;
                }
                '{' | '[' | '(' => depth += 1,
                '}' | ']' | ')' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
    }
    words
}

/// Up to the quote that ends it, or all.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at,
            _ => {}
        }
    }
    text.len()
}

fn word_of_line(line: &str) -> Option<Word> {
    let line = line.trim_start();
    let length = line
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'))
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(length);
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    let used = match rest.trim_start().chars().next()? {
        '{' => Use::Unlabelled,
        '=' => Use::Attribute,
        '"' => Use::Labelled,
        _ => return None,
    };
    Some(Word::new(name, Span::default(), used))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Found = (&'static str, Side, Weight);

    fn broken(text: &str) -> Vec<(String, Side, Weight)> {
        of_broken_text(text)
            .into_iter()
            .map(|word| (word.name, word.side, word.weight))
            .collect()
    }

    #[test]
    fn words_of_a_text_that_cannot_be_read() {
        use Side::*;
        use Weight::*;
        let cases: [(&str, &[Found]); 9] = [
            (
                "kv_documents {\n  prefix = \"x\n}\n",
                &[("kv_documents", Settings, Exact)],
            ),
            (
                "# a\nkv_document {\n  files = [\n",
                &[("kv_document", Settings, Near)],
            ),
            (
                "gateway \"edge {\n  listener \"web\" {\n}\n",
                &[("gateway", Documents, Exact), ("listener", Documents, Shape)],
            ),
            ("http_rout \"x\" {\n", &[("http_rout", Documents, Near)]),
            (
                "/* consul {\n*/ \nlog_level = = 1\n",
                &[("log_level", Settings, Exact)],
            ),
            (
                "policy \"p\" {\n  body = <<EOT\nconsul {\n}}}\nEOT\n  consul {\n",
                &[("policy", Documents, Exact)],
            ),
            ("wasm \"x\" {}\n}\n", &[("wasm", Documents, Shape)]),
            (
                "{\n  \"vault\": {\"jwt\": {}},\n  \"kv_documents\": {\"prefix\" \"x\"}\n",
                &[("vault", Settings, Exact), ("kv_documents", Settings, Exact)],
            ),
            ("\u{0}\u{1}ä <<<<<<< HEAD\n", &[]),
        ];
        for (text, expected) in cases {
            let found = broken(text);
            let found: Vec<_> = found
                .iter()
                .map(|(name, side, weight)| (name.as_str(), *side, *weight))
                .collect();
            assert_eq!(found, expected, "{text}");
        }
    }
}
