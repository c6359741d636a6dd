//! Which route takes a request: the same rules that Envoy applies to what we send it. The test against Envoy itself
//! over random trees and requests keeps the two together.

use std::sync::Arc;

use crate::model::http::{PathMatch, RequestMatch, TextMatch, ValueMatch};
use crate::model::regex::full_match;

/// HTTP/2's name for the path and query, which Envoy matches like a header.
pub(super) const PATH_HEADER: &str = ":path";

/// A request as the routing sees it.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Lower case, without port and trailing dot.
    pub host: String,
    /// Normalised, without query.
    pub path: String,
    /// As sent: nothing is decoded.
    pub query: Vec<(String, String)>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The path holds an escaped slash or backslash: before any routing the client is sent to this one (307).
    pub redirected_to: Option<String>,
    /// The name that the connection is opened for: what a TLS client sends as SNI. None: an IP address.
    pub server_name: Option<String>,
}

impl Request {
    /// Takes a request apart as the gateway does before routing.
    pub fn new(method: &str, host: &str, path_and_query: &str, headers: &[(String, String)]) -> Self {
        // A fragment never leaves a client.
        let sent = path_and_query.split('#').next().unwrap_or_default();
        let (path, query) = sent.split_once('?').unwrap_or((sent, ""));
        let unescaped = unescaped_slashes(path);
        let redirected_to = (unescaped != path).then(|| match query {
            "" => normal_path(&unescaped),
            query => format!("{}?{query}", normal_path(&unescaped)),
        });
        let host = normal_host(host);
        Self {
            method: method.to_owned(),
            server_name: server_name(&host),
            host,
            path: normal_path(path),
            query: query
                .split('&')
                .filter(|part| !part.is_empty())
                .map(|part| part.split_once('=').unwrap_or((part, "")))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            headers: headers
                .iter()
                .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
                .collect(),
            redirected_to,
        }
    }

    /// Where the connection goes, if that is not what the Host header says.
    pub fn connected_to(mut self, host: &str) -> Self {
        self.server_name = server_name(&normal_host(host));
        self
    }
}

/// Clients send no SNI for an address.
fn server_name(host: &str) -> Option<String> {
    let is_address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    (!is_address && !host.is_empty()).then(|| host.to_owned())
}

fn normal_host(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    let bare = match host.rsplit_once(':') {
        Some((bare, port))
            if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) && !bare.ends_with(':') =>
        {
            bare
        }
        _ => &host,
    };
    bare.strip_suffix('.').unwrap_or(bare).to_owned()
}

fn unescaped_slashes(path: &str) -> String {
    path.replace("%2f", "/")
        .replace("%2F", "/")
        .replace("%5c", "\\")
        .replace("%5C", "\\")
}

/// What Envoy's normalisation does: one spelling for every character, then dot segments, then doubled slashes.
pub(super) fn normal_path(path: &str) -> String {
    let path = one_spelling(path);
    let mut segments: Vec<&str> = Vec::new();
    let mut is_dot = false;
    for segment in path.split('/').skip(1) {
        is_dot = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => {
                segments.pop();
            }
            // An empty one counts as a level until here: `/a//../b` is `/a/b`.
            other => segments.push(other),
        }
    }
    if is_dot {
        segments.push("");
    }
    let undotted = format!("/{}", segments.join("/"));
    if !undotted.contains("//") {
        return undotted;
    }
    segments.retain(|segment| !segment.is_empty());
    // Envoy keeps the first and the last slash, so that a path of nothing but slashes becomes two.
    let slash = if undotted.ends_with('/') { "/" } else { "" };
    format!("/{}{slash}", segments.join("/"))
}

/// Letters, digits and `-._~` bare, what cannot stand in a URL escaped, the rest as sent.
fn one_spelling(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut spelled = String::with_capacity(path.len());
    let mut index = 0;
    while index < bytes.len() {
        let escaped = (bytes[index] == b'%')
            .then(|| path.get(index + 1..index + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (escaped, bytes[index]) {
            (Some(byte), _) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                spelled.push(char::from(byte));
                index += 2;
            }
            (_, b'\\') => spelled.push('/'),
            (_, byte) if !byte.is_ascii_graphic() || b"\"<>^`{|}".contains(&byte) => {
                spelled.push_str(&format!("%{byte:02X}"));
            }
            (_, byte) => spelled.push(char::from(byte)),
        }
        index += 1;
    }
    spelled
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
        PathMatch::StartsWith(text) => request.path.starts_with(&**text),
        PathMatch::Regex(pattern) => whole(pattern, &request.path),
    };
    if !path_fits {
        return Err(match &condition.path {
            PathMatch::Exact(path) => format!("the path is not {path:?}"),
            PathMatch::Prefix(prefix) => format!("the path is not under {prefix:?}"),
            PathMatch::StartsWith(text) => format!("the path does not begin with {text:?}"),
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
        let values: Vec<&str> = match &*header.name {
            // What a chain's condition on the path became beside that of a rule.
            PATH_HEADER => vec![&request.path],
            name => request
                .headers
                .iter()
                .filter(|(other, _)| other == name)
                .map(|(_, value)| value.as_str())
                .collect(),
        };
        if !holds(header, &values) {
            return Err(describe("header", header, &values));
        }
    }
    for parameter in &condition.query {
        // The first of a name counts.
        let value = request
            .query
            .iter()
            .find(|(name, _)| **name == *parameter.name)
            .map(|(_, value)| value.as_str());
        if !holds(parameter, value.as_slice()) {
            return Err(describe("query parameter", parameter, value.as_slice()));
        }
    }
    Ok(())
}

/// Of a repeated header any value may hold. An absent one holds nothing, and under `invert` counts as empty.
pub(super) fn holds(condition: &ValueMatch, values: &[&str]) -> bool {
    let fits = |value: &str| match &condition.text {
        TextMatch::Exact(text) => value == &**text,
        TextMatch::Prefix(text) => value.starts_with(&**text),
        TextMatch::Suffix(text) => value.ends_with(&**text),
        TextMatch::Contains(text) => value.contains(&**text),
        TextMatch::Regex(pattern) => whole(pattern, value),
        TextMatch::Present => true,
    };
    let any_fits = match values {
        [] => condition.invert && condition.text != TextMatch::Present && fits(""),
        values => values.iter().any(|value| fits(value)),
    };
    any_fits != condition.invert
}

fn describe(what: &str, condition: &ValueMatch, values: &[&str]) -> String {
    let (name, not) = (&condition.name, if condition.invert { "not " } else { "" });
    let wanted = match &condition.text {
        TextMatch::Exact(text) => format!("{not}be {text:?}"),
        TextMatch::Prefix(text) => format!("{not}begin with {text:?}"),
        TextMatch::Suffix(text) => format!("{not}end with {text:?}"),
        TextMatch::Contains(text) => format!("{not}contain {text:?}"),
        TextMatch::Regex(pattern) => format!("{not}match {pattern:?}"),
        TextMatch::Present => format!("{not}be there"),
    };
    let found = match values {
        [] => "absent".to_owned(),
        values => values
            .iter()
            .map(|value| format!("{value:?}"))
            .collect::<Vec<_>>()
            .join(" and "),
    };
    format!("the {what} {name:?} should {wanted}, and is {found}")
}

/// RE2's full match. A pattern that does not compile was refused with its document.
fn whole(pattern: &str, text: &str) -> bool {
    full_match(pattern, text).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_like_the_gateway() {
        // Each pair as a real Envoy 1.40 answered it.
        for (sent, routed) in [
            ("/a//b/./c/../d", "/a/b/d"),
            ("/", "/"),
            ("/a/", "/a/"),
            ("/a/..", "/"),
            ("/..", "/"),
            ("/a/.", "/a/"),
            ("/a//../b", "/a/b"),
            ("/a///../b", "/a/b"),
            ("//psp", "/psp"),
            ("/psp%61", "/pspa"),
            ("/psp/%7e", "/psp/~"),
            ("/psp/a%2Eb", "/psp/a.b"),
            ("/%2e%2e/psp", "/psp"),
            ("/a\\b", "/a/b"),
            ("/psp/%C3%A4", "/psp/%C3%A4"),
            ("/psp/%c3%a4", "/psp/%c3%a4"),
            ("/psp/%zz", "/psp/%zz"),
            ("/psp/%22", "/psp/%22"),
            ("/psp/\"<>^`{|}", "/psp/%22%3C%3E%5E%60%7B%7C%7D"),
            ("/psp/!$&'()*+,;=:@[x]", "/psp/!$&'()*+,;=:@[x]"),
        ] {
            assert_eq!(normal_path(sent), routed, "{sent}");
        }
        assert_eq!(normal_host("a.com:"), "a.com:");
        assert_eq!(normal_host("a.com.:80"), "a.com");
        for host in ["a.com", "A.com", "a.com:8080", "A.CoM:80", "a.com."] {
            assert_eq!(normal_host(host), "a.com", "{host}");
        }
        assert_eq!(normal_host("[::1]:80"), "[::1]");
    }

    #[test]
    fn escaped_slashes_are_redirected() {
        let request = |path| Request::new("GET", "a", path, &[]).redirected_to;
        assert_eq!(request("/a%2Fb?x=%2F").as_deref(), Some("/a/b?x=%2F"));
        assert_eq!(request("/psp/..%2f").as_deref(), Some("/"));
        assert_eq!(request("/a%5cb").as_deref(), Some("/a/b"));
        assert_eq!(request("/a?x=%2f"), None);
    }

    /// As a real Envoy 1.40 answered them, with what `translate` sends for an inverted condition.
    #[test]
    fn headers_and_query_as_envoy_compares_them() {
        let condition = |text, invert| ValueMatch {
            name: "x-t".into(),
            text,
            invert,
        };
        let exact = |text: &str, invert| condition(TextMatch::Exact(text.into()), invert);
        for (condition, values, expected) in [
            (exact("yes", true), &[][..], true),
            (exact("yes", true), &["no"], true),
            (exact("yes", true), &["no", "yes"], false),
            (exact("yes", false), &[], false),
            (exact("", false), &[], false),
            (exact("", true), &[], false),
            (exact("a", false), &["a", "b"], true),
            (exact("b", false), &["a", "b"], true),
            (exact("a,b", false), &["a", "b"], false),
            (condition(TextMatch::Present, false), &[""], true),
            (condition(TextMatch::Present, true), &[], true),
        ] {
            assert_eq!(holds(&condition, values), expected, "{condition:?} {values:?}");
        }
        let request = Request::new("GET", "a", "/q?b&a=%32&a=2&%61=3", &[]);
        let names: Vec<_> = request
            .query
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(names, ["b=", "a=%32", "a=2", "%61=3"]);
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
