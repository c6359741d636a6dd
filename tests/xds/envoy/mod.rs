//! The real Envoy, in both dialects: requests go through, and through every change.

mod clients;
mod process;
mod resources;

use std::sync::Arc;
use std::time::{Duration, Instant};

use portreeve::envoy::{Resource, ResourceKind, ResourceSet};
use portreeve::xds::{Event, Variant};
use tempfile::TempDir;

use crate::harness::{Publisher, Served, publisher};
use crate::ports::free_port;
use process::{Backend, EnvoyProcess, Traffic, get, get_until};
use resources::{
    bad_listener, bad_routes, eds_cluster, endpoints, nameless_cluster, rds_listener, routes, scope,
    scoped_listener, secret, tls_cluster,
};

const BOTH: [Variant; 2] = [Variant::Delta, Variant::StateOfTheWorld];
const SECOND: Duration = Duration::from_secs(1);

/// A server, an Envoy connected to it, and what is published.
struct Gateway {
    folder: TempDir,
    set: ResourceSet,
    publish: Publisher,
    served: Served,
    envoy: EnvoyProcess,
}

impl Gateway {
    async fn start(variant: Variant, resources: Vec<Arc<Resource>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut set = ResourceSet::default();
        resources
            .into_iter()
            .for_each(|resource| _ = set.insert(resource));
        let (publish, receiver) = publisher(Some(set.clone()));
        let served = Served::start(folder.path(), receiver).await;
        let envoy = EnvoyProcess::start(folder.path(), &served.socket, variant);
        Self {
            folder,
            set,
            publish,
            served,
            envoy,
        }
    }

    fn publish(&mut self, changed: Vec<Arc<Resource>>, removed: &[(ResourceKind, &str)]) {
        changed
            .into_iter()
            .for_each(|resource| _ = self.set.insert(resource));
        removed
            .iter()
            .for_each(|(kind, name)| assert!(self.set.remove(*kind, name)));
        self.publish.send_replace(Some(Arc::new(self.set.clone())));
    }

    /// Another agent takes over, publishing what is in the set by then.
    async fn restart_server(self, change: impl FnOnce(&mut ResourceSet)) -> Self {
        let Self {
            folder,
            mut set,
            served,
            envoy,
            publish: _,
        } = self;
        served.end().await;
        change(&mut set);
        let (publish, receiver) = publisher(Some(set.clone()));
        let served = Served::start(folder.path(), receiver).await;
        Self {
            folder,
            set,
            publish,
            served,
            envoy,
        }
    }

    /// Until Envoy acknowledged exactly what is published.
    async fn settle(&self) -> Duration {
        let started = Instant::now();
        self.served
            .view_where("settles", |view| {
                let is_same = |kind| self.set.changes_since(&view.acked, kind).next().is_none();
                view.is_settled() && ResourceKind::ALL.into_iter().all(is_same)
            })
            .await;
        started.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comes_up_and_follows_changes() {
    for variant in BOTH {
        let (one, two, port) = (
            Backend::start("one").await,
            Backend::start("two").await,
            free_port(),
        );
        let mut gateway = Gateway::start(
            variant,
            vec![
                eds_cluster("shop", SECOND),
                endpoints("shop", one.port),
                rds_listener("web", port),
                routes("web", "shop"),
            ],
        )
        .await;
        let up = get_until(port, "any", "/", 200, "one").await;
        gateway.settle().await;

        gateway.publish(vec![endpoints("shop", two.port)], &[]);
        let flip = get_until(port, "any", "/", 200, "two").await;

        // A changed cluster with unchanged endpoints: without these sent again, Envoy waits 15 s.
        let traffic = Traffic::start(port, "any");
        gateway.publish(vec![eds_cluster("shop", SECOND * 2)], &[]);
        let changed = gateway.settle().await;
        assert!(
            changed < SECOND * 5,
            "{variant:?}: a changed cluster stalls for {changed:?}"
        );
        let (_, failed) = traffic.end().await;
        assert!(failed.is_empty(), "{variant:?}: {failed:?}");
        assert_eq!(gateway.envoy.stat("cluster_manager.warming_clusters").await, 0);
        assert_eq!(gateway.envoy.stat("cluster_manager.cds.update_rejected").await, 0);
        eprintln!("{variant:?}: up in {up:?}, endpoint change in {flip:?}, cluster change in {changed:?}");
        gateway.served.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_clusters_under_traffic_cost_no_request() {
    for variant in BOTH {
        let (backend, port) = (Backend::start("one").await, free_port());
        let mut gateway = Gateway::start(
            variant,
            vec![
                eds_cluster("c0", SECOND),
                endpoints("c0", backend.port),
                scoped_listener("web", port),
                scope("a.example", "c0"),
            ],
        )
        .await;
        get_until(port, "a.example", "/", 200, "one").await;
        gateway.settle().await;
        let traffic = Traffic::start(port, "a.example");
        let mut slowest = Duration::ZERO;
        for number in 1..=40 {
            let (new, old) = (format!("c{number}"), format!("c{}", number - 1));
            let changed = vec![
                eds_cluster(&new, SECOND),
                endpoints(&new, backend.port),
                scope("a.example", &new),
            ];
            gateway.publish(
                changed,
                &[(ResourceKind::Cluster, &old), (ResourceKind::Endpoint, &old)],
            );
            slowest = slowest.max(gateway.settle().await);
        }
        let (sent, failed) = traffic.end().await;
        assert!(
            failed.is_empty(),
            "{variant:?}: {} of {sent}: {:?}",
            failed.len(),
            failed.first()
        );
        // Its clusters left and came without one being kept.
        assert_eq!(gateway.envoy.stat("cluster_manager.active_clusters").await, 2);
        eprintln!("{variant:?}: 40 times a new cluster, slowest {slowest:?}, {sent} requests, none failed");
        gateway.served.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scopes_come_change_and_go() {
    for variant in BOTH {
        let (one, two, port) = (
            Backend::start("one").await,
            Backend::start("two").await,
            free_port(),
        );
        let mut gateway = Gateway::start(
            variant,
            vec![
                eds_cluster("one", SECOND),
                endpoints("one", one.port),
                eds_cluster("two", SECOND),
                endpoints("two", two.port),
                scoped_listener("web", port),
                scope("a.example", "one"),
                scope("b.example", "two"),
            ],
        )
        .await;
        get_until(port, "a.example", "/", 200, "one").await;
        get_until(port, "b.example", "/", 200, "two").await;
        assert_eq!(get(port, "c.example", "/").await.0, 404);
        gateway.publish(vec![scope("a.example", "two"), scope("c.example", "one")], &[]);
        get_until(port, "a.example", "/", 200, "two").await;
        get_until(port, "c.example", "/", 200, "one").await;
        gateway.publish(Vec::new(), &[(ResourceKind::ScopedRoute, "b.example")]);
        get_until(port, "b.example", "/", 404, "").await;
        gateway.settle().await;
        gateway.served.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_resource_harms_itself_only() {
    for variant in BOTH {
        let (one, two, port) = (
            Backend::start("one").await,
            Backend::start("two").await,
            free_port(),
        );
        let other_port = free_port();
        let mut gateway = Gateway::start(
            variant,
            vec![
                eds_cluster("shop", SECOND),
                endpoints("shop", one.port),
                rds_listener("web", port),
                routes("web", "shop"),
            ],
        )
        .await;
        get_until(port, "any", "/", 200, "one").await;
        gateway.settle().await;

        // A listener that is refused, and a good one in the same response.
        gateway.publish(
            vec![
                bad_listener("bad"),
                rds_listener("other", other_port),
                routes("other", "shop"),
            ],
            &[],
        );
        let (blamed, message) = proven_refusal(&mut gateway.served, ResourceKind::Listener).await;
        assert_eq!(blamed, ["bad".into()], "{message}");
        get_until(other_port, "any", "/", 200, "one").await;
        eprintln!("{variant:?}: listener refused: {message}");
        gateway.publish(Vec::new(), &[(ResourceKind::Listener, "bad")]);
        gateway.settle().await;

        // Routes that are refused: the old ones stay.
        gateway.publish(vec![bad_routes("web", "shop")], &[]);
        let (blamed, message) = proven_refusal(&mut gateway.served, ResourceKind::Route).await;
        assert_eq!(blamed, ["web".into()], "{message}");
        eprintln!("{variant:?}: routes refused: {message}");
        assert_eq!(get(port, "any", "/").await, (200, "one".to_owned()));
        gateway.publish(vec![routes("web", "shop")], &[]);
        gateway.settle().await;

        // A cluster refused in a text that names nobody: the other changes get through nevertheless.
        let names: Vec<String> = (0..20).map(|number| format!("more-{number}")).collect();
        let mut changed: Vec<_> = names.iter().map(|name| eds_cluster(name, SECOND)).collect();
        changed.extend(names.iter().map(|name| endpoints(name, two.port)));
        changed.extend([
            nameless_cluster("more-x"),
            scope("unused", "more-19"),
            routes("other", "more-7"),
        ]);
        let started = Instant::now();
        gateway.publish(changed, &[]);
        let (blamed, message) = proven_refusal(&mut gateway.served, ResourceKind::Cluster).await;
        let found = started.elapsed();
        assert_eq!(blamed, ["more-x".into()], "{message}");
        get_until(other_port, "any", "/", 200, "two").await;
        eprintln!("{variant:?}: one bad of 21 clusters found in {found:?}: {message}");
        gateway.served.end().await;
    }
}

async fn proven_refusal(served: &mut Served, wanted: ResourceKind) -> (Vec<Arc<str>>, Arc<str>) {
    served
        .event_where(|event| match event {
            Event::Nacked {
                kind,
                blamed,
                proven: true,
                message,
                ..
            } if kind == wanted => Some((blamed, message)),
            _ => None,
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_with_the_same_set_sends_nothing() {
    for variant in BOTH {
        let (backend, port) = (Backend::start("one").await, free_port());
        let mut gateway = Gateway::start(
            variant,
            vec![
                eds_cluster("shop", SECOND),
                endpoints("shop", backend.port),
                rds_listener("web", port),
                routes("web", "shop"),
            ],
        )
        .await;
        get_until(port, "any", "/", 200, "one").await;
        gateway.settle().await;
        let updates = "cluster_manager.cds.update_success";
        let before = gateway.envoy.stat(updates).await;
        let traffic = Traffic::start(port, "any");
        gateway = gateway.restart_server(|_| ()).await;
        let reconnected = gateway.settle().await;
        tokio::time::sleep(SECOND).await;
        while let Ok(event) = gateway.served.events.try_recv() {
            assert!(
                matches!(event, Event::Connected { .. }),
                "{variant:?}: something was sent: {event:?}"
            );
        }
        assert_eq!(gateway.envoy.stat(updates).await, before, "{variant:?}");
        let (sent, failed) = traffic.end().await;
        assert!(failed.is_empty(), "{variant:?}: {failed:?}");
        eprintln!("{variant:?}: back after {reconnected:?}, nothing sent, {sent} requests, none failed");

        // And it goes on from there.
        let other = Backend::start("two").await;
        gateway.publish(vec![endpoints("shop", other.port)], &[]);
        get_until(port, "any", "/", 200, "two").await;
        gateway.served.end().await;
    }
}

/// While the agent was away, a host moved to a new cluster and its old one went: no request notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_with_another_set_costs_no_request() {
    let (one, two, port) = (
        Backend::start("one").await,
        Backend::start("two").await,
        free_port(),
    );
    let mut gateway = Gateway::start(
        Variant::Delta,
        vec![
            eds_cluster("old", SECOND),
            endpoints("old", one.port),
            scoped_listener("web", port),
            scope("a.example", "old"),
        ],
    )
    .await;
    get_until(port, "a.example", "/", 200, "one").await;
    gateway.settle().await;
    let traffic = Traffic::start(port, "a.example");
    gateway = gateway
        .restart_server(|set| {
            for resource in [
                eds_cluster("new", SECOND),
                endpoints("new", two.port),
                scope("a.example", "new"),
            ] {
                set.insert(resource);
            }
            set.remove(ResourceKind::Cluster, "old");
            set.remove(ResourceKind::Endpoint, "old");
        })
        .await;
    get_until(port, "a.example", "/", 200, "two").await;
    gateway.settle().await;
    assert_eq!(gateway.envoy.stat("cluster_manager.active_clusters").await, 2);
    let (sent, failed) = traffic.end().await;
    assert!(
        failed.is_empty(),
        "{} of {sent}: {:?}",
        failed.len(),
        failed.first()
    );
    gateway.served.end().await;
}

/// A cluster waits for a secret whose key nobody has any more: that is reported, and holds up neither other new clusters
/// nor their routes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_cluster_delays_its_own_routes_only() {
    for variant in BOTH {
        let (backend, port) = (Backend::start("one").await, free_port());
        let mut gateway = Gateway::start(
            variant,
            vec![
                eds_cluster("shop", SECOND),
                endpoints("shop", backend.port),
                scoped_listener("web", port),
                scope("a.example", "shop"),
            ],
        )
        .await;
        get_until(port, "a.example", "/", 200, "one").await;
        gateway.settle().await;
        let held = Arc::new(Resource::held_by_envoy(
            ResourceKind::Secret,
            "leaf".into(),
            "1".into(),
        ));
        gateway.publish(
            vec![
                tls_cluster("cold", "leaf"),
                held,
                endpoints("cold", backend.port),
                scope("cold.example", "cold"),
            ],
            &[],
        );
        let published = Instant::now();
        let wanted = gateway.served.event_where(|event| match event {
            Event::Wanted { name, .. } => Some(name),
            _ => None,
        });
        assert_eq!(&*wanted.await, "leaf");
        let started = Instant::now();
        gateway.publish(
            vec![
                eds_cluster("next", SECOND),
                endpoints("next", backend.port),
                scope("b.example", "next"),
            ],
            &[],
        );
        get_until(port, "b.example", "/", 200, "one").await;
        let next = started.elapsed();
        assert_eq!(gateway.envoy.stat("cluster_manager.warming_clusters").await, 1);
        assert!(next < SECOND * 2, "{variant:?}: the next cluster waited {next:?}");
        get_until(port, "cold.example", "/", 503, "").await;
        let cold = published.elapsed();
        assert!(
            cold > SECOND && cold < SECOND * 8,
            "{variant:?}: the route of the cold cluster came after {cold:?}"
        );
        eprintln!(
            "{variant:?}: beside a cold cluster, another serves after {next:?}; its own route after {cold:?}"
        );

        // The secret was made anew: everything gets warm.
        let pair = crate::mutual_tls::Authority::new().issue(vec![crate::mutual_tls::dns("gateway.example")]);
        gateway.publish(vec![secret("leaf", &pair.certificate, &pair.private_key)], &[]);
        gateway.settle().await;
        assert_eq!(gateway.envoy.stat("cluster_manager.warming_clusters").await, 0);
        gateway.served.end().await;
    }
}
