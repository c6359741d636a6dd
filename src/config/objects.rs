//! The typed objects that documents declare.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::diagnostics::Diagnostic;
use crate::model::http::{
    DirectResponse, DnsName, LoadBalancer, Redirect, RequestMatch, Rewrite, UpstreamOptions, UpstreamProtocol,
};
use crate::model::mesh::ChainQuery;
use crate::model::{CertificateQuery, Origin, Policies, ServiceQuery};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    Gateway,
    Certificate,
    HttpRoute,
    TcpRoute,
    Upstream,
    Policy,
}

impl ObjectKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Certificate => "certificate",
            Self::HttpRoute => "http_route",
            Self::TcpRoute => "tcp_route",
            Self::Upstream => "upstream",
            Self::Policy => "policy",
        }
    }
}

/// Names are unique per kind over the whole tree.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectKey {
    pub kind: ObjectKind,
    pub name: Arc<str>,
}

impl ObjectKey {
    pub fn new(kind: ObjectKind, name: &str) -> Self {
        Self {
            kind,
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind.as_str(), self.name)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Gateway(Arc<Gateway>),
    Certificate(Arc<Certificate>),
    HttpRoute(Arc<HttpRoute>),
    TcpRoute(Arc<TcpRoute>),
    Upstream(Arc<Upstream>),
    Policy(Arc<Policy>),
}

impl Object {
    /// It is not there for this agent.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self, Self::Certificate(certificate) if certificate.query.is_err())
    }

    pub fn key(&self) -> ObjectKey {
        let (kind, name) = match self {
            Self::Gateway(object) => (ObjectKind::Gateway, &object.name),
            Self::Certificate(object) => (ObjectKind::Certificate, &object.name),
            Self::HttpRoute(object) => (ObjectKind::HttpRoute, &object.name),
            Self::TcpRoute(object) => (ObjectKind::TcpRoute, &object.name),
            Self::Upstream(object) => (ObjectKind::Upstream, &object.name),
            Self::Policy(object) => (ObjectKind::Policy, &object.name),
        };
        ObjectKey {
            kind,
            name: name.clone(),
        }
    }

    pub fn origin(&self) -> &Origin {
        match self {
            Self::Gateway(object) => &object.origin,
            Self::Certificate(object) => &object.origin,
            Self::HttpRoute(object) => &object.origin,
            Self::TcpRoute(object) => &object.origin,
            Self::Upstream(object) => &object.origin,
            Self::Policy(object) => &object.origin,
        }
    }

    /// Where a name is declared twice in one document, or two routes claim one match, the earlier place comes first.
    pub(super) fn place(&self) -> usize {
        self.origin().span.start
    }

    /// What requests or connections take, if this is one.
    pub fn route(&self) -> Option<RouteRef<'_>> {
        match self {
            Self::HttpRoute(route) => Some(RouteRef::Http(route)),
            Self::TcpRoute(route) => Some(RouteRef::Tcp(route)),
            Self::Gateway(_) | Self::Certificate(_) | Self::Upstream(_) | Self::Policy(_) => None,
        }
    }

    /// The objects this one names.
    pub fn references(&self) -> Vec<ObjectKey> {
        let mut keys = Vec::new();
        let mut bundles = |scope: &Scope| {
            keys.extend(
                scope
                    .bundles
                    .iter()
                    .map(|(name, _)| ObjectKey::new(ObjectKind::Policy, name)),
            );
        };
        match self {
            Self::Gateway(gateway) => {
                bundles(&gateway.scope);
                gateway
                    .listeners
                    .iter()
                    .for_each(|listener| bundles(&listener.scope));
                for tls in gateway
                    .listeners
                    .iter()
                    .filter_map(|listener| listener.tls.as_ref())
                {
                    keys.extend(
                        tls.certificates
                            .iter()
                            .map(|(name, _)| ObjectKey::new(ObjectKind::Certificate, name)),
                    );
                }
            }
            Self::HttpRoute(route) => {
                bundles(&route.scope);
                route.rules.iter().for_each(|rule| bundles(&rule.scope));
            }
            Self::TcpRoute(_) | Self::Certificate(_) | Self::Upstream(_) | Self::Policy(_) => {}
        }
        if let Some(route) = self.route() {
            let gateways = route.gateways().iter();
            keys.extend(gateways.map(|(name, _)| ObjectKey::new(ObjectKind::Gateway, name)));
            keys.extend(route.backends().filter_map(|backend| match &backend.target {
                BackendTarget::Upstream(name) => Some(ObjectKey::new(ObjectKind::Upstream, name)),
                BackendTarget::Consul(_) => None,
            }));
        }
        keys.sort();
        keys.dedup();
        keys
    }
}

/// What stands on one scope: named bundles first, then the scope's own blocks, which win.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scope {
    pub bundles: Vec<(Arc<str>, Origin)>,
    pub policies: Policies,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    pub name: Arc<str>,
    pub origin: Origin,
    pub listeners: Vec<Listener>,
    pub scope: Scope,
    /// What was written of its policies, and of those of the listener that has most, about.
    pub policy_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    Http,
    Https,
    Tcp,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tcp => "tcp",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    pub name: Arc<str>,
    pub origin: Origin,
    /// None: the agent's `bind_addr`.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub protocol: Protocol,
    /// Always with https, never with http.
    pub tls: Option<ListenerTls>,
    /// How many proxies in front of us write X-Forwarded-For.
    pub trusted_proxies: u32,
    pub idle_timeout: Duration,
    pub stream_idle_timeout: Duration,
    pub request_headers_timeout: Duration,
    pub max_request_headers_kb: u32,
    pub health_check_path: Option<Arc<str>>,
    pub max_connections: Option<u32>,
    pub scope: Scope,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ListenerTls {
    pub certificates: Vec<(Arc<str>, Origin)>,
    /// "1.2" or "1.3".
    pub min_version: Arc<str>,
    pub client_ca: Option<ClientCa>,
}

/// Whose certificates clients show.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientCa {
    pub query: CertificateQuery,
    /// False: a client may come without one; one that it shows must be good all the same.
    pub require: bool,
    /// Backends are told whose certificate it was.
    pub forward: bool,
    pub origin: Origin,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Certificate {
    pub name: Arc<str>,
    pub origin: Origin,
    /// What is not allowed cannot be asked for: nothing here says where it is.
    pub query: Result<CertificateQuery, NotAllowed>,
}

/// A certificate that documents from KV may not use here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAllowed {
    /// Where it would come from, for people.
    pub source: Arc<str>,
    /// Why not, each at its place in the document.
    pub problems: Arc<[Diagnostic]>,
}

impl Certificate {
    /// Where it is read. None: it may not be.
    pub fn allowed(&self) -> Option<&CertificateQuery> {
        self.query.as_ref().ok()
    }

    /// Where it comes from, for people.
    pub fn source(&self) -> &dyn fmt::Display {
        match &self.query {
            Ok(query) => query,
            Err(refused) => &refused.source,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    pub name: Arc<str>,
    pub origin: Origin,
    pub gateways: Vec<(Arc<str>, Origin)>,
    /// Empty: every listener of the gateways.
    pub listeners: Vec<(Arc<str>, Origin)>,
    pub hostnames: Vec<Arc<str>>,
    pub rules: Vec<Rule>,
    pub scope: Scope,
    /// Its own and those of its neighbours, rounded up to a power of two.
    pub claims_of_document: usize,
}

impl HttpRoute {
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.rules.iter().flat_map(|rule| match &rule.action {
            RuleAction::Forward(backends) => &backends[..],
            RuleAction::Redirect(_) | RuleAction::Respond(_) => &[],
        })
    }
}

/// Where the connections of some listeners go.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpRoute {
    pub name: Arc<str>,
    pub origin: Origin,
    pub gateways: Vec<(Arc<str>, Origin)>,
    pub listeners: Vec<(Arc<str>, Origin)>,
    pub backends: Vec<Backend>,
    /// Instances tried for one connection.
    pub connect_attempts: u32,
}

/// A route of any kind, by what all kinds have.
#[derive(Clone, Copy, Debug)]
pub enum RouteRef<'a> {
    Http(&'a Arc<HttpRoute>),
    Tcp(&'a Arc<TcpRoute>),
}

impl<'a> RouteRef<'a> {
    pub fn kind(self) -> ObjectKind {
        match self {
            Self::Http(_) => ObjectKind::HttpRoute,
            Self::Tcp(_) => ObjectKind::TcpRoute,
        }
    }

    pub fn name(self) -> &'a Arc<str> {
        match self {
            Self::Http(route) => &route.name,
            Self::Tcp(route) => &route.name,
        }
    }

    pub fn origin(self) -> &'a Origin {
        match self {
            Self::Http(route) => &route.origin,
            Self::Tcp(route) => &route.origin,
        }
    }

    pub fn gateways(self) -> &'a [(Arc<str>, Origin)] {
        match self {
            Self::Http(route) => &route.gateways,
            Self::Tcp(route) => &route.gateways,
        }
    }

    pub fn listeners(self) -> &'a [(Arc<str>, Origin)] {
        match self {
            Self::Http(route) => &route.listeners,
            Self::Tcp(route) => &route.listeners,
        }
    }

    /// Whether a listener that speaks this can serve it.
    pub fn goes_with(self, protocol: Protocol) -> bool {
        match self {
            Self::Http(_) => matches!(protocol, Protocol::Http | Protocol::Https),
            Self::Tcp(_) => protocol == Protocol::Tcp,
        }
    }

    pub fn backends(self) -> Box<dyn Iterator<Item = &'a Backend> + 'a> {
        match self {
            Self::Http(route) => Box::new(route.backends()),
            Self::Tcp(route) => Box::new(route.backends.iter()),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub name: Arc<str>,
    pub origin: Origin,
    /// Any of these. Never empty.
    pub matches: Vec<RequestMatch>,
    pub rewrite: Option<Rewrite>,
    pub action: RuleAction,
    pub scope: Scope,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RuleAction {
    Forward(Vec<Backend>),
    Redirect(Redirect),
    Respond(DirectResponse),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    pub target: BackendTarget,
    pub weight: u32,
    /// Those that Envoy can do for one destination of several.
    pub policies: Policies,
    pub origin: Origin,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendTarget {
    /// A service of the local datacenter, with an upstream's defaults.
    Consul(Arc<str>),
    Upstream(Arc<str>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    pub name: Arc<str>,
    pub origin: Origin,
    pub source: UpstreamSource,
    pub options: UpstreamOptions,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamSource {
    Consul {
        query: ServiceQuery,
        /// Asked too, and used in this order while those before have no healthy instance.
        failover: Vec<ServiceQuery>,
        /// A named port (Consul 1.22 and newer).
        port: Option<Arc<str>>,
        /// Leaves instances in warning out.
        only_passing: bool,
    },
    /// Nomad's native services, or what it has of that name in every namespace.
    Nomad { query: ServiceQuery },
    /// A service of the mesh that the gateway's own sidecar dials.
    Sidecar { query: ServiceQuery },
    /// `host:port`, addresses only.
    Static(Vec<Arc<str>>),
    /// Resolved by Envoy.
    Dns(DnsName),
    /// A service of Consul's mesh.
    Connect(ConnectSource),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConnectSource {
    pub query: ChainQuery,
    /// The name that mesh gateways are registered under.
    pub mesh_gateway: Arc<str>,
    /// A named port, dialed past the discovery chain (Consul Enterprise 2.0 and newer).
    pub port: Option<Arc<str>>,
    /// Set by the document over what the discovery chain says.
    pub protocol: Option<UpstreamProtocol>,
    pub load_balancer: Option<LoadBalancer>,
    pub connect_timeout: Option<Duration>,
}

impl UpstreamSource {
    /// The watches that feed it, the preferred one first. Empty: the document says it all.
    pub fn queries(&self) -> Vec<&ServiceQuery> {
        match self {
            Self::Consul { query, failover, .. } => std::iter::once(query).chain(failover).collect(),
            Self::Nomad { query } | Self::Sidecar { query } => vec![query],
            // What its discovery chain says, when that is known.
            Self::Connect(_) => Vec::new(),
            Self::Static(_) | Self::Dns(_) => Vec::new(),
        }
    }

    /// The watch without whose answer nothing can be said.
    pub fn first_query(&self) -> Option<&ServiceQuery> {
        self.queries().first().copied()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub name: Arc<str>,
    pub origin: Origin,
    pub policies: Policies,
    /// What was written of them, about.
    pub bytes: usize,
}
