//! Sends one request and reads one answer: addresses, headers, one redirect, short retries, bounds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use http::header::{HeaderValue, LOCATION, RETRY_AFTER};
use rustify::endpoint::Endpoint;
use url::Url;
use zeroize::Zeroizing;

use super::answer::{Answer, MAX_BODY_BYTES};
use super::backoff::{jitter, spread};
use super::clients::{Clients, Made};
use super::fault::{Reason, VaultFault};
use super::settings::{SettingsError, VaultSettings};
use crate::model::Redacted;
use crate::sources::agent_api::error::without_jargon;
use crate::sources::life::Life;

/// As Go's client: two more tries.
const RETRIES: u32 = 2;

/// A consistency miss (412) heals when the standby has caught up: tens of milliseconds.
const CONSISTENCY_PAUSE: Duration = Duration::from_millis(100);

/// As Go's client waits (1.0 to 1.5 s), a little shorter: whoever asked retries too.
const SERVER_ERROR_PAUSE: Duration = Duration::from_millis(500);

/// The longest `Retry-After` that is waited for here; beyond it the answer is "overloaded".
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(5);

/// One request, before it is known to which server it goes.
#[derive(Clone)]
pub(super) struct Call {
    method: Method,
    /// Below `/v1/`, without a leading slash.
    path: String,
    query: Option<String>,
    body: Option<Zeroizing<Vec<u8>>>,
    /// Whether asking twice does no harm.
    repeatable: bool,
    timeout: Option<Duration>,
    /// Asked in no namespace: Vault answers such paths outside of them alone.
    is_of_server: bool,
}

impl Call {
    /// Takes path, verb and body from one of vaultrs' request types.
    pub(super) fn of<E: Endpoint>(endpoint: &E) -> Result<Self, VaultFault> {
        let method: Method = endpoint.method().into();
        // Some of vaultrs' paths begin with a slash, and two with a tab.
        let path = endpoint.path().trim().trim_start_matches('/').to_owned();
        let unusable = |reason: String| fault(&method, &path, &path, Reason::Unusable(reason));
        let query = endpoint.query().map_err(|error| unusable(error.to_string()))?;
        let body = endpoint
            .body()
            .map_err(|error| unusable(error.to_string()))?
            .map(Zeroizing::new);
        let repeatable = method == Method::GET;
        let call = Self {
            method,
            path,
            query,
            body,
            repeatable,
            timeout: None,
            is_of_server: false,
        };
        call.checked()
    }

    pub(super) fn get(path: String) -> Result<Self, VaultFault> {
        Self {
            method: Method::GET,
            path,
            query: None,
            body: None,
            repeatable: true,
            timeout: None,
            is_of_server: false,
        }
        .checked()
    }

    /// What a server says of itself.
    pub(super) fn get_of_server(path: &str) -> Result<Self, VaultFault> {
        let call = Self::get(path.to_owned())?;
        Ok(Self {
            is_of_server: true,
            ..call
        })
    }

    pub(super) fn with_query(mut self, query: &str) -> Self {
        self.query = Some(query.to_owned());
        self
    }

    /// Replaces the body by these fields.
    pub(super) fn with_fields<'a>(mut self, fields: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let fields: serde_json::Map<String, serde_json::Value> = fields
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        self.body = Some(Zeroizing::new(
            serde_json::Value::Object(fields).to_string().into_bytes(),
        ));
        self
    }

    pub(super) fn repeatable(mut self) -> Self {
        self.repeatable = true;
        self
    }

    pub(super) fn within(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// A path comes from a document; it must not leave the place where it stands.
    fn checked(self) -> Result<Self, VaultFault> {
        // Vault's own limit on a path (storage key) is well above; a longer one is no path.
        let fits = self.path.len() <= 1024 && !self.path.chars().any(char::is_control);
        if fits && self.path.split('/').all(|part| !matches!(part, "" | "." | "..")) {
            return Ok(self);
        }
        let reason = Reason::BadPath(self.path.chars().take(200).collect());
        Err(fault(&self.method, "Vault", &self.path, reason))
    }
}

/// The way to one Vault address.
pub(super) struct Transport {
    base: Url,
    socket: Option<PathBuf>,
    clients: Clients,
    namespace: Option<HeaderValue>,
}

impl Transport {
    pub(super) fn new(settings: &VaultSettings) -> Result<Self, SettingsError> {
        let bad = |reason: &str| SettingsError::Address {
            address: without_user(&settings.address),
            reason: reason.to_owned(),
        };
        let socket = settings.address.strip_prefix("unix://").map(PathBuf::from);
        let address = if socket.is_some() {
            "http://localhost"
        } else {
            settings.address.trim_end_matches('/')
        };
        if !address.contains("://") {
            // What stands before an @ may be a password.
            let address = address.rsplit('@').next().unwrap_or_default();
            return Err(bad(&format!(
                "it does not say how: write \"https://{address}\", or \"http://{address}\" where Vault speaks no TLS"
            )));
        }
        let base = Url::parse(address).map_err(|error| bad(&error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(bad("use http://, https:// or unix://"));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(bad("an address holds no user name or password"));
        }
        if base.host_str().is_none() {
            return Err(bad("it names no host"));
        }
        let clients = Clients::new(settings, base.clone(), socket.clone())?;
        let namespace = match &settings.namespace {
            Some(name) => {
                Some(HeaderValue::from_str(name).map_err(|_| bad("the namespace is no header value"))?)
            }
            None => None,
        };
        Ok(Self {
            base,
            socket,
            clients,
            namespace,
        })
    }

    /// Takes up changed authorities and client certificates now, not within a second.
    pub(super) fn reread_files(&self) {
        self.clients.reread();
    }

    /// The client certificate's file, and how long it holds.
    pub(super) fn identity(&self) -> Option<(&Path, Life)> {
        let life = self.clients.current().trust.identity_life()?;
        Some((self.clients.client_certificate()?, life))
    }

    /// Sends `call`, again where that helps and does no harm. Every answer that is not a matter of the transport
    /// (2xx, 400, 403, 404, ...) comes back as it is.
    pub(super) async fn send(
        &self,
        call: &Call,
        token: Option<&Redacted<String>>,
    ) -> Result<Answer, VaultFault> {
        let mut tries = 0;
        loop {
            let (answer, retry_after) = self.send_once(call, token).await?;
            let pause = match answer.status {
                // Turned away before anything was done: asking again is safe whatever it was.
                412 => Some(CONSISTENCY_PAUSE),
                429 => Some(retry_after.unwrap_or(SERVER_ERROR_PAUSE))
                    .filter(|wait| *wait <= LONGEST_RETRY_AFTER),
                500 | 502 | 504 if call.repeatable => Some(SERVER_ERROR_PAUSE),
                _ => None,
            };
            match pause {
                Some(pause) if tries < RETRIES => {
                    tries += 1;
                    tokio::time::sleep(spread(pause, 0.5, jitter().abs())).await;
                }
                _ => return self.judge(call, answer),
            }
        }
    }

    /// The answer, whatever its status (`sys/health`).
    pub(super) async fn ask(&self, call: &Call) -> Result<Answer, VaultFault> {
        self.send_once(call, None).await.map(|(answer, _)| answer)
    }

    /// The next request goes over a new connection: where one address leads to several servers, perhaps to another one.
    pub(super) fn connect_anew(&self) {
        self.clients.connect_anew();
    }

    pub(super) fn fault(&self, call: &Call, reason: Reason) -> VaultFault {
        let address = match &self.socket {
            Some(path) => format!("unix://{}", path.display()),
            None => self.base.as_str().trim_end_matches('/').to_owned(),
        };
        fault(
            &call.method,
            &format!("{address}/v1/{}", call.path),
            &call.path,
            reason,
        )
    }

    fn judge(&self, call: &Call, answer: Answer) -> Result<Answer, VaultFault> {
        let reason = match answer.status {
            412 => Reason::ServerError {
                status: 412,
                errors: answer.errors(),
            },
            429 => Reason::Overloaded,
            500 | 503 if says_that_nobody_is_active(&answer.errors()) => Reason::NoActiveServer,
            501 => Reason::Uninitialised,
            // Vault gives a reason. A balancer without a server has none, or a web page.
            503 if !answer.errors().is_empty() => Reason::Sealed(answer.errors()),
            472 | 473 => Reason::Standby(format!("it answered {}", answer.status)),
            status if status >= 500 => Reason::ServerError {
                status,
                errors: answer.errors(),
            },
            _ => return Ok(answer),
        };
        Err(self.fault(call, reason))
    }

    async fn send_once(
        &self,
        call: &Call,
        token: Option<&Redacted<String>>,
    ) -> Result<(Answer, Option<Duration>), VaultFault> {
        let made = self.clients.current();
        let url = self.named(self.url(call), &made);
        let response = self.exchange(call, &made.primary, url, token).await?;
        if !matches!(response.status().as_u16(), 301 | 302 | 307 | 308) {
            return self.read(call, response).await;
        }
        let location = response
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok());
        let target = self
            .target(location)
            .map_err(|why| self.fault(call, Reason::Standby(why)))?;
        let client = self
            .clients
            .client_for(&made, &target)
            .map_err(|error| self.fault(call, Reason::Standby(format!("no client for {target}: {error}"))))?;
        let response = self
            .exchange(call, &client, self.named(target, &made), token)
            .await?;
        if response.status().is_redirection() {
            return Err(self.fault(
                call,
                Reason::Standby("the server it points to redirects again".to_owned()),
            ));
        }
        self.read(call, response).await
    }

    async fn exchange(
        &self,
        call: &Call,
        client: &reqwest::Client,
        url: Url,
        token: Option<&Redacted<String>>,
    ) -> Result<reqwest::Response, VaultFault> {
        // Vault Agent and Proxy refuse requests without this header when told to (require_request_header).
        let mut request = client
            .request(call.method.clone(), url)
            .header("X-Vault-Request", "true");
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(token.expose()).map_err(|_| {
                self.fault(
                    call,
                    Reason::TokenInvalid("it has characters no token has".to_owned()),
                )
            })?;
            value.set_sensitive(true);
            request = request.header("X-Vault-Token", value);
        }
        if let Some(namespace) = self.namespace.as_ref().filter(|_| !call.is_of_server) {
            request = request.header("X-Vault-Namespace", namespace.clone());
        }
        if let Some(timeout) = call.timeout {
            request = request.timeout(timeout);
        }
        if let Some(body) = &call.body {
            request = request
                .header("Content-Type", "application/json")
                .body(body.to_vec());
        }
        request
            .send()
            .await
            .map_err(|error| self.fault(call, failure(error)))
    }

    async fn read(
        &self,
        call: &Call,
        mut response: reqwest::Response,
    ) -> Result<(Answer, Option<Duration>), VaultFault> {
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok())
            .map(Duration::from_secs);
        let mut body = Zeroizing::new(Vec::with_capacity(16 * 1024));
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > MAX_BODY_BYTES => {
                    return Err(self.fault(call, Reason::TooLarge));
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => return Ok((Answer { status, body }, retry_after)),
                Err(error) => return Err(self.fault(call, Reason::NoAnswer(root_cause(error)))),
            }
        }
    }

    fn url(&self, call: &Call) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(call.path.split('/'));
        }
        url.set_query(call.query.as_deref().filter(|query| !query.is_empty()));
        url
    }

    /// With a TLS server name, the URL names that; the client's resolver leads it to the real host.
    fn named(&self, mut url: Url, made: &Made) -> Url {
        if let (Some(name), "https") = (made.trust.server_name(), url.scheme()) {
            // Fails on a name that is no host; then the name in the certificate cannot match either.
            let _ = url.set_host(Some(name));
        }
        url
    }

    fn target(&self, location: Option<&str>) -> Result<Url, String> {
        let location = location.ok_or("it names no location")?;
        let url = self
            .base
            .join(location)
            .map_err(|error| format!("{location:?} is no address ({error})"))?;
        match (self.base.scheme(), url.scheme()) {
            (_, "https") => Ok(url),
            // What came over a socket would go over the network in clear, token and all.
            ("http", "http") if self.socket.is_some() => {
                Err("it leads from a unix socket to http".to_owned())
            }
            ("http", "http") => Ok(url),
            _ => Err(format!(
                "it leads from {} to {}",
                self.base.scheme(),
                url.scheme()
            )),
        }
    }
}

fn fault(method: &Method, place: &str, path: &str, reason: Reason) -> VaultFault {
    VaultFault {
        asked: format!("{method} {place}").into(),
        path: path.into(),
        capability: if *method == Method::GET { "read" } else { "update" },
        reason,
        not_sent: false,
        told_apart: false,
    }
}

/// What a standby says that knows of no active server: it looks for one before it does anything with a request. In its
/// request forwarding (500), and where it would redirect (503).
/// An address that is refused is told, and a password in it is not.
fn without_user(address: &str) -> String {
    let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
    match rest.rfind('@') {
        Some(at) => format!("{scheme}://...{}", &rest[at..]),
        None => address.to_owned(),
    }
}

fn says_that_nobody_is_active(errors: &str) -> bool {
    errors.contains("active cluster node not found") || errors.contains("no active Vault instance found")
}

fn failure(error: reqwest::Error) -> Reason {
    if error.is_connect() {
        return Reason::Unreachable(root_cause(error));
    }
    if error.is_timeout() {
        return Reason::NoAnswer("timed out".to_owned());
    }
    Reason::NoAnswer(root_cause(error))
}

/// The innermost text says what happened ("connection refused", "certificate expired"); the outer ones say "error
/// sending request".
fn root_cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    without_jargon(&cause.to_string()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::vault::VaultAuth;

    fn transport(address: &str) -> Result<Transport, SettingsError> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Transport::new(&VaultSettings::new(address, VaultAuth::Proxy))
    }

    #[test]
    fn an_address_without_a_scheme_is_refused_with_what_to_write() {
        for address in ["127.0.0.1:8200", "vault:8200"] {
            let error = transport(address).err().unwrap().to_string();
            assert!(error.contains(&format!("write \"https://{address}\"")), "{error}");
        }
    }

    #[test]
    fn a_password_in_a_refused_address_is_not_told() {
        for (address, told) in [
            ("https://me:s3cret@vault:8200", "https://...@vault:8200"),
            ("https://me:s3@c/ret@vault:8200", "https://...@vault:8200"),
            ("me:s3cret@vault", "://...@vault"),
        ] {
            let said = transport(address).err().unwrap().to_string();
            assert!(said.contains(told) && !said.contains("s3"), "{said}");
        }
    }

    #[test]
    fn paths_from_documents_cannot_leave_their_place() {
        for path in [
            "secret/../sys/seal",
            "secret//x",
            "/secret",
            "a/./b",
            "a/\n",
            "",
            &"x/".repeat(600),
        ] {
            let fault = Call::get(path.to_owned()).err().unwrap();
            assert!(matches!(fault.reason, Reason::BadPath(_)), "{path}");
        }
        let odd = Call::get("secret/data/a b%2e%2e?x#y".to_owned()).unwrap();
        let url = transport("http://127.0.0.1:1/pre").unwrap().url(&odd);
        assert_eq!(
            url.as_str(),
            "http://127.0.0.1:1/pre/v1/secret/data/a%20b%252e%252e%3Fx%23y"
        );
    }

    #[test]
    fn addresses_are_http_https_or_a_socket() {
        assert!(transport("unix:///run/vault.sock").is_ok());
        for bad in ["ftp://x", "vault:8200", "http://user:pass@x", ""] {
            assert!(
                matches!(transport(bad), Err(SettingsError::Address { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_redirect_never_leaves_https() {
        let transport = transport("https://127.0.0.1:8200").unwrap();
        assert!(transport.target(Some("http://127.0.0.1:8200/v1/x")).is_err());
        assert!(transport.target(Some("https://active:8200/v1/x?y=1")).is_ok());
        assert!(transport.target(None).is_err());
    }

    #[test]
    fn what_went_over_a_socket_is_not_sent_over_the_network_in_clear() {
        let transport = transport("unix:///run/vault.sock").unwrap();
        assert!(transport.target(Some("http://active:8200/v1/x")).is_err());
        assert!(transport.target(Some("https://active:8200/v1/x")).is_ok());
    }

    #[test]
    fn a_tls_server_name_stands_in_for_the_host() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut settings = VaultSettings::new("https://10.0.0.1:8200", VaultAuth::Proxy);
        settings.tls_server_name = Some("vault.service.consul".to_owned());
        let transport = Transport::new(&settings).unwrap();
        let call = Call::get("sys/health".to_owned()).unwrap();
        assert_eq!(
            transport
                .named(transport.url(&call), &transport.clients.current())
                .as_str(),
            "https://vault.service.consul:8200/v1/sys/health"
        );
        assert!(
            transport
                .fault(&call, Reason::Overloaded)
                .asked
                .contains("https://10.0.0.1:8200/")
        );
    }
}
