//! The ACL token, shared by everything that asks one agent, and read again when its file changes.
//!
//! Nomad templates and Vault agents rotate a token by renaming a new file over the old one, so the file is known by its
//! inode as much as by its time. It is looked at before a request, at most every [`LOOK_EVERY`], and at once after a
//! 401 or 403: no task and no inotify needed, and no request goes out with a token older than that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::product::Product;
use super::settings::{ApiSettings, SettingsError};
use crate::model::Redacted;
use crate::sources::bounded_file::{self, TOKEN_BYTES};
use crate::sources::stamp::{Stamp, stamp_of};

/// Where the current token comes from.
#[derive(Debug)]
pub(in crate::sources) struct TokenSource {
    product: Product,
    current: watch::Sender<Option<Arc<Redacted<String>>>>,
    file: Option<TokenFile>,
}

#[derive(Debug)]
struct TokenFile {
    path: PathBuf,
    last_look: Mutex<Look>,
}

#[derive(Debug)]
struct Look {
    at: Instant,
    stamp: Option<Stamp>,
    /// So that one broken file is one warning.
    warned: bool,
}

impl TokenSource {
    /// Reads the token file once: unreadable here is an error, as in the Go client; later it is a warning.
    pub(in crate::sources) fn new(settings: &ApiSettings) -> Result<Self, SettingsError> {
        let mut token = settings.token.clone().map(Arc::new);
        let mut file = None;
        if let Some(path) = &settings.token_file {
            let fail = |source| SettingsError::File {
                product: settings.product,
                what: "token file",
                path: path.clone(),
                source,
            };
            let stamp = stamp_of(&std::fs::metadata(path).map_err(fail)?);
            if let Some(read) = trimmed(bounded_file::read_text(path, TOKEN_BYTES).map_err(fail)?) {
                token = Some(Arc::new(read));
            }
            let look = Look {
                at: Instant::now(),
                stamp: Some(stamp),
                warned: false,
            };
            file = Some(TokenFile {
                path: path.clone(),
                last_look: Mutex::new(look),
            });
        }
        Ok(Self {
            product: settings.product,
            current: watch::Sender::new(token),
            file,
        })
    }

    pub(in crate::sources) fn current(&self) -> Option<Arc<Redacted<String>>> {
        self.current.borrow().clone()
    }

    pub(in crate::sources) fn file(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }

    /// What a login gave. Returns what was there before.
    pub(in crate::sources) fn replace(
        &self,
        token: Option<Arc<Redacted<String>>>,
    ) -> Option<Arc<Redacted<String>>> {
        self.current.send_replace(token)
    }

    /// Fires when a different token was read.
    pub(in crate::sources) fn changes(&self) -> watch::Receiver<Option<Arc<Redacted<String>>>> {
        self.current.subscribe()
    }

    /// Looks at the file if the last look is old, or now if `refused` says that Consul did not take the token.
    pub(in crate::sources) async fn refresh(&self, refused: bool) {
        let Some(file) = &self.file else { return };
        // Whoever finds the lock taken uses what the holder is about to find.
        let Ok(mut look) = file.last_look.try_lock() else {
            return;
        };
        if !refused && look.at.elapsed() < LOOK_EVERY {
            return;
        }
        look.at = Instant::now();
        match read_if_changed(&file.path, look.stamp).await {
            Ok(None) => {}
            Ok(Some((stamp, text))) => {
                look.warned = false;
                // An empty file is a rotation half done: the old token is the better guess. The stamp is not kept,
                // so that the next look reads again even if the writer finishes within one tick of the file's clock.
                let Some(token) = trimmed(text) else { return };
                look.stamp = Some(stamp);
                let changed = self.current.send_if_modified(|current| {
                    let differs = current.as_deref() != Some(&token);
                    if differs {
                        *current = Some(Arc::new(token));
                    }
                    differs
                });
                if changed {
                    tracing::info!(file = %file.path.display(), "{} token read again", self.product);
                }
            }
            Err(error) => {
                if !look.warned {
                    tracing::warn!(file = %file.path.display(), %error, "{} token file unreadable, old token kept", self.product);
                }
                look.warned = true;
            }
        }
    }
}

async fn read_if_changed(path: &Path, known: Option<Stamp>) -> std::io::Result<Option<(Stamp, String)>> {
    let stamp = stamp_of(&tokio::fs::metadata(path).await?);
    if Some(stamp) == known {
        return Ok(None);
    }
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || bounded_file::read_text(&path, TOKEN_BYTES));
    Ok(Some((stamp, read.await.map_err(std::io::Error::other)??)))
}

fn trimmed(text: String) -> Option<Redacted<String>> {
    let whole = Redacted::new(text);
    let token = whole.expose().trim();
    (!token.is_empty()).then(|| Redacted::new(token.to_owned()))
}

/// Often enough that a rotated token is used before the old one's grace ends, rare enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn source(token: Option<&str>, file: &Path) -> Result<TokenSource, SettingsError> {
        TokenSource::new(&ApiSettings {
            token: token.map(|token| Redacted::new(token.to_owned())),
            token_file: Some(file.to_owned()),
            ..ApiSettings::of(Product::Consul)
        })
    }

    fn shown(source: &TokenSource) -> String {
        source
            .current()
            .map(|token| token.expose().clone())
            .unwrap_or_default()
    }

    #[tokio::test]
    async fn a_non_empty_file_wins_and_a_rename_rotates() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "from-file\n").unwrap();
        let source = source(Some("from-env"), &path).unwrap();
        assert_eq!(shown(&source), "from-file");

        let next = dir.path().join("next");
        std::fs::write(&next, "rotated\n").unwrap();
        std::fs::rename(&next, &path).unwrap();
        source.refresh(false).await;
        assert_eq!(shown(&source), "from-file", "looked a moment ago");
        source.refresh(true).await;
        assert_eq!(shown(&source), "rotated");
    }

    #[tokio::test]
    async fn half_written_and_missing_files_keep_the_old_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, " \n").unwrap();
        let source = source(Some("from-env"), &path).unwrap();
        assert_eq!(shown(&source), "from-env");
        std::fs::write(&path, "good").unwrap();
        source.refresh(true).await;
        assert_eq!(shown(&source), "good");
        std::fs::write(&path, "").unwrap();
        source.refresh(true).await;
        assert_eq!(shown(&source), "good");
        std::fs::remove_file(&path).unwrap();
        source.refresh(true).await;
        assert_eq!(shown(&source), "good");
    }

    #[tokio::test]
    async fn a_file_that_is_no_token_is_not_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "x".repeat(TOKEN_BYTES as usize + 1)).unwrap();
        let error = source(None, &path).unwrap_err();
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert!(why.contains("longer than 64 KiB"), "{why}");
        std::fs::write(&path, "good").unwrap();
        let source = source(None, &path).unwrap();
        std::fs::write(&path, "x".repeat(TOKEN_BYTES as usize + 1)).unwrap();
        source.refresh(true).await;
        assert_eq!(shown(&source), "good");
    }

    #[test]
    fn an_unreadable_file_at_start_is_an_error() {
        let error = source(None, Path::new("/nonexistent/token")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/token"));
    }
}
