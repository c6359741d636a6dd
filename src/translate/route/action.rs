//! What one route does with its requests, and what the features add to it.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source};
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, HeaderMatcher, RedirectAction, RetryPolicy, WeightedCluster, redirect_action,
    weighted_cluster,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher};

use super::request_match::put_match;
use super::{REASON_HEADER, set_header};
use crate::envoy::{duration, wrap_u32};
use crate::features::{AnyFeature, FEATURES, RouteParts, header_additions, header_removals};
use crate::ir::{self, Action};
use crate::model::Policies;
use crate::model::http::{PathMatch, PathRewrite, Redirect};
use crate::translate::encoding::{put_any_map, put_bytes, put_message, put_struct};
use crate::translate::mesh::{hash_policies, put_chain_settings};

/// What the features say of a route. The routes of a scope mostly share their policies: what was made of them last is kept.
#[derive(Default)]
pub(super) struct Parts {
    policies: Policies,
    parts: RouteParts,
    is_for_route_alone: bool,
}

impl Parts {
    pub(super) fn of(&mut self, route: &ir::Route) -> &RouteParts {
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

/// What one of Envoy's routes has for itself, of those that a route becomes.
#[derive(Clone, Copy)]
pub(super) struct RoutePart<'a> {
    /// The methods that it takes, of those that the route takes.
    pub only: Option<&'a HeaderMatcher>,
    pub retry: Option<&'a RetryPolicy>,
    pub idle_timeout: Option<Duration>,
}

/// The fields of one `Route`.
pub(super) fn put_route(buffer: &mut Vec<u8>, route: &ir::Route, parts: &RouteParts, part: RoutePart) {
    put_message(buffer, 1, |buffer| {
        put_match(buffer, &route.matching);
        if let Some(only) = part.only {
            put_struct(buffer, 6, only);
        }
    });
    match &route.action {
        Action::Forward(clusters) => put_message(buffer, 2, |buffer| {
            put_forward(buffer, route, clusters, parts, part)
        }),
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
    part: RoutePart,
) {
    match clusters {
        [only] if only.request_headers.is_empty() && only.response_headers.is_empty() => {
            put_bytes(buffer, 1, only.cluster.as_bytes());
        }
        several => {
            let told_apart =
                |feature: &&dyn AnyFeature| several.len() > 1 && is_told_apart(*feature, several);
            let told_apart: Vec<&dyn AnyFeature> = FEATURES.iter().copied().filter(told_apart).collect();
            let weighted = WeightedCluster {
                clusters: several
                    .iter()
                    .map(|one| cluster_weight(route, one, &told_apart))
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
    if let Some(retry) = part.retry {
        put_struct(buffer, 9, retry);
    }
    for policy in route.chain.as_deref().into_iter().flat_map(hash_policies) {
        put_struct(buffer, 15, &policy);
    }
    if let Some(idle) = part.idle_timeout {
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
    told_apart: &[&dyn AnyFeature],
) -> weighted_cluster::ClusterWeight {
    let policies = route.policies.overlaid_by(&weighted.policies);
    let mut parts = RouteParts::default();
    for feature in told_apart {
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

fn inline(text: &str) -> DataSource {
    DataSource {
        specifier: Some(data_source::Specifier::InlineString(text.to_owned())),
        ..DataSource::default()
    }
}
