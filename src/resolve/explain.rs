//! Says which listener, host, rule and destination a request takes, and why the others do not.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use regex::Regex;
use serde::Serialize;

use super::elsewhere::{Elsewhere, other_hosts, other_listeners};
use super::matching::{Request, matches, select_host};
use super::mesh::verdict_on;
use super::{
    Destination, client_ca_of, cluster_name, endpoints, resolve_listener, resolve_target, resolve_tcp,
    resolve_virtual_host, serves_http, serves_tcp,
};
use crate::config::{ClientCa, Gateway, Listener, Protocol, UpstreamSource};
use crate::ir::{Action, Endpoint, Route, Routing, Tls, WeightedCluster};
use crate::model::http::{PathMatch, PathRewrite};
use crate::model::{CertificateQuery, Origin};
use crate::snapshot::Snapshot;

#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    pub gateway: Arc<str>,
    pub listener: Option<Arc<str>>,
    /// Why that listener is not open on some Envoys, or on all. Whoever asks fills it in, where the Envoys are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<String>,
    /// What an https listener shows the client.
    pub certificate: Option<Arc<str>>,
    /// What it asks of the client's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<String>,
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
    /// Per destination in the mesh, what its intentions say to this request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub intentions: Vec<(Arc<str>, String)>,
    /// Rules looked at before, and why they did not match.
    pub considered: Vec<Considered>,
    /// Rules of the host that were not looked at any more, or never are.
    pub later: Vec<Considered>,
    /// Other listeners and hosts, and why they are not it.
    pub elsewhere: Vec<Elsewhere>,
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
        closed: None,
        certificate: None,
        clients: None,
        host: None,
        route: None,
        origin: None,
        action: None,
        policies: serde_json::Map::new(),
        endpoints: Vec::new(),
        intentions: Vec::new(),
        considered: Vec::new(),
        later: Vec::new(),
        elsewhere: Vec::new(),
        answer: None,
    };
    let protocol = match scheme {
        "https" => Protocol::Https,
        "tcp" => Protocol::Tcp,
        _ => Protocol::Http,
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
    explanation.elsewhere = other_listeners(gateway, listener, protocol, port);
    let Some(listener) = listener else {
        explanation.answer = Some(format!(
            "no {scheme} listener of this gateway has that port: the connection is refused"
        ));
        return explanation;
    };
    explanation.listener = Some(listener.name.clone());
    if listener.tls.is_some() {
        match certificate(snapshot, gateway, listener, request.server_name.as_deref()) {
            Ok(certificate) => explanation.certificate = Some(certificate),
            Err(answer) => {
                explanation.answer = Some(answer);
                return explanation;
            }
        }
        explanation.clients = client_ca_of(gateway, &listener.name)
            .map(|client_ca| asked_of_clients(snapshot, gateway, listener, client_ca));
    }
    if listener.protocol == Protocol::Tcp {
        connection(snapshot, gateway, listener, &mut explanation);
        return explanation;
    }
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
    let host = select_host(&request.host, hosts.iter().copied());
    explanation
        .elsewhere
        .extend(other_hosts(snapshot, gateway, listener, &request.host, host));
    let Some(host) = host else {
        explanation.answer = Some(format!("no route names the host {:?}: 404", request.host));
        return explanation;
    };
    explanation.host = Some(host.clone());
    if let Some(name) = &request.server_name
        && listener.tls.is_some()
        && is_misdirected(host, name)
    {
        explanation.answer = Some(format!(
            "421: the connection was opened for {name:?}, and {host:?} is another host; clients open one for it and ask again"
        ));
        return explanation;
    }
    let Some(resolved) = resolve_virtual_host(snapshot, gateway, listener, host) else {
        return explanation;
    };
    for route in &resolved.value.host.routes {
        let matched = matches(&route.matching, request);
        if let Some(winner) = &explanation.route {
            let why_not = match matched {
                Ok(()) => {
                    format!("it matches too, and comes after {winner}, which is more specific or older")
                }
                Err(why_not) => why_not,
            };
            explanation.later.push(Considered {
                route: route.name.clone(),
                why_not,
            });
            continue;
        }
        match matched {
            Ok(()) => taken(snapshot, route, &resolved.value, request, &mut explanation),
            Err(why_not) => explanation.considered.push(Considered {
                route: route.name.clone(),
                why_not,
            }),
        }
    }
    explanation
        .later
        .extend(resolved.value.shadowed.iter().map(|(route, holder)| Considered {
            route: route.clone(),
            why_not: format!("never reached: {holder} matches exactly the same and comes first"),
        }));
    if explanation.route.is_none() {
        explanation.answer = Some(format!("no rule of {host:?} matches: 404"));
    }
    explanation
}

/// Those of before an edit are in force until the ones that are declared have answered.
fn asked_of_clients(
    snapshot: &Snapshot,
    gateway: &Gateway,
    listener: &Listener,
    client_ca: &ClientCa,
) -> String {
    let former = snapshot.former_authorities(&gateway.name, &listener.name);
    let query = former.unwrap_or(&client_ca.query);
    let revoked = match query {
        CertificateQuery::ClientCa(source) if source.checks_revocation() => ", not revoked",
        _ => "",
    };
    let until = match former {
        Some(_) => format!(" (until {} has answered)", client_ca.query),
        None => String::new(),
    };
    match client_ca.require {
        true => format!("must show a certificate by {query}{revoked}{until}"),
        false => format!("may show a certificate; one that is shown must be by {query}{revoked}{until}"),
    }
}

/// The certificate that a client is shown, or what it gets instead.
fn certificate(
    snapshot: &Snapshot,
    gateway: &Gateway,
    listener: &Listener,
    server_name: Option<&str>,
) -> Result<Arc<str>, String> {
    let anywhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let resolved = resolve_listener(
        snapshot,
        gateway,
        listener,
        (anywhere, &[]),
        (Ok(serves_http(listener, Routing::Scoped, Vec::new())), &[]),
    );
    let Some(tls) = resolved.value.and_then(|listener| listener.tls) else {
        let why = resolved
            .diagnostics
            .iter()
            .map(|diagnostic| diagnostic.message.as_str());
        return Err(format!(
            "the connection is refused: {}",
            why.collect::<Vec<_>>().join("; ")
        ));
    };
    let Some(name) = server_name else {
        return Err(
            "the handshake is refused: for an IP address clients send no name (SNI), and the certificate is \
                    chosen by it"
                .to_owned(),
        );
    };
    certificate_for(&tls, name).ok_or_else(|| {
        let covered = tls.chains.iter().flat_map(|chain| &chain.server_names);
        let covered: Vec<String> = covered.take(8).map(|name| format!("{name:?}")).collect();
        format!(
            "the handshake is refused: no certificate of the listener covers {name:?}; covered are: {}",
            covered.join(", ")
        )
    })
}

/// As Envoy chooses a chain: the exact name, then the longest wildcard.
fn certificate_for(tls: &Tls, name: &str) -> Option<Arc<str>> {
    let with = |wanted: &str| {
        let chain = tls
            .chains
            .iter()
            .find(|chain| chain.server_names.iter().any(|covered| **covered == *wanted))?;
        Some(
            chain
                .secret
                .strip_prefix("certificate/")
                .unwrap_or(&chain.secret)
                .into(),
        )
    };
    let parents = std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, parent)| parent));
    with(name).or_else(|| parents.skip(1).find_map(|parent| with(&format!("*.{parent}"))))
}

/// What `translate` has Envoy compare before any rule.
fn is_misdirected(host: &str, server_name: &str) -> bool {
    match host.strip_prefix('*') {
        Some("") => false,
        Some(suffix) => !server_name.ends_with(suffix),
        None => server_name != host,
    }
}

fn taken(
    snapshot: &Snapshot,
    route: &Route,
    host: &super::ResolvedHost,
    request: &Request,
    explanation: &mut Explanation,
) {
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
    let mut as_it_arrives = request.clone();
    if let Some(path) = route.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref()) {
        as_it_arrives.path = rewritten(path, &route.matching.path, &request.path);
    }
    destinations(
        snapshot,
        clusters,
        &host.targets,
        Some(&as_it_arrives),
        explanation,
    );
}

/// What a tcp listener does with a connection.
fn connection(snapshot: &Snapshot, gateway: &Gateway, listener: &Listener, explanation: &mut Explanation) {
    let resolved = resolve_tcp(snapshot, gateway, listener).map(|resolved| resolved.value);
    let proxy = resolved.as_ref().map(|resolved| &resolved.proxy);
    if let Err(nobody) = serves_tcp(gateway, listener, proxy) {
        explanation.answer = Some(format!("the connection is refused: {}", nobody.message));
    }
    let Some(resolved) = resolved else { return };
    explanation.route = Some(resolved.route.name.clone());
    explanation.origin = Some(resolved.route.origin.clone());
    if let Ok(proxy) = resolved.proxy {
        destinations(snapshot, &proxy.clusters, &resolved.targets, None, explanation);
        explanation.action = Some(Action::Forward(proxy.clusters.into()));
        return;
    }
    // A denial closes the port: by which intention is what one asks for.
    for target in &resolved.targets {
        let verdict = verdict_on(snapshot, target, None);
        explanation
            .intentions
            .extend(verdict.map(|verdict| (cluster_name(target), verdict)));
    }
}

/// Where the clusters lead, and what their intentions say.
fn destinations(
    snapshot: &Snapshot,
    clusters: &[WeightedCluster],
    targets: &BTreeSet<Destination>,
    request: Option<&Request>,
    explanation: &mut Explanation,
) {
    for cluster in clusters {
        let names = std::iter::once(&cluster.cluster).chain(&cluster.members);
        for name in names {
            let Some(target) = targets.iter().find(|target| cluster_name(target) == *name) else {
                continue;
            };
            let addresses = addresses_of(snapshot, target);
            if !matches!(target, Destination::Failover { .. }) {
                explanation.endpoints.push((name.clone(), addresses));
            }
            if let Some(verdict) = verdict_on(snapshot, target, request) {
                explanation.intentions.push((name.clone(), verdict));
            }
        }
    }
}

/// The path as the destination sees it.
fn rewritten(rewrite: &PathRewrite, matched: &PathMatch, path: &str) -> String {
    let substituted = |pattern: &str, with: &str| match Regex::new(pattern) {
        Ok(regex) => regex.replace(path, regex::NoExpand(with)).into_owned(),
        Err(_) => path.to_owned(),
    };
    match (rewrite, matched) {
        (PathRewrite::Full(path), _) => path.to_string(),
        (PathRewrite::Substitute { pattern, with }, _) => substituted(pattern, with),
        (PathRewrite::Prefix(to), PathMatch::Prefix(from)) => match (&**from, &**to) {
            ("/", "/") => path.to_owned(),
            ("/", to) => format!("{to}{path}"),
            (from, "/") => substituted(&format!("^{}/*", regex::escape(from)), "/"),
            (from, to) => substituted(&format!("^{}", regex::escape(from)), to),
        },
        (PathRewrite::Prefix(_), _) => path.to_owned(),
    }
}

/// What may be chosen: what discovery found, or what the document says.
fn addresses_of(snapshot: &Snapshot, destination: &Destination) -> Vec<String> {
    let source = match destination {
        Destination::Backend(target) => resolve_target(&snapshot.config, target).map(|(source, _)| source),
        Destination::Mesh { .. } | Destination::Failover { .. } => None,
    };
    match source.as_deref() {
        Some(UpstreamSource::Static(addresses)) => addresses.iter().map(ToString::to_string).collect(),
        Some(UpstreamSource::Dns(name)) => vec![format!("{} (resolved by Envoy)", name.address)],
        Some(
            UpstreamSource::Consul { .. }
            | UpstreamSource::Connect(_)
            | UpstreamSource::Nomad { .. }
            | UpstreamSource::Sidecar { .. },
        )
        | None => {
            let found = endpoints(snapshot, destination)
                .map(|resolved| resolved.value)
                .unwrap_or_default();
            let address = |endpoint: &Endpoint| SocketAddr::new(endpoint.address, endpoint.port).to_string();
            found.iter().map(address).collect()
        }
    }
}
