//! What HTTP routes say, in terms shared by the documents and the resolved tree.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathMatch {
    Exact(Arc<str>),
    /// Whole segments: `/api` takes `/api` and `/api/x`, not `/apix`. Never ends in `/`, but for the root `/` itself.
    Prefix(Arc<str>),
    /// Plain text, as Consul's service router has it: `/ap` takes `/api`. No document can ask for it.
    StartsWith(Arc<str>),
    /// Matches the whole path.
    Regex(Arc<str>),
}

impl PathMatch {
    pub fn any() -> Self {
        Self::Prefix("/".into())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    Contains(Arc<str>),
    Regex(Arc<str>),
    Present,
}

/// A condition on one header or query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValueMatch {
    pub name: Arc<str>,
    pub text: TextMatch,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub invert: bool,
}

/// All conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RequestMatch {
    pub path: PathMatch,
    /// Empty: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<Arc<str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<ValueMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<ValueMatch>,
}

impl RequestMatch {
    pub fn any() -> Self {
        Self {
            path: PathMatch::any(),
            methods: Vec::new(),
            headers: Vec::new(),
            query: Vec::new(),
        }
    }

    /// The regular expressions that Envoy compiles for it.
    pub fn regexes(&self) -> impl Iterator<Item = &str> {
        let of_path = match &self.path {
            PathMatch::Regex(regex) => Some(&**regex),
            PathMatch::Exact(_) | PathMatch::Prefix(_) | PathMatch::StartsWith(_) => None,
        };
        let values = self.headers.iter().chain(&self.query);
        let of_values = values.filter_map(|value| match &value.text {
            TextMatch::Regex(regex) => Some(&**regex),
            _ => None,
        });
        of_path.into_iter().chain(of_values)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathRewrite {
    /// The whole path.
    Full(Arc<str>),
    /// What the rule's prefix matched.
    Prefix(Arc<str>),
    /// What this regular expression takes at the path's beginning, replaced by this text: a rule's rewrite with that of a
    /// Consul service router behind it. No document can ask for it.
    Substitute { pattern: Arc<str>, with: Arc<str> },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize)]
pub struct Rewrite {
    pub path: Option<PathRewrite>,
    pub hostname: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Redirect {
    pub scheme: Option<Arc<str>>,
    pub hostname: Option<Arc<str>>,
    pub port: Option<u16>,
    pub path: Option<PathRewrite>,
    pub status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct DirectResponse {
    pub status: u16,
    pub body: Option<Arc<str>>,
}

/// Header edits, the same for requests and responses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeaderEdits {
    pub set: Vec<(Arc<str>, Arc<str>)>,
    pub add: Vec<(Arc<str>, Arc<str>)>,
    pub remove: Vec<Arc<str>>,
}

impl HeaderEdits {
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// How Envoy speaks to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    Http1,
    Http2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadBalancer {
    RoundRobin,
    LeastRequest,
    Random,
}

/// A host name, and which of its addresses are used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DnsName {
    /// `host:port`.
    pub address: Arc<str>,
    pub family: LookupFamily,
}

/// Envoy's `dns_lookup_family`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LookupFamily {
    V4Preferred,
    V6Preferred,
    V4Only,
    V6Only,
    All,
}

/// Upper bounds per Envoy and upstream; what is over answers 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct CircuitBreaker {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
}

impl Default for CircuitBreaker {
    /// Envoy's own 1024 and 3 are low for an edge: a burst of slow answers would be refused with instances idle.
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_pending_requests: 10_000,
            max_requests: 10_000,
            max_retries: 1_000,
        }
    }
}

/// Requests that Envoy makes of its own to learn which instances serve.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HealthCheck {
    pub probe: HealthProbe,
    pub interval: Duration,
    pub timeout: Duration,
    /// Failures in a row until an instance is left out.
    pub unhealthy_threshold: u32,
    /// Successes in a row until it is back. A new instance serves after its first.
    pub healthy_threshold: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthProbe {
    /// A connection comes about.
    Tcp,
    /// A request is answered with 2xx.
    Http { path: Arc<str>, host: Option<Arc<str>> },
    /// The standard gRPC health service says SERVING.
    Grpc { service: Arc<str> },
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            probe: HealthProbe::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            unhealthy_threshold: 2,
            healthy_threshold: 2,
        }
    }
}

/// Settings of an upstream that do not depend on where its endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct UpstreamOptions {
    pub protocol: UpstreamProtocol,
    pub load_balancer: LoadBalancer,
    pub connect_timeout: Duration,
    /// None: Envoy's hour.
    pub idle_timeout: Option<Duration>,
    pub circuit_breaker: CircuitBreaker,
    /// None: whoever registers the instances says which are healthy.
    pub health_check: Option<HealthCheck>,
}

impl Default for UpstreamOptions {
    fn default() -> Self {
        Self {
            protocol: UpstreamProtocol::Http1,
            load_balancer: LoadBalancer::LeastRequest,
            connect_timeout: Duration::from_secs(5),
            idle_timeout: None,
            circuit_breaker: CircuitBreaker::default(),
            health_check: None,
        }
    }
}
