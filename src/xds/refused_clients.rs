//! Clients that got no stream: how many, for what, and who was the last. Events about them may be dropped; this is not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::access::Peer;
use super::event::RefusedReason;

/// Clones count together.
#[derive(Clone, Default)]
pub struct RefusedClients {
    // A plain mutex: never held across an await.
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    counts: BTreeMap<RefusedReason, u64>,
    last: Option<RefusedClient>,
}

#[derive(Clone, Debug)]
pub struct RefusedClient {
    pub at: SystemTime,
    pub peer: Arc<Peer>,
    pub node: Option<Arc<str>>,
    pub reason: RefusedReason,
    pub message: Arc<str>,
}

impl RefusedClients {
    /// Since the agent started.
    pub fn count(&self, reason: RefusedReason) -> u64 {
        self.lock().counts.get(&reason).copied().unwrap_or_default()
    }

    pub fn last(&self) -> Option<RefusedClient> {
        self.lock().last.clone()
    }

    pub(super) fn note(&self, client: RefusedClient) {
        let mut inner = self.lock();
        *inner.counts.entry(client.reason).or_default() += 1;
        inner.last = Some(client);
    }

    /// One that gets no line and no event of its own.
    pub(super) fn count_one(&self, reason: RefusedReason) {
        *self.lock().counts.entry(reason).or_default() += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
