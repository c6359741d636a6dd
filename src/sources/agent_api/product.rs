use std::fmt;
use std::sync::Arc;

/// Whose agent is asked. They differ in names, not in behaviour; Vault is asked this way by `portreeve setup` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    Consul,
    Nomad,
    Vault,
}

/// One agent, as messages name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub product: Product,
    pub address: Arc<str>,
}

impl Product {
    pub(super) fn token_header(self) -> &'static str {
        match self {
            Self::Consul => "x-consul-token",
            Self::Nomad => "x-nomad-token",
            Self::Vault => "x-vault-token",
        }
    }

    pub(super) fn index_header(self) -> &'static str {
        match self {
            Self::Consul => "x-consul-index",
            Self::Nomad => "x-nomad-index",
            Self::Vault => "x-vault-index",
        }
    }

    /// On its own port, over TLS. Nomad offers HTTP/1.1 alone.
    pub(super) fn speaks_http_2(self) -> bool {
        match self {
            Self::Consul | Self::Vault => true,
            Self::Nomad => false,
        }
    }

    pub fn address_variable(self) -> &'static str {
        match self {
            Self::Consul => "CONSUL_HTTP_ADDR",
            Self::Nomad => "NOMAD_ADDR",
            Self::Vault => "VAULT_ADDR",
        }
    }

    pub fn token_variable(self) -> &'static str {
        match self {
            Self::Consul => "CONSUL_HTTP_TOKEN",
            Self::Nomad => "NOMAD_TOKEN",
            Self::Vault => "VAULT_TOKEN",
        }
    }

    pub fn auth_variable(self) -> &'static str {
        match self {
            Self::Consul => "CONSUL_HTTP_AUTH",
            Self::Nomad => "NOMAD_HTTP_AUTH",
            Self::Vault => "VAULT_ADDR",
        }
    }

    pub fn ca_variable(self) -> &'static str {
        match self {
            Self::Consul => "CONSUL_CACERT",
            Self::Nomad => "NOMAD_CACERT",
            Self::Vault => "VAULT_CACERT",
        }
    }

    /// Its own default (`ports.http`).
    pub fn default_authority(self) -> &'static str {
        match self {
            Self::Consul => "127.0.0.1:8500",
            Self::Nomad => "127.0.0.1:4646",
            Self::Vault => "127.0.0.1:8200",
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Consul => "Consul",
            Self::Nomad => "Nomad",
            Self::Vault => "Vault",
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.product, self.address)
    }
}
