//! Everything known at one moment: the configuration and what the sources last said.
//!
//! One owner applies observations; whoever needs a view clones it, which is cheap. "Not known yet" is not "empty".

mod exposed;
mod succession;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;

use self::exposed::Exposed;
use crate::config::{Config, ConfigChange, Permissions, Quarantine, text_hash};
use crate::model::mesh::{Chain, ChainQuery, Intention, IntentionQuery, Interest};
use crate::model::{
    AcceptedText, CertificateMaterial, CertificateQuery, CertificateUpdate, Document, DocumentId,
    DocumentsUpdate, Instance, Observation, Problem, ServiceQuery, ServiceUpdate, SharedPort,
};

mod known;
mod mesh;

pub use known::Known;
pub use mesh::MeshIdentity;

#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub config: Config,
    services: OrdMap<ServiceQuery, Known<[Instance]>>,
    certificates: OrdMap<CertificateQuery, Known<CertificateMaterial>>,
    chains: OrdMap<ChainQuery, Known<Chain>>,
    intentions: OrdMap<IntentionQuery, Known<Intention>>,
    mesh: MeshIdentity,
    quarantined: OrdMap<DocumentId, Quarantine>,
    /// Where documents come from.
    document_sources: Arc<BTreeSet<Arc<str>>>,
    /// Those of them that have answered in full at least once.
    complete_sources: Arc<BTreeSet<Arc<str>>>,
    document_problems: Arc<BTreeMap<Arc<str>, Problem>>,
    /// Of all registered services, sorted; asked for only while some service is not found.
    service_names: Option<Arc<[Arc<str>]>>,
    exposed: Exposed,
    shared_ports: Arc<[SharedPort]>,
    /// What serves until what takes its place has come.
    succession: succession::Succession,
}

/// What an observation changed, as the units that depend on it see it.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub config: ConfigChange,
    pub services: BTreeSet<ServiceQuery>,
    pub certificates: BTreeSet<CertificateQuery>,
    /// Chains, intentions, the gateway's identity in the mesh.
    pub mesh: BTreeSet<Interest>,
    /// Certificates by name, and (gateway, listener): another certificate serves there than before.
    pub names: BTreeSet<Arc<str>>,
    pub listeners: BTreeSet<(Arc<str>, Arc<str>)>,
    /// Problems, freshness: nothing that reaches Envoy.
    pub status_only: bool,
    /// Watches that begin and end because a service asks to be exposed, or no longer does.
    pub watched: BTreeSet<ServiceQuery>,
    pub unwatched: BTreeSet<ServiceQuery>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.config.is_empty()
            && self.services.is_empty()
            && self.certificates.is_empty()
            && self.watched.is_empty()
            && self.unwatched.is_empty()
            && self.mesh.is_empty()
            && self.names.is_empty()
            && self.listeners.is_empty()
    }

    pub fn merge(&mut self, other: Self) {
        for (key, (before, after)) in other.config.objects {
            match self.config.objects.entry(key) {
                std::collections::btree_map::Entry::Occupied(mut entry) => entry.get_mut().1 = after,
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert((before, after));
                }
            }
        }
        self.config.documents.extend(other.config.documents);
        self.services.extend(other.services);
        self.certificates.extend(other.certificates);
        self.mesh.extend(other.mesh);
        self.names.extend(other.names);
        self.listeners.extend(other.listeners);
        self.status_only |= other.status_only;
        for query in other.unwatched {
            self.watched.remove(&query);
            self.unwatched.insert(query);
        }
        for query in other.watched {
            self.unwatched.remove(&query);
            self.watched.insert(query);
        }
    }
}

impl Snapshot {
    pub fn new(config: Config, document_sources: BTreeSet<Arc<str>>) -> Self {
        Self {
            config,
            document_sources: Arc::new(document_sources),
            ..Self::default()
        }
    }

    /// Only for these is anything fetched.
    pub fn serving_gateways(mut self, names: BTreeSet<Arc<str>>) -> Self {
        self.config = self.config.serving(names);
        self
    }

    /// Every source of documents has answered in full at least once.
    pub fn documents_complete(&self) -> bool {
        self.document_sources.is_subset(&self.complete_sources)
    }

    /// What is wrong with a source of documents; what it said before stands.
    pub fn document_problems(&self) -> &BTreeMap<Arc<str>, Problem> {
        &self.document_problems
    }

    /// Ports of this node's listeners on which another process listens too.
    pub fn shared_ports(&self) -> &[SharedPort] {
        &self.shared_ports
    }

    pub fn apply(&mut self, observation: Observation) -> Changes {
        let mut changes = match observation {
            Observation::Documents(update) => self.apply_documents(update),
            Observation::Service(update) => self.apply_service(update),
            Observation::Certificate(update) => self.apply_certificate(update),
            Observation::Chain(update) => self.apply_chain(update),
            Observation::Intention(update) => self.apply_intention(update),
            Observation::Mesh(update) => self.apply_mesh(update),
            Observation::Accepted(accepted) => self.apply_accepted(accepted),
            Observation::ServiceNames(names) => {
                self.service_names = Some(names);
                Changes {
                    status_only: true,
                    ..Changes::default()
                }
            }
            Observation::Exposed(update) => self.apply_exposed(update),
            Observation::SharedPorts(ports) => {
                self.shared_ports = ports;
                Changes {
                    status_only: true,
                    ..Changes::default()
                }
            }
        };
        self.succeed(&mut changes);
        changes
    }

    fn apply_documents(&mut self, update: DocumentsUpdate) -> Changes {
        let mut changes = Changes::default();
        self.remove_documents(update.removed, &mut changes);
        for document in update.changed {
            let quarantine = self.quarantined.get(&document.id).cloned();
            self.config
                .upsert(document, quarantine.as_ref(), &mut changes.config);
        }
        if self.document_problems.get(&update.source) != update.problem.as_ref() {
            changes.status_only = true;
            let problems = Arc::make_mut(&mut self.document_problems);
            match update.problem {
                Some(problem) => problems.insert(update.source.clone(), problem),
                None => problems.remove(&update.source),
            };
        }
        if update.complete && !self.complete_sources.contains(&update.source) {
            changes.status_only = true;
            Arc::make_mut(&mut self.complete_sources).insert(update.source);
        }
        changes
    }

    fn apply_service(&mut self, update: ServiceUpdate) -> Changes {
        let mut changes = Changes::default();
        let (after, difference) = Known::after(self.services.get(&update.query), update.result);
        changes.status_only = difference.in_status;
        if difference.in_content {
            changes.services.insert(update.query.clone());
        }
        self.services.insert(update.query.clone(), after);
        self.hear_exposed(&update.query, &mut changes);
        changes
    }

    fn apply_certificate(&mut self, update: CertificateUpdate) -> Changes {
        let mut changes = Changes::default();
        let (after, difference) = Known::after(self.certificates.get(&update.query), update.result);
        changes.status_only = difference.in_status;
        if difference.in_content {
            changes.certificates.insert(update.query.clone());
        }
        self.certificates.insert(update.query, after);
        changes
    }

    /// Puts what the replicas accepted in service, if nothing of the document is.
    fn apply_accepted(&mut self, accepted: AcceptedText) -> Changes {
        let mut changes = Changes::default();
        let id = &accepted.document;
        let (Some(text), Some(state)) = (accepted.text, self.config.document(id).cloned()) else {
            return changes;
        };
        let serves = state.in_service.is_some() && !self.config.goes_without(id);
        if serves || text == state.document.text {
            return changes;
        }
        let good = Document {
            text,
            ..state.document.clone()
        };
        // What serves without a certificate makes way for what has it, not for another that has none.
        if state.in_service.is_some() && !self.config.lacks_nothing(&good) {
            return changes;
        }
        let text = good.text.clone();
        self.config.upsert(good, None, &mut changes.config);
        // It is in KV because some Envoy runs with it.
        let after = self
            .config
            .document(id)
            .and_then(|state| state.in_service.as_ref());
        if after.is_some_and(|parsed| parsed.document.text == text) {
            self.config.confirm(id);
        }
        let quarantine = self.quarantined.get(id);
        self.config
            .upsert(state.document.clone(), quarantine, &mut changes.config);
        changes
    }

    /// The documents from before our restart: first what Envoy had confirmed of them, then what was in service, which
    /// it may not have seen. They count as known only once their source has answered.
    pub fn restore_documents(&mut self, confirmed: Vec<Document>, in_service: Vec<Document>) -> Changes {
        let mut changes = Changes::default();
        for document in confirmed {
            let id = document.id.clone();
            self.config.upsert(document, None, &mut changes.config);
            self.config.confirm(&id);
        }
        for document in in_service {
            let quarantine = self.quarantined.get(&document.id);
            self.config.upsert(document, quarantine, &mut changes.config);
        }
        changes
    }

    /// Documents that no source speaks for any more.
    pub fn forget_documents(&mut self, ids: impl IntoIterator<Item = DocumentId>) -> Changes {
        let mut changes = Changes::default();
        self.remove_documents(ids, &mut changes);
        self.succeed(&mut changes);
        changes
    }

    fn remove_documents(&mut self, ids: impl IntoIterator<Item = DocumentId>, changes: &mut Changes) {
        for id in ids {
            self.quarantined.remove(&id);
            self.config.remove(&id, &mut changes.config);
        }
    }

    /// Other bounds on what documents from KV may reach.
    pub fn permit(&mut self, permissions: Permissions) -> Changes {
        let mut changes = Changes::default();
        self.config.permit(permissions, &mut changes.config);
        self.end_what_is_forbidden(&mut changes);
        // What of the tags is meant for us is the settings' to say.
        self.hear_all_exposed(&mut changes);
        changes
    }

    /// Lets a document back in: its text is tried again.
    pub fn lift_quarantine(&mut self, id: &DocumentId) -> Changes {
        let mut changes = Changes::default();
        self.quarantined.remove(id);
        if let Some(state) = self.config.document(id).cloned() {
            self.config
                .upsert(state.document.clone(), None, &mut changes.config);
        }
        self.succeed(&mut changes);
        changes
    }

    /// Envoy runs with what the document says now: a text that was refused before is a new attempt, should it come back. What
    /// was wrong with it may be gone. True: there was one.
    pub fn end_quarantine(&mut self, id: &DocumentId) -> bool {
        // After a restart what serves is what was known then, and the source may still have the refused text.
        let is_over = self.documents_complete()
            && self.quarantined.get(id).is_some_and(|quarantine| {
                let state = self.config.document(id);
                state.is_some_and(|state| text_hash(&state.document.text) != quarantine.text_hash)
            });
        if is_over {
            self.quarantined.remove(id);
        }
        is_over
    }

    /// What a watch last said before our restart.
    pub fn restore_service(&mut self, query: ServiceQuery, instances: Arc<[Instance]>) {
        self.services.insert(
            query,
            Known {
                value: Some(instances),
                problem: None,
                stale: true,
            },
        );
    }

    /// Takes a document out of service that Envoy refused.
    pub fn quarantine(&mut self, quarantine: Quarantine) -> Changes {
        let mut changes = Changes::default();
        self.config.quarantine(&quarantine, &mut changes.config);
        self.quarantined.insert(quarantine.document.clone(), quarantine);
        self.succeed(&mut changes);
        changes
    }

    /// Remembers a refusal from before our restart; the document itself comes from its source later.
    pub fn restore_quarantine(&mut self, quarantine: Quarantine) {
        self.quarantined.insert(quarantine.document.clone(), quarantine);
    }

    pub fn quarantined(&self) -> impl Iterator<Item = &Quarantine> {
        self.quarantined.values()
    }

    /// Forgets watches that nobody needs any more.
    pub fn forget_service(&mut self, query: &ServiceQuery) {
        self.services.remove(query);
    }

    pub fn forget_certificate(&mut self, query: &CertificateQuery) {
        self.certificates.remove(query);
        self.forget_former(query);
    }

    /// The names in the catalog, sorted. None: nobody asked.
    pub fn service_names(&self) -> Option<&Arc<[Arc<str>]>> {
        self.service_names.as_ref()
    }

    pub fn service(&self, query: &ServiceQuery) -> Option<&Known<[Instance]>> {
        self.services.get(query)
    }

    pub fn certificate(&self, query: &CertificateQuery) -> Option<&Known<CertificateMaterial>> {
        self.certificates.get(query)
    }

    pub fn services(&self) -> impl Iterator<Item = (&ServiceQuery, &Known<[Instance]>)> {
        self.services.iter()
    }

    pub fn certificates(&self) -> impl Iterator<Item = (&CertificateQuery, &Known<CertificateMaterial>)> {
        self.certificates.iter()
    }

    /// The watch has spoken: instances, or a reason why there are none.
    pub fn service_answered(&self, query: &ServiceQuery) -> bool {
        self.services
            .get(query)
            .is_some_and(|known| known.value.is_some() || known.problem.is_some())
    }

    pub fn certificate_answered(&self, query: &CertificateQuery) -> bool {
        self.certificates
            .get(query)
            .is_some_and(|known| known.value.is_some() || known.problem.is_some())
    }
}
