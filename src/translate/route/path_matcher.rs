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
    pub fn route(&self, at: usize) -> &[u8] {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use envoy_types::pb::envoy::config::route::v3::VirtualHost;
    use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
    use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_tree::TreeType;
    use envoy_types::pb::xds::r#type::matcher::v3::matcher::{MatcherTree, MatcherType};
    use prost::Message;

    use super::super::encode_virtual_host;
    use super::*;
    use crate::ir;
    use crate::model::http::PathMatch;

    fn encoded(host: &str, checks_sni: bool) -> VirtualHost {
        let mut routes: Vec<_> = (0..20)
            .map(|at| format!("/p{at:02}"))
            .map(|path| ir::Route::to_nowhere(&path, PathMatch::Exact(path.as_str().into())))
            .collect();
        for prefix in ["/p07/below", "/"] {
            routes.push(ir::Route::to_nowhere(prefix, PathMatch::Prefix(prefix.into())));
        }
        let host = ir::VirtualHost {
            listener: "web".into(),
            host: host.into(),
            routes,
            checks_sni,
            stream_idle_timeout: std::time::Duration::ZERO,
            origins: Vec::new(),
        };
        VirtualHost::decode(encode_virtual_host(&host).bytes).unwrap()
    }

    fn names(on_match: Option<&OnMatch>) -> Vec<String> {
        let Some(on_match::OnMatch::Action(action)) =
            on_match.and_then(|on_match| on_match.on_match.as_ref())
        else {
            panic!("{on_match:?}");
        };
        let any = action.typed_config.as_ref().unwrap();
        assert_eq!(any.type_url, RouteList::type_url());
        let list = RouteList::decode(&any.value[..]).unwrap();
        list.routes.into_iter().map(|route| route.name).collect()
    }

    fn branches(matcher: &Matcher) -> BTreeMap<String, Vec<String>> {
        let Some(MatcherType::MatcherTree(MatcherTree {
            input: Some(input),
            tree_type: Some(TreeType::PrefixMatchMap(map)),
        })) = &matcher.matcher_type
        else {
            panic!("{matcher:?}");
        };
        assert_eq!(*input, header(":path"));
        assert_eq!(matcher.on_no_match, None, "every path begins with a slash");
        let branches = map.map.iter();
        branches
            .map(|(beginning, list)| (beginning.clone(), names(Some(list))))
            .collect()
    }

    #[test]
    fn every_branch_has_the_routes_that_may_match_below_it() {
        let host = encoded("a.com", false);
        assert!(host.routes.is_empty(), "Envoy takes one of the two");
        let branches = branches(host.matcher.as_ref().unwrap());
        assert_eq!(branches.len(), 22);
        assert_eq!(branches["/"], ["/"]);
        assert_eq!(branches["/p07"], ["/p07", "/"]);
        assert_eq!(branches["/p07/below"], ["/p07", "/p07/below", "/"]);
    }

    #[test]
    fn a_misdirected_request_is_asked_for_before_the_branches() {
        for (host, expected) in [
            ("a.com", MatchPattern::Exact("a.com".into())),
            ("*.a.com", MatchPattern::Suffix(".a.com".into())),
        ] {
            let host = encoded(host, true);
            let matcher = host.matcher.unwrap();
            let Some(MatcherType::MatcherList(list)) = &matcher.matcher_type else {
                panic!("{matcher:?}");
            };
            let [first] = &list.matchers[..] else {
                panic!("{list:?}")
            };
            assert_eq!(names(first.on_match.as_ref()), ["portreeve/misdirected"]);
            assert!(
                format!("{:?}", first.predicate).contains(&format!("{expected:?}")),
                "{:?}",
                first.predicate
            );
            let otherwise = matcher.on_no_match.unwrap().on_match;
            let Some(on_match::OnMatch::Matcher(tree)) = otherwise else {
                panic!("{otherwise:?}");
            };
            assert_eq!(branches(&tree)["/p07"], ["/p07", "/"]);
        }
        let everybody = encoded("*", true).matcher.unwrap();
        assert_eq!(
            branches(&everybody).len(),
            22,
            "a certificate covers whatever it covers"
        );
    }
}
