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
use super::keyless::Keyless;
use super::leaving::Leaving;
use super::order::{DRAIN_PATIENCE, GATE_PATIENCE_SILENT, REFUSAL_DELAY_MAX};
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
    /// A new listener waits for its scopes: until then at most.
    opening: Option<Duration>,
    leaving: Leaving,
}

impl Forms {
    /// `said_by`: until then an Envoy that comes back names what it has.
    pub(super) fn review(
        &mut self,
        subscriptions: &[Subscription; 7],
        target: &ResourceSet,
        gates: &Gates,
        keyless: &Keyless,
        said_by: Duration,
        now: Duration,
    ) {
        self.waiting.clear();
        self.turning.clear();
        self.opening = None;
        let before = self.turned.len();
        self.turned.retain(|_, since| now < *since + DRAIN_PATIENCE);
        self.leaving.has_ended |= self.turned.len() < before;
        let listeners = &subscriptions[ResourceKind::Listener as usize];
        let waits = |listener: &Resource| {
            gates.withholds(listener)
                || is_table_gated(target, gates, listener)
                || keyless.may_wait(subscriptions, target, listener, now)
        };
        self.leaving.review(subscriptions, target, waits, said_by, now);
        for (name, dirty) in &listeners.dirty {
            let Some(published) = target.get(ResourceKind::Listener, name) else {
                continue;
            };
            let until = dirty.since + GATE_PATIENCE_SILENT;
            let Some(told) = listeners.told.get(name) else {
                // An Envoy that starts opens no port before it has all that it asked for.
                let is_open = listeners.answered || listeners.resumed;
                if is_open && now < until && is_table_gated(target, gates, published) {
                    self.waiting.insert(name.clone(), until);
                }
                if is_open && !published.has_table() {
                    let since = dirty.since.max(self.leaving.looked_at());
                    let missing = scopes_missing(subscriptions, target, name, since, said_by, now);
                    self.opening = self.opening.max(missing.filter(|until| now < *until));
                }
                continue;
            };
            if told.is_held_by_envoy() {
                continue;
            }
            if told.has_table() == published.has_table() {
                continue;
            }
            self.turning.insert(name.clone());
            // Turned back: what was kept of this form serves again, and goes where it is gone.
            self.leaving.has_ended |= self.turned.remove(name).is_some();
            let is_early = match published.has_table() {
                true => is_table_early(subscriptions, target, gates, name),
                false => are_scopes_early(subscriptions, target, name),
            };
            if is_early && now < until {
                self.waiting.insert(name.clone(), until);
            }
        }
        if self.opening.is_some() {
            let all = listeners
                .dirty
                .iter()
                .map(|(name, dirty)| (name.clone(), dirty.since));
            let in_time = all.map(|(name, since)| (name, since + GATE_PATIENCE_SILENT));
            self.waiting.extend(in_time.filter(|(_, until)| now < *until));
        }
    }

    pub(super) fn on_sent(&mut self, listeners: &[Arc<Resource>], removed: &[Arc<str>], now: Duration) {
        self.leaving.on_sent(removed, now);
        for listener in listeners {
            if self.turning.contains(&listener.name) {
                self.turned.insert(listener.name.clone(), now);
            }
        }
    }

    pub(super) fn withholds(&self, resource: &Resource) -> bool {
        let name = &resource.name;
        let is_listener = resource.kind == ResourceKind::Listener;
        is_listener && (self.waiting.contains_key(name) || self.leaving.withholds(name))
    }

    /// It is of the former form of a listener that has turned, or is about to; or a listener that a new one replaces; or
    /// what a listener that goes looks its hosts up in.
    pub(super) fn holds_removal(&self, kind: ResourceKind, name: &str, target: &ResourceSet) -> bool {
        if self.is_at_rest() {
            return false;
        }
        if self.leaving.holds_removal(kind, name) {
            return true;
        }
        if self.opening.is_some() {
            let is_kept = |listener: &str| {
                self.waiting.contains_key(listener) && target.get(ResourceKind::Listener, listener).is_none()
            };
            match kind {
                ResourceKind::Listener if is_kept(name) => return true,
                ResourceKind::ScopedRoute if listener_of_scope(name).is_some_and(is_kept) => return true,
                _ => {}
            }
        }
        self.is_of_former_form(kind, name, target, |listener| {
            self.turned.contains_key(listener) || self.turning.contains(listener)
        })
    }

    fn is_of_former_form(
        &self,
        kind: ResourceKind,
        name: &str,
        target: &ResourceSet,
        is_meant: impl Fn(&str) -> bool,
    ) -> bool {
        let (listener, is_table) = match kind {
            ResourceKind::ScopedRoute => (listener_of_scope(name), false),
            ResourceKind::Route => (Some(name), true),
            _ => return false,
        };
        listener
            .filter(|listener| is_meant(listener))
            .and_then(|listener| target.get(ResourceKind::Listener, listener))
            .is_some_and(|listener| listener.has_table() != is_table)
    }

    /// It is kept for connections from before, and nobody waits for it to go.
    pub(super) fn is_drained(&self, kind: ResourceKind, name: &str, target: &ResourceSet) -> bool {
        if target.get(kind, name).is_some() {
            return false;
        }
        let has_turned =
            |listener: &str| self.turned.contains_key(listener) && !self.turning.contains(listener);
        self.leaving.is_drained(kind, name) || self.is_of_former_form(kind, name, target, has_turned)
    }

    /// Something was drained since this was asked: once for each.
    pub(super) fn take_ended(&mut self) -> bool {
        std::mem::take(&mut self.leaving.has_ended)
    }

    /// A new listener waits to open, or one that goes has not been told: what is held meanwhile goes within moments.
    pub(super) fn is_opening(&self) -> bool {
        self.opening.is_some() || self.leaving.is_about_to()
    }

    /// No listener has turned, or is about to, or waits to open, or goes.
    pub(super) fn is_at_rest(&self) -> bool {
        let nobody_turns = self.turned.is_empty() && self.turning.is_empty();
        nobody_turns && self.opening.is_none() && self.leaving.is_at_rest()
    }

    pub(super) fn deadline(&self, now: Duration) -> Option<Duration> {
        let ends = self.turned.values().map(|since| *since + DRAIN_PATIENCE);
        let waits = self.waiting.values().copied().chain(self.opening);
        let all = waits.chain(ends).chain(self.leaving.deadlines());
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

/// Envoy would open it without a route once it has waited for the table for 3 s.
fn is_table_gated(target: &ResourceSet, gates: &Gates, listener: &Resource) -> bool {
    let table = || target.get(ResourceKind::Route, &listener.name);
    listener.has_table() && table().is_some_and(|table| gates.withholds(table))
}

/// Envoy has asked for scopes, and some of this listener's are not there.
fn are_scopes_early(subscriptions: &[Subscription; 7], target: &ResourceSet, listener: &Arc<str>) -> bool {
    let scopes = &subscriptions[ResourceKind::ScopedRoute as usize];
    scopes.wildcard && scopes.is_awaited(target, |scope| listener_of_scope(scope) == Some(listener))
}

/// Some scopes that a new listener came with are not there: until when to wait for them.
fn scopes_missing(
    subscriptions: &[Subscription; 7],
    target: &ResourceSet,
    listener: &Arc<str>,
    since: Duration,
    said_by: Duration,
    now: Duration,
) -> Option<Duration> {
    let scopes = &subscriptions[ResourceKind::ScopedRoute as usize];
    let is_of_it = |scope: &Arc<str>| listener_of_scope(scope) == Some(listener);
    if !scopes.opened && now < said_by {
        // One that comes back asks for its listeners first, and for its scopes right after.
        let has_some = target.of_kind(ResourceKind::ScopedRoute).keys().any(is_of_it);
        return has_some.then_some(said_by);
    }
    if !scopes.wildcard {
        return None;
    }
    // It closed a moment ago: what was acknowledged of it is on its way out.
    let going: BTreeSet<&Arc<str>> = scopes
        .in_flight
        .iter()
        .flat_map(|response| &response.removed)
        .collect();
    // What was kept of an earlier time may be of another version.
    let is_there = |scope: &Arc<str>| {
        let acked = scopes.acked.get(scope).map(|acked| &acked.version);
        let published = target.get(ResourceKind::ScopedRoute, scope);
        acked.is_some_and(|acked| published.is_none_or(|published| published.version == *acked))
            && !going.contains(scope)
    };
    let is_meant = |scope: &Arc<str>| is_of_it(scope) && !is_there(scope);
    // None will come of one that Envoy refuses, or that nobody has the bytes of.
    let will_come = |scope: &Arc<str>| {
        target
            .get(ResourceKind::ScopedRoute, scope)
            .is_some_and(|published| !published.is_held_by_envoy() && !scopes.refusals.is_refused(published))
    };
    let to_be_sent = scopes
        .dirty
        .iter()
        .filter(|(scope, _)| is_meant(scope) && will_come(scope))
        .map(|(_, dirty)| match dirty.since <= since {
            true => since + GATE_PATIENCE_SILENT,
            // Refused beside a bad one and due anew, or come later: without such an end, one after the other.
            false => since + REFUSAL_DELAY_MAX,
        });
    let mut unanswered = scopes.in_flight.iter().flat_map(|response| &response.changed);
    let is_unanswered = unanswered.any(|scope| is_meant(&scope.name));
    to_be_sent
        .chain(is_unanswered.then_some(since + GATE_PATIENCE_SILENT))
        .max()
}
