//! Runtime values: the listeners' connection limits.
//!
//! Not the connection limit filter: it counts per filter chain, so that a listener of N certificates would take N times
//! its limit, and it begins again with every chain that is rebuilt. Envoy's own limit counts per listener, before TLS.

use envoy_types::pb::google::protobuf::{Value, value};

use super::encoding::{put_bytes, put_message, put_struct};
use crate::config::Gateway;
use crate::envoy::bootstrap::RUNTIME_LAYER;
use crate::envoy::{Resource, ResourceKind};

/// Always there, if with nothing in it: Envoy asks for it by name before it asks for clusters.
pub(super) fn runtime_resource(gateway: Option<&Gateway>) -> Resource {
    let listeners = gateway.into_iter().flat_map(|gateway| &gateway.listeners);
    let mut limits: Vec<(String, u32)> = listeners
        .filter_map(|listener| {
            let key = format!(
                "envoy.resource_limits.listener.{}.connection_limit",
                listener.name
            );
            Some((key, listener.max_connections?))
        })
        .collect();
    limits.sort();
    let origins: Vec<_> = gateway
        .into_iter()
        .map(|gateway| gateway.origin.document.clone())
        .collect();
    Resource::new(ResourceKind::Runtime, RUNTIME_LAYER.into(), &encode(&limits))
        .from_documents(origins.into())
}

/// `envoy.service.runtime.v3.Runtime`: its `layer` is a `Struct`, whose map must be in key order.
fn encode(values: &[(String, u32)]) -> Vec<u8> {
    let mut message = Vec::new();
    put_bytes(&mut message, 1, RUNTIME_LAYER.as_bytes());
    put_message(&mut message, 2, |layer| {
        for (key, number) in values {
            let value = Value {
                kind: Some(value::Kind::NumberValue(f64::from(*number))),
            };
            put_message(layer, 1, |entry| {
                put_bytes(entry, 1, key.as_bytes());
                put_struct(entry, 2, &value);
            });
        }
    });
    message
}
