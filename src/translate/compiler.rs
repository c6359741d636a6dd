//! Which units a change touches.
//!
//! A unit is one virtual host, one cluster, one service's endpoints, one certificate or one listener. The compiler keeps
//! what it made of each and remakes only those whose inputs changed: no step of one change walks all objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use imbl::{OrdMap, OrdSet};

use crate::config::{BackendTarget, Gateway, Listener, Object, ObjectKey, ObjectKind, UpstreamSource};
use crate::diagnostics::Diagnostic;
use crate::envoy::{ResourceKind, ResourceSet};
use crate::ir::{Routing, VirtualHost};
use crate::model::{CertificateQuery, ServiceQuery};
use crate::resolve::{
    attached_features, certificates_of, cluster_name, endpoints, resolve_cluster, resolve_listener,
    resolve_secret, resolve_virtual_host, secret_name, service_query,
};
use crate::snapshot::{Changes, Snapshot};

use super::cluster::cluster_resource;
use super::endpoint::endpoint_resource;
use super::listener::listener_resource;
use super::route::{encode_virtual_host, scoped_resource, table_resource};
use super::secret::secret_resource;

/// What a gateway is compiled with that no document says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub bind_address: IpAddr,
    /// Wait for the watches of a changed host before publishing it, so that a new route's first answer is not a 503.
    pub hold_pending: bool,
}

/// Names a unit, for the diagnostics about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnitKey {
    Gateway,
    Listener(Arc<str>),
    Host(Arc<str>, Arc<str>),
    Cluster(Arc<str>),
}

/// One gateway as compiled so far.
#[derive(Clone, Debug)]
pub struct Compiler {
    gateway: Arc<str>,
    settings: Settings,
    set: ResourceSet,
    /// By listener and host.
    hosts: OrdMap<(Arc<str>, Arc<str>), Arc<HostUnit>>,
    /// Hosts of a listener that are not exact: any of them asks for a table.
    wildcards: BTreeMap<Arc<str>, usize>,
    /// (feature, listener, host): which filters a listener's chain needs.
    filters_used: OrdSet<(Arc<str>, &'static str, Arc<str>)>,
    /// (destination, listener, host): a cluster lives while somebody uses it.
    target_users: OrdSet<(BackendTarget, Arc<str>, Arc<str>)>,
    /// Destinations in use, by the watch that feeds them.
    targets_of_service: OrdSet<(ServiceQuery, BackendTarget)>,
    query_of_target: OrdMap<BackendTarget, ServiceQuery>,
    /// Hosts whose watches have not answered yet.
    waiting: OrdSet<(ServiceQuery, Arc<str>, Arc<str>)>,
    certificates: BTreeMap<Arc<str>, CertificateQuery>,
    diagnostics: OrdMap<UnitKey, Arc<[Diagnostic]>>,
}

#[derive(Clone, Debug)]
struct HostUnit {
    host: VirtualHost,
    encoded: Bytes,
    targets: BTreeSet<BackendTarget>,
    features: BTreeSet<&'static str>,
    /// Its entries in `waiting`.
    pending: BTreeSet<ServiceQuery>,
}

/// What one step did.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// Something that reaches Envoy differs.
    pub changed: bool,
    /// Watches that are needed now and were not, and the other way round.
    pub services_added: BTreeSet<ServiceQuery>,
    pub services_dropped: BTreeSet<ServiceQuery>,
    /// Units remade: what the benchmarks and tests count.
    pub units: usize,
}

/// What must be remade.
#[derive(Debug, Default)]
struct Work {
    hosts: BTreeSet<(Arc<str>, Arc<str>)>,
    tables: BTreeSet<Arc<str>>,
    listeners: BTreeSet<Arc<str>>,
    clusters: BTreeSet<BackendTarget>,
    endpoints: BTreeSet<BackendTarget>,
    secrets: BTreeSet<Arc<str>>,
}

impl Compiler {
    pub fn new(gateway: &str, settings: Settings) -> Self {
        Self {
            gateway: gateway.into(),
            settings,
            set: ResourceSet::default(),
            hosts: OrdMap::new(),
            wildcards: BTreeMap::new(),
            filters_used: OrdSet::new(),
            target_users: OrdSet::new(),
            targets_of_service: OrdSet::new(),
            query_of_target: OrdMap::new(),
            waiting: OrdSet::new(),
            certificates: BTreeMap::new(),
            diagnostics: OrdMap::new(),
        }
    }

    pub fn gateway(&self) -> &Arc<str> {
        &self.gateway
    }

    pub fn resources(&self) -> &ResourceSet {
        &self.set
    }

    pub fn diagnostics(&self) -> impl Iterator<Item = (&UnitKey, &Arc<[Diagnostic]>)> {
        self.diagnostics.iter()
    }

    pub fn certificates(&self) -> &BTreeMap<Arc<str>, CertificateQuery> {
        &self.certificates
    }

    /// Every watch this gateway needs.
    pub fn services(&self) -> BTreeSet<ServiceQuery> {
        self.targets_of_service
            .iter()
            .map(|(query, _)| query.clone())
            .collect()
    }

    /// Watches that some host waits for before it is published.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// From nothing: the plain form, which `update` must always agree with.
    pub fn compile(gateway: &str, settings: Settings, snapshot: &Snapshot) -> Self {
        let mut compiler = Self::new(
            gateway,
            Settings {
                hold_pending: false,
                ..settings.clone()
            },
        );
        compiler.rebuild(snapshot);
        compiler.settings = settings;
        compiler
    }

    /// Takes up everything anew, keeping what comes out the same.
    pub fn rebuild(&mut self, snapshot: &Snapshot) -> Compiled {
        let mut work = Work::default();
        self.whole_gateway(snapshot, &mut work);
        self.run(snapshot, work)
    }

    /// Takes up a change.
    pub fn update(&mut self, snapshot: &Snapshot, changes: &Changes) -> Compiled {
        let mut work = Work::default();
        for (key, (before, after)) in &changes.config.objects {
            self.object_changed(snapshot, key, before.as_ref(), after.as_ref(), &mut work);
        }
        for query in &changes.services {
            self.service_changed(query, &mut work);
        }
        for (name, query) in &self.certificates {
            if changes.certificates.contains(query) {
                work.secrets.insert(name.clone());
            }
        }
        self.run(snapshot, work)
    }

    /// Publishes hosts that waited long enough: what is unknown answers 503 from here on.
    pub fn stop_waiting(&mut self, snapshot: &Snapshot) -> Compiled {
        let mut work = Work::default();
        work.hosts.extend(
            self.waiting
                .iter()
                .map(|(_, listener, host)| (listener.clone(), host.clone())),
        );
        let hold = std::mem::replace(&mut self.settings.hold_pending, false);
        let compiled = self.run(snapshot, work);
        self.settings.hold_pending = hold;
        compiled
    }

    fn object_changed(
        &self,
        snapshot: &Snapshot,
        key: &ObjectKey,
        before: Option<&Object>,
        after: Option<&Object>,
        work: &mut Work,
    ) {
        match key.kind {
            ObjectKind::Gateway if key.name == self.gateway => self.whole_gateway(snapshot, work),
            ObjectKind::Gateway => {}
            ObjectKind::HttpRoute => {
                for route in [before, after].into_iter().flatten() {
                    self.route_touched(snapshot, route, work);
                }
            }
            ObjectKind::Upstream => {
                let target = BackendTarget::Upstream(key.name.clone());
                work.clusters.insert(target.clone());
                work.endpoints.insert(target);
                // A route looks different only when the upstream appears, vanishes, or is fed by another watch.
                if before.map(watch_of) != after.map(watch_of) {
                    self.users_touched(snapshot, key, work);
                }
            }
            ObjectKind::Policy => self.users_touched(snapshot, key, work),
            ObjectKind::Certificate => {
                if snapshot.config.gateway(&self.gateway).is_some() {
                    work.secrets.insert(key.name.clone());
                }
            }
        }
    }

    fn users_touched(&self, snapshot: &Snapshot, key: &ObjectKey, work: &mut Work) {
        for user in snapshot.config.users_of(key) {
            match user.kind {
                ObjectKind::Gateway if user.name == self.gateway => self.whole_gateway(snapshot, work),
                ObjectKind::HttpRoute => {
                    if let Some(route) = snapshot.config.object(user) {
                        self.route_touched(snapshot, route, work);
                    }
                }
                _ => {}
            }
        }
    }

    fn route_touched(&self, snapshot: &Snapshot, route: &Object, work: &mut Work) {
        let Object::HttpRoute(route) = route else { return };
        if !route.gateways.iter().any(|(name, _)| *name == self.gateway) {
            return;
        }
        let Some(gateway) = snapshot.config.gateway(&self.gateway) else {
            return;
        };
        for listener in &gateway.listeners {
            for host in &route.hostnames {
                work.hosts.insert((listener.name.clone(), host.clone()));
            }
        }
    }

    fn service_changed(&self, query: &ServiceQuery, work: &mut Work) {
        let first = BackendTarget::Consul("".into());
        for (known, target) in self.targets_of_service.range((query.clone(), first)..) {
            if known != query {
                break;
            }
            work.endpoints.insert(target.clone());
        }
        for (known, listener, host) in self
            .waiting
            .range((query.clone(), Arc::from(""), Arc::from(""))..)
        {
            if known != query {
                break;
            }
            work.hosts.insert((listener.clone(), host.clone()));
        }
    }

    /// The gateway itself changed: all of its units are looked at again.
    fn whole_gateway(&self, snapshot: &Snapshot, work: &mut Work) {
        work.hosts.extend(self.hosts.keys().cloned());
        work.listeners
            .extend(self.set.of_kind(ResourceKind::Listener).keys().cloned());
        work.tables
            .extend(self.set.of_kind(ResourceKind::Route).keys().cloned());
        work.secrets.extend(self.certificates.keys().cloned());
        let Some(gateway) = snapshot.config.gateway(&self.gateway) else {
            return;
        };
        for listener in &gateway.listeners {
            work.listeners.insert(listener.name.clone());
            for host in snapshot.config.hosts_of_gateway(&self.gateway) {
                work.hosts.insert((listener.name.clone(), host.clone()));
            }
        }
        work.secrets.extend(
            certificates_of(snapshot, gateway)
                .into_iter()
                .map(|(name, _)| name),
        );
    }

    fn run(&mut self, snapshot: &Snapshot, mut work: Work) -> Compiled {
        let mut compiled = Compiled::default();
        let gateway = snapshot.config.gateway(&self.gateway).cloned();
        let routing_before = self.routings();
        for (listener, host) in std::mem::take(&mut work.hosts) {
            compiled.units += 1;
            self.host(
                snapshot,
                gateway.as_deref(),
                listener,
                host,
                &mut work,
                &mut compiled,
            );
        }
        self.secrets(snapshot, gateway.as_deref(), &mut work, &mut compiled);
        for target in &work.clusters {
            compiled.units += 1;
            self.cluster(snapshot, target, &mut compiled);
        }
        for target in work
            .clusters
            .iter()
            .chain(work.endpoints.difference(&work.clusters))
        {
            compiled.units += 1;
            self.endpoints(snapshot, target, &mut compiled);
        }
        for (listener, routing) in self.routings() {
            if routing_before.get(&listener) != Some(&routing) {
                self.reroute(&listener, routing, &mut compiled);
                work.listeners.insert(listener.clone());
                work.tables.insert(listener);
            }
        }
        for name in &work.tables {
            compiled.units += 1;
            self.table(name, &mut compiled);
        }
        for name in &work.listeners {
            compiled.units += 1;
            self.listener(snapshot, gateway.as_deref(), name, &mut compiled);
        }
        let both: Vec<_> = compiled
            .services_added
            .intersection(&compiled.services_dropped)
            .cloned()
            .collect();
        for query in both {
            compiled.services_added.remove(&query);
            compiled.services_dropped.remove(&query);
        }
        compiled
    }

    fn host(
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
        let Some(resolved) = resolved else {
            self.diagnostics.remove(&unit_key);
            if let Some(before) = before {
                self.hosts.remove(&key);
                self.host_uses(&key, Some(&before), None, work, compiled);
                compiled.changed |= self
                    .set
                    .remove(ResourceKind::ScopedRoute, &format!("{listener_name}/{host}"));
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
        let hold = !pending.is_empty() && self.settings.hold_pending;
        let unit = if hold {
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
        self.host_uses(&key, before.as_deref(), Some(&unit), work, compiled);
        if hold {
            return;
        }
        match self.routing(&listener_name) {
            Routing::Scoped => {
                compiled.changed |= self
                    .set
                    .insert(Arc::new(scoped_resource(&unit.host, &unit.encoded)))
            }
            Routing::Table => {
                work.tables.insert(listener_name);
            }
        }
    }

    /// Keeps the books of who uses what, and notes the clusters, watches and listeners that this starts or ends.
    fn host_uses(
        &mut self,
        key: &(Arc<str>, Arc<str>),
        before: Option<&HostUnit>,
        after: Option<&HostUnit>,
        work: &mut Work,
        compiled: &mut Compiled,
    ) {
        let (listener, host) = key;
        let none = BTreeSet::new();
        let (old, new) = (
            before.map_or(&none, |unit| &unit.targets),
            after.map_or(&none, |unit| &unit.targets),
        );
        for target in old.difference(new) {
            self.target_users
                .remove(&(target.clone(), listener.clone(), host.clone()));
            if !self.target_in_use(target) {
                work.clusters.insert(target.clone());
                if let Some(query) = self.query_of_target.remove(target) {
                    self.targets_of_service.remove(&(query.clone(), target.clone()));
                    if !self.query_in_use(&query) {
                        compiled.services_dropped.insert(query);
                    }
                }
            }
        }
        for target in new.difference(old) {
            if !self.target_in_use(target) {
                work.clusters.insert(target.clone());
            }
            self.target_users
                .insert((target.clone(), listener.clone(), host.clone()));
        }
        let no_features = BTreeSet::new();
        let (old, new) = (
            before.map_or(&no_features, |unit| &unit.features),
            after.map_or(&no_features, |unit| &unit.features),
        );
        for &feature in old.difference(new) {
            self.filters_used
                .remove(&(listener.clone(), feature, host.clone()));
            if !self.filter_in_use(listener, feature) {
                work.listeners.insert(listener.clone());
            }
        }
        for &feature in new.difference(old) {
            if !self.filter_in_use(listener, feature) {
                work.listeners.insert(listener.clone());
            }
            self.filters_used
                .insert((listener.clone(), feature, host.clone()));
        }
        if before.is_some() != after.is_some() && host.starts_with('*') {
            let count = self.wildcards.entry(listener.clone()).or_default();
            *count = if after.is_some() {
                *count + 1
            } else {
                count.saturating_sub(1)
            };
        }
    }

    fn target_in_use(&self, target: &BackendTarget) -> bool {
        self.target_users
            .range((target.clone(), Arc::from(""), Arc::from(""))..)
            .next()
            .is_some_and(|(used, _, _)| used == target)
    }

    fn query_in_use(&self, query: &ServiceQuery) -> bool {
        self.targets_of_service
            .range((query.clone(), BackendTarget::Consul("".into()))..)
            .next()
            .is_some_and(|(used, _)| used == query)
    }

    fn filter_in_use(&self, listener: &Arc<str>, feature: &'static str) -> bool {
        self.filters_used
            .range((listener.clone(), feature, Arc::from(""))..)
            .next()
            .is_some_and(|(l, f, _)| l == listener && *f == feature)
    }

    fn cluster(&mut self, snapshot: &Snapshot, target: &BackendTarget, compiled: &mut Compiled) {
        let name = cluster_name(target);
        let query = self
            .target_in_use(target)
            .then(|| service_query(&snapshot.config, target))
            .flatten();
        // The upstream may be fed by another watch than before.
        let old = self.query_of_target.get(target).cloned();
        if old != query {
            if let Some(old) = old {
                self.query_of_target.remove(target);
                self.targets_of_service.remove(&(old.clone(), target.clone()));
                if !self.query_in_use(&old) {
                    compiled.services_dropped.insert(old);
                }
            }
            if let Some(query) = query {
                if !self.query_in_use(&query) {
                    compiled.services_added.insert(query.clone());
                }
                self.targets_of_service.insert((query.clone(), target.clone()));
                self.query_of_target.insert(target.clone(), query);
            }
        }
        let resolved = self
            .target_in_use(target)
            .then(|| resolve_cluster(&snapshot.config, target))
            .flatten();
        compiled.changed |= match resolved {
            Some(cluster) => self.set.insert(Arc::new(cluster_resource(&cluster))),
            None => {
                self.diagnostics.remove(&UnitKey::Cluster(name.clone()));
                self.set.remove(ResourceKind::Cluster, &name)
            }
        };
    }

    /// The endpoint lane.
    fn endpoints(&mut self, snapshot: &Snapshot, target: &BackendTarget, compiled: &mut Compiled) {
        let name = cluster_name(target);
        let discovered = self.query_of_target.contains_key(target);
        let resolved = discovered.then(|| endpoints(snapshot, target)).flatten();
        compiled.changed |= match resolved {
            Some(resolved) => {
                self.say(UnitKey::Cluster(name.clone()), resolved.diagnostics);
                self.set
                    .insert(Arc::new(endpoint_resource(&name, &resolved.value)))
            }
            // In use and not answered yet: left unanswered. Otherwise gone with its cluster.
            None => self.set.remove(ResourceKind::Endpoint, &name),
        };
        // A cluster without endpoints to go with it would keep Envoy waiting: it comes with its first answer.
        if discovered && self.set.get(ResourceKind::Endpoint, &name).is_none() {
            compiled.changed |= self.set.remove(ResourceKind::Cluster, &name);
        } else if discovered
            && self.set.get(ResourceKind::Cluster, &name).is_none()
            && let Some(cluster) = resolve_cluster(&snapshot.config, target)
        {
            compiled.changed |= self.set.insert(Arc::new(cluster_resource(&cluster)));
        }
    }

    fn secrets(
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
            let secret = wanted
                .contains_key(&name)
                .then(|| resolve_secret(snapshot, &name))
                .flatten();
            compiled.changed |= match secret {
                Some(secret) => self.set.insert(Arc::new(secret_resource(&secret))),
                None => self.set.remove(ResourceKind::Secret, &secret_name(&name)),
            };
            // The listener's chains name the hosts that the certificate covers: it is remade, and comes out the same
            // unless those changed.
            for listener in gateway.into_iter().flat_map(|gateway| &gateway.listeners) {
                if listener
                    .tls
                    .iter()
                    .any(|tls| tls.certificates.iter().any(|(used, _)| *used == name))
                {
                    work.listeners.insert(listener.name.clone());
                }
            }
        }
        self.certificates = wanted;
    }

    fn listener(
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
            compiled.changed |= self.set.remove(ResourceKind::Listener, name);
            return;
        };
        let features = crate::features::FEATURES
            .iter()
            .map(|feature| feature.name())
            .filter(|feature| self.filter_in_use(name, feature))
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
        compiled.changed |= match resolved.value {
            Some(listener) => self.set.insert(Arc::new(listener_resource(&listener))),
            None => self.set.remove(ResourceKind::Listener, name),
        };
    }

    fn routing(&self, listener: &Arc<str>) -> Routing {
        match self.wildcards.get(listener) {
            Some(1..) => Routing::Table,
            _ => Routing::Scoped,
        }
    }

    fn routings(&self) -> BTreeMap<Arc<str>, Routing> {
        self.wildcards
            .keys()
            .map(|listener| (listener.clone(), self.routing(listener)))
            .collect()
    }

    /// A listener got its first wildcard, or lost its last: all its hosts move.
    fn reroute(&mut self, listener: &Arc<str>, routing: Routing, compiled: &mut Compiled) {
        for ((_, host), unit) in self.hosts_of(listener) {
            compiled.units += 1;
            compiled.changed |= match routing {
                Routing::Scoped if !unit.encoded.is_empty() => self
                    .set
                    .insert(Arc::new(scoped_resource(&unit.host, &unit.encoded))),
                _ => self
                    .set
                    .remove(ResourceKind::ScopedRoute, &format!("{listener}/{host}")),
            };
        }
    }

    fn table(&mut self, listener: &Arc<str>, compiled: &mut Compiled) {
        let hosts = self.hosts_of(listener);
        let encoded: Vec<(&VirtualHost, &[u8])> = hosts
            .iter()
            .filter(|(_, unit)| !unit.encoded.is_empty())
            .map(|(_, unit)| (&unit.host, &unit.encoded[..]))
            .collect();
        compiled.changed |= if self.routing(listener) == Routing::Table && !hosts.is_empty() {
            self.set.insert(Arc::new(table_resource(listener, &encoded)))
        } else {
            self.set.remove(ResourceKind::Route, listener)
        };
    }

    fn hosts_of(&self, listener: &Arc<str>) -> Vec<((Arc<str>, Arc<str>), Arc<HostUnit>)> {
        self.hosts
            .range((listener.clone(), Arc::from(""))..)
            .take_while(|((name, _), _)| name == listener)
            .map(|(key, unit)| (key.clone(), unit.clone()))
            .collect()
    }

    fn say(&mut self, unit: UnitKey, diagnostics: Vec<Diagnostic>) {
        if diagnostics.is_empty() {
            self.diagnostics.remove(&unit);
        } else {
            self.diagnostics.insert(unit, diagnostics.into());
        }
    }
}

/// What of an upstream its routes depend on.
fn watch_of(object: &Object) -> Option<ServiceQuery> {
    match object {
        Object::Upstream(upstream) => match &upstream.source {
            UpstreamSource::Consul { query, .. } => Some(query.clone()),
            UpstreamSource::Static(_) | UpstreamSource::Dns(_) => None,
        },
        _ => None,
    }
}
