//! Where a tcp listener's connections go.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::backend::{Backends, choices};
use super::chain::{Choices, Leg, compose};
use super::mesh::denial_of;
use super::{Destination, Resolved};
use crate::config::{BackendTarget, Gateway, Listener, Protocol, RouteRef, TcpRoute};
use crate::diagnostics::{Code, Diagnostic, Severity};
use crate::ir::{Serves, TcpProxy, Unavailable};
use crate::model::DocumentId;
use crate::model::http::RequestMatch;
use crate::model::mesh::{HashOn, Interest};
use crate::snapshot::Snapshot;

/// The route of a tcp listener, and what it depends on.
#[derive(Clone, Debug)]
pub struct ResolvedTcp {
    /// Err: nobody can take a connection, and why.
    pub proxy: Result<TcpProxy, Unavailable>,
    pub route: Arc<TcpRoute>,
    pub targets: BTreeSet<Destination>,
    /// Watches that have not answered yet.
    pub pending: BTreeSet<Interest>,
    /// Watches that the route was made from.
    pub follows: BTreeSet<Interest>,
    pub origins: Vec<DocumentId>,
}

/// None: the listener does not speak plain TCP, or no route names it.
pub fn resolve_tcp(
    snapshot: &Snapshot,
    gateway: &Gateway,
    listener: &Listener,
) -> Option<Resolved<ResolvedTcp>> {
    if listener.protocol != Protocol::Tcp {
        return None;
    }
    let config = &snapshot.config;
    let mut claims = config.tcp_routes_of(&gateway.name, &listener.name);
    let route = claims.next()?.clone();
    let mut backends = Backends::new(snapshot);
    for loser in claims {
        backends.diagnostics.push(
            Diagnostic::error(
                Code::ShadowedRule,
                format!("the listener {:?} has a tcp_route already", listener.name),
            )
            .at(loser.origin.clone())
            .about("tcp_route", &loser.name)
            .because(format!(
                "tcp_route {:?} ({}) has it: the older document wins",
                route.name, route.origin
            ))
            .fix("take the listener out of one of the two; a share of the connections is given by several backends in one route"),
        );
    }
    let proxy = proxy(&mut backends, &route);
    let mut origins = BTreeSet::from([route.origin.document.clone()]);
    for target in &backends.targets {
        if let Destination::Backend(BackendTarget::Upstream(name)) = target {
            origins.extend(
                config
                    .upstream(name)
                    .map(|upstream| upstream.origin.document.clone()),
            );
        }
    }
    Some(Resolved {
        diagnostics: backends.diagnostics,
        value: ResolvedTcp {
            proxy,
            route,
            targets: backends.targets,
            pending: backends.pending,
            follows: backends.follows,
            origins: origins.into_iter().collect(),
        },
    })
}

/// As a tcp listener, by its route. Err: nobody can take its connections, and a port that closes each is worse than a
/// closed one: who balances over several gateways sees the difference.
pub fn serves_tcp(
    gateway: &Gateway,
    listener: &Listener,
    route: Option<&Result<TcpProxy, Unavailable>>,
) -> Result<Serves, Box<Diagnostic>> {
    let name = &listener.name;
    let (severity, said, fix) = match route {
        Some(Ok(proxy)) => return Ok(Serves::Tcp(proxy.clone())),
        Some(Err(Unavailable::NotYetKnown)) => (
            Severity::Warning,
            format!("the listener {name:?} is not opened until its backends are known"),
            "wait a moment; if it stays, `portreeve status` says how their sources are".to_owned(),
        ),
        Some(Err(_)) => (
            Severity::Error,
            format!("the listener {name:?} has no usable backend and is not opened"),
            "mend its tcp_route: what is wrong with each backend is said there".to_owned(),
        ),
        None => (
            Severity::Warning,
            format!("no tcp_route names the listener {name:?}: it is not opened"),
            format!(
                "write `tcp_route \"<name>\" {{ ... }}` with gateways = [{:?}] and listeners = [{name:?}]",
                gateway.name
            ),
        ),
    };
    let withheld = Diagnostic::error(Code::ListenerWithheld, said)
        .at(listener.origin.clone())
        .about("gateway", &gateway.name)
        .because("a port whose connections are all closed again is worse than a closed one")
        .fix(fix);
    Err(Box::new(Diagnostic { severity, ..withheld }))
}

fn proxy(backends: &mut Backends<'_>, route: &Arc<TcpRoute>) -> Result<TcpProxy, Unavailable> {
    let mut usable: Vec<Choices<'_>> = Vec::new();
    let mut why = Unavailable::NoBackend;
    for backend in route.backends.iter().filter(|backend| backend.weight > 0) {
        match backends.usable(RouteRef::Tcp(route), backend) {
            Ok(how) => usable.push(choices(backend, how)),
            Err(reason) => why = reason,
        }
    }
    if usable.is_empty() {
        if why == Unavailable::NoBackend {
            backends.diagnostics.push(
                Diagnostic::warning(
                    Code::NoBackend,
                    format!("every backend of the tcp_route {:?} has weight 0", route.name),
                )
                .at(route.origin.clone())
                .about("tcp_route", &route.name)
                .because("the ports of its listeners are closed: nobody is left to take a connection")
                .fix("give one backend a weight above 0"),
            );
        }
        return Err(why);
    }
    let any = RequestMatch::any();
    let composed = compose(&any, None, &usable);
    let outcome = composed.and_then(|mut composed| match composed.pop() {
        // A service router's routes but the last ask for something of a request.
        Some(whole) if composed.is_empty() && whole.matching == any => whole.outcome,
        _ => {
            Err("a service router chooses by HTTP request, and a tcp_route sees connections only".to_owned())
        }
    });
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(reason) => {
            backends.diagnostics.push(
                Diagnostic::error(Code::NotExpressible, reason)
                    .at(route.origin.clone())
                    .about("tcp_route", &route.name)
                    .because("the ports of its listeners are closed: connections would go where the mesh does not send them")
                    .fix("reach the service by an http_route, or by a service of its own without a service-router"),
            );
            return Err(Unavailable::NotExpressible);
        }
    };
    if outcome.legs.is_empty() {
        return Err(outcome.left_out.unwrap_or(Unavailable::NoBackend));
    }
    if is_denied(backends, &outcome.legs) {
        return Err(Unavailable::MeshUnavailable);
    }
    Ok(TcpProxy {
        route: route.name.clone(),
        clusters: backends.forward(&outcome.legs),
        connect_attempts: route.connect_attempts,
        hash_source_ip: outcome
            .settings
            .hash
            .iter()
            .any(|hash| hash.on == HashOn::SourceIp),
    })
}

/// No destination would let a connection in. Those that stand would outlive the denial: proxies look at intentions when a
/// connection begins, and a connection that is passed on does not end with its endpoint, only with its listener.
fn is_denied(backends: &mut Backends<'_>, legs: &[(Leg, f64)]) -> bool {
    let mut denied: BTreeSet<Destination> = BTreeSet::new();
    for destination in &backends.targets {
        let Destination::Mesh { upstream, target } = destination else {
            continue;
        };
        if let Some((query, denies)) = denial_of(backends.snapshot, upstream, target) {
            let interest = Interest::intention(query);
            // A denial that comes a moment later would have opened the port for that moment.
            if !backends.snapshot.answered(&interest) {
                backends.pending.insert(interest.clone());
            }
            backends.follows.insert(interest);
            if denies {
                denied.insert(destination.clone());
            }
        }
    }
    legs.iter().all(|(leg, _)| match &leg.destination {
        Destination::Backend(_) => false,
        Destination::Mesh { .. } => denied.contains(&leg.destination),
        Destination::Failover { upstream, .. } => {
            let mut targets = backends
                .targets
                .iter()
                .filter(|known| matches!(known, Destination::Mesh { upstream: of, .. } if of == upstream));
            targets.all(|target| denied.contains(target))
        }
    })
}
