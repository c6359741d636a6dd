//! Connections that are passed on as they are.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::BackoffStrategy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster,
};
use envoy_types::pb::envoy::r#type::v3::{HashPolicy, hash_policy};

use crate::envoy::{ResourceKind, ResourceRef, duration, wrap_u32};
use crate::ir;

/// At most, between two tries of one connection. Envoy draws it anew each time.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) fn tcp_proxy(listener: &str, proxy: &ir::TcpProxy, idle_timeout: Duration) -> TcpProxy {
    let cluster_specifier = match &proxy.clusters[..] {
        [only] => ClusterSpecifier::Cluster(only.cluster.to_string()),
        several => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several
                .iter()
                .map(|cluster| ClusterWeight {
                    name: cluster.cluster.to_string(),
                    weight: cluster.weight,
                    ..ClusterWeight::default()
                })
                .collect(),
        }),
    };
    let source_ip = || HashPolicy {
        policy_specifier: Some(hash_policy::PolicySpecifier::SourceIp(hash_policy::SourceIp {})),
    };
    TcpProxy {
        stat_prefix: listener.to_owned(),
        cluster_specifier: Some(cluster_specifier),
        idle_timeout: Some(duration(idle_timeout)),
        max_connect_attempts: Some(wrap_u32(proxy.connect_attempts)),
        // By the next try the main thread has, most likely, told the worker to leave out the instance that refused. No
        // more than the first: Envoy counts the tries of all connections together.
        backoff_options: Some(BackoffStrategy {
            base_interval: Some(duration(PAUSE)),
            max_interval: Some(duration(PAUSE)),
        }),
        hash_policy: proxy.hash_source_ip.then(source_ip).into_iter().collect(),
        ..TcpProxy::default()
    }
}

/// Those that must be in place before the listener leads there.
pub(super) fn clusters_of(proxy: &ir::TcpProxy) -> impl Iterator<Item = ResourceRef> + '_ {
    let each = proxy.clusters.iter();
    each.flat_map(|cluster| std::iter::once(&cluster.cluster).chain(&cluster.members))
        .map(|name| ResourceRef {
            kind: ResourceKind::Cluster,
            name: name.clone(),
        })
}
