//! Keeps the watchers of services told what to watch: each gets the queries of its own catalog.

use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::model::{
    Interests, Lookup, Needed, Observation, Problem, ProblemKind, ServiceQuery, ServiceUpdate,
};
use crate::sources::agent_api::ServiceWatcher;

/// Who is asked for instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Catalog {
    Consul,
    Nomad,
    /// The gateway's own sidecar.
    Sidecar,
}

impl Catalog {
    fn of(query: &ServiceQuery) -> Self {
        match query.lookup {
            Lookup::Nomad => Self::Nomad,
            Lookup::Sidecar => Self::Sidecar,
            Lookup::Service
            | Lookup::PreparedQuery
            | Lookup::Connect
            | Lookup::MeshGateway
            | Lookup::MeshGatewayWan => Self::Consul,
        }
    }

    /// Of the tasks that watch it and that keep its watcher told.
    pub(super) fn task_names(self) -> (&'static str, &'static str) {
        match self {
            Self::Consul => ("services", "service interests"),
            Self::Nomad => ("nomad services", "nomad service interests"),
            Self::Sidecar => ("sidecar upstreams", "sidecar interests"),
        }
    }

    /// Why it cannot be asked, and what to do.
    fn missing(self) -> (&'static str, &'static str) {
        match self {
            Self::Consul => (
                "this agent is not connected to Consul",
                "add a `consul {}` block to the agent's settings, or start it with -dev-consul",
            ),
            Self::Nomad => (
                "this agent is not connected to Nomad",
                "add a `nomad {}` block to the agent's settings",
            ),
            Self::Sidecar => (
                "this agent is no member of the mesh",
                "add `mesh { service = \"edge-gw\" }` to the agent's settings",
            ),
        }
    }
}

/// The queries of one catalog, kept at the price of what changes.
struct Share {
    catalog: Catalog,
    all: Needed<ServiceQuery>,
    own: Needed<ServiceQuery>,
}

impl Share {
    fn of(catalog: Catalog) -> Self {
        Self {
            catalog,
            all: OrdMap::new(),
            own: OrdMap::new(),
        }
    }

    fn take(&mut self, wanted: Needed<ServiceQuery>) -> Vec<ServiceQuery> {
        let mut added = Vec::new();
        for item in self.all.diff(&wanted) {
            match item {
                DiffItem::Add(query, wish)
                | DiffItem::Update {
                    new: (query, wish), ..
                } => {
                    if Catalog::of(query) == self.catalog {
                        self.own.insert(query.clone(), *wish);
                        added.push(query.clone());
                    }
                }
                DiffItem::Remove(query, _) => {
                    self.own.remove(query);
                }
            }
        }
        self.all = wanted;
        added
    }
}

pub(super) async fn follow(
    catalog: Catalog,
    watcher: ServiceWatcher,
    mut interests: watch::Receiver<Arc<Interests>>,
    stop: CancellationToken,
) {
    let mut share = Share::of(catalog);
    loop {
        share.take(interests.borrow_and_update().services.clone());
        watcher.set_interests(share.own.clone());
        tokio::select! {
            () = stop.cancelled() => return,
            changed = interests.changed() => if changed.is_err() { return },
        }
    }
}

/// Documents that name services of a catalog that the agent is not connected to: each is told so, once.
pub(super) async fn say_not_connected(
    catalog: Catalog,
    observations: mpsc::Sender<Observation>,
    mut interests: watch::Receiver<Arc<Interests>>,
    stop: CancellationToken,
) {
    let mut share = Share::of(catalog);
    let (why, fix) = catalog.missing();
    loop {
        let added = share.take(interests.borrow_and_update().services.clone());
        for query in added {
            let problem = Problem::new(
                ProblemKind::Refused,
                format!("the service {query} cannot be looked up: {why}"),
            )
            .with_fix(fix);
            let update = ServiceUpdate {
                query,
                result: Err(problem),
            };
            if observations.send(Observation::Service(update)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = interests.changed() => if changed.is_err() { return },
        }
    }
}
