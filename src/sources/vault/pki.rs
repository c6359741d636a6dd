//! Issues one certificate with its key from a PKI role.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Deserialize;
use vaultrs::api::pki::requests::GenerateCertificateRequest;

use super::answer::redacted;
use super::client::VaultClient;
use super::fault::VaultFault;
use super::kv::trim;
use super::transport::Call;
use crate::model::Redacted;

/// What to ask for.
#[derive(Clone, Copy, Debug)]
pub struct IssueRequest<'a> {
    pub mount: &'a str,
    pub role: &'a str,
    pub issuer: Option<&'a str>,
    pub common_name: &'a str,
    pub alt_names: &'a [Arc<str>],
    pub ip_sans: &'a [Arc<str>],
    /// Seconds.
    pub ttl: Option<u64>,
}

/// What Vault handed out. The key exists nowhere else.
pub struct Issued {
    /// Leaf and intermediates, PEM.
    pub chain: String,
    pub private_key: Arc<Redacted<String>>,
    /// Such as a `ttl` cut to the role's maximum.
    pub warnings: Vec<String>,
    /// The certificate will be revoked with the agent's token.
    pub leased: bool,
}

#[derive(Deserialize)]
struct IssuedData {
    certificate: String,
    #[serde(default)]
    ca_chain: Option<Vec<String>>,
    #[serde(deserialize_with = "redacted")]
    private_key: Arc<Redacted<String>>,
}

impl VaultClient {
    /// Sent once: nothing on the way repeats it, so that the caller's budget of issues holds.
    pub async fn issue(&self, request: &IssueRequest<'_>) -> Result<Issued, VaultFault> {
        let call = Call::of(&body(request))?;
        let answer = self.call(&call).await?;
        if answer.status == 404 {
            return Err(self.not_found(&call, &answer));
        }
        let envelope = answer
            .parse::<IssuedData>()
            .ok_or_else(|| self.unreadable(&call))?;
        let leased = !envelope.lease_id.is_empty();
        if leased {
            self.shared.token_carries_leases.store(true, Ordering::Relaxed);
        }
        let data = envelope.data.ok_or_else(|| self.unreadable(&call))?;
        let mut chain = data.certificate;
        for authority in data.ca_chain.unwrap_or_default() {
            chain.push('\n');
            chain.push_str(&authority);
        }
        Ok(Issued {
            chain,
            private_key: data.private_key,
            warnings: envelope.warnings,
            leased,
        })
    }

    /// The path that a policy must allow for `request`.
    pub fn issue_path(request: &IssueRequest<'_>) -> String {
        format!("{}/issue/{}", mount(request), request.role)
    }
}

fn mount(request: &IssueRequest<'_>) -> String {
    match request.issuer {
        Some(issuer) => format!("{}/issuer/{issuer}", trim(request.mount)),
        None => trim(request.mount),
    }
}

fn body(request: &IssueRequest<'_>) -> GenerateCertificateRequest {
    // Lists are comma texts in this API.
    let list = |names: &[Arc<str>]| (!names.is_empty()).then(|| names.join(","));
    GenerateCertificateRequest {
        mount: mount(request),
        role: request.role.to_owned(),
        common_name: Some(request.common_name.to_owned()),
        alt_names: list(request.alt_names),
        ip_sans: list(request.ip_sans),
        ttl: request.ttl.map(|seconds| format!("{seconds}s")),
        // "pem_bundle" would put the key beside the certificate; "der" is the default of the key's format.
        format: Some("pem".to_owned()),
        private_key_format: Some("pkcs8".to_owned()),
        remove_roots_from_chain: Some(true),
        ..GenerateCertificateRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_part_of_the_path() {
        let names: [Arc<str>; 2] = ["b.example".into(), "c.example".into()];
        let mut request = IssueRequest {
            mount: "/pki_int/",
            role: "edge",
            issuer: None,
            common_name: "a.example",
            alt_names: &names,
            ip_sans: &[],
            ttl: Some(60),
        };
        assert_eq!(Call::of(&body(&request)).unwrap().path(), "pki_int/issue/edge");
        assert_eq!(body(&request).alt_names.as_deref(), Some("b.example,c.example"));
        assert_eq!(body(&request).ip_sans, None);
        request.issuer = Some("g2");
        assert_eq!(
            Call::of(&body(&request)).unwrap().path(),
            VaultClient::issue_path(&request)
        );
    }
}
