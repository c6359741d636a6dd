//! From a change to the units that depend on it.

use std::sync::Arc;

use super::books::Fed;
use super::{Compiler, NO_HOST, UnitKey, Work, least};
use crate::config::{
    BackendTarget, ConnectSource, Listener, Object, ObjectKey, ObjectKind, Protocol, RouteRef, UpstreamSource,
};
use crate::envoy::ResourceKind;
use crate::model::ServiceQuery;
use crate::model::mesh::Interest;
use crate::resolve::{Destination, certificates_of};
use crate::snapshot::Snapshot;

impl Compiler {
    pub(super) fn object_changed(
        &self,
        snapshot: &Snapshot,
        key: &ObjectKey,
        before: Option<&Object>,
        after: Option<&Object>,
        work: &mut Work,
    ) {
        match key.kind {
            ObjectKind::Gateway if key.name == self.gateway => self.whole_gateway(snapshot, work),
            ObjectKind::Gateway => self.neighbour_changed(snapshot, [before, after], work),
            ObjectKind::HttpRoute | ObjectKind::TcpRoute => {
                for route in [before, after].into_iter().flatten() {
                    self.route_touched(snapshot, route, work);
                }
            }
            ObjectKind::Upstream => {
                let target = Destination::Backend(BackendTarget::Upstream(key.name.clone()));
                work.clusters.insert(target.clone());
                work.endpoints.insert(target);
                work.clusters.extend(self.mesh_destinations_of(&key.name));
                // A route looks different only when the upstream appears, vanishes, is fed by another watch, or moves to
                // another document: who to tell of a refusal.
                let seen = |object: &Object| (source_of(object), object.origin().document.clone());
                if before.map(seen) != after.map(seen) {
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

    /// Another gateway of this node may have taken a port of ours, or left it to us.
    fn neighbour_changed(&self, snapshot: &Snapshot, states: [Option<&Object>; 2], work: &mut Work) {
        let Some(own) = snapshot.config.gateway(&self.gateway) else {
            return;
        };
        for state in states.into_iter().flatten() {
            let Object::Gateway(other) = state else { continue };
            if !self.settings.same_node.contains(&other.name) {
                continue;
            }
            for listener in &own.listeners {
                if other.listeners.iter().any(|taken| taken.port == listener.port) {
                    work.listeners.insert(listener.name.clone());
                }
            }
        }
    }

    pub(super) fn users_touched(&self, snapshot: &Snapshot, key: &ObjectKey, work: &mut Work) {
        for user in snapshot.config.users_of(key) {
            if !work.users.insert(user.clone()) {
                continue;
            }
            match user.kind {
                ObjectKind::Gateway if user.name == self.gateway => self.whole_gateway(snapshot, work),
                ObjectKind::HttpRoute | ObjectKind::TcpRoute => {
                    if let Some(route) = snapshot.config.object(user) {
                        self.route_touched(snapshot, route, work);
                    }
                }
                _ => {}
            }
        }
    }

    pub(super) fn route_touched(&self, snapshot: &Snapshot, route: &Object, work: &mut Work) {
        let Some(route) = route.route() else { return };
        if !route.gateways().iter().any(|(name, _)| *name == self.gateway) {
            return;
        }
        let Some(gateway) = snapshot.config.gateway(&self.gateway) else {
            return;
        };
        match route {
            RouteRef::Http(route) => {
                let speaks_http = |listener: &&Listener| listener.protocol != Protocol::Tcp;
                for listener in gateway.listeners.iter().filter(speaks_http) {
                    for host in &route.hostnames {
                        work.hosts.insert((listener.name.clone(), host.clone()));
                    }
                }
            }
            RouteRef::Tcp(route) => {
                let listeners = route.listeners.iter();
                work.hosts
                    .extend(listeners.map(|(listener, _)| (listener.clone(), NO_HOST.into())));
            }
        }
    }

    /// A watch said something: its destinations are made anew, and the hosts that wait for it or are made from it.
    pub(super) fn answered(&self, interest: &Interest, work: &mut Work) {
        for target in self.targets_of.get(interest).into_iter().flat_map(Fed::iter) {
            match interest {
                Interest::Service(_) | Interest::Intention(_) => work.endpoints.insert(target.clone()),
                Interest::Chain(_) | Interest::Mesh => work.clusters.insert(target.clone()),
            };
        }
        for (known, listener, host) in self.hosts_of.range((interest.clone(), least(), least())..) {
            if known != interest {
                break;
            }
            work.hosts.insert((listener.clone(), host.clone()));
        }
    }

    /// The clusters in use that a mesh upstream unfolds into.
    fn mesh_destinations_of(&self, upstream: &Arc<str>) -> Vec<Destination> {
        let targets = Destination::Mesh {
            upstream: upstream.clone(),
            target: least(),
        };
        let failovers = Destination::Failover {
            upstream: upstream.clone(),
            resolver: least(),
        };
        let of = |destination: &Destination| match destination {
            Destination::Mesh { upstream: of, .. } | Destination::Failover { upstream: of, .. } => {
                of == upstream
            }
            Destination::Backend(_) => false,
        };
        [targets, failovers]
            .into_iter()
            .flat_map(|first| {
                self.interests_of
                    .range(first..)
                    .map(|(destination, _)| destination.clone())
                    .take_while(of)
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// The gateway itself changed: all of its units are looked at again.
    pub(super) fn whole_gateway(&self, snapshot: &Snapshot, work: &mut Work) {
        work.hosts.extend(self.hosts.keys().cloned());
        work.listeners
            .extend(self.set.of_kind(ResourceKind::Listener).keys().cloned());
        // One that is withheld has no resource, and yet something to say.
        work.listeners
            .extend(self.diagnostics.keys().filter_map(|unit| match unit {
                UnitKey::Listener(name) => Some(name.clone()),
                _ => None,
            }));
        work.tables
            .extend(self.set.of_kind(ResourceKind::Route).keys().cloned());
        work.secrets.extend(self.certificates.keys().cloned());
        let Some(gateway) = snapshot.config.gateway(&self.gateway) else {
            return;
        };
        for listener in &gateway.listeners {
            work.listeners.insert(listener.name.clone());
            if listener.protocol == Protocol::Tcp {
                work.hosts.insert((listener.name.clone(), NO_HOST.into()));
                continue;
            }
            for host in snapshot.config.hosts_of_gateway(&self.gateway) {
                work.hosts.insert((listener.name.clone(), host.clone()));
            }
        }
        work.secrets.extend(certificates_of(snapshot, gateway));
    }
}

/// What of an upstream its routes depend on.
fn source_of(object: &Object) -> (Vec<ServiceQuery>, Option<ConnectSource>) {
    let Object::Upstream(upstream) = object else {
        return (Vec::new(), None);
    };
    let queries = upstream.source.queries().into_iter().cloned().collect();
    match &upstream.source {
        UpstreamSource::Connect(source) => (queries, Some(source.clone())),
        _ => (queries, None),
    }
}
