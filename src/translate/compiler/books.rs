//! Who uses what: the books that tell when a cluster, a watch, a filter or a table begins and ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Compiled, Compiler, Fetched, HostKey, HostUnit, NO_HOST, Work, least};
use crate::envoy::{Resource, ResourceKind};
use crate::ir::Routing;
use crate::model::mesh::Interest;
use crate::model::{CertificateQuery, DocumentId};
use crate::resolve::Destination;

impl Compiler {
    pub(super) fn put(&mut self, resource: Resource, compiled: &mut Compiled) {
        let before = self.set.get(resource.kind, &resource.name).cloned();
        let resource = Arc::new(resource);
        if self.set.insert(resource.clone()) {
            compiled.changed = true;
            self.made_from(before.as_deref(), Some(&resource), compiled);
        }
    }

    pub(super) fn withdraw(&mut self, kind: ResourceKind, name: &str, compiled: &mut Compiled) {
        let before = self.set.get(kind, name).cloned();
        if self.set.remove(kind, name) {
            compiled.changed = true;
            self.made_from(before.as_deref(), None, compiled);
        }
    }

    /// Keeps the book of which documents have a part in the set, and notes whose part changed.
    fn made_from(&mut self, before: Option<&Resource>, after: Option<&Resource>, compiled: &mut Compiled) {
        let origins = |resource: Option<&Resource>| resource.map(|resource| resource.origins.clone());
        let (old, new) = (origins(before), origins(after));
        let documents =
            |side: &Option<Arc<[DocumentId]>>| side.iter().flat_map(|ids| ids.iter().cloned()).collect();
        let (old, new): (BTreeSet<DocumentId>, BTreeSet<DocumentId>) = (documents(&old), documents(&new));
        for id in old.difference(&new) {
            match self.parts.get(id).copied() {
                Some(2..) => *self.parts.entry(id.clone()).or_default() -= 1,
                _ => _ = self.parts.remove(id),
            }
        }
        for id in new.difference(&old) {
            *self.parts.entry(id.clone()).or_default() += 1;
        }
        compiled.documents.extend(old);
        compiled.documents.extend(new);
    }

    /// Keeps the books of who uses what, and notes the clusters, watches and listeners that this starts or ends.
    pub(super) fn host_uses(
        &mut self,
        key: &HostKey,
        before: Option<&HostUnit>,
        after: Option<&HostUnit>,
        work: &mut Work,
    ) {
        let (listener, host) = key;
        let none = BTreeSet::new();
        let (old, new) = (
            before.map_or(&none, |unit| &unit.targets),
            after.map_or(&none, |unit| &unit.targets),
        );
        for target in old.symmetric_difference(new) {
            let user = (target.clone(), listener.clone(), host.clone());
            let before = (self.target_in_use(target), self.only_connections(target));
            match new.contains(target) {
                true => self.target_users.insert(user),
                false => self.target_users.remove(&user),
            };
            if before != (self.target_in_use(target), self.only_connections(target)) {
                work.clusters.insert(target.clone());
            }
        }
        let no_features = BTreeSet::new();
        let (old, new) = (
            before.map_or(&no_features, |unit| &unit.features),
            after.map_or(&no_features, |unit| &unit.features),
        );
        for &feature in old.difference(new) {
            self.filters_used
                .remove(&(listener.clone(), feature, host.clone()));
            if !self.filter_in_use(listener, feature) {
                work.listeners.insert(listener.clone());
            }
        }
        for &feature in new.difference(old) {
            if !self.filter_in_use(listener, feature) {
                work.listeners.insert(listener.clone());
            }
            self.filters_used
                .insert((listener.clone(), feature, host.clone()));
        }
        if before.is_some() != after.is_some() && host.starts_with('*') {
            let count = self.wildcards.entry(listener.clone()).or_default();
            *count = if after.is_some() {
                *count + 1
            } else {
                count.saturating_sub(1)
            };
        }
    }

    pub(super) fn target_in_use(&self, target: &Destination) -> bool {
        self.target_users
            .range((target.clone(), least(), least())..)
            .next()
            .is_some_and(|(used, _, _)| used == target)
    }

    /// It looks past no more users than there are tcp listeners.
    pub(super) fn only_connections(&self, target: &Destination) -> bool {
        let users = self.target_users.range((target.clone(), least(), least())..);
        let mut users = users.take_while(|(used, _, _)| used == target).peekable();
        users.peek().is_some() && users.all(|(_, _, host)| **host == *NO_HOST)
    }

    pub(super) fn interest_in_use(&self, interest: &Interest) -> bool {
        self.targets_of
            .range((interest.clone(), Destination::first())..)
            .next()
            .is_some_and(|(used, _)| used == interest)
    }

    pub(super) fn filter_in_use(&self, listener: &Arc<str>, feature: &'static str) -> bool {
        self.filters_used
            .range((listener.clone(), feature, least())..)
            .next()
            .is_some_and(|(l, f, _)| l == listener && *f == feature)
    }

    pub(super) fn routing(&self, listener: &Arc<str>) -> Routing {
        match self.wildcards.get(listener) {
            Some(1..) => Routing::Table,
            _ => Routing::Scoped,
        }
    }

    pub(super) fn routings(&self) -> BTreeMap<Arc<str>, Routing> {
        self.wildcards
            .keys()
            .map(|listener| (listener.clone(), self.routing(listener)))
            .collect()
    }

    /// A host that is held back still goes there: what stands, stands.
    pub(super) fn is_held(&self, target: &Destination) -> bool {
        self.settings.hold_pending
            && self
                .target_users
                .range((target.clone(), least(), least())..)
                .take_while(|(used, _, _)| used == target)
                .any(|(_, listener, host)| self.held.contains(&(listener.clone(), host.clone())))
    }

    /// Notes which watches feed a destination now.
    pub(super) fn fed_by(
        &mut self,
        target: &Destination,
        interests: BTreeSet<Interest>,
        compiled: &mut Compiled,
    ) {
        let none = BTreeSet::new();
        let old = self.interests_of.get(target).unwrap_or(&none).clone();
        if old == interests {
            return;
        }
        for gone in old.difference(&interests) {
            self.targets_of.remove(&(gone.clone(), target.clone()));
            if !self.interest_in_use(gone) {
                compiled.dropped.insert(gone.clone());
            }
        }
        for new in interests.difference(&old) {
            if !self.interest_in_use(new) {
                compiled.added.insert(new.clone());
            }
            self.targets_of.insert((new.clone(), target.clone()));
        }
        if interests.is_empty() {
            self.interests_of.remove(target);
        } else {
            self.interests_of.insert(target.clone(), interests);
        }
    }

    /// The certificates that a query brings.
    pub(super) fn certificates_of<'a>(
        &'a self,
        query: &'a CertificateQuery,
    ) -> impl Iterator<Item = &'a Arc<str>> + 'a {
        self.certificates_of_query
            .range((query.clone(), least())..)
            .take_while(move |(known, _)| known == query)
            .map(|(_, name)| name)
    }

    /// Notes what to fetch for a certificate now.
    pub(super) fn fetched_by(&mut self, name: &Arc<str>, fetched: Fetched, compiled: &mut Compiled) {
        let old = self.certificates.get(name).cloned().unwrap_or_default();
        if old == fetched {
            return;
        }
        for query in old
            .queries()
            .filter(|query| fetched.queries().all(|other| other != *query))
        {
            self.certificates_of_query.remove(&(query.clone(), name.clone()));
            if !self.needs_certificate(query) {
                compiled.certificates_dropped.insert(query.clone());
            }
        }
        for query in fetched
            .queries()
            .filter(|query| old.queries().all(|other| other != *query))
        {
            if !self.needs_certificate(query) {
                compiled.certificates_added.insert(query.clone());
            }
            self.certificates_of_query.insert((query.clone(), name.clone()));
        }
        if fetched.queries().next().is_none() {
            self.certificates.remove(name);
        } else {
            self.certificates.insert(name.clone(), fetched);
        }
    }
}
