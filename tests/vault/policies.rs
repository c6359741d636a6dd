//! The shipped policies are exactly enough: the sources work with them and no default policy, nothing more can be
//! read with them, and each of their rules is needed.

use std::time::Duration;

use portreeve::model::{CertificateQuery, KvVersion, Problem, ProblemKind};
use serde_json::{Value, json};

use super::bao::Bao;
use super::rig::{Rig, app_role, kv, pki, self_signed};
use super::shipped::shipped;

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

/// What is signed for the gateway.
fn role() -> Value {
    json!({
        "allowed_domains": ["example.com"], "allow_subdomains": true, "max_ttl": "1h", "key_type": "any"
    })
}

async fn with_pki() -> Bao {
    let bao = Bao::start().await;
    bao.mount_pki(role()).await;
    bao
}

/// The issuer is called `g2`.
async fn with_named_issuer() -> Bao {
    let bao = with_pki().await;
    bao.write("pki_int/issuer/default", json!({"issuer_name": "g2"}))
        .await;
    bao
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
        assert_eq!(problem.kind, ProblemKind::MissingPermission, "{problem}");
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
    let bao = with_pki().await;
    bao.write("pki_int/roles/other", role()).await;
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
    assert_eq!(problem.kind, ProblemKind::MissingPermission);
    let fix = problem.fix.as_deref().unwrap();
    assert!(
        fix.contains("path \"pki_int/sign/other\" { capabilities = [\"update\"] }"),
        "{fix}"
    );
    assert_eq!(bao.issued().await, 1);
    lives_and_ends(rig, &bao).await;

    // The policy has no way to a key that Vault made and saw, nor to an issuer of one's choice.
    let held = bao
        .token(json!({"policies": ["portreeve-pki"], "no_default_policy": true}))
        .await;
    for path in [
        "pki_int/issuer/default/sign/edge",
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

fn by_issuer(issuer: &str, ttl: u64) -> CertificateQuery {
    let mut query = pki("www.example.com", ttl);
    if let CertificateQuery::VaultPki { issuer: by, .. } = &mut query {
        *by = Some(issuer.into());
    }
    query
}

#[tokio::test]
async fn pki_issuer() {
    let bao = with_named_issuer().await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig_with(&bao, "portreeve-pki-issuer", &directory).await;
    rig.watch(&[&by_issuer("g2", 600)]);
    rig.material().await;
    assert_eq!(rig.vault.status().errors, 0);
    // Neither another name of the same issuer, nor the role without one.
    for (query, path) in [
        (by_issuer("default", 600), "pki_int/issuer/default/sign/edge"),
        (pki("www.example.com", 600), "pki_int/sign/edge"),
    ] {
        rig.watch(&[&query]);
        let problem = rig.problem().await;
        assert_eq!(problem.kind, ProblemKind::MissingPermission, "{problem}");
        let rule = format!("path \"{path}\" {{ capabilities = [\"update\"] }}");
        assert!(problem.fix.as_deref().unwrap().contains(&rule), "{problem:?}");
    }
    assert_eq!(bao.issued().await, 1);
    lives_and_ends(rig, &bao).await;

    let held = bao.token_of(&[shipped("portreeve-pki-issuer")]).await;
    for path in [
        "pki_int/issuer/g2/issue/edge",
        "pki_int/issuer/g2/sign-verbatim/edge",
        "pki_int/issuer/g2",
    ] {
        let body = json!({"common_name": "www.example.com"});
        let (status, answer) = bao.send_as(&held, "POST", path, Some(body)).await;
        assert_eq!(status, 403, "{path}: {answer}");
    }
    assert_eq!(bao.issued().await, 1);
}

/// The rules of a shipped policy: path, capability, text.
fn rules(name: &str) -> Vec<(String, String, String)> {
    let text = shipped(name);
    let rule = regex::Regex::new(r#"(?m)^path "([^"]+)" \{\n  capabilities = \["(\w+)"\]\n\}$"#).unwrap();
    let rules: Vec<_> = rule
        .captures_iter(&text)
        .map(|found| (found[1].to_owned(), found[2].to_owned(), found[0].to_owned()))
        .collect();
    let opened = text.lines().filter(|line| line.starts_with("path ")).count();
    assert_eq!(rules.len(), opened, "{name}: a rule that was not read");
    rules
}

/// What is known to be lacking, once it is this rule and nothing else.
async fn lacking(rig: &Rig, path: &str) -> Problem {
    let started = std::time::Instant::now();
    loop {
        let status = rig.vault.status();
        if let [(lacking, problem)] = status.lacking.iter().collect::<Vec<_>>()[..]
            && **lacking == *path
        {
            return problem.clone();
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{path}: {status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One policy with each of its rules taken away in turn, while a token has it: what needs the rule says so by path and
/// capability, what was there stays, and with the rule in place again all is as before.
async fn each_rule_is_needed(bao: &Bao, policy: &str, query: &CertificateQuery, news: impl AsyncFn() -> ()) {
    let rules = rules(policy);
    let all: String = rules.iter().map(|(_, _, text)| format!("{text}\n")).collect();
    let settings = json!({
        "token_policies": [policy], "token_no_default_policy": true, "token_ttl": "6s", "token_max_ttl": "1h"
    });
    let (role_id, secret_id) = bao.app_role(settings).await;
    for (path, capability, missing) in &rules {
        bao.policy(policy, &all).await;
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::start(&bao.address, app_role(&role_id, &secret_id), directory.path());
        rig.watch(&[query]);
        rig.material().await;
        assert!(rig.vault.status().is_ok() && rig.vault.status().lacking.is_empty());
        bao.policy(policy, &all.replace(missing, "")).await;
        let rule = |path: &str| format!("path \"{path}\" {{ capabilities = [\"{capability}\"] }}");
        let own = path.starts_with("auth/token/");
        let asked = path.replace('*', "www");
        let problem = if path.ends_with("/revoke-self") {
            let vault = rig.vault.clone();
            rig.stop().await;
            let status = vault.status();
            let problem = status.lacking[&*asked].clone();
            assert!(problem.message.contains(&rule(&asked)), "{problem}");
            continue;
        } else if path.ends_with("/lookup-self") {
            // Asked at a login. The token that there is ends.
            bao.write("sys/leases/revoke-prefix/auth/approle", json!({}))
                .await;
            news().await;
            rig.material().await;
            lacking(&rig, &asked).await
        } else if own || path.contains("/metadata/") {
            lacking(&rig, &asked).await
        } else {
            news().await;
            rig.problem().await
        };
        let said = format!("{problem} {}", problem.fix.as_deref().unwrap_or_default());
        assert_eq!(problem.kind, ProblemKind::MissingPermission);
        assert!(said.contains(&rule(&asked)), "{said}");
        // The rest goes on: what is read with another rule is read.
        if own || path.contains("/metadata/") {
            news().await;
            rig.material().await;
        }
        bao.policy(policy, &all).await;
        if own {
            bao.write("sys/leases/revoke-prefix/auth/approle", json!({}))
                .await;
        }
        if !own && !path.contains("/metadata/") {
            rig.eventually().await;
        }
        let started = std::time::Instant::now();
        while !(rig.vault.status().lacking.is_empty() && rig.vault.status().is_ok()) {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "{path}: {:?}",
                rig.vault.status()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        rig.stop().await;
    }
}

#[tokio::test]
async fn no_rule_of_kv_version_2_is_superfluous() {
    let bao = Bao::start().await;
    bao.mount_kv().await;
    let news = async || {
        let body = json!({"data": fields("www.example")});
        bao.write("secret/data/portreeve/www", body).await;
    };
    news().await;
    let query = kv(KvVersion::V2, "secret", "portreeve/www");
    each_rule_is_needed(&bao, "portreeve-kv", &query, &news).await;
}

#[tokio::test]
async fn no_rule_of_kv_version_1_is_superfluous() {
    let bao = Bao::start().await;
    bao.mount_kv().await;
    let news = async || {
        bao.write("kv/portreeve/www", fields("www.example")).await;
    };
    news().await;
    let query = kv(KvVersion::V1, "kv", "portreeve/www");
    each_rule_is_needed(&bao, "portreeve-kv1", &query, &news).await;
}

#[tokio::test]
async fn no_rule_of_pki_is_superfluous() {
    let bao = with_pki().await;
    // A life so short that it is always about to be renewed.
    let query = pki("www.example.com", 12);
    each_rule_is_needed(&bao, "portreeve-pki", &query, async || {}).await;
}

#[tokio::test]
async fn no_rule_of_a_named_issuer_is_superfluous() {
    let bao = with_named_issuer().await;
    let query = by_issuer("g2", 12);
    each_rule_is_needed(&bao, "portreeve-pki-issuer", &query, async || {}).await;
}
