//! Keeps the watchers of services told what to watch: each gets the queries of its own catalog.

use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::model::{
    Interests, Lookup, Needed, Observation, Problem, ProblemKind, ServiceQuery, ServiceUpdate,
};
use crate::sources::agent_api::{Product, ServiceWatcher};

fn catalog_of(query: &ServiceQuery) -> Product {
    match query.lookup {
        Lookup::Nomad => Product::Nomad,
        Lookup::Service | Lookup::Connect | Lookup::MeshGateway | Lookup::MeshGatewayWan => Product::Consul,
    }
}

/// The queries of one catalog, kept at the price of what changes.
struct Share {
    product: Product,
    all: Needed<ServiceQuery>,
    own: Needed<ServiceQuery>,
}

impl Share {
    fn of(product: Product) -> Self {
        Self {
            product,
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
                    if catalog_of(query) == self.product {
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
    product: Product,
    watcher: ServiceWatcher,
    mut interests: watch::Receiver<Arc<Interests>>,
    stop: CancellationToken,
) {
    let mut share = Share::of(product);
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
    product: Product,
    observations: mpsc::Sender<Observation>,
    mut interests: watch::Receiver<Arc<Interests>>,
    stop: CancellationToken,
) {
    let mut share = Share::of(product);
    let fix = match product {
        Product::Consul => "add a `consul {}` block to the agent's settings, or start it with -dev-consul",
        Product::Nomad | Product::Vault => "add a `nomad {}` block to the agent's settings",
    };
    loop {
        let added = share.take(interests.borrow_and_update().services.clone());
        for query in added {
            let problem = Problem::new(
                ProblemKind::Refused,
                format!("the service {query} cannot be looked up: this agent is not connected to {product}"),
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
