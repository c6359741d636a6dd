mod action;
mod path_matcher;
mod path_tree;
mod request_match;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, FilterConfig, HeaderMatcher, Route, RouteConfiguration, RouteMatch, route,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use prost::Message;

use self::action::{Parts, RoutePart, put_route};
use self::path_matcher::{Encoded, ROUTE_OF_LIST, put_path_matcher};
use self::path_tree::PathTree;
use self::request_match::method_matcher;
use super::encoding::{put_bytes, put_message, put_number, put_struct};
use super::http_connection_manager::{LISTENER_HEADER, LOWER_CASE_HOST, SNI_HEADER};
use crate::envoy::{Resource, ResourceKind, ResourceRef, any, scope_name, wrap_bool};
use crate::features::{IDEMPOTENT_METHODS, RouteParts, RouteRetry, default_retry};
use crate::ir::{self, Action};
use crate::model::DocumentId;
use crate::model::regex::program_bytes;

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

impl EncodedHost {
    pub(super) fn origins(&self) -> &[DocumentId] {
        &self.origins
    }
}

/// The unit that a route change costs.
pub(super) fn encode_virtual_host(host: &ir::VirtualHost) -> EncodedHost {
    let mut buffer = Vec::with_capacity(512 + 128 * host.routes.len());
    put_bytes(&mut buffer, 1, scope_name(&host.listener, &host.host).as_bytes());
    put_bytes(&mut buffer, 2, host.host.as_bytes());
    let names = ServerNames::of(&host.host).filter(|_| host.checks_sni);
    if !put_branches(&mut buffer, host, names) {
        if let Some(names) = names {
            put_struct(&mut buffer, 3, &misdirected(names));
        }
        put_routes(&mut buffer, 3, host, |_| ());
    }
    // Once for the host and not in each route: Envoy reads and keeps it once.
    if host.routes.iter().any(retries_by_default) {
        put_bytes(&mut buffer, 16, &DEFAULT_RETRY);
    }
    if host.routes.iter().any(is_forwarded) {
        put_message(&mut buffer, 25, |limit| put_number(limit, 1, BODY_TO_RETRY));
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

/// False: a list serves as well, and nothing is written.
fn put_branches(buffer: &mut Vec<u8>, host: &ir::VirtualHost, names: Option<ServerNames>) -> bool {
    let routes = &host.routes;
    if !PathTree::is_for(entries(host)) {
        return false;
    }
    let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(routes.len()));
    put_routes(&mut bytes, ROUTE_OF_LIST, host, |end| ends.push(end));
    let encoded = Encoded {
        bytes: &bytes,
        ends: &ends,
    };
    let paths = routes.iter().map(|route| &route.matching.path);
    let Some(tree) = PathTree::of(paths, |at| encoded.route(at).len() + programs(&routes[at])) else {
        return false;
    };
    put_message(buffer, 21, |buffer| {
        put_path_matcher(buffer, &tree, encoded, names)
    });
    true
}

/// So many routes Envoy asks one after the other in a list of them. At most twice as many as there are here.
fn entries(host: &ir::VirtualHost) -> usize {
    let routes = host.routes.len();
    if PathTree::is_for(routes) || !PathTree::is_for(2 * routes) {
        return routes;
    }
    let mut parts = Parts::default();
    let entries = host.routes.iter().map(|route| {
        let parts = parts.of(route);
        by_method(route, parts, None).iter().flatten().count()
    });
    entries.sum()
}

/// Bytes of the regular expressions that Envoy compiles for a route.
fn programs(route: &ir::Route) -> usize {
    route.matching.regexes().map(program_bytes).sum()
}

/// The routes as fields of `tag`. `each` is told where each ends.
fn put_routes(buffer: &mut Vec<u8>, tag: u32, host: &ir::VirtualHost, mut each: impl FnMut(usize)) {
    let mut parts = Parts::default();
    for route in &host.routes {
        let parts = parts.of(route);
        for part in by_method(route, parts, outlasting(parts, host))
            .into_iter()
            .flatten()
        {
            put_message(buffer, tag, |buffer| put_route(buffer, route, parts, part));
        }
        each(buffer.len());
    }
}

/// A route as Envoy has it, or one of the two that it is there where what is tried again depends on the method.
fn by_method<'a>(
    route: &ir::Route,
    parts: &'a RouteParts,
    idle_timeout: Option<Duration>,
) -> [Option<RoutePart<'a>>; 2] {
    let part = |only, retry| {
        Some(RoutePart {
            only,
            retry,
            idle_timeout,
        })
    };
    let Some(RouteRetry { policy, of_others }) = &parts.retry else {
        return [part(None, None), None];
    };
    let methods = &route.matching.methods;
    let is_any = methods.is_empty();
    let idempotent = |method: &Arc<str>| IDEMPOTENT_METHODS.contains(&&**method);
    match of_others {
        Some(others) if !is_any && !methods.iter().any(idempotent) => [part(None, Some(others)), None],
        Some(others) if is_forwarded(route) && (is_any || !methods.iter().all(idempotent)) => {
            [part(Some(&*IDEMPOTENT), Some(policy)), part(None, Some(others))]
        }
        _ => [part(None, Some(policy)), None],
    }
}

/// Whoever lets a request take longer than the listener lets one be silent means that: a report is silent until it is made.
fn outlasting(parts: &RouteParts, host: &ir::VirtualHost) -> Option<Duration> {
    let listener = host.stream_idle_timeout;
    let longer = |timeout: &Duration| !listener.is_zero() && *timeout > listener;
    parts.idle_timeout.or_else(|| parts.timeout.filter(longer))
}

/// Written once.
static IDEMPOTENT: LazyLock<HeaderMatcher> =
    LazyLock::new(|| method_matcher(IDEMPOTENT_METHODS.iter().copied()));

/// A host of its own scope: Envoy reads this one alone when it changes.
pub(super) fn scoped_resource(host: &EncodedHost) -> Resource {
    let name = scope_name(&host.listener, &host.host);
    let mut buffer = Vec::with_capacity(host.bytes.len() + 3 * name.len() + SCOPE.len() + 32);
    put_bytes(&mut buffer, 1, name.as_bytes());
    put_message(&mut buffer, 3, |key| {
        for text in [&host.listener, &host.host] {
            put_message(key, 1, |fragment| put_bytes(fragment, 1, text.as_bytes()));
        }
    });
    put_message(&mut buffer, 5, |table| put_table(table, &name, [host], &SCOPE));
    Resource::new(ResourceKind::ScopedRoute, name.into(), &buffer)
        .needing(host.needs.clone())
        .from_documents(host.origins.clone())
}

/// All hosts of a listener in one table: what wildcards need. Exact hosts keep their scopes beside it.
pub(super) fn table_resource(listener: &Arc<str>, hosts: &[&EncodedHost]) -> Resource {
    let mut buffer = Vec::new();
    put_table(&mut buffer, listener, hosts.iter().copied(), &TABLE);
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

fn put_table<'a>(
    buffer: &mut Vec<u8>,
    name: &str,
    hosts: impl IntoIterator<Item = &'a EncodedHost>,
    settings: &[u8],
) {
    put_bytes(buffer, 1, name.as_bytes());
    for host in hosts {
        put_bytes(buffer, 2, &host.bytes);
    }
    buffer.extend_from_slice(settings);
}

/// What every table says.
static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| settings().encode_to_vec());

/// What the table of a scope says: whoever found it needs no other.
static SCOPE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let off = FilterConfig {
        disabled: true,
        ..FilterConfig::default()
    };
    RouteConfiguration {
        // One entry: the map's order cannot differ.
        typed_per_filter_config: HashMap::from([(LOWER_CASE_HOST.to_owned(), any(&off))]),
        ..settings()
    }
    .encode_to_vec()
});

fn settings() -> RouteConfiguration {
    RouteConfiguration {
        // Our own marks never reach an upstream.
        request_headers_to_remove: vec![LISTENER_HEADER.to_owned(), SNI_HEADER.to_owned()],
        // Clusters come and go on the same stream; the order of pushes keeps routes from naming missing ones.
        validate_clusters: Some(wrap_bool(false)),
        ..RouteConfiguration::default()
    }
}

static DEFAULT_RETRY: LazyLock<Vec<u8>> = LazyLock::new(|| default_retry().encode_to_vec());

/// What is kept of a body until it is clear that it need not be sent again. With Envoy's own bound, that of a connection (32
/// KiB), most longer uploads failed that met an instance which had just gone: with 503, or 507 if the rest came in before the
/// next try. Each upload under way may hold as much of Envoy's memory.
const BODY_TO_RETRY: u64 = 256 * 1024;

fn is_forwarded(route: &ir::Route) -> bool {
    matches!(route.action, Action::Forward(_))
}

fn retries_by_default(route: &ir::Route) -> bool {
    is_forwarded(route)
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

/// The server names of the connections on which a host may be asked for.
#[derive(Clone, Copy)]
enum ServerNames<'a> {
    One(&'a str),
    EndingWith(&'a str),
}

impl<'a> ServerNames<'a> {
    /// None: the catch-all host takes whatever a certificate covers.
    fn of(host: &'a str) -> Option<Self> {
        match host.strip_prefix('*') {
            Some("") => None,
            Some(suffix) => Some(Self::EndingWith(suffix)),
            None => Some(Self::One(host)),
        }
    }
}

/// A connection that was opened for another host: the client is to try on a new one (RFC 9110, 15.5.20).
fn misdirected(names: ServerNames) -> Route {
    let sni = HeaderMatcher {
        name: SNI_HEADER.to_owned(),
        invert_match: true,
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
            ignore_case: true,
            match_pattern: Some(match names {
                ServerNames::One(name) => MatchPattern::Exact(name.to_owned()),
                ServerNames::EndingWith(suffix) => MatchPattern::Suffix(suffix.to_owned()),
            }),
        })),
        ..HeaderMatcher::default()
    };
    Route {
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
    }
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
