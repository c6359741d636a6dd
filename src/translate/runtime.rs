//! Runtime values: the listeners' connection limits.
//!
//! Not the connection limit filter: it counts per filter chain, so that a listener of N certificates would take N times
//! its limit, and it begins again with every chain that is rebuilt. Envoy's own limit counts per listener, before TLS.

use bytes::BytesMut;
use envoy_types::pb::google::protobuf::{Value, value};
use prost::Message;

use super::ordered::put_bytes;
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
fn encode(values: &[(String, u32)]) -> BytesMut {
    let mut layer = BytesMut::new();
    for (key, number) in values {
        let value = Value {
            kind: Some(value::Kind::NumberValue(f64::from(*number))),
        };
        let mut entry = BytesMut::new();
        put_bytes(&mut entry, 1, key.as_bytes());
        put_bytes(&mut entry, 2, &value.encode_to_vec());
        put_bytes(&mut layer, 1, &entry);
    }
    let mut message = BytesMut::new();
    put_bytes(&mut message, 1, RUNTIME_LAYER.as_bytes());
    put_bytes(&mut message, 2, &layer);
    message
}
