//! The harness itself: each real program starts, answers, dies and comes back.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::support::backend::Backend;
use crate::support::client::{Client, Failure, Request};
use crate::support::consul::{Consul, service};
use crate::support::jwt::JwtIssuer;
use crate::support::ports::free_port;
use crate::support::process::Launch;
use crate::support::vault::Vault;
use crate::support::{scratch_directory, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn consul_serves_and_comes_back_with_its_data() {
    let mut consul = Consul::start().await;
    consul.put("portreeve/config/shop", "x = 1").await;
    assert_eq!(
        consul.get("portreeve/config/shop").await.as_deref(),
        Some("x = 1")
    );
    assert_eq!(consul.get("portreeve/none").await, None);
    consul.register(&service("web", "web-1", 8080)).await;
    let healthy = async |consul: &Consul| {
        consul
            .expect(Method::GET, "/v1/health/service/web?passing", "")
            .await
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(healthy(&consul).await, 1);
    consul.set_check("service:web-1", "critical").await;
    wait_for("critical", Duration::from_secs(5), async || {
        anyhow::ensure!(healthy(&consul).await == 0);
        Ok(())
    })
    .await;
    consul.set_check("service:web-1", "passing").await;
    consul.maintenance("web-1", true).await;
    wait_for("maintenance", Duration::from_secs(5), async || {
        anyhow::ensure!(healthy(&consul).await == 0);
        Ok(())
    })
    .await;
    consul.maintenance("web-1", false).await;
    consul.node_maintenance(true).await;
    consul.node_maintenance(false).await;
    let external = json!({ "Service": "ext", "ID": "ext-1", "Port": 1 });
    consul
        .catalog_register(&json!({ "Node": "far", "Address": "127.0.0.1", "Service": external }))
        .await;
    consul
        .catalog_deregister(&json!({"Node": "far", "ServiceID": "ext-1"}))
        .await;
    let set = |key: &str, base64: &str| json!({ "KV": { "Verb": "set", "Key": key, "Value": base64 } });
    consul
        .txn(json!([set("portreeve/a", "YQ=="), set("portreeve/b", "Yg==")]))
        .await;
    assert_eq!(consul.keys("portreeve/").await.len(), 3);
    consul
        .config_entry(&json!({"Kind": "service-defaults", "Name": "web", "Protocol": "http"}))
        .await;
    consul.kill();
    assert!(consul.call(Method::GET, "/v1/status/leader", "").await.is_err());
    consul.restart().await;
    // A leader that was just elected answers before it has read all of its log again.
    wait_for("what it had", Duration::from_secs(10), async || {
        let value = consul.get("portreeve/b").await;
        anyhow::ensure!(value.as_deref() == Some("b"), "{value:?}");
        Ok(())
    })
    .await;
    consul.delete_tree("portreeve/").await;
    assert!(consul.keys("portreeve/").await.is_empty());
    consul.process.stop();
    consul.process.cont();
    consul.deregister("web-1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_denies_by_default() {
    let mut consul = Consul::start_with_acl().await;
    consul.put("portreeve/config/a", "1").await;
    let token = consul
        .create_token("reader", r#"key_prefix "portreeve/" { policy = "read" }"#)
        .await;
    let read = consul
        .call_as(&token.secret, Method::GET, "/v1/kv/portreeve/config/a?raw", "")
        .await
        .unwrap();
    assert_eq!((read.status.as_u16(), read.text().as_str()), (200, "1"));
    assert_eq!(
        consul
            .call_as("", Method::GET, "/v1/kv/portreeve/config/a", "")
            .await
            .unwrap()
            .status,
        403
    );
    consul
        .change_policy("reader", r#"key_prefix "other/" { policy = "read" }"#)
        .await;
    consul.delete_token(&token).await;
    consul.restart().await;
    assert_eq!(consul.get("portreeve/config/a").await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_serves_and_comes_back_sealed_or_not() {
    let mut vault = Vault::start().await;
    vault.enable_kv("kv1", 1).await;
    vault.enable_kv("secret", 2).await;
    vault.write("kv1/a", json!({"x": 1})).await;
    vault.put_kv2("secret", "a", json!({"y": 2})).await;
    assert_eq!(vault.read("secret/data/a").await["data"]["data"]["y"], 2);
    let root = vault.enable_pki("pki_int", "example.com").await;
    let before = vault.count_certificates("pki_int").await;
    let pair = vault
        .write(
            "pki_int/issue/edge",
            json!({"common_name": "www.example.com", "ttl": "1h"}),
        )
        .await;
    assert_eq!(vault.count_certificates("pki_int").await, before + 1);
    assert!(root.contains("BEGIN CERTIFICATE") && pair["data"]["certificate"].is_string());
    vault
        .policy("edge", r#"path "secret/data/*" { capabilities = ["read"] }"#)
        .await;
    let token = vault.create_token(&["edge"], "30s").await;
    assert_eq!(
        vault
            .call_as(&token, Method::GET, "secret/data/a", Value::Null)
            .await
            .unwrap()
            .status,
        200
    );
    vault.revoke_token(&token).await;
    assert_eq!(
        vault
            .call_as(&token, Method::GET, "secret/data/a", Value::Null)
            .await
            .unwrap()
            .status,
        403
    );
    vault.enable_auth("approle", "approle").await;
    let (role_id, secret_id) = vault.approle("edge", &["edge"], "1h").await;
    let login = vault
        .call_as(
            "",
            Method::POST,
            "auth/approle/login",
            json!({"role_id": role_id, "secret_id": secret_id}),
        )
        .await
        .unwrap()
        .ok()
        .unwrap();
    assert!(login.json()["auth"]["client_token"].is_string());
    vault.enable_auth("jwt", "jwt").await;
    let issuer = JwtIssuer::new();
    vault.jwt_role("task", &issuer, &["edge"], "1h").await;
    let login = vault
        .call_as(
            "",
            Method::POST,
            "auth/jwt/login",
            json!({"role": "task", "jwt": issuer.token("edge")}),
        )
        .await
        .unwrap()
        .ok()
        .unwrap();
    assert!(login.json()["auth"]["client_token"].is_string());
    vault.seal().await;
    assert_eq!(
        vault
            .call(Method::GET, "secret/data/a", Value::Null)
            .await
            .unwrap()
            .status,
        503
    );
    vault.unseal().await;
    vault.kill();
    vault.restart().await;
    assert_eq!(vault.read("kv1/a").await["data"]["x"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_takes_mesh_connections_only() {
    let consul = Consul::start_with_acl().await;
    let backend = Backend::start("web").await;
    let mesh_port = free_port();
    let mut definition = service("web", "web-1", backend.port);
    definition["Connect"] =
        json!({ "SidecarService": { "Port": mesh_port, "Address": "127.0.0.1", "Checks": [] } });
    consul.register(&definition).await;
    let _sidecar = consul.start_sidecar("web-1");
    let roots = consul.expect(Method::GET, "/v1/agent/connect/ca/roots", "").await;
    let root = roots["Roots"][0]["RootCert"].as_str().unwrap().to_owned();
    let client = Client::https(mesh_port, &root).sni("web.default.dc1.internal");
    // A mesh certificate carries a SPIFFE URI and no DNS name, which a plain TLS client refuses.
    wait_for(
        "the sidecar to shake hands",
        Duration::from_secs(20),
        async || {
            let failure = client
                .send(&Request::get("web", "/"))
                .await
                .expect_err("a mesh certificate was accepted");
            anyhow::ensure!(
                matches!(&failure, Failure::Tls(why) if why.contains("not valid for")),
                "{failure}"
            );
            Ok(())
        },
    )
    .await;
    assert_eq!(backend.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_program_left_behind_dies_too() {
    let directory = scratch_directory("orphan");
    let script = "setsid sleep 3600 & echo child $!; wait";
    let mut shell = Launch::new("shell", "/bin/sh", directory.path())
        .args(["-c", script])
        .start();
    let line = shell.wait_for_log("child ", Duration::from_secs(5)).await;
    let child = format!("/proc/{}/cmdline", line.trim_start_matches("child "));
    // Between two programs a process has no environment, and so no mark to find it by.
    wait_for("the child's own program", Duration::from_secs(5), async || {
        let line = std::fs::read(&child)?;
        anyhow::ensure!(
            line.starts_with(b"sleep\0"),
            "{:?}",
            String::from_utf8_lossy(&line)
        );
        Ok(())
    })
    .await;
    let alive = || !std::fs::read(&child).unwrap_or_default().is_empty();
    shell.kill();
    assert!(alive(), "a kill reached the program's child");
    drop(shell);
    wait_for("the child's end", Duration::from_secs(5), async || {
        anyhow::ensure!(!alive(), "it is alive");
        Ok(())
    })
    .await;
}
