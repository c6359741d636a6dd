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
struct Mount {
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
