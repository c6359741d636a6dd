//! Where Vault is, how to trust it and how to log in; from settings or from the usual environment.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::aws::AwsLogin;
use crate::model::Redacted;

/// As Go's client: 60 s for a whole request (`VAULT_CLIENT_TIMEOUT`).
const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A TCP and TLS handshake within one region takes well under a second; two lost SYN packets cost 3 s.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct VaultSettings {
    /// `https://host:8200`, `http://...` or `unix:///path`.
    pub address: String,
    pub namespace: Option<String>,
    /// With either of these, only the authorities they hold are trusted; else the system's.
    pub ca_file: Option<PathBuf>,
    pub ca_path: Option<PathBuf>,
    /// PEM text (`VAULT_CACERT_BYTES`).
    pub ca_pem: Option<String>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    /// The name expected in the server's certificate, and sent as SNI, instead of the address's host.
    pub tls_server_name: Option<String>,
    pub tls_skip_verify: bool,
    pub timeouts: VaultTimeouts,
    pub auth: VaultAuth,
}

#[derive(Clone, Copy, Debug)]
pub struct VaultTimeouts {
    pub connect: Duration,
    pub request: Duration,
}

impl Default for VaultTimeouts {
    fn default() -> Self {
        Self {
            connect: DEFAULT_CONNECT_TIMEOUT,
            request: DEFAULT_REQUEST_TIMEOUT,
        }
    }
}

/// How to come by a token.
#[derive(Clone, Debug, PartialEq)]
pub enum VaultAuth {
    /// A Vault Agent or Proxy in front adds the token.
    Proxy,
    /// Given once; cannot be replaced when it ends.
    Token(Arc<Redacted<String>>),
    /// Kept fresh by someone else (a Vault Agent sink, Nomad's `secrets/vault_token`): read again when it changes.
    TokenFile(PathBuf),
    AppRole {
        mount: String,
        role_id: String,
        secret_id: SecretId,
    },
    /// The file is read again on every login: workload identities rotate it.
    Jwt {
        mount: String,
        role: String,
        jwt_file: PathBuf,
    },
    /// A pod's service account; the file is read again on every login.
    Kubernetes {
        mount: String,
        role: String,
        jwt_file: PathBuf,
    },
    /// With the client certificate of the connection.
    Certificate {
        mount: String,
        /// None: any role that takes the certificate.
        role: Option<String>,
    },
    Userpass {
        mount: String,
        username: String,
        password_file: PathBuf,
    },
    Aws(AwsLogin),
}

#[derive(Clone, Debug, PartialEq)]
pub enum SecretId {
    Value(Arc<Redacted<String>>),
    /// Read again on each login.
    File(PathBuf),
    /// The file holds a wrapping token, which is used once.
    Wrapped(PathBuf),
}

impl VaultSettings {
    pub fn new(address: impl Into<String>, auth: VaultAuth) -> Self {
        Self {
            address: address.into(),
            namespace: None,
            ca_file: None,
            ca_path: None,
            ca_pem: None,
            client_cert: None,
            client_key: None,
            tls_server_name: None,
            tls_skip_verify: false,
            timeouts: VaultTimeouts::default(),
            auth,
        }
    }

    /// The settings that Vault's own tools would use in this environment: each `BAO_*` before its `VAULT_*`, an
    /// empty value as if unset. Without a token the auth is `Proxy`.
    pub fn from_environment(environment: &Environment<'_>) -> Result<Self, SettingsError> {
        let read = |name: &str| {
            [format!("BAO_{name}"), format!("VAULT_{name}")]
                .into_iter()
                .find_map(|name| {
                    environment(&name)
                        .filter(|value| !value.is_empty())
                        .map(|value| (name, value))
                })
        };
        let text = |name: &str| read(name).map(|(_, value)| value);
        let path = |name: &str| text(name).map(PathBuf::from);
        let auth = match text("TOKEN") {
            Some(token) => VaultAuth::Token(Arc::new(Redacted::new(token.trim().to_owned()))),
            None => VaultAuth::Proxy,
        };
        let address = text("AGENT_ADDR")
            .or_else(|| text("ADDR"))
            .unwrap_or_else(|| "https://127.0.0.1:8200".to_owned());
        let mut settings = Self::new(address, auth);
        settings.namespace = text("NAMESPACE");
        settings.ca_file = path("CACERT");
        settings.ca_path = path("CAPATH");
        settings.ca_pem = text("CACERT_BYTES");
        settings.client_cert = path("CLIENT_CERT");
        settings.client_key = path("CLIENT_KEY");
        settings.tls_server_name = text("TLS_SERVER_NAME");
        if let Some((name, value)) = read("SKIP_VERIFY") {
            settings.tls_skip_verify = parse_bool(&value).ok_or(SettingsError::Bool { name, value })?;
        }
        if let Some((name, value)) = read("CLIENT_TIMEOUT") {
            settings.timeouts.request =
                parse_seconds(&value).ok_or(SettingsError::Duration { name, value })?;
        }
        Ok(settings)
    }
}

/// Looks up one environment variable. A function, so that tests need not touch the process.
pub type Environment<'a> = dyn Fn(&str) -> Option<String> + 'a;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("{name}={value:?} is not a boolean: use true or false")]
    Bool { name: String, value: String },
    #[error("{name}={value:?} is not a duration: use seconds, or a unit as in \"30s\"")]
    Duration { name: String, value: String },
    #[error("the Vault address {address:?} is not usable: {reason}")]
    Address { address: String, reason: String },
    #[error("cannot read {path} ({purpose})")]
    File {
        path: String,
        purpose: &'static str,
        source: FileError,
    },
    #[error("{path} ({purpose}) holds no usable PEM")]
    Pem { path: String, purpose: &'static str },
    #[error("a Vault client certificate needs both client_cert and client_key")]
    ClientCertificateHalf,
    #[error("a login with a TLS certificate needs client_cert and client_key")]
    NoClientCertificate,
    #[error("no TLS crypto provider is installed in this process")]
    NoCryptoProvider,
    #[error("the HTTP client for Vault cannot be built: {0}")]
    Client(String),
}

/// An I/O error that can be compared.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FileError(pub String);

/// Go's `strconv.ParseBool`, exactly: nothing else turns verification off.
fn parse_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

fn parse_seconds(value: &str) -> Option<Duration> {
    match value.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(value).ok(),
    }
    .filter(|duration| !duration.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<VaultSettings, SettingsError> {
        VaultSettings::from_environment(&|name| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn an_empty_or_odd_skip_verify_never_skips() {
        assert!(!settings(&[("VAULT_SKIP_VERIFY", "")]).unwrap().tls_skip_verify);
        assert!(!settings(&[("VAULT_SKIP_VERIFY", "0")]).unwrap().tls_skip_verify);
        assert!(
            settings(&[("VAULT_SKIP_VERIFY", "True")])
                .unwrap()
                .tls_skip_verify
        );
        for odd in ["yes", "tRUE", "on", " true"] {
            assert!(
                matches!(
                    settings(&[("VAULT_SKIP_VERIFY", odd)]),
                    Err(SettingsError::Bool { .. })
                ),
                "{odd}"
            );
        }
    }

    #[test]
    fn bao_comes_before_vault() {
        let both = settings(&[
            ("VAULT_ADDR", "http://v"),
            ("BAO_ADDR", "http://b"),
            ("BAO_NAMESPACE", ""),
        ]);
        let both = both.unwrap();
        assert_eq!(both.address, "http://b");
        assert_eq!(both.namespace, None);
        assert!(matches!(both.auth, VaultAuth::Proxy));
        let token = settings(&[
            ("VAULT_TOKEN", "s.secret\n"),
            ("VAULT_AGENT_ADDR", "unix:///run/agent"),
        ])
        .unwrap();
        assert_eq!(token.address, "unix:///run/agent");
        assert!(!format!("{token:?}").contains("s.secret"));
        let VaultAuth::Token(token) = token.auth else {
            panic!("no token")
        };
        assert_eq!(token.expose(), "s.secret");
    }

    #[test]
    fn timeouts_are_seconds_or_durations() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("1m30s", 90)] {
            let timeouts = settings(&[("VAULT_CLIENT_TIMEOUT", text)]).unwrap().timeouts;
            assert_eq!(timeouts.request, Duration::from_secs(seconds));
        }
        assert!(settings(&[("VAULT_CLIENT_TIMEOUT", "soon")]).is_err());
        assert!(settings(&[("VAULT_CLIENT_TIMEOUT", "0")]).is_err());
    }
}
