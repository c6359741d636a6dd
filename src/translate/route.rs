use std::sync::Arc;

use bytes::BytesMut;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{DataSource, HeaderValue, HeaderValueOption, data_source};
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_action::{ClusterSpecifier, HostRewriteSpecifier};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, HeaderMatcher, QueryParameterMatcher, RedirectAction, Route, RouteAction,
    RouteMatch, VirtualHost, WeightedCluster, redirect_action, route, scoped_route_configuration,
    weighted_cluster,
};
use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, ScopedRouteConfiguration};
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatchAndSubstitute, RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use prost::Message;

use super::http_connection_manager::{LISTENER_HEADER, SNI_HEADER};
use super::mesh::{put_chain_settings, put_hash_policies};
use super::ordered::{put_any_map, put_bytes};
use crate::envoy::{Resource, ResourceKind, ResourceRef, duration, wrap_bool, wrap_u32};
use crate::features::{AnyFeature, FEATURES, RouteParts, default_retry, header_additions, header_removals};
use crate::ir::{self, Action};
use crate::model::http::{PathMatch, PathRewrite, Redirect, RequestMatch, TextMatch, ValueMatch};

/// Why the gateway itself answered, for whoever looks at a 503.
pub(super) const REASON_HEADER: &str = "x-portreeve-reason";

/// One host's routes, encoded: the unit that a route change costs.
pub(super) fn encode_virtual_host(host: &ir::VirtualHost) -> bytes::Bytes {
    let name = format!("{}/{}", host.listener, host.host);
    let message = VirtualHost {
        name,
        domains: vec![host.host.to_string()],
        ..VirtualHost::default()
    };
    let mut buffer = BytesMut::from(&message.encode_to_vec()[..]);
    if host.checks_sni
        && let Some(route) = misdirected(&host.host)
    {
        put_bytes(&mut buffer, 3, &route.encode_to_vec());
    }
    for route in &host.routes {
        put_bytes(&mut buffer, 3, &encode_route(route));
    }
    buffer.freeze()
}

/// A host of its own scope: Envoy reads this one alone when it changes.
pub(super) fn scoped_resource(host: &ir::VirtualHost, encoded: &[u8]) -> Resource {
    let name: Arc<str> = format!("{}/{}", host.listener, host.host).into();
    let fragment = |text: &str| scoped_route_configuration::key::Fragment {
        r#type: Some(scoped_route_configuration::key::fragment::Type::StringKey(
            text.to_owned(),
        )),
    };
    let message = ScopedRouteConfiguration {
        name: name.to_string(),
        key: Some(scoped_route_configuration::Key {
            fragments: vec![fragment(&host.listener), fragment(&host.host)],
        }),
        ..ScopedRouteConfiguration::default()
    };
    let mut buffer = BytesMut::from(&message.encode_to_vec()[..]);
    put_bytes(&mut buffer, 5, &table(&name, [encoded]));
    Resource::new(ResourceKind::ScopedRoute, name, &buffer)
        .needing(clusters([host]))
        .from_documents(host.origins.clone().into())
}

/// All hosts of a listener in one table: what wildcards need.
pub(super) fn table_resource(listener: &Arc<str>, encoded: &[(&ir::VirtualHost, &[u8])]) -> Resource {
    let bytes = table(listener, encoded.iter().map(|(_, bytes)| *bytes));
    let mut origins: Vec<_> = encoded
        .iter()
        .flat_map(|(host, _)| host.origins.iter().cloned())
        .collect();
    origins.sort();
    origins.dedup();
    Resource::new(ResourceKind::Route, listener.clone(), &bytes)
        .needing(clusters(encoded.iter().map(|(host, _)| *host)))
        .from_documents(origins.into())
}

fn table<'a>(name: &str, hosts: impl IntoIterator<Item = &'a [u8]>) -> BytesMut {
    let message = RouteConfiguration {
        name: name.to_owned(),
        // Our own marks never reach an upstream.
        request_headers_to_remove: vec![LISTENER_HEADER.to_owned(), SNI_HEADER.to_owned()],
        // Clusters come and go on the same stream; the order of pushes keeps routes from naming missing ones.
        validate_clusters: Some(wrap_bool(false)),
        ..RouteConfiguration::default()
    };
    let mut buffer = BytesMut::from(&message.encode_to_vec()[..]);
    for host in hosts {
        put_bytes(&mut buffer, 2, host);
    }
    buffer
}

fn clusters<'a>(hosts: impl IntoIterator<Item = &'a ir::VirtualHost>) -> Arc<[ResourceRef]> {
    let mut names: Vec<ResourceRef> = hosts
        .into_iter()
        .flat_map(|host| &host.routes)
        .filter_map(|route| match &route.action {
            Action::Forward(clusters) => Some(clusters),
            _ => None,
        })
        .flatten()
        .flat_map(|weighted| std::iter::once(&weighted.cluster).chain(&weighted.members))
        .map(|name| ResourceRef {
            kind: ResourceKind::Cluster,
            name: name.clone(),
        })
        .collect();
    names.sort();
    names.dedup();
    names.into()
}

/// A connection that was opened for another host: the client is to try on a new one (RFC 9110, 15.5.20). The catch-all
/// host takes whatever a certificate covers.
fn misdirected(host: &str) -> Option<Route> {
    let expected = match host.strip_prefix('*') {
        Some("") => return None,
        Some(suffix) => MatchPattern::Suffix(suffix.to_owned()),
        None => MatchPattern::Exact(host.to_owned()),
    };
    let sni = HeaderMatcher {
        name: SNI_HEADER.to_owned(),
        invert_match: true,
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
            ignore_case: true,
            match_pattern: Some(expected),
        })),
        ..HeaderMatcher::default()
    };
    Some(Route {
        name: "portreeve/misdirected".into(),
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".into())),
            headers: vec![sni],
            ..RouteMatch::default()
        }),
        action: Some(route::Action::DirectResponse(DirectResponseAction {
            status: 421,
            ..DirectResponseAction::default()
        })),
        response_headers_to_add: vec![set_header(REASON_HEADER, "misdirected")],
        ..Route::default()
    })
}

fn encode_route(route: &ir::Route) -> BytesMut {
    let mut parts = RouteParts {
        retry: Some(default_retry()),
        ..RouteParts::default()
    };
    put_chain_settings(&route.chain, &mut parts);
    let destinations = match &route.action {
        Action::Forward(clusters) => &clusters[..],
        _ => &[],
    };
    let alone = match destinations {
        // Nothing to tell apart: what stands on the only backend stands over the route's.
        [only] => Some(route.policies.overlaid_by(&only.policies)),
        _ => None,
    };
    for feature in FEATURES {
        if alone.is_none() && is_told_apart(*feature, destinations) {
            continue;
        }
        let policies = alone.as_ref().unwrap_or(&route.policies);
        if let Some(policy) = policies.get(feature.name()) {
            feature.apply(policy, &mut parts);
        }
    }
    let mut message = Route {
        name: route.name.to_string(),
        r#match: Some(route_match(&route.matching)),
        request_headers_to_add: std::mem::take(&mut parts.request_headers_to_add),
        request_headers_to_remove: std::mem::take(&mut parts.request_headers_to_remove),
        response_headers_to_add: std::mem::take(&mut parts.response_headers_to_add),
        response_headers_to_remove: std::mem::take(&mut parts.response_headers_to_remove),
        ..Route::default()
    };
    message.action = Some(match &route.action {
        Action::Forward(clusters) => route::Action::Route(forward(route, clusters, &parts)),
        Action::Redirect(redirect) => {
            route::Action::Redirect(redirect_action(redirect, &route.matching.path))
        }
        Action::Respond(response) => route::Action::DirectResponse(DirectResponseAction {
            status: u32::from(response.status),
            body: response.body.as_deref().map(inline),
            ..DirectResponseAction::default()
        }),
        Action::Unavailable(reason) => {
            message
                .response_headers_to_add
                .push(set_header(REASON_HEADER, reason.as_str()));
            route::Action::DirectResponse(DirectResponseAction {
                status: 503,
                ..DirectResponseAction::default()
            })
        }
    });
    let mut buffer = BytesMut::from(&message.encode_to_vec()[..]);
    put_any_map(&mut buffer, 13, &parts.filter_config);
    buffer
}

fn forward(route: &ir::Route, clusters: &[ir::WeightedCluster], parts: &RouteParts) -> RouteAction {
    let specifier = match clusters {
        [only] if only.request_headers.is_empty() && only.response_headers.is_empty() => {
            ClusterSpecifier::Cluster(only.cluster.to_string())
        }
        several => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several
                .iter()
                .map(|weighted| cluster_weight(route, weighted, several))
                .collect(),
            ..WeightedCluster::default()
        }),
    };
    let mut action = RouteAction {
        cluster_specifier: Some(specifier),
        // Envoy's default of 15 s cuts WebSockets, gRPC streams and server-sent events; idle streams have their own bound.
        timeout: Some(duration(parts.timeout.unwrap_or_default())),
        idle_timeout: parts.idle_timeout.map(duration),
        retry_policy: parts.retry.clone(),
        ..RouteAction::default()
    };
    put_hash_policies(&route.chain, &mut action);
    if let Some(rewrite) = &route.rewrite {
        if let Some(hostname) = &rewrite.hostname {
            action.host_rewrite_specifier =
                Some(HostRewriteSpecifier::HostRewriteLiteral(hostname.to_string()));
        }
        match &rewrite.path {
            Some(PathRewrite::Substitute { pattern, with }) => {
                action.regex_rewrite = Some(substitute(pattern, with));
            }
            Some(PathRewrite::Full(path)) => action.regex_rewrite = Some(substitute("^.*$", path)),
            Some(PathRewrite::Prefix(to)) => match prefix_rewrite(&route.matching.path, to) {
                PrefixRewrite::Plain(to) => action.prefix_rewrite = to,
                PrefixRewrite::Regex(regex) => action.regex_rewrite = Some(regex),
            },
            None => {}
        }
    }
    action
}

/// Some backend says otherwise than the route. Envoy would add both up, so each destination then gets the whole of what
/// holds for it, and the route nothing: the nearest wins here as everywhere.
fn is_told_apart(feature: &dyn AnyFeature, destinations: &[ir::WeightedCluster]) -> bool {
    feature.on_backend()
        && destinations
            .iter()
            .any(|weighted| weighted.policies.mentions(feature.name()))
}

fn cluster_weight(
    route: &ir::Route,
    weighted: &ir::WeightedCluster,
    all: &[ir::WeightedCluster],
) -> weighted_cluster::ClusterWeight {
    let policies = route.policies.overlaid_by(&weighted.policies);
    let mut parts = RouteParts::default();
    let told_apart = |feature: &&&dyn AnyFeature| all.len() > 1 && is_told_apart(**feature, all);
    for feature in FEATURES.iter().filter(told_apart) {
        if let Some(policy) = policies.get(feature.name()) {
            feature.apply(policy, &mut parts);
        }
    }
    // What the mesh asks for comes after what the document says.
    parts
        .request_headers_to_add
        .extend(header_additions(&weighted.request_headers));
    parts
        .request_headers_to_remove
        .extend(header_removals(&weighted.request_headers));
    parts
        .response_headers_to_add
        .extend(header_additions(&weighted.response_headers));
    parts
        .response_headers_to_remove
        .extend(header_removals(&weighted.response_headers));
    weighted_cluster::ClusterWeight {
        name: weighted.cluster.to_string(),
        weight: Some(wrap_u32(weighted.weight)),
        request_headers_to_add: parts.request_headers_to_add,
        request_headers_to_remove: parts.request_headers_to_remove,
        response_headers_to_add: parts.response_headers_to_add,
        response_headers_to_remove: parts.response_headers_to_remove,
        ..weighted_cluster::ClusterWeight::default()
    }
}

enum PrefixRewrite {
    Plain(String),
    Regex(RegexMatchAndSubstitute),
}

/// Envoy puts the new prefix in place of the old one as text; where one of them is the root, a slash would be doubled
/// or lost.
fn prefix_rewrite(path: &PathMatch, to: &str) -> PrefixRewrite {
    match path {
        PathMatch::Prefix(from) if **from != *"/" && to == "/" => {
            PrefixRewrite::Regex(substitute(&format!("^{}/*", regex::escape(from)), "/"))
        }
        PathMatch::Prefix(from) if **from == *"/" && to != "/" => {
            PrefixRewrite::Regex(substitute("^/", &format!("{to}/")))
        }
        _ => PrefixRewrite::Plain(to.to_owned()),
    }
}

fn substitute(pattern: &str, substitution: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute {
        pattern: Some(RegexMatcher {
            regex: pattern.to_owned(),
            ..RegexMatcher::default()
        }),
        // A backslash would name a capture group.
        substitution: substitution.replace('\\', "\\\\"),
    }
}

fn redirect_action(redirect: &Redirect, path: &PathMatch) -> RedirectAction {
    use redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let path = redirect.path.as_ref().map(|rewrite| match rewrite {
        PathRewrite::Full(path) => PathRewriteSpecifier::PathRedirect(path.to_string()),
        PathRewrite::Substitute { pattern, with } => {
            PathRewriteSpecifier::RegexRewrite(substitute(pattern, with))
        }
        PathRewrite::Prefix(to) => match prefix_rewrite(path, to) {
            PrefixRewrite::Plain(to) => PathRewriteSpecifier::PrefixRewrite(to),
            PrefixRewrite::Regex(regex) => PathRewriteSpecifier::RegexRewrite(regex),
        },
    });
    // The Host header is matched without its port, so none is named unless the rule does; nor is the scheme's own.
    let own_port = match redirect.scheme.as_deref() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    };
    let port = redirect
        .port
        .filter(|port| Some(*port) != own_port)
        .map(u32::from);
    RedirectAction {
        host_redirect: redirect.hostname.as_deref().unwrap_or_default().to_owned(),
        port_redirect: port.unwrap_or_default(),
        response_code: match redirect.status {
            301 => RedirectResponseCode::MovedPermanently,
            303 => RedirectResponseCode::SeeOther,
            307 => RedirectResponseCode::TemporaryRedirect,
            308 => RedirectResponseCode::PermanentRedirect,
            _ => RedirectResponseCode::Found,
        }
        .into(),
        scheme_rewrite_specifier: redirect
            .scheme
            .as_ref()
            .map(|scheme| SchemeRewriteSpecifier::SchemeRedirect(scheme.to_string())),
        path_rewrite_specifier: path,
        ..RedirectAction::default()
    }
}

fn route_match(request: &RequestMatch) -> RouteMatch {
    let path = match &request.path {
        PathMatch::Exact(path) => PathSpecifier::Path(path.to_string()),
        PathMatch::Prefix(prefix) if **prefix == *"/" => PathSpecifier::Prefix("/".to_owned()),
        PathMatch::Prefix(prefix) => PathSpecifier::PathSeparatedPrefix(prefix.to_string()),
        PathMatch::StartsWith(text) => PathSpecifier::Prefix(text.to_string()),
        PathMatch::Regex(regex) => PathSpecifier::SafeRegex(RegexMatcher {
            regex: regex.to_string(),
            ..RegexMatcher::default()
        }),
    };
    let mut headers: Vec<HeaderMatcher> = request.headers.iter().map(header_matcher).collect();
    match &request.methods[..] {
        [] => {}
        [only] => headers.push(method_matcher(MatchPattern::Exact(only.to_string()))),
        several => headers.push(method_matcher(MatchPattern::SafeRegex(RegexMatcher {
            regex: several.join("|"),
            ..RegexMatcher::default()
        }))),
    }
    RouteMatch {
        path_specifier: Some(path),
        headers,
        query_parameters: request.query.iter().map(query_matcher).collect(),
        ..RouteMatch::default()
    }
}

fn method_matcher(pattern: MatchPattern) -> HeaderMatcher {
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

pub(super) fn set_header(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            ..HeaderValue::default()
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}

fn inline(text: &str) -> DataSource {
    DataSource {
        specifier: Some(data_source::Specifier::InlineString(text.to_owned())),
        ..DataSource::default()
    }
}
