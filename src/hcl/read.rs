use std::sync::Arc;
use std::time::Duration;

use super::tree::{Attribute, Block, Body, Source, Value, ValueKind};
use super::value_types::parse_duration;
use crate::model::{Origin, Span};

/// Reads a checked body. A value of another type reads as absent: the check has already refused it.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    pub source: &'a Source,
    pub body: &'a Body,
    pub span: Span,
}

impl<'a> Reader<'a> {
    pub fn document(source: &'a Source, body: &'a Body) -> Self {
        Self {
            source,
            body,
            span: Span::default(),
        }
    }

    pub fn block(source: &'a Source, block: &'a Block) -> Self {
        Self {
            source,
            body: &block.body,
            span: block.span,
        }
    }

    pub fn origin(&self) -> Origin {
        self.source.origin(self.span)
    }

    pub fn has(&self, name: &str) -> bool {
        self.attribute(name).is_some()
    }

    /// Where an attribute's value stands; the block's header if it is absent.
    pub fn origin_of(&self, name: &str) -> Origin {
        self.source.origin(
            self.attribute(name)
                .map_or(self.span, |attribute| attribute.value.span),
        )
    }

    pub fn string(&self, name: &str) -> Option<Arc<str>> {
        self.value(name).and_then(text)
    }

    pub fn boolean(&self, name: &str) -> Option<bool> {
        match self.value(name)?.kind {
            ValueKind::Bool(value) => Some(value),
            _ => None,
        }
    }

    pub fn integer(&self, name: &str) -> Option<i64> {
        match self.value(name)?.kind {
            ValueKind::Integer(value) => Some(value),
            _ => None,
        }
    }

    pub fn unsigned(&self, name: &str) -> Option<u32> {
        self.integer(name).and_then(|value| u32::try_from(value).ok())
    }

    pub fn integers(&self, name: &str) -> Vec<u32> {
        match self.value(name).map(|value| &value.kind) {
            Some(ValueKind::List(items)) => items
                .iter()
                .filter_map(|item| match item.kind {
                    ValueKind::Integer(value) => u32::try_from(value).ok(),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    pub fn duration(&self, name: &str) -> Option<Duration> {
        match &self.value(name)?.kind {
            ValueKind::String(value) => parse_duration(value).ok(),
            _ => None,
        }
    }

    pub fn strings(&self, name: &str) -> Vec<Arc<str>> {
        self.strings_with_origin(name)
            .into_iter()
            .map(|(value, _)| value)
            .collect()
    }

    pub fn strings_with_origin(&self, name: &str) -> Vec<(Arc<str>, Origin)> {
        match self.value(name).map(|value| &value.kind) {
            Some(ValueKind::List(items)) => items
                .iter()
                .filter_map(|item| Some((text(item)?, self.source.origin(item.span))))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Keys with their values, and where those stand, in the order written.
    pub fn string_map_with_origin(&self, name: &str) -> Vec<(Arc<str>, Arc<str>, Origin)> {
        match self.value(name).map(|value| &value.kind) {
            Some(ValueKind::Object(entries)) => entries
                .iter()
                .filter_map(|(key, _, value)| {
                    let origin = self.source.origin(value.span);
                    Some((key.as_str().into(), text(value)?, origin))
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    pub fn child(&self, kind: &str) -> Option<Reader<'a>> {
        self.body
            .block(kind)
            .map(|block| Reader::block(self.source, block))
    }

    pub fn children(&self, kind: &'a str) -> impl Iterator<Item = (&'a Block, Reader<'a>)> + use<'a> {
        let source = self.source;
        self.body
            .blocks_of(kind)
            .map(move |block| (block, Reader::block(source, block)))
    }

    fn attribute(&self, name: &str) -> Option<&'a Attribute> {
        self.body.attribute(name)
    }

    fn value(&self, name: &str) -> Option<&'a Value> {
        self.attribute(name).map(|attribute| &attribute.value)
    }
}

fn text(value: &Value) -> Option<Arc<str>> {
    match &value.kind {
        ValueKind::String(value) => Some(value.as_str().into()),
        _ => None,
    }
}
