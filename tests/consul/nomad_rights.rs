//! Rights in Nomad that go and come back to the same token, where an upstream takes all namespaces. Nothing moves in Nomad's list
//! when they do.

use std::time::Duration;

use crate::event_stream::{named, want, watch};
use crate::nomad::NomadContract;

/// More than the services that are wanted.
const PLACES: usize = 8;

#[tokio::test]
async fn a_right_given_back_to_the_same_token_is_found_by_itself() {
    let nomad = NomadContract::start("t").await;
    for (namespace, port) in [("blue", 1), ("green", 2)] {
        nomad.register(namespace, "web", port);
    }
    let (mut running, watcher) = watch(&nomad, PLACES, Duration::from_secs(3600));
    want(&watcher, &[named("web", Some("*"))]);
    assert_eq!(running.service().await.result.unwrap().len(), 2);

    nomad.narrow_token("t", Some("blue"));
    // Something must wake the poll.
    nomad.register("blue", "web", 3);
    assert_eq!(running.service().await.result.unwrap().len(), 3);
    let problem = running.service().await.result.unwrap_err();
    assert!(problem.message.contains("namespace=green"), "{problem}");
    // It is asked for again and again, and told once.
    let asked = || {
        let asked = nomad.asked();
        let green = asked.iter().filter(|path| path.ends_with("/web?namespace=green"));
        green.count()
    };
    let before = asked();
    while asked() < before + 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(running.observations.is_empty());

    nomad.narrow_token("t", None);
    assert_eq!(
        running.service().await.result.unwrap().len(),
        3,
        "the problem is over"
    );
    // Then the list is waited for as before: a change is found, and nobody asks meanwhile.
    let settled = asked();
    nomad.deregister("green", "web", 2);
    assert_eq!(running.service().await.result.unwrap().len(), 2);
    assert_eq!(asked(), settled + 1);
}
