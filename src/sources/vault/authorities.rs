//! Reads the authorities of a PKI mount, and what they revoked: who signs the certificates of clients.
//!
//! Vault answers these reads without a token, so no policy has to allow them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::answer::Answer;
use super::client::VaultClient;
use super::fault::{Reason, VaultFault};
use super::kv::trim;
use super::transport::Call;

/// A mount with more has been rotated for years without tidying.
const MOST_ISSUERS: usize = 32;

#[derive(Deserialize)]
pub(super) struct Issuers {
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    key_info: BTreeMap<String, IssuerInfo>,
}

#[derive(Deserialize)]
struct IssuerInfo {
    /// Empty: only the certificate is here (a root above the mount), and it signs nothing here.
    #[serde(default)]
    key_id: String,
}

#[derive(Deserialize)]
pub(super) struct IssuerData {
    certificate: String,
}

#[derive(Deserialize)]
pub(super) struct CrlData {
    #[serde(default)]
    crl: String,
}

impl VaultClient {
    /// The certificates, PEM, of one issuer, or of all that can sign at the mount; with their lists. A root above them
    /// is not among them: that would let in whatever else it signed.
    pub async fn client_authorities(
        &self,
        mount: &str,
        issuer: Option<&str>,
        crl: bool,
    ) -> Result<(String, Option<String>), VaultFault> {
        let mount = trim(mount);
        let issuers = match issuer {
            Some(issuer) => vec![issuer.to_owned()],
            None => self.signing_issuers(&mount).await?,
        };
        let (mut authorities, mut lists) = (String::new(), String::new());
        for issuer in issuers {
            let data: IssuerData = self.public(format!("{mount}/issuer/{issuer}/json")).await?;
            authorities.push_str(data.certificate.trim());
            authorities.push('\n');
            if crl {
                let data: CrlData = self.public(format!("{mount}/issuer/{issuer}/crl")).await?;
                lists.push_str(data.crl.trim());
                lists.push('\n');
            }
        }
        Ok((authorities, crl.then_some(lists)))
    }

    async fn signing_issuers(&self, mount: &str) -> Result<Vec<String>, VaultFault> {
        let path = format!("{mount}/issuers");
        let call = Call::get(path)?.with_query("list=true");
        let answer = self.unrestricted(&call).await?;
        let issuers = answer.parse::<Issuers>().and_then(|envelope| envelope.data);
        let issuers = issuers.ok_or_else(|| self.unreadable(&call))?;
        let fault = |what: String| self.shared.transport.fault(&call, Reason::Unusable(what));
        let signing: Vec<String> = issuers
            .keys
            .into_iter()
            .filter(|id| {
                let info = issuers.key_info.get(id);
                info.is_some_and(|info| !info.key_id.is_empty())
            })
            .collect();
        match signing.len() {
            0 => Err(fault("no issuer of this mount has a key here".to_owned())),
            1..=MOST_ISSUERS => Ok(signing),
            count => Err(fault(format!(
                "{count} issuers can sign here, which is more than {MOST_ISSUERS}: name one"
            ))),
        }
    }

    async fn public<T: serde::de::DeserializeOwned>(&self, path: String) -> Result<T, VaultFault> {
        let call = Call::get(path)?;
        let answer = self.unrestricted(&call).await?;
        let data = answer.parse::<T>().and_then(|envelope| envelope.data);
        data.ok_or_else(|| self.unreadable(&call))
    }
    /// Of what a PKI mount answers to everybody: a refusal for want of a right means that there is none.
    async fn unrestricted(&self, call: &Call) -> Result<Answer, VaultFault> {
        match self.call(call).await {
            Ok(answer) if answer.status == 404 => Err(self.not_found(call, &answer)),
            Err(fault) if matches!(fault.reason, Reason::Forbidden(_)) => Err(VaultFault {
                reason: Reason::NoPki,
                ..fault
            }),
            result => result,
        }
    }
}
