use std::collections::BTreeSet;
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
        /// None: what the role asks for, an elliptic curve where it leaves the choice.
        key_type: Option<KeyType>,
    },
    NomadVariable {
        /// None: the agent's own.
        namespace: Option<Arc<str>>,
        path: Arc<str>,
        certificate_item: Arc<str>,
        private_key_item: Arc<str>,
    },
    File {
        certificate: Arc<str>,
        private_key: Arc<str>,
    },
    /// Not a certificate to serve: whose certificates a client may show.
    ClientCa(ClientCaQuery),
}

/// Where the authorities of client certificates are kept, and what they revoked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientCaQuery {
    VaultPki {
        mount: Arc<str>,
        /// None: every issuer that can sign at the mount.
        issuer: Option<Arc<str>>,
        crl: bool,
    },
    VaultKv {
        mount: Arc<str>,
        path: Arc<str>,
        version: KvVersion,
        certificate_field: Arc<str>,
        crl_field: Option<Arc<str>>,
    },
    File {
        certificate: Arc<str>,
        crl: Option<Arc<str>>,
    },
}

impl ClientCaQuery {
    pub fn checks_revocation(&self) -> bool {
        match self {
            Self::VaultPki { crl, .. } => *crl,
            Self::VaultKv { crl_field: crl, .. } | Self::File { crl, .. } => crl.is_some(),
        }
    }
}

impl CertificateQuery {
    /// A pair that somebody put there: there is no other to be had.
    pub fn is_read(&self) -> bool {
        match self {
            Self::VaultKv { .. } | Self::NomadVariable { .. } | Self::File { .. } => true,
            Self::VaultPki { .. } | Self::ClientCa(_) => false,
        }
    }
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
            } => write!(f, "vault_pki {mount}/sign/{role} ({common_name})"),
            Self::NomadVariable { namespace, path, .. } => {
                f.write_str("nomad_variable ")?;
                if let Some(namespace) = namespace {
                    write!(f, "{namespace}:")?;
                }
                f.write_str(path)
            }
            Self::File { certificate, .. } => write!(f, "file {certificate}"),
            Self::ClientCa(ClientCaQuery::VaultPki { mount, issuer, .. }) => match issuer {
                Some(issuer) => write!(f, "client_ca vault_pki {mount}/issuer/{issuer}"),
                None => write!(f, "client_ca vault_pki {mount}/issuers"),
            },
            Self::ClientCa(ClientCaQuery::VaultKv { mount, path, .. }) => {
                write!(f, "client_ca vault_kv {mount}/{path}")
            }
            Self::ClientCa(ClientCaQuery::File { certificate, .. }) => {
                write!(f, "client_ca file {certificate}")
            }
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

/// The kind and size of a private key. No others: Envoy serves RSA from 2048 bits and these two curves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyType {
    Ec256,
    Ec384,
    Rsa2048,
    Rsa3072,
    Rsa4096,
}

impl KeyType {
    const ALL: [Self; 5] = [
        Self::Ec256,
        Self::Ec384,
        Self::Rsa2048,
        Self::Rsa3072,
        Self::Rsa4096,
    ];

    /// `kind` is Vault's word, `ec` or `rsa`. None: no such key is served.
    pub fn of(kind: &str, bits: u64) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|key| key.kind() == kind && key.bits() as u64 == bits)
    }

    /// The smallest of its kind.
    pub fn smallest(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.kind() == kind)
    }

    /// The next larger one of its kind with at least so many bits.
    pub fn at_least(self, bits: u64) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|key| key.kind() == self.kind() && key.bits() as u64 >= bits)
    }

    pub fn kind(self) -> &'static str {
        match self {
            Self::Ec256 | Self::Ec384 => "ec",
            Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096 => "rsa",
        }
    }

    pub fn bits(self) -> usize {
        match self {
            Self::Ec256 => 256,
            Self::Ec384 => 384,
            Self::Rsa2048 => 2048,
            Self::Rsa3072 => 3072,
            Self::Rsa4096 => 4096,
        }
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.bits())
    }
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
    /// Of authorities: what they revoked, PEM. None where that is not asked for.
    pub crl: Option<Arc<str>>,
}

impl CertificateMaterial {
    /// The hosts that a client can ask for. An SNI is a DNS name: IP addresses never appear in one. Envoy refuses
    /// wildcards that are not a whole first label, and with them the listener.
    pub fn host_names(&self) -> impl Iterator<Item = Arc<str>> {
        self.names
            .iter()
            .filter(|name| name.parse::<std::net::IpAddr>().is_err())
            .map(|name| Arc::from(name.to_ascii_lowercase()))
            .filter(|name: &Arc<str>| {
                !name.strip_prefix("*.").unwrap_or(name).contains('*') && !name.is_empty()
            })
    }

    /// The same for the same certificate in every process; derived from the public part only, so that it tells
    /// nothing about the key.
    pub fn version(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.chain.as_bytes());
        if let Some(crl) = &self.crl {
            hasher.update(crl.as_bytes());
        }
        hasher.finalize().to_hex()[..16].to_owned()
    }
}

/// Whether a certificate of these names is shown for a host, as Envoy chooses one. A wildcard host is covered where anything of it is: what its clients ask for nobody knows.
pub fn is_covered(names: &BTreeSet<Arc<str>>, host: &str) -> bool {
    if names.contains(host) || host == "*" {
        return true;
    }
    let parents = std::iter::successors(host.split_once('.'), |(_, parent)| parent.split_once('.'));
    let mut wildcards = parents.map(|(_, parent)| format!("*.{parent}"));
    if wildcards.any(|wildcard| names.contains(&*wildcard)) {
        return true;
    }
    host.strip_prefix('*')
        .is_some_and(|suffix| names.iter().any(|name| name.ends_with(suffix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_covered_as_envoy_chooses_a_certificate() {
        let names = ["shop.example.com", "*.eu.example.com"].map(Arc::from).into();
        for (host, covered) in [
            ("shop.example.com", true),
            ("api.example.com", false),
            ("a.eu.example.com", true),
            ("a.b.eu.example.com", true),
            ("eu.example.com", false),
            ("*.eu.example.com", true),
            ("*.a.eu.example.com", true),
            ("*.example.com", true),
            ("*.example.org", false),
            ("*", true),
        ] {
            assert_eq!(is_covered(&names, host), covered, "{host}");
        }
    }
}
