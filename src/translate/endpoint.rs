use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress, address};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};

use super::encoding::{put_bytes, put_message, put_number};
use crate::envoy::{Resource, ResourceKind, wrap_u32};
use crate::ir;

/// The endpoint lane: one service's addresses to one resource, nothing else looked at.
/// `is_member`: of a cluster that fails over from one to the next.
pub(super) fn endpoint_resource(cluster: &Arc<str>, endpoints: &[ir::Endpoint], is_member: bool) -> Resource {
    Resource::new(
        ResourceKind::Endpoint,
        cluster.clone(),
        &encode_assignment(cluster, endpoints, is_member),
    )
}

/// What a [`ClusterLoadAssignment`] with one locality per priority encodes to.
fn encode_assignment(cluster: &str, endpoints: &[ir::Endpoint], is_member: bool) -> Vec<u8> {
    // Mostly one.
    let mut priorities: Vec<u32> = endpoints.iter().map(|endpoint| endpoint.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let mut buffer = Vec::with_capacity(cluster.len() + 16 + 48 * endpoints.len());
    put_bytes(&mut buffer, 1, cluster.as_bytes());
    let mut address = String::new();
    let is_in_order = is_member || priorities.len() > 1;
    // Envoy wants priorities without gaps: a datacenter without a healthy instance is none.
    for (priority, of) in (0..).zip(priorities) {
        put_message(&mut buffer, 2, |locality| {
            for endpoint in endpoints.iter().filter(|endpoint| endpoint.priority == of) {
                address.clear();
                put_address(&mut address, endpoint.address);
                put_endpoint(locality, &address, endpoint);
            }
            put_number(locality, 5, priority);
        });
    }
    if is_in_order {
        put_message(&mut buffer, 4, |policy| {
            put_message(policy, 3, |factor| put_number(factor, 1, SERVES_ALONE));
        });
    }
    buffer
}

/// `overprovisioning_factor`: who is first serves alone while a thousandth of it is healthy, as Consul has it. With Envoy's
/// 140 the next gets a share from 71 % on.
const SERVES_ALONE: u64 = 100_000;

/// As it is displayed. The formatter behind `Display` costs as much as everything else that is written of an endpoint.
fn put_address(text: &mut String, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            for (at, octet) in address.octets().into_iter().enumerate() {
                if at > 0 {
                    text.push('.');
                }
                for unit in [100, 10, 1] {
                    if octet >= unit || unit == 1 {
                        text.push(char::from(b'0' + octet / unit % 10));
                    }
                }
            }
        }
        IpAddr::V6(address) => {
            // Writing to a string does not fail.
            let _ = write!(text, "{address}");
        }
    }
}

fn put_endpoint(locality: &mut Vec<u8>, address: &str, endpoint: &ir::Endpoint) {
    put_message(locality, 2, |lb_endpoint| {
        // Endpoint, its Address, its SocketAddress.
        put_message(lb_endpoint, 1, |host| {
            put_message(host, 1, |at| {
                put_message(at, 1, |socket| {
                    put_bytes(socket, 2, address.as_bytes());
                    put_number(socket, 3, u64::from(endpoint.port));
                });
            });
        });
        put_message(lb_endpoint, 4, |weight| {
            put_number(weight, 1, u64::from(endpoint.weight))
        });
    });
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

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::endpoint::v3::cluster_load_assignment::Policy;
    use prost::Message;

    use super::*;

    #[test]
    fn written_by_hand_it_is_what_the_struct_encodes_to() {
        let endpoint = |address: &str, port, weight| ir::Endpoint {
            address: address.parse().unwrap(),
            port,
            weight,
            priority: 0,
        };
        let several: Vec<ir::Endpoint> = (1..60)
            .map(|number| endpoint(&format!("10.0.0.{number}"), 8000 + number, u32::from(number)))
            .chain([
                endpoint("2001:db8::17", 65535, 1_000_000),
                endpoint("::ffff:1.2.3.4", 1, 1),
            ])
            .collect();
        for endpoints in [&[][..], &several[..1], &several[..]] {
            let structs = endpoints
                .iter()
                .map(|endpoint| lb_endpoint(&endpoint.address.to_string(), endpoint.port, endpoint.weight));
            let mut assignment = assignment("consul/web", structs.collect());
            assert_eq!(
                encode_assignment("consul/web", endpoints, false),
                assignment.encode_to_vec()
            );
            assignment.policy = Some(Policy {
                overprovisioning_factor: Some(wrap_u32(100_000)),
                ..Policy::default()
            });
            assert_eq!(
                encode_assignment("consul/web", endpoints, true),
                assignment.encode_to_vec()
            );
        }
    }

    #[test]
    fn addresses_are_written_as_they_are_displayed() {
        for octet in 0..=255 {
            for octets in [[octet, 0, 9, 255], [10, octet, 100, octet]] {
                let address = IpAddr::from(octets);
                let mut text = String::new();
                put_address(&mut text, address);
                assert_eq!(text, address.to_string());
            }
        }
    }

    #[test]
    fn priorities_have_no_gaps() {
        let endpoint = |number: u8, priority| ir::Endpoint {
            address: IpAddr::from([10, 0, 0, number]),
            port: 8000,
            weight: 1,
            priority,
        };
        let endpoints = [endpoint(1, 1), endpoint(2, 3), endpoint(3, 1)];
        let written = encode_assignment("consul/web", &endpoints, false);
        let group = |priority, numbers: &[u8]| LocalityLbEndpoints {
            lb_endpoints: numbers
                .iter()
                .map(|number| lb_endpoint(&format!("10.0.0.{number}"), 8000, 1))
                .collect(),
            priority,
            ..LocalityLbEndpoints::default()
        };
        let written = ClusterLoadAssignment::decode(&written[..]).unwrap();
        assert_eq!(written.endpoints, [group(0, &[1, 3]), group(1, &[2])]);
        // The second serves when the first has nobody.
        assert!(
            written
                .policy
                .is_some_and(|policy| policy.overprovisioning_factor.is_some())
        );
    }
}
