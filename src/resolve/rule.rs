//! One rule of a route: its policies, its backends, and the routes that it becomes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::chain::{
    Choice, Choices, Composed, Leg, Outcome, choices_of, compose, targets_behind, whole_weights,
};
use super::destination::interests_of;
use super::mesh::{chain_of, is_ready, members, resolver_of};
use super::policies::effective;
use super::redirect::Place;
use super::virtual_host::Placed;
use super::{Destination, cluster_name, resolve_target};
use crate::config::{
    Backend, BackendTarget, ConnectSource, HttpRoute, ObjectKind, Rank, Rule, RuleAction, UpstreamSource,
};
use crate::diagnostics::{Code, Diagnostic};
use crate::ir::{Action, ChainSettings, Route, Unavailable, WeightedCluster};
use crate::model::http::{RequestMatch, Rewrite};
use crate::model::mesh::{Chain, ChainProtocol, Interest};
use crate::model::{Policies, Problem};
use crate::snapshot::Snapshot;

pub(super) struct Builder<'a> {
    snapshot: &'a Snapshot,
    place: Place<'a>,
    /// Backends outside of the mesh that were looked up and can be used, with their clusters.
    plain: BTreeMap<BackendTarget, Arc<str>>,
    pub(super) targets: BTreeSet<Destination>,
    pub(super) pending: BTreeSet<Interest>,
    pub(super) follows: BTreeSet<Interest>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// What a rule does, before its matches are looked at.
enum Plan<'a> {
    Same(Action),
    /// A backend in the mesh may make several routes of each match.
    Mesh(Vec<Choices<'a>>),
}

/// How a backend is reached.
enum Usable<'a> {
    /// By this cluster.
    Plain(Arc<str>),
    Mesh(Vec<Choice<'a>>),
}

/// One of the routes that a match becomes.
struct Part {
    matching: RequestMatch,
    rewrite: Option<Rewrite>,
    action: Action,
    chain: ChainSettings,
}

impl<'a> Builder<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, place: Place<'a>) -> Self {
        Self {
            snapshot,
            place,
            plain: BTreeMap::new(),
            targets: BTreeSet::new(),
            pending: BTreeSet::new(),
            follows: BTreeSet::new(),
            diagnostics: Vec::new(),
        }
    }

    pub(super) fn rule(
        &mut self,
        route: &HttpRoute,
        rule: &Rule,
        outer: Option<&Policies>,
        wide: &Result<Policies, Vec<Diagnostic>>,
        rank: &Rank,
        routes: &mut Vec<Placed>,
    ) {
        let own = match wide {
            Ok(wide) => effective(&self.snapshot.config, &rule.scope).map(|near| wide.overlaid_by(&near)),
            Err(problems) => Err(problems.clone()),
        };
        let (policies, plan) = match (outer, own) {
            (Some(outer), Ok(own)) => (outer.overlaid_by(&own), self.plan(route, rule)),
            (_, own) => {
                if let Err(problems) = own {
                    self.diagnostics.extend(
                        problems
                            .into_iter()
                            .map(|problem| problem.about("http_route", &route.name)),
                    );
                }
                let closed = Action::Unavailable(Unavailable::PolicyUnresolved);
                (Policies::default(), Plan::Same(closed))
            }
        };
        let name = |index: usize| match index {
            0 => [&*route.name, "/", &*rule.name].concat(),
            _ => format!("{}/{}#{}", route.name, rule.name, index + 1),
        };
        let matches = rule.matches.iter().enumerate();
        match plan {
            Plan::Same(action) => {
                // One copy fewer than there are matches, of which most rules have one.
                let same = std::iter::repeat_n((policies, action), rule.matches.len());
                for ((index, matching), (policies, action)) in matches.zip(same) {
                    routes.push(Placed {
                        rank: rank.clone(),
                        index: routes.len(),
                        rule_match: None,
                        route: Route {
                            name: name(index).into(),
                            matching: matching.clone(),
                            rewrite: rule.rewrite.clone(),
                            action,
                            chain: ChainSettings::default(),
                            policies,
                            origin: rule.origin.clone(),
                        },
                    });
                }
            }
            Plan::Mesh(backends) => {
                for (index, matching) in matches {
                    let parts = self.mesh_parts(route, rule, matching, &backends);
                    let several = parts.len() > 1;
                    for (number, part) in parts.into_iter().enumerate() {
                        let mut name = name(index);
                        if several {
                            name = format!("{name}~{}", number + 1);
                        }
                        routes.push(Placed {
                            rank: rank.clone(),
                            index: routes.len(),
                            rule_match: several.then(|| matching.clone()),
                            route: Route {
                                name: name.into(),
                                matching: part.matching,
                                rewrite: part.rewrite,
                                action: part.action,
                                chain: part.chain,
                                policies: policies.clone(),
                                origin: rule.origin.clone(),
                            },
                        });
                    }
                }
            }
        }
    }

    fn plan(&mut self, route: &HttpRoute, rule: &Rule) -> Plan<'a> {
        let backends = match &rule.action {
            RuleAction::Redirect(written) => {
                let (redirect, said) = self.place.redirect(written, rule);
                self.diagnostics
                    .extend(said.map(|said| said.at(rule.origin.clone()).about("http_route", &route.name)));
                return Plan::Same(Action::Redirect(redirect));
            }
            RuleAction::Respond(response) => return Plan::Same(Action::Respond(response.clone())),
            RuleAction::Forward(backends) => backends,
        };
        let mut usable: Vec<(&Backend, Usable<'a>)> = Vec::with_capacity(backends.len());
        let mut why = Unavailable::NoBackend;
        for backend in backends.iter().filter(|backend| backend.weight > 0) {
            match self.usable(route, backend) {
                Ok(how) => usable.push((backend, how)),
                Err(reason) => why = reason,
            }
        }
        if usable.is_empty() {
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
            return Plan::Same(Action::Unavailable(why));
        }
        if usable.iter().any(|(_, how)| matches!(how, Usable::Mesh(_))) {
            let choices = usable.into_iter().map(|(backend, how)| choices(backend, how));
            return Plan::Mesh(choices.collect());
        }
        let mut clusters: Vec<WeightedCluster> = Vec::with_capacity(usable.len());
        for (backend, how) in usable {
            let Usable::Plain(cluster) = how else {
                continue;
            };
            let same =
                |other: &&mut WeightedCluster| other.cluster == cluster && other.policies == backend.policies;
            match clusters.iter_mut().find(same) {
                Some(other) => other.weight = other.weight.saturating_add(backend.weight),
                None => clusters.push(WeightedCluster {
                    policies: backend.policies.clone(),
                    ..WeightedCluster::plain(cluster, backend.weight)
                }),
            }
        }
        Plan::Same(Action::Forward(clusters))
    }

    fn forward(&self, legs: &[(Leg, f64)]) -> Action {
        let mut clusters: Vec<WeightedCluster> = Vec::with_capacity(legs.len());
        let mut shares: Vec<f64> = Vec::with_capacity(legs.len());
        for (leg, share) in legs {
            let cluster = WeightedCluster {
                policies: leg.policies.clone(),
                members: self.members_of(&leg.destination),
                request_headers: leg.request_headers.clone(),
                response_headers: leg.response_headers.clone(),
                ..WeightedCluster::plain(cluster_name(&leg.destination), 0)
            };
            match clusters.iter().position(|other| *other == cluster) {
                Some(known) => shares[known] += share,
                None => {
                    clusters.push(cluster);
                    shares.push(*share);
                }
            }
        }
        for (cluster, weight) in clusters.iter_mut().zip(whole_weights(&shares)) {
            cluster.weight = weight;
        }
        Action::Forward(clusters)
    }

    fn members_of(&self, destination: &Destination) -> Vec<Arc<str>> {
        let Destination::Failover { upstream, resolver } = destination else {
            return Vec::new();
        };
        super::destination::connect_source(&self.snapshot.config, upstream)
            .and_then(|source| chain_of(self.snapshot, source))
            .and_then(|chain| resolver_of(chain, resolver))
            .map(|resolver| members(self.snapshot, upstream, resolver))
            .unwrap_or_default()
    }

    fn mesh_parts(
        &mut self,
        route: &HttpRoute,
        rule: &Rule,
        matching: &RequestMatch,
        backends: &[Choices<'a>],
    ) -> Vec<Part> {
        let closed = |why| Part {
            matching: matching.clone(),
            rewrite: None,
            action: Action::Unavailable(why),
            chain: ChainSettings::default(),
        };
        let composed = match compose(matching, rule.rewrite.as_ref(), backends) {
            Ok(composed) => composed,
            Err(reason) => {
                self.not_expressible(route, rule, &reason);
                return vec![closed(Unavailable::NotExpressible)];
            }
        };
        let takes_all = composed.iter().any(|part| part.matching == *matching);
        let mut parts: Vec<Part> = Vec::with_capacity(composed.len() + 1);
        for Composed { matching, outcome } in composed {
            let part = match outcome {
                Ok(Outcome {
                    rewrite,
                    legs,
                    left_out,
                    settings,
                }) => Part {
                    matching,
                    rewrite,
                    action: if legs.is_empty() {
                        Action::Unavailable(left_out.unwrap_or(Unavailable::NoBackend))
                    } else {
                        self.forward(&legs)
                    },
                    chain: settings,
                },
                Err(reason) => {
                    self.not_expressible(route, rule, &reason);
                    Part {
                        matching,
                        ..closed(Unavailable::NotExpressible)
                    }
                }
            };
            parts.push(part);
        }
        if !takes_all {
            // What the chain does not take is not for another rule either.
            parts.push(closed(Unavailable::NoBackend));
        }
        parts
    }

    fn not_expressible(&mut self, route: &HttpRoute, rule: &Rule, reason: &str) {
        let diagnostic = Diagnostic::error(Code::NotExpressible, reason.to_owned())
            .at(rule.origin.clone())
            .about("http_route", &route.name)
            .because("what the discovery chain asks for cannot be done behind this rule: those requests answer 503")
            .fix("give the service a rule of its own without a rewrite, or change its service-router");
        if !self.diagnostics.contains(&diagnostic) {
            self.diagnostics.push(diagnostic);
        }
    }

    /// A backend nobody knows is left out; the others take its share.
    fn usable(&mut self, route: &HttpRoute, backend: &Backend) -> Result<Usable<'a>, Unavailable> {
        if let Some(cluster) = self.plain.get(&backend.target) {
            return Ok(Usable::Plain(cluster.clone()));
        }
        let destination = Destination::Backend(backend.target.clone());
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
        let cluster = cluster_name(&destination);
        self.targets.insert(destination);
        if let Some(query) = source.first_query()
            && !self.snapshot.service_answered(query)
        {
            self.pending.insert(Interest::Service(query.clone()));
            return Err(Unavailable::NotYetKnown);
        }
        match (source, &backend.target) {
            (UpstreamSource::Connect(source), BackendTarget::Upstream(name)) => {
                self.mesh_choices(route, backend, name, &source).map(Usable::Mesh)
            }
            // Only an upstream can be in the mesh.
            (UpstreamSource::Connect(_), BackendTarget::Consul(_)) => Err(Unavailable::UnknownUpstream),
            (
                UpstreamSource::Consul { .. }
                | UpstreamSource::Nomad { .. }
                | UpstreamSource::Sidecar { .. }
                | UpstreamSource::Static(_)
                | UpstreamSource::Dns(_),
                _,
            ) => {
                self.plain.insert(backend.target.clone(), cluster.clone());
                Ok(Usable::Plain(cluster))
            }
        }
    }

    fn mesh_choices(
        &mut self,
        route: &HttpRoute,
        backend: &Backend,
        name: &Arc<str>,
        source: &ConnectSource,
    ) -> Result<Vec<Choice<'a>>, Unavailable> {
        let snapshot = self.snapshot;
        for interest in [Interest::Chain(source.query.clone()), Interest::Mesh] {
            if !snapshot.answered(&interest) {
                self.pending.insert(interest.clone());
            }
            self.follows.insert(interest);
        }
        let Some(known) = snapshot.chain(&source.query) else {
            return Err(Unavailable::NotYetKnown);
        };
        let Some(chain) = &known.value else {
            return Err(self.mesh_problem(route, backend, known.problem.as_ref()));
        };
        if chain.protocol == ChainProtocol::Tcp && source.protocol.is_none() {
            let service = &chain.service;
            self.diagnostics.push(
                Diagnostic::error(
                    Code::ProtocolMismatch,
                    format!("the mesh service {service:?} speaks tcp to Consul, and this is an HTTP route"),
                )
                .at(backend.origin.clone())
                .about("http_route", &route.name)
                .because("the rule's other backends take its share; a rule without any answers 503")
                .fix(format!(
                    "write a service-defaults entry for {service:?} with Protocol = \"http\"; or say `protocol = \"http\"` in the upstream, if it speaks HTTP whatever Consul knows"
                )),
            );
            return Err(Unavailable::ProtocolMismatch);
        }
        let identity = snapshot.mesh();
        if identity.usable().is_none() {
            let problem = identity.leaf.problem.as_ref().or(identity.roots.problem.as_ref());
            return Err(self.mesh_problem(route, backend, problem));
        }
        let mut choices = choices_of(chain, name).map_err(|reason| {
            self.diagnostics.push(
                Diagnostic::error(Code::NotExpressible, reason)
                    .at(backend.origin.clone())
                    .about("http_route", &route.name)
                    .because("the rule's other backends take its share; a rule without any answers 503")
                    .fix(
                        "simplify the service's config entries: `consul config list -kind service-splitter`",
                    ),
            );
            Unavailable::NotExpressible
        })?;
        for choice in &mut choices {
            let mut left_out = None;
            choice.legs.retain(|leg| {
                let usable = self.leg_usable(route, backend, chain, leg);
                left_out = left_out.or(usable.err());
                usable.is_ok()
            });
            choice.left_out = left_out;
        }
        Ok(choices)
    }

    /// Notes the clusters of a leg. Err: none of them can serve.
    fn leg_usable(
        &mut self,
        route: &HttpRoute,
        backend: &Backend,
        chain: &Chain,
        leg: &Leg,
    ) -> Result<(), Unavailable> {
        let snapshot = self.snapshot;
        let mut usable = Err(Unavailable::NotExpressible);
        for destination in targets_behind(chain, &leg.destination) {
            if let Destination::Mesh { upstream, target } = &destination {
                if let Some(peer) = chain.targets.get(target).and_then(|target| target.peer.as_ref()) {
                    self.peered(route, backend, target, peer);
                    continue;
                }
                if is_ready(snapshot, upstream, target) {
                    usable = Ok(());
                } else {
                    usable = usable.or(Err(Unavailable::NotYetKnown));
                    let unanswered = interests_of(snapshot, &destination).into_iter();
                    self.pending
                        .extend(unanswered.filter(|interest| !snapshot.answered(interest)));
                }
            }
            self.targets.insert(destination);
        }
        usable
    }

    fn peered(&mut self, route: &HttpRoute, backend: &Backend, target: &str, peer: &str) {
        let diagnostic = Diagnostic::error(
            Code::NotExpressible,
            format!("the target {target:?} lies behind the cluster peering {peer:?}"),
        )
        .at(backend.origin.clone())
        .about("http_route", &route.name)
        .because("Consul tells a peer's trust bundle to its own proxies only, so nobody else can check who answers")
        .fix(format!("reach it through the gateway's own sidecar: `connect {{ ... sidecar = true, peer = {peer:?} }}`, see docs/upstreams/connect.md"));
        if !self.diagnostics.contains(&diagnostic) {
            self.diagnostics.push(diagnostic);
        }
    }

    fn mesh_problem(
        &mut self,
        route: &HttpRoute,
        backend: &Backend,
        problem: Option<&Problem>,
    ) -> Unavailable {
        let Some(problem) = problem else {
            return Unavailable::NotYetKnown;
        };
        let diagnostic = Diagnostic::of_problem(Code::MeshProblem, problem)
            .at(backend.origin.clone())
            .about("http_route", &route.name)
            .because("the rule's other backends take its share; a rule without any answers 503");
        self.diagnostics.push(diagnostic);
        Unavailable::MeshUnavailable
    }
}

/// A backend as it is combined with the others, one of which is in the mesh.
fn choices<'a>(backend: &Backend, how: Usable<'a>) -> Choices<'a> {
    let mut all = match how {
        Usable::Mesh(choices) => choices,
        Usable::Plain(_) => vec![Choice {
            route: None,
            legs: vec![Leg::whole(Destination::Backend(backend.target.clone()))],
            left_out: None,
            settings: ChainSettings::default(),
        }],
    };
    for leg in all.iter_mut().flat_map(|choice| &mut choice.legs) {
        leg.policies = backend.policies.clone();
    }
    Choices {
        weight: backend.weight,
        all,
    }
}
