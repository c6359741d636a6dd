//! Watches a chain and a key in files of this machine.
//!
//! The directories are watched, not the files: renewal tools rename a new file or symlink over the old one. Chain and
//! key are two files that never change at the same instant, so a pair that does not fit is looked at again before it
//! is called a problem.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use zeroize::Zeroizing;

use super::pem::{self, MAX_CHAIN_BYTES};
use super::publisher::{Closed, Publisher};
use crate::model::{CertificateMaterial, Problem, ProblemKind};

/// Between the two renames of a renewal there is mostly less than this.
const QUIET: Duration = Duration::from_millis(100);

/// For how long a pair that does not fit is taken as half written.
const SETTLE: Duration = Duration::from_secs(2);

/// Without events: catches what inotify cannot see (a network mount, a changed target of a symlink).
const POLL: Duration = Duration::from_secs(30);

/// Where there is no inotify at all.
const POLL_WITHOUT_EVENTS: Duration = Duration::from_secs(2);

/// Returns only when nobody listens any more.
pub(super) async fn watch(
    certificate: &Path,
    private_key: &Path,
    refresh: &Notify,
    publisher: &mut Publisher,
) -> Closed {
    let mut changes = FileChanges::of(&[certificate, private_key]);
    loop {
        changes.observe();
        let sent = match settled(certificate, private_key, publisher.now()).await {
            Ok(material) if publisher.good().map(AsRef::as_ref) == Some(&material) => {
                publisher.unchanged().await
            }
            Ok(material) => publisher.material(material).await,
            Err(problem) => publisher.problem(problem).await,
        };
        if let Err(closed) = sent {
            return closed;
        }
        tokio::select! {
            () = changes.next() => {}
            () = refresh.notified() => {}
        }
    }
}

async fn settled(certificate: &Path, private_key: &Path, now: i64) -> Result<CertificateMaterial, Problem> {
    let settling = Settling::begin();
    loop {
        let result = read_pair(certificate, private_key, now).await;
        if result.is_ok() || !settling.goes_on().await {
            return result;
        }
    }
}

/// Files that belong together are read again until they fit, or will not.
pub(super) struct Settling(tokio::time::Instant);

impl Settling {
    pub(super) fn begin() -> Self {
        Self(tokio::time::Instant::now())
    }

    /// False: what does not fit by now will not.
    pub(super) async fn goes_on(&self) -> bool {
        let goes_on = self.0.elapsed() < SETTLE;
        if goes_on {
            tokio::time::sleep(QUIET * 2).await;
        }
        goes_on
    }
}

/// Tells when files may have changed.
pub(super) struct FileChanges {
    paths: Vec<PathBuf>,
    changed: Arc<Notify>,
    events: Option<notify::RecommendedWatcher>,
}

impl FileChanges {
    pub(super) fn of(paths: &[&Path]) -> Self {
        Self {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            changed: Arc::new(Notify::new()),
            events: None,
        }
    }

    /// Called before each read, so that no change falls between; each time, as a directory may come later.
    pub(super) fn observe(&mut self) {
        if self.events.is_none() {
            self.events = observe(&self.paths, self.changed.clone());
        }
    }

    pub(super) async fn next(&self) {
        let poll = if self.events.is_some() {
            POLL
        } else {
            POLL_WITHOUT_EVENTS
        };
        tokio::select! {
            () = self.changed.notified() => tokio::time::sleep(QUIET).await,
            () = tokio::time::sleep(poll) => {}
        }
    }
}

async fn read_pair(certificate: &Path, private_key: &Path, now: i64) -> Result<CertificateMaterial, Problem> {
    let chain = read(certificate, MAX_CHAIN_BYTES).await?;
    let key = read(private_key, MAX_CHAIN_BYTES).await?;
    pem::parse_served(&chain, &key, now)
        .map_err(|fault| fault.problem(&format!("file {}", certificate.display())))
}

pub(super) async fn read(path: &Path, limit: usize) -> Result<Zeroizing<String>, Problem> {
    let failed = |error: std::io::Error| {
        let (kind, fix) = match error.kind() {
            std::io::ErrorKind::NotFound => {
                (ProblemKind::NotFound, "Put the file there, or correct the path.")
            }
            std::io::ErrorKind::PermissionDenied => (
                ProblemKind::Forbidden,
                "Make the file, and its directories, readable for the agent's user.",
            ),
            _ => (ProblemKind::Invalid, "It must be a PEM text file."),
        };
        Problem::new(kind, format!("file {}: {error}", path.display())).with_fix(fix)
    };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut text = Zeroizing::new(String::new());
    // One byte more than allowed: the parser then says that it is too large.
    file.take(limit as u64 + 1)
        .read_to_string(&mut text)
        .await
        .map_err(failed)?;
    Ok(text)
}

/// None: there are no events to be had now (no inotify left, no such directory).
fn observe(paths: &[PathBuf], changed: Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let wake = move |event: notify::Result<notify::Event>| {
        // A read of the files is an event too, and ours would wake us for ever.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            changed.notify_one();
        }
    };
    let mut watcher = notify::recommended_watcher(wake)
        .inspect_err(|error| tracing::warn!(%error, "no file events: certificates are polled"))
        .ok()?;
    let mut directories: Vec<PathBuf> = paths.iter().map(|path| directory(path)).collect();
    directories.dedup();
    for directory in directories {
        if let Err(error) = watcher.watch(&directory, RecursiveMode::NonRecursive) {
            tracing::debug!(%error, directory = %directory.display(), "directory not watched: polled");
            return None;
        }
    }
    Some(watcher)
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
