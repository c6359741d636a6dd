//! The gateways that can be asked for, by name, and the newest resources of each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::envoy::ResourceSet;

/// A registry that may change while streams are served. Clones are the same registry.
#[derive(Clone, Default)]
pub struct Gateways {
    by_name: Arc<Mutex<BTreeMap<Arc<str>, Entry>>>,
}

#[derive(Clone)]
pub(super) struct Entry {
    /// None: not complete yet, which is not the same as empty.
    pub(super) resources: watch::Receiver<Option<Arc<ResourceSet>>>,
    /// Removed or replaced: its streams end, and their Envoys keep what they have.
    pub(super) gone: CancellationToken,
}

impl Gateways {
    /// Adds a gateway. One of that name that was there before is replaced, and its streams end.
    pub fn insert(&self, name: impl Into<Arc<str>>, resources: watch::Receiver<Option<Arc<ResourceSet>>>) {
        let entry = Entry {
            resources,
            gone: CancellationToken::new(),
        };
        if let Some(old) = self.lock().insert(name.into(), entry) {
            old.gone.cancel();
        }
    }

    pub fn remove(&self, name: &str) -> bool {
        let removed = self.lock().remove(name);
        removed.as_ref().inspect(|entry| entry.gone.cancel()).is_some()
    }

    pub fn names(&self) -> Vec<Arc<str>> {
        self.lock().keys().cloned().collect()
    }

    pub(super) fn find(&self, name: &str) -> Option<Entry> {
        self.lock().get(name).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Entry>> {
        // Every change is one map operation: a panic elsewhere cannot leave it half done.
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
