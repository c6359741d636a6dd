//! Small conversions into Envoy's protobuf.

use std::time::Duration;

use envoy_types::pb::google::protobuf;
use prost::{Message, Name};

pub fn any<M: Message + Name>(message: &M) -> protobuf::Any {
    protobuf::Any {
        type_url: format!("type.googleapis.com/{}", M::full_name()),
        value: message.encode_to_vec(),
    }
}

pub fn duration(value: Duration) -> protobuf::Duration {
    protobuf::Duration {
        seconds: value.as_secs() as i64,
        nanos: value.subsec_nanos() as i32,
    }
}

pub fn wrap_u32(value: u32) -> protobuf::UInt32Value {
    protobuf::UInt32Value { value }
}

pub fn wrap_bool(value: bool) -> protobuf::BoolValue {
    protobuf::BoolValue { value }
}
