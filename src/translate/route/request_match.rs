//! Which requests a route takes.

use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, QueryParameterMatcher};
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};

use crate::model::http::{PathMatch, RequestMatch, TextMatch, ValueMatch};
use crate::translate::encoding::{put_bytes, put_message, put_struct};

/// The fields of a `RouteMatch`.
pub(super) fn put_match(buffer: &mut Vec<u8>, request: &RequestMatch) {
    match &request.path {
        PathMatch::Exact(path) => put_bytes(buffer, 2, path.as_bytes()),
        PathMatch::Prefix(prefix) if **prefix == *"/" => put_bytes(buffer, 1, b"/"),
        PathMatch::Prefix(prefix) => put_bytes(buffer, 14, prefix.as_bytes()),
        PathMatch::StartsWith(text) => put_bytes(buffer, 1, text.as_bytes()),
        // A `RegexMatcher` of its field 2.
        PathMatch::Regex(regex) => put_message(buffer, 10, |matcher| put_bytes(matcher, 2, regex.as_bytes())),
    }
    for header in &request.headers {
        put_struct(buffer, 6, &header_matcher(header));
    }
    if !request.methods.is_empty() {
        put_struct(
            buffer,
            6,
            &method_matcher(request.methods.iter().map(|method| &**method)),
        );
    }
    for query in &request.query {
        put_struct(buffer, 7, &query_matcher(query));
    }
}

/// One of these.
pub(super) fn method_matcher<'a>(methods: impl Iterator<Item = &'a str>) -> HeaderMatcher {
    let methods: Vec<&str> = methods.collect();
    let pattern = match methods[..] {
        [only] => MatchPattern::Exact(only.to_owned()),
        _ => MatchPattern::SafeRegex(RegexMatcher {
            regex: methods.join("|"),
            ..RegexMatcher::default()
        }),
    };
    HeaderMatcher {
        name: ":method".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(pattern),
            ..StringMatcher::default()
        })),
        ..HeaderMatcher::default()
    }
}

fn header_matcher(condition: &ValueMatch) -> HeaderMatcher {
    HeaderMatcher {
        name: condition.name.to_string(),
        invert_match: condition.invert,
        // Envoy takes no route for an absent header otherwise, inverted or not; "is not yes" holds without the header.
        treat_missing_header_as_empty: condition.invert && condition.text != TextMatch::Present,
        header_match_specifier: Some(match text_pattern(&condition.text) {
            None => HeaderMatchSpecifier::PresentMatch(true),
            Some(pattern) => HeaderMatchSpecifier::StringMatch(StringMatcher {
                match_pattern: Some(pattern),
                ..StringMatcher::default()
            }),
        }),
    }
}

/// Envoy inverts only presence for query parameters; the schema offers no more.
fn query_matcher(condition: &ValueMatch) -> QueryParameterMatcher {
    let specifier = match text_pattern(&condition.text) {
        None => QueryParameterMatchSpecifier::PresentMatch(!condition.invert),
        Some(pattern) => QueryParameterMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(pattern),
            ..StringMatcher::default()
        }),
    };
    QueryParameterMatcher {
        name: condition.name.to_string(),
        query_parameter_match_specifier: Some(specifier),
    }
}

fn text_pattern(text: &TextMatch) -> Option<MatchPattern> {
    Some(match text {
        TextMatch::Exact(text) => MatchPattern::Exact(text.to_string()),
        TextMatch::Prefix(text) => MatchPattern::Prefix(text.to_string()),
        TextMatch::Suffix(text) => MatchPattern::Suffix(text.to_string()),
        TextMatch::Contains(text) => MatchPattern::Contains(text.to_string()),
        TextMatch::Regex(regex) => MatchPattern::SafeRegex(RegexMatcher {
            regex: regex.to_string(),
            ..RegexMatcher::default()
        }),
        TextMatch::Present => return None,
    })
}
