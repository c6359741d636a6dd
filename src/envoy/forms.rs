//! The two forms in which a listener's routes come: a scope for each host, or one table of all hosts.
//!
//! A listener that Envoy looks its hosts up in a table for has scopes too: connections from before it got its table still
//! look there, until Envoy has drained them.

use std::sync::Arc;

use super::resource::{Resource, ResourceChange, ResourceKind, ResourceSet};

/// The name of a host's scope.
pub fn scope_name(listener: &str, host: &str) -> String {
    [listener, "/", host].concat()
}

/// Names of listeners hold no slash.
pub fn listener_of_scope(scope: &str) -> Option<&str> {
    scope.split_once('/').map(|(listener, _)| listener)
}

impl Resource {
    /// A listener that looks its hosts up in a table.
    pub fn has_table(&self) -> bool {
        self.kind == ResourceKind::Listener && self.needs.iter().any(|need| need.kind == ResourceKind::Route)
    }
}

impl ResourceSet {
    /// Some listener looks its hosts up in a table.
    pub fn has_tables(&self) -> bool {
        !self.of_kind(ResourceKind::Route).is_empty()
    }

    /// A scope beside a table. Whether Envoy has it says nothing of what new connections find.
    pub fn is_beside_a_table(&self, kind: ResourceKind, name: &str) -> bool {
        kind == ResourceKind::ScopedRoute
            && self.has_tables()
            && listener_of_scope(name)
                .is_some_and(|listener| self.get(ResourceKind::Route, listener).is_some())
    }

    /// A scope that only connections to a listener from before still find.
    fn is_of_no_listener(&self, kind: ResourceKind, name: &str) -> bool {
        kind == ResourceKind::ScopedRoute
            && listener_of_scope(name)
                .is_some_and(|listener| self.get(ResourceKind::Listener, listener).is_none())
    }

    /// What to do to `older` for new connections to find what is in `self`. What goes because nothing leads to it any more is
    /// none of it, and may take a while.
    pub fn changes_that_count_since<'a>(
        &'a self,
        older: &'a Self,
        kind: ResourceKind,
    ) -> impl Iterator<Item = ResourceChange> + 'a {
        self.changes_since(older, kind)
            .filter(move |change| match change {
                ResourceChange::Removed(_) if is_led_to(kind) => false,
                ResourceChange::Removed(name) if self.is_of_no_listener(kind, name) => false,
                change => !self.is_beside_a_table(kind, change.name()),
            })
    }
}

impl ResourceChange {
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Set(resource) => &resource.name,
            Self::Removed(name) => name,
        }
    }
}

/// By routes, listeners or clusters.
fn is_led_to(kind: ResourceKind) -> bool {
    matches!(
        kind,
        ResourceKind::Cluster | ResourceKind::Endpoint | ResourceKind::Secret | ResourceKind::Route
    )
}
