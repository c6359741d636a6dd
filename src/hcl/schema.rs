use std::time::Duration;

/// What may stand in a block. The reference documentation, the JSON form, the check and the suggestions all read this.
#[derive(Clone, Debug)]
pub struct BlockSchema {
    pub kind: &'static str,
    /// What a text of this schema is called, where it is not a block.
    called: &'static str,
    /// Names of the labels, for messages and the reference.
    pub labels: &'static [&'static str],
    pub doc: &'static str,
    pub attributes: Vec<AttributeSchema>,
    pub blocks: Vec<(BlockSchema, Occurs)>,
    /// Groups of attributes and blocks of which exactly one must stand (`true`) or at most one may (`false`).
    pub one_of: Vec<(&'static [&'static str], bool)>,
    /// Words that may stand on wider scopes only.
    pub elsewhere: Vec<&'static str>,
    /// Unknown to this version, and said so.
    pub planned: &'static [(&'static str, &'static str)],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occurs {
    Optional,
    Once,
    Many,
    AtLeastOnce,
}

#[derive(Clone, Debug)]
pub struct AttributeSchema {
    pub name: &'static str,
    pub ty: Type,
    pub required: bool,
    /// As it would be written; None where leaving it out means "nothing".
    pub default: Option<&'static str>,
    pub example: &'static str,
    pub doc: &'static str,
}

/// Types of values, with their bounds: what passes the check needs no second look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Type {
    Bool,
    /// Inclusive bounds.
    Integer(i64, i64),
    Number(f64, f64),
    /// Any text without control characters.
    String,
    /// Any text; newlines and tabs may stand in it.
    Text,
    /// A name used as a reference or label.
    Name,
    /// `"250ms"`, `"10s"`, `"5m"`, `"1h"`: whole milliseconds, in inclusive bounds given in milliseconds.
    Duration(u64, u64),
    /// One of these words.
    Word(&'static [&'static str]),
    /// A host name, `*.suffix` or `*`.
    Hostname,
    /// A host name or an IP address, no wildcard.
    Host,
    /// A path to match: begins with `/`, normalised, no query or fragment.
    Path,
    /// A path to send: begins with `/`, no query or fragment.
    NewPath,
    /// RE2 syntax, bounded in size.
    Regex,
    HeaderName,
    HeaderValue,
    /// A part of one, to look for: Envoy refuses an empty one.
    PartOfValue,
    Method,
    IpAddress,
    /// `address/length`, or a single address.
    Cidr,
    /// `host:port` or `[v6]:port`.
    HostPort,
    /// An IP address and a port: where something of ours listens.
    SocketAddress,
    /// A range, an address, a host name, `*.suffix` or `*`: what is allowed.
    AddressPattern,
    List(&'static Type),
    /// Keys and values.
    Map(&'static Type, &'static Type),
}

impl BlockSchema {
    pub fn new(kind: &'static str, labels: &'static [&'static str], doc: &'static str) -> Self {
        Self {
            kind,
            called: "a document",
            labels,
            doc,
            attributes: Vec::new(),
            blocks: Vec::new(),
            one_of: Vec::new(),
            elsewhere: Vec::new(),
            planned: &[],
        }
    }

    /// What a whole text of it is called in messages.
    pub fn called(mut self, called: &'static str) -> Self {
        self.called = called;
        self
    }

    /// Where something stands or is missing, for messages.
    pub fn place(&self) -> &'static str {
        if self.kind.is_empty() {
            self.called
        } else {
            self.kind
        }
    }

    /// Words of the language that no version has yet, with what they will be for.
    pub fn planned(mut self, planned: &'static [(&'static str, &'static str)]) -> Self {
        self.planned = planned;
        self
    }

    pub fn planned_doc(&self, name: &str) -> Option<&'static str> {
        let known = self.planned.iter().find(|(planned, _)| *planned == name);
        known.map(|(_, doc)| *doc)
    }

    pub fn attribute(
        mut self,
        name: &'static str,
        ty: Type,
        default: Option<&'static str>,
        example: &'static str,
        doc: &'static str,
    ) -> Self {
        self.attributes.push(AttributeSchema {
            name,
            ty,
            required: false,
            default,
            example,
            doc,
        });
        self
    }

    pub fn required(
        mut self,
        name: &'static str,
        ty: Type,
        example: &'static str,
        doc: &'static str,
    ) -> Self {
        self.attributes.push(AttributeSchema {
            name,
            ty,
            required: true,
            default: None,
            example,
            doc,
        });
        self
    }

    pub fn block(mut self, schema: BlockSchema, occurs: Occurs) -> Self {
        self.blocks.push((schema, occurs));
        self
    }

    pub fn exactly_one_of(mut self, names: &'static [&'static str]) -> Self {
        self.one_of.push((names, true));
        self
    }

    pub fn at_most_one_of(mut self, names: &'static [&'static str]) -> Self {
        self.one_of.push((names, false));
        self
    }

    pub fn attribute_schema(&self, name: &str) -> Option<&AttributeSchema> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }

    pub fn block_schema(&self, kind: &str) -> Option<&(BlockSchema, Occurs)> {
        self.blocks.iter().find(|(block, _)| block.kind == kind)
    }
}

/// As people write it: `87600h`, and not in years, months and days.
fn bound(duration: Duration) -> String {
    const HOUR: u64 = 3600;
    match (duration.as_secs() / HOUR, duration.as_secs() % HOUR) {
        (hours @ 24.., 0) => format!("{hours}h"),
        _ => humantime::format_duration(duration).to_string(),
    }
}

impl Type {
    /// For messages and the reference.
    pub fn describe(&self) -> String {
        match self {
            Self::Bool => "true or false".into(),
            Self::Integer(min, max) => format!("a whole number from {min} to {max}"),
            Self::Number(min, max) => format!("a number from {min} to {max}"),
            Self::String => "a string".into(),
            Self::Text => "a string, which may have several lines".into(),
            Self::Name => "a name (letters, digits, '.', '_' and '-')".into(),
            Self::Duration(min, max) => format!(
                "a duration such as \"10s\", from {} to {}",
                bound(Duration::from_millis(*min)),
                bound(Duration::from_millis(*max))
            ),
            Self::Word(words) => {
                let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
                format!("one of {}", quoted.join(", "))
            }
            Self::Hostname => "a host name such as \"www.example.com\", \"*.example.com\" or \"*\"".into(),
            Self::Host => "a host name such as \"www.example.com\", or an IP address".into(),
            Self::NewPath => "a path that begins with \"/\" and has no query".into(),
            Self::Path => "a path that begins with \"/\" and has no query".into(),
            Self::Regex => "a regular expression in RE2 syntax".into(),
            Self::HeaderName => "a header name".into(),
            Self::HeaderValue => "a value of one line".into(),
            Self::PartOfValue => "a text of one line that is not empty".into(),
            Self::Method => "an HTTP method such as \"GET\"".into(),
            Self::IpAddress => "an IP address".into(),
            Self::Cidr => "an IP address or range such as \"10.0.0.0/8\"".into(),
            Self::HostPort => "an address such as \"10.0.0.7:8080\"".into(),
            Self::SocketAddress => "an IP address and a port such as \"127.0.0.1:7480\"".into(),
            Self::AddressPattern => {
                "a range such as \"10.0.0.0/8\", a host name, \"*.example.com\" or \"*\"".into()
            }
            Self::List(item) => format!("a list, each item {}", item.describe()),
            Self::Map(key, value) => format!(
                "an object, each key {}, each value {}",
                key.describe(),
                value.describe()
            ),
        }
    }
}
