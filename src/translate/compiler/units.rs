//! Each unit made anew, and put into the set.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::{Compiled, Compiler, HostKey, HostUnit, UnitKey, Work};
use crate::config::{BackendTarget, Gateway, Listener, ListenerTls};
use crate::diagnostics::Code;
use crate::envoy::ResourceKind;
use crate::features::FEATURES;
use crate::ir::{Routing, VirtualHost};
use crate::model::CertificateQuery;
use crate::resolve::{
    attached_features, certificates_of, client_ca_name, cluster_name, endpoints, resolve_cluster,
    resolve_listener, resolve_secret, resolve_virtual_host, secret_name, service_query,
};
use crate::snapshot::Snapshot;
use crate::translate::cluster::cluster_resource;
use crate::translate::endpoint::endpoint_resource;
use crate::translate::listener::listener_resource;
use crate::translate::route::{encode_virtual_host, scoped_resource, table_resource};
use crate::translate::secret::secret_resource;

impl Compiler {
    pub(super) fn host(
        &mut self,
        snapshot: &Snapshot,
        gateway: Option<&Gateway>,
        listener_name: Arc<str>,
        host: Arc<str>,
        work: &mut Work,
        compiled: &mut Compiled,
    ) {
        let key = (listener_name.clone(), host.clone());
        let listener = gateway.and_then(|gateway| {
            gateway
                .listeners
                .iter()
                .find(|listener| listener.name == listener_name)
        });
        let resolved = match (gateway, listener) {
            (Some(gateway), Some(listener)) => resolve_virtual_host(snapshot, gateway, listener, &host),
            _ => None,
        };
        let unit_key = UnitKey::Host(listener_name.clone(), host.clone());
        let before = self.hosts.get(&key).cloned();
        for query in before.iter().flat_map(|before| &before.pending) {
            self.waiting
                .remove(&(query.clone(), listener_name.clone(), host.clone()));
        }
        self.held.remove(&key);
        let Some(resolved) = resolved else {
            self.diagnostics.remove(&unit_key);
            if let Some(before) = before {
                self.hosts.remove(&key);
                self.host_uses(&key, Some(&before), None, work);
                self.withdraw(
                    ResourceKind::ScopedRoute,
                    &format!("{listener_name}/{host}"),
                    compiled,
                );
                work.tables.insert(listener_name);
            }
            return;
        };
        let value = resolved.value;
        for query in &value.pending {
            self.waiting
                .insert((query.clone(), listener_name.clone(), host.clone()));
        }
        self.say(unit_key, resolved.diagnostics);
        let features = attached_features(&value.host);
        let pending = value.pending;
        let origins = value.host.origins.clone();
        let hold = !pending.is_empty() && self.settings.hold_pending;
        let unit = if hold {
            self.held.insert(key.clone());
            // What stood before stands until the new watches have answered; their watches start now.
            let (vhost, encoded, features) = match &before {
                Some(before) => (
                    before.host.clone(),
                    before.encoded.clone(),
                    before.features.clone(),
                ),
                None => (value.host.clone(), Bytes::new(), features),
            };
            let targets = before
                .iter()
                .flat_map(|before| before.targets.iter().cloned())
                .chain(value.targets)
                .collect();
            HostUnit {
                host: vhost,
                encoded,
                targets,
                features,
                pending,
            }
        } else {
            HostUnit {
                encoded: encode_virtual_host(&value.host),
                host: value.host,
                targets: value.targets,
                features,
                pending,
            }
        };
        let unit = Arc::new(unit);
        self.hosts.insert(key.clone(), unit.clone());
        self.host_uses(&key, before.as_deref(), Some(&unit), work);
        if hold {
            // Nothing of it reaches Envoy yet, and its documents are not what Envoy runs with.
            compiled.documents.extend(origins);
            return;
        }
        match self.routing(&listener_name) {
            Routing::Scoped => self.put(scoped_resource(&unit.host, &unit.encoded), compiled),
            Routing::Table => {
                work.tables.insert(listener_name);
            }
        }
    }

    /// A cluster with its endpoints. One without its watch's first answer is not there: Envoy would wait for it.
    pub(super) fn destination(
        &mut self,
        snapshot: &Snapshot,
        target: &BackendTarget,
        compiled: &mut Compiled,
    ) {
        let in_use = self.target_in_use(target);
        let query = in_use.then(|| service_query(&snapshot.config, target)).flatten();
        self.fed_by(target, query.clone(), compiled);
        let name = cluster_name(target);
        let ready = query
            .as_ref()
            .is_none_or(|query| snapshot.service_answered(query));
        let resolved = (in_use && ready)
            .then(|| resolve_cluster(&snapshot.config, target))
            .flatten();
        match resolved {
            Some(cluster) => self.put(cluster_resource(&cluster), compiled),
            None if in_use && self.is_held(target) => {}
            None => self.withdraw(ResourceKind::Cluster, &name, compiled),
        }
        self.endpoints(snapshot, target, compiled);
    }

    /// The endpoint lane: one assignment and nothing else, but for a watch's first answer, which brings the cluster.
    pub(super) fn endpoints(&mut self, snapshot: &Snapshot, target: &BackendTarget, compiled: &mut Compiled) {
        let name = cluster_name(target);
        let discovered = self.query_of_target.contains_key(target);
        let Some(resolved) = discovered.then(|| endpoints(snapshot, target)).flatten() else {
            self.diagnostics.remove(&UnitKey::Cluster(target.clone()));
            self.unregistered.remove(target);
            if !(self.target_in_use(target) && self.is_held(target)) {
                self.withdraw(ResourceKind::Endpoint, &name, compiled);
                if discovered {
                    self.withdraw(ResourceKind::Cluster, &name, compiled);
                }
            }
            return;
        };
        if resolved
            .diagnostics
            .iter()
            .any(|diagnostic| diagnostic.code == Code::UnknownService)
        {
            self.unregistered.insert(target.clone());
        } else {
            self.unregistered.remove(target);
        }
        self.say(UnitKey::Cluster(target.clone()), resolved.diagnostics);
        self.put(endpoint_resource(&name, &resolved.value), compiled);
        if self.set.get(ResourceKind::Cluster, &name).is_none()
            && let Some(cluster) = resolve_cluster(&snapshot.config, target)
        {
            self.put(cluster_resource(&cluster), compiled);
        }
    }

    pub(super) fn secrets(
        &mut self,
        snapshot: &Snapshot,
        gateway: Option<&Gateway>,
        work: &mut Work,
        compiled: &mut Compiled,
    ) {
        if work.secrets.is_empty() && work.listeners.is_empty() {
            return;
        }
        let wanted: BTreeMap<Arc<str>, CertificateQuery> = gateway
            .map(|gateway| certificates_of(snapshot, gateway).into_iter().collect())
            .unwrap_or_default();
        let names: BTreeSet<Arc<str>> = work
            .secrets
            .iter()
            .chain(self.certificates.keys())
            .chain(wanted.keys())
            .cloned()
            .collect();
        for name in names {
            let touched = work.secrets.contains(&name)
                || wanted.contains_key(&name) != self.certificates.contains_key(&name);
            if !touched {
                continue;
            }
            compiled.units += 1;
            let secret = gateway
                .filter(|_| wanted.contains_key(&name))
                .and_then(|gateway| resolve_secret(snapshot, gateway, &name));
            match secret {
                Some(secret) => self.put(secret_resource(&secret), compiled),
                None => self.withdraw(ResourceKind::Secret, &secret_name(&name), compiled),
            }
            // The listener's chains name the hosts that the certificate covers: it is remade, and comes out the same
            // unless those changed.
            for listener in gateway.into_iter().flat_map(|gateway| &gateway.listeners) {
                let names_it = |tls: &ListenerTls| {
                    tls.certificates.iter().any(|(used, _)| *used == name)
                        || (tls.client_ca.is_some() && client_ca_name(&listener.name) == name)
                };
                if listener.tls.as_ref().is_some_and(names_it) {
                    work.listeners.insert(listener.name.clone());
                }
            }
        }
        compiled.certificates_changed |= self.certificates != wanted;
        self.certificates = wanted;
    }

    pub(super) fn listener(
        &mut self,
        snapshot: &Snapshot,
        gateway: Option<&Gateway>,
        name: &Arc<str>,
        compiled: &mut Compiled,
    ) {
        let found: Option<(&Gateway, &Listener)> = gateway.and_then(|gateway| {
            gateway
                .listeners
                .iter()
                .find(|listener| listener.name == *name)
                .map(|listener| (gateway, listener))
        });
        let Some((gateway, listener)) = found else {
            self.diagnostics.remove(&UnitKey::Listener(name.clone()));
            self.wildcards.remove(name);
            self.withdraw(ResourceKind::Listener, name, compiled);
            return;
        };
        // Filters of security policies are always there: when a listener gets another filter chain, connections on the
        // old one go on with the new routes, and a policy whose filter they lack would let everything pass.
        let features = FEATURES
            .iter()
            .filter(|feature| feature.is_security() || self.filter_in_use(name, feature.name()))
            .map(|feature| feature.name())
            .collect();
        let resolved = resolve_listener(
            snapshot,
            gateway,
            listener,
            self.settings.bind_address,
            self.routing(name),
            features,
        );
        self.say(UnitKey::Listener(name.clone()), resolved.diagnostics);
        match resolved.value {
            Some(listener) => self.put(listener_resource(&listener), compiled),
            None => self.withdraw(ResourceKind::Listener, name, compiled),
        }
    }

    /// A listener got its first wildcard, or lost its last: all its hosts move.
    pub(super) fn reroute(&mut self, listener: &Arc<str>, routing: Routing, compiled: &mut Compiled) {
        for ((_, host), unit) in self.hosts_of(listener) {
            compiled.units += 1;
            match routing {
                Routing::Scoped if !unit.encoded.is_empty() => {
                    self.put(scoped_resource(&unit.host, &unit.encoded), compiled);
                }
                _ => self.withdraw(ResourceKind::ScopedRoute, &format!("{listener}/{host}"), compiled),
            }
        }
    }

    pub(super) fn table(&mut self, listener: &Arc<str>, compiled: &mut Compiled) {
        let hosts = self.hosts_of(listener);
        let encoded: Vec<(&VirtualHost, &[u8])> = hosts
            .iter()
            .filter(|(_, unit)| !unit.encoded.is_empty())
            .map(|(_, unit)| (&unit.host, &unit.encoded[..]))
            .collect();
        if self.routing(listener) == Routing::Table && !hosts.is_empty() {
            self.put(table_resource(listener, &encoded), compiled);
        } else {
            self.withdraw(ResourceKind::Route, listener, compiled);
        }
    }

    pub(super) fn hosts_of(&self, listener: &Arc<str>) -> Vec<(HostKey, Arc<HostUnit>)> {
        self.hosts
            .range((listener.clone(), Arc::from(""))..)
            .take_while(|((name, _), _)| name == listener)
            .map(|(key, unit)| (key.clone(), unit.clone()))
            .collect()
    }
}
