use std::time::{Duration, Instant};

use portreeve::model::{CertificateQuery, ProblemKind};
use portreeve::sources::certificates::CertificateSettings;
use serde_json::json;

use super::bao::Bao;
use super::rig::{Rig, pki, token};

#[tokio::test]
async fn issues_a_servable_chain_and_renews_at_two_thirds() {
    let bao = Bao::start().await;
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h", "not_before_duration": "1s"}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, token(&bao.root_token), directory.path());
    let query = CertificateQuery::VaultPki {
        mount: "pki_int".into(),
        role: "edge".into(),
        issuer: Some("default".into()),
        common_name: "www.example.com".into(),
        alt_names: vec!["a.example.com".into(), "b.example.com".into()],
        ip_sans: vec!["10.1.2.3".into()],
        ttl: Some(9),
    };
    rig.watch(&[&query]);
    let first = rig.material().await;
    let issued = Instant::now();
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
    let elapsed = issued.elapsed();
    assert_ne!(first.serial, second.serial);
    // 10 s of life (1 s dated back): due 5.3 to 6 s after the issue, give or take the rounding of dates.
    assert!((4..8).contains(&elapsed.as_secs()), "{elapsed:?}");
    assert_eq!(bao.issued().await, 2);
    let freshness = rig.watcher.freshness();
    assert_eq!(freshness[0].serial.as_ref(), Some(&second.serial));
    assert_eq!(freshness[0].issues, 2);
    rig.stop().await;
}

#[tokio::test]
async fn a_restart_issues_nothing_until_a_key_is_wanted() {
    let bao = Bao::start().await;
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h"}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let query = pki("www.example.com", 3600);
    let mut rig = Rig::start(&bao.address, token(&bao.root_token), directory.path());
    rig.watch(&[&query]);
    let first = rig.material().await;
    rig.stop().await;

    for _ in 0..3 {
        let mut rig = Rig::start(&bao.address, token(&bao.root_token), directory.path());
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

    let mut rig = Rig::start(&bao.address, token(&bao.root_token), directory.path());
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
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h"}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let query = pki("www.example.com", 3600);
    let slow = CertificateSettings {
        issue_interval: Duration::from_secs(60),
        ..super::rig::fast()
    };
    for round in 0..6 {
        let mut rig = Rig::with(&bao.address, token(&bao.root_token), directory.path(), slow);
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

#[tokio::test]
async fn refusals_name_the_rule_and_heal() {
    let bao = Bao::start().await;
    let role = json!({"allowed_domains": ["example.com"], "allow_subdomains": true, "max_ttl": "1h"});
    bao.mount_pki(role.clone()).await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&bao.address, token(&bao.root_token), directory.path());

    let query = pki("www.elsewhere.org", 60);
    rig.watch(&[&query]);
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Refused);
    assert!(problem.message.contains("pki_int/issue/edge"), "{problem}");
    assert!(problem.message.contains("not allowed by this role"), "{problem}");

    let query = pki("www.example.com", 60);
    bao.delete("pki_int/roles/edge").await;
    rig.watch(&[&query]);
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Refused);
    assert!(problem.message.contains("unknown role"), "{problem}");
    bao.write("pki_int/roles/edge", role).await;
    rig.watcher.refresh(&query);
    assert_eq!(rig.material().await.names[0].as_ref(), "www.example.com");
    assert_eq!(bao.issued().await, 1);
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
