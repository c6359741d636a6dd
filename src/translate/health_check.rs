use envoy_types::pb::envoy::config::core::v3::HealthCheck;
use envoy_types::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck,
};
use envoy_types::pb::envoy::r#type::v3::CodecClientType;

use crate::envoy::{duration, wrap_u32};
use crate::ir::Cluster;
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
            host: host.as_deref().unwrap_or_default().to_owned(),
            codec_client_type: match cluster.options.protocol {
                UpstreamProtocol::Http1 => CodecClientType::Http1,
                UpstreamProtocol::Http2 => CodecClientType::Http2,
            }
            .into(),
            ..HttpHealthCheck::default()
        }),
        HealthProbe::Grpc { service } => HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
            service_name: service.to_string(),
            ..GrpcHealthCheck::default()
        }),
    };
    vec![HealthCheck {
        timeout: Some(duration(check.timeout)),
        interval: Some(duration(check.interval)),
        // Its default of 60 s for a cluster without traffic would leave a service that just came up unknown for long.
        no_traffic_interval: Some(duration(check.interval)),
        // Replicas of a gateway must not ask in step.
        interval_jitter_percent: 20,
        unhealthy_threshold: Some(wrap_u32(check.unhealthy_threshold)),
        healthy_threshold: Some(wrap_u32(check.healthy_threshold)),
        health_checker: Some(checker),
        ..HealthCheck::default()
    }]
}
