use std::net::IpAddr;
use std::sync::Arc;

use crate::model::DocumentId;

/// What documents from Consul KV may reach. Documents from a `-config` directory are the operator's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Files, or directories when they end in `/`. None by default.
    pub files: Vec<Arc<str>>,
    /// `mount/path`, or a prefix when it ends in `/`; `*` for all that the token may read.
    pub vault_paths: Vec<Arc<str>>,
    pub addresses: AddressRules,
}

/// Addresses that static and DNS upstreams may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressRules {
    pub allow_loopback: bool,
    pub allow_link_local: bool,
}

impl Default for Permissions {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            vault_paths: vec!["*".into()],
            // Loopback is where Envoy's admin, our API, Consul and Vault listen; link-local is where clouds keep credentials.
            addresses: AddressRules {
                allow_loopback: false,
                allow_link_local: false,
            },
        }
    }
}

impl Permissions {
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

    /// Says why not.
    pub fn address_refusal(&self, document: &DocumentId, host: &str) -> Option<&'static str> {
        if document.is_trusted() {
            return None;
        }
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        let loopback = match address {
            Some(address) => address.is_loopback() || address.is_unspecified(),
            None => {
                host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost")
            }
        };
        let link_local = match address {
            Some(IpAddr::V4(address)) => address.is_link_local(),
            Some(IpAddr::V6(address)) => address.is_unicast_link_local(),
            None => false,
        };
        if loopback && !self.addresses.allow_loopback {
            Some(
                "loopback addresses reach this machine's own interfaces (Envoy's admin, this agent, Consul, Vault)",
            )
        } else if link_local && !self.addresses.allow_link_local {
            Some("link-local addresses reach cloud metadata services, which hand out credentials")
        } else {
            None
        }
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
        for bad in [
            "127.0.0.1",
            "169.254.169.254",
            "localhost",
            "[::1]",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "fe80::1",
        ] {
            assert!(permissions.address_refusal(&kv, bad).is_some(), "{bad}");
        }
        assert!(permissions.address_refusal(&kv, "10.0.0.7").is_none());
        assert!(permissions.address_refusal(&file, "127.0.0.1").is_none());
    }
}
