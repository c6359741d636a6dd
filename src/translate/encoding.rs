//! Protobuf written field by field: for what is made by the hundred thousand, building a struct of every field that Envoy
//! has costs more than the bytes, and the generated types keep maps in hash maps, whose encoding differs from process to
//! process.
//!
//! A message's encoding is the concatenation of its fields in any order. What is rare is still built as a struct and
//! appended ([`put_struct`]); the tests of each writer decode what it wrote.

use std::collections::BTreeMap;

use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use prost::encoding::{WireType, encode_varint};

/// A string, bytes or finished message.
pub(super) fn put_bytes(buffer: &mut Vec<u8>, tag: u32, value: &[u8]) {
    put_key(buffer, tag, WireType::LengthDelimited);
    put_varint(buffer, value.len() as u64);
    buffer.extend_from_slice(value);
}

fn put_key(buffer: &mut Vec<u8>, tag: u32, wire_type: WireType) {
    put_varint(buffer, u64::from(tag << 3 | wire_type as u32));
}

/// Almost every key, length and number here is one byte: the general loop is for the others.
fn put_varint(buffer: &mut Vec<u8>, value: u64) {
    match u8::try_from(value) {
        Ok(short) if short < 0x80 => buffer.push(short),
        _ => encode_varint(value, buffer),
    }
}

/// A number; 0 is what an absent one means.
pub(super) fn put_number(buffer: &mut Vec<u8>, tag: u32, value: u64) {
    if value != 0 {
        put_key(buffer, tag, WireType::Varint);
        put_varint(buffer, value);
    }
}

pub(super) fn put_struct(buffer: &mut Vec<u8>, tag: u32, message: &impl Message) {
    prost::encoding::message::encode(tag, message, buffer);
}

/// A message whose fields `write` appends.
pub(super) fn put_message(buffer: &mut Vec<u8>, tag: u32, write: impl FnOnce(&mut Vec<u8>)) {
    put_key(buffer, tag, WireType::LengthDelimited);
    // Most are shorter than 128 bytes, whose length is one byte.
    let start = buffer.len();
    buffer.push(0);
    write(buffer);
    let length = buffer.len() - start - 1;
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => buffer[start] = short,
        _ => {
            let mut prefix = Vec::with_capacity(5);
            encode_varint(length as u64, &mut prefix);
            buffer.splice(start..=start, prefix);
        }
    }
}

/// `map<string, Any>`, in the order of the keys.
pub(super) fn put_any_map(buffer: &mut Vec<u8>, tag: u32, entries: &BTreeMap<&'static str, Any>) {
    for (key, value) in entries {
        put_message(buffer, tag, |entry| {
            put_bytes(entry, 1, key.as_bytes());
            put_struct(entry, 2, value);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use envoy_types::pb::envoy::config::route::v3::Route;
    use envoy_types::pb::google::protobuf::{Value, value::Kind};

    use super::*;

    #[test]
    fn lengths_of_every_size_are_read_back() {
        for length in [0, 1, 100, 126, 127, 128, 200, 16_383, 16_384, 40_000] {
            let text = "x".repeat(length);
            let mut buffer = Vec::new();
            put_message(&mut buffer, 6, |list| {
                put_message(list, 1, |value| put_bytes(value, 3, text.as_bytes()));
            });
            let value = Value::decode(&buffer[..]).unwrap();
            let Some(Kind::ListValue(list)) = value.kind else {
                panic!("{length}: {value:?}");
            };
            assert_eq!(list.values[0].kind, Some(Kind::StringValue(text)), "{length}");
        }
    }

    #[test]
    fn maps_are_written_in_the_order_of_their_keys() {
        let any = |url: &str| Any {
            type_url: url.to_owned(),
            value: Vec::new(),
        };
        let mut buffer = Vec::new();
        put_any_map(
            &mut buffer,
            13,
            &BTreeMap::from([("b", any("2")), ("a", any("1"))]),
        );
        let read = Route::decode(&buffer[..]).unwrap().typed_per_filter_config;
        assert_eq!(
            read,
            HashMap::from([("b".to_owned(), any("2")), ("a".to_owned(), any("1"))])
        );
        let position = |key: u8| buffer.windows(3).position(|bytes| bytes == [10, 1, key]);
        assert!(position(b'a') < position(b'b'));
    }
}
