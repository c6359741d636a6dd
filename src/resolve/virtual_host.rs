use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::policies::{documents_of, effective};
use super::redirect::Place;
use super::rule::Builder;
use super::{Destination, Resolved};
use crate::config::{BackendTarget, Gateway, Listener, Protocol, fits};
use crate::diagnostics::{Code, Diagnostic};
use crate::ir::{Route, VirtualHost};
use crate::model::DocumentId;
use crate::model::http::{PathMatch, RequestMatch};
use crate::model::mesh::Interest;
use crate::snapshot::Snapshot;

/// One host of one listener, and what it depends on.
#[derive(Clone, Debug)]
pub struct ResolvedHost {
    pub host: VirtualHost,
    /// Destinations in use.
    pub targets: BTreeSet<Destination>,
    /// Watches that have not answered yet: the host is better published when they have.
    pub pending: BTreeSet<Interest>,
    /// Watches that the routes themselves were made from.
    pub follows: BTreeSet<Interest>,
    /// Rules that never take a request, with the one that does instead.
    pub shadowed: Vec<(Arc<str>, Arc<str>)>,
}

/// None: no route of the gateway claims this host on this listener.
pub fn resolve_virtual_host(
    snapshot: &Snapshot,
    gateway: &Gateway,
    listener: &Listener,
    host: &Arc<str>,
) -> Option<Resolved<ResolvedHost>> {
    if listener.protocol == Protocol::Tcp {
        return None;
    }
    let config = &snapshot.config;
    let mut diagnostics = Vec::new();
    let mut origins: Vec<DocumentId> = vec![gateway.origin.document.clone()];
    origins.extend(documents_of(config, &gateway.scope));
    origins.extend(documents_of(config, &listener.scope));
    let mut builder = Builder::new(
        snapshot,
        Place {
            gateway,
            listener,
            host,
        },
    );
    let outer = effective(config, &gateway.scope)
        .and_then(|outer| effective(config, &listener.scope).map(|inner| outer.overlaid_by(&inner)))
        .map_err(|problem| diagnostics.push(*problem))
        .ok();
    let mut routes: Vec<Placed> = Vec::new();
    let mut attached = false;
    for (_, route) in config.routes_of_host(&gateway.name, host) {
        if !route.listeners.is_empty() && !route.listeners.iter().any(|(name, _)| *name == listener.name) {
            continue;
        }
        if !fits(config, gateway, route) {
            continue;
        }
        attached = true;
        origins.push(route.origin.document.clone());
        origins.extend(documents_of(config, &route.scope));
        let wide = effective(config, &route.scope)
            .map_err(|problem| diagnostics.push(problem.about("http_route", &route.name)))
            .ok();
        let inherited = outer
            .as_ref()
            .zip(wide)
            .map(|(outer, wide)| outer.overlaid_by(&wide));
        routes.reserve(route.rules.len());
        for rule in &route.rules {
            origins.extend(documents_of(config, &rule.scope));
            builder.rule(route, rule, inherited.as_ref(), &mut routes);
        }
    }
    if !attached {
        return None;
    }
    diagnostics.append(&mut builder.backends.diagnostics);
    for target in &builder.backends.targets {
        if let Destination::Backend(BackendTarget::Upstream(name)) = target
            && let Some(upstream) = config.upstream(name)
        {
            origins.push(upstream.origin.document.clone());
        }
    }
    origins.sort_unstable();
    origins.dedup();
    // Of two with the same precedence the first stays the first: the one of the older document, the earlier in a document.
    routes.sort_by_key(|placed| placed.precedence);
    let mut shadowed = Vec::new();
    let routes = drop_shadowed(routes, host, &mut shadowed, &mut diagnostics);
    let host = VirtualHost {
        listener: listener.name.clone(),
        host: host.clone(),
        routes,
        checks_sni: listener.protocol == Protocol::Https,
        stream_idle_timeout: listener.stream_idle_timeout,
        origins,
    };
    let value = ResolvedHost {
        host,
        targets: builder.backends.targets,
        pending: builder.backends.pending,
        shadowed,
        follows: builder.backends.follows,
    };
    Some(Resolved { value, diagnostics })
}

/// A route and where it stands among the others.
pub(super) struct Placed {
    precedence: Precedence,
    route: Route,
}

impl Placed {
    pub(super) fn new(route: Route) -> Self {
        Self {
            precedence: precedence(&route.matching),
            route,
        }
    }

    /// One of several that stand for their rule's match together, in an order of their own.
    pub(super) fn as_part_of(rule_match: &RequestMatch, route: Route) -> Self {
        Self {
            precedence: precedence(rule_match),
            route,
        }
    }
}

/// Gateway API's order of matches: what is less is tried first. By kind of path, its length, methods, headers, query.
type Precedence = (u8, usize, bool, usize, usize);

fn precedence(request: &RequestMatch) -> Precedence {
    let (kind, path) = match &request.path {
        PathMatch::Exact(path) => (0, path),
        PathMatch::Regex(regex) => (1, regex),
        PathMatch::Prefix(prefix) | PathMatch::StartsWith(prefix) => (2, prefix),
    };
    (
        kind,
        usize::MAX - path.len(),
        request.methods.is_empty(),
        usize::MAX - request.headers.len(),
        usize::MAX - request.query.len(),
    )
}

fn drop_shadowed(
    routes: Vec<Placed>,
    host: &str,
    shadowed: &mut Vec<(Arc<str>, Arc<str>)>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<Route> {
    let holder_of = holders(&routes);
    if holder_of.iter().enumerate().all(|(at, holder)| at == *holder) {
        return routes.into_iter().map(|placed| placed.route).collect();
    }
    for (at, holder) in holder_of.iter().enumerate() {
        if *holder == at {
            continue;
        }
        let (route, holder) = (&routes[at].route, &routes[*holder].route);
        shadowed.push((route.name.clone(), holder.name.clone()));
        diagnostics.push(
            Diagnostic::warning(
                Code::ShadowedRule,
                format!("{:?} never takes a request for {host:?}", route.name),
            )
            .at(route.origin.clone())
            .because(format!(
                "{:?} ({}) matches exactly the same and comes first",
                holder.name, holder.origin
            ))
            .fix("take one of the two away, or tell them apart by method, header or query"),
        );
    }
    let kept = routes.into_iter().zip(holder_of).enumerate();
    kept.filter(|(at, (_, holder))| at == holder)
        .map(|(_, (placed, _))| placed.route)
        .collect()
}

/// Of each route, all being in their order, the first that matches the same. They have one precedence, so they stand next to each other or nearly so: but
/// for parts of a rule, which stand where the rule does.
fn holders(routes: &[Placed]) -> Vec<usize> {
    let mut holder_of = Vec::with_capacity(routes.len());
    let has_parts = routes
        .iter()
        .any(|placed| placed.precedence != precedence(&placed.route.matching));
    for alike in routes.chunk_by(|one, other| has_parts || one.precedence == other.precedence) {
        let first = holder_of.len();
        // Compared, not hashed: most paths differ in their first bytes.
        let mut holders: BTreeMap<&RequestMatch, usize> = BTreeMap::new();
        for (at, placed) in (first..).zip(alike) {
            let holder = match alike.len() {
                1 => at,
                _ => *holders.entry(&placed.route.matching).or_insert(at),
            };
            holder_of.push(holder);
        }
    }
    holder_of
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConfigChange, Permissions};
    use crate::hcl::Limits;
    use crate::model::Document;

    fn route(path: &str) -> Route {
        Route::to_nowhere(path, PathMatch::Prefix(path.into()))
    }

    fn matching(path: &str) -> RequestMatch {
        RequestMatch {
            path: PathMatch::Prefix(path.into()),
            ..RequestMatch::any()
        }
    }

    #[test]
    fn the_first_that_matches_the_same_holds_it() {
        let plain = ["/long", "/a", "/b", "/a", "/b"].map(|path| Placed::new(route(path)));
        assert_eq!(holders(&plain), [0, 1, 2, 1, 2]);
        // A part of the rule for all paths, and a rule that matches what the part does.
        let mixed = [
            Placed::as_part_of(&matching("/"), route("/api")),
            Placed::new(route("/other")),
            Placed::new(route("/api")),
        ];
        assert_eq!(holders(&mixed), [0, 1, 0]);
    }

    /// And it says so.
    #[test]
    fn a_route_too_wide_for_the_gateway_is_on_none_of_its_listeners() {
        let listeners: String = (1..=9)
            .map(|port| format!("listener \"l{port}\" {{\n port = {port}\n}}\n"))
            .collect();
        let hosts: Vec<String> = (0..600).map(|number| format!("\"h{number}\"")).collect();
        let matches = "match { path = \"/\" }\n".repeat(99);
        let action = "direct_response { status = 204 }\n";
        let wide = format!(
            "http_route \"wide\" {{\n gateways = [\"edge\"]\n hostnames = [{}]\n rule \"a\" {{\n{matches}{action}}}\n}}\n",
            hosts.join(", ")
        );
        let narrow = format!(
            "http_route \"narrow\" {{\n gateways = [\"edge\"]\n hostnames = [\"h0\"]\n rule \"b\" {{\n{action}}}\n}}\n"
        );
        let mut config = Config::new(Permissions::default(), Limits::default());
        for (order, text) in [format!("gateway \"edge\" {{\n{listeners}}}\n"), wide, narrow]
            .into_iter()
            .enumerate()
        {
            let document = Document {
                id: DocumentId::File(format!("{order}.hcl").into()),
                text: text.into(),
                order: order as u64,
                version: 0,
            };
            config.upsert(document, None, &mut ConfigChange::default());
        }
        let said: Vec<_> = config
            .diagnostics()
            .into_iter()
            .map(|said| (said.code, said.object.map(|object| object.name)))
            .collect();
        assert_eq!(said, [(Code::TooLarge, Some("wide".into()))]);
        let snapshot = Snapshot::new(config, Default::default());
        let gateway = snapshot.config.gateway("edge").unwrap().clone();
        for (host, rules) in [("h0", Some(1)), ("h1", None)] {
            let host = resolve_virtual_host(&snapshot, &gateway, &gateway.listeners[0], &host.into());
            assert_eq!(host.map(|resolved| resolved.value.host.routes.len()), rules);
        }
    }
}
