use regex::Regex;

use super::*;
use crate::resolve::matching::{Request, matches};

fn route(path: ChainPath) -> ChainMatch {
    ChainMatch {
        path,
        case_insensitive: false,
        methods: Vec::new(),
        headers: Vec::new(),
        query: Vec::new(),
    }
}

fn starts(text: &str) -> ChainPath {
    ChainPath::StartsWith(text.into())
}

fn exact(text: &str) -> ChainPath {
    ChainPath::Exact(text.into())
}

fn regex(text: &str) -> ChainPath {
    ChainPath::Regex(text.into())
}

fn prefix(text: &str) -> PathMatch {
    PathMatch::Prefix(text.into())
}

/// What the destination sees of a path, by the plain meaning of both.
fn seen(path: &str, from: &str, to: Option<&str>) -> String {
    let Some(to) = to else { return path.to_owned() };
    let rest = if from == "/" { path } else { &path[from.len()..] };
    let to = to.trim_end_matches('/');
    match rest {
        "" if to.is_empty() => "/".to_owned(),
        rest => format!("{to}{rest}"),
    }
}

fn chain_takes(path: &ChainPath, seen: &str) -> bool {
    takes(path, seen).unwrap()
}

fn applied(rewrite: &Option<Rewrite>, from: &str, path: &str) -> String {
    match rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref()) {
        None => path.to_owned(),
        Some(PathRewrite::Full(path)) => path.to_string(),
        Some(PathRewrite::Substitute { pattern, with }) => Regex::new(pattern)
            .unwrap()
            .replace(path, regex::NoExpand(with))
            .into_owned(),
        Some(PathRewrite::Prefix(to)) => seen(path, from, Some(to)),
    }
}

/// The combination against its plain meaning, over every pair of a rule and a chain's route, and every path.
#[test]
fn a_chain_behind_a_rule_takes_what_it_would_take_by_itself() {
    let rules = [
        ("/", None),
        ("/api", None),
        ("/", Some("/")),
        ("/", Some("/v2")),
        ("/api", Some("/")),
        ("/api", Some("/v2")),
        ("/api", Some("/api/v2")),
    ];
    let routes = [
        ChainPath::Any,
        starts("/admin"),
        starts("/api"),
        starts("/api/admin"),
        starts("/ap"),
        starts("/v2"),
        starts("/v2/admin"),
        starts("/v"),
        starts("/apix"),
        exact("/"),
        exact("/admin"),
        exact("/api"),
        exact("/api/admin"),
        exact("/v2"),
        exact("/v2/admin"),
        regex("/admin/[0-9]+"),
        regex("/api/admin/[0-9]+"),
        regex("/(admin/.*)?"),
    ];
    let paths = [
        "/",
        "/api",
        "/api/",
        "/apix",
        "/api/admin",
        "/api/admin/7",
        "/api/adminx",
        "/admin",
        "/admin/7",
        "/v2",
        "/v2/admin",
        "/x",
        "/api/v2/admin",
        "/ap",
    ];
    let mut expressed = 0;
    for (from, to) in rules {
        let rewrite = to.map(|to| Rewrite {
            path: Some(PathRewrite::Prefix(to.into())),
            hostname: None,
        });
        let path_match = prefix(from);
        let front = Front {
            path: &path_match,
            rewrite: rewrite.as_ref(),
        };
        let request = RequestMatch {
            path: path_match.clone(),
            ..RequestMatch::any()
        };
        for chain_path in &routes {
            let Ok(conditions) = front.path_conditions(&route(chain_path.clone())) else {
                assert!(
                    matches!(chain_path, ChainPath::Regex(_)),
                    "{from} {to:?} {chain_path:?}"
                );
                continue;
            };
            let composed: Vec<RequestMatch> = conditions
                .iter()
                .filter_map(|condition| both_paths(&request, condition))
                .collect();
            for path in paths {
                let rule_takes = from == "/" || path == from || path.starts_with(&format!("{from}/"));
                let plain = rule_takes && chain_takes(chain_path, &seen(path, from, to));
                let sent = Request::new("GET", "a", path, &[]);
                let hit = composed.iter().find(|matching| matches(matching, &sent).is_ok());
                assert_eq!(
                    hit.is_some(),
                    plain,
                    "rule {from} -> {to:?}, chain {chain_path:?}, path {path}: {composed:?}"
                );
                let Some(hit) = hit else { continue };
                expressed += 1;
                let own = front.rewrite(None, &hit.path).unwrap();
                assert_eq!(
                    applied(&own, from, path),
                    seen(path, from, to),
                    "{from} {to:?} {chain_path:?} {path} {own:?}"
                );
                let with: Arc<str> = "/new".into();
                let chain_route = route(chain_path.clone());
                let both = front.rewrite(Some((&chain_route, &with)), &hit.path).unwrap();
                let arrived = seen(path, from, to);
                let expected = match chain_path {
                    ChainPath::Any => format!("/new{}", &arrived[1..]),
                    ChainPath::StartsWith(text) => format!("/new{}", &arrived[text.len()..]),
                    ChainPath::Exact(_) | ChainPath::Regex(_) => "/new".to_owned(),
                };
                // The rule's own slash is folded where it cuts a prefix off.
                assert_eq!(
                    applied(&both, from, path),
                    expected,
                    "{from} {to:?} {chain_path:?} {path} {both:?}"
                );
            }
        }
    }
    assert!(expressed > 100, "{expressed}");
}

#[test]
fn regular_expressions_of_both_must_hold() {
    let request = RequestMatch {
        path: PathMatch::Regex("/a/.*".into()),
        ..RequestMatch::any()
    };
    for (condition, path, fits) in [
        (regex(".*/z"), "/a/b/z", true),
        (regex(".*/z"), "/a/b/y", false),
        (regex(".*/z"), "/b/z", false),
        (starts("/a/b"), "/a/bc", true),
        (starts("/a/b"), "/a/c", false),
        (exact("/a/q"), "/a/q", true),
    ] {
        let both = both_paths(&request, &condition).unwrap();
        let sent = Request::new("GET", "h", path, &[]);
        assert_eq!(matches(&both, &sent).is_ok(), fits, "{condition:?} {path}");
    }
    assert_eq!(both_paths(&request, &exact("/q")), None);
}

#[test]
fn the_rest_of_both_must_hold() {
    let mut one = RequestMatch::any();
    one.methods = vec!["GET".into(), "POST".into()];
    let mut other = route(ChainPath::Any);
    other.methods = vec!["POST".into(), "PUT".into()];
    assert_eq!(both_requests(&one, &other).unwrap().methods, ["POST".into()]);
    other.methods = vec!["DELETE".into()];
    assert_eq!(both_requests(&one, &other), None);
}

#[test]
fn case_is_ignored_where_the_chain_says_so() {
    let mut insensitive = route(starts("/Admin"));
    insensitive.case_insensitive = true;
    let path = prefix("/");
    let front = Front {
        path: &path,
        rewrite: None,
    };
    let conditions = front.path_conditions(&insensitive).unwrap();
    let both = both_paths(&RequestMatch::any(), &conditions[0]).unwrap();
    assert!(matches(&both, &Request::new("GET", "h", "/aDMIN/x", &[])).is_ok());
    assert!(matches(&both, &Request::new("GET", "h", "/x", &[])).is_err());
    let with: Arc<str> = "/".into();
    let rewrite = front.rewrite(Some((&insensitive, &with)), &both.path).unwrap();
    assert_eq!(applied(&rewrite, "/", "/aDMIN/x"), "/x");
}

/// What an intention of the destination looks at is a path as it would be normalised, whatever was cut off it.
#[test]
fn what_a_router_rewrites_stays_normalised() {
    let rewritten = |rule: (&str, Option<&str>), text: &str, with: &str, path: &str| {
        let rewrite = rule.1.map(|to| Rewrite {
            path: Some(PathRewrite::Prefix(to.into())),
            hostname: None,
        });
        let path_match = prefix(rule.0);
        let front = Front {
            path: &path_match,
            rewrite: rewrite.as_ref(),
        };
        let with: Arc<str> = with.into();
        let both = front
            .rewrite(Some((&route(starts(text)), &with)), &path_match)
            .unwrap();
        applied(&both, rule.0, path)
    };
    for (rule, text, with, path, expected) in [
        (("/", None), "/admin", "/", "/admin/users", "/users"),
        (("/", None), "/admin", "/", "/admin", "/"),
        (("/", None), "/admin", "/", "/admin/", "/"),
        (("/", None), "/admin/", "/", "/admin/users", "/users"),
        (("/", None), "/admin", "/v2/", "/admin/users", "/v2/users"),
        // A segment that the prefix cuts in two.
        (("/", None), "/admin", "/", "/administer", "/ister"),
        (("/", None), "/admin", "/", "/admin.json", "/.json"),
        (("/", None), "/admin", "/", "/admin...", "/..."),
        (("/", None), "/admin", "/", "/admin../users", "/users"),
        (("/", None), "/admin", "/", "/admin./users", "/users"),
        (("/", None), "/admin", "/v2/", "/admin../users", "/v2/users"),
        (("/", None), "/admin", "/v2/", "/admin..", "/v2/"),
        (("/", None), "/admin", "/v2", "/admin../users", "/v2../users"),
        // What the router itself says.
        (("/", None), "/admin", "/a//b/../c", "/admin/users", "/a/c/users"),
        (("/", None), "/admin", "v2", "/admin/users", "/v2/users"),
        (("/", None), "/admin", "/v2/.", "/admin./users", "/v2/users"),
        // Behind a rewrite of the rule's own.
        (("/shop", Some("/api")), "/api", "/", "/shop/users", "/users"),
        (
            ("/shop", Some("/api")),
            "/api/ad",
            "/",
            "/shop/ad../users",
            "/users",
        ),
        (("/shop", Some("/")), "/ad", "/", "/shop/ad../users", "/users"),
    ] {
        assert_eq!(
            rewritten(rule, text, with, path),
            expected,
            "{rule:?} {text} {with} {path}"
        );
    }
    let path = prefix("/");
    let whole = PathRewrite::Full("/admin/users".into());
    for (path_rewrite, chain_path) in [(None, exact("/x")), (Some(whole), starts("/admin"))] {
        let rewrite = path_rewrite.map(|rewrite| Rewrite {
            path: Some(rewrite),
            hostname: None,
        });
        let front = Front {
            path: &path,
            rewrite: rewrite.as_ref(),
        };
        let with: Arc<str> = "/v2//".into();
        let both = front.rewrite(Some((&route(chain_path), &with)), &path).unwrap();
        let seen = applied(&both, "/", "/x");
        assert!(matches!(&*seen, "/v2/" | "/v2/users"), "{seen}");
    }
}
