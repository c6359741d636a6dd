use std::collections::BTreeMap;
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
    let mut by_priority: BTreeMap<u32, Vec<LbEndpoint>> = BTreeMap::new();
    for endpoint in endpoints {
        let address = endpoint.address.to_string();
        by_priority
            .entry(endpoint.priority)
            .or_default()
            .push(lb_endpoint(&address, endpoint.port, endpoint.weight));
    }
    // Envoy wants priorities without gaps: a datacenter without a healthy instance is none.
    let groups = (0..).zip(by_priority.into_values());
    let message = ClusterLoadAssignment {
        cluster_name: cluster.to_string(),
        endpoints: groups
            .map(|(priority, lb_endpoints)| LocalityLbEndpoints {
                lb_endpoints,
                priority,
                ..LocalityLbEndpoints::default()
            })
            .collect(),
        ..ClusterLoadAssignment::default()
    };
    Resource::new(ResourceKind::Endpoint, cluster.clone(), &message.encode_to_vec())
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
