//! Reads what a login needs from files, within bounds, and without copies left behind; and sees when they change.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use zeroize::Zeroizing;

use super::client::Shared;
use super::fault::{Reason, VaultFault};
use super::tls::{self, FileStamp};
use super::transport::Call;
use crate::model::Redacted;

/// A JWT with many claims is 4 KB; headers end at 8 KB in most proxies.
const MAX_CREDENTIAL_BYTES: u64 = 16 * 1024;

/// How often a credential file is looked at: one `stat` of a local file.
const FILE_POLL: Duration = Duration::from_secs(1);

pub(super) async fn read(shared: &Shared, kind: &str, path: &Path) -> Result<Redacted<String>, VaultFault> {
    let failed = |reason: String| fault(shared, kind, &path.display().to_string(), reason);
    let file = tokio::fs::File::open(path)
        .await
        .map_err(|error| failed(error.to_string()))?;
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_CREDENTIAL_BYTES)
        .read_to_string(&mut text)
        .await
        .map_err(|error| failed(error.to_string()))?;
    match text.trim() {
        "" => Err(failed("it is empty".to_owned())),
        trimmed => Ok(Redacted::new(trimmed.to_owned())),
    }
}

/// A credential that is there and no good.
pub(super) fn unusable(shared: &Shared, place: &str, what: String) -> VaultFault {
    fault(shared, "AWS", place, what)
}

fn fault(shared: &Shared, kind: &str, place: &str, reason: String) -> VaultFault {
    let reason = Reason::Credential {
        path: place.to_owned(),
        reason,
    };
    match Call::get(format!("auth ({kind})")) {
        Ok(call) => shared.transport.fault(&call, reason),
        Err(fault) => VaultFault { reason, ..fault },
    }
}

/// Identity of a credential file's content, without reading it.
pub(super) struct Stamp {
    path: Option<PathBuf>,
    seen: FileStamp,
}

impl Stamp {
    pub(super) async fn of(path: Option<&Path>) -> Self {
        let seen = match path {
            Some(path) => Self::look(path).await,
            None => None,
        };
        Self {
            path: path.map(Path::to_owned),
            seen,
        }
    }

    pub(super) async fn changed(&self) -> bool {
        match &self.path {
            Some(path) => Self::look(path).await != self.seen,
            None => false,
        }
    }

    pub(super) async fn wait_for_change(&self) {
        loop {
            tokio::time::sleep(FILE_POLL).await;
            if self.changed().await {
                return;
            }
        }
    }

    async fn look(path: &Path) -> FileStamp {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || tls::stamp(&path))
            .await
            .ok()
            .flatten()
    }
}
