//! Reads KV secrets of both engine versions, and tells apart what a bare 404 does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use vaultrs::api::kv1::requests::GetSecretRequest;
use vaultrs::api::kv2::requests::{ReadSecretMetadataRequest, ReadSecretRequest};

use super::answer::{Answer, Field, Fields};
use super::client::VaultClient;
use super::fault::{Reason, VaultFault};
use super::transport::Call;
use crate::model::{KvVersion, Redacted};

/// The fields of one secret.
pub struct KvSecret {
    fields: Fields,
}

/// Names one state of a KV v2 secret: equal stamps, equal content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvStamp {
    pub version: u64,
    /// A secret that was deleted whole and written again begins with version 1 again.
    created: String,
    /// The version carries a deletion time, which may lie ahead: its content can go without a new version.
    pub ends: bool,
    pub destroyed: bool,
}

impl KvSecret {
    /// The text of a field, or a sentence on what is there instead.
    pub fn text(&self, name: &str) -> Result<Arc<Redacted<String>>, String> {
        match self.fields.get(name) {
            Some(Field::Text(text)) => Ok(text.clone()),
            Some(Field::Other(kind)) => Err(format!("its field {name:?} is {kind}, not a text")),
            None => {
                // Names only: the values are secret.
                let names: Vec<String> = self
                    .fields
                    .keys()
                    .take(20)
                    .map(|name| format!("{name:?}"))
                    .collect();
                let there = if names.is_empty() {
                    "no fields".to_owned()
                } else {
                    names.join(", ")
                };
                Err(format!("it has no field {name:?}; there is {there}"))
            }
        }
    }
}

#[derive(Deserialize)]
pub(super) struct V2Secret {
    data: Option<Fields>,
    metadata: V2Version,
}

#[derive(Deserialize)]
struct V2Version {
    #[serde(default)]
    version: u64,
    #[serde(default)]
    destroyed: bool,
}

#[derive(Deserialize)]
pub(super) struct V2Metadata {
    current_version: u64,
    #[serde(default)]
    versions: BTreeMap<String, V2MetadataVersion>,
}

#[derive(Deserialize)]
struct V2MetadataVersion {
    #[serde(default)]
    created_time: String,
    #[serde(default)]
    deletion_time: String,
    #[serde(default)]
    destroyed: bool,
}

impl VaultClient {
    /// Reads the newest version. `version` must not be `Detect`: ask `detect_kv` first.
    pub async fn read_kv(&self, version: KvVersion, mount: &str, path: &str) -> Result<KvSecret, VaultFault> {
        let result = match version {
            KvVersion::V1 => self.read_kv1(mount, path).await,
            KvVersion::V2 | KvVersion::Detect => self.read_kv2(mount, path).await,
        };
        match result {
            Err(fault) if matches!(fault.reason, Reason::NotFound(_) | Reason::Forbidden(_)) => {
                Err(self.explain(fault, version, mount, path).await)
            }
            result => result,
        }
    }

    /// The state of a KV v2 secret, without its content.
    pub async fn kv2_stamp(&self, mount: &str, path: &str) -> Result<KvStamp, VaultFault> {
        let call = Call::of(&ReadSecretMetadataRequest {
            mount: trim(mount),
            path: trim(path),
        })?;
        let answer = self.call(&call).await.inspect_err(|fault| {
            if matches!(fault.reason, Reason::Forbidden(_)) {
                self.shared
                    .lacks(fault, "the secret itself is read at every poll, not its version");
            }
        })?;
        self.shared.lacks_no_more(call.path());
        if answer.status == 404 {
            return Err(self.not_found(&call, &answer));
        }
        let data = answer.parse::<V2Metadata>().and_then(|envelope| envelope.data);
        let data = data.ok_or_else(|| self.unreadable(&call))?;
        let current = data.versions.get(&data.current_version.to_string());
        Ok(KvStamp {
            version: data.current_version,
            created: current.map_or_else(String::new, |version| version.created_time.clone()),
            ends: current.is_some_and(|version| !version.deletion_time.is_empty()),
            destroyed: current.is_some_and(|version| version.destroyed),
        })
    }

    /// Nobody asks for the secret any more, so its metadata is not missed.
    pub(crate) fn no_longer_watches_kv2(&self, mount: &str, path: &str) {
        if let Ok(call) = Call::of(&ReadSecretMetadataRequest {
            mount: trim(mount),
            path: trim(path),
        }) {
            self.shared
                .freshness
                .update(|status| drop(status.lacking.remove(call.path())));
        }
    }

    pub(super) async fn read_kv1(&self, mount: &str, path: &str) -> Result<KvSecret, VaultFault> {
        let call = Call::of(&GetSecretRequest {
            mount: trim(mount),
            path: trim(path),
        })?;
        let answer = self.call(&call).await?;
        if answer.status == 404 {
            return Err(self.not_found(&call, &answer));
        }
        let fields = answer.parse::<Fields>().and_then(|envelope| envelope.data);
        Ok(KvSecret {
            fields: fields.ok_or_else(|| self.unreadable(&call))?,
        })
    }

    pub(super) async fn read_kv2(&self, mount: &str, path: &str) -> Result<KvSecret, VaultFault> {
        let call = Call::of(&ReadSecretRequest {
            mount: trim(mount),
            path: trim(path),
            version: None,
        })?;
        let answer = self.call(&call).await?;
        let secret = answer.parse::<V2Secret>().and_then(|envelope| envelope.data);
        match (answer.status, secret) {
            // A deleted or destroyed version answers 404 with its metadata.
            (404, Some(V2Secret { metadata, .. })) => {
                let how = if metadata.destroyed {
                    "destroyed"
                } else {
                    "deleted"
                };
                Err(self.shared.transport.fault(
                    &call,
                    Reason::Deleted {
                        version: metadata.version,
                        how,
                    },
                ))
            }
            (404, None) => Err(self.not_found(&call, &answer)),
            (
                _,
                Some(V2Secret {
                    data: Some(fields), ..
                }),
            ) => Ok(KvSecret { fields }),
            _ => Err(self.unreadable(&call)),
        }
    }

    /// A wrong version looks like a missing path (or, by a policy for the right paths, a forbidden one). Where the
    /// token may see the mount, say which it is.
    async fn explain(&self, fault: VaultFault, version: KvVersion, mount: &str, path: &str) -> VaultFault {
        let configured = if version == KvVersion::V1 { 1 } else { 2 };
        match self.mounted_kv(mount, path).await {
            Ok(found) if found != version => {
                let found = if found == KvVersion::V1 { 1 } else { 2 };
                VaultFault {
                    reason: Reason::KvVersion { found, configured },
                    ..fault
                }
            }
            Err(found) if matches!(found.reason, Reason::NotKv(_)) => VaultFault {
                reason: found.reason,
                ..fault
            },
            _ => fault,
        }
    }

    pub(super) fn not_found(&self, call: &Call, answer: &Answer) -> VaultFault {
        let errors = answer.errors();
        // Vault looks for the mount after it looked at the policy: whoever may read there is told.
        let reason = if errors.starts_with("no handler for route") {
            Reason::NoMount
        } else {
            Reason::NotFound(errors)
        };
        self.shared.transport.fault(call, reason)
    }

    pub(super) fn unreadable(&self, call: &Call) -> VaultFault {
        let reason = "the answer is not what Vault answers here".to_owned();
        self.shared.transport.fault(call, Reason::Unusable(reason))
    }
}

/// Mounts and paths are written with and without slashes at their ends.
pub(super) fn trim(path: &str) -> String {
    path.trim_matches('/').to_owned()
}
