//! A directory of documents on this machine, watched: `agent -config <dir>`.
//!
//! In: a path, as the operator named it. Out: `DocumentsUpdate`s. Every `*.hcl` and `*.json` below it is a document; hidden
//! files and what editors leave behind are not. Editors and Nomad templates replace files by renaming, and deployments
//! swap a symlink to the whole directory, so directories are watched, not files, and the parent of the root with them.
//! Events are a hint to look again; what is said comes from looking. A slow rescan is the net below.

mod scan;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::model::{Document, DocumentId, DocumentsUpdate, Observation, Problem, ProblemKind};
use crate::sources::SourceHealth;
pub use scan::IsOther;
use scan::{Directory, Scan, Scanner};

/// Watches one directory (or one file) and keeps the rest of the agent told.
#[derive(Debug)]
pub struct DirectoryWatch {
    root: PathBuf,
    observations: mpsc::Sender<Observation>,
    health: SourceHealth,
    rescan: Duration,
    is_other: IsOther,
    known: Known,
}

impl DirectoryWatch {
    pub fn new(root: impl Into<PathBuf>, observations: mpsc::Sender<Observation>) -> Self {
        Self {
            root: root.into(),
            observations,
            health: SourceHealth::default(),
            rescan: RESCAN,
            is_other: |_, _| false,
            known: Known::default(),
        }
    }

    /// Documents from before a restart. One that is not found any more is told as removed.
    pub fn with_known(mut self, documents: &[Document]) -> Self {
        let ours = documents.iter().filter(|document| self.owns(&document.id));
        let known = ours.map(|document| (document.id.as_str().into(), document.clone()));
        self.known.documents = known.collect();
        self
    }

    /// The document is or was one of this directory.
    pub fn owns(&self, id: &DocumentId) -> bool {
        matches!(id, DocumentId::File(path) if Path::new(&**path).starts_with(&self.root))
    }

    /// Leaves out files that are something else: the agent's settings may stand beside the documents.
    pub fn without(mut self, is_other: IsOther) -> Self {
        self.is_other = is_other;
        self
    }

    /// How often to look without having been told to.
    pub fn with_rescan(mut self, rescan: Duration) -> Self {
        self.rescan = rescan;
        self
    }

    pub fn health(&self) -> SourceHealth {
        self.health.clone()
    }

    /// The name under which its updates go.
    pub fn source(&self) -> Arc<str> {
        self.root.to_string_lossy().into()
    }

    /// Ends when cancelled, or when nobody takes observations any more.
    pub async fn run(self, cancel: CancellationToken) {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.watch() => {}
        }
    }

    async fn watch(mut self) {
        let moved = Arc::new(Notify::new());
        let mut watched = Directories::new(&self.root, moved.clone());
        let mut known = std::mem::take(&mut self.known);
        let mut scanner = Scanner::new(self.root.clone(), self.is_other);
        // Since when a document is being written, and since when directories are replaced.
        let (mut unsettled, mut torn) = (None, None);
        loop {
            self.health.requested();
            // Reading thousands of files would hold up every other task of this thread.
            let mut scanning = JoinSet::new();
            scanning.spawn_blocking(move || {
                let scan = scanner.scan();
                (scanner, scan)
            });
            let Some(Ok((returned, mut scan))) = scanning.join_next().await else {
                tracing::error!(root = %self.root.display(), "the scan of documents panicked, starting over");
                self.health.failed();
                scanner = Scanner::new(self.root.clone(), self.is_other);
                tokio::time::sleep(self.rescan).await;
                continue;
            };
            scanner = returned;
            if scan.is_torn {
                let since = *torn.get_or_insert_with(Instant::now);
                if since.elapsed() < TORN_AT_MOST {
                    tokio::time::sleep(SETTLE).await;
                    continue;
                }
            } else {
                torn = None;
            }
            if scan.is_unsettled {
                // Someone is writing: an editor that truncates first would otherwise empty a document for a moment.
                let since = *unsettled.get_or_insert_with(Instant::now);
                if since.elapsed() < SETTLE_AT_MOST {
                    tokio::time::sleep(SETTLE).await;
                    continue;
                }
            }
            unsettled = None;
            let is_torn = scan.is_torn;
            if is_torn {
                scan.root_problem = Some(format!(
                    "for {} s directories in it were others each time after they were read, by their device and inode",
                    TORN_AT_MOST.as_secs()
                ));
            }
            // A directory that is new to the watch may have changed before it was watched: look once more.
            let look_again = watched.follow(&scan.directories);
            match known.compare(scan) {
                Some(update) => {
                    let fine = update.problem.is_none();
                    if fine {
                        self.health.succeeded(true)
                    } else {
                        self.health.failed()
                    }
                    if self
                        .observations
                        .send(Observation::Documents(update))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                None if known.told.is_none() => self.health.succeeded(false),
                None => self.health.failed(),
            }
            if look_again && !is_torn {
                continue;
            }
            // Neither is told by an event that what was missing is there: a mount, for one.
            let rescan = if watched.is_blind() || known.told.is_some() {
                BLIND_RESCAN.min(self.rescan)
            } else {
                self.rescan
            };
            if tokio::time::timeout(rescan, moved.notified()).await.is_ok() {
                settle(&moved).await;
            }
        }
    }
}

/// What one look at a directory found.
#[derive(Debug, Default)]
pub struct DirectoryListing {
    pub documents: Vec<Document>,
    /// Path and reason of what could not be read.
    pub unreadable: Vec<(String, String)>,
    /// Path and reason of what is named as no document is and may hold some: it cannot be looked at, or is empty.
    pub absent: Vec<(String, String)>,
}

/// All documents below `root` as they are now, for one look (`validate`, `plan`). Blocking file IO.
pub fn read_documents(root: &Path, is_other: IsOther) -> Result<DirectoryListing, Problem> {
    let scan = Scanner::new(root.to_owned(), is_other).scan();
    match scan.root_problem {
        Some(reason) => Err(root_problem(root, &reason)),
        None => Ok(DirectoryListing {
            documents: scan.documents.into_values().collect(),
            unreadable: scan.unreadable.into_iter().collect(),
            absent: {
                let bare = scan.bare.iter().map(|directory| {
                    let path = directory.path.to_string_lossy().into_owned();
                    (path, "it is empty".to_owned())
                });
                scan.unknown.into_iter().chain(bare).collect()
            },
        }),
    }
}

/// Waits until writing pauses: an editor's save is several events, a checkout is thousands.
async fn settle(moved: &Notify) {
    let latest = Instant::now() + SETTLE_AT_MOST;
    while timeout_at(latest.min(Instant::now() + SETTLE), moved.notified())
        .await
        .is_ok()
    {
        if Instant::now() >= latest {
            return;
        }
    }
}

/// What was said last.
#[derive(Debug, Default)]
struct Known {
    documents: std::collections::BTreeMap<Arc<str>, Document>,
    complete: bool,
    /// The directories that are known to have had them, or to be meant to be empty.
    directories: BTreeSet<Directory>,
    told: Option<Problem>,
}

impl Known {
    /// None: nothing to say.
    fn compare(&mut self, scan: Scan) -> Option<DocumentsUpdate> {
        let source = scan.root.to_string_lossy();
        let mut update = DocumentsUpdate {
            complete: self.complete,
            ..DocumentsUpdate::from_source(&*source)
        };
        // A file system that is not mounted leaves an empty directory in its place.
        let bare: Vec<String> = scan
            .bare
            .iter()
            .filter(|directory| !self.directories.contains(directory))
            .map(|directory| directory.path.to_string_lossy().into_owned())
            .filter(|path| self.documents.keys().any(|known| is_at_or_below(known, path)))
            .collect();
        match scan.root_problem {
            Some(reason) => update.problem = Some(root_problem(&scan.root, &reason)),
            None if bare.iter().any(|path| *path == source) => {
                update.problem = Some(bare_problem(&scan.root));
            }
            None => {
                let mut unreadable = scan.unreadable;
                let is_doubted = |path: &Path| bare.iter().any(|bare| Path::new(bare) == path);
                self.directories = scan
                    .directories
                    .into_iter()
                    .filter(|directory| !is_doubted(&directory.path))
                    .collect();
                unreadable.extend(bare.into_iter().map(|path| (path, BARE.to_owned())));
                // Of what is no document by its name, a directory that had some is worth a word.
                let had_documents = |(path, _): &(String, String)| {
                    self.documents.keys().any(|known| is_at_or_below(known, path))
                };
                unreadable.extend(scan.unknown.into_iter().filter(had_documents));
                let gone = |path: &Arc<str>| {
                    !scan.documents.contains_key(path)
                        // An unreadable file, or one below an unreadable directory, is still there.
                        && !unreadable.keys().any(|bad| is_at_or_below(path, bad))
                };
                let removed: Vec<Arc<str>> =
                    self.documents.keys().filter(|path| gone(path)).cloned().collect();
                for path in removed {
                    self.documents.remove(&path);
                    update.removed.push(DocumentId::File(path));
                }
                for (path, document) in scan.documents {
                    if self.documents.get(&path) != Some(&document) {
                        update.changed.push(document.clone());
                        self.documents.insert(path, document);
                    }
                }
                update.problem = unreadable_problem(&unreadable);
                update.complete = true;
            }
        }
        let news = !update.changed.is_empty()
            || !update.removed.is_empty()
            || update.complete != self.complete
            || update.problem != self.told;
        self.complete = update.complete;
        self.told = update.problem.clone();
        news.then_some(update)
    }
}

fn is_at_or_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn bare_problem(root: &Path) -> Problem {
    let message = format!(
        "documents directory {} {BARE}; what was known stands",
        root.display()
    );
    let fix = "mount it, or fill it; if nothing is to be served, put any file into it";
    Problem::new(ProblemKind::Unavailable, message).with_fix(fix)
}

fn root_problem(root: &Path, reason: &str) -> Problem {
    let message = format!(
        "documents directory {} cannot be read: {reason}; what was known stands",
        root.display()
    );
    Problem::new(ProblemKind::Unavailable, message)
        .with_fix("restore the directory, or start with another -config")
}

fn unreadable_problem(unreadable: &std::collections::BTreeMap<String, String>) -> Option<Problem> {
    let first = unreadable.first_key_value()?;
    let shown: Vec<String> = unreadable
        .iter()
        .take(SHOWN)
        .map(|(path, reason)| format!("{path}: {reason}"))
        .collect();
    let more = unreadable.len().saturating_sub(SHOWN);
    let tail = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    let problem = Problem::new(
        ProblemKind::Invalid,
        format!("not taken: {}{tail}", shown.join("; ")),
    );
    Some(problem.with_fix(format!(
        "make {} readable UTF-8 text of at most 512 KiB, or remove it",
        first.0
    )))
}

/// The directories under watch; each alone, because only our own walk knows where symlinks lead.
struct Directories {
    watcher: Option<RecommendedWatcher>,
    parent: Option<PathBuf>,
    watched: BTreeSet<scan::Directory>,
    blind: bool,
}

impl Directories {
    fn new(root: &Path, moved: Arc<Notify>) -> Self {
        let on_event = move |event: notify::Result<Event>| match event {
            // Our own reading is an event too.
            Ok(Event {
                kind: EventKind::Access(kind),
                ..
            }) if !matches!(kind, AccessKind::Close(AccessMode::Write)) => {}
            // An error is mostly an overflow: something moved.
            Ok(_) | Err(_) => moved.notify_one(),
        };
        let watcher = RecommendedWatcher::new(on_event, notify::Config::default()).inspect_err(
            |error| tracing::warn!(%error, "no file events, documents are looked at every few seconds"),
        );
        let absolute = std::path::absolute(root).ok();
        let parent = absolute.as_deref().and_then(Path::parent).map(Path::to_owned);
        Self {
            blind: watcher.is_err(),
            watcher: watcher.ok(),
            parent,
            watched: BTreeSet::new(),
        }
    }

    /// Watches exactly these; true if one of them is new.
    fn follow(&mut self, directories: &BTreeSet<scan::Directory>) -> bool {
        let Some(watcher) = &mut self.watcher else {
            return false;
        };
        if let Some(parent) = &self.parent {
            // Again each time, as the parent too may have been replaced; the same watch twice is one watch.
            let _ = watcher.watch(parent, RecursiveMode::NonRecursive);
        }
        for gone in self.watched.difference(directories) {
            let _ = watcher.unwatch(&gone.path);
        }
        let mut failed = false;
        let mut new = false;
        for directory in directories.difference(&self.watched) {
            new = true;
            if let Err(error) = watcher.watch(&directory.path, RecursiveMode::NonRecursive) {
                tracing::warn!(directory = %directory.path.display(), %error, "directory not watched");
                failed = true;
            }
        }
        self.watched = directories.clone();
        self.blind = failed || (self.blind && !new);
        new
    }

    fn is_blind(&self) -> bool {
        self.blind
    }
}

const BARE: &str = "is empty, and is not known to be the one that had documents";

/// The net below events: network file systems send none.
const RESCAN: Duration = Duration::from_secs(30);

/// Without any events.
const BLIND_RESCAN: Duration = Duration::from_secs(2);

/// An editor's save takes a few milliseconds; people do not notice 50.
const SETTLE: Duration = Duration::from_millis(50);

const SETTLE_AT_MOST: Duration = Duration::from_millis(500);

/// A checkout replaces directories for as long; some file systems give one another inode each time.
const TORN_AT_MOST: Duration = Duration::from_secs(10);

/// Paths named in one message.
const SHOWN: usize = 5;

#[cfg(test)]
mod tests;
