use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{DataSource, HeaderValue, HeaderValueOption, data_source};
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, HeaderMatcher, QueryParameterMatcher, RedirectAction, Route, RouteConfiguration,
    RouteMatch, WeightedCluster, redirect_action, route, weighted_cluster,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatchAndSubstitute, RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use prost::Message;

use super::encoding::{put_any_map, put_bytes, put_message, put_struct};
use super::http_connection_manager::{LISTENER_HEADER, SNI_HEADER};
use super::mesh::{hash_policies, put_chain_settings};
use crate::envoy::{Resource, ResourceKind, ResourceRef, duration, scope_name, wrap_bool, wrap_u32};
use crate::features::{AnyFeature, FEATURES, RouteParts, default_retry, header_additions, header_removals};
use crate::ir::{self, Action};
use crate::model::http::{PathMatch, PathRewrite, Redirect, RequestMatch, TextMatch, ValueMatch};
use crate::model::{DocumentId, Policies};

/// Why the gateway itself answered, for whoever looks at a 503.
pub(super) const REASON_HEADER: &str = "x-portreeve-reason";

/// One host's routes, encoded, and what publishing them takes.
#[derive(Clone, Debug)]
pub(super) struct EncodedHost {
    listener: Arc<str>,
    host: Arc<str>,
    bytes: Bytes,
    /// The clusters that it sends to.
    needs: Arc<[ResourceRef]>,
    origins: Arc<[DocumentId]>,
}

/// The unit that a route change costs.
pub(super) fn encode_virtual_host(host: &ir::VirtualHost) -> EncodedHost {
    let mut buffer = Vec::with_capacity(512 + 128 * host.routes.len());
    put_bytes(&mut buffer, 1, scope_name(&host.listener, &host.host).as_bytes());
    put_bytes(&mut buffer, 2, host.host.as_bytes());
    if host.checks_sni
        && let Some(route) = misdirected(&host.host)
    {
        put_struct(&mut buffer, 3, &route);
    }
    let mut parts = Parts::default();
    for route in &host.routes {
        let parts = parts.of(route);
        put_message(&mut buffer, 3, |buffer| put_route(buffer, route, parts));
    }
    // Once for the host and not in each route: Envoy reads and keeps it once.
    if host.routes.iter().any(retries_by_default) {
        put_bytes(&mut buffer, 16, &DEFAULT_RETRY);
    }
    EncodedHost {
        listener: host.listener.clone(),
        host: host.host.clone(),
        // Kept for as long as the host: without the room that was for more.
        bytes: buffer.into_boxed_slice().into(),
        needs: clusters(host),
        origins: host.origins.clone().into(),
    }
}

/// A host of its own scope: Envoy reads this one alone when it changes.
pub(super) fn scoped_resource(host: &EncodedHost) -> Resource {
    let name = scope_name(&host.listener, &host.host);
    let mut buffer = Vec::with_capacity(host.bytes.len() + 3 * name.len() + TABLE.len() + 32);
    put_bytes(&mut buffer, 1, name.as_bytes());
    put_message(&mut buffer, 3, |key| {
        for text in [&host.listener, &host.host] {
            put_message(key, 1, |fragment| put_bytes(fragment, 1, text.as_bytes()));
        }
    });
    put_message(&mut buffer, 5, |table| put_table(table, &name, [host]));
    Resource::new(ResourceKind::ScopedRoute, name.into(), &buffer)
        .needing(host.needs.clone())
        .from_documents(host.origins.clone())
}

/// All hosts of a listener in one table: what wildcards need. Exact hosts keep their scopes beside it.
pub(super) fn table_resource(listener: &Arc<str>, hosts: &[&EncodedHost]) -> Resource {
    let mut buffer = Vec::new();
    put_table(&mut buffer, listener, hosts.iter().copied());
    let mut origins: Vec<_> = hosts
        .iter()
        .flat_map(|host| host.origins.iter().cloned())
        .collect();
    origins.sort();
    origins.dedup();
    let mut needs: Vec<_> = hosts.iter().flat_map(|host| host.needs.iter().cloned()).collect();
    needs.sort();
    needs.dedup();
    Resource::new(ResourceKind::Route, listener.clone(), &buffer)
        .needing(needs.into())
        .from_documents(origins.into())
}

fn put_table<'a>(buffer: &mut Vec<u8>, name: &str, hosts: impl IntoIterator<Item = &'a EncodedHost>) {
    put_bytes(buffer, 1, name.as_bytes());
    for host in hosts {
        put_bytes(buffer, 2, &host.bytes);
    }
    buffer.extend_from_slice(&TABLE);
}

/// What every table says.
static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    RouteConfiguration {
        // Our own marks never reach an upstream.
        request_headers_to_remove: vec![LISTENER_HEADER.to_owned(), SNI_HEADER.to_owned()],
        // Clusters come and go on the same stream; the order of pushes keeps routes from naming missing ones.
        validate_clusters: Some(wrap_bool(false)),
        ..RouteConfiguration::default()
    }
    .encode_to_vec()
});

static DEFAULT_RETRY: LazyLock<Vec<u8>> = LazyLock::new(|| default_retry().encode_to_vec());

fn retries_by_default(route: &ir::Route) -> bool {
    matches!(route.action, Action::Forward(_))
        && route.chain.as_ref().is_none_or(|chain| chain.retry.is_none())
        && route.policies.get("retry").is_none()
}

fn clusters(host: &ir::VirtualHost) -> Arc<[ResourceRef]> {
    let mut names: Vec<&Arc<str>> = host
        .routes
        .iter()
        .filter_map(|route| match &route.action {
            Action::Forward(clusters) => Some(clusters),
            _ => None,
        })
        .flat_map(|clusters| clusters.iter())
        .flat_map(|weighted| std::iter::once(&weighted.cluster).chain(&weighted.members))
        .collect();
    names.sort();
    names.dedup();
    let reference = |name: &Arc<str>| ResourceRef {
        kind: ResourceKind::Cluster,
        name: name.clone(),
    };
    names.into_iter().map(reference).collect()
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

/// What the features say of a route. The routes of a scope mostly share their policies: what was made of them last is kept.
#[derive(Default)]
struct Parts {
    policies: Policies,
    parts: RouteParts,
    is_for_route_alone: bool,
}

impl Parts {
    fn of(&mut self, route: &ir::Route) -> &RouteParts {
        let destinations = match &route.action {
            Action::Forward(clusters) => &clusters[..],
            _ => &[],
        };
        let is_for_route_alone =
            route.chain.is_some() || destinations.iter().any(|one| !one.policies.is_empty());
        if !is_for_route_alone && !self.is_for_route_alone && self.policies.is_shared_with(&route.policies) {
            return &self.parts;
        }
        self.policies = route.policies.clone();
        self.is_for_route_alone = is_for_route_alone;
        self.parts = parts_of(route, destinations);
        &self.parts
    }
}

fn parts_of(route: &ir::Route, destinations: &[ir::WeightedCluster]) -> RouteParts {
    let mut parts = RouteParts::default();
    if let Some(chain) = &route.chain {
        put_chain_settings(chain, &mut parts);
    }
    let alone = match destinations {
        // Nothing to tell apart: what stands on the only backend stands over the route's.
        [only] if !only.policies.is_empty() => Some(route.policies.overlaid_by(&only.policies)),
        _ => None,
    };
    let policies = alone.as_ref().unwrap_or(&route.policies);
    if !policies.is_empty() {
        for feature in FEATURES {
            if alone.is_none() && is_told_apart(*feature, destinations) {
                continue;
            }
            if let Some(policy) = policies.get(feature.name()) {
                feature.apply(policy, &mut parts);
            }
        }
    }
    parts
}

/// The fields of one `Route`.
fn put_route(buffer: &mut Vec<u8>, route: &ir::Route, parts: &RouteParts) {
    put_message(buffer, 1, |buffer| put_match(buffer, &route.matching));
    match &route.action {
        Action::Forward(clusters) => {
            put_message(buffer, 2, |buffer| put_forward(buffer, route, clusters, parts))
        }
        Action::Redirect(redirect) => put_struct(buffer, 3, &redirect_action(redirect, &route.matching.path)),
        Action::Respond(response) => {
            let answer = DirectResponseAction {
                status: u32::from(response.status),
                body: response.body.as_deref().map(inline),
                ..DirectResponseAction::default()
            };
            put_struct(buffer, 7, &answer);
        }
        Action::Unavailable(_) => {
            let answer = DirectResponseAction {
                status: 503,
                ..DirectResponseAction::default()
            };
            put_struct(buffer, 7, &answer);
        }
    }
    for header in &parts.request_headers_to_add {
        put_struct(buffer, 9, header);
    }
    for header in &parts.response_headers_to_add {
        put_struct(buffer, 10, header);
    }
    if let Action::Unavailable(reason) = &route.action {
        put_struct(buffer, 10, &set_header(REASON_HEADER, reason.as_str()));
    }
    for name in &parts.response_headers_to_remove {
        put_bytes(buffer, 11, name.as_bytes());
    }
    for name in &parts.request_headers_to_remove {
        put_bytes(buffer, 12, name.as_bytes());
    }
    put_any_map(buffer, 13, &parts.filter_config);
    put_bytes(buffer, 14, route.name.as_bytes());
}

/// The fields of a `RouteAction`.
fn put_forward(
    buffer: &mut Vec<u8>,
    route: &ir::Route,
    clusters: &[ir::WeightedCluster],
    parts: &RouteParts,
) {
    match clusters {
        [only] if only.request_headers.is_empty() && only.response_headers.is_empty() => {
            put_bytes(buffer, 1, only.cluster.as_bytes());
        }
        several => {
            let weighted = WeightedCluster {
                clusters: several
                    .iter()
                    .map(|one| cluster_weight(route, one, several))
                    .collect(),
                ..WeightedCluster::default()
            };
            put_struct(buffer, 3, &weighted);
        }
    }
    if let Some(rewrite) = &route.rewrite {
        let regex = match &rewrite.path {
            Some(PathRewrite::Substitute { pattern, with }) => Some(substitute(pattern, with)),
            Some(PathRewrite::Full(path)) => Some(substitute("^.*$", path)),
            Some(PathRewrite::Prefix(to)) => match prefix_rewrite(&route.matching.path, to) {
                PrefixRewrite::Plain(to) => {
                    put_bytes(buffer, 5, to.as_bytes());
                    None
                }
                PrefixRewrite::Regex(regex) => Some(regex),
            },
            None => None,
        };
        if let Some(hostname) = &rewrite.hostname {
            put_bytes(buffer, 6, hostname.as_bytes());
        }
        if let Some(regex) = regex {
            put_struct(buffer, 32, &regex);
        }
    }
    // Envoy's default of 15 s cuts WebSockets, gRPC streams and server-sent events; idle streams have their own bound.
    put_struct(buffer, 8, &duration(parts.timeout.unwrap_or_default()));
    if let Some(retry) = &parts.retry {
        put_struct(buffer, 9, retry);
    }
    for policy in route.chain.as_deref().into_iter().flat_map(hash_policies) {
        put_struct(buffer, 15, &policy);
    }
    if let Some(idle) = parts.idle_timeout {
        put_struct(buffer, 24, &duration(idle));
    }
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
    RedirectAction {
        host_redirect: redirect.hostname.as_deref().unwrap_or_default().to_owned(),
        // Resolved: none is named where it is the scheme's own. The Host header's is not kept, it is stripped before.
        port_redirect: redirect.port.map(u32::from).unwrap_or_default(),
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

/// The fields of a `RouteMatch`.
fn put_match(buffer: &mut Vec<u8>, request: &RequestMatch) {
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
    match &request.methods[..] {
        [] => {}
        [only] => put_struct(buffer, 6, &method_matcher(MatchPattern::Exact(only.to_string()))),
        several => {
            let any = MatchPattern::SafeRegex(RegexMatcher {
                regex: several.join("|"),
                ..RegexMatcher::default()
            });
            put_struct(buffer, 6, &method_matcher(any));
        }
    }
    for query in &request.query {
        put_struct(buffer, 7, &query_matcher(query));
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
