//! Vault locks a role for everybody after five refused logins. An agent with a bad credential stays below that, and of a lock by
//! somebody else it says what it may be.

use std::path::Path;
use std::time::Duration;

use portreeve::model::{CertificateQuery, ClientCaQuery, KvVersion};
use portreeve::sources::certificates::CertificateSettings;
use portreeve::sources::vault::{SecretId, VaultAuth};
use serde_json::{Value, json};

use super::bao::Bao;
use super::client_ca::authority;
use super::logins::until;
use super::rig::{Rig, fast, kv, store, with_secret};

const ROLE: &str = "auth/approle/login";

async fn role(bao: &Bao) -> (String, String) {
    let role = json!({"token_no_default_policy": true, "token_policies": ["reader"], "token_ttl": "1h"});
    bao.app_role(role).await
}

fn by_file(role_id: &str, file: &Path) -> VaultAuth {
    VaultAuth::AppRole {
        mount: "approle".to_owned(),
        role_id: role_id.to_owned(),
        secret_id: SecretId::File(file.to_owned()),
    }
}

/// By hand, as another agent of the role.
async fn log_in(bao: &Bao, role_id: &str, secret_id: &str) -> u16 {
    let body = json!({"role_id": role_id, "secret_id": secret_id});
    bao.send_as("", "POST", ROLE, Some(body)).await.0
}

async fn lock(bao: &Bao, role_id: &str) {
    for _ in 0..5 {
        log_in(bao, role_id, "wrong").await;
    }
    assert_eq!(locked(bao).await["total"], 1);
}

async fn locked(bao: &Bao) -> Value {
    bao.read("sys/locked-users").await["data"].clone()
}

#[tokio::test]
async fn a_wrong_secret_id_does_not_lock_its_role() {
    let bao = with_secret().await;
    let (role_id, secret_id) = role(&bao).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret_id");
    std::fs::write(&file, &secret_id).unwrap();
    let mut rig = Rig::start(&bao.address, by_file(&role_id, &file), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.material().await;

    std::fs::write(&file, "wrong").unwrap();
    bao.write("sys/leases/revoke-prefix/auth/approle", json!({}))
        .await;
    let status = until(&rig, "the refusal", |status| status.problem.is_some()).await;
    let problem = status.problem.unwrap();
    assert!(problem.message.contains("refused the login (400)"), "{problem}");
    assert!(problem.fix.unwrap().contains("5 failed logins"));
    // For as long as the soon try is ahead and then some; written again and again, as by a tool that renders it.
    for _ in 0..14 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::fs::write(&file, "wrong\n").unwrap();
    }
    assert_eq!(locked(&bao).await["total"], 0);
    assert_eq!(log_in(&bao, &role_id, &secret_id).await, 200);

    // Another one is not held back by the pause of this one.
    store(&bao, "two.example").await;
    std::fs::write(&file, &secret_id).unwrap();
    assert_eq!(rig.eventually().await.names[0].as_ref(), "two.example");
    assert_eq!(rig.vault.status().logins, 2);
    rig.stop().await;
}

#[tokio::test]
async fn a_wrong_password_does_not_lock_its_user() {
    let bao = with_secret().await;
    bao.write("sys/auth/userpass", json!({"type": "userpass"})).await;
    let user = json!({"password": "right", "token_no_default_policy": true, "token_policies": ["reader"]});
    bao.write("auth/userpass/users/edge", user).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "wrong").unwrap();
    let auth = VaultAuth::Userpass {
        mount: "userpass".to_owned(),
        username: "edge".to_owned(),
        password_file: file.clone(),
    };
    let mut rig = Rig::start(&bao.address, auth, directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.problem().await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(locked(&bao).await["total"], 0);
    std::fs::write(&file, "right").unwrap();
    rig.eventually().await;
    rig.stop().await;
}

/// The words of the message are played as they stand.
#[tokio::test]
async fn a_locked_role_is_told_and_unlocked_it_lets_the_agent_in() {
    let bao = with_secret().await;
    let (role_id, secret_id) = role(&bao).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret_id");
    std::fs::write(&file, "wrong").unwrap();
    let mut rig = Rig::start(&bao.address, by_file(&role_id, &file), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.problem().await;
    lock(&bao, &role_id).await;
    std::fs::write(&file, &secret_id).unwrap();
    let is_locked =
        |problem: &portreeve::model::Problem| problem.message.contains("(403): permission denied");
    let told = until(&rig, "the lock", |status| {
        status.problem.as_ref().is_some_and(is_locked)
    });
    let fix = told.await.problem.unwrap().fix.unwrap();
    assert!(
        fix.starts_with("Vault may have locked this role for 15 minutes"),
        "{fix}"
    );
    assert!(fix.contains("`vault read sys/locked-users`"), "{fix}");
    assert!(
        fix.contains("`vault write -f sys/locked-users/<mount accessor>/unlock/<role id>`"),
        "{fix}"
    );
    let listed = locked(&bao).await;
    let mount = &listed["by_namespace"][0]["mount_accessors"][0];
    assert_eq!(mount["alias_identifiers"][0], role_id.as_str());
    let accessor = mount["mount_accessor"].as_str().unwrap();
    bao.write(
        &format!("sys/locked-users/{accessor}/unlock/{role_id}"),
        json!({}),
    )
    .await;
    // As `portreeve refresh` does.
    rig.vault.log_in_now();
    rig.eventually().await;
    rig.stop().await;

    // To an agent of the same role that was never refused it may be the mount as well.
    lock(&bao, &role_id).await;
    let rig = Rig::start(&bao.address, by_file(&role_id, &file), directory.path());
    let told = until(&rig, "the lock", |status| status.problem.is_some()).await;
    let fix = told.problem.unwrap().fix.unwrap();
    assert!(fix.contains("auth method is mounted there"), "{fix}");
    assert!(fix.contains("Vault may have locked this role"), "{fix}");
    rig.stop().await;
}

/// Asked for by hand it is tried now, though nothing changed here: who mended it in Vault need not wait.
#[tokio::test]
async fn what_was_mended_in_vault_is_tried_at_once_when_asked() {
    let bao = with_secret().await;
    let (role_id, _) = role(&bao).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret_id");
    std::fs::write(&file, "chosen").unwrap();
    let mut rig = Rig::start(&bao.address, by_file(&role_id, &file), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.problem().await;
    // Past the soon try: the next by itself is far away.
    tokio::time::sleep(Duration::from_secs(12)).await;
    bao.write(
        "auth/approle/role/edge/custom-secret-id",
        json!({"secret_id": "chosen"}),
    )
    .await;
    rig.vault.log_in_now();
    rig.eventually().await;
    rig.stop().await;
}

/// At a cold start. A poll is an hour away.
#[tokio::test]
async fn what_failed_for_want_of_a_login_comes_with_it_however_seldom_it_is_polled() {
    let bao = with_secret().await;
    let authority = authority("clients");
    bao.write(
        "secret/data/portreeve/clients",
        json!({"data": {"certificate": authority}}),
    )
    .await;
    let (role_id, secret_id) = role(&bao).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret_id");
    std::fs::write(&file, "wrong").unwrap();
    let seldom = CertificateSettings {
        kv_poll: Duration::from_secs(3600),
        ..fast()
    };
    let mut rig = Rig::with(&bao.address, by_file(&role_id, &file), directory.path(), seldom);
    let clients = CertificateQuery::ClientCa(ClientCaQuery::VaultKv {
        mount: "secret".into(),
        path: "portreeve/clients".into(),
        version: KvVersion::V2,
        certificate_field: "certificate".into(),
        crl_field: None,
    });
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www"), &clients]);
    rig.problem().await;
    rig.problem().await;
    std::fs::write(&file, &secret_id).unwrap();
    rig.material().await;
    rig.material().await;
    rig.stop().await;
}
