//! Destinations in the mesh: one cluster for each target of a discovery chain, with the certificate that the other side
//! must show, and the sidecars in front of its instances.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::Resolved;
use super::cluster::{LEFT_OUT_SHOWN, endpoint, none_of, origins};
use super::destination::{Destination, cluster_name, connect_source};
use super::intention::{denies_all, intention_diagnostics, verdict};
use super::matching::Request;
use super::named_port::{fix_for_none, may_be_asked, target_of_port};
use crate::config::{BackendTarget, ConnectSource};
use crate::diagnostics::{Code, Diagnostic, Severity};
use crate::ir::{Cluster, ClusterSource, Endpoint, MeshTls};
use crate::model::http::{LoadBalancer, UpstreamProtocol};
use crate::model::mesh::{
    BalancerPolicy, Chain, ChainNode, ChainProtocol, ChainResolver, ChainTarget, IntentionQuery, Interest,
    MeshGatewayMode,
};
use crate::model::{Health, Instance, Lookup, Narrowing, ServiceQuery};
use crate::snapshot::Snapshot;

/// A mesh upstream with its chain and one of the chain's targets.
struct Target<'a> {
    source: &'a ConnectSource,
    chain: &'a Chain,
    target: Cow<'a, ChainTarget>,
    /// The gateway's own datacenter, as far as is known.
    here: Option<&'a str>,
}

pub(super) fn chain_of<'a>(snapshot: &'a Snapshot, source: &ConnectSource) -> Option<&'a Arc<Chain>> {
    snapshot.chain(&source.query)?.value.as_ref()
}

fn find<'a>(snapshot: &'a Snapshot, upstream: &str, target: &str) -> Option<Target<'a>> {
    let source = connect_source(&snapshot.config, upstream)?;
    let chain = chain_of(snapshot, source)?;
    let target = match &source.port {
        Some(port) => {
            let (id, own) = target_of_port(chain, &source.query, port)?;
            Cow::Owned((*id == *target).then_some(own)?)
        }
        None => Cow::Borrowed(chain.targets.get(target)?),
    };
    let here = match &source.query.datacenter {
        // Compiled where we are.
        None => Some(&*chain.datacenter),
        // Compiled as if we were there.
        Some(_) => {
            let leaf = snapshot.mesh().leaf.value.as_ref();
            leaf.and_then(|leaf| leaf.datacenter())
        }
    };
    Some(Target {
        source,
        chain,
        target,
        here,
    })
}

pub(super) fn interests_of_chain(source: &ConnectSource) -> BTreeSet<Interest> {
    BTreeSet::from([Interest::chain(source.query.clone()), Interest::Mesh])
}

pub(super) fn interests_of_target(snapshot: &Snapshot, upstream: &str, target: &str) -> BTreeSet<Interest> {
    let Some(found) = find(snapshot, upstream, target) else {
        return connect_source(&snapshot.config, upstream)
            .map(interests_of_chain)
            .unwrap_or_default();
    };
    let mut interests = interests_of_chain(found.source);
    interests.insert(Interest::Service(found.dialed()));
    interests.extend(found.behind().map(Interest::Service));
    interests.insert(Interest::intention(found.intention()));
    interests
}

pub(super) fn interests_of_failover(
    snapshot: &Snapshot,
    upstream: &str,
    resolver: &str,
) -> BTreeSet<Interest> {
    let Some(source) = connect_source(&snapshot.config, upstream) else {
        return BTreeSet::new();
    };
    let mut interests = interests_of_chain(source);
    if let Some(resolver) = chain_of(snapshot, source).and_then(|chain| resolver_of(chain, resolver)) {
        for found in targets_in_order(resolver).filter_map(|target| find(snapshot, upstream, target)) {
            interests.insert(Interest::Service(found.dialed()));
            interests.extend(found.behind().map(Interest::Service));
        }
    }
    interests
}

pub(super) fn resolver_of<'a>(chain: &'a Chain, id: &str) -> Option<&'a ChainResolver> {
    match chain.nodes.get(id)? {
        ChainNode::Resolver(resolver) => Some(resolver),
        _ => None,
    }
}

pub(super) fn targets_in_order(resolver: &ChainResolver) -> impl Iterator<Item = &Arc<str>> {
    std::iter::once(&resolver.target).chain(&resolver.failover)
}

/// Its watches have answered, so that a cluster for it has endpoints.
pub(super) fn is_ready(snapshot: &Snapshot, upstream: &str, target: &str) -> bool {
    find(snapshot, upstream, target).is_some_and(|found| {
        let mut watches = std::iter::once(found.dialed()).chain(found.behind());
        watches.all(|query| snapshot.service_answered(&query))
    })
}

impl Target<'_> {
    /// The target's datacenter, if it is not ours.
    fn elsewhere(&self) -> Option<&Arc<str>> {
        let there = &self.target.datacenter;
        (!there.is_empty() && self.here != Some(&**there)).then_some(there)
    }

    fn scope(&self) -> Narrowing {
        let target = &self.target;
        Narrowing {
            datacenter: self.elsewhere().cloned(),
            namespace: enterprise(&target.namespace, &self.source.query.namespace),
            partition: enterprise(&target.partition, &self.source.query.partition),
            peer: None,
            filter: None,
        }
    }

    /// Mesh gateways carry what leaves the datacenter, if Consul says so. They look at the SNI and decrypt nothing, so
    /// certificates and names are those of the target all the same.
    fn gateways(&self) -> Option<ServiceQuery> {
        let elsewhere = self.elsewhere()?;
        let lookup = match self.target.mesh_gateway {
            MeshGatewayMode::Local => Lookup::MeshGateway,
            MeshGatewayMode::Remote => Lookup::MeshGatewayWan,
            MeshGatewayMode::None => return None,
        };
        let narrowing = Narrowing {
            datacenter: (lookup == Lookup::MeshGatewayWan).then(|| elsewhere.clone()),
            ..Narrowing::default()
        };
        let name = self.source.mesh_gateway.clone();
        Some(ServiceQuery::new(lookup, name, narrowing))
    }

    /// Who is connected to.
    fn dialed(&self) -> ServiceQuery {
        self.gateways().unwrap_or_else(|| {
            let narrowing = Narrowing {
                filter: self.target.filter.clone(),
                ..self.scope()
            };
            ServiceQuery::new(Lookup::Connect, self.target.service.clone(), narrowing)
        })
    }

    /// The instances behind the sidecars: their weights and checks count. None: behind a mesh gateway, which knows better.
    fn behind(&self) -> Option<ServiceQuery> {
        match self.gateways() {
            Some(_) => None,
            None => {
                let service = self.target.service.clone();
                Some(ServiceQuery::new(Lookup::Service, service, self.scope()))
            }
        }
    }

    fn intention(&self) -> IntentionQuery {
        let Narrowing {
            namespace, partition, ..
        } = self.scope();
        IntentionQuery {
            destination: self.target.service.clone(),
            namespace,
            partition,
        }
    }
}

/// Consul CE answers 400 to a namespace or partition, even to the default one.
fn enterprise(of_target: &Arc<str>, asked: &Option<Arc<str>>) -> Option<Arc<str>> {
    match &**of_target {
        "" => asked.clone(),
        // A chain may lead out of the namespace that was asked for.
        "default" => asked.as_ref().map(|_| of_target.clone()),
        _ => Some(of_target.clone()),
    }
}

/// `spiffe://<trust domain>/...` of a target. The subset is no part of it.
fn spiffe_id(trust_domain: &str, target: &ChainTarget) -> Arc<str> {
    let or_default = |text: &Arc<str>| {
        if text.is_empty() {
            "default".into()
        } else {
            text.clone()
        }
    };
    let partition = match &*or_default(&target.partition) {
        "default" => String::new(),
        partition => format!("/ap/{}", escaped(partition)),
    };
    format!(
        "spiffe://{trust_domain}{partition}/ns/{}/dc/{}/svc/{}",
        escaped(&or_default(&target.namespace)),
        escaped(&target.datacenter),
        escaped(&target.service)
    )
    .into()
}

/// A path segment of a URL as Go escapes it.
fn escaped(text: &str) -> String {
    let mut url = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+:=@".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url
}

pub(super) fn target_cluster(
    snapshot: &Snapshot,
    destination: &Destination,
    upstream: &str,
    target: &str,
) -> Option<Cluster> {
    let found = find(snapshot, upstream, target)?;
    let (_, roots) = snapshot.mesh().usable()?;
    let resolver = found
        .chain
        .nodes
        .values()
        .filter_map(|node| match node {
            ChainNode::Resolver(resolver) => Some(resolver),
            _ => None,
        })
        .filter(|resolver| targets_in_order(resolver).any(|id| **id == *target))
        // The one it is the first choice of, rather than one that falls back on it.
        .max_by_key(|resolver| *resolver.target == *target);
    let mut options = snapshot.config.upstream(upstream)?.options.clone();
    let http2 = match found.source.protocol {
        Some(protocol) => protocol == UpstreamProtocol::Http2,
        None => matches!(found.chain.protocol, ChainProtocol::Http2 | ChainProtocol::Grpc),
    };
    options.protocol = if http2 {
        UpstreamProtocol::Http2
    } else {
        UpstreamProtocol::Http1
    };
    if let (None, Some(timeout)) = (
        found.source.connect_timeout,
        resolver.and_then(|resolver| resolver.connect_timeout),
    ) {
        options.connect_timeout = timeout;
    }
    let mut balancer = None;
    if let Some(chosen) = found.source.load_balancer {
        options.load_balancer = chosen;
    } else if let Some(asked) = resolver.and_then(|resolver| resolver.balancer.as_ref()) {
        balancer = Some(asked.policy);
        options.load_balancer = match asked.policy {
            BalancerPolicy::Random => LoadBalancer::Random,
            BalancerPolicy::RoundRobin => LoadBalancer::RoundRobin,
            _ => LoadBalancer::LeastRequest,
        };
    }
    Some(Cluster {
        name: cluster_name(destination),
        source: ClusterSource::Discovered,
        tls: Some(MeshTls {
            sni: found.target.sni.clone(),
            peer: spiffe_id(&roots.trust_domain, &found.target),
            // Where the document says HTTP/2 of a service that is plain TCP to Consul, its proxy passes bytes on and is asked
            // for nothing. Envoy names what it is about to speak all the same, which such a proxy lets pass.
            http2: http2 && matches!(found.chain.protocol, ChainProtocol::Http2 | ChainProtocol::Grpc),
            port: found.source.port.clone(),
        }),
        options,
        balancer,
        only_connections: false,
        origins: origins(&snapshot.config, upstream),
    })
}

/// Only what is in place already: a cluster that is named and not there would never be fallen back on.
pub(super) fn failover_cluster(
    snapshot: &Snapshot,
    destination: &Destination,
    upstream: &Arc<str>,
    resolver: &str,
) -> Option<Cluster> {
    let source = connect_source(&snapshot.config, upstream)?;
    let chain = chain_of(snapshot, source)?;
    snapshot.mesh().usable()?;
    let members = members(snapshot, upstream, resolver_of(chain, resolver)?);
    let first = target_cluster(
        snapshot,
        destination,
        upstream,
        &resolver_of(chain, resolver)?.target,
    )?;
    (!members.is_empty()).then(|| Cluster {
        name: cluster_name(destination),
        source: ClusterSource::Failover(members),
        tls: None,
        options: first.options,
        balancer: None,
        only_connections: false,
        origins: first.origins,
    })
}

/// The clusters of a resolver that are in place, in order.
pub(super) fn members(snapshot: &Snapshot, upstream: &Arc<str>, resolver: &ChainResolver) -> Vec<Arc<str>> {
    let mut members: Vec<Arc<str>> = Vec::new();
    for target in targets_in_order(resolver).filter(|target| is_ready(snapshot, upstream, target)) {
        let name = cluster_name(&Destination::Mesh {
            upstream: upstream.clone(),
            target: target.clone(),
        });
        if !members.contains(&name) {
            members.push(name);
        }
    }
    members
}

/// The sidecars (or terminating gateways, or instances that speak the mesh's TLS) of a target, with the weights and the
/// health of the instances behind them.
pub(super) fn endpoints(
    snapshot: &Snapshot,
    upstream: &str,
    target: &str,
) -> Option<Resolved<Vec<Endpoint>>> {
    let found = find(snapshot, upstream, target)?;
    let (dialed, behind) = (found.dialed(), found.behind());
    let known = snapshot.service(&dialed)?;
    let applications = behind.and_then(|query| snapshot.service(&query));
    let about = |diagnostic: Diagnostic| diagnostic.about("upstream", upstream);
    let mut diagnostics: Vec<Diagnostic> = Vec::new();
    let problems = [
        known.problem.as_ref(),
        applications.and_then(|known| known.problem.as_ref()),
    ];
    if let Some(problem) = problems.into_iter().flatten().next() {
        let diagnostic = Diagnostic::of_problem(Code::SourceProblem, problem);
        diagnostics.push(about(
            diagnostic.because("the endpoints last known stay in service"),
        ));
    }
    let intention = snapshot.intention(&found.intention());
    diagnostics.extend(
        intention
            .map(|known| intention_diagnostics(known, found.chain.protocol))
            .unwrap_or_default()
            .into_iter()
            .map(about),
    );
    if intention
        .and_then(|known| known.value.as_ref())
        .is_some_and(|intention| denies_all(intention, found.chain.protocol))
    {
        // Proxies look at intentions when a connection begins, and the gateway's live long: without an endpoint Envoy
        // closes those it has, so that a denial is in force for it too.
        return Some(Resolved {
            value: Vec::new(),
            diagnostics,
        });
    }
    let Some(sidecars) = &known.value else {
        return known.problem.is_some().then_some(Resolved {
            value: Vec::new(),
            diagnostics,
        });
    };
    let by_id: HashMap<(&Arc<str>, &Arc<str>), &Instance> = applications
        .and_then(|known| known.value.as_deref())
        .unwrap_or_default()
        .iter()
        .map(|instance| ((&instance.node, &instance.id), instance))
        .collect();
    let mut endpoints = Vec::with_capacity(sidecars.len());
    let mut unusable = 0;
    for sidecar in sidecars.iter() {
        let id = sidecar.destination.as_ref().unwrap_or(&sidecar.id);
        let application = by_id.get(&(&sidecar.node, id)).copied();
        let health = application.map_or(sidecar.health, |instance| instance.health.max(sidecar.health));
        let weights = application.map_or(sidecar.weights, |instance| instance.weights);
        let weight = match health {
            Health::Passing => weights.passing,
            Health::Warning if !found.target.only_passing => weights.warning,
            Health::Warning | Health::Critical | Health::Maintenance => 0,
        };
        if weight == 0 {
            continue;
        }
        let asked = match &found.source.port {
            Some(port) => may_be_asked(port, sidecar, application),
            None => Ok(()),
        };
        match asked.and_then(|()| endpoint(sidecar, None, weight)) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err((why, fix)) => {
                unusable += 1;
                if unusable <= LEFT_OUT_SHOWN {
                    let what = format!("{:?} on node {:?} is left out", sidecar.id, sidecar.node);
                    let said = Diagnostic::warning(Code::UnusableInstance, what);
                    diagnostics.push(about(said.because(why).fix(fix)));
                }
            }
        }
    }
    endpoints.sort();
    endpoints.dedup_by(|later, first| (later.address, later.port) == (first.address, first.port));
    if endpoints.is_empty() && known.problem.is_none() {
        let subset = match &found.target.filter {
            Some(filter) => format!(" in the subset {filter:?}"),
            None => String::new(),
        };
        let service = &found.target.service;
        diagnostics.push(about(if sidecars.is_empty() && found.gateways().is_some() {
            Diagnostic::warning(
                Code::UnknownService,
                format!("no mesh gateway is registered as {dialed}, and {service:?} is in another datacenter"),
            )
            .because("requests to it answer 503")
            .fix("register one (`consul connect envoy -gateway=mesh -register`), or name it: `connect { mesh_gateway = ... }`")
        } else if sidecars.is_empty() {
            let is_registered = applications
                .and_then(|known| known.value.as_ref())
                .is_some_and(|instances| !instances.is_empty());
            let (code, message, fix) = if is_registered {
                (
                    Code::MeshProblem,
                    format!("{service:?} has instances, and none{subset} has a sidecar or speaks the mesh's TLS itself"),
                    "add `connect { sidecar_service {} }` to its registration, and run the sidecar",
                )
            } else {
                (
                    Code::UnknownService,
                    format!("no instance of {service:?}{subset} is registered in the mesh"),
                    "register the service with `connect { sidecar_service {} }`, and run its sidecar",
                )
            };
            Diagnostic::warning(code, message)
                .because("requests to it answer 503")
                .fix(fix)
        } else if unusable > 0 {
            Diagnostic::warning(
                Code::UnusableInstance,
                format!("{} of {service:?}{subset} can be used", none_of(sidecars.len(), "sidecar")),
            )
            .because("requests to it answer 503; those that are left out have problems of their own, with the reasons")
            .fix(match &found.source.port {
                Some(port) => fix_for_none(port, applications.and_then(|known| known.value.as_deref()).unwrap_or_default()),
                None => "register them with an IP address and a port".to_owned(),
            })
        } else {
            Diagnostic::warning(
                Code::NoHealthyInstance,
                format!("{} of {service:?}{subset} is healthy", none_of(sidecars.len(), "instance")),
            )
            .because("requests to it answer 503 until a check passes")
            .fix(format!("see which check fails and why, the sidecar's own among them: Consul's UI or /v1/health/connect/{service} shows its output"))
        }));
    }
    Some(Resolved {
        value: endpoints,
        diagnostics,
    })
}

/// What is wrong with a mesh upstream as a whole, while what was known of it stays. None: it is none.
pub fn chain_problems(snapshot: &Snapshot, destination: &Destination) -> Option<Vec<Diagnostic>> {
    let Destination::Backend(BackendTarget::Upstream(name)) = destination else {
        return None;
    };
    let source = connect_source(&snapshot.config, name)?;
    let identity = snapshot.mesh();
    let chain = snapshot.chain(&source.query);
    let stays = [
        chain
            .filter(|known| known.value.is_some())
            .and_then(|known| known.problem.as_ref()),
        identity.usable().and(identity.leaf.problem.as_ref()),
        identity.usable().and(identity.roots.problem.as_ref()),
    ];
    let say = |problem| {
        let mut diagnostic = Diagnostic::of_problem(Code::MeshProblem, problem);
        diagnostic.severity = Severity::Warning;
        diagnostic
            .about("upstream", name)
            .because("what was known of the mesh stays in service")
    };
    Some(stays.into_iter().flatten().map(say).collect())
}

/// The intentions that a target asks about, and whether they let nobody of ours in.
pub(super) fn denial_of(snapshot: &Snapshot, upstream: &str, target: &str) -> Option<(IntentionQuery, bool)> {
    let found = find(snapshot, upstream, target)?;
    let query = found.intention();
    let known = snapshot.intention(&query).and_then(|known| known.value.as_ref());
    let denies = known.is_some_and(|intention| denies_all(intention, found.chain.protocol));
    Some((query, denies))
}

/// What the intentions of a target say to a request, as it reaches it. None: to a connection.
pub(super) fn verdict_on(
    snapshot: &Snapshot,
    destination: &Destination,
    request: Option<&Request>,
) -> Option<String> {
    let Destination::Mesh { upstream, target } = destination else {
        return None;
    };
    let found = find(snapshot, upstream, target)?;
    let known = snapshot.intention(&found.intention())?;
    match (&known.value, &known.problem) {
        (Some(intention), _) => Some(verdict(intention, found.chain.protocol, request)),
        (None, Some(problem)) => Some(format!("not known: {problem}")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_may_lead_out_of_the_namespace_that_was_asked_for() {
        let asked = |of_target: &str, asked: Option<&str>| {
            let found = enterprise(&of_target.into(), &asked.map(Arc::from));
            found.map(|name| name.to_string())
        };
        assert_eq!(asked("default", Some("shop")).as_deref(), Some("default"));
        assert_eq!(asked("other", Some("shop")).as_deref(), Some("other"));
        assert_eq!(asked("", Some("shop")).as_deref(), Some("shop"));
        // Consul CE refuses to be told any.
        assert_eq!((asked("default", None), asked("", None)), (None, None));
    }

    #[test]
    fn the_identity_is_the_target_s_without_its_subset() {
        let mut target = ChainTarget {
            service: "web".into(),
            namespace: "default".into(),
            partition: "".into(),
            datacenter: "dc2".into(),
            peer: None,
            sni: "v1.web.default.dc2.internal.x.consul".into(),
            filter: Some("Service.Meta.version == v1".into()),
            only_passing: false,
            mesh_gateway: Default::default(),
            external: false,
        };
        assert_eq!(
            &*spiffe_id("x.consul", &target),
            "spiffe://x.consul/ns/default/dc/dc2/svc/web"
        );
        target.partition = "edge".into();
        target.service = "a/b c".into();
        assert_eq!(
            &*spiffe_id("x.consul", &target),
            "spiffe://x.consul/ap/edge/ns/default/dc/dc2/svc/a%2Fb%20c"
        );
    }
}
