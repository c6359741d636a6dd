//! Conversations that the properties found, each once in many runs.

use super::*;

#[test]
fn what_envoy_applied_of_refused_responses_is_not_noted_as_something_older() {
    let cluster = |number: u8, version: u8, endpoints: Option<u8>| (number, Cluster { version, endpoints });
    let world = |clusters: &[(u8, Cluster)], routes: &[(u8, (u8, u8))]| {
        Step::Publish(World {
            clusters: clusters.iter().cloned().collect(),
            routes: routes.iter().copied().collect(),
            secrets: BTreeMap::new(),
        })
    };
    let steps = [
        world(&[cluster(3, 0, Some(0))], &[]),
        Step::Handle(3),
        Step::Reconnect,
        world(&[cluster(1, 0, None)], &[]),
        world(&[cluster(2, 0, None)], &[]),
        Step::Handle(3),
        world(&[], &[]),
        Step::Handle(2),
        world(&[cluster(1, 3, None)], &[]),
        world(&[cluster(1, 1, None), cluster(3, 0, None)], &[(0, (0, 1))]),
        Step::Wait(196),
        world(&[cluster(1, 3, None)], &[]),
    ];
    let checks = Checks {
        references: false,
        refusals: true,
    };
    play(Variant::Delta, &steps, checks).unwrap();
}
