//! Resources that Envoy refuses and that no document can be put back for: endpoints, a cluster of a bare service, a
//! certificate. Each stays as Envoy last accepted it, or away, until its content changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::diagnostics::Diagnostic;
use crate::envoy::{Resource, ResourceKind, ResourceSet};

#[derive(Debug, Default)]
pub(super) struct Withheld {
    entries: BTreeMap<(ResourceKind, Arc<str>), Entry>,
}

#[derive(Debug)]
struct Entry {
    /// The refused one.
    version: Arc<str>,
    /// None: Envoy never accepted any.
    instead: Option<Arc<Resource>>,
    diagnostic: Diagnostic,
}

impl Withheld {
    pub fn add(&mut self, refused: &Resource, instead: Option<Arc<Resource>>, diagnostic: Diagnostic) {
        let entry = Entry {
            version: refused.version.clone(),
            instead,
            diagnostic,
        };
        self.entries.insert((refused.kind, refused.name.clone()), entry);
    }

    /// Puts what was accepted in the place of what was refused. An entry whose resource has changed ends.
    pub fn apply(&mut self, set: &mut ResourceSet) {
        self.entries.retain(|(kind, name), entry| {
            set.get(*kind, name)
                .is_some_and(|resource| resource.version == entry.version)
        });
        for ((kind, name), entry) in &self.entries {
            match &entry.instead {
                Some(accepted) => _ = set.insert(accepted.clone()),
                None => _ = set.remove(*kind, name),
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
        withheld.add(&bad, Some(good.clone()), diagnostic.clone());
        assert_eq!(applied(&mut withheld, &bad), Some(good));
        assert_eq!(withheld.diagnostics().count(), 1);
        assert_eq!(applied(&mut withheld, &next), Some(next));
        assert_eq!(withheld.diagnostics().count(), 0);
        // The same bytes again are a new attempt.
        assert_eq!(applied(&mut withheld, &bad), Some(bad.clone()));
        withheld.add(&bad, None, diagnostic);
        assert_eq!(applied(&mut withheld, &bad), None, "nothing was ever accepted");
    }
}
