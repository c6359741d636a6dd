//! A wrapping token that comes while the agent's token is good: it is unwrapped ahead of the next login, and what becomes of it
//! is told apart from the token's own troubles and holds nothing up. Until it gives a secret id, that of before is used.

use std::path::Path;
use std::time::Duration;

use portreeve::model::KvVersion;
use portreeve::sources::vault::{VaultSettings, VaultStatus};
use serde_json::json;

use super::bao::Bao;
use super::gate::{Gate, Shut};
use super::logins::{until, wrap, wrapped};
use super::rig::{Rig, fast, kv, self_signed};

const SECRET_ID: &str = "auth/approle/role/edge/secret-id";

struct World {
    bao: Bao,
    gate: Gate,
    rig: Rig,
    directory: tempfile::TempDir,
}

/// An agent that has logged in with a wrapped secret id, and renews its token every twenty seconds.
async fn logged_in() -> World {
    let bao = Bao::start().await;
    bao.reader().await;
    let (role_id, _) = bao
        .app_role(json!({"token_policies": ["reader"], "token_ttl": "30s"}))
        .await;
    let gate = Gate::before(&bao.address).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wrapped");
    std::fs::write(&file, wrap(&bao, SECRET_ID).await).unwrap();
    let mut settings = VaultSettings::new(&gate.address, wrapped(&role_id, &file));
    // What is not answered is not given up within a test.
    settings.timeouts.request = Duration::from_secs(3600);
    let rig = Rig::of(settings, directory.path(), fast());
    until(&rig, "a login", |status| status.logins == 1).await;
    World {
        bao,
        gate,
        rig,
        directory,
    }
}

fn deliver(directory: &Path, token: &str) {
    std::fs::write(directory.join("wrapped"), token).unwrap();
}

fn notes(status: &VaultStatus) -> Vec<String> {
    status.notes().map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_bad_wrapping_token_and_a_failed_renewal_neither_hide_nor_clear_each_other() {
    let World {
        bao,
        gate,
        rig,
        directory,
    } = logged_in().await;
    let swapped = wrap(&bao, "auth/token/create").await;
    deliver(directory.path(), &swapped);
    let status = until(&rig, "the refusal", |status| status.wrapping.is_some()).await;
    assert!(status.is_ok(), "the token is good: {status:?}");
    assert!(notes(&status)[0].contains("auth/token/create"), "{status:?}");

    let status = until(&rig, "a renewal", |status| status.renewals > 0).await;
    assert!(status.is_ok(), "{status:?}");
    assert!(
        status.wrapping.is_some(),
        "a renewal is not what mends it: {status:?}"
    );

    gate.shut("auth/token/renew-self", Shut::Fails);
    let status = until(&rig, "the failed renewal", |status| status.problem.is_some()).await;
    let both = notes(&status);
    assert_eq!(both.len(), 2, "{both:?}");
    assert!(both[0].contains("auth/token/renew-self"), "{both:?}");
    assert!(both[1].contains("auth/token/create"), "{both:?}");

    deliver(directory.path(), &wrap(&bao, SECRET_ID).await);
    let status = until(&rig, "the good one", |status| status.wrapping.is_none()).await;
    let problem = status.problem.expect("the renewal fails still");
    assert!(problem.message.contains("auth/token/renew-self"), "{problem}");
    rig.stop().await;
}

#[tokio::test]
async fn an_unwrapping_that_is_never_answered_holds_up_neither_the_renewal_nor_the_way_out() {
    let World {
        bao,
        gate,
        rig,
        directory,
    } = logged_in().await;
    gate.shut("sys/wrapping/unwrap", Shut::NeverAnswers);
    let renewed = rig.vault.status().renewals;
    deliver(directory.path(), &wrap(&bao, SECRET_ID).await);
    gate.hangs().await;
    until(&rig, "a renewal", |status| status.renewals > renewed).await;
    tokio::time::timeout(Duration::from_secs(60), rig.stop())
        .await
        .expect("the way out, within a minute of an hour");
}

async fn store(bao: &Bao, name: &str) {
    let (certificate, key) = self_signed(name, 5);
    let fields = json!({"certificate": certificate, "private_key": key});
    bao.write("secret/data/portreeve/www", json!({"data": fields}))
        .await;
}

/// From now on something is asked all the time, so that the loss of the token is noticed at once.
async fn watch(bao: &Bao, rig: &mut Rig) {
    bao.mount_kv().await;
    store(bao, "one.example").await;
    rig.watch(&[&kv(KvVersion::V2, "secret", "portreeve/www")]);
    rig.material().await;
}

async fn take_the_token_back(bao: &Bao) {
    bao.write("sys/leases/revoke-prefix/auth/approle", json!({}))
        .await;
}

/// And until its token is in use: one that goes in the middle of its login is missed only when it is to be renewed.
async fn until_another_login(bao: &Bao, rig: &mut Rig, logins: u64) -> VaultStatus {
    let status = until(rig, "another login", |status| {
        status.logins > logins && status.is_ok()
    })
    .await;
    let name = format!("login-{}.example", status.logins);
    store(bao, &name).await;
    // Whoever was refused meanwhile asks again after a pause that has grown.
    let limit = Duration::from_secs(120);
    while rig.eventually_within(limit).await.names[0].as_ref() != name {}
    status
}

#[tokio::test]
async fn a_login_is_done_with_the_secret_id_of_before_where_the_file_gives_none() {
    let World {
        bao,
        gate: _gate,
        mut rig,
        directory,
    } = logged_in().await;
    watch(&bao, &mut rig).await;
    let swapped = wrap(&bao, "auth/token/create").await;
    deliver(directory.path(), &swapped);
    let status = until(&rig, "the refusal", |status| status.wrapping.is_some()).await;
    take_the_token_back(&bao).await;
    let status = until_another_login(&bao, &mut rig, status.logins).await;
    let told = status.wrapping.as_ref().expect("it is told on");
    assert!(told.message.contains("auth/token/create"), "{told}");

    // Taken away after use, as by whoever delivers them.
    std::fs::remove_file(directory.path().join("wrapped")).unwrap();
    take_the_token_back(&bao).await;
    let logins = until_another_login(&bao, &mut rig, status.logins).await.logins;

    // That of before is no good any more, and another is used as soon as it is there.
    let list = format!("{SECRET_ID}?list=true");
    let (_, secret_ids) = bao.send("GET", &list, None).await;
    for accessor in secret_ids["data"]["keys"].as_array().unwrap() {
        let destroyed = json!({"secret_id_accessor": accessor});
        bao.write("auth/approle/role/edge/secret-id-accessor/destroy", destroyed)
            .await;
    }
    take_the_token_back(&bao).await;
    until(&rig, "the refused login", |status| {
        let problem = status.problem.as_ref();
        problem.is_some_and(|problem| problem.message.contains("auth/approle/login"))
    })
    .await;
    deliver(directory.path(), &wrap(&bao, SECRET_ID).await);
    until_another_login(&bao, &mut rig, logins).await;
    until(&rig, "the end of the note", |status| status.wrapping.is_none()).await;
    rig.stop().await;
}

#[tokio::test]
async fn an_unwrapping_that_is_never_answered_holds_up_no_login() {
    let World {
        bao,
        gate,
        mut rig,
        directory,
    } = logged_in().await;
    watch(&bao, &mut rig).await;
    gate.shut("sys/wrapping/unwrap", Shut::NeverAnswers);
    deliver(directory.path(), &wrap(&bao, SECRET_ID).await);
    gate.hangs().await;
    let logins = rig.vault.status().logins;
    take_the_token_back(&bao).await;
    until_another_login(&bao, &mut rig, logins).await;
    assert_eq!(
        gate.hanging(),
        1,
        "its answer may still come, and a second would be refused"
    );
    rig.stop().await;
}
