//! The HTTP client: one per Consul agent, cloned freely, shared by every watch and call.
//!
//! In: settings and [`Call`]s. Out: [`Answer`]s of bounded size, or a [`ConsulError`] that explains itself. It knows the
//! transport (TCP, TLS, unix socket, HTTP/2 where ALPN offers it) and the token; it knows no endpoint of Consul.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Identity, Response, StatusCode, Version, redirect};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use url::Url;

use super::call::{Call, Scope};
use super::error::{ConsulError, TransportFailure, innermost_reason};
use super::settings::{ConsulSettings, Endpoint, SettingsError};
use super::token::TokenSource;

/// A cheap handle: clones share connections and token.
#[derive(Clone, Debug)]
pub struct ConsulClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: ConsulSettings,
    address: Arc<str>,
    base: Url,
    scope: Scope,
    token: TokenSource,
    lanes: Mutex<BTreeMap<usize, reqwest::Client>>,
    /// The last answer came over HTTP/2.
    multiplexed: AtomicBool,
    /// Bounds the small reads that guard a disappearance, so that a mass deletion cannot eat the connection limit.
    probes: Semaphore,
}

/// What came back, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) found: bool,
    pub(super) index: Option<u64>,
    /// Consul 1.11 and newer say so when a listing lacks what the token may not see.
    pub(super) filtered_by_acls: bool,
    pub(super) body: Bytes,
    pub(super) asked: String,
    address: Arc<str>,
}

impl ConsulClient {
    /// Reads certificates and the token file; connects to nothing yet.
    pub fn new(settings: &ConsulSettings) -> Result<Self, SettingsError> {
        // reqwest and rs-consul both take the process-wide provider. `main` installs the same one first thing; tests
        // and other users of the library get it here. A second install is refused and harmless.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let first_lane = build(settings)?;
        Ok(Self(Arc::new(Inner {
            address: settings.address.to_string().into(),
            base: base_url(settings)?,
            scope: Scope {
                datacenter: settings.datacenter.clone(),
                namespace: settings.namespace.clone(),
                partition: settings.partition.clone(),
            },
            token: TokenSource::new(settings)?,
            lanes: Mutex::new(BTreeMap::from([(CALL_LANE, first_lane)])),
            multiplexed: AtomicBool::new(false),
            probes: Semaphore::new(PROBES_IN_FLIGHT),
            settings: settings.clone(),
        })))
    }

    /// As messages name it.
    pub fn address(&self) -> &Arc<str> {
        &self.0.address
    }

    /// One connection carries many long polls.
    pub fn is_multiplexed(&self) -> bool {
        self.0.multiplexed.load(Ordering::Relaxed)
    }

    pub(super) fn settings(&self) -> &ConsulSettings {
        &self.0.settings
    }

    pub(super) fn token(&self) -> &TokenSource {
        &self.0.token
    }

    /// A one-shot call.
    pub(super) async fn call(&self, call: Call) -> Result<Answer, ConsulError> {
        self.call_on(CALL_LANE, call).await
    }

    /// A small read that decides whether a disappearance is believed; few at a time.
    pub(super) async fn probe(&self, call: Call) -> Result<Answer, ConsulError> {
        // The semaphore is never closed; without a permit the call is merely unbounded.
        let _permit = self.0.probes.acquire().await.ok();
        self.call(call).await
    }

    /// A call on one of several connection pools. HTTP/2 servers cap the streams of one connection (Go: 250, proxies:
    /// 100) and a stream over the cap waits for a long poll to end, so long polls are spread over lanes.
    pub(super) async fn call_on(&self, lane: usize, call: Call) -> Result<Answer, ConsulError> {
        self.0.token.refresh(false).await;
        let asked = call.to_string();
        let Some(url) = call.url(&self.0.base, &self.0.scope) else {
            let reason = "a path segment is empty, `.` or `..`".to_owned();
            return Err(ConsulError::NotSent { asked, reason });
        };
        let http = match self.lane(lane) {
            Ok(http) => http,
            Err(error) => {
                return Err(ConsulError::NotSent {
                    asked,
                    reason: error.to_string(),
                });
            }
        };
        let mut request = http.request(call.method.clone(), url).timeout(call.timeout);
        if let Some(token) = self.0.token.current() {
            request = request.header(TOKEN_HEADER, secret_header(token.expose(), &asked)?);
        }
        if let Some((user, password)) = &self.0.settings.http_auth {
            request = request.basic_auth(user, Some(password.expose()));
        }
        if let Some(body) = call.body.clone() {
            request = request.body(body);
        }
        let response = request
            .send()
            .await
            .map_err(|error| self.transport_error(&asked, error))?;
        self.0
            .multiplexed
            .store(response.version() == Version::HTTP_2, Ordering::Relaxed);
        self.read(response, &call, asked).await
    }

    async fn read(&self, mut response: Response, call: &Call, asked: String) -> Result<Answer, ConsulError> {
        let status = response.status();
        let index = header(&response, "x-consul-index")
            .and_then(|value| value.parse().ok())
            .filter(|index| *index > 0);
        let found = status == StatusCode::OK;
        let is_answer = found || (call.not_found_is_answer && status == StatusCode::NOT_FOUND);
        if !is_answer {
            let retry_after = header(&response, "retry-after").and_then(|value| value.parse().ok());
            let body = self.error_text(&mut response).await;
            if matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) {
                self.0.token.refresh(true).await;
            }
            return Err(ConsulError::Status {
                address: self.0.address.clone(),
                status: status.as_u16(),
                index,
                retry_after: retry_after.map(Duration::from_secs),
                fix: self.rights_fix(status, &body, call),
                asked,
                body,
            });
        }
        let filtered_by_acls = header(&response, "x-consul-results-filtered-by-acls") == Some("true");
        let mut body = BytesMut::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.transport_error(&asked, error))?
        {
            if body.len() + chunk.len() > call.max_body {
                return Err(ConsulError::TooLarge {
                    address: self.0.address.clone(),
                    asked,
                    limit: call.max_body,
                });
            }
            body.extend_from_slice(&chunk);
        }
        let address = self.0.address.clone();
        Ok(Answer {
            found,
            index,
            filtered_by_acls,
            body: body.freeze(),
            asked,
            address,
        })
    }

    /// The start of a plain-text error, fit for one line of a message.
    async fn error_text(&self, response: &mut Response) -> String {
        let mut bytes = BytesMut::new();
        while bytes.len() < ERROR_BODY {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    bytes.extend_from_slice(&chunk[..chunk.len().min(ERROR_BODY - bytes.len())])
                }
                Ok(None) | Err(_) => break,
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        text.trim()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect()
    }

    fn rights_fix(&self, status: StatusCode, body: &str, call: &Call) -> Option<String> {
        if !matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) {
            return None;
        }
        let place = match self.0.token.file() {
            Some(file) => file.display().to_string(),
            None => "CONSUL_HTTP_TOKEN".to_owned(),
        };
        if body.contains("ACL not found") {
            return Some(format!(
                "Consul no longer knows this token (deleted or expired): put a valid one into {place}"
            ));
        }
        let rule = call.needs.as_ref()?;
        Some(match self.0.token.current() {
            Some(_) => format!("grant the token: {rule}"),
            None => format!("no token is set; put one into {place} that may: {rule}"),
        })
    }

    fn transport_error(&self, asked: &str, error: reqwest::Error) -> ConsulError {
        ConsulError::Transport {
            address: self.0.address.clone(),
            asked: asked.to_owned(),
            failure: TransportFailure::of(&error),
            reason: innermost_reason(&error),
            source: error.without_url(),
        }
    }

    fn lane(&self, lane: usize) -> Result<reqwest::Client, SettingsError> {
        let mut lanes = self.0.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = lanes.get(&lane) {
            return Ok(client.clone());
        }
        let client = build(&self.0.settings)?;
        lanes.insert(lane, client.clone());
        Ok(client)
    }
}

impl Answer {
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, ConsulError> {
        serde_json::from_slice(&self.body).map_err(|error| self.unreadable(error))
    }

    pub(super) fn unreadable(&self, reason: impl ToString) -> ConsulError {
        ConsulError::Unreadable {
            address: self.address.clone(),
            asked: self.asked.clone(),
            reason: reason.to_string(),
        }
    }
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn secret_header(token: &str, asked: &str) -> Result<http::HeaderValue, ConsulError> {
    let mut value = http::HeaderValue::from_str(token).map_err(|_| ConsulError::NotSent {
        asked: asked.to_owned(),
        reason: "the Consul token holds characters that no header may carry".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn base_url(settings: &ConsulSettings) -> Result<Url, SettingsError> {
    let address = &settings.address;
    let fail = |reason: String| SettingsError::Address {
        address: address.to_string(),
        reason,
    };
    let text = match &address.endpoint {
        Endpoint::Http { authority } => format!("http://{authority}/{}", address.path_prefix),
        Endpoint::Https { authority } => format!("https://{authority}/{}", address.path_prefix),
        // Consul takes any Host header on its socket.
        Endpoint::Unix { .. } => "http://localhost/".to_owned(),
    };
    let mut url = Url::parse(&text).map_err(|error| fail(error.to_string()))?;
    if let (Some(name), true) = (&settings.tls_server_name, address.is_tls()) {
        // SNI and verification follow the URL's host; where to connect is the resolver's business below.
        url.set_host(Some(name))
            .map_err(|error| fail(error.to_string()))?;
    }
    Ok(url)
}

fn build(settings: &ConsulSettings) -> Result<reqwest::Client, SettingsError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("portreeve/", env!("CARGO_PKG_VERSION")))
        // A redirect of a cleaned-up key path would turn a delete of one key into a request for another.
        .redirect(redirect::Policy::none())
        // The agent is beside us; a machine-wide HTTP_PROXY is not meant for it, and would see the token.
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        // Long polls are silent: without probes a dead peer is noticed only when the poll's time is over.
        .tcp_keepalive(KEEPALIVE)
        .http2_keep_alive_interval(KEEPALIVE)
        .http2_keep_alive_timeout(KEEPALIVE);
    if let Endpoint::Unix { path } = &settings.address.endpoint {
        builder = builder.unix_socket(path.as_path());
    }
    if let Endpoint::Https { authority } = &settings.address.endpoint {
        let roots = roots(settings)?;
        if !roots.is_empty() {
            builder = builder.tls_certs_only(roots);
        }
        if settings.tls_skip_verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        if let (Some(cert), Some(key)) = (&settings.client_cert, &settings.client_key) {
            let mut pem = read_file("the Consul client certificate", cert)?;
            pem.push(b'\n');
            pem.extend(read_file("the Consul client key", key)?);
            let identity = Identity::from_pem(&pem).map_err(|error| SettingsError::Pem {
                what: "the Consul client certificate with its key",
                path: cert.clone(),
                reason: innermost_reason(&error),
            })?;
            builder = builder.identity(identity);
        }
        if let Some(name) = &settings.tls_server_name {
            if name.parse::<std::net::IpAddr>().is_ok() {
                return Err(SettingsError::ServerName(name.clone()));
            }
            builder = builder.dns_resolver(Arc::new(ConnectTo {
                authority: authority.clone(),
            }));
        }
    }
    builder.build().map_err(SettingsError::Build)
}

fn roots(settings: &ConsulSettings) -> Result<Vec<Certificate>, SettingsError> {
    let mut files = Vec::new();
    files.extend(settings.ca_file.clone());
    if let Some(directory) = &settings.ca_path {
        let fail = |source| SettingsError::File {
            what: "the Consul CA directory",
            path: directory.clone(),
            source,
        };
        for entry in std::fs::read_dir(directory).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            if path.is_file() {
                files.push(path);
            }
        }
    }
    let mut roots = Vec::new();
    for file in files {
        let pem = read_file("the Consul CA certificate", &file)?;
        let fail = |reason: String| SettingsError::Pem {
            what: "the Consul CA certificate",
            path: file.clone(),
            reason,
        };
        let parsed = Certificate::from_pem_bundle(&pem).map_err(|error| fail(innermost_reason(&error)))?;
        if parsed.is_empty() {
            return Err(fail("no certificate found".to_owned()));
        }
        roots.extend(parsed);
    }
    Ok(roots)
}

fn read_file(what: &'static str, path: &Path) -> Result<Vec<u8>, SettingsError> {
    std::fs::read(path).map_err(|source| SettingsError::File {
        what,
        path: path.to_owned(),
        source,
    })
}

/// Leads every name to one place: the URL carries the name to verify, this the address to dial.
struct ConnectTo {
    authority: String,
}

impl Resolve for ConnectTo {
    fn resolve(&self, _name: Name) -> Resolving {
        let authority = self.authority.clone();
        Box::pin(async move {
            // The port is the URL's; any will do for the look-up.
            let host = match authority.rsplit_once(':') {
                Some((host, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
                _ => authority,
            };
            let found: Vec<SocketAddr> = tokio::net::lookup_host(format!("{host}:0")).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Calls and the one document watch; service watches use the lanes above it.
pub(super) const CALL_LANE: usize = 0;

const TOKEN_HEADER: &str = "x-consul-token";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

const KEEPALIVE: Duration = Duration::from_secs(20);

/// Consul's error texts are a line; a proxy's error page is not worth more.
const ERROR_BODY: usize = 1024;

/// Together with 150 long polls well below Consul's 200 connections per client.
const PROBES_IN_FLIGHT: usize = 16;
