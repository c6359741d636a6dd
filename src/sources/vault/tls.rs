//! Builds the HTTP clients: whom to trust, which name to expect, and over which socket.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, ClientBuilder, Identity};
use zeroize::Zeroizing;

use super::settings::{FileError, SettingsError, VaultSettings};
use crate::sources::bounded_file;
use crate::sources::life::Life;
use crate::sources::stamp::{Stamp, stamp_of};

/// What one client connects to.
pub(super) enum Route<'a> {
    Unix(&'a Path),
    /// Whatever host the URL names, except that the TLS server name stands for this one.
    Host(&'a str),
}

/// Everything read from files once, so that a client for a redirect needs no file.
pub(super) struct Trust {
    authorities: Vec<Certificate>,
    only_these: bool,
    identity: Option<Identity>,
    identity_life: Option<Life>,
    server_name: Option<String>,
    skip_verify: bool,
    timeouts: super::VaultTimeouts,
}

impl Trust {
    pub(super) fn read(settings: &VaultSettings) -> Result<Self, SettingsError> {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // reqwest would panic.
            return Err(SettingsError::NoCryptoProvider);
        }
        let mut authorities = Vec::new();
        if let Some(text) = &settings.ca_pem {
            authorities.extend(bundle(
                text.as_bytes(),
                "VAULT_CACERT_BYTES",
                "certificate authorities",
            )?);
        }
        // As Go's client: a CA file hides the CA directory.
        if let Some(path) = &settings.ca_file {
            authorities.extend(bundle_file(path)?);
        } else if let Some(directory) = &settings.ca_path {
            for path in files_of(directory)? {
                authorities.extend(bundle_file(&path)?);
            }
        }
        let only_these =
            settings.ca_pem.is_some() || settings.ca_file.is_some() || settings.ca_path.is_some();
        Ok(Self {
            authorities,
            only_these,
            identity: identity(settings)?,
            identity_life: settings.client_cert.as_deref().and_then(life_of),
            server_name: settings.tls_server_name.clone(),
            skip_verify: settings.tls_skip_verify,
            timeouts: settings.timeouts,
        })
    }

    /// Of the client certificate.
    pub(super) fn identity_life(&self) -> Option<Life> {
        self.identity_life
    }

    pub(super) fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    pub(super) fn client(&self, route: &Route<'_>, https: bool) -> Result<reqwest::Client, SettingsError> {
        let mut builder = ClientBuilder::new()
            .tls_backend_rustls()
            // The transport follows at most one redirect itself: never from https to http.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(self.timeouts.connect)
            .timeout(self.timeouts.request)
            .user_agent(concat!("portreeve/", env!("CARGO_PKG_VERSION")));
        if !https {
            // Loading the system's authorities for plain HTTP fails where there are none (reqwest 2988).
            builder = builder.tls_certs_only(Vec::new());
        } else if self.only_these {
            builder = builder.tls_certs_only(self.authorities.iter().cloned());
        }
        if let Some(identity) = &self.identity {
            builder = builder.identity(identity.clone());
        }
        if self.skip_verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        match route {
            Route::Unix(path) => builder = builder.unix_socket(*path).no_proxy(),
            Route::Host(host) => {
                if is_loopback(host) {
                    builder = builder.no_proxy();
                }
                if let Some(name) = self.server_name.as_ref().filter(|_| https) {
                    builder = builder.dns_resolver(StandIn {
                        name: name.clone(),
                        host: (*host).into(),
                    });
                }
            }
        }
        builder
            .build()
            .map_err(|error| SettingsError::Client(error.without_url().to_string()))
    }
}

/// Resolves the TLS server name to the address of the real host: so it is both sent as SNI and verified.
struct StandIn {
    name: String,
    host: Arc<str>,
}

impl Resolve for StandIn {
    fn resolve(&self, name: Name) -> Resolving {
        let host = if name.as_str().eq_ignore_ascii_case(&self.name) {
            self.host.clone()
        } else {
            Arc::from(name.as_str())
        };
        Box::pin(async move {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let addresses: Vec<_> = tokio::net::lookup_host((bare, 0)).await?.collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn identity(settings: &VaultSettings) -> Result<Option<Identity>, SettingsError> {
    let (certificate, key) = match (&settings.client_cert, &settings.client_key) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        _ => return Err(SettingsError::ClientCertificateHalf),
    };
    let purpose = "client certificate for Vault";
    let mut text = Zeroizing::new(read(certificate, purpose)?);
    text.push(b'\n');
    text.extend_from_slice(&Zeroizing::new(read(key, purpose)?));
    Identity::from_pem(&text)
        .map(Some)
        .map_err(|_| SettingsError::Pem {
            path: certificate.display().to_string(),
            purpose,
        })
}

/// Of the first certificate of a PEM file.
fn life_of(path: &Path) -> Option<Life> {
    let text = std::fs::read(path).ok()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&text).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let validity = certificate.validity();
    Some(Life {
        start: validity.not_before.timestamp(),
        end: validity.not_after.timestamp(),
    })
}

/// Identity of a file's content, without reading it: inode, size, time. None: it is not there.
pub(super) type FileStamp = Option<Stamp>;

/// None: there is none. A symlink is followed.
pub(super) fn stamp(path: &Path) -> FileStamp {
    Some(stamp_of(&std::fs::metadata(path).ok()?))
}

/// Of every file that the clients are made from.
pub(super) fn stamps(settings: &VaultSettings) -> Vec<FileStamp> {
    let named = [&settings.ca_file, &settings.client_cert, &settings.client_key];
    let mut stamps: Vec<FileStamp> = named.into_iter().flatten().map(|path| stamp(path)).collect();
    if let (None, Some(directory)) = (&settings.ca_file, &settings.ca_path) {
        stamps.extend(
            files_of(directory)
                .unwrap_or_default()
                .iter()
                .map(|path| stamp(path)),
        );
    }
    stamps
}

fn bundle_file(path: &Path) -> Result<Vec<Certificate>, SettingsError> {
    let purpose = "certificate authorities for Vault";
    bundle(&read(path, purpose)?, &path.display().to_string(), purpose)
}

fn bundle(text: &[u8], path: &str, purpose: &'static str) -> Result<Vec<Certificate>, SettingsError> {
    match Certificate::from_pem_bundle(text) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(SettingsError::Pem {
            path: path.to_owned(),
            purpose,
        }),
    }
}

fn files_of(directory: &Path) -> Result<Vec<PathBuf>, SettingsError> {
    let failed = |error: std::io::Error| SettingsError::File {
        path: directory.display().to_string(),
        purpose: "certificate authorities for Vault",
        source: FileError(error.to_string()),
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path, purpose: &'static str) -> Result<Vec<u8>, SettingsError> {
    bounded_file::read(path, bounded_file::PEM_BYTES).map_err(|error| SettingsError::File {
        path: path.display().to_string(),
        purpose,
        source: FileError(error.to_string()),
    })
}
