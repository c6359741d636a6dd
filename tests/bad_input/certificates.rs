//! What is wrong with a certificate at its source, or with the place that a document names: each with a code of its own, so
//! that an alert can tell them apart.

use portreeve::diagnostics::Code::{self, *};
use portreeve::model::{Problem, ProblemKind};
use portreeve::snapshot::Snapshot;

use super::around::{another_certificate, refuse_certificates};
use super::case::{Case, Stays};

pub fn all() -> Vec<Case> {
    vec![
        case("a certificate at a mount that Vault does not have", &[VaultWrongMount, ListenerWithheld]).then(|snapshot| {
            refuse(snapshot, ProblemKind::WrongMount, "GET https://vault:8200/v1/nowhere/data/www: no secrets engine is mounted at this path");
        }),
        case("a certificate at a mount of another secrets engine", &[VaultWrongMount, ListenerWithheld]).then(|snapshot| {
            refuse(snapshot, ProblemKind::WrongMount, "GET https://vault:8200/v1/pki/data/www: the mount is of type \"pki\", not kv");
        }),
        case("a certificate at a mount of another KV version than the document says", &[VaultWrongKvVersion, ListenerWithheld]).then(|snapshot| {
            refuse(snapshot, ProblemKind::WrongKvVersion, "GET https://vault:8200/v1/secret/www: the mount is KV version 2, and the document says version 1");
        }),
        case("a certificate that is none (no PEM, damaged, a key with a passphrase, too large)", &[CertificateMalformed, ListenerWithheld]).then(|snapshot| {
            refuse(snapshot, ProblemKind::Malformed, "vault_kv secret/www: there is no CERTIFICATE block in the certificate text");
        }),
        case("a private key that does not fit its certificate", &[CertificateKeyMismatch, ListenerWithheld]).then(|snapshot| {
            refuse(snapshot, ProblemKind::KeyMismatch, "vault_kv secret/www: the private key does not belong to any certificate of the chain");
        }),
        case("a certificate that has expired where it is read from", &[CertificateExpired, ListenerWithheld]).then(|snapshot| {
            refuse(snapshot, ProblemKind::Expired, "vault_kv secret/www: the certificate expired at 2026-01-01T00:00:00Z");
        }),
        case("a certificate in Vault that the token may not read", &[MissingPermission, ListenerWithheld]).then(|snapshot| {
            refuse(snapshot, ProblemKind::MissingPermission, "GET https://vault:8200/v1/secret/data/www: permission denied");
        }),
        case("a certificate in Vault, and a token that Vault no longer knows", &[TokenNotAccepted, ListenerWithheld]).then(|snapshot| {
            refuse(snapshot, ProblemKind::TokenNotAccepted, "GET https://vault:8200/v1/auth/token/lookup-self: the token is invalid or has expired");
        }),
        case("a refusal by Vault that may mean either, to a token that never could look itself up", &[CertificateProblem, ListenerWithheld]).then(|snapshot| {
            refuse(snapshot, ProblemKind::Forbidden, "GET https://vault:8200/v1/secret/data/www: permission denied");
        }),
    ]
}

/// One that only the listener which is not opened would show.
fn case(what: &'static str, codes: &'static [Code]) -> Case {
    Case::new(
        what,
        another_certificate("elsewhere"),
        codes,
        Stays::OtherListeners,
    )
    .in_document("gateway")
}

fn refuse(snapshot: &mut Snapshot, kind: ProblemKind, said: &str) {
    refuse_certificates(snapshot, Err(Problem::new(kind, said)));
}
