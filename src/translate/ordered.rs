//! Protobuf maps in key order.
//!
//! The generated types keep maps in hash maps, so their encoding differs from process to process. A message's encoding
//! is the concatenation of its fields in any order: we encode it without the map and append the entries, sorted.

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

/// Appends `map<string, Any>` as field `tag`.
pub(super) fn put_any_map(buffer: &mut BytesMut, tag: u32, entries: &BTreeMap<&'static str, Any>) {
    for (key, value) in entries {
        let mut entry = BytesMut::new();
        put_bytes(&mut entry, 1, key.as_bytes());
        put_bytes(&mut entry, 2, &value.encode_to_vec());
        put_bytes(buffer, tag, &entry);
    }
}

/// Appends a string, bytes or message field.
pub(super) fn put_bytes(buffer: &mut BytesMut, tag: u32, value: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(value.len() as u64, buffer);
    buffer.put_slice(value);
}
