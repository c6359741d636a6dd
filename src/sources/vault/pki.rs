//! Has one certificate signed by a PKI role. The key stays with whoever made the request.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Deserialize;
use vaultrs::api::pki::requests::SignCertificateRequest;

use super::client::VaultClient;
use super::fault::{Reason, VaultFault};
use super::kv::trim;
use super::transport::Call;
use crate::model::KeyType;

/// What to ask for.
#[derive(Clone, Copy, Debug)]
pub struct SignRequest<'a> {
    pub mount: &'a str,
    pub role: &'a str,
    pub issuer: Option<&'a str>,
    /// PEM. The names beside it are for roles that do not take them from it.
    pub csr: &'a str,
    pub common_name: &'a str,
    pub alt_names: &'a [Arc<str>],
    pub ip_sans: &'a [Arc<str>],
    /// Seconds.
    pub ttl: Option<u64>,
}

/// What Vault handed out.
pub struct Signed {
    /// Leaf and intermediates, PEM.
    pub chain: String,
    /// Such as a `ttl` cut to the role's maximum.
    pub warnings: Vec<String>,
    /// The role makes leases: the certificate is revoked with its lease.
    pub lease: Option<Lease>,
}

/// What holds a certificate beside its dates. Never renewable: a certificate's end cannot be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The token that it was made for and ends with, counted from the agent's start.
    pub token: u64,
    /// Seconds.
    pub duration: u64,
}

#[derive(Deserialize)]
pub(super) struct StoredData {
    /// Unix seconds; 0: it was not.
    #[serde(default)]
    revocation_time: i64,
}

#[derive(Deserialize)]
pub(super) struct SignedData {
    certificate: String,
    #[serde(default)]
    ca_chain: Option<Vec<String>>,
    /// The issuer, where the mount knows no chain.
    #[serde(default)]
    issuing_ca: Option<String>,
}

impl VaultClient {
    /// Sent once: nothing on the way repeats it, so that the caller's budget of certificates holds.
    pub async fn sign(&self, request: &SignRequest<'_>) -> Result<Signed, VaultFault> {
        let call = Call::of(&body(request))?;
        let (answer, token) = self.call_by(&call).await?;
        if answer.status == 404 {
            return Err(self.not_found(&call, &answer));
        }
        let envelope = answer
            .parse::<SignedData>()
            .ok_or_else(|| self.unreadable(&call))?;
        let leased = !envelope.lease_id.is_empty();
        let lease = leased.then_some(Lease {
            token,
            duration: envelope.lease_duration,
        });
        if leased {
            self.shared.token_carries_leases.store(true, Ordering::Relaxed);
        }
        let data = envelope.data.ok_or_else(|| self.unreadable(&call))?;
        let mut chain = data.certificate;
        // A self-signed root among them is left out by whoever reads the chain.
        let authorities = data.ca_chain.filter(|chain| !chain.is_empty());
        for authority in authorities.unwrap_or_else(|| data.issuing_ca.into_iter().collect()) {
            chain.push('\n');
            chain.push_str(&authority);
        }
        Ok(Signed {
            chain,
            warnings: news(envelope.warnings),
            lease,
        })
    }

    /// Whether the mount says that it revoked the certificate. Vault answers this to everybody. One that it did not keep
    /// (`no_store`) it cannot have revoked.
    pub async fn is_revoked(&self, at: &str, serial: &str) -> Result<bool, VaultFault> {
        let call = Call::get(format!("{}/cert/{serial}", trim(at)))?;
        let answer = self.call(&call).await?;
        if answer.status == 404 {
            return Ok(false);
        }
        let data = answer.parse::<StoredData>().and_then(|envelope| envelope.data);
        let data = data.ok_or_else(|| self.unreadable(&call))?;
        Ok(data.revocation_time > 0)
    }

    /// The path that a policy must allow for `request`.
    pub fn sign_path(request: &SignRequest<'_>) -> String {
        format!("{}/sign/{}", mount(request), request.role)
    }
}

impl VaultFault {
    /// The key that the role asks for instead of `sent`, where that was the reason of a refusal. Vault keeps a role's
    /// key type to those who may read the role; its refusal names it.
    pub fn key_demanded(&self, sent: KeyType) -> Option<KeyType> {
        let Reason::Refused { status: 400, errors } = &self.reason else {
            return None;
        };
        let word_after = |text: &str| {
            let (_, rest) = errors.split_once(text)?;
            Some(
                rest.split(|c: char| !c.is_ascii_alphanumeric())
                    .next()?
                    .to_owned(),
            )
        };
        let demanded = match word_after("role requires keys of type ") {
            Some(kind) => KeyType::smallest(&kind),
            None => sent.at_least(word_after("role requires a minimum of a ")?.parse().ok()?),
        };
        demanded.filter(|demanded| *demanded != sent)
    }
}

/// Without what Vault says each time of a role that takes the names from the signing request: they stand in both, and are
/// the same.
fn news(mut warnings: Vec<String>) -> Vec<String> {
    let of_both = ["use_csr_common_name", "use_csr_sans"];
    warnings.retain(|warning| {
        !of_both
            .iter()
            .any(|setting| warning.contains(&format!("\"{setting}\" set to true")))
    });
    warnings
}

fn mount(request: &SignRequest<'_>) -> String {
    match request.issuer {
        Some(issuer) => format!("{}/issuer/{issuer}", trim(request.mount)),
        None => trim(request.mount),
    }
}

fn body(request: &SignRequest<'_>) -> SignCertificateRequest {
    // Lists are comma texts in this API.
    let list = |names: &[Arc<str>]| (!names.is_empty()).then(|| names.join(","));
    SignCertificateRequest {
        mount: mount(request),
        role: request.role.to_owned(),
        csr: Some(request.csr.to_owned()),
        common_name: Some(request.common_name.to_owned()),
        alt_names: list(request.alt_names),
        ip_sans: list(request.ip_sans),
        ttl: request.ttl.map(|seconds| format!("{seconds}s")),
        // "pem_bundle" would put the chain into the certificate's field.
        format: Some("pem".to_owned()),
        remove_roots_from_chain: Some(true),
        ..SignCertificateRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_both_places_are_no_news() {
        let usual =
            "the common_name field was provided but the role is set with \"use_csr_common_name\" set to true";
        let other = "role has \"use_csr_sans\" set to false";
        let said = news(vec![usual.to_owned(), other.to_owned()]);
        assert_eq!(said, [other]);
    }

    #[test]
    fn an_issuer_is_part_of_the_path() {
        let names: [Arc<str>; 2] = ["b.example".into(), "c.example".into()];
        let mut request = SignRequest {
            mount: "/pki_int/",
            role: "edge",
            issuer: None,
            csr: "-----BEGIN CERTIFICATE REQUEST-----",
            common_name: "a.example",
            alt_names: &names,
            ip_sans: &[],
            ttl: Some(60),
        };
        assert_eq!(Call::of(&body(&request)).unwrap().path(), "pki_int/sign/edge");
        assert_eq!(body(&request).alt_names.as_deref(), Some("b.example,c.example"));
        assert_eq!(body(&request).ip_sans, None);
        request.issuer = Some("g2");
        assert_eq!(
            Call::of(&body(&request)).unwrap().path(),
            VaultClient::sign_path(&request)
        );
    }

    #[test]
    fn a_refusal_names_the_key_that_the_role_wants() {
        let demanded = |sent: KeyType, errors: &str| {
            let reason = Reason::Refused {
                status: 400,
                errors: errors.to_owned(),
            };
            VaultFault {
                asked: "POST".into(),
                path: "pki_int/sign/edge".into(),
                capability: "update",
                reason,
                not_sent: false,
                told_apart: false,
            }
            .key_demanded(sent)
        };
        use KeyType::{Ec256, Ec384, Rsa2048, Rsa4096};
        assert_eq!(demanded(Ec256, "role requires keys of type rsa"), Some(Rsa2048));
        let larger = "role requires a minimum of a 4096-bit key, but CSR's key is 2048 bits";
        assert_eq!(demanded(Rsa2048, larger), Some(Rsa4096));
        let larger = "role requires a minimum of a 384-bit key, but CSR's key is 256 bits";
        assert_eq!(demanded(Ec256, larger), Some(Ec384));
        // Nothing that could be served, nothing about keys, and no endless asking.
        assert_eq!(demanded(Ec256, "role requires keys of type ed25519"), None);
        assert_eq!(
            demanded(Ec384, "role requires a minimum of a 521-bit key, but"),
            None
        );
        assert_eq!(
            demanded(Ec256, "subject alternate name not allowed by this role"),
            None
        );
        assert_eq!(demanded(Ec256, "role requires keys of type ec"), None);
    }
}
