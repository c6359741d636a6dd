use std::time::Duration;

use portreeve::model::{KvVersion, ProblemKind};
use portreeve::sources::vault::VaultSettings;
use serde_json::json;

use super::bao::Bao;
use super::rig::{Rig, app_role, fast, kv, pki, self_signed, token};
use super::shipped::shipped;

#[tokio::test]
async fn everything_happens_in_the_namespace() {
    let mut bao = Bao::start().await;
    bao.write("sys/namespaces/team", json!({})).await;
    bao.write("team/sys/namespaces/edge", json!({})).await;
    bao.namespace = "team/edge".to_owned();
    bao.mount_kv().await;
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h", "key_type": "ec"}))
        .await;
    for name in ["portreeve-kv", "portreeve-pki"] {
        bao.policy(name, &shipped(name)).await;
    }
    let role = json!({"token_policies": ["portreeve-kv", "portreeve-pki"], "token_no_default_policy": true});
    let (role_id, secret_id) = bao.app_role(role).await;
    let (certificate, key) = self_signed("one.example", 5);
    let fields = json!({"certificate": certificate, "private_key": key});
    bao.write("secret/data/portreeve/www", json!({"data": fields}))
        .await;

    let directory = tempfile::tempdir().unwrap();
    let (from_kv, from_pki) = (
        kv(KvVersion::Detect, "secret", "portreeve/www"),
        pki("www.example.com", 600),
    );
    let mut settings = VaultSettings::new(&bao.address, app_role(&role_id, &secret_id));
    settings.namespace = Some("team/edge".to_owned());
    let mut rig = Rig::of(settings, directory.path(), fast());
    rig.watch(&[&from_kv, &from_pki]);
    rig.material().await;
    rig.material().await;
    assert_eq!(rig.vault.status().errors, 0);
    rig.stop().await;
    assert_eq!(bao.issued().await, 1);

    // The same identity in another namespace is nobody.
    let mut settings = VaultSettings::new(&bao.address, app_role(&role_id, &secret_id));
    settings.namespace = Some("team".to_owned());
    let mut rig = Rig::of(settings, directory.path(), fast());
    rig.watch(&[&from_kv]);
    rig.remembered().await;
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Forbidden, "{problem}");
    rig.stop().await;
}

/// Vault answers in no namespace how it is.
#[tokio::test]
async fn a_seal_is_seen_from_within_a_namespace() {
    let mut bao = Bao::start().await;
    bao.write("sys/namespaces/team", json!({})).await;
    bao.namespace = "team".to_owned();
    bao.mount_kv().await;
    let (certificate, key) = self_signed("one.example", 5);
    let fields = json!({"certificate": certificate, "private_key": key});
    bao.write("secret/data/portreeve/www", json!({"data": fields}))
        .await;
    bao.namespace.clear();
    let directory = tempfile::tempdir().unwrap();
    let mut settings = VaultSettings::new(&bao.address, token(&bao.root_token));
    settings.namespace = Some("team".to_owned());
    let mut rig = Rig::of(settings, directory.path(), fast());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.material().await;

    bao.seal().await;
    assert!(rig.problem().await.message.contains("sealed"));
    let outage = async |is_there: bool| {
        for _ in 0..300 {
            if rig.vault.status().outage.is_some() == is_there {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{:?}", rig.vault.status());
    };
    outage(true).await;
    let before = rig.vault.status().requests;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let asked = rig.vault.status().requests - before;
    assert!(asked <= 1, "{asked} requests to a Vault that is sealed");
    bao.unseal().await;
    outage(false).await;
    rig.stop().await;
}
