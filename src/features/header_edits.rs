//! Header edits, the same for requests and responses.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};

use super::header_operators;
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{BlockSchema, Reader, Type};
use crate::model::http::HeaderEdits;

pub(super) fn schema(kind: &'static str, doc: &'static str) -> BlockSchema {
    const EDITS: Type = Type::Map(&Type::HeaderName, &Type::HeaderValue);
    BlockSchema::new(kind, &[], doc)
        .attribute(
            "set",
            EDITS,
            Some("{}"),
            "{ \"x-team\" = \"shop\" }",
            "Headers that have this value afterwards, whatever was there. Envoy's command operators such as \
             `%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%` are replaced; a literal `%` is written `%%`. Where nothing is left of \
             the value the header is empty.",
        )
        .attribute(
            "add",
            EDITS,
            Some("{}"),
            "{ \"x-seen-by\" = \"edge\" }",
            "Headers added beside any of the same name.",
        )
        .attribute(
            "remove",
            Type::List(&Type::HeaderName),
            Some("[]"),
            "[\"x-internal\"]",
            "Headers taken away.",
        )
}

pub(super) fn decode(reader: &Reader<'_>, problems: &mut Vec<Diagnostic>) -> HeaderEdits {
    let mut values = |list: &str| -> Vec<(Arc<str>, Arc<str>)> {
        let mut edits = Vec::new();
        for (name, value, origin) in reader.string_map_with_origin(list) {
            problems.extend(header_operators::check(&value).err().map(|slip| {
                let said = match slip.is_certain {
                    true => Diagnostic::error(Code::InvalidValue, slip.what),
                    false => Diagnostic::warning(Code::InvalidValue, slip.what),
                };
                said.at(origin)
                    .because("Envoy reads what stands between two \"%\" as a command, and refuses what it does not know")
                    .fix(slip.fix)
            }));
            edits.push((name, value));
        }
        edits
    };
    HeaderEdits {
        set: values("set"),
        add: values("add"),
        remove: reader.strings("remove"),
    }
}

/// What Envoy is told to add or overwrite.
pub fn additions(edits: &HeaderEdits) -> Vec<HeaderValueOption> {
    let option = |(name, value): &(Arc<str>, Arc<str>), action: HeaderAppendAction| HeaderValueOption {
        header: Some(HeaderValue {
            // Not by `to_string`, which goes through the formatter.
            key: String::from(&**name),
            value: String::from(&**value),
            ..HeaderValue::default()
        }),
        append_action: action.into(),
        // Envoy would leave what a client sent where the value comes out empty.
        keep_empty_value: action == HeaderAppendAction::OverwriteIfExistsOrAdd,
        ..HeaderValueOption::default()
    };
    let set = edits
        .set
        .iter()
        .map(|edit| option(edit, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = edits
        .add
        .iter()
        .map(|edit| option(edit, HeaderAppendAction::AppendIfExistsOrAdd));
    set.chain(add).collect()
}

/// What Envoy is told to take away.
pub fn removals(edits: &HeaderEdits) -> Vec<String> {
    edits.remove.iter().map(ToString::to_string).collect()
}
