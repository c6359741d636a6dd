//! Which KV engine answers at a mount.
//!
//! By `sys/internal/ui/mounts`, as Vault's own CLI does. Any token with some right below the path may ask. It is not
//! a stable API, so a document can name the version instead.

use serde::Deserialize;

use super::client::VaultClient;
use super::fault::{Reason, VaultFault};
use super::kv::trim;
use super::transport::Call;
use crate::model::KvVersion;

#[derive(Deserialize)]
pub(super) struct Mount {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    options: Option<Options>,
}

#[derive(Deserialize)]
struct Options {
    #[serde(default)]
    version: Option<String>,
}

impl VaultClient {
    /// `V1` or `V2`.
    pub async fn detect_kv(&self, mount: &str, path: &str) -> Result<KvVersion, VaultFault> {
        match self.mounted_kv(mount, path).await {
            Err(fault) if matches!(fault.reason, Reason::Forbidden(_)) => self.try_kv(mount, path).await,
            result => result,
        }
    }

    /// Vault answers alike about a mount that is not there, and to a token without a right below it. To read tells
    /// which, by the rule that the agent needs anyway.
    async fn try_kv(&self, mount: &str, path: &str) -> Result<KvVersion, VaultFault> {
        let fault = match self.read_kv2(mount, path).await {
            Ok(_) => return Ok(KvVersion::V2),
            Err(fault) if matches!(fault.reason, Reason::Forbidden(_)) => fault,
            Err(fault) => return Err(fault),
        };
        match self.read_kv1(mount, path).await {
            Ok(_) => Ok(KvVersion::V1),
            Err(found) if matches!(found.reason, Reason::Forbidden(_)) => Err(VaultFault {
                reason: Reason::NoMountSeen,
                ..fault
            }),
            Err(fault) => Err(fault),
        }
    }

    /// What is mounted there, where the token may see it.
    pub(super) async fn mounted_kv(&self, mount: &str, path: &str) -> Result<KvVersion, VaultFault> {
        let call = Call::get(format!("sys/internal/ui/mounts/{}/{}", trim(mount), trim(path)))?;
        let answer = self.call(&call).await?;
        if answer.status == 404 {
            return Err(self.not_found(&call, &answer));
        }
        let mount = answer.parse::<Mount>().and_then(|envelope| envelope.data);
        let Mount { kind, options } = mount.ok_or_else(|| self.unreadable(&call))?;
        // "generic" is what KV v1 was called before Vault 0.8.
        if !matches!(kind.as_str(), "kv" | "generic" | "") {
            return Err(self.shared.transport.fault(&call, Reason::NotKv(kind)));
        }
        match options.and_then(|options| options.version).as_deref() {
            Some("2") => Ok(KvVersion::V2),
            _ => Ok(KvVersion::V1),
        }
    }
}
