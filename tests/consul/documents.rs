//! The document watch on a real Consul: changes, deletions, and rights that are lost in every way.

use std::collections::BTreeSet;
use std::time::Duration;

use portreeve::model::{DocumentsUpdate, ProblemKind};
use portreeve::sources::consul::{ConsulClient, ConsulError, DocumentsWatch, TxnWrite, list_documents};

use crate::server::{Running, Server, quick};

const PREFIX: &str = "portreeve/config/";
const READ: &str = "key_prefix \"portreeve/config/\" { policy = \"read\" }";

fn watch(client: ConsulClient) -> Running {
    let (mut running, sender) = Running::new();
    let watch = DocumentsWatch::new(client, "portreeve/config", sender).with_timing(quick());
    running.tasks.spawn(watch.run(running.cancel.clone()));
    running
}

fn changed(update: &DocumentsUpdate) -> Vec<(&str, &str)> {
    update
        .changed
        .iter()
        .map(|document| {
            (
                document.id.as_str().strip_prefix(PREFIX).unwrap(),
                &*document.text,
            )
        })
        .collect()
}

fn removed(update: &DocumentsUpdate) -> Vec<&str> {
    update
        .removed
        .iter()
        .map(|id| id.as_str().strip_prefix(PREFIX).unwrap())
        .collect()
}

async fn put(server: &Server, key: &str, text: &str) {
    server.put(&format!("kv/{PREFIX}{key}"), text).await;
}

/// Three documents in two folders, a token that may read them, and the watch past its first answer.
async fn settled() -> (Server, Running, (String, String)) {
    let server = Server::start_with_acls().await;
    for key in ["a", "team/b", "team/c"] {
        put(&server, key, key).await;
    }
    server.policy("reader", READ).await;
    let token = server.token("reader").await;
    let mut running = watch(server.client(Some(&token.1)));
    let first = running.documents().await;
    assert_eq!(changed(&first).len(), 3);
    assert!(first.complete && first.problem.is_none());
    // The next poll is under way: `end_poll` rests on the rights it began with.
    tokio::time::sleep(Duration::from_secs(1)).await;
    (server, running, token)
}

/// Consul settles a poll's rights when it begins: the poll that runs ends with what it may still see.
async fn end_poll(server: &Server, running: &mut Running) {
    put(server, "a", "to end the poll").await;
    assert_eq!(changed(&running.documents().await), [("a", "to end the poll")]);
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// Nothing removed, a problem that says so, and still complete.
fn assert_kept(update: &DocumentsUpdate) {
    assert_kept_with(update, ProblemKind::MissingPermission);
}

fn assert_kept_with(update: &DocumentsUpdate, kind: ProblemKind) {
    assert!(
        update.removed.is_empty() && update.changed.is_empty() && update.complete,
        "{update:?}"
    );
    let problem = update.problem.as_ref().expect("a problem");
    assert_eq!(problem.kind, kind, "{problem}");
    assert!(problem.fix.is_some(), "{problem:?}");
}

#[tokio::test]
async fn changes_arrive_in_milliseconds_and_a_transaction_whole() {
    let server = Server::start().await;
    put(&server, "a", "1").await;
    server.put(&format!("kv/{PREFIX}folder/"), "").await;
    server
        .put("kv/portreeve/configuration", "not below the prefix")
        .await;
    let client = server.client(None);
    let mut running = watch(client.clone());
    let first = running.documents().await;
    assert_eq!(changed(&first), [("a", "1")]);
    assert!(first.complete && first.problem.is_none());

    // A pause of ours would slow each of them; a busy machine does not.
    let mut fastest = Duration::MAX;
    for text in ["2", "3", "4", "5", "6"] {
        let started = std::time::Instant::now();
        put(&server, "a", text).await;
        assert_eq!(changed(&running.documents().await), [("a", text)]);
        fastest = fastest.min(started.elapsed());
    }
    assert!(fastest < Duration::from_millis(500), "{fastest:?}");

    let key = |name: &str| format!("{PREFIX}{name}");
    let index = client
        .txn(&[
            TxnWrite::Delete { key: key("a") },
            TxnWrite::Set {
                key: key("b"),
                value: "b".into(),
            },
            TxnWrite::Cas {
                key: key("c"),
                value: "".into(),
                index: 0,
            },
        ])
        .await
        .unwrap();
    let update = running.documents().await;
    assert_eq!(
        (changed(&update), removed(&update)),
        (vec![("b", "b"), ("c", "")], vec!["a"])
    );
    assert!(update.changed.iter().all(|document| document.version == index));

    // The same value again moves nothing, and neither does a write beside the prefix.
    put(&server, "b", "b").await;
    server.put("kv/portreeve/configuration", "still not").await;
    running.quiet_for(500).await;
}

#[tokio::test]
async fn an_empty_prefix_is_known_empty_and_waited_on() {
    let server = Server::start().await;
    let mut running = watch(server.client(None));
    let first = running.documents().await;
    assert!(first.complete && first.changed.is_empty() && first.problem.is_none());
    put(&server, "a", "1").await;
    assert_eq!(changed(&running.documents().await), [("a", "1")]);
}

#[tokio::test]
async fn genuine_deletions_are_applied_the_last_one_too() {
    let (server, mut running, _) = settled().await;
    server.delete(&format!("kv/{PREFIX}a")).await;
    assert_eq!(removed(&running.documents().await), ["a"]);
    server.delete(&format!("kv/{PREFIX}?recurse")).await;
    let mut gone = BTreeSet::new();
    while gone.len() < 2 {
        let update = running.documents().await;
        assert!(update.problem.is_none(), "{update:?}");
        gone.extend(removed(&update).into_iter().map(str::to_owned));
    }
}

#[tokio::test]
async fn a_deleted_token_keeps_everything_and_a_new_file_mends_it() {
    let server = Server::start_with_acls().await;
    put(&server, "a", "1").await;
    server.policy("reader", READ).await;
    let (accessor, secret) = server.token("reader").await;
    let file = server.path().join("token");
    std::fs::write(&file, &secret).unwrap();
    let mut settings = server.settings(Some("never used: the file wins"));
    settings.token_file = Some(file.clone());
    let mut running = watch(ConsulClient::new(&settings).unwrap());
    assert_eq!(changed(&running.documents().await), [("a", "1")]);

    server.delete(&format!("acl/token/{accessor}")).await;
    // A blocked poll goes on with its dead token; the next one meets the 403.
    put(&server, "a", "2").await;
    let mut update = running.documents().await;
    if !update.changed.is_empty() {
        put(&server, "a", "3").await;
        update = running.documents().await;
    }
    assert_kept_with(&update, ProblemKind::TokenNotAccepted);
    let problem = update.problem.unwrap();
    assert!(problem.fix.unwrap().contains(&file.display().to_string()));

    let (_, fresh) = server.token("reader").await;
    assert!(!problem.message.contains(&secret) && !problem.message.contains(&fresh));
    let next = server.path().join("token.next");
    std::fs::write(&next, fresh).unwrap();
    std::fs::rename(next, file).unwrap();
    let update = running.documents().await;
    assert!(
        update.problem.is_none() && update.removed.is_empty(),
        "{update:?}"
    );
}

#[tokio::test]
async fn an_emptied_policy_keeps_everything() {
    let (server, mut running, _) = settled().await;
    server.policy("reader", "").await;
    end_poll(&server, &mut running).await;
    put(&server, "a", "changed").await;
    assert_kept(&running.documents().await);
    running.quiet_for(1500).await;
    server.policy("reader", READ).await;
    let update = running.documents().await;
    assert_eq!(
        (changed(&update), removed(&update)),
        (vec![("a", "changed")], vec![])
    );
    assert!(update.problem.is_none());
}

#[tokio::test]
async fn a_narrowed_policy_keeps_what_it_hides_and_shows_the_rest() {
    let (server, mut running, _) = settled().await;
    server
        .policy(
            "reader",
            "key_prefix \"portreeve/config/team/\" { policy = \"read\" }",
        )
        .await;
    end_poll(&server, &mut running).await;
    put(&server, "team/b", "changed").await;
    let update = running.documents().await;
    assert_eq!(
        (changed(&update), removed(&update)),
        (vec![("team/b", "changed")], vec![])
    );
    let problem = update.problem.unwrap();
    assert_eq!(problem.kind, ProblemKind::MissingPermission);
    assert!(problem.message.contains("portreeve/config/a"), "{problem}");

    // A document deleted meanwhile is removed when the rights are back, and only then.
    server.delete(&format!("kv/{PREFIX}a")).await;
    running.quiet_for(1000).await;
    server.policy("reader", READ).await;
    let update = running.documents().await;
    assert_eq!(removed(&update), ["a"]);
    assert!(update.problem.is_none());
}

#[tokio::test]
async fn one_denied_key_among_deleted_ones_keeps_all() {
    let (server, mut running, _) = settled().await;
    server
        .policy(
            "reader",
            &format!("{READ} key \"portreeve/config/team/c\" {{ policy = \"deny\" }}"),
        )
        .await;
    end_poll(&server, &mut running).await;
    server.delete(&format!("kv/{PREFIX}team/b")).await;
    assert_kept(&running.documents().await);
}

#[tokio::test]
async fn a_token_that_sees_nothing_or_a_part_at_start_is_not_an_answer() {
    let server = Server::start_with_acls().await;
    put(&server, "a", "1").await;
    put(&server, "team/b", "1").await;
    for (policy, rules, seen) in [
        ("none", "", 0),
        (
            "part",
            "key_prefix \"portreeve/config/team/\" { policy = \"read\" }",
            1,
        ),
    ] {
        server.policy(policy, rules).await;
        let (_, secret) = server.token(policy).await;
        let client = server.client(Some(&secret));
        let error = list_documents(&client, PREFIX).await.unwrap_err();
        assert_eq!(error.kind(), ProblemKind::MissingPermission, "{error}");
        let mut running = watch(client);
        let first = running.documents().await;
        assert!(!first.complete, "{policy}");
        assert_eq!(first.changed.len(), seen);
        let problem = first.problem.unwrap();
        assert!(problem.message.contains("403: Permission denied"), "{problem}");
        assert!(
            problem
                .fix
                .unwrap()
                .contains("key_prefix \"portreeve/config/\" { policy = \"read\" }")
        );
        server.policy(policy, READ).await;
        let update = running.documents().await;
        assert!(update.complete && update.problem.is_none());
    }
}

#[tokio::test]
async fn restarts_are_survived_and_a_wiped_consul_empties_nothing() {
    let mut server = Server::start().await;
    for n in 0..20 {
        put(&server, "a", &n.to_string()).await;
    }
    let mut running = watch(server.client(None));
    assert_eq!(changed(&running.documents().await), [("a", "19")]);

    server.restart().await;
    put(&server, "a", "after").await;
    let mut seen = Vec::new();
    while seen.is_empty() {
        let update = running.documents().await;
        assert!(update.removed.is_empty(), "{update:?}");
        seen = changed(&update)
            .into_iter()
            .map(|(_, text)| text.to_owned())
            .collect();
    }
    assert_eq!(seen, ["after"]);

    server.restart_wiped().await;
    let lost = loop {
        let update = running.documents().await;
        assert!(update.removed.is_empty(), "{update:?}");
        if let Some(problem) = update
            .problem
            .filter(|problem| problem.kind == ProblemKind::Invalid)
        {
            break problem;
        }
    };
    assert!(lost.message.contains("lost its state"), "{lost}");
    // Whatever else is written, our own status among it, soon lifts the new index over the old one.
    for n in 0..60 {
        server.put("kv/elsewhere", n).await;
    }
    server.put("kv/portreeve/confi", "a neighbour").await;
    let quiet = tokio::time::Instant::now() + Duration::from_secs(4);
    while let Ok(update) = tokio::time::timeout_at(quiet, running.documents()).await {
        assert!(update.removed.is_empty(), "{update:?}");
    }
    put(&server, "b", "new life").await;
    let update = running.documents().await;
    assert_eq!(
        (changed(&update), removed(&update)),
        (vec![("b", "new life")], vec!["a"])
    );
    assert!(update.problem.is_none());
}

#[tokio::test]
async fn what_cannot_be_taken_is_named() {
    let server = Server::start().await;
    put(&server, "good", "1").await;
    put(&server, "bad", "1").await;
    let mut running = watch(server.client(None));
    running.documents().await;
    let client = server.client(None);
    let index = client
        .read_key(&format!("{PREFIX}bad"))
        .await
        .unwrap()
        .unwrap()
        .modify_index;
    assert!(
        client
            .put_cas(&format!("{PREFIX}bad"), vec![0xff, 0xfe], index)
            .await
            .unwrap()
    );
    let update = running.documents().await;
    assert!(update.changed.is_empty() && update.removed.is_empty());
    let problem = update.problem.unwrap();
    assert!(
        problem.message.contains("portreeve/config/bad: not UTF-8"),
        "{problem}"
    );
    put(&server, "good", "2").await;
    let update = running.documents().await;
    assert_eq!(changed(&update), [("good", "2")]);
    assert!(update.problem.is_some(), "still there");
    put(&server, "bad", "2").await;
    let update = running.documents().await;
    assert!(update.problem.is_none());
}

#[tokio::test]
async fn one_shot_writes() {
    let server = Server::start().await;
    let client = server.client(None);
    assert!(client.put_cas("p/a", "1", 0).await.unwrap());
    assert!(!client.put_cas("p/a", "2", 0).await.unwrap(), "exists");
    let entry = client.read_key("p/a").await.unwrap().unwrap();
    assert_eq!(&entry.value[..], b"1");
    assert!(!client.delete_cas("p/a", entry.modify_index + 1).await.unwrap());
    // The neighbours of a deleted key stay: this is where recursion would show.
    assert!(client.put_cas("p/a/b", "", 0).await.unwrap() && client.put_cas("p/ab", "", 0).await.unwrap());
    assert!(client.delete_cas("p/a", entry.modify_index).await.unwrap());
    assert!(client.read_key("p/a").await.unwrap().is_none());
    assert!(
        client.read_key("p/a/b").await.unwrap().is_some() && client.read_key("p/ab").await.unwrap().is_some()
    );

    let set = |n: usize| TxnWrite::Set {
        key: format!("p/{n}"),
        value: "x".into(),
    };
    let many: Vec<TxnWrite> = (0..65).map(set).collect();
    assert!(matches!(
        client.txn(&many).await,
        Err(ConsulError::TxnTooLarge { operations: 65, .. })
    ));
    client.txn(&many[..64]).await.unwrap();
    let large = TxnWrite::Set {
        key: "p/l".to_owned(),
        value: vec![b'x'; 400_000].into(),
    };
    assert!(matches!(
        client.txn(&[large]).await,
        Err(ConsulError::TxnTooLarge { .. })
    ));
    let stale = TxnWrite::DeleteCas {
        key: "p/1".to_owned(),
        index: 1,
    };
    match client.txn(&[set(2), stale]).await {
        Err(ConsulError::TxnFailed { failures }) => {
            assert_eq!(failures[0].operation, 1);
            assert!(failures[0].what.contains("stale"), "{failures:?}");
        }
        other => panic!("{other:?}"),
    }
    // As many reasons as a transaction has writes are more than an error's text of one line.
    let all_stale = (0..64).map(|n| TxnWrite::Cas {
        key: format!("p/{n}"),
        value: "x".into(),
        index: 1,
    });
    match client.txn(&all_stale.collect::<Vec<_>>()).await {
        Err(ConsulError::TxnFailed { failures }) => assert_eq!(failures.len(), 64, "{failures:?}"),
        other => panic!("{other:?}"),
    }
    let error = client.put_cas("p/big", vec![b'x'; 524_289], 0).await.unwrap_err();
    assert!(error.to_string().contains("524288"), "{error}");
    assert!(client.put_cas("p/ç", "x", 0).await.is_err());
}

/// Consul's own bound is the same, unless an operator raised it: then ours holds.
#[tokio::test]
async fn a_value_that_is_too_large_is_named_and_the_rest_goes_on() {
    let server = Server::start_with(false, "limits { kv_max_value_size = 1048576 }").await;
    for key in ["good", "large"] {
        put(&server, key, "1").await;
    }
    let mut running = watch(server.client(None));
    running.documents().await;
    put(&server, "large", &"x".repeat(600 * 1024)).await;
    let update = running.documents().await;
    assert!(
        update.changed.is_empty() && update.removed.is_empty(),
        "its last good version stays"
    );
    let problem = update.problem.unwrap();
    let named = "portreeve/config/large: 614400 bytes exceed the 524288 of one document";
    assert!(problem.message.contains(named), "{problem}");
    put(&server, "good", "2").await;
    let update = running.documents().await;
    assert_eq!(changed(&update), [("good", "2")]);
    assert!(update.problem.is_some(), "still there");
    put(&server, "large", "2").await;
    let update = running.documents().await;
    assert_eq!(changed(&update), [("large", "2")]);
    assert!(update.problem.is_none());
}
