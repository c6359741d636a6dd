//! A certificate that is on its way does not take away the one that serves.
//!
//! What a name brought before its parameters changed serves until the new parameters bring something. A listener that
//! names other certificates than before shows the former ones until the new ones are there.
//!
//! Authorities of clients are stricter: the former ones check clients only until the source of the new ones has
//! answered, be it with an error. What is wrong with the new ones must not keep in whom they were to shut out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Changes, Known, Snapshot};
use crate::config::{Certificate, Gateway, Listener, Object, ObjectKind, client_ca_name};
use crate::model::{CertificateMaterial, CertificateQuery, DocumentId};

/// (gateway, listener)
type ListenerKey = (Arc<str>, Arc<str>);

#[derive(Clone, Debug, Default)]
pub(super) struct Succession {
    /// What was fetched under a name before.
    former: BTreeMap<Arc<str>, Former>,
    outgoing: BTreeMap<ListenerKey, Outgoing>,
    /// Whose clients a listener let in before.
    authorities: BTreeMap<ListenerKey, Former>,
}

#[derive(Clone, Debug)]
struct Former {
    query: CertificateQuery,
    /// Which declared it: what may it reach?
    document: DocumentId,
}

#[derive(Clone, Debug)]
struct Outgoing {
    /// Certificates that the listener no longer names.
    shown: Vec<Arc<str>>,
    /// Those that it names instead, and that are not there.
    until: BTreeSet<Arc<str>>,
}

/// How well a certificate can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Strength {
    /// It is not here, or names no host that a client could ask for.
    None,
    /// Only an Envoy that had it before can show it: the key did not outlive a restart.
    Keyless,
    Whole,
}

impl Snapshot {
    /// What is served under the name of a certificate: what its declaration brought, else what a former one did. Without
    /// a value: nothing is, and here is why.
    pub fn serving(&self, certificate: &str) -> Option<&Known<CertificateMaterial>> {
        self.certificate(self.serving_query(certificate)?)
    }

    fn serving_query(&self, certificate: &str) -> Option<&CertificateQuery> {
        let declared = self.declared(certificate);
        let former = self.former(certificate);
        let strength =
            |query: Option<&CertificateQuery>| query.map_or(Strength::None, |query| self.strength(query));
        if strength(former) > strength(declared) {
            former
        } else {
            declared
        }
    }

    /// Where the documents say that it is now, if they may.
    fn declared(&self, certificate: &str) -> Option<&CertificateQuery> {
        self.config.certificate(certificate)?.allowed()
    }

    /// What serves in the place of what the declaration has not brought yet.
    pub fn former(&self, certificate: &str) -> Option<&CertificateQuery> {
        self.succession
            .former
            .get(certificate)
            .map(|former| &former.query)
    }

    /// Certificates that the listener shows besides those that it names.
    pub fn outgoing(&self, gateway: &str, listener: &str) -> &[Arc<str>] {
        let entry = self.outgoing_of(gateway, listener);
        entry.map_or(&[], |entry| entry.shown.as_slice())
    }

    /// The listener shows others until this one is there.
    pub fn is_expected(&self, gateway: &str, listener: &str, certificate: &str) -> bool {
        let entry = self.outgoing_of(gateway, listener);
        entry.is_some_and(|entry| entry.until.contains(certificate))
    }

    /// Only the public half of what is to take over is here, and no Envoy asks for the key while another serves.
    pub fn keys_to_fetch(&self) -> Vec<CertificateQuery> {
        let Succession { former, outgoing, .. } = &self.succession;
        let names = former
            .keys()
            .chain(outgoing.values().flat_map(|entry| &entry.until));
        names
            .filter_map(|name| self.declared(name))
            .filter(|declared| self.strength(declared) == Strength::Keyless)
            .cloned()
            .collect()
    }

    /// The authorities that a listener's clients are checked by until those it names have answered.
    pub fn former_authorities(&self, gateway: &str, listener: &str) -> Option<&CertificateQuery> {
        if self.succession.authorities.is_empty() {
            return None;
        }
        let key = (gateway.into(), listener.into());
        self.succession.authorities.get(&key).map(|former| &former.query)
    }

    fn outgoing_of(&self, gateway: &str, listener: &str) -> Option<&Outgoing> {
        if self.succession.outgoing.is_empty() {
            return None;
        }
        self.succession.outgoing.get(&(gateway.into(), listener.into()))
    }

    /// After each change: begins the successions that it asks for, and ends those that are over.
    pub(super) fn succeed(&mut self, changes: &mut Changes) {
        let kinds = [ObjectKind::Certificate, ObjectKind::Gateway];
        let concerns = changes.config.objects.keys().any(|key| kinds.contains(&key.kind));
        if !concerns && changes.certificates.is_empty() {
            return;
        }
        // Certificates first: what a listener lets go is known by what it was.
        for (before, after) in changes.config.objects.values() {
            if let Some(Object::Certificate(before)) = before {
                self.certificate_changed(before, after.as_ref());
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

    fn certificate_changed(&mut self, before: &Certificate, after: Option<&Object>) {
        let Some(query) = before.allowed() else { return };
        let is_same = matches!(after, Some(Object::Certificate(after)) if after.query == before.query);
        let earlier = self.former(&before.name).map(|query| self.strength(query));
        let strength = self.strength(query);
        if is_same || strength == Strength::None || earlier.is_some_and(|earlier| earlier > strength) {
            return;
        }
        let former = Former {
            query: query.clone(),
            document: before.origin.document.clone(),
        };
        self.succession.former.insert(before.name.clone(), former);
    }

    fn listeners_changed(&mut self, before: &Gateway, after: Option<&Gateway>) {
        // Nobody here fetches for the others.
        if !self.config.permissions().judges(&before.name) {
            return;
        }
        let shown_before = self.shown_by(before);
        for listener in &before.listeners {
            let key = (before.name.clone(), listener.name.clone());
            self.authorities_changed(&key, before, listener, after);
            let entry = self.succession.outgoing.remove(&key);
            let (mut shown, awaited) = entry.map(|entry| (entry.shown, entry.until)).unwrap_or_default();
            let new: BTreeSet<_> = names_of(after.and_then(|after| listener_of(after, &listener.name)))
                .into_iter()
                .collect();
            // Those it named last before those it went on with already.
            let mut candidates = names_of(Some(listener));
            candidates.append(&mut shown);
            let mut before = BTreeSet::new();
            candidates.retain(|name| before.insert(name.clone()));
            let best = self.best(&candidates);
            let is_missing = |name: &&Arc<str>| match self.strength_of(name) {
                // No Envoy has the key by a name that none was shown.
                Strength::Keyless => best == Strength::Whole || !shown_before.contains(*name),
                strength => strength < best || best == Strength::None,
            };
            let mut until: BTreeSet<Arc<str>> = new
                .iter()
                .filter(|name| !before.contains(*name) || awaited.contains(*name))
                .filter(is_missing)
                .cloned()
                .collect();
            let serves_nothing = new.iter().all(|name| self.strength_of(name) == Strength::None);
            if until.is_empty() && serves_nothing {
                until = new.clone();
            }
            let mut outgoing = candidates;
            outgoing.retain(|name| {
                let least = match awaited.contains(name) {
                    true => Strength::Whole,
                    false => Strength::Keyless,
                };
                !new.contains(name) && self.strength_of(name) >= least
            });
            if !until.is_empty() && !outgoing.is_empty() {
                let entry = Outgoing {
                    shown: outgoing,
                    until,
                };
                self.succession.outgoing.insert(key, entry);
            }
        }
    }

    /// The certificates that Envoys may have by their names from the listeners of a gateway, as far as documents tell.
    fn shown_by(&self, gateway: &Gateway) -> BTreeSet<Arc<str>> {
        let names = gateway.listeners.iter().flat_map(|listener| {
            let awaited = |name: &Arc<str>| self.is_expected(&gateway.name, &listener.name, name);
            let mut names = names_of(Some(listener));
            names.retain(|name| !awaited(name));
            names
        });
        names.collect()
    }

    fn authorities_changed(
        &mut self,
        key: &ListenerKey,
        gateway: &Gateway,
        before: &Listener,
        after: Option<&Gateway>,
    ) {
        let after = after.and_then(|after| client_ca_of(listener_of(after, &before.name)?));
        let (Some(before), Some(after)) = (client_ca_of(before), after) else {
            return;
        };
        // Edited twice before the first answer: what checked clients all along goes on.
        if before == after || self.succession.authorities.contains_key(key) {
            return;
        }
        let known = self.certificate(before);
        if known.is_some_and(|known| known.value.is_some()) {
            let former = Former {
                query: before.clone(),
                document: gateway.origin.document.clone(),
            };
            self.succession.authorities.insert(key.clone(), former);
        }
    }

    fn end_what_is_over(&mut self, changes: &mut Changes) {
        let mut outgoing = std::mem::take(&mut self.succession.outgoing);
        outgoing.retain(|(gateway, listener), entry| {
            let listener_now = self
                .config
                .gateway(gateway)
                .and_then(|now| listener_of(now, listener));
            let named: BTreeSet<_> = names_of(listener_now).into_iter().collect();
            let serves = self.best(&entry.shown) > Strength::None;
            // Whatever is here of one whose key is not: no Envoy has that by its name.
            let is_missing = |name: &Arc<str>| serves && self.strength_of(name) < Strength::Whole;
            entry
                .until
                .retain(|name| named.contains(name) && is_missing(name));
            let goes_on = !entry.until.is_empty();
            if !goes_on {
                changes.names.extend(entry.shown.iter().cloned());
                changes.listeners.insert((gateway.clone(), listener.clone()));
            }
            goes_on
        });
        let shown: BTreeSet<&Arc<str>> = outgoing.values().flat_map(|entry| &entry.shown).collect();
        let mut former = std::mem::take(&mut self.succession.former);
        former.retain(|name, former| {
            let goes_on = match self.config.certificate(name) {
                // One that may not be used takes nothing's place, and keeps nothing in it.
                Some(declared) => declared.allowed().is_some_and(|declared| {
                    *declared != former.query && self.strength(declared) < self.strength(&former.query)
                }),
                None => shown.contains(name),
            };
            if !goes_on {
                changes.names.insert(name.clone());
            }
            goes_on
        });
        let mut authorities = std::mem::take(&mut self.succession.authorities);
        authorities.retain(|(gateway, listener), former| {
            let declared = self
                .config
                .gateway(gateway)
                .and_then(|now| client_ca_of(listener_of(now, listener)?));
            let goes_on =
                declared.is_some_and(|query| *query != former.query && !self.certificate_answered(query));
            if !goes_on {
                changes.names.insert(client_ca_name(listener));
                changes.listeners.insert((gateway.clone(), listener.clone()));
            }
            goes_on
        });
        self.succession = Succession {
            former,
            outgoing,
            authorities,
        };
    }

    /// Nothing that is no longer allowed stays for the sake of what is not there yet.
    pub(super) fn end_what_is_forbidden(&mut self, changes: &mut Changes) {
        let permissions = self.config.permissions();
        self.succession.former.retain(|name, former| {
            let is_allowed = permissions.certificate_allowed(&former.document, &former.query);
            if !is_allowed {
                changes.names.insert(name.clone());
            }
            is_allowed
        });
        self.succession.authorities.retain(|(gateway, listener), former| {
            let is_allowed = permissions.certificate_allowed(&former.document, &former.query);
            if !is_allowed {
                changes.names.insert(client_ca_name(listener));
                changes.listeners.insert((gateway.clone(), listener.clone()));
            }
            is_allowed
        });
    }

    /// Its watch ended: it serves no more.
    pub(super) fn forget_former(&mut self, query: &CertificateQuery) {
        self.succession.former.retain(|_, former| former.query != *query);
        self.succession
            .authorities
            .retain(|_, former| former.query != *query);
    }

    fn best(&self, names: &[Arc<str>]) -> Strength {
        let all = names.iter().map(|name| self.strength_of(name));
        all.max().unwrap_or(Strength::None)
    }

    fn strength_of(&self, name: &str) -> Strength {
        self.serving_query(name)
            .map_or(Strength::None, |query| self.strength(query))
    }

    fn strength(&self, query: &CertificateQuery) -> Strength {
        let known = self.certificate(query);
        match known.and_then(|known| known.value.as_deref()) {
            Some(material) if material.host_names().next().is_none() => Strength::None,
            Some(material) if material.private_key.is_none() => Strength::Keyless,
            Some(_) => Strength::Whole,
            None => Strength::None,
        }
    }
}

fn listener_of<'a>(gateway: &'a Gateway, name: &str) -> Option<&'a Listener> {
    gateway.listeners.iter().find(|listener| *listener.name == *name)
}

fn client_ca_of(listener: &Listener) -> Option<&CertificateQuery> {
    Some(&listener.tls.as_ref()?.client_ca.as_ref()?.query)
}

fn names_of(listener: Option<&Listener>) -> Vec<Arc<str>> {
    let named = listener
        .and_then(|listener| listener.tls.as_ref())
        .into_iter()
        .flat_map(|tls| &tls.certificates);
    named.map(|(name, _)| name.clone()).collect()
}
