use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::policies::{documents_of, effective};
use super::redirect::Place;
use super::rule::Builder;
use super::{Destination, Resolved};
use crate::config::{BackendTarget, Gateway, Listener, Protocol, Rank};
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
    let mut origins: BTreeSet<DocumentId> = BTreeSet::from([gateway.origin.document.clone()]);
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
        .map_err(|problems| diagnostics.extend(problems))
        .ok();
    let mut routes: Vec<Placed> = Vec::new();
    let mut attached = false;
    for (rank, route) in config.routes_of_host(&gateway.name, host) {
        if !route.listeners.is_empty() && !route.listeners.iter().any(|(name, _)| *name == listener.name) {
            continue;
        }
        attached = true;
        origins.insert(route.origin.document.clone());
        origins.extend(documents_of(config, &route.scope));
        let wide = effective(config, &route.scope);
        for rule in &route.rules {
            origins.extend(documents_of(config, &rule.scope));
            builder.rule(route, rule, outer.as_ref(), &wide, rank, &mut routes);
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
            origins.insert(upstream.origin.document.clone());
        }
    }
    routes.sort_by(|one, other| {
        precedence(one.place(), other.place())
            .then_with(|| one.rank.cmp(&other.rank))
            .then_with(|| one.index.cmp(&other.index))
    });
    let mut shadowed = Vec::new();
    let routes = drop_shadowed(routes, host, &mut shadowed, &mut diagnostics);
    let host = VirtualHost {
        listener: listener.name.clone(),
        host: host.clone(),
        routes,
        checks_sni: listener.protocol == Protocol::Https,
        origins: origins.into_iter().collect(),
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
    pub(super) rank: Rank,
    pub(super) index: usize,
    /// One that stands for its rule's match together with others, in an order of their own.
    pub(super) rule_match: Option<RequestMatch>,
    pub(super) route: Route,
}

impl Placed {
    fn place(&self) -> &RequestMatch {
        self.rule_match.as_ref().unwrap_or(&self.route.matching)
    }
}

/// Gateway API's order of matches: `Less` is tried first.
fn precedence(one: &RequestMatch, other: &RequestMatch) -> std::cmp::Ordering {
    let path = |request: &RequestMatch| match &request.path {
        PathMatch::Exact(path) => (0, usize::MAX - path.len()),
        PathMatch::Regex(regex) => (1, usize::MAX - regex.len()),
        PathMatch::Prefix(prefix) | PathMatch::StartsWith(prefix) => (2, usize::MAX - prefix.len()),
    };
    let key = |request: &RequestMatch| {
        (
            path(request),
            request.methods.is_empty(),
            usize::MAX - request.headers.len(),
            usize::MAX - request.query.len(),
        )
    };
    key(one).cmp(&key(other))
}

fn drop_shadowed(
    routes: Vec<Placed>,
    host: &str,
    shadowed: &mut Vec<(Arc<str>, Arc<str>)>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<Route> {
    if routes.len() < 2 {
        return routes.into_iter().map(|placed| placed.route).collect();
    }
    let mut kept: Vec<Route> = Vec::with_capacity(routes.len());
    let mut seen: HashMap<RequestMatch, usize> = HashMap::with_capacity(routes.len());
    for Placed { route, .. } in routes {
        if let Some(holder) = seen.get(&route.matching).map(|index| &kept[*index]) {
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
        } else {
            seen.insert(route.matching.clone(), kept.len());
            kept.push(route);
        }
    }
    kept
}
