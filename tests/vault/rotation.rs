//! Certificates of the agent's own connection to Vault rotate, and nothing is restarted.

use std::path::Path;
use std::time::{Duration, Instant};

use portreeve::model::KvVersion;
use portreeve::sources::vault::{VaultAuth, VaultSettings};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use super::bao::Bao;
use super::rig::{Rig, fast, kv, self_signed, token};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Certificate and key for a name or address, ending in an hour.
    fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_after = (std::time::SystemTime::now() + Duration::from_secs(3600)).into();
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        (pem, key.serialize_pem())
    }
}

/// As renewal tools do: a new file over the old one.
fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
}

async fn store(bao: &Bao, name: &str) {
    let (certificate, key) = self_signed(name, 5);
    let fields = json!({"certificate": certificate, "private_key": key});
    bao.write("secret/data/portreeve/www", json!({"data": fields}))
        .await;
}

#[tokio::test]
async fn a_client_certificate_logs_in_and_logs_in_again_when_it_is_renewed() {
    let servers = Authority::new("servers");
    let (certificate, key) = servers.issue("127.0.0.1");
    let bao = Bao::start_tls(&certificate, &key, &servers.pem).await;
    bao.mount_kv().await;
    bao.reader().await;
    store(&bao, "one.example").await;
    let clients = Authority::new("clients");
    bao.write("sys/auth/cert", json!({"type": "cert"})).await;
    bao.write(
        "auth/cert/certs/edge",
        json!({"certificate": clients.pem, "allowed_common_names": ["gateway-1", "gateway-2"],
               "token_policies": ["reader"], "token_no_default_policy": true, "token_ttl": "1h"}),
    )
    .await;

    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("ca.pem"), &servers.pem).unwrap();
    let (certificate, key) = clients.issue("gateway-1");
    std::fs::write(at("client.pem"), certificate).unwrap();
    std::fs::write(at("client.key"), key).unwrap();
    let auth = VaultAuth::Certificate {
        mount: "cert".to_owned(),
        role: Some("edge".to_owned()),
    };
    let mut settings = VaultSettings::new(&bao.address, auth);
    settings.ca_file = Some(at("ca.pem"));
    settings.client_cert = Some(at("client.pem"));
    settings.client_key = Some(at("client.key"));
    let mut rig = Rig::of(settings, directory.path(), fast());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.material().await;
    let first = rig.vault.status();
    assert!(first.client_certificate_expires.is_some(), "{first:?}");

    // Key first, certificate later: between the two they do not fit, and the old pair goes on.
    let (certificate, key) = clients.issue("gateway-2");
    replace(&at("client.key"), &key);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    store(&bao, "two.example").await;
    assert_eq!(rig.material().await.names[0].as_ref(), "two.example");
    replace(&at("client.pem"), &certificate);
    let started = Instant::now();
    while rig.vault.status().logins < 2 {
        assert!(
            started.elapsed() < Duration::from_secs(15),
            "{:?}",
            rig.vault.status()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    store(&bao, "three.example").await;
    assert_eq!(rig.material().await.names[0].as_ref(), "three.example");
    assert_eq!(rig.vault.status().errors, 0, "{:?}", rig.vault.status());
    let (_, list) = bao.send("GET", "auth/token/accessors?list=true", None).await;
    let mut names = Vec::new();
    for accessor in list["data"]["keys"].as_array().unwrap() {
        let found = bao
            .write("auth/token/lookup-accessor", json!({"accessor": accessor}))
            .await;
        names.extend(found["data"]["meta"]["common_name"].as_str().map(str::to_owned));
    }
    assert!(names.iter().any(|name| name == "gateway-2"), "{names:?}");
    rig.stop().await;
}

#[tokio::test]
async fn another_authority_of_vault_is_taken_up_while_running() {
    let servers = Authority::new("servers");
    let (certificate, key) = servers.issue("127.0.0.1");
    let bao = Bao::start_tls(&certificate, &key, &servers.pem).await;
    bao.mount_kv().await;
    store(&bao, "one.example").await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, &servers.pem).unwrap();
    let mut settings = VaultSettings::new(&bao.address, token(&bao.kv_token().await));
    settings.ca_file = Some(file.clone());
    let mut rig = Rig::of(settings, directory.path(), fast());
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.material().await;

    // Another authority alone is another Vault: it is no longer trusted, and said so.
    replace(&file, &Authority::new("others").pem);
    let problem = rig.problem().await;
    assert!(problem.message.contains("invalid peer certificate"), "{problem}");
    // What is no PEM is not taken up, the right one is.
    replace(&file, "nothing");
    replace(&file, &servers.pem);
    rig.material().await;
    rig.stop().await;
}
