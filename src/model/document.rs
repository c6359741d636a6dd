use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Where a document lives. The order is the order in which names are claimed within one kind of source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DocumentId {
    /// A file of a `-config` directory, by its path as the operator named it.
    File(Arc<str>),
    /// A Consul KV key, whole (prefix included).
    Kv(Arc<str>),
    /// What a service in Consul's catalog says of itself in tags and metadata: [`DocumentId::of_service`].
    Catalog(Arc<str>),
}

/// With a space, which no KV key of ours has.
const SERVICE: &str = "catalog service ";

impl DocumentId {
    pub fn as_str(&self) -> &str {
        match self {
            Self::File(path) | Self::Kv(path) | Self::Catalog(path) => path,
        }
    }

    pub fn of_service(name: &str) -> Self {
        Self::Catalog(format!("{SERVICE}{name}").into())
    }

    /// The service that speaks, if one does.
    pub fn service(&self) -> Option<&str> {
        match self {
            Self::Catalog(id) => id.strip_prefix(SERVICE),
            Self::File(_) | Self::Kv(_) => None,
        }
    }

    /// Documents that an operator placed on this machine may name its files; those from KV may not by default.
    pub fn is_trusted(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One HCL (or JSON) text as fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    pub id: DocumentId,
    pub text: Arc<str>,
    /// Who wins a clash of names: the lower number, then the id. Consul's CreateIndex; 0 for files.
    pub order: u64,
    /// What `apply` compares against. Consul's ModifyIndex; 0 for files.
    pub version: u64,
}

/// What must not end a document's key: it says what the text says itself, and the same name with and without it would be
/// two documents.
pub fn extension_of_key(key: &str) -> Option<&'static str> {
    [".hcl", ".json"]
        .into_iter()
        .find(|extension| key.ends_with(extension))
}

/// A byte range of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Span {
    pub start: usize,
    pub end: usize,
}

/// The place in a document that a value or a problem comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    pub document: DocumentId,
    pub span: Span,
    /// Counted from 1.
    pub line: u32,
    /// Counted from 1, in characters.
    pub column: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.document, self.line, self.column)
    }
}
