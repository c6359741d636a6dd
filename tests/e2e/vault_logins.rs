//! Ways to log in to Vault, from the agent's settings to a certificate that Envoy serves: with the shipped policy alone, and
//! over the rotation of what the login shows. Each by itself: `tests/vault`. By JWT and by password: `vault_tokens`.

use std::path::Path;

use serde_json::{Value, json};

use crate::stack::{Options, Stack, secure};
use crate::support::client::{Client, Request};
use crate::support::load::Load;
use crate::support::pki::{Ca, Pair};
use crate::support::ports::free_port;
use crate::support::token_review::{service_account_token, token_reviewer};
use crate::support::vault::Vault;
use crate::support::{scratch_directory, wait_for};
use crate::vault_tokens::{
    RULE, TRIED_AGAIN, certified, logged_in, shipped, source, status, with_login, www,
};

/// One certificate more than [`secure`] has, and its host.
async fn put_shop_too(stack: &Stack) {
    let both = secure(RULE).replace("certificates = [\"www\"]", "certificates = [\"www\", \"shop\"]");
    let hosts = "hostnames = [\"www.example.com\", \"shop.example.com\"]";
    let both = both.replace("hostnames = [\"www.example.com\"]", hosts);
    let shop = "certificate \"shop\" {\n  vault_pki {\n    mount       = \"pki_int\"\n    role        = \"edge\"\n    \
                common_name = \"shop.example.com\"\n  }\n}\n";
    stack.put("www", &format!("{both}\n{shop}")).await;
}

async fn until_shop_is_served(client: &Client) {
    wait_for("the next certificate", TRIED_AGAIN, async || {
        let reply = client.send(&Request::get("shop.example.com", "/")).await;
        let reply = reply.map_err(|failure| anyhow::anyhow!("{failure}"))?;
        anyhow::ensure!(reply.status == 200, "{}", reply.status);
        Ok(())
    })
    .await;
}

async fn until_refused(stack: &Stack, words: &str) {
    wait_for("the refusal", TRIED_AGAIN, async || {
        let source = source(&status(stack).await?);
        anyhow::ensure!(
            source["ok"] == false && source.to_string().contains(words),
            "{source}"
        );
        Ok(())
    })
    .await;
}

/// As renewal tools do: a new file over the old one.
fn put(directory: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let (path, next) = (directory.join(name), directory.join(format!("{name}.next")));
    std::fs::write(&next, text).unwrap();
    std::fs::rename(&next, &path).unwrap();
    path
}

fn put_pair(directory: &Path, name: &str, pair: &Pair) {
    // Between the two they do not fit.
    put(directory, &format!("{name}.key"), &pair.key);
    put(directory, &format!("{name}.pem"), &pair.certificate);
}

/// Whose tokens there are, by the names in the certificates that they were got with.
async fn names(vault: &Vault) -> Vec<String> {
    let tokens = vault.tokens().await;
    let names = tokens
        .iter()
        .filter_map(|token| token["meta"]["common_name"].as_str());
    names.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_of_a_namespace_serves_and_its_successor_logs_in_again() {
    let directory = scratch_directory("certificate-login");
    let at = |name: &str| directory.path().join(name);
    let (servers, clients) = (Ca::new("servers"), Ca::new("clients"));
    put(directory.path(), "ca.pem", &servers.certificate);
    put_pair(directory.path(), "server", &servers.issue(&["127.0.0.1"]));
    put_pair(directory.path(), "client", &clients.issue(&["gateway-1"]));
    let port = free_port();
    let mut vault = Vault::start_with(&[json!({
        "address": format!("127.0.0.1:{port}"),
        "tls_cert_file": at("server.pem"),
        "tls_key_file": at("server.key"),
    })])
    .await;
    vault.write("sys/namespaces/team", json!({})).await;
    vault.namespace = "team".to_owned();
    vault.write("sys/namespaces/edge", json!({})).await;
    vault.namespace = "team/edge".to_owned();
    let root = vault.enable_pki("pki_int", "example.com").await;
    vault.policy("portreeve-pki", &shipped()).await;
    vault.enable_auth("cert", "cert").await;
    let role = json!({
        "certificate": clients.certificate, "allowed_common_names": ["gateway-1", "gateway-2"],
        "token_policies": ["portreeve-pki"], "token_no_default_policy": true, "token_ttl": "1h",
    });
    vault.write("auth/cert/certs/portreeve", role).await;

    let stack = Stack::start(Options {
        more: format!(
            "vault {{\n  address     = \"https://127.0.0.1:{port}\"\n  namespace   = \"team/edge\"\n  \
             ca_file     = {:?}\n  client_cert = {:?}\n  client_key  = {:?}\n\n  cert {{\n    role = \"portreeve\"\n  }}\n}}\n",
            at("ca.pem"),
            at("client.pem"),
            at("client.key")
        ),
        ..Options::default()
    })
    .await;
    logged_in(&stack).await;
    stack.put("www", &secure(RULE)).await;
    let client = Client::https(stack.https, &root);
    certified(&client).await;
    assert_eq!(names(&vault).await, ["gateway-1"]);
    assert_eq!(vault.count_certificates("pki_int").await, 2, "the root and one");

    // Another identity: the token is held to the one that it was got with, so there is a new login.
    let load = Load::start(30, client.clone(), www());
    put_pair(directory.path(), "client", &clients.issue(&["gateway-2"]));
    wait_for("the login as the other", TRIED_AGAIN, async || {
        let names = names(&vault).await;
        anyhow::ensure!(names.iter().any(|name| name == "gateway-2"), "{names:?}");
        Ok(())
    })
    .await;
    put_shop_too(&stack).await;
    until_shop_is_served(&client).await;
    load.finish().await.assert_none_lost();
    assert_eq!(vault.count_certificates("pki_int").await, 3, "the root and two");
    assert_eq!(source(&status(&stack).await.unwrap())["ok"], true);
}

/// Each secret id is good for one login: the second needs the second.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrapped_secret_id_serves_and_the_next_is_used_for_the_next_login() {
    let directory = scratch_directory("wrapped-login");
    let file = put(directory.path(), "wrapped", "s.none");
    let stack = with_login(format!(
            "approle {{\n    role_id                = \"portreeve-1\"\n    wrapped_secret_id_file = {file:?}\n  }}"
        )).await;
    let vault = stack.vault.as_ref().unwrap();
    vault.enable_auth("approle", "approle").await;
    let role = json!({
        "role_id": "portreeve-1", "secret_id_num_uses": 1, "token_policies": ["portreeve-pki"],
        "token_no_default_policy": true, "token_ttl": "1h",
    });
    vault.write("auth/approle/role/portreeve", role).await;
    until_refused(&stack, "expired or was used before").await;
    let secret_id = "auth/approle/role/portreeve/secret-id";
    let first = vault.wrap(secret_id).await;
    put(directory.path(), "wrapped", &first);
    logged_in(&stack).await;
    stack.put("www", &secure(RULE)).await;
    let client = stack.https_client().await;
    certified(&client).await;
    let used = vault
        .call_as(&first, hyper::Method::POST, "sys/wrapping/unwrap", Value::Null)
        .await
        .unwrap();
    assert_ne!(used.status, 200, "it works a single time");

    // The next comes while the token is good, and is needed when it is not.
    let load = Load::start(30, client.clone(), www());
    let second = vault.wrap(secret_id).await;
    put(directory.path(), "wrapped", &second);
    wait_for("the next to be unwrapped", TRIED_AGAIN, async || {
        let unwrapped = stack
            .agent
            .process
            .log()
            .matches("vault secret_id unwrapped")
            .count();
        anyhow::ensure!(unwrapped == 2, "{unwrapped} of 2");
        Ok(())
    })
    .await;
    vault
        .write("sys/leases/revoke-prefix/auth/approle", json!({}))
        .await;
    put_shop_too(&stack).await;
    until_shop_is_served(&client).await;
    load.finish().await.assert_none_lost();
    let told = status(&stack).await.unwrap().to_string() + &stack.agent.process.log();
    assert!(!told.contains(&first) && !told.contains(&second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_serves_and_its_next_token_logs_in_again() {
    let cluster = token_reviewer().await;
    let directory = scratch_directory("kubernetes-login");
    let file = put(directory.path(), "token", &service_account_token("stale"));
    let stack = with_login(format!(
        "kubernetes {{\n    role     = \"portreeve\"\n    jwt_file = {file:?}\n  }}"
    ))
    .await;
    let vault = stack.vault.as_ref().unwrap();
    vault.enable_auth("kubernetes", "kubernetes").await;
    // The authority is not used over plain http, and not left out either.
    let config = json!({
        "kubernetes_host": cluster.address, "disable_local_ca_jwt": true, "disable_iss_validation": true,
        "kubernetes_ca_cert": Ca::new("kubernetes").certificate,
    });
    vault.write("auth/kubernetes/config", config).await;
    let role = json!({
        "bound_service_account_names": ["portreeve"], "bound_service_account_namespaces": ["gateways"],
        "token_policies": ["portreeve-pki"], "token_no_default_policy": true, "token_ttl": "1h",
    });
    vault.write("auth/kubernetes/role/portreeve", role).await;
    until_refused(&stack, "auth/kubernetes/login").await;
    let take = |signature: &str| {
        let token = service_account_token(signature);
        cluster.known.lock().unwrap().clone_from(&token);
        put(directory.path(), "token", &token);
        token
    };
    let first = take("first");
    logged_in(&stack).await;
    stack.put("www", &secure(RULE)).await;
    let client = stack.https_client().await;
    certified(&client).await;

    // The kubelet puts another there, the cluster knows the old one no more, and what it gave is taken back.
    let load = Load::start(30, client.clone(), www());
    let second = take("second");
    vault
        .write("sys/leases/revoke-prefix/auth/kubernetes", json!({}))
        .await;
    put_shop_too(&stack).await;
    until_shop_is_served(&client).await;
    load.finish().await.assert_none_lost();
    let told = status(&stack).await.unwrap().to_string() + &stack.agent.process.log();
    assert!(!told.contains(&first) && !told.contains(&second));
}
