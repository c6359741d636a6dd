//! Vault goes away, is sealed, and takes rights back. The certificate in service stays; the one that is asked for meanwhile
//! comes when it can.

use serde_json::{Value, json};

use crate::course::{Course, PLAIN_RULE};
use crate::support::line::Line;
use crate::support::stack::Options;
use crate::support::vault::Vault;

/// What the log says of a certificate that cannot be had.
const NOT_REFRESHED: &str = "certificate-problem";

async fn with_vault() -> Options {
    Options {
        vault: true,
        vault_line: Some(Line::start().await),
        ..Options::default()
    }
}

/// The shipped policy, with the names of the mount and the role of here.
async fn with_login() -> Options {
    let shipped = include_str!("../../vault-policies/portreeve-pki.hcl");
    Options {
        vault_policies: vec![("edge", shipped.to_owned())],
        ..with_vault().await
    }
}

fn vault(course: &mut Course) -> &mut Vault {
    course.stack.vault.as_mut().expect("a Vault")
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_sealed() {
    let mut course = Course::begin_with("vault_sealed", with_vault().await).await;
    vault(&mut course).seal().await;
    course.ask_for_another_certificate().await;
    course.lasts(1500).await;
    course.is_told(&[NOT_REFRESHED]).await;
    vault(&mut course).unseal().await;
    course.certificate_arrives().await;
    course.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_down() {
    // Nobody in between: what is refused was not sent, which is another thing than an answer that does not come.
    let options = Options {
        vault: true,
        ..Options::default()
    };
    let mut course = Course::begin_with("vault_down", options).await;
    vault(&mut course).kill();
    course.ask_for_another_certificate().await;
    course.lasts(1500).await;
    course.is_told(&[NOT_REFRESHED]).await;
    vault(&mut course).restart().await;
    course.certificate_arrives().await;
    course.end().await;
}

/// The token is taken back: a new login, and nothing else, nothing to tell either.
#[tokio::test(flavor = "multi_thread")]
async fn vault_token_expired() {
    let mut course = Course::begin_with("vault_token_expired", with_login().await).await;
    for _ in 0..course.rounds(1) {
        let vault = vault(&mut course);
        let list = hyper::Method::from_bytes(b"LIST").unwrap();
        let accessors = vault.expect(list, "auth/token/accessors", Value::Null).await;
        let mut revoked = 0;
        for accessor in accessors["data"]["keys"].as_array().unwrap() {
            let token = vault
                .write("auth/token/lookup-accessor", json!({ "accessor": accessor }))
                .await;
            if token["data"]["path"] == "auth/approle/login" {
                vault
                    .write("auth/token/revoke-accessor", json!({ "accessor": accessor }))
                    .await;
                revoked += 1;
            }
        }
        assert!(revoked > 0, "the agent's token is among them");
        course.ask_for_another_certificate().await;
        course.certificate_arrives().await;
        course.lasts(300).await;
    }
    course.end().await;
}

/// The role that issues is deleted and made again.
#[tokio::test(flavor = "multi_thread")]
async fn vault_role_deleted() {
    let mut course = Course::begin_with("vault_role_deleted", with_vault().await).await;
    let vault = vault(&mut course);
    let role = vault.read("pki_int/roles/edge").await["data"].clone();
    let deleted = vault
        .call(hyper::Method::DELETE, "pki_int/roles/edge", Value::Null)
        .await;
    deleted.unwrap().ok().unwrap();
    course.ask_for_another_certificate().await;
    course.lasts(1500).await;
    course.is_told(&[NOT_REFRESHED]).await;
    course
        .stack
        .vault
        .as_ref()
        .unwrap()
        .write("pki_int/roles/edge", role)
        .await;
    course.certificate_arrives().await;
    course.change(PLAIN_RULE).await;
    course.recovers().await;
    course.end().await;
}

/// One certificate after the other, each by other parameters.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_rotated() {
    let mut course = Course::begin_with("certificates_rotated", with_vault().await).await;
    for _ in 0..course.rounds(3) {
        course.ask_for_another_certificate().await;
        course.certificate_arrives().await;
        course.lasts(200).await;
    }
    course.end().await;
}
