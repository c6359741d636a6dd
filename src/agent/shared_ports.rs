//! Looks, while Envoy serves, whether somebody else listens on its ports: neither Envoy nor the kernel would say so.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::Listener;
use crate::envoy::ResourceKind;
use crate::envoy_process::{Handle, PortSharer, PortWatch};
use crate::model::{Observation, SharedPort};
use crate::pipeline::View;

/// A look reads the table of listening sockets, and other processes' files only when the table has changed.
const PAUSE: Duration = Duration::from_secs(3);

/// A gateway's listener, and where it listens.
type Place = (Arc<str>, Arc<str>, SocketAddr);

/// Runs until cancelled.
pub(super) async fn watch(
    envoys: Vec<Handle>,
    bind: IpAddr,
    view: watch::Receiver<Arc<View>>,
    observations: mpsc::Sender<Observation>,
    stop: CancellationToken,
) {
    let mut ports = PortWatch::new(&envoys);
    let mut told: Arc<[SharedPort]> = Arc::new([]);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(PAUSE) => {}
        }
        let places = places(&view.borrow(), bind);
        let wanted: BTreeSet<SocketAddr> = places.iter().map(|(_, _, address)| *address).collect();
        let looked = tokio::task::spawn_blocking(move || {
            let found = ports.look(&wanted);
            (ports, found)
        });
        let found = match looked.await {
            Ok((returned, found)) => {
                ports = returned;
                found
            }
            Err(error) => {
                tracing::error!(%error, "the look at shared ports panicked, starting over");
                ports = PortWatch::new(&envoys);
                continue;
            }
        };
        let found = of_listeners(&places, &found);
        if found == told {
            continue;
        }
        told = found.clone();
        if observations.send(Observation::SharedPorts(found)).await.is_err() {
            return stop.cancelled().await;
        }
    }
}

fn places(view: &View, bind: IpAddr) -> Vec<Place> {
    let mut places = Vec::new();
    for served in &view.gateways {
        let Some(gateway) = view.snapshot.config.gateway(&served.name) else {
            continue;
        };
        // One that is withheld opens nothing.
        let resources = served.compiler.resources();
        let open = |listener: &&Listener| resources.get(ResourceKind::Listener, &listener.name).is_some();
        places.extend(gateway.listeners.iter().filter(open).map(|listener| {
            let address = SocketAddr::new(listener.address.unwrap_or(bind), listener.port);
            (gateway.name.clone(), listener.name.clone(), address)
        }));
    }
    places
}

/// Sorted, so that the same is not told twice.
fn of_listeners(places: &[Place], found: &[PortSharer]) -> Arc<[SharedPort]> {
    let mut shared: Vec<SharedPort> = places
        .iter()
        .flat_map(|(gateway, listener, address)| {
            let sharers = found.iter().filter(|sharer| sharer.ours == *address);
            sharers.map(|sharer| SharedPort {
                gateway: gateway.clone(),
                listener: listener.clone(),
                ours: sharer.ours,
                theirs: sharer.theirs,
                holder: sharer.holder.clone().map(|(pid, name)| (pid, name.into())),
            })
        })
        .collect();
    shared.sort();
    shared.dedup();
    shared.into()
}
