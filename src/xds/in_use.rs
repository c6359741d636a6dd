//! What Envoy still uses, so that it is not removed under what uses it.
//!
//! Computed only when something is to be removed, and only from what is about to change: a resource that is up to date
//! was published together with everything it needs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::delivery::Hold;
use super::forms::Forms;
use super::order::{GATE_PATIENCE_SILENT, REMOVAL_PATIENCE};
use super::subscription::Subscription;
use crate::envoy::{Resource, ResourceKind, ResourceRef, ResourceSet};

#[derive(Default)]
pub(super) struct InUse {
    /// Needed by something whose change Envoy has not acknowledged yet, and until when to wait for that.
    for_now: HashMap<ResourceRef, Duration>,
    /// Needed by the old version of something whose new version Envoy refuses, or by what stays where a listener is about to
    /// go, or to turn.
    lasting: HashSet<ResourceRef>,
    /// Some of that is from another stream: nobody knows what it needs.
    is_lasting_unknown: bool,
    /// Needed by what stays for connections from before.
    drained: HashSet<ResourceRef>,
    /// Some of that is from another stream: nobody knows what it needs.
    is_drained_unknown: bool,
    /// A route or listener at Envoy is from another stream: nobody knows which clusters and routes it needs.
    are_clusters_unknown: bool,
    /// The same of a cluster or listener, and the secrets it needs.
    are_secrets_unknown: bool,
    not_before: Duration,
}

impl InUse {
    pub(super) fn of(
        subscriptions: &[Subscription; 7],
        target: &ResourceSet,
        forms: &Forms,
        not_before: Duration,
    ) -> Self {
        let mut in_use = Self {
            not_before,
            ..Self::default()
        };
        if !subscriptions
            .iter()
            .any(|subscription| has_removal(subscription, target, forms))
        {
            return in_use;
        }
        for subscription in subscriptions {
            for name in subscription.refusals.all().keys() {
                for resource in held(subscription, name) {
                    in_use.lasting.extend(resource.needs.iter().cloned());
                }
            }
            for name in subscription.dirty.keys() {
                if forms.is_drained(subscription.kind, name, target) {
                    held(subscription, name).for_each(|resource| in_use.keep_for_drained(resource));
                } else if forms.holds_removal(subscription.kind, name, target) {
                    for resource in held(subscription, name) {
                        in_use.is_lasting_unknown |= resource.is_held_by_envoy();
                        in_use.lasting.extend(resource.needs.iter().cloned());
                    }
                }
            }
            for resource in subscription.parked(target.of_kind(subscription.kind)) {
                in_use.keep_for_drained(resource);
            }
            // What is to be sent may wait for a new cluster first.
            let unsent = subscription
                .dirty
                .iter()
                .map(|(name, dirty)| (name, dirty.since + GATE_PATIENCE_SILENT + REMOVAL_PATIENCE));
            let in_flight = subscription.in_flight.iter().flat_map(|response| {
                let changed = response.changed.iter().map(|resource| &resource.name);
                let until = response.sent_at + REMOVAL_PATIENCE;
                changed.chain(&response.removed).map(move |name| (name, until))
            });
            for (resource, until) in unsent
                .chain(in_flight)
                .flat_map(|(name, until)| held(subscription, name).map(move |resource| (resource, until)))
            {
                if resource.is_held_by_envoy() {
                    use ResourceKind::{Cluster, Listener, Route, ScopedRoute};
                    in_use.are_clusters_unknown |=
                        matches!(subscription.kind, Listener | ScopedRoute | Route);
                    in_use.are_secrets_unknown |= matches!(subscription.kind, Listener | Cluster);
                }
                for need in resource.needs.iter() {
                    let last = in_use.for_now.entry(need.clone()).or_default();
                    *last = until.max(*last);
                }
            }
        }
        in_use.keep_endpoints_of_leaving_clusters(subscriptions, target);
        in_use
    }

    fn keep_for_drained(&mut self, resource: &Resource) {
        self.is_drained_unknown |= resource.is_held_by_envoy();
        self.drained.extend(resource.needs.iter().cloned());
    }

    pub(super) fn holds_removal(
        &self,
        kind: ResourceKind,
        name: &Arc<str>,
        since: Duration,
        now: Duration,
    ) -> Hold {
        if matches!(kind, ResourceKind::Listener | ResourceKind::ScopedRoute) {
            // Nothing refers to them; and a listener must go in the response that brings its successor on the same
            // port, a scope in the one that brings its successor with the same key.
            return Hold::No;
        }
        let reference = ResourceRef {
            kind,
            name: name.clone(),
        };
        let patience = since + REMOVAL_PATIENCE;
        let is_lasting = || self.is_lasting_unknown || self.lasting.contains(&reference);
        if now < self.not_before || is_lasting() {
            return Hold::Until(patience);
        }
        if self.is_drained_unknown || self.drained.contains(&reference) {
            return Hold::Drained;
        }
        let is_unknown = if kind == ResourceKind::Secret {
            self.are_secrets_unknown
        } else {
            self.are_clusters_unknown
        };
        let needed = self.for_now.get(&reference).copied();
        let until = needed.max(is_unknown.then_some(patience));
        match until {
            Some(until) if now < until => Hold::Until(until),
            _ => Hold::No,
        }
    }

    fn keep_endpoints_of_leaving_clusters(
        &mut self,
        subscriptions: &[Subscription; 7],
        target: &ResourceSet,
    ) {
        let clusters = &subscriptions[ResourceKind::Cluster as usize];
        for name in subscriptions[ResourceKind::Endpoint as usize].dirty.keys() {
            if clusters.told.contains_key(name) && target.get(ResourceKind::Cluster, name).is_none() {
                let endpoints = ResourceRef {
                    kind: ResourceKind::Endpoint,
                    name: name.clone(),
                };
                let is_parked = clusters.has_parked && !clusters.dirty.contains_key(name);
                match is_parked {
                    true => self.drained.insert(endpoints),
                    false => self.lasting.insert(endpoints),
                };
            }
        }
    }
}

/// One that nobody is known to keep.
fn has_removal(subscription: &Subscription, target: &ResourceSet, forms: &Forms) -> bool {
    subscription.dirty.keys().any(|name| {
        target.get(subscription.kind, name).is_none()
            && subscription.told.contains_key(name)
            && !forms.holds_removal(subscription.kind, name, target)
    })
}

/// What Envoy may have under this name: the last acknowledged, and what was sent since.
fn held<'a>(subscription: &'a Subscription, name: &str) -> impl Iterator<Item = &'a Arc<Resource>> {
    subscription
        .acked
        .get(name)
        .into_iter()
        .chain(subscription.told.get(name))
}
