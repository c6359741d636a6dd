//! Who uses what: the books that tell when a cluster, a watch, a filter or a table begins and ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdSet;

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

/// How many units send to a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Users {
    requests: usize,
    connections: usize,
    /// Those among them that are held back.
    held: usize,
}

impl Users {
    fn of_kind(&mut self, host: &str) -> &mut usize {
        match host {
            NO_HOST => &mut self.connections,
            _ => &mut self.requests,
        }
    }

    fn send(self) -> Use {
        match self {
            Self { requests: 1.., .. } => Use::Requests,
            Self { connections: 1.., .. } => Use::Connections,
            _ => Use::None,
        }
    }
}

/// The destinations that a watch feeds. Nearly always one: a set has room for many.
#[derive(Clone, Debug)]
pub(super) enum Fed {
    One(Destination),
    Several(OrdSet<Destination>),
}

impl Fed {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Destination> {
        let (one, several) = match self {
            Self::One(one) => (Some(one), None),
            Self::Several(several) => (None, Some(several)),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }

    fn insert(&mut self, target: Destination) {
        match self {
            Self::One(one) => *self = Self::Several([one.clone(), target].into_iter().collect()),
            Self::Several(several) => _ = several.insert(target),
        }
    }

    /// Whether any is left.
    fn remove(&mut self, target: &Destination) -> bool {
        match self {
            Self::One(one) => one != target,
            Self::Several(several) => {
                several.remove(target);
                !several.is_empty()
            }
        }
    }
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
        for id in missing_in(old, new) {
            match self.parts.get_mut(id) {
                Some(parts @ 2..) => *parts -= 1,
                _ => _ = self.parts.remove(id),
            }
        }
        for id in missing_in(new, old) {
            match self.parts.get_mut(id) {
                Some(parts) => *parts += 1,
                None => _ = self.parts.insert(id.clone(), 1),
            }
        }
        compiled.documents.extend(old.iter().chain(new).cloned());
    }

    /// Keeps the books of who uses what, and notes the clusters, watches and listeners that this starts or ends.
    /// `before` and `after` are the unit, and whether it is held back.
    pub(super) fn host_uses(
        &mut self,
        key: &HostKey,
        (before, was_held): (Option<&HostUnit>, bool),
        (after, is_held): (Option<&HostUnit>, bool),
        work: &mut Work,
    ) {
        let (listener, host) = key;
        let (old, new): (&[Destination], &[Destination]) = (
            before.map_or(&[], |unit| &unit.targets),
            after.map_or(&[], |unit| &unit.targets),
        );
        for target in missing_in(old, new) {
            let (before, after) = self.users_change(target, |users| {
                *users.of_kind(host) -= 1;
                users.held -= usize::from(was_held);
            });
            if before != after {
                work.clusters.insert(target.clone());
            }
        }
        for target in missing_in(new, old) {
            self.begins_to_lead_to(target);
            let (before, after) = self.users_change(target, |users| {
                *users.of_kind(host) += 1;
                users.held += usize::from(is_held);
            });
            if before != after {
                work.clusters.insert(target.clone());
            }
        }
        if was_held != is_held {
            for target in new.iter().filter(|target| old.binary_search(target).is_ok()) {
                self.users_change(target, |users| {
                    users.held = users.held + usize::from(is_held) - usize::from(was_held);
                });
            }
        }
        let no_features = BTreeSet::new();
        let (old, new) = (
            before.map_or(&no_features, |unit| &unit.features),
            after.map_or(&no_features, |unit| &unit.features),
        );
        for &feature in old.difference(new) {
            let place = (listener.clone(), feature);
            match self.filters_used.get_mut(&place) {
                Some(hosts @ 2..) => *hosts -= 1,
                _ => {
                    self.filters_used.remove(&place);
                    work.listeners.insert(listener.clone());
                }
            }
        }
        for &feature in new.difference(old) {
            let hosts = self.filters_used.entry((listener.clone(), feature)).or_default();
            *hosts += 1;
            if *hosts == 1 {
                work.listeners.insert(listener.clone());
            }
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

    /// How the destination was used, and how it is.
    fn users_change(&mut self, target: &Destination, change: impl FnOnce(&mut Users)) -> (Use, Use) {
        let mut users = self.target_users.get(target).copied().unwrap_or_default();
        let before = users.send();
        change(&mut users);
        if users == Users::default() {
            self.target_users.remove(target);
        } else {
            self.target_users.insert(target.clone(), users);
        }
        (before, users.send())
    }

    pub(super) fn use_of(&self, target: &Destination) -> Use {
        self.target_users
            .get(target)
            .map_or(Use::None, |users| users.send())
    }

    pub(super) fn target_in_use(&self, target: &Destination) -> bool {
        self.use_of(target) != Use::None
    }

    pub(super) fn interest_in_use(&self, interest: &Interest) -> bool {
        self.targets_of.contains_key(interest)
    }

    pub(super) fn filter_in_use(&self, listener: &Arc<str>, feature: &'static str) -> bool {
        self.filters_used.contains_key(&(listener.clone(), feature))
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
        self.settings.hold_pending && self.target_users.get(target).is_some_and(|users| users.held > 0)
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
            if self
                .targets_of
                .get_mut(gone)
                .is_some_and(|fed| !fed.remove(target))
            {
                self.targets_of.remove(gone);
                compiled.dropped.insert(gone.clone());
            }
        }
        for new in missing_in(&interests, &old) {
            match self.targets_of.get_mut(new) {
                Some(fed) => fed.insert(target.clone()),
                None => {
                    self.targets_of.insert(new.clone(), Fed::One(target.clone()));
                    compiled.added.insert(new.clone());
                }
            }
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
