//! Listeners that go. Until Envoy is told, one is open and needs what it looks its hosts up in. Afterwards connections from
//! before still look there, until Envoy has drained them. And one that leaves its port to a new one goes with it: as long as
//! that one waits, connections would be refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::order::DRAIN_PATIENCE;
use super::subscription::Subscription;
use crate::envoy::{Resource, ResourceKind, ResourceSet, listener_of_scope};

#[derive(Default)]
pub(super) struct Leaving {
    /// Envoy has not been told yet.
    open: BTreeSet<Arc<str>>,
    /// Envoy was told, and when.
    draining: BTreeMap<Arc<str>, Duration>,
    /// They have a port that a new one waits to open.
    staying: BTreeSet<Arc<str>>,
    /// Envoy comes back, and has not said which listeners it has.
    is_unknown: bool,
    /// When Envoy had said which scopes it has.
    looked_at: Option<Duration>,
    /// One was drained, or is there again, or the former form of one was drained: what was kept is looked at.
    pub(super) has_ended: bool,
}

impl Leaving {
    /// `said_by`: until then an Envoy that comes back names what it has.
    pub(super) fn review(
        &mut self,
        subscriptions: &[Subscription; 7],
        target: &ResourceSet,
        waits: impl Fn(&Resource) -> bool,
        said_by: Duration,
        now: Duration,
    ) {
        let listeners = &subscriptions[ResourceKind::Listener as usize];
        let published = |name: &Arc<str>| target.get(ResourceKind::Listener, name);
        self.is_unknown = !listeners.reconciled && now < said_by;
        let before = self.draining.len();
        self.draining
            .retain(|name, since| now < *since + DRAIN_PATIENCE && published(name).is_none());
        self.has_ended |= self.draining.len() < before;
        self.open.clear();
        let goes = |name: &&Arc<str>| published(name).is_none() && listeners.told.contains_key(*name);
        self.open.extend(listeners.dirty.keys().filter(goes).cloned());
        self.staying = those_that_stay(listeners, target, waits);
        let scopes = &subscriptions[ResourceKind::ScopedRoute as usize];
        if scopes.reconciled && self.looked_at.is_none() {
            self.looked_at = Some(now);
            // What an earlier stream told to go may still be drained: since when, nobody here knows.
            let brought = scopes
                .dirty
                .keys()
                .filter(|scope| scopes.told.contains_key(*scope));
            let listeners = brought.filter_map(|scope| listener_of_scope(scope));
            let gone = listeners.filter(|name| target.get(ResourceKind::Listener, name).is_none());
            self.draining.extend(gone.map(|name| (name.into(), now)));
        }
    }

    pub(super) fn on_sent(&mut self, removed: &[Arc<str>], now: Duration) {
        for name in removed {
            self.open.remove(name);
            self.draining.insert(name.clone(), now);
        }
    }

    /// A listener that is to move to another port.
    pub(super) fn withholds(&self, listener: &str) -> bool {
        self.staying.contains(listener)
    }

    pub(super) fn holds_removal(&self, kind: ResourceKind, name: &str) -> bool {
        let is_needed = |listener: &str| self.open.contains(listener) || self.draining.contains_key(listener);
        match kind {
            ResourceKind::Listener => self.staying.contains(name),
            ResourceKind::ScopedRoute => self.is_unknown || listener_of_scope(name).is_some_and(is_needed),
            ResourceKind::Route => is_needed(name),
            _ => false,
        }
    }

    pub(super) fn is_drained(&self, kind: ResourceKind, name: &str) -> bool {
        let is_draining =
            |listener: &str| self.draining.contains_key(listener) && !self.open.contains(listener);
        match kind {
            ResourceKind::ScopedRoute => listener_of_scope(name).is_some_and(is_draining),
            ResourceKind::Route => is_draining(name),
            _ => false,
        }
    }

    /// When Envoy had said which scopes it has.
    pub(super) fn looked_at(&self) -> Duration {
        self.looked_at.unwrap_or_default()
    }

    /// Something is held that goes within moments.
    pub(super) fn is_about_to(&self) -> bool {
        self.is_unknown || !self.open.is_empty() || !self.staying.is_empty()
    }

    pub(super) fn is_at_rest(&self) -> bool {
        self.draining.is_empty() && !self.is_about_to()
    }

    /// When what is held has been drained.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Duration> {
        self.draining.values().map(|since| *since + DRAIN_PATIENCE)
    }
}

/// Those at whose port a new listener waits for what it needs; and, where one of them is to move, those at the port that it
/// moves to.
fn those_that_stay(
    listeners: &Subscription,
    target: &ResourceSet,
    waits: impl Fn(&Resource) -> bool,
) -> BTreeSet<Arc<str>> {
    let all = || {
        let names = listeners.dirty.keys();
        names.map(|name| {
            (
                name,
                listeners.told.get(name),
                target.get(ResourceKind::Listener, name),
            )
        })
    };
    let mut awaited: BTreeSet<&Arc<str>> = all()
        .filter(|(_, told, published)| is_moved(*told, *published))
        .filter_map(|(_, _, published)| published.filter(|listener| waits(listener)))
        .filter_map(|listener| listener.binds.as_ref())
        .collect();
    let mut staying = BTreeSet::new();
    let mut is_any_unknown = false;
    while !awaited.is_empty() {
        let before = awaited.len();
        for (name, told, published) in all() {
            let Some(told) = told.filter(|_| is_moved(told, published)) else {
                continue;
            };
            // Of one from before this stream nobody knows the port.
            let is_unknown = told.is_held_by_envoy();
            if is_unknown || told.binds.as_ref().is_some_and(|port| awaited.contains(port)) {
                is_any_unknown |= is_unknown;
                staying.insert(name.clone());
                awaited.extend(published.and_then(|listener| listener.binds.as_ref()));
            }
        }
        if awaited.len() == before {
            break;
        }
    }
    if is_any_unknown {
        // Its port may be anybody's: who has none yet, or another than before, waits with it.
        let may_take_it = all().filter(|(_, told, published)| {
            published.is_some() && told.is_none_or(|told| told.is_held_by_envoy())
        });
        staying.extend(may_take_it.map(|(name, ..)| name.clone()));
    }
    staying
}

/// What Envoy has is not at the port where it is to be.
fn is_moved(told: Option<&Arc<Resource>>, published: Option<&Arc<Resource>>) -> bool {
    match (told, published) {
        (Some(told), Some(_)) if told.is_held_by_envoy() => false,
        (told, published) => told.map(|it| &it.binds) != published.map(|it| &it.binds),
    }
}
