//! Leader election, fencing and session-bound keys on a real Consul.

use std::time::{Duration, Instant};

use portreeve::sources::consul::{
    ConsulClient, FencedWriteError, LeaderElection, LeaderSettings, Leadership, SessionBehavior,
    SessionKeeper, SessionSettings, TxnWrite,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::server::Server;

const LOCK: &str = "portreeve/leader";

async fn until(leadership: &mut Leadership, leads: bool) -> Duration {
    let started = Instant::now();
    while leadership.is_leader() != leads {
        let change = tokio::time::timeout(Duration::from_secs(40), leadership.changed()).await;
        change.unwrap_or_else(|_| panic!("not {leads} in 40 s")).unwrap();
    }
    started.elapsed()
}

#[tokio::test]
async fn one_leads_another_follows_and_writes_are_fenced() {
    let server = Server::start().await;
    let (mut tasks, mut stands) = (JoinSet::new(), Vec::new());
    for owner in ["one", "two"] {
        let cancel = CancellationToken::new();
        let (election, leadership) =
            LeaderElection::new(server.client(None), LeaderSettings::new(LOCK, owner));
        tasks.spawn(election.run(cancel.clone()));
        let mut leadership = leadership;
        if owner == "one" {
            until(&mut leadership, true).await;
        }
        stands.push((cancel, leadership));
    }
    let (mut two, cancel_two) = {
        let (cancel, leadership) = stands.pop().unwrap();
        (leadership, cancel)
    };
    let (mut one, cancel_one) = {
        let (cancel, leadership) = stands.pop().unwrap();
        (leadership, cancel)
    };
    let write = |text: &str| {
        [TxnWrite::Set {
            key: "portreeve/status/all".to_owned(),
            value: text.to_owned().into(),
        }]
    };
    one.write(&write("by one")).await.unwrap();
    assert!(!two.is_leader());
    assert!(matches!(
        two.write(&write("by two")).await,
        Err(FencedWriteError::NotLeader)
    ));

    // A leader that steps down cleanly leaves no lock delay behind.
    cancel_one.cancel();
    until(&mut one, false).await;
    let taken = until(&mut two, true).await;
    assert!(taken < Duration::from_secs(8), "{taken:?}");
    two.write(&write("by two")).await.unwrap();
    let entry = server
        .client(None)
        .read_key("portreeve/status/all")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&entry.value[..], b"by two");

    // A lock taken away by force is noticed, and what the loser still sends is refused by Consul itself.
    let holder = server.client(None).read_key(LOCK).await.unwrap().unwrap();
    let stale = two.clone();
    server
        .put(&format!("session/destroy/{}", holder.session.unwrap()), "")
        .await;
    let refused = stale.write(&write("too late")).await;
    assert!(refused.is_err(), "{refused:?}");
    until(&mut two, false).await;
    // The lock delay (15 s) holds everyone off; then there is a leader again.
    let back = until(&mut two, true).await;
    assert!(back > Duration::from_secs(5), "{back:?}");
    cancel_two.cancel();
    while tasks.join_next().await.is_some() {}
}

#[tokio::test]
async fn leadership_ends_here_before_it_ends_there() {
    let mut server = Server::start().await;
    let cancel = CancellationToken::new();
    let (election, mut leadership) =
        LeaderElection::new(server.client(None), LeaderSettings::new(LOCK, "one"));
    let mut tasks = JoinSet::new();
    tasks.spawn(election.run(cancel.clone()));
    until(&mut leadership, true).await;
    server.stop();
    let held = until(&mut leadership, false).await;
    assert!(
        held <= Duration::from_millis(10_500),
        "TTL 15 s, trusted for 10 s: {held:?}"
    );
    cancel.cancel();
    while tasks.join_next().await.is_some() {}
}

fn keeper_of_node(client: &ConsulClient) -> SessionKeeper {
    let settings = SessionSettings::new("portreeve node n1", SessionBehavior::Delete);
    SessionKeeper::new(client.clone(), settings)
}

#[tokio::test]
async fn a_session_key_falls_with_its_session() {
    let server = Server::start().await;
    let client = server.client(None);
    let keeper = keeper_of_node(&client);
    let (key, mut session, cancel) = (keeper.key(), keeper.session(), CancellationToken::new());
    assert!(
        !key.write_session_key("portreeve/status/nodes/n1", "{}")
            .await
            .unwrap(),
        "no session yet"
    );
    let mut tasks = JoinSet::new();
    tasks.spawn(keeper.run(cancel.clone()));
    session.wait_for(Option::is_some).await.unwrap();
    assert!(
        key.write_session_key("portreeve/status/nodes/n1", "{}")
            .await
            .unwrap()
    );
    assert!(
        key.write_session_key("portreeve/status/nodes/n1", "{\"a\":1}")
            .await
            .unwrap()
    );
    assert!(
        client
            .read_key("portreeve/status/nodes/n1")
            .await
            .unwrap()
            .is_some()
    );
    cancel.cancel();
    while tasks.join_next().await.is_some() {}
    assert!(
        client
            .read_key("portreeve/status/nodes/n1")
            .await
            .unwrap()
            .is_none()
    );
}

/// Consul hangs for longer than a session is trusted, and takes its time once more for the next one.
#[tokio::test]
async fn a_session_that_nobody_renewed_in_time_is_replaced_by_one_that_is_kept() {
    let server = Server::start().await;
    let client = server.client(None);
    let keeper = keeper_of_node(&client);
    let (key, mut session, cancel) = (keeper.key(), keeper.session(), CancellationToken::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(keeper.run(cancel.clone()));
    let patience = Duration::from_secs(40);
    let first = session.wait_for(Option::is_some).await.unwrap().clone();
    let status = "portreeve/status/nodes/n1";
    assert!(key.write_session_key(status, "{}").await.unwrap());
    server.freeze(true);
    let lost = tokio::time::timeout(patience, session.wait_for(Option::is_none));
    lost.await.expect("it is trusted no longer").unwrap();
    // It is being asked for another one already, and answers some seconds later.
    tokio::time::sleep(Duration::from_secs(4)).await;
    server.freeze(false);
    let found = tokio::time::timeout(patience, session.wait_for(Option::is_some));
    let second = found.await.expect("another session").unwrap().clone();
    assert_ne!(first, second);
    // Consul would keep it, and what it holds, for twice its TTL.
    let left = client.read_key(status).await.unwrap();
    assert!(left.is_none(), "the session that was given up holds on: {left:?}");
    // Renewed or lost before that: only who renews it has it for longer.
    let gone = tokio::time::timeout(Duration::from_secs(15), session.wait_for(Option::is_none));
    assert!(gone.await.is_err(), "it is renewed");
    cancel.cancel();
    while tasks.join_next().await.is_some() {}
}
