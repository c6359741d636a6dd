//! Each way to log in, against a real OpenBao: the token is good, ends are told, and what rotates is read again.

use std::path::Path;
use std::time::Duration;

use portreeve::model::{KvVersion, ProblemKind};
use portreeve::sources::vault::{SecretId, VaultAuth, VaultStatus};
use serde_json::json;

use super::bao::Bao;
use super::rig::{Rig, kv, self_signed, store, with_secret};
use super::token_review::{service_account_token, token_reviewer};

pub fn wrapped(role_id: &str, file: &Path) -> VaultAuth {
    VaultAuth::AppRole {
        mount: "approle".to_owned(),
        role_id: role_id.to_owned(),
        secret_id: SecretId::Wrapped(file.to_owned()),
    }
}

/// A wrapping token of what `path` answers.
pub async fn wrap(bao: &Bao, path: &str) -> String {
    let answer = bao.write_wrapped(path, "120s").await;
    answer["wrap_info"]["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_wrapped_secret_id_is_unwrapped_once() {
    let bao = with_secret().await;
    let (role_id, _) = bao
        .app_role(json!({"token_no_default_policy": true, "token_policies": ["reader"], "token_ttl": "1h"}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wrapped");
    let wrapping = wrap(&bao, "auth/approle/role/edge/secret-id").await;
    std::fs::write(&file, &wrapping).unwrap();
    let mut rig = Rig::start(&bao.address, wrapped(&role_id, &file), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.material().await;

    // Logged in again with what was unwrapped: the wrapping token is used up.
    bao.write("sys/leases/revoke-prefix/auth/approle", json!({}))
        .await;
    store(&bao, "two.example").await;
    assert_eq!(rig.material().await.names[0].as_ref(), "two.example");
    assert_eq!(rig.vault.status().logins, 2);
    rig.stop().await;

    // A restarted agent has the used token only, and says what that may mean.
    let mut rig = Rig::start(&bao.address, wrapped(&role_id, &file), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    assert_eq!(rig.remembered().await.names[0].as_ref(), "two.example");
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Forbidden, "{problem}");
    assert!(
        problem.message.contains("expired or was used before"),
        "{problem}"
    );
    assert!(!problem.message.contains(&wrapping));
    assert!(problem.fix.as_deref().unwrap().contains("known to somebody else"));
    // Another one delivered is taken up by itself.
    let next = wrap(&bao, "auth/approle/role/edge/secret-id").await;
    std::fs::write(&file, next).unwrap();
    rig.material().await;
    rig.stop().await;
}

/// Its end is told with what the answer in the wrapping says: the policy gives no right to ask. A successor is unwrapped while
/// its wrapping token is good, though the next login is an hour away.
#[tokio::test]
async fn a_wrapped_secret_id_is_told_before_it_ends_and_its_successor_unwrapped_at_once() {
    let bao = with_secret().await;
    let lives = |ttl: &str| {
        json!({
            "token_no_default_policy": true, "token_policies": ["reader"], "token_ttl": "1h", "secret_id_ttl": ttl,
        })
    };
    let (role_id, _) = bao.app_role(lives("30s")).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wrapped");
    let secret_id = "auth/approle/role/edge/secret-id";
    let before = now();
    std::fs::write(&file, wrap(&bao, secret_id).await).unwrap();
    let after = now();
    let mut rig = Rig::start(&bao.address, wrapped(&role_id, &file), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.material().await;
    let status = until(&rig, "its end", |status| status.secret_id_expires.is_some()).await;
    let end = status.secret_id_expires.unwrap();
    assert!((before + 30..=after + 30).contains(&end), "{end}");
    let status = until(&rig, "the warning", |status| !status.ending.is_empty()).await;
    let [warning] = status.ending.as_slice() else {
        panic!("{status:?}");
    };
    assert!(
        warning.message.contains("the secret id that came wrapped in") && warning.message.contains("nobody"),
        "{warning}"
    );
    assert!(warning.fix.as_ref().unwrap().contains("it is unwrapped at once"));

    // Somebody else's puts nothing in its place, and costs neither the token nor what is known.
    let swapped = wrap(&bao, "auth/token/create").await;
    std::fs::write(&file, swapped).unwrap();
    let status = until(&rig, "the refusal", |status| status.wrapping.is_some()).await;
    assert!(status.wrapping.unwrap().message.contains("auth/token/create"));
    assert_eq!(status.secret_id_expires, Some(end));

    bao.write("auth/approle/role/edge", lives("1h")).await;
    let next = wrap(&bao, secret_id).await;
    std::fs::write(&file, &next).unwrap();
    let status = until(&rig, "its successor", |status| {
        status.ending.is_empty() && status.wrapping.is_none()
    })
    .await;
    let later = status.secret_id_expires.unwrap();
    assert!(later - end > 3000, "{later} after {end}");
    assert_eq!(status.logins, 1, "the token is good for an hour");
    let (status, _) = bao.send_as(&next, "POST", "sys/wrapping/unwrap", None).await;
    assert_ne!(status, 200, "it is used up");
    // With it the next login is done.
    bao.write("sys/leases/revoke-prefix/auth/approle", json!({}))
        .await;
    store(&bao, "two.example").await;
    assert_eq!(rig.material().await.names[0].as_ref(), "two.example");
    assert_eq!(rig.vault.status().logins, 2);
    rig.stop().await;
}

fn now() -> i64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    since.as_secs() as i64
}

/// Until this is so of the connection.
pub async fn until(rig: &Rig, what: &str, expected: impl Fn(&VaultStatus) -> bool) -> VaultStatus {
    let found = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let status = rig.vault.status();
            if expected(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    found
        .await
        .unwrap_or_else(|_| panic!("not {what}: {:?}", rig.vault.status()))
}

#[tokio::test]
async fn a_wrapping_token_of_something_else_is_not_used() {
    let bao = with_secret().await;
    let (role_id, _) = bao
        .app_role(json!({"token_no_default_policy": true, "token_policies": ["reader"]}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wrapped");
    // Whoever swaps the token for one of his own wraps it elsewhere.
    let swapped = wrap(&bao, "auth/token/create").await;
    std::fs::write(&file, &swapped).unwrap();
    let mut rig = Rig::start(&bao.address, wrapped(&role_id, &file), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    let problem = rig.problem().await;
    assert!(
        problem.message.contains("made at \"auth/token/create\""),
        "{problem}"
    );
    let (status, _) = bao.send_as(&swapped, "POST", "sys/wrapping/unwrap", None).await;
    assert_eq!(status, 200, "it was looked at, not used");
    rig.stop().await;
}

#[tokio::test]
async fn a_password_file_is_read_again_on_each_login() {
    let bao = with_secret().await;
    bao.write("sys/auth/userpass", json!({"type": "userpass"})).await;
    let user = |password: &str| json!({"password": password, "token_no_default_policy": true, "token_policies": ["reader"]});
    bao.write("auth/userpass/users/edge", user("first")).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "wrong\n").unwrap();
    let auth = VaultAuth::Userpass {
        mount: "userpass".to_owned(),
        username: "edge".to_owned(),
        password_file: file.clone(),
    };
    let mut rig = Rig::start(&bao.address, auth, directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Forbidden);
    assert!(problem.message.contains("auth/userpass/login/edge"), "{problem}");
    assert!(problem.message.contains("refused the login"), "{problem}");
    assert!(!problem.message.contains("wrong"), "{problem}");
    std::fs::write(&file, "first\n").unwrap();
    rig.material().await;

    bao.write("auth/userpass/users/edge", user("second")).await;
    std::fs::write(&file, "second\n").unwrap();
    bao.write("sys/leases/revoke-prefix/auth/userpass", json!({}))
        .await;
    store(&bao, "two.example").await;
    assert_eq!(rig.eventually().await.names[0].as_ref(), "two.example");
    assert_eq!(rig.vault.status().logins, 2);
    rig.stop().await;
}

#[tokio::test]
async fn a_service_account_logs_in_and_its_token_rotates() {
    let bao = with_secret().await;
    let cluster = token_reviewer().await;
    // Not used over plain http, and not left out either.
    let (authority, _) = self_signed("kubernetes", 5);
    bao.write("sys/auth/kubernetes", json!({"type": "kubernetes"}))
        .await;
    bao.write(
        "auth/kubernetes/config",
        json!({"kubernetes_host": cluster.address, "disable_local_ca_jwt": true, "kubernetes_ca_cert": authority, "disable_iss_validation": true}),
    )
    .await;
    bao.write(
        "auth/kubernetes/role/edge",
        json!({"bound_service_account_names": ["portreeve"], "bound_service_account_namespaces": ["gateways"],
               "token_no_default_policy": true, "token_policies": ["reader"], "token_ttl": "1h"}),
    )
    .await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, service_account_token("stale")).unwrap();
    let first = service_account_token("first");
    cluster.known.lock().unwrap().clone_from(&first);
    let auth = VaultAuth::Kubernetes {
        mount: "kubernetes".to_owned(),
        role: "edge".to_owned(),
        jwt_file: file.clone(),
    };
    let mut rig = Rig::start(&bao.address, auth, directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Forbidden, "{problem}");
    assert!(problem.message.contains("auth/kubernetes/login"), "{problem}");
    std::fs::write(&file, &first).unwrap();
    rig.material().await;

    // The kubelet puts another token there, and the old one ends.
    let second = service_account_token("second");
    cluster.known.lock().unwrap().clone_from(&second);
    std::fs::write(&file, &second).unwrap();
    bao.write("sys/leases/revoke-prefix/auth/kubernetes", json!({}))
        .await;
    store(&bao, "two.example").await;
    assert_eq!(rig.eventually().await.names[0].as_ref(), "two.example");
    assert_eq!(
        rig.vault.status().logins,
        2,
        "with the second token: the first is unknown now"
    );
    rig.stop().await;
}

#[tokio::test]
async fn a_given_token_that_nobody_renews_is_told_before_it_ends() {
    let bao = with_secret().await;
    let text = bao
        .token(json!({"no_default_policy": true, "policies": ["reader"], "ttl": "9s", "renewable": false}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, &text).unwrap();
    let mut rig = Rig::start(&bao.address, VaultAuth::TokenFile(file.clone()), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.material().await;
    assert!(
        rig.vault.status().warning.is_none(),
        "two thirds of its life are left"
    );
    let end = rig.vault.status().token_expires.unwrap();
    // In the last third it is looked at again.
    let started = std::time::Instant::now();
    let warning = loop {
        if let Some(warning) = rig.vault.status().warning {
            break warning;
        }
        assert!(
            started.elapsed() < Duration::from_secs(9),
            "{:?}",
            rig.vault.status()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(warning.message.contains("cannot be renewed"), "{warning}");
    assert!(warning.fix.as_deref().unwrap().contains("token"), "{warning:?}");
    assert!(rig.vault.status().is_ok(), "it still works");
    assert!(rig.vault.status().token_expires.unwrap() <= end + 1);
    let next = bao
        .token(json!({"no_default_policy": true, "policies": ["reader"], "ttl": "1h"}))
        .await;
    std::fs::write(&file, next).unwrap();
    while rig.vault.status().warning.is_some() {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "{:?}",
            rig.vault.status()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    rig.stop().await;
}
