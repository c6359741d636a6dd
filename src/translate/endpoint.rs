use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress, address};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use prost::Message;

use crate::envoy::{Resource, ResourceKind, wrap_u32};
use crate::ir;

/// The endpoint lane: one service's addresses to one resource, nothing else looked at.
pub(super) fn endpoint_resource(cluster: &Arc<str>, endpoints: &[ir::Endpoint]) -> Resource {
    let lb_endpoints = endpoints
        .iter()
        .map(|endpoint| lb_endpoint(&endpoint.address.to_string(), endpoint.port, endpoint.weight))
        .collect();
    Resource::new(
        ResourceKind::Endpoint,
        cluster.clone(),
        &assignment(cluster, lb_endpoints).encode_to_vec(),
    )
}

pub(super) fn assignment(cluster: &str, lb_endpoints: Vec<LbEndpoint>) -> ClusterLoadAssignment {
    let endpoints = if lb_endpoints.is_empty() {
        Vec::new()
    } else {
        vec![LocalityLbEndpoints {
            lb_endpoints,
            ..LocalityLbEndpoints::default()
        }]
    };
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints,
        ..ClusterLoadAssignment::default()
    }
}

pub(super) fn lb_endpoint(host: &str, port: u16, weight: u32) -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(socket_address(host, port)),
            ..Endpoint::default()
        })),
        load_balancing_weight: Some(wrap_u32(weight)),
        ..LbEndpoint::default()
    }
}

pub(super) fn socket_address(host: &str, port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(port))),
            ..SocketAddress::default()
        })),
    }
}

/// `host:port`, as the schema's check has let through.
pub(super) fn split_host_port(text: &str) -> (&str, u16) {
    let (host, port) = text.rsplit_once(':').unwrap_or((text, "0"));
    (host, port.parse().unwrap_or_default())
}

pub(super) fn is_ip(host: &str) -> bool {
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>()
        .is_ok()
}
