//! Requests that no Envoy sends: any bytes, any nonce, any order. Never a panic, never more state than the limits allow.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;
use proptest::prelude::*;

use super::service::DiscoveryMessage;
use super::{Limits, StreamState};
use crate::envoy::{Resource, ResourceKind, ResourceSet};

const NAMES: usize = 8;

fn limits() -> Limits {
    Limits {
        names: NAMES,
        name_bytes: 32,
        ..Limits::default()
    }
}

fn set(version: u8) -> ResourceSet {
    let mut set = ResourceSet::default();
    for kind in ResourceKind::ALL {
        for name in ["a", "b", "c"].iter().take(usize::from(version % 4)) {
            set.insert(Arc::new(Resource::new(kind, Arc::from(*name), &[8, version])));
        }
    }
    set
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-d*]", 1 => Just(String::new()), 1 => "\\PC{0,40}"]
}

fn names() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(name(), 0..6)
}

fn nonce() -> impl Strategy<Value = String> {
    prop_oneof![3 => Just(String::new()), 6 => (0..12u64).prop_map(|n| n.to_string()), 1 => ".{0,8}"]
}

fn error() -> impl Strategy<Value = Option<Status>> {
    prop::option::weighted(0.2, ".{0,30}|(a|b): bad").prop_map(|message| {
        message.map(|message| Status {
            message,
            ..Status::default()
        })
    })
}

fn delta() -> impl Strategy<Value = DeltaDiscoveryRequest> {
    let initial = prop::collection::hash_map(name(), ".{0,4}", 0..4);
    (names(), names(), initial, nonce(), error()).prop_map(
        |(subscribe, unsubscribe, initial, response_nonce, error_detail)| DeltaDiscoveryRequest {
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: initial,
            response_nonce,
            error_detail,
            ..DeltaDiscoveryRequest::default()
        },
    )
}

fn whole() -> impl Strategy<Value = DiscoveryRequest> {
    (names(), ".{0,4}", nonce(), error()).prop_map(
        |(resource_names, version_info, response_nonce, error_detail)| DiscoveryRequest {
            resource_names,
            version_info,
            response_nonce,
            error_detail,
            ..DiscoveryRequest::default()
        },
    )
}

#[derive(Clone, Debug)]
enum Step<M> {
    Request(usize, M),
    Bytes(usize, Vec<u8>),
    Set(u8),
    Time(u64),
}

fn steps<M: Clone + std::fmt::Debug + 'static>(
    message: impl Strategy<Value = M> + 'static,
) -> impl Strategy<Value = Vec<Step<M>>> {
    let step = prop_oneof![
        6 => (0..ResourceKind::ALL.len(), message).prop_map(|(kind, message)| Step::Request(kind, message)),
        1 => (0..ResourceKind::ALL.len(), prop::collection::vec(any::<u8>(), 0..60)).prop_map(|(kind, bytes)| Step::Bytes(kind, bytes)),
        2 => (0..8u8).prop_map(Step::Set),
        2 => (0..20_000u64).prop_map(Step::Time),
    ];
    prop::collection::vec(step, 1..30)
}

fn play<M: DiscoveryMessage + Clone>(steps: &[Step<M>]) -> Result<(), TestCaseError> {
    let mut state = StreamState::new(M::VARIANT, &limits());
    let mut now = Duration::ZERO;
    for step in steps {
        let outcome = match step {
            Step::Request(kind, message) => {
                // Through bytes, as it comes from the wire.
                let decoded = M::decode(message.encode_to_vec().as_slice());
                let request = decoded.unwrap().into_request(ResourceKind::ALL[*kind]);
                state.on_request(request, now)
            }
            Step::Bytes(kind, bytes) => match M::decode(bytes.as_slice()) {
                Ok(message) => state.on_request(message.into_request(ResourceKind::ALL[*kind]), now),
                Err(_) => continue,
            },
            Step::Set(version) => Ok(state.on_set(&set(*version), now)),
            Step::Time(millis) => {
                now += Duration::from_millis(*millis);
                Ok(state.on_deadline(now))
            }
        };
        let Ok(actions) = outcome else {
            // The stream ends: nothing further is asked of its state.
            return Ok(());
        };
        // One response a kind and input, or the parts of one that are being tried apart.
        prop_assert!(
            actions.responses.len() <= ResourceKind::ALL.len() * 2,
            "{} responses",
            actions.responses.len()
        );
        for response in &actions.responses {
            prop_assert!(response.resources.len() <= 3);
        }
        prop_assert!(actions.reports.len() <= 100, "{} reports", actions.reports.len());
        if let Some(at) = state.deadline(now) {
            prop_assert!(at > now, "a deadline in the past spins");
        }
        let _ = state.acked();
        for kind in ResourceKind::ALL {
            let _ = state.pending(kind);
            prop_assert!(state.refused(kind).count() <= 3);
            prop_assert!(state.wanted(kind).count() <= NAMES + 3);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fuzz_delta_requests(steps in steps(delta())) {
        play(&steps)?;
    }

    #[test]
    fn fuzz_state_of_the_world_requests(steps in steps(whole())) {
        play(&steps)?;
    }
}
