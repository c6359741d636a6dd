//! The HTTP client: one per agent of Consul or Nomad, cloned freely, shared by every watch and call.
//!
//! In: settings and [`Call`]s. Out: [`Answer`]s of bounded size, or an [`ApiError`] that explains itself. It knows the
//! transport (TCP, TLS, unix socket, HTTP/2 where ALPN offers it) and the token; it knows no endpoint.

mod exchange;

use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use reqwest::{StatusCode, Version};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use url::Url;

use super::call::{Call, Scope};
use super::connector::Lanes;
use super::error::{ApiError, Block, is_unknown_token};
use super::login::Login;
use super::product::{Product, Server};
use super::recovery::Recovery;
use super::settings::{ApiSettings, Endpoint, SettingsError};
use super::token::TokenSource;
use crate::model::{Problem, ProblemKind};

pub(super) use exchange::{Reply, Token};

/// A cheap handle: clones share connections and token.
#[derive(Clone, Debug)]
pub struct ApiClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: ApiSettings,
    server: Server,
    base: Url,
    token: TokenSource,
    login: Option<Login>,
    lanes: Mutex<Lanes>,
    /// How many have lanes of their own.
    allotted: AtomicUsize,
    /// What the last answer came over.
    spoken: Spoken,
    recovery: Recovery,
    /// Bounds the small reads that guard a disappearance, so that a mass deletion cannot eat the connection limit.
    probes: Semaphore,
}

/// The HTTP version of the last answer.
#[derive(Debug, Default)]
struct Spoken(AtomicU8);

impl Spoken {
    fn note(&self, version: Version) {
        let noted = if version == Version::HTTP_2 { 2 } else { 1 };
        self.0.store(noted, Ordering::Relaxed);
    }

    /// None: there was no answer yet.
    fn version(&self) -> Option<Version> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            2 => Some(Version::HTTP_2),
            _ => Some(Version::HTTP_11),
        }
    }
}

/// What came back, read to its end.
#[derive(Debug)]
pub(in crate::sources) struct Answer {
    pub(in crate::sources) found: bool,
    pub(in crate::sources) index: Option<u64>,
    /// Consul 1.11 and newer say so when a listing lacks what the token may not see.
    pub(in crate::sources) filtered_by_acls: bool,
    pub(in crate::sources) body: Bytes,
    pub(in crate::sources) asked: String,
    pub(in crate::sources) server: Server,
}

impl ApiClient {
    /// Reads certificates and the token file; connects to nothing yet.
    pub fn new(settings: &ApiSettings) -> Result<Self, SettingsError> {
        // reqwest and rs-consul both take the process-wide provider. `main` installs the same one first thing; tests
        // and other users of the library get it here. A second install is refused and harmless.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self(Arc::new(Inner {
            server: Server {
                product: settings.product,
                address: settings.address.to_string().into(),
            },
            base: base_url(settings)?,
            token: TokenSource::new(settings)?,
            login: settings.login.clone().map(Login::new),
            lanes: Mutex::new(Lanes::new(settings, CALL_LANE)?),
            allotted: AtomicUsize::new(0),
            spoken: Spoken::default(),
            recovery: Recovery::default(),
            probes: Semaphore::new(PROBES_IN_FLIGHT),
            settings: settings.clone(),
        })))
    }

    /// As messages name it.
    pub fn address(&self) -> &Arc<str> {
        &self.0.server.address
    }

    /// One connection carries many long polls.
    pub fn is_multiplexed(&self) -> bool {
        self.0.spoken.version() == Some(Version::HTTP_2)
    }

    /// How many long polls share a pool of connections. Where each holds a connection it has a pool of its own: in a shared
    /// one, a poll that opens a connection may be given another's that is freed first, and the one it opened is one too
    /// many. With hundreds that begin at once these passed what Consul grants one client.
    pub(in crate::sources) fn polls_per_lane(&self) -> usize {
        let shared = self.0.settings.address.is_tls() && self.product().speaks_http_2();
        if self.is_multiplexed() || shared {
            STREAMS_PER_LANE
        } else {
            1
        }
    }

    /// The first of [`LANES_EACH`] lanes that nobody else uses: several kinds of watches ask through one client, and each
    /// counts its places from zero.
    pub(super) fn allot_lanes(&self) -> usize {
        CALL_LANE + 1 + self.0.allotted.fetch_add(1, Ordering::Relaxed) * LANES_EACH
    }

    pub fn product(&self) -> Product {
        self.0.settings.product
    }

    pub(super) fn client_certificate(&self) -> Option<&Path> {
        let is_shown = self.0.settings.address.is_tls();
        self.0.settings.client_cert.as_deref().filter(|_| is_shown)
    }

    pub(super) fn login(&self) -> Option<&Login> {
        self.0.login.as_ref()
    }

    pub(in crate::sources) fn token(&self) -> &TokenSource {
        &self.0.token
    }

    pub(super) fn recovery(&self) -> &Recovery {
        &self.0.recovery
    }

    /// A one-shot call.
    pub(in crate::sources) async fn call(&self, call: Call) -> Result<Answer, ApiError> {
        self.call_on(CALL_LANE, &|| call.clone()).await
    }

    /// A small read that decides whether a disappearance is believed; few at a time.
    pub(in crate::sources) async fn probe(&self, call: Call) -> Result<Answer, ApiError> {
        // The semaphore is never closed; without a permit the call is merely unbounded.
        let _permit = self.0.probes.acquire().await.ok();
        self.call(call).await
    }

    fn rights_fix(&self, status: StatusCode, body: &str, call: &Call) -> Option<String> {
        if !is_turned_away(status, body) {
            return None;
        }
        let product = self.0.settings.product;
        if let Some(block) = Block::of(product, body) {
            return Some(block.fix());
        }
        if is_unknown_token(body) {
            return self.token_fix(&call.scope);
        }
        match &call.needs {
            Some(rule) => Some(self.grant(rule, &call.scope)),
            None if self.has_token() => None,
            None => Some(format!("no token is set; put one into {}", self.token_place())),
        }
    }

    /// What to do about a token that is not known there.
    fn token_fix(&self, scope: &Scope) -> Option<String> {
        let product = self.product();
        match self.login() {
            Some(_) if self.is_elsewhere(scope) => Some(
                "a datacenter knows the tokens of its own `primary_datacenter` alone: let both have the same one, or take the \
                 other datacenter out of the documents"
                    .to_owned(),
            ),
            Some(_) => None,
            None => Some(format!(
                "{product} does not know this token (mistyped, deleted or expired): put a valid one into {}",
                self.token_place()
            )),
        }
    }

    /// What to do about a right that is missing.
    fn grant(&self, rule: &str, scope: &Scope) -> String {
        if let Some(login) = self.login() {
            let mut fix = format!("grant it to what the auth method binds the agent to: {rule}");
            // Consul takes a local one off what it hands on, and the agent counts as anybody there.
            if self.is_elsewhere(scope) {
                fix += &format!(
                    ". Another datacenter takes no token by this login, unless the tokens of {:?} are global ones: \
                     -token-locality=global on a method that is created in the primary datacenter",
                    login.method()
                );
            }
            fix
        } else if self.has_token() {
            format!("grant the token: {rule}")
        } else {
            format!(
                "no token is set; put one into {}. It needs: {rule}",
                self.token_place()
            )
        }
    }

    fn is_elsewhere(&self, scope: &Scope) -> bool {
        scope.leaves_datacenter(&self.0.settings.scope)
    }

    fn token_place(&self) -> String {
        match self.0.token.file() {
            Some(file) => file.display().to_string(),
            None => format!(
                "{} (or `token` in the agent's settings; either is read at its start)",
                self.0.settings.product.token_variable()
            ),
        }
    }

    fn has_token(&self) -> bool {
        self.login().is_some() || self.0.token.current().is_some()
    }

    /// Whom the server sees ask, as messages name it.
    pub(in crate::sources) fn asker(&self) -> &'static str {
        if self.has_token() {
            "the token"
        } else {
            "the agent, which has no token,"
        }
    }

    /// Something that the server has and does not show, for want of this rule.
    pub(in crate::sources) fn unseen(&self, message: String, rule: &str, scope: &Scope) -> Problem {
        let kind = if self.has_token() {
            ProblemKind::MissingPermission
        } else {
            ProblemKind::NoToken
        };
        Problem::new(kind, message).with_fix(self.grant(rule, scope))
    }
}

impl Answer {
    pub(in crate::sources) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.body).map_err(|error| self.unreadable(error))
    }

    pub(in crate::sources) fn unreadable(&self, reason: impl ToString) -> ApiError {
        ApiError::Unreadable {
            server: self.server.clone(),
            asked: self.asked.clone(),
            reason: reason.to_string(),
        }
    }
}

#[cfg(any(test, fuzzing))]
impl Answer {
    /// As if Consul had given it.
    pub(in crate::sources) fn of_consul(body: &[u8]) -> Self {
        Self {
            found: true,
            index: None,
            filtered_by_acls: false,
            body: Bytes::copy_from_slice(body),
            asked: String::new(),
            server: Server {
                product: super::product::Product::Consul,
                address: "".into(),
            },
        }
    }
}

/// For its token. Nomad answers 500 to one that has ended.
fn is_turned_away(status: StatusCode, body: &str) -> bool {
    matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED)
        || status == StatusCode::INTERNAL_SERVER_ERROR && is_unknown_token(body)
}

fn base_url(settings: &ApiSettings) -> Result<Url, SettingsError> {
    let address = &settings.address;
    let fail = |reason: String| SettingsError::Address {
        product: settings.product,
        address: address.to_string(),
        reason,
    };
    let text = match &address.endpoint {
        Endpoint::Http { authority } => format!("http://{authority}/{}", address.path_prefix),
        Endpoint::Https { authority } => format!("https://{authority}/{}", address.path_prefix),
        // Consul and Nomad take any Host header on their sockets.
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

/// Calls and the one document watch; watches that are counted use the lanes above it.
pub(in crate::sources) const CALL_LANE: usize = 0;

/// More than anybody uses: only what is used is made.
const LANES_EACH: usize = 1 << 20;

/// Go's HTTP/2 servers allow 250 streams, common proxies 100; the lowest of them.
const STREAMS_PER_LANE: usize = 100;

/// Below Consul's 200 connections per client together with 150 long polls on services and 30 on the mesh.
const PROBES_IN_FLIGHT: usize = 16;
