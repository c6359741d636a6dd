use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Redacted;

/// What to fetch to serve a certificate. Two `certificate` blocks that ask the same share one fetch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateQuery {
    VaultKv {
        mount: Arc<str>,
        path: Arc<str>,
        version: KvVersion,
        certificate_field: Arc<str>,
        private_key_field: Arc<str>,
    },
    VaultPki {
        mount: Arc<str>,
        role: Arc<str>,
        issuer: Option<Arc<str>>,
        common_name: Arc<str>,
        alt_names: Vec<Arc<str>>,
        ip_sans: Vec<Arc<str>>,
        /// Seconds; none leaves it to the role.
        ttl: Option<u64>,
    },
    File {
        certificate: Arc<str>,
        private_key: Arc<str>,
    },
}

impl fmt::Display for CertificateQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VaultKv { mount, path, .. } => write!(f, "vault_kv {mount}/{path}"),
            Self::VaultPki {
                mount,
                role,
                common_name,
                ..
            } => write!(f, "vault_pki {mount}/issue/{role} ({common_name})"),
            Self::File { certificate, .. } => write!(f, "file {certificate}"),
        }
    }
}

/// Which KV engine answers at a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvVersion {
    V1,
    V2,
    /// Ask the mount. Needs a token that may see it.
    Detect,
}

/// A certificate chain, and the key when this process holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateMaterial {
    /// Leaf first, without a self-signed root. PEM.
    pub chain: Arc<str>,
    /// None after a restart, while only Envoy still holds the key: keys are never written to disk.
    pub private_key: Option<Arc<Redacted<String>>>,
    pub serial: Arc<str>,
    /// DNS names and IP addresses the leaf is valid for.
    pub names: Vec<Arc<str>>,
    /// Unix seconds.
    pub not_before: i64,
    pub not_after: i64,
}

impl CertificateMaterial {
    /// The same for the same certificate in every process; derived from the public part only, so that it tells
    /// nothing about the key.
    pub fn version(&self) -> String {
        blake3::hash(self.chain.as_bytes()).to_hex()[..16].to_owned()
    }
}
