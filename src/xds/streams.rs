//! Who is connected and what each runs: the truth behind "Programmed, n of m Envoys".

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::access::Peer;
use super::event::StreamId;
use super::exchange::Variant;
use super::refusal::Refusal;
use super::refused_clients::RefusedClients;
use super::stream_state::StreamState;
use crate::envoy::{ResourceKind, ResourceSet};

/// One stream at one moment. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StreamView {
    pub id: StreamId,
    /// Envoy's `node.id`.
    pub node: Arc<str>,
    /// As Envoy tells it, like `1.40.0`.
    pub envoy_version: Option<Arc<str>>,
    pub gateway: Arc<str>,
    pub peer: Arc<Peer>,
    pub variant: Variant,
    pub connected_at: SystemTime,
    /// What Envoy acknowledged. It shares its structure with the published sets, so comparing it with one costs what
    /// differs. A resource that Envoy holds from an earlier stream, in a version unknown here, is `held_by_envoy`.
    pub acked: ResourceSet,
    /// It brought something along from before this stream.
    pub came_with_state: bool,
    /// The published set that the stream works towards. None: it knows of none yet.
    pub target: Option<ResourceSet>,
    kinds: [KindView; 7],
    /// What is kept from this Envoy alone.
    pub withheld: Vec<WithheldListener>,
}

/// A listener that an Envoy is not given, because it has none of its certificates and nobody here has the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WithheldListener {
    pub name: Arc<str>,
    /// Secrets.
    pub lacks: Arc<[Arc<str>]>,
}

#[derive(Clone, Debug, Default)]
pub struct KindView {
    /// Envoy asked for this kind.
    pub subscribed: bool,
    /// Sent and not acknowledged, or waiting to be sent.
    pub pending: usize,
    pub refused: Vec<(Arc<str>, Refusal)>,
    /// Nobody holds the bytes any more.
    pub wanted: Vec<Arc<str>>,
}

impl StreamView {
    pub fn kind(&self, kind: ResourceKind) -> &KindView {
        &self.kinds[kind as usize]
    }

    /// False: it never will. The runtime layer is subscribed to before anything else, by an Envoy whose bootstrap has it.
    pub fn asks_for(&self, kind: ResourceKind) -> bool {
        kind != ResourceKind::Runtime
            || self.kind(kind).subscribed
            || !self.kind(ResourceKind::Listener).subscribed
    }

    /// As far as that is to be seen without comparing the two resource by resource.
    pub fn runs_the_same(&self, other: &Self) -> bool {
        self.acked.shares_all(&other.acked)
            && ResourceKind::ALL
                .iter()
                .all(|kind| self.asks_for(*kind) == other.asks_for(*kind))
    }

    /// An Envoy that runs with this, for tests of those who read views.
    #[cfg(test)]
    pub(crate) fn running(gateway: &str, acked: ResourceSet) -> Self {
        Self {
            id: StreamId(1),
            node: "test".into(),
            envoy_version: None,
            gateway: gateway.into(),
            peer: Arc::new(Peer::Unix { uid: 0, pid: None }),
            variant: Variant::Delta,
            connected_at: SystemTime::UNIX_EPOCH,
            target: Some(acked.clone()),
            acked,
            came_with_state: false,
            kinds: Default::default(),
            withheld: Vec::new(),
        }
    }

    #[cfg(test)]
    pub(crate) fn refusing(mut self, resource: &crate::envoy::Resource) -> Self {
        let refusal = Refusal {
            version: resource.version.clone(),
            message: "no".into(),
            retry: None,
        };
        self.kinds[resource.kind as usize]
            .refused
            .push((resource.name.clone(), refusal));
        self
    }

    /// Envoy has answered to everything that could be sent of this set, be it with a refusal.
    pub fn has_answered(&self, published: &ResourceSet) -> bool {
        let is_seen = self.target.as_ref().is_some_and(|target| {
            ResourceKind::ALL
                .iter()
                .all(|kind| published.changes_since(target, *kind).next().is_none())
        });
        // What nobody holds cannot be sent.
        is_seen && self.kinds.iter().all(|kind| kind.pending == kind.wanted.len())
    }

    /// Nothing is on its way, refused or missing.
    pub fn is_settled(&self) -> bool {
        let is_settled =
            |kind: &KindView| kind.pending == 0 && kind.refused.is_empty() && kind.wanted.is_empty();
        self.withheld.is_empty() && self.kinds.iter().all(is_settled)
    }
}

type Listed = Arc<Mutex<BTreeMap<StreamId, Arc<Mutex<StreamView>>>>>;

/// All streams of a server. Clones are the same registry.
#[derive(Clone, Default)]
pub struct Streams {
    by_id: Listed,
    last_id: Arc<AtomicU64>,
    refused: RefusedClients,
}

impl Streams {
    pub(super) fn with_refused(refused: RefusedClients) -> Self {
        Self {
            refused,
            ..Self::default()
        }
    }

    /// Those that got none.
    pub fn refused(&self) -> &RefusedClients {
        &self.refused
    }

    pub fn snapshot(&self) -> Vec<StreamView> {
        let cells: Vec<_> = lock(&self.by_id).values().cloned().collect();
        cells.iter().map(|cell| lock(cell).clone()).collect()
    }

    /// One stream, while it is open.
    pub fn find(&self, id: StreamId) -> Option<StreamView> {
        let cell = lock(&self.by_id).get(&id).cloned()?;
        let view = lock(&cell).clone();
        Some(view)
    }

    pub fn of_gateway(&self, gateway: &str) -> Vec<StreamView> {
        let cells: Vec<_> = lock(&self.by_id).values().cloned().collect();
        let views = cells.iter().map(|cell| lock(cell));
        views
            .filter(|view| *view.gateway == *gateway)
            .map(|view| view.clone())
            .collect()
    }

    pub fn len(&self) -> usize {
        lock(&self.by_id).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn next_id(&self) -> StreamId {
        StreamId(self.last_id.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(super) fn add(&self, about: About) -> Enrolled {
        let view = StreamView {
            id: about.id,
            node: about.node,
            envoy_version: about.envoy_version,
            gateway: about.gateway,
            peer: about.peer,
            variant: about.variant,
            connected_at: SystemTime::now(),
            acked: ResourceSet::default(),
            came_with_state: false,
            target: None,
            kinds: Default::default(),
            withheld: Vec::new(),
        };
        let cell = Arc::new(Mutex::new(view));
        lock(&self.by_id).insert(about.id, cell.clone());
        Enrolled {
            id: about.id,
            cell,
            by_id: self.by_id.clone(),
        }
    }
}

pub(super) struct About {
    pub(super) id: StreamId,
    pub(super) node: Arc<str>,
    pub(super) envoy_version: Option<Arc<str>>,
    pub(super) gateway: Arc<str>,
    pub(super) peer: Arc<Peer>,
    pub(super) variant: Variant,
}

/// Keeps one stream listed until dropped.
pub(super) struct Enrolled {
    id: StreamId,
    cell: Arc<Mutex<StreamView>>,
    by_id: Listed,
}

impl Enrolled {
    /// Twice for each change and stream: what stayed as it was is not written again.
    pub(super) fn update(&self, state: &StreamState) {
        let mut view = lock(&self.cell);
        let view = &mut *view;
        state.put_acked(&mut view.acked);
        view.came_with_state = state.came_with_state();
        match (&view.target, state.target()) {
            (Some(before), Some(now)) if before.is(now) => {}
            (_, now) => view.target = now.cloned(),
        }
        for (kind, seen) in ResourceKind::ALL.into_iter().zip(&mut view.kinds) {
            seen.subscribed = state.is_subscribed(kind);
            seen.pending = state.pending(kind);
            seen.refused.clear();
            let refused = state
                .refused(kind)
                .map(|(name, refusal)| (name.clone(), refusal.clone()));
            seen.refused.extend(refused);
            seen.wanted.clear();
            seen.wanted.extend(state.wanted(kind).cloned());
        }
        view.withheld.clear();
        view.withheld
            .extend(state.withheld().map(|(name, lacks)| WithheldListener {
                name: name.clone(),
                lacks: lacks.clone(),
            }));
    }
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        lock(&self.by_id).remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Half written by a panic, a view is still a view: of a stream that ended with it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_that_ask_for_different_kinds_do_not_run_the_same() {
        let with_runtime = StreamView::running("edge", ResourceSet::default());
        let mut without = with_runtime.clone();
        without.kinds[ResourceKind::Listener as usize].subscribed = true;
        assert!(with_runtime.asks_for(ResourceKind::Runtime) && !without.asks_for(ResourceKind::Runtime));
        assert!(with_runtime.runs_the_same(&with_runtime.clone()));
        assert!(!with_runtime.runs_the_same(&without) && !without.runs_the_same(&with_runtime));
    }
}
