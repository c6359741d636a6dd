use envoy_types::pb::envoy::config::route::v3::RetryPolicy;
use envoy_types::pb::envoy::config::route::v3::retry_policy::{
    RetryBackOff, RetryHostPredicate, retry_host_predicate,
};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;

use super::{RetryPolicyValue, RouteRetry};
use crate::envoy::{any, duration, wrap_u32};

/// Failures before the upstream can have seen the request.
pub(super) const SAFE_CONDITIONS: &[&str] = &["connect-failure", "refused-stream", "reset-before-request"];

/// Conditions that take every end of a connection for a failure, those above too.
const WITHOUT_AN_ANSWER: &[&str] = &["5xx", "gateway-error", "reset"];

pub(super) fn route_retry(policy: &RetryPolicyValue) -> RouteRetry {
    let all = policy.on.iter().map(|condition| &**condition).collect::<Vec<_>>();
    let is_safe = |condition: &&str| SAFE_CONDITIONS.contains(condition);
    RouteRetry {
        policy: retry_policy(policy, &all),
        // Envoy has one policy for a route, for one kind of methods or for all. A policy for the idempotent alone would leave a
        // POST without a second try where the instance was not even reached, and take from it what it has without any block.
        of_others: (!policy.non_idempotent && !all.iter().all(is_safe)).then(|| {
            let safe = SAFE_CONDITIONS.iter().copied().filter(|safe| {
                all.iter()
                    .any(|condition| condition == safe || WITHOUT_AN_ANSWER.contains(condition))
            });
            retry_policy(policy, &safe.collect::<Vec<_>>())
        }),
    }
}

fn retry_policy(policy: &RetryPolicyValue, on: &[&str]) -> RetryPolicy {
    let by_status = on.contains(&"retriable-status-codes");
    RetryPolicy {
        retry_on: on.join(","),
        num_retries: Some(wrap_u32(policy.attempts)),
        per_try_timeout: policy.per_try_timeout.map(duration),
        retriable_status_codes: match by_status {
            true => policy.status_codes.clone(),
            false => Vec::new(),
        },
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
