//! The agent's token at Vault: got by an identity that somebody else signed, and what ends with it.

use std::path::Path;
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::credentials::an_identity_is_told_before_it_ends;
use crate::stack::{Options, SOON, Stack, secure, until};
use crate::support::client::{Client, Request};
use crate::support::jwt::JwtIssuer;
use crate::support::load::Load;
use crate::support::wait_for;

/// What was refused is tried again within a minute.
pub const TRIED_AGAIN: Duration = Duration::from_secs(120);

pub const RULE: &str = "direct_response {\n      status = 200\n    }";

pub fn shipped() -> String {
    std::fs::read_to_string(format!(
        "{}/vault-policies/portreeve-pki.hcl",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap()
}

pub fn www() -> Request {
    Request::get("www.example.com", "/")
}

pub async fn status(stack: &Stack) -> anyhow::Result<Value> {
    Ok(stack.agent.api(Method::GET, "/v1/status", "").await?.ok()?.json())
}

pub fn source(status: &Value) -> Value {
    let mut sources = status["sources"].as_array().into_iter().flatten();
    sources
        .find(|source| source["name"] == "vault")
        .cloned()
        .unwrap_or_default()
}

/// The agent is up before there is anything to log in at, and each try waits longer than the one before.
pub async fn logged_in(stack: &Stack) {
    wait_for("the login", TRIED_AGAIN, async || {
        let source = source(&status(stack).await?);
        anyhow::ensure!(source["ok"] == true, "{source}");
        Ok(())
    })
    .await;
}

/// A certificate that was refused before the login waits as well.
pub async fn certified(client: &Client) {
    wait_for("a certificate and the route", TRIED_AGAIN, async || {
        let reply = client.send(&www()).await;
        let reply = reply.map_err(|failure| anyhow::anyhow!("{failure}"))?;
        anyhow::ensure!(reply.status == 200, "{}", reply.status);
        Ok(())
    })
    .await;
}

/// The agent is to log in to Vault so. The method is not there yet; the shipped policy is.
pub async fn with_login(login: String) -> Stack {
    let stack = Stack::start(Options {
        vault: true,
        vault_login: Some(login),
        ..Options::default()
    })
    .await;
    let vault = stack.vault.as_ref().unwrap();
    vault.policy("portreeve-pki", &shipped()).await;
    stack
}

/// The agent logs in with the identity in this file, and the role gives it the shipped policy alone.
async fn with_identity(issuer: &JwtIssuer, file: &Path) -> Stack {
    let stack = with_login(format!(
        "jwt {{\n    mount    = \"jwt\"\n    role     = \"portreeve\"\n    jwt_file = {file:?}\n  }}"
    ))
    .await;
    let vault = stack.vault.as_ref().unwrap();
    vault.enable_auth("jwt", "jwt").await;
    vault
        .jwt_role("portreeve", issuer, &["portreeve-pki"], "1h")
        .await;
    stack
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_identity_serves_and_survives_its_rotation_and_the_loss_of_its_token() {
    let directory = tempfile::tempdir().unwrap();
    let (issuer, file) = (JwtIssuer::new(), directory.path().join("vault.jwt"));
    // For another program: it is refused until the right one is there.
    std::fs::write(&file, issuer.sign(&json!({ "sub": "edge", "aud": "elsewhere" }))).unwrap();
    let stack = with_identity(&issuer, &file).await;
    let vault = stack.vault.as_ref().unwrap();
    let only = json!({ "token_no_default_policy": true, "role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"],
        "token_policies": ["portreeve-pki"], "token_ttl": "1h" });
    vault.write("auth/jwt/role/portreeve", only).await;
    stack.put("www", &secure(RULE)).await;
    wait_for("the refusal in Vault's words", TRIED_AGAIN, async || {
        let source = source(&status(&stack).await?).to_string();
        anyhow::ensure!(
            source.contains("auth/jwt/login") && source.contains("aud"),
            "{source}"
        );
        Ok(())
    })
    .await;

    // The identity rotates: seen at once, no restart.
    std::fs::write(&file, issuer.token("edge")).unwrap();
    let client = stack.https_client().await;
    logged_in(&stack).await;
    certified(&client).await;
    let settled = status(&stack).await.unwrap();
    assert_eq!(source(&settled)["ok"], true, "{settled:#}");
    assert!(
        !settled
            .to_string()
            .contains(&std::fs::read_to_string(&file).unwrap())
    );

    // The token goes, and the identity has rotated meanwhile: the next certificate is asked for with a token got by the new one.
    let load = Load::start(30, client.clone(), www());
    std::fs::write(&file, issuer.token("edge-2")).unwrap();
    vault.write("sys/leases/revoke-prefix/auth/jwt", json!({})).await;
    let shop = secure(RULE)
        .replace("www", "shop")
        .replace("listener \"secure\"", "listener \"second\"");
    let (_, shop) = shop.split_once("certificate \"shop\"").unwrap();
    let both = secure(RULE).replace("certificates = [\"www\"]", "certificates = [\"www\", \"shop\"]");
    stack
        .put("www", &format!("{both}\ncertificate \"shop\"{shop}"))
        .await;
    let request = Request::get("shop.example.com", "/");
    until(&client, &request, "the next certificate", |reply| {
        reply.status == 200
    })
    .await;
    load.finish().await.assert_none_lost();
    let accessors = vault
        .call(
            Method::from_bytes(b"LIST").unwrap(),
            "auth/token/accessors",
            Value::Null,
        )
        .await;
    let tokens = accessors.unwrap().json()["data"]["keys"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(tokens, 2, "the root token, and the agent's one");
}

/// As Consul's: the token of the last login is good for an hour more.
#[tokio::test(flavor = "multi_thread")]
async fn the_identity_that_a_vault_login_shows_is_told_before_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let (issuer, file) = (JwtIssuer::new(), directory.path().join("vault.jwt"));
    std::fs::write(&file, issuer.token("edge")).unwrap();
    let stack = with_identity(&issuer, &file).await;
    logged_in(&stack).await;
    stack.put("www", &secure(RULE)).await;
    let client = stack.https_client().await;
    certified(&client).await;
    let sign = |start: i64, end: i64| {
        issuer.sign(&json!({ "sub": "edge", "aud": "vault", "iat": start, "nbf": start, "exp": end }))
    };
    an_identity_is_told_before_it_ends(&stack.agent, ("Vault", "vault"), &file, sign).await;
    assert_eq!(client.send(&www()).await.unwrap().status, 200);
}

/// From the settings to a served certificate, with the shipped policy alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_s_password_serves_and_its_change_is_read_from_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "w0rd-of-old\n").unwrap();
    let stack = with_login(format!(
        "userpass {{\n    username      = \"edge\"\n    password_file = {file:?}\n  }}"
    ))
    .await;
    let vault = stack.vault.as_ref().unwrap();
    vault.enable_auth("userpass", "userpass").await;
    let user = |password: &str| json!({ "password": password, "token_policies": ["portreeve-pki"], "token_no_default_policy": true });
    vault.write("auth/userpass/users/edge", user("w0rd-of-old")).await;
    logged_in(&stack).await;
    stack.put("www", &secure(RULE)).await;
    let client = stack.https_client().await;
    certified(&client).await;

    // Another password, and the token of the old one is gone: the next certificate needs the file's new word.
    let load = Load::start(30, client.clone(), www());
    vault.write("auth/userpass/users/edge", user("w0rd-of-new")).await;
    std::fs::write(&file, "w0rd-of-new\n").unwrap();
    vault
        .write("sys/leases/revoke-prefix/auth/userpass", json!({}))
        .await;
    let both = secure(RULE).replace("certificates = [\"www\"]", "certificates = [\"www\", \"shop\"]");
    let shop = "certificate \"shop\" {\n  vault_pki {\n    mount       = \"pki_int\"\n    role        = \"edge\"\n    \
                common_name = \"shop.example.com\"\n  }\n}\n";
    let hosts = "hostnames = [\"www.example.com\", \"shop.example.com\"]";
    let both = both.replace("hostnames = [\"www.example.com\"]", hosts);
    stack.put("www", &format!("{both}\n{shop}")).await;
    let request = Request::get("shop.example.com", "/");
    until(&client, &request, "the next certificate", |reply| {
        reply.status == 200
    })
    .await;
    load.finish().await.assert_none_lost();
    let settled = status(&stack).await.unwrap().to_string();
    assert!(!settled.contains("w0rd"), "{settled}");
}

/// Who mends in Vault what was refused need not wait for the next try, which is far away.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_was_mended_in_vault_is_tried_at_once_by_refresh_and_by_reload() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "w0rd\n").unwrap();
    let mut stack = with_login(format!(
        "userpass {{\n    username      = \"edge\"\n    password_file = {file:?}\n  }}"
    ))
    .await;
    let users = "auth/userpass/users/edge";
    let user = |password: &str| json!({ "password": password, "token_policies": ["portreeve-pki"], "token_no_default_policy": true });
    let vault = stack.vault.as_ref().unwrap();
    vault.enable_auth("userpass", "userpass").await;
    vault.write(users, user("another")).await;
    refused_twice(&stack).await;
    let vault = stack.vault.as_ref().unwrap();
    vault.write(users, user("w0rd")).await;
    let asked = stack.agent.api(Method::POST, "/v1/refresh", "").await;
    asked.unwrap().ok().unwrap();
    logged_in(&stack).await;

    vault.write(users, user("another")).await;
    vault
        .write("sys/leases/revoke-prefix/auth/userpass", json!({}))
        .await;
    stack.put("www", &secure(RULE)).await;
    refused_twice(&stack).await;
    let vault = stack.vault.as_ref().unwrap();
    vault.write(users, user("w0rd")).await;
    stack.agent.reload();
    logged_in(&stack).await;
    certified(&stack.https_client().await).await;
}

/// The second try is 10 s after the first.
async fn refused_twice(stack: &Stack) {
    wait_for("the refusal", TRIED_AGAIN, async || {
        let source = source(&status(stack).await?);
        anyhow::ensure!(source.to_string().contains("refused the login (400)"), "{source}");
        Ok(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(12)).await;
}

/// A role with `generate_lease`: the certificates go with the token that asked for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_leased_certificate_that_goes_with_its_token_is_replaced() {
    let stack = Stack::start(Options {
        vault: true,
        vault_policies: vec![("portreeve-pki", shipped())],
        ..Options::default()
    })
    .await;
    let vault = stack.vault.as_ref().unwrap();
    let role = json!({
        "allowed_domains": "example.com", "allow_subdomains": true, "key_type": "ec", "key_bits": 256, "max_ttl": "72h",
        "generate_lease": true,
    });
    vault.write("pki_int/roles/edge", role).await;
    stack.put("www", &secure(RULE)).await;
    let client: Client = stack.https_client().await;
    let reply = until(&client, &www(), "a certificate", |reply| reply.status == 200).await;
    let first = reply.serial();
    let revoked = async |serial: &str| {
        let stored = vault.read(&format!("pki_int/cert/{serial}")).await;
        stored["data"]["revocation_time"].as_i64().unwrap() > 0
    };
    assert!(!revoked(&first).await);

    let load = Load::start(20, client.clone(), www());
    vault
        .write("sys/leases/revoke-prefix/auth/approle", json!({}))
        .await;
    wait_for("the lease to go with its token", SOON, async || {
        anyhow::ensure!(revoked(&first).await, "still good");
        Ok(())
    })
    .await;
    // Within the minute that is between two issues of a certificate.
    let mut second = first.clone();
    wait_for("another certificate", 10 * SOON, async || {
        let reply = client
            .send(&www())
            .await
            .map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        second = reply.serial();
        anyhow::ensure!(second != first, "the revoked one still serves");
        Ok(())
    })
    .await;
    load.finish().await.assert_none_lost();
    assert!(!revoked(&second).await);
    assert_eq!(vault.count_certificates("pki_int").await, 3, "the root and two");
}

/// Nobody revoked it: its time is over. It cannot be renewed, and only whoever gave it can give another.
#[tokio::test(flavor = "multi_thread")]
async fn a_given_token_that_ends_in_use_costs_nothing_that_is_served_and_another_in_its_file_mends_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vault_token");
    let mut stack = Stack::start(Options {
        vault: true,
        vault_login: Some(format!("token_file = {file:?}")),
        ..Options::default()
    })
    .await;
    let vault = stack.vault.as_ref().unwrap();
    vault.policy("portreeve-pki", &shipped()).await;
    let give = async |ttl: &str| {
        let made = json!({ "policies": ["portreeve-pki"], "ttl": ttl, "renewable": false });
        let made = vault.write("auth/token/create", made).await;
        std::fs::write(&file, made["auth"]["client_token"].as_str().unwrap()).unwrap();
    };
    give("1h").await;
    logged_in(&stack).await;
    stack.put("www", &secure(RULE)).await;
    let client = stack.https_client().await;
    certified(&client).await;

    let load = Load::start(30, client.clone(), www());
    give("20s").await;
    let line = stack
        .agent
        .wait_for_log("the token is invalid or has expired")
        .await;
    assert!(line.contains("vault token trouble"), "{line}");
    let ended = status(&stack).await.unwrap();
    assert_eq!(source(&ended)["ok"], false, "{ended:#}");
    let problem = source(&ended)["problem"].to_string();
    assert!(
        problem.contains("the token is invalid or has expired"),
        "{problem}"
    );

    // What needs it is told with the reason, and nothing else.
    let both = secure(RULE).replace("certificates = [\"www\"]", "certificates = [\"www\", \"shop\"]");
    let hosts = "hostnames = [\"www.example.com\", \"shop.example.com\"]";
    let both = both.replace("hostnames = [\"www.example.com\"]", hosts);
    let shop = "certificate \"shop\" {\n  vault_pki {\n    mount       = \"pki_int\"\n    role        = \"edge\"\n    \
                common_name = \"shop.example.com\"\n  }\n}\n";
    stack.put("www", &format!("{both}\n{shop}")).await;
    wait_for("word of the certificate", TRIED_AGAIN, async || {
        let status = status(&stack).await?.to_string();
        anyhow::ensure!(status.contains("token-not-accepted"), "{status}");
        Ok(())
    })
    .await;

    give("1h").await;
    logged_in(&stack).await;
    wait_for("the next certificate", TRIED_AGAIN, async || {
        let reply = client.send(&Request::get("shop.example.com", "/")).await;
        let reply = reply.map_err(|failure| anyhow::anyhow!("{failure}"))?;
        anyhow::ensure!(reply.status == 200, "{}", reply.status);
        Ok(())
    })
    .await;
    load.finish().await.assert_none_lost();
}
