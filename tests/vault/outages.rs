use std::time::Duration;

use portreeve::model::{KvVersion, ProblemKind};
use serde_json::json;

use super::bao::Bao;
use super::rig::{Rig, app_role, kv, pki, self_signed, token};
use super::shipped::shipped;

/// How soon a Vault that is back is noticed rests on how often its door is knocked at while it is away: twice a second,
/// and not less and less often. In this time pauses that grow to a minute would come to some nine.
async fn keeps_knocking(bao: &Bao) {
    let address = bao.address.strip_prefix("http://").unwrap();
    let door = tokio::net::TcpListener::bind(address).await.unwrap();
    let knocks = async {
        for _ in 0..12 {
            door.accept().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), knocks)
        .await
        .expect("twelve knocks");
}

#[tokio::test]
async fn sealed_down_and_back() {
    let mut bao = Bao::start().await;
    bao.mount_kv().await;
    bao.reader().await;
    let (certificate, key) = self_signed("one.example", 5);
    bao.write(
        "secret/data/portreeve/www",
        json!({"data": {"certificate": certificate, "private_key": key}}),
    )
    .await;
    let (role_id, secret_id) = bao
        .app_role(json!({"token_no_default_policy": true, "token_policies": ["reader"], "token_ttl": "1h"}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, app_role(&role_id, &secret_id), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    let before = rig.material().await;

    bao.seal().await;
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Unavailable, "{problem}");
    assert!(problem.message.contains("sealed"), "{problem}");
    rig.silence(Duration::from_secs(2)).await;
    bao.unseal().await;
    assert_eq!(rig.material().await, before);

    bao.kill();
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Unavailable, "{problem}");
    keeps_knocking(&bao).await;
    rig.silence(Duration::ZERO).await;
    bao.launch().await;
    bao.unseal().await;
    rig.eventually().await;
    assert_eq!(rig.vault.status().logins, 1, "the token outlived the outage");
    rig.stop().await;
}

#[tokio::test]
async fn an_agent_that_starts_first_waits_for_vault_and_then_issues_once() {
    let mut bao = Bao::start().await;
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h"}))
        .await;
    bao.policy("signer", &shipped("portreeve-pki")).await;
    let settings = json!({"token_policies": ["signer"], "token_no_default_policy": true, "token_ttl": "1h"});
    let (role_id, secret_id) = bao.app_role(settings).await;
    bao.kill();
    let directory = tempfile::tempdir().unwrap();
    let minute = portreeve::sources::certificates::CertificateSettings::default();
    let mut rig = Rig::with(
        &bao.address,
        app_role(&role_id, &secret_id),
        directory.path(),
        minute,
    );
    rig.watch(&[&pki("www.example.com", 600)]);
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Unavailable, "{problem}");
    keeps_knocking(&bao).await;
    bao.launch().await;
    bao.unseal().await;
    // What failed for want of a server has not used up the budget of one request per minute.
    rig.eventually().await;
    assert_eq!(bao.issued().await, 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_certificate_that_ends_while_vault_is_down_stays_and_is_told() {
    let mut bao = Bao::start().await;
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h", "not_before_duration": "1s"}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, token(&bao.pki_token().await), directory.path());
    rig.watch(&[&pki("www.example.com", 5)]);
    rig.material().await;
    bao.kill();
    loop {
        let problem = rig.problem().await;
        assert_eq!(problem.kind, ProblemKind::Unavailable, "{problem}");
        if problem.message.contains("the certificate in use expired at") {
            break;
        }
    }
    bao.launch().await;
    bao.unseal().await;
    rig.eventually().await;
    rig.stop().await;
}
