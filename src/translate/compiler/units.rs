//! Each unit made anew, and put into the set.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;

use super::books::Use;
use super::unchecked::Checked;
use super::{Compiled, Compiler, Expecting, Fetched, HostKey, HostUnit, Shown, UnitKey, Work, least};
use crate::config::{Gateway, Listener, ObjectKey, ObjectKind, Protocol, listener_of_client_ca};
use crate::diagnostics::Code;
use crate::envoy::{Resource, ResourceKind};
use crate::features::FEATURES;
use crate::ir::{Cluster, MESH_LEAF, MESH_ROOTS, Routing};
use crate::model::mesh::Interest;
use crate::resolve::{
    Destination, certificate_of_secret, chain_problems, client_ca_of, cluster_name, endpoints, first_query,
    interests_of, mesh_secrets, named, resolve_cluster, resolve_listener, resolve_secret, serves_http,
    shown_by,
};
use crate::snapshot::Snapshot;
use crate::translate::cluster::cluster_resource;
use crate::translate::endpoint::endpoint_resource;
use crate::translate::listener::listener_resource;
use crate::translate::route::{EncodedHost, table_resource};
use crate::translate::secret::secret_resource;

impl Compiler {
    /// A cluster with its endpoints. One without its watch's first answer is not there: Envoy would wait for it.
    pub(super) fn destination(&mut self, snapshot: &Snapshot, target: &Destination, compiled: &mut Compiled) {
        let in_use = self.target_in_use(target);
        let interests = match in_use {
            true => interests_of(snapshot, target),
            false => Box::default(),
        };
        let ready = is_ready(snapshot, target, &interests);
        let is_fed = !interests.is_empty();
        self.fed_by(target, interests, compiled);
        let name = cluster_name(target);
        let resolved = (in_use && ready)
            .then(|| self.cluster(snapshot, target))
            .flatten();
        match resolved {
            Some(cluster) => {
                self.outlived.remove(target);
                self.put(cluster_resource(&cluster), compiled);
            }
            None if in_use && self.is_held(target) => {
                self.outlived.insert(target.clone());
            }
            None => {
                self.outlived.remove(target);
                self.withdraw(ResourceKind::Cluster, &name, compiled);
            }
        }
        if is_fed {
            self.assignment(snapshot, target, &name, ready, compiled);
        } else {
            self.without_endpoints(target, &name, false, compiled);
        }
        self.review_checked(target);
    }

    /// The endpoint lane: one assignment and nothing else, but for a watch's first answer, which brings the cluster.
    pub(super) fn endpoints(&mut self, snapshot: &Snapshot, target: &Destination, compiled: &mut Compiled) {
        let name = cluster_name(target);
        match self.interests_of.get(target) {
            Some(interests) => {
                let ready = is_ready(snapshot, target, interests);
                self.assignment(snapshot, target, &name, ready, compiled);
            }
            None => self.without_endpoints(target, &name, false, compiled),
        }
    }

    /// Of a destination that is fed by watches.
    fn assignment(
        &mut self,
        snapshot: &Snapshot,
        target: &Destination,
        name: &Arc<str>,
        ready: bool,
        compiled: &mut Compiled,
    ) {
        if let Destination::Failover { .. } = target {
            // It has no endpoints; which clusters it falls back on depends on what is known of theirs.
            if let Some(cluster) = self.cluster(snapshot, target) {
                self.outlived.remove(target);
                self.put(cluster_resource(&cluster), compiled);
            }
            return;
        }
        if let Some(problems) = chain_problems(snapshot, target) {
            self.say(UnitKey::Cluster(target.clone()), problems);
            return;
        }
        let Some(resolved) = ready.then(|| endpoints(snapshot, target)).flatten() else {
            self.without_endpoints(target, name, true, compiled);
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
        // One of several that are tried in order, by a cluster of clusters.
        let is_member = matches!(target, Destination::Mesh { .. });
        let known = self.set.get(ResourceKind::Cluster, name);
        let first_check = known.map(|cluster| cluster.first_check);
        let endpoints = match first_check.flatten() {
            Some(first) => self.with_stand_ins(target, resolved.value, first, compiled),
            None => resolved.value,
        };
        self.put(endpoint_resource(name, &endpoints, is_member), compiled);
        let is_outlived = self.outlived.remove(target).is_some();
        if (is_outlived || first_check.is_none())
            && let Some(cluster) = self.cluster(snapshot, target)
        {
            if first_check.is_none() && cluster.options.health_check.is_some() {
                self.checked.insert(target.clone(), Checked::of(endpoints).into());
            }
            self.put(cluster_resource(&cluster), compiled);
        }
    }

    fn cluster(&self, snapshot: &Snapshot, target: &Destination) -> Option<Cluster> {
        Some(Cluster {
            only_connections: self.use_of(target) == Use::Connections,
            ..resolve_cluster(snapshot, target)?
        })
    }

    fn without_endpoints(
        &mut self,
        target: &Destination,
        name: &str,
        discovered: bool,
        compiled: &mut Compiled,
    ) {
        self.diagnostics.remove(&UnitKey::Cluster(target.clone()));
        self.unregistered.remove(target);
        if !(self.target_in_use(target) && self.is_held(target)) {
            self.withdraw(ResourceKind::Endpoint, name, compiled);
            if discovered {
                self.withdraw(ResourceKind::Cluster, name, compiled);
            }
        }
    }

    /// Our own certificate in the mesh and the authorities there: in the set while any destination needs them.
    pub(super) fn mesh_secrets(&mut self, snapshot: &Snapshot, compiled: &mut Compiled) {
        compiled.units += 1;
        let secrets = match self.interest_in_use(&Interest::Mesh) {
            true => mesh_secrets(snapshot),
            false => Vec::new(),
        };
        if secrets.is_empty() {
            for name in [MESH_LEAF, MESH_ROOTS] {
                self.withdraw(ResourceKind::Secret, name, compiled);
            }
        }
        for secret in secrets {
            self.put(secret_resource(&secret), compiled);
        }
    }

    /// Certificates, and the listeners that show something else of them than before.
    pub(super) fn secrets(
        &mut self,
        snapshot: &Snapshot,
        gateway: Option<&Gateway>,
        work: &mut Work,
        compiled: &mut Compiled,
    ) {
        let mut looks_different = BTreeSet::new();
        for name in &work.secrets {
            compiled.units += 1;
            let is_shown = gateway.is_some_and(|gateway| shows(snapshot, gateway, name));
            let named = gateway
                .filter(|_| is_shown)
                .map(|gateway| named(snapshot, gateway, name));
            let declared = named.as_ref().and_then(|named| named.declared);
            let former = named.as_ref().and_then(|named| named.former);
            let fetched = Fetched {
                declared: declared.map(|(query, _)| query.clone()),
                former: former.cloned(),
            };
            self.fetched_by(name, fetched, compiled);
            let expecting = Expecting::Certificate(name.clone());
            match (declared, former) {
                (Some((_, document)), Some(_)) => _ = self.expecting.insert(expecting, document.clone()),
                _ => _ = self.expecting.remove(&expecting),
            }
            let shown = named.map(|named| {
                let known = declared.and_then(|(query, _)| snapshot.certificate(query));
                let material = named.serving.and_then(|serving| serving.value.as_ref());
                Shown {
                    declared: declared.map(|(query, _)| query.clone()),
                    document: declared.map(|(_, document)| document.clone()),
                    refused: named.refused.cloned(),
                    names: material.map(|material| material.names.clone()),
                    is_former: former.is_some(),
                    brought: known
                        .and_then(|known| known.value.as_ref())
                        .map(|material| (material.names.clone(), material.private_key.is_some())),
                    problem: known.and_then(|known| known.problem.clone()),
                }
            });
            if self.shown.get(name) != shown.as_ref() {
                looks_different.insert(name.clone());
                match shown {
                    Some(shown) => self.shown.insert(name.clone(), shown),
                    None => self.shown.remove(name),
                };
            }
        }
        if looks_different.is_empty() {
            return;
        }
        let Some(gateway) = gateway else { return };
        for listener in &gateway.listeners {
            let mut shown = shown_by(snapshot, gateway, listener);
            if shown.any(|name| looks_different.contains(&name)) {
                work.listeners.insert(listener.name.clone());
            }
        }
    }

    pub(super) fn listener(
        &mut self,
        snapshot: &Snapshot,
        gateway: Option<&Gateway>,
        name: &Arc<str>,
        open_before: &OrdMap<Arc<str>, Arc<Resource>>,
        compiled: &mut Compiled,
    ) {
        let found: Option<(&Gateway, &Listener)> = gateway.and_then(|gateway| {
            gateway
                .listeners
                .iter()
                .find(|listener| listener.name == *name)
                .map(|listener| (gateway, listener))
        });
        let expecting = Expecting::Listener(name.clone());
        let Some((gateway, listener)) = found else {
            self.diagnostics.remove(&UnitKey::Listener(name.clone()));
            self.wildcards.remove(name);
            self.expecting.remove(&expecting);
            self.opening.remove(name);
            self.withdraw(ResourceKind::Listener, name, compiled);
            return;
        };
        if snapshot.outgoing(&gateway.name, name).is_empty() {
            self.expecting.remove(&expecting);
        } else {
            let document = gateway.origin.document.clone();
            self.expecting.insert(expecting, document);
        }
        let (serves, documents) = match listener.protocol {
            Protocol::Tcp => self.served_tcp(gateway, listener),
            Protocol::Http | Protocol::Https => {
                // Filters of security policies are always there: when a listener gets another filter chain, connections
                // on the old one go on with the new routes, and a policy whose filter they lack would let everything
                // pass (ADR 15).
                let features = FEATURES
                    .iter()
                    .filter(|feature| feature.is_security() || self.filter_in_use(name, feature.name()))
                    .map(|feature| feature.name())
                    .collect();
                (
                    Ok(serves_http(listener, self.routing(name), features)),
                    Vec::new(),
                )
            }
        };
        let resolved = resolve_listener(
            snapshot,
            gateway,
            listener,
            (self.settings.bind_address, &self.settings.same_node),
            (serves, &documents),
        );
        self.say(UnitKey::Listener(name.clone()), resolved.diagnostics);
        match resolved.value {
            Some(listener) if self.stays_closed(&listener, open_before) => {
                // Its documents are not what Envoy runs with yet.
                compiled.documents.extend(listener.origins);
            }
            Some(listener) => self.put(listener_resource(&listener), compiled),
            None => {
                self.opening.remove(name);
                self.withdraw(ResourceKind::Listener, name, compiled);
            }
        }
    }

    /// The secrets that a listener's chains name.
    pub(super) fn secrets_named_by(&self, listener: &str) -> BTreeSet<Arc<str>> {
        let listener = self.set.get(ResourceKind::Listener, listener);
        let needs = listener.into_iter().flat_map(|listener| listener.needs.iter());
        needs
            .filter(|need| need.kind == ResourceKind::Secret)
            .map(|need| need.name.clone())
            .collect()
    }

    /// Only what some chain shows is published: no Envoy would ask for the rest, or answer to it.
    pub(super) fn secret(
        &mut self,
        snapshot: &Snapshot,
        gateway: Option<&Gateway>,
        name: &Arc<str>,
        compiled: &mut Compiled,
    ) {
        let is_named = self
            .secrets_of
            .get_next(&(name.clone(), least()))
            .is_some_and(|(named, _)| named == name);
        let secret = gateway
            .filter(|_| is_named)
            .zip(certificate_of_secret(name))
            .and_then(|(gateway, name)| resolve_secret(snapshot, gateway, name));
        match secret {
            Some(secret) => self.put(secret_resource(&secret), compiled),
            None => self.withdraw(ResourceKind::Secret, name, compiled),
        }
    }

    pub(super) fn table(&mut self, listener: &Arc<str>, compiled: &mut Compiled) {
        let hosts = self.hosts_of(listener);
        let encoded: Vec<&EncodedHost> = hosts.iter().filter_map(|(_, unit)| unit.host()).collect();
        if self.routing(listener) == Routing::Table && !hosts.is_empty() {
            self.put(table_resource(listener, &encoded), compiled);
        } else {
            self.withdraw(ResourceKind::Route, listener, compiled);
        }
    }

    pub(super) fn hosts_of(&self, listener: &Arc<str>) -> Vec<(HostKey, Arc<HostUnit>)> {
        self.hosts
            .range((listener.clone(), least())..)
            .take_while(|((name, _), _)| name == listener)
            .map(|(key, unit)| (key.clone(), unit.clone()))
            .collect()
    }
}

/// Whether some listener of the gateway shows the certificate, or asks its clients for one of these authorities.
fn shows(snapshot: &Snapshot, gateway: &Gateway, certificate: &str) -> bool {
    if let Some(listener) = listener_of_client_ca(certificate) {
        return client_ca_of(gateway, listener).is_some();
    }
    let key = ObjectKey::new(ObjectKind::Certificate, certificate);
    let named = snapshot
        .config
        .users_of(&key)
        .any(|user| user.kind == ObjectKind::Gateway && user.name == gateway.name);
    named
        || gateway.listeners.iter().any(|listener| {
            let outgoing = snapshot.outgoing(&gateway.name, &listener.name);
            outgoing.iter().any(|name| **name == *certificate)
        })
}

/// What its cluster is made from is known. A failover's members are looked at one by one.
fn is_ready(snapshot: &Snapshot, target: &Destination, interests: &[Interest]) -> bool {
    match target {
        Destination::Failover { .. } => true,
        // Other datacenters are for when the first one has nobody: they need not have answered.
        Destination::Backend(backend) if interests.len() > 1 => {
            match first_query(&snapshot.config, backend) {
                Some(first) => snapshot.service_answered(&first),
                None => interests.iter().all(|interest| snapshot.answered(interest)),
            }
        }
        _ => interests.iter().all(|interest| snapshot.answered(interest)),
    }
}
