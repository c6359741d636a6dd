//! `retry`: which failures are tried again, how often, on another instance.

mod xds;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Feature, Form, RouteParts};
use crate::diagnostics::Diagnostic;
use crate::hcl::{BlockSchema, Reader, Type};

pub struct Retry;

/// Envoy's own words (`x-envoy-retry-on`), as Consul's `service-router` uses them.
const CONDITIONS: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "refused-stream",
    "retriable-4xx",
    "retriable-status-codes",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RetryPolicyValue {
    attempts: u32,
    on: Vec<Arc<str>>,
    status_codes: Vec<u32>,
    per_try_timeout: Option<Duration>,
    non_idempotent: bool,
}

impl Feature for Retry {
    type Policy = RetryPolicyValue;

    const NAME: &'static str = "retry";

    fn form(&self) -> Form {
        Form::Block(
            BlockSchema::new(
                "retry",
                &[],
                "Tries a failed request again, on another instance where there is one. Without this block requests that \
                 surely had no effect (connect-failure, refused-stream, reset-before-request) are tried up to 2 times more.",
            )
            .attribute("attempts", Type::Integer(0, 10), Some("1"), "2", "How many times more, 0 to switch every retry off.")
            .attribute(
                "on",
                Type::List(&Type::Word(CONDITIONS)),
                Some("[\"connect-failure\", \"refused-stream\", \"reset-before-request\"]"),
                "[\"connect-failure\", \"5xx\"]",
                "What is tried again, in Envoy's words.",
            )
            .attribute(
                "status_codes",
                Type::List(&Type::Integer(400, 599)),
                Some("[]"),
                "[503]",
                "Statuses for the condition \"retriable-status-codes\", which they imply.",
            )
            .attribute(
                "per_try_timeout",
                Type::Duration(1, 3_600_000),
                None,
                "\"2s\"",
                "Longest time of one try. The route's `timeout` bounds all tries together.",
            )
            .attribute(
                "non_idempotent",
                Type::Bool,
                Some("false"),
                "true",
                "Also retries POST, PATCH and CONNECT on conditions after which the request may have taken effect. \
                 Without it, a retry block with such a condition retries idempotent methods only.",
            ),
        )
    }

    fn decode(&self, reader: &Reader<'_>, _: &mut Vec<Diagnostic>) -> Option<RetryPolicyValue> {
        let status_codes = reader.integers("status_codes");
        let mut on = reader.strings("on");
        if on.is_empty() && status_codes.is_empty() {
            on = xds::SAFE_CONDITIONS
                .iter()
                .map(|condition| Arc::from(*condition))
                .collect();
        }
        if !status_codes.is_empty()
            && !on
                .iter()
                .any(|condition| &**condition == "retriable-status-codes")
        {
            on.push("retriable-status-codes".into());
        }
        Some(RetryPolicyValue {
            attempts: reader.unsigned("attempts").unwrap_or(1),
            on,
            status_codes,
            per_try_timeout: reader.duration("per_try_timeout"),
            non_idempotent: reader.boolean("non_idempotent").unwrap_or(false),
        })
    }

    fn apply(&self, policy: &RetryPolicyValue, route: &mut RouteParts) {
        route.retry = Some(xds::retry_policy(policy));
    }
}

/// What a service router of Consul's asks for. Consul retries whatever the method is, and so does its word here.
pub fn mesh_retry(
    retry: &crate::model::mesh::ChainRetry,
) -> envoy_types::pb::envoy::config::route::v3::RetryPolicy {
    let mut on: Vec<Arc<str>> = retry.on.clone();
    if on.is_empty() {
        // A number alone: what surely had no effect.
        on.extend(xds::SAFE_CONDITIONS.iter().map(|condition| Arc::from(*condition)));
    }
    xds::retry_policy(&RetryPolicyValue {
        attempts: retry.attempts,
        on,
        status_codes: retry.status_codes.clone(),
        per_try_timeout: None,
        non_idempotent: true,
    })
}

/// What applies where no document says anything.
pub fn default_retry() -> envoy_types::pb::envoy::config::route::v3::RetryPolicy {
    xds::retry_policy(&RetryPolicyValue {
        attempts: 2,
        on: xds::SAFE_CONDITIONS
            .iter()
            .map(|condition| Arc::from(*condition))
            .collect(),
        status_codes: Vec::new(),
        per_try_timeout: None,
        non_idempotent: false,
    })
}
