//! How to reach Nomad: the settings, and the environment read as Nomad's own Go client reads it.

use std::path::PathBuf;

use crate::model::Redacted;
use crate::sources::agent_api::call::Scope;
use crate::sources::agent_api::{ApiAddress, ApiSettings, Product, SettingsError, go_bool};

/// Everything that decides how Nomad is asked.
#[derive(Clone, Debug)]
pub struct NomadSettings {
    pub address: ApiAddress,
    /// An ACL token's secret, or a workload identity.
    pub token: Option<Redacted<String>>,
    /// Holds either of them; read again when it changes, because Nomad renews identities.
    pub token_file: Option<PathBuf>,
    pub region: Option<String>,
    pub namespace: Option<String>,
    pub ca_file: Option<PathBuf>,
    /// A directory of PEM files.
    pub ca_path: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    /// The name to verify instead of the address's host: agents' certificates say `server.<region>.nomad`.
    pub tls_server_name: Option<String>,
    pub tls_skip_verify: bool,
    /// User and password for a reverse proxy in front of Nomad.
    pub http_auth: Option<(String, Redacted<String>)>,
}

impl NomadSettings {
    /// Reads the `NOMAD_*` variables by the rules of Go's `api.DefaultConfig`. Inside a task, where nobody set an
    /// address, the task API's socket is used with the task's own identity.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        // Go treats an empty variable as unset throughout.
        let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let secrets = set("NOMAD_SECRETS_DIR").map(PathBuf::from);
        let in_secrets = |name: &str| {
            let path = secrets.as_ref()?.join(name);
            path.exists().then_some(path)
        };
        let socket = || {
            let named = set("NOMAD_UNIX_ADDR");
            named.or_else(|| Some(format!("unix://{}", in_secrets("api.sock")?.display())))
        };
        let address = set("NOMAD_ADDR")
            .or_else(socket)
            .unwrap_or_else(|| Product::Nomad.default_authority().to_owned());
        // In a task, NOMAD_TOKEN and this file hold the same identity, and only the file is renewed.
        let token_file = match set("NOMAD_ADDR") {
            None => in_secrets("nomad_token"),
            Some(_) => None,
        };
        let settings = Self {
            address: ApiAddress::parse(Product::Nomad, &address, false)?,
            token: set("NOMAD_TOKEN").map(Redacted::new),
            token_file,
            region: set("NOMAD_REGION"),
            namespace: set("NOMAD_NAMESPACE"),
            ca_file: set("NOMAD_CACERT").map(PathBuf::from),
            ca_path: set("NOMAD_CAPATH").map(PathBuf::from),
            client_cert: set("NOMAD_CLIENT_CERT").map(PathBuf::from),
            client_key: set("NOMAD_CLIENT_KEY").map(PathBuf::from),
            tls_server_name: set("NOMAD_TLS_SERVER_NAME"),
            tls_skip_verify: set("NOMAD_SKIP_VERIFY")
                .and_then(|value| go_bool("NOMAD_SKIP_VERIFY", &value))
                .unwrap_or(false),
            http_auth: set("NOMAD_HTTP_AUTH").map(|auth| match auth.split_once(':') {
                Some((user, password)) => (user.to_owned(), Redacted::new(password.to_owned())),
                None => (auth, Redacted::default()),
            }),
        };
        if settings.client_cert.is_some() != settings.client_key.is_some() {
            return Err(SettingsError::HalfClientCertificate(Product::Nomad));
        }
        Ok(settings)
    }

    pub(super) fn api(&self) -> ApiSettings {
        ApiSettings {
            product: Product::Nomad,
            address: self.address.clone(),
            token: self.token.clone(),
            token_file: self.token_file.clone(),
            login: None,
            ca_file: self.ca_file.clone(),
            ca_path: self.ca_path.clone(),
            client_cert: self.client_cert.clone(),
            client_key: self.client_key.clone(),
            tls_server_name: self.tls_server_name.clone(),
            tls_skip_verify: self.tls_skip_verify,
            scope: Scope::default()
                .with("region", self.region.as_ref())
                .with("namespace", self.namespace.as_ref()),
            http_auth: self.http_auth.clone(),
        }
    }
}

/// Nomad's own, where a request names none.
pub(super) const DEFAULT_NAMESPACE: &str = "default";

/// Where Nomad takes it: all that the token may see.
pub(super) const EVERY_NAMESPACE: &str = "*";

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> NomadSettings {
        NomadSettings::from_env(|name| {
            let found = pairs.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
        .unwrap()
    }

    #[test]
    fn the_environment_is_read_as_nomads_own_client_reads_it() {
        assert_eq!(from(&[]).address.to_string(), "http://127.0.0.1:4646");
        let settings = from(&[
            ("NOMAD_ADDR", "https://nomad:4646"),
            ("NOMAD_REGION", "eu"),
            ("NOMAD_NAMESPACE", "shop"),
            ("NOMAD_TOKEN", "s3cret"),
            ("NOMAD_SKIP_VERIFY", "true"),
            ("NOMAD_HTTP_AUTH", "me:pass"),
        ]);
        assert_eq!(settings.address.to_string(), "https://nomad:4646");
        assert_eq!(
            (settings.region.as_deref(), settings.namespace.as_deref()),
            (Some("eu"), Some("shop"))
        );
        assert!(settings.tls_skip_verify);
        assert!(!format!("{settings:?}").contains("s3cret") && !format!("{settings:?}").contains("pass\""));
    }

    #[test]
    fn in_a_task_the_socket_and_the_identity_file_are_found() {
        let secrets = tempfile::tempdir().unwrap();
        for name in ["api.sock", "nomad_token"] {
            std::fs::write(secrets.path().join(name), "jwt").unwrap();
        }
        let dir = secrets.path().display().to_string();
        let settings = from(&[("NOMAD_SECRETS_DIR", &dir), ("NOMAD_TOKEN", "jwt")]);
        assert_eq!(settings.address.to_string(), format!("unix://{dir}/api.sock"));
        assert_eq!(settings.token_file, Some(secrets.path().join("nomad_token")));
        let elsewhere = from(&[("NOMAD_SECRETS_DIR", &dir), ("NOMAD_ADDR", "n:4646")]);
        assert_eq!(elsewhere.token_file, None);
    }
}
