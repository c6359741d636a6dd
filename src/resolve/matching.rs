//! Which route takes a request: the same rules that Envoy applies to what we send it. The test against Envoy itself
//! over random trees and requests keeps the two together.

use std::sync::Arc;

use regex::Regex;

use crate::model::http::{PathMatch, RequestMatch, TextMatch, ValueMatch};

/// A request as the routing sees it.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Lower case, without port and trailing dot.
    pub host: String,
    /// Normalised, without query.
    pub path: String,
    pub query: Vec<(String, String)>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// Takes a request apart as the gateway does before routing.
    pub fn new(method: &str, host: &str, path_and_query: &str, headers: &[(String, String)]) -> Self {
        let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
        let query = query.split_once('#').map_or(query, |(query, _)| query);
        Self {
            method: method.to_owned(),
            host: normal_host(host),
            path: normal_path(path.split_once('#').map_or(path, |(path, _)| path)),
            query: query
                .split('&')
                .filter(|part| !part.is_empty())
                .map(pair)
                .collect(),
            headers: headers
                .iter()
                .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
                .collect(),
        }
    }
}

fn pair(part: &str) -> (String, String) {
    let (name, value) = part.split_once('=').unwrap_or((part, ""));
    (percent_decoded(name), percent_decoded(value))
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let hex = (bytes[index] == b'%')
            .then(|| text.get(index + 1..index + 3))
            .flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                index += 3;
            }
            None => {
                decoded.push(bytes[index]);
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn normal_host(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    let bare = match host.rfind(':') {
        Some(colon)
            if host[colon + 1..].bytes().all(|byte| byte.is_ascii_digit())
                && !host[..colon].ends_with(':') =>
        {
            &host[..colon]
        }
        _ => &host,
    };
    bare.strip_suffix('.').unwrap_or(bare).to_owned()
}

/// `/./`, `/../`, `//` and `\` as Envoy's normalisation treats them.
fn normal_path(path: &str) -> String {
    let path = path.replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    let trailing = path.ends_with('/') || path.ends_with("/.") || path.ends_with("/..");
    for segment in path.split('/').skip(1) {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    let mut normal = format!("/{}", segments.join("/"));
    if trailing && !normal.ends_with('/') {
        normal.push('/');
    }
    normal
}

/// The most specific host that takes this one: itself, then the longest wildcard, then `*`.
pub fn select_host<'a>(
    host: &str,
    known: impl Iterator<Item = &'a Arc<str>> + Clone,
) -> Option<&'a Arc<str>> {
    if let Some(exact) = known.clone().find(|name| ***name == *host) {
        return Some(exact);
    }
    known
        .clone()
        .filter(|name| {
            name.strip_prefix('*').is_some_and(|suffix| {
                !suffix.is_empty() && host.len() > suffix.len() && host.ends_with(suffix)
            })
        })
        .max_by_key(|name| name.len())
        .or_else(|| known.clone().find(|name| ***name == *"*"))
}

/// Says what does not match, or nothing.
pub fn matches(condition: &RequestMatch, request: &Request) -> Result<(), String> {
    let path_fits = match &condition.path {
        PathMatch::Exact(path) => request.path == **path,
        PathMatch::Prefix(prefix) if **prefix == *"/" => true,
        PathMatch::Prefix(prefix) => request
            .path
            .strip_prefix(&**prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        PathMatch::Regex(pattern) => whole(pattern, &request.path),
    };
    if !path_fits {
        return Err(match &condition.path {
            PathMatch::Exact(path) => format!("the path is not {path:?}"),
            PathMatch::Prefix(prefix) => format!("the path is not under {prefix:?}"),
            PathMatch::Regex(pattern) => format!("the path does not match {pattern:?}"),
        });
    }
    if !condition.methods.is_empty() && !condition.methods.iter().any(|method| **method == request.method) {
        return Err(format!(
            "the method is not one of {}",
            condition.methods.join(", ")
        ));
    }
    for header in &condition.headers {
        let values: Vec<&str> = request
            .headers
            .iter()
            .filter(|(name, _)| **name == *header.name)
            .map(|(_, value)| value.as_str())
            .collect();
        // Envoy joins repeated headers with a comma.
        let value = (!values.is_empty()).then(|| values.join(","));
        if !holds(header, value.as_deref()) {
            return Err(describe("header", header, value.as_deref()));
        }
    }
    for parameter in &condition.query {
        let value = request
            .query
            .iter()
            .find(|(name, _)| **name == *parameter.name)
            .map(|(_, value)| value.as_str());
        if !holds(parameter, value) {
            return Err(describe("query parameter", parameter, value));
        }
    }
    Ok(())
}

fn holds(condition: &ValueMatch, value: Option<&str>) -> bool {
    // A condition on an absent header does not hold, whatever it says; inverted it does.
    let fits = value.is_some_and(|value| match &condition.text {
        TextMatch::Exact(text) => value == &**text,
        TextMatch::Prefix(text) => value.starts_with(&**text),
        TextMatch::Suffix(text) => value.ends_with(&**text),
        TextMatch::Contains(text) => value.contains(&**text),
        TextMatch::Regex(pattern) => whole(pattern, value),
        TextMatch::Present => true,
    });
    fits != condition.invert
}

fn describe(what: &str, condition: &ValueMatch, value: Option<&str>) -> String {
    let found = value.map_or_else(|| "it is absent".to_owned(), |value| format!("it is {value:?}"));
    let not = if condition.invert { "not " } else { "" };
    format!(
        "{what} {:?} should {not}be {:?}: {found}",
        condition.name, condition.text
    )
}

/// RE2's full match. A pattern that does not compile was refused with its document.
fn whole(pattern: &str, text: &str) -> bool {
    Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|regex| regex.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_like_the_gateway() {
        assert_eq!(normal_path("/a//b/./c/../d"), "/a/b/d");
        assert_eq!(normal_path("/"), "/");
        assert_eq!(normal_path("/a/"), "/a/");
        assert_eq!(normal_path("/a/.."), "/");
        for host in ["a.com", "A.com", "a.com:8080", "A.CoM:80", "a.com."] {
            assert_eq!(normal_host(host), "a.com", "{host}");
        }
        assert_eq!(normal_host("[::1]:80"), "[::1]");
    }

    #[test]
    fn most_specific_host_wins() {
        let known: Vec<Arc<str>> = ["*", "*.example.com", "*.b.example.com", "a.example.com"]
            .map(Arc::from)
            .to_vec();
        let select = |host| select_host(host, known.iter()).map(|name| &**name);
        assert_eq!(select("a.example.com"), Some("a.example.com"));
        assert_eq!(select("x.b.example.com"), Some("*.b.example.com"));
        assert_eq!(select("x.y.example.com"), Some("*.example.com"));
        assert_eq!(select("example.com"), Some("*"));
        assert_eq!(select_host("example.com", known[1..].iter()), None);
    }
}
