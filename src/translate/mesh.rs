//! What the mesh asks of a cluster and of a route.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    LbConfig, LbPolicy, LeastRequestLbConfig, RingHashLbConfig,
};
use envoy_types::pb::envoy::config::core::v3::{TransportSocket, transport_socket};
use envoy_types::pb::envoy::config::route::v3::route_action::{
    HashPolicy,
    hash_policy::{self, PolicySpecifier},
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SdsSecretConfig, SubjectAltNameMatcher, TlsParameters,
    UpstreamTlsContext, common_tls_context, subject_alt_name_matcher::SanType, tls_parameters::TlsProtocol,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::google::protobuf::UInt64Value;

use super::cluster::ads;
use crate::envoy::{any, duration, wrap_u32};
use crate::features::{RouteParts, mesh_retry};
use crate::ir::{ChainSettings, MESH_LEAF, MESH_ROOTS, MeshTls};
use crate::model::mesh::{BalancerPolicy, HashOn};

/// Both sides show certificates of the mesh; ours and the authorities come by SDS, so that their renewal touches no
/// cluster. Certificates of the mesh name no host: the SPIFFE id is checked, exactly.
pub(super) fn mesh_tls(tls: &MeshTls) -> TransportSocket {
    let secret = |name: &str| SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ads()),
    };
    let peer = SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(tls.peer.to_string())),
            ..StringMatcher::default()
        }),
        ..SubjectAltNameMatcher::default()
    };
    let validation = common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: vec![peer],
            ..CertificateValidationContext::default()
        }),
        validation_context_sds_secret_config: Some(secret(MESH_ROOTS)),
        ..common_tls_context::CombinedCertificateValidationContext::default()
    };
    let context = UpstreamTlsContext {
        sni: tls.sni.to_string(),
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(TlsParameters {
                tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
                // Envoy's default for its own side is 1.2.
                tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
                ..TlsParameters::default()
            }),
            tls_certificate_sds_secret_configs: vec![secret(MESH_LEAF)],
            validation_context_type: Some(
                common_tls_context::ValidationContextType::CombinedValidationContext(validation),
            ),
            alpn_protocols: match &tls.port {
                // In place of the protocol's own name, as Consul's proxies do it: what is spoken is known beforehand.
                Some(port) => vec![format!("consul~{port}")],
                None if tls.http2 => vec!["h2".to_owned()],
                None => Vec::new(),
            },
            ..CommonTlsContext::default()
        }),
        ..UpstreamTlsContext::default()
    };
    TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any(&context))),
    }
}

pub(super) fn apply_balancer(policy: BalancerPolicy, cluster: &mut Cluster) {
    let size = |size: u64| (size > 0).then_some(UInt64Value { value: size });
    let (lb_policy, config) = match policy {
        BalancerPolicy::Random => (LbPolicy::Random, None),
        BalancerPolicy::RoundRobin => (LbPolicy::RoundRobin, None),
        BalancerPolicy::LeastRequest { choices } => {
            let config = LeastRequestLbConfig {
                choice_count: Some(wrap_u32(choices)),
                ..LeastRequestLbConfig::default()
            };
            (
                LbPolicy::LeastRequest,
                Some(LbConfig::LeastRequestLbConfig(config)),
            )
        }
        BalancerPolicy::RingHash { minimum, maximum } => {
            let config = RingHashLbConfig {
                // Envoy refuses a least that is over the most.
                minimum_ring_size: size(if maximum > 0 {
                    minimum.min(maximum)
                } else {
                    minimum
                }),
                maximum_ring_size: size(maximum),
                ..RingHashLbConfig::default()
            };
            (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config)))
        }
        BalancerPolicy::Maglev => (LbPolicy::Maglev, None),
    };
    cluster.lb_policy = lb_policy.into();
    cluster.lb_config = config;
}

/// The chain's bounds and retries, for where the route has none of its own.
pub(super) fn put_chain_settings(settings: &ChainSettings, parts: &mut RouteParts) {
    parts.timeout = settings.timeout;
    parts.idle_timeout = settings.idle_timeout;
    if let Some(retry) = &settings.retry {
        parts.retry = Some(mesh_retry(retry));
    }
}

/// By what an instance is picked, where the chain says so.
pub(super) fn hash_policies(settings: &ChainSettings) -> impl Iterator<Item = HashPolicy> {
    settings.hash.iter().map(|policy| HashPolicy {
        terminal: policy.terminal,
        policy_specifier: Some(match &policy.on {
            HashOn::SourceIp => {
                PolicySpecifier::ConnectionProperties(hash_policy::ConnectionProperties { source_ip: true })
            }
            HashOn::Header(name) => PolicySpecifier::Header(hash_policy::Header {
                header_name: name.to_string(),
                ..hash_policy::Header::default()
            }),
            HashOn::QueryParameter(name) => PolicySpecifier::QueryParameter(hash_policy::QueryParameter {
                name: name.to_string(),
            }),
            HashOn::Cookie { name, ttl, path } => PolicySpecifier::Cookie(hash_policy::Cookie {
                name: name.to_string(),
                ttl: ttl.map(duration),
                path: path.to_string(),
                ..hash_policy::Cookie::default()
            }),
        }),
    })
}
