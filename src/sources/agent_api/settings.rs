//! How to reach an agent of Consul or Nomad, checked as far as one can without asking it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use url::Url;

use super::call::Scope;
use super::login::LoginSettings;
use super::product::Product;
use crate::model::Redacted;

/// Everything that decides how an agent is asked.
#[derive(Clone, Debug)]
pub struct ApiSettings {
    pub product: Product,
    pub address: ApiAddress,
    pub token: Option<Redacted<String>>,
    /// A non-empty file wins over `token`, and is read again when it changes.
    pub token_file: Option<PathBuf>,
    /// In place of both.
    pub login: Option<LoginSettings>,
    pub ca_file: Option<PathBuf>,
    /// A directory of PEM files.
    pub ca_path: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    /// The name to verify instead of the address's host.
    pub tls_server_name: Option<String>,
    pub tls_skip_verify: bool,
    /// Where every call goes that does not say otherwise.
    pub(in crate::sources) scope: Scope,
    /// User and password for a reverse proxy in front of the agent.
    pub http_auth: Option<(String, Redacted<String>)>,
}

/// Where the agent's HTTP API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiAddress {
    pub endpoint: Endpoint,
    /// Of a reverse proxy, without slashes at the ends; mostly empty.
    pub path_prefix: String,
}

/// TCP with or without TLS, or a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Http { authority: String },
    Https { authority: String },
    Unix { path: PathBuf },
}

/// Settings that cannot work, found before Consul is asked.
#[derive(Debug, Error)]
pub enum SettingsError {
    #[error("{product} address {address:?} is not usable: {reason}")]
    Address {
        product: Product,
        address: String,
        reason: String,
    },
    #[error("cannot read the {product} {what} {path}")]
    File {
        product: Product,
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the {product} {what} {path} holds no usable PEM: {reason}")]
    Pem {
        product: Product,
        what: &'static str,
        path: PathBuf,
        reason: String,
    },
    #[error("the TLS settings for {product} do not work: {reason}")]
    Tls { product: Product, reason: String },
    #[error("a client certificate for {0} needs both its certificate and its key (client_cert, client_key)")]
    HalfClientCertificate(Product),
    #[error("tls_server_name {0:?} must be a host name, not an IP address")]
    ServerName(String),
    #[error("cannot set up the HTTP client for {product}")]
    Build {
        product: Product,
        #[source]
        source: reqwest::Error,
    },
}

impl ApiSettings {
    /// The agent beside us, with nothing set.
    pub fn of(product: Product) -> Self {
        Self {
            product,
            address: ApiAddress::default_of(product),
            token: None,
            token_file: None,
            login: None,
            ca_file: None,
            ca_path: None,
            client_cert: None,
            client_key: None,
            tls_server_name: None,
            tls_skip_verify: false,
            scope: Scope::default(),
            http_auth: None,
        }
    }
}

impl ApiAddress {
    /// Takes `host:port`, `http://…`, `https://…` and `unix://…`; TCP forms may end in a reverse proxy's path.
    ///
    /// `force_tls` is `CONSUL_HTTP_SSL`: `http://` never downgrades it.
    pub fn parse(product: Product, address: &str, force_tls: bool) -> Result<Self, SettingsError> {
        let fail = |reason: &str| SettingsError::Address {
            product,
            address: address.to_owned(),
            reason: reason.to_owned(),
        };
        let (tls, rest) = match address.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => {
                return Ok(Self {
                    endpoint: Endpoint::Unix { path: path.into() },
                    path_prefix: String::new(),
                });
            }
            Some(("unix", _)) => {
                return Err(fail(
                    "a unix socket needs an absolute path, as in unix:///run/agent.sock",
                ));
            }
            Some(("http", rest)) => (force_tls, rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) => {
                return Err(fail(&format!(
                    "scheme {scheme:?} is unknown; use http, https or unix"
                )));
            }
            None => (force_tls, address),
        };
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let scheme = if tls { "https" } else { "http" };
        let url =
            Url::parse(&format!("{scheme}://{authority}/")).map_err(|error| fail(&error.to_string()))?;
        if url.host_str().is_none_or(str::is_empty) {
            return Err(fail("it names no host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(fail(&format!(
                "user and password belong in {}, where they are not logged",
                product.auth_variable()
            )));
        }
        if url.query().is_some() || url.fragment().is_some() || prefix.contains(['?', '#']) {
            return Err(fail("it must end with its path"));
        }
        let authority = authority.to_owned();
        let endpoint = if tls {
            Endpoint::Https { authority }
        } else {
            Endpoint::Http { authority }
        };
        Ok(Self {
            endpoint,
            path_prefix: prefix.trim_matches('/').to_owned(),
        })
    }

    /// Where the product's own agent listens unless told otherwise.
    pub fn default_of(product: Product) -> Self {
        let endpoint = Endpoint::Http {
            authority: product.default_authority().to_owned(),
        };
        Self {
            endpoint,
            path_prefix: String::new(),
        }
    }

    /// An agent beside us: nobody else can be hurt by asking it often.
    pub fn is_local(&self) -> bool {
        match &self.endpoint {
            Endpoint::Unix { .. } => true,
            Endpoint::Http { authority } | Endpoint::Https { authority } => {
                let url = Url::parse(&format!("http://{authority}/"));
                url.is_ok_and(|url| match url.host() {
                    Some(url::Host::Ipv4(address)) => address.is_loopback(),
                    Some(url::Host::Ipv6(address)) => address.is_loopback(),
                    Some(url::Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
                    None => false,
                })
            }
        }
    }

    /// The mean of the longest interval between tries while it does not answer.
    pub(in crate::sources) fn longest_retry(&self) -> Duration {
        if self.is_local() {
            LONGEST_LOCAL_RETRY
        } else {
            LONGEST_RETRY
        }
    }

    pub fn is_tls(&self) -> bool {
        matches!(self.endpoint, Endpoint::Https { .. })
    }
}

impl fmt::Display for ApiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::Http { authority } => write!(f, "http://{authority}")?,
            Endpoint::Https { authority } => write!(f, "https://{authority}")?,
            Endpoint::Unix { path } => write!(f, "unix://{}", path.display())?,
        }
        if !self.path_prefix.is_empty() {
            write!(f, "/{}", self.path_prefix)?;
        }
        Ok(())
    }
}

/// Each interval is drawn give or take a half: within 15 s, and within 1 s from an agent beside us.
pub(super) const LONGEST_RETRY: Duration = Duration::from_secs(10);
const LONGEST_LOCAL_RETRY: Duration = Duration::from_millis(660);

/// Go's `strconv.ParseBool`; a value it does not know is warned about and ignored, as the Go client does.
pub(in crate::sources) fn go_bool(name: &str, value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => {
            tracing::warn!(variable = name, value, "not a boolean, ignored");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_beside_us_is_asked_again_within_a_second() {
        for (address, local) in [
            ("127.0.0.1:8500", true),
            ("http://localhost:8500", true),
            ("https://[::1]:8501/consul", true),
            ("unix:///run/consul.sock", true),
            ("10.0.0.1:8500", false),
            ("https://consul.example.com:8501", false),
            ("http://localhost.example.com:8500", false),
        ] {
            let address = ApiAddress::parse(Product::Consul, address, false).unwrap();
            assert_eq!(address.is_local(), local, "{address}");
            let longest = address.longest_retry() * 3 / 2;
            assert!(
                longest <= Duration::from_secs(if local { 1 } else { 15 }),
                "{address}"
            );
        }
    }
}
