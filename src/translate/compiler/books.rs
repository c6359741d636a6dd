//! Who uses what: the books that tell when a cluster, a watch, a filter or a table begins and ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Compiled, Compiler, Fetched, HostKey, HostUnit, NO_HOST, Work, least};
use crate::envoy::{Changed, Resource, ResourceKind};
use crate::ir::Routing;
use crate::model::mesh::Interest;
use crate::model::{CertificateQuery, DocumentId};
use crate::resolve::Destination;

/// Who sends to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    None,
    /// Nobody but tcp listeners.
    Connections,
    Requests,
}

/// No scope has a key for it.
pub(super) fn is_wildcard(host: &str) -> bool {
    host.starts_with('*')
}

impl Compiler {
    pub(super) fn put(&mut self, resource: Resource, compiled: &mut Compiled) {
        let resource = Arc::new(resource);
        if let Changed::Yes { before } = self.set.replace(resource.clone()) {
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
        fn origins(resource: Option<&Resource>) -> &[DocumentId] {
            resource.map_or(&[], |resource| &resource.origins)
        }
        let (old, new) = (origins(before), origins(after));
        if old != new {
            let (was, is): (BTreeSet<&DocumentId>, BTreeSet<&DocumentId>) =
                (old.iter().collect(), new.iter().collect());
            for &id in was.difference(&is) {
                match self.parts.get_mut(id) {
                    Some(parts @ 2..) => *parts -= 1,
                    _ => _ = self.parts.remove(id),
                }
            }
            for &id in is.difference(&was) {
                match self.parts.get_mut(id) {
                    Some(parts) => *parts += 1,
                    None => _ = self.parts.insert(id.clone(), 1),
                }
            }
        }
        compiled.documents.extend(old.iter().chain(new).cloned());
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
        let (old, new): (&[Destination], &[Destination]) = (
            before.map_or(&[], |unit| &unit.targets),
            after.map_or(&[], |unit| &unit.targets),
        );
        for target in missing_in(old, new) {
            let before = self.use_of(target);
            self.target_users
                .remove(&(target.clone(), listener.clone(), host.clone()));
            if self.use_of(target) != before {
                work.clusters.insert(target.clone());
            }
        }
        for target in missing_in(new, old) {
            let before = self.use_of(target);
            self.target_users
                .insert((target.clone(), listener.clone(), host.clone()));
            // One more user changes the use only where it is of another kind than those before.
            let is_new = match before {
                Use::Requests => false,
                Use::Connections => **host != *NO_HOST,
                Use::None => true,
            };
            if is_new {
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
        if before.is_some() != after.is_some() && is_wildcard(host) {
            let count = self.wildcards.entry(listener.clone()).or_default();
            *count = if after.is_some() {
                *count + 1
            } else {
                count.saturating_sub(1)
            };
        }
    }

    /// It looks past no more users than there are tcp listeners.
    pub(super) fn use_of(&self, target: &Destination) -> Use {
        let from = (target.clone(), least(), least());
        match self.target_users.get_next(&from) {
            Some((used, _, host)) if used == target && **host != *NO_HOST => return Use::Requests,
            Some((used, _, _)) if used == target => {}
            _ => return Use::None,
        }
        let mut users = self
            .target_users
            .range(from..)
            .take_while(|(used, _, _)| used == target);
        match users.all(|(_, _, host)| **host == *NO_HOST) {
            true => Use::Connections,
            false => Use::Requests,
        }
    }

    pub(super) fn target_in_use(&self, target: &Destination) -> bool {
        self.use_of(target) != Use::None
    }

    pub(super) fn interest_in_use(&self, interest: &Interest) -> bool {
        self.targets_of
            .get_next(&(interest.clone(), Destination::first()))
            .is_some_and(|(used, _)| used == interest)
    }

    pub(super) fn filter_in_use(&self, listener: &Arc<str>, feature: &'static str) -> bool {
        self.filters_used
            .get_next(&(listener.clone(), feature, least()))
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
        interests: Box<[Interest]>,
        compiled: &mut Compiled,
    ) {
        let old = self.interests_of.get(target).cloned().unwrap_or_default();
        if *old == *interests {
            return;
        }
        for gone in missing_in(&old, &interests) {
            self.targets_of.remove(&(gone.clone(), target.clone()));
            if !self.interest_in_use(gone) {
                compiled.dropped.insert(gone.clone());
            }
        }
        for new in missing_in(&interests, &old) {
            if !self.interest_in_use(new) {
                compiled.added.insert(new.clone());
            }
            self.targets_of.insert((new.clone(), target.clone()));
        }
        if interests.is_empty() {
            self.interests_of.remove(target);
        } else {
            self.interests_of.insert(target.clone(), interests.into());
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

/// Of two lists in order.
fn missing_in<'a, T: Ord>(list: &'a [T], other: &'a [T]) -> impl Iterator<Item = &'a T> {
    list.iter().filter(|one| other.binary_search(one).is_err())
}
