//! The HTTP clients to one Vault, made anew when the files behind them change: authorities and client certificates
//! rotate, and an agent runs for months.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use url::Url;

use super::settings::{SettingsError, VaultSettings};
use super::tls::{FileStamp, Route, Trust, stamps};

/// How often the files are looked at: a `stat` for each.
const LOOK: Duration = Duration::from_secs(1);

/// While Vault says that it does not serve: a new connection at most so often.
const CONNECT_ANEW: Duration = Duration::from_secs(5);

/// A cluster has a handful of servers; more names than this come from a broken redirect.
const MOST_OTHERS: usize = 16;

pub(super) struct Clients {
    settings: VaultSettings,
    base: Url,
    socket: Option<PathBuf>,
    current: Mutex<Current>,
}

struct Current {
    made: Arc<Made>,
    stamps: Vec<FileStamp>,
    looked: Instant,
    connected: Instant,
    /// Said once: the files are looked at every second.
    failure: Option<String>,
}

/// Clients of one state of the files.
pub(super) struct Made {
    pub(super) trust: Trust,
    pub(super) primary: reqwest::Client,
    /// For hosts that a standby pointed to, where the TLS server name stands for another host.
    others: Mutex<HashMap<String, reqwest::Client>>,
}

impl Clients {
    pub(super) fn new(
        settings: &VaultSettings,
        base: Url,
        socket: Option<PathBuf>,
    ) -> Result<Self, SettingsError> {
        let stamps = stamps(settings);
        let made = Arc::new(make(settings, &base, socket.as_ref())?);
        Ok(Self {
            settings: settings.clone(),
            base,
            socket,
            current: Mutex::new(Current {
                made,
                stamps,
                looked: Instant::now(),
                connected: Instant::now(),
                failure: None,
            }),
        })
    }

    pub(super) fn client_certificate(&self) -> Option<&Path> {
        self.settings.client_cert.as_deref()
    }

    pub(super) fn current(&self) -> Arc<Made> {
        self.read(LOOK)
    }

    /// Looks at the files whenever they were looked at last.
    pub(super) fn reread(&self) {
        self.read(Duration::ZERO);
    }

    /// Leaves the connections that there are to whoever uses them. A pool keeps one for as long as it is asked for
    /// something, and the address is resolved for a new one only.
    pub(super) fn connect_anew(&self) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.connected.elapsed() < CONNECT_ANEW {
            return;
        }
        current.connected = Instant::now();
        // What the files hold now is the next look's matter: files that do not fit are told there.
        if let Ok(made) = make(&self.settings, &self.base, self.socket.as_ref()) {
            current.made = Arc::new(made);
        }
    }

    fn read(&self, at_most_every: Duration) -> Arc<Made> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() < at_most_every {
            return current.made.clone();
        }
        current.looked = Instant::now();
        let stamps = stamps(&self.settings);
        if stamps == current.stamps {
            return current.made.clone();
        }
        match make(&self.settings, &self.base, self.socket.as_ref()) {
            Ok(made) => {
                tracing::info!("TLS files for Vault read again");
                current.made = Arc::new(made);
                current.stamps = stamps;
                current.failure = None;
            }
            // Certificate and key are two files: between their two writes they do not fit. What was read before stays.
            Err(error) => {
                let error = error.to_string();
                if current.failure.as_ref() != Some(&error) {
                    tracing::warn!(%error, "changed TLS files for Vault not used");
                    current.failure = Some(error);
                }
            }
        }
        current.made.clone()
    }

    /// The client for a host that a standby named.
    pub(super) fn client_for(&self, made: &Made, target: &Url) -> Result<reqwest::Client, SettingsError> {
        let host = target.host_str().unwrap_or_default();
        let https = target.scheme() == "https";
        let shared = self.socket.is_none()
            && (made.trust.server_name().is_none() || Some(host) == self.base.host_str())
            && self.base.scheme() == target.scheme();
        if shared {
            return Ok(made.primary.clone());
        }
        let key = format!("{}://{host}", target.scheme());
        let mut others = made.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = others.get(&key) {
            return Ok(client.clone());
        }
        if others.len() >= MOST_OTHERS {
            others.clear();
        }
        let client = made.trust.client(&Route::Host(host), https)?;
        others.insert(key, client.clone());
        Ok(client)
    }
}

fn make(settings: &VaultSettings, base: &Url, socket: Option<&PathBuf>) -> Result<Made, SettingsError> {
    let trust = Trust::read(settings)?;
    let primary = match socket {
        Some(path) => trust.client(&Route::Unix(path), false)?,
        None => trust.client(
            &Route::Host(base.host_str().unwrap_or_default()),
            base.scheme() == "https",
        )?,
    };
    Ok(Made {
        trust,
        primary,
        others: Mutex::default(),
    })
}
