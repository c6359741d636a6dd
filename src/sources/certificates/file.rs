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
    let changed = Arc::new(Notify::new());
    let mut events = None;
    loop {
        // Before the read, so that no change falls between; again each round, as a directory may come later.
        if events.is_none() {
            events = observe(certificate, private_key, changed.clone());
        }
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
            () = changed.notified() => tokio::time::sleep(QUIET).await,
            () = refresh.notified() => {}
            () = tokio::time::sleep(if events.is_some() { POLL } else { POLL_WITHOUT_EVENTS }) => {}
        }
    }
}

async fn settled(certificate: &Path, private_key: &Path, now: i64) -> Result<CertificateMaterial, Problem> {
    let started = tokio::time::Instant::now();
    loop {
        match read_pair(certificate, private_key, now).await {
            Err(_) if started.elapsed() < SETTLE => tokio::time::sleep(QUIET * 2).await,
            result => return result,
        }
    }
}

async fn read_pair(certificate: &Path, private_key: &Path, now: i64) -> Result<CertificateMaterial, Problem> {
    let chain = read(certificate).await?;
    let key = read(private_key).await?;
    pem::parse(&chain, &key, now).map_err(|fault| fault.problem(&format!("file {}", certificate.display())))
}

pub(super) async fn read(path: &Path) -> Result<Zeroizing<String>, Problem> {
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
    file.take(MAX_CHAIN_BYTES as u64 + 1)
        .read_to_string(&mut text)
        .await
        .map_err(failed)?;
    Ok(text)
}

/// None: there are no events to be had now (no inotify left, no such directory).
fn observe(
    certificate: &Path,
    private_key: &Path,
    changed: Arc<Notify>,
) -> Option<notify::RecommendedWatcher> {
    let wake = move |event: notify::Result<notify::Event>| {
        // A read of the files is an event too, and ours would wake us for ever.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            changed.notify_one();
        }
    };
    let mut watcher = notify::recommended_watcher(wake)
        .inspect_err(|error| tracing::warn!(%error, "no file events: certificates are polled"))
        .ok()?;
    let mut directories: Vec<PathBuf> = [certificate, private_key].into_iter().map(directory).collect();
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
