use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::retry_policy::{
    RetryBackOff, RetryHostPredicate, retry_host_predicate,
};
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, RetryPolicy};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};

use super::RetryPolicyValue;
use crate::envoy::{any, duration, wrap_u32};

/// Failures before the upstream can have seen the request.
pub(super) const SAFE_CONDITIONS: &[&str] = &["connect-failure", "refused-stream", "reset-before-request"];

/// Methods that HTTP defines as idempotent (RFC 9110, 9.2.2).
const IDEMPOTENT: &str = "GET|HEAD|OPTIONS|TRACE|PUT|DELETE";

pub(super) fn retry_policy(policy: &RetryPolicyValue) -> RetryPolicy {
    let unsafe_for_post = policy
        .on
        .iter()
        .any(|condition| !SAFE_CONDITIONS.contains(&&**condition))
        || policy.per_try_timeout.is_some();
    let retriable_request_headers = if unsafe_for_post && !policy.non_idempotent {
        vec![method_is_idempotent()]
    } else {
        Vec::new()
    };
    RetryPolicy {
        retry_on: policy.on.join(","),
        num_retries: Some(wrap_u32(policy.attempts)),
        per_try_timeout: policy.per_try_timeout.map(duration),
        retriable_status_codes: policy.status_codes.clone(),
        retriable_request_headers,
        // Another instance where there is one: the one that failed is asked again only when nobody else is left.
        retry_host_predicate: vec![RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".into(),
            config_type: Some(retry_host_predicate::ConfigType::TypedConfig(any(
                &PreviousHostsPredicate {},
            ))),
        }],
        host_selection_retry_max_attempts: 5,
        // Envoy's default of 25 ms up to 250 ms, stated so that the documentation can.
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(duration(std::time::Duration::from_millis(25))),
            max_interval: Some(duration(std::time::Duration::from_millis(250))),
        }),
        ..RetryPolicy::default()
    }
}

fn method_is_idempotent() -> HeaderMatcher {
    HeaderMatcher {
        name: ":method".into(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(MatchPattern::SafeRegex(RegexMatcher {
                regex: IDEMPOTENT.into(),
                ..RegexMatcher::default()
            })),
            ..StringMatcher::default()
        })),
        ..HeaderMatcher::default()
    }
}
