//! An answer of `/v1/discovery-chain/<service>` as a [`Chain`]. Pure.
//!
//! Ids of nodes and targets are opaque, durations are text or numbers, null lists are empty, unknown fields are ignored.
//! What the chain says ends up in Envoy's configuration, so what Envoy would refuse is refused here, with a reason, and
//! the last good chain stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::checks::{
    bounded, header_edits, header_match, header_name, methods, regexes_are_taken, value_match,
};
use super::go_duration;
use crate::model::http::HeaderEdits;
use crate::model::mesh::{
    BalancerPolicy, Chain, ChainBalancer, ChainMatch, ChainNode, ChainPath, ChainProtocol, ChainResolver,
    ChainRetry, ChainRoute, ChainSplit, ChainTarget, HashOn, HashPolicy, MeshGatewayMode,
};

pub(super) fn parse(body: &[u8]) -> Result<Chain, String> {
    let answer: Answer = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let raw = answer.chain;
    if raw.nodes.len() > NODES || raw.targets.len() > TARGETS {
        return Err(format!(
            "it has {} nodes and {} targets; at most {NODES} and {TARGETS} are taken",
            raw.nodes.len(),
            raw.targets.len()
        ));
    }
    let protocol = match &*raw.protocol {
        "" | "tcp" => ChainProtocol::Tcp,
        "http" => ChainProtocol::Http,
        "http2" => ChainProtocol::Http2,
        "grpc" => ChainProtocol::Grpc,
        other => {
            return Err(format!(
                "it speaks {other:?}, which no Consul that is known here has"
            ));
        }
    };
    let targets: BTreeMap<Arc<str>, ChainTarget> = raw
        .targets
        .into_iter()
        .map(|(id, target)| Ok((bounded(id)?, target.target()?)))
        .collect::<Result<_, String>>()?;
    let mut nodes = BTreeMap::new();
    for (id, node) in raw.nodes {
        let node = node.node().map_err(|reason| format!("node {id:?}: {reason}"))?;
        nodes.insert(bounded(id)?, node);
    }
    let chain = Chain {
        service: bounded(raw.service_name)?,
        datacenter: bounded(raw.datacenter)?,
        protocol,
        start: raw.start_node,
        nodes,
        targets,
    };
    is_whole(&chain)?;
    Ok(chain)
}

/// Every node and target that is named is there.
fn is_whole(chain: &Chain) -> Result<(), String> {
    let node = |id: &Arc<str>| match chain.nodes.contains_key(id) {
        true => Ok(()),
        false => Err(format!("it names the node {id:?}, which it does not have")),
    };
    let target = |id: &Arc<str>| match chain.targets.contains_key(id) {
        true => Ok(()),
        false => Err(format!("it names the target {id:?}, which it does not have")),
    };
    node(&chain.start)?;
    for each in chain.nodes.values() {
        match each {
            ChainNode::Router(routes) => routes.iter().try_for_each(|route| node(&route.next))?,
            ChainNode::Splitter(splits) => splits.iter().try_for_each(|split| node(&split.next))?,
            ChainNode::Resolver(resolver) => {
                target(&resolver.target)?;
                resolver.failover.iter().try_for_each(target)?;
            }
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    chain: RawChain,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawChain {
    service_name: Arc<str>,
    #[serde(default)]
    datacenter: Arc<str>,
    #[serde(default)]
    protocol: Arc<str>,
    start_node: Arc<str>,
    #[serde(default, deserialize_with = "null_is_default")]
    nodes: BTreeMap<Arc<str>, RawNode>,
    #[serde(default, deserialize_with = "null_is_default")]
    targets: BTreeMap<Arc<str>, RawTarget>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawNode {
    r#type: String,
    #[serde(default, deserialize_with = "null_is_default")]
    routes: Vec<RawRoute>,
    #[serde(default, deserialize_with = "null_is_default")]
    splits: Vec<RawSplit>,
    #[serde(default)]
    resolver: Option<RawResolver>,
    #[serde(default)]
    load_balancer: Option<RawBalancer>,
}

impl RawNode {
    fn node(self) -> Result<ChainNode, String> {
        match &*self.r#type {
            "router" => {
                if self.routes.len() > ROUTES {
                    return Err(format!(
                        "{} routes; at most {ROUTES} are taken",
                        self.routes.len()
                    ));
                }
                let routes = self.routes.into_iter().map(RawRoute::route);
                Ok(ChainNode::Router(routes.collect::<Result<_, _>>()?))
            }
            "splitter" => {
                let splits = self.splits.into_iter().map(RawSplit::split);
                Ok(ChainNode::Splitter(splits.collect::<Result<_, _>>()?))
            }
            "resolver" => {
                let resolver = self.resolver.ok_or("a resolver that says nothing")?;
                // Where the balancer stands differs between versions of Consul.
                let balancer = self.load_balancer.or(resolver.load_balancer);
                Ok(ChainNode::Resolver(ChainResolver {
                    target: resolver.target,
                    connect_timeout: resolver.connect_timeout,
                    request_timeout: resolver.request_timeout,
                    failover: each_once(resolver.failover.unwrap_or_default().targets),
                    balancer: balancer.map(RawBalancer::balancer).transpose()?,
                }))
            }
            other => Err(format!(
                "it is a {other:?}, which no Consul that is known here has"
            )),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRoute {
    #[serde(default, deserialize_with = "null_is_default")]
    definition: RawDefinition,
    next_node: Arc<str>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawDefinition {
    #[serde(deserialize_with = "null_is_default")]
    r#match: RawMatch,
    #[serde(deserialize_with = "null_is_default")]
    destination: RawDestination,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawMatch {
    #[serde(rename = "HTTP", deserialize_with = "null_is_default")]
    http: RawHttpMatch,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawHttpMatch {
    path_exact: String,
    path_prefix: String,
    path_regex: String,
    case_insensitive: bool,
    #[serde(deserialize_with = "null_is_default")]
    header: Vec<RawValueMatch>,
    #[serde(deserialize_with = "null_is_default")]
    query_param: Vec<RawValueMatch>,
    #[serde(deserialize_with = "null_is_default")]
    methods: Vec<String>,
}

/// Also what intentions match headers by.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct RawValueMatch {
    pub(super) name: String,
    pub(super) present: bool,
    pub(super) exact: String,
    pub(super) prefix: String,
    pub(super) suffix: String,
    pub(super) contains: String,
    pub(super) regex: String,
    pub(super) invert: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawDestination {
    prefix_rewrite: String,
    #[serde(deserialize_with = "go_duration::optional")]
    request_timeout: Option<Duration>,
    #[serde(deserialize_with = "go_duration::optional")]
    idle_timeout: Option<Duration>,
    num_retries: u32,
    retry_on_connect_failure: bool,
    #[serde(deserialize_with = "null_is_default")]
    retry_on: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    retry_on_status_codes: Vec<u32>,
    request_headers: Option<RawHeaderEdits>,
    response_headers: Option<RawHeaderEdits>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct RawHeaderEdits {
    #[serde(deserialize_with = "null_is_default")]
    pub(super) add: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) set: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) remove: Vec<String>,
}

impl RawRoute {
    fn route(self) -> Result<ChainRoute, String> {
        let http = self.definition.r#match.http;
        let path = match (&*http.path_exact, &*http.path_prefix, &*http.path_regex) {
            ("", "" | "/", "") => ChainPath::Any,
            ("", prefix, "") => ChainPath::StartsWith(bounded(prefix.into())?),
            (exact, "", "") => ChainPath::Exact(bounded(exact.into())?),
            ("", "", regex) => ChainPath::Regex(bounded(regex.into())?),
            _ => return Err("a route matches the path in two ways".to_owned()),
        };
        let conditions = http.header.len() + http.query_param.len();
        if conditions > CONDITIONS {
            return Err(format!(
                "a route asks for {conditions} headers and parameters; at most {CONDITIONS} are taken"
            ));
        }
        let destination = self.definition.destination;
        let rewrite = &destination.prefix_rewrite;
        let headers: Vec<_> = http
            .header
            .into_iter()
            .map(header_match)
            .collect::<Result<_, _>>()?;
        let query: Vec<_> = http
            .query_param
            .into_iter()
            .map(value_match)
            .collect::<Result<_, _>>()?;
        regexes_are_taken(&path, headers.iter().chain(&query))?;
        Ok(ChainRoute {
            matching: ChainMatch {
                path,
                case_insensitive: http.case_insensitive,
                methods: methods(http.methods)?,
                headers,
                query,
            },
            next: self.next_node,
            prefix_rewrite: match &**rewrite {
                "" => None,
                rewrite => Some(bounded(rewrite.into())?),
            },
            timeout: destination.request_timeout,
            idle_timeout: destination.idle_timeout,
            retry: destination.retry(),
            request_headers: edits(destination.request_headers)?,
            response_headers: edits(destination.response_headers)?,
        })
    }
}

impl RawDestination {
    fn retry(&self) -> Option<ChainRetry> {
        let mut on: Vec<Arc<str>> = Vec::new();
        if self.retry_on_connect_failure {
            on.push("connect-failure".into());
        }
        if !self.retry_on_status_codes.is_empty() {
            on.push("retriable-status-codes".into());
        }
        // Envoy's own words. One it does not know it ignores.
        let is_word = |word: &&String| {
            word.len() <= 64
                && word
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        on.extend(
            self.retry_on
                .iter()
                .filter(is_word)
                .take(CONDITIONS)
                .map(|word| Arc::from(word.as_str())),
        );
        (self.num_retries > 0 || !on.is_empty()).then(|| ChainRetry {
            // One, if Consul says nothing about the number: Envoy's own default.
            attempts: self.num_retries.clamp(1, RETRIES),
            on,
            status_codes: each_once(self.retry_on_status_codes.clone())
                .into_iter()
                .filter(|code| (100..600).contains(code))
                .collect(),
        })
    }
}

/// In order, at its first place.
fn each_once<T: Ord + Clone>(mut list: Vec<T>) -> Vec<T> {
    let mut seen = BTreeSet::new();
    list.retain(|item| seen.insert(item.clone()));
    list
}

fn edits(raw: Option<RawHeaderEdits>) -> Result<HeaderEdits, String> {
    raw.map_or_else(|| Ok(HeaderEdits::default()), header_edits)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawSplit {
    #[serde(default)]
    weight: f64,
    next_node: Arc<str>,
    #[serde(default, deserialize_with = "null_is_default")]
    definition: RawSplitDefinition,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawSplitDefinition {
    request_headers: Option<RawHeaderEdits>,
    response_headers: Option<RawHeaderEdits>,
}

impl RawSplit {
    fn split(self) -> Result<ChainSplit, String> {
        if !(0.0..=100.0).contains(&self.weight) {
            return Err(format!("a split has the weight {}", self.weight));
        }
        Ok(ChainSplit {
            // Consul's own granularity is 0.01.
            weight: (self.weight * 100.0).round() as u32,
            next: self.next_node,
            request_headers: edits(self.definition.request_headers)?,
            response_headers: edits(self.definition.response_headers)?,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawResolver {
    target: Arc<str>,
    #[serde(default, deserialize_with = "go_duration::optional")]
    connect_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "go_duration::optional")]
    request_timeout: Option<Duration>,
    #[serde(default)]
    failover: Option<RawFailover>,
    #[serde(default)]
    load_balancer: Option<RawBalancer>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawFailover {
    #[serde(default, deserialize_with = "null_is_default")]
    targets: Vec<Arc<str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct RawBalancer {
    policy: String,
    ring_hash_config: Option<RawRing>,
    least_request_config: Option<RawLeastRequest>,
    #[serde(deserialize_with = "null_is_default")]
    hash_policies: Vec<RawHash>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawRing {
    minimum_ring_size: u64,
    maximum_ring_size: u64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawLeastRequest {
    choice_count: u32,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawHash {
    field: String,
    field_value: String,
    cookie_config: Option<RawCookie>,
    #[serde(rename = "SourceIP")]
    source_ip: bool,
    terminal: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawCookie {
    #[serde(rename = "Session")]
    session: bool,
    #[serde(rename = "TTL", deserialize_with = "go_duration::optional")]
    ttl: Option<Duration>,
    #[serde(rename = "Path")]
    path: String,
}

impl RawBalancer {
    fn balancer(self) -> Result<ChainBalancer, String> {
        let ring = self.ring_hash_config.unwrap_or_default();
        let policy = match &*self.policy {
            "random" => BalancerPolicy::Random,
            "round_robin" | "" => BalancerPolicy::RoundRobin,
            "least_request" => BalancerPolicy::LeastRequest {
                choices: self
                    .least_request_config
                    .unwrap_or_default()
                    .choice_count
                    .clamp(2, 100),
            },
            "ring_hash" => BalancerPolicy::RingHash {
                minimum: ring.minimum_ring_size.min(RING),
                maximum: ring.maximum_ring_size.min(RING),
            },
            "maglev" => BalancerPolicy::Maglev,
            other => return Err(format!("the load balancer {other:?} is not known")),
        };
        let hash = self.hash_policies.into_iter().take(HASHES).map(RawHash::policy);
        Ok(ChainBalancer {
            policy,
            hash: hash.collect::<Result<_, _>>()?,
        })
    }
}

impl RawHash {
    fn policy(self) -> Result<HashPolicy, String> {
        let on = match &*self.field {
            _ if self.source_ip => HashOn::SourceIp,
            "header" => HashOn::Header(header_name(&self.field_value)?),
            "query_parameter" => HashOn::QueryParameter(bounded(self.field_value.into())?),
            "cookie" => {
                let cookie = self.cookie_config.unwrap_or_default();
                HashOn::Cookie {
                    name: header_name(&self.field_value)?,
                    ttl: if cookie.session {
                        Some(Duration::ZERO)
                    } else {
                        cookie.ttl
                    },
                    path: bounded(cookie.path.into())?,
                }
            }
            other => return Err(format!("a hash of {other:?} is not known")),
        };
        Ok(HashPolicy {
            on,
            terminal: self.terminal,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawTarget {
    service: Arc<str>,
    #[serde(default)]
    namespace: Arc<str>,
    #[serde(default)]
    partition: Arc<str>,
    #[serde(default)]
    datacenter: Arc<str>,
    #[serde(default)]
    peer: Arc<str>,
    #[serde(rename = "SNI", default)]
    sni: Arc<str>,
    #[serde(default)]
    external: bool,
    #[serde(default, deserialize_with = "null_is_default")]
    mesh_gateway: RawMeshGateway,
    #[serde(default, deserialize_with = "null_is_default")]
    subset: RawSubset,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawMeshGateway {
    mode: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawSubset {
    filter: Arc<str>,
    only_passing: bool,
}

impl RawTarget {
    fn target(self) -> Result<ChainTarget, String> {
        if self.sni.len() > 255 {
            return Err(format!(
                "the SNI of {:?} is longer than a host name may be",
                self.service
            ));
        }
        if self.subset.filter.len() > FILTER_BYTES {
            return Err(format!(
                "the filter of {:?} is longer than {FILTER_BYTES} bytes",
                self.service
            ));
        }
        Ok(ChainTarget {
            service: bounded(self.service)?,
            namespace: bounded(self.namespace)?,
            partition: bounded(self.partition)?,
            datacenter: bounded(self.datacenter)?,
            peer: (!self.peer.is_empty()).then(|| bounded(self.peer)).transpose()?,
            sni: bounded(self.sni)?,
            filter: (!self.subset.filter.is_empty()).then_some(self.subset.filter),
            only_passing: self.subset.only_passing,
            mesh_gateway: match &*self.mesh_gateway.mode {
                "local" => MeshGatewayMode::Local,
                "remote" => MeshGatewayMode::Remote,
                _ => MeshGatewayMode::None,
            },
            external: self.external,
        })
    }
}

pub(super) fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Each route becomes one of Envoy's in every host that uses the chain.
const ROUTES: usize = 256;
const CONDITIONS: usize = 64;
const NODES: usize = 1024;
const TARGETS: usize = 256;
const HASHES: usize = 16;
const RETRIES: u32 = 100;
const FILTER_BYTES: usize = 4096;

/// Envoy's own bound on a ring.
const RING: u64 = 8 * 1024 * 1024;

#[cfg(test)]
#[path = "chain_answer_tests.rs"]
mod tests;
