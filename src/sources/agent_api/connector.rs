//! What connections are made with: the transport, whom to trust, and the pair to show.
//!
//! Certificates rotate: short-lived agent certificates every few hours. The files are looked at before a request, at most
//! every [`LOOK_EVERY`]; when one was replaced, every lane gets a new client, whose connections use what the files hold
//! now. Polls on a connection of before go on to their end. Files that do not fit together (a rotation half done) keep
//! the clients of before, and are looked at again.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect;
use rustls::ClientConfig;
use tokio::time::Instant;

use super::settings::{ApiSettings, Endpoint, SettingsError};
use super::streams::Lane;
use super::tls;
use crate::sources::stamp::{Stamp, stamp_of};

/// HTTP clients by lane: each is a pool of connections of its own.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: BTreeMap<usize, reqwest::Client>,
    /// The same lanes' connections for long polls over HTTP/2.
    streams: BTreeMap<usize, Arc<Lane>>,
    tls: Option<Arc<ClientConfig>>,
    looked_at: Instant,
    files: BTreeMap<PathBuf, Stamp>,
    /// So that one broken rotation is one warning.
    warned: bool,
}

impl Lanes {
    /// Reads every file once: what is wrong with them is an error here, later a warning.
    pub(super) fn new(settings: &ApiSettings, first: usize) -> Result<Self, SettingsError> {
        // Before they are read: what is replaced meanwhile is read once more, not missed.
        let files = stamps(settings);
        let tls = tls_of(settings)?;
        Ok(Self {
            lanes: BTreeMap::from([(first, build(settings, tls.as_ref())?)]),
            streams: BTreeMap::new(),
            tls,
            looked_at: Instant::now(),
            files,
            warned: false,
        })
    }

    pub(super) fn client(
        this: &Mutex<Self>,
        settings: &ApiSettings,
        lane: usize,
    ) -> Result<reqwest::Client, SettingsError> {
        let mut lanes = this.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.look_if_due(settings);
        if let Some(client) = lanes.lanes.get(&lane) {
            return Ok(client.clone());
        }
        let client = build(settings, lanes.tls.as_ref())?;
        lanes.lanes.insert(lane, client.clone());
        Ok(client)
    }

    /// The place of a lane's connection for long polls, and the TLS to open it with. None: they go without TLS.
    pub(super) fn streams(
        this: &Mutex<Self>,
        settings: &ApiSettings,
        lane: usize,
    ) -> Option<(Arc<Lane>, Arc<ClientConfig>)> {
        let mut lanes = this.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.look_if_due(settings);
        let tls = lanes.tls.clone()?;
        Some((lanes.streams.entry(lane).or_default().clone(), tls))
    }

    fn look_if_due(&mut self, settings: &ApiSettings) {
        if !settings.address.is_tls() || self.looked_at.elapsed() < LOOK_EVERY {
            return;
        }
        self.looked_at = Instant::now();
        let files = stamps(settings);
        if files == self.files {
            return;
        }
        match tls_of(settings) {
            Ok(tls) => {
                self.tls = tls;
                self.lanes.clear();
                self.streams.clear();
                self.files = files;
                self.warned = false;
                tracing::info!("TLS files for {} read again", settings.product);
            }
            // The stamps are not kept, so that the next look tries again.
            Err(error) => {
                if !self.warned {
                    let reason = error.source().map(ToString::to_string);
                    tracing::warn!(%error, reason, "TLS files for {} unusable, the former ones stay in use", settings.product);
                }
                self.warned = true;
            }
        }
    }
}

/// A file that cannot be looked at has no stamp: a change like any other.
fn stamps(settings: &ApiSettings) -> BTreeMap<PathBuf, Stamp> {
    if !settings.address.is_tls() {
        return BTreeMap::new();
    }
    let in_directory = settings
        .ca_path
        .iter()
        .filter_map(|path| std::fs::read_dir(path).ok());
    let in_directory = in_directory.flatten().flatten().map(|entry| entry.path());
    let named = [&settings.ca_file, &settings.client_cert, &settings.client_key];
    named
        .into_iter()
        .flatten()
        .cloned()
        .chain(in_directory)
        .filter_map(|path| {
            let stamp = stamp_of(&std::fs::metadata(&path).ok()?);
            Some((path, stamp))
        })
        .collect()
}

fn tls_of(settings: &ApiSettings) -> Result<Option<Arc<ClientConfig>>, SettingsError> {
    if !settings.address.is_tls() {
        return Ok(None);
    }
    if let Some(name) = &settings.tls_server_name
        && name.parse::<std::net::IpAddr>().is_ok()
    {
        return Err(SettingsError::ServerName(name.clone()));
    }
    Ok(Some(Arc::new(tls::config(settings)?)))
}

fn build(settings: &ApiSettings, tls: Option<&Arc<ClientConfig>>) -> Result<reqwest::Client, SettingsError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        // A redirect of a cleaned-up key path would turn a delete of one key into a request for another.
        .redirect(redirect::Policy::none())
        // The agent is beside us; a machine-wide HTTP_PROXY is not meant for it, and would see the token.
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        // Long polls are silent: without probes a dead peer is noticed only when the poll's time is over.
        .tcp_keepalive(KEEPALIVE)
        .http2_keep_alive_interval(KEEPALIVE)
        .http2_keep_alive_timeout(KEEPALIVE);
    if let Endpoint::Unix { path } = &settings.address.endpoint {
        builder = builder.unix_socket(path.as_path());
    }
    match (tls, &settings.address.endpoint) {
        (Some(tls), Endpoint::Https { authority }) => {
            builder = builder.tls_backend_preconfigured((**tls).clone());
            if settings.tls_server_name.is_some() {
                builder = builder.dns_resolver(Arc::new(ConnectTo {
                    authority: authority.clone(),
                }));
            }
        }
        // Nobody is verified, so nobody need be trusted.
        _ => builder = builder.tls_certs_only(std::iter::empty()),
    }
    builder.build().map_err(|source| SettingsError::Build {
        product: settings.product,
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

/// A handful of `stat` calls: as often as the token file.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Idle connections count against what Consul grants a client.
const IDLE_CONNECTIONS: usize = 8;

pub(super) const USER_AGENT: &str = concat!("portreeve/", env!("CARGO_PKG_VERSION"));

pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) const KEEPALIVE: Duration = Duration::from_secs(20);
