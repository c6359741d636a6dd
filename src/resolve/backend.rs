//! What stands behind a backend: its clusters, what they wait for, and what is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::chain::{Choice, Choices, Leg, choices_of, targets_behind, whole_weights};
use super::destination::interests_of;
use super::mesh::{chain_of, is_ready, members, resolver_of};
use super::named_port::target_of_port;
use super::{Destination, cluster_name, resolve_target};
use crate::config::{Backend, BackendTarget, ConnectSource, ObjectKind, RouteRef, UpstreamSource};
use crate::diagnostics::{Code, Diagnostic};
use crate::ir::{Unavailable, WeightedCluster};
use crate::model::Problem;
use crate::model::mesh::{Chain, ChainProtocol, Interest};
use crate::snapshot::Snapshot;

/// Looks backends up, and remembers what the looked-up ones need.
pub(super) struct Backends<'a> {
    pub(super) snapshot: &'a Snapshot,
    /// Backends outside of the mesh that were looked up and can be used, with their clusters.
    plain: BTreeMap<BackendTarget, Plain>,
    pub(super) targets: BTreeSet<Destination>,
    pub(super) pending: BTreeSet<Interest>,
    pub(super) follows: BTreeSet<Interest>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// How a backend is reached.
pub(super) enum Usable<'a> {
    Plain(Plain),
    Mesh(Vec<Choice<'a>>),
}

/// A backend outside of the mesh.
#[derive(Clone)]
pub(super) struct Plain {
    pub(super) cluster: Arc<str>,
    /// What a rule forwards to that has this backend alone: most rules, and all those of a host alike.
    pub(super) alone: Arc<[WeightedCluster]>,
}

impl<'a> Backends<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        Self {
            snapshot,
            plain: BTreeMap::new(),
            targets: BTreeSet::new(),
            pending: BTreeSet::new(),
            follows: BTreeSet::new(),
            diagnostics: Vec::new(),
        }
    }

    /// A backend nobody knows is left out; the others take its share.
    pub(super) fn usable(
        &mut self,
        route: RouteRef<'_>,
        backend: &Backend,
    ) -> Result<Usable<'a>, Unavailable> {
        if let Some(plain) = self.plain.get(&backend.target) {
            return Ok(Usable::Plain(plain.clone()));
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
                    .about(route.kind().as_str(), route.name())
                    .because(without(route))
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
        match (&*source, &backend.target) {
            (UpstreamSource::Connect(source), BackendTarget::Upstream(name)) => {
                self.mesh_choices(route, backend, name, source).map(Usable::Mesh)
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
                let plain = Plain {
                    alone: [WeightedCluster::plain(cluster.clone(), backend.weight)].into(),
                    cluster,
                };
                self.plain.insert(backend.target.clone(), plain.clone());
                Ok(Usable::Plain(plain))
            }
        }
    }

    fn mesh_choices(
        &mut self,
        route: RouteRef<'_>,
        backend: &Backend,
        name: &Arc<str>,
        source: &ConnectSource,
    ) -> Result<Vec<Choice<'a>>, Unavailable> {
        let snapshot = self.snapshot;
        for interest in [Interest::chain(source.query.clone()), Interest::Mesh] {
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
        let needs_http = matches!(route, RouteRef::Http(_));
        if needs_http && chain.protocol == ChainProtocol::Tcp && source.protocol.is_none() {
            let service = &chain.service;
            self.diagnostics.push(
                Diagnostic::error(
                    Code::ProtocolMismatch,
                    format!("to Consul the mesh service {service:?} is plain TCP (its default), and this is an HTTP route"),
                )
                .at(backend.origin.clone())
                .about(route.kind().as_str(), route.name())
                .because(without(route))
                .fix(format!(
                    "write a service-defaults entry for {service:?} with Protocol = \"http\"; or say `protocol = \"http\"` in the upstream, if it speaks HTTP whatever Consul knows; or pass its connections on with a tcp_route"
                )),
            );
            return Err(Unavailable::ProtocolMismatch);
        }
        let identity = snapshot.mesh();
        if identity.usable().is_none() {
            let problem = identity.leaf.problem.as_ref().or(identity.roots.problem.as_ref());
            return Err(self.mesh_problem(route, backend, problem));
        }
        let walked = match &source.port {
            None => choices_of(chain, name).map_err(|reason| {
                let fix = "simplify the service's config entries: `consul config list -kind service-splitter`";
                (reason, fix.to_owned())
            }),
            Some(port) => match target_of_port(chain, &source.query, port) {
                Some((target, _)) => Ok(vec![Choice::whole(Destination::Mesh {
                    upstream: name.clone(),
                    target,
                })]),
                None => Err((
                    format!(
                        "a named port is dialed past the discovery chain, and that of {:?} leads to other services only",
                        chain.service
                    ),
                    "name the service that it leads to in `connect { service = ... }`, with its namespace and partition; or leave `port` out".to_owned(),
                )),
            },
        };
        let mut choices = walked.map_err(|(reason, fix)| {
            self.diagnostics.push(
                Diagnostic::error(Code::NotExpressible, reason)
                    .at(backend.origin.clone())
                    .about(route.kind().as_str(), route.name())
                    .because(without(route))
                    .fix(fix),
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
        route: RouteRef<'_>,
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

    fn peered(&mut self, route: RouteRef<'_>, backend: &Backend, target: &str, peer: &str) {
        let diagnostic = Diagnostic::error(
            Code::NotExpressible,
            format!("the target {target:?} lies behind the cluster peering {peer:?}"),
        )
        .at(backend.origin.clone())
        .about(route.kind().as_str(), route.name())
        .because("Consul tells a peer's trust bundle to its own proxies only, so nobody else can check who answers")
        .fix(format!("reach it through the gateway's own sidecar: `connect {{ ... sidecar = true, peer = {peer:?} }}`, see docs/upstreams/connect.md"));
        if !self.diagnostics.contains(&diagnostic) {
            self.diagnostics.push(diagnostic);
        }
    }

    fn mesh_problem(
        &mut self,
        route: RouteRef<'_>,
        backend: &Backend,
        problem: Option<&Problem>,
    ) -> Unavailable {
        let Some(problem) = problem else {
            return Unavailable::NotYetKnown;
        };
        let diagnostic = Diagnostic::of_problem(Code::MeshProblem, problem)
            .at(backend.origin.clone())
            .about(route.kind().as_str(), route.name())
            .because(without(route));
        self.diagnostics.push(diagnostic);
        Unavailable::MeshUnavailable
    }

    pub(super) fn forward(&self, legs: &[(Leg, f64)]) -> Vec<WeightedCluster> {
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
        clusters
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
}

/// A backend as it is combined with the others, one of which is in the mesh.
pub(super) fn choices<'a>(backend: &Backend, how: Usable<'a>) -> Choices<'a> {
    let mut all = match how {
        Usable::Mesh(choices) => choices,
        Usable::Plain(_) => vec![Choice::whole(Destination::Backend(backend.target.clone()))],
    };
    for leg in all.iter_mut().flat_map(|choice| &mut choice.legs) {
        leg.policies = backend.policies.clone();
    }
    Choices {
        weight: backend.weight,
        all,
    }
}

/// What becomes of a route that a backend cannot serve.
fn without(route: RouteRef<'_>) -> &'static str {
    match route {
        RouteRef::Http(_) => {
            "the rule's other backends take its share; where it has no other, the rule answers 503"
        }
        RouteRef::Tcp(_) => {
            "the route's other backends take its share; where it has no other, its listeners' ports are closed"
        }
    }
}
