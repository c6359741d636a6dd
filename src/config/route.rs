use std::collections::HashSet;
use std::sync::Arc;

use super::breadth::{BACKENDS, claims_of_route};
use super::document::Decoder;
use super::objects::{Backend, BackendTarget, HttpRoute, Rule, RuleAction};
use super::schema::{with_backend_policies, with_policies};
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{Block, BlockSchema, Occurs, Reader, Type, parse_hostname};
use crate::model::Origin;
use crate::model::http::{
    DirectResponse, PathMatch, PathRewrite, Redirect, RequestMatch, Rewrite, TextMatch, ValueMatch,
};

pub(super) fn schema() -> BlockSchema {
    with_policies(BlockSchema::new("http_route", &["name"], "What requests for some hosts get, rule by rule."))
        .required("gateways", Type::List(&Type::Name), "[\"edge\"]", "The gateways that serve this route.")
        .attribute("listeners", Type::List(&Type::Name), Some("[]"), "[\"web\"]", "Only these listeners of the gateways. Empty: all.")
        .required(
            "hostnames",
            Type::List(&Type::Hostname),
            "[\"shop.example.com\"]",
            "Hosts, compared without case, port and trailing dot. \"*.example.com\" takes every host below, at any depth; \
             \"*\" takes the rest. The most specific host wins as a whole: its rules alone are looked at.",
        )
        .block(rule_schema(), Occurs::AtLeastOnce)
}

fn rule_schema() -> BlockSchema {
    with_policies(BlockSchema::new(
        "rule",
        &["name"],
        "Requests that match go where this rule says. Over all rules of a host the most specific match wins: exact path, \
         then regular expression (longest first), then longest prefix; then a match with methods, then more headers, then \
         more query parameters; then the older document, then the order written.",
    ))
    .block(match_schema(), Occurs::Many)
    .block(
        with_backend_policies(BlockSchema::new(
            "backend",
            &["kind", "name"],
            "A destination: `consul` and a service's name, or `upstream` and an upstream's.",
        ))
            .attribute("weight", Type::Integer(0, 1_000_000), Some("1"), "90", "Its share among the rule's backends. 0: none."),
        Occurs::Many,
    )
    .block(
        BlockSchema::new("rewrite", &[], "Changes path or host on the way to the backend.")
            .attribute("path", Type::NewPath, None, "\"/new\"", "The whole path becomes this; the query stays.")
            .attribute("path_prefix", Type::NewPath, None, "\"/\"", "What the rule's path_prefix matched becomes this.")
            .attribute("hostname", Type::Host, None, "\"orders.internal\"", "The Host header that the backend sees.")
            .at_most_one_of(&["path", "path_prefix"]),
        Occurs::Optional,
    )
    .block(
        BlockSchema::new("redirect", &[], "Answers with a redirect.")
            .attribute("scheme", Type::Word(&["http", "https"]), None, "\"https\"", "Left out: the request's.")
            .attribute("hostname", Type::Host, None, "\"www.example.com\"", "Left out: the request's.")
            .attribute("port", Type::Integer(1, 65535), None, "8443", "Left out: that of the scheme (443 for https, 80 for http) where `scheme` is set, else the listener's; as in Gateway API. Not named in the Location where it is the scheme's own.")
            .attribute("path", Type::NewPath, None, "\"/moved\"", "The whole path becomes this.")
            .attribute("path_prefix", Type::NewPath, None, "\"/v2\"", "What the rule's path_prefix matched becomes this.")
            .attribute("status", Type::Integer(301, 308), Some("302"), "301", "301, 302, 303, 307 or 308.")
            .at_most_one_of(&["path", "path_prefix"]),
        Occurs::Optional,
    )
    .block(
        BlockSchema::new("direct_response", &[], "Answers without a backend.")
            .required("status", Type::Integer(200, 599), "404", "The HTTP status.")
            .attribute("body", Type::Text, None, "\"gone\"", "The body, at most 4096 bytes."),
        Occurs::Optional,
    )
    .exactly_one_of(&["backend", "redirect", "direct_response"])
}

fn match_schema() -> BlockSchema {
    let value = |kind: &'static str, doc: &'static str| {
        BlockSchema::new(kind, &["name"], doc)
            .attribute("exact", Type::HeaderValue, None, "\"v2\"", "The whole value.")
            .attribute(
                "prefix",
                Type::PartOfValue,
                None,
                "\"v\"",
                "How the value begins.",
            )
            .attribute(
                "suffix",
                Type::PartOfValue,
                None,
                "\"-beta\"",
                "How the value ends.",
            )
            .attribute(
                "contains",
                Type::PartOfValue,
                None,
                "\"mobile\"",
                "What stands in the value.",
            )
            .attribute(
                "regex",
                Type::Regex,
                None,
                "\"v[0-9]+\"",
                "Matches the whole value.",
            )
            .attribute(
                "present",
                Type::Bool,
                None,
                "true",
                "true: it is there; false: it is not.",
            )
            .exactly_one_of(&["exact", "prefix", "suffix", "contains", "regex", "present"])
    };
    let header = value(
        "header",
        "A condition on a request header. Names compare without case, values with. Of a repeated header any value may hold; Envoy before 1.39 compares them all as one text, joined by commas.",
    )
    .attribute(
        "invert",
        Type::Bool,
        Some("false"),
        "true",
        "The condition must not hold: other values do, and so does a request without the header.",
    );
    BlockSchema::new(
        "match",
        &[],
        "All conditions of one match block must hold; several blocks: any of them. None: every request.",
    )
    .attribute("path", Type::Path, None, "\"/healthz\"", "The exact path.")
    .attribute(
        "path_prefix",
        Type::Path,
        Some("\"/\""),
        "\"/api\"",
        "Whole segments: \"/api\" takes /api and /api/x, not /apix.",
    )
    .attribute(
        "path_regex",
        Type::Regex,
        None,
        "\"/v[0-9]+/.*\"",
        "Matches the whole path, without the query.",
    )
    .at_most_one_of(&["path", "path_prefix", "path_regex"])
    .attribute(
        "methods",
        Type::List(&Type::Method),
        Some("[]"),
        "[\"GET\", \"POST\"]",
        "Any of these. Empty: all.",
    )
    .block(header, Occurs::Many)
    .block(
        value(
            "query",
            "A condition on a query parameter: the first of that name, as sent (nothing is decoded), with case.",
        ),
        Occurs::Many,
    )
}

pub(super) fn decode(decoder: &mut Decoder<'_>, block: &Block, reader: &Reader<'_>) -> HttpRoute {
    let mut hostnames: Vec<Arc<str>> = reader
        .strings("hostnames")
        .iter()
        .filter_map(|name| parse_hostname(name).ok())
        .map(Arc::from)
        .collect();
    hostnames.sort();
    hostnames.dedup();
    for (list, what) in [
        ("hostnames", hostnames.is_empty()),
        ("gateways", reader.strings("gateways").is_empty()),
    ] {
        if what {
            decoder.problems.push(
                Diagnostic::error(
                    Code::MissingKey,
                    format!("{list} is empty: the route would take no request"),
                )
                .at(reader.origin_of(list))
                .because("a route belongs to the hosts and gateways that it names")
                .fix(if list == "hostnames" {
                    "name the hosts, or \"*\" for every host"
                } else {
                    "name a gateway"
                }),
            );
        }
    }
    decoder.doubt_tries(reader, None);
    let rules = fitted(
        reader
            .children("rule")
            .map(|(block, rule)| decode_rule(decoder, block, &rule, reader)),
    );
    let mut route = HttpRoute {
        name: block.label(0).into(),
        origin: reader.origin(),
        gateways: names(reader, "gateways"),
        listeners: names(reader, "listeners"),
        hostnames,
        rules,
        scope: decoder.scope(reader),
        claims_of_document: 0,
    };
    route.claims_of_document = claims_of_route(&route, reader);
    route
}

/// Each at its first place: written twice, a name means what it means once.
pub(super) fn names(reader: &Reader<'_>, list: &str) -> Vec<(Arc<str>, Origin)> {
    let mut names = reader.strings_with_origin(list);
    let mut seen = HashSet::new();
    names.retain(|(name, _)| seen.insert(name.clone()));
    names
}

fn decode_rule(decoder: &mut Decoder<'_>, block: &Block, reader: &Reader<'_>, route: &Reader<'_>) -> Rule {
    decoder.doubt_tries(reader, Some(route));
    let mut matches = fitted(
        reader
            .children("match")
            .map(|(_, reader)| decode_match(decoder, &reader)),
    );
    if matches.is_empty() {
        matches = vec![RequestMatch::any()];
    }
    let rewrite = reader.child("rewrite").map(|rewrite| Rewrite {
        path: path_rewrite(decoder, &rewrite, &matches),
        hostname: rewrite.string("hostname"),
    });
    let action = if let Some(redirect) = reader.child("redirect") {
        RuleAction::Redirect(decode_redirect(decoder, &redirect, &matches))
    } else if let Some(response) = reader.child("direct_response") {
        let body = response.string("body");
        // Envoy's own bound on a direct response's inline body.
        if body.as_ref().is_some_and(|body| body.len() > 4096) {
            decoder.problems.push(
                Diagnostic::error(Code::TooLarge, "body is longer than 4096 bytes")
                    .at(response.origin_of("body"))
                    .because("Envoy holds no longer body of its own")
                    .fix("shorten it, or let a backend answer"),
            );
        }
        RuleAction::Respond(DirectResponse {
            status: response.unsigned("status").unwrap_or(200) as u16,
            body,
        })
    } else {
        RuleAction::Forward(decode_backends(decoder, reader))
    };
    if rewrite.is_some() && !matches!(action, RuleAction::Forward(_)) {
        decoder.problems.push(
            Diagnostic::error(
                Code::Conflict,
                "rewrite changes what a backend sees, and this rule has none",
            )
            .at(reader.origin())
            .because("it would change nothing")
            .fix("take the rewrite block away; a redirect has its own path attributes"),
        );
    }
    Rule {
        name: block.label(0).into(),
        origin: reader.origin(),
        matches,
        rewrite,
        action,
        scope: decoder.scope(reader),
    }
}

/// A list that is kept for as long as its document serves, and never grows: it holds no room for more. A rule's lists are
/// mostly of one, and a list that grew has room for four.
fn fitted<T>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut list: Vec<T> = items.collect();
    list.shrink_to_fit();
    list
}

pub(super) fn decode_backends(decoder: &mut Decoder<'_>, reader: &Reader<'_>) -> Vec<Backend> {
    if let Some((_, first)) = reader.children("backend").nth(BACKENDS) {
        decoder.problems.push(
            Diagnostic::error(Code::TooLarge, format!("more than {BACKENDS} backends"))
                .at(first.origin())
                .because("Envoy looks through them for every request")
                .fix("name one service or upstream that has the instances of many"),
        );
        return Vec::new();
    }
    fitted(
        reader
            .children("backend")
            .filter_map(|(block, reader)| decode_backend(decoder, block, &reader)),
    )
}

fn decode_backend(decoder: &mut Decoder<'_>, block: &Block, reader: &Reader<'_>) -> Option<Backend> {
    let target = match block.label(0) {
        "consul" => BackendTarget::Consul(block.label(1).into()),
        "upstream" => BackendTarget::Upstream(block.label(1).into()),
        other => {
            let near = crate::diagnostics::suggestion(other, ["consul", "upstream"]);
            decoder.problems.push(
                Diagnostic::error(Code::InvalidValue, format!("{other:?} is not a kind of backend"))
                    .at(reader.origin())
                    .because("known are \"consul\" (a service of the catalog) and \"upstream\" (an `upstream` block)")
                    .fix(near.map_or_else(
                        || {
                            "write `backend \"consul\" \"<service>\"` or `backend \"upstream\" \"<name>\"`"
                                .to_owned()
                        },
                        |near| format!("did you mean {near:?}?"),
                    )),
            );
            return None;
        }
    };
    Some(Backend {
        target,
        weight: reader.unsigned("weight").unwrap_or(1),
        policies: decoder.policies(reader),
        origin: reader.origin(),
    })
}

fn decode_match(decoder: &mut Decoder<'_>, reader: &Reader<'_>) -> RequestMatch {
    decoder.doubt_path(reader);
    let path = if let Some(path) = reader.string("path") {
        PathMatch::Exact(path)
    } else if let Some(regex) = reader.string("path_regex") {
        PathMatch::Regex(regex)
    } else {
        PathMatch::Prefix(normal_prefix(
            &reader.string("path_prefix").unwrap_or_else(|| "/".into()),
        ))
    };
    let mut methods = reader.strings("methods");
    methods.sort();
    methods.dedup();
    RequestMatch {
        path,
        methods,
        headers: decode_values(decoder, reader, "header"),
        query: decode_values(decoder, reader, "query"),
    }
}

/// `/api/` and `/api` take the same requests.
fn normal_prefix(prefix: &str) -> Arc<str> {
    match prefix.trim_end_matches('/') {
        "" => "/".into(),
        trimmed => trimmed.into(),
    }
}

fn decode_values<'a>(decoder: &mut Decoder<'_>, reader: &Reader<'a>, kind: &'a str) -> Vec<ValueMatch> {
    let mut values = Vec::new();
    for (block, reader) in reader.children(kind) {
        let name: Arc<str> = if kind == "header" {
            block.label(0).to_ascii_lowercase().into()
        } else {
            block.label(0).into()
        };
        if kind == "header" && http::HeaderName::try_from(&*name).is_err() {
            decoder.problems.push(
                Diagnostic::error(Code::InvalidValue, format!("{name:?} is not a header name"))
                    .at(reader.origin())
                    .because("no request can carry it, so the match would never hold")
                    .fix("header names are letters, digits and '-'"),
            );
        }
        decoder.doubt_regex(&reader, "regex", "value");
        let mut invert = reader.boolean("invert").unwrap_or(false);
        let text = if let Some(value) = reader.string("exact") {
            TextMatch::Exact(value)
        } else if let Some(value) = reader.string("prefix") {
            TextMatch::Prefix(value)
        } else if let Some(value) = reader.string("suffix") {
            TextMatch::Suffix(value)
        } else if let Some(value) = reader.string("contains") {
            TextMatch::Contains(value)
        } else if let Some(value) = reader.string("regex") {
            TextMatch::Regex(value)
        } else {
            invert ^= reader.boolean("present") == Some(false);
            TextMatch::Present
        };
        values.push(ValueMatch { name, text, invert });
    }
    values.sort();
    values
}

fn decode_redirect(decoder: &mut Decoder<'_>, reader: &Reader<'_>, matches: &[RequestMatch]) -> Redirect {
    let status = reader.unsigned("status").unwrap_or(302) as u16;
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        decoder.problems.push(
            Diagnostic::error(Code::InvalidValue, format!("{status} is not a redirect"))
                .at(reader.origin_of("status"))
                .because("clients follow a Location only with the statuses that say so")
                .fix("use 301, 302, 303, 307 or 308"),
        );
    }
    let redirect = Redirect {
        scheme: reader.string("scheme"),
        hostname: reader.string("hostname"),
        port: reader.unsigned("port").map(|port| port as u16),
        path: path_rewrite(decoder, reader, matches),
        status,
    };
    if redirect.scheme.is_none()
        && redirect.hostname.is_none()
        && redirect.port.is_none()
        && redirect.path.is_none()
    {
        decoder.problems.push(
            Diagnostic::error(Code::MissingKey, "a redirect that changes nothing would loop")
                .at(reader.origin())
                .because("the client would be sent to where it came from")
                .fix("set scheme, hostname, port, path or path_prefix"),
        );
    }
    redirect
}

fn path_rewrite(
    decoder: &mut Decoder<'_>,
    reader: &Reader<'_>,
    matches: &[RequestMatch],
) -> Option<PathRewrite> {
    if let Some(path) = reader.string("path") {
        return Some(PathRewrite::Full(path));
    }
    let prefix = reader.string("path_prefix")?;
    if matches
        .iter()
        .any(|request| !matches!(request.path, PathMatch::Prefix(_)))
    {
        decoder.problems.push(
            Diagnostic::error(
                Code::Conflict,
                "path_prefix replaces what a prefix matched, and this rule matches otherwise",
            )
            .at(reader.origin_of("path_prefix"))
            .because("an exact path or a regular expression leaves no prefix to replace")
            .fix("match with path_prefix, or rewrite the whole path with `path`"),
        );
    }
    Some(PathRewrite::Prefix(normal_prefix(&prefix)))
}

#[cfg(test)]
mod tests {
    use super::fitted;

    #[test]
    fn lists_that_are_kept_hold_no_room_for_more() {
        for count in [1, 2, 5, 17] {
            let list = fitted((0..count).filter(|_| true));
            assert_eq!((list.len(), list.capacity()), (count, count));
        }
    }
}
