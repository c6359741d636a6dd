//! `timeout`: how long a request may take, from the last byte received to the last byte answered.

use std::time::Duration;

use super::{Feature, Form, RouteParts};
use crate::diagnostics::Diagnostic;
use crate::hcl::{AttributeSchema, Reader, Type};

pub struct Timeout;

impl Feature for Timeout {
    type Policy = Duration;

    const NAME: &'static str = "timeout";

    fn form(&self) -> Form {
        Form::Attribute(AttributeSchema {
            name: Self::NAME,
            ty: Type::Duration(0, 24 * 3_600_000),
            required: false,
            default: Some("\"0s\""),
            example: "\"10s\"",
            doc: "Longest time from the whole request received to the whole response sent, retries included; then 504. \
                  \"0s\" is no bound: WebSockets, gRPC streams and server-sent events live on. The bound for idle streams \
                  is the listener's `stream_idle_timeout`.",
        })
    }

    fn decode(&self, reader: &Reader<'_>, _: &mut Vec<Diagnostic>) -> Option<Duration> {
        reader.duration(Self::NAME)
    }

    fn apply(&self, policy: &Duration, route: &mut RouteParts) {
        route.timeout = Some(*policy);
    }
}
