use std::time::Duration;

use portreeve::model::KvVersion::{Detect, V1, V2};
use portreeve::model::{CertificateQuery, KvVersion, Problem, ProblemKind};
use portreeve::sources::certificates::CertificateSettings;
use serde_json::json;

use super::bao::Bao;
use super::rig::{Rig, fast, kv, self_signed, token};
use super::shipped::{named, shipped};

/// A version, a mount and a path below it.
type Place<'a> = (KvVersion, &'a str, &'a str);

/// What a token's owner is told of a certificate that cannot be had, once.
async fn told_of(bao: &Bao, of: &str, query: CertificateQuery) -> Problem {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, token(of), directory.path());
    rig.watch(&[&query]);
    let problem = rig.problem().await;
    rig.silence(Duration::from_millis(400)).await;
    rig.stop().await;
    problem
}

#[tokio::test]
async fn both_engines_deliver_and_follow_changes() {
    let bao = Bao::start().await;
    let held = bao.kv_token().await;
    bao.mount_kv().await;
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed("one.example", 5);
    let fields = json!({"certificate": certificate, "private_key": key});
    bao.write("kv/portreeve/www", fields.clone()).await;
    bao.write("secret/data/portreeve/www", json!({"data": fields}))
        .await;
    for query in [
        kv(V1, "kv", "portreeve/www"),
        kv(Detect, "kv", "portreeve/www"),
        kv(V2, "secret", "portreeve/www"),
        kv(Detect, "secret/", "/portreeve/www"),
    ] {
        let mut rig = Rig::start(&bao.address, token(&held), directory.path());
        rig.watch(&[&query]);
        let material = rig.material().await;
        assert_eq!(material.names[0].as_ref(), "one.example", "{query:?}");
        assert!(material.private_key.is_some());
        rig.silence(Duration::from_millis(600)).await;
        rig.stop().await;
    }

    let mut rig = Rig::start(&bao.address, token(&held), directory.path());
    let (one, two) = (kv(V1, "kv", "portreeve/www"), kv(V2, "secret", "portreeve/www"));
    rig.watch(&[&one, &two]);
    rig.material().await;
    rig.material().await;
    let (certificate, key) = self_signed("two.example", 5);
    let fields = json!({"certificate": certificate, "private_key": key});
    bao.write("kv/portreeve/www", fields.clone()).await;
    assert_eq!(rig.material().await.names[0].as_ref(), "two.example");
    bao.write("secret/data/portreeve/www", json!({"data": fields}))
        .await;
    assert_eq!(rig.material().await.names[0].as_ref(), "two.example");

    // No longer wanted: no longer read.
    rig.watch(&[]);
    let before = rig.vault.status().requests;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(rig.vault.status().requests <= before + 2);
    rig.stop().await;
}

/// Its first version is version 1 again.
#[tokio::test]
async fn a_secret_that_was_deleted_whole_and_written_again_is_read() {
    let bao = Bao::start().await;
    let held = bao.kv_token().await;
    bao.mount_kv().await;
    let put = async |name: &str| {
        let (certificate, key) = self_signed(name, 5);
        let fields = json!({"certificate": certificate, "private_key": key});
        bao.write("secret/data/portreeve/www", json!({"data": fields}))
            .await;
    };
    put("one.example").await;
    let directory = tempfile::tempdir().unwrap();
    let settings = CertificateSettings {
        kv_poll: Duration::from_secs(2),
        ..fast()
    };
    let mut rig = Rig::with(&bao.address, token(&held), directory.path(), settings);
    rig.watch(&[&kv(V2, "secret", "portreeve/www")]);
    assert_eq!(rig.material().await.names[0].as_ref(), "one.example");
    bao.delete("secret/metadata/portreeve/www").await;
    put("two.example").await;
    let next = rig.eventually().await;
    assert_eq!(next.names[0].as_ref(), "two.example");
    rig.stop().await;
}

#[tokio::test]
async fn each_bad_case_has_its_own_message_and_keeps_the_last_good() {
    let bao = Bao::start().await;
    let held = bao.kv_token().await;
    bao.mount_kv().await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, token(&held), directory.path());
    let (certificate, key) = self_signed("one.example", 5);
    let (_, other_key) = self_signed("other.example", 5);
    let (expired, expired_key) = self_signed("expired.example", -1);
    let good = json!({"certificate": certificate, "private_key": key});
    bao.write("secret/data/portreeve/www", json!({"data": good}))
        .await;
    let query = kv(V2, "secret", "portreeve/www");
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
        assert!(problem.message.contains("secret/portreeve/www"), "{problem}");
        assert!(problem.fix.is_some());
        rig.silence(Duration::from_millis(500)).await;
        bao.write("secret/data/portreeve/www", json!({"data": good}))
            .await;
        rig.material().await;
    }

    bao.delete("secret/data/portreeve/www").await;
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Deleted, "{problem}");
    assert!(
        problem.message.contains("version 13 of the secret is deleted"),
        "{problem}"
    );
    bao.write("secret/undelete/portreeve/www", json!({"versions": [13]}))
        .await;
    rig.material().await;
    bao.write("secret/destroy/portreeve/www", json!({"versions": [13]}))
        .await;
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
    let (certificate, key) = self_signed("one.example", 5);
    let fields = json!({"certificate": certificate, "private_key": key});
    bao.write("kv/portreeve/www", fields.clone()).await;
    bao.write("secret/data/portreeve/www", json!({"data": fields}))
        .await;
    let held = bao
        .token_of(&[
            shipped("portreeve-kv"),
            shipped("portreeve-kv1"),
            named("portreeve-kv", &[("secret", "nowhere")]),
            named("portreeve-kv1", &[("kv", "nowhere")]),
            named("portreeve-pki", &[("pki_int", "pki")]),
        ])
        .await;
    let is_told = async |(version, mount, path): Place<'_>, kind, expected: &str| {
        let problem = told_of(&bao, &held, kv(version, mount, path)).await;
        assert!(problem.message.contains(expected), "{problem}");
        assert_eq!(problem.kind, kind, "{problem}");
    };
    for place in [(V2, "secret", "portreeve/absent"), (V1, "kv", "portreeve/absent")] {
        is_told(place, ProblemKind::NotFound, "nothing at this path").await;
    }
    for (version, asked) in [
        (V2, "nowhere/data/portreeve/www"),
        (V1, "nowhere/portreeve/www"),
        (Detect, "nowhere/data/portreeve/www"),
    ] {
        let expected = format!("{asked}: no secrets engine is mounted at this path");
        is_told(
            (version, "nowhere", "portreeve/www"),
            ProblemKind::WrongMount,
            &expected,
        )
        .await;
    }
    for (place, kind, expected) in [
        (
            (V1, "secret", "portreeve/www"),
            ProblemKind::WrongKvVersion,
            "is KV version 2, and the document says version 1",
        ),
        (
            (V2, "kv", "portreeve/www"),
            ProblemKind::WrongKvVersion,
            "is KV version 1, and the document says version 2",
        ),
        (
            (Detect, "pki", "portreeve/www"),
            ProblemKind::WrongMount,
            "is of type \"pki\", not kv",
        ),
        (
            (V2, "secret", "../sys/raw"),
            ProblemKind::Refused,
            "not one that Vault can hold",
        ),
    ] {
        is_told(place, kind, expected).await;
    }
}

/// Vault tells a mount that is not there only to those who may read where it would be.
#[tokio::test]
async fn a_missing_mount_is_told_apart_from_a_missing_right() {
    let bao = Bao::start().await;
    bao.mount_kv().await;
    let reader = bao
        .token_of(&[
            named("portreeve-kv", &[("portreeve", "team")]),
            named("portreeve-kv", &[("secret", "two")]),
            named("portreeve-kv1", &[("kv", "one")]),
        ])
        .await;
    let none = "no secrets engine is mounted at this path";
    let unseen = "there is none, or the token may do nothing below it";
    let rule = |path: &str| format!("path \"{path}\" {{ capabilities = [\"read\"] }}");
    let is_told = async |(version, mount, path): Place<'_>, message: &str, fix: &str| {
        let problem = told_of(&bao, &reader, kv(version, mount, path)).await;
        assert!(problem.message.contains(message), "{mount}/{path}: {problem}");
        let said = problem.fix.as_deref().unwrap_or_default();
        assert!(said.contains(fix), "{mount}/{path}: {problem:?}");
    };
    for (version, mount) in [(Detect, "two"), (Detect, "one"), (V2, "two"), (V1, "one")] {
        is_told((version, mount, "portreeve/www"), none, "vault secrets list").await;
    }
    // The second is there, and nothing below it is this token's.
    for mount in ["three", "kv"] {
        is_told(
            (Detect, mount, "www"),
            unseen,
            &rule(&format!("{mount}/data/www")),
        )
        .await;
    }
    is_told((V1, "kv", "www"), "permission denied", &rule("kv/www")).await;
    is_told(
        (V2, "secret", "portreeve/www"),
        "permission denied",
        &rule("secret/data/portreeve/www"),
    )
    .await;
    is_told((V2, "secret", "team/www"), "nothing at this path", "vault read").await;

    let directory = tempfile::tempdir().unwrap();
    // The mount that the document asked for is made, or the right is given: nobody has to touch the agent.
    let mut rig = Rig::start(&bao.address, token(&reader), directory.path());
    rig.watch(&[&kv(Detect, "one", "portreeve/www")]);
    assert!(rig.problem().await.message.contains(none));
    bao.write(
        "sys/mounts/one",
        json!({"type": "kv", "options": {"version": "1"}}),
    )
    .await;
    let (certificate, key) = self_signed("one.example", 5);
    bao.write(
        "one/portreeve/www",
        json!({"certificate": certificate, "private_key": key}),
    )
    .await;
    assert_eq!(rig.eventually().await.names[0].as_ref(), "one.example");
    rig.stop().await;
}

/// A rate limit of the server's own: what it refuses is tried again, and nothing is taken back.
#[tokio::test]
async fn a_quota_that_is_used_up_is_waited_out() {
    let bao = Bao::start().await;
    let held = bao.kv_token().await;
    bao.mount_kv().await;
    let store = async |name: &str| {
        let (certificate, key) = self_signed(name, 5);
        let fields = json!({"certificate": certificate, "private_key": key});
        bao.write("secret/data/portreeve/www", json!({"data": fields}))
            .await;
    };
    store("one.example").await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, token(&held), directory.path());
    rig.watch(&[&kv(V2, "secret", "portreeve/www")]);
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
    let held = bao.kv_token().await;
    bao.mount_kv().await;
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed("one.example", 5);
    bao.write(
        "kv/portreeve/www",
        json!({"certificate": certificate, "private_key": key}),
    )
    .await;
    let query = kv(V1, "kv", "portreeve/www");
    let mut rig = Rig::start(&bao.address, token(&held), directory.path());
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
    let mut rig = Rig::start(&bao.address, token(&held), directory.path());
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
