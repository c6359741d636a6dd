//! Resources that Envoy refuses and that no document can be put back for: endpoints, a cluster of a bare service, a
//! certificate, a listener whose certificate brought other names. Each stays as Envoy last accepted it, or away, until its
//! content changes.
//!
//! What documents are made into is remembered beyond that, until Envoy accepts what came after: whoever edits one of them
//! meanwhile has its text refused for a fault that was there before. Without the text the resource is again one that
//! Envoy refused, which tells that the text is not to blame.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::diagnostics::Diagnostic;
use crate::envoy::{Resource, ResourceKind, ResourceRef, ResourceSet};
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
    /// Others that were refused. The agents before this one knew none, nor what follows with a default.
    #[serde(default)]
    versions: Vec<Arc<str>>,
    instead: Option<Kept>,
    #[serde(default)]
    needed: Vec<(ResourceKind, Arc<str>, Kept)>,
    diagnostic: Diagnostic,
}

/// A resource as Envoy accepted it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    message: Vec<u8>,
    documents: Vec<DocumentId>,
    #[serde(default)]
    needs: Vec<(ResourceKind, Arc<str>)>,
    #[serde(default)]
    needs_one_of: Vec<Arc<str>>,
    #[serde(default)]
    binds: Option<Arc<str>>,
}

impl Kept {
    /// None: its bytes are not here.
    fn of(resource: &Resource) -> Option<Self> {
        let needs = resource.needs.iter();
        Some(Self {
            message: resource.message()?,
            documents: resource.origins.to_vec(),
            needs: needs.map(|need| (need.kind, need.name.clone())).collect(),
            needs_one_of: resource.needs_one_of.to_vec(),
            binds: resource.binds.clone(),
        })
    }

    fn resource(self, kind: ResourceKind, name: Arc<str>) -> Arc<Resource> {
        let needs = self.needs.into_iter();
        let mut resource = Resource::new(kind, name, &self.message)
            .needing(needs.map(|(kind, name)| ResourceRef { kind, name }).collect())
            .needing_one_of(self.needs_one_of.into())
            .from_documents(self.documents.into());
        resource.binds = self.binds;
        Arc::new(resource)
    }
}

#[derive(Debug)]
struct Entry {
    /// Those that were refused, since Envoy last accepted one.
    versions: BTreeSet<Arc<str>>,
    /// The resource is one of them now. Otherwise something else is being tried.
    holds: bool,
    /// None: Envoy never accepted any.
    instead: Option<Arc<Resource>>,
    /// What that one needs, as Envoy has it: kept where the compiled set has it no more.
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
        let key = (refused.kind, refused.name.clone());
        let before = self.entries.remove(&key);
        let (mut versions, former, needed_before) = match before {
            Some(before) => (before.versions, before.instead, before.needed),
            None => Default::default(),
        };
        versions.insert(refused.version.clone());
        let former = former.filter(|former| !versions.contains(&former.version));
        let (instead, needed) = match (instead, former) {
            // No Envoy that is here has any: what was put back before is as good as ever.
            (None, Some(former)) => (Some(former), needed_before),
            // Its bytes are not known from Envoy, but from before.
            (Some(instead), Some(former)) if instead.is_held_by_envoy() => (Some(former), needed_before),
            (instead, _) => (instead, needed),
        };
        let entry = Entry {
            versions,
            holds: true,
            instead,
            needed,
            diagnostic,
        };
        self.entries.insert(key, entry);
        self.is_changed = true;
    }

    pub fn restored(kept: Vec<WithheldResource>) -> Self {
        let entry = |kept: WithheldResource| {
            let name = kept.name.clone();
            let needed = kept.needed.into_iter();
            let entry = Entry {
                versions: kept.versions.into_iter().chain([kept.version]).collect(),
                holds: true,
                instead: kept.instead.map(|instead| instead.resource(kept.kind, name)),
                needed: needed
                    .map(|(kind, name, kept)| kept.resource(kind, name))
                    .collect(),
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
                Some(accepted) => Some(Kept::of(accepted)?),
                None => None,
            };
            let needed = entry
                .needed
                .iter()
                .filter(|needed| needed.kind != ResourceKind::Secret);
            let mut versions = entry.versions.iter().cloned();
            let version = versions.next()?;
            (*kind != ResourceKind::Secret).then(|| WithheldResource {
                kind: *kind,
                name: name.clone(),
                version,
                versions: versions.collect(),
                instead,
                needed: needed
                    .filter_map(|needed| Some((needed.kind, needed.name.clone(), Kept::of(needed)?)))
                    .collect(),
                diagnostic: entry.diagnostic.clone(),
            })
        });
        Some(kept.collect())
    }

    /// Puts what was accepted in the place of what was refused. An entry whose resource has changed ends, or rests.
    pub fn apply(&mut self, set: &mut ResourceSet) {
        let before = self.entries.len();
        self.entries.retain(|(kind, name), entry| {
            let Some(resource) = set.get(*kind, name) else {
                return false;
            };
            entry.holds = entry.versions.contains(&resource.version);
            // Nobody is blamed for what no document is made into.
            entry.holds || !resource.origins.is_empty()
        });
        self.is_changed |= self.entries.len() != before;
        for ((kind, name), entry) in self.holding() {
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
        self.holding().map(|(_, entry)| &entry.diagnostic)
    }

    /// The resource is now one that Envoy refused.
    pub fn holds(&self, kind: ResourceKind, name: &Arc<str>) -> bool {
        self.entries
            .get(&(kind, name.clone()))
            .is_some_and(|entry| entry.holds)
    }

    /// The resources in whose place something else serves, or nothing.
    pub fn held(&self) -> impl Iterator<Item = &(ResourceKind, Arc<str>)> {
        self.holding().map(|(key, _)| key)
    }

    /// An Envoy runs with these. Where that is what came after a refused one, the same bytes again are a new attempt.
    pub fn accepted(&mut self, published: &ResourceSet, acked: &ResourceSet) {
        let before = self.entries.len();
        self.entries.retain(|(kind, name), entry| {
            let version = |set: &ResourceSet| set.get(*kind, name).map(|resource| resource.version.clone());
            entry.holds || version(published) != version(acked)
        });
        self.is_changed |= self.entries.len() != before;
    }

    fn holding(&self) -> impl Iterator<Item = (&(ResourceKind, Arc<str>), &Entry)> {
        self.entries.iter().filter(|(_, entry)| entry.holds)
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
    fn what_documents_are_made_into_is_remembered_until_envoy_accepts_what_came_after() {
        let document = || [DocumentId::File("a.hcl".into())].into();
        let of_document = |bytes| Arc::new((*endpoints(bytes)).clone().from_documents(document()));
        let (good, bad, next) = (of_document(b"good"), of_document(b"bad"), of_document(b"next"));
        let mut withheld = Withheld::default();
        let refused = |message: &str| Diagnostic::error(Code::EnvoyRejected, message);
        withheld.add(&bad, Some(good.clone()), Vec::new(), refused("bad"));
        assert_eq!(applied(&mut withheld, &bad), Some(good.clone()));
        // Tried, and said nothing of while it is.
        assert_eq!(applied(&mut withheld, &next), Some(next.clone()));
        assert_eq!(withheld.diagnostics().count(), 0);
        assert!(!withheld.holds(bad.kind, &bad.name));
        assert_eq!(applied(&mut withheld, &bad), Some(good.clone()));
        assert!(withheld.holds(bad.kind, &bad.name));
        // Refused as well, where no Envoy is left that runs with the good one.
        withheld.add(&next, None, Vec::new(), refused("next"));
        for resource in [&bad, &next] {
            assert_eq!(applied(&mut withheld, resource), Some(good.clone()));
            assert_eq!(withheld.held().count(), 1);
        }
        let saved = withheld.take_unsaved().unwrap();
        let mut withheld = Withheld::restored(saved);
        for resource in [&bad, &next] {
            assert_eq!(
                applied(&mut withheld, resource),
                Some(good.clone()),
                "after a restart"
            );
        }
        let set = |resource: &Arc<Resource>| {
            let mut set = ResourceSet::default();
            set.insert(resource.clone());
            set
        };
        let last = of_document(b"last");
        applied(&mut withheld, &last);
        withheld.accepted(&set(&last), &set(&good));
        assert_eq!(applied(&mut withheld, &bad), Some(good), "it is not there yet");
        applied(&mut withheld, &last);
        withheld.accepted(&set(&last), &set(&last));
        assert_eq!(applied(&mut withheld, &bad), Some(bad), "a new attempt");
    }

    #[test]
    fn what_is_refused_itself_serves_in_no_place() {
        let (good, bad) = (endpoints(b"good"), endpoints(b"bad"));
        let mut withheld = Withheld::default();
        let refused = || Diagnostic::error(Code::EnvoyRejected, "refused");
        withheld.add(&bad, Some(good.clone()), Vec::new(), refused());
        // Another Envoy, of another version.
        withheld.add(&good, None, Vec::new(), refused());
        for resource in [&bad, &good] {
            assert_eq!(applied(&mut withheld, resource), None);
        }
    }

    #[test]
    fn a_restart_knows_what_was_refused_and_what_serves_instead() {
        let document = DocumentId::File("a.hcl".into());
        let cluster = Arc::new(Resource::new(ResourceKind::Cluster, "before".into(), b"cluster"));
        let key = Resource::new(ResourceKind::Secret, "certificate/b".into(), b"key");
        let needs = [&*cluster, &key].map(|needed| ResourceRef {
            kind: needed.kind,
            name: needed.name.clone(),
        });
        let good = (*endpoints(b"good")).clone().from_documents([document].into());
        let good = Arc::new(
            good.needing(needs.into())
                .needing_one_of([key.name.clone()].into()),
        );
        let bad = endpoints(b"bad");
        let mut withheld = Withheld::default();
        assert_eq!(withheld.take_unsaved(), None);
        withheld.add(
            &bad,
            Some(good.clone()),
            vec![cluster.clone(), Arc::new(key)],
            Diagnostic::error(Code::EnvoyRejected, "refused"),
        );
        let saved = serde_json::to_vec(&withheld.take_unsaved().unwrap()).unwrap();
        assert_eq!(withheld.take_unsaved(), None, "once");
        let mut restored = Withheld::restored(serde_json::from_slice(&saved).unwrap());
        let mut set = ResourceSet::default();
        set.insert(bad.clone());
        restored.apply(&mut set);
        let served = set.get(bad.kind, &bad.name).unwrap();
        assert_eq!(*served, good);
        assert_eq!(served.origins, good.origins);
        assert_eq!(served.needs, good.needs);
        assert_eq!(served.needs_one_of, good.needs_one_of);
        // What only that one needs. Keys do not go to disk.
        assert_eq!(set.get(cluster.kind, &cluster.name), Some(&cluster));
        assert_eq!(set.of_kind(ResourceKind::Secret).len(), 0);
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
