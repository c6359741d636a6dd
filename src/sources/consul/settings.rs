//! How to reach Consul: the settings, and the environment read exactly as HashiCorp's own Go client reads it.
//!
//! In: a lookup of environment variables (a closure, so that tests need no process environment). Out: settings that
//! were checked as far as one can without asking Consul. Why so exact: operators have these variables set already.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;
use url::Url;

use crate::model::Redacted;

/// Everything that decides how Consul is asked.
#[derive(Clone, Debug, Default)]
pub struct ConsulSettings {
    pub address: ConsulAddress,
    pub token: Option<Redacted<String>>,
    /// A non-empty file wins over `token`, as in the Go client, and is read again when it changes.
    pub token_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    /// A directory of PEM files.
    pub ca_path: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    /// The name to verify instead of the address's host: agents' certificates say `server.<dc>.consul`.
    pub tls_server_name: Option<String>,
    pub tls_skip_verify: bool,
    /// Enterprise; sent only when set, because CE answers 400 to it.
    pub namespace: Option<String>,
    pub partition: Option<String>,
    pub datacenter: Option<String>,
    /// User and password for a reverse proxy in front of Consul.
    pub http_auth: Option<(String, Redacted<String>)>,
}

/// Where the agent's HTTP API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsulAddress {
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
    #[error("Consul address {address:?} is not usable: {reason}")]
    Address { address: String, reason: String },
    #[error("cannot read {what} {path}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{what} {path} holds no usable PEM: {reason}")]
    Pem {
        what: &'static str,
        path: PathBuf,
        reason: String,
    },
    #[error("a Consul client certificate needs both CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY")]
    HalfClientCertificate,
    #[error("tls_server_name {0:?} must be a host name, not an IP address")]
    ServerName(String),
    #[error("cannot set up the HTTP client for Consul")]
    Build(#[source] reqwest::Error),
}

impl ConsulSettings {
    /// Reads the `CONSUL_*` variables by the rules of Go's `api.DefaultConfig`.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        // Go treats an empty variable as unset throughout.
        let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let force_tls = set("CONSUL_HTTP_SSL")
            .and_then(|value| go_bool("CONSUL_HTTP_SSL", &value))
            .unwrap_or(false);
        let verify = set("CONSUL_HTTP_SSL_VERIFY")
            .and_then(|value| go_bool("CONSUL_HTTP_SSL_VERIFY", &value))
            .unwrap_or(true);
        let address = set("CONSUL_HTTP_ADDR").unwrap_or_else(|| DEFAULT_AUTHORITY.to_owned());
        let settings = Self {
            address: ConsulAddress::parse(&address, force_tls)?,
            token: set("CONSUL_HTTP_TOKEN").map(Redacted::new),
            token_file: set("CONSUL_HTTP_TOKEN_FILE").map(PathBuf::from),
            ca_file: set("CONSUL_CACERT").map(PathBuf::from),
            ca_path: set("CONSUL_CAPATH").map(PathBuf::from),
            client_cert: set("CONSUL_CLIENT_CERT").map(PathBuf::from),
            client_key: set("CONSUL_CLIENT_KEY").map(PathBuf::from),
            tls_server_name: set("CONSUL_TLS_SERVER_NAME"),
            tls_skip_verify: !verify,
            namespace: set("CONSUL_NAMESPACE"),
            partition: set("CONSUL_PARTITION"),
            datacenter: None,
            http_auth: set("CONSUL_HTTP_AUTH").map(|auth| match auth.split_once(':') {
                Some((user, password)) => (user.to_owned(), Redacted::new(password.to_owned())),
                None => (auth, Redacted::default()),
            }),
        };
        if settings.client_cert.is_some() != settings.client_key.is_some() {
            return Err(SettingsError::HalfClientCertificate);
        }
        Ok(settings)
    }
}

impl ConsulAddress {
    /// Takes `host:port`, `http://…`, `https://…` and `unix://…`; TCP forms may end in a reverse proxy's path.
    ///
    /// `force_tls` is `CONSUL_HTTP_SSL`: `http://` never downgrades it.
    pub fn parse(address: &str, force_tls: bool) -> Result<Self, SettingsError> {
        let fail = |reason: &str| SettingsError::Address {
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
                    "a unix socket needs an absolute path, as in unix:///run/consul.sock",
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
            return Err(fail(
                "user and password belong in CONSUL_HTTP_AUTH, where they are not logged",
            ));
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

    pub fn is_tls(&self) -> bool {
        matches!(self.endpoint, Endpoint::Https { .. })
    }
}

impl Default for ConsulAddress {
    fn default() -> Self {
        let endpoint = Endpoint::Http {
            authority: DEFAULT_AUTHORITY.to_owned(),
        };
        Self {
            endpoint,
            path_prefix: String::new(),
        }
    }
}

impl fmt::Display for ConsulAddress {
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

/// Go's `strconv.ParseBool`; a value it does not know is warned about and ignored, as the Go client does.
fn go_bool(name: &str, value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => {
            tracing::warn!(variable = name, value, "not a boolean, ignored");
            None
        }
    }
}

/// Consul's own default (`ports.http`).
const DEFAULT_AUTHORITY: &str = "127.0.0.1:8500";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Result<ConsulSettings, SettingsError> {
        let map: BTreeMap<String, String> = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        ConsulSettings::from_env(|name| map.get(name).cloned())
    }

    fn address(pairs: &[(&str, &str)]) -> String {
        from(pairs).unwrap().address.to_string()
    }

    #[test]
    fn address_forms() {
        assert_eq!(address(&[]), "http://127.0.0.1:8500");
        assert_eq!(address(&[("CONSUL_HTTP_ADDR", "")]), "http://127.0.0.1:8500");
        assert_eq!(
            address(&[("CONSUL_HTTP_ADDR", "10.0.0.1:8500")]),
            "http://10.0.0.1:8500"
        );
        assert_eq!(
            address(&[("CONSUL_HTTP_ADDR", "https://c:8501")]),
            "https://c:8501"
        );
        assert_eq!(
            address(&[("CONSUL_HTTP_ADDR", "[::1]:8500")]),
            "http://[::1]:8500"
        );
        assert_eq!(
            address(&[("CONSUL_HTTP_ADDR", "http://c:80/consul/")]),
            "http://c:80/consul"
        );
        assert_eq!(
            address(&[("CONSUL_HTTP_ADDR", "unix:///run/consul.sock")]),
            "unix:///run/consul.sock"
        );
    }

    #[test]
    fn ssl_is_never_downgraded_and_bad_booleans_are_ignored() {
        assert_eq!(
            address(&[("CONSUL_HTTP_ADDR", "http://c:1"), ("CONSUL_HTTP_SSL", "T")]),
            "https://c:1"
        );
        assert_eq!(
            address(&[("CONSUL_HTTP_ADDR", "c:1"), ("CONSUL_HTTP_SSL", "yes")]),
            "http://c:1"
        );
        assert!(from(&[("CONSUL_HTTP_SSL_VERIFY", "0")]).unwrap().tls_skip_verify);
        assert!(!from(&[("CONSUL_HTTP_SSL_VERIFY", "no")]).unwrap().tls_skip_verify);
        assert!(!from(&[("CONSUL_HTTP_SSL_VERIFY", "")]).unwrap().tls_skip_verify);
    }

    #[test]
    fn wrong_addresses_say_why() {
        for (address, word) in [
            ("ftp://c", "scheme"),
            ("unix://relative.sock", "absolute"),
            ("http://", "not usable"),
            ("http://root:secret@c:1", "CONSUL_HTTP_AUTH"),
            ("http://c:1/?token=x", "end with its path"),
        ] {
            let error = from(&[("CONSUL_HTTP_ADDR", address)]).unwrap_err().to_string();
            assert!(error.contains(word), "{address}: {error}");
        }
    }

    #[test]
    fn secrets_and_pairs() {
        let settings = from(&[("CONSUL_HTTP_AUTH", "me:pa:ss"), ("CONSUL_HTTP_TOKEN", "t0k3n")]).unwrap();
        let (user, password) = settings.http_auth.clone().unwrap();
        assert_eq!((user.as_str(), password.expose().as_str()), ("me", "pa:ss"));
        assert!(!format!("{settings:?}").contains("t0k3n"));
        assert!(!format!("{settings:?}").contains("pa:ss"));
        assert!(matches!(
            from(&[("CONSUL_CLIENT_CERT", "/a")]),
            Err(SettingsError::HalfClientCertificate)
        ));
    }
}
