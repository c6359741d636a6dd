//! One host of a listener, or a listener's route for plain TCP.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::books::is_wildcard;
use super::{Compiled, Compiler, HostUnit, Made, NO_HOST, UnitKey, Work};
use crate::config::{Gateway, Listener};
use crate::diagnostics::Diagnostic;
use crate::ir::{Routing, Serves, TcpProxy, Unavailable, VirtualHost};
use crate::model::DocumentId;
use crate::model::mesh::Interest;
use crate::resolve::{
    Destination, ResolvedHost, ResolvedTcp, attached_features, resolve_tcp, resolve_virtual_host, serves_tcp,
};
use crate::snapshot::Snapshot;
use crate::translate::route::{encode_virtual_host, scoped_resource};

/// A unit as it is resolved, and what it depends on.
struct Resolved {
    value: Value,
    targets: BTreeSet<Destination>,
    pending: BTreeSet<Interest>,
    follows: BTreeSet<Interest>,
    features: BTreeSet<&'static str>,
    diagnostics: Vec<Diagnostic>,
}

enum Value {
    Host(VirtualHost),
    Tcp {
        proxy: Result<TcpProxy, Unavailable>,
        origins: Vec<DocumentId>,
    },
}

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
        let resolved = gateway
            .zip(listener)
            .and_then(|(gateway, listener)| resolve(snapshot, gateway, listener, &host));
        let unit_key = UnitKey::Host(listener_name.clone(), host.clone());
        let Some(resolved) = resolved else {
            work.gone.insert(key);
            return;
        };
        let before = self.hosts.get(&key).cloned();
        for interest in before.iter().flat_map(|before| &before.follows) {
            self.hosts_of
                .remove(&(interest.clone(), listener_name.clone(), host.clone()));
        }
        self.leaving.remove(&key);
        let was_held = self.held.remove(&key).is_some();
        let follows: Box<[Interest]> = resolved.follows.union(&resolved.pending).cloned().collect();
        for interest in &follows {
            self.hosts_of
                .insert((interest.clone(), listener_name.clone(), host.clone()));
        }
        self.say(unit_key, resolved.diagnostics);
        let hold = !resolved.pending.is_empty() && self.settings.hold_pending && !work.release;
        let unit = if hold {
            self.held.insert(key.clone());
            // Nothing of it reaches Envoy yet, and its documents are not what Envoy runs with.
            compiled
                .documents
                .extend(resolved.value.origins().iter().cloned());
            // What stood before stands until the new watches have answered; their watches start now.
            let (made, features) = match &before {
                Some(before) => (before.made.clone(), before.features.clone()),
                None => (None, resolved.features),
            };
            let both: BTreeSet<Destination> = before
                .iter()
                .flat_map(|before| before.targets.iter().cloned())
                .chain(resolved.targets)
                .collect();
            let targets = both.into_iter().collect();
            HostUnit {
                made,
                targets,
                features,
                follows,
            }
        } else {
            HostUnit {
                made: Some(resolved.value.made()),
                targets: resolved.targets.into_iter().collect(),
                features: resolved.features,
                follows,
            }
        };
        let unit = Arc::new(unit);
        self.hosts.insert(key.clone(), unit.clone());
        self.host_uses(&key, (before.as_deref(), was_held), (Some(&unit), hold), work);
        if *host == *NO_HOST {
            // One that is held back has no port open yet, and its listener says so.
            work.listeners.insert(listener_name);
            return;
        }
        let Some(encoded) = unit.host().filter(|_| !hold) else {
            return;
        };
        // Also where new connections look it up in a table: those from before the table came do not.
        if !is_wildcard(&host) {
            self.put(scoped_resource(encoded), compiled);
        }
        if self.routing(&listener_name) == Routing::Table {
            work.tables.insert(listener_name);
        }
    }

    /// What a tcp listener does with its connections, and the documents that say so.
    pub(super) fn served_tcp(
        &self,
        gateway: &Gateway,
        listener: &Listener,
    ) -> (Result<Serves, Box<Diagnostic>>, Vec<DocumentId>) {
        const WAITING: &Result<TcpProxy, Unavailable> = &Err(Unavailable::NotYetKnown);
        let unit = self.hosts.get(&(listener.name.clone(), NO_HOST.into()));
        let (proxy, origins) = match unit.map(|unit| &unit.made) {
            Some(Some(Made::Tcp { proxy, origins })) => (Some(proxy), origins.clone()),
            Some(_) => (Some(WAITING), Vec::new()),
            None => (None, Vec::new()),
        };
        (serves_tcp(gateway, listener, proxy), origins)
    }
}

fn resolve(snapshot: &Snapshot, gateway: &Gateway, listener: &Listener, host: &Arc<str>) -> Option<Resolved> {
    if **host == *NO_HOST {
        let resolved = resolve_tcp(snapshot, gateway, listener)?;
        let ResolvedTcp {
            proxy,
            targets,
            pending,
            follows,
            origins,
            ..
        } = resolved.value;
        return Some(Resolved {
            value: Value::Tcp { proxy, origins },
            targets,
            pending,
            follows,
            features: BTreeSet::new(),
            diagnostics: resolved.diagnostics,
        });
    }
    let resolved = resolve_virtual_host(snapshot, gateway, listener, host)?;
    let ResolvedHost {
        host,
        targets,
        pending,
        follows,
        ..
    } = resolved.value;
    Some(Resolved {
        features: attached_features(&host),
        value: Value::Host(host),
        targets,
        pending,
        follows,
        diagnostics: resolved.diagnostics,
    })
}

impl Value {
    fn origins(&self) -> &[DocumentId] {
        match self {
            Self::Host(host) => &host.origins,
            Self::Tcp { origins, .. } => origins,
        }
    }

    fn made(self) -> Made {
        match self {
            Self::Host(host) => Made::Host(encode_virtual_host(&host)),
            Self::Tcp { proxy, origins } => Made::Tcp { proxy, origins },
        }
    }
}
