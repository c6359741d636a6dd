use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::HealthCheck;
use envoy_types::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck,
};
use envoy_types::pb::envoy::r#type::v3::{CodecClientType, Int64Range};

use super::endpoint::split_host_port;
use crate::envoy::{duration, wrap_u32};
use crate::ir::{Cluster, ClusterSource};
use crate::model::http::{HealthProbe, UpstreamProtocol};

/// What Envoy asks the instances of a cluster. Empty: nothing.
pub(super) fn health_checks(cluster: &Cluster) -> Vec<HealthCheck> {
    let Some(check) = &cluster.options.health_check else {
        return Vec::new();
    };
    let checker = match &check.probe {
        HealthProbe::Tcp => HealthChecker::TcpHealthCheck(TcpHealthCheck::default()),
        HealthProbe::Http { path, host } => HealthChecker::HttpHealthCheck(HttpHealthCheck {
            path: path.to_string(),
            host: host
                .as_deref()
                .map_or_else(|| host_of(&cluster.name, &cluster.source), str::to_owned),
            codec_client_type: match cluster.options.protocol {
                UpstreamProtocol::Http1 => CodecClientType::Http1,
                UpstreamProtocol::Http2 => CodecClientType::Http2,
            }
            .into(),
            // Envoy takes 200 alone, and any other status takes an instance out at once, whatever the threshold.
            expected_statuses: vec![range(200, 300)],
            retriable_statuses: vec![range(100, 503), range(504, 600)],
            ..HttpHealthCheck::default()
        }),
        HealthProbe::Grpc { service } => HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
            service_name: service.to_string(),
            authority: host_of(&cluster.name, &cluster.source),
            ..GrpcHealthCheck::default()
        }),
    };
    // One that is registered before it listens fails its first check, as one does that is restarted: it is not left out for
    // longer than it takes to come up.
    let of_the_unhealthy = Some(duration(check.interval.min(OF_THE_UNHEALTHY)));
    vec![HealthCheck {
        timeout: Some(duration(check.timeout)),
        interval: Some(duration(check.interval)),
        unhealthy_interval: of_the_unhealthy,
        // Between the failures that take one out: Envoy would take the interval above for it.
        unhealthy_edge_interval: Some(duration(check.interval)),
        // Between the successes that bring one back.
        healthy_edge_interval: of_the_unhealthy,
        // Its default of 60 s for a cluster without traffic would leave a service that just came up unknown for long.
        // Without traffic it is the pause between those failures, too.
        no_traffic_interval: of_the_unhealthy,
        no_traffic_healthy_interval: Some(duration(check.interval)),
        // Replicas of a gateway must not ask in step.
        interval_jitter_percent: 20,
        unhealthy_threshold: Some(wrap_u32(check.unhealthy_threshold)),
        healthy_threshold: Some(wrap_u32(check.healthy_threshold)),
        health_checker: Some(checker),
        ..HealthCheck::default()
    }]
}

/// Statuses from `start` to the one before `end`.
fn range(start: i64, end: i64) -> Int64Range {
    Int64Range { start, end }
}

/// Envoy would take the cluster's name, which has a slash: Go, nginx and others answer 400 to such a Host, so that no check
/// ever succeeded.
fn host_of(name: &str, source: &ClusterSource) -> String {
    if let ClusterSource::Dns(name) = source {
        return split_host_port(&name.address).0.to_owned();
    }
    let name = name.strip_prefix("upstream/").unwrap_or(name);
    let is_of_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    name.chars()
        .map(|c| if is_of_host(c) { c } else { '-' })
        .collect()
}

/// A connection a second to each instance that is down.
const OF_THE_UNHEALTHY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::http::{DnsName, LookupFamily};

    #[test]
    fn a_check_has_a_host_that_servers_take() {
        assert_eq!(host_of("upstream/orders", &ClusterSource::Discovered), "orders");
        assert_eq!(
            host_of("upstream/web/v1.web.default.dc1", &ClusterSource::Discovered),
            "web-v1.web.default.dc1"
        );
        for (address, expected) in [
            ("orders.example.com:8080", "orders.example.com"),
            ("[2001:db8::1]:80", "[2001:db8::1]"),
        ] {
            let source = ClusterSource::Dns(DnsName {
                address: address.into(),
                family: LookupFamily::V4Preferred,
            });
            assert_eq!(host_of("upstream/orders", &source), expected);
        }
    }
}
