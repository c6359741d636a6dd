//! What is known of the mesh.

use std::sync::Arc;

use super::{Changes, Known, Snapshot};
use crate::model::mesh::{Chain, ChainQuery, Intention, IntentionQuery, Interest, MeshLeaf, MeshRoots};
use crate::model::{ChainUpdate, IntentionUpdate, MeshUpdate};

/// The gateway's place in the mesh.
#[derive(Clone, Debug, Default)]
pub struct MeshIdentity {
    pub leaf: Known<MeshLeaf>,
    pub roots: Known<MeshRoots>,
}

impl MeshIdentity {
    fn answered(&self) -> bool {
        self.leaf.answered() && self.roots.answered()
    }

    /// Both are there: mesh destinations can be dialed.
    pub fn usable(&self) -> Option<(&Arc<MeshLeaf>, &Arc<MeshRoots>)> {
        Some((self.leaf.value.as_ref()?, self.roots.value.as_ref()?))
    }
}

impl Snapshot {
    pub(super) fn apply_chain(&mut self, update: ChainUpdate) -> Changes {
        let mut changes = Changes::default();
        let (after, difference) = Known::after(self.chains.get(&update.query), update.result);
        changes.status_only = difference.in_status;
        if difference.in_content {
            changes.mesh.insert(Interest::chain(update.query.clone()));
        }
        self.chains.insert(update.query, after);
        changes
    }

    pub(super) fn apply_intention(&mut self, update: IntentionUpdate) -> Changes {
        let mut changes = Changes::default();
        let (after, difference) = Known::after(self.intentions.get(&update.query), update.result);
        changes.status_only = difference.in_status;
        if difference.in_content {
            changes.mesh.insert(Interest::intention(update.query.clone()));
        }
        self.intentions.insert(update.query, after);
        changes
    }

    pub(super) fn apply_mesh(&mut self, update: MeshUpdate) -> Changes {
        let mut changes = Changes::default();
        let difference = match update {
            MeshUpdate::Roots(result) => {
                let (after, difference) = Known::after(Some(&self.mesh.roots), result);
                self.mesh.roots = after;
                difference
            }
            MeshUpdate::Leaf(result) => {
                let (after, difference) = Known::after(Some(&self.mesh.leaf), result);
                self.mesh.leaf = after;
                difference
            }
        };
        changes.status_only = difference.in_status;
        if difference.in_content {
            changes.mesh.insert(Interest::Mesh);
        }
        changes
    }

    /// What watches last said before our restart. The leaf is without its key, which only Envoy holds by now.
    pub fn restore_chain(&mut self, query: ChainQuery, chain: Arc<Chain>) {
        self.chains.insert(query, Known::restored(chain));
    }

    pub fn restore_mesh(&mut self, leaf: Arc<MeshLeaf>, roots: Arc<MeshRoots>) {
        self.mesh = MeshIdentity {
            leaf: Known::restored(leaf),
            roots: Known::restored(roots),
        };
    }

    pub fn chain(&self, query: &ChainQuery) -> Option<&Known<Chain>> {
        self.chains.get(query)
    }

    pub fn intention(&self, query: &IntentionQuery) -> Option<&Known<Intention>> {
        self.intentions.get(query)
    }

    pub fn mesh(&self) -> &MeshIdentity {
        &self.mesh
    }

    pub fn chains(&self) -> impl Iterator<Item = (&ChainQuery, &Known<Chain>)> {
        self.chains.iter()
    }

    pub fn intentions(&self) -> impl Iterator<Item = (&IntentionQuery, &Known<Intention>)> {
        self.intentions.iter()
    }

    /// The watch has spoken: a value, or a reason why there is none.
    pub fn answered(&self, interest: &Interest) -> bool {
        match interest {
            Interest::Service(query) => self.service_answered(query),
            Interest::Chain(query) => self.chains.get(&**query).is_some_and(Known::answered),
            // Nothing waits for it: it only says what will happen.
            Interest::Intention(_) => true,
            Interest::Mesh => self.mesh.answered(),
        }
    }

    /// Forgets a watch that nobody needs any more.
    pub fn forget(&mut self, interest: &Interest) {
        match interest {
            Interest::Service(query) => self.forget_service(query),
            Interest::Chain(query) => {
                self.chains.remove(&**query);
            }
            Interest::Intention(query) => {
                self.intentions.remove(&**query);
            }
            Interest::Mesh => self.mesh = MeshIdentity::default(),
        }
    }
}
