//! The resolved tree of one gateway: every reference is found, or is a value that says why not.
//!
//! Neutral: no HCL, no Consul, no protobuf. The unit is one virtual host, one listener, one cluster.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::model::http::{
    DirectResponse, DnsName, HeaderEdits, Redirect, RequestMatch, Rewrite, UpstreamOptions,
};
use crate::model::mesh::{BalancerPolicy, ChainRetry, HashPolicy, MeshLeaf, MeshRoots};
use crate::model::{CertificateMaterial, DocumentId, Origin, Policies};

/// One host of one listener, with its routes in the order in which they are tried.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    pub listener: Arc<str>,
    pub host: Arc<str>,
    pub routes: Vec<Route>,
    /// An https listener: a request whose SNI names another host is answered 421.
    pub checks_sni: bool,
    /// The listener's, which ends requests on which nothing moves; zero for none.
    pub stream_idle_timeout: Duration,
    pub origins: Vec<DocumentId>,
}

#[derive(Clone, Debug)]
pub struct Route {
    /// What Envoy reports as route name, and what `explain` says: `<http_route>/<rule>`, with `#n` for a second match block.
    pub name: Arc<str>,
    pub matching: RequestMatch,
    pub rewrite: Option<Rewrite>,
    pub action: Action,
    /// What the mesh asks for; the route's own policies win.
    pub chain: Option<Box<ChainSettings>>,
    pub policies: Policies,
    pub origin: Origin,
}

#[cfg(test)]
impl Route {
    /// For tests of those who look at matches alone: it leads nowhere.
    pub(crate) fn to_nowhere(name: &str, path: crate::model::http::PathMatch) -> Self {
        Self {
            name: name.into(),
            matching: RequestMatch {
                path,
                ..RequestMatch::any()
            },
            rewrite: None,
            action: Action::Forward([].into()),
            chain: None,
            policies: Policies::default(),
            origin: Origin {
                document: DocumentId::Kv("p/config/a".into()),
                span: crate::model::Span::default(),
                line: 1,
                column: 1,
            },
        }
    }
}

/// What a discovery chain says about a route beside its clusters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChainSettings {
    pub timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub retry: Option<ChainRetry>,
    pub hash: Vec<HashPolicy>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Forward(Arc<[WeightedCluster]>),
    Redirect(Box<Redirect>),
    Respond(Box<DirectResponse>),
    /// 503 with this reason in a header: what the rule asks for cannot be done.
    Unavailable(Unavailable),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unavailable {
    NoBackend,
    UnknownUpstream,
    NotYetKnown,
    PolicyUnresolved,
    /// The mesh cannot be entered: no certificate, or no discovery chain.
    MeshUnavailable,
    /// A service of the mesh that does not speak HTTP.
    ProtocolMismatch,
    /// A discovery chain and a rule that Envoy cannot do together.
    NotExpressible,
}

impl Unavailable {
    /// The value of `x-portreeve-reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoBackend => "no-backend",
            Self::UnknownUpstream => "unknown-upstream",
            Self::NotYetKnown => "not-yet-known",
            Self::PolicyUnresolved => "policy-unresolved",
            Self::MeshUnavailable => "mesh-unavailable",
            Self::ProtocolMismatch => "protocol-mismatch",
            Self::NotExpressible => "not-expressible",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WeightedCluster {
    pub cluster: Arc<str>,
    pub weight: u32,
    /// What stands on the backend itself, over the route's.
    #[serde(skip_serializing_if = "Policies::is_empty")]
    pub policies: Policies,
    /// Clusters that this one falls back on: they must be in place with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Arc<str>>,
    #[serde(skip_serializing_if = "HeaderEdits::is_empty")]
    pub request_headers: HeaderEdits,
    #[serde(skip_serializing_if = "HeaderEdits::is_empty")]
    pub response_headers: HeaderEdits,
}

impl WeightedCluster {
    pub fn plain(cluster: Arc<str>, weight: u32) -> Self {
        Self {
            cluster,
            weight,
            policies: Policies::default(),
            members: Vec::new(),
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Cluster {
    pub name: Arc<str>,
    pub source: ClusterSource,
    /// None: plain text.
    pub tls: Option<MeshTls>,
    pub options: UpstreamOptions,
    /// In place of the options' own.
    pub balancer: Option<BalancerPolicy>,
    /// Only tcp_routes lead here: instances that refuse a connection are left out for a while.
    pub only_connections: bool,
    pub origins: Vec<DocumentId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterSource {
    /// Endpoints come apart, in their own lane.
    Discovered,
    /// `address:port`.
    Static(Vec<Arc<str>>),
    Dns(DnsName),
    /// Other clusters, each for when all before it are unhealthy.
    Failover(Vec<Arc<str>>),
}

/// The mesh's TLS: our leaf is shown, and the other side must be who Consul says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshTls {
    pub sni: Arc<str>,
    /// The exact SPIFFE id.
    pub peer: Arc<str>,
    /// Only where the destination says that it speaks HTTP/2: a proxy of plain TCP may offer it and not understand it.
    pub http2: bool,
    /// The named port that the other side is asked for.
    pub port: Option<Arc<str>>,
}

/// One address that serves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
    /// Used while no endpoint of a lower number is there.
    pub priority: u32,
    pub weight: u32,
}

#[derive(Clone, Debug)]
pub struct Listener {
    pub name: Arc<str>,
    pub address: IpAddr,
    pub port: u16,
    /// None: in the clear.
    pub tls: Option<Tls>,
    pub serves: Serves,
    pub idle_timeout: Duration,
    pub origins: Vec<DocumentId>,
}

/// What becomes of a listener's connections.
#[derive(Clone, Debug)]
pub enum Serves {
    Http(Http),
    Tcp(TcpProxy),
}

#[derive(Clone, Debug)]
pub struct Http {
    pub routing: Routing,
    pub trusted_proxies: u32,
    pub stream_idle_timeout: Duration,
    pub request_headers_timeout: Duration,
    pub max_request_headers_kb: u32,
    /// Where a load balancer in front asks whether to send requests.
    pub health_check_path: Option<Arc<str>>,
    /// Names of the features whose filters the chain holds, because some route asks for them.
    pub features: Vec<&'static str>,
}

/// Connections passed on as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpProxy {
    /// The tcp_route's name.
    pub route: Arc<str>,
    /// Never empty.
    pub clusters: Vec<WeightedCluster>,
    pub connect_attempts: u32,
    /// An instance is picked by the client's address.
    pub hash_source_ip: bool,
}

/// How Envoy finds a host's routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// One scope per host: a change costs that host alone. All hosts are exact.
    Scoped,
    /// One table for the listener: wildcards need it.
    Table,
}

#[derive(Clone, Debug)]
pub struct Tls {
    pub chains: Vec<TlsChain>,
    pub min_version: Arc<str>,
    pub clients: Option<ClientTls>,
}

/// Whose certificates clients show.
#[derive(Clone, Debug)]
pub struct ClientTls {
    pub secret: Arc<str>,
    /// False: one without a certificate is let in too.
    pub require: bool,
    /// Backends are told who the client is.
    pub forward: bool,
}

/// One certificate and the SNI names it is served for.
#[derive(Clone, Debug)]
pub struct TlsChain {
    pub secret: Arc<str>,
    pub server_names: Vec<Arc<str>>,
}

#[derive(Clone, Debug)]
pub struct Secret {
    pub name: Arc<str>,
    pub content: SecretContent,
    pub origins: Vec<DocumentId>,
}

#[derive(Clone, Debug)]
pub enum SecretContent {
    Certificate(Arc<CertificateMaterial>),
    /// Whose certificates a listener's clients may show, and what of them was revoked.
    ClientCa(Arc<CertificateMaterial>),
    /// The gateway's own, in the mesh.
    MeshLeaf(Arc<MeshLeaf>),
    MeshRoots(Arc<MeshRoots>),
}

/// Names of the mesh's secrets.
pub const MESH_LEAF: &str = "mesh/leaf";
pub const MESH_ROOTS: &str = "mesh/roots";
