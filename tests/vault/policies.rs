//! The shipped policies are exactly enough: the sources work with them and no default policy, and nothing more can be
//! read with them.

use portreeve::model::{KvVersion, ProblemKind};
use serde_json::{Value, json};

use super::bao::Bao;
use super::rig::{Rig, app_role, kv, pki, self_signed};

fn shipped(name: &str) -> String {
    let path = format!("{}/vault-policies/{name}.hcl", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

async fn rig_with(bao: &Bao, policy: &str, directory: &tempfile::TempDir) -> Rig {
    bao.policy(policy, &shipped(policy)).await;
    let settings = json!({
        "token_policies": [policy], "token_no_default_policy": true, "token_ttl": "10s", "token_max_ttl": "1h"
    });
    let (role_id, secret_id) = bao.app_role(settings).await;
    Rig::start(&bao.address, app_role(&role_id, &secret_id), directory.path())
}

fn fields(name: &str) -> Value {
    let (certificate, key) = self_signed(name, 5);
    json!({"certificate": certificate, "private_key": key})
}

/// Renewed with the policy's own right, and given back.
async fn lives_and_ends(rig: Rig, bao: &Bao) {
    let started = std::time::Instant::now();
    while rig.vault.status().renewals == 0 {
        assert!(
            started.elapsed().as_secs() < 10,
            "not renewed: {:?}",
            rig.vault.status()
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(rig.vault.status().logins, 1);
    rig.stop().await;
    let (_, list) = bao.send("GET", "auth/token/accessors?list=true", None).await;
    assert_eq!(
        list["data"]["keys"].as_array().map_or(0, Vec::len),
        1,
        "only the root token is left"
    );
}

#[tokio::test]
async fn kv_version_2() {
    let bao = Bao::start().await;
    bao.mount_kv().await;
    bao.write(
        "secret/data/portreeve/www",
        json!({"data": fields("one.example")}),
    )
    .await;
    bao.write("secret/data/other", json!({"data": fields("other.example")}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig_with(&bao, "portreeve-kv", &directory).await;
    let named = kv(KvVersion::V2, "secret", "portreeve/www");
    rig.watch(&[&named]);
    rig.material().await;
    // Polled by metadata, which the policy allows: no request is refused.
    bao.write(
        "secret/data/portreeve/www",
        json!({"data": fields("two.example")}),
    )
    .await;
    rig.material().await;
    let detected = kv(KvVersion::Detect, "secret", "portreeve/www");
    rig.watch(&[&detected]);
    rig.material().await;
    assert_eq!(rig.vault.status().errors, 0, "{:?}", rig.vault.status());

    for (query, fix) in [
        (kv(KvVersion::V2, "secret", "other"), "path \"secret/data/other\""),
        (kv(KvVersion::V1, "kv", "www"), "path \"kv/www\""),
    ] {
        rig.watch(&[&query]);
        let problem = rig.problem().await;
        assert_eq!(problem.kind, ProblemKind::Forbidden, "{problem}");
        assert!(problem.fix.as_deref().unwrap().contains(fix), "{problem:?}");
    }
    rig.watch(&[]);
    lives_and_ends(rig, &bao).await;
}

#[tokio::test]
async fn kv_version_1() {
    let bao = Bao::start().await;
    bao.mount_kv().await;
    bao.write("kv/portreeve/www", fields("one.example")).await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig_with(&bao, "portreeve-kv1", &directory).await;
    for version in [KvVersion::V1, KvVersion::Detect] {
        rig.watch(&[&kv(version, "kv", "portreeve/www")]);
        rig.material().await;
    }
    assert_eq!(rig.vault.status().errors, 0);
    // The wrong version is told from the mount, though the policy makes it a 403.
    rig.watch(&[&kv(KvVersion::V2, "kv", "portreeve/www")]);
    let problem = rig.problem().await;
    assert!(problem.message.contains("is KV version 1"), "{problem}");
    lives_and_ends(rig, &bao).await;
}

#[tokio::test]
async fn pki_role() {
    let bao = Bao::start().await;
    let role = json!({
        "allowed_domains": ["example.com"], "allow_subdomains": true, "max_ttl": "1h", "key_type": "any"
    });
    bao.mount_pki(role.clone()).await;
    bao.write("pki_int/roles/other", role).await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig_with(&bao, "portreeve-pki", &directory).await;
    rig.watch(&[&pki("www.example.com", 600)]);
    rig.material().await;
    assert_eq!(rig.vault.status().errors, 0);
    let mut other = pki("www.example.com", 600);
    if let portreeve::model::CertificateQuery::VaultPki { role, .. } = &mut other {
        *role = "other".into();
    }
    rig.watch(&[&other]);
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Forbidden);
    let fix = problem.fix.as_deref().unwrap();
    assert!(
        fix.contains("path \"pki_int/sign/other\" { capabilities = [\"update\"] }"),
        "{fix}"
    );
    assert_eq!(bao.issued().await, 1);
    lives_and_ends(rig, &bao).await;

    // The policy has no way to a key that Vault made and saw.
    let held = bao
        .token(json!({"policies": ["portreeve-pki"], "no_default_policy": true}))
        .await;
    for path in [
        "pki_int/issue/edge",
        "pki_int/sign-verbatim/edge",
        "pki_int/roles/edge",
    ] {
        let body = json!({"common_name": "www.example.com"});
        let (status, answer) = bao.send_as(&held, "POST", path, Some(body)).await;
        assert_eq!(status, 403, "{path}: {answer}");
    }
    assert_eq!(bao.issued().await, 1);
}
