//! Says which listener, host, rule and destination a request takes, and why the others do not.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use super::matching::{Request, matches, select_host};
use super::{cluster_name, endpoints, resolve_target, resolve_virtual_host};
use crate::config::{BackendTarget, Gateway, Protocol, UpstreamSource};
use crate::ir::{Action, Endpoint, Route};
use crate::model::Origin;
use crate::snapshot::Snapshot;

#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    pub gateway: Arc<str>,
    pub listener: Option<Arc<str>>,
    /// The host entry that takes the request.
    pub host: Option<Arc<str>>,
    /// The route's name, as Envoy reports it.
    pub route: Option<Arc<str>>,
    pub origin: Option<Origin>,
    pub action: Option<Action>,
    /// Policies in effect, by name.
    pub policies: serde_json::Map<String, serde_json::Value>,
    /// Per destination, the addresses that may be chosen.
    pub endpoints: Vec<(Arc<str>, Vec<String>)>,
    /// Rules looked at before, and why they did not match.
    pub considered: Vec<Considered>,
    /// What the client gets when no rule takes it.
    pub answer: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Considered {
    pub route: Arc<str>,
    pub why_not: String,
}

/// `port` is None where the request does not say: the first listener of the scheme is taken.
pub fn explain(
    snapshot: &Snapshot,
    gateway: &Gateway,
    scheme: &str,
    port: Option<u16>,
    request: &Request,
) -> Explanation {
    let mut explanation = Explanation {
        gateway: gateway.name.clone(),
        listener: None,
        host: None,
        route: None,
        origin: None,
        action: None,
        policies: serde_json::Map::new(),
        endpoints: Vec::new(),
        considered: Vec::new(),
        answer: None,
    };
    let protocol = if scheme == "https" {
        Protocol::Https
    } else {
        Protocol::Http
    };
    let listener = gateway
        .listeners
        .iter()
        .find(|listener| listener.protocol == protocol && port.is_some_and(|port| port == listener.port))
        .or_else(|| {
            gateway
                .listeners
                .iter()
                .find(|listener| port.is_none() && listener.protocol == protocol)
        });
    let Some(listener) = listener else {
        explanation.answer = Some(format!(
            "no {scheme} listener of this gateway has that port: the connection is refused"
        ));
        return explanation;
    };
    explanation.listener = Some(listener.name.clone());
    if let Some(path) = &request.redirected_to {
        explanation.answer = Some(format!(
            "307 to {path}: a path with an escaped slash is redirected to the path that it means"
        ));
        return explanation;
    }
    let hosts: Vec<&Arc<str>> = snapshot
        .config
        .hosts_of_gateway(&gateway.name)
        .filter(|host| {
            snapshot
                .config
                .routes_of_host(&gateway.name, host)
                .any(|(_, route)| {
                    route.listeners.is_empty()
                        || route.listeners.iter().any(|(name, _)| *name == listener.name)
                })
        })
        .collect();
    let Some(host) = select_host(&request.host, hosts.iter().copied()) else {
        explanation.answer = Some(format!("no route names the host {:?}: 404", request.host));
        return explanation;
    };
    explanation.host = Some(host.clone());
    let Some(resolved) = resolve_virtual_host(snapshot, gateway, listener, host) else {
        return explanation;
    };
    for route in &resolved.value.host.routes {
        match matches(&route.matching, request) {
            Ok(()) => {
                taken(snapshot, route, &resolved.value, &mut explanation);
                return explanation;
            }
            Err(why_not) => explanation.considered.push(Considered {
                route: route.name.clone(),
                why_not,
            }),
        }
    }
    explanation.answer = Some(format!("no rule of {host:?} matches: 404"));
    explanation
}

fn taken(snapshot: &Snapshot, route: &Route, host: &super::ResolvedHost, explanation: &mut Explanation) {
    explanation.route = Some(route.name.clone());
    explanation.origin = Some(route.origin.clone());
    explanation.action = Some(route.action.clone());
    explanation.policies = route
        .policies
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_json()))
        .collect();
    if let Action::Unavailable(reason) = &route.action {
        explanation.answer = Some(format!("503, x-portreeve-reason: {}", reason.as_str()));
    }
    let Action::Forward(clusters) = &route.action else {
        return;
    };
    for cluster in clusters {
        let Some(target) = host
            .targets
            .iter()
            .find(|target| cluster_name(target) == cluster.cluster)
        else {
            continue;
        };
        let addresses = addresses_of(snapshot, target);
        explanation.endpoints.push((cluster.cluster.clone(), addresses));
    }
}

/// What may be chosen: what discovery found, or what the document says.
fn addresses_of(snapshot: &Snapshot, target: &BackendTarget) -> Vec<String> {
    match resolve_target(&snapshot.config, target).map(|(source, _)| source) {
        Some(UpstreamSource::Static(addresses)) => addresses.iter().map(ToString::to_string).collect(),
        Some(UpstreamSource::Dns(address)) => vec![format!("{address} (resolved by Envoy)")],
        Some(UpstreamSource::Consul { .. }) | None => {
            let found = endpoints(snapshot, target)
                .map(|resolved| resolved.value)
                .unwrap_or_default();
            let address = |endpoint: &Endpoint| SocketAddr::new(endpoint.address, endpoint.port).to_string();
            found.iter().map(address).collect()
        }
    }
}
