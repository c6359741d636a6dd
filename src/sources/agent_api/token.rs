//! The ACL token, shared by everything that asks one agent, and read again when its file changes.
//!
//! Nomad templates and Vault agents rotate a token by renaming a new file over the old one, so the file is known by its
//! inode as much as by its time. It is looked at before a request, at most every [`LOOK_EVERY`], and at once after a
//! 401 or 403: no task and no inotify needed, and no request goes out with a token older than that.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as PlainMutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::product::Product;
use super::settings::{ApiSettings, SettingsError};
use crate::model::{Problem, ProblemKind, Redacted};
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
    /// Why what it holds now is of no use. A plain mutex: never held across an await.
    fault: PlainMutex<Option<String>>,
}

#[derive(Debug)]
struct Look {
    at: Instant,
    stamp: Option<Stamp>,
    /// The look before found nothing in it: no longer a rotation half done.
    was_empty: bool,
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
            let read = trimmed(bounded_file::read_text(path, TOKEN_BYTES).map_err(fail)?);
            let found = TokenFile {
                path: path.clone(),
                last_look: Mutex::new(Look {
                    at: Instant::now(),
                    // One without a token is read again.
                    stamp: read.is_some().then_some(stamp),
                    was_empty: read.is_none(),
                }),
                fault: PlainMutex::default(),
            };
            match read {
                Some(read) => token = Some(Arc::new(read)),
                None => found.tell(settings.product, EMPTY.to_owned()),
            }
            file = Some(found);
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

    /// What is wrong with its file now.
    pub(in crate::sources) fn problem(&self) -> Option<Problem> {
        let file = self.file.as_ref()?;
        let fault = file
            .fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()?;
        let token = match self.current() {
            Some(_) => "the token from before is used on, and an agent that starts would not have it",
            None => "there is no token",
        };
        Some(
            Problem::new(
                ProblemKind::Invalid,
                format!(
                    "{} token file {}: {fault}; {token}",
                    self.product,
                    file.path.display()
                ),
            )
            .with_fix("put a token into it; it is read again by itself"),
        )
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
            Ok(None) => file.is_fine(),
            Ok(Some((stamp, text))) => {
                // An empty file is a rotation half done: the old token is the better guess. The stamp is not kept,
                // so that the next look reads again even if the writer finishes within one tick of the file's clock.
                let Some(token) = trimmed(text) else {
                    if std::mem::replace(&mut look.was_empty, true) {
                        file.tell(self.product, EMPTY.to_owned());
                    }
                    return;
                };
                look.was_empty = false;
                look.stamp = Some(stamp);
                file.is_fine();
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
            Err(error) => file.tell(self.product, format!("unreadable: {error}")),
        }
    }
}

impl TokenFile {
    /// Said once in the log, as the file is looked at every other second.
    fn tell(&self, product: Product, fault: String) {
        let mut told = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if told.as_ref() != Some(&fault) {
            tracing::warn!(
                file = %self.path.display(),
                fix = "put a token into it; it is read again by itself",
                "{product} token file {fault}; a token that was read before stays in use"
            );
            *told = Some(fault);
        }
    }

    fn is_fine(&self) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

const EMPTY: &str = "holds no token";

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
        let problem = || {
            source
                .problem()
                .map(|problem| problem.to_string())
                .unwrap_or_default()
        };
        assert!(problem().contains("holds no token"), "{}", problem());
        source.refresh(true).await;
        assert_eq!((shown(&source), problem()), ("good".to_owned(), String::new()));
        std::fs::write(&path, "").unwrap();
        source.refresh(true).await;
        assert_eq!((shown(&source), problem()), ("good".to_owned(), String::new()));
        // Nobody is writing it any more.
        source.refresh(true).await;
        assert_eq!(shown(&source), "good");
        assert!(
            problem().contains("the token from before is used on"),
            "{}",
            problem()
        );
        std::fs::remove_file(&path).unwrap();
        source.refresh(true).await;
        assert_eq!(shown(&source), "good");
        assert!(problem().contains("unreadable"), "{}", problem());
        std::fs::write(&path, "good").unwrap();
        source.refresh(true).await;
        assert_eq!((shown(&source), problem()), ("good".to_owned(), String::new()));
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
