//! The mesh as Consul describes it: who we are in it, how a service is reached, and who may reach whom.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::http::{HeaderEdits, ValueMatch};
use super::{CertificateMaterial, ServiceQuery};

/// Something that is watched for the sake of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Interest {
    Service(ServiceQuery),
    Chain(Arc<ChainQuery>),
    Intention(Arc<IntentionQuery>),
    /// The gateway's own certificate in the mesh, and the authorities it trusts there.
    Mesh,
}

impl Interest {
    pub fn chain(query: ChainQuery) -> Self {
        Self::Chain(Arc::new(query))
    }

    pub fn intention(query: IntentionQuery) -> Self {
        Self::Intention(Arc::new(query))
    }
}

impl fmt::Display for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(query) => write!(f, "service {query}"),
            Self::Chain(query) => write!(f, "discovery chain {query}"),
            Self::Intention(query) => write!(f, "intentions {query}"),
            Self::Mesh => f.write_str("mesh identity"),
        }
    }
}

/// One discovery chain: how Consul wants a service to be reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChainQuery {
    pub service: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<Arc<str>>,
    /// Consul Enterprise; never sent unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<Arc<str>>,
}

impl fmt::Display for ChainQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.service)?;
        for (label, value) in [
            ("dc", &self.datacenter),
            ("ns", &self.namespace),
            ("partition", &self.partition),
        ] {
            if let Some(value) = value {
                write!(f, " {label}={value}")?;
            }
        }
        Ok(())
    }
}

/// A compiled discovery chain. Ids of nodes and targets are Consul's and mean nothing by themselves: their form changed
/// between its versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    pub service: Arc<str>,
    /// Where the chain was compiled for: targets elsewhere may have to go through mesh gateways.
    pub datacenter: Arc<str>,
    pub protocol: ChainProtocol,
    pub start: Arc<str>,
    pub nodes: BTreeMap<Arc<str>, ChainNode>,
    pub targets: BTreeMap<Arc<str>, ChainTarget>,
}

impl Chain {
    /// No router, splitter or resolver entry made it.
    pub fn is_plain(&self) -> bool {
        let has_plain_target = |resolver: &ChainResolver| {
            resolver.failover.is_empty()
                && self.targets.get(&resolver.target).is_some_and(|target| {
                    target.service == self.service
                        && target.datacenter == self.datacenter
                        && target.filter.is_none()
                        && !target.external
                })
        };
        let is_plain = |node: &ChainNode| match node {
            ChainNode::Resolver(resolver) => has_plain_target(resolver),
            _ => false,
        };
        self.nodes.len() == 1 && self.nodes.values().all(is_plain)
    }

    /// Entries made the former one, and none this.
    pub fn lacks_entries_of(&self, former: &Self) -> bool {
        let lost_protocol = former.protocol != ChainProtocol::Tcp && self.protocol == ChainProtocol::Tcp;
        self.is_plain() && (!former.is_plain() || lost_protocol)
    }

    /// What Consul makes of a service of which no config entry says anything but that it speaks HTTP.
    pub fn plain(query: &ChainQuery) -> Self {
        let datacenter = query.datacenter.clone().unwrap_or_else(|| "dc1".into());
        let id: Arc<str> = format!("{}.default.{datacenter}", query.service).into();
        let start: Arc<str> = format!("resolver:{id}").into();
        let resolver = ChainResolver {
            target: id.clone(),
            connect_timeout: None,
            request_timeout: None,
            failover: Vec::new(),
            balancer: None,
        };
        let target = ChainTarget {
            service: query.service.clone(),
            namespace: "default".into(),
            partition: "".into(),
            datacenter: datacenter.clone(),
            peer: None,
            sni: format!("{id}.internal.example.consul").into(),
            filter: None,
            only_passing: false,
            mesh_gateway: MeshGatewayMode::None,
            external: false,
        };
        Self {
            service: query.service.clone(),
            datacenter,
            protocol: ChainProtocol::Http,
            nodes: BTreeMap::from([(start.clone(), ChainNode::Resolver(resolver))]),
            start,
            targets: BTreeMap::from([(id, target)]),
        }
    }
}

/// `Protocol` of `service-defaults` or `proxy-defaults`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChainProtocol {
    Tcp,
    Http,
    Http2,
    Grpc,
}

impl ChainProtocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChainNode {
    /// The first that matches, in order.
    Router(Vec<ChainRoute>),
    Splitter(Vec<ChainSplit>),
    Resolver(ChainResolver),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainRoute {
    pub matching: ChainMatch,
    pub next: Arc<str>,
    /// Replaces what the path match took, as plain text.
    pub prefix_rewrite: Option<Arc<str>>,
    pub timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub retry: Option<ChainRetry>,
    pub request_headers: HeaderEdits,
    pub response_headers: HeaderEdits,
}

/// All conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainMatch {
    pub path: ChainPath,
    pub case_insensitive: bool,
    pub methods: Vec<Arc<str>>,
    pub headers: Vec<ValueMatch>,
    pub query: Vec<ValueMatch>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChainPath {
    Any,
    Exact(Arc<str>),
    /// Plain text, not segments: `/adm` takes `/admin`.
    StartsWith(Arc<str>),
    /// Matches the whole path.
    Regex(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChainRetry {
    pub attempts: u32,
    pub on: Vec<Arc<str>>,
    pub status_codes: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainSplit {
    /// Hundredths of a percent: all of a splitter add up to 10,000.
    pub weight: u32,
    pub next: Arc<str>,
    pub request_headers: HeaderEdits,
    pub response_headers: HeaderEdits,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainResolver {
    pub target: Arc<str>,
    pub connect_timeout: Option<Duration>,
    pub request_timeout: Option<Duration>,
    /// In order: each is for when all before it are unhealthy.
    pub failover: Vec<Arc<str>>,
    pub balancer: Option<ChainBalancer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainBalancer {
    pub policy: BalancerPolicy,
    pub hash: Vec<HashPolicy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BalancerPolicy {
    Random,
    RoundRobin,
    LeastRequest {
        choices: u32,
    },
    /// 0: Envoy's own bound.
    RingHash {
        minimum: u64,
        maximum: u64,
    },
    Maglev,
}

/// What of a request keeps it on one instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HashPolicy {
    pub on: HashOn,
    /// Nothing after it is looked at if this one found something.
    pub terminal: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashOn {
    SourceIp,
    Header(Arc<str>),
    QueryParameter(Arc<str>),
    Cookie {
        name: Arc<str>,
        /// None: the client's own cookie, nothing is set. Zero: for the session.
        ttl: Option<Duration>,
        path: Arc<str>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainTarget {
    pub service: Arc<str>,
    /// Empty where Consul has no namespaces.
    pub namespace: Arc<str>,
    pub partition: Arc<str>,
    pub datacenter: Arc<str>,
    /// A cluster peering; its trust bundle is not told over HTTP.
    pub peer: Option<Arc<str>>,
    pub sni: Arc<str>,
    pub filter: Option<Arc<str>>,
    pub only_passing: bool,
    pub mesh_gateway: MeshGatewayMode,
    /// Outside the mesh under this SNI, which is what a terminating gateway is dialed for.
    pub external: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeshGatewayMode {
    /// Dialed directly.
    #[default]
    None,
    /// Through a mesh gateway of our own datacenter.
    Local,
    /// Through a mesh gateway of the target's datacenter.
    Remote,
}

/// Who we are in the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "PublicLeaf")]
pub struct MeshLeaf {
    /// The service whose identity this is.
    pub service: Arc<str>,
    /// The SPIFFE id.
    pub uri: Arc<str>,
    pub material: CertificateMaterial,
}

/// A leaf without its key: what may lie on a disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PublicLeaf {
    service: Arc<str>,
    uri: Arc<str>,
    chain: Arc<str>,
    serial: Arc<str>,
    not_before: i64,
    not_after: i64,
}

impl MeshLeaf {
    /// Where the gateway is: its Consul agent signs for its own datacenter.
    pub fn datacenter(&self) -> Option<&str> {
        let (_, path) = self.uri.strip_prefix("spiffe://")?.split_once('/')?;
        let mut segments = path.split('/');
        while let (Some(kind), Some(name)) = (segments.next(), segments.next()) {
            if kind == "dc" {
                return Some(name);
            }
        }
        None
    }

    pub fn public(&self) -> PublicLeaf {
        PublicLeaf {
            service: self.service.clone(),
            uri: self.uri.clone(),
            chain: self.material.chain.clone(),
            serial: self.material.serial.clone(),
            not_before: self.material.not_before,
            not_after: self.material.not_after,
        }
    }
}

impl From<PublicLeaf> for MeshLeaf {
    fn from(public: PublicLeaf) -> Self {
        Self {
            service: public.service,
            uri: public.uri,
            material: CertificateMaterial {
                chain: public.chain,
                private_key: None,
                serial: public.serial,
                names: Vec::new(),
                not_before: public.not_before,
                not_after: public.not_after,
                crl: None,
            },
        }
    }
}

/// Whom we trust there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshRoots {
    pub trust_domain: Arc<str>,
    /// Every root, active or not: during a rotation both sign. PEM.
    pub pem: Arc<str>,
    pub count: usize,
}

impl MeshRoots {
    pub fn version(&self) -> String {
        blake3::hash(self.pem.as_bytes()).to_hex()[..16].to_owned()
    }
}

/// May the gateway reach this service?
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IntentionQuery {
    pub destination: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<Arc<str>>,
}

impl fmt::Display for IntentionQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.destination)?;
        for (label, value) in [("ns", &self.namespace), ("partition", &self.partition)] {
            if let Some(value) = value {
                write!(f, " {label}={value}")?;
            }
        }
        Ok(())
    }
}

/// What the destination's proxy will say to us, looked up beforehand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Intention {
    /// The gateway's own service.
    pub source: Arc<str>,
    pub destination: Arc<str>,
    pub rule: IntentionRule,
    /// The intention that decides, in words. None: the default policy does.
    pub by: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IntentionRule {
    Allow,
    Deny,
    /// Decided request by request, by the first that matches; none: denied. Over TCP it denies everything.
    Permissions(Vec<Permission>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Permission {
    pub allow: bool,
    pub matching: PermissionMatch,
    /// It also asks for a token that Consul's proxy checks; what is in a request is not known beforehand.
    pub needs_jwt: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PermissionMatch {
    #[serde(flatten)]
    pub path: PermissionPath,
    pub methods: Vec<Arc<str>>,
    pub headers: Vec<ValueMatch>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PermissionPath {
    AnyPath,
    PathExact(Arc<str>),
    PathPrefix(Arc<str>),
    PathRegex(Arc<str>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_where_its_certificate_says() {
        let datacenter = |uri: &str| {
            let leaf = MeshLeaf::from(PublicLeaf {
                service: "gw".into(),
                uri: uri.into(),
                chain: "".into(),
                serial: "".into(),
                not_before: 0,
                not_after: 0,
            });
            leaf.datacenter().map(str::to_owned)
        };
        for (uri, expected) in [
            ("spiffe://x.consul/ns/default/dc/dc1/svc/gw", Some("dc1")),
            ("spiffe://x.consul/ap/dc/ns/dc/dc/dc2/svc/dc", Some("dc2")),
            ("spiffe://x.consul/ns/default/svc/gw", None),
            ("https://x/ns/default/dc/dc1/svc/gw", None),
            ("", None),
        ] {
            assert_eq!(datacenter(uri).as_deref(), expected, "{uri}");
        }
    }
}
