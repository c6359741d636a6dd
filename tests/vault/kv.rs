use std::time::Duration;

use portreeve::model::{KvVersion, ProblemKind};
use serde_json::json;

use super::bao::Bao;
use super::rig::{Rig, kv, self_signed, token};

#[tokio::test]
async fn both_engines_deliver_and_follow_changes() {
    let bao = Bao::start().await;
    bao.mount_kv().await;
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed("one.example", 5);
    let fields = json!({"certificate": certificate, "private_key": key});
    bao.write("kv/www", fields.clone()).await;
    bao.write("secret/data/a/www", json!({"data": fields})).await;
    for query in [
        kv(KvVersion::V1, "kv", "www"),
        kv(KvVersion::Detect, "kv", "www"),
        kv(KvVersion::V2, "secret", "a/www"),
        kv(KvVersion::Detect, "secret/", "/a/www"),
    ] {
        let mut rig = Rig::start(&bao.address, token(&bao.root_token), directory.path());
        rig.watch(&[&query]);
        let material = rig.material().await;
        assert_eq!(material.names[0].as_ref(), "one.example", "{query:?}");
        assert!(material.private_key.is_some());
        rig.silence(Duration::from_millis(600)).await;
        rig.stop().await;
    }

    let mut rig = Rig::start(&bao.address, token(&bao.root_token), directory.path());
    let (one, two) = (
        kv(KvVersion::V1, "kv", "www"),
        kv(KvVersion::V2, "secret", "a/www"),
    );
    rig.watch(&[&one, &two]);
    rig.material().await;
    rig.material().await;
    let (certificate, key) = self_signed("two.example", 5);
    let fields = json!({"certificate": certificate, "private_key": key});
    bao.write("kv/www", fields.clone()).await;
    assert_eq!(rig.material().await.names[0].as_ref(), "two.example");
    bao.write("secret/data/a/www", json!({"data": fields})).await;
    assert_eq!(rig.material().await.names[0].as_ref(), "two.example");

    // No longer wanted: no longer read.
    rig.watch(&[]);
    let before = rig.vault.status().requests;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(rig.vault.status().requests <= before + 2);
    rig.stop().await;
}

#[tokio::test]
async fn each_bad_case_has_its_own_message_and_keeps_the_last_good() {
    let bao = Bao::start().await;
    bao.mount_kv().await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, token(&bao.root_token), directory.path());
    let (certificate, key) = self_signed("one.example", 5);
    let (_, other_key) = self_signed("other.example", 5);
    let (expired, expired_key) = self_signed("expired.example", -1);
    let good = json!({"certificate": certificate, "private_key": key});
    bao.write("secret/data/www", json!({"data": good})).await;
    let query = kv(KvVersion::V2, "secret", "www");
    rig.watch(&[&query]);
    rig.material().await;

    let cases = [
        (
            json!({"certificate": certificate}),
            "no field \"private_key\"; there is \"certificate\"",
            ProblemKind::Invalid,
        ),
        (
            json!({"certificate": 7, "private_key": key}),
            "is a number, not a text",
            ProblemKind::Invalid,
        ),
        (
            json!({"certificate": "hello", "private_key": key}),
            "no CERTIFICATE block",
            ProblemKind::Malformed,
        ),
        (
            json!({"certificate": certificate, "private_key": "hello"}),
            "no PRIVATE KEY block",
            ProblemKind::Malformed,
        ),
        (
            json!({"certificate": certificate, "private_key": other_key}),
            "does not belong to any certificate",
            ProblemKind::KeyMismatch,
        ),
        (
            json!({"certificate": expired, "private_key": expired_key}),
            "expired at",
            ProblemKind::Expired,
        ),
    ];
    for (fields, expected, kind) in cases {
        bao.write("secret/data/portreeve/www", json!({"data": fields}))
            .await;
        let problem = rig.problem().await;
        assert_eq!(problem.kind, kind, "{problem}");
        assert!(problem.message.contains(expected), "{problem}");
        assert!(problem.message.contains("secret/www"), "{problem}");
        assert!(problem.fix.is_some());
        rig.silence(Duration::from_millis(500)).await;
        bao.write("secret/data/www", json!({"data": good})).await;
        rig.material().await;
    }

    bao.delete("secret/data/www").await;
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Deleted, "{problem}");
    assert!(
        problem.message.contains("version 13 of the secret is deleted"),
        "{problem}"
    );
    bao.write("secret/undelete/www", json!({"versions": [13]})).await;
    rig.material().await;
    bao.write("secret/destroy/www", json!({"versions": [13]})).await;
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Deleted);
    assert!(problem.message.contains("destroyed"), "{problem}");
    rig.stop().await;
}

#[tokio::test]
async fn wrong_places_are_told_apart() {
    let bao = Bao::start().await;
    bao.mount_kv().await;
    bao.mount_pki(json!({"allow_any_name": true})).await;
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed("one.example", 5);
    let fields = json!({"certificate": certificate, "private_key": key});
    bao.write("kv/www", fields.clone()).await;
    bao.write("secret/data/www", json!({"data": fields})).await;
    let cases = [
        (
            kv(KvVersion::V2, "secret", "absent"),
            ProblemKind::NotFound,
            "nothing at this path",
        ),
        (
            kv(KvVersion::V1, "kv", "absent"),
            ProblemKind::NotFound,
            "nothing at this path",
        ),
        (
            kv(KvVersion::V2, "nowhere", "www"),
            ProblemKind::NotFound,
            "nowhere/data/www: no secrets engine is mounted at this path",
        ),
        (
            kv(KvVersion::V1, "nowhere", "www"),
            ProblemKind::NotFound,
            "nowhere/www: no secrets engine is mounted at this path",
        ),
        (
            kv(KvVersion::Detect, "nowhere", "www"),
            ProblemKind::NotFound,
            "nowhere/data/www: no secrets engine is mounted at this path",
        ),
        (
            kv(KvVersion::V1, "secret", "www"),
            ProblemKind::Refused,
            "is KV version 2, and the document says version 1",
        ),
        (
            kv(KvVersion::V2, "kv", "www"),
            ProblemKind::Refused,
            "is KV version 1, and the document says version 2",
        ),
        (
            kv(KvVersion::Detect, "pki", "www"),
            ProblemKind::Refused,
            "is of type \"pki\", not kv",
        ),
        (
            kv(KvVersion::V2, "secret", "../sys/raw"),
            ProblemKind::Refused,
            "not one that Vault can hold",
        ),
    ];
    for (query, kind, expected) in cases {
        let mut rig = Rig::start(&bao.address, token(&bao.root_token), directory.path());
        rig.watch(&[&query]);
        let problem = rig.problem().await;
        assert!(problem.message.contains(expected), "{problem}");
        assert_eq!(problem.kind, kind, "{problem}");
        rig.silence(Duration::from_millis(400)).await;
        rig.stop().await;
    }
}

/// Vault tells a mount that is not there only to those who may read where it would be.
#[tokio::test]
async fn a_missing_mount_is_told_apart_from_a_missing_right() {
    let bao = Bao::start().await;
    bao.mount_kv().await;
    let rules = r#"
path "secret/data/team/*" { capabilities = ["read"] }
path "two/data/*" { capabilities = ["read"] }
path "one/www" { capabilities = ["read"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
"#;
    bao.policy("reader", rules).await;
    let reader = bao
        .token(json!({"policies": ["reader"], "no_default_policy": true}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let none = "no secrets engine is mounted at this path";
    let unseen = "there is none, or the token may do nothing below it";
    let rule = |path: &str| format!("path \"{path}\" {{ capabilities = [\"read\"] }}");
    let cases = [
        (
            kv(KvVersion::Detect, "two", "www"),
            none,
            "vault secrets list".to_owned(),
        ),
        (
            kv(KvVersion::Detect, "one", "www"),
            none,
            "vault secrets list".to_owned(),
        ),
        (
            kv(KvVersion::V2, "two", "www"),
            none,
            "vault secrets list".to_owned(),
        ),
        (
            kv(KvVersion::V1, "one", "www"),
            none,
            "vault secrets list".to_owned(),
        ),
        (
            kv(KvVersion::Detect, "three", "www"),
            unseen,
            rule("three/data/www"),
        ),
        // There, and nothing below it is this token's.
        (kv(KvVersion::Detect, "kv", "www"), unseen, rule("kv/data/www")),
        (
            kv(KvVersion::V1, "kv", "www"),
            "permission denied",
            rule("kv/www"),
        ),
        (
            kv(KvVersion::V2, "secret", "www"),
            "permission denied",
            rule("secret/data/www"),
        ),
        (
            kv(KvVersion::V2, "secret", "team/www"),
            "nothing at this path",
            "vault read".to_owned(),
        ),
    ];
    for (query, message, fix) in cases {
        let mut rig = Rig::start(&bao.address, token(&reader), directory.path());
        rig.watch(&[&query]);
        let problem = rig.problem().await;
        assert!(problem.message.contains(message), "{query}: {problem}");
        assert!(
            problem.fix.as_ref().is_some_and(|said| said.contains(&fix)),
            "{query}: {problem:?}"
        );
        rig.stop().await;
    }

    // The mount that the document asked for is made, or the right is given: nobody has to touch the agent.
    let mut rig = Rig::start(&bao.address, token(&reader), directory.path());
    rig.watch(&[&kv(KvVersion::Detect, "one", "www")]);
    assert!(rig.problem().await.message.contains(none));
    bao.write(
        "sys/mounts/one",
        json!({"type": "kv", "options": {"version": "1"}}),
    )
    .await;
    let (certificate, key) = self_signed("one.example", 5);
    bao.write("one/www", json!({"certificate": certificate, "private_key": key}))
        .await;
    assert_eq!(rig.eventually().await.names[0].as_ref(), "one.example");
    rig.stop().await;
}

/// A rate limit of the server's own: what it refuses is tried again, and nothing is taken back.
#[tokio::test]
async fn a_quota_that_is_used_up_is_waited_out() {
    let bao = Bao::start().await;
    bao.mount_kv().await;
    let store = async |name: &str| {
        let (certificate, key) = self_signed(name, 5);
        let fields = json!({"certificate": certificate, "private_key": key});
        bao.write("secret/data/www", json!({"data": fields})).await;
    };
    store("one.example").await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, token(&bao.root_token), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "www")]);
    assert_eq!(rig.material().await.names[0].as_ref(), "one.example");
    // Five polls a second, and one request in a minute.
    let quota = json!({"path": "secret", "rate": 1, "interval": "60s"});
    bao.write("sys/quotas/rate-limit/secret", quota).await;
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Unavailable, "{problem}");
    assert!(
        problem.message.contains("429") || problem.message.contains("quota"),
        "{problem}"
    );
    bao.delete("sys/quotas/rate-limit/secret").await;
    store("two.example").await;
    loop {
        let material = rig.eventually().await;
        if material.names[0].as_ref() == "two.example" {
            break;
        }
        assert_eq!(material.names[0].as_ref(), "one.example");
    }
    rig.stop().await;
}

/// The public half outlives a restart, so that what Envoy has is not taken from it while the source is away. The key does
/// not: no file of the store holds it.
#[tokio::test]
async fn a_restart_without_the_source_remembers_the_public_half() {
    let mut bao = Bao::start().await;
    bao.mount_kv().await;
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed("one.example", 5);
    bao.write("kv/www", json!({"certificate": certificate, "private_key": key}))
        .await;
    let query = kv(KvVersion::V1, "kv", "www");
    let mut rig = Rig::start(&bao.address, token(&bao.root_token), directory.path());
    rig.watch(&[&query]);
    let before = rig.material().await;
    rig.stop().await;
    let file = std::fs::read(directory.path().join("certificates.redb")).unwrap();
    let body = key.lines().nth(1).unwrap().as_bytes();
    assert!(
        !file.windows(body.len()).any(|window| window == body),
        "the key is on disk"
    );

    bao.kill();
    let mut rig = Rig::start(&bao.address, token(&bao.root_token), directory.path());
    rig.watch(&[&query]);
    let remembered = rig.material().await;
    assert_eq!(remembered.version(), before.version());
    assert_eq!(
        (remembered.names[0].as_ref(), remembered.not_after),
        ("one.example", before.not_after)
    );
    assert!(remembered.private_key.is_none());
    assert_eq!(rig.problem().await.kind, ProblemKind::Unavailable);
    rig.stop().await;
}
