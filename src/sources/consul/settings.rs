//! How to reach Consul: the settings, and the environment read exactly as HashiCorp's own Go client reads it.
//!
//! In: a lookup of environment variables (a closure, so that tests need no process environment). Out: settings that
//! were checked as far as one can without asking Consul. Why so exact: operators have these variables set already.

use std::path::PathBuf;

use crate::model::Redacted;
use crate::sources::agent_api::call::Scope;
use crate::sources::agent_api::{ApiAddress, ApiSettings, LoginSettings, Product, SettingsError, go_bool};

/// Everything that decides how Consul is asked.
#[derive(Clone, Debug)]
pub struct ConsulSettings {
    pub address: ApiAddress,
    pub token: Option<Redacted<String>>,
    /// A non-empty file wins over `token`, as in the Go client, and is read again when it changes.
    pub token_file: Option<PathBuf>,
    /// In place of both.
    pub login: Option<LoginSettings>,
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
    /// How many long polls may hold a connection of their own. None: 150.
    pub max_connections: Option<usize>,
    /// User and password for a reverse proxy in front of Consul.
    pub http_auth: Option<(String, Redacted<String>)>,
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
        let address =
            set("CONSUL_HTTP_ADDR").unwrap_or_else(|| Product::Consul.default_authority().to_owned());
        let settings = Self {
            address: ApiAddress::parse(Product::Consul, &address, force_tls)?,
            token: set("CONSUL_HTTP_TOKEN").map(Redacted::new),
            token_file: set("CONSUL_HTTP_TOKEN_FILE").map(PathBuf::from),
            login: None,
            ca_file: set("CONSUL_CACERT").map(PathBuf::from),
            ca_path: set("CONSUL_CAPATH").map(PathBuf::from),
            client_cert: set("CONSUL_CLIENT_CERT").map(PathBuf::from),
            client_key: set("CONSUL_CLIENT_KEY").map(PathBuf::from),
            tls_server_name: set("CONSUL_TLS_SERVER_NAME"),
            tls_skip_verify: !verify,
            namespace: set("CONSUL_NAMESPACE"),
            partition: set("CONSUL_PARTITION"),
            datacenter: None,
            max_connections: None,
            http_auth: set("CONSUL_HTTP_AUTH").map(|auth| match auth.split_once(':') {
                Some((user, password)) => (user.to_owned(), Redacted::new(password.to_owned())),
                None => (auth, Redacted::default()),
            }),
        };
        if settings.client_cert.is_some() != settings.client_key.is_some() {
            return Err(SettingsError::HalfClientCertificate(Product::Consul));
        }
        Ok(settings)
    }

    pub(super) fn api(&self) -> ApiSettings {
        ApiSettings {
            product: Product::Consul,
            address: self.address.clone(),
            token: self.token.clone(),
            token_file: self.token_file.clone(),
            login: self.login.clone(),
            ca_file: self.ca_file.clone(),
            ca_path: self.ca_path.clone(),
            client_cert: self.client_cert.clone(),
            client_key: self.client_key.clone(),
            tls_server_name: self.tls_server_name.clone(),
            tls_skip_verify: self.tls_skip_verify,
            scope: Scope::default()
                .with("dc", self.datacenter.as_ref())
                .with("ns", self.namespace.as_ref())
                .with("partition", self.partition.as_ref()),
            http_auth: self.http_auth.clone(),
        }
    }
}

impl Default for ConsulSettings {
    fn default() -> Self {
        Self {
            address: ApiAddress::default_of(Product::Consul),
            token: None,
            token_file: None,
            login: None,
            ca_file: None,
            ca_path: None,
            client_cert: None,
            client_key: None,
            tls_server_name: None,
            tls_skip_verify: false,
            namespace: None,
            partition: None,
            datacenter: None,
            max_connections: None,
            http_auth: None,
        }
    }
}

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
            Err(SettingsError::HalfClientCertificate(_))
        ));
    }
}
