//! What Envoy still uses, so that it is not removed under what uses it.
//!
//! Computed only when something is to be removed, and only from what is about to change: a resource that is up to date
//! was published together with everything it needs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::forms::Forms;
use super::order::REMOVAL_PATIENCE;
use super::subscription::Subscription;
use crate::envoy::{Resource, ResourceKind, ResourceRef, ResourceSet};

#[derive(Default)]
pub(super) struct InUse {
    /// Needed by something whose change Envoy has not acknowledged yet.
    for_now: HashSet<ResourceRef>,
    /// Needed by the old version of something whose new version Envoy refuses, or by what stays for connections from
    /// before.
    lasting: HashSet<ResourceRef>,
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
                if forms.holds_removal(subscription.kind, name, target) {
                    for resource in held(subscription, name) {
                        in_use.lasting.extend(resource.needs.iter().cloned());
                    }
                }
            }
            let in_flight = subscription.in_flight.iter().flat_map(|response| {
                response
                    .changed
                    .iter()
                    .map(|resource| &resource.name)
                    .chain(&response.removed)
            });
            for resource in subscription
                .dirty
                .keys()
                .chain(in_flight)
                .flat_map(|name| held(subscription, name))
            {
                if resource.is_held_by_envoy() {
                    use ResourceKind::{Cluster, Listener, Route, ScopedRoute};
                    in_use.are_clusters_unknown |=
                        matches!(subscription.kind, Listener | ScopedRoute | Route);
                    in_use.are_secrets_unknown |= matches!(subscription.kind, Listener | Cluster);
                }
                in_use.for_now.extend(resource.needs.iter().cloned());
            }
        }
        in_use.keep_endpoints_of_leaving_clusters(subscriptions, target);
        in_use
    }

    pub(super) fn holds_removal(
        &self,
        kind: ResourceKind,
        name: &Arc<str>,
        since: Duration,
        now: Duration,
    ) -> bool {
        if matches!(kind, ResourceKind::Listener | ResourceKind::ScopedRoute) {
            // Nothing refers to them; and a listener must go in the response that brings its successor on the same
            // port, a scope in the one that brings its successor with the same key.
            return false;
        }
        let reference = ResourceRef {
            kind,
            name: name.clone(),
        };
        if now < self.not_before || self.lasting.contains(&reference) {
            return true;
        }
        let is_unknown = if kind == ResourceKind::Secret {
            self.are_secrets_unknown
        } else {
            self.are_clusters_unknown
        };
        now < since + REMOVAL_PATIENCE && (is_unknown || self.for_now.contains(&reference))
    }

    fn keep_endpoints_of_leaving_clusters(
        &mut self,
        subscriptions: &[Subscription; 7],
        target: &ResourceSet,
    ) {
        let clusters = &subscriptions[ResourceKind::Cluster as usize];
        for name in subscriptions[ResourceKind::Endpoint as usize].dirty.keys() {
            if clusters.told.contains_key(name) && target.get(ResourceKind::Cluster, name).is_none() {
                self.lasting.insert(ResourceRef {
                    kind: ResourceKind::Endpoint,
                    name: name.clone(),
                });
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
