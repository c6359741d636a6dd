//! What a text from Consul's config entries must look like before it may reach Envoy. Pure.

use std::sync::Arc;

use super::chain_answer::{RawHeaderEdits, RawValueMatch};
use crate::model::http::{HeaderEdits, TextMatch, ValueMatch};
use crate::model::mesh::ChainPath;
use crate::model::regex::check_regex;

/// A name, path or pattern of bounded length, without control characters.
pub(super) fn bounded(text: Arc<str>) -> Result<Arc<str>, String> {
    if text.len() > TEXT_BYTES || text.contains(char::is_control) {
        let start: String = text.chars().take(40).collect();
        return Err(format!(
            "{start:?} is longer than {TEXT_BYTES} bytes or has control characters"
        ));
    }
    Ok(text)
}

pub(super) fn header_name(name: &str) -> Result<Arc<str>, String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > 256 || !name.bytes().all(is_token) {
        return Err(format!("{name:?} is not a header name"));
    }
    Ok(name.to_ascii_lowercase().into())
}

pub(super) fn methods(raw: Vec<String>) -> Result<Vec<Arc<str>>, String> {
    raw.into_iter()
        .map(|method| {
            let is_method = !method.is_empty()
                && method.len() <= 32
                && method
                    .bytes()
                    .all(|byte| byte.is_ascii_alphabetic() || byte == b'-');
            match is_method {
                true => Ok(method.to_ascii_uppercase().into()),
                false => Err(format!("{method:?} is not a method")),
            }
        })
        .collect()
}

pub(super) fn value_match(raw: RawValueMatch) -> Result<ValueMatch, String> {
    let text = match &raw {
        raw if raw.present => TextMatch::Present,
        raw if !raw.prefix.is_empty() => TextMatch::Prefix(bounded(raw.prefix.as_str().into())?),
        raw if !raw.suffix.is_empty() => TextMatch::Suffix(bounded(raw.suffix.as_str().into())?),
        raw if !raw.contains.is_empty() => TextMatch::Contains(bounded(raw.contains.as_str().into())?),
        raw if !raw.regex.is_empty() => TextMatch::Regex(bounded(raw.regex.as_str().into())?),
        raw => TextMatch::Exact(bounded(raw.exact.as_str().into())?),
    };
    let name = bounded(raw.name.into())?;
    if name.is_empty() {
        return Err("a condition names no header or parameter".to_owned());
    }
    Ok(ValueMatch {
        name,
        text,
        invert: raw.invert,
    })
}

pub(super) fn header_match(raw: RawValueMatch) -> Result<ValueMatch, String> {
    let condition = value_match(raw)?;
    Ok(ValueMatch {
        name: header_name(&condition.name)?,
        ..condition
    })
}

/// Consul takes any text for a regular expression. One that Envoy does not take would take the whole host with it, and
/// the document that names the service.
pub(super) fn regexes_are_taken<'a>(
    path: &'a ChainPath,
    conditions: impl Iterator<Item = &'a ValueMatch>,
) -> Result<(), String> {
    let of_path = match path {
        ChainPath::Regex(regex) => Some(regex),
        _ => None,
    };
    let of_conditions = conditions.filter_map(|condition| match &condition.text {
        TextMatch::Regex(regex) => Some(regex),
        _ => None,
    });
    of_path.into_iter().chain(of_conditions).try_for_each(|regex| {
        check_regex(regex)
            .map_err(|why| format!("Envoy does not take the regular expression {regex:?} of a route: {why}"))
    })
}

pub(super) fn header_edits(raw: RawHeaderEdits) -> Result<HeaderEdits, String> {
    let pairs = |map: std::collections::BTreeMap<String, String>| {
        map.into_iter()
            .take(HEADERS)
            .map(|(name, value)| {
                let value = bounded(value.into())?;
                if !value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
                    return Err(format!("the value of {name:?} is not plain ASCII"));
                }
                // Envoy reads `%` as the start of a command; one it does not know it refuses, and the route with it.
                Ok((settable(&name)?, Arc::from(value.replace('%', "%%"))))
            })
            .collect::<Result<Vec<_>, String>>()
    };
    Ok(HeaderEdits {
        set: pairs(raw.set)?,
        add: pairs(raw.add)?,
        remove: raw
            .remove
            .iter()
            .take(HEADERS)
            .map(|name| settable(name))
            .collect::<Result<_, _>>()?,
    })
}

/// Envoy refuses to edit `:path` and its kin, and `host`.
fn settable(name: &str) -> Result<Arc<str>, String> {
    let name = header_name(name)?;
    match &*name {
        "host" => Err("the header \"host\" cannot be edited".to_owned()),
        _ => Ok(name),
    }
}

const TEXT_BYTES: usize = 1024;
const HEADERS: usize = 64;
