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
pub(super) fn endpoint_resource(cluster: &Arc<str>, endpoints: &[ir::Endpoint]) -> Resource {
    Resource::new(
        ResourceKind::Endpoint,
        cluster.clone(),
        &encode_assignment(cluster, endpoints),
    )
}

/// What a [`ClusterLoadAssignment`] with one locality per priority encodes to.
fn encode_assignment(cluster: &str, endpoints: &[ir::Endpoint]) -> Vec<u8> {
    // Mostly one.
    let mut priorities: Vec<u32> = endpoints.iter().map(|endpoint| endpoint.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let mut buffer = Vec::with_capacity(cluster.len() + 16 + 48 * endpoints.len());
    put_bytes(&mut buffer, 1, cluster.as_bytes());
    let mut address = String::new();
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
    buffer
}

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
            assert_eq!(
                encode_assignment("consul/web", endpoints),
                assignment("consul/web", structs.collect()).encode_to_vec()
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
        let written = encode_assignment("consul/web", &[endpoint(1, 1), endpoint(2, 3), endpoint(3, 1)]);
        let group = |priority, numbers: &[u8]| LocalityLbEndpoints {
            lb_endpoints: numbers
                .iter()
                .map(|number| lb_endpoint(&format!("10.0.0.{number}"), 8000, 1))
                .collect(),
            priority,
            ..LocalityLbEndpoints::default()
        };
        assert_eq!(
            ClusterLoadAssignment::decode(&written[..]).unwrap().endpoints,
            [group(0, &[1, 3]), group(1, &[2])]
        );
    }
}
