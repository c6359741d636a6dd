//! A certificate that is on its way does not take away the one that serves.
//!
//! What a name brought before its parameters changed serves until the new parameters bring something. A listener that
//! names other certificates than before shows the former ones until the new ones are there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Changes, Known, Snapshot};
use crate::config::{Gateway, Listener, Object, ObjectKind};
use crate::model::{CertificateMaterial, CertificateQuery};

/// (gateway, listener)
type ListenerKey = (Arc<str>, Arc<str>);

#[derive(Clone, Debug, Default)]
pub(super) struct Succession {
    /// What was fetched under a name before.
    former: BTreeMap<Arc<str>, CertificateQuery>,
    /// Certificates that a listener no longer names.
    outgoing: BTreeMap<ListenerKey, Vec<Arc<str>>>,
}

impl Snapshot {
    /// What is served under the name of a certificate: what its declaration brought, else what a former one did. Without
    /// a value: nothing is, and here is why.
    pub fn serving(&self, certificate: &str) -> Option<&Known<CertificateMaterial>> {
        let declared = self.config.certificate(certificate);
        let known = declared.and_then(|declared| self.certificate(&declared.query));
        if known.is_some_and(|known| known.value.is_some()) {
            return known;
        }
        self.former(certificate)
            .and_then(|query| self.certificate(query))
            .filter(|former| former.value.is_some())
            .or(known)
    }

    /// What serves in the place of what the declaration has not brought yet.
    pub fn former(&self, certificate: &str) -> Option<&CertificateQuery> {
        self.succession.former.get(certificate)
    }

    /// Certificates that the listener shows besides those that it names.
    pub fn outgoing(&self, gateway: &str, listener: &str) -> &[Arc<str>] {
        if self.succession.outgoing.is_empty() {
            return &[];
        }
        let key = (gateway.into(), listener.into());
        self.succession.outgoing.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Nothing is kept for the sake of what is not there yet: it may be what is no longer allowed.
    pub(super) fn end_successions(&mut self, changes: &mut Changes) {
        let Succession { former, outgoing } = std::mem::take(&mut self.succession);
        changes.names.extend(former.into_keys());
        for (listener, names) in outgoing {
            changes.names.extend(names);
            changes.listeners.insert(listener);
        }
    }

    /// After each change: begins the successions that it asks for, and ends those that are over.
    pub(super) fn succeed(&mut self, changes: &mut Changes) {
        let kinds = [ObjectKind::Certificate, ObjectKind::Gateway];
        let concerns = changes.config.objects.keys().any(|key| kinds.contains(&key.kind));
        if !concerns && changes.certificates.is_empty() {
            return;
        }
        // Certificates first: what a listener lets go is known by what it was.
        for (key, states) in &changes.config.objects {
            if let (Some(Object::Certificate(before)), after) = (&states.0, &states.1)
                && after
                    .as_ref()
                    .is_none_or(|after| query_of(after) != Some(&before.query))
                && self.has_value(&before.query)
            {
                self.succession
                    .former
                    .insert(key.name.clone(), before.query.clone());
            }
        }
        for (before, after) in changes.config.objects.values() {
            if let Some(Object::Gateway(before)) = before {
                let after = match after {
                    Some(Object::Gateway(after)) => Some(&**after),
                    _ => None,
                };
                self.listeners_changed(before, after);
            }
        }
        self.end_what_is_over(changes);
    }

    fn listeners_changed(&mut self, before: &Gateway, after: Option<&Gateway>) {
        for listener in &before.listeners {
            let key = (before.name.clone(), listener.name.clone());
            let shown = self.succession.outgoing.remove(&key).unwrap_or_default();
            let successor = after.and_then(|after| {
                let same = |other: &&Listener| other.name == listener.name;
                after.listeners.iter().find(same)
            });
            let names = |listener: &Listener| -> Vec<Arc<str>> {
                let named = listener.tls.iter().flat_map(|tls| &tls.certificates);
                named.map(|(name, _)| name.clone()).collect()
            };
            let (old, new) = (names(listener), successor.map(names).unwrap_or_default());
            let is_missing = |name: &&Arc<str>| !self.serves(name);
            let begins = new
                .iter()
                .filter(|name| !old.contains(name))
                .any(|name| is_missing(&name));
            let goes_on = !shown.is_empty() && new.iter().any(|name| is_missing(&name));
            if !begins && !goes_on {
                continue;
            }
            // Those it named last before those it went on with already.
            let mut outgoing: Vec<Arc<str>> = Vec::new();
            for name in old.into_iter().chain(shown) {
                if !new.contains(&name) && !outgoing.contains(&name) && self.serves(&name) {
                    outgoing.push(name);
                }
            }
            if !outgoing.is_empty() {
                self.succession.outgoing.insert(key, outgoing);
            }
        }
    }

    fn end_what_is_over(&mut self, changes: &mut Changes) {
        let Succession { former, mut outgoing } = std::mem::take(&mut self.succession);
        let config = &self.config;
        let declared = |name: &str| config.certificate(name).map(|declared| &declared.query);
        let is_served = |name: &str| {
            let has_come = declared(name).is_some_and(|query| self.has_value(query));
            has_come || former.get(name).is_some_and(|query| self.has_value(query))
        };
        outgoing.retain(|(gateway, listener), names| {
            let gateway_now = config.gateway(gateway);
            let listener_now = gateway_now.and_then(|gateway| {
                let same = |other: &&Listener| other.name == *listener;
                gateway.listeners.iter().find(same)
            });
            let mut named = listener_now
                .and_then(|listener| listener.tls.as_ref())
                .into_iter()
                .flat_map(|tls| &tls.certificates);
            let goes_on = named.any(|(name, _)| !is_served(name));
            if !goes_on {
                changes.names.extend(names.iter().cloned());
                changes.listeners.insert((gateway.clone(), listener.clone()));
            }
            goes_on
        });
        let is_outgoing = |name: &Arc<str>| outgoing.values().flatten().any(|other| other == name);
        let former = former
            .iter()
            .filter(|(name, query)| {
                let goes_on = match declared(name) {
                    Some(declared) => declared != *query && !self.has_value(declared),
                    None => is_outgoing(name),
                };
                if !goes_on {
                    changes.names.insert((*name).clone());
                }
                goes_on
            })
            .map(|(name, query)| (name.clone(), query.clone()))
            .collect();
        self.succession = Succession { former, outgoing };
    }

    /// Its watch ended: it serves no more.
    pub(super) fn forget_former(&mut self, query: &CertificateQuery) {
        self.succession.former.retain(|_, former| former != query);
    }

    fn serves(&self, name: &str) -> bool {
        self.serving(name).is_some_and(|known| known.value.is_some())
    }

    fn has_value(&self, query: &CertificateQuery) -> bool {
        self.certificate(query).is_some_and(|known| known.value.is_some())
    }
}

fn query_of(object: &Object) -> Option<&CertificateQuery> {
    match object {
        Object::Certificate(certificate) => Some(&certificate.query),
        _ => None,
    }
}
