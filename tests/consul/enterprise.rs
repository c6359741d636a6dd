//! Where the gateway itself stands in Consul Enterprise: a namespace and a partition of the agent's own.

use std::sync::Arc;

use portreeve::model::mesh::{ChainQuery, Intention, IntentionQuery, IntentionRule, Interest};
use portreeve::model::{MeshUpdate, Observation};
use portreeve::sources::consul::{ConsulClient, ConsulSettings, MeshWatcher};

use crate::answering::{Answer, AnsweringServer};
use crate::mesh::{CHAIN, CHECK, LEAF, MATCH, ROOTS, wishes};
use crate::server::{Running, quick};

/// What the environment says, as Consul's own programs read it.
fn settings(server: &AnsweringServer, variables: &[(&str, &str)]) -> ConsulSettings {
    ConsulSettings::from_env(|name| match name {
        "CONSUL_HTTP_ADDR" => Some(server.address.clone()),
        _ => {
            let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
            Some((*value).to_owned())
        }
    })
    .unwrap()
}

fn in_the_environment(server: &AnsweringServer) -> ConsulSettings {
    settings(
        server,
        &[("CONSUL_NAMESPACE", "edge-team"), ("CONSUL_PARTITION", "edge")],
    )
}

fn in_the_block(server: &AnsweringServer) -> ConsulSettings {
    ConsulSettings {
        namespace: Some("edge-team".to_owned()),
        partition: Some("edge".to_owned()),
        ..settings(server, &[])
    }
}

fn watching(settings: &ConsulSettings, interests: impl IntoIterator<Item = Interest>) -> Running {
    let (mut running, sender) = Running::new();
    let client = ConsulClient::new(settings).unwrap();
    let (watcher, task) = MeshWatcher::new(client.clone(), client, "edge-gw".into(), sender);
    watcher.set_interests(wishes(interests));
    let run = task.with_timing(quick()).run(running.cancel.clone());
    running.tasks.spawn(async move {
        run.await;
        drop(watcher);
    });
    running
}

fn intentions(namespace: Option<&str>, partition: Option<&str>) -> Interest {
    Interest::intention(IntentionQuery {
        destination: "web".into(),
        namespace: namespace.map(Into::into),
        partition: partition.map(Into::into),
    })
}

async fn intention(running: &mut Running) -> Arc<Intention> {
    match running.next().await {
        Observation::Intention(update) => update.result.unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_agent_s_own_namespace_and_partition_are_asked_for_everywhere() {
    for said in [in_the_environment, in_the_block] {
        let server = AnsweringServer::start().await;
        server.put(ROOTS, Answer::kept("roots"));
        server.put(LEAF, Answer::kept("leaf"));
        server.put(CHAIN, Answer::kept("chain"));
        server.put(MATCH, Answer::kept("intentions-none"));
        server.put(CHECK, Answer::kept("intentions-check-allowed"));
        let chain = Interest::chain(ChainQuery {
            service: "web".into(),
            datacenter: None,
            namespace: None,
            partition: None,
        });
        let mut running = watching(&said(&server), [Interest::Mesh, chain, intentions(None, None)]);
        let (mut leaf, mut chain, mut intention) = (false, false, false);
        while !(leaf && chain && intention) {
            match running.next().await {
                Observation::Mesh(MeshUpdate::Leaf(Ok(_))) => leaf = true,
                Observation::Mesh(MeshUpdate::Roots(Ok(_))) => {}
                Observation::Chain(update) => chain = update.result.is_ok(),
                Observation::Intention(update) => intention = update.result.is_ok(),
                other => panic!("{other:?}"),
            }
        }
        for path in [LEAF, ROOTS, CHAIN, MATCH, CHECK] {
            for asked in server.asked(path) {
                assert!(
                    asked.contains("ns=edge-team") && asked.contains("partition=edge"),
                    "{asked}"
                );
            }
        }
        // A plain name is looked for there, too.
        let asked = &server.asked(CHECK)[0];
        assert!(asked.contains("source=edge-gw&"), "{asked}");
    }
}

#[tokio::test]
async fn the_source_of_a_check_says_where_it_stands() {
    let elsewhere: [(Option<&str>, Option<&str>, &str); 3] = [
        (Some("shop"), None, "source=edge-team%2Fedge-gw&"),
        (Some("shop"), Some("web"), "source=edge%2Fedge-team%2Fedge-gw&"),
        (None, Some("web"), "source=edge%2Fedge-team%2Fedge-gw&"),
    ];
    for (namespace, partition, source) in elsewhere {
        let server = AnsweringServer::start().await;
        server.put(MATCH, Answer::kept("intentions-none"));
        server.put(CHECK, Answer::kept("intentions-check-allowed"));
        let mut running = watching(&in_the_block(&server), [intentions(namespace, partition)]);
        assert_eq!(intention(&mut running).await.rule, IntentionRule::Allow);
        for path in [MATCH, CHECK] {
            let asked = &server.asked(path)[0];
            let ns = format!("ns={}", namespace.unwrap_or("edge-team"));
            let partition = format!("partition={}", partition.unwrap_or("edge"));
            assert!(asked.contains(&ns) && asked.contains(&partition), "{asked}");
        }
        let asked = &server.asked(CHECK)[0];
        assert!(asked.contains(source), "{asked}");
    }
}

#[tokio::test]
async fn another_partition_s_service_of_our_name_is_not_us() {
    let theirs = "\"SourceName\":\"edge-gw\",\"SourcePartition\":\"other\"";
    for (of, expected, by) in [
        ("other", IntentionRule::Deny, "* => web (deny, precedence 8)"),
        (
            "edge",
            IntentionRule::Allow,
            "edge-gw => web (allow, precedence 9)",
        ),
    ] {
        let server = AnsweringServer::start().await;
        let both = Answer::kept("intentions-of-another-partition");
        server.put(MATCH, both.with(theirs, &theirs.replace("other", of)));
        server.put(CHECK, Answer::kept("intentions-check-denied"));
        let mut running = watching(&in_the_block(&server), [intentions(None, None)]);
        let said = intention(&mut running).await;
        assert_eq!((&said.rule, said.by.as_deref()), (&expected, Some(by)));
    }
}

/// Which partition the gateway is in was not said: a denial that rests on a guess would take connections away.
#[tokio::test]
async fn a_denial_is_asked_of_each_partition_that_may_be_ours() {
    let server = AnsweringServer::start().await;
    server.put(MATCH, Answer::kept("intentions-none"));
    server.put(CHECK, Answer::kept("intentions-check-denied"));
    let mut running = watching(&settings(&server, &[]), [intentions(None, Some("edge"))]);
    assert_eq!(intention(&mut running).await.rule, IntentionRule::Deny);
    let asked = server.asked(CHECK);
    for (asked, source) in asked.iter().zip(["default", "edge"]) {
        let source = format!("source={source}%2Fdefault%2Fedge-gw&");
        assert!(asked.contains(&source), "{asked}");
    }
    assert!(asked.len() >= 2, "{asked:?}");
}
