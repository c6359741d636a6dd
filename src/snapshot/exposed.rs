use std::sync::Arc;

use imbl::OrdSet;

use super::{Changes, Snapshot};
use crate::config::CATALOG;
use crate::model::{DocumentId, ExposedUpdate, ServiceQuery};

/// The services in the catalog that ask to be exposed.
#[derive(Clone, Debug, Default)]
pub(super) struct Exposed {
    services: OrdSet<Arc<str>>,
    /// Those whose instances, and so what they ask for, are not known yet.
    unanswered: OrdSet<Arc<str>>,
    /// The catalog has been read once.
    listed: bool,
}

impl Snapshot {
    /// Whether this watch is needed because the service asks to be exposed.
    pub fn is_exposed(&self, query: &ServiceQuery) -> bool {
        self.exposed.services.contains(&query.name) && *query == ServiceQuery::named(&query.name)
    }

    pub(super) fn apply_exposed(&mut self, update: ExposedUpdate) -> Changes {
        let mut changes = Changes::default();
        let problems = Arc::make_mut(&mut self.document_problems);
        let before = match update.problem.clone() {
            Some(problem) => problems.insert(CATALOG.into(), problem),
            None => problems.remove(CATALOG),
        };
        changes.status_only = before != update.problem;
        for name in update.removed {
            self.exposed.services.remove(&name);
            self.exposed.unanswered.remove(&name);
            changes.unwatched.insert(ServiceQuery::named(&name));
            self.withdraw(&DocumentId::of_service(&name), &mut changes);
        }
        for name in update.added {
            let query = ServiceQuery::named(&name);
            self.exposed.services.insert(name.clone());
            // What a restart found on disk is not yet what the instances say.
            let known = self
                .service(&query)
                .is_some_and(|known| known.answered() && (!known.stale || known.problem.is_some()));
            changes.watched.insert(query.clone());
            if known {
                self.hear_exposed(&query, &mut changes);
            } else {
                self.exposed.unanswered.insert(name);
            }
        }
        if update.problem.is_none() && !self.exposed.listed {
            self.exposed.listed = true;
            self.forget_unlisted(&mut changes);
        }
        self.settle_exposed(&mut changes);
        changes
    }

    /// What the instances of an exposed service say now is its document.
    pub(super) fn hear_exposed(&mut self, query: &ServiceQuery, changes: &mut Changes) {
        if !self.is_exposed(query) {
            return;
        }
        let Some(exposure) = self.config.permissions().exposure.clone() else {
            return;
        };
        let Some(known) = self.service(query) else { return };
        // From disk: not what the instances say now, and if there is a problem, they will not say for a while.
        let is_old = known.stale;
        if is_old && known.problem.is_none() {
            return;
        }
        if let Some(instances) = known.value.clone().filter(|_| !is_old) {
            match exposure.document(&query.name, &instances) {
                // That a service has ended is for the list to say, which doubts it.
                None if instances.is_empty() => {}
                Some(document) => {
                    let quarantine = self.quarantined.get(&document.id).cloned();
                    self.config
                        .upsert(document, quarantine.as_ref(), &mut changes.config);
                }
                None => self.withdraw(&DocumentId::of_service(&query.name), changes),
            }
        }
        self.exposed.unanswered.remove(&query.name);
        self.settle_exposed(changes);
    }

    pub(super) fn hear_all_exposed(&mut self, changes: &mut Changes) {
        for name in self.exposed.services.clone() {
            self.hear_exposed(&ServiceQuery::local(name), changes);
        }
    }

    fn withdraw(&mut self, id: &DocumentId, changes: &mut Changes) {
        self.quarantined.remove(id);
        self.config.remove(id, &mut changes.config);
    }

    /// From disk, and gone while we were away.
    fn forget_unlisted(&mut self, changes: &mut Changes) {
        let unlisted = |id: &&DocumentId| {
            id.service()
                .is_some_and(|service| !self.exposed.services.contains(service))
        };
        let gone: Vec<DocumentId> = self
            .config
            .documents()
            .map(|state| &state.document.id)
            .filter(unlisted)
            .cloned()
            .collect();
        for id in gone {
            self.withdraw(&id, changes);
        }
    }

    /// The catalog counts as known once every service that asks has said what for: else a restart would take away
    /// routes that are about to come back.
    fn settle_exposed(&mut self, changes: &mut Changes) {
        if self.exposed.listed
            && self.exposed.unanswered.is_empty()
            && !self.complete_sources.contains(CATALOG)
        {
            changes.status_only = true;
            Arc::make_mut(&mut self.complete_sources).insert(CATALOG.into());
        }
    }
}
