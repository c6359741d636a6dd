//! Authorities and revocations from a real OpenBao, with the shipped policies alone.

use std::path::Path;
use std::time::Duration;

use portreeve::model::{CertificateQuery, ClientCaQuery, KvVersion, ProblemKind};
use serde_json::json;

use super::bao::Bao;
use super::rig::{Rig, app_role, self_signed, token};
use super::shipped::shipped;

fn from_pki(mount: &str, issuer: Option<&str>, crl: bool) -> CertificateQuery {
    CertificateQuery::ClientCa(ClientCaQuery::VaultPki {
        mount: mount.into(),
        issuer: issuer.map(Into::into),
        crl,
    })
}

fn from_kv(crl_field: Option<&str>) -> CertificateQuery {
    CertificateQuery::ClientCa(ClientCaQuery::VaultKv {
        mount: "secret".into(),
        path: "portreeve/clients".into(),
        version: KvVersion::V2,
        certificate_field: "certificate".into(),
        crl_field: crl_field.map(Into::into),
    })
}

async fn rig(bao: &Bao, directory: &tempfile::TempDir) -> Rig {
    for name in ["portreeve-kv", "portreeve-pki"] {
        bao.policy(name, &shipped(name)).await;
    }
    let role = json!({"token_policies": ["portreeve-kv", "portreeve-pki"], "token_no_default_policy": true});
    let (role_id, secret_id) = bao.app_role(role).await;
    Rig::start(&bao.address, app_role(&role_id, &secret_id), directory.path())
}

#[tokio::test]
async fn a_mounts_signers_are_the_authorities_and_its_root_is_not() {
    let bao = Bao::start().await;
    let role = json!({"allow_any_name": true, "max_ttl": "1h", "key_type": "ec"});
    bao.mount_pki(role).await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(&bao, &directory).await;
    rig.watch(&[&from_pki("pki_int", None, true)]);
    let material = rig.material().await;
    // The mount knows its root too, without a key.
    let issuers = bao.read("pki_int/issuers?list=true").await;
    assert_eq!(issuers["data"]["keys"].as_array().unwrap().len(), 2);
    assert_eq!(material.chain.matches("BEGIN CERTIFICATE").count(), 1);
    let (_, pem) = x509_parser::pem::parse_x509_pem(material.chain.as_bytes()).unwrap();
    assert_eq!(pem.parse_x509().unwrap().subject().to_string(), "CN=intermediate");
    assert!(material.private_key.is_none());
    let before = material.crl.clone().unwrap();

    let issued = bao
        .write("pki_int/issue/edge", json!({"common_name": "client.example"}))
        .await;
    bao.write(
        "pki_int/revoke",
        json!({"serial_number": issued["data"]["serial_number"]}),
    )
    .await;
    let after = rig.material().await;
    assert_ne!(after.crl.clone().unwrap(), before, "the list was read again");
    assert_eq!(rig.vault.status().errors, 0, "{:?}", rig.vault.status());

    for (query, expected) in [
        (from_pki("nowhere", None, false), "nowhere/issuers"),
        (
            from_pki("pki_int", Some("absent"), false),
            "pki_int/issuer/absent/json",
        ),
        (from_pki("secret", None, false), "secret/issuers"),
    ] {
        rig.watch(&[&query]);
        let problem = rig.problem().await;
        assert!(problem.message.contains(expected), "{problem}");
        assert!(problem.fix.is_some());
    }
    rig.stop().await;
}

#[tokio::test]
async fn bad_authorities_are_told_apart_and_the_last_good_stay() {
    let bao = Bao::start().await;
    bao.mount_kv().await;
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h", "key_type": "ec"}))
        .await;
    let authority = bao.read("pki_int/cert/ca").await["data"]["certificate"].clone();
    let list = bao.read("pki_int/issuer/default/crl").await["data"]["crl"].clone();
    let strange = bao.read("pki/issuer/default/crl").await["data"]["crl"].clone();
    let (leaf, _) = self_signed("client.example", 5);
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(&bao, &directory).await;
    let good = json!({"certificate": authority, "crl": list});
    bao.write("secret/data/portreeve/clients", json!({"data": good}))
        .await;
    rig.watch(&[&from_kv(Some("crl"))]);
    let first = rig.material().await;
    let cases = [
        (
            json!({"crl": list}),
            "no field \"certificate\"",
            ProblemKind::Invalid,
        ),
        (
            json!({"certificate": "hello", "crl": list}),
            "no CERTIFICATE block",
            ProblemKind::Malformed,
        ),
        (
            json!({"certificate": leaf, "crl": list}),
            "is no authority",
            ProblemKind::Invalid,
        ),
        (
            json!({"certificate": authority}),
            "no field \"crl\"",
            ProblemKind::Invalid,
        ),
        (
            json!({"certificate": authority, "crl": ""}),
            "has no revocation list",
            ProblemKind::Invalid,
        ),
        (
            json!({"certificate": authority, "crl": strange}),
            "signed by none of the authorities",
            ProblemKind::Invalid,
        ),
        (
            json!({"certificate": authority, "crl": "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"}),
            "not a valid X.509 CRL",
            ProblemKind::Malformed,
        ),
    ];
    for (fields, expected, kind) in cases {
        bao.write("secret/data/portreeve/clients", json!({"data": fields}))
            .await;
        let problem = rig.problem().await;
        assert_eq!(problem.kind, kind, "{problem}");
        assert!(problem.message.contains(expected), "{problem}");
        assert!(problem.message.contains("secret/portreeve/clients"), "{problem}");
    }
    // Nothing at the path any more, and no right to it: told apart, and nothing taken back.
    bao.delete("secret/data/portreeve/clients").await;
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Deleted, "{problem}");
    bao.delete("secret/metadata/portreeve/clients").await;
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::NotFound, "{problem}");
    bao.write("secret/data/portreeve/clients", json!({"data": good}))
        .await;
    assert_eq!(rig.material().await, first);
    rig.stop().await;
}

#[tokio::test]
async fn a_folder_that_the_policy_does_not_name_is_out_of_reach() {
    let bao = Bao::start().await;
    bao.mount_kv().await;
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h", "key_type": "ec"}))
        .await;
    let authority = bao.read("pki_int/cert/ca").await["data"]["certificate"].clone();
    bao.write(
        "secret/data/elsewhere/clients",
        json!({"data": {"certificate": authority}}),
    )
    .await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(&bao, &directory).await;
    rig.watch(&[&CertificateQuery::ClientCa(ClientCaQuery::VaultKv {
        mount: "secret".into(),
        path: "elsewhere/clients".into(),
        version: KvVersion::V2,
        certificate_field: "certificate".into(),
        crl_field: None,
    })]);
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::MissingPermission, "{problem}");
    let fix = problem.fix.unwrap();
    assert!(fix.contains("secret/data/elsewhere/clients"), "{fix}");
    rig.stop().await;
}

/// Of a PKI mount everybody may ask who signs there: a refusal means that it is not one.
#[tokio::test]
async fn authorities_of_a_mount_that_is_not_there_or_another_engine_say_so() {
    let bao = Bao::start().await;
    bao.mount_kv().await;
    let directory = tempfile::tempdir().unwrap();
    bao.policy(
        "nothing",
        r#"path "auth/token/lookup-self" { capabilities = ["read"] }"#,
    )
    .await;
    let nothing = json!({"policies": ["nothing"], "no_default_policy": true});
    let token = super::rig::token(&bao.token(nothing).await);
    for (mount, issuer) in [("nowhere", None), ("nowhere", Some("g1")), ("secret", None)] {
        let mut rig = Rig::start(&bao.address, token.clone(), directory.path());
        rig.watch(&[&CertificateQuery::ClientCa(ClientCaQuery::VaultPki {
            mount: mount.into(),
            issuer: issuer.map(Into::into),
            crl: false,
        })]);
        let problem = rig.problem().await;
        assert_eq!(problem.kind, ProblemKind::WrongMount, "{problem}");
        let said = "no secrets engine of type pki is mounted at this path";
        assert!(problem.message.contains(said), "{problem}");
        assert!(problem.message.contains(mount), "{problem}");
        rig.stop().await;
    }
    // To those who could read anything Vault says it in its own words.
    let mut rig = Rig::start(&bao.address, super::rig::token(&bao.root_token), directory.path());
    rig.watch(&[&CertificateQuery::ClientCa(ClientCaQuery::VaultPki {
        mount: "nowhere".into(),
        issuer: None,
        crl: false,
    })]);
    let problem = rig.problem().await;
    assert!(
        problem.message.contains("no secrets engine is mounted"),
        "{problem}"
    );
    rig.stop().await;
}

/// KV version 1 has no versions: what is there is read each time.
#[tokio::test]
async fn authorities_in_kv_version_1_are_followed_too() {
    let bao = Bao::start().await;
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h", "key_type": "ec"}))
        .await;
    bao.write(
        "sys/mounts/kv",
        json!({"type": "kv", "options": {"version": "1"}}),
    )
    .await;
    let authority = |mount: &str| format!("{mount}/cert/ca");
    let (one, two) = (
        bao.read(&authority("pki_int")).await["data"]["certificate"].clone(),
        bao.read(&authority("pki")).await["data"]["certificate"].clone(),
    );
    bao.write("kv/portreeve/clients", json!({"certificate": one}))
        .await;
    bao.policy("portreeve-kv1", &shipped("portreeve-kv1")).await;
    let role = json!({"token_policies": ["portreeve-kv1"], "token_no_default_policy": true});
    let (role_id, secret_id) = bao.app_role(role).await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, app_role(&role_id, &secret_id), directory.path());
    rig.watch(&[&from_kv_of_any_version()]);
    let first = rig.material().await;
    bao.write("kv/portreeve/clients", json!({"certificate": two}))
        .await;
    let second = rig.material().await;
    assert_ne!(first.chain, second.chain);
    rig.stop().await;
}

/// The document leaves the version out, so the mount may be upgraded under it.
#[tokio::test]
async fn authorities_in_a_mount_that_becomes_version_2_are_followed() {
    let bao = Bao::start().await;
    bao.write(
        "sys/mounts/kv",
        json!({"type": "kv", "options": {"version": "1"}}),
    )
    .await;
    bao.write("kv/portreeve/clients", json!({"certificate": authority("one")}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, token(&bao.root_token), directory.path());
    rig.watch(&[&from_kv_of_any_version()]);
    let first = rig.material().await;
    bao.write("sys/mounts/kv/tune", json!({"options": {"version": "2"}}))
        .await;
    let two = json!({"data": {"certificate": authority("two")}});
    let mut tries = 0;
    // A mount upgrades itself for a moment, and answers 400 until then.
    while bao
        .send("POST", "kv/data/portreeve/clients", Some(two.clone()))
        .await
        .0
        != 200
    {
        tries += 1;
        assert!(tries < 200);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut next = rig.eventually().await;
    while next.chain == first.chain {
        next = rig.eventually().await;
    }
    rig.stop().await;
}

/// At `kv/portreeve/clients`, of whatever version the mount is.
fn from_kv_of_any_version() -> CertificateQuery {
    CertificateQuery::ClientCa(ClientCaQuery::VaultKv {
        mount: "kv".into(),
        path: "portreeve/clients".into(),
        version: KvVersion::Detect,
        certificate_field: "certificate".into(),
        crl_field: None,
    })
}

fn from_file(path: &Path) -> CertificateQuery {
    CertificateQuery::ClientCa(ClientCaQuery::File {
        certificate: path.display().to_string().into(),
        crl: None,
    })
}

pub fn authority(name: &str) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
        .self_signed(&rcgen::KeyPair::generate().unwrap())
        .unwrap()
        .pem()
}

/// Authorities that nobody names any more may be taken back unseen: what is remembered of them ends with the interest in
/// them, be it that this process saw its end, or that the next one does not find it.
#[tokio::test]
async fn authorities_that_are_named_again_wait_for_their_source() {
    let (store, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |name: &str| files.path().join(name);
    let (one, two) = (from_file(&path("one.pem")), from_file(&path("two.pem")));
    let put = |name: &str| std::fs::write(path(name), authority(name)).unwrap();
    let rig = || Rig::start("http://127.0.0.1:1", super::rig::token("unused"), store.path());
    put("one.pem");
    put("two.pem");
    let mut first = rig();
    first.watch(&[&one]);
    let known = first.material().await;
    first.stop().await;
    // What is wanted all the time outlives a restart.
    std::fs::remove_file(path("one.pem")).unwrap();
    let mut restarted = rig();
    restarted.watch(&[&one]);
    assert_eq!(restarted.material().await, known);
    assert_eq!(restarted.problem().await.kind, ProblemKind::NotFound);

    // Others in their place, and those again, of which nobody can say what they are now.
    restarted.watch(&[&two]);
    restarted.material().await;
    restarted.watch(&[&one]);
    assert_eq!(restarted.problem().await.kind, ProblemKind::NotFound);
    restarted.stop().await;
    let mut restarted = rig();
    restarted.watch(&[&one]);
    assert_eq!(restarted.problem().await.kind, ProblemKind::NotFound);

    // The same, with the edit in the absence of the agent.
    put("one.pem");
    restarted.material().await;
    restarted.stop().await;
    let mut restarted = rig();
    restarted.watch(&[&two]);
    restarted.material().await;
    restarted.stop().await;
    std::fs::remove_file(path("one.pem")).unwrap();
    let mut restarted = rig();
    restarted.watch(&[&one]);
    assert_eq!(restarted.problem().await.kind, ProblemKind::NotFound);
    restarted.stop().await;
}
