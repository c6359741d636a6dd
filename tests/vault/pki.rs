use std::sync::Arc;
use std::time::{Duration, Instant};

use portreeve::model::{CertificateQuery, KeyType, ProblemKind};
use portreeve::sources::certificates::{
    CertificateSettings, CertificateStore, StoreError, StoredCertificate,
};
use portreeve::sources::vault::VaultSettings;
use serde_json::json;

use super::bao::Bao;
use super::rig::{Rig, pki, token};
use super::shipped::{named, shipped};

#[tokio::test]
async fn issues_a_servable_chain_and_renews_at_two_thirds() {
    let bao = Bao::start().await;
    let rules = named("portreeve-pki-issuer", &[("g2", "default")]);
    let held = bao.token_of(&[rules]).await;
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h", "not_before_duration": "1s"}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, token(&held), directory.path());
    let query = CertificateQuery::VaultPki {
        mount: "pki_int".into(),
        role: "edge".into(),
        issuer: Some("default".into()),
        common_name: "www.example.com".into(),
        alt_names: vec!["a.example.com".into(), "b.example.com".into()],
        ip_sans: vec!["10.1.2.3".into()],
        ttl: Some(9),
        key_type: None,
    };
    rig.watch(&[&query]);
    let first = rig.material().await;
    let mut names: Vec<&str> = first.names.iter().map(AsRef::as_ref).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["10.1.2.3", "a.example.com", "b.example.com", "www.example.com"]
    );
    assert_eq!(
        first.chain.matches("BEGIN CERTIFICATE").count(),
        2,
        "leaf and intermediate, no root"
    );
    let second = rig.material().await;
    assert_ne!(first.serial, second.serial);
    // 10 s of life (1 s dated back): due 5.3 to 6 s after the issue, give or take the rounding of dates, and there before the
    // first one ends.
    let later = second.not_before - first.not_before;
    assert!(later >= 5 && second.not_before + 1 < first.not_after, "{later} s");
    assert_eq!(bao.issued().await, 2);
    let freshness = rig.watcher.freshness();
    assert_eq!(freshness[0].serial.as_ref(), Some(&second.serial));
    assert_eq!(freshness[0].issues, 2);
    rig.stop().await;
}

#[tokio::test]
async fn a_restart_issues_nothing_until_a_key_is_wanted() {
    let bao = Bao::start().await;
    let held = bao.pki_token().await;
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h"}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let query = pki("www.example.com", 3600);
    let mut rig = Rig::start(&bao.address, token(&held), directory.path());
    rig.watch(&[&query]);
    let first = rig.material().await;
    rig.stop().await;

    for _ in 0..3 {
        let mut rig = Rig::start(&bao.address, token(&held), directory.path());
        rig.watch(&[&query]);
        let again = rig.material().await;
        assert_eq!(
            (again.version(), again.serial.clone()),
            (first.version(), first.serial.clone())
        );
        assert!(again.private_key.is_none(), "no key on disk");
        rig.watcher.refresh(&query);
        rig.silence(Duration::from_millis(700)).await;
        rig.stop().await;
    }
    assert_eq!(bao.issued().await, 1);

    let mut rig = Rig::start(&bao.address, token(&held), directory.path());
    rig.watch(&[&query]);
    rig.material().await;
    assert!(rig.watcher.want_key(&query));
    let renewed = rig.material().await;
    assert!(renewed.private_key.is_some());
    rig.watcher.want_key(&query);
    rig.silence(Duration::from_secs(3)).await;
    assert_eq!(bao.issued().await, 2);
    rig.stop().await;

    let stored = std::fs::read(directory.path().join("certificates.redb")).unwrap();
    assert!(
        !stored.windows(11).any(|window| window == b"PRIVATE KEY"),
        "no private key on disk"
    );
}

#[tokio::test]
async fn a_crash_loop_that_loses_every_answer_asks_once_per_interval() {
    let bao = Bao::start().await;
    let held = bao.pki_token().await;
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h"}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let query = pki("www.example.com", 3600);
    let slow = CertificateSettings {
        issue_interval: Duration::from_secs(60),
        ..super::rig::fast()
    };
    for round in 0..6 {
        let mut rig = Rig::with(&bao.address, token(&held), directory.path(), slow);
        rig.watch(&[&query]);
        // The process dies while its first request is on the way.
        while round == 0 && bao.issued().await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        rig.watch(&[]);
        rig.stop().await;
        if round == 0 {
            // What the store held at that moment: the attempt, and no certificate.
            forget_the_answer(directory.path(), &query);
        }
    }
    assert_eq!(bao.issued().await, 1, "six starts, one issue");
}

/// A store on a full disk: what was there is read, nothing new is kept.
struct FullDisk;

impl CertificateStore for FullDisk {
    fn load(&self, _: &CertificateQuery) -> Result<Option<StoredCertificate>, StoreError> {
        Ok(None)
    }

    fn write(&self, _: &[(CertificateQuery, Option<StoredCertificate>)]) -> Result<(), StoreError> {
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let path = "certificates.redb".to_owned();
        Err(StoreError::Open { path, source })
    }

    fn prune(&self, _: &dyn Fn(&CertificateQuery, &StoredCertificate) -> bool) -> Result<usize, StoreError> {
        Ok(0)
    }
}

#[tokio::test]
async fn a_crash_loop_on_a_full_disk_issues_nothing_and_one_that_lives_issues_once_per_interval() {
    let bao = Bao::start().await;
    let held = bao.pki_token().await;
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h"}))
        .await;
    let query = pki("www.example.com", 3600);
    let start = |interval: u64| {
        let vault = VaultSettings::new(&bao.address, token(&held));
        let settings = CertificateSettings {
            issue_interval: Duration::from_secs(interval),
            ..super::rig::fast()
        };
        Rig::on(vault, Arc::new(FullDisk), settings)
    };
    for _ in 0..4 {
        let mut rig = start(60);
        rig.watch(&[&query]);
        let problem = rig.problem().await;
        assert_eq!(problem.kind, ProblemKind::Limit, "{problem}");
        assert!(problem.message.contains("could not be written down"), "{problem}");
        assert!(problem.fix.unwrap().contains("data_dir"));
        rig.stop().await;
    }
    assert_eq!(bao.issued().await, 0, "four starts, no issue");

    let mut rig = start(3);
    rig.watch(&[&query]);
    rig.problem().await;
    assert!(
        rig.eventually().await.private_key.is_some(),
        "a gateway gets its certificate"
    );
    rig.silence(Duration::from_secs(4)).await;
    assert_eq!(bao.issued().await, 1);
    rig.stop().await;
}

#[tokio::test]
async fn refusals_name_the_rule_and_heal() {
    let bao = Bao::start().await;
    let held = bao.pki_token().await;
    let role = json!({"allowed_domains": ["example.com"], "allow_subdomains": true, "max_ttl": "1h"});
    bao.mount_pki(role.clone()).await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, token(&held), directory.path());

    let query = pki("www.elsewhere.org", 60);
    rig.watch(&[&query]);
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Refused);
    assert!(problem.message.contains("pki_int/sign/edge"), "{problem}");
    assert!(problem.message.contains("not allowed by this role"), "{problem}");

    let query = pki("www.example.com", 60);
    bao.delete("pki_int/roles/edge").await;
    rig.watch(&[&query]);
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Refused);
    assert!(problem.message.contains("unknown role"), "{problem}");
    bao.write("pki_int/roles/edge", role).await;
    rig.watcher.refresh(&query);
    assert_eq!(rig.eventually().await.names[0].as_ref(), "www.example.com");
    assert_eq!(bao.issued().await, 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_pki_mount_that_is_not_there_has_words_of_its_own() {
    let bao = Bao::start().await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, token(&bao.pki_token().await), directory.path());
    let query = pki("www.example.com", 60);
    rig.watch(&[&query]);
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::WrongMount, "{problem}");
    let said = "pki_int/sign/edge: no secrets engine is mounted at this path";
    assert!(problem.message.contains(said), "{problem}");
    assert!(problem.fix.unwrap().contains("vault secrets list"));

    // By a policy that has no rule for it, it is a right that is missing first.
    let mut elsewhere = query.clone();
    if let CertificateQuery::VaultPki { mount, .. } = &mut elsewhere {
        *mount = "pki_ext".into();
    }
    rig.watch(&[&elsewhere]);
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::MissingPermission, "{problem}");
    let rule = r#"path "pki_ext/sign/edge" { capabilities = ["update"] }"#;
    assert!(problem.fix.as_ref().unwrap().contains(rule), "{problem:?}");

    // Made as the document says: taken up, by hand or within the wait for the next try.
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h", "key_type": "any"}))
        .await;
    rig.watch(&[&query]);
    assert_eq!(rig.eventually().await.names[0].as_ref(), "www.example.com");
    rig.stop().await;
}

/// What `openssl` would say: "rsa 2048", "ec 256".
fn key_of(material: &portreeve::model::CertificateMaterial) -> String {
    use x509_parser::public_key::PublicKey;
    let (_, pem) = x509_parser::pem::parse_x509_pem(material.chain.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let key = certificate.public_key().parsed().unwrap();
    let kind = match key {
        PublicKey::RSA(_) => "rsa",
        PublicKey::EC(_) => "ec",
        _ => "another",
    };
    format!("{kind} {}", key.key_size())
}

fn with_key(name: &str, key: Option<KeyType>) -> CertificateQuery {
    let mut query = pki(name, 600);
    if let CertificateQuery::VaultPki { key_type, .. } = &mut query {
        *key_type = key;
    }
    query
}

#[tokio::test]
async fn the_key_is_as_the_role_or_the_document_says() {
    let bao = Bao::start().await;
    let held = bao.pki_token().await;
    // Vault's default role takes RSA keys only, and keeps that to itself until it refuses another.
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h"}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, token(&held), directory.path());
    let cases = [
        (json!({}), None, Ok("rsa 2048")),
        (json!({"key_bits": 3072}), None, Ok("rsa 3072")),
        (json!({"key_type": "ec", "key_bits": 384}), None, Ok("ec 384")),
        (json!({"key_type": "any"}), None, Ok("ec 256")),
        (json!({"key_type": "any"}), Some(KeyType::Rsa2048), Ok("rsa 2048")),
        (json!({"key_type": "any"}), Some(KeyType::Ec384), Ok("ec 384")),
        // What the document says is not changed behind its back.
        (
            json!({}),
            Some(KeyType::Ec256),
            Err("key_type = \"rsa\" and key_bits = 2048"),
        ),
        (
            json!({"key_type": "ed25519"}),
            None,
            Err("what Vault allows at pki_int/sign/edge"),
        ),
    ];
    let mut signed = 0;
    for (index, (mut role, key, expected)) in cases.into_iter().enumerate() {
        role["allow_any_name"] = json!(true);
        bao.write("pki_int/roles/edge", role).await;
        let query = with_key(&format!("{index}.example.com"), key);
        rig.watch(&[&query]);
        match (rig.next().await, expected) {
            (Ok(material), Ok(expected)) => {
                assert_eq!(key_of(&material), expected, "{query:?}");
                assert!(material.private_key.is_some());
                signed += 1;
            }
            (Err(problem), Err(expected)) => {
                assert_eq!(problem.kind, ProblemKind::Refused);
                assert!(problem.fix.as_deref().unwrap().contains(expected), "{problem:?}");
            }
            (got, expected) => panic!("{query:?}: {got:?}, not {expected:?}"),
        }
    }
    assert_eq!(bao.issued().await, signed, "a refused key costs no certificate");
    rig.stop().await;
}

#[tokio::test]
async fn each_issuer_signs_what_names_it_and_no_root_is_served() {
    let bao = Bao::start().await;
    let role = json!({"allow_any_name": true, "max_ttl": "1h", "key_type": "ec"});
    bao.mount_pki(role.clone()).await;
    // A second generation beside the first, and a role on the root itself.
    let request = json!({"common_name": "generation 2", "key_type": "ec", "key_bits": 256});
    let csr = bao.write("pki_int/intermediate/generate/internal", request).await;
    let csr = csr["data"]["csr"].as_str().unwrap();
    let signed = bao
        .write(
            "pki/root/sign-intermediate",
            json!({"csr": csr, "ttl": "43800h", "format": "pem"}),
        )
        .await;
    let certificate = signed["data"]["certificate"].as_str().unwrap();
    let imported = bao
        .write(
            "pki_int/intermediate/set-signed",
            json!({"certificate": certificate}),
        )
        .await;
    let id = imported["data"]["imported_issuers"][0].as_str().unwrap();
    bao.write(&format!("pki_int/issuer/{id}"), json!({"issuer_name": "g2"}))
        .await;
    bao.write("pki/roles/edge", role).await;

    let directory = tempfile::tempdir().unwrap();
    let held = bao
        .token_of(&[
            shipped("portreeve-pki"),
            named("portreeve-pki", &[("pki_int", "pki")]),
            shipped("portreeve-pki-issuer"),
        ])
        .await;
    let mut rig = Rig::start(&bao.address, token(&held), directory.path());
    for (mount, issuer, issued_by, length) in [
        ("pki_int", None, "CN=intermediate", 2),
        ("pki_int", Some("g2"), "CN=generation 2", 2),
        ("pki", None, "CN=root", 1),
    ] {
        let mut query = pki("www.example.com", 600);
        if let CertificateQuery::VaultPki {
            mount: at,
            issuer: by,
            ..
        } = &mut query
        {
            *at = mount.into();
            *by = issuer.map(Into::into);
        }
        rig.watch(&[&query]);
        let material = rig.material().await;
        let (_, pem) = x509_parser::pem::parse_x509_pem(material.chain.as_bytes()).unwrap();
        assert_eq!(pem.parse_x509().unwrap().issuer().to_string(), issued_by);
        assert_eq!(
            material.chain.matches("BEGIN CERTIFICATE").count(),
            length,
            "{issued_by}: leaf and intermediate, never the root"
        );
    }
    let mut query = pki("www.example.com", 600);
    if let CertificateQuery::VaultPki { issuer, .. } = &mut query {
        *issuer = Some("g3".into());
    }
    rig.watch(&[&query]);
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::MissingPermission, "{problem}");
    let rule = r#"path "pki_int/issuer/g3/sign/edge" { capabilities = ["update"] }"#;
    assert!(problem.fix.as_ref().unwrap().contains(rule), "{problem:?}");
    rig.stop().await;

    // Allowed by name, and not there.
    let held = bao
        .token_of(&[named("portreeve-pki-issuer", &[("g2", "g3")])])
        .await;
    let mut rig = Rig::start(&bao.address, token(&held), directory.path());
    rig.watch(&[&query]);
    let problem = rig.problem().await;
    assert!(!problem.kind.is_refusal(), "{problem}");
    assert!(
        problem.message.contains("pki_int/issuer/g3/sign/edge"),
        "{problem}"
    );
    rig.stop().await;
}

/// A role that makes leases, and a login for tokens of this life with the shipped policy.
async fn with_leases(bao: &Bao, seconds: u64) -> portreeve::sources::vault::VaultAuth {
    let role = json!({"allow_any_name": true, "max_ttl": "1h", "key_type": "ec", "generate_lease": true});
    bao.mount_pki(role).await;
    bao.policy("signer", &shipped("portreeve-pki")).await;
    let life = format!("{seconds}s");
    let login = json!({
        "token_policies": ["signer"], "token_no_default_policy": true, "token_ttl": life, "token_max_ttl": life
    });
    let (role_id, secret_id) = bao.app_role(login).await;
    super::rig::app_role(&role_id, &secret_id)
}

async fn is_revoked(bao: &Bao, serial: &str) -> bool {
    let stored = bao.read(&format!("pki_int/cert/{serial}")).await;
    stored["data"]["revocation_time"].as_i64().unwrap() > 0
}

#[tokio::test]
async fn a_leased_certificate_is_replaced_before_its_token_ends() {
    let bao = Bao::start().await;
    let auth = with_leases(&bao, 30).await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, auth, directory.path());
    rig.watch(&[&pki("www.example.com", 3600)]);
    let first = rig.material().await;
    // An hour of life is left by its dates, thirty seconds by its lease. Another token comes at twenty.
    let second = rig.material_within(Duration::from_secs(60)).await;
    assert!(!is_revoked(&bao, &first.serial).await, "replaced in time");
    assert_ne!(first.serial, second.serial);
    assert!(second.private_key.is_some());
    let started = Instant::now();
    while !is_revoked(&bao, &first.serial).await {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "leases end with their token"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(!is_revoked(&bao, &second.serial).await);
    let (issued, logins) = (bao.issued().await as u64, rig.vault.status().logins);
    assert!(issued <= logins, "{issued} certificates for {logins} tokens");
    rig.stop().await;
}

/// Its key may have leaked: nobody has to think of a way to have the agent ask for another.
#[tokio::test]
async fn a_certificate_that_is_revoked_is_replaced_also_without_a_lease() {
    let bao = Bao::start().await;
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h", "key_type": "ec"}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, token(&bao.pki_token().await), directory.path());
    rig.watch(&[&pki("www.example.com", 3600)]);
    let first = rig.material().await;
    rig.silence(Duration::from_secs(3)).await;
    bao.write("pki_int/revoke", json!({"serial_number": &*first.serial}))
        .await;
    let second = rig.material_within(Duration::from_secs(60)).await;
    assert_ne!(first.serial, second.serial);
    assert!(second.private_key.is_some());
    rig.silence(Duration::from_secs(3)).await;
    assert_eq!(bao.issued().await, 2);
    rig.stop().await;
}

#[tokio::test]
async fn a_certificate_whose_lease_is_gone_is_replaced_within_its_budget() {
    let bao = Bao::start().await;
    let auth = with_leases(&bao, 3600).await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, auth, directory.path());
    let query = pki("www.example.com", 3600);
    rig.watch(&[&query]);
    let first = rig.material().await;
    rig.silence(Duration::from_secs(3)).await;
    // An operator revokes all that the role handed out.
    bao.write("sys/leases/revoke-prefix/pki_int/sign/edge", json!({}))
        .await;
    let second = rig.material().await;
    assert_ne!(first.serial, second.serial);
    assert!(is_revoked(&bao, &first.serial).await && !is_revoked(&bao, &second.serial).await);
    assert_eq!(bao.issued().await, 2);
    rig.stop().await;
}

/// Why a certificate is replaced and its lease never renewed.
#[tokio::test]
async fn the_lease_of_a_certificate_cannot_be_renewed() {
    let bao = Bao::start().await;
    let auth = with_leases(&bao, 3600).await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, auth, directory.path());
    rig.watch(&[&pki("www.example.com", 3600)]);
    rig.material().await;
    let place = "pki_int/sign/edge";
    let leases = bao.read(&format!("sys/leases/lookup/{place}?list=true")).await;
    let lease = format!("{place}/{}", leases["data"]["keys"][0].as_str().unwrap());
    let lookup = bao.write("sys/leases/lookup", json!({"lease_id": lease})).await;
    assert_eq!(lookup["data"]["renewable"], false, "{lookup}");
    let renewal = json!({"lease_id": lease});
    let (status, answer) = bao.send("PUT", "sys/leases/renew", Some(renewal)).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer.to_string().contains("not renewable"), "{answer}");
    rig.stop().await;
}

/// Nobody renews the token of a process that is gone, be it killed: what was leased with it will be revoked.
#[tokio::test]
async fn a_leased_certificate_does_not_outlive_a_restart() {
    let bao = Bao::start().await;
    let auth = with_leases(&bao, 3600).await;
    let directory = tempfile::tempdir().unwrap();
    let query = pki("www.example.com", 3600);
    let mut rig = Rig::start(&bao.address, auth.clone(), directory.path());
    rig.watch(&[&query]);
    let first = rig.material().await;
    rig.stop().await;
    let mut rig = Rig::start(&bao.address, auth, directory.path());
    rig.watch(&[&query]);
    let again = rig.material().await;
    assert_eq!(again.serial, first.serial, "it serves meanwhile");
    assert!(
        !is_revoked(&bao, &first.serial).await,
        "the token was not given back"
    );
    let second = rig.material().await;
    assert_ne!(second.serial, first.serial);
    rig.silence(Duration::from_secs(3)).await;
    assert_eq!(bao.issued().await, 2);
    rig.stop().await;
}

/// A token that was given to the agent is the next process's too: what was leased with it stays, and is watched.
#[tokio::test]
async fn a_leased_certificate_of_a_given_token_outlives_a_restart() {
    let bao = Bao::start().await;
    let held = bao.pki_token().await;
    with_leases(&bao, 3600).await;
    let directory = tempfile::tempdir().unwrap();
    let query = pki("www.example.com", 3600);
    let start = || Rig::start(&bao.address, token(&held), directory.path());
    let mut rig = start();
    rig.watch(&[&query]);
    let first = rig.material().await;
    rig.stop().await;
    let mut rig = start();
    rig.watch(&[&query]);
    assert_eq!(rig.material().await.serial, first.serial);
    rig.silence(Duration::from_secs(4)).await;
    assert_eq!(bao.issued().await, 1, "no restart costs a certificate");
    bao.write("sys/leases/revoke-prefix/pki_int/sign/edge", json!({}))
        .await;
    let second = rig.material().await;
    assert_ne!(second.serial, first.serial);
    assert!(second.private_key.is_some());
    rig.stop().await;
}

fn forget_the_answer(directory: &std::path::Path, query: &CertificateQuery) {
    use portreeve::sources::certificates::{CertificateStore, RedbCertificateStore, StoredCertificate};
    let store = RedbCertificateStore::open(&directory.join("certificates.redb")).unwrap();
    let record = store.load(query).unwrap().unwrap();
    assert!(record.last_attempt.is_some(), "written down before it was sent");
    store
        .save(
            query,
            &StoredCertificate {
                certificate: None,
                ..record
            },
        )
        .unwrap();
}
