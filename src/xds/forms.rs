//! How a listener looks its hosts up, by scopes or in a table: what it looks in is in place before it opens, or before it
//! changes from one form to the other; and the former one stays for those who still look there.
//!
//! To scopes: Envoy waits for none, since its one subscription to scopes is open, so the listener waits here until all of
//! its own are there. To a table: Envoy keeps the old listener while it waits for its first one, but for 3 s only, so the
//! listener waits here while its table waits for new clusters, or has not replaced an older one. Then connections from before
//! stay with the former listener until Envoy has drained them: what would go with the former form, and what it needs, goes
//! later.
//!
//! While a new listener waits, so do all changes of others: one of them may leave its port to it, and in one response it is
//! closed for nobody. A new one with a table opens, at Envoy, when that has come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::gate::Gates;
use super::order::{DRAIN_PATIENCE, GATE_PATIENCE_SILENT};
use super::subscription::Subscription;
use crate::envoy::{Resource, ResourceKind, ResourceSet, listener_of_scope};

#[derive(Default)]
pub(super) struct Forms {
    /// Listeners that are kept from Envoy for now, and until when.
    waiting: BTreeMap<Arc<str>, Duration>,
    /// Listeners that have one form at Envoy, and are to have the other one.
    turning: BTreeSet<Arc<str>>,
    /// Those that were sent in their new form, and when.
    turned: BTreeMap<Arc<str>, Duration>,
    /// A new listener waits for its scopes.
    opening: bool,
    /// Listeners that are to go and have not yet been told to: while they are open, they need their scopes.
    leaving: BTreeSet<Arc<str>>,
}

impl Forms {
    pub(super) fn review(
        &mut self,
        subscriptions: &[Subscription; 7],
        target: &ResourceSet,
        gates: &Gates,
        now: Duration,
    ) {
        self.waiting.clear();
        self.turning.clear();
        self.opening = false;
        self.leaving.clear();
        self.turned.retain(|_, since| now < *since + DRAIN_PATIENCE);
        let listeners = &subscriptions[ResourceKind::Listener as usize];
        for (name, dirty) in &listeners.dirty {
            let Some(published) = target.get(ResourceKind::Listener, name) else {
                if listeners.told.contains_key(name) {
                    self.leaving.insert(name.clone());
                }
                continue;
            };
            let until = dirty.since + GATE_PATIENCE_SILENT;
            let Some(told) = listeners.told.get(name) else {
                // An Envoy that starts opens no port before it has all that it asked for.
                self.opening |= listeners.answered
                    && now < until
                    && !published.has_table()
                    && are_scopes_missing(subscriptions, target, name, dirty.since);
                continue;
            };
            if told.is_held_by_envoy() {
                continue;
            }
            if told.has_table() == published.has_table() {
                continue;
            }
            self.turning.insert(name.clone());
            let is_early = match published.has_table() {
                true => is_table_early(subscriptions, target, gates, name),
                false => are_scopes_early(subscriptions, target, name),
            };
            if is_early && now < until {
                self.waiting.insert(name.clone(), until);
            }
        }
        if self.opening {
            let all = listeners
                .dirty
                .iter()
                .map(|(name, dirty)| (name.clone(), dirty.since));
            let in_time = all.map(|(name, since)| (name, since + GATE_PATIENCE_SILENT));
            self.waiting.extend(in_time.filter(|(_, until)| now < *until));
        }
    }

    pub(super) fn on_sent(&mut self, listeners: &[Arc<Resource>], removed: &[Arc<str>], now: Duration) {
        removed.iter().for_each(|name| _ = self.leaving.remove(name));
        for listener in listeners {
            if self.turning.contains(&listener.name) {
                self.turned.insert(listener.name.clone(), now);
            }
        }
    }

    pub(super) fn withholds(&self, resource: &Resource) -> bool {
        resource.kind == ResourceKind::Listener && self.waiting.contains_key(&resource.name)
    }

    /// It is of the former form of a listener that has turned, or is about to; or a listener that a new one replaces, or
    /// what that looks its hosts up in.
    pub(super) fn holds_removal(&self, kind: ResourceKind, name: &str, target: &ResourceSet) -> bool {
        if self.is_at_rest() {
            return false;
        }
        let is_open = |listener: &str| self.leaving.contains(listener);
        if kind == ResourceKind::ScopedRoute && listener_of_scope(name).is_some_and(is_open) {
            return true;
        }
        if self.opening {
            let is_kept = |listener: &str| {
                self.waiting.contains_key(listener) && target.get(ResourceKind::Listener, listener).is_none()
            };
            match kind {
                ResourceKind::Listener if is_kept(name) => return true,
                ResourceKind::ScopedRoute if listener_of_scope(name).is_some_and(is_kept) => return true,
                _ => {}
            }
        }
        let (listener, is_table) = match kind {
            ResourceKind::ScopedRoute => (listener_of_scope(name), false),
            ResourceKind::Route => (Some(name), true),
            _ => return false,
        };
        listener
            .filter(|listener| self.turned.contains_key(*listener) || self.turning.contains(*listener))
            .and_then(|listener| target.get(ResourceKind::Listener, listener))
            .is_some_and(|listener| listener.has_table() != is_table)
    }

    /// A new listener waits to open, or one that goes has not been told: what is held meanwhile goes within moments.
    pub(super) fn is_opening(&self) -> bool {
        self.opening || !self.leaving.is_empty()
    }

    /// No listener has turned, or is about to, or waits to open, or to go.
    pub(super) fn is_at_rest(&self) -> bool {
        let nobody_turns = self.turned.is_empty() && self.turning.is_empty() && self.leaving.is_empty();
        nobody_turns && !self.opening
    }

    pub(super) fn deadline(&self, now: Duration) -> Option<Duration> {
        let ends = self.turned.values().map(|since| *since + DRAIN_PATIENCE);
        let all = self.waiting.values().copied().chain(ends);
        all.filter(|at| *at > now).min()
    }
}

/// It waits for new clusters, or Envoy still has an older one, and would go on with that at once.
fn is_table_early(
    subscriptions: &[Subscription; 7],
    target: &ResourceSet,
    gates: &Gates,
    listener: &Arc<str>,
) -> bool {
    let tables = &subscriptions[ResourceKind::Route as usize];
    let waits = |table: &Arc<Resource>| gates.withholds(table);
    target.get(ResourceKind::Route, listener).is_some_and(waits)
        || (tables.is_subscribed(listener) && tables.is_awaited(target, |name| *name == **listener))
}

/// Envoy has asked for scopes, and some of this listener's are not there.
fn are_scopes_early(subscriptions: &[Subscription; 7], target: &ResourceSet, listener: &Arc<str>) -> bool {
    let scopes = &subscriptions[ResourceKind::ScopedRoute as usize];
    scopes.wildcard && scopes.is_awaited(target, |scope| listener_of_scope(scope) == Some(listener))
}

/// Envoy has asked for scopes, and some that a new listener came with are not there in any version.
fn are_scopes_missing(
    subscriptions: &[Subscription; 7],
    target: &ResourceSet,
    listener: &Arc<str>,
    since: Duration,
) -> bool {
    let scopes = &subscriptions[ResourceKind::ScopedRoute as usize];
    // It closed a moment ago: what was acknowledged of it is on its way out.
    let going: BTreeSet<&Arc<str>> = scopes
        .in_flight
        .iter()
        .flat_map(|response| &response.removed)
        .collect();
    let is_there = |scope: &Arc<str>| scopes.acked.contains_key(scope) && !going.contains(scope);
    let is_meant = |scope: &Arc<str>| listener_of_scope(scope) == Some(listener) && !is_there(scope);
    // None will come of one that Envoy refuses, or that nobody has the bytes of.
    let will_come = |scope: &Arc<str>| {
        target
            .get(ResourceKind::ScopedRoute, scope)
            .is_some_and(|published| !published.is_held_by_envoy() && !scopes.refusals.is_refused(published))
    };
    let mut to_be_sent = scopes.dirty.iter().filter(|(_, dirty)| dirty.since <= since);
    let mut unanswered = scopes.in_flight.iter().flat_map(|response| &response.changed);
    scopes.wildcard
        && (to_be_sent.any(|(scope, _)| is_meant(scope) && will_come(scope))
            || unanswered.any(|scope| is_meant(&scope.name)))
}
