use portreeve::model::{KvVersion, ProblemKind};
use portreeve::sources::vault::VaultSettings;
use serde_json::json;

use super::bao::Bao;
use super::rig::{Rig, app_role, fast, kv, pki, self_signed};
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
