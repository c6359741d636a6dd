//! Responses as gRPC bytes, assembled around resources that were encoded once.
//!
//! tonic's encoder would copy a whole response into one buffer per stream. Here a response is cut into chunks while
//! HTTP/2 takes them: small resources are copied into a chunk, large ones are handed over as the shared `Bytes`, so a
//! slow Envoy holds pointers and one chunk, not its own copy of everything. Responses are not split into several: Envoy
//! has no limit on their size, and a first answer that is cut would let it go live with half of the clusters.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::exchange::{Response, Variant};
use super::subscription::Held;
use crate::envoy::Resource;

/// Resources from this size on go out without a copy: one HTTP/2 frame of its own costs less than copying.
const SHARE_FROM: usize = 8 << 10;
/// Smaller resources are gathered up to this size: Envoy's HTTP/2 frame size limit is 16 KiB by default.
const CHUNK: usize = 16 << 10;
/// Uncompressed flag and message length.
const GRPC_PREFIX: usize = 5;

/// `DiscoveryResponse` and `DeltaDiscoveryResponse` agree on these tags.
const VERSION: u32 = 1;
const RESOURCES: u32 = 2;
const TYPE_URL: u32 = 4;
const NONCE: u32 = 5;
/// Delta only.
const REMOVED_RESOURCES: u32 = 6;

/// The version of a state-of-the-world subscription: derived from names and versions only, so that every process that
/// would send the same says the same.
pub(super) fn whole_version(held: &Held) -> String {
    let mut hasher = blake3::Hasher::new();
    for resource in held.values() {
        for part in [&resource.name, &resource.version] {
            hasher.update(&(part.len() as u32).to_le_bytes());
            hasher.update(part.as_bytes());
        }
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// One gRPC message, cut into chunks as they are asked for.
pub(super) struct Chunks {
    variant: Variant,
    buffer: BytesMut,
    resources: std::vec::IntoIter<Arc<Resource>>,
    tail: Option<Bytes>,
    /// A large resource whose key and length are already in the buffer.
    shared: Option<Bytes>,
}

impl Chunks {
    pub(super) fn new(variant: Variant, response: Response) -> Self {
        let mut head = BytesMut::with_capacity(CHUNK.min(512 + response.resources.len() * 512));
        let mut tail = BytesMut::new();
        put_text(&mut tail, TYPE_URL, response.kind.type_url());
        put_text(&mut tail, NONCE, &response.nonce.to_string());
        response
            .removed
            .iter()
            .for_each(|name| put_text(&mut tail, REMOVED_RESOURCES, name));
        let version_length = if response.version.is_empty() {
            0
        } else {
            field_length(response.version.len())
        };
        let resources_length: usize = response
            .resources
            .iter()
            .filter_map(|resource| encoded(variant, resource))
            .map(|bytes| field_length(bytes.len()))
            .sum();
        head.put_u8(0);
        // A gateway of 4 GiB does not fit into this process either.
        head.put_u32(u32::try_from(version_length + resources_length + tail.len()).unwrap_or(u32::MAX));
        debug_assert_eq!(head.len(), GRPC_PREFIX);
        if !response.version.is_empty() {
            put_text(&mut head, VERSION, &response.version);
        }
        Self {
            variant,
            buffer: head,
            resources: response.resources.into_iter(),
            tail: Some(tail.freeze()),
            shared: None,
        }
    }
}

impl Iterator for Chunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if let Some(shared) = self.shared.take() {
            return Some(shared);
        }
        for resource in self.resources.by_ref() {
            let Some(bytes) = encoded(self.variant, &resource) else {
                continue;
            };
            encode_key(RESOURCES, WireType::LengthDelimited, &mut self.buffer);
            encode_varint(bytes.len() as u64, &mut self.buffer);
            if bytes.len() >= SHARE_FROM {
                self.shared = Some(bytes.clone());
                return Some(self.buffer.split().freeze());
            }
            self.buffer.put_slice(bytes);
            if self.buffer.len() >= CHUNK {
                return Some(std::mem::take(&mut self.buffer).freeze());
            }
        }
        let tail = self.tail.take()?;
        self.buffer.put_slice(&tail);
        Some(std::mem::take(&mut self.buffer).freeze())
    }
}

fn encoded(variant: Variant, resource: &Resource) -> Option<&Bytes> {
    match variant {
        Variant::Delta => resource.delta_bytes(),
        Variant::StateOfTheWorld => resource.any_bytes(),
    }
}

fn put_text(buffer: &mut BytesMut, tag: u32, text: &str) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(text.len() as u64, buffer);
    buffer.put_slice(text.as_bytes());
}

fn field_length(length: usize) -> usize {
    // All tags used here take one byte.
    1 + encoded_len_varint(length as u64) + length
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
    use prost::Message;

    use super::*;
    use crate::envoy::ResourceKind;

    fn response(sizes: &[usize]) -> Response {
        let resources = sizes
            .iter()
            .enumerate()
            .map(|(at, size)| {
                Arc::new(Resource::new(
                    ResourceKind::Cluster,
                    format!("c{at}").into(),
                    &vec![7; *size],
                ))
            })
            .collect();
        Response {
            kind: ResourceKind::Cluster,
            nonce: 42,
            version: "v".into(),
            resources,
            removed: vec!["gone".into()],
        }
    }

    fn body(variant: Variant, response: Response) -> (usize, Vec<u8>) {
        let bytes: Vec<u8> = Chunks::new(variant, response).flatten().collect();
        assert_eq!(bytes[0], 0);
        let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
        (length, bytes[5..].to_vec())
    }

    #[test]
    fn decodes_as_the_protobuf_messages() {
        for sizes in [&[][..], &[3], &[10, SHARE_FROM, 20, 3 * CHUNK], &[CHUNK / 2; 9]] {
            let sent = response(sizes);
            let (length, bytes) = body(Variant::Delta, sent.clone());
            assert_eq!(length, bytes.len());
            let decoded = DeltaDiscoveryResponse::decode(&*bytes).unwrap();
            assert_eq!(decoded.resources.len(), sizes.len());
            assert_eq!(
                (decoded.nonce.as_str(), decoded.system_version_info.as_str()),
                ("42", "v")
            );
            assert_eq!(
                (decoded.type_url.as_str(), &*decoded.removed_resources[0]),
                (sent.kind.type_url(), "gone")
            );
            assert!(
                decoded
                    .resources
                    .iter()
                    .zip(&sent.resources)
                    .all(|(got, sent)| got.version == *sent.version)
            );

            let sent = Response {
                removed: Vec::new(),
                ..response(sizes)
            };
            let (length, bytes) = body(Variant::StateOfTheWorld, sent.clone());
            assert_eq!(length, bytes.len());
            let decoded = DiscoveryResponse::decode(&*bytes).unwrap();
            assert_eq!(
                (decoded.nonce.as_str(), decoded.version_info.as_str()),
                ("42", "v")
            );
            assert!(
                decoded
                    .resources
                    .iter()
                    .zip(sizes)
                    .all(|(got, size)| got.value.len() == *size)
            );
            assert_eq!(decoded.resources.len(), sizes.len());
        }
    }

    #[test]
    fn streams_share_the_bytes_of_large_resources() {
        let sent = response(&[10, 100_000]);
        let original = sent.resources[1].delta_bytes().unwrap().as_ptr();
        for _ in 0..100 {
            assert!(Chunks::new(Variant::Delta, sent.clone()).any(|chunk| chunk.as_ptr() == original));
        }
    }
}
