use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::exposure::Exposure;
use super::reach::{AddressRefusal, AddressRules};
use crate::model::{CertificateQuery, ClientCaQuery, DocumentId};

/// What documents from Consul KV may reach, and what services in the catalog may claim. Documents from a `-config`
/// directory are the operator's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permissions {
    /// Files, or directories when they end in `/`. None by default.
    pub files: Vec<Arc<str>>,
    /// `mount/path`, or a prefix when it ends in `/`; `*` for all that the token may read.
    pub vault_paths: Vec<Arc<str>>,
    /// Paths of Nomad variables, `namespace:path` where another namespace is named; the rest as for Vault.
    pub nomad_variables: Vec<Arc<str>>,
    pub addresses: AddressRules,
    /// None: what services say in their tags and metadata is not listened to.
    pub exposure: Option<Arc<Exposure>>,
    /// The gateways that are served with this: what others use is for other agents to allow. None: nobody knows which, and
    /// whatever documents name is judged.
    #[serde(default)]
    pub gateways: Option<BTreeSet<Arc<str>>>,
}

impl Default for Permissions {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            vault_paths: vec!["*".into()],
            nomad_variables: vec!["*".into()],
            addresses: AddressRules::default(),
            exposure: None,
            gateways: None,
        }
    }
}

impl Permissions {
    /// What the agent listens on stays out of reach when the bounds change.
    pub fn keep_own(&mut self, before: &Self) {
        let own = &mut self.addresses.own;
        for address in &before.addresses.own {
            if !own.contains(address) {
                own.push(*address);
            }
        }
        own.sort();
    }

    /// Whether what this gateway uses is judged.
    pub fn judges(&self, gateway: &str) -> bool {
        self.gateways.as_ref().is_none_or(|own| own.contains(gateway))
    }

    pub fn file_allowed(&self, document: &DocumentId, path: &str) -> bool {
        document.is_trusted()
            || (!path.contains("..") && self.files.iter().any(|allowed| covers(allowed, path)))
    }

    pub fn vault_allowed(&self, document: &DocumentId, path: &str) -> bool {
        document.is_trusted()
            || self
                .vault_paths
                .iter()
                .any(|allowed| &**allowed == "*" || covers(allowed, path))
    }

    pub fn nomad_variable_allowed(&self, document: &DocumentId, variable: &str) -> bool {
        document.is_trusted()
            || self
                .nomad_variables
                .iter()
                .any(|allowed| &**allowed == "*" || covers(allowed, variable))
    }

    /// What was fetched for a document may be fetched still.
    pub fn certificate_allowed(&self, document: &DocumentId, query: &CertificateQuery) -> bool {
        match query {
            CertificateQuery::File {
                certificate,
                private_key,
            } => [certificate, private_key]
                .into_iter()
                .all(|path| self.file_allowed(document, path)),
            CertificateQuery::VaultKv { mount, path, .. } => {
                self.vault_allowed(document, &format!("{mount}/{path}"))
            }
            CertificateQuery::NomadVariable { namespace, path, .. } => {
                self.nomad_variable_allowed(document, &nomad_variable(namespace.as_deref(), path))
            }
            CertificateQuery::VaultPki {
                mount, role, issuer, ..
            } => match issuer {
                Some(issuer) => self.vault_allowed(document, &format!("{mount}/issuer/{issuer}/sign/{role}")),
                None => self.vault_allowed(document, &format!("{mount}/sign/{role}")),
            },
            CertificateQuery::ClientCa(ClientCaQuery::VaultPki { mount, issuer, .. }) => {
                self.vault_allowed(document, &issuers_path(mount, issuer.as_deref()))
            }
            CertificateQuery::ClientCa(ClientCaQuery::VaultKv { mount, path, .. }) => {
                self.vault_allowed(document, &format!("{mount}/{path}"))
            }
            CertificateQuery::ClientCa(ClientCaQuery::File { certificate, crl }) => {
                std::iter::once(certificate)
                    .chain(crl)
                    .all(|path| self.file_allowed(document, path))
            }
        }
    }

    pub fn listener_refusal(
        &self,
        document: &DocumentId,
        address: Option<IpAddr>,
        port: u16,
    ) -> Option<AddressRefusal> {
        match document.is_trusted() {
            true => None,
            false => self.addresses.listener_refusal(address, port),
        }
    }

    pub fn address_refusal(&self, document: &DocumentId, host: &str, port: u16) -> Option<AddressRefusal> {
        match document.is_trusted() {
            true => None,
            false => self.addresses.refusal(host, port),
        }
    }
}

/// Where a PKI mount's authorities of clients are read: the one that is named, or all.
pub(super) fn issuers_path(mount: &str, issuer: Option<&str>) -> String {
    match issuer {
        Some(issuer) => format!("{mount}/issuer/{issuer}"),
        None => format!("{mount}/issuers"),
    }
}

/// As the settings name it.
pub(super) fn nomad_variable(namespace: Option<&str>, path: &str) -> String {
    match namespace {
        Some(namespace) => format!("{namespace}:{path}"),
        None => path.to_owned(),
    }
}

fn covers(allowed: &str, path: &str) -> bool {
    if allowed.ends_with('/') {
        path.starts_with(allowed)
    } else {
        path == allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kv_reaches_only_what_is_listed() {
        let kv = DocumentId::Kv("portreeve/config/a".into());
        let file = DocumentId::File("a.hcl".into());
        let mut permissions = Permissions {
            files: vec!["/etc/ssl/edge/".into()],
            ..Permissions::default()
        };
        assert!(permissions.file_allowed(&file, "/etc/shadow"));
        assert!(!permissions.file_allowed(&kv, "/etc/shadow"));
        assert!(permissions.file_allowed(&kv, "/etc/ssl/edge/www.pem"));
        assert!(!permissions.file_allowed(&kv, "/etc/ssl/edge/../../shadow"));
        permissions.vault_paths = vec!["secret/edge/".into()];
        assert!(permissions.vault_allowed(&kv, "secret/edge/www"));
        assert!(!permissions.vault_allowed(&kv, "secret/other"));
        permissions.vault_paths = vec!["pki/issuer/2026".into()];
        let clients_of = |issuer: Option<&str>| {
            permissions.certificate_allowed(
                &kv,
                &CertificateQuery::ClientCa(ClientCaQuery::VaultPki {
                    mount: "pki".into(),
                    issuer: issuer.map(Into::into),
                    crl: true,
                }),
            )
        };
        assert!(clients_of(Some("2026")) && !clients_of(Some("2025")) && !clients_of(None));
        permissions.nomad_variables = vec!["edge/".into(), "shop:edge/www".into()];
        let allowed =
            |namespace, path| permissions.nomad_variable_allowed(&kv, &nomad_variable(namespace, path));
        assert!(allowed(None, "edge/www") && allowed(Some("shop"), "edge/www"));
        assert!(
            !allowed(None, "other") && !allowed(Some("shop"), "edge/x") && !allowed(Some("x"), "edge/www")
        );
        assert!(permissions.address_refusal(&kv, "127.0.0.1", 80).is_some());
        assert!(permissions.address_refusal(&kv, "10.0.0.7", 80).is_none());
        assert!(permissions.address_refusal(&file, "127.0.0.1", 80).is_none());
    }
}
