//! Keeps the watcher of the mesh told what to watch, or says that there is none.

use std::sync::Arc;

use imbl::OrdMap;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::model::mesh::{ChainQuery, Interest};
use crate::model::{ChainUpdate, Interests, MeshUpdate, Observation, Problem, ProblemKind};
use crate::sources::consul::MeshWatcher;

pub(super) async fn follow_mesh(
    watcher: MeshWatcher,
    mut interests: watch::Receiver<Arc<Interests>>,
    stop: CancellationToken,
) {
    loop {
        let wanted = interests.borrow_and_update().mesh.clone();
        watcher.set_interests(wanted);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = interests.changed() => if changed.is_err() { return },
        }
    }
}

/// Documents that name services of the mesh, and an agent that is no member of it.
pub(super) async fn say_no_mesh(
    observations: mpsc::Sender<Observation>,
    mut interests: watch::Receiver<Arc<Interests>>,
    stop: CancellationToken,
) {
    let mut told = OrdMap::new();
    loop {
        let wanted = interests.borrow_and_update().mesh.clone();
        let is_new = |(interest, wish): &(&Interest, &u64)| told.get(*interest) != Some(*wish);
        for (interest, _) in wanted.iter().filter(is_new) {
            let problem = Problem::new(
                ProblemKind::Refused,
                "an upstream is a service of the mesh, and this agent is no member of it",
            )
            .with_fix("add `mesh { service = \"edge-gw\" }` to the agent's settings");
            let all = match interest {
                Interest::Service(_) | Interest::Intention(_) => Vec::new(),
                Interest::Chain(query) => vec![Observation::Chain(ChainUpdate {
                    query: ChainQuery::clone(query),
                    result: Err(problem),
                })],
                Interest::Mesh => vec![
                    Observation::Mesh(MeshUpdate::Roots(Err(problem.clone()))),
                    Observation::Mesh(MeshUpdate::Leaf(Err(problem))),
                ],
            };
            for observation in all {
                if observations.send(observation).await.is_err() {
                    return;
                }
            }
        }
        told = wanted;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = interests.changed() => if changed.is_err() { return },
        }
    }
}
