//! `retry`: which failures are tried again, how often, on another instance.

mod xds;

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::RetryPolicy;
use serde::Serialize;

use super::{Feature, Form, RouteParts};
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{BlockSchema, Reader, Type};
use crate::model::mesh::ChainRetry;

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

/// What a route tries again.
#[derive(Clone, Debug)]
pub struct RouteRetry {
    pub policy: RetryPolicy,
    /// Of requests that must not be repeated once an instance may have seen them: those with a method that is not
    /// idempotent. None: the same.
    pub of_others: Option<RetryPolicy>,
}

/// Methods that HTTP defines as idempotent (RFC 9110, 9.2.2).
pub const IDEMPOTENT_METHODS: &[&str] = &["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];

/// Envoy reads them from an answer, and a gRPC call is a POST.
const GRPC_CONDITIONS: &[&str] = &[
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// Conditions that a try over its time meets.
const TIMED_OUT: &[&str] = &["5xx", "gateway-error", "reset"];

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
                "Also retries POST (every gRPC call is one), PATCH and CONNECT on conditions after which the request may have \
                 taken effect. Without it they are retried only where no instance can have seen them.",
            ),
        )
    }

    fn decode(&self, reader: &Reader<'_>, problems: &mut Vec<Diagnostic>) -> Option<RetryPolicyValue> {
        let status_codes = reader.integers("status_codes");
        let per_try_timeout = reader.duration("per_try_timeout");
        let non_idempotent = reader.boolean("non_idempotent").unwrap_or(false);
        let mut on = reader.strings("on");
        let has = |on: &[Arc<str>], any: &[&str]| on.iter().any(|condition| any.contains(&&**condition));
        if on.is_empty() && status_codes.is_empty() {
            on = xds::SAFE_CONDITIONS
                .iter()
                .map(|condition| Arc::from(*condition))
                .collect();
            if per_try_timeout.is_some() {
                // Whoever bounds a try wants another one.
                on.push("reset".into());
            }
        } else if per_try_timeout.is_some() && !has(&on, TIMED_OUT) {
            problems.push(
                Diagnostic::warning(
                    Code::NoEffect,
                    "a try that takes longer than per_try_timeout is not repeated",
                )
                .at(reader.origin_of("per_try_timeout"))
                .because("nothing in `on` takes it for a failure: it is answered with 504")
                .fix("add \"reset\" (or \"5xx\") to `on`, or bound the whole request with `timeout`"),
            );
        }
        if !non_idempotent && has(&on, GRPC_CONDITIONS) {
            problems.push(
                Diagnostic::warning(
                    Code::NoEffect,
                    "gRPC calls are not repeated on what `on` says of them",
                )
                .at(reader.origin_of("on"))
                .because("a gRPC call is a POST, which may have taken effect")
                .fix("set non_idempotent = true where the service recognises a repeated call"),
            );
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
            per_try_timeout,
            non_idempotent,
        })
    }

    fn apply(&self, policy: &RetryPolicyValue, route: &mut RouteParts) {
        route.retry = Some(xds::route_retry(policy));
    }
}

/// What a service router of Consul's asks for. Consul retries whatever the method is, and so does its word here.
pub fn mesh_retry(retry: &ChainRetry) -> RouteRetry {
    let mut on: Vec<Arc<str>> = retry.on.clone();
    if on.is_empty() {
        // A number alone: what surely had no effect.
        on.extend(xds::SAFE_CONDITIONS.iter().map(|condition| Arc::from(*condition)));
    }
    xds::route_retry(&RetryPolicyValue {
        attempts: retry.attempts,
        on,
        status_codes: retry.status_codes.clone(),
        per_try_timeout: None,
        non_idempotent: true,
    })
}

/// What applies where no document says anything.
pub fn default_retry() -> RetryPolicy {
    let retry = xds::route_retry(&RetryPolicyValue {
        attempts: 2,
        on: xds::SAFE_CONDITIONS
            .iter()
            .map(|condition| Arc::from(*condition))
            .collect(),
        status_codes: Vec::new(),
        per_try_timeout: None,
        non_idempotent: false,
    });
    retry.policy
}
