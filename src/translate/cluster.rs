use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, CustomClusterType, DiscoveryType, DnsLookupFamily,
    EdsClusterConfig, LbPolicy,
};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster, OutlierDetection};
use envoy_types::pb::envoy::config::core::v3::HttpProtocolOptions as CommonHttpProtocolOptions;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    AggregatedConfigSource, ApiVersion, ConfigSource, Http1ProtocolOptions, Http2ProtocolOptions,
};
use envoy_types::pb::envoy::extensions::clusters::aggregate::v3::ClusterConfig as AggregateClusterConfig;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config,
};
use envoy_types::pb::envoy::r#type::v3::Percent;
use prost::Message;

use super::encoding::put_bytes;
use super::endpoint::{assignment, is_ip, lb_endpoint, split_host_port};
use super::health_check::health_checks;
use super::mesh::{apply_balancer, mesh_tls};
use crate::envoy::{Resource, ResourceKind, ResourceRef, any, duration, wrap_u32};
use crate::ir::{self, ClusterSource, MESH_LEAF, MESH_ROOTS};
use crate::model::http::{DnsName, LoadBalancer, LookupFamily, UpstreamOptions, UpstreamProtocol};

pub(super) fn cluster_resource(cluster: &ir::Cluster) -> Resource {
    let mut bytes = Vec::with_capacity(DISCOVERED.len() + 2 * cluster.name.len() + 16);
    let outside_mesh = cluster.tls.is_none() && cluster.balancer.is_none();
    if outside_mesh
        && !cluster.only_connections
        && cluster.source == ClusterSource::Discovered
        && cluster.options == UpstreamOptions::default()
    {
        bytes.extend_from_slice(&DISCOVERED);
    } else {
        bytes = cluster_message(cluster).encode_to_vec();
    }
    put_bytes(&mut bytes, 1, cluster.name.as_bytes());
    // Statistics split at dots: a name with dots or slashes would end up as several levels.
    put_bytes(&mut bytes, 28, cluster.name.replace(['.', ':'], "_").as_bytes());
    Resource::new(ResourceKind::Cluster, cluster.name.clone(), &bytes)
        .needing(needs(cluster))
        .checked_within(cluster.options.health_check.as_ref().map(|check| check.timeout))
        .from_documents(cluster.origins.clone().into())
}

/// Most clusters are alike but for their names: a service of Consul's with the default options.
static DISCOVERED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let cluster = ir::Cluster {
        name: "".into(),
        source: ClusterSource::Discovered,
        tls: None,
        options: UpstreamOptions::default(),
        balancer: None,
        only_connections: false,
        origins: Vec::new(),
    };
    cluster_message(&cluster).encode_to_vec()
});

fn needs(cluster: &ir::Cluster) -> Arc<[ResourceRef]> {
    let need = |kind, name: &str| ResourceRef {
        kind,
        name: name.into(),
    };
    match (&cluster.source, &cluster.tls) {
        (ClusterSource::Failover(members), _) => {
            let mut needs: Vec<_> = members
                .iter()
                .map(|member| need(ResourceKind::Cluster, member))
                .collect();
            needs.sort();
            needs.into()
        }
        (_, Some(_)) => Arc::new([
            need(ResourceKind::Secret, MESH_LEAF),
            need(ResourceKind::Secret, MESH_ROOTS),
        ]),
        (_, None) => Arc::default(),
    }
}

/// Without its names.
fn cluster_message(cluster: &ir::Cluster) -> Cluster {
    let options = &cluster.options;
    let mut message = Cluster {
        connect_timeout: Some(duration(options.connect_timeout)),
        // 32 KiB instead of 1 MiB: at the edge a slow client must not pin a megabyte per stream (Envoy's edge guide). What is
        // kept of a body to be sent again has a bound of its own.
        per_connection_buffer_limit_bytes: Some(wrap_u32(32 * 1024)),
        lb_policy: match options.load_balancer {
            LoadBalancer::RoundRobin => LbPolicy::RoundRobin,
            LoadBalancer::LeastRequest => LbPolicy::LeastRequest,
            LoadBalancer::Random => LbPolicy::Random,
        }
        .into(),
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent {
                value: panic_threshold(cluster),
            }),
            // Envoy holds changes of health back, for 1 s by default, where an endpoint changed shortly before: an
            // instance that is gone right after a deployment would be tried by connection after connection.
            update_merge_window: cluster.only_connections.then(|| duration(Duration::ZERO)),
            ..CommonLbConfig::default()
        }),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![Thresholds {
                max_connections: Some(wrap_u32(options.circuit_breaker.max_connections)),
                max_pending_requests: Some(wrap_u32(options.circuit_breaker.max_pending_requests)),
                max_requests: Some(wrap_u32(options.circuit_breaker.max_requests)),
                max_retries: Some(wrap_u32(options.circuit_breaker.max_retries)),
                ..Thresholds::default()
            }],
            ..CircuitBreakers::default()
        }),
        health_checks: health_checks(cluster),
        // An instance that its catalog no longer has gets no new requests, even if it still answers checks.
        ignore_health_on_host_removal: options.health_check.is_some(),
        // One entry: the map's order cannot differ.
        typed_extension_protocol_options: HashMap::from([(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            any(&protocol_options(options.protocol, options.idle_timeout)),
        )]),
        ..Cluster::default()
    };
    if let Some(balancer) = cluster.balancer {
        apply_balancer(balancer, &mut message);
    }
    message.outlier_detection = cluster.only_connections.then(refused_connections);
    message.transport_socket = cluster.tls.as_ref().map(mesh_tls);
    match &cluster.source {
        ClusterSource::Failover(members) => {
            message.lb_policy = LbPolicy::ClusterProvided.into();
            // The members' own bounds, protocols and checks hold, but for this one, which Envoy takes from here.
            message.circuit_breakers = Some(CircuitBreakers {
                thresholds: vec![Thresholds {
                    max_retries: Some(wrap_u32(options.circuit_breaker.max_retries)),
                    ..Thresholds::default()
                }],
                ..CircuitBreakers::default()
            });
            message.health_checks = Vec::new();
            message.outlier_detection = None;
            message.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
                name: "envoy.clusters.aggregate".to_owned(),
                typed_config: Some(any(&AggregateClusterConfig {
                    clusters: members.iter().map(ToString::to_string).collect(),
                })),
            }));
        }
        ClusterSource::Discovered => {
            message.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into()));
            message.eds_cluster_config = Some(EdsClusterConfig {
                eds_config: Some(ads()),
                service_name: String::new(),
            });
        }
        ClusterSource::Static(addresses) => {
            message.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into()));
            message.load_assignment = Some(fixed(&cluster.name, addresses.iter().map(|address| &**address)));
        }
        ClusterSource::Dns(DnsName { address, family }) => {
            // An address in place of a name needs no resolver.
            let kind = if is_ip(split_host_port(address).0) {
                DiscoveryType::Static
            } else {
                DiscoveryType::StrictDns
            };
            message.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind.into()));
            // Each address is an instance of its own: those of a family without a route would be chosen, too.
            message.dns_lookup_family = match family {
                LookupFamily::V4Preferred => DnsLookupFamily::V4Preferred,
                LookupFamily::V6Preferred => DnsLookupFamily::Auto,
                LookupFamily::V4Only => DnsLookupFamily::V4Only,
                LookupFamily::V6Only => DnsLookupFamily::V6Only,
                LookupFamily::All => DnsLookupFamily::All,
            }
            .into();
            message.load_assignment = Some(fixed(&cluster.name, [&**address]));
        }
    }
    message
}

/// No panic routing: with every instance unhealthy the answer is 503, not a gamble. But where unhealthy can only mean left
/// out for a refused connection, the last ones so left are tried: they may well be back, with nobody else left.
fn panic_threshold(cluster: &ir::Cluster) -> f64 {
    match cluster.only_connections && cluster.options.health_check.is_none() {
        true => 1.0,
        false => 0.0,
    }
}

/// An instance that takes no connection has none, so that balancing by connections would try it first, time and again. A
/// retried request goes to another instance; a connection's next try is dealt anew. So Envoy leaves the instance out.
fn refused_connections() -> OutlierDetection {
    let seconds = |seconds| Some(duration(Duration::from_secs(seconds)));
    OutlierDetection {
        // What an instance answers is not judged here, only that it does not take a connection at all.
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: Some(wrap_u32(1)),
        enforcing_consecutive_local_origin_failure: Some(wrap_u32(100)),
        enforcing_consecutive_5xx: Some(wrap_u32(0)),
        enforcing_success_rate: Some(wrap_u32(0)),
        enforcing_local_origin_success_rate: Some(wrap_u32(0)),
        interval: seconds(1),
        // Grows with each time in a row, to the longest.
        base_ejection_time: seconds(5),
        max_ejection_time: seconds(60),
        // A fault of the network, or the only instance's restart, must not leave nobody.
        max_ejection_percent: Some(wrap_u32(50)),
        ..OutlierDetection::default()
    }
}

fn fixed<'a>(
    name: &str,
    addresses: impl IntoIterator<Item = &'a str>,
) -> envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment {
    let endpoints = addresses.into_iter().map(|address| {
        let (host, port) = split_host_port(address);
        lb_endpoint(host, port, 1)
    });
    assignment(name, endpoints.collect())
}

fn protocol_options(protocol: UpstreamProtocol, idle_timeout: Option<Duration>) -> HttpProtocolOptions {
    let config = match protocol {
        UpstreamProtocol::Http1 => {
            explicit_http_config::ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default())
        }
        UpstreamProtocol::Http2 => {
            explicit_http_config::ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default())
        }
    };
    HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(config),
        })),
        common_http_protocol_options: idle_timeout.map(|idle| CommonHttpProtocolOptions {
            idle_timeout: Some(duration(idle)),
            ..CommonHttpProtocolOptions::default()
        }),
        ..HttpProtocolOptions::default()
    }
}

/// Everything comes over the one stream, in the order that we decide.
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        // Envoy waits this long for a first answer before it goes on without; its default of 15 s stalls a whole update.
        initial_fetch_timeout: Some(duration(Duration::from_secs(3))),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}
