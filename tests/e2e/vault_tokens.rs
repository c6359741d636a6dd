//! The agent's token at Vault: got by an identity that somebody else signed, and what ends with it.

use hyper::Method;
use serde_json::{Value, json};

use crate::stack::{Options, SOON, Stack, secure, until};
use crate::support::client::{Client, Reply, Request};
use crate::support::jwt::JwtIssuer;
use crate::support::load::Load;
use crate::support::wait_for;

const RULE: &str = "direct_response {\n      status = 200\n    }";

fn shipped() -> String {
    std::fs::read_to_string(format!(
        "{}/vault-policies/portreeve-pki.hcl",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap()
}

fn www() -> Request {
    Request::get("www.example.com", "/")
}

async fn status(stack: &Stack) -> anyhow::Result<Value> {
    Ok(stack.agent.api(Method::GET, "/v1/status", "").await?.ok()?.json())
}

fn source(status: &Value) -> Value {
    let mut sources = status["sources"].as_array().into_iter().flatten();
    sources
        .find(|source| source["name"] == "vault")
        .cloned()
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_identity_serves_and_survives_its_rotation_and_the_loss_of_its_token() {
    let directory = tempfile::tempdir().unwrap();
    let (issuer, file) = (JwtIssuer::new(), directory.path().join("vault.jwt"));
    // For another program: it is refused until the right one is there.
    std::fs::write(&file, issuer.sign(&json!({ "sub": "edge", "aud": "elsewhere" }))).unwrap();
    let stack = Stack::start(Options {
        vault: true,
        vault_login: Some(format!(
            "jwt {{\n    mount    = \"jwt\"\n    role     = \"portreeve\"\n    jwt_file = {file:?}\n  }}"
        )),
        ..Options::default()
    })
    .await;
    let vault = stack.vault.as_ref().unwrap();
    vault.policy("portreeve-pki", &shipped()).await;
    vault.enable_auth("jwt", "jwt").await;
    vault
        .jwt_role("portreeve", &issuer, &["portreeve-pki"], "1h")
        .await;
    let only = json!({ "token_no_default_policy": true, "role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"],
        "token_policies": ["portreeve-pki"], "token_ttl": "1h" });
    vault.write("auth/jwt/role/portreeve", only).await;
    stack.put("www", &secure(RULE)).await;
    wait_for("the refusal in Vault's words", 3 * SOON, async || {
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
    until(&client, &www(), "a certificate", |reply| reply.status == 200).await;
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

/// From the settings to a served certificate, with the shipped policy alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_s_password_serves_and_its_change_is_read_from_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "w0rd-of-old\n").unwrap();
    let stack = Stack::start(Options {
        vault: true,
        vault_login: Some(format!(
            "userpass {{\n    username      = \"edge\"\n    password_file = {file:?}\n  }}"
        )),
        ..Options::default()
    })
    .await;
    let vault = stack.vault.as_ref().unwrap();
    vault.policy("portreeve-pki", &shipped()).await;
    vault.enable_auth("userpass", "userpass").await;
    let user = |password: &str| json!({ "password": password, "token_policies": ["portreeve-pki"], "token_no_default_policy": true });
    vault.write("auth/userpass/users/edge", user("w0rd-of-old")).await;
    stack.put("www", &secure(RULE)).await;
    let client = stack.https_client().await;
    until(&client, &www(), "a certificate", |reply| reply.status == 200).await;

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

fn serial(reply: &Reply) -> String {
    use x509_parser::prelude::FromDer as _;
    let der = reply.certificate.as_ref().expect("a certificate");
    let (_, parsed) = x509_parser::prelude::X509Certificate::from_der(der).unwrap();
    let bytes: Vec<String> = parsed
        .raw_serial()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    bytes.join(":")
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
    let first = serial(&until(&client, &www(), "a certificate", |reply| reply.status == 200).await);
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
        second = serial(&reply);
        anyhow::ensure!(second != first, "the revoked one still serves");
        Ok(())
    })
    .await;
    load.finish().await.assert_none_lost();
    assert!(!revoked(&second).await);
    assert_eq!(vault.count_certificates("pki_int").await, 3, "the root and two");
}
