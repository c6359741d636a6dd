use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portreeve::model::{KvVersion, ProblemKind, Redacted};
use portreeve::sources::vault::{SecretId, VaultAuth};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey};
use serde_json::{Value, json};

use super::bao::Bao;
use super::rig::{Rig, app_role, kv, store, token, with_secret};

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    started.elapsed()
}

#[tokio::test]
async fn an_app_role_token_is_renewed_replaced_and_given_back() {
    let bao = with_secret().await;
    let settings = json!({"token_no_default_policy": true, "token_policies": ["reader"], "token_ttl": "16s", "token_max_ttl": "28s"});
    let (role_id, secret_id) = bao.app_role(settings).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret_id");
    std::fs::write(&file, format!("{secret_id}\n")).unwrap();
    let auth = VaultAuth::AppRole {
        mount: "approle".to_owned(),
        role_id,
        secret_id: SecretId::File(file),
    };
    let mut rig = Rig::start(&bao.address, auth, directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.material().await;
    assert_eq!(rig.vault.status().logins, 1);
    assert!(rig.vault.status().token_expires.is_some());

    // 16 s of life, 28 s at most: renewed once in full, or cut short, and replaced before its end.
    until("another login", async || rig.vault.status().logins == 2).await;
    let status = rig.vault.status();
    assert!(status.renewals >= 1, "{status:?}");
    assert_eq!(status.errors, 0, "no request ever met a dead token: {status:?}");
    store(&bao, "two.example").await;
    assert_eq!(rig.material().await.names[0].as_ref(), "two.example");

    let held = newest(&bao).await;
    rig.stop().await;
    assert!(!accessors(&bao).await.contains(&held), "the token is given back");
}

#[tokio::test]
async fn a_revoked_token_is_replaced_without_a_gap() {
    let bao = with_secret().await;
    let (role_id, secret_id) = bao
        .app_role(json!({"token_no_default_policy": true, "token_policies": ["reader"], "token_ttl": "1h"}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, app_role(&role_id, &secret_id), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.material().await;
    bao.write("sys/leases/revoke-prefix/auth/approle", json!({}))
        .await;
    store(&bao, "two.example").await;
    let told = rig.material().await;
    assert_eq!(told.names[0].as_ref(), "two.example", "no problem in between");
    assert_eq!(rig.vault.status().logins, 2);

    // The role is gone too: the last good stands, the message says so, and it heals.
    bao.delete("auth/approle/role/edge").await;
    bao.write("sys/leases/revoke-prefix/auth/approle", json!({}))
        .await;
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Forbidden, "{problem}");
    assert!(problem.message.contains("refused the login"), "{problem}");
    assert!(problem.message.contains("auth/approle/login"), "{problem}");
    assert!(!rig.vault.status().is_ok());
    bao.write(
        "auth/approle/role/edge",
        json!({"token_no_default_policy": true, "token_policies": ["reader"], "role_id": role_id}),
    )
    .await;
    bao.write(
        "auth/approle/role/edge/custom-secret-id",
        json!({"secret_id": secret_id}),
    )
    .await;
    rig.material().await;
    assert!(rig.vault.status().is_ok());
    rig.stop().await;
}

/// It is replaced before its end, unless nobody lets the agent in.
#[tokio::test]
async fn a_login_s_token_that_ends_while_no_login_is_to_be_had_is_told_and_the_next_login_mends_it() {
    let bao = with_secret().await;
    let role = json!({"token_no_default_policy": true, "token_policies": ["reader"], "token_ttl": "9s", "token_max_ttl": "9s"});
    let (role_id, secret_id) = bao.app_role(role.clone()).await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, app_role(&role_id, &secret_id), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.material().await;
    bao.delete("auth/approle/role/edge").await;
    // Told by the session first, while the token is good; then its end, by who needs it.
    until("word of the login", async || !rig.vault.status().is_ok()).await;
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Forbidden, "{problem}");
    assert!(problem.message.contains("auth/approle/login"), "{problem}");
    assert!(problem.message.contains("refused the login"), "{problem}");

    let mut role = role;
    role["role_id"] = role_id.into();
    bao.write("auth/approle/role/edge", role).await;
    bao.write(
        "auth/approle/role/edge/custom-secret-id",
        json!({"secret_id": secret_id}),
    )
    .await;
    store(&bao, "two.example").await;
    // What was refused is tried again within a minute.
    let mended = rig.eventually_within(Duration::from_secs(120)).await;
    assert_eq!(mended.names[0].as_ref(), "two.example");
    assert!(rig.vault.status().is_ok());
    rig.stop().await;
}

#[tokio::test]
async fn a_missing_right_is_told_from_a_lost_token() {
    let bao = with_secret().await;
    let narrow = "path \"secret/data/other\" { capabilities = [\"read\"] }";
    bao.policy("narrow", narrow).await;
    // With and without the right to look itself up.
    for no_default in [false, true] {
        let token_text = bao
            .token(json!({"policies": ["narrow"], "no_default_policy": no_default}))
            .await;
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::start(&bao.address, token(&token_text), directory.path());
        rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
        let problem = rig.problem().await;
        // Of a token that never could look itself up, Vault does not tell.
        let told = if no_default {
            ProblemKind::Forbidden
        } else {
            ProblemKind::MissingPermission
        };
        assert_eq!(problem.kind, told, "{problem}");
        assert!(
            problem
                .message
                .contains("secret/data/portreeve/www: permission denied"),
            "{problem}"
        );
        let fix = problem.fix.clone().unwrap();
        assert!(
            fix.contains("path \"secret/data/portreeve/www\" { capabilities = [\"read\"] }"),
            "{fix}"
        );
        // The fix works as it is written.
        let rule = fix.split_once("token: ").unwrap().1;
        bao.policy("narrow", rule).await;
        rig.material().await;
        bao.policy("narrow", narrow).await;
        rig.problem().await;

        bao.revoke(&token_text).await;
        if !no_default {
            let problem = rig.problem().await;
            assert_eq!(problem.kind, ProblemKind::TokenNotAccepted, "{problem}");
            assert!(
                problem.message.contains("token is invalid or has expired"),
                "{problem}"
            );
        }
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_token_file_is_read_again_when_it_changes() {
    let bao = with_secret().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vault_token");
    let first = bao
        .token(json!({"no_default_policy": true, "policies": ["reader"], "ttl": "1h"}))
        .await;
    std::fs::write(&file, &first).unwrap();
    let mut rig = Rig::start(&bao.address, VaultAuth::TokenFile(file.clone()), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.material().await;

    // As Nomad and Vault Agent do: a new file over the old one. The old token ends a moment later.
    let second = bao
        .token(json!({"no_default_policy": true, "policies": ["reader"], "ttl": "1h"}))
        .await;
    std::fs::write(directory.path().join("new"), &second).unwrap();
    std::fs::rename(directory.path().join("new"), &file).unwrap();
    bao.revoke(&first).await;
    store(&bao, "two.example").await;
    assert_eq!(rig.eventually().await.names[0].as_ref(), "two.example");

    bao.revoke(&second).await;
    let problem = rig.problem().await;
    assert!(problem.message.contains("token is invalid"), "{problem}");
    assert!(!rig.vault.status().is_ok(), "{:?}", rig.vault.status());
    std::fs::write(
        &file,
        bao.token(json!({"no_default_policy": true, "policies": ["reader"]}))
            .await,
    )
    .unwrap();
    rig.material().await;
    let third = std::fs::read_to_string(&file).unwrap();
    rig.stop().await;
    let (status, _) = bao.send_as(&third, "GET", "auth/token/lookup-self", None).await;
    assert_eq!(status, 200, "a token of someone else is not revoked");
}

#[tokio::test]
async fn a_workload_identity_logs_in_and_rotates() {
    let bao = with_secret().await;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    bao.write("sys/auth/jwt-nomad", json!({"type": "jwt"})).await;
    let public = json!({"jwt_validation_pubkeys": [key.public_key_pem()], "default_role": "edge"});
    bao.write("auth/jwt-nomad/config", public).await;
    let role = json!({
        "role_type": "jwt", "bound_audiences": ["vault.io"], "user_claim": "sub",
        "token_no_default_policy": true, "token_policies": ["reader"], "token_ttl": "1h"
    });
    bao.write("auth/jwt-nomad/role/edge", role).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vault.jwt");
    std::fs::write(&file, jwt(&key, "elsewhere.io")).unwrap();
    let auth = VaultAuth::Jwt {
        mount: "jwt-nomad".to_owned(),
        role: "edge".to_owned(),
        jwt_file: file.clone(),
    };
    let mut rig = Rig::start(&bao.address, auth, directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Forbidden);
    assert!(problem.message.contains("auth/jwt-nomad/login"), "{problem}");
    assert!(problem.message.contains("aud"), "Vault's own words: {problem}");
    assert!(problem.fix.unwrap().contains("bound claims"));

    // To a login where no auth method is, Vault says "permission denied" and no more.
    let elsewhere = VaultAuth::Jwt {
        mount: "jwt-elsewhere".to_owned(),
        role: "edge".to_owned(),
        jwt_file: file.clone(),
    };
    let other = tempfile::tempdir().unwrap();
    let mut misled = Rig::start(&bao.address, elsewhere, other.path());
    misled.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    let problem = misled.problem().await;
    assert!(problem.message.contains("auth/jwt-elsewhere/login"), "{problem}");
    assert!(
        problem.fix.as_ref().unwrap().contains("vault auth list"),
        "{problem:?}"
    );
    misled.stop().await;

    let rotated = jwt(&key, "vault.io");
    std::fs::write(&file, &rotated).unwrap();
    rig.material().await;
    let shown = format!("{:?} {:?}", rig.vault.status(), rig.watcher.freshness());
    assert!(!shown.contains(&rotated));

    // Another token is asked for with what the file holds then.
    std::fs::write(&file, jwt(&key, "vault.io")).unwrap();
    bao.write("sys/leases/revoke-prefix/auth/jwt-nomad", json!({}))
        .await;
    store(&bao, "two.example").await;
    assert_eq!(rig.material().await.names[0].as_ref(), "two.example");
    rig.stop().await;
}

#[tokio::test]
async fn batch_and_periodic_tokens_live_on() {
    let bao = with_secret().await;
    let directory = tempfile::tempdir().unwrap();
    let batch = json!({"token_no_default_policy": true, "token_policies": ["reader"], "token_type": "batch", "token_ttl": "8s"});
    let (role_id, secret_id) = bao.app_role(batch).await;
    let mut rig = Rig::start(&bao.address, app_role(&role_id, &secret_id), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.material().await;
    let first = until("another batch token", async || rig.vault.status().logins == 2).await;
    assert!(first < Duration::from_secs(8), "{first:?}");
    assert_eq!(rig.vault.status().renewals, 0);
    assert_eq!(rig.vault.status().errors, 0);
    rig.stop().await;

    let periodic = bao
        .token(json!({"no_default_policy": true, "policies": ["reader"], "period": "7s"}))
        .await;
    let mut rig = Rig::start(&bao.address, token(&periodic), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.material().await;
    until("two renewals", async || rig.vault.status().renewals == 2).await;
    assert_eq!(rig.vault.status().errors, 0);
    rig.stop().await;
}

/// Whoever writes it is late, or gone. The token is as good as it was.
#[tokio::test]
async fn a_token_whose_file_vanishes_is_renewed_all_the_same() {
    let bao = with_secret().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vault_token");
    let periodic = bao
        .token(json!({"no_default_policy": true, "policies": ["reader"], "period": "7s"}))
        .await;
    std::fs::write(&file, &periodic).unwrap();
    let mut rig = Rig::start(&bao.address, VaultAuth::TokenFile(file.clone()), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.material().await;
    std::fs::remove_file(&file).unwrap();
    until("the file is missed", async || !rig.vault.status().is_ok()).await;
    let missed = rig.vault.status().problem.unwrap();
    assert!(missed.message.contains("vault_token cannot be used"), "{missed}");
    until("three renewals", async || rig.vault.status().renewals >= 3).await;
    store(&bao, "two.example").await;
    assert_eq!(rig.eventually().await.names[0].as_ref(), "two.example");
    rig.stop().await;
}

#[tokio::test]
async fn a_credential_that_cannot_be_read_is_named() {
    let bao = with_secret().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("late_token");
    let mut rig = Rig::start(&bao.address, VaultAuth::TokenFile(file.clone()), directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    let problem = rig.problem().await;
    assert!(
        problem
            .message
            .contains("late_token cannot be used (No such file"),
        "{problem}"
    );
    std::fs::write(&file, bao.kv_token().await).unwrap();
    rig.material().await;
    rig.stop().await;

    let odd = VaultAuth::Token(Arc::new(Redacted::new("s.hu\nsh".to_owned())));
    let mut rig = Rig::start(&bao.address, odd, directory.path());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.remembered().await;
    let problem = rig.problem().await;
    assert!(problem.message.contains("characters no token has") && !problem.message.contains("hu"));
    rig.stop().await;
}

async fn accessors(bao: &Bao) -> Vec<String> {
    let list = bao.read("auth/token/accessors?list=true").await;
    serde_json::from_value(list["data"]["keys"].clone()).unwrap()
}

/// The accessor of the token that was made last. Former ones end by themselves at any moment.
async fn newest(bao: &Bao) -> String {
    let mut made = Vec::new();
    for accessor in accessors(bao).await {
        let body = json!({ "accessor": accessor });
        let (status, token) = bao.send("POST", "auth/token/lookup-accessor", Some(body)).await;
        if status == 200 {
            made.push((token["data"]["creation_time"].as_u64().unwrap(), accessor));
        }
    }
    made.into_iter().max().unwrap().1
}

/// A JWT as Nomad signs one, with ES256.
fn jwt(key: &KeyPair, audience: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encode(&json!({"alg": "ES256", "typ": "JWT"}));
    let claims = encode(&json!({
        "sub": "global:default:edge:gateway:agent:vault", "aud": audience,
        "iat": now, "nbf": now - 1, "exp": now + 3600, "jti": format!("{:?}", Instant::now())
    }));
    let signed = format!("{header}.{claims}");
    let signature = key.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(fixed(&signature)))
}

/// rcgen signs in ASN.1; a JWT wants r and s of 32 bytes each.
fn fixed(der: &[u8]) -> Vec<u8> {
    let (_, sequence) = x509_parser::der_parser::parse_der(der).unwrap();
    let mut bytes = Vec::new();
    for part in sequence.as_sequence().unwrap() {
        let number = part.as_slice().unwrap();
        let number = &number[number.len().saturating_sub(32)..];
        bytes.extend(std::iter::repeat_n(0, 32 - number.len()));
        bytes.extend_from_slice(number);
    }
    bytes
}
