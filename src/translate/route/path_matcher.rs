//! A host's branches as Envoy's matcher: the longest branch that `:path` begins with has a list of routes of its own.
//!
//! Not an `exact_match_map`: `:path` has the query string in it, so `/a?b=1` would miss `/a`. Each route in a list still
//! asks for its whole match.

use envoy_types::pb::envoy::config::route::v3::RouteList;
use envoy_types::pb::envoy::r#type::matcher::v3::HttpRequestHeaderMatchInput;
use envoy_types::pb::xds::core::v3::TypedExtensionConfig;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::predicate::{
    MatchType, PredicateList, SinglePredicate, single_predicate,
};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::{FieldMatcher, Predicate};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{MatcherList, OnMatch, on_match};
use envoy_types::pb::xds::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::xds::r#type::matcher::v3::{RegexMatcher, StringMatcher, regex_matcher};
use prost::Name;

use super::path_tree::PathTree;
use super::{SNI_HEADER, ServerNames, misdirected};
use crate::envoy::any;
use crate::translate::encoding::{put_bytes, put_message, put_struct};

/// `RouteList.routes`.
pub(super) const ROUTE_OF_LIST: u32 = 1;

/// The host's routes as fields of a `RouteList`.
#[derive(Clone, Copy)]
pub(super) struct Encoded<'a> {
    pub bytes: &'a [u8],
    /// Where each ends.
    pub ends: &'a [usize],
}

impl Encoded<'_> {
    fn route(&self, at: usize) -> &[u8] {
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[at]]
    }
}

/// The fields of a `Matcher`. Whether a request is misdirected is asked before all branches, and in none.
pub(super) fn put_path_matcher(
    buffer: &mut Vec<u8>,
    tree: &PathTree,
    routes: Encoded,
    names: Option<ServerNames>,
) {
    let Some(names) = names else {
        return put_tree(buffer, tree, routes);
    };
    let list = RouteList {
        routes: vec![misdirected(names)],
    };
    let matchers = MatcherList {
        matchers: vec![FieldMatcher {
            predicate: Some(has_another(names)),
            on_match: Some(OnMatch {
                on_match: Some(on_match::OnMatch::Action(extension("routes", &list))),
                ..OnMatch::default()
            }),
        }],
    };
    put_struct(buffer, 1, &matchers);
    put_message(buffer, 3, |otherwise| {
        put_message(otherwise, 1, |matcher| put_tree(matcher, tree, routes))
    });
}

fn put_tree(buffer: &mut Vec<u8>, tree: &PathTree, routes: Encoded) {
    put_message(buffer, 2, |matcher_tree| {
        put_struct(matcher_tree, 1, &header(":path"));
        put_message(matcher_tree, 3, |map| {
            for (beginning, list) in &tree.branches {
                put_message(map, 1, |entry| {
                    put_bytes(entry, 1, beginning.as_bytes());
                    put_message(entry, 2, |on_match| put_list(on_match, list, routes));
                });
            }
        });
    });
    if !tree.rest.is_empty() {
        put_message(buffer, 3, |on_match| put_list(on_match, &tree.rest, routes));
    }
}

/// The fields of an `OnMatch`.
fn put_list(buffer: &mut Vec<u8>, list: &[usize], routes: Encoded) {
    put_message(buffer, 2, |action| {
        put_bytes(action, 1, b"routes");
        put_message(action, 2, |any| {
            put_bytes(any, 1, RouteList::type_url().as_bytes());
            put_message(any, 2, |value| {
                for at in list {
                    value.extend_from_slice(routes.route(*at));
                }
            });
        });
    });
}

/// There is a server name, and it is none of these: what [`misdirected`] asks. It alone would not do here: where a
/// list takes a request and none of its routes does, no other list is tried.
fn has_another(names: ServerNames) -> Predicate {
    let single = |pattern| {
        MatchType::SinglePredicate(SinglePredicate {
            input: Some(header(SNI_HEADER)),
            matcher: Some(single_predicate::Matcher::ValueMatch(StringMatcher {
                // Refused with a regular expression.
                ignore_case: !matches!(pattern, MatchPattern::SafeRegex(_)),
                match_pattern: Some(pattern),
            })),
        })
    };
    let predicate = |of| Predicate { match_type: Some(of) };
    let some = MatchPattern::SafeRegex(RegexMatcher {
        regex: ".*".into(),
        engine_type: Some(regex_matcher::EngineType::GoogleRe2(regex_matcher::GoogleRe2 {})),
    });
    let expected = match names {
        ServerNames::One(name) => MatchPattern::Exact(name.to_owned()),
        ServerNames::EndingWith(suffix) => MatchPattern::Suffix(suffix.to_owned()),
    };
    let other = MatchType::NotMatcher(Box::new(predicate(single(expected))));
    predicate(MatchType::AndMatcher(PredicateList {
        predicate: vec![predicate(single(some)), predicate(other)],
    }))
}

fn header(name: &str) -> TypedExtensionConfig {
    let input = HttpRequestHeaderMatchInput {
        header_name: name.to_owned(),
    };
    extension("header", &input)
}

fn extension<M: prost::Message + Name>(name: &str, config: &M) -> TypedExtensionConfig {
    TypedExtensionConfig {
        name: name.to_owned(),
        typed_config: Some(any(config)),
    }
}
