//! One look at a directory tree: which documents stand there, which cannot be read, which directories were visited.
//!
//! Blocking file IO; no watch, no memory beyond a cache of files that did not change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::model::{Document, DocumentId};

#[derive(Debug)]
pub(super) struct Scanner {
    root: PathBuf,
    is_other: IsOther,
    /// Bytes of all documents together.
    bound: u64,
    cache: BTreeMap<PathBuf, (Stamp, Document)>,
}

#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) root: PathBuf,
    /// By path as the operator would name it.
    pub(super) documents: BTreeMap<Arc<str>, Document>,
    /// Path (of a file or a directory) to reason.
    pub(super) unreadable: BTreeMap<String, String>,
    pub(super) directories: BTreeSet<Directory>,
    /// Of the documents together.
    bytes: u64,
    /// The same of what cannot be looked at and is named as no document is: a directory, perhaps.
    pub(super) unknown: BTreeMap<String, String>,
    /// A document was written to just now, perhaps not to its end.
    pub(super) is_unsettled: bool,
    /// A directory was replaced during the look: what was found belongs to no one state of the tree.
    pub(super) is_torn: bool,
    /// Those of them that hold nothing, not even a directory.
    pub(super) bare: BTreeSet<Directory>,
    /// Nothing can be said about anything.
    pub(super) root_problem: Option<String>,
}

/// A directory by path and identity: one that was replaced by another must be watched anew.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    identity: (u64, u64),
}

/// Says of a file right in the root, by path and text, that it is no document but something else.
pub type IsOther = fn(&Path, &str) -> bool;

/// What tells one version of a file from the next without reading it.
type Stamp = (u64, u64, i64, i64, u64);

impl Scanner {
    pub(super) fn new(root: PathBuf, is_other: IsOther) -> Self {
        Self {
            root,
            is_other,
            bound: TOTAL_BYTES,
            cache: BTreeMap::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn with_bound(mut self, bytes: u64) -> Self {
        self.bound = bytes;
        self
    }

    pub(super) fn scan(&mut self) -> Scan {
        let mut scan = Scan {
            root: self.root.clone(),
            ..Scan::default()
        };
        let root = self.root.clone();
        let mut cache = BTreeMap::new();
        match fs::metadata(&root) {
            Err(error) => scan.root_problem = Some(error.to_string()),
            Ok(metadata) if metadata.is_dir() => {
                let mut walk = Walk {
                    scanner: self,
                    scan: &mut scan,
                    cache: &mut cache,
                    ancestors: Vec::new(),
                };
                if let Err(error) = walk.directory(&root, &metadata) {
                    scan.root_problem = Some(error.to_string());
                }
            }
            Ok(metadata) => {
                let mut walk = Walk {
                    scanner: self,
                    scan: &mut scan,
                    cache: &mut cache,
                    ancestors: Vec::new(),
                };
                walk.file(&root, &metadata);
            }
        }
        let stands = |directory: &Directory| {
            fs::metadata(&directory.path).is_ok_and(|now| (now.dev(), now.ino()) == directory.identity)
        };
        scan.is_torn = !scan.directories.iter().all(stands);
        if scan.root_problem.is_none() {
            self.cache = cache;
        }
        scan
    }
}

struct Walk<'a> {
    scanner: &'a Scanner,
    scan: &'a mut Scan,
    cache: &'a mut BTreeMap<PathBuf, (Stamp, Document)>,
    /// Identities of the directories above: a symlink to one of them is a loop.
    ancestors: Vec<(u64, u64)>,
}

impl Walk<'_> {
    fn directory(&mut self, path: &Path, metadata: &Metadata) -> std::io::Result<()> {
        let identity = (metadata.dev(), metadata.ino());
        if self.ancestors.contains(&identity) {
            return Ok(());
        }
        if self.ancestors.len() >= DEPTH || self.scan.directories.len() >= DIRECTORIES {
            self.reject(
                path,
                format!("deeper than {DEPTH} directories, or more than {DIRECTORIES} of them"),
            );
            return Ok(());
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            names.push(entry?.file_name());
        }
        names.sort();
        let directory = Directory {
            path: path.to_owned(),
            identity,
        };
        if names.is_empty() {
            self.scan.bare.insert(directory.clone());
        }
        self.scan.directories.insert(directory);
        self.ancestors.push(identity);
        for name in names {
            let shown = name.to_string_lossy();
            if shown.starts_with(['.', '#']) || shown.ends_with('~') {
                continue;
            }
            self.entry(&path.join(&name));
        }
        self.ancestors.pop();
        Ok(())
    }

    fn entry(&mut self, path: &Path) {
        let is_document = path
            .extension()
            .is_some_and(|extension| extension == "hcl" || extension == "json");
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            // Gone since it was listed; a document's dangling symlink is an operator's mistake.
            Err(_) if is_gone(path) => return,
            Err(error) => {
                if is_document {
                    self.reject(path, error.to_string());
                } else {
                    let path = path.to_string_lossy().into_owned();
                    self.scan.unknown.insert(path, error.to_string());
                }
                return;
            }
        };
        if metadata.is_dir() {
            if let Err(error) = self.directory(path, &metadata) {
                self.reject(path, error.to_string());
            }
        } else if is_document {
            self.file(path, &metadata);
        }
    }

    fn file(&mut self, path: &Path, metadata: &Metadata) {
        let Some(name) = path.to_str() else {
            return self.reject(path, "the path is not UTF-8".to_owned());
        };
        if !metadata.is_file() {
            return self.reject(path, "not a regular file".to_owned());
        }
        if self.scan.documents.len() >= DOCUMENTS {
            return self.reject(path, format!("more than {DOCUMENTS} documents"));
        }
        let bytes = self.scan.bytes + metadata.len();
        if bytes > self.scanner.bound {
            let limit = self.scanner.bound / 1024;
            return self.reject(
                path,
                format!("with it the documents of this directory would exceed {limit} KiB together"),
            );
        }
        let stamp = stamp_of(metadata);
        let cached = self
            .scanner
            .cache
            .get(path)
            .filter(|(known, _)| *known == stamp && !is_younger_than(TICK, metadata));
        let document = match cached {
            Some((_, document)) => document.clone(),
            None => match self.read(path, metadata) {
                Ok(text)
                    if path.parent() == Some(&*self.scanner.root) && (self.scanner.is_other)(path, &text) =>
                {
                    return;
                }
                Ok(text) => Document {
                    id: DocumentId::File(name.into()),
                    text: text.into(),
                    order: 0,
                    version: 0,
                },
                Err(_) if is_gone(path) => return,
                Err(reason) => return self.reject(path, reason),
            },
        };
        self.scan.bytes += document.text.len() as u64;
        self.cache.insert(path.to_owned(), (stamp, document.clone()));
        self.scan.documents.insert(name.into(), document);
    }

    fn read(&mut self, path: &Path, metadata: &Metadata) -> Result<String, String> {
        if metadata.len() > DOCUMENT_BYTES {
            let (size, limit) = (metadata.len() / 1024, DOCUMENT_BYTES / 1024);
            return Err(format!("{size} KiB exceed the {limit} KiB of one document"));
        }
        let bytes = fs::read(path).map_err(|error| error.to_string())?;
        let moved_on = fs::metadata(path).map_or(true, |after| stamp_of(&after) != stamp_of(metadata));
        let limit = if bytes.is_empty() { TRUNCATED } else { WRITING };
        self.scan.is_unsettled |= moved_on || is_younger_than(limit, metadata);
        String::from_utf8(bytes)
            .map_err(|error| format!("not UTF-8 text (byte {} of it)", error.utf8_error().valid_up_to()))
    }

    fn reject(&mut self, path: &Path, reason: String) {
        self.scan
            .unreadable
            .insert(path.to_string_lossy().into_owned(), reason);
    }
}

/// Also no symlink.
fn is_gone(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

fn stamp_of(metadata: &Metadata) -> Stamp {
    (
        metadata.dev(),
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.len(),
    )
}

fn is_younger_than(limit: Duration, metadata: &Metadata) -> bool {
    let age = metadata
        .modified()
        .ok()
        .and_then(|modified| SystemTime::now().duration_since(modified).ok());
    age.is_some_and(|age| age < limit)
}

/// Two writes within one tick of the file system's clock leave one stamp, so a young file is read again (as git does);
/// some file systems count in whole seconds.
const TICK: Duration = Duration::from_secs(2);

/// A write that began this recently may still go on. Below the pause that follows an event, so that an ordinary save
/// costs one look.
const WRITING: Duration = Duration::from_millis(40);

/// An empty file is most likely a save in its middle, on a machine too busy to finish it.
const TRUNCATED: Duration = Duration::from_millis(400);

/// As in Consul KV, so that a directory can always be moved there.
const DOCUMENT_BYTES: u64 = 524_288;

/// All of them stand in memory, as text and as what was read from it.
const TOTAL_BYTES: u64 = 256 * 1024 * 1024;

const DOCUMENTS: usize = 100_000;
const DIRECTORIES: usize = 10_000;

/// Symlinks cannot loop through an ancestor, but can still nest without end by way of siblings.
const DEPTH: usize = 32;
