//! The gateway's own sidecar: what it dials, by the answers of a Consul that has peerings, and what the checks of it say.

use std::sync::Arc;
use std::time::Duration;

use portreeve::model::{Lookup, Narrowing, ProblemKind, ServiceQuery};
use portreeve::sources::consul::ServiceWatcher;

use crate::answering::{Answer, AnsweringServer};
use crate::mesh::{client, wishes};
use crate::server::{Running, quick};

const REGISTRATION: &str = "/v1/agent/service/edge-gw-sidecar-proxy";
const CHECKS: &str = "/v1/agent/checks";

fn of_peer(peer: Option<&str>) -> ServiceQuery {
    let narrowing = Narrowing {
        peer: peer.map(Arc::from),
        ..Narrowing::default()
    };
    ServiceQuery::new(Lookup::Sidecar, "web".into(), narrowing)
}

fn watching(server: &AnsweringServer, peers: &[Option<&str>]) -> (Running, ServiceWatcher) {
    let (mut running, sender) = Running::new();
    let (watcher, task) = ServiceWatcher::of_sidecar(client(server), "edge-gw-sidecar-proxy".into(), sender);
    watcher.set_interests(wishes(peers.iter().map(|peer| of_peer(*peer))));
    running
        .tasks
        .spawn(task.with_timing(quick()).run(running.cancel.clone()));
    (running, watcher)
}

#[tokio::test]
async fn a_peered_service_is_dialed_by_the_gateway_s_own_sidecar() {
    let server = AnsweringServer::start().await;
    server.put(REGISTRATION, Answer::kept("own-sidecar"));
    let (mut running, _watcher) = watching(&server, &[None, Some("west"), Some("east")]);
    // The named port that the sidecar dials too is nobody's who asks for the service.
    for _ in 0..3 {
        let update = running.service().await;
        let listeners = update.result.unwrap();
        let found: Vec<_> = listeners.iter().map(|one| (&*one.address, one.port)).collect();
        let expected = match update.query.narrowing().peer.as_deref() {
            None => vec![("127.0.0.1", 9191)],
            Some("west") => vec![("127.0.0.1", 9192)],
            _ => vec![],
        };
        assert_eq!(found, expected, "{}", update.query);
    }
    // Looked at again and again, told once.
    let again = async {
        while server.asked(REGISTRATION).len() <= 3 {
            running.quiet_for(100).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), again)
        .await
        .expect("it is looked at again");
    server.put(REGISTRATION, Answer::kept("own-sidecar").with("9192", "9199"));
    let update = running.service().await;
    assert_eq!(update.query.narrowing().peer.as_deref(), Some("west"));
    assert_eq!(update.result.unwrap()[0].port, 9199);
}

#[tokio::test]
async fn a_check_of_the_sidecar_that_fails_is_told_beside_what_it_dials() {
    let server = AnsweringServer::start().await;
    server.put(REGISTRATION, Answer::kept("own-sidecar"));
    let passing = Answer::kept("agent-checks-of-sidecar");
    server.put(CHECKS, passing.clone());
    let (mut running, _watcher) = watching(&server, &[Some("west")]);
    assert_eq!(running.service().await.result.unwrap()[0].port, 9192);
    running.quiet_for(300).await;

    let success = "TCP connect 127.0.0.1:21000: Success";
    let refused = "dial tcp 127.0.0.1:21000: connect: connection refused";
    // At a start, before it was made for the first time.
    let listening = "\"Status\":\"passing\",\"Type\":\"tcp\"";
    let critical = "\"Status\":\"critical\",\"Type\":\"tcp\"";
    let failing = passing.clone().with(listening, critical);
    server.put(CHECKS, failing.clone().with(success, ""));
    running.quiet_for(300).await;
    server.put(CHECKS, failing.clone().with(success, refused));
    let problem = running.service().await.result.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Unavailable);
    for part in [
        "\"edge-gw-sidecar-proxy\"",
        "\"Connect Sidecar Listening\"",
        &server.address,
        refused,
    ] {
        assert!(problem.message.contains(part), "{problem:?} without {part}");
    }
    // Told once, be its output another one each time, and be there no answer for a while.
    server.put(CHECKS, failing.clone().with(success, "i/o timeout"));
    running.quiet_for(300).await;
    server.put(CHECKS, Answer::kept("rate-limited"));
    running.quiet_for(300).await;

    // What it dials is followed all the same.
    server.put(REGISTRATION, Answer::kept("own-sidecar").with("9192", "9199"));
    assert_eq!(running.service().await.result.unwrap()[0].port, 9199);
    server.put(CHECKS, failing.with(success, refused));
    assert!(running.service().await.result.is_err());
    server.put(CHECKS, passing);
    assert_eq!(running.service().await.result.unwrap()[0].port, 9199);
    running.quiet_for(300).await;
}
