use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::policies::{documents_of, effective};
use super::{Resolved, cluster_name, resolve_target};
use crate::config::{
    Backend, BackendTarget, Gateway, HttpRoute, Listener, ObjectKind, Protocol, Rank, Rule, RuleAction,
};
use crate::diagnostics::{Code, Diagnostic};
use crate::ir::{Action, Route, Unavailable, VirtualHost, WeightedCluster};
use crate::model::http::{PathMatch, RequestMatch};
use crate::model::{DocumentId, Policies, ServiceQuery};
use crate::snapshot::Snapshot;

/// One host of one listener, and what it depends on.
#[derive(Clone, Debug)]
pub struct ResolvedHost {
    pub host: VirtualHost,
    /// Destinations in use.
    pub targets: BTreeSet<BackendTarget>,
    /// Watches that have not answered yet: the host is better published when they have.
    pub pending: BTreeSet<ServiceQuery>,
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
    let config = &snapshot.config;
    let mut diagnostics = Vec::new();
    let mut origins: BTreeSet<DocumentId> = BTreeSet::from([gateway.origin.document.clone()]);
    origins.extend(documents_of(config, &gateway.scope));
    origins.extend(documents_of(config, &listener.scope));
    let mut builder = Builder {
        snapshot,
        targets: BTreeMap::new(),
        pending: BTreeSet::new(),
        diagnostics: Vec::new(),
    };
    let outer = effective(config, &gateway.scope)
        .and_then(|outer| effective(config, &listener.scope).map(|inner| outer.overlaid_by(&inner)))
        .map_err(|problems| diagnostics.extend(problems))
        .ok();
    let mut routes: Vec<(Rank, usize, Route)> = Vec::new();
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
    diagnostics.append(&mut builder.diagnostics);
    for target in builder.targets.keys() {
        if let BackendTarget::Upstream(name) = target
            && let Some(upstream) = config.upstream(name)
        {
            origins.insert(upstream.origin.document.clone());
        }
    }
    routes.sort_by(|(rank, index, route), (other_rank, other_index, other)| {
        precedence(&route.matching, &other.matching)
            .then_with(|| rank.cmp(other_rank))
            .then_with(|| index.cmp(other_index))
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
        targets: builder.targets.into_keys().collect(),
        pending: builder.pending,
        shadowed,
    };
    Some(Resolved { value, diagnostics })
}

/// Gateway API's order of matches: `Less` is tried first.
fn precedence(one: &RequestMatch, other: &RequestMatch) -> std::cmp::Ordering {
    let path = |request: &RequestMatch| match &request.path {
        PathMatch::Exact(path) => (0, usize::MAX - path.len()),
        PathMatch::Regex(regex) => (1, usize::MAX - regex.len()),
        PathMatch::Prefix(prefix) => (2, usize::MAX - prefix.len()),
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
    routes: Vec<(Rank, usize, Route)>,
    host: &str,
    shadowed: &mut Vec<(Arc<str>, Arc<str>)>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<Route> {
    if routes.len() < 2 {
        return routes.into_iter().map(|(_, _, route)| route).collect();
    }
    let mut kept: Vec<Route> = Vec::with_capacity(routes.len());
    let mut seen: HashMap<RequestMatch, usize> = HashMap::with_capacity(routes.len());
    for (_, _, route) in routes {
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

struct Builder<'a> {
    snapshot: &'a Snapshot,
    /// Destinations looked up so far, with the cluster of those that can be used.
    targets: BTreeMap<BackendTarget, Option<Arc<str>>>,
    pending: BTreeSet<ServiceQuery>,
    diagnostics: Vec<Diagnostic>,
}

impl Builder<'_> {
    fn rule(
        &mut self,
        route: &HttpRoute,
        rule: &Rule,
        outer: Option<&Policies>,
        wide: &Result<Policies, Vec<Diagnostic>>,
        rank: &Rank,
        routes: &mut Vec<(Rank, usize, Route)>,
    ) {
        let own = match wide {
            Ok(wide) => effective(&self.snapshot.config, &rule.scope).map(|near| wide.overlaid_by(&near)),
            Err(problems) => Err(problems.clone()),
        };
        let (policies, action) = match (outer, own) {
            (Some(outer), Ok(own)) => (outer.overlaid_by(&own), self.action(route, rule)),
            (_, own) => {
                if let Err(problems) = own {
                    self.diagnostics.extend(
                        problems
                            .into_iter()
                            .map(|problem| problem.about("http_route", &route.name)),
                    );
                }
                (
                    Policies::default(),
                    Action::Unavailable(Unavailable::PolicyUnresolved),
                )
            }
        };
        let count = rule.matches.len();
        let same = std::iter::repeat_n((policies, action), count);
        for (index, (matching, (policies, action))) in rule.matches.iter().zip(same).enumerate() {
            let name = match index {
                0 => [&*route.name, "/", &*rule.name].concat(),
                _ => format!("{}/{}#{}", route.name, rule.name, index + 1),
            };
            let position = routes.len();
            routes.push((
                rank.clone(),
                position,
                Route {
                    name: name.into(),
                    matching: matching.clone(),
                    rewrite: rule.rewrite.clone(),
                    action,
                    policies,
                    origin: rule.origin.clone(),
                },
            ));
        }
    }

    fn action(&mut self, route: &HttpRoute, rule: &Rule) -> Action {
        let backends = match &rule.action {
            RuleAction::Redirect(redirect) => return Action::Redirect(redirect.clone()),
            RuleAction::Respond(response) => return Action::Respond(response.clone()),
            RuleAction::Forward(backends) => backends,
        };
        let mut clusters: Vec<WeightedCluster> = Vec::with_capacity(backends.len());
        let mut why = Unavailable::NoBackend;
        for backend in backends.iter().filter(|backend| backend.weight > 0) {
            match self.cluster(route, backend) {
                Ok(cluster) => {
                    let same = |other: &&mut WeightedCluster| {
                        other.cluster == cluster && other.policies == backend.policies
                    };
                    match clusters.iter_mut().find(same) {
                        Some(other) => other.weight = other.weight.saturating_add(backend.weight),
                        None => clusters.push(WeightedCluster {
                            cluster,
                            weight: backend.weight,
                            policies: backend.policies.clone(),
                        }),
                    }
                }
                Err(reason) => why = reason,
            }
        }
        if clusters.is_empty() {
            if why == Unavailable::NoBackend {
                self.diagnostics.push(
                    Diagnostic::warning(
                        Code::NoBackend,
                        format!("every backend of the rule {:?} has weight 0", rule.name),
                    )
                    .at(rule.origin.clone())
                    .about("http_route", &route.name)
                    .because("it answers 503: nobody is left to take its requests")
                    .fix("give one backend a weight above 0, or answer with `direct_response`"),
                );
            }
            Action::Unavailable(why)
        } else {
            Action::Forward(clusters)
        }
    }

    /// A backend nobody knows is left out; the others take its share.
    fn cluster(&mut self, route: &HttpRoute, backend: &Backend) -> Result<Arc<str>, Unavailable> {
        if let Some(Some(cluster)) = self.targets.get(&backend.target) {
            return Ok(cluster.clone());
        }
        let config = &self.snapshot.config;
        let Some((source, _)) = resolve_target(config, &backend.target) else {
            let BackendTarget::Upstream(name) = &backend.target else {
                return Err(Unavailable::UnknownUpstream);
            };
            let near = config.nearest(ObjectKind::Upstream, name);
            self.diagnostics.push(
                Diagnostic::error(Code::UnknownReference, format!("no document declares the upstream {name:?}"))
                    .at(backend.origin.clone())
                    .about("http_route", &route.name)
                    .because("the rule's other backends take its share; a rule without any answers 503")
                    .fix(near.map_or_else(
                        || format!("declare `upstream {name:?} {{ ... }}`, or name a Consul service: `backend \"consul\" {name:?} {{}}`"),
                        |near| format!("did you mean {near:?}?"),
                    )),
            );
            return Err(Unavailable::UnknownUpstream);
        };
        if let Some(query) = source.first_query()
            && !self.snapshot.service_answered(query)
        {
            self.pending.insert(query.clone());
            self.targets.insert(backend.target.clone(), None);
            return Err(Unavailable::NotYetKnown);
        }
        let cluster = cluster_name(&backend.target);
        self.targets.insert(backend.target.clone(), Some(cluster.clone()));
        Ok(cluster)
    }
}
