//! What connections are made with: the transport, whom to trust, and the pair to show.
//!
//! Certificates rotate: short-lived agent certificates every few hours. The files are looked at before a request, at most
//! every [`LOOK_EVERY`]; when one was replaced, every lane gets a new client, whose connections use what the files hold
//! now. Polls on a connection of before go on to their end. Files that do not fit together (a rotation half done) keep
//! the clients of before, and are looked at again.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Identity, redirect};
use tokio::time::Instant;

use super::error::innermost_reason;
use super::product::Product;
use super::settings::{ApiSettings, Endpoint, SettingsError};
use crate::sources::bounded_file;
use crate::sources::stamp::{Stamp, stamp_of};

/// HTTP clients by lane: each is a pool of connections of its own.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: BTreeMap<usize, reqwest::Client>,
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
        Ok(Self {
            lanes: BTreeMap::from([(first, build(settings)?)]),
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
        if settings.address.is_tls() && lanes.looked_at.elapsed() >= LOOK_EVERY {
            lanes.look(settings);
        }
        if let Some(client) = lanes.lanes.get(&lane) {
            return Ok(client.clone());
        }
        let client = build(settings)?;
        lanes.lanes.insert(lane, client.clone());
        Ok(client)
    }

    fn look(&mut self, settings: &ApiSettings) {
        self.looked_at = Instant::now();
        let files = stamps(settings);
        if files == self.files {
            return;
        }
        match build(settings) {
            Ok(_) => {
                self.lanes.clear();
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

fn build(settings: &ApiSettings) -> Result<reqwest::Client, SettingsError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("portreeve/", env!("CARGO_PKG_VERSION")))
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
    if !settings.address.is_tls() {
        // Nobody is verified, so nobody need be trusted: the machine's authorities, read for each of many lanes, would cost
        // a tenth of a megabyte each.
        builder = builder.tls_certs_only(std::iter::empty());
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
            let mut pem = read_file(settings.product, "client certificate", cert)?;
            pem.push(b'\n');
            pem.extend(read_file(settings.product, "client key", key)?);
            let identity = Identity::from_pem(&pem).map_err(|error| SettingsError::Pem {
                product: settings.product,
                what: "client certificate with its key",
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
    builder.build().map_err(|source| SettingsError::Build {
        product: settings.product,
        source,
    })
}

fn roots(settings: &ApiSettings) -> Result<Vec<Certificate>, SettingsError> {
    let mut files = Vec::new();
    files.extend(settings.ca_file.clone());
    if let Some(directory) = &settings.ca_path {
        let fail = |source| SettingsError::File {
            product: settings.product,
            what: "CA directory",
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
        let pem = read_file(settings.product, "CA certificate", &file)?;
        let fail = |reason: String| SettingsError::Pem {
            product: settings.product,
            what: "CA certificate",
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

fn read_file(product: Product, what: &'static str, path: &Path) -> Result<Vec<u8>, SettingsError> {
    bounded_file::read(path, bounded_file::PEM_BYTES).map_err(|source| SettingsError::File {
        product,
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

/// A handful of `stat` calls: as often as the token file.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Idle connections count against what Consul grants a client.
const IDLE_CONNECTIONS: usize = 8;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

const KEEPALIVE: Duration = Duration::from_secs(20);
