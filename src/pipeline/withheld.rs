//! Resources that Envoy refuses and that no document can be put back for: endpoints, a cluster of a bare service, a
//! certificate. Each stays as Envoy last accepted it, or away, until its content changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::diagnostics::Diagnostic;
use crate::envoy::{Resource, ResourceKind, ResourceSet};
use crate::model::DocumentId;

#[derive(Debug, Default)]
pub(super) struct Withheld {
    entries: BTreeMap<(ResourceKind, Arc<str>), Entry>,
    /// Since it was saved.
    is_changed: bool,
}

/// One of them as a restart should know it: what Envoy refused once is not offered to anybody again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WithheldResource {
    kind: ResourceKind,
    name: Arc<str>,
    version: Arc<str>,
    instead: Option<Instead>,
    diagnostic: Diagnostic,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Instead {
    message: Vec<u8>,
    documents: Vec<DocumentId>,
}

#[derive(Debug)]
struct Entry {
    /// The refused one.
    version: Arc<str>,
    /// None: Envoy never accepted any.
    instead: Option<Arc<Resource>>,
    /// What that one needs, as Envoy has it: kept where the compiled set has it no more. Not over a restart.
    needed: Vec<Arc<Resource>>,
    diagnostic: Diagnostic,
}

impl Withheld {
    pub fn add(
        &mut self,
        refused: &Resource,
        instead: Option<Arc<Resource>>,
        needed: Vec<Arc<Resource>>,
        diagnostic: Diagnostic,
    ) {
        let entry = Entry {
            version: refused.version.clone(),
            instead,
            needed,
            diagnostic,
        };
        self.entries.insert((refused.kind, refused.name.clone()), entry);
        self.is_changed = true;
    }

    pub fn restored(kept: Vec<WithheldResource>) -> Self {
        let entry = |kept: WithheldResource| {
            let instead = kept.instead.map(|instead| {
                let accepted = Resource::new(kept.kind, kept.name.clone(), &instead.message);
                Arc::new(accepted.from_documents(instead.documents.into()))
            });
            let entry = Entry {
                version: kept.version,
                instead,
                needed: Vec::new(),
                diagnostic: kept.diagnostic,
            };
            ((kept.kind, kept.name), entry)
        };
        Self {
            entries: kept.into_iter().map(entry).collect(),
            is_changed: false,
        }
    }

    /// All that can be kept, if that is not what was saved last. A secret is not, nor is one in whose place Envoy goes on
    /// with bytes that we do not have: after a restart these are offered once more, and refused once more.
    pub fn take_unsaved(&mut self) -> Option<Vec<WithheldResource>> {
        if !std::mem::take(&mut self.is_changed) {
            return None;
        }
        let kept = self.entries.iter().filter_map(|((kind, name), entry)| {
            let instead = match &entry.instead {
                Some(accepted) => Some(Instead {
                    message: accepted.message()?,
                    documents: accepted.origins.to_vec(),
                }),
                None => None,
            };
            (*kind != ResourceKind::Secret).then(|| WithheldResource {
                kind: *kind,
                name: name.clone(),
                version: entry.version.clone(),
                instead,
                diagnostic: entry.diagnostic.clone(),
            })
        });
        Some(kept.collect())
    }

    /// Puts what was accepted in the place of what was refused. An entry whose resource has changed ends.
    pub fn apply(&mut self, set: &mut ResourceSet) {
        let before = self.entries.len();
        self.entries.retain(|(kind, name), entry| {
            set.get(*kind, name)
                .is_some_and(|resource| resource.version == entry.version)
        });
        self.is_changed |= self.entries.len() != before;
        for ((kind, name), entry) in &self.entries {
            match &entry.instead {
                Some(accepted) => _ = set.insert(accepted.clone()),
                None => _ = set.remove(*kind, name),
            }
            for needed in &entry.needed {
                if set.get(needed.kind, &needed.name).is_none() {
                    set.insert(needed.clone());
                }
            }
        }
    }

    pub fn diagnostics(&self) -> impl Iterator<Item = &Diagnostic> {
        self.entries.values().map(|entry| &entry.diagnostic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostics::Code;

    fn endpoints(bytes: &[u8]) -> Arc<Resource> {
        Arc::new(Resource::new(ResourceKind::Endpoint, "consul/a".into(), bytes))
    }

    fn applied(withheld: &mut Withheld, resource: &Arc<Resource>) -> Option<Arc<Resource>> {
        let mut set = ResourceSet::default();
        set.insert(resource.clone());
        withheld.apply(&mut set);
        set.get(ResourceKind::Endpoint, "consul/a").cloned()
    }

    #[test]
    fn what_was_accepted_serves_until_the_content_changes() {
        let (good, bad, next) = (endpoints(b"good"), endpoints(b"bad"), endpoints(b"next"));
        let mut withheld = Withheld::default();
        let diagnostic = Diagnostic::error(Code::EnvoyRejected, "refused");
        withheld.add(&bad, Some(good.clone()), Vec::new(), diagnostic.clone());
        assert_eq!(applied(&mut withheld, &bad), Some(good));
        assert_eq!(withheld.diagnostics().count(), 1);
        assert_eq!(applied(&mut withheld, &next), Some(next));
        assert_eq!(withheld.diagnostics().count(), 0);
        // The same bytes again are a new attempt.
        assert_eq!(applied(&mut withheld, &bad), Some(bad.clone()));
        withheld.add(&bad, None, Vec::new(), diagnostic.clone());
        assert_eq!(applied(&mut withheld, &bad), None, "nothing was ever accepted");
    }

    #[test]
    fn a_restart_knows_what_was_refused_and_what_serves_instead() {
        let document = DocumentId::File("a.hcl".into());
        let good = (*endpoints(b"good")).clone().from_documents([document].into());
        let (good, bad) = (Arc::new(good), endpoints(b"bad"));
        let mut withheld = Withheld::default();
        assert_eq!(withheld.take_unsaved(), None);
        withheld.add(
            &bad,
            Some(good.clone()),
            Vec::new(),
            Diagnostic::error(Code::EnvoyRejected, "refused"),
        );
        let saved = serde_json::to_vec(&withheld.take_unsaved().unwrap()).unwrap();
        assert_eq!(withheld.take_unsaved(), None, "once");
        let mut restored = Withheld::restored(serde_json::from_slice(&saved).unwrap());
        let served = applied(&mut restored, &bad).unwrap();
        assert_eq!(served, good);
        assert_eq!(served.origins, good.origins);
        assert_eq!(restored.diagnostics().count(), 1);
        applied(&mut restored, &endpoints(b"next"));
        assert_eq!(restored.take_unsaved(), Some(Vec::new()));
        // Keys do not go to disk.
        let key = Resource::with_version(
            ResourceKind::Secret,
            "certificate/a".into(),
            "1".to_owned(),
            b"key",
        );
        withheld.add(
            &key,
            None,
            Vec::new(),
            Diagnostic::error(Code::EnvoyRejected, "refused"),
        );
        assert_eq!(withheld.take_unsaved().unwrap().len(), 1);
    }
}
