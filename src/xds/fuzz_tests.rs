//! Random conversations: what `fuzz` plays, without its guide.

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;
use proptest::prelude::*;

use super::fuzz::{Step, play};
use crate::envoy::ResourceKind;

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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fuzz_delta_requests(steps in steps(delta())) {
        play(&steps);
    }

    #[test]
    fn fuzz_state_of_the_world_requests(steps in steps(whole())) {
        play(&steps);
    }
}
