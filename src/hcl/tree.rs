use std::sync::Arc;

use crate::model::{DocumentId, Origin, Span};

/// The document being read: turns byte ranges into origins.
#[derive(Clone, Debug)]
pub struct Source {
    pub document: DocumentId,
    line_starts: Arc<[usize]>,
    /// How many characters stand before each [`STEP`] bytes: a text may be one line, with a problem everywhere.
    characters: Arc<[usize]>,
    text: Arc<str>,
    /// Of several texts read as one: where the spans of each begin.
    parts: Vec<(usize, Source)>,
}

impl Source {
    pub fn new(document: DocumentId, text: Arc<str>) -> Self {
        let line_starts = std::iter::once(0)
            .chain(
                text.bytes()
                    .enumerate()
                    .filter(|(_, byte)| *byte == b'\n')
                    .map(|(index, _)| index + 1),
            )
            .collect();
        let mut before = 0;
        let mut characters = vec![0];
        for step in text.as_bytes().chunks(STEP) {
            before += characters_begun(step);
            characters.push(before);
        }
        Self {
            document,
            line_starts,
            characters: characters.into(),
            text,
            parts: Vec::new(),
        }
    }

    /// The source of a tree that was merged from these texts, and what each body's spans are moved by before it is.
    pub fn joined(sources: Vec<Source>) -> (Self, Vec<usize>) {
        let mut joined = sources
            .first()
            .cloned()
            .unwrap_or_else(|| Self::new(DocumentId::File("".into()), "".into()));
        let mut base = 0;
        for source in sources {
            let length = source.text.len() + 1;
            joined.parts.push((base, source));
            base += length;
        }
        let bases = joined.parts.iter().map(|(base, _)| *base).collect();
        (joined, bases)
    }

    /// Made of no text at all: no place in it can be shown.
    pub fn is_nothing(&self) -> bool {
        self.text.is_empty() && self.document.as_str().is_empty()
    }

    pub fn text(&self) -> &Arc<str> {
        &self.text
    }

    pub fn origin(&self, span: Span) -> Origin {
        if let Some((base, part)) = self.parts.iter().rev().find(|(base, _)| *base <= span.start) {
            return part.origin(Span {
                start: span.start - base,
                end: span.end.saturating_sub(*base),
            });
        }
        let line = self.line_starts.partition_point(|start| *start <= span.start);
        let line_start = self.line_starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let is_in_line = self.text.get(line_start..span.start).is_some();
        let column = match is_in_line {
            false => 1,
            // Most lines are short.
            true if span.start - line_start <= STEP => {
                1 + characters_begun(&self.text.as_bytes()[line_start..span.start])
            }
            true => 1 + self.characters_before(span.start) - self.characters_before(line_start),
        };
        Origin {
            document: self.document.clone(),
            span,
            line: line as u32,
            column: column as u32,
        }
    }

    fn characters_before(&self, offset: usize) -> usize {
        let step = offset / STEP;
        self.characters[step] + characters_begun(&self.text.as_bytes()[step * STEP..offset])
    }
}

const STEP: usize = 1024;

fn characters_begun(bytes: &[u8]) -> usize {
    let continues = |byte: &u8| byte & 0b1100_0000 == 0b1000_0000;
    bytes.len() - bytes.iter().filter(|byte| continues(byte)).count()
}

/// The inside of a block, or a whole document, in the order written.
#[derive(Clone, Debug, Default)]
pub struct Body {
    pub attributes: Vec<Attribute>,
    pub blocks: Vec<Block>,
}

#[derive(Clone, Debug)]
pub struct Attribute {
    pub name: String,
    pub name_span: Span,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub struct Block {
    pub kind: String,
    /// The block's header: where a problem of the block as a whole is shown.
    pub span: Span,
    pub labels: Vec<(String, Span)>,
    pub body: Body,
}

#[derive(Clone, Debug)]
pub struct Value {
    pub kind: ValueKind,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum ValueKind {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    String(String),
    List(Vec<Value>),
    Object(Vec<(String, Span, Value)>),
}

impl ValueKind {
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::String(_) => "a string",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

impl Body {
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }

    pub fn blocks_of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Block> + 'a {
        self.blocks.iter().filter(move |block| block.kind == kind)
    }

    pub fn block(&self, kind: &str) -> Option<&Block> {
        self.blocks.iter().find(|block| block.kind == kind)
    }

    /// Bytes of the names and values in it: what it takes wherever it is copied to, about.
    pub fn bytes(&self) -> usize {
        let attributes = self.attributes.iter();
        let values = attributes.map(|attribute| attribute.name.len() + attribute.value.bytes());
        values.sum::<usize>() + self.blocks.iter().map(Block::bytes).sum::<usize>()
    }
}

impl Block {
    pub fn bytes(&self) -> usize {
        let labels = self.labels.iter().map(|(label, _)| label.len());
        self.kind.len() + labels.sum::<usize>() + self.body.bytes()
    }
}

impl Body {
    /// Moves every span, for [`Source::joined`].
    pub fn shift(&mut self, by: usize) {
        for attribute in &mut self.attributes {
            attribute.name_span = shifted(attribute.name_span, by);
            attribute.value.shift(by);
        }
        for block in &mut self.blocks {
            block.span = shifted(block.span, by);
            for (_, span) in &mut block.labels {
                *span = shifted(*span, by);
            }
            block.body.shift(by);
        }
    }
}

impl Value {
    fn bytes(&self) -> usize {
        match &self.kind {
            ValueKind::Null | ValueKind::Bool(_) | ValueKind::Integer(_) | ValueKind::Float(_) => 8,
            ValueKind::String(text) => text.len(),
            ValueKind::List(items) => items.iter().map(|item| 8 + item.bytes()).sum(),
            ValueKind::Object(entries) => entries
                .iter()
                .map(|(key, _, value)| 8 + key.len() + value.bytes())
                .sum(),
        }
    }

    fn shift(&mut self, by: usize) {
        self.span = shifted(self.span, by);
        match &mut self.kind {
            ValueKind::List(items) => items.iter_mut().for_each(|item| item.shift(by)),
            ValueKind::Object(entries) => {
                for (_, span, value) in entries {
                    *span = shifted(*span, by);
                    value.shift(by);
                }
            }
            _ => {}
        }
    }
}

fn shifted(span: Span, by: usize) -> Span {
    Span {
        start: span.start + by,
        end: span.end + by,
    }
}

impl Block {
    /// Label by position; the schema check has made sure that it is there.
    pub fn label(&self, index: usize) -> &str {
        self.labels.get(index).map_or("", |(label, _)| label)
    }
}
